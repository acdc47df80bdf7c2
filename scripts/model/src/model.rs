//! The model's steps and its bounds.

use crate::judge;
use crate::state::{
    ACTIVE, Entry, Process, STANDBY, Stage, VDISK, World, host_incarnation, resident,
};
use cleave_format::ids::Epoch;
use stateright::{Model, Property};

/// How much may happen; everything within this is tried.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Crashes and clean stops of controllers together.
    pub ends: u8,
    /// Connections that break while both processes live.
    pub breaks: u8,
    /// Replies of the store that are lost; their requests may still be executed, while the process lives at any time.
    pub lost: u8,
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
    /// An active does not raise the epoch before it loads its image.
    NoFence,
    /// A standby that restarted empty is made a member without a copy.
    RejoinWithoutCopy,
    /// The active acknowledges as soon as the copy is done; the swap comes after.
    SwapAfterAcknowledgement,
    /// The log does not look at epochs.
    OldOwnersAccepted,
    /// The active acknowledges what the standby does not hold yet.
    AcknowledgeUnmirrored,
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
    /// A controller's process starts, as a new incarnation. The standby loads its image if that is valid; the active
    /// asks the store to raise the epoch, and does so once that is done.
    Start(usize),
    /// It dies; its memory is gone.
    Crash(usize),
    /// It stops cleanly: its log goes to the vault.
    Stop(usize),
    /// The standby dials, both say hello, and the active decides.
    Meet,
    /// The copy is complete at the copier, which says so; the active sends the swap.
    Copied,
    /// The store executes a request, in whatever order.
    Swap(usize),
    /// The store's reply reaches the active.
    Reply,
    /// The active gives the reply up, and reads the old record, or nothing.
    LoseReply,
    /// The standby hears that both are members.
    Joined,
    /// The next entry reaches the standby, which holds and says it.
    Forward,
    /// The active hears that one more entry is held, and acknowledges it.
    Held,
    /// The connection is gone on both sides.
    Break,
    /// The operator orders an empty log, in the present epoch.
    Order,
    /// A host takes the vdisk in the store.
    Take(usize),
    /// Its seal reaches the active.
    Seal(usize),
    /// A record of it reaches the active.
    Append(usize),
    /// It asks to commit an acknowledged record.
    Commit(usize),
}

impl Roles {
    /// The active's log, if it takes appends: it is confirmed, and its peer may be away.
    fn appendable<'a>(&self, world: &'a World) -> Option<&'a [Entry]> {
        let active = world.process(ACTIVE).filter(|active| active.confirmed)?;
        active.held.as_ref().map(|held| &held.entries[..])
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
            let Some(entries) = self.appendable(world) else { continue };
            if host.epoch != 0 && !host.sealed {
                let epoch = Epoch(u64::from(host.epoch));
                let incarnation = host_incarnation(index as u8);
                // That the old owner lives, paused, is the point: nobody but the log stops it.
                let sealed = resident(entries).check_seal(VDISK, epoch, incarnation);
                if sealed == Ok(None) {
                    actions.push(Action::Seal(index));
                }
            }
            if host.sealed && self.owns(entries, index, host.epoch) {
                if world.records < self.bounds.records {
                    actions.push(Action::Append(index));
                }
                if world.commits < self.bounds.commits && world.ghosts.acknowledged != 0 {
                    actions.push(Action::Commit(index));
                }
            }
        }
    }

    fn host_step(&self, world: &mut World, action: Action) -> Option<()> {
        let entry = match action {
            Action::Take(host) => {
                world.owner += 1;
                world.hosts[host].epoch = world.owner;
                return Some(());
            }
            Action::Seal(host) => Entry::Seal { epoch: world.hosts[host].epoch, host: host as u8 },
            Action::Append(host) => {
                world.records += 1;
                Entry::Record { record: world.records - 1, epoch: world.hosts[host].epoch }
            }
            Action::Commit(host) => {
                world.commits += 1;
                let record = world.ghosts.acknowledged.trailing_zeros() as u8;
                Entry::Commit { record, epoch: world.hosts[host].epoch }
            }
            _ => return None,
        };
        if let Entry::Record { epoch, .. } | Entry::Commit { epoch, .. } = entry {
            // C8, as the hosts see it.
            world.ghosts.old_accepted |= epoch < world.ghosts.sealed;
        }
        let active = world.controllers[ACTIVE].process.as_mut()?;
        active.held.as_mut()?.entries.push(entry);
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
        for index in [ACTIVE, STANDBY] {
            match world.process(index) {
                None => actions.push(Action::Start(index)),
                Some(_) if spent.ends < bounds.ends => {
                    actions.extend([Action::Crash(index), Action::Stop(index)]);
                }
                Some(_) => {}
            }
        }
        let both = world.process(ACTIVE).is_some() && world.process(STANDBY).is_some();
        let waits =
            world.process(ACTIVE).is_some_and(|active| active.waits.is_some() || !active.fenced);
        match &world.connection {
            None if both && !waits => actions.push(Action::Meet),
            None => {}
            Some(connection) => {
                // What is noticed late when a process died is free.
                if !both || spent.breaks < bounds.breaks {
                    actions.push(Action::Break);
                }
                match connection.stage {
                    Stage::Copying { .. } if both => actions.push(Action::Copied),
                    Stage::Running { joined } => {
                        if both && !joined {
                            actions.push(Action::Joined);
                        }
                        self.mirror_actions(world, both && joined, actions);
                    }
                    _ => {}
                }
            }
        }
        actions.extend((0..world.swaps.len()).map(Action::Swap));
        if let Some((_, reply)) = world.process(ACTIVE).and_then(|active| active.waits) {
            if reply.is_some() {
                actions.push(Action::Reply);
            }
            if spent.lost < bounds.lost {
                actions.push(Action::LoseReply);
            }
        }
        if spent.words < bounds.words && world.role.is_some() {
            actions.push(Action::Order);
        }
        self.host_actions(world, actions);
    }

    fn next_state(&self, last: &World, action: Action) -> Option<World> {
        let mut next = last.clone();
        let world = &mut next;
        match action {
            Action::Start(index) => {
                world.incarnations += 1;
                let incarnation = world.incarnations;
                let process = Process {
                    incarnation,
                    held: None,
                    fenced: false,
                    confirmed: false,
                    role: None,
                    waits: None,
                };
                world.controllers[index].process = Some(process);
                if index == ACTIVE && self.fault != Some(Fault::NoFence) {
                    self.send_fence(world)?;
                } else {
                    self.begin(world, index)?;
                }
            }
            Action::Crash(index) => self.crash(world, index),
            Action::Stop(index) => self.stop(world, index),
            Action::Meet => self.meet(world)?,
            Action::Copied => self.copied(world)?,
            Action::Swap(index) => self.swap(world, index),
            Action::Reply => self.reply(world)?,
            Action::LoseReply => {
                world.spent.lost += 1;
                let active = world.controllers[ACTIVE].process.as_mut()?;
                active.waits = None;
                if active.fenced {
                    world.connection = None;
                } else {
                    self.send_fence(world)?;
                }
            }
            Action::Joined => self.joined(world)?,
            Action::Forward => self.forward(world)?,
            Action::Held => self.held(world)?,
            Action::Break => {
                let both = world.process(ACTIVE).is_some() && world.process(STANDBY).is_some();
                world.spent.breaks += u8::from(both);
                world.connection = None;
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
