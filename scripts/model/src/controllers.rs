//! What the controllers do: their life, their meetings, the compare-and-swap, the mirror. The order of
//! steps is that of the `join` module of the data node's core.

use crate::model::{Action, Fault, Roles};
use crate::state::{
    ACTIVE, Connection, Entry, Held, Purpose, Role, STANDBY, Stage, Swap, World, standing,
};
use cleave_coordinator::Member;
use cleave_datanode_core::mirror::{Plan, decide};

impl Roles {
    /// The image that a controller without a log would load.
    pub(crate) fn load_image(&self, world: &World, controller: usize) -> Option<Held> {
        let stale = self.fault == Some(Fault::StaleImage);
        let counts = stale || world.has_valid_image(controller);
        world.controllers[controller].image.clone().filter(|_| counts)
    }

    /// The decision by a record, with two logs and the incarnations that claim them.
    pub(crate) fn plan(
        &self,
        role: Option<&Role>,
        start_empty: bool,
        active: (u8, Option<&Held>),
        standby: (u8, Option<&Held>),
    ) -> Plan {
        let mut record = role.map(Role::record);
        if self.fault == Some(Fault::StaleImage)
            && let Some(record) = &mut record
        {
            for held in [active.1, standby.1].into_iter().flatten() {
                let incarnation = u64::from(held.member);
                record.in_sync.push(Member { controller: 0, incarnation });
            }
        }
        let (active, standby) = (standing(active.0, active.1), standing(standby.0, standby.1));
        decide(record.as_ref(), start_empty, &active, &standby)
    }

    fn decided(&self, world: &World, start_empty: bool) -> Option<Plan> {
        let (active, standby) = (world.process(ACTIVE)?, world.process(STANDBY)?);
        let brings = (active.incarnation, active.held.as_ref());
        let other = (standby.incarnation, standby.held.as_ref());
        Some(self.plan(world.role.as_ref(), start_empty, brings, other))
    }

    /// A process begins what it is there for.
    pub(crate) fn begin(&self, world: &mut World, index: usize) -> Option<()> {
        let image = self.load_image(world, index);
        let process = world.controllers[index].process.as_mut()?;
        process.held = image;
        process.fenced = true;
        Some(())
    }

    /// A new active asks for a higher epoch, by the record that it reads.
    pub(crate) fn send_fence(&self, world: &mut World) -> Option<()> {
        let before = world.role.unwrap_or(Role { epoch: 0, log: 0, in_sync: [0; 2] });
        let role = Role { epoch: before.epoch + 1, ..before };
        self.send(world, role, Purpose::Fence)
    }

    fn send(&self, world: &mut World, role: Role, purpose: Purpose) -> Option<()> {
        let active = world.controllers[ACTIVE].process.as_mut()?;
        let swap = Swap { role, purpose, by: active.incarnation };
        active.waits = Some((swap, None));
        world.swaps.push(swap);
        world.swaps.sort_by_key(|swap| {
            (swap.role.epoch, swap.by, swap.purpose, swap.role.log, swap.role.in_sync)
        });
        Some(())
    }

    pub(crate) fn crash(&self, world: &mut World, index: usize) {
        world.spent.ends += 1;
        self.end_connection(world, index);
        self.end_requests(world, index);
        let has_image = world.has_valid_image(index);
        let controller = &mut world.controllers[index];
        controller.process = None;
        controller.keeper &= has_image;
        world.excuse_without_keepers();
    }

    pub(crate) fn stop(&self, world: &mut World, index: usize) {
        world.spent.ends += 1;
        world.connection = None;
        self.end_requests(world, index);
        let controller = &mut world.controllers[index];
        let process = controller.process.take().expect("only what runs stops");
        if process.confirmed && process.held.is_some() {
            controller.image = process.held;
        } else {
            let has_image = world.has_valid_image(index);
            world.controllers[index].keeper &= has_image;
        }
        world.excuse_without_keepers();
    }

    /// The active may learn later that the standby died, and until then hear what it had said.
    fn end_connection(&self, world: &mut World, index: usize) {
        let running = |connection: &Connection| matches!(connection.stage, Stage::Running { .. });
        if index == ACTIVE || !world.connection.as_ref().is_some_and(running) {
            world.connection = None;
        }
    }

    fn end_requests(&self, world: &mut World, index: usize) {
        if index == ACTIVE && !self.late_requests {
            world.swaps.clear();
        }
    }

