//! Destage: when a stripe is written, and the way of one stripe: grant, pack, shards, commit, apply.
//!
//! ```text
//! content: mirrored -> planned -> (shards durable) -> committed, in the map -> record released
//! ```
//! Invariants: a stripe is written under a grant that nothing else uses; a commit names only shards
//! that are durable (C10); commits of a core are sent one after the other, so the map applies them in
//! the order of their positions; what a stripe held counts as unplanned again when the stripe is
//! given up. A crash loses the plan; the grant ends with the incarnation (C15), and the log still has the
//! records.

pub(crate) mod commit;
mod leaves;
mod pack;
pub mod plan;

use crate::core::Shared;
use crate::dedupe::Lookup;
use crate::runs::PlannedPiece;
use crate::state::State;
use crate::stats::Event;
use cleave_format::control::GrantedStripe;
use cleave_format::ids::StripeId;
use cleave_format::layout::{BLOCK, PARITY_SHARDS, PART, SHARD};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Priority;
use cleave_runtime::links::Class;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::{Outcome, Signal};
use cleave_wire::{ControllerMessage, HostMessage, encode_header};
use plan::Item;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// A stripe's commit waits for flash at most so long after its shards are durable.
const FLASH_WAIT: Duration = Duration::from_millis(500);

/// How often the age of content is looked at.
const TICK: Duration = Duration::from_millis(500);
/// After a shortage or a stripe that was given up.
const BACK_OFF: Duration = Duration::from_secs(1);
/// Grants that are kept ahead.
const STOCK: u16 = 2;

/// What a stripe is made of.
pub(crate) struct Plan {
    pub items: Vec<Item>,
    pub pieces: Vec<PlannedPiece>,
    /// Stripes that are pinned until it ended, because items refer to them (C19).
    pub pins: BTreeSet<StripeId>,
    /// The log that has the records under the versions that are planned (C7).
    pub log: Option<u64>,
}

/// Why a stripe was given up.
pub(crate) enum GivenUp {
    /// Shards could not be written, or the commit was refused: at once again under another grant.
    Again,
    /// There is no space: later.
    NoSpace(String),
}

/// Grants, and what the tasks of destage share.
pub(crate) struct Destage {
    pub shared: Rc<Shared>,
    stripes: RefCell<VecDeque<GrantedStripe>>,
    /// Kept for a map run in a pool without space: it may free some.
    reserve: RefCell<Option<GrantedStripe>>,
    identities: RefCell<VecDeque<StripeId>>,
    /// The newest identity that was granted here.
    told: Cell<StripeId>,
    on_their_way: Cell<usize>,
    asking: Cell<bool>,
    committing: Cell<bool>,
    freed: Signal,
}

/// One of several tasks at a time does something: holds back the others.
struct Turn<'a> {
    taken: &'a Cell<bool>,
    freed: &'a Signal,
}

impl<'a> Turn<'a> {
    async fn take(taken: &'a Cell<bool>, freed: &'a Signal) -> Turn<'a> {
        freed.until(|| (!taken.replace(true)).then_some(())).await;
        Turn { taken, freed }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.taken.set(false);
        self.freed.notify();
    }
}

/// Starts the core's destage.
pub(crate) fn start(shared: &Rc<Shared>) {
    let destage = Rc::new(Destage {
        shared: Rc::clone(shared),
        stripes: RefCell::default(),
        reserve: RefCell::default(),
        identities: RefCell::default(),
        told: Cell::new(StripeId(0)),
        on_their_way: Cell::new(0),
        asking: Cell::new(false),
        committing: Cell::new(false),
        freed: Signal::new(),
    });
    let executor = &shared.executor;
    let ticking = Rc::clone(shared);
    executor.spawn(Priority::Background, async move {
        loop {
            ticking.executor.sleep(TICK).await;
            let progress = {
                let mut state = ticking.state.borrow_mut();
                state.now = ticking.executor.now();
                state.look_at_dead_stripes();
                state.progress.clone()
            };
            progress.notify();
        }
    });
    executor.spawn(Priority::Background, async move { destage.run().await });
}

/// Why a stripe is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// There is a full one.
    Full,
    /// The log fills up, or content is old: also a part of one.
    Partial,
    /// Zeros and discards by themselves, which need no stripe (C5): they free space.
    Entries,
    /// A map run by itself, for the space that it frees.
    Run,
    /// Only a commit that releases records.
    Release,
    /// None: the core ends.
    End,
}

