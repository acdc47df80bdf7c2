//! Two controllers in the simulator, a scripted host, and everything that may happen to them: what
//! was acknowledged can always be fetched (C7), and nothing released comes back (C4).

mod rig;

use cleave_datanode_core::Phase;
use cleave_format::control::DriveState;
use cleave_format::ids::*;
use cleave_runtime::links::Class;
use cleave_wire::*;
use rig::{FakeHost, Rig, SECOND, content, slot_image};
use std::time::Duration;

/// Both run and are joined; a host has sealed its vdisk.
fn begin(seed: u64) -> (Rig, FakeHost) {
    let mut rig = Rig::new(seed);
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    let mut host = FakeHost::start(&rig, 1);
    host.connect(&rig);
    host.seal(&rig).unwrap();
    (rig, host)
}

fn append_some(host: &mut FakeHost, count: u32) {
    for number in 0..count {
        host.append(number % 5, (number as usize * 977) % 20_000);
    }
}

/// Grants, writes and commits one stripe.
fn destage(rig: &Rig, host: &mut FakeHost) {
    let granted = host.grant(rig, 1).remove(0);
    assert!(host.write_stripe(rig, &granted).iter().all(|result| result.is_ok()));
    assert_eq!(host.commit(rig, granted.stripe).1, []);
}

#[test]
fn appends_are_mirrored_fetched_and_released() {
    let (rig, mut host) = begin(1);
    append_some(&mut host, 200);
    host.settle(&rig);
    host.verify(&rig);
    assert_eq!(rig.status(0).record_bytes, rig.status(1).record_bytes);
    destage(&rig, &mut host);
    assert!(host.records.is_empty());
    append_some(&mut host, 20);
    host.settle(&rig);
    host.verify(&rig);
    assert_eq!(host.open_map(&rig).len(), 1);
    rig.world.run_for(SECOND);
    let (a, b) = (rig.status(0), rig.status(1));
    assert_eq!((a.record_bytes, a.catalog), (b.record_bytes, b.catalog));
    // C11: both catalogs have all control entries, so none is in either log.
    assert_eq!((a.control_bytes, b.control_bytes), (0, 0));
    assert_eq!(a.entries, 20);
    assert_eq!((a.counters.malformed, b.counters.malformed), (0, 0));
    assert_eq!(rig.role().unwrap().epoch, 1);
}

#[test]
fn a_shard_reads_back_and_nothing_else_passes_for_it() {
    let (rig, mut host) = begin(2);
    let granted = host.grant(&rig, 2);
    assert!(host.write_stripe(&rig, &granted[0]).iter().all(|result| result.is_ok()));
    append_some(&mut host, 3);
    host.settle(&rig);
    host.commit(&rig, granted[0].stripe).0.unwrap();
    for (shard, range) in [(0, 0..4096), (1, 100..200), (2, 900_000..1_048_576), (0, 5000..70_000)]
    {
        let bytes = host.read_shard(&rig, &granted[0], shard, range.clone()).unwrap();
        let stripe = granted[0].stripe;
        let expected: Vec<u8> =
            range.map(|offset| content(stripe, shard, offset as usize)).collect();
        assert!(bytes == expected);
    }
    // Never written; another stripe's place; another shard (C3).
    let fault = Err(ShardFault::Identity);
    assert_eq!(host.read_shard(&rig, &granted[1], 0, 0..64), fault);
    let mut swapped = granted[0].clone();
    swapped.slots.swap(0, 1);
    assert_eq!(host.read_shard(&rig, &swapped, 0, 0..64), fault);
    assert_eq!(host.read_shard(&rig, &granted[0], 0, 1_048_000..1_048_600), fault);
    // A shard that arrives damaged, or under no grant (C15).
    let place = granted[1].slots[0];
    let stripe = granted[1].stripe;
    let write = |request| HostMessage::WriteShard { request, stripe, shard: 0, place };
    let mut image = slot_image(&granted[1], 0);
    image[70_000] ^= 1;
    let reply = host.call(&rig, Class::Bulk, Some(image.into()), write).0;
    let ControllerMessage::ShardWritten { result, .. } = reply else { panic!("{reply:?}") };
    assert_eq!(result, Err(ShardFault::Damaged));
    assert_eq!(host.write_stripe(&rig, &granted[0])[0], Err(ShardFault::Identity));
}

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
    assert_eq!(rig.role().unwrap().epoch, epoch + 1);
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
    assert_eq!(rig.role().unwrap(), before);
    rig.order_start_empty();
    rig.run_until_mirrored();
    let after = rig.role().unwrap();
    assert_eq!(after.epoch, before.epoch + 1);
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

