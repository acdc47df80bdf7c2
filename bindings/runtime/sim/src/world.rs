//! The world: virtual time, the event queue, and the loop that delivers events.
//!
//! Invariants: events are delivered in the order (time, sequence number), so the order follows
//! from the seed and the program alone; virtual time never runs backwards; code of processes runs
//! only from [`World::step`], one turn at a time, with no part of the world borrowed.
//!
//! Engines hold the world weakly (through links, drives and clocks), so that dropping the last
//! [`World`] ends it; a turn or a call that captures a `World` keeps it alive for ever.

use crate::drive::DriveInner;
use crate::faults::FaultPlan;
use crate::links::Network;
use crate::process::{Process, ProcessInner};
use crate::settings::{Counters, Settings, Span};
use crate::trace::{Digest, EventKind, Trace, TraceEntry};
use cleave_runtime::random::{Random, SplitMix};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// A simulated world; clones are the same world.
#[derive(Clone)]
pub struct World(pub(crate) Rc<WorldInner>);

/// Place of an event in the queue: virtual time in nanoseconds, then sequence number.
pub(crate) type EventKey = (u64, u64);

type Action = Box<dyn FnOnce(&World) -> u64>;

struct Event {
    kind: EventKind,
    process: u64,
    action: Action,
}

pub(crate) struct WorldInner {
    seed: u64,
    /// Nanoseconds; shared with the clocks of processes.
    pub now: Rc<Cell<u64>>,
    pub random: SplitMix,
    pub settings: RefCell<Settings>,
    pub processes: RefCell<BTreeMap<u64, Rc<ProcessInner>>>,
    pub network: RefCell<Network>,
    pub drives: RefCell<Vec<Rc<DriveInner>>>,
    pub plan: RefCell<Option<(u64, FaultPlan)>>,
    events: RefCell<BTreeMap<EventKey, Event>>,
    number: Cell<u64>,
    trace: Trace,
    counters: Cell<Counters>,
    /// Requests of users in flight.
    load: Rc<Cell<u64>>,
    /// What was counted while there were any.
    under_load: Cell<Counters>,
    stepping: Cell<bool>,
}

impl World {
    /// A world that follows from `seed`, with the default settings.
    pub fn new(seed: u64) -> World {
        World::with_settings(seed, Settings::default())
    }

    /// A world that follows from `seed`.
    pub fn with_settings(seed: u64, settings: Settings) -> World {
        World(Rc::new(WorldInner {
            seed,
            now: Rc::new(Cell::new(0)),
            random: SplitMix::new(seed),
            settings: RefCell::new(settings),
            processes: RefCell::default(),
            network: RefCell::default(),
            drives: RefCell::default(),
            plan: RefCell::default(),
            events: RefCell::default(),
            number: Cell::new(0),
            trace: Trace::new(),
            counters: Cell::default(),
            load: Rc::default(),
            under_load: Cell::default(),
            stepping: Cell::new(false),
        }))
    }

    /// The seed.
    pub fn seed(&self) -> u64 {
        self.0.seed
    }

    /// Virtual time since the world began.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.0.now.get())
    }

    /// A new source of random numbers that follows from the seed: for workloads and simulated
    /// services.
    pub fn random(&self) -> Rc<dyn Random> {
        Rc::new(SplitMix::new(self.0.random.next_u64()))
    }

    /// Changes the settings from now on.
    pub fn change_settings(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.0.settings.borrow_mut());
    }

    /// The hash over everything delivered so far: equal for equal runs.
    pub fn trace_hash(&self) -> u64 {
        self.0.trace.hash()
    }

    /// The latest events, oldest first, for whoever looks at a failure.
    pub fn recent(&self) -> Vec<TraceEntry> {
        self.0.trace.recent()
    }

    /// What happened so far.
    pub fn counters(&self) -> Counters {
        self.0.counters.get()
    }

    /// What happened while [`load`](World::load) was not 0.
    pub fn counters_under_load(&self) -> Counters {
        self.0.under_load.get()
    }

    /// Requests of users in flight: a number that whoever simulates the users keeps, so that the
    /// counters tell which faults struck while somebody waited for something.
    pub fn load(&self) -> Rc<Cell<u64>> {
        Rc::clone(&self.0.load)
    }

    /// Starts a process that others reach by `name`; a name may start again after a crash.
    ///
    /// # Panics
    /// When a process of that name runs.
    pub fn start_process(&self, name: &str) -> Process {
        assert!(self.process(name).is_none(), "process {name} runs already: kill it first");
        let inner = Rc::new(ProcessInner::new(self, name));
        self.0.processes.borrow_mut().insert(inner.number, Rc::clone(&inner));
        self.0.count(|c| c.processes_started += 1);
        let digest = Digest::new().bytes(name.as_bytes()).value();
        self.0.note(EventKind::Started, inner.number, digest);
        Process(inner)
    }

    /// The running process of that name.
    pub fn process(&self, name: &str) -> Option<Process> {
        let processes = self.0.processes.borrow();
        processes.values().find(|p| p.name == name).map(|p| Process(Rc::clone(p)))
    }

    /// All running processes, oldest first.
    pub fn processes(&self) -> Vec<Process> {
        self.0.processes.borrow().values().map(|p| Process(Rc::clone(p))).collect()
    }

    /// Calls `call` after `delay`, whatever happens to processes.
    pub fn call_later(&self, delay: Duration, call: impl FnOnce(&World) + 'static) {
        self.0.schedule(self.0.after(nanos(delay)), EventKind::Call, 0, |world| {
            call(world);
            1
        });
    }

    /// Draws a delay from `span`.
    pub fn draw(&self, span: Span) -> Duration {
        Duration::from_nanos(self.0.draw(span))
    }

    /// Delivers the next event; false when there is none.
    ///
    /// # Panics
    /// When called from inside a turn or a call of this world.
    pub fn step(&self) -> bool {
        assert!(!self.0.stepping.get(), "the world is not stepped from inside its own events");
        self.notice_wakes();
        let Some(((time, _), event)) = self.0.events.borrow_mut().pop_first() else {
            return false;
        };
        assert!(time >= self.0.now.get(), "virtual time never runs backwards");
        self.0.now.set(time);
        self.0.count(|c| c.events += 1);
        self.0.stepping.set(true);
        let digest = (event.action)(self);
        self.0.stepping.set(false);
        self.0.note(event.kind, event.process, digest);
        true
    }

    /// Delivers events until `condition` holds (true), or until nothing happens any more or
    /// `limit` of virtual time has passed (false). The condition is looked at before the first
    /// event and after each.
    pub fn run_until(&self, mut condition: impl FnMut() -> bool, limit: Duration) -> bool {
        let end = self.0.after(nanos(limit));
        loop {
            if condition() {
                return true;
            }
            match self.next_event() {
                Some(time) if time <= end => self.step(),
                Some(_) => {
                    self.0.now.set(end);
                    return false;
                }
                None => return false,
            };
        }
    }

    /// Delivers all events of the next `span`; afterwards exactly that much time has passed.
    pub fn run_for(&self, span: Duration) {
        let end = self.0.after(nanos(span));
        while self.next_event().is_some_and(|time| time <= end) {
            self.step();
        }
        self.0.now.set(end);
    }

    /// Virtual time of the next event in nanoseconds.
    fn next_event(&self) -> Option<u64> {
        self.notice_wakes();
        self.0.events.borrow().first_key_value().map(|(key, _)| key.0)
    }

    /// Gives a turn to every process one of whose tasks was woken: by an event, by another
    /// process's code, or from outside.
    fn notice_wakes(&self) {
        let processes = self.0.processes.borrow();
        for process in processes.values().filter(|process| process.executor.woken()) {
            self.0.request_turn(process, self.0.now.get());
        }
    }
}

