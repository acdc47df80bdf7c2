//! `cleave-verify`: see the library of the same name.

use clap::Parser;
use cleave_verify::{arguments::Arguments, probe, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let outcome = match arguments.probe {
        true => probe::run(&arguments).map(|refused| refused.to_string()),
        false => run::run(&arguments).map(|summary| summary.to_string()),
    };
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("cleave-verify: {error}");
            ExitCode::FAILURE
        }
    }
}
