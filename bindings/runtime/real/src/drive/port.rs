//! The lock of a drive that several machines or processes reach: one holder a port.
//!
//! Each port is a byte far beyond any drive's end, and its lock one of the open file description (`fcntl(2)`, "Open file
//! description locks"): it lasts, as `flock(2)`'s, until the kernel has finished with the file, in-flight I/O of a
//! killed process included. A crash leaves nothing.

use rustix::io::Errno;
use std::os::fd::{AsRawFd, OwnedFd};

/// The byte of port 0.
const FIRST: i64 = 1 << 62;

/// Takes a port alone among open files of this machine; `Errno::AGAIN` while another one has it.
pub(super) fn lock(fd: &OwnedFd, port: u8) -> Result<(), Errno> {
    let place = libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: FIRST + i64::from(port),
        l_len: 1,
        // Must be 0 for these locks.
        l_pid: 0,
    };
    // SAFETY: the descriptor is open for as long as it is borrowed, and the kernel only reads the structure, which
    // lives until the call returns.
    let outcome = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const place) };
    if outcome == 0 {
        return Ok(());
    }
    match Errno::from_io_error(&std::io::Error::last_os_error()) {
        // The manual allows either for a lock that another one holds.
        Some(Errno::ACCESS | Errno::AGAIN) => Err(Errno::AGAIN),
        error => Err(error.unwrap_or(Errno::IO)),
    }
}
