//! Every order in which a sleeper and its wakers can meet, with memory as weak as the language allows.

use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::sync::{Arc, atomic};
use loom::thread;

// Production's flag once more, on atomics whose every order is tried.
#[path = "flag.rs"]
mod flag;
use flag::SleepFlag;

/// What one sleeper and its wakers share. An eventfd is a counter that the kernel orders.
struct Shared {
    flag: SleepFlag,
    published: [AtomicBool; 2],
    event: AtomicUsize,
}

/// A core that goes to sleep while `wakers` publish: none of them may find it asleep for good.
fn meet(wakers: usize, sleeper: fn(&Shared) -> bool, ring: fn(&Shared)) {
    loom::model(move || {
        let published = [AtomicBool::new(false), AtomicBool::new(false)];
        let flag = SleepFlag::new();
        let shared = Arc::new(Shared { flag, published, event: AtomicUsize::new(0) });
        let threads: Vec<_> = (0..wakers)
            .map(|index| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.published[index].store(true, Ordering::Release);
                    ring(&shared);
                })
            })
            .collect();
        let sees_all = sleeper(&shared);
        for thread in threads {
            thread.join().unwrap();
        }
        let rung = shared.event.load(Ordering::Acquire) > 0;
        assert!(sees_all || rung, "a core sleeps though there is work");
    });
}

fn look(shared: &Shared) -> bool {
    shared.published.iter().any(|published| published.load(Ordering::Acquire))
}

fn arm_and_look(shared: &Shared) -> bool {
    shared.flag.arm();
    let seen = look(shared);
    if seen {
        shared.flag.disarm();
    }
    seen
}

fn ring(shared: &Shared) {
    if shared.flag.take() {
        shared.event.fetch_add(1, Ordering::AcqRel);
    }
}

#[test]
fn no_wake_is_lost() {
    meet(1, arm_and_look, ring);
    meet(2, arm_and_look, ring);
}

#[test]
#[should_panic(expected = "a core sleeps though there is work")]
fn a_look_before_arming_is_found() {
    let looks_first = |shared: &Shared| {
        let seen = look(shared);
        shared.flag.arm();
        seen
    };
    meet(1, looks_first, ring);
}
