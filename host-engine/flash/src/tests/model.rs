//! Anything that may happen, in any order: what is read is right, or is noticed, or is not there.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Step {
    Put(u64, u8, usize),
    Read(u64, u8, usize),
    Forget(u64),
    Wait(u64),
    Restart(bool),
    Close,
    Flip(u64, u8),
    FlipHeader(u32, u64),
    Misdirect,
    Fail,
    Spoil,
}

fn step(faults: bool) -> impl Strategy<Value = Step> {
    let stripe = 0u64..24;
    let calm = prop_oneof![
        8 => (stripe.clone(), 0u8..12, 1usize..5).prop_map(|(s, p, n)| Step::Put(s, p, n)),
        12 => (stripe.clone(), 0u8..16, 0..PART / 4096).prop_map(|(s, p, at)| Step::Read(s, p, at)),
        1 => stripe.prop_map(Step::Forget),
        4 => (1u64..300).prop_map(Step::Wait),
        1 => any::<bool>().prop_map(Step::Restart),
        1 => Just(Step::Close),
    ];
    let struck = prop_oneof![
        3 => (any::<u64>(), 0u8..8).prop_map(|(at, bit)| Step::Flip(at, bit)),
        2 => (any::<u32>(), any::<u64>()).prop_map(|(zone, at)| Step::FlipHeader(zone, at)),
        2 => Just(Step::Misdirect),
        2 => Just(Step::Fail),
        2 => Just(Step::Spoil),
    ];
    prop_oneof![30 => calm, u32::from(faults) => struck]
}

/// Plays the steps; returns reads that were right, wrong, and not there though they were put.
fn play(seed: u64, steps: Vec<Step>, faults: bool) -> (u64, u64, u64) {
    let mut rig = Rig::new(seed, 16 * MIB);
    let mut put = BTreeSet::new();
    let (mut right, mut wrong, mut missing) = (0, 0, 0);
    let mut power_lost = false;
    for step in steps {
        if rig.flash.is_empty() {
            break;
        }
        match step {
            Step::Put(stripe, first, parts) => {
                if rig.put(stripe, first, parts) {
                    put.extend((0..parts).map(|n| (stripe, first + n as u8)));
                }
            }
            Step::Read(stripe, part, page) => {
                let offset = usize::from(part) * PART + page * 4096;
                match rig.read(stripe, offset, 4096) {
                    Some(true) => {
                        assert!(put.contains(&(stripe, part)), "nobody put {stripe}/{part}");
                        right += 1;
                    }
                    Some(false) => {
                        assert!(faults || power_lost, "{stripe}/{part} is wrong without a fault");
                        wrong += 1;
                        assert_eq!(rig.read(stripe, offset, 4096), None, "and stays away");
                    }
                    None => missing += u64::from(put.contains(&(stripe, part))),
                }
            }
            Step::Forget(stripe) => {
                // What is on its way may still come: it is right, whenever it is read.
                rig.flash.forget(StripeId(stripe));
            }
            Step::Wait(milliseconds) => rig.world.run_for(Duration::from_millis(milliseconds)),
            Step::Restart(power) => {
                power_lost |= power;
                rig.process.kill();
                if power {
                    rig.drive.power_loss();
                }
                rig.process = rig.world.start_process("host");
                if let Err(error) = rig.begin() {
                    assert!(faults, "{error}");
                    break;
                }
            }
            Step::Close => {
                let flash = rig.flash.clone();
                let closing = async move { flash.close().await };
                rig.process.executor().spawn(Priority::Foreground, closing);
                rig.world.run_for(SECOND);
                rig.restart(false);
            }
            Step::Flip(at, bit) => {
                let page = rig.drive.any_stored_page();
                // Not the superblock: with the other copy misdirected over, the device is refused, and rightly.
                let page = page.filter(|page| *page >= MIB);
                page.into_iter().for_each(|page| rig.drive.flip_bit(page + at % 4096, bit));
            }
            Step::FlipHeader(zone, at) => {
                let superblock = rig.device(|device| device.superblock.clone());
                let offset = superblock.zone_offset(zone % superblock.zones) + at % 8192;
                rig.drive.flip_bit(offset, 1);
            }
            Step::Misdirect => rig.drive.misdirect_next(1),
            Step::Fail => rig.drive.fail_next(1),
            Step::Spoil => {
                let page = rig.drive.any_stored_page();
                // Not the superblock: a device that cannot say what it is, is not used.
                page.filter(|page| *page >= MIB).into_iter().for_each(|page| {
                    rig.drive.spoil(page, 4096);
                });
            }
        }
        rig.check();
    }
    rig.world.run_for(5 * SECOND);
    rig.check();
    (right, wrong, missing)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn without_faults_everything_is_right(seed: u64, steps in vec(step(false), 1..150)) {
        play(seed, steps, false);
    }

    #[test]
    fn with_faults_everything_wrong_is_noticed(seed: u64, steps in vec(step(true), 1..150)) {
        play(seed, steps, true);
    }
}
