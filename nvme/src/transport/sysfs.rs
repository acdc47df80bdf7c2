//! A controller without an IOMMU: its registers through sysfs, memory by physical addresses.
//!
//! **Unsafe by nature and never the default**: the device can reach all memory of the machine, and
//! nothing stops it when this process dies: it goes on writing to memory that may by then belong to
//! somebody else, until the next start or the kernel's driver resets it. For tests, and for machines
//! that have no other way. There are no interrupts on this path; cores must poll.

use super::Transport;
use super::pci::{BUS_MASTER, COMMAND, PciAddress, with_dma};
use crate::dma::{DmaPool, PageKind, PhysicalMapper};
use crate::error::Error;
use crate::registers::{Bar, Interrupts, Registers};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// See the module's page.
pub struct SysfsTransport {
    name: String,
    bar: Bar,
    config: File,
    memory: DmaPool,
    /// Locked for as long as the controller is held. After the memory: the next holder resets the
    /// controller before it uses it.
    _lock: File,
}

impl SysfsTransport {
    /// Takes a controller that no driver of the kernel is bound to. Memory is made of the first of
    /// these kinds of pages that the system has; normal pages are left out.
    ///
    /// # Errors
    /// The device is not there, is no controller, has a driver, is held by another process, or is
    /// behind an IOMMU (then VFIO is the way).
    pub fn open_without_iommu(
        address: PciAddress,
        pages: &[PageKind],
    ) -> Result<SysfsTransport, Error> {
        address.check_class()?;
        if let Some(driver) = address.driver() {
            return Err(Error::Unsupported(format!("{address} belongs to {driver}; unbind it")));
        }
        if address.has_iommu() {
            return Err(Error::Unsupported(format!(
                "{address} is behind an IOMMU; bind it to vfio-pci"
            )));
        }
        let name = address.to_string();
        let path = address.path();
        let system = |what: &str| Error::system(format!("{what} of {name}"));
        let open = |file: &str| OpenOptions::new().read(true).write(true).open(path.join(file));
        let registers = open("resource0").map_err(system("registers"))?;
        match flock(&registers, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => return Err(Error::Held(name)),
            Err(errno) => return Err(system("lock")(errno.into())),
        }
        let length = registers.metadata().map_err(system("registers"))?.len().min(1 << 20) as u32;
        let bar = Bar::map(&registers, 0, length).map_err(system("registers"))?;
        let config = open("config").map_err(system("configuration space"))?;
        let mapper = PhysicalMapper::new().map_err(system("memory"))?;
        let memory = DmaPool::new(Arc::new(mapper), pages, address.numa_node());
        Ok(SysfsTransport { name, bar, config, memory, _lock: registers })
    }

    fn command(&self) -> io::Result<u16> {
        let mut word = [0; 2];
        self.config.read_exact_at(&mut word, COMMAND)?;
        Ok(u16::from_le_bytes(word))
    }
}

impl Transport for SysfsTransport {
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
        let before = match self.command() {
            Ok(u16::MAX) | Err(_) if !allowed => return Ok(()),
            before => before?,
        };
        let wanted = with_dma(before, allowed);
        self.config.write_all_at(&wanted.to_le_bytes(), COMMAND)?;
        let after = self.command()?;
        if after & BUS_MASTER == wanted & BUS_MASTER {
            return Ok(());
        }
        let text = format!("the command register of {} stays {after:#x}", self.name);
        Err(io::Error::other(text))
    }

    fn interrupts(&self) -> Option<&Interrupts> {
        None
    }
}

impl Drop for SysfsTransport {
    fn drop(&mut self) {
        // No IOMMU takes memory from the device, so this does.
        let _ = self.allow_dma(false);
    }
}
