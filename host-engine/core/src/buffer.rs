//! The write buffer: every record that the log may still hold, and which of its blocks count.
//!
//! A record is *pending* until both controllers hold it, then *mirrored*; its write is published a
//! little later. Each block that a record gives content to is a node in the block's chain, newest
//! first. A node is dead, and gone from its chain, once a newer mirrored record covers its block or
//! its content is committed. A record without live nodes, and
//! held by no stripe on its way, is listed for release by the next commit (C4); until the
//! log has released it, its bytes stay here, because a log that lost everything is filled from here
//! (C7), and because both ends count the same bytes against the quota.
//!
//! Invariants: per slice, records are mirrored in the order of their versions, so what a mirrored
//! node covers is mirrored; at most one node of a chain is mirrored, and it is the last.
//!
//! A crash loses the buffer; the log has what is mirrored.

mod memory;
mod record;
mod release;

pub use memory::{ChunkKey, Memory};
pub use record::Record;

use crate::hash::Map;
use bytes::Bytes;
use cleave_format::footer::{FOOTER_ENTRY, Fingerprint};
use cleave_format::ids::{BlockIndex, SliceIndex, VdiskId, Version};
use cleave_format::record::EntryKind;
use cleave_runtime::planted::{Planted, is_planted};
use memory::Chunks;
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};

/// Names a record; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RecordKey {
    number: u64,
    index: u32,
}

/// Names a guest's write while it is unpublished.
pub type WriteKey = u64;

/// A block's part in a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeName {
    /// The record.
    pub record: RecordKey,
    /// Which of its entries.
    pub entry: u16,
    /// The block, within the slice.
    pub block: u16,
}

struct Node {
    record: u32,
    entry: u16,
    block: u16,
    older: u32,
    planned: bool,
    /// Its frame cannot be destaged: it stays planned for no stripe.
    damaged: bool,
}

const NONE: u32 = u32::MAX;
/// What a node without a frame weighs in a stripe, roughly: runs of them share a footer entry.
const ZERO_WEIGHT: u64 = 8;

/// What a read of a block finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Visible {
    /// Nothing: the map decides.
    Map,
    /// Zeros.
    Zero,
    /// A frame, with the log's checksum.
    Frame(Bytes),
    /// Mirrored and not published: the read waits for that write (C23).
    Unpublished(WriteKey),
}

/// The buffer of a core.
#[derive(Default)]
pub struct WriteBuffer {
    records: Slab<Record>,
    nodes: Slab<Node>,
    chains: Map<(VdiskId, BlockIndex), u32>,
    slices: Map<(VdiskId, SliceIndex), VecDeque<RecordKey>>,
    /// Mirrored and published records with live nodes that are in no stripe yet, oldest first.
    queue: BTreeMap<u64, u32>,
    /// Records without live nodes.
    releasable: BTreeMap<u64, u32>,
    releasable_bytes: u64,
    unplanned_weight: u64,
    /// Blocks without a frame among these.
    unplanned_zeros: u64,
    bytes: u64,
    /// Memory of records, beside chunks and tables.
    payload: u64,
    chunks: Chunks,
    covered: u64,
    next: u64,
}

impl WriteBuffer {
    /// Puts a record in, as the newest content of those of its blocks for which `live` holds.
    pub fn insert(&mut self, mut record: Record, live: impl Fn(u16) -> bool) -> RecordKey {
        self.next += 1;
        record.number = self.next;
        self.bytes += record.length() as u64;
        self.payload += record.payload();
        if let Some(chunk) = record.chunk {
            self.chunks.hold(chunk);
        }
        let (vdisk, slice) = (record.identity.vdisk, record.identity.slice);
        let mirrored = record.mirrored;
        let index = self.records.insert(record) as u32;
        let mut count = 0;
        for number in 0..self.records[index as usize].entries.len() {
            let entry = self.records[index as usize].entries[number].entry;
            for block in entry.block..entry.block + entry.blocks {
                if !live(block) {
                    continue;
                }
                let older = self.chains.get(&(vdisk, slice.block(block))).copied();
                let node = Node {
                    record: index,
                    entry: number as u16,
                    block,
                    older: older.unwrap_or(NONE),
                    planned: false,
                    damaged: false,
                };
                let node = self.nodes.insert(node) as u32;
                self.chains.insert((vdisk, slice.block(block)), node);
                count += 1;
            }
        }
        let record = &mut self.records[index as usize];
        record.live = count;
        let key = record.key(index);
        self.slices.entry((vdisk, slice)).or_default().push_back(key);
        if mirrored {
            self.records[index as usize].mirrored = false;
            self.mirrored(key);
        }
        key
    }

