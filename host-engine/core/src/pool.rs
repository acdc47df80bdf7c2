//! Reading frames from flash and pool, as state machines without a task: the direct reads.
//!
//! Frames of one part that are close to each other are one range. A range goes to flash; what is not
//! there, or fails its check, goes to the shard's drive; each of its frames is checked at its address (C3). What cannot be read that way (slots
//! unknown, drive lost, a fault, a failed check) is left to a task (`solve`). Ranges stay here until answered: while the
//! controller is away they wait, and so does the guest.

use crate::buffer::WriteKey;
use crate::handles::Places;
use crate::map::group_of;
use crate::paging::Waiter;
use crate::publish::ReadKey;
use crate::request::GuestError;
use crate::state::{Asked, State};
use cleave_format::address::Address;
use cleave_format::frame;
use cleave_format::ids::{BlockIndex, StripeId, VdiskId};
use cleave_format::layout::{PART, SHARD};
use cleave_runtime::links::Class;
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::time::Moment;
use cleave_wire::{HostMessage, ShardFault, encode_header};
use std::time::Duration;

/// Names a range that is being read.
pub type RangeKey = u64;

/// Frames that lie at most this far apart are read together, in bytes.
const GAP_MAX: u32 = 8 << 10;

/// Where a stripe lies that has a shard on a lost drive is asked for again after this.
const LOCATE_AGAIN: Duration = Duration::from_secs(10);
/// Stripes of which it is remembered when that was.
const LOCATED_MAX: usize = 4096;

/// Who gets a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Sink {
    /// A guest's read.
    Read {
        /// Which.
        read: ReadKey,
        /// Its block.
        block: BlockIndex,
    },
    /// A write that merges a partial block.
    Merge {
        /// Which.
        write: WriteKey,
        /// Whose.
        vdisk: VdiskId,
        /// The block.
        block: BlockIndex,
    },
    /// The map: a piece of it.
    Piece {
        /// Whose.
        vdisk: VdiskId,
        /// Its group.
        group: u32,
        /// Which opening of the vdisk asked.
        generation: u64,
    },
}

/// A frame to read.
pub(crate) struct Wanted {
    pub address: Address,
    pub places: Option<Places>,
    pub sink: Sink,
}

/// What the map says about a block.
pub(crate) enum Lookup {
    /// It reads as zeros.
    Zeros,
    /// It has a frame.
    Frame(Wanted),
    /// Nothing: its group is not in memory.
    Out,
}

/// A range of a data shard, with the frames that are wanted of it.
pub(crate) struct RangeRead {
    pub stripe: StripeId,
    pub places: Option<Places>,
    /// Sorted by address.
    pub frames: Vec<Wanted>,
    /// The slots were asked for again since the range was begun.
    relocated: bool,
}

/// What a range needs that does not go directly.
pub(crate) enum SlowRead {
    /// To know where the stripe lies.
    Locate(RangeRead),
    /// To be solved from other shards.
    Solve(RangeRead),
}

/// Whether a frame is whole, and the one of this address (C3).
pub(crate) fn is_at(frame: &[u8], address: &Address) -> bool {
    if is_planted(Planted::ChecksumWithoutAddress) {
        return frame::check_in_log(frame).is_ok();
    }
    frame::check_at(frame, address).is_ok()
}

impl RangeRead {
    /// The data shard.
    pub fn shard(&self) -> usize {
        self.frames[0].address.shard()
    }

    /// First byte in the shard, and bytes.
    pub fn range(&self) -> (u32, u32) {
        let (first, last) = (&self.frames[0].address, &self.frames[self.frames.len() - 1].address);
        (first.shard_offset() as u32, last.offset + last.length - first.offset)
    }

    /// Frames of blocks among those that are wanted.
    fn blocks(&self) -> u64 {
        let is_block = |wanted: &&Wanted| !matches!(wanted.sink, Sink::Piece { .. });
        self.frames.iter().filter(is_block).count() as u64
    }

    /// The frame within the range's bytes, if it passes its check (C3).
    pub fn check<'a>(&self, wanted: &Wanted, bytes: &'a [u8]) -> Option<&'a [u8]> {
        let start = (wanted.address.offset - self.frames[0].address.offset) as usize;
        let frame = bytes.get(start..start + wanted.address.length as usize)?;
        let good = is_at(frame, &wanted.address);
        (good || is_planted(Planted::ReadWithoutChecks)).then_some(frame)
    }
}

impl State {
    /// The frame that the map names for a block.
    pub fn wanted(&self, vdisk: VdiskId, block: BlockIndex, sink: Sink) -> Lookup {
        let Some(entry) = self.map.get(vdisk, block) else { return Lookup::Out };
        match self.map.resolve(entry) {
            Some((address, places)) => Lookup::Frame(Wanted { address, places, sink }),
            None => Lookup::Zeros,
        }
    }

