//! Shards that are gone are written anew, into free slots of other drives (C16): when a drive is lost, and for shards that
//! a commit lacked.
//!
//! The active controller does it, in *passes*: it looks at every stripe of the catalog, page by page, and queues those that
//! lack shards; then workers rebuild them, the most endangered first. A drive that is lost meanwhile ends the pass, so
//! that the next one goes by what is endangered now; a commit that lacks a shard only leads to another
//! pass soon. How one stripe is rebuilt is [`stripe`]'s to say.
//!
//! Nothing of a pass is kept: what was swapped is in the catalog, what was not is found by the next pass, of this process, its
//! successor, or the controller that takes over. Loans that an earlier time left are ended first; not before it is
//! known what of the other controller may be on its way to their slots (C15).
//!
//! Guests go first: while they read or write shards one worker is at it, and rests three times as long as a stripe took.

pub(crate) mod stripe;

use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::drives::DriveEvent;
use crate::grants::Grants;
use crate::node::Node;
use crate::state::State;
use bytes::Bytes;
use cleave_format::ids::{DriveId, Position, StripeId};
use cleave_runtime::executor::Priority;
use cleave_runtime::sync::{Outcome, Promise, Signal, promise};
use cleave_runtime::time::Moment;
use cleave_wire::ShardFault;
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;
use stripe::Rebuilt;

/// Numbers of requests to drives that are the rebuild's own, not hosts', have this bit.
const OWN: u64 = 1 << 63;
/// Stripes that a pass queues; the most endangered ones, where there are more.
const QUEUE_MAX: usize = 1 << 18;
/// Stripes that are rebuilt at once while guests are quiet.
const WORKERS: usize = 4;
/// While they are not: rests between stripes, for each time that a stripe took.
pub(crate) const REST: u32 = 3;
/// The longest rest.
pub(crate) const REST_MAX: Duration = Duration::from_secs(2);
/// A worker looks this often whether guests became quiet.
pub(crate) const LOOK: Duration = Duration::from_millis(100);
/// Commits that lack shards are gathered for so long: a drive without space makes many of them.
const SOON: Duration = Duration::from_millis(500);
/// What could not be rebuilt, for lack of a drive or of space, is tried again after this.
const AGAIN: Duration = Duration::from_secs(20);

/// How far the rebuild is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RebuildReport {
    /// Whether stripes are looked for, or rebuilt.
    pub running: bool,
    /// Stripes that lack shards and are to be rebuilt, as far as the present pass knows.
    pub waiting: u64,
    /// Stripes that the present pass rebuilt, or the last one.
    pub done: u64,
    /// Those that lack shards for which no other drive has a free slot.
    pub without_room: u64,
    /// Those of which fewer shards could be read than it takes.
    pub unreadable: u64,
    /// How long the rest will take, by how long it took until now.
    pub left: Option<Duration>,
}

/// What became of a request to a drive.
pub(crate) type Done = Result<Option<Bytes>, ShardFault>;

/// A request of the rebuild that is on its way to a drive.
struct OwnRequest {
    /// The loan of a write.
    loan: Option<StripeId>,
    done: Promise<Done>,
}

/// What is waited for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Until {
    Mirrored,
    Synced,
}

/// What an active controller knows of shards that are to be written anew.
#[derive(Default)]
pub(crate) struct Rebuild {
    /// Counts the times that this controller was active: what began in another one does nothing more.
    term: u64,
    /// There may be stripes that lack shards since the last look began.
    stale: bool,
    /// A drive was lost since: what is queued is not by what is endangered now.
    worse: bool,
    /// Another pass is made from then on, whatever happens.
    again: Option<Moment>,
    signal: Signal,
    requests: Slab<OwnRequest>,
    /// Who waits until a position is mirrored, or until the catalogs that count have synced it.
    awaited: Vec<(Position, Until, Promise<()>)>,
    /// Shards that were read and written for hosts.
    pub guests: u64,
    report: RebuildReport,
    /// Since when the pass rebuilds.
    began: Option<Moment>,
}

impl Rebuild {
    /// Which time as the active controller it is.
    pub fn term(&self) -> u64 {
        self.term
    }

    /// Whether stripes that lack shards are looked for, or rebuilt.
    pub fn is_running(&self) -> bool {
        self.report.running
    }

    /// This controller is active.
    pub fn begin(&mut self) {
        self.term += 1;
        self.look();
    }

    /// And is so no more; its drives are idle.
    pub fn end(&mut self) {
        self.term += 1;
        (self.stale, self.worse) = (false, false);
        self.again = None;
        self.report = RebuildReport::default();
        self.began = None;
        self.requests.clear();
        self.awaited.clear();
    }

