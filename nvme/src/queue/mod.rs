//! Queues: rings of commands and of completions, the commands between them, and queue pairs for
//! I/O.
//!
//! Submission and completion queues are different types: the host writes one and reads the other,
//! and their indices must never be mixed up.

mod channel;
mod completion;
mod control;
mod lists;
mod pair;
mod parts;
mod slots;
mod submission;
#[cfg(test)]
mod tests;

pub(crate) use channel::Channel;
pub(crate) use control::{PairControl, PairState, Phase, Shared};
pub(crate) use lists::SglSupport;
pub(crate) use pair::transfer_max;
pub use pair::{PairRings, QueuePair, Refused};
pub use parts::{Completion, Operation, Request};
pub(crate) use slots::SLOTS_MAX;
