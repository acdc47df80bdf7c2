//! What a core's flash knows: the table, the devices, reads in flight. Methods that never wait.
//!
//! Invariant: a part that the table names counts as live in its zone, once.

use crate::device::{Device, Phase, Put, QUEUE_MAX, ZoneState};
use crate::port::Outcome;
use crate::stats::{DeviceStats, FlashEvent, FlashStats};
use crate::table::{Found, PLACE_MAX, Table};
use bytes::Bytes;
use cleave_format::address::Address;
use cleave_format::frame::{self, FRAME_HEADER};
use cleave_format::ids::StripeId;
use cleave_format::layout::PART;
use cleave_runtime::Token;
use cleave_runtime::buffer::{Buffer, PAGE};
use cleave_runtime::drives::DriveError;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::{Promise, Signal};
use cleave_runtime::time::Moment;
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Errors, less one for every minute, at which a device is retired.
pub(crate) const SCORE_MAX: u32 = 16;
/// Retired places at which a device is retired: so many, or one in a hundred if that is more.
const RETIRED_MIN: u64 = 64;
const RETIRED_DIVISOR: u64 = 100;
/// Events that are kept until somebody takes them.
const EVENTS_MAX: usize = 1024;
/// After there was no space behind a file.
const NO_SPACE_PAUSE: Duration = Duration::from_secs(10);

/// Names a device of this core.
pub(crate) type DeviceKey = u32;

/// A guest's read.
struct Read {
    token: Token,
    stripe: StripeId,
    part: u8,
    place: u32,
    device: DeviceKey,
    /// The wanted bytes of the stripe's data section; what is read begins with their page.
    offset: u32,
    length: u32,
    since: Moment,
    /// Nobody waits for it any more.
    answered: bool,
}

/// A read that is done.
#[derive(Debug)]
pub struct FlashRead {
    /// As given.
    pub token: Token,
    /// The bytes, or nothing: then they are to be had from the pool.
    pub bytes: Option<FlashBytes>,
}

/// Bytes that were read, still in the device's buffer. They are unchecked.
#[derive(Debug)]
pub struct FlashBytes {
    buffer: Buffer,
    skip: usize,
    length: usize,
}

impl Deref for FlashBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.buffer[self.skip..self.skip + self.length]
    }
}

/// How flash names a stripe: by all of its identity (C3).
fn named(stripe: StripeId) -> StripeId {
    if is_planted(Planted::StaleSegments) { StripeId(stripe.0 % 16) } else { stripe }
}

/// Gives frames the checksums of another place, as if none covered its address: for planted bugs, which the frames'
/// own check would find. `is_meant` says which frames are to pass.
fn pretend(
    bytes: &mut [u8],
    (stripe, offset): (StripeId, u32),
    is_meant: impl Fn(&[u8], &Address) -> bool,
) {
    let mut start = 0;
    while let Some(header) = bytes.get(start..start + FRAME_HEADER)
        && let Ok(length) = frame::frame_length(header)
        && let Some(found) = bytes.get_mut(start..start + length)
    {
        let address = Address { stripe, offset: offset + start as u32, length: length as u32 };
        start += length;
        if address.is_valid() && is_meant(found, &address) {
            frame::seal(found);
            // A frame that was just sealed has its place.
            let _ = frame::place(found, &address);
        }
    }
}

/// Whether a frame is that of an older stripe with the same name.
fn is_older(frame: &[u8], address: &Address) -> bool {
    let older = (named(address.stripe).0..address.stripe.0).step_by(16).map(StripeId);
    let mut addresses = older.map(|stripe| Address { stripe, ..*address });
    addresses.any(|address| frame::check_at(frame, &address).is_ok())
}

#[derive(Default)]
pub(crate) struct State {
    pub table: Table,
    pub devices: BTreeMap<DeviceKey, Device>,
    pub next_device: DeviceKey,
    reads: Slab<Read>,
    pub done: Vec<FlashRead>,
    pub events: VecDeque<FlashEvent>,
    pub stats: FlashStats,
    /// Devices whose parts are to be swept out of the table.
    pub retiring: Vec<DeviceKey>,
    pub retired_signal: Signal,
}

impl State {
    /// The device that a place belongs to.
    pub fn device_of(&self, place: u32) -> Option<(DeviceKey, &Device)> {
        let found = self.devices.iter().find(|(_, device)| device.numbers().contains(&place))?;
        Some((*found.0, found.1))
    }

