//! Taking a vdisk over, and letting it go.
//!
//! ```text
//! Seal -> pieces up to the frontier -> commits after it, by version (C2) -> unreleased records -> serve
//! ```
//! Nothing is served, and nothing written to the log, before all of it is done. A flow that fails or is
//! dropped leaves nothing behind here; the seal stays, and the next opening has a newer epoch (C8).

use crate::buffer::Record;
use crate::core::{HostCore, Shared};
use crate::error::HostError;
use crate::handles::Places;
use crate::hash::Map as HashMap;
use crate::map::MapChange;
use crate::runs::Run;
use crate::solve::ShardRange;
use crate::state::{State, Vdisk};
use bytes::Bytes;
use cleave_codec::{CodecError, Keys};
use cleave_format::address::Address;
use cleave_format::control::PiecePlace;
use cleave_format::footer::{self, FooterContent, FooterEntry, TRAILER, Trailer};
use cleave_format::ids::{Epoch, Position, SliceIndex, StripeId, VdiskId, Version};
use cleave_format::layout::{BLOCK, PARITY_SHARDS, SHARD, VDISK_MAX};
use cleave_format::map_piece::MapPiece;
use cleave_format::record::{EntryKind, Record as LogRecord};
use cleave_format::{FormatError, frame};
use cleave_runtime::executor::Priority;
use cleave_runtime::links::Class;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::Queue;
use cleave_wire::{ControllerMessage, HostMessage, MapCommit, MapCursor, Refusal};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Pieces, or footers, that are read at a time.
const READS: usize = 16;
/// Stripes that are located with one request.
const LOCATE: usize = 512;
/// Bytes of the end of a data section that are read at first: most footers are in it.
const TAIL: usize = 192 << 10;
/// Between two attempts when the data node cannot answer yet.
const RETRY: Duration = Duration::from_millis(100);
/// Commits after the frontier from which on a clean close writes a map run.
const RUN_AT_CLOSE: usize = 8;

/// A vdisk to open.
#[derive(Clone, Debug)]
pub struct OpenRequest {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// Its size in bytes, a multiple of 4096.
    pub size: u64,
    /// Its keys, when it is encrypted.
    pub keys: Option<Keys>,
    /// Its new ownership epoch, from a compare-and-swap in the coordinator store.
    pub epoch: Epoch,
    /// The previous owner's process is known dead by its kernel lock (C25).
    pub predecessor_dead: bool,
}

impl HostCore {
    /// Seals the vdisk, brings its map and its unreleased records back, and serves it. Waits while the
    /// data node is away.
    pub fn open(
        &self,
        request: OpenRequest,
    ) -> impl Future<Output = Result<(), HostError>> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            let vdisk = request.vdisk;
            shared.state.borrow_mut().begin_opening(&request)?;
            let outcome = shared.open(&request).await;
            let mut state = shared.state.borrow_mut();
            match outcome {
                Ok(()) => {
                    let open = state.vdisks.get_mut(&vdisk);
                    open.ok_or(HostError::NotOpen { vdisk })?.serving = true;
                    Ok(())
                }
                Err(error) => {
                    state.forget(vdisk);
                    Err(error)
                }
            }
        }
    }

    /// Grows a vdisk that is open.
    pub fn resize(&self, vdisk: VdiskId, size: u64) -> Result<(), HostError> {
        let mut state = self.0.state.borrow_mut();
        let open = state.vdisks.get_mut(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        if size < open.size || !is_size(size) {
            return Err(HostError::Size { vdisk, size: open.size });
        }
        open.size = size;
        Ok(())
    }

    /// Takes no more requests of the vdisk, waits until those taken are done (at most `limit`), writes a map run where
    /// that is worth it, and forgets the vdisk. True when everything was done in time; what was
    /// not is in the log, as after a crash.
    pub fn close(&self, vdisk: VdiskId, limit: Duration) -> impl Future<Output = bool> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            let executor = shared.executor.clone();
            let done = executor.timeout(limit, shared.drain(vdisk)).await;
            shared.state.borrow_mut().forget(vdisk);
            done.is_some()
        }
    }

    /// Ends the vdisk for ever: its records and its part of the catalog go (C28). It must be open here.
    pub fn delete(&self, vdisk: VdiskId) -> impl Future<Output = Result<(), HostError>> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            let epoch = {
                let mut state = shared.state.borrow_mut();
                let open = state.vdisks.get_mut(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
                open.serving = false;
                open.epoch
            };
            let idle = shared.quiet(vdisk);
            idle.await;
            let result = loop {
                let ask = |request| HostMessage::Delete { request, vdisk, epoch };
                match shared.request(Class::Log, 0, ask, &[]).await.message {
                    ControllerMessage::Done { result: Ok(_), .. } => break Ok(()),
                    ControllerMessage::Done { result: Err(Refusal::Full), .. } => {
                        shared.executor.sleep(RETRY).await;
                    }
                    ControllerMessage::Done { result: Err(refusal), .. } => {
                        break Err(HostError::Refused { vdisk, refusal });
                    }
                    _ => {
                        let refusal = Refusal::Malformed;
                        break Err(HostError::Refused { vdisk, refusal });
                    }
                }
            };
            shared.state.borrow_mut().forget(vdisk);
            result
        }
    }
}

