use super::*;
use cleave_runtime::ring::{Refused, ring};
use cleave_runtime::sync::Signal;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

fn config() -> ReactorConfig {
    ReactorConfig { spin: Duration::ZERO, ..ReactorConfig::default() }
}

#[test]
fn no_wake_is_lost_between_two_cores_that_sleep() {
    const ROUNDS: u64 = 30_000;
    let (mine, theirs) = (EventDoorbell::new().unwrap(), EventDoorbell::new().unwrap());
    let (to_them, from_me) = ring::<u64>(1, Arc::clone(&theirs) as Arc<dyn Doorbell>);
    let (to_me, from_them) = ring::<u64>(1, Arc::clone(&mine) as Arc<dyn Doorbell>);
    let echo = std::thread::spawn(move || {
        let reactor = Reactor::with_doorbell(config(), theirs).unwrap();
        let seen = Cell::new(0);
        let turn = || match from_me.pop() {
            Some(number) => {
                seen.set(number);
                to_me.push(number).unwrap();
                true
            }
            None => false,
        };
        reactor.run(turn, || seen.get() == ROUNDS);
        reactor.counters()
    });
    let reactor = Reactor::with_doorbell(config(), mine).unwrap();
    let expected = Cell::new(0);
    let turn = || {
        let popped = from_them.pop();
        if let Some(number) = popped {
            assert_eq!(number, expected.get());
        }
        if expected.get() == 0 || (popped.is_some() && expected.get() < ROUNDS) {
            expected.set(expected.get() + 1);
            to_them.push(expected.get()).unwrap();
            return true;
        }
        popped.is_some() && {
            expected.set(ROUNDS + 1);
            true
        }
    };
    reactor.run(turn, || expected.get() > ROUNDS);
    let theirs = echo.join().unwrap();
    assert!(reactor.counters().sleeps > 100 && theirs.sleeps > 100, "they did sleep");
}

#[test]
fn tasks_are_woken_by_other_threads_while_the_core_sleeps() {
    const ROUNDS: u64 = 10_000;
    let reactor = Reactor::new(config()).unwrap();
    let (count, doorbell) = (Arc::new(AtomicU64::new(0)), reactor.doorbell());
    let (sender, receiver) = std::sync::mpsc::channel::<std::task::Waker>();
    let waker = {
        let count = Arc::clone(&count);
        std::thread::spawn(move || {
            for waker in receiver {
                count.fetch_add(1, Ordering::SeqCst);
                waker.wake();
            }
        })
    };
    let done = Rc::new(Cell::new(false));
    let (seen, finished) = (Arc::clone(&count), Rc::clone(&done));
    reactor.executor().spawn(Priority::Foreground, async move {
        for round in 1..=ROUNDS {
            let mut asked = false;
            std::future::poll_fn(|context| {
                if !std::mem::replace(&mut asked, true) {
                    sender.send(context.waker().clone()).unwrap();
                }
                match seen.load(Ordering::SeqCst) >= round {
                    true => std::task::Poll::Ready(()),
                    false => std::task::Poll::Pending,
                }
            })
            .await;
        }
        finished.set(true);
    });
    reactor.run(|| false, || done.get());
    waker.join().unwrap();
    assert_eq!(count.load(Ordering::SeqCst), ROUNDS);
    drop(doorbell);
}

#[test]
fn stopping_from_another_thread_needs_only_the_doorbell() {
    let reactor = Reactor::new(config()).unwrap();
    for _ in 0..200 {
        let stop = Arc::new(AtomicBool::new(false));
        let (setter, doorbell) = (Arc::clone(&stop), reactor.doorbell());
        let thread = std::thread::spawn(move || {
            setter.store(true, Ordering::SeqCst);
            doorbell.ring();
        });
        reactor.run(|| false, || stop.load(Ordering::SeqCst));
        thread.join().unwrap();
    }
}

#[test]
fn watched_files_end_the_sleep_and_say_so() {
    let reactor = Reactor::new(config()).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let (quiet, _quiet_writer) = rustix::pipe::pipe().unwrap();
    let watch = reactor.watch(reader.as_raw_fd());
    let other = reactor.watch(quiet.as_raw_fd());
    let (sender, receiver) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        for _ in 0..500 {
            rustix::io::write(&writer, b"x").unwrap();
            receiver.recv().unwrap();
        }
    });
    let seen = Cell::new(0);
    let turn = || {
        if !reactor.take_ready(watch) {
            return false;
        }
        let mut byte = [0; 8];
        assert_eq!(rustix::io::read(&reader, &mut byte).unwrap(), 1);
        seen.set(seen.get() + 1);
        sender.send(()).unwrap();
        true
    };
    reactor.run(turn, || seen.get() == 500);
    thread.join().unwrap();
    assert!(!reactor.take_ready(other));
    reactor.unwatch(watch);
    reactor.unwatch(other);
    reactor.unwatch(other);
}

#[test]
fn closing_an_unwatched_file_closes_it() {
    let reactor = Reactor::new(config()).unwrap();
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let watch = reactor.watch(reader.as_raw_fd());
    let turns = Cell::new(0);
    reactor.run(|| true, || turns.replace(turns.get() + 1) > 2);
    reactor.unwatch(watch);
    drop(reader);
    // A reader that a poll still held would make this succeed.
    assert_eq!(rustix::io::write(&writer, b"x"), Err(rustix::io::Errno::PIPE));
}

