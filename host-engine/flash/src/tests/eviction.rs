//! Eviction: room is made, what is read stays.

use super::*;
use cleave_runtime::random::{Random, SplitMix};

#[test]
fn the_oldest_goes_and_what_was_read_stays() {
    let rig = Rig::new(1, 32 * MIB);
    let capacity = rig.flash.stats().devices[0].capacity / PART as u64;
    rig.store(0, 0, 4);
    for stripe in 1..3 * capacity / 4 {
        rig.store(stripe, 0, 4);
        assert!(rig.has(0, 2), "read all the time, here all the time; stripe {stripe}");
    }
    rig.settle();
    let stats = rig.flash.stats();
    assert!(stats.parts_evicted > capacity && stats.parts_moved >= 2, "{stats:?}");
    assert!(stats.parts * 10 >= capacity * 9, "it is nearly full: {stats:?}");
    assert!(!rig.has(1, 0) && rig.has(3 * capacity / 4 - 1, 3));
}

/// Everything is hot: then half of it still goes, and it ends.
#[test]
fn there_is_always_room() {
    let rig = Rig::new(2, 16 * MIB);
    for stripe in 0..300 {
        rig.store(stripe, 0, 4);
        for part in 0..4 {
            (0..3).for_each(|_| assert!(rig.has(stripe, part)));
        }
    }
    rig.settle();
    let stats = rig.flash.stats();
    assert!(stats.parts_moved > 100, "{stats:?}");
    let written = stats.devices[0].bytes_written;
    assert!(written < 3 * 1200 * PART as u64, "{written} bytes for 1200 parts");
}

// C3: a place that is given to another part during a read is noticed.
#[test]
fn a_read_of_a_place_that_was_reused_gives_nothing() {
    let mut noticed = 0;
    for seed in 0..20 {
        let rig = Rig::new(seed, 16 * MIB);
        rig.store(1, 0, 4);
        rig.world.change_settings(|settings| {
            settings.drive_read.min = 20 * SECOND / 1000;
            settings.drive_read.max = 900 * SECOND / 1000;
        });
        assert!(rig.ask(1, 0, PART, 5));
        for stripe in 2..60 {
            rig.put(stripe, 0, 4);
            rig.world.run_for(SECOND / 500);
        }
        rig.world.run_for(5 * SECOND);
        match &rig.take_done()[..] {
            [FlashRead { token: 5, bytes: None }] => noticed += 1,
            [FlashRead { token: 5, bytes: Some(bytes) }] => assert_eq!(**bytes, content(1, 0)),
            other => panic!("one read was asked: {other:?}"),
        }
        rig.check();
    }
    assert!(noticed > 0);
}

#[test]
fn what_is_read_most_is_found_on_small_flash() {
    let rig = Rig::new(3, 32 * MIB);
    let capacity = rig.flash.stats().devices[0].capacity / PART as u64;
    let (random, all) = (SplitMix::new(7), 4 * capacity);
    let (mut hits, mut reads) = (0, 0);
    for round in 0..6_000 {
        // Four reads of five go to a tenth of the parts, which is less than half of what fits.
        let hot = random.below(5) > 0;
        let number = if hot { random.below(all / 10) * 10 } else { random.below(all) };
        let (stripe, part) = (number / 64, (number % 64) as u8);
        let hit = rig.read(stripe, usize::from(part) * PART, 4096);
        if round >= 2_000 {
            reads += 1;
            hits += u64::from(hit.is_some());
        }
        if hit.is_none() {
            rig.put(stripe, part, 1);
            rig.world.run_for(SECOND / 200);
        }
    }
    rig.settle();
    let percent = hits * 100 / reads;
    // A cache that knows no heat has what fits: a quarter of the cold ones and about 60 % of the hot ones.
    println!("{percent} % of reads hit");
    assert!(percent >= 75, "{percent} %");
}

#[test]
fn forgotten_stripes_leave_whole_zones_free() {
    let rig = Rig::new(4, 64 * MIB);
    (0..8).for_each(|stripe| rig.store(stripe, 0, 32));
    (0..8).for_each(|stripe| rig.flash.forget(StripeId(stripe)));
    assert_eq!(rig.flash.stats().parts, 0);
    (8..28).for_each(|stripe| rig.store(stripe, 0, 32));
    rig.settle();
    assert_eq!(rig.flash.stats().parts_moved, 0);
}
