//! The judges: what must hold in every state.

use crate::model::Roles;
use crate::state::{ACTIVE, Entry, Held, STANDBY, Stage, World};
use cleave_datanode_core::mirror::Plan;
use stateright::Property;

/// An incarnation that nobody has: of a process that would start now.
const FRESH: u8 = u8::MAX;

/// All of them.
pub(crate) fn properties() -> Vec<Property<Roles>> {
    vec![
        Property::always("C7: the log would start from all that was acknowledged", starts_complete),
        Property::always("C7: an empty or stale log is never copied", |_, world: &World| {
            !world.ghosts.bad_source
        }),
        Property::always("C8: nothing of an older epoch is accepted after a seal", epochs_grow),
        Property::always("C7: whoever acknowledges is the recorded active", one_active),
        Property::always("a run stands on a record that the active knows", |_, world: &World| {
            !world.ghosts.unknown_role
        }),
        // That the bounds let something happen at all.
        Property::sometimes("a record is acknowledged", |_, world: &World| {
            world.ghosts.acknowledged != 0
        }),
        Property::sometimes("a third set of members runs", |_, world: &World| {
            let running = |c: &crate::state::Connection| matches!(c.stage, Stage::Running { .. });
            world.connection.as_ref().is_some_and(running)
                && world.role.is_some_and(|role| role.epoch >= 5)
        }),
        Property::sometimes("all seals are acknowledged", |roles: &Roles, world: &World| {
            world.hosts.iter().filter(|host| host.sealed).count() == usize::from(roles.bounds.takes)
        }),
    ]
}

/// Were both controllers to meet now, those that are down after a start: the log that the decision
/// takes has everything that was acknowledged and is neither released nor excused.
fn starts_complete(roles: &Roles, world: &World) -> bool {
    if world.ghosts.acknowledged == 0 && world.ghosts.sealed == 0 {
        return true;
    }
    let brings: Vec<(u8, Option<Held>)> = [ACTIVE, STANDBY]
        .into_iter()
        .map(|controller| {
            let process = world.process(controller);
            let held = process.and_then(|process| process.held.clone());
            let held = held.or_else(|| roles.load_image(world, controller));
            (process.map_or(FRESH, |process| process.incarnation), held)
        })
        .collect();
    let [(active, active_held), (standby, standby_held)] = &brings[..] else { return false };
    let plan = |standby_held: &Option<Held>| {
        let (active, standby) =
            ((*active, active_held.as_ref()), (*standby, standby_held.as_ref()));
        roles.plan(world.role.as_ref(), false, active, standby)
    };
    let mut standby_held = standby_held.clone();
    let mut decided = plan(&standby_held);
    if decided == Plan::NoLog {
        standby_held = roles.load_image(world, STANDBY);
        decided = plan(&standby_held);
    }
    let source = match decided {
        Plan::Resume | Plan::StandbyCopies => active_held,
        Plan::ActiveCopies => &standby_held,
        Plan::StartEmpty { .. } | Plan::NoLog => &None,
    };
    source.as_ref().is_some_and(|held| world.is_complete(&held.entries))
}

/// In no log does a record or commit follow the seal of a newer epoch, nor was one taken after its
/// acknowledgement.
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
    !world.ghosts.old_accepted && [ACTIVE, STANDBY].into_iter().filter_map(held).all(sound)
}

/// While the active runs, and so may acknowledge, the record names its incarnation and log.
fn one_active(_: &Roles, world: &World) -> bool {
    let running = world
        .connection
        .as_ref()
        .is_some_and(|connection| matches!(connection.stage, Stage::Running { .. }));
    let (Some(active), true) = (world.process(ACTIVE), running) else { return true };
    let log = active.held.as_ref().map(|held| held.log);
    world
        .role
        .is_some_and(|role| role.in_sync[ACTIVE] == active.incarnation && Some(role.log) == log)
}
