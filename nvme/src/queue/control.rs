//! What queue pairs on any core and the admin side tell each other: words that are read without
//! locks, and two places behind locks for what happens once in a controller's bad days.

use crate::dma::DmaBuffer;
use crate::error::Violation;
use crate::spec::registers::{ControllerStatus, STATUS};
use crate::transport::Transport;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// In what state the controller is, for its queue pairs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PairState {
    Live,
    Stopping,
    Stopped,
    Gone,
}

/// A state and the number of resets so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Phase {
    pub(crate) state: PairState,
    pub(crate) resets: u32,
}

/// What the admin side and all pairs share.
pub(crate) struct Shared {
    pub(crate) transport: Arc<dyn Transport>,
    phase: AtomicU32,
    /// The controller may still reach memory, and nothing more can be done about it.
    given_up: AtomicBool,
}

impl Shared {
    pub(crate) fn new(transport: Arc<dyn Transport>) -> Shared {
        let phase = AtomicU32::new(PairState::Stopped as u32);
        Shared { transport, phase, given_up: AtomicBool::new(false) }
    }

    pub(crate) fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    pub(crate) fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// Whether the device answers at all: one read of a register.
    pub(crate) fn answers(&self) -> bool {
        let status = ControllerStatus(self.transport.registers().read(STATUS));
        self.phase().state != PairState::Gone && !status.is_absent()
    }

    pub(crate) fn phase(&self) -> Phase {
        let word = self.phase.load(Ordering::Acquire);
        let state = match word & 3 {
            0 => PairState::Live,
            1 => PairState::Stopping,
            2 => PairState::Stopped,
            _ => PairState::Gone,
        };
        Phase { state, resets: word >> 2 }
    }

    pub(crate) fn set_phase(&self, phase: Phase) {
        self.phase.store(phase.resets << 2 | phase.state as u32, Ordering::Release);
    }
}

/// What one pair and the admin side share.
#[derive(Default)]
pub(crate) struct PairControl {
    /// Resets after which the pair has aborted everything.
    acknowledged: AtomicU32,
    /// A command to abort, with bit 16 set; 0 for none.
    abort: AtomicU32,
    /// The controller must be reset.
    fault: AtomicBool,
    violation: Mutex<Option<Violation>>,
    /// The rings of a pair that is gone: the controller still knows them.
    left: Mutex<Option<Vec<DmaBuffer>>>,
}

impl PairControl {
    pub(crate) fn new(resets: u32) -> PairControl {
        PairControl { acknowledged: AtomicU32::new(resets), ..PairControl::default() }
    }

    pub(crate) fn acknowledged(&self) -> u32 {
        self.acknowledged.load(Ordering::Acquire)
    }

    pub(crate) fn take_abort(&self) -> Option<u16> {
        let asked = self.abort.load(Ordering::Relaxed) != 0;
        let word = if asked { self.abort.swap(0, Ordering::AcqRel) } else { 0 };
        (word != 0).then_some(word as u16)
    }

    pub(crate) fn asks_abort(&self) -> bool {
        self.abort.load(Ordering::Relaxed) != 0
    }

    /// After a reset: what was wrong before it is.
    pub(crate) fn forget(&self) {
        self.abort.store(0, Ordering::Relaxed);
        self.fault.store(false, Ordering::Release);
        *self.violation.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    pub(crate) fn take_fault(&self) -> bool {
        self.fault.load(Ordering::Relaxed) && self.fault.swap(false, Ordering::AcqRel)
    }

    pub(crate) fn violation(&self) -> Option<Violation> {
        *self.violation.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn has_left(&self) -> bool {
        self.left.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The pair has let go of everything after so many resets.
    pub(super) fn acknowledge(&self, resets: u32) {
        self.abort.store(0, Ordering::Relaxed);
        self.acknowledged.store(resets, Ordering::Release);
    }

    /// Asks for a command to be aborted; one at a time.
    pub(super) fn ask_abort(&self, identifier: u16) {
        self.abort.store(u32::from(identifier) | 1 << 16, Ordering::Release);
    }

    /// Asks for the controller to be reset.
    pub(super) fn ask_reset(&self, violation: Option<Violation>) {
        if violation.is_some() {
            *self.violation.lock().unwrap_or_else(PoisonError::into_inner) = violation;
        }
        self.fault.store(true, Ordering::Release);
    }

    /// The pair will not come: its rings are given up by whoever holds them.
    pub(super) fn leave(&self, rings: Vec<DmaBuffer>) {
        *self.left.lock().unwrap_or_else(PoisonError::into_inner) = Some(rings);
    }
}
