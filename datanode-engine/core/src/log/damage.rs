//! Entries whose memory rotted: how much of one passes its checks, and what takes its place.
//!
//! A control record passes its check whole or not at all; no effect comes of one that does not, and nothing is made up
//! for it.
//!
//! The log knows who a record is without its bytes ([`Slices`](super::slices::Slices)), so one whose head cannot be
//! read is still released by the commit that names it. Where no better copy is left, such a record is given a head again:
//! every block of its slice with a frame that no check takes. So it can be copied, kept in a
//! vault and fetched like any other, and whoever opens the vdisk serves all of it but these blocks, until they
//! are written again.

use super::{Claim, Log, LogEntry, LogEntryKind};
use bytes::Bytes;
use cleave_format::ids::{Incarnation, Position};
use cleave_format::layout::{SLICE_BLOCKS, UNIT};
use cleave_format::record::{Entry, EntryKind, Record, RecordIdentity, encode_head};
use cleave_format::{control, frame};

/// How much of a record passes its checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Soundness {
    /// Not even who it is, and which blocks it gives content to.
    Unreadable,
    /// That, but not all of its frames.
    Damaged,
    /// All of it.
    Sound,
}

/// How much of a record's bytes passes its checks.
pub fn soundness(bytes: &[u8]) -> Soundness {
    let Ok(record) = Record::decode(bytes) else { return Soundness::Unreadable };
    let sound = |(entry, data): (Entry, &[u8])| {
        entry.kind != EntryKind::Frame || frame::check_in_log(data).is_ok()
    };
    if record.entries().all(sound) { Soundness::Sound } else { Soundness::Damaged }
}

/// The control record of this position fails its check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the control record at {0} rotted in memory")]
pub struct Rotted(pub Position);

impl LogEntry {
    /// How much of the entry, which is that of `position`, passes its checks.
    pub fn soundness(&self, position: Position) -> Soundness {
        match self.kind {
            LogEntryKind::Record(..) => soundness(&self.bytes),
            LogEntryKind::Control { check } => {
                match control::check(position, &self.bytes) == check {
                    true => Soundness::Sound,
                    false => Soundness::Unreadable,
                }
            }
        }
    }

    /// Whether a record's head, or a control record, can be read.
    pub fn is_readable(&self, position: Position) -> bool {
        match self.kind {
            LogEntryKind::Record(..) => Record::decode(&self.bytes).is_ok(),
            LogEntryKind::Control { .. } => self.soundness(position) == Soundness::Sound,
        }
    }
}

impl Log {
    /// The record of a position; `None` for anything else.
    pub fn record(&self, position: Position) -> Option<&Bytes> {
        let entry = self.entry(position)?;
        matches!(entry.kind, LogEntryKind::Record(..)).then_some(&entry.bytes)
    }

    /// Who the record of a position is, by the log's own tables.
    fn identity_of(&self, position: Position) -> Option<RecordIdentity> {
        let LogEntryKind::Record(vdisk, _) = self.entry(position)?.kind else { return None };
        let (slice, version) = self.slices.find(vdisk, position.0)?;
        Some(RecordIdentity { vdisk, slice, version, incarnation: Incarnation(0) })
    }

    /// Takes another copy of a record in place of a damaged one, if it is of the same record and better. True
    /// when it was.
    pub fn mend(&mut self, position: Position, copy: &[u8]) -> bool {
        let Some(held) = self.record(position) else { return false };
        let better = soundness(copy) > soundness(held);
        let same = || {
            let (own, other) = (self.identity_of(position), Record::decode(copy));
            other.is_ok_and(|record| {
                let RecordIdentity { vdisk, slice, version, .. } = record.identity;
                own.is_some_and(|own| {
                    (own.vdisk, own.slice, own.version) == (vdisk, slice, version)
                })
            })
        };
        if !better || !same() {
            return false;
        }
        self.replace(position, copy);
        true
    }

