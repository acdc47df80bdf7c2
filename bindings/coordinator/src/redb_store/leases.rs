//! Leases as they are resident: what belongs to each, and when it runs out.
//!
//! Time is an input. A lease that was granted, renewed or read from the file has no moment at which it runs out until
//! the next [`arm`](Leases::arm), so nothing here needs a clock at a start, and after a start every lease has its full
//! duration. The same is given to all of them when the store did not run for a while: their holders may have
//! renewed them in vain.

use crate::contract::{Key, LeaseId};
use cleave_runtime::time::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Between two looks at the clock, while there are leases.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Two looks that are further apart than this say that the store did not run.
const STOOD_STILL: Duration = Duration::from_millis(1500);

/// All leases of a store.
#[derive(Debug, Default)]
pub struct Leases {
    all: BTreeMap<LeaseId, Held>,
    /// The lease of each key that has one.
    of: BTreeMap<Key, LeaseId>,
    /// When which runs out.
    ends: BTreeSet<(Moment, LeaseId)>,
    /// Those that are not in `ends` yet.
    unarmed: BTreeSet<LeaseId>,
    /// The last look at the clock.
    looked: Option<Moment>,
}

#[derive(Debug)]
struct Held {
    duration: Duration,
    keys: BTreeSet<Key>,
    end: Option<Moment>,
}

impl Leases {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether it is there.
    pub fn contains(&self, lease: LeaseId) -> bool {
        self.all.contains_key(&lease)
    }

    /// Its keys, in order.
    pub fn keys(&self, lease: LeaseId) -> impl Iterator<Item = &Key> {
        self.all.get(&lease).into_iter().flat_map(|held| &held.keys)
    }

    /// The lease of a key.
    pub fn of(&self, key: &str) -> Option<LeaseId> {
        self.of.get(key).copied()
    }

    /// Every lease with its duration and keys, in order.
    pub fn list(&self) -> impl Iterator<Item = (LeaseId, Duration, &BTreeSet<Key>)> {
        self.all.iter().map(|(lease, held)| (*lease, held.duration, &held.keys))
    }

    /// Takes in one that is not there yet.
    pub fn grant(&mut self, lease: LeaseId, duration: Duration) {
        let before = self.all.insert(lease, Held { duration, keys: BTreeSet::new(), end: None });
        assert!(before.is_none(), "lease {} is given out twice", lease.0);
        self.unarmed.insert(lease);
    }

    /// Lets it begin anew; false when it is not there.
    pub fn renew(&mut self, lease: LeaseId) -> bool {
        let Some(held) = self.all.get_mut(&lease) else { return false };
        if let Some(end) = held.end.take() {
            self.ends.remove(&(end, lease));
        }
        self.unarmed.insert(lease);
        true
    }

    /// Forgets it and whose its keys were.
    pub fn remove(&mut self, lease: LeaseId) {
        let Some(held) = self.all.remove(&lease) else { return };
        for key in &held.keys {
            self.of.remove(key);
        }
        self.unarmed.remove(&lease);
        if let Some(end) = held.end {
            self.ends.remove(&(end, lease));
        }
    }

    /// Gives a key to a lease that is there, or to none.
    pub fn attach(&mut self, key: &str, lease: Option<LeaseId>) {
        if let Some(before) = self.of.remove(key) {
            let held = self.all.get_mut(&before).expect("a key's lease is there");
            held.keys.remove(key);
        }
        if let Some(lease) = lease {
            let held = self.all.get_mut(&lease).expect("the caller has looked");
            held.keys.insert(key.to_owned());
            self.of.insert(key.to_owned(), lease);
        }
    }

    /// Looks at the clock: what began anew runs out its duration from now, everything does after a stand-still.
    pub fn arm(&mut self, now: Moment) {
        let stood_still = self.looked.is_some_and(|looked| now.since(looked) > STOOD_STILL);
        self.looked = Some(now);
        if self.all.is_empty() {
            // Nobody looks while there are none.
            self.looked = None;
            return;
        }
        if stood_still {
            tracing::warn!("the coordinator store stood still; all leases begin anew");
            self.ends.clear();
            self.unarmed.extend(self.all.keys().copied());
        }
        for lease in std::mem::take(&mut self.unarmed) {
            let held = self.all.get_mut(&lease).expect("only leases that are there are unarmed");
            let end = now + held.duration;
            held.end = Some(end);
            self.ends.insert((end, lease));
        }
    }

    /// One that has run out.
    pub fn due(&self, now: Moment) -> Option<LeaseId> {
        self.ends.first().filter(|(end, _)| *end <= now).map(|(_, lease)| *lease)
    }

    /// Lets it run out later, because its end cannot be recorded.
    pub fn postpone(&mut self, lease: LeaseId, end: Moment) {
        let Some(held) = self.all.get_mut(&lease) else { return };
        if let Some(before) = held.end.replace(end) {
            self.ends.remove(&(before, lease));
        }
        self.unarmed.remove(&lease);
        self.ends.insert((end, lease));
    }

    /// When to look at the clock next; `None` while there is no lease.
    pub fn next_look(&self) -> Option<Moment> {
        let looked = match self.looked {
            Some(looked) if self.unarmed.is_empty() => looked,
            _ => return (!self.all.is_empty()).then_some(Moment(0)),
        };
        let first = self.ends.first().map(|(end, _)| *end)?;
        Some(first.min(looked + LOOK_EVERY))
    }
}
