//! Drives as the builder of a world sees them: making them, looking into them, harming them.
//!
//! Every fault enters the trace, and those that strike something enter the counters.

use super::{DriveInner, SimDrive, apply_partly};
use crate::trace::{Digest, EventKind};
use crate::world::{World, upgrade};
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::{DriveCompletion, DriveError, DriveOperation, DriveRequest};
use std::cell::{Cell, RefCell};
use std::rc::Rc;

impl World {
    /// A new drive full of zeros.
    ///
    /// # Panics
    /// When `capacity` (bytes) is not a multiple of the page, or the name is taken.
    pub fn create_drive(&self, name: &str, capacity: u64) -> SimDrive {
        assert!(capacity.is_multiple_of(PAGE as u64), "a drive's capacity is in whole pages");
        assert!(self.drive(name).is_none(), "drive {name} exists already");
        let drive = Rc::new(DriveInner {
            name: name.to_owned(),
            number: self.0.next_number(),
            capacity,
            world: Rc::downgrade(&self.0),
            medium: RefCell::default(),
            owners: RefCell::default(),
            ports: Cell::new(1),
            in_flight: RefCell::default(),
            feed: Default::default(),
            present: Cell::new(true),
            fail_next: Cell::new(0),
            misdirect_next: Cell::new(0),
            slow: Cell::new(1),
            slow_reads: Cell::new(1),
            hangs: Cell::new(false),
            held: RefCell::default(),
            full: Cell::new(false),
        });
        self.0.drives.borrow_mut().push(Rc::clone(&drive));
        SimDrive(drive)
    }

    /// The drive of that name.
    pub fn drive(&self, name: &str) -> Option<SimDrive> {
        self.drives().into_iter().find(|drive| drive.name() == name)
    }

    /// All drives, in the order of their creation.
    pub fn drives(&self) -> Vec<SimDrive> {
        self.0.drives.borrow().iter().map(|drive| SimDrive(Rc::clone(drive))).collect()
    }
}

impl SimDrive {
    /// Its name in this world.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Bytes.
    pub fn capacity(&self) -> u64 {
        self.0.capacity
    }

    /// Gives it so many ports: as many processes, of different names, may hold it at a time.
    pub fn set_ports(&self, ports: usize) {
        self.0.ports.set(ports);
    }

    /// Name of the process that holds it, of the first one if there are several.
    pub fn owner(&self) -> Option<String> {
        self.0.owners.borrow().first().map(|owner| owner.process.name.clone())
    }

    /// What a read would give now, for checkers; sector errors are not seen. `offset` and `length`
    /// in bytes.
    pub fn peek(&self, offset: u64, length: usize) -> Vec<u8> {
        let medium = self.0.medium.borrow();
        let (page, end) = (PAGE as u64, offset + length as u64);
        let mut bytes = Vec::with_capacity(length);
        let mut place = offset;
        while place < end {
            let from = (place % page) as usize;
            let to = PAGE.min(from + (end - place) as usize);
            match medium.read(place / page) {
                Some(content) => bytes.extend_from_slice(&content[from..to]),
                None => bytes.resize(bytes.len() + to - from, 0),
            }
            place += (to - from) as u64;
        }
        bytes
    }

    /// Unflushed page writes.
    pub fn volatile_pages(&self) -> usize {
        self.0.medium.borrow().volatile()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.borrow().len()
    }

    /// Writes in flight.
    pub fn writes_in_flight(&self) -> usize {
        let write = |flight: &&super::InFlight| {
            matches!(flight.request.operation, DriveOperation::Write { .. })
        };
        self.0.in_flight.borrow().values().filter(write).count()
    }

    /// Offsets of pages hit by flipped bits, sector errors and misdirected writes, in their present
    /// content or in an older one that a power loss could bring back.
    pub fn damaged(&self) -> Vec<u64> {
        self.0.medium.borrow().damaged().into_iter().map(|page| page * PAGE as u64).collect()
    }

    fn note(&self, fault: u64, detail: u64) -> Option<World> {
        let world = upgrade(&self.0.world)?;
        let digest = Digest::new().word(self.0.number).word(fault).word(detail).value();
        world.0.note(EventKind::Fault, 0, digest);
        Some(world)
    }

    /// The drive vanishes from under its owner: requests in flight and later ones are answered
    /// with "lost", as are probes; the handle stays useless for ever.
    pub fn lose(&self) {
        let Some(world) = self.note(1, 0).filter(|_| self.0.present.replace(false)) else { return };
        world.0.count(|c| c.drives_lost += 1);
        self.answer_all(&world, || self.0.lost());
        self.0.release_all();
    }

    /// A lost drive is there again, with what it stored, for whoever opens it.
    pub fn come_back(&self) {
        self.note(2, 0);
        self.0.present.set(true);
    }

    /// Power fails: what was not flushed persists or not, page by page; requests in flight are
    /// answered with errors if their owner lives. (A machine's power failure is
    /// [`kill`](crate::Process::kill) of its processes, then this on its drives.)
    pub fn power_loss(&self) {
        let Some(world) = self.note(3, 0) else { return };
        self.answer_all(&world, || DriveError::Io(format!("{} lost power", self.0.name)));
        let (kept, dropped) = self.0.medium.borrow_mut().power_loss(&world.0.random);
        world.0.count(|c| {
            c.power_losses += 1;
            c.pages_kept += kept;
            c.pages_dropped += dropped;
        });
    }

