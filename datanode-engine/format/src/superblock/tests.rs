//! Superblocks: layouts, two generations and torn writes, golden bytes.

use super::*;
use crate::testing::{each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;

fn identity(drive: u16) -> DriveIdentity {
    DriveIdentity {
        cluster: ClusterId(std::array::from_fn(|at| 0xa0 + at as u8)),
        datanode: DatanodeId(0x0102),
        drive: DriveId(drive),
        uuid: std::array::from_fn(|at| 0xb0 + at as u8),
    }
}

fn generation(generation: u64) -> Superblock {
    Superblock { generation, ..Superblock::for_size(identity(0x0304), 16 << 30).unwrap() }
}

proptest! {
    #[test]
    fn any_size_has_a_sound_layout(size in DRIVE_SIZE_MIN..1 << 50) {
        let superblock = Superblock::for_size(identity(1), size).unwrap();
        prop_assert!(superblock.is_valid() && superblock.slots > 0);
        let last = superblock.slot_offset(SlotIndex(superblock.slots - 1));
        prop_assert!(last + SLOT as u64 <= superblock.reserved_offset);
        prop_assert!(superblock.reserved_offset + superblock.reserved_length <= size);
        // No more than a slot and the rounding is left over.
        let used = last + SLOT as u64 + superblock.reserved_length;
        prop_assert!(size - used < SLOT as u64 + 3 * RESERVED_UNIT);
        prop_assert!(last.is_multiple_of(4096));
        prop_assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock));
    }

    #[test]
    fn any_page_is_refused_without_panic(
        mut page in vec(any::<u8>(), 0..SUPERBLOCK + 10),
        shaped in any::<bool>(),
    ) {
        if shaped && page.len() >= SUPERBLOCK {
            page.truncate(SUPERBLOCK);
            page[..9].copy_from_slice(b"CLEAVEDR\x01");
            page[12..16].copy_from_slice(&[1, 0, 0, 0]);
            crate::page::seal(&mut page);
        }
        let _ = Superblock::decode(&page);
        let _ = choose(&page, &page);
    }

    /// Any run of rewrites, cut at any byte of any write: the newest durable generation is found (C17).
    #[test]
    fn a_torn_rewrite_leaves_the_older_generation(rewrites in 2u64..6, torn in 0usize..=SUPERBLOCK) {
        let mut drive = vec![0; COPIES * SUPERBLOCK];
        for number in 0..rewrites {
            let superblock = generation(number);
            let start = superblock.copy_offset() as usize;
            drive[start..start + SUPERBLOCK].copy_from_slice(&superblock.encode());
        }
        let next = generation(rewrites);
        let start = next.copy_offset() as usize;
        drive[start..start + torn].copy_from_slice(&next.encode()[..torn]);
        let (found, copy) = choose(&drive[..SUPERBLOCK], &drive[SUPERBLOCK..]).unwrap();
        prop_assert!(found == next || found == generation(rewrites - 1));
        prop_assert!(torn < SUPERBLOCK || found == next);
        prop_assert_eq!(copy as u64, found.generation % 2);
    }
}

#[test]
fn each_flipped_bit_is_found() {
    each_flip(&generation(4).encode(), |at, bad| {
        assert!(Superblock::decode(bad).is_err(), "byte {at}");
    });
}

#[test]
fn small_drives_are_refused_and_the_reserved_area_grows_to_its_limit() {
    assert_eq!(Superblock::for_size(identity(1), DRIVE_SIZE_MIN - 1), None);
    let reserved = |size| Superblock::for_size(identity(1), size).unwrap().reserved_length;
    assert_eq!(reserved(DRIVE_SIZE_MIN), 2 << 20);
    assert_eq!(reserved(4 << 30), 512 << 20);
    assert_eq!(reserved(16 << 30), 1 << 30);
    assert_eq!(reserved(128 << 30), 4 << 30);
    assert_eq!(reserved(4 << 40), RESERVED_LARGE.1);
}

