//! What the tests of all layouts share.

use crate::address::Address;
use crate::ids::{Epoch, Sequence, StripeId, Version};
use crate::layout::{DATA_SHARDS_MAX, PART, SHARD, UNIT};
use proptest::prelude::*;

/// Calls `check` with each single bit of `bytes` flipped in turn.
pub(crate) fn each_flip(bytes: &[u8], mut check: impl FnMut(usize, &[u8])) {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() {
        for bit in 0..8 {
            bytes[at] ^= 1 << bit;
            check(at, &bytes);
            bytes[at] ^= 1 << bit;
        }
    }
}

/// Bytes from hexadecimal digits; spaces are for the eye, and `*N` repeats the byte before it N times in all.
pub(crate) fn unhex(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for word in text.split_ascii_whitespace() {
        let (digits, count) = match word.split_once('*') {
            Some((digits, count)) => (digits, count.parse().unwrap()),
            None => (word, 1),
        };
        let part: Vec<u8> = (0..digits.len() / 2)
            .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        bytes.extend(part.repeat(count));
    }
    bytes
}

/// Any age.
pub(crate) fn version() -> impl Strategy<Value = Version> {
    (any::<u64>(), any::<u64>())
        .prop_map(|(epoch, sequence)| Version { epoch: Epoch(epoch), sequence: Sequence(sequence) })
}

/// Any address that a packer produces in the first `end` bytes.
pub(crate) fn place(end: usize) -> impl Strategy<Value = (u32, u32)> {
    assert!(end.is_multiple_of(UNIT) && end <= DATA_SHARDS_MAX * SHARD);
    (0..end / UNIT, 1usize..1 << 12).prop_map(move |(offset, length)| {
        let offset = offset * UNIT;
        let left = (PART - offset % PART).min(end - offset);
        (offset as u32, (length * UNIT).min(left) as u32)
    })
}

/// Any address that a packer produces.
pub(crate) fn address() -> impl Strategy<Value = Address> {
    (any::<u64>(), place(DATA_SHARDS_MAX * SHARD)).prop_map(|(stripe, (offset, length))| {
        let address = Address { stripe: StripeId(stripe), offset, length };
        assert!(address.is_valid());
        address
    })
}