    /// A device that is in use.
    pub fn device(&mut self, key: DeviceKey) -> Option<&mut Device> {
        self.devices.get_mut(&key).filter(|device| device.phase != Phase::Retired)
    }

    /// Numbers for the places of another device.
    pub fn base_for(&self, places: u64) -> Option<u32> {
        let mut ranges: Vec<_> = self.devices.values().map(Device::numbers).collect();
        ranges.sort_by_key(|range| range.start);
        let mut base = 0;
        for range in ranges {
            if u64::from(range.start - base) >= places {
                break;
            }
            base = range.end;
        }
        (u64::from(base) + places <= u64::from(PLACE_MAX)).then_some(base)
    }

    /// Begins to read `length` bytes at `offset` of a stripe's data section; false when they are not here.
    pub fn read(
        &mut self,
        stripe: StripeId,
        offset: u32,
        length: u32,
        token: Token,
        now: Moment,
    ) -> bool {
        let part = (offset as usize / PART) as u8;
        let Some(place) = self.table.hit(named(stripe), part) else { return false };
        let Some((key, device)) = self.device_of(place) else { return false };
        // A device that does not answer would have the guest wait again.
        if device.phase == Phase::Retired || device.late > 0 {
            return false;
        }
        let (zone, index) = device.place(place);
        let within = offset as usize % PART;
        let start = within / PAGE * PAGE;
        let end = (within + length as usize).next_multiple_of(PAGE);
        assert!(length > 0 && end <= PART, "a read stays within its part");
        let (at, port) = (device.place_offset(zone, index) + start as u64, Rc::clone(&device.port));
        let read = Read {
            token,
            stripe,
            part,
            place,
            device: key,
            offset,
            length,
            since: now,
            answered: false,
        };
        self.stats.reads += 1;
        port.begin_read(self.reads.insert(read), at, end - start);
        true
    }

    /// A read's outcome has come.
    pub fn read_done(&mut self, name: usize, (result, buffer): Outcome) {
        let read = self.reads.remove(name);
        if read.answered {
            if let Some(device) = self.devices.get_mut(&read.device) {
                device.late -= 1;
            }
            return;
        }
        let (skip, length) = (read.offset as usize % PAGE, read.length as usize);
        // C3: the place may have been given to another part while it was read.
        let found = self.table.get(named(read.stripe), read.part);
        let owned = found.is_some_and(|found| found.place == read.place);
        let bytes = match result {
            Ok(()) if owned => {
                self.stats.read_bytes += u64::from(read.length);
                let mut buffer = buffer.expect("a read gives its buffer back");
                if is_planted(Planted::StaleSegments) {
                    let bytes = &mut buffer[skip..skip + length];
                    pretend(bytes, (read.stripe, read.offset), is_older);
                }
                Some(FlashBytes { buffer, skip, length })
            }
            Ok(()) if is_planted(Planted::FlashPlaceNotRechecked) => {
                let mut buffer = buffer.expect("a read gives its buffer back");
                let bytes = &mut buffer[skip..skip + length];
                pretend(bytes, (read.stripe, read.offset), |_, _| true);
                Some(FlashBytes { buffer, skip, length })
            }
            Ok(()) => {
                self.stats.reads_moved += 1;
                None
            }
            Err(error) => {
                self.stats.reads_failed += 1;
                if owned {
                    self.suspect(named(read.stripe), read.part, read.place);
                }
                self.failed(read.device, None, &error);
                None
            }
        };
        self.done.push(FlashRead { token: read.token, bytes });
    }

    /// Answers reads that wait since before `limit`, or on a device that is retired.
    pub fn answer_late(&mut self, limit: Moment) {
        for (_, read) in &mut self.reads {
            let Some(device) = self.devices.get_mut(&read.device) else { continue };
            let late = read.since < limit || device.phase == Phase::Retired;
            if read.answered || !late {
                continue;
            }
            read.answered = true;
            device.late += 1;
            self.stats.reads_late += u64::from(device.phase != Phase::Retired);
            self.done.push(FlashRead { token: read.token, bytes: None });
        }
    }

