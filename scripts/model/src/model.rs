//! The model's steps and its bounds.

use crate::judge;
use crate::state::{BOTH, Entry, Stage, VDISK, World, host_incarnation, resident};
use cleave_format::ids::Epoch;
use stateright::{Model, Property};

/// How much may happen; everything within this is tried.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Crashes and clean stops of controllers together.
    pub ends: u8,
    /// Connections one end of which goes while both processes live; the other end notices that at any time.
    pub breaks: u8,
    /// Replies of the store that are lost; their requests may still be executed, while the process lives at any time.
    pub lost: u8,
    /// Times that a controller asks for the role.
    pub moves: u8,
    /// Sessions that controllers begin, to go on alone.
    pub sessions: u8,
    /// Times that they have one recorded once more.
    pub confirms: u8,
    /// Times that the operator orders an empty log.
    pub words: u8,
    /// Times that a host takes the vdisk.
    pub takes: u8,
    /// Records.
    pub records: u8,
    /// Commits.
    pub commits: u8,
}

/// A bug that the judges must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An image counts although its incarnation is no member any more.
    StaleImage,
    /// A new process does not raise the epoch before it loads its image.
    NoFence,
    /// A standby that restarted empty is made a member without a copy.
    RejoinWithoutCopy,
    /// The active acknowledges as soon as the copy is done; the swap comes after.
    SwapAfterAcknowledgement,
    /// The log does not look at epochs.
    OldOwnersAccepted,
    /// The active acknowledges what the standby does not hold yet.
    AcknowledgeUnmirrored,
    /// Whoever has a log takes the role over, although it is no member.
    TakenByNobody,
    /// An active controller acknowledges alone while its peer is away.
    AcknowledgeAlone,
    /// What was loaded from an image counts as held by the other one too.
    ImageCountsAsMirrored,
    /// Who steps down keeps what nobody else holds.
    KeptFromOrigin,
    /// Of two that serve the one with the older role leads.
    OlderRoleLeads,
    /// Who does not know whether it has the role goes on as if it had not.
    RoleUnknown,
    /// Who is alone acknowledges on while the peer, which has a copy, becomes a member.
    AcknowledgeBeyondCopy,
    /// A session is recorded while the peer is being made a member.
    RecordWhileJoining,
    /// A session is gone by although the peer became a member before that was heard.
    RecordedTooLate,
    /// A meeting decides by the record that was read before the leader went alone.
    OldRecord,
    /// After a meeting that came to nothing a session is gone by as if the record were known.
    NeverInDoubt,
    /// A session is gone by while the recording of the next one may yet be carried out.
    GoOnUncertain,
    /// A session that may be recorded yet is overwritten.
    OverwriteUncertain,
    /// Any session on drives counts.
    AnySession,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Roles {
    /// How much may happen.
    pub bounds: Bounds,
    /// Requests to the store may be executed after their process died, at any time. Otherwise they are
    /// executed before it died, or never.
    pub late_requests: bool,
    /// What is wrong with it.
    pub fault: Option<Fault>,
}

