//! A controller that goes on alone (C12): its log is on three drives before it acknowledges; it is there after its death;
//! a peer that returns is filled while hosts go on.

use crate::rig::{FakeHost, NAMES, Rig, SECOND};
use crate::{append_some, begin_on, destage, draws};
use cleave_datanode_core::Phase;
use cleave_format::control::{GrantedStripe, MapRun};
use cleave_format::ids::{DriveId, Epoch, Position, StripeId, VdiskId};
use cleave_format::solo::SegmentHead;
use cleave_runtime::links::Class;
use cleave_runtime_sim::Span;
use cleave_wire::HostMessage;
use std::collections::BTreeSet;
use std::rc::Rc;

/// Both run, reach the drives, are joined and may go on alone; a host has sealed its vdisk.
pub fn begin(seed: u64) -> (Rig, FakeHost) {
    let mut rig = Rig::new(seed);
    rig.share_pool();
    rig.alone = true;
    begin_on(rig)
}

fn run_until_alone(rig: &Rig, controller: usize) {
    let node = Rc::clone(rig.node(controller));
    let alone = rig.world.run_until(|| !node.status().alone_on.is_empty(), 30 * SECOND);
    assert!(alone, "{:?}", node.status());
}

/// Everything is acknowledged, by whoever is active now, and there.
fn settle(rig: &Rig, host: &mut FakeHost) {
    append_some(host, 1);
    host.settle(rig);
    host.verify(rig);
}

/// Both hold everything, and nobody says that he cannot go on.
pub fn whole(rig: &mut Rig, host: &mut FakeHost) {
    rig.run_until_mirrored();
    settle(rig, host);
    destage(rig, host);
    rig.world.run_for(2 * SECOND);
    let (a, b) = (rig.status(0), rig.status(1));
    assert_eq!((a.next, a.record_bytes, a.catalog), (b.next, b.record_bytes, b.catalog));
    assert_eq!((a.entries, a.slots_held + b.slots_held), (b.entries, 0));
    assert_eq!((rig.node(0).failure(), rig.node(1).failure()), (None, None));
    let role = rig.role().unwrap();
    assert_eq!((role.in_sync.len(), role.solo), (2, None));
}

/// Controller 0 cannot know what becomes of its role: neither the other one nor the store is within its reach.
fn cut_off(rig: &Rig) {
    rig.world.partition(NAMES[0], NAMES[1]);
    rig.stores[0].as_ref().unwrap().set_connected(false);
}

/// Controller 1 has the role, and the host its vdisk there, by a new seal.
fn seal_at_the_other(rig: &Rig, host: &mut FakeHost) {
    run_until_alone(rig, 1);
    host.controller = 1;
    host.connect(rig);
    assert_eq!(host.controller, 1);
    host.seal(rig).unwrap();
    settle(rig, host);
}

/// Controller 0, which does not know that, refuses what the owner asks it for nothing: a refusal says that another one has the
/// vdisk. It closes; and when it is within reach again nothing is amiss.
fn closes_and_refuses_nothing(rig: &mut Rig, host: &mut FakeHost, asks: &[&dyn Fn(&mut FakeHost)]) {
    for (attempt, ask) in asks.iter().enumerate() {
        host.controller = 0;
        host.connect(rig);
        assert_eq!((host.controller, rig.status(0).serving), (0, true));
        host.look();
        host.told.borrow_mut().events.clear();
        ask(host);
        rig.world.run_for(SECOND);
        host.look();
        assert!(!host.is_connected(), "attempt {attempt}");
        assert_eq!(host.told.borrow().events, [], "attempt {attempt}");
    }
    rig.stores[0].as_ref().unwrap().set_connected(true);
    rig.world.heal(NAMES[0], NAMES[1]);
    host.settle(rig);
    host.verify(rig);
    whole(rig, host);
}

/// Asks for something of the host's vdisk in its present epoch.
fn ask(host: &mut FakeHost, class: Class, make: impl Fn(u64, VdiskId, Epoch) -> HostMessage) {
    let (vdisk, epoch) = (VdiskId(host.vdisk), Epoch(host.epoch));
    host.ask(class, None, |request| make(request, vdisk, epoch));
}

