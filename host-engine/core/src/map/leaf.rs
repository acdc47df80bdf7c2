//! The map of one slice in memory, and the leaves of a group.

use super::BLOCKS;
use cleave_format::address::MapEntry;
use cleave_format::ids::{SliceIndex, Version};
use cleave_format::layout::PIECE_SLICES;
use std::cell::Cell;

/// Bytes of memory of a leaf without versions, about.
pub const LEAF_BYTES: usize = BLOCKS * 8 + 96;
/// Bytes of memory of a group without leaves, about.
pub const GROUP_BYTES: usize = 192;

/// A leaf.
pub struct SliceMap {
    pub entries: Box<[MapEntry; BLOCKS]>,
    /// Entries that are not empty.
    pub used: u16,
    /// By block; only those that an unreleased record could still meet.
    pub versions: Vec<(u16, Version)>,
    pub newest: Version,
}

impl SliceMap {
    pub fn new() -> SliceMap {
        SliceMap {
            entries: Box::new([MapEntry::EMPTY; BLOCKS]),
            used: 0,
            versions: Vec::new(),
            newest: Version::default(),
        }
    }

    /// Whether nothing needs it.
    pub fn is_empty(&self) -> bool {
        self.used == 0 && self.versions.is_empty()
    }

    pub fn version(&self, block: u16) -> Option<Version> {
        let found = self.versions.binary_search_by_key(&block, |(block, _)| *block);
        found.ok().map(|index| self.versions[index].1)
    }

    pub fn keep_version(&mut self, block: u16, version: Version) {
        match self.versions.binary_search_by_key(&block, |(block, _)| *block) {
            Ok(index) => self.versions[index].1 = version,
            Err(index) => self.versions.insert(index, (block, version)),
        }
    }

    pub fn forget_version(&mut self, block: u16) {
        if let Ok(index) = self.versions.binary_search_by_key(&block, |(block, _)| *block) {
            self.versions.remove(index);
        }
    }
}

/// The leaves of a piece, in memory.
#[derive(Default)]
pub struct Group {
    /// By slice; `None` for one without entries and versions.
    pub leaves: [Option<SliceMap>; PIECE_SLICES as usize],
    /// Asked for since the hand came by.
    pub hot: Cell<bool>,
}

/// A slice's place in its group.
fn place(slice: SliceIndex) -> usize {
    (slice.0 % PIECE_SLICES) as usize
}

impl Group {
    pub fn leaf(&self, slice: SliceIndex) -> Option<&SliceMap> {
        self.leaves[place(slice)].as_ref()
    }

    pub fn leaf_mut(&mut self, slice: SliceIndex) -> &mut Option<SliceMap> {
        &mut self.leaves[place(slice)]
    }

    /// Its leaves, and the versions that they keep.
    pub fn weight(&self) -> (usize, usize) {
        let leaves = self.leaves.iter().flatten();
        leaves.fold((0, 0), |(count, versions), leaf| (count + 1, versions + leaf.versions.len()))
    }
}
