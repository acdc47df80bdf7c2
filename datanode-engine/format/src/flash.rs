//! A host's flash: whose device it is, and what its zones hold.
//!
//! ```text
//! device:      0 superblock copy 0 (4096) | 4096 copy 1 (4096) | zeros | 1 MiB zones, one after the other
//! superblock:  0 magic "CLEAVEFS" | 8 version u8 | 9 0 [3] | 12 format level u32 | 16 cluster [16]
//!              32 device [16] | 48 generation u64 | 56 size u64 | 64 zones u32 | 68 places of a zone u16
//!              70 0 | 4092 crc32c u32 of [0..4092]
//! zone:        0 header copy 0 (4096) | 4096 copy 1 (4096) | 8192 places, 128 KiB each
//! header:      0 magic "CLEAVEFZ" | 8 version u8 | 9 0 [3] | 12 zone u32 | 16 device [16]
//!              32 sequence u64 | 40 generation u32 | 44 places u16 | 46 0 [18]
//!              64 a place (16) each | 0 | 4092 crc32c u32 of [0..4092]
//! place:       0 stripe u64 | 8 crc32c of the part u32 | 12 part u8
//!              13 state u8 (0 empty, 1 present, 2 tentative, 3 retired) | 14 0 [2]
//! ```
//! Flash is a cache: nothing that is only here is ever needed. A part is 128 KiB of a stripe's data section, by
//! its number in it. Its frames carry the checksum of their address, so that whatever a header wrongly says is
//! found by the frames' own check (C3); the part's checksum tells rot of the device from what came in damaged.
//!
//! Generation g of a superblock or a header lives in copy g mod 2 (C17). The sequence numbers the zone's
//! fillings: newest wins where two zones hold the same part. A zone is opened by a header without parts, durable before
//! the first part is written, so that an older header never describes what lies over its parts. *Present*
//! parts were durable before the header was written; *tentative* ones may be missing after a power loss, and
//! then are not the device's fault. A *retired* place is not used again.

use crate::FormatError;
use crate::ids::{ClusterId, StripeId};
use crate::layout::{DATA_SHARDS_MAX, PART, SHARD};
use crate::superblock::FORMAT_LEVEL;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Bytes of one copy of a superblock or of a zone's header.
pub const FLASH_PAGE: usize = crate::page::PAGE;
/// Copies of either.
pub const FLASH_COPIES: usize = 2;
/// First byte of the first zone.
pub const FIRST_ZONE: u64 = 1 << 20;
/// The smallest device, in bytes.
pub const FLASH_SIZE_MIN: u64 = 16 << 20;
/// Most places of a zone: with 128 KiB each, as much as the largest data section.
pub const PLACES_MAX: u16 = 64;
/// Fewest places of a zone, on the smallest devices.
pub const PLACES_MIN: u16 = 4;
/// Parts of the largest data section.
pub const PARTS_MAX: usize = DATA_SHARDS_MAX * SHARD / PART;

/// Small devices have small zones, so that there are about this many.
const ZONES_WANTED: u64 = 64;
const HEADERS: u64 = (FLASH_COPIES * FLASH_PAGE) as u64;
const SUPERBLOCK_MAGIC: [u8; 8] = *b"CLEAVEFS";
const HEADER_MAGIC: [u8; 8] = *b"CLEAVEFZ";
const VERSION: u8 = 1;
const SUPERBLOCK: &str = "flash superblock";
const HEADER: &str = "flash zone header";

/// A flash device's identity: random, drawn whenever it is formatted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FlashId(pub [u8; 16]);

impl std::fmt::Display for FlashId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// A device's description of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlashSuperblock {
    /// The cluster whose frames it holds.
    pub cluster: ClusterId,
    /// Which device, and which of its lives.
    pub device: FlashId,
    /// The format level when it was written (C31).
    pub format_level: u32,
    /// Grows with each rewrite.
    pub generation: u64,
    /// Bytes of the device that are in use; one that is smaller now has shrunk.
    pub size: u64,
    /// Zones.
    pub zones: u32,
    /// Places of each zone.
    pub places: u16,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawSuperblock {
    magic: [u8; 8],
    version: u8,
    zero0: [u8; 3],
    format_level: U32,
    cluster: [u8; 16],
    device: [u8; 16],
    generation: U64,
    size: U64,
    zones: U32,
    places: U16,
    zero1: [u8; FLASH_PAGE - 74],
    crc: U32,
}

