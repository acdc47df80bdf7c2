//! The vault: an image of the NVLOG in a file, written on a power warning or a clean stop (C7).
//!
//! ```text
//! file:    0 header copy 0 (4096) | 4096 copy 1 (4096) | bodies, at page boundaries
//! header:  0 magic "CLEAVEVT" | 8 version u8 | 9 state u8 (1 image, 2 consumed) | 10 data node u16
//!          12 body crc32c u32 | 16 cluster [16] | 32 generation u64 | 40 controller incarnation u64
//!          48 role epoch u64 | 56 log id u64 | 64 next position u64 | 72 entries u64
//!          80 body offset u64 | 88 body length u64 | 96 0 | 4092 crc32c u32 of [0..4092]
//! body:    entries, to the body length; then zeros to the end of the page
//! entry:   0 position u64 | 8 length u24 | 11 kind u8 (1 record, 2 control) | 12 crc32c u32
//!          16 bytes | zeros up to a multiple of 16
//! ```
//! An entry's checksum begins with generation u64 and log id u64, then covers its first 12 bytes, its
//! bytes and its padding, so that an entry that an older image left behind does not pass for one (C3).
//!
//! Order of writing, and what a crash leaves (C17). Generation g has header copy g mod 2, and a body
//! that overlaps no image that is still valid ([`body_offset`]). First the body, then a flush, then the
//! header, then a flush: a crash before the header leaves the older generation, and an incomplete image
//! is none. A process that loads an image writes generation g + 1 as *consumed* to the other copy and
//! flushes before it relies on the log: a crash before that leaves the image to be loaded again, after
//! it the image is never loaded again. That the image belongs to the recorded epoch is checked by its
//! incarnation against the store (C7), not here.

mod reader;
mod writer;

use crate::FormatError;
use crate::ids::{ClusterId, DatanodeId, Epoch, Incarnation, Position};
use crate::page::PAGE;
use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

pub use reader::{VaultEntry, VaultReader};
pub use writer::{VaultChunk, VaultWriter};

/// Bytes of a header copy.
pub const VAULT_HEADER: usize = PAGE;
/// Header copies.
pub const COPIES: usize = 2;
/// First byte that a body may have.
pub const BODY_START: u64 = (COPIES * VAULT_HEADER) as u64;
/// Longest entry, in bytes, without its header.
pub const ENTRY_LENGTH_MAX: usize = (1 << 24) - 1;

const MAGIC: [u8; 8] = *b"CLEAVEVT";
const VERSION: u8 = 1;
const WHAT: &str = "vault";
const ENTRY_HEADER: usize = 16;

/// What the newest header says about its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VaultState {
    /// The body is a complete image of the log.
    Image = 1,
    /// The image before was loaded, or the log has gone on since it was written.
    Consumed = 2,
}

/// What an entry of the log is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VaultKind {
    /// A host's record.
    Record = 1,
    /// A control record.
    Control = 2,
}

/// Whose log, at which moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
    /// The controller's incarnation, a member of the in-sync set when it stopped (C7).
    pub incarnation: Incarnation,
    /// The data node's role epoch.
    pub role_epoch: Epoch,
    /// The log's identity.
    pub log_id: u64,
}

/// One generation of the vault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaultHeader {
    /// What it says.
    pub state: VaultState,
    /// Grows with each header that is written to the file.
    pub generation: u64,
    /// Whose log.
    pub identity: VaultIdentity,
    /// Position that the log's next entry gets.
    pub next_position: Position,
    /// Entries of the body.
    pub entries: u64,
    /// First byte of the body in the file, a multiple of 4096.
    pub body_offset: u64,
    /// Bytes of the body, a multiple of 16.
    pub body_length: u64,
    /// CRC32C of the body.
    pub body_crc: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 8],
    version: u8,
    state: u8,
    datanode: U16,
    body_crc: U32,
    cluster: [u8; 16],
    generation: U64,
    incarnation: U64,
    role_epoch: U64,
    log_id: U64,
    next_position: U64,
    entries: U64,
    body_offset: U64,
    body_length: U64,
    zero: [u8; VAULT_HEADER - 100],
    crc: U32,
}

const _: () = assert!(size_of::<Raw>() == VAULT_HEADER);

impl VaultHeader {
    /// First byte of the header copy that this generation lives in.
    pub fn copy_offset(&self) -> u64 {
        self.generation % COPIES as u64 * VAULT_HEADER as u64
    }

