//! Taking writes: split by slice, merge partial blocks, encode, number, buffer, append.
//!
//! Each slice that a request touches is one part, and becomes one record, or none when it changes
//! nothing. A part with partial blocks merges them onto the newest content taken (C6); where that is in
//! the pool, the part waits for the read, and parts that overlap it queue behind it. So parts that
//! overlap are numbered in the order taken, and no others wait.

use crate::buffer::{ChunkKey, Record, RecordKey, Visible, WriteKey};
use crate::map::group_of;
use crate::paging::Waiter;
use crate::pool::{Lookup, Sink};
use crate::request::{GuestError, Operation, RANGE_MAX, SECTOR, TRANSFER_MAX};
use crate::state::State;
use bytes::Bytes;
use cleave_codec::{Encoded, is_zero};
use cleave_format::frame::{self, FRAME_HEADER, TAG};
use cleave_format::ids::{BlockIndex, SliceIndex, VdiskId, Version};
use cleave_format::layout::{BLOCK, SLICE_BLOCKS};
use cleave_format::record::{Entry, EntryKind, RecordIdentity};
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::VecDeque;
use std::rc::Rc;

const BLOCK_BYTES: u64 = BLOCK as u64;
/// Most bytes that a block takes in a record.
const BLOCK_COST: u64 = (BLOCK + FRAME_HEADER + TAG + 8) as u64;
/// Most bytes of a record beside its blocks.
const RECORD_COST: u64 = 96;
/// Bytes of a chunk that frames are encoded into: it stays in memory until all records in it are
/// released. Frames of one record that take a quarter of it or more get memory of their own.
const ARENA: usize = 256 << 10;
/// Blocks whose fingerprints are computed in one turn: about 50 µs.
const FINGERPRINTS_A_TURN: usize = 16;
/// Blocks that wait for it: they keep the guest's data. Those beyond get theirs at destage.
const FINGERPRINTS_MAX: usize = 2048;

/// What a part writes.
#[derive(Clone)]
enum Source {
    /// `data[0]` goes to byte `offset` of the vdisk.
    Data { data: Rc<Buffer>, offset: u64 },
    /// Zeros.
    Zero(EntryKind),
}

/// One slice's part of a write.
pub(crate) struct Part {
    write: WriteKey,
    vdisk: VdiskId,
    slice: SliceIndex,
    /// First byte and the byte after the last, on the vdisk.
    range: (u64, u64),
    source: Source,
    /// Content below partial blocks, by block in the slice; `None` until it is read.
    bases: Vec<(u16, Option<Box<[u8; BLOCK]>>)>,
}

/// A part that waits for a read, or behind one that does.
pub(crate) struct Waiting {
    part: Part,
    /// Its bases were asked for.
    begun: bool,
}

impl Waiting {
    /// Bytes that it will take in the buffer, at most.
    pub fn reserved(&self) -> u64 {
        let (first, last) = self.part.blocks();
        let partial = |block| self.part.within(block) != (0, BLOCK);
        let blocks = match self.part.source {
            Source::Data { .. } => u64::from(last - first) + 1,
            // Whole blocks become entries without content (C5).
            Source::Zero(_) => u64::from(partial(first)) + u64::from(last > first && partial(last)),
        };
        blocks * BLOCK_COST + RECORD_COST
    }
}

impl Part {
    /// First and last block that it touches, within the slice.
    fn blocks(&self) -> (u16, u16) {
        let within = |byte: u64| BlockIndex(byte / BLOCK_BYTES).within_slice();
        (within(self.range.0), within(self.range.1 - 1))
    }

    fn overlaps(&self, other: &Part) -> bool {
        let ((first, last), (from, to)) = (self.blocks(), other.blocks());
        first <= to && from <= last
    }

    /// The part's range within a block: `0..BLOCK` for a whole one.
    fn within(&self, block: u16) -> (usize, usize) {
        let start = self.slice.block(block).0 * BLOCK_BYTES;
        let from = self.range.0.saturating_sub(start).min(BLOCK_BYTES);
        let to = (self.range.1 - start).min(BLOCK_BYTES);
        (from as usize, to as usize)
    }
}

/// Where a fingerprint's plaintext is.
enum Plain {
    Guest(Rc<Buffer>, usize),
    Merged(Box<[u8; BLOCK]>),
}

/// A block whose fingerprint is computed once its record is on its way.
pub(crate) struct FingerprintJob {
    record: RecordKey,
    entry: usize,
    codec: usize,
    plain: Plain,
}

