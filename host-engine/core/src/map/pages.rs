//! Which groups of the map are in memory.
//!
//! A group lies in memory, or only in its current piece, or has neither and reads as zeros. Nothing but
//! the piece is read to bring it back, so only a *clean* group leaves memory: one that is what its current
//! piece says. It changed neither since that piece's run began, nor does a run in progress reflect a change of it; a
//! run's piece becomes current only with the commit that ends the run (C21). A group that a plan holds stays as well:
//! commits are applied to groups in memory, so that each change meets the versions that it must be compared with (C2).
//!
//! What names a stripe is counted over all groups, wherever they are: a group is *counted* when it first
//! comes, or in passing by a task that goes over all pieces once; its entries stay counted when it leaves.
//! Until every group of a vdisk is counted, nothing says that a stripe is named by none, and the vdisk leaves no
//! stripe (C20).

use super::leaf::{GROUP_BYTES, Group, LEAF_BYTES, SliceMap};
use super::{Map, group_of};
use cleave_format::FormatError;
use cleave_format::address::{Address, Handle, MapEntry};
use cleave_format::ids::{SliceIndex, VdiskId, Version};
use cleave_format::layout::PIECE_SLICES;
use cleave_format::map_piece::MapPiece;
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::BTreeSet;

/// Groups that are looked at for eviction in one turn.
const LOOKS_A_TURN: usize = 256;

/// A vdisk whose pieces are known.
#[derive(Default)]
pub struct Pieces {
    /// Tells its openings apart.
    pub generation: u64,
    /// Groups whose entries are not counted yet.
    pub uncounted: BTreeSet<u32>,
}

/// Groups that stay in memory until they are given back.
#[derive(Debug, Default)]
pub struct Held {
    vdisk: VdiskId,
    generation: u64,
    groups: Vec<u32>,
}

impl Map {
    /// A vdisk is being opened.
    pub fn begin(&mut self, vdisk: VdiskId) {
        self.generations += 1;
        let generation = self.generations;
        let begun = Pieces { generation, uncounted: BTreeSet::new() };
        self.vdisks.insert(vdisk, begun);
    }

    /// Which opening of the vdisk this is; 0 for one that is not open.
    pub fn generation(&self, vdisk: VdiskId) -> u64 {
        self.vdisks.get(&vdisk).map_or(0, |found| found.generation)
    }

    /// The catalog lists the piece; nothing of it is known yet.
    pub fn list_piece(&mut self, vdisk: VdiskId, group: u32, address: Address) {
        self.set_piece(vdisk, group, Some(address));
        self.vdisks.entry(vdisk).or_default().uncounted.insert(group);
    }

    /// Whether the group must be brought into memory before it can be looked at.
    pub fn is_out(&self, vdisk: VdiskId, group: u32) -> bool {
        !self.groups.contains_key(&(vdisk, group)) && self.piece_address(vdisk, group).is_some()
    }

    /// Where the group's current piece lies.
    pub fn piece_address(&self, vdisk: VdiskId, group: u32) -> Option<Address> {
        self.liveness.piece(vdisk, group)
    }

    /// Whether every entry of the vdisk is counted.
    pub fn is_counted(&self, vdisk: VdiskId) -> bool {
        self.vdisks.get(&vdisk).is_none_or(|found| found.uncounted.is_empty())
    }

    /// Groups that are not counted, from one on.
    pub fn uncounted(&self, vdisk: VdiskId, from: u32) -> impl Iterator<Item = u32> {
        let found = self.vdisks.get(&vdisk);
        found.into_iter().flat_map(move |found| found.uncounted.range(from..).copied())
    }

    /// Whether the group is counted.
    pub fn counts(&self, vdisk: VdiskId, group: u32) -> bool {
        self.vdisks.get(&vdisk).is_none_or(|found| !found.uncounted.contains(&group))
    }

    /// Takes what the group's current piece says: counts it, if it is not yet, and puts it into memory with
    /// `keep`. `oldest` gives a slice's oldest unreleased record: versions below are left out, and none with `None`.
    pub fn install(
        &mut self,
        piece: &MapPiece,
        keep: bool,
        mut oldest: Option<&mut dyn FnMut(SliceIndex) -> Option<Version>>,
    ) -> Result<(), FormatError> {
        let (vdisk, number) = (piece.vdisk, piece.group);
        assert!(self.is_out(vdisk, number), "a group is brought once, while it is away");
        let mut counts = vec![0u64; piece.stripes.len()];
        let named = piece.leaves.iter().flat_map(|leaf| leaf.entries.iter());
        for handle in named.filter_map(|entry| entry.handle()) {
            counts[handle.0 as usize - 1] += 1;
        }
        let first = !self.counts(vdisk, number);
        let mut handles: Vec<Option<Handle>> = Vec::with_capacity(counts.len());
        for (stripe, count) in piece.stripes.iter().zip(&counts) {
            if *count == 0 {
                handles.push(None);
            } else if first {
                let (handle, only) = self.handles.reference_often(vdisk, *stripe, *count);
                if only {
                    self.liveness.named(vdisk, *stripe);
                }
                handles.push(Some(handle));
            } else {
                // It was counted from this very piece, or written from what was counted.
                let known = self.handles.find(vdisk, *stripe);
                handles.push(Some(known.ok_or(FormatError::Identity("map piece"))?));
            }
        }
        if first {
            if let Some(found) = self.vdisks.get_mut(&vdisk) {
                found.uncounted.remove(&number);
            }
            *self.mapped.entry(vdisk).or_default() += counts.iter().sum::<u64>();
        }
        if !keep {
            return Ok(());
        }
        let mut group = Group::default();
        let mut emptied = false;
        for stored in &piece.leaves {
            let mut leaf = SliceMap::new();
            leaf.newest = stored.newest;
            leaf.versions.clone_from(&stored.versions);
            if let Some(oldest) = &mut oldest {
                let oldest = oldest(stored.slice);
                leaf.versions.retain(|(_, version)| oldest.is_some_and(|old| *version >= old));
            }
            for (entry, found) in leaf.entries.iter_mut().zip(stored.entries.iter()) {
                let Some(Handle(index)) = found.handle() else { continue };
                let handle = handles[index as usize - 1].expect("it was counted above");
                let block = found.block_in_frame();
                *entry = MapEntry::new(handle, found.offset(), found.length(), block);
                leaf.used += 1;
            }
            match leaf.is_empty() {
                true => emptied = true,
                false => *group.leaf_mut(stored.slice) = Some(leaf),
            }
        }
        self.put(vdisk, number, group);
        if emptied {
            // Nothing needs the tombstones any more: the next run leaves them out.
            self.mark_dirty(vdisk, number);
        }
        Ok(())
    }

