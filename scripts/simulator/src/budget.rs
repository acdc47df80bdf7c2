//! Running many seeds: on several threads, reported in the order of seeds, until a budget is met.
//!
//! What is run and reported follows from the seeds alone: runs are added in the order of their seeds,
//! and the first ones that meet the budget are the last, whatever else threads had begun by then.
//! A run that was begun too many and failed is not passed over.

use crate::plan::Scale;
use crate::report::{Report, Total};
use crate::seeds::Kept;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;

/// What must be done before a command ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Budget {
    /// Requests of guests.
    pub operations: u64,
    /// Virtual time of all clusters.
    pub cluster_hours: f64,
    /// Injected faults.
    pub faults: u64,
}

impl Budget {
    /// For each change: a few minutes of two cores.
    pub const CI: Budget = Budget { operations: 3_000_000, cluster_hours: 200.0, faults: 20_000 };
    /// What the makers of Cleave claim.
    pub const FULL: Budget =
        Budget { operations: 20_000_000, cluster_hours: 1_000.0, faults: 100_000 };

    /// Whether so much was done.
    pub fn is_met(&self, total: &Total) -> bool {
        total.operations >= self.operations
            && total.cluster_hours() >= self.cluster_hours
            && total.injected() >= self.faults
    }
}

/// What the engines must have done in runs that meet a budget: what the names say is tested by nothing else here.
pub const REACHED: [&str; 13] = [
    "blocks read from the buffer",
    "blocks read from the pool",
    "copies of the log",
    "duplicate records",
    "expired grants",
    "fenced vdisks",
    "map runs",
    "ranges solved",
    "records mirrored",
    "shards rebuilt",
    "stripeless commits",
    "stripes committed",
    "struck vdisks",
];

/// What a budget asks for and these runs did not do, in words.
pub fn shortcomings(total: &Total) -> Vec<String> {
    let missing = total.missing().into_iter();
    let kinds = missing.map(|kind| format!("no {} with requests in flight", kind.name()));
    let nothing = |what: &&str| total.reached.get(*what).copied().unwrap_or_default() == 0;
    let idle = REACHED.iter().filter(|what| nothing(what)).map(|what| format!("no {what}"));
    kinds.chain(idle).collect()
}

/// How runs are made.
#[derive(Clone, Copy)]
pub struct Runner<'a> {
    /// Threads.
    pub threads: usize,
    /// Prints what happens as it happens; for one thread.
    pub aloud: bool,
    /// Goes on after a run failed.
    pub keep_going: bool,
    /// Called by each thread before its first run: what is switched on is switched on by thread.
    pub prepare: &'a (dyn Fn() + Sync),
}

impl Runner<'_> {
    /// Runs what `runs` gives, in that order, and hands each report to `each`, in that order, until that says
    /// that it was enough, nothing is left, or one failed. Later ones that failed are handed over too.
    pub fn run(
        &self,
        runs: impl Iterator<Item = Kept> + Send,
        mut each: impl FnMut(&Report) -> bool,
    ) {
        let (queue, stop) = (Mutex::new(runs.enumerate()), AtomicBool::new(false));
        let (send, receive) = mpsc::channel();
        std::thread::scope(|scope| {
            for _ in 0..self.threads.max(1) {
                let (send, queue, stop) = (send.clone(), &queue, &stop);
                scope.spawn(move || {
                    (self.prepare)();
                    while !stop.load(Ordering::Relaxed) {
                        let next = queue.lock().expect("no run panics").next();
                        let Some((place, run)) = next else { break };
                        let report = crate::run(run.seed, run.scale, self.aloud);
                        if send.send((place, report)).is_err() {
                            break;
                        }
                    }
                });
            }
            drop(send);
            let (mut waiting, mut next, mut enough) = (BTreeMap::new(), 0, false);
            for (place, report) in receive {
                waiting.insert(place, report);
                while let Some(report) = waiting.remove(&next) {
                    next += 1;
                    let failed = report.failure.is_some();
                    if !enough || failed {
                        enough |= each(&report) || (failed && !self.keep_going);
                        stop.store(enough, Ordering::Relaxed);
                    }
                }
            }
        });
    }
}

/// Runs of these seeds at one scale.
pub fn seeds(range: impl Iterator<Item = u64>, scale: Scale) -> impl Iterator<Item = Kept> {
    range.map(move |seed| Kept { seed, scale })
}
