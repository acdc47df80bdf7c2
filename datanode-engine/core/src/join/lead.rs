//! The leader's side of a meeting: it decides, has the log copied, makes both members, and runs.

use super::{Ended, Meeting, next_before};
use crate::log::Log;
use crate::mirror::{Plan, Standing, decide};
use crate::notices::Notice;
use crate::roles::{self, Recorded};
use crate::state::{Held, Phase};
use cleave_format::control::Control;
use cleave_format::ids::{Epoch, Position};
use cleave_runtime::crash_points::{Point, reached};
use cleave_wire::{Decision, PeerMessage};

impl Meeting {
    pub(super) async fn lead(&self, standby: &Standing) -> Result<(), Ended> {
        if self.resumes(standby) {
            return self.resume(standby);
        }
        // Who went alone while the record was on its way must not decide by the one of before.
        let recorded = self.renewed(self.read_record().await?).await?;
        self.check_current()?;
        let own = self.node.state().standing();
        let role = recorded.role.as_ref().map(|(role, _)| role);
        // Another one was active since, and went on alone: what this one decides by, and its log, count no more (C7). As one
        // that does not serve it copies, and knows owners and grants anew.
        let outlived = role.filter(|role| own.serves.is_some() && !own.is_valid(role));
        if let Some(origin) = outlived.map(|role| role.origin) {
            self.node.step_down(Position(origin)).await;
            return Err("this controller is active no more".to_owned());
        }
        let plan = decide(role, recorded.start_empty, &own, standby);
        tracing::info!("met the peer: {plan:?}");
        let next = match plan {
            // Both are members by a change whose outcome was not heard here: it is made anew, so that this
            // process runs by a record that it knows.
            Plan::Resume => {
                self.say(&PeerMessage::Decision(Decision::Resume), &[])?;
                standby.log.or(own.log).map_or(Position(1), |held| held.next)
            }
            Plan::StandbyCopies => self.give(standby).await?,
            Plan::ActiveCopies => {
                self.say(&PeerMessage::Decision(Decision::ActiveCopies), &[])?;
                let log = self.take().await?;
                let next = log.next();
                self.install(log);
                self.say(&PeerMessage::CopyDone, &[])?;
                next
            }
            Plan::StartEmpty { catalog_from_standby } => {
                if catalog_from_standby {
                    self.say(&PeerMessage::Decision(Decision::ActiveCopies), &[])?;
                    self.take().await?;
                    self.say(&PeerMessage::CopyDone, &[])?;
                }
                let next = self.start_empty(standby);
                if catalog_from_standby { next } else { self.give(standby).await? }
            }
            Plan::NoLog => {
                let lost = self.lost(&recorded);
                self.node.log_lost(lost);
                self.say(&PeerMessage::Decision(Decision::NoLog), &[])?;
                return Err(self.until_closed().await);
            }
        };
        let recorded = self.renewed(recorded).await?;
        self.join(&recorded, standby, next).await
    }

    /// The record as it is now, if this controller, being alone, changed it since: it recorded other sessions of its log. The
    /// epoch may be another one, by the fence of a process.
    async fn renewed(&self, recorded: Recorded) -> Result<Recorded, Ended> {
        if !self.node.state().is_alone() {
            return Ok(recorded);
        }
        let recorded = self.read_record().await?;
        let same = {
            let state = self.node.state();
            let now = recorded.role.as_ref().map(|(role, _)| role);
            state.role.as_ref().zip(now).is_some_and(|(known, now)| {
                (known.active, &known.in_sync, &known.solo) == (now.active, &now.in_sync, &now.solo)
            })
        };
        same.then_some(recorded).ok_or_else(|| "the record in the store changed".to_owned())
    }

    /// Whether both kept everything, by what is known without asking the store: while this controller serves and the
    /// other, a member, says that it does not, nobody took the role from it.
    fn resumes(&self, standby: &Standing) -> bool {
        let state = self.node.state();
        let own = state.standing();
        let known = state.active.is_some() && standby.log.is_some() && !state.solo.uncertain;
        let role = state.role.as_ref().filter(|_| known);
        role.is_some_and(|role| decide(Some(role), false, &own, standby) == Plan::Resume)
    }

    fn resume(&self, standby: &Standing) -> Result<(), Ended> {
        let next = standby.log.map_or(Position(1), |held| held.next);
        // The standby has no copy of what is forwarded next.
        self.node.state_mut().give_up_unreadable(next);
        self.say(&PeerMessage::Decision(Decision::Resume), &[])?;
        self.run_active(next)
    }

