//! The result of a run, in figures and in words.

use crate::cluster::Cluster;
use cleave_runtime_sim::{Counters, TraceEntry};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Latest events of the world that a failure shows.
const EVENTS_SHOWN: usize = 30;

/// The result of a run.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// What failed first.
    pub failure: Option<String>,
    /// Hash over everything that happened.
    pub hash: u64,
    /// Requests of guests that were completed.
    pub operations: u64,
    /// Virtual time.
    pub time: Duration,
    /// Faults by kind.
    pub faults: BTreeMap<&'static str, u64>,
    /// What the engines did.
    pub reached: BTreeMap<&'static str, u64>,
    /// What the world counted.
    pub counters: Counters,
    /// The latest happenings.
    pub happenings: Vec<(Duration, String)>,
    /// The latest events of the world.
    pub events: Vec<TraceEntry>,
}

impl Report {
    /// Of a run that is over.
    pub fn of(cluster: &Cluster) -> Report {
        let counters = cluster.world.counters();
        let mut faults = cluster.journal.faults();
        let world = [
            ("broken connections", counters.connections_broken),
            ("cuts", counters.cuts),
            ("pauses", counters.pauses),
            ("torn writes", counters.writes_torn),
            ("lost writes", counters.writes_vanished),
            ("dropped pages", counters.pages_dropped),
        ];
        for (kind, count) in world {
            faults.insert(kind, count);
        }
        Report {
            seed: cluster.plan.seed,
            failure: cluster.journal.failure(),
            hash: cluster.world.trace_hash(),
            operations: cluster.journal.operations(),
            time: cluster.world.now(),
            faults,
            reached: cluster.journal.reached(),
            counters,
            happenings: cluster.journal.happenings(),
            events: cluster.world.recent(),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, hash, operations, counters, .. } = self;
        let faults: u64 = self.faults.values().sum();
        write!(
            f,
            "seed {seed}: {operations} operations, {faults} faults, {:.3} virtual hours, {} events, trace {hash:016x}",
            self.time.as_secs_f64() / 3600.0,
            counters.events,
        )?;
        let Some(failure) = &self.failure else { return Ok(()) };
        writeln!(f, "\nthe latest happenings:")?;
        for (time, what) in &self.happenings {
            writeln!(f, "{:>14.6} {what}", time.as_secs_f64())?;
        }
        writeln!(f, "the latest events:")?;
        let shown = self.events.len().saturating_sub(EVENTS_SHOWN);
        for event in &self.events[shown..] {
            let (kind, time) = (event.kind, event.time as f64 / 1e9);
            let (process, digest) = (event.process, event.digest);
            writeln!(f, "{time:>14.6} {kind:?} of process {process}, digest {digest:016x}")?;
        }
        write!(f, "seed {seed} FAILED: {failure}")
    }
}
