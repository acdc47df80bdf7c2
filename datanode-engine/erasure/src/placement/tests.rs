//! Who is drawn, how often, and in which order.

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn equal(drives: u16, free_slots: u32) -> Vec<Candidate> {
    (0..drives).map(|drive| Candidate { drive: DriveId(drive), free_slots, active: true }).collect()
}

proptest! {
    #[test]
    fn only_active_drives_with_space_and_each_once(
        stripe in any::<u64>(),
        width in 3usize..=10,
        drives in proptest::collection::vec((0u32..5, any::<bool>()), 0..40),
        rotation in any::<prop::sample::Index>(),
    ) {
        let mut candidates: Vec<_> = drives
            .iter()
            .enumerate()
            .map(|(drive, (free_slots, active))| Candidate {
                drive: DriveId(drive as u16),
                free_slots: *free_slots,
                active: *active,
            })
            .collect();
        let usable = |drive: DriveId| drives[usize::from(drive.0)].0 > 0 && drives[usize::from(drive.0)].1;
        let enough = (0..drives.len()).filter(|drive| usable(DriveId(*drive as u16))).count() >= width;

        let chosen = choose(StripeId(stripe), width, &candidates);
        prop_assert_eq!(chosen.is_some(), enough);
        if let Some(chosen) = &chosen {
            prop_assert_eq!(chosen.len(), width);
            prop_assert!(chosen.iter().all(|drive| usable(*drive)));
            let mut distinct = chosen.clone();
            distinct.sort_unstable();
            distinct.dedup();
            prop_assert_eq!(distinct.len(), width);
        }
        // The same in any order of candidates.
        if !candidates.is_empty() {
            candidates.rotate_left(rotation.index(drives.len()));
        }
        prop_assert_eq!(choose(StripeId(stripe), width, &candidates), chosen);
    }
}

#[test]
fn equal_drives_get_equal_shares_of_shards_and_of_parity() {
    let (candidates, stripes, width) = (equal(12, 1000), 12_000u64, 10);
    let (mut shards, mut parity) = (BTreeMap::new(), BTreeMap::new());
    for stripe in 0..stripes {
        let chosen = choose(StripeId(stripe), width, &candidates).unwrap();
        for (index, drive) in chosen.into_iter().enumerate() {
            *shards.entry(drive).or_insert(0u64) += 1;
            *parity.entry(drive).or_insert(0u64) += u64::from(index >= width - 2);
        }
    }
    // 10,000 and 2,000 each, more than six standard deviations (41 and 41).
    assert!(shards.values().all(|count| count.abs_diff(10_000) < 250), "{shards:?}");
    assert!(parity.values().all(|count| count.abs_diff(2_000) < 250), "{parity:?}");
}

#[test]
fn stripes_of_one_drive_are_spread_over_all_others() {
    let (candidates, width) = (equal(40, 1000), 10);
    let mut partners = BTreeMap::new();
    for stripe in 0..20_000 {
        let chosen = choose(StripeId(stripe), width, &candidates).unwrap();
        if chosen.contains(&DriveId(7)) {
            for drive in chosen.into_iter().filter(|drive| *drive != DriveId(7)) {
                *partners.entry(drive).or_insert(0u64) += 1;
            }
        }
    }
    // 5,000 stripes with 9 partners out of 39: 1154 each, deviation 33.
    assert_eq!(partners.len(), 39);
    assert!(partners.values().all(|count| count.abs_diff(1154) < 200), "{partners:?}");
}

#[test]
fn drives_of_different_sizes_fill_together() {
    // Drives of 1, 2 and 4 sizes, filled until no stripe fits.
    let mut candidates = equal(24, 0);
    for (index, candidate) in candidates.iter_mut().enumerate() {
        candidate.free_slots = 1000 << (index % 3);
    }
    let total: u32 = candidates.iter().map(|candidate| candidate.free_slots).sum();
    let (width, mut stripe) = (6, 0);
    while let Some(chosen) = choose(StripeId(stripe), width, &candidates) {
        for drive in chosen {
            candidates[usize::from(drive.0)].free_slots -= 1;
        }
        stripe += 1;
    }
    let left: u32 = candidates.iter().map(|candidate| candidate.free_slots).sum();
    assert!(left * 100 < total, "{left} of {total} slots left over");
}

#[test]
fn the_exponential_is_the_logarithm() {
    for bits in [1u64, 2, 3, 1 << 40, u64::MAX / 3, 1 << 63, u64::MAX] {
        let expected = 64.0 - (bits as f64).log2();
        let got = exponential(bits) as f64 / 2f64.powi(32);
        assert!((got - expected).abs() < 1e-6, "{bits}: {got} and {expected}");
    }
    assert_eq!(exponential(0), exponential(1));
}

/// A change of the draw would be found by nothing else.
#[test]
fn the_draw_is_the_one_that_was_always_drawn() {
    let chosen = choose(StripeId(42), 5, &equal(12, 100)).unwrap();
    assert_eq!(chosen.iter().map(|drive| drive.0).collect::<Vec<_>>(), [4, 1, 0, 7, 5]);
}
