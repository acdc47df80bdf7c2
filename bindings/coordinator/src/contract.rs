//! The contract of the store: operations, answers, limits, and the trait a core polls.
//!
//! Keys are strings, values bytes. The store has one revision, a counter that every transaction
//! which changes something raises by one; a key's revision is that of its last change, and 0
//! stands for a key that is absent. A revision is never used twice by one store.
//!
//! Guarantees: transactions are serialisable and durable once answered; reads are never older
//! than any transaction answered before they were submitted; a watch delivers each matching
//! transaction once, whole, in order of revisions, or says [`WatchEvent::Resync`].
//!
//! A lease is a time for which keys stay without anybody renewing it. When it runs out or is revoked, its keys are
//! deleted by one transaction of the store's own, which watches see like any other. It never runs out early, by
//! the store's monotonic clock; how late is the store's business: after a start of the store, a change of etcd's leader,
//! or a stand-still of its process every lease has its full duration again. So an expired lease says that its holder
//! *may* be gone, and a lease that is there that its holder was alive lately. Nothing may be fenced by that (C9): a lease
//! decides when something is tried, a transaction's conditions whether it happens.

use bincode::{Decode, Encode};
pub use cleave_runtime::Token;
use std::time::Duration;

/// Names a value: `/`-separated words, at most [`KEY_BYTES_MAX`].
pub type Key = String;

/// Longest key, bytes.
pub const KEY_BYTES_MAX: usize = 512;
/// Longest value, bytes.
pub const VALUE_BYTES_MAX: usize = 256 << 10;
/// Most conditions, and most changes, in a transaction (etcd's default limit).
pub const TRANSACTION_ENTRIES_MAX: usize = 128;
/// Most bytes of keys and values in a transaction.
pub const TRANSACTION_BYTES_MAX: usize = 1 << 20;
/// Most bytes in the answer to a list, each entry counted with [`ENTRY_BYTES`]; longer ones are
/// refused.
pub const LIST_BYTES_MAX: usize = 12 << 20;
/// Shortest lease that can be asked for.
pub const LEASE_DURATION_MIN: Duration = Duration::from_millis(100);
/// Longest lease.
pub const LEASE_DURATION_MAX: Duration = Duration::from_secs(3600);
/// Most leases at a time, and most keys of one; Cleave's own store refuses more.
pub const LEASES_MAX: usize = 4096;
/// Most keys of a lease.
pub const LEASE_KEYS_MAX: usize = 1024;
/// What an entry of a list or of the history counts beyond its key and value.
pub const ENTRY_BYTES: usize = 64;

/// Names a lease; never 0, never given out twice by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct LeaseId(pub u64);

/// A lease as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Lease {
    /// Its name.
    pub id: LeaseId,
    /// How long it lasts after each renewal: what was asked for, or longer (etcd knows whole seconds, and a least
    /// duration that depends on its election timeout).
    pub duration: Duration,
}

/// A value and when it was last changed.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Versioned {
    /// The bytes that were put.
    pub value: Vec<u8>,
    /// The transaction that put them.
    pub revision: u64,
}

/// What must hold for a transaction to commit: `key` was last changed at `revision`.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Condition {
    /// Which key.
    pub key: Key,
    /// Its revision; 0: the key must be absent.
    pub revision: u64,
}

/// One key's new value.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Change {
    /// Which key.
    pub key: Key,
    /// The new value; `None` deletes (also what is not there, which changes nothing).
    pub value: Option<Vec<u8>>,
    /// The lease that the key belongs to from then on, in place of another one. Only with a value.
    pub lease: Option<LeaseId>,
}

/// All changes or none: they are made if all conditions hold. No key is changed twice.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Transaction {
    /// Compared at one instant.
    pub conditions: Vec<Condition>,
    /// Made at that instant.
    pub changes: Vec<Change>,
}

impl Transaction {
    /// Nothing required, nothing changed.
    pub fn new() -> Transaction {
        Transaction::default()
    }

    /// Requires `key` to be at `revision`, 0 for absent.
    pub fn require(mut self, key: impl Into<Key>, revision: u64) -> Transaction {
        self.conditions.push(Condition { key: key.into(), revision });
        self
    }

    /// Puts a value, which stays until it is deleted.
    pub fn put(mut self, key: impl Into<Key>, value: Vec<u8>) -> Transaction {
        self.changes.push(Change { key: key.into(), value: Some(value), lease: None });
        self
    }

