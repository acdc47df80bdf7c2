//! What becomes of the role while the peer is away: the active controller gives signs of life, the other takes over when
//! there are none, and an active one that was superseded steps down (C7, C9).
//!
//! The store decides, by compare-and-swap; signs of life and times only say when to try, so that a mere break
//! between the controllers moves no role. Whoever takes over has what the other member has: the
//! other forwarded all of it, or both have it from before they started. It acknowledges nothing until the other holds it too, so both
//! stay members. Neither issues grants to hosts until the other joined, and whoever joins has no I/O under older ones on
//! its way any more (C15).
//!
//! A crash in the middle leaves a record that names an active process that is gone: whoever is left takes over anew.

use super::next_before;
use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::drives::Drives;
use crate::grants::Grants;
use crate::leases::Leases;
use crate::node::Node;
use crate::notices::Notice;
use crate::resident::Resident;
use crate::roles;
use crate::state::{Active, Phase, Seen, State};
use cleave_coordinator::{LogRole, StoreClient, StoreError, Transaction};
use cleave_format::control::Control;
use cleave_format::ids::{DatanodeId, Position};
use cleave_runtime::crash_points::{Point, reached};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// The store is asked, or given a sign of life, this often while the peer is away.
const WATCH: Duration = Duration::from_millis(400);
/// An active controller without a sign of life for so long is taken for dead.
const LIFELESS: Duration = Duration::from_secs(1);
/// A controller that has met nobody since it started waits so long for its peer.
const STARTED_ALONE: Duration = Duration::from_secs(10);
/// A controller that steps down looks this often whether its drives are idle.
const LAST_IO_POLL: Duration = Duration::from_millis(2);

/// What is to be done about the role.
enum Change {
    TakeOver,
    StepDown(Position),
}

/// What an active controller keeps resident, to become one.
pub(super) struct Built {
    pub active: Active,
    /// Committed stripes.
    pub stripes: u64,
    /// What the catalog had applied when it was asked.
    pub catalog: Position,
}

/// What a control record of the log beyond the catalog means for it. Gives the stripes that it adds.
pub(super) fn replay_control(
    active: &mut Active,
    pool: &mut Drives,
    position: Position,
    control: &Control,
) -> u64 {
    active.resident.apply(position, control);
    let mut stripes = 0;
    match control {
        Control::Grant { incarnation, stripes } => active.grants.replay(*incarnation, stripes),
        Control::Drive { drive, state, generation } => pool.set_state(*drive, *state, *generation),
        Control::Commit(commit) => stripes = u64::from(!commit.slots.is_empty()),
        _ => {}
    }
    active.effect(position, control);
    stripes
}

/// `alive/ID`: changed by the active controller for as long as its peer is away. Only the revision says something.
pub fn life_key(datanode: DatanodeId) -> String {
    format!("alive/{datanode}")
}

/// Asks the store about the role while the peer is away, for as long as the process lives.
pub(super) async fn watch(node: Node) {
    loop {
        node.executor().sleep(WATCH).await;
        let (asked, serves) = {
            let state = node.state();
            if state.stopping {
                return;
            }
            let serves = state.active.is_some();
            // Hosts' leases need the store's word while the peer is copied to (C9).
            if state.is_joined() || (matches!(state.phase, Phase::Copying) && !serves) {
                continue;
            }
            (node.executor().now(), serves)
        };
        let (store, datanode) = node.store();
        if serves {
            let sign = Transaction::new().put(life_key(datanode), Vec::new());
            // Whatever came of it: the next one comes soon.
            let _ = store.transact(sign).await;
        }
        let Ok((recorded, revision)) = ask(&store, datanode).await else { continue };
        let mut state = node.state_mut();
        if asked < state.alone {
            continue;
        }
        let since = match &state.seen {
            Some(seen) if seen.life.0 == revision => seen.life.1,
            _ => asked,
        };
        state.seen = Some(Seen { asked, recorded, life: (revision, since) });
    }
}

async fn ask(
    store: &StoreClient,
    datanode: DatanodeId,
) -> Result<(roles::Recorded, u64), StoreError> {
    let recorded = roles::read(store, datanode).await?;
    let life = store.get(&life_key(datanode)).await?;
    Ok((recorded, life.map_or(0, |found| found.revision)))
}

