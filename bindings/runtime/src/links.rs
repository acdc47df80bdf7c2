//! The contract of the links between engines: authenticated connections that carry whole messages
//! in order, or break.
//!
//! A connection has a [`Class`], so that megabytes of shards never stand before an append, and
//! lanes: independent ordered sequences of messages, so that one lost packet delays one lane.
//! Within a lane messages arrive in the order sent, each once, until the connection closes; after
//! that nobody knows which of the last ones arrived, and the protocol above must resend and
//! recognise (C1). A connection never reopens: a new one has a new [`ConnectionId`].

use crate::message::Message;
use bytes::Bytes;

/// What a connection is for; each class is a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Class {
    /// Appends, commits, seals, grants; between controllers: the mirror.
    Log = 1,
    /// Shards.
    Bulk = 2,
    /// Reads of ranges, of the log and of the catalog.
    Read = 3,
}

/// Lanes of a connection are numbered `0..LANES`.
pub const LANES: u8 = 4;

/// A message may not be longer than this.
pub const MESSAGE_LENGTH_MAX: usize = 4 << 20;

/// Names a connection of this process; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// Where a peer listens and who it must prove to be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerAddress {
    /// The name in the peer's certificate, for example `datanode-1-a`.
    pub name: String,
    /// `IP:PORT` for real links; the simulator looks only at the name.
    pub address: String,
}

/// What a link reports.
#[derive(Debug)]
pub enum LinkEvent {
    /// A connection begun by [`Links::connect`] is established and the peer proved its name.
    Connected {
        /// The connection.
        connection: ConnectionId,
    },
    /// A peer connected; it proved `peer`.
    Accepted {
        /// The new connection.
        connection: ConnectionId,
        /// What the peer wants to use it for.
        class: Class,
        /// The name in the peer's certificate.
        peer: String,
    },
    /// A whole message arrived.
    Received {
        /// On which connection.
        connection: ConnectionId,
        /// On which lane.
        lane: u8,
        /// The message.
        message: Message,
    },
    /// The connection is gone, or was never established. Nothing further comes from it.
    Closed {
        /// Which.
        connection: ConnectionId,
        /// Why, for the log.
        reason: String,
    },
}

/// Why a message was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The connection is closed or unknown; its [`LinkEvent::Closed`] was or will be reported.
    #[error("connection is closed")]
    Closed,
    /// Longer than [`MESSAGE_LENGTH_MAX`], or no such lane: a mistake of the caller.
    #[error("message too long or lane out of range")]
    Invalid,
}

/// All connections of one core.
pub trait Links {
    /// Begins a connection; [`LinkEvent::Connected`] or [`LinkEvent::Closed`] follows.
    fn connect(&self, to: &PeerAddress, class: Class) -> ConnectionId;

    /// Queues one message, the parts in order, without copying them. Messages may be sent before
    /// `Connected`. The queue is bounded by the protocols above (quotas, windows), which look at
    /// [`queued`](Links::queued).
    fn send(&self, connection: ConnectionId, lane: u8, parts: &[Bytes]) -> Result<(), SendError>;

    /// Bytes of messages that the other side is not yet known to have received, as far as that can
    /// be known: queued here, or on their way. 0 for a closed connection. When it shrinks, the core
    /// gets a turn.
    fn queued(&self, connection: ConnectionId) -> usize;

    /// Closes a connection; the other side sees `reason`. Here, too, `Closed` is reported.
    fn close(&self, connection: ConnectionId, reason: &str);

    /// Appends what happened since the last call to `events`.
    fn poll(&self, events: &mut Vec<LinkEvent>);
}
