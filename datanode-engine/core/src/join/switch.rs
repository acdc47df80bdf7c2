//! A planned switch-over: the active role moves to the standby by an operator's order, and hosts wait for as little as can be.
//!
//! 1. The active one asks the standby to make ready ([`PeerMessage::Prepare`]): that one builds what an active controller keeps
//!    resident, which takes as long as its catalog is large, while hosts go on. From then on it keeps that up with
//!    every entry that arrives ([`Warm`]).
//! 2. The active one serves nobody any more, sends its hosts to the other one, and waits until its drives are idle.
//! 3. It gives the word ([`PeerMessage::TakeRole`]). The standby ends the connection and takes the role over as it would from a dead
//!    controller: by its own log and one compare-and-swap (C7, C9). Both meet at once, and the former active one steps
//!    down (C15).
//!
//! Nothing relies on the order of these steps: whoever took the role is active, and the other one learns it by meeting it
//! or from the store. A controller that gave the word and hears nothing goes on as the active one, which it is until the record says
//! otherwise.
//!
//! A crash in the middle leaves what a crash of an active or a standby controller leaves at any time.

use super::role::{Built, replay_control};
use crate::node::Node;
use crate::roles::{self, Recorded};
use crate::state::{Active, State};
use cleave_catalog::Applied;
use cleave_format::ids::Position;
use cleave_runtime::time::Moment;
use cleave_wire::{ControllerMessage, PeerMessage};
use std::time::Duration;

/// The standby may take so long to make ready.
const PREPARED_MAX: Duration = Duration::from_secs(60);
/// The last I/O of the active one may take so long; an order on a slow drive comes to nothing.
const LAST_IO_MAX: Duration = Duration::from_secs(2);
/// So long it is waited for the other one, once it has the word; then this one goes on.
const TAKEN_MAX: Duration = Duration::from_secs(2);
/// How often the flow looks.
const LOOK: Duration = Duration::from_millis(1);
/// A standby that is ready waits so long for the word.
const WARM_KEPT: Duration = Duration::from_secs(10);
/// For so long after the word, controllers meet again at once.
const HURRY: Duration = Duration::from_secs(2);

/// Where a switch-over is, on either side.
#[derive(Default)]
pub(crate) struct SwitchOver {
    /// Active: an order is being carried out.
    ordered: bool,
    /// Active: what the standby answered.
    prepared: Option<Option<String>>,
    /// Standby: it is making ready, or is.
    warming: Option<Warming>,
    /// Standby: counts how often it was asked to, so that a flow whose connection broke meanwhile does nothing more.
    asked: u64,
    /// Standby: it has the word.
    told: bool,
    /// Either: meetings begin without a pause until then.
    hurry: Option<Moment>,
}

/// What a standby collects while it makes ready.
struct Warming {
    /// Which time it was asked.
    number: u64,
    /// Since when it does, or is.
    since: Moment,
    /// What its catalog applied since it was asked, in order.
    applied: Vec<Applied>,
    warm: Option<Warm>,
}

/// What an active controller keeps resident, as of the standby's last entry.
struct Warm {
    active: Active,
    stripes: u64,
    /// The last control record that it knows.
    through: Position,
}

impl Warm {
    fn applied(&mut self, applied: &Applied) {
        self.stripes = self.stripes.saturating_sub(applied.ended);
        self.active.resident.synced(applied.through);
        applied.freed.iter().for_each(|place| self.active.grants.freed(place));
    }
}

impl State {
    /// Whether controllers should meet without a pause.
    pub(super) fn hurries(&self) -> bool {
        let now = self.executor.now();
        self.switch.hurry.is_some_and(|until| now < until)
    }

    fn hurry(&mut self) {
        self.switch.hurry = Some(self.executor.now() + HURRY);
    }

    /// Whether the active one gave its word that this one shall take the role.
    pub(super) fn is_told_to_take(&self) -> bool {
        self.switch.told && self.active.is_none() && !self.is_joined() && !self.stopping
    }

    /// The standby's answer.
    pub(crate) fn prepared(&mut self, hindrance: Option<String>) {
        self.switch.prepared = Some(hindrance);
    }

