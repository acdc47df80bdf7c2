//! Superblocks: whose drive this is, and where its slots are.
//!
//! ```text
//! drive:   0 superblock copy 0 (4096) | 4096 copy 1 (4096) | zeros | 1 MiB slots | reserved area
//! copy:    0 magic "CLEAVEDR" | 8 version u8 | 9 0 [3] | 12 format level u32 | 16 cluster [16]
//!          32 uuid of the drive [16] | 48 generation u64 | 56 drive size u64 | 64 data node u16
//!          66 drive u16 | 68 slots u32 | 72 first slot u64 | 80 reserved area u64
//!          88 its length u64 | 96 0 | 4092 crc32c u32 of [0..4092]
//! ```
//! Generation g lives in copy g mod 2, so that a change overwrites the older copy only (C17): a crash
//! while it is written leaves the newer one. Formatting writes generation 0, flushes, then 1.
//! The reserved area is for the log of a controller that is alone (C12, [`solo`](crate::solo)): set aside from the
//! first day, because slots cannot move out of its way later.

use crate::FormatError;
use crate::ids::{ClusterId, DatanodeId, DriveId, SlotIndex};
use crate::layout::{SHARD, SLOT};
use std::ops::Range;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of one copy.
pub const SUPERBLOCK: usize = crate::page::PAGE;
/// Copies.
pub const COPIES: usize = 2;
/// First byte of the first slot.
pub const FIRST_SLOT: u64 = SHARD as u64;
/// The smallest drive, in bytes.
pub const DRIVE_SIZE_MIN: u64 = 16 << 20;
/// The newest format level that this program writes and reads (C31).
pub const FORMAT_LEVEL: u32 = 1;

/// Part of a drive that is set aside: an eighth of it up to 1 GiB, a thirty-second of larger ones up to 16 GiB.
const RESERVED_SMALL: (u64, u64) = (8, 1 << 30);
const RESERVED_LARGE: (u64, u64) = (32, 16 << 30);
const RESERVED_UNIT: u64 = 1 << 20;
/// Parts of the reserved area: two for each controller.
const SOLO_AREAS: u64 = 4;

const MAGIC: [u8; 8] = *b"CLEAVEDR";
const VERSION: u8 = 1;
const WHAT: &str = "superblock";

/// Who a drive is: the same in all generations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DriveIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node that owns the drive.
    pub datanode: DatanodeId,
    /// The drive's name in the pool.
    pub drive: DriveId,
    /// Random: tells two drives apart that were given the same name in two clusters or lives.
    pub uuid: [u8; 16],
}

/// A drive's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Superblock {
    /// Who it is.
    pub identity: DriveIdentity,
    /// The cluster's format level when it was written (C31).
    pub format_level: u32,
    /// Grows with each rewrite.
    pub generation: u64,
    /// Bytes of the drive that are in use; a drive that is smaller now has shrunk.
    pub drive_size: u64,
    /// Slots.
    pub slots: u32,
    /// First byte of the first slot.
    pub first_slot: u64,
    /// First byte of the reserved area (C12).
    pub reserved_offset: u64,
    /// Bytes of the reserved area.
    pub reserved_length: u64,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: u8,
    zero0: [u8; 3],
    format_level: U32,
    cluster: [u8; 16],
    uuid: [u8; 16],
    generation: U64,
    drive_size: U64,
    datanode: U16,
    drive: U16,
    slots: U32,
    first_slot: U64,
    reserved_offset: U64,
    reserved_length: U64,
    zero1: [u8; SUPERBLOCK - 100],
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() == SUPERBLOCK);

impl Superblock {
    /// The first generation for a drive of that many bytes; `None` below [`DRIVE_SIZE_MIN`].
    pub fn for_size(identity: DriveIdentity, drive_size: u64) -> Option<Superblock> {
        if drive_size < DRIVE_SIZE_MIN {
            return None;
        }
        // Whole units, so that the reserved area is aligned whatever the drive's size is.
        let usable = drive_size / RESERVED_UNIT * RESERVED_UNIT;
        let part = |(divisor, most): (u64, u64)| (usable / divisor).min(most);
        let reserved_length =
            part(RESERVED_SMALL).max(part(RESERVED_LARGE)) / RESERVED_UNIT * RESERVED_UNIT;
        let reserved_offset = usable - reserved_length;
        let slots = (reserved_offset - FIRST_SLOT) / SLOT as u64;
        Some(Superblock {
            identity,
            format_level: FORMAT_LEVEL,
            generation: 0,
            drive_size,
            // A drive of more than 4 Pi slots does not exist; its rest would stay unused.
            slots: u32::try_from(slots).unwrap_or(u32::MAX),
            first_slot: FIRST_SLOT,
            reserved_offset,
            reserved_length,
        })
    }

    /// First byte of a slot on the drive.
    ///
    /// # Panics
    /// When the drive has no such slot: slots are checked where they come from outside.
    pub fn slot_offset(&self, slot: SlotIndex) -> u64 {
        assert!(slot.0 < self.slots, "slot {slot} of a drive with {} slots", self.slots);
        self.first_slot + u64::from(slot.0) * SLOT as u64
    }

