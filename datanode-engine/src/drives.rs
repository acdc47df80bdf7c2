//! The pool's drives, opened and recognised before the controller runs.
//!
//! A drive whose superblock says that it is another one is an error, because using it would
//! destroy something. A drive that is missing, has shrunk or cannot be read is lost, and the pool
//! goes on without it. One damaged copy of the superblock is written anew from the other, as the
//! next generation (C17): a crash while it is written leaves the intact copy.

mod medium;

use crate::error::{DriveFault, DriveProblem};
use cleave_control::config::DriveConfig;
use cleave_datanode_core::drives::OpenDrive;
use cleave_format::FormatError;
use cleave_format::ids::{ClusterId, DatanodeId, DriveId};
use cleave_format::superblock::{COPIES, DriveIdentity, SUPERBLOCK, Superblock, choose};
use cleave_nvme::owner::NvmeDrives;
use cleave_nvme::place::Place;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::drives::Drive;
use cleave_runtime_real::drive::{DriveOptions, FileDrive};
use cleave_runtime_real::error::Error;
use cleave_runtime_real::reactor::Reactor;
use medium::{FileMedium, Medium, NvmeMedium};
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Whose the drives are.
#[derive(Clone, Copy, Debug)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
    /// The controller, which has a port of its own to each drive.
    pub controller: u8,
}

/// A drive of the configuration.
pub struct ConfiguredDrive {
    /// Its name in the pool.
    pub drive: DriveId,
    /// Its identity, as configured.
    pub uuid: String,
    /// Where it is.
    pub path: PathBuf,
    /// `Err`: why it is lost.
    pub open: Result<OpenDrive, String>,
}

/// How looking at a drive ended, other than well.
enum Trouble {
    Lost(String),
    Fatal(DriveProblem),
}

impl From<DriveProblem> for Trouble {
    fn from(problem: DriveProblem) -> Trouble {
        Trouble::Fatal(problem)
    }
}

/// Opens all drives of the configuration, alone among processes of this controller: waits for a predecessor's last
/// I/O (C15). The other controller may have them open at the same time; who serves, writes. NVMe controllers that are driven from here go to `nvme`. Blocks.
pub fn open_all(
    reactor: &Reactor,
    nvme: &NvmeDrives,
    owner: Owner,
    drives: &[DriveConfig],
) -> Result<Vec<ConfiguredDrive>, DriveFault> {
    let mut opened = Vec::with_capacity(drives.len());
    for DriveConfig { id, uuid, path } in drives {
        let open = match open(reactor, nvme, owner, DriveId(*id), uuid, path) {
            Ok(open) => Ok(open),
            Err(Trouble::Lost(reason)) => {
                tracing::warn!(drive = id, path = %path.display(), "drive is lost: {reason}");
                Err(reason)
            }
            Err(Trouble::Fatal(problem)) => {
                return Err(DriveFault { drive: *id, path: path.clone(), problem });
            }
        };
        let (drive, uuid, path) = (DriveId(*id), uuid.clone(), path.clone());
        opened.push(ConfiguredDrive { drive, uuid, path, open });
    }
    Ok(opened)
}

fn open(
    reactor: &Reactor,
    nvme: &NvmeDrives,
    owner: Owner,
    drive: DriveId,
    uuid: &str,
    path: &Path,
) -> Result<OpenDrive, Trouble> {
    let place = Place::of_path(path).map_err(DriveProblem::Place)?;
    let (opened, superblock): (Rc<dyn Drive>, _) = match place {
        Some(_) if owner.controller != 0 => {
            let reason = "it is driven from userspace, by controller 0".to_owned();
            return Err(Trouble::Lost(reason));
        }
        Some(place) => {
            let opened = medium::open(reactor, nvme, place)?;
            let medium = NvmeMedium { reactor, drive: &opened };
            let superblock = superblock(&medium, path, owner, drive, uuid)?;
            (opened, superblock)
        }
        None => {
            look(path)?;
            let options = DriveOptions { port: Some(owner.controller), ..DriveOptions::default() };
            let opened = FileDrive::open(reactor, path, &options);
            let opened = opened.map_err(refused)?;
            // Held alone from here on, so that what is read now stays.
            let superblock = superblock(&FileMedium::open(path)?, path, owner, drive, uuid)?;
            (Rc::new(opened), superblock)
        }
    };
    if superblock.drive_size > opened.capacity() {
        let (before, now) = (superblock.drive_size, opened.capacity());
        return Err(Trouble::Lost(format!("it shrank from {before} to {now} bytes")));
    }
    Ok(OpenDrive { drive: opened, superblock })
}

