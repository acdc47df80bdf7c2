//! The log's control entries and the two catalogs that take them over (C11): an entry leaves the log only when both
//! have synced it, and no catalog is ahead of the log from which its controller may have to start.
//!
//! Positions and answers are production's [`Mirror`]; messages between the controllers are on their way one by one, in order, and
//! lost with their connection. Every entry is a control entry here.

use cleave_datanode_core::mirror::Mirror;
use cleave_format::ids::Position;
use stateright::{Model, Property};

/// How much may happen; everything within this is tried.
#[derive(Clone, Copy, Debug)]
pub struct CatalogBounds {
    /// Entries.
    pub entries: u64,
    /// Crashes and clean stops of controllers together.
    pub ends: u8,
    /// Connections that break while both live.
    pub breaks: u8,
    /// Catalogs that are lost while their controller is down.
    pub wipes: u8,
}

/// A bug that the judges must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogFault {
    /// The active trims what its own catalog has.
    TrimByOwnCatalog,
    /// The active has its catalog apply what is not mirrored.
    ApplyUnmirrored,
    /// A catalog that lacks more than the log has is not copied.
    NoCatalogCopy,
    /// After a break the active goes on believing what the peer's catalog had.
    OldPeerCatalog,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Catalogs {
    /// How much may happen.
    pub bounds: CatalogBounds,
    /// What is wrong with it.
    pub fault: Option<CatalogFault>,
}

/// A log of control entries: those after `trimmed` and before `next`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Log {
    trimmed: u64,
    next: u64,
}

impl Log {
    fn last(&self) -> u64 {
        self.next - 1
    }

    fn trim(&mut self, through: u64) {
        self.trimmed = self.trimmed.max(through.min(self.last()));
    }
}

/// A controller; 0 is the active.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Side {
    up: bool,
    /// In memory.
    log: Option<Log>,
    /// In the vault, until both meet again.
    image: Option<Log>,
    mirror: Mirror,
    /// What the catalog has on its drive.
    disk: u64,
}

impl Side {
    fn any_log(&self) -> Option<Log> {
        self.log.or(self.image)
    }
}

/// What was forwarded: entries up to there, and trimming.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Forward {
    through: u64,
    trimmed: u64,
}

/// A connection on which the mirror runs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Wire {
    to_standby: Vec<Forward>,
    to_active: Vec<(u64, u64)>,
    trim_sent: u64,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CatalogWorld {
    sides: [Side; 2],
    wire: Option<Wire>,
    ends: u8,
    breaks: u8,
    wipes: u8,
    /// Ghost: a controller would have refused what the other one said.
    refused: bool,
}

/// One atomic step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CatalogAction {
    /// The active appends an entry.
    Append,
    /// It forwards what is new.
    Forward,
    /// The standby takes the next message.
    Take,
    /// The standby says how far it is.
    Answer,
    /// The active hears it.
    Hear,
    /// The active trims.
    Trim,
    /// A catalog syncs one more entry.
    Sync(usize),
    /// A controller crashes.
    Crash(usize),
    /// It stops cleanly, with an image.
    Stop(usize),
    /// Its catalog is lost, while it is down.
    Wipe(usize),
    /// It starts.
    Start(usize),
    /// The connection breaks.
    Break,
    /// Both meet: one copies if it has to, both are members, the mirror runs.
    Meet,
}

const ACTIVE: usize = 0;
const STANDBY: usize = 1;

