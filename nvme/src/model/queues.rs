//! The model's side of the queues: where entries are read and written, and doorbells.

use super::{Model, State};
use crate::spec::command::{COMMAND_BYTES, Command};
use crate::spec::completion::{COMPLETION_BYTES, CompletionEntry, Status};
use cleave_runtime::time::Moment;
use std::collections::BTreeMap;
use zerocopy::{FromBytes, IntoBytes};

struct Submission {
    address: u64,
    entries: u16,
    head: u16,
    completion: u16,
}

struct Completing {
    address: u64,
    entries: u16,
    tail: u16,
    phase: bool,
}

#[derive(Default)]
pub(super) struct Queues {
    submissions: BTreeMap<u16, Submission>,
    completions: BTreeMap<u16, Completing>,
}

/// The values that were written last; even indices are submission tails.
#[derive(Default)]
pub(super) struct Doorbells(BTreeMap<u32, u32>);

impl Doorbells {
    pub(super) fn ring(&mut self, index: u32, value: u32) {
        self.0.insert(index, value);
    }

    fn get(&self, queue: u16, completion: bool) -> u16 {
        let index = 2 * u32::from(queue) + u32::from(completion);
        self.0.get(&index).copied().unwrap_or(0) as u16
    }

    fn forget(&mut self, queue: u16, completion: bool) {
        self.0.remove(&(2 * u32::from(queue) + u32::from(completion)));
    }
}

/// A command that was taken.
pub(super) struct Work {
    pub(super) taken: Moment,
    pub(super) due: Moment,
    /// In the order in which commands were taken.
    pub(super) number: u64,
    pub(super) queue: u16,
    pub(super) command: Command,
    pub(super) outcome: super::faults::Outcome,
    pub(super) aborted: bool,
}

impl Queues {
    pub(super) fn create_admin(&mut self, submission: u64, sq: u16, completion: u64, cq: u16) {
        self.create_completion(0, completion, cq);
        self.create_submission(0, submission, sq, 0);
    }

    /// False when it exists.
    pub(super) fn create_completion(&mut self, queue: u16, address: u64, entries: u16) -> bool {
        let new = Completing { address, entries, tail: 0, phase: true };
        let vacant = !self.completions.contains_key(&queue);
        if vacant {
            self.completions.insert(queue, new);
        }
        vacant
    }

    /// False when it exists, or its completion queue does not.
    pub(super) fn create_submission(
        &mut self,
        queue: u16,
        address: u64,
        entries: u16,
        completion: u16,
    ) -> bool {
        let known = self.submissions.contains_key(&queue);
        let good = !known && self.completions.contains_key(&completion);
        if good {
            self.submissions.insert(queue, Submission { address, entries, head: 0, completion });
        }
        good
    }

    pub(super) fn delete_submission(&mut self, queue: u16, doorbells: &mut Doorbells) -> bool {
        doorbells.forget(queue, false);
        queue != 0 && self.submissions.remove(&queue).is_some()
    }

    pub(super) fn delete_completion(&mut self, queue: u16, doorbells: &mut Doorbells) -> bool {
        if self.submissions.values().any(|submission| submission.completion == queue) {
            return false;
        }
        doorbells.forget(queue, true);
        self.completions.remove(&queue).is_some()
    }
}

impl Model {
    /// Takes what was submitted. True when there was anything.
    pub(super) fn take_commands(&self, state: &mut State) -> bool {
        let mut any = false;
        let queues: Vec<u16> = state.queues.submissions.keys().copied().collect();
        for queue in queues {
            loop {
                let tail = state.doorbells.get(queue, false);
                let Some(submission) = state.queues.submissions.get_mut(&queue) else { break };
                if submission.head == tail || tail >= submission.entries {
                    break;
                }
                let address =
                    submission.address + u64::from(submission.head) * COMMAND_BYTES as u64;
                submission.head = (submission.head + 1) % submission.entries;
                let mut bytes = [0; COMMAND_BYTES];
                if !self.read_memory(state, address, &mut bytes) {
                    continue;
                }
                any = true;
                state.commands += 1;
                let command = Command::read_from_bytes(&bytes).expect("as long as a command");
                let outcome = state.faults.decide(queue == 0, command.opcode);
                let due = state.now + self.latency(state);
                let (taken, number) = (state.now, state.commands);
                let work = Work { taken, due, number, queue, command, outcome, aborted: false };
                state.working.push(work);
            }
        }
        any
    }

    /// Writes a completion entry. False when there is no room for it now.
    pub(super) fn complete(
        &self,
        state: &mut State,
        queue: u16,
        identifier: u16,
        status: Status,
        result: u32,
    ) -> bool {
        let Some(submission) = state.queues.submissions.get(&queue) else { return true };
        let (head, number) = (submission.head, submission.completion);
        let told = state.doorbells.get(number, true);
        let Some(completing) = state.queues.completions.get_mut(&number) else { return true };
        let next = (completing.tail + 1) % completing.entries;
        if next == told {
            return false;
        }
        let (at, phase) = (completing.tail, completing.phase);
        completing.tail = next;
        completing.phase ^= next == 0;
        let address = completing.address + u64::from(at) * COMPLETION_BYTES as u64;
        let faults = &mut state.faults;
        let wrong = |flag: &mut bool| u16::from(std::mem::take(flag));
        let entry = CompletionEntry {
            result: result.into(),
            reserved: 0.into(),
            submission_head: (head ^ (wrong(&mut faults.wrong_head) * 0x4000)).into(),
            submission_queue: (queue ^ (wrong(&mut faults.wrong_queue) * 7)).into(),
            identifier: (identifier ^ (wrong(&mut faults.unknown_command) * 0x8000)).into(),
            phase_and_status: (status.0 << 1 | u16::from(phase)).into(),
        };
        let twice = std::mem::take(&mut faults.twice);
        let odd = entry.submission_head.get() != head
            || entry.submission_queue.get() != queue
            || entry.identifier.get() != identifier;
        faults.struck.corrupt += u64::from(odd || twice);
        // The word with the phase tag comes last.
        let mask = state.faults.masks.pop_front().unwrap_or_default();
        let mut bytes = [0; COMPLETION_BYTES];
        for ((byte, honest), flipped) in bytes.iter_mut().zip(entry.as_bytes()).zip(mask) {
            *byte = honest ^ flipped;
        }
        self.write_memory(state, address, &bytes[..8]);
        self.write_memory(state, address + 8, &bytes[8..]);
        if twice {
            return self.complete(state, queue, identifier, status, result);
        }
        true
    }

    /// Reads as the device. False when it is cut off, or, noted, when nothing is there.
    pub(super) fn read_memory(&self, state: &mut State, address: u64, target: &mut [u8]) -> bool {
        let good = state.dma && self.space.read(address, target);
        state.stray += u64::from(state.dma && !good);
        good
    }

    /// Writes as the device. False when it is cut off, or, noted, when nothing is there.
    pub(super) fn write_memory(&self, state: &mut State, address: u64, source: &[u8]) -> bool {
        let good = state.dma && self.space.write(address, source);
        state.stray += u64::from(state.dma && !good);
        good
    }
}
