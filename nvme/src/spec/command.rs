//! Submission queue entries (Base 3.3.3.1) and the commands that the driver sends.
//!
//! A command's data pointer and identifier are filled in where it is queued.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Bytes of a submission queue entry (Base 3.3.3.1).
pub const COMMAND_BYTES: usize = 64;

/// Admin opcodes (Base figure 138).
pub mod admin {
    /// Delete I/O Submission Queue (Base 5.7).
    pub const DELETE_SUBMISSION_QUEUE: u8 = 0x00;
    /// Create I/O Submission Queue (Base 5.5).
    pub const CREATE_SUBMISSION_QUEUE: u8 = 0x01;
    /// Get Log Page (Base 5.16).
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue (Base 5.6).
    pub const DELETE_COMPLETION_QUEUE: u8 = 0x04;
    /// Create I/O Completion Queue (Base 5.4).
    pub const CREATE_COMPLETION_QUEUE: u8 = 0x05;
    /// Identify (Base 5.17).
    pub const IDENTIFY: u8 = 0x06;
    /// Abort (Base 5.1).
    pub const ABORT: u8 = 0x08;
    /// Set Features (Base 5.27).
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features (Base 5.15).
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request (Base 5.2).
    pub const ASYNCHRONOUS_EVENT_REQUEST: u8 = 0x0c;
}

/// I/O opcodes (Base 7, NVM 3).
pub mod io {
    /// Flush (Base 7.1).
    pub const FLUSH: u8 = 0x00;
    /// Write (NVM 3.2.6).
    pub const WRITE: u8 = 0x01;
    /// Read (NVM 3.2.4).
    pub const READ: u8 = 0x02;
    /// Compare (NVM 3.2.1).
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes (NVM 3.2.8).
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management (NVM 3.2.3).
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify (NVM 3.2.5).
    pub const VERIFY: u8 = 0x0c;
}

/// Bit of command dword 12: the controller inserts or strips and checks protection information
/// (PRACT, NVM 5.2.2).
pub const PROTECTION_ACTION: u32 = 1 << 29;
/// Bits of command dword 12: check guard, application tag, reference tag (PRCHK).
pub const PROTECTION_CHECK_GUARD: u32 = 1 << 28;
/// See [`PROTECTION_CHECK_GUARD`].
pub const PROTECTION_CHECK_REFERENCE: u32 = 1 << 26;
/// All bits of PRCHK.
pub const PROTECTION_CHECKS: u32 = 7 << 26;
/// Bit of Write Zeroes dword 12: the blocks may be deallocated (DEAC, NVM 3.2.8).
pub const DEALLOCATE: u32 = 1 << 25;
/// Bit of read and write dword 12: past volatile caches (FUA, NVM 3.2.6).
pub const FORCE_UNIT_ACCESS: u32 = 1 << 30;
/// Bit of Dataset Management dword 11: deallocate (AD, NVM 3.2.3).
pub const ATTRIBUTE_DEALLOCATE: u32 = 1 << 2;
/// Bytes of a range of Dataset Management (NVM figure 39).
pub const RANGE_BYTES: usize = 16;

/// A submission queue entry.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout,
)]
#[repr(C)]
pub struct Command {
    /// What to do.
    pub opcode: u8,
    /// Fused operation (bits 1:0) and how data is pointed to (PSDT, bits 7:6).
    pub flags: u8,
    /// Command identifier, unique among what is outstanding in a queue.
    pub identifier: U16,
    /// Namespace.
    pub namespace: U32,
    /// Dwords 2 and 3: by command.
    pub dword2: [U32; 2],
    /// Metadata pointer.
    pub metadata: U64,
    /// Data pointer: two PRP entries or an SGL descriptor.
    pub data: [U64; 2],
    /// Dwords 10 to 15: by command.
    pub dword10: [U32; 6],
}

const _: () = assert!(size_of::<Command>() == COMMAND_BYTES);

/// PSDT: the data pointer is an SGL descriptor, metadata is one contiguous buffer (Base 3.3.3.1).
pub const FLAG_SGL: u8 = 1 << 6;

/// Why Identify is asked (CNS, Base figure 273).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum IdentifyWhat {
    /// A namespace's format and size.
    Namespace = 0,
    /// The controller.
    Controller = 1,
    /// Active namespaces above a number.
    ActiveNamespaces = 2,
    /// Limits of the controller's NVM command set (NVM 4.1.5.4).
    CommandSet = 6,
}

impl Command {
    fn new(opcode: u8, namespace: u32) -> Command {
        Command { opcode, namespace: namespace.into(), ..Command::default() }
    }

    fn dwords(mut self, values: [u32; 6]) -> Command {
        self.dword10 = values.map(U32::new);
        self
    }

    /// Identify (Base 5.17): 4096 bytes of data.
    pub fn identify(what: IdentifyWhat, namespace: u32) -> Command {
        Command::new(admin::IDENTIFY, namespace).dwords([what as u32, 0, 0, 0, 0, 0])
    }

    /// Get Log Page (Base 5.16) of `bytes`, a multiple of 4.
    pub fn get_log_page(log: u8, namespace: u32, bytes: u32, keep_event: bool) -> Command {
        let dwords = bytes / 4 - 1;
        let dword10 = u32::from(log) | u32::from(keep_event) << 15 | (dwords & 0xffff) << 16;
        Command::new(admin::GET_LOG_PAGE, namespace).dwords([dword10, dwords >> 16, 0, 0, 0, 0])
    }

