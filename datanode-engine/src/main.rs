//! `cleave-datanode`: one controller of a data node. This is its shell: the world in which the core
//! runs, and the way in for operators.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`controller`] | starting, the loop, stopping |
//! | [`drives`] | opening and recognising the pool's drives |
//! | [`catalog_thread`] | the catalog's thread |
//! | [`vault_file`] | the vault's file |
//! | [`control`] | answers on the control socket |
//! | [`measure`] | latencies |
//! | [`error`] | what is wrong, in one line |
//!
//! Threads: the core's (this one), the catalog's, the store client's, signals, control connections.
//! A clean stop writes the vault; a crash leaves the log to the peer, and the drives as they are.

#![forbid(unsafe_code)]

mod catalog_thread;
mod control;
mod controller;
mod drives;
mod error;
mod events;
mod measure;
mod vault_file;

use cleave_process::daemon::Daemon;
use std::process::ExitCode;

// However packages are built together: bugs are planted in simulated clusters only.
const _: () = assert!(!cleave_runtime::planted::COMPILED_IN);

fn main() -> ExitCode {
    let daemon = Daemon {
        name: "cleave-datanode",
        version: env!("CARGO_PKG_VERSION"),
        about: "One controller of a Cleave data node: the mirrored log, and shards on drives.",
    };
    daemon.run(controller::run)
}
