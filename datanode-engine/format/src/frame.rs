//! Frames: an encoded block, or a run of blocks, or an object such as a map piece.
//!
//! ```text
//! frame:   header (32) | payload | zeros up to a multiple of 16
//! header:  0 version u8 | 1 codec u8 (0 stored, 1 LZ4; bit 7: encrypted) | 2 blocks u8 | 3 0
//!          4 payload length u16 | 6 core u16 | 8 crc32c u32 | 12 key u32
//!          16 incarnation u64 | 24 counter u64
//! ```
//! `blocks` is 1 for a block, 2-16 for a run of blocks, 0 for an object. The payload length counts
//! the 16-byte tag of AES-256-GCM and not the padding. Key 0 means that the frame is not encrypted.
//! The cipher authenticates the header with zeros in place of its checksum ([`FrameHeader::authenticated`]).
//!
//! In the log the checksum covers the frame except for the checksum itself. At rest it is extended by
//! stripe u64 and offset u32 of the frame's place, so that an intact frame in the wrong place fails
//! its check (C3). [`place`] and [`relocate`] verify before they extend: rot is never sealed in.
//! A frame binds neither vdisk nor block: clones and references share it (C29).

use crate::FormatError;
use crate::address::Address;
use crate::ids::Incarnation;
use crate::layout::{BLOCK, UNIT, padded};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of a frame's header.
pub const FRAME_HEADER: usize = 32;
/// Longest frame, in bytes: its length in 16-byte units fits 12 bits.
pub const FRAME_LENGTH_MAX: usize = (1 << 16) - UNIT;
/// Longest payload, in bytes.
pub const PAYLOAD_LENGTH_MAX: usize = FRAME_LENGTH_MAX - FRAME_HEADER;
/// Bytes of the authentication tag at the end of an encrypted payload.
pub const TAG: usize = 16;
/// Most blocks of a frame: a map entry has 4 bits for the block's number.
pub const FRAME_BLOCKS_MAX: u8 = 16;

const VERSION: u8 = 1;
const ENCRYPTED: u8 = 0x80;
const CHECKSUM: usize = 8;
const WHAT: &str = "frame";

/// How the payload was made from the content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As it is.
    Stored = 0,
    /// One LZ4 block. For an object it is preceded by the content's length, u32.
    Lz4 = 1,
}

/// What a frame says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// How the payload was made.
    pub codec: Codec,
    /// Blocks in the frame; 0 for an object.
    pub blocks: u8,
    /// Bytes of the payload, tag included, padding not.
    pub payload_length: u16,
    /// Core of the engine that encoded it (C29).
    pub core: u16,
    /// The key, `None` when not encrypted.
    pub key: Option<std::num::NonZeroU32>,
    /// Incarnation of the engine that encoded it (C29).
    pub incarnation: Incarnation,
    /// Counts the frames of that core and incarnation: the nonce (C29).
    pub counter: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    version: u8,
    codec: u8,
    blocks: u8,
    zero: u8,
    payload_length: U16,
    core: U16,
    crc: U32,
    key: U32,
    incarnation: U64,
    counter: U64,
}

const _: () = assert!(size_of::<Raw>() == FRAME_HEADER);
const _: () = assert!(std::mem::offset_of!(Raw, crc) == CHECKSUM);

impl FrameHeader {
    /// Reads a header and checks that its fields fit each other. The checksum is not checked: only
    /// the whole frame has one.
    pub fn decode(bytes: &[u8]) -> Result<FrameHeader, FormatError> {
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        if raw.version != VERSION {
            return Err(FormatError::Version(WHAT));
        }
        let codec = match raw.codec & !ENCRYPTED {
            0 => Codec::Stored,
            1 => Codec::Lz4,
            _ => return Err(FormatError::Malformed(WHAT)),
        };
        let header = FrameHeader {
            codec,
            blocks: raw.blocks,
            payload_length: raw.payload_length.get(),
            core: raw.core.get(),
            key: std::num::NonZeroU32::new(raw.key.get()),
            incarnation: Incarnation(raw.incarnation.get()),
            counter: raw.counter.get(),
        };
        let encrypted = raw.codec & ENCRYPTED != 0;
        if raw.zero != 0 || encrypted != header.key.is_some() || !header.is_valid() {
            return Err(FormatError::Malformed(WHAT));
        }
        Ok(header)
    }

    /// The header's bytes, with zeros in place of the checksum.
    ///
    /// # Panics
    /// When the fields do not fit each other (our own bug).
    pub fn encode(&self) -> [u8; FRAME_HEADER] {
        assert!(self.is_valid(), "fields of a frame header fit each other: {self:?}");
        self.raw_bytes()
    }

    /// What the cipher authenticates beside the payload: the header without its checksum.
    pub fn authenticated(&self) -> [u8; FRAME_HEADER] {
        self.raw_bytes()
    }

    /// Bytes of the content that is in the payload, without the tag.
    pub fn content_length(&self) -> usize {
        usize::from(self.payload_length) - if self.key.is_some() { TAG } else { 0 }
    }