const _: () = assert!(size_of::<RawSuperblock>() == FLASH_PAGE);

impl FlashSuperblock {
    /// Generation 0 for a device of that many bytes; `None` below [`FLASH_SIZE_MIN`].
    pub fn for_size(cluster: ClusterId, device: FlashId, size: u64) -> Option<FlashSuperblock> {
        if size < FLASH_SIZE_MIN {
            return None;
        }
        let wanted = size / ZONES_WANTED / PART as u64;
        let places = wanted.clamp(u64::from(PLACES_MIN), u64::from(PLACES_MAX)) as u16;
        let zones = (size - FIRST_ZONE) / zone_length(places);
        Some(FlashSuperblock {
            cluster,
            device,
            format_level: FORMAT_LEVEL,
            generation: 0,
            size,
            // What lies beyond 32 PiB stays unused.
            zones: u32::try_from(zones).unwrap_or(u32::MAX),
            places,
        })
    }

    /// First byte of a zone.
    ///
    /// # Panics
    /// When the device has no such zone (our own bug).
    pub fn zone_offset(&self, zone: u32) -> u64 {
        assert!(zone < self.zones, "zone {zone} of a device with {}", self.zones);
        FIRST_ZONE + u64::from(zone) * zone_length(self.places)
    }

    /// First byte of a place.
    ///
    /// # Panics
    /// When the device has no such place (our own bug).
    pub fn place_offset(&self, zone: u32, place: u16) -> u64 {
        assert!(place < self.places, "place {place} of a zone with {}", self.places);
        self.zone_offset(zone) + HEADERS + u64::from(place) * PART as u64
    }

    /// First byte of the copy that this generation lives in.
    pub fn copy_offset(&self) -> u64 {
        self.generation % FLASH_COPIES as u64 * FLASH_PAGE as u64
    }

    /// The bytes of this generation's copy.
    ///
    /// # Panics
    /// When the layout is none (our own bug).
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.is_valid(), "a flash superblock describes a sound layout: {self:?}");
        let raw = RawSuperblock {
            magic: SUPERBLOCK_MAGIC,
            version: VERSION,
            zero0: [0; 3],
            format_level: U32::new(self.format_level),
            cluster: self.cluster.0,
            device: self.device.0,
            generation: U64::new(self.generation),
            size: U64::new(self.size),
            zones: U32::new(self.zones),
            places: U16::new(self.places),
            zero1: [0; FLASH_PAGE - 74],
            crc: U32::ZERO,
        };
        let mut bytes = raw.as_bytes().to_vec();
        crate::page::seal(&mut bytes);
        bytes
    }

    /// Reads one copy.
    ///
    /// Errors: `Magic` not Cleave's flash, `Checksum` or `Malformed` damaged, `Version` too new.
    pub fn decode(bytes: &[u8]) -> Result<FlashSuperblock, FormatError> {
        crate::page::check(bytes, &SUPERBLOCK_MAGIC, VERSION, SUPERBLOCK)?;
        let (raw, _) =
            RawSuperblock::ref_from_prefix(bytes).map_err(|_| FormatError::Short(SUPERBLOCK))?;
        let superblock = FlashSuperblock {
            cluster: ClusterId(raw.cluster),
            device: FlashId(raw.device),
            format_level: raw.format_level.get(),
            generation: raw.generation.get(),
            size: raw.size.get(),
            zones: raw.zones.get(),
            places: raw.places.get(),
        };
        if superblock.format_level > FORMAT_LEVEL {
            return Err(FormatError::Version(SUPERBLOCK));
        }
        // No life of a device reaches 2^62; refused while there is room for what follows.
        let sound = superblock.generation < 1 << 62 && superblock.is_valid();
        sound.then_some(superblock).ok_or(FormatError::Malformed(SUPERBLOCK))
    }

    fn is_valid(&self) -> bool {
        let length = u64::from(self.zones).checked_mul(zone_length(self.places));
        let end = length.and_then(|length| length.checked_add(FIRST_ZONE));
        (PLACES_MIN..=PLACES_MAX).contains(&self.places)
            && self.zones > 0
            && end.is_some_and(|end| end <= self.size)
    }
}

