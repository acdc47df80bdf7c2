//! Records whose memory rotted: how much of one passes its checks, and what takes its place.
//!
//! The log knows who a record is without its bytes ([`Slices`](super::slices::Slices)), so one whose head cannot be
//! read is still released by the commit that names it. Where no better copy is left, such a record is given a head again:
//! every block of its slice with a frame that no check takes. So it can be copied, kept in a
//! vault and fetched like any other, and whoever opens the vdisk serves all of it but these blocks, until they
//! are written again.

use super::{Claim, Log, LogEntryKind};
use bytes::Bytes;
use cleave_format::frame;
use cleave_format::ids::{Incarnation, Position};
use cleave_format::layout::{SLICE_BLOCKS, UNIT};
use cleave_format::record::{Entry, EntryKind, Record, RecordIdentity, encode_head};

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

    /// Whether a head can be read; `true` for what is no record.
    pub fn is_readable(&self, position: Position) -> bool {
        self.record(position).is_none_or(|bytes| Record::decode(bytes).is_ok())
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

    /// Flips a bit of the first record at `from` or after, before `end`, as failing memory would: for judges. Says where;
    /// `None` when there is none.
    pub fn rot(&mut self, from: Position, end: Position, bit: u64) -> Option<Position> {
        let mut at = from;
        loop {
            let (position, _) = self.next_entry(at, end)?;
            if let Some(bytes) = self.record(position) {
                let mut bytes = bytes.to_vec();
                let bit = bit % (bytes.len() as u64 * 8);
                bytes[(bit / 8) as usize] ^= 1 << (bit % 8);
                self.replace(position, &bytes);
                return Some(position);
            }
            at = Position(position.0 + 1);
        }
    }

    /// Whether all records pass their checks. Looks at all of them: for judges.
    pub fn is_sound(&self) -> bool {
        let mut at = Position(0);
        while let Some((position, entry)) = self.next_entry(at, self.next()) {
            at = Position(position.0 + 1);
            if self.record(position).is_some() && soundness(&entry.bytes) != Soundness::Sound {
                return false;
            }
        }
        true
    }
}
