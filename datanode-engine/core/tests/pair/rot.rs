//! Rot in the memory of the logs: mended from the other copy, copied and fetched when there is none.

use crate::rig::{FakeHost, Rig, SECOND};
use crate::{append_some, begin};
use cleave_datanode_core::Phase;
use cleave_format::ids::Position;
use cleave_format::ids::{Epoch, VdiskId};
use cleave_format::record::Record;
use cleave_format::vault::{VAULT_HEADER, choose};
use cleave_runtime::links::Class;
use cleave_wire::{ControllerMessage, HostMessage};
use std::rc::Rc;

/// Bits of a head, and of a frame.
const BITS: [u64; 4] = [9, 80 * 8 - 3, 100 * 8, 32 * 8 + 1];

fn rot_some(rig: &Rig, controller: usize) -> Vec<Position> {
    let node = rig.node(controller);
    let first = rig.status(controller).next.0 - rig.status(controller).entries;
    let rot = |(number, bit): (u64, &u64)| node.rot(Position(first + 7 * number), *bit);
    (0..).zip(&BITS).filter_map(rot).collect()
}

fn filled(seed: u64) -> (Rig, FakeHost) {
    let (rig, mut host) = begin(seed);
    append_some(&mut host, 60);
    host.settle(&rig);
    (rig, host)
}

#[test]
fn either_log_is_mended_from_the_other() {
    for controller in [0, 1] {
        let (rig, mut host) = filled(60 + controller as u64);
        assert_eq!(rot_some(&rig, controller).len(), BITS.len());
        assert!(!rig.node(controller).is_sound() && rig.node(1 - controller).is_sound());
        let node = Rc::clone(rig.node(controller));
        assert!(rig.world.run_until(|| node.is_sound(), 30 * SECOND));
        let counters = rig.status(controller).counters;
        assert_eq!((counters.rotted, counters.mended, counters.given_up), (4, 4, 0));
        host.verify(&rig);
    }
}

#[test]
fn a_fetch_waits_until_what_it_gives_is_mended() {
    let (rig, mut host) = filled(62);
    rot_some(&rig, 0);
    host.seal(&rig).unwrap();
    host.verify(&rig);
    assert!(rig.node(0).is_sound());
}

#[test]
fn what_is_damaged_in_both_is_given_as_far_as_it_can_be_read() {
    let (rig, mut host) = filled(63);
    let places = rot_some(&rig, 0);
    assert_eq!(rot_some(&rig, 1), places);
    let written = host.records.clone();
    let found = host.fetch(&rig);
    assert_eq!(found.len(), written.len(), "each is there, under its own name");
    let differ: Vec<_> = found.iter().filter(|(name, bytes)| **bytes != written[*name].0).collect();
    assert_eq!(differ.len(), BITS.len());
    let given_up =
        differ.iter().filter(|(_, bytes)| Record::decode(bytes).unwrap().entries().count() == 512);
    assert_eq!(given_up.count() as u64, rig.status(0).counters.given_up);
    assert!(rig.status(0).counters.given_up > 0);
}

#[test]
fn an_unreadable_record_does_not_keep_the_other_controller_out() {
    for (copier, seed) in [(1, 64), (0, 65)] {
        let (mut rig, mut host) = filled(seed);
        let source = 1 - copier;
        rig.kill(copier);
        rot_some(&rig, source);
        rig.start(copier);
        rig.run_until_mirrored();
        assert!(rig.status(source).counters.given_up > 0);
        host.settle(&rig);
        if copier == 0 {
            host.connect(&rig);
        }
        append_some(&mut host, 10);
        host.settle(&rig);
        let written = host.records.clone();
        assert_eq!(host.fetch(&rig).len(), written.len());
    }
}

/// Sends a seal of the next epoch, and lets the world go on until a bit of its control record flipped at `controller`,
/// which has it when the standby was sent it, and before the effects at the active. Gives the request.
fn rot_a_seal(rig: &Rig, host: &mut FakeHost, controllers: &[usize], bit: u64) -> u64 {
    host.epoch += 1;
    let (vdisk, epoch) = (VdiskId(host.vdisk), Epoch(host.epoch));
    let from = rig.status(0).next;
    // Its predecessors are dead.
    let gone: Vec<Epoch> = (0..epoch.0).map(Epoch).collect();
    let seal = |request| HostMessage::Seal { request, vdisk, epoch, gone: gone.clone() };
    let asked = host.ask(Class::Log, None, seal);
    for controller in controllers {
        let node = Rc::clone(rig.node(*controller));
        let rotted = || node.rot_control(from, bit).is_some();
        assert!(rig.world.run_until(rotted, 30 * SECOND));
    }
    asked
}

