//! A core's share of a device: its zones, and what is being written to them.
//!
//! ```text
//! zone:  free -> prepared -> open -> closing -> closed -> evicting -> free
//!        (empty header durable)  (all places given out)  (header says what it holds)
//! ```
//! Invariants: a place is written once a filling; a place that is named by the table is not written; the
//! parts of a zone that is prepared again are out of the table before. A zone of which half the places are retired, or whose
//! header cannot be written, is out of use.

use crate::port::Port;
use bytes::Bytes;
use cleave_format::flash::{FlashSuperblock, PlaceState, StoredPart, ZoneHeader};
use cleave_format::ids::StripeId;
use cleave_runtime::sync::{Promise, Signal};
use cleave_runtime::time::Moment;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

/// Parts that may wait to be written, of all devices of a core together with those below.
pub(crate) const QUEUE_MAX: usize = 192;
/// A part that cannot be written goes to so many places in turn.
pub(crate) const ATTEMPTS_MAX: u8 = 3;

/// Which zones of a device belong to this core: those whose number leaves `core` when divided by `cores`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// This core.
    pub core: u32,
    /// Cores that have a share.
    pub cores: u32,
}

impl Share {
    /// The whole device.
    pub const WHOLE: Share = Share { core: 0, cores: 1 };

    /// Zones of the share.
    pub(crate) fn zones(self, all: u32) -> u32 {
        all.saturating_sub(self.core).div_ceil(self.cores)
    }

    /// The number on the device of a zone of the share.
    pub(crate) fn on_device(self, zone: u32) -> u32 {
        self.core + zone * self.cores
    }
}

/// Where a zone is in its circle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ZoneState {
    /// Not looked at yet.
    Unknown,
    Free,
    /// Prepared, open or closing: see [`Building`].
    Building,
    Closed,
    Evicting,
    /// A place of it is being retired: it is not evicted meanwhile.
    Mending,
    /// Out of use.
    Bad,
}

/// What is remembered of every zone: 16 bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Zone {
    /// Number of its filling.
    pub sequence: u64,
    /// Of its newest header.
    pub generation: u32,
    /// Parts that the table names.
    pub live: u8,
    pub state: ZoneState,
    /// Its header promises less than it says: power may have failed after it.
    pub tentative: bool,
}

const _: () = assert!(size_of::<Zone>() == 16);

impl Zone {
    pub const UNKNOWN: Zone =
        Zone { sequence: 0, generation: 0, live: 0, state: ZoneState::Unknown, tentative: false };
}

/// A zone that is being filled.
pub(crate) struct Building {
    pub places: Vec<PlaceState>,
    /// Places that have their part, durable or not.
    pub written: u64,
    /// Places whose part is durable.
    pub durable: u64,
    /// The next place to give out.
    pub next: u16,
    /// Writes on their way.
    pub outstanding: usize,
    /// There are parts that no header names.
    pub unsaved: bool,
}

impl Building {
    /// Everything was given out, and nothing is on its way.
    pub fn is_full(&self) -> bool {
        usize::from(self.next) == self.places.len() && self.outstanding == 0
    }

    /// What a header may say now.
    pub fn described(&self) -> Vec<PlaceState> {
        let describe = |(index, place): (usize, &PlaceState)| match place {
            PlaceState::Present(part) if self.durable >> index & 1 == 0 => {
                PlaceState::Tentative(*part)
            }
            other => *other,
        };
        self.places.iter().enumerate().map(describe).collect()
    }

    /// The part that lies in a place.
    pub fn part(&self, place: u16) -> Option<&StoredPart> {
        self.places[usize::from(place)].part().filter(|_| self.written >> place & 1 == 1)
    }
}

/// A part on its way to flash.
pub(crate) struct Put {
    pub stripe: StripeId,
    pub part: u8,
    /// 128 KiB.
    pub bytes: Bytes,
    pub heat: u8,
    /// Where it is moved from.
    pub from: Option<u32>,
    pub attempts: u8,
    /// Only kept: dropped when the part is written, or will not be.
    pub _latch: Option<Rc<Promise<()>>>,
}

