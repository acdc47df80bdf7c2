//! A simulated process: its clock, executor and random numbers, its turn, its crash and its pause.
//!
//! Invariants: a process runs only in its turns; a turn takes no virtual time; after
//! [`kill`](Process::kill) nothing that it holds has any effect (sends are refused, requests
//! ignored), and nothing reaches it. What a crash leaves behind: its drives with what was
//! completed (and, per seed, pages of what was in flight), and peers that notice later.

use crate::drive::{self, OpenError, SimDrive};
use crate::links::{self, SimLinks};
use crate::trace::EventKind;
use crate::world::{EventKey, World, WorldInner, nanos, upgrade};
use cleave_runtime::drives::Drive;
use cleave_runtime::executor::{Executor, NoDoorbell, Priority};
use cleave_runtime::links::{LinkEvent, Links};
use cleave_runtime::random::{Random, SplitMix};
use cleave_runtime::time::{Clock, Moment};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// Task polls and turn calls in one turn; a process that wants more goes on a little later, so that
/// a busy loop takes virtual time instead of all time.
const TURN_STEPS_MAX: u32 = 2_000;

/// Virtual time until a process that was cut short goes on, in nanoseconds.
const TURN_AGAIN: u64 = 10_000;

/// Clocks that are off by more than so many nanoseconds a second are counted as skewed.
const SKEWED: u64 = 1_000_000;

/// Seconds since the Unix epoch at which worlds begin.
const WORLD_BEGINS: u64 = 1_750_000_000;

type Turn = Box<dyn FnMut() -> bool>;

/// A handle to a simulated process; clones are the same process.
#[derive(Clone)]
pub struct Process(pub(crate) Rc<ProcessInner>);

pub(crate) struct ProcessInner {
    pub number: u64,
    pub name: String,
    pub world: Weak<WorldInner>,
    pub executor: Executor,
    /// Link events not yet polled.
    pub inbox: RefCell<VecDeque<LinkEvent>>,
    pub listening: Cell<bool>,
    clock: Rc<ProcessClock>,
    random: Rc<SplitMix>,
    turn: RefCell<Option<Turn>>,
    /// The turn in the event queue.
    turn_key: Cell<Option<EventKey>>,
    running: Cell<bool>,
    alive: Cell<bool>,
    /// Number of the present pause; 0 when it runs.
    paused: Cell<u64>,
}

/// Virtual time as a process sees it: another origin, another rate.
struct ProcessClock {
    now: Rc<Cell<u64>>,
    started: u64,
    origin: u64,
    /// Nanoseconds of this clock per 10^9 of virtual time.
    rate: u64,
}

impl ProcessClock {
    fn at(&self, time: u64) -> u64 {
        let passed = u128::from(time.saturating_sub(self.started));
        let passed = passed * u128::from(self.rate) / 1_000_000_000;
        self.origin.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }

    /// The first virtual time at which this clock shows `moment`.
    fn virtual_time(&self, moment: Moment) -> u64 {
        let wanted = u128::from(moment.0.saturating_sub(self.origin));
        let passed = (wanted * 1_000_000_000).div_ceil(u128::from(self.rate));
        self.started.saturating_add(u64::try_from(passed).unwrap_or(u64::MAX))
    }
}

impl Clock for ProcessClock {
    fn now(&self) -> Moment {
        Moment(self.at(self.now.get()))
    }

    fn unix_seconds(&self) -> u64 {
        WORLD_BEGINS + self.now.get() / 1_000_000_000
    }
}

impl ProcessInner {
    pub fn new(world: &World, name: &str) -> ProcessInner {
        let inner = &world.0;
        let drift = inner.settings.borrow().clock_drift_ppm_max.min(500_000) * 1_000;
        let origin = 1 + inner.random.below(1 << 50);
        let rate = 1_000_000_000 - drift + inner.random.below(2 * drift + 1);
        let skewed = rate.abs_diff(1_000_000_000) > SKEWED;
        inner.count(|c| c.clocks_skewed += u64::from(skewed));
        let clock = Rc::new(ProcessClock {
            now: Rc::clone(&inner.now),
            started: inner.now.get(),
            origin,
            rate,
        });
        ProcessInner {
            number: inner.next_number(),
            name: name.to_owned(),
            world: Rc::downgrade(inner),
            executor: Executor::new(clock.clone(), Arc::new(NoDoorbell)),
            inbox: RefCell::default(),
            listening: Cell::new(false),
            clock,
            random: Rc::new(SplitMix::new(inner.random.next_u64())),
            turn: RefCell::default(),
            turn_key: Cell::new(None),
            running: Cell::new(false),
            alive: Cell::new(true),
            paused: Cell::new(0),
        }
    }

