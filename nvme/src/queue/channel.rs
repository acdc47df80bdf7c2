//! A submission queue, its completion queue, and the commands between them.
//!
//! Invariants: an entry that the controller completes belonged to a command that is outstanding, or
//! it is a violation; a queue never has more commands outstanding than completion entries that the
//! controller knows to be free, so the completion queue cannot overflow. Where it is longer than the
//! submission queue the controller is told of taken entries only when it must be: one write to a
//! register less for most batches.

use super::completion::CompletionQueue;
use super::slots::{Overdue, Slots};
use super::submission::SubmissionQueue;
use crate::dma::DmaBuffer;
use crate::error::Violation;
use crate::spec::command::Command;
use crate::spec::completion::Status;
use crate::spec::registers::doorbell;
use crate::transport::Transport;
use cleave_runtime::time::Moment;
use std::sync::Arc;
use std::time::Duration;

pub(crate) struct Channel<T> {
    slots: Slots<T>,
    submission: SubmissionQueue,
    completion: CompletionQueue,
    transport: Arc<dyn Transport>,
    queue: u16,
    /// Taken completions of which the controller must be told.
    tell_after: u16,
    doorbells: u64,
}

/// A command that the controller completed.
#[derive(Debug)]
pub(crate) struct Finished<T> {
    pub(crate) value: T,
    pub(crate) status: Status,
    /// Dword 0 of the completion.
    pub(crate) result: u32,
    /// It was being aborted.
    pub(crate) aborting: bool,
}

impl<T> Channel<T> {
    /// A channel over zeroed rings that the controller was, or will be, told of: with `entries`
    /// submission entries, and `completions` completion entries, no fewer.
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        queue: u16,
        (entries, completions): (u16, u16),
        stride: u32,
        submission: DmaBuffer,
        completion: DmaBuffer,
    ) -> Channel<T> {
        assert!(completions >= entries, "room for the completion of every command");
        let place = |completion| doorbell(queue, completion, stride);
        Channel {
            slots: Slots::new((entries - 1).min(super::SLOTS_MAX)),
            submission: SubmissionQueue::new(submission, entries, place(false)),
            completion: CompletionQueue::new(completion, completions, place(true)),
            transport,
            queue,
            tell_after: completions - entries + 1,
            doorbells: 0,
        }
    }

    pub(crate) fn has_room(&self) -> bool {
        self.slots.has_room() && self.submission.has_room()
    }

    pub(crate) fn outstanding(&self) -> usize {
        self.slots.in_use()
    }

    /// Times that the controller was told of something.
    pub(crate) fn doorbells(&self) -> u64 {
        self.doorbells
    }

    pub(crate) fn next_index(&self) -> Option<u16> {
        self.slots.next_index()
    }

    /// Queues a command; the controller is told by [`ring`](Self::ring).
    ///
    /// # Panics
    /// Without room.
    pub(crate) fn push(&mut self, mut command: Command, value: T, deadline: Option<Moment>) {
        command.identifier = self.slots.insert(value, deadline).into();
        self.submission.push(&command);
    }

    pub(crate) fn ring(&mut self) {
        if self.submission.ring(self.transport.registers()) {
            self.doorbells += 1;
        }
    }

    /// Whether a completion waits.
    pub(crate) fn is_ready(&self) -> bool {
        self.completion.is_ready()
    }

    /// Takes completions, at most a queue full of them, and tells the controller when it must know.
    pub(crate) fn drain(&mut self, mut each: impl FnMut(Finished<T>)) -> Result<usize, Violation> {
        let mut count = 0;
        while count < usize::from(self.completion.entries()) {
            let Some(entry) = self.completion.pop() else { break };
            count += 1;
            if entry.submission_queue.get() != self.queue {
                return Err(Violation::WrongQueue(entry.submission_queue.get()));
            }
            let head = entry.submission_head.get();
            self.submission.advance(head)?;
            // What the controller has not fetched is outstanding, beside the command that it completed: with a
            // head that lags behind that, the queue would stay full with nothing under way.
            if usize::from(self.submission.used()) > self.slots.in_use().saturating_sub(1) {
                return Err(Violation::SubmissionHead(head));
            }
            let identifier = entry.identifier.get();
            let (value, aborting) =
                self.slots.remove(identifier).ok_or(Violation::UnknownCommand(identifier))?;
            let (status, result) = (entry.status(), entry.result.get());
            each(Finished { value, status, result, aborting });
        }
        if self.completion.untold() >= self.tell_after {
            self.acknowledge();
        }
        Ok(count)
    }

    /// Tells the controller of all completions that were taken: it need not interrupt before.
    pub(crate) fn acknowledge(&mut self) {
        if self.completion.ring(self.transport.registers()) {
            self.doorbells += 1;
        }
    }

    pub(crate) fn overdue(&mut self, now: Moment, again: Duration) -> Option<Overdue> {
        self.slots.overdue(now, again)
    }

    pub(crate) fn next_deadline(&self) -> Option<Moment> {
        self.slots.next_deadline()
    }

    /// Ends every command, for a controller that is stopped, and makes the rings as new.
    pub(crate) fn reset(&mut self, mut each: impl FnMut(T)) {
        while let Some(value) = self.slots.remove_any() {
            each(value);
        }
        self.submission.reset();
        self.completion.reset();
    }

    /// Device addresses of the submission and the completion ring.
    pub(crate) fn addresses(&self) -> (u64, u64) {
        (self.submission.address(), self.completion.address())
    }

    /// The rings, for whoever tells the controller to forget them.
    pub(crate) fn into_rings(self) -> [DmaBuffer; 2] {
        [self.submission.into_ring(), self.completion.into_ring()]
    }
}
