//! The pool's drives, as their owner, the active controller, uses them: whole slots written and flushed before
//! they count (C10), ranges read after the slot's header said whose it is (C3), losses noticed.
//!
//! Hot and without tasks: requests go in with a number of the caller's, and come out as
//! [`DriveEvent`]s. Flushes are shared: while one runs, finished writes gather for the next.
//!
//! A drive is lost when it is gone, when a write or a flush of it fails, when its probe says so, or after
//! [`READ_ERRORS_MAX`] failed reads. What was not flushed then is not there. A lost drive stays lost (C16).

use bytes::Bytes;
use cleave_format::control::{DriveState, SlotPlace};
use cleave_format::ids::{ClusterId, DriveId, SlotIndex, StripeId};
use cleave_format::layout::{COLUMN, PARITY_SHARDS, SHARD, SLOT, SLOT_HEADER};
use cleave_format::slot::SlotHeader;
use cleave_format::superblock::Superblock;
use cleave_runtime::buffer::{Buffer, PAGE};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::ShardFault;
use slab::Slab;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Failed reads after which a drive counts as lost.
pub const READ_ERRORS_MAX: u32 = 16;
/// Slot headers that are remembered, so that a read needs no second one.
const HEADERS_MAX: usize = 1 << 16;

/// A drive that was opened, and what it says about itself.
#[derive(Clone)]
pub struct OpenDrive {
    /// The drive.
    pub drive: Rc<dyn Drive>,
    /// Its superblock, checked to be ours.
    pub superblock: Superblock,
}

/// What happened.
#[derive(Debug)]
pub enum DriveEvent {
    /// A shard is durable, or not.
    Written {
        /// The caller's number.
        number: u64,
        /// Whether it is.
        result: Result<(), ShardFault>,
    },
    /// A range was read.
    Read {
        /// The caller's number.
        number: u64,
        /// Its bytes.
        result: Result<Bytes, ShardFault>,
    },
    /// What was written to a drive's reserved area is durable, or not.
    AreaWritten {
        /// The caller's number.
        number: u64,
        /// Whether it is.
        durable: bool,
    },
    /// A range of a slot was not read, and the drive is not lost.
    Fault {
        /// Which drive.
        drive: DriveId,
        /// Which slot.
        slot: SlotIndex,
        /// How.
        fault: ShardFault,
        /// The stripe of which that is damage, perhaps; none where whoever reads it looks at all of it anyway.
        suspect: Option<StripeId>,
    },
    /// A drive became lost.
    Lost {
        /// Which.
        drive: DriveId,
        /// Why.
        reason: String,
    },
}

/// Counters of a drive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriveCounters {
    /// Ranges read.
    pub reads: u64,
    /// Bytes of ranges.
    pub read_bytes: u64,
    /// Shards written.
    pub writes: u64,
    /// Bytes of slots.
    pub write_bytes: u64,
    /// Flushes.
    pub flushes: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Reads that found another stripe's shard.
    pub identity_faults: u64,
    /// Bytes of shards that were read whole and passed all their checks, by the scrub.
    pub verified_bytes: u64,
    /// Shards that it found damaged.
    pub damaged: u64,
    /// Of these, those that were written anew.
    pub repaired: u64,
    /// And those that could not be.
    pub unrepairable: u64,
}

/// A drive's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriveReport {
    /// Which.
    pub drive: DriveId,
    /// Its state.
    pub state: DriveState,
    /// Its generation.
    pub generation: u32,
    /// Why it became lost, if this process saw it; else empty.
    pub reason: String,
    /// Its slots.
    pub slots: u32,
    /// Requests in flight.
    pub in_flight: u32,
    /// Counters.
    pub counters: DriveCounters,
}

struct PoolDrive {
    open: Option<OpenDrive>,
    state: DriveState,
    generation: u32,
    /// Its loss was reported by an event, or is known otherwise.
    reported: bool,
    reason: String,
    /// Writes that completed since the running flush began.
    unflushed: Vec<Written>,
    /// Writes that the running flush makes durable.
    flushing: Vec<Written>,
    flush_running: bool,
    in_flight: u32,
    read_errors: u32,
    counters: DriveCounters,
}