impl WorldInner {
    /// A number never given before; from 1.
    pub fn next_number(&self) -> u64 {
        self.number.set(self.number.get() + 1);
        self.number.get()
    }

    /// Virtual time `delay` nanoseconds from now.
    pub fn after(&self, delay: u64) -> u64 {
        self.now.get().saturating_add(delay)
    }

    /// Queues an event. `action` returns the digest for the trace.
    pub fn schedule(
        &self,
        time: u64,
        kind: EventKind,
        process: u64,
        action: impl FnOnce(&World) -> u64 + 'static,
    ) -> EventKey {
        let key = (time.max(self.now.get()), self.next_number());
        self.events.borrow_mut().insert(key, Event { kind, process, action: Box::new(action) });
        key
    }

    /// Takes an event out of the queue.
    pub fn cancel(&self, key: EventKey) {
        let event = self.events.borrow_mut().remove(&key);
        // Dropping the action may run code that schedules: only after the borrow ended.
        drop(event);
    }

    /// Takes the turns and calls of a process that died out of the queue.
    pub fn cancel_calls(&self, process: u64) {
        let mut events = self.events.borrow_mut();
        let of_it = events.iter().filter(|(_, event)| {
            event.process == process && matches!(event.kind, EventKind::Turn | EventKind::Call)
        });
        let keys: Vec<EventKey> = of_it.map(|(key, _)| *key).collect();
        let ended: Vec<Event> = keys.iter().filter_map(|key| events.remove(key)).collect();
        // Dropping their actions may run code that schedules.
        drop(events);
        drop(ended);
    }

    /// Enters an event into the trace.
    pub fn note(&self, kind: EventKind, process: u64, digest: u64) {
        self.trace.record(TraceEntry { time: self.now.get(), kind, process, digest });
    }

    /// Changes the counters.
    pub fn count(&self, change: impl Fn(&mut Counters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
        if self.load.get() > 0 {
            let mut counters = self.under_load.get();
            change(&mut counters);
            self.under_load.set(counters);
        }
    }

    /// A running process.
    pub fn live(&self, number: u64) -> Option<Rc<ProcessInner>> {
        self.processes.borrow().get(&number).cloned()
    }

    /// A delay in nanoseconds from `span`.
    pub fn draw(&self, span: Span) -> u64 {
        let (min, max) = (nanos(span.min), nanos(span.max));
        min.saturating_add(self.random.below(max.saturating_sub(min).saturating_add(1)))
    }

    /// True once in `count` times.
    pub fn one_in(&self, count: u64) -> bool {
        self.random.below(count) == 0
    }
}

impl Drop for WorldInner {
    fn drop(&mut self) {
        // Tasks and turns hold handles to their own process: end them, or the cycle stays.
        for process in std::mem::take(self.processes.get_mut()).into_values() {
            process.end();
        }
    }
}

/// Nanoseconds of a duration, at most `u64::MAX`.
pub(crate) fn nanos(span: Duration) -> u64 {
    u64::try_from(span.as_nanos()).unwrap_or(u64::MAX)
}

/// The world of an engine's handle, while it exists.
pub(crate) fn upgrade(world: &Weak<WorldInner>) -> Option<World> {
    world.upgrade().map(World)
}
