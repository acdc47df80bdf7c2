//! A thread that accepts what connects to a socket: the front of the store's server and of every control server.
//!
//! It ends at once when it is told to, and waits without spinning when the process is out of files. A crash leaves the
//! socket's file behind, which the next server replaces.

use crate::listener::{ListenError, listen};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// How long nothing is accepted after a failure, most likely for lack of files.
const PAUSE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A socket that is served. Dropping it ends the thread and removes the socket's file; connections that
/// were given away live on.
pub struct Acceptor {
    path: PathBuf,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

struct Shared {
    stopping: AtomicBool,
    stop: OwnedFd,
}

impl Acceptor {
    /// Gives what connects to `path` to `begin`, on a thread called `name`, which logs what `begin` refuses.
    pub fn start(
        path: &Path,
        name: &str,
        begin: impl FnMut(UnixStream) -> io::Result<()> + Send + 'static,
    ) -> Result<Acceptor, ListenError> {
        let listener = listen(path)?;
        let failed = |error: io::Error| ListenError::Io { path: path.to_owned(), error };
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| failed(error.into()))?;
        let shared = Arc::new(Shared { stopping: AtomicBool::new(false), stop });
        let (accepting, at) = (Arc::clone(&shared), path.to_owned());
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || accept(&accepting, &listener, &at, begin))
            .map_err(failed)?;
        Ok(Acceptor { path: path.to_owned(), shared, thread: Some(thread) })
    }

    /// Accepts no more: when this returns, no connection begins any more.
    pub fn end(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        if let Err(error) = rustix::io::write(&self.shared.stop, &1_u64.to_ne_bytes()) {
            unreachable!("an eventfd at 0 takes a 1: {error}");
        }
        // A panic there has been reported.
        let _ = thread.join();
    }
}

impl Drop for Acceptor {
    fn drop(&mut self) {
        self.end();
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("cannot remove the socket {}: {error}", self.path.display());
        }
    }
}

fn accept(
    shared: &Shared,
    listener: &UnixListener,
    path: &Path,
    mut begin: impl FnMut(UnixStream) -> io::Result<()>,
) {
    loop {
        let mut ready =
            [PollFd::new(listener, PollFlags::IN), PollFd::new(&shared.stop, PollFlags::IN)];
        match poll(&mut ready, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => unreachable!("polling two open files: {error}"),
        }
        if shared.stopping.load(Ordering::SeqCst) {
            return;
        }
        match listener.accept() {
            Ok((stream, _)) => {
                if let Err(error) = begin(stream) {
                    tracing::warn!("cannot serve a connection to {}: {error}", path.display());
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!("cannot accept a connection to {}: {error}", path.display());
                // Better times may come, or the stop.
                let mut stop = [PollFd::new(&shared.stop, PollFlags::IN)];
                let _ = poll(&mut stop, Some(&PAUSE));
            }
        }
    }
}