fn ask_fetch(host: &mut FakeHost) {
    let from = Position(0);
    ask(host, Class::Read, |request, vdisk, epoch| HostMessage::Fetch {
        request,
        vdisk,
        epoch,
        from,
    });
}

fn ask_map(host: &mut FakeHost) {
    let cursor = None;
    ask(host, Class::Read, |request, vdisk, epoch| HostMessage::OpenMap {
        request,
        vdisk,
        epoch,
        cursor,
    });
}

fn ask_stripes(host: &mut FakeHost) {
    let from = StripeId(0);
    ask(host, Class::Read, |request, vdisk, epoch| HostMessage::ListStripes {
        request,
        vdisk,
        epoch,
        from,
    });
}

/// C7, C8: who was superseded and has not heard of it does not know of owners since.
#[test]
fn an_owner_that_is_unknown_to_a_superseded_controller_is_not_fenced_by_it() {
    let (mut rig, mut host) = begin(320);
    settle(&rig, &mut host);
    cut_off(&rig);
    seal_at_the_other(&rig, &mut host);
    let append = |host: &mut FakeHost| {
        host.append(0, 500);
    };
    let delete = |host: &mut FakeHost| {
        ask(host, Class::Log, |request, vdisk, epoch| HostMessage::Delete {
            request,
            vdisk,
            epoch,
        });
    };
    let asks: [&dyn Fn(&mut FakeHost); 5] = [&append, &ask_fetch, &ask_map, &ask_stripes, &delete];
    closes_and_refuses_nothing(&mut rig, &mut host, &asks);
}

/// The same, when it was asked first: it has the seal, and nobody was told so by it.
#[test]
fn a_seal_that_a_superseded_controller_never_had_mirrored_fences_nobody() {
    let (mut rig, mut host) = begin(321);
    settle(&rig, &mut host);
    cut_off(&rig);
    let (vdisk, epoch) = (VdiskId(host.vdisk), Epoch(host.epoch + 1));
    let gone: Vec<Epoch> = (0..epoch.0).map(Epoch).collect();
    let question =
        host.ask(Class::Log, None, |request| HostMessage::Seal { request, vdisk, epoch, gone });
    run_until_alone(&rig, 1);
    assert!(host.reply(&rig, question).is_none(), "nothing else has it");
    seal_at_the_other(&rig, &mut host);
    assert_eq!(Epoch(host.epoch), epoch);
    closes_and_refuses_nothing(&mut rig, &mut host, &[&ask_fetch, &ask_map, &ask_stripes]);
}

#[test]
fn hosts_go_on_and_a_peer_that_returns_is_filled_meanwhile() {
    let (mut rig, mut host) = begin(301);
    append_some(&mut host, 100);
    host.settle(&rig);
    destage(&rig, &mut host);
    append_some(&mut host, 50);
    host.settle(&rig);
    rig.kill(1);
    append_some(&mut host, 40);
    host.settle(&rig);
    let status = rig.status(0);
    assert_eq!((status.phase, status.alone_on.len()), (Phase::Alone, 3));
    let role = rig.role().unwrap();
    assert_eq!(role.in_sync.len(), 1);
    assert_eq!(role.solo.unwrap().drives.len(), 3);
    host.verify(&rig);
    for _ in 0..3 {
        destage(&rig, &mut host);
        append_some(&mut host, 30);
        host.settle(&rig);
    }
    // While the peer copies, hosts write and commit.
    rig.start(1);
    let (a, b) = (Rc::clone(rig.node(0)), Rc::clone(rig.node(1)));
    for round in 0.. {
        append_some(&mut host, 20);
        host.settle(&rig);
        if round % 3 == 0 {
            destage(&rig, &mut host);
        }
        if a.is_mirrored() && b.is_mirrored() {
            break;
        }
    }
    assert!(host.is_connected(), "the host stayed connected");
    whole(&mut rig, &mut host);
    // What the peer has now is whole.
    append_some(&mut host, 20);
    host.settle(&rig);
    rig.kill(0);
    run_until_alone(&rig, 1);
    host.settle(&rig);
    host.verify(&rig);
    rig.start(0);
    whole(&mut rig, &mut host);
}

