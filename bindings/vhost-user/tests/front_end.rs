//! The device against an independent front end: the `virtio-driver` crate's.

mod common;

use common::{Manner, Server};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::os::fd::AsRawFd;
use virtio_driver::{VhostUser, VirtioBlkQueue, VirtioBlkTransport, VirtioFeatureFlags};

const CAPACITY: u64 = 16 << 20;

/// Memory that the device can reach.
struct Shared {
    start: *mut u8,
    length: usize,
    file: rustix::fd::OwnedFd,
}

impl Shared {
    fn new(length: usize) -> Shared {
        let file = memfd_create(c"guest", MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&file, length as u64).unwrap();
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping at an address that the kernel chooses.
        let start = unsafe {
            mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED, &file, 0).unwrap()
        };
        Shared { start: start.cast(), length, file }
    }

    /// Only looked at while no request is in flight.
    #[allow(clippy::mut_from_ref)]
    fn bytes(&self, at: usize, length: usize) -> &mut [u8] {
        assert!(at + length <= self.length);
        // SAFETY: inside of the mapping, which lives as long as `self`; tests use disjoint parts.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(at), length) }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `new`, which nothing refers to any more.
        unsafe { munmap(self.start.cast(), self.length).unwrap() };
    }
}

struct Front<'a> {
    queues: Vec<VirtioBlkQueue<'a, usize>>,
    transport: Box<VirtioBlkTransport>,
    shared: Shared,
}

impl Front<'_> {
    fn connect(server: &Server, features: VirtioFeatureFlags, queues: usize) -> Self {
        // Bits of virtio-blk that the driver looks at.
        let blk = 1 << 12 | 1 << 13 | 1 << 14 | 1 << 9;
        let bits = (features | VirtioFeatureFlags::VERSION_1).bits() | blk;
        let transport = VhostUser::new(server.socket.to_str().unwrap(), bits).unwrap();
        let mut transport: Box<VirtioBlkTransport> = Box::new(transport);
        let queues = VirtioBlkQueue::setup_queues(transport.as_mut(), queues, 64).unwrap();
        let shared = Shared::new(4 << 20);
        let start = shared.start as usize;
        transport.map_mem_region(start, shared.length, shared.file.as_raw_fd(), 0).unwrap();
        Front { queues, transport, shared }
    }

    /// Waits for `count` completions of a queue; gives (context, result) in order of context.
    fn wait(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        if self.queues[queue].avail_notif_needed() {
            self.transport.get_submission_notifier(queue).notify().unwrap();
        }
        let mut got = Vec::new();
        while got.len() < count {
            got.extend(self.queues[queue].completions().map(|done| (done.context, done.ret)));
            std::thread::yield_now();
        }
        got.sort_unstable();
        got
    }

    fn write(&mut self, queue: usize, offset: u64, at: usize, length: usize) -> i32 {
        let bytes = self.shared.bytes(at, length);
        // SAFETY: the bytes stay mapped, and nobody touches them until the request is done.
        unsafe { self.queues[queue].write_raw(offset, bytes.as_ptr(), length, 0).unwrap() };
        self.wait(queue, 1)[0].1
    }

    fn read(&mut self, queue: usize, offset: u64, at: usize, length: usize) -> i32 {
        let bytes = self.shared.bytes(at, length);
        // SAFETY: as in `write`.
        unsafe { self.queues[queue].read_raw(offset, bytes.as_mut_ptr(), length, 0).unwrap() };
        self.wait(queue, 1)[0].1
    }
}

fn pattern(seed: u64, target: &mut [u8]) {
    for (index, byte) in target.iter_mut().enumerate() {
        *byte = (seed as usize * 131 + index * 7 + index / 251) as u8;
    }
}

