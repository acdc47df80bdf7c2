//! The real world behind the runtime contracts: one [`Reactor`](reactor::Reactor) per core drives
//! an io_uring, the core's QUIC links and the local executor, and has the only place where the
//! core sleeps.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`reactor`] | the loop of a core, its shares, and the protocol of going to sleep |
//! | [`clock`] | the monotonic clock, read once a turn |
//! | [`doorbell`] | waking a core from other threads |
//! | [`drive`] | raw block devices and drive files |
//! | [`quic`] | links between engines |
//! | [`huge`] | huge pages for the log's memory |
//! | [`identity`] | the cluster's certificate authority and the engines' certificates |
//! | [`error`] | what can fail when these are set up |
//!
//! Everything but [`EventDoorbell`](doorbell::EventDoorbell) belongs to the thread that made it.
//! `unsafe` appears in the io_uring submission module, where the socket's error queue is read, and where
//! the kernel is told about memory.

pub mod clock;
pub mod doorbell;
pub mod drive;
pub mod error;
pub mod huge;
pub mod identity;
pub mod quic;
pub mod reactor;
mod uring;
