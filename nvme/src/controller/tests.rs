//! Bring-up, resets, events and misbehaviour, against the model.

use super::*;
use crate::error::IoError;
use crate::model::{Fault, ModelNamespace, ModelOptions, Scope};
use crate::queue::{Operation, QueuePair, Request};
use crate::spec::command::{admin, io};
use crate::spec::completion::Status;
use crate::spec::event::EventKind;
use crate::testing::{Rig, TIMEOUT};

fn scope(admin: bool, opcode: u8) -> Scope {
    Scope { admin, opcode, after: 0, count: 1 }
}

fn read(rig: &Rig, pair: &mut QueuePair<DmaBuffer>) -> Result<(), IoError> {
    let operation = Operation::Read { first: 0, blocks: 1 };
    rig.do_one(pair, rig.namespace(1), operation, rig.memory(4096)).0
}

#[test]
fn it_comes_up_with_its_namespaces_and_limits() {
    let small = ModelNamespace { blocks: 100, block_shift: 9, ..ModelNamespace::default() };
    let options = ModelOptions {
        namespaces: vec![ModelNamespace::default(), small],
        page_shift: 1,
        stride: 2,
        pairs: 3,
        ..ModelOptions::default()
    };
    let rig = Rig::new(options);
    let identity = rig.controller.identity().unwrap();
    assert_eq!((identity.serial.as_str(), identity.model.as_str()), ("MODEL-0001", "Cleave model"));
    assert_eq!(rig.controller.pairs_max(), 3);
    let namespaces = rig.controller.namespaces();
    assert_eq!(namespaces.len(), 2);
    assert_eq!((namespaces[1].blocks(), namespaces[1].block_bytes()), (100, 512));
    // 2^5 pages of 8 KiB.
    assert_eq!(namespaces[0].transfer_max(), 256 << 10);
    let mut pair = rig.pair(8);
    assert_eq!(read(&rig, &mut pair), Ok(()));
    assert_eq!(rig.run(rig.controller.health()).unwrap().temperature_kelvins, 310);
    rig.run(rig.controller.set_temperature_threshold(350)).unwrap();
    assert_eq!(rig.run(rig.controller.get_feature(4, 0)).unwrap(), 350);
    rig.run(rig.controller.set_power_state(0)).unwrap();
    assert!(rig.run(rig.controller.set_power_state(1)).is_err());
    assert_eq!(rig.run(rig.controller.errors()).unwrap(), []);
    assert!(rig.run(rig.controller.firmware()).is_ok());
    rig.run(rig.controller.shut_down()).unwrap();
    assert_eq!(read(&rig, &mut pair), Err(IoError::Lost));
    assert_eq!(rig.model.stray_accesses(), 0);
}

#[test]
fn a_controller_that_was_left_enabled_is_reset_first() {
    let rig = Rig::new(ModelOptions::default());
    let second = Controller::new(
        Arc::clone(rig.controller.transport()),
        Rc::clone(&rig.clock) as Rc<dyn Clock>,
        ControllerOptions::default(),
    );
    assert_eq!(second.run(second.start(), || rig.tick()).ok(), Some(()));
    assert_eq!(second.namespaces().len(), 1);
}

#[test]
fn what_does_not_come_up_says_so() {
    let cold = |fault| {
        let rig = Rig::cold(ModelOptions::default());
        rig.model.inject(fault);
        rig.run(rig.controller.start()).expect_err("it cannot come up")
    };
    assert!(matches!(cold(Fault::Vanish), Error::Absent));
    let never = cold(Fault::NeverReady);
    assert!(
        matches!(never, Error::Timeout { what: "become ready", milliseconds: 1000 }),
        "{never}"
    );
    let hangs = cold(Fault::Hang(scope(true, admin::IDENTIFY)));
    assert!(matches!(hangs, Error::Failed(_)), "{hangs}");
    let fails = cold(Fault::Fail(scope(true, admin::IDENTIFY), Status::INTERNAL));
    assert!(matches!(fails, Error::Command { status: Status::INTERNAL, .. }), "{fails}");
    let sizes = cold(Fault::Identify { what: 1, at: 512, bytes: vec![0x77] });
    assert!(matches!(sizes, Error::Impossible(_)), "{sizes}");
    let endless = cold(Fault::Identify { what: 2, at: 0, bytes: vec![5, 0, 0, 0, 5, 0, 0, 0] });
    assert!(matches!(endless, Error::Impossible(_)), "{endless}");
}

#[test]
fn a_namespace_that_cannot_be_is_left_out() {
    let rig = Rig::cold(ModelOptions {
        namespaces: vec![ModelNamespace::default(); 2],
        ..ModelOptions::default()
    });
    rig.model.inject(Fault::Identify { what: 0, at: 130, bytes: vec![77] });
    rig.run(rig.controller.start()).unwrap();
    assert!(rig.controller.namespaces().is_empty());
    assert_eq!(rig.controller.refused_namespaces().len(), 2);
}