impl Node {
    /// Does what is due about the role. True when it changed: this controller is active now, or is so no more.
    pub(super) async fn look_at_role(&self) -> bool {
        let change = self.state().due_change();
        match change {
            Some(Change::TakeOver) => match self.take_over().await {
                Ok(taken) => taken,
                Err(reason) => {
                    tracing::warn!("the active role was not taken: {reason}");
                    false
                }
            },
            Some(Change::StepDown(origin)) => {
                self.step_down(origin).await;
                true
            }
            None => false,
        }
    }

    async fn take_over(&self) -> Result<bool, String> {
        let told = self.state().is_told_to_take();
        let taken = self.take_over_from(told).await;
        self.word_is_over();
        taken
    }

    /// `told`: the active one gave its word; else it gives no sign of life.
    async fn take_over_from(&self, told: bool) -> Result<bool, String> {
        let recorded = match told {
            true => self.word_holds().await,
            false => self.state_mut().seen.take().map(|seen| seen.recorded),
        };
        let Some(recorded) = recorded else { return Ok(false) };
        let recorded = &recorded;
        let (store, datanode) = self.store();
        let (own, origin) = {
            let state = self.state();
            let held = state.held.as_ref().expect("only who holds the log takes over");
            (state.incarnation, held.log.next())
        };
        // First: who is recorded as active must not go on without being so.
        let warm = self.state().is_warm();
        let built = if warm { None } else { self.build_active().await? };
        let mut taken = roles::take_over(&store, datanode, recorded, own, origin).await;
        // Until it is known whether it was taken, nobody is met.
        while !matches!(taken, Ok(Some(_))) {
            taken = roles::find_taken(&store, datanode, recorded, own).await;
            match &taken {
                Ok(None) => return Ok(false),
                Ok(Some(_)) => {}
                Err(_) if self.state().stopping => return Ok(false),
                Err(_) => self.executor().sleep(WATCH).await,
            }
        }
        let Ok(Some(role)) = taken else { unreachable!("the loop ends with a role") };
        tracing::warn!("took the active role over, at epoch {} and position {origin}", role.epoch);
        reached(Point::RoleTaken);
        let mut state = self.state_mut();
        // The other one held all of it, if this one was a member and did not only load an image.
        let by_member = state.held.as_ref().is_some_and(|held| held.member == own);
        let built = if warm { state.take_warm() } else { built };
        assert!(built.is_some(), "nothing ends what was made ready while nobody is met");
        state.become_active(role, built);
        state.counters.taken_over += 1;
        let epoch = state.role.as_ref().map_or(0, |role| role.epoch);
        state.notices.tell(Notice::TookOver { epoch, origin });
        state.unheard = true;
        state.mirror.mirrored = if by_member { next_before(origin).0 } else { 0 };
        state.mirror.forwarded = state.mirror.mirrored;
        state.mirror.peer_catalog = 0;
        let through = Position(state.mirror.mirrored);
        state.advance_effects(through);
        if !state.stopping {
            state.phase = Phase::PeerAway;
        }
        Ok(true)
    }

    /// Serves no host any more. What the log has from `origin` on is void: the active controller has, or will have,
    /// something else there, and nobody was told of it.
    pub(super) async fn step_down(&self, origin: Position) {
        tracing::warn!("the other controller is active now; stepping down");
        {
            let mut state = self.state_mut();
            state.notices.tell(Notice::SteppedDown);
            state.leaving = true;
            state.close_hosts("the other controller is active now");
        }
        // Without a limit: another process in this one's place would wait for the same.
        let idle = || self.state().active.as_ref().is_none_or(|active| active.drives.is_idle());
        while !idle() {
            self.executor().sleep(LAST_IO_POLL).await;
        }
        let mut state = self.state_mut();
        state.end_active(origin);
        if !state.stopping {
            state.phase = Phase::PeerAway;
        }
        reached(Point::RoleLeft);
    }

