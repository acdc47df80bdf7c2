//! Shared memory that shrinks under us: SIGBUS of a front end's mapping breaks its device, not the
//! process.
//!
//! A mapping is refused when its file is shorter, but the front end keeps the file and may truncate
//! it later; the next access then raises SIGBUS. The handler here, installed once per process with
//! the first mapping, looks the address up among the registered mappings, puts zeros of nobody's in
//! the place of the whole mapping, and sounds the owner's [`Alarm`]. The access goes on, and its
//! result is worth nothing: whoever is about to rely on what was read or written asks
//! [`Alarm::rung`] first. Any other SIGBUS goes to the handler that was there before, or ends the
//! process as ever.
//!
//! Invariants: a range is registered only while it is mapped, so a [`Guard`] goes before its
//! mapping does; [`Mapping`] sees to it by the order of its fields. The table only grows, so the
//! handler walks it without locks. It holds nothing that outlives the process.

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
use std::ffi::{c_int, c_void};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, compiler_fence};
use std::sync::{Arc, Once};
use vm_memory::mmap::MmapRegion;

/// Mappings of one part of the table.
const PART: usize = 256;

/// Says whether any mapping of a connection was lost.
#[derive(Debug, Clone, Default)]
pub(crate) struct Alarm(Arc<AtomicBool>);

impl Alarm {
    /// Whether a mapping was lost in an access up to now.
    #[inline]
    pub(crate) fn rung(&self) -> bool {
        // The handler ran in this thread, in the middle of an access that the compiler takes for an
        // ordinary copy: the look at the flag must not move before it.
        compiler_fence(Ordering::SeqCst);
        self.0.load(Ordering::Relaxed)
    }
}

/// A mapping and its registration; the registration goes first.
#[derive(Debug)]
pub(crate) struct Mapping {
    pub(crate) guard: Guard,
    pub(crate) memory: MmapRegion<()>,
}

impl Mapping {
    /// Guards a mapping whose loss `alarm` tells.
    pub(crate) fn new(memory: MmapRegion<()>, alarm: &Alarm) -> Mapping {
        let guard = Guard::new(memory.as_ptr() as usize, memory.size(), alarm);
        Mapping { guard, memory }
    }
}

/// A registered range. Must go before the range is unmapped.
#[derive(Debug)]
pub(crate) struct Guard {
    entry: &'static Entry,
    /// What the entry points to.
    _alarm: Alarm,
}

impl Guard {
    fn new(start: usize, length: usize, alarm: &Alarm) -> Guard {
        install();
        let entry = TABLE.claim();
        entry.change(start, length, Arc::as_ptr(&alarm.0).cast_mut());
        Guard { entry, _alarm: alarm.clone() }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.entry.change(0, 0, null_mut());
        self.entry.claimed.store(false, Ordering::Release);
    }
}

/// One range. `version` is odd while the others change, which only the owner does.
#[derive(Debug)]
struct Entry {
    claimed: AtomicBool,
    version: AtomicUsize,
    start: AtomicUsize,
    length: AtomicUsize,
    alarm: AtomicPtr<AtomicBool>,
}

impl Entry {
    const fn new() -> Entry {
        Entry {
            claimed: AtomicBool::new(false),
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            alarm: AtomicPtr::new(null_mut()),
        }
    }

    fn change(&self, start: usize, length: usize, alarm: *mut AtomicBool) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.length.store(length, Ordering::SeqCst);
        self.alarm.store(alarm, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The range and its alarm when `address` lies in it. An entry that changes meanwhile is of
    /// another mapping than the one whose access faults: that one is in use.
    fn covers(&self, address: usize) -> Option<(usize, usize, *mut AtomicBool)> {
        let version = self.version.load(Ordering::SeqCst);
        let start = self.start.load(Ordering::SeqCst);
        let length = self.length.load(Ordering::SeqCst);
        let alarm = self.alarm.load(Ordering::SeqCst);
        let whole = version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version;
        let inside = address.checked_sub(start).is_some_and(|offset| offset < length);
        (whole && inside).then_some((start, length, alarm))
    }
}

/// A part of the table; the last one's `next` is null.
struct Part {
    entries: [Entry; PART],
    next: AtomicPtr<Part>,
}

impl Part {
    const fn new() -> Part {
        Part { entries: [const { Entry::new() }; PART], next: AtomicPtr::new(null_mut()) }
    }

    fn next(&self) -> Option<&'static Part> {
        // SAFETY: null, or a leaked part that is never freed or changed but through atomics.
        unsafe { self.next.load(Ordering::Acquire).as_ref() }
    }

