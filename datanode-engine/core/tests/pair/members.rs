//! Who holds the log: restarts, copies, images, and when there is none (C7).

use crate::rig::{self, FakeHost, NAMES, Rig, SECOND};
use crate::{append_some, begin, destage};
use cleave_coordinator::contract::Operation;
use cleave_coordinator::encoding::encode;
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{Answer, LogRole, Member, Outcome, Transaction};
use cleave_datanode_core::Phase;
use std::rc::Rc;
use std::time::Duration;

#[test]
fn the_standby_is_killed_and_copies() {
    let (mut rig, mut host) = begin(3);
    append_some(&mut host, 100);
    host.settle(&rig);
    destage(&rig, &mut host);
    append_some(&mut host, 50);
    host.settle(&rig);
    let epoch = rig.role().unwrap().epoch;
    rig.kill(1);
    append_some(&mut host, 40);
    rig.world.run_for(3 * SECOND);
    host.look();
    let waiting = host.records.values().filter(|record| !record.1).count();
    assert_eq!(waiting, 40, "alone it acknowledges nothing");
    assert_eq!(rig.status(0).phase, Phase::PeerAway);
    rig.start(1);
    rig.run_until_mirrored();
    assert_eq!(rig.role().unwrap().epoch, epoch + 2, "its start, and the join");
    host.settle(&rig);
    assert!(host.is_connected(), "the host stayed connected");
    host.verify(&rig);
    // Now the standby's copy is the only one.
    rig.kill(0);
    rig.start(0);
    rig.run_until_mirrored();
    host.settle(&rig);
    host.connect(&rig);
    host.verify(&rig);
    destage(&rig, &mut host);
}

#[test]
fn the_active_is_killed_and_copies() {
    let (mut rig, mut host) = begin(4);
    let granted = host.grant(&rig, 3);
    append_some(&mut host, 100);
    host.settle(&rig);
    append_some(&mut host, 100);
    rig.kill(0);
    rig.world.run_for(2 * SECOND);
    rig.start(0);
    rig.run_until_mirrored();
    host.settle(&rig);
    host.connect(&rig);
    host.verify(&rig);
    // Its grant of before, and the commit of one of them sent twice (C4).
    assert!(host.write_stripe(&rig, &granted[1]).iter().all(|result| result.is_ok()));
    let first = host.commit(&rig, granted[1].stripe);
    assert_eq!(host.commit(&rig, granted[1].stripe), first);
    rig.world.run_for(SECOND);
    assert_eq!(host.commit(&rig, granted[1].stripe), first, "the catalog knows it, too");
    // Slots of grants and stripes are not given again.
    let more = host.grant(&rig, 5);
    let mut places: Vec<_> = granted.iter().chain(&more).flat_map(|g| g.slots.clone()).collect();
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), count);
    assert!(more[0].stripe > granted[2].stripe);
}

#[test]
fn clean_stop_and_start_from_the_vault_again_and_again() {
    let (mut rig, mut host) = begin(5);
    for round in 0..4 {
        append_some(&mut host, 60);
        host.settle(&rig);
        if round == 1 {
            destage(&rig, &mut host);
        }
        append_some(&mut host, 30);
        rig.stop_both();
        rig.start(0);
        rig.start(1);
        rig.run_until_mirrored();
        host.connect(&rig);
        host.settle(&rig);
        host.verify(&rig);
    }
}

#[test]
fn both_stop_and_one_image_is_enough() {
    for keep in [0, 1] {
        let (mut rig, mut host) = begin(6 + keep as u64);
        append_some(&mut host, 60);
        host.settle(&rig);
        rig.stop_both();
        // The other's vault is replaced by an empty one.
        let bytes = rig.vaults[0].capacity();
        rig.vaults[1 - keep] = rig.world.create_drive("new-vault", bytes);
        rig.start(0);
        rig.start(1);
        rig.run_until_mirrored();
        host.connect(&rig);
        host.settle(&rig);
        host.verify(&rig);
    }
}

