//! What goes between the core that has a vdisk's device and one that has a share of it: requests one way, their ends the
//! other, over two bounded rings.
//!
//! Invariant: no more requests are on their way than either ring has places ([`LINK`]), so an end always finds its
//! place. Buffers travel without a pool; whoever keeps one that came sends a spare one back, so that
//! neither core allocates as long as both ways are used alike.

use crate::request::{GuestError, Operation};
use cleave_runtime::Token;
use cleave_runtime::buffer::{Buffer, BufferPool, LooseBuffer};
use cleave_runtime::executor::Doorbell;
use cleave_runtime::ring::{Consumer, Producer, ring};
use std::sync::Arc;

/// Requests that are on their way over one link, at most.
pub(super) const LINK: usize = 256;

/// An operation without a pool's buffer.
#[derive(Debug)]
pub(super) enum LooseOperation {
    Read { offset: u64, length: u32, spare: Option<LooseBuffer> },
    Write { offset: u64, data: LooseBuffer },
    WriteZeroes { offset: u64, length: u64, unmap: bool },
    Discard { offset: u64, length: u64 },
    Flush,
}

/// A request on its way to the core that has the share.
#[derive(Debug)]
pub(super) struct Crossing {
    pub token: Token,
    pub operation: LooseOperation,
}

/// Its end, on its way back.
#[derive(Debug)]
pub(super) struct Crossed {
    pub token: Token,
    pub result: Result<(), GuestError>,
    /// A read's data.
    pub data: Option<LooseBuffer>,
    /// For the buffer of a write.
    pub spare: Option<LooseBuffer>,
}

/// The end of the core that has the device.
pub struct HomeEnd {
    pub(super) requests: Producer<Crossing>,
    pub(super) done: Consumer<Crossed>,
}

/// The end of the core that has the share.
pub struct ShareEnd {
    pub(super) requests: Consumer<Crossing>,
    pub(super) done: Producer<Crossed>,
}

impl std::fmt::Debug for HomeEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HomeEnd")
    }
}

impl std::fmt::Debug for ShareEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ShareEnd")
    }
}

/// Links two cores, which wake by these.
pub fn link(home: Arc<dyn Doorbell>, share: Arc<dyn Doorbell>) -> (HomeEnd, ShareEnd) {
    let (requests, taken) = ring(LINK, share);
    let (ended, done) = ring(LINK, home);
    (HomeEnd { requests, done }, ShareEnd { requests: taken, done: ended })
}

fn pool_of(pools: &[BufferPool], length: usize) -> Option<&BufferPool> {
    pools.iter().find(|pool| pool.capacity() >= length)
}

/// Takes a buffer in that came from another core.
pub(super) fn adopt(pools: &[BufferPool], loose: LooseBuffer) -> Buffer {
    match pool_of(pools, loose.capacity()) {
        Some(pool) => pool.adopt(loose),
        None => Buffer::from(loose),
    }
}

/// A buffer in exchange for one of that length, if there is one.
pub(super) fn spare(pools: &[BufferPool], length: usize) -> Option<LooseBuffer> {
    pool_of(pools, length).and_then(BufferPool::spare)
}

/// A buffer for so many bytes.
pub(super) fn take(pools: &[BufferPool], length: usize) -> Buffer {
    match pool_of(pools, length) {
        Some(pool) => pool.take(length),
        None => Buffer::new(length),
    }
}

impl LooseOperation {
    /// For another core.
    pub fn of(operation: Operation, pools: &[BufferPool]) -> LooseOperation {
        match operation {
            Operation::Read { offset, length } => {
                LooseOperation::Read { offset, length, spare: spare(pools, length as usize) }
            }
            Operation::Write { offset, data } => {
                LooseOperation::Write { offset, data: data.loosen() }
            }
            Operation::WriteZeroes { offset, length, unmap } => {
                LooseOperation::WriteZeroes { offset, length, unmap }
            }
            Operation::Discard { offset, length } => LooseOperation::Discard { offset, length },
            Operation::Flush => LooseOperation::Flush,
        }
    }

    /// For this core; a read's spare buffer apart.
    pub fn taken(self, pools: &[BufferPool]) -> (Operation, Option<LooseBuffer>) {
        match self {
            LooseOperation::Read { offset, length, spare } => {
                (Operation::Read { offset, length }, spare)
            }
            LooseOperation::Write { offset, data } => {
                (Operation::Write { offset, data: adopt(pools, data) }, None)
            }
            LooseOperation::WriteZeroes { offset, length, unmap } => {
                (Operation::WriteZeroes { offset, length, unmap }, None)
            }
            LooseOperation::Discard { offset, length } => {
                (Operation::Discard { offset, length }, None)
            }
            LooseOperation::Flush => (Operation::Flush, None),
        }
    }
}
