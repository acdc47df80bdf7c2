//! Descriptor chains, read once out of the guest's memory and checked as they are read.
//!
//! rust-vmm's chain iterator ends silently at a bad descriptor, which looks like a shorter request;
//! this walk tells the two apart. A chain whose *shape* is wrong stops its ring (there is no
//! trustworthy place for a status). One whose data lies outside of memory but whose status byte
//! can be reached fails as a request.
//!
//! Layout (VIRTIO 1.2, 2.7.5): a descriptor is address u64, length u32, flags u16, next u16.

use crate::error::RingFault;
use crate::memory::{Memory, Unmapped};
use virtio_bindings::bindings::virtio_ring::{
    VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE,
};

/// Descriptors of one request, indirect ones counted, at most.
pub(crate) const CHAIN_MAX: u32 = 1024;
const DESCRIPTOR: u32 = 16;

/// A piece of guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Segment {
    pub(crate) address: u64,
    pub(crate) length: u32,
}

/// A request's memory. Its vectors are kept from one request to the next.
#[derive(Debug, Default)]
pub(crate) struct Chain {
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    readable_bytes: u64,
    writable_bytes: u64,
    unreachable: bool,
}

struct Descriptor {
    address: u64,
    length: u32,
    flags: u32,
    next: u16,
}

impl Descriptor {
    fn read(memory: &Memory, table: u64, index: u32) -> Result<Descriptor, RingFault> {
        let mut raw = [0; DESCRIPTOR as usize];
        let address = table.checked_add(u64::from(index * DESCRIPTOR)).ok_or(RingFault::Table)?;
        memory.read(address, &mut raw).map_err(|Unmapped| RingFault::Table)?;
        let (address, rest) = raw.split_at(8);
        Ok(Descriptor {
            address: u64::from_le_bytes(address.try_into().expect("8 bytes")),
            length: u32::from_le_bytes(rest[..4].try_into().expect("4 bytes")),
            flags: u16::from_le_bytes([rest[4], rest[5]]).into(),
            next: u16::from_le_bytes([rest[6], rest[7]]),
        })
    }

    fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }
}

impl Chain {
    /// Reads the chain that begins at `head` of the table at `table` with `size` descriptors.
    pub(crate) fn walk(
        &mut self,
        memory: &Memory,
        table: u64,
        size: u16,
        head: u16,
    ) -> Result<(), RingFault> {
        self.clear();
        let (mut table, mut size, mut index) = (table, u32::from(size), head);
        let mut indirect = false;
        // A loop is a chain that never ends: the count finds it.
        for _ in 0..=CHAIN_MAX {
            if u32::from(index) >= size {
                return Err(RingFault::Index(index));
            }
            let descriptor = Descriptor::read(memory, table, index.into())?;
            if descriptor.has(VRING_DESC_F_INDIRECT) {
                if indirect {
                    return Err(RingFault::Nested);
                }
                let bytes = descriptor.length;
                let count = bytes / DESCRIPTOR;
                let whole = bytes.is_multiple_of(DESCRIPTOR) && (1..=CHAIN_MAX).contains(&count);
                if !whole || descriptor.has(VRING_DESC_F_NEXT) {
                    return Err(RingFault::Indirect(bytes));
                }
                (table, size, index, indirect) = (descriptor.address, count, 0, true);
                continue;
            }
            self.push(memory, &descriptor)?;
            if !descriptor.has(VRING_DESC_F_NEXT) {
                return self.check_status(memory);
            }
            index = descriptor.next;
        }
        Err(RingFault::TooLong(CHAIN_MAX))
    }

    fn clear(&mut self) {
        self.readable.clear();
        self.writable.clear();
        self.readable_bytes = 0;
        self.writable_bytes = 0;
        self.unreachable = false;
    }

    fn push(&mut self, memory: &Memory, descriptor: &Descriptor) -> Result<(), RingFault> {
        let segment = Segment { address: descriptor.address, length: descriptor.length };
        let writable = descriptor.has(VRING_DESC_F_WRITE);
        if !writable && !self.writable.is_empty() {
            return Err(RingFault::Order);
        }
        if segment.length == 0 {
            return Ok(());
        }
        self.unreachable |= !memory.reaches(segment.address, segment.length);
        let (segments, bytes) = if writable {
            (&mut self.writable, &mut self.writable_bytes)
        } else {
            (&mut self.readable, &mut self.readable_bytes)
        };
        segments.push(segment);
        *bytes += u64::from(segment.length);
        Ok(())
    }

    fn check_status(&self, memory: &Memory) -> Result<(), RingFault> {
        let last = self.writable.last().ok_or(RingFault::NoStatus)?;
        let place = last.address.checked_add(u64::from(last.length) - 1);
        match place {
            Some(address) if memory.reaches(address, 1) => Ok(()),
            _ => Err(RingFault::NoStatus),
        }
    }

    /// Whether some of it lies outside of the guest's memory.
    pub(crate) fn unreachable(&self) -> bool {
        self.unreachable
    }

    /// Bytes that the guest gives.
    pub(crate) fn readable_bytes(&self) -> u64 {
        self.readable_bytes
    }

    /// Bytes that the guest takes, without the status byte.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.writable_bytes - 1
    }

    /// Copies out of the readable part, from `offset`.
    pub(crate) fn read(
        &self,
        memory: &Memory,
        offset: u64,
        target: &mut [u8],
    ) -> Result<(), Unmapped> {
        let mut filled = 0;
        each(&self.readable, offset, target.len(), |address, length| {
            let piece = &mut target[filled..filled + length];
            filled += length;
            memory.read(address, piece)
        })
    }

    /// Copies into the writable part, from `offset`.
    pub(crate) fn write(&self, memory: &Memory, offset: u64, bytes: &[u8]) -> Result<(), Unmapped> {
        let mut written = 0;
        each(&self.writable, offset, bytes.len(), |address, length| {
            let piece = &bytes[written..written + length];
            written += length;
            memory.write(address, piece)
        })
    }

    /// Writes the status byte, the last one of the writable part.
    pub(crate) fn write_status(&self, memory: &Memory, status: u8) -> Result<(), Unmapped> {
        self.write(memory, self.writable_bytes - 1, &[status])
    }
}

/// Calls `work` with each piece of `count` bytes from `offset` of the segments.
fn each(
    segments: &[Segment],
    offset: u64,
    count: usize,
    mut work: impl FnMut(u64, usize) -> Result<(), Unmapped>,
) -> Result<(), Unmapped> {
    let (mut skip, mut left) = (offset, count);
    for segment in segments {
        if left == 0 {
            return Ok(());
        }
        let length = u64::from(segment.length);
        if skip >= length {
            skip -= length;
            continue;
        }
        let piece = left.min((length - skip) as usize);
        // Reachable memory does not wrap; what is not reachable is refused by the access.
        work(segment.address.wrapping_add(skip), piece)?;
        skip = 0;
        left -= piece;
    }
    if left == 0 { Ok(()) } else { Err(Unmapped) }
}
