//! The loop of one core, and the only place where the core sleeps.
//!
//! A turn: read the clock; hand requests to the ring and take its completions; let the links
//! receive; call the application; run a bounded number of foreground tasks; run background tasks
//! within their share; let the links send.
//!
//! # Going to sleep
//!
//! Work reaches a core in two ways. What the kernel delivers (completions, datagrams, kicks,
//! signals on a pipe) shows as a file that is ready; what other threads deliver (ring entries,
//! wakes of tasks) shows in memory only, and they ring the core's
//! [doorbell](crate::doorbell::EventDoorbell) after they published it. When a turn found nothing
//! and the time for spinning is over:
//!
//! 1. [`Turn::arm`]: the application asks its sources to notify from now on (it enables guests'
//!    kicks, for example).
//! 2. `sleeping` is set, then a sequentially consistent fence. Whoever publishes does it the other
//!    way round: publish, fence, look at `sleeping`, write the eventfd.
//! 3. Everything that shows in memory is looked at once more: `stop`, [`Turn::turn`], wakes of
//!    tasks, timers, the links. Of two sides that both write, fence and then read, at least one
//!    sees the other: either this look finds the work, or the publisher finds `sleeping`.
//! 4. The files are armed (doorbell, UDP socket, [watches](Reactor::watch)) by one-shot polls,
//!    submitted in the same system call that sleeps. A poll looks at its file when it is armed, so
//!    what was already ready ends the sleep at once.
//! 5. The core sleeps in its ring until a completion, or until the next timer of tasks or links.
//! 6. `sleeping` is cleared, [`Turn::disarm`].
//!
//! Before that it spins for at most `spin`, and at most twice the mean gap between events, so that
//! a busy core does not pay for sleeping and an idle one does not burn.

mod share;
#[cfg(test)]
mod tests;

use crate::clock::RealClock;
use crate::doorbell::EventDoorbell;
use crate::error::{Error, Result};
use crate::uring::{Ring, WatchMode};
use cleave_runtime::buffer::BufferPool;
use cleave_runtime::executor::{Doorbell, Executor, Priority};
use cleave_runtime::time::{Clock, Moment};
use share::{Gaps, Share};
use std::cell::{Cell, RefCell};
use std::os::fd::RawFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Foreground tasks that run in one turn.
const FOREGROUND_MAX: usize = 32;

/// Background tasks run for about this long in one turn.
const BACKGROUND_SLICE: Duration = Duration::from_micros(50);

/// A turn that takes longer is reported.
const STALL: Duration = Duration::from_millis(1);

/// Settings of a core.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// The core spins at most this long before it sleeps. Zero where more threads than cores
    /// would spin: then spinning costs milliseconds.
    pub spin: Duration,
    /// Percent of the core's time for background tasks while there is foreground work; 1 to 100.
    pub background_share: u8,
    /// The processor to which the calling thread is bound.
    pub cpu: Option<usize>,
    /// Submissions that the ring holds at a time; more wait in a backlog.
    pub entries: u32,
    /// (bytes, count) of the buffers that are registered with the kernel once the core opens its
    /// first drive. Longer or further buffers are ordinary memory.
    pub drive_buffers: Vec<(usize, u16)>,
}

impl Default for ReactorConfig {
    fn default() -> ReactorConfig {
        ReactorConfig {
            spin: Duration::from_micros(50),
            background_share: 10,
            cpu: None,
            entries: 256,
            drive_buffers: vec![(64 << 10, 64), ((1 << 20) + (64 << 10), 32)],
        }
    }
}

/// What a core's application does in each turn. Closures `FnMut() -> bool` are turns too.
pub trait Turn {
    /// Polls the application's own sources and works; at most about 50 µs. True when there was
    /// work of the foreground.
    fn turn(&mut self) -> bool;

    /// The core may sleep after the next [`turn`](Turn::turn) unless that finds something: sources
    /// that are only polled while the core is awake must notify from now on.
    fn arm(&mut self) {}

    /// The core is awake again.
    fn disarm(&mut self) {}
}

impl<F: FnMut() -> bool> Turn for F {
    fn turn(&mut self) -> bool {
        self()
    }
}

