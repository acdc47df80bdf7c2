//! Flash devices as configurations and commands name them: the path of a raw block device or of a file, `memory:SIZE`,
//! or an NVMe namespace.
//!
//! The text is the device's name on its host: it is what `cleave flash retire` takes.

use crate::size::{format_size, parse_size};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

const MEMORY: &str = "memory:";
/// Beginnings of names of NVMe namespaces, which the driver reads further.
const NVME: [&str; 2] = ["nvme:", "nvme-unsafe:"];

/// Where flash is.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FlashPlace {
    /// A raw block device, or a file that has its full size.
    Path(PathBuf),
    /// So many bytes of the engine's memory, beside its budget: for measurements, and gone with the process.
    Memory(u64),
    /// A namespace of an NVMe controller that the engine drives itself.
    Nvme(String),
}

impl FromStr for FlashPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<FlashPlace, String> {
        if let Some(size) = text.strip_prefix(MEMORY) {
            return match parse_size(size) {
                Ok(size) => Ok(FlashPlace::Memory(size)),
                Err(error) => Err(format!("flash {text}: {error}")),
            };
        }
        if NVME.iter().any(|beginning| text.starts_with(beginning)) {
            return Ok(FlashPlace::Nvme(text.to_owned()));
        }
        let path = PathBuf::from(text);
        if !path.is_absolute() {
            return Err(format!(
                "flash {text:?} is neither an absolute path nor memory:SIZE nor nvme:ADDRESS"
            ));
        }
        Ok(FlashPlace::Path(path))
    }
}

impl fmt::Display for FlashPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FlashPlace::Path(path) => path.display().fmt(f),
            FlashPlace::Memory(size) => write!(f, "{MEMORY}{}", format_size(*size)),
            FlashPlace::Nvme(text) => text.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_and_written() {
        for text in ["/dev/nvme0n1", "/var/lib/cleave/flash", "memory:512M", "nvme:0000:3b:00.0/1"]
        {
            let place: FlashPlace = text.parse().unwrap();
            assert_eq!(place.to_string(), text);
        }
        assert_eq!("memory:1024M".parse(), Ok(FlashPlace::Memory(1 << 30)));
        assert_eq!("memory:1024M".parse::<FlashPlace>().unwrap().to_string(), "memory:1G");
        for wrong in ["", "flash", "memory:", "memory:-1", "memory:0", "./flash"] {
            let error = wrong.parse::<FlashPlace>().unwrap_err();
            assert!(error.contains(wrong), "{error}");
        }
    }
}
