//! Words of shared memory, and owned pieces of a pool.

use super::pool::Chunk;
use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// A contiguous range of device addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// First device address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
}

/// What a request points to.
///
/// # Safety
/// While the value lives, the segments stay mapped for the device, and nobody sees their memory as
/// a plain reference. The segments do not change.
pub unsafe trait DmaMemory {
    /// The memory, in order.
    fn segments(&self) -> &[Segment];
}

// SAFETY: nothing is named.
unsafe impl DmaMemory for () {
    fn segments(&self) -> &[Segment] {
        &[]
    }
}

/// A range of host memory that others may change at any moment. Whoever makes one promises that
/// the memory is valid while it is used.
#[derive(Clone, Copy)]
pub(crate) struct Words {
    host: NonNull<u8>,
    length: usize,
}

// SAFETY: every access is atomic, so it may come from any thread.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// # Safety
    /// `host` is valid for reads and writes of `length` bytes, is aligned to 8 bytes, and stays so
    /// for as long as this value or a copy is used; nobody holds a reference to the memory meanwhile.
    pub(crate) unsafe fn new(host: NonNull<u8>, length: usize) -> Words {
        assert!(host.as_ptr().addr().is_multiple_of(8), "memory of words is aligned");
        Words { host, length }
    }

    pub(crate) fn len(&self) -> usize {
        self.length
    }

    pub(crate) fn host(&self) -> NonNull<u8> {
        self.host
    }

    /// A part of it.
    pub(crate) fn part(&self, at: usize, length: usize) -> Words {
        assert!(at.checked_add(length).is_some_and(|end| end <= self.length), "part within memory");
        assert!(at.is_multiple_of(8), "memory of words is aligned");
        // SAFETY: `at` is within the memory.
        Words { host: unsafe { self.host.add(at) }, length }
    }

    fn at(&self, at: usize, size: usize) -> *mut u8 {
        assert!(at.checked_add(size).is_some_and(|end| end <= self.length), "access within memory");
        assert!(at.is_multiple_of(size), "access aligned to its size");
        // SAFETY: `at` is within the memory.
        unsafe { self.host.as_ptr().add(at) }
    }

    pub(crate) fn read_u32(&self, at: usize) -> u32 {
        let place = self.at(at, 4).cast();
        // SAFETY: `at` checked bounds and alignment; all access to the memory is atomic.
        u32::from_le(unsafe { AtomicU32::from_ptr(place) }.load(Ordering::Relaxed))
    }

    pub(crate) fn read_u64(&self, at: usize) -> u64 {
        let place = self.at(at, 8).cast();
        // SAFETY: as in `read_u32`.
        u64::from_le(unsafe { AtomicU64::from_ptr(place) }.load(Ordering::Relaxed))
    }

    pub(crate) fn write_u64(&self, at: usize, value: u64) {
        let place = self.at(at, 8).cast();
        // SAFETY: as in `read_u32`.
        unsafe { AtomicU64::from_ptr(place) }.store(value.to_le(), Ordering::Relaxed);
    }

    fn read_u8(&self, at: usize) -> u8 {
        let place = self.at(at, 1);
        // SAFETY: as in `read_u32`.
        unsafe { AtomicU8::from_ptr(place) }.load(Ordering::Relaxed)
    }

    fn write_u8(&self, at: usize, value: u8) {
        let place = self.at(at, 1);
        // SAFETY: as in `read_u32`.
        unsafe { AtomicU8::from_ptr(place) }.store(value, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, at: usize, target: &mut [u8]) {
        let (mut at, mut rest) = (at, target);
        while !rest.is_empty() {
            let step = if at.is_multiple_of(8) && rest.len() >= 8 {
                rest[..8].copy_from_slice(&self.read_u64(at).to_le_bytes());
                8
            } else {
                rest[0] = self.read_u8(at);
                1
            };
            at += step;
            rest = &mut rest[step..];
        }
    }

    pub(crate) fn write(&self, at: usize, source: &[u8]) {
        let (mut at, mut rest) = (at, source);
        while !rest.is_empty() {
            let step = if at.is_multiple_of(8) && rest.len() >= 8 {
                self.write_u64(at, u64::from_le_bytes(rest[..8].try_into().expect("8 bytes")));
                8
            } else {
                self.write_u8(at, rest[0]);
                1
            };
            at += step;
            rest = &rest[step..];
        }
    }

    pub(crate) fn zero(&self) {
        let whole = self.length / 8 * 8;
        (0..whole).step_by(8).for_each(|at| self.write_u64(at, 0));
        (whole..self.length).for_each(|at| self.write_u8(at, 0));
    }
}

