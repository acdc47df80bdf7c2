//! Map pieces: round trips, refusals, golden bytes.

use super::*;
use crate::address::Handle;
use crate::testing::{self, each_flip, unhex};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

fn leaf(slice: u32, stripes: usize) -> impl Strategy<Value = Leaf> {
    let place = testing::place(crate::layout::DATA_SHARDS_MAX * crate::layout::SHARD);
    let entry = (any::<prop::sample::Index>(), place, 0u8..16).prop_map(
        move |(handle, (offset, length), block)| match stripes {
            0 => MapEntry::EMPTY,
            _ => MapEntry::new(Handle(handle.index(stripes) as u32 + 1), offset, length, block),
        },
    );
    let entries = btree_map(0usize..512, entry, 0..60);
    let versions = btree_map(0u16..512, testing::version(), 0..60);
    (entries, versions, testing::version()).prop_map(move |(some, versions, newest)| {
        let mut entries = Box::new([MapEntry::EMPTY; 512]);
        some.into_iter().for_each(|(at, entry)| entries[at] = entry);
        let newest = versions.values().copied().fold(newest, Version::max);
        let versions = versions.into_iter().collect();
        Leaf { slice: SliceIndex(slice), entries, versions, newest }
    })
}

fn piece() -> impl Strategy<Value = MapPiece> {
    (any::<u64>(), 0u32..1 << 24, vec(any::<u64>(), 0..20)).prop_flat_map(
        |(vdisk, group, stripes)| {
            let count = stripes.len();
            (leaf(group * 2, count), leaf(group * 2 + 1, count), 0u8..4).prop_map(
                move |(first, second, which)| MapPiece {
                    vdisk: VdiskId(vdisk),
                    group,
                    stripes: stripes.iter().copied().map(StripeId).collect(),
                    leaves: [(1, first), (2, second)]
                        .into_iter()
                        .filter(|(bit, _)| which & bit != 0)
                        .map(|(_, leaf)| leaf)
                        .collect(),
                },
            )
        },
    )
}

