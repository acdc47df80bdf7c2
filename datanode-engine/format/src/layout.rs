//! Sizes that every part agrees on (DESIGN §2).

/// Bytes of a block, the unit of mapping.
pub const BLOCK: usize = 4096;
/// Blocks of a slice.
pub const SLICE_BLOCKS: u32 = 512;
/// Bytes of a slice.
pub const SLICE: u64 = SLICE_BLOCKS as u64 * BLOCK as u64;
/// Slices whose leaves are stored together as one map piece: at most 34 KiB, so that it fits a frame.
pub const PIECE_SLICES: u32 = 2;
/// The largest vdisk, in bytes.
pub const VDISK_MAX: u64 = 64 << 40;
/// Unit of frame places and lengths, in bytes.
pub const UNIT: usize = 16;
/// Bytes of a shard's data.
pub const SHARD: usize = 1 << 20;
/// Bytes of a part: frames do not straddle parts.
pub const PART: usize = 128 << 10;
/// Bytes of a column: the unit of shard checksums and of parity work.
pub const COLUMN: usize = 64 << 10;
/// Columns of a shard.
pub const COLUMNS: usize = SHARD / COLUMN;
/// Parity shards of every stripe.
pub const PARITY_SHARDS: usize = 2;
/// Most data shards of a stripe: 8 MiB fit 19 bits of 16-byte units.
pub const DATA_SHARDS_MAX: usize = 8;
/// Bytes of the header before a shard in its slot.
pub const SLOT_HEADER: usize = 4096;
/// Bytes of a slot.
pub const SLOT: usize = SLOT_HEADER + SHARD;
/// Most drives of a pool.
pub const DRIVES_MAX: usize = 120;

const _: () = assert!(DATA_SHARDS_MAX * SHARD / UNIT == 1 << 19);
const _: () = assert!(SHARD.is_multiple_of(PART) && PART.is_multiple_of(COLUMN));

/// Rounds up to whole units.
pub const fn padded(length: usize) -> usize {
    length.div_ceil(UNIT) * UNIT
}
