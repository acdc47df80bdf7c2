//! `cleave-simulator`: runs seeds, prints what was done, and where and how one failed.

use clap::{Parser, ValueEnum};
use cleave_simulator::budget::{self, Budget, Runner, shortcomings};
#[cfg(feature = "planted-bugs")]
use cleave_simulator::judges::{self, Which};
use cleave_simulator::report::Total;
use cleave_simulator::seeds::{Kept, kept};
use cleave_simulator::{Report, Scale};
use std::process::ExitCode;

/// Clusters come and go by the hundred. The system's allocator keeps what each thread once needed, until there is none left.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Runs simulated clusters from seeds; the same seed gives the same run.
///
/// Without options: the first 20 seeds. Ends with a status other than 0 when a run failed, or when a
/// budget's runs lack a kind of fault.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Run this seed.
    #[arg(long, conflicts_with_all = ["seeds", "budget"])]
    seed: Option<u64>,
    /// Run seeds A to B, B not included; with a budget: begin at A, and end at B at the latest.
    #[arg(long, value_name = "A..B", value_parser = range)]
    seeds: Option<(u64, u64)>,
    /// Run all seeds that ever failed, then others until this much was done, with every kind of fault.
    #[arg(long)]
    budget: Option<Budgets>,
    /// Threads; as many as there are cores when it is not given.
    #[arg(long)]
    threads: Option<usize>,
    /// Print what happens as it happens.
    #[arg(long)]
    aloud: bool,
    /// Print a line for each run, also where there are very many.
    #[arg(long)]
    each: bool,
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
    /// Judge the judges: plant bugs, and see that some seed finds each.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "WHICH", conflicts_with_all = ["seed", "seeds", "budget", "plant"])]
    judge_the_judges: Option<Which>,
    /// The turn of a rotation, which says what is planted: any number.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, default_value_t = 0)]
    turn: u64,
    /// Go on after a seed failed.
    #[arg(long)]
    keep_going: bool,
}

/// A budget by its name.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Budgets {
    /// A few minutes of two cores: for each change.
    Ci,
    /// 1,000 cluster-hours, 20 million guest operations, 100,000 faults.
    Full,
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
    if let Some(filter) = &arguments.log {
        let subscriber = tracing_subscriber::fmt().with_env_filter(filter.as_str());
        subscriber.without_time().with_writer(std::io::stdout).init();
    }
    let cores = || std::thread::available_parallelism().map_or(1, usize::from);
    // What several threads say at once nobody can read.
    let threads = if arguments.aloud || arguments.log.is_some() {
        1
    } else {
        arguments.threads.unwrap_or_else(cores)
    };
    #[cfg(feature = "planted-bugs")]
    if let Some(which) = arguments.judge_the_judges {
        return judge(which, arguments.turn, threads);
    }
    #[cfg(feature = "planted-bugs")]
    let plant = arguments.plant;
    let prepare = || {
        #[cfg(feature = "planted-bugs")]
        cleave_runtime::planted::plant(plant);
    };
    let runner = Runner {
        threads,
        aloud: arguments.aloud,
        keep_going: arguments.keep_going,
        prepare: &prepare,
    };
    let scale = if arguments.small { Scale::Small } else { Scale::Usual };
    match arguments.budget {
        Some(budget) => spend(&arguments, &runner, budget, scale),
        None => play(&arguments, &runner, scale),
    }
}

/// Plants bugs, and says which seed found each.
#[cfg(feature = "planted-bugs")]
fn judge(which: Which, turn: u64, threads: usize) -> ExitCode {
    if which == Which::Rotation {
        println!("turn {turn} of the rotation");
    }
    let (mut planted, mut found, mut missed) = (0u64, 0u64, Vec::new());
    judges::judge(which, turn, threads, |outcome| {
        let judges::Outcome { bug, found: by, runs, took } = outcome;
        planted += 1;
        found += u64::from(by.is_some());
        let (name, rule, took) = (format!("{bug:?}"), bug.rule(), took.as_secs_f64());
        match by {
            Some((seed, failure)) => {
                let what: String = failure.chars().take(100).collect();
                println!(
                    "{name:<26} {rule:<9} seed {seed:<5} {runs:>4} runs {took:>6.1} s  {what}"
                );
            }
            None => {
                println!("{name:<26} {rule:<9} NOT FOUND, {runs} runs, {took:.1} s");
                missed.push(name);
            }
        }
    });
    println!("{found} of {planted} planted bugs were found");
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Runs the seeds that were asked for.
fn play(arguments: &Arguments, runner: &Runner, scale: Scale) -> ExitCode {
    let (from, to) = match (arguments.seed, arguments.seeds) {
        (Some(seed), _) => (seed, seed + 1),
        (None, Some(seeds)) => seeds,
        (None, None) => (0, 20),
    };
    let mut total = Total::default();
    runner.run(budget::seeds(from..to, scale), |report| {
        println!("{report}");
        total.add(report);
        false
    });
    end(&total, &[])
}

/// Runs until a budget is met with every kind of fault. For a kind that none of its runs had, half as many again are made.
fn spend(arguments: &Arguments, runner: &Runner, budget: Budgets, scale: Scale) -> ExitCode {
    let wanted = match budget {
        Budgets::Ci => Budget::CI,
        Budgets::Full => Budget::FULL,
    };
    let (from, to) = arguments.seeds.unwrap_or((1_000, u64::MAX));
    let mut kept = kept();
    kept.retain(|run: &Kept| !arguments.small || run.scale == Scale::Small);
    let old = kept.len() as u64;
    let mut total = Total::default();
    let mut tell = Progress { each: arguments.each, told: 0 };
    let mut met = None;
    runner.run(kept.into_iter().chain(budget::seeds(from..to, scale)), |report| {
        total.add(report);
        tell.of(report, &total);
        if total.runs >= old && met.is_none() && wanted.is_met(&total) {
            met = Some(total.runs);
        }
        met.is_some_and(|runs| total.runs >= runs + runs / 2 || shortcomings(&total).is_empty())
    });
    println!("{old} of the runs are of seeds that once failed");
    let mut lacking = shortcomings(&total);
    if !wanted.is_met(&total) {
        lacking.push(format!("less than the budget: {wanted:?}"));
    }
    end(&total, &lacking)
}

/// Says how far a budget is.
struct Progress {
    each: bool,
    told: u64,
}

impl Progress {
    fn of(&mut self, report: &Report, total: &Total) {
        if self.each || report.failure.is_some() {
            println!("{report}");
        } else if total.runs >= self.told + 50 {
            self.told = total.runs;
            let (runs, operations, faults) = (total.runs, total.operations, total.injected());
            let hours = total.cluster_hours();
            println!(
                "{runs} runs: {operations} operations, {hours:.1} cluster-hours, {faults} faults"
            );
        }
    }
}

fn end(total: &Total, lacking: &[String]) -> ExitCode {
    println!("{total}");
    lacking.iter().for_each(|what| println!("LACKING: {what}"));
    match total.failed.as_slice() {
        [] => println!("nothing was lost, stale or misplaced"),
        failed => println!("FAILED seeds: {failed:?}"),
    }
    if total.failed.is_empty() && lacking.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
