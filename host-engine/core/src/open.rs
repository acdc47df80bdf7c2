//! Taking a vdisk over.
//!
//! ```text
//! Seal -> list of pieces up to the frontier -> commits after it, by version (C2) -> unreleased records -> serve
//! ```
//! Of the pieces only those are read that commits and records change; the others come when they are asked for
//! (`paging`).
//! Nothing is served, and nothing written to the log, before all of it is done. A flow that fails or is
//! dropped leaves nothing behind here; the seal stays, and the next opening has a newer epoch (C8).

mod list;
mod load;

use crate::buffer::Record;
use crate::core::{HostCore, Shared};
use crate::error::HostError;
use crate::map::group_of;
use crate::state::{State, Vdisk};
use bytes::Bytes;
use cleave_codec::{CodecError, Keys};
use cleave_format::control::PiecePlace;
use cleave_format::ids::{Epoch, Position, SliceIndex, VdiskId, Version};
use cleave_format::layout::{BLOCK, SHARD, VDISK_MAX};
use cleave_format::record::{EntryKind, Record as LogRecord};
use cleave_format::{FormatError, frame};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Priority;
use cleave_runtime::links::Class;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::{ControllerMessage, HostMessage, MapCommit, MapCursor, Refusal};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Between two attempts when the data node cannot answer yet.
pub(crate) const RETRY: Duration = Duration::from_millis(100);

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
    /// Epochs whose owners served the vdisk, and do so no more: they let go of it, as the store says, or their
    /// processes are known dead by the kernel lock (C9, C25).
    pub gone: Vec<Epoch>,
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
                    let open = open.ok_or(HostError::NotOpen { vdisk })?;
                    open.serving = true;
                    let (epoch, sealed) = (open.epoch, open.applied);
                    drop(state);
                    let listing = Rc::clone(&shared).list_stripes(vdisk, epoch, sealed);
                    shared.executor.spawn(Priority::Background, listing);
                    let counting = Rc::clone(&shared).count_pieces(vdisk, epoch);
                    shared.executor.spawn(Priority::Background, counting);
                    Ok(())
                }
                Err(error) => {
                    state.forget(vdisk);
                    Err(error)
                }
            }
        }
    }
}

pub(crate) fn is_size(size: u64) -> bool {
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
            lease: None,
            deleting: false,
            commits: VecDeque::new(),
            committed_bytes: 0,
            applied: Position(0),
            in_stripes: 0,
            dead_since: None,
            run_wanted: false,
            window: Default::default(),
            stats: Default::default(),
        };
        self.vdisks.insert(vdisk, opening);
        self.map.begin(vdisk);
        Ok(())
    }

    /// Puts an unreleased record into the buffer, where it is newer than the map. Frames that rotted in both
    /// controllers go in as they are: reads of their blocks fail, and destage leaves them in the log, until they
    /// are written again. The rest is served.
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
                EntryKind::Frame => match frame::check_in_log(data) {
                    Ok(header) if (header.blocks, entry.blocks) == (1, 1) => {}
                    Ok(_) => {
                        return Err(malformed(FormatError::Version("frame of several blocks")));
                    }
                    Err(error) => {
                        let block = identity.slice.block(entry.block);
                        tracing::error!(%vdisk, block = block.0, %error, "a logged block rotted in both controllers; reads of it fail until it is written again");
                    }
                },
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
        let (map, slice, overtaken) = (&self.map, identity.slice, Cell::new(0));
        self.buffer.insert(record, |block| {
            let known = map.version(vdisk, slice.block(block));
            let newer = known.is_none_or(|known| identity.version > known);
            overtaken.set(overtaken.get() + u64::from(!newer));
            newer || is_planted(Planted::ReplayWithoutVersions)
        });
        self.stats.replays_overtaken += overtaken.get();
        Ok(slice)
    }
}

