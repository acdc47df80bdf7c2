//! An active controller whose peer is away goes on alone: it writes its log to three drives, makes itself the only member,
//! and from then on acknowledges what these drives have durable (C7, C12). And it ends that when the peer has a copy.
//!
//! One flow for as long as the process lives; it alone writes sessions. First a session is filled with what the log holds,
//! then the record names it: until then the peer stays a member, so there is no moment in which the only copy is memory.
//! When a drive of the session fails, or it is worn, the next one is filled beside it, in other places, and recorded.
//!
//! The meeting with a returning peer goes on meanwhile; both change the record by compare-and-swap only, and whichever comes
//! second finds it changed. Entries are acknowledged by the session until the peer's copy lacks nothing; then they wait
//! for the compare-and-swap that makes it a member. Should that fail, the session is recorded anew first: the
//! store may carry the other change out late.
//!
//! A crash leaves what the record says: the session it names, and no other, is complete.

use crate::join::next_before;
use crate::node::Node;
use crate::notices::Notice;
use crate::roles;
use crate::solo::{Session, Unreadable};
use crate::state::{Phase, State};
use cleave_coordinator::{LogRole, Member, Solo};
use cleave_format::control::Control;
use cleave_format::ids::Position;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::Outcome;
use std::time::Duration;

/// An active controller looks this often whether it is to go on alone.
const LOOK: Duration = Duration::from_millis(200);
/// The peer is waited for so long before.
const AWAY: Duration = Duration::from_secs(1);
/// After a try that came to nothing.
const AGAIN: Duration = Duration::from_secs(1);

/// What is to be done next.
enum Step {
    Wait,
    Begin,
    Confirm,
    Append,
}

/// A segment on its way to the drives.
struct Writing {
    bytes: Vec<u8>,
    /// The position after it.
    next: Position,
    /// Whether it is durable, of each drive.
    written: Vec<Outcome<bool>>,
}

/// Goes on alone whenever that is due, for as long as the process lives.
pub(super) async fn run(node: Node) {
    let mut buffer = Vec::new();
    loop {
        let step = {
            let state = node.state();
            if state.stopping {
                return;
            }
            state.solo_step()
        };
        match step {
            Step::Wait if node.state().is_alone() => {
                let signal = node.state().solo.signal.clone();
                let mut first = true;
                // What is looked at comes with the next turn, or with the clock.
                let woken = signal.until(|| (!std::mem::replace(&mut first, false)).then_some(()));
                node.executor().timeout(LOOK, woken).await;
            }
            Step::Wait => node.executor().sleep(LOOK).await,
            Step::Begin => {
                if let Err(reason) = node.begin_session(&mut buffer).await {
                    node.state_mut().hinder(reason);
                }
            }
            Step::Confirm => {
                if let Err(reason) = node.confirm_session().await {
                    node.state_mut().hinder(reason);
                }
            }
            Step::Append => {
                node.append_to_session(&mut buffer).await;
                node.turn();
            }
        }
    }
}

impl State {
    fn solo_step(&self) -> Step {
        let ready = self.settings.alone
            && !self.leaving
            && self.fatal.is_none()
            && !self.is_joined()
            && self.active.is_some();
        let (Some(held), true) = (&self.held, ready && !self.solo.frozen) else {
            return Step::Wait;
        };
        let now = self.executor.now();
        let again = self.solo.again.is_none_or(|again| now >= again);
        let Some(session) = &self.solo.session else {
            let own =
                self.role.as_ref().is_some_and(|role| role.active == Some(self.incarnation.0));
            let due = own && now.since(self.alone) >= AWAY && again;
            return if due { Step::Begin } else { Step::Wait };
        };
        if self.solo.is_doubtful() {
            return if again { Step::Confirm } else { Step::Wait };
        }
        if again && (self.solo.broken || session.is_worn()) {
            return Step::Begin;
        }
        let more = session.next < held.log.next() && !self.solo.broken;
        if more { Step::Append } else { Step::Wait }
    }

    fn hinder(&mut self, reason: String) {
        self.solo.again = Some(self.executor.now() + AGAIN);
        if self.solo.hindrance != reason {
            tracing::warn!("this controller does not go on alone for now: {reason}");
            self.notices.tell(Notice::NotAlone { reason: reason.clone() });
            self.solo.hindrance = reason;
        }
    }

    fn as_member(&self) -> Member {
        Member { controller: self.settings.controller, incarnation: self.incarnation.0 }
    }

    /// What a segment brought is durable on all drives of the session.
    fn advance_alone(&mut self, next: Position) {
        self.mirror.mirrored = self.mirror.mirrored.max(next_before(next).0);
        self.advance_effects(Position(self.mirror.mirrored));
    }

