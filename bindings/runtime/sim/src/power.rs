//! A machine's power, shared by all that it feeds: what runs out in the middle of things.
//!
//! Whatever a machine persists counts here, one operation after the other: writes, flushes and discards of
//! its drives, and those of its database files that a simulator counts too. The operation at which the power is
//! cut does not complete, and none after it begins. What is left then of everything unflushed is said
//! by a [`Remains`], sector by sector, so that torn pages are among it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes that a device writes whole or not at all.
pub const SECTOR: usize = 512;

/// A machine's power; clones are the same one.
#[derive(Clone, Debug, Default)]
pub struct Power(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    operations: AtomicU64,
    /// Number of the operation that is hit; 0: none.
    cut: AtomicU64,
    out: AtomicBool,
}

impl Power {
    /// Operations so far, the one that was hit included.
    pub fn operations(&self) -> u64 {
        self.0.operations.load(Ordering::Relaxed)
    }

    /// Cuts the power at the `number`-th operation from now on, from 1.
    pub fn cut_at(&self, number: u64) {
        self.0.cut.store(self.operations() + number, Ordering::Relaxed);
    }

    /// The cut that was ordered does not come any more.
    pub fn spare(&self) {
        self.0.cut.store(0, Ordering::Relaxed);
    }

    /// Cuts the power now, between two operations.
    pub fn cut(&self) {
        self.0.out.store(true, Ordering::Relaxed);
    }

    /// Whether it is cut.
    pub fn is_out(&self) -> bool {
        self.0.out.load(Ordering::Relaxed)
    }

    /// The power is back.
    pub fn restore(&self) {
        self.spare();
        self.0.out.store(false, Ordering::Relaxed);
    }

    /// An operation is about to take effect; false: it does not, for the power is out, or goes out now.
    pub fn operate(&self) -> bool {
        if self.is_out() {
            return false;
        }
        let number = self.0.operations.fetch_add(1, Ordering::Relaxed) + 1;
        if number == self.0.cut.load(Ordering::Relaxed) {
            self.cut();
        }
        !self.is_out()
    }
}

/// What a sector that was not flushed belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsaved {
    /// A write that had completed.
    Completed,
    /// The write that the cut hit: so many of its sectors come before this one, of so many.
    Hit {
        /// Sectors before.
        before: u64,
        /// Sectors in all.
        of: u64,
    },
    /// Another write in flight.
    InFlight,
}

/// What a power cut leaves of what was not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Remains {
    /// Nothing.
    Nothing,
    /// Everything, also what was in flight.
    Everything,
    /// What had completed, and of the write that was hit the first sectors: half of them.
    TornFirst,
    /// Of the write that was hit the last half, and nothing else.
    TornLast,
    /// Each sector or not, by this seed.
    Some(u64),
}

impl Remains {
    /// One of each, with this seed.
    pub fn all(seed: u64) -> [Remains; 5] {
        use Remains::*;
        [Nothing, Everything, TornFirst, TornLast, Some(seed)]
    }

    /// Whether a sector of a write remains. `place` names it: the same one has the same fate.
    pub fn keeps(self, what: Unsaved, place: u64) -> bool {
        match (self, what) {
            (Remains::Nothing, _) => false,
            (Remains::Everything, _) => true,
            (Remains::TornFirst, Unsaved::Completed) => true,
            (Remains::TornFirst, Unsaved::Hit { before, of }) => before < of.div_ceil(2),
            (Remains::TornLast, Unsaved::Hit { before, of }) => before >= of / 2,
            (Remains::TornFirst | Remains::TornLast, _) => false,
            (Remains::Some(seed), _) => {
                // SplitMix64's mixing: neighbouring places have unrelated fates.
                let mut word = seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15);
                word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                (word ^ (word >> 31)) & 1 == 1
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_operation_that_is_hit_and_those_after_it_have_no_effect() {
        let power = Power::default();
        assert!(power.operate() && power.operate());
        power.cut_at(2);
        assert!(power.operate());
        assert!(!power.operate() && !power.operate());
        assert!(power.is_out());
        assert_eq!(power.operations(), 4, "what is not begun is not counted");
        power.restore();
        assert!((0..100).all(|_| power.operate()));
    }

    #[test]
    fn remains_are_what_their_names_say() {
        let hit = |remains: Remains| {
            (0..8).filter(|&before| remains.keeps(Unsaved::Hit { before, of: 8 }, before)).count()
        };
        let [nothing, everything, first, last, some] = Remains::all(7).map(hit);
        assert_eq!((nothing, everything, first, last), (0, 8, 4, 4));
        assert!(some > 0 && some < 8);
        // A single sector is torn to one side or the other.
        let one = |remains: Remains| remains.keeps(Unsaved::Hit { before: 0, of: 1 }, 0);
        assert!(one(Remains::TornFirst) && one(Remains::TornLast));
        assert!(Remains::TornFirst.keeps(Unsaved::Completed, 0));
        assert!(!Remains::TornLast.keeps(Unsaved::Completed, 0));
    }
}
