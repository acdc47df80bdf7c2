//! Damage is found, by who reads or by the scrub, and mended while nobody needs what it struck (C3, C16).

use crate::append_some;
use crate::begin;
use crate::rebuild::{active, assert_whole, look_at_rest, run_until_rebuilt, stripes};
use crate::rig::{FakeHost, Rig, SECOND, shard_content, slot_image};
use cleave_datanode_core::notices::Notice;
use cleave_format::control::GrantedStripe;
use cleave_format::ids::*;
use cleave_format::layout::{SHARD, SLOT_HEADER};
use cleave_format::slot::{SlotHeader, column_checksums};
use cleave_runtime::links::Class;
use cleave_wire::*;
use std::rc::Rc;
use std::time::Duration;

/// Flips a bit of a shard's slot: of its header, or of its content.
fn flip(rig: &Rig, stripe: &GrantedStripe, shard: usize, at: usize) {
    let place = stripe.slots[shard];
    let drive = &rig.pool[usize::from(place.drive.0)];
    drive.flip_bit(rig.superblock(drive).slot_offset(place.slot) + at as u64, 3);
}

/// A pass over all stripes; gives how many it looked at, and what it left behind.
fn scrub(rig: &Rig) -> (u64, u64) {
    let node = Rc::clone(rig.node(active(rig).unwrap()));
    assert!(node.scrub());
    let over = || node.status().scrub.running && !node.status().scrub.hurried;
    assert!(rig.world.run_until(over, 600 * SECOND), "{:?}", node.status().scrub);
    let mut looked = None;
    while let Some((notice, _)) = node.next_notice() {
        if let Notice::Scrubbed(found) = notice {
            looked = Some(found.looked);
        }
    }
    (looked.expect("a pass that is over is told"), node.status().scrub.before.unrepairable)
}

fn tell_damaged(host: &mut FakeHost, stripes: Vec<StripeId>) {
    let message = HostMessage::Damaged { stripes };
    host.send(Class::Read, 0, &[encode_header(&message)]);
}

#[test]
fn what_a_host_says_is_looked_at_and_mended() {
    let (mut rig, mut host) = begin(800);
    let granted = stripes(&rig, &mut host, 4);
    flip(&rig, &granted[2], 1, SLOT_HEADER + 300_000);
    tell_damaged(&mut host, granted.iter().map(|stripe| stripe.stripe).collect());
    rig.world.run_for(3 * SECOND);
    assert_eq!(rig.status(0).counters.repaired, 1, "nobody's word counts: one is damaged");
    assert_eq!(rig.status(0).scrub.suspects, 0);
    let now = host.locate(&rig, &[granted[2].stripe]).remove(0);
    assert_ne!(now.slots[1], granted[2].slots[1]);
    let drive = granted[2].slots[1].drive;
    let reports = rig.status(0).drives;
    let counters = reports.iter().find(|(report, _)| report.drive == drive).unwrap().0.counters;
    assert_eq!((counters.damaged, counters.repaired, counters.unrepairable), (1, 1, 0));
    let node = Rc::clone(rig.node(0));
    let told = std::iter::from_fn(|| node.next_notice());
    let told = told.filter(|(notice, _)| matches!(notice, Notice::ShardRepaired { .. }));
    assert_eq!(told.count(), 1);
    // Stripes that are none, and more than a message may name.
    tell_damaged(&mut host, vec![StripeId(1 << 40), StripeId(0)]);
    tell_damaged(&mut host, granted.iter().map(|stripe| stripe.stripe).collect());
    rig.world.run_for(3 * SECOND);
    assert_eq!(rig.status(0).counters.repaired, 1);
    assert_eq!(rig.status(0).counters.malformed, 0);
    tell_damaged(&mut host, (0..65).map(StripeId).collect());
    rig.world.run_for(SECOND);
    assert_eq!(rig.status(0).counters.malformed, 1);
    drop(host);
    let rows = look_at_rest(&mut rig);
    assert_eq!(rows.len(), granted.len());
    rows.values().for_each(|now| assert_whole(&rig, now, &[]));
}

