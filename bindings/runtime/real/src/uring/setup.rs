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
        let uring = build(entries).map_err(Error::Ring)?;
        let files = match uring.submitter().register_files_sparse(FILES_MAX) {
            Ok(()) => (0..FILES_MAX).rev().collect(),
            Err(error) => {
                tracing::debug!(%error, "files are not registered with io_uring");
                Vec::new()
            }
        };
        Ok(Rc::new(Ring {
            uring: RefCell::new(uring),
            entries: RefCell::new(Slab::with_capacity(entries as usize)),
            serial: Cell::new(0),
            backlog: RefCell::new(VecDeque::new()),
            reaped: RefCell::new(Vec::with_capacity(entries as usize)),
            watches: RefCell::new(Watches::default()),
            files_free: RefCell::new(files),
            fixed: RefCell::new(Vec::new()),
            pools: RefCell::new(Vec::new()),
            io_in_flight: Cell::new(0),
            fresh: Cell::new(false),
        }))
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

/// The best mode that this kernel has.
fn build(entries: u32) -> io::Result<IoUring> {
    // Completions are worked off when this thread asks, never in between: Linux 6.1.
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_submit_all().setup_single_issuer();
    builder.setup_defer_taskrun().setup_taskrun_flag();
    let deferred = builder.build(entries);
    if !unsupported(&deferred) {
        return deferred;
    }
    // Completions do not interrupt this thread: Linux 5.19.
    let mut builder = IoUring::builder();
    builder.setup_clamp().setup_submit_all().setup_coop_taskrun().setup_taskrun_flag();
    let cooperative = builder.build(entries);
    if !unsupported(&cooperative) {
        return cooperative;
    }
    IoUring::builder().setup_clamp().build(entries)
}

fn unsupported(outcome: &io::Result<IoUring>) -> bool {
    matches!(outcome, Err(error) if error.raw_os_error() == Some(libc::EINVAL))
}
