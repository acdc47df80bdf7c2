//! The active role moves: after deaths, pauses and cuts, and back; nobody acknowledges what the next active one lacks (C7, C9).

use crate::rig::{FakeHost, NAMES, Rig, SECOND};
use crate::{append_some, begin_on, destage, draws};
use cleave_datanode_core::Phase;
use cleave_format::ids::{Position, StripeId};
use std::rc::Rc;

/// Both run, reach the drives and are joined; a host has sealed its vdisk.
fn begin(seed: u64) -> (Rig, FakeHost) {
    let mut rig = Rig::new(seed);
    rig.share_pool();
    begin_on(rig)
}

fn serves(rig: &Rig, controller: usize) -> bool {
    rig.controllers[controller].is_some() && rig.status(controller).serving
}

/// Controller 1, which is active, is killed: the other takes over, with everything.
fn goes_back(rig: &mut Rig, host: &mut FakeHost) {
    rig.kill(1);
    run_until_serving(rig, 0);
    rig.start(1);
    rig.run_until_mirrored();
    host.settle(rig);
    host.verify(rig);
    destage(rig, host);
}

fn run_until_serving(rig: &Rig, controller: usize) {
    let node = Rc::clone(rig.node(controller));
    let serving = rig.world.run_until(|| node.status().serving, 20 * SECOND);
    assert!(serving, "{:?}", node.status());
}

#[test]
fn the_standby_takes_over_when_the_active_is_killed() {
    let (mut rig, mut host) = begin(101);
    append_some(&mut host, 100);
    host.settle(&rig);
    destage(&rig, &mut host);
    append_some(&mut host, 50);
    host.settle(&rig);
    let granted = host.grant(&rig, 2);
    assert!(host.write_stripe(&rig, &granted[0]).iter().all(|result| result.is_ok()));
    let (vdisk, committed) = (host.vdisk, host.commit(&rig, granted[0].stripe));
    append_some(&mut host, 30);
    let before = rig.role().unwrap();
    let began = rig.world.now();
    rig.kill(0);
    run_until_serving(&rig, 1);
    // Silence is noticed after two seconds here.
    let took = rig.world.now() - began;
    assert!(took < 5 * SECOND, "{took:?}");
    let role = rig.role().unwrap();
    assert_eq!(role.in_sync, before.in_sync, "it acknowledges nothing alone, so both stay");
    assert!(role.active != before.active && role.since > before.since);
    // It answers, and reads what is on the drives; what needs the mirror waits.
    host.connect(&rig);
    assert_eq!(host.controller, 1);
    assert_eq!(host.vdisk, vdisk);
    for shard in 0..granted[0].slots.len() {
        let read = host.read_shard(&rig, &granted[0], shard, 0..4096);
        assert!(read.is_ok(), "{read:?}");
    }
    append_some(&mut host, 10);
    rig.world.run_for(3 * SECOND);
    host.look();
    assert!(host.records.values().filter(|record| !record.1).count() >= 10);
    // The dead one comes back, as the standby.
    rig.start(0);
    rig.run_until_mirrored();
    assert!(serves(&rig, 1) && !serves(&rig, 0));
    host.settle(&rig);
    host.verify(&rig);
    let again = host.committed(&rig, granted[0].stripe, &[], None);
    assert_eq!(again, committed.0, "once (C4)");
    // Its grants hold, and slots are not given twice (C15).
    assert!(host.write_stripe(&rig, &granted[1]).iter().all(|result| result.is_ok()));
    assert_eq!(host.commit(&rig, granted[1].stripe).1, []);
    let more = host.grant(&rig, 5);
    let mut places: Vec<_> = granted.iter().chain(&more).flat_map(|g| g.slots.clone()).collect();
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), count);
    assert!(more[0].stripe > StripeId(granted[1].stripe.0));
    // And back again.
    append_some(&mut host, 40);
    host.settle(&rig);
    goes_back(&mut rig, &mut host);
}

#[test]
fn a_paused_active_steps_down_and_what_it_had_alone_is_void() {
    let (mut rig, mut host) = begin(102);
    append_some(&mut host, 60);
    host.settle(&rig);
    let a = rig.controllers[0].as_ref().unwrap().process.clone();
    let copies = rig.status(0).counters.copies;
    // These reach the active only: the mirror is cut before they arrive.
    rig.world.partition(NAMES[0], NAMES[1]);
    append_some(&mut host, 25);
    rig.world.run_for(SECOND / 10);
    a.pause();
    run_until_serving(&rig, 1);
    host.connect(&rig);
    assert_eq!(host.controller, 1);
    append_some(&mut host, 15);
    rig.world.run_for(SECOND);
    rig.world.heal(NAMES[0], NAMES[1]);
    a.resume();
    rig.run_until_mirrored();
    assert!(serves(&rig, 1) && !serves(&rig, 0));
    assert_eq!(
        rig.status(0).counters.copies,
        copies,
        "its log was good up to there: nothing is copied"
    );
    host.settle(&rig);
    host.verify(&rig);
    rig.world.run_for(SECOND);
    let (a, b) = (rig.status(0), rig.status(1));
    assert_eq!((a.next, a.record_bytes), (b.next, b.record_bytes));
    assert_eq!((rig.node(0).failure(), rig.node(1).failure()), (None, None));
    // What the paused one has now is whole: it takes over in turn.
    goes_back(&mut rig, &mut host);
}

