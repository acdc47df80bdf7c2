//! Everything that can happen, and how it is told. A new kind is a line of [`KINDS`].

use super::Severity::{self, Error, Info, Warning};

/// To what something happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// A process: the engine that tells, or one that it knows of.
    Engine(String),
    /// A controller of a data node.
    Controller(String),
    /// A host.
    Host(String),
    /// A vdisk, by name where that is known, else by number.
    Vdisk(String),
    /// A drive of the pool, by number.
    Drive(u16),
    /// A device of flash.
    Flash(String),
    /// The log of a data node, by number.
    Log(u16),
    /// The vault of a controller.
    Vault(String),
    /// The pool of a data node, by number.
    Pool(u16),
    /// The coordinator store.
    Store,
    /// An NVMe controller that is driven from userspace.
    Nvme(String),
}

impl Subject {
    /// The sort of thing.
    pub fn sort(&self) -> &'static str {
        match self {
            Subject::Engine(_) => "engine",
            Subject::Controller(_) => "controller",
            Subject::Host(_) => "host",
            Subject::Vdisk(_) => "vdisk",
            Subject::Drive(_) => "drive",
            Subject::Flash(_) => "flash",
            Subject::Log(_) => "log",
            Subject::Vault(_) => "vault",
            Subject::Pool(_) => "pool",
            Subject::Store => "store",
            Subject::Nvme(_) => "nvme",
        }
    }

    /// Which of them.
    pub fn name(&self) -> String {
        match self {
            Subject::Engine(name)
            | Subject::Controller(name)
            | Subject::Host(name)
            | Subject::Vdisk(name)
            | Subject::Flash(name)
            | Subject::Vault(name)
            | Subject::Nvme(name) => name.clone(),
            Subject::Drive(number) | Subject::Log(number) | Subject::Pool(number) => {
                number.to_string()
            }
            Subject::Store => String::new(),
        }
    }
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident, $name:literal, $severity:ident, $text:literal, $action:literal;)*) => {
        /// What happened.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $kind,)* }

        /// All of them.
        pub const KINDS: &[Kind] = &[$(Kind::$kind,)*];

        impl Kind {
            /// For programs; never changed.
            pub fn name(self) -> &'static str {
                match self { $(Kind::$kind => $name,)* }
            }
            /// How much it matters.
            pub fn severity(self) -> Severity {
                match self { $(Kind::$kind => $severity,)* }
            }
            /// In words that follow the subject's name.
            pub fn text(self) -> &'static str {
                match self { $(Kind::$kind => $text,)* }
            }
            /// What a person should do; empty when nothing.
            pub fn action(self) -> &'static str {
                match self { $(Kind::$kind => $action,)* }
            }
        }
    };
}

