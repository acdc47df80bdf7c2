//! Requests, and the commands into which they are split.
//!
//! A request is one or more commands: no command moves more than the controller takes (MDTS and its
//! kin), nor crosses the namespace's optimal boundary. It is done when all of its commands are; its
//! result is the first error.

use crate::error::IoError;
use crate::namespace::Namespace;
use crate::spec::command::{
    Command, DEALLOCATE, FORCE_UNIT_ACCESS, PROTECTION_ACTION, PROTECTION_CHECKS, Range, io,
};
use crate::spec::identify::Protection;
use cleave_runtime::Token;

/// What to do, in blocks of the namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Fill the memory from the blocks.
    Read {
        /// First block.
        first: u64,
        /// Blocks.
        blocks: u64,
    },
    /// Write the memory to the blocks.
    Write {
        /// First block.
        first: u64,
        /// Blocks.
        blocks: u64,
        /// Done only when it is on stable media (FUA).
        durable: bool,
    },
    /// Make all writes of the namespace that completed before durable.
    Flush,
    /// Make the blocks zero.
    WriteZeroes {
        /// First block.
        first: u64,
        /// Blocks.
        blocks: u64,
        /// The device may deallocate them, if they read as zeroes then.
        deallocate: bool,
    },
    /// Give the blocks back to the device; what they hold is not defined then.
    Deallocate {
        /// First block.
        first: u64,
        /// Blocks.
        blocks: u64,
    },
    /// Fail with a compare failure when the blocks differ from the memory.
    Compare {
        /// First block.
        first: u64,
        /// Blocks.
        blocks: u64,
    },
    /// Fail when the blocks cannot be read; moves no data.
    Verify {
        /// First block.
        first: u64,
        /// Blocks.
        blocks: u64,
    },
}

/// A request; its memory comes back in the completion.
#[derive(Debug)]
pub struct Request<M> {
    /// Comes back in the completion.
    pub token: Token,
    /// Where.
    pub namespace: Namespace,
    /// What to do.
    pub operation: Operation,
    /// As long as the range for operations that move data, else not used.
    pub memory: M,
}

/// A finished request.
#[derive(Debug)]
pub struct Completion<M> {
    /// From the request.
    pub token: Token,
    /// Whether all of it was done.
    pub result: Result<(), IoError>,
    /// From the request.
    pub memory: M,
}

impl Operation {
    /// First block and blocks, for all but flush.
    pub(super) fn range(&self) -> Option<(u64, u64)> {
        match *self {
            Operation::Flush => None,
            Operation::Read { first, blocks }
            | Operation::Write { first, blocks, .. }
            | Operation::WriteZeroes { first, blocks, .. }
            | Operation::Deallocate { first, blocks }
            | Operation::Compare { first, blocks }
            | Operation::Verify { first, blocks } => Some((first, blocks)),
        }
    }

    /// Whether it names a range of no blocks.
    pub(crate) fn is_empty(&self) -> bool {
        self.range().is_some_and(|(_, blocks)| blocks == 0)
    }

    pub(super) fn moves_data(&self) -> bool {
        matches!(self, Operation::Read { .. } | Operation::Write { .. } | Operation::Compare { .. })
    }

    fn is_offered(&self, namespace: &Namespace) -> bool {
        match self {
            Operation::Read { .. } | Operation::Write { .. } | Operation::Flush => true,
            Operation::WriteZeroes { .. } => namespace.can_zero,
            Operation::Deallocate { .. } => namespace.can_deallocate,
            // Compare would need the protection information itself (NVM 3.2.1).
            Operation::Compare { .. } => {
                namespace.can_compare && namespace.protection == Protection::None
            }
            Operation::Verify { .. } => namespace.can_verify,
        }
    }

    /// Whether the request can be carried out with `memory` bytes.
    pub(super) fn check(&self, namespace: &Namespace, memory: u64) -> Result<(), IoError> {
        if !self.is_offered(namespace) {
            return Err(IoError::Unsupported);
        }
        let Some((first, blocks)) = self.range() else { return Ok(()) };
        let end = first.checked_add(blocks).filter(|end| *end <= namespace.blocks);
        if blocks == 0 || end.is_none() {
            return Err(IoError::Range);
        }
        // Within the namespace, whose bytes do not overflow.
        if self.moves_data() && memory != blocks << namespace.block_shift {
            return Err(IoError::Memory);
        }
        Ok(())
    }

    /// How many blocks the next command takes, of those from `done` on.
    pub(super) fn part(&self, namespace: &Namespace, done: u64) -> u32 {
        let Some((first, blocks)) = self.range() else { return 0 };
        let most = match self {
            Operation::WriteZeroes { .. } => namespace.zeroes_blocks,
            Operation::Deallocate { .. } => namespace.deallocate_blocks,
            Operation::Verify { .. } => namespace.verify_blocks,
            _ => namespace.transfer_blocks,
        };
        let mut part = u64::from(most).min(blocks - done);
        if self.moves_data() && namespace.boundary > 0 {
            let boundary = u64::from(namespace.boundary);
            part = part.min(boundary - (first + done) % boundary);
        }
        part as u32
    }

    /// The command for `blocks` blocks from `done` on, without its data pointer.
    pub(super) fn command(&self, namespace: &Namespace, done: u64, blocks: u32) -> Command {
        let over = |opcode: u8, first: u64, extra: u32| {
            let first = first + done;
            let reference = if namespace.tagged { first as u32 } else { 0 };
            let control = namespace.control | extra;
            Command::blocks(opcode, namespace.number, first, blocks, control, reference)
        };
        match *self {
            Operation::Flush => Command::flush(namespace.number),
            Operation::Read { first, .. } => over(io::READ, first, 0),
            Operation::Write { first, durable, .. } => {
                over(io::WRITE, first, if durable { FORCE_UNIT_ACCESS } else { 0 })
            }
            Operation::WriteZeroes { first, deallocate, .. } => {
                // Nothing is transferred that could be checked (NVM 3.2.8).
                let extra = if deallocate { DEALLOCATE } else { 0 };
                let mut command = over(io::WRITE_ZEROES, first, extra);
                command.dword10[2] = (command.dword10[2].get() & !PROTECTION_CHECKS).into();
                command
            }
            Operation::Deallocate { .. } => Command::deallocate(namespace.number),
            Operation::Compare { first, .. } => over(io::COMPARE, first, 0),
            Operation::Verify { first, .. } => {
                // Verify checks protection; there is nothing to insert or strip (NVM 3.2.5).
                let mut command = over(io::VERIFY, first, 0);
                command.dword10[2] = (command.dword10[2].get() & !PROTECTION_ACTION).into();
                command
            }
        }
    }

    /// The range that a deallocation hands over.
    pub(super) fn inline(&self, done: u64, blocks: u32) -> Option<Range> {
        let Operation::Deallocate { first, .. } = *self else { return None };
        let first = (first + done).into();
        Some(Range { attributes: 0.into(), blocks: blocks.into(), first })
    }
}
