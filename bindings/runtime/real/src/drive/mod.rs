//! A raw block device or a drive file, read and written through the core's io_uring.
//!
//! Invariants:
//! - A request and its buffer belong to the ring until the kernel is done with them, also when the
//!   drive is dropped; the file stays open, and its lock held, for as long. So a process that gets
//!   the lock after another knows that all of the other's I/O is over (C15).
//! - A completion without error means that all of the request was done: short transfers are
//!   continued here.
//! - After a flush failed, every later one fails: the kernel reports a lost write only once, and a
//!   flush that succeeds after it would call durable what is not (C10).
//!
//! A crash leaves on the drive any part of the writes that were not flushed, in any order.

pub mod memory;
mod open;
mod port;
#[cfg(test)]
mod tests;

use crate::reactor::Reactor;
use crate::uring::{Io, IoKind, IoOwner, Ring, RingFile};
use cleave_runtime::buffer::{Buffer, BufferPool, PAGE};
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use open::{Opened, Place};
use std::cell::{Cell, RefCell};
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// A request that the kernel sent back is tried again this often.
const RETRIES_MAX: u8 = 16;

/// How to open a drive.
#[derive(Clone, Debug)]
pub struct DriveOptions {
    /// Hold the drive alone among processes (and mounts) of this machine.
    pub lock: bool,
    /// With `lock`: alone among those that use this port, beside one at each other port; mounts apart.
    pub port: Option<u8>,
    /// Wait this long for another process to let go of it: the predecessor's last I/O.
    pub lock_wait: Duration,
}

impl Default for DriveOptions {
    fn default() -> DriveOptions {
        DriveOptions { lock: true, port: None, lock_wait: Duration::from_secs(10) }
    }
}

/// See the module's page.
pub struct FileDrive {
    ring: Rc<Ring>,
    file: Rc<RingFile>,
    place: Place,
    direct: bool,
    pools: Rc<[BufferPool]>,
    /// Bytes of all discards.
    given_back: Cell<u64>,
    state: Rc<State>,
}

/// What outlives the drive while requests are in flight.
struct State {
    finished: RefCell<Vec<DriveCompletion>>,
    flush_failed: RefCell<Option<DriveError>>,
    in_flight: Cell<usize>,
}

impl FileDrive {
    /// Opens a block device or a regular file, which must exist at its full size; for a memfd,
    /// `/proc/self/fd/N`. O_DIRECT is used where the file system takes it. Blocks, for the lock up
    /// to [`DriveOptions::lock_wait`]: to be called while the core starts.
    ///
    /// # Errors
    /// The path cannot be opened, is no drive, or is held by another process.
    pub fn open(
        reactor: &Reactor,
        path: &Path,
        options: &DriveOptions,
    ) -> crate::error::Result<FileDrive> {
        let Opened { fd, place, direct } = open::open(path, options)?;
        Ok(FileDrive {
            ring: Rc::clone(reactor.ring()),
            file: reactor.ring().adopt(fd),
            place,
            direct,
            pools: reactor.drive_pools(),
            given_back: Cell::new(0),
            state: Rc::new(State {
                finished: RefCell::default(),
                flush_failed: RefCell::default(),
                in_flight: Cell::new(0),
            }),
        })
    }

    /// Whether I/O goes past the page cache.
    pub fn direct(&self) -> bool {
        self.direct
    }

    /// Requests submitted and not yet completed.
    pub fn in_flight(&self) -> usize {
        self.state.in_flight.get()
    }

    /// What the kernel shall do; `None` for nothing; or why the request is refused.
    fn plan(&self, request: &DriveRequest) -> Result<Option<IoKind>, DriveError> {
        let length = request.buffer.as_ref().map(|buffer| buffer.len() as u64);
        match request.operation {
            DriveOperation::Read { offset } => {
                let length = length.expect("a read has a buffer");
                self.check_range(offset, length)?;
                Ok((length > 0).then_some(IoKind::Read { offset }))
            }
            DriveOperation::Write { offset } => {
                let length = length.expect("a write has a buffer");
                self.check_range(offset, length)?;
                Ok((length > 0).then_some(IoKind::Write { offset }))
            }
            DriveOperation::Flush => match &*self.state.flush_failed.borrow() {
                Some(error) => Err(error.clone()),
                None => Ok(Some(IoKind::Sync)),
            },
            DriveOperation::Discard { offset, length } => {
                self.check_range(offset, length)?;
                self.given_back.set(self.given_back.get() + length);
                let kind = match self.place.is_device() {
                    true => IoKind::Discard { offset, length },
                    false => IoKind::Punch { offset, length },
                };
                Ok((length > 0).then_some(kind))
            }
        }
    }

    /// Offsets can come from what was read from a disk, so they are not trusted.
    fn check_range(&self, offset: u64, length: u64) -> Result<(), DriveError> {
        let page = PAGE as u64;
        let end = offset.checked_add(length);
        if !offset.is_multiple_of(page) || !length.is_multiple_of(page) {
            let reason = format!("{length} bytes at offset {offset} are not whole pages");
            return Err(DriveError::Io(reason));
        }
        if end.is_none_or(|end| end > self.place.capacity()) {
            let capacity = self.place.capacity();
            let reason = format!("{length} bytes at offset {offset} exceed the drive's {capacity}");
            return Err(DriveError::Io(reason));
        }
        Ok(())
    }
}

