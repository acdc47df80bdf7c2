//! Where a drive is: how configurations and commands name a namespace of a controller.
//!
//! `nvme:0000:3b:00.0/1` is namespace 1 of the controller at that PCI address; without a number,
//! namespace 1. `nvme-unsafe:` in place of `nvme:` takes a controller without an IOMMU, which can
//! then reach all memory of the machine: nothing does that unless the name says so.

use crate::transport::PciAddress;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

const SAFE: &str = "nvme:";
const UNSAFE: &str = "nvme-unsafe:";

/// See the module's page.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The controller.
    pub address: PciAddress,
    /// The namespace, from 1.
    pub namespace: u32,
    /// **Unsafe**: take it without an IOMMU.
    pub without_iommu: bool,
}

impl Place {
    /// Reads a path of a configuration. `None` for one of a file or a block device.
    ///
    /// # Errors
    /// It names a controller, and is malformed.
    pub fn of_path(path: &Path) -> Result<Option<Place>, String> {
        match path.to_str() {
            Some(text) if text.starts_with(SAFE) || text.starts_with(UNSAFE) => {
                text.parse().map(Some)
            }
            _ => Ok(None),
        }
    }
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        let wrong =
            |why: &str| format!("{text} is no NVMe namespace like {SAFE}0000:3b:00.0/1: {why}");
        let (rest, without_iommu) = match (text.strip_prefix(SAFE), text.strip_prefix(UNSAFE)) {
            (Some(rest), _) => (rest, false),
            (None, Some(rest)) => (rest, true),
            (None, None) => return Err(wrong("it does not begin so")),
        };
        let (address, namespace) = match rest.split_once('/') {
            Some((address, number)) => {
                let number = number.parse().ok().filter(|number| (1..u32::MAX).contains(number));
                (address, number.ok_or_else(|| wrong("namespaces are numbered from 1"))?)
            }
            None => (rest, 1),
        };
        let address = address.parse().map_err(|error: String| wrong(&error))?;
        Ok(Place { address, namespace, without_iommu })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.without_iommu { UNSAFE } else { SAFE };
        write!(f, "{scheme}{}/{}", self.address, self.namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_read_and_written() {
        let place: Place = "nvme:0000:3b:00.1/7".parse().unwrap();
        assert_eq!((place.namespace, place.without_iommu), (7, false));
        assert_eq!(place.to_string(), "nvme:0000:3b:00.1/7");
        let place: Place = "nvme-unsafe:3b:00.1".parse().unwrap();
        assert_eq!(place.to_string(), "nvme-unsafe:0000:3b:00.1/1");
        for wrong in ["nvme:", "nvme:0000:3b:00.1/0", "nvme:0000:3b:00.1/x", "nvme:0000:3b:00.1/"] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
            assert!(Place::of_path(Path::new(wrong)).is_err(), "{wrong}");
        }
        assert_eq!(Place::of_path(Path::new("/dev/nvme0n1")), Ok(None));
        assert_eq!(Place::of_path(Path::new("drives/nvme")), Ok(None));
        assert_eq!(Place::of_path(Path::new("nvme:3b:00.1")).unwrap(), "nvme:3b:00.1".parse().ok());
    }
}
