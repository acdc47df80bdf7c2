//! Damage is looked for and mended while nobody needs what it struck: every committed stripe is read whole, again and
//! again, and what fails a check is written anew (C3, C16).
//!
//! The active controller does it, with one worker. *Suspects* come first: stripes of which a host said, or a read showed,
//! that a shard is damaged. Nobody's word counts but as a reason to look; suspects are bounded, each is in hand once, and
//! one that was looked at is not looked at again for a while. Then comes the *pass* over all stripes, in order of their
//! identities: slow enough to take most of [`PASS_MAX`], or, when an operator says so, as fast as guests let it.
//! How one stripe is looked at is [`verify`]'s to say.
//!
//! How far a pass is lies in the coordinator store ([`ScrubPass`]), written every [`SAVED`] while it moves: a controller
//! that is restarted, or takes over, goes on from there, and looks at the last minute's stripes twice. It counts the time that
//! a controller spent on the pass, not the calendar's. Whatever the record says, nothing but the scrub depends on it. Suspects
//! are kept in memory alone: who dies with them leaves them to the pass.

mod verify;

use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::node::Node;
use crate::notices::Notice;
use crate::rebuild::{LOOK, REST, REST_MAX};
use crate::state::State;
use cleave_coordinator::encoding::encode;
use cleave_coordinator::records::{ScrubFigures, ScrubPass, scrub_key};
use cleave_coordinator::{Outcome, StoreError, Transaction};
use cleave_format::ids::{DriveId, SlotIndex, StripeId};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Priority;
use cleave_runtime::sync::Signal;
use cleave_runtime::time::Moment;
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;
use verify::Verified;

/// A pass takes at most so long, while guests leave anything of the drives.
pub const PASS_MAX: Duration = Duration::from_secs(14 * 24 * 3600);
/// It is to take so long: the rest is for times in which it has to wait.
const PASS_AIM: Duration = Duration::from_secs(12 * 24 * 3600);
/// However few stripes there are, one is looked at this often.
const PACE_MAX: Duration = Duration::from_secs(3600);
/// How far the pass is is recorded this often.
const SAVED: Duration = Duration::from_secs(60);
/// The store is asked again after this when it did not answer.
const STORE_AGAIN: Duration = Duration::from_secs(5);
/// Suspects that wait at most; what comes beyond them is left to the pass.
const SUSPECTS_MAX: usize = 4096;
/// A suspect that was looked at is not looked at again for so long.
const CLEARED: Duration = Duration::from_secs(600);
/// Stripes that one message of a host may name.
pub(crate) const SUSPECTS_A_MESSAGE: usize = 64;

/// How far the scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// Whether this controller knows of the pass, and goes on with it.
    pub running: bool,
    /// An operator wants it over soon.
    pub hurried: bool,
    /// Passes that are over.
    pub passes: u64,
    /// What the present pass came upon until now.
    pub found: ScrubFigures,
    /// What the last pass that is over came upon.
    pub before: ScrubFigures,
    /// Suspects that wait.
    pub suspects: u64,
    /// Until the pass should be over, unless it is hurried.
    pub left: Option<Duration>,
}

/// Where damage was seen; none where a host saw it, which does not say.
type Place = Option<(DriveId, SlotIndex)>;

/// The pass under way.
struct Pass {
    record: ScrubPass,
    /// Its record's revision.
    revision: u64,
    /// When `record.spent_seconds` was right.
    counted: Moment,
    /// Stripes to look at next, and where to go on after them.
    page: VecDeque<StripeId>,
    more: Option<StripeId>,
    /// The next stripe's turn.
    next: Moment,
    /// When it was recorded last; none: it is to be at once.
    saved: Option<Moment>,
    unsaved: bool,
}