/// C12, C15, C17: neither controller writes where the other one does, and the next session not where the last one is.
#[test]
fn parts_of_the_reserved_area_are_apart() {
    for size in [DRIVE_SIZE_MIN, (16 << 20) + 4096, 600 << 20, 4 << 40] {
        let superblock = Superblock::for_size(identity(1), size).unwrap();
        let parts = [(0, 0), (0, 1), (1, 0), (1, 1)].map(|(c, p)| superblock.solo_area(c, p));
        assert_eq!(parts[0].start, superblock.reserved_offset);
        for pair in parts.windows(2) {
            assert!(pair[0].end <= pair[1].start && !pair[0].is_empty(), "{parts:?}");
        }
        assert!(parts[3].end <= superblock.reserved_offset + superblock.reserved_length);
        assert!(parts.iter().all(|part| part.start.is_multiple_of(4096)));
    }
}

#[test]
fn the_newest_intact_copy_is_chosen() {
    let (even, odd) = (generation(4).encode(), generation(5).encode());
    let (empty, garbage) = (vec![0; SUPERBLOCK], vec![7; SUPERBLOCK]);
    let mut damaged = odd.clone();
    damaged[100] ^= 1;
    let numbers = |copy0: &[u8], copy1: &[u8]| {
        choose(copy0, copy1).map(|(superblock, copy)| (superblock.generation, copy))
    };
    assert_eq!(numbers(&even, &odd), Ok((5, 1)));
    assert_eq!(numbers(&generation(6).encode(), &odd), Ok((6, 0)));
    assert_eq!(numbers(&even, &empty), Ok((4, 0)));
    assert_eq!(numbers(&even, &damaged), Ok((4, 0)));
    assert_eq!(numbers(&even, &even), Ok((4, 0)), "a copy of copy 0");
    assert_eq!(numbers(&garbage, &odd), Ok((5, 1)));
    assert_eq!(numbers(&empty, &empty), Err(FormatError::Magic(WHAT)));
    assert_eq!(numbers(&garbage, &empty), Err(FormatError::Magic(WHAT)));
    assert_eq!(numbers(&empty, &damaged), Err(FormatError::Checksum(WHAT)));
    assert_eq!(numbers(&damaged, &empty), Err(FormatError::Checksum(WHAT)));
    assert_eq!(numbers(&[], &[]), Err(FormatError::Short(WHAT)));
}

#[test]
fn a_generation_without_a_next_one_is_refused() {
    let decoded = |number| Superblock::decode(&generation(number).encode()).map(drop);
    assert_eq!(decoded((1 << 62) - 1), Ok(()));
    assert_eq!(decoded(1 << 62), Err(FormatError::Malformed(WHAT)));
    assert_eq!(decoded(u64::MAX), Err(FormatError::Malformed(WHAT)));
}

#[test]
fn unused_bytes_are_zero() {
    for at in (9..12).chain(96..SUPERBLOCK - 4) {
        let mut bad = generation(4).encode();
        bad[at] = 1;
        crate::page::seal(&mut bad);
        assert_eq!(Superblock::decode(&bad), Err(FormatError::Malformed(WHAT)), "byte {at}");
    }
}

#[test]
fn copies_of_two_drives_are_refused() {
    let other = Superblock { identity: identity(0x0305), ..generation(5) };
    let chosen = choose(&generation(4).encode(), &other.encode());
    assert_eq!(chosen, Err(FormatError::Identity(WHAT)));
}

#[test]
fn a_newer_format_is_not_taken_for_damage() {
    let mut newer = generation(5).encode();
    newer[8] = 2;
    crate::page::seal(&mut newer);
    assert_eq!(Superblock::decode(&newer), Err(FormatError::Version(WHAT)));
    assert_eq!(choose(&generation(4).encode(), &newer), Err(FormatError::Version(WHAT)));
    let raised = Superblock { format_level: FORMAT_LEVEL + 1, ..generation(5) };
    assert_eq!(Superblock::decode(&raised.encode()), Err(FormatError::Version(WHAT)));
}

#[test]
#[should_panic(expected = "slot 5 of a drive with 5 slots")]
fn a_slot_beyond_the_drive_is_a_bug() {
    Superblock { slots: 5, ..generation(0) }.slot_offset(SlotIndex(5));
}

#[test]
fn golden_superblock() {
    let golden = "\
        434c4541564544520100000001000000 a0a1a2a3a4a5a6a7a8a9aaabacadaeaf \
        b0b1b2b3b4b5b6b7b8b9babbbcbdbebf 06050000000000000000000004000000 \
        02010403c33b00000000100000000000 000000c00300000000000040 00*4000 \
        54606b93";
    assert_eq!(generation(0x0506).encode(), unhex(golden));
}
