//! A front end of a vhost-user-blk socket, as a guest's hypervisor is one: buffers, queues, requests.
//!
//! It knows nothing of Cleave, only the protocol, through an independent crate. The verifier, measurements
//! and the import and export of images reach vdisks through it.
//!
//! Buffers are shared memory that outlives connections; rings do not: each connection has new ones,
//! so that a successor of a killed engine finds nothing in flight. An engine that is gone cannot touch
//! the buffers any more: its address space is torn down before its sockets are closed.

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkTransport,
    VirtioFeatureFlags,
};

/// Bytes of a sector: the unit in which requests name places.
pub const SECTOR: usize = 512;

/// Buffers of equal size, one a slot, in memory that engines can map.
pub struct Buffers {
    file: File,
    start: *mut u8,
    length: usize,
    each: usize,
}

impl Buffers {
    /// Buffers for so many slots, of so many bytes each: the longest read or write.
    pub fn new(slots: usize, each: usize) -> io::Result<Buffers> {
        let length = slots * each;
        let file = File::from(memfd_create("buffers", MemfdFlags::CLOEXEC)?);
        ftruncate(&file, length as u64)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses touches nobody's memory.
        let start =
            unsafe { mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &file, 0)? };
        Ok(Buffers { file, start: start.cast(), length, each })
    }

    /// A slot's buffer.
    pub fn slot(&mut self, slot: usize) -> &mut [u8] {
        let start = self.pointer(slot);
        // SAFETY: the range lies in the mapping, which lives as long as `self`. The engine writes to it
        // only while a read of this slot is in flight, and callers look at it only when none is.
        unsafe { std::slice::from_raw_parts_mut(start, self.each) }
    }

    fn pointer(&self, slot: usize) -> *mut u8 {
        let offset = slot * self.each;
        assert!(offset + self.each <= self.length, "slot {slot} has no buffer");
        // SAFETY: the offset lies within the mapping, as just asserted.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Buffers {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and nothing borrows from it any more.
        let unmapped = unsafe { munmap(self.start.cast(), self.length) };
        unmapped.expect("unmapping an own mapping does not fail");
    }
}

/// What the engine says of its disk.
#[derive(Clone, Copy, Debug)]
pub struct Properties {
    /// Sectors.
    pub sectors: u64,
    /// Most sectors of a discard; 0: none.
    pub discard_sectors_max: u64,
    /// Most sectors of a write-zeroes; 0: none.
    pub zero_sectors_max: u64,
}

/// A finished request.
pub struct Done {
    /// Its slot.
    pub slot: usize,
    /// 0, or a negative errno.
    pub result: i32,
}

/// A connection. Queues go before the transport, which owns their memory.
pub struct Connection {
    queues: Vec<VirtioBlkQueue<'static, usize>>,
    notifiers: Vec<Box<dyn QueueNotifier>>,
    bells: Vec<Arc<EventFd>>,
    transport: Box<VirtioBlkTransport>,
}

impl Connection {
    /// Connects, sets queues up, shows the engine the buffers.
    pub fn open(
        socket: &Path,
        queues: usize,
        depth: usize,
        buffers: &Buffers,
    ) -> io::Result<Connection> {
        let wanted = VirtioFeatureFlags::VERSION_1.bits()
            | VirtioFeatureFlags::RING_EVENT_IDX.bits()
            | VirtioBlkFeatureFlags::FLUSH.bits()
            | VirtioBlkFeatureFlags::BLK_SIZE.bits()
            | VirtioBlkFeatureFlags::MQ.bits()
            | VirtioBlkFeatureFlags::DISCARD.bits()
            | VirtioBlkFeatureFlags::WRITE_ZEROES.bits();
        let path = socket.to_str().ok_or_else(|| io::Error::other("the path is not UTF-8"))?;
        let mut transport: Box<VirtioBlkTransport> = Box::new(VhostUser::new(path, wanted)?);
        // A request takes up to three descriptors.
        let size = (depth * 4).next_power_of_two().max(128) as u16;
        let mut set_up = VirtioBlkQueue::setup_queues(transport.as_mut(), queues, size)?;
        transport.map_mem_region(
            buffers.start as usize,
            buffers.length,
            buffers.file.as_raw_fd(),
            0,
        )?;
        set_up.iter_mut().for_each(|queue| queue.set_used_notif_enabled(true));
        let notifiers = (0..queues).map(|queue| transport.get_submission_notifier(queue)).collect();
        let bells = (0..queues).map(|queue| transport.get_completion_fd(queue)).collect();
        Ok(Connection { queues: set_up, notifiers, bells, transport })
    }

