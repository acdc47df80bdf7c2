//! The coordinator store: small, strongly consistent state outside the I/O path (C7).
//!
//! Members, roles, in-sync sets, ownership epochs, the namespace. The contract is shaped so that
//! etcd fits behind it: string keys, byte values, a revision per key, a global revision,
//! compare-and-swap over several keys, watches by prefix, leases.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`contract`] | the operations, their limits, and [`Store`], what a core sees |
//! | [`client`] | [`StoreClient`]: operations as futures, waiting while the store is away |
//! | [`blocking`] | [`BlockingStore`]: operations for threads that may wait |
//! | [`records`] | the typed records that cores read and write here, counters |
//! | [`encoding`] | the only place that knows bincode |
//! | [`frame`] | messages on the socket |
//! | [`redb_store`] | [`RedbStore`]: one process's durable (or in-memory) store |
//! | [`hub`] | many clients of one [`RedbStore`]: operations in, answers and watch events out |
//! | [`server`], [`socket`] | the hub behind a Unix socket, and [`SocketStore`] at its other end |
//! | [`listener`], [`acceptor`] | Unix sockets of mode 0600, and the thread that accepts there |
//! | `conformance` | what every store must do, as one suite |
//! | [`direct`] | [`DirectStore`]: the hub without a socket, for the simulator |

#![forbid(unsafe_code)]

pub mod acceptor;
pub mod blocking;
pub mod client;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod contract;
pub mod direct;
pub mod encoding;
pub mod frame;
pub mod hub;
pub mod listener;
pub mod records;
pub mod redb_store;
pub mod server;
pub mod socket;

pub use blocking::BlockingStore;
pub use client::{StoreClient, Watch};
pub use contract::{
    Answer, Change, Changed, Condition, Key, Lease, LeaseId, Listing, Operation, Outcome, Store,
    StoreError, StoreEvent, Transaction, Versioned, WatchEvent,
};
pub use direct::{DirectServer, DirectStore, Schedule, Time};
pub use hub::Hub;
pub use listener::ListenError;
pub use records::{LogRole, Member, Solo, VdiskOwner, next_incarnation, next_number};
pub use redb_store::{OpenError, RedbStore};
pub use server::StoreServer;
pub use socket::SocketStore;

#[cfg(test)]
mod tests;
