//! How records leave the write buffer: released by a commit (C4), forgotten with their vdisk, or
//! numbered anew for another log (C7).

use super::record::BufferedEntry;
use super::{NONE, Record, RecordKey, WriteBuffer, ZERO_WEIGHT};
use cleave_format::footer::FOOTER_ENTRY;
use cleave_format::ids::{SliceIndex, VdiskId, Version};
use cleave_runtime::planted::{Planted, is_planted};

impl WriteBuffer {
    /// Records that the next commit can release, oldest first (C4).
    pub fn releasable(&self) -> impl Iterator<Item = RecordKey> {
        self.releasable.iter().map(|(number, index)| RecordKey { number: *number, index: *index })
    }

    /// Whether the commit of a stripe with `nodes` live nodes of the record releases it: the
    /// stripe is the only one that holds it.
    pub fn ends_with(&self, key: RecordKey, nodes: u32) -> bool {
        let ends =
            |r: &Record| r.mirrored && r.in_log && !r.releasing && r.live == nodes && r.held <= 1;
        self.get(key).is_some_and(ends)
    }

    /// A stripe on its way has content of the record. The record is not released before that
    /// stripe ended, also when the content is covered meanwhile: else the newer content could be
    /// committed and its version forgotten, and the stripe's commit, coming after it, would revive the older (C2).
    /// Another log ends the stripe (see [`renumber`](WriteBuffer::renumber)).
    pub fn hold(&mut self, key: RecordKey) {
        if let Some(record) = self.get_mut(key) {
            record.held += 1;
            self.settle(key.index);
        }
    }

    /// The stripe ended.
    pub fn let_go(&mut self, key: RecordKey) {
        if let Some(record) = self.get_mut(key) {
            record.held -= 1;
            self.settle(key.index);
        }
    }

    /// A commit lists the record, or does not after all.
    pub fn set_releasing(&mut self, key: RecordKey, releasing: bool) {
        if let Some(record) = self.get_mut(key) {
            record.releasing = releasing;
            self.settle(key.index);
        }
    }

    /// The log has released the record, if a commit still lists it: one that was appended to
    /// another log since (C7) stays. True when it is gone.
    pub fn release(&mut self, key: RecordKey) -> bool {
        let Some(record) = self.get(key).filter(|record| record.releasing) else { return false };
        assert_eq!(record.live, 0, "a record is released when nothing of it counts any more");
        self.remove(key.index);
        true
    }

    fn remove(&mut self, index: u32) -> Record {
        let record = self.records.remove(index as usize);
        self.bytes -= record.length() as u64;
        self.payload -= record.payload();
        if let Some(chunk) = record.chunk {
            self.chunks.let_go(chunk);
        }
        self.queue.remove(&record.number);
        if self.releasable.remove(&record.number).is_some() {
            self.releasable_bytes -= record.length() as u64;
        }
        record
    }

    /// Forgets a vdisk; the log has what is mirrored of it.
    pub fn forget(&mut self, vdisk: VdiskId) {
        let (nodes, weight) = (&mut self.nodes, &mut self.unplanned_weight);
        let zeros = &mut self.unplanned_zeros;
        let records = &self.records;
        self.chains.retain(|(owner, _), head| {
            let mut at = if *owner == vdisk { *head } else { NONE };
            while at != NONE {
                let node = nodes.remove(at as usize);
                let record = &records[node.record as usize];
                if record.is_ready() && !node.planned {
                    let length = record.entries[usize::from(node.entry)].entry.length;
                    *zeros -= u64::from(length == 0);
                    *weight -= match length {
                        0 => ZERO_WEIGHT,
                        _ => u64::from(length) + FOOTER_ENTRY as u64,
                    };
                }
                at = node.older;
            }
            *owner != vdisk
        });
        let of_it = self.records.iter().filter(|(_, record)| record.identity.vdisk == vdisk);
        let indices: Vec<u32> = of_it.map(|(index, _)| index as u32).collect();
        indices.into_iter().for_each(|index| drop(self.remove(index)));
        self.slices.retain(|(owner, _), _| *owner != vdisk);
    }

    /// The log is another one and holds nothing (C7): every record with content that counts gets a new
    /// version by `version`, in order, and keeps that content alone; the others are dropped. What newer
    /// content covers must not be sent again: under the new version it would count as newer
    /// than what covered it, which may be committed and is in no log then (C2). Returns the records in the order in
    /// which they are to be appended.
    ///
    /// A stripe on its way knows content by its old version, and is not committed any more, unless its
    /// commit was under way (see `destage/commit.rs`); so it keeps no record that does not count.
    pub fn renumber(
        &mut self,
        mut version: impl FnMut(VdiskId, SliceIndex) -> Version,
    ) -> Vec<RecordKey> {
        let mut keys: Vec<RecordKey> =
            self.records.iter().map(|(index, record)| record.key(index as u32)).collect();
        keys.sort_unstable();
        keys.retain(|key| {
            if self.records[key.index as usize].live == 0 {
                self.remove(key.index);
                return false;
            }
            let live = self.live_blocks(*key);
            let record = &mut self.records[key.index as usize];
            let (length, payload, chunk) = (record.length(), record.payload(), record.chunk);
            let identity = &mut record.identity;
            identity.version = version(identity.vdisk, identity.slice);
            record.encode_anew(&live);
            record.in_log = false;
            record.releasing = false;
            self.bytes = self.bytes - length as u64 + record.length() as u64;
            self.payload = self.payload - payload + record.payload();
            if let Some(chunk) = chunk.filter(|_| record.chunk.is_none()) {
                self.chunks.let_go(chunk);
            }
            self.settle(key.index);
            true
        });
        keys
    }

    /// Which of a record's entries and blocks count.
    fn live_blocks(&self, key: RecordKey) -> Vec<(u16, u16)> {
        if is_planted(Planted::ResendCovered) {
            let entries = self.records[key.index as usize].entries.iter().zip(0..);
            let blocks = |e: &BufferedEntry| e.entry.block..e.entry.block + e.entry.blocks;
            return entries.flat_map(|(e, at)| blocks(e).map(move |block| (at, block))).collect();
        }
        self.live_nodes(key).map(|(_, node)| (node.entry, node.block)).collect()
    }
}
