//! Footers: a stripe's list of what it holds, at the end of its data section.
//!
//! ```text
//! footer:   entries (88 each) | zeros up to a multiple of 16 | trailer (64), the section's last bytes
//! entry:    0 kind u8 | 1 block in frame u8 | 2 length / 16 u16 | 4 offset / 16 u32, or blocks u32
//!           8 vdisk u64 | 16 block u64 | 24 epoch u64 | 32 sequence u64
//!           40 other stripe u64 | 48 other offset / 16 u32 | 52 other length / 16 u16 | 54 0 u16
//!           56 fingerprint [32]
//! trailer:  0 magic "CLFT" | 4 version u8 | 5 data shards u8 | 6 0 u16 | 8 stripe u64
//!           16 incarnation of the writing engine u64 | 24 entries u32 | 28 crc32c of everything before
//!           the trailer u32 | 32 0 [28] | 60 crc32c of the trailer's [0..60] u32
//! ```
//! `kind`: 1 frame, 2 zero, 3 discard, 4 reference, 5 map piece, 6 move; 7, forward, is reserved and not
//! read yet (C22, C31). Length and offset are the frame's in this stripe (frame, map piece, move);
//! zero and discard have a number of blocks in place of the offset; the other address is what a reference
//! refers to (C5, C19) or where a moved frame was (C22). Unused fields are zero.
//!
//! A footer is written with its stripe and never changed. One that was written and not
//! committed says nothing: only a commit makes its entries count (C4).

use crate::FormatError;
use crate::address::Address;
use crate::frame::FRAME_BLOCKS_MAX;
use crate::ids::{BlockIndex, Epoch, Incarnation, Sequence, StripeId, VdiskId, Version};
use crate::layout::{DATA_SHARDS_MAX, SHARD, SLICE_BLOCKS, UNIT, padded};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of an entry.
pub const FOOTER_ENTRY: usize = 88;
/// Bytes of a trailer.
pub const TRAILER: usize = 64;

const MAGIC: [u8; 4] = *b"CLFT";
const VERSION: u8 = 1;
const WHAT: &str = "footer";

/// SHA-256 of the plaintext block, keyed in an encrypted datastore.
pub type Fingerprint = [u8; 32];

/// A frame's place in the footer's own stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// First byte in the data section; a multiple of 16.
    pub offset: u32,
    /// Bytes; a multiple of 16.
    pub length: u32,
}

impl Place {
    /// The place as an address.
    pub fn address(self, stripe: StripeId) -> Address {
        Address { stripe, offset: self.offset, length: self.length }
    }
}

/// What an entry says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FooterContent {
    /// The block is in a frame of this stripe.
    Frame {
        /// The frame.
        place: Place,
        /// Which of the frame's blocks.
        block_in_frame: u8,
        /// Of the block.
        fingerprint: Fingerprint,
    },
    /// Blocks from the entry's block on, within one slice, are zeros (C5).
    Zero {
        /// How many.
        blocks: u32,
    },
    /// Blocks from the entry's block on, within one slice, were given back by the guest (C5).
    Discard {
        /// How many.
        blocks: u32,
    },
    /// The block has the content of a frame in another stripe, or elsewhere in this one (C5, C19).
    Reference {
        /// That frame.
        address: Address,
        /// Which of the frame's blocks.
        block_in_frame: u8,
        /// Of the block.
        fingerprint: Fingerprint,
    },
    /// A piece of a map run; the entry's block is the piece's group.
    MapPiece {
        /// Its frame.
        place: Place,
    },
    /// The cleaner moved the block's frame to here: applies only where the map still says `from` (C22).
    Move {
        /// The frame's address before.
        from: Address,
        /// The frame here.
        place: Place,
        /// Which of the frame's blocks.
        block_in_frame: u8,
        /// Of the block.
        fingerprint: Fingerprint,
    },
}

