//! A core's thread, and the control thread's end of it.

use super::background::BackgroundShare;
use super::flash::FlashEnd;
use super::nvme::CoreNvme;
use super::{Core, Finished};
use crate::error::HostEngineError;
use crate::measure::Measures;
use crate::messages::{Answer, Command, CoreLoad, Order, Report};
use cleave_control::histogram::Histogram;
use cleave_host_core::front::Front;
use cleave_host_core::{HostCore, HostCoreConfig, VdiskStats};
use cleave_runtime::buffer::BufferPool;
use cleave_runtime::executor::Doorbell;
use cleave_runtime::links::Links;
use cleave_runtime::random::{Random, SplitMix};
use cleave_runtime::ring::{Consumer, Producer, Refused, ring};
use cleave_runtime::sync::{Outcome, Promise, Queue, promise};
use cleave_runtime::time::{Clock, Moment};
use cleave_runtime_real::doorbell::EventDoorbell;
use cleave_runtime_real::error::Error;
use cleave_runtime_real::quic::{QuicConfig, QuicLinks};
use cleave_runtime_real::reactor::{Reactor, ReactorConfig};
use slab::Slab;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;

/// Commands and reports on their way; more wait at their sender.
const RING: usize = 256;
/// Bytes and unused buffers that a core keeps for guests' writes.
const WRITE_BUFFERS: [(usize, usize); 6] =
    [(4 << 10, 256), (16 << 10, 64), (64 << 10, 64), (256 << 10, 8), (1 << 20, 4), (4 << 20, 1)];

/// What a core is started with.
#[derive(Clone, Debug)]
pub struct CoreSettings {
    /// The host core's.
    pub core: HostCoreConfig,
    /// Its place among the engine's cores.
    pub place: u16,
    /// The links'.
    pub links: QuicConfig,
    /// The loop's.
    pub reactor: ReactorConfig,
    /// The processor on which it should run.
    pub processor: Option<usize>,
}

/// The control thread's end of a core.
pub struct CoreHandle {
    /// Its number, which no other core of the engine ever has.
    pub core: u16,
    /// The processor to which it is bound.
    pub processor: Option<usize>,
    /// Wakes it.
    pub doorbell: Arc<dyn Doorbell>,
    /// When it was looked at last, and how long it had worked by then.
    load: Cell<(Moment, Duration)>,
    /// Thousandths of its time that it worked before that.
    busy_permille: Cell<u64>,
    commands: Producer<Command>,
    /// Commands that the ring did not take.
    unsent: RefCell<VecDeque<Command>>,
    reports: Consumer<Report>,
    waiting: RefCell<BTreeMap<u64, Promise<Answer>>>,
    next: Cell<u64>,
    thread: RefCell<Option<JoinHandle<()>>>,
}

/// Starts a core; returns when it runs. `control` wakes the control thread.
pub fn start(
    settings: CoreSettings,
    control: Arc<dyn Doorbell>,
) -> Result<CoreHandle, HostEngineError> {
    let core = settings.core.core;
    let refused = |error| HostEngineError::Core { core, error };
    let doorbell = EventDoorbell::new().map_err(refused)?;
    let (commands, taken) = ring(RING, Arc::clone(&doorbell) as Arc<dyn Doorbell>);
    let (report, reports) = ring(RING, control);
    let bell = Arc::clone(&doorbell) as Arc<dyn Doorbell>;
    let (started, outcome) = sync_channel(1);
    let thread = std::thread::Builder::new()
        .name(format!("core-{core}"))
        .spawn(move || {
            let (reactor, links) = match prepare(&settings, doorbell) {
                Ok(prepared) => prepared,
                Err(error) => return drop(started.send(Err(error))),
            };
            let processor = pin(&reactor, &settings);
            // The one who waits for this is the one who started the thread.
            let _ = started.send(Ok(processor));
            run(&reactor, links, settings, taken, report);
        })
        .map_err(|source| refused(Error::System { what: "starting a thread", source }))?;
    let processor = match outcome.recv() {
        Ok(Ok(processor)) => processor,
        Ok(Err(error)) => return Err(refused(error)),
        Err(_) => unreachable!("a thread that panics ends the process"),
    };
    Ok(CoreHandle {
        core,
        processor,
        doorbell: bell,
        load: Cell::default(),
        busy_permille: Cell::new(0),
        commands,
        unsent: RefCell::default(),
        reports,
        waiting: RefCell::default(),
        next: Cell::new(1),
        thread: RefCell::new(Some(thread)),
    })
}

fn prepare(
    settings: &CoreSettings,
    doorbell: Arc<EventDoorbell>,
) -> Result<(Reactor, Rc<QuicLinks>), Error> {
    let reactor = Reactor::with_doorbell(settings.reactor.clone(), doorbell)?;
    let links = QuicLinks::new(&reactor, &settings.links)?;
    Ok((reactor, links))
}

/// Binds the core to its processor, where that is allowed.
fn pin(reactor: &Reactor, settings: &CoreSettings) -> Option<usize> {
    let processor = settings.processor?;
    match reactor.pin(processor) {
        Ok(()) => Some(processor),
        Err(error) => {
            let core = settings.core.core;
            tracing::info!(core, processor, %error, "a core runs on any processor");
            None
        }
    }
}

