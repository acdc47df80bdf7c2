//! NVMe controllers as the kernel's PCI layer shows them in sysfs.

use crate::error::Error;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

const DEVICES: &str = "/sys/bus/pci/devices";
/// Class code of NVM Express I/O controllers (PCIe 3.2).
const CLASS: u32 = 0x01_08_02;
/// Offset of the command register in configuration space, and its bus master bit.
pub(super) const COMMAND: u64 = 4;
pub(super) const BUS_MASTER: u16 = 1 << 2;
const MEMORY_SPACE: u16 = 1 << 1;

/// The command register with memory space on, and the device a master of the bus or not.
pub(super) fn with_dma(command: u16, allowed: bool) -> u16 {
    if allowed { command | MEMORY_SPACE | BUS_MASTER } else { command & !BUS_MASTER }
}

/// Where a PCI function is: domain, bus, device, function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl FromStr for PciAddress {
    type Err = String;

    /// Reads `0000:3b:00.0`, or without the domain.
    fn from_str(text: &str) -> Result<PciAddress, String> {
        let wrong = || format!("{text} is no PCI address like 0000:3b:00.0");
        let hex = |part: &str| u32::from_str_radix(part, 16).map_err(|_| wrong());
        let (place, function) = text.split_once('.').ok_or_else(wrong)?;
        let parts: Vec<&str> = place.split(':').collect();
        let (domain, bus, device) = match parts[..] {
            [domain, bus, device] => (hex(domain)?, hex(bus)?, hex(device)?),
            [bus, device] => (0, hex(bus)?, hex(device)?),
            _ => return Err(wrong()),
        };
        let function = hex(function)?;
        if bus > 0xff || device > 0x1f || function > 7 {
            return Err(wrong());
        }
        let [bus, device, function] = [bus, device, function].map(|part| part as u8);
        Ok(PciAddress { domain, bus, device, function })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let PciAddress { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

impl PciAddress {
    /// Its folder in sysfs.
    pub fn path(&self) -> PathBuf {
        Path::new(DEVICES).join(self.to_string())
    }

    /// The kernel's driver that is bound to it, if one is.
    pub fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.path().join("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Whether there is an IOMMU that translates what the device says.
    pub fn has_iommu(&self) -> bool {
        let kind = fs::read_to_string(self.path().join("iommu_group/type"));
        kind.is_ok_and(|kind| kind.trim() != "identity")
    }

    /// Model and serial number, where the kernel's driver has read them.
    pub fn described(&self) -> Option<(String, String)> {
        let mut entries = fs::read_dir(self.path().join("nvme")).ok()?;
        let folder = entries.next()?.ok()?.path();
        let read = |name| fs::read_to_string(folder.join(name)).ok();
        Some((read("model")?.trim().to_owned(), read("serial")?.trim().to_owned()))
    }

    /// The NUMA node that it is attached to, where there is more than one.
    pub fn numa_node(&self) -> Option<u32> {
        let text = fs::read_to_string(self.path().join("numa_node")).ok()?;
        // -1: the machine has no nodes, or does not say.
        text.trim().parse().ok()
    }

    /// Refuses what is no NVMe controller.
    pub(super) fn check_class(&self) -> Result<(), Error> {
        match class(&self.path()) {
            Ok(CLASS) => Ok(()),
            Ok(other) => Err(Error::Unsupported(format!(
                "{self} is no NVMe controller: its class is {other:06x}"
            ))),
            Err(error) => Err(Error::system(format!("look at PCI device {self}"))(error)),
        }
    }
}

fn class(path: &Path) -> io::Result<u32> {
    let text = fs::read_to_string(path.join("class"))?;
    let text = text.trim().trim_start_matches("0x");
    u32::from_str_radix(text, 16).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The machine's NVMe controllers.
///
/// # Errors
/// sysfs cannot be read.
pub fn list() -> io::Result<Vec<PciAddress>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(DEVICES)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if class(&path).is_ok_and(|class| class == CLASS)
            && let Ok(address) = name.parse()
        {
            found.push(address);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read_and_written() {
        let address: PciAddress = "0000:3b:00.1".parse().unwrap();
        assert_eq!(address.to_string(), "0000:3b:00.1");
        assert_eq!("3b:00.1".parse(), Ok(address));
        for wrong in ["", "3b:00", "0:0:0:0.0", "0000:100:00.0", "0000:00:20.0", "0000:00:00.8"] {
            assert!(wrong.parse::<PciAddress>().is_err(), "{wrong}");
        }
    }
}
