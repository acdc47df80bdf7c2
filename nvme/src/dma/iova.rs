//! Which device addresses are given to which memory, under an IOMMU.
//!
//! Addresses are taken upwards from the ranges that the IOMMU allows, aligned to hugepages for
//! what is that long, so that it can use large entries; given back, they are used again.

use std::collections::BTreeMap;

/// Aligns what is at least this long.
const HUGE: u64 = 2 << 20;
/// The first megabytes are left alone: legacy ranges, and zero as an address is a likely mistake.
const LOWEST: u64 = 16 << 20;

/// Free ranges: length by first address, never adjacent.
#[derive(Debug)]
pub(super) struct IovaSpace(BTreeMap<u64, u64>);

impl IovaSpace {
    /// From inclusive ranges.
    pub(super) fn new(ranges: &[(u64, u64)]) -> IovaSpace {
        let clip = |(first, last): &(u64, u64)| {
            let first = LOWEST.max(*first);
            (first < *last).then(|| (first, last - first))
        };
        IovaSpace(ranges.iter().filter_map(clip).collect())
    }

    /// Takes `length` addresses.
    pub(super) fn take(&mut self, length: u64) -> Option<u64> {
        let unit = if length >= HUGE { HUGE } else { 4096 };
        let (first, room, place) = self.0.iter().find_map(|(&first, &room)| {
            let place = first.checked_next_multiple_of(unit)?;
            let end = place.checked_add(length)?;
            (end <= first + room).then_some((first, room, place))
        })?;
        self.0.remove(&first);
        if place > first {
            self.0.insert(first, place - first);
        }
        if place + length < first + room {
            self.0.insert(place + length, first + room - place - length);
        }
        Some(place)
    }

    /// Gives addresses back.
    pub(super) fn give_back(&mut self, first: u64, length: u64) {
        let (mut first, mut length) = (first, length);
        if let Some((&before, &room)) = self.0.range(..first).next_back()
            && before + room == first
        {
            self.0.remove(&before);
            (first, length) = (before, room + length);
        }
        if let Some(room) = self.0.remove(&(first + length)) {
            length += room;
        }
        self.0.insert(first, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_avoid_what_is_reserved_and_come_back() {
        let mut space = IovaSpace::new(&[(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)]);
        let small = space.take(4096).unwrap();
        assert_eq!(small, LOWEST);
        let huge = space.take(HUGE).unwrap();
        assert_eq!(huge % HUGE, 0);
        let over = space.take(0xfee0_0000).unwrap();
        assert!(over >= 0xfef0_0000);
        space.give_back(small, 4096);
        assert_eq!(space.take(4096), Some(small));
        assert_eq!(space.take(1 << 39), None);
        space.give_back(small, 4096);
        space.give_back(huge, HUGE);
        space.give_back(over, 0xfee0_0000);
        assert_eq!(space.0.len(), 2);
    }
}
