//! The device against libblkio's `virtio-blk-vhost-user` driver, the one that applications use: its
//! property checks, its memory regions, and queues that wait on an eventfd as well as ones that poll.

mod common;

use blkio::{Blkio, BlkioStartOutcome, Blkioq, Completion, MemoryRegion, ReqFlags};
use common::{Manner, Server};
use std::mem::MaybeUninit;
use std::time::Duration;

const CAPACITY: u64 = 16 << 20;
const MEMORY: usize = 4 << 20;

struct Front {
    // Before `blkio`, whose memory they use.
    queues: Vec<Blkioq>,
    blkio: Blkio,
    region: MemoryRegion,
}

impl Front {
    fn open(server: &Server) -> Blkio {
        let mut blkio = Blkio::new("virtio-blk-vhost-user").unwrap();
        blkio.set_str("path", server.socket.to_str().unwrap()).unwrap();
        blkio
    }

    /// One queue that waits and one that polls.
    fn connect(server: &Server) -> Front {
        let mut blkio = Front::open(server);
        blkio.connect().unwrap();
        assert_eq!(blkio.get_u64("capacity").unwrap(), CAPACITY);
        blkio.set_i32("num-queues", 1).unwrap();
        blkio.set_i32("num-poll-queues", 1).unwrap();
        let BlkioStartOutcome { mut queues, poll_queues } = blkio.start().unwrap();
        queues.extend(poll_queues);
        let region = blkio.alloc_mem_region(MEMORY).unwrap();
        blkio.map_mem_region(&region).unwrap();
        Front { queues, blkio, region }
    }

    /// Only looked at while no request is in flight.
    #[allow(clippy::mut_from_ref)]
    fn bytes(&self, at: usize, length: usize) -> &mut [u8] {
        assert!(at + length <= self.region.len);
        // SAFETY: inside of the region, which lives as long as `blkio`; tests use disjoint parts.
        unsafe { std::slice::from_raw_parts_mut((self.region.addr as *mut u8).add(at), length) }
    }

    fn pointer(&self, at: usize) -> *mut u8 {
        self.bytes(at, 1).as_mut_ptr()
    }

    /// Waits for `count` completions of a queue; gives (user data, result), sorted.
    fn wait(&mut self, queue: usize, count: usize) -> Vec<(usize, i32)> {
        let mut space = [const { MaybeUninit::<Completion>::uninit() }; 64];
        // Far beyond what it takes: a device that forgets a request fails the test.
        let mut limit = Duration::from_secs(60);
        let space = &mut space[..count];
        let filled = self.queues[queue].do_io(space, count, Some(&mut limit), None).unwrap();
        assert_eq!(filled, count);
        let mut done: Vec<_> = space
            .iter()
            .map(|one| {
                // SAFETY: the queue filled as many as were waited for.
                let one = unsafe { one.assume_init_ref() };
                (one.user_data, one.ret)
            })
            .collect();
        done.sort_unstable();
        done
    }

    fn write(&mut self, queue: usize, offset: u64, at: usize, length: usize) -> i32 {
        let start = self.pointer(at);
        self.queues[queue].write(offset, start, length, 7, ReqFlags::empty());
        self.wait(queue, 1)[0].1
    }

    fn read(&mut self, queue: usize, offset: u64, at: usize, length: usize) -> i32 {
        let start = self.pointer(at);
        self.queues[queue].read(offset, start, length, 7, ReqFlags::empty());
        self.wait(queue, 1)[0].1
    }
}

fn pattern(seed: usize, target: &mut [u8]) {
    for (index, byte) in target.iter_mut().enumerate() {
        *byte = (seed * 131 + index * 7 + index / 251) as u8;
    }
}

