//! Opening a drive, holding it alone, and noticing that it is gone.
//!
//! Open files of unlinked or replaced names go on taking writes, and a truncated one grows again:
//! so the drive remembers what it opened and looks at the name, the link count and the size. A file
//! that was truncated and grown to its size again between two looks has lost its space: more than
//! half of it gone, beyond what was given back here, is taken for that.

use super::{DriveOptions, port};
use crate::error::{Error, Result};
use cleave_runtime::buffer::{Buffer, PAGE};
use cleave_runtime::drives::DriveError;
use rustix::fs::{FileType, FlockOperation, Mode, OFlags, Stat};
use rustix::io::Errno;
use std::cell::Cell;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a drive that another process holds is tried again.
const LOCK_INTERVAL: Duration = Duration::from_millis(10);

/// A drive that was opened.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) place: Place,
    pub(super) direct: bool,
}

/// What was opened, and where.
#[derive(Debug)]
pub(super) struct Place {
    path: PathBuf,
    /// Whether the name must keep leading to the file. It need not for memfds, which have none.
    named: bool,
    device: bool,
    identity: (u64, u64),
    size: u64,
    seen: Cell<Seen>,
}

/// What the last look at a file found.
#[derive(Clone, Copy, Debug)]
struct Seen {
    /// Bytes of space that the file takes.
    space: u64,
    /// Bytes that had been given back by then.
    given_back: u64,
    /// And by the look before: what was on its way then may have been done since.
    given_back_before: u64,
}

pub(super) fn open(path: &Path, options: &DriveOptions) -> Result<Opened> {
    let begin = Instant::now();
    let kind = kind_of(path)?;
    // Two ways to be alone: a block device is opened exclusively, which also keeps mounts and
    // other names of the same device away; a file is locked. Both last until the kernel has
    // finished with the file, in-flight I/O of a killed process included.
    // With ports a device is only tried exclusively, and a byte of it or of the file is locked.
    let device = options.lock && kind == FileType::BlockDevice;
    let exclusive = if device && options.port.is_none() { OFlags::EXCL } else { OFlags::empty() };
    loop {
        let tried = match device && options.port.is_some() {
            true => open_once(path, OFlags::EXCL).map(drop),
            false => Ok(()),
        };
        let attempt = tried.and_then(|()| open_once(path, exclusive)).and_then(|(fd, direct)| {
            match options.port {
                _ if !options.lock => {}
                None => rustix::fs::flock(&fd, FlockOperation::NonBlockingLockExclusive)?,
                Some(port) => port::lock(&fd, port)?,
            }
            Ok((fd, direct))
        });
        match attempt {
            Ok((fd, direct)) => {
                let place = Place::new(path, &fd)?;
                return Ok(Opened { fd, place, direct });
            }
            Err(Errno::WOULDBLOCK | Errno::BUSY) if options.lock => {
                let waited = begin.elapsed();
                if waited >= options.lock_wait {
                    return Err(Error::DriveHeld { path: path.to_owned(), waited });
                }
                std::thread::sleep(LOCK_INTERVAL.min(options.lock_wait - waited));
            }
            Err(Errno::INTR) => {}
            Err(errno) => return Err(cannot_open(path, errno)),
        }
    }
}

fn kind_of(path: &Path) -> Result<FileType> {
    let stat = rustix::fs::stat(path).map_err(|errno| cannot_open(path, errno))?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if matches!(kind, FileType::BlockDevice | FileType::RegularFile) {
        return Ok(kind);
    }
    let reason = "is neither a block device nor a regular file".to_owned();
    Err(Error::DriveUnusable { path: path.to_owned(), reason })
}

fn cannot_open(path: &Path, errno: Errno) -> Error {
    Error::DriveOpen { path: path.to_owned(), source: errno.into() }
}

