//! The role moves because an operator orders it: hosts wait for as little as can be, and nothing is lost whatever happens meanwhile.

use crate::alone::{begin, whole};
use crate::rig::{NAMES, Rig, SECOND};
use crate::{append_some, destage, draws};
use cleave_runtime::links::Class;
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

type Outcome = Rc<RefCell<Option<Result<Duration, String>>>>;

fn active(rig: &Rig) -> usize {
    let serving = |controller: &usize| {
        rig.controllers[*controller].is_some() && rig.status(*controller).serving
    };
    (0..2).find(serving).expect("one serves")
}

fn order(rig: &Rig, controller: usize) -> Outcome {
    let outcome = Outcome::default();
    let (kept, switch) = (Rc::clone(&outcome), rig.node(controller).switch_over());
    let process = &rig.controllers[controller].as_ref().unwrap().process;
    process.executor().spawn(cleave_runtime::executor::Priority::Foreground, async move {
        *kept.borrow_mut() = Some(switch.await);
    });
    process.wake();
    outcome
}

fn told(rig: &Rig, outcome: &Outcome) -> Result<Duration, String> {
    let is_told = rig.world.run_until(|| outcome.borrow().is_some(), 90 * SECOND);
    assert!(is_told, "no answer");
    outcome.borrow_mut().take().unwrap()
}

#[test]
fn the_role_moves_by_an_order_and_back_within_a_moment() {
    let (mut rig, mut host) = begin(401);
    append_some(&mut host, 100);
    host.settle(&rig);
    for _ in 0..3 {
        destage(&rig, &mut host);
    }
    let mut places = Vec::new();
    for round in 0..6 {
        let from = active(&rig);
        assert_eq!(from, round % 2);
        let before = (rig.role().unwrap(), rig.status(0).counters, rig.status(1).counters);
        // These are on their way.
        append_some(&mut host, 40);
        let granted = host.grant(&rig, 2);
        places.extend(granted.iter().flat_map(|grant| grant.slots.clone()));
        append_some(&mut host, 40);
        let took = told(&rig, &order(&rig, from)).unwrap();
        assert!(took < Duration::from_millis(200), "{took:?}");
        assert_eq!(active(&rig), 1 - from);
        let role = rig.role().unwrap();
        assert_eq!(role.in_sync, before.0.in_sync, "both are members all the time");
        assert!(role.since > before.0.since);
        let now = (rig.status(0).counters, rig.status(1).counters);
        assert_eq!((now.0.copies, now.1.copies), (before.1.copies, before.2.copies));
        assert_eq!((now.0.alone, now.1.alone), (before.1.alone, before.2.alone));
        host.settle(&rig);
        assert_eq!(host.controller, 1 - from);
        host.verify(&rig);
        // What the former one granted holds, and its slots are given to nobody else (C15).
        assert!(host.write_stripe(&rig, &granted[0]).iter().all(Result::is_ok));
        assert_eq!(host.commit(&rig, granted[0].stripe).1, []);
        destage(&rig, &mut host);
    }
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    assert_eq!(places.len(), count);
    whole(&mut rig, &mut host);
}

/// C4, C15: commits that arrive at the standby after it made ready are part of what it becomes active with.
#[test]
fn what_is_recorded_while_the_standby_makes_ready_holds() {
    let mut met = 0;
    for seed in 0..4 {
        let (mut rig, mut host) = begin(440 + seed);
        append_some(&mut host, 20);
        host.settle(&rig);
        let granted = host.grant(&rig, 60);
        for grant in &granted {
            assert!(host.write_stripe(&rig, grant).iter().all(Result::is_ok));
        }
        let outcome = order(&rig, 0);
        for grant in &granted {
            if !host.is_connected() {
                break;
            }
            let message = host.commit_of(host.request + 1, grant.stripe, &[], None);
            host.ask(Class::Log, None, |_| message);
            rig.world.run_for(Duration::from_micros(60));
        }
        told(&rig, &outcome).unwrap();
        append_some(&mut host, 1);
        host.settle(&rig);
        rig.world.run_for(SECOND / 10);
        let committed = host.list(&rig).len() as u64;
        let status = rig.status(1);
        assert_eq!((status.grants, status.stripes), (60 - committed, committed));
        met += committed;
        let mut positions = BTreeSet::new();
        for grant in &granted {
            positions.insert(host.committed(&rig, grant.stripe, &[], None).unwrap());
        }
        assert_eq!(positions.len(), granted.len());
        rig.world.run_for(SECOND);
        let status = rig.status(1);
        assert_eq!((status.grants, status.stripes), (0, granted.len() as u64));
        told(&rig, &order(&rig, 1)).unwrap();
        // This one has it from its catalog.
        let again = rig.status(0);
        assert_eq!((again.grants, again.stripes, again.slots), (0, status.stripes, status.slots));
        host.settle(&rig);
        whole(&mut rig, &mut host);
    }
    assert!(met > 0, "no commit came while the role moved");
}

