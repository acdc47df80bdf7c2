//! Map pieces: the leaves of [`PIECE_SLICES`] neighbouring slices of a vdisk, as a map run stores them
//! (C21). A piece is the content of one frame, which is compressed, encrypted and placed like a block's.
//!
//! ```text
//! piece:   header (32) | stripes u64 each | leaves
//! header:  0 magic "CLMP" | 4 crc32c of [8 ..] | 8 version u8 | 9 leaves u8 | 10 0 u16 | 12 group u32
//!          16 vdisk u64 | 24 stripes u32 | 28 length of the piece u32
//! leaf:    0 slice u32 | 4 versions u16 | 6 0 u16 | 8 newest epoch u64 | 16 newest sequence u64
//!          24 map entries u64 [512] | versions (18 each)
//! version: 0 block in slice u16 | 2 epoch u64 | 10 sequence u64
//! ```
//! The handle in an entry is an index into the piece's stripes, plus 1; an empty entry is 0.
//! Versions are there for the blocks that may still meet an older record of the slice (C2),
//! tombstones and zeros included; the others' are below the slice's oldest unreleased record.

use crate::FormatError;
use crate::address::{Address, MapEntry};
use crate::ids::{Epoch, Sequence, SliceIndex, StripeId, VdiskId, Version};
use crate::layout::{PIECE_SLICES, SLICE_BLOCKS};
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

const MAGIC: [u8; 4] = *b"CLMP";
const VERSION: u8 = 1;
const WHAT: &str = "map piece";
const BLOCKS: usize = SLICE_BLOCKS as usize;
/// Where the bytes begin that the checksum covers.
const CHECKED: usize = 8;

/// Longest encoded piece, in bytes: every block in another stripe, every version kept.
pub const PIECE_LENGTH_MAX: usize = size_of::<RawHeader>()
    + PIECE_SLICES as usize
        * (BLOCKS * 8 + size_of::<RawLeaf>() + BLOCKS * 8 + BLOCKS * size_of::<RawVersion>());

// A piece fits a frame even if it does not shrink, with its tag.
const _: () = assert!(PIECE_LENGTH_MAX + crate::frame::TAG <= crate::frame::PAYLOAD_LENGTH_MAX);

/// The leaves of neighbouring slices.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPiece {
    /// The vdisk.
    pub vdisk: VdiskId,
    /// Slices from `PIECE_SLICES * group` on.
    pub group: u32,
    /// What the entries' handles stand for: handle 1 is the first.
    pub stripes: Vec<StripeId>,
    /// At most [`PIECE_SLICES`], by slice; a slice without entries and versions is left out.
    pub leaves: Vec<Leaf>,
}

