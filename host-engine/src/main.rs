//! `cleave-host`: the host engine. This is its shell: the threads and the world in which host cores
//! run, the guests' devices, and the way in for operators.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`run`] | starting, the control thread's loop, stopping |
//! | [`engine`] | what the control thread knows; the namespace's watch |
//! | [`vdisk`] | the life of one vdisk: lock, owner, open, resize, delete |
//! | [`core`] | a core: reactor, links, host core, devices; vdisks that go to another core |
//! | [`cores`] | starting, ending and balancing cores |
//! | [`cpu`], [`balance`] | how many cores there are; what moves to another one |
//! | [`past`] | what cores did that have ended |
//! | [`messages`] | what the control thread and cores tell each other |
//! | [`status`] | answers on the control socket |
//! | [`flash`] | the host's flash devices |
//! | [`key`] | the cluster's key |
//! | [`measure`] | operations and latencies |
//! | [`error`] | what is wrong, in one line |
//!
//! Threads: control (this one), one a core, the store client's, signals, control connections. A crash
//! leaves sockets and lock files, which the successor replaces and takes; everything acknowledged is in the log.

#![forbid(unsafe_code)]

mod balance;
mod core;
mod cores;
mod cpu;
mod engine;
mod error;
mod events;
mod flash;
mod key;
mod measure;
mod messages;
mod past;
mod run;
mod status;
mod vdisk;

use cleave_process::daemon::Daemon;
use std::process::ExitCode;

// However packages are built together: bugs are planted in simulated clusters only.
const _: () = assert!(!cleave_runtime::planted::COMPILED_IN);

fn main() -> ExitCode {
    let daemon = Daemon {
        name: "cleave-host",
        version: env!("CARGO_PKG_VERSION"),
        about: "The Cleave host engine: serves vdisks to guests over vhost-user-blk.",
    };
    daemon.run(run::run)
}
