//! Simulated drives: requests that complete in random order, and the ways a drive fails.
//!
//! A drive belongs to the world and outlives processes; at most one handle owns it. A request
//! takes effect when it completes. Invariants: a request completes exactly once or, when its owner
//! died, never; what a dead owner had in flight is decided at its death, so nothing of it lands
//! later; a failed write leaves each of its pages old or new.
//!
//! A crash of the owner keeps completed writes (the drive's cache survives); a power loss does not:
//! `medium` says what stays.

use crate::medium::{Medium, Page};
use crate::process::ProcessInner;
use crate::trace::{Digest, EventKind};
use crate::world::{World, WorldInner, upgrade};
use cleave_runtime::buffer::{Buffer, PAGE};
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use cleave_runtime::random::Random;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

/// What buffers hold before anything is read into them: nobody may count on zeros.
const STALE: u8 = 0xdb;

/// Why a drive was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another handle owns it.
    #[error("drive {drive} is held by process {owner}: kill it or drop its handle first")]
    Held {
        /// The drive.
        drive: String,
        /// Name of the process that holds it.
        owner: String,
    },
    /// It was lost and has not come back.
    #[error("drive {drive} is absent: let it come back first")]
    Absent {
        /// The drive.
        drive: String,
    },
}

/// A simulated drive, for whoever builds the world and injects faults; clones are the same drive.
#[derive(Clone)]
pub struct SimDrive(pub(crate) Rc<DriveInner>);

pub(crate) struct DriveInner {
    name: String,
    number: u64,
    capacity: u64,
    world: Weak<WorldInner>,
    medium: RefCell<Medium>,
    owner: RefCell<Option<Owner>>,
    in_flight: RefCell<BTreeMap<u64, InFlight>>,
    present: Cell<bool>,
    fail_next: Cell<u64>,
    misdirect_next: Cell<u64>,
    slow: Cell<u32>,
    full: Cell<bool>,
}

struct Owner {
    handle: u64,
    process: Rc<ProcessInner>,
    completions: Rc<RefCell<VecDeque<DriveCompletion>>>,
}

struct InFlight {
    request: DriveRequest,
    /// For a flush: what it covers.
    serial: u64,
    /// Decided when it was submitted.
    fails: bool,
}

/// The handle of the process that opened a drive.
struct OpenDrive {
    drive: Rc<DriveInner>,
    handle: u64,
    process: Rc<ProcessInner>,
    completions: Rc<RefCell<VecDeque<DriveCompletion>>>,
}

/// Opens a drive for a process.
pub(crate) fn open(
    process: &Rc<ProcessInner>,
    drive: &SimDrive,
) -> Result<Rc<dyn Drive>, OpenError> {
    let inner = &drive.0;
    if let Some(owner) = &*inner.owner.borrow() {
        let (drive, owner) = (inner.name.clone(), owner.process.name.clone());
        return Err(OpenError::Held { drive, owner });
    }
    let world = upgrade(&inner.world).filter(|_| inner.present.get());
    let Some(world) = world else {
        return Err(OpenError::Absent { drive: inner.name.clone() });
    };
    let open = OpenDrive {
        drive: Rc::clone(inner),
        handle: world.0.next_number(),
        process: Rc::clone(process),
        completions: Rc::default(),
    };
    // A process that is dead already opens nothing that could hold the drive.
    if process.alive() {
        *inner.owner.borrow_mut() = Some(Owner {
            handle: open.handle,
            process: Rc::clone(process),
            completions: Rc::clone(&open.completions),
        });
    }
    Ok(Rc::new(open))
}

impl OpenDrive {
    /// Whether this handle still owns the drive.
    fn owns(&self) -> bool {
        self.drive.owner.borrow().as_ref().is_some_and(|owner| owner.handle == self.handle)
    }
}

impl Drive for OpenDrive {
    fn capacity(&self) -> u64 {
        self.drive.capacity
    }

    fn submit(&self, request: DriveRequest) {
        let Some(world) = upgrade(&self.drive.world).filter(|_| self.process.alive()) else {
            return;
        };
        if self.owns() {
            self.drive.begin(&world, request, self.process.number);
        } else {
            // Lost after it was opened: answered, as a request to a vanished device is.
            world.0.count(|c| c.requests_lost += 1);
            let result = Err(self.drive.lost());
            let DriveRequest { token, buffer, .. } = request;
            self.completions.borrow_mut().push_back(DriveCompletion { token, result, buffer });
            world.0.delivered(&self.process);
        }
    }

