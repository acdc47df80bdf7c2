//! What hosts may do: append, seal, commit, delete, fill the log; and what they may not.

use crate::rig::{self, FakeHost, SECOND};
use crate::{append_some, begin, destage};
use cleave_datanode_core::GRANTS_KEPT;
use cleave_format::ids::*;
use cleave_runtime::links::Class;
use cleave_wire::*;
use std::time::Duration;

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
    assert_eq!(rig.role().unwrap().epoch, 3, "each start, and the join");
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

// C19, C20: what a commit refers to stays; what nothing refers to is freed, and referred to no more, from the
// position on at which the last vdisk leaves it.
#[test]
fn a_reference_needs_a_stripe_that_stays() {
    let (rig, mut host) = begin(21);
    let granted = host.grant(&rig, 6);
    for stripe in &granted {
        assert!(host.write_stripe(&rig, stripe).iter().all(Result::is_ok));
    }
    let [a, b, c, d, e, f] = [0, 1, 2, 3, 4, 5].map(|index: usize| granted[index].stripe);
    let run = |frontier, unreferenced: &[StripeId]| {
        let (pieces, unreferenced) = (Vec::new(), unreferenced.to_vec());
        Some(cleave_format::control::MapRun { frontier, pieces, unreferenced })
    };
    let first = host.committed(&rig, a, &[], None).unwrap();
    assert_eq!(host.committed(&rig, b, &[StripeId(9999)], None), Err(Refusal::NoReference));
    let second = host.committed(&rig, b, &[a], None).unwrap();
    // A frontier before the reference leaves the stripe where it is.
    host.committed(&rig, c, &[], run(first, &[a])).unwrap();
    assert_eq!(host.list(&rig), [a, b, c]);
    assert!(host.read_shard(&rig, &granted[0], 0, 0..64).is_ok());
    // The run is decided before the reference: whether the catalog has it or not.
    let left = (d, Vec::new(), run(second, &[a]));
    let late = (e, vec![a], None);
    let results = host.committed_together(&rig, [left, late.clone()]);
    assert!(results[0].is_ok());
    assert_eq!(results[1], Err(Refusal::NoReference));
    assert_eq!(host.list(&rig), [b, c, d]);
    assert_eq!(host.read_shard(&rig, &granted[0], 0, 0..64), Err(ShardFault::Identity));
    assert_eq!(host.committed(&rig, late.0, &late.1, None), Err(Refusal::NoReference));
    // Without the reference the same stripe is good.
    host.committed(&rig, e, &[b, c], None).unwrap();
    host.committed(&rig, f, &[], None).unwrap();
    rig.world.run_for(SECOND);
    let status = rig.status(0);
    assert_eq!((status.stripes, status.counters.freed), (5, 1));
    assert_eq!(status.counters.references_refused, 3);
    assert_eq!(rig.status(1).catalog, status.catalog);
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

/// Control records wait for room until both catalogs have earlier ones, and lose nothing (C13).
#[test]
fn control_records_wait_for_room() {
    let (rig, mut host) = begin(76);
    // It asks without waiting for answers, and wants nothing twice.
    let told = StripeId(u64::MAX);
    let grant = |request| HostMessage::Grant { request, told, stripes: 0, identities: 10 };
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

/// C15: a connection renews grants; without one they end, by the log, and are refused from then on.
#[test]
fn grants_of_a_host_that_is_away_end() {
    let (mut rig, mut host) = begin(77);
    let granted = host.grant(&rig, 3);
    append_some(&mut host, 5);
    host.settle(&rig);
    rig.world.run_for(200 * SECOND);
    assert_eq!(rig.status(0).grants, 3, "a host that is connected keeps its grants");
    assert!(host.write_stripe(&rig, &granted[0]).iter().all(|result| result.is_ok()));
    let short = GRANTS_KEPT - 5 * SECOND;
    rig.world.partition("host-1", rig::NAMES[0]);
    rig.world.run_for(short);
    rig.world.heal_all();
    host.connect(&rig);
    rig.world.run_for(short);
    assert_eq!(rig.status(0).grants, 3, "it came back in time, and the time began anew");
    rig.world.partition("host-1", rig::NAMES[0]);
    rig.world.run_for(GRANTS_KEPT + 40 * SECOND);
    let status = rig.status(0);
    assert_eq!((status.grants, status.counters.expired), (0, 3));
    assert_eq!(status.slots.0, status.slots.1, "their slots are free");
    rig.world.heal_all();
    host.connect(&rig);
    assert_eq!(host.write_stripe(&rig, &granted[1])[0], Err(ShardFault::Identity));
    assert_eq!(host.commit(&rig, granted[0].stripe).0, Err(Refusal::NoGrant));
    // It plans anew, and the end outlives the controller.
    destage(&rig, &mut host);
    rig.kill(0);
    rig.start(0);
    rig.run_until_mirrored();
    host.connect(&rig);
    assert_eq!(rig.status(0).grants, 0);
    assert_eq!(host.commit(&rig, granted[0].stripe).0, Err(Refusal::NoGrant));
    host.verify(&rig);
}

/// C15: a grant whose answer was lost is given again, as long as it is not known to have arrived.
#[test]
fn grants_of_a_lost_answer_are_given_again() {
    let (rig, mut host) = begin(83);
    let known = host.grant(&rig, 1);
    let told = known[0].stripe;
    let grant =
        |told| move |request| HostMessage::Grant { request, told, stripes: 2, identities: 2 };
    let ask = |host: &mut FakeHost, told| match host.call(&rig, Class::Log, None, grant(told)).0 {
        ControllerMessage::Granted { stripes, identities, .. } => (stripes, identities),
        other => panic!("{other:?}"),
    };
    // The answer is on its way, or was sent, when the connection breaks.
    for (wait, number) in [(0, 50_000), (2, 50_001)] {
        host.send(Class::Log, 0, &[encode_header(&grant(told)(number))]);
        rig.world.run_for(wait * SECOND);
        host.connect(&rig);
    }
    let (stripes, identities) = ask(&mut host, told);
    assert_eq!((stripes.len(), identities.len()), (2, 2));
    assert_eq!(rig.status(0).grants, 5, "no others were given out");
    assert_eq!(ask(&mut host, told), (stripes.clone(), identities.clone()));
    // What was committed, or is known, is not given again.
    assert!(host.write_stripe(&rig, &stripes[0]).iter().all(|result| result.is_ok()));
    host.commit(&rig, stripes[0].stripe).0.unwrap();
    assert_eq!(ask(&mut host, told), (stripes[1..].to_vec(), identities.clone()));
    let newest = identities[1].max(stripes[1].stripe);
    let (others, more) = ask(&mut host, newest);
    assert!(others.len() == 2 && more.len() == 2);
    assert!(others.iter().all(|granted| granted.stripe > newest));
}

/// C15: the time of a host that nobody hears begins with the controller that waits for it.
#[test]
fn a_new_controller_waits_for_a_host_before_it_ends_its_grants() {
    let (mut rig, mut host) = begin(78);
    host.grant(&rig, 2);
    host.process.kill();
    rig.world.run_for(GRANTS_KEPT / 2);
    rig.kill(0);
    rig.start(0);
    rig.run_until_mirrored();
    rig.world.run_for(GRANTS_KEPT - 5 * SECOND);
    assert_eq!(rig.status(0).grants, 2);
    rig.world.run_for(10 * SECOND);
    assert_eq!(rig.status(0).grants, 0);
}

/// C13: a host that does not heed its quota is refused beyond it, and the others have their room.
#[test]
fn a_greedy_host_does_not_take_the_room_of_others() {
    let (rig, mut greedy) = begin(79);
    let mut modest = FakeHost::start_as(&rig, "host-2", 2);
    (modest.host, modest.vdisk) = (2, 2);
    modest.connect(&rig);
    modest.seal(&rig).unwrap();
    let quota = rig.status(0).quota;
    assert_eq!(quota, rig::LOG.record_bytes_max / 8 * 3);
    for number in 0..400 {
        greedy.append(number % 5, 60_000);
    }
    rig.world.run_for(SECOND);
    greedy.look();
    let refused = greedy.told.borrow().events.iter().any(|event| {
        matches!(event.2, ControllerMessage::AppendRefused { reason: Refusal::Full, .. })
    });
    assert!(refused);
    let held = |host| {
        let hosts = rig.status(0).hosts;
        hosts.iter().find(|report| report.host == HostId(host)).unwrap().log_bytes
    };
    assert!(held(1) > quota && held(1) <= quota / 4 * 5, "{} of {quota}", held(1));
    for number in 0..quota / 60_200 {
        modest.append(number as u32 % 5, 60_000);
    }
    modest.settle(&rig);
    assert!(held(2) > quota / 10 * 9);
    // Its connection goes on: a commit makes room.
    assert!(greedy.is_connected());
    let mut rounds = 0;
    while !greedy.records.is_empty() {
        destage(&rig, &mut greedy);
        greedy.connect(&rig);
        rig.world.run_for(SECOND);
        greedy.look();
        rounds += 1;
        assert!(rounds < 10, "{} records are left", greedy.records.len());
    }
    modest.verify(&rig);
}

/// What the operator sees: an append's time is from its receipt until it is mirrored, waiting included.
#[test]
fn the_time_of_an_append_includes_the_wait_for_the_mirror() {
    let (mut rig, mut host) = begin(80);
    rig.kill(1);
    rig.world.run_for(SECOND);
    assert!(rig.observed.appends.borrow().is_empty());
    append_some(&mut host, 10);
    rig.world.run_for(3 * SECOND);
    assert!(rig.observed.appends.borrow().is_empty(), "nothing is mirrored");
    rig.start(1);
    rig.run_until_mirrored();
    host.settle(&rig);
    let waited: Vec<Duration> = rig.observed.appends.take();
    assert_eq!(waited.len(), 10);
    assert!(waited.iter().all(|took| *took >= 2 * SECOND), "{waited:?}");
    append_some(&mut host, 10);
    host.settle(&rig);
    let quick = rig.observed.appends.take();
    let forwarded = rig.observed.mirrored.borrow().last().copied().unwrap();
    assert_eq!(quick.len(), 10);
    assert!(quick.iter().all(|took| *took > Duration::ZERO && *took < SECOND), "{quick:?}");
    assert!(quick.iter().any(|took| *took >= forwarded));
}

/// C13: what waits for room is bounded, whatever it is; what does not wait is not.
#[test]
fn returned_grants_that_wait_are_bounded() {
    let (mut rig, mut host) = begin(81);
    let give_back = HostMessage::ReturnGrant { stripes: vec![StripeId(1 << 40)] };
    let flood = |host: &mut FakeHost| {
        (0..9000).for_each(|_| host.send(Class::Log, 0, &[encode_header(&give_back)]));
    };
    flood(&mut host);
    rig.world.run_for(SECOND);
    assert!(host.is_connected() && rig.status(0).counters.malformed == 0);
    rig.kill(1);
    rig.world.run_for(SECOND);
    let told = StripeId(u64::MAX);
    let grant = |request| HostMessage::Grant { request, told, stripes: 0, identities: 900 };
    (0..2).for_each(|n| host.send(Class::Log, 0, &[encode_header(&grant(30_000 + n))]));
    rig.world.run_for(SECOND);
    flood(&mut host);
    rig.world.run_for(SECOND);
    assert!(!host.is_connected());
    assert_eq!(rig.status(0).counters.malformed, 1);
    rig.start(1);
    rig.run_until_mirrored();
    host.connect(&rig);
    host.verify(&rig);
}

/// C1: what an older connection still brings is not taken once a newer one said hello.
#[test]
fn only_the_newest_connection_of_a_core_appends() {
    let (rig, mut host) = begin(82);
    let older = host.log;
    host.connect(&rig);
    assert_ne!(host.log, older);
    let newer = std::mem::replace(&mut host.log, older);
    host.append(3, 100);
    rig.world.run_for(SECOND);
    assert!(host.told.borrow().closed.contains(&older.unwrap()));
    assert_eq!(rig.status(0).counters.records, 0);
    host.log = newer;
    host.connect(&rig);
    host.settle(&rig);
    host.verify(&rig);
}
