//! What the controllers do: their life, their meetings, the role that moves, the compare-and-swap, the mirror. The order
//! of steps is that of the `join` module of the data node's core.

use crate::model::{Action, Fault, Roles};
use crate::state::{
    Alone, BOTH, Connection, Entry, Held, Process, Purpose, Role, Said, Stage, Swap, World,
};
use cleave_coordinator::Member;
use cleave_datanode_core::mirror::{Leader, Plan, decide, leader};

impl Roles {
    /// The image that a controller without a log would load.
    pub(crate) fn load_image(&self, world: &World, controller: usize) -> Option<Held> {
        let stale = self.fault == Some(Fault::StaleImage);
        let image = world.controllers[controller].image.as_ref();
        let image = image.filter(|image| stale || image.is_valid(world.role.as_ref()));
        let any = self.fault == Some(Fault::AnySession);
        let mut written = world.controllers[controller].sessions.iter().flatten().filter(|_| any);
        let session = world.recorded_session(controller).or_else(|| written.next_back());
        image.or(session.map(|session| &session.held)).cloned()
    }

    /// Who copies, by a record and by what leader and follower say.
    pub(crate) fn plan(&self, role: Option<&Role>, start_empty: bool, said: [Said; 2]) -> Plan {
        let mut record = role.map(Role::record);
        if self.fault == Some(Fault::StaleImage)
            && let Some(record) = &mut record
        {
            for (_, member, _) in said.iter().filter_map(|said| said.log) {
                record.in_sync.push(Member { controller: 0, incarnation: u64::from(member) });
            }
        }
        decide(record.as_ref(), start_empty, &said[0].standing(), &said[1].standing())
    }

    /// Who leads a meeting, as this controller sees it.
    pub(crate) fn leader(&self, controller: usize, said: &[Said; 2]) -> Leader {
        let (mut own, mut peer) = (said[controller], said[1 - controller]);
        if self.fault == Some(Fault::OlderRoleLeads)
            && let (Some(ours), Some(theirs)) = (&mut own.serves, &mut peer.serves)
        {
            std::mem::swap(&mut ours.0, &mut theirs.0);
        }
        leader(controller as u8, &own.standing(), &peer.standing())
    }

    fn said(world: &World, controller: usize) -> Option<Said> {
        let process = world.process(controller)?;
        Some(Said::of(process.incarnation, process.held.as_ref(), process.serves))
    }

    /// A new process: it raises the epoch, then loads its image if that is valid. What it asks of the store before that
    /// is done is visible to nobody, so it is one step.
    pub(crate) fn start(&self, world: &mut World, index: usize) {
        world.incarnations += 1;
        if self.fault != Some(Fault::NoFence) {
            let nothing = Role {
                epoch: 0,
                log: 0,
                active: 0,
                since: 0,
                origin: 0,
                in_sync: [0; 2],
                session: 0,
            };
            let before = world.role.unwrap_or(nothing);
            let told = world.word.is_some_and(|word| word == before.epoch);
            world.role = Some(Role { epoch: before.epoch + 1, ..before });
            world.word = told.then_some(before.epoch + 1);
        }
        let held = self.load_image(world, index);
        world.controllers[index].process = Some(Process {
            incarnation: world.incarnations,
            held,
            confirmed: false,
            serves: None,
            mirrored: 0,
            waits: None,
            alone: Alone::default(),
        });
    }

    pub(crate) fn end(&self, world: &mut World, index: usize, clean: bool) -> Option<()> {
        world.spent.ends += 1;
        world.close(index);
        let process = world.controllers[index].process.take()?;
        if !self.late_requests {
            world.swaps.retain(|swap| swap.by != process.incarnation);
        }
        if clean && process.confirmed && process.held.is_some() {
            world.controllers[index].image = process.held;
        }
        let keeps = world.has_valid_image(index) || world.is_recorded_alone(index);
        world.controllers[index].keeper &= keeps;
        world.excuse_without_keepers();
        Some(())
    }

