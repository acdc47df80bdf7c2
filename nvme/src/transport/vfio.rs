//! A controller behind an IOMMU, through VFIO: by iommufd where the kernel has it, else type 1.
//!
//! The kernel gives this process the device alone, resets it when the last file of it closes, and
//! lets it reach only what was mapped. The order of the fields is the order in which things are let
//! go: the device's mappings and files before the device, that before the IOMMU's mappings.

use super::Transport;
use super::pci::{BUS_MASTER, COMMAND, PciAddress, with_dma};
use crate::dma::{DmaPool, PageKind, VfioMapper};
use crate::error::Error;
use crate::registers::{Bar, Interrupts, Registers, device_file};
use iommufd_ioctls::IommuFd;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR0_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_MSIX_IRQ_INDEX,
};
use vfio_ioctls::{VfioContainer, VfioDevice, VfioError, VfioIommufd, VfioOps};

/// Where a kernel with iommufd shows it.
const IOMMUFD: &str = "/dev/iommu";
/// Vectors that are enabled at most: one for the admin queue and one for each of as many pairs.
const VECTORS_MAX: u32 = 65;
/// Registers that are mapped at most: enough for the doorbells of any queue in use.
const REGISTERS_MAX: u64 = 1 << 20;

/// Whether the kernel has iommufd, and gives the device a file of its own beside its group.
fn has_iommufd(address: PciAddress) -> bool {
    Path::new(IOMMUFD).exists() && address.path().join("vfio-dev").exists()
}

fn by_iommufd(address: PciAddress) -> Result<(VfioDevice, VfioMapper), VfioError> {
    let iommu = Arc::new(IommuFd::new().map_err(VfioError::NewVfioIommufd)?);
    let space = Arc::new(VfioIommufd::new(iommu, None, None)?);
    let device = VfioDevice::new(&address.path(), Arc::clone(&space) as Arc<dyn VfioOps>, true)?;
    // The allowed addresses are those of the devices that are attached.
    Ok((device, VfioMapper::of_iommufd(space)))
}

fn by_group(address: PciAddress) -> Result<(VfioDevice, VfioMapper), VfioError> {
    let container = Arc::new(VfioContainer::new(None)?);
    let ops = Arc::clone(&container) as Arc<dyn VfioOps>;
    let device = VfioDevice::new(&address.path(), ops, false)?;
    Ok((device, VfioMapper::of_container(container)))
}

fn refused(address: PciAddress, error: VfioError) -> Error {
    match &error {
        // A group, or a device's own file, is one process's at a time.
        VfioError::OpenGroup(source, _) if source.kind() == io::ErrorKind::ResourceBusy => {
            Error::Held(address.to_string())
        }
        VfioError::VfioDeviceBindIommufd(source)
            if [libc::EBUSY, libc::EINVAL].contains(&source.errno()) =>
        {
            Error::Held(address.to_string())
        }
        _ => {
            let what = format!("take {address}; is it bound to vfio-pci, and /dev/vfio ours?");
            Error::system(what)(io::Error::other(error))
        }
    }
}

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
        let refused = |error| refused(address, error);
        let (device, mapper) = if has_iommufd(address) {
            by_iommufd(address).map_err(refused)?
        } else {
            by_group(address).map_err(refused)?
        };
        let name = address.to_string();
        let system = |what: &str| Error::system(format!("{what} of {name}"));
        let file = device_file(&device).map_err(system("file"))?;
        let length = device.get_region_size(VFIO_PCI_BAR0_REGION_INDEX).min(REGISTERS_MAX) as u32;
        let offset = device.get_region_offset(VFIO_PCI_BAR0_REGION_INDEX);
        let bar = Bar::map(file.as_fd(), offset, length).map_err(system("registers"))?;
        let vectors = device.get_irq_info(VFIO_PCI_MSIX_IRQ_INDEX).map_or(0, |info| info.count);
        let vectors = vectors.min(VECTORS_MAX) as u16;
        let interrupts = Interrupts::new(file.as_fd(), vectors).map_err(system("interrupts"))?;
        let memory = DmaPool::new(Arc::new(mapper), pages, address.numa_node());
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
