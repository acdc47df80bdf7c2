//! The log of an active controller that is alone, on three drives (C12): its sessions, what the next segment brings, and
//! the way to the drives. When one begins and ends is `join/alone.rs`'s to say.
//!
//! Invariants:
//! - By a session is acknowledged only what all of its drives have durable, and only while the store's record names it.
//! - A session has, or had, an entry for every position from the log's first entry on: what it was filled with, and what came
//!   then, in order. A control record stays in the log until the session under way has it, so that what
//!   was released meanwhile is released again when it is loaded (C2).
//! - A session is written to the part of the reserved areas where the last one is not (C17), and never where the
//!   other controller writes (C15).
//!
//! A crash leaves the recorded session as it was at some moment after the last acknowledgement; and perhaps pieces of
//! another one, that nothing names.

use crate::drives::Drives;
use crate::log::{Log, LogEntryKind};
use crate::state::State;
use bytes::Bytes;
use cleave_format::FormatError;
use cleave_format::control::DriveState;
use cleave_format::ids::{DriveId, Position};
use cleave_format::solo::{SEGMENT_MAX, SOLO_DRIVES, SegmentHead, SegmentWriter, SessionIdentity};
use cleave_format::vault::VaultKind;
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::DriveIo;
use cleave_runtime::message::Message;
use cleave_runtime::sync::{Outcome, Promise, Signal, promise};
use cleave_runtime::time::Moment;
use slab::Slab;
use std::ops::Range;

/// A session that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub identity: SessionIdentity,
    /// Which of this controller's parts of the reserved areas.
    pub part: u8,
    /// Its drives, and where the part begins on each.
    pub drives: Vec<(DriveId, u64)>,
    /// Bytes of the part.
    pub length: u64,
    /// Bytes written.
    pub at: u64,
    /// Segments written.
    pub number: u64,
    /// Everything before is in it, or was released.
    pub next: Position,
    /// Bytes that were written when it was recorded.
    pub filled: u64,
}

impl Session {
    /// Whether the next one is due: half of what was left after filling it is used.
    pub fn is_worn(&self) -> bool {
        self.at - self.filled > (self.length - self.filled) / 2
    }
}

/// What an active controller that is, or may be, alone keeps.
#[derive(Default)]
pub(crate) struct Solo {
    /// The recorded one, by which is acknowledged.
    pub session: Option<Session>,
    /// A write to it failed: nothing is acknowledged by it any more.
    pub broken: bool,
    /// The peer has a copy of everything, and is about to become a member: nothing is acknowledged by a session that the
    /// copy lacks. Also while there is no session: the word that one is recorded may be on its way.
    pub frozen: bool,
    /// Times that this came to nothing, or its outcome was not heard: the record must be made anew before anything is
    /// acknowledged.
    pub doubts: u64,
    /// How many of them were over when the newest record was asked for that is known to be made.
    pub settled: u64,
    /// The store may carry out, however late, what was asked of it: what the record says is not known.
    pub uncertain: bool,
    /// It appended that slots are held, and not yet that they are free.
    pub holds: bool,
    /// Sessions that this process began.
    pub begun: u64,
    /// The part for the next one.
    pub part: u8,
    /// Another try is made from then on.
    pub again: Option<Moment>,
    /// Why the last one came to nothing.
    pub hindrance: String,
    /// Control records after this stay in the log: a session is being filled.
    pub filling: Option<Position>,
    /// As above: the peer copies.
    pub copying: Option<Position>,
    pub signal: Signal,
    /// Writes under way.
    waiting: Slab<Promise<bool>>,
}

impl Solo {
    /// Control records up to here may leave the log.
    pub fn trim_max(&self) -> Position {
        let kept = [self.filling, self.copying];
        kept.into_iter().flatten().min().unwrap_or(Position(u64::MAX))
    }

    /// Whether the record may say, or come to say, that the peer is a member, or name another session than the one by which
    /// is acknowledged.
    pub fn is_doubtful(&self) -> bool {
        self.uncertain || self.settled < self.doubts
    }

    /// Wakes the flow that writes the session when there is more to write.
    pub fn wake_for(&self, next: Option<Position>) {
        let waits = self.broken || self.frozen || self.is_doubtful();
        if let (Some(session), Some(next)) = (&self.session, next)
            && session.next < next
            && !waits
        {
            self.signal.notify();
        }
    }

    /// The mirror runs, or another controller is active: the session is none any more.
    pub fn end(&mut self) {
        self.session = None;
        (self.broken, self.frozen, self.settled) = (false, false, self.doubts);
        (self.filling, self.copying, self.again) = (None, None, None);
        self.hindrance.clear();
        self.signal.notify();
    }

    /// A meeting is over, and the peer is no member by it.
    pub fn met_in_vain(&mut self) {
        self.copying = None;
        self.doubts += u64::from(std::mem::take(&mut self.frozen));
        self.signal.notify();
    }