    /// The connection is gone, and what was said on it with it; but a word that was given.
    pub(crate) fn switch_interrupted(&mut self) {
        if !self.switch.told {
            self.switch.warming = None;
        }
    }

    /// The catalog of a standby applied something.
    pub(crate) fn warm_applied(&mut self, applied: &Applied) {
        match &mut self.switch.warming {
            Some(Warming { warm: Some(warm), .. }) => warm.applied(applied),
            Some(warming) => warming.applied.push(applied.clone()),
            None => {}
        }
    }

    /// Entries arrived at a standby, and had no effects yet: what it would be active with is kept up with them.
    pub(crate) fn keep_warm(&mut self) {
        let Some(Warming { warm: Some(warm), .. }) = &mut self.switch.warming else { return };
        let (Some(held), Some(pool)) = (&self.held, &mut self.pool) else { return };
        loop {
            match held.log.next_control(warm.through, held.log.next()) {
                Ok(Some((position, control))) => {
                    warm.stripes += replay_control(&mut warm.active, pool, position, &control);
                    warm.through = position;
                }
                Ok(None) => break,
                // It is mended by and by; who takes the role before that builds everything anew.
                Err(_) => {
                    self.switch.warming = None;
                    return;
                }
            }
        }
        warm.active.holds_known = super::next_before(held.log.next());
    }

    /// Everything is there that it takes to be active, or it is said why not.
    fn warm(
        &mut self,
        mut warming: Warming,
        built: Result<Option<Built>, String>,
    ) -> Result<(), String> {
        let built = built?;
        if self.stopping {
            return Err("it is stopping".to_owned());
        }
        if !self.standing().able {
            return Err("it reaches too few drives".to_owned());
        }
        let through = self.held.as_ref().map(|held| super::next_before(held.log.next()));
        let (Some(Built { active, stripes, catalog }), Some(through)) = (built, through) else {
            return Err("it is no standby".to_owned());
        };
        let mut warm = Warm { active, stripes, through };
        for applied in warming.applied.drain(..).filter(|applied| applied.through > catalog) {
            warm.applied(&applied);
        }
        warming.since = self.executor.now();
        warming.warm = Some(warm);
        self.switch.warming = Some(warming);
        Ok(())
    }

    /// Called now and then: a word that does not come is not waited for with all that it would take.
    pub(crate) fn cool_down(&mut self) {
        let now = self.executor.now();
        let cold =
            |warming: &mut Warming| warming.warm.is_some() && now.since(warming.since) > WARM_KEPT;
        if !self.switch.told {
            self.switch.warming.take_if(cold);
        }
    }

    /// What it made ready, if it did.
    pub(super) fn take_warm(&mut self) -> Option<Built> {
        let Warm { active, stripes, through } = self.switch.warming.take()?.warm?;
        Some(Built { active, stripes, catalog: through })
    }

    pub(super) fn is_warm(&self) -> bool {
        self.switch.warming.as_ref().is_some_and(|warming| warming.warm.is_some())
    }
}

impl Node {
    /// Standby: makes ready, and says so.
    pub(crate) async fn prepare(self) {
        let number = {
            let mut state = self.state_mut();
            state.switch.asked += 1;
            let (number, since) = (state.switch.asked, state.executor.now());
            state.switch.warming = Some(Warming { number, since, applied: Vec::new(), warm: None });
            number
        };
        let built = self.build_active().await;
        let mut state = self.state_mut();
        // The connection broke since: what the catalog applied meanwhile is not known in between.
        let Some(warming) = state.switch.warming.take_if(|warming| warming.number == number) else {
            return;
        };
        let hindrance = state.warm(warming, built).err();
        // Without a peer there is nobody to tell.
        let _ = state.send_peer(&PeerMessage::Prepared { hindrance }, &[]);
    }

    /// Standby: it has the word. The flow of meetings goes on with it, once the connection is over.
    pub(crate) fn told_to_take(&self) {
        let connection = {
            let mut state = self.state_mut();
            state.switch.told = true;
            state.hurry();
            state.peer.as_ref().map(|peer| peer.connection)
        };
        if let Some(connection) = connection {
            const REASON: &str = "this controller takes the role over, as it was told";
            self.links().close(connection, REASON);
            self.peer_gone(connection, REASON);
        }
    }

