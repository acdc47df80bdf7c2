//! The runtime's buffers as memory of a device: mapped once, used without a copy.
//!
//! Invariants: a buffer that came from a [`MappedPool`] has memory that stays mapped until the
//! pool is gone, and its owner, who sees it as a slice, is the driver while a command names it.
//! A buffer from elsewhere, or any buffer where memory cannot be mapped (without an IOMMU), is
//! copied through memory of the device's pool.

use super::buffer::{DmaBuffer, DmaMemory, Segment};
use super::{DmaPool, Mapper};
use cleave_runtime::buffer::{Buffer, BufferPool};
use std::io;
use std::rc::Rc;
use std::sync::Arc;

/// Buffers of one capacity, mapped for a device. Ends the mappings when it is dropped, which must
/// not be before the device is done with them: requests keep it.
pub struct MappedPool {
    buffers: BufferPool,
    places: Vec<Place>,
    mapper: Arc<dyn Mapper>,
}

#[derive(Clone, Copy)]
struct Place {
    host: usize,
    device: u64,
    length: usize,
}

impl MappedPool {
    /// `count` mapped buffers of `capacity` bytes. Without an IOMMU they are not mapped.
    ///
    /// # Errors
    /// The device cannot be told of the memory.
    pub fn new(memory: &DmaPool, capacity: usize, count: u16) -> io::Result<MappedPool> {
        let mapper = Arc::clone(memory.mapper());
        let mut places = Vec::new();
        if !mapper.takes_normal_pages() {
            let buffers = BufferPool::new(capacity, usize::from(count));
            return Ok(MappedPool { buffers, places, mapper });
        }
        let mut failure = None;
        let buffers = BufferPool::registered(capacity, count, 0, |host, length| {
            if failure.is_some() {
                return;
            }
            // SAFETY: the memory stays in place until the pool and its buffers are gone; it is
            // unmapped when this is dropped, of which the pool is a part, or below.
            match unsafe { mapper.map(host, length) } {
                Ok(device) => places.push(Place { host: host.addr(), device, length }),
                Err(error) => failure = Some(error),
            }
        });
        let pool = MappedPool { buffers, places, mapper };
        match failure {
            Some(error) => Err(error),
            None => Ok(pool),
        }
    }

    /// Bytes of each buffer.
    pub fn capacity(&self) -> usize {
        self.buffers.capacity()
    }

    /// A buffer of visible length `length`: a mapped one while there are any.
    pub fn take(&self, length: usize) -> Buffer {
        self.buffers.take(length)
    }

    /// Where the device finds the buffer, if it is one of this pool.
    fn segment(&self, buffer: &Buffer) -> Option<Segment> {
        let place = self.places.get(usize::from(buffer.registered()?))?;
        // Another pool's buffer can have the same index.
        if place.host != buffer.as_ptr().addr() || buffer.len() > place.length {
            return None;
        }
        Some(Segment { address: place.device, length: u32::try_from(buffer.len()).ok()? })
    }
}

impl Drop for MappedPool {
    fn drop(&mut self) {
        for place in &self.places {
            self.mapper.unmap(place.device, place.length);
        }
    }
}

/// What a request does with its buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The device fills it.
    Fill,
    /// The device reads it.
    Send,
    /// Nothing: a flush, which covers this many completed writes.
    Flush(u64),
    /// Nothing.
    Nothing,
}

/// A runtime's buffer on its way to or from the device, or nothing.
pub struct MappedBuffer {
    purpose: Purpose,
    buffer: Option<Buffer>,
    segment: [Segment; 1],
    copy: Option<DmaBuffer>,
    /// Keeps the mapping.
    _home: Option<Rc<MappedPool>>,
}

impl MappedBuffer {
    /// For requests without data; `buffer` only comes back.
    pub fn nothing(buffer: Option<Buffer>, purpose: Purpose) -> MappedBuffer {
        MappedBuffer { purpose, buffer, segment: [Segment::default()], copy: None, _home: None }
    }

    /// Names the buffer to the device, by a copy where it is not mapped.
    ///
    /// # Errors
    /// There is no memory for the copy; the buffer comes back.
    pub fn new(
        buffer: Buffer,
        pools: &[Rc<MappedPool>],
        memory: &DmaPool,
        purpose: Purpose,
    ) -> Result<MappedBuffer, (io::Error, Buffer)> {
        for pool in pools {
            if let Some(segment) = pool.segment(&buffer) {
                let home = Some(Rc::clone(pool));
                let (buffer, copy) = (Some(buffer), None);
                let segment = [segment];
                return Ok(MappedBuffer { purpose, buffer, segment, copy, _home: home });
            }
        }
        let copy = match memory.allocate(buffer.len()) {
            Ok(copy) => copy,
            Err(error) => return Err((error, buffer)),
        };
        if purpose == Purpose::Send {
            copy.write(0, &buffer);
        }
        let segment = [Segment { address: copy.address(), length: buffer.len() as u32 }];
        let (buffer, copy) = (Some(buffer), Some(copy));
        Ok(MappedBuffer { purpose, buffer, segment, copy, _home: None })
    }

    /// Whether the data is copied.
    pub fn is_copied(&self) -> bool {
        self.copy.is_some()
    }

    /// From the request.
    pub fn purpose(&self) -> Purpose {
        self.purpose
    }

    /// The buffer, after the device is done with it.
    pub fn finish(mut self) -> Option<Buffer> {
        let mut buffer = self.buffer.take()?;
        if let (Some(copy), Purpose::Fill) = (&self.copy, self.purpose) {
            copy.read(0, &mut buffer);
        }
        Some(buffer)
    }
}

// SAFETY: the buffer is owned here, and nobody sees it as a slice; its mapping, or the copy, lives
// as long as this does.
unsafe impl DmaMemory for MappedBuffer {
    fn segments(&self) -> &[Segment] {
        if self.segment[0].length == 0 { &[] } else { &self.segment }
    }
}
