//! What the guest wrote: for every block the content that it must have, or may have.

use cleave_format::ids::VdiskId;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};

/// Blocks of the vdisk at first: two slices and a bit.
pub const BLOCKS: u64 = 1100;
/// Bytes of a block.
pub const BLOCK: usize = 4096;

/// Number of a content; 0 is zeros.
pub type Version = u32;

/// The guest's memory of its disk.
pub struct Guest {
    /// By block: what was acknowledged last, and what was asked for since.
    blocks: Vec<Vec<Version>>,
    next: Version,
    vdisk: VdiskId,
}

impl Guest {
    /// A disk of zeros.
    pub fn new() -> Guest {
        Guest { blocks: vec![vec![0]; BLOCKS as usize], next: 1, vdisk: VdiskId(1) }
    }

    /// A new content for a block, not acknowledged.
    pub fn begin(&mut self, block: u64, zero: bool) -> Version {
        let version = if zero { 0 } else { self.next };
        self.next += 1;
        self.blocks[block as usize].push(version);
        version
    }

    /// The block has that content now.
    pub fn acknowledge(&mut self, block: u64, version: Version) {
        self.blocks[block as usize] = vec![version];
    }

    /// Whether a block may read like this.
    pub fn may_read(&self, block: u64, bytes: &[u8]) -> bool {
        self.blocks[block as usize].iter().any(|version| content(block, *version)[..] == *bytes)
    }

    /// Blocks that were written, zeros included.
    pub fn written(&self) -> impl Iterator<Item = u64> + '_ {
        let written = |block: &u64| self.blocks[*block as usize] != [0];
        (0..self.blocks()).filter(written)
    }

    /// Blocks of its disk.
    pub fn blocks(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// Its disk has so many blocks more, of zeros.
    pub fn grow(&mut self, blocks: u64) {
        self.blocks.extend((0..blocks).map(|_| vec![0]));
    }

    /// A new disk in place of the one that was deleted; identities are used once (C3).
    pub fn replace(&mut self) {
        self.blocks.fill(vec![0]);
        self.vdisk = VdiskId(self.vdisk.0 + 1);
    }

    /// Its disk.
    pub fn vdisk(&self) -> VdiskId {
        self.vdisk
    }
}

impl Default for Guest {
    fn default() -> Guest {
        Guest::new()
    }
}

/// The content of a block. Every second does not shrink, the others do.
pub fn content(block: u64, version: Version) -> Buffer {
    let mut buffer = Buffer::new(BLOCK);
    if version > 0 {
        let random = SplitMix::new(block << 32 | u64::from(version));
        let word = random.next_u64();
        for bytes in buffer.chunks_exact_mut(8) {
            let word = if block.is_multiple_of(2) { random.next_u64() } else { word };
            bytes.copy_from_slice(&word.to_le_bytes());
        }
    }
    buffer
}