impl Catalogs {
    fn meet(&self, world: &mut CatalogWorld) -> Option<()> {
        let [active, standby] = &world.sides;
        let resumes = matches!((active.log, standby.log), (Some(a), Some(b)) if a.next >= b.next);
        let next = if resumes {
            standby.log?.next
        } else {
            let from = if active.any_log().is_some() { ACTIVE } else { STANDBY };
            let log = world.sides[from].any_log()?;
            let (given, copier) = (world.sides[from].disk, 1 - from);
            let copied = world.sides[copier].disk < log.trimmed
                && self.fault != Some(CatalogFault::NoCatalogCopy);
            let side = &mut world.sides[copier];
            if copied {
                side.disk = given;
                side.mirror.catalog = given;
            }
            // What `finish_copy` makes of it.
            let first = if log.trimmed == log.last() { u64::MAX } else { log.trimmed };
            let trimmed = first.min(side.mirror.catalog).min(log.last());
            world.refused |= side.mirror.catalog >= log.next;
            side.log = Some(Log { trimmed, next: log.next });
            side.mirror.effects = 0;
            let giver = &mut world.sides[from];
            giver.log = Some(log);
            log.next
        };
        let through = next - 1;
        for (index, side) in world.sides.iter_mut().enumerate() {
            side.image = None;
            let mirror = &mut side.mirror;
            mirror.mirrored = through;
            mirror.effects = mirror.effects.max(through);
            if index == ACTIVE {
                mirror.forwarded = through;
                if self.fault != Some(CatalogFault::OldPeerCatalog) {
                    mirror.peer_catalog = 0;
                }
            } else {
                mirror.answered = (u64::MAX, u64::MAX);
            }
        }
        world.wire = Some(Wire::default());
        Some(())
    }

    fn trimmable(&self, side: &Side) -> u64 {
        match self.fault {
            Some(CatalogFault::TrimByOwnCatalog) => side.mirror.catalog,
            _ => side.mirror.trimmable().0,
        }
    }

    fn wire_actions(&self, world: &CatalogWorld, wire: &Wire, actions: &mut Vec<CatalogAction>) {
        let [active, standby] = &world.sides;
        let (Some(log), Some(copy)) = (active.log, standby.log) else { return };
        if log.last() > active.mirror.forwarded || log.trimmed != wire.trim_sent {
            actions.push(CatalogAction::Forward);
        }
        if !wire.to_standby.is_empty() {
            actions.push(CatalogAction::Take);
        }
        if (copy.last(), standby.mirror.catalog) != standby.mirror.answered {
            actions.push(CatalogAction::Answer);
        }
        if !wire.to_active.is_empty() {
            actions.push(CatalogAction::Hear);
        }
        if self.trimmable(active).min(log.last()) > log.trimmed {
            actions.push(CatalogAction::Trim);
        }
        if world.breaks < self.bounds.breaks {
            actions.push(CatalogAction::Break);
        }
    }

    fn mirror_step(&self, world: &mut CatalogWorld, action: CatalogAction) -> Option<()> {
        let wire = world.wire.as_mut()?;
        let [active, standby] = &mut world.sides;
        match action {
            CatalogAction::Forward => {
                let log = active.log?;
                wire.to_standby.push(Forward { through: log.last(), trimmed: log.trimmed });
                wire.trim_sent = log.trimmed;
                active.mirror.forwarded = log.last();
            }
            CatalogAction::Take => {
                let Forward { through, trimmed } = wire.to_standby.remove(0);
                let log = standby.log.as_mut()?;
                log.next = log.next.max(through + 1);
                standby.mirror.mirrored = log.last();
                standby.mirror.effects = standby.mirror.effects.max(log.last());
                world.refused |= trimmed > standby.mirror.catalog;
                log.trim(trimmed);
            }
            CatalogAction::Answer => {
                let through = Position(standby.log?.last());
                let (through, catalog) = standby.mirror.answer(through)?;
                wire.to_active.push((through.0, catalog.0));
            }
            CatalogAction::Hear => {
                let (through, catalog) = wire.to_active.remove(0);
                let heard = active.mirror.held(Position(through), Position(catalog));
                world.refused |= heard.is_err();
                active.mirror.effects = active.mirror.effects.max(active.mirror.mirrored);
            }
            CatalogAction::Trim => {
                let through = self.trimmable(active);
                active.log.as_mut()?.trim(through);
            }
            _ => return None,
        }
        Some(())
    }

    fn end(&self, world: &mut CatalogWorld, index: usize, image: bool) {
        world.ends += 1;
        world.wire = None;
        let side = &mut world.sides[index];
        side.up = false;
        if image && side.log.is_some() {
            side.image = side.log;
        }
        side.log = None;
        side.mirror = Mirror::default();
    }
}

impl Model for Catalogs {
    type State = CatalogWorld;
    type Action = CatalogAction;

