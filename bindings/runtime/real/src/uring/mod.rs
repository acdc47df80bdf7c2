//! The io_uring of a core: submission, completion, and the sleep.
//!
//! Invariants:
//! - Memory and files under kernel I/O belong to this ring's table of entries from submission to
//!   completion, whatever happens to whoever submitted. The table is only freed after the kernel
//!   finished with all of it (`Drop` waits), or not at all.
//! - A completion names its entry by slot and serial, so that a late one never finds another's.
//! - A fixed buffer is used only where its index, address and length are those that were
//!   registered with *this* ring; their memory is kept until the ring is gone.
//! - Requests beyond the submission queue wait in a backlog, in order.
//!
//! A crash leaves nothing behind here: the kernel completes or cancels what was submitted, and
//! only then lets go of the files and their locks.

mod setup;
mod watches;

pub(crate) use watches::WatchMode;

use cleave_runtime::buffer::{Buffer, BufferPool};
use io_uring::{IoUring, opcode, squeue, types};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::{Rc, Weak};
use std::time::Duration;
use watches::Watches;

/// Files that a ring can register; more work without registration.
const FILES_MAX: u32 = 256;

/// What the kernel is to do with a file.
#[derive(Clone, Copy, Debug)]
pub(crate) enum IoKind {
    /// Fill `buffer[done..]`.
    Read { offset: u64 },
    /// Write `buffer[done..]`.
    Write { offset: u64 },
    /// fdatasync.
    Sync,
    /// Punch a hole.
    Punch { offset: u64, length: u64 },
    /// Have a block device forget a range.
    Discard { offset: u64, length: u64 },
}

/// `BLOCK_URING_CMD_DISCARD` of linux/blkdev.h (since Linux 6.12): BLKDISCARD without blocking.
/// Start in `addr`, length in `addr3`, which is the first half of the command's own bytes.
const BLOCK_DISCARD: u32 = 0x12 << 8;

/// A request on a file; it and its buffer live in the ring until it completes.
pub(crate) struct Io {
    pub(crate) file: Rc<RingFile>,
    pub(crate) kind: IoKind,
    pub(crate) buffer: Option<Buffer>,
    /// Bytes of the buffer that earlier submissions of this request finished.
    pub(crate) done: usize,
    /// Submissions that came back to be tried again.
    pub(crate) retries: u8,
    /// The submitter's.
    pub(crate) token: u64,
    pub(crate) owner: Rc<dyn IoOwner>,
}

/// Whoever submits requests.
pub(crate) trait IoOwner {
    /// The kernel finished; `result` is a count or a negative errno. The request may be started
    /// again.
    fn complete(&self, io: Io, result: i32, ring: &Ring);
}

/// An open file, registered with a ring where there is room.
pub(crate) struct RingFile {
    fd: OwnedFd,
    slot: Option<u32>,
    ring: Weak<Ring>,
}

impl RingFile {
    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Drop for RingFile {
    fn drop(&mut self) {
        if let (Some(slot), Some(ring)) = (self.slot, self.ring.upgrade()) {
            ring.unregister_file(slot);
        }
    }
}

enum Work {
    Io(Io),
    Poll { watch: u64 },
    Cancel,
}

struct Entry {
    serial: u32,
    work: Work,
}

/// See the module's page.
pub(crate) struct Ring {
    uring: RefCell<IoUring>,
    entries: RefCell<Slab<Entry>>,
    serial: Cell<u32>,
    backlog: RefCell<VecDeque<squeue::Entry>>,
    reaped: RefCell<Vec<(u64, i32)>>,
    watches: RefCell<Watches>,
    files_free: RefCell<Vec<u32>>,
    /// Address and length of each registered buffer.
    fixed: RefCell<Vec<(usize, usize)>>,
    /// Keep the registered memory.
    pools: RefCell<Vec<BufferPool>>,
    io_in_flight: Cell<usize>,
    fresh: Cell<bool>,
}

impl Ring {
    /// Something was completed without the kernel: the next turn counts as one that had work.
    pub(crate) fn set_fresh(&self) {
        self.fresh.set(true);
    }

    /// Whether that is so, without forgetting it.
    pub(crate) fn is_fresh(&self) -> bool {
        self.fresh.get()
    }

    /// Takes ownership of an open file.
    pub(crate) fn adopt(self: &Rc<Ring>, fd: OwnedFd) -> Rc<RingFile> {
        let slot = self.files_free.borrow_mut().pop().filter(|slot| {
            let update = [fd.as_raw_fd()];
            self.uring.borrow().submitter().register_files_update(*slot, &update).is_ok()
        });
        Rc::new(RingFile { fd, slot, ring: Rc::downgrade(self) })
    }

    fn unregister_file(&self, slot: u32) {
        if self.uring.borrow().submitter().register_files_update(slot, &[-1]).is_ok() {
            self.files_free.borrow_mut().push(slot);
        }
    }

