//! Every order in which threads can meet in this crate's lock-free code, with memory as weak as the language
//! allows: a core that goes to sleep and its wakers, the rings between cores, wakes of tasks from other threads.

// Production's files a second time are the point.
#![allow(clippy::duplicate_mod)]

use crate::executor::Doorbell;
use inbox::{Inbox, Queued};
use loom::thread;
use sleep::SleepFlag;
use slots::{Refused, ring};
use std::sync::Arc;

/// In place of the standard library's.
mod atomic {
    pub(super) use loom::cell::UnsafeCell;
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex};
}

// Production's files once more, on these.
#[path = "executor/inbox.rs"]
mod inbox;
#[path = "sleep.rs"]
mod sleep;
#[path = "ring/slots.rs"]
mod slots;

use atomic::{AtomicBool, AtomicUsize, Ordering};

/// A core's doorbell as in `runtime/real`. An eventfd is a counter that the kernel orders.
#[derive(Default)]
struct Bell {
    flag: SleepFlag,
    event: AtomicUsize,
}

impl Doorbell for Bell {
    fn ring(&self) {
        if self.flag.take() {
            self.event.fetch_add(1, Ordering::AcqRel);
        }
    }
}

impl Bell {
    /// Arms and looks; whether the look saw something. Otherwise the core sleeps.
    fn sleep_unless(&self, look: impl FnOnce() -> bool) -> bool {
        self.flag.arm();
        let seen = look();
        if seen {
            self.flag.disarm();
        }
        seen
    }

    fn was_rung(&self) -> bool {
        self.event.load(Ordering::Acquire) > 0
    }
}

const LOST: &str = "a core sleeps though there is work";

/// A core that goes to sleep while `wakers` publish: none of them may find it asleep for good.
fn meet(wakers: usize, sleeper: fn(&Bell, &[AtomicBool; 2]) -> bool) {
    loom::model(move || {
        let published = Arc::new([AtomicBool::new(false), AtomicBool::new(false)]);
        let bell = Arc::new(Bell::default());
        let threads: Vec<_> = (0..wakers)
            .map(|index| {
                let (bell, published) = (Arc::clone(&bell), Arc::clone(&published));
                thread::spawn(move || {
                    published[index].store(true, Ordering::Release);
                    bell.ring();
                })
            })
            .collect();
        let sees_all = sleeper(&bell, &published);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert!(sees_all || bell.was_rung(), "{LOST}");
    });
}

fn look(published: &[AtomicBool; 2]) -> bool {
    published.iter().any(|published| published.load(Ordering::Acquire))
}

#[test]
fn no_wake_is_lost() {
    let arms_first =
        |bell: &Bell, published: &[AtomicBool; 2]| bell.sleep_unless(|| look(published));
    meet(1, arms_first);
    meet(2, arms_first);
}

#[test]
#[should_panic(expected = "a core sleeps though there is work")]
fn a_look_before_arming_is_found() {
    meet(1, |bell, published| {
        let seen = look(published);
        bell.flag.arm();
        seen
    });
}

/// A ring of one place and one of two, each filled and emptied more than once.
#[test]
fn items_arrive_once_and_in_order() {
    for (capacity, items) in [(1, 3), (2, 3)] {
        loom::model(move || {
            let (producer, consumer) = ring(capacity, Arc::new(Bell::default()));
            let feeder = thread::spawn(move || {
                for number in 0..items {
                    let mut item = number;
                    while let Err(refused) = producer.push(item) {
                        let Refused::Full(back) = refused else { panic!("nobody closed the ring") };
                        item = back;
                        thread::yield_now();
                    }
                }
            });
            let mut wanted = 0;
            while wanted < items {
                match consumer.pop() {
                    Some(item) => {
                        assert_eq!(item, wanted);
                        wanted += 1;
                    }
                    None => thread::yield_now(),
                }
            }
            feeder.join().unwrap();
            assert!(consumer.pop().is_none() && consumer.closed());
        });
    }
}

