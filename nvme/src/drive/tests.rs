//! The drive over the model: the contract of drives.

use super::*;
use crate::model::{Fault, ModelNamespace, ModelOptions, Scope};
use crate::spec::command::io;
use crate::testing::Rig;

fn open(rig: &Rig) -> NvmeDrive {
    let options = DriveOptions { depth: 8, buffers: vec![(8192, 4), (128 << 10, 2)] };
    let clock = Rc::clone(&rig.clock) as Rc<dyn Clock>;
    rig.run(NvmeDrive::open(&rig.controller, clock, 1, &options)).expect("a drive")
}

fn request(drive: &NvmeDrive, operation: DriveOperation, buffer: Option<Buffer>) {
    drive.submit(DriveRequest { token: 9, operation, buffer });
}

fn wait(rig: &Rig, drive: &NvmeDrive, count: usize) -> Vec<DriveCompletion> {
    let mut completions = Vec::new();
    for _ in 0..1_000_000 {
        drive.poll(&mut completions);
        if completions.len() >= count {
            return completions;
        }
        rig.tick();
    }
    panic!("{} of {count} completions came", completions.len());
}

fn one(rig: &Rig, drive: &NvmeDrive, operation: DriveOperation) -> Result<(), DriveError> {
    let buffer = match operation {
        DriveOperation::Read { .. } | DriveOperation::Write { .. } => Some(drive.buffer(4096)),
        DriveOperation::Flush | DriveOperation::Discard { .. } => None,
    };
    request(drive, operation, buffer);
    wait(rig, drive, 1).pop().unwrap().result
}

#[test]
fn content_comes_back_at_any_size_from_any_buffer() {
    for block_shift in [9, 12] {
        let format =
            ModelNamespace { blocks: 2 << (20 - block_shift), block_shift, ..Default::default() };
        let rig = Rig::new(ModelOptions { namespaces: vec![format], ..Default::default() });
        let drive = open(&rig);
        assert_eq!(drive.capacity(), 2 << 20);
        for length in [4096, 8192, 128 << 10, 1 << 20] {
            for foreign in [false, true] {
                let take = || if foreign { Buffer::new(length) } else { drive.buffer(length) };
                let mut buffer = take();
                buffer.iter_mut().zip(1..).for_each(|(byte, number): (&mut u8, u32)| {
                    *byte = (number % 251) as u8 ^ u8::from(foreign);
                });
                let want = buffer.to_vec();
                request(&drive, DriveOperation::Write { offset: 8192 }, Some(buffer));
                assert_eq!(wait(&rig, &drive, 1)[0].result, Ok(()));
                request(&drive, DriveOperation::Read { offset: 8192 }, Some(take()));
                let done = wait(&rig, &drive, 1).pop().unwrap();
                assert_eq!(done.result, Ok(()));
                assert!(*done.buffer.unwrap() == want);
            }
        }
        assert_eq!(one(&rig, &drive, DriveOperation::Flush), Ok(()));
        let discard = DriveOperation::Discard { offset: 8192, length: 1 << 20 };
        assert_eq!(one(&rig, &drive, discard), Ok(()));
        assert_eq!(drive.in_flight(), 0);
        assert_eq!(drive.probe(), Ok(()));
        assert_eq!(rig.model.stray_accesses(), 0);
    }
}

#[test]
fn more_requests_than_room_wait_in_order() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    for token in 0..200 {
        let operation = DriveOperation::Write { offset: token * 4096 };
        let mut buffer = drive.buffer(4096);
        buffer.fill(token as u8);
        drive.submit(DriveRequest { token, operation, buffer: Some(buffer) });
    }
    assert_eq!(drive.in_flight(), 200);
    let mut tokens: Vec<u64> = wait(&rig, &drive, 200).iter().map(|done| done.token).collect();
    tokens.sort_unstable();
    assert_eq!(tokens, (0..200).collect::<Vec<_>>());
    rig.model.with_media(1, |media| {
        assert!((0..200).all(|block| media.read(block)[0] == block as u8));
    });
}

#[test]
fn wrong_requests_fail_and_empty_ones_do_nothing() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    let before = rig.model.commands();
    for operation in [
        DriveOperation::Read { offset: 512 },
        DriveOperation::Write { offset: drive.capacity() },
        DriveOperation::Discard { offset: u64::MAX - 4095, length: 8192 },
    ] {
        assert!(matches!(one(&rig, &drive, operation), Err(DriveError::Io(_))), "{operation:?}");
    }
    request(&drive, DriveOperation::Read { offset: 0 }, Some(Buffer::new(0)));
    assert_eq!(wait(&rig, &drive, 1)[0].result, Ok(()));
    assert_eq!(one(&rig, &drive, DriveOperation::Discard { offset: 0, length: 0 }), Ok(()));
    assert_eq!(rig.model.commands(), before);
}

#[test]
fn after_a_failed_flush_none_succeeds() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    assert_eq!(one(&rig, &drive, DriveOperation::Write { offset: 0 }), Ok(()));
    let scope = Scope { admin: false, opcode: io::FLUSH, after: 0, count: 1 };
    rig.model.inject(Fault::Fail(scope, Status::INTERNAL));
    let first = one(&rig, &drive, DriveOperation::Flush);
    assert!(first.is_err());
    assert_eq!(one(&rig, &drive, DriveOperation::Flush), first);
    assert_eq!(one(&rig, &drive, DriveOperation::Read { offset: 0 }), Ok(()));
}

