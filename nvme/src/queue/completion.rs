//! A completion queue: the controller produces, the host consumes.
//!
//! An entry is new when its phase tag differs from the last pass's (Base 3.3.1.2.1); the rest of it
//! is read only after that was seen.

use crate::dma::DmaBuffer;
use crate::registers::Registers;
use crate::spec::completion::{COMPLETION_BYTES, CompletionEntry};
use std::sync::atomic::{Ordering, fence};

/// Where the word with the phase tag stands in an entry: dword 3.
const LAST_WORD: usize = 12;

pub(super) struct CompletionQueue {
    ring: DmaBuffer,
    entries: u16,
    doorbell: u32,
    head: u16,
    /// The head that the controller was last told of.
    told: u16,
    phase: bool,
}

impl CompletionQueue {
    pub(super) fn new(ring: DmaBuffer, entries: u16, doorbell: u32) -> CompletionQueue {
        assert!(entries >= 2 && ring.len() >= usize::from(entries) * COMPLETION_BYTES);
        CompletionQueue { ring, entries, doorbell, head: 0, told: 0, phase: true }
    }

    /// Whether an entry waits.
    pub(super) fn is_ready(&self) -> bool {
        let last = self.ring.read_u32(usize::from(self.head) * COMPLETION_BYTES + LAST_WORD);
        (last >> 16 & 1 != 0) == self.phase
    }

    /// Takes the next entry if there is one.
    pub(super) fn pop(&mut self) -> Option<CompletionEntry> {
        let at = usize::from(self.head) * COMPLETION_BYTES;
        let last = self.ring.read_u32(at + LAST_WORD);
        if (last >> 16 & 1 != 0) != self.phase {
            return None;
        }
        fence(Ordering::Acquire);
        let entry = CompletionEntry {
            result: self.ring.read_u32(at).into(),
            reserved: self.ring.read_u32(at + 4).into(),
            submission_head: (self.ring.read_u32(at + 8) as u16).into(),
            submission_queue: ((self.ring.read_u32(at + 8) >> 16) as u16).into(),
            identifier: (last as u16).into(),
            phase_and_status: ((last >> 16) as u16).into(),
        };
        self.head += 1;
        if self.head == self.entries {
            self.head = 0;
            self.phase = !self.phase;
        }
        Some(entry)
    }

    /// Entries that were taken, of which the controller was not told.
    pub(super) fn untold(&self) -> u16 {
        let (head, told) = (u32::from(self.head), u32::from(self.told));
        ((head + u32::from(self.entries) - told) % u32::from(self.entries)) as u16
    }

    /// Tells the controller which entries were taken. True when there were any.
    pub(super) fn ring(&mut self, registers: &dyn Registers) -> bool {
        let any = self.told != self.head;
        if any {
            registers.write(self.doorbell, u32::from(self.head));
            self.told = self.head;
        }
        any
    }

    /// As when the queue was created: no entry is new.
    pub(super) fn reset(&mut self) {
        self.ring.zero();
        (self.head, self.told, self.phase) = (0, 0, true);
    }

    pub(super) fn entries(&self) -> u16 {
        self.entries
    }

    pub(super) fn address(&self) -> u64 {
        self.ring.address()
    }

    pub(super) fn into_ring(self) -> DmaBuffer {
        self.ring
    }
}