    /// As [`mend`](Log::mend), a control record, with the check that the copy had: of a record that was sound where it came
    /// from, and not before here, either the bytes or the check rotted.
    pub fn mend_control(&mut self, position: Position, copy: &[u8], check: u32) -> bool {
        let Some(entry) = self.entries.get_mut(position.0) else { return false };
        let LogEntryKind::Control { check: own } = entry.kind else { return false };
        let sound = |bytes: &[u8], check| control::check(position, bytes) == check;
        if sound(&entry.bytes, own) || !sound(copy, check) {
            return false;
        }
        self.control_bytes = self.control_bytes - entry.bytes.len() as u64 + copy.len() as u64;
        *entry =
            LogEntry { bytes: Bytes::copy_from_slice(copy), kind: LogEntryKind::Control { check } };
        true
    }

    /// Whether a record's head can be read, or a control record; `true` where there is nothing.
    pub fn is_readable(&self, position: Position) -> bool {
        self.entry(position).is_none_or(|entry| entry.is_readable(position))
    }

    /// Gives an unreadable record a head again, because no better copy is left. Returns who it is.
    pub fn give_up(&mut self, position: Position) -> Option<RecordIdentity> {
        let identity = self.identity_of(position)?;
        let entry = |block| Entry { block, kind: EntryKind::Frame, blocks: 1, length: UNIT as u32 };
        let entries: Vec<Entry> = (0..SLICE_BLOCKS as u16).map(entry).collect();
        let mut bytes = Vec::new();
        encode_head(&identity, &entries, &mut bytes);
        bytes.resize(bytes.len() + entries.len() * UNIT, 0);
        debug_assert_eq!(soundness(&bytes), Soundness::Damaged);
        self.replace(position, &bytes);
        Some(identity)
    }

    fn replace(&mut self, position: Position, bytes: &[u8]) {
        let room = self.chunks.room(bytes.len(), Claim::Forced).expect("forced");
        room.extend_from_slice(bytes);
        let (new_chunk, bytes) = self.chunks.seal(position.0);
        let entry = self.entries.get_mut(position.0).expect("a record is held there");
        let LogEntryKind::Record(vdisk, chunk) = &mut entry.kind else {
            unreachable!("only records are replaced")
        };
        let (vdisk, old_chunk) = (*vdisk, std::mem::replace(chunk, new_chunk));
        let (old, new) = (entry.bytes.len(), bytes.len());
        entry.bytes = bytes;
        self.chunks.release(old_chunk, old);
        self.record_bytes = self.record_bytes - old as u64 + new as u64;
        self.usage.add(vdisk, new as u64);
        self.usage.remove(vdisk, old as u64);
    }

    /// Flips a bit of the first entry at `from` or after, before `end`, as failing memory would: for judges. Says where;
    /// `None` when there is none.
    pub fn rot(&mut self, from: Position, end: Position, bit: u64) -> Option<Position> {
        let (position, entry) = self.next_entry(from, end)?;
        let mut bytes = entry.bytes.to_vec();
        let bit = bit % (bytes.len() as u64 * 8);
        bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
        match entry.kind {
            LogEntryKind::Record(..) => self.replace(position, &bytes),
            LogEntryKind::Control { .. } => {
                self.entries.get_mut(position.0).expect("found before").bytes = Bytes::from(bytes);
            }
        }
        Some(position)
    }

    /// As [`rot`](Log::rot), of the first control record.
    pub fn rot_control(&mut self, from: Position, end: Position, bit: u64) -> Option<Position> {
        let index = self.controls.partition_point(|position| *position < from.0);
        let position = Position(*self.controls.get(index)?);
        self.rot(position, end, bit)
    }

    /// Whether all entries pass their checks. Looks at all of them: for judges.
    pub fn is_sound(&self) -> bool {
        let mut at = Position(0);
        while let Some((position, entry)) = self.next_entry(at, self.next()) {
            at = Position(position.0 + 1);
            if entry.soundness(position) != Soundness::Sound {
                return false;
            }
        }
        true
    }
}
