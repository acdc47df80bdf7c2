//! Named places at which a process can be made to die, so that tests see what each moment between two
//! effects leaves behind.
//!
//! A place is where state changes hands: something is in one place and not yet in the next one. Code
//! says [`reached`] there. Unless the process was armed at its start (`cleave-process` does it, by an
//! environment variable) that is one load of a byte which nobody writes, and a comparison with a
//! constant: no call, no lock. Armed, the process ends when it comes to the place for the n-th
//! time. What "ends" means is the shell's to say; nothing here knows of processes.
//!
//! `scripts/torture` makes real processes die at every one of [`ALL`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, AtomicU32, Ordering};

macro_rules! points {
    ($($(#[$meta:meta])* $point:ident = $name:literal,)*) => {
        /// A place where the process can be made to die.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Point {
            $($(#[$meta])* $point,)*
        }

        /// All of them.
        pub const ALL: &[Point] = &[$(Point::$point,)*];

        impl Point {
            /// Its name: which process comes by, what it does, and how far it is.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Point::$point => $name,)*
                }
            }
        }
    };
}

points! {
    // The host engine: a guest's requests (C24).
    /// The inflight region says that a request was taken; the engine does not have it yet.
    HostRequestTaken = "host.request.taken",
    /// Data and status are in the guest's memory; nothing says so.
    HostRequestAnswered = "host.request.answered",
    /// The inflight region says that a request is about to be published; the used ring does not.
    HostRequestPublishing = "host.request.publishing",
    /// The used index says that a request is done; the inflight region still says that it is in flight.
    HostRequestPublished = "host.request.published",
    /// The request is not in flight any more; the region's own used index is behind.
    HostRequestUnmarked = "host.request.unmarked",
    /// What a predecessor left in flight was found, and nothing of it was done again.
    HostRequestsFound = "host.requests.found",
    // The host engine: the log (C1, C4, C23).
    /// A record is in the write buffer, with its number; it was not sent.
    HostRecordBuffered = "host.record.buffered",
    /// An append was given to the link.
    HostAppendSent = "host.append.sent",
    /// Records are known to be mirrored; their writes are not published.
    HostAppendMirrored = "host.append.mirrored",
    /// Another connection has begun, and what was not mirrored is to be sent again.
    HostAppendsResent = "host.appends.resent",
    // The host engine: destage (C10, C21).
    /// Slots were granted, and nothing was written to them.
    HostGranted = "host.granted",
    /// A stripe is packed, and none of its shards was sent.
    HostStripePacked = "host.stripe.packed",
    /// One shard is durable, others may not be.
    HostShardWritten = "host.shard.written",
    /// All shards are durable; no commit was sent.
    HostShardsWritten = "host.shards.written",
    /// A commit is mirrored; the map does not have it.
    HostCommitted = "host.committed",
    /// The map has a commit; its records are not released here.
    HostCommitApplied = "host.commit.applied",
    /// A map run has its frontier, and no piece was written.
    HostRunBegun = "host.run.begun",
    /// Pieces of a run are in a stripe that is not committed.
    HostRunPieces = "host.run.pieces",
    /// The commit that names a run is mirrored; this process does not go by it yet.
    HostRunCommitted = "host.run.committed",
    // The host engine: flash, which nothing depends on (rule 3.4).
    /// Flash has a stripe's parts; the stripe is not committed.
    HostFlashKept = "host.flash.kept",
    /// A header that names parts is written, and not flushed.
    HostFlashHeader = "host.flash.header",
    /// All headers of a device were read; nothing was read by them.
    HostFlashScanned = "host.flash.scanned",
    // The host engine: opening and closing (C8, C25, C28).
    /// The vdisk's lock is held, and no new epoch was taken.
    HostLocked = "host.locked",
    /// The store has the new epoch; the log was not sealed.
    HostEpochTaken = "host.epoch.taken",
    /// The log is sealed; nothing was read.
    HostSealed = "host.sealed",
    /// The durable map was read; no record was fetched.
    HostMapRead = "host.map.read",
    /// Unreleased records are in the buffer; nothing is served.
    HostRecordsFetched = "host.records.fetched",
    /// A core has let go of a share of a vdisk, and another one is to open it.
    HostHanded = "host.handed",
    /// The vdisk is closed; the store does not say that nobody runs.
    HostClosed = "host.closed",
    /// The store says that nobody runs; the process does.
    HostReleased = "host.released",
    /// A vdisk is deleted from the log; its device and lock are still there.
    HostDeleted = "host.deleted",

    // A controller: the log and its mirror (C1, C4, C7).
    /// Active: records are in the log; they were not forwarded.
    LogAppended = "log.appended",
    /// Active: records were given to the link to the standby.
    LogForwarded = "log.forwarded",
    /// Standby: records are in its log; it did not say so.
    LogReceived = "log.received",
    /// Standby: it gave the link its answer.
    LogAnswered = "log.answered",
    /// Active: the standby holds records; nothing was done by that.
    LogHeld = "log.held",
    /// Active: hosts' links have the acknowledgement.
    LogAcknowledged = "log.acknowledged",
    /// Either: a commit has taken effect in the log, and was not given to the catalog.
    LogReleased = "log.released",
    // A controller: decisions in the log (C4, C8, C15, C28).
    /// A host's new incarnation is in the log.
    HostStartAppended = "log.host-start.appended",
    /// A seal is in the log.
    SealAppended = "log.seal.appended",
    /// A grant is in the log.
    GrantAppended = "log.grant.appended",
    /// The end of grants is in the log.
    GrantEndAppended = "log.grant-end.appended",
    /// A commit is in the log.
    CommitAppended = "log.commit.appended",
    /// A deletion is in the log.
    DeleteAppended = "log.delete.appended",
    /// A drive is retired, and the log says so.
    DriveAppended = "log.drive.appended",
    /// Slots that another controller may still write to are held by a record; nobody acknowledges alone yet (C15).
    HoldAppended = "log.hold.appended",
    /// They are held no more, by a record that is not mirrored.
    FreeHeldAppended = "log.free-held.appended",
    /// Shards lie elsewhere, by a record that is not mirrored (C16).
    SwapAppended = "log.swap.appended",
    // A controller: drives (C10, C17).
    /// A slot is written, and not flushed.
    SlotWritten = "drive.slot.written",
    /// A slot is flushed; nobody was told.
    SlotFlushed = "drive.slot.flushed",
    /// Slots are lent for shards that are to be written anew; nothing was written to them.
    RebuildLent = "rebuild.lent",
    /// The shards are durable in their new slots; no record says so.
    RebuildWritten = "rebuild.written",
    /// The record that says so is mirrored; the catalogs may not have it.
    RebuildSwapped = "rebuild.swapped",
    /// The store has how far the scrub is, or an operator's word to hurry; the process goes by another revision of it.
    ScrubRecorded = "scrub.recorded",
    /// One copy of a superblock was written again.
    SuperblockWritten = "drive.superblock.written",
    // A controller: the catalog (C11).
    /// Records are about to be applied to the catalog.
    CatalogApplying = "catalog.applying",
    /// Records are in the catalog, durably; the core does not know.
    CatalogApplied = "catalog.applied",
    /// The catalog is about to be replaced by the peer's, and has been marked so.
    CatalogRestoreBegun = "catalog.restore.begun",
    /// A piece of the peer's catalog is there.
    CatalogRestorePiece = "catalog.restore.piece",
    /// The catalog is the peer's; the core does not know.
    CatalogRestored = "catalog.restored",
    // A controller: roles (C7).
    /// Either: the old log was given up, the copy has not begun.
    CopyBegun = "mirror.copy.begun",
    /// Either: the copy is complete, and the peer was not told.
    CopyTaken = "mirror.copy.taken",
    /// Active: the log is on both, and the store does not say so.
    JoinPrepared = "mirror.join.prepared",
    /// Active: the store has both as members; this process does not go by it yet.
    JoinRecorded = "mirror.join.recorded",
    /// Either: the mirror runs; the image that was loaded is not marked as consumed.
    Joined = "mirror.joined",
    /// Either: the store has it as the active one; it does not go by that yet.
    RoleTaken = "role.taken",
    /// Either: it was superseded, and serves no more.
    RoleLeft = "role.left",
    /// A session of the log of a controller that is alone is about to be filled (C12).
    SoloBegun = "solo.begun",
    /// It is on three drives; the record does not name it.
    SoloFilled = "solo.filled",
    /// The record names it; nothing was acknowledged by it.
    SoloRecorded = "solo.recorded",
    /// A segment is on the drives; nothing of it was acknowledged.
    SoloAppended = "solo.appended",
    /// The log was loaded from the drives; the record names the session still.
    SoloLoaded = "solo.loaded",
    // A controller: the vault (C7, C17).
    /// The image's pieces are written, not flushed; nothing names them.
    VaultPieces = "vault.pieces",
    /// The image's pieces are durable; nothing names them.
    VaultFlushed = "vault.flushed",
    /// The header that names the image is written, not flushed.
    VaultHeader = "vault.header",
    /// The image is durable; the process still runs.
    VaultWritten = "vault.written",
    /// An image was loaded at start; the log counts for nothing yet.
    VaultLoaded = "vault.loaded",

    // Whoever owns the coordinator store.
    /// A transaction is prepared, and not committed.
    StorePrepared = "store.prepared",
    /// A transaction is durable; nobody was told.
    StoreCommitted = "store.committed",

    // The supervisor of `cleave dev`.
    /// A new cluster's directory is marked as incomplete.
    DevMarked = "dev.marked",
    /// The certificate authority is written, no engine's certificate is.
    DevAuthority = "dev.authority",
    /// All certificates are written.
    DevCertificates = "dev.certificates",
    /// The drives are made; the store does not know them.
    DevDrives = "dev.drives",
    /// The store has the cluster's records; the settings are not written.
    DevRecords = "dev.records",
    /// The settings are written; the directory is still marked as incomplete.
    DevSettings = "dev.settings",
    /// The store is served.
    DevStore = "dev.store",
    /// The engines' configurations are written.
    DevConfigured = "dev.configured",
    /// One engine was started.
    DevEngineStarted = "dev.engine.started",
    /// All vdisks are served; nobody was told.
    DevReady = "dev.ready",
    /// The host engine has stopped; the controllers were not told to.
    DevHostStopped = "dev.host.stopped",
    /// All engines have stopped.
    DevStopped = "dev.stopped",
}

/// What no point is.
const NONE: u8 = u8::MAX;
const _: () = assert!(ALL.len() < NONE as usize);

/// The point at which this process ends. Written once, before anything else runs.
static ARMED: AtomicU8 = AtomicU8::new(NONE);
/// How many times it is still to be reached.
static LEFT: AtomicU32 = AtomicU32::new(0);
static END: OnceLock<fn(Point)> = OnceLock::new();

impl Point {
    /// The point of that name.
    pub fn of_name(name: &str) -> Option<Point> {
        ALL.iter().copied().find(|point| point.name() == name)
    }
}

/// Makes this process call `end` when it reaches the point for the `nth` time (from 1). Once a
/// process; a second call changes nothing and gives false.
pub fn arm(point: Point, nth: u32, end: fn(Point)) -> bool {
    assert!(nth > 0, "a point is reached for the first time at first");
    if END.set(end).is_err() {
        return false;
    }
    LEFT.store(nth, Ordering::Relaxed);
    // Whoever sees the point sees the rest.
    ARMED.store(point as u8, Ordering::Release);
    true
}

/// This is the place.
#[inline(always)]
pub fn reached(point: Point) {
    if ARMED.load(Ordering::Relaxed) == point as u8 {
        count(point);
    }
}

#[cold]
#[inline(never)]
fn count(point: Point) {
    // A second thread may pass while the first one ends the process: once is enough.
    if LEFT.fetch_sub(1, Ordering::AcqRel) == 1 {
        END.get().expect("set before the point was")(point);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn names_are_distinct_and_found() {
        for (place, point) in ALL.iter().enumerate() {
            assert_eq!(*point as usize, place);
            assert_eq!(Point::of_name(point.name()), Some(*point));
            let plain = |byte: u8| byte.is_ascii_lowercase() || b".-".contains(&byte);
            assert!(point.name().bytes().all(plain), "{}", point.name());
        }
        assert_eq!(Point::of_name("host"), None);
    }

    /// The only test that arms: it is for the whole process.
    #[test]
    fn it_ends_at_the_nth_time_of_its_own_point() {
        static ENDED: AtomicUsize = AtomicUsize::new(0);
        reached(Point::HostDeleted);
        assert!(arm(Point::HostDeleted, 3, |point| {
            assert_eq!(point, Point::HostDeleted);
            ENDED.fetch_add(1, Ordering::Relaxed);
        }));
        assert!(!arm(Point::HostClosed, 1, |_| unreachable!("armed once")));
        for ended in [0, 0, 1, 1] {
            reached(Point::HostDeleted);
            reached(Point::HostClosed);
            assert_eq!(ENDED.load(Ordering::Relaxed), ended);
        }
    }
}
