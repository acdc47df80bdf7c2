//! The coordinator store on etcd, for clusters of several machines.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`config`] | where the members are, and how to be let in |
//! | [`store`] | [`EtcdStore`], what a core polls: a thread with a runtime of its own |
//! | [`open`](mod@open) | the store that an engine's configuration names: etcd, or Cleave's own |
//! | [`setup`] | a user, root and authentication in a fresh etcd |
//! | `session` | one connection: operations in flight, watches, the order of what is reported |
//! | `translate` | operations and revisions of the contract as etcd's, and back |
//!
//! The contract is `cleave_coordinator::contract`; the suite `cleave_coordinator::conformance` is run over this
//! store as over the others. All keys lie below a prefix, so several clusters can share an etcd.
//!
//! etcd's revision is 1 when nothing was ever written, the contract's is 0: they differ by one. Others who write
//! to the same etcd raise the revision too, which the contract allows to nobody but costs nothing.
#![forbid(unsafe_code)]

pub mod config;
pub mod open;
mod session;
pub mod setup;
pub mod store;
mod translate;

pub use config::{ConfigError, EtcdConfig};
pub use open::{OpenError, open};
pub use setup::{SetupError, set_up};
pub use store::EtcdStore;