#[test]
fn what_was_acknowledged_alone_outlives_the_controller_and_two_of_the_drives() {
    for keep in 0..3 {
        let (mut rig, mut host) = begin(310 + keep as u64);
        append_some(&mut host, 100);
        host.settle(&rig);
        destage(&rig, &mut host);
        rig.kill(1);
        append_some(&mut host, 60);
        host.settle(&rig);
        destage(&rig, &mut host);
        append_some(&mut host, 30);
        host.settle(&rig);
        append_some(&mut host, 30);
        let drives = rig.status(0).alone_on;
        rig.kill(0);
        for (at, DriveId(drive)) in drives.iter().enumerate() {
            if at != keep {
                rig.pool[usize::from(*drive)].lose();
            }
        }
        // The other controller must not take it: it cannot know that this one is dead.
        rig.start(1);
        rig.world.run_for(15 * SECOND);
        assert!(!rig.status(1).serving && rig.status(1).log.is_none(), "{:?}", rig.status(1));
        if keep == 0 {
            // Alone again, by another session, before the peer is there.
            rig.kill(1);
            rig.start(0);
            run_until_alone(&rig, 0);
            host.connect(&rig);
            append_some(&mut host, 10);
            host.settle(&rig);
            host.verify(&rig);
            rig.kill(0);
            rig.start(1);
        }
        rig.start(0);
        whole(&mut rig, &mut host);
    }
}

/// Any of the three drives has each segment: what one lost the others give.
#[test]
fn rot_in_two_copies_of_the_log_is_made_up_for_by_the_third() {
    let (mut rig, mut host) = begin(320);
    append_some(&mut host, 100);
    host.settle(&rig);
    rig.kill(1);
    for _ in 0..6 {
        append_some(&mut host, 20);
        host.settle(&rig);
    }
    let drives = rig.status(0).alone_on;
    rig.kill(0);
    // Another segment in each of two, so that no drive but the third is whole.
    let solo = rig.role().unwrap().solo.unwrap();
    for (index, DriveId(drive)) in drives[..2].iter().enumerate() {
        let drive = &rig.pool[usize::from(*drive)];
        let superblock = rig.superblock(drive);
        let area = superblock.solo_area(0, solo.part);
        drive.flip_bit(area.start + 8192 * (1 + 40 * index as u64) + 200, 3);
    }
    rig.start(0);
    run_until_alone(&rig, 0);
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
    rig.start(1);
    whole(&mut rig, &mut host);
}

/// Rot beyond redundancy is told: a log with a hole is not taken for one that ends there (C12).
#[test]
fn rot_in_all_copies_of_the_log_is_no_shorter_log() {
    let (mut rig, mut host) = begin(321);
    append_some(&mut host, 100);
    host.settle(&rig);
    rig.kill(1);
    for _ in 0..6 {
        append_some(&mut host, 20);
        host.settle(&rig);
    }
    let drives = rig.status(0).alone_on;
    rig.kill(0);
    let solo = rig.role().unwrap().solo.unwrap();
    let pool = rig.pool.clone();
    let starts: Vec<u64> =
        pool.iter().map(|drive| rig.superblock(drive).solo_area(0, solo.part).start).collect();
    let place =
        |DriveId(drive): &DriveId| (&pool[usize::from(*drive)], starts[usize::from(*drive)]);
    // The second segment: what it had was acknowledged, and what comes after it is there.
    let (first, start) = place(&drives[0]);
    let head = SegmentHead::decode(&first.peek(start, 4096)).unwrap();
    for (drive, start) in drives.iter().map(place) {
        drive.flip_bit(start + head.size() as u64 + 90, 3);
    }
    rig.start(0);
    rig.start(1);
    let node = Rc::clone(rig.node(0));
    let told = rig.world.run_until(|| matches!(node.status().phase, Phase::NoLog(_)), 30 * SECOND);
    assert!(told, "{:?}", node.status());
    rig.world.run_for(10 * SECOND);
    assert!(!rig.status(0).serving && rig.role().unwrap().solo.is_some());
    // It is damage, not loss: a copy that is mended counts again.
    let (drive, start) = place(&drives[1]);
    drive.flip_bit(start + head.size() as u64 + 90, 3);
    rig.kill(1);
    rig.kill(0);
    rig.start(0);
    run_until_alone(&rig, 0);
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
    rig.start(1);
    whole(&mut rig, &mut host);
}

