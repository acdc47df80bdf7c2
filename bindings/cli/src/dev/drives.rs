//! The drives of a cluster on one machine: sparse files, memory held by this process, or NVMe namespaces
//! ([`nvme`]).
//!
//! Formatting writes superblock generation 0, flushes, then 1, as the format demands. A drive that
//! is missing at a later start is lost, not an error: the pool goes on without it. One that is
//! another cluster's, or damaged, is an error, because using it would destroy something.

pub mod nvme;

use crate::dev::directory::{Directory, sync_folder};
use crate::error::{Error, Result, file, system};
use cleave_format::FormatError;
use cleave_format::ids::{ClusterId, DatanodeId, DriveId};
use cleave_format::superblock::{COPIES, DriveIdentity, SUPERBLOCK, Superblock, choose};
use rustix::fs::{MemfdFlags, memfd_create};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A drive as controllers open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drive {
    /// Its number.
    pub number: u16,
    /// Its identity.
    pub uuid: [u8; 16],
    /// Where it is.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

/// Whose the drives are.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
}

/// Creates and formats drive files, durably.
pub fn create_files(
    directory: &Directory,
    owner: Owner,
    count: u16,
    size: u64,
) -> Result<Vec<Drive>> {
    let drives = (0..count).map(|number| {
        let path = directory.drive(number);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(file("create", &path))?;
        format(owner, number, path, &file, size)
    });
    let drives = drives.collect::<Result<Vec<Drive>>>()?;
    sync_folder(&directory.drive(0))?;
    Ok(drives)
}

/// Drives in memory. They are gone when the files that come with them are closed.
pub fn create_memory(owner: Owner, count: u16, size: u64) -> Result<(Vec<Drive>, Vec<File>)> {
    let mut files = Vec::with_capacity(usize::from(count));
    let drives = (0..count).map(|number| {
        let name = format!("drive-{number:03}");
        let fd =
            memfd_create(name, MemfdFlags::CLOEXEC).map_err(system("make memory for a drive"))?;
        let file = File::from(fd);
        // Controllers open it through this process, which outlives them.
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        let drive = format(owner, number, path, &file, size);
        files.push(file);
        drive
    });
    let drives = drives.collect::<Result<Vec<Drive>>>()?;
    Ok((drives, files))
}

fn format(owner: Owner, number: u16, path: PathBuf, file: &File, size: u64) -> Result<Drive> {
    let refused = |error: io::Error| Error::File { what: "format", path: path.clone(), error };
    let (drive, superblocks) = superblocks(owner, number, &path, size)?;
    file.set_len(size).map_err(refused)?;
    for superblock in superblocks {
        file.write_all_at(&superblock.encode(), superblock.copy_offset()).map_err(refused)?;
        file.sync_all().map_err(refused)?;
    }
    Ok(drive)
}

/// A new drive, and what is to be written there, one durably after the other.
fn superblocks(
    owner: Owner,
    number: u16,
    path: &Path,
    size: u64,
) -> Result<(Drive, Vec<Superblock>)> {
    let uuid = random()?;
    let identity = DriveIdentity {
        cluster: owner.cluster,
        datanode: owner.datanode,
        drive: DriveId(number),
        uuid,
    };
    let first = Superblock::for_size(identity, size).ok_or_else(|| {
        let reason = format!("{size} bytes are too few for a drive");
        Error::Drive { number, path: path.to_owned(), reason }
    })?;
    let generations = (0..COPIES as u64).map(|generation| Superblock { generation, ..first });
    let drive = Drive { number, uuid, path: path.to_owned(), size };
    Ok((drive, generations.collect()))
}

/// Looks at a drive file of a cluster that exists. `false`: it is missing.
pub fn check_file(owner: Owner, drive: &Drive) -> Result<bool> {
    let path = &drive.path;
    let opened = match File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(file("open", path)(error)),
    };
    let copies = read_copies(&opened, path)?;
    let length = opened.metadata().map_err(file("look at", path))?.len();
    check(owner, drive, &copies, length)?;
    Ok(true)
}

