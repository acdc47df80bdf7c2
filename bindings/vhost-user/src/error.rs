//! How serving a vdisk fails, sorted by who is at fault.

use std::io;
use std::path::PathBuf;

/// Errors of [`Disk::bind`](crate::Disk::bind): the operator's to mend.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A value of the configuration is out of its range.
    #[error("vdisk {vdisk}: {what}")]
    Configuration {
        /// Name of the vdisk.
        vdisk: String,
        /// Which value, and what it may be.
        what: String,
    },
    /// A socket's path has at most 107 bytes.
    #[error(
        "socket path {path} is {length} bytes long; the system allows 107: use a shorter directory"
    )]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Another process listens there.
    #[error("socket {0} is in use: another process serves it; stop that one first")]
    InUse(PathBuf),
    /// Something that is not a socket is in the way; it is left alone.
    #[error("{0} exists and is not a socket: move it away")]
    NotASocket(PathBuf),
    /// The group does not exist on this machine.
    #[error("group {group} for socket {path} does not exist: create it or configure another")]
    UnknownGroup {
        /// The group's name.
        group: String,
        /// The socket.
        path: PathBuf,
    },
    /// The system refused.
    #[error("cannot {action} {path}: {source}")]
    System {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

/// Why a connection is closed: always the front end's doing, or its going.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Hangup {
    #[error("the front end closed the connection")]
    Closed,
    #[error("socket: {0}")]
    Socket(io::Error),
    #[error("message {code}: {what}")]
    Message { code: u32, what: String },
    #[error("the front end does not read its replies")]
    Unread,
    #[error(
        "memory that the front end shares was truncated, or failed: it must stay as long as it is shared"
    )]
    Lost,
}

/// Why a virtqueue is stopped: always the guest's doing. The guest gets it going again by a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RingFault {
    #[error("available ring or used ring is not readable, or its index jumped")]
    Ring,
    #[error("descriptor {0} is beyond the table")]
    Index(u16),
    #[error("descriptor {0} is in flight already")]
    Twice(u16),
    #[error("descriptor table is not readable")]
    Table,
    #[error("descriptor chain is longer than {0}")]
    TooLong(u32),
    #[error("indirect table inside an indirect table")]
    Nested,
    #[error("indirect table of {0} bytes, or with a next descriptor")]
    Indirect(u32),
    #[error("readable descriptor after a writable one")]
    Order,
    #[error("no writable status byte")]
    NoStatus,
    #[error("the memory is gone")]
    Lost,
}
