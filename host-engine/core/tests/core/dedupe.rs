//! Content that is there already becomes references, on one disk and between disks, and the stripes that they
//! refer to stay for as long as anything names them.

use crate::rig::{DISK, Rig};
use cleave_format::ids::*;
use cleave_host_core::*;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};
use std::time::Duration;

const OTHER: VdiskId = VdiskId(5);
const SIZE: u64 = 32 << 20;
const BLOCK: usize = 4096;

fn rig(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, SIZE);
    rig.destage.age_after = Duration::from_secs(2);
    rig
}

fn open(rig: &Rig, vdisk: VdiskId) {
    let epoch = Epoch(rig.incarnation);
    let keys = rig.keys.clone();
    let request = OpenRequest { vdisk, size: SIZE, keys, epoch, gone: Vec::new() };
    rig.run(rig.core().open(request)).expect("the disk opens");
}

fn content(number: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let random = SplitMix::new(number);
    block.chunks_exact_mut(8).for_each(|out| out.copy_from_slice(&random.next_u64().to_le_bytes()));
    block
}

fn done(rig: &Rig) -> GuestCompletion {
    rig.host.as_ref().unwrap().0.wake();
    let mut completions = Vec::new();
    let core = rig.core();
    let there = || {
        core.completions(&mut completions);
        !completions.is_empty()
    };
    assert!(rig.world.run_until(there, Duration::from_secs(60)));
    completions.pop().unwrap()
}

fn submit(rig: &Rig, vdisk: VdiskId, operation: Operation) -> GuestCompletion {
    let mut request = GuestRequest { token: 1, vdisk, operation };
    while let Err(back) = rig.core().submit(request) {
        request = back;
        rig.world.run_for(Duration::from_millis(10));
    }
    let completion = done(rig);
    assert_eq!(completion.result, Ok(()));
    completion
}

/// Writes contents to blocks from `first` on, `together` blocks a request.
fn write(rig: &Rig, vdisk: VdiskId, first: u64, numbers: &[u64], together: usize) {
    for (index, batch) in numbers.chunks(together).enumerate() {
        let mut data = Buffer::new(batch.len() * BLOCK);
        for (block, number) in data.chunks_mut(BLOCK).zip(batch) {
            block.copy_from_slice(&content(*number));
        }
        let offset = (first + (index * together) as u64) * BLOCK as u64;
        submit(rig, vdisk, Operation::Write { offset, data });
    }
}

fn check(rig: &Rig, vdisk: VdiskId, first: u64, numbers: &[u64]) {
    for (index, number) in numbers.iter().enumerate() {
        let offset = (first + index as u64) * BLOCK as u64;
        let completion = submit(rig, vdisk, Operation::Read { offset, length: BLOCK as u32 });
        let data = completion.data.unwrap();
        assert!(data[..] == content(*number)[..], "block {} of {vdisk}", first + index as u64);
    }
}

fn numbers(range: std::ops::Range<u64>) -> Vec<u64> {
    range.collect()
}

/// Lets everything that waits go into stripes, and what they make dead be freed.
fn settle(rig: &Rig) {
    rig.world.run_for(Duration::from_secs(30));
}

// Two copies of one image cost hardly more than one, whatever the size of the requests.
#[test]
fn a_second_copy_costs_next_to_nothing() {
    for together in [1, 16] {
        let mut rig = rig(60);
        rig.start_host();
        open(&rig, DISK);
        open(&rig, OTHER);
        let image = numbers(0..4000);
        write(&rig, DISK, 0, &image, 16);
        settle(&rig);
        let once = rig.core().stats();
        write(&rig, OTHER, 100, &image, together);
        settle(&rig);
        let twice = rig.core().stats();
        let known = twice.deduplicated - once.deduplicated;
        assert!(known > 3_500, "{known} of 4000 blocks: {twice:?}");
        // Every block is in the pool once; the first copy's last ones, and a map run of each disk, took stripes since.
        assert_eq!(twice.stripe_frames, 4000, "{twice:?}");
        let stripes = twice.stripes_committed - once.stripes_committed;
        assert!(stripes <= 3, "{stripes} of {} stripes: {twice:?}", once.stripes_committed);
        // Commits without a stripe take none: a third copy needs nothing at all.
        write(&rig, OTHER, 4100, &image, together);
        settle(&rig);
        let thrice = rig.core().stats();
        assert_eq!(thrice.stripe_frames, 4000, "{thrice:?}");
        assert!(thrice.stripeless_commits >= once.stripeless_commits + 8, "{thrice:?}");
        let held = rig.pool.borrow().grants.len();
        assert!(held <= 5, "{held} stripes are granted");
        check(&rig, OTHER, 100, &image[..500]);
        // The first disk goes: what the second one refers to stays.
        rig.run(rig.core().delete(DISK)).unwrap();
        check(&rig, OTHER, 100, &image);
        rig.kill_host();
        rig.start_host();
        open(&rig, OTHER);
        check(&rig, OTHER, 100, &image);
    }
}

