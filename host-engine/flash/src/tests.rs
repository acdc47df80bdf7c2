//! The flash of a core on a simulated device, against what was put into it.

mod devices;
mod eviction;
mod faults;
mod model;

use crate::device::{Device, ZoneState};
use crate::*;
use cleave_format::flash::PlaceState;
use cleave_format::layout::PART;
use cleave_runtime_sim::{Process, SimDrive, World};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::time::Duration;

pub(super) const CLUSTER: ClusterId = ClusterId([5; 16]);
pub(super) const SECOND: Duration = Duration::from_secs(1);
pub(super) const MIB: u64 = 1 << 20;

/// A process with flash on one device.
pub(super) struct Rig {
    pub world: World,
    pub drive: SimDrive,
    pub process: Process,
    pub flash: Flash,
    done: Rc<RefCell<Vec<FlashRead>>>,
    starts: u8,
}

impl Rig {
    /// A device of that many bytes, formatted and in use.
    pub fn new(seed: u64, bytes: u64) -> Rig {
        let world = World::new(seed);
        let drive = world.create_drive("flash", bytes);
        let process = world.start_process("host");
        let flash = Flash::new(process.executor());
        let mut rig = Rig { world, drive, process, flash, done: Rc::default(), starts: 0 };
        rig.begin().unwrap();
        rig.settle();
        rig
    }

    /// What the shell does at a start.
    pub fn begin(&mut self) -> Result<(), PrepareError> {
        self.starts += 1;
        self.done = Rc::default();
        self.flash = Flash::new(self.process.executor());
        self.add(&self.drive.clone(), "flash")
    }

    /// Prepares and adds a device.
    pub fn add(&self, drive: &SimDrive, name: &str) -> Result<(), PrepareError> {
        let (open, flash) = (self.process.open_drive(drive), self.flash.clone());
        let outcome = Rc::new(RefCell::new(None));
        let (told, device) = (Rc::clone(&outcome), FlashId([self.starts; 16]));
        let name = name.to_owned();
        self.process.executor().spawn(Priority::Foreground, async move {
            *told.borrow_mut() = Some(flash.open(&name, open, CLUSTER, device).await);
        });
        let (flash, done) = (self.flash.clone(), Rc::clone(&self.done));
        self.process.set_turn(move || flash.turn(&mut done.borrow_mut()));
        let there = Rc::clone(&outcome);
        assert!(self.world.run_until(move || there.borrow().is_some(), 10 * SECOND));
        match outcome.take().expect("it was there") {
            Ok(_) => {}
            Err(OpenError::Prepare(error)) => return Err(error),
            Err(OpenError::Add(error)) => panic!("{error}"),
        }
        Ok(())
    }

    /// The process dies; with `power` so does the device's cache. Then it starts again.
    pub fn restart(&mut self, power: bool) {
        self.process.kill();
        if power {
            self.drive.power_loss();
        }
        self.process = self.world.start_process("host");
        self.begin().unwrap();
        self.settle();
    }

    /// Until nothing is on its way, and headers say what there is.
    pub fn settle(&self) {
        self.world.run_for(4 * SECOND);
        self.check();
    }

    pub fn put(&self, stripe: u64, first: u8, parts: usize) -> bool {
        let mut bytes = Vec::with_capacity(parts * PART);
        (0..parts).for_each(|index| bytes.extend(content(stripe, first + index as u8)));
        let taken = self.flash.put(StripeId(stripe), first, &Bytes::from(bytes), 0);
        self.process.wake();
        taken.is_some()
    }

    /// Puts, and waits until it is there.
    pub fn store(&self, stripe: u64, first: u8, parts: usize) {
        assert!(self.put(stripe, first, parts));
        let all = || {
            let mut parts = first..first + parts as u8;
            parts.all(|part| self.flash.holds(StripeId(stripe), part))
        };
        assert!(self.world.run_until(all, 10 * SECOND), "stripe {stripe} is written");
    }

    /// Reads, without waiting.
    pub fn ask(&self, stripe: u64, offset: usize, length: usize, token: Token) -> bool {
        let asked = self.flash.read(StripeId(stripe), offset as u32, length as u32, token);
        self.process.wake();
        asked
    }

    pub fn take_done(&self) -> Vec<FlashRead> {
        std::mem::take(&mut self.done.borrow_mut())
    }

    /// What a read brings: nothing when it is not here or cannot be read, else whether it is right; what is not is
    /// reported as bad, as a core does.
    pub fn read(&self, stripe: u64, offset: usize, length: usize) -> Option<bool> {
        if !self.ask(stripe, offset, length, 7) {
            return None;
        }
        assert!(self.world.run_until(|| !self.done.borrow().is_empty(), 10 * SECOND));
        let done = self.take_done();
        assert_eq!((done.len(), done[0].token), (1, 7));
        let bytes = done[0].bytes.as_ref()?;
        let part = (offset / PART) as u8;
        let right = content(stripe, part)[offset % PART..][..length] == **bytes;
        if !right {
            self.flash.bad(StripeId(stripe), part);
        }
        Some(right)
    }

    /// Whether a whole part can be read, and is right.
    pub fn has(&self, stripe: u64, part: u8) -> bool {
        self.read(stripe, usize::from(part) * PART, PART) == Some(true)
    }

    pub fn events(&self) -> Vec<FlashEvent> {
        std::iter::from_fn(|| self.flash.next_event()).collect()
    }

    pub fn device<T>(&self, look: impl FnOnce(&Device) -> T) -> T {
        let state = self.flash.0.state.borrow();
        look(state.devices.values().next().expect("a device"))
    }

