//! What the model does for those who keep content outside of it, and to its driver.

use super::*;
use crate::drive::{DriveOptions, NvmeDrive};
use crate::spec::command::io;
use crate::spec::completion::Status;
use crate::testing::Rig;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use cleave_runtime::time::Clock;
use std::rc::Rc;

fn drive(rig: &Rig) -> NvmeDrive {
    let options = DriveOptions { depth: 8, buffers: vec![(16 << 10, 4)] };
    let clock = Rc::clone(&rig.clock) as Rc<dyn Clock>;
    rig.run(NvmeDrive::open(&rig.controller, clock, 1, &options)).expect("a drive")
}

fn outside() -> Rig {
    let namespace = ModelNamespace { outside: true, blocks: 1 << 30, ..Default::default() };
    Rig::new(ModelOptions { namespaces: vec![namespace], ..Default::default() })
}

fn submit(drive: &NvmeDrive, operation: DriveOperation, buffer: Option<Buffer>) {
    drive.submit(DriveRequest { token: 3, operation, buffer });
}

/// The request for whoever keeps the content.
fn asked(rig: &Rig, drive: &NvmeDrive) -> OutsideRequest {
    let mut completions = Vec::new();
    loop {
        drive.poll(&mut completions);
        rig.tick();
        if let Some(request) = rig.model.take_requests().pop() {
            assert!(completions.is_empty(), "done before it was asked for");
            return request;
        }
    }
}

fn done(rig: &Rig, drive: &NvmeDrive) -> DriveCompletion {
    let mut completions = Vec::new();
    while completions.is_empty() {
        drive.poll(&mut completions);
        rig.tick();
    }
    completions.remove(0)
}

#[test]
fn commands_wait_for_whoever_keeps_the_content() {
    let rig = outside();
    let drive = drive(&rig);
    let mut written = drive.buffer(8192);
    written.fill(7);
    submit(&drive, DriveOperation::Write { offset: 1 << 40 }, Some(written));
    let request = asked(&rig, &drive);
    let want = OutsideOperation::Write { offset: 1 << 40, data: vec![7; 8192] };
    assert_eq!((request.namespace, request.operation), (1, want));
    for _ in 0..100 {
        let mut early = Vec::new();
        drive.poll(&mut early);
        rig.tick();
        assert!(early.is_empty(), "nobody answered yet");
    }
    assert_eq!(rig.model.outstanding(), 1);
    rig.model.answer(request.token, Ok(Vec::new()));
    assert_eq!(done(&rig, &drive).result, Ok(()));

    submit(&drive, DriveOperation::Read { offset: 4096 }, Some(drive.buffer(4096)));
    let request = asked(&rig, &drive);
    assert_eq!(request.operation, OutsideOperation::Read { offset: 4096, length: 4096 });
    rig.model.answer(request.token, Ok(vec![9; 4096]));
    let read = done(&rig, &drive);
    assert!(read.result.is_ok() && read.buffer.is_some_and(|b| b.iter().all(|byte| *byte == 9)));

    submit(&drive, DriveOperation::Discard { offset: 8192, length: 4096 }, None);
    let request = asked(&rig, &drive);
    assert_eq!(request.operation, OutsideOperation::Deallocate(vec![(8192, 4096)]));
    rig.model.answer(request.token, Ok(Vec::new()));
    assert_eq!(done(&rig, &drive).result, Ok(()));

    submit(&drive, DriveOperation::Flush, None);
    let request = asked(&rig, &drive);
    assert_eq!(request.operation, OutsideOperation::Flush);
    rig.model.answer(request.token, Err(Status::INTERNAL));
    assert!(matches!(done(&rig, &drive).result, Err(DriveError::Io(_))));
    assert_eq!((rig.model.outstanding(), rig.model.stray_accesses()), (0, 0));
}

#[test]
fn what_a_reset_forgot_is_not_answered_any_more() {
    let rig = outside();
    let drive = drive(&rig);
    let before = rig.model.restarts();
    submit(&drive, DriveOperation::Read { offset: 0 }, Some(drive.buffer(4096)));
    let request = asked(&rig, &drive);
    rig.controller.reset("the test wants it");
    assert!(done(&rig, &drive).result.is_err());
    assert!(rig.model.restarts() > before);
    while !rig.controller.is_live() {
        rig.tick();
        drive.poll(&mut Vec::new());
    }
    rig.model.answer(request.token, Ok(vec![1; 4096]));
    for _ in 0..1_000 {
        rig.tick();
        drive.poll(&mut Vec::new());
    }
    assert!(rig.controller.is_live());
    assert_eq!((rig.controller.resets(), rig.model.stray_accesses()), (1, 0));
}

#[test]
fn a_flip_is_of_one_bit_of_what_is_read() {
    for outside_it in [false, true] {
        let namespace = ModelNamespace { outside: outside_it, ..Default::default() };
        let rig = Rig::new(ModelOptions { namespaces: vec![namespace], ..Default::default() });
        let drive = drive(&rig);
        let scope = Scope { admin: false, opcode: io::READ, after: 0, count: 1 };
        rig.model.inject(Fault::Flip(scope));
        for flipped in [1, 0] {
            submit(&drive, DriveOperation::Read { offset: 0 }, Some(drive.buffer(16384)));
            if outside_it {
                let request = asked(&rig, &drive);
                rig.model.answer(request.token, Ok(vec![0; 16384]));
            }
            let read = done(&rig, &drive);
            let ones: u32 = read.buffer.unwrap().iter().map(|byte| byte.count_ones()).sum();
            assert_eq!((read.result, ones), (Ok(()), flipped));
        }
        assert_eq!(rig.model.struck(), Struck { flipped: 1, ..Struck::default() });
    }
}

#[test]
fn spared_faults_do_not_come() {
    let rig = Rig::new(ModelOptions::default());
    let drive = drive(&rig);
    let scope = Scope { admin: false, opcode: io::FLUSH, after: 0, count: 1 };
    rig.model.inject(Fault::Fail(scope, Status::INTERNAL));
    rig.model.inject(Fault::UnknownCommand);
    rig.model.spare();
    submit(&drive, DriveOperation::Flush, None);
    assert_eq!(done(&rig, &drive).result, Ok(()));
    assert_eq!((rig.controller.resets(), rig.model.struck().failed), (0, 0));
}

/// C10: a controller that lost its power is brought up again, and nothing that it held counts as durable.
#[test]
fn a_controller_that_lost_its_power_is_brought_up_and_flushes_fail() {
    let rig = Rig::new(ModelOptions::default());
    let drive = drive(&rig);
    submit(&drive, DriveOperation::Write { offset: 0 }, Some(drive.buffer(4096)));
    assert_eq!(done(&rig, &drive).result, Ok(()));
    rig.model.cut_power(|_, _| true);
    while rig.controller.resets() == 0 || !rig.controller.is_live() {
        rig.tick();
        drive.poll(&mut Vec::new());
    }
    submit(&drive, DriveOperation::Flush, None);
    assert!(done(&rig, &drive).result.is_err());
    submit(&drive, DriveOperation::Read { offset: 0 }, Some(drive.buffer(4096)));
    assert_eq!(done(&rig, &drive).result, Ok(()));
}