/// One atomic step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A controller's process starts, as a new incarnation: it raises the epoch, then loads its image if that is valid.
    Start(usize),
    /// It dies; its memory is gone.
    Crash(usize),
    /// It stops cleanly: its log goes to the vault.
    Stop(usize),
    /// Controller 1 dials, and both say hello.
    Meet,
    /// A controller hears the other one's hello, and leads, or steps down, or waits until the other one has.
    Hear(usize),
    /// The leader decides by the record that it read.
    Decide,
    /// The follower hears what was decided.
    Obey,
    /// The copy is complete at the copier, which says so; the leader sends the swap.
    Copied,
    /// A controller asks the store for the role: it sees no sign of life of the active one.
    TakeOver(usize),
    /// An active one sees in the store that it is so no more.
    StepDown(usize),
    /// The store executes a request, in whatever order.
    Swap(usize),
    /// The store's reply reaches a controller.
    Reply(usize),
    /// The reply is lost.
    LoseReply(usize),
    /// An active controller fills a session with its log, and asks for its recording.
    GoAlone(usize),
    /// It asks for the recording of its session once more.
    Confirm(usize),
    /// The store's reply about a session reaches a controller.
    Recorded(usize),
    /// That reply is lost.
    LoseRecorded(usize),
    /// The next entry is durable in the session.
    Persist(usize),
    /// The follower hears that both are members.
    Joined,
    /// The next entry reaches the follower, which holds and says it.
    Forward,
    /// The leader hears that one more entry is held, and acknowledges it.
    Held(usize),
    /// A controller's end of the connection is gone.
    Break(usize),
    /// The operator orders an empty log, in the present epoch.
    Order,
    /// A host takes the vdisk in the store.
    Take(usize),
    /// Its seal reaches a controller that serves.
    Seal(usize, usize),
    /// A record of it reaches a controller that serves.
    Append(usize, usize),
    /// It asks a controller that serves to commit an acknowledged record.
    Commit(usize, usize),
}

impl Roles {
    /// The log of a controller that serves: it takes appends, also while its peer is away.
    fn appendable<'a>(&self, world: &'a World, controller: usize) -> Option<&'a [Entry]> {
        let process = world.process(controller).filter(|process| process.serves.is_some())?;
        process.held.as_ref().map(|held| &held.entries[..])
    }

    fn owns(&self, entries: &[Entry], host: usize, epoch: u8) -> bool {
        let incarnation = host_incarnation(host as u8);
        let resident = resident(entries);
        let owner = resident.check_owner(VDISK, Epoch(u64::from(epoch)), incarnation);
        owner.is_ok() || self.fault == Some(Fault::OldOwnersAccepted)
    }

    fn host_actions(&self, world: &World, actions: &mut Vec<Action>) {
        for (index, host) in world.hosts.iter().enumerate() {
            // Each host takes it once: the second take makes the first host a paused old owner.
            if host.epoch == 0 && world.owner < self.bounds.takes {
                actions.push(Action::Take(index));
            }
            for controller in BOTH {
                self.requests(world, index, controller, actions);
            }
        }
    }

    /// What a host may ask of a controller. Which one it takes for the active one nobody says.
    fn requests(&self, world: &World, index: usize, controller: usize, actions: &mut Vec<Action>) {
        let Some(entries) = self.appendable(world, controller) else { return };
        let host = world.hosts[index];
        if host.epoch != 0 && !host.sealed {
            let epoch = Epoch(u64::from(host.epoch));
            let incarnation = host_incarnation(index as u8);
            // That the old owner lives, paused, is the point: nobody but the log stops it.
            let sealed = resident(entries).check_seal(VDISK, epoch, incarnation);
            if sealed == Ok(None) {
                actions.push(Action::Seal(index, controller));
            }
        }
        if host.sealed && self.owns(entries, index, host.epoch) {
            if world.records < self.bounds.records {
                actions.push(Action::Append(index, controller));
            }
            if world.commits < self.bounds.commits && world.ghosts.acknowledged != 0 {
                actions.push(Action::Commit(index, controller));
            }
        }
    }

    fn host_step(&self, world: &mut World, action: Action) -> Option<()> {
        let (entry, controller) = match action {
            Action::Take(host) => {
                world.owner += 1;
                world.hosts[host].epoch = world.owner;
                return Some(());
            }
            Action::Seal(host, controller) => {
                (Entry::Seal { epoch: world.hosts[host].epoch, host: host as u8 }, controller)
            }
            Action::Append(host, controller) => {
                world.records += 1;
                let epoch = world.hosts[host].epoch;
                (Entry::Record { record: world.records - 1, epoch }, controller)
            }
            Action::Commit(host, controller) => {
                world.commits += 1;
                let record = world.ghosts.acknowledged.trailing_zeros() as u8;
                (Entry::Commit { record, epoch: world.hosts[host].epoch }, controller)
            }
            _ => return None,
        };
        let process = world.controllers[controller].process.as_mut()?;
        process.held.as_mut()?.entries.push(entry);
        if self.fault == Some(Fault::AcknowledgeAlone) && !world.has_connection(controller) {
            world.acknowledge(entry);
        }
        Some(())
    }
}