#[test]
fn a_lost_drive_of_the_log_is_replaced() {
    let (mut rig, mut host) = begin(330);
    append_some(&mut host, 100);
    host.settle(&rig);
    rig.kill(1);
    append_some(&mut host, 60);
    host.settle(&rig);
    let before = rig.status(0).alone_on;
    let sessions = rig.status(0).counters.sessions;
    rig.pool[usize::from(before[1].0)].lose();
    append_some(&mut host, 60);
    host.settle(&rig);
    let after = rig.status(0);
    assert!(!after.alone_on.contains(&before[1]) && after.counters.sessions > sessions);
    rig.kill(0);
    rig.start(0);
    run_until_alone(&rig, 0);
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
    rig.start(1);
    whole(&mut rig, &mut host);
}

#[test]
fn without_three_drives_writes_wait() {
    let (mut rig, mut host) = begin(340);
    append_some(&mut host, 20);
    host.settle(&rig);
    rig.pool[2..].iter().for_each(|drive| drive.lose());
    rig.world.run_for(SECOND);
    rig.kill(1);
    append_some(&mut host, 20);
    rig.world.run_for(5 * SECOND);
    let status = rig.status(0);
    assert!(status.alone_on.is_empty() && status.hindrance.contains("drives"), "{status:?}");
    host.look();
    assert!(host.records.values().any(|record| !record.1));
    rig.start(1);
    rig.run_until_mirrored();
    host.settle(&rig);
    host.verify(&rig);
}

/// More than the drives' areas hold goes through the log: session follows session.
#[test]
fn sessions_wear_out_and_the_next_one_is_filled_beside_them() {
    let (mut rig, mut host) = begin(350);
    rig.kill(1);
    run_until_alone(&rig, 0);
    let mut worn = false;
    for round in 0..120 {
        append_some(&mut host, 40);
        host.settle(&rig);
        destage(&rig, &mut host);
        worn |= rig.status(0).counters.sessions > 1;
        if round % 50 == 49 {
            rig.kill(0);
            rig.start(0);
            run_until_alone(&rig, 0);
            host.connect(&rig);
            host.settle(&rig);
            host.verify(&rig);
        }
    }
    assert!(worn, "no session was worn");
    rig.start(1);
    whole(&mut rig, &mut host);
}

/// C7, C9: the one that was paused while the other went on alone acknowledges nothing, and takes all of it back.
#[test]
fn a_paused_active_finds_the_other_one_alone() {
    let (mut rig, mut host) = begin(360);
    append_some(&mut host, 60);
    host.settle(&rig);
    let a = rig.controllers[0].as_ref().unwrap().process.clone();
    append_some(&mut host, 25);
    a.pause();
    run_until_alone(&rig, 1);
    host.connect(&rig);
    append_some(&mut host, 15);
    host.settle(&rig);
    destage(&rig, &mut host);
    a.resume();
    whole(&mut rig, &mut host);
    assert!(rig.status(1).serving && !rig.status(0).serving);
}

/// The same, and the one that was alone dies: the one that comes to still serves by its old role, and has nothing that counts.
#[test]
fn a_paused_active_finds_the_log_of_one_that_was_alone_on_drives() {
    for seed in 0..4 {
        let (mut rig, mut host) = begin(380 + seed);
        append_some(&mut host, 60);
        host.settle(&rig);
        destage(&rig, &mut host);
        let a = rig.controllers[0].as_ref().unwrap().process.clone();
        append_some(&mut host, 25);
        a.pause();
        run_until_alone(&rig, 1);
        host.connect(&rig);
        append_some(&mut host, 15);
        host.settle(&rig);
        // What the old one does not know of: an owner, and a commit.
        host.seal(&rig).unwrap();
        destage(&rig, &mut host);
        append_some(&mut host, 15);
        host.settle(&rig);
        rig.kill(1);
        if seed % 2 == 0 {
            rig.start(1);
            a.resume();
        } else {
            a.resume();
            rig.world.run_for(SECOND / 20);
            rig.start(1);
        }
        whole(&mut rig, &mut host);
        host.seal(&rig).unwrap();
        append_some(&mut host, 15);
        settle(&rig, &mut host);
    }
}