fn is_size(size: u64) -> bool {
    size > 0 && size.is_multiple_of(BLOCK as u64) && size <= VDISK_MAX
}

impl State {
    fn begin_opening(&mut self, request: &OpenRequest) -> Result<(), HostError> {
        let (vdisk, size) = (request.vdisk, request.size);
        if self.vdisks.contains_key(&vdisk) {
            return Err(HostError::Open { vdisk });
        }
        if !is_size(size) {
            return Err(HostError::Size { vdisk, size });
        }
        let codec = self.codec_for(request.keys.as_ref());
        let opening = Vdisk {
            size,
            epoch: request.epoch,
            codec,
            serving: false,
            commits: VecDeque::new(),
            committed_bytes: 0,
            applied: Position(0),
            in_stripes: 0,
            run_wanted: false,
            stats: Default::default(),
        };
        self.vdisks.insert(vdisk, opening);
        Ok(())
    }

    /// Puts an unreleased record into the buffer, where it is newer than the map.
    fn replay(&mut self, vdisk: VdiskId, bytes: &Bytes) -> Result<SliceIndex, HostError> {
        let malformed = |reason| HostError::Malformed { vdisk, what: "a log record", reason };
        let decoded = LogRecord::decode(bytes).map_err(malformed)?;
        let identity = decoded.identity;
        if identity.vdisk != vdisk {
            return Err(malformed(FormatError::Identity("log record")));
        }
        let mut entries = Vec::new();
        for (entry, data) in decoded.entries() {
            match entry.kind {
                EntryKind::Frame => {
                    let header = frame::check_in_log(data).map_err(malformed)?;
                    if (header.blocks, entry.blocks) != (1, 1) {
                        return Err(malformed(FormatError::Version("frame of several blocks")));
                    }
                }
                EntryKind::Zero | EntryKind::Discard => {}
                // No writer of this release makes them (C31).
                EntryKind::Reference => {
                    return Err(malformed(FormatError::Version("reference")));
                }
            }
            entries.push(entry);
        }
        let length: usize = entries.iter().map(|entry| entry.length as usize).sum();
        let data = bytes.slice(bytes.len() - length..);
        let mut record = Record::new(identity, data, &entries, self.now);
        record.mirrored = true;
        let (map, slice) = (&self.map, identity.slice);
        self.buffer.insert(record, |block| {
            let known = map.version(vdisk, slice.block(block));
            known.is_none_or(|known| identity.version > known)
                || is_planted(Planted::ReplayWithoutVersions)
        });
        Ok(slice)
    }
}

