//! Faults drawn at random, in runs that repeat from their seeds.

use crate::rig;
use crate::{append_some, begin, destage};
use std::time::Duration;

/// Kills at random, one controller at a time; the host goes on with its work.
#[test]
fn one_controller_at_a_time_may_die_at_any_moment() {
    for seed in 100..112 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        for _ in 0..6 {
            for _ in 0..random.below(60) {
                host.append(random.below(7) as u32, random.below(30_000) as usize);
                rig.world.run_for(Duration::from_micros(random.below(300)));
                host.look();
            }
            if random.below(3) == 0 && host.is_connected() {
                host.settle(&rig);
                destage(&rig, &mut host);
            }
            let victim = random.below(2) as usize;
            rig.kill(victim);
            rig.world.run_for(Duration::from_millis(random.below(1500)));
            rig.start(victim);
            rig.run_until_mirrored();
            host.settle(&rig);
            host.connect(&rig);
            host.verify(&rig);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    let run = |seed| {
        let (mut rig, mut host) = begin(seed);
        append_some(&mut host, 100);
        host.settle(&rig);
        destage(&rig, &mut host);
        append_some(&mut host, 100);
        rig.kill(0);
        rig.start(0);
        rig.run_until_mirrored();
        host.settle(&rig);
        host.connect(&rig);
        host.verify(&rig);
        rig.stop_both();
        rig.world.trace_hash()
    };
    assert_eq!(run(50), run(50));
    assert_ne!(run(50), run(51));
}

/// Everything at once: cuts, breaks, pauses and kills of either controller, with time to heal between.
#[test]
fn faults_of_all_kinds_one_after_another() {
    for seed in 200..208 {
        let (mut rig, mut host) = begin(seed);
        let random = rig.world.random();
        for _ in 0..8 {
            for _ in 0..random.below(40) {
                host.append(random.below(7) as u32, random.below(20_000) as usize);
            }
            rig.world.run_for(Duration::from_micros(random.below(2000)));
            let victim = random.below(2) as usize;
            match random.below(6) {
                0 => {
                    rig.world.break_connections(rig::NAMES[0], rig::NAMES[1]);
                }
                1 => {
                    rig.world.partition(rig::NAMES[0], rig::NAMES[1]);
                    rig.world.run_for(Duration::from_millis(random.below(4000)));
                    rig.world.heal_all();
                }
                2 => {
                    let process = rig.controllers[victim].as_ref().unwrap().process.clone();
                    process.pause();
                    rig.world.run_for(Duration::from_millis(random.below(4000)));
                    process.resume();
                }
                3 => {
                    rig.world.break_connections("host-1", rig::NAMES[0]);
                }
                4 => {
                    for direct in rig.stores.iter().flatten() {
                        direct.set_connected(false);
                        direct.set_connected(true);
                    }
                    rig.kill(victim);
                    rig.start(victim);
                }
                _ => {
                    rig.kill(victim);
                    rig.world.run_for(Duration::from_millis(random.below(800)));
                    rig.start(victim);
                }
            }
            rig.world.run_for(Duration::from_millis(random.below(300)));
            rig.run_until_mirrored();
            host.connect(&rig);
            host.settle(&rig);
            host.verify(&rig);
            if random.below(2) == 0 {
                destage(&rig, &mut host);
                host.verify(&rig);
            }
        }
    }
}