/// What an active controller knows of the scrub.
#[derive(Default)]
pub(crate) struct Scrub {
    suspects: BTreeMap<StripeId, Place>,
    /// Suspects that were looked at, and when.
    cleared: BTreeMap<StripeId, Moment>,
    signal: Signal,
    pass: Option<Pass>,
    /// An operator's word that was not followed yet.
    ordered: bool,
    /// The store did not answer: it is asked again then.
    wait: Option<Moment>,
    saving: bool,
}

/// What is to be done next.
#[derive(Clone, Copy)]
enum Work {
    Load,
    Suspect,
    Next,
}

impl Scrub {
    /// This controller is active no more, or anew.
    pub fn end(&mut self) {
        let signal = self.signal.clone();
        *self = Scrub { signal, ..Scrub::default() };
    }

    /// A shard of a stripe may be damaged.
    pub fn suspect(&mut self, stripe: StripeId, place: Place, now: Moment) {
        let cleared = self.cleared.get(&stripe).is_some_and(|at| now.since(*at) < CLEARED);
        if cleared || self.suspects.len() >= SUSPECTS_MAX {
            return;
        }
        let known = self.suspects.entry(stripe).or_insert(place);
        if *known != place {
            *known = None; // Wherever it lies.
        }
        self.signal.notify();
    }

    fn clear(&mut self, stripe: StripeId, now: Moment) {
        if self.cleared.len() >= SUSPECTS_MAX {
            self.cleared.retain(|_, at| now.since(*at) < CLEARED);
        }
        if self.cleared.len() < SUSPECTS_MAX {
            self.cleared.insert(stripe, now);
        }
    }

    /// How far it is.
    pub fn report(&self, now: Moment) -> ScrubReport {
        let suspects = self.suspects.len() as u64;
        let Some(pass) = &self.pass else {
            return ScrubReport { suspects, hurried: self.ordered, ..ScrubReport::default() };
        };
        let record = &pass.record;
        ScrubReport {
            running: true,
            hurried: record.hurried || self.ordered,
            passes: record.passes,
            found: record.found,
            before: record.before,
            suspects,
            left: (!record.hurried).then(|| PASS_AIM.saturating_sub(pass.spent(now))),
        }
    }
}

impl Pass {
    fn new(record: ScrubPass, revision: u64, now: Moment) -> Pass {
        let from = StripeId(record.from);
        Pass {
            record,
            revision,
            counted: now,
            page: VecDeque::new(),
            more: Some(from),
            next: now,
            saved: Some(now),
            unsaved: false,
        }
    }

    fn spent(&self, now: Moment) -> Duration {
        Duration::from_secs(self.record.spent_seconds) + now.since(self.counted)
    }

    /// Notes how long it took until now, in whole seconds.
    fn count(&mut self, now: Moment) {
        let whole = now.since(self.counted).as_secs();
        self.record.spent_seconds = self.record.spent_seconds.saturating_add(whole);
        self.counted = self.counted + Duration::from_secs(whole);
    }

    /// From one stripe to the next, when there are so many.
    fn pace(&self, stripes: u64, now: Moment) -> Duration {
        if self.record.hurried {
            return Duration::ZERO;
        }
        let rest = stripes.saturating_sub(self.record.found.looked).max(1);
        let left = PASS_AIM.saturating_sub(self.spent(now));
        Duration::from_secs_f64(left.as_secs_f64() / rest as f64).min(PACE_MAX)
    }

    /// The pass is over: the next one begins, by the calendar.
    fn end(&mut self, now: Moment) {
        let ScrubPass { passes, found, .. } = self.record;
        self.begin(ScrubPass { passes: passes + 1, before: found, ..ScrubPass::default() }, now);
    }

    /// It is given up for one that begins anew, and is to be over soon.
    fn hurry(&mut self, now: Moment) {
        let ScrubPass { passes, before, .. } = self.record;
        self.begin(ScrubPass { passes, before, hurried: true, ..ScrubPass::default() }, now);
    }

