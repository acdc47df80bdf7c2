//! Grants and slots (C15).

mod common;

use cleave_model::{SlotBounds, SlotFault, Slots};
use common::NONE;

const BOUNDS: SlotBounds =
    SlotBounds { slots: 2, incarnations: 2, grants: 3, writes: 2, ends: 1, crashes: 2 };

fn broken(bounds: SlotBounds, fault: Option<SlotFault>) -> Vec<&'static str> {
    common::broken(&format!("{bounds:?}"), Slots { bounds, fault })
}

/// C15.
#[test]
fn a_slot_is_used_again_when_nothing_is_on_its_way_to_it() {
    assert_eq!(broken(BOUNDS, None), NONE);
}

#[test]
fn planted_faults_are_found() {
    let faults = [
        SlotFault::OverBeforeDone,
        SlotFault::NoLookAtGrants,
        SlotFault::ForgetsGrants,
        SlotFault::StartEndsNothing,
    ];
    for fault in faults {
        assert_ne!(broken(BOUNDS, Some(fault)), NONE, "{fault:?} is not found");
    }
}

/// The same, further: minutes. `cargo test --release -p cleave-model -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn further() {
    let bounds =
        SlotBounds { slots: 2, incarnations: 3, grants: 4, writes: 3, ends: 2, crashes: 1 };
    assert_eq!(broken(bounds, None), NONE);
}
