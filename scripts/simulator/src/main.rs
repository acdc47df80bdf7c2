//! `cleave-simulator`: runs seeds, prints what was done, and where and how one failed.

use clap::Parser;
use cleave_simulator::{Report, Scale};
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

/// Runs simulated clusters from seeds; the same seed gives the same run.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run this seed.
    #[arg(long, conflicts_with = "seeds")]
    seed: Option<u64>,
    /// Run seeds A to B, B not included.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// Print what happens as it happens.
    #[arg(long)]
    aloud: bool,
    /// Also print the engines' own messages that match this filter, for example `debug`.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Runs as short as those of the tests.
    #[arg(long)]
    small: bool,
    /// Plant a bug and see whether it is found.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "BUG", value_parser = planted)]
    plant: Option<cleave_runtime::planted::Planted>,
    /// Go on after a seed failed.
    #[arg(long)]
    keep_going: bool,
}

fn range(text: &str) -> Result<(u64, u64), String> {
    let parts = text.split_once("..").and_then(|(from, to)| {
        let (from, to) = (from.parse().ok()?, to.parse().ok()?);
        (from < to).then_some((from, to))
    });
    parts.ok_or_else(|| "give two numbers as in 1..100, the first one smaller".to_owned())
}

#[cfg(feature = "planted-bugs")]
fn planted(text: &str) -> Result<cleave_runtime::planted::Planted, String> {
    let all = cleave_runtime::planted::ALL;
    let found = all.iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(text));
    found.copied().ok_or_else(|| format!("one of {all:?}"))
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    #[cfg(feature = "planted-bugs")]
    cleave_runtime::planted::plant(arguments.plant);
    if let Some(filter) = &arguments.log {
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter.as_str());
        subscriber.without_time().with_writer(std::io::stdout).init();
    }
    let (from, to) = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(seeds)) => seeds,
        (None, None) => (0, 20),
    };
    let scale = if arguments.small { Scale::Small } else { Scale::Usual };
    let mut total = Total::default();
    for seed in from..to {
        let report = cleave_simulator::run(seed, scale, arguments.aloud);
        println!("{report}");
        total.add(&report);
        if report.failure.is_some() && !arguments.keep_going {
            break;
        }
    }
    total.print();
    if total.failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[derive(Default)]
struct Total {
    seeds: u64,
    operations: u64,
    time: Duration,
    faults: BTreeMap<&'static str, u64>,
    reached: BTreeMap<&'static str, u64>,
    failed: Vec<u64>,
}

impl Total {
    fn add(&mut self, report: &Report) {
        self.seeds += 1;
        self.operations += report.operations;
        self.time += report.time;
        for (kind, count) in &report.faults {
            *self.faults.entry(kind).or_default() += count;
        }
        for (what, count) in &report.reached {
            *self.reached.entry(what).or_default() += count;
        }
        if report.failure.is_some() {
            self.failed.push(report.seed);
        }
    }

    fn print(&self) {
        println!(
            "{} seeds, {} operations, {} faults, {:.2} virtual hours",
            self.seeds,
            self.operations,
            self.faults.values().sum::<u64>(),
            self.time.as_secs_f64() / 3600.0
        );
        println!("faults: {}", listed(&self.faults));
        println!("reached: {}", listed(&self.reached));
        match self.failed.as_slice() {
            [] => println!("nothing failed"),
            failed => println!("FAILED seeds: {failed:?}"),
        }
    }
}

fn listed(counts: &BTreeMap<&'static str, u64>) -> String {
    let counts: Vec<String> =
        counts.iter().map(|(what, count)| format!("{what} {count}")).collect();
    counts.join(", ")
}