/// A piece of a [`DmaPool`](super::DmaPool), contiguous for the device. It goes back to the pool
/// when it is dropped.
pub struct DmaBuffer {
    words: Words,
    segment: [Segment; 1],
    offset: usize,
    chunk: Arc<Chunk>,
}

impl DmaBuffer {
    pub(super) fn new(chunk: Arc<Chunk>, offset: usize, length: usize) -> DmaBuffer {
        let address = chunk.device() + offset as u64;
        let words = chunk.words().part(offset, length);
        let length = u32::try_from(length).expect("a buffer is shorter than 4 GiB");
        DmaBuffer { words, segment: [Segment { address, length }], offset, chunk }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// First device address.
    pub fn address(&self) -> u64 {
        self.segment[0].address
    }

    /// Copies bytes from `at` out.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn read(&self, at: usize, target: &mut [u8]) {
        self.words.read(at, target);
    }

    /// Copies bytes in at `at`.
    ///
    /// # Panics
    /// Beyond the end.
    pub fn write(&self, at: usize, source: &[u8]) {
        self.words.write(at, source);
    }

    /// Makes all bytes zero.
    pub fn zero(&self) {
        self.words.zero();
    }

    /// A little-endian word; `at` is a multiple of 4.
    pub fn read_u32(&self, at: usize) -> u32 {
        self.words.read_u32(at)
    }

    /// A little-endian word; `at` is a multiple of 8.
    pub fn read_u64(&self, at: usize) -> u64 {
        self.words.read_u64(at)
    }

    /// Stores a little-endian word; `at` is a multiple of 8.
    pub fn write_u64(&self, at: usize, value: u64) {
        self.words.write_u64(at, value);
    }
}

impl fmt::Debug for DmaBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DmaBuffer({} bytes at {:#x})", self.len(), self.address())
    }
}

impl Drop for DmaBuffer {
    fn drop(&mut self) {
        self.chunk.give_back(self.offset, self.words.len());
    }
}

// SAFETY: the chunk keeps the memory mapped while the buffer lives, and all access is atomic.
unsafe impl DmaMemory for DmaBuffer {
    fn segments(&self) -> &[Segment] {
        &self.segment
    }
}

// SAFETY: as for the buffer, which this keeps.
unsafe impl DmaMemory for Arc<DmaBuffer> {
    fn segments(&self) -> &[Segment] {
        &self.segment
    }
}

/// Several buffers as one piece of data.
pub struct Vectored {
    buffers: Vec<DmaBuffer>,
    segments: Vec<Segment>,
}

impl Vectored {
    /// The buffers, in order.
    pub fn new(buffers: Vec<DmaBuffer>) -> Vectored {
        let whole = |buffer: DmaBuffer| (buffer.segment[0].length, buffer);
        let parts = buffers.into_iter().map(whole).map(|(length, buffer)| (buffer, length));
        Vectored::parts(parts.collect())
    }

    /// The first bytes of each buffer, in order.
    ///
    /// # Panics
    /// When a buffer is shorter than its part.
    pub fn parts(parts: Vec<(DmaBuffer, u32)>) -> Vectored {
        let part = |(buffer, length): &(DmaBuffer, u32)| {
            assert!(*length as usize <= buffer.len(), "a part within its buffer");
            Segment { address: buffer.address(), length: *length }
        };
        let segments = parts.iter().map(part).collect();
        Vectored { buffers: parts.into_iter().map(|(buffer, _)| buffer).collect(), segments }
    }

    /// The buffers, in order.
    pub fn buffers(&self) -> &[DmaBuffer] {
        &self.buffers
    }
}

// SAFETY: as for the buffers, which this keeps.
unsafe impl DmaMemory for Vectored {
    fn segments(&self) -> &[Segment] {
        &self.segments
    }
}
