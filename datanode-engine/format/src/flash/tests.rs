//! Flash: layouts of any size, two generations, identities, golden bytes.

use super::*;
use crate::testing::{each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;

fn superblock(generation: u64) -> FlashSuperblock {
    let cluster = ClusterId(std::array::from_fn(|at| 0xa0 + at as u8));
    let device = FlashId(std::array::from_fn(|at| 0xb0 + at as u8));
    let first = FlashSuperblock::for_size(cluster, device, 16 << 30).unwrap();
    FlashSuperblock { generation, ..first }
}

fn header(generation: u32) -> ZoneHeader {
    let part = |stripe, part, crc| StoredPart { stripe: StripeId(stripe), part, crc };
    ZoneHeader {
        device: superblock(0).device,
        zone: 0x000a_0b0c,
        sequence: 0x01_0203_0405,
        generation,
        places: vec![
            PlaceState::Present(part(0x1122_3344_5566_7788, 63, 0xdead_beef)),
            PlaceState::Tentative(part(7, 5, 9)),
            PlaceState::Retired,
            PlaceState::Empty,
        ],
    }
}

fn encoded(header: &ZoneHeader) -> Vec<u8> {
    let mut page = vec![0; FLASH_PAGE];
    header.encode(&mut page);
    page
}

fn place() -> impl Strategy<Value = PlaceState> {
    let stored = (any::<u64>(), 0..PARTS_MAX as u8, any::<u32>())
        .prop_map(|(stripe, part, crc)| StoredPart { stripe: StripeId(stripe), part, crc });
    (0..4, stored).prop_map(|(state, part)| match state {
        0 => PlaceState::Empty,
        1 => PlaceState::Present(part),
        2 => PlaceState::Tentative(part),
        _ => PlaceState::Retired,
    })
}

proptest! {
    #[test]
    fn any_size_has_a_sound_layout(size in FLASH_SIZE_MIN..1 << 46) {
        let superblock = FlashSuperblock::for_size(ClusterId([1; 16]), FlashId([2; 16]), size).unwrap();
        prop_assert!(superblock.is_valid());
        prop_assert!(superblock.zones >= 28, "{} zones", superblock.zones);
        let last = superblock.place_offset(superblock.zones - 1, superblock.places - 1);
        prop_assert!(last.is_multiple_of(FLASH_PAGE as u64) && last + PART as u64 <= size);
        // Less than a zone is left over.
        prop_assert!(size - last - (PART as u64) < zone_length(superblock.places));
        prop_assert_eq!(superblock.zone_offset(1) - superblock.zone_offset(0), zone_length(superblock.places));
        prop_assert_eq!(FlashSuperblock::decode(&superblock.encode()), Ok(superblock));
    }

    #[test]
    fn headers_come_back(
        places in vec(place(), usize::from(PLACES_MIN)..=usize::from(PLACES_MAX)),
        zone: u32,
        sequence: u64,
        generation: u32,
    ) {
        let header = ZoneHeader { device: FlashId([7; 16]), zone, sequence, generation, places };
        prop_assert_eq!(ZoneHeader::decode(&encoded(&header)), Ok(header));
    }

    #[test]
    fn any_page_is_refused_without_panic(
        mut page in vec(any::<u8>(), 0..FLASH_PAGE + 10),
        shaped in 0..3,
    ) {
        if shaped > 0 && page.len() >= FLASH_PAGE {
            page.truncate(FLASH_PAGE);
            page[..9].copy_from_slice(if shaped == 1 { b"CLEAVEFS\x01" } else { b"CLEAVEFZ\x01" });
            page[12..16].copy_from_slice(&[1, 0, 0, 0]);
            crate::page::seal(&mut page);
        }
        let _ = FlashSuperblock::decode(&page);
        let _ = choose_superblock(&page, &page);
        let _ = ZoneHeader::decode(&page);
        let _ = choose_header(&page, &superblock(0), 1);
    }

    /// Any run of rewrites, cut at any byte of any write: the newest whole generation is found (C17).
    #[test]
    fn a_torn_rewrite_leaves_the_older_header(rewrites in 1u32..6, torn in 0usize..=FLASH_PAGE) {
        let described = FlashSuperblock { places: 4, ..superblock(0) };
        let mut zone = vec![0; FLASH_COPIES * FLASH_PAGE];
        let header = |generation: u32| ZoneHeader { sequence: u64::from(generation), ..header(generation) };
        for generation in 0..rewrites {
            let start = header(generation).copy_offset() as usize;
            zone[start..start + FLASH_PAGE].copy_from_slice(&encoded(&header(generation)));
        }
        let next = header(rewrites);
        let start = next.copy_offset() as usize;
        zone[start..start + torn].copy_from_slice(&encoded(&next)[..torn]);
        let found = choose_header(&zone, &described, next.zone).unwrap();
        prop_assert!(found == next || found == header(rewrites - 1));
        prop_assert!(torn < FLASH_PAGE || found == next);
    }
}

#[test]
fn each_flipped_bit_is_found() {
    each_flip(&superblock(4).encode(), |at, bad| {
        assert!(FlashSuperblock::decode(bad).is_err(), "byte {at}");
    });
    each_flip(&encoded(&header(4)), |at, bad| {
        assert!(ZoneHeader::decode(bad).is_err(), "byte {at}");
    });
}

#[test]
fn small_devices_are_refused_and_large_ones_have_large_zones() {
    let layout = |size| FlashSuperblock::for_size(ClusterId([1; 16]), FlashId([2; 16]), size);
    assert_eq!(layout(FLASH_SIZE_MIN - 1), None);
    assert_eq!(layout(FLASH_SIZE_MIN).unwrap().places, PLACES_MIN);
    assert_eq!(layout(1 << 30).unwrap().places, PLACES_MAX);
    assert_eq!(layout(1 << 40).unwrap().zones, 130_944);
}

// C3: an intact header of another device, zone or copy is no header of this one.
#[test]
fn headers_count_only_where_they_belong() {
    let described = FlashSuperblock { places: 4, ..superblock(0) };
    let zone = header(0).zone;
    let both = |copy0: &ZoneHeader, copy1: &ZoneHeader| [encoded(copy0), encoded(copy1)].concat();
    let generation = |pages: &[u8]| choose_header(pages, &described, zone).map(|h| h.generation);
    assert_eq!(generation(&both(&header(4), &header(5))), Some(5));
    assert_eq!(generation(&both(&header(6), &header(5))), Some(6));
    assert_eq!(generation(&both(&header(5), &header(4))), None, "in each other's places");
    let other_device = ZoneHeader { device: FlashId([9; 16]), ..header(6) };
    assert_eq!(generation(&both(&other_device, &header(5))), Some(5));
    let other_zone = ZoneHeader { zone: zone + 1, ..header(6) };
    assert_eq!(generation(&both(&other_zone, &header(5))), Some(5));
    let longer = ZoneHeader { places: vec![PlaceState::Empty; 5], ..header(6) };
    assert_eq!(generation(&both(&longer, &header(5))), Some(5));
    assert_eq!(generation(&[0; FLASH_COPIES * FLASH_PAGE]), None);
    assert_eq!(generation(&[]), None);
}

#[test]
fn the_newest_intact_superblock_is_chosen() {
    let (even, odd) = (superblock(4).encode(), superblock(5).encode());
    let (empty, garbage) = (vec![0; FLASH_PAGE], vec![7; FLASH_PAGE]);
    let mut damaged = odd.clone();
    damaged[100] ^= 1;
    let chosen = |copy0: &[u8], copy1: &[u8]| choose_superblock(copy0, copy1).map(|s| s.generation);
    assert_eq!(chosen(&even, &odd), Ok(5));
    assert_eq!(chosen(&superblock(6).encode(), &odd), Ok(6));
    assert_eq!(chosen(&even, &damaged), Ok(4));
    assert_eq!(chosen(&garbage, &odd), Ok(5));
    assert_eq!(chosen(&empty, &garbage), Err(FormatError::Magic(SUPERBLOCK)));
    assert_eq!(chosen(&empty, &damaged), Err(FormatError::Checksum(SUPERBLOCK)));
    let other = FlashSuperblock { device: FlashId([9; 16]), ..superblock(5) };
    assert_eq!(chosen(&even, &other.encode()), Err(FormatError::Identity(SUPERBLOCK)));
    let newer = FlashSuperblock { format_level: FORMAT_LEVEL + 1, ..superblock(5) };
    assert_eq!(chosen(&even, &newer.encode()), Err(FormatError::Version(SUPERBLOCK)));
    assert_eq!(chosen(&damaged, &newer.encode()), Err(FormatError::Version(SUPERBLOCK)));
}

#[test]
fn golden_superblock() {
    let golden = "\
        434c4541564546530100000001000000 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf \
        b0b1b2b3b4b5b6b7b8b9babbbcbdbebf 06050000000000000000000004000000 \
        fd070000400000000000000000000000 00*4012 001b49a5";
    assert_eq!(superblock(0x0506).encode(), unhex(golden));
}

#[test]
fn golden_header() {
    let golden = "\
        434c45415645465a010000000c0b0a00 b0b1b2b3b4b5b6b7b8b9babbbcbdbebf \
        05040302010000000706000004000000 00*16 \
        8877665544332211efbeadde3f010000 07000000000000000900000005020000 \
        00000000000000000000000000030000 00*3980 c976341c";
    assert_eq!(encoded(&header(0x0607)), unhex(golden));
}
