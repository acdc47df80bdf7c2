//! A namespace as requests see it: its size, its format, and what its controller takes at once.

use crate::error::Error;
use crate::spec::command::{PROTECTION_ACTION, PROTECTION_CHECK_GUARD, PROTECTION_CHECK_REFERENCE};
use crate::spec::identify::{ControllerIdentity, NamespaceIdentity, Protection};

/// Most blocks of a command whose count is 16 bits, zero-based (NVM 3.2).
const BLOCKS_MAX: u64 = 1 << 16;

/// Limits of single commands that the controller states for its NVM command set (NVM figure 102),
/// in bytes or, for deallocation, blocks. Zero for none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct CommandLimits {
    pub(crate) verify_bytes: u64,
    pub(crate) zeroes_bytes: u64,
    pub(crate) deallocate_blocks: u64,
}

impl CommandLimits {
    /// Reads the command set's Identify data; `page` is CAP.MPSMIN in bytes.
    pub(crate) fn parse(data: &[u8; 4096], page: u64) -> CommandLimits {
        let bytes = |shift: u8| match shift {
            0 => 0,
            shift => page.checked_shl(shift.into()).unwrap_or(0),
        };
        let range = u32::from_le_bytes(data[4..8].try_into().expect("4 bytes"));
        let whole = u64::from_le_bytes(data[8..16].try_into().expect("8 bytes"));
        let stated = [u64::from(range), whole].into_iter().filter(|limit| *limit > 0).min();
        CommandLimits {
            verify_bytes: bytes(data[0]),
            zeroes_bytes: bytes(data[1]),
            deallocate_blocks: stated.unwrap_or(0),
        }
    }
}

/// See the module's page. Only the controller makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Namespace {
    pub(crate) number: u32,
    pub(crate) blocks: u64,
    pub(crate) block_shift: u8,
    /// Upper bits of dword 12 of commands over blocks.
    pub(crate) control: u32,
    /// The reference tag is the low half of the block's number.
    pub(crate) tagged: bool,
    /// Most blocks of a command that moves data.
    pub(crate) transfer_blocks: u32,
    pub(crate) verify_blocks: u32,
    pub(crate) zeroes_blocks: u32,
    pub(crate) deallocate_blocks: u32,
    /// Commands that move data do not cross multiples of this; 0 for none.
    pub(crate) boundary: u32,
    pub(crate) can_compare: bool,
    pub(crate) can_verify: bool,
    pub(crate) can_zero: bool,
    pub(crate) can_deallocate: bool,
    pub(crate) reads_zero: bool,
    pub(crate) cached: bool,
    pub(crate) protection: Protection,
}

fn at_most(limit: u64, most: u64) -> u32 {
    u32::try_from(if limit == 0 { most } else { limit.min(most) }).unwrap_or(u32::MAX).max(1)
}

impl Namespace {
    /// From what the controller says; `transfer_max` is the longest transfer in bytes.
    pub(crate) fn new(
        identity: &NamespaceIdentity,
        controller: &ControllerIdentity,
        limits: &CommandLimits,
        transfer_max: u64,
    ) -> Result<Namespace, Error> {
        let shift = identity.block_bytes.trailing_zeros();
        let protected = identity.protection != Protection::None;
        // With protection information alone as metadata the controller inserts, checks and strips
        // it, and no metadata moves (PRACT, NVM 5.2.2.1).
        if identity.metadata_bytes != 0 && !(protected && identity.metadata_bytes == 8) {
            return Err(Error::Unsupported(format!(
                "namespace {} has {} bytes of metadata a block that are not protection \
                 information alone; format it without metadata",
                identity.number, identity.metadata_bytes
            )));
        }
        let control = match identity.protection {
            Protection::None => 0,
            Protection::Guard => PROTECTION_ACTION | PROTECTION_CHECK_GUARD,
            Protection::Reference => {
                PROTECTION_ACTION | PROTECTION_CHECK_GUARD | PROTECTION_CHECK_REFERENCE
            }
        };
        let transfer_blocks = transfer_max >> shift;
        if transfer_blocks == 0 {
            return Err(Error::Unsupported(format!(
                "namespace {} has blocks of {} bytes, and a command moves at most {transfer_max}",
                identity.number, identity.block_bytes
            )));
        }
        Ok(Namespace {
            number: identity.number,
            blocks: identity.blocks,
            block_shift: shift as u8,
            control,
            tagged: identity.protection == Protection::Reference,
            transfer_blocks: at_most(transfer_blocks, BLOCKS_MAX),
            verify_blocks: at_most(limits.verify_bytes >> shift, BLOCKS_MAX),
            zeroes_blocks: at_most(limits.zeroes_bytes >> shift, BLOCKS_MAX),
            deallocate_blocks: at_most(limits.deallocate_blocks, u64::from(u32::MAX)),
            boundary: u32::from(identity.optimal_boundary),
            can_compare: controller.compare,
            can_verify: controller.verify,
            can_zero: controller.write_zeroes,
            can_deallocate: controller.dataset_management,
            reads_zero: identity.deallocated_is_zero,
            cached: controller.volatile_write_cache,
            protection: identity.protection,
        })
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Blocks.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Bytes in a block.
    pub fn block_bytes(&self) -> u32 {
        1 << self.block_shift
    }

    /// Bytes.
    pub fn capacity(&self) -> u64 {
        self.blocks << self.block_shift
    }

    /// Bytes that one command moves at most.
    pub fn transfer_max(&self) -> u64 {
        u64::from(self.transfer_blocks) << self.block_shift
    }

    /// How its blocks are protected.
    pub fn protection(&self) -> Protection {
        self.protection
    }

    /// Whether writes are in a volatile cache until they are flushed.
    pub fn is_cached(&self) -> bool {
        self.cached
    }

    /// Whether ranges can be given back to the device.
    pub fn can_deallocate(&self) -> bool {
        self.can_deallocate
    }

    /// Whether ranges can be zeroed without data.
    pub fn can_write_zeroes(&self) -> bool {
        self.can_zero
    }

    /// Whether deallocated blocks read as zeroes.
    pub fn deallocated_is_zero(&self) -> bool {
        self.reads_zero
    }
}
