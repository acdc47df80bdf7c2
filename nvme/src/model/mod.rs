//! A controller in software, for tests, the simulator and fuzzing. **Test equipment**: nothing
//! offers it to users.
//!
//! It is written from the specification and shares only constants and entry layouts with the
//! driver. It has a volatile write cache that a power cut empties, takes commands when doorbells
//! ring, and does them after a time drawn from a range, so that they overtake each other. It can
//! also misbehave: see [`Fault`].
//!
//! Time passes only in [`Model::step`]; everything follows from the options, the seed and the calls.

mod commands;
mod faults;
mod hostile;
mod media;
mod outside;
mod queues;
#[cfg(test)]
mod tests;

pub use faults::{Fault, Scope, Struck};
pub use hostile::misbehave;
pub use media::{Media, ModelNamespace};
pub use outside::{OutsideOperation, OutsideRequest};

use crate::dma::{DmaPool, DmaSpace, Mapper, PageKind};
use crate::registers::{Interrupts, Registers};
use crate::spec::registers::{
    ABSENT, ADMIN_COMPLETION_ADDRESS, ADMIN_QUEUE_ATTRIBUTES, ADMIN_SUBMISSION_ADDRESS,
    CAPABILITIES, CONFIGURATION, Configuration, DOORBELLS, STATUS, VERSION,
};
use crate::transport::Transport;
use cleave_runtime::random::{Random, SplitMix};
use cleave_runtime::time::Moment;
use faults::Faults;
use outside::Outside;
use queues::{Doorbells, Queues, Work};
use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What kind of controller it is.
#[derive(Clone, Debug)]
pub struct ModelOptions {
    /// Its namespaces; numbers begin at 1.
    pub namespaces: Vec<ModelNamespace>,
    /// Largest transfer, as a power of two of pages; 0 for none (MDTS).
    pub transfer_max_shift: u8,
    /// I/O queue pairs.
    pub pairs: u16,
    /// Most entries of a queue.
    pub queue_entries: u16,
    /// Doorbell stride, as in CAP.DSTRD.
    pub stride: u8,
    /// Smallest memory page: 4096 shifted by this (CAP.MPSMIN).
    pub page_shift: u8,
    /// Whether it takes SGLs.
    pub sgl: bool,
    /// How long it takes to become ready, or disabled.
    pub ready_delay: Duration,
    /// Range of the time that a command takes.
    pub latency: (Duration, Duration),
    /// Limits of verify and write zeroes, as powers of two of pages; 0 for none.
    pub limits: (u8, u8),
    /// Seed of the latencies.
    pub seed: u64,
}

impl Default for ModelOptions {
    fn default() -> ModelOptions {
        ModelOptions {
            namespaces: vec![ModelNamespace::default()],
            transfer_max_shift: 5,
            pairs: 4,
            queue_entries: 256,
            stride: 0,
            page_shift: 0,
            sgl: false,
            ready_delay: Duration::from_millis(3),
            latency: (Duration::from_micros(5), Duration::from_micros(200)),
            limits: (0, 0),
            seed: 1,
        }
    }
}

/// See the module's page. It is its own transport.
pub struct Model {
    options: ModelOptions,
    space: Arc<DmaSpace>,
    memory: DmaPool,
    state: Mutex<State>,
}

struct State {
    now: Moment,
    random: SplitMix,
    registers: BTreeMap<u32, u32>,
    ready: bool,
    /// When `ready` becomes what CC.EN says.
    turning: Option<Moment>,
    dma: bool,
    queues: Queues,
    doorbells: Doorbells,
    /// Commands taken, with the time when they are done.
    working: Vec<Work>,
    outside: Outside,
    event_requests: VecDeque<u16>,
    /// Events that wait for a request.
    events: VecDeque<u32>,
    media: Vec<Media>,
    faults: Faults,
    features: BTreeMap<u8, u32>,
    latency: (Duration, Duration),
    commands: u64,
    stray: u64,
}