    /// Controller 1 dials, and both say hello.
    pub(crate) fn meet(&self, world: &mut World) -> Option<()> {
        for index in BOTH {
            if world.process(index)?.held.is_none() {
                let image = self.load_image(world, index);
                world.controllers[index].process.as_mut()?.held = image;
            }
        }
        let said = [Self::said(world, 0)?, Self::said(world, 1)?];
        world.connection = Some(Connection {
            open: [true; 2],
            said,
            leader: 0,
            stage: Stage::Hello,
            before: 0,
            next: 0,
            answered: 0,
        });
        Some(())
    }

    /// A controller hears the other one's hello. Who follows acts when it hears the decision.
    pub(crate) fn hear(&self, world: &mut World, index: usize) -> Option<()> {
        let connection = world.connection?;
        match self.leader(index, &connection.said) {
            Leader::This => self.lead(world, index),
            Leader::Peer => None,
            Leader::ThisAlone => {
                world.close(index);
                Some(())
            }
            Leader::PeerAlone(origin) => {
                self.step_down(world, index, origin.0 as u8 - 1)?;
                world.close(index);
                Some(())
            }
        }
    }

    fn lead(&self, world: &mut World, index: usize) -> Option<()> {
        let (own, peer) = (Self::said(world, index)?, world.connection?.said[1 - index]);
        let process = world.process(index)?;
        let known = peer.log.is_some() && !process.alone.uncertain;
        let known = process.serves.filter(|_| known);
        let next = peer.log.map_or(0, |(_, _, entries)| entries);
        let role = world.role;
        let told = role.is_none_or(|role| role.log == 0 || world.word == Some(role.epoch));
        let connection = world.connection.as_mut()?;
        connection.leader = index;
        (connection.next, connection.answered) = (next, next);
        if known.is_some_and(|role| self.plan(Some(&role), false, [own, peer]) == Plan::Resume) {
            return self.run(world);
        }
        connection.stage = Stage::Read { role, told };
        Some(())
    }

    /// The leader decides, by the record as it is since it went alone, if it did.
    pub(crate) fn decide(&self, world: &mut World) -> Option<()> {
        let connection = world.connection?;
        let Stage::Read { mut role, told } = connection.stage else { return None };
        let index = connection.leader;
        if self.fault != Some(Fault::OldRecord) {
            match self.renewed(world, index, role) {
                Some(renewed) => role = renewed,
                None => {
                    world.close(index);
                    return Some(());
                }
            }
        }
        let (own, peer) = (Self::said(world, index)?, world.connection?.said[1 - index]);
        let process = world.process(index)?;
        let (incarnation, log) = (process.incarnation, process.held.as_ref().map(|held| held.log));
        let valid = role.is_some_and(|role| own.standing().is_valid(&role.record()));
        if let Some(role) = role.filter(|_| process.serves.is_some() && !valid) {
            self.step_down(world, index, role.origin)?;
            world.close(index);
            return Some(());
        }
        world.connection.as_mut()?.before = role.map_or(0, |role| role.epoch);
        match self.plan(role.as_ref(), told, [own, peer]) {
            Plan::Resume => self.send_join(world, false),
            Plan::StandbyCopies
                if self.fault == Some(Fault::RejoinWithoutCopy) && log.is_some() =>
            {
                let next = own.log?.2;
                let placeholder = Entry::Seal { epoch: 0, host: 0 };
                let entries = vec![placeholder; usize::from(next)];
                let empty = Held { log: log?, member: peer.incarnation, entries };
                let connection = world.connection.as_mut()?;
                (connection.next, connection.answered) = (next, next);
                let peer = world.controllers[1 - index].process.as_mut();
                peer.filter(|peer| peer.waits.is_none())?.held = Some(empty);
                self.send_join(world, false)
            }
            Plan::StandbyCopies => {
                world.connection.as_mut()?.stage =
                    Stage::Decided { copier: 1 - index, empty: false };
                Some(())
            }
            Plan::ActiveCopies => {
                world.connection.as_mut()?.stage = Stage::Decided { copier: index, empty: false };
                Some(())
            }
            Plan::StartEmpty { .. } => {
                let empty = Held { log: incarnation, member: incarnation, entries: Vec::new() };
                world.controllers[index].process.as_mut()?.held = Some(empty);
                world.connection.as_mut()?.stage =
                    Stage::Decided { copier: 1 - index, empty: true };
                Some(())
            }
            // After that, an image that still counts takes the place of a log that does not.
            Plan::NoLog => {
                let mut changed = false;
                for index in BOTH {
                    let image = self.load_image(world, index);
                    let process = world.controllers[index].process.as_mut();
                    if let (Some(image), Some(process)) = (image, process) {
                        changed |= process.held.as_ref() != Some(&image);
                        process.held = Some(image);
                    }
                }
                world.connection = None;
                changed.then_some(())
            }
        }
    }