    /// Bytes of the whole frame, padding included.
    pub fn frame_length(&self) -> usize {
        padded(FRAME_HEADER + usize::from(self.payload_length))
    }

    fn raw_bytes(&self) -> [u8; FRAME_HEADER] {
        let raw = Raw {
            version: VERSION,
            codec: self.codec as u8 | if self.key.is_some() { ENCRYPTED } else { 0 },
            blocks: self.blocks,
            zero: 0,
            payload_length: U16::new(self.payload_length),
            core: U16::new(self.core),
            crc: U32::ZERO,
            key: U32::new(self.key.map_or(0, std::num::NonZeroU32::get)),
            incarnation: U64::new(self.incarnation.0),
            counter: U64::new(self.counter),
        };
        zerocopy::transmute!(raw)
    }

    fn is_valid(&self) -> bool {
        let tag = if self.key.is_some() { TAG } else { 0 };
        let Some(content) = usize::from(self.payload_length).checked_sub(tag) else {
            return false;
        };
        let sized = match (self.codec, self.blocks) {
            (Codec::Stored, 0) | (Codec::Lz4, _) => content > 0,
            (Codec::Stored, blocks) => content == usize::from(blocks) * BLOCK,
        };
        sized
            && self.blocks <= FRAME_BLOCKS_MAX
            && usize::from(self.payload_length) <= PAYLOAD_LENGTH_MAX
    }
}

/// The whole length that a frame's first [`FRAME_HEADER`] bytes announce: a multiple of 16 below 64 KiB.
/// Not verified by the checksum, which covers the whole frame.
pub fn frame_length(header: &[u8]) -> Result<usize, FormatError> {
    FrameHeader::decode(header).map(|header| header.frame_length())
}

/// Writes the checksum that a frame has in the log. `frame` is the whole frame, padding included.
///
/// # Panics
/// When the length is not the one that the header says (our own bug).
pub fn seal(frame: &mut [u8]) {
    assert_eq!(frame_length(frame), Ok(frame.len()), "a frame has the length that its header says");
    let crc = checksum(frame);
    write_checksum(frame, crc);
}

/// Checks a frame as it is in the log and in memory.
pub fn check_in_log(frame: &[u8]) -> Result<FrameHeader, FormatError> {
    check(frame, |crc| crc)
}

/// Checks a frame that was read from its place at rest: integrity and identity (C3).
pub fn check_at(frame: &[u8], address: &Address) -> Result<FrameHeader, FormatError> {
    if frame.len() != address.length as usize {
        return Err(FormatError::Identity(WHAT));
    }
    check(frame, |crc| extend(crc, address))
}

/// Verifies a frame of the log and gives it the checksum of its place (C3).
///
/// # Panics
/// When the address is not one that a packer produces, or of another length (our own bug).
pub fn place(frame: &mut [u8], address: &Address) -> Result<FrameHeader, FormatError> {
    assert!(address.is_valid() && address.length as usize == frame.len());
    let header = check_in_log(frame)?;
    let crc = extend(read_checksum(frame), address);
    write_checksum(frame, crc);
    Ok(header)
}

/// Verifies a frame from its place at rest and gives it the checksum of another place (C3, C22).
///
/// # Panics
/// When `to` is not an address that a packer produces, or of another length (our own bug).
pub fn relocate(
    frame: &mut [u8],
    from: &Address,
    to: &Address,
) -> Result<FrameHeader, FormatError> {
    assert!(to.is_valid() && to.length as usize == frame.len());
    let header = check_at(frame, from)?;
    let crc = extend(checksum(frame), to);
    write_checksum(frame, crc);
    Ok(header)
}

fn check(frame: &[u8], expected: impl Fn(u32) -> u32) -> Result<FrameHeader, FormatError> {
    if frame.len() < FRAME_HEADER {
        return Err(FormatError::Short(WHAT));
    }
    // Before the fields: a damaged one is damage, whatever it says.
    if expected(checksum(frame)) != read_checksum(frame) {
        return Err(FormatError::Checksum(WHAT));
    }
    let header = FrameHeader::decode(frame)?;
    let end = FRAME_HEADER + usize::from(header.payload_length);
    if header.frame_length() != frame.len() || frame[end..].iter().any(|byte| *byte != 0) {
        return Err(FormatError::Malformed(WHAT));
    }
    Ok(header)
}

fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[..CHECKSUM]), &frame[CHECKSUM + 4..])
}

fn extend(crc: u32, address: &Address) -> u32 {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&address.stripe.0.to_le_bytes());
    place[8..].copy_from_slice(&address.offset.to_le_bytes());
    crc32c::crc32c_append(crc, &place)
}

fn read_checksum(frame: &[u8]) -> u32 {
    let bytes = frame[CHECKSUM..CHECKSUM + 4].try_into();
    u32::from_le_bytes(bytes.expect("four bytes"))
}

fn write_checksum(frame: &mut [u8], crc: u32) {
    frame[CHECKSUM..CHECKSUM + 4].copy_from_slice(&crc.to_le_bytes());
}

#[cfg(test)]
mod tests;