fn everything(features: VirtioFeatureFlags, manner: Manner) {
    let server = Server::start(CAPACITY, manner, |_| {});
    let mut front = Front::connect(&server, features, 2);
    let config = front.transport.get_config().unwrap();
    assert_eq!(u64::from(config.capacity), CAPACITY / 512);

    pattern(1, front.shared.bytes(0, 20 << 10));
    assert_eq!(front.write(0, 4096, 0, 20 << 10), 0);
    assert_eq!(front.read(1, 4096, 1 << 20, 20 << 10), 0);
    assert_eq!(front.shared.bytes(0, 20 << 10), front.shared.bytes(1 << 20, 20 << 10));

    // One sector, and the last one.
    pattern(2, front.shared.bytes(0, 512));
    assert_eq!(front.write(1, CAPACITY - 512, 0, 512), 0);
    assert!(front.write(1, CAPACITY, 0, 512) < 0, "beyond the end");

    front.queues[0].flush(3).unwrap();
    assert_eq!(front.wait(0, 1), [(3, 0)]);
    front.queues[0].discard(4096, 4096, 4).unwrap();
    front.queues[0].write_zeroes(8192, 4096, true, 5).unwrap();
    assert_eq!(front.wait(0, 2), [(4, 0), (5, 0)]);
    assert!(front.queues[0].discard(CAPACITY, 4096, 6).is_ok());
    assert!(front.wait(0, 1)[0].1 < 0);

    // Many at once on both queues, several rounds so that the rings wrap.
    for round in 0..9 {
        for queue in 0..2 {
            for index in 0..16 {
                let at = (queue * 16 + index) * 4096;
                let bytes = front.shared.bytes(at, 4096);
                pattern(round * 100 + at as u64, bytes);
                let offset = (1 << 20) + at as u64;
                // SAFETY: as in `Front::write`.
                unsafe {
                    front.queues[queue].write_raw(offset, bytes.as_ptr(), 4096, index).unwrap()
                };
            }
        }
        for queue in 0..2 {
            let done = front.wait(queue, 16);
            assert!(done.iter().enumerate().all(|(index, got)| *got == (index, 0)));
        }
    }
    let sent = front.shared.bytes(0, 32 * 4096).to_vec();
    drop(front);
    let (content, counts) = server.stop();
    assert_eq!(content[1 << 20..][..sent.len()], sent);
    assert!(content[4096..3 * 4096].iter().all(|byte| *byte == 0), "discarded and zeroed");
    assert_eq!((counts.writes, counts.reads, counts.discards), (2 + 9 * 32, 1, 2));
    assert_eq!((counts.failed, counts.faults), (2, 0));
}

#[test]
fn plain_rings() {
    everything(VirtioFeatureFlags::empty(), Manner::Prompt);
}

#[test]
fn event_index_and_indirect_descriptors_out_of_order() {
    let features = VirtioFeatureFlags::RING_EVENT_IDX | VirtioFeatureFlags::RING_INDIRECT_DESC;
    everything(features, Manner::Backwards);
}

#[test]
fn a_front_end_that_goes_comes_back() {
    let server = Server::start(CAPACITY, Manner::Prompt, |_| {});
    for round in 0..5u8 {
        let mut front = Front::connect(&server, VirtioFeatureFlags::empty(), 1);
        if round > 0 {
            assert_eq!(front.read(0, 0, 0, 512), 0);
            assert!(front.shared.bytes(0, 512).iter().all(|byte| *byte == round));
        }
        front.shared.bytes(0, 512).fill(round + 1);
        assert_eq!(front.write(0, 0, 0, 512), 0);
        // Goes with a request in flight.
        let bytes = front.shared.bytes(4096, 512);
        // SAFETY: nobody else touches the bytes; the device keeps its own mapping of them.
        unsafe { front.queues[0].read_raw(4096, bytes.as_mut_ptr(), 512, 0).unwrap() };
    }
    assert_eq!(server.stop().1.connections, 5);
}

#[test]
fn a_guest_is_woken_unless_it_polls() {
    let server = Server::start(CAPACITY, Manner::Prompt, |_| {});
    let features = [VirtioFeatureFlags::empty(), VirtioFeatureFlags::RING_EVENT_IDX];
    for features in features {
        let mut front = Front::connect(&server, features, 1);
        front.queues[0].set_used_notif_enabled(true);
        let call = front.transport.get_completion_fd(0);
        // Blocks until the eventfd is written: once when the ring starts (C24), once for the request.
        call.read().unwrap();
        assert_eq!(front.read(0, 0, 0, 512), 0);
        call.read().unwrap();
    }
    let woken = server.stop().1.notifications;
    assert_eq!(woken, 4);
}

#[test]
fn errors_of_the_engine_reach_the_guest() {
    let server = Server::start(CAPACITY, Manner::Failing, |_| {});
    let mut front = Front::connect(&server, VirtioFeatureFlags::empty(), 1);
    assert!(front.read(0, 0, 0, 4096) < 0);
    assert!(front.write(0, 0, 0, 4096) < 0);
}

