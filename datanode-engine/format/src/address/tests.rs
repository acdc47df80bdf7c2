//! Map entries and addresses: packing, bounds, golden bits.

use super::*;
use crate::testing;
use proptest::prelude::*;

proptest! {
    #[test]
    fn entries_keep_their_fields(
        handle in 1..=HANDLE_MAX,
        (offset, length) in testing::place(DATA_SHARDS_MAX * SHARD),
        block in 0u8..16,
    ) {
        let entry = MapEntry::new(Handle(handle), offset, length, block);
        prop_assert!(!entry.is_empty());
        prop_assert_eq!(entry.handle(), Some(Handle(handle)));
        prop_assert_eq!((entry.offset(), entry.length()), (offset, length));
        prop_assert_eq!(entry.block_in_frame(), block);
    }

    #[test]
    fn any_bits_are_an_entry(bits in any::<u64>()) {
        let entry = MapEntry(bits);
        prop_assert_eq!(entry.is_empty(), entry.handle().is_none());
        prop_assert!((entry.offset() as usize) < DATA_SHARDS_MAX * SHARD);
        prop_assert!(entry.length() < 1 << 16 && entry.block_in_frame() < 16);
    }

    #[test]
    fn valid_addresses_lie_in_one_part_of_one_shard(address in testing::address()) {
        let end = address.offset as usize + address.length as usize;
        prop_assert_eq!(address.shard() * SHARD + address.shard_offset(), address.offset as usize);
        prop_assert!(address.shard_offset() + address.length as usize <= SHARD);
        prop_assert_eq!((end - 1) / PART, address.offset as usize / PART);
    }

    #[test]
    fn any_fields_are_judged_without_overflow(offset in any::<u32>(), length in any::<u32>()) {
        let _ = Address { stripe: StripeId(1), offset, length }.is_valid();
    }
}

#[test]
fn addresses_that_no_packer_produces() {
    let valid = |offset, length| Address { stripe: StripeId(1), offset, length }.is_valid();
    assert!(valid(0, 16) && valid(8 * (1 << 20) - 16, 16) && valid(0, 65520));
    assert!(!valid(0, 0) && !valid(8, 16) && !valid(0, 24), "not in units");
    assert!(!valid(0, 65536), "too long");
    assert!(!valid(8 << 20, 16) && !valid(u32::MAX - 15, 16), "outside of the data section");
    assert!(valid(PART as u32 - 16, 16) && !valid(PART as u32 - 16, 32), "straddles a part");
}

#[test]
fn golden_entry() {
    // 29 bits of handle, 19 of offset, 12 of length, 4 of block.
    let entry = MapEntry::new(Handle(0x1234_5678), 0x7_fffe * 16, 0xabc * 16, 0xd);
    assert_eq!(entry.0, 0x1234_5678 << 35 | 0x7_fffe << 16 | 0xabc << 4 | 0xd);
    assert_eq!(MapEntry::new(Handle(1), 16, 32, 0).0, 0x0000_0008_0001_0020);
    assert_eq!(MapEntry::EMPTY.0, 0);
}