/// Whether there is anything to open.
fn look(path: &Path) -> Result<(), Trouble> {
    match std::fs::metadata(path) {
        Ok(found) if found.is_file() && found.len() < (COPIES * SUPERBLOCK) as u64 => {
            Err(Trouble::Lost(format!("it shrank to {} bytes", found.len())))
        }
        // Whatever else is wrong shows when it is opened.
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Trouble::Lost("there is no such file".to_owned()))
        }
        Err(error) => Err(Trouble::Lost(error.to_string())),
    }
}

fn refused(error: Error) -> Trouble {
    match error {
        Error::DriveOpen { source, .. } if is_gone(&source) => Trouble::Lost(source.to_string()),
        Error::DriveHeld { waited, .. } => DriveProblem::Held(waited.as_secs()).into(),
        error => DriveProblem::Open(error).into(),
    }
}

/// Whether the system says that there is no working device any more: one on a file system that turned read-only by an
/// error is none either.
fn is_gone(error: &io::Error) -> bool {
    use rustix::io::Errno;
    let gone = [Errno::NOENT, Errno::NXIO, Errno::NODEV, Errno::IO, Errno::NOMEDIUM, Errno::ROFS];
    gone.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

/// Reads, checks and, where one copy is damaged, repairs the superblock.
fn superblock(
    medium: &dyn Medium,
    path: &Path,
    owner: Owner,
    drive: DriveId,
    uuid: &str,
) -> Result<Superblock, Trouble> {
    let mut copies = [[0; SUPERBLOCK]; COPIES];
    for (index, copy) in copies.iter_mut().enumerate() {
        let read = medium.read((index * SUPERBLOCK) as u64, copy);
        read.map_err(|error| Trouble::Lost(format!("its superblock: {error}")))?;
    }
    let (newest, at) = choose(&copies[0], &copies[1]).map_err(|error| match error {
        FormatError::Magic(_) => DriveProblem::NotOurs,
        FormatError::Version(_) => DriveProblem::Newer,
        FormatError::Identity(_) if copies.iter().all(|copy| Superblock::decode(copy).is_ok()) => {
            DriveProblem::Mixed
        }
        error => DriveProblem::Superblocks(error),
    })?;
    check(&newest.identity, owner, drive, uuid)?;
    if is_intact(&copies[1 - at], 1 - at) {
        return Ok(newest);
    }
    repair(medium, newest, path)
}

fn is_intact(copy: &[u8], index: usize) -> bool {
    let right = |found: Superblock| found.generation % COPIES as u64 == index as u64;
    Superblock::decode(copy).is_ok_and(right)
}

/// Writes the next generation, which lives where the damaged copy is. A drive that cannot be written is lost by
/// itself: the pool does without it, and its controller need not end. Where only space is missing behind it the
/// operator can mend that, and a lost drive stays lost (C16).
fn repair(medium: &dyn Medium, intact: Superblock, path: &Path) -> Result<Superblock, Trouble> {
    let next = Superblock { generation: intact.generation + 1, ..intact };
    let written = medium.write(next.copy_offset(), &next.encode());
    written.map_err(|error| match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            Trouble::Fatal(DriveProblem::Repair(error))
        }
        _ => Trouble::Lost(format!(
            "one copy of its superblock is damaged and could not be repaired: {error}"
        )),
    })?;
    reached(Point::SuperblockWritten);
    tracing::warn!(path = %path.display(), "one copy of the superblock was damaged; it is repaired");
    Ok(next)
}

fn check(
    found: &DriveIdentity,
    owner: Owner,
    drive: DriveId,
    uuid: &str,
) -> Result<(), DriveProblem> {
    let hex: String = found.uuid.iter().map(|byte| format!("{byte:02x}")).collect();
    let foreign = |found: String, wanted: String| Err(DriveProblem::Foreign { found, wanted });
    if found.cluster != owner.cluster {
        return foreign(format!("cluster {}", found.cluster), format!("cluster {}", owner.cluster));
    }
    if found.datanode != owner.datanode {
        let name = |datanode: DatanodeId| format!("data node {datanode}");
        return foreign(name(found.datanode), name(owner.datanode));
    }
    if found.drive != drive {
        return foreign(format!("drive {}", found.drive), format!("drive {drive}"));
    }
    if !hex.eq_ignore_ascii_case(uuid) {
        return foreign(format!("drive {hex}"), format!("drive {}", uuid.to_lowercase()));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
