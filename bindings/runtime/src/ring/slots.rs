//! The ring itself: a place for each item, and two counters.
//!
//! Invariants: `head <= tail <= head + capacity`. Places from `head` up to `tail` are the consumer's, all others the
//! producer's; each end moves its own counter, after it is done with the place, so a place has one owner at
//! a time. Each end remembers the last it saw of the other's counter and looks again only when that is not enough.

use super::atomic::{AtomicBool, AtomicUsize, Condvar, Mutex, Ordering, UnsafeCell};
use super::sleep::SleepFlag;
use crate::executor::Doorbell;
use std::cell::Cell;
use std::sync::{Arc, PoisonError};

/// On a cache line of its own, so that the two ends do not take each other's.
#[repr(align(128))]
struct Apart<T>(T);

struct Shared<T> {
    /// As many as a power of two.
    places: Box<[UnsafeCell<Option<T>>]>,
    capacity: usize,
    /// Items taken so far.
    head: Apart<AtomicUsize>,
    /// Items put so far.
    tail: Apart<AtomicUsize>,
    producer_gone: AtomicBool,
    consumer_gone: AtomicBool,
    /// A consumer that blocks.
    sleeping: SleepFlag,
    /// Whether its sleep was ended.
    woken: Mutex<bool>,
    wakes: Condvar,
}

// SAFETY: a place is touched by one end at a time (see above), and items may move between threads.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: it owns its items, and nothing in it belongs to a thread.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    /// Changes the item at a place.
    ///
    /// # Safety
    /// The place of `count` is the caller's end's.
    unsafe fn exchange(&self, count: usize, item: Option<T>) -> Option<T> {
        let place = &self.places[count & (self.places.len() - 1)];
        // SAFETY: nobody else has the place now, as the caller says.
        place.with_mut(|place| unsafe { std::mem::replace(&mut *place, item) })
    }

    /// Ends the sleep of a consumer that blocks, after something was published.
    fn wake(&self) {
        if self.sleeping.take() {
            *self.woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
            self.wakes.notify_one();
        }
    }

    /// Sleeps until [`wake`](Shared::wake), or since it.
    fn sleep(&self) {
        let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
        while !*woken {
            woken = self.wakes.wait(woken).unwrap_or_else(PoisonError::into_inner);
        }
        *woken = false;
    }
}

/// The producing end.
pub struct Producer<T: Send> {
    shared: Arc<Shared<T>>,
    doorbell: Arc<dyn Doorbell>,
    /// Items put so far.
    tail: Cell<usize>,
    /// Items taken, as far as was seen.
    head: Cell<usize>,
}

/// The consuming end.
pub struct Consumer<T: Send> {
    shared: Arc<Shared<T>>,
    /// Items taken so far.
    head: Cell<usize>,
    /// Items put, as far as was seen.
    tail: Cell<usize>,
}

/// Why an item was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The ring is full.
    Full(T),
    /// The consumer is gone.
    Closed(T),
}

/// A ring of `capacity` items (at least one) whose consumer wakes by `doorbell`.
pub fn ring<T: Send>(capacity: usize, doorbell: Arc<dyn Doorbell>) -> (Producer<T>, Consumer<T>) {
    let capacity = capacity.max(1);
    let places = (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(None)).collect();
    let shared = Arc::new(Shared {
        places,
        capacity,
        head: Apart(AtomicUsize::new(0)),
        tail: Apart(AtomicUsize::new(0)),
        producer_gone: AtomicBool::new(false),
        consumer_gone: AtomicBool::new(false),
        sleeping: SleepFlag::new(),
        woken: Mutex::new(false),
        wakes: Condvar::new(),
    });
    let (head, tail) = (Cell::new(0), Cell::new(0));
    let consumer = Consumer { shared: Arc::clone(&shared), head, tail };
    (Producer { shared, doorbell, tail: Cell::new(0), head: Cell::new(0) }, consumer)
}

impl<T: Send> Producer<T> {
    /// Puts an item in, and wakes the consumer.
    pub fn push(&self, item: T) -> Result<(), Refused<T>> {
        let shared = &*self.shared;
        if shared.consumer_gone.load(Ordering::Acquire) {
            return Err(Refused::Closed(item));
        }
        let tail = self.tail.get();
        if tail.wrapping_sub(self.head.get()) == shared.capacity {
            self.head.set(shared.head.0.load(Ordering::Acquire));
            if tail.wrapping_sub(self.head.get()) == shared.capacity {
                return Err(Refused::Full(item));
            }
        }
        // SAFETY: the place at the tail is the producer's while the ring is not full.
        let before = unsafe { shared.exchange(tail, Some(item)) };
        debug_assert!(before.is_none(), "an item was overwritten");
        self.tail.set(tail.wrapping_add(1));
        shared.tail.0.store(self.tail.get(), Ordering::Release);
        shared.wake();
        self.doorbell.ring();
        Ok(())
    }
}

impl<T: Send> Drop for Producer<T> {
    fn drop(&mut self) {
        self.shared.producer_gone.store(true, Ordering::Release);
        self.shared.wake();
        self.doorbell.ring();
    }
}

impl<T: Send> Consumer<T> {
    /// Whether an item waits.
    fn any(&self) -> bool {
        if self.head.get() == self.tail.get() {
            self.tail.set(self.shared.tail.0.load(Ordering::Acquire));
        }
        self.head.get() != self.tail.get()
    }

    /// Takes the next item if there is one.
    pub fn pop(&self) -> Option<T> {
        if !self.any() {
            return None;
        }
        let head = self.head.get();
        // SAFETY: the place at the head is the consumer's while the ring is not empty.
        let item = unsafe { self.shared.exchange(head, None) };
        self.head.set(head.wrapping_add(1));
        self.shared.head.0.store(self.head.get(), Ordering::Release);
        Some(item.expect("a place up to the tail has an item"))
    }

    /// Waits for the next item: for threads that may block (the catalog's). `None` when the
    /// producer is gone and the ring empty.
    pub fn wait(&self) -> Option<T> {
        let shared = &*self.shared;
        loop {
            if self.any() {
                return self.pop();
            }
            if self.closed() {
                return None;
            }
            shared.sleeping.arm();
            if self.any() || shared.producer_gone.load(Ordering::Acquire) {
                shared.sleeping.disarm();
                continue;
            }
            // It may end because of an item that was seen before; then this is done again.
            shared.sleep();
        }
    }

    /// Whether the producer is gone and nothing is left.
    pub fn closed(&self) -> bool {
        // In this order: what the producer put before it went is seen once it is seen to be gone.
        self.shared.producer_gone.load(Ordering::Acquire) && !self.any()
    }
}

impl<T: Send> Drop for Consumer<T> {
    fn drop(&mut self) {
        self.shared.consumer_gone.store(true, Ordering::Release);
    }
}