/// Bytes of a zone with that many places.
pub const fn zone_length(places: u16) -> u64 {
    HEADERS + places as u64 * PART as u64
}

/// The newest intact one of a superblock's two copies.
///
/// Errors: `Magic` when both say that this is not Cleave's flash; `Version` when either is newer than this program;
/// `Identity` when both are intact and of different devices; else what is wrong with a damaged one.
pub fn choose_superblock(copy0: &[u8], copy1: &[u8]) -> Result<FlashSuperblock, FormatError> {
    let in_place = |bytes, index: u64| {
        let superblock = FlashSuperblock::decode(bytes)?;
        let right = superblock.generation % FLASH_COPIES as u64 == index;
        right.then_some(superblock).ok_or(FormatError::Identity(SUPERBLOCK))
    };
    match (in_place(copy0, 0), in_place(copy1, 1)) {
        (Ok(first), Ok(second)) if first.device != second.device => {
            Err(FormatError::Identity(SUPERBLOCK))
        }
        (Ok(first), Ok(second)) if first.generation > second.generation => Ok(first),
        (Ok(_), Ok(second)) => Ok(second),
        (_, Err(error @ FormatError::Version(_))) | (Err(error @ FormatError::Version(_)), _) => {
            Err(error)
        }
        (Ok(only), Err(_)) | (Err(_), Ok(only)) => Ok(only),
        (Err(FormatError::Magic(_)), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}

/// What a header says about one place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PlaceState {
    /// Nothing.
    #[default]
    Empty,
    /// It holds a part, which was durable before the header was written.
    Present(StoredPart),
    /// It holds a part, unless power was lost soon after.
    Tentative(StoredPart),
    /// It lost what was written to it: it is not used any more.
    Retired,
}

/// A part in its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StoredPart {
    /// The stripe.
    pub stripe: StripeId,
    /// Which part of its data section.
    pub part: u8,
    /// CRC32C of its 128 KiB.
    pub crc: u32,
}

impl PlaceState {
    /// The part, durable or not.
    pub fn part(&self) -> Option<&StoredPart> {
        match self {
            PlaceState::Present(part) | PlaceState::Tentative(part) => Some(part),
            PlaceState::Empty | PlaceState::Retired => None,
        }
    }
}

/// One generation of a zone's header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ZoneHeader {
    /// The device that it was written for.
    pub device: FlashId,
    /// The zone that it was written for.
    pub zone: u32,
    /// Which filling.
    pub sequence: u64,
    /// Grows with each rewrite, over all fillings.
    pub generation: u32,
    /// What each place holds.
    pub places: Vec<PlaceState>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawPlace {
    stripe: U64,
    crc: U32,
    part: u8,
    state: u8,
    zero: U16,
}

const HEADER_REST: usize = FLASH_PAGE - 64 - PLACES_MAX as usize * 16 - 4;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct RawHeader {
    magic: [u8; 8],
    version: u8,
    zero0: [u8; 3],
    zone: U32,
    device: [u8; 16],
    sequence: U64,
    generation: U32,
    places: U16,
    zero1: [u8; 18],
    entries: [RawPlace; PLACES_MAX as usize],
    zero2: [u8; HEADER_REST],
    crc: U32,
}

const _: () = assert!(size_of::<RawHeader>() == FLASH_PAGE);
const _: () = assert!(std::mem::offset_of!(RawHeader, entries) == 64);

