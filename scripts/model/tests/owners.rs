//! Owners of a vdisk (C8, C9).

mod common;

use cleave_model::{OwnerBounds, OwnerFault, Owners};
use common::NONE;

const BOUNDS: OwnerBounds = OwnerBounds { takes: 3, records: 3, commits: 2, losses: 1 };

fn broken(bounds: OwnerBounds, locks: bool, fault: Option<OwnerFault>) -> Vec<&'static str> {
    common::broken(&format!("{bounds:?}"), Owners { bounds, locks, fault })
}

/// C8: nobody but the log stops an old owner from writing; C9: its lease ends before another one serves.
#[test]
fn a_paused_owner_is_stopped_by_the_log() {
    assert_eq!(broken(BOUNDS, false, None), NONE);
}

/// C9: nor reads anything once another one has written; one that is known to be dead is not waited for.
#[test]
fn an_owner_before_is_known_to_be_dead_or_waited_for() {
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
        (OwnerFault::SealBeforeLease, false),
        (OwnerFault::ReadPastLease, false),
        (OwnerFault::GoneWithoutServing, false),
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
