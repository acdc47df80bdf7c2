//! Shards of lost drives are written anew, by themselves, over deaths and takeovers (C16): in the end every stripe has all its
//! shards, each on a drive of its own, and no slot is lost or has two owners (C15).

use crate::rig::{FakeHost, Rig, SECOND, content, shard_content};
use crate::{append_some, begin, begin_on};
use cleave_catalog::{Catalog, Owner};
use cleave_format::control::{DriveState, GrantedStripe, MapRun};
use cleave_format::ids::*;
use cleave_format::layout::{COLUMN, COLUMNS, SHARD, SLOT_HEADER};
use cleave_format::slot::SlotHeader;
use cleave_wire::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Writes and commits some stripes.
pub(crate) fn stripes(rig: &Rig, host: &mut FakeHost, count: u16) -> Vec<GrantedStripe> {
    let granted = host.grant(rig, count);
    for stripe in &granted {
        append_some(host, 3);
        host.settle(rig);
        assert!(host.write_stripe(rig, stripe).iter().all(|result| result.is_ok()));
        host.commit(rig, stripe.stripe).0.unwrap();
    }
    granted
}

pub(crate) fn active(rig: &Rig) -> Option<usize> {
    let serves = |number: &usize| rig.controllers[*number].is_some() && rig.status(*number).serving;
    [0, 1].into_iter().find(serves)
}

/// Runs until the active controller has nothing more to rebuild.
pub(crate) fn run_until_rebuilt(rig: &Rig) {
    let rebuilt = rig.world.run_until(
        || {
            active(rig).is_some_and(|number| {
                let status = rig.status(number);
                !status.rebuild.running && status.rebuild.waiting == 0 && status.grants == 0
            })
        },
        120 * SECOND,
    );
    assert!(rebuilt, "{:?}", active(rig).map(|number| rig.status(number)));
    rig.world.run_for(SECOND);
}

/// Both stop; looks at what lies on the drives. Gives the stripes' rows.
pub(crate) fn look_at_rest(rig: &mut Rig) -> BTreeMap<StripeId, GrantedStripe> {
    let status = rig.status(active(rig).unwrap());
    let (slots, free) = status.slots;
    rig.stop_both();
    let owner = Owner { cluster: crate::rig::CLUSTER, datanode: DatanodeId(1) };
    let open = |n: usize| {
        Catalog::open_storage(rig.catalogs[n].open(), Path::new("catalog"), owner).unwrap()
    };
    let (a, b) = (open(0), open(1));
    let resident = a.resident().unwrap();
    assert_eq!(resident, b.resident().unwrap());
    assert_eq!(resident.grants, [], "what was lent is given back");
    let all: Vec<StripeId> = (1..=resident.newest_stripe.0).map(StripeId).collect();
    let rows = a.locate(&all).unwrap();
    assert_eq!(rows, b.locate(&all).unwrap());
    let mut owners = BTreeMap::new();
    for row in &rows {
        for place in &row.slots {
            let other = owners.insert((place.drive, place.slot), row.stripe);
            assert_eq!(other, None, "{place:?} has two owners");
        }
    }
    assert_eq!(slots - free, owners.len() as u64, "each slot that is taken is a stripe's");
    rows.into_iter().map(|row| (row.stripe, row)).collect()
}

/// A stripe is whole: all of its shards, on different drives that are there, with the right content.
pub(crate) fn assert_whole(rig: &Rig, now: &GrantedStripe, lost: &[DriveId]) {
    let mut drives: Vec<DriveId> = now.slots.iter().map(|place| place.drive).collect();
    assert!(drives.iter().all(|drive| !lost.contains(drive)), "{now:?} with {lost:?} lost");
    drives.sort_unstable();
    drives.dedup();
    assert_eq!(drives.len(), now.slots.len(), "two shards on one drive: {now:?}");
    for (shard, place) in now.slots.iter().enumerate() {
        let drive = &rig.pool[usize::from(place.drive.0)];
        let offset = rig.superblock(drive).slot_offset(place.slot);
        let header = SlotHeader::decode(&drive.peek(offset, SLOT_HEADER)).unwrap();
        header.check_identity(crate::rig::CLUSTER, now.stripe, shard, place).unwrap();
        let data = drive.peek(offset + SLOT_HEADER as u64, SHARD);
        (0..COLUMNS).for_each(|n| header.check_column(n, &data[n * COLUMN..][..COLUMN]).unwrap());
        assert!(data == shard_content(now, shard), "{now:?}, shard {shard}");
    }
}

