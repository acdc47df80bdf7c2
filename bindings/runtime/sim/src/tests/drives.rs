//! Drives: what is durable when, what a crash decides, and each fault.

use super::*;
use crate::{OpenError, Power, Remains, SimDrive};
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::{
    Drive, DriveCompletion, DriveError, DriveIo, DriveOperation, DriveRequest,
};
use cleave_runtime::executor::Priority;
use std::future::Future;

const PAGES: u64 = 64;
const BYTES: u64 = PAGES * PAGE as u64;

fn at(page: u64) -> u64 {
    page * PAGE as u64
}

struct Rig {
    world: World,
    process: Process,
    drive: SimDrive,
    open: Rc<dyn Drive>,
}

fn rig(seed: u64) -> Rig {
    let world = World::new(seed);
    let (process, drive) = (world.start_process("owner"), world.create_drive("d0", BYTES));
    let open = process.open_drive(&drive);
    Rig { world, process, drive, open }
}

impl Rig {
    fn submit(&self, token: u64, operation: DriveOperation, fill: Option<(u8, usize)>) {
        let buffer = fill.map(|(byte, pages)| {
            let mut buffer = self.open.buffer(pages * PAGE);
            buffer.fill(byte);
            buffer
        });
        self.open.submit(DriveRequest { token, operation, buffer });
    }

    fn write(&self, token: u64, page: u64, byte: u8, pages: usize) {
        self.submit(token, DriveOperation::Write { offset: at(page) }, Some((byte, pages)));
    }

    fn finish(&self) -> Vec<DriveCompletion> {
        self.world.run_for(SECOND);
        let mut completions = Vec::new();
        self.open.poll(&mut completions);
        completions
    }

    /// Does one request and gives its outcome.
    fn does(
        &self,
        operation: DriveOperation,
        fill: Option<(u8, usize)>,
    ) -> (Result<(), DriveError>, Option<u8>) {
        self.submit(77, operation, fill);
        let mut done = self.finish();
        assert_eq!(done.len(), 1);
        let done = done.remove(0);
        (done.result, done.buffer.map(|buffer| buffer[0]))
    }

    fn reads(&self, page: u64) -> (Result<(), DriveError>, Option<u8>) {
        self.does(DriveOperation::Read { offset: at(page) }, Some((0, 1)))
    }

    fn stored(&self, page: u64) -> u8 {
        self.drive.peek(at(page), 1)[0]
    }
}

#[test]
fn requests_complete_in_any_order_and_return_what_was_written() {
    let mut reordered = false;
    for seed in 0..10 {
        let rig = rig(seed);
        (0..20).for_each(|page| rig.write(page, page, page as u8 + 1, 1));
        assert_eq!(rig.drive.in_flight(), 20);
        let done = rig.finish();
        assert!(done.iter().all(|completion| completion.result.is_ok()));
        let tokens: Vec<u64> = done.iter().map(|completion| completion.token).collect();
        reordered |= !tokens.is_sorted();
        let offset = at(0);
        rig.submit(9, DriveOperation::Read { offset }, Some((0xff, 21)));
        let buffer = rig.finish().remove(0).buffer.unwrap();
        for (page, bytes) in buffer.chunks(PAGE).enumerate() {
            let byte = if page < 20 { page as u8 + 1 } else { 0 };
            assert!(bytes.iter().all(|b| *b == byte));
        }
    }
    assert!(reordered);
}

#[test]
fn mistakes_are_answered_not_obeyed() {
    let rig = rig(1);
    let one = Some((1, 1));
    for (operation, fill) in [
        (DriveOperation::Write { offset: 512 }, one),
        (DriveOperation::Write { offset: BYTES }, one),
        (DriveOperation::Write { offset: u64::MAX - 4095 }, one),
        (DriveOperation::Read { offset: 0 }, None),
        (DriveOperation::Flush, one),
        (DriveOperation::Discard { offset: 0, length: 100 }, None),
    ] {
        assert!(matches!(rig.does(operation, fill).0, Err(DriveError::Io(_))));
    }
    assert_eq!(rig.world.counters().requests_invalid, 6);
    assert_eq!(rig.drive.volatile_pages(), 0);
}