#[test]
fn sectors_that_cannot_be_read_and_headers_that_rot_are_mended_by_the_first_read() {
    let (mut rig, mut host) = begin(801);
    let granted = stripes(&rig, &mut host, 3);
    let place = granted[0].slots[0];
    let drive = &rig.pool[usize::from(place.drive.0)];
    let slot = rig.superblock(drive).slot_offset(place.slot);
    drive.spoil(slot + (SLOT_HEADER + 65_536) as u64, 4096);
    assert_eq!(host.read_shard(&rig, &granted[0], 0, 65_536..65_600), Err(ShardFault::Io));
    flip(&rig, &granted[1], 2, 40);
    assert_eq!(host.read_shard(&rig, &granted[1], 2, 0..64), Err(ShardFault::Identity));
    rig.world.run_for(3 * SECOND);
    assert_eq!(rig.status(0).counters.repaired, 2);
    // At a place of before there is another stripe's shard, or none: no reason to write anything.
    assert_eq!(host.read_shard(&rig, &granted[1], 2, 0..64), Err(ShardFault::Identity));
    rig.world.run_for(3 * SECOND);
    assert_eq!(rig.status(0).counters.repaired, 2);
    let rows = look_at_rest(&mut rig);
    rows.values().for_each(|now| assert_whole(&rig, now, &[]));
}

#[test]
fn a_scrub_finds_everything_and_a_second_one_nothing() {
    let (mut rig, mut host) = begin(802);
    let granted = stripes(&rig, &mut host, 8);
    let width = granted[0].slots.len();
    flip(&rig, &granted[0], 0, SLOT_HEADER + 5);
    flip(&rig, &granted[1], width - 1, SLOT_HEADER + SHARD - 1);
    flip(&rig, &granted[2], 1, 33);
    flip(&rig, &granted[3], 0, SLOT_HEADER + 70_000);
    flip(&rig, &granted[3], width - 2, SLOT_HEADER + 80_000);
    assert_eq!(scrub(&rig), (8, 0));
    assert_eq!(rig.status(0).counters.repaired, 5);
    let verified = |rig: &Rig| {
        let drives = rig.status(0).drives;
        drives.iter().map(|(report, _)| report.counters.verified_bytes).sum::<u64>()
    };
    let before = verified(&rig);
    assert_eq!(before, (8 * width as u64 - 5) * SHARD as u64);
    assert_eq!(scrub(&rig), (8, 0));
    assert_eq!(rig.status(0).counters.repaired, 5);
    assert_eq!(verified(&rig) - before, (8 * width * SHARD) as u64);
    // What is lost from now on is solved from what was mended.
    for drive in [0, 3] {
        rig.pool[drive].lose();
        rig.world.run_for(SECOND);
        run_until_rebuilt(&rig);
    }
    host.verify(&rig);
    let names: Vec<StripeId> = granted.iter().map(|stripe| stripe.stripe).collect();
    for now in host.locate(&rig, &names) {
        for shard in 0..width {
            match host.read_shard(&rig, &now, shard, 0..4096) {
                Ok(bytes) => assert!(bytes == shard_content(&now, shard)[..4096]),
                Err(fault) => assert_eq!(fault, ShardFault::Lost),
            }
        }
    }
    assert_eq!(scrub(&rig).1, 0);
    look_at_rest(&mut rig);
}