    /// Reads frames, those of one part together.
    pub fn read_frames(&mut self, mut wanted: Vec<Wanted>) {
        wanted.sort_by_key(|wanted| wanted.address);
        let mut range: Option<RangeRead> = None;
        for next in wanted {
            if let Some(open) = &mut range {
                let last = open.frames[open.frames.len() - 1].address;
                let near = open.stripe == next.address.stripe
                    && last.offset as usize / PART == next.address.offset as usize / PART
                    && next.address.offset.saturating_sub(last.offset + last.length) <= GAP_MAX;
                if near {
                    open.frames.push(next);
                    continue;
                }
            }
            let begun = RangeRead {
                stripe: next.address.stripe,
                places: next.places.clone(),
                frames: vec![next],
                relocated: false,
            };
            if let Some(done) = range.replace(begun) {
                self.read_range(done);
            }
        }
        if let Some(done) = range {
            self.read_range(done);
        }
    }

    /// Begins a range: from flash if it is there.
    fn read_range(&mut self, range: RangeRead) {
        let (first, (_, length)) = (range.frames[0].address, range.range());
        self.next_range += 1;
        let key = self.next_range;
        match self.flash.read(range.stripe, first.offset, length, key) {
            true => drop(self.ranges.insert(key, range)),
            false => self.read_from_pool(range),
        }
    }

    /// Begins a range that flash does not have.
    fn read_from_pool(&mut self, range: RangeRead) {
        self.stats.reads_pool += range.blocks();
        let vdisk = match range.frames[0].sink {
            Sink::Read { read, .. } => self.reads.get(&read).map(|read| read.vdisk),
            Sink::Merge { vdisk, .. } | Sink::Piece { vdisk, .. } => Some(vdisk),
        };
        if let Some(vdisk) = vdisk {
            self.read_ahead(vdisk, &range);
        }
        self.start_range(range);
    }

    /// What flash gave for a range: nothing when it lost it meanwhile.
    pub fn flash_read(&mut self, key: RangeKey, bytes: Option<&[u8]>) {
        let Some(range) = self.ranges.remove(&key) else { return };
        let Some(bytes) = bytes else { return self.read_from_pool(range) };
        let all = range.blocks();
        let part = (range.frames[0].address.offset as usize / PART) as u8;
        let stripe = range.stripe;
        if is_planted(Planted::FlashWithoutChecks) {
            return self.deliver_unchecked(&range, bytes);
        }
        let failed = self.deliver_checked(range, bytes);
        let count = failed.as_ref().map_or(0, |range| range.frames.len());
        self.stats.reads_flash += all - failed.as_ref().map_or(0, RangeRead::blocks);
        if let Some(range) = failed {
            self.stats.flash_checks_failed += count as u64;
            self.flash_was_wrong(stripe, part);
            self.read_from_pool(range);
        }
    }

    /// Begins a range in the pool, or gives it to a task.
    pub fn start_range(&mut self, range: RangeRead) {
        let Some(places) = &range.places else {
            return self.slow.push_back(SlowRead::Locate(range));
        };
        match places.get(range.shard()) {
            Some(place) if self.lost_drives.contains(&place.drive) => self.solve_or_locate(range),
            Some(_) => {
                self.next_range += 1;
                self.ranges.insert(self.next_range, range);
                self.unsent_ranges.push_back(self.next_range);
                self.send_ranges();
            }
            None => self.slow.push_back(SlowRead::Solve(range)),
        }
    }

    /// A range whose drive is lost: its shard may have been rebuilt elsewhere (C16), which is asked now and then.
    fn solve_or_locate(&mut self, mut range: RangeRead) {
        let now = self.now;
        let lately = |before: &Moment| now.since(*before) < LOCATE_AGAIN;
        if range.relocated || self.located.get(&range.stripe).is_some_and(lately) {
            return self.slow.push_back(SlowRead::Solve(range));
        }
        if self.located.len() >= LOCATED_MAX {
            self.located.clear();
        }
        self.located.insert(range.stripe, now);
        range.relocated = true;
        self.slow.push_back(SlowRead::Locate(range));
    }

    /// Sends ranges that wait for the connection.
    pub fn send_ranges(&mut self) {
        let Some(connection) = self.ready(Class::Read) else { return };
        while let Some(key) = self.unsent_ranges.pop_front() {
            let Some(range) = self.ranges.get(&key) else { continue };
            let (offset, length) = range.range();
            let (stripe, shard) = (range.stripe, range.shard());
            let places = range.places.as_ref().expect("a range that is begun has its places");
            let place = places[shard];
            let request = self.request_number();
            let message =
                HostMessage::Read { request, place, stripe, shard: shard as u8, offset, length };
            let lane = (key % u64::from(cleave_runtime::links::LANES)) as u8;
            let header = encode_header(&message);
            if self.links.send(connection, lane, &[header]).is_err() {
                return self.unsent_ranges.push_front(key);
            }
            self.asked.insert(request, (Class::Read, Asked::Range(key)));
        }
    }