/// C12: the copy that a returning peer has ends where nothing more is acknowledged alone, also when there is nothing to copy
/// because all that ever came is released.
#[test]
fn nothing_is_acknowledged_alone_beyond_the_end_of_a_copy() {
    let (mut rig, mut host) = begin(390);
    rig.kill(1);
    for _ in 0..20 {
        append_some(&mut host, 60);
        host.settle(&rig);
        destage(&rig, &mut host);
    }
    let a = Rc::clone(rig.node(0));
    assert!(rig.world.run_until(|| a.status().entries == 0, 30 * SECOND), "{:?}", a.status());
    assert!(a.status().next > Position(1024));
    rig.start(1);
    let copied = || a.status().counters.copies > 1;
    assert!(rig.world.run_until(copied, 30 * SECOND));
    // The host goes on; the peer is about to become a member.
    let end = a.status().mirrored_through;
    while !a.is_mirrored() {
        let now = a.status().mirrored_through;
        assert_eq!(now, end, "what comes after the copy's end is acknowledged by nobody yet");
        append_some(&mut host, 1);
        rig.world.run_for(SECOND / 5_000);
    }
    host.settle(&rig);
    rig.kill(0);
    run_until_alone(&rig, 1);
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
}

/// C7: the store's word that this controller is the only member comes when it is one of two again: answers of the store come in no
/// particular order.
#[test]
fn a_session_that_is_recorded_too_late_is_none() {
    for seed in 0..40 {
        let mut rig = Rig::new(400 + seed);
        rig.share_pool();
        (rig.alone, rig.slow_store) = (true, true);
        let (mut rig, mut host) = begin_on(rig);
        for _ in 0..4 {
            append_some(&mut host, 20);
            rig.world.partition(NAMES[0], NAMES[1]);
            // Somewhere between the beginning of a session and the word that it is recorded.
            let sessions =
                |rig: &Rig| rig.status(0).counters.sessions + rig.status(1).counters.sessions;
            let before = sessions(&rig);
            assert!(rig.world.run_until(|| sessions(&rig) > before, 30 * SECOND));
            let while_it_is_recorded = rig.world.draw(Span { min: SECOND / 1000, max: SECOND });
            rig.world.run_for(while_it_is_recorded);
            rig.world.heal(NAMES[0], NAMES[1]);
            rig.run_until_mirrored();
            for _ in 0..30 {
                rig.world.run_for(SECOND / 10);
                for controller in 0..2 {
                    let status = rig.status(controller);
                    assert!(!status.mirrored || status.alone_on.is_empty(), "{status:?}");
                }
            }
        }
        let active = usize::from(rig.status(1).serving);
        rig.kill(active);
        host.connect(&rig);
        settle(&rig, &mut host);
        rig.start(active);
        whole(&mut rig, &mut host);
    }
}