    /// Create I/O Completion Queue (Base 5.4), physically contiguous; `vector` enables interrupts.
    pub fn create_completion_queue(queue: u16, entries: u16, vector: Option<u16>) -> Command {
        let dword10 = u32::from(queue) | u32::from(entries - 1) << 16;
        let interrupt = vector.map_or(0, |vector| u32::from(vector) << 16 | 1 << 1);
        Command::new(admin::CREATE_COMPLETION_QUEUE, 0).dwords([dword10, interrupt | 1, 0, 0, 0, 0])
    }

    /// Create I/O Submission Queue (Base 5.5), physically contiguous, that completes to the
    /// completion queue of the same number.
    pub fn create_submission_queue(queue: u16, entries: u16) -> Command {
        let dword10 = u32::from(queue) | u32::from(entries - 1) << 16;
        let dword11 = u32::from(queue) << 16 | 1;
        Command::new(admin::CREATE_SUBMISSION_QUEUE, 0).dwords([dword10, dword11, 0, 0, 0, 0])
    }

    /// Delete I/O Submission Queue (Base 5.7).
    pub fn delete_submission_queue(queue: u16) -> Command {
        Command::new(admin::DELETE_SUBMISSION_QUEUE, 0).dwords([u32::from(queue), 0, 0, 0, 0, 0])
    }

    /// Delete I/O Completion Queue (Base 5.6).
    pub fn delete_completion_queue(queue: u16) -> Command {
        Command::new(admin::DELETE_COMPLETION_QUEUE, 0).dwords([u32::from(queue), 0, 0, 0, 0, 0])
    }

    /// Abort (Base 5.1).
    pub fn abort(queue: u16, identifier: u16) -> Command {
        let dword10 = u32::from(queue) | u32::from(identifier) << 16;
        Command::new(admin::ABORT, 0).dwords([dword10, 0, 0, 0, 0, 0])
    }

    /// Set Features (Base 5.27) without data.
    pub fn set_features(feature: u8, value: u32) -> Command {
        Command::new(admin::SET_FEATURES, 0).dwords([u32::from(feature), value, 0, 0, 0, 0])
    }

    /// Get Features (Base 5.15), the current value; `selector` is dword 11.
    pub fn get_features(feature: u8, selector: u32) -> Command {
        Command::new(admin::GET_FEATURES, 0).dwords([u32::from(feature), selector, 0, 0, 0, 0])
    }

    /// Asynchronous Event Request (Base 5.2).
    pub fn asynchronous_event_request() -> Command {
        Command::new(admin::ASYNCHRONOUS_EVENT_REQUEST, 0)
    }

    /// Flush (Base 7.1).
    pub fn flush(namespace: u32) -> Command {
        Command::new(io::FLUSH, namespace)
    }

    /// A command over a range of blocks: read, write, compare, verify, write zeroes (NVM 3.2).
    /// `control` holds the upper bits of dword 12, `reference` the initial reference tag.
    ///
    /// # Panics
    /// When `blocks` is not in 1..=65536.
    pub fn blocks(
        opcode: u8,
        namespace: u32,
        first: u64,
        blocks: u32,
        control: u32,
        reference: u32,
    ) -> Command {
        assert!((1..=1 << 16).contains(&blocks), "a command names 1 to 65536 blocks");
        let dword12 = (blocks - 1) | control;
        let first = [first as u32, (first >> 32) as u32];
        Command::new(opcode, namespace).dwords([first[0], first[1], dword12, 0, reference, 0])
    }

    /// Dataset Management with one range to deallocate (NVM 3.2.3).
    pub fn deallocate(namespace: u32) -> Command {
        let dwords = [0, ATTRIBUTE_DEALLOCATE, 0, 0, 0, 0];
        Command::new(io::DATASET_MANAGEMENT, namespace).dwords(dwords)
    }

    /// First block of a command over blocks.
    pub fn first_block(&self) -> u64 {
        u64::from(self.dword10[0].get()) | u64::from(self.dword10[1].get()) << 32
    }
}

/// A range of Dataset Management (NVM figure 39).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Range {
    /// Hints; none are given.
    pub attributes: U32,
    /// Blocks.
    pub blocks: U32,
    /// First block.
    pub first: U64,
}

const _: () = assert!(size_of::<Range>() == RANGE_BYTES);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_have_the_bytes_of_the_specification() {
        let mut read = Command::blocks(io::READ, 1, 0x1_0000_0002, 8, 0, 0);
        read.identifier = 0x1234.into();
        read.data[0] = 0x1000.into();
        let bytes = read.as_bytes();
        assert_eq!(bytes[0..8], [2, 0, 0x34, 0x12, 1, 0, 0, 0]);
        assert_eq!(bytes[24..32], [0, 0x10, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[40..52], [2, 0, 0, 0, 1, 0, 0, 0, 7, 0, 0, 0]);
        assert_eq!(read.first_block(), 0x1_0000_0002);
        let queue = Command::create_completion_queue(2, 256, Some(5));
        assert_eq!(queue.dword10[0].get(), 255 << 16 | 2);
        assert_eq!(queue.dword10[1].get(), 5 << 16 | 3);
        let log = Command::get_log_page(2, u32::MAX, 512, false);
        assert_eq!(log.dword10[0].get(), 127 << 16 | 2);
    }
}
