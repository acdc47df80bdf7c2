//! What the write buffer takes in memory, by the allocator's own count: never more than the core says,
//! and never more than it may, whatever the guest writes.

use crate::rig::{DISK, Rig};
use cleave_host_core::*;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

const MIB: u64 = 1 << 20;
const SIZE: u64 = 64 * MIB;
/// Buffers kept for reuse, the simulated world's messages, and the like.
const OTHER: u64 = 2 * MIB;

thread_local! {
    static ALLOCATED: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, counting what the thread has allocated and not freed.
struct Counting;

fn count(bytes: i64) {
    // A thread that ends has nothing to count any more.
    let _ = ALLOCATED.try_with(|allocated| allocated.set(allocated.get() + bytes));
}

// SAFETY: every call goes to the system's allocator as it came; counting touches no memory but a cell of the thread.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: what the trait asks of callers is what the system's allocator asks.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: as for `alloc`.
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: the caller's promise is passed on; the pointer came from the same allocator.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocated() -> u64 {
    ALLOCATED.with(Cell::get).max(0) as u64
}

struct Guest {
    rig: Rig,
    core: HostCore,
    before: u64,
    token: u64,
}

impl Guest {
    /// A core whose write buffer may take 16 MiB of memory, before anything is written.
    fn new(seed: u64) -> Guest {
        let mut rig = Rig::new(seed, SIZE);
        rig.write_buffer = SIZE;
        rig.memory = Some(SIZE);
        let core = rig.start_host();
        rig.open();
        Guest { before: allocated(), rig, core, token: 0 }
    }

    /// False when there is no room.
    fn submit(&mut self, operation: Operation) -> bool {
        self.token += 1;
        let request = GuestRequest { token: self.token, vdisk: DISK, operation };
        if self.core.submit(request).is_err() {
            return false;
        }
        self.rig.host.as_ref().unwrap().0.wake();
        let mut completions = Vec::new();
        let done = || {
            self.core.completions(&mut completions);
            !completions.is_empty()
        };
        assert!(self.rig.world.run_until(done, Duration::from_secs(30)), "it is mirrored");
        assert_eq!(completions[0].result, Ok(()));
        true
    }

    /// Compares what is allocated with what the core says and may use. Ends the guest.
    fn check(self) -> CoreStats {
        let stats = self.core.stats();
        // What the scripted controller holds is not the host's.
        let with_controller = allocated();
        {
            let mut pool = self.rig.pool.borrow_mut();
            pool.records.clear();
            pool.released.clear();
            pool.shards.clear();
        }
        let taken = allocated().saturating_sub(self.before);
        assert!(with_controller >= allocated());
        let (said, limit) = (stats.buffer_memory, stats.buffer_memory_limit);
        assert!(taken <= said + said / 10 + OTHER, "{taken} are allocated, {said} are counted");
        assert!(said <= limit + limit / 10, "{said} of {limit}: {stats:?}");
        assert_eq!(limit, 16 * MIB);
        stats
    }
}

fn filled(length: usize, value: u8) -> Buffer {
    let mut data = Buffer::new(length);
    data.fill(value);
    data
}

fn noise(length: usize, random: &SplitMix) -> Buffer {
    let mut data = Buffer::new(length);
    data.chunks_exact_mut(8).for_each(|out| out.copy_from_slice(&random.next_u64().to_le_bytes()));
    data
}

// Rule 8: small records weigh more in memory than in the log; both are bounded.
#[test]
fn sectors_are_counted_as_what_they_take() {
    let mut guest = Guest::new(70);
    guest.rig.pool.borrow_mut().no_space = true;
    for sector in 0u64.. {
        let data = filled(512, sector as u8 | 1);
        if !guest.submit(Operation::Write { offset: sector * 4608 % SIZE, data }) {
            break;
        }
    }
    let stats = guest.check();
    assert!(stats.buffer_records > 3_000 && stats.buffer_bytes < 8 * MIB, "{stats:?}");
}

#[test]
fn discards_of_single_blocks_are_counted_as_what_they_take() {
    let mut guest = Guest::new(71);
    guest.rig.pool.borrow_mut().no_space = true;
    let mut block = 0;
    while guest.submit(Operation::Write { offset: block * 4096, data: filled(4096, 7) })
        && guest.submit(Operation::Discard { offset: block * 4096, length: 4096 })
    {
        block = (block + 1) % (SIZE / 4096);
    }
    guest.check();
}

#[test]
fn large_writes_fill_what_they_may() {
    let mut guest = Guest::new(72);
    guest.rig.pool.borrow_mut().no_space = true;
    let random = SplitMix::new(72);
    let mut at = 0;
    while guest.submit(Operation::Write { offset: at % SIZE, data: noise(128 << 10, &random) }) {
        at += 128 << 10;
    }
    let stats = guest.check();
    assert!(stats.buffer_bytes > 10 * MIB, "{stats:?}");
}

// A few blocks that stay keep the memory of many that were overwritten and released.
#[test]
fn content_that_stays_is_counted_with_the_chunk_that_it_keeps() {
    let mut guest = Guest::new(73);
    let random = SplitMix::new(73);
    let mut most = 0;
    for round in 0..600u64 {
        // Sixty-three blocks of a hot place, then one of its own.
        let hot = noise(63 * 4096, &random);
        guest.submit(Operation::Write { offset: 0, data: hot });
        let cold = (64 + round) % (SIZE / 4096) * 4096;
        guest.submit(Operation::Write { offset: cold, data: noise(4096, &random) });
        guest.rig.world.run_for(Duration::from_millis(1));
        let stats = guest.core.stats();
        most = most.max(stats.buffer_memory);
        assert!(stats.buffer_memory <= stats.buffer_memory_limit / 10 * 11, "{stats:?}");
    }
    assert!(most > 8 * MIB, "{most}");
    let stats = guest.check();
    assert!(stats.records_released > 100, "{stats:?}");
}
