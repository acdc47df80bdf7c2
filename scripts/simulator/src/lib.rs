//! The simulated cluster: the production cores of both engines in one deterministic process.
//!
//! Host engines, two controllers, drives, vaults, catalogs, the coordinator store and guests, all
//! on the simulated runtime; everything follows from one seed, and the same seed gives the same trace hash. A
//! run draws a cluster, plays episodes of requests in each of which something strikes, calms down, and
//! hands over to the judges.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`plan`] | what a seed stands for |
//! | [`director`], [`strikes`], [`aimed`], [`alone`], [`arranged`], [`rewritten`], [`rebuilds`], [`switches`] | episodes and what strikes in them |
//! | [`idle`] | hours in which little happens, and timers run |
//! | [`flash`] | the hosts' flash, and what strikes it |
//! | [`nvme`] | NVMe controllers in front of drives and flash: production's driver over the software model |
//! | [`log_loss`], [`rot`] | whole logs that are lost, and bits of them that flip in memory |
//! | [`finale`] | the end of a run: recovery, quiescence, reading everything back |
//! | [`leaks`] | the judge of what the catalog lists and maps name |
//! | [`pool`], [`nonces`] | the judges of catalogs, shards and frames at rest |
//! | [`guest`], [`workload`] | guests, and the judge of every completion and every byte read (C23, C24) |
//! | [`cluster`] | what lives through crashes, starts and stops |
//! | [`host`], [`controller`], [`store`] | the processes |
//! | [`journal`], [`kinds`], [`report`] | what happened, the kinds of faults, and how it ended |
//! | [`budget`], [`seeds`] | running many seeds, among them those that once failed |
//!
//! What is not struck: a log and the host that holds its records too, more than two drives of a stripe, the
//! whole disk of the store or of a catalog. Cleave does not survive these.
#![forbid(unsafe_code)]

pub mod aimed;
pub mod alone;
pub mod arranged;
pub mod budget;
pub mod cluster;
pub mod controller;
mod cores;
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
pub mod log_loss;
pub mod nonces;
pub mod nvme;
pub mod plan;
pub mod pool;
pub mod rebuilds;
pub mod report;
pub mod rewritten;
pub mod rot;
pub mod seeds;
pub mod store;
pub mod strikes;
pub mod switches;
pub mod workload;

pub use director::{run, run_plan};
pub use plan::{Plan, Scale};
pub use report::Report;
