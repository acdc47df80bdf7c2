//! The code's constants, read from the encoder, and arithmetic in its field GF(2^16).
//!
//! Parity shard q is the sum of `factor[q][j] * data[j]`. The encoder of 64 bytes shows the factors: data
//! shard j holds the unit element in column j. For k >= 2 they have a structure that recovery uses, and
//! that is asserted here, so that a changed dependency cannot corrupt anything:
//! `factor[1][j] = factor[0][j] + 1`, hence the sum of both parities is the sum of all data; and
//! `factor[0][2i] + factor[0][2i + 1] = 1`, hence neighbours share one multiplication. For k = 1 all
//! factors are 1: parity is a copy.

use cleave_format::layout::{DATA_SHARDS_MAX, PARITY_SHARDS};
use reed_solomon_simd::ReedSolomonEncoder;
use reed_solomon_simd::engine::{GF_MODULUS, GfElement, tables};

/// Bytes that stand for 32 elements: 32 low bytes, then 32 high bytes. Ranges of whole chunks are
/// independent of each other.
pub(crate) const CHUNK: usize = 64;

/// The factors of a stripe with k data shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Code {
    /// By parity shard and data shard; 0 beyond k.
    pub(crate) factor: [[GfElement; DATA_SHARDS_MAX]; PARITY_SHARDS],
}

impl Code {
    /// Reads the factors for `data_shards` from the encoder.
    ///
    /// # Panics
    /// When the encoder's code is not the one that stripes at rest have.
    pub(crate) fn new(data_shards: usize) -> Code {
        let mut encoder = ReedSolomonEncoder::new(data_shards, PARITY_SHARDS, CHUNK)
            .expect("the encoder takes 1 to 8 data shards");
        for shard in 0..data_shards {
            let mut unit = [0; CHUNK];
            unit[shard] = 1;
            encoder.add_original_shard(unit).expect("shards are of the announced length");
        }
        let parity = encoder.encode().expect("all data shards were added");
        let mut code = Code { factor: [[0; DATA_SHARDS_MAX]; PARITY_SHARDS] };
        for (index, factors) in code.factor.iter_mut().enumerate() {
            let shard = parity.recovery(index).expect("there are two parity shards");
            for (column, factor) in factors.iter_mut().take(data_shards).enumerate() {
                *factor = u16::from_le_bytes([shard[column], shard[column + CHUNK / 2]]);
            }
        }
        code.check(data_shards);
        code
    }

    fn check(&self, data_shards: usize) {
        let [first, second] = self.factor.map(|factors| factors[..data_shards].to_vec());
        // Any one or two losses can be solved: all minors differ from 0.
        assert!(first.iter().chain(&second).all(|factor| *factor != 0));
        for (i, j) in (0..data_shards).flat_map(|i| (0..i).map(move |j| (i, j))) {
            assert_ne!(multiply(first[i], second[j]), multiply(first[j], second[i]));
        }
        if data_shards >= 2 {
            assert!(first.iter().zip(&second).all(|(a, b)| a ^ b == 1));
            assert!(first.chunks_exact(2).all(|pair| pair[0] ^ pair[1] == 1));
        }
    }
}

/// Logarithm of an element other than 0: what the engine multiplies by.
pub(crate) fn logarithm(element: GfElement) -> GfElement {
    assert_ne!(element, 0, "0 has no logarithm");
    tables::get_exp_log().log[usize::from(element)]
}

/// Product of two elements.
pub(crate) fn multiply(a: GfElement, b: GfElement) -> GfElement {
    if a == 0 || b == 0 {
        return 0;
    }
    let sum = u32::from(logarithm(a)) + u32::from(logarithm(b));
    tables::get_exp_log().exp[(sum % u32::from(GF_MODULUS)) as usize]
}

/// The element whose product with this one is 1.
pub(crate) fn inverse(element: GfElement) -> GfElement {
    let power = u32::from(GF_MODULUS) - u32::from(logarithm(element));
    tables::get_exp_log().exp[(power % u32::from(GF_MODULUS)) as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Parity at rest depends on these: they never change.
    #[test]
    fn factors_are_those_of_the_format() {
        let factors = |k: usize| Code::new(k).factor.map(|factors| factors[..k].to_vec());
        assert_eq!(factors(1), [vec![1], vec![1]]);
        for k in 2..=DATA_SHARDS_MAX {
            let [first, second] = factors(k);
            assert_eq!(first, [3, 2, 5, 4, 7, 6, 9, 8][..k]);
            assert_eq!(second, [2, 3, 4, 5, 6, 7, 8, 9][..k]);
        }
    }

    #[test]
    fn inverses_and_products_fit() {
        for element in [1, 2, 3, 0x1234, 0xffff] {
            assert_eq!(multiply(element, inverse(element)), 1);
            assert_eq!(multiply(element, 1), element);
            assert_eq!(multiply(element, 0), 0);
        }
    }
}
