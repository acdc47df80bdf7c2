//! What an operator should know of that happened to a controller: plain values that the shell takes, and dates.
//!
//! Invariants: at most [`NOTICES_MAX`] wait, in memory that is there from the start; what is the same as the newest that
//! waits is counted with it, and what comes when there are as many is dropped and counted. Nothing here is on the way of a request that
//! succeeds. A crash loses what the shell had not taken; nothing depends on it.

use cleave_coordinator::records::ScrubFigures;
use cleave_format::ids::{
    DriveId, Epoch, HostId, Incarnation, Position, SlotIndex, StripeId, VdiskId,
};
use cleave_wire::ShardFault;
use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

/// Most notices that wait.
pub const NOTICES_MAX: usize = 128;

/// An image of the log that was written or loaded. How long a GiB takes says for how long the power must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultImage {
    /// Entries of the log.
    pub entries: u64,
    /// Bytes of the image.
    pub bytes: u64,
    /// How long it took.
    pub took: Duration,
}

impl fmt::Display for VaultImage {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (entries, took) = (self.entries, self.took.as_secs_f64());
        let mebibytes = self.bytes as f64 / f64::from(1 << 20);
        write!(out, "{entries} entries, {mebibytes:.1} MiB in {took:.2} s")?;
        // Of a short one what is around it takes most of the time.
        match mebibytes >= 1.0 {
            true => write!(out, " ({:.1} s per GiB)", took * 1024.0 / mebibytes),
            false => Ok(()),
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The mirror is broken.
    PeerAway {
        /// Why.
        reason: String,
    },
    /// Both controllers hold the log.
    Mirrored {
        /// This one is active.
        active: bool,
    },
    /// This controller took the active role over.
    TookOver {
        /// The new role epoch.
        epoch: u64,
        /// From here on the log is this controller's.
        origin: Position,
    },
    /// Another controller is active by the record: this one was fenced.
    SteppedDown,
    /// It acknowledges alone (C12).
    Alone {
        /// Where its log is.
        drives: Vec<u16>,
    },
    /// It does not, for now.
    NotAlone {
        /// Why.
        reason: String,
    },
    /// A drive of the log on drives failed.
    AloneBroken,
    /// Nobody holds the log (C7).
    LogLost {
        /// What is known of it.
        reason: String,
    },
    /// An empty log was begun.
    LogEmpty {
        /// From here on.
        next: Position,
    },
    /// The log is in the vault.
    VaultWritten(VaultImage),
    /// The log was loaded from the vault.
    VaultLoaded(VaultImage),
    /// The vault's image cannot be used.
    VaultDamaged {
        /// Why.
        reason: String,
    },
    /// The log was loaded from the drives.
    LogLoaded {
        /// Which.
        drives: Vec<u16>,
        /// Its entries.
        entries: u64,
    },
    /// It could not be.
    LogUnreadable {
        /// From which.
        drives: Vec<u16>,
        /// Why.
        reason: String,
    },
    /// An entry of the log rotted in memory.
    Rotted {
        /// Which.
        position: Position,
    },
    /// It was mended.
    Mended {
        /// Which.
        position: Position,
    },
    /// It could not be.
    RecordLost {
        /// Which.
        position: Position,
        /// Whose, where that is known.
        vdisk: Option<VdiskId>,
    },
    /// A drive failed a request.
    DriveFault {
        /// Which.
        drive: DriveId,
        /// At which slot.
        slot: SlotIndex,
        /// How.
        reason: String,
    },
    /// A slot holds another shard than it should, or none.
    ShardDamaged {
        /// Which drive.
        drive: DriveId,
        /// Which slot.
        slot: SlotIndex,
    },
    /// A damaged shard was written anew, elsewhere.
    ShardRepaired {
        /// On which drive it was.
        drive: DriveId,
        /// In which slot.
        slot: SlotIndex,
    },
    /// What is damaged of a stripe could not be mended.
    StripeDamaged {
        /// Which.
        stripe: StripeId,
        /// Vdisks that may name it.
        vdisks: Vec<VdiskId>,
        /// Why not.
        reason: String,
    },
    /// All stripes were looked at, as an operator said, or there was damage.
    Scrubbed(ScrubFigures),
    /// A drive is lost.
    DriveLost {
        /// Which.
        drive: DriveId,
        /// Why.
        reason: String,
    },
    /// A host has a log connection.
    HostConnected {
        /// Which.
        host: HostId,
        /// Which start of its engine.
        incarnation: Incarnation,
    },
    /// It has none any more.
    HostGone {
        /// Which.
        host: HostId,
        /// Which start of its engine.
        incarnation: Incarnation,
    },
    /// Its grants ended.
    GrantsEnded {
        /// Which start of an engine's.
        incarnation: Incarnation,
        /// How many.
        grants: usize,
    },
    /// A vdisk has a new owner, which waits for the lease of the one before (C9).
    OwnerWaits {
        /// Which.
        vdisk: VdiskId,
        /// The new owner's epoch.
        epoch: Epoch,
        /// The new owner.
        host: HostId,
    },
}

impl Notice {
    /// A range of a slot was not read.
    pub(crate) fn of_fault(drive: DriveId, slot: SlotIndex, fault: ShardFault) -> Notice {
        match fault {
            ShardFault::Identity => Notice::ShardDamaged { drive, slot },
            fault => Notice::DriveFault { drive, slot, reason: fault.to_string() },
        }
    }
}

/// See the module's page.
#[derive(Debug)]
pub(crate) struct Notices {
    waiting: VecDeque<(Notice, u64)>,
    dropped: u64,
}

impl Default for Notices {
    fn default() -> Notices {
        Notices { waiting: VecDeque::with_capacity(NOTICES_MAX), dropped: 0 }
    }
}

impl Notices {
    /// Something happened.
    pub fn tell(&mut self, notice: Notice) {
        let full = self.waiting.len() == NOTICES_MAX;
        match self.waiting.back_mut() {
            Some((newest, count)) if *newest == notice => *count += 1,
            _ if full => self.dropped += 1,
            _ => self.waiting.push_back((notice, 1)),
        }
    }

    /// The oldest that waits, and how often it happened in a row.
    pub fn next(&mut self) -> Option<(Notice, u64)> {
        self.waiting.pop_front()
    }

    /// Those that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_says_what_a_gib_takes() {
        let image = |bytes| VaultImage { entries: 7, bytes, took: Duration::from_millis(250) };
        assert_eq!(image(64 << 20).to_string(), "7 entries, 64.0 MiB in 0.25 s (4.0 s per GiB)");
        assert_eq!(image(4096).to_string(), "7 entries, 0.0 MiB in 0.25 s");
    }

    #[test]
    fn what_repeats_is_counted_and_what_finds_no_room_is_dropped() {
        let mut notices = Notices::default();
        let memory = notices.waiting.capacity();
        let damaged = |slot| Notice::ShardDamaged { drive: DriveId(1), slot };
        for slot in (0..2 * NOTICES_MAX as u32).map(SlotIndex) {
            notices.tell(damaged(slot));
            notices.tell(damaged(slot));
        }
        assert_eq!(notices.waiting.capacity(), memory);
        assert_eq!(notices.dropped(), 2 * NOTICES_MAX as u64);
        assert_eq!(notices.next(), Some((damaged(SlotIndex(0)), 2)));
        notices.tell(Notice::SteppedDown);
        assert_eq!(notices.waiting.back(), Some(&(Notice::SteppedDown, 1)));
    }
}
