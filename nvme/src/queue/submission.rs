//! A submission queue: the host produces, the controller consumes.
//!
//! Invariant: entries from `head` up to `tail` belong to the controller; one entry stays empty, so
//! that full and empty differ (Base 3.3.1.2).

use crate::dma::DmaBuffer;
use crate::error::Violation;
use crate::registers::Registers;
use crate::spec::command::{COMMAND_BYTES, Command};
use zerocopy::IntoBytes;

pub(super) struct SubmissionQueue {
    ring: DmaBuffer,
    entries: u16,
    doorbell: u32,
    tail: u16,
    /// The tail that the controller was last told of.
    told: u16,
    /// Where the controller said that it reads next.
    head: u16,
}

impl SubmissionQueue {
    pub(super) fn new(ring: DmaBuffer, entries: u16, doorbell: u32) -> SubmissionQueue {
        assert!(entries >= 2 && ring.len() >= usize::from(entries) * COMMAND_BYTES);
        SubmissionQueue { ring, entries, doorbell, tail: 0, told: 0, head: 0 }
    }

    /// Entries that the controller has not said to have fetched.
    pub(super) fn used(&self) -> u16 {
        let (head, tail) = (u32::from(self.head), u32::from(self.tail));
        ((tail + u32::from(self.entries) - head) % u32::from(self.entries)) as u16
    }

    pub(super) fn has_room(&self) -> bool {
        self.used() + 1 < self.entries
    }

    /// Writes the command behind the others; the controller is told by [`ring`](Self::ring).
    pub(super) fn push(&mut self, command: &Command) {
        assert!(self.has_room(), "a submission queue with room");
        self.ring.write(usize::from(self.tail) * COMMAND_BYTES, command.as_bytes());
        self.tail = (self.tail + 1) % self.entries;
    }

    /// Tells the controller of all commands that were written. True when there were any.
    pub(super) fn ring(&mut self, registers: &dyn Registers) -> bool {
        let any = self.told != self.tail;
        if any {
            registers.write(self.doorbell, u32::from(self.tail));
            self.told = self.tail;
        }
        any
    }

    /// Takes the head that a completion names.
    pub(super) fn advance(&mut self, head: u16) -> Result<(), Violation> {
        let entries = u32::from(self.entries);
        if u32::from(head) >= entries {
            return Err(Violation::SubmissionHead(head));
        }
        let step = (u32::from(head) + entries - u32::from(self.head)) % entries;
        if step > u32::from(self.used()) {
            return Err(Violation::SubmissionHead(head));
        }
        self.head = head;
        Ok(())
    }

    /// As when the queue was created.
    pub(super) fn reset(&mut self) {
        (self.head, self.tail, self.told) = (0, 0, 0);
    }

    pub(super) fn address(&self) -> u64 {
        self.ring.address()
    }

    pub(super) fn into_ring(self) -> DmaBuffer {
        self.ring
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{DmaPool, DmaSpace, PageKind};
    use std::sync::Arc;

    fn queue() -> SubmissionQueue {
        let pool = DmaPool::new(Arc::new(DmaSpace::default()), &[PageKind::Normal], None);
        SubmissionQueue::new(pool.allocate(4 * COMMAND_BYTES).unwrap(), 4, 0x1000)
    }

    #[test]
    fn one_entry_stays_empty_and_heads_are_checked() {
        let mut queue = queue();
        let command = Command::flush(1);
        assert_eq!(queue.advance(1), Err(Violation::SubmissionHead(1)));
        for _ in 0..3 {
            queue.push(&command);
        }
        assert!(!queue.has_room());
        assert_eq!(queue.advance(4), Err(Violation::SubmissionHead(4)));
        assert_eq!(queue.advance(2), Ok(()));
        // The head does not go back.
        assert_eq!(queue.advance(1), Err(Violation::SubmissionHead(1)));
        queue.push(&command);
        queue.push(&command);
        assert!(!queue.has_room());
        assert_eq!(queue.advance(1), Ok(()));
        assert_eq!(queue.used(), 0);
    }
}
