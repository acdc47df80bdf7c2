//! Shards of lost drives are written anew, by themselves, over deaths and takeovers (C16): in the end every stripe has all its
//! shards, each on a drive of its own, and no slot is lost or has two owners (C15).

use crate::rig::{FakeHost, Rig, SECOND, content, shard_content};
use crate::{append_some, begin, begin_on};
use cleave_catalog::{Catalog, Owner};
use cleave_format::control::{DriveState, GrantedStripe};
use cleave_format::ids::*;
use cleave_format::layout::{COLUMN, COLUMNS, SHARD, SLOT_HEADER};
use cleave_format::slot::SlotHeader;
use cleave_wire::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

/// Writes and commits some stripes.
fn stripes(rig: &Rig, host: &mut FakeHost, count: u16) -> Vec<GrantedStripe> {
    let granted = host.grant(rig, count);
    for stripe in &granted {
        append_some(host, 3);
        host.settle(rig);
        assert!(host.write_stripe(rig, stripe).iter().all(|result| result.is_ok()));
        host.commit(rig, stripe.stripe).0.unwrap();
    }
    granted
}

fn active(rig: &Rig) -> Option<usize> {
    let serves = |number: &usize| rig.controllers[*number].is_some() && rig.status(*number).serving;
    [0, 1].into_iter().find(serves)
}

/// Runs until the active controller has nothing more to rebuild.
fn run_until_rebuilt(rig: &Rig) {
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
fn look_at_rest(rig: &mut Rig) -> BTreeMap<StripeId, GrantedStripe> {
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
fn assert_whole(rig: &Rig, now: &GrantedStripe, lost: &[DriveId]) {
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
