//! The solo log: what a controller that is alone writes to three drives before it acknowledges (C12).
//!
//! The reserved area of a drive has four parts, two for each controller
//! ([`solo_area`](crate::superblock::Superblock::solo_area)). A *session* is one linear log in the same part of three
//! drives: segments, one after the other, the first at the part's first byte, each in whole pages. All three have the same bytes.
//!
//! ```text
//! segment:  0 magic "CLEAVEAL" | 8 version u8 | 9 0 | 10 data node u16 | 12 crc32c u32 of [0..12] and [16..96 + length]
//!           16 cluster [16] | 32 log id u64 | 40 controller incarnation u64 | 48 session u64
//!           56 number u64 (0, 1, 2, ... in the session) | 64 next position u64 | 72 length u32 of the entries
//!           76 entries u32 | 80 0 | 96 entries, to their length; then zeros to the end of the page
//! entry:    0 position u64 | 8 length u24 | 11 kind u8 (1 record, 2 control)
//!           12 a control record's check u32; 0 for records | 16 bytes | zeros up to a multiple of 16
//! ```
//! The first segments bring what the log held, the others what came then, in the order of positions. `next position` is where
//! the log goes on after the segment: positions in between that have no entry were released before.
//!
//! What a crash leaves: a segment is acknowledged once all three drives have it durable, and begun only when the one before it is. So
//! the session is what can be read of it, from any of the three drives, up to the first number that none of them has
//! intact. Whether it counts is the store's record's to say, which names incarnation, session, part and drives (C7).

use crate::FormatError;
use crate::ids::{ClusterId, DatanodeId, Incarnation, Position};
use crate::layout::padded;
use crate::page::PAGE;
use crate::vault::{ENTRY_LENGTH_MAX, VaultKind};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes before a segment's entries.
pub const SEGMENT_HEAD: usize = 96;
/// Bytes of entries beyond which a segment takes no further one.
pub const SEGMENT_FULL: usize = 1 << 20;
/// Drives that a session is on.
pub const SOLO_DRIVES: usize = 3;

/// Bytes of the longest segment on a drive.
pub const SEGMENT_MAX: usize = (SEGMENT_HEAD + LENGTH_MAX).next_multiple_of(PAGE);

const LENGTH_MAX: usize = SEGMENT_FULL + ENTRY_HEAD + ENTRY_LENGTH_MAX + 1;
const ENTRY_HEAD: usize = 16;
const MAGIC: [u8; 8] = *b"CLEAVEAL";
const VERSION: u8 = 1;
const WHAT: &str = "solo segment";

/// Whose session: the same in all its segments.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SessionIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
    /// The log's identity.
    pub log: u64,
    /// The controller's incarnation.
    pub incarnation: Incarnation,
    /// Number of the session; no incarnation begins two of the same.
    pub session: u64,
}

/// The head of a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentHead {
    /// Whose it is.
    pub identity: SessionIdentity,
    /// Which of the session.
    pub number: u64,
    /// Position that the log's next entry gets.
    pub next: Position,
    /// Bytes of its entries.
    pub length: u32,
    /// Its entries.
    pub entries: u32,
    crc: u32,
}

/// One entry of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentEntry<'a> {
    /// Its position.
    pub position: Position,
    /// What it is.
    pub kind: VaultKind,
    /// A control record's [`check`](crate::control::check); 0 for records.
    pub check: u32,
    /// Its bytes.
    pub bytes: &'a [u8],
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: u8,
    zero0: u8,
    datanode: U16,
    crc: U32,
    cluster: [u8; 16],
    log: U64,
    incarnation: U64,
    session: U64,
    number: U64,
    next: U64,
    length: U32,
    entries: U32,
    zero1: [u8; 16],
}

const _: () = assert!(size_of::<Raw>() == SEGMENT_HEAD);

/// A segment being made.
#[derive(Debug)]
pub struct SegmentWriter {
    identity: SessionIdentity,
    number: u64,
    bytes: Vec<u8>,
    entries: u32,
    last: Option<Position>,
}

impl SegmentWriter {
    /// Begins a segment, in a buffer that is used again.
    pub fn new(identity: SessionIdentity, number: u64, mut buffer: Vec<u8>) -> SegmentWriter {
        buffer.clear();
        buffer.resize(SEGMENT_HEAD, 0);
        SegmentWriter { identity, number, bytes: buffer, entries: 0, last: None }
    }

    /// Whether it takes another entry.
    pub fn is_full(&self) -> bool {
        self.bytes.len() - SEGMENT_HEAD >= SEGMENT_FULL
    }

    /// Adds an entry. `check`: of a control record, else 0.
    ///
    /// # Panics
    /// When positions do not grow, or the entry is too long (our own bug).
    pub fn append(&mut self, position: Position, kind: VaultKind, check: u32, bytes: &[u8]) {
        assert!(self.last.is_none_or(|last| last < position), "positions of the log grow");
        assert!(bytes.len() <= ENTRY_LENGTH_MAX, "an entry of the log has {} bytes", bytes.len());
        self.last = Some(position);
        self.entries += 1;
        let word = bytes.len() as u32 | (kind as u32) << 24;
        self.bytes.extend_from_slice(&position.0.to_le_bytes());
        self.bytes.extend_from_slice(&word.to_le_bytes());
        self.bytes.extend_from_slice(&check.to_le_bytes());
        self.bytes.extend_from_slice(bytes);
        let end = self.bytes.len() - bytes.len() + padded(bytes.len());
        self.bytes.resize(end, 0);
    }