/// What a request takes in the buffer, at most.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Cost {
    pub bytes: u64,
    pub blocks: u64,
    pub records: u64,
}

/// What a write, discard or write-zeroes is.
pub(crate) struct WriteRequest {
    source: Source,
    range: (u64, u64),
    /// What the guest asked for, before rounding: what its order goes by (C23).
    asked: (u64, u64),
}

impl WriteRequest {
    /// What it takes in the buffer.
    pub fn cost(&self) -> Cost {
        if self.range.0 == self.range.1 {
            return Cost::default();
        }
        let first = self.range.0 / BLOCK_BYTES;
        let last = (self.range.1 - 1) / BLOCK_BYTES;
        let slices = last / u64::from(SLICE_BLOCKS) - first / u64::from(SLICE_BLOCKS) + 1;
        let blocks = last - first + 1;
        let whole = match self.source {
            Source::Data { .. } => blocks,
            Source::Zero(_) => blocks.min(2),
        };
        Cost { bytes: whole * BLOCK_COST + slices * RECORD_COST, blocks, records: slices }
    }
}

/// Whether a range is one that a request may have.
pub(crate) fn is_within(offset: u64, length: u64, size: u64, longest: u64) -> bool {
    offset.is_multiple_of(SECTOR)
        && length.is_multiple_of(SECTOR)
        && length <= longest
        && offset.checked_add(length).is_some_and(|end| end <= size)
}

/// Makes a request of an operation that changes something; gives it back as it was by `undo`.
pub(crate) fn request(operation: Operation, size: u64) -> Result<WriteRequest, GuestError> {
    let (source, offset, length, longest) = match operation {
        Operation::Write { offset, data } => {
            let length = data.len() as u64;
            (Source::Data { data: Rc::new(data), offset }, offset, length, TRANSFER_MAX)
        }
        Operation::WriteZeroes { offset, length, .. } => {
            (Source::Zero(EntryKind::Zero), offset, length, RANGE_MAX)
        }
        Operation::Discard { offset, length } => {
            (Source::Zero(EntryKind::Discard), offset, length, RANGE_MAX)
        }
        Operation::Read { .. } | Operation::Flush => return Err(GuestError::Range),
    };
    if !is_within(offset, length, size, longest) {
        return Err(GuestError::Range);
    }
    let mut range = (offset, offset + length);
    if matches!(source, Source::Zero(EntryKind::Discard)) {
        // C6: partial discards round inward.
        range.0 = range.0.next_multiple_of(BLOCK_BYTES);
        range.1 = (range.1 / BLOCK_BYTES * BLOCK_BYTES).max(range.0);
        if is_planted(Planted::RoundDiscardsOutward) {
            range.0 = offset / BLOCK_BYTES * BLOCK_BYTES;
            range.1 = (offset + length).next_multiple_of(BLOCK_BYTES);
        }
    }
    Ok(WriteRequest { source, range, asked: (offset, offset + length) })
}

/// Gives an operation back that was not taken.
pub(crate) fn undo(request: WriteRequest, original: (u64, u64)) -> Operation {
    let (offset, length) = original;
    match request.source {
        Source::Data { data, offset } => {
            let data = Rc::try_unwrap(data).expect("a request that was not taken is held once");
            Operation::Write { offset, data }
        }
        Source::Zero(EntryKind::Discard) => Operation::Discard { offset, length },
        Source::Zero(_) => Operation::WriteZeroes { offset, length, unmap: true },
    }
}

impl State {
    /// Takes a write of a vdisk that is served.
    pub fn take_write(&mut self, token: Token, vdisk: VdiskId, request: WriteRequest) {
        let WriteRequest { source, range, asked } = request;
        let (first, last) = match asked.0 == asked.1 {
            // Nothing is touched: a range that nothing overlaps.
            true => (u64::MAX, u64::MAX),
            false => (asked.0 / BLOCK_BYTES, (asked.1 - 1) / BLOCK_BYTES),
        };
        let write = self.writes.begin(token, vdisk, first, last);
        let slice_bytes = cleave_format::layout::SLICE;
        let mut from = range.0;
        while from < range.1 {
            let slice = SliceIndex((from / slice_bytes) as u32);
            let to = range.1.min((u64::from(slice.0) + 1) * slice_bytes);
            if from == range.0 || !is_planted(Planted::CompleteOnFirstPart) {
                self.writes.add_part(write);
            }
            let source = source.clone();
            self.take_part(Part {
                write,
                vdisk,
                slice,
                range: (from, to),
                source,
                bases: Vec::new(),
            });
            from = to;
        }
        self.end_part(write);
    }

