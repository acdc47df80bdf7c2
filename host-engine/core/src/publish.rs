//! The order in which writes are told to be done (C23).
//!
//! A write is published when all its records are mirrored and every overlapping write that was
//! taken before it is published. Reads that met its mirrored content before that wait in it.

use crate::buffer::{RecordKey, WriteKey};
use crate::hash::Map;
use crate::request::GuestError;
use cleave_format::ids::{BlockIndex, VdiskId};
use cleave_runtime::Token;
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::BTreeMap;

/// Names a guest's read.
pub type ReadKey = u64;

/// A guest's write, until it is published.
#[derive(Debug)]
pub struct Write {
    /// The guest's name for it.
    pub token: Token,
    /// Whose.
    pub vdisk: VdiskId,
    /// Its records.
    pub records: Vec<RecordKey>,
    /// Reads that wait for it, each with the block.
    pub readers: Vec<(ReadKey, BlockIndex)>,
    /// The first thing that went wrong.
    pub failed: Option<GuestError>,
    /// Parts that are not mirrored.
    parts: u32,
    /// Overlapping writes before it that are not published.
    blockers: u32,
    /// Overlapping writes after it.
    dependents: Vec<WriteKey>,
}

/// All unpublished writes of a core.
#[derive(Default)]
pub struct Writes {
    writes: Map<WriteKey, Write>,
    ranges: BTreeMap<VdiskId, Vec<(WriteKey, u64, u64)>>,
    next: WriteKey,
}

impl Writes {
    /// Takes a write that touches the blocks `first..=last`; it has no part yet, and one more must be
    /// ended than is added, when all are.
    pub fn begin(&mut self, token: Token, vdisk: VdiskId, first: u64, last: u64) -> WriteKey {
        self.next += 1;
        let key = self.next;
        let ranges = self.ranges.entry(vdisk).or_default();
        let mut blockers = 0;
        for (earlier, from, to) in ranges.iter() {
            if *from <= last && first <= *to && !is_planted(Planted::PublishOutOfOrder) {
                let earlier = self.writes.get_mut(earlier).expect("a range belongs to a write");
                earlier.dependents.push(key);
                blockers += 1;
            }
        }
        ranges.push((key, first, last));
        let write = Write {
            token,
            vdisk,
            records: Vec::new(),
            readers: Vec::new(),
            failed: None,
            parts: 1,
            blockers,
            dependents: Vec::new(),
        };
        self.writes.insert(key, write);
        key
    }

    /// A write that is not published.
    pub fn get_mut(&mut self, key: WriteKey) -> Option<&mut Write> {
        self.writes.get_mut(&key)
    }

    /// The write has one more part.
    pub fn add_part(&mut self, key: WriteKey) {
        self.writes.get_mut(&key).expect("parts are added before the end").parts += 1;
    }

    /// A part of the write is mirrored, or failed. Appends what is published by that, in order.
    pub fn end_part(&mut self, key: WriteKey, published: &mut Vec<Write>) {
        let Some(write) = self.writes.get_mut(&key) else { return };
        write.parts -= 1;
        if write.parts == 0 && write.blockers == 0 {
            self.publish(key, published);
        }
    }

    fn publish(&mut self, key: WriteKey, published: &mut Vec<Write>) {
        let mut ready = vec![key];
        while let Some(key) = ready.pop() {
            let write = self.writes.remove(&key).expect("a write is published once");
            let ranges = self.ranges.get_mut(&write.vdisk).expect("its range is there");
            let place = ranges.iter().position(|(other, ..)| *other == key);
            ranges.swap_remove(place.expect("its range is there"));
            // The last one pushed is taken first: reversed, the order taken is kept.
            for dependent in write.dependents.iter().rev() {
                let Some(later) = self.writes.get_mut(dependent) else { continue };
                later.blockers -= 1;
                if later.blockers == 0 && later.parts == 0 {
                    ready.push(*dependent);
                }
            }
            published.push(write);
        }
    }

    /// Takes out all writes of a vdisk that is not served any more, in the order taken.
    pub fn abandon(&mut self, vdisk: VdiskId) -> Vec<Write> {
        let mut keys: Vec<WriteKey> =
            self.ranges.remove(&vdisk).unwrap_or_default().iter().map(|(key, ..)| *key).collect();
        keys.sort_unstable();
        keys.iter().filter_map(|key| self.writes.remove(key)).collect()
    }

    /// Unpublished writes of a vdisk.
    pub fn of(&self, vdisk: VdiskId) -> usize {
        self.ranges.get(&vdisk).map_or(0, Vec::len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DISK: VdiskId = VdiskId(1);

    proptest! {
        // C23: overlapping writes are published in the order taken, others when they are mirrored.
        #[test]
        fn overlapping_writes_keep_their_order(
            ranges in proptest::collection::vec((0u64..30, 0u64..6), 1..30),
            order in proptest::collection::vec(any::<u32>(), 30),
        ) {
            let mut writes = Writes::default();
            let keys: Vec<WriteKey> = ranges
                .iter()
                .enumerate()
                .map(|(token, (first, more))| {
                    writes.begin(token as u64, DISK, *first, first + more)
                })
                .collect();
            let mut left: Vec<usize> = (0..keys.len()).collect();
            let (mut told, mut ended) = (Vec::new(), Vec::new());
            for pick in order {
                if left.is_empty() {
                    break;
                }
                let index = left.remove(pick as usize % left.len());
                let mut published = Vec::new();
                writes.end_part(keys[index], &mut published);
                ended.push(index);
                told.extend(published.iter().map(|write| write.token as usize));
                for index in &ended {
                    let (from, to) = (ranges[*index].0, ranges[*index].0 + ranges[*index].1);
                    let blocked = (0..*index).any(|earlier| {
                        let (first, more) = ranges[earlier];
                        first <= to && from <= first + more && !told.contains(&earlier)
                    });
                    prop_assert_eq!(told.contains(index), !blocked);
                }
            }
            for (place, index) in told.iter().enumerate() {
                for earlier in &told[place + 1..] {
                    let overlap = ranges[*earlier].0 <= ranges[*index].0 + ranges[*index].1
                        && ranges[*index].0 <= ranges[*earlier].0 + ranges[*earlier].1;
                    prop_assert!(!overlap || earlier > index);
                }
            }
        }
    }

    #[test]
    fn a_write_waits_for_all_its_parts() {
        let mut writes = Writes::default();
        let key = writes.begin(7, DISK, 0, 600);
        writes.add_part(key);
        let mut published = Vec::new();
        writes.end_part(key, &mut published);
        assert!(published.is_empty());
        writes.end_part(key, &mut published);
        assert_eq!(published.len(), 1);
        assert_eq!(writes.of(DISK), 0);
    }
}