#[test]
fn an_order_that_cannot_be_carried_out_changes_nothing() {
    let (mut rig, mut host) = begin(402);
    append_some(&mut host, 50);
    host.settle(&rig);
    let refused = |rig: &Rig, controller, why: &str| {
        let error = told(rig, &order(rig, controller)).unwrap_err();
        assert!(error.contains(why), "{error}");
        assert_eq!(active(rig), 0);
    };
    refused(&rig, 1, "not the active one");
    let epoch = rig.role().unwrap().epoch;
    // The standby cannot change the record: the active one goes on, with its hosts.
    rig.stores[1].as_ref().unwrap().set_connected(false);
    refused(&rig, 0, "goes on here");
    assert_eq!(rig.role().unwrap().epoch, epoch);
    append_some(&mut host, 20);
    host.settle(&rig);
    rig.stores[1].as_ref().unwrap().set_connected(true);
    host.verify(&rig);
    rig.run_until_mirrored();
    // Two at once.
    let (first, second) = (order(&rig, 0), order(&rig, 0));
    let error = told(&rig, &second).unwrap_err();
    assert!(error.contains("under way"), "{error}");
    told(&rig, &first).unwrap();
    assert_eq!(active(&rig), 1);
    host.settle(&rig);
    told(&rig, &order(&rig, 1)).unwrap();
    rig.kill(1);
    rig.world.run_for(4 * SECOND);
    refused(&rig, 0, "no standby");
    rig.start(1);
    host.settle(&rig);
    whole(&mut rig, &mut host);
}

/// Whatever dies, stops or breaks while the role moves.
#[test]
fn nothing_is_lost_when_something_fails_while_the_role_moves() {
    let (mut moved, mut stayed) = (0, 0);
    for seed in 0..30 {
        let (mut rig, mut host) = begin(500 + seed);
        let mut next = draws(seed * 104_729 + 7);
        for _ in 0..4 {
            append_some(&mut host, 30);
            host.settle(&rig);
            rig.run_until_mirrored();
            let from = active(&rig);
            append_some(&mut host, 30);
            let outcome = order(&rig, from);
            rig.world.run_for(Duration::from_micros(next(20_000)));
            let one = next(2) as usize;
            let span = SECOND / 10 * (1 + next(50) as u32);
            match next(4) {
                0 => {
                    rig.kill(one);
                    rig.world.run_for(span);
                    rig.start(one);
                }
                1 => {
                    let process = rig.controllers[one].as_ref().unwrap().process.clone();
                    process.pause();
                    rig.world.run_for(span);
                    process.resume();
                }
                2 => {
                    rig.world.partition(NAMES[0], NAMES[1]);
                    rig.world.run_for(span);
                    rig.world.heal(NAMES[0], NAMES[1]);
                }
                _ => {
                    let store = rig.stores[one].clone().unwrap();
                    store.set_connected(false);
                    rig.world.run_for(span);
                    store.set_connected(true);
                }
            }
            // Who died does not answer.
            rig.world.run_until(|| outcome.borrow().is_some(), 5 * SECOND);
            rig.run_until_mirrored();
            host.settle(&rig);
            host.verify(&rig);
            destage(&rig, &mut host);
            match outcome.borrow().as_ref() {
                Some(Ok(_)) => moved += 1,
                _ => stayed += 1,
            }
        }
        rig.world.run_for(3 * SECOND);
        host.settle(&rig);
        whole(&mut rig, &mut host);
    }
    assert!(moved > 10 && stayed > 10, "{moved} moved, {stayed} did not");
}