    /// The follower hears what was decided. Its old log ends where its copy begins.
    pub(crate) fn obey(&self, world: &mut World) -> Option<()> {
        let connection = world.connection.as_mut()?;
        let Stage::Decided { copier, empty } = connection.stage else { return None };
        connection.stage = Stage::Copying { copier, empty };
        if copier == connection.leader {
            return Some(());
        }
        world.controllers[copier].process.as_mut()?.held = None;
        let keeps = world.has_valid_image(copier) || world.is_recorded_alone(copier);
        world.controllers[copier].keeper &= keeps;
        Some(())
    }

    pub(crate) fn copied(&self, world: &mut World) -> Option<()> {
        let Stage::Copying { copier, empty } = world.connection?.stage else { return None };
        let source = world.process(1 - copier)?.held.clone()?;
        world.ghosts.bad_source |= !empty && !world.is_complete(&source.entries);
        let next = source.entries.len() as u8;
        let process = world.controllers[copier].process.as_mut()?;
        process.held = Some(Held { member: process.incarnation, ..source });
        let connection = world.connection.as_mut()?;
        (connection.next, connection.answered) = (next, next);
        self.send_join(world, empty)
    }

    fn send_join(&self, world: &mut World, empty: bool) -> Option<()> {
        let (index, before) = (world.connection?.leader, world.connection?.before);
        if world.process(index)?.alone.part.is_some() {
            let Some(renewed) = self.renewed(world, index, None) else {
                world.close(index);
                return Some(());
            };
            world.connection.as_mut()?.before = renewed.map_or(before, |role| role.epoch);
        }
        world.controllers[index].process.as_mut()?.alone.frozen = true;
        let connection = world.connection.as_mut()?;
        connection.stage = Stage::Swapping;
        let (index, epoch, origin) = (connection.leader, connection.before + 1, connection.next);
        // The other one's process may be another one by now; the members are those who met.
        let mut in_sync = connection.said.map(|said| said.incarnation);
        let process = world.process(index)?;
        in_sync[index] = process.incarnation;
        let (active, log) = (process.incarnation, process.held.as_ref()?.log);
        let role = Role { epoch, log, active, since: epoch, origin, in_sync, session: 0 };
        self.send(world, index, role, if empty { Purpose::JoinEmpty } else { Purpose::Join })?;
        if self.fault == Some(Fault::SwapAfterAcknowledgement) {
            self.confirm(world, index, role)?;
            return self.run(world);
        }
        Some(())
    }

    fn send(&self, world: &mut World, index: usize, role: Role, purpose: Purpose) -> Option<()> {
        let process = world.controllers[index].process.as_mut()?;
        let swap = Swap { role, purpose, by: process.incarnation };
        process.waits = Some((swap, None));
        world.swaps.push(swap);
        world.swaps.sort();
        Some(())
    }

    /// Whether a controller may try to take the role now. Signs of life and times say when production does; here it is
    /// whenever it may (C9).
    pub(crate) fn may_take_over(&self, world: &World, index: usize) -> bool {
        let (Some(process), Some(role)) = (world.process(index), world.role) else { return false };
        let said = Said::of(process.incarnation, process.held.as_ref(), None);
        let member = said.standing().is_valid(&role.record())
            || self.fault == Some(Fault::TakenByNobody) && process.held.is_some();
        process.serves.is_none() && role.log != 0 && member && world.is_free(index)
    }