    fn put(&mut self, vdisk: VdiskId, number: u32, group: Group) {
        let (leaves, versions) = group.weight();
        self.leaves += leaves;
        self.versions_kept += versions;
        self.groups.insert((vdisk, number), group);
        self.ring.push_back((vdisk, number));
        self.fruitless = 0;
    }

    /// Gives a slice's group, which is about to change, a place in memory: it is there, or never was.
    pub(super) fn require_group(&mut self, vdisk: VdiskId, slice: SliceIndex) {
        let number = group_of(slice);
        if !self.groups.contains_key(&(vdisk, number)) {
            let out = self.is_out(vdisk, number);
            assert!(!out || is_planted(Planted::EvictChanged), "what changes is in memory");
            self.put(vdisk, number, Group::default());
        }
    }

    /// Keeps groups, there or to come, in memory until they are given back; those of a vdisk that is open.
    pub fn hold(&mut self, vdisk: VdiskId, groups: Vec<u32>) -> Held {
        let generation = self.generation(vdisk);
        if generation > 0 {
            for group in &groups {
                *self.held.entry((vdisk, *group)).or_default() += 1;
            }
        }
        Held { vdisk, generation, groups }
    }

    /// Whether what is held is of this opening of its vdisk.
    pub fn holds(&self, held: &Held) -> bool {
        held.generation > 0 && held.generation == self.generation(held.vdisk)
    }

    /// Gives groups back.
    pub fn let_go(&mut self, held: Held) {
        if !self.holds(&held) {
            return;
        }
        for group in held.groups {
            let key = (held.vdisk, group);
            let count = self.held.get_mut(&key).expect("what is held is given back once");
            *count -= 1;
            if *count == 0 {
                self.held.remove(&key);
            }
        }
        self.fruitless = 0;
    }

    /// Whether somebody holds the group.
    pub fn is_held(&self, vdisk: VdiskId, group: u32) -> bool {
        self.held.contains_key(&(vdisk, group))
    }

    /// Whether the group is what its current piece says.
    fn is_clean(&self, vdisk: VdiskId, number: u32, group: &Group) -> bool {
        if is_planted(Planted::EvictChanged) {
            return true;
        }
        let dirty = self.dirty.get(&vdisk).is_some_and(|dirty| dirty.contains(&number));
        let in_run = self.snapshots.get(&vdisk).is_some_and(|snapshot| snapshot.has(number));
        let empty = group.leaves.iter().all(Option::is_none);
        !dirty && !in_run && (empty || self.piece_address(vdisk, number).is_some())
    }

    /// Lets clean groups go that were not asked for since the hand came by, until what is in memory takes at most
    /// `budget` bytes. Returns how many went.
    pub fn evict(&mut self, budget: u64) -> u64 {
        let mut evicted = 0;
        for _ in 0..LOOKS_A_TURN {
            if self.resident() <= budget || self.fruitless >= self.ring.len() {
                break;
            }
            let Some(key) = self.ring.pop_front() else { break };
            let Some(group) = self.groups.get(&key) else { continue };
            if group.hot.take() {
                self.ring.push_back(key);
                self.fruitless = 0;
            } else if self.held.contains_key(&key) || !self.is_clean(key.0, key.1, group) {
                self.ring.push_back(key);
                self.fruitless += 1;
            } else {
                let (leaves, versions) = group.weight();
                self.leaves -= leaves;
                self.versions_kept -= versions;
                self.groups.remove(&key);
                self.fruitless = 0;
                evicted += 1;
            }
        }
        evicted
    }

    /// Leaves in memory.
    pub fn leaves_resident(&self) -> usize {
        self.leaves
    }

    /// Bytes of groups in memory, about.
    pub fn resident(&self) -> u64 {
        let groups = self.groups.len() * GROUP_BYTES + self.leaves * LEAF_BYTES;
        (groups + self.versions_kept * 24) as u64
    }
}

/// Changed groups from which on a run is due, so that changed ones leave room for others in a budget.
pub fn changed_max(budget: u64) -> usize {
    let group = LEAF_BYTES * PIECE_SLICES as usize + GROUP_BYTES;
    (budget as usize / 2 / group).max(8)
}

#[cfg(test)]
mod tests;