#[test]
fn a_reset_completes_what_is_outstanding_as_aborted() {
    let rig = Rig::new(ModelOptions::default());
    let mut pairs: Vec<QueuePair<DmaBuffer>> = vec![rig.pair(8), rig.pair(8)];
    let namespace = rig.namespace(1);
    for pair in &mut pairs {
        for token in 0..4 {
            let operation = Operation::Write { first: token, blocks: 1, durable: false };
            let request = Request { token, namespace, operation, memory: rig.memory(4096) };
            pair.submit(rig.clock.now(), request).unwrap();
        }
        pair.ring();
    }
    rig.controller.reset("the test wants it");
    rig.tick();
    // Nothing comes back while the device may still reach memory.
    let mut completions = Vec::new();
    pairs[0].poll(rig.clock.now(), &mut completions);
    assert!(completions.is_empty() && !rig.controller.is_live());
    for pair in &mut pairs {
        let aborted = rig.wait(pair, 4);
        assert!(aborted.iter().all(|completion| completion.result == Err(IoError::Aborted)));
    }
    for _ in 0..10_000 {
        rig.tick();
    }
    assert!(rig.controller.is_live());
    assert_eq!(
        rig.controller.take_events(),
        [ControllerEvent::Reset("the test wants it".to_owned())]
    );
    for pair in &mut pairs {
        assert_eq!(read(&rig, pair), Ok(()));
    }
    assert_eq!(rig.model.stray_accesses(), 0);
}

#[test]
fn what_takes_too_long_is_aborted_and_then_reset() {
    let rig = Rig::new(ModelOptions::default());
    let mut pair = rig.pair(8);
    rig.model.inject(Fault::Hang(scope(false, io::READ)));
    assert_eq!(read(&rig, &mut pair), Err(IoError::TimedOut));
    assert!(rig.controller.is_live());
    let before = rig.clock.now();
    rig.model.inject(Fault::HangForGood(scope(false, io::READ)));
    assert_eq!(read(&rig, &mut pair), Err(IoError::Aborted));
    assert!(rig.clock.now().since(before) >= TIMEOUT * 2);
    while !rig.controller.is_live() {
        rig.tick();
    }
    assert_eq!(read(&rig, &mut pair), Ok(()));
    assert!(matches!(rig.controller.take_events()[..], [ControllerEvent::Reset(_)]));
}

#[test]
fn violations_lead_to_a_reset() {
    for fault in [Fault::UnknownCommand, Fault::WrongQueue, Fault::WrongHead, Fault::Twice] {
        let rig = Rig::new(ModelOptions::default());
        let mut pair = rig.pair(8);
        rig.model.inject(fault.clone());
        let result = read(&rig, &mut pair);
        let expected = if fault == Fault::Twice { Ok(()) } else { Err(IoError::Aborted) };
        assert_eq!(result, expected, "{fault:?}");
        let reset = |event: &ControllerEvent| matches!(event, ControllerEvent::Reset(_));
        let mut completions = Vec::new();
        for _ in 0..100_000 {
            rig.tick();
            pair.poll(rig.clock.now(), &mut completions);
            if rig.controller.take_events().iter().any(reset) {
                break;
            }
        }
        assert!(rig.controller.is_live() && rig.controller.resets() == 1, "{fault:?}");
        assert_eq!(read(&rig, &mut pair), Ok(()), "{fault:?}");
        assert_eq!(rig.model.stray_accesses(), 0, "{fault:?}");
    }
}

#[test]
fn a_removed_controller_loses_requests_and_nothing_else() {
    let rig = Rig::new(ModelOptions::default());
    let mut pair = rig.pair(8);
    rig.model.inject(Fault::Vanish);
    assert_eq!(read(&rig, &mut pair), Err(IoError::Lost));
    assert!(rig.controller.is_gone() && !rig.controller.answers());
    assert!(matches!(rig.controller.take_events()[..], [ControllerEvent::Gone(_)]));
    assert!(matches!(rig.run(rig.controller.create_pair(4)), Err(Error::Absent)));
    assert!(rig.run(rig.controller.health()).is_err());
}