#[test]
fn a_broken_mirror_alone_moves_no_role() {
    let (rig, mut host) = begin(103);
    append_some(&mut host, 60);
    host.settle(&rig);
    let before = rig.role().unwrap();
    rig.world.partition(NAMES[0], NAMES[1]);
    rig.world.run_for(20 * SECOND);
    assert_eq!(rig.role().unwrap(), before, "the active one gave signs of life");
    assert_eq!(rig.status(0).phase, Phase::PeerAway);
    rig.world.heal(NAMES[0], NAMES[1]);
    rig.run_until_mirrored();
    assert!(host.is_connected());
    append_some(&mut host, 10);
    host.settle(&rig);
    host.verify(&rig);
}

#[test]
fn with_the_store_away_a_broken_mirror_goes_on_and_no_role_moves() {
    let (rig, mut host) = begin(104);
    append_some(&mut host, 60);
    host.settle(&rig);
    rig.stores.iter().flatten().for_each(|store| store.set_connected(false));
    rig.world.partition(NAMES[0], NAMES[1]);
    rig.world.run_for(6 * SECOND);
    rig.world.heal(NAMES[0], NAMES[1]);
    rig.run_until_mirrored();
    append_some(&mut host, 10);
    host.settle(&rig);
    host.verify(&rig);
    rig.stores.iter().flatten().for_each(|store| store.set_connected(true));
    rig.world.run_for(3 * SECOND);
    assert!(serves(&rig, 0));
}

#[test]
fn who_reaches_no_drives_takes_over_nothing() {
    let mut rig = Rig::new(105);
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    let before = rig.role().unwrap();
    rig.kill(0);
    rig.world.run_for(20 * SECOND);
    assert_eq!(rig.role().unwrap(), before);
}

#[test]
fn one_image_serves_alone_after_a_while() {
    for keep in [0, 1] {
        let (mut rig, mut host) = begin(106 + keep as u64);
        append_some(&mut host, 60);
        host.settle(&rig);
        destage(&rig, &mut host);
        append_some(&mut host, 20);
        host.settle(&rig);
        rig.stop_both();
        rig.start(keep);
        run_until_serving(&rig, keep);
        assert_eq!(rig.status(keep).mirrored_through, Position(0), "nothing counts as mirrored");
        host.connect(&rig);
        append_some(&mut host, 5);
        rig.world.run_for(2 * SECOND);
        // Its image is not used up: the next process can do the same.
        rig.kill(keep);
        rig.start(keep);
        run_until_serving(&rig, keep);
        rig.start(1 - keep);
        rig.run_until_mirrored();
        assert!(serves(&rig, keep));
        host.settle(&rig);
        host.verify(&rig);
        destage(&rig, &mut host);
    }
}

/// Kills, pauses and cuts of any controller, in any order: whatever was acknowledged stays.
#[test]
fn roles_move_at_random_and_nothing_is_lost() {
    for seed in 0..12 {
        let (mut rig, mut host) = begin(200 + seed);
        let mut next = draws(seed * 7919 + 13);
        for _ in 0..8 {
            append_some(&mut host, 20 + next(40) as u32);
            host.settle(&rig);
            append_some(&mut host, next(30) as u32);
            let one = next(2) as usize;
            let long = SECOND / 10 * next(90) as u32;
            let meanwhile = |rig: &Rig, host: &mut FakeHost| {
                if serves(rig, 1 - one) {
                    if !host.is_connected() {
                        host.connect(rig);
                    }
                    append_some(host, 35);
                    rig.world.run_for(SECOND / 5);
                }
            };
            match next(4) {
                0 => {
                    rig.kill(one);
                    rig.world.run_for(long);
                    rig.start(one);
                }
                1 => {
                    let process = rig.controllers[one].as_ref().unwrap().process.clone();
                    process.pause();
                    rig.world.run_for(long);
                    meanwhile(&rig, &mut host);
                    process.resume();
                }
                2 => {
                    rig.world.partition(NAMES[0], NAMES[1]);
                    rig.world.run_for(long);
                    rig.world.heal(NAMES[0], NAMES[1]);
                }
                _ => {
                    rig.world.partition(NAMES[0], NAMES[1]);
                    let process = rig.controllers[one].as_ref().unwrap().process.clone();
                    rig.world.run_for(SECOND / 10 * next(30) as u32);
                    process.pause();
                    rig.world.run_for(long);
                    meanwhile(&rig, &mut host);
                    rig.world.heal(NAMES[0], NAMES[1]);
                    process.resume();
                }
            }
            rig.run_until_mirrored();
            host.settle(&rig);
            host.verify(&rig);
            if next(2) == 0 {
                destage(&rig, &mut host);
            }
            for controller in 0..2 {
                assert_eq!(rig.node(controller).failure(), None);
            }
        }
        rig.world.run_for(2 * SECOND);
        let (a, b) = (rig.status(0), rig.status(1));
        assert_eq!((a.next, a.record_bytes, a.catalog), (b.next, b.record_bytes, b.catalog));
    }
}
