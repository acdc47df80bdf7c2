//! Frames: in the log, at rest, moved, damaged; golden bytes.

use super::*;
use crate::ids::StripeId;
use crate::testing::{each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;
use std::num::NonZeroU32;

fn header() -> impl Strategy<Value = FrameHeader> {
    let kind = (any::<bool>(), 0..=FRAME_BLOCKS_MAX, 1usize..20_000, any::<Option<NonZeroU32>>());
    (kind, any::<(u16, u64, u64)>()).prop_map(
        |((lz4, blocks, content, key), (core, incarnation, counter))| {
            let codec = if lz4 { Codec::Lz4 } else { Codec::Stored };
            let (codec, content) = match (codec, blocks) {
                (Codec::Stored, 1..=15) => (codec, usize::from(blocks) * BLOCK),
                // 16 stored blocks and a header are longer than a frame.
                (Codec::Stored, 16) => (Codec::Lz4, content),
                _ => (codec, content),
            };
            FrameHeader {
                codec,
                blocks,
                payload_length: (content + if key.is_some() { TAG } else { 0 }) as u16,
                core,
                key,
                incarnation: Incarnation(incarnation),
                counter,
            }
        },
    )
}

fn frame(header: &FrameHeader) -> Vec<u8> {
    let mut frame = header.encode().to_vec();
    frame.extend((0..header.payload_length).map(|at| (at / 3) as u8 | 1));
    frame.resize(header.frame_length(), 0);
    seal(&mut frame);
    frame
}

fn small() -> FrameHeader {
    FrameHeader {
        codec: Codec::Lz4,
        blocks: 1,
        payload_length: 21,
        core: 0x0203,
        key: NonZeroU32::new(0x0405_0607),
        incarnation: Incarnation(0x1112_1314_1516_1718),
        counter: 0x2122_2324_2526_2728,
    }
}

fn at(stripe: u64, offset: u32, frame: &[u8]) -> Address {
    Address { stripe: StripeId(stripe), offset, length: frame.len() as u32 }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn headers_come_back(header in header()) {
        let bytes = header.encode();
        prop_assert_eq!(FrameHeader::decode(&bytes), Ok(header));
        prop_assert_eq!(frame_length(&bytes), Ok(header.frame_length()));
        prop_assert_eq!(header.authenticated(), bytes);
        prop_assert!(header.frame_length() <= FRAME_LENGTH_MAX);
    }

    #[test]
    fn frames_are_found_only_where_they_were_placed(
        header in header(),
        stripe in any::<u64>(),
        other in any::<u64>(),
        offset in 0u32..4,
        moved in 0u32..4,
    ) {
        let mut frame = frame(&header);
        prop_assert_eq!(check_in_log(&frame), Ok(header));
        // One part holds the longest frame and a few units.
        let (here, there) = (at(stripe, offset * 16, &frame), at(other, moved * 16, &frame));
        prop_assert_eq!(place(&mut frame, &here), Ok(header));
        prop_assert_eq!(check_at(&frame, &here), Ok(header));
        prop_assert_eq!(check_at(&frame, &there).is_ok(), here == there);
        prop_assert!(check_in_log(&frame).is_err());
        prop_assert_eq!(relocate(&mut frame, &here, &there), Ok(header));
        prop_assert_eq!(check_at(&frame, &there), Ok(header));
        prop_assert_eq!(check_at(&frame, &here).is_ok(), here == there);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(mut bytes in vec(any::<u8>(), 0..200), shaped in any::<bool>()) {
        if shaped && bytes.len() >= FRAME_HEADER {
            bytes[..4].copy_from_slice(&[VERSION, 1, 1, 0]);
            bytes[5] = 0;
            bytes[12..16].fill(0);
            let crc = checksum(&bytes);
            write_checksum(&mut bytes, crc);
        }
        let _ = check_in_log(&bytes);
        let _ = check_at(&bytes, &at(1, 16, &bytes));
        let _ = frame_length(&bytes);
    }
}

#[test]
fn each_flipped_bit_is_found_in_the_log_and_at_rest() {
    let mut frame = frame(&small());
    each_flip(&frame, |at, bad| {
        assert_eq!(check_in_log(bad), Err(FormatError::Checksum(WHAT)), "byte {at}");
    });
    let address = at(7, 160, &frame);
    place(&mut frame, &address).unwrap();
    each_flip(&frame, |at, bad| {
        assert_eq!(check_at(bad, &address), Err(FormatError::Checksum(WHAT)), "byte {at}");
        let mut bad = bad.to_vec();
        let before = bad.clone();
        // Rot is not sealed in, and what was refused is not changed.
        assert!(relocate(&mut bad, &address, &Address { offset: 320, ..address }).is_err());
        assert_eq!(bad, before);
    });
}

#[test]
fn each_bit_of_the_place_counts() {
    let mut frame = frame(&small());
    let address = at(7, 160, &frame);
    place(&mut frame, &address).unwrap();
    for bit in 0..64 {
        let stripe = StripeId(address.stripe.0 ^ 1 << bit);
        assert!(check_at(&frame, &Address { stripe, ..address }).is_err());
    }
    for bit in 0..32 {
        assert!(
            check_at(&frame, &Address { offset: address.offset ^ 1 << bit, ..address }).is_err()
        );
    }
    let longer = Address { length: address.length + 16, ..address };
    assert_eq!(check_at(&frame, &longer), Err(FormatError::Identity(WHAT)));
}

#[test]
fn damage_is_not_placed() {
    let mut frame = frame(&small());
    frame[FRAME_HEADER] ^= 1;
    let (before, address) = (frame.clone(), at(7, 160, &frame));
    assert_eq!(place(&mut frame, &address), Err(FormatError::Checksum(WHAT)));
    assert_eq!(frame, before);
}

/// Intact bytes that no writer produces.
#[test]
fn unsound_headers_are_refused() {
    let good = frame(&small());
    let with = |at: usize, value: u8| {
        let mut frame = good.clone();
        frame[at] = value;
        let crc = checksum(&frame);
        write_checksum(&mut frame, crc);
        check_in_log(&frame).map(|_| ())
    };
    assert_eq!(with(1, 0x81), Ok(()));
    assert_eq!(with(0, 2), Err(FormatError::Version(WHAT)));
    for (at, value, why) in [
        (1, 0x82, "unknown codec"),
        (1, 0x01, "a key, and not encrypted"),
        (1, 0x80, "a stored block that is no block"),
        (2, 17, "too many blocks"),
        (3, 1, "a byte that is zero"),
        (4, 16, "a tag and nothing else"),
        (4, 15, "less than a tag"),
        (4, 40, "longer than it is"),
        (5, 0xff, "longer than a frame"),
        (FRAME_HEADER + 21, 1, "padding that is not zero"),
    ] {
        assert_eq!(with(at, value), Err(FormatError::Malformed(WHAT)), "{why}");
    }
    let mut unkeyed = good.clone();
    unkeyed[12..16].fill(0);
    assert_eq!(FrameHeader::decode(&unkeyed), Err(FormatError::Malformed(WHAT)));
    for length in 0..FRAME_HEADER {
        assert_eq!(check_in_log(&good[..length]), Err(FormatError::Short(WHAT)));
    }
}

#[test]
fn golden_frame() {
    let mut frame = small().encode().to_vec();
    frame.extend(1..=21);
    frame.resize(64, 0);
    seal(&mut frame);
    let in_log = "\
        0181010015000302cff61cac07060504 18171615141312112827262524232221 \
        0102030405060708090a0b0c0d0e0f10 11121314150000000000000000000000";
    assert_eq!(frame, unhex(in_log));
    place(&mut frame, &at(0x3132_3334_3536_3738, 0x4_5670, &unhex(in_log))).unwrap();
    let at_rest = "\
        0181010015000302176e8d5207060504 18171615141312112827262524232221 \
        0102030405060708090a0b0c0d0e0f10 11121314150000000000000000000000";
    assert_eq!(frame, unhex(at_rest));
}