/// How far a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Its headers are being read.
    Scanning,
    /// It is in use.
    Ready,
    /// It is in use no more.
    Retired,
}

/// See the module's page.
pub(crate) struct Device {
    pub name: Arc<str>,
    pub port: Rc<Port>,
    pub superblock: FlashSuperblock,
    pub share: Share,
    /// The number of its first place among those of the core.
    pub base: u32,
    pub phase: Phase,
    pub zones: Vec<Zone>,
    pub free: VecDeque<u32>,
    /// Oldest filling first; entries of zones that are not closed any more are passed over.
    pub closed: VecDeque<u32>,
    /// Closed zones without live parts.
    pub dead: VecDeque<u32>,
    pub building: BTreeMap<u32, Building>,
    pub prepared: VecDeque<u32>,
    pub open: Option<u32>,
    /// Of the next filling.
    pub sequence: u64,
    pub queue: VecDeque<Put>,
    /// What eviction moves goes before everything else.
    pub moves: VecDeque<Put>,
    /// Retired places, a bit each, by zone.
    pub retired: BTreeMap<u32, u64>,
    pub retired_places: u64,
    /// Places whose content failed its check, with what should be there.
    pub suspects: VecDeque<(u32, StripeId, u8)>,
    /// Errors, less one for every minute.
    pub score: u32,
    pub errors: u64,
    /// Guests' reads that were answered otherwise because they took too long.
    pub late: usize,
    /// There was no space behind the file: nothing is written before.
    pub refuse_until: Moment,
    pub saved_at: Moment,
    /// Everything is to be written, and a header for it.
    pub finishing: bool,
    /// The keeper is at work: what it says of zones may not be on the device yet.
    pub keeping: bool,
    /// A header was written that no flush has covered.
    pub unflushed: bool,
    pub bytes_written: u64,
    /// Notified when any of this changes.
    pub changed: Signal,
}

impl Device {
    /// A share whose headers are not read yet.
    pub fn new(
        name: Arc<str>,
        port: Rc<Port>,
        superblock: FlashSuperblock,
        share: Share,
        base: u32,
    ) -> Device {
        let zones = share.zones(superblock.zones) as usize;
        Device {
            name,
            port,
            superblock,
            share,
            base,
            phase: Phase::Scanning,
            zones: vec![Zone::UNKNOWN; zones],
            free: VecDeque::new(),
            closed: VecDeque::new(),
            dead: VecDeque::new(),
            building: BTreeMap::new(),
            prepared: VecDeque::new(),
            open: None,
            sequence: 1,
            queue: VecDeque::new(),
            moves: VecDeque::new(),
            retired: BTreeMap::new(),
            retired_places: 0,
            suspects: VecDeque::new(),
            score: 0,
            errors: 0,
            late: 0,
            refuse_until: Moment(0),
            saved_at: Moment(0),
            finishing: false,
            keeping: false,
            unflushed: false,
            bytes_written: 0,
            changed: Signal::new(),
        }
    }

    /// Places of a zone.
    pub fn places(&self) -> u16 {
        self.superblock.places
    }

    /// Numbers that its places take among those of the core.
    pub fn numbers(&self) -> std::ops::Range<u32> {
        self.base..self.base + self.zones.len() as u32 * u32::from(self.places())
    }

    /// The number of a place.
    pub fn number(&self, zone: u32, place: u16) -> u32 {
        self.base + zone * u32::from(self.places()) + u32::from(place)
    }

    /// Zone and place of a number.
    pub fn place(&self, number: u32) -> (u32, u16) {
        let local = number - self.base;
        let places = u32::from(self.places());
        (local / places, (local % places) as u16)
    }

    /// First byte of a zone on the device.
    pub fn zone_offset(&self, zone: u32) -> u64 {
        self.superblock.zone_offset(self.share.on_device(zone))
    }

    /// First byte of a place on the device.
    pub fn place_offset(&self, zone: u32, place: u16) -> u64 {
        self.superblock.place_offset(self.share.on_device(zone), place)
    }

    /// Zones that can be filled at once.
    pub fn ready_zones(&self) -> usize {
        self.prepared.len() + self.free.len()
    }