    /// Whether it has not crashed.
    pub fn alive(&self) -> bool {
        self.alive.get()
    }

    /// Whether it is kept from running.
    pub fn paused(&self) -> bool {
        self.paused.get() != 0
    }

    /// Drops turn and tasks. Their destructors may spawn or wake: nothing of it runs any more.
    pub fn end(&self) {
        self.alive.set(false);
        let turn = self.turn.borrow_mut().take();
        drop(turn);
        self.executor.clear();
        self.inbox.borrow_mut().clear();
    }

    /// One turn, of at most [`TURN_STEPS_MAX`] steps. True when the process came to rest.
    fn run(&self) -> bool {
        let mut steps = 0;
        let mut turn = self.turn.borrow_mut().take();
        let rested = loop {
            let mut any = turn.as_mut().is_some_and(|turn| turn());
            self.executor.gather();
            while self.alive()
                && steps < TURN_STEPS_MAX
                && (self.executor.run_one(Priority::Foreground)
                    || self.executor.run_one(Priority::Background))
            {
                steps += 1;
                any = true;
                self.executor.gather();
            }
            if !any || !self.alive() {
                break true;
            }
            steps += 1;
            if steps >= TURN_STEPS_MAX {
                break false;
            }
        };
        let mut place = self.turn.borrow_mut();
        if place.is_none() && self.alive() {
            *place = turn.take();
        }
        rested
    }
}

impl WorldInner {
    /// Sees to it that the process runs its turn at `time` (nanoseconds) or earlier.
    pub fn request_turn(&self, process: &Rc<ProcessInner>, time: u64) {
        if !process.alive() || process.paused.get() != 0 {
            return;
        }
        if let Some(key) = process.turn_key.get() {
            if key.0 <= time {
                return;
            }
            self.cancel(key);
        }
        let inner = Rc::clone(process);
        let key = self.schedule(time, EventKind::Turn, process.number, move |world| {
            run_turn(world, &inner);
            1
        });
        process.turn_key.set(Some(key));
    }

    /// The process got something to poll: it looks now, or a little later.
    pub fn delivered(&self, process: &Rc<ProcessInner>) {
        let delay_max = nanos(self.settings.borrow().turn_delay_max);
        let delay = if self.one_in(4) { self.random.below(delay_max) } else { 0 };
        self.request_turn(process, self.after(delay));
    }
}

fn run_turn(world: &World, process: &Rc<ProcessInner>) {
    process.turn_key.set(None);
    world.0.count(|c| c.turns += 1);
    process.running.set(true);
    let rested = process.run();
    process.running.set(false);
    if !process.alive() {
        process.end();
        return;
    }
    if !rested {
        world.0.count(|c| c.turns_cut_short += 1);
        world.0.request_turn(process, world.0.after(TURN_AGAIN));
    }
    if let Some(at) = process.executor.next_timer() {
        world.0.request_turn(process, process.clock.virtual_time(at));
    }
}

impl Process {
    /// The name by which others reach it.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Differs between any two processes of a world, also of one name; grows.
    pub fn number(&self) -> u64 {
        self.0.number
    }

    /// Whether it has not crashed.
    pub fn alive(&self) -> bool {
        self.0.alive()
    }

    /// Its clock: its moments compare with no other process's.
    pub fn clock(&self) -> Rc<dyn Clock> {
        self.0.clock.clone()
    }

    /// Its executor. The world runs it after each call of the turn.
    pub fn executor(&self) -> Executor {
        self.0.executor.clone()
    }