    /// Puts a value that is deleted with a lease. The transaction is refused with [`StoreError::NoLease`] when its
    /// conditions hold and the lease is not there.
    pub fn put_leased(
        mut self,
        key: impl Into<Key>,
        value: Vec<u8>,
        lease: LeaseId,
    ) -> Transaction {
        self.changes.push(Change { key: key.into(), value: Some(value), lease: Some(lease) });
        self
    }

    /// Deletes a key.
    pub fn delete(mut self, key: impl Into<Key>) -> Transaction {
        self.changes.push(Change { key: key.into(), value: None, lease: None });
        self
    }
}

/// How a transaction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Outcome {
    /// Its changes are durable, at this revision (the present one if it changed nothing).
    Committed(u64),
    /// A condition did not hold; nothing was changed.
    Conflict,
}

/// What to do.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Operation {
    /// Read one key: [`Answer::Value`].
    Get {
        /// Which.
        key: Key,
    },
    /// Read all keys that begin with `prefix`, in order: [`Answer::List`].
    List {
        /// Empty for all.
        prefix: String,
    },
    /// Compare and change: [`Answer::Transacted`].
    Transact(Transaction),
    /// From now on report changes to keys that begin with `prefix`: [`Answer::Watching`], then
    /// [`StoreEvent::Changed`] with this operation's token, until [`Operation::Unwatch`] or until
    /// the store is disconnected.
    Watch {
        /// Empty for all.
        prefix: String,
        /// First revision to report. 0, or one that the store cannot serve (forgotten, or not
        /// reached yet): the watch begins with [`WatchEvent::Resync`] at the present revision.
        from: u64,
    },
    /// End a watch: [`Answer::Unwatched`], also when there was none.
    Unwatch {
        /// The token of the [`Operation::Watch`].
        watch: Token,
    },
    /// Begin a lease: [`Answer::Granted`]. One whose answer is lost runs out by itself.
    Grant {
        /// For how long, at least.
        duration: Duration,
    },
    /// Give a lease its full duration again: [`Answer::Renewed`].
    Renew {
        /// Which.
        lease: LeaseId,
    },
    /// End a lease and delete its keys: [`Answer::Revoked`], also when there was none.
    Revoke {
        /// Which.
        lease: LeaseId,
    },
}

impl Operation {
    /// Whether it is a transaction: the only one that does something else when it is carried out twice.
    pub fn is_transaction(&self) -> bool {
        matches!(self, Operation::Transact(_))
    }

    /// Whether it changes nothing and begins nothing.
    pub fn is_read(&self) -> bool {
        matches!(self, Operation::Get { .. } | Operation::List { .. })
    }
}

/// The answer to an operation.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Answer {
    /// To a get; `None` when the key is absent.
    Value(Option<Versioned>),
    /// To a list.
    List(Listing),
    /// To a transaction.
    Transacted(Outcome),
    /// To a watch: events follow.
    Watching,
    /// To an unwatch: no event follows.
    Unwatched,
    /// To a grant.
    Granted(Lease),
    /// To a renewal; false when the lease is not there: it ran out, or was revoked, and its keys are deleted.
    Renewed(bool),
    /// To a revocation.
    Revoked,
}

/// Keys and values at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct Listing {
    /// The store's revision at that instant: a watch from `revision + 1` misses nothing.
    pub revision: u64,
    /// In order of keys.
    pub entries: Vec<(Key, Versioned)>,
}

/// Those changes of one transaction that a watch matches.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Changed {
    /// The transaction's revision.
    pub revision: u64,
    /// In the transaction's order.
    pub changes: Vec<Change>,
}

/// What a watch reports.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum WatchEvent {
    /// A transaction changed matching keys.
    Changed(Changed),
    /// The watch begins here, or fell further behind than the store remembers: list again. What
    /// comes after `revision` is reported.
    Resync {
        /// Changes up to this one may be missing.
        revision: u64,
    },
}