// New content between what is known is left until it fills a stripe, and what is known takes nothing of that.
#[test]
fn new_content_among_known_fills_its_stripes() {
    let mut rig = rig(64);
    // A record stays until its last block is committed: there is room for a stripe's worth of new blocks.
    rig.write_buffer = 32 << 20;
    rig.start_host();
    open(&rig, DISK);
    open(&rig, OTHER);
    let image = numbers(0..4000);
    write(&rig, DISK, 0, &image, 16);
    settle(&rig);
    let once = rig.core().stats();
    let changed: Vec<u64> = image
        .iter()
        .map(|number| if number % 8 == 3 { number + 10_000 } else { *number })
        .collect();
    write(&rig, OTHER, 0, &changed, 16);
    settle(&rig);
    let twice = rig.core().stats();
    assert_eq!(twice.stripe_frames, 4500, "{twice:?}");
    let stripes = twice.stripes_committed - once.stripes_committed;
    // The first disk's last blocks, the 500 new ones, and map runs.
    assert!(stripes <= 3, "{stripes} beside {} stripes: {twice:?}", once.stripes_committed);
    check(&rig, OTHER, 0, &changed);
    // Some references are committed, and frames between them are not, when the engine dies.
    write(&rig, OTHER, 4000, &changed[..1500], 16);
    rig.world.run_for(Duration::from_secs(1));
    rig.kill_host();
    rig.start_host();
    open(&rig, DISK);
    open(&rig, OTHER);
    check(&rig, OTHER, 0, &changed);
    check(&rig, OTHER, 4000, &changed[..1500]);
    settle(&rig);
    check(&rig, OTHER, 4000, &changed[..1500]);
    check(&rig, DISK, 0, &image);
}

#[test]
fn content_that_comes_twice_at_once_is_there_once() {
    let mut rig = rig(61);
    rig.start_host();
    open(&rig, DISK);
    let twice: Vec<u64> = (0..3000).map(|block| block % 1000 / 2).collect();
    write(&rig, DISK, 0, &twice, 16);
    settle(&rig);
    let stats = rig.core().stats();
    assert!(stats.stripe_frames + stats.deduplicated >= 2_500, "{stats:?}");
    assert!(stats.stripe_frames <= 500, "{stats:?}");
    check(&rig, DISK, 0, &twice);
}

// C20: the originals are given back; the copies keep their stripes, until they go too.
#[test]
fn references_keep_their_stripes() {
    let mut rig = rig(62);
    rig.start_host();
    open(&rig, DISK);
    open(&rig, OTHER);
    let image = numbers(0..2000);
    write(&rig, DISK, 0, &image, 16);
    settle(&rig);
    write(&rig, OTHER, 0, &image[..1600], 16);
    settle(&rig);
    submit(&rig, DISK, Operation::Discard { offset: 0, length: SIZE });
    settle(&rig);
    check(&rig, OTHER, 0, &image[..1600]);
    rig.kill_host();
    rig.start_host();
    open(&rig, OTHER);
    check(&rig, OTHER, 0, &image[..1600]);
    let before = rig.pool.borrow().stripes.len();
    assert!(before >= 3);
    submit(&rig, OTHER, Operation::Discard { offset: 0, length: SIZE });
    settle(&rig);
    assert!(rig.pool.borrow().stripes.len() < 3, "{} stripes", rig.pool.borrow().stripes.len());
}

// The index is useful again soon after a restart.
#[test]
fn a_restarted_engine_knows_its_content_again() {
    let mut rig = rig(63);
    rig.start_host();
    open(&rig, DISK);
    let image = numbers(0..4000);
    write(&rig, DISK, 0, &image, 16);
    settle(&rig);
    rig.kill_host();
    rig.start_host();
    open(&rig, DISK);
    rig.world.run_for(Duration::from_secs(2));
    let known = rig.core().stats().index_entries;
    assert!(known > 3_500, "{known} of 4000 blocks are known");
    write(&rig, DISK, 4000, &image, 16);
    settle(&rig);
    assert!(rig.core().stats().deduplicated > 3_500, "{:?}", rig.core().stats());
    check(&rig, DISK, 4000, &image[..200]);
}