#[test]
fn a_broken_watch_does_not_keep_the_core_awake() {
    let reactor = Reactor::new(config()).unwrap();
    let watch = reactor.watch(1_000_000);
    let executor = reactor.executor().clone();
    let done = Rc::new(Cell::new(false));
    let finished = Rc::clone(&done);
    reactor.executor().spawn(Priority::Foreground, async move {
        for _ in 0..5 {
            executor.sleep(Duration::from_millis(2)).await;
        }
        finished.set(true);
    });
    reactor.run(|| false, || done.get());
    assert!(reactor.counters().turns < 1_000, "{:?}", reactor.counters());
    reactor.unwatch(watch);
}

#[test]
fn timers_end_the_sleep_and_all_priorities_run() {
    let reactor = Reactor::new(config()).unwrap();
    let order = Rc::new(RefCell::new(Vec::new()));
    let signal = Signal::new();
    for (priority, wait) in
        [(Priority::Foreground, 20), (Priority::Background, 10), (Priority::Background, 0)]
    {
        let (executor, order) = (reactor.executor().clone(), Rc::clone(&order));
        let signal = signal.clone();
        reactor.executor().spawn(priority, async move {
            let begin = executor.now();
            executor.sleep(Duration::from_millis(wait)).await;
            assert!(executor.now().since(begin) >= Duration::from_millis(wait));
            order.borrow_mut().push(wait);
            signal.notify();
        });
    }
    reactor.run(|| false, || order.borrow().len() == 3);
    assert_eq!(order.borrow()[0], 0);
    let counters = reactor.counters();
    assert!(counters.sleeps > 0 && counters.turns > counters.sleeps);
}

/// Published work that only shows once its source was told to notify, as a guest's kicks.
#[derive(Default)]
struct Armed {
    arms: u64,
    disarms: u64,
    looks_while_armed: u64,
}

impl Turn for &mut Armed {
    fn turn(&mut self) -> bool {
        self.looks_while_armed += u64::from(self.arms > self.disarms);
        false
    }
    fn arm(&mut self) {
        self.arms += 1;
    }
    fn disarm(&mut self) {
        self.disarms += 1;
    }
}

#[test]
fn the_application_is_asked_once_more_after_it_armed() {
    let reactor = Reactor::new(config()).unwrap();
    let executor = reactor.executor().clone();
    let done = Rc::new(Cell::new(false));
    let finished = Rc::clone(&done);
    reactor.executor().spawn(Priority::Foreground, async move {
        executor.sleep(Duration::from_millis(5)).await;
        finished.set(true);
    });
    let mut application = Armed::default();
    reactor.run(&mut application, || done.get());
    assert!(application.arms > 0);
    assert_eq!(application.arms, application.disarms);
    assert_eq!(application.arms, application.looks_while_armed);
}

#[test]
fn settings_out_of_range_are_refused() {
    for (name, config) in [
        ("background_share", ReactorConfig { background_share: 0, ..config() }),
        ("background_share", ReactorConfig { background_share: 101, ..config() }),
        ("entries", ReactorConfig { entries: 0, ..config() }),
        ("cpu", ReactorConfig { cpu: Some(1 << 20), ..config() }),
        ("drive_buffers", ReactorConfig { drive_buffers: vec![(4096, 20_000)], ..config() }),
    ] {
        match Reactor::new(config).map(|_| ()) {
            Err(Error::Setting { name: found, .. }) => assert_eq!(found, name),
            other => panic!("{name}: {other:?}"),
        }
    }
}

#[test]
fn a_full_ring_between_cores_gives_back_and_goes_on() {
    let doorbell = EventDoorbell::new().unwrap();
    let (producer, consumer) = ring::<u32>(4, Arc::clone(&doorbell) as Arc<dyn Doorbell>);
    let feeder = std::thread::spawn(move || {
        for number in 0..20_000 {
            let mut item = number;
            while let Err(Refused::Full(back)) = producer.push(item) {
                item = back;
                std::thread::yield_now();
            }
        }
    });
    let reactor = Reactor::with_doorbell(config(), doorbell).unwrap();
    let next = Cell::new(0);
    let turn = || match consumer.pop() {
        Some(number) => {
            assert_eq!(number, next.get());
            next.set(number + 1);
            true
        }
        None => false,
    };
    reactor.run(turn, || next.get() == 20_000);
    feeder.join().unwrap();
}

/// Work that is published right after the last look, when only the doorbell can tell of it.
struct JustMissed {
    armed: bool,
    published: u64,
    seen: Rc<Cell<u64>>,
    doorbell: Arc<dyn Doorbell>,
}

impl Turn for JustMissed {
    fn turn(&mut self) -> bool {
        let any = self.published > self.seen.get();
        self.seen.set(self.published);
        if self.armed {
            self.published += 1;
            self.doorbell.ring();
        }
        any
    }
    fn arm(&mut self) {
        self.armed = true;
    }
    fn disarm(&mut self) {
        self.armed = false;
    }
}

#[test]
fn what_is_published_after_the_last_look_ends_the_sleep() {
    const ROUNDS: u64 = 1_000;
    let reactor = Reactor::new(config()).unwrap();
    let seen = Rc::new(Cell::new(0));
    let late = Rc::new(Cell::new(false));
    let (executor, too_late) = (reactor.executor().clone(), Rc::clone(&late));
    reactor.executor().spawn(Priority::Foreground, async move {
        // Far beyond any pause: so that a lost wake fails the test instead of stopping it.
        executor.sleep(Duration::from_secs(60)).await;
        too_late.set(true);
    });
    let doorbell = reactor.doorbell();
    let application = JustMissed { armed: false, published: 0, seen: Rc::clone(&seen), doorbell };
    reactor.run(application, || seen.get() >= ROUNDS || late.get());
    assert!(!late.get(), "a wake was lost after {} rounds", seen.get());
}
