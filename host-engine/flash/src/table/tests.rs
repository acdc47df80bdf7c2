//! The table against a map, and what it takes.

use super::*;
use proptest::collection::vec;
use proptest::prelude::*;
use std::collections::BTreeMap;

#[derive(Clone, Debug)]
enum Step {
    Set(u64, u8, u32, u8),
    Hit(u64, u8),
    Remove(u64, u8, bool),
    RemoveStripe(u64),
    Sweep(u32),
}

fn step() -> impl Strategy<Value = Step> {
    let (stripe, part) = (0u64..5, 0..PARTS_MAX as u8);
    prop_oneof![
        6 => (stripe.clone(), part.clone(), 0..=PLACE_MAX, 0..=HEAT_MAX)
            .prop_map(|(s, p, place, heat)| Step::Set(s, p, place, heat)),
        2 => (stripe.clone(), part.clone()).prop_map(|(s, p)| Step::Hit(s, p)),
        4 => (stripe.clone(), part, any::<bool>()).prop_map(|(s, p, right)| Step::Remove(s, p, right)),
        1 => stripe.prop_map(Step::RemoveStripe),
        1 => (2u32..5).prop_map(Step::Sweep),
    ]
}

proptest! {
    #[test]
    fn it_is_a_map(steps in vec(step(), 0..300)) {
        let mut table = Table::default();
        let mut model: BTreeMap<(u64, u8), Found> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Set(stripe, part, place, heat) => {
                    let found = Found { place, heat };
                    let old = table.set(StripeId(stripe), part, found);
                    prop_assert_eq!(old, model.insert((stripe, part), found).map(|old| old.place));
                }
                Step::Hit(stripe, part) => {
                    let known = model.get_mut(&(stripe, part));
                    let place = known.map(|found| {
                        found.heat = HEAT_MAX.min(found.heat + 1);
                        found.place
                    });
                    prop_assert_eq!(table.hit(StripeId(stripe), part), place);
                }
                Step::Remove(stripe, part, right) => {
                    let place = model.get(&(stripe, part)).map_or(1, |found| found.place);
                    let place = if right { place } else { place ^ 1 };
                    let there = model.get(&(stripe, part)).is_some_and(|found| found.place == place);
                    if there {
                        model.remove(&(stripe, part));
                    }
                    prop_assert_eq!(table.remove_at(StripeId(stripe), part, place), there);
                }
                Step::RemoveStripe(stripe) => {
                    let mut gone = Vec::new();
                    table.remove_stripe(StripeId(stripe), |place| gone.push(place));
                    let known: Vec<u32> =
                        model.iter().filter(|((of, _), _)| *of == stripe).map(|(_, f)| f.place).collect();
                    model.retain(|(of, _), _| *of != stripe);
                    prop_assert_eq!(gone, known);
                }
                Step::Sweep(by) => {
                    (0..DIVISIONS).for_each(|d| table.sweep(d, |_, place| place % by != 0));
                    model.retain(|_, found| found.place % by != 0);
                }
            }
            prop_assert_eq!(table.parts(), model.len() as u64);
        }
        for stripe in 0..5 {
            for part in 0..PARTS_MAX as u8 {
                prop_assert_eq!(table.get(StripeId(stripe), part), model.get(&(stripe, part)).copied());
            }
        }
        (0..DIVISIONS).for_each(|division| table.sweep(division, |_, _| false));
        prop_assert_eq!((table.parts(), table.stripes(), table.boxed), (0, 0, 0));
    }
}

/// What is said of RAM a TB of flash: here a sixty-fourth of it, in whole stripes of 64 parts.
#[test]
fn a_terabyte_takes_less_than_forty_megabytes() {
    const PARTS: u32 = (1_000_000_000_000u64 / (128 << 10) / 64) as u32;
    let mut table = Table::default();
    for place in 0..PARTS {
        let (stripe, part) = (place / PARTS_MAX as u32, (place % PARTS_MAX as u32) as u8);
        table.set(StripeId(u64::from(stripe) * 3), part, Found { place, heat: 0 });
    }
    let of_a_terabyte = table.memory() * 64;
    println!("{of_a_terabyte} bytes of table for a terabyte of flash");
    assert!(of_a_terabyte < 40_000_000, "{of_a_terabyte} bytes");
    let sizes: Vec<usize> = table.divisions.iter().map(HashMap::len).collect();
    assert!(sizes.iter().all(|size| *size < 100), "the divisions are alike: {sizes:?}");
}
