//! Log records: what a host appends, what the NVLOG holds, what a replay applies.
//!
//! ```text
//! record:  header (64) | entries (8 each) | padding to 16 | data of the entries, in order
//! header:  0 magic "CLRC" | 4 crc32c of [8 .. end of entries] | 8 version | 9 0 | 10 entries u16
//!          12 length u32 (whole record) | 16 vdisk u64 | 24 epoch u64 | 32 sequence u64
//!          40 slice u32 | 44 0 | 48 incarnation of the writing engine u64 | 56 0
//! entry:   0 block in slice u16 | 2 kind u8 | 3 0 | 4 blocks u16 | 6 data length / 16 u16
//! ```
//! A frame's data is the frame (its own CRC covers it, so the record's does not); a reference's
//! data is a full address (C5): stripe u64, offset u32, length / 16 u16, block in frame u16. Zeros and discards have no data and
//! may cover several blocks. Identity is (vdisk, slice, epoch, sequence) (C1).

use crate::FormatError;
use crate::ids::{Epoch, Incarnation, Sequence, SliceIndex, VdiskId, Version};
use crate::layout::{SLICE_BLOCKS, UNIT, padded};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Longest record: a slice of stored blocks with their headers, rounded up generously.
pub const RECORD_LENGTH_MAX: usize = 4 << 20;

const MAGIC: [u8; 4] = *b"CLRC";
const VERSION: u8 = 1;
const WHAT: &str = "log record";

/// What an entry says about its blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EntryKind {
    /// One block (or a run of `blocks` in one frame) with content.
    Frame = 1,
    /// All zeros.
    Zero = 2,
    /// Given back by the guest; reads as zeros.
    Discard = 3,
    /// The content of a frame elsewhere (C5, C19).
    Reference = 4,
}

impl EntryKind {
    fn from_byte(byte: u8) -> Option<EntryKind> {
        [EntryKind::Frame, EntryKind::Zero, EntryKind::Discard, EntryKind::Reference]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
    }
}

/// Who a record is (C1), and who wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordIdentity {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// The slice.
    pub slice: SliceIndex,
    /// Epoch and sequence.
    pub version: Version,
    /// The engine that took the write.
    pub incarnation: Incarnation,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    crc: U32,
    version: u8,
    zero0: u8,
    entries: U16,
    length: U32,
    vdisk: U64,
    epoch: U64,
    sequence: U64,
    slice: U32,
    zero1: U32,
    incarnation: U64,
    zero2: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    block: U16,
    kind: u8,
    zero: u8,
    blocks: U16,
    units: U16,
}

/// Bytes of a record's header.
pub const RECORD_HEADER: usize = 64;
const ENTRY: usize = 8;
const _: () = assert!(size_of::<RawHeader>() == RECORD_HEADER && size_of::<RawEntry>() == ENTRY);

/// One entry, as decoded or to be encoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// First block, within the slice.
    pub block: u16,
    /// What it says.
    pub kind: EntryKind,
    /// Blocks covered, at least 1; 1 for references.
    pub blocks: u16,
    /// Bytes of data in the record, a multiple of 16.
    pub length: u32,
}

/// Encodes the header and entry table of a record, to be followed by the entries' data in order.
/// The data is not copied: frames stay where they were encoded.
///
/// # Panics
/// When the entries break a limit of the layout (our own bug).
pub fn encode_head(identity: &RecordIdentity, entries: &[Entry], head: &mut Vec<u8>) {
    let table = padded(RECORD_HEADER + entries.len() * ENTRY);
    let data: usize = entries.iter().map(|entry| entry.length as usize).sum();
    assert!(!entries.is_empty() && entries.len() <= SLICE_BLOCKS as usize);
    assert!(table + data <= RECORD_LENGTH_MAX);
    let start = head.len();
    let header = RawHeader {
        magic: MAGIC,
        crc: U32::ZERO,
        version: VERSION,
        zero0: 0,
        entries: U16::new(entries.len() as u16),
        length: U32::new((table + data) as u32),
        vdisk: U64::new(identity.vdisk.0),
        epoch: U64::new(identity.version.epoch.0),
        sequence: U64::new(identity.version.sequence.0),
        slice: U32::new(identity.slice.0),
        zero1: U32::ZERO,
        incarnation: U64::new(identity.incarnation.0),
        zero2: U64::ZERO,
    };
    head.extend_from_slice(header.as_bytes());
    for entry in entries {
        assert!((entry.length as usize).is_multiple_of(UNIT) && entry.length < 1 << 20);
        let raw = RawEntry {
            block: U16::new(entry.block),
            kind: entry.kind as u8,
            zero: 0,
            blocks: U16::new(entry.blocks),
            units: U16::new((entry.length as usize / UNIT) as u16),
        };
        head.extend_from_slice(raw.as_bytes());
    }
    head.resize(start + table, 0);
    let crc = crc32c::crc32c(&head[start + 8..]);
    head[start + 4..start + 8].copy_from_slice(&crc.to_le_bytes());
}

