//! The contracts between Cleave's logic and the world, and the local executor.
//!
//! The cores of both engines see time, randomness, drives and links only through the traits in
//! this crate; `runtime/real` implements them with io_uring and QUIC, `runtime/sim` with virtual
//! time and one seed. All contracts have the completion shape (DESIGN seam 1): submit with a
//! token and an owned buffer, poll a batch of completions. Nothing here blocks, and everything is
//! used from one thread: a core shares nothing.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`time`] | [`Moment`](time::Moment), [`Clock`](time::Clock) |
//! | [`buffer`] | page-aligned pooled buffers |
//! | [`message`] | a received message as the chunks in which it arrived |
//! | [`links`] | connections between engines |
//! | [`drives`] | raw drives and drive files; async wrappers |
//! | [`executor`] | local tasks, timers, wakes from other threads |
//! | [`hash`] | a hasher without random order |
//! | [`ring`] | bounded single-producer rings between cores |
//! | [`sleep`] | the flag by which a core's wakers see it sleep |
//! | [`sync`] | local channels and gates for tasks of one core |
//! | [`random`] | randomness as an input |
//! | [`planted`] | bugs that judges of tests must find |
//! | [`crash_points`] | places at which tests make real processes die |

mod atomic;
pub mod buffer;
pub mod crash_points;
pub mod drives;
pub mod executor;
pub mod hash;
pub mod links;
#[cfg(test)]
mod loomed;
pub mod message;
pub mod planted;
pub mod random;
pub mod ring;
pub mod sleep;
pub mod sync;
pub mod time;

/// Chosen by whoever submits a request; comes back in its completion, unread.
pub type Token = u64;
