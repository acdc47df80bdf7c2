//! A host core: everything between a guest's request and the controllers, over the contracts.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`core`](HostCore) | the handle, the connections |
//! | `state` | what a core knows; what messages do to it |
//! | `write`, `publish` | taking writes, merging, encoding; the order of completions (C6, C23) |
//! | `sequence`, `log_client` | identities, appends, resends (C1, C7) |
//! | `buffer` | records until they are released, and what a block's newest content is (C4) |
//! | `read`, `pool`, `solve` | reads from buffer, flash and pool; lost and damaged shards (C3) |
//! | `ahead` | what a miss brings to flash beside what is wanted |
//! | `map`, `handles` | where blocks lie (C2) |
//! | `paging` | which parts of the map are in memory |
//! | `dedupe` | where content lies already (C19, C30) |
//! | `liveness` | which stripes a vdisk could leave (C20, C21) |
//! | `destage`, `runs` | stripes, commits, map runs (C10, C16, C21) |
//! | [`shares`], [`front`] | the parts of a vdisk that cores own; requests between devices and cores (C1, C23) |
//! | `leases`, `tenure` | until when reads may be answered; which owners before are gone (C9) |
//! | `open`, `close` | seal, map, replay; close, delete, resize (C8) |
//!
//! A core is one thread and shares nothing. Its owner calls [`HostCore::turn`], runs the tasks of the
//! executor, and takes completions and events.
#![forbid(unsafe_code)]

mod ahead;
mod buffer;
mod close;
mod config;
mod core;
mod dedupe;
mod destage;
mod error;
pub mod front;
mod handles;
mod hash;
mod leases;
mod liveness;
mod log_client;
pub mod map;
mod open;
mod paging;
mod pool;
mod publish;
mod read;
mod request;
mod runs;
mod sequence;
pub mod shares;
mod solve;
mod state;
mod stats;
mod suspects;
mod tenure;
mod write;

pub use config::{CoreShare, DestageConfig, HostCoreConfig};
pub use core::{HostCore, KnownStripes};
pub use error::HostError;
pub use open::OpenRequest;
pub use request::{
    GuestCompletion, GuestError, GuestRequest, Operation, RANGE_MAX, SECTOR, TRANSFER_MAX,
};
pub use stats::{CoreStats, Event, VdiskStats};
pub use tenure::{OwnerBefore, Tenure};