// Rule 3.3 and C11: effects wait until the control record is what was decided.
#[test]
fn a_control_record_is_mended_before_its_effects() {
    for bit in [0, 33, 100, 150, 200] {
        let (rig, mut host) = filled(66);
        let asked = rot_a_seal(&rig, &mut host, &[0], bit);
        let (reply, _) = host.reply(&rig, asked).expect("it is answered");
        assert!(matches!(reply, ControllerMessage::Done { result: Ok(_), .. }), "{reply:?}");
        let counters = rig.status(0).counters;
        assert_eq!((counters.rotted, counters.mended), (1, 1));
        host.verify(&rig);
        assert_eq!((rig.node(0).failure(), rig.node(1).failure()), (None, None));
    }
}

#[test]
fn a_control_record_that_rotted_in_both_has_no_effects() {
    let (rig, mut host) = filled(67);
    // The standby has it first, for the active's effects wait for its answer.
    rot_a_seal(&rig, &mut host, &[1, 0], 77);
    let active = Rc::clone(rig.node(0));
    assert!(rig.world.run_until(|| active.failure().is_some(), 30 * SECOND));
    let failure = active.failure().expect("it is there");
    assert!(failure.contains("rotted in memory"), "{failure}");
}

#[test]
fn a_rotted_control_record_is_not_copied() {
    let (mut rig, mut host) = filled(68);
    // Its catalog has not synced it when it dies, so it stays in the active's log.
    rot_a_seal(&rig, &mut host, &[1], 5);
    rig.kill(1);
    let (node, from) = (Rc::clone(rig.node(0)), rig.status(0).next);
    assert!(node.rot_control(Position(from.0 - 1), 40).is_some());
    drop(node);
    rig.start(1);
    let active = Rc::clone(rig.node(0));
    assert!(rig.world.run_until(|| active.failure().is_some(), 30 * SECOND));
    assert!(active.failure().expect("it is there").contains("rotted in memory"));
    assert!(!rig.node(1).is_mirrored());
}

#[test]
fn an_image_vouches_for_no_rotted_control_record() {
    let (mut rig, mut host) = filled(69);
    rot_a_seal(&rig, &mut host, &[0], 11);
    // The catalogs have no time to let it go.
    rig.stop_both_though(|controller, failure| match (controller, failure) {
        (0, Some(failure)) => assert!(failure.contains("no image is written"), "{failure}"),
        (_, failure) => assert_eq!(failure, None),
    });
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    host.connect(&rig);
    host.seal(&rig).unwrap();
    host.verify(&rig);
}

// C7, C17: an image with a record that nothing can be read of is refused; the other controller's has it sound. Of two
// generations the older one's incarnation is in no set any more, so that there is no third image to fall back to.
#[test]
fn an_image_with_an_unreadable_record_is_refused_for_the_other_ones() {
    for controller in [0, 1] {
        let (mut rig, mut host) = filled(70 + controller as u64);
        // Two generations in each vault.
        rig.stop_both();
        rig.start(0);
        rig.start(1);
        rig.run_until_mirrored();
        host.connect(&rig);
        host.seal(&rig).unwrap();
        append_some(&mut host, 20);
        host.settle(&rig);
        assert!(!rot_some(&rig, controller).is_empty());
        rig.stop_both();
        rig.start(0);
        rig.start(1);
        rig.run_until_mirrored();
        assert!(rig.node(0).is_sound() && rig.node(1).is_sound());
        host.connect(&rig);
        host.seal(&rig).unwrap();
        host.verify(&rig);
    }
}

// C7: of a newest header that is damaged nothing is left but an older generation, which the record in the store has ended.
#[test]
fn a_damaged_newest_header_leaves_no_older_image_that_counts() {
    for damaged in [&[0][..], &[1], &[0, 1]] {
        let (mut rig, mut host) = filled(72);
        rig.stop_both();
        rig.start(0);
        rig.start(1);
        rig.run_until_mirrored();
        host.connect(&rig);
        host.seal(&rig).unwrap();
        append_some(&mut host, 20);
        host.settle(&rig);
        rig.stop_both();
        for vault in damaged {
            let vault = &rig.vaults[*vault];
            let copies = vault.peek(0, 2 * VAULT_HEADER);
            let newest = choose(&copies[..VAULT_HEADER], &copies[VAULT_HEADER..]);
            let newest = newest.unwrap().expect("it was written");
            vault.overwrite(newest.copy_offset() + 40, &[0xff; 8]);
        }
        rig.start(0);
        rig.start(1);
        if damaged.len() == 2 {
            let node = Rc::clone(rig.node(0));
            let lost = || matches!(node.status().phase, Phase::NoLog(_));
            assert!(rig.world.run_until(lost, 30 * SECOND), "no older image is taken for the log");
            continue;
        }
        rig.run_until_mirrored();
        host.connect(&rig);
        host.seal(&rig).unwrap();
        host.verify(&rig);
    }
}
