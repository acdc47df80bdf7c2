//! What a run did and how it ended: counts, the latest happenings in words, and the first failure.
//!
//! The judges write here, and the director looks after every event of the world; the first failure ends
//! the run, so that the journal ends where things went wrong. It also keeps the world's number of requests in
//! flight, by which faults are counted that struck while somebody waited.

use crate::kinds::{Kind, Strikes};
use cleave_runtime_sim::World;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Happenings that are kept.
const KEPT_MAX: usize = 200;

/// A run's journal; clones are the same one.
#[derive(Clone)]
pub struct Journal(Rc<Inner>);

struct Inner {
    happenings: RefCell<VecDeque<(Duration, String)>>,
    failure: RefCell<Option<String>>,
    failed: Cell<bool>,
    faults: RefCell<BTreeMap<Kind, Strikes>>,
    reached: RefCell<BTreeMap<&'static str, u64>>,
    operations: Cell<u64>,
    now: Cell<Duration>,
    aloud: bool,
    /// Requests of guests in flight.
    load: Rc<Cell<u64>>,
}

impl Journal {
    /// The journal of a run in this world; `aloud` prints happenings as they come.
    pub fn new(world: &World, aloud: bool) -> Journal {
        Journal(Rc::new(Inner {
            happenings: RefCell::default(),
            failure: RefCell::default(),
            failed: Cell::default(),
            faults: RefCell::default(),
            reached: RefCell::default(),
            operations: Cell::default(),
            now: Cell::default(),
            aloud,
            load: world.load(),
        }))
    }

    /// Takes over the time of the world.
    pub fn at(&self, world: &World) {
        self.0.now.set(world.now());
    }

    /// Notes a happening.
    pub fn note(&self, what: impl Into<String>) {
        let what = what.into();
        if self.0.aloud {
            println!("{:>12.6} {what}", self.0.now.get().as_secs_f64());
        }
        let mut happenings = self.0.happenings.borrow_mut();
        if happenings.len() == KEPT_MAX {
            happenings.pop_front();
        }
        happenings.push_back((self.0.now.get(), what));
    }

    /// Counts a fault of this kind, and notes it.
    pub fn fault(&self, kind: Kind, what: impl Into<String>) {
        self.struck(kind, 1);
        self.note(what);
    }

    /// Counts faults of this kind.
    pub fn struck(&self, kind: Kind, count: u64) {
        let with_requests = if self.0.load.get() > 0 { count } else { 0 };
        let mut faults = self.0.faults.borrow_mut();
        faults.entry(kind).or_default().add(Strikes { all: count, with_requests });
    }

    /// Something is not as promised. The first one counts.
    pub fn fail(&self, what: impl Into<String>) {
        let what = what.into();
        self.note(format!("FAILED: {what}"));
        if !self.0.failed.replace(true) {
            *self.0.failure.borrow_mut() = Some(what);
        }
    }

    /// Whether something failed.
    pub fn failed(&self) -> bool {
        self.0.failed.get()
    }

    /// What failed first.
    pub fn failure(&self) -> Option<String> {
        self.0.failure.borrow().clone()
    }

    /// Counts what the engines did: what was reached, so that a run that tests nothing is seen.
    pub fn reach(&self, what: &'static str, count: u64) {
        *self.0.reached.borrow_mut().entry(what).or_default() += count;
    }

    /// What the engines did.
    pub fn reached(&self) -> BTreeMap<&'static str, u64> {
        self.0.reached.borrow().clone()
    }

    /// A guest's request is in flight from now on.
    pub fn begun(&self) {
        self.0.load.set(self.0.load.get() + 1);
    }

    /// A guest's request was completed.
    pub fn completed(&self) {
        self.0.operations.set(self.0.operations.get() + 1);
        self.given_up(1);
    }

    /// Requests of a guest that died.
    pub fn given_up(&self, count: u64) {
        self.0.load.set(self.0.load.get() - count);
    }

    /// Requests completed.
    pub fn operations(&self) -> u64 {
        self.0.operations.get()
    }

    /// Faults by kind: those that were noted here, and those that the world counted.
    pub fn faults(&self, world: &World) -> BTreeMap<Kind, Strikes> {
        let noted = self.0.faults.borrow();
        let (all, with_requests) = (world.counters(), world.counters_under_load());
        let of = |kind: Kind| match (kind.counted(&all), kind.counted(&with_requests)) {
            (Some(all), Some(with_requests)) => Strikes { all, with_requests },
            _ => noted.get(&kind).copied().unwrap_or_default(),
        };
        Kind::ALL.iter().map(|kind| (*kind, of(*kind))).collect()
    }

    /// The latest happenings, oldest first.
    pub fn happenings(&self) -> Vec<(Duration, String)> {
        self.0.happenings.borrow().iter().cloned().collect()
    }
}