/// What a write was, by its caller's number.
#[derive(Clone, Copy)]
enum Written {
    Slot(u64),
    Area(u64),
}

impl Written {
    fn event(self, result: Result<(), ShardFault>) -> DriveEvent {
        match self {
            Written::Slot(number) => DriveEvent::Written { number, result },
            Written::Area(number) => DriveEvent::AreaWritten { number, durable: result.is_ok() },
        }
    }
}

enum Operation {
    Write { number: u64, slot: SlotIndex },
    Area { number: u64 },
    Flush,
    Range { read: usize },
    Header { read: usize },
}

struct Read {
    number: u64,
    place: SlotPlace,
    stripe: StripeId,
    shard: u8,
    /// Where the range lies in the buffer.
    start: usize,
    length: usize,
    /// The buffer begins with the header page.
    with_header: bool,
    /// It is the whole shard, whose columns are checked.
    whole: bool,
    waiting: u8,
    buffer: Option<Buffer>,
    fault: Option<ShardFault>,
}

/// All drives of the pool.
pub struct Drives {
    cluster: ClusterId,
    drives: BTreeMap<DriveId, PoolDrive>,
    operations: Slab<(DriveId, Operation)>,
    reads: Slab<Read>,
    /// Whose shard a slot holds. Looked up only.
    headers: HashMap<(DriveId, SlotIndex), (StripeId, u8, u32)>,
    /// Slots with writes on their way to the drive, and how many: whose they are is not known (C3).
    writing: BTreeMap<(DriveId, SlotIndex), u32>,
    completions: Vec<DriveCompletion>,
    events: Vec<DriveEvent>,
}

impl Drives {
    /// The configured drives; `None`: it could not be opened, so it is lost.
    pub fn new(cluster: ClusterId, drives: Vec<(DriveId, Option<OpenDrive>)>) -> Drives {
        let drives = drives.into_iter().map(|(id, open)| {
            let drive = PoolDrive {
                open,
                state: DriveState::Active,
                generation: 0,
                reported: false,
                reason: String::new(),
                unflushed: Vec::new(),
                flushing: Vec::new(),
                flush_running: false,
                in_flight: 0,
                read_errors: 0,
                counters: DriveCounters::default(),
            };
            (id, drive)
        });
        Drives {
            cluster,
            drives: drives.collect(),
            operations: Slab::new(),
            reads: Slab::new(),
            headers: HashMap::new(),
            writing: BTreeMap::new(),
            completions: Vec::new(),
            events: Vec::new(),
        }
    }

    /// Takes over a drive's state from the catalog or the log.
    pub fn set_state(&mut self, drive: DriveId, state: DriveState, generation: u32) {
        if let Some(drive) = self.drives.get_mut(&drive)
            && generation >= drive.generation
        {
            drive.generation = generation;
            drive.state = state;
            drive.reported |= state == DriveState::Lost;
        }
    }

    /// Reports drives as lost that could not be opened and are not known to be lost.
    pub fn report_missing(&mut self) {
        let missing = self.drives.iter().filter(|(_, drive)| drive.open.is_none());
        for drive in missing.map(|(id, _)| *id).collect::<Vec<_>>() {
            self.lose(drive, "it could not be opened".to_owned());
        }
    }