    /// The answer to a range.
    pub fn range_read(
        &mut self,
        key: RangeKey,
        result: Result<(), ShardFault>,
        mut payload: Message,
    ) {
        let Some(mut range) = self.ranges.remove(&key) else { return };
        match result {
            Ok(()) => {
                let bytes = payload.take_rest();
                self.stats.pool_bytes += bytes.len() as u64;
                self.distribute(range, &bytes);
            }
            // The slot was given to another stripe: this one lies elsewhere by now (C16).
            Err(ShardFault::Identity) if !range.relocated => {
                range.relocated = true;
                self.slow.push_back(SlowRead::Locate(range));
            }
            Err(ShardFault::Lost) => self.solve_or_locate(range),
            Err(_) => self.slow.push_back(SlowRead::Solve(range)),
        }
    }

    /// Gives each frame to who wants it; what fails its check is solved from other shards.
    fn distribute(&mut self, range: RangeRead, bytes: &[u8]) {
        if let Some(failed) = self.deliver_checked(range, bytes) {
            self.stats.checks_failed += failed.frames.len() as u64;
            self.tell_damaged(failed.stripe);
            self.slow.push_back(SlowRead::Solve(failed));
        }
    }

    /// Gives each frame that passes its check to who wants it, and the others back.
    fn deliver_checked(&mut self, mut range: RangeRead, bytes: &[u8]) -> Option<RangeRead> {
        let mut failed = Vec::new();
        let mut good = Vec::with_capacity(range.frames.len());
        for (index, wanted) in range.frames.iter().enumerate() {
            match range.check(wanted, bytes) {
                Some(frame) => good.push((wanted.sink, frame)),
                None => failed.push(index),
            }
        }
        for (sink, frame) in good {
            self.deliver(sink, Ok(frame));
        }
        if failed.is_empty() {
            return None;
        }
        let mut index = 0;
        range.frames.retain(|_| {
            index += 1;
            failed.contains(&(index - 1))
        });
        Some(range)
    }

    /// Gives each frame to who wants it, whatever it is: for a planted bug.
    fn deliver_unchecked(&mut self, range: &RangeRead, bytes: &[u8]) {
        for wanted in &range.frames {
            let start = (wanted.address.offset - range.frames[0].address.offset) as usize;
            let frame = &bytes[start..start + wanted.address.length as usize];
            self.deliver(wanted.sink, Ok(frame));
        }
    }

    /// All frames of a range, from bytes that were checked, or the error for all of them.
    pub fn deliver_range(&mut self, range: &RangeRead, bytes: Result<&[u8], GuestError>) {
        for wanted in &range.frames {
            let frame = bytes.and_then(|b| range.check(wanted, b).ok_or(GuestError::Unreadable));
            self.deliver(wanted.sink, frame);
        }
    }

    /// A range that cannot be read. A stripe is freed when the map names it no more: what a block has got
    /// since the read began is read in its place. True when that was not all of it.
    pub fn fail_range(&mut self, range: RangeRead, error: GuestError) -> bool {
        let mut failed = false;
        for wanted in range.frames {
            let (vdisk, block) = match wanted.sink {
                Sink::Read { read, block } => match self.reads.get(&read) {
                    Some(read) => (read.vdisk, block),
                    None => continue,
                },
                Sink::Merge { vdisk, block, .. } => (vdisk, block),
                // A piece is current for as long as its group is away, and its stripe is not freed.
                sink @ Sink::Piece { .. } => {
                    failed = true;
                    self.deliver(sink, Err(error));
                    continue;
                }
            };
            let group = group_of(block.slice());
            match wanted.sink {
                Sink::Read { read, block } if self.map.is_out(vdisk, group) => {
                    let unreadable = Some(wanted.address);
                    self.wait_for_page(vdisk, group, Waiter::Read { read, block, unreadable });
                    self.begin_fetches();
                }
                Sink::Read { read, block }
                    if self.address(vdisk, block) != Some(wanted.address) =>
                {
                    self.read_again(read, block);
                }
                // What it merges onto changes only after it (C6).
                sink => {
                    failed = true;
                    self.deliver(sink, Err(error));
                }
            }
        }
        failed
    }

    fn deliver(&mut self, sink: Sink, frame: Result<&[u8], GuestError>) {
        match sink {
            Sink::Read { read, block } => self.fill(read, block, frame),
            Sink::Merge { write, vdisk, block } => self.merge_read(write, vdisk, block, frame),
            Sink::Piece { vdisk, group, generation } => {
                self.page_read((vdisk, group, generation), frame);
            }
        }
    }
}

/// The range of whole 64-byte chunks around a range of a shard.
pub(crate) fn chunks_around(offset: u32, length: u32) -> (u32, u32) {
    let start = offset / 64 * 64;
    let end = (offset + length).next_multiple_of(64).min(SHARD as u32);
    (start, end - start)
}