#[test]
fn a_newer_owner_fences_the_older() {
    let (rig, mut host) = begin(11);
    append_some(&mut host, 30);
    host.settle(&rig);
    let granted = host.grant(&rig, 1).remove(0);
    host.write_stripe(&rig, &granted);
    host.seal(&rig).unwrap();
    // C8: the older epoch's append is refused, and so is its part of a commit (C4).
    host.epoch -= 1;
    let (result, struck) = host.commit(&rig, granted.stripe);
    assert!(result.is_ok());
    assert_eq!(struck, [VdiskId(1)]);
    host.append(77, 100);
    rig.world.run_for(SECOND);
    host.look();
    let refused = host.told.borrow().events.iter().any(|event| {
        matches!(event.2, ControllerMessage::AppendRefused { reason: Refusal::Sealed, .. })
    });
    assert!(refused);
    host.records.retain(|_, record| record.1);
    host.epoch += 1;
    host.verify(&rig);
    rig.world.run_for(SECOND);
    assert_eq!(rig.status(0).stripes, 0);
    assert_eq!(rig.status(0).slots.0, rig.status(0).slots.1, "the slots came back");
}

#[test]
fn a_new_incarnation_ends_the_grants_of_the_old() {
    let (rig, mut host) = begin(12);
    let granted = host.grant(&rig, 4);
    host.process.kill();
    let mut next = FakeHost::start(&rig, 2);
    next.connect(&rig);
    rig.world.run_for(SECOND);
    let status = rig.status(0);
    assert_eq!(status.grants, 0);
    assert_eq!(status.slots.0, status.slots.1);
    assert_eq!(next.write_stripe(&rig, &granted[0])[0], Err(ShardFault::Identity));
    assert_eq!(next.commit(&rig, granted[0].stripe).0, Err(Refusal::NoGrant));
    next.epoch = 1;
    next.seal(&rig).unwrap();
    next.verify(&rig);
}

#[test]
fn a_deleted_vdisk_is_gone_with_its_stripes() {
    let (rig, mut host) = begin(13);
    append_some(&mut host, 30);
    host.settle(&rig);
    destage(&rig, &mut host);
    append_some(&mut host, 30);
    host.settle(&rig);
    assert!(rig.status(0).slots.1 < rig.status(0).slots.0);
    let (vdisk, epoch) = (VdiskId(1), Epoch(host.epoch));
    let delete = |request| HostMessage::Delete { request, vdisk, epoch };
    let (reply, _) = host.call(&rig, Class::Log, None, delete);
    assert!(matches!(reply, ControllerMessage::Done { result: Ok(_), .. }), "{reply:?}");
    rig.world.run_for(SECOND);
    let (a, b) = (rig.status(0), rig.status(1));
    assert_eq!((a.record_bytes, b.record_bytes, a.slots.1), (0, 0, a.slots.0));
    assert_eq!(host.seal(&rig), Err(Refusal::Sealed));
}