/// The producer wakes a core that was about to sleep, or asleep; also by going away.
#[test]
fn a_push_wakes_a_sleeping_core() {
    loom::model(|| {
        let bell = Arc::new(Bell::default());
        let (producer, consumer) = ring(2, Arc::clone(&bell) as Arc<dyn Doorbell>);
        let feeder = thread::spawn(move || {
            producer.push(7).unwrap();
            producer
        });
        let mut got = None;
        let awake = bell.sleep_unless(|| {
            got = consumer.pop();
            got.is_some()
        });
        let producer = feeder.join().unwrap();
        assert!(awake || bell.was_rung(), "{LOST}");
        assert_eq!(got.or_else(|| consumer.pop()), Some(7));
        assert!(!consumer.closed());
        drop(producer);
        assert!(consumer.closed());
    });
    loom::model(|| {
        let bell = Arc::new(Bell::default());
        let (producer, consumer) = ring::<u8>(2, Arc::clone(&bell) as Arc<dyn Doorbell>);
        let leaver = thread::spawn(move || drop(producer));
        let awake = bell.sleep_unless(|| consumer.closed());
        leaver.join().unwrap();
        assert!(awake || bell.was_rung(), "{LOST}");
    });
}

/// A consumer that blocks gets every item, and hears that there will be no more. A wake that is lost is a
/// deadlock here.
#[test]
fn a_consumer_that_blocks_is_woken() {
    loom::model(|| {
        let (producer, consumer) = ring(1, Arc::new(Bell::default()));
        let feeder = thread::spawn(move || producer.push(3).unwrap());
        assert_eq!(consumer.wait(), Some(3));
        assert_eq!(consumer.wait(), None);
        feeder.join().unwrap();
    });
}

/// An item goes to the consumer, back to the producer, or with the ring, and is dropped once.
#[test]
fn no_item_is_lost_between_ends_that_go() {
    loom::model(|| {
        let item = Arc::new(());
        let (producer, consumer) = ring(1, Arc::new(Bell::default()));
        let sent = Arc::clone(&item);
        let feeder = thread::spawn(move || match producer.push(sent) {
            Ok(()) => {}
            Err(Refused::Closed(back) | Refused::Full(back)) => drop(back),
        });
        let got = consumer.pop();
        drop(consumer);
        feeder.join().unwrap();
        drop(got);
        assert_eq!(Arc::strong_count(&item), 1);
    });
}

/// A task's executor as its wakers see it.
struct Home {
    inbox: Inbox<u8>,
    queued: Queued,
    bell: Bell,
}

/// The home thread polls a task while another one publishes something and wakes it, twice: it polls after the
/// last time, or is rung.
#[test]
fn a_task_is_polled_after_its_last_wake() {
    loom::model(|| {
        let home =
            Arc::new(Home { inbox: Inbox::new(), queued: Queued::new(), bell: Bell::default() });
        let published = Arc::new(AtomicUsize::new(0));
        home.inbox.wake(&home.queued, 1);
        let (other, source) = (Arc::clone(&home), Arc::clone(&published));
        let waker = thread::spawn(move || {
            for number in 1..=2 {
                // As weak as what a task may look at can be.
                source.store(number, Ordering::Relaxed);
                if other.inbox.wake(&other.queued, 1) {
                    other.bell.ring();
                }
            }
        });
        let mut seen = 0;
        let mut run = || {
            let mut names = Vec::new();
            home.inbox.take(|name| names.push(name));
            for _ in &names {
                home.queued.begin_poll();
                seen = published.load(Ordering::Relaxed);
            }
        };
        run();
        let awake = home.bell.sleep_unless(|| home.inbox.any());
        if awake {
            run();
            // Once more around: arm, look.
            if home.bell.sleep_unless(|| home.inbox.any()) {
                run();
            }
        }
        waker.join().unwrap();
        // Whatever is queued is run once the core is awake, which it is or is rung to be.
        let waits = home.inbox.any();
        assert!(!waits || home.bell.was_rung() || awake, "{LOST}");
        run();
        assert_eq!(seen, 2, "{LOST}");
    });
}