impl ZoneHeader {
    /// First byte of this generation's copy in its zone.
    pub fn copy_offset(&self) -> u64 {
        u64::from(self.generation) % FLASH_COPIES as u64 * FLASH_PAGE as u64
    }

    /// Writes this generation's copy.
    ///
    /// # Panics
    /// When `out` is not [`FLASH_PAGE`] bytes, or the fields are not a header's (our own bug).
    pub fn encode(&self, out: &mut [u8]) {
        let count = self.places.len();
        assert!((usize::from(PLACES_MIN)..=usize::from(PLACES_MAX)).contains(&count));
        let nothing =
            RawPlace { stripe: U64::ZERO, crc: U32::ZERO, part: 0, state: 0, zero: U16::ZERO };
        let mut entries = [nothing; PLACES_MAX as usize];
        for (entry, place) in entries.iter_mut().zip(&self.places) {
            if let Some(part) = place.part() {
                assert!(usize::from(part.part) < PARTS_MAX, "a part of a data section");
                entry.stripe = U64::new(part.stripe.0);
                entry.crc = U32::new(part.crc);
                entry.part = part.part;
            }
            entry.state = match place {
                PlaceState::Empty => 0,
                PlaceState::Present(_) => 1,
                PlaceState::Tentative(_) => 2,
                PlaceState::Retired => 3,
            };
        }
        let raw = RawHeader {
            magic: HEADER_MAGIC,
            version: VERSION,
            zero0: [0; 3],
            zone: U32::new(self.zone),
            device: self.device.0,
            sequence: U64::new(self.sequence),
            generation: U32::new(self.generation),
            places: U16::new(count as u16),
            zero1: [0; 18],
            entries,
            zero2: [0; HEADER_REST],
            crc: U32::ZERO,
        };
        out.copy_from_slice(raw.as_bytes());
        crate::page::seal(out);
    }

    /// Reads one copy, of whatever device and zone.
    pub fn decode(bytes: &[u8]) -> Result<ZoneHeader, FormatError> {
        crate::page::check(bytes, &HEADER_MAGIC, VERSION, HEADER)?;
        let (raw, _) = RawHeader::ref_from_prefix(bytes).map_err(|_| FormatError::Short(HEADER))?;
        let count = usize::from(raw.places.get());
        let malformed = FormatError::Malformed(HEADER);
        if !(usize::from(PLACES_MIN)..=usize::from(PLACES_MAX)).contains(&count) {
            return Err(malformed);
        }
        let mut places = Vec::with_capacity(count);
        for entry in &raw.entries[..count] {
            let part = StoredPart {
                stripe: StripeId(entry.stripe.get()),
                part: entry.part,
                crc: entry.crc.get(),
            };
            let nothing = part == StoredPart::default();
            places.push(match entry.state {
                0 if nothing => PlaceState::Empty,
                1 if usize::from(part.part) < PARTS_MAX => PlaceState::Present(part),
                2 if usize::from(part.part) < PARTS_MAX => PlaceState::Tentative(part),
                3 if nothing => PlaceState::Retired,
                _ => return Err(malformed),
            });
        }
        Ok(ZoneHeader {
            device: FlashId(raw.device),
            zone: raw.zone.get(),
            sequence: raw.sequence.get(),
            generation: raw.generation.get(),
            places,
        })
    }
}

/// The newest intact copy of the header of this zone of this device (C3), from the zone's first two pages; `None`
/// when there is none, as in a zone that was never used. A copy in the other's place does not count.
pub fn choose_header(pages: &[u8], superblock: &FlashSuperblock, zone: u32) -> Option<ZoneHeader> {
    let copies = pages.chunks_exact(FLASH_PAGE).take(FLASH_COPIES).enumerate();
    let right = copies.filter_map(|(index, page)| {
        let header = ZoneHeader::decode(page).ok()?;
        let same = header.device == superblock.device
            && header.zone == zone
            && header.generation as usize % FLASH_COPIES == index
            && header.places.len() == usize::from(superblock.places);
        same.then_some(header)
    });
    right.max_by_key(|header| header.generation)
}

#[cfg(test)]
mod tests;