/// Part of the runtime that the loop drives: the links.
pub(crate) trait Source {
    /// Receives and handles timers. True when something happened.
    fn turn(&self) -> bool;
    /// Sends what was queued. True when something was sent or more can be.
    fn flush(&self) -> bool;
    /// Events that the application has not been shown a turn for; forgotten by asking.
    fn take_fresh(&self) -> bool;
    /// When [`turn`](Source::turn) must be called at the latest.
    fn next_timer(&self) -> Option<Instant>;
}

/// A file whose readiness ends the core's sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WatchId(u64);

/// What a core did; only ever grows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ReactorCounters {
    /// Turns of the loop.
    pub turns: u64,
    /// Times it slept.
    pub sleeps: u64,
    /// Turns that took longer than a millisecond.
    pub stalls: u64,
    /// The longest turn.
    pub longest_turn: Duration,
    /// Time in background tasks.
    pub background: Duration,
    /// Time asleep.
    pub asleep: Duration,
    /// Time in turns that found work.
    pub busy: Duration,
}

/// The loop of one core. It belongs to the thread that made it.
pub struct Reactor {
    clock: Rc<RealClock>,
    executor: Executor,
    doorbell: Arc<EventDoorbell>,
    door_watch: u64,
    ring: Rc<Ring>,
    sources: RefCell<Vec<Weak<dyn Source>>>,
    config: ReactorConfig,
    pools: RefCell<Option<Rc<[BufferPool]>>>,
    share: RefCell<Share>,
    gaps: Cell<Gaps>,
    counters: Cell<ReactorCounters>,
    /// When the turn before this one began; `None` after a sleep.
    previous: Cell<Option<Moment>>,
    /// The turn before this one found work.
    worked: Cell<bool>,
    spin: Cell<Duration>,
}

impl Reactor {
    /// A reactor of the calling thread with a doorbell of its own.
    pub fn new(config: ReactorConfig) -> Result<Reactor> {
        Reactor::with_doorbell(config, EventDoorbell::new()?)
    }

    /// A reactor of the calling thread. Other threads may have had the doorbell before.
    pub fn with_doorbell(config: ReactorConfig, doorbell: Arc<EventDoorbell>) -> Result<Reactor> {
        check(&config)?;
        if let Some(cpu) = config.cpu {
            bind(cpu)?;
        }
        let ring = Ring::new(config.entries)?;
        let clock = Rc::new(RealClock::new());
        let bell: Arc<dyn Doorbell> = Arc::clone(&doorbell) as Arc<dyn Doorbell>;
        let executor = Executor::new(Rc::clone(&clock) as Rc<dyn Clock>, bell);
        let door_watch = ring.watch(doorbell.fd(), READABLE, WatchMode::BeforeSleep);
        Ok(Reactor {
            share: RefCell::new(Share::new(config.background_share)),
            gaps: Cell::new(Gaps::new(clock.now())),
            clock,
            executor,
            doorbell,
            door_watch,
            ring,
            sources: RefCell::default(),
            spin: Cell::new(config.spin),
            config,
            pools: RefCell::new(None),
            counters: Cell::default(),
            previous: Cell::new(None),
            worked: Cell::new(false),
        })
    }

    /// The core's clock, refreshed at the begin of each turn.
    pub fn clock(&self) -> &Rc<RealClock> {
        &self.clock
    }

    /// The core's executor.
    pub fn executor(&self) -> &Executor {
        &self.executor
    }

    /// What other threads ring after they published work for this core, or a reason to stop.
    pub fn doorbell(&self) -> Arc<dyn Doorbell> {
        Arc::clone(&self.doorbell) as Arc<dyn Doorbell>
    }

    /// What the core did so far.
    pub fn counters(&self) -> ReactorCounters {
        self.counters.get()
    }

    /// Changes how long the core spins at most before it sleeps; see [`ReactorConfig::spin`].
    pub fn set_spin(&self, spin: Duration) {
        self.spin.set(spin);
    }

    /// Binds the calling thread, whose reactor this is, to a processor.
    pub fn pin(&self, cpu: usize) -> Result<()> {
        bind(cpu)
    }

    /// Changes the share of background tasks, in percent (clamped to 1 to 100).
    pub fn set_background_share(&self, percent: u8) {
        self.share.borrow_mut().set(percent);
    }