    fn begin(&mut self, record: ScrubPass, now: Moment) {
        (self.record, self.counted) = (record, now);
        (self.page, self.more) = (VecDeque::new(), Some(StripeId(0)));
        (self.next, self.saved, self.unsaved) = (now, None, true);
    }
}

impl State {
    fn scrub_due(&self) -> Option<(u64, Work)> {
        let term = self.rebuild.term();
        if !self.may_rebuild(term) {
            return None;
        }
        let (scrub, now) = (&self.scrub, self.executor.now());
        if !scrub.suspects.is_empty() {
            return Some((term, Work::Suspect));
        }
        // What lacks shards is in more danger than what may be damaged.
        if self.rebuild.is_running() {
            return None;
        }
        match &scrub.pass {
            None => scrub.wait.is_none_or(|at| at <= now).then_some((term, Work::Load)),
            Some(pass) => (scrub.ordered || pass.next <= now).then_some((term, Work::Next)),
        }
    }

    /// Called now and then: whether it is time.
    pub fn look_for_scrub(&mut self) {
        self.scrub.signal.notify();
    }

    /// An operator's word: looks at all stripes from the first one on, as fast as guests let it.
    pub fn scrub_now(&mut self) -> bool {
        let active = self.active.is_some();
        if active {
            self.scrub.ordered = true;
            self.scrub.signal.notify();
        }
        active
    }
}

/// Looks for damage for as long as the process lives.
pub(crate) async fn run(node: Node) {
    let signal = node.state().scrub.signal.clone();
    loop {
        let (term, work) = signal.until(|| node.state().scrub_due()).await;
        let guests = node.state().rebuild.guests;
        let began = node.executor().now();
        // What ends it early is looked at above.
        let _ = match work {
            Work::Load => node.load_pass(term).await,
            Work::Suspect => node.look_at_suspect(term).await,
            Work::Next => node.look_at_next(term).await,
        };
        let took = node.executor().now().since(began);
        let quiet = node.state().rebuild.guests == guests;
        match quiet {
            true => node.executor().yield_now().await,
            false => node.executor().sleep((took * REST).min(REST_MAX)).await,
        }
    }
}

impl Node {
    /// What was recorded of the pass.
    async fn load_pass(&self, term: u64) -> Option<()> {
        let (store, datanode) = self.store();
        let key = scrub_key(u64::from(datanode.0));
        let found = store.get_record::<ScrubPass>(&key).await;
        let mut state = self.state_mut();
        if !state.may_rebuild(term) {
            return None;
        }
        let now = state.executor.now();
        match found {
            Ok(found) => {
                let (record, revision) = found.unwrap_or_default();
                state.scrub.wait = None;
                state.scrub.pass = Some(Pass::new(record, revision, now));
            }
            Err(error) => {
                tracing::warn!("how far the scrub is cannot be read from the store: {error}");
                state.scrub.wait = Some(now + STORE_AGAIN);
            }
        }
        Some(())
    }

    async fn look_at_suspect(&self, term: u64) -> Option<()> {
        let (stripe, place) = self.state_mut().scrub.suspects.pop_first()?;
        let verified = self.verify_stripe(term, stripe, place).await?;
        if verified == Verified::Again {
            self.state_mut().scrub.suspects.insert(stripe, None);
            self.executor().sleep(LOOK).await;
            return Some(());
        }
        let now = self.executor().now();
        self.state_mut().scrub.clear(stripe, now);
        Some(())
    }