    fn poll(&self, completions: &mut Vec<DriveCompletion>) {
        completions.extend(self.completions.borrow_mut().drain(..));
    }

    fn probe(&self) -> Result<(), DriveError> {
        if self.owns() { Ok(()) } else { Err(self.drive.lost()) }
    }

    fn buffer(&self, length: usize) -> Buffer {
        let mut buffer = Buffer::new(length.next_multiple_of(PAGE));
        buffer.fill(STALE);
        buffer
    }
}

impl Drop for OpenDrive {
    fn drop(&mut self) {
        if self.owns() {
            // Requests in flight belong to nobody any more; as at a crash, they land or not.
            if let Some(world) = upgrade(&self.drive.world) {
                self.drive.abandon(&world);
            }
            self.drive.release();
        }
    }
}

/// Resolves what a crashed process had in flight, and frees its drives.
pub(crate) fn process_died(world: &World, process: u64) {
    for drive in world.0.drives.borrow().iter() {
        let owned = drive.owner.borrow().as_ref().is_some_and(|o| o.process.number == process);
        if owned {
            drive.abandon(world);
            drive.release();
        }
    }
}

impl DriveInner {
    fn release(&self) {
        let owner = self.owner.borrow_mut().take();
        drop(owner);
    }

    fn lost(&self) -> DriveError {
        DriveError::Lost(format!("{} is gone", self.name))
    }

    /// Starts a request: decides when it completes and whether it fails.
    fn begin(self: &Rc<DriveInner>, world: &World, request: DriveRequest, process: u64) {
        let settings = world.0.settings.borrow();
        let length = request.buffer.as_ref().map_or(0, |buffer| buffer.len());
        let base = world.0.draw(match request.operation {
            DriveOperation::Read { .. } => settings.drive_read,
            DriveOperation::Write { .. } | DriveOperation::Discard { .. } => settings.drive_write,
            DriveOperation::Flush => settings.drive_flush,
        });
        let transfer = length as u128 * 1_000_000_000 / u128::from(settings.drive_bandwidth.max(1));
        let delay = base.saturating_add(u64::try_from(transfer).unwrap_or(u64::MAX));
        let fails = self.fail_next.get() > 0;
        self.fail_next.set(self.fail_next.get().saturating_sub(1));
        let number = world.0.next_number();
        let serial = self.medium.borrow().serial();
        self.in_flight.borrow_mut().insert(number, InFlight { request, serial, fails });
        let (time, drive) =
            (world.0.after(delay.saturating_mul(u64::from(self.slow.get()))), Rc::clone(self));
        world.0.schedule(time, EventKind::Drive, process, move |world| drive.finish(world, number));
    }

    /// Completes a request.
    fn finish(&self, world: &World, number: u64) -> u64 {
        let Some(mut flight) = self.in_flight.borrow_mut().remove(&number) else { return 0 };
        let result = self.perform(world, &mut flight);
        let InFlight { request: DriveRequest { token, operation, buffer }, .. } = flight;
        let (kind, place) = match operation {
            DriveOperation::Read { offset } => (1, offset),
            DriveOperation::Write { offset } => (2, offset),
            DriveOperation::Flush => (3, 0),
            DriveOperation::Discard { offset, .. } => (4, offset),
        };
        world.0.count(|c| match kind {
            1 => c.reads += 1,
            2 => c.writes += 1,
            3 => c.flushes += 1,
            _ => c.discards += 1,
        });
        let mut digest = Digest::new().word(self.number).word(token).word(kind).word(place);
        digest = digest.word(u64::from(result.is_ok()));
        if let Some(buffer) = buffer.as_ref().filter(|_| world.0.settings.borrow().trace_contents) {
            digest = digest.bytes(buffer);
        }
        if let Some(owner) = &*self.owner.borrow() {
            let completion = DriveCompletion { token, result, buffer };
            owner.completions.borrow_mut().push_back(completion);
            world.0.delivered(&owner.process);
        }
        digest.value()
    }