fn run(
    reactor: &Reactor,
    links: Rc<dyn Links>,
    settings: CoreSettings,
    commands: Consumer<Command>,
    reports: Producer<Report>,
) {
    let CoreSettings { core: config, place, .. } = settings;
    // For jitter only.
    let seed = config.incarnation.0.rotate_left(16) ^ u64::from(config.core);
    let random: Rc<dyn Random> = Rc::new(SplitMix::new(seed));
    let executor = reactor.executor().clone();
    let number = config.core;
    let core = HostCore::new(links, executor.clone(), random, config);
    let ended = Rc::new(Cell::new(false));
    let nvme = Rc::new(CoreNvme::new(Rc::clone(reactor.clock()) as Rc<dyn Clock>));
    let buffers = WRITE_BUFFERS.map(|(bytes, kept)| BufferPool::new(bytes, kept));
    let front = Front::new(core.clone(), buffers.to_vec());
    let application = Core {
        reactor,
        number,
        place,
        executor,
        core,
        buffers: buffers.into(),
        commands,
        reports,
        unreported: VecDeque::new(),
        finished: Queue::<Finished>::default(),
        prepared_flash: BTreeMap::new(),
        nvme: Rc::clone(&nvme),
        flash: FlashEnd::Open,
        giving_back: false,
        leaving: 0,
        waiting: Vec::new(),
        front,
        vdisks: Slab::new(),
        places: BTreeMap::new(),
        wakeful: false,
        past: Measures::default(),
        closed: VdiskStats::default(),
        ending: None,
        ended: Rc::clone(&ended),
        background: BackgroundShare::default(),
        mirrored: Histogram::new(),
        requests: Vec::new(),
        done: Vec::new(),
        times: Vec::new(),
    };
    reactor.run(application, || ended.get());
    nvme.shut_down(reactor);
}

impl CoreHandle {
    /// Has the core do something. `None` comes when the core has ended.
    pub fn ask(&self, order: Order) -> Outcome<Answer> {
        let number = self.next.replace(self.next.get() + 1);
        let (promise, outcome) = promise();
        self.waiting.borrow_mut().insert(number, promise);
        self.unsent.borrow_mut().push_back(Command { number, order });
        self.send();
        outcome
    }

    fn send(&self) {
        let mut unsent = self.unsent.borrow_mut();
        while let Some(command) = unsent.pop_front() {
            match self.commands.push(command) {
                Ok(()) => {}
                Err(Refused::Full(command)) => return unsent.push_front(command),
                // Whoever waits for the answer is told by the broken promise.
                Err(Refused::Closed(command)) => {
                    self.waiting.borrow_mut().remove(&command.number);
                }
            }
        }
    }

    /// Keeps what the core says it has done.
    pub fn note_load(&self, load: &CoreLoad) {
        let (at, busy) = self.load.replace((load.at, load.busy));
        let passed = load.at.since(at).as_micros().max(1);
        let worked = load.busy.saturating_sub(busy).as_micros();
        self.busy_permille.set(u64::try_from(worked * 1000 / passed).unwrap_or(1000).min(1000));
    }

    /// Percent of its time that the core worked, between the last two times that it was asked.
    pub fn busy_percent(&self) -> f64 {
        self.busy_permille.get() as f64 / 10.0
    }

    /// Takes what the core reports, and gives on what is no answer. True when there was anything.
    pub fn turn(&self, mut report: impl FnMut(Report)) -> bool {
        let mut any = false;
        while let Some(reported) = self.reports.pop() {
            any = true;
            match reported {
                Report::Answer { number, answer } => {
                    if let Some(promise) = self.waiting.borrow_mut().remove(&number) {
                        promise.fulfil(answer);
                    }
                }
                other => report(other),
            }
        }
        self.send();
        any
    }

    /// Waits for the thread of a core that was told to end.
    pub fn join(&self) {
        if let Some(thread) = self.thread.borrow_mut().take() {
            // A panic there has ended the process already.
            let _ = thread.join();
        }
    }
}

/// A core that a test plays.
#[cfg(test)]
pub struct ScriptedCore {
    /// What it is told.
    pub commands: Consumer<Command>,
    /// What it says.
    pub reports: Producer<Report>,
}

#[cfg(test)]
impl CoreHandle {
    /// A core without a thread.
    pub fn scripted(core: u16) -> (CoreHandle, ScriptedCore) {
        let doorbell = Arc::new(cleave_runtime::executor::NoDoorbell);
        let (commands, taken) = ring(RING, Arc::clone(&doorbell) as Arc<dyn Doorbell>);
        let (report, reports) = ring(RING, Arc::clone(&doorbell) as Arc<dyn Doorbell>);
        let handle = CoreHandle {
            core,
            processor: None,
            doorbell,
            load: Cell::default(),
            busy_permille: Cell::new(0),
            commands,
            unsent: RefCell::default(),
            reports,
            waiting: RefCell::default(),
            next: Cell::new(1),
            thread: RefCell::default(),
        };
        (handle, ScriptedCore { commands: taken, reports: report })
    }
}