#[test]
fn lost_drives_are_noticed_told_and_left_out() {
    let (mut rig, mut host) = begin(14);
    let granted = host.grant(&rig, 2);
    append_some(&mut host, 10);
    host.settle(&rig);
    assert!(host.write_stripe(&rig, &granted[0]).iter().all(|result| result.is_ok()));
    let first = granted[0].slots[0].drive;
    rig.pool[usize::from(first.0)].lose();
    rig.world.run_for(SECOND);
    let status = rig.status(0);
    let lost =
        |report: &cleave_datanode_core::drives::DriveReport| report.state == DriveState::Lost;
    let lost: Vec<DriveId> =
        status.drives.iter().filter(|(report, _)| lost(report)).map(|(r, _)| r.drive).collect();
    assert_eq!(lost, [first], "within a second");
    let told = host.told.borrow().events.iter().any(
        |event| matches!(&event.2, ControllerMessage::LostDrives { drives } if *drives == [first]),
    );
    assert!(told);
    // C16: one shard may be missing.
    host.commit(&rig, granted[0].stripe).0.unwrap();
    assert_eq!(host.read_shard(&rig, &granted[0], 0, 0..64), Err(ShardFault::Lost));
    let second = granted[1].slots.iter().map(|place| place.drive).find(|drive| *drive != first);
    rig.pool[usize::from(second.unwrap().0)].lose();
    rig.world.run_for(SECOND);
    host.write_stripe(&rig, &granted[1]);
    let lacks = granted[1].slots.iter().filter(|p| p.drive == first || Some(p.drive) == second);
    if lacks.count() == 2 {
        assert_eq!(host.commit(&rig, granted[1].stripe).0, Err(Refusal::Degraded));
    }
    let narrow = host.grant(&rig, 1).remove(0);
    assert!(narrow.slots.iter().all(|p| p.drive != first && Some(p.drive) != second));
    // A lost drive stays lost when it returns.
    rig.pool[usize::from(first.0)].come_back();
    rig.kill(0);
    rig.start(0);
    rig.run_until_mirrored();
    rig.world.run_for(SECOND);
    let status = rig.status(0);
    assert_eq!(status.drives.iter().filter(|(r, _)| r.state == DriveState::Lost).count(), 2);
}

#[test]
fn hosts_that_are_none_are_refused() {
    let (rig, mut host) = begin(15);
    // The standby refuses, an older incarnation is superseded, nonsense closes the connection.
    let mut older = FakeHost::start_as(&rig, "host-2", 1);
    older.connect_expecting_refusal(&rig, "certificate");
    host.send(Class::Read, 0, &[bytes::Bytes::from_static(&[9, 0, 0, 0, 1, 2])]);
    rig.world.run_for(2 * SECOND);
    assert!(!host.is_connected());
    host.connect(&rig);
    host.verify(&rig);
    host.process.kill();
    let mut next = FakeHost::start(&rig, 5);
    next.connect(&rig);
    next.process.kill();
    let mut back = FakeHost::start(&rig, 4);
    back.connect_expecting_refusal(&rig, "newer incarnation");
}

/// Kills at random, one controller at a time; the host goes on with its work.
#[test]
fn one_controller_at_a_time_may_die_at_any_moment() {
    for seed in 100..112 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        for _ in 0..6 {
            for _ in 0..random.below(60) {
                host.append(random.below(7) as u32, random.below(30_000) as usize);
                rig.world.run_for(Duration::from_micros(random.below(300)));
                host.look();
            }
            if random.below(3) == 0 && host.is_connected() {
                host.settle(&rig);
                destage(&rig, &mut host);
            }
            let victim = random.below(2) as usize;
            rig.kill(victim);
            rig.world.run_for(Duration::from_millis(random.below(1500)));
            rig.start(victim);
            rig.run_until_mirrored();
            host.settle(&rig);
            host.connect(&rig);
            host.verify(&rig);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let (mut rig, mut host) = begin(seed);
        append_some(&mut host, 100);
        host.settle(&rig);
        destage(&rig, &mut host);
        append_some(&mut host, 100);
        rig.kill(0);
        rig.start(0);
        rig.run_until_mirrored();
        host.settle(&rig);
        host.connect(&rig);
        host.verify(&rig);
        rig.stop_both();
        rig.world.trace_hash()
    };
    assert_eq!(run(50), run(50));
    assert_ne!(run(50), run(51));
}