    /// Standby: the record by which it takes over; nothing when that is not the one of the controller that gave the word.
    pub(super) async fn word_holds(&self) -> Option<Recorded> {
        let (store, datanode) = self.store();
        let recorded = roles::read(&store, datanode).await.ok()?;
        let state = self.state();
        let (role, _) = recorded.role.as_ref()?;
        let standing = state.standing();
        let other = role.active.is_some_and(|active| active != state.incarnation.0);
        (other && standing.is_valid(role) && standing.able).then_some(recorded)
    }

    /// Whatever came of it.
    pub(super) fn word_is_over(&self) {
        let mut state = self.state_mut();
        state.switch.told = false;
        state.switch.warming = None;
    }

    /// Active: carries an operator's order out. Gives how long hosts were served by nobody, at most, but for their own way to the
    /// other controller.
    pub(crate) async fn switch_over(&self) -> Result<Duration, String> {
        {
            let mut state = self.state_mut();
            if state.active.is_none() {
                return Err("this controller is not the active one".to_owned());
            }
            if state.switch.ordered {
                return Err("a switch-over is under way".to_owned());
            }
            if !state.is_joined() || state.stopping || state.leaving {
                return Err("there is no standby that holds the whole log".to_owned());
            }
            state.switch.ordered = true;
            state.switch.prepared = None;
        }
        let outcome = self.carry_switch_over_out().await;
        if let Err(reason) = &outcome {
            tracing::warn!("the role was not handed over: {reason}");
        }
        let mut state = self.state_mut();
        state.switch.ordered = false;
        if outcome.is_err() && state.active.is_some() && std::mem::take(&mut state.leaving) {
            state.rebuild.look();
        }
        outcome
    }

    async fn carry_switch_over_out(&self) -> Result<Duration, String> {
        let executor = self.executor().clone();
        let _ = self.state().send_peer(&PeerMessage::Prepare, &[]);
        let limit = executor.now() + PREPARED_MAX;
        let hindrance = loop {
            {
                let mut state = self.state_mut();
                if state.active.is_none() || !state.is_joined() {
                    return Err("the connection to the standby broke".to_owned());
                }
                if let Some(prepared) = state.switch.prepared.take() {
                    break prepared;
                }
            }
            if executor.now() >= limit {
                return Err("the standby did not get ready in time".to_owned());
            }
            executor.sleep(LOOK).await;
        };
        if let Some(reason) = hindrance {
            return Err(format!("the standby cannot take the role: {reason}"));
        }
        let began = executor.now();
        self.leave_hosts();
        loop {
            {
                let state = self.state();
                let Some(active) = &state.active else {
                    return Err("the role moved meanwhile".to_owned());
                };
                if !state.is_joined() {
                    return Err("the connection to the standby broke".to_owned());
                }
                if active.drives.is_idle() {
                    break;
                }
            }
            if executor.now().since(began) > LAST_IO_MAX {
                return Err("requests on drives take too long; it goes on here".to_owned());
            }
            executor.sleep(LOOK).await;
        }
        {
            let mut state = self.state_mut();
            state.hurry();
            let _ = state.send_peer(&PeerMessage::TakeRole, &[]);
        }
        let limit = executor.now() + TAKEN_MAX;
        loop {
            executor.sleep(LOOK).await;
            {
                let state = self.state();
                if state.active.is_none() && state.is_joined() {
                    break;
                }
                if state.active.is_some() && !state.leaving {
                    return Err("the standby did not take the role; it goes on here".to_owned());
                }
            }
            if executor.now() >= limit {
                return match self.state().active.is_none() {
                    true => {
                        Err("the role moved, and the controllers have not met again yet".to_owned())
                    }
                    false => {
                        Err("the standby was not heard of any more; it goes on here".to_owned())
                    }
                };
            }
        }
        let took = executor.now().since(began);
        tracing::info!(?took, "the other controller has the role, as was ordered");
        Ok(took)
    }

    /// Hosts go to the other controller by themselves; nothing of theirs is looked at any more.
    fn leave_hosts(&self) {
        let mut state = self.state_mut();
        state.leaving = true;
        for connection in state.sessions.keys() {
            state.send_host(*connection, 0, &ControllerMessage::RoleMoves, None);
        }
    }
}
