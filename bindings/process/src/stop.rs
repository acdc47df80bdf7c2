//! Asking a daemon to stop: a flag that only ever goes up, and doorbells that wake whoever sleeps.
//!
//! SIGTERM, SIGINT, SIGHUP (its terminal is gone) and SIGPWR (the power is about to be) all mean
//! the same: stop cleanly. They arrive on a thread of their own, so nothing runs in a signal
//! handler but the library's write to a pipe. More of them change nothing: a clean stop is
//! bounded, and who cannot wait for it has SIGKILL.

use cleave_runtime::executor::Doorbell;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::signal_name;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// The power supply warns (not among the library's names, which are those of POSIX).
const SIGPWR: i32 = rustix::process::Signal::POWER.as_raw();

/// Whether this process shall stop. Clones are the same.
#[derive(Clone, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    asked: AtomicBool,
    doorbells: Mutex<Vec<Arc<dyn Doorbell>>>,
}

impl Stop {
    /// Nobody has asked yet, and only [`ask`](Stop::ask) does.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// As [`new`](Stop::new); from now on signals ask, too.
    pub fn on_signals() -> io::Result<Stop> {
        let stop = Stop::new();
        let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP, SIGPWR])?;
        let asked = stop.clone();
        std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
            for signal in signals.forever() {
                let name = signal_name(signal).unwrap_or("a power warning");
                if !asked.is_asked() {
                    tracing::info!("stopping because of {name}");
                }
                asked.ask();
            }
        })?;
        Ok(stop)
    }

    /// Whether it shall stop: one load.
    pub fn is_asked(&self) -> bool {
        self.0.asked.load(Ordering::SeqCst)
    }

    /// It shall stop; wakes everybody who sleeps.
    pub fn ask(&self) {
        self.0.asked.store(true, Ordering::SeqCst);
        let doorbells = self.0.doorbells.lock().unwrap_or_else(PoisonError::into_inner);
        doorbells.iter().for_each(|doorbell| doorbell.ring());
    }

    /// Whoever sleeps by this doorbell is woken when it shall stop, also if it was asked before.
    pub fn wakes(&self, doorbell: Arc<dyn Doorbell>) {
        let mut doorbells = self.0.doorbells.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_asked() {
            doorbell.ring();
        }
        doorbells.push(doorbell);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::process::{Signal, getpid, kill_process};
    use std::sync::mpsc::{Sender, channel};

    struct Bell(Mutex<Sender<()>>);

    impl Doorbell for Bell {
        fn ring(&self) {
            self.0.lock().unwrap().send(()).unwrap();
        }
    }

    #[test]
    fn a_signal_rings_and_late_sleepers_are_rung_at_once() {
        let stop = Stop::on_signals().unwrap();
        assert!(!stop.is_asked());
        let (sender, rung) = channel();
        stop.wakes(Arc::new(Bell(Mutex::new(sender))));
        kill_process(getpid(), Signal::TERM).unwrap();
        rung.recv().unwrap();
        assert!(stop.is_asked());
        let (sender, rung) = channel();
        stop.wakes(Arc::new(Bell(Mutex::new(sender))));
        rung.try_recv().unwrap();
    }
}