    /// The first page and the number of pages of a request, or why it is a mistake.
    fn pages(&self, request: &DriveRequest) -> Result<(u64, u64), DriveError> {
        let page = PAGE as u64;
        let held = request.buffer.as_ref().map(|buffer| buffer.len() as u64);
        let (offset, length) = match (request.operation, held) {
            (DriveOperation::Read { offset } | DriveOperation::Write { offset }, Some(length)) => {
                (offset, length)
            }
            (DriveOperation::Discard { offset, length }, None) => (offset, length),
            (DriveOperation::Flush, None) => (0, 0),
            _ => {
                let reason = "invalid request: reads and writes need a buffer, others have none";
                return Err(DriveError::Io(reason.to_owned()));
            }
        };
        let inside = offset.checked_add(length).is_some_and(|end| end <= self.capacity);
        if !offset.is_multiple_of(page) || !length.is_multiple_of(page) || !inside {
            return Err(DriveError::Io(format!(
                "invalid request: {length} bytes at {offset} of {}, not in whole pages inside its {} bytes",
                self.name, self.capacity
            )));
        }
        Ok((offset / page, length / page))
    }

    fn perform(&self, world: &World, flight: &mut InFlight) -> Result<(), DriveError> {
        let (first, count) = self
            .pages(&flight.request)
            .inspect_err(|_| world.0.count(|c| c.requests_invalid += 1))?;
        let medium = &mut *self.medium.borrow_mut();
        if flight.fails {
            world.0.count(|c| c.drive_errors += 1);
            match flight.request.operation {
                DriveOperation::Flush => medium.flush_failed(flight.serial),
                _ => apply_partly(world, medium, &flight.request, first, count),
            }
            return Err(DriveError::Io(format!("input/output error of {}", self.name)));
        }
        match flight.request.operation {
            DriveOperation::Read { .. } => {
                if let Some(bad) = (first..first + count).find(|page| medium.unreadable(*page)) {
                    world.0.count(|c| c.sector_errors += 1);
                    let offset = bad * PAGE as u64;
                    return Err(DriveError::Io(format!(
                        "unreadable sector of {} at {offset}",
                        self.name
                    )));
                }
                let buffer = flight.request.buffer.as_mut().expect("checked by pages()");
                for (page, bytes) in (first..).zip(buffer.as_chunks_mut::<PAGE>().0) {
                    *bytes = medium.read(page).map_or([0; PAGE], |content| **content);
                }
            }
            DriveOperation::Write { .. } => {
                if self.full.get() && (first..first + count).any(|page| !medium.allocated(page)) {
                    world.0.count(|c| c.no_space += 1);
                    return Err(DriveError::NoSpace);
                }
                let place = self.divert(world, medium, first, count);
                let buffer = flight.request.buffer.as_ref().expect("checked by pages()");
                for (page, content) in (place..).zip(contents(buffer)) {
                    medium.write(page, Some(content));
                }
                if place != first {
                    let touched = (first..first + count).chain(place..place + count);
                    touched.for_each(|page| medium.mark_damaged(page));
                }
            }
            DriveOperation::Flush => medium.flush(flight.serial),
            // What a discarded page holds is undefined: zeros, or what it held.
            DriveOperation::Discard { .. } => {
                (first..first + count)
                    .filter(|_| world.0.one_in(2))
                    .for_each(|page| medium.write(page, None));
            }
        }
        Ok(())
    }

    /// Where a write really goes.
    fn divert(&self, world: &World, medium: &Medium, first: u64, count: u64) -> u64 {
        let last = (self.capacity / PAGE as u64).saturating_sub(count);
        if self.misdirect_next.get() == 0 || last == 0 || count == 0 {
            return first;
        }
        self.misdirect_next.set(self.misdirect_next.get() - 1);
        world.0.count(|c| c.writes_misdirected += 1);
        let random = &world.0.random;
        // Mostly onto something stored: a write to empty space damages only its own place.
        let stored = medium.any_allocated(random).filter(|_| !world.0.one_in(4));
        let place = stored.unwrap_or_else(|| random.below(last + 1)).min(last);
        if place == first { (first + 1) % (last + 1) } else { place }
    }

