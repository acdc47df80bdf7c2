//! Memory that a controller reads and writes, and how it is named to the controller.
//!
//! Invariants:
//! - All access to such memory is atomic, word by word, through bounds-checked calls; nothing here
//!   gives out a reference to it. So a device that writes where and when it should not can spoil
//!   content, but cannot cause undefined behaviour.
//! - Memory stays mapped for the device for as long as anyone holds a [`DmaBuffer`] in it, and a
//!   queue pair holds what its commands point to until the device is done with it or is stopped.
//! - The one exception are the runtime's buffers ([`MappedBuffer`]), which their owner sees as
//!   slices: they are named to the device only while the driver owns them.
//!
//! A crash leaves nothing: the kernel ends the mappings with the process.

mod buffer;
mod iova;
mod mapped;
mod pool;
mod space;
#[cfg(test)]
mod tests;
mod vfio;

pub use buffer::{DmaBuffer, DmaMemory, Segment, Vectored};
pub use mapped::{MappedBuffer, MappedPool, Purpose};
pub use pool::{DmaPool, PAGE_BYTES, PageKind, PhysicalMapper};
pub use space::DmaSpace;
pub use vfio::VfioMapper;

use std::io;

/// Makes host memory known to a device.
pub trait Mapper: Send + Sync {
    /// Names `length` bytes from `host` to the device, in one contiguous range of its addresses,
    /// and gives that range's first address. Both are multiples of a page.
    ///
    /// # Errors
    /// The system refuses, or the memory is of a kind that this mapper cannot name.
    ///
    /// # Safety
    /// The memory is valid, and is neither freed nor seen as a plain reference while a command
    /// that names it is outstanding, until [`unmap`](Mapper::unmap).
    unsafe fn map(&self, host: *mut u8, length: usize) -> io::Result<u64>;

    /// Ends a mapping; the device cannot reach the memory any more.
    fn unmap(&self, device: u64, length: usize);

    /// A pool hands out this piece of a mapping. For mappers that watch what devices reach.
    fn taken(&self, _device: u64, _length: usize) {}

    /// The piece is back in its pool: no device should reach it.
    fn given_back(&self, _device: u64, _length: usize) {}

    /// Whether normal pages can be mapped in pieces longer than a page: not without an IOMMU.
    fn takes_normal_pages(&self) -> bool;
}