fn small() -> MapPiece {
    let mut entries = Box::new([MapEntry::EMPTY; 512]);
    entries[1] = MapEntry::new(Handle(2), 0x40, 0x50, 3);
    let version = |epoch, sequence| Version { epoch: Epoch(epoch), sequence: Sequence(sequence) };
    MapPiece {
        vdisk: VdiskId(0x0102),
        group: 0x11,
        stripes: vec![StripeId(0x21), StripeId(0x22)],
        leaves: vec![Leaf {
            slice: SliceIndex(0x23),
            entries,
            versions: vec![(1, version(0x31, 0x32)), (0x1ff, version(0x33, 0x34))],
            newest: version(0x33, 0x35),
        }],
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn pieces_come_back(piece in piece()) {
        let bytes = piece.encode();
        prop_assert!(bytes.len() <= PIECE_LENGTH_MAX);
        let decoded = MapPiece::decode(piece.vdisk, piece.group, &bytes);
        prop_assert_eq!(decoded.as_ref(), Ok(&piece));
        for entry in piece.leaves.iter().flat_map(|leaf| leaf.entries.iter()) {
            prop_assert_eq!(piece.address(*entry).is_some(), !entry.is_empty());
        }
        let identity = Err(FormatError::Identity(WHAT));
        prop_assert_eq!(MapPiece::decode(VdiskId(piece.vdisk.0 ^ 1), piece.group, &bytes), identity.clone());
        prop_assert_eq!(MapPiece::decode(piece.vdisk, piece.group ^ 1, &bytes), identity);
    }

    #[test]
    fn any_bytes_are_refused_without_panic(
        mut bytes in vec(any::<u8>(), 0..9000),
        stripes in proptest::option::of(0u32..4),
        leaves in 0u8..4,
        versions in 0u16..20,
    ) {
        if let (Some(stripes), true) = (stripes, bytes.len() >= 80) {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[8..12].copy_from_slice(&[VERSION, leaves, 0, 0]);
            bytes[12..24].fill(0);
            bytes[24..28].copy_from_slice(&stripes.to_le_bytes());
            bytes[28..32].copy_from_slice(&length.to_le_bytes());
            let leaf = 32 + 8 * stripes as usize;
            bytes[leaf..leaf + 4].fill(0);
            bytes[leaf + 4..leaf + 6].copy_from_slice(&versions.to_le_bytes());
            let crc = crc32c::crc32c(&bytes[8..]);
            bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        }
        let _ = MapPiece::decode(VdiskId(0), 0, &bytes);
    }
}

#[test]
fn each_flipped_bit_is_found() {
    let bytes = small().encode();
    each_flip(&bytes, |at, bad| {
        assert!(MapPiece::decode(VdiskId(0x0102), 0x11, bad).is_err(), "byte {at}");
    });
    for length in 0..bytes.len() {
        assert!(MapPiece::decode(VdiskId(0x0102), 0x11, &bytes[..length]).is_err());
    }
}

/// The largest piece: every block in a stripe of its own, every version kept.
#[test]
fn the_largest_piece_has_the_largest_length() {
    let newest = Version { epoch: Epoch(u64::MAX), sequence: Sequence(u64::MAX) };
    let leaf = |slice: u32| Leaf {
        slice: SliceIndex(slice),
        entries: Box::new(std::array::from_fn(|at| {
            MapEntry::new(Handle(slice * 512 + at as u32 + 1), 0, 65520, 15)
        })),
        versions: (0..512).map(|block| (block, newest)).collect(),
        newest,
    };
    let piece = MapPiece {
        vdisk: VdiskId(1),
        group: 0,
        stripes: (0..1024).map(StripeId).collect(),
        leaves: vec![leaf(0), leaf(1)],
    };
    let bytes = piece.encode();
    assert_eq!(bytes.len(), PIECE_LENGTH_MAX);
    assert_eq!(MapPiece::decode(VdiskId(1), 0, &bytes), Ok(piece));
}

/// Pieces that no writer produces, intact.
#[test]
fn unsound_pieces_are_refused() {
    let change = |at: usize, with: &[u8]| {
        let mut bytes = small().encode();
        bytes[at..at + with.len()].copy_from_slice(with);
        let crc = crc32c::crc32c(&bytes[8..]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        MapPiece::decode(VdiskId(0x0102), 0x11, &bytes).map(|_| ())
    };
    let (leaf, entries) = (32 + 16, 32 + 16 + 24);
    let versions = entries + 4096;
    let malformed = Err(FormatError::Malformed(WHAT));
    assert_eq!(change(8, &[1]), Ok(()));
    assert_eq!(change(8, &[2]), Err(FormatError::Version(WHAT)));
    assert_eq!(change(leaf, &[0x24]), malformed, "a slice of another group");
    assert_eq!(change(entries, &[1]), malformed, "an empty entry with a block number");
    let entry = |entry: MapEntry| entry.0.to_le_bytes();
    let straddling = MapEntry::new(Handle(1), 128 * 1024 - 16, 32, 0);
    assert_eq!(change(entries, &entry(straddling)), malformed, "a frame over its part's end");
    let unknown = MapEntry::new(Handle(3), 0, 16, 0);
    assert_eq!(change(entries, &entry(unknown)), malformed, "a handle without a stripe");
    let nothing = MapEntry::new(Handle(1), 0, 0, 0);
    assert_eq!(change(entries, &entry(nothing)), malformed, "a frame without length");
    assert_eq!(change(versions, &[0xff, 1]), malformed, "a block twice");
    assert_eq!(change(versions + 18, &[0, 2]), malformed, "a block beyond the slice");
    assert_eq!(change(versions + 18, &[0, 0]), malformed, "blocks out of order");
    assert_eq!(change(versions + 2, &[0x34]), malformed, "a version newer than the newest");
}

#[test]
fn unused_fields_are_zero() {
    let good = small().encode();
    // Of the header, and of the leaf after two stripes.
    for at in [10, 11, 32 + 16 + 6, 32 + 16 + 7] {
        let mut bad = good.clone();
        bad[at] = 1;
        let crc = crc32c::crc32c(&bad[CHECKED..]);
        bad[4..8].copy_from_slice(&crc.to_le_bytes());
        let read = MapPiece::decode(small().vdisk, small().group, &bad);
        assert_eq!(read, Err(FormatError::Malformed(WHAT)), "byte {at}");
    }
}

#[test]
fn golden_piece() {
    let golden = "\
        434c4d5017d3bf450101000011000000 0201000000000000020000006c100000 \
        21000000000000002200000000000000 23000000020000003300000000000000 \
        35000000000000000000000000000000 5300040010 00*4083 \
        01003100000000000000320000000000 0000ff01330000000000000034000000 \
        00000000";
    assert_eq!(small().encode(), unhex(golden));
}
