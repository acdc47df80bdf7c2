//! Maps that do not fit into memory: everything goes on, whatever is away, damaged, or closed meanwhile.

use crate::freeing::check_nothing_leaks;
use crate::rig::model::Model;
use crate::rig::{DISK, Rig};
use cleave_format::layout::{PIECE_SLICES, SLICE};
use cleave_host_core::*;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};
use std::time::Duration;

/// What a piece covers.
const GROUP: u64 = SLICE * PIECE_SLICES as u64;
const SIZE: u64 = 40 * GROUP;

fn rig(seed: u64, size: u64, map: u64) -> Rig {
    let mut rig = Rig::new(seed, size);
    rig.map = map;
    rig.destage.age_after = Duration::from_secs(5);
    rig
}

fn noise(seed: u64) -> Buffer {
    let random = SplitMix::new(seed);
    let mut data = Buffer::new(4096);
    data.chunks_exact_mut(8).for_each(|out| out.copy_from_slice(&random.next_u64().to_le_bytes()));
    data
}

fn begin(rig: &Rig, token: u64, operation: Operation) {
    let request = GuestRequest { token, vdisk: DISK, operation };
    rig.core().submit(request).expect("there is room");
    rig.host.as_ref().unwrap().0.wake();
}

fn end(rig: &Rig) -> GuestCompletion {
    let core = rig.core();
    let mut completions = Vec::new();
    let done = || {
        core.completions(&mut completions);
        !completions.is_empty()
    };
    assert!(rig.world.run_until(done, Duration::from_secs(60)), "{:?}", core.stats());
    assert_eq!(completions.len(), 1);
    completions.pop().unwrap()
}

fn ask(rig: &Rig, operation: Operation) -> GuestCompletion {
    begin(rig, 1, operation);
    end(rig)
}

fn read(group: u64) -> Operation {
    Operation::Read { offset: group * GROUP, length: 4096 }
}

fn write(group: u64, seed: u64) -> Operation {
    Operation::Write { offset: group * GROUP, data: noise(seed) }
}

fn shows(rig: &Rig, group: u64, seed: u64) {
    let found = ask(rig, read(group));
    assert_eq!(found.result, Ok(()));
    assert!(found.data.unwrap()[..] == noise(seed)[..], "group {group}");
}

/// Blocks beside those, in the first group, so that there are stripes.
const FILLER: u64 = 160;

fn fill(rig: &Rig, group: u64, round: u64) {
    let mut data = Buffer::new(FILLER as usize * 4096);
    data.chunks_exact_mut(4096).zip(0..).for_each(|(block, number)| {
        block.copy_from_slice(&noise(1000 * (round + 1) + number));
    });
    let filler = Operation::Write { offset: group * GROUP + (1 << 20), data };
    assert_eq!(ask(rig, filler).result, Ok(()));
    rig.world.run_for(Duration::from_secs(10));
}

/// Writes a block in each of the first groups, and closes the disk, which writes its map.
fn prepare(rig: &mut Rig, groups: u64) {
    (rig.destage.run_after, rig.destage.run_always) = (1000, 1000);
    rig.start_host();
    rig.open();
    for group in 0..groups {
        assert_eq!(ask(rig, write(group, group)).result, Ok(()));
    }
    // Enough commits for a run at the close.
    for round in 0..10 {
        fill(rig, 0, round);
    }
    assert!(rig.run(rig.core().close(DISK, Duration::from_secs(100))));
    assert_eq!(rig.pool.borrow().pieces[&DISK].1.len() as u64, groups);
    rig.kill_host();
    rig.start_host();
}