/// C15: a write of the one before, which was on its way when it was paused, must not fall into a slot that was given out again.
#[test]
fn slots_of_a_controller_that_is_not_heard_of_are_given_to_nobody() {
    let (mut rig, mut host) = begin(370);
    append_some(&mut host, 10);
    host.settle(&rig);
    let granted = host.grant(&rig, 4);
    let a = rig.controllers[0].as_ref().unwrap().process.clone();
    a.pause();
    run_until_alone(&rig, 1);
    // Another engine of this host: the grants of before end.
    host.process.kill();
    let mut next = FakeHost::start(&rig, 2);
    (next.controller, next.epoch) = (1, host.epoch);
    next.connect(&rig);
    next.seal(&rig).unwrap();
    let held: Vec<_> = granted.iter().flat_map(|grant| grant.slots.clone()).collect();
    let status = rig.status(1);
    assert_eq!(status.slots_held, held.len() as u64);
    // Every slot that is left is asked for, by two hosts: one may not hold them all.
    let mut other = FakeHost::start_as(&rig, "host-2", 7);
    (other.controller, other.host, other.vdisk) = (1, 2, host.vdisk + 1);
    other.connect(&rig);
    let mut given = Vec::new();
    for asking in [&mut next, &mut other] {
        loop {
            let more = asking.grant(&rig, 16);
            if more.is_empty() {
                break;
            }
            given.extend(more.iter().flat_map(|grant| grant.slots.clone()));
        }
    }
    let status = rig.status(1);
    assert!(status.slots.1 < 10, "{status:?}");
    let again = |place: &&_| held.contains(place);
    assert_eq!(given.iter().find(again), None, "given out under a late write");
    // Restarted, it knows that still.
    rig.kill(1);
    rig.start(1);
    run_until_alone(&rig, 1);
    assert_eq!(rig.status(1).slots_held, held.len() as u64);
    other.connect(&rig);
    assert!(other.grant(&rig, 1).is_empty());
    a.resume();
    rig.run_until_mirrored();
    rig.world.run_for(SECOND);
    assert_eq!(rig.status(1).slots_held, 0);
    let status = rig.status(1);
    assert!(status.slots.1 >= held.len() as u64, "{status:?}");
    let more = other.grant(&rig, 1);
    assert!(!more.is_empty(), "they are free, now that the other one is known to be idle");
}

/// C15: what the catalog of a successor tells of slots that were granted again meanwhile is older than the grant.
#[test]
fn a_slot_that_was_granted_again_is_not_free_again() {
    let (mut rig, mut host) = begin(331);
    // A full pool; what is in it does not matter here.
    let (mut granted, mut frontier) = (host.grant(&rig, 1), Position(0));
    while let Some(next) = host.grant(&rig, 1).pop() {
        let stripe = granted.last().expect("one was there").stripe;
        frontier = host.committed(&rig, stripe, &[], None).unwrap();
        granted.push(next);
    }
    rig.kill(0);
    run_until_alone(&rig, 1);
    host.connect(&rig);
    let (first, last) = (granted[0].clone(), granted.last().expect("many are there").stripe);
    let left = MapRun { frontier, pieces: Vec::new(), unreferenced: vec![first.stripe] };
    host.committed(&rig, last, &[], Some(left)).unwrap();
    let again = loop {
        if let Some(again) = host.grant(&rig, 1).pop() {
            break again;
        }
    };
    let places = |stripe: &GrantedStripe| -> BTreeSet<_> {
        stripe.slots.iter().map(|place| (place.drive, place.slot)).collect()
    };
    assert!(!places(&again).is_disjoint(&places(&first)));
    rig.kill(1);
    // The catalog of the first ends where it was killed; what the other one did since is in the log on the drives.
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    assert!(rig.status(0).serving, "its catalog is the one that lags");
    host.connect(&rig);
    host.settle(&rig);
    assert!(host.write_stripe(&rig, &again).iter().all(Result::is_ok));
    host.committed(&rig, again.stripe, &[], None).unwrap();
    rig.world.run_for(SECOND);
    assert!(host.read_shard(&rig, &again, 0, 0..64).is_ok());
    // Slots that are in use are given to nobody.
    while let Some(next) = host.grant(&rig, 1).pop() {
        assert!(
            places(&next).is_disjoint(&places(&again)),
            "{next:?} and {again:?} are granted the same slot"
        );
    }
}

