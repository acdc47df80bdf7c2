//! Recovery against the crate's own decoder, and against the data itself.

use super::*;
use crate::Encoder;
use proptest::prelude::*;
use reed_solomon_simd::decode;

/// A stripe of random data with its parity.
fn stripe(k: usize, length: usize, mut seed: u64) -> Vec<Vec<u8>> {
    let mut shards = vec![vec![0; length]; k + PARITY_SHARDS];
    for byte in shards[..k].iter_mut().flatten() {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        *byte = (seed >> 56) as u8;
    }
    let (data, parity) = shards.split_at_mut(k);
    let data: Vec<_> = data.iter().map(Vec::as_slice).collect();
    let [first, second] = parity else { unreachable!() };
    Encoder::new().encode(&data, [first, second]);
    shards
}

/// All sets of one or two of the shards.
fn patterns(shards: usize) -> impl Iterator<Item = Vec<usize>> {
    let pairs = move |i| (0..i).map(move |j| vec![j, i]);
    (0..shards).flat_map(move |i| std::iter::once(vec![i]).chain(pairs(i)))
}

fn recover(shards: &[Vec<u8>], missing: &[usize], wanted: &[usize]) -> Vec<Vec<u8>> {
    let there: Vec<_> = shards
        .iter()
        .enumerate()
        .map(|(index, shard)| (!missing.contains(&index)).then_some(shard.as_slice()))
        .collect();
    let mut outs = vec![vec![0xa5; shards[0].len()]; wanted.len()];
    let mut named: Vec<_> =
        wanted.iter().copied().zip(outs.iter_mut().map(Vec::as_mut_slice)).collect();
    Solver::new().recover(&there, &mut named).unwrap();
    outs
}

#[test]
fn every_pattern_of_every_width_gives_the_lost_bytes() {
    // Longer than a batch, and not a multiple of one.
    let length = (2 * BATCH + 3) * CHUNK;
    for k in 1..=DATA_SHARDS_MAX {
        let shards = stripe(k, length, k as u64);
        for missing in patterns(k + PARITY_SHARDS) {
            let outs = recover(&shards, &missing, &missing);
            for (index, out) in missing.iter().zip(&outs) {
                assert!(*out == shards[*index], "k = {k}, missing {missing:?}, shard {index}");
            }
            for one in &missing {
                assert!(recover(&shards, &missing, &[*one])[0] == shards[*one]);
            }
        }
    }
}

#[test]
fn the_decoder_of_the_crate_agrees() {
    for k in 1..=DATA_SHARDS_MAX {
        let shards = stripe(k, 192, 77 + k as u64);
        for missing in patterns(k + PARITY_SHARDS) {
            let there = |range: std::ops::Range<usize>| {
                let missing = &missing;
                range.filter(move |index| !missing.contains(index))
            };
            let data = there(0..k).map(|index| (index, &shards[index]));
            let parity = there(k..k + 2).map(|index| (index - k, &shards[index]));
            let restored = decode(k, PARITY_SHARDS, data, parity).unwrap();
            let lost: Vec<_> = missing.iter().copied().filter(|index| *index < k).collect();
            for (index, out) in lost.iter().zip(recover(&shards, &missing, &lost)) {
                assert_eq!(restored[index], out);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn a_range_gives_that_range_of_the_shard(
        k in 1usize..=DATA_SHARDS_MAX,
        seed in any::<u64>(),
        pattern in any::<prop::sample::Index>(),
        start in 0usize..40,
        chunks in 0usize..80,
    ) {
        let shards = stripe(k, 120 * CHUNK, seed);
        let all: Vec<_> = patterns(k + PARITY_SHARDS).collect();
        let missing = &all[pattern.index(all.len())];
        let range = start * CHUNK..(start + chunks) * CHUNK;
        let cut: Vec<_> = shards.iter().map(|shard| shard[range.clone()].to_vec()).collect();
        for (index, out) in missing.iter().zip(recover(&cut, missing, missing)) {
            prop_assert_eq!(&out[..], &shards[*index][range.clone()]);
        }
    }
}

#[test]
fn three_missing_shards_are_refused() {
    let shards = stripe(3, CHUNK, 1);
    let there = [None, None, None, Some(&shards[3][..]), Some(&shards[4][..])];
    let mut out = vec![0; CHUNK];
    let refused = Solver::new().recover(&there, &mut [(0, &mut out)]);
    assert_eq!(refused, Err(RecoverError::TooManyMissing { missing: 3 }));
}

#[test]
fn nothing_wanted_is_nothing_to_do() {
    assert_eq!(Solver::new().recover(&[None, None, None, None], &mut []), Ok(()));
}

/// Parity at rest never changes: one chunk of counting bytes a shard.
#[test]
fn parity_is_that_of_the_format() {
    let data: Vec<Vec<u8>> =
        (0..3).map(|shard| (0..64).map(|at| (shard * 64 + at) as u8).collect()).collect();
    let data: Vec<_> = data.iter().map(Vec::as_slice).collect();
    let (mut first, mut second) = ([0; CHUNK], [0; CHUNK]);
    Encoder::new().encode(&data, [&mut first, &mut second]);
    assert_eq!([fnv(&first), fnv(&second)], [2_379_424_785_838_017_477, 4_870_603_859_190_034_261]);
}

/// FNV-1a.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
