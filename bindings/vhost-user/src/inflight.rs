//! The inflight region: which requests were taken and not yet published, in memory that the front
//! end keeps when this process dies (C24).
//!
//! Layout (vhost-user specification, "Inflight I/O tracking", split virtqueues), one part a queue,
//! each rounded up to 64 bytes, fields in native order:
//!
//! ```text
//!  0  features u64 (0)
//!  8  version u16 (1)      10  desc_num u16
//! 12  last_batch_head u16  14  used_idx u16
//! 16  desc_num times:  0 inflight u8, padding 5, 6 next u16, 8 counter u64
//! ```
//!
//! Taking head `h`: counter, then inflight = 1. Publishing it: next = last_batch_head, then
//! last_batch_head = h, then the used ring's entry and index, then inflight = 0, then used_idx.
//! Whatever a crash cuts off, `used_idx` differs from the ring's index exactly when the request at
//! `last_batch_head` was published and may still say inflight: [`Records::recover`] clears it.
//!
//! A batch here is one request; recovery follows longer ones that another implementation left.
//! The region is the front end's to spoil; what is read from it is checked like a guest's ring.

use crate::guard::{Alarm, Mapping};
use crate::memory::map;
use rustix::fs::{MemfdFlags, SealFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};
use vhost::vhost_user::message::VhostUserInflight;
use vm_memory::VolatileMemory;

const HEADER: usize = 16;
const STATE: usize = 16;
const VERSION: usize = 8;
const DESC_NUM: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_IDX: usize = 14;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const ALIGNMENT: usize = 64;
const LAYOUT_VERSION: u16 = 1;

/// The region of one device.
#[derive(Debug)]
pub(crate) struct Region {
    mapping: Mapping,
    queues: u16,
    queue_size: u16,
}

/// The part of one queue.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    region: Arc<Region>,
    base: usize,
}

/// A request that was in flight: order of taking, then head.
pub(crate) type Unfinished = (u64, u16);

fn part_bytes(queue_size: u16) -> usize {
    (HEADER + usize::from(queue_size) * STATE).next_multiple_of(ALIGNMENT)
}

impl Region {
    /// A fresh region, and the descriptor and message that give it to the front end.
    pub(crate) fn create(
        queues: u16,
        queue_size: u16,
        alarm: &Alarm,
    ) -> Result<(Region, VhostUserInflight, OwnedFd), String> {
        let bytes = part_bytes(queue_size) * usize::from(queues);
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let system = |error: rustix::io::Errno| format!("cannot make the inflight region: {error}");
        let file = rustix::fs::memfd_create(c"inflight", flags).map_err(system)?;
        rustix::fs::ftruncate(&file, bytes as u64).map_err(system)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&file, seals).map_err(system)?;
        let given = VhostUserInflight::new(bytes as u64, 0, queues, queue_size);
        let kept = file.as_fd().try_clone_to_owned().map_err(|error| error.to_string())?;
        Ok((Region::open(&given, kept, alarm)?, given, file))
    }

    /// A region that the front end gives back.
    pub(crate) fn open(
        given: &VhostUserInflight,
        file: OwnedFd,
        alarm: &Alarm,
    ) -> Result<Region, String> {
        let bytes = part_bytes(given.queue_size) * usize::from(given.num_queues);
        if given.mmap_size < bytes as u64 {
            let (size, queues) = (given.mmap_size, given.num_queues);
            return Err(format!("inflight region of {size} bytes for {queues} queues"));
        }
        let mapping = map(file, given.mmap_offset, given.mmap_size, alarm)?;
        let region = Region { mapping, queues: given.num_queues, queue_size: given.queue_size };
        for queue in 0..region.queues {
            region.check(usize::from(queue) * part_bytes(region.queue_size))?;
        }
        Ok(region)
    }

    /// Begins a part that was never used, refuses one of another layout.
    fn check(&self, base: usize) -> Result<(), String> {
        let (version, entries) = (self.half(base + VERSION), self.half(base + DESC_NUM));
        match version.load(Ordering::Relaxed) {
            0 => {
                entries.store(self.queue_size, Ordering::Relaxed);
                version.store(LAYOUT_VERSION, Ordering::Release);
                Ok(())
            }
            LAYOUT_VERSION if entries.load(Ordering::Relaxed) == self.queue_size => Ok(()),
            LAYOUT_VERSION => Err("inflight region of another queue size".into()),
            other => Err(format!("inflight region of version {other}")),
        }
    }

    /// Whether any request of `queue` is marked; some may have been published already.
    pub(crate) fn marked(self: &Arc<Region>, queue: u16) -> bool {
        let Some(records) = self.records(queue) else { return false };
        (0..self.queue_size).any(|head| records.is_marked(head))
    }

    /// The part of a queue; `None` when the region has none.
    pub(crate) fn records(self: &Arc<Region>, queue: u16) -> Option<Records> {
        let base = usize::from(queue) * part_bytes(self.queue_size);
        (queue < self.queues).then(|| Records { region: Arc::clone(self), base })
    }

    /// Descriptors of a queue, at most.
    pub(crate) fn queue_size(&self) -> u16 {
        self.queue_size
    }

    fn half(&self, at: usize) -> &AtomicU16 {
        self.mapping.memory.get_atomic_ref(at).expect("inside of the checked region, aligned")
    }
}