/// With O_DIRECT if the file system takes it, for the open and for a first read.
fn open_once(path: &Path, extra: OFlags) -> std::result::Result<(OwnedFd, bool), Errno> {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | extra;
    match rustix::fs::open(path, flags | OFlags::DIRECT, Mode::empty()) {
        Ok(fd) => {
            let mut page = Buffer::new(PAGE);
            match rustix::io::pread(&fd, &mut *page, 0) {
                Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
                // Other errors of this read are the drive's, and come again when it is used.
                _ => return Ok((fd, true)),
            }
        }
        Err(Errno::INVAL | Errno::OPNOTSUPP) => {}
        Err(errno) => return Err(errno),
    }
    tracing::info!(path = %path.display(), "the drive refuses O_DIRECT; it goes through the page cache");
    Ok((rustix::fs::open(path, flags, Mode::empty())?, false))
}

impl Place {
    fn new(path: &Path, fd: &OwnedFd) -> Result<Place> {
        let system = |errno: Errno| cannot_open(path, errno);
        let stat = rustix::fs::fstat(fd).map_err(system)?;
        let device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        let size = size_of(fd, &stat, device).map_err(system)?;
        if size < PAGE as u64 {
            let reason = format!("has only {size} bytes; create it at its full size");
            return Err(Error::DriveUnusable { path: path.to_owned(), reason });
        }
        // A path through a descriptor of this or another process leads nowhere once that is
        // closed, and a file without links had none to lose.
        let named = stat.st_nlink > 0 && !through_descriptor(path);
        let identity = identity(&stat, device);
        let seen = Seen { space: space_of(&stat), given_back: 0, given_back_before: 0 };
        let seen = Cell::new(seen);
        Ok(Place { path: path.to_owned(), named, device, identity, size, seen })
    }

    /// Whether it is a block device.
    pub(super) fn is_device(&self) -> bool {
        self.device
    }

    /// Usable bytes: whole pages.
    pub(super) fn capacity(&self) -> u64 {
        self.size / PAGE as u64 * PAGE as u64
    }

    /// `given_back`: bytes of all discards so far.
    pub(super) fn probe(
        &self,
        fd: &OwnedFd,
        given_back: u64,
    ) -> std::result::Result<(), DriveError> {
        let lost =
            |reason: String| Err(DriveError::Lost(format!("{}: {reason}", self.path.display())));
        let stat = match rustix::fs::fstat(fd) {
            Ok(stat) => stat,
            Err(errno) => return lost(format!("cannot be looked at: {errno}")),
        };
        if self.named && stat.st_nlink == 0 {
            return lost("was unlinked".to_owned());
        }
        match size_of(fd, &stat, self.device) {
            Ok(size) if size < self.size => {
                return lost(format!("shrank from {} to {size} bytes", self.size));
            }
            Ok(_) => {}
            Err(errno) => return lost(format!("has no size any more: {errno}")),
        }
        let seen = self.seen.get();
        let space = space_of(&stat);
        let explained = given_back - seen.given_back_before;
        if !self.device && space.saturating_add(explained) < seen.space / 2 {
            return lost(format!(
                "was truncated and grown again: it takes {space} of {} bytes",
                seen.space
            ));
        }
        let given_back_before = seen.given_back;
        self.seen.set(Seen { space, given_back, given_back_before });
        if !self.named {
            return Ok(());
        }
        match rustix::fs::stat(&self.path) {
            Ok(stat) if identity(&stat, self.device) == self.identity => Ok(()),
            Ok(_) => lost("was replaced by another".to_owned()),
            Err(Errno::NOENT | Errno::NOTDIR) => lost("its name is gone".to_owned()),
            Err(errno) => lost(format!("its name cannot be looked at: {errno}")),
        }
    }
}

fn through_descriptor(path: &Path) -> bool {
    let text = path.to_string_lossy();
    text.starts_with("/dev/fd/") || (text.starts_with("/proc/") && text.contains("/fd/"))
}

/// What makes it the same drive: the device's number, or the file's.
fn identity(stat: &Stat, device: bool) -> (u64, u64) {
    if device { (stat.st_rdev, u64::MAX) } else { (stat.st_dev, stat.st_ino) }
}

/// Bytes of space that a file takes.
fn space_of(stat: &Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0).saturating_mul(512)
}

fn size_of(fd: &OwnedFd, stat: &Stat, device: bool) -> std::result::Result<u64, Errno> {
    if device {
        rustix::fs::seek(fd, rustix::fs::SeekFrom::End(0))
    } else {
        Ok(u64::try_from(stat.st_size).unwrap_or(0))
    }
}
