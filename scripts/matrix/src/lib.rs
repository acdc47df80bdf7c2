//! The crash matrix and the rot matrix: what is persisted is broken in every place, one at a time.
//!
//! The *crash matrix* cuts a machine's power at the 1st, 2nd, 3rd … device operation of everything that persists
//! something, once for each way in which what was not flushed may remain. Afterwards the cluster goes on, and
//! what was acknowledged is there. The *rot matrix* damages every structure at rest, bit by bit, piece for piece;
//! every damage is found, solved around where redundancy allows it, and else an error, never wrong data.
//!
//! All of it is production code over simulated devices; nothing is random.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`rig`] | a small cluster whose machines lose power, and a guest that knows what it wrote |
//! | [`crash`] | the crash matrix |
//! | [`rot`] | the rot matrix |
//! | [`units`] | which parts there are, played on all cores |
//! | [`tally`] | what was done, in figures |
#![forbid(unsafe_code)]

pub mod crash;
pub mod rig;
pub mod rot;
pub mod tally;
pub mod units;

#[cfg(feature = "planted-bugs")]
use cleave_runtime::planted::Planted;

/// The planted bugs that the matrices must find: of what is persisted, in which order, and of what is read back.
#[cfg(feature = "planted-bugs")]
pub const FOUND: &[Planted] = &[
    Planted::ReadWithoutChecks,
    Planted::LeaveRot,
    Planted::LoseZeroEntries,
    Planted::EmptyStandbyRejoins,
    Planted::LoadOldImage,
    Planted::CommitBeforeFlush,
    Planted::KeepDeletedRecords,
];

pub use tally::{Extent, Tally};
pub use units::{Progress, Unit};
