//! The judges: what must hold in every state.

use crate::model::Roles;
use crate::state::{BOTH, Connection, Entry, Held, Said, Stage, World};
use cleave_datanode_core::mirror::{Leader, Plan};
use stateright::Property;

/// An incarnation that nobody has: of a process that would start now.
const FRESH: u8 = u8::MAX;

/// All of them.
pub(crate) fn properties() -> Vec<Property<Roles>> {
    vec![
        Property::always("C7: the log would start from all that was acknowledged", starts_complete),
        Property::always(
            "C7: whoever may become active has all that was acknowledged",
            members_whole,
        ),
        Property::always("C7: an empty or stale log is never copied", |_, world: &World| {
            !world.ghosts.bad_source
        }),
        Property::always(
            "C7: who steps down takes back nothing that both hold",
            |_, world: &World| !world.ghosts.undone,
        ),
        Property::always("C8: nothing of an older epoch is accepted after a seal", epochs_grow),
        Property::always("while the mirror runs, what the follower holds is the same", same_logs),
        // That the bounds let something happen at all.
        Property::sometimes("a record is acknowledged", |_, world: &World| {
            world.ghosts.acknowledged != 0
        }),
        Property::sometimes("another set of members runs", |roles: &Roles, world: &World| {
            roles.bounds.ends == 0
                || world.connection.as_ref().is_some_and(is_running)
                    && world.role.is_some_and(|role| role.in_sync.iter().any(|member| *member > 2))
        }),
        Property::sometimes(
            "the mirror runs with the role moved",
            |roles: &Roles, world: &World| {
                let moved =
                    |connection: &Connection| is_running(connection) && connection.leader == 1;
                roles.bounds.moves == 0 || world.connection.as_ref().is_some_and(moved)
            },
        ),
        Property::sometimes(
            "who steps down takes something back",
            |roles: &Roles, world: &World| {
                roles.bounds.moves == 0 || roles.bounds.breaks == 0 || world.ghosts.took_back
            },
        ),
        Property::sometimes("something is acknowledged alone", |roles: &Roles, world: &World| {
            roles.bounds.sessions == 0 || world.ghosts.alone
        }),
        Property::sometimes("all seals are acknowledged", |roles: &Roles, world: &World| {
            world.hosts.iter().filter(|host| host.sealed).count() == usize::from(roles.bounds.takes)
        }),
    ]
}

fn is_running(connection: &Connection) -> bool {
    matches!(connection.stage, Stage::Running { .. })
}

/// What a controller would bring to a meeting now; if it is down, after a start.
fn brings(roles: &Roles, world: &World, controller: usize) -> (Said, Option<Held>) {
    let process = world.process(controller);
    let held = process.and_then(|process| process.held.clone());
    let held = held.or_else(|| roles.load_image(world, controller));
    let incarnation = process.map_or(FRESH - controller as u8, |process| process.incarnation);
    let serves = process.and_then(|process| process.serves);
    (Said::of(incarnation, held.as_ref(), serves), held)
}

/// Were both controllers to meet now: the log that the decision takes has everything that was acknowledged and is
/// neither released nor excused.
fn starts_complete(roles: &Roles, world: &World) -> bool {
    if world.ghosts.acknowledged == 0 && world.ghosts.sealed == 0 {
        return true;
    }
    let mut both = BOTH.map(|controller| brings(roles, world, controller));
    let leader = match roles.leader(0, &[both[0].0, both[1].0]) {
        Leader::This | Leader::ThisAlone => 0,
        Leader::Peer | Leader::PeerAlone(_) => 1,
    };
    let plan = |both: &[(Said, Option<Held>); 2]| {
        roles.plan(world.role.as_ref(), false, [both[leader].0, both[1 - leader].0])
    };
    let mut decided = plan(&both);
    if decided == Plan::NoLog {
        for controller in BOTH {
            if let Some(image) = roles.load_image(world, controller) {
                let (said, held) = &mut both[controller];
                *said = Said { log: Said::of(0, Some(&image), None).log, ..*said };
                *held = Some(image);
            }
        }
        decided = plan(&both);
    }
    let source = match decided {
        Plan::Resume | Plan::StandbyCopies => &both[leader].1,
        Plan::ActiveCopies => &both[1 - leader].1,
        Plan::StartEmpty { .. } | Plan::NoLog => &None,
    };
    source.as_ref().is_some_and(|held| world.is_complete(&held.entries))
}

/// Every log by which a controller may take the role over, now or after a start, is complete.
fn members_whole(roles: &Roles, world: &World) -> bool {
    let Some(role) = world.role else { return true };
    let whole = |controller: usize| {
        let (said, held) = brings(roles, world, controller);
        let valid = role.log != 0 && said.standing().is_valid(&role.record());
        !valid || held.is_some_and(|held| world.is_complete(&held.entries))
    };
    BOTH.into_iter().all(whole)
}

/// What the follower has, the leader has, in the same places.
fn same_logs(_: &Roles, world: &World) -> bool {
    let Some(connection) = world.connection else { return true };
    if connection.open != [true; 2] || connection.stage != (Stage::Running { joined: true }) {
        return true;
    }
    let held = |controller: usize| world.process(controller).and_then(|p| p.held.as_ref());
    match (held(connection.leader), held(1 - connection.leader)) {
        (Some(leader), Some(follower)) => leader.entries.starts_with(&follower.entries),
        _ => false,
    }
}

/// In no log does a record or commit follow the seal of a newer epoch, nor was a record acknowledged after it was.
fn epochs_grow(_: &Roles, world: &World) -> bool {
    let sound = |held: &Held| {
        let mut newest = 0;
        held.entries.iter().all(|entry| match *entry {
            Entry::Seal { epoch, .. } => {
                newest = newest.max(epoch);
                true
            }
            Entry::Record { epoch, .. } | Entry::Commit { epoch, .. } => epoch >= newest,
        })
    };
    let held = |controller: usize| world.process(controller).and_then(|p| p.held.as_ref());
    !world.ghosts.old_accepted && BOTH.into_iter().filter_map(held).all(sound)
}
