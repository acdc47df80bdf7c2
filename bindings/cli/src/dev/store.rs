//! The cluster's coordinator store as the supervisor uses it: its own, or etcd beside it.

use crate::error::Result;
use cleave_coordinator::{Answer, BlockingStore, Operation, StoreError, StoreServer};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Which store a cluster has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StoreKind {
    /// Cleave's own, in the supervisor.
    #[default]
    Redb,
    /// Debian's etcd, a child of the supervisor.
    Etcd,
}

impl fmt::Display for StoreKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            StoreKind::Redb => "redb",
            StoreKind::Etcd => "etcd",
        })
    }
}

impl FromStr for StoreKind {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<StoreKind, String> {
        match text {
            "redb" => Ok(StoreKind::Redb),
            "etcd" => Ok(StoreKind::Etcd),
            _ => Err("it is redb or etcd".to_owned()),
        }
    }
}

/// The store of a cluster that is supervised.
pub enum ClusterStore {
    /// Served to the engines by this process.
    Own(StoreServer),
    /// This process is one of its clients.
    Etcd(BlockingStore),
}

impl ClusterStore {
    /// Carries an operation out; waits for it. Not for watches.
    pub fn execute(&self, operation: Operation) -> std::result::Result<Answer, StoreError> {
        match self {
            ClusterStore::Own(server) => server.execute(operation),
            ClusterStore::Etcd(client) => client.execute(operation),
        }
    }

    /// Whether it answers.
    pub fn is_connected(&self) -> bool {
        match self {
            ClusterStore::Own(_) => true,
            ClusterStore::Etcd(client) => client.is_connected(),
        }
    }
}

/// What was found, or what was known before when the store is away.
pub fn or_known<T>(found: Result<T>, known: impl FnOnce() -> T) -> Result<T> {
    match found {
        Err(crate::error::Error::Store(StoreError::Unavailable)) => Ok(known()),
        found => found,
    }
}
