//! `cleave-matrix`: plays the crash matrix and the rot matrix, prints what was done and what failed.

use clap::Parser;
use cleave_matrix::{Extent, Progress, Tally, crash, rot, units};
use std::process::ExitCode;
use std::time::Instant;

/// Breaks everything that is persisted, one place at a time.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// Every place, not only some of each subject.
    #[arg(long)]
    all: bool,
    /// Only subjects whose name contains this.
    #[arg(long, value_name = "NAME", default_value = "")]
    only: String,
    /// Threads; as many as there are processors if it is not given.
    #[arg(long, value_name = "COUNT", default_value_t = units::processors())]
    threads: usize,
    /// Plant a bug and see whether it is found; `all`: each of those that the matrices must find.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "BUG", value_parser = planted::parse)]
    plant: Option<planted::Bugs>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    #[cfg(feature = "planted-bugs")]
    if let Some(bugs) = &arguments.plant {
        return planted::find(bugs, &arguments);
    }
    let started = Instant::now();
    let tell = |progress: &Progress<'_>| {
        let (over, count) = progress.over;
        let failed = progress.tally.failures().len();
        eprintln!(
            "{over} of {count} parts, {:.0?} s: {}: {} cases, {failed} failed, in {:.1} s",
            started.elapsed().as_secs_f64(),
            progress.name,
            progress.tally.sum("cases"),
            progress.took.as_secs_f64(),
        );
        progress.tally.failures().iter().take(3).for_each(|failure| eprintln!("FAILED {failure}"));
    };
    let tally = play(&arguments, || {}, tell);
    println!("{tally}, in {:.0} s", started.elapsed().as_secs_f64());
    if tally.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn play(
    arguments: &Arguments,
    begin: impl Fn() + Sync,
    tell: impl Fn(&Progress<'_>) + Sync,
) -> Tally {
    let extent = if arguments.all { Extent::Exhaustive } else { Extent::Sampled };
    let mut parts = crash::units();
    parts.extend(rot::units());
    units::play(parts, extent, &arguments.only, arguments.threads, begin, tell)
}

/// The judges are judged: a planted bug is found, or the matrices are worth nothing.
#[cfg(feature = "planted-bugs")]
mod planted {
    use super::{Arguments, play};
    use cleave_matrix::FOUND;
    use cleave_runtime::planted::{ALL, Planted, plant};
    use std::process::ExitCode;

    /// Bugs to plant.
    pub type Bugs = Vec<Planted>;

    pub fn parse(text: &str) -> Result<Bugs, String> {
        if text == "all" {
            return Ok(FOUND.to_vec());
        }
        let found = ALL.iter().find(|bug| format!("{bug:?}").eq_ignore_ascii_case(text));
        found.map(|bug| vec![*bug]).ok_or_else(|| format!("`all`, or one of {ALL:?}"))
    }

    /// Plants one after the other; says who is not found.
    pub fn find(bugs: &Bugs, arguments: &Arguments) -> ExitCode {
        // A bug makes production code panic by the dozen.
        std::panic::set_hook(Box::new(|_| {}));
        let mut missed = 0;
        for bug in bugs {
            let tally = play(arguments, || plant(Some(*bug)), |_| {});
            let (cases, failures) = (tally.sum("cases"), tally.failures());
            match failures.first() {
                Some(first) => {
                    println!(
                        "{bug:?}: found by {} of {cases} cases, first: {first}",
                        failures.len()
                    );
                }
                None => {
                    missed += 1;
                    println!("{bug:?}: NOT FOUND by {cases} cases");
                }
            }
        }
        println!("{} planted bugs, {missed} not found", bugs.len());
        if missed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}
