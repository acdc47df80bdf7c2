//! Devices that lose power, content, space, or themselves.

use super::*;

#[test]
fn a_killed_process_finds_everything_again() {
    let mut rig = Rig::new(1, 64 * MIB);
    (0..20).for_each(|stripe| rig.store(stripe, 0, 5));
    // The last parts are described within a fifth of a second of quiet.
    rig.world.run_for(SECOND);
    for round in 0..3 {
        rig.restart(false);
        for stripe in 0..20 {
            (0..5).for_each(|part| assert!(rig.has(stripe, part), "{round}: {stripe}/{part}"));
        }
    }
    assert_eq!(rig.flash.stats().parts, 100);
}

/// Closes the flash, and returns when that is over.
fn close(rig: &Rig) {
    let closed = Rc::new(Cell::new(false));
    let (told, flash) = (Rc::clone(&closed), rig.flash.clone());
    rig.process.executor().spawn(Priority::Foreground, async move {
        flash.close().await;
        told.set(true);
    });
    assert!(rig.world.run_until(|| closed.get(), SECOND));
}

#[test]
fn after_a_clean_close_power_may_fail() {
    let mut rig = Rig::new(2, 64 * MIB);
    (0..20).for_each(|stripe| rig.store(stripe, 0, 5));
    rig.put(20, 0, 5);
    close(&rig);
    assert!(!rig.put(21, 0, 1), "nothing more is taken");
    assert!(matches!(described(&rig, 20, 4), Some(PlaceState::Present(_))));
    rig.restart(true);
    for stripe in 0..21 {
        (0..5).for_each(|part| assert!(rig.has(stripe, part)));
    }
}

/// Wherever the keeper of headers is when the close comes, the close waits for it.
#[test]
fn a_close_is_over_only_when_power_may_fail() {
    for step in 0..60 {
        let mut rig = Rig::new(step, 64 * MIB);
        rig.store(1, 0, 5);
        rig.world.run_for(Duration::from_millis(5 * step));
        rig.store(2, 0, 3);
        close(&rig);
        rig.restart(true);
        (0..5).for_each(|part| assert!(rig.has(1, part), "{step}"));
        (0..3).for_each(|part| assert!(rig.has(2, part), "{step}"));
    }
}

#[test]
fn what_is_quiet_for_a_while_survives_a_power_loss() {
    let mut rig = Rig::new(11, 64 * MIB);
    rig.store(1, 0, 5);
    rig.world.run_for(8 * SECOND);
    rig.restart(true);
    (0..5).for_each(|part| assert!(rig.has(1, part)));
}

#[test]
fn a_power_loss_costs_the_newest_parts_and_no_places() {
    let (mut kept, mut lost) = (0, 0);
    for seed in 0..10 {
        let mut rig = Rig::new(seed, 64 * MIB);
        (0..30).for_each(|stripe| rig.store(stripe, 0, 5));
        rig.world.run_for(SECOND);
        rig.restart(true);
        for stripe in 0..30 {
            for part in 0..5 {
                let found = rig.has(stripe, part);
                kept += u64::from(found);
                lost += u64::from(!found);
            }
        }
        rig.settle();
        let stats = rig.flash.stats();
        assert_eq!((stats.devices[0].retired_places, stats.devices[0].errors), (0, 0));
        // What did not come through can be written again.
        (30..40).for_each(|stripe| rig.store(stripe, 0, 5));
        assert!(rig.has(39, 4));
    }
    assert!(lost > 0 && kept > 10 * lost, "{kept} kept, {lost} lost");
}

#[test]
fn a_place_that_rots_is_retired_for_good() {
    let mut rig = Rig::new(3, 64 * MIB);
    (0..10).for_each(|stripe| rig.store(stripe, 0, 8));
    rig.settle();
    rig.restart(false);
    rig.events();
    let offset = rig.offset_of(3, 2);
    rig.drive.flip_bit(offset + 5000, 4);
    assert_eq!(rig.read(3, 2 * PART, 4096), Some(true), "not there");
    assert_eq!(rig.read(3, 2 * PART + 4096, 4096), Some(false));
    assert_eq!(rig.read(3, 2 * PART, 16), None, "the part is gone at once");
    rig.settle();
    let device: Arc<str> = "flash".into();
    assert_eq!(rig.events(), [FlashEvent::PlaceRetired { device, offset }]);
    rig.store(3, 2, 1);
    assert!(rig.has(3, 2) && rig.offset_of(3, 2) != offset);
    rig.settle();
    rig.restart(true);
    assert!(rig.has(3, 1) && rig.has(3, 3));
    assert_eq!(rig.flash.stats().devices[0].retired_places, 1);
    // Nothing is ever put there again.
    for stripe in 100..200 {
        rig.store(stripe, 0, 8);
        (0..8).for_each(|part| assert_ne!(rig.offset_of(stripe, part), offset));
    }
}

#[test]
fn rot_in_an_open_zone_retires_the_place_too() {
    let mut rig = Rig::new(4, 64 * MIB);
    rig.store(1, 0, 3);
    rig.drive.flip_bit(rig.offset_of(1, 1), 0);
    assert_eq!(rig.read(1, PART, 64), Some(false));
    rig.settle();
    assert_eq!(rig.flash.stats().devices[0].retired_places, 1);
    rig.restart(false);
    assert_eq!(rig.flash.stats().devices[0].retired_places, 1);
    assert!(rig.has(1, 0) && !rig.has(1, 1) && rig.has(1, 2));
}

