//! Parity of a stripe, column by column: columns stay in the cache, and the encoder's memory is reused.

use cleave_format::layout::{COLUMN, DATA_SHARDS_MAX, PARITY_SHARDS};
use reed_solomon_simd::ReedSolomonEncoder;

use crate::code::{CHUNK, Code};

/// Makes parity for stripes of any width. One a core: it owns about 1 MiB of working memory.
pub struct Encoder {
    inner: ReedSolomonEncoder,
    /// Width and shard length that `inner` is set to.
    set: (usize, usize),
}

impl Encoder {
    /// An encoder, warmed up: the first one of a process takes about 10 ms for its tables.
    ///
    /// # Panics
    /// When the code is not the one that stripes at rest have.
    pub fn new() -> Encoder {
        for data_shards in 1..=DATA_SHARDS_MAX {
            Code::new(data_shards);
        }
        let set = (DATA_SHARDS_MAX, COLUMN);
        let inner = ReedSolomonEncoder::new(set.0, PARITY_SHARDS, set.1)
            .expect("the encoder takes 8 data shards");
        Encoder { inner, set }
    }

    /// Writes the two parity shards, or the same range of them, of the data shards' range.
    ///
    /// # Panics
    /// When there are not 1 to 8 data shards, or the lengths differ or are not multiples of 64 (our own
    /// bug).
    pub fn encode(&mut self, data: &[&[u8]], parity: [&mut [u8]; PARITY_SHARDS]) {
        let [first, second] = parity;
        let length = first.len();
        assert!((1..=DATA_SHARDS_MAX).contains(&data.len()), "stripes have 1 to 8 data shards");
        assert!(length.is_multiple_of(CHUNK) && second.len() == length);
        assert!(data.iter().all(|shard| shard.len() == length), "shards have one length");

        for start in (0..length).step_by(COLUMN) {
            let range = start..length.min(start + COLUMN);
            self.set(data.len(), range.len());
            for shard in data {
                self.inner
                    .add_original_shard(&shard[range.clone()])
                    .expect("shards are of the length that was set");
            }
            let encoded = self.inner.encode().expect("all data shards were added");
            for (index, shard) in [&mut *first, &mut *second].into_iter().enumerate() {
                let column = encoded.recovery(index).expect("there are two parity shards");
                shard[range.clone()].copy_from_slice(column);
            }
        }
    }

    fn set(&mut self, data_shards: usize, length: usize) {
        if self.set != (data_shards, length) {
            self.inner
                .reset(data_shards, PARITY_SHARDS, length)
                .expect("the encoder takes 1 to 8 data shards of whole chunks");
            self.set = (data_shards, length);
        }
    }
}

impl Default for Encoder {
    fn default() -> Encoder {
        Encoder::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shard(seed: usize, length: usize) -> Vec<u8> {
        (0..length).map(|at| (at.wrapping_mul(seed * 2 + 31) >> 3) as u8).collect()
    }

    #[test]
    fn columns_give_what_whole_shards_give() {
        let mut encoder = Encoder::new();
        // Widths and lengths go up and down, so that the reused memory is set anew.
        for (k, length) in [(8, 3 * COLUMN), (1, 64), (3, COLUMN + 128), (8, COLUMN), (2, 4096)] {
            let data: Vec<_> = (0..k).map(|seed| shard(seed, length)).collect();
            let data: Vec<_> = data.iter().map(Vec::as_slice).collect();
            let (mut first, mut second) = (vec![1; length], vec![2; length]);
            encoder.encode(&data, [&mut first, &mut second]);
            let whole = reed_solomon_simd::encode(k, PARITY_SHARDS, &data).unwrap();
            assert_eq!([first, second].as_slice(), whole.as_slice());
        }
    }

    #[test]
    fn an_empty_range_has_empty_parity() {
        Encoder::new().encode(&[&[], &[]], [&mut [], &mut []]);
    }
}