// C2, C20, C21, C23: with no room for the map at all, or for a little of it, over crashes.
#[test]
fn a_map_without_room_is_the_same_map() {
    for (seed, map) in [(1, 0), (2, 0), (3, 100 << 10), (4, 300 << 10)] {
        let mut rig = rig(seed, SIZE, map);
        let mut model = Model::new(seed, SIZE);
        let (mut read, mut evicted) = (0, 0);
        for round in 0..4 {
            let core = rig.start_host();
            rig.open();
            model.work(&rig, 1_500, 32);
            rig.world.run_for(Duration::from_secs(20 * round));
            for _ in 0..20 {
                model.submit(&core);
            }
            for _ in 0..model.random.below(300) {
                rig.world.step();
                model.complete(&core);
            }
            let stats = core.stats();
            read += stats.pages_read;
            evicted += stats.pages_evicted;
            rig.kill_host();
            model.crash();
        }
        rig.start_host();
        rig.open();
        model.read_all(&rig);
        rig.world.run_for(Duration::from_secs(60));
        let stats = rig.core().stats();
        assert!(read > 100 && evicted > 50, "{read} read, {evicted} evicted");
        // What changed since the last run stays, and runs are begun for that.
        assert!(stats.map_resident <= map + (100 << 10), "{stats:?}");
        check_nothing_leaks(&rig);
    }
}

// Whatever the map's size: one piece proves the key, one has the block.
#[test]
fn the_first_read_needs_one_piece() {
    for groups in [1, 8, 39] {
        let mut rig = rig(10 + groups, SIZE, 16 << 20);
        prepare(&mut rig, groups);
        rig.open();
        shows(&rig, groups - 1, groups - 1);
        let stats = rig.core().stats();
        assert_eq!(stats.pages_read, groups.min(2), "{groups} groups: {stats:?}");
        // The others are counted later, and stay where there is room.
        rig.world.run_for(Duration::from_secs(1));
        let stats = rig.core().stats();
        assert_eq!((stats.pages_read, stats.map_leaves), (groups, groups));
        assert_eq!(rig.core().vdisk_stats(DISK).unwrap().mapped_blocks, groups + FILLER);
        check_nothing_leaks(&rig);
    }
}

// Reads of one group share its fetch, and none waits for another group's.
#[test]
fn reads_of_a_group_share_its_fetch() {
    let mut rig = rig(20, SIZE, 16 << 20);
    prepare(&mut rig, 20);
    rig.open();
    let before = rig.core().stats().pages_read;
    for token in 0..10 {
        begin(&rig, token, read(7));
    }
    // A hole needs no piece: it is answered first.
    begin(&rig, 99, read(30));
    assert_eq!(end(&rig).token, 99);
    let core = rig.core();
    let mut completions = Vec::new();
    let done = || {
        core.completions(&mut completions);
        completions.len() == 10
    };
    assert!(rig.world.run_until(done, Duration::from_secs(10)));
    assert_eq!(core.stats().pages_read, before + 1);
    assert!(completions.iter().all(|completion| completion.result == Ok(())));
}

// What the write buffer has whole needs no piece.
#[test]
fn the_write_buffer_answers_without_the_map() {
    let mut rig = rig(21, SIZE, 16 << 20);
    prepare(&mut rig, 20);
    rig.open();
    let before = rig.core().stats().pages_read;
    assert_eq!(ask(&rig, write(12, 77)).result, Ok(()));
    shows(&rig, 12, 77);
    assert_eq!(rig.core().stats().pages_read, before);
}

// A piece that is lost fails what needs it, with an I/O error each, and nothing else; what is written over it waits
// in the log until the piece is back.
#[test]
fn a_lost_piece_fails_what_needs_it_alone() {
    let mut rig = rig(22, SIZE, 16 << 20);
    prepare(&mut rig, 20);
    rig.open();
    let stripe = rig.pool.borrow().pieces[&DISK].1[&13].stripe;
    let shards: Vec<(_, u8)> = (0..4).map(|shard| (stripe, shard)).collect();
    rig.pool.borrow_mut().rotten.extend(&shards);
    let partial = || {
        let mut data = Buffer::new(512);
        data.fill(3);
        Operation::Write { offset: 13 * GROUP, data }
    };
    for _ in 0..2 {
        assert_eq!(ask(&rig, read(13)).result, Err(GuestError::Unreadable));
        assert_eq!(ask(&rig, partial()).result, Err(GuestError::Unreadable));
    }
    assert_eq!(ask(&rig, read(30)).result, Ok(()));
    assert_eq!(ask(&rig, write(13, 78)).result, Ok(()));
    shows(&rig, 13, 78);
    fill(&rig, 31, 20);
    fill(&rig, 31, 21);
    let waits = |rig: &Rig| rig.core().unreleased(DISK).into_iter().collect::<Vec<u64>>();
    assert_eq!(waits(&rig), [13 * GROUP / 4096], "{:?}", rig.core().stats());
    shows(&rig, 13, 78);
    assert!(rig.core().stats().stripes_abandoned > 0, "it was tried");
    let known = rig.core().known_stripes(DISK).unwrap();
    assert!(!known.counted, "C20: nothing may be freed");
    rig.pool.borrow_mut().rotten.clear();
    rig.world.run_for(Duration::from_secs(100));
    fill(&rig, 31, 22);
    assert_eq!(waits(&rig), [0; 0], "{:?}", rig.core().stats());
    shows(&rig, 13, 78);
    assert_eq!(ask(&rig, partial()).result, Ok(()));
    check_nothing_leaks(&rig);
}