impl Model {
    /// A controller that was just powered on.
    pub fn new(options: ModelOptions) -> Arc<Model> {
        let space = Arc::new(DmaSpace::default());
        let mapper = Arc::clone(&space) as Arc<dyn Mapper>;
        let state = State {
            now: Moment(0),
            random: SplitMix::new(options.seed),
            registers: BTreeMap::new(),
            ready: false,
            turning: None,
            dma: false,
            queues: Queues::default(),
            doorbells: Doorbells::default(),
            working: Vec::new(),
            outside: Outside::default(),
            event_requests: VecDeque::new(),
            events: VecDeque::new(),
            media: options.namespaces.iter().map(Media::new).collect(),
            faults: Faults::default(),
            features: BTreeMap::new(),
            latency: options.latency,
            commands: 0,
            stray: 0,
        };
        let memory = DmaPool::new(mapper, &[PageKind::Normal], None);
        Arc::new(Model { options, space, memory, state: Mutex::new(state) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets time pass up to `now`: takes commands, completes those that are done. True when there
    /// was anything.
    pub fn step(&self, now: Moment) -> bool {
        let mut state = self.state();
        state.now = now;
        if state.faults.vanished {
            return false;
        }
        let mut any = false;
        if state.turning.is_some_and(|at| now >= at) {
            any = true;
            state.turn();
        }
        if state.ready && !state.faults.fatal {
            any |= self.take_commands(&mut state);
            any |= self.finish_commands(&mut state);
        }
        any
    }

    /// When something is due next, as far as is known.
    pub fn next(&self) -> Option<Moment> {
        let state = self.state();
        let due = state.working.iter().map(|work| work.due);
        due.chain(state.turning).min()
    }

    /// Makes it misbehave.
    pub fn inject(&self, fault: Fault) {
        self.state().faults.add(fault);
    }

    /// Faults that wait for a command or a completion do not come any more.
    pub fn spare(&self) {
        self.state().faults.spare();
    }

    /// Changes the range of the time that commands take.
    pub fn set_latency(&self, latency: (Duration, Duration)) {
        self.state().latency = latency;
    }

    /// Reports an event, as dword 0 of an event request's completion.
    pub fn report(&self, event: u32) {
        self.state().events.push_back(event);
    }

    /// Power goes, and comes back: content that was not flushed is lost where `lost` says so, by namespace
    /// and block. What lies outside is its keeper's.
    pub fn cut_power(&self, mut lost: impl FnMut(u32, u64) -> bool) {
        let mut state = self.state();
        for (number, media) in (1..).zip(&mut state.media) {
            media.cut_power(|block| lost(number, block));
        }
        state.forget();
        state.registers.clear();
        state.turning = None;
    }

    /// Looks at, or changes, the content of a namespace.
    pub fn with_media<T>(&self, number: u32, look: impl FnOnce(&mut Media) -> T) -> T {
        look(&mut self.state().media[number as usize - 1])
    }

    /// Commands taken so far.
    pub fn commands(&self) -> u64 {
        self.state().commands
    }

    /// What it did to its driver so far.
    pub fn struck(&self) -> Struck {
        self.state().faults.struck
    }

    /// Times that it forgot everything: resets, and losses of its power.
    pub fn restarts(&self) -> u64 {
        self.state().outside.restarts()
    }

    /// Commands of I/O queues that were taken and not completed.
    pub fn outstanding(&self) -> usize {
        let state = self.state();
        let working = state.working.iter().filter(|work| work.queue != 0).count();
        working + state.outside.len()
    }

    /// Accesses, while they were allowed, to memory that was not mapped: the driver's mistakes.
    pub fn stray_accesses(&self) -> u64 {
        self.state().stray
    }

    fn latency(&self, state: &State) -> Duration {
        let (least, most) = state.latency;
        let span = most.saturating_sub(least).as_nanos() as u64;
        least + Duration::from_nanos(state.random.below(span + 1))
    }
}

impl State {
    fn configuration(&self) -> Configuration {
        Configuration(self.registers.get(&CONFIGURATION).copied().unwrap_or(0))
    }

    fn long(&self, offset: u32) -> u64 {
        let word = |offset| u64::from(self.registers.get(&offset).copied().unwrap_or(0));
        word(offset) | word(offset + 4) << 32
    }

    /// As after a reset: queues and commands are gone.
    fn forget(&mut self) {
        self.queues = Queues::default();
        self.doorbells = Doorbells::default();
        self.working.clear();
        self.outside.restart();
        self.event_requests.clear();
        self.features.clear();
        self.ready = false;
    }

    /// CC.EN has its effect.
    fn turn(&mut self) {
        self.turning = None;
        if !self.configuration().is_enabled() {
            if !self.faults.never_disabled {
                self.forget();
            }
            return;
        }
        if self.faults.never_ready {
            return;
        }
        let sizes = self.registers.get(&ADMIN_QUEUE_ATTRIBUTES).copied().unwrap_or(0);
        let submission = self.long(ADMIN_SUBMISSION_ADDRESS);
        let completion = self.long(ADMIN_COMPLETION_ADDRESS);
        self.forget();
        let entries = |shift: u32| (sizes >> shift & 0xfff) as u16 + 1;
        self.queues.create_admin(submission, entries(0), completion, entries(16));
        self.ready = true;
    }

    fn status(&self) -> u32 {
        let shut_down = if self.configuration().is_shutting_down() { 2 << 2 } else { 0 };
        u32::from(self.ready) | u32::from(self.faults.fatal) << 1 | shut_down
    }
}

impl Registers for Model {
    fn length(&self) -> u32 {
        0x4000
    }

    fn read(&self, offset: u32) -> u32 {
        let state = self.state();
        if state.faults.vanished {
            return ABSENT;
        }
        let options = &self.options;
        match offset {
            // MQES, CQR, and 2 units of 500 ms to become ready.
            CAPABILITIES => u32::from(options.queue_entries - 1) | 1 << 16 | 2 << 24,
            // The high half: DSTRD, NVM command set, MPSMIN, MPSMAX.
            0x04 => {
                let page = u32::from(options.page_shift);
                u32::from(options.stride) | 1 << 5 | page << 16 | page.max(2) << 20
            }
            VERSION => 0x0002_0000,
            STATUS => state.status(),
            _ => state.registers.get(&offset).copied().unwrap_or(0),
        }
    }

    fn write(&self, offset: u32, value: u32) {
        let mut state = self.state();
        if state.faults.vanished {
            return;
        }
        if offset >= DOORBELLS {
            let index = (offset - DOORBELLS) / (4 << self.options.stride);
            state.doorbells.ring(index, value);
            return;
        }
        let before = state.configuration();
        state.registers.insert(offset, value);
        if offset == CONFIGURATION && before.is_enabled() != state.configuration().is_enabled() {
            state.turning = Some(state.now + self.options.ready_delay);
        }
    }
}

impl Transport for Model {
    fn name(&self) -> &str {
        "model"
    }

    fn registers(&self) -> &dyn Registers {
        self
    }

    fn memory(&self) -> &DmaPool {
        &self.memory
    }

    fn allow_dma(&self, allowed: bool) -> io::Result<()> {
        self.state().dma = allowed;
        Ok(())
    }

    fn interrupts(&self) -> Option<&Interrupts> {
        None
    }
}