#[test]
fn both_killed_stays_down_until_the_operator_says_so() {
    let (mut rig, mut host) = begin(8);
    append_some(&mut host, 60);
    host.settle(&rig);
    destage(&rig, &mut host);
    append_some(&mut host, 10);
    host.settle(&rig);
    let before = rig.role().unwrap();
    rig.kill(0);
    rig.kill(1);
    rig.start(0);
    rig.start(1);
    rig.world.run_for(5 * SECOND);
    let Phase::NoLog(lost) = rig.status(0).phase else { panic!("{:?}", rig.status(0)) };
    assert!(lost.contains("lost") && !lost.contains('\n'), "{lost}");
    assert!(!rig.node(0).is_mirrored());
    // The new processes raised the epoch, and changed nothing else.
    let fenced = rig.role().unwrap();
    assert_eq!(fenced, LogRole { epoch: before.epoch + 2, ..before.clone() });
    rig.order_start_empty();
    // The word is about what is lost, and outlives the next fence.
    rig.kill(0);
    rig.start(0);
    rig.run_until_mirrored();
    let after = rig.role().unwrap();
    assert_eq!(after.epoch, fenced.epoch + 2);
    assert_ne!(after.log, before.log);
    // The host learns that it is another log, and resends everything that is not released (C7).
    host.records.values_mut().for_each(|record| record.1 = false);
    host.connect(&rig);
    assert_eq!(host.welcome.as_ref().unwrap().log, after.log);
    host.settle(&rig);
    host.verify(&rig);
    assert_eq!(host.open_map(&rig).len(), 1, "the catalog stayed");
    destage(&rig, &mut host);
    // The word was for that epoch only.
    rig.kill(0);
    rig.kill(1);
    rig.start(0);
    rig.start(1);
    rig.world.run_for(5 * SECOND);
    assert!(matches!(rig.status(0).phase, Phase::NoLog(_)));
}

/// C8, also where C7 ends: an empty log knows every owner that was told so, and no older one.
#[test]
fn owners_outlive_a_lost_log() {
    for seed in 320..330 {
        let (mut rig, mut host) = begin(seed);
        append_some(&mut host, 5);
        host.settle(&rig);
        let mut next = FakeHost::start_as(&rig, "host-2", 77);
        next.host = 2;
        next.epoch = host.epoch;
        next.connect(&rig);
        next.seal(&rig).unwrap();
        rig.kill(0);
        rig.kill(1);
        rig.start(0);
        rig.start(1);
        rig.world.run_for(5 * SECOND);
        rig.order_start_empty();
        rig.run_until_mirrored();
        // The old owner wakes up first.
        host.records.clear();
        host.connect(&rig);
        host.append(3, 100);
        rig.world.run_for(SECOND);
        host.look();
        assert!(host.records.values().all(|record| !record.1), "an old owner is back");
        next.connect(&rig);
        append_some(&mut next, 20);
        next.settle(&rig);
        next.verify(&rig);
    }
}

#[test]
fn an_old_image_is_not_loaded() {
    let (mut rig, mut host) = begin(9);
    append_some(&mut host, 20);
    host.settle(&rig);
    rig.stop_both();
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    host.connect(&rig);
    append_some(&mut host, 20);
    host.settle(&rig);
    // The images of the stop are older than what was acknowledged since.
    rig.kill(0);
    rig.kill(1);
    rig.start(0);
    rig.start(1);
    rig.world.run_for(5 * SECOND);
    assert!(matches!(rig.status(0).phase, Phase::NoLog(_)), "{:?}", rig.status(0));
}

#[test]
fn a_cut_between_the_controllers_heals_without_a_copy() {
    let (rig, mut host) = begin(10);
    append_some(&mut host, 50);
    host.settle(&rig);
    let epoch = rig.role().unwrap().epoch;
    for direct in rig.stores.iter().flatten() {
        direct.set_connected(false);
    }
    rig.world.partition(rig::NAMES[0], rig::NAMES[1]);
    append_some(&mut host, 50);
    rig.world.run_for(5 * SECOND);
    assert!(!rig.node(0).is_mirrored());
    rig.world.heal(rig::NAMES[0], rig::NAMES[1]);
    rig.run_until_mirrored();
    host.settle(&rig);
    host.verify(&rig);
    assert_eq!(rig.role().unwrap().epoch, epoch, "it resumed, without the store");
}

#[test]
fn a_lost_catalog_is_copied() {
    for lost in [0, 1] {
        let (mut rig, mut host) = begin(20 + lost as u64);
        append_some(&mut host, 30);
        host.settle(&rig);
        destage(&rig, &mut host);
        rig.world.run_for(SECOND);
        rig.kill(lost);
        rig.catalogs[lost] = cleave_catalog::storage::MemoryStorage::new();
        rig.start(lost);
        rig.run_until_mirrored();
        host.settle(&rig);
        host.connect(&rig);
        append_some(&mut host, 30);
        host.settle(&rig);
        host.verify(&rig);
        assert_eq!(host.open_map(&rig).len(), 1);
        rig.world.run_for(SECOND);
        assert_eq!(rig.status(0).catalog, rig.status(1).catalog);
        destage(&rig, &mut host);
    }
}

