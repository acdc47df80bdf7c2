//! How the driver reaches a controller: its registers, memory that it can reach, its interrupts.

mod pci;
mod sysfs;
mod vfio;

pub use pci::{PciAddress, list};
pub use sysfs::SysfsTransport;
pub use vfio::VfioTransport;

use crate::dma::{DmaPool, PageKind};
use crate::registers::{Interrupts, Registers};
use std::io;

/// Hugepages of 2 MiB, and normal pages where there are none.
pub const USUAL_PAGES: &[PageKind] = &[PageKind::Huge2M, PageKind::Normal];

/// A way to a controller.
pub trait Transport: Send + Sync {
    /// For messages: which controller this is.
    fn name(&self) -> &str;

    /// BAR0.
    fn registers(&self) -> &dyn Registers;

    /// Memory that the controller can reach.
    fn memory(&self) -> &DmaPool;

    /// Lets the controller reach memory, or cuts it off: after `false` it reads and writes no
    /// memory any more, whatever it was told.
    ///
    /// # Errors
    /// The system refuses.
    fn allow_dma(&self, allowed: bool) -> io::Result<()>;

    /// MSI-X vectors, where there are any.
    fn interrupts(&self) -> Option<&Interrupts>;
}
