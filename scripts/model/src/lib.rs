//! The rules of the log's controllers and of its hosts as models, checked exhaustively.
//!
//! The simulator runs the engines themselves over random schedules; these models have the protocol alone, and
//! every schedule of it within stated bounds. The decisions are production's own
//! ([`decide`](cleave_datanode_core::mirror::decide), [`Mirror`](cleave_datanode_core::mirror::Mirror),
//! [`Resident`](cleave_datanode_core::resident::Resident), [`Grants`](cleave_datanode_core::grants::Grants)); what
//! carries them out (meetings, copies, the compare-and-swap, messages) is written anew here, one atomic step each
//! where a crash, a broken connection or a lost reply can come in between.
//!
//! | Model | Rules | What happens |
//! | --- | --- | --- |
//! | [`Roles`] | C7-C9 | two controllers crash, stop, meet, copy; the role moves beside an active one that lives; one goes on alone, with its log on drives; replies of the store are lost, or its requests late; two hosts take the vdisk |
//! | [`Owners`] | C8, C9 | two hosts take a vdisk from each other; an old owner is paused, leases run out; the log is lost |
//! | [`Catalogs`] | C11 | two catalogs take over control entries, which are then trimmed; one is lost |
//! | [`Slots`] | C15 | incarnations of a host write under grants that end |
//!
//! A lease (C9) is two flags: the host may answer reads, and the controllers count it. The first ends before the second,
//! whenever that is.
#![forbid(unsafe_code)]

mod alone;
mod catalogs;
mod controllers;
mod judge;
mod model;
mod owners;
mod slots;
mod state;

pub use catalogs::{CatalogAction, CatalogBounds, CatalogFault, CatalogWorld, Catalogs};
pub use model::{Action, Bounds, Fault, Roles};
pub use owners::{Owner, OwnerAction, OwnerBounds, OwnerFault, OwnerWorld, Owners};
pub use slots::{SlotAction, SlotBounds, SlotFault, SlotWorld, Slots};
pub use state::World;
