//! Appends: records on their way into the log, by lane.
//!
//! Invariants: within a lane, records are sent in the order pushed, so those of a slice in order of
//! their sequences; an append has records of one vdisk only, so that a refusal says whose; what is
//! not mirrored when a connection breaks is sent again on the next one, in the same order, with
//! `begins` worked out anew (C1).

use crate::buffer::{RecordKey, WriteBuffer};
use crate::sequence::Sequences;
use bytes::Bytes;
use cleave_format::ids::{SliceIndex, VdiskId};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::links::{ConnectionId, LANES, Links};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::{Append, AppendRecord, HostMessage, encode_header};
use std::collections::VecDeque;

/// Bytes of records in one append, unless it is a single one.
const APPEND_BYTES_MAX: usize = 1 << 20;
/// Records in one append.
const APPEND_RECORDS_MAX: usize = 256;
/// Bytes queued on the connection from which on a turn sends nothing more.
const QUEUED_MAX: usize = 4 << 20;

#[derive(Default)]
struct Lane {
    unsent: VecDeque<RecordKey>,
    /// Appends that were sent, by number.
    sent: VecDeque<(u64, Vec<RecordKey>)>,
    next: u64,
}

/// The appending side of a core's log connection.
#[derive(Default)]
pub struct LogClient {
    lanes: [Lane; LANES as usize],
    connection: Option<ConnectionId>,
    parts: Vec<Bytes>,
    spare: Vec<Vec<RecordKey>>,
    /// Records sent.
    pub appended: u64,
    /// Their bytes.
    pub appended_bytes: u64,
    /// Records that went back to be sent again.
    pub resent: u64,
}

/// The lane of a slice's records.
pub fn lane_of(slice: SliceIndex) -> u8 {
    (slice.0 % u32::from(LANES)) as u8
}

impl LogClient {
    /// The next record of its slice.
    pub fn push(&mut self, slice: SliceIndex, key: RecordKey) {
        self.lanes[usize::from(lane_of(slice))].unsent.push_back(key);
    }

    /// A connection is good: everything that is not mirrored goes over it.
    pub fn connected(&mut self, connection: ConnectionId) {
        self.disconnected();
        if self.lanes.iter().any(|lane| !lane.unsent.is_empty()) {
            reached(Point::HostAppendsResent);
        }
        self.connection = Some(connection);
    }

    /// The connection is gone.
    pub fn disconnected(&mut self) {
        self.connection = None;
        for lane in &mut self.lanes {
            lane.next = 0;
            while let Some((_, keys)) = lane.sent.pop_back() {
                if is_planted(Planted::ForgetUnanswered) {
                    continue;
                }
                self.resent += keys.len() as u64;
                keys.iter().rev().for_each(|key| lane.unsent.push_front(*key));
            }
        }
    }

    /// Replaces all that is not mirrored, in the order in which it is to be appended (C7).
    pub fn restart(&mut self, records: impl Iterator<Item = (SliceIndex, RecordKey)>) {
        for lane in &mut self.lanes {
            lane.unsent.clear();
            lane.sent.clear();
        }
        records.for_each(|(slice, key)| self.push(slice, key));
    }

    /// Sends what waits. True when anything was sent.
    pub fn flush(
        &mut self,
        links: &dyn Links,
        buffer: &WriteBuffer,
        sequences: &Sequences,
    ) -> bool {
        let Some(connection) = self.connection else { return false };
        let mut any = false;
        for lane in 0..LANES {
            while !self.lanes[usize::from(lane)].unsent.is_empty()
                && links.queued(connection) < QUEUED_MAX
            {
                if !self.send(links, connection, lane, buffer, sequences) {
                    return any;
                }
                any = true;
            }
        }
        any
    }

    /// Sends one append of the lane. False when the connection does not take it.
    fn send(
        &mut self,
        links: &dyn Links,
        connection: ConnectionId,
        lane_number: u8,
        buffer: &WriteBuffer,
        sequences: &Sequences,
    ) -> bool {
        let lane = &mut self.lanes[usize::from(lane_number)];
        let mut keys = self.spare.pop().unwrap_or_default();
        let mut records = Vec::new();
        let (mut bytes, mut vdisk): (usize, Option<VdiskId>) = (0, None);
        self.parts.clear();
        self.parts.push(Bytes::new());
        while let Some(key) = lane.unsent.front().copied() {
            // A record of a vdisk that was closed in the meantime.
            let Some(record) = buffer.get(key) else {
                lane.unsent.pop_front();
                continue;
            };
            let identity = &record.identity;
            let full = bytes + record.length() > APPEND_BYTES_MAX
                || records.len() == APPEND_RECORDS_MAX
                || vdisk.is_some_and(|vdisk| vdisk != identity.vdisk);
            if full && !records.is_empty() {
                break;
            }
            let sequence = identity.version.sequence;
            let begins = sequences.begins(identity.vdisk, identity.slice, sequence);
            records.push(AppendRecord { length: record.length() as u32, begins });
            self.parts.push(record.head.clone());
            self.parts.push(record.data.clone());
            bytes += record.length();
            vdisk = Some(identity.vdisk);
            keys.push(key);
            lane.unsent.pop_front();
        }
        if records.is_empty() {
            self.spare.push(keys);
            return true;
        }
        lane.next += 1;
        self.appended += records.len() as u64;
        self.appended_bytes += bytes as u64;
        let append = Append { number: lane.next, records };
        self.parts[0] = encode_header(&HostMessage::Append(append));
        lane.sent.push_back((lane.next, keys));
        let sent = links.send(connection, lane_number, &self.parts).is_ok();
        reached(Point::HostAppendSent);
        self.parts.clear();
        sent
    }

    /// Everything of the lane up to an append is mirrored; its records are added to `records`.
    pub fn mirrored(&mut self, lane: u8, through: u64, records: &mut Vec<RecordKey>) {
        let Some(lane) = self.lanes.get_mut(usize::from(lane)) else { return };
        while lane.sent.front().is_some_and(|(number, _)| *number <= through) {
            let (_, mut keys) = lane.sent.pop_front().expect("it was looked at");
            records.append(&mut keys);
            self.spare.push(keys);
        }
    }

    /// A record of a refused append.
    pub fn refused(&self, lane: u8, number: u64) -> Option<RecordKey> {
        let lane = self.lanes.get(usize::from(lane))?;
        let (_, keys) = lane.sent.iter().find(|(sent, _)| *sent == number)?;
        keys.first().copied()
    }
}

#[cfg(test)]
mod tests;
