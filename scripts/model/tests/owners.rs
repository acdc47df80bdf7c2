//! Owners of a vdisk (C8, C9).

mod common;

use cleave_model::{OwnerBounds, OwnerFault, Owners};
use common::NONE;

const BOUNDS: OwnerBounds = OwnerBounds { takes: 3, records: 3, commits: 2, losses: 1 };

fn broken(bounds: OwnerBounds, locks: bool, fault: Option<OwnerFault>) -> Vec<&'static str> {
    common::broken(&format!("{bounds:?}"), Owners { bounds, locks, fault })
}

/// C8: nobody but the log stops an old owner.
#[test]
fn a_paused_owner_is_stopped_by_the_log() {
    assert_eq!(broken(BOUNDS, false, None), NONE);
}

/// C9, as far as it exists: an owner that lives keeps its vdisk.
#[test]
fn an_owner_that_lives_keeps_its_vdisk() {
    assert_eq!(broken(BOUNDS, true, None), NONE);
}

#[test]
fn planted_faults_are_found() {
    let faults = [
        (OwnerFault::OldAppends, false),
        (OwnerFault::OldCommits, false),
        (OwnerFault::FetchUnsealed, false),
        (OwnerFault::SealNotSynced, false),
        (OwnerFault::OwnerCountsAsDead, true),
    ];
    for (fault, locks) in faults {
        assert_ne!(broken(BOUNDS, locks, Some(fault)), NONE, "{fault:?} is not found");
    }
}

/// The same, further: minutes. `cargo test --release -p cleave-model -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn further() {
    let bounds = OwnerBounds { takes: 4, records: 3, commits: 2, losses: 2 };
    assert_eq!(broken(bounds, false, None), NONE);
    assert_eq!(broken(bounds, true, None), NONE);
}
