//! The maps of the core's vdisks: for every block the frame that the newest applied commit gave
//! it. Of some groups of slices only the durable piece is known, and where it lies (`pages`).
//!
//! Invariants: a leaf reflects exactly the commits applied so far, whatever the write buffer
//! holds. A block keeps its version beside the leaf while the slice has an unreleased record that
//! is not newer (C2), so that a change is applied only where it is newer, in whatever order
//! commits and replays come. A run's snapshot reflects the map as it was when the run began: a
//! piece is copied before the first change after that.
//!
//! A crash leaves nothing: pieces, footers and the log bring it back (`open`).

use crate::handles::{Handles, Places};
use crate::hash::Map as HashMap;
use crate::liveness::Liveness;
use cleave_format::address::{Address, MapEntry};
use cleave_format::control::PiecePlace;
use cleave_format::ids::{BlockIndex, SliceIndex, StripeId, VdiskId, Version};
use cleave_format::layout::{PIECE_SLICES, SLICE_BLOCKS};
use cleave_format::map_piece::{Leaf, MapPiece};
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

mod leaf;
mod pages;

use leaf::{Group, SliceMap};
use pages::Pieces;
pub use pages::{Held, changed_max};

const BLOCKS: usize = SLICE_BLOCKS as usize;

/// What a commit says about blocks of one slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MapChange {
    /// The slice.
    pub slice: SliceIndex,
    /// First block in it.
    pub block: u16,
    /// Blocks; 1 when there is a frame.
    pub blocks: u16,
    /// Age (C2).
    pub version: Version,
    /// The frame and the number of the block in it; `None` for zeros.
    pub frame: Option<(Address, u8)>,
}

/// A run in progress: the pieces of one vdisk as they were when it began.
#[derive(Default)]
struct Snapshot {
    /// Not yet taken and not changed since.
    remaining: BTreeSet<u32>,
    /// Changed since: copied before.
    copied: BTreeMap<u32, Option<MapPiece>>,
    /// Taken by the run, which is not durable yet.
    taken: BTreeSet<u32>,
}

impl Snapshot {
    fn has(&self, group: u32) -> bool {
        self.remaining.contains(&group)
            || self.copied.contains_key(&group)
            || self.taken.contains(&group)
    }
}

/// All maps of a core.
#[derive(Default)]
pub struct Map {
    /// In memory.
    groups: HashMap<(VdiskId, u32), Group>,
    /// All of them, in the order in which the hand comes by.
    ring: VecDeque<(VdiskId, u32)>,
    /// How many of them the hand left alone one after the other.
    fruitless: usize,
    /// Groups that must stay in memory, and for how many.
    held: BTreeMap<(VdiskId, u32), u32>,
    leaves: usize,
    vdisks: BTreeMap<VdiskId, Pieces>,
    generations: u64,
    handles: Handles,
    liveness: Liveness,
    /// Groups that changed since the last run began.
    dirty: BTreeMap<VdiskId, BTreeSet<u32>>,
    snapshots: BTreeMap<VdiskId, Snapshot>,
    versions_kept: usize,
    /// Blocks that kept a newer content than a commit that came late had for them (C2).
    overtaken: u64,
    /// Blocks with a frame.
    mapped: BTreeMap<VdiskId, u64>,
    /// Where stripes lie that hold current pieces.
    piece_places: HashMap<StripeId, Places>,
}

/// The group of pieces that a slice belongs to.
pub fn group_of(slice: SliceIndex) -> u32 {
    slice.0 / PIECE_SLICES
}

impl Map {
    /// A block's entry; `None`: its group is not in memory.
    pub fn get(&self, vdisk: VdiskId, block: BlockIndex) -> Option<MapEntry> {
        let number = group_of(block.slice());
        let Some(group) = self.groups.get(&(vdisk, number)) else {
            return self.piece_address(vdisk, number).is_none().then_some(MapEntry::EMPTY);
        };
        group.hot.set(true);
        let leaf = group.leaf(block.slice());
        Some(leaf.map_or(MapEntry::EMPTY, |leaf| leaf.entries[usize::from(block.within_slice())]))
    }

    /// Whether no block of the slice has a frame, as far as memory says.
    pub fn is_empty(&self, vdisk: VdiskId, slice: SliceIndex) -> bool {
        match self.groups.get(&(vdisk, group_of(slice))) {
            Some(group) => group.leaf(slice).is_none_or(|leaf| leaf.used == 0),
            None => self.piece_address(vdisk, group_of(slice)).is_none(),
        }
    }