impl State {
    /// Whether a stripe should be written now. `capacity`: bytes of a data section.
    pub(crate) fn stripe_wanted(&self, on_their_way: usize) -> Option<Reason> {
        let config = &self.config.destage;
        let capacity = u64::from(self.data_shards.max(1)) * SHARD as u64;
        let weight = self.buffer.unplanned_weight();
        let limit = self.limit().max(1);
        let fill = self.fill_percent();
        let oldest = self.buffer.queue().next().map(|(_, record)| record.taken);
        let age = oldest.map_or(Duration::ZERO, |taken| self.now.since(taken));
        let zeros = self.buffer.unplanned_zeros();
        if self.stats.shortage.is_some() && on_their_way == 0 {
            // Only what frees space helps, and it comes first.
            if zeros > 0 {
                return Some(Reason::Entries);
            }
            if self.run_waits() {
                return Some(Reason::Run);
            }
        }
        if weight >= capacity && (fill >= config.fill_percent || age >= config.full_after) {
            return Some(Reason::Full);
        }
        // What follows may be less than a stripe: only when that is not on its way already.
        if on_their_way > 0 {
            return None;
        }
        // Only destage can make room (C13), whatever the quota said.
        if self.log_full && weight > 0 {
            return Some(Reason::Partial);
        }
        if self.log_full && self.buffer.releasable_bytes() > 0 {
            return Some(Reason::Release);
        }
        if self.buffer.releasable_bytes() * 8 >= limit && fill >= config.fill_percent {
            return Some(Reason::Release);
        }
        let filled = fill >= config.fill_percent && (weight * 4 >= limit || fill >= 90);
        // A guest waits for room that only destage can make.
        let starving =
            self.starving && (weight + self.buffer.releasable_bytes()) * 2 >= self.buffer.bytes();
        let aged = age >= config.age_after && weight * 4 >= capacity;
        // They make stripes dead, some day a quarter of one.
        let frees = zeros * BLOCK as u64 * 4 >= capacity && age >= config.age_after;
        if frees && !aged {
            return Some(Reason::Entries);
        }
        if (weight > 0 && (filled || aged || starving)) || self.run_waits() {
            return Some(Reason::Partial);
        }
        let releasable = self.buffer.releasable_bytes() > 0;
        (releasable && (starving || fill >= 90)).then_some(Reason::Release)
    }
}

impl Destage {
    async fn run(self: Rc<Destage>) {
        let shared = &self.shared;
        let progress = shared.state.borrow().progress.clone();
        loop {
            let reason = progress
                .until(|| {
                    let mut state = shared.state.borrow_mut();
                    if state.ending {
                        return (self.on_their_way.get() == 0).then_some(Reason::End);
                    }
                    state.begin_run_if_due();
                    if self.on_their_way.get() >= state.config.destage.stripes_max {
                        return None;
                    }
                    state.stripe_wanted(self.on_their_way.get())
                })
                .await;
            let outcome = match reason {
                Reason::Release => self.release().await,
                Reason::Entries => self.commit_zeros().await,
                Reason::Run => self.begin_run_stripe().await,
                Reason::Full | Reason::Partial => self.begin_stripe().await,
                Reason::End => return self.end().await,
            };
            if let Err(GivenUp::NoSpace(reason)) = outcome {
                self.shortage(Some(reason));
                shared.executor.sleep(BACK_OFF).await;
            }
        }
    }

    /// Gives back all grants, also those whose answer was lost, and sees to it that the controller has taken them back.
    async fn end(&self) {
        let _turn = Turn::take(&self.asking, &self.freed).await;
        let mut grants: Vec<GrantedStripe> = self.stripes.take().into();
        grants.extend(self.reserve.take());
        loop {
            for grant in grants {
                self.return_grant(grant.stripe).await;
            }
            // What is asked for on the same lane is answered after that was read.
            let told = self.told.get();
            let ask = |request| HostMessage::Grant { request, told, stripes: 0, identities: 0 };
            let reply = self.shared.request(Class::Log, 0, ask, &[]).await;
            let ControllerMessage::Granted { stripes, .. } = reply.message else { break };
            grants = stripes.into_iter().filter(|grant| grant.stripe > told).collect();
            let Some(newest) = grants.iter().map(|grant| grant.stripe).max() else { break };
            self.told.set(newest);
        }
        let progress = {
            let mut state = self.shared.state.borrow_mut();
            state.ended = true;
            state.progress.clone()
        };
        progress.notify();
    }

