//! Content that is kept outside of the model: a simulator's drives, with their own ways to be late, to fail and to
//! lose what was not flushed.
//!
//! A command for such a namespace is checked, its data is fetched, and it waits as an [`OutsideRequest`]
//! until whoever keeps the content answers. What a reset forgot is not to be done any more: the keeper ends what it has
//! under way whenever [`Model::restarts`] grows, and late answers are ignored.

use super::faults::Outcome;
use super::queues::Work;
use super::{Model, ModelNamespace, State};
use crate::spec::command::{Command, FORCE_UNIT_ACCESS, RANGE_BYTES, io};
use crate::spec::completion::Status;
use std::collections::BTreeMap;
use std::time::Duration;

/// Commands that took longer are counted.
const LATE: Duration = Duration::from_millis(100);

/// What is to be done with the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutsideOperation {
    /// Read so many bytes from `offset`.
    Read {
        /// The first byte.
        offset: u64,
        /// Bytes.
        length: usize,
    },
    /// Write these bytes.
    Write {
        /// The first byte.
        offset: u64,
        /// What to write.
        data: Vec<u8>,
    },
    /// Make stable what was written and answered before this was asked.
    Flush,
    /// Bytes that nobody needs any more: offset and length of each range.
    Deallocate(Vec<(u64, u64)>),
}

/// A command for whoever keeps the content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OutsideRequest {
    /// For the answer.
    pub token: u64,
    /// The namespace, from 1.
    pub namespace: u32,
    /// What to do.
    pub operation: OutsideOperation,
}

#[derive(Default)]
pub(super) struct Outside {
    /// What nobody took yet.
    requests: Vec<OutsideRequest>,
    /// Commands that wait for an answer, by token.
    waiting: BTreeMap<u64, Work>,
    next: u64,
    restarts: u64,
}

impl Outside {
    pub(super) fn restarts(&self) -> u64 {
        self.restarts
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    pub(super) fn restart(&mut self) {
        self.restarts += 1;
        self.requests.clear();
        self.waiting.clear();
    }

    /// A submission queue is deleted: nobody hears of its commands.
    pub(super) fn forget(&mut self, queue: u16) {
        self.waiting.retain(|_, work| work.queue != queue);
    }

    fn older_than(&self, work: &Work) -> bool {
        self.waiting.values().any(|other| is_older(other, work))
    }
}

fn is_older(other: &Work, work: &Work) -> bool {
    other.queue == work.queue && other.number < work.number
}

impl Work {
    pub(super) fn goes_outside(&self, state: &State) -> bool {
        let done = matches!(self.outcome, Outcome::Done | Outcome::Flips);
        done && self.queue != 0 && state.format(&self.command).is_ok_and(|format| format.outside)
    }
}

impl State {
    pub(super) fn format(&self, command: &Command) -> Result<ModelNamespace, Status> {
        let index = command.namespace.get().wrapping_sub(1) as usize;
        self.media.get(index).map(|media| media.format.clone()).ok_or(Status::INVALID_NAMESPACE)
    }

    /// Counts a command that was completed early or late.
    pub(super) fn note_order(&mut self, work: &Work) {
        let overtakes =
            self.working.iter().any(|other| is_older(other, work)) || self.outside.older_than(work);
        let late = self.now.since(work.taken) > LATE;
        let struck = &mut self.faults.struck;
        struck.overtaking += u64::from(overtakes);
        struck.late += u64::from(late);
    }
}

impl Model {
    /// What is to be done outside, since this was asked last.
    pub fn take_requests(&self) -> Vec<OutsideRequest> {
        std::mem::take(&mut self.state().outside.requests)
    }

    /// What became of a request: for a read its bytes. The next step completes the command.
    pub fn answer(&self, token: u64, answer: Result<Vec<u8>, Status>) {
        let mut state = self.state();
        let Some(mut work) = state.outside.waiting.remove(&token) else { return };
        let read = work.command.opcode == io::READ;
        let done = answer.and_then(|data| {
            if read { self.give(&mut state, &work.command, 0, &data) } else { Ok(()) }
        });
        if done.is_ok() && work.outcome == Outcome::Flips {
            self.flip(&mut state, &work.command);
        }
        work.outcome = Outcome::Answered(done.err().unwrap_or(Status::SUCCESS));
        work.due = state.now;
        state.working.push(work);
    }

    /// Hands a command to whoever keeps its content; what is wrong with it is answered at once.
    pub(super) fn send_outside(&self, state: &mut State, mut work: Work) {
        match self.outside_operation(state, &work.command) {
            Ok(operation) => {
                let outside = &mut state.outside;
                outside.next += 1;
                let (token, namespace) = (outside.next, work.command.namespace.get());
                outside.requests.push(OutsideRequest { token, namespace, operation });
                outside.waiting.insert(token, work);
            }
            Err(status) => {
                work.outcome = Outcome::Answered(status);
                state.working.push(work);
            }
        }
    }

    fn outside_operation(
        &self,
        state: &mut State,
        command: &Command,
    ) -> Result<OutsideOperation, Status> {
        let format = state.format(command)?;
        let bytes = |blocks: u64| blocks << format.block_shift;
        match command.opcode {
            io::FLUSH => Ok(OutsideOperation::Flush),
            io::READ => {
                let (first, blocks) = self.range(&format, command)?;
                let length = bytes(blocks) as usize;
                Ok(OutsideOperation::Read { offset: bytes(first), length })
            }
            // Through a cache it is, or not at all.
            io::WRITE if command.dword10[2].get() & FORCE_UNIT_ACCESS == 0 => {
                let (first, blocks) = self.range(&format, command)?;
                let data = self.fetch(state, command, 0, bytes(blocks) as usize)?;
                Ok(OutsideOperation::Write { offset: bytes(first), data })
            }
            io::DATASET_MANAGEMENT => {
                let ranges = self.ranges(state, command, &format)?;
                let ranges = ranges.iter().map(|(first, blocks)| (bytes(*first), bytes(*blocks)));
                Ok(OutsideOperation::Deallocate(ranges.collect()))
            }
            io::WRITE => Err(Status::INVALID_FIELD),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    /// The ranges of blocks of a Dataset Management command.
    pub(super) fn ranges(
        &self,
        state: &mut State,
        command: &Command,
        format: &ModelNamespace,
    ) -> Result<Vec<(u64, u64)>, Status> {
        let count = command.dword10[0].get() as usize & 0xff;
        let mut found = Vec::new();
        for range in 0..=count {
            let bytes = self.fetch(state, command, range * RANGE_BYTES, RANGE_BYTES)?;
            let blocks = u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes"));
            let first = u64::from_le_bytes(bytes[8..16].try_into().expect("8 bytes"));
            let end = first.checked_add(blocks.into());
            if end.is_none_or(|end| end > format.blocks) {
                return Err(Status::OUT_OF_RANGE);
            }
            found.push((first, blocks.into()));
        }
        Ok(found)
    }
}
