//! Bugs planted on purpose, so that the judges of the simulated cluster are judged: each breaks one
//! rule in the engines' cores or in the NVMe driver, and a judge that does not find it is worth nothing.
//!
//! Only with the feature `planted-bugs`, which no shell enables, can one be switched on; without it
//! [`is_planted`] is a constant, and the code behind it is not there. One bug at a time and thread.

/// Defines the bugs with the rule that each breaks, so that no list of them can lack one.
macro_rules! bugs {
    ($($(#[$text:meta])+ $bug:ident breaks $rule:literal;)+) => {
        /// A bug.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Planted {
            $($(#[$text])+ $bug,)+
        }

        /// All of them.
        pub const ALL: &[Planted] = &[$(Planted::$bug,)+];

        impl Planted {
            /// The rule that it breaks: of CORRECTNESS, or of DESIGN's rules that hold everywhere.
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Planted::$bug => $rule,)+
                }
            }
        }
    };
}

bugs! {
    /// The active controller acknowledges what the standby does not hold.
    AcknowledgeBeforeMirrored breaks "rule 3.1";
    /// A controller that is alone acknowledges what its drives do not have yet.
    AcknowledgeBeforeOnDrives breaks "C12";
    /// A controller that took the role over, and works alone, gives slots out that the one before may still write to.
    FreeUnderALateWrite breaks "C15";
    /// The log takes a record although one before it is missing.
    TakeGaps breaks "C1";
    /// A write over several slices is completed with its first record.
    CompleteOnFirstPart breaks "C1";
    /// A change over several shares is completed with the first share's part.
    CompleteOnFirstShare breaks "C1";
    /// A share goes to another core with requests in flight.
    MoveUndrained breaks "C1";
    /// A change overtakes one of several parts that it overlaps.
    OvertakeWideChanges breaks "C23";
    /// What a broken connection left unanswered is not sent again.
    ForgetUnanswered breaks "C1";
    /// Replay applies records that are older than what the map has.
    ReplayWithoutVersions breaks "C2";
    /// Commits are applied to the map in the order in which they come.
    ApplyWithoutVersions breaks "C2";
    /// A map run drops the versions that unreleased records can still meet.
    DropVersionsInRuns breaks "C2";
    /// What newer content covers is sent to the log that takes the place of a lost one.
    ResendCovered breaks "C2";
    /// A stripe that was planned under a lost log is committed with the versions of then.
    CommitAcrossLogs breaks "C2";
    /// Reads trust frames and slots without their checks and identities.
    ReadWithoutChecks breaks "C3";
    /// Who looks for damage leaves parity out.
    ScrubSkipsParity breaks "C16";
    /// A rebuild trusts the shards that it solves others from.
    RebuildWithoutChecks breaks "C3";
    /// A stripe's places are swapped before its shards are written there.
    SwapBeforeWritten breaks "C16";
    /// What rotted in a log's memory is left as it is.
    LeaveRot breaks "rule 3.3";
    /// A frame's checksum at rest does not cover its address.
    ChecksumWithoutAddress breaks "C3";
    /// What flash gives is not checked.
    FlashWithoutChecks breaks "C3";
    /// A place of flash that was given to another part while it was read counts as the one that was asked for.
    FlashPlaceNotRechecked breaks "C3";
    /// Flash names stripes by a part of their identity: what one that is gone left is taken for a newer one's.
    StaleSegments breaks "C3";
    /// A commit releases one record more than it names.
    ReleaseTooMuch breaks "C4";
    /// What a stripe holds is released before its commit.
    ReleaseBeforeCommit breaks "C4";
    /// A commit releases records of a vdisk that was struck from it.
    ReleaseStruck breaks "C4";
    /// Zeros and discards are left out of footers.
    LoseZeroEntries breaks "C5";
    /// Partial blocks merge onto published content, not onto the newest.
    MergeOntoPublished breaks "C6";
    /// A write does not wait for an earlier one's partial block that is being read.
    MergeUnserialised breaks "C6";
    /// Partial discards round outward.
    RoundDiscardsOutward breaks "C6";
    /// A controller without a log starts an empty one although its peer has it.
    StartEmptyBesideThePeer breaks "C7";
    /// A standby that comes back without a log becomes a member without a copy.
    EmptyStandbyRejoins breaks "C7";
    /// A vault's image counts for ever.
    LoadOldImage breaks "C7";
    /// Owners of older epochs may append and commit.
    AcceptOldOwners breaks "C8";
    /// Appends are taken after a newer owner's seal; nor is the older one told of it when it asks for its lease.
    AppendAfterSeal breaks "C8";
    /// A map is opened from the catalog before it has every commit that released records: a seal is answered once it
    /// is mirrored, and what waits for the catalog is not applied before the question.
    OpenStaleMap breaks "C8";
    /// A seal is acknowledged while an owner before may hold a read lease.
    AcknowledgeSealEarly breaks "C9";
    /// A host answers reads although its lease has run out.
    ReadPastLease breaks "C9";
    /// Shards count as written before the drive is flushed.
    CommitBeforeFlush breaks "C10";
    /// A controller that stops says that its vault is written before it is durable.
    VaultNotFlushed breaks "C10";
    /// The NVMe driver reports commands as done that failed.
    TrustFailedCommands breaks "C10";
    /// Control records leave the log before the catalogs have synced them.
    TrimBeforeSynced breaks "C11";
    /// Commits and grants have no room of their own in the log.
    NoReserveForCommits breaks "C13";
    /// Slots of an ended grant are given out next, while writes under it are on their way.
    ReuseSlotsEarly breaks "C15";
    /// Slots of an ended grant are never given out again.
    LeakSlots breaks "C15";
    /// A stripe is committed without several of its shards.
    CommitTooFewShards breaks "C16";
    /// A shard is rebuilt onto a drive that has another one of its stripe.
    CrowdDrives breaks "C16";
    /// A commit may refer to a stripe that is freed, or that retires: nothing keeps it while the plan is on its way, and
    /// nobody looks whether its last holder leaves it.
    ReferToFreed breaks "C19";
    /// A vdisk that refers to a stripe is not listed for it.
    ReferWithoutHolding breaks "C19";
    /// A stripe is freed as soon as one vdisk names it no more, whoever else does.
    FreeWhileReferenced breaks "C20";
    /// A vdisk leaves stripes before all pieces of its map are counted.
    FreeBeforeTheCount breaks "C20";
    /// A part of the map leaves memory although no durable piece reflects it.
    EvictChanged breaks "C21";
    /// A stripe is freed that a commit after the run's frontier needs.
    FreeAheadOfTheRun breaks "C21";
    /// A map run claims commits that it does not reflect.
    RunAheadOfItsFrontier breaks "C21";
    /// Overlapping writes are published in the order in which they are mirrored.
    PublishOutOfOrder breaks "C23";
    /// Reads return mirrored content before its write is published.
    ReadUnpublished breaks "C23";
    /// New requests are taken before those that were in flight when the engine died.
    ReexecuteLate breaks "C24";
    /// Requests that were in flight when the engine died are taken again, the newest first.
    ResumeNewestFirst breaks "C24";
    /// Records of a deleted vdisk stay in the log.
    KeepDeletedRecords breaks "C28";
    /// A core counts a key's frames anew with every vdisk that it opens.
    ReuseNonces breaks "C29";
}

/// Whether bugs can be planted in this program. No shell is built so.
pub const COMPILED_IN: bool = cfg!(feature = "planted-bugs");

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