    /// Each drive with its generation, slots, and whether it is in use.
    pub fn states(&self) -> impl Iterator<Item = (DriveId, u32, u32, bool)> + '_ {
        self.drives.iter().map(|(id, drive)| {
            let slots = drive.open.as_ref().map_or(0, |open| open.superblock.slots);
            (*id, drive.generation, slots, drive.state == DriveState::Active)
        })
    }

    /// Drives that count as lost.
    pub fn lost(&self) -> Vec<DriveId> {
        let lost = self.drives.iter().filter(|(_, drive)| drive.state == DriveState::Lost);
        lost.map(|(id, _)| *id).collect()
    }

    /// Those that could be opened, with their state.
    pub fn opened(&self) -> impl Iterator<Item = (DriveId, DriveState, &OpenDrive)> {
        let opened = self.drives.iter();
        opened.filter_map(|(id, drive)| Some((*id, drive.state, drive.open.as_ref()?)))
    }

    /// Whether a shard that was granted here is still there: the drive is in use and is the same
    /// (C16).
    pub fn holds(&self, place: &SlotPlace) -> bool {
        let same = |drive: &PoolDrive| {
            drive.state == DriveState::Active && drive.generation == place.generation
        };
        self.drives.get(&place.drive).is_some_and(same)
    }

    /// Whether so many of them are within reach that every stripe can be read: parity makes up for the others.
    pub fn suffice(&self) -> bool {
        let open = self.drives.values().filter(|drive| drive.open.is_some()).count();
        open > 0 && open + PARITY_SHARDS >= self.drives.len()
    }

    /// The same drives as they were opened, for another time as the active controller: what became of them then is
    /// in the log, or was known to nobody else.
    pub fn rested(mut self) -> Drives {
        assert!(self.is_idle(), "a controller steps down without I/O on its way");
        for drive in self.drives.values_mut() {
            drive.state = DriveState::Active;
            drive.generation = 0;
            drive.reported = false;
            drive.reason.clear();
        }
        self.headers.clear();
        self
    }

    /// Status of all drives.
    pub fn report(&self) -> Vec<DriveReport> {
        let report = |(id, drive): (&DriveId, &PoolDrive)| DriveReport {
            drive: *id,
            state: drive.state,
            generation: drive.generation,
            reason: drive.reason.clone(),
            slots: drive.open.as_ref().map_or(0, |open| open.superblock.slots),
            in_flight: drive.in_flight,
            counters: drive.counters,
        };
        self.drives.iter().map(report).collect()
    }

    /// The counters of a drive, for who looks at what lies there.
    pub(crate) fn counters(&mut self, drive: DriveId) -> Option<&mut DriveCounters> {
        self.drives.get_mut(&drive).map(|drive| &mut drive.counters)
    }

    /// Whether no request is in flight.
    pub fn is_idle(&self) -> bool {
        self.operations.is_empty()
    }

    /// Asks every drive whether it is still the one that was opened.
    pub fn probe(&mut self) {
        let mut gone = Vec::new();
        for (id, drive) in &self.drives {
            if let (Some(open), DriveState::Active) = (&drive.open, drive.state)
                && let Err(error) = open.drive.probe()
            {
                gone.push((*id, error.to_string()));
            }
        }
        for (drive, reason) in gone {
            self.lose(drive, reason);
        }
    }

    fn lose(&mut self, id: DriveId, reason: String) {
        let drive = self.drives.get_mut(&id).expect("a drive of the pool");
        drive.state = DriveState::Lost;
        if !drive.reported {
            drive.reported = true;
            drive.reason.clone_from(&reason);
            self.events.push(DriveEvent::Lost { drive: id, reason });
        }
        let pending = std::mem::take(&mut drive.unflushed);
        self.events.extend(pending.into_iter().map(|write| write.event(Err(ShardFault::Lost))));
    }

    /// The drive of a place if it is in use, and the place one of its slots.
    fn usable(&self, place: &SlotPlace) -> Result<&OpenDrive, ShardFault> {
        let drive = self.drives.get(&place.drive).ok_or(ShardFault::Identity)?;
        let (DriveState::Active, Some(open)) = (drive.state, &drive.open) else {
            return Err(ShardFault::Lost);
        };
        if place.slot.0 >= open.superblock.slots {
            return Err(ShardFault::Identity);
        }
        Ok(open)
    }

    fn submit(
        &mut self,
        id: DriveId,
        operation: Operation,
        request: DriveOperation,
        buffer: Option<Buffer>,
    ) {
        let token = self.operations.insert((id, operation)) as u64;
        let drive = self.drives.get_mut(&id).expect("a drive of the pool");
        drive.in_flight += 1;
        let open = drive.open.as_ref().expect("only opened drives are asked");
        open.drive.submit(DriveRequest { token, operation: request, buffer });
    }

    /// Writes a slot image, the rest of `message`, to a granted place: checks that it is the granted
    /// shard and arrived whole. Ok: a [`DriveEvent::Written`] follows.
    pub fn write(
        &mut self,
        number: u64,
        place: &SlotPlace,
        stripe: StripeId,
        shard: u8,
        data_shards: usize,
        message: &mut Message,
    ) -> Result<(), ShardFault> {
        let open = self.usable(place)?;
        if message.len() != SLOT {
            return Err(ShardFault::Damaged);
        }
        let mut image = open.drive.buffer(SLOT);
        let offset = open.superblock.slot_offset(place.slot);
        message.copy_to(&mut image);
        let header = SlotHeader::decode(&image[..SLOT_HEADER]).map_err(|_| ShardFault::Damaged)?;
        let same = header.check_identity(self.cluster, stripe, usize::from(shard), place).is_ok();
        if !same || usize::from(header.data_shards) != data_shards {
            return Err(ShardFault::Identity);
        }
        for (index, column) in image[SLOT_HEADER..].chunks_exact(COLUMN).enumerate() {
            header.check_column(index, column).map_err(|_| ShardFault::Damaged)?;
        }
        let key = (place.drive, place.slot);
        self.headers.remove(&key);
        *self.writing.entry(key).or_default() += 1;
        // What a read of the slot brings now may be of either stripe, its header too.
        let crossed = self.reads.iter_mut().map(|(_, read)| read);
        for read in crossed.filter(|read| (read.place.drive, read.place.slot) == key) {
            read.fault.get_or_insert(ShardFault::Identity);
        }
        let operation = Operation::Write { number, slot: place.slot };
        self.submit(place.drive, operation, DriveOperation::Write { offset }, Some(image));
        Ok(())
    }

    /// Writes to a drive's reserved area: whole pages. True: a [`DriveEvent::AreaWritten`] follows; else the drive is not
    /// in use.
    pub fn write_area(&mut self, number: u64, drive: DriveId, offset: u64, bytes: &[u8]) -> bool {
        let found = self.drives.get(&drive).filter(|found| found.state == DriveState::Active);
        let Some(open) = found.and_then(|found| found.open.as_ref()) else { return false };
        let mut buffer = open.drive.buffer(bytes.len());
        buffer.copy_from_slice(bytes);
        let request = DriveOperation::Write { offset };
        self.submit(drive, Operation::Area { number }, request, Some(buffer));
        true
    }

    /// Reads a range of a shard. Ok: a [`DriveEvent::Read`] follows.
    pub fn read(
        &mut self,
        number: u64,
        place: &SlotPlace,
        stripe: StripeId,
        shard: u8,
        offset: u32,
        length: u32,
    ) -> Result<(), ShardFault> {
        self.begin_read(number, place, stripe, shard, (offset, length), false)
    }

    /// Reads a shard and checks all of it. Ok: a [`DriveEvent::Read`] follows. A fault of it does not count against the drive:
    /// who reads whole shards finds what lay there for long, and writes it anew.
    pub fn read_whole(
        &mut self,
        number: u64,
        place: &SlotPlace,
        stripe: StripeId,
        shard: u8,
    ) -> Result<(), ShardFault> {
        self.begin_read(number, place, stripe, shard, (0, SHARD as u32), true)
    }

    fn begin_read(
        &mut self,
        number: u64,
        place: &SlotPlace,
        stripe: StripeId,
        shard: u8,
        (offset, length): (u32, u32),
        whole: bool,
    ) -> Result<(), ShardFault> {
        let open = self.usable(place)?;
        let slot = open.superblock.slot_offset(place.slot);
        let (offset, length) = (offset as usize, length as usize);
        let writing = self.writing.contains_key(&(place.drive, place.slot));
        if writing && !is_planted(Planted::ReadWithoutChecks) {
            return Err(ShardFault::Identity);
        }
        if length == 0 || offset >= SHARD || length > SHARD - offset {
            return Err(ShardFault::Identity);
        }
        let known = self.headers.get(&(place.drive, place.slot));
        let known = known == Some(&(stripe, shard, place.generation)) && !whole;
        // A header that is not known is read too: with the range when that is near, else by itself.
        let with_header = !known && offset < 4 * PAGE;
        let first = if with_header { 0 } else { (SLOT_HEADER + offset) / PAGE * PAGE };
        let end = (SLOT_HEADER + offset + length).next_multiple_of(PAGE);
        let buffer = open.drive.buffer(end - first);
        let alone = (!known && !with_header).then(|| open.drive.buffer(SLOT_HEADER));
        let read = self.reads.insert(Read {
            number,
            place: *place,
            stripe,
            shard,
            start: SLOT_HEADER + offset - first,
            length,
            with_header,
            whole,
            waiting: 1 + u8::from(alone.is_some()),
            buffer: None,
            fault: None,
        });
        let range = DriveOperation::Read { offset: slot + first as u64 };
        self.submit(place.drive, Operation::Range { read }, range, Some(buffer));
        if let Some(header) = alone {
            let request = DriveOperation::Read { offset: slot };
            self.submit(place.drive, Operation::Header { read }, request, Some(header));
        }
        Ok(())
    }

    /// Takes completions and appends what happened. True when there was anything.
    pub fn turn(&mut self, events: &mut Vec<DriveEvent>) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        for drive in self.drives.values().filter(|drive| drive.in_flight > 0) {
            drive.open.as_ref().expect("only opened drives are asked").drive.poll(&mut completions);
        }
        let any = !completions.is_empty() || !self.events.is_empty();
        for completion in completions.drain(..) {
            let token = usize::try_from(completion.token).expect("a token given here");
            let (id, operation) = self.operations.remove(token);
            let drive = self.drives.get_mut(&id).expect("a drive of the pool");
            drive.in_flight -= 1;
            drive.counters.errors += u64::from(completion.result.is_err());
            match operation {
                Operation::Write { number, slot } => {
                    self.write_over((id, slot));
                    self.write_done(id, Written::Slot(number), completion.result);
                }
                Operation::Area { number } => {
                    self.write_done(id, Written::Area(number), completion.result);
                }
                Operation::Flush => self.flush_done(id, completion.result),
                Operation::Header { read } | Operation::Range { read } => {
                    let range = matches!(operation, Operation::Range { .. });
                    self.read_done(id, read, range, completion);
                }
            }
        }
        self.completions = completions;
        events.append(&mut self.events);
        any
    }

    fn write_over(&mut self, key: (DriveId, SlotIndex)) {
        let writes = self.writing.get_mut(&key).expect("a write is counted until it is over");
        *writes -= 1;
        if *writes == 0 {
            self.writing.remove(&key);
        }
    }

    fn write_done(&mut self, id: DriveId, write: Written, result: Result<(), DriveError>) {
        let drive = self.drives.get_mut(&id).expect("a drive of the pool");
        let fault = match result {
            Ok(()) if drive.state == DriveState::Lost => ShardFault::Lost,
            Ok(()) => {
                if let Written::Slot(_) = write {
                    drive.counters.writes += 1;
                    drive.counters.write_bytes += SLOT as u64;
                    if is_planted(Planted::CommitBeforeFlush) {
                        self.events.push(write.event(Ok(())));
                        return;
                    }
                    reached(Point::SlotWritten);
                }
                drive.unflushed.push(write);
                self.flush(id);
                return;
            }
            Err(DriveError::NoSpace) => ShardFault::NoSpace,
            Err(error) => {
                self.lose(id, error.to_string());
                ShardFault::Lost
            }
        };
        self.events.push(write.event(Err(fault)));
    }

    /// Begins a flush for what gathered, unless one is running (C10).
    fn flush(&mut self, id: DriveId) {
        let drive = self.drives.get_mut(&id).expect("a drive of the pool");
        if drive.flush_running || drive.unflushed.is_empty() {
            return;
        }
        drive.flush_running = true;
        drive.counters.flushes += 1;
        std::mem::swap(&mut drive.unflushed, &mut drive.flushing);
        self.submit(id, Operation::Flush, DriveOperation::Flush, None);
    }

    fn flush_done(&mut self, id: DriveId, result: Result<(), DriveError>) {
        let drive = self.drives.get_mut(&id).expect("a drive of the pool");
        drive.flush_running = false;
        let mut flushed = std::mem::take(&mut drive.flushing);
        reached(Point::SlotFlushed);
        let result = match result {
            Ok(()) => Ok(()),
            // Nothing is known about what the flush was to make durable; the space behind a sparse
            // file may also be missing only now.
            Err(DriveError::NoSpace) => Err(ShardFault::NoSpace),
            Err(error) => {
                self.lose(id, error.to_string());
                Err(ShardFault::Lost)
            }
        };
        self.events.extend(flushed.drain(..).map(|write| write.event(result)));
        let drive = self.drives.get_mut(&id).expect("a drive of the pool");
        drive.flushing = flushed;
        if drive.state == DriveState::Active {
            self.flush(id);
        }
    }

    fn read_done(&mut self, id: DriveId, read: usize, range: bool, done: DriveCompletion) {
        let buffer = done.buffer;
        match done.result {
            Ok(()) => {}
            Err(DriveError::Lost(reason)) => {
                self.reads[read].fault = Some(ShardFault::Lost);
                self.lose(id, reason);
            }
            Err(error) => {
                let this = &mut self.reads[read];
                this.fault.get_or_insert(ShardFault::Io);
                let counts = u32::from(!this.whole);
                let drive = self.drives.get_mut(&id).expect("a drive of the pool");
                drive.read_errors += counts;
                if drive.read_errors >= READ_ERRORS_MAX {
                    self.lose(id, format!("{READ_ERRORS_MAX} reads failed, the last: {error}"));
                }
            }
        }
        let this = &mut self.reads[read];
        this.waiting -= 1;
        if this.fault.is_none() && (!range || this.with_header) {
            let page = buffer.as_ref().map(|buffer| &buffer[..SLOT_HEADER]);
            let header = page.and_then(|page| SlotHeader::decode(page).ok());
            let same = header.as_ref().is_some_and(|header| {
                let shard = usize::from(this.shard);
                header.check_identity(self.cluster, this.stripe, shard, &this.place).is_ok()
            }) || is_planted(Planted::ReadWithoutChecks);
            if same {
                if self.headers.len() >= HEADERS_MAX {
                    self.headers.clear();
                }
                let key = (this.place.drive, this.place.slot);
                self.headers.insert(key, (this.stripe, this.shard, this.place.generation));
            } else {
                this.fault = Some(ShardFault::Identity);
            }
            let checked = this.whole && !is_planted(Planted::RebuildWithoutChecks);
            if let (true, true, Some(header), Some(bytes)) = (checked, same, &header, &buffer) {
                let mut columns = bytes[SLOT_HEADER..].chunks_exact(COLUMN).enumerate();
                if columns.any(|(index, column)| header.check_column(index, column).is_err()) {
                    this.fault = Some(ShardFault::Damaged);
                }
            }
        }
        if range {
            this.buffer = buffer;
        }
        if this.waiting == 0 {
            let this = self.reads.remove(read);
            self.read_over(this);
        }
    }

    fn read_over(&mut self, read: Read) {
        // Once more, now that the range is here: the slot may have been granted again meanwhile (C3).
        let key = (read.place.drive, read.place.slot);
        let known =
            self.headers.get(&key) == Some(&(read.stripe, read.shard, read.place.generation));
        let fault = read.fault.or((!known).then_some(ShardFault::Identity));
        let counters =
            &mut self.drives.get_mut(&read.place.drive).expect("a drive of the pool").counters;
        let result = match (fault, read.buffer) {
            (None, Some(buffer)) => {
                counters.reads += 1;
                counters.read_bytes += read.length as u64;
                // Buffers stay on their core; what a link sends may not.
                Ok(Bytes::copy_from_slice(&buffer[read.start..read.start + read.length]))
            }
            (fault, _) => Err(fault.unwrap_or(ShardFault::Io)),
        };
        counters.identity_faults += u64::from(result == Err(ShardFault::Identity));
        if let Err(fault @ (ShardFault::Identity | ShardFault::Io)) = result {
            let (drive, slot) = key;
            let suspect = (!read.whole).then_some(read.stripe);
            self.events.push(DriveEvent::Fault { drive, slot, fault, suspect });
        }
        self.events.push(DriveEvent::Read { number: read.number, result });
    }
}
