//! The protocol holds within the bounds, and the judges find planted faults.

use cleave_model::{Bounds, Fault, Roles};
use stateright::{Checker, HasDiscoveries, Model};

/// Controllers that come and go.
const ENDS: Bounds =
    Bounds { ends: 3, breaks: 0, lost: 0, words: 0, takes: 1, records: 1, commits: 1 };

/// Connections and replies that are lost, and an operator.
const LOSSES: Bounds =
    Bounds { ends: 2, breaks: 1, lost: 1, words: 1, takes: 1, records: 1, commits: 0 };

/// Hosts that take the vdisk from each other while controllers come and go.
const HOSTS: Bounds =
    Bounds { ends: 2, breaks: 0, lost: 0, words: 0, takes: 2, records: 2, commits: 1 };

/// Every state within the bounds; gives the names of properties that do not hold.
fn broken(bounds: Bounds, late_requests: bool, fault: Option<Fault>) -> Vec<&'static str> {
    let checker = Roles { bounds, late_requests, fault }.checker().threads(2);
    let checker = checker.finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{bounds:?}: {} states", checker.unique_state_count());
    let mut broken = Vec::new();
    for (name, path) in checker.discoveries() {
        if name.starts_with('C') || name.starts_with("a run") {
            println!("{name}: {:?}", path.into_actions());
            broken.push(name);
        }
    }
    if broken.is_empty() {
        assert!(checker.is_done(), "the bounds are searched through");
    }
    broken
}

const NONE: Vec<&str> = Vec::new();

/// C7.
#[test]
fn controllers_come_and_go() {
    assert_eq!(broken(ENDS, false, None), NONE);
}

/// C7.
#[test]
fn connections_and_replies_are_lost() {
    assert_eq!(broken(LOSSES, false, None), NONE);
}

/// C8, C9.
#[test]
fn hosts_take_the_vdisk() {
    assert_eq!(broken(HOSTS, false, None), NONE);
}

/// The judges are worth something: each fault breaks a property.
#[test]
fn planted_faults_are_found() {
    let faults = [
        (Fault::StaleImage, ENDS),
        (Fault::RejoinWithoutCopy, ENDS),
        (Fault::SwapAfterAcknowledgement, ENDS),
        (Fault::OldOwnersAccepted, HOSTS),
        (Fault::AcknowledgeUnmirrored, ENDS),
    ];
    for (fault, bounds) in faults {
        assert_ne!(broken(bounds, false, Some(fault)), NONE, "{fault:?} is not found");
    }
}

/// Known: when the store executes a swap of an active that has died, after another process has loaded its image by
/// the record of before, that image is void although nothing newer is left. An active that raised the epoch first
/// would close this; then this test turns round.
#[test]
fn late_requests_of_a_dead_active_are_not_fenced() {
    assert_ne!(broken(ENDS, true, None), NONE);
}