    /// The part of the reserved area in which a controller (0 or 1) writes a session of its solo log: it has two, `part` 0
    /// and 1, so that the next session leaves the last one as it is (C12, C17); and none that the other controller writes (C15).
    pub fn solo_area(&self, controller: u8, part: u8) -> Range<u64> {
        let length = self.reserved_length / SOLO_AREAS / SUPERBLOCK as u64 * SUPERBLOCK as u64;
        let index = u64::from(controller & 1) * 2 + u64::from(part & 1);
        let start = self.reserved_offset + index * length;
        start..start + length
    }

    /// First byte of the copy that this generation lives in.
    pub fn copy_offset(&self) -> u64 {
        self.generation % COPIES as u64 * SUPERBLOCK as u64
    }

    /// The bytes of this generation's copy.
    ///
    /// # Panics
    /// When the layout is none (our own bug).
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.is_valid(), "a superblock describes a sound layout: {self:?}");
        let raw = Raw {
            magic: MAGIC,
            version: VERSION,
            zero0: [0; 3],
            format_level: U32::new(self.format_level),
            cluster: self.identity.cluster.0,
            uuid: self.identity.uuid,
            generation: U64::new(self.generation),
            drive_size: U64::new(self.drive_size),
            datanode: U16::new(self.identity.datanode.0),
            drive: U16::new(self.identity.drive.0),
            slots: U32::new(self.slots),
            first_slot: U64::new(self.first_slot),
            reserved_offset: U64::new(self.reserved_offset),
            reserved_length: U64::new(self.reserved_length),
            zero1: [0; SUPERBLOCK - 100],
            crc: U32::ZERO,
        };
        let mut bytes = raw.as_bytes().to_vec();
        crate::page::seal(&mut bytes);
        bytes
    }

    /// Reads one copy.
    ///
    /// Errors: `Magic` not a Cleave drive, `Checksum` or `Malformed` corrupt, `Version` too new.
    pub fn decode(bytes: &[u8]) -> Result<Superblock, FormatError> {
        crate::page::check(bytes, &MAGIC, VERSION, WHAT)?;
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        crate::page::check_unused(&[&raw.zero0, &raw.zero1], WHAT)?;
        let superblock = Superblock {
            identity: DriveIdentity {
                cluster: ClusterId(raw.cluster),
                datanode: DatanodeId(raw.datanode.get()),
                drive: DriveId(raw.drive.get()),
                uuid: raw.uuid,
            },
            format_level: raw.format_level.get(),
            generation: raw.generation.get(),
            drive_size: raw.drive_size.get(),
            slots: raw.slots.get(),
            first_slot: raw.first_slot.get(),
            reserved_offset: raw.reserved_offset.get(),
            reserved_length: raw.reserved_length.get(),
        };
        if superblock.format_level > FORMAT_LEVEL {
            return Err(FormatError::Version(WHAT));
        }
        // No life of a drive reaches 2^62; refused while there is room for the generations that follow.
        let sound = superblock.generation < 1 << 62 && superblock.is_valid();
        sound.then_some(superblock).ok_or(FormatError::Malformed(WHAT))
    }

    fn is_valid(&self) -> bool {
        let page = SUPERBLOCK as u64;
        let slots_end = u64::from(self.slots)
            .checked_mul(SLOT as u64)
            .and_then(|length| length.checked_add(self.first_slot));
        let reserved_end = self.reserved_offset.checked_add(self.reserved_length);
        self.first_slot >= COPIES as u64 * page
            && self.first_slot.is_multiple_of(page)
            && self.reserved_offset.is_multiple_of(page)
            && self.reserved_length.is_multiple_of(page)
            && slots_end.is_some_and(|end| end <= self.reserved_offset)
            && reserved_end.is_some_and(|end| end <= self.drive_size)
    }
}

/// The newest intact one of the two copies, and which it is (0 or 1).
///
/// A copy that is damaged, never written, or not where its generation belongs is passed over while the other is intact. When neither is:
/// `Magic` when both say that this is not a Cleave drive, else what is wrong with one that claims to be.
/// `Identity` when both are intact and of different drives: someone copied one over the other.
pub fn choose(copy0: &[u8], copy1: &[u8]) -> Result<(Superblock, usize), FormatError> {
    let in_place = |bytes, index: u64| {
        let superblock = Superblock::decode(bytes)?;
        let right = superblock.generation % COPIES as u64 == index;
        right.then_some(superblock).ok_or(FormatError::Identity(WHAT))
    };
    match (in_place(copy0, 0), in_place(copy1, 1)) {
        (Ok(first), Ok(second)) if first.identity != second.identity => {
            Err(FormatError::Identity(WHAT))
        }
        (Ok(first), Ok(second)) if first.generation > second.generation => Ok((first, 0)),
        (Ok(_), Ok(second)) => Ok((second, 1)),
        // Older than the other copy, which must not be overwritten by a program that cannot read it (C31).
        (Ok(_), Err(FormatError::Version(what))) | (Err(FormatError::Version(what)), Ok(_)) => {
            Err(FormatError::Version(what))
        }
        (Ok(first), Err(_)) => Ok((first, 0)),
        (Err(_), Ok(second)) => Ok((second, 1)),
        (Err(FormatError::Magic(_)), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}

#[cfg(test)]
mod tests;