    /// Begins a stripe, which goes on as a task of its own.
    async fn begin_stripe(self: &Rc<Destage>) -> Result<(), GivenUp> {
        let grant = self.grant().await?;
        // More than a stripe's: what is recognised takes no room in it.
        let bytes = 4 * grant.data_shards() * SHARD;
        self.shared.fingerprint_what_waits(bytes).await;
        let plan = self.plan(&grant);
        self.send(grant, plan).await
    }

    /// As [`begin_stripe`](Destage::begin_stripe), with pieces of the run alone. When there is no space, and the
    /// run frees some, they go into the stripe that is kept for it; a run that frees none is given up.
    async fn begin_run_stripe(self: &Rc<Destage>) -> Result<(), GivenUp> {
        let granted = self.grant().await;
        let pieces_left = self.shared.state.borrow_mut().draw_piece();
        let grant = match granted {
            Ok(grant) => grant,
            Err(_) if !pieces_left => return self.release().await,
            Err(given_up) => {
                if self.shared.state.borrow_mut().give_up_useless_run() {
                    return Err(given_up);
                }
                let kept = self.reserve.borrow_mut().take().filter(|grant| !self.is_lost(grant));
                kept.ok_or(given_up)?
            }
        };
        let plan = {
            let mut state = self.shared.state.borrow_mut();
            let mut pieces = state.take_pieces(grant.data_shards() * SHARD);
            plan::place_objects(&mut pieces, |piece| (piece.frame.len(), &mut piece.offset));
            let log = state.log_identity;
            let plan = Plan { items: Vec::new(), pieces, pins: BTreeSet::new(), log };
            state.take(&plan);
            plan
        };
        self.send(grant, plan).await
    }

    async fn send(self: &Rc<Destage>, grant: GrantedStripe, plan: Plan) -> Result<(), GivenUp> {
        if plan.items.iter().all(|item| item.frame.is_empty()) && plan.pieces.is_empty() {
            // Entries only (C5): no stripe is needed.
            self.stripes.borrow_mut().push_front(grant);
            return self.commit_entries(plan).await;
        }
        self.on_their_way.set(self.on_their_way.get() + 1);
        let destage = Rc::clone(self);
        self.shared.executor.spawn(Priority::Background, async move {
            let stripe = grant.stripe;
            let outcome = destage.stripe(&grant, plan).await;
            if let Err(given_up) = outcome {
                destage.shared.state.borrow_mut().stats.stripes_abandoned += 1;
                destage.return_grant(stripe).await;
                if let GivenUp::NoSpace(reason) = given_up {
                    destage.shortage(Some(reason));
                }
                destage.shared.executor.sleep(BACK_OFF).await;
            } else {
                destage.shortage(None);
            }
            destage.on_their_way.set(destage.on_their_way.get() - 1);
            let progress = destage.shared.state.borrow().progress.clone();
            progress.notify();
        });
        Ok(())
    }

    /// Commits zeros and discards, the oldest first, without a stripe.
    async fn commit_zeros(&self) -> Result<(), GivenUp> {
        let plan = {
            let mut state = self.shared.state.borrow_mut();
            let items = plan::choose_entries(&state.buffer);
            let log = state.log_identity;
            let plan = Plan { items, pieces: Vec::new(), pins: BTreeSet::new(), log };
            state.take(&plan);
            plan
        };
        self.commit_entries(plan).await
    }

    /// Chooses what the stripe holds, or only references that need none, and marks it.
    fn plan(&self, grant: &GrantedStripe) -> Plan {
        let capacity = grant.data_shards() * SHARD;
        let mut state = self.shared.state.borrow_mut();
        // A run that must come to its end has its stripe.
        let may_leave = !state.run_waits();
        let mut pieces = state.take_pieces(capacity);
        let objects: Vec<usize> = pieces.iter().map(|piece| piece.frame.len()).collect();
        let State { buffer, vdisks, index, map, .. } = &mut *state;
        let mut lookup = Lookup { vdisks, index, map, pins: BTreeSet::new() };
        let choice = plan::choose(buffer, grant.stripe, &objects, capacity, &mut lookup, may_leave);
        let pins = lookup.pins;
        match choice.offsets {
            Some(offsets) => {
                for (piece, offset) in pieces.iter_mut().zip(offsets) {
                    piece.offset = offset;
                }
            }
            None => state.return_pieces(std::mem::take(&mut pieces)),
        }
        let plan = Plan { items: choice.items, pieces, pins, log: state.log_identity };
        state.take(&plan);
        plan
    }