    /// The age of a block's content, while it is kept; its group is in memory.
    pub fn version(&self, vdisk: VdiskId, block: BlockIndex) -> Option<Version> {
        let group = self.groups.get(&(vdisk, group_of(block.slice())))?;
        group.leaf(block.slice())?.version(block.within_slice())
    }

    /// The stripe that an entry names, and its slots where they are known.
    pub fn resolve(&self, entry: MapEntry) -> Option<(Address, Option<Places>)> {
        let (stripe, places) = self.handles.resolve(entry.handle()?);
        Some((Address { stripe, offset: entry.offset(), length: entry.length() }, places))
    }

    /// Remembers where a stripe lies.
    pub fn learn(&mut self, stripe: StripeId, places: &Places) {
        self.handles.learn(stripe, places);
        if self.liveness.holds_pieces(stripe) {
            self.piece_places.insert(stripe, Rc::clone(places));
        }
    }

    /// Where a stripe lies that holds a current piece, if that is known.
    pub fn places(&self, stripe: StripeId) -> Option<Places> {
        self.handles.places(stripe).or_else(|| self.piece_places.get(&stripe).cloned())
    }

    /// Applies a change where it is newer (C2). Versions not older than `oldest`, the slice's oldest
    /// unreleased record, are kept; `None`: there is none.
    pub fn apply(&mut self, vdisk: VdiskId, change: &MapChange, oldest: Option<Version>) {
        let end = u32::from(change.block) + u32::from(change.blocks);
        assert!(end <= SLICE_BLOCKS && (change.frame.is_none() || change.blocks == 1));
        self.before_change(vdisk, change.slice);
        self.mark_dirty(vdisk, group_of(change.slice));
        self.require_group(vdisk, change.slice);
        let group = self.groups.get_mut(&(vdisk, group_of(change.slice))).expect("it is there");
        let place = group.leaf_mut(change.slice);
        self.leaves += usize::from(place.is_none());
        let leaf = place.get_or_insert_with(SliceMap::new);
        let (kept_before, used_before) = (leaf.versions.len(), leaf.used);
        let keep = oldest.is_some_and(|oldest| change.version >= oldest);
        leaf.newest = leaf.newest.max(change.version);
        for block in change.block..end as u16 {
            if leaf.version(block).is_some_and(|known| change.version <= known)
                && !is_planted(Planted::ApplyWithoutVersions)
            {
                self.overtaken += 1;
                continue;
            }
            if keep {
                leaf.keep_version(block, change.version);
            } else {
                leaf.forget_version(block);
            }
            let entry = match change.frame {
                None => MapEntry::EMPTY,
                Some((address, block_in_frame)) => {
                    let (handle, only) = self.handles.reference(vdisk, address.stripe);
                    if only {
                        self.liveness.named(vdisk, address.stripe);
                    }
                    MapEntry::new(handle, address.offset, address.length, block_in_frame)
                }
            };
            let old = std::mem::replace(&mut leaf.entries[usize::from(block)], entry);
            leaf.used += u16::from(!entry.is_empty());
            if let Some(handle) = old.handle() {
                leaf.used -= 1;
                if let Some(stripe) = self.handles.release(vdisk, handle) {
                    self.liveness.unnamed(vdisk, stripe);
                }
            }
        }
        let (kept, used) = (leaf.versions.len(), leaf.used);
        if leaf.is_empty() {
            *place = None;
            self.leaves -= 1;
        }
        self.versions_kept = self.versions_kept + kept - kept_before;
        let mapped = self.mapped.entry(vdisk).or_default();
        *mapped = *mapped + u64::from(used) - u64::from(used_before);
    }

    /// Blocks that kept a newer content than a commit that came late had for them (C2).
    pub fn overtaken(&self) -> u64 {
        self.overtaken
    }

    /// Forgets versions that no unreleased record of the slice can meet any more.
    pub fn trim(&mut self, vdisk: VdiskId, slice: SliceIndex, oldest: Option<Version>) {
        let unneeded = |version: &Version| oldest.is_none_or(|oldest| *version < oldest);
        let found = self.groups.get(&(vdisk, group_of(slice))).and_then(|group| group.leaf(slice));
        if !found.is_some_and(|leaf| leaf.versions.iter().any(|(_, version)| unneeded(version))) {
            return;
        }
        self.before_change(vdisk, slice);
        self.mark_dirty(vdisk, group_of(slice));
        let group = self.groups.get_mut(&(vdisk, group_of(slice))).expect("it was there");
        let place = group.leaf_mut(slice);
        let leaf = place.as_mut().expect("it was there");
        let kept_before = leaf.versions.len();
        leaf.versions.retain(|(_, version)| !unneeded(version));
        let forgotten = kept_before - leaf.versions.len();
        let emptied = leaf.is_empty();
        if emptied {
            *place = None;
        }
        self.versions_kept -= forgotten;
        self.leaves -= usize::from(emptied);
    }