#[test]
fn what_came_in_damaged_is_not_held_against_the_place() {
    let rig = Rig::new(5, 64 * MIB);
    let mut bytes = content(1, 0);
    bytes[77] ^= 1;
    rig.flash.put(StripeId(1), 0, &Bytes::from(bytes), 0);
    rig.settle();
    assert_eq!(rig.read(1, 64, 32), Some(false));
    rig.settle();
    let stats = rig.flash.stats();
    assert_eq!((stats.parts, stats.parts_came_damaged), (0, 1));
    assert_eq!((stats.devices[0].retired_places, stats.devices[0].errors), (0, 0));
}

#[test]
fn errors_are_counted_and_too_many_retire_the_device() {
    let rig = Rig::new(6, 64 * MIB);
    (0..40).for_each(|stripe| rig.store(stripe, 0, 4));
    rig.settle();
    rig.events();
    rig.drive.spoil(rig.offset_of(0, 0), 4096);
    assert_eq!(rig.read(0, 0, 16), None);
    rig.settle();
    let events = rig.events();
    assert!(matches!(&events[..], [FlashEvent::Error { .. }, FlashEvent::PlaceRetired { .. }]));
    assert_eq!(rig.flash.stats().devices[0].retired_places, 1);
    for stripe in 1..40 {
        rig.drive.spoil(rig.offset_of(stripe, 0), 4096);
        rig.read(stripe, 0, 16);
        if rig.flash.stats().devices[0].phase == Phase::Retired {
            break;
        }
    }
    assert!(matches!(rig.events().last(), Some(FlashEvent::Retired { .. })));
    assert!(!rig.ask(39, PART, 16, 1) && !rig.put(50, 0, 1));
    rig.settle();
    assert_eq!((rig.flash.stats().parts, rig.flash.is_empty()), (0, true));
}

#[test]
fn a_failed_write_goes_elsewhere() {
    let rig = Rig::new(7, 64 * MIB);
    rig.store(1, 0, 2);
    rig.settle();
    rig.drive.fail_next(1);
    rig.store(2, 0, 4);
    (0..4).for_each(|part| assert!(rig.has(2, part)));
    assert_eq!(rig.flash.stats().devices[0].retired_places, 4);
    rig.settle();
}

#[test]
fn a_lost_device_costs_nobody_anything() {
    let rig = Rig::new(8, 64 * MIB);
    rig.store(1, 0, 8);
    rig.settle();
    assert!(rig.ask(1, 0, 4096, 3));
    assert!(rig.put(2, 0, 8));
    rig.drive.lose();
    rig.world.run_for(SECOND);
    let done = rig.take_done();
    assert!(matches!(&done[..], [FlashRead { token: 3, bytes: None }]), "{done:?}");
    assert!(!rig.ask(1, 0, 4096, 4) && !rig.put(3, 0, 1));
    rig.settle();
    assert!(rig.flash.is_empty());
    rig.drive.come_back();
    rig.add(&rig.drive, "flash").unwrap();
    rig.settle();
    assert!(rig.has(1, 7));
}

#[test]
fn a_slow_device_does_not_hold_reads_up_and_a_hanging_one_is_retired() {
    let rig = Rig::new(9, 64 * MIB);
    rig.store(1, 0, 8);
    rig.settle();
    rig.world.change_settings(|settings| {
        settings.drive_read.min = 5 * SECOND;
        settings.drive_read.max = 5 * SECOND;
    });
    assert!(rig.ask(1, 0, 16, 1));
    rig.world.run_for(1500 * SECOND / 1000);
    assert!(matches!(&rig.take_done()[..], [FlashRead { token: 1, bytes: None }]));
    assert!(!rig.ask(1, 0, 16, 2), "others do not run into it meanwhile");
    rig.world.run_for(5 * SECOND);
    rig.world.change_settings(|settings| settings.drive_read.max = 100 * SECOND);
    rig.world.change_settings(|settings| settings.drive_read.min = 100 * SECOND);
    assert!(rig.ask(1, 0, 16, 3), "it has answered");
    rig.world.run_for(40 * SECOND);
    assert_eq!(rig.take_done().len(), 1);
    assert_eq!(rig.flash.stats().devices[0].phase, Phase::Retired);
    rig.world.run_for(100 * SECOND);
    assert!(rig.flash.is_empty() && rig.take_done().is_empty());
}

#[test]
fn without_space_reads_go_on() {
    let rig = Rig::new(10, 64 * MIB);
    (0..4).for_each(|stripe| rig.store(stripe, 0, 8));
    rig.settle();
    rig.drive.set_full(true);
    rig.put(5, 0, 8);
    rig.settle();
    assert!(rig.events().iter().any(|event| matches!(event, FlashEvent::NoSpace { .. })));
    assert!(!rig.put(6, 0, 1) && rig.has(1, 1));
    rig.drive.set_full(false);
    rig.world.run_for(10 * SECOND);
    rig.store(6, 0, 8);
    rig.settle();
}