impl Shared {
    async fn open(self: &Rc<Shared>, request: &OpenRequest) -> Result<(), HostError> {
        let OpenRequest { vdisk, epoch, .. } = *request;
        self.seal(request).await?;
        let (pieces, commits, frontier) = self.durable_map(vdisk, epoch).await?;
        let mut slices = self.load_pieces(vdisk, &pieces).await?;
        let committed = commits.len();
        let last = commits.last().map_or(frontier, |commit| commit.position);
        let positions: Vec<Position> = commits.iter().map(|commit| commit.position).collect();
        self.apply_commits(vdisk, commits, &mut slices).await?;
        let replayed = self.replay_records(vdisk, epoch).await?;
        slices.extend(replayed.iter().copied());
        let mut state = self.state.borrow_mut();
        for slice in slices {
            let oldest = state.buffer.oldest(vdisk, slice);
            state.map.trim(vdisk, slice, oldest);
        }
        state.run_may_be_due = true;
        let open = state.vdisks.get_mut(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        open.commits = positions.into();
        open.applied = last;
        // Their bytes are not known: as if their stripes had been full.
        open.committed_bytes = committed as u64 * (SHARD as u64) * 4;
        let (pieces, slices) = (pieces.len(), replayed.len());
        tracing::info!(%vdisk, %epoch, pieces, committed, slices, "a vdisk is open");
        Ok(())
    }

    async fn seal(&self, request: &OpenRequest) -> Result<(), HostError> {
        let OpenRequest { vdisk, epoch, predecessor_dead, .. } = *request;
        loop {
            let ask = |request| HostMessage::Seal { request, vdisk, epoch, predecessor_dead };
            match self.request(Class::Log, 0, ask, &[]).await.message {
                ControllerMessage::Done { result: Ok(_), .. } => return Ok(()),
                ControllerMessage::Done {
                    result: Err(Refusal::OwnerAlive | Refusal::Full),
                    ..
                } => {
                    self.executor.sleep(RETRY).await;
                }
                ControllerMessage::Done { result: Err(refusal), .. } => {
                    return Err(HostError::Refused { vdisk, refusal });
                }
                _ => {
                    let refusal = Refusal::Malformed;
                    return Err(HostError::Refused { vdisk, refusal });
                }
            }
        }
    }

    /// Pieces, and the commits that they do not reflect.
    async fn durable_map(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
    ) -> Result<(Vec<PiecePlace>, Vec<MapCommit>, Position), HostError> {
        let (mut all_pieces, mut all_commits) = (Vec::new(), Vec::new());
        let mut cursor: Option<MapCursor> = None;
        loop {
            let ask = |request| HostMessage::OpenMap { request, vdisk, epoch, cursor };
            let reply = self.request(Class::Read, 0, ask, &[]).await;
            let ControllerMessage::Map { frontier, pieces, commits, next, refused, .. } =
                reply.message
            else {
                let refusal = Refusal::Malformed;
                return Err(HostError::Refused { vdisk, refusal });
            };
            match refused {
                None => {}
                Some(refusal @ (Refusal::Sealed | Refusal::Malformed)) => {
                    return Err(HostError::Refused { vdisk, refusal });
                }
                Some(_) => {
                    self.executor.sleep(RETRY).await;
                    continue;
                }
            }
            all_pieces.extend(pieces);
            all_commits.extend(commits);
            cursor = next;
            if cursor.is_none() {
                all_commits.sort_by_key(|commit| commit.position);
                return Ok((all_pieces, all_commits, frontier));
            }
        }
    }

    async fn load_pieces(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        pieces: &[PiecePlace],
    ) -> Result<BTreeSet<SliceIndex>, HostError> {
        let addresses: Vec<(u32, Address)> =
            pieces.iter().filter_map(|piece| Some((piece.group, piece.address?))).collect();
        let stripes: BTreeSet<StripeId> = addresses.iter().map(|(_, a)| a.stripe).collect();
        let places = self.locate_all(vdisk, &stripes).await?;
        let mut slices = BTreeSet::new();
        for batch in addresses.chunks(READS) {
            let reads = batch.iter().map(|(_, address)| {
                let places = Rc::clone(&places[&address.stripe]);
                Rc::clone(self).read_object(vdisk, places, *address)
            });
            for ((group, _), frame) in batch.iter().zip(self.gather(reads).await) {
                let frame = frame?;
                let mut state = self.state.borrow_mut();
                let mut object = Vec::new();
                state.decode_object(vdisk, &frame, &mut object)?;
                let piece = MapPiece::decode(vdisk, *group, &object).map_err(|reason| {
                    HostError::Malformed { vdisk, what: "a piece of the map", reason }
                })?;
                slices.extend(piece.leaves.iter().map(|leaf| leaf.slice));
                state.map.load(&piece);
            }
        }
        Ok(slices)
    }

    async fn read_object(
        self: Rc<Shared>,
        vdisk: VdiskId,
        places: Places,
        address: Address,
    ) -> Result<Bytes, HostError> {
        let stripe = address.stripe;
        let malformed = FormatError::Malformed("address");
        if !address.is_valid() || address.shard() + PARITY_SHARDS >= places.len() {
            return Err(HostError::Malformed { vdisk, what: "an address", reason: malformed });
        }
        let range = ShardRange {
            stripe,
            places,
            shard: address.shard(),
            offset: address.shard_offset() as u32,
            length: address.length,
        };
        let read = self.read_checked(&range, |bytes| frame::check_at(bytes, &address).is_ok());
        read.await.map_err(|reason| HostError::Unreadable { vdisk, stripe, reason })
    }

    async fn locate_all(
        &self,
        vdisk: VdiskId,
        stripes: &BTreeSet<StripeId>,
    ) -> Result<BTreeMap<StripeId, Places>, HostError> {
        let mut places = BTreeMap::new();
        let stripes: Vec<StripeId> = stripes.iter().copied().collect();
        for batch in stripes.chunks(LOCATE) {
            let ask = |request| HostMessage::Locate { request, stripes: batch.to_vec() };
            let reply = self.request(Class::Read, 0, ask, &[]).await;
            if let ControllerMessage::Located { stripes, .. } = reply.message {
                places.extend(stripes.into_iter().map(|found| (found.stripe, found.slots.into())));
            }
        }
        match stripes.iter().find(|stripe| !places.contains_key(stripe)) {
            None => Ok(places),
            Some(stripe) => {
                let reason = "the data node does not know it".to_owned();
                Err(HostError::Unreadable { vdisk, stripe: *stripe, reason })
            }
        }
    }

    async fn apply_commits(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        commits: Vec<MapCommit>,
        slices: &mut BTreeSet<SliceIndex>,
    ) -> Result<(), HostError> {
        let mut key_checked = false;
        for batch in commits.chunks(READS) {
            let reads = batch.iter().map(|commit| {
                let stripe = commit.stripe.clone().filter(|stripe| !stripe.slots.is_empty());
                let shared = Rc::clone(self);
                async move {
                    match stripe {
                        Some(stripe) => {
                            let places: Places = stripe.slots.into();
                            let entries = shared.footer(vdisk, stripe.stripe, &places).await?;
                            Ok(Some((stripe.stripe, places, entries)))
                        }
                        None => Ok(None),
                    }
                }
            });
            for (commit, footer) in batch.iter().zip(self.gather(reads).await) {
                let mut changes = Vec::new();
                if let Some((stripe, places, entries)) = footer? {
                    let of_it = entries.iter().filter(|entry| entry.vdisk == vdisk);
                    changes.extend(of_it.filter_map(|entry| change(stripe, entry)));
                    let frame = changes.iter().find_map(|change: &MapChange| change.frame);
                    if let Some((address, _)) = frame.filter(|_| !key_checked) {
                        self.check_key(vdisk, Rc::clone(&places), address).await?;
                        key_checked = true;
                    }
                    self.apply_changes(vdisk, &changes, slices);
                    self.state.borrow_mut().map.learn(stripe, &places);
                }
                let inline = commit.entries.iter().map(|entry| MapChange {
                    slice: entry.slice,
                    block: entry.block,
                    blocks: entry.blocks,
                    version: entry.version,
                    frame: entry.reference.map(|address| (address, 0)),
                });
                let inline: Vec<MapChange> = inline.collect();
                self.apply_changes(vdisk, &inline, slices);
            }
        }
        Ok(())
    }

    fn apply_changes(
        &self,
        vdisk: VdiskId,
        changes: &[MapChange],
        slices: &mut BTreeSet<SliceIndex>,
    ) {
        let mut state = self.state.borrow_mut();
        for change in changes {
            // Which records are unreleased is known only later: every version is kept until then.
            state.map.apply(vdisk, change, Some(Version::default()));
            slices.insert(change.slice);
        }
    }

    /// Decodes one block, so that a wrong key is found before anything is served.
    async fn check_key(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        places: Places,
        address: Address,
    ) -> Result<(), HostError> {
        let frame = Rc::clone(self).read_object(vdisk, places, address).await?;
        let mut state = self.state.borrow_mut();
        state.decode_for_opening(vdisk, &frame)
    }

    /// The footer of a committed stripe.
    async fn footer(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        stripe: StripeId,
        places: &Places,
    ) -> Result<Vec<FooterEntry>, HostError> {
        let section = places.len().saturating_sub(PARITY_SHARDS) * SHARD;
        let unreadable = |reason| HostError::Unreadable { vdisk, stripe, reason };
        if section == 0 {
            return Err(unreadable("it has no slots".to_owned()));
        }
        let mut solved = HashMap::default();
        let mut length = TAIL.min(section);
        let mut suspects: Vec<usize> = Vec::new();
        loop {
            let tail = self.section(stripe, places, section - length, section, &solved).await;
            let tail = tail.map_err(unreadable)?;
            let needed = match Trailer::decode(&tail[tail.len() - TRAILER..]) {
                Ok(trailer) if trailer.stripe == stripe && trailer.footer_length() <= section => {
                    trailer.footer_length()
                }
                _ => 0,
            };
            if needed > length {
                length = needed;
                suspects.clear();
                continue;
            }
            if let Ok(entries) = footer::decode(stripe, &tail) {
                return Ok(entries);
            }
            // Damaged though its drives do not say so: solve its shards, one after the other.
            self.state.borrow_mut().stats.checks_failed += 1;
            if suspects.is_empty() && solved.is_empty() {
                suspects = ((section - length) / SHARD..section.div_ceil(SHARD)).collect();
            }
            let Some(suspect) = suspects.pop() else {
                return Err(unreadable("its footer is damaged".to_owned()));
            };
            solved.insert(suspect, ());
        }
    }

    /// A range of the data section; the shards in `solved` from the other ones.
    async fn section(
        self: &Rc<Shared>,
        stripe: StripeId,
        places: &Places,
        start: usize,
        end: usize,
        solved: &HashMap<usize, ()>,
    ) -> Result<Vec<u8>, String> {
        let mut bytes = Vec::with_capacity(end - start);
        let mut at = start;
        while at < end {
            let shard = at / SHARD;
            let to = end.min((shard + 1) * SHARD);
            let (offset, length) = ((at % SHARD) as u32, (to - at) as u32);
            let range = ShardRange { stripe, places: Rc::clone(places), shard, offset, length };
            let part = match solved.contains_key(&shard) {
                true => self.solve(&range, |_| true).await?,
                false => self.read_checked(&range, |_| true).await?,
            };
            bytes.extend_from_slice(&part);
            at = to;
        }
        Ok(bytes)
    }

    /// Brings the unreleased records back; returns their slices.
    async fn replay_records(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
    ) -> Result<BTreeSet<SliceIndex>, HostError> {
        let mut slices: BTreeMap<SliceIndex, Version> = BTreeMap::new();
        let mut from = Position(0);
        let mut key_checked = false;
        loop {
            let ask = |request| HostMessage::Fetch { request, vdisk, epoch, from };
            let mut reply = self.request(Class::Read, 0, ask, &[]).await;
            let ControllerMessage::Fetched { records, next, refused, .. } = reply.message else {
                let refusal = Refusal::Malformed;
                return Err(HostError::Refused { vdisk, refusal });
            };
            match refused {
                None => {}
                Some(refusal @ (Refusal::Sealed | Refusal::Malformed)) => {
                    return Err(HostError::Refused { vdisk, refusal });
                }
                Some(_) => {
                    self.executor.sleep(RETRY).await;
                    continue;
                }
            }
            for length in records {
                let short = FormatError::Short("log record");
                let bytes = reply.payload.take(length as usize).ok_or(HostError::Malformed {
                    vdisk,
                    what: "a log record",
                    reason: short,
                })?;
                let mut state = self.state.borrow_mut();
                let identity = LogRecord::decode(&bytes).map(|record| record.identity);
                if let Ok(identity) = identity
                    && slices.get(&identity.slice).is_some_and(|last| identity.version <= *last)
                {
                    continue;
                }
                let slice = state.replay(vdisk, &bytes)?;
                if let Ok(identity) = identity {
                    slices.insert(slice, identity.version);
                }
                if !key_checked && let Some(frame) = first_frame(&bytes) {
                    state.decode_for_opening(vdisk, frame)?;
                    key_checked = true;
                }
            }
            self.executor.yield_now().await;
            match next {
                Some(next) => from = next,
                None => return Ok(slices.into_keys().collect()),
            }
        }
    }

    /// Runs futures, at most as many as it is given at once, and returns their results in order.
    async fn gather<T: 'static>(
        &self,
        futures: impl Iterator<Item = impl Future<Output = T> + 'static>,
    ) -> Vec<T> {
        let results = Queue::default();
        let mut count = 0;
        for (index, future) in futures.enumerate() {
            let results = results.clone();
            count += 1;
            self.executor.spawn(Priority::Foreground, async move {
                results.push((index, future.await));
            });
        }
        let mut ordered = BTreeMap::new();
        while ordered.len() < count {
            let (index, result) = results.pop().await;
            ordered.insert(index, result);
        }
        ordered.into_values().collect()
    }