    pub(crate) fn take_over(&self, world: &mut World, index: usize) -> Option<()> {
        world.moves += 1;
        world.close(index);
        let (process, before) = (world.process(index)?, world.role?);
        let (epoch, origin) = (before.epoch + 1, process.held.as_ref()?.entries.len() as u8);
        let role = Role { epoch, active: process.incarnation, since: epoch, origin, ..before };
        self.send(world, index, role, Purpose::TakeOver)
    }

    /// It is active: what it held as a member the other one holds too, if it is one.
    fn taken(&self, world: &mut World, index: usize, role: Role) -> Option<()> {
        let process = world.controllers[index].process.as_mut()?;
        let held = process.held.as_ref()?;
        let by_member =
            held.member == process.incarnation || self.fault == Some(Fault::ImageCountsAsMirrored);
        let mirrored = if by_member { held.entries.clone() } else { Vec::new() };
        process.mirrored = mirrored.len() as u8;
        process.serves = Some(role);
        mirrored.into_iter().for_each(|entry| world.acknowledge(entry));
        Some(())
    }

    /// From which entry on a controller that serves would take back what it has: the record names another one.
    pub(crate) fn superseded(&self, world: &World, index: usize) -> Option<u8> {
        let (process, role) = (world.process(index)?, world.role?);
        let known = process.serves?;
        let superseded = role.epoch > known.epoch && role.active != process.incarnation;
        (superseded && world.is_free(index)).then_some(role.origin)
    }

    pub(crate) fn step_down(&self, world: &mut World, index: usize, origin: u8) -> Option<()> {
        let process = world.controllers[index].process.as_mut()?;
        process.serves = None;
        (process.alone.part, process.alone.frozen, process.alone.doubtful) = (None, false, false);
        world.ghosts.undone |= process.mirrored > origin;
        process.mirrored = process.mirrored.min(origin);
        let held = process.held.as_mut()?;
        world.ghosts.took_back |= held.entries.len() > usize::from(origin);
        if self.fault != Some(Fault::KeptFromOrigin) {
            held.entries.truncate(usize::from(origin));
        }
        Some(())
    }

    /// The store executes a request: it takes effect if the record is still the one of the epoch before.
    pub(crate) fn swap(&self, world: &mut World, index: usize) {
        let swap = world.swaps.remove(index);
        let committed = world.role.map_or(0, |role| role.epoch) + 1 == swap.role.epoch;
        if committed {
            world.role = Some(swap.role);
            world.word = None;
            match swap.purpose {
                Purpose::TakeOver => {}
                Purpose::Alone => world.name_keepers(),
                Purpose::Join | Purpose::JoinEmpty => self.joined_by(world, swap),
            }
        }
        for index in BOTH {
            if let Some(process) = &mut world.controllers[index].process
                && let Some((waited, reply)) = &mut process.waits
                && *waited == swap
            {
                *reply = Some(committed);
            }
            if let Some(process) = &mut world.controllers[index].process
                && let Some(recording) = &mut process.alone.recording
                && recording.swap == swap
            {
                recording.reply = Some(committed);
            }
        }
    }

    fn joined_by(&self, world: &mut World, swap: Swap) {
        if swap.purpose == Purpose::JoinEmpty {
            world.excuse();
        }
        world.name_keepers();
        // A request of a process that died may be executed as if that one had lived a little longer, but only until the
        // next one begins: what that one has is never taken from it.
        let whole = |index: usize| {
            let held = world.process(index).and_then(|process| process.held.as_ref());
            held.is_some_and(|held| world.is_complete(&held.entries))
        };
        if !BOTH.into_iter().any(whole) {
            world.excuse_without_keepers();
        }
    }