    /// Decides for everything in flight how much of it landed; nobody is told.
    fn abandon(&self, world: &World) {
        for flight in std::mem::take(&mut *self.in_flight.borrow_mut()).into_values() {
            if let Ok((first, count)) = self.pages(&flight.request) {
                let medium = &mut *self.medium.borrow_mut();
                apply_partly(world, medium, &flight.request, first, count);
            }
        }
    }
}

/// A write that was interrupted: all of its pages landed, none, or each for itself.
fn apply_partly(
    world: &World,
    medium: &mut Medium,
    request: &DriveRequest,
    first: u64,
    count: u64,
) {
    let chance = world.0.random.below(3);
    let lands = || match chance {
        0 => true,
        1 => false,
        _ => world.0.one_in(2),
    };
    let mut landed = 0;
    match (&request.operation, &request.buffer) {
        (DriveOperation::Write { .. }, Some(buffer)) => {
            for (page, content) in (first..).zip(contents(buffer)).filter(|_| lands()) {
                medium.write(page, Some(content));
                landed += 1;
            }
        }
        (DriveOperation::Discard { .. }, _) => {
            (first..first + count).filter(|_| lands()).for_each(|page| medium.write(page, None));
            return;
        }
        _ => return,
    }
    world.0.count(|c| match landed {
        0 => c.writes_vanished += 1,
        _ if landed == count => c.writes_landed += 1,
        _ => c.writes_torn += 1,
    });
}

fn contents(buffer: &Buffer) -> impl Iterator<Item = Page> {
    buffer.as_chunks::<PAGE>().0.iter().map(|page| Rc::new(*page))
}

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
            owner: RefCell::default(),
            in_flight: RefCell::default(),
            present: Cell::new(true),
            fail_next: Cell::new(0),
            misdirect_next: Cell::new(0),
            slow: Cell::new(1),
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

    /// Name of the process that holds it.
    pub fn owner(&self) -> Option<String> {
        self.0.owner.borrow().as_ref().map(|owner| owner.process.name.clone())
    }

    /// What a read would give now, for checkers; sector errors are not seen. `offset` and `length`
    /// in bytes.
    pub fn peek(&self, offset: u64, length: usize) -> Vec<u8> {
        let medium = self.0.medium.borrow();
        let byte = |place: u64| {
            let content = medium.read(place / PAGE as u64);
            content.map_or(0, |content| content[(place % PAGE as u64) as usize])
        };
        (offset..offset + length as u64).map(byte).collect()
    }

    /// Unflushed page writes.
    pub fn volatile_pages(&self) -> usize {
        self.0.medium.borrow().volatile()
    }

    /// Requests in flight.
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.borrow().len()
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
        self.0.release();
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
        let Some(owner) = &*self.0.owner.borrow() else { return };
        for flight in std::mem::take(&mut *self.0.in_flight.borrow_mut()).into_values() {
            if let Ok((first, count)) = self.0.pages(&flight.request) {
                let medium = &mut *self.0.medium.borrow_mut();
                apply_partly(world, medium, &flight.request, first, count);
            }
            let DriveRequest { token, buffer, .. } = flight.request;
            let completion = DriveCompletion { token, result: Err(error()), buffer };
            owner.completions.borrow_mut().push_back(completion);
        }
        world.0.delivered(&owner.process);
    }

    /// The next `count` requests fail with an I/O error; 0 ends it. A failed write leaves each page
    /// old or new; a failed flush leaves what it covered in doubt.
    pub fn fail_next(&self, count: u64) {
        self.note(4, count);
        self.0.fail_next.set(count);
    }

    /// Latent sector errors: reads that touch the range (bytes) fail until its pages are written.
    pub fn spoil(&self, offset: u64, length: u64) {
        self.note(5, offset);
        let end = offset.saturating_add(length).min(self.0.capacity).div_ceil(PAGE as u64);
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

    /// The next `count` writes go to wrong places and report success; 0 ends it.
    pub fn misdirect_next(&self, count: u64) {
        self.note(7, count);
        self.0.misdirect_next.set(count);
    }

    /// Requests take `factor` times as long; 1 is the normal speed.
    pub fn slow(&self, factor: u32) {
        self.note(8, u64::from(factor));
        self.0.slow.set(factor.max(1));
    }

    /// Whether writes to pages that hold nothing yet find no space behind the drive file.
    pub fn set_full(&self, full: bool) {
        self.note(9, u64::from(full));
        self.0.full.set(full);
    }
}