/// C10, C16: what failed is not reported as written, and the drive is not used again.
#[test]
fn drives_that_fail() {
    let (rig, mut host) = begin(51);
    let granted = host.grant(&rig, 3);
    let drive = |place: usize| &rig.pool[usize::from(granted[0].slots[place].drive.0)];
    drive(1).fail_next(1);
    let results = host.write_stripe(&rig, &granted[0]);
    assert_eq!(results[1], Err(ShardFault::Lost));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), results.len() - 1);
    let failed = granted[0].slots[1].drive;
    let status = rig.status(0);
    let report = &status.drives.iter().find(|(report, _)| report.drive == failed).unwrap().0;
    assert_eq!(report.state, DriveState::Lost);
    assert!(!report.reason.is_empty());
    host.commit(&rig, granted[0].stripe).0.unwrap();
    // No space is no loss.
    let full = granted[1].slots.iter().position(|place| place.drive != failed).unwrap();
    rig.pool[usize::from(granted[1].slots[full].drive.0)].set_full(true);
    let results = host.write_stripe(&rig, &granted[1]);
    assert_eq!(results[full], Err(ShardFault::NoSpace));
    let lost = |status: cleave_datanode_core::status::Status| {
        status.drives.iter().filter(|(r, _)| r.state == DriveState::Lost).count()
    };
    assert_eq!(lost(rig.status(0)), 1);
    // Sectors that cannot be read fail their reads, and the drive only after many.
    let (shard, place) = (0, granted[0].slots[0]);
    let slot = u64::from(place.slot.0) * cleave_format::layout::SLOT as u64 + (1 << 20);
    rig.pool[usize::from(place.drive.0)].spoil(slot + 4096 + 65_536, 4096);
    assert!(host.read_shard(&rig, &granted[0], shard, 0..4096).is_ok());
    let bad = 65_536..65_600;
    assert_eq!(host.read_shard(&rig, &granted[0], shard, bad.clone()), Err(ShardFault::Io));
    assert_eq!(lost(rig.status(0)), 1);
    for _ in 0..cleave_datanode_core::drives::READ_ERRORS_MAX {
        let _ = host.read_shard(&rig, &granted[0], shard, bad.clone());
    }
    assert_eq!(lost(rig.status(0)), 2);
    rig.world.run_for(6 * SECOND);
    assert_eq!(rig.status(0).damage.degraded, 1);
}

