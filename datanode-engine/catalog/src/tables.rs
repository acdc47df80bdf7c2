//! The tables and their rows. The crate's page draws them.

use crate::CatalogError;
use bincode::{Decode, Encode};
use cleave_format::address::Address;
use cleave_format::control::{DriveState, InlineEntry, SlotPlace};
use cleave_format::ids::{Epoch, HostId, Incarnation, Position, StripeId, VdiskId};
use redb::TableDefinition;

pub(crate) type Bytes = &'static [u8];

pub(crate) const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
pub(crate) const STRIPES: TableDefinition<u64, Bytes> = TableDefinition::new("stripes");
pub(crate) const STRIPES_OF: TableDefinition<(u64, u64), ()> = TableDefinition::new("stripes_of");
pub(crate) const GRANTS: TableDefinition<u64, Bytes> = TableDefinition::new("grants");
pub(crate) const COMMITS: TableDefinition<(u64, u64), Bytes> = TableDefinition::new("commits");
pub(crate) const PIECES: TableDefinition<(u64, u32), Bytes> = TableDefinition::new("pieces");
pub(crate) const VDISKS: TableDefinition<u64, Bytes> = TableDefinition::new("vdisks");
pub(crate) const HOSTS: TableDefinition<u32, u64> = TableDefinition::new("hosts");
pub(crate) const DRIVES: TableDefinition<u16, Bytes> = TableDefinition::new("drives");
pub(crate) const HELD: TableDefinition<(u16, u32), bool> = TableDefinition::new("held");

pub(crate) const APPLIED: &str = "applied";
pub(crate) const NEWEST_STRIPE: &str = "stripe";

/// A committed stripe, or the identity of a commit that had only entries (then without slots).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct StripeRow {
    /// Where its shards are.
    pub slots: Vec<SlotPlace>,
    /// Grows with each change of the slots (C16).
    pub generation: u32,
    /// Vdisks that may name it: with content in it, map pieces, or references to it. Without slots: vdisks
    /// whose commit row names it. By vdisk.
    pub holders: Vec<Holder>,
    /// Vdisks that the commit was refused for (C4).
    pub struck: Vec<VdiskId>,
    /// Position of its commit.
    pub position: Position,
    /// Bit i: shard i was not written (C16).
    pub shards_missing: u16,
}

impl StripeRow {
    /// A commit at this position made the vdisk name the stripe.
    pub(crate) fn hold(&mut self, vdisk: VdiskId, position: Position) {
        match self.holders.binary_search_by_key(&vdisk, |holder| holder.vdisk) {
            Ok(index) => self.holders[index].position = position,
            Err(index) => self.holders.insert(index, Holder { vdisk, position }),
        }
    }
}

/// A vdisk that may name a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Holder {
    /// Which.
    pub vdisk: VdiskId,
    /// The last commit that made it name the stripe: a run with an earlier frontier says nothing about that.
    pub position: Position,
}

/// A grant that is neither committed nor ended.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct GrantRow {
    /// Whose.
    pub incarnation: Incarnation,
    /// Its slots; empty for a commit without a stripe.
    pub slots: Vec<SlotPlace>,
}

/// One vdisk's part of a commit that its map pieces do not reflect yet.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct CommitRow {
    /// The stripe, or the identity of a stripeless commit.
    pub stripe: StripeId,
    /// Whether the stripe's footer has entries of the vdisk.
    pub in_footer: bool,
    /// Entries that are in no footer.
    pub entries: Vec<InlineEntry>,
}

/// A vdisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VdiskRow {
    /// The sealed epoch: others are refused (C8).
    pub epoch: Epoch,
    /// Its owner.
    pub host: HostId,
    /// The owner's incarnation.
    pub incarnation: Incarnation,
    /// Position of the seal.
    pub seal: Position,
    /// The last commit that its map pieces reflect.
    pub frontier: Position,
    /// It ended; nothing of it is accepted any more (C28).
    pub deleted: bool,
}

/// A current map piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PieceRow {
    /// Its frame.
    pub address: Address,
}

/// A drive that changed its state at least once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct DriveRow {
    /// Its state.
    pub state: DriveState,
    /// Grows with each change.
    pub generation: u32,
}

pub(crate) fn decode<T: Decode<()>>(table: &'static str, bytes: &[u8]) -> Result<T, CatalogError> {
    cleave_format::decode(bytes).map_err(|reason| CatalogError::Row { table, reason })
}