    /// Interrupts what is in flight and answers it.
    fn answer_all(&self, world: &World, error: impl Fn() -> DriveError) {
        let owners = self.0.owners.borrow();
        for flight in std::mem::take(&mut *self.0.in_flight.borrow_mut()).into_values() {
            if let Ok((first, count)) = self.0.pages(&flight.request) {
                let medium = &mut *self.0.medium.borrow_mut();
                apply_partly(world, medium, &flight.request, first, count);
            }
            let DriveRequest { token, buffer, .. } = flight.request;
            let completion = DriveCompletion { token, result: Err(error()), buffer };
            if let Some(owner) = owners.iter().find(|owner| owner.handle == flight.handle) {
                owner.completions.borrow_mut().push_back(completion);
            }
        }
        owners.iter().for_each(|owner| world.0.delivered(&owner.process));
    }

    /// The next `count` requests fail with an I/O error; 0 ends it. A failed write leaves each page
    /// old or new; a failed flush leaves what it covered in doubt.
    pub fn fail_next(&self, count: u64) {
        self.note(4, count);
        self.0.fail_next.set(count);
    }

    /// Latent sector errors: reads that touch the range (bytes) fail until its pages are written.
    pub fn spoil(&self, offset: u64, length: u64) {
        let Some(world) = self.note(5, offset) else { return };
        let end = offset.saturating_add(length).min(self.0.capacity).div_ceil(PAGE as u64);
        world.0.count(|c| c.pages_spoiled += end.saturating_sub(offset / PAGE as u64));
        (offset / PAGE as u64..end).for_each(|page| self.0.medium.borrow_mut().spoil(page));
    }

    /// Flips one bit of the stored byte at `offset`.
    ///
    /// # Panics
    /// Beyond the capacity.
    pub fn flip_bit(&self, offset: u64, bit: u8) {
        assert!(offset < self.0.capacity, "a bit of the drive");
        let Some(world) = self.note(6, offset) else { return };
        world.0.count(|c| c.bits_flipped += 1);
        self.0.medium.borrow_mut().flip(offset, bit);
    }

    /// Offset of a random page that holds something.
    pub fn any_stored_page(&self) -> Option<u64> {
        let world = upgrade(&self.0.world)?;
        let page = self.0.medium.borrow().any_allocated(&world.0.random);
        page.map(|page| page * PAGE as u64)
    }

    /// Offsets of all pages that hold something, in order.
    pub fn stored_pages(&self) -> Vec<u64> {
        let pages = self.0.medium.borrow().allocated_pages();
        pages.into_iter().map(|page| page * PAGE as u64).collect()
    }

    /// Whole pages of two stored ranges trade places, as if the drive had mixed up where they are.
    ///
    /// # Panics
    /// When a range is not one of whole pages of the drive.
    pub fn exchange(&self, one: u64, other: u64, length: u64) {
        let page = PAGE as u64;
        assert!([one, other, length].iter().all(|bytes| bytes.is_multiple_of(page)), "whole pages");
        assert!(one.max(other) + length <= self.0.capacity, "pages of the drive");
        self.note(11, one ^ other.rotate_left(32));
        for at in 0..length / page {
            self.0.medium.borrow_mut().exchange(one / page + at, other / page + at);
        }
    }

    /// The next `count` writes go to wrong places and report success; 0 ends it.
    pub fn misdirect_next(&self, count: u64) {
        self.note(7, count);
        self.0.misdirect_next.set(count);
    }

    /// Requests take `factor` times as long; 1 is the normal speed.
    pub fn slow(&self, factor: u32) {
        let Some(world) = self.note(8, u64::from(factor)) else { return };
        world.0.count(|c| c.drives_slowed += u64::from(factor > 1));
        self.0.slow.set(factor.max(1));
    }

    /// Reads take `factor` times as long, as where what is written goes into a cache, and reads wait for the medium;
    /// 1 is the normal speed.
    pub fn slow_reads(&self, factor: u32) {
        if self.0.slow_reads.replace(factor.max(1)) == factor.max(1) {
            return;
        }
        let Some(world) = self.note(12, u64::from(factor)) else { return };
        world.0.count(|c| c.drives_slowed += u64::from(factor > 1));
    }

    /// Requests that come from now on are not answered, until it ends and what waits is carried out.
    pub fn hang(&self, hangs: bool) {
        if self.0.hangs.replace(hangs) == hangs {
            return;
        }
        let Some(world) = self.note(10, u64::from(hangs)) else { return };
        world.0.count(|c| c.drives_hung += u64::from(hangs));
        for number in std::mem::take(&mut *self.0.held.borrow_mut()) {
            let handle = self.0.in_flight.borrow().get(&number).map(|flight| flight.handle);
            let owners = self.0.owners.borrow();
            let of = owners.iter().find(|owner| Some(owner.handle) == handle);
            let owner = of.map_or(0, |owner| owner.process.number);
            drop(owners);
            let delay = world.0.draw(world.0.settings.borrow().drive_write);
            self.0.finish_later(&world, number, delay, owner);
        }
    }

    /// Whether writes to pages that hold nothing yet find no space behind the drive file.
    pub fn set_full(&self, full: bool) {
        let Some(world) = self.note(9, u64::from(full)) else { return };
        world.0.count(|c| c.drives_full += u64::from(full && !self.0.full.get()));
        self.0.full.set(full);
    }
}
