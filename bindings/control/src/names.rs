//! Names that people give, and paths that must fit into socket addresses.

use crate::size::{SizeError, parse_vdisk_size};
use std::path::{Path, PathBuf};

/// Longest name of a vdisk, host or controller.
pub const NAME_BYTES_MAX: usize = 64;
/// Longest path of a Unix socket on Linux.
pub const SOCKET_PATH_BYTES_MAX: usize = 107;

/// What is wrong with a name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Not a name.
    #[error(
        "{0:?} is not a name: use 1 to 64 letters, digits, '.', '_' and '-', and begin with none \
         of '.' and '-'"
    )]
    Malformed(String),
    /// Not `NAME:SIZE`.
    #[error("{0:?} is not NAME:SIZE, as in data:16G")]
    NotNameSize(String),
    /// Its size.
    #[error("vdisk {name}: {error}")]
    Size {
        /// The vdisk.
        name: String,
        /// What is wrong.
        error: SizeError,
    },
    /// The path of a socket does not fit.
    #[error(
        "the socket path {} has {} bytes, more than {SOCKET_PATH_BYTES_MAX}; use a shorter \
         directory", .0.display(), .0.as_os_str().len()
    )]
    SocketPathTooLong(PathBuf),
}

/// Whether `name` may name a vdisk, a host or a controller. Names are file names, too.
pub fn check_name(name: &str) -> Result<(), NameError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    let begins = name.bytes().next().is_some_and(|first| !b".-".contains(&first));
    if begins && name.len() <= NAME_BYTES_MAX && name.bytes().all(allowed) {
        return Ok(());
    }
    Err(NameError::Malformed(name.to_owned()))
}

/// `NAME:SIZE`, as in `data:16G`.
pub fn parse_vdisk(text: &str) -> Result<(String, u64), NameError> {
    let (name, size) =
        text.split_once(':').ok_or_else(|| NameError::NotNameSize(text.to_owned()))?;
    check_name(name)?;
    match parse_vdisk_size(size) {
        Ok(bytes) => Ok((name.to_owned(), bytes)),
        Err(error) => Err(NameError::Size { name: name.to_owned(), error }),
    }
}

/// Where the vdisk `name` is served: `DIRECTORY/NAME.sock`, which must fit into a socket address.
pub fn vhost_socket(directory: &Path, name: &str) -> Result<PathBuf, NameError> {
    check_name(name)?;
    let path = directory.join(format!("{name}.sock"));
    check_socket_path(&path)?;
    Ok(path)
}

/// Whether a socket can have this path.
pub fn check_socket_path(path: &Path) -> Result<(), NameError> {
    if path.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        return Err(NameError::SocketPathTooLong(path.to_owned()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_file_names_without_surprises() {
        let longest = "x".repeat(NAME_BYTES_MAX);
        for name in ["a", "A.b_c-9", "_", "0", &longest] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        let long = "x".repeat(NAME_BYTES_MAX + 1);
        for name in ["", ".", "..", ".a", "-a", "a/b", "a b", "ä", "a\0", "a:b", "a\n", &long] {
            assert!(check_name(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn a_vdisk_is_a_name_and_a_size() {
        assert_eq!(parse_vdisk("data:16G"), Ok(("data".to_owned(), 16 << 30)));
        for text in ["data", "data:", ":1G", "data:1G:2G", "a/b:1G", "data:0", "data:1"] {
            let error = parse_vdisk(text).unwrap_err().to_string();
            assert!(!error.contains('\n'), "{error}");
        }
    }

    #[test]
    fn socket_paths_fit_or_are_refused() {
        let directory = PathBuf::from(format!("/{}", "d".repeat(98)));
        assert!(vhost_socket(&directory, "ab").is_ok());
        let error = vhost_socket(&directory, "abc").unwrap_err();
        assert!(error.to_string().contains("108 bytes"), "{error}");
    }
}