impl Model for Roles {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        let (bounds, spent) = (&self.bounds, &world.spent);
        for index in BOTH {
            let Some(process) = world.process(index) else {
                actions.push(Action::Start(index));
                continue;
            };
            if spent.ends < bounds.ends {
                actions.extend([Action::Crash(index), Action::Stop(index)]);
            }
            if world.moves < bounds.moves && self.may_take_over(world, index) {
                actions.push(Action::TakeOver(index));
            }
            if self.superseded(world, index).is_some() {
                actions.push(Action::StepDown(index));
            }
            if let Some((_, reply)) = process.waits {
                if reply.is_some() {
                    actions.push(Action::Reply(index));
                }
                if spent.lost < bounds.lost {
                    actions.push(Action::LoseReply(index));
                }
            }
            self.alone_actions(world, index, actions);
        }
        let ready = |index| world.process(index).is_some_and(|process| process.waits.is_none());
        match &world.connection {
            None if BOTH.into_iter().all(ready) => actions.push(Action::Meet),
            None => {}
            Some(connection) => {
                for index in BOTH.into_iter().filter(|index| connection.open[*index]) {
                    // What is noticed late when the other end is gone is free.
                    if !connection.open[1 - index] || spent.breaks < bounds.breaks {
                        actions.push(Action::Break(index));
                    }
                    if connection.stage == Stage::Hello && ready(index) {
                        actions.push(Action::Hear(index));
                    }
                }
                let whole = connection.open == [true; 2];
                match connection.stage {
                    Stage::Read { .. } if connection.open[connection.leader] => {
                        actions.push(Action::Decide);
                    }
                    Stage::Decided { .. } if whole => actions.push(Action::Obey),
                    Stage::Copying { .. } if whole => actions.push(Action::Copied),
                    _ => self.mirror_actions(world, actions),
                }
            }
        }
        actions.extend((0..world.swaps.len()).map(Action::Swap));
        if spent.words < bounds.words && world.role.is_some() {
            actions.push(Action::Order);
        }
        self.host_actions(world, actions);
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut next = last.clone();
        let world = &mut next;
        match action {
            Action::Start(index) => self.start(world, index),
            Action::Crash(index) => self.end(world, index, false)?,
            Action::Stop(index) => self.end(world, index, true)?,
            Action::Meet => self.meet(world)?,
            Action::Hear(index) => self.hear(world, index)?,
            Action::Decide => self.decide(world)?,
            Action::GoAlone(index) => self.go_alone(world, index)?,
            Action::Confirm(index) => self.confirm_session(world, index)?,
            Action::Recorded(index) => self.recorded(world, index)?,
            Action::LoseRecorded(index) => self.lose_recorded(world, index)?,
            Action::Persist(index) => self.persist(world, index)?,
            Action::Obey => self.obey(world)?,
            Action::Copied => self.copied(world)?,
            Action::TakeOver(index) => self.take_over(world, index)?,
            Action::StepDown(index) => {
                let origin = self.superseded(world, index)?;
                world.close(index);
                self.step_down(world, index, origin)?;
            }
            Action::Swap(index) => self.swap(world, index),
            Action::Reply(index) => self.reply(world, index)?,
            Action::LoseReply(index) => self.lose_reply(world, index)?,
            Action::Joined => self.joined(world)?,
            Action::Forward => self.forward(world)?,
            Action::Held(index) => self.held(world, index)?,
            Action::Break(index) => {
                let whole = world.connection.is_some_and(|c| c.open == [true; 2]);
                world.spent.breaks += u8::from(whole);
                world.close(index);
            }
            Action::Order => {
                world.spent.words += 1;
                world.word = world.role.map(|role| role.epoch);
            }
            _ => self.host_step(world, action)?,
        }
        world.forget_void_swaps();
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Roles>> {
        judge::properties()
    }
}