    fn end_part(&mut self, write: WriteKey) {
        let mut published = Vec::new();
        self.writes.end_part(write, &mut published);
        self.publish(published);
    }

    fn take_part(&mut self, mut part: Part) {
        let key = (part.vdisk, part.slice);
        let behind = !self.waiting.is_empty()
            && !is_planted(Planted::MergeUnserialised)
            && self
                .waiting
                .get(&key)
                .is_some_and(|parts| parts.iter().any(|other| other.part.overlaps(&part)));
        if !behind {
            match self.begin_part(&mut part) {
                Ok(true) => return self.finish_part(part),
                Ok(false) => {}
                Err(error) => return self.fail_part(&part, error),
            }
        }
        let waiting = Waiting { part, begun: !behind };
        self.reserved += waiting.reserved();
        self.waiting.entry(key).or_default().push(waiting);
    }

    /// Finds what lies below the part's partial blocks; asks the pool for what is there. True when
    /// everything was at hand; an error when it is here and damaged.
    fn begin_part(&mut self, part: &mut Part) -> Result<bool, GuestError> {
        let (first, last) = part.blocks();
        let mut complete = true;
        for block in [first, last] {
            let whole = part.within(block) == (0, BLOCK);
            if whole || part.bases.iter().any(|(known, _)| *known == block) {
                continue;
            }
            let index = part.slice.block(block);
            let mut base = Box::new([0; BLOCK]);
            let mut below = None;
            let newest = match is_planted(Planted::MergeOntoPublished) {
                true => self.buffer.published_content(part.vdisk, index),
                false => self.buffer.newest(part.vdisk, index),
            };
            let found = match newest {
                Visible::Zero => true,
                Visible::Frame(bytes) => {
                    // Memory is trusted as little as any other place.
                    frame::check_in_log(&bytes).map_err(|_| GuestError::Unreadable)?;
                    self.decode(part.vdisk, &bytes, &mut base[..])?;
                    true
                }
                Visible::Map => {
                    let sink = Sink::Merge { write: part.write, vdisk: part.vdisk, block: index };
                    below = Some(self.wanted(part.vdisk, index, sink));
                    matches!(below, Some(Lookup::Zeros))
                }
                Visible::Unpublished(_) => unreachable!("merging does not wait for publication"),
            };
            complete &= found;
            part.bases.push((block, found.then_some(base)));
            match below {
                Some(Lookup::Frame(frame)) => self.read_frames(vec![frame]),
                Some(Lookup::Out) => {
                    let waiter = Waiter::Merge { write: part.write, block: index };
                    self.wait_for_page(part.vdisk, group_of(part.slice), waiter);
                    self.begin_fetches();
                }
                Some(Lookup::Zeros) | None => {}
            }
        }
        Ok(complete)
    }

    /// The pool gave the content below a partial block.
    pub fn merge_read(
        &mut self,
        write: WriteKey,
        vdisk: VdiskId,
        block: BlockIndex,
        frame: Result<&[u8], GuestError>,
    ) {
        let mut base = Box::new([0; BLOCK]);
        let decoded = frame.and_then(|frame| self.decode(vdisk, frame, &mut base[..]));
        self.merge_onto(write, vdisk, block, decoded.map(|()| base));
    }

    /// What lies below a partial block is known.
    pub fn merge_onto(
        &mut self,
        write: WriteKey,
        vdisk: VdiskId,
        block: BlockIndex,
        base: Result<Box<[u8; BLOCK]>, GuestError>,
    ) {
        let key = (vdisk, block.slice());
        let Some(parts) = self.waiting.get_mut(&key) else { return };
        let Some(place) = parts.iter().position(|waiting| waiting.part.write == write) else {
            return;
        };
        let part = &mut parts[place].part;
        match base {
            Ok(base) => {
                let within = block.within_slice();
                let slot = part.bases.iter_mut().find(|(known, _)| *known == within);
                slot.expect("only bases are asked for").1 = Some(base);
                if part.bases.iter().any(|(_, base)| base.is_none()) {
                    return;
                }
                let waiting = self.unwait(key, place);
                self.finish_part(waiting.part);
            }
            Err(error) => {
                let waiting = self.unwait(key, place);
                self.fail_part(&waiting.part, error);
            }
        }
        self.advance_waiting(key);
    }

