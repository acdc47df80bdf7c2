//! Whether a core or a thread sleeps, as its wakers see it.
//!
//! Invariant: of a sleeper that arms and then looks, and a waker that publishes and then asks, at least one sees
//! the other, since both fence in between. The atomics come from the module above, so that tests can have
//! this very file run under every order that memory allows.

use super::atomic::{AtomicBool, Ordering, fence};

/// Set while a core sleeps, or is about to.
#[derive(Debug)]
pub struct SleepFlag(AtomicBool);

impl Default for SleepFlag {
    fn default() -> SleepFlag {
        SleepFlag::new()
    }
}

impl SleepFlag {
    /// Of a core that is awake.
    pub fn new() -> SleepFlag {
        SleepFlag(AtomicBool::new(false))
    }

    /// The core is about to look at its sources for the last time before it sleeps.
    pub fn arm(&self) {
        // An exchange comes after all changes that wakers made before, whatever order a plain store may have with them.
        self.0.swap(true, Ordering::Relaxed);
        // Pairs with the fence in `take`: either the look that follows sees what was published,
        // or the ringer sees the flag.
        fence(Ordering::SeqCst);
    }

    /// The core is awake.
    pub fn disarm(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    /// Whether the caller, who has published something, must end a sleep: of several callers one.
    pub fn take(&self) -> bool {
        fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed) && self.0.swap(false, Ordering::Relaxed)
    }
}
