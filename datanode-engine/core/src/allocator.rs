//! Which slots of the pool's drives are free: a bitmap a drive, resident on the active controller,
//! rebuilt from the catalog.

use cleave_format::control::SlotPlace;
use cleave_format::ids::{DriveId, SlotIndex};
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct DriveSlots {
    /// Bit `slot % 64` of word `slot / 64`: in use.
    used: Vec<u64>,
    slots: u32,
    free: u32,
    /// Slots are given out from here on, round and round, so that a freed one rests for long.
    cursor: u32,
}

/// The slots of all drives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Allocator {
    drives: BTreeMap<DriveId, DriveSlots>,
}

impl Allocator {
    /// Adds a drive, all of whose slots are free.
    pub fn add_drive(&mut self, drive: DriveId, slots: u32) {
        let used = vec![0; slots.div_ceil(64) as usize];
        self.drives.insert(drive, DriveSlots { used, slots, free: slots, cursor: 0 });
    }

    /// Free slots of a drive.
    pub fn free_slots(&self, drive: DriveId) -> u32 {
        self.drives.get(&drive).map_or(0, |drive| drive.free)
    }

    /// All slots, and those that are free.
    pub fn totals(&self) -> (u64, u64) {
        self.drives.values().fold((0, 0), |(slots, free), drive| {
            (slots + u64::from(drive.slots), free + u64::from(drive.free))
        })
    }

    /// Slots of a drive.
    pub fn slots(&self, drive: DriveId) -> u32 {
        self.drives.get(&drive).map_or(0, |drive| drive.slots)
    }

    /// Takes a free slot.
    pub fn take(&mut self, drive: DriveId) -> Option<SlotIndex> {
        let slots = self.drives.get_mut(&drive).filter(|slots| slots.free > 0)?;
        let words = slots.used.len() as u32;
        if is_planted(Planted::ReuseSlotsEarly) || is_planted(Planted::FreeUnderALateWrite) {
            slots.cursor = 0;
        }
        let first = slots.cursor / 64;
        for step in 0..=words {
            let word = (first + step) % words;
            let mut free = !slots.used[word as usize];
            if step == 0 {
                free &= u64::MAX << (slots.cursor % 64);
            }
            if word == words - 1 && !slots.slots.is_multiple_of(64) {
                free &= (1 << (slots.slots % 64)) - 1;
            }
            if free != 0 {
                let slot = word * 64 + free.trailing_zeros();
                slots.used[word as usize] |= 1 << (slot % 64);
                slots.free -= 1;
                slots.cursor = (slot + 1) % slots.slots;
                return Some(SlotIndex(slot));
            }
        }
        unreachable!("a free slot is counted, so it is found")
    }

    /// Whether the drive has such a slot and it belongs to nobody.
    pub fn is_free(&self, place: &SlotPlace) -> bool {
        let slot = place.slot.0;
        let drive = self.drives.get(&place.drive).filter(|drive| slot < drive.slots);
        drive.is_some_and(|drive| drive.used[slot as usize / 64] >> (slot % 64) & 1 == 0)
    }

    /// Marks a slot as used. False when the drive has no such slot, or it was used already.
    pub fn mark(&mut self, drive: DriveId, slot: SlotIndex) -> bool {
        self.change(drive, slot, true)
    }

    /// Gives a slot back. False when the drive has no such slot, or it was free.
    pub fn free(&mut self, place: &SlotPlace) -> bool {
        self.change(place.drive, place.slot, false)
    }

    fn change(&mut self, drive: DriveId, slot: SlotIndex, used: bool) -> bool {
        let Some(slots) = self.drives.get_mut(&drive).filter(|slots| slot.0 < slots.slots) else {
            return false;
        };
        let word = &mut slots.used[slot.0 as usize / 64];
        let bit = 1 << (slot.0 % 64);
        if (*word & bit != 0) == used {
            return false;
        }
        *word ^= bit;
        slots.free = if used { slots.free - 1 } else { slots.free + 1 };
        true
    }

    /// Marks all slots that a bitmap names.
    pub fn mark_all(&mut self, drive: DriveId, words: &[u64]) {
        for (index, word) in words.iter().enumerate() {
            let mut rest = *word;
            while rest != 0 {
                self.mark(drive, SlotIndex(index as u32 * 64 + rest.trailing_zeros()));
                rest &= rest - 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn gives_each_free_slot_once(slots in 1u32..200, steps in proptest::collection::vec(0u32..300, 0..600)) {
            let mut allocator = Allocator::default();
            let drive = DriveId(3);
            allocator.add_drive(drive, slots);
            let mut used = BTreeSet::new();
            for step in steps {
                if step < slots && step % 3 == 0 {
                    let place = SlotPlace { drive, slot: SlotIndex(step), generation: 0 };
                    prop_assert_eq!(allocator.free(&place), used.remove(&step));
                } else if step < slots && step % 3 == 1 {
                    prop_assert_eq!(allocator.mark(drive, SlotIndex(step)), used.insert(step));
                } else {
                    match allocator.take(drive) {
                        Some(slot) => prop_assert!(slot.0 < slots && used.insert(slot.0)),
                        None => prop_assert_eq!(used.len() as u32, slots),
                    }
                }
                prop_assert_eq!(allocator.free_slots(drive), slots - used.len() as u32);
                let place = SlotPlace { drive, slot: SlotIndex(step), generation: 0 };
                let free = step < slots && !used.contains(&step);
                prop_assert_eq!(allocator.is_free(&place), free);
            }
        }
    }
}