#[test]
fn a_lost_drive_leaves_whole_stripes_behind() {
    let (mut rig, mut host) = begin(700);
    let granted = stripes(&rig, &mut host, 12);
    // One that lacks a shard from the beginning.
    let lacking = host.grant(&rig, 1).remove(0);
    let lost = lacking.slots[1].drive;
    rig.pool[usize::from(lost.0)].lose();
    rig.world.run_for(SECOND);
    append_some(&mut host, 3);
    host.settle(&rig);
    host.write_stripe(&rig, &lacking);
    host.commit(&rig, lacking.stripe).0.unwrap();
    rig.world.run_for(SECOND);
    run_until_rebuilt(&rig);
    let status = rig.status(0);
    let moved = granted.iter().chain([&lacking]);
    let moved = moved.filter(|g| g.slots.iter().any(|place| place.drive == lost)).count();
    assert_eq!(status.counters.rebuilt, moved as u64);
    assert_eq!((status.rebuild.without_room, status.rebuild.unreadable), (0, 0));
    // Who asks is told where they lie now; at the old place there is nothing, as of any lost drive.
    let names: Vec<StripeId> = granted.iter().map(|granted| granted.stripe).collect();
    for (before, now) in granted.iter().zip(host.locate(&rig, &names)) {
        for shard in 0..now.slots.len() {
            let bytes = host.read_shard(&rig, &now, shard, 70_000..70_064).unwrap();
            let expected: Vec<u8> =
                (70_000..70_064).map(|at| shard_content(&now, shard)[at]).collect();
            assert_eq!(bytes, expected);
            if before.slots[shard] != now.slots[shard] {
                assert_eq!(before.slots[shard].drive, lost);
                let old = host.read_shard(&rig, before, shard, 0..64);
                assert!(matches!(old, Err(ShardFault::Identity | ShardFault::Lost)), "{old:?}");
            }
        }
    }
    rig.world.run_for(6 * SECOND);
    assert_eq!(rig.status(0).damage.degraded, 0);
    // Another one: of six drives four are left for five shards, so as many are rebuilt as have a drive.
    let second = DriveId((lost.0 + 1) % 6);
    rig.pool[usize::from(second.0)].lose();
    rig.world.run_for(SECOND);
    run_until_rebuilt(&rig);
    let report = rig.status(0).rebuild;
    assert!(report.without_room > 0 && report.unreadable == 0, "{report:?}");
    for (stripe, now) in look_at_rest(&mut rig) {
        let lacks = now.slots.iter().filter(|place| place.drive == second).count();
        assert!(lacks <= 1 && now.slots.iter().all(|place| place.drive != lost), "{stripe}");
    }
}

/// Whatever dies between any two steps, while stripes are written and deleted.
#[test]
fn kills_between_any_two_steps_leave_the_old_place_or_the_new_one() {
    for seed in 710..722 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        let mut granted = stripes(&rig, &mut host, 6 + random.below(6) as u16);
        let lost = DriveId(random.below(6) as u16);
        rig.pool[usize::from(lost.0)].lose();
        for round in 0..6 {
            rig.world.run_for(Duration::from_micros(random.below(700_000)));
            if random.below(4) == 0 {
                rig.stop_both();
                (0..2).for_each(|controller| rig.start(controller));
            } else {
                let victim = random.below(2) as usize;
                rig.kill(victim);
                if random.below(2) == 0 {
                    rig.pool.iter().for_each(|drive| drive.power_loss());
                }
                rig.world.run_for(Duration::from_millis(random.below(300)));
                rig.start(victim);
            }
            rig.run_until_mirrored();
            host.settle(&rig);
            host.connect(&rig);
            if round % 2 == 0 {
                granted.extend(stripes(&rig, &mut host, 1));
            }
        }
        run_until_rebuilt(&rig);
        host.verify(&rig);
        let rows = look_at_rest(&mut rig);
        assert_eq!(rows.len(), granted.len(), "seed {seed}");
        rows.values().for_each(|now| assert_whole(&rig, now, &[lost]));
    }
}

