//! Files that the kernel locks for a process until it is dead (C25).
//!
//! Invariant: while a [`KernelLock`] exists, no other process holds the file at that path. It ends
//! with the process's last reference to it, which the kernel gives up only after the process runs
//! no more: so whoever gets the lock knows that the one before it does nothing any more. (I/O that it had in
//! flight is the drives' concern, which are locked themselves.)
//!
//! Lock files stay behind; they hold the number of the process that locked them last, for messages
//! only. Nobody removes one that is held; should a person do so, the new holder and the old one
//! hold different files, so the path is looked at again after locking.

use rustix::fs::{FlockOperation, Mode, OFlags, fstat, stat};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How often a held lock is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(20);
/// Longest process number, in digits.
const HOLDER_MAX: usize = 20;

/// Why there is no lock.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody else's, still.
    #[error(
        "{path} is held by process {holder}, after {waited:?} still; end that process, or use \
         another directory"
    )]
    Held {
        /// The file.
        path: PathBuf,
        /// Who wrote its number there last.
        holder: String,
        /// How long was waited.
        waited: Duration,
    },
    /// The system refused.
    #[error("cannot lock {path}: {error}")]
    System {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A locked file; unlocked when dropped, or when the process is dead.
#[derive(Debug)]
pub struct KernelLock {
    _file: OwnedFd,
}

impl KernelLock {
    /// Locks the file, creating it; `None` while another process, or another lock of this one,
    /// holds it.
    pub fn try_take(path: &Path) -> Result<Option<KernelLock>, LockError> {
        let refused =
            |error: Errno| LockError::System { path: path.to_owned(), error: error.into() };
        loop {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
            let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR).map_err(refused)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(Errno::INTR) => continue,
                Err(error) => return Err(refused(error)),
            }
            let held = fstat(&file).map_err(refused)?;
            match stat(path) {
                Ok(named) if (named.st_dev, named.st_ino) == (held.st_dev, held.st_ino) => {}
                // The name leads to another file by now.
                Ok(_) | Err(Errno::NOENT) => continue,
                Err(error) => return Err(refused(error)),
            }
            write_holder(&file).map_err(refused)?;
            return Ok(Some(KernelLock { _file: file }));
        }
    }

    /// As [`try_take`](KernelLock::try_take), waiting for at most `wait`: blocks the thread.
    pub fn take(path: &Path, wait: Duration) -> Result<KernelLock, LockError> {
        let begin = Instant::now();
        loop {
            if let Some(lock) = KernelLock::try_take(path)? {
                return Ok(lock);
            }
            let waited = begin.elapsed();
            if waited >= wait {
                return Err(LockError::Held {
                    path: path.to_owned(),
                    holder: holder(path),
                    waited,
                });
            }
            std::thread::sleep(TRY_AGAIN.min(wait - waited));
        }
    }
}

fn write_holder(file: &OwnedFd) -> rustix::io::Result<()> {
    rustix::fs::ftruncate(file, 0)?;
    let text = format!("{}\n", std::process::id());
    rustix::io::pwrite(file, text.as_bytes(), 0).map(|_| ())
}

/// Who says to hold the file.
pub fn holder(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap_or_default();
    let number = text.trim();
    let is_number = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
    if is_number && number.len() <= HOLDER_MAX { number.to_owned() } else { "unknown".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_at_a_time_holds_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vdisk-1.lock");
        let first = KernelLock::try_take(&path).unwrap().unwrap();
        assert!(KernelLock::try_take(&path).unwrap().is_none());
        let refused = KernelLock::take(&path, Duration::ZERO).unwrap_err();
        let LockError::Held { holder, .. } = &refused else { panic!("{refused}") };
        assert_eq!(*holder, std::process::id().to_string());
        drop(first);
        drop(KernelLock::take(&path, Duration::ZERO).unwrap());
        assert!(path.exists(), "the file stays");
    }

    #[test]
    fn it_is_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = KernelLock::try_take(&path).unwrap().unwrap();
        let waiting = {
            let path = path.clone();
            std::thread::spawn(move || KernelLock::take(&path, Duration::from_secs(60)))
        };
        drop(first);
        waiting.join().unwrap().unwrap();
    }

    #[test]
    fn the_file_at_the_path_is_the_one_that_is_held() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let first = KernelLock::try_take(&path).unwrap().unwrap();
        std::fs::remove_file(&path).unwrap();
        let second = KernelLock::try_take(&path).unwrap().unwrap();
        drop(first);
        assert!(KernelLock::try_take(&path).unwrap().is_none());
        drop(second);
    }

    #[test]
    fn nonsense_in_the_file_is_not_quoted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        assert_eq!(holder(&path), "unknown");
        std::fs::write(&path, "12; rm -rf /\n").unwrap();
        assert_eq!(holder(&path), "unknown");
        let missing = folder.path().join("none").join("lock");
        assert!(matches!(KernelLock::try_take(&missing), Err(LockError::System { .. })));
    }
}