#[test]
fn long_requests_come_in_parts_and_end_once() {
    let server = Server::start(CAPACITY, Manner::Backwards, |config| {
        config.transfer_max = 1 << 19;
    });
    let mut front = Front::connect(&server, VirtioFeatureFlags::empty(), 1);
    let length = (1 << 20) + 512;
    pattern(9, front.shared.bytes(0, length));
    assert_eq!(front.write(0, 512, 0, length), 0);
    assert_eq!(front.read(0, 512, 2 << 20, length), 0);
    assert_eq!(front.shared.bytes(0, length), front.shared.bytes(2 << 20, length));
}

#[test]
fn large_logical_blocks_and_read_only_are_kept() {
    let server = Server::start(CAPACITY, Manner::Prompt, |config| config.logical_block = 4096);
    let mut front = Front::connect(&server, VirtioFeatureFlags::empty(), 1);
    assert_eq!(u32::from(front.transport.get_config().unwrap().blk_size), 4096);
    assert_eq!(front.read(0, 4096, 0, 4096), 0);
    assert!(front.read(0, 512, 0, 4096) < 0 && front.read(0, 0, 0, 512) < 0);
    drop(front);
    let server = Server::start(CAPACITY, Manner::Prompt, |config| config.read_only = true);
    let mut front = Front::connect(&server, VirtioFeatureFlags::empty(), 1);
    assert_eq!(front.read(0, 0, 0, 4096), 0);
    assert!(front.write(0, 0, 0, 4096) < 0);
}

#[test]
fn a_front_end_that_truncates_its_memory_under_load_breaks_itself_only() {
    let features = VirtioFeatureFlags::empty();
    let (server, other) = (
        Server::start(CAPACITY, Manner::Prompt, |_| {}),
        Server::start(CAPACITY, Manner::Backwards, |_| {}),
    );
    let mut neighbour = Front::connect(&other, features, 1);
    for round in 0..3 {
        let mut front = Front::connect(&server, features, 1);
        let file = front.shared.file.try_clone().unwrap();
        let (begin, begun) = std::sync::mpsc::channel::<()>();
        let truncating = std::thread::spawn(move || {
            begun.recv().unwrap();
            ftruncate(file, 0).unwrap();
        });
        // Only the device touches the data; what it puts there or finds there does not matter.
        let start = front.shared.start;
        let mut in_flight = 0;
        let mut done = 0;
        let mut begin = Some(begin);
        while !truncating.is_finished() {
            while in_flight < 16 {
                let at = in_flight * (64 << 10);
                let offset = at as u64;
                // SAFETY: the device checks the memory; here nothing touches it any more.
                unsafe {
                    let place = start.add(at);
                    match in_flight % 2 {
                        0 => front.queues[0].write_raw(offset, place, 64 << 10, 0).unwrap(),
                        _ => front.queues[0].read_raw(offset, place, 64 << 10, 0).unwrap(),
                    }
                }
                in_flight += 1;
            }
            front.transport.get_submission_notifier(0).notify().unwrap();
            let count = front.queues[0].completions().count();
            (in_flight, done) = (in_flight - count, done + count);
            if done > 100
                && let Some(begin) = begin.take()
            {
                begin.send(()).unwrap();
            }
        }
        truncating.join().unwrap();
        // It may have answered everything just before: it notices with the next access.
        // SAFETY: as above.
        unsafe { front.queues[0].read_raw(0, start, 512, 0).unwrap() };
        front.transport.get_submission_notifier(0).notify().unwrap();
        // The next one gets through while this one is still there: the device hung up.
        let mut next = Front::connect(&server, features, 1);
        assert_eq!(next.read(0, 0, 0, 4096), 0);
        pattern(round, neighbour.shared.bytes(0, 4096));
        assert_eq!(neighbour.write(0, 0, 0, 4096), 0);
        assert_eq!(neighbour.read(0, 0, 4096, 4096), 0);
        assert_eq!(neighbour.shared.bytes(0, 4096), neighbour.shared.bytes(4096, 4096));
    }
    assert_eq!(server.stop().1.connections, 6);
    assert_eq!(other.stop().1.connections, 1);
}
