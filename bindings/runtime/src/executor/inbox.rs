//! Wakes of tasks on their way to the executor, also from other threads.
//!
//! Invariant: whoever published something and then woke a task is seen by a poll of that task that begins later: the wake
//! is queued, or the poll that an earlier wake queued has not begun. So the flag is taken down by an exchange, which
//! sees all that the wakers before it published; with a plain store a poll could look before it.

use super::atomic::{AtomicBool, Mutex, Ordering};
use std::sync::PoisonError;

/// Whether a task's next poll is queued.
pub(crate) struct Queued(AtomicBool);

impl Queued {
    /// Of a task that waits.
    pub(crate) fn new() -> Queued {
        Queued(AtomicBool::new(false))
    }

    /// The task is about to be polled: from here on wakes queue it anew.
    pub(crate) fn begin_poll(&self) {
        self.0.swap(false, Ordering::AcqRel);
    }
}

/// Names of woken tasks.
pub(crate) struct Inbox<N> {
    woken: Mutex<Vec<N>>,
    any: AtomicBool,
}

impl<N> Inbox<N> {
    /// An empty one.
    pub(crate) fn new() -> Inbox<N> {
        Inbox { woken: Mutex::new(Vec::new()), any: AtomicBool::new(false) }
    }

    /// Queues a task's poll, unless it is queued. True when it was this call that did: then the executor's
    /// thread must be awake.
    pub(crate) fn wake(&self, queued: &Queued, name: N) -> bool {
        if queued.0.swap(true, Ordering::AcqRel) {
            return false;
        }
        self.woken.lock().unwrap_or_else(PoisonError::into_inner).push(name);
        self.any.store(true, Ordering::SeqCst);
        true
    }

    /// Takes all names, in the order of wakes.
    pub(crate) fn take(&self, mut each: impl FnMut(N)) {
        if self.any.swap(false, Ordering::SeqCst) {
            let mut woken = self.woken.lock().unwrap_or_else(PoisonError::into_inner);
            woken.drain(..).for_each(&mut each);
        }
    }

    /// Whether there may be names. For the last look before a sleep.
    pub(crate) fn any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }
}
