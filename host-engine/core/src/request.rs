//! What a guest asks for, and what it is told.

use cleave_format::ids::VdiskId;
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;

/// Unit of offsets and lengths, in bytes.
pub const SECTOR: u64 = 512;
/// Longest read or write, in bytes; longest discard or write-zeroes is [`RANGE_MAX`].
pub const TRANSFER_MAX: u64 = 8 << 20;
/// Longest discard or write-zeroes, in bytes: bounds the work of one turn.
pub const RANGE_MAX: u64 = 64 << 20;

/// What to do. Offsets and lengths are multiples of [`SECTOR`], within the vdisk.
#[derive(Debug)]
pub enum Operation {
    /// Read into a buffer of the core.
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write the buffer.
    Write {
        /// First byte.
        offset: u64,
        /// The data.
        data: Buffer,
    },
    /// The range is to read as zeros.
    WriteZeroes {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
        /// The space may be given back. It always is.
        unmap: bool,
    },
    /// The content of the range is not needed any more. Whole blocks in it read as zeros afterwards, the
    /// others stay (C6).
    Discard {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
    /// Writes that were completed are safe: they are, so this completes at once.
    Flush,
}

/// A request of a guest.
#[derive(Debug)]
pub struct GuestRequest {
    /// Comes back in the completion.
    pub token: Token,
    /// Whose disk.
    pub vdisk: VdiskId,
    /// What to do.
    pub operation: Operation,
}

/// The end of a request.
#[derive(Debug)]
pub struct GuestCompletion {
    /// From the request.
    pub token: Token,
    /// Whether all of it was done.
    pub result: Result<(), GuestError>,
    /// For a read that was done: its data.
    pub data: Option<Buffer>,
}

/// Why a guest gets an I/O error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuestError {
    /// The guest's fault: beyond the end, not whole sectors, or longer than is taken.
    #[error("the request is not within the vdisk, or not in whole sectors")]
    Range,
    /// This core does not serve the vdisk: it was closed, or another host took it (C8).
    #[error("the vdisk is not served here any more")]
    NotServed,
    /// The content is lost: more shards of its stripe are damaged or lost than can be solved.
    #[error("the content cannot be read back from the pool")]
    Unreadable,
    /// The content was encrypted under another key.
    #[error("the content was encrypted under another key")]
    Key,
}
