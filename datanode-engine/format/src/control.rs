//! Control records: the log entries that change the catalog. Both controllers apply them in the
//! order of their positions, with the position, in one catalog transaction (C11).
//!
//! What a record does is decided when the active controller appends it (for example which vdisks
//! of a commit are struck), and written into it, so that applying never decides anything.
//!
//! Beside an encoded record in a log's memory, and on the way to another, stands its [`check`].

use crate::address::Address;
use crate::ids::{
    DriveId, Epoch, HostId, Incarnation, Position, Sequence, SliceIndex, SlotIndex, StripeId,
    VdiskId, Version,
};
use bincode::{Decode, Encode};

/// Most stripes that a vdisk's part of a commit may refer to (C19): bounds the work of applying it.
pub const REFERENCES_MAX: usize = 1024;
/// Most stripes that a map run may name as no longer named.
pub const UNREFERENCED_MAX: usize = 8192;

/// The check of an encoded control record: CRC32C of its position u64, then its bytes. One that is in another's place
/// fails it too (C3).
pub fn check(position: Position, encoded: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&position.0.to_le_bytes()), encoded)
}

/// A change of the catalog. Numbers of variants are part of the format: new ones go to the end.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Control {
    /// A host's engine started: grants of its earlier incarnations end (C15).
    HostStart {
        /// The host.
        host: HostId,
        /// Its new incarnation.
        incarnation: Incarnation,
    },
    /// A vdisk was taken by a host; older epochs are refused from here on (C8).
    Seal {
        /// The vdisk.
        vdisk: VdiskId,
        /// The new ownership epoch.
        epoch: Epoch,
        /// The new owner.
        host: HostId,
        /// The new owner's incarnation.
        incarnation: Incarnation,
    },
    /// Slots were given to a host incarnation (C15).
    Grant {
        /// To whom.
        incarnation: Incarnation,
        /// What.
        stripes: Vec<GrantedStripe>,
    },
    /// Grants ended without a commit; their slots are free once all I/O under them is over.
    GrantEnd {
        /// Which.
        stripes: Vec<StripeId>,
    },
    /// A stripe (or only entries) became part of its vdisks; releases records (C4).
    Commit(Commit),
    /// A vdisk ended; its records and its part of the catalog go (C28).
    Delete {
        /// The vdisk.
        vdisk: VdiskId,
        /// Its last epoch; nothing of it is accepted any more.
        epoch: Epoch,
    },
    /// A drive changed its state; the generation grows with each change.
    Drive {
        /// The drive.
        drive: DriveId,
        /// New state.
        state: DriveState,
        /// New generation.
        generation: u32,
    },
    /// Cut of a vdisk for a snapshot: reserved (C27).
    Cut {
        /// The vdisk.
        vdisk: VdiskId,
        /// Last sequence of each slice that has unreleased records.
        slices: Vec<(SliceIndex, Version)>,
    },
    /// Frames moved by the cleaner: reserved (C22).
    Move {
        /// Old and new addresses.
        frames: Vec<(Address, Address)>,
    },
    /// From here on the slots of all grants that are in force are free for nobody, whatever becomes of the grants and their
    /// stripes, until [`FreeHeld`](Control::FreeHeld): a controller that took the role over works alone, and the one
    /// before may still have writes under them on their way to the drives (C15).
    HoldSlots,
    /// That one has none any more.
    FreeHeld,
    /// Shards of a committed stripe lie elsewhere from here on (C16).
    Swap(Swap),
}

/// State of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum DriveState {
    /// In use.
    Active,
    /// Gone or failing; its shards count as lost (C16).
    Lost,
}

/// A stripe that a host may write.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GrantedStripe {
    /// Its identity.
    pub stripe: StripeId,
    /// Where its shards go: data shards first, then parity. Empty for a commit without a stripe.
    pub slots: Vec<SlotPlace>,
}

impl GrantedStripe {
    /// Data shards.
    pub fn data_shards(&self) -> usize {
        self.slots.len().saturating_sub(crate::layout::PARITY_SHARDS)
    }
}

/// A slot of a drive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct SlotPlace {
    /// The drive.
    pub drive: DriveId,
    /// Its slot.
    pub slot: SlotIndex,
    /// The drive's generation when the slot was granted (C16).
    pub generation: u32,
}

/// A commit (C4). Idempotent by stripe identity.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Commit {
    /// The stripe, or the identity of a commit that has only inline entries.
    pub stripe: StripeId,
    /// The host incarnation that holds the grant.
    pub incarnation: Incarnation,
    /// Its slots, from the grant. Empty when stripeless.
    pub slots: Vec<SlotPlace>,
    /// Bit i: shard i was lost before the commit (at most one, C16).
    pub shards_missing: u16,
    /// Its vdisks.
    pub vdisks: Vec<CommitVdisk>,
}

/// Shards that were written anew, to slots of a loan (C16). It ends the loan, and is idempotent by its identity. Of a stripe
/// that is gone, or whose slots changed since, nothing is changed, and the loan's slots are free.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Swap {
    /// The stripe.
    pub stripe: StripeId,
    /// The generation of its slots that the shards were made from.
    pub generation: u32,
    /// The grant, to the [data node itself](Incarnation::DATANODE), under which they were written.
    pub loan: StripeId,
    /// Which shards, and where each lies now: all slots of the loan. Where they lay before is free.
    pub shards: Vec<(u8, SlotPlace)>,
}

/// One vdisk's part of a commit.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CommitVdisk {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// The committer's ownership epoch.
    pub epoch: Epoch,
    /// Refused for this vdisk, because its epoch is not the sealed one. Set by the log.
    pub struck: bool,
    /// Whether the stripe's footer has entries of this vdisk, map pieces apart.
    pub in_footer: bool,
    /// Whether the stripe holds map pieces of this vdisk.
    pub has_pieces: bool,
    /// Records released.
    pub releases: Vec<Release>,
    /// Entries that are in no footer (C5): a stripeless commit.
    pub entries: Vec<InlineEntry>,
    /// Other stripes that the vdisk's entries refer to (C19). The log has checked that they exist.
    pub references: Vec<StripeId>,
    /// A map run that this commit completes.
    pub run: Option<MapRun>,
}

/// Released records of one slice and epoch: `first..=last`, all of them held by the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Release {
    /// The slice.
    pub slice: SliceIndex,
    /// Epoch of the records.
    pub epoch: Epoch,
    /// First sequence.
    pub first: Sequence,
    /// Last sequence.
    pub last: Sequence,
}

/// An entry without a frame: zero, discard or reference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct InlineEntry {
    /// The slice.
    pub slice: SliceIndex,
    /// First block in it.
    pub block: u16,
    /// Blocks.
    pub blocks: u16,
    /// Age (C2).
    pub version: Version,
    /// `None`: zeros. `Some`: a reference.
    pub reference: Option<Address>,
}

/// A map run: pieces that together reflect every commit of the vdisk up to a frontier (C21).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MapRun {
    /// Position of the last commit that the pieces reflect.
    pub frontier: Position,
    /// The pieces that changed since the last run.
    pub pieces: Vec<PiecePlace>,
    /// Stripes that neither the map at the frontier nor a current piece names any more: the vdisk
    /// leaves those that no commit after the frontier put it into (C21).
    pub unreferenced: Vec<StripeId>,
}

/// Where a map piece lies. `address: None` when the piece has no entry any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PiecePlace {
    /// Slices from `PIECE_SLICES * group` on.
    pub group: u32,
    /// Its frame.
    pub address: Option<Address>,
}

#[cfg(test)]
mod tests;
