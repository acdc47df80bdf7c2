//! The result of a run, and of many, in figures and in words.

use crate::cluster::Cluster;
use crate::kinds::{Kind, Strikes};
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
    pub faults: BTreeMap<Kind, Strikes>,
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
        Report {
            seed: cluster.plan.seed,
            failure: cluster.journal.failure(),
            hash: cluster.world.trace_hash(),
            operations: cluster.journal.operations(),
            time: cluster.world.now(),
            faults: cluster.journal.faults(&cluster.world),
            reached: cluster.journal.reached(),
            counters: cluster.world.counters(),
            happenings: cluster.journal.happenings(),
            events: cluster.world.recent(),
        }
    }
}

/// Injected faults of all kinds.
fn injected(faults: &BTreeMap<Kind, Strikes>) -> u64 {
    faults.iter().filter(|(kind, _)| kind.is_injected()).map(|(_, strikes)| strikes.all).sum()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Report { seed, hash, operations, counters, .. } = self;
        write!(
            f,
            "seed {seed}: {operations} operations, {} faults, {:.3} cluster-hours, {} events, trace {hash:016x}",
            injected(&self.faults),
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

/// What many runs did together.
#[derive(Clone, Debug, Default)]
pub struct Total {
    /// Runs.
    pub runs: u64,
    /// Requests of guests that were completed.
    pub operations: u64,
    /// Virtual time of all clusters.
    pub time: Duration,
    /// Faults by kind.
    pub faults: BTreeMap<Kind, Strikes>,
    /// What the engines did.
    pub reached: BTreeMap<&'static str, u64>,
    /// Seeds whose runs failed.
    pub failed: Vec<u64>,
}

impl Total {
    /// Adds a run.
    pub fn add(&mut self, report: &Report) {
        self.runs += 1;
        self.operations += report.operations;
        self.time += report.time;
        for (kind, strikes) in &report.faults {
            self.faults.entry(*kind).or_default().add(*strikes);
        }
        for (what, count) in &report.reached {
            *self.reached.entry(what).or_default() += count;
        }
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
    }

    /// Injected faults of all kinds.
    pub fn injected(&self) -> u64 {
        injected(&self.faults)
    }

    /// Virtual hours of all clusters.
    pub fn cluster_hours(&self) -> f64 {
        self.time.as_secs_f64() / 3600.0
    }

    /// Kinds of faults that never struck while a request was in flight, though they can.
    pub fn missing(&self) -> Vec<Kind> {
        let struck = |kind: Kind| {
            let strikes = self.faults.get(&kind).copied().unwrap_or_default();
            if kind.meets_requests() { strikes.with_requests } else { strikes.all }
        };
        Kind::ALL.iter().copied().filter(|kind| struck(*kind) == 0).collect()
    }
}

impl fmt::Display for Total {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |f: &mut fmt::Formatter<'_>, injected| {
            let of_it = self.faults.iter().filter(|(kind, _)| kind.is_injected() == injected);
            of_it.into_iter().try_for_each(|(kind, strikes)| {
                let Strikes { all, with_requests } = strikes;
                writeln!(f, "{all:>12} {with_requests:>12}  {}", kind.name())
            })
        };
        writeln!(f, "faults, and those of them that met requests in flight:")?;
        list(f, true)?;
        writeln!(f, "what they and the network led to:")?;
        list(f, false)?;
        writeln!(f, "what the engines did:")?;
        for (what, count) in &self.reached {
            writeln!(f, "{count:>12}  {what}")?;
        }
        write!(
            f,
            "{} runs: {} guest operations, {:.1} cluster-hours, {} faults",
            self.runs,
            self.operations,
            self.cluster_hours(),
            self.injected(),
        )
    }
}
