//! Shards on drives: written whole or not at all, read by identity, lost drives left out.

use crate::rig::{CLUSTER, Rig, SECOND, content, slot_image};
use crate::{append_some, begin};
use cleave_datanode_core::drives::{DriveEvent, Drives};
use cleave_format::control::{DriveState, GrantedStripe, SlotPlace};
use cleave_format::ids::*;
use cleave_runtime::links::Class;
use cleave_runtime::message::Message;
use cleave_wire::*;
use std::time::Duration;

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

/// C3: a read that crosses the write of a slot's next stripe, before or behind it, neither gives the next
/// one's bytes for the old one's, nor lets a later read do so.
#[test]
fn a_read_that_crosses_a_write_does_not_mistake_the_slot() {
    for seed in 300..330 {
        let rig = Rig::new(seed);
        let process = rig.world.start_process("drives");
        let mut drives = Drives::new(CLUSTER, rig.open_pool(&process));
        let granted = |stripe| GrantedStripe {
            stripe: StripeId(stripe),
            slots: (0..3)
                .map(|drive| SlotPlace { drive: DriveId(drive), slot: SlotIndex(5), generation: 0 })
                .collect(),
        };
        let (old, new) = (granted(1), granted(2));
        let write = |drives: &mut Drives, of: &GrantedStripe, number| {
            let mut image = Message::from(bytes::Bytes::from(slot_image(of, 0)));
            drives.write(number, &of.slots[0], of.stripe, 0, 1, &mut image).unwrap();
        };
        let read = |drives: &mut Drives, of: &GrantedStripe, number| {
            drives.read(number, &of.slots[0], of.stripe, 0, 0, 4096)
        };
        let settle = |drives: &mut Drives, count: usize| {
            let mut events = Vec::new();
            let all = rig.world.run_until(
                || {
                    drives.turn(&mut events);
                    // Told besides, for operators.
                    events.retain(|event| !matches!(event, DriveEvent::Fault { .. }));
                    events.len() >= count
                },
                10 * SECOND,
            );
            assert!(all, "{} of {count} events", events.len());
            events
        };
        write(&mut drives, &old, 1);
        settle(&mut drives, 1);
        let before = read(&mut drives, &old, 2).is_ok();
        rig.world.run_for(Duration::from_micros(seed % 7 * 20));
        write(&mut drives, &new, 3);
        rig.world.run_for(Duration::from_micros(seed % 5 * 40));
        let behind = read(&mut drives, &old, 4).is_ok();
        let events = settle(&mut drives, 1 + usize::from(before) + usize::from(behind));
        let right =
            |bytes: &[u8]| bytes.iter().zip(0..).all(|(b, at)| *b == content(old.stripe, 0, at));
        for event in events {
            if let DriveEvent::Read { result: Ok(bytes), .. } = event {
                assert!(right(&bytes), "seed {seed}");
            }
        }
        read(&mut drives, &old, 5).unwrap();
        let later = settle(&mut drives, 1).remove(0);
        let refused = matches!(later, DriveEvent::Read { result: Err(ShardFault::Identity), .. });
        assert!(refused, "seed {seed}: the next stripe's bytes were given");
        read(&mut drives, &new, 6).unwrap();
        let later = settle(&mut drives, 1).remove(0);
        assert!(matches!(later, DriveEvent::Read { result: Ok(_), .. }), "seed {seed}");
    }
}
