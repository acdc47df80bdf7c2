//! A controller: brought up, watched, reset when it must be, shut down.
//!
//! One core owns it and calls [`Controller::turn`] now and then; queue pairs work on any core. All
//! that takes more than one step is a future of this module, which makes progress as turns come:
//!
//! | Flow | File |
//! | --- | --- |
//! | from power-on to namespaces and queues (Base 3.5.1) | `bring_up.rs` |
//! | stop, abort what is outstanding, bring up again; give up | `recover.rs` |
//! | admin commands and asynchronous events | `admin.rs` |
//! | logs and features | `inspect.rs` |
//!
//! Invariants: while the controller may reach memory, nothing that it was told of is freed; queues
//! are created again only when their pairs have let go of everything. Whatever a device says is
//! bounded and checked; what cannot be leads to a reset, and three resets in a row that do not
//! bring it back end in "gone".
//!
//! A crash leaves the device enabled with memory that the kernel takes from it when the process's
//! VFIO files close; the next start resets it.

mod admin;
mod bring_up;
mod inspect;
mod recover;
#[cfg(test)]
mod tests;

use crate::dma::DmaBuffer;
use crate::error::Error;
use crate::namespace::Namespace;
use crate::queue::{PairControl, PairRings, PairState, Phase, SLOTS_MAX, SglSupport, Shared};
use crate::registers::Registers;
use crate::spec::event::AsynchronousEvent;
use crate::spec::identify::ControllerIdentity;
use crate::spec::registers::{CONFIGURATION, STATUS};
use crate::spec::registers::{Capabilities, Configuration, ControllerStatus};
use crate::transport::Transport;
use admin::Pending;
use cleave_runtime::sync::Signal;
use cleave_runtime::time::{Clock, Moment};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// Events that nobody took; older ones are dropped.
const EVENTS_MAX: usize = 64;
/// Completion queues are longer than their submission queues, and at least this long where the
/// controller allows, so that it must seldom be told of taken entries.
const COMPLETIONS_MIN: u32 = 64;
/// How often the status register is looked at: reading it costs a trip to the device.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);

/// How a controller is driven.
#[derive(Clone, Debug)]
pub struct ControllerOptions {
    /// I/O queue pairs to ask for.
    pub pairs: u16,
    /// After this an I/O command is aborted, and after it again the controller reset.
    pub io_timeout: Duration,
    /// After this an admin command leads to a reset.
    pub admin_timeout: Duration,
    /// Namespaces that are looked at.
    pub namespaces: usize,
}

impl Default for ControllerOptions {
    fn default() -> ControllerOptions {
        ControllerOptions {
            pairs: 16,
            io_timeout: Duration::from_secs(8),
            admin_timeout: Duration::from_secs(20),
            namespaces: 1024,
        }
    }
}

/// What happened to a controller.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControllerEvent {
    /// It reported something; health and namespaces were read again where that is what it said.
    Reported(AsynchronousEvent),
    /// It was reset, for this reason; what was outstanding was aborted.
    Reset(String),
    /// It is given up, for this reason.
    Gone(String),
}

impl fmt::Display for ControllerEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ControllerEvent::Reported(event) => write!(f, "it reports {:?}", event.kind()),
            ControllerEvent::Reset(why) => write!(f, "it was reset: {why}"),
            ControllerEvent::Gone(why) => write!(f, "it is given up: {why}"),
        }
    }
}

/// See the module's page.
pub struct Controller {
    inner: Rc<Inner>,
    /// What runs by itself: recovery, aborts, events, queues of pairs that left.
    keeper: RefCell<Pin<Box<dyn Future<Output = ()>>>>,
    /// A flow is under way.
    working: Rc<Cell<bool>>,
}

/// A queue pair as the admin side knows it.
struct PairRecord {
    entries: u16,
    completions: u16,
    submission: u64,
    completion: u64,
    vector: Option<u16>,
    control: Arc<PairControl>,
}