#[test]
fn a_reset_fails_flushes_only_when_writes_were_not_flushed() {
    for flushed in [true, false] {
        let rig = Rig::new(ModelOptions::default());
        let drive = open(&rig);
        assert_eq!(one(&rig, &drive, DriveOperation::Write { offset: 0 }), Ok(()));
        if flushed {
            assert_eq!(one(&rig, &drive, DriveOperation::Flush), Ok(()));
        }
        rig.controller.reset("the test wants it");
        rig.tick();
        assert!(!rig.controller.is_live());
        // Requests during the reset wait for its end.
        assert_eq!(one(&rig, &drive, DriveOperation::Read { offset: 0 }), Ok(()));
        assert!(rig.controller.is_live());
        // C10: what a volatile cache held before a reset is not called durable after it.
        assert_eq!(one(&rig, &drive, DriveOperation::Flush).is_ok(), flushed);
        assert_eq!(one(&rig, &drive, DriveOperation::Write { offset: 0 }), Ok(()));
    }
}

#[test]
fn what_was_flushed_survives_a_power_cut() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    for (offset, byte) in [(0, 1), (4096, 2)] {
        let mut buffer = drive.buffer(4096);
        buffer.fill(byte);
        request(&drive, DriveOperation::Write { offset }, Some(buffer));
        assert_eq!(wait(&rig, &drive, 1)[0].result, Ok(()));
        if offset == 0 {
            assert_eq!(one(&rig, &drive, DriveOperation::Flush), Ok(()));
        }
    }
    rig.model.cut_power(|_, _| true);
    rig.model.with_media(1, |media| {
        assert_eq!((media.read(0)[0], media.read(1)[0]), (1, 0));
    });
}

#[test]
fn a_removed_drive_is_lost_and_gives_buffers_back() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    request(&drive, DriveOperation::Write { offset: 0 }, Some(drive.buffer(4096)));
    rig.model.inject(Fault::Vanish);
    let done = wait(&rig, &drive, 1).pop().unwrap();
    assert!(matches!(done.result, Err(DriveError::Lost(_))));
    assert!(done.buffer.is_some());
    assert!(matches!(drive.probe(), Err(DriveError::Lost(_))));
    assert!(matches!(one(&rig, &drive, DriveOperation::Flush), Err(DriveError::Lost(_))));
}

#[test]
fn a_namespace_that_changes_is_not_the_drive_any_more() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    rig.model.inject(Fault::Identify { what: 0, at: 0, bytes: vec![9, 0] });
    rig.model.report(0x0004_0002);
    for _ in 0..200 {
        rig.tick();
    }
    assert!(matches!(drive.probe(), Err(DriveError::Lost(_))));
}

#[test]
fn a_dropped_drive_leaves_no_mapping_behind() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    let kept = drive.buffer(4096);
    request(&drive, DriveOperation::Write { offset: 0 }, Some(drive.buffer(4096)));
    drop(drive);
    drop(kept);
    for _ in 0..10_000 {
        rig.tick();
    }
    assert!(rig.controller.is_live());
    let again = open(&rig);
    assert_eq!(one(&rig, &again, DriveOperation::Flush), Ok(()));
}

#[test]
fn a_core_without_interrupts_stays_awake_while_something_is_to_come() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    assert!(drive.event().is_none() && !drive.must_poll());
    request(&drive, DriveOperation::Read { offset: 0 }, Some(drive.buffer(4096)));
    drive.arm();
    assert!(drive.must_poll());
    drive.disarm();
    assert_eq!(wait(&rig, &drive, 1)[0].result, Ok(()));
    assert!(!drive.must_poll());
    rig.model.inject(Fault::NeverReady);
    rig.controller.reset("the test wants it");
    rig.controller.turn();
    assert!(rig.controller.is_working());
    while !rig.controller.is_gone() {
        rig.tick();
        drive.poll(&mut Vec::new());
    }
    rig.tick();
    assert!(!rig.controller.is_working() && !drive.must_poll());
}

#[test]
fn a_request_that_is_waited_for_leaves_others_to_the_next_poll() {
    let rig = Rig::new(ModelOptions::default());
    let drive = open(&rig);
    request(&drive, DriveOperation::Read { offset: 4096 }, Some(drive.buffer(4096)));
    let mut written = drive.buffer(4096);
    written.fill(7);
    let write = DriveOperation::Write { offset: 8192 };
    let (result, buffer) = drive.complete(write, Some(written), || rig.tick());
    assert!(result.is_ok() && buffer.is_some_and(|buffer| buffer.iter().all(|byte| *byte == 7)));
    let (result, buffer) = drive.complete(DriveOperation::Flush, None, || rig.tick());
    assert!(result.is_ok() && buffer.is_none());
    let others = wait(&rig, &drive, 1);
    assert_eq!((others[0].token, others[0].result.clone()), (9, Ok(())));
}
