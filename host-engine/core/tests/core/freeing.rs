//! Stripes that nothing names are freed, whatever happens between, and none that something names.

use crate::rig::model::Model;
use crate::rig::{DISK, Rig};
use cleave_format::ids::StripeId;
use cleave_host_core::*;
use std::collections::BTreeSet;
use std::time::Duration;

const SIZE: u64 = 9 << 20;

fn rig(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, SIZE);
    rig.destage.age_after = Duration::from_secs(5);
    rig
}

/// What the pool lists for the disk is what the host knows of it, and no more (C20).
pub fn check_nothing_leaks(rig: &Rig) {
    let pool = rig.pool.borrow();
    let listed = pool.holders.iter().filter(|(_, holders)| holders.contains_key(&DISK));
    let listed: BTreeSet<StripeId> = listed.map(|(stripe, _)| *stripe).collect();
    let KnownStripes { named, unnamed, .. } = rig.core().known_stripes(DISK).unwrap();
    assert!(named.is_subset(&listed), "a stripe that the map names is listed");
    let known: BTreeSet<StripeId> = &named | &unnamed;
    assert_eq!(listed, known);
    assert_eq!(pool.stripes.len(), pool.holders.len());
}

fn discard_everything(rig: &Rig) {
    let core = rig.core();
    let operation = Operation::Discard { offset: 0, length: SIZE };
    core.submit(GuestRequest { token: u64::MAX, vdisk: DISK, operation }).unwrap();
    rig.host.as_ref().unwrap().0.wake();
    let mut completions = Vec::new();
    let done = || {
        core.completions(&mut completions);
        !completions.is_empty()
    };
    assert!(rig.world.run_until(done, Duration::from_secs(5)));
    assert_eq!(completions[0].result, Ok(()));
}

// 9 MiB are overwritten again and again: 2 MiB a stripe, so that a dozen of them hold the disk and what is on
// its way.
#[test]
fn a_disk_that_is_overwritten_takes_no_more_and_more_space() {
    let mut rig = rig(1);
    rig.start_host();
    rig.open();
    let mut model = Model::new(31, SIZE);
    let mut most = 0;
    for _ in 0..12 {
        model.work(&rig, 3_000, 32);
        rig.world.run_for(Duration::from_secs(30));
        most = most.max(rig.pool.borrow().stripes.len());
        check_nothing_leaks(&rig);
    }
    let stats = rig.core().stats();
    assert!(stats.stripes_committed > 60, "{stats:?}");
    assert!(most < 40, "{most} stripes of {} are left", stats.stripes_committed);
    model.read_all(&rig);
}

#[test]
fn discarded_content_is_freed() {
    let mut rig = rig(2);
    rig.start_host();
    rig.open();
    let mut model = Model::new(32, SIZE);
    model.work(&rig, 5_000, 32);
    assert!(rig.pool.borrow().stripes.len() > 5);
    discard_everything(&rig);
    rig.world.run_for(Duration::from_secs(30));
    let KnownStripes { named, unnamed, .. } = rig.core().known_stripes(DISK).unwrap();
    assert_eq!((named.len(), unnamed.len()), (0, 0), "{:?}", rig.core().stats());
    assert_eq!(rig.pool.borrow().stripes.len(), 0);
    rig.kill_host();
    rig.start_host();
    rig.open();
    rig.world.run_for(Duration::from_secs(1));
    check_nothing_leaks(&rig);
    assert_eq!(rig.core().vdisk_stats(DISK).unwrap().mapped_blocks, 0);
}

// A pool without a free slot takes discards, which need none, and has slots again.
#[test]
fn discards_help_a_full_pool() {
    let mut rig = rig(3);
    rig.start_host();
    rig.open();
    let mut model = Model::new(33, SIZE);
    model.work(&rig, 5_000, 32);
    rig.pool.borrow_mut().no_space = true;
    discard_everything(&rig);
    rig.world.run_for(Duration::from_secs(60));
    assert_eq!(rig.pool.borrow().stripes.len(), 0, "{:?}", rig.core().stats());
}

// C21: engines that are killed at any moment report nothing twice, and the next one reports what they did not.
#[test]
fn killed_engines_leak_nothing() {
    let mut freed = 0;
    for seed in 0..4 {
        let mut rig = rig(400 + seed);
        let mut model = Model::new(40 + seed, SIZE);
        for _ in 0..6 {
            let core = rig.start_host();
            rig.open();
            model.read_all(&rig);
            model.work(&rig, 2_000, 24);
            for _ in 0..20 {
                model.submit(&core);
            }
            for _ in 0..cleave_runtime::random::Random::below(&model.random, 400) {
                rig.world.step();
                model.complete(&core);
            }
            rig.kill_host();
            model.crash();
        }
        rig.start_host();
        rig.open();
        rig.world.run_for(Duration::from_secs(60));
        check_nothing_leaks(&rig);
        freed += rig.pool.borrow().freed;
        model.read_all(&rig);
    }
    assert!(freed > 5, "{freed} freed");
}

#[test]
fn freeing_goes_on_through_broken_connections() {
    for seed in 0..3 {
        let mut rig = rig(500 + seed);
        let mut model = Model::new(50 + seed, SIZE);
        rig.start_host();
        rig.open();
        for _ in 0..10 {
            model.work(&rig, 600, 32);
            rig.world.break_connections("host-1", "datanode-1-a");
        }
        model.work(&rig, 1_000, 32);
        rig.world.run_for(Duration::from_secs(60));
        check_nothing_leaks(&rig);
        model.read_all(&rig);
    }
}
