//! How records leave the write buffer: released by a commit (C4), forgotten with their vdisk, or
//! numbered anew for another log (C7).

use super::{NONE, Record, RecordKey, WriteBuffer, ZERO_WEIGHT};
use bytes::Bytes;
use cleave_format::footer::FOOTER_ENTRY;
use cleave_format::ids::{SliceIndex, VdiskId, Version};
use cleave_format::record::{Entry, encode_head};

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
    /// another log since (C7) stays.
    pub fn release(&mut self, key: RecordKey) {
        let Some(record) = self.get(key).filter(|record| record.releasing) else { return };
        assert_eq!(record.live, 0, "a record is released when nothing of it counts any more");
        self.remove(key.index);
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

    /// The log is another one and holds nothing (C7): drops what does not count, and gives every
    /// other record a new version by `version`, in order. Returns them, in the order in which they are to
    /// be appended.
    pub fn renumber(
        &mut self,
        mut version: impl FnMut(VdiskId, SliceIndex) -> Version,
    ) -> Vec<RecordKey> {
        let mut keys: Vec<RecordKey> =
            self.records.iter().map(|(index, record)| record.key(index as u32)).collect();
        keys.sort_unstable();
        keys.retain(|key| {
            let record = &self.records[key.index as usize];
            if record.live == 0 && record.held == 0 {
                self.remove(key.index);
                return false;
            }
            let record = &mut self.records[key.index as usize];
            let identity = &mut record.identity;
            identity.version = version(identity.vdisk, identity.slice);
            let entries: Vec<Entry> = record.entries.iter().map(|e| e.entry).collect();
            let mut head = Vec::with_capacity(record.head.len());
            encode_head(&record.identity, &entries, &mut head);
            record.head = Bytes::from(head);
            record.in_log = false;
            record.releasing = false;
            self.settle(key.index);
            true
        });
        keys
    }
}