/// C15: the active one is paused with writes to lent slots on their way; the other takes over, goes on alone, and rebuilds.
/// What lands late lands nowhere that is in use.
#[test]
fn another_controller_takes_over_in_the_middle() {
    for seed in 730..742 {
        let mut rig = Rig::new(seed);
        rig.share_pool();
        rig.alone = true;
        let (mut rig, mut host) = begin_on(rig);
        let random = rig.world.random();
        let granted = stripes(&rig, &mut host, 10);
        let lost = DriveId(random.below(6) as u16);
        rig.pool[usize::from(lost.0)].lose();
        rig.world.run_for(Duration::from_millis(300));
        rig.pool.iter().for_each(|drive| drive.slow(300));
        rig.world.run_for(Duration::from_millis(random.below(1500)));
        let paused = rig.controllers[0].as_ref().unwrap().process.clone();
        paused.pause();
        rig.pool.iter().for_each(|drive| drive.slow(1));
        let node = std::rc::Rc::clone(rig.node(1));
        let alone = || node.status().phase == cleave_datanode_core::Phase::Alone;
        assert!(rig.world.run_until(alone, 30 * SECOND), "{:?}", node.status());
        host.settle(&rig);
        host.connect(&rig);
        rig.world.run_for(Duration::from_millis(random.below(3000)));
        paused.resume();
        rig.run_until_mirrored();
        host.settle(&rig);
        host.connect(&rig);
        run_until_rebuilt(&rig);
        let rows = look_at_rest(&mut rig);
        assert_eq!(rows.len(), granted.len());
        rows.values().for_each(|now| assert_whole(&rig, now, &[lost]));
    }
}

/// C16: a stripe that ends while it is rebuilt does not come back, and its slots are free.
#[test]
fn what_is_deleted_meanwhile_stays_deleted() {
    for seed in 750..760 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        stripes(&rig, &mut host, 8);
        rig.pool[0].lose();
        rig.world.run_for(Duration::from_micros(500_000 + random.below(200_000)));
        let (vdisk, epoch) = (VdiskId(host.vdisk), Epoch(host.epoch));
        let delete = |request| HostMessage::Delete { request, vdisk, epoch };
        let deleted = host.call(&rig, cleave_runtime::links::Class::Log, None, delete).0;
        assert!(matches!(deleted, ControllerMessage::Done { result: Ok(_), .. }), "{deleted:?}");
        run_until_rebuilt(&rig);
        assert_eq!(rig.status(0).slots.0, rig.status(0).slots.1, "seed {seed}");
        assert!(look_at_rest(&mut rig).is_empty());
    }
}

/// C3: what is read to solve others is checked; a damaged shard is written anew, too.
#[test]
fn a_damaged_shard_is_not_spread() {
    let (mut rig, mut host) = begin(770);
    let granted = stripes(&rig, &mut host, 4);
    let lost = granted[0].slots[0].drive;
    // In each stripe that lacks one, another one is damaged.
    for stripe in &granted {
        let place = stripe.slots.iter().find(|place| place.drive != lost).unwrap();
        let drive = &rig.pool[usize::from(place.drive.0)];
        let offset = rig.superblock(drive).slot_offset(place.slot) + SLOT_HEADER as u64;
        drive.flip_bit(offset + 300_000, 3);
    }
    rig.pool[usize::from(lost.0)].lose();
    rig.world.run_for(SECOND);
    run_until_rebuilt(&rig);
    let counters = rig.status(0).counters;
    assert!(counters.repaired > 0, "{counters:?}");
    let drives = rig.status(0).drives;
    let gone = drives.iter().filter(|(report, _)| report.state == DriveState::Lost).count();
    assert_eq!(gone, 1, "a damaged shard is no lost drive");
    let rows = look_at_rest(&mut rig);
    for stripe in granted.iter().filter(|g| g.slots.iter().any(|place| place.drive == lost)) {
        let now = &rows[&stripe.stripe];
        assert_whole(&rig, now, &[lost]);
        assert_eq!(content(now.stripe, 0, 16), shard_content(now, 0)[16]);
    }
}

/// C3: the place that a shard was moved from is nobody's, then another stripe's; who knows no other asks again.
#[test]
fn the_place_before_gives_nothing_whoever_has_it_next() {
    let (rig, mut host) = begin(780);
    let stripe = stripes(&rig, &mut host, 1).remove(0);
    // Shard 1 is damaged, which a pass finds that another shard's loss leads to.
    let damaged = stripe.slots[1];
    let drive = &rig.pool[usize::from(damaged.drive.0)];
    let offset = rig.superblock(drive).slot_offset(damaged.slot) + SLOT_HEADER as u64;
    drive.flip_bit(offset + 70_000, 3);
    assert!(host.read_shard(&rig, &stripe, 1, 0..64).is_ok(), "the place is known");
    rig.pool[usize::from(stripe.slots[0].drive.0)].lose();
    rig.world.run_for(SECOND);
    run_until_rebuilt(&rig);
    let now = host.locate(&rig, &[stripe.stripe]).remove(0);
    assert_ne!(now.slots[1], damaged);
    assert_eq!(host.read_shard(&rig, &stripe, 1, 0..64), Err(ShardFault::Identity));
    let next = loop {
        let next = host.grant(&rig, 1).remove(0);
        if next.slots.contains(&damaged) {
            break next;
        }
    };
    host.write_stripe(&rig, &next);
    assert_eq!(host.read_shard(&rig, &stripe, 1, 0..64), Err(ShardFault::Identity));
    let bytes = host.read_shard(&rig, &now, 1, 70_000..70_064).unwrap();
    assert_eq!(bytes, &shard_content(&now, 1)[70_000..70_064]);
}

