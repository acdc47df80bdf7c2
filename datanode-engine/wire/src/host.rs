//! The conversation of a host core with a controller.
//!
//! Each connection begins with [`HostMessage::Hello`]; the controller answers
//! [`ControllerMessage::Welcome`] or [`ControllerMessage::Refused`] and closes. Every request
//! carries a number chosen by the host, which its reply repeats; appends are answered by a
//! cumulative count a lane.

use bincode::{Decode, Encode};
use cleave_format::control::{CommitVdisk, GrantedStripe, InlineEntry, PiecePlace, SlotPlace};
use cleave_format::ids::{
    ClusterId, DriveId, Epoch, HostId, Incarnation, Position, StripeId, VdiskId,
};
use std::time::Duration;

/// Number of a request on its connection.
pub type RequestNumber = u64;

/// How long a host may answer reads of a vdisk, by its own clock, from the moment when it asked for the lease (C9). Longer
/// than a controller takes to take the active role over, so that reads go on meanwhile.
pub const LEASE: Duration = Duration::from_secs(10);
/// How long a lease counts for the controllers, by their clocks, from the moment when they were asked: clocks of two
/// machines may differ in rate by a tenth each.
pub const LEASE_COUNTED: Duration = Duration::from_millis(12_500);
/// A host asks again after this.
pub const LEASE_RENEWED: Duration = Duration::from_secs(2);

/// From a host core to a controller.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum HostMessage {
    /// First on every connection.
    Hello(Hello),
    /// Log class. Records to append, in order; the payload is the records, one after another.
    Append(Append),
    /// Log class, lane 0. Take a vdisk (C8).
    Seal {
        /// Request number.
        request: RequestNumber,
        /// The vdisk.
        vdisk: VdiskId,
        /// Its new ownership epoch, from the store.
        epoch: Epoch,
        /// Epochs whose owners served the vdisk and do so no more: they let go of it, as the store says, or were
        /// processes of this host, whose kernel lock it holds (C9, C25). Only of the last owner it matters.
        gone: Vec<Epoch>,
    },
    /// Log class, lane 0. Commit (C4).
    Commit {
        /// Request number.
        request: RequestNumber,
        /// The stripe, from a grant.
        stripe: StripeId,
        /// Bit i: shard i could not be written (at most one, C16).
        shards_missing: u16,
        /// Its vdisks; `struck` is false.
        vdisks: Vec<CommitVdisk>,
    },
    /// Log class, lane 0. End a vdisk that this host has sealed (C28).
    Delete {
        /// Request number.
        request: RequestNumber,
        /// The vdisk.
        vdisk: VdiskId,
        /// The host's ownership epoch.
        epoch: Epoch,
    },
    /// Log class, lane 0. Ask for slots (C15).
    Grant {
        /// Request number.
        request: RequestNumber,
        /// The newest identity that this core was told of in an answer, 0 at first: what was granted to it after that
        /// one, in an answer that did not arrive, is given again.
        told: StripeId,
        /// Stripes with slots.
        stripes: u16,
        /// Identities for stripeless commits.
        identities: u16,
    },
    /// Log class, lane 0. Give grants back unused.
    ReturnGrant {
        /// Which.
        stripes: Vec<StripeId>,
    },
    /// Log class, lane 0. Renew the read leases of vdisks that this core has sealed (C9).
    Renew {
        /// Request number.
        request: RequestNumber,
        /// Which, each with the host's ownership epoch.
        vdisks: Vec<(VdiskId, Epoch)>,
    },
    /// Read class. Unreleased records of a sealed vdisk, from a log position on.
    Fetch {
        /// Request number.
        request: RequestNumber,
        /// The vdisk.
        vdisk: VdiskId,
        /// The host's ownership epoch.
        epoch: Epoch,
        /// Records at this position and after; 0 at first.
        from: Position,
    },
    /// Read class. The durable map of a sealed vdisk, page by page.
    OpenMap {
        /// Request number.
        request: RequestNumber,
        /// The vdisk.
        vdisk: VdiskId,
        /// The host's ownership epoch.
        epoch: Epoch,
        /// `None` at first, then what the last reply gave.
        cursor: Option<MapCursor>,
    },
    /// Read class. The stripes that a sealed vdisk may name, page by page.
    ListStripes {
        /// Request number.
        request: RequestNumber,
        /// The vdisk.
        vdisk: VdiskId,
        /// The host's ownership epoch.
        epoch: Epoch,
        /// From this one on; 0 at first, then what the last reply gave.
        from: StripeId,
    },
    /// Read class. Where stripes lie.
    Locate {
        /// Request number.
        request: RequestNumber,
        /// Which.
        stripes: Vec<StripeId>,
    },
    /// Read class. A range of a shard.
    Read {
        /// Request number.
        request: RequestNumber,
        /// Where the shard lies.
        place: SlotPlace,
        /// The stripe that must own the slot (C3).
        stripe: StripeId,
        /// The shard's number in it.
        shard: u8,
        /// First byte within the shard's data.
        offset: u32,
        /// Bytes; the range lies within the shard.
        length: u32,
    },
    /// Bulk class. One shard; the payload is the whole slot image: header and data.
    WriteShard {
        /// Request number.
        request: RequestNumber,
        /// The granted stripe.
        stripe: StripeId,
        /// The shard's number in it.
        shard: u8,
        /// Its granted place.
        place: SlotPlace,
    },
    /// Read class. Content of stripes was read and failed its check (C3). It has no answer; the controller looks itself.
    Damaged {
        /// Which, at most 64.
        stripes: Vec<StripeId>,
    },
}