    /// Ends the core's sleep when `fd` is readable, at its end, or broken. The application reads
    /// it empty, or a file that stays ready keeps the core awake. The fd must stay open until
    /// [`unwatch`](Reactor::unwatch).
    pub fn watch(&self, fd: RawFd) -> WatchId {
        WatchId(self.ring.watch(fd, READABLE, WatchMode::Always))
    }

    /// Whether a watched file was ready since this was last asked: so that an application with
    /// many files reads only those that have something. A hint for the turn; what is ready and not
    /// asked about only ends sleeps.
    pub fn take_ready(&self, watch: WatchId) -> bool {
        self.ring.take_ready(watch.0)
    }

    /// Forgets a watch; to be called before its fd is closed.
    pub fn unwatch(&self, watch: WatchId) {
        self.ring.unwatch(watch.0);
    }

    pub(crate) fn ring(&self) -> &Rc<Ring> {
        &self.ring
    }

    pub(crate) fn add_source(&self, source: Weak<dyn Source>) {
        self.sources.borrow_mut().push(source);
    }

    /// The drives' buffers; registered at the first call.
    pub(crate) fn drive_pools(&self) -> Rc<[BufferPool]> {
        let mut pools = self.pools.borrow_mut();
        let made = pools
            .get_or_insert_with(|| self.ring.register_pools(&self.config.drive_buffers).into());
        Rc::clone(made)
    }

    /// Turns until `stop` says so. `stop` is asked before each turn and before each sleep, so it
    /// must go on saying what it once said: whoever changes its answer from another thread rings the [doorbell](Reactor::doorbell); a
    /// signal handler writes to a pipe that is [watched](Reactor::watch).
    pub fn run(&self, mut application: impl Turn, stop: impl Fn() -> bool) {
        self.previous.set(None);
        self.gaps.set(Gaps::new(self.clock.refresh()));
        while !stop() {
            if self.turn(&mut application) || self.tasks_ready() {
                continue;
            }
            let gaps = self.gaps.get();
            if self.clock.now().since(gaps.last_event()) < gaps.spin(self.spin.get()) {
                std::hint::spin_loop();
                continue;
            }
            self.sleep(&mut application, &stop);
        }
    }

    fn tasks_ready(&self) -> bool {
        self.executor.woken()
            || self.executor.ready(Priority::Foreground)
            || self.executor.ready(Priority::Background)
    }

    /// One pass over everything. True when anything happened.
    fn turn(&self, application: &mut impl Turn) -> bool {
        let begin = self.clock.refresh();
        let since = self.previous.replace(Some(begin)).map(|previous| begin.since(previous));
        self.count_turn(since);

        let reaped = self.ring.turn();
        if self.ring.take_ready(self.door_watch) {
            self.doorbell.drain();
        }
        let mut foreground = self.each_source(|source| source.turn());
        foreground |= application.turn();
        self.executor.gather();
        for _ in 0..FOREGROUND_MAX {
            if !self.executor.run_one(Priority::Foreground) {
                break;
            }
            foreground = true;
        }
        let background = self.run_background(begin, foreground, since.unwrap_or_default());
        let sent = self.each_source(|source| source.flush());

        let worked = reaped || foreground || background || sent;
        self.worked.set(worked);
        if worked {
            let mut gaps = self.gaps.get();
            gaps.event(begin);
            self.gaps.set(gaps);
        }
        worked
    }

    fn run_background(&self, begin: Moment, foreground: bool, since: Duration) -> bool {
        let mut share = self.share.borrow_mut();
        share.pass(begin, since, foreground);
        if !self.executor.ready(Priority::Background) || !share.may_run(begin) {
            return false;
        }
        drop(share);
        let start = Instant::now();
        let mut spent = Duration::ZERO;
        while spent < BACKGROUND_SLICE && self.executor.run_one(Priority::Background) {
            spent = start.elapsed();
        }
        self.share.borrow_mut().spend(spent);
        self.count(|counters| counters.background += spent);
        true
    }