/// Whether what the drive holds, and its length, are those of this drive.
fn check(owner: Owner, drive: &Drive, copies: &[Vec<u8>; COPIES], length: u64) -> Result<()> {
    let Drive { number, path, .. } = drive;
    let wrong = |reason: String| Error::Drive { number: *number, path: path.clone(), reason };
    let superblock = match choose(&copies[0], &copies[1]) {
        Ok((superblock, _)) => superblock,
        Err(FormatError::Magic(_)) => {
            return Err(wrong(
                "it is not a Cleave drive; put the drive's own file back, or remove it".into(),
            ));
        }
        Err(FormatError::Identity(_)) => {
            return Err(wrong("its two superblocks are of different drives; remove it".into()));
        }
        Err(error @ FormatError::Version(_)) => {
            return Err(wrong(format!("{error}; use a newer version")));
        }
        Err(error) => {
            let advice = "put a good copy of the file back, or remove it: the pool does without it";
            return Err(wrong(format!("its superblock is corrupt ({error}); {advice}")));
        }
    };
    let identity = superblock.identity;
    if identity.cluster != owner.cluster {
        let other = identity.cluster;
        return Err(wrong(format!(
            "it belongs to another cluster, {other}; put the right file back, or remove it"
        )));
    }
    let expected = DriveIdentity {
        cluster: owner.cluster,
        datanode: owner.datanode,
        drive: DriveId(*number),
        uuid: drive.uuid,
    };
    if identity != expected {
        let reason = format!("it is drive {} of this cluster, in the wrong place", identity.drive);
        return Err(wrong(reason));
    }
    if length < superblock.drive_size {
        let reason =
            format!("it shrank from {} to {length} bytes; remove it", superblock.drive_size);
        return Err(wrong(reason));
    }
    Ok(())
}

fn read_copies(opened: &File, path: &Path) -> Result<[Vec<u8>; COPIES]> {
    let mut copies = [vec![0; SUPERBLOCK], vec![0; SUPERBLOCK]];
    for (index, copy) in copies.iter_mut().enumerate() {
        match opened.read_exact_at(copy, (index * SUPERBLOCK) as u64) {
            Ok(()) => {}
            // Too short for a superblock: not one.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => copy.fill(0),
            Err(error) => return Err(file("read", path)(error)),
        }
    }
    Ok(copies)
}

/// Bytes that nobody can guess.
pub fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let path = Path::new("/dev/urandom");
    File::open(path)
        .and_then(|mut source| io::Read::read_exact(&mut source, &mut bytes))
        .map_err(file("read", path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { cluster: ClusterId([7; 16]), datanode: DatanodeId(1) };
    const SIZE: u64 = 32 << 20;

    fn drives() -> (tempfile::TempDir, Vec<Drive>) {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::create(folder.path()).unwrap();
        directory.folder(&folder.path().join("drives")).unwrap();
        let drives = create_files(&directory, OWNER, 3, SIZE).unwrap();
        (folder, drives)
    }

    fn refused(owner: Owner, drive: &Drive) -> String {
        let line = check_file(owner, drive).unwrap_err().to_string();
        assert!(!line.contains('\n') && line.contains("drive 1"), "{line}");
        line
    }

    #[test]
    fn formatted_drives_are_accepted_and_missing_ones_are_lost() {
        let (_folder, drives) = drives();
        assert!(drives.iter().all(|drive| check_file(OWNER, drive).unwrap()));
        assert!(drives[0].uuid != drives[1].uuid);
        std::fs::remove_file(&drives[1].path).unwrap();
        assert!(!check_file(OWNER, &drives[1]).unwrap());
    }

    #[test]
    fn a_damaged_superblock_is_survived_once_and_named_twice() {
        let (_folder, drives) = drives();
        let drive = &drives[1];
        let opened = OpenOptions::new().write(true).open(&drive.path).unwrap();
        opened.write_all_at(&[0xff; 8], 100).unwrap();
        assert!(check_file(OWNER, drive).unwrap());
        opened.write_all_at(&[0xff; 8], SUPERBLOCK as u64 + 100).unwrap();
        assert!(refused(OWNER, drive).contains("corrupt"));
        opened.write_all_at(&[0; 2 * SUPERBLOCK], 0).unwrap();
        assert!(refused(OWNER, drive).contains("not a Cleave drive"));
        opened.set_len(0).unwrap();
        assert!(refused(OWNER, drive).contains("not a Cleave drive"));
    }

    #[test]
    fn drives_of_others_are_refused() {
        let (_folder, drives) = drives();
        let stranger = Owner { cluster: ClusterId([8; 16]), ..OWNER };
        assert!(refused(stranger, &drives[1]).contains("another cluster"));
        std::fs::copy(&drives[2].path, &drives[1].path).unwrap();
        assert!(refused(OWNER, &drives[1]).contains("drive 2 of this cluster"));
    }

    #[test]
    fn a_drive_that_shrank_is_refused() {
        let (_folder, drives) = drives();
        let opened = OpenOptions::new().write(true).open(&drives[1].path).unwrap();
        opened.set_len(SIZE / 2).unwrap();
        assert!(refused(OWNER, &drives[1]).contains("shrank"));
    }

    #[test]
    fn drives_in_memory_open_through_this_process() {
        let (drives, files) = create_memory(OWNER, 3, SIZE).unwrap();
        assert!(drives.iter().all(|drive| check_file(OWNER, drive).unwrap()));
        drop(files);
        assert!(!check_file(OWNER, &drives[0]).unwrap());
    }
}
