//! The simulated runtime: virtual time, network and drives, all from one seed.
//!
//! It implements the contracts of `cleave-runtime`, so that the cores of both engines run in it
//! unchanged, and injects the failures that Cleave promises to survive. One thread, no wall
//! clock, no map of random order: the same seed and the same program give the same
//! [`trace hash`](World::trace_hash).
//!
//! # Fault model
//!
//! | What | May happen | Never happens |
//! | --- | --- | --- |
//! | process | [`kill`](Process::kill) at any event; [`pause`](Process::pause) for any time; clocks that differ in origin and rate, as much as the settings say | a turn interrupted in its middle; a clock that runs backwards |
//! | network | delay, reordering between lanes and connections, one-way and two-way cuts, breaks that lose any suffix of each lane | loss or reordering inside a lane of an open connection, corrupted or duplicated messages (QUIC sees to that) |
//! | drive | completion in any order, late, or not before it stops hanging; unflushed pages kept or lost one by one on power loss; errors, lost drives, latent sector errors, flipped bits, misdirected writes, a failed flush after which the data is doubtful | a flushed page lost without one of these faults; a page torn inside its 4 KiB, but by a power cut of [`power`] |
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`world`] | virtual time, the event queue, running |
//! | [`settings`] | delays and limits of the simulated hardware; counters |
//! | [`process`] | a simulated process: clock, executor, turn, crash, pause |
//! | [`links`] | connections, lanes, cuts, breaks |
//! | [`drive`] | requests to simulated drives, and their faults |
//! | [`power`] | cutting a machine's power at the n-th operation of its drives |
//! | `medium` | what a drive stores: durable pages and the volatile cache over them |
//! | [`faults`] | faults as values, and a plan that draws them at random |
//! | [`trace`] | the hash over everything delivered, and the latest events |

#![forbid(unsafe_code)]

pub mod drive;
pub mod faults;
pub mod links;
mod medium;
pub mod power;
pub mod process;
pub mod settings;
pub mod trace;
pub mod world;

pub use drive::{OpenError, SimDrive};
pub use faults::{Fault, FaultPlan};
pub use power::{Power, Remains, Unsaved};
pub use process::Process;
pub use settings::{Counters, Settings, Span};
pub use trace::{EventKind, TraceEntry};
pub use world::World;

#[cfg(test)]
mod tests;