    /// A record, unless it was released or forgotten.
    pub fn get(&self, key: RecordKey) -> Option<&Record> {
        self.records.get(key.index as usize).filter(|record| record.number == key.number)
    }

    /// Remembers the fingerprint of an entry's block.
    pub fn set_fingerprint(&mut self, key: RecordKey, entry: usize, fingerprint: Fingerprint) {
        if let Some(record) = self.get_mut(key) {
            record.entries[entry].fingerprint = Some(fingerprint);
        }
    }

    fn get_mut(&mut self, key: RecordKey) -> Option<&mut Record> {
        self.records.get_mut(key.index as usize).filter(|record| record.number == key.number)
    }

    /// The log holds the record on both controllers: it covers what is older.
    pub fn mirrored(&mut self, key: RecordKey) {
        let Some(record) = self.get_mut(key) else { return };
        record.in_log = true;
        if !record.mirrored {
            record.mirrored = true;
            let (vdisk, slice) = (record.identity.vdisk, record.identity.slice);
            self.count_ready(key);
            for entry in 0..self.records[key.index as usize].entries.len() {
                let entry = self.records[key.index as usize].entries[entry].entry;
                for block in entry.block..entry.block + entry.blocks {
                    self.cover(vdisk, slice.block(block), key.index);
                }
            }
        }
        self.settle(key.index);
    }

    /// Counts a record's content as such that destage may take, if it is now: mirrored and published. Before,
    /// a read must wait for its write; from the map, where a commit brings it, it would not (C23).
    fn count_ready(&mut self, key: RecordKey) {
        if self.get(key).is_some_and(Record::is_ready) {
            let weights = self.live_nodes(key).map(|(_, node)| self.weight(node));
            let (weight, zeros) = weights.fold((0, 0), |(weight, zeros), of_it| {
                (weight + of_it, zeros + u64::from(of_it == ZERO_WEIGHT))
            });
            self.unplanned_weight += weight;
            self.unplanned_zeros += zeros;
        }
    }

    /// Ends every node below that of the record `by` in the block's chain.
    fn cover(&mut self, vdisk: VdiskId, block: BlockIndex, by: u32) {
        let mut node = self.chains.get(&(vdisk, block)).copied().unwrap_or(NONE);
        while node != NONE && self.nodes[node as usize].record != by {
            node = self.nodes[node as usize].older;
        }
        if node == NONE {
            return;
        }
        let mut older = std::mem::replace(&mut self.nodes[node as usize].older, NONE);
        while older != NONE {
            let next = self.nodes[older as usize].older;
            self.covered += 1;
            self.end_node(older);
            older = next;
        }
    }

    /// Takes a node, which is out of its chain, off its record.
    fn end_node(&mut self, index: u32) {
        let weight = self.weight(&self.nodes[index as usize]);
        let node = self.nodes.remove(index as usize);
        let record = &mut self.records[node.record as usize];
        debug_assert!(record.mirrored, "only mirrored content is covered or committed");
        record.live -= 1;
        if node.planned {
            record.planned -= 1;
        } else if record.is_ready() {
            self.unplanned_weight -= weight;
            self.unplanned_zeros -= u64::from(weight == ZERO_WEIGHT);
        }
        self.settle(node.record);
    }

    /// Puts a record where its state belongs: into the queue, or among the releasable ones.
    fn settle(&mut self, index: u32) {
        let record = &self.records[index as usize];
        if record.unplanned() > 0 {
            self.queue.insert(record.number, index);
        } else {
            self.queue.remove(&record.number);
        }
        let settled = record.live == 0 && record.held == 0 && !record.releasing;
        let releasable = record.mirrored && record.in_log && settled;
        let (number, length) = (record.number, record.length() as u64);
        let known = self.releasable.contains_key(&number);
        if releasable && !known {
            self.releasable.insert(number, index);
            self.releasable_bytes += length;
        } else if !releasable && known {
            self.releasable.remove(&number);
            self.releasable_bytes -= length;
        }
    }