    fn unwait(&mut self, key: (VdiskId, SliceIndex), place: usize) -> Waiting {
        let parts = self.waiting.get_mut(&key).expect("a part waits in its slice");
        let waiting = parts.remove(place);
        if parts.is_empty() {
            self.waiting.remove(&key);
        }
        self.reserved -= waiting.reserved();
        waiting
    }

    /// Begins parts that queued behind one that is gone.
    fn advance_waiting(&mut self, key: (VdiskId, SliceIndex)) {
        let mut place = 0;
        while let Some(parts) = self.waiting.get_mut(&key) {
            let Some(waiting) = parts.get(place) else { break };
            let free = !parts[..place].iter().any(|other| other.part.overlaps(&waiting.part));
            if waiting.begun || !free {
                place += 1;
                continue;
            }
            let mut waiting = self.unwait(key, place);
            match self.begin_part(&mut waiting.part) {
                Ok(true) => self.finish_part(waiting.part),
                Err(error) => self.fail_part(&waiting.part, error),
                Ok(false) => {
                    waiting.begun = true;
                    self.reserved += waiting.reserved();
                    self.waiting.entry(key).or_default().insert(place, waiting);
                    place += 1;
                }
            }
        }
    }

    fn fail_part(&mut self, part: &Part, error: GuestError) {
        if let Some(write) = self.writes.get_mut(part.write) {
            write.failed.get_or_insert(error);
        }
        self.end_part(part.write);
    }

    /// All that the part needs is there: makes its record.
    fn finish_part(&mut self, mut part: Part) {
        let Some(vdisk) = self.vdisks.get(&part.vdisk) else { return };
        let (codec, epoch) = (vdisk.codec, vdisk.epoch);
        let (first, last) = part.blocks();
        let mut entries: Vec<Entry> = Vec::new();
        let mut jobs: VecDeque<(usize, Plain)> = VecDeque::new();
        let mut stored = 0;
        let most = match part.source {
            Source::Data { .. } => usize::from(last - first + 1) * BLOCK_COST as usize,
            Source::Zero(_) => part.bases.len() * BLOCK_COST as usize,
        };
        // Frames that might not fit the arena are copied when their length is known: room kept for
        // what they could have become would be lost.
        let fits = self.arena.capacity() >= most;
        for block in first..=last {
            let merged = self.merge(&mut part, block);
            let plain = match (&merged, &part.source) {
                (Some(merged), _) => Some(&merged[..]),
                (None, Source::Zero(_)) => None,
                (None, Source::Data { data, offset }) => {
                    let start = (part.slice.block(block).0 * BLOCK_BYTES - offset) as usize;
                    Some(&data[start..start + BLOCK])
                }
            };
            let encoded = match plain {
                None => Encoded::Zero,
                Some(plain) => {
                    let out = if fits { &mut self.arena } else { &mut self.scratch };
                    self.codecs[codec].1.encode_block(plain, out)
                }
            };
            match encoded {
                Encoded::Frame { length } => {
                    let plain = match (merged, &part.source) {
                        (Some(merged), _) => Plain::Merged(merged),
                        (None, Source::Data { data, offset }) => {
                            let start = part.slice.block(block).0 * BLOCK_BYTES - offset;
                            Plain::Guest(Rc::clone(data), start as usize)
                        }
                        (None, Source::Zero(_)) => unreachable!("zeros have no frame"),
                    };
                    stored += u64::from(length >= BLOCK + FRAME_HEADER);
                    jobs.push_back((entries.len(), plain));
                    let length = length as u32;
                    entries.push(Entry { block, kind: EntryKind::Frame, blocks: 1, length });
                }
                Encoded::Zero => self.add_zero(&part, block, &mut entries),
            }
        }
        let (data, chunk) = self.encoded();
        let frames = jobs.len() as u64;
        if let Some(vdisk) = self.vdisks.get_mut(&part.vdisk) {
            vdisk.stats.encoded_bytes += frames * BLOCK_BYTES;
            vdisk.stats.frame_bytes += data.len() as u64;
            vdisk.stats.stored_blocks += stored;
            if matches!(part.source, Source::Data { .. }) {
                vdisk.stats.zero_blocks += u64::from(last - first) + 1 - frames;
            }
        }
        if entries.is_empty() {
            return self.end_part(part.write);
        }
        let identity = RecordIdentity {
            vdisk: part.vdisk,
            slice: part.slice,
            version: Version { epoch, sequence: self.sequences.take(part.vdisk, part.slice) },
            incarnation: self.config.incarnation,
        };
        let mut record = Record::new(identity, data, &entries, self.now);
        record.unpublished = Some(part.write);
        record.chunk = chunk;
        let key = self.buffer.insert(record, |_| true);
        let write =
            self.writes.get_mut(part.write).expect("a write has parts until it is published");
        write.records.push(key);
        self.log.push(part.slice, key);
        reached(Point::HostRecordBuffered);
        let job = |(entry, plain)| FingerprintJob { record: key, entry, codec, plain };
        let room = FINGERPRINTS_MAX.saturating_sub(self.fingerprints.len());
        self.fingerprints.extend(jobs.into_iter().take(room).map(job));
    }

