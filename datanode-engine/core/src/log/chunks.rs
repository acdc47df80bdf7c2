//! The memory of the log: chunks of 1 MiB, filled from front to back, used again when nothing in
//! them is live.
//!
//! A record is copied once, from the message into its chunk; from then on it is a shared slice of
//! that chunk, for forwarding, fetching, copying and the vault alike. A chunk is used again when its
//! last live entry was released *and* no such slice is on its way through a link any more; the
//! slices' own count says so. A record longer than a chunk has one of its own, of whole MiBs.
//!
//! A sixteenth of the memory is kept for records without data, which make room (C13).
//!
//! The caller may have the kernel told about new chunks (huge pages); a chunk stays where it is until the
//! log ends, unless it was made for one long record.
//!
//! Chunks with a few live entries are emptied by moving those (compaction), so that the log holds
//! what its capacity says whatever the order of releases is.

use bytes::{Bytes, BytesMut};
use std::collections::VecDeque;
use std::mem::MaybeUninit;

/// Bytes of a chunk, and the unit of the log's capacity.
pub const CHUNK: usize = 1 << 20;

/// Is told about each new chunk's memory before it is used.
pub type Advice = fn(&mut [MaybeUninit<u8>]);

/// Names a chunk.
pub type ChunkIndex = u32;

/// What memory is wanted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Claim {
    /// A record with data.
    Data,
    /// A record without data, which may also use the reserve (C13).
    Reserve,
    /// What must have room: it has had room elsewhere, or makes some.
    Forced,
}

struct Chunk {
    /// The rest of the chunk; empty between appends. Its allocation is the whole chunk.
    tail: BytesMut,
    units: usize,
    state: ChunkState,
    live_entries: u32,
    live_bytes: usize,
    /// Positions of the entries that were put here lie in this range.
    first: u64,
    last: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ChunkState {
    /// Being filled.
    Open,
    /// Full, with live entries.
    Full,
    /// Nothing is live; slices may be on their way through links.
    Draining,
    /// Ready to be filled.
    Free,
    /// Its memory was given back (only chunks of more than one unit).
    Gone,
}

/// The chunks of a log.
pub struct Chunks {
    chunks: Vec<Chunk>,
    open: Option<ChunkIndex>,
    free: Vec<ChunkIndex>,
    draining: VecDeque<ChunkIndex>,
    gone: Vec<ChunkIndex>,
    advice: Option<Advice>,
    units_max: usize,
    /// The part of `units_max` that only [`Claim::Reserve`] uses.
    units_reserved: usize,
    /// Units of chunks that are open, full or draining.
    units_used: usize,
}

impl Chunks {
    /// No chunk yet; `units_max` of them at most, unless forced.
    pub fn new(units_max: usize) -> Chunks {
        Chunks {
            chunks: Vec::new(),
            open: None,
            free: Vec::new(),
            draining: VecDeque::new(),
            gone: Vec::new(),
            advice: None,
            units_max,
            units_reserved: if units_max < 4 { 0 } else { (units_max / 16).max(1) },
            units_used: 0,
        }
    }

    /// Has `advice` told about chunks that are made from here on.
    pub fn set_advice(&mut self, advice: Option<Advice>) {
        self.advice = advice;
    }

    /// Units in use.
    pub fn units_used(&self) -> usize {
        self.units_used
    }

    /// Most units, unless forced.
    pub fn units_max(&self) -> usize {
        self.units_max
    }

    /// Memory for `length` more bytes in one piece, to be filled and then [`seal`](Chunks::seal)ed (or
    /// given back by truncating it to empty). `None` when the log is full for such a claim.
    pub fn room(&mut self, length: usize, claim: Claim) -> Option<&mut BytesMut> {
        let units_max = match claim {
            Claim::Data => self.units_max - self.units_reserved,
            Claim::Reserve => self.units_max,
            Claim::Forced => usize::MAX,
        };
        if self.units_used > units_max {
            // Also what is left of an open chunk is the reserve's then.
            self.reclaim();
            if self.units_used > units_max {
                return None;
            }
        }
        let open = self.open.filter(|&open| {
            let chunk = &self.chunks[open as usize];
            chunk.tail.capacity() >= length
        });
        let index = match open {
            Some(open) => open,
            None => {
                let units = length.div_ceil(CHUNK).max(1);
                self.reclaim();
                if units > units_max - self.units_used.min(units_max) {
                    return None;
                }
                self.close_open();
                let index = self.begin(units);
                self.open = Some(index);
                index
            }
        };
        Some(&mut self.chunks[index as usize].tail)
    }

