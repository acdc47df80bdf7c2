//! The protocol holds within the bounds, and the judges find planted faults.

mod common;

use cleave_model::{Bounds, Fault, Roles};
use common::NONE;

/// Controllers that come and go.
const ENDS: Bounds =
    Bounds { ends: 3, breaks: 0, lost: 0, words: 0, takes: 1, records: 1, commits: 1 };

/// Connections and replies that are lost, and an operator.
const LOSSES: Bounds =
    Bounds { ends: 2, breaks: 1, lost: 1, words: 1, takes: 1, records: 1, commits: 0 };

/// Hosts that take the vdisk from each other while controllers come and go.
const HOSTS: Bounds =
    Bounds { ends: 2, breaks: 0, lost: 0, words: 0, takes: 2, records: 2, commits: 1 };

fn broken(bounds: Bounds, late_requests: bool, fault: Option<Fault>) -> Vec<&'static str> {
    common::broken(&format!("{bounds:?}"), Roles { bounds, late_requests, fault })
}

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

/// C7: a request that the store executes after its active has died takes nothing from the next active.
#[test]
fn late_requests_of_a_dead_active_are_fenced() {
    assert_eq!(broken(ENDS, true, None), NONE);
    assert_eq!(broken(LOSSES, true, None), NONE);
    assert_ne!(broken(ENDS, true, Some(Fault::NoFence)), NONE);
}

/// The same, further: minutes. `cargo test --release -p cleave-model -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn further() {
    let ends = Bounds { ends: 4, breaks: 1, ..ENDS };
    assert_eq!(broken(ends, false, None), NONE);
    let losses = Bounds { ends: 3, ..LOSSES };
    assert_eq!(broken(losses, true, None), NONE);
    let hosts = Bounds { ends: 2, breaks: 1, lost: 1, ..HOSTS };
    assert_eq!(broken(hosts, true, None), NONE);
}
