//! MSI-X vectors of a VFIO device as eventfds, one by one.
//!
//! A vector without an eventfd is masked by the kernel: what the device signals meanwhile stays
//! pending and arrives when one is set. So a core that polls costs no interrupts, and one that is
//! about to sleep arms its vector, looks once more, and sleeps.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IRQ_SET_ACTION_TRIGGER, VFIO_IRQ_SET_DATA_EVENTFD, VFIO_PCI_MSIX_IRQ_INDEX,
    VFIO_TYPE,
};
use vfio_ioctls::VfioDevice;

/// VFIO_DEVICE_SET_IRQS, `_IO(VFIO_TYPE, VFIO_BASE + 10)` of linux/vfio.h.
const SET_IRQS: u64 = ((VFIO_TYPE as u64) << 8) | (VFIO_BASE as u64 + 10);
/// No eventfd: the vector is masked.
const NONE: i32 = -1;

/// See the module's page.
pub struct Interrupts {
    device: OwnedFd,
    events: Vec<OwnedFd>,
}

impl Interrupts {
    /// Enables MSI-X with `count` vectors, none of them armed.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(device: BorrowedFd<'_>, count: u16) -> io::Result<Interrupts> {
        let flags = rustix::event::EventfdFlags::CLOEXEC | rustix::event::EventfdFlags::NONBLOCK;
        let events = (0..count).map(|_| rustix::event::eventfd(0, flags));
        let events = events.collect::<Result<Vec<_>, _>>()?;
        let interrupts = Interrupts { device: device.try_clone_to_owned()?, events };
        if count > 0 {
            interrupts.set(0, &vec![NONE; usize::from(count)])?;
        }
        Ok(interrupts)
    }

    /// Vectors.
    pub fn count(&self) -> u16 {
        self.events.len() as u16
    }

    /// Becomes readable when an armed vector is signalled. Readers take its count by reading.
    pub fn event(&self, vector: u16) -> Option<BorrowedFd<'_>> {
        self.events.get(usize::from(vector)).map(AsFd::as_fd)
    }

    /// Lets the vector signal its eventfd, or masks it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn arm(&self, vector: u16, armed: bool) -> io::Result<()> {
        let event = self.events.get(usize::from(vector)).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidInput, format!("there is no vector {vector}"))
        })?;
        self.set(vector, &[if armed { event.as_raw_fd() } else { NONE }])
    }

    fn set(&self, first: u16, events: &[i32]) -> io::Result<()> {
        // struct vfio_irq_set: argsz, flags, index, start, count, and the eventfds.
        let bytes = 4 * (5 + events.len()) as u32;
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let count = events.len() as u32;
        let mut request = vec![bytes, flags, VFIO_PCI_MSIX_IRQ_INDEX, u32::from(first), count];
        request.extend(events.iter().map(|event| event.cast_unsigned()));
        // SAFETY: the request reads as many bytes as its first word (argsz) says, which is the
        // length of `request`.
        let result = unsafe { libc::ioctl(self.device.as_raw_fd(), SET_IRQS, request.as_ptr()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

/// Another file descriptor of the device.
///
/// # Errors
/// The process has no more of them.
pub fn device_file(device: &VfioDevice) -> io::Result<OwnedFd> {
    // SAFETY: the device's file stays open while the device is borrowed.
    let file = unsafe { BorrowedFd::borrow_raw(device.as_raw_fd()) };
    file.try_clone_to_owned()
}