    pub(crate) fn meet(&self, world: &mut World) -> Option<()> {
        // The standby looks for its image before it dials, if it has no log.
        if world.process(STANDBY)?.held.is_none() {
            let image = self.load_image(world, STANDBY);
            world.controllers[STANDBY].process.as_mut()?.held = image;
        }
        let role = world.role;
        let start_empty = role.is_none_or(|role| role.log == 0 || world.word == Some(role.epoch));
        // After a meeting without a log, an image that still counts takes the place of a log that does not.
        if self.decided(world, start_empty)? == Plan::NoLog {
            let image = self.load_image(world, STANDBY)?;
            world.controllers[STANDBY].process.as_mut()?.held = Some(image);
        }
        let (active, standby) = (world.process(ACTIVE)?, world.process(STANDBY)?);
        let brings = (active.incarnation, active.held.as_ref());
        let other = (standby.incarnation, standby.held.as_ref());
        let next = other.1.map_or(0, |held| held.entries.len());
        let before = role.map_or(0, |role| role.epoch);
        let mut connection =
            Connection { stage: Stage::Swapping, before, next, answered: next, mirrored: next };
        let resumes = active
            .role
            .is_some_and(|role| self.plan(Some(&role), false, brings, other) == Plan::Resume);
        if resumes {
            world.connection = Some(connection);
            return self.run(world);
        }
        let (own, log) = (active.incarnation, active.held.as_ref().map(|held| held.log));
        match self.plan(role.as_ref(), start_empty, brings, other) {
            Plan::Resume => {
                world.connection = Some(connection);
                return self.send_swap(world, false);
            }
            Plan::StandbyCopies
                if self.fault == Some(Fault::RejoinWithoutCopy) && log.is_some() =>
            {
                let (incarnation, log) = (standby.incarnation, log?);
                let next = active.held.as_ref()?.entries.len();
                let placeholder = Entry::Seal { epoch: 0, host: 0 };
                let entries = vec![placeholder; next];
                let empty = Held { log, member: incarnation, entries };
                connection = Connection { next, answered: next, mirrored: next, ..connection };
                world.controllers[STANDBY].process.as_mut()?.held = Some(empty);
                world.connection = Some(connection);
                return self.send_swap(world, false);
            }
            Plan::StandbyCopies => {
                self.give_up_standby(world)?;
                connection.stage = Stage::Copying { copier: STANDBY, empty: false };
            }
            Plan::ActiveCopies => {
                connection.stage = Stage::Copying { copier: ACTIVE, empty: false };
            }
            Plan::StartEmpty { .. } => {
                let empty = Held { log: own, member: own, entries: Vec::new() };
                world.controllers[ACTIVE].process.as_mut()?.held = Some(empty);
                self.give_up_standby(world)?;
                connection.stage = Stage::Copying { copier: STANDBY, empty: true };
            }
            // Both stay as they are, and meet again.
            Plan::NoLog => return None,
        }
        world.connection = Some(connection);
        Some(())
    }

    /// The standby's old log ends where its copy begins.
    fn give_up_standby(&self, world: &mut World) -> Option<()> {
        world.controllers[STANDBY].process.as_mut()?.held = None;
        let has_image = world.has_valid_image(STANDBY);
        world.controllers[STANDBY].keeper &= has_image;
        Some(())
    }

    pub(crate) fn copied(&self, world: &mut World) -> Option<()> {
        let Stage::Copying { copier, empty } = world.connection?.stage else { return None };
        let source = world.process(1 - copier)?.held.clone()?;
        world.ghosts.bad_source |= !empty && !world.is_complete(&source.entries);
        let next = source.entries.len();
        let process = world.controllers[copier].process.as_mut()?;
        process.held = Some(Held { member: process.incarnation, ..source });
        let connection = world.connection.as_mut()?;
        (connection.next, connection.answered, connection.mirrored) = (next, next, next);
        self.send_swap(world, empty)
    }

    fn send_swap(&self, world: &mut World, empty: bool) -> Option<()> {
        let (active, standby) = (world.process(ACTIVE)?, world.process(STANDBY)?);
        let in_sync = [active.incarnation, standby.incarnation];
        let epoch = world.connection?.before + 1;
        let role = Role { epoch, log: active.held.as_ref()?.log, in_sync };
        world.connection.as_mut()?.stage = Stage::Swapping;
        self.send(world, role, if empty { Purpose::JoinEmpty } else { Purpose::Join })?;
        if self.fault == Some(Fault::SwapAfterAcknowledgement) {
            self.confirm(world, role)?;
            return self.run(world);
        }
        Some(())
    }

    /// The store executes a request: it takes effect if the record is still the one of the epoch before.
    pub(crate) fn swap(&self, world: &mut World, index: usize) {
        let swap = world.swaps.remove(index);
        let committed = world.role.map_or(0, |role| role.epoch) + 1 == swap.role.epoch;
        if committed && swap.purpose == Purpose::Fence {
            let told = world.word.is_some() && world.word == world.role.map(|role| role.epoch);
            world.word = told.then_some(swap.role.epoch);
            world.role = Some(swap.role);
        } else if committed {
            self.joined_by(world, swap);
        }
        let Some(active) = &mut world.controllers[ACTIVE].process else { return };
        let Some((waited, reply)) = &mut active.waits else { return };
        if *waited != swap {
            return;
        }
        *reply = Some(committed);
        if swap.purpose == Purpose::Fence {
            // What it does next is visible to nobody, so it may as well happen now.
            active.waits = None;
            let _ = if committed { self.begin(world, ACTIVE) } else { self.send_fence(world) };
        }
    }