    /// The record names the session. `settled`: doubts that were over when that was asked for.
    fn goes_alone(&mut self, role: LogRole, mut session: Session, settled: u64) {
        let first = !self.mirror.alone;
        session.filled = session.at;
        let drives: Vec<u16> = session.drives.iter().map(|(drive, _)| drive.0).collect();
        match first {
            true => {
                tracing::warn!("acknowledging alone: the log is on drives {drives:?}");
                self.notices.tell(Notice::Alone { drives });
            }
            false => tracing::info!("the log is on drives {drives:?} from here on"),
        }
        let next = session.next;
        self.counters.alone += u64::from(first);
        self.role = Some(role);
        if let Some(held) = &mut self.held {
            held.member = self.incarnation;
        }
        self.confirmed = true;
        self.mirror.alone = true;
        self.solo.part = 1 - session.part;
        self.solo.session = Some(session);
        self.solo.settled = settled;
        (self.solo.broken, self.solo.again, self.solo.uncertain) = (false, None, false);
        self.solo.hindrance.clear();
        if !self.stopping {
            self.phase = Phase::Alone;
        }
        self.advance_alone(next);
        self.divide_quota();
    }
}

impl Node {
    /// Fills a session with the log, and records it.
    async fn begin_session(&self, buffer: &mut Vec<u8>) -> Result<(), String> {
        let (store, datanode) = self.store();
        let settled = self.state().solo.doubts;
        let mut recorded =
            roles::read(&store, datanode).await.map_err(|error| error.to_string())?;
        let (own, uncertain) = {
            let state = self.state();
            (state.incarnation.0, state.solo.uncertain)
        };
        let is_active = |role: &LogRole| role.active == Some(own);
        if uncertain && recorded.role.as_ref().is_some_and(|(role, _)| is_active(role)) {
            // A session whose recording was not heard of may be recorded yet, and must not be overwritten then (C17).
            roles::fence(&store, datanode).await.map_err(|error| error.to_string())?;
            recorded = roles::read(&store, datanode).await.map_err(|error| error.to_string())?;
        }
        let (member, mut session) = {
            let mut state = self.state_mut();
            let role = recorded.role.as_ref().map(|(role, _)| role);
            let role = role.filter(|role| is_active(role));
            let role = role.ok_or("the record names another active controller")?;
            if !state.standing().is_valid(role) {
                return Err("what is held here is not the recorded log".to_owned());
            }
            // The record may be the one that makes the peer a member, and the word of that on its way.
            if state.is_joined() || state.solo.frozen {
                return Err("the peer is back".to_owned());
            }
            if let Some(solo) = &role.solo {
                state.solo.part = 1 - solo.part.min(1);
            }
            state.hold_slots(role);
            let session = state.plan_session()?;
            state.solo.filling = Some(Position(state.mirror.effects));
            state.counters.sessions += 1;
            (state.as_member(), session)
        };
        reached(Point::SoloBegun);
        let filled = self.fill_session(&mut session, buffer).await;
        if let Err(reason) = filled {
            self.state_mut().solo.filling = None;
            return Err(reason);
        }
        reached(Point::SoloFilled);
        let solo = Solo {
            session: session.identity.session,
            part: session.part,
            drives: session.drives.iter().map(|(drive, _)| drive.0).collect(),
        };
        // From here on the record is not known, until it is; nobody resumes by what was known.
        self.state_mut().solo.uncertain = true;
        let changed = roles::go_solo(&store, datanode, &recorded, member, solo).await;
        let mut state = self.state_mut();
        state.solo.filling = None;
        let role = changed.map_err(|error| error.to_string())?;
        let role = role.ok_or("the record in the store changed meanwhile")?;
        reached(Point::SoloRecorded);
        if state.active.is_none() {
            return Err("this controller is active no more".to_owned());
        }
        // Answers come in no particular order: that of a meeting since may have been heard before this one.
        let known = state.role.as_ref().map_or(0, |known| known.epoch);
        if state.is_joined() || known >= role.epoch {
            return Err("the peer is a member again".to_owned());
        }
        state.goes_alone(role, session, settled);
        drop(state);
        self.turn();
        Ok(())
    }

    /// Writes what the log holds, until nothing is lacking; goes on with the session of before meanwhile.
    async fn fill_session(
        &self,
        session: &mut Session,
        buffer: &mut Vec<u8>,
    ) -> Result<(), String> {
        loop {
            let Some(Writing { bytes, next, written }) = self.fill_segment(session, buffer)? else {
                return Ok(());
            };
            let mut durable = true;
            for outcome in written {
                durable &= outcome.wait().await == Some(true);
            }
            if !durable {
                return Err("a drive of the log failed".to_owned());
            }
            session.at += bytes.len() as u64;
            session.number += 1;
            session.next = next;
            *buffer = bytes;
            let appends = {
                let solo = &self.state().solo;
                solo.session.is_some() && !solo.broken && !solo.frozen && !solo.is_doubtful()
            };
            if appends {
                self.append_to_session(buffer).await;
                self.turn();
            }
        }
    }

