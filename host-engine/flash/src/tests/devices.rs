//! Devices that come, go, and are not what they should be.

use super::*;
use cleave_format::FormatError;

#[test]
fn only_empty_devices_are_formatted() {
    let mut rig = Rig::new(1, 64 * MIB);
    rig.store(1, 0, 1);
    let foreign = rig.world.create_drive("foreign", 64 * MIB);
    let refused = |at: u64, expected: PrepareError| {
        let drive = rig.world.create_drive(&format!("d{at}"), 64 * MIB);
        drive.flip_bit(at, 3);
        assert_eq!(rig.add(&drive, "other"), Err(expected));
        let before = drive.peek(at, 1);
        assert_eq!(before, [8], "nothing was written");
    };
    for at in [1080, 0x1_0040, 700 * 1024 + 17, 64 * MIB - 600, 32 * MIB] {
        refused(at, PrepareError::NotEmpty { offset: at });
    }
    let small = rig.world.create_drive("small", 8 * MIB);
    assert_eq!(rig.add(&small, "other"), Err(PrepareError::Small { size: 8 * MIB }));
    rig.add(&foreign, "other").unwrap();
    // The same device for another cluster.
    let process = rig.world.start_process("stranger");
    rig.flash.retire("other", "test");
    rig.settle();
    let io = DriveIo::new(process.open_drive(&foreign));
    let outcome = Rc::new(RefCell::new(None));
    let (told, asked) = (Rc::clone(&outcome), io.clone());
    process.executor().spawn(Priority::Foreground, async move {
        let prepared = prepare(&asked, ClusterId([6; 16]), FlashId([9; 16])).await;
        *told.borrow_mut() = Some(prepared);
    });
    process.set_turn(move || io.turn());
    rig.world.run_for(SECOND);
    assert_eq!(outcome.take(), Some(Err(PrepareError::Foreign { cluster: CLUSTER })));
    rig.restart(false);
    assert!(rig.has(1, 0));
}

#[test]
fn a_superblock_survives_the_loss_of_one_copy() {
    let mut rig = Rig::new(2, 64 * MIB);
    rig.store(1, 0, 4);
    rig.world.run_for(8 * SECOND);
    for copy in [0, 1, 1, 0] {
        rig.drive.flip_bit(copy * 4096 + 50, 1);
        rig.restart(copy == 0);
        assert!(rig.has(1, 3));
    }
    for copy in [1, 0] {
        rig.drive.spoil(copy * 4096, 4096);
        rig.restart(false);
        assert!(rig.has(1, 3));
    }
    rig.drive.flip_bit(50, 1);
    rig.drive.flip_bit(4096 + 50, 1);
    rig.process.kill();
    rig.process = rig.world.start_process("host");
    let refused = rig.begin().unwrap_err();
    assert!(matches!(refused, PrepareError::Superblock(_)), "{refused}");
}

#[test]
fn a_device_of_a_newer_version_is_left_alone() {
    let mut rig = Rig::new(3, 64 * MIB);
    rig.settle();
    let superblock = rig.device(|device| device.superblock.clone());
    let newer = FlashSuperblock { format_level: 99, generation: 2, ..superblock };
    let bytes = newer.encode();
    let page = rig.drive.peek(0, 4096);
    for (at, (old, new)) in page.iter().zip(&bytes).enumerate() {
        (0..8).filter(|bit| (old ^ new) >> bit & 1 == 1).for_each(|bit| {
            rig.drive.flip_bit(at as u64, bit);
        });
    }
    rig.process.kill();
    rig.process = rig.world.start_process("host");
    let refused = rig.begin().unwrap_err();
    assert!(matches!(refused, PrepareError::Superblock(FormatError::Version(_))), "{refused}");
    assert_eq!(rig.drive.peek(0, 4096), bytes);
}

#[test]
fn devices_come_and_go_while_others_serve() {
    let rig = Rig::new(4, 64 * MIB);
    rig.store(1, 0, 8);
    let second = rig.world.create_drive("second", 64 * MIB);
    rig.add(&second, "second").unwrap();
    rig.settle();
    let again = FlashSuperblock::for_size(CLUSTER, FlashId([1; 16]), 64 * MIB).unwrap();
    let third = rig.world.create_drive("third", 64 * MIB);
    let open = rig.process.open_drive(&third);
    assert_eq!(
        rig.flash.add("second", Rc::clone(&open), again.clone(), Share::WHOLE),
        Err(AddError::Known("second".into()))
    );
    let share = Share { core: 0, cores: 1000 };
    let small = rig.flash.add("third", open, again, share);
    assert!(matches!(small, Err(AddError::Small { cores: 1000, .. })));
    // What comes now goes to the emptier one, too.
    (2..10).for_each(|stripe| rig.store(stripe, 0, 8));
    let used = |name: &str| {
        let stats = rig.flash.stats();
        let found = stats.devices.iter().find(|device| &*device.name == name);
        found.map_or(0, |device| device.used / PART as u64)
    };
    assert!(used("flash") > 8 && used("second") > 8, "{:?}", rig.flash.stats());
    rig.settle();
    assert!(!rig.flash.retire("nobody", "test"));
    assert!(rig.flash.retire("flash", "test"));
    let kept = used("second");
    rig.settle();
    assert_eq!(rig.flash.stats().devices.len(), 1);
    assert_eq!(rig.flash.stats().parts, kept);
    assert!(rig.drive.owner().is_none(), "its drive is closed");
    // Its numbers are free again.
    rig.add(&rig.drive, "flash").unwrap();
    rig.settle();
    assert!(rig.flash.stats().parts > kept, "what it holds is found");
    (1..10).for_each(|stripe| assert!(rig.has(stripe, 5), "stripe {stripe}"));
}

#[test]
fn a_device_that_was_cut_off_begins_anew() {
    let mut rig = Rig::new(5, 64 * MIB);
    rig.store(1, 0, 8);
    rig.settle();
    let superblock = rig.device(|device| device.superblock.clone());
    rig.process.kill();
    rig.process = rig.world.start_process("host");
    let shorter = rig.world.create_drive("shorter", 32 * MIB);
    let larger = FlashSuperblock { generation: 0, ..superblock };
    for (at, new) in larger.encode().iter().enumerate() {
        (0..8).filter(|bit| new >> bit & 1 == 1).for_each(|bit| shorter.flip_bit(at as u64, bit));
    }
    rig.drive = shorter;
    rig.begin().unwrap();
    rig.settle();
    assert_eq!(rig.flash.stats().parts, 0);
    rig.store(1, 0, 8);
    rig.settle();
    rig.restart(false);
    assert!(rig.has(1, 7));
}
