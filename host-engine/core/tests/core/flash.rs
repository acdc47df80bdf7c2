//! A disk with flash: what is read comes from there, and whatever happens to it shows in nothing that is read.

use crate::rig::Rig;
use crate::rig::model::Model;
use cleave_format::ids::*;
use cleave_host_core::*;
use cleave_runtime::random::Random;
use std::time::Duration;

const SIZE: u64 = 9 << 20;
const MIB: u64 = 1 << 20;

fn rig(seed: u64, flash: u64) -> Rig {
    let mut rig = Rig::new(seed, SIZE);
    rig.flash = Some(rig.world.create_drive("flash", flash));
    rig
}

/// Starts the host and opens the disk, once flash is in use.
fn start(rig: &mut Rig) -> HostCore {
    let core = rig.start_host();
    rig.open();
    rig.world.run_for(Duration::from_secs(1));
    core
}

/// Blocks read from flash and from the pool by what `work` does.
fn reads(core: &HostCore, work: impl FnOnce()) -> (u64, u64) {
    let before = core.stats();
    work();
    let after = core.stats();
    (after.reads_flash - before.reads_flash, after.reads_pool - before.reads_pool)
}

#[test]
fn what_was_written_is_read_from_flash_also_after_a_restart() {
    for power in [false, true] {
        let mut rig = rig(400, 256 * MIB);
        let mut core = start(&mut rig);
        let mut model = Model::new(40, SIZE);
        model.work(&rig, 6_000, 32);
        // Everything is destaged, and durable on flash.
        rig.world.run_for(Duration::from_secs(90));
        for round in 0..3 {
            let (flash, pool) = reads(&core, || model.read_all(&rig));
            assert!(flash > 500 && pool * 100 <= flash, "{round}: {flash} and {pool}");
            rig.kill_host();
            if power {
                rig.flash.as_ref().unwrap().power_loss();
            }
            model.crash();
            core = start(&mut rig);
        }
        assert_eq!(core.stats().flash_checks_failed, 0);
    }
}

