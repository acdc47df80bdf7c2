//! Unix sockets that only their owner may use: how the store and the engines' control are served.
//!
//! The name outlives the process that bound it; whoever finds it tells by connecting whether it is
//! still served. Two processes that start at the same moment are kept apart by what they lock
//! otherwise (the store's file, the directory), not here.

use rustix::fs::{Mode, fchmod};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The path does not fit in a socket address.
    #[error("the socket path {0} is too long (at most 107 bytes); use a shorter directory")]
    PathTooLong(PathBuf),
    /// Somebody answers there.
    #[error("the socket {0} is served by another process; stop that one first")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("{0} is in the way of a socket; move it away")]
    NotASocket(PathBuf),
    /// The system refused.
    #[error("cannot serve the socket {path}: {error}")]
    Io {
        /// Which socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// A listening, non-blocking socket at `path`, of mode 0600 from its first moment. A socket that
/// nobody answers, left behind by a crash, is replaced.
pub fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |error: io::Error| ListenError::Io { path: path.to_owned(), error };
    let address =
        SocketAddrUnix::new(path).map_err(|_| ListenError::PathTooLong(path.to_owned()))?;
    match bound(&address) {
        Ok(listener) => return Ok(listener),
        Err(rustix::io::Errno::ADDRINUSE) => {}
        Err(error) => return Err(failed(error.into())),
    }
    if !std::fs::symlink_metadata(path).map_err(failed)?.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    if UnixStream::connect(path).is_ok() {
        return Err(ListenError::InUse(path.to_owned()));
    }
    std::fs::remove_file(path).map_err(failed)?;
    bound(&address).map_err(|error| failed(error.into()))
}

fn bound(address: &SocketAddrUnix) -> rustix::io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // Linux gives the socket's file the mode of the socket.
    fchmod(&socket, Mode::RUSR | Mode::WUSR)?;
    bind(&socket, address)?;
    rustix::net::listen(&socket, 128)?;
    Ok(UnixListener::from(socket))
}