/// A shard that is sealed well, and is not what the others solve to.
#[test]
fn parity_of_other_data_is_found_and_written_anew() {
    let (mut rig, mut host) = begin(803);
    let granted = host.grant(&rig, 1).remove(0);
    append_some(&mut host, 3);
    host.settle(&rig);
    assert!(host.write_stripe(&rig, &granted).iter().all(|result| result.is_ok()));
    let shard = granted.slots.len() - 1;
    let (stripe, place) = (granted.stripe, granted.slots[shard]);
    let mut image = slot_image(&granted, shard);
    image[SLOT_HEADER + 123_456] ^= 1;
    let mut header = SlotHeader::decode(&image[..SLOT_HEADER]).unwrap();
    header.columns = column_checksums(&image[SLOT_HEADER..]);
    header.encode(&mut image[..SLOT_HEADER]);
    let write = |request| HostMessage::WriteShard { request, stripe, shard: shard as u8, place };
    let reply = host.call(&rig, Class::Bulk, Some(image.into()), write).0;
    assert!(matches!(reply, ControllerMessage::ShardWritten { result: Ok(()), .. }), "{reply:?}");
    host.commit(&rig, stripe).0.unwrap();
    rig.world.run_for(SECOND);
    assert_eq!(scrub(&rig), (1, 0));
    assert_eq!(rig.status(0).counters.repaired, 1);
    let rows = look_at_rest(&mut rig);
    assert_whole(&rig, &rows[&stripe], &[]);
}

#[test]
fn what_cannot_be_mended_is_said_and_left_as_it_is() {
    let (mut rig, mut host) = begin(804);
    let granted = stripes(&rig, &mut host, 3);
    for shard in 0..3 {
        flip(&rig, &granted[1], shard, SLOT_HEADER + 1000 * shard);
    }
    tell_damaged(&mut host, vec![granted[1].stripe]);
    rig.world.run_for(3 * SECOND);
    let node = Rc::clone(rig.node(0));
    let told = std::iter::from_fn(|| node.next_notice()).find_map(|(notice, _)| match notice {
        Notice::StripeDamaged { stripe, vdisks, .. } => Some((stripe, vdisks)),
        _ => None,
    });
    assert_eq!(told, Some((granted[1].stripe, vec![VdiskId(host.vdisk)])));
    assert_eq!(scrub(&rig), (3, 1));
    assert_eq!(rig.status(0).counters.repaired, 0);
    let rows = look_at_rest(&mut rig);
    assert_eq!(rows[&granted[1].stripe].slots, granted[1].slots);
}

/// Whatever dies in the middle, the next controller goes on with the pass, and everything is whole in the end.
#[test]
fn a_pass_outlives_controllers() {
    for seed in 810..816 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        let granted = stripes(&rig, &mut host, 12);
        for stripe in granted.iter().step_by(3) {
            flip(
                &rig,
                stripe,
                random.below(4) as usize,
                SLOT_HEADER + random.below(1 << 20) as usize,
            );
        }
        assert!(rig.node(0).scrub());
        for _ in 0..3 {
            rig.world.run_for(Duration::from_micros(random.below(400_000)));
            let victim = random.below(2) as usize;
            rig.kill(victim);
            if random.below(2) == 0 {
                rig.pool.iter().for_each(|drive| drive.power_loss());
            }
            rig.start(victim);
            rig.run_until_mirrored();
            host.settle(&rig);
            host.connect(&rig);
        }
        scrub(&rig);
        run_until_rebuilt(&rig);
        host.verify(&rig);
        let rows = look_at_rest(&mut rig);
        assert_eq!(rows.len(), granted.len(), "seed {seed}");
        rows.values().for_each(|now| assert_whole(&rig, now, &[]));
    }
}

/// By itself, stripe after stripe; a process that starts anew begins where the one before was.
#[test]
fn the_pass_goes_on_by_itself_and_where_it_was() {
    let (mut rig, mut host) = begin(820);
    stripes(&rig, &mut host, 6);
    let looked = |rig: &Rig| rig.status(active(rig).unwrap()).scrub.found.looked;
    rig.world.run_for(Duration::from_secs(3 * 3600 + 120));
    let before = looked(&rig);
    assert!((2..=5).contains(&before), "{before}");
    rig.stop_both();
    (0..2).for_each(|controller| rig.start(controller));
    rig.run_until_mirrored();
    rig.world.run_for(5 * SECOND);
    assert!((before..=before + 1).contains(&looked(&rig)), "{} after {before}", looked(&rig));
    rig.world.run_for(Duration::from_secs(7 * 3600));
    assert!(rig.status(active(&rig).unwrap()).scrub.passes >= 1);
}
