//! Appends, shards, and what hosts ask: the requests that carry or bring data.

use super::{HostRequest, HostWaiter, Malformed, ParkedFetch, READ_BYTES_MAX, WaiterKind, Who};
use crate::catalog_port::CatalogRequest;
use crate::catalog_queue::Waiter;
use crate::drives::DriveEvent;
use crate::log::{Appended, LogEntryKind, Soundness, soundness};
use crate::notices::Notice;
use crate::scrub::SUSPECTS_A_MESSAGE;
use crate::state::{Ack, State};
use bytes::Bytes;
use cleave_catalog::Cursor;
use cleave_format::control::SlotPlace;
use cleave_format::ids::{Epoch, Position, StripeId, VdiskId};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::links::ConnectionId;
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::{
    Append, ControllerMessage, HostMessage, MapCursor, Refusal, RequestNumber, ShardFault,
};

/// Bytes of records in one reply to a fetch, but for a longer record alone.
const FETCH_BYTES_MAX: usize = 1 << 20;
/// Entries of the log that one fetch looks at.
const FETCH_ENTRIES_MAX: usize = 16 << 10;
/// Stripes of one locate.
const LOCATE_MAX: usize = 4096;

impl State {
    /// Takes the records of an append into the log. The host is told when they are mirrored.
    pub(super) fn append(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        who: Who,
        append: &Append,
        mut message: Message,
    ) -> Result<(), Malformed> {
        let at = self.executor.now();
        let session = self.sessions.get_mut(&connection).expect("looked up before");
        let state = &mut session.lanes[usize::from(lane)];
        if state.refused && !is_planted(Planted::TakeGaps) {
            return Ok(());
        }
        if append.number != state.last + 1 {
            return Err("an append out of order".to_owned());
        }
        state.last = append.number;
        let lengths = append
            .records
            .iter()
            .try_fold(0usize, |sum, record| sum.checked_add(record.length as usize));
        if lengths != Some(message.len()) || append.records.is_empty() {
            return Err("an append whose payload is not its records".to_owned());
        }
        let held = self.held.as_mut().expect("a session is good on a confirmed active only");
        let active = self.active.as_mut().expect("as above");
        let (resident, quota) = (&active.resident, active.quota);
        let mirrored = Position(self.mirror.mirrored);
        let mut last = Position(0);
        let mut outlived = false;
        for record in &append.records {
            let length = record.length as usize;
            let outcome = held.log.append(&mut message, length, record.begins, quota, |identity| {
                let epoch = identity.version.epoch;
                if is_planted(Planted::AppendAfterSeal) {
                    return Ok(());
                }
                let owner = resident.check_owner(identity.vdisk, epoch, who.incarnation);
                outlived = owner.is_err() && resident.lacks_owner(identity.vdisk, epoch, mirrored);
                owner.map(drop)
            });
            match outcome {
                Ok(Appended::New(position)) => {
                    self.counters.records += 1;
                    self.counters.record_bytes += length as u64;
                    last = last.max(position);
                }
                Ok(Appended::Held(position)) => {
                    self.counters.duplicates += 1;
                    last = last.max(position);
                }
                Ok(Appended::Released) => self.counters.duplicates += 1,
                Err(Ok(Refusal::Sealed)) if outlived => {
                    self.close_outlived(connection);
                    return Ok(());
                }
                Err(Ok(reason)) => {
                    self.counters.refused += 1;
                    let session = self.sessions.get_mut(&connection).expect("looked up before");
                    session.lanes[usize::from(lane)].refused = true;
                    let number = append.number;
                    let refused = ControllerMessage::AppendRefused { number, reason };
                    self.send_host(connection, lane, &refused, None);
                    return Ok(());
                }
                Err(Err(error)) => {
                    return Err(format!("an append with an unusable record: {error}"));
                }
            }
        }
        let number = append.number;
        active.acks.push_back(Ack { position: last.0, connection, lane, number, at });
        reached(Point::LogAppended);
        Ok(())
    }

    pub(super) fn write_shard(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        who: Who,
        request: RequestNumber,
        (stripe, shard, place): (StripeId, u8, SlotPlace),
        mut message: Message,
    ) {
        let began = self.executor.now();
        self.rebuild.guests += 1;
        let active = self.active.as_mut().expect("a session is good on a confirmed active only");
        let granted = active.grants.open(stripe, who.incarnation).map_or(0, <[_]>::len);
        let begun = active.grants.begin_write(stripe, who.incarnation, shard, &place);
        let result = begun.and_then(|()| {
            let write = Some(stripe);
            let number = active.requests.insert(HostRequest {
                connection,
                lane,
                request,
                write,
                bytes: 0,
                began,
            });
            let data_shards = granted.saturating_sub(cleave_format::layout::PARITY_SHARDS);
            let submitted = active.drives.write(
                number as u64,
                &place,
                stripe,
                shard,
                data_shards,
                &mut message,
            );
            if submitted.is_err() {
                active.requests.remove(number);
                active.grants.end_write(stripe);
            }
            submitted
        });
        if let Err(fault) = result {
            self.shard_written(connection, lane, request, Err(fault));
        }
    }

