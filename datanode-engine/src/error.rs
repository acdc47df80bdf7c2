//! Why a controller does not start, or cannot go on: each is one line for the operator.

use cleave_format::FormatError;
use std::io;
use std::path::PathBuf;

/// What is wrong with a drive that makes it unsafe to go on: using it would destroy something.
#[derive(Debug, thiserror::Error)]
#[error("drive {drive} at {path}: {problem}")]
pub struct DriveFault {
    /// Its number in the configuration.
    pub drive: u16,
    /// Where it is.
    pub path: PathBuf,
    /// What is wrong, and what to do.
    pub problem: DriveProblem,
}

/// See [`DriveFault`].
#[derive(Debug, thiserror::Error)]
pub enum DriveProblem {
    /// Nothing of ours was ever on it.
    #[error("it is not a Cleave drive; configure the path of the drive itself, or none")]
    NotOurs,
    /// Neither copy can be read.
    #[error(
        "both copies of its superblock are unusable ({0}); remove the drive from the configuration, its content is solved from the others"
    )]
    Superblocks(FormatError),
    /// A newer program wrote it (C31).
    #[error("it was written by a newer version; start that one")]
    Newer,
    /// Somebody copied one drive over another.
    #[error("its two superblocks are of different drives; remove it from the configuration")]
    Mixed,
    /// Somebody else's.
    #[error("it belongs to {found}, not to {wanted}; configure the path of the drive itself")]
    Foreign {
        /// Whose it is.
        found: String,
        /// Whose it should be.
        wanted: String,
    },
    /// A predecessor that does not end, or another controller.
    #[error("another process still holds it after {0} s; end that process")]
    Held(u64),
    /// The runtime refuses it.
    #[error("{0}")]
    Open(cleave_runtime_real::error::Error),
    /// The driver refuses it.
    #[error("{0}")]
    Nvme(cleave_nvme::error::Error),
    /// It names a controller as nobody would.
    #[error("{0}")]
    Place(String),
    /// The intact copy could not be written over the other one.
    #[error("the damaged copy of its superblock cannot be repaired: {0}")]
    Repair(io::Error),
}

/// Everything else that ends a controller.
#[derive(Debug, thiserror::Error)]
pub enum ControllerError {
    /// The certificate is another engine's.
    #[error(
        "the certificate {path} is of {found:?}, and this controller is {wanted:?}; give it its own"
    )]
    Certificate {
        /// The certificate.
        path: PathBuf,
        /// Its name.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// The store serves another cluster.
    #[error(
        "the store at {store} is of cluster {found}, and this controller is of {wanted}; correct store_socket, etcd or cluster"
    )]
    ForeignStore {
        /// Where the store is.
        store: String,
        /// Its cluster.
        found: String,
        /// Ours.
        wanted: String,
    },
    /// A file or folder of the controller's own.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The core said that it cannot go on.
    #[error("{0}")]
    Failed(String),
}
