//! What the engine gets from a vdisk, and what it answers.
//!
//! Offsets and lengths are bytes, multiples of the vdisk's logical block, within its capacity.

use cleave_runtime::buffer::{Buffer, BufferPool};

/// Names a request until its [`complete`](crate::Disk::complete). Never reused by a [`Disk`](crate::Disk),
/// so an answer that comes after its connection went is recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tag(pub(crate) u64);

impl Tag {
    pub(crate) const PARTS_MAX: u32 = 1 << 12;

    /// `slot` 16 bits, `part` 12 bits, `life` the remaining 36: at a million requests a second
    /// through one slot it repeats after 19 hours, while a tag lives for a request.
    pub(crate) fn new(slot: u16, part: u32, life: u64) -> Tag {
        Tag(u64::from(slot) | u64::from(part & 0xfff) << 16 | life << 28)
    }

    pub(crate) fn slot(self) -> u16 {
        self.0 as u16
    }

    pub(crate) fn part(self) -> u32 {
        (self.0 >> 16) as u32 & 0xfff
    }

    pub(crate) fn life(self) -> u64 {
        self.0 >> 28
    }
}

/// A request taken off a virtqueue, or a part of one that is longer than
/// [`transfer_max`](crate::DiskConfig::transfer_max).
#[derive(Debug)]
pub struct Request {
    /// For the answer.
    pub tag: Tag,
    /// What to do.
    pub kind: RequestKind,
    /// The request was in flight when an earlier connection or process ended: it may have been
    /// executed already, wholly or in part (C24).
    pub resumed: bool,
}

/// What a guest asks for.
#[derive(Debug)]
pub enum RequestKind {
    /// Answer with [`Outcome::Read`], or with [`Disk::fill`](crate::Disk::fill) and [`Outcome::Done`].
    Read {
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u32,
    },
    /// Write the buffer.
    Write {
        /// First byte.
        offset: u64,
        /// The data, copied once out of the guest's memory.
        data: Buffer,
    },
    /// Writes that were completed before are to be safe: they are (completion means mirrored).
    Flush,
    /// The content of the ranges is not needed any more.
    Discard {
        /// At least one.
        ranges: Vec<BlockRange>,
    },
    /// The ranges are to read as zeros.
    WriteZeroes {
        /// At least one.
        ranges: Vec<BlockRange>,
    },
}

/// A part of a vdisk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRange {
    /// First byte.
    pub offset: u64,
    /// Bytes; never 0.
    pub length: u64,
    /// The space may be given back. Always set for discards.
    pub unmap: bool,
}

/// An answer.
#[derive(Clone, Copy, Debug)]
pub enum Outcome<'a> {
    /// It is done; for a read, all of it was given by [`Disk::fill`](crate::Disk::fill).
    Done,
    /// A read's data, in pieces that together have the request's length.
    Read(&'a [&'a [u8]]),
    /// The guest gets an I/O error.
    Failed,
    /// The guest is told that the vdisk does not do this.
    Unsupported,
}

/// Where the buffers of writes come from.
pub trait BufferSource {
    /// A buffer of visible length `length`, content undefined.
    fn take(&self, length: usize) -> Buffer;
}

/// Longer requests than the pool's buffers get memory of their own.
impl BufferSource for BufferPool {
    fn take(&self, length: usize) -> Buffer {
        if length <= self.capacity() { BufferPool::take(self, length) } else { Buffer::new(length) }
    }
}

/// The first pool whose buffers are long enough; order them by capacity.
impl BufferSource for Vec<BufferPool> {
    fn take(&self, length: usize) -> Buffer {
        match self.iter().find(|pool| pool.capacity() >= length) {
            Some(pool) => pool.take(length),
            None => Buffer::new(length),
        }
    }
}
