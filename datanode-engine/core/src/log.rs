//! The NVLOG: hosts' records and control records in the order of their positions, in memory.
//!
//! Both controllers of a data node hold the same log. Positions grow by one an entry; entries leave
//! with holes: records when a commit or a delete releases them (C4, C28), control records when both catalogs
//! have them (C11). A host takes only so much of it (C13). A slice's place in its sequence is known only while records of it are held
//! (C1). Control records have memory of their own, which records cannot use up (C13).
//!
//! Pure: what is mirrored, who may append and when effects happen is decided above.

mod chunks;
mod damage;
mod entries;
mod slices;
mod usage;

pub use chunks::{Advice, CHUNK};
pub use damage::{Rotted, Soundness, soundness};
pub use entries::{LogEntry, LogEntryKind};

use bytes::Bytes;
use chunks::{Chunks, Claim};
use cleave_format::FormatError;
use cleave_format::control::{self, Control};
use cleave_format::ids::{HostId, Position, VdiskId};
use cleave_format::record::{RECORD_HEADER, Record, RecordIdentity};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::Refusal;
use entries::Entries;
use slices::{Place, Slices};
use std::collections::VecDeque;
use usage::Usage;

/// Longest record that the log takes, so that it fits a message with any header.
pub const RECORD_MAX: usize = (4 << 20) - 4096;

/// Chunks that are compacted at once for a record that has no room.
const COMPACTIONS_MAX: usize = 8;

/// Capacities of a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogSettings {
    /// Bytes of chunks for records, in whole MiBs.
    pub record_bytes_max: u64,
    /// Bytes of control records (C13).
    pub control_bytes_max: u64,
}

/// What became of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appended {
    /// It is the entry of this position.
    New(Position),
    /// It was held already, at this position.
    Held(Position),
    /// It was held and released.
    Released,
}

/// The log of a data node, as one controller holds it.
pub struct Log {
    id: u64,
    next: u64,
    entries: Entries,
    slices: Slices,
    chunks: Chunks,
    /// Positions of control entries, in order.
    controls: VecDeque<u64>,
    control_bytes: u64,
    control_bytes_max: u64,
    record_bytes: u64,
    usage: Usage,
    /// Control entries up to here have left.
    trimmed: u64,
}

impl Log {
    /// An empty log whose first entry gets position `next`.
    pub fn new(id: u64, next: Position, settings: LogSettings) -> Log {
        let units = settings.record_bytes_max / CHUNK as u64;
        Log {
            id,
            next: next.0,
            entries: Entries::default(),
            slices: Slices::default(),
            chunks: Chunks::new(usize::try_from(units).unwrap_or(usize::MAX / CHUNK).max(1)),
            controls: VecDeque::new(),
            control_bytes: 0,
            control_bytes_max: settings.control_bytes_max,
            record_bytes: 0,
            usage: Usage::default(),
            trimmed: next.0.saturating_sub(1),
        }
    }

    /// The same log, whose memory the caller is told about.
    pub fn advised(mut self, advice: Option<Advice>) -> Log {
        self.chunks.set_advice(advice);
        self
    }

    /// Its identity (C7).
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Position that the next entry gets.
    pub fn next(&self) -> Position {
        Position(self.next)
    }

    /// Control entries up to here have left the log.
    pub fn trimmed(&self) -> Position {
        Position(self.trimmed)
    }

