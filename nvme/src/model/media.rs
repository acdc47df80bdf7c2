//! What a model's namespace holds: stable content, and a volatile cache in front of it.

use std::collections::{BTreeMap, BTreeSet};

/// A namespace of the model.
#[derive(Clone, Debug)]
pub struct ModelNamespace {
    /// Blocks.
    pub blocks: u64,
    /// Block size as a power of two.
    pub block_shift: u8,
    /// Protection type 0 to 3; others than 0 come with 8 bytes of metadata.
    pub protection: u8,
    /// NOIOB.
    pub optimal_boundary: u16,
    /// Its content is kept elsewhere: see `outside.rs`. It then reads, writes, flushes and deallocates, and does nothing
    /// else, without protection.
    pub outside: bool,
}

impl Default for ModelNamespace {
    fn default() -> ModelNamespace {
        ModelNamespace {
            blocks: 4096,
            block_shift: 12,
            protection: 0,
            optimal_boundary: 0,
            outside: false,
        }
    }
}

/// See the module's page.
pub struct Media {
    pub(super) format: ModelNamespace,
    stable: Vec<u8>,
    cached: BTreeMap<u64, Vec<u8>>,
    spoiled: BTreeSet<u64>,
    flushes: u64,
}

impl Media {
    pub(super) fn new(format: &ModelNamespace) -> Media {
        let bytes = if format.outside { 0 } else { format.blocks << format.block_shift };
        Media {
            format: format.clone(),
            stable: vec![0; usize::try_from(bytes).expect("a model's content is in memory")],
            cached: BTreeMap::new(),
            spoiled: BTreeSet::new(),
            flushes: 0,
        }
    }

    fn place(&self, block: u64) -> std::ops::Range<usize> {
        let bytes = 1 << self.format.block_shift;
        let first = block as usize * bytes;
        first..first + bytes
    }

    /// A block as a read would give it.
    pub fn read(&self, block: u64) -> &[u8] {
        match self.cached.get(&block) {
            Some(content) => content,
            None => &self.stable[self.place(block)],
        }
    }

    /// Writes a block into the cache.
    pub fn write(&mut self, block: u64, content: &[u8]) {
        self.spoiled.remove(&block);
        self.cached.insert(block, content.to_vec());
    }

    /// Writes a block to stable media.
    pub(super) fn write_through(&mut self, block: u64, content: &[u8]) {
        self.spoiled.remove(&block);
        self.cached.remove(&block);
        let place = self.place(block);
        self.stable[place].copy_from_slice(content);
    }

    /// Makes everything stable.
    pub(super) fn flush(&mut self) {
        self.flushes += 1;
        for (block, content) in std::mem::take(&mut self.cached) {
            let place = self.place(block);
            self.stable[place].copy_from_slice(&content);
        }
    }

    /// Flushes so far.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// The protection information of a block is wrong from now on, until it is written.
    pub fn spoil(&mut self, block: u64) {
        self.spoiled.insert(block);
    }

    pub(super) fn is_spoiled(&self, block: u64) -> bool {
        self.spoiled.contains(&block)
    }

    pub(super) fn cut_power(&mut self, mut lost: impl FnMut(u64) -> bool) {
        for (block, content) in std::mem::take(&mut self.cached) {
            if !lost(block) {
                let place = self.place(block);
                self.stable[place].copy_from_slice(&content);
            }
        }
    }
}
