//! A vdisk's device: the turn that takes requests, and the answers that publish them.
//!
//! Order of one request: popped, walked, recorded (C24), checked, handed to the engine; then data,
//! status, used ring, record cleared. The engine decides the order of answers (C23).
//!
//! Nothing new is taken while the engine holds requests of an earlier connection, while requests
//! found in an inflight region are not all published, while the device is paused, or while more
//! than `write_bytes_max` of write data is with the engine.

use crate::blk::{self, Parsed, Status};
use crate::channel::send_hint;
use crate::config::DiskConfig;
use crate::error::{Error, Hangup, RingFault};
use crate::frontend::{Device, Frontend};
use crate::listen::Listening;
use crate::request::{BufferSource, Outcome, Request, RequestKind, Tag};
use crate::ring::Ring;
use crate::slots::{Found, Slots};
use std::os::fd::{AsRawFd, RawFd};
use vhost::vhost_user::message::BackendReq;

mod handover;

pub use handover::DetachedDisk;

/// Requests taken from one ring in one turn.
const BATCH: usize = 32;
/// Messages handled in one turn.
const MESSAGES: usize = 16;
/// Turns between looks at the sockets, which cost a system call each; a wake looks at once.
const SOCKET_TURNS: u32 = 64;

/// What a vdisk's device is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiskState {
    /// No front end is connected.
    Listening,
    /// A front end is connected; no ring runs. A vdisk in this state need not be owned (C26).
    Connected,
    /// At least one ring runs.
    Running,
}

/// Counts since the device was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Connections accepted.
    pub connections: u64,
    /// Reads taken.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes taken.
    pub writes: u64,
    /// Bytes of them.
    pub write_bytes: u64,
    /// Flushes taken.
    pub flushes: u64,
    /// Discards and write-zeroes taken.
    pub discards: u64,
    /// Requests that were found in an inflight region and taken again.
    pub resumed: u64,
    /// Requests that the guest was told failed, refused ones included.
    pub failed: u64,
    /// Rings stopped because the guest broke their rules.
    pub faults: u64,
    /// Times that a guest was woken.
    pub notifications: u64,
}

/// One vdisk's device.
pub struct Disk {
    frontend: Option<Box<Frontend>>,
    slots: Slots,
    /// Resumed reads that wait for the resumed writes, and the slots that they are of.
    held: Vec<Request>,
    held_slots: usize,
    paused: bool,
    statistics: Statistics,
    config: DiskConfig,
    capacity: u64,
    buffers: Box<dyn BufferSource>,
    writeback: u8,
    /// Turns until the sockets are looked at.
    socket_turns: u32,
    /// Something was published since [`flush_notifications`](Disk::flush_notifications).
    unsignalled: bool,
    listening: Listening,
    watch_version: u64,
    /// Accepting failed, and it was said.
    refusing: bool,
}

impl Disk {
    /// Listens. A stale socket file is replaced; the file goes with the device.
    pub fn bind(config: DiskConfig, buffers: impl BufferSource + 'static) -> Result<Disk, Error> {
        config.check()?;
        let listening = Listening::bind(&config.socket, config.mode, config.group.as_deref())?;
        Ok(Disk {
            frontend: None,
            slots: Slots::default(),
            held: Vec::new(),
            held_slots: 0,
            paused: false,
            statistics: Statistics::default(),
            capacity: config.capacity,
            config,
            buffers: Box::new(buffers),
            writeback: 0,
            socket_turns: 0,
            unsignalled: false,
            listening,
            watch_version: 0,
            refusing: false,
        })
    }

    /// Serves sockets and rings; appends the requests taken. True when it did anything.
    pub fn turn(&mut self, requests: &mut Vec<Request>) -> bool {
        // Answers since the last turn may have met lost memory, as this turn may.
        if self.close_lost() {
            return true;
        }
        let waiting = self.frontend.as_ref().is_some_and(|frontend| frontend.waiting.is_some());
        let mut worked = false;
        if waiting || self.socket_turns == 0 {
            self.socket_turns = SOCKET_TURNS;
            worked = self.serve_sockets();
            if worked {
                // A setup is many messages.
                self.socket_turns = 0;
            }
        } else {
            self.socket_turns -= 1;
        }
        let taken = self.take(requests);
        self.close_lost() || taken || worked
    }

