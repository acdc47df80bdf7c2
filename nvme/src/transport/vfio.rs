//! A controller behind an IOMMU, through VFIO (type 1).
//!
//! The kernel gives this process the device alone, resets it when the last file of it closes, and
//! lets it reach only what was mapped. The order of the fields is the order in which things are let
//! go: the device's mappings and files before the device, that before the IOMMU's mappings.

use super::Transport;
use super::pci::{BUS_MASTER, COMMAND, PciAddress, with_dma};
use crate::dma::{DmaPool, PageKind, VfioMapper};
use crate::error::Error;
use crate::registers::{Bar, Interrupts, Registers, device_file};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioOps};

/// Vectors that are enabled at most: one for the admin queue and one for each of as many pairs.
const VECTORS_MAX: u32 = 65;
/// Registers that are mapped at most: enough for the doorbells of any queue in use.
const REGISTERS_MAX: u64 = 1 << 20;

/// See the module's page.
pub struct VfioTransport {
    name: String,
    bar: Bar,
    interrupts: Interrupts,
    device: VfioDevice,
    memory: DmaPool,
}

impl VfioTransport {
    /// Takes a controller that is bound to `vfio-pci`. Memory is made of the first of these kinds of
    /// pages that the system has; [`USUAL_PAGES`](super::USUAL_PAGES) is a good choice.
    ///
    /// # Errors
    /// The device is not there, is no controller, or is not given to this process.
    pub fn open(address: PciAddress, pages: &[PageKind]) -> Result<VfioTransport, Error> {
        address.check_class()?;
        let refused = |what: &str, error: vfio_ioctls::VfioError| {
            let what = format!("{what} {address}; is it bound to vfio-pci, and /dev/vfio ours?");
            Error::system(what)(io::Error::other(error))
        };
        let container =
            VfioContainer::new(None).map_err(|error| refused("open VFIO for", error))?;
        let container = Arc::new(container);
        let ops = Arc::clone(&container) as Arc<dyn VfioOps>;
        let device =
            VfioDevice::new(&address.path(), ops, false).map_err(|error| refused("take", error))?;
        let name = address.to_string();
        let system = |what: &str| Error::system(format!("{what} of {name}"));
        let file = device_file(&device).map_err(system("file"))?;
        let length = device.get_region_size(VFIO_PCI_BAR0_REGION_INDEX).min(REGISTERS_MAX) as u32;
        let offset = device.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
        let bar = Bar::map(file.as_fd(), offset, length).map_err(system("registers"))?;
        let vectors = device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).map_or(0, |info| info.count);
        let vectors = vectors.min(VECTORS_MAX) as u16;
        let interrupts = Interrupts::new(file.as_fd(), vectors).map_err(system("interrupts"))?;
        let mapper = Arc::new(VfioMapper::new(container));
        let memory = DmaPool::new(mapper, pages, address.numa_node());
        Ok(VfioTransport { name, bar, interrupts, device, memory })
    }

    fn command(&self) -> u16 {
        let mut word = [0xff; 2];
        self.device.region_read(VFIO_PCI_CONFIG_REGION_INDEX, &mut word, COMMAND);
        u16::from_le_bytes(word)
    }
}

impl Transport for VfioTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn registers(&self) -> &dyn Registers {
        &self.bar
    }

    fn memory(&self) -> &DmaPool {
        &self.memory
    }

    fn allow_dma(&self, allowed: bool) -> io::Result<()> {
        let before = self.command();
        if before == u16::MAX && !allowed {
            // It is gone.
            return Ok(());
        }
        let wanted = with_dma(before, allowed);
        self.device.region_write(VFIO_PCI_CONFIG_REGION_INDEX, &wanted.to_le_bytes(), COMMAND);
        let after = self.command();
        let good = after & BUS_MASTER == wanted & BUS_MASTER || (after == u16::MAX && !allowed);
        let text = format!("the command register of {} stays {after:#x}", self.name);
        if good { Ok(()) } else { Err(io::Error::other(text)) }
    }

    fn interrupts(&self) -> Option<&Interrupts> {
        Some(&self.interrupts)
    }
}