    /// A write to a drive's area is over.
    pub fn written(&mut self, number: u64, durable: bool) {
        self.waiting.remove(number as usize).fulfil(durable);
    }
}

/// What an unreadable entry means to a segment.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unreadable {
    /// There may be a better copy: with the peer, or in the session of before.
    Refuse,
    /// Nobody else has it, and nobody was told that it is held.
    GiveUp,
}

impl State {
    /// A session in the next part, of three drives that have room for what the log holds.
    pub fn plan_session(&mut self) -> Result<Session, String> {
        let (Some(held), Some(active)) = (&self.held, &self.active) else {
            return Err("this controller is not active".to_owned());
        };
        let (controller, part) = (self.settings.controller, self.solo.part);
        let needed = needed(held.log.record_bytes() + held.log.control_bytes(), held.log.len());
        let mut areas = active.drives.solo_areas(controller, part);
        let count = areas.len();
        areas.retain(|(_, area)| area.end - area.start >= needed);
        if areas.len() < SOLO_DRIVES {
            return Err(format!(
                "{} of {count} drives in use have {needed} bytes for the log of a controller that is alone; it takes {SOLO_DRIVES}",
                areas.len()
            ));
        }
        self.solo.begun += 1;
        // Not always the same drives.
        let count = areas.len();
        areas.rotate_left((self.solo.begun as usize - 1) * SOLO_DRIVES % count);
        areas.truncate(SOLO_DRIVES);
        let length = areas.iter().map(|(_, area)| area.end - area.start).min();
        let identity = SessionIdentity {
            cluster: self.settings.cluster,
            datanode: self.settings.datanode,
            log: held.log.id(),
            incarnation: self.incarnation,
            session: self.solo.begun,
        };
        Ok(Session {
            identity,
            part,
            drives: areas.into_iter().map(|(drive, area)| (drive, area.start)).collect(),
            length: length.unwrap_or(0),
            at: 0,
            number: 0,
            next: Position(0),
            filled: 0,
        })
    }

    /// The next segment of a session, and the position after it; `None` when it has everything. `Err`: an
    /// entry rotted in memory.
    pub fn segment(
        &mut self,
        session: &Session,
        buffer: Vec<u8>,
        unreadable: Unreadable,
    ) -> Result<Option<(Vec<u8>, Position)>, String> {
        let mut writer = SegmentWriter::new(session.identity, session.number, buffer);
        let (mut from, mut empty) = (session.next, true);
        loop {
            let Some(held) = &self.held else { return Err("the log is gone".to_owned()) };
            let end = held.log.next();
            let Some((position, entry)) = held.log.next_entry(from, end) else {
                let wanted = !empty || session.number == 0 || session.next < end;
                return Ok(wanted.then(|| (writer.finish(end), end)));
            };
            if !entry.is_readable(position) {
                if unreadable == Unreadable::Refuse {
                    return Err(format!("the entry at {position} rotted in memory"));
                }
                self.give_up(position);
                match &self.fatal {
                    Some(reason) => return Err(reason.clone()),
                    None => continue,
                }
            }
            if writer.is_full() {
                return Ok(Some((writer.finish(from), from)));
            }
            match entry.kind {
                LogEntryKind::Record(..) => {
                    writer.append(position, VaultKind::Record, 0, &entry.bytes);
                }
                LogEntryKind::Control { check } => {
                    writer.append(position, VaultKind::Control, check, &entry.bytes);
                }
            }
            empty = false;
            from = Position(position.0 + 1);
        }
    }

    /// Writes a segment where the session goes on, to all of its drives. Each outcome says whether it is durable.
    pub fn write_segment(&mut self, session: &Session, segment: &[u8]) -> Vec<Outcome<bool>> {
        let mut outcomes = Vec::with_capacity(session.drives.len());
        for (drive, start) in &session.drives {
            let (kept, outcome) = promise();
            outcomes.push(outcome);
            let number = self.solo.waiting.insert(kept);
            let begun = self.active.as_mut().is_some_and(|active| {
                active.drives.write_area(number as u64, *drive, start + session.at, segment)
            });
            if !begun {
                self.solo.written(number as u64, false);
            }
        }
        outcomes
    }

    /// Whether entries are acknowledged by a session.
    pub fn is_alone(&self) -> bool {
        self.solo.session.is_some()
    }

    /// Bytes that hosts' records may have, all together: what is acknowledged alone must fit the next session, too.
    pub fn quota_of_all(&self) -> u64 {
        let all = self.settings.log.record_bytes_max / 4 * 3;
        match &self.solo.session {
            Some(session) => all.min(session.length / 2),
            None => all,
        }
    }
}

