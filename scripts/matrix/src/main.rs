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
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let extent = if arguments.all { Extent::Exhaustive } else { Extent::Sampled };
    let mut tally = Tally::default();
    cleave_matrix::crash::run(extent, &arguments.only, &mut tally);
    cleave_matrix::rot::run(extent, &arguments.only, &mut tally);
    println!("{tally}");
    if tally.failures().is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
