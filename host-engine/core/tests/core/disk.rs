//! A disk over a host core, against a model: writes, merges, zeroes, discards and reads, through
//! destage, map runs, crashes, broken connections, lost drives and rot.

use crate::rig::model::Model;
use crate::rig::{DISK, Rig};
use cleave_codec::Keys;
use cleave_format::ids::*;
use cleave_host_core::*;
use cleave_runtime::random::Random;
use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::time::Duration;

const SIZE: u64 = 9 << 20;

#[test]
fn reads_show_what_was_written() {
    let mut rig = Rig::new(1, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(11, SIZE);
    model.work(&rig, 8_000, 32);
    let stats = rig.core().stats();
    assert!(stats.stripes_committed > 3 && stats.records_released > 100, "{stats:?}");
    assert!(stats.reads_pool > 100 && stats.checks_failed == 0, "{stats:?}");
    assert!(rig.pool.borrow().runs > 0, "maps were written");
    model.read_all(&rig);
}

#[test]
fn encrypted_disks_too() {
    let mut rig = Rig::new(2, SIZE);
    rig.keys = Some(Keys::derive(NonZeroU32::new(5).unwrap(), &[3; 32]));
    rig.start_host();
    rig.open();
    let mut model = Model::new(12, SIZE);
    model.work(&rig, 1_500, 16);
    rig.kill_host();
    model.crash();
    rig.start_host();
    rig.open();
    model.read_all(&rig);
    // Another key, and none at all, are found before anything is served.
    for keys in [Some(Keys::derive(NonZeroU32::new(5).unwrap(), &[4; 32])), None] {
        rig.kill_host();
        rig.keys = keys;
        rig.start_host();
        let error = rig.try_open().unwrap_err();
        assert!(matches!(error, HostError::Key { .. }), "{error}");
    }
}

#[test]
fn killed_engines_lose_nothing() {
    for seed in 0..6 {
        let mut rig = Rig::new(100 + seed, SIZE);
        let mut model = Model::new(seed, SIZE);
        for _ in 0..5 {
            let core = rig.start_host();
            rig.open();
            model.read_all(&rig);
            model.work(&rig, 600, 24);
            // Something in flight at the kill.
            for _ in 0..20 {
                model.submit(&core);
            }
            for _ in 0..model.random.below(200) {
                rig.world.step();
                model.complete(&core);
            }
            rig.kill_host();
            model.crash();
        }
        rig.start_host();
        rig.open();
        model.read_all(&rig);
    }
}

// C2: the log may hold records for longer than their neighbours, in any pattern.
#[test]
fn old_records_revive_nothing() {
    for seed in 0..4 {
        let mut rig = Rig::new(300 + seed, SIZE);
        // Footers only: a run may forget versions that only records released by now could meet.
        rig.destage.run_after = 10_000;
        rig.destage.run_always = 10_000;
        let mut model = Model::new(30 + seed, SIZE);
        rig.start_host();
        rig.open();
        model.work(&rig, 5_000, 32);
        rig.kill_host();
        model.crash();
        {
            let mut pool = rig.pool.borrow_mut();
            let mut released = std::mem::take(&mut pool.released);
            released.retain(|_, _| model.random.below(2) == 0);
            assert!(released.len() > 200);
            pool.records.append(&mut released);
        }
        rig.start_host();
        rig.open();
        model.read_all(&rig);
        model.work(&rig, 1_000, 32);
        rig.kill_host();
        model.crash();
        rig.start_host();
        rig.open();
        model.read_all(&rig);
    }
}

#[test]
fn controllers_come_and_go() {
    for seed in 0..4 {
        let mut rig = Rig::new(200 + seed, SIZE);
        let mut model = Model::new(seed, SIZE);
        let core = rig.start_host();
        rig.open();
        for round in 0..8 {
            model.work(&rig, 300, 24);
            for _ in 0..24 {
                model.submit(&core);
            }
            for _ in 0..model.random.below(150) {
                rig.world.step();
                model.complete(&core);
            }
            if round % 2 == 0 {
                rig.kill_controller();
                rig.world.run_for(Duration::from_millis(model.random.below(3_000)));
                rig.start_controller();
            } else {
                rig.world.break_connections("host-1", "datanode-1-a");
            }
        }
        model.work(&rig, 100, 8);
        model.read_all(&rig);
        assert!(core.stats().connections > 10);
    }
}

#[test]
fn lost_drives_and_rot_are_solved() {
    let mut rig = Rig::new(3, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(13, SIZE);
    model.work(&rig, 5_000, 32);
    // One shard of every stripe is rotten: its drive does not say so.
    let stripes: Vec<StripeId> = rig.pool.borrow().stripes.keys().copied().collect();
    for (index, stripe) in stripes.iter().enumerate() {
        rig.pool.borrow_mut().rotten.insert((*stripe, index as u8 % 4));
    }
    model.read_all(&rig);
    let stats = rig.core().stats();
    assert!(stats.checks_failed > 0 && stats.reads_solved > 0, "{stats:?}");
    // It is told, to have it mended; and nothing that is sound.
    let told = std::mem::take(&mut rig.pool.borrow_mut().told_damaged);
    let rotten: BTreeSet<StripeId> =
        rig.pool.borrow().rotten.iter().map(|(stripe, _)| *stripe).collect();
    assert!(!told.is_empty() && told.is_subset(&rotten), "{told:?}");
    rig.pool.borrow_mut().rotten.clear();
    // Two drives are lost; the host learns it by faults, then by the next welcome.
    rig.pool.borrow_mut().lost.extend([DriveId(2), DriveId(3)]);
    model.read_all(&rig);
    model.work(&rig, 1_500, 32);
    rig.kill_host();
    model.crash();
    rig.start_host();
    rig.open();
    model.read_all(&rig);
    model.work(&rig, 2_500, 32);
    assert!(rig.core().stats().stripes_committed > 0);
}

/// C16: a host asks again where stripes lie whose shards are gone from where it knew them.
#[test]
fn shards_that_were_rebuilt_elsewhere_are_found() {
    let mut rig = Rig::new(6, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(16, SIZE);
    model.work(&rig, 5_000, 32);
    model.read_all(&rig);
    rig.pool.borrow_mut().lost.extend([DriveId(2), DriveId(3)]);
    model.read_all(&rig);
    assert!(rig.core().stats().reads_solved > 0);
    for _ in 0..3 {
        rig.pool.borrow_mut().move_shards();
        // It asks again after a while, and reads directly from then on.
        rig.world.run_for(Duration::from_secs(11));
        model.read_all(&rig);
        let solved = rig.core().stats().reads_solved;
        model.read_all(&rig);
        assert_eq!(rig.core().stats().reads_solved, solved);
    }
    // At each moment, two others are gone: what it knows of a stripe is old while it solves.
    model.work(&rig, 500, 32);
    rig.pool.borrow_mut().move_shards();
    rig.pool.borrow_mut().lost.extend([DriveId(5)]);
    rig.pool.borrow_mut().lost.remove(&DriveId(2));
    model.read_all(&rig);
    rig.kill_host();
    model.crash();
    rig.start_host();
    rig.open();
    rig.pool.borrow_mut().move_shards();
    model.read_all(&rig);
}

#[test]
fn failing_shards_cost_no_data() {
    let mut rig = Rig::new(4, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(14, SIZE);
    for round in 0..10 {
        rig.pool.borrow_mut().fail_writes = round % 4;
        model.work(&rig, 300, 16);
    }
    let stats = rig.core().stats();
    assert!(stats.stripes_abandoned > 0 && stats.stripes_committed > 0, "{stats:?}");
    rig.kill_host();
    model.crash();
    rig.start_host();
    rig.open();
    model.read_all(&rig);
}

#[test]
fn a_full_pool_stalls_writes_and_not_reads() {
    let mut rig = Rig::new(5, SIZE);
    rig.write_buffer = 2 << 20;
    let core = rig.start_host();
    rig.open();
    rig.pool.borrow_mut().no_space = true;
    let mut model = Model::new(15, SIZE);
    for _ in 0..20_000 {
        model.submit(&core);
        rig.world.step();
        model.complete(&core);
    }
    assert!(model.refused > 0 && model.reads > 100);
    let events: Vec<Event> = std::iter::from_fn(|| core.next_event()).collect();
    assert!(events.iter().any(|event| matches!(event, Event::Shortage { .. })), "{events:?}");
    assert!(core.stats().shortage.is_some());
    let records: u64 = rig.pool.borrow().records.values().map(|(_, r)| r.len() as u64).sum();
    assert!(records <= 2 << 20, "the log's quota is kept");
    rig.pool.borrow_mut().no_space = false;
    model.work(&rig, 500, 16);
    assert_eq!(core.stats().shortage, None);
    model.read_all(&rig);
}

#[test]
fn a_lost_log_is_filled_from_the_host() {
    let mut rig = Rig::new(6, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(16, SIZE);
    model.work(&rig, 700, 16);
    for _ in 0..3 {
        let core = rig.core();
        for _ in 0..20 {
            model.submit(&core);
        }
        rig.kill_controller();
        rig.pool.borrow_mut().lose_log();
        rig.start_controller();
        model.work(&rig, 300, 16);
        rig.kill_host();
        model.crash();
        rig.start_host();
        rig.open();
        model.read_all(&rig);
        model.work(&rig, 200, 16);
    }
}

#[test]
fn a_fenced_engine_stops_serving() {
    let mut rig = Rig::new(7, SIZE);
    let core = rig.start_host();
    rig.open();
    let mut model = Model::new(17, SIZE);
    model.work(&rig, 50, 4);
    rig.pool.borrow_mut().seals.insert(DISK, Epoch(99));
    let operation = Operation::WriteZeroes { offset: 0, length: SIZE, unmap: true };
    core.submit(GuestRequest { token: 1, vdisk: DISK, operation }).unwrap();
    rig.host.as_ref().unwrap().0.wake();
    let mut completions = Vec::new();
    let done = || {
        core.completions(&mut completions);
        !completions.is_empty()
    };
    assert!(rig.world.run_until(done, Duration::from_secs(5)));
    assert_eq!(completions[0].result, Err(GuestError::NotServed));
    assert_eq!(core.next_event(), Some(Event::Fenced { vdisk: DISK }));
}

#[test]
fn closing_writes_the_map_and_deleting_ends_it() {
    let mut rig = Rig::new(8, SIZE);
    rig.destage.run_after = 1_000;
    let core = rig.start_host();
    rig.open();
    let mut model = Model::new(18, SIZE);
    // Before enough stripes are dead for a run of their own.
    let behind = || core.vdisk_stats(DISK).unwrap().commits_after_frontier;
    while behind() < 8 && rig.pool.borrow().runs == 0 {
        model.work(&rig, 300, 32);
    }
    assert!(behind() >= 8, "only {} commits are not in the map that is durable", behind());
    assert_eq!(rig.pool.borrow().runs, 0);
    assert!(rig.run(core.close(DISK, Duration::from_secs(20))), "everything is done in time");
    assert_eq!(rig.pool.borrow().runs, 1);
    assert_eq!(core.vdisk_stats(DISK), None);
    rig.kill_host();
    let core = rig.start_host();
    rig.open();
    assert!(core.vdisk_stats(DISK).unwrap().commits_after_frontier <= 2);
    model.read_all(&rig);
    core.resize(DISK, SIZE + (1 << 20)).unwrap();
    assert!(core.resize(DISK, SIZE).is_err());
    rig.run(core.delete(DISK)).unwrap();
    assert!(rig.pool.borrow().records.is_empty());
}

#[test]
fn a_quiet_host_writes_no_near_empty_stripes() {
    let mut rig = Rig::new(9, SIZE);
    let core = rig.start_host();
    rig.open();
    let mut model = Model::new(19, SIZE);
    model.work(&rig, 20, 4);
    rig.world.run_for(Duration::from_secs(300));
    assert_eq!(core.stats().stripes_committed, 0);
    assert_eq!(core.stats().buffer_records as usize, rig.pool.borrow().records.len());
}

// Rule 8: a request that finds no room gets it, also when little else is going on.
#[test]
fn a_large_request_is_not_starved_by_old_content() {
    let mut rig = Rig::new(10, SIZE);
    rig.write_buffer = 1 << 20;
    let core = rig.start_host();
    rig.open();
    let mut model = Model::new(20, SIZE);
    model.work(&rig, 12, 2);
    for token in 1_000_000..1_000_010 {
        let mut data = cleave_runtime::buffer::Buffer::new(900 << 10);
        data.chunks_exact_mut(8).for_each(|out| {
            out.copy_from_slice(&model.random.next_u64().to_le_bytes());
        });
        let mut request = GuestRequest {
            token,
            vdisk: DISK,
            operation: Operation::Write { offset: (token % 4) << 20, data },
        };
        let mut completions = Vec::new();
        let mut waited = 0;
        while let Err(back) = core.submit(request) {
            request = back;
            waited += 1;
            assert!(waited < 100_000, "{:?}", core.stats());
            rig.world.step();
        }
        rig.host.as_ref().unwrap().0.wake();
        let done = || {
            core.completions(&mut completions);
            !completions.is_empty()
        };
        assert!(rig.world.run_until(done, Duration::from_secs(10)));
        assert_eq!(completions[0].result, Ok(()));
    }
}

#[test]
fn the_same_seed_gives_the_same_trace() {
    let run = || {
        let mut rig = Rig::new(42, SIZE);
        rig.start_host();
        rig.open();
        Model::new(42, SIZE).work(&rig, 1_000, 32);
        rig.world.trace_hash()
    };
    assert_eq!(run(), run());
}

// What `stats` shows: one time for each record, and not how long the core slept before it took the write.
#[test]
fn the_time_to_the_mirror_begins_when_a_write_is_taken() {
    let mut rig = Rig::new(43, SIZE);
    let core = rig.start_host();
    rig.open();
    core.mirror_times(&mut Vec::new());
    let mut times = Vec::new();
    for token in 1..=5u64 {
        rig.world.run_for(Duration::from_secs(10));
        let mut data = cleave_runtime::buffer::Buffer::new(4096);
        data.fill(token as u8);
        let operation = Operation::Write { offset: token * 4096, data };
        core.submit(GuestRequest { token, vdisk: DISK, operation }).unwrap();
        rig.host.as_ref().unwrap().0.wake();
        rig.world.run_for(Duration::from_millis(100));
        core.mirror_times(&mut times);
    }
    assert_eq!(times.len(), 5, "a record each: {times:?}");
    let sound = |time: &Duration| *time > Duration::ZERO && *time < Duration::from_millis(100);
    assert!(times.iter().all(sound), "{times:?}");
    // Another log takes the same records: that is no time of theirs.
    rig.kill_controller();
    rig.pool.borrow_mut().lose_log();
    rig.start_controller();
    rig.world.run_for(Duration::from_secs(5));
    core.mirror_times(&mut times);
    assert_eq!((times.len(), rig.pool.borrow().records.len()), (5, 5));
}
