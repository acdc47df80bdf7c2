//! A PCI memory region, mapped into the process.
//!
//! A device that is gone reads as all ones and ignores writes; the mapping itself stays valid
//! until it is dropped.

use super::Registers;
use rustix::mm::{MapFlags, ProtFlags};
use std::io;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::{Ordering, fence};

/// See the module's page.
pub struct Bar {
    base: NonNull<u8>,
    length: u32,
}

// SAFETY: registers may be accessed from any thread; each access is one volatile instruction.
unsafe impl Send for Bar {}
// SAFETY: as above.
unsafe impl Sync for Bar {}

impl Bar {
    /// Maps `length` bytes at `offset` of a VFIO device or of a sysfs resource file.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn map(file: impl AsFd, offset: u64, length: u32) -> io::Result<Bar> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice, accessed only below.
        let base = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                length as usize,
                access,
                MapFlags::SHARED,
                file,
                offset,
            )
        }?;
        let base = NonNull::new(base.cast()).expect("the kernel maps nothing at zero");
        Ok(Bar { base, length })
    }

    fn at(&self, offset: u32) -> *mut u32 {
        let inside = offset.checked_add(4).is_some_and(|end| end <= self.length);
        assert!(inside && offset.is_multiple_of(4), "register within the region");
        // SAFETY: the offset is within the mapping.
        unsafe { self.base.as_ptr().add(offset as usize).cast() }
    }
}

/// Orders what was written to memory before what is written to the device after. On x86 stores to
/// memory are seen before a later store to uncached space; elsewhere the device is beyond the
/// domain that a fence of the language covers.
fn write_barrier() {
    fence(Ordering::Release);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no effect but order.
    unsafe {
        std::arch::asm!("dmb oshst", options(nostack, preserves_flags));
    }
}

/// Orders what was read from the device before what is read from memory after.
fn read_barrier() {
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier has no effect but order.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
    fence(Ordering::Acquire);
}

impl Registers for Bar {
    fn length(&self) -> u32 {
        self.length
    }

    fn read(&self, offset: u32) -> u32 {
        let place = self.at(offset);
        // SAFETY: `at` checked bounds and alignment; the mapping lives as long as this does.
        let value = u32::from_le(unsafe { place.read_volatile() });
        read_barrier();
        value
    }

    fn write(&self, offset: u32, value: u32) {
        let place = self.at(offset);
        write_barrier();
        // SAFETY: as in `read`.
        unsafe { place.write_volatile(value.to_le()) };
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, and nobody else has the address.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.length as usize) };
    }
}