    /// There may be stripes that lack shards; a pass that is under way ends.
    pub fn look(&mut self) {
        (self.stale, self.worse) = (true, true);
        self.signal.notify();
    }

    /// There is a stripe that lacks a shard.
    pub fn look_soon(&mut self, now: Moment) {
        self.look_at(now + SOON);
    }

    fn look_at(&mut self, moment: Moment) {
        self.again = Some(self.again.map_or(moment, |again| again.min(moment)));
    }

    /// Wakes who waits for what is mirrored now, and synced by the catalogs. True when there was anybody.
    pub fn wake(&mut self, mirrored: Position, synced: Position) -> bool {
        let reached = |position: Position, until: Until| match until {
            Until::Mirrored => position <= mirrored,
            Until::Synced => position <= synced,
        };
        let mut any = false;
        for (.., promise) in self.awaited.extract_if(.., |awaited| reached(awaited.0, awaited.1)) {
            promise.fulfil(());
            any = true;
        }
        any
    }

    /// Takes what happened to a request of its own; gives what is others'.
    pub fn take_event(&mut self, event: DriveEvent, grants: &mut Grants) -> Option<DriveEvent> {
        let (number, done) = match event {
            DriveEvent::Written { number, result } if number & OWN != 0 => {
                (number, result.map(|()| None))
            }
            DriveEvent::Read { number, result } if number & OWN != 0 => (number, result.map(Some)),
            other => return Some(other),
        };
        let request = self.requests.remove((number & !OWN) as usize);
        if let Some(loan) = request.loan {
            grants.end_write(loan);
        }
        request.done.fulfil(done);
        None
    }

    /// How far it is, at this moment.
    pub fn report(&self, now: Moment) -> RebuildReport {
        let left = self.began.filter(|_| self.report.done > 0 && self.report.waiting > 0);
        let left = left.map(|began| {
            let each = now.since(began).as_secs_f64() / self.report.done as f64;
            // Far more than any pool takes, and a number of seconds.
            Duration::from_secs_f64((each * self.report.waiting as f64).min(1e9))
        });
        RebuildReport { left, ..self.report }
    }
}

impl State {
    /// Whether what began in this time as the active controller may go on.
    pub(crate) fn may_rebuild(&self, term: u64) -> bool {
        let over = self.stopping || self.leaving || self.unheard || self.fatal.is_some();
        self.rebuild.term == term && self.active.is_some() && self.held.is_some() && !over
    }

    /// The present time, when there is something to look for.
    fn rebuild_due(&self) -> Option<u64> {
        let term = self.rebuild.term;
        (self.rebuild.stale && self.may_rebuild(term)).then_some(term)
    }

    /// Called now and then: what could not be done may be possible by now.
    pub fn look_for_rebuild(&mut self) {
        let now = self.executor.now();
        if self.rebuild.again.take_if(|again| *again <= now).is_some() {
            self.rebuild.stale = true;
        }
        if self.rebuild.stale {
            self.rebuild.signal.notify();
        }
    }

    /// An operator's word: looks for stripes that lack shards now.
    pub fn rebuild_now(&mut self) -> bool {
        let active = self.active.is_some();
        if active {
            self.rebuild.look();
        }
        active
    }

    /// When a position is mirrored; nothing when this controller is not active any more.
    fn when_mirrored(&mut self, position: Position) -> Outcome<()> {
        self.when(position, Until::Mirrored)
    }

    /// When the catalogs have a position, those of which one may be all that is left should the log be lost (C7).
    fn when_synced(&mut self, position: Position) -> Outcome<()> {
        self.when(position, Until::Synced)
    }

    fn when(&mut self, position: Position, until: Until) -> Outcome<()> {
        let (kept, outcome) = promise();
        self.rebuild.awaited.push((position, until, kept));
        outcome
    }
}

/// What the workers of a pass share.
struct Pass {
    term: u64,
    /// The most endangered first.
    queue: RefCell<BTreeSet<(Reverse<u8>, StripeId)>>,
    workers: Cell<usize>,
    over: Signal,
}

/// Rebuilds whatever is to be rebuilt, for as long as the process lives.
pub(crate) async fn run(node: Node) {
    let signal = node.state().rebuild.signal.clone();
    loop {
        let term = signal.until(|| node.state().rebuild_due()).await;
        // What ends it early is looked at above.
        let _ = node.rebuild_pass(term).await;
    }
}

impl Node {
    /// Ends loans that nobody uses.
    fn end_old_loans(&self) {
        let mut state = self.state_mut();
        let Some(active) = &mut state.active else { return };
        for loan in active.grants.loans() {
            active.grants.end_when_idle(loan);
        }
    }