struct Inner {
    transport: Arc<dyn Transport>,
    clock: Rc<dyn Clock>,
    options: ControllerOptions,
    shared: Arc<Shared>,
    admin: RefCell<Option<crate::queue::Channel<Pending>>>,
    pairs: RefCell<BTreeMap<u16, PairRecord>>,
    facts: RefCell<Facts>,
    /// Events that were reported and not yet looked into.
    reported: RefCell<VecDeque<AsynchronousEvent>>,
    events: RefCell<VecDeque<ControllerEvent>>,
    /// Event requests to send.
    requests_missing: Cell<u16>,
    /// Why the controller must be reset.
    fault: RefCell<Option<String>>,
    /// Brought up once: from then on the keeper looks after it.
    started: Cell<bool>,
    /// Commands that the controller was asked to abort.
    aborts: Cell<u64>,
    /// It may still reach memory, and nothing more can be done about it.
    given_up: Cell<bool>,
    /// Notified each turn.
    ticks: Signal,
    looked: Cell<Moment>,
}

/// What bring-up found out.
#[derive(Default)]
struct Facts {
    identity: Option<ControllerIdentity>,
    namespaces: BTreeMap<u32, Namespace>,
    refused: BTreeMap<u32, String>,
    pairs: u16,
    entries_max: u32,
    stride: u32,
    page: u64,
    transfer_max: u64,
}

impl Controller {
    /// Prepares to drive a controller; nothing is sent to it before [`start`](Controller::start).
    pub fn new(
        transport: Arc<dyn Transport>,
        clock: Rc<dyn Clock>,
        options: ControllerOptions,
    ) -> Controller {
        let inner = Rc::new(Inner {
            shared: Arc::new(Shared::new(Arc::clone(&transport))),
            transport,
            looked: Cell::new(clock.now()),
            clock,
            options,
            admin: RefCell::default(),
            pairs: RefCell::default(),
            facts: RefCell::default(),
            reported: RefCell::default(),
            events: RefCell::default(),
            requests_missing: Cell::new(0),
            fault: RefCell::default(),
            started: Cell::new(false),
            aborts: Cell::new(0),
            given_up: Cell::new(false),
            ticks: Signal::new(),
        });
        let working = Rc::new(Cell::new(false));
        let keeper = recover::keep(Rc::clone(&inner), Rc::clone(&working));
        Controller { inner, keeper: RefCell::new(Box::pin(keeper)), working }
    }

    /// Brings the controller up: afterwards namespaces are known and queue pairs can be made.
    /// Progress needs [`turn`](Controller::turn) to be called meanwhile.
    ///
    /// # Errors
    /// The controller does not come up, or cannot be driven.
    pub async fn start(&self) -> Result<(), Error> {
        self.inner.disable().await?;
        let brought_up = self.inner.unless_faulty(self.inner.bring_up()).await;
        let why = || self.inner.fault.borrow_mut().take().unwrap_or_default();
        brought_up.unwrap_or_else(|| Err(Error::Failed(why())))?;
        self.inner.started.set(true);
        Ok(())
    }

    /// Takes admin completions, watches the controller, and goes on with what is under way. To be
    /// called often by the owning core: it is cheap when there is nothing to do. True when there was
    /// something.
    pub fn turn(&self) -> bool {
        let any = self.inner.poll();
        if self.working.get() || (self.inner.started.get() && self.inner.has_work()) {
            let mut context = Context::from_waker(Waker::noop());
            // The keeper never ends.
            let _ = self.keeper.borrow_mut().as_mut().poll(&mut context);
        }
        any || self.working.get()
    }

    /// Runs a future of this controller to its end, with turns and `idle` in between: for programs
    /// without a reactor.
    pub fn run<T>(&self, future: impl Future<Output = T>, mut idle: impl FnMut()) -> T {
        let mut future = pin!(future);
        loop {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(value) = future.as_mut().poll(&mut context) {
                return value;
            }
            self.turn();
            idle();
        }
    }

    /// What the controller says of itself; `None` before it was brought up.
    pub fn identity(&self) -> Option<ControllerIdentity> {
        self.inner.facts.borrow().identity.clone()
    }