    /// The header's bytes.
    ///
    /// # Panics
    /// When the fields do not fit each other (our own bug).
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.is_valid(), "fields of a vault header fit each other: {self:?}");
        let raw = Raw {
            magic: MAGIC,
            version: VERSION,
            state: self.state as u8,
            datanode: U16::new(self.identity.datanode.0),
            body_crc: U32::new(self.body_crc),
            cluster: self.identity.cluster.0,
            generation: U64::new(self.generation),
            incarnation: U64::new(self.identity.incarnation.0),
            role_epoch: U64::new(self.identity.role_epoch.0),
            log_id: U64::new(self.identity.log_id),
            next_position: U64::new(self.next_position.0),
            entries: U64::new(self.entries),
            body_offset: U64::new(self.body_offset),
            body_length: U64::new(self.body_length),
            zero: [0; VAULT_HEADER - 100],
            crc: U32::ZERO,
        };
        let mut bytes = raw.as_bytes().to_vec();
        crate::page::seal(&mut bytes);
        bytes
    }

    /// Reads one header copy.
    pub fn decode(bytes: &[u8]) -> Result<VaultHeader, FormatError> {
        crate::page::check(bytes, &MAGIC, VERSION, WHAT)?;
        let (raw, _) = Raw::ref_from_prefix(bytes).map_err(|_| FormatError::Short(WHAT))?;
        crate::page::check_unused(&[&raw.zero], WHAT)?;
        let header = VaultHeader {
            state: match raw.state {
                1 => VaultState::Image,
                2 => VaultState::Consumed,
                _ => return Err(FormatError::Malformed(WHAT)),
            },
            generation: raw.generation.get(),
            identity: VaultIdentity {
                cluster: ClusterId(raw.cluster),
                datanode: DatanodeId(raw.datanode.get()),
                incarnation: Incarnation(raw.incarnation.get()),
                role_epoch: Epoch(raw.role_epoch.get()),
                log_id: raw.log_id.get(),
            },
            next_position: Position(raw.next_position.get()),
            entries: raw.entries.get(),
            body_offset: raw.body_offset.get(),
            body_length: raw.body_length.get(),
            body_crc: raw.body_crc.get(),
        };
        // No life of a file reaches 2^62; refused while there is room for the generations that follow.
        let sound = header.generation < 1 << 62 && header.is_valid();
        sound.then_some(header).ok_or(FormatError::Malformed(WHAT))
    }

    /// The header that ends this image: to be written to its own copy, and flushed, before the log that
    /// was loaded from the image is relied on (C7).
    pub fn consumed(&self) -> VaultHeader {
        VaultHeader {
            state: VaultState::Consumed,
            generation: self.generation + 1,
            entries: 0,
            body_length: 0,
            body_crc: 0,
            ..self.clone()
        }
    }

    /// First byte after the pages of the body.
    pub fn body_end(&self) -> u64 {
        self.body_offset + self.body_length.next_multiple_of(PAGE as u64)
    }

    fn is_valid(&self) -> bool {
        // 2^62: no sum of these overflows.
        self.body_offset >= BODY_START
            && self.body_offset.is_multiple_of(PAGE as u64)
            && self.body_offset < 1 << 62
            && self.body_length < 1 << 62
            && self.body_length.is_multiple_of(crate::layout::UNIT as u64)
            && self.entries <= self.body_length / ENTRY_HEADER as u64
            && (self.state == VaultState::Image || self.body_length == 0)
    }
}

/// The newest intact header of a file's two copies; `None` when neither was ever written.
///
/// A damaged copy is passed over while the other is intact: it is a header that was being written. When
/// neither is intact but one claims to be a vault, or both are of different data nodes, that is an error.
pub fn choose(copy0: &[u8], copy1: &[u8]) -> Result<Option<VaultHeader>, FormatError> {
    let in_place = |bytes, index: u64| {
        let header = VaultHeader::decode(bytes)?;
        let right = header.generation % COPIES as u64 == index;
        right.then_some(header).ok_or(FormatError::Identity(WHAT))
    };
    let absent = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    match (in_place(copy0, 0), in_place(copy1, 1)) {
        (Ok(first), Ok(second)) => {
            let (a, b) = (&first.identity, &second.identity);
            if (a.cluster, a.datanode) != (b.cluster, b.datanode) {
                return Err(FormatError::Identity(WHAT));
            }
            Ok(Some(if first.generation > second.generation { first } else { second }))
        }
        (Ok(_), Err(FormatError::Version(what))) | (Err(FormatError::Version(what)), Ok(_)) => {
            Err(FormatError::Version(what))
        }
        (Ok(header), Err(_)) | (Err(_), Ok(header)) => Ok(Some(header)),
        (Err(_), Err(_)) if absent(copy0) && absent(copy1) => Ok(None),
        (Err(FormatError::Magic(_)), Err(error)) | (Err(error), Err(_)) => Err(error),
    }
}

/// Generation of the header to write next.
pub fn next_generation(newest: Option<&VaultHeader>) -> u64 {
    newest.map_or(1, |header| header.generation + 1)
}

/// Where the next image's body of at most `length_max` bytes goes, so that it overlaps no valid image.
pub fn body_offset(newest: Option<&VaultHeader>, length_max: u64) -> u64 {
    match newest {
        Some(header) if header.state == VaultState::Image => {
            let fits_before = length_max.next_multiple_of(PAGE as u64)
                <= header.body_offset.saturating_sub(BODY_START);
            if fits_before { BODY_START } else { header.body_end() }
        }
        _ => BODY_START,
    }
}

/// What an entry's checksum begins with.
fn entry_seed(generation: u64, log_id: u64) -> u32 {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&generation.to_le_bytes());
    bytes[8..].copy_from_slice(&log_id.to_le_bytes());
    crc32c::crc32c(&bytes)
}

#[cfg(test)]
mod tests;