kinds! {
    /// An engine began.
    Started, "started", Info, "started", "";
    /// And found that the one before was not stopped.
    StartedUnclean, "started_unclean", Warning, "started after an end that was no stop",
        "look at its log, and at the kernel's, for why it ended";
    /// It was told to stop.
    Stopping, "stopping", Info, "is stopping, as it was told", "";
    /// It ended as it should.
    Stopped, "stopped", Info, "stopped", "";
    /// It cannot go on.
    Failed, "failed", Error, "cannot go on, and ends", "mend the cause; then start it again";
    /// A child of the supervisor ended by itself.
    Ended, "ended", Error, "ended without being told to", "start it with: cleave restart NAME";
    /// The store does not answer.
    StoreAway, "store_away", Warning, "does not answer: reads and writes go on, no role or owner can change",
        "bring the store back";
    /// It does again.
    StoreBack, "store_back", Info, "answers again", "";
    /// The other controller is away.
    PeerAway, "peer_away", Warning, "is not reached by its peer any more: the log is in one controller's memory, writes wait",
        "bring the controller back";
    /// Both hold the log.
    Mirrored, "mirrored", Info, "holds the same log as its peer", "";
    /// This controller is active now, after another.
    TookOver, "took_over", Warning, "took the active role over", "bring the other controller back";
    /// It was active, and is fenced.
    SteppedDown, "stepped_down", Warning, "is active no more: it is fenced, and serves no host", "";
    /// It acknowledges alone.
    Alone, "alone", Warning, "goes on alone: its log is on three drives", "bring the other controller back";
    /// It would, and cannot.
    NotAlone, "not_alone", Error, "cannot go on alone: writes wait", "mend the cause, or bring the other controller back";
    /// A drive of the log on drives failed.
    AloneBroken, "alone_broken", Error, "goes on alone, and a drive with its log failed; it takes three others", "";
    /// Nobody has the log.
    LogLost, "log_lost", Error, "is held by no controller, and no vault has it",
        "bring the controller back that has it; or give it up: cleave start-empty --accept-data-loss";
    /// An empty one was begun.
    LogEmpty, "log_empty", Warning, "was begun empty", "";
    /// A host learnt that.
    LogReplaced, "log_replaced", Warning, "is another one now: records are sent again", "";
    /// A record rotted in memory.
    LogRot, "log_rot", Warning, "has a record that rotted in memory; the peer is asked for its copy",
        "have the machine's memory tested when this is told again";
    /// And was mended.
    LogMended, "log_mended", Info, "has the record again, from the peer's copy", "";
    /// And could not be.
    LogRecordLost, "log_record_lost", Error, "has a record of which no copy can be read",
        "restore these blocks of the vdisk, unless its host still has them";
    /// The log is saved.
    VaultWritten, "vault_written", Info, "has the log", "";
    /// It was loaded.
    VaultLoaded, "vault_loaded", Info, "was loaded", "";
    /// The image cannot be used.
    VaultDamaged, "vault_damaged", Error, "cannot be used", "bring the other controller back, which may hold the log";
    /// The log on drives was loaded.
    LogLoaded, "log_loaded", Info, "was loaded from the drives of a controller that was alone", "";
    /// It cannot be.
    LogUnreadable, "log_unreadable", Error, "cannot be read from the drives of a controller that was alone", "bring these drives back";
    /// A drive failed a request.
    DriveFault, "drive_fault", Warning, "failed a request", "replace the drive when this is told again";
    /// A shard is not what should be there.
    ShardDamaged, "shard_damaged", Warning, "holds something else than the shard that should be there; it is solved from parity", "";
    /// It was written anew.
    ShardRepaired, "shard_repaired", Info, "had a damaged shard, which was written anew elsewhere",
        "replace the drive when this is told again and again";
    /// And what could not be.
    StripeDamaged, "stripe_damaged", Error, "found damage that cannot be mended",
        "bring lost drives back; else restore what cannot be read of the vdisks that are named";
    /// The scrub is through.
    Scrubbed, "scrubbed", Info, "has looked at all stripes", "";
    /// And found what it could not mend.
    ScrubbedDamaged, "scrubbed_damaged", Error, "has looked at all stripes, and could not mend some",
        "look at the events before this one for which: cleave events";
    /// A drive is not used any more.
    DriveLost, "drive_lost", Error, "is lost: what it held is solved from parity", "replace the drive";
    /// A drive could not be opened at the start.
    DriveMissing, "drive_missing", Error, "cannot be used since the start", "bring the drive back, then start the controller again";
    /// A host is connected.
    HostConnected, "host_connected", Info, "is connected", "";
    /// It is not any more.
    HostGone, "host_gone", Warning, "has no connection any more",
        "if it stays away, have another host serve its vdisks: cleave vdisk attach NAME --host N --take-over";
    /// What it may write into is taken back.
    HostGrantsEnded, "host_grants_ended", Warning, "was away for too long: what it was granted is free again", "";
    /// Its vdisk has another owner.
    OwnerWaits, "owner_waits", Info, "has a new owner, which waits until the one before can answer no read any more", "";
    /// The vdisk is another host's.
    Fenced, "fenced", Warning, "is another host's, or deleted: it is not served here any more", "";
    /// The vdisk is not served.
    NotServed, "not_served", Error, "cannot be served", "mend the cause; it is tried again by itself";
    /// It is.
    ServedAgain, "served_again", Info, "is served again", "";
    /// It is open already elsewhere on this host.
    LockWaits, "lock_waits", Info, "is served by another process of this host; waiting for its end", "";
    /// Reads wait for leases.
    LeaseLost, "lease_lost", Warning, "gives this host no read lease: reads wait", "bring the active controller's peer or the store back";
    /// And do not any more.
    LeaseBack, "lease_back", Info, "gives this host read leases again", "";
    /// A host lost its way to a controller.
    LinkLost, "link_lost", Warning, "is not reached by this host: writes wait", "";
    /// And found it again.
    LinkBack, "link_back", Info, "is reached by this host again", "";
    /// The pool has no room, or takes no shards.
    PoolShort, "pool_short", Error, "takes no content: writes stall when the log is full", "free space, or bring drives back";
    /// It has again.
    PoolBack, "pool_back", Info, "takes content again", "";
    /// A range could not be read where it should be, and was solved.
    ReadSolved, "read_solved", Warning, "has a shard that cannot be read; its content was solved from parity", "";
    /// Requests of its guest failed.
    GuestErrors, "guest_errors", Error, "answered requests of its guest with errors", "look at what else happened then; bring lost drives back";
    /// A logged block is damaged.
    BlockDamaged, "block_damaged", Error, "has a block that rotted in memory: reads of it fail until it is written again",
        "restore the block; have the machine's memory tested";
    /// Flash is in use.
    FlashInUse, "flash_in_use", Info, "is in use", "";
    /// Flash failed a request or a check.
    FlashFault, "flash_fault", Warning, "failed; reads are answered by the pool", "";
    /// A place is not used any more.
    FlashPlaceRetired, "flash_place_retired", Warning, "lost the content of a place, which is retired", "";
    /// A device is not used any more.
    FlashRetired, "flash_retired", Error, "is retired: its reads go to the pool",
        "replace the device: cleave flash add DEVICE";
    /// An operator took it out.
    FlashTaken, "flash_taken", Info, "was taken out", "";
    /// It cannot be used.
    FlashRefused, "flash_refused", Error, "cannot be used", "mend the cause; then: cleave flash add DEVICE";
    /// There is no space behind a sparse file.
    FlashNoSpace, "flash_no_space", Warning, "has no space behind it: nothing is written to it for a while", "free space in its file system";
    /// It is too small.
    FlashSmall, "flash_small", Warning, "holds less than the open vdisks: some reads go to the pool", "add flash: cleave flash add DEVICE";
    /// Not any more.
    FlashEnough, "flash_enough", Info, "holds what the open vdisks hold", "";
    /// An NVMe controller says something.
    NvmeTold, "nvme", Warning, "reports", "";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_are_of_programs_and_each_another_one() {
        let names: BTreeSet<&str> = KINDS.iter().map(|kind| kind.name()).collect();
        assert_eq!(names.len(), KINDS.len());
        for kind in KINDS {
            let plain = |c: char| c.is_ascii_lowercase() || c == '_';
            assert!(kind.name().chars().all(plain), "{kind:?}");
            assert!(!kind.text().is_empty(), "{kind:?}");
        }
    }

    #[test]
    fn what_needs_a_person_says_what_to_do() {
        let mute = [Kind::AloneBroken];
        for kind in KINDS.iter().filter(|kind| kind.severity() == Error && !mute.contains(kind)) {
            assert!(!kind.action().is_empty(), "{kind:?}");
        }
    }
}
