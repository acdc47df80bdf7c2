//! Sequences: who a record is (C1).
//!
//! Invariant: within a slice and epoch, sequences are contiguous from 1, and become mirrored in
//! order. The numbers live as long as the vdisk is open; a crash loses them, and the next opening has a new epoch.

use crate::hash::Map;
use cleave_format::ids::{Sequence, SliceIndex, VdiskId};

#[derive(Clone, Copy, Default)]
struct SliceSequence {
    taken: u64,
    mirrored: u64,
}

/// The sequences of a core's slices.
#[derive(Default)]
pub struct Sequences {
    slices: Map<(VdiskId, SliceIndex), SliceSequence>,
}

impl Sequences {
    /// The next sequence of the slice.
    pub fn take(&mut self, vdisk: VdiskId, slice: SliceIndex) -> Sequence {
        let state = self.slices.entry((vdisk, slice)).or_default();
        state.taken += 1;
        Sequence(state.taken)
    }

    /// Whether every earlier record of the slice is known to be mirrored.
    pub fn begins(&self, vdisk: VdiskId, slice: SliceIndex, sequence: Sequence) -> bool {
        let mirrored = self.slices.get(&(vdisk, slice)).map_or(0, |state| state.mirrored);
        sequence.0 == mirrored + 1
    }

    /// The record became mirrored.
    pub fn mirrored(&mut self, vdisk: VdiskId, slice: SliceIndex, sequence: Sequence) {
        let state = self.slices.entry((vdisk, slice)).or_default();
        assert!(sequence.0 <= state.taken, "only records that were taken become mirrored");
        state.mirrored = state.mirrored.max(sequence.0);
    }

    /// The log is another one: whatever was numbered so far is not in it and never will be, and what follows
    /// begins its slice anew (C7).
    pub fn begin_anew(&mut self) {
        self.slices.values_mut().for_each(|state| state.mirrored = state.taken);
    }

    /// Forgets a vdisk.
    pub fn forget(&mut self, vdisk: VdiskId) {
        self.slices.retain(|(owner, _), _| *owner != vdisk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_begins_its_slice_when_all_before_it_is_mirrored() {
        let (disk, slice) = (VdiskId(1), SliceIndex(9));
        let mut sequences = Sequences::default();
        let first = sequences.take(disk, slice);
        let second = sequences.take(disk, slice);
        assert_eq!((first, second), (Sequence(1), Sequence(2)));
        assert_eq!(sequences.take(disk, SliceIndex(8)), Sequence(1));
        assert!(sequences.begins(disk, slice, first));
        assert!(!sequences.begins(disk, slice, second));
        sequences.mirrored(disk, slice, first);
        assert!(sequences.begins(disk, slice, second));
        let lost = sequences.take(disk, slice);
        assert!(!sequences.begins(disk, slice, Sequence(lost.0 + 1)));
        sequences.begin_anew();
        let next = sequences.take(disk, slice);
        assert!(sequences.begins(disk, slice, next), "whatever became of those before");
    }
}