    /// What an active controller keeps resident, unless it has that already: from the catalog, and the control
    /// entries of the log beyond it.
    pub(super) async fn build_active(&self) -> Result<Option<Built>, String> {
        if self.state().active.is_some() {
            return Ok(None);
        }
        let asked = self.state_mut().catalog.ask_flow(CatalogRequest::Resident);
        let Some(CatalogReply::Resident(catalog)) = asked.wait().await else {
            return Err("the catalog failed".to_owned());
        };
        let mut state = self.state_mut();
        let resident = Resident::load(&catalog);
        let mut grants = Grants::default();
        let state = &mut *state;
        let pool = state.pool.as_mut().ok_or("the drives are gone")?;
        for (drive, row) in &catalog.drives {
            pool.set_state(*drive, row.state, row.generation);
        }
        for (drive, _, slots, _) in pool.states() {
            grants.allocator.add_drive(drive, slots);
        }
        for (drive, used) in &catalog.used {
            grants.allocator.mark_all(*drive, used);
        }
        grants.load(catalog.newest_stripe, catalog.grants.clone(), catalog.held.clone());
        let mut active = Active {
            resident,
            grants,
            drives: Drives::new(state.settings.cluster, Vec::new()),
            requests: Slab::new(),
            acks: VecDeque::new(),
            replies: VecDeque::new(),
            untold: BTreeMap::new(),
            deferred: VecDeque::new(),
            quota: 0,
            holds_known: catalog.applied,
            leases: Leases::default(),
            absent: BTreeMap::new(),
        };
        let mut stripes = catalog.stripes;
        let held = state.held.as_ref().ok_or("the log is gone")?;
        let mut after = catalog.applied;
        loop {
            let (position, control) = match held.log.next_control(after, held.log.next()) {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err(rotted) => {
                    state.lose_control(rotted);
                    return Err(rotted.to_string());
                }
            };
            after = position;
            stripes += replay_control(&mut active, pool, position, &control);
        }
        active.holds_known = next_before(held.log.next());
        active.quota = state.quota_of_all();
        Ok(Some(Built { active, stripes, catalog: catalog.applied }))
    }
}

impl State {
    fn due_change(&self) -> Option<Change> {
        if self.is_told_to_take() {
            return Some(Change::TakeOver);
        }
        let seen = self.seen.as_ref().filter(|_| !self.is_joined() && !self.stopping)?;
        let (role, _) = seen.recorded.role.as_ref()?;
        if self.active.is_some() {
            let known = self.role.as_ref().map_or(0, |known| known.epoch);
            let superseded = role.epoch > known && role.active != Some(self.incarnation.0);
            return superseded.then_some(Change::StepDown(Position(role.origin)));
        }
        // Nobody else can be active where this is the only member.
        let waited = match self.confirmed || role.in_sync.len() == 1 {
            true => LIFELESS,
            false => STARTED_ALONE,
        };
        let now = self.executor.now();
        // With the store away nothing is begun that needs it: the peer may come back first.
        let fresh = now.since(seen.asked) < LIFELESS;
        let lifeless = seen.asked.since(seen.life.1) >= LIFELESS && now.since(self.alone) >= waited;
        let standing = self.standing();
        let may =
            self.settings.take_over && role.has_log() && standing.is_valid(role) && standing.able;
        (may && fresh && lifeless).then_some(Change::TakeOver)
    }

    /// This controller is active by a record. `built`: what that needs, unless it was active before.
    pub(super) fn become_active(&mut self, role: LogRole, built: Option<Built>) {
        self.role = Some(role);
        if let Some(Built { mut active, stripes, .. }) = built {
            self.stripes = stripes;
            let drives = self.pool.take().expect("the drives rest while there is no active");
            active.take_drives(drives);
            // The record is made: whatever a controller before this one gave was asked for before now (C9).
            let from = self.held.as_ref().map_or(Position(0), |held| held.log.next());
            active.leases = Leases::begin(self.executor.now(), from);
            self.active = Some(active);
            self.damage_stale = true;
            self.rebuild.begin();
            self.scrub.end();
        }
        self.assign_records();
    }

    /// And is so no more.
    fn end_active(&mut self, origin: Position) {
        self.leaving = false;
        self.counters.stepped_down += 1;
        self.role = None;
        self.mending = crate::mend::Mending::default();
        self.solo.end();
        self.rebuild.end();
        self.scrub.end();
        self.mirror.alone = false;
        if let Some(active) = self.active.take() {
            self.pool = Some(active.drives.rested());
        }
        if let Some(held) = &mut self.held {
            held.log.truncate(origin);
            let last = held.log.next().0.saturating_sub(1);
            self.mirror.mirrored = self.mirror.mirrored.min(last);
            if self.mirror.effects > last {
                self.fail(format!(
                    "what the other controller does not hold had effects here: {} and {last}",
                    self.mirror.effects
                ));
            }
        }
    }
}
