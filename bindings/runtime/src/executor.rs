//! The local executor: tasks of one core, timers, and wakes from other threads.
//!
//! It neither sleeps nor owns a loop: the reactor (or the simulator) calls [`Executor::gather`]
//! and [`Executor::run_one`] between its other work and sleeps itself, until
//! [`Executor::next_timer`] or until the [`Doorbell`] rings. Two run queues, so that background
//! flows can be given a share. It is the same in the simulator, under a virtual clock; the order in
//! which tasks run follows from the order of wakes alone.
//!
//! A wake goes through a mutex that only foreign threads can contend for. Per-I/O work is not done
//! in tasks (DESIGN rule 6).

use crate::atomic;
use crate::time::{Clock, Moment};
use inbox::{Inbox, Queued};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::ThreadId;
use std::time::Duration;

mod inbox;

/// Which run queue a task waits in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// Guests wait for it.
    Foreground,
    /// Destage, rebuild, scrub: within a CPU share.
    Background,
}

/// Wakes the loop of a core that may be asleep.
pub trait Doorbell: Send + Sync {
    /// Called from any thread, after the reason was published.
    fn ring(&self);
}

/// For loops that never sleep while work can arrive, as the simulator's.
pub struct NoDoorbell;

impl Doorbell for NoDoorbell {
    fn ring(&self) {}
}

type LocalFuture = Pin<Box<dyn Future<Output = ()>>>;

#[derive(Clone, Copy)]
struct TaskName {
    index: u32,
    generation: u32,
    priority: Priority,
}

/// Where wakes arrive, also from other threads.
struct Home {
    inbox: Inbox<TaskName>,
    thread: ThreadId,
    doorbell: Arc<dyn Doorbell>,
}

struct TaskWaker {
    name: TaskName,
    queued: Queued,
    home: Arc<Home>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let home = &self.home;
        let queued = home.inbox.wake(&self.queued, self.name);
        if queued && std::thread::current().id() != home.thread {
            home.doorbell.ring();
        }
    }
}

struct Slot {
    generation: u32,
    future: Option<LocalFuture>,
    waker: Option<Arc<TaskWaker>>,
}

struct Timer {
    at: Moment,
    number: u64,
    waker: Waker,
}

impl PartialEq for Timer {
    fn eq(&self, other: &Timer) -> bool {
        (self.at, self.number) == (other.at, other.number)
    }
}
impl Eq for Timer {}
impl PartialOrd for Timer {
    fn partial_cmp(&self, other: &Timer) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Timer {
    fn cmp(&self, other: &Timer) -> std::cmp::Ordering {
        (self.at, self.number).cmp(&(other.at, other.number))
    }
}

struct Inner {
    clock: Rc<dyn Clock>,
    home: Arc<Home>,
    slots: RefCell<Vec<Slot>>,
    free: RefCell<Vec<u32>>,
    foreground: RefCell<VecDeque<TaskName>>,
    background: RefCell<VecDeque<TaskName>>,
    timers: RefCell<BinaryHeap<Reverse<Timer>>>,
    timer_number: Cell<u64>,
}

/// A handle to the executor of this core; clones are the same executor.
#[derive(Clone)]
pub struct Executor(Rc<Inner>);

impl Executor {
    /// An executor whose home is the calling thread.
    pub fn new(clock: Rc<dyn Clock>, doorbell: Arc<dyn Doorbell>) -> Executor {
        let home = Home { inbox: Inbox::new(), thread: std::thread::current().id(), doorbell };
        Executor(Rc::new(Inner {
            clock,
            home: Arc::new(home),
            slots: RefCell::default(),
            free: RefCell::default(),
            foreground: RefCell::default(),
            background: RefCell::default(),
            timers: RefCell::default(),
            timer_number: Cell::new(0),
        }))
    }

    /// The clock by which timers run.
    pub fn clock(&self) -> &Rc<dyn Clock> {
        &self.0.clock
    }

    /// The present moment.
    pub fn now(&self) -> Moment {
        self.0.clock.now()
    }

    /// Starts a task; it runs until it ends or the executor is dropped.
    pub fn spawn(&self, priority: Priority, future: impl Future<Output = ()> + 'static) {
        let inner = &self.0;
        let mut slots = inner.slots.borrow_mut();
        let index = inner.free.borrow_mut().pop().unwrap_or_else(|| {
            slots.push(Slot { generation: 0, future: None, waker: None });
            u32::try_from(slots.len() - 1).expect("fewer than 2^32 tasks")
        });
        let slot = &mut slots[index as usize];
        let name = TaskName { index, generation: slot.generation, priority };
        let waker = TaskWaker { name, queued: Queued::new(), home: Arc::clone(&inner.home) };
        let waker = Arc::new(waker);
        slot.future = Some(Box::pin(future));
        slot.waker = Some(Arc::clone(&waker));
        waker.wake();
    }

