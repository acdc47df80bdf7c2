//! Addresses of frames, and the 8-byte map entry.
//!
//! ```text
//! map entry, 64 bits:  63..35 stripe handle (29) | 34..16 offset / 16 (19) | 15..4 length / 16 (12) | 3..0 block number in its frame
//! ```
//! Handle 0 means that the block has no frame: unmapped or zero.

use crate::ids::StripeId;
use crate::layout::{DATA_SHARDS_MAX, PART, SHARD, UNIT};
use bincode::{Decode, Encode};

/// Finds a frame, in the pool and in flash.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Encode, Decode)]
pub struct Address {
    /// The stripe.
    pub stripe: StripeId,
    /// First byte in the stripe's data section; a multiple of 16.
    pub offset: u32,
    /// Bytes, header and padding included; a multiple of 16, below 64 KiB.
    pub length: u32,
}

impl Address {
    /// Whether the fields are ones that a packer produces.
    pub fn is_valid(&self) -> bool {
        let (offset, length) = (self.offset as usize, self.length as usize);
        offset.is_multiple_of(UNIT)
            && length.is_multiple_of(UNIT)
            && length > 0
            && length < 1 << 16
            && offset + length <= DATA_SHARDS_MAX * SHARD
            && offset / PART == (offset + length - 1) / PART
    }

    /// Data shard that holds the frame.
    pub fn shard(&self) -> usize {
        self.offset as usize / SHARD
    }

    /// First byte within that shard.
    pub fn shard_offset(&self) -> usize {
        self.offset as usize % SHARD
    }
}

/// A host's short name for a stripe: 29 bits, never 0, not reused while anything names it (C3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Handle(pub u32);

/// Largest handle.
pub const HANDLE_MAX: u32 = (1 << 29) - 1;

/// One block's place, in 8 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MapEntry(pub u64);

impl MapEntry {
    /// No frame: reads as zeros.
    pub const EMPTY: MapEntry = MapEntry(0);

    /// Packs a place. `offset` and `length` are in bytes and multiples of 16.
    ///
    /// # Panics
    /// When a field does not fit: addresses are checked where they come from outside.
    pub fn new(handle: Handle, offset: u32, length: u32, block_in_frame: u8) -> MapEntry {
        let (offset, length) = (offset / UNIT as u32, length / UNIT as u32);
        assert!(handle.0 != 0 && handle.0 <= HANDLE_MAX && offset < 1 << 19);
        assert!(length < 1 << 12 && block_in_frame < 16);
        MapEntry(
            u64::from(handle.0) << 35
                | u64::from(offset) << 16
                | u64::from(length) << 4
                | u64::from(block_in_frame),
        )
    }

    /// Whether there is no frame.
    pub fn is_empty(self) -> bool {
        self.0 >> 35 == 0
    }

    /// The stripe's handle, unless empty.
    pub fn handle(self) -> Option<Handle> {
        (!self.is_empty()).then_some(Handle((self.0 >> 35) as u32))
    }

    /// Byte offset in the stripe's data section.
    pub fn offset(self) -> u32 {
        ((self.0 >> 16) as u32 & ((1 << 19) - 1)) * UNIT as u32
    }

    /// Length in bytes.
    pub fn length(self) -> u32 {
        ((self.0 >> 4) as u32 & ((1 << 12) - 1)) * UNIT as u32
    }

    /// Number of the block in its frame.
    pub fn block_in_frame(self) -> u8 {
        (self.0 & 15) as u8
    }
}

#[cfg(test)]
mod tests;