    /// Waits until nothing of the vdisk is on its way.
    async fn quiet(&self, vdisk: VdiskId) {
        let progress = self.state.borrow().progress.clone();
        let quiet = || {
            let state = self.state.borrow();
            let busy = state.writes.of(vdisk) > 0
                || state.reads.values().any(|read| read.vdisk == vdisk)
                || state.vdisks.get(&vdisk).is_some_and(|open| open.in_stripes > 0);
            (!busy).then_some(())
        };
        progress.until(quiet).await;
    }

    async fn drain(&self, vdisk: VdiskId) {
        if let Some(open) = self.state.borrow_mut().vdisks.get_mut(&vdisk) {
            open.serving = false;
        }
        self.quiet(vdisk).await;
        let progress = {
            let mut state = self.state.borrow_mut();
            if let Some(open) = state.vdisks.get_mut(&vdisk) {
                open.run_wanted = open.commits.len() >= RUN_AT_CLOSE;
            }
            state.run_may_be_due = true;
            state.progress.clone()
        };
        progress.notify();
        let written = || {
            let state = self.state.borrow();
            let wanted = state.vdisks.get(&vdisk).is_some_and(|open| open.run_wanted);
            // A run that began for other reasons and that nothing carries on is given up.
            let own = state.run.as_ref().filter(|run| run.vdisk == vdisk);
            let begun = own.is_some_and(Run::goes_on);
            (!wanted && !begun).then_some(())
        };
        progress.until(written).await;
        self.quiet(vdisk).await;
    }
}

