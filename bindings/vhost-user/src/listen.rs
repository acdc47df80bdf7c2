//! The socket file: made with its permissions before anyone can connect, replaced when stale.
//!
//! A crash leaves the file; nobody listens on it, so the next bind removes it. The caller holds
//! the vdisk's kernel lock (C25), so two engines never bind one path at a time.

use crate::Error;
use rustix::fs::{AtFlags, Gid, Mode};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// `sun_path` without its terminating zero.
const PATH_MAX: usize = 107;
/// Connections that may wait while one is served.
const BACKLOG: i32 = 4;

/// A listening socket; removes its file when it goes, if it still is its own.
#[derive(Debug)]
pub(crate) struct Listening {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl Listening {
    /// Listens at `path`.
    pub(crate) fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Listening, Error> {
        let length = path.as_os_str().len();
        if length > PATH_MAX {
            return Err(Error::PathTooLong { path: path.into(), length });
        }
        let gid = group.map(|name| group_id(name, path)).transpose()?;
        remove_stale(path)?;
        let fail = |action| {
            move |source: rustix::io::Errno| Error::System {
                action,
                path: path.into(),
                source: source.into(),
            }
        };
        let address = SocketAddrUnix::new(path).map_err(fail("use the socket path"))?;
        let socket = stream_socket().map_err(fail("make a socket for"))?;
        rustix::net::bind(&socket, &address).map_err(fail("bind the socket"))?;
        // Until `listen` a connection attempt is refused, so nobody gets in before these.
        if let Some(gid) = gid {
            rustix::fs::chownat(rustix::fs::CWD, path, None, Some(gid), AtFlags::empty())
                .map_err(fail("give its group to the socket"))?;
        }
        rustix::fs::chmod(path, Mode::from_raw_mode(mode))
            .map_err(fail("set permissions of the socket"))?;
        rustix::net::listen(&socket, BACKLOG).map_err(fail("listen on the socket"))?;
        let inode = std::fs::symlink_metadata(path)
            .map_err(|source| Error::System { action: "look at", path: path.into(), source })?
            .ino();
        Ok(Listening { listener: UnixListener::from(socket), path: path.into(), inode })
    }

    /// The next front end, if one waits.
    pub(crate) fn accept(&self) -> io::Result<Option<OwnedFd>> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        match rustix::net::accept_with(&self.listener, flags) {
            Ok(stream) => Ok(Some(stream)),
            Err(
                rustix::io::Errno::AGAIN | rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED,
            ) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl std::os::fd::AsRawFd for Listening {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.listener.as_raw_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path)
            .is_ok_and(|found| found.file_type().is_socket() && found.ino() == self.inode);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket file");
        }
    }
}

fn stream_socket() -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
}

fn remove_stale(path: &Path) -> Result<(), Error> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(Error::System { action: "look at", path: path.into(), source });
        }
        Ok(found) if !found.file_type().is_socket() => {
            return Err(Error::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    let address = SocketAddrUnix::new(path);
    let attempt = stream_socket().and_then(|probe| rustix::net::connect(&probe, &address?));
    match attempt {
        Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path).map_err(|source| {
            Error::System { action: "remove the stale socket", path: path.into(), source }
        }),
        // A full backlog (EAGAIN) is somebody's too.
        Ok(()) | Err(rustix::io::Errno::AGAIN) => Err(Error::InUse(path.into())),
        Err(error) => Err(Error::System { action: "try", path: path.into(), source: error.into() }),
    }
}

fn group_id(name: &str, path: &Path) -> Result<Gid, Error> {
    let unknown = || Error::UnknownGroup { group: name.into(), path: path.into() };
    if let Ok(number) = name.parse::<u32>() {
        return Ok(Gid::from_raw(number));
    }
    let wanted = CString::new(Path::new(name).as_os_str().as_bytes()).map_err(|_| unknown())?;
    let mut text = vec![0; 1 << 16];
    // SAFETY: `group` is plain data for which all zeros is a value (null pointers, zero id).
    let mut record: libc::group = unsafe { std::mem::zeroed() };
    let mut found = std::ptr::null_mut();
    // SAFETY: all pointers are to live memory of the given lengths for the whole call; `record`'s
    // pointers into `text` are not followed afterwards.
    let code = unsafe {
        libc::getgrnam_r(wanted.as_ptr(), &mut record, text.as_mut_ptr(), text.len(), &mut found)
    };
    if code != 0 || found.is_null() { Err(unknown()) } else { Ok(Gid::from_raw(record.gr_gid)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixStream;

    #[test]
    fn a_stale_file_is_replaced_and_a_live_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "the standard listener leaves its file");
        let first = Listening::bind(&path, 0o640, None).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(matches!(Listening::bind(&path, 0o660, None), Err(Error::InUse(_))));
        let _probe = first.accept().unwrap();
        assert!(first.accept().unwrap().is_none());
        let _client = UnixStream::connect(&path).unwrap();
        assert!(first.accept().unwrap().is_some());
        drop(first);
        assert!(!path.exists());
    }

    #[test]
    fn mistakes_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let long = folder.path().join("x".repeat(110));
        assert!(matches!(Listening::bind(&long, 0o660, None), Err(Error::PathTooLong { .. })));
        let file = folder.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert!(matches!(Listening::bind(&file, 0o660, None), Err(Error::NotASocket(_))));
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
        let socket = folder.path().join("s");
        let group = Some("no-such-group-here");
        let refused = Listening::bind(&socket, 0o660, group);
        assert!(matches!(refused, Err(Error::UnknownGroup { .. })));
        Listening::bind(&socket, 0o660, Some("root")).unwrap();
    }
}