impl Records {
    fn state(&self, head: u16) -> usize {
        assert!(head < self.region.queue_size, "heads are checked against the ring's size");
        self.base + HEADER + usize::from(head) * STATE
    }

    fn mark(&self, head: u16) -> &AtomicU8 {
        let at = self.state(head);
        self.region.mapping.memory.get_atomic_ref(at).expect("inside of the checked region")
    }

    fn counter(&self, head: u16) -> &AtomicU64 {
        let at = self.state(head) + COUNTER;
        self.region
            .mapping
            .memory
            .get_atomic_ref(at)
            .expect("inside of the checked region, aligned")
    }

    fn is_marked(&self, head: u16) -> bool {
        self.mark(head).load(Ordering::Acquire) == 1
    }

    /// Before a request is given to the engine.
    pub(crate) fn taken(&self, head: u16, counter: u64) {
        self.counter(head).store(counter, Ordering::Relaxed);
        self.mark(head).store(1, Ordering::Release);
    }

    /// Before its entry in the used ring is written.
    pub(crate) fn publishing(&self, head: u16) {
        let last = self.region.half(self.base + LAST_BATCH_HEAD);
        let next = self.region.half(self.state(head) + NEXT);
        next.store(last.load(Ordering::Relaxed), Ordering::Release);
        last.store(head, Ordering::Release);
    }

    /// After the used ring's index says that it is published.
    pub(crate) fn unmark(&self, head: u16) {
        self.mark(head).store(0, Ordering::Release);
    }

    /// After [`unmark`](Records::unmark): everything up to `used` is in order.
    pub(crate) fn settled(&self, used: u16) {
        self.region.half(self.base + USED_IDX).store(used, Ordering::Release);
    }

    /// What a ring of `size` descriptors, whose used index is `used`, has to do again, in the order
    /// of taking.
    pub(crate) fn recover(&self, size: u16, used: u16) -> Vec<Unfinished> {
        let settled = self.region.half(self.base + USED_IDX).load(Ordering::Acquire);
        // After a device reset the ring begins at 0 again and the difference means nothing; then
        // nothing is marked either. The bound is for a spoilt region.
        let batch = used.wrapping_sub(settled).min(size);
        let mut head = self.region.half(self.base + LAST_BATCH_HEAD).load(Ordering::Acquire);
        for _ in 0..batch {
            if head >= self.region.queue_size {
                break;
            }
            self.unmark(head);
            head = self.region.half(self.state(head) + NEXT).load(Ordering::Acquire);
        }
        self.settled(used);
        let mut unfinished: Vec<Unfinished> = (0..size)
            .filter(|head| self.is_marked(*head))
            .map(|head| (self.counter(head).load(Ordering::Relaxed), head))
            .collect();
        unfinished.sort_unstable();
        unfinished
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::shared_memory;

    fn region(queues: u16, size: u16) -> (Arc<Region>, VhostUserInflight, OwnedFd) {
        let (region, given, file) = Region::create(queues, size, &Alarm::default()).unwrap();
        (Arc::new(region), given, file)
    }

    #[test]
    fn another_mapping_sees_what_was_taken_in_order() {
        let (region, given, file) = region(2, 8);
        assert_eq!(given.mmap_size, 2 * 192);
        let records = region.records(1).unwrap();
        records.taken(5, 10);
        records.taken(2, 11);
        records.taken(7, 12);
        records.publishing(2);
        records.unmark(2);
        records.settled(1);
        let again = Arc::new(Region::open(&given, file, &Alarm::default()).unwrap());
        assert!(!again.marked(0) && again.marked(1));
        assert_eq!(again.records(1).unwrap().recover(8, 1), [(10, 5), (12, 7)]);
        assert!(again.records(2).is_none());
    }

    #[test]
    fn published_but_still_marked_is_cleared_for_batches_too() {
        let (region, _, _file) = region(1, 8);
        let records = region.records(0).unwrap();
        for (counter, head) in [(1, 3), (2, 4), (3, 5)] {
            records.taken(head, counter);
        }
        records.publishing(3);
        records.publishing(5);
        // The ring's index went from 0 to 2 in one step, then the process died.
        assert_eq!(records.recover(8, 2), [(2, 4)]);
        assert_eq!(records.recover(8, 2), [(2, 4)], "recovering twice changes nothing");
        // A published request whose index was not reached is done again.
        records.publishing(4);
        assert_eq!(records.recover(8, 2), [(2, 4)]);
    }

    #[test]
    fn a_spoilt_region_is_refused_or_harmless() {
        let (spoilt, given, _file) = region(1, 4);
        let records = spoilt.records(0).unwrap();
        spoilt.half(LAST_BATCH_HEAD).store(999, Ordering::Relaxed);
        records.taken(1, 0);
        assert_eq!(records.recover(4, 77), [(0, 1)]);
        let mut short = given;
        short.mmap_size = 10;
        assert!(Region::open(&short, shared_memory(4096), &Alarm::default()).is_err());
        assert!(Region::open(&given, shared_memory(10), &Alarm::default()).is_err());
        let (other, given, file) = region(1, 4);
        other.half(VERSION).store(9, Ordering::Relaxed);
        assert!(Region::open(&given, file, &Alarm::default()).is_err());
    }
}