    pub(crate) async fn ask_catalog(
        &self,
        term: u64,
        request: CatalogRequest,
    ) -> Option<CatalogReply> {
        let asked = {
            let mut state = self.state_mut();
            state.may_rebuild(term).then(|| state.catalog.ask_flow(request))?
        };
        let reply = asked.wait().await?;
        self.state().may_rebuild(term).then_some(reply)
    }

    /// One pass; nothing when this controller is not active any more.
    async fn rebuild_pass(&self, term: u64) -> Option<()> {
        self.end_old_loans();
        let (lost, mirrored): (Vec<DriveId>, _) = {
            let mut state = self.state_mut();
            let rebuild = &mut state.rebuild;
            (rebuild.stale, rebuild.worse) = (false, false);
            rebuild.report = RebuildReport { running: true, ..RebuildReport::default() };
            let last = Position(state.held.as_ref()?.log.next().0 - 1);
            (state.active.as_ref()?.drives.lost(), state.when_mirrored(last))
        };
        // Commits that were decided before a drive was lost, or without one of their shards, are in the catalog by then.
        self.turn();
        mirrored.wait().await?;
        let mut queue = BTreeSet::new();
        let (mut from, mut left_out) = (Some(StripeId(0)), false);
        while let Some(first) = from {
            let asked = CatalogRequest::Endangered { lost: lost.clone(), from: first };
            let Some(CatalogReply::Endangered((found, next))) = self.ask_catalog(term, asked).await
            else {
                return None;
            };
            for (stripe, lacking) in found {
                queue.insert((Reverse(lacking), stripe));
                left_out |= queue.len() > QUEUE_MAX && queue.pop_last().is_some();
            }
            from = next;
        }
        let count = queue.len();
        if count > 0 {
            tracing::info!("rebuilding {count} stripes that lack shards; lost drives: {lost:?}");
        }
        let pass = Rc::new(Pass {
            term,
            queue: RefCell::new(queue),
            workers: Cell::new(WORKERS),
            over: Signal::new(),
        });
        {
            let mut state = self.state_mut();
            let now = state.executor.now();
            state.rebuild.report.waiting = count as u64;
            state.rebuild.began = Some(now);
        }
        for number in 0..WORKERS {
            let (node, pass) = (self.clone(), Rc::clone(&pass));
            self.executor().spawn(Priority::Background, async move {
                let _ = node.work(&pass, number).await;
                pass.workers.set(pass.workers.get() - 1);
                pass.over.notify();
            });
        }
        pass.over.until(|| (pass.workers.get() == 0).then_some(())).await;
        let mut state = self.state_mut();
        if !state.may_rebuild(term) {
            return None;
        }
        let again = state.executor.now() + AGAIN;
        let rebuild = &mut state.rebuild;
        rebuild.stale |= left_out;
        (rebuild.report.running, rebuild.began) = (false, None);
        let RebuildReport { done, without_room, unreadable, .. } = rebuild.report;
        if without_room + unreadable > 0 {
            rebuild.look_at(again);
        }
        if done > 0 {
            tracing::info!(
                "rebuilt {done} stripes; {without_room} lack a drive with a free slot, {unreadable} cannot be read"
            );
        }
        state.damage_stale = true;
        Some(())
    }

    /// One worker of a pass. All but the first wait while guests are at it.
    async fn work(&self, pass: &Pass, number: usize) -> Option<()> {
        let mut guests = self.state().rebuild.guests;
        loop {
            if !self.state().may_rebuild(pass.term) || self.state().rebuild.worse {
                return None; // Others may be more endangered by now.
            }
            if pass.queue.borrow().is_empty() {
                return Some(());
            }
            let seen = std::mem::replace(&mut guests, self.state().rebuild.guests);
            if number > 0 && seen != guests {
                self.executor().sleep(LOOK).await;
                continue;
            }
            let Some((lacking, stripe)) = pass.queue.borrow_mut().pop_first() else { continue };
            let began = self.executor().now();
            let outcome = self.rebuild_stripe(pass.term, stripe, None).await?;
            {
                let mut state = self.state_mut();
                let report = &mut state.rebuild.report;
                report.waiting = report.waiting.saturating_sub(1);
                match outcome {
                    Rebuilt::Whole => report.done += 1,
                    Rebuilt::Partly => report.without_room += 1,
                    Rebuilt::Unreadable => report.unreadable += 1,
                    Rebuilt::Again => {
                        pass.queue.borrow_mut().insert((lacking, stripe));
                        report.waiting += 1;
                    }
                }
            }
            let took = self.executor().now().since(began);
            let quiet = self.state().rebuild.guests == guests;
            match quiet {
                true => self.executor().yield_now().await,
                false => self.executor().sleep((took * REST).min(REST_MAX)).await,
            }
            if outcome == Rebuilt::Again {
                self.executor().sleep(LOOK).await;
            }
        }
    }
}
