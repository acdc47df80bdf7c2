//! How the model misbehaves.

use crate::spec::completion::Status;
use std::collections::VecDeque;

/// Which commands a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Commands of the admin queue, or of I/O queues.
    pub admin: bool,
    /// The opcode.
    pub opcode: u8,
    /// Commands that are spared first.
    pub after: u32,
    /// Commands that are hit then.
    pub count: u32,
}

/// A way to misbehave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Commands fail with this status, undone.
    Fail(Scope, Status),
    /// Commands are never done; an abort ends them.
    Hang(Scope),
    /// Commands are never done, nor aborted.
    HangForGood(Scope),
    /// Reads are done, and a bit is flipped on its way into memory.
    Flip(Scope),
    /// The next completion names a command that is not outstanding.
    UnknownCommand,
    /// The next completion names another submission queue.
    WrongQueue,
    /// The next completion names a submission queue head that is not.
    WrongHead,
    /// The next completion comes twice.
    Twice,
    /// Bits that are flipped in the next completion entries, one mask each.
    Completions(Vec<[u8; 16]>),
    /// Data of Identify with this CNS has other bytes at a place.
    Identify {
        /// What is identified.
        what: u8,
        /// Where.
        at: usize,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// The device is removed: all registers read as ones.
    Vanish,
    /// It is put back, as after power-on.
    Return,
    /// It reports a fatal error, and does nothing more, whatever is done about it.
    Fatal,
    /// It does not become ready any more.
    NeverReady,
    /// It does not become disabled any more.
    NeverDisabled,
}

/// What a model did to its driver so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Struck {
    /// Commands that failed, undone.
    pub failed: u64,
    /// Commands that hung.
    pub hung: u64,
    /// Reads that gave other content.
    pub flipped: u64,
    /// Completion entries that no honest controller writes.
    pub corrupt: u64,
    /// I/O commands that were completed before an older one of their queue.
    pub overtaking: u64,
    /// I/O commands that took more than a hundred milliseconds.
    pub late: u64,
}

impl Struck {
    fn count(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Fails(_) => self.failed += 1,
            Outcome::Hangs | Outcome::HangsForGood => self.hung += 1,
            Outcome::Flips => self.flipped += 1,
            Outcome::Done | Outcome::Answered(_) => {}
        }
    }
}

#[derive(Default)]
pub(super) struct Faults {
    pub(super) vanished: bool,
    pub(super) fatal: bool,
    pub(super) never_ready: bool,
    pub(super) never_disabled: bool,
    /// For the next completion.
    pub(super) unknown_command: bool,
    pub(super) wrong_queue: bool,
    pub(super) wrong_head: bool,
    pub(super) twice: bool,
    pub(super) masks: VecDeque<[u8; 16]>,
    scoped: Vec<(Scope, Outcome)>,
    pub(super) struck: Struck,
    pub(super) identify: Vec<(u8, usize, Vec<u8>)>,
}

/// What becomes of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Done,
    Fails(Status),
    Hangs,
    HangsForGood,
    Flips,
    /// What the content's keeper answered.
    Answered(Status),
}

impl Faults {
    pub(super) fn add(&mut self, fault: Fault) {
        match fault {
            Fault::Fail(scope, status) => self.scoped.push((scope, Outcome::Fails(status))),
            Fault::Hang(scope) => self.scoped.push((scope, Outcome::Hangs)),
            Fault::HangForGood(scope) => self.scoped.push((scope, Outcome::HangsForGood)),
            Fault::Flip(scope) => self.scoped.push((scope, Outcome::Flips)),
            Fault::UnknownCommand => self.unknown_command = true,
            Fault::WrongQueue => self.wrong_queue = true,
            Fault::WrongHead => self.wrong_head = true,
            Fault::Twice => self.twice = true,
            Fault::Completions(masks) => self.masks.extend(masks),
            Fault::Identify { what, at, bytes } => self.identify.push((what, at, bytes)),
            Fault::Vanish => self.vanished = true,
            Fault::Return => *self = Faults { struck: self.struck, ..Faults::default() },
            Fault::Fatal => self.fatal = true,
            Fault::NeverReady => self.never_ready = true,
            Fault::NeverDisabled => self.never_disabled = true,
        }
    }

    /// What was not met yet is taken back.
    pub(super) fn spare(&mut self) {
        let Faults { vanished, fatal, never_ready, never_disabled, struck, .. } = *self;
        let identify = std::mem::take(&mut self.identify);
        *self = Faults {
            vanished,
            fatal,
            never_ready,
            never_disabled,
            struck,
            identify,
            ..Faults::default()
        };
    }

    /// Decides about a command that was taken.
    pub(super) fn decide(&mut self, admin: bool, opcode: u8) -> Outcome {
        let hit = |(scope, _): &&mut (Scope, Outcome)| {
            scope.admin == admin && scope.opcode == opcode && scope.count > 0
        };
        let Some((scope, outcome)) = self.scoped.iter_mut().find(hit) else {
            return Outcome::Done;
        };
        if scope.after > 0 {
            scope.after -= 1;
            return Outcome::Done;
        }
        scope.count -= 1;
        let outcome = *outcome;
        self.struck.count(outcome);
        outcome
    }
}