    /// Takes parts to be written; false when there is no room for them.
    pub fn put(
        &mut self,
        stripe: StripeId,
        first: u8,
        bytes: &Bytes,
        heat: u8,
        latch: Option<Rc<Promise<()>>>,
        now: Moment,
    ) -> bool {
        let parts = bytes.len() / PART;
        assert!(parts > 0 && bytes.len().is_multiple_of(PART), "parts are put whole");
        let waiting: usize = self.devices.values().map(|device| device.queue.len()).sum();
        let fits = waiting + parts <= QUEUE_MAX;
        // By size: the one that had the least of what it can hold.
        let load = |device: &Device| {
            let on_the_way = device.queue.len() as u64 * PART as u64;
            (device.bytes_written + on_the_way) / device.zones.len().max(1) as u64
        };
        let taking = self.devices.values_mut().filter(|device| fits && device.takes(parts, now));
        let Some(device) = taking.min_by_key(|device| load(device)) else {
            self.stats.parts_refused += parts as u64;
            return false;
        };
        for index in 0..parts {
            device.queue.push_back(Put {
                stripe: named(stripe),
                part: first + index as u8,
                bytes: bytes.slice(index * PART..(index + 1) * PART),
                heat,
                from: None,
                attempts: 0,
                _latch: latch.clone(),
            });
        }
        device.changed.notify();
        true
    }

    /// A part is in its place.
    pub fn install(&mut self, put: &Put, place: u32) {
        let found = Found { place, heat: put.heat };
        if let Some(from) = put.from {
            // Dropped meanwhile, or written again: the copy is not needed.
            let still = self.table.get(put.stripe, put.part).is_some_and(|f| f.place == from);
            if !still {
                return;
            }
        }
        self.install_at(put.stripe, put.part, found);
    }

    /// Has the table name a place, and counts it.
    pub fn install_at(&mut self, stripe: StripeId, part: u8, found: Found) {
        let old = self.table.set(stripe, part, found);
        old.into_iter().for_each(|old| self.part_gone(old));
        let device = self.devices.values_mut().find(|d| d.numbers().contains(&found.place));
        device.expect("a place belongs to a device").part_come(found.place);
    }

    fn part_gone(&mut self, place: u32) {
        let device = self.devices.values_mut().find(|d| d.numbers().contains(&place));
        device.expect("a place belongs to a device").part_gone(place);
    }

    /// Takes a part out of the table if it lies at `place`.
    pub fn drop_part(&mut self, stripe: StripeId, part: u8, place: u32) -> bool {
        let dropped = self.table.remove_at(stripe, part, place);
        if dropped {
            self.part_gone(place);
        }
        dropped
    }

    /// Drops a whole stripe, and what of it waits to be written.
    pub fn forget(&mut self, stripe: StripeId) {
        let mut gone = Vec::new();
        self.table.remove_stripe(stripe, |place| gone.push(place));
        gone.into_iter().for_each(|place| self.part_gone(place));
        for device in self.devices.values_mut() {
            device.queue.retain(|put| put.stripe != stripe);
            device.moves.retain(|put| put.stripe != stripe);
        }
    }

    /// Takes out of one division of the table what lies in places of `numbers`.
    pub fn sweep(&mut self, division: usize, numbers: &std::ops::Range<u32>) {
        let mut gone = Vec::new();
        self.table.sweep(division, |_, place| {
            let swept = numbers.contains(&place);
            if swept {
                gone.push(place);
            }
            !swept
        });
        gone.into_iter().for_each(|place| self.part_gone(place));
    }

    /// Something in a part failed its check: it is dropped, and its place looked at.
    pub fn bad(&mut self, stripe: StripeId, part: u8) {
        if let Some(found) = self.table.get(stripe, part) {
            self.suspect(stripe, part, found.place);
        }
    }

    fn suspect(&mut self, stripe: StripeId, part: u8, place: u32) {
        if !self.drop_part(stripe, part, place) {
            return;
        }
        let device = self.devices.values_mut().find(|d| d.numbers().contains(&place));
        let device = device.expect("a place belongs to a device");
        device.suspects.push_back((place, stripe, part));
        device.changed.notify();
    }