/// C16: a second drive is lost while the shards of the first are written anew; both come back with what they had, and are
/// lost all the same.
#[test]
fn a_second_drive_is_lost_meanwhile_and_both_return() {
    for seed in 785..790 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        let granted = stripes(&rig, &mut host, 12);
        let first = DriveId(random.below(6) as u16);
        let second = DriveId((first.0 + 1 + random.below(5) as u16) % 6);
        rig.pool.iter().for_each(|drive| drive.slow(100));
        rig.pool[usize::from(first.0)].lose();
        let node = std::rc::Rc::clone(rig.node(0));
        let middle = || node.status().rebuild.done > 0 && node.status().rebuild.waiting > 0;
        assert!(rig.world.run_until(middle, 60 * SECOND), "{:?}", node.status().rebuild);
        rig.pool[usize::from(second.0)].lose();
        rig.pool.iter().for_each(|drive| drive.slow(1));
        rig.world.run_for(SECOND);
        run_until_rebuilt(&rig);
        rig.pool[usize::from(first.0)].come_back();
        rig.pool[usize::from(second.0)].come_back();
        rig.stop_both();
        (0..2).for_each(|controller| rig.start(controller));
        rig.run_until_mirrored();
        host.connect(&rig);
        rig.world.run_for(SECOND);
        run_until_rebuilt(&rig);
        let status = rig.status(0);
        let lost = status.drives.iter().filter(|(drive, _)| drive.state == DriveState::Lost);
        assert_eq!(lost.count(), 2, "a lost drive that returns stays lost");
        let names: Vec<StripeId> = granted.iter().map(|granted| granted.stripe).collect();
        for now in host.locate(&rig, &names) {
            let gone = |shard: &usize| [first, second].contains(&now.slots[*shard].drive);
            let lacking: Vec<usize> = (0..now.slots.len()).filter(gone).collect();
            assert!(lacking.len() <= 1, "{now:?}");
            for shard in 0..now.slots.len() {
                let read = host.read_shard(&rig, &now, shard, 70_000..70_064);
                match lacking.contains(&shard) {
                    true => assert_eq!(read, Err(ShardFault::Lost)),
                    false => {
                        assert_eq!(read.unwrap(), &shard_content(&now, shard)[70_000..70_064]);
                    }
                }
            }
        }
        look_at_rest(&mut rig);
    }
}

/// Stripes that lack two shards come first; others only when no more than the workers have in hand are left.
#[test]
fn the_most_endangered_come_first() {
    const WORKERS: usize = 4;
    let (rig, mut host) = begin(795);
    let lost = DriveId(2);
    let on_lost = |stripe: &GrantedStripe| stripe.slots.iter().any(|place| place.drive == lost);
    let plain = stripes(&rig, &mut host, 12);
    let granted = host.grant(&rig, 12);
    for stripe in &granted {
        assert!(host.write_stripe(&rig, stripe).iter().all(|result| result.is_ok()));
    }
    rig.pool.iter().for_each(|drive| drive.slow(50));
    rig.pool[usize::from(lost.0)].lose();
    // Each lacks one more, which its host could not write.
    for stripe in &granted {
        let lacking = stripe.slots.iter().position(|place| place.drive != lost).unwrap();
        host.request += 1;
        let (mut message, _) = host.commit_message(host.request, stripe.stripe);
        if let HostMessage::Commit { shards_missing, .. } = &mut message {
            *shards_missing = 1 << lacking;
        }
        let request = host.request;
        host.send(cleave_runtime::links::Class::Log, 0, &[encode_header(&message)]);
        let reply = host.reply(&rig, request).unwrap().0;
        assert!(matches!(reply, ControllerMessage::Committed { result: Ok(_), .. }), "{reply:?}");
    }
    assert!(rig.status(0).drives.iter().all(|(drive, _)| drive.state == DriveState::Active));
    let endangered: Vec<_> = granted.iter().filter(|stripe| on_lost(stripe)).cloned().collect();
    let plain: Vec<_> = plain.into_iter().filter(on_lost).collect();
    assert!(endangered.len() > WORKERS && plain.len() > WORKERS);
    let mut moved_at = Vec::new();
    let all: Vec<GrantedStripe> = endangered.iter().chain(&plain).cloned().collect();
    let names: Vec<StripeId> = all.iter().map(|stripe| stripe.stripe).collect();
    for _ in 0..20_000 {
        rig.world.run_for(Duration::from_millis(1));
        let now = host.locate(&rig, &names);
        let left = |of: &[GrantedStripe]| of.iter().filter(|stripe| now.contains(stripe)).count();
        let left = (left(&endangered), left(&plain));
        if moved_at.last() != Some(&left) {
            moved_at.push(left);
        }
        if left == (0, 0) {
            break;
        }
    }
    assert_eq!(moved_at.last(), Some(&(0, 0)), "all are rebuilt");
    let early = moved_at.iter().find(|(worse, better)| *worse >= WORKERS && *better < plain.len());
    assert_eq!(early, None, "{moved_at:?}");
}