// C10: a flush covers what completed before it began, and nothing else is promised.
#[test]
fn flushed_pages_survive_lost_power_and_others_may_not() {
    let (mut kept, mut dropped) = (0, 0);
    for seed in 0..60 {
        let rig = rig(seed);
        rig.write(1, 0, 1, 8);
        rig.finish();
        assert_eq!(rig.does(DriveOperation::Flush, None).0, Ok(()));
        assert_eq!(rig.drive.volatile_pages(), 0);
        // Over flushed pages and beside them, completed but not flushed.
        rig.write(2, 4, 2, 8);
        rig.finish();
        assert_eq!(rig.drive.volatile_pages(), 8);
        rig.process.kill();
        assert_eq!(rig.stored(4), 2, "a crash alone loses no completed write");
        rig.drive.power_loss();
        for page in 0..12 {
            let byte = rig.stored(page);
            match page {
                0..4 => assert_eq!(byte, 1),
                4..8 => assert!(byte == 1 || byte == 2),
                _ => assert!(byte == 0 || byte == 2),
            }
            kept += usize::from(page >= 4 && byte == 2);
            dropped += usize::from(page >= 4 && byte != 2);
        }
        assert_eq!(rig.drive.peek(at(4), PAGE), vec![rig.stored(4); PAGE], "no page is torn");
    }
    assert!(kept > 100 && dropped > 100, "{kept} {dropped}");
}

#[test]
fn a_flush_does_not_cover_writes_that_complete_while_it_runs() {
    let lost = (0..40).any(|seed| {
        let rig = rig(seed);
        rig.world.change_settings(|s| s.drive_flush = crate::Span::micros(5_000, 5_000));
        rig.submit(1, DriveOperation::Flush, None);
        rig.write(2, 0, 9, 1);
        assert_eq!(rig.finish().len(), 2);
        rig.drive.power_loss();
        rig.stored(0) == 0
    });
    assert!(lost);
}

#[test]
fn a_crash_decides_what_was_in_flight() {
    for seed in 0..60 {
        let rig = rig(seed);
        rig.write(1, 0, 5, 16);
        rig.process.kill();
        assert_eq!(rig.drive.in_flight(), 0);
        let before = rig.drive.peek(0, 16 * PAGE);
        assert!(rig.finish().is_empty(), "nobody is told");
        assert_eq!(rig.drive.peek(0, 16 * PAGE), before, "nothing lands later");
        rig.write(2, 0, 6, 1);
        assert_eq!(rig.drive.in_flight(), 0, "the dead ask for nothing");
        let heir = rig.world.start_process("owner");
        assert_eq!(heir.open_drive(&rig.drive).capacity(), BYTES);
    }
    let outcomes = (0..60).map(|seed| {
        let rig = rig(seed);
        rig.write(1, 0, 5, 16);
        rig.process.kill();
        (0..16).filter(|page| rig.stored(*page) == 5).count()
    });
    let outcomes: Vec<usize> = outcomes.collect();
    assert!(outcomes.contains(&0) && outcomes.contains(&16));
    assert!(outcomes.iter().any(|count| (1..16).contains(count)), "torn between pages");
}

#[test]
fn a_drive_has_one_owner() {
    let rig = rig(1);
    let other = rig.world.start_process("other");
    let held = OpenError::Held { drive: "d0".to_owned(), owner: "owner".to_owned() };
    assert_eq!(other.try_open_drive(&rig.drive).err(), Some(held));
    let Rig { drive, open, .. } = rig;
    drop(open);
    assert_eq!(drive.owner(), None);
    let opened = other.open_drive(&drive);
    assert_eq!((opened.probe(), drive.owner().as_deref()), (Ok(()), Some("other")));
}

#[test]
fn a_lost_drive_answers_lost_until_it_is_opened_again() {
    let rig = rig(1);
    rig.write(1, 0, 5, 1);
    rig.drive.lose();
    let done = rig.finish();
    assert!(matches!(done[0].result, Err(DriveError::Lost(_))) && done[0].buffer.is_some());
    assert!(matches!(rig.open.probe(), Err(DriveError::Lost(_))));
    assert!(matches!(rig.reads(0).0, Err(DriveError::Lost(_))));
    let absent = OpenError::Absent { drive: "d0".to_owned() };
    assert_eq!(rig.process.try_open_drive(&rig.drive).err(), Some(absent));
    rig.drive.come_back();
    assert!(matches!(rig.reads(0).0, Err(DriveError::Lost(_))), "the old handle stays useless");
    let again = rig.process.open_drive(&rig.drive);
    assert_eq!(again.probe(), Ok(()));
}