/// Shards in flight when the controller dies: none is committed, and their slots come back.
#[test]
fn a_controller_dies_while_shards_are_written() {
    let (mut rig, mut host) = begin(52);
    let granted = host.grant(&rig, 2);
    for (shard, place) in granted[0].slots.iter().enumerate() {
        let (stripe, place) = (granted[0].stripe, *place);
        let header = HostMessage::WriteShard {
            request: 900 + shard as u64,
            stripe,
            shard: shard as u8,
            place,
        };
        let image = bytes::Bytes::from(slot_image(&granted[0], shard));
        host.send(Class::Bulk, 0, &[encode_header(&header), image]);
    }
    rig.world.run_for(Duration::from_micros(900));
    rig.kill(0);
    rig.start(0);
    rig.run_until_mirrored();
    host.connect(&rig);
    // The grants hold for the same incarnation: it writes again.
    append_some(&mut host, 5);
    host.settle(&rig);
    assert!(host.write_stripe(&rig, &granted[0]).iter().all(|result| result.is_ok()));
    host.commit(&rig, granted[0].stripe).0.unwrap();
    let give_back = HostMessage::ReturnGrant { stripes: vec![granted[1].stripe] };
    host.send(Class::Log, 0, &[encode_header(&give_back)]);
    rig.world.run_for(SECOND);
    assert_eq!(rig.status(0).grants, 0);
    let used = rig.status(0).slots.0 - rig.status(0).slots.1;
    assert_eq!(used, granted[0].slots.len() as u64);
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

/// A host that fills the log is refused, and the log goes on (C13).
#[test]
fn a_full_log_still_commits() {
    let (rig, mut host) = begin(74);
    let granted = host.grant(&rig, 1).remove(0);
    assert!(host.write_stripe(&rig, &granted).iter().all(|result| result.is_ok()));
    for number in 0..400 {
        host.append(number % 5, 60_000);
        if number % 20 == 0 {
            rig.world.run_for(Duration::from_millis(2));
        }
    }
    rig.world.run_for(SECOND);
    host.look();
    let refused = host.told.borrow().events.iter().any(|event| {
        matches!(event.2, ControllerMessage::AppendRefused { reason: Refusal::Full, .. })
    });
    assert!(refused);
    host.commit(&rig, granted.stripe).0.unwrap();
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
    let status = rig.status(0);
    assert!(status.memory.0 <= status.memory.1);
}

/// Everything at once: cuts, breaks, pauses and kills of either controller, with time to heal between.
#[test]
fn faults_of_all_kinds_one_after_another() {
    for seed in 200..208 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        for _ in 0..8 {
            for _ in 0..random.below(40) {
                host.append(random.below(7) as u32, random.below(20_000) as usize);
            }
            rig.world.run_for(Duration::from_micros(random.below(2000)));
            let victim = random.below(2) as usize;
            match random.below(6) {
                0 => {
                    rig.world.break_connections(rig::NAMES[0], rig::NAMES[1]);
                }
                1 => {
                    rig.world.partition(rig::NAMES[0], rig::NAMES[1]);
                    rig.world.run_for(Duration::from_millis(random.below(4000)));
                    rig.world.heal_all();
                }
                2 => {
                    let process = rig.controllers[victim].as_ref().unwrap().process.clone();
                    process.pause();
                    rig.world.run_for(Duration::from_millis(random.below(4000)));
                    process.resume();
                }
                3 => {
                    rig.world.break_connections("host-1", rig::NAMES[0]);
                }
                4 => {
                    for direct in rig.stores.iter().flatten() {
                        direct.set_connected(false);
                        direct.set_connected(true);
                    }
                    rig.kill(victim);
                    rig.start(victim);
                }
                _ => {
                    rig.kill(victim);
                    rig.world.run_for(Duration::from_millis(random.below(800)));
                    rig.start(victim);
                }
            }
            rig.world.run_for(Duration::from_millis(random.below(300)));
            rig.run_until_mirrored();
            host.connect(&rig);
            host.settle(&rig);
            host.verify(&rig);
            if random.below(2) == 0 {
                destage(&rig, &mut host);
                host.verify(&rig);
            }
        }
    }
}

/// More bytes asked for than may be on their way: all are answered, in time.
#[test]
fn reads_wait_for_a_host_that_takes_its_time() {
    let (rig, mut host) = begin(75);
    let granted = host.grant(&rig, 1).remove(0);
    assert!(host.write_stripe(&rig, &granted).iter().all(|result| result.is_ok()));
    let (stripe, count) = (granted.stripe, 200);
    for request in 0..count {
        let shard = (request % granted.slots.len() as u64) as u8;
        let place = granted.slots[usize::from(shard)];
        let read = HostMessage::Read {
            request: 10_000 + request,
            place,
            stripe,
            shard,
            offset: 0,
            length: 1 << 20,
        };
        host.send(Class::Read, 0, &[encode_header(&read)]);
    }
    for request in 0..count {
        let (reply, payload) = host.reply(&rig, 10_000 + request).unwrap();
        assert!(matches!(reply, ControllerMessage::Read { result: Ok(()), .. }));
        assert_eq!(payload.len(), 1 << 20);
    }
}

/// Control records wait for room until both catalogs have earlier ones, and lose nothing (C13).
#[test]
fn control_records_wait_for_room() {
    let (rig, mut host) = begin(76);
    let grant = |request| HostMessage::Grant { request, stripes: 0, identities: 10 };
    for request in 20_000..20_100 {
        host.send(Class::Log, 0, &[encode_header(&grant(request))]);
    }
    let mut most = 0;
    let mut all = Vec::new();
    for request in 20_000..20_100 {
        match host.reply(&rig, request).unwrap().0 {
            ControllerMessage::Granted { identities, .. } => all.extend(identities),
            other => panic!("{other:?}"),
        }
        most = most.max(rig.status(0).control_bytes);
    }
    assert!(most <= rig::LOG.control_bytes_max);
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!((all.len(), count), (1000, 1000));
}