    pub(crate) fn reply(&self, world: &mut World, index: usize) -> Option<()> {
        let (swap, committed) = world.controllers[index].process.as_mut()?.waits.take()?;
        if self.fault == Some(Fault::SwapAfterAcknowledgement) && swap.purpose != Purpose::TakeOver
        {
            return Some(());
        }
        match (swap.purpose, committed?) {
            (Purpose::TakeOver, true) => self.taken(world, index, swap.role)?,
            (Purpose::TakeOver, false) => {}
            (_, true) => {
                self.confirm(world, index, swap.role)?;
                let alone = &mut world.controllers[index].process.as_mut()?.alone;
                *alone = Alone { recording: alone.recording, ..Alone::default() };
                if world.has_connection(index) {
                    self.run(world)?;
                }
            }
            (_, false) => {
                world.close(index);
                world.met_in_vain(index, self.fault);
            }
        }
        Some(())
    }

    /// The reply is lost. Who asked to be a member with the other one lets it be; who asked for the role must know.
    pub(crate) fn lose_reply(&self, world: &mut World, index: usize) -> Option<()> {
        world.spent.lost += 1;
        let (swap, _) = world.controllers[index].process.as_mut()?.waits.take()?;
        world.close(index);
        world.met_in_vain(index, self.fault);
        if swap.purpose == Purpose::TakeOver && self.fault != Some(Fault::RoleUnknown) {
            // It raises the epoch, which ends a request that was not executed yet, then looks.
            let role = world.role.as_mut()?;
            let told = world.word == Some(role.epoch);
            role.epoch += 1;
            world.word = told.then_some(role.epoch);
            if (role.active, role.since) == (swap.by, swap.role.since) {
                let role = *role;
                return self.taken(world, index, role);
            }
        }
        Some(())
    }

    fn confirm(&self, world: &mut World, index: usize, role: Role) -> Option<()> {
        let process = world.controllers[index].process.as_mut()?;
        process.held.as_mut()?.member = process.incarnation;
        process.serves = Some(role);
        process.confirmed = true;
        Some(())
    }

    /// The leader runs: what both have counts as mirrored.
    fn run(&self, world: &mut World) -> Option<()> {
        let connection = world.connection.as_mut()?;
        connection.stage = Stage::Running { joined: false };
        let (index, next) = (connection.leader, connection.next);
        let process = world.controllers[index].process.as_mut()?;
        process.mirrored = next;
        let entries = &process.held.as_ref()?.entries;
        let both: Vec<Entry> = entries.iter().take(usize::from(next)).copied().collect();
        both.into_iter().for_each(|entry| world.acknowledge(entry));
        // Images stay as they are: marking them as consumed may fail, and must not matter.
        world.name_keepers();
        Some(())
    }

    /// The follower hears that both are members.
    pub(crate) fn joined(&self, world: &mut World) -> Option<()> {
        let connection = world.connection.as_mut()?;
        let follower = world.controllers[1 - connection.leader].process.as_mut()?;
        let held = follower.held.as_mut()?;
        if held.entries.len() != usize::from(connection.next) {
            return None;
        }
        held.member = follower.incarnation;
        follower.confirmed = true;
        connection.stage = Stage::Running { joined: true };
        Some(())
    }

    pub(crate) fn mirror_actions(&self, world: &World, actions: &mut Vec<Action>) {
        let Some(connection) = &world.connection else { return };
        let Stage::Running { joined } = connection.stage else { return };
        let (index, other) = (connection.leader, 1 - connection.leader);
        let length = |controller| {
            let held = world.process(controller).and_then(|process| process.held.as_ref());
            held.map_or(0, |held: &Held| held.entries.len())
        };
        if !joined && connection.open[other] {
            actions.push(Action::Joined);
        }
        if joined && connection.open == [true; 2] && length(other) < length(index) {
            actions.push(Action::Forward);
        }
        if connection.open[index] {
            let mirrored = world.process(index).map_or(0, |process| process.mirrored);
            let answered = match self.fault {
                Some(Fault::AcknowledgeUnmirrored) => length(index) as u8,
                _ => connection.answered,
            };
            if mirrored < answered {
                actions.push(Action::Held(index));
            }
        }
    }

