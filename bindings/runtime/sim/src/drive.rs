//! Simulated drives: requests that complete in random order, and the ways a drive fails.
//!
//! A drive belongs to the world and outlives processes; at most one handle owns it, or one at each of its ports. A request
//! takes effect when it completes. Invariants: a request completes exactly once or, when its owner
//! died, never; what a dead owner had in flight is decided at its death, so nothing of it lands
//! later; a failed write leaves each of its pages old or new.
//!
//! A crash of the owner keeps completed writes (the drive's cache survives); a power loss does not:
//! `medium` says what stays.

mod control;
mod outage;

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
    /// One at most, or as many as it has ports.
    owners: RefCell<Vec<Owner>>,
    ports: Cell<usize>,
    in_flight: RefCell<BTreeMap<u64, InFlight>>,
    feed: outage::Feed,
    present: Cell<bool>,
    fail_next: Cell<u64>,
    misdirect_next: Cell<u64>,
    slow: Cell<u32>,
    slow_reads: Cell<u32>,
    /// Requests in flight make no progress.
    hangs: Cell<bool>,
    /// Requests that came while it hung.
    held: RefCell<Vec<u64>>,
    full: Cell<bool>,
}

struct Owner {
    handle: u64,
    process: Rc<ProcessInner>,
    completions: Rc<RefCell<VecDeque<DriveCompletion>>>,
}

struct InFlight {
    request: DriveRequest,
    /// Whose it is.
    handle: u64,
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
    let held = {
        let owners = inner.owners.borrow();
        let full = owners.len() >= inner.ports.get();
        let same = owners.iter().find(|owner| owner.process.name == process.name);
        same.or(owners.first().filter(|_| full)).map(|owner| owner.process.name.clone())
    };
    if let Some(owner) = held {
        return Err(OpenError::Held { drive: inner.name.clone(), owner });
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
        inner.owners.borrow_mut().push(Owner {
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
        self.drive.owners.borrow().iter().any(|owner| owner.handle == self.handle)
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
        if !self.drive.feed.is_on() {
            return;
        }
        if self.owns() {
            self.drive.begin(&world, request, self.handle, self.process.number);
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
                self.drive.abandon(&world, self.handle);
            }
            self.drive.release(self.handle);
        }
    }
}

/// Resolves what a crashed process had in flight, and frees its drives.
pub(crate) fn process_died(world: &World, process: u64) {
    for drive in world.0.drives.borrow().iter() {
        let owned = {
            let owners = drive.owners.borrow();
            owners.iter().find(|owner| owner.process.number == process).map(|owner| owner.handle)
        };
        if let Some(handle) = owned {
            drive.abandon(world, handle);
            drive.release(handle);
        }
    }
}

impl DriveInner {
    fn release(&self, handle: u64) {
        let owners: Vec<Owner> =
            self.owners.borrow_mut().extract_if(.., |owner| owner.handle == handle).collect();
        drop(owners);
    }

    fn release_all(&self) {
        let owners = std::mem::take(&mut *self.owners.borrow_mut());
        drop(owners);
    }

    fn lost(&self) -> DriveError {
        DriveError::Lost(format!("{} is gone", self.name))
    }

    /// Starts a request: decides when it completes and whether it fails.
    fn begin(
        self: &Rc<DriveInner>,
        world: &World,
        request: DriveRequest,
        handle: u64,
        process: u64,
    ) {
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
        self.in_flight.borrow_mut().insert(number, InFlight { request, handle, serial, fails });
        if self.hangs.get() {
            world.0.count(|c| c.requests_hung += 1);
            self.held.borrow_mut().push(number);
            return;
        }
        let reads = match self.in_flight.borrow()[&number].request.operation {
            DriveOperation::Read { .. } => self.slow_reads.get(),
            _ => 1,
        };
        let slow = u64::from(self.slow.get().max(reads));
        world.0.count(|c| c.requests_slow += u64::from(slow > 1));
        self.finish_later(world, number, delay.saturating_mul(slow), process);
    }

    fn finish_later(self: &Rc<DriveInner>, world: &World, number: u64, delay: u64, process: u64) {
        let (time, drive) = (world.0.after(delay), Rc::clone(self));
        world.0.schedule(time, EventKind::Drive, process, move |world| drive.finish(world, number));
    }

    /// Completes a request.
    fn finish(&self, world: &World, number: u64) -> u64 {
        let Some(mut flight) = self.permitted(number) else { return 0 };
        let result = self.perform(world, &mut flight);
        let InFlight { request: DriveRequest { token, operation, buffer }, handle, .. } = flight;
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
        if let Some(owner) = self.owners.borrow().iter().find(|owner| owner.handle == handle) {
            let completion = DriveCompletion { token, result, buffer };
            owner.completions.borrow_mut().push_back(completion);
            world.0.delivered(&owner.process);
        }
        digest.value()
    }

    /// Takes a request out that may take effect.
    fn permitted(&self, number: u64) -> Option<InFlight> {
        let mut in_flight = self.in_flight.borrow_mut();
        let operation = in_flight.get(&number)?.request.operation;
        self.feed.permits(number, &operation).then(|| in_flight.remove(&number))?
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

    /// Decides for everything that a handle has in flight how much of it landed; nobody is told.
    fn abandon(&self, world: &World, handle: u64) {
        let all = std::mem::take(&mut *self.in_flight.borrow_mut());
        let own = |(_, flight): &(u64, InFlight)| flight.handle == handle;
        let (flights, others): (Vec<_>, Vec<_>) = all.into_iter().partition(own);
        self.in_flight.borrow_mut().extend(others);
        for (_, flight) in flights {
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