    /// An entry for the caller alone; the table grows when all are taken.
    fn claim(&'static self) -> &'static Entry {
        let mut part = self;
        loop {
            let free = |entry: &&Entry| !entry.claimed.swap(true, Ordering::AcqRel);
            if let Some(entry) = part.entries.iter().find(free) {
                return entry;
            }
            part = part.next().unwrap_or_else(|| part.grow());
        }
    }

    /// The next part, made by this thread or by another that was faster.
    fn grow(&self) -> &'static Part {
        let fresh = Box::into_raw(Box::new(Part::new()));
        let order = Ordering::AcqRel;
        if self.next.compare_exchange(null_mut(), fresh, order, Ordering::Acquire).is_err() {
            // SAFETY: nobody else has seen it.
            drop(unsafe { Box::from_raw(fresh) });
        }
        self.next().expect("just set, and never unset")
    }

    fn find(&'static self, address: usize) -> Option<(usize, usize, *mut AtomicBool)> {
        let mut part = Some(self);
        while let Some(here) = part {
            if let Some(found) = here.entries.iter().find_map(|entry| entry.covers(address)) {
                return Some(found);
            }
            part = here.next();
        }
        None
    }
}

static TABLE: Part = Part::new();

/// What handled SIGBUS before: a leaked structure, there before our handler is.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(null_mut());
static INSTALLED: Once = Once::new();

fn install() {
    INSTALLED.call_once(|| {
        // SAFETY: all zeros is a valid value of this plain structure: the default, nothing blocked.
        let (mut previous, mut ours): (libc::sigaction, libc::sigaction) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        // SAFETY: the structure is there to be filled.
        let known = unsafe { libc::sigaction(libc::SIGBUS, null(), &mut previous) };
        assert_eq!(known, 0, "SIGBUS is a signal that has an action");
        PREVIOUS.store(Box::into_raw(Box::new(previous)), Ordering::Release);
        ours.sa_sigaction = on_bus_error as *const () as usize;
        // On the stack that std sets up for its own handler, where there is one.
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler keeps to what a signal handler may do: atomics and system calls.
        let set = unsafe { libc::sigaction(libc::SIGBUS, &ours, null_mut()) };
        assert_eq!(set, 0, "SIGBUS can be handled");
    });
}

