//! Random content through a vhost-user-blk socket, and a check of every byte that is read against
//! a history of what may be there.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`content`] | what a sector holds after a write: recognisable, reproducible bytes |
//! | [`model`] | for every sector, which contents a read may return |
//! | [`workload`] | which request comes next: a function of the seed |
//! | [`probe`] | requests to an engine that has lost the disk: none may succeed |
//! | [`run`] | requests in flight, checking, connecting anew after the engine died, the final pass over everything |
//!
//! It knows nothing of Cleave: only the protocol, through an independent front-end crate. It keeps
//! no state but `--save`'s file, which is written whole at the end or not at all.

pub mod arguments;
pub mod content;
pub mod model;
pub mod probe;
pub mod random;
pub mod run;
pub mod workload;