    fn joined_by(&self, world: &mut World, swap: Swap) {
        world.role = Some(swap.role);
        world.word = None;
        if swap.purpose == Purpose::JoinEmpty {
            world.excuse();
        }
        for (controller, incarnation) in world.controllers.iter_mut().zip(swap.role.in_sync) {
            let process = controller.process.as_ref();
            // A copier that has given its log up is the active's problem, until it has the copy.
            controller.keeper = process.is_some_and(|process| {
                process.incarnation == incarnation && process.held.is_some()
            });
        }
        // A request of an active that died may be executed as if that one had lived a little longer, but
        // only until the next active begins: what that one has is never taken from it.
        let held = world.process(ACTIVE).and_then(|process| process.held.as_ref());
        if !held.is_some_and(|held| world.is_complete(&held.entries)) {
            world.excuse_without_keepers();
        }
    }

    pub(crate) fn reply(&self, world: &mut World) -> Option<()> {
        let waits = world.controllers[ACTIVE].process.as_mut()?.waits.take();
        let (swap, committed) = waits?;
        if self.fault == Some(Fault::SwapAfterAcknowledgement) {
            return Some(());
        }
        let meeting =
            world.connection.is_some_and(|connection| connection.stage == Stage::Swapping);
        if committed? {
            self.confirm(world, swap.role)?;
            if meeting {
                self.run(world)?;
            }
        } else {
            world.connection = None;
        }
        Some(())
    }

    fn confirm(&self, world: &mut World, role: Role) -> Option<()> {
        let active = world.controllers[ACTIVE].process.as_mut()?;
        active.held.as_mut()?.member = active.incarnation;
        active.role = Some(role);
        active.confirmed = true;
        Some(())
    }

    /// The active runs: what both have counts as mirrored.
    fn run(&self, world: &mut World) -> Option<()> {
        let active = world.process(ACTIVE)?;
        let known = active.role.is_some() && active.confirmed;
        let next = world.connection?.next;
        let both: Vec<Entry> = active.held.as_ref()?.entries.iter().take(next).copied().collect();
        world.ghosts.unknown_role |= !known;
        for entry in both {
            world.acknowledge(entry);
        }
        world.connection.as_mut()?.stage = Stage::Running { joined: false };
        // Images stay as they are: marking them as consumed may fail, and must not matter.
        for controller in &mut world.controllers {
            controller.keeper = true;
        }
        Some(())
    }

    pub(crate) fn joined(&self, world: &mut World) -> Option<()> {
        let next = world.connection?.next;
        let standby = world.controllers[STANDBY].process.as_mut()?;
        let held = standby.held.as_mut()?;
        if held.entries.len() != next {
            return None;
        }
        held.member = standby.incarnation;
        standby.confirmed = true;
        world.connection.as_mut()?.stage = Stage::Running { joined: true };
        Some(())
    }

    pub(crate) fn mirror_actions(&self, world: &World, joined: bool, actions: &mut Vec<Action>) {
        let Some(connection) = &world.connection else { return };
        let length = |controller| {
            let held = world.process(controller).and_then(|process| process.held.as_ref());
            held.map_or(0, |held: &Held| held.entries.len())
        };
        if joined && length(STANDBY) < length(ACTIVE) {
            actions.push(Action::Forward);
        }
        let answered = match self.fault {
            Some(Fault::AcknowledgeUnmirrored) => length(ACTIVE),
            _ => connection.answered,
        };
        if connection.mirrored < answered {
            actions.push(Action::Held);
        }
    }

    pub(crate) fn forward(&self, world: &mut World) -> Option<()> {
        let at = world.process(STANDBY)?.held.as_ref()?.entries.len();
        let entry = *world.process(ACTIVE)?.held.as_ref()?.entries.get(at)?;
        world.controllers[STANDBY].process.as_mut()?.held.as_mut()?.entries.push(entry);
        world.connection.as_mut()?.answered = at + 1;
        Some(())
    }

    pub(crate) fn held(&self, world: &mut World) -> Option<()> {
        let connection = world.connection.as_mut()?;
        let at = connection.mirrored;
        connection.mirrored += 1;
        let entry = *world.process(ACTIVE)?.held.as_ref()?.entries.get(at)?;
        world.acknowledge(entry);
        Some(())
    }
}

impl World {
    /// Requests that can change nothing any more, and whose reply nobody waits for.
    pub(crate) fn forget_void_swaps(&mut self) {
        let epoch = self.role.map_or(0, |role| role.epoch);
        let waits = self.process(ACTIVE).and_then(|active| active.waits);
        let waited = waits.map(|(swap, _)| swap);
        self.swaps.retain(|swap| swap.role.epoch > epoch || waited == Some(*swap));
    }

    fn excuse_without_keepers(&mut self) {
        if self.controllers.iter().all(|controller| !controller.keeper) {
            self.excuse();
        }
    }
}
