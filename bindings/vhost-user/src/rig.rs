//! Test aids inside of the crate: shared memory, and the place where a process "dies".

use rustix::fs::MemfdFlags;
use std::cell::Cell;
use std::os::fd::OwnedFd;

/// A shared memory file of `bytes` zeros.
pub(crate) fn shared_memory(bytes: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create(c"rig", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    file
}

thread_local! {
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a death unwinds with.
pub(crate) struct Death;

/// The process dies after so many more steps; `None` for never.
pub(crate) fn die_after(steps: Option<u32>) {
    STEPS_LEFT.set(steps);
}

/// A place between two effects.
pub(crate) fn step() {
    match STEPS_LEFT.get() {
        None => {}
        Some(0) => {
            STEPS_LEFT.set(None);
            std::panic::resume_unwind(Box::new(Death));
        }
        Some(left) => STEPS_LEFT.set(Some(left - 1)),
    }
}