    fn weight(&self, node: &Node) -> u64 {
        let length =
            self.records[node.record as usize].entries[usize::from(node.entry)].entry.length;
        if length == 0 { ZERO_WEIGHT } else { u64::from(length) + FOOTER_ENTRY as u64 }
    }

    /// The write that the record belongs to is published.
    pub fn published(&mut self, key: RecordKey) {
        let Some(record) = self.get_mut(key) else { return };
        if record.unpublished.take().is_some() {
            self.count_ready(key);
            self.settle(key.index);
        }
    }

    /// What a read of the block finds now (C23): the newest published content, or older content
    /// while newer is unmirrored; where mirrored content is unpublished, it waits.
    pub fn visible(&self, vdisk: VdiskId, block: BlockIndex) -> Visible {
        let mut at = self.chains.get(&(vdisk, block)).copied().unwrap_or(NONE);
        while at != NONE {
            let node = &self.nodes[at as usize];
            let record = &self.records[node.record as usize];
            if record.mirrored {
                return match record.unpublished {
                    Some(write) if !is_planted(Planted::ReadUnpublished) => {
                        Visible::Unpublished(write)
                    }
                    _ => self.content(node),
                };
            }
            at = node.older;
        }
        Visible::Map
    }

    /// The newest content taken, mirrored or not (C6).
    pub fn newest(&self, vdisk: VdiskId, block: BlockIndex) -> Visible {
        match self.chains.get(&(vdisk, block)) {
            Some(node) => self.content(&self.nodes[*node as usize]),
            None => Visible::Map,
        }
    }

    /// What [`newest`](WriteBuffer::newest) must not be: for a planted bug.
    pub fn published_content(&self, vdisk: VdiskId, block: BlockIndex) -> Visible {
        match self.visible(vdisk, block) {
            Visible::Unpublished(_) => self.newest(vdisk, block),
            published => published,
        }
    }

    fn content(&self, node: &Node) -> Visible {
        let record = &self.records[node.record as usize];
        match record.entries[usize::from(node.entry)].entry.kind {
            EntryKind::Zero | EntryKind::Discard => Visible::Zero,
            EntryKind::Frame | EntryKind::Reference => {
                Visible::Frame(record.frame(usize::from(node.entry)))
            }
        }
    }

    /// Whether any content of the block is here.
    pub fn holds(&self, vdisk: VdiskId, block: BlockIndex) -> bool {
        self.chains.contains_key(&(vdisk, block))
    }

    /// The slice's oldest unreleased record (C2).
    pub fn oldest(&mut self, vdisk: VdiskId, slice: SliceIndex) -> Option<Version> {
        let records = self.slices.get_mut(&(vdisk, slice))?;
        while let Some(key) = records.front().copied() {
            match self.records.get(key.index as usize) {
                Some(record) if record.number == key.number => {
                    return Some(record.identity.version);
                }
                _ => records.pop_front(),
            };
        }
        self.slices.remove(&(vdisk, slice));
        None
    }

    /// All records, in no particular order.
    pub fn records(&self) -> impl Iterator<Item = &Record> {
        self.records.iter().map(|(_, record)| record)
    }

    /// Mirrored records with content that is in no stripe yet, oldest first.
    pub fn queue(&self) -> impl Iterator<Item = (RecordKey, &Record)> {
        self.queue.values().map(|index| {
            let record = &self.records[*index as usize];
            (record.key(*index), record)
        })
    }

    /// The record's live nodes that are in no stripe yet, in order.
    pub fn unplanned(&self, key: RecordKey) -> impl Iterator<Item = NodeName> {
        let unplanned = self.live_nodes(key).filter(|(_, node)| !node.planned);
        unplanned.map(move |(_, node)| NodeName {
            record: key,
            entry: node.entry,
            block: node.block,
        })
    }

