//! The judges are judged: each planted bug is found within a few seeds.
#![cfg(feature = "planted-bugs")]

use cleave_runtime::planted::{ALL, Planted, plant};
use cleave_simulator::{Scale, run};

/// Seeds that are tried for each bug.
const SEEDS: u64 = 2000;

/// What no seed finds yet: slots are taken in turn, so that in runs this short a slot is not given out
/// again while a write of its ended grant is still on its way.
const NOT_FOUND_YET: [Planted; 1] = [Planted::ReuseSlotsEarly];

#[test]
fn every_planted_bug_is_found() {
    for bug in ALL.iter().copied().filter(|bug| !NOT_FOUND_YET.contains(bug)) {
        plant(Some(bug));
        let found =
            (0..SEEDS).map(|seed| run(seed, Scale::Small, false)).find(|r| r.failure.is_some());
        plant(None);
        let found = found.unwrap_or_else(|| panic!("{bug:?} was not found by {SEEDS} seeds"));
        let failure: String = found.failure.unwrap_or_default().chars().take(200).collect();
        println!("{bug:?} is found by seed {}: {failure}", found.seed);
    }
}