    /// Which controller this is.
    pub fn name(&self) -> String {
        self.inner.transport.name().to_owned()
    }

    /// Active namespaces that can be used, by number.
    pub fn namespaces(&self) -> Vec<Namespace> {
        self.inner.facts.borrow().namespaces.values().copied().collect()
    }

    /// An active namespace that can be used.
    pub fn namespace(&self, number: u32) -> Option<Namespace> {
        self.inner.facts.borrow().namespaces.get(&number).copied()
    }

    /// Active namespaces that cannot be used, and why.
    pub fn refused_namespaces(&self) -> Vec<(u32, String)> {
        let facts = self.inner.facts.borrow();
        facts.refused.iter().map(|(number, why)| (*number, why.clone())).collect()
    }

    /// I/O queue pairs that the controller gives.
    pub fn pairs_max(&self) -> u16 {
        self.inner.facts.borrow().pairs
    }

    /// What happened since this was asked last.
    pub fn take_events(&self) -> Vec<ControllerEvent> {
        self.inner.events.borrow_mut().drain(..).collect()
    }

    /// How memory for requests is allocated.
    pub fn transport(&self) -> &Arc<dyn Transport> {
        &self.inner.transport
    }

    /// Whether requests are taken.
    pub fn is_live(&self) -> bool {
        self.inner.shared.phase().state == PairState::Live
    }

    /// Resets so far: what was written and not flushed before one may be lost.
    pub fn resets(&self) -> u32 {
        self.inner.shared.phase().resets
    }

    /// Commands that were out of time, and that the controller was asked to abort.
    pub fn aborts(&self) -> u64 {
        self.inner.aborts.get()
    }

    /// Whether something is under way that only turns bring further, and no interrupt announces: a
    /// reset, an abort, the reading of a log.
    pub fn is_working(&self) -> bool {
        self.working.get() && !self.inner.given_up.get()
    }

    /// Whether the controller was given up.
    pub fn is_gone(&self) -> bool {
        self.inner.shared.phase().state == PairState::Gone
    }

    /// Whether it can be neither stopped nor kept from memory: what it was told of is never freed.
    pub fn is_given_up(&self) -> bool {
        self.inner.given_up.get()
    }

    /// Whether the device answers at all: one read of a register.
    pub fn answers(&self) -> bool {
        !self.is_gone() && !self.inner.status().is_absent()
    }

    /// Makes the controller be reset; what is outstanding is completed as aborted.
    pub fn reset(&self, why: &str) {
        self.inner.fail(why.to_owned());
    }

    /// Creates the queues of a pair with up to `depth` commands outstanding; fewer when the
    /// controller takes fewer. The pair itself is made on the core that uses it.
    ///
    /// # Errors
    /// No queue is left, or the controller refuses.
    pub async fn create_pair(&self, depth: u16) -> Result<PairRings, Error> {
        self.inner.create_pair(depth).await
    }

    /// Tells the controller that power may go, and stops it (Base 3.6.1). Requests that are
    /// outstanding are lost; flush before.
    ///
    /// # Errors
    /// The controller does not say in time that it is ready for that; it is stopped all the same.
    pub async fn shut_down(&self) -> Result<(), Error> {
        self.inner.shut_down().await
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let inner = &self.inner;
        let phase = inner.shared.phase();
        if phase.state == PairState::Gone {
            return;
        }
        inner.registers().write(CONFIGURATION, inner.configuration().disabled().0);
        if inner.transport.allow_dma(false).is_ok() {
            inner.shared.set_phase(Phase { state: PairState::Gone, resets: phase.resets + 1 });
        } else {
            // The device may still write: what it was told of is never freed.
            inner.shared.set_phase(Phase { state: PairState::Stopping, resets: phase.resets + 1 });
            std::mem::forget(inner.admin.borrow_mut().take());
        }
    }
}

impl Inner {
    fn registers(&self) -> &dyn Registers {
        self.transport.registers()
    }

    fn status(&self) -> ControllerStatus {
        ControllerStatus(self.registers().read(STATUS))
    }