/// Why an operation has no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Encode, Decode)]
pub enum StoreError {
    /// The operation was not carried out, because there is no connection (or, of those that change leases, perhaps
    /// was; it may be repeated).
    #[error("the coordinator store is away")]
    Unavailable,
    /// The transaction was sent, but it is not known whether it was, or still will be, committed:
    /// read again, and settle it by a transaction with a condition on a key that it changes or
    /// requires.
    #[error("the coordinator store went away during a transaction; it may have been committed")]
    Unknown,
    /// A lease that the transaction names is not there.
    #[error(
        "a lease that a transaction of the coordinator store names has run out or was revoked; nothing was changed"
    )]
    NoLease,
    /// The operation breaks the contract's limits; nothing was changed.
    #[error("invalid operation on the coordinator store: {0}")]
    Invalid(String),
    /// The store could not read or write its file; nothing was answered or changed.
    #[error("the coordinator store failed: {0}; check the disk that holds it")]
    Failed(String),
    /// A value is not the record that was expected under its key.
    #[error("the coordinator store's value of {key} cannot be read: {reason}")]
    Malformed {
        /// Which key.
        key: Key,
        /// What is wrong with its value.
        reason: String,
    },
}

/// What a store reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEvent {
    /// The answer to an operation; exactly one each, in no particular order.
    Answer {
        /// From the submission.
        token: Token,
        /// [`StoreError::Unavailable`] only between [`StoreEvent::Disconnected`] (or the start)
        /// and [`StoreEvent::Connected`].
        result: Result<Answer, StoreError>,
    },
    /// A watch has something to report.
    Changed {
        /// The token of its [`Operation::Watch`].
        watch: Token,
        /// What.
        event: WatchEvent,
    },
    /// Operations submitted from now on reach the store.
    Connected,
    /// The connection is gone, and all watches with it. Operations in flight are answered after
    /// this: transactions with [`StoreError::Unknown`], all others with [`StoreError::Unavailable`] (what a grant,
    /// a renewal or a revocation among them did, another one does again).
    Disconnected,
}

/// The store as a core sees it: submit, poll, never block. It starts disconnected.
pub trait Store {
    /// Starts an operation. Errors come in the answer. Tokens of watches stay in use while the
    /// watch lasts.
    fn submit(&self, token: Token, operation: Operation);

    /// Appends what happened to `events`.
    fn poll(&self, events: &mut Vec<StoreEvent>);
}

/// Checks an operation against the limits of this contract.
pub fn validate(operation: &Operation) -> Result<(), StoreError> {
    let invalid = |what: String| Err(StoreError::Invalid(what));
    match operation {
        Operation::Get { key } => check_key(key),
        Operation::List { prefix } | Operation::Watch { prefix, .. } => {
            if prefix.len() > KEY_BYTES_MAX {
                return invalid(format!("a prefix of {} bytes is too long", prefix.len()));
            }
            Ok(())
        }
        Operation::Unwatch { .. } | Operation::Renew { .. } | Operation::Revoke { .. } => Ok(()),
        Operation::Grant { duration } => {
            if !(LEASE_DURATION_MIN..=LEASE_DURATION_MAX).contains(duration) {
                return invalid(format!(
                    "a lease of {duration:?}, not between {LEASE_DURATION_MIN:?} and {LEASE_DURATION_MAX:?}"
                ));
            }
            Ok(())
        }
        Operation::Transact(Transaction { conditions, changes }) => {
            let entries = conditions.len().max(changes.len());
            if entries > TRANSACTION_ENTRIES_MAX {
                return invalid(format!(
                    "{entries} entries in a transaction, more than {TRANSACTION_ENTRIES_MAX}"
                ));
            }
            let mut bytes = 0;
            for condition in conditions {
                check_key(&condition.key)?;
                bytes += condition.key.len();
            }
            let mut seen = std::collections::BTreeSet::new();
            for Change { key, value, lease } in changes {
                check_key(key)?;
                if value.is_none() && lease.is_some() {
                    return invalid(format!("{key} is deleted and given to a lease"));
                }
                if *lease == Some(LeaseId(0)) {
                    return invalid(format!("{key} is given to lease 0, which names none"));
                }
                if !seen.insert(key) {
                    return invalid(format!("{key} is changed twice in one transaction"));
                }
                let length = value.as_ref().map_or(0, Vec::len);
                if length > VALUE_BYTES_MAX {
                    return invalid(format!("the value of {key} has {length} bytes, too many"));
                }
                bytes += key.len() + length;
            }
            if bytes > TRANSACTION_BYTES_MAX {
                return invalid(format!("a transaction of {bytes} bytes is too large"));
            }
            Ok(())
        }
    }
}

fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() || key.len() > KEY_BYTES_MAX {
        let length = key.len();
        return Err(StoreError::Invalid(format!("a key of {length} bytes")));
    }
    Ok(())
}