/// The map of one slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaf {
    /// The slice.
    pub slice: SliceIndex,
    /// By block in slice; handles are those of the piece.
    pub entries: Box<[MapEntry; SLICE_BLOCKS as usize]>,
    /// Ages of blocks, by block in slice, each at most once and none newer than `newest`.
    pub versions: Vec<(u16, Version)>,
    /// Age of the newest content that the leaf reflects.
    pub newest: Version,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 4],
    crc: U32,
    version: u8,
    leaves: u8,
    zero: U16,
    group: U32,
    vdisk: U64,
    stripes: U32,
    length: U32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawLeaf {
    slice: U32,
    versions: U16,
    zero: U16,
    newest_epoch: U64,
    newest_sequence: U64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawVersion {
    block: U16,
    epoch: U64,
    sequence: U64,
}

const _: () = assert!(size_of::<RawHeader>() == 32);
const _: () = assert!(size_of::<RawLeaf>() == 24 && size_of::<RawVersion>() == 18);

impl MapPiece {
    /// The piece's bytes, at most [`PIECE_LENGTH_MAX`].
    ///
    /// # Panics
    /// When a rule of the layout is broken (our own bug).
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.is_valid(), "a map piece follows its rules");
        let mut bytes = vec![0; size_of::<RawHeader>()];
        for stripe in &self.stripes {
            bytes.extend_from_slice(&stripe.0.to_le_bytes());
        }
        for leaf in &self.leaves {
            let raw = RawLeaf {
                slice: U32::new(leaf.slice.0),
                versions: U16::new(leaf.versions.len() as u16),
                zero: U16::ZERO,
                newest_epoch: U64::new(leaf.newest.epoch.0),
                newest_sequence: U64::new(leaf.newest.sequence.0),
            };
            bytes.extend_from_slice(raw.as_bytes());
            for entry in leaf.entries.iter() {
                bytes.extend_from_slice(&entry.0.to_le_bytes());
            }
            for (block, version) in &leaf.versions {
                let raw = RawVersion {
                    block: U16::new(*block),
                    epoch: U64::new(version.epoch.0),
                    sequence: U64::new(version.sequence.0),
                };
                bytes.extend_from_slice(raw.as_bytes());
            }
        }
        let mut header = RawHeader {
            magic: MAGIC,
            crc: U32::ZERO,
            version: VERSION,
            leaves: self.leaves.len() as u8,
            zero: U16::ZERO,
            group: U32::new(self.group),
            vdisk: U64::new(self.vdisk.0),
            stripes: U32::new(self.stripes.len() as u32),
            length: U32::new(bytes.len() as u32),
        };
        let head = &header.as_bytes()[CHECKED..];
        let crc = crc32c::crc32c_append(crc32c::crc32c(head), &bytes[size_of::<RawHeader>()..]);
        header.crc = U32::new(crc);
        bytes[..size_of::<RawHeader>()].copy_from_slice(header.as_bytes());
        bytes
    }

    /// Reads the piece of a vdisk's group, and checks every handle and place in it.
    pub fn decode(vdisk: VdiskId, group: u32, bytes: &[u8]) -> Result<MapPiece, FormatError> {
        let short = FormatError::Short(WHAT);
        let malformed = FormatError::Malformed(WHAT);
        let (header, mut rest) = RawHeader::ref_from_prefix(bytes).map_err(|_| short)?;
        if header.magic != MAGIC {
            return Err(FormatError::Magic(WHAT));
        }
        if header.length.get() as usize != bytes.len() {
            return Err(malformed);
        }
        if crc32c::crc32c(&bytes[CHECKED..]) != header.crc.get() {
            return Err(FormatError::Checksum(WHAT));
        }
        if header.version != VERSION {
            return Err(FormatError::Version(WHAT));
        }
        // A piece has one encoding: what is unused is zero.
        if header.zero.get() != 0 {
            return Err(malformed);
        }
        if header.vdisk.get() != vdisk.0 || header.group.get() != group {
            return Err(FormatError::Identity(WHAT));
        }
        let stripes: &[U64] = take(&mut rest, header.stripes.get() as usize)?;
        let stripes = stripes.iter().map(|stripe| StripeId(stripe.get())).collect();
        let mut leaves = Vec::with_capacity(PIECE_SLICES as usize);
        for _ in 0..header.leaves {
            leaves.push(decode_leaf(&mut rest)?);
        }
        let piece = MapPiece { vdisk, group, stripes, leaves };
        (rest.is_empty() && piece.is_valid()).then_some(piece).ok_or(malformed)
    }

    /// The frame that an entry of this piece names; `None` for an empty entry.
    ///
    /// # Panics
    /// When the entry's handle is none of this piece.
    pub fn address(&self, entry: MapEntry) -> Option<Address> {
        entry.handle().map(|handle| Address {
            stripe: self.stripes[handle.0 as usize - 1],
            offset: entry.offset(),
            length: entry.length(),
        })
    }

    fn is_valid(&self) -> bool {
        let limit = PIECE_SLICES as usize;
        let first = u64::from(self.group) * u64::from(PIECE_SLICES);
        let slices = first..first + u64::from(PIECE_SLICES);
        self.leaves.len() <= limit
            && self.stripes.len() <= limit * BLOCKS
            && self.leaves.iter().all(|leaf| slices.contains(&u64::from(leaf.slice.0)))
            && self.leaves.is_sorted_by(|a, b| a.slice < b.slice)
            && self.leaves.iter().all(|leaf| self.is_valid_leaf(leaf))
    }

    fn is_valid_leaf(&self, leaf: &Leaf) -> bool {
        let known = |entry: &MapEntry| match entry.handle() {
            None => *entry == MapEntry::EMPTY,
            Some(handle) => {
                handle.0 as usize <= self.stripes.len()
                    && self.address(*entry).is_some_and(|address| address.is_valid())
            }
        };
        leaf.entries.iter().all(known)
            && leaf.versions.is_sorted_by(|a, b| a.0 < b.0)
            && leaf
                .versions
                .iter()
                .all(|(block, version)| u32::from(*block) < SLICE_BLOCKS && *version <= leaf.newest)
    }
}

fn decode_leaf(rest: &mut &[u8]) -> Result<Leaf, FormatError> {
    let [raw]: &[RawLeaf; 1] = take(rest, 1)?.try_into().expect("one was taken");
    if raw.zero.get() != 0 {
        return Err(FormatError::Malformed(WHAT));
    }
    let count = usize::from(raw.versions.get());
    let stored: &[U64] = take(rest, BLOCKS)?;
    let mut entries = Box::new([MapEntry::EMPTY; BLOCKS]);
    for (entry, stored) in entries.iter_mut().zip(stored) {
        *entry = MapEntry(stored.get());
    }
    let versions: &[RawVersion] = take(rest, count)?;
    let version = |epoch: U64, sequence: U64| Version {
        epoch: Epoch(epoch.get()),
        sequence: Sequence(sequence.get()),
    };
    Ok(Leaf {
        slice: SliceIndex(raw.slice.get()),
        entries,
        versions: versions
            .iter()
            .map(|raw| (raw.block.get(), version(raw.epoch, raw.sequence)))
            .collect(),
        newest: version(raw.newest_epoch, raw.newest_sequence),
    })
}

/// Takes `count` items off the front.
fn take<'a, T>(rest: &mut &'a [u8], count: usize) -> Result<&'a [T], FormatError>
where
    T: FromBytes + KnownLayout + Immutable + Unaligned,
{
    let (items, after) =
        <[T]>::ref_from_prefix_with_elems(rest, count).map_err(|_| FormatError::Short(WHAT))?;
    *rest = after;
    Ok(items)
}

#[cfg(test)]
mod tests;