/// One entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FooterEntry {
    /// Whose.
    pub vdisk: VdiskId,
    /// The block, or the first of a run; a map piece's group.
    pub block: BlockIndex,
    /// The content's age (C2).
    pub version: Version,
    /// What it says.
    pub content: FooterContent,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawEntry {
    kind: u8,
    block_in_frame: u8,
    units: U16,
    offset_units: U32,
    vdisk: U64,
    block: U64,
    epoch: U64,
    sequence: U64,
    other_stripe: U64,
    other_offset_units: U32,
    other_units: U16,
    zero: U16,
    fingerprint: Fingerprint,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawTrailer {
    magic: [u8; 4],
    version: u8,
    data_shards: u8,
    zero0: U16,
    stripe: U64,
    incarnation: U64,
    entries: U32,
    entries_crc: U32,
    zero1: [u8; 28],
    crc: U32,
}

const _: () = assert!(size_of::<RawEntry>() == FOOTER_ENTRY);
const _: () = assert!(size_of::<RawTrailer>() == TRAILER);

/// Kinds, by number.
mod kind {
    pub const FRAME: u8 = 1;
    pub const ZERO: u8 = 2;
    pub const DISCARD: u8 = 3;
    pub const REFERENCE: u8 = 4;
    pub const MAP_PIECE: u8 = 5;
    pub const MOVE: u8 = 6;
}

/// Bytes of a footer with that many entries, trailer included; a multiple of 16.
pub const fn footer_length(entries: usize) -> usize {
    padded(entries * FOOTER_ENTRY) + TRAILER
}

/// The footer's bytes, which end the data section of `data_shards` MiB.
///
/// # Panics
/// When the footer is longer than the section or an entry cannot be (our own bug).
pub fn encode(
    stripe: StripeId,
    data_shards: usize,
    incarnation: Incarnation,
    entries: &[FooterEntry],
) -> Vec<u8> {
    assert!((1..=DATA_SHARDS_MAX).contains(&data_shards));
    let length = footer_length(entries.len());
    assert!(length <= data_shards * SHARD, "a footer fits its data section");
    let mut bytes = Vec::with_capacity(length);
    for entry in entries {
        assert!(is_valid(entry, stripe, data_shards * SHARD - length), "not an entry: {entry:?}");
        bytes.extend_from_slice(raw(entry).as_bytes());
    }
    bytes.resize(length - TRAILER, 0);
    let mut trailer = RawTrailer {
        magic: MAGIC,
        version: VERSION,
        data_shards: data_shards as u8,
        zero0: U16::ZERO,
        stripe: U64::new(stripe.0),
        incarnation: U64::new(incarnation.0),
        entries: U32::new(entries.len() as u32),
        entries_crc: U32::new(crc32c::crc32c(&bytes)),
        zero1: [0; 28],
        crc: U32::ZERO,
    };
    trailer.crc = U32::new(crc32c::crc32c(&trailer.as_bytes()[..TRAILER - 4]));
    bytes.extend_from_slice(trailer.as_bytes());
    bytes
}

/// The end of a footer: says how long the rest is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The stripe.
    pub stripe: StripeId,
    /// Its data shards.
    pub data_shards: usize,
    /// Incarnation of the engine that wrote it.
    pub incarnation: Incarnation,
    /// Entries of the footer.
    pub entries: usize,
    entries_crc: u32,
}

impl Trailer {
    /// Reads the trailer from the last [`TRAILER`] bytes of `bytes`, which end the data section.
    pub fn decode(bytes: &[u8]) -> Result<Trailer, FormatError> {
        let (_, raw) = RawTrailer::ref_from_suffix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        if raw.magic != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if crc32c::crc32c(&raw.as_bytes()[..TRAILER - 4]) != raw.crc.get() {
            return Err(FormatError::Checksum(WHAT));
        }
        if raw.version != VERSION {
            return Err(FormatError::Version(WHAT));
        }
        let trailer = Trailer {
            stripe: StripeId(raw.stripe.get()),
            data_shards: usize::from(raw.data_shards),
            incarnation: Incarnation(raw.incarnation.get()),
            entries: raw.entries.get() as usize,
            entries_crc: raw.entries_crc.get(),
        };
        let sound = (1..=DATA_SHARDS_MAX).contains(&trailer.data_shards)
            && raw.zero0.get() == 0
            && raw.zero1 == [0; 28]
            && trailer.footer_length() <= trailer.data_shards * SHARD;
        sound.then_some(trailer).ok_or(FormatError::Malformed(WHAT))
    }

    /// Bytes of the whole footer.
    pub fn footer_length(&self) -> usize {
        footer_length(self.entries)
    }
}

/// Reads the footer of `stripe` from the end of `bytes`, which end the data section and are at least
/// [`Trailer::footer_length`] long.
pub fn decode(stripe: StripeId, bytes: &[u8]) -> Result<Vec<FooterEntry>, FormatError> {
    let trailer = Trailer::decode(bytes)?;
    if trailer.stripe != stripe {
        return Err(FormatError::Identity(WHAT));
    }
    let length = trailer.footer_length();
    let start = bytes.len().checked_sub(length).ok_or(FormatError::Short(WHAT))?;
    let body = &bytes[start..bytes.len() - TRAILER];
    if crc32c::crc32c(body) != trailer.entries_crc {
        return Err(FormatError::Checksum(WHAT));
    }
    let section_end = trailer.data_shards * SHARD - length;
    let (entries, padding) = <[RawEntry]>::ref_from_prefix_with_elems(body, trailer.entries)
        .map_err(|_| FormatError::Short(WHAT))?;
    if padding.iter().any(|byte| *byte != 0) {
        return Err(FormatError::Malformed(WHAT));
    }
    entries
        .iter()
        .map(|bytes| {
            let entry = parse(bytes)?;
            // One entry has one encoding: what is unused is zero.
            let sound =
                is_valid(&entry, stripe, section_end) && raw(&entry).as_bytes() == bytes.as_bytes();
            sound.then_some(entry).ok_or(FormatError::Malformed(WHAT))
        })
        .collect()
}