    /// Entries held.
    pub fn len(&self) -> u64 {
        self.entries.len()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of records held.
    pub fn record_bytes(&self) -> u64 {
        self.record_bytes
    }

    /// Bytes of control records held.
    pub fn control_bytes(&self) -> u64 {
        self.control_bytes
    }

    /// Bytes of records of a vdisk.
    pub fn vdisk_bytes(&self, vdisk: VdiskId) -> u64 {
        self.usage.of_vdisk(vdisk)
    }

    /// Bytes of records of the vdisks that a host [owns](Log::assign).
    pub fn host_bytes(&self, host: HostId) -> u64 {
        self.usage.of_host(host)
    }

    /// A host sealed the vdisk: its records count against that host's quota.
    pub fn assign(&mut self, vdisk: VdiskId, host: HostId) {
        self.usage.assign(vdisk, host);
    }

    /// Bytes of memory in use by records, and the most there may be.
    pub fn memory(&self) -> (u64, u64) {
        let bytes = |units: usize| (units * CHUNK) as u64;
        (bytes(self.chunks.units_used()), bytes(self.chunks.units_max()))
    }

    /// Whether a control record of that many bytes has room (C13).
    pub fn has_control_room(&self, length: usize) -> bool {
        if is_planted(Planted::NoReserveForCommits) {
            let (taken, most) = self.memory();
            return taken + self.control_bytes + length as u64 <= most / 2;
        }
        self.controls.is_empty() || self.control_bytes + length as u64 <= self.control_bytes_max
    }

    /// Takes a record of `length` bytes off the message: the active controller's way in. `allow`
    /// decides by its identity; what the log has already is recognised however full it is, and new
    /// records are taken up to the owner's `quota` and a margin (C13). Whatever the outcome, the bytes
    /// are taken. `Err(Ok(_))`: refused; `Err(Err(_))`: it is no record.
    pub fn append(
        &mut self,
        message: &mut Message,
        length: usize,
        begins: bool,
        quota: u64,
        allow: impl FnOnce(&RecordIdentity) -> Result<(), Refusal>,
    ) -> Result<Appended, Result<Refusal, FormatError>> {
        let malformed = Err(Err(FormatError::Malformed("append")));
        if !(RECORD_HEADER..=RECORD_MAX).contains(&length) || length > message.len() {
            return malformed;
        }
        if !self.make_room(length) {
            return self.append_when_full(message, length, begins, quota, allow);
        }
        let room = self.chunks.room(length, Claim::Data).expect("room was made");
        message.append_to(length, room);
        let record = match Record::decode(room) {
            Ok(record) => record,
            Err(error) => {
                room.clear();
                return Err(Err(error));
            }
        };
        let identity = record.identity;
        let verdict = judge(&self.slices, &self.usage, &record, length, begins, quota, allow);
        if let Some(decided) = verdict.transpose() {
            room.clear();
            return decided.map_err(Ok);
        }
        Ok(Appended::New(self.seal_record(self.next, &identity)))
    }

    /// As [`append`](Log::append), when there is no memory for data: what is held already is recognised
    /// all the same (or its sender could never go on), and a record without data has the reserve (C13).
    fn append_when_full(
        &mut self,
        message: &mut Message,
        length: usize,
        begins: bool,
        quota: u64,
        allow: impl FnOnce(&RecordIdentity) -> Result<(), Refusal>,
    ) -> Result<Appended, Result<Refusal, FormatError>> {
        let bytes = message.take(length).expect("the length was compared");
        let record = Record::decode(&bytes).map_err(Err)?;
        let verdict = judge(&self.slices, &self.usage, &record, length, begins, quota, allow);
        if let Some(decided) = verdict.transpose() {
            return decided.map_err(Ok);
        }
        let room = match is_dataless(&record) {
            true => self.chunks.room(length, Claim::Reserve),
            false => None,
        };
        let room = room.ok_or(Ok(Refusal::Full))?;
        room.extend_from_slice(&bytes);
        Ok(Appended::New(self.seal_record(self.next, &record.identity)))
    }

    /// Whether there is room for a record; compacts where that helps, within bounds.
    fn make_room(&mut self, length: usize) -> bool {
        for _ in 0..COMPACTIONS_MAX {
            if self.chunks.room(length, Claim::Data).is_some() {
                return true;
            }
            if !self.compact() {
                return false;
            }
        }
        self.chunks.room(length, Claim::Data).is_some()
    }

    /// The record in the open chunk becomes the entry of `position`.
    fn seal_record(&mut self, position: u64, identity: &RecordIdentity) -> Position {
        let (chunk, bytes) = self.chunks.seal(position);
        self.record_bytes += bytes.len() as u64;
        self.usage.add(identity.vdisk, bytes.len() as u64);
        self.slices.append(identity, position);
        let kind = LogEntryKind::Record(identity.vdisk, chunk);
        self.entries.insert(position, LogEntry { bytes, kind });
        self.next = position + 1;
        Position(position)
    }

    /// Appends a control record. The caller has asked [`has_control_room`](Log::has_control_room)
    /// where it can wait.
    pub fn append_control(&mut self, control: &Control) -> Position {
        let bytes = Bytes::from(cleave_format::encode(control));
        let check = control::check(Position(self.next), &bytes);
        self.insert_control(self.next, bytes, check)
    }

    fn insert_control(&mut self, position: u64, bytes: Bytes, check: u32) -> Position {
        self.control_bytes += bytes.len() as u64;
        self.controls.push_back(position);
        self.entries.insert(position, LogEntry { bytes, kind: LogEntryKind::Control { check } });
        self.next = position + 1;
        Position(position)
    }

    /// Takes an entry off a message of the peer (or the vault), as it is: a record. It goes in also when the
    /// log is full, since the peer's log had room for it.
    pub fn insert_record(
        &mut self,
        position: Position,
        message: &mut Message,
        length: usize,
    ) -> Result<(), FormatError> {
        let malformed = FormatError::Malformed("log entry");
        if position.0 < self.next || length > message.len() || length > RECORD_MAX {
            return Err(malformed);
        }
        let room = self.chunks.room(length, Claim::Forced).expect("forced");
        message.append_to(length, room);
        let identity = Record::decode(room).map(|record| record.identity);
        match identity {
            Ok(identity) if self.slices.may_follow(&identity) => {
                self.seal_record(position.0, &identity);
                Ok(())
            }
            outcome => {
                room.clear();
                Err(outcome.err().unwrap_or(malformed))
            }
        }
    }

    /// As [`insert_record`](Log::insert_record), a control record, with its [`check`](control::check); gives it
    /// decoded.
    pub fn insert_encoded_control(
        &mut self,
        position: Position,
        bytes: Bytes,
        check: u32,
    ) -> Result<Control, FormatError> {
        if position.0 < self.next {
            return Err(FormatError::Malformed("log entry"));
        }
        if control::check(position, &bytes) != check {
            return Err(FormatError::Checksum("control record"));
        }
        let control = cleave_format::decode(&bytes)?;
        self.insert_control(position.0, bytes, check);
        Ok(control)
    }

    /// After a copy (or from the vault): the next entry gets position `next`; the catalog here is at
    /// `catalog`, which has every control entry that had left the log.
    pub fn finish_copy(&mut self, next: Position, catalog: Position) -> Result<(), FormatError> {
        if next.0 < self.next {
            return Err(FormatError::Malformed("log copy"));
        }
        self.next = next.0;
        let before_first = self.controls.front().map_or(u64::MAX, |position| position - 1);
        self.trimmed = before_first.min(catalog.0).min(next.0.saturating_sub(1));
        Ok(())
    }

    /// Makes a record's releases happen: those of a commit's vdisks that were not struck, or all of a
    /// deleted vdisk's. Once is enough; again changes nothing.
    pub fn release(&mut self, control: &Control) {
        let mut released = Vec::new();
        match control {
            Control::Commit(commit) => {
                for part in commit.vdisks.iter() {
                    if part.struck && !is_planted(Planted::ReleaseStruck) {
                        continue;
                    }
                    for release in &part.releases {
                        self.slices.release(part.vdisk, release, &mut released);
                    }
                }
            }
            Control::Delete { .. } if is_planted(Planted::KeepDeletedRecords) => return,
            Control::Delete { vdisk, .. } => self.slices.release_all(*vdisk, &mut released),
            _ => return,
        }
        for position in released {
            let entry = self.entries.remove(position).expect("slices name entries");
            let LogEntryKind::Record(vdisk, chunk) = entry.kind else {
                unreachable!("slices name records");
            };
            let length = entry.bytes.len();
            drop(entry);
            self.chunks.release(chunk, length);
            self.record_bytes -= length as u64;
            self.usage.remove(vdisk, length as u64);
        }
    }

    /// Takes back the entries from a position on: nobody was told of them, and another log has, or will have, others
    /// there (C7). What they would have done was not done.
    pub fn truncate(&mut self, from: Position) {
        while let Some((position, entry)) = self.entries.next_from(from.0, self.next) {
            let length = entry.bytes.len();
            match entry.kind {
                LogEntryKind::Record(vdisk, chunk) => {
                    self.entries.remove(position);
                    self.chunks.release(chunk, length);
                    self.record_bytes -= length as u64;
                    self.usage.remove(vdisk, length as u64);
                }
                LogEntryKind::Control { .. } => {
                    self.entries.remove(position);
                    self.control_bytes -= length as u64;
                }
            }
        }
        self.slices.truncate(from.0);
        while self.controls.back().is_some_and(|position| *position >= from.0) {
            self.controls.pop_back();
        }
        self.next = self.next.min(from.0);
        self.trimmed = self.trimmed.min(self.next.saturating_sub(1));
    }

    /// Drops control entries up to a position: both catalogs have them (C11).
    pub fn trim(&mut self, through: Position) {
        while let Some(&position) = self.controls.front().filter(|p| **p <= through.0) {
            self.controls.pop_front();
            let entry = self.entries.remove(position).expect("controls name entries");
            self.control_bytes -= entry.bytes.len() as u64;
        }
        self.trimmed = self.trimmed.max(through.0.min(self.next.saturating_sub(1)));
    }

    /// The entry of a position.
    pub fn entry(&self, position: Position) -> Option<&LogEntry> {
        self.entries.get(position.0)
    }

    /// The first entry at `from` or after, before `end`.
    pub fn next_entry(&self, from: Position, end: Position) -> Option<(Position, &LogEntry)> {
        let found = self.entries.next_from(from.0, end.0.min(self.next));
        found.map(|(position, entry)| (Position(position), entry))
    }

    /// The first control record after a position and up to `through`, checked and decoded.
    pub fn next_control(
        &self,
        after: Position,
        through: Position,
    ) -> Result<Option<(Position, Control)>, Rotted> {
        let index = self.controls.partition_point(|position| *position <= after.0);
        let Some(position) = self.controls.get(index).filter(|position| **position <= through.0)
        else {
            return Ok(None);
        };
        let (position, entry) = (Position(*position), self.entries.get(*position));
        let entry = entry.expect("controls name entries");
        if !entry.is_readable(position) && !is_planted(Planted::LeaveRot) {
            return Err(Rotted(position));
        }
        match cleave_format::decode(&entry.bytes) {
            Ok(control) => Ok(Some((position, control))),
            Err(_) => Err(Rotted(position)),
        }
    }

    /// Moves the live entries of one sparse chunk together, when the log is nearly full. True when
    /// it did something; then there may be more to do.
    pub fn compact(&mut self) -> bool {
        let Some((chunk, first, last)) = self.chunks.sparsest() else { return false };
        let mut position = first;
        while let Some((found, entry)) = self.entries.next_from(position, last + 1) {
            position = found + 1;
            if !matches!(entry.kind, LogEntryKind::Record(_, held) if held == chunk) {
                continue;
            }
            let old = entry.bytes.clone();
            let room = self.chunks.room(old.len(), Claim::Forced).expect("forced");
            room.extend_from_slice(&old);
            let (new_chunk, bytes) = self.chunks.seal(found);
            let entry = self.entries.get_mut(found).expect("found before");
            if let LogEntryKind::Record(_, held) = &mut entry.kind {
                *held = new_chunk;
            }
            entry.bytes = bytes;
            let length = old.len();
            drop(old);
            self.chunks.release(chunk, length);
        }
        true
    }
}

/// What becomes of a record: `None`, it is appended; or why not.
fn judge(
    slices: &Slices,
    usage: &Usage,
    record: &Record<'_>,
    length: usize,
    begins: bool,
    quota: u64,
    allow: impl FnOnce(&RecordIdentity) -> Result<(), Refusal>,
) -> Result<Option<Appended>, Refusal> {
    let identity = &record.identity;
    allow(identity)?;
    match slices.place(identity, begins) {
        Place::Next => {}
        Place::Held(position) => return Ok(Some(Appended::Held(Position(position)))),
        Place::Released => return Ok(Some(Appended::Released)),
        Place::Gap => return Err(Refusal::Gap),
    }
    let held = usage.of_owner(identity.vdisk);
    let with = held + length as u64;
    // A host with nothing in the log is never refused: the smallest quota must let it go on.
    let taken = held == 0
        || with <= usage::taken_max(quota)
        || (with <= usage::dataless_max(quota) && is_dataless(record));
    if taken { Ok(None) } else { Err(Refusal::Full) }
}

/// Whether a record is only zeros and discards.
fn is_dataless(record: &Record<'_>) -> bool {
    record.entries().all(|(entry, _)| entry.length == 0)
}

#[cfg(test)]
mod tests;