    /// Forgets everything of a vdisk.
    pub fn forget(&mut self, vdisk: VdiskId) {
        let (leaves, versions_kept) = (&mut self.leaves, &mut self.versions_kept);
        self.groups.retain(|(owner, _), group| {
            if *owner == vdisk {
                let (count, versions) = group.weight();
                *leaves -= count;
                *versions_kept -= versions;
            }
            *owner != vdisk
        });
        self.handles.forget(vdisk);
        self.ring.retain(|(owner, _)| *owner != vdisk);
        self.fruitless = 0;
        self.held.retain(|(owner, _), _| *owner != vdisk);
        self.vdisks.remove(&vdisk);
        self.dirty.remove(&vdisk);
        self.snapshots.remove(&vdisk);
        self.mapped.remove(&vdisk);
        self.liveness.forget(vdisk);
        let liveness = &self.liveness;
        self.piece_places.retain(|stripe, _| liveness.holds_pieces(*stripe));
    }

    /// Whether an entry of the vdisk names the stripe.
    pub fn names(&self, vdisk: VdiskId, stripe: StripeId) -> bool {
        self.handles.names(vdisk, stripe)
    }

    /// The catalog lists the stripe for the vdisk, by a commit that the map reflects.
    pub fn listed(&mut self, vdisk: VdiskId, stripe: StripeId) {
        if !self.handles.names(vdisk, stripe) {
            self.liveness.unnamed(vdisk, stripe);
        }
    }

    /// A group's piece is current from now on; `None`: the group has none.
    pub fn set_piece(&mut self, vdisk: VdiskId, group: u32, address: Option<Address>) {
        let old = self.liveness.set_piece(vdisk, group, address);
        if let Some(old) = old.filter(|old| !self.liveness.holds_pieces(old.stripe)) {
            self.piece_places.remove(&old.stripe);
        }
    }

    /// What the vdisk can leave with the commit of its run, which makes these pieces current (C21).
    pub fn leaves(&mut self, vdisk: VdiskId, pieces: &[PiecePlace]) -> Vec<StripeId> {
        if is_planted(Planted::FreeAheadOfTheRun) && self.is_counted(vdisk) {
            self.liveness.capture(vdisk, |_| false);
        }
        self.liveness.leaves(vdisk, pieces)
    }

    /// Whether the run in progress began with any stripe that the vdisk could leave.
    pub fn could_leave(&self, vdisk: VdiskId) -> bool {
        self.liveness.has_captured(vdisk)
    }

    /// That commit is mirrored.
    pub fn left(&mut self, vdisk: VdiskId, stripes: &[StripeId]) {
        self.liveness.left(vdisk, stripes);
    }

    /// Stripes that the vdisk could leave.
    pub fn dead(&self, vdisk: VdiskId) -> usize {
        match self.may_leave(vdisk) {
            true => self.liveness.dead(vdisk),
            false => 0,
        }
    }

    /// Whether the vdisk's entries are counted, so that a stripe that none of them names can be left (C20).
    fn may_leave(&self, vdisk: VdiskId) -> bool {
        self.is_counted(vdisk) || is_planted(Planted::FreeBeforeTheCount)
    }

    /// Stripes that the vdisk's entries name, and those listed for it that none of them names: for judges.
    pub fn known_stripes(&self, vdisk: VdiskId) -> (BTreeSet<StripeId>, BTreeSet<StripeId>) {
        (self.handles.named_by(vdisk), self.liveness.unnamed_of(vdisk))
    }

    /// Keeps a stripe that a plan refers to from being reported as one that nothing names (C19). False: it may
    /// be freed by now.
    pub fn pin(&mut self, stripe: StripeId) -> bool {
        self.handles.pin(stripe)
    }

    /// The plan ended.
    pub fn unpin(&mut self, stripe: StripeId) {
        self.handles.unpin(stripe);
    }

    /// Blocks of the vdisk that have a frame.
    pub fn mapped(&self, vdisk: VdiskId) -> u64 {
        self.mapped.get(&vdisk).copied().unwrap_or(0)
    }

    /// Pieces that changed since the last run began.
    pub fn dirty(&self, vdisk: VdiskId) -> usize {
        self.dirty.get(&vdisk).map_or(0, BTreeSet::len)
    }