/// Who connects.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Hello {
    /// [`WIRE_VERSION`](crate::WIRE_VERSION).
    pub version: u16,
    /// The cluster.
    pub cluster: ClusterId,
    /// The host; its certificate's name must be `host-ID`.
    pub host: HostId,
    /// The engine's incarnation.
    pub incarnation: Incarnation,
    /// The core.
    pub core: u16,
    /// Grows with each connection of this class, core and incarnation; an append that begins a
    /// slice is taken only on the newest (C1).
    pub connection: u64,
}

/// Records to append.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Append {
    /// Number of this append on its connection and lane, from 1.
    pub number: u64,
    /// The records, in the order of the payload.
    pub records: Vec<AppendRecord>,
}

/// One record of an append.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct AppendRecord {
    /// Bytes of the record.
    pub length: u32,
    /// Every earlier record of the slice and epoch is known to be mirrored, so the log may begin
    /// the slice anew with this one if it holds none of it (C1).
    pub begins: bool,
}

/// Place in the paged reply to [`HostMessage::OpenMap`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum MapCursor {
    /// Pieces from this group on.
    Pieces(u32),
    /// Commits after this position.
    Commits(Position),
}

/// From a controller to a host core.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum ControllerMessage {
    /// The connection is good.
    Welcome(Welcome),
    /// It is not; the controller closes. The host tries again later, unless `fatal`.
    Refused {
        /// Why, for the log.
        reason: String,
        /// Trying again will not help (wrong cluster, version, or a superseded incarnation).
        fatal: bool,
    },
    /// The other controller takes the role over now, as an operator ordered; nothing more is answered here. The host closes,
    /// and goes there.
    RoleMoves,
    /// Every append of this lane up to this number is mirrored.
    Mirrored {
        /// Number of the append.
        through: u64,
    },
    /// An append was not taken, nor any later one of this lane: the host closes the connection,
    /// and resends on a new one what is not mirrored.
    AppendRefused {
        /// Number of the append.
        number: u64,
        /// Why.
        reason: Refusal,
    },
    /// Result of [`HostMessage::Seal`], [`HostMessage::Delete`].
    Done {
        /// Request number.
        request: RequestNumber,
        /// Log position of the effect, or why not.
        result: Result<Position, Refusal>,
    },
    /// Result of [`HostMessage::Commit`]: mirrored.
    Committed {
        /// Request number.
        request: RequestNumber,
        /// Log position, or why not.
        result: Result<Position, Refusal>,
        /// Vdisks of the commit that were struck (C4).
        struck: Vec<VdiskId>,
    },
    /// Result of [`HostMessage::Grant`]: mirrored. Fewer than asked for when the pool is short.
    Granted {
        /// Request number.
        request: RequestNumber,
        /// Stripes with slots.
        stripes: Vec<GrantedStripe>,
        /// Identities for stripeless commits.
        identities: Vec<StripeId>,
        /// Why fewer.
        shortage: Option<String>,
    },
    /// Result of [`HostMessage::Fetch`]; the payload is whole records, one after another.
    Fetched {
        /// Request number.
        request: RequestNumber,
        /// Lengths of the records.
        records: Vec<u32>,
        /// Continue from here; `None`: that was all.
        next: Option<Position>,
        /// Not given: why.
        refused: Option<Refusal>,
    },
    /// Result of [`HostMessage::OpenMap`].
    Map {
        /// Request number.
        request: RequestNumber,
        /// The position that the pieces reflect; commits after it follow.
        frontier: Position,
        /// Map pieces, by group.
        pieces: Vec<PiecePlace>,
        /// Commits after the frontier, in order.
        commits: Vec<MapCommit>,
        /// Continue here; `None`: that was all.
        next: Option<MapCursor>,
        /// Not given: why.
        refused: Option<Refusal>,
    },
    /// Result of [`HostMessage::ListStripes`].
    Listed {
        /// Request number.
        request: RequestNumber,
        /// Stripes with slots, in order.
        stripes: Vec<ListedStripe>,
        /// Continue here; `None`: that was all.
        next: Option<StripeId>,
        /// Not given: why.
        refused: Option<Refusal>,
    },
    /// Result of [`HostMessage::Locate`]: those that exist, in the order asked.
    Located {
        /// Request number.
        request: RequestNumber,
        /// Stripes and slots.
        stripes: Vec<GrantedStripe>,
    },
    /// Result of [`HostMessage::Read`]; the payload is the range.
    Read {
        /// Request number.
        request: RequestNumber,
        /// Without payload when it failed.
        result: Result<(), ShardFault>,
    },
    /// Result of [`HostMessage::WriteShard`]: the shard is durable (C10).
    ShardWritten {
        /// Request number.
        request: RequestNumber,
        /// Or why not.
        result: Result<(), ShardFault>,
    },
    /// Result of [`HostMessage::Renew`]: the leases last for [`LEASE`] from when the host asked.
    Renewed {
        /// Request number.
        request: RequestNumber,
        /// Vdisks that the host does not own any more: their leases are not renewed.
        lost: Vec<VdiskId>,
    },
    /// Sent when it changes: the host's share of the log, in bytes of records.
    Quota {
        /// Bytes.
        bytes: u64,
    },
    /// Sent when it changes: drives whose shards count as lost.
    LostDrives {
        /// Which.
        drives: Vec<DriveId>,
    },
}

