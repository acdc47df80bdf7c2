//! What an active controller does whose peer is away: it fills a session with its log, has it recorded, and acknowledges by
//! what is durable there. One flow beside that of meetings; the order of steps is that of `join::alone` of the data node's core.

use crate::model::{Action, Fault, Roles};
use crate::state::{Held, Purpose, Recording, Role, Session, Stage, Swap, World};

impl Roles {
    /// The record as it is now, if a controller that is alone changed it since it read `role`; `None`: somebody else did.
    pub(crate) fn renewed(
        &self,
        world: &World,
        index: usize,
        role: Option<Role>,
    ) -> Option<Option<Role>> {
        let process = world.process(index)?;
        if process.alone.part.is_none() {
            return Some(role);
        }
        let (known, now) = (process.serves?, world.role?);
        let same = (known.active, known.in_sync, known.session);
        (same == (now.active, now.in_sync, now.session)).then_some(Some(now))
    }

    fn is_joined(world: &World, index: usize) -> bool {
        world.connection.is_some_and(|connection| {
            let running = matches!(connection.stage, Stage::Running { .. });
            connection.open[index] && connection.leader == index && running
        })
    }

    pub(crate) fn alone_actions(&self, world: &World, index: usize, actions: &mut Vec<Action>) {
        let Some(process) = world.process(index) else { return };
        let alone = &process.alone;
        if let Some(recording) = &alone.recording {
            if recording.reply.is_some() {
                actions.push(Action::Recorded(index));
            }
            if world.spent.lost < self.bounds.lost {
                actions.push(Action::LoseRecorded(index));
            }
            return;
        }
        let (Some(role), Some(serves), Some(held)) = (world.role, process.serves, &process.held)
        else {
            return;
        };
        if Self::is_joined(world, index) {
            return;
        }
        let frozen = |fault: Fault| alone.frozen && self.fault != Some(fault);
        let own = serves.active == process.incarnation && role.active == process.incarnation;
        let settled = alone.part.is_none() || !alone.doubtful && !alone.uncertain;
        let valid = own && held.is_valid(Some(&role)) && !frozen(Fault::RecordWhileJoining);
        if world.sessions < self.bounds.sessions && valid && settled {
            actions.push(Action::GoAlone(index));
        }
        let Some(part) = alone.part.filter(|_| !frozen(Fault::AcknowledgeBeyondCopy)) else {
            return;
        };
        if alone.doubtful || alone.uncertain && self.fault != Some(Fault::GoOnUncertain) {
            if own && world.confirms < self.bounds.confirms {
                actions.push(Action::Confirm(index));
            }
            return;
        }
        let session = world.controllers[index].sessions[part].as_ref();
        if session.is_some_and(|session| session.held.entries.len() < held.entries.len()) {
            actions.push(Action::Persist(index));
        }
    }

    pub(crate) fn go_alone(&self, world: &mut World, index: usize) -> Option<()> {
        world.sessions += 1;
        let process = world.process(index)?;
        if process.alone.uncertain && self.fault != Some(Fault::OverwriteUncertain) {
            // What may be recorded yet must not be overwritten then.
            let role = world.role.as_mut()?;
            let told = world.word == Some(role.epoch);
            role.epoch += 1;
            world.word = told.then_some(role.epoch);
        }
        let part = match world.recorded_session(index) {
            Some(recorded) => {
                let sessions = &world.controllers[index].sessions;
                1 - sessions.iter().position(|session| session.as_ref() == Some(recorded))?
            }
            None => 0,
        };
        let process = world.process(index)?;
        let held = Held { member: process.incarnation, ..process.held.clone()? };
        let id = world.sessions;
        world.controllers[index].sessions[part] = Some(Session { id, held });
        self.record(world, index, part, id)
    }

    /// Has the session recorded once more, so that nothing that was asked of the store before can change the record.
    pub(crate) fn confirm_session(&self, world: &mut World, index: usize) -> Option<()> {
        world.confirms += 1;
        let part = world.process(index)?.alone.part?;
        let id = world.controllers[index].sessions[part].as_ref()?.id;
        self.record(world, index, part, id)
    }

    fn record(&self, world: &mut World, index: usize, part: usize, session: u8) -> Option<()> {
        let before = world.role?;
        let process = world.controllers[index].process.as_mut()?;
        let mut in_sync = [0; 2];
        in_sync[index] = process.incarnation;
        let role = Role { epoch: before.epoch + 1, in_sync, session, ..before };
        let swap = Swap { role, purpose: Purpose::Alone, by: process.incarnation };
        // A session that is confirmed is the same one, whether or not that was heard.
        process.alone.uncertain |= process.alone.part != Some(part);
        process.alone.recording = Some(Recording { swap, reply: None, part, settles: true });
        world.swaps.push(swap);
        world.swaps.sort();
        Some(())
    }

    pub(crate) fn recorded(&self, world: &mut World, index: usize) -> Option<()> {
        let joined = Self::is_joined(world, index);
        let process = world.controllers[index].process.as_mut()?;
        let Recording { swap, reply, part, settles } = process.alone.recording.take()?;
        let Some(serves) = process.serves.filter(|_| reply == Some(true)) else { return Some(()) };
        let late = joined || serves.epoch >= swap.role.epoch;
        if late && self.fault != Some(Fault::RecordedTooLate) {
            return Some(());
        }
        process.alone.part = Some(part);
        process.alone.doubtful &= !settles;
        process.alone.uncertain = false;
        process.serves = Some(swap.role);
        process.confirmed = true;
        process.held.as_mut()?.member = process.incarnation;
        let durable = world.controllers[index].sessions[part].as_ref()?.held.entries.clone();
        self.acknowledge_alone(world, index, durable.len())
    }

    pub(crate) fn lose_recorded(&self, world: &mut World, index: usize) -> Option<()> {
        world.spent.lost += 1;
        world.controllers[index].process.as_mut()?.alone.recording = None;
        Some(())
    }

    /// The next entry is durable on the drives of the session.
    pub(crate) fn persist(&self, world: &mut World, index: usize) -> Option<()> {
        let process = world.process(index)?;
        let part = process.alone.part?;
        let at = world.controllers[index].sessions[part].as_ref()?.held.entries.len();
        let entry = *process.held.as_ref()?.entries.get(at)?;
        world.controllers[index].sessions[part].as_mut()?.held.entries.push(entry);
        self.acknowledge_alone(world, index, at + 1)
    }

    fn acknowledge_alone(&self, world: &mut World, index: usize, durable: usize) -> Option<()> {
        let process = world.controllers[index].process.as_mut()?;
        let before = usize::from(process.mirrored);
        process.mirrored = process.mirrored.max(durable as u8);
        let entries = process.held.as_ref()?.entries.get(before..durable).unwrap_or_default();
        let entries = entries.to_vec();
        world.ghosts.alone |= !entries.is_empty();
        entries.into_iter().for_each(|entry| world.acknowledge(entry));
        Some(())
    }
}