extern "C" fn on_bus_error(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO what it knows; SIGBUS by a fault (positive
    // code) has an address. A process that only sends the signal has none.
    let address = unsafe { ((*info).si_code > 0).then(|| (*info).si_addr() as usize) };
    let found = address.and_then(|address| TABLE.find(address));
    if !found.is_some_and(|(start, length, alarm)| replace(start, length, alarm)) {
        hand_on(signal, info, context);
    }
}

/// Puts zeros in the place of a mapping, all of it: a copy over its end costs one signal, not one a
/// page, and memory of huge pages cannot be replaced in part.
fn replace(start: usize, length: usize, alarm: *mut AtomicBool) -> bool {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::FIXED | MapFlags::NORESERVE;
    // SAFETY: the range is a live mapping: its guard goes before it, and the access that faulted
    // holds it. Other threads do not use it, and nothing relies on its content after the alarm.
    if unsafe { mmap_anonymous(start as *mut c_void, length, protection, flags) }.is_err() {
        return false;
    }
    // SAFETY: the entry was registered when it was looked up, and its guard keeps the alarm.
    unsafe { &*alarm }.store(true, Ordering::Relaxed);
    true
}

/// Not ours: what would have happened without this module.
fn hand_on(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: set before this handler was installed, never freed or changed.
    let previous = unsafe { &*PREVIOUS.load(Ordering::Acquire) };
    match previous.sa_sigaction {
        libc::SIG_IGN | libc::SIG_DFL => {}
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void);
            // SAFETY: registered with SA_SIGINFO, so it has this form.
            let handler = unsafe { std::mem::transmute::<usize, Handler>(handler) };
            return handler(signal, info, context);
        }
        handler => {
            // SAFETY: registered without SA_SIGINFO, so it has this form.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
            return handler(signal);
        }
    }
    // SAFETY: as in `on_bus_error`.
    let sent = unsafe { (*info).si_code <= 0 };
    if previous.sa_sigaction == libc::SIG_IGN && sent {
        return;
    }
    // An ignored fault ends the process too. The signal is blocked until this handler returns, and
    // then does what it does by default.
    // SAFETY: both may be called in a handler; the default action is always valid.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::map;
    use crate::rig::shared_memory;
    use std::os::fd::OwnedFd;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, ExitStatus};
    use vm_memory::{Bytes, VolatileMemory};

    const PAGE: u64 = 4096;

    fn mapped(pages: u64, alarm: &Alarm) -> (Mapping, OwnedFd) {
        let file = shared_memory(pages * PAGE);
        (map(file.try_clone().unwrap(), 0, pages * PAGE, alarm).unwrap(), file)
    }

    #[test]
    fn a_truncated_mapping_reads_zeros_and_rings_its_alarm_only() {
        let (mine, others) = (Alarm::default(), Alarm::default());
        let (lost, file) = mapped(3, &mine);
        let (kept, _file) = mapped(1, &others);
        lost.memory.as_volatile_slice().write_slice(&[7; 100], 0).unwrap();
        rustix::fs::ftruncate(&file, PAGE).unwrap();
        assert!(!mine.rung(), "nothing was touched");
        let mut bytes = vec![9; 3 * PAGE as usize];
        lost.memory.as_volatile_slice().read_slice(&mut bytes, 0).unwrap();
        assert!(mine.rung() && !others.rung());
        assert!(bytes[PAGE as usize..].iter().all(|byte| *byte == 0));
        // Writes end nowhere, and do not ring again what could not hear it.
        lost.memory.as_volatile_slice().write_slice(&[1; 100], PAGE as usize).unwrap();
        rustix::fs::ftruncate(&file, 3 * PAGE).unwrap();
        kept.memory.as_volatile_slice().write_slice(&[1; 100], 0).unwrap();
        assert!(!others.rung());
    }

    #[test]
    fn ranges_are_found_while_they_are_registered() {
        let alarm = Alarm::default();
        let many: Vec<_> = (0..2 * PART as u64 + 3).map(|_| mapped(1, &alarm).0).collect();
        let starts: Vec<_> = many.iter().map(|one| one.memory.as_ptr() as usize).collect();
        for start in &starts {
            let last = start + PAGE as usize - 1;
            assert!(TABLE.find(*start).is_some_and(|found| found.0 == *start));
            assert!(TABLE.find(last).is_some_and(|found| found.0 == *start));
        }
        let entries: Vec<_> = many.iter().map(|one| ptr_of(&one.guard)).collect();
        drop(many);
        // Other tests map meanwhile, so an address may be in use again, but not by these.
        let left = |start: &usize| {
            TABLE.find(*start).is_some_and(|found| found.2 == Arc::as_ptr(&alarm.0).cast_mut())
        };
        assert!(!starts.iter().any(left));
        let again: Vec<_> = (0..PART).map(|_| mapped(1, &alarm).0).collect();
        assert!(again.iter().any(|one| entries.contains(&ptr_of(&one.guard))), "entries come back");
    }

    fn ptr_of(guard: &Guard) -> usize {
        std::ptr::from_ref(guard.entry) as usize
    }

    /// Runs the test `child` in a process of its own.
    fn child(what: &str) -> ExitStatus {
        Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "guard::tests::child_process", "--nocapture"])
            .env("GUARD_TEST", what)
            .status()
            .unwrap()
    }

    extern "C" fn ends_well(_signal: c_int) {
        // SAFETY: ends the process without running anything of it.
        unsafe { libc::_exit(42) }
    }

    /// Does nothing in the process that runs all tests.
    #[test]
    fn child_process() {
        let Ok(what) = std::env::var("GUARD_TEST") else { return };
        let set = |handler: usize| {
            // SAFETY: a handler of the right form, or one of the constants.
            unsafe { libc::signal(libc::SIGBUS, handler) };
        };
        match what.as_str() {
            "handled" => set(ends_well as *const () as usize),
            "ignored" | "sent" => set(libc::SIG_IGN),
            "default" => set(libc::SIG_DFL),
            _ => {}
        }
        let (guarded, _file) = mapped(1, &Alarm::default());
        if what == "sent" {
            // SAFETY: sends this process a signal.
            unsafe { libc::raise(libc::SIGBUS) };
            std::process::exit(7);
        }
        // A mapping that is not registered.
        let (Mapping { guard, memory }, file) = mapped(1, &Alarm::default());
        drop(guard);
        rustix::fs::ftruncate(&file, 0).unwrap();
        let _: u8 = memory.as_volatile_slice().read_obj(0).unwrap();
        drop(guarded);
    }

    #[test]
    fn other_faults_end_as_they_did() {
        for what in ["default", "ignored", "of std"] {
            assert_eq!(child(what).signal(), Some(libc::SIGBUS), "{what}");
        }
        assert_eq!(child("handled").code(), Some(42), "the handler that was there before");
        assert_eq!(child("sent").code(), Some(7), "ignored as before");
    }
}