    /// Whether parts are taken for it.
    pub fn takes(&self, parts: usize, now: Moment) -> bool {
        self.phase == Phase::Ready
            && !self.finishing
            && self.late == 0
            && now >= self.refuse_until
            && self.queue.len() + parts <= QUEUE_MAX
    }

    /// Whether a place is retired.
    pub fn is_retired(&self, zone: u32, place: u16) -> bool {
        self.retired.get(&zone).is_some_and(|places| places >> place & 1 == 1)
    }

    /// Retires a place; false when it was before.
    pub fn retire_place(&mut self, zone: u32, place: u16) -> bool {
        let places = self.retired.entry(zone).or_default();
        let new = *places >> place & 1 == 0;
        *places |= 1 << place;
        self.retired_places += u64::from(new);
        new
    }

    /// The header of the zone's next generation.
    pub fn next_header(&mut self, zone: u32, places: Vec<PlaceState>) -> ZoneHeader {
        let on_device = self.share.on_device(zone);
        let state = &mut self.zones[zone as usize];
        // After 2^32 rewrites of one zone its flash is long worn out; a header that loses against
        // an older one costs the zone's content.
        state.generation = state.generation.wrapping_add(1);
        ZoneHeader {
            device: self.superblock.device,
            zone: on_device,
            sequence: state.sequence,
            generation: state.generation,
            places,
        }
    }

    /// What the header of a zone without parts says.
    pub fn empty_places(&self, zone: u32) -> Vec<PlaceState> {
        let state = |place| match self.is_retired(zone, place) {
            true => PlaceState::Retired,
            false => PlaceState::Empty,
        };
        (0..self.places()).map(state).collect()
    }

    /// Begins to evict a zone, if there is one to evict: one without live parts, or of the oldest
    /// fillings the one with the fewest.
    pub fn take_victim(&mut self) -> Option<u32> {
        const WINDOW: usize = 8;
        let victim = loop {
            match self.dead.pop_front() {
                Some(zone) => {
                    let found = &self.zones[zone as usize];
                    if found.state == ZoneState::Closed && found.live == 0 {
                        break Some(zone);
                    }
                }
                None => break None,
            }
        };
        let victim = victim.or_else(|| {
            while let Some(first) = self.closed.front() {
                match self.zones[*first as usize].state {
                    ZoneState::Closed | ZoneState::Mending => break,
                    _ => drop(self.closed.pop_front()),
                }
            }
            let zones = &self.zones;
            let oldest = self.closed.iter().take(WINDOW);
            let closed = oldest.filter(|zone| zones[**zone as usize].state == ZoneState::Closed);
            closed.copied().min_by_key(|zone| zones[*zone as usize].live)
        })?;
        // Its place in the queue is passed over later; when it is closed again it gets a new one.
        if let Some(index) = self.closed.iter().take(WINDOW).position(|zone| *zone == victim) {
            self.closed.remove(index);
        }
        self.zones[victim as usize].state = ZoneState::Evicting;
        Some(victim)
    }

    /// One live part less.
    pub fn part_gone(&mut self, number: u32) {
        let (zone, _) = self.place(number);
        let state = &mut self.zones[zone as usize];
        state.live -= 1;
        if state.live == 0 && state.state == ZoneState::Closed {
            self.dead.push_back(zone);
            self.changed.notify();
        }
    }

    /// One live part more.
    pub fn part_come(&mut self, number: u32) {
        let (zone, _) = self.place(number);
        self.zones[zone as usize].live += 1;
    }

    /// A zone without parts is free, or out of use when half of it is retired.
    pub fn set_free(&mut self, zone: u32) {
        let bad = self.retired.get(&zone).map_or(0, |places| places.count_ones());
        let out_of_use = bad * 2 > u32::from(self.places());
        let state = &mut self.zones[zone as usize];
        state.tentative = false;
        if out_of_use {
            state.state = ZoneState::Bad;
        } else {
            state.state = ZoneState::Free;
            self.free.push_back(zone);
        }
        self.changed.notify();
    }
}