    /// Marks a group as one that the next run must write.
    pub fn mark_dirty(&mut self, vdisk: VdiskId, group: u32) {
        self.dirty.entry(vdisk).or_default().insert(group);
    }

    /// Begins a run: from here on [`next_piece`](Map::next_piece) gives what changed since the last
    /// one, as it is now.
    pub fn begin_run(&mut self, vdisk: VdiskId) {
        let remaining = self.dirty.remove(&vdisk).unwrap_or_default();
        let snapshot = Snapshot { remaining, ..Snapshot::default() };
        let old = self.snapshots.insert(vdisk, snapshot);
        assert!(old.is_none(), "a vdisk has one run at a time");
        let (handles, may_leave) = (&self.handles, self.may_leave(vdisk));
        self.liveness.capture(vdisk, |stripe| !may_leave || handles.is_pinned(stripe));
    }

    /// Takes a piece out of the run; `None` inside for a group that has no entries any more.
    pub fn next_piece(&mut self, vdisk: VdiskId) -> Option<(u32, Option<MapPiece>)> {
        let snapshot = self.snapshots.get_mut(&vdisk)?;
        if let Some(copied) = snapshot.copied.pop_first() {
            snapshot.taken.insert(copied.0);
            return Some(copied);
        }
        let group = snapshot.remaining.pop_first()?;
        snapshot.taken.insert(group);
        Some((group, self.piece(vdisk, group)))
    }

    /// Ends a run; what it did not take is dirty again.
    pub fn end_run(&mut self, vdisk: VdiskId) {
        if let Some(snapshot) = self.snapshots.remove(&vdisk) {
            let groups = snapshot.remaining.into_iter().chain(snapshot.copied.into_keys());
            groups.for_each(|group| self.mark_dirty(vdisk, group));
            self.fruitless = 0;
        }
    }

    fn before_change(&mut self, vdisk: VdiskId, slice: SliceIndex) {
        let group = group_of(slice);
        let Some(snapshot) = self.snapshots.get_mut(&vdisk) else { return };
        if snapshot.remaining.remove(&group) {
            let piece = self.piece(vdisk, group);
            let snapshot = self.snapshots.get_mut(&vdisk).expect("it was there");
            snapshot.copied.insert(group, piece);
        }
    }

    /// A group as it is now; `None` when it has neither entries nor versions.
    pub fn piece(&self, vdisk: VdiskId, group: u32) -> Option<MapPiece> {
        let mut stripes = Vec::new();
        let mut known: HashMap<StripeId, u32> = HashMap::default();
        let mut leaves = Vec::new();
        for slice in group * PIECE_SLICES..(group + 1) * PIECE_SLICES {
            let slice = SliceIndex(slice);
            let found = self.groups.get(&(vdisk, group));
            let Some(leaf) = found.and_then(|group| group.leaf(slice)) else { continue };
            if leaf.is_empty() {
                continue;
            }
            let mut entries = Box::new([MapEntry::EMPTY; BLOCKS]);
            for (entry, found) in entries.iter_mut().zip(leaf.entries.iter()) {
                let Some(handle) = found.handle() else { continue };
                let (stripe, _) = self.handles.resolve(handle);
                let index = *known.entry(stripe).or_insert_with(|| {
                    stripes.push(stripe);
                    stripes.len() as u32
                });
                *entry = MapEntry::new(
                    cleave_format::address::Handle(index),
                    found.offset(),
                    found.length(),
                    found.block_in_frame(),
                );
            }
            let versions = match is_planted(Planted::DropVersionsInRuns) {
                true => Vec::new(),
                false => leaf.versions.clone(),
            };
            leaves.push(Leaf { slice, entries, versions, newest: leaf.newest });
        }
        (!leaves.is_empty()).then_some(MapPiece { vdisk, group, stripes, leaves })
    }

    /// Bytes that the maps take, about.
    pub fn memory(&self) -> usize {
        let listed: usize = self.vdisks.values().map(|found| found.uncounted.len() * 8).sum();
        self.resident() as usize
            + (self.ring.len() + self.held.len()) * 24
            + listed
            + self.piece_places.len() * 256
            + self.handles.memory()
            + self.liveness.memory()
    }

    /// Whether any entry of any vdisk names the stripe, or a plan does.
    pub fn is_named(&self, stripe: StripeId) -> bool {
        self.handles.is_named(stripe)
    }

    /// Stripes that entries name.
    pub fn stripes(&self) -> usize {
        self.handles.len()
    }
}

#[cfg(test)]
mod tests;
