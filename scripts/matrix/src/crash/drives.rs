//! Formatting a drive, of the factory's and over what another cluster left on it.
//!
//! Before generation 0 is whole the drive is none of ours, or still the other cluster's; afterwards it is ours.
//! In between it is refused, and in any case it can be formatted again (C17).

use crate::rig::identity;
use crate::tally::{Extent, Tally};
use cleave_datanode_core::superblocks::{SuperblockError, format, identify};
use cleave_format::FormatError;
use cleave_format::ids::ClusterId;
use cleave_format::superblock::{DriveIdentity, Superblock};
use cleave_runtime::drives::DriveIo;
use cleave_runtime::executor::Priority;
use cleave_runtime_sim::{Power, Remains, SimDrive, World};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

const SIZE: u64 = 40 << 20;

/// Plays it.
pub fn run(_: Extent, only: &str, tally: &mut Tally) {
    for (name, used) in [("formatting a new drive", false), ("formatting a used drive", true)] {
        if !name.contains(only) {
            continue;
        }
        let subject = format!("crash: {name}");
        let operations = tally.play(&subject, "no cut", || play(used, None));
        let Some(operations) = operations else { continue };
        tally.count(&subject, "operations", operations);
        for number in 1..=operations {
            for seed in 0..16 {
                for remains in Remains::all(number * 16 + seed) {
                    // The others do not depend on the seed.
                    if seed > 0 && !matches!(remains, Remains::Some(_)) {
                        continue;
                    }
                    let name = format!("cut at operation {number}, {remains:?} remains");
                    tally.play(&subject, &name, || play(used, Some((number, remains))));
                    tally.count(&subject, "cuts", 1);
                }
            }
        }
    }
}

fn play(used: bool, cut: Option<(u64, Remains)>) -> u64 {
    let world = World::new(3);
    let drive = world.create_drive("drive", SIZE);
    let power = Power::default();
    drive.feed(&power);
    let other = DriveIdentity { cluster: ClusterId([9; 16]), ..identity(5) };
    if used {
        let done = on(&world, &drive, &power, move |io| async move { format(&io, other).await });
        done.expect("there is power").expect("a drive that works is formatted");
    }
    let before = power.operations();
    if let Some((number, remains)) = cut {
        power.cut_at(number);
        let done = on(&world, &drive, &power, |io| async move { format(&io, identity(0)).await });
        assert!(done.is_none() && power.is_out(), "the cut comes");
        drive.settle(remains);
        world.processes().iter().for_each(|process| process.kill());
        power.restore();
        match look(&world, &drive, &power, identity(0)) {
            Ok(superblock) => assert_eq!(superblock.identity, identity(0)),
            // Neither is whole yet; or one of each.
            Err(SuperblockError::Format(FormatError::Magic(_))) if !used => {}
            Err(SuperblockError::Format(FormatError::Checksum(_))) if !used => {}
            Err(SuperblockError::Cluster { .. }) if used => {}
            Err(SuperblockError::Format(FormatError::Identity(_))) if used => {}
            Err(error) => panic!("the drive cannot be told: {error}"),
        }
    }
    let again = on(&world, &drive, &power, |io| async move { format(&io, identity(0)).await });
    again.expect("there is power").expect("it can be formatted again");
    let operations = power.operations() - before;
    let found = look(&world, &drive, &power, identity(0)).expect("it was formatted");
    assert_eq!((found.identity, found.generation), (identity(0), 1));
    operations
}

fn look(
    world: &World,
    drive: &SimDrive,
    power: &Power,
    expected: DriveIdentity,
) -> Result<Superblock, SuperblockError> {
    let looked = on(world, drive, power, move |io| async move { identify(&io, &expected).await });
    looked.expect("there is power")
}

/// Runs a flow over the drive in a process of its own. `None`: the power went out.
fn on<T: 'static, F: Future<Output = T> + 'static>(
    world: &World,
    drive: &SimDrive,
    power: &Power,
    flow: impl FnOnce(DriveIo) -> F,
) -> Option<T> {
    let process = world.start_process("flow");
    let io = DriveIo::new(process.open_drive(drive));
    let result = Rc::new(RefCell::new(None));
    let (turning, given, future) = (io.clone(), Rc::clone(&result), flow(io));
    process.set_turn(move || turning.turn());
    process.executor().spawn(Priority::Foreground, async move {
        *given.borrow_mut() = Some(future.await);
    });
    process.wake();
    let over = || result.borrow().is_some() || power.is_out();
    assert!(world.run_until(over, Duration::from_secs(10)), "the flow ends");
    if !power.is_out() {
        process.kill();
    }
    result.borrow_mut().take()
}