    pub(crate) fn forward(&self, world: &mut World) -> Option<()> {
        let index = world.connection?.leader;
        let at = world.process(1 - index)?.held.as_ref()?.entries.len();
        let entry = *world.process(index)?.held.as_ref()?.entries.get(at)?;
        let follower = world.controllers[1 - index].process.as_mut()?;
        follower.held.as_mut()?.entries.push(entry);
        world.connection.as_mut()?.answered = at as u8 + 1;
        Some(())
    }

    pub(crate) fn held(&self, world: &mut World, index: usize) -> Option<()> {
        let process = world.controllers[index].process.as_mut()?;
        let entry = *process.held.as_ref()?.entries.get(usize::from(process.mirrored))?;
        process.mirrored += 1;
        world.acknowledge(entry);
        Some(())
    }
}

impl World {
    /// A meeting is over, and the peer is no member by it, or may be one.
    pub(crate) fn met_in_vain(&mut self, controller: usize, fault: Option<Fault>) {
        let Some(process) = &mut self.controllers[controller].process else { return };
        if std::mem::take(&mut process.alone.frozen) && fault != Some(Fault::NeverInDoubt) {
            process.alone.doubtful = true;
            if let Some(recording) = &mut process.alone.recording {
                recording.settles = false;
            }
        }
    }

    /// A controller's end of the connection is gone.
    pub(crate) fn close(&mut self, controller: usize) {
        if let Some(connection) = &mut self.connection {
            connection.open[controller] = false;
            if connection.open == [false; 2] {
                self.connection = None;
            }
        }
    }

    /// Whether a controller has an end of a connection.
    pub(crate) fn has_connection(&self, controller: usize) -> bool {
        self.connection.is_some_and(|connection| connection.open[controller])
    }

    /// Whether a controller looks at the role: it waits for nothing, and no meeting that it heard of is under way.
    pub(crate) fn is_free(&self, controller: usize) -> bool {
        let waits = self.process(controller).is_none_or(|process| process.waits.is_some());
        let meets = self.connection.is_some_and(|connection| {
            let heard = match connection.stage {
                Stage::Hello => false,
                Stage::Read { .. } => connection.leader == controller,
                // What the follower has not heard does not bind it.
                Stage::Decided { .. } => connection.leader == controller,
                Stage::Swapping => connection.leader == controller,
                Stage::Copying { .. } | Stage::Running { .. } => true,
            };
            connection.open[controller] && heard
        });
        !waits && !meets
    }

    /// Requests that can change nothing any more, and whose reply nobody waits for.
    pub(crate) fn forget_void_swaps(&mut self) {
        let epoch = self.role.map_or(0, |role| role.epoch);
        let waited = BOTH.map(|index| self.process(index)?.waits.map(|(swap, _)| swap));
        let recorded = |index: usize| self.process(index)?.alone.recording.map(|made| made.swap);
        let recorded = BOTH.map(recorded);
        self.swaps.retain(|swap| {
            let awaited = waited.contains(&Some(*swap)) || recorded.contains(&Some(*swap));
            swap.role.epoch > epoch || awaited
        });
    }

    /// Whoever is a member with its log, or has an image that counts, keeps what is acknowledged.
    fn name_keepers(&mut self) {
        let in_sync = self.role.map_or([0; 2], |role| role.in_sync);
        for index in BOTH {
            let has_image = self.has_valid_image(index) || self.is_recorded_alone(index);
            let controller = &mut self.controllers[index];
            let process = controller.process.as_ref();
            let member = process.is_some_and(|process| {
                process.incarnation == in_sync[index] && process.held.is_some()
            });
            controller.keeper = member || has_image;
        }
    }

    fn excuse_without_keepers(&mut self) {
        if self.controllers.iter().all(|controller| !controller.keeper) {
            self.excuse();
        }
    }
}