    /// The stripe's way from the plan to the map.
    async fn stripe(&self, grant: &GrantedStripe, plan: Plan) -> Result<(), GivenUp> {
        let leaves = self.hold_leaves(&plan).await;
        let packed = match leaves.faults.is_empty() {
            true => pack::pack(&self.shared, grant, &plan).await,
            false => None,
        };
        if is_planted(Planted::ReleaseBeforeCommit) {
            self.release_before_commit(&plan).await;
        }
        let written = match packed {
            Some(images) => {
                reached(Point::HostStripePacked);
                let segment = self.keep_in_flash(grant, &plan, &images);
                let written = self.write_shards(grant, images).await;
                self.wait_for_flash(segment).await;
                written
            }
            // A vdisk in it was forgotten, or a damaged frame or piece was found: the others go on.
            None => Err(GivenUp::Again),
        };
        let committed = match written {
            Ok(missing) => {
                reached(Point::HostShardsWritten);
                self.commit_stripe(grant, missing, &plan, &leaves).await
            }
            Err(given_up) => Err(given_up),
        };
        let mut state = self.shared.state.borrow_mut();
        state.unmark(&plan);
        if committed.is_err() {
            state.flash.forget(grant.stripe);
            state.mark(&plan, false);
        }
        self.let_leaves_go(&mut state, &plan, leaves);
        if committed.is_err() {
            state.return_pieces(plan.pieces);
        }
        state.progress.notify();
        committed
    }

    /// Gives flash the parts that hold anything. What it does not take is read from the pool when it is wanted.
    fn keep_in_flash(
        &self,
        grant: &GrantedStripe,
        plan: &Plan,
        images: &[pack::Image],
    ) -> Vec<Outcome<()>> {
        let items = plan.items.iter().map(|item| item.offset as usize + item.frame.len());
        let pieces = plan.pieces.iter().map(|piece| piece.offset as usize + piece.frame.len());
        let mut left = items.chain(pieces).max().unwrap_or(0).div_ceil(PART);
        let mut state = self.shared.state.borrow_mut();
        let mut segment = Vec::new();
        for (shard, (_, data)) in images.iter().enumerate().take(grant.data_shards()) {
            let parts = left.min(SHARD / PART);
            if parts == 0 || state.flash.is_empty() {
                break;
            }
            left -= parts;
            let first = (shard * (SHARD / PART)) as u8;
            match state.flash.put(grant.stripe, first, &data.slice(..parts * PART), 0) {
                Some(outcome) => {
                    state.stats.parts_destaged += parts as u64;
                    segment.push(outcome);
                }
                None => state.stats.parts_not_kept += parts as u64,
            }
        }
        segment
    }

    /// Flash should have the content before the map points there, but nothing depends on it (rule 3.4).
    async fn wait_for_flash(&self, segment: Vec<Outcome<()>>) {
        let all = async {
            for outcome in segment {
                outcome.wait().await;
                reached(Point::HostFlashKept);
            }
        };
        // A device that hangs is given up elsewhere; the stripe goes on.
        self.shared.executor.timeout(FLASH_WAIT, all).await;
    }

    /// A stripe with slots on drives that are in use.
    async fn grant(&self) -> Result<GrantedStripe, GivenUp> {
        loop {
            let next = self.stripes.borrow_mut().pop_front();
            let Some(grant) = next else {
                self.ask_grants().await?;
                continue;
            };
            if self.is_lost(&grant) {
                // Written now it would lack a shard from the beginning.
                self.return_grant(grant.stripe).await;
                continue;
            }
            if self.reserve.borrow().is_none() {
                *self.reserve.borrow_mut() = Some(grant);
                continue;
            }
            return Ok(grant);
        }
    }

    /// Whether a drive is lost that the stripe would be on.
    fn is_lost(&self, grant: &GrantedStripe) -> bool {
        let state = self.shared.state.borrow();
        grant.slots.iter().any(|place| state.lost_drives.contains(&place.drive))
    }

    async fn identity(&self) -> Result<StripeId, GivenUp> {
        loop {
            if let Some(identity) = self.identities.borrow_mut().pop_front() {
                return Ok(identity);
            }
            let asked = self.ask_grants().await;
            // Identities need no space.
            if self.identities.borrow().is_empty() {
                asked?;
            }
        }
    }