    fn each_source(&self, mut what: impl FnMut(&dyn Source) -> bool) -> bool {
        let mut any = false;
        let mut gone = false;
        let mut index = 0;
        loop {
            // Not borrowed while the source works: it may come to add another.
            let Some(source) = self.sources.borrow().get(index).map(Weak::upgrade) else { break };
            match source {
                Some(source) => any |= what(&*source),
                None => gone = true,
            }
            index += 1;
        }
        if gone {
            self.sources.borrow_mut().retain(|source| source.strong_count() > 0);
        }
        any
    }

    /// See the module's page; the numbers are its steps.
    fn sleep(&self, application: &mut impl Turn, stop: &impl Fn() -> bool) {
        application.arm(); // 1
        self.doorbell.arm(); // 2
        if !self.last_look(application, stop) {
            let begin = self.clock.refresh();
            let limit = self.next_timer().map(|at| at.since(begin));
            if limit.is_none_or(|limit| limit > Duration::ZERO) {
                self.ring.sleep(limit); // 4, 5
                let asleep = self.clock.refresh().since(begin);
                self.count(|counters| {
                    counters.sleeps += 1;
                    counters.asleep += asleep;
                });
            }
        }
        self.doorbell.disarm(); // 6
        application.disarm();
        self.previous.set(None);
    }

    /// Step 3. True when there is something to do. What the application does here may have given
    /// work to tasks or links even when it says that it did nothing.
    fn last_look(&self, application: &mut impl Turn, stop: &impl Fn() -> bool) -> bool {
        stop()
            || application.turn()
            || self.each_source(|source| source.flush())
            || self.each_source(|source| source.take_fresh())
            || self.ring.is_fresh()
            || self.tasks_ready()
    }

    fn next_timer(&self) -> Option<Moment> {
        let mut earliest = self.executor.next_timer();
        self.each_source(|source| {
            let at = source.next_timer().map(RealClock::moment);
            earliest = [earliest, at].into_iter().flatten().min();
            false
        });
        earliest
    }

    fn count_turn(&self, since: Option<Duration>) {
        let took = since.unwrap_or_default();
        let worked = self.worked.get();
        self.count(|counters| {
            if worked {
                counters.busy += took;
            }
            counters.turns += 1;
            counters.longest_turn = counters.longest_turn.max(took);
            counters.stalls += u64::from(took > STALL);
        });
        if took > STALL {
            tracing::debug!(?took, "a turn of the core took long");
        }
    }

    fn count(&self, change: impl FnOnce(&mut ReactorCounters)) {
        let mut counters = self.counters.get();
        change(&mut counters);
        self.counters.set(counters);
    }
}

impl Drop for Reactor {
    fn drop(&mut self) {
        // Tasks may hold drives and links, whose parts hold the ring: end them first.
        self.executor.clear();
        self.ring.unwatch(self.door_watch);
    }
}

/// poll(2) bits; an end or an error of the file is always reported.
pub(crate) const READABLE: u32 = libc::POLLIN.cast_unsigned() as u32;
/// As [`READABLE`], for writing.
pub(crate) const WRITABLE: u32 = libc::POLLOUT.cast_unsigned() as u32;

fn check(config: &ReactorConfig) -> Result<()> {
    let bad = |name, reason: String| Err(Error::Setting { name, reason });
    if !(1..=100).contains(&config.background_share) {
        let reason = format!("{} percent is not within 1 to 100", config.background_share);
        return bad("background_share", reason);
    }
    if !(8..=32_768).contains(&config.entries) {
        return bad("entries", format!("{} is not within 8 to 32768", config.entries));
    }
    let buffers: usize = config.drive_buffers.iter().map(|(_, count)| usize::from(*count)).sum();
    if buffers > 16_384 {
        return bad("drive_buffers", format!("{buffers} buffers are more than 16384"));
    }
    if let Some((bytes, _)) = config.drive_buffers.iter().find(|(bytes, _)| *bytes > 1 << 30) {
        return bad("drive_buffers", format!("{bytes} bytes a buffer are more than 1 GiB"));
    }
    Ok(())
}

fn bind(cpu: usize) -> Result<()> {
    use rustix::thread::CpuSet;
    if cpu >= CpuSet::MAX_CPU {
        let reason = format!("there is no processor {cpu}");
        return Err(Error::Setting { name: "cpu", reason });
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set)
        .map_err(|errno| Error::System { what: "sched_setaffinity", source: errno.into() })
}
