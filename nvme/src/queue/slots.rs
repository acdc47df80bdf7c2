//! Commands that are outstanding: identifiers, what belongs to them, and until when.
//!
//! An identifier is the slot's index and a generation, so that a completion that comes twice, or
//! after its slot was used again, is recognized (as long as the slot was used less than 64 times
//! since). Slots are listed in the order of their deadlines: all get the same time.

use cleave_runtime::time::Moment;
use std::time::Duration;

/// Bits of an identifier that are the index.
const INDEX_BITS: u32 = 10;
/// Most commands that can be outstanding in a queue. One index is left out, so that no identifier
/// is FFFFh, which the error log uses for none (Base 5.16.1.2).
pub(crate) const SLOTS_MAX: u16 = (1 << INDEX_BITS) - 1;
const NONE: u16 = u16::MAX;

struct Slot<T> {
    value: Option<T>,
    deadline: Option<Moment>,
    generation: u16,
    aborting: bool,
    before: u16,
    after: u16,
}

pub(super) struct Slots<T> {
    slots: Box<[Slot<T>]>,
    free: Vec<u16>,
    oldest: u16,
    newest: u16,
}

/// A command that is out of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Overdue {
    /// It shall be aborted; it was given the same time again.
    Abort(u16),
    /// Aborting it did not help.
    Hopeless,
}

impl<T> Slots<T> {
    pub(super) fn new(count: u16) -> Slots<T> {
        assert!((1..=SLOTS_MAX).contains(&count), "1 to {SLOTS_MAX} commands outstanding");
        let slot = |_| Slot {
            value: None,
            deadline: None,
            generation: 0,
            aborting: false,
            before: NONE,
            after: NONE,
        };
        Slots {
            slots: (0..count).map(slot).collect(),
            free: (0..count).rev().collect(),
            oldest: NONE,
            newest: NONE,
        }
    }