    /// Hands a request to the kernel, now or when there is room.
    pub(crate) fn start(&self, mut io: Io) {
        let fd = match io.file.slot {
            Some(slot) => types::Fd(slot.cast_signed()),
            None => types::Fd(io.file.fd.as_raw_fd()),
        };
        let entry = match io.kind {
            IoKind::Read { offset } => {
                let (address, length, fixed) = self.memory(&mut io);
                let offset = offset + io.done as u64;
                match fixed {
                    Some(index) => {
                        opcode::ReadFixed::new(fd, address, length, index).offset(offset).build()
                    }
                    None => opcode::Read::new(fd, address, length).offset(offset).build(),
                }
            }
            IoKind::Write { offset } => {
                let (address, length, fixed) = self.memory(&mut io);
                let offset = offset + io.done as u64;
                match fixed {
                    Some(index) => {
                        opcode::WriteFixed::new(fd, address, length, index).offset(offset).build()
                    }
                    None => opcode::Write::new(fd, address, length).offset(offset).build(),
                }
            }
            IoKind::Sync => opcode::Fsync::new(fd).flags(types::FsyncFlags::DATASYNC).build(),
            IoKind::Punch { offset, length } => {
                let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
                opcode::Fallocate::new(fd, length).offset(offset).mode(mode).build()
            }
            IoKind::Discard { offset, length } => {
                let mut command = [0; 16];
                command[..8].copy_from_slice(&length.to_ne_bytes());
                opcode::UringCmd16::new(fd, BLOCK_DISCARD).cmd(command).addr(Some(offset)).build()
            }
        };
        let flags = match io.file.slot {
            Some(_) => squeue::Flags::FIXED_FILE,
            None => squeue::Flags::empty(),
        };
        self.io_in_flight.set(self.io_in_flight.get() + 1);
        let name = self.keep(Work::Io(io));
        self.push(entry.flags(flags).user_data(name));
    }

    /// The part of a request's buffer that is left to do, and its index where it is registered
    /// with this ring.
    fn memory(&self, io: &mut Io) -> (*mut u8, u32, Option<u16>) {
        let buffer = io.buffer.as_mut().expect("reads and writes have a buffer");
        assert!(io.done <= buffer.len(), "a request is not done beyond its buffer");
        let fixed = buffer.registered().filter(|index| {
            let place = (buffer.as_ptr().addr(), buffer.capacity());
            self.fixed.borrow().get(usize::from(*index)) == Some(&place)
        });
        let rest = &mut buffer[io.done..];
        let length = u32::try_from(rest.len()).expect("buffers are below 4 GiB");
        (rest.as_mut_ptr(), length, fixed)
    }

    /// Keeps the work until its completion; returns its name.
    fn keep(&self, work: Work) -> u64 {
        let serial = self.serial.get();
        self.serial.set(serial.wrapping_add(1));
        let slot = self.entries.borrow_mut().insert(Entry { serial, work });
        let index = u32::try_from(slot).expect("fewer than 2^32 requests in flight");
        (u64::from(serial) << 32) | u64::from(index)
    }

    fn push(&self, entry: squeue::Entry) {
        let mut backlog = self.backlog.borrow_mut();
        if !backlog.is_empty() || !self.push_now(&entry) {
            backlog.push_back(entry);
        }
    }

    /// Into the submission queue, which is handed over when it is full.
    fn push_now(&self, entry: &squeue::Entry) -> bool {
        for attempt in 0..2 {
            let mut uring = self.uring.borrow_mut();
            // SAFETY: every entry is built in this module. What it points to (a buffer's heap
            // memory) and the file that it names are owned by `entries` under the entry's name
            // until its completion is reaped, and `Drop` outwaits the kernel.
            if unsafe { uring.submission().push(entry) }.is_ok() {
                return true;
            }
            if attempt == 0 {
                tolerate(uring.submit());
            }
        }
        false
    }

    fn refill(&self) {
        let mut backlog = self.backlog.borrow_mut();
        while let Some(entry) = backlog.front() {
            if !self.push_now(entry) {
                return;
            }
            backlog.pop_front();
        }
    }

    /// Submits what waits and handles completions. True when there were any.
    pub(crate) fn turn(&self) -> bool {
        self.arm_watches(false);
        self.refill();
        {
            let mut uring = self.uring.borrow_mut();
            let queue = uring.submission();
            let enter = !queue.is_empty() || queue.taskrun() || queue.cq_overflow();
            drop(queue);
            if enter {
                tolerate(uring.submit());
            }
        }
        self.reap() | self.fresh.take()
    }

    /// Sleeps until a completion arrives, for at most `limit`. Every watch is armed first: a file
    /// that is ready already ends the sleep at once.
    pub(crate) fn sleep(&self, limit: Option<Duration>) {
        self.arm_watches(true);
        self.refill();
        self.wait(limit);
    }