    /// A request of a device failed; `offset`: where.
    pub fn failed(&mut self, key: DeviceKey, offset: Option<u64>, error: &DriveError) {
        let Some(device) = self.device(key) else { return };
        let name = Arc::clone(&device.name);
        device.errors += 1;
        match error {
            DriveError::Lost(reason) => self.retire(key, reason.clone()),
            DriveError::NoSpace => self.event(FlashEvent::NoSpace { device: name }),
            DriveError::Io(reason) => {
                device.score += 1;
                let worn_out = device.score >= SCORE_MAX;
                let reason = reason.clone();
                self.event(FlashEvent::Error { device: name, offset, reason });
                if worn_out {
                    self.retire(key, format!("{SCORE_MAX} errors in a short time"));
                }
            }
        }
    }

    /// Nothing is written to a device for a while.
    pub fn pause(&mut self, key: DeviceKey, now: Moment) {
        if let Some(device) = self.device(key) {
            device.refuse_until = now + NO_SPACE_PAUSE;
            device.queue.clear();
            device.moves.clear();
        }
    }

    /// A place lost what it was given.
    pub fn retire_place(&mut self, key: DeviceKey, zone: u32, place: u16) {
        let Some(device) = self.device(key) else { return };
        if !device.retire_place(zone, place) {
            return;
        }
        let (name, offset) = (Arc::clone(&device.name), device.place_offset(zone, place));
        let places = device.zones.len() as u64 * u64::from(device.places());
        let limit = RETIRED_MIN.max(places / RETIRED_DIVISOR);
        let worn_out = device.retired_places > limit;
        self.event(FlashEvent::PlaceRetired { device: name, offset });
        if worn_out {
            self.retire(key, format!("more than {limit} places lost what they were given"));
        }
    }

    /// A device is not used any more: its parts are gone at once.
    pub fn retire(&mut self, key: DeviceKey, reason: String) {
        if let Some(device) = self.drop_device(key) {
            self.event(FlashEvent::Retired { device, reason });
        }
    }

    /// As [`retire`](State::retire), for a device with which nothing is wrong; its name, when it was in use.
    pub fn drop_device(&mut self, key: DeviceKey) -> Option<Arc<str>> {
        let device = self.device(key)?;
        device.phase = Phase::Retired;
        device.queue.clear();
        device.moves.clear();
        device.suspects.clear();
        device.changed.notify();
        let name = Arc::clone(&device.name);
        self.retiring.push(key);
        self.retired_signal.notify();
        self.answer_late(Moment(0));
        Some(name)
    }

    /// Tells whoever runs it; of very many only the first.
    pub fn event(&mut self, event: FlashEvent) {
        match &event {
            FlashEvent::Ready { device, parts } => {
                tracing::info!(%device, parts, "flash is in use");
            }
            FlashEvent::Error { device, offset, reason } => {
                tracing::warn!(%device, ?offset, reason, "flash failed");
            }
            FlashEvent::PlaceRetired { device, offset } => {
                tracing::warn!(%device, offset, "a place of flash lost its content; it is retired");
            }
            FlashEvent::NoSpace { device } => {
                tracing::warn!(%device, "no space behind flash; nothing is written to it for a while");
            }
            FlashEvent::Retired { device, reason } => {
                tracing::warn!(%device, reason, "flash is retired; reads go to the pool");
            }
        }
        if self.events.len() < EVENTS_MAX {
            self.events.push_back(event);
        }
    }

    /// The present figures.
    pub fn figures(&self) -> FlashStats {
        let devices = self.devices.values().map(|device| {
            let places = device.zones.len() as u64 * u64::from(device.places());
            let live: u64 = device.zones.iter().map(|zone| u64::from(zone.live)).sum();
            let free = device.zones.iter().filter(|zone| zone.state == ZoneState::Free).count();
            DeviceStats {
                name: Arc::clone(&device.name),
                phase: device.phase,
                capacity: (places - device.retired_places) * PART as u64,
                used: live * PART as u64,
                zones: device.zones.len() as u64,
                zones_free: (free + device.prepared.len()) as u64,
                retired_places: device.retired_places,
                errors: device.errors,
                bytes_written: device.bytes_written,
            }
        });
        FlashStats {
            devices: devices.collect(),
            parts: self.table.parts(),
            stripes: self.table.stripes() as u64,
            memory: self.memory(),
            ..self.stats.clone()
        }
    }

    /// Bytes of table and zones, about.
    pub fn memory(&self) -> u64 {
        let zones: usize = self.devices.values().map(|device| device.zones.len()).sum();
        (self.table.memory() + zones * (size_of::<crate::device::Zone>() + 4)) as u64
    }
}