#[test]
fn injected_errors_strike_as_often_as_asked() {
    let rig = rig(1);
    rig.drive.fail_next(2);
    assert!(matches!(rig.reads(0).0, Err(DriveError::Io(_))));
    assert!(matches!(rig.does(DriveOperation::Flush, None).0, Err(DriveError::Io(_))));
    assert_eq!(rig.reads(0), (Ok(()), Some(0)));
    rig.drive.spoil(at(3), 1);
    assert_eq!(rig.drive.damaged(), [at(3)]);
    assert!(matches!(rig.reads(3).0, Err(DriveError::Io(_))));
    assert_eq!(rig.reads(2).0, Ok(()));
    assert_eq!(rig.does(DriveOperation::Write { offset: at(3) }, Some((4, 1))).0, Ok(()));
    assert_eq!(rig.reads(3), (Ok(()), Some(4)), "writing heals the sector");
    rig.drive.flip_bit(at(3), 0);
    assert_eq!(rig.reads(3), (Ok(()), Some(5)));
    assert_eq!(rig.world.counters().bits_flipped, 1);
}

#[test]
fn a_misdirected_write_lands_elsewhere_and_reports_success() {
    for seed in 0..20 {
        let rig = rig(seed);
        rig.write(1, 8, 1, 4);
        rig.finish();
        rig.drive.misdirect_next(1);
        assert_eq!(rig.does(DriveOperation::Write { offset: at(20) }, Some((2, 1))).0, Ok(()));
        assert_eq!(rig.stored(20), 0);
        let hit: Vec<u64> = (0..PAGES).filter(|page| rig.stored(*page) == 2).collect();
        assert_eq!(hit.len(), 1);
        let mut damaged = vec![at(20), at(hit[0])];
        damaged.sort_unstable();
        assert_eq!(rig.drive.damaged(), damaged);
        assert_eq!(rig.does(DriveOperation::Write { offset: at(20) }, Some((3, 1))).0, Ok(()));
        assert_eq!(rig.stored(20), 3);
    }
}

#[test]
fn a_full_drive_takes_overwrites_only() {
    let rig = rig(1);
    rig.write(1, 0, 1, 1);
    rig.finish();
    rig.drive.set_full(true);
    let write = |page| rig.does(DriveOperation::Write { offset: at(page) }, Some((2, 1))).0;
    assert_eq!((write(0), write(1)), (Ok(()), Err(DriveError::NoSpace)));
    rig.drive.set_full(false);
    assert_eq!(write(1), Ok(()));
}

#[test]
fn discarded_pages_hold_zeros_or_what_they_held() {
    let (mut zeros, mut old) = (0, 0);
    for seed in 0..10 {
        let rig = rig(seed);
        rig.write(1, 0, 1, 10);
        rig.finish();
        let discard = DriveOperation::Discard { offset: at(2), length: at(6) };
        assert_eq!(rig.does(discard, None).0, Ok(()));
        for page in 0..10 {
            match (page, rig.stored(page)) {
                (2..8, 0) => zeros += 1,
                (2..8, 1) => old += 1,
                (_, byte) => assert_eq!(byte, 1),
            }
        }
    }
    assert!(zeros > 10 && old > 10);
}

#[test]
fn lost_power_under_a_living_owner_answers_what_was_in_flight() {
    let rig = rig(1);
    (0..4).for_each(|page| rig.write(page, page, 1, 1));
    rig.drive.power_loss();
    let done = rig.finish();
    assert_eq!(done.len(), 4);
    assert!(done.iter().all(|completion| matches!(completion.result, Err(DriveError::Io(_)))));
    assert_eq!(rig.reads(0).0, Ok(()));
}

#[test]
fn a_slow_drive_takes_longer() {
    let rig = rig(1);
    rig.drive.slow(100_000);
    rig.write(1, 0, 1, 1);
    assert!(rig.finish().is_empty());
    rig.world.run_for(SECOND * 60);
    assert_eq!(rig.finish().len(), 1);
}

#[test]
fn slow_reads_leave_writes_as_fast_as_they_are() {
    let rig = rig(1);
    rig.drive.slow_reads(100_000);
    rig.submit(1, DriveOperation::Read { offset: 0 }, Some((0, 1)));
    rig.write(2, 1, 1, 1);
    rig.submit(3, DriveOperation::Flush, None);
    let mut done: Vec<u64> = rig.finish().iter().map(|completion| completion.token).collect();
    done.sort_unstable();
    assert_eq!(done, [2, 3]);
    rig.world.run_for(SECOND * 60);
    assert_eq!(rig.finish().len(), 1);
    // Calm ends it.
    rig.drive.slow_reads(100_000);
    rig.world.calm();
    assert_eq!(rig.reads(0).0, Ok(()));
}