    pub(super) fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    pub(super) fn in_use(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The index that [`insert`](Self::insert) takes next.
    pub(super) fn next_index(&self) -> Option<u16> {
        self.free.last().copied()
    }

    /// Takes a slot; its identifier. Without a deadline it may take for ever.
    pub(super) fn insert(&mut self, value: T, deadline: Option<Moment>) -> u16 {
        let index = self.free.pop().expect("a free slot");
        let slot = &mut self.slots[usize::from(index)];
        slot.value = Some(value);
        slot.deadline = deadline;
        slot.aborting = false;
        if deadline.is_some() {
            self.append(index);
        }
        self.identifier(index)
    }

    fn identifier(&self, index: u16) -> u16 {
        index | self.slots[usize::from(index)].generation << INDEX_BITS
    }

    /// Ends a command: what belongs to it, and whether it was being aborted. `None` for an
    /// identifier that is not outstanding.
    pub(super) fn remove(&mut self, identifier: u16) -> Option<(T, bool)> {
        let index = identifier & SLOTS_MAX;
        let slot = self.slots.get_mut(usize::from(index))?;
        if slot.generation != identifier >> INDEX_BITS {
            return None;
        }
        let value = slot.value.take()?;
        slot.generation = (slot.generation + 1) & (u16::MAX >> INDEX_BITS);
        let aborting = slot.aborting;
        if slot.deadline.is_some() {
            self.unlink(index);
        }
        self.free.push(index);
        Some((value, aborting))
    }

    /// Ends some outstanding command, the oldest first.
    pub(super) fn remove_any(&mut self) -> Option<T> {
        let index = match self.oldest {
            NONE => self.slots.iter().position(|slot| slot.value.is_some())? as u16,
            oldest => oldest,
        };
        self.remove(self.identifier(index)).map(|(value, _)| value)
    }

    /// The oldest command that is out of time.
    pub(super) fn overdue(&mut self, now: Moment, again: Duration) -> Option<Overdue> {
        let index = self.oldest;
        let slot = self.slots.get_mut(usize::from(index))?;
        if slot.deadline.is_none_or(|deadline| now < deadline) {
            return None;
        }
        if slot.aborting {
            return Some(Overdue::Hopeless);
        }
        slot.aborting = true;
        slot.deadline = Some(now + again);
        self.unlink(index);
        self.append(index);
        Some(Overdue::Abort(self.identifier(index)))
    }

    /// When the next command is out of time.
    pub(super) fn next_deadline(&self) -> Option<Moment> {
        self.slots.get(usize::from(self.oldest))?.deadline
    }

    fn append(&mut self, index: u16) {
        let newest = std::mem::replace(&mut self.newest, index);
        let slot = &mut self.slots[usize::from(index)];
        (slot.before, slot.after) = (newest, NONE);
        match self.slots.get_mut(usize::from(newest)) {
            Some(slot) => slot.after = index,
            None => self.oldest = index,
        }
    }

    fn unlink(&mut self, index: u16) {
        let (before, after) =
            (self.slots[usize::from(index)].before, self.slots[usize::from(index)].after);
        match self.slots.get_mut(usize::from(before)) {
            Some(slot) => slot.after = after,
            None => self.oldest = after,
        }
        match self.slots.get_mut(usize::from(after)) {
            Some(slot) => slot.before = before,
            None => self.newest = before,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_completion_counts_once() {
        let mut slots = Slots::new(2);
        let first = slots.insert('a', None);
        let second = slots.insert('b', None);
        assert!(!slots.has_room());
        assert_eq!(slots.remove(first), Some(('a', false)));
        assert_eq!(slots.remove(first), None);
        let third = slots.insert('c', None);
        assert_eq!(third & SLOTS_MAX, first & SLOTS_MAX);
        assert_eq!(slots.remove(first), None);
        assert_eq!(slots.remove(0xffff), None);
        assert_eq!(slots.remove(second), Some(('b', false)));
        assert_eq!(slots.remove_any(), Some('c'));
        assert_eq!(slots.remove(third), None);
    }

    #[test]
    fn out_of_time_is_aborted_once_and_then_hopeless() {
        let mut slots = Slots::new(4);
        let span = Duration::from_nanos(10);
        let first = slots.insert(1, Some(Moment(10)));
        slots.insert(2, Some(Moment(12)));
        assert_eq!(slots.overdue(Moment(9), span), None);
        assert_eq!(slots.overdue(Moment(11), span), Some(Overdue::Abort(first)));
        assert_eq!(slots.overdue(Moment(11), span), None);
        assert_eq!(slots.next_deadline(), Some(Moment(12)));
        assert!(matches!(slots.overdue(Moment(12), span), Some(Overdue::Abort(_))));
        assert_eq!(slots.remove(first), Some((1, true)));
        assert_eq!(slots.overdue(Moment(22), span), Some(Overdue::Hopeless));
    }

    proptest! {
        #[test]
        fn slots_act_as_a_list_by_age(steps in proptest::collection::vec(0u8..4, 0..200)) {
            let mut slots = Slots::new(5);
            let mut model: Vec<(u16, u32)> = Vec::new();
            for (number, step) in (0u32..).zip(steps) {
                if step < 2 && slots.has_room() {
                    let deadline = Moment(u64::from(number));
                    let identifier = slots.insert(number, Some(deadline));
                    prop_assert!(model.iter().all(|(known, _)| *known != identifier));
                    model.push((identifier, number));
                } else if step == 2 && !model.is_empty() {
                    let (identifier, value) = model.remove(number as usize % model.len());
                    prop_assert_eq!(slots.remove(identifier), Some((value, false)));
                } else if step == 3 {
                    let oldest = model.first().map(|(_, value)| *value);
                    prop_assert_eq!(slots.next_deadline().map(|at| at.0 as u32), oldest);
                    prop_assert_eq!(slots.remove_any(), oldest);
                    model = model.split_off(model.len().min(1));
                }
                prop_assert_eq!(slots.in_use(), model.len());
            }
        }
    }
}
