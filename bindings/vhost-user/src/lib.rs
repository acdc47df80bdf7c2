//! The guest's side of a vdisk: a vhost-user-blk device that the core's loop polls.
//!
//! One [`Disk`] is one vdisk: a listening socket, at most one front end (QEMU, cloud-hypervisor,
//! crosvm, a storage library), its memory and its virtqueues. [`Disk::turn`] takes requests off
//! the queues, [`Disk::complete`] publishes their outcome, [`Disk::flush_notifications`] wakes the
//! guest. There are no threads, no locks and no blocking calls.
//!
//! ```text
//! channel   socket, messages whole or not at all        listen    the socket file
//! frontend  what the messages say: features, memory, rings, dirty log, inflight region
//! memory    the guest's memory, bounds and dirty bits    chain     descriptor chains, read defensively
//! guard     memory that its owner truncates (SIGBUS)
//! ring      one virtqueue                                inflight  what a successor must resume (C24)
//! blk       virtio-blk requests out of chains            slots     requests that the engine holds
//! disk      the turn; handover to another thread
//! ```
//!
//! Invariants: whatever a guest or a front end does breaks its own device only, never the process
//! (truncating memory that it shares included, see [`guard`]); a request that was taken is recorded
//! before anything else is done with it, and is published as used once (C24).
//!
//! A crash leaves the socket file, which the next [`Disk::bind`] replaces, and in the front end's
//! hands the inflight region, from which the next connection resumes.

mod blk;
mod chain;
mod channel;
mod config;
mod disk;
mod error;
mod frontend;
mod guard;
mod inflight;
mod listen;
mod memory;
mod request;
mod ring;
mod slots;

pub use config::DiskConfig;
pub use disk::{DetachedDisk, Disk, DiskState, Statistics};
pub use error::Error;
pub use request::{BlockRange, BufferSource, Outcome, Request, RequestKind, Tag};

#[cfg(test)]
mod rig;
#[cfg(test)]
mod tests;

#[cfg(test)]
use rig::step;

/// A place between two effects where tests end the process.
#[cfg(not(test))]
#[inline(always)]
fn step() {}
