//! What the write buffer takes in memory, so that back-pressure can count it.
//!
//! Frames are written to chunks, one after the other; a chunk stays in memory until the last record in it is gone,
//! and counts as a whole until then. Tables double when they grow and do not shrink: what is in them
//! counts twice, and they have a part of the limit that nothing else uses, so that a flood of small
//! records followed by one of large ones stays within it.

use super::{Node, Record};
use cleave_format::ids::{BlockIndex, VdiskId};
use slab::Slab;

/// A record's places: in the table of records, its slice's list, the queues of destage and release, the log client.
const RECORD: u64 = 2 * size_of::<Record>() as u64 + 160;
/// A block's: its node, and its place in the map of chains, which is at least 7/16 full.
const NODE: u64 = 2 * (size_of::<Node>() as u64 + 8)
    + (size_of::<((VdiskId, BlockIndex), u32)>() as u64 + 1) * 16 / 7;

/// Bytes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Records' heads, entries and frames.
    pub content: u64,
    /// Tables of records and blocks.
    pub tables: u64,
}

impl Memory {
    /// What tables take for so many records and blocks.
    pub fn tables_of(records: u64, blocks: u64) -> u64 {
        records * RECORD + blocks * NODE
    }

    /// All of it.
    pub fn all(&self) -> u64 {
        self.content + self.tables
    }
}

/// Names a chunk while it has records.
pub type ChunkKey = u32;

struct Chunk {
    capacity: u64,
    records: u32,
}

/// The chunks that have records, and the one that is written to.
#[derive(Default)]
pub(super) struct Chunks {
    chunks: Slab<Chunk>,
    current: Option<ChunkKey>,
    bytes: u64,
}

impl Chunks {
    pub fn begin(&mut self, capacity: u64) {
        if let Some(full) = self.current.take() {
            self.end_if_empty(full);
        }
        self.bytes += capacity;
        self.current = Some(self.chunks.insert(Chunk { capacity, records: 0 }) as ChunkKey);
    }

    pub fn current(&self) -> Option<ChunkKey> {
        self.current
    }

    /// One more record is in the chunk.
    pub fn hold(&mut self, chunk: ChunkKey) {
        self.chunks[chunk as usize].records += 1;
    }

    /// One less.
    pub fn let_go(&mut self, chunk: ChunkKey) {
        self.chunks[chunk as usize].records -= 1;
        if self.current != Some(chunk) {
            self.end_if_empty(chunk);
        }
    }

    fn end_if_empty(&mut self, chunk: ChunkKey) {
        if self.chunks[chunk as usize].records == 0 {
            self.bytes -= self.chunks.remove(chunk as usize).capacity;
        }
    }

    /// Bytes of all of them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_counts_until_its_last_record_is_gone() {
        let mut chunks = Chunks::default();
        assert_eq!(chunks.current(), None);
        chunks.begin(100);
        let first = chunks.current().unwrap();
        chunks.hold(first);
        chunks.hold(first);
        chunks.begin(1000);
        let second = chunks.current().unwrap();
        assert_eq!(chunks.bytes(), 1100);
        chunks.let_go(first);
        assert_eq!(chunks.bytes(), 1100, "one record keeps all of it");
        chunks.let_go(first);
        assert_eq!(chunks.bytes(), 1000);
        chunks.hold(second);
        chunks.let_go(second);
        assert_eq!(chunks.bytes(), 1000, "it is still written to");
        chunks.begin(10);
        assert_eq!(chunks.bytes(), 10);
    }
}
