//! The roles of two controllers and the epochs of two hosts as a model, checked exhaustively (C7-C9).
//!
//! The simulator runs the engines themselves over random schedules; this model has the protocol alone, and
//! every schedule of it within stated bounds. The decisions are production's own functions
//! ([`decide`](cleave_datanode_core::mirror::decide) and
//! [`Resident`](cleave_datanode_core::resident::Resident)); what carries them out (meetings, copies, the
//! compare-and-swap, the mirror) is written anew here, one atomic step each where a crash, a broken
//! connection or a lost reply can come in between.
//!
//! Left out: the catalogs and trimming (C11), grants, read leases, and what an empty log that the operator
//! ordered forgets (the operator was told).
#![forbid(unsafe_code)]

mod controllers;
mod judge;
mod model;
mod state;

pub use model::{Action, Bounds, Fault, Roles};
pub use state::World;