    /// First byte of a part's place on the device.
    pub fn offset_of(&self, stripe: u64, part: u8) -> u64 {
        let state = self.flash.0.state.borrow();
        let found = state.table.get(StripeId(stripe), part).expect("it is there");
        let (_, device) = state.device_of(found.place).expect("on a device");
        let (zone, place) = device.place(found.place);
        device.place_offset(zone, place)
    }

    /// The invariants of the state.
    pub fn check(&self) {
        let mut state = self.flash.0.state.borrow_mut();
        let mut places = BTreeSet::new();
        let mut repeated = false;
        for division in 0..table::DIVISIONS {
            state.table.sweep(division, |_, place| {
                repeated |= !places.insert(place);
                true
            });
        }
        assert!(!repeated, "a place has one part");
        assert_eq!(places.len() as u64, state.table.parts());
        for device in state.devices.values() {
            for (zone, known) in (0..).zip(&device.zones) {
                let numbers = device.number(zone, 0)..device.number(zone + 1, 0);
                let live: Vec<u32> = places.range(numbers).copied().collect();
                assert_eq!(live.len(), usize::from(known.live), "zone {zone}");
                let unused = matches!(known.state, ZoneState::Free | ZoneState::Bad);
                assert!(!unused || live.is_empty(), "zone {zone} is {:?}", known.state);
                let building = device.building.get(&zone);
                assert_eq!(building.is_some(), {
                    let listed = device.prepared.contains(&zone);
                    listed || building.is_some_and(|b| b.next > 0 || b.outstanding > 0)
                });
                for number in live {
                    let (_, place) = device.place(number);
                    assert!(building.is_none_or(|building| building.part(place).is_some()));
                    assert!(!device.is_retired(zone, place), "a retired place is not used");
                }
            }
        }
    }
}

/// What a part holds: every 16 bytes say where they belong.
pub(super) fn content(stripe: u64, part: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(PART);
    for unit in 0..(PART / 16) as u64 {
        let place = u64::from(part) << 32 | unit;
        bytes.extend((stripe + 1).to_le_bytes());
        bytes.extend((place ^ stripe.wrapping_mul(0x9e37_79b9_7f4a_7c15)).to_le_bytes());
    }
    bytes
}

#[test]
fn what_is_put_is_read_in_any_piece_of_it() {
    let rig = Rig::new(1, 64 * MIB);
    rig.store(9, 0, 8);
    rig.store(11, 62, 2);
    for (offset, length) in [(0, 16), (PART - 16, 16), (4096, 8192), (4080, 4128), (5 * PART, PART)]
    {
        assert_eq!(rig.read(9, offset, length), Some(true), "{length} at {offset}");
    }
    assert_eq!(rig.read(11, 63 * PART + 112, 4128), Some(true));
    assert_eq!(rig.read(11, 61 * PART, 16), None);
    assert_eq!(rig.read(10, 0, 16), None);
    rig.flash.forget(StripeId(9));
    assert_eq!(rig.read(9, 0, 16), None);
    let stats = rig.flash.stats();
    assert_eq!((stats.parts, stats.stripes, stats.parts_written), (2, 1, 10));
    rig.settle();
}

#[test]
fn many_reads_are_on_their_way_at_once_and_come_in_any_order() {
    let rig = Rig::new(2, 64 * MIB);
    rig.store(1, 0, 64);
    for token in 0..64 {
        assert!(rig.ask(1, token as usize * PART + 32, 64, token));
    }
    rig.world.run_for(SECOND);
    let done = rig.take_done();
    let tokens: Vec<u64> = done.iter().map(|read| read.token).collect();
    assert!(!tokens.is_sorted(), "the device reorders them");
    assert_eq!(tokens.iter().collect::<BTreeSet<_>>().len(), 64);
    for FlashRead { token, bytes } in done {
        assert_eq!(**bytes.as_ref().unwrap(), content(1, token as u8)[32..96]);
    }
}

#[test]
fn shares_are_apart_and_cover_the_device() {
    for (zones, cores) in [(10, 1), (10, 3), (64, 4), (5, 5)] {
        let mut seen = BTreeSet::new();
        for core in 0..cores {
            let share = Share { core, cores };
            (0..share.zones(zones)).for_each(|zone| assert!(seen.insert(share.on_device(zone))));
        }
        assert_eq!(seen, (0..zones).collect());
    }
}

#[test]
fn the_outcome_of_a_put_is_over_when_it_can_be_read() {
    let rig = Rig::new(3, 64 * MIB);
    let bytes = Bytes::from([content(4, 2), content(4, 3)].concat());
    let outcome = rig.flash.put(StripeId(4), 2, &bytes, 1).unwrap();
    let over = Rc::new(Cell::new(false));
    let (told, flash) = (Rc::clone(&over), rig.flash.clone());
    rig.process.executor().spawn(Priority::Foreground, async move {
        outcome.wait().await;
        assert!(flash.holds(StripeId(4), 2) && flash.holds(StripeId(4), 3));
        assert_eq!(flash.heat(StripeId(4), 3), Some(1));
        told.set(true);
    });
    assert!(rig.world.run_until(|| over.get(), SECOND));
}

/// Whether a header on the device names the part as durable.
pub(super) fn described(rig: &Rig, stripe: u64, part: u8) -> Option<PlaceState> {
    let state = rig.flash.0.state.borrow();
    let found = state.table.get(StripeId(stripe), part)?;
    let (_, device) = state.device_of(found.place)?;
    let (zone, place) = device.place(found.place);
    let pages = rig.drive.peek(device.zone_offset(zone), 8192);
    let header = cleave_format::flash::choose_header(&pages, &device.superblock, zone)?;
    Some(header.places[usize::from(place)])
}
