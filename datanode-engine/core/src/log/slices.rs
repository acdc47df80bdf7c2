//! Where the records of each slice and epoch are: the log's side of C1.
//!
//! A slice is known while at least one of its records is held. Sequences only grow; those that
//! are missing between two held ones were released, or were mirrored before the slice was known here.

use cleave_format::control::Release;
use cleave_format::ids::{Epoch, Sequence, SliceIndex, VdiskId, Version};
use cleave_format::record::RecordIdentity;
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::{HashMap, VecDeque};

type Key = (VdiskId, SliceIndex, Epoch);

/// Sequences that a host gives out.
const SEQUENCES: std::ops::Range<u64> = 1..u64::MAX;

/// Position of a record that was released while an older one is held.
const RELEASED: u64 = u64::MAX;

struct Slice {
    /// Sequence after the last one appended.
    next: u64,
    /// Sequences and positions, in order; the first one is held.
    records: VecDeque<(u64, u64)>,
}

/// All slices with held records. Looked up only, but for deletes, whose result is sorted.
#[derive(Default)]
pub struct Slices(HashMap<Key, Slice>);

/// What a record is to the slice that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It may be appended.
    Next,
    /// It is held at this position.
    Held(u64),
    /// It was held.
    Released,
    /// One before it is missing.
    Gap,
}

fn key(identity: &RecordIdentity) -> Key {
    (identity.vdisk, identity.slice, identity.version.epoch)
}

impl Slices {
    /// Where a record belongs. `begins`: the host knows all earlier ones to be mirrored (C1).
    pub fn place(&self, identity: &RecordIdentity, begins: bool) -> Place {
        let sequence = identity.version.sequence.0;
        if !SEQUENCES.contains(&sequence) {
            return Place::Gap;
        }
        let begins = begins || is_planted(Planted::TakeGaps);
        let Some(slice) = self.0.get(&key(identity)) else {
            return if begins { Place::Next } else { Place::Gap };
        };
        if sequence >= slice.next {
            // A copied log may know less of a slice's end than the one that it was copied from
            // (its last records were released); then, too, the host's word closes the gap.
            return if sequence == slice.next || begins { Place::Next } else { Place::Gap };
        }
        match slice.records.binary_search_by_key(&sequence, |record| record.0) {
            Ok(index) if slice.records[index].1 != RELEASED => Place::Held(slice.records[index].1),
            _ => Place::Released,
        }
    }

    /// Whether a record may come next in a log that is copied or forwarded.
    pub fn may_follow(&self, identity: &RecordIdentity) -> bool {
        let sequence = identity.version.sequence.0;
        SEQUENCES.contains(&sequence)
            && self.0.get(&key(identity)).is_none_or(|slice| sequence >= slice.next)
    }

    /// Adds a record.
    pub fn append(&mut self, identity: &RecordIdentity, position: u64) {
        let sequence = identity.version.sequence.0;
        let empty = || Slice { next: 0, records: VecDeque::new() };
        let slice = self.0.entry(key(identity)).or_insert_with(empty);
        assert!(sequence >= slice.next, "sequences of a slice grow");
        slice.next = sequence + 1;
        slice.records.push_back((sequence, position));
    }

    /// Which record of a vdisk is at a position. Looks at all of them.
    pub fn find(&self, vdisk: VdiskId, position: u64) -> Option<(SliceIndex, Version)> {
        let mut of_it = self.0.iter().filter(|(key, _)| key.0 == vdisk);
        of_it.find_map(|((_, slice, epoch), held)| {
            let (sequence, _) = held.records.iter().find(|record| record.1 == position)?;
            Some((*slice, Version { epoch: *epoch, sequence: Sequence(*sequence) }))
        })
    }

    /// Releases a range of a slice: adds the positions of its held records to `released`.
    pub fn release(&mut self, vdisk: VdiskId, range: &Release, released: &mut Vec<u64>) {
        let key = (vdisk, range.slice, range.epoch);
        let Some(slice) = self.0.get_mut(&key) else { return };
        let start = slice.records.partition_point(|record| record.0 < range.first.0);
        for record in slice.records.range_mut(start..) {
            if record.0 > range.last.0 + u64::from(is_planted(Planted::ReleaseTooMuch)) {
                break;
            }
            if record.1 != RELEASED {
                released.push(std::mem::replace(&mut record.1, RELEASED));
            }
        }
        while slice.records.front().is_some_and(|record| record.1 == RELEASED) {
            slice.records.pop_front();
        }
        if slice.records.is_empty() {
            self.0.remove(&key);
        }
    }

    /// Forgets the records of positions from this one on, as if they had never been appended.
    pub fn truncate(&mut self, from: u64) {
        self.0.retain(|_, slice| {
            while let Some((sequence, position)) = slice.records.back().copied()
                && position != RELEASED
                && position >= from
            {
                slice.records.pop_back();
                slice.next = sequence;
            }
            slice.records.iter().any(|(_, position)| *position != RELEASED)
        });
    }

    /// Releases everything of a vdisk, in the order of positions.
    pub fn release_all(&mut self, vdisk: VdiskId, released: &mut Vec<u64>) {
        self.0.retain(|key, slice| {
            if key.0 != vdisk {
                return true;
            }
            let held = slice.records.iter().filter(|record| record.1 != RELEASED);
            released.extend(held.map(|record| record.1));
            false
        });
        released.sort_unstable();
    }
}
