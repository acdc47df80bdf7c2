//! Slots: a drive's places for shards, each a header page and 1 MiB of data or parity.
//!
//! ```text
//! slot:    header (4096) | shard (1 MiB)
//! header:  0 magic "CLEAVESL" | 8 version u8 | 9 shard index u8 | 10 data shards u8 | 11 0
//!          12 drive u16 | 14 0 | 16 cluster [16] | 32 stripe u64 | 40 slot u32 | 44 generation u32
//!          48 0 [16] | 64 crc32c of each 64 KiB column, u32 [16] | 128 0 | 4092 crc32c u32 of [0..4092]
//! ```
//! Header and shard are written together, with no order between their pages. A crash in between
//! leaves a slot whose columns fail their checksums, or an older stripe's slot: both are told from
//! the wanted shard, because a stripe's identity is used once (C3), and neither is committed (C10).

use crate::FormatError;
use crate::control::SlotPlace;
use crate::ids::{ClusterId, DriveId, SlotIndex, StripeId};
use crate::layout::{COLUMN, COLUMNS, DATA_SHARDS_MAX, PARITY_SHARDS, SHARD, SLOT_HEADER};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 8] = *b"CLEAVESL";
const VERSION: u8 = 1;
const WHAT: &str = "slot header";

/// Who a slot's shard is, and what its columns must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The stripe.
    pub stripe: StripeId,
    /// Which of its shards: data first, then parity.
    pub shard: u8,
    /// Data shards of the stripe (k).
    pub data_shards: u8,
    /// Where it was meant to be written, with the drive's generation at the grant.
    pub place: SlotPlace,
    /// CRC32C of each column.
    pub columns: [u32; COLUMNS],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: u8,
    shard: u8,
    data_shards: u8,
    zero0: u8,
    drive: U16,
    zero1: U16,
    cluster: [u8; 16],
    stripe: U64,
    slot: U32,
    generation: U32,
    zero2: [u8; 16],
    columns: [U32; COLUMNS],
    zero3: [u8; SLOT_HEADER - 132],
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() == SLOT_HEADER);
const _: () = assert!(std::mem::offset_of!(Raw, columns) == 64);

impl SlotHeader {
    /// Writes the header.
    ///
    /// # Panics
    /// When `out` is not [`SLOT_HEADER`] bytes, or the shard is none of the stripe (our own bug).
    pub fn encode(&self, out: &mut [u8]) {
        assert!(self.is_valid(), "a slot header names a shard of its stripe: {self:?}");
        let raw = Raw {
            magic: MAGIC,
            version: VERSION,
            shard: self.shard,
            data_shards: self.data_shards,
            zero0: 0,
            drive: U16::new(self.place.drive.0),
            zero1: U16::ZERO,
            cluster: self.cluster.0,
            stripe: U64::new(self.stripe.0),
            slot: U32::new(self.place.slot.0),
            generation: U32::new(self.place.generation),
            zero2: [0; 16],
            columns: self.columns.map(U32::new),
            zero3: [0; SLOT_HEADER - 132],
            crc: U32::ZERO,
        };
        out.copy_from_slice(raw.as_bytes());
        crate::page::seal(out);
    }

    /// Reads a header from the first page of a slot.
    pub fn decode(bytes: &[u8]) -> Result<SlotHeader, FormatError> {
        crate::page::check(bytes, &MAGIC, VERSION, WHAT)?;
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        let unused = [&[raw.zero0][..], raw.zero1.as_bytes(), &raw.zero2, &raw.zero3];
        crate::page::check_unused(&unused, WHAT)?;
        let header = SlotHeader {
            cluster: ClusterId(raw.cluster),
            stripe: StripeId(raw.stripe.get()),
            shard: raw.shard,
            data_shards: raw.data_shards,
            place: SlotPlace {
                drive: DriveId(raw.drive.get()),
                slot: SlotIndex(raw.slot.get()),
                generation: raw.generation.get(),
            },
            columns: raw.columns.map(U32::get),
        };
        header.is_valid().then_some(header).ok_or(FormatError::Malformed(WHAT))
    }

    /// Whether this is the shard that was looked for, in the place where it was looked for (C3).
    pub fn check_identity(
        &self,
        cluster: ClusterId,
        stripe: StripeId,
        shard: usize,
        place: &SlotPlace,
    ) -> Result<(), FormatError> {
        let same = self.cluster == cluster
            && self.stripe == stripe
            && usize::from(self.shard) == shard
            && self.place == *place;
        same.then_some(()).ok_or(FormatError::Identity(WHAT))
    }

    /// Checks one column of the shard.
    ///
    /// # Panics
    /// When `index` is none of the shard's columns, or `bytes` is not a whole one (our own bug).
    pub fn check_column(&self, index: usize, bytes: &[u8]) -> Result<(), FormatError> {
        assert_eq!(bytes.len(), COLUMN, "columns are checked whole");
        let same = crc32c::crc32c(bytes) == self.columns[index];
        same.then_some(()).ok_or(FormatError::Checksum("column"))
    }

    fn is_valid(&self) -> bool {
        let (shard, data_shards) = (usize::from(self.shard), usize::from(self.data_shards));
        (1..=DATA_SHARDS_MAX).contains(&data_shards) && shard < data_shards + PARITY_SHARDS
    }
}

/// The checksums of a shard's columns.
///
/// # Panics
/// When `shard` is not 1 MiB (our own bug).
pub fn column_checksums(shard: &[u8]) -> [u32; COLUMNS] {
    assert_eq!(shard.len(), SHARD, "shards are 1 MiB");
    let mut columns = [0; COLUMNS];
    for (crc, column) in columns.iter_mut().zip(shard.chunks_exact(COLUMN)) {
        *crc = crc32c::crc32c(column);
    }
    columns
}

#[cfg(test)]
mod tests;