impl Shared {
    async fn open(self: &Rc<Shared>, request: &OpenRequest) -> Result<(), HostError> {
        let OpenRequest { vdisk, epoch, .. } = *request;
        let sealed = self.seal(request).await?;
        self.state.borrow_mut().want_lease(vdisk);
        reached(Point::HostSealed);
        let (pieces, commits) = self.durable_map(vdisk, epoch).await?;
        self.list_pieces(vdisk, &pieces).await?;
        let mut slices = BTreeSet::new();
        let committed = commits.len();
        let positions: Vec<Position> = commits.iter().map(|commit| commit.position).collect();
        self.apply_commits(vdisk, commits, &mut slices).await?;
        reached(Point::HostMapRead);
        let replayed = self.replay_records(vdisk, epoch).await?;
        reached(Point::HostRecordsFetched);
        slices.extend(replayed.iter().copied());
        let mut state = self.state.borrow_mut();
        for slice in slices {
            let oldest = state.buffer.oldest(vdisk, slice);
            state.map.trim(vdisk, slice, oldest);
        }
        state.run_may_be_due = true;
        let open = state.vdisks.get_mut(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        open.commits = positions.into();
        // All commits before the seal; later ones of older epochs are struck (C8).
        open.applied = sealed;
        // Their bytes are not known: as if their stripes had been full.
        open.committed_bytes = committed as u64 * (SHARD as u64) * 4;
        let (pieces, slices) = (pieces.len(), replayed.len());
        tracing::info!(%vdisk, %epoch, pieces, committed, slices, "a vdisk is open");
        Ok(())
    }

    /// Returns the position of the seal.
    async fn seal(&self, request: &OpenRequest) -> Result<Position, HostError> {
        let OpenRequest { vdisk, epoch, .. } = *request;
        loop {
            let gone = || request.gone.clone();
            let ask = |request| HostMessage::Seal { request, vdisk, epoch, gone: gone() };
            match self.request(Class::Log, 0, ask, &[]).await.message {
                ControllerMessage::Done { result: Ok(position), .. } => return Ok(position),
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
    ) -> Result<(Vec<PiecePlace>, Vec<MapCommit>), HostError> {
        let (mut all_pieces, mut all_commits) = (Vec::new(), Vec::new());
        let mut cursor: Option<MapCursor> = None;
        loop {
            let ask = |request| HostMessage::OpenMap { request, vdisk, epoch, cursor };
            let reply = self.request(Class::Read, 0, ask, &[]).await;
            let ControllerMessage::Map { pieces, commits, next, refused, .. } = reply.message
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
                return Ok((all_pieces, all_commits));
            }
        }
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
        let log = self.state.borrow().log_identity;
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
            let mut page = Vec::with_capacity(records.len());
            let mut groups = BTreeSet::new();
            for length in records {
                let short = FormatError::Short("log record");
                let bytes = reply.payload.take(length as usize).ok_or(HostError::Malformed {
                    vdisk,
                    what: "a log record",
                    reason: short,
                })?;
                if let Ok(record) = LogRecord::decode(&bytes) {
                    groups.insert(group_of(record.identity.slice));
                }
                page.push(bytes);
            }
            // C2: what the map has is compared with them.
            let held = self.hold_pages(vdisk, groups).await?;
            if self.state.borrow().log_identity != log {
                // The log is lost, and what it still had of the vdisk (C7). Its successor has what was
                // fetched before, from here and under new versions: fetched once more, it would be here twice.
                self.state.borrow_mut().map.let_go(held);
                tracing::warn!(%vdisk, "the log was lost while the vdisk was opened");
                return Ok(slices.into_keys().collect());
            }
            for bytes in page {
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
            self.state.borrow_mut().map.let_go(held);
            self.executor.yield_now().await;
            match next {
                Some(next) => from = next,
                None => return Ok(slices.into_keys().collect()),
            }
        }
    }
}

impl State {
    pub(super) fn decode_for_opening(
        &mut self,
        vdisk: VdiskId,
        frame: &[u8],
    ) -> Result<(), HostError> {
        let open = self.vdisks.get(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        let codec = &mut self.codecs[open.codec].1;
        match codec.decode(frame, &mut [0; BLOCK]) {
            // Damaged content is no reason not to serve the rest; whoever reads it is told.
            Ok(_) | Err(CodecError::Content | CodecError::Kind) => Ok(()),
            Err(reason) => Err(HostError::Key { vdisk, reason }),
        }
    }
}

/// The record's first frame that is not damaged.
fn first_frame(record: &Bytes) -> Option<&[u8]> {
    let record = LogRecord::decode(record).ok()?;
    let mut frames = record.entries().filter(|(entry, _)| entry.kind == EntryKind::Frame);
    frames.find(|(_, frame)| frame::check_in_log(frame).is_ok()).map(|(_, frame)| frame)
}
