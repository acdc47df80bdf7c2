//! Which files end a core's sleep, and which of them became ready.
//!
//! Each watch is a one-shot poll that is armed again before the next sleep, or, for those whose
//! readiness the application asks for, as soon as it has asked. A file that stays ready ends every
//! sleep at once: whoever watches it reads it empty or removes the watch.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::RawFd;

/// When a watch is armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WatchMode {
    /// Before each sleep: its owner looks at the file anyway while the core is awake.
    BeforeSleep,
    /// Whenever its readiness was taken: its owner looks at the file only then.
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Not in the kernel.
    Idle,
    /// In the kernel under this name.
    Armed(u64),
    /// The kernel refused it, which would be so again.
    Broken,
}

#[derive(Debug)]
struct Watch {
    fd: RawFd,
    interest: u32,
    mode: WatchMode,
    state: State,
    ready: bool,
}

/// All watches of a ring.
#[derive(Debug, Default)]
pub(crate) struct Watches {
    table: BTreeMap<u64, Watch>,
    next: u64,
    /// To arm at the next turn.
    soon: VecDeque<u64>,
    /// To arm before the next sleep.
    before_sleep: VecDeque<u64>,
}

impl Watches {
    pub(super) fn add(&mut self, fd: RawFd, interest: u32, mode: WatchMode) -> u64 {
        let watch = self.next;
        self.next += 1;
        let state = State::Idle;
        self.table.insert(watch, Watch { fd, interest, mode, state, ready: false });
        match mode {
            WatchMode::BeforeSleep => self.before_sleep.push_back(watch),
            WatchMode::Always => self.soon.push_back(watch),
        }
        watch
    }

    /// Removes a watch; returns its name in the kernel if it is armed there.
    pub(super) fn remove(&mut self, watch: u64) -> Option<u64> {
        match self.table.remove(&watch)?.state {
            State::Armed(name) => Some(name),
            State::Idle | State::Broken => None,
        }
    }

    /// The next watch to arm: (watch, fd, interest).
    pub(super) fn next_to_arm(&mut self, all: bool) -> Option<(u64, RawFd, u32)> {
        loop {
            let watch = match self.soon.pop_front() {
                None if all => self.before_sleep.pop_front()?,
                next => next?,
            };
            if let Some(found) = self.table.get(&watch)
                && found.state == State::Idle
            {
                return Some((watch, found.fd, found.interest));
            }
        }
    }

    pub(super) fn armed(&mut self, watch: u64, name: u64) {
        if let Some(found) = self.table.get_mut(&watch) {
            found.state = State::Armed(name);
        }
    }

    /// The kernel reported on a watch, which may be gone.
    pub(super) fn fired(&mut self, watch: u64, result: i32) {
        let Some(found) = self.table.get_mut(&watch) else { return };
        found.ready = true;
        if result < 0 && result != -libc::ECANCELED {
            tracing::warn!(fd = found.fd, errno = -result, "a file cannot be watched any more");
            found.state = State::Broken;
            return;
        }
        found.state = State::Idle;
        self.before_sleep.push_back(watch);
    }

    pub(super) fn take_ready(&mut self, watch: u64) -> bool {
        let Some(found) = self.table.get_mut(&watch) else { return false };
        let ready = std::mem::take(&mut found.ready);
        if ready && found.mode == WatchMode::Always {
            self.soon.push_back(watch);
        }
        ready
    }
}