    /// Moves due timers and wakes into the run queues. Cheap when there are none.
    pub fn gather(&self) {
        let inner = &self.0;
        let now = inner.clock.now();
        loop {
            let due = {
                let mut timers = inner.timers.borrow_mut();
                match timers.peek() {
                    Some(Reverse(timer)) if timer.at <= now => timers.pop(),
                    _ => None,
                }
            };
            let Some(Reverse(timer)) = due else { break };
            timer.waker.wake();
        }
        inner.home.inbox.take(|name| self.queue(name.priority).borrow_mut().push_back(name));
    }

    fn queue(&self, priority: Priority) -> &RefCell<VecDeque<TaskName>> {
        match priority {
            Priority::Foreground => &self.0.foreground,
            Priority::Background => &self.0.background,
        }
    }

    /// Whether a gathered task of this priority waits to run.
    pub fn ready(&self, priority: Priority) -> bool {
        !self.queue(priority).borrow().is_empty()
    }

    /// Whether a wake has arrived that [`gather`](Executor::gather) has not seen. Read with
    /// sequential consistency, for the arm-check-sleep protocol.
    pub fn woken(&self) -> bool {
        self.0.home.inbox.any()
    }

    /// When the next timer is due.
    pub fn next_timer(&self) -> Option<Moment> {
        self.0.timers.borrow().peek().map(|Reverse(timer)| timer.at)
    }

    /// Polls one gathered task; false when there was none.
    pub fn run_one(&self, priority: Priority) -> bool {
        let Some(name) = self.queue(priority).borrow_mut().pop_front() else {
            return false;
        };
        let inner = &self.0;
        let (mut future, waker) = {
            let mut slots = inner.slots.borrow_mut();
            let slot = &mut slots[name.index as usize];
            if slot.generation != name.generation {
                return true;
            }
            match (slot.future.take(), slot.waker.clone()) {
                (Some(future), Some(waker)) => (future, waker),
                _ => return true,
            }
        };
        waker.queued.begin_poll();
        let outcome = future.as_mut().poll(&mut Context::from_waker(&Waker::from(waker)));
        let mut slots = inner.slots.borrow_mut();
        let slot = &mut slots[name.index as usize];
        if outcome.is_ready() {
            slot.generation = slot.generation.wrapping_add(1);
            slot.waker = None;
            inner.free.borrow_mut().push(name.index);
            drop(slots);
            drop(future);
        } else {
            slot.future = Some(future);
        }
        true
    }

    /// Runs until no task is ready: for the simulator and for tests, which have no shares.
    /// Returns whether anything ran.
    pub fn run_until_idle(&self) -> bool {
        let mut any = false;
        loop {
            self.gather();
            let ran = self.run_one(Priority::Foreground) || self.run_one(Priority::Background);
            if !ran {
                return any;
            }
            any = true;
        }
    }

    /// Ends every task: their futures are dropped. For a process that stops or, simulated, dies.
    pub fn clear(&self) {
        let futures: Vec<_> =
            self.0.slots.borrow_mut().iter_mut().map(|s| s.future.take()).collect();
        drop(futures);
        self.0.timers.borrow_mut().clear();
    }

    /// Completes at `at` or soon after.
    pub fn sleep_until(&self, at: Moment) -> Sleep {
        Sleep { executor: self.clone(), at, armed: false }
    }

    /// Completes after `span`.
    pub fn sleep(&self, span: Duration) -> Sleep {
        self.sleep_until(self.now() + span)
    }

    /// Lets other ready work run first. Background work units call it at least every 50 µs.
    pub fn yield_now(&self) -> YieldNow {
        YieldNow { yielded: false }
    }

    /// Runs `future` for at most `span`; `None` when it was not done by then (it is dropped).
    pub async fn timeout<T>(&self, span: Duration, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        let mut sleep = self.sleep(span);
        std::future::poll_fn(move |context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Some(value));
            }
            Pin::new(&mut sleep).poll(context).map(|()| None)
        })
        .await
    }
}

/// Future of [`Executor::sleep_until`].
pub struct Sleep {
    executor: Executor,
    at: Moment,
    armed: bool,
}

impl Future for Sleep {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        let inner = Rc::clone(&self.executor.0);
        if inner.clock.now() >= self.at {
            return Poll::Ready(());
        }
        if !self.armed {
            self.armed = true;
            let number = inner.timer_number.replace(inner.timer_number.get() + 1);
            let timer = Timer { at: self.at, number, waker: context.waker().clone() };
            inner.timers.borrow_mut().push(Reverse(timer));
        }
        Poll::Pending
    }
}

/// Future of [`Executor::yield_now`].
pub struct YieldNow {
    yielded: bool,
}

impl Future for YieldNow {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<()> {
        if self.yielded {
            return Poll::Ready(());
        }
        self.yielded = true;
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