    fn init_states(&self) -> Vec<CatalogWorld> {
        let log = Some(Log { trimmed: 0, next: 1 });
        let mirror = Mirror::default();
        let side = Side { up: true, log, image: None, mirror, disk: 0 };
        vec![CatalogWorld {
            sides: [side; 2],
            wire: Some(Wire::default()),
            ends: 0,
            breaks: 0,
            wipes: 0,
            refused: false,
        }]
    }

    fn actions(&self, world: &CatalogWorld, actions: &mut Vec<CatalogAction>) {
        // Alone, the active goes on appending what it may not acknowledge.
        if world.sides[ACTIVE].log.is_some_and(|log| log.last() < self.bounds.entries) {
            actions.push(CatalogAction::Append);
        }
        match &world.wire {
            Some(wire) => self.wire_actions(world, wire, actions),
            None if world.sides.iter().all(|side| side.up) => actions.push(CatalogAction::Meet),
            None => {}
        }
        for (index, side) in world.sides.iter().enumerate() {
            if side.up && side.log.is_some() && side.disk < side.mirror.effects {
                actions.push(CatalogAction::Sync(index));
            }
            if !side.up {
                actions.push(CatalogAction::Start(index));
                // The other one's must be whole: both catalogs are not lost at once.
                let other = &world.sides[1 - index];
                let whole = other.any_log().is_some_and(|log| log.trimmed <= other.disk);
                if world.wipes < self.bounds.wipes && side.image.is_none() && whole {
                    actions.push(CatalogAction::Wipe(index));
                }
            } else if world.ends < self.bounds.ends {
                actions.push(CatalogAction::Stop(index));
                // What dies with the last log is the roles' subject.
                if world.sides[1 - index].any_log().is_some() || side.image.is_some() {
                    actions.push(CatalogAction::Crash(index));
                }
            }
        }
    }

    fn next_state(&self, last: &CatalogWorld, action: CatalogAction) -> Option<CatalogWorld> {
        let mut next = last.clone();
        let world = &mut next;
        match action {
            CatalogAction::Append => {
                let side = &mut world.sides[ACTIVE];
                side.log.as_mut()?.next += 1;
                if self.fault == Some(CatalogFault::ApplyUnmirrored) {
                    side.mirror.effects = side.log?.last();
                }
            }
            CatalogAction::Sync(index) => {
                let side = &mut world.sides[index];
                side.disk += 1;
                side.mirror.catalog = side.disk;
            }
            CatalogAction::Crash(index) => self.end(world, index, false),
            CatalogAction::Stop(index) => self.end(world, index, true),
            CatalogAction::Wipe(index) => {
                world.wipes += 1;
                world.sides[index].disk = 0;
            }
            CatalogAction::Start(index) => {
                let side = &mut world.sides[index];
                side.up = true;
                side.mirror.catalog = side.disk;
            }
            CatalogAction::Break => {
                world.breaks += 1;
                world.wire = None;
            }
            CatalogAction::Meet => self.meet(world)?,
            _ => self.mirror_step(world, action)?,
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Catalogs>> {
        vec![
            Property::always(
                "C11: catalog and log together lack nothing",
                |_, world: &CatalogWorld| {
                    let whole = |side: &Side| {
                        side.any_log().is_none_or(|log: Log| log.trimmed <= side.disk)
                    };
                    world.sides.iter().all(whole)
                },
            ),
            Property::always(
                "C11: no catalog is ahead of the log to start from",
                |_, world: &CatalogWorld| {
                    [ACTIVE, STANDBY].into_iter().all(|index| {
                        let other = world.sides[1 - index].any_log();
                        other.is_none_or(|log| world.sides[index].disk <= log.last())
                    })
                },
            ),
            Property::always(
                "C11: nobody refuses what the other says",
                |_, world: &CatalogWorld| !world.refused,
            ),
            Property::sometimes(
                "everything is trimmed",
                |model: &Catalogs, world: &CatalogWorld| {
                    world
                        .sides
                        .iter()
                        .all(|side| side.log.is_some_and(|log| log.trimmed == model.bounds.entries))
                },
            ),
            Property::sometimes("a catalog is copied", |_, world: &CatalogWorld| {
                world.wipes > 0 && world.wire.is_some()
            }),
        ]
    }
}