    /// The bytes that were put into [`room`](Chunks::room) are the entry of this position.
    pub fn seal(&mut self, position: u64) -> (ChunkIndex, Bytes) {
        let index = self.open.expect("room was given");
        let chunk = &mut self.chunks[index as usize];
        let bytes = chunk.tail.split().freeze();
        if chunk.live_entries == 0 {
            (chunk.first, chunk.last) = (position, position);
        }
        chunk.first = chunk.first.min(position);
        chunk.last = chunk.last.max(position);
        chunk.live_entries += 1;
        chunk.live_bytes += bytes.len();
        (index, bytes)
    }

    /// An entry of that many bytes is live no more; its slice was dropped.
    pub fn release(&mut self, index: ChunkIndex, length: usize) {
        let chunk = &mut self.chunks[index as usize];
        chunk.live_entries -= 1;
        chunk.live_bytes -= length;
        if chunk.live_entries == 0 && chunk.state == ChunkState::Full {
            chunk.state = ChunkState::Draining;
            self.draining.push_back(index);
        }
    }

    /// Makes chunks free that nothing refers to any more.
    fn reclaim(&mut self) {
        for _ in 0..self.draining.len() {
            let Some(index) = self.draining.pop_front() else { return };
            let chunk = &mut self.chunks[index as usize];
            if !chunk.tail.try_reclaim(chunk.units * CHUNK) {
                self.draining.push_back(index);
                continue;
            }
            self.units_used -= chunk.units;
            if chunk.units == 1 {
                chunk.state = ChunkState::Free;
                self.free.push(index);
            } else {
                chunk.state = ChunkState::Gone;
                chunk.tail = BytesMut::new();
                self.gone.push(index);
            }
        }
    }

    fn close_open(&mut self) {
        let Some(open) = self.open.take() else { return };
        let chunk = &mut self.chunks[open as usize];
        chunk.state = ChunkState::Full;
        if chunk.live_entries == 0 {
            chunk.state = ChunkState::Draining;
            self.draining.push_back(open);
        }
    }

    fn begin(&mut self, units: usize) -> ChunkIndex {
        self.units_used += units;
        if units == 1
            && let Some(index) = self.free.pop()
        {
            self.chunks[index as usize].state = ChunkState::Open;
            return index;
        }
        let mut tail = BytesMut::with_capacity(units * CHUNK);
        if let Some(advice) = self.advice {
            advice(tail.spare_capacity_mut());
        }
        let chunk = Chunk {
            tail,
            units,
            state: ChunkState::Open,
            live_entries: 0,
            live_bytes: 0,
            first: 0,
            last: 0,
        };
        match self.gone.pop() {
            Some(index) => {
                self.chunks[index as usize] = chunk;
                index
            }
            None => {
                self.chunks.push(chunk);
                u32::try_from(self.chunks.len() - 1).expect("fewer than 2^32 chunks")
            }
        }
    }

    /// The chunk to empty by moving its live entries, and the range of their positions: when the
    /// log is nearly full and it pays.
    pub fn sparsest(&mut self) -> Option<(ChunkIndex, u64, u64)> {
        if self.units_used * 8 < self.units_max * 7 {
            return None;
        }
        self.reclaim();
        if self.units_used * 8 < self.units_max * 7 {
            return None;
        }
        let worth = |chunk: &Chunk| {
            chunk.state == ChunkState::Full && chunk.live_bytes * 8 < chunk.units * CHUNK * 7
        };
        let candidates = self.chunks.iter().enumerate().filter(|(_, chunk)| worth(chunk));
        let (index, chunk) = candidates.min_by_key(|(_, chunk)| chunk.live_bytes)?;
        Some((index as ChunkIndex, chunk.first, chunk.last))
    }
}
