//! The conversation of the two controllers of a data node: the mirror.
//!
//! The standby dials the active, on a log-class connection, and everything goes over lane 0. First
//! both say who they are ([`PeerMessage::Hello`]); then the active decides who copies the log from
//! whom, the copier copies, and the active makes both members of the in-sync set by one
//! compare-and-swap (C7); then it forwards.

use bincode::{Decode, Encode};
use cleave_format::ids::{ClusterId, DatanodeId, Epoch, Incarnation, Position};

/// Between the controllers of a data node.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PeerMessage {
    /// First in both directions.
    Hello(PeerHello),
    /// Active to standby: what happens next.
    Decision(Decision),
    /// Source to copier: what a copy is about to bring.
    CopyStart {
        /// The log's identity; 0: only the catalog is copied.
        log: u64,
        /// Whether the catalog follows first, because the copier's lacks more than the log holds.
        catalog: bool,
    },
    /// Source to copier: a piece of the catalog's dump, in the payload.
    CopyCatalog {
        /// That was the last.
        last: bool,
    },
    /// Source to copier: entries in the order of their positions, in the payload.
    CopyEntries {
        /// Which.
        entries: Vec<PeerEntry>,
    },
    /// Source to copier: that was all.
    CopyEnd {
        /// The position after the last entry.
        next: Position,
    },
    /// Copier to source: all of it is held.
    CopyDone,
    /// Active to standby: both are members at this epoch; forwarding begins at this position.
    Joined {
        /// The role epoch.
        epoch: Epoch,
        /// The log's identity.
        log: u64,
        /// Position of the first entry that will be forwarded.
        next: Position,
    },
    /// Active to standby: new entries, in the payload.
    Forward {
        /// Which, contiguous.
        entries: Vec<PeerEntry>,
        /// Control entries up to here have left the log (C11).
        trimmed: Position,
    },
    /// Standby to active: every entry up to here is held; every control entry up to there is durable in the
    /// catalog.
    Held {
        /// Last entry held.
        through: Position,
        /// Catalog position synced.
        catalog: Position,
    },
    /// Either to the other, once joined: the entry of this position rotted here; what is there?
    Want {
        /// The position.
        position: Position,
    },
    /// The answer: a copy of the entry in the payload, whatever it is worth; none when it is not held.
    Lent {
        /// The position.
        position: Position,
        /// Of a control record, its [`check`](cleave_format::control::check) there.
        check: Option<u32>,
    },
    /// Active to standby, once joined: is it still the standby, and this one active? Hosts' read leases wait for
    /// that (C9).
    Vouch {
        /// Grows with each question on this connection.
        number: u64,
    },
    /// It is, or was when it was asked.
    Vouched {
        /// Of the question.
        number: u64,
    },
    /// Active to standby, once joined: it shall take the role over soon, and make ready what that takes.
    Prepare,
    /// The answer: it is ready from now on, or why it cannot be.
    Prepared {
        /// `None`: it is ready.
        hindrance: Option<String>,
    },
    /// Active to standby, once it is ready: take the role over now. The active one serves nobody any more, and none of its I/O is on its
    /// way to drives. The standby ends the connection, by which nothing more is mirrored, and then changes the record (C7).
    TakeRole,
}

/// Who a controller is and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerHello {
    /// [`WIRE_VERSION`](crate::WIRE_VERSION).
    pub version: u16,
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
    /// Incarnation of the sender.
    pub incarnation: Incarnation,
    /// The complete log that it holds, as a member of the in-sync set or by a member's image.
    pub log: Option<HeldLog>,
    /// Catalog position synced.
    pub catalog: Position,
    /// The role in which it serves hosts; `None`: it does not, and nothing of its I/O on drives is on its way.
    pub serves: Option<Served>,
    /// Whether it reaches enough drives to serve.
    pub able: bool,
}

/// What an active controller goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Served {
    /// The role epoch at which it took the role.
    pub since: Epoch,
    /// Position of the first entry of the log that it gave its position.
    pub origin: Position,
}

/// A complete log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct HeldLog {
    /// The log's identity.
    pub log: u64,
    /// The member of the in-sync set that held it: the sender, or whose image it loaded.
    pub member: Incarnation,
    /// The position after its last entry.
    pub next: Position,
}

/// What follows the hellos.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Decision {
    /// The standby copies from the active.
    StandbyCopies,
    /// The active copies from the standby.
    ActiveCopies,
    /// Both kept everything: forwarding goes on after the standby's last entry.
    Resume,
    /// Neither has a log: both stay down.
    NoLog,
    /// The standby is not one of this data node, or of another version.
    Refuse {
        /// Why.
        reason: String,
    },
}

/// One log entry in a payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct PeerEntry {
    /// Its position.
    pub position: Position,
    /// What it is.
    pub kind: PeerEntryKind,
    /// Bytes in the payload.
    pub length: u32,
}

/// What a log entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum PeerEntryKind {
    /// A host's record.
    Record,
    /// An encoded [`Control`](cleave_format::control::Control).
    Control {
        /// Its [`check`](cleave_format::control::check).
        check: u32,
    },
}