impl Drive for FileDrive {
    fn capacity(&self) -> u64 {
        self.place.capacity()
    }

    fn submit(&self, request: DriveRequest) {
        self.state.in_flight.set(self.state.in_flight.get() + 1);
        match self.plan(&request) {
            Ok(Some(kind)) => self.ring.start(Io {
                file: Rc::clone(&self.file),
                kind,
                buffer: request.buffer,
                done: 0,
                retries: 0,
                token: request.token,
                owner: Rc::clone(&self.state) as Rc<dyn IoOwner>,
            }),
            refused_or_empty => {
                let result = refused_or_empty.map(|_| ());
                let DriveRequest { token, buffer, .. } = request;
                self.state.finish(DriveCompletion { token, result, buffer });
                self.ring.set_fresh();
            }
        }
    }

    fn poll(&self, completions: &mut Vec<DriveCompletion>) {
        completions.append(&mut self.state.finished.borrow_mut());
    }

    fn probe(&self) -> Result<(), DriveError> {
        self.place.probe(self.file.fd(), self.given_back.get())
    }

    fn buffer(&self, length: usize) -> Buffer {
        let length = length.next_multiple_of(PAGE);
        match self.pools.iter().find(|pool| pool.capacity() >= length) {
            Some(pool) => pool.take(length),
            None => Buffer::new(length),
        }
    }
}

impl State {
    fn finish(&self, completion: DriveCompletion) {
        self.in_flight.set(self.in_flight.get() - 1);
        self.finished.borrow_mut().push(completion);
    }
}

/// What to do with a request that the kernel returned.
enum Next {
    Again,
    Done(Result<(), DriveError>),
}

impl IoOwner for State {
    fn complete(&self, mut io: Io, result: i32, ring: &Ring) {
        match next(&mut io, result) {
            Next::Again => ring.start(io),
            Next::Done(result) => {
                if let (IoKind::Sync, Err(error)) = (io.kind, &result) {
                    self.flush_failed.borrow_mut().get_or_insert_with(|| error.clone());
                }
                self.finish(DriveCompletion { token: io.token, result, buffer: io.buffer });
            }
        }
    }
}

fn next(io: &mut Io, result: i32) -> Next {
    match (io.kind, result) {
        // An older kernel, or a device that only writes zeros: the other way may work.
        (IoKind::Discard { offset, length }, error)
            if matches!(-error, libc::EOPNOTSUPP | libc::EINVAL) =>
        {
            io.kind = IoKind::Punch { offset, length };
            Next::Again
        }
        (_, error) if error < 0 => {
            if matches!(-error, libc::EAGAIN | libc::EINTR) && io.retries < RETRIES_MAX {
                io.retries += 1;
                return Next::Again;
            }
            Next::Done(failure(io, -error))
        }
        (IoKind::Sync | IoKind::Punch { .. } | IoKind::Discard { .. }, _) => Next::Done(Ok(())),
        (IoKind::Read { .. } | IoKind::Write { .. }, count) => {
            let length = io.buffer.as_ref().map_or(0, |buffer| buffer.len());
            let count = count.cast_unsigned() as usize;
            if io.done + count >= length {
                return Next::Done(Ok(()));
            }
            if count == 0 {
                return Next::Done(Err(nothing_done(io)));
            }
            // What is left must be aligned for O_DIRECT: do a half-done page again. Without a
            // whole page there is no progress, and such returns are counted.
            let pages = count / PAGE * PAGE;
            if pages == 0 {
                io.retries += 1;
                if io.retries > RETRIES_MAX {
                    return Next::Done(Err(nothing_done(io)));
                }
            }
            io.done += pages;
            Next::Again
        }
    }
}

fn nothing_done(io: &Io) -> DriveError {
    match io.kind {
        // Ranges were checked against the size at open, so the end has moved.
        IoKind::Read { .. } => DriveError::Lost(format!("it ends before {}", describe(io))),
        _ => DriveError::Io(format!("{}: only {} bytes were done", describe(io), io.done)),
    }
}

fn failure(io: &Io, errno: i32) -> Result<(), DriveError> {
    let error = io::Error::from_raw_os_error(errno);
    match (errno, io.kind) {
        // Discards are hints to a device that knows them.
        (libc::EOPNOTSUPP, IoKind::Punch { .. }) => Ok(()),
        (libc::ENOSPC | libc::EDQUOT, _) => Err(DriveError::NoSpace),
        (libc::ENXIO | libc::ENODEV | libc::ENOMEDIUM, _) => {
            Err(DriveError::Lost(format!("{}: {error}", describe(io))))
        }
        _ => Err(DriveError::Io(format!("{}: {error}", describe(io)))),
    }
}

fn describe(io: &Io) -> String {
    let length = io.buffer.as_ref().map_or(0, |buffer| buffer.len());
    match io.kind {
        IoKind::Read { offset } => format!("read of {length} bytes at offset {offset}"),
        IoKind::Write { offset } => format!("write of {length} bytes at offset {offset}"),
        IoKind::Sync => "flush".to_owned(),
        IoKind::Punch { offset, length } | IoKind::Discard { offset, length } => {
            format!("discard of {length} bytes at offset {offset}")
        }
    }
}