/// A full pool says that there is no room, and goes on when there is. The slot that is taken then was freed by a record that the
/// catalog of the next active one has yet to apply: it is no less taken (C15).
#[test]
fn a_full_pool_waits_for_room_and_a_lagging_catalog_frees_nothing_of_since() {
    let mut rig = Rig::new(800);
    rig.share_pool();
    rig.alone = true;
    let (mut rig, mut host) = begin_on(rig);
    // One that can be read, and others that fill the pool; the last one is not committed yet.
    let mut granted = stripes(&rig, &mut host, 1);
    granted.extend(host.grant(&rig, 1));
    let mut frontier = Position(0);
    while let Some(next) = host.grant(&rig, 1).pop() {
        frontier = host.committed(&rig, granted.last().unwrap().stripe, &[], None).unwrap();
        granted.push(next);
    }
    let whole = granted[0].clone();
    let taken: Vec<DriveId> = whole.slots.iter().map(|place| place.drive).collect();
    let spare = (0..6).map(DriveId).find(|drive| !taken.contains(drive)).unwrap();
    let free = |rig: &Rig, drive: DriveId| {
        let drives = rig.status(active(rig).unwrap()).drives;
        drives.iter().find(|(report, _)| report.drive == drive).unwrap().1
    };
    assert_eq!(free(&rig, spare), 0, "or the seed shows nothing");
    rig.kill(0);
    let node = std::rc::Rc::clone(rig.node(1));
    let alone = || node.status().phase == cleave_datanode_core::Phase::Alone;
    assert!(rig.world.run_until(alone, 30 * SECOND), "{:?}", node.status());
    host.connect(&rig);
    // Not one that has its log: the next session would begin with what the catalog has.
    let log_on = node.status().alone_on;
    let lost = taken.iter().find(|drive| !log_on.contains(drive)).unwrap();
    rig.pool[usize::from(lost.0)].lose();
    let said = || node.status().rebuild.without_room > 0;
    assert!(rig.world.run_until(said, 60 * SECOND), "{:?}", node.status().rebuild);
    assert_eq!(host.locate(&rig, &[whole.stripe]), std::slice::from_ref(&whole));
    let on_spare = |stripe: &&GrantedStripe| stripe.slots.iter().any(|p| p.drive == spare);
    let freed = granted[1..granted.len() - 1].iter().find(on_spare).unwrap().clone();
    let left = MapRun { frontier, pieces: Vec::new(), unreferenced: vec![freed.stripe] };
    host.committed(&rig, granted.last().unwrap().stripe, &[], Some(left)).unwrap();
    let moved = rig.world.run_until(|| node.status().counters.rebuilt > 0, 60 * SECOND);
    assert!(moved, "{:?}", node.status().rebuild);
    rig.world.run_for(SECOND);
    let now = host.locate(&rig, &[whole.stripe]).remove(0);
    let place = *now.slots.iter().find(|place| place.drive == spare).expect("there is one slot");
    let places = |stripe: &GrantedStripe| stripe.slots.contains(&place);
    assert!(places(&freed), "it is the one that was freed");
    rig.kill(1);
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    assert!(rig.status(0).serving, "its catalog is the one that lags");
    host.connect(&rig);
    host.settle(&rig);
    rig.world.run_for(SECOND);
    assert_eq!(host.locate(&rig, &[whole.stripe]), std::slice::from_ref(&now));
    for shard in 0..now.slots.len() {
        let bytes = host.read_shard(&rig, &now, shard, 70_000..70_064).unwrap();
        assert_eq!(bytes, &shard_content(&now, shard)[70_000..70_064]);
    }
    assert_eq!(free(&rig, spare), 0, "a slot that is in use is free");
}