fn raw(entry: &FooterEntry) -> RawEntry {
    let mut raw = RawEntry {
        kind: 0,
        block_in_frame: 0,
        units: U16::ZERO,
        offset_units: U32::ZERO,
        vdisk: U64::new(entry.vdisk.0),
        block: U64::new(entry.block.0),
        epoch: U64::new(entry.version.epoch.0),
        sequence: U64::new(entry.version.sequence.0),
        other_stripe: U64::ZERO,
        other_offset_units: U32::ZERO,
        other_units: U16::ZERO,
        zero: U16::ZERO,
        fingerprint: [0; 32],
    };
    let units = |bytes: u32| bytes / UNIT as u32;
    let mut here: Option<Place> = None;
    let mut other: Option<Address> = None;
    match entry.content {
        FooterContent::Frame { place, block_in_frame, fingerprint } => {
            raw.kind = kind::FRAME;
            here = Some(place);
            raw.block_in_frame = block_in_frame;
            raw.fingerprint = fingerprint;
        }
        FooterContent::Zero { blocks } => {
            raw.kind = kind::ZERO;
            raw.offset_units = U32::new(blocks);
        }
        FooterContent::Discard { blocks } => {
            raw.kind = kind::DISCARD;
            raw.offset_units = U32::new(blocks);
        }
        FooterContent::Reference { address, block_in_frame, fingerprint } => {
            raw.kind = kind::REFERENCE;
            other = Some(address);
            raw.block_in_frame = block_in_frame;
            raw.fingerprint = fingerprint;
        }
        FooterContent::MapPiece { place } => {
            raw.kind = kind::MAP_PIECE;
            here = Some(place);
        }
        FooterContent::Move { from, place, block_in_frame, fingerprint } => {
            raw.kind = kind::MOVE;
            here = Some(place);
            other = Some(from);
            raw.block_in_frame = block_in_frame;
            raw.fingerprint = fingerprint;
        }
    }
    if let Some(place) = here {
        raw.offset_units = U32::new(units(place.offset));
        raw.units = U16::new(units(place.length) as u16);
    }
    if let Some(address) = other {
        raw.other_stripe = U64::new(address.stripe.0);
        raw.other_offset_units = U32::new(units(address.offset));
        raw.other_units = U16::new(units(address.length) as u16);
    }
    raw
}

fn parse(raw: &RawEntry) -> Result<FooterEntry, FormatError> {
    let bytes = |units: u32| units.checked_mul(UNIT as u32).ok_or(FormatError::Malformed(WHAT));
    let place = || {
        let offset = bytes(raw.offset_units.get())?;
        Ok(Place { offset, length: u32::from(raw.units.get()) * UNIT as u32 })
    };
    let other = || {
        Ok(Address {
            stripe: StripeId(raw.other_stripe.get()),
            offset: bytes(raw.other_offset_units.get())?,
            length: u32::from(raw.other_units.get()) * UNIT as u32,
        })
    };
    let (block_in_frame, fingerprint) = (raw.block_in_frame, raw.fingerprint);
    let blocks = raw.offset_units.get();
    let content = match raw.kind {
        kind::FRAME => FooterContent::Frame { place: place()?, block_in_frame, fingerprint },
        kind::ZERO => FooterContent::Zero { blocks },
        kind::DISCARD => FooterContent::Discard { blocks },
        kind::REFERENCE => {
            FooterContent::Reference { address: other()?, block_in_frame, fingerprint }
        }
        kind::MAP_PIECE => FooterContent::MapPiece { place: place()? },
        kind::MOVE => {
            FooterContent::Move { from: other()?, place: place()?, block_in_frame, fingerprint }
        }
        _ => return Err(FormatError::Malformed(WHAT)),
    };
    Ok(FooterEntry {
        vdisk: VdiskId(raw.vdisk.get()),
        block: BlockIndex(raw.block.get()),
        version: Version { epoch: Epoch(raw.epoch.get()), sequence: Sequence(raw.sequence.get()) },
        content,
    })
}

/// Whether a packer produces such an entry. Frames end before `section_end`, where the footer begins.
fn is_valid(entry: &FooterEntry, stripe: StripeId, section_end: usize) -> bool {
    let here = |place: Place| {
        place.address(stripe).is_valid() && (place.offset + place.length) as usize <= section_end
    };
    let run = |blocks: u32| {
        let first = (entry.block.0 % u64::from(SLICE_BLOCKS)) as u32;
        blocks > 0 && blocks <= SLICE_BLOCKS - first
    };
    let on_vdisk = entry.block.0 < crate::layout::VDISK_MAX / crate::layout::BLOCK as u64;
    let content = match entry.content {
        FooterContent::Frame { place, block_in_frame, .. } => {
            here(place) && block_in_frame < FRAME_BLOCKS_MAX
        }
        FooterContent::Zero { blocks } | FooterContent::Discard { blocks } => run(blocks),
        FooterContent::Reference { address, block_in_frame, .. } => {
            address.is_valid() && block_in_frame < FRAME_BLOCKS_MAX
        }
        FooterContent::MapPiece { place } => here(place),
        FooterContent::Move { from, place, block_in_frame, .. } => {
            here(place) && from.is_valid() && block_in_frame < FRAME_BLOCKS_MAX
        }
    };
    on_vdisk && content
}

#[cfg(test)]
mod tests;
