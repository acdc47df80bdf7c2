//! virtio-blk: what a descriptor chain asks for.
//!
//! The header is read once and then believed, never read again (a guest may change it meanwhile).
//! Layout (VIRTIO 1.2, 5.2.6): type u32, reserved u32, sector u64, then data; a discard or
//! write-zeroes segment is sector u64, sectors u32, flags u32; the last writable byte is the status.

use crate::chain::Chain;
use crate::config::{DiskConfig, SECTOR};
use crate::memory::Memory;
use crate::request::{BlockRange, Tag};
use virtio_bindings::bindings::virtio_blk;

/// Bytes of a request's header.
pub(crate) const HEADER: u64 = 16;
const SEGMENT: u64 = 16;
const FLAG_UNMAP: u32 = 1;
/// Bytes of one write, at most, whatever its parts: it is copied at once.
const WRITE_MAX: u64 = 64 << 20;

/// The status byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Status {
    Good = virtio_blk::VIRTIO_BLK_S_OK as u8,
    Failed = virtio_blk::VIRTIO_BLK_S_IOERR as u8,
    Unsupported = virtio_blk::VIRTIO_BLK_S_UNSUPP as u8,
}

/// A request, checked.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Parsed {
    Read {
        offset: u64,
        length: u64,
    },
    Write {
        offset: u64,
        length: u64,
    },
    Flush,
    Discard(Vec<BlockRange>),
    WriteZeroes(Vec<BlockRange>),
    /// Answered here; so many bytes were written before the status.
    Answered(Status, u32),
}

const REFUSED: Parsed = Parsed::Answered(Status::Failed, 0);

/// What `chain` asks of a vdisk of `capacity` bytes.
pub(crate) fn parse(chain: &Chain, memory: &Memory, config: &DiskConfig, capacity: u64) -> Parsed {
    let mut header = [0; HEADER as usize];
    if chain.unreachable() || chain.read(memory, 0, &mut header).is_err() {
        return REFUSED;
    }
    let (kind, sector) = header.split_at(8);
    let kind = u32::from_le_bytes(kind[..4].try_into().expect("4 bytes"));
    let sector = u64::from_le_bytes(sector.try_into().expect("8 bytes"));
    let given = chain.readable_bytes() - HEADER;
    match kind {
        virtio_blk::VIRTIO_BLK_T_IN => {
            let length = chain.data_bytes();
            match bounds(config, capacity, sector, length) {
                Some(_) if length > transfer_limit(config) => REFUSED,
                Some(_) if length == 0 => Parsed::Answered(Status::Good, 0),
                Some(offset) => Parsed::Read { offset, length },
                None => REFUSED,
            }
        }
        virtio_blk::VIRTIO_BLK_T_OUT => match bounds(config, capacity, sector, given) {
            Some(_) if config.read_only || given > transfer_limit(config).min(WRITE_MAX) => REFUSED,
            Some(_) if given == 0 => Parsed::Answered(Status::Good, 0),
            Some(offset) => Parsed::Write { offset, length: given },
            None => REFUSED,
        },
        virtio_blk::VIRTIO_BLK_T_FLUSH => Parsed::Flush,
        virtio_blk::VIRTIO_BLK_T_GET_ID => {
            let serial = config.serial_bytes();
            let length = serial.len().min(chain.data_bytes() as usize);
            match chain.write(memory, 0, &serial[..length]) {
                Ok(()) => Parsed::Answered(Status::Good, length as u32),
                Err(_) => REFUSED,
            }
        }
        virtio_blk::VIRTIO_BLK_T_DISCARD => {
            let limit = config.discard_max;
            match ranges(chain, memory, config, capacity, limit, 0) {
                Ok(ranges) if ranges.is_empty() => Parsed::Answered(Status::Good, 0),
                Ok(ranges) => Parsed::Discard(ranges),
                Err(status) => Parsed::Answered(status, 0),
            }
        }
        virtio_blk::VIRTIO_BLK_T_WRITE_ZEROES => {
            let limit = config.write_zeroes_max;
            match ranges(chain, memory, config, capacity, limit, FLAG_UNMAP) {
                Ok(ranges) if ranges.is_empty() => Parsed::Answered(Status::Good, 0),
                Ok(ranges) => Parsed::WriteZeroes(ranges),
                Err(status) => Parsed::Answered(status, 0),
            }
        }
        _ => Parsed::Answered(Status::Unsupported, 0),
    }
}

/// As many parts as a tag can name.
fn transfer_limit(config: &DiskConfig) -> u64 {
    u64::from(config.transfer_max) * u64::from(Tag::PARTS_MAX)
}

/// The byte offset of a range that lies in the vdisk on block boundaries.
fn bounds(config: &DiskConfig, capacity: u64, sector: u64, length: u64) -> Option<u64> {
    let block = u64::from(config.logical_block);
    let offset = sector.checked_mul(SECTOR)?;
    let end = offset.checked_add(length)?;
    let aligned = offset.is_multiple_of(block) && length.is_multiple_of(block);
    (aligned && end <= capacity).then_some(offset)
}

/// The segments of a discard or write-zeroes request; empty ones are left out.
fn ranges(
    chain: &Chain,
    memory: &Memory,
    config: &DiskConfig,
    capacity: u64,
    limit: u64,
    flags_allowed: u32,
) -> Result<Vec<BlockRange>, Status> {
    let bytes = chain.readable_bytes() - HEADER;
    let count = bytes / SEGMENT;
    if config.read_only
        || !bytes.is_multiple_of(SEGMENT)
        || !(1..=u64::from(config.ranges_max)).contains(&count)
    {
        return Err(Status::Failed);
    }
    let mut ranges = Vec::with_capacity(count as usize);
    for index in 0..count {
        let mut raw = [0; SEGMENT as usize];
        chain.read(memory, HEADER + index * SEGMENT, &mut raw).map_err(|_| Status::Failed)?;
        let sector = u64::from_le_bytes(raw[..8].try_into().expect("8 bytes"));
        let sectors = u32::from_le_bytes(raw[8..12].try_into().expect("4 bytes"));
        let flags = u32::from_le_bytes(raw[12..].try_into().expect("4 bytes"));
        if flags & !flags_allowed != 0 {
            return Err(Status::Unsupported);
        }
        let length = u64::from(sectors) * SECTOR;
        let offset = bounds(config, capacity, sector, length).ok_or(Status::Failed)?;
        if length > limit {
            return Err(Status::Failed);
        }
        if length > 0 {
            let unmap = flags_allowed == 0 || flags & FLAG_UNMAP != 0;
            ranges.push(BlockRange { offset, length, unmap });
        }
    }
    Ok(ranges)
}