    /// Asks for the disk's properties.
    pub fn properties(&self) -> io::Result<Properties> {
        let features = VirtioBlkFeatureFlags::from_bits_truncate(self.transport.get_features());
        let config = self.transport.get_config()?;
        let limit = |feature, sectors: virtio_driver::Le32| {
            if features.contains(feature) { u64::from(sectors.to_native()) } else { 0 }
        };
        Ok(Properties {
            sectors: config.capacity.to_native(),
            discard_sectors_max: limit(VirtioBlkFeatureFlags::DISCARD, config.max_discard_sectors),
            zero_sectors_max: limit(
                VirtioBlkFeatureFlags::WRITE_ZEROES,
                config.max_write_zeroes_sectors,
            ),
        })
    }

    /// Whether the engine still answers. Blocks until it does or is gone.
    pub fn is_alive(&self) -> bool {
        self.transport.get_config().is_ok()
    }

    /// Queues a read into the slot's buffer.
    pub fn read(
        &mut self,
        slot: usize,
        sector: u64,
        bytes: usize,
        buffers: &Buffers,
    ) -> io::Result<()> {
        let pointer = buffers.pointer(slot);
        assert!(bytes <= buffers.each, "a read of {bytes} bytes does not fit its buffer");
        let queue = self.queue(slot);
        // SAFETY: the buffer has that many bytes and lives in `buffers`, which outlives every connection, and nobody looks at
        // it while this request is in flight.
        unsafe { queue.read_raw(sector * SECTOR as u64, pointer, bytes, slot) }
    }

    /// Queues a write of the slot's buffer.
    pub fn write(
        &mut self,
        slot: usize,
        sector: u64,
        bytes: usize,
        buffers: &Buffers,
    ) -> io::Result<()> {
        let pointer = buffers.pointer(slot);
        assert!(bytes <= buffers.each, "a write of {bytes} bytes does not fit its buffer");
        let queue = self.queue(slot);
        // SAFETY: as for reads; nobody changes the buffer while this request is in flight.
        unsafe { queue.write_raw(sector * SECTOR as u64, pointer, bytes, slot) }
    }

    /// Queues a write-zeroes.
    pub fn zero(&mut self, slot: usize, sector: u64, sectors: u64, unmap: bool) -> io::Result<()> {
        let unit = SECTOR as u64;
        self.queue(slot).write_zeroes(sector * unit, sectors * unit, unmap, slot)
    }

    /// Queues a discard.
    pub fn discard(&mut self, slot: usize, sector: u64, sectors: u64) -> io::Result<()> {
        let unit = SECTOR as u64;
        self.queue(slot).discard(sector * unit, sectors * unit, slot)
    }

    /// Queues a flush.
    pub fn flush(&mut self, slot: usize) -> io::Result<()> {
        self.queue(slot).flush(slot)
    }

    /// Tells the engine about what was queued, where it wants to be told.
    pub fn notify(&mut self) -> io::Result<()> {
        for (queue, notifier) in self.queues.iter_mut().zip(&self.notifiers) {
            if queue.avail_notif_needed() {
                notifier.notify()?;
            }
        }
        Ok(())
    }

    /// Takes finished requests, queue by queue in the order in which they were published.
    pub fn completed(&mut self, done: &mut Vec<Done>) {
        for queue in &mut self.queues {
            let completions = queue.completions();
            done.extend(completions.map(|one| Done { slot: one.context, result: one.ret }));
        }
    }

    /// Sleeps until something may have finished, or for that long.
    pub fn wait(&mut self, longest: Duration) -> io::Result<()> {
        let mut descriptors: Vec<PollFd<'_>> = self
            .bells
            .iter()
            .map(|bell| PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN))
            .collect();
        let timeout = Timespec {
            tv_sec: longest.as_secs() as i64,
            tv_nsec: i64::from(longest.subsec_nanos()),
        };
        match poll(&mut descriptors, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let rung: Vec<bool> =
            descriptors.iter().map(|one| one.revents().contains(PollFlags::IN)).collect();
        for (bell, _) in self.bells.iter().zip(rung).filter(|(_, rung)| *rung) {
            bell.read()?;
        }
        Ok(())
    }

    fn queue(&mut self, slot: usize) -> &mut VirtioBlkQueue<'static, usize> {
        let queues = self.queues.len();
        &mut self.queues[slot % queues]
    }
}
