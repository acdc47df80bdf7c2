//! The controller of a data node: the mirrored log, roles, grants, drives.
//!
//! State machines and flows over the runtime's contracts; the same under the real reactor and in the simulator.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`node`] | the controller: its world, its turn, its stop |
//! | [`log`] | the NVLOG in chunks of memory |
//! | `mend` | rot in the log's memory |
//! | [`mirror`] | who copies the log from whom, and how far each controller is |
//! | `join` | the flows of meeting, copying and joining |
//! | [`roles`] | the in-sync set in the store |
//! | `state` | what turn, flows and requests share; forwarding, acknowledging, effects |
//! | `hosts` | sessions of hosts and their requests |
//! | [`resident`] | seals, host incarnations, recent commits |
//! | [`grants`], [`allocator`] | stripes and slots given to hosts |
//! | [`drives`] | shards on the pool's drives |
//! | [`rebuild`] | shards that are written anew |
//! | [`scrub`] | damage that is looked for, and mended |
//! | [`superblocks`] | whose drives they are |
//! | [`vault`] | the log's image on a clean stop |
//! | [`catalog_port`], `catalog_queue` | the catalog, on a thread of its own or inline; who waits for it |
//! | [`status`] | what a controller says about itself |
#![forbid(unsafe_code)]

pub mod allocator;
pub mod catalog_port;
mod catalog_queue;
pub mod drives;
pub mod grants;
mod hosts;
mod join;
pub mod leases;
pub mod log;
mod mend;
pub mod mirror;
pub mod node;
pub mod notices;
pub mod rebuild;
pub mod resident;
pub mod roles;
pub mod scrub;
mod solo;
mod state;
pub mod status;
pub mod superblocks;
pub mod vault;

pub use node::{DataNode, World};
pub use state::{Counters, GRANTS_KEPT, NoObserver, Observer, Phase, Settings};
