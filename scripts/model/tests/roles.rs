//! The protocol holds within the bounds, and the judges find planted faults.

mod common;

use cleave_model::{Bounds, Fault, Roles};
use common::NONE;

/// Controllers that come and go.
const ENDS: Bounds = Bounds {
    ends: 3,
    breaks: 0,
    lost: 0,
    moves: 0,
    sessions: 0,
    confirms: 0,
    words: 0,
    takes: 1,
    records: 1,
    commits: 1,
};

/// Connections and replies that are lost, and an operator.
const LOSSES: Bounds = Bounds {
    ends: 2,
    breaks: 1,
    lost: 1,
    moves: 0,
    sessions: 0,
    confirms: 0,
    words: 1,
    takes: 1,
    records: 1,
    commits: 0,
};

/// A role that moves, while its old owner may be paused, cut off or dead.
const MOVES: Bounds = Bounds {
    ends: 1,
    breaks: 1,
    lost: 1,
    moves: 1,
    sessions: 0,
    confirms: 0,
    words: 0,
    takes: 1,
    records: 1,
    commits: 0,
};

/// Hosts that take the vdisk from each other while controllers come and go.
const HOSTS: Bounds = Bounds {
    ends: 2,
    breaks: 0,
    lost: 0,
    moves: 0,
    sessions: 0,
    confirms: 0,
    words: 0,
    takes: 2,
    records: 2,
    commits: 1,
};

/// The same, without hosts' seals in between, until the role has moved there and back.
const BACK: Bounds = Bounds {
    ends: 0,
    breaks: 2,
    lost: 0,
    moves: 2,
    sessions: 0,
    confirms: 0,
    words: 0,
    takes: 1,
    records: 2,
    commits: 0,
};

/// Controllers stop while the role moves.
const STOPPED: Bounds = Bounds { ends: 3, breaks: 1, lost: 0, ..MOVES };

/// A log that is no member's is still there while the role moves.
const TAKEN: Bounds = Bounds { ends: 2, breaks: 1, lost: 1, ..MOVES };

/// One goes on alone, while the other comes back, and it may crash.
const ALONE: Bounds = Bounds {
    ends: 1,
    breaks: 1,
    lost: 0,
    moves: 0,
    sessions: 1,
    confirms: 1,
    words: 0,
    takes: 1,
    records: 1,
    commits: 0,
};

/// The same, and what the store says of it is lost, or late.
const ALONE_UNHEARD: Bounds = Bounds { lost: 1, sessions: 2, ..ALONE };

/// The role moves, also to one that loads the log of its process before, which was alone.
const ALONE_MOVES: Bounds = Bounds { ends: 2, moves: 1, sessions: 2, ..ALONE };

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

/// C7, C9: signs of life and times only say when the role is asked for; here anybody who may asks at any time, also while
/// the old active one serves on.
#[test]
fn the_role_moves() {
    assert_eq!(broken(MOVES, false, None), NONE);
}

/// C7: there and back, with appends on both sides of every change.
#[test]
fn the_role_moves_back() {
    assert_eq!(broken(BACK, false, None), NONE);
}

/// C8, C9.
#[test]
fn hosts_take_the_vdisk() {
    assert_eq!(broken(HOSTS, false, None), NONE);
}

/// C7, C12.
#[test]
fn one_goes_on_alone() {
    assert_eq!(broken(ALONE, false, None), NONE);
    assert_eq!(broken(Bounds { breaks: 0, ..ALONE_UNHEARD }, false, None), NONE);
}

/// The judges are worth something: each fault breaks a property.
#[test]
fn planted_faults_are_found() {
    let faults = [
        (Fault::AcknowledgeBeyondCopy, ALONE),
        (Fault::RecordWhileJoining, ALONE_UNHEARD),
        (Fault::RecordedTooLate, ALONE_UNHEARD),
        (Fault::OldRecord, ALONE),
        (Fault::NeverInDoubt, ALONE_UNHEARD),
        (Fault::GoOnUncertain, ALONE_UNHEARD),
        (Fault::OverwriteUncertain, ALONE_UNHEARD),
        (Fault::AnySession, ALONE_MOVES),
        (Fault::RoleUnknown, MOVES),
        (Fault::OlderRoleLeads, MOVES),
        (Fault::KeptFromOrigin, BACK),
        (Fault::AcknowledgeAlone, MOVES),
        (Fault::ImageCountsAsMirrored, STOPPED),
        (Fault::TakenByNobody, TAKEN),
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
    assert_eq!(broken(MOVES, true, None), NONE);
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
    assert_eq!(broken(ALONE_UNHEARD, true, None), NONE);
    assert_eq!(broken(ALONE_MOVES, false, None), NONE);
}
