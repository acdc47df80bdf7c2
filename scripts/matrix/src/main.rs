//! `cleave-matrix`: plays the crash matrix and the rot matrix, prints what was done and what failed.

use clap::Parser;
use cleave_matrix::{Extent, Tally};
use std::process::ExitCode;

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
    /// Plant a bug and see whether it is found.
    #[cfg(feature = "planted-bugs")]
    #[arg(long, value_name = "BUG", value_parser = planted)]
    plant: Option<cleave_runtime::planted::Planted>,
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
    let extent = if arguments.all { Extent::Exhaustive } else { Extent::Sampled };
    let mut tally = Tally::default();
    cleave_matrix::crash::run(extent, &arguments.only, &mut tally);
    cleave_matrix::rot::run(extent, &arguments.only, &mut tally);
    println!("{tally}");
    if tally.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
