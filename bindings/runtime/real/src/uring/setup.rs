//! Making a ring: what this kernel offers, and registering the drives' buffers.

use super::{FILES_MAX, Ring, Watches};
use crate::error::{Error, Result};
use cleave_runtime::buffer::BufferPool;
use io_uring::IoUring;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

impl Ring {
    /// A ring with room for `entries` submissions at a time, used by the calling thread alone.
    pub(crate) fn new(entries: u32) -> Result<Rc<Ring>> {
        Ok(Ring::over(build(entries).map_err(Error::Ring)?))
    }

    pub(super) fn over(uring: IoUring) -> Rc<Ring> {
        let entries = uring.params().sq_entries() as usize;
        let files = match uring.submitter().register_files_sparse(FILES_MAX) {
            Ok(()) => (0..FILES_MAX).rev().collect(),
            Err(error) => {
                tracing::debug!(%error, "files are not registered with io_uring");
                Vec::new()
            }
        };
        Rc::new(Ring {
            uring: RefCell::new(uring),
            entries: RefCell::new(Slab::with_capacity(entries)),
            serial: Cell::new(0),
            backlog: RefCell::new(VecDeque::new()),
            reaped: RefCell::new(Vec::with_capacity(entries)),
            watches: RefCell::new(Watches::default()),
            files_free: RefCell::new(files),
            fixed: RefCell::new(Vec::new()),
            pools: RefCell::new(Vec::new()),
            io_in_flight: Cell::new(0),
            fresh: Cell::new(false),
        })
    }

    /// Pools of `count` buffers of `capacity` bytes for each of `sizes`, registered with the
    /// kernel if it lets them be locked in memory; else the same pools unregistered, and a warning.
    /// To be called once a ring.
    pub(crate) fn register_pools(&self, sizes: &[(usize, u16)]) -> Vec<BufferPool> {
        assert!(self.pools.borrow().is_empty(), "buffers are registered once");
        let mut places: Vec<(usize, usize)> = Vec::new();
        let mut vectors: Vec<libc::iovec> = Vec::new();
        let mut pools = Vec::with_capacity(sizes.len());
        for &(capacity, count) in sizes {
            let first = u16::try_from(places.len()).expect("buffer settings were checked");
            pools.push(BufferPool::registered(capacity, count, first, |address, length| {
                places.push((address.addr(), length));
                vectors.push(libc::iovec { iov_base: address.cast(), iov_len: length });
            }));
        }
        if vectors.is_empty() {
            return pools;
        }
        // SAFETY: each vector names memory that its pool allocated and that stays in place until
        // the pool and its buffers are gone; `self.pools` keeps the pools as long as the ring.
        let outcome = unsafe { self.uring.borrow().submitter().register_buffers(&vectors) };
        match outcome {
            Ok(()) => {
                self.fixed.replace(places);
                self.pools.replace(pools.clone());
                pools
            }
            Err(error) => {
                let bytes: usize = vectors.iter().map(|vector| vector.iov_len).sum();
                tracing::warn!(
                    %error,
                    bytes,
                    "drive buffers cannot be locked in memory, so drives cost more CPU; raise \
                     RLIMIT_MEMLOCK (ulimit -l, or LimitMEMLOCK= in the unit)"
                );
                drop(pools);
                let plain = |&(capacity, count): &(usize, u16)| {
                    BufferPool::new(capacity, usize::from(count))
                };
                sizes.iter().map(plain).collect()
            }
        }
    }
}

/// How the kernel hands completions to this thread, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// When this thread asks, never in between: Linux 6.1.
    Deferred,
    /// Without interrupting this thread: Linux 5.19.
    Cooperative,
    /// As every kernel can.
    Plain,
}

/// The best mode that this kernel has.
fn build(entries: u32) -> io::Result<IoUring> {
    for mode in [Mode::Deferred, Mode::Cooperative] {
        match build_mode(entries, mode) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::debug!(?mode, "this kernel's io_uring lacks a mode");
            }
            outcome => return outcome,
        }
    }
    build_mode(entries, Mode::Plain)
}

pub(super) fn build_mode(entries: u32, mode: Mode) -> io::Result<IoUring> {
    let mut builder = IoUring::builder();
    builder.setup_clamp();
    match mode {
        Mode::Deferred => {
            builder.setup_submit_all().setup_single_issuer();
            builder.setup_defer_taskrun().setup_taskrun_flag();
        }
        Mode::Cooperative => {
            builder.setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
        }
        Mode::Plain => {}
    }
    builder.build(entries)
}