// One shard that rots, or a lost drive, is solved for a piece like for a block.
#[test]
fn a_damaged_piece_is_solved() {
    let mut rig = rig(23, SIZE, 0);
    prepare(&mut rig, 20);
    let pieces = rig.pool.borrow().pieces[&DISK].1.clone();
    for address in pieces.values() {
        rig.pool.borrow_mut().rotten.insert((address.stripe, address.shard() as u8));
    }
    rig.open();
    (0..20).for_each(|group| shows(&rig, group, group));
    let stats = rig.core().stats();
    assert!(stats.checks_failed >= 20 && stats.pages_failed == 0, "{stats:?}");
}

// While the controller is away, what needs a piece waits, and holes are read.
#[test]
fn fetches_wait_for_the_controller() {
    let mut rig = rig(24, SIZE, 16 << 20);
    prepare(&mut rig, 20);
    rig.open();
    rig.kill_controller();
    begin(&rig, 5, read(9));
    begin(&rig, 6, Operation::Write { offset: 11 * GROUP + 512, data: noise(1) });
    begin(&rig, 7, read(30));
    assert_eq!(end(&rig).token, 7);
    rig.world.run_for(Duration::from_secs(10));
    let mut completions = Vec::new();
    rig.core().completions(&mut completions);
    assert_eq!(completions.len(), 0);
    rig.start_controller();
    assert_eq!((end(&rig).result, end(&rig).result), (Ok(()), Ok(())));
    shows(&rig, 9, 9);
}

// C8: a disk that is closed during fetches takes them with it; opened again it has its own.
#[test]
fn closing_ends_fetches() {
    let mut rig = rig(25, SIZE, 0);
    prepare(&mut rig, 20);
    rig.open();
    rig.kill_controller();
    for group in 5..15 {
        begin(&rig, group, read(group));
    }
    assert!(!rig.run(rig.core().close(DISK, Duration::from_secs(1))), "its reads do not end");
    let mut completions = Vec::new();
    rig.core().completions(&mut completions);
    let failed = completions.iter().filter(|c| c.result == Err(GuestError::NotServed)).count();
    assert_eq!((completions.len(), failed), (10, 10));
    rig.start_controller();
    // The same process opens it under a newer epoch, while the answers to the old reads come in.
    rig.incarnation += 1;
    rig.open();
    (0..20).for_each(|group| shows(&rig, group, group));
    rig.world.run_for(Duration::from_secs(30));
    check_nothing_leaks(&rig);
    assert_eq!(rig.run(rig.core().delete(DISK)), Ok(()));
    assert_eq!(rig.core().stats().map_stripes, 0);
}

// Discards of what is away: the guest does not wait for pieces, and the space is freed all the same.
#[test]
fn discards_do_not_wait_for_the_map() {
    let mut rig = rig(26, SIZE, 0);
    prepare(&mut rig, 20);
    rig.open();
    let before = rig.core().stats().pages_read;
    for range in 0..SIZE.div_ceil(RANGE_MAX) {
        let offset = range * RANGE_MAX;
        let length = RANGE_MAX.min(SIZE - offset);
        assert_eq!(ask(&rig, Operation::Discard { offset, length }).result, Ok(()));
    }
    assert_eq!(rig.core().stats().pages_read, before);
    rig.world.run_for(Duration::from_secs(100));
    check_nothing_leaks(&rig);
    assert_eq!(rig.pool.borrow().stripes.len(), 0, "{:?}", rig.core().stats());
    assert_eq!(rig.core().vdisk_stats(DISK).unwrap().mapped_blocks, 0);
}