/// A stripe that a vdisk may name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct ListedStripe {
    /// The stripe.
    pub stripe: StripeId,
    /// The last commit that made the vdisk name it.
    pub position: Position,
}

/// A controller's answer to [`Hello`].
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Welcome {
    /// Identity of the log: another one than before means that the host must resend everything
    /// that is not released, not only what is not mirrored (C7).
    pub log: u64,
    /// The data node's role epoch.
    pub epoch: Epoch,
    /// The host's share of the log, in bytes of records.
    pub quota: u64,
    /// Most data shards of a new stripe.
    pub data_shards: u8,
    /// Drives whose shards count as lost.
    pub lost_drives: Vec<DriveId>,
}

/// Why the log or the catalog did not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum Refusal {
    /// A sequence is missing before this one (C1).
    #[error("a record is missing before this one")]
    Gap,
    /// A newer epoch sealed the vdisk (C8), or it was deleted.
    #[error("the vdisk has a newer owner or is deleted")]
    Sealed,
    /// The log has no room: the host exceeded its quota.
    #[error("the log is full")]
    Full,
    /// Not the newest connection of this host core.
    #[error("a newer connection exists")]
    Superseded,
    /// The stripe was not granted to this incarnation, or the grant ended.
    #[error("no such grant")]
    NoGrant,
    /// More than one shard of the stripe is lost (C16): write it again under a new grant.
    #[error("too many shards of the stripe are lost")]
    Degraded,
    /// A stripe that the commit refers to may be freed by now (C19): plan its content anew, without it.
    #[error("a stripe that it refers to may be freed")]
    NoReference,
    /// The vdisk is sealed, so that older owners can write no more, but one of them may serve reads for as long as its
    /// lease may last (C9): ask again.
    #[error("an owner before may still hold a read lease")]
    OwnerAlive,
    /// The message contradicts itself.
    #[error("malformed request")]
    Malformed,
}

/// Why a shard was not read or written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode, thiserror::Error)]
pub enum ShardFault {
    /// The drive is lost: the shard counts as lost.
    #[error("the drive is lost")]
    Lost,
    /// This range cannot be read, or the write failed.
    #[error("the drive reported an error")]
    Io,
    /// No space behind a sparse drive file.
    #[error("no space behind the drive")]
    NoSpace,
    /// The slot holds another stripe's shard (C3), or is not granted.
    #[error("the slot belongs to another stripe")]
    Identity,
    /// The image's checksums do not match its data.
    #[error("the shard arrived damaged")]
    Damaged,
}

/// A commit, as the map of one vdisk sees it.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct MapCommit {
    /// Its position.
    pub position: Position,
    /// The stripe whose footer has entries of the vdisk.
    pub stripe: Option<GrantedStripe>,
    /// Entries that are in no footer.
    pub entries: Vec<InlineEntry>,
}