/// A checked view of an encoded record.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// Who it is.
    pub identity: RecordIdentity,
    entries: &'a [u8],
    data: &'a [u8],
}

impl<'a> Record<'a> {
    /// The whole length that a record's first [`RECORD_HEADER`] bytes announce, unchecked but for its bounds.
    pub fn announced_length(header: &[u8]) -> Result<usize, FormatError> {
        let (header, _) =
            RawHeader::ref_from_prefix(header).map_err(|_| FormatError::Short(WHAT))?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        let length = header.length.get() as usize;
        if !(RECORD_HEADER..=RECORD_LENGTH_MAX).contains(&length) {
            return Err(FormatError::Malformed(WHAT));
        }
        Ok(length)
    }

    /// Checks the record's header, entries and bounds. Frames carry their own checksums, which the codec checks.
    pub fn decode(bytes: &'a [u8]) -> Result<Record<'a>, FormatError> {
        let length = Record::announced_length(bytes)?;
        if length != bytes.len() {
            return Err(FormatError::Malformed(WHAT));
        }
        let (header, _) =
            RawHeader::ref_from_prefix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        if header.version != VERSION {
            return Err(FormatError::Version(WHAT));
        }
        let count = usize::from(header.entries.get());
        let table = padded(RECORD_HEADER + count * ENTRY);
        if count == 0 || count > SLICE_BLOCKS as usize || table > length {
            return Err(FormatError::Malformed(WHAT));
        }
        if crc32c::crc32c(&bytes[8..table]) != header.crc.get() {
            return Err(FormatError::Checksum(WHAT));
        }
        // A record has one encoding: what is unused is zero.
        let unused = [u64::from(header.zero0), u64::from(header.zero1.get()), header.zero2.get()];
        let padding = &bytes[RECORD_HEADER + count * ENTRY..table];
        if unused != [0; 3] || padding.iter().any(|byte| *byte != 0) {
            return Err(FormatError::Malformed(WHAT));
        }
        let record = Record {
            identity: RecordIdentity {
                vdisk: VdiskId(header.vdisk.get()),
                slice: SliceIndex(header.slice.get()),
                version: Version {
                    epoch: Epoch(header.epoch.get()),
                    sequence: Sequence(header.sequence.get()),
                },
                incarnation: Incarnation(header.incarnation.get()),
            },
            entries: &bytes[RECORD_HEADER..RECORD_HEADER + count * ENTRY],
            data: &bytes[table..],
        };
        let mut data = 0;
        for raw in record.entries.chunks_exact(ENTRY) {
            let (kind, blocks) = (raw[2], u16::from_le_bytes([raw[4], raw[5]]));
            let block = u16::from_le_bytes([raw[0], raw[1]]);
            let units = u16::from_le_bytes([raw[6], raw[7]]);
            let sound = match EntryKind::from_byte(kind) {
                Some(EntryKind::Frame) => units > 0,
                Some(EntryKind::Zero | EntryKind::Discard) => units == 0,
                Some(EntryKind::Reference) => units == 1 && blocks == 1,
                None => false,
            };
            let end = u32::from(block) + u32::from(blocks);
            if !sound || raw[3] != 0 || blocks == 0 || end > SLICE_BLOCKS {
                return Err(FormatError::Malformed(WHAT));
            }
            data += usize::from(units) * UNIT;
        }
        if data != record.data.len() {
            return Err(FormatError::Malformed(WHAT));
        }
        Ok(record)
    }

    /// The entries with their data, in order.
    pub fn entries(&self) -> impl Iterator<Item = (Entry, &'a [u8])> + use<'a> {
        let mut rest = self.data;
        self.entries.chunks_exact(ENTRY).map(move |raw| {
            let length = usize::from(u16::from_le_bytes([raw[6], raw[7]])) * UNIT;
            let (data, after) = rest.split_at(length);
            rest = after;
            let entry = Entry {
                block: u16::from_le_bytes([raw[0], raw[1]]),
                kind: EntryKind::from_byte(raw[2]).expect("decode checked the kinds"),
                blocks: u16::from_le_bytes([raw[4], raw[5]]),
                length: length as u32,
            };
            (entry, data)
        })
    }
}

#[cfg(test)]
mod tests;
