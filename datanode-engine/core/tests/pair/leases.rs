//! Read leases (C9): a new owner waits for the old one's, and no controller gives one that may be superseded.

use crate::rig::{FakeHost, NAMES, Rig, SECOND};
use crate::{append_some, begin, begin_on};
use cleave_format::ids::*;
use cleave_wire::*;
use std::rc::Rc;
use std::time::Duration;

/// Another host, connected.
fn other_host(rig: &Rig) -> FakeHost {
    let mut host = FakeHost::start_as(rig, "host-2", 2);
    host.host = 2;
    host.connect(rig);
    host
}

/// Asks until the seal is acknowledged; how long that took.
fn wait_for_seal(rig: &Rig, host: &mut FakeHost, epoch: u64) -> Duration {
    let began = rig.world.now();
    while let Err(refusal) = host.try_seal(rig, epoch, &[]) {
        assert_eq!(refusal, Refusal::OwnerAlive);
        rig.world.run_for(Duration::from_millis(50));
        assert!(rig.world.now() - began < 30 * SECOND);
    }
    host.epoch = epoch;
    rig.world.now() - began
}

#[test]
fn a_new_owner_waits_for_the_lease_of_one_that_may_live() {
    let (rig, mut old) = begin(201);
    append_some(&mut old, 20);
    old.settle(&rig);
    let mut new = other_host(&rig);
    let question = old.ask_lease();
    assert_eq!(old.lease(&rig, question), Some(vec![]));
    let asked = rig.world.now();
    assert_eq!(new.try_seal(&rig, 2, &[]), Err(Refusal::OwnerAlive));
    // C8: it takes effect at once.
    let question = old.ask_lease();
    assert_eq!(old.lease(&rig, question), Some(vec![VdiskId(1)]), "and is not renewed");
    let waited = wait_for_seal(&rig, &mut new, 2);
    let since = rig.world.now() - asked;
    assert!(since <= LEASE_COUNTED + SECOND, "{since:?}");
    assert!(since >= LEASE_COUNTED - SECOND, "{since:?} {waited:?}");
    // Everything that the old one was told is there.
    new.records = std::mem::take(&mut old.records);
    new.verify(&rig);
    // The same question again has the same answer.
    assert!(new.try_seal(&rig, 2, &[]).is_ok());
}

#[test]
fn owners_that_are_known_to_be_gone_are_not_waited_for() {
    let (rig, mut old) = begin(202);
    let question = old.ask_lease();
    assert_eq!(old.lease(&rig, question), Some(vec![]));
    let mut new = other_host(&rig);
    assert!(new.try_seal(&rig, 2, &[Epoch(1)]).is_ok());
    new.epoch = 2;
    let question = new.ask_lease();
    assert_eq!(new.lease(&rig, question), Some(vec![]));
    // The one that is gone is not the one that has it.
    assert_eq!(old.try_seal(&rig, 3, &[Epoch(1)]), Err(Refusal::OwnerAlive));
    rig.world.run_for(LEASE_COUNTED);
    assert!(old.try_seal(&rig, 3, &[Epoch(1)]).is_ok());
    // Nobody has asked for long.
    rig.world.run_for(LEASE_COUNTED);
    assert!(new.try_seal(&rig, 4, &[]).is_ok());
}

#[test]
fn whoever_takes_the_role_over_counts_every_lease_anew() {
    let mut rig = Rig::new(203);
    rig.share_pool();
    let (mut rig, mut old) = begin_on(rig);
    let question = old.ask_lease();
    assert_eq!(old.lease(&rig, question), Some(vec![]));
    rig.world.run_for(LEASE_COUNTED);
    let mut new = other_host(&rig);
    rig.kill(0);
    let node = Rc::clone(rig.node(1));
    assert!(rig.world.run_until(|| node.status().serving, 20 * SECOND));
    let taken = rig.world.now();
    rig.start(0);
    rig.run_until_mirrored();
    new.connect(&rig);
    wait_for_seal(&rig, &mut new, 2);
    let since = rig.world.now() - taken;
    assert!(since >= LEASE_COUNTED - SECOND && since <= LEASE_COUNTED + SECOND, "{since:?}");
}

/// While the standby is away the store's word is needed; without either nobody knows that this controller still is active.
#[test]
fn a_lease_needs_the_word_of_the_standby_or_of_the_store() {
    let mut rig = Rig::new(204);
    rig.share_pool();
    let (rig, mut host) = begin_on(rig);
    rig.world.partition(NAMES[0], NAMES[1]);
    let mirrored = Rc::clone(rig.node(0));
    assert!(rig.world.run_until(|| !mirrored.is_mirrored(), 20 * SECOND));
    let question = host.ask_lease();
    assert_eq!(host.lease(&rig, question), Some(vec![]));
    // Nobody says it any more: the other one takes over, which gives its leases from then on.
    rig.stores[0].as_ref().unwrap().set_connected(false);
    rig.world.run_for(2 * SECOND);
    let question = host.ask_lease();
    assert_eq!(host.lease(&rig, question), None);
    let serving = Rc::clone(rig.node(1));
    assert!(rig.world.run_until(|| serving.status().serving, 20 * SECOND));
    let question = host.ask_lease();
    assert_eq!(host.lease(&rig, question), None);
    assert!(rig.status(0).serving, "it does not know");
    rig.stores[0].as_ref().unwrap().set_connected(true);
    rig.world.heal(NAMES[0], NAMES[1]);
    rig.run_until_mirrored();
    host.connect(&rig);
    assert_eq!(host.controller, 1);
    let question = host.ask_lease();
    assert_eq!(host.lease(&rig, question), Some(vec![]));
}
