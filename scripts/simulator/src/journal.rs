//! What a run did and how it ended: counts, the latest happenings in words, and the first failure.
//!
//! The judges write here, and the director looks after every event of the world; the first failure ends
//! the run, so that the journal ends where things went wrong.

use cleave_runtime_sim::World;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Happenings that are kept.
const KEPT_MAX: usize = 200;

/// A run's journal; clones are the same one.
#[derive(Clone, Default)]
pub struct Journal(Rc<Inner>);

#[derive(Default)]
struct Inner {
    happenings: RefCell<VecDeque<(Duration, String)>>,
    failure: RefCell<Option<String>>,
    failed: Cell<bool>,
    faults: RefCell<BTreeMap<&'static str, u64>>,
    reached: RefCell<BTreeMap<&'static str, u64>>,
    operations: Cell<u64>,
    now: Cell<Duration>,
    aloud: Cell<bool>,
}

impl Journal {
    /// Prints happenings as they come.
    pub fn speak(&self) {
        self.0.aloud.set(true);
    }

    /// Takes over the time of the world.
    pub fn at(&self, world: &World) {
        self.0.now.set(world.now());
    }

    /// Notes a happening.
    pub fn note(&self, what: impl Into<String>) {
        let what = what.into();
        if self.0.aloud.get() {
            println!("{:>12.6} {what}", self.0.now.get().as_secs_f64());
        }
        let mut happenings = self.0.happenings.borrow_mut();
        if happenings.len() == KEPT_MAX {
            happenings.pop_front();
        }
        happenings.push_back((self.0.now.get(), what));
    }

    /// Counts a fault of this kind, and notes it.
    pub fn fault(&self, kind: &'static str, what: impl Into<String>) {
        *self.0.faults.borrow_mut().entry(kind).or_default() += 1;
        self.note(what);
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

    /// A guest's request was completed.
    pub fn operation(&self) {
        self.0.operations.set(self.0.operations.get() + 1);
    }

    /// Requests completed.
    pub fn operations(&self) -> u64 {
        self.0.operations.get()
    }

    /// Faults by kind.
    pub fn faults(&self) -> BTreeMap<&'static str, u64> {
        self.0.faults.borrow().clone()
    }

    /// The latest happenings, oldest first.
    pub fn happenings(&self) -> Vec<(Duration, String)> {
        self.0.happenings.borrow().iter().cloned().collect()
    }
}