    fn wait(&self, limit: Option<Duration>) {
        let uring = self.uring.borrow();
        let time;
        let mut arguments = types::SubmitArgs::new();
        if let Some(limit) = limit {
            time = types::Timespec::from(limit);
            arguments = arguments.timespec(&time);
        }
        tolerate(uring.submitter().submit_with_args(1, &arguments));
    }

    fn reap(&self) -> bool {
        let mut reaped = self.reaped.take();
        {
            let mut uring = self.uring.borrow_mut();
            reaped.extend(uring.completion().map(|done| (done.user_data(), done.result())));
        }
        let any = !reaped.is_empty();
        for (name, result) in reaped.drain(..) {
            self.finish(name, result);
        }
        self.reaped.replace(reaped);
        any
    }

    fn finish(&self, name: u64, result: i32) {
        let entry = self.entries.borrow_mut().remove(slot_of(name));
        assert_eq!(u64::from(entry.serial), name >> 32, "a completion finds its own request");
        match entry.work {
            Work::Io(io) => {
                self.io_in_flight.set(self.io_in_flight.get() - 1);
                let owner = Rc::clone(&io.owner);
                owner.complete(io, result, self);
            }
            Work::Poll { watch } => self.watches.borrow_mut().fired(watch, result),
            Work::Cancel => {}
        }
    }

    /// Ends the sleep when `fd` is ready for one of `interest` (poll(2) bits). The fd must stay
    /// open until [`unwatch`](Ring::unwatch).
    pub(crate) fn watch(&self, fd: RawFd, interest: u32, mode: WatchMode) -> u64 {
        self.watches.borrow_mut().add(fd, interest, mode)
    }

    /// Forgets a watch, and lets go of its file.
    pub(crate) fn unwatch(&self, watch: u64) {
        let armed = self.watches.borrow_mut().remove(watch);
        if let Some(target) = armed {
            let name = self.keep(Work::Cancel);
            self.push(opcode::PollRemove::new(target).build().user_data(name));
            // At once, so that closing the file closes it: the first call takes the poll back, and
            // the second works off what that left, which holds the file.
            let uring = self.uring.borrow();
            tolerate(uring.submit());
            tolerate(uring.submit());
        }
    }

    /// Whether the watch became ready since this was last asked.
    pub(crate) fn take_ready(&self, watch: u64) -> bool {
        self.watches.borrow_mut().take_ready(watch)
    }

    fn arm_watches(&self, all: bool) {
        loop {
            let Some((watch, fd, interest)) = self.watches.borrow_mut().next_to_arm(all) else {
                return;
            };
            let name = self.keep(Work::Poll { watch });
            self.watches.borrow_mut().armed(watch, name);
            let entry = opcode::PollAdd::new(types::Fd(fd), interest).build();
            self.push(entry.user_data(name));
        }
    }

    /// Drops the work of a completion that nobody waits for any more.
    fn forget(&mut self, name: u64) {
        let entry = self.entries.get_mut().remove(slot_of(name));
        if matches!(entry.work, Work::Io(_)) {
            self.io_in_flight.set(self.io_in_flight.get() - 1);
        }
    }

    /// Waits until the kernel has finished with every request on a file.
    fn outwait(&mut self) -> io::Result<()> {
        // What only waits in the backlog never reaches the kernel.
        let backlog = std::mem::take(self.backlog.get_mut());
        for entry in backlog {
            self.forget(entry.get_user_data());
        }
        while self.io_in_flight.get() > 0 {
            let uring = self.uring.get_mut();
            let names: Vec<u64> = uring.completion().map(|done| done.user_data()).collect();
            if names.is_empty()
                && let Err(error) = uring.submit_and_wait(1)
                && !passing(&error)
            {
                return Err(error);
            }
            for name in names {
                self.forget(name);
            }
        }
        Ok(())
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        if let Err(error) = self.outwait() {
            // The kernel may still write into these buffers: nobody else may get their memory.
            tracing::error!(%error, "the kernel did not finish all I/O; its buffers are left to it");
            std::mem::forget(self.entries.take());
            std::mem::forget(self.pools.take());
        }
    }
}

fn slot_of(name: u64) -> usize {
    (name & 0xffff_ffff) as usize
}

/// Errors of io_uring_enter that pass by themselves: a signal, the time limit, completions that
/// must be reaped first, memory that is short for a moment.
fn passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY | libc::ENOMEM)
    )
}

/// # Panics
/// On errors that only a mistake of this module can cause.
fn tolerate(result: io::Result<usize>) {
    if let Err(error) = result {
        assert!(passing(&error), "io_uring_enter is called correctly: {error}");
    }
}

#[cfg(test)]
mod tests;