/// Loads a session's log from any of its drives.
pub(crate) async fn load(
    sources: &[(DriveIo, Range<u64>)],
    identity: &SessionIdentity,
    mut log: Log,
    catalog: Position,
) -> Result<Log, String> {
    let (mut at, mut number, mut next) = (0, 0, Position(0));
    loop {
        let mut found = None;
        for (io, area) in sources {
            let start = area.start + at;
            found = read_segment(io, start..area.end, identity, number).await;
            if found.is_some() {
                break;
            }
        }
        let Some((head, bytes)) = found else { break };
        take_segment(&mut log, &head, &bytes).map_err(|error| error.to_string())?;
        (at, number, next) = (at + head.size() as u64, number + 1, head.next);
    }
    if number == 0 {
        return Err("none of them has its beginning".to_owned());
    }
    for (io, area) in sources {
        if goes_on(io, area.start + at..area.end, identity, number).await {
            return Err(format!(
                "none of them has its segment {number} intact, which has successors"
            ));
        }
    }
    log.finish_copy(next, catalog).map_err(|error| error.to_string())?;
    Ok(log)
}

/// The segment of that number, if this drive has it intact.
async fn read_segment(
    io: &DriveIo,
    place: Range<u64>,
    identity: &SessionIdentity,
    number: u64,
) -> Option<(SegmentHead, Vec<u8>)> {
    let room = place.end.checked_sub(place.start).filter(|room| *room >= PAGE as u64)?;
    let read = async |length| match io.read(place.start, length).await {
        Ok(bytes) => Some(bytes),
        Err(error) => {
            tracing::warn!("a segment of the log cannot be read from a drive: {error}");
            None
        }
    };
    let first = read(PAGE).await?;
    let head = SegmentHead::decode(&first).ok()?;
    if head.identity != *identity || head.number != number || head.size() as u64 > room {
        return None;
    }
    let bytes = if head.size() == PAGE { first } else { read(head.size()).await? };
    // The head is read again with the rest.
    let whole = SegmentHead::decode(&bytes).is_ok_and(|again| again == head);
    (whole && head.check(&bytes).is_ok()).then(|| (head, bytes.to_vec()))
}

/// Whether a drive has the successor of the segment that should be there and that no drive has intact. No segment is begun before the
/// one before it is durable on all drives: it is not one that a crash cut off, but one that was acknowledged (C12).
async fn goes_on(io: &DriveIo, place: Range<u64>, identity: &SessionIdentity, number: u64) -> bool {
    const PIECE: usize = 256 << 10;
    let end = place.end.min(place.start + (SEGMENT_MAX + PAGE) as u64);
    let mut at = place.start + PAGE as u64;
    while at < end {
        let length = PIECE.min((end - at) as usize);
        let pages = io.read(at, length).await;
        for (index, page) in pages.iter().flat_map(|bytes| bytes.chunks(PAGE)).enumerate() {
            let successor =
                |head: SegmentHead| head.identity == *identity && head.number == number + 1;
            let start = at + (index * PAGE) as u64;
            if SegmentHead::decode(page).is_ok_and(successor)
                && read_segment(io, start..place.end, identity, number + 1).await.is_some()
            {
                return true;
            }
        }
        at += length as u64;
    }
    false
}

fn take_segment(log: &mut Log, head: &SegmentHead, bytes: &[u8]) -> Result<(), FormatError> {
    for entry in head.entries(bytes)? {
        let bytes = Bytes::copy_from_slice(entry.bytes);
        match entry.kind {
            VaultKind::Record => {
                let length = bytes.len();
                log.insert_record(entry.position, &mut Message::from(bytes), length)?;
            }
            VaultKind::Control => {
                let control = log.insert_encoded_control(entry.position, bytes, entry.check)?;
                log.release(&control);
            }
        }
    }
    Ok(())
}

/// Bytes that a session may need for so many bytes of entries: their heads and padding, heads of segments and the rest of
/// their pages; and for a first segment beside them.
fn needed(bytes: u64, entries: u64) -> u64 {
    let padded = bytes + entries * 32;
    padded + padded / 64 + (2 << 20)
}

impl Drives {
    /// The part of the reserved area of each drive in use.
    pub fn solo_areas(&self, controller: u8, part: u8) -> Vec<(DriveId, Range<u64>)> {
        let areas = self.opened().filter(|(_, state, _)| *state == DriveState::Active);
        areas.map(|(id, _, open)| (id, open.superblock.solo_area(controller, part))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However entries and their lengths fall, a session has room for what was counted.
    #[test]
    fn what_is_needed_is_enough() {
        for length in [1, 100, 4200, 4 << 20] {
            for entries in [1u64, 300, 3000] {
                if length * entries > 1 << 30 {
                    continue;
                }
                let padded = 16 + length.next_multiple_of(16);
                let a_segment = ((1 << 20) / padded).max(1);
                let segments = entries.div_ceil(a_segment);
                let worst = entries * padded + segments * (96 + 4095);
                assert!(needed(length * entries, entries) >= worst, "{entries} of {length}");
            }
        }
    }
}
