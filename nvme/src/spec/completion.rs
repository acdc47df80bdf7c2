//! Completion queue entries (Base 3.3.3.2) and status codes (Base 3.3.3.2.1).

use std::fmt;
use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a completion queue entry (Base 3.3.3.2).
pub const COMPLETION_BYTES: usize = 16;

/// A completion queue entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct CompletionEntry {
    /// Dword 0: by command.
    pub result: U32,
    /// Dword 1: reserved, or by command.
    pub reserved: U32,
    /// Where the controller reads next in the submission queue.
    pub submission_head: U16,
    /// The submission queue.
    pub submission_queue: U16,
    /// The command.
    pub identifier: U16,
    /// Phase tag (bit 0) and status (bits 15:1).
    pub phase_and_status: U16,
}

const _: () = assert!(size_of::<CompletionEntry>() == COMPLETION_BYTES);

impl CompletionEntry {
    /// The phase tag.
    pub fn phase(&self) -> bool {
        self.phase_and_status.get() & 1 != 0
    }

    /// The status field.
    pub fn status(&self) -> Status {
        Status(self.phase_and_status.get() >> 1)
    }
}

/// A status field without its phase tag: code (bits 7:0), type (10:8), retry delay (12:11), more
/// (13), do not retry (14).
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Status(pub u16);

impl Status {
    /// The command was done.
    pub const SUCCESS: Status = Status(0);
    /// Invalid Command Opcode (Base figure 93).
    pub const INVALID_OPCODE: Status = Status(0x01);
    /// Invalid Field in Command.
    pub const INVALID_FIELD: Status = Status(0x02);
    /// Data Transfer Error.
    pub const DATA_TRANSFER: Status = Status(0x04);
    /// Internal Error.
    pub const INTERNAL: Status = Status(0x06);
    /// Command Abort Requested.
    pub const ABORT_REQUESTED: Status = Status(0x07);
    /// Command Aborted due to SQ Deletion.
    pub const QUEUE_DELETED: Status = Status(0x08);
    /// Invalid Namespace or Format.
    pub const INVALID_NAMESPACE: Status = Status(0x0b);
    /// LBA Out of Range (NVM figure 23).
    pub const OUT_OF_RANGE: Status = Status(0x80);
    /// Capacity Exceeded.
    pub const CAPACITY_EXCEEDED: Status = Status(0x81);
    /// Namespace Not Ready.
    pub const NOT_READY: Status = Status(0x82);
    /// Feature Not Changeable (Base figure 94).
    pub const NOT_CHANGEABLE: Status = Status(0x10e);
    /// Invalid Protection Information (NVM figure 24).
    pub const INVALID_PROTECTION: Status = Status(0x181);
    /// Write Fault (NVM figure 25).
    pub const WRITE_FAULT: Status = Status(0x280);
    /// Unrecovered Read Error.
    pub const UNRECOVERED_READ: Status = Status(0x281);
    /// End-to-end Guard Check Error.
    pub const GUARD_CHECK: Status = Status(0x282);
    /// End-to-end Application Tag Check Error.
    pub const APPLICATION_CHECK: Status = Status(0x283);
    /// End-to-end Reference Tag Check Error.
    pub const REFERENCE_CHECK: Status = Status(0x284);
    /// Compare Failure.
    pub const COMPARE_FAILURE: Status = Status(0x285);

    /// Code and type, without the bits about retries.
    pub fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// Whether the command was done.
    pub fn is_success(self) -> bool {
        self.code() == 0
    }

    /// The controller says that the same command will fail again (DNR).
    pub fn do_not_retry(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// Whether both name the same code and type.
    pub fn is(self, other: Status) -> bool {
        self.code() == other.code()
    }

    /// The medium is at fault: the data is lost, or the write was (type 2h).
    pub fn is_media_error(self) -> bool {
        self.code() >> 8 == 2
    }

    fn meaning(self) -> &'static str {
        match Status(self.code()) {
            Status::SUCCESS => "success",
            Status::INVALID_OPCODE => "invalid opcode",
            Status::INVALID_FIELD => "invalid field in command",
            Status::DATA_TRANSFER => "data transfer error",
            Status::INTERNAL => "internal error",
            Status::ABORT_REQUESTED => "aborted as requested",
            Status::QUEUE_DELETED => "aborted, its queue was deleted",
            Status::INVALID_NAMESPACE => "invalid namespace or format",
            Status::OUT_OF_RANGE => "block out of range",
            Status::CAPACITY_EXCEEDED => "capacity exceeded",
            Status::NOT_READY => "namespace not ready",
            Status::NOT_CHANGEABLE => "feature not changeable",
            Status::INVALID_PROTECTION => "invalid protection information",
            Status::WRITE_FAULT => "write fault",
            Status::UNRECOVERED_READ => "unrecovered read error",
            Status::GUARD_CHECK => "guard check error",
            Status::APPLICATION_CHECK => "application tag check error",
            Status::REFERENCE_CHECK => "reference tag check error",
            Status::COMPARE_FAILURE => "compare failure",
            _ => "see the specification's status codes",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "status {:#05x} ({})", self.code(), self.meaning())
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Status({:#06x})", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phase_and_status_share_a_word() {
        let entry = CompletionEntry {
            phase_and_status: (0x281 << 1 | 1 | 1 << 15).into(),
            ..CompletionEntry::default()
        };
        assert!(entry.phase());
        assert!(entry.status().is(Status::UNRECOVERED_READ));
        assert!(entry.status().do_not_retry() && entry.status().is_media_error());
        assert_eq!(entry.status().to_string(), "status 0x281 (unrecovered read error)");
    }
}
