//! The vault's file: there before it is needed, at its full size, its space reserved.
//!
//! The vault is written when the process is told to stop, perhaps because the power goes: that is no
//! time to find the disk full. So the space is taken when the controller starts, where the file
//! system can; on one in memory it is not, because there it would take the memory twice.

use crate::error::ControllerError;
use rustix::fs::{FallocateFlags, fallocate, fstatfs, ftruncate};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// `f_type` of tmpfs (statfs(2)).
const TMPFS: u64 = 0x0102_1994;

/// Makes the file if there is none, and as large as it must be. A larger one stays as it is.
pub fn prepare(path: &Path, capacity: u64) -> Result<(), ControllerError> {
    let failed = |what| {
        move |error: std::io::Error| ControllerError::File { what, path: path.to_owned(), error }
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path)
        .map_err(failed("open the vault"))?;
    let length = file.metadata().map_err(failed("look at the vault"))?.len();
    reserve(&file, capacity.max(length))
        .map_err(|errno| failed("reserve space for the vault")(errno.into()))?;
    file.sync_all().map_err(failed("write the vault"))?;
    // Its name must be as durable as its content.
    let folder = path.parent().unwrap_or(Path::new("/"));
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed("make durable"))
}

fn reserve(file: &File, capacity: u64) -> Result<(), Errno> {
    let in_memory = fstatfs(file)?.f_type as u64 == TMPFS;
    let reserved = if in_memory {
        Err(Errno::OPNOTSUPP)
    } else {
        fallocate(file, FallocateFlags::empty(), 0, capacity)
    };
    match reserved {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => ftruncate(file, capacity),
        reserved => reserved,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn it_is_made_grown_and_never_shrunk_or_cleared() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault");
        prepare(&path, 1 << 20).unwrap();
        let found = std::fs::metadata(&path).unwrap();
        assert_eq!((found.len(), found.mode() & 0o777), (1 << 20, 0o600));
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(b"image", 5000).unwrap();
        prepare(&path, 2 << 20).unwrap();
        prepare(&path, 1 << 20).unwrap();
        let content = std::fs::read(&path).unwrap();
        assert_eq!((content.len(), &content[5000..5005]), (2 << 20, &b"image"[..]));
    }

    #[test]
    fn a_folder_that_is_not_there_is_named() {
        let error = prepare(Path::new("/nonexistent/vault"), 4096).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/vault"), "{error}");
    }
}