impl State {
    fn decode_object(
        &mut self,
        vdisk: VdiskId,
        frame: &[u8],
        object: &mut Vec<u8>,
    ) -> Result<(), HostError> {
        let open = self.vdisks.get(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        let codec = &mut self.codecs[open.codec].1;
        codec.decode_object(frame, object).map_err(|reason| HostError::Key { vdisk, reason })
    }

    fn decode_for_opening(&mut self, vdisk: VdiskId, frame: &[u8]) -> Result<(), HostError> {
        let open = self.vdisks.get(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        let codec = &mut self.codecs[open.codec].1;
        match codec.decode(frame, &mut [0; BLOCK]) {
            // Damaged content is no reason not to serve the rest; whoever reads it is told.
            Ok(_) | Err(CodecError::Content | CodecError::Kind) => Ok(()),
            Err(reason) => Err(HostError::Key { vdisk, reason }),
        }
    }
}

/// The record's first frame.
fn first_frame(record: &Bytes) -> Option<&[u8]> {
    let record = LogRecord::decode(record).ok()?;
    record.entries().find(|(entry, _)| entry.kind == EntryKind::Frame).map(|(_, frame)| frame)
}

/// What a footer's entry changes in the map; nothing for pieces.
fn change(stripe: StripeId, entry: &FooterEntry) -> Option<MapChange> {
    let (blocks, frame) = match entry.content {
        FooterContent::Frame { place, block_in_frame, .. } => {
            (1, Some((place.address(stripe), block_in_frame)))
        }
        FooterContent::Zero { blocks } | FooterContent::Discard { blocks } => (blocks as u16, None),
        FooterContent::Reference { address, block_in_frame, .. } => {
            (1, Some((address, block_in_frame)))
        }
        // A piece is in the map by its run; nothing moves frames in this release (C22, C31).
        FooterContent::MapPiece { .. } | FooterContent::Move { .. } => return None,
    };
    let (slice, block) = (entry.block.slice(), entry.block.within_slice());
    Some(MapChange { slice, block, blocks, version: entry.version, frame })
}