#[test]
fn a_controller_that_stays_broken_is_given_up() {
    for faults in [
        vec![Fault::Fatal],
        vec![Fault::NeverReady],
        // Only cutting it off from memory makes it safe to let go.
        vec![Fault::NeverDisabled, Fault::NeverReady],
    ] {
        let rig = Rig::new(ModelOptions::default());
        let mut pair = rig.pair(8);
        faults.iter().for_each(|fault| rig.model.inject(fault.clone()));
        rig.model.inject(Fault::Hang(Scope { count: 9, ..scope(false, io::READ) }));
        rig.controller.reset("the test wants it");
        assert_eq!(read(&rig, &mut pair), Err(IoError::Aborted), "{faults:?}");
        for _ in 0..1_000_000 {
            let mut completions = Vec::new();
            pair.poll(rig.clock.now(), &mut completions);
            if rig.controller.is_gone() {
                break;
            }
            rig.tick();
        }
        assert_eq!(read(&rig, &mut pair), Err(IoError::Lost), "{faults:?}");
        assert_eq!(rig.model.stray_accesses(), 0, "{faults:?}");
    }
}

#[test]
fn a_fatal_status_is_noticed_without_any_request() {
    let rig = Rig::new(ModelOptions::default());
    rig.model.inject(Fault::Fatal);
    while rig.controller.resets() == 0 {
        rig.tick();
    }
}

#[test]
fn events_are_looked_into_and_told() {
    let rig = Rig::new(ModelOptions {
        namespaces: vec![ModelNamespace::default(); 2],
        ..ModelOptions::default()
    });
    for round in 0..10 {
        rig.model.report(0x0002_0101);
        rig.model.report(0x0004_0002);
        let mut told = Vec::new();
        for _ in 0..200 {
            rig.tick();
            told.extend(rig.controller.take_events());
        }
        let kinds: Vec<EventKind> = told
            .iter()
            .map(|event| match event {
                ControllerEvent::Reported(event) => event.kind(),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(kinds, [EventKind::Health, EventKind::NamespacesChanged], "round {round}");
    }
}

#[test]
fn queues_of_dropped_pairs_are_used_again() {
    let rig = Rig::new(ModelOptions { pairs: 2, ..ModelOptions::default() });
    for _ in 0..5 {
        let mut pairs: Vec<QueuePair<DmaBuffer>> = vec![rig.pair(4), rig.pair(4)];
        assert!(matches!(rig.run(rig.controller.create_pair(4)), Err(Error::Unsupported(_))));
        assert_eq!(read(&rig, &mut pairs[1]), Ok(()));
        drop(pairs);
        for _ in 0..100 {
            rig.tick();
        }
    }
    let rings = rig.run(rig.controller.create_pair(4)).unwrap();
    rings.discard();
    rig.model.inject(Fault::Fail(scope(true, admin::CREATE_SUBMISSION_QUEUE), Status::INTERNAL));
    assert!(rig.run(rig.controller.create_pair(4)).is_err());
    for _ in 0..100 {
        rig.tick();
    }
    let _pairs: Vec<QueuePair<DmaBuffer>> = vec![rig.pair(4), rig.pair(4)];
    assert_eq!(rig.controller.resets(), 0);
}

#[test]
fn a_pair_dropped_with_requests_keeps_the_device_from_their_memory() {
    let rig = Rig::new(ModelOptions::default());
    let mut dropped: QueuePair<DmaBuffer> = rig.pair(8);
    let mut other = rig.pair(8);
    let operation = Operation::Read { first: 0, blocks: 1 };
    let namespace = rig.namespace(1);
    let request = Request { token: 0, namespace, operation, memory: rig.memory(4096) };
    dropped.submit(rig.clock.now(), request).unwrap();
    dropped.ring();
    drop(dropped);
    rig.controller.turn();
    let mut completions = Vec::new();
    for _ in 0..10_000 {
        rig.tick();
        other.poll(rig.clock.now(), &mut completions);
    }
    assert!(rig.controller.is_live() && rig.controller.resets() == 1);
    assert_eq!(read(&rig, &mut other), Ok(()));
}

#[test]
fn a_controller_that_cannot_be_disabled_never_reaches_memory_again() {
    // Its commands are done just after it was given up waiting for.
    let latency = (Duration::from_millis(1000), Duration::from_millis(1004));
    let rig = Rig::new(ModelOptions::default());
    let mut pair: QueuePair<DmaBuffer> = rig.pair(64);
    rig.model.set_latency(latency);
    rig.model.inject(Fault::NeverDisabled);
    let namespace = rig.namespace(1);
    for token in 0..64 {
        let operation = Operation::Write { first: token, blocks: 1, durable: false };
        let request = Request { token, namespace, operation, memory: rig.memory(4096) };
        pair.submit(rig.clock.now(), request).unwrap();
    }
    pair.ring();
    rig.tick();
    rig.controller.reset("the test wants it");
    drop(rig.wait(&mut pair, 64));
    while !rig.controller.is_gone() {
        rig.tick();
        pair.poll(rig.clock.now(), &mut Vec::new());
    }
    assert_eq!(rig.model.stray_accesses(), 0);
}
