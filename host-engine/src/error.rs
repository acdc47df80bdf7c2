//! Why a host engine does not start, or cannot go on: each is one line for the operator.

use std::io;
use std::path::PathBuf;

/// What ends a host engine.
#[derive(Debug, thiserror::Error)]
pub enum HostEngineError {
    /// The certificate is another engine's.
    #[error("the certificate {path} is of {found:?}, and this host is {wanted:?}; give it its own")]
    Certificate {
        /// The certificate.
        path: PathBuf,
        /// Its name.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// The store serves another cluster, or none.
    #[error(
        "the store at {store} is of {found}, and this host is of cluster {wanted}; correct store_socket, etcd or cluster"
    )]
    ForeignStore {
        /// Where the store is.
        store: String,
        /// Whose it is.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// The cluster encrypts, and there is no key.
    #[error(
        "the cluster is encrypted, and no key_file is configured; configure the file with its key"
    )]
    NoKey,
    /// Another key than the one under which the cluster was written.
    #[error("the key in {0} is not this cluster's; configure the file with the right key")]
    WrongKey(PathBuf),
    /// More than this version does.
    #[error("{0} data nodes are configured; this version serves vdisks of one")]
    Datanodes(usize),
    /// A folder of the engine's own.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// A core could not start.
    #[error("core {core}: {error}")]
    Core {
        /// Which.
        core: u16,
        /// Why not.
        error: cleave_runtime_real::error::Error,
    },
    /// Every number was given to a core.
    #[error("no core numbers are left; restart this engine")]
    CoreNumbers,
    /// The store refused or failed.
    #[error("{0}")]
    Store(#[from] cleave_coordinator::StoreError),
    /// The controllers will never talk to this process.
    #[error("the data node does not accept this engine: {0}")]
    Rejected(String),
}