/// C17: a power cut while images are written leaves what was valid before, or the new image.
#[test]
fn power_fails_while_the_vaults_are_written() {
    for seed in 60..72 {
        let (mut rig, mut host) = begin(seed);
        append_some(&mut host, 200);
        host.settle(&rig);
        rig.stop_both();
        rig.start(0);
        rig.start(1);
        rig.run_until_mirrored();
        host.connect(&rig);
        host.settle(&rig);
        append_some(&mut host, 200);
        host.settle(&rig);
        for controller in rig.controllers.iter().flatten() {
            controller.node.stop();
            controller.process.wake();
        }
        rig.world.run_for(Duration::from_micros(200 + (seed - 60) * 700));
        rig.kill(0);
        rig.kill(1);
        rig.vaults.iter().for_each(|vault| vault.power_loss());
        rig.start(0);
        rig.start(1);
        rig.world.run_for(5 * SECOND);
        if rig.node(0).is_mirrored() {
            host.connect(&rig);
            host.settle(&rig);
            host.verify(&rig);
        } else {
            assert!(matches!(rig.status(0).phase, Phase::NoLog(_)), "{:?}", rig.status(0));
        }
    }
}

#[test]
fn a_damaged_image_is_none() {
    let (mut rig, mut host) = begin(73);
    append_some(&mut host, 100);
    host.settle(&rig);
    rig.stop_both();
    // In the middle of the bodies.
    rig.vaults[0].flip_bit(40_000, 3);
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
    rig.stop_both();
    for vault in &rig.vaults {
        (1..256).for_each(|step| vault.flip_bit(step * 16_384, 3));
    }
    rig.start(0);
    rig.start(1);
    rig.world.run_for(5 * SECOND);
    assert!(matches!(rig.status(0).phase, Phase::NoLog(_)));
}

/// C7: what the store executes late of an active that died changes nothing once a new one has loaded its image.
#[test]
fn a_late_request_of_a_dead_active_is_void() {
    for seed in 300..308 {
        let (mut rig, mut host) = begin(seed);
        append_some(&mut host, 60);
        host.settle(&rig);
        rig.stop_both();
        // As if two processes had met, and both had died while the active's change was on its way.
        let (before, revision) = rig.recorded().unwrap();
        let member = |controller, incarnation| Member { controller, incarnation };
        let in_sync = vec![member(0, 1 << 40), member(1, (1 << 40) + 1)];
        let late = LogRole { epoch: before.epoch + 1, active: Some(1 << 40), in_sync, ..before };
        let late = Transaction::new()
            .require(datanode_key(1), revision)
            .put(datanode_key(1), encode(&late));
        rig.start(0);
        rig.start(1);
        let active = Rc::clone(rig.node(0));
        assert!(rig.world.run_until(|| active.status().log.is_some(), 5 * SECOND));
        let outcome = rig.store.execute(Operation::Transact(late)).unwrap();
        assert!(matches!(outcome, Answer::Transacted(Outcome::Conflict)), "{outcome:?}");
        rig.run_until_mirrored();
        host.connect(&rig);
        host.settle(&rig);
        host.verify(&rig);
    }
}

/// The same where there was no log before: nobody ends up without one.
#[test]
fn a_late_request_for_the_first_log_is_void() {
    let mut rig = Rig::new(310);
    rig.start(0);
    let member = |controller, incarnation| Member { controller, incarnation };
    let in_sync = vec![member(0, 1 << 40), member(1, (1 << 40) + 1)];
    let active = Some(1 << 40);
    let late = LogRole { epoch: 1, log: 1 << 40, active, since: 1, origin: 1, in_sync, solo: None };
    let late = Transaction::new().require(datanode_key(1), 0).put(datanode_key(1), encode(&late));
    assert!(rig.world.run_until(|| rig.role().is_some(), 5 * SECOND));
    assert!(!rig.role().unwrap().has_log());
    let outcome = rig.store.execute(Operation::Transact(late)).unwrap();
    assert!(matches!(outcome, Answer::Transacted(Outcome::Conflict)), "{outcome:?}");
    rig.start(1);
    rig.run_until_mirrored();
    assert!(rig.role().unwrap().has_log());
}

/// Also when the record made both members and nobody could be told: the next meeting resumes by it.
#[test]
fn a_break_at_any_moment_of_a_meeting_leaves_an_active_that_serves() {
    for seed in 200..240 {
        let mut rig = Rig::new(seed);
        rig.start(0);
        rig.start(1);
        let random = rig.world.random();
        let meets = random.below(15_000);
        rig.world.run_for(Duration::from_micros(meets));
        for _ in 0..20 {
            rig.world.run_for(Duration::from_micros(random.below(1_000)));
            rig.world.break_connections(NAMES[0], NAMES[1]);
        }
        rig.run_until_mirrored();
        let mut host = FakeHost::start(&rig, 1);
        host.connect(&rig);
        host.seal(&rig).unwrap();
    }
}