    fn live_nodes(&self, key: RecordKey) -> impl Iterator<Item = (u32, &Node)> {
        let record = self.get(key);
        let entries = record.into_iter().flat_map(|r| r.entries.iter().enumerate());
        entries
            .flat_map(|(number, e)| {
                let blocks = e.entry.block..e.entry.block + e.entry.blocks;
                blocks.map(move |block| (number as u16, block))
            })
            .filter_map(move |(entry, block)| {
                let index = self.find(&NodeName { record: key, entry, block })?;
                Some((index, &self.nodes[index as usize]))
            })
    }

    fn find(&self, name: &NodeName) -> Option<u32> {
        let record = self.get(name.record)?;
        let block = record.identity.slice.block(name.block);
        let mut at = self.chains.get(&(record.identity.vdisk, block)).copied()?;
        while at != NONE {
            let node = &self.nodes[at as usize];
            if node.record == name.record.index && node.entry == name.entry {
                return Some(at);
            }
            at = node.older;
        }
        None
    }

    /// Whether the node still counts.
    pub fn is_live(&self, name: &NodeName) -> bool {
        self.find(name).is_some()
    }

    /// A stripe takes the node in, or gives it back.
    pub fn set_planned(&mut self, name: &NodeName, planned: bool) {
        let Some(index) = self.find(name).filter(|index| !self.nodes[*index as usize].damaged)
        else {
            return;
        };
        let weight = self.weight(&self.nodes[index as usize]);
        let node = &mut self.nodes[index as usize];
        assert_ne!(node.planned, planned, "a node is in one stripe");
        node.planned = planned;
        let record = &mut self.records[node.record as usize];
        if planned {
            record.planned += 1;
            self.unplanned_weight -= weight;
            self.unplanned_zeros -= u64::from(weight == ZERO_WEIGHT);
        } else {
            record.planned -= 1;
            self.unplanned_weight += weight;
            self.unplanned_zeros += u64::from(weight == ZERO_WEIGHT);
        }
        self.settle(name.record.index);
    }

    /// The frame of a node that a stripe took in cannot be destaged. It goes into no other, and its
    /// record stays in the log until newer content covers it. False when it does not count any more.
    pub fn quarantine(&mut self, name: &NodeName) -> bool {
        let Some(index) = self.find(name) else { return false };
        let node = &mut self.nodes[index as usize];
        assert!(node.planned && !node.damaged, "a stripe found it");
        node.damaged = true;
        true
    }

    /// The node's content is committed: the map has it.
    pub fn committed(&mut self, name: &NodeName) {
        let Some(index) = self.find(name) else { return };
        let record = &self.records[name.record.index as usize];
        let block = (record.identity.vdisk, record.identity.slice.block(name.block));
        let older = self.nodes[index as usize].older;
        debug_assert_eq!(older, NONE, "what is below a mirrored node is covered");
        let head = self.chains[&block];
        if head == index {
            self.chains.remove(&block);
        } else {
            let mut above = head;
            while self.nodes[above as usize].older != index {
                above = self.nodes[above as usize].older;
            }
            self.nodes[above as usize].older = older;
        }
        self.end_node(index);
    }

    /// Bytes of records, as the log counts them.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of records that only wait for a commit to release them.
    pub fn releasable_bytes(&self) -> u64 {
        self.releasable_bytes
    }

    /// Bytes that the unplanned mirrored content takes in stripes.
    pub fn unplanned_weight(&self) -> u64 {
        self.unplanned_weight
    }

    /// Blocks of that content that have no frame: zeros and discards.
    pub fn unplanned_zeros(&self) -> u64 {
        self.unplanned_zeros
    }

    /// Contents of blocks that newer ones covered, since the start.
    pub fn covered(&self) -> u64 {
        self.covered
    }

    /// Blocks with buffered content, counting versions.
    #[cfg(test)]
    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    /// Records.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// A new chunk of memory for frames, of that many bytes; the one before takes no more.
    pub fn begin_chunk(&mut self, capacity: usize) {
        self.chunks.begin(capacity as u64);
    }

    /// The chunk that frames are written to now.
    pub fn chunk(&self) -> Option<ChunkKey> {
        self.chunks.current()
    }

    /// What the buffer takes in memory.
    pub fn memory(&self) -> Memory {
        Memory {
            content: self.payload + self.chunks.bytes(),
            tables: Memory::tables_of(self.records.len() as u64, self.nodes.len() as u64),
        }
    }
}

#[cfg(test)]
mod tests;