    /// Closes a connection whose front end took back memory that it shares. True when it did.
    fn close_lost(&mut self) -> bool {
        let lost = self.frontend.as_ref().is_some_and(|frontend| frontend.memory.lost());
        if lost {
            self.hang_up(&Hangup::Lost);
        }
        lost
    }

    fn serve_sockets(&mut self) -> bool {
        if self.frontend.is_none() {
            return self.accept();
        }
        let mut device = Device {
            config: &self.config,
            capacity: self.capacity,
            writeback: &mut self.writeback,
        };
        let mut worked = false;
        for _ in 0..MESSAGES {
            let Some(frontend) = &mut self.frontend else { break };
            match frontend.serve(&mut device) {
                Ok(true) => worked = true,
                Ok(false) => break,
                Err(reason) => {
                    self.hang_up(&reason);
                    return true;
                }
            }
        }
        if worked {
            self.watch_version += 1;
            // A ring that was started has its guest woken.
            self.unsignalled = true;
        }
        worked
    }

    fn accept(&mut self) -> bool {
        match self.listening.accept() {
            Ok(None) => false,
            Ok(Some(stream)) => {
                tracing::info!(vdisk = %self.config.name, "front end connected");
                self.frontend = Some(Box::new(Frontend::new(stream, &self.config)));
                self.refusing = false;
                self.statistics.connections += 1;
                self.watch_version += 1;
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.refusing, true) {
                    tracing::warn!(vdisk = %self.config.name, %error, "cannot accept a front end");
                }
                false
            }
        }
    }

    fn hang_up(&mut self, reason: &Hangup) {
        self.frontend = None;
        self.slots.abandon();
        for request in std::mem::take(&mut self.held) {
            // The engine never had it.
            self.slots.drop_stale(request.tag);
        }
        self.held_slots = 0;
        self.watch_version += 1;
        let (vdisk, abandoned) = (&self.config.name, self.slots.abandoned());
        match reason {
            Hangup::Closed => tracing::info!(%vdisk, abandoned, "front end disconnected"),
            _ => tracing::warn!(%vdisk, abandoned, %reason, "front end disconnected by us"),
        }
    }

    fn take(&mut self, requests: &mut Vec<Request>) -> bool {
        if self.paused || self.slots.abandoned() > 0 {
            return false;
        }
        let Some(mut frontend) = self.frontend.take() else { return false };
        let worked = self.take_from(&mut frontend, requests);
        self.frontend = Some(frontend);
        if worked {
            // Some may have been answered here, without the engine.
            self.flush_notifications();
        }
        worked
    }

    fn take_from(&mut self, frontend: &mut Frontend, requests: &mut Vec<Request>) -> bool {
        let mut worked = false;
        if !frontend.takes_new() {
            for _ in 0..BATCH {
                if self.slots.write_bytes() >= self.config.write_bytes_max {
                    break;
                }
                let Some((_, ring, head)) = frontend.next_unfinished() else { break };
                worked = true;
                self.statistics.resumed += 1;
                self.begin(frontend, ring, head, true, requests);
            }
            return self.release_held(frontend, requests) || worked;
        }
        for index in 0..frontend.rings.len() {
            for _ in 0..BATCH {
                let ring = &mut frontend.rings[index];
                let full = self.slots.write_bytes() >= self.config.write_bytes_max;
                if !ring.ready() || full || frontend.memory.lost() {
                    break;
                }
                match ring.pop(frontend.memory.view()) {
                    Ok(None) => break,
                    Ok(Some(head)) => {
                        self.begin(frontend, index as u16, head, false, requests);
                    }
                    Err(fault) => self.fault(&mut frontend.rings[index], index as u16, fault),
                }
                worked = true;
            }
        }
        worked
    }

    /// Whether all that is resumed is with the engine and answered, but for the reads.
    fn may_release_held(&self, frontend: &Frontend) -> bool {
        let rest = self.slots.in_use() - self.held_slots;
        !self.held.is_empty() && frontend.unfinished_begun() && rest == 0
    }

    /// Gives the engine the resumed reads, once nothing that is executed again can change what they
    /// return: the log may hold a write that was in flight, and a read could find first that, then what
    /// an older write in flight puts there again (C24).
    fn release_held(&mut self, frontend: &Frontend, requests: &mut Vec<Request>) -> bool {
        let release = self.may_release_held(frontend);
        if release {
            requests.append(&mut self.held);
            self.held_slots = 0;
        }
        release
    }

    /// The guest broke the ring's rules. What is read from lost memory may look so too, before the
    /// next turn ends the connection.
    fn fault(&mut self, ring: &mut Ring, index: u16, fault: RingFault) {
        tracing::warn!(vdisk = %self.config.name, ring = index, %fault, "ring stopped until its next start");
        self.statistics.faults += 1;
        ring.fail(fault);
    }

    /// Takes the request at `head`.
    fn begin(
        &mut self,
        frontend: &mut Frontend,
        index: u16,
        head: u16,
        resumed: bool,
        requests: &mut Vec<Request>,
    ) {
        let Frontend { memory, rings, counter, .. } = &mut *frontend;
        let ring = &mut rings[usize::from(index)];
        let place = self.slots.begin();
        let slot = self.slots.get(place);
        (slot.ring, slot.head) = (index, head);
        let (table, size) = ring.table();
        let shaped = slot.chain.walk(memory, table, size, head);
        if let Err(fault) = shaped.and_then(|()| ring.take(head, *counter)) {
            self.slots.end(place);
            return self.fault(ring, index, fault);
        }
        *counter = counter.wrapping_add(1);
        let parsed = blk::parse(&slot.chain, memory, &self.config, self.capacity);
        if memory.lost() {
            // The guest may never have asked for this. It stays recorded.
            return self.slots.end(place);
        }
        let kind = match parsed {
            Parsed::Read { offset, length } => {
                self.statistics.reads += 1;
                self.statistics.read_bytes += length;
                slot.read_bytes = length;
                self.held_slots += usize::from(resumed);
                let taken = if resumed { &mut self.held } else { requests };
                for (part, at, length) in pieces(length, self.config.transfer_max) {
                    let kind = RequestKind::Read { offset: offset + at, length };
                    taken.push(Request { tag: self.slots.issue(place, part), kind, resumed });
                }
                return;
            }
            Parsed::Write { offset, length } => {
                self.statistics.writes += 1;
                self.statistics.write_bytes += length;
                self.slots.hold_write(place, length);
                for (part, at, length) in pieces(length, self.config.transfer_max) {
                    let mut data = self.buffers.take(length as usize);
                    let chain = &self.slots.get(place).chain;
                    // It was found reachable, and memory changes only between turns.
                    let copied = chain.read(memory, blk::HEADER + at, &mut data);
                    assert!(copied.is_ok(), "a reachable chain is readable");
                    if memory.lost() {
                        // Zeros that the guest did not write. Parts before them are its own.
                        return self.slots.end_unless_issued(place);
                    }
                    let kind = RequestKind::Write { offset: offset + at, data };
                    requests.push(Request { tag: self.slots.issue(place, part), kind, resumed });
                }
                return;
            }
            Parsed::Answered(status, written) => {
                self.slots.get(place).failure = (status != Status::Good).then_some(status);
                return self.publish(frontend, place, written);
            }
            Parsed::Flush => {
                self.statistics.flushes += 1;
                RequestKind::Flush
            }
            Parsed::Discard(ranges) => {
                self.statistics.discards += 1;
                RequestKind::Discard { ranges }
            }
            Parsed::WriteZeroes(ranges) => {
                self.statistics.discards += 1;
                RequestKind::WriteZeroes { ranges }
            }
        };
        requests.push(Request { tag: self.slots.issue(place, 0), kind, resumed });
    }

    /// Copies a piece of a read's data to the guest: for engines that get it piece by piece. `at`
    /// is the piece's first byte within the request. [`Outcome::Done`] ends the read.
    ///
    /// # Panics
    /// When the piece does not lie in the request, or the request was answered.
    pub fn fill(&mut self, tag: Tag, at: u32, bytes: &[u8]) {
        let Found::Live(slot) = self.slots.find(tag) else { return };
        let frontend = self.frontend.as_ref().expect("a live request has its connection");
        let first = u64::from(tag.part()) * u64::from(self.config.transfer_max);
        let part = (slot.read_bytes - first).min(self.config.transfer_max.into());
        let end = u64::from(at) + bytes.len() as u64;
        assert!(end <= part, "{end} bytes for a read of {part}");
        let place = first + u64::from(at);
        if slot.chain.write(&frontend.memory, place, bytes).is_err() {
            // Its memory was taken away while it was in flight.
            slot.failure = Some(Status::Failed);
        }
    }

    /// Answers a request. When it was the last part, the guest finds the request done; it is woken
    /// by [`flush_notifications`](Disk::flush_notifications). Answers for connections that are gone
    /// are taken and forgotten.
    ///
    /// # Panics
    /// When the request was answered before, or the data of a read has another length.
    pub fn complete(&mut self, tag: Tag, outcome: Outcome<'_>) {
        if let Outcome::Read(pieces) = outcome {
            let mut at = 0;
            for piece in pieces {
                self.fill(tag, at, piece);
                at += piece.len() as u32;
            }
        }
        let Found::Live(slot) = self.slots.find(tag) else { return self.slots.drop_stale(tag) };
        let failure = match outcome {
            Outcome::Done | Outcome::Read(_) => None,
            Outcome::Failed => Some(Status::Failed),
            Outcome::Unsupported => Some(Status::Unsupported),
        };
        if let Outcome::Read(pieces) = outcome {
            let given: u64 = pieces.iter().map(|piece| piece.len() as u64).sum();
            let first = u64::from(tag.part()) * u64::from(self.config.transfer_max);
            let part = (slot.read_bytes - first).min(self.config.transfer_max.into());
            assert_eq!(given, part, "a read is answered with all of its data");
        }
        slot.failure = slot.failure.or(failure);
        slot.parts_left = slot.parts_left.checked_sub(1).expect("a part is answered once");
        if slot.parts_left > 0 {
            return;
        }
        let written = if slot.failure.is_none() { slot.read_bytes } else { 0 };
        let mut frontend = self.frontend.take().expect("a live request has its connection");
        // More than 4 GiB in one request does not fit the used ring's field; drivers do not ask.
        self.publish(&mut frontend, tag.slot(), u32::try_from(written).unwrap_or(u32::MAX - 1));
        self.frontend = Some(frontend);
    }

    /// Writes the status and gives the request back to the guest.
    fn publish(&mut self, frontend: &mut Frontend, place: u16, written: u32) {
        let slot = self.slots.get(place);
        let status = slot.failure.unwrap_or(Status::Good);
        self.statistics.failed += u64::from(status != Status::Good);
        let (index, head) = (slot.ring, slot.head);
        let ring = &mut frontend.rings[usize::from(index)];
        let faulty = match slot.chain.write_status(&frontend.memory, status as u8) {
            Ok(()) => ring.publish(&frontend.memory, head, written + 1).err(),
            Err(_) => {
                ring.withhold(head);
                Some(RingFault::NoStatus)
            }
        };
        self.unsignalled = true;
        self.slots.end(place);
        match faulty {
            None | Some(RingFault::Lost) => {}
            Some(fault) => self.fault(ring, index, fault),
        }
    }

    /// Wakes the guest where it wants to know of what was published since the last call: once a
    /// batch of answers.
    pub fn flush_notifications(&mut self) {
        if !std::mem::take(&mut self.unsignalled) {
            return;
        }
        let Some(frontend) = &mut self.frontend else { return };
        for ring in &mut frontend.rings {
            self.statistics.notifications += u64::from(ring.signal(&frontend.memory));
        }
    }

    /// Stops taking requests; what is with the engine may be answered. A front end that wants to
    /// stop a ring with requests yet to be resumed waits until [`resume`](Disk::resume).
    pub fn pause(&mut self) {
        self.paused = true;
    }

    /// Takes requests again.
    pub fn resume(&mut self) {
        self.paused = false;
    }

    /// Whether the last running ring is drained and its stop waits for
    /// [`released`](Disk::released); see [`DiskConfig::confirm_release`].
    pub fn wants_release(&self) -> bool {
        self.frontend.as_ref().is_some_and(|frontend| frontend.wants_release())
    }

    /// The owner let go of the vdisk: the last ring may stop. Forgotten when a ring starts.
    pub fn released(&mut self) {
        if let Some(frontend) = &mut self.frontend {
            frontend.released = true;
        }
    }

    /// Requests that the engine has not answered, those of earlier connections included.
    pub fn in_flight(&self) -> usize {
        self.slots.in_use()
    }

    /// What the device is doing.
    pub fn state(&self) -> DiskState {
        match &self.frontend {
            None => DiskState::Listening,
            Some(frontend) if frontend.rings.iter().any(Ring::started) => DiskState::Running,
            Some(_) => DiskState::Connected,
        }
    }

    /// Counts since the device was made.
    pub fn statistics(&self) -> Statistics {
        self.statistics
    }

    /// The configuration; its capacity is the one the device was made with.
    pub fn config(&self) -> &DiskConfig {
        &self.config
    }

    /// Bytes of the vdisk now.
    pub fn capacity(&self) -> u64 {
        self.capacity
    }

    /// Changes the capacity, and tells the front end. Requests in flight keep the old one.
    pub fn resize(&mut self, capacity: u64) -> Result<(), Error> {
        DiskConfig { capacity, ..self.config.clone() }.check()?;
        self.capacity = capacity;
        let requests = self.frontend.as_ref().and_then(|frontend| frontend.requests());
        if let Some(requests) = requests
            && let Err(error) = send_hint(requests, BackendReq::CONFIG_CHANGE_MSG.into())
        {
            tracing::warn!(vdisk = %self.config.name, %error, "front end not told of the new size");
        }
        Ok(())
    }

    /// Grows whenever [`watched`](Disk::watched) may have changed.
    pub fn watch_version(&self) -> u64 {
        self.watch_version
    }

    /// What to watch for readability while asleep, level-triggered.
    pub fn watched(&self) -> Vec<RawFd> {
        let Some(frontend) = &self.frontend else { return vec![self.listening.as_raw_fd()] };
        let kicks = frontend.rings.iter().filter_map(Ring::kick);
        std::iter::once(frontend.channel.as_raw_fd()).chain(kicks).collect()
    }

    /// Asks for wake-ups by what [`watched`](Disk::watched) names. False when something can be done
    /// already, so the core must not sleep. [`disarm`](Disk::disarm) ends it, whatever it said.
    pub fn arm(&mut self) -> bool {
        self.socket_turns = 0;
        self.flush_notifications();
        let Some(frontend) = &mut self.frontend else { return true };
        for ring in &mut frontend.rings {
            ring.drain_kick();
        }
        if frontend.can_go_on() || frontend.memory.lost() {
            return false;
        }
        let blocked = self.slots.write_bytes() >= self.config.write_bytes_max;
        if self.paused || self.slots.abandoned() > 0 || blocked {
            // Only answers of the engine, or its resume, make anything possible.
            return true;
        }
        if !frontend.takes_new() {
            let waits = !frontend.has_next_unfinished();
            let frontend = self.frontend.as_ref().expect("it was there");
            return waits && !self.may_release_held(frontend);
        }
        let Frontend { rings, memory, .. } = &mut **frontend;
        rings.iter_mut().filter(|ring| ring.ready()).all(|ring| ring.arm(memory)) && !memory.lost()
    }

    /// Tells the guest that it need not kick; the next turn looks at the sockets.
    pub fn disarm(&mut self) {
        self.socket_turns = 0;
        let Some(frontend) = &mut self.frontend else { return };
        for ring in frontend.rings.iter_mut().filter(|ring| ring.started()) {
            ring.quiet(&frontend.memory);
        }
    }
}

/// The parts of a transfer of `length` bytes: number, first byte, bytes.
fn pieces(length: u64, most: u32) -> impl Iterator<Item = (u32, u64, u32)> {
    let count = length.div_ceil(most.into());
    (0..count).map(move |part| {
        let at = part * u64::from(most);
        (part as u32, at, (length - at).min(most.into()) as u32)
    })
}