    /// The frames that were just encoded, and the chunk that they are in, if not in memory of their own.
    fn encoded(&mut self) -> (Bytes, Option<ChunkKey>) {
        let length = self.scratch.len();
        if length >= ARENA / 4 {
            let data = Bytes::copy_from_slice(&self.scratch);
            self.scratch.clear();
            return (data, None);
        }
        if length > 0 {
            if self.arena.capacity() < length {
                self.arena.reserve(ARENA);
                self.buffer.begin_chunk(self.arena.capacity());
            }
            self.arena.extend_from_slice(&self.scratch);
            self.scratch.clear();
        }
        // An empty part of the arena would keep all of it.
        match self.arena.is_empty() {
            true => (Bytes::new(), None),
            false => (self.arena.split().freeze(), self.buffer.chunk()),
        }
    }

    /// Lays the part over what is below a partial block; `None` for a whole one.
    fn merge(&mut self, part: &mut Part, block: u16) -> Option<Box<[u8; BLOCK]>> {
        let place = part.bases.iter().position(|(known, _)| *known == block)?;
        let mut base = part.bases[place].1.take().expect("bases are complete");
        let (from, to) = part.within(block);
        match &part.source {
            Source::Zero(_) => base[from..to].fill(0),
            Source::Data { data, offset } => {
                let start = part.slice.block(block).0 * BLOCK_BYTES + from as u64 - offset;
                base[from..to].copy_from_slice(&data[start as usize..][..to - from]);
            }
        }
        Some(base)
    }

    /// Adds a zero block, unless it reads as zeros already and nothing of it is on its way.
    fn add_zero(&self, part: &Part, block: u16, entries: &mut Vec<Entry>) {
        let index = part.slice.block(block);
        // What is not in memory may have a frame.
        let empty = self.map.is_empty(part.vdisk, part.slice)
            || self.map.get(part.vdisk, index).is_some_and(|entry| entry.is_empty());
        if empty && !self.buffer.holds(part.vdisk, index) {
            return;
        }
        let kind = match part.source {
            Source::Zero(kind) => kind,
            Source::Data { .. } => EntryKind::Zero,
        };
        match entries.last_mut() {
            Some(last) if last.kind == kind && last.block + last.blocks == block => {
                last.blocks += 1;
            }
            _ => entries.push(Entry { block, kind, blocks: 1, length: 0 }),
        }
    }

    /// Decodes a frame whose checksum was checked, into `out`.
    pub fn decode(
        &mut self,
        vdisk: VdiskId,
        frame: &[u8],
        out: &mut [u8],
    ) -> Result<(), GuestError> {
        let vdisk = self.vdisks.get(&vdisk).ok_or(GuestError::NotServed)?;
        match self.codecs[vdisk.codec].1.decode(frame, out) {
            Ok(_) => Ok(()),
            Err(error) => {
                tracing::error!(%error, "a frame cannot be decoded");
                Err(match error {
                    cleave_codec::CodecError::KeyUnknown { .. }
                    | cleave_codec::CodecError::Authentication { .. } => GuestError::Key,
                    _ => GuestError::Unreadable,
                })
            }
        }
    }

    /// Computes fingerprints of blocks whose records are on their way. True when there were any.
    pub fn fingerprint_some(&mut self) -> bool {
        let count = self.fingerprints.len().min(FINGERPRINTS_A_TURN);
        for job in self.fingerprints.drain(..count) {
            if self.buffer.get(job.record).is_none() {
                continue;
            }
            let plain = match &job.plain {
                Plain::Guest(data, start) => &data[*start..*start + BLOCK],
                Plain::Merged(block) => &block[..],
            };
            debug_assert!(!is_zero(plain), "zeros have no frame");
            let fingerprint = self.codecs[job.codec].1.fingerprint(plain);
            self.buffer.set_fingerprint(job.record, job.entry, fingerprint);
        }
        count > 0
    }
}
