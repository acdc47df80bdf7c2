//! A polled userspace driver for NVMe controllers: no kernel in the I/O path.
//!
//! A [`Controller`](controller::Controller) is brought up over a
//! [`Transport`](transport::Transport) by one core, which goes on turning it; each core that does
//! I/O has its own [`QueuePair`](queue::QueuePair), without locks and without allocation while it
//! works. Requests carry a token and the memory that they are about, which comes back with the
//! completion.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`spec`] | what the specifications fix: registers, commands, completions, identify data, logs |
//! | [`registers`] | access to registers and interrupts |
//! | [`dma`] | memory that the device reaches, and its addresses |
//! | [`transport`] | ways to a controller: VFIO, or sysfs without an IOMMU |
//! | [`queue`] | submission and completion queues, outstanding commands, queue pairs |
//! | [`controller`] | bring-up, reset, admin commands, events, logs, features |
//! | [`namespace`] | size, format and limits of a namespace |
//! | [`drive`] | a namespace as a drive of the engines |
//! | [`place`] | how configurations name a namespace |
//! | [`owner`] | the controllers and drives of one core, awake and asleep |
//! | [`bench`] | what requests cost, measured |
//! | `model` | (feature `model`) a controller in software, which can misbehave: test equipment |
//!
//! Nothing that a device says is trusted: completions of commands that are not outstanding,
//! impossible identify data, an absent controller end in errors and resets. `unsafe` is in [`dma`]
//! and [`registers`] alone.

#![deny(unsafe_code)]

pub mod bench;
pub mod controller;
#[allow(unsafe_code)]
pub mod dma;
pub mod drive;
pub mod error;
#[cfg(any(test, feature = "model"))]
pub mod model;
pub mod namespace;
pub mod owner;
pub mod place;
pub mod queue;
#[allow(unsafe_code)]
pub mod registers;
pub mod spec;
#[cfg(test)]
mod testing;
pub mod transport;