#[test]
fn flows_run_over_the_async_wrapper() {
    let rig = rig(1);
    let drive = DriveIo::new(Rc::clone(&rig.open));
    let turning = drive.clone();
    rig.process.set_turn(move || turning.turn());
    let result = Rc::new(RefCell::new(None));
    let flow: std::pin::Pin<Box<dyn Future<Output = ()>>> = {
        let (drive, result) = (drive.clone(), Rc::clone(&result));
        Box::pin(async move {
            let mut buffer = drive.drive().buffer(2 * PAGE);
            buffer.fill(3);
            drive.write(at(1), buffer).await.unwrap();
            drive.flush().await.unwrap();
            *result.borrow_mut() = Some(drive.read(at(2), PAGE).await.unwrap()[7]);
        })
    };
    rig.process.executor().spawn(Priority::Background, flow);
    assert!(rig.world.run_until(|| result.borrow().is_some(), SECOND));
    assert_eq!(*result.borrow(), Some(3));
}

#[test]
fn a_power_cut_hits_the_operation_that_it_was_ordered_for() {
    for (remains, first, last) in [
        (Remains::Nothing, 0, 0),
        (Remains::Everything, 9, 9),
        (Remains::TornFirst, 9, 0),
        (Remains::TornLast, 0, 9),
    ] {
        let rig = rig(3);
        let power = Power::default();
        rig.drive.feed(&power);
        rig.write(1, 0, 7, 1);
        rig.submit(2, DriveOperation::Read { offset: 0 }, Some((0, 1)));
        assert_eq!(rig.finish().len(), 2);
        // The flush, then a write that completes, then the one that is hit.
        power.cut_at(3);
        assert_eq!(rig.does(DriveOperation::Flush, None).0, Ok(()));
        rig.write(3, 4, 8, 1);
        assert_eq!(rig.finish().len(), 1);
        rig.write(4, 8, 9, 2);
        assert!(rig.finish().is_empty() && power.is_out());
        rig.write(5, 12, 9, 1);
        assert!(rig.finish().is_empty());
        rig.drive.settle(remains);
        rig.process.kill();
        power.restore();
        let byte = |offset: u64| rig.drive.peek(offset, 1)[0];
        assert_eq!(byte(0), 7, "what was flushed stays");
        assert_eq!(byte(at(4)) == 8, matches!(remains, Remains::Everything | Remains::TornFirst));
        assert_eq!((byte(at(8)), byte(at(10) - 1)), (first, last), "{remains:?}");
        assert_eq!(byte(at(12)), 0, "without power nothing is taken");
        // And it goes on.
        let rig = Rig { process: rig.world.start_process("again"), ..rig };
        let rig = Rig { open: rig.process.open_drive(&rig.drive), ..rig };
        assert_eq!(rig.does(DriveOperation::Write { offset: 0 }, Some((1, 1))).0, Ok(()));
    }
}

#[test]
fn a_drive_that_hangs_answers_once_it_does_not() {
    let rig = rig(5);
    rig.write(1, 3, 7, 2);
    rig.drive.hang(true);
    rig.write(2, 9, 8, 1);
    rig.submit(3, DriveOperation::Flush, None);
    // What came before it hung is on its way.
    assert_eq!(rig.finish().iter().map(|done| done.token).collect::<Vec<_>>(), [1]);
    assert_eq!((rig.stored(3), rig.stored(9), rig.drive.in_flight()), (7, 0, 2));
    rig.drive.hang(false);
    let mut answered: Vec<u64> = rig.finish().iter().map(|done| done.token).collect();
    answered.sort_unstable();
    assert_eq!((answered, rig.stored(9)), (vec![2, 3], 8));
    let counters = rig.world.counters();
    assert_eq!((counters.drives_hung, counters.requests_hung), (1, 2));
}

#[test]
fn what_waits_at_a_drive_that_hangs_dies_with_its_owner() {
    let rig = rig(6);
    rig.drive.hang(true);
    rig.write(1, 3, 7, 1);
    rig.process.kill();
    let landed = rig.stored(3);
    rig.drive.hang(false);
    rig.world.run_for(SECOND);
    assert_eq!((rig.stored(3), rig.drive.in_flight()), (landed, 0));
}