    /// Asks for the grants that are lacking, one task at a time: what an answer brings is newer than what was there,
    /// or its answer was lost. Commits without a stripe take identities alone: stripes beyond the stock would only
    /// keep their slots from others.
    async fn ask_grants(&self) -> Result<(), GivenUp> {
        let _turn = Turn::take(&self.asking, &self.freed).await;
        let told = self.told.get();
        let lacking = |there: usize| STOCK.saturating_sub(u16::try_from(there).unwrap_or(STOCK));
        let stripes = lacking(self.stripes.borrow().len());
        let identities = lacking(self.identities.borrow().len());
        let ask = |request| HostMessage::Grant { request, told, stripes, identities };
        let reply = self.shared.request(Class::Log, 0, ask, &[]).await;
        let ControllerMessage::Granted { stripes, identities, shortage, .. } = reply.message else {
            return Err(GivenUp::NoSpace(
                "the controller answers a grant with something else".into(),
            ));
        };
        reached(Point::HostGranted);
        let names = stripes.iter().map(|grant| grant.stripe).chain(identities.iter().copied());
        self.told.set(names.fold(told, Ord::max));
        let sound =
            |grant: &GrantedStripe| grant.slots.len() > PARITY_SHARDS && grant.stripe > told;
        self.stripes.borrow_mut().extend(stripes.into_iter().filter(sound));
        self.identities.borrow_mut().extend(identities.into_iter().filter(|name| *name > told));
        match self.stripes.borrow().is_empty() {
            false => Ok(()),
            true => Err(GivenUp::NoSpace(shortage.unwrap_or_else(|| "no slots are free".into()))),
        }
    }

    /// Gives a grant back; if the connection is away it ends with this incarnation.
    async fn return_grant(&self, stripe: StripeId) {
        let state = self.shared.state.borrow();
        if let Some(connection) = state.ready(Class::Log) {
            let message = encode_header(&HostMessage::ReturnGrant { stripes: vec![stripe] });
            // A grant whose return is lost ends with the incarnation.
            let _ = self.shared.links.send(connection, 0, &[message]);
        }
    }

    fn shortage(&self, reason: Option<String>) {
        let mut state = self.shared.state.borrow_mut();
        if let Some(reason) = reason.as_ref().filter(|_| state.stats.shortage.is_none()) {
            tracing::warn!(reason, "destage has no space: writes will stall when the log is full");
            state.events.push_back(Event::Shortage { reason: reason.clone() });
        }
        state.stats.shortage = reason;
    }
}

impl State {
    /// Takes the plan's content out of what is to be planned, until its stripe ended.
    fn take(&mut self, plan: &Plan) {
        self.mark(plan, true);
        plan.records().into_iter().for_each(|record| self.buffer.hold(record));
    }

    /// Takes the plan's content into a stripe, or gives it back.
    fn mark(&mut self, plan: &Plan, planned: bool) {
        for item in &plan.items {
            item.nodes().for_each(|node| self.buffer.set_planned(&node, planned));
        }
        if planned {
            for vdisk in plan.vdisks() {
                if let Some(vdisk) = self.vdisks.get_mut(&vdisk) {
                    vdisk.in_stripes += 1;
                }
            }
        }
    }

    /// The plan's stripe ended, one way or the other.
    fn unmark(&mut self, plan: &Plan) {
        plan.records().into_iter().for_each(|record| self.buffer.let_go(record));
        plan.pins.iter().for_each(|stripe| self.map.unpin(*stripe));
        for vdisk in plan.vdisks() {
            if let Some(vdisk) = self.vdisks.get_mut(&vdisk) {
                vdisk.in_stripes = vdisk.in_stripes.saturating_sub(1);
            }
        }
    }
}

impl Plan {
    /// The records with anything in it.
    fn records(&self) -> std::collections::BTreeSet<crate::buffer::RecordKey> {
        self.items.iter().map(|item| item.record).collect()
    }

    /// The vdisks with anything in it, in order.
    pub fn vdisks(&self) -> std::collections::BTreeSet<cleave_format::ids::VdiskId> {
        let items = self.items.iter().map(|item| item.vdisk);
        items.chain(self.pieces.iter().map(|piece| piece.vdisk)).collect()
    }
}
