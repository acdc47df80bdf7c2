//! What can fail when the runtime is set up, sorted by who can do something about it.
//!
//! Failures of requests and connections are not here: they arrive as
//! [`DriveError`](cleave_runtime::drives::DriveError) and as reasons of closed links.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// Why a part of the runtime could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // The operator's to mend.
    /// The drive's path cannot be opened for reading and writing.
    #[error("drive {path}: cannot be opened: {source}; check the path and its permissions")]
    DriveOpen {
        /// As given.
        path: PathBuf,
        /// From the system.
        source: io::Error,
    },
    /// The path names something that is neither a block device nor a regular file, or is empty.
    #[error("drive {path}: {reason}")]
    DriveUnusable {
        /// As given.
        path: PathBuf,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Another process holds the drive.
    #[error(
        "drive {path}: still held by another process after {waited:?}; stop that process, or give \
         each process its own drives"
    )]
    DriveHeld {
        /// As given.
        path: PathBuf,
        /// How long was waited.
        waited: Duration,
    },
    /// The address for links cannot be bound.
    #[error("links cannot listen on {address}: {source}; choose a free UDP address of this host")]
    Listen {
        /// As configured.
        address: SocketAddr,
        /// From the system.
        source: io::Error,
    },
    /// A certificate, a key or a name is not usable.
    #[error("identity: {0}")]
    Identity(String),
    /// A setting is out of its range.
    #[error("setting {name}: {reason}")]
    Setting {
        /// Which.
        name: &'static str,
        /// What is wrong with it.
        reason: String,
    },

    // The machine's.
    /// The kernel gives this process no io_uring.
    #[error(
        "io_uring is not available: {0}; Linux 5.15 or newer is needed, neither sysctl \
         kernel.io_uring_disabled nor a container's seccomp filter may forbid it, and where memory \
         is short RLIMIT_MEMLOCK (ulimit -l) must be raised"
    )]
    Ring(io::Error),
    /// Another system call failed while setting up.
    #[error("{what} failed: {source}")]
    System {
        /// The call and its subject.
        what: &'static str,
        /// From the system.
        source: io::Error,
    },
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