    async fn read_record(&self) -> Result<Recorded, Ended> {
        let (store, datanode) = self.node.store();
        roles::read(&store, datanode).await.map_err(|error| error.to_string())
    }

    /// An empty log of its own, after everything that either catalog knows.
    fn start_empty(&self, standby: &Standing) -> Position {
        let mut state = self.node.state_mut();
        let next = Position(state.mirror.catalog.max(standby.catalog.0) + 1);
        let log = Log::new(state.incarnation.0, next, state.settings.log);
        let log = log.advised(state.settings.advice);
        tracing::warn!("starting with an empty log {}, at position {next}", log.id());
        state.notices.tell(Notice::LogEmpty { next });
        drop(state.held.take());
        state.mirror.effects = next.0 - 1;
        state.held = Some(Held { log, member: state.incarnation });
        next
    }

    /// What is lost when nobody has the log.
    fn lost(&self, recorded: &Recorded) -> String {
        let Some((role, _)) = &recorded.role else { return String::new() };
        let catalog = self.node.state().mirror.catalog;
        let text = format!(
            "neither controller holds log {} of role epoch {}, and there is no image of it: writes that were \
             acknowledged and not yet destaged are lost, unless hosts still hold them; the catalog reaches \
             position {catalog}; bring the controller back that has it, or order an empty log",
            role.log, role.epoch
        );
        if self.node.phase() != Phase::NoLog(text.clone()) {
            tracing::error!("{text}");
        }
        text
    }

    /// Makes both members, then runs.
    async fn join(
        &self,
        recorded: &Recorded,
        standby: &Standing,
        next: Position,
    ) -> Result<(), Ended> {
        let built = self.node.build_active().await?;
        self.check_current()?;
        let (store, datanode) = self.node.store();
        let (log, own, controller) = {
            let state = self.node.state();
            let held = state.held.as_ref().expect("the log was copied, given or started");
            (held.log.id(), state.incarnation, usize::from(state.settings.controller))
        };
        // Until the outcome is known no session is recorded, and nothing acknowledged by one.
        self.node.state_mut().solo.frozen = true;
        reached(Point::JoinPrepared);
        let mut members = [standby.incarnation; 2];
        members[controller] = own;
        let joined = roles::join(&store, datanode, recorded, log, members, controller, next).await;
        let Some(role) = joined.map_err(|error| error.to_string())? else {
            return Err("the record in the store changed meanwhile".to_owned());
        };
        reached(Point::JoinRecorded);
        {
            // Also when the connection is gone by now: the record says so, and the next meeting resumes by it.
            let mut state = self.node.state_mut();
            if let Some(held) = &mut state.held {
                held.member = own;
            }
            state.confirmed = true;
            // By this record the session is none any more, whatever becomes of the connection.
            state.solo.uncertain = false;
            state.solo.end();
            state.mirror.alone = false;
            state.become_active(role, built);
        }
        self.check_current()?;
        self.run_active(next)?;
        reached(Point::Joined);
        self.node.consume_image().await;
        Ok(())
    }

    /// The mirror runs from here on: everything before `next` is held by both.
    fn run_active(&self, next: Position) -> Result<(), Ended> {
        {
            let state = self.node.state();
            let role = state.role.as_ref().expect("joined or resumed by a record");
            let (epoch, log) = (Epoch(role.epoch), role.log);
            drop(state);
            self.say(&PeerMessage::Joined { epoch, log, next }, &[])?;
        }
        let mut state = self.node.state_mut();
        state.mirror.forwarded = next.0 - 1;
        state.mirror.mirrored = next.0 - 1;
        state.mirror.peer_catalog = 0;
        state.unheard = false;
        if std::mem::take(&mut state.leaving) {
            // It was to hand the role over, and the other one did not take it.
            state.rebuild.look();
        }
        state.phase = Phase::Mirrored;
        state.notices.tell(Notice::Mirrored { active: true });
        let peer = state.peer.as_mut().ok_or("the connection is gone")?;
        peer.joined = true;
        state.advance_effects(next_before(next));
        // Whoever meets has no I/O on its way (C15).
        let held = state.active.as_ref().is_some_and(|active| active.grants.held() > 0);
        // Also what is to be held only once the peer has the record.
        if std::mem::take(&mut state.solo.holds) | held {
            state.append_control(&Control::FreeHeld);
        }
        state.divide_quota();
        drop(state);
        self.drain();
        Ok(())
    }
}
