//! A hasher whose order follows from the keys alone, so that simulated runs repeat. Its keys are
//! identities and positions that Cleave gave out, or block numbers within a vdisk's size: a guest
//! can at worst slow its own core down.

use std::hash::Hasher;

/// Odd, with bits well mixed: the fraction of the golden ratio.
const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

/// Multiply and fold, a word at a time.
#[derive(Clone, Copy, Default)]
pub struct Mixer(u64);

impl Mixer {
    fn mix(&mut self, word: u64) {
        let product = u128::from(self.0 ^ word) * u128::from(MULTIPLIER);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

impl Hasher for Mixer {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.mix(u64::from_le_bytes(word));
        }
    }

    fn write_u32(&mut self, word: u32) {
        self.mix(u64::from(word) | 1 << 63);
    }

    fn write_u64(&mut self, word: u64) {
        self.mix(word ^ 0x5851_f42d_4c95_7f2d);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_keys_spread() {
        let mut seen = std::collections::BTreeSet::new();
        for vdisk in 0..8u64 {
            for block in 0..512u64 {
                let mut mixer = Mixer::default();
                mixer.write_u64(vdisk);
                mixer.write_u64(block);
                seen.insert(mixer.finish() >> 48);
            }
        }
        assert!(seen.len() > 3_800, "{} of 4096 different in their top 16 bits", seen.len());
    }
}