    /// Begins to write the next segment of a session that is being filled; `None` when it lacks nothing.
    fn fill_segment(
        &self,
        session: &Session,
        buffer: &mut Vec<u8>,
    ) -> Result<Option<Writing>, String> {
        let mut state = self.state_mut();
        if state.stopping || state.leaving || state.is_joined() || state.active.is_none() {
            return Err("the peer is back, or this controller is active no more".to_owned());
        }
        let segment = state.segment(session, std::mem::take(buffer), Unreadable::Refuse);
        let segment = match segment {
            Err(reason) if state.is_alone() => {
                let reason = format!(
                    "{reason}; the log on drives is sound: this controller ends, and started again loads that"
                );
                state.fail(reason.clone());
                return Err(reason);
            }
            segment => segment?,
        };
        let Some((bytes, next)) = segment else { return Ok(None) };
        if session.at + bytes.len() as u64 > session.length {
            return Err("what the log holds grew beyond the drives' room for it".to_owned());
        }
        let written = state.write_segment(session, &bytes);
        Ok(Some(Writing { bytes, next, written }))
    }

    /// Writes what came since to the session, if anything did.
    async fn append_to_session(&self, buffer: &mut Vec<u8>) {
        let (session, bytes, next, written) = {
            let mut state = self.state_mut();
            let Some(session) = state.solo.session.clone() else { return };
            let segment = state.segment(&session, std::mem::take(buffer), Unreadable::GiveUp);
            let Ok(Some((bytes, next))) = segment else { return };
            if session.at + bytes.len() as u64 > session.length {
                // It waits for the next session.
                state.solo.broken = true;
                return;
            }
            let written = state.write_segment(&session, &bytes);
            if is_planted(Planted::AcknowledgeBeforeOnDrives) {
                state.advance_alone(next);
            }
            (session, bytes, next, written)
        };
        let mut durable = true;
        for outcome in written {
            durable &= outcome.wait().await == Some(true);
        }
        reached(Point::SoloAppended);
        let mut state = self.state_mut();
        let current = state.solo.session.as_mut();
        let Some(current) = current.filter(|now| now.identity == session.identity) else { return };
        if durable {
            current.at += bytes.len() as u64;
            current.number += 1;
            current.next = next;
            state.advance_alone(next);
        } else {
            tracing::error!("a drive of the log of this controller, which is alone, failed");
            state.notices.tell(Notice::AloneBroken);
            state.solo.broken = true;
        }
        *buffer = bytes;
    }

    /// Records the session once more, so that nothing that was asked of the store before can change the record.
    async fn confirm_session(&self) -> Result<(), String> {
        let (store, datanode) = self.store();
        // A doubt that comes up from here on is not settled by this record.
        let settled = self.state().solo.doubts;
        let recorded = roles::read(&store, datanode).await.map_err(|error| error.to_string())?;
        let (member, solo) = {
            let state = self.state();
            let Some(session) = &state.solo.session else { return Ok(()) };
            if state.solo.frozen {
                return Err("the peer is back".to_owned());
            }
            let solo = Solo {
                session: session.identity.session,
                part: session.part,
                drives: session.drives.iter().map(|(drive, _)| drive.0).collect(),
            };
            (state.as_member(), solo)
        };
        let changed = roles::go_solo(&store, datanode, &recorded, member, solo).await;
        let role = changed.map_err(|error| error.to_string())?;
        let role = role.ok_or("the record in the store changed meanwhile")?;
        let mut state = self.state_mut();
        let known = state.role.as_ref().map_or(0, |known| known.epoch);
        if state.is_alone() && known < role.epoch {
            state.role = Some(role);
            (state.solo.settled, state.solo.again, state.solo.uncertain) = (settled, None, false);
        }
        Ok(())
    }
}

impl State {
    /// Before a controller that took the role over works alone: slots that the one before may still write to are free for
    /// nobody (C15). Whoever was alone before had that done.
    fn hold_slots(&mut self, role: &LogRole) {
        let unheard = std::mem::replace(&mut self.unheard, false);
        if unheard && role.solo.is_none() && !is_planted(Planted::FreeUnderALateWrite) {
            self.append_control(&Control::HoldSlots);
            self.solo.holds = true;
        }
    }
}