    /// Its links. From the first call on, others can connect to it.
    pub fn links(&self) -> Rc<dyn Links> {
        self.0.listening.set(true);
        Rc::new(SimLinks(Rc::clone(&self.0)))
    }

    /// Whether others can connect to it; those that are connected stay.
    pub fn set_listening(&self, listening: bool) {
        self.0.listening.set(listening);
    }

    /// Its random numbers.
    pub fn random(&self) -> Rc<dyn Random> {
        self.0.random.clone()
    }

    /// Opens a drive, whose only owner this process is until it dies or drops the handle.
    ///
    /// # Panics
    /// When the drive is held by a running process, or absent; [`try_open_drive`] tells.
    ///
    /// [`try_open_drive`]: Process::try_open_drive
    pub fn open_drive(&self, drive: &SimDrive) -> Rc<dyn Drive> {
        match self.try_open_drive(drive) {
            Ok(opened) => opened,
            Err(error) => panic!("{error}"),
        }
    }

    /// As [`open_drive`](Process::open_drive), for a drive that may be held or absent.
    pub fn try_open_drive(&self, drive: &SimDrive) -> Result<Rc<dyn Drive>, OpenError> {
        drive::open(&self.0, drive)
    }

    /// Registers what the world calls in each turn: when events were delivered, when timers are
    /// due, and again until it returns false and the executor is idle.
    pub fn set_turn(&self, turn: impl FnMut() -> bool + 'static) {
        let old = self.0.turn.borrow_mut().replace(Box::new(turn));
        drop(old);
        self.wake();
    }

    /// Gives it a turn now.
    pub fn wake(&self) {
        if let Some(world) = upgrade(&self.0.world) {
            world.0.request_turn(&self.0, world.0.now.get());
        }
    }

    /// Calls `call` after `delay` of virtual time, then gives the process a turn: for simulated
    /// services that answer it. Void when the process has crashed by then.
    pub fn call_later(&self, delay: Duration, call: impl FnOnce() + 'static) {
        let Some(world) = upgrade(&self.0.world).filter(|_| self.alive()) else { return };
        let (process, time) = (Rc::clone(&self.0), world.0.after(nanos(delay)));
        world.0.schedule(time, EventKind::Call, process.number, move |world| {
            call();
            world.0.delivered(&process);
            1
        });
    }

    /// Crashes it: it never runs again, its connections break, its requests in flight to drives
    /// land or not. From inside its own turn, the rest of that turn has no effect.
    pub fn kill(&self) {
        let Some(world) = upgrade(&self.0.world).filter(|_| self.alive()) else { return };
        let inner = &self.0;
        inner.alive.set(false);
        world.0.processes.borrow_mut().remove(&inner.number);
        world.0.count(|c| c.processes_killed += 1);
        world.0.note(EventKind::Killed, inner.number, 0);
        links::process_died(&world, inner.number);
        drive::process_died(&world, inner.number);
        world.0.cancel_calls(inner.number);
        if !inner.running.get() {
            inner.end();
        }
    }

    /// Stops it from running, as a suspended process or an overloaded machine: what is delivered
    /// waits. Peers give its connections up when it lasts for longer than the idle timeout.
    pub fn pause(&self) {
        let Some(world) = upgrade(&self.0.world).filter(|_| self.alive()) else { return };
        if self.0.paused.get() != 0 {
            return;
        }
        let pause = world.0.next_number();
        self.0.paused.set(pause);
        world.0.count(|c| c.pauses += 1);
        world.0.note(EventKind::Fault, self.0.number, 1);
        if let Some(key) = self.0.turn_key.take() {
            world.0.cancel(key);
        }
        let (process, idle) = (self.clone(), nanos(world.0.settings.borrow().idle_timeout));
        world.0.schedule(world.0.after(idle), EventKind::Timeout, self.0.number, move |world| {
            let lasts = process.alive() && process.0.paused.get() == pause;
            if lasts {
                links::process_silent(world, process.0.number);
            }
            u64::from(lasts)
        });
    }

    /// Lets a paused process run again.
    pub fn resume(&self) {
        if self.0.paused.replace(0) != 0 {
            self.wake();
        }
    }
}
