//! The trace: a hash over every delivered event, by which two runs are compared, and the latest
//! events, for whoever looks at a failure.
//!
//! Invariant: the hash covers kind, virtual time, process and digest of each event, in order, and
//! nothing that differs between two runs of one seed (no addresses, no wall clock).

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;

/// Events that [`World::recent`](crate::World::recent) keeps.
pub const RECENT_MAX: usize = 256;

/// What kind of event was delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum EventKind {
    /// A process ran its turn.
    Turn = 1,
    /// A call asked for by `call_later`.
    Call = 2,
    /// A connection reached its target: accepted, refused, or held up by a cut.
    Attempt = 3,
    /// The answer to a connection reached the process that began it.
    Connected = 4,
    /// A message was delivered.
    Received = 5,
    /// One side of a connection was closed.
    Closed = 6,
    /// A timeout of a connection was looked at.
    Timeout = 7,
    /// A drive finished a request.
    Drive = 8,
    /// A fault was injected.
    Fault = 9,
    /// A process was started.
    Started = 10,
    /// A process crashed.
    Killed = 11,
}

/// One delivered event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceEntry {
    /// Virtual time in nanoseconds.
    pub time: u64,
    /// What happened.
    pub kind: EventKind,
    /// Number of the process it happened to; 0 for the world itself.
    pub process: u64,
    /// Hash of the details and the contents; 0 when the event had become void.
    pub digest: u64,
}

/// A 64-bit hash built step by step: FNV-1a over whole words, with a rotation so that high bits
/// reach low ones. It tells runs apart; it is not meant to withstand anybody.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Digest(u64);

impl Digest {
    /// The empty hash.
    pub fn new() -> Digest {
        Digest(0xcbf2_9ce4_8422_2325)
    }

    /// Adds a number.
    pub fn word(self, word: u64) -> Digest {
        Digest((self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29))
    }

    /// Adds bytes and their count.
    pub fn bytes(self, bytes: &[u8]) -> Digest {
        let mut hash = self.word(bytes.len() as u64);
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            hash = hash.word(u64::from_le_bytes(*word));
        }
        for byte in rest {
            hash = hash.word(u64::from(*byte));
        }
        hash
    }

    /// The hash.
    pub fn value(self) -> u64 {
        self.0
    }
}

/// The running hash and the latest events.
pub(crate) struct Trace {
    hash: Cell<Digest>,
    recent: RefCell<VecDeque<TraceEntry>>,
}

impl Trace {
    /// An empty trace.
    pub fn new() -> Trace {
        Trace { hash: Cell::new(Digest::new()), recent: RefCell::default() }
    }

    /// Adds an event.
    pub fn record(&self, entry: TraceEntry) {
        let hash = self.hash.get().word(entry.time).word(entry.kind as u64);
        self.hash.set(hash.word(entry.process).word(entry.digest));
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT_MAX {
            recent.pop_front();
        }
        recent.push_back(entry);
    }

    /// The hash over all events so far.
    pub fn hash(&self) -> u64 {
        self.hash.get().value()
    }

    /// The latest events, oldest first.
    pub fn recent(&self) -> Vec<TraceEntry> {
        self.recent.borrow().iter().copied().collect()
    }
}
