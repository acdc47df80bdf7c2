//! How the driver reaches a controller: its registers, memory that it can reach, its interrupts.
//!
//! | Way | When |
//! | --- | --- |
//! | VFIO by iommufd | the kernel has `/dev/iommu` and gives the device a file of its own |
//! | VFIO type 1 | otherwise, behind an IOMMU |
//! | sysfs | **unsafe**, and only when asked for: without an IOMMU |

mod pci;
mod sysfs;
mod vfio;

pub use pci::{PciAddress, list};
pub use sysfs::SysfsTransport;
pub use vfio::VfioTransport;

use crate::dma::{DmaPool, PageKind};
use crate::error::Error;
use crate::registers::{Interrupts, Registers};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Hugepages of 2 MiB, and normal pages where there are none and an IOMMU is.
pub const USUAL_PAGES: &[PageKind] = &[PageKind::Huge2M, PageKind::Normal];
/// How often a controller that another process holds is tried again.
const RETRY: Duration = Duration::from_millis(10);

/// How a controller is taken.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Memory is made of the first of these kinds of pages that the system has.
    pub pages: Vec<PageKind>,
    /// **Unsafe**: take a controller that no IOMMU keeps from memory that is not its own.
    pub without_iommu: bool,
    /// Wait this long for another process to let go of it: a predecessor that is ending.
    pub wait: Duration,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            pages: USUAL_PAGES.to_vec(),
            without_iommu: false,
            wait: Duration::from_secs(10),
        }
    }
}

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

/// Takes a controller, alone among processes, the best way that this machine has. Blocks while
/// another process holds it.
///
/// # Errors
/// It is not there, is no controller, is not given to this process, or stays held.
pub fn open(address: PciAddress, options: &OpenOptions) -> Result<Arc<dyn Transport>, Error> {
    let begin = Instant::now();
    loop {
        match open_once(address, options) {
            Err(Error::Held(_)) if begin.elapsed() < options.wait => std::thread::sleep(RETRY),
            done => return done,
        }
    }
}

fn open_once(address: PciAddress, options: &OpenOptions) -> Result<Arc<dyn Transport>, Error> {
    if options.without_iommu {
        let taken = SysfsTransport::open_without_iommu(address, &options.pages)?;
        return Ok(Arc::new(taken));
    }
    Ok(Arc::new(VfioTransport::open(address, &options.pages)?))
}