#[test]
fn empty_flash_warms_up_by_what_is_read() {
    let mut rig = Rig::new(401, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(41, SIZE);
    model.work(&rig, 6_000, 32);
    rig.world.run_for(Duration::from_secs(90));
    let core = rig.core();
    let (flash, pool) = reads(&core, || model.read_all(&rig));
    assert!(flash == 0 && pool > 500);
    let drive = rig.world.create_drive("flash", 256 * MIB);
    rig.add_flash(&drive);
    rig.world.run_for(Duration::from_secs(1));
    let (_, cold) = reads(&core, || model.read_all(&rig));
    rig.world.run_for(Duration::from_secs(5));
    let (flash, pool) = reads(&core, || model.read_all(&rig));
    assert!(cold > 0 && flash > 20 * pool, "first {cold} from the pool, then {flash} and {pool}");
    assert!(core.stats().parts_fetched > 10, "{:?}", core.stats());
    // Bounded, whatever was read.
    assert!(core.flash().stats().devices[0].errors == 0);
}

/// Sequential reads see their neighbourhood come before them.
#[test]
fn the_neighbourhood_comes_ahead_of_a_sequential_reader() {
    let mut rig = Rig::new(402, SIZE);
    rig.pool.borrow_mut().data_shards = 8;
    rig.write_buffer = 64 * MIB;
    rig.start_host();
    rig.open();
    let mut model = Model::new(42, SIZE);
    model.fill(&rig);
    rig.world.run_for(Duration::from_secs(90));
    let drive = rig.world.create_drive("flash", 256 * MIB);
    rig.add_flash(&drive);
    rig.world.run_for(Duration::from_secs(1));
    let core = rig.core();
    let (flash, pool) = reads(&core, || model.read_slowly(&rig, Duration::from_millis(5)));
    assert!(flash > 8 * pool, "{flash} from flash, {pool} from the pool: {:?}", core.stats());
}

// C3: whatever flash gives is checked; what fails comes from the pool.
#[test]
fn no_damage_to_flash_is_ever_read() {
    let (mut failed, mut from_flash, mut retired) = (0, 0, 0);
    for seed in 0..8 {
        let mut rig = rig(410 + seed, 32 * MIB);
        let drive = rig.flash.clone().unwrap();
        let mut model = Model::new(50 + seed, SIZE);
        for _ in 0..4 {
            let core = start(&mut rig);
            for _ in 0..12 {
                model.work(&rig, 150, 24);
                rig.world.run_for(Duration::from_millis(300));
                let page = drive.any_stored_page().unwrap_or(0).max(8192);
                match model.random.below(6) {
                    0 => drive.misdirect_next(1),
                    1 => drive.fail_next(1),
                    2 => drive.spoil(page, 4096),
                    _ => drive.flip_bit(page + model.random.below(4096), 3),
                }
            }
            model.read_all(&rig);
            let stats = core.stats();
            failed += stats.flash_checks_failed;
            from_flash += stats.reads_flash;
            retired += core.flash().stats().devices.iter().map(|d| d.retired_places).sum::<u64>();
            rig.kill_host();
            if model.random.below(2) == 0 {
                drive.power_loss();
            }
            model.crash();
        }
    }
    assert!(failed > 10 && retired > 10 && from_flash > 1_000, "{failed}, {retired}, {from_flash}");
}

#[test]
fn a_lost_or_hanging_device_is_a_host_without_flash() {
    for hangs in [false, true] {
        let mut rig = rig(420, 64 * MIB);
        let core = start(&mut rig);
        let mut model = Model::new(60, SIZE);
        model.work(&rig, 2_000, 32);
        match hangs {
            false => rig.flash.as_ref().unwrap().lose(),
            true => rig.flash.as_ref().unwrap().slow(10_000_000),
        }
        model.work(&rig, 2_000, 32);
        model.read_all(&rig);
        let committed = core.stats().stripes_committed;
        model.work(&rig, 2_000, 32);
        rig.world.run_for(Duration::from_secs(60));
        assert!(core.stats().stripes_committed > committed, "destage goes on: {:?}", core.stats());
        let events: Vec<_> = std::iter::from_fn(|| core.flash().next_event()).collect();
        let retired = |event: &cleave_flash::FlashEvent| {
            matches!(event, cleave_flash::FlashEvent::Retired { .. })
        };
        assert!(events.iter().any(retired), "{events:?}");
        let (flash, _) = reads(&core, || model.read_all(&rig));
        assert_eq!(flash, 0);
    }
}

/// Rot in the pool comes to flash with its part, and is not fetched for ever.
#[test]
fn rot_in_the_pool_is_solved_with_flash_too() {
    let mut rig = Rig::new(430, SIZE);
    rig.start_host();
    rig.open();
    let mut model = Model::new(61, SIZE);
    model.work(&rig, 5_000, 32);
    rig.world.run_for(Duration::from_secs(90));
    let stripes: Vec<StripeId> = rig.pool.borrow().stripes.keys().copied().collect();
    for (index, stripe) in stripes.iter().enumerate() {
        rig.pool.borrow_mut().rotten.insert((*stripe, index as u8 % 4));
    }
    let drive = rig.world.create_drive("flash", 64 * MIB);
    rig.add_flash(&drive);
    rig.world.run_for(Duration::from_secs(1));
    for _ in 0..6 {
        model.read_all(&rig);
        rig.world.run_for(Duration::from_secs(2));
    }
    let flash = rig.core().flash().stats();
    assert_eq!(flash.devices[0].retired_places, 0, "the device is well: {flash:?}");
    let fetched = rig.core().stats().parts_fetched;
    model.read_all(&rig);
    rig.world.run_for(Duration::from_secs(2));
    let again = rig.core().stats().parts_fetched - fetched;
    assert!(again * 20 <= fetched, "{again} of {fetched} parts are fetched again and again");
}