    /// The next stripe of the pass.
    async fn look_at_next(&self, term: u64) -> Option<()> {
        let (stripe, more) = {
            let mut state = self.state_mut();
            let now = state.executor.now();
            let scrub = &mut state.scrub;
            let pass = scrub.pass.as_mut()?;
            if std::mem::take(&mut scrub.ordered) {
                pass.hurry(now);
                tracing::info!("all stripes are looked at now, as an operator said");
            }
            (pass.page.front().copied(), pass.more)
        };
        match (stripe, more) {
            (Some(stripe), _) => {
                let verified = self.verify_stripe(term, stripe, None).await?;
                if verified == Verified::Again {
                    self.executor().sleep(LOOK).await;
                    return Some(());
                }
                self.looked_at(stripe, &verified);
            }
            (None, Some(from)) => {
                let asked = CatalogRequest::Committed(from);
                let CatalogReply::Committed(page, next) = self.ask_catalog(term, asked).await?
                else {
                    return None;
                };
                let mut state = self.state_mut();
                let pass = state.scrub.pass.as_mut()?;
                (pass.page, pass.more) = (page.into(), next);
            }
            (None, None) => self.end_pass(),
        }
        self.save_pass(term);
        Some(())
    }

    fn looked_at(&self, stripe: StripeId, verified: &Verified) {
        let mut state = self.state_mut();
        let (stripes, now) = (state.stripes, state.executor.now());
        let Some(pass) = &mut state.scrub.pass else { return };
        if pass.page.front() == Some(&stripe) {
            pass.page.pop_front();
        }
        let record = &mut pass.record;
        record.from = stripe.0 + 1;
        match verified {
            Verified::Gone | Verified::Again => return,
            Verified::Sound => {}
            Verified::Damaged { found, repaired } => {
                record.found.damaged += found;
                record.found.repaired += repaired;
                record.found.unrepairable += u64::from(repaired < found || *found == 0);
            }
        }
        record.found.looked += 1;
        pass.count(now);
        pass.next = now + pass.pace(stripes, now);
        pass.unsaved = true;
    }

    fn end_pass(&self) {
        let mut state = self.state_mut();
        let (stripes, now) = (state.stripes, state.executor.now());
        let Some(pass) = &mut state.scrub.pass else { return };
        let (found, ordered) = (pass.record.found, pass.record.hurried);
        let ScrubFigures { looked, damaged, repaired, unrepairable } = found;
        tracing::info!(
            "all {looked} stripes were looked at: {damaged} shards were damaged, {repaired} written anew; {unrepairable} stripes have damage that could not be mended"
        );
        pass.end(now);
        pass.next = now + pass.pace(stripes, now);
        // In a small pool a pass takes hours: that nothing is damaged is no news.
        if ordered || damaged + unrepairable > 0 {
            state.notices.tell(Notice::Scrubbed(found));
        }
    }

    /// Records how far the pass is, when it is time; nobody waits for it.
    fn save_pass(&self, term: u64) {
        let mut state = self.state_mut();
        let now = state.executor.now();
        let scrub = &mut state.scrub;
        let Some(pass) = &mut scrub.pass else { return };
        let early = pass.saved.is_some_and(|at| now.since(at) < SAVED);
        if scrub.saving || !pass.unsaved || early {
            return;
        }
        scrub.saving = true;
        (pass.saved, pass.unsaved) = (Some(now), false);
        let (record, revision) = (encode(&pass.record), pass.revision);
        drop(state);
        let node = self.clone();
        self.executor().spawn(Priority::Background, async move {
            let (store, datanode) = node.store();
            let key = scrub_key(u64::from(datanode.0));
            let transaction = Transaction::new().require(&*key, revision).put(&*key, record);
            let saved = store.transact(transaction).await;
            reached(Point::ScrubRecorded);
            let mut state = node.state_mut();
            if state.rebuild.term() != term {
                return; // What is being recorded now is another time's.
            }
            let scrub = &mut state.scrub;
            scrub.saving = false;
            match (saved, &mut scrub.pass) {
                (Ok(Outcome::Committed(revision)), Some(pass)) => pass.revision = revision,
                // Its own, after an unknown outcome, or another controller's: what it says now counts.
                (Ok(Outcome::Conflict) | Err(StoreError::Unknown), _) => scrub.pass = None,
                (Err(error), Some(pass)) => {
                    tracing::debug!("how far the scrub is was not recorded: {error}");
                    pass.unsaved = true;
                }
                (_, None) => {}
            }
        });
    }
}
