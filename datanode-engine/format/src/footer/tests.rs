//! Footers: round trips, refusals, golden bytes.

use super::*;
use crate::testing::{self, each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;

/// Frames end before this, so that footers of any test fit behind them.
const FRAMES_END: usize = SHARD - (64 << 10);

fn content() -> impl Strategy<Value = FooterContent> {
    let place = || testing::place(FRAMES_END).prop_map(|(offset, length)| Place { offset, length });
    let block = || (0u8..16, any::<Fingerprint>());
    prop_oneof![
        (place(), block()).prop_map(|(place, (block_in_frame, fingerprint))| {
            FooterContent::Frame { place, block_in_frame, fingerprint }
        }),
        (1u32..=512).prop_map(|blocks| FooterContent::Zero { blocks }),
        (1u32..=512).prop_map(|blocks| FooterContent::Discard { blocks }),
        (testing::address(), block()).prop_map(|(address, (block_in_frame, fingerprint))| {
            FooterContent::Reference { address, block_in_frame, fingerprint }
        }),
        place().prop_map(|place| FooterContent::MapPiece { place }),
        (testing::address(), place(), block()).prop_map(
            |(from, place, (block_in_frame, fingerprint))| FooterContent::Move {
                from,
                place,
                block_in_frame,
                fingerprint,
            }
        ),
    ]
}

fn entry() -> impl Strategy<Value = FooterEntry> {
    (any::<u64>(), 0u64..1 << 34, testing::version(), content()).prop_map(
        |(vdisk, block, version, content)| {
            let block = match content {
                // Runs stay within their slice.
                FooterContent::Zero { blocks } | FooterContent::Discard { blocks } => {
                    block / 512 * 512 + u64::from(512 - blocks)
                }
                _ => block,
            };
            FooterEntry { vdisk: VdiskId(vdisk), block: BlockIndex(block), version, content }
        },
    )
}

fn some() -> Vec<FooterEntry> {
    let version = |epoch, sequence| Version { epoch: Epoch(epoch), sequence: Sequence(sequence) };
    let (place, fingerprint) = (Place { offset: 0x12340, length: 0x560 }, [0xfe; 32]);
    let address = Address { stripe: StripeId(0x5152), offset: 0x60, length: 0x70 };
    let entry = |block, content| FooterEntry {
        vdisk: VdiskId(0x2122),
        block: BlockIndex(block),
        version: version(0x31, 0x41),
        content,
    };
    vec![
        entry(0x11, FooterContent::Frame { place, block_in_frame: 1, fingerprint }),
        entry(0x12, FooterContent::Zero { blocks: 3 }),
        entry(0x15, FooterContent::Discard { blocks: 4 }),
        entry(0x19, FooterContent::Reference { address, block_in_frame: 2, fingerprint }),
        entry(0x1a, FooterContent::MapPiece { place }),
        entry(0x1b, FooterContent::Move { from: address, place, block_in_frame: 0, fingerprint }),
        entry(0x1c, FooterContent::Zero { blocks: 1 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn footers_come_back(
        entries in vec(entry(), 0..60),
        stripe in any::<u64>(),
        incarnation in any::<u64>(),
        k in 1usize..=8,
        before in 0usize..40,
    ) {
        let (stripe, incarnation) = (StripeId(stripe), Incarnation(incarnation));
        let footer = encode(stripe, k, incarnation, &entries);
        prop_assert_eq!(footer.len(), footer_length(entries.len()));
        prop_assert!(footer.len().is_multiple_of(UNIT));
        // Read with some of the section before it.
        let mut bytes = vec![0x5a; before];
        bytes.extend_from_slice(&footer);
        let trailer = Trailer::decode(&bytes[bytes.len() - TRAILER..]).unwrap();
        prop_assert_eq!((trailer.stripe, trailer.data_shards), (stripe, k));
        prop_assert_eq!((trailer.incarnation, trailer.entries), (incarnation, entries.len()));
        prop_assert_eq!(trailer.footer_length(), footer.len());
        prop_assert_eq!(decode(stripe, &bytes), Ok(entries));
        let other = StripeId(stripe.0 ^ 1);
        prop_assert_eq!(decode(other, &bytes), Err(FormatError::Identity(WHAT)));
    }

    #[test]
    fn any_bytes_are_refused_without_panic(
        mut bytes in vec(any::<u8>(), 0..600),
        entries in proptest::option::of(0u32..6),
        k in 0u8..10,
    ) {
        if let (Some(entries), Some(start)) = (entries, bytes.len().checked_sub(TRAILER)) {
            let body = footer_length(entries as usize) - TRAILER;
            let crc = crc32c::crc32c(&bytes[start.saturating_sub(body)..start]);
            let trailer = &mut bytes[start..];
            trailer[..6].copy_from_slice(b"CLFT\x01\x00");
            trailer[5] = k;
            trailer[8..16].copy_from_slice(&[0; 8]);
            trailer[24..28].copy_from_slice(&entries.to_le_bytes());
            trailer[28..32].copy_from_slice(&crc.to_le_bytes());
            let crc = crc32c::crc32c(&trailer[..60]);
            trailer[60..].copy_from_slice(&crc.to_le_bytes());
        }
        let _ = decode(StripeId(0), &bytes);
    }
}

#[test]
fn each_flipped_bit_is_found() {
    let footer = encode(StripeId(9), 1, Incarnation(8), &some());
    each_flip(&footer, |at, bad| assert!(decode(StripeId(9), bad).is_err(), "byte {at}"));
    for start in 1..footer.len() {
        assert!(decode(StripeId(9), &footer[start..]).is_err(), "from byte {start}");
    }
}

#[test]
fn unused_bytes_are_zero() {
    // One entry of 88 bytes and 8 of padding.
    let good = encode(StripeId(9), 1, Incarnation(8), &some()[..1]);
    let trailer = good.len() - TRAILER;
    let unused = (FOOTER_ENTRY..trailer).chain([6, 7].map(|at| trailer + at));
    for at in unused.chain(trailer + 32..trailer + 60) {
        let mut bad = good.clone();
        bad[at] = 1;
        let crc = crc32c::crc32c(&bad[..trailer]);
        bad[trailer + 28..trailer + 32].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&bad[trailer..trailer + 60]);
        bad[trailer + 60..].copy_from_slice(&crc.to_le_bytes());
        let read = decode(StripeId(9), &bad);
        assert_eq!(read, Err(FormatError::Malformed(WHAT)), "byte {at}");
    }
}

#[test]
fn a_trailer_that_announces_more_than_the_section_is_refused() {
    let mut trailer = encode(StripeId(9), 1, Incarnation(8), &[]);
    trailer[24..28].copy_from_slice(&((SHARD / FOOTER_ENTRY) as u32).to_le_bytes());
    let crc = crc32c::crc32c(&trailer[..60]);
    trailer[60..].copy_from_slice(&crc.to_le_bytes());
    assert_eq!(Trailer::decode(&trailer), Err(FormatError::Malformed(WHAT)));
}

/// Intact entries that no packer produces.
#[test]
fn unsound_entries_are_refused() {
    let good = encode(StripeId(9), 1, Incarnation(8), &some()[..1]);
    let with = |changes: &[(usize, u8)]| {
        let mut bytes = good.clone();
        for (at, value) in changes {
            bytes[*at] = *value;
        }
        let end = bytes.len() - TRAILER;
        let crc = crc32c::crc32c(&bytes[..end]);
        bytes[end + 28..end + 32].copy_from_slice(&crc.to_le_bytes());
        let crc = crc32c::crc32c(&bytes[end..end + 60]);
        bytes[end + 60..].copy_from_slice(&crc.to_le_bytes());
        decode(StripeId(9), &bytes).map(|entries| entries.len())
    };
    assert_eq!(with(&[]), Ok(1));
    let malformed = Err(FormatError::Malformed(WHAT));
    assert_eq!(with(&[(0, 0)]), malformed, "kind 0");
    assert_eq!(with(&[(0, 7)]), malformed, "a forward, which is reserved");
    assert_eq!(with(&[(1, 16)]), malformed, "a block number of 5 bits");
    assert_eq!(with(&[(2, 0), (3, 0)]), malformed, "no length");
    assert_eq!(with(&[(3, 0xff)]), malformed, "too long");
    assert_eq!(with(&[(7, 0xff)]), malformed, "an offset of more than 32 bits");
    assert_eq!(with(&[(4, 0xa0), (5, 0xff)]), Ok(1), "a frame up to the footer");
    assert_eq!(with(&[(4, 0xa1), (5, 0xff)]), malformed, "a frame over the footer");
    assert_eq!(with(&[(4, 0xff), (5, 0x1f)]), malformed, "a frame over the end of its part");
    assert_eq!(with(&[(0, 2), (4, 0), (5, 0), (6, 0)]), malformed, "no zeros");
    assert_eq!(with(&[(0, 2)]), malformed, "zeros beyond the slice");
    assert_eq!(with(&[(0, 4)]), malformed, "a reference to nothing");
    assert_eq!(with(&[(0, 6)]), malformed, "a move from nowhere");
    assert_eq!(with(&[(40, 1)]), malformed, "a frame that refers elsewhere");
    assert_eq!(with(&[(20, 4)]), malformed, "a block beyond 64 TiB");
}

#[test]
fn golden_footer() {
    let golden = "\
        01015600341200002221000000000000 11000000000000003100000000000000 \
        41000000000000000000000000000000 0000000000000000 fe*32 \
        02000000030000002221000000000000 12000000000000003100000000000000 41 \
        00*55 03000000040000002221000000000000 15000000000000003100000000000000 \
        41 00*55 04020000000000002221000000000000 \
        19000000000000003100000000000000 41000000000000005251000000000000 \
        0600000007000000 fe*32 05005600341200002221000000000000 \
        1a000000000000003100000000000000 41 00*55 \
        06005600341200002221000000000000 1b000000000000003100000000000000 \
        41000000000000005251000000000000 0600000007000000 fe*32 \
        02000000010000002221000000000000 1c000000000000003100000000000000 41 \
        00*63 434c4654010800007271000000000000 82810000000000000700000051c7c837 \
        00*28 04c66137";
    assert_eq!(encode(StripeId(0x7172), 8, Incarnation(0x8182), &some()), unhex(golden));
}
