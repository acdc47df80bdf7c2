//! Rot in the memory of a log, whose records are then read by a host that opens the vdisk.
//!
//! Of one controller's it costs nothing: the other's copy is taken. Where the other's is damaged too, or is gone,
//! the vdisk opens all the same, and at most the blocks of the record cannot be read: of its slice, when nothing tells
//! which they were. A control record is never taken for another: its effects wait for the other's copy, and where there is
//! none the controller ends with an error.

use crate::rig::Rig;
use crate::tally::{Extent, Tally};
use cleave_format::ids::Position;

/// Bits of a record that are flipped when they are sampled, and otherwise.
const FEW: u64 = 6;
const MANY: u64 = 64;
/// Bytes of a record that has one block: its head, and what of the frame is hit.
const RECORD: u64 = 80 + 200;
/// Blocks that are only in the log.
const LOGGED: std::ops::Range<u64> = 900..910;
/// Bits of a seal: the number of its kind, vdisk, epoch, host and incarnation.
const SEAL_BITS: u64 = 8 * (4 + 8 + 8 + 4 + 8);
/// Blocks of a slice.
const SLICE: u64 = 512;

/// What becomes of the other controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// Its copy is sound.
    Sound,
    /// Its copy rotted too.
    Rotted,
    /// It died, and copies this log.
    Copies,
}

/// Plays it.
pub fn run(extent: Extent, only: &str, tally: &mut Tally) {
    const SUBJECT: &str = "rot: log's memory";
    if !SUBJECT.contains(only) {
        return;
    }
    let few = if extent == Extent::Sampled { FEW } else { MANY };
    for other in [Other::Sound, Other::Rotted, Other::Copies] {
        for number in [0, 1] {
            for index in 0..few {
                let bit = index * (8 * RECORD - 1) / (few - 1);
                let name = format!("bit {bit} at controller {number}, the other: {other:?}");
                tally.play(SUBJECT, &name, || play(number, bit, other));
            }
        }
    }
}

/// Plays control records.
pub fn run_controls(extent: Extent, only: &str, tally: &mut Tally) {
    const SUBJECT: &str = "rot: control records in the log's memory";
    if !SUBJECT.contains(only) {
        return;
    }
    let few = if extent == Extent::Sampled { FEW } else { SEAL_BITS };
    for other in [Other::Sound, Other::Rotted, Other::Copies] {
        for number in [0, 1] {
            for index in 0..few {
                let bit = index * (SEAL_BITS - 1) / (few - 1);
                let name =
                    format!("bit {bit} of a seal at controller {number}, the other: {other:?}");
                let stopped = tally.play(SUBJECT, &name, || play_control(number, bit, other));
                tally.count(SUBJECT, "stopped with an error", u64::from(stopped == Some(true)));
            }
        }
    }
}

/// A seal rots while it is on its way: at the active before its effects, at the standby after them. Whether a controller
/// ended by it.
fn play_control(number: usize, bit: u64, other: Other) -> bool {
    let mut rig = Rig::running(false);
    rig.destage(0..300);
    rig.write(LOGGED);
    rig.kill_host();
    let from = rig.status(0).expect("it runs").next;
    rig.start_host();
    let strike = |rig: &mut Rig, number: usize| {
        rig.until("a seal is sent", |rig| rig.rot_control(number, from, bit).is_some());
    };
    match other {
        Other::Sound => strike(&mut rig, number),
        // The standby has it first.
        Other::Rotted => [1, 0].iter().for_each(|number| strike(&mut rig, *number)),
        Other::Copies => {
            // It is in both logs as long as the standby's catalog has not synced it.
            rig.until("a seal is mirrored", |rig| {
                rig.status(1).is_some_and(|status| status.next > from)
            });
            strike(&mut rig, number);
            rig.kill_controller(1 - number);
            rig.start_controller(1 - number);
        }
    }
    let over = |rig: &Rig| rig.is_mirrored() && (rig.serves() || rig.open_problem().is_some());
    if let Some(failure) = rig.until_or_failure(over) {
        assert_ne!(other, Other::Sound, "the other controller has it: {failure}");
        assert!(failure.contains("rotted in memory"), "{failure}");
        return true;
    }
    assert_eq!(rig.open_problem(), None, "the vdisk cannot be opened");
    let failed = rig.read();
    assert!(failed.is_empty(), "blocks cannot be read: {failed:?}");
    rig.settle();
    false
}

fn play(number: usize, bit: u64, other: Other) {
    let mut rig = Rig::running(false);
    rig.destage(0..300);
    rig.write(LOGGED);
    let through = rig.status(0).expect("it runs").mirrored_through;
    let from = Position(through.0 - LOGGED.count() as u64 / 2);
    let at = rig.rot(number, from, bit).expect("records are in the log");
    match other {
        Other::Sound => {}
        Other::Rotted => assert_eq!(rig.rot(1 - number, at, bit), Some(at)),
        Other::Copies => {
            rig.kill_host();
            rig.kill_controller(1 - number);
            rig.start_controller(1 - number);
            rig.until("mirrored again", Rig::is_mirrored);
        }
    }
    if other != Other::Copies {
        rig.kill_host();
    }
    rig.start_host();
    rig.until("it is open, or said why not", |rig| rig.serves() || rig.open_problem().is_some());
    assert_eq!(rig.open_problem(), None, "the vdisk cannot be opened");
    let failed: Vec<u64> = rig.read().into_iter().map(|(block, _)| block).collect();
    let given_up: u64 =
        [0, 1].map(|one| rig.status(one).map_or(0, |status| status.counters.given_up)).iter().sum();
    match other {
        Other::Sound => assert!(failed.is_empty(), "blocks cannot be read: {failed:?}"),
        _ if given_up == 0 => {
            assert_eq!(failed.len(), 1, "only its block cannot be read: {failed:?}")
        }
        _ => {
            let slice = LOGGED.start / SLICE;
            assert!(
                !failed.is_empty() && failed.iter().all(|block| block / SLICE == slice),
                "{failed:?}"
            );
        }
    }
}