    fn configuration(&self) -> Configuration {
        Configuration(self.registers().read(CONFIGURATION))
    }

    fn capabilities(&self) -> Result<Capabilities, Error> {
        if self.status().is_absent() {
            return Err(Error::Absent);
        }
        let word =
            crate::registers::read_u64(self.registers(), crate::spec::registers::CAPABILITIES);
        if word == u64::MAX { Err(Error::Absent) } else { Ok(Capabilities(word)) }
    }

    /// Notes that the controller must be reset.
    fn fail(&self, why: String) {
        self.fault.borrow_mut().get_or_insert(why);
    }

    fn tell(&self, event: ControllerEvent) {
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(event);
    }

    /// Takes completions, looks at the controller, wakes what waits.
    fn poll(&self) -> bool {
        let any = self.poll_admin();
        let now = self.clock.now();
        let live = self.shared.phase().state == PairState::Live;
        if live && now.since(self.looked.get()) >= STATUS_INTERVAL {
            self.looked.set(now);
            let status = self.status();
            if status.is_absent() {
                self.fail("its registers read as all ones".to_owned());
            } else if status.is_fatal() {
                self.fail("it reports a fatal error".to_owned());
            } else if !status.is_ready() {
                self.fail("it is not ready any more".to_owned());
            }
        }
        self.ticks.notify();
        any
    }

    async fn create_pair(&self, depth: u16) -> Result<PairRings, Error> {
        let phase = self.shared.phase();
        match phase.state {
            PairState::Live => {}
            PairState::Gone => return Err(Error::Absent),
            _ => return Err(Error::Aborted),
        }
        let (queue, rings) = {
            let facts = self.facts.borrow();
            let pairs = self.pairs.borrow();
            let queue = (1..=facts.pairs).find(|queue| !pairs.contains_key(queue));
            let queue = queue.ok_or_else(|| {
                Error::Unsupported(format!("all of its {} queue pairs are in use", facts.pairs))
            })?;
            drop(pairs);
            (queue, self.rings(&facts, queue, depth, phase)?)
        };
        let record = PairRecord {
            entries: rings.entries,
            completions: rings.completions,
            submission: rings.submission.address(),
            completion: rings.completion.address(),
            vector: rings.vector,
            control: Arc::clone(&rings.control),
        };
        self.pairs.borrow_mut().insert(queue, record);
        match self.create_queues(queue).await {
            Ok(()) => Ok(rings),
            Err(error) => {
                // The keeper deletes what was created of it.
                rings.discard();
                Err(error)
            }
        }
    }

    fn rings(
        &self,
        facts: &Facts,
        queue: u16,
        depth: u16,
        phase: Phase,
    ) -> Result<PairRings, Error> {
        let entries = u32::from(depth.clamp(1, SLOTS_MAX)) + 1;
        let entries = entries.min(facts.entries_max);
        let completions = (entries * 2).max(COMPLETIONS_MIN).min(facts.entries_max) as u16;
        let entries = entries as u16;
        let interrupts = self.transport.interrupts();
        let vector = interrupts.filter(|all| queue < all.count()).map(|_| queue);
        let sgl = match &facts.identity {
            Some(identity) if identity.sgl && identity.sgl_dword_aligned => SglSupport::Dwords,
            Some(identity) if identity.sgl => SglSupport::Bytes,
            _ => SglSupport::None,
        };
        Ok(PairRings {
            queue,
            entries,
            completions,
            stride: facts.stride,
            page: facts.page,
            sgl,
            timeout: self.options.io_timeout,
            vector,
            submission: self.allocate(usize::from(entries) * 64)?,
            completion: self.allocate(usize::from(completions) * 16)?,
            lists: self.allocate(PairRings::list_bytes(entries, facts.page))?,
            shared: Arc::clone(&self.shared),
            control: Arc::new(PairControl::new(phase.resets)),
        })
    }

    fn allocate(&self, bytes: usize) -> Result<DmaBuffer, Error> {
        let memory = self.transport.memory().allocate(bytes);
        memory.map_err(Error::system("memory for the controller"))
    }
}
