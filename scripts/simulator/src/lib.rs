//! The simulated cluster: the production cores of both engines in one deterministic process.
//!
//! One host engine, two controllers, drives, vaults, catalogs, the coordinator store and guests, all
//! on the simulated runtime; everything follows from one seed, and the same seed gives the same trace hash. A
//! run draws a cluster, plays episodes of requests in each of which something strikes, calms down, and
//! hands over to the judges.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`plan`] | what a seed stands for |
//! | [`director`], [`strikes`], [`aimed`] | episodes and what strikes in them |
//! | [`idle`] | hours in which little happens, and timers run |
//! | [`flash`] | the hosts' flash, and what strikes it |
//! | [`finale`] | the end of a run: recovery, quiescence, reading everything back |
//! | [`leaks`] | the judge of what the catalog lists and maps name |
//! | [`pool`], [`nonces`] | the judges of catalogs, shards and frames at rest |
//! | [`guest`], [`workload`] | guests, and the judge of every completion and every byte read (C23, C24) |
//! | [`cluster`] | what lives through crashes, starts and stops |
//! | [`host`], [`controller`], [`store`] | the processes |
//! | [`journal`], [`kinds`], [`report`] | what happened, the kinds of faults, and how it ended |
//! | [`budget`], [`seeds`] | running many seeds, among them those that once failed |
//!
//! What is not struck: both controllers at once without a vault, more than two drives, the store's own
//! disk. Cleave does not survive the first two, and the third is tested where the store lives.
#![forbid(unsafe_code)]

pub mod aimed;
pub mod budget;
pub mod cluster;
pub mod controller;
pub mod director;
pub mod finale;
pub mod flash;
pub mod guest;
pub mod host;
pub mod idle;
pub mod journal;
#[cfg(feature = "planted-bugs")]
pub mod judges;
pub mod kinds;
pub mod leaks;
pub mod nonces;
pub mod plan;
pub mod pool;
pub mod report;
pub mod seeds;
pub mod store;
pub mod strikes;
pub mod workload;

pub use director::run;
pub use plan::Scale;
pub use report::Report;