#[test]
fn everything_it_can_ask_for() {
    let server = Server::start(CAPACITY, Manner::Backwards, |_| {});
    let mut front = Front::connect(&server);
    for queue in 0..2 {
        pattern(queue + 1, front.bytes(0, 64 << 10));
        let offset = (queue as u64) << 20;
        assert_eq!(front.write(queue, offset, 0, 64 << 10), 0);
        assert_eq!(front.read(1 - queue, offset, 1 << 20, 64 << 10), 0);
        assert_eq!(front.bytes(0, 64 << 10), front.bytes(1 << 20, 64 << 10));

        let requests = &mut front.queues[queue];
        requests.flush(1, ReqFlags::empty());
        requests.discard(offset, 4096, 2, ReqFlags::empty());
        requests.write_zeroes(offset + 8192, 4096, 3, ReqFlags::empty());
        requests.write_zeroes(offset + 16384, 4096, 4, ReqFlags::NO_UNMAP);
        assert_eq!(front.wait(queue, 4), [(1, 0), (2, 0), (3, 0), (4, 0)]);
        assert_eq!(front.read(queue, offset, 1 << 20, 64 << 10), 0);
        for zeroed in [0, 8192, 16384] {
            front.bytes(zeroed, 4096).fill(0);
        }
        assert_eq!(front.bytes(0, 64 << 10), front.bytes(1 << 20, 64 << 10));

        // Beyond the end, and without a flush of its own a write that asks for one.
        assert!(front.write(queue, CAPACITY, 0, 512) < 0);
        let start = front.pointer(0);
        front.queues[queue].write(offset, start, 4096, 5, ReqFlags::FUA);
        assert_eq!(front.wait(queue, 1), [(5, 0)]);
    }
    drop(front);
    let counts = server.stop().1;
    assert_eq!((counts.writes, counts.reads, counts.flushes, counts.discards), (4, 4, 4, 6));
    assert_eq!((counts.failed, counts.faults), (2, 0));
}

#[test]
fn vectors_and_full_queues_on_both_queues() {
    let server = Server::start(CAPACITY, Manner::Backwards, |_| {});
    let mut front = Front::connect(&server);
    pattern(3, front.bytes(0, 1 << 20));
    for round in 0..9 {
        for queue in 0..2 {
            for index in 0..32 {
                let at = (queue * 32 + index) * (16 << 10);
                // Written from two pieces in the wrong order.
                let pieces = [
                    libc::iovec { iov_base: front.pointer(at + 4096).cast(), iov_len: 12 << 10 },
                    libc::iovec { iov_base: front.pointer(at).cast(), iov_len: 4096 },
                ];
                let offset = (round << 20) + at as u64;
                let flags = ReqFlags::empty();
                front.queues[queue].writev(offset, pieces.as_ptr(), 2, index, flags);
            }
        }
        for queue in 0..2 {
            let done = front.wait(queue, 32);
            assert!(done.iter().enumerate().all(|(index, got)| *got == (index, 0)));
        }
    }
    let sent = front.bytes(0, 1 << 20).to_vec();
    drop(front);
    let (content, _) = server.stop();
    for round in 0..9 {
        let pairs = sent.chunks(16 << 10).zip(content[round << 20..][..1 << 20].chunks(16 << 10));
        for (sent, got) in pairs {
            assert!(sent[4096..] == got[..12 << 10] && sent[..4096] == got[12 << 10..]);
        }
    }
}

#[test]
fn memory_comes_and_goes_between_requests() {
    let server = Server::start(CAPACITY, Manner::Prompt, |_| {});
    let mut front = Front::connect(&server);
    front.bytes(0, 4096).fill(5);
    assert_eq!(front.write(0, 0, 0, 4096), 0);
    for _ in 0..5 {
        let more = front.blkio.alloc_mem_region(1 << 20).unwrap();
        front.blkio.map_mem_region(&more).unwrap();
        front.queues[1].read(0, more.addr as *mut u8, 4096, 1, ReqFlags::empty());
        assert_eq!(front.wait(1, 1), [(1, 0)]);
        // SAFETY: inside of the region, and the device is done with it.
        let got = unsafe { std::slice::from_raw_parts(more.addr as *const u8, 4096) };
        assert!(got.iter().all(|byte| *byte == 5));
        front.blkio.unmap_mem_region(&more);
        front.blkio.free_mem_region(&more);
    }
    assert_eq!(front.read(0, 0, 8192, 4096), 0);
}

#[test]
fn what_the_device_offers_is_what_it_sees() {
    let server = Server::start(CAPACITY, Manner::Prompt, |config| {
        config.logical_block = 4096;
        config.read_only = true;
    });
    let mut blkio = Front::open(&server);
    blkio.connect().unwrap();
    assert_eq!(blkio.get_i32("request-alignment").unwrap(), 4096);
    assert!(blkio.get_i32("max-queues").unwrap() >= 2);
    assert!(blkio.get_u64("max-mem-regions").unwrap() >= 2);
    assert!(blkio.get_u64("max-discard-len").unwrap() > 0);
    assert!(blkio.start().is_err(), "it has to say that it only reads");
    drop(blkio);
    let mut blkio = Front::open(&server);
    blkio.set_bool("read-only", true).unwrap();
    blkio.connect().unwrap();
    blkio.start().unwrap();
}
