//! What is durable of a vdisk's map: the list of its pieces, and the footers of commits after them.
//!
//! Everything is checked at its address (C3), and solved from other shards where it is damaged or lost.

use crate::core::Shared;
use crate::error::HostError;
use crate::handles::Places;
use crate::map::{Held, MapChange, group_of};
use crate::paging::PageFault;
use crate::pool::is_at;
use crate::solve::ShardRange;
use bytes::Bytes;
use cleave_format::FormatError;
use cleave_format::address::Address;
use cleave_format::control::PiecePlace;
use cleave_format::footer::{self, FooterContent, FooterEntry, TRAILER, Trailer};
use cleave_format::ids::{SliceIndex, StripeId, VdiskId, Version};
use cleave_format::layout::{PARITY_SHARDS, SHARD};
use cleave_runtime::executor::Priority;
use cleave_runtime::sync::Queue;
use cleave_wire::MapCommit;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;

/// Footers that are read at a time.
const READS: usize = 16;
/// Pieces that are read to prove the key, until one can be.
const PROOFS: usize = 4;
/// Bytes of the end of a data section that are read at first: most footers are in it.
const TAIL: usize = 192 << 10;

impl Shared {
    /// Takes the list of the pieces. One of them is read, so that a wrong key is found before anything is served.
    pub(super) async fn list_pieces(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        pieces: &[PiecePlace],
    ) -> Result<(), HostError> {
        {
            let mut state = self.state.borrow_mut();
            for piece in pieces {
                if let Some(address) = piece.address {
                    state.map.list_piece(vdisk, piece.group, address);
                }
            }
        }
        let listed = pieces.iter().filter(|piece| piece.address.is_some());
        for piece in listed.take(PROOFS) {
            let (held, mut faults) = self.page_in(vdisk, BTreeSet::from([piece.group])).await;
            self.state.borrow_mut().map.let_go(held);
            match faults.pop() {
                None => return Ok(()),
                Some((_, fault @ (PageFault::Key(_) | PageFault::Gone))) => {
                    return Err(opening_fault(vdisk, fault));
                }
                // Damaged content is no reason not to serve the rest; whoever reads it is told.
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// Holds groups that opening needs.
    pub(super) async fn hold_pages(
        &self,
        vdisk: VdiskId,
        groups: BTreeSet<u32>,
    ) -> Result<Held, HostError> {
        let (held, mut faults) = self.page_in(vdisk, groups).await;
        match faults.pop() {
            None => Ok(held),
            Some((_, fault)) => Err(opening_fault(vdisk, fault)),
        }
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
        let read = self.read_checked(&range, |bytes| is_at(bytes, &address));
        read.await.map_err(|reason| HostError::Unreadable { vdisk, stripe, reason })
    }

    pub(super) async fn apply_commits(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        commits: Vec<MapCommit>,
        slices: &mut BTreeSet<SliceIndex>,
    ) -> Result<(), HostError> {
        let mut key_checked = false;
        for batch in commits.chunks(READS) {
            let reads = batch.iter().map(|commit| {
                let stripe = commit.stripe.clone();
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
                    self.apply_changes(vdisk, &changes, slices).await?;
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
                let frame = changes.iter().chain(&inline).find_map(|change| change.frame);
                if let Some((address, _)) = frame.filter(|_| !key_checked)
                    // In another stripe, where the block is a reference.
                    && let Some(places) = self.locate(address.stripe).await
                {
                    self.check_key(vdisk, places, address).await?;
                    key_checked = true;
                }
                self.apply_changes(vdisk, &inline, slices).await?;
            }
        }
        Ok(())
    }

    async fn apply_changes(
        self: &Rc<Shared>,
        vdisk: VdiskId,
        changes: &[MapChange],
        slices: &mut BTreeSet<SliceIndex>,
    ) -> Result<(), HostError> {
        let groups = changes.iter().map(|change| group_of(change.slice)).collect();
        let held = self.hold_pages(vdisk, groups).await?;
        let mut state = self.state.borrow_mut();
        for change in changes {
            // Which records are unreleased is known only later: every version is kept until then.
            state.map.apply(vdisk, change, Some(Version::default()));
            slices.insert(change.slice);
        }
        state.map.let_go(held);
        Ok(())
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
    pub(super) async fn footer(
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
        let mut length = TAIL.min(section);
        loop {
            let mut parts = Vec::new();
            for range in ranges(stripe, places, section - length, section) {
                // Not checked one by one: only all of them together are a footer.
                let bytes = self.read_checked(&range, |_| true).await.map_err(unreadable)?;
                parts.push((range, bytes));
            }
            let (wanted, parts): (Vec<ShardRange>, Vec<Bytes>) = parts.into_iter().unzip();
            let mut tail = parts.concat();
            if !is_footer(stripe, &tail) {
                // Damaged though its drives do not say so, in one of its shards or in two.
                {
                    let mut state = self.state.borrow_mut();
                    state.stats.checks_failed += 1;
                    state.tell_damaged(stripe);
                }
                let check = |parts: &[Bytes]| is_footer(stripe, &parts.concat());
                if let Ok(parts) = self.solve_together(&wanted, check).await {
                    tail = parts.concat();
                }
            }
            let trailer = Trailer::decode(&tail[tail.len() - TRAILER..]);
            match trailer.map(|trailer| trailer.footer_length()) {
                Ok(needed) if needed > length && needed <= section => length = needed,
                _ => {
                    return footer::decode(stripe, &tail)
                        .map_err(|_| unreadable("its footer is damaged".to_owned()));
                }
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
}

/// Why a vdisk cannot be opened whose map cannot be read.
fn opening_fault(vdisk: VdiskId, fault: PageFault) -> HostError {
    match fault {
        PageFault::Key(reason) => HostError::Key { vdisk, reason },
        PageFault::Malformed(reason) => {
            HostError::Malformed { vdisk, what: "a piece of the map", reason }
        }
        PageFault::Unreadable(stripe) => {
            let reason = "a piece of the map is in it".to_owned();
            HostError::Unreadable { vdisk, stripe, reason }
        }
        PageFault::Gone => HostError::NotOpen { vdisk },
    }
}

/// Ranges of shards that are a range of the data section, in order.
fn ranges(stripe: StripeId, places: &Places, start: usize, end: usize) -> Vec<ShardRange> {
    let shards = start / SHARD..end.div_ceil(SHARD);
    let range = |shard: usize| {
        let (from, to) = (start.max(shard * SHARD), end.min((shard + 1) * SHARD));
        let (offset, length) = ((from % SHARD) as u32, (to - from) as u32);
        ShardRange { stripe, places: Rc::clone(places), shard, offset, length }
    };
    shards.map(range).collect()
}

/// Whether the stripe's footer ends here: all of it, or the end of a longer one.
fn is_footer(stripe: StripeId, tail: &[u8]) -> bool {
    match Trailer::decode(&tail[tail.len() - TRAILER..]) {
        Ok(trailer) if trailer.stripe != stripe => false,
        Ok(trailer) => trailer.footer_length() > tail.len() || footer::decode(stripe, tail).is_ok(),
        Err(_) => false,
    }
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
