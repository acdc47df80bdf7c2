//! `cleave-verify`: see the library of the same name.

use clap::Parser;
use cleave_verify::{arguments::Arguments, run};
use std::process::ExitCode;

fn main() -> ExitCode {
    match run::run(&Arguments::parse()) {
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
