//! Rot in the images of a log, after a clean stop of both controllers and before their start.
//!
//! With one image left everything is there; without one the data node says that the log is lost, and starts
//! no other by itself (C7).

use crate::rig::Rig;
use crate::rot::Rot;
use crate::tally::{Extent, Tally};
use cleave_format::vault::{BODY_START, VAULT_HEADER, VaultHeader, choose};

/// Places of a structure that are damaged when they are sampled, and otherwise.
const FEW: u64 = 3;
const MANY: u64 = 100;

/// Two clean stops, with content in the log that is nowhere else, and what the vaults held after the first.
fn stopped() -> (Rig, [Vec<u8>; 2]) {
    let mut rig = Rig::running(false);
    rig.destage(0..300);
    rig.write(400..420);
    rig.stop_controllers();
    let first = [0, 1].map(|number| whole(&rig, number));
    rig.start_controllers();
    rig.until("mirrored again", |rig| rig.is_mirrored() && rig.serves());
    rig.write(410..450);
    rig.kill_host();
    rig.stop_controllers();
    (rig, first)
}

/// What a vault holds, as far as anything was written.
fn whole(rig: &Rig, number: usize) -> Vec<u8> {
    rig.vaults[number].peek(0, 1 << 20)
}

fn newest(rig: &Rig, number: usize) -> VaultHeader {
    let copies = rig.vaults[number].peek(0, 2 * VAULT_HEADER);
    let found = choose(&copies[..VAULT_HEADER], &copies[VAULT_HEADER..]);
    found.expect("it is intact").expect("it was written")
}

/// A damage of one vault.
type Strike = dyn Fn(&Rig, usize, &[Vec<u8>; 2]);

/// Plays it.
pub fn run(extent: Extent, only: &str, tally: &mut Tally) {
    const SUBJECT: &str = "rot: vaults";
    if !SUBJECT.contains(only) {
        return;
    }
    let few = if extent == Extent::Sampled { FEW } else { MANY };
    let mut case = |name: &str, strike: &Strike| {
        for struck in [&[0][..], &[1], &[0, 1]] {
            let name = format!("{name}, of {struck:?}");
            tally.play(SUBJECT, &name, || {
                let (rig, first) = stopped();
                struck.iter().for_each(|number| strike(&rig, *number, &first));
                read(rig, struck.len() < 2);
            });
        }
    };
    let flip = |rig: &Rig, number: usize, at: u64, bit: u64| {
        let mut byte = rig.vaults[number].peek(at, 1);
        Rot::Flip(bit as u8).strike(&mut byte);
        rig.vaults[number].overwrite(at, &byte);
    };
    for index in 0..few {
        case(&format!("a bit of the newest header, {index}"), &move |rig, number, _| {
            flip(rig, number, newest(rig, number).copy_offset() + index * 41 % 100, index);
        });
        case(&format!("a bit of the body, {index}"), &move |rig, number, _| {
            let header = newest(rig, number);
            let place = index * (header.body_length - 1) / (few - 1);
            flip(rig, number, header.body_offset + place, index);
        });
    }
    for rot in [Rot::Zeros, Rot::Ones] {
        case(&format!("the newest header becomes {rot:?}"), &move |rig, number, _| {
            let mut page = vec![1; VAULT_HEADER];
            rot.strike(&mut page);
            rig.vaults[number].overwrite(newest(rig, number).copy_offset(), &page);
        });
        case(&format!("both headers become {rot:?}"), &move |rig, number, _| {
            let mut pages = vec![1; 2 * VAULT_HEADER];
            rot.strike(&mut pages);
            rig.vaults[number].overwrite(0, &pages);
        });
        case(&format!("the body becomes {rot:?} from its half on"), &move |rig, number, _| {
            let header = newest(rig, number);
            let mut half = vec![1; header.body_length as usize / 2];
            rot.strike(&mut half);
            rig.vaults[number].overwrite(header.body_offset + header.body_length / 2, &half);
        });
    }
    case("the older image is back", &|rig, number, first| {
        rig.vaults[number].overwrite(0, &first[number]);
    });
    case("the older body under the newest header", &|rig, number, first| {
        let (from, header) = (BODY_START as usize, newest(rig, number));
        let body = &first[number][from..from + header.body_length as usize];
        rig.vaults[number].overwrite(header.body_offset, body);
    });
    tally.play(SUBJECT, "each has the image of the other", || {
        let (rig, _) = stopped();
        let images = [whole(&rig, 1), whole(&rig, 0)];
        (0..2).for_each(|number| rig.vaults[number].overwrite(0, &images[number]));
        read(rig, true);
    });
}

/// Starts everything and reads everything. `whole`: an image is left.
fn read(mut rig: Rig, whole: bool) {
    rig.start_controllers();
    rig.until("mirrored, or not", |rig| rig.is_mirrored() || rig.has_no_log());
    if !rig.is_mirrored() {
        rig.pass(std::time::Duration::from_secs(5));
    }
    if !rig.is_mirrored() {
        assert!(!whole, "the log is gone although an image of it is left");
        return;
    }
    // Also of two damaged vaults: then nothing that counts was hit.
    rig.start_host();
    rig.until("it is open, or said why not", |rig| rig.serves() || rig.open_problem().is_some());
    assert_eq!(rig.open_problem(), None, "the vdisk cannot be opened");
    let failed = rig.read();
    assert!(failed.is_empty(), "blocks cannot be read: {failed:?}");
}
