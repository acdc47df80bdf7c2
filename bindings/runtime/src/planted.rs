//! Bugs planted on purpose, so that the judges of the simulated cluster are judged: each breaks one
//! rule in the engines' cores, and a judge that does not find it is worth nothing.
//!
//! Only with the feature `planted-bugs`, which no shell enables, can one be switched on; without it
//! [`is_planted`] is a constant, and the code behind it is not there. One bug at a time and thread.

/// A bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// The active controller acknowledges what the standby does not hold (DESIGN rule 3.1).
    AcknowledgeBeforeMirrored,
    /// Replay applies records that are older than what the map has (C2).
    ReplayWithoutVersions,
    /// Reads trust frames and slots without their checks and identities (C3).
    ReadWithoutChecks,
    /// A commit releases one record more than it names (C4).
    ReleaseTooMuch,
    /// Zeros and discards are left out of footers (C5).
    LoseZeroEntries,
    /// Partial blocks merge onto published content, not onto the newest (C6).
    MergeOntoPublished,
    /// A controller without a log starts an empty one although its peer has it (C7).
    StartEmptyBesideThePeer,
    /// Owners of older epochs may append and commit (C8).
    AcceptOldOwners,
    /// Shards count as written before the drive is flushed (C10).
    CommitBeforeFlush,
    /// A map is opened from the catalog before it has every commit that released records (C8, C11).
    OpenStaleMap,
    /// Slots of an ended grant are given out while writes under it are on their way (C15).
    ReuseSlotsEarly,
    /// A map run claims commits that it does not reflect (C21).
    RunAheadOfItsFrontier,
    /// A commit may refer to a stripe that is freed (C19).
    ReferToFreed,
    /// A vdisk that refers to a stripe is not listed for it (C19).
    ReferWithoutHolding,
    /// A stripe is freed as soon as one vdisk names it no more, whoever else does (C20).
    FreeWhileReferenced,
    /// A stripe is freed that a commit after the run's frontier needs (C21).
    FreeAheadOfTheRun,
    /// Overlapping writes are published in the order in which they are mirrored (C23).
    PublishOutOfOrder,
    /// Reads return mirrored content before its write is published (C23).
    ReadUnpublished,
}

/// All of them.
pub const ALL: [Planted; 18] = [
    Planted::AcknowledgeBeforeMirrored,
    Planted::ReplayWithoutVersions,
    Planted::ReadWithoutChecks,
    Planted::ReleaseTooMuch,
    Planted::LoseZeroEntries,
    Planted::MergeOntoPublished,
    Planted::StartEmptyBesideThePeer,
    Planted::AcceptOldOwners,
    Planted::CommitBeforeFlush,
    Planted::OpenStaleMap,
    Planted::ReuseSlotsEarly,
    Planted::RunAheadOfItsFrontier,
    Planted::ReferToFreed,
    Planted::ReferWithoutHolding,
    Planted::FreeWhileReferenced,
    Planted::FreeAheadOfTheRun,
    Planted::PublishOutOfOrder,
    Planted::ReadUnpublished,
];

#[cfg(feature = "planted-bugs")]
mod switch {
    use super::Planted;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
    }

    /// Plants a bug in everything that this thread runs from now on; `None` removes it.
    pub fn plant(bug: Option<Planted>) {
        PLANTED.set(bug);
    }

    /// Whether this bug is planted.
    pub fn is_planted(bug: Planted) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "planted-bugs")]
pub use switch::{is_planted, plant};

/// Whether this bug is planted: never.
#[cfg(not(feature = "planted-bugs"))]
#[inline(always)]
pub const fn is_planted(_: Planted) -> bool {
    false
}
