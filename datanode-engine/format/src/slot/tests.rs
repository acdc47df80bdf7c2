//! Slot headers: round trips, identity, columns, golden bytes.

use super::*;
use crate::testing::{each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;

fn small() -> SlotHeader {
    SlotHeader {
        cluster: ClusterId(std::array::from_fn(|at| 0xa0 + at as u8)),
        stripe: StripeId(0x0102_0304_0506_0708),
        shard: 9,
        data_shards: 8,
        place: SlotPlace {
            drive: DriveId(0x1112),
            slot: SlotIndex(0x2122_2324),
            generation: 0x3132_3334,
        },
        columns: std::array::from_fn(|at| 0x4000_0000 + at as u32),
    }
}

fn encode(header: &SlotHeader) -> Vec<u8> {
    let mut page = vec![0xa5; SLOT_HEADER];
    header.encode(&mut page);
    page
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn headers_come_back(
        cluster in any::<[u8; 16]>(),
        stripe in any::<u64>(),
        k in 1u8..=8,
        shard in any::<prop::sample::Index>(),
        place in any::<(u16, u32, u32)>(),
        columns in any::<[u32; COLUMNS]>(),
    ) {
        let header = SlotHeader {
            cluster: ClusterId(cluster),
            stripe: StripeId(stripe),
            shard: shard.index(usize::from(k) + 2) as u8,
            data_shards: k,
            place: SlotPlace {
                drive: DriveId(place.0),
                slot: SlotIndex(place.1),
                generation: place.2,
            },
            columns,
        };
        prop_assert_eq!(SlotHeader::decode(&encode(&header)), Ok(header));
    }

    #[test]
    fn any_page_is_refused_without_panic(
        mut page in vec(any::<u8>(), 0..SLOT_HEADER + 10),
        shaped in any::<bool>(),
    ) {
        if shaped && page.len() >= SLOT_HEADER {
            page.truncate(SLOT_HEADER);
            page[..9].copy_from_slice(b"CLEAVESL\x01");
            crate::page::seal(&mut page);
        }
        let _ = SlotHeader::decode(&page);
    }
}

#[test]
fn each_flipped_bit_is_found() {
    each_flip(&encode(&small()), |at, bad| {
        assert!(SlotHeader::decode(bad).is_err(), "byte {at}");
    });
}

#[test]
fn unused_bytes_are_zero() {
    let good = encode(&small());
    for at in [11, 14, 15].into_iter().chain(48..64).chain(128..SLOT_HEADER - 4) {
        let mut bad = good.clone();
        bad[at] = 1;
        crate::page::seal(&mut bad);
        assert_eq!(SlotHeader::decode(&bad), Err(FormatError::Malformed(WHAT)), "byte {at}");
    }
}

#[test]
fn another_shard_is_refused() {
    let header = small();
    let check = |cluster: ClusterId, stripe, shard, drive, slot, generation| {
        let place = SlotPlace { drive: DriveId(drive), slot: SlotIndex(slot), generation };
        header.check_identity(cluster, StripeId(stripe), shard, &place)
    };
    let (cluster, stripe, slot, generation) =
        (header.cluster, header.stripe.0, 0x2122_2324, 0x3132_3334);
    assert_eq!(check(cluster, stripe, 9, 0x1112, slot, generation), Ok(()));
    let wrong = Err(FormatError::Identity(WHAT));
    assert_eq!(check(ClusterId([0; 16]), stripe, 9, 0x1112, slot, generation), wrong);
    assert_eq!(check(cluster, stripe + 1, 9, 0x1112, slot, generation), wrong);
    assert_eq!(check(cluster, stripe, 8, 0x1112, slot, generation), wrong);
    assert_eq!(check(cluster, stripe, 9, 0x1113, slot, generation), wrong);
    assert_eq!(check(cluster, stripe, 9, 0x1112, slot + 1, generation), wrong);
    assert_eq!(check(cluster, stripe, 9, 0x1112, slot, generation + 1), wrong);
}

#[test]
fn unsound_or_newer_headers_are_refused() {
    let with = |at: usize, value: u8| {
        let mut page = encode(&small());
        page[at] = value;
        crate::page::seal(&mut page);
        SlotHeader::decode(&page).map(|_| ())
    };
    assert_eq!(with(8, 2), Err(FormatError::Version(WHAT)));
    assert_eq!(with(9, 10), Err(FormatError::Malformed(WHAT)), "a shard beyond the stripe");
    assert_eq!(with(10, 0), Err(FormatError::Malformed(WHAT)), "no data shards");
    assert_eq!(with(10, 9), Err(FormatError::Malformed(WHAT)), "too many data shards");
    assert_eq!(SlotHeader::decode(&[0; SLOT_HEADER]), Err(FormatError::Magic(WHAT)));
}

#[test]
fn columns_are_checked_one_by_one() {
    let mut shard: Vec<u8> = (0..SHARD).map(|at| (at / 999) as u8).collect();
    let header = SlotHeader { columns: column_checksums(&shard), ..small() };
    shard[3 * COLUMN + 5] ^= 1;
    for (index, column) in shard.chunks_exact(COLUMN).enumerate() {
        assert_eq!(header.check_column(index, column).is_ok(), index != 3);
        let other = (index + 1) % COLUMNS;
        assert!(header.check_column(other, column).is_err());
    }
}

#[test]
fn golden_header() {
    let golden = "\
        434c45415645534c0109080012110000 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf \
        08070605040302012423222134333231 00000000000000000000000000000000 \
        00000040010000400200004003000040 04000040050000400600004007000040 \
        08000040090000400a0000400b000040 0c0000400d0000400e0000400f000040 \
        00*3964 8471e2e7";
    assert_eq!(encode(&small()), unhex(golden));
}
