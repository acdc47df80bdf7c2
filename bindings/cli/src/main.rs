//! `cleave`: a whole cluster on one machine (`cleave dev`), and the operator's commands.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`arguments`] | the command line |
//! | [`dev`] | the supervisor of a cluster on one machine |
//! | [`commands`] | what an operator asks a running cluster |
//! | [`image`] | import and export of images |
//! | [`nvme`] | NVMe controllers, driven from userspace |
//! | [`error`] | every failure: one line, and what to do |
//!
//! Only a cluster's supervisor writes in its directory; commands speak to it over its control socket.
//! Exit status: 0 done, 1 not done, 2 the command line is wrong.

mod arguments;
mod commands;
mod dev;
mod error;
mod image;
mod nvme;

use arguments::{Arguments, Command};
use clap::Parser;
use std::io::IsTerminal;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn")),
        )
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Err(error) = cleave_process::crash_points::arm_from_environment() {
        eprintln!("cleave: {error}");
        return ExitCode::FAILURE;
    }
    let dir = arguments.dir;
    let result = match arguments.command {
        Command::Dev(options) => dev::run(dir, &options),
        Command::Nvme(command) => nvme::run(command),
        command => commands::run(dir, command),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cleave: {error}");
            ExitCode::FAILURE
        }
    }
}
