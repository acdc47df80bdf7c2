//! A data node's durable table of stripes, commits and map pieces, over redb.
//!
//! Both controllers have one, on a thread of its own. It changes by [`Control`] records alone,
//! in the order of their positions, each transaction together with the position that it reached
//! (C11): after a crash the catalog is exactly as it was after some transaction, and says which, so
//! that applying the same records again changes nothing.
//!
//! # Tables
//!
//! Keys are redb's integers (a pair compares by its first part, then its second); values are
//! encoded by the format crate's one encoding ([`cleave_format::encode`]).
//!
//! | Table | Key | Value |
//! | --- | --- | --- |
//! | `meta` | name | `format`, `applied` (position), `stripe` (newest stripe identity granted), `cluster_high`, `cluster_low`, `datanode`: u64 |
//! | `stripes` | stripe | [`StripeRow`](tables::StripeRow): slots, generation, vdisks that may name it, each with the position of the last commit by which it did, struck vdisks, position, missing shards |
//! | `stripes_of` | (vdisk, stripe) | nothing: the stripes that a vdisk may name |
//! | `grants` | stripe | [`GrantRow`](tables::GrantRow): incarnation, slots |
//! | `commits` | (vdisk, position) | [`CommitRow`](tables::CommitRow): stripe, entries that are in no footer; only those after the vdisk's frontier |
//! | `pieces` | (vdisk, group) | address of the current map piece |
//! | `vdisks` | vdisk | [`VdiskRow`](tables::VdiskRow): sealed epoch, owner, seal's position, frontier, whether deleted. Kept for ever: identities are used once (C3) |
//! | `hosts` | host | newest incarnation |
//! | `drives` | drive | state, generation |
//! | `held` | (drive, slot) | whether no grant and no stripe has the slot any more, which is free for nobody all the same (C15) |
//!
//! # What the records do
//!
//! A commit moves its grant to `stripes`, adds a row to `commits` for every vdisk that is not
//! struck, adds the vdisk to the stripes that it refers to (C19), and for a map run replaces pieces,
//! sets the frontier and drops the commits up to it (C21). Then the vdisk leaves each stripe that the
//! run says it names no more, unless a commit after the frontier made it name that stripe (again); a
//! stripe that no vdisk may name is freed. A delete drops the vdisk's rows, and it leaves all its stripes
//! (C28). `GrantEnd` and `HostStart` drop grants (C15). `HoldSlots` puts the slots of all grants into `held`; `FreeHeld` empties it. A commit of a stripe that is neither
//! granted nor new (a resend) changes nothing (C4). `Swap` ends a grant of the data node's own, and puts its slots in the place of
//! others of a stripe, unless that is gone or has another generation (C16).

#![forbid(unsafe_code)]

mod apply;
mod database;
mod error;
mod query;
mod rows;
pub mod storage;
pub mod tables;
mod transfer;

pub use apply::Applied;
pub use cleave_format::control::Control;
pub use database::{Catalog, Owner};
pub use error::CatalogError;
pub use query::{
    Cursor, Damage, EndangeredPage, MapPage, MapRow, Resident, ResidentVdisk, StripesPage,
};
pub use transfer::Dump;

#[cfg(test)]
mod tests;
