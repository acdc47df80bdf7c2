//! Rot in the memory of a log, whose records are then read by a host that opens the vdisk.
//!
//! Of one controller's it costs nothing: the other's copy is taken. Where the other's is damaged too, or is gone,
//! the vdisk opens all the same, and at most the blocks of the record cannot be read: of its slice, when nothing tells
//! which they were.

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