    fn shard_written(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        request: RequestNumber,
        result: Result<(), ShardFault>,
    ) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.shard_writes -= 1;
            let message = ControllerMessage::ShardWritten { request, result };
            self.send_host(connection, lane, &message, None);
        }
    }

    /// Something happened to drives.
    pub fn drive_event(&mut self, event: DriveEvent) {
        let Some(active) = &mut self.active else { return };
        let now = self.executor.now();
        let event = match self.rebuild.take_event(event, &mut active.grants) {
            Some(event) => event,
            None => return,
        };
        match event {
            DriveEvent::Written { number, result } => {
                let host = active.requests.remove(number as usize);
                active.grants.end_write(host.write.expect("a write is under a grant"));
                self.observer.shard_written(now.since(host.began), result.is_ok());
                self.shard_written(host.connection, host.lane, host.request, result);
            }
            DriveEvent::Read { number, result } => {
                let host = active.requests.remove(number as usize);
                let bytes = result.as_ref().map_or(0, Bytes::len);
                self.observer.shard_read(now.since(host.began), bytes, result.is_ok());
                let (result, payload) = match result {
                    Ok(bytes) => (Ok(()), Some(bytes)),
                    Err(fault) => (Err(fault), None),
                };
                if let Some(session) = self.sessions.get_mut(&host.connection) {
                    session.read_bytes -= host.bytes;
                }
                let message = ControllerMessage::Read { request: host.request, result };
                self.reply(host.connection, host.lane, &message, payload);
            }
            DriveEvent::AreaWritten { number, durable } => self.solo.written(number, durable),
            DriveEvent::Fault { drive, slot, fault, suspect } => {
                if let Some(stripe) = suspect {
                    self.scrub.suspect(stripe, Some((drive, slot)), now);
                }
                self.notices.tell(Notice::of_fault(drive, slot, fault))
            }
            DriveEvent::Lost { drive, reason } => self.drive_lost(drive, &reason),
        }
    }

    /// Questions.
    pub(super) fn query(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        who: Who,
        message: HostMessage,
    ) -> Result<(), Malformed> {
        let waiter = |request, kind| Waiter::Host(HostWaiter { connection, lane, request, kind });
        match message {
            HostMessage::Fetch { request, vdisk, epoch, from } => {
                self.fetch(connection, lane, who, request, (vdisk, epoch, from));
            }
            HostMessage::OpenMap { request, vdisk, epoch, cursor } => {
                if let Err(refusal) = self.check_sealed(who, vdisk, epoch) {
                    let map = ControllerMessage::Map {
                        request,
                        frontier: Position(0),
                        pieces: Vec::new(),
                        commits: Vec::new(),
                        next: None,
                        refused: Some(refusal),
                    };
                    self.reply(connection, lane, &map, None);
                    return Ok(());
                }
                let cursor = cursor.map(|cursor| match cursor {
                    MapCursor::Pieces(group) => Cursor::Pieces(group),
                    MapCursor::Commits(position) => Cursor::Commits(position),
                });
                // The seal is mirrored, so everything up to it was given to the catalog before.
                let request = waiter(request, WaiterKind::Map);
                self.catalog.ask(request, CatalogRequest::MapPage { vdisk, cursor });
            }
            HostMessage::ListStripes { request, vdisk, epoch, from } => {
                if let Err(refusal) = self.check_sealed(who, vdisk, epoch) {
                    let (stripes, next, refused) = (Vec::new(), None, Some(refusal));
                    let listed = ControllerMessage::Listed { request, stripes, next, refused };
                    self.reply(connection, lane, &listed, None);
                    return Ok(());
                }
                let request = waiter(request, WaiterKind::Stripes);
                self.catalog.ask(request, CatalogRequest::StripesOf { vdisk, from });
            }
            HostMessage::Locate { request, stripes } => {
                if stripes.len() > LOCATE_MAX {
                    return Err("too many stripes to locate".to_owned());
                }
                let request = waiter(request, WaiterKind::Locate);
                self.catalog.ask(request, CatalogRequest::Locate(stripes));
            }
            HostMessage::Damaged { stripes } => {
                // It has no answer. A host's word is a reason to look, and no more.
                if let Some(session) = self.sessions.get_mut(&connection) {
                    session.requests = session.requests.saturating_sub(1);
                }
                if stripes.len() > SUSPECTS_A_MESSAGE {
                    return Err("too many damaged stripes at a time".to_owned());
                }
                let now = self.executor.now();
                stripes.into_iter().for_each(|stripe| self.scrub.suspect(stripe, None, now));
            }
            read @ HostMessage::Read { .. } => self.read_or_wait(connection, lane, read),
            _ => unreachable!("dispatched before"),
        }
        Ok(())
    }

    /// Begins a read unless the host has much to take already: replies are bounded by what it takes.
    fn read_or_wait(&mut self, connection: ConnectionId, lane: u8, read: HostMessage) {
        let queued = self.links.queued(connection);
        let session = self.sessions.get_mut(&connection).expect("looked up before");
        if session.waiting_reads.is_empty() && session.read_bytes + queued < READ_BYTES_MAX {
            self.begin_read(connection, lane, read);
        } else {
            session.waiting_reads.push_back((lane, read));
            self.waiting_reads += 1;
        }
    }

    /// Begins reads that waited.
    pub fn take_waiting_reads(&mut self) -> bool {
        if self.waiting_reads == 0 {
            return false;
        }
        let mut ready = Vec::new();
        for (connection, session) in &mut self.sessions {
            if session.waiting_reads.is_empty() {
                continue;
            }
            let mut room =
                READ_BYTES_MAX.saturating_sub(session.read_bytes + self.links.queued(*connection));
            while room > 0
                && let Some((lane, read)) = session.waiting_reads.pop_front()
            {
                let HostMessage::Read { length, .. } = read else {
                    unreachable!("only reads wait")
                };
                room = room.saturating_sub(length as usize);
                ready.push((*connection, lane, read));
            }
        }
        let any = !ready.is_empty();
        self.waiting_reads -= ready.len();
        for (connection, lane, read) in ready {
            self.begin_read(connection, lane, read);
        }
        any
    }

    fn begin_read(&mut self, connection: ConnectionId, lane: u8, read: HostMessage) {
        let HostMessage::Read { request, place, stripe, shard, offset, length } = read else {
            unreachable!("only reads come here")
        };
        let began = self.executor.now();
        self.rebuild.guests += 1;
        let bytes = length as usize;
        let active = self.active.as_mut().expect("good on a confirmed active only");
        let read = HostRequest { connection, lane, request, write: None, bytes, began };
        let number = active.requests.insert(read);
        // What lies in a free slot belongs to nobody any more.
        let begun = match active.grants.allocator.is_free(&place) {
            true => Err(ShardFault::Identity),
            false => active.drives.read(number as u64, &place, stripe, shard, offset, length),
        };
        match begun {
            Ok(()) => {
                let session = self.sessions.get_mut(&connection).expect("looked up before");
                session.read_bytes += bytes;
            }
            Err(fault) => {
                active.requests.remove(number);
                self.observer.shard_read(std::time::Duration::ZERO, 0, false);
                let message = ControllerMessage::Read { request, result: Err(fault) };
                self.reply(connection, lane, &message, None);
            }
        }
    }

    /// Whether this host owns the vdisk (C8). That its seal is mirrored was looked at before.
    fn check_sealed(&self, who: Who, vdisk: VdiskId, epoch: Epoch) -> Result<(), Refusal> {
        let active = self.active.as_ref().expect("good on a confirmed active only");
        active.resident.check_owner(vdisk, epoch, who.incarnation).map(drop)
    }

    /// Goes on with a fetch, unless its session is gone.
    pub(crate) fn fetch_again(&mut self, fetch: ParkedFetch) {
        let ParkedFetch { connection, lane, request, what, .. } = fetch;
        let who = self.sessions.get(&connection).and_then(|session| session.who);
        if let Some(who) = who {
            self.fetch(connection, lane, who, request, what);
        }
    }

    fn fetch(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        who: Who,
        request: RequestNumber,
        what: (VdiskId, Epoch, Position),
    ) {
        let (vdisk, epoch, from) = what;
        if let Err(refusal) = self.check_sealed(who, vdisk, epoch) {
            let (records, next, refused) = (Vec::new(), None, Some(refusal));
            let fetched = ControllerMessage::Fetched { request, records, next, refused };
            self.reply(connection, lane, &fetched, None);
            return;
        }
        let held = self.held.as_ref().expect("good on a confirmed active only");
        let end = Position(self.mirror.mirrored + 1);
        let mut parts = vec![Bytes::new()];
        let mut records = Vec::new();
        let (mut bytes, mut looked, mut next) = (0, 0, None);
        let (mut from, mut rotted) = (from, None);
        while let Some((position, entry)) = held.log.next_entry(from, end) {
            let ours = matches!(entry.kind, LogEntryKind::Record(of, _) if of == vdisk);
            let full = ours && bytes > 0 && bytes + entry.bytes.len() > FETCH_BYTES_MAX;
            if full || looked == FETCH_ENTRIES_MAX {
                next = Some(position);
                break;
            }
            looked += 1;
            if ours
                && soundness(&entry.bytes) != Soundness::Sound
                && !self.mending.is_hopeless(position)
            {
                // What is before it is given at once.
                (rotted, next) = (Some(position), Some(position));
                break;
            }
            if ours {
                bytes += entry.bytes.len();
                records.push(entry.bytes.len() as u32);
                parts.push(entry.bytes.clone());
            }
            from = Position(position.0 + 1);
        }
        if let Some(position) = rotted
            && !self.mend(position)
            && records.is_empty()
        {
            return self.mending.parked.push(ParkedFetch {
                connection,
                lane,
                request,
                what,
                position,
            });
        }
        let fetched = ControllerMessage::Fetched { request, records, next, refused: None };
        parts[0] = cleave_wire::encode_header(&fetched);
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.requests = session.requests.saturating_sub(1);
            let _ = self.links.send(connection, lane, &parts);
        }
    }
}