    /// The segment's bytes, whole pages.
    ///
    /// # Panics
    /// When `next` is not after the last entry (our own bug).
    pub fn finish(mut self, next: Position) -> Vec<u8> {
        assert!(self.last.is_none_or(|last| last < next), "positions of the log grow");
        let length = self.bytes.len() - SEGMENT_HEAD;
        let raw = Raw {
            magic: MAGIC,
            version: VERSION,
            zero0: 0,
            datanode: U16::new(self.identity.datanode.0),
            crc: U32::ZERO,
            cluster: self.identity.cluster.0,
            log: U64::new(self.identity.log),
            incarnation: U64::new(self.identity.incarnation.0),
            session: U64::new(self.identity.session),
            number: U64::new(self.number),
            next: U64::new(next.0),
            length: U32::new(length as u32),
            entries: U32::new(self.entries),
            zero1: [0; 16],
        };
        self.bytes[..SEGMENT_HEAD].copy_from_slice(raw.as_bytes());
        let crc = checksum(&self.bytes);
        self.bytes[12..16].copy_from_slice(&crc.to_le_bytes());
        let pages = self.bytes.len().next_multiple_of(PAGE);
        self.bytes.resize(pages, 0);
        self.bytes
    }
}

fn checksum(segment: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&segment[..12]), &segment[16..])
}

impl SegmentHead {
    /// Reads the head, of bytes that begin a segment. What it says is to be believed once [`check`](SegmentHead::check)
    /// has looked at all of it.
    pub fn decode(bytes: &[u8]) -> Result<SegmentHead, FormatError> {
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        if raw.magic != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if raw.version != VERSION {
            return Err(FormatError::Version(WHAT));
        }
        crate::page::check_unused(&[&[raw.zero0], &raw.zero1], WHAT)?;
        let head = SegmentHead {
            identity: SessionIdentity {
                cluster: ClusterId(raw.cluster),
                datanode: DatanodeId(raw.datanode.get()),
                log: raw.log.get(),
                incarnation: Incarnation(raw.incarnation.get()),
                session: raw.session.get(),
            },
            number: raw.number.get(),
            next: Position(raw.next.get()),
            length: raw.length.get(),
            entries: raw.entries.get(),
            crc: raw.crc.get(),
        };
        let length = head.length as usize;
        let sound = length <= LENGTH_MAX
            && length.is_multiple_of(crate::layout::UNIT)
            && head.entries as usize <= length / ENTRY_HEAD;
        sound.then_some(head).ok_or(FormatError::Malformed(WHAT))
    }

    /// Bytes of the segment on a drive, whole pages.
    pub fn size(&self) -> usize {
        (SEGMENT_HEAD + self.length as usize).next_multiple_of(PAGE)
    }

    /// Checks the whole segment.
    pub fn check(&self, segment: &[u8]) -> Result<(), FormatError> {
        let end = SEGMENT_HEAD + self.length as usize;
        let segment = segment.get(..end).ok_or(FormatError::Short(WHAT))?;
        let intact = checksum(segment) == self.crc;
        intact.then_some(()).ok_or(FormatError::Checksum(WHAT))
    }

    /// The entries of a segment that passed its check.
    pub fn entries<'a>(&self, segment: &'a [u8]) -> Result<Vec<SegmentEntry<'a>>, FormatError> {
        let end = SEGMENT_HEAD + self.length as usize;
        let mut rest = segment.get(SEGMENT_HEAD..end).ok_or(FormatError::Short(WHAT))?;
        let mut entries: Vec<SegmentEntry<'a>> = Vec::with_capacity(self.entries as usize);
        while let Some((head, body)) = rest.split_first_chunk::<ENTRY_HEAD>() {
            let word =
                |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
            let position = Position(u64::from(word(0)) | u64::from(word(4)) << 32);
            let length = (word(8) & 0xff_ffff) as usize;
            let kind = match head[11] {
                1 => VaultKind::Record,
                2 => VaultKind::Control,
                _ => return Err(FormatError::Malformed(WHAT)),
            };
            let body_padded = body.get(..padded(length)).ok_or(FormatError::Malformed(WHAT))?;
            let grows = entries.last().is_none_or(|last| last.position < position);
            let zeros = body_padded[length..].iter().all(|byte| *byte == 0);
            if !grows || position >= self.next || !zeros {
                return Err(FormatError::Malformed(WHAT));
            }
            entries.push(SegmentEntry { position, kind, check: word(12), bytes: &body[..length] });
            rest = &body[padded(length)..];
        }
        let complete = rest.is_empty() && entries.len() == self.entries as usize;
        complete.then_some(entries).ok_or(FormatError::Malformed(WHAT))
    }
}

#[cfg(test)]
mod tests;