/// The peer comes back before anything came of going on alone: what is held by a record that only one of them has is free again.
#[test]
fn slots_that_were_held_in_vain_are_free_again() {
    let (rig, mut host) = begin(375);
    append_some(&mut host, 10);
    host.settle(&rig);
    host.grant(&rig, 2);
    let a = rig.controllers[0].as_ref().unwrap().process.clone();
    // With two drives it cannot go on alone.
    rig.pool[2..].iter().for_each(|drive| drive.lose());
    rig.world.run_for(2 * SECOND);
    a.pause();
    let b = Rc::clone(rig.node(1));
    let tried = rig.world.run_until(|| !b.status().hindrance.is_empty(), 30 * SECOND);
    assert!(tried && rig.status(1).serving, "{:?}", rig.status(1));
    a.resume();
    rig.run_until_mirrored();
    settle(&rig, &mut host);
    rig.world.run_for(2 * SECOND);
    assert_eq!((rig.status(0).slots_held, rig.status(1).slots_held), (0, 0));
}

/// Deaths, pauses, cuts and lost answers of the store in any order, also of the last one left: whatever was acknowledged stays.
#[test]
fn whoever_is_left_goes_on_and_nothing_is_lost() {
    for seed in 0..16 {
        let (mut rig, mut host) = begin(400 + seed);
        let mut next = draws(seed * 6151 + 5);
        for _ in 0..10 {
            append_some(&mut host, 20 + next(40) as u32);
            host.settle(&rig);
            append_some(&mut host, next(30) as u32);
            let one = next(2) as usize;
            let long = SECOND / 10 * next(90) as u32;
            match next(6) {
                0 => {
                    rig.kill(one);
                    rig.world.run_for(long);
                    if next(2) == 0 {
                        run_until_alone(&rig, 1 - one);
                        append_some(&mut host, 30);
                        host.settle(&rig);
                        rig.kill(1 - one);
                        rig.world.run_for(SECOND / 10 * next(20) as u32);
                        rig.start(1 - one);
                        if next(2) == 0 {
                            run_until_alone(&rig, 1 - one);
                        }
                    }
                    rig.start(one);
                }
                1 => {
                    let process = rig.controllers[one].as_ref().unwrap().process.clone();
                    process.pause();
                    rig.world.run_for(long);
                    append_some(&mut host, 20);
                    rig.world.run_for(long / 4);
                    process.resume();
                }
                2 => {
                    rig.world.partition(NAMES[0], NAMES[1]);
                    rig.world.run_for(long);
                    append_some(&mut host, 20);
                    rig.world.run_for(long / 4);
                    rig.world.heal(NAMES[0], NAMES[1]);
                }
                3 => {
                    // The one that returns goes away again while it is filled.
                    rig.kill(one);
                    run_until_alone(&rig, 1 - one);
                    rig.start(one);
                    rig.world.run_for(SECOND / 1000 * next(400) as u32);
                    append_some(&mut host, 20);
                    let two = if next(2) == 0 { one } else { 1 - one };
                    rig.kill(two);
                    rig.world.run_for(long);
                    rig.start(two);
                }
                4 => {
                    rig.kill(one);
                    rig.world.run_for(SECOND / 10 * next(30) as u32);
                    let stores = rig.stores.clone();
                    stores.iter().flatten().for_each(|store| store.set_connected(false));
                    rig.world.run_for(long);
                    stores.iter().flatten().for_each(|store| store.set_connected(true));
                    rig.start(one);
                }
                _ => {
                    rig.world.partition(NAMES[0], NAMES[1]);
                    let process = rig.controllers[one].as_ref().unwrap().process.clone();
                    rig.world.run_for(SECOND / 10 * next(30) as u32);
                    process.pause();
                    rig.world.run_for(long);
                    append_some(&mut host, 20);
                    rig.world.run_for(long / 4);
                    rig.world.heal(NAMES[0], NAMES[1]);
                    process.resume();
                }
            }
            settle(&rig, &mut host);
            // This host does not send again what a full log refused.
            let bytes = (0..2).filter(|one| rig.controllers[*one].is_some());
            let full = bytes.map(|one| rig.status(one).record_bytes).max() > Some(2 << 20);
            if next(2) == 0 || full {
                destage(&rig, &mut host);
            }
            rig.run_until_mirrored();
            for controller in 0..2 {
                assert_eq!(rig.node(controller).failure(), None);
            }
        }
        whole(&mut rig, &mut host);
    }
}
