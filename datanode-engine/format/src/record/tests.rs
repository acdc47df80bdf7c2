//! Log records: round trips, refusals, golden bytes.

use super::*;
use crate::testing::{self, each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;

fn entry() -> impl Strategy<Value = Entry> {
    (1u8..=4, 0u16..512, any::<prop::sample::Index>(), 1u32..=300).prop_map(
        |(kind, block, blocks, units)| {
            let kind = EntryKind::from_byte(kind).unwrap();
            let blocks = blocks.index(usize::from(512 - block)) as u16 + 1;
            let (blocks, units) = match kind {
                EntryKind::Frame => (blocks, units),
                EntryKind::Zero | EntryKind::Discard => (blocks, 0),
                EntryKind::Reference => (1, 1),
            };
            Entry { block, kind, blocks, length: units * UNIT as u32 }
        },
    )
}

fn identity() -> impl Strategy<Value = RecordIdentity> {
    (any::<u64>(), any::<u32>(), testing::version(), any::<u64>()).prop_map(
        |(vdisk, slice, version, incarnation)| RecordIdentity {
            vdisk: VdiskId(vdisk),
            slice: SliceIndex(slice),
            version,
            incarnation: Incarnation(incarnation),
        },
    )
}

/// A whole record whose data counts up; and where its data begins.
fn encode(identity: &RecordIdentity, entries: &[Entry]) -> (Vec<u8>, usize) {
    let mut bytes = Vec::new();
    encode_head(identity, entries, &mut bytes);
    let table = bytes.len();
    let data: usize = entries.iter().map(|entry| entry.length as usize).sum();
    bytes.extend((0..data).map(|at| (at / 7) as u8));
    (bytes, table)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn records_come_back(identity in identity(), entries in vec(entry(), 1..40)) {
        let (bytes, table) = encode(&identity, &entries);
        prop_assert_eq!(Record::announced_length(&bytes), Ok(bytes.len()));
        let record = Record::decode(&bytes).unwrap();
        prop_assert_eq!(record.identity, identity);
        let mut at = table;
        let decoded: Vec<Entry> = record
            .entries()
            .map(|(entry, data)| {
                assert_eq!(data, &bytes[at..at + data.len()]);
                assert_eq!(data.len(), entry.length as usize);
                at += data.len();
                entry
            })
            .collect();
        prop_assert_eq!(decoded, entries);
        prop_assert_eq!(at, bytes.len());
    }

    #[test]
    fn any_bytes_are_refused_without_panic(mut bytes in vec(any::<u8>(), 0..200), shaped in any::<bool>()) {
        if shaped && bytes.len() >= RECORD_HEADER {
            let length = bytes.len() as u32;
            bytes[..4].copy_from_slice(&MAGIC);
            bytes[8] = VERSION;
            bytes[10..12].copy_from_slice(&[1, 0]);
            bytes[12..16].copy_from_slice(&length.to_le_bytes());
            if bytes.len() >= 80 {
                let crc = crc32c::crc32c(&bytes[8..80]);
                bytes[4..8].copy_from_slice(&crc.to_le_bytes());
            }
        }
        if let Ok(record) = Record::decode(&bytes) {
            record.entries().count();
        }
    }
}

#[test]
fn a_flipped_bit_of_header_or_entries_is_found() {
    let identity = RecordIdentity {
        vdisk: VdiskId(1),
        slice: SliceIndex(2),
        version: Version { epoch: Epoch(3), sequence: Sequence(4) },
        incarnation: Incarnation(5),
    };
    let entries = [
        Entry { block: 9, kind: EntryKind::Frame, blocks: 1, length: 32 },
        Entry { block: 10, kind: EntryKind::Zero, blocks: 5, length: 0 },
        Entry { block: 30, kind: EntryKind::Reference, blocks: 1, length: 16 },
    ];
    let (bytes, table) = encode(&identity, &entries);
    each_flip(&bytes, |at, bad| assert_eq!(Record::decode(bad).is_err(), at < table, "byte {at}"));
    for length in 0..bytes.len() {
        assert!(Record::decode(&bytes[..length]).is_err());
    }
}

#[test]
fn unused_bytes_are_zero() {
    let (good, table) = encode(
        &RecordIdentity {
            vdisk: VdiskId(1),
            slice: SliceIndex(2),
            version: Version::default(),
            incarnation: Incarnation(5),
        },
        &[Entry { block: 1, kind: EntryKind::Frame, blocks: 1, length: 32 }],
    );
    // Of the header, of the entry, and after it.
    let header = [9].into_iter().chain(44..48).chain(56..64);
    for at in header.chain([RECORD_HEADER + 3]).chain(RECORD_HEADER + ENTRY..table) {
        let mut bad = good.clone();
        bad[at] = 1;
        let crc = crc32c::crc32c(&bad[8..table]);
        bad[4..8].copy_from_slice(&crc.to_le_bytes());
        let read = Record::decode(&bad).map(|_| ());
        assert_eq!(read, Err(FormatError::Malformed(WHAT)), "byte {at}");
    }
}

/// Entries that no host writes, in records that are intact.
#[test]
fn unsound_entries_are_refused() {
    let sound = [1, 0, 1, 0, 1, 0, 2, 0];
    let (bytes, table) = encode(
        &RecordIdentity {
            vdisk: VdiskId(1),
            slice: SliceIndex(2),
            version: Version::default(),
            incarnation: Incarnation(5),
        },
        &[Entry { block: 1, kind: EntryKind::Frame, blocks: 1, length: 32 }],
    );
    let with = |entry: [u8; 8]| {
        let mut bytes = bytes.clone();
        bytes[RECORD_HEADER..RECORD_HEADER + 8].copy_from_slice(&entry);
        let crc = crc32c::crc32c(&bytes[8..table]);
        bytes[4..8].copy_from_slice(&crc.to_le_bytes());
        Record::decode(&bytes).map(|_| ())
    };
    assert_eq!(with(sound), Ok(()));
    for (at, value, why) in [
        (2, 0, "kind 0"),
        (2, 5, "unknown kind"),
        (2, 2, "a zero with data"),
        (2, 4, "a reference of two units"),
        (4, 0, "no block"),
        (5, 2, "blocks beyond the slice"),
        (1, 2, "a block beyond the slice"),
        (6, 0, "a frame without data"),
        (6, 1, "less data than there is"),
        (6, 3, "more data than there is"),
    ] {
        let mut entry = sound;
        entry[at] = value;
        assert_eq!(with(entry), Err(FormatError::Malformed(WHAT)), "{why}");
    }
}

#[test]
fn golden_record() {
    let identity = RecordIdentity {
        vdisk: VdiskId(0x0102_0304_0506_0708),
        slice: SliceIndex(0x1112_1314),
        version: Version { epoch: Epoch(0x21), sequence: Sequence(0x31) },
        incarnation: Incarnation(0x41),
    };
    let entries = [
        Entry { block: 0x101, kind: EntryKind::Frame, blocks: 1, length: 48 },
        Entry { block: 0x105, kind: EntryKind::Discard, blocks: 6, length: 0 },
        Entry { block: 0x110, kind: EntryKind::Reference, blocks: 1, length: 16 },
    ];
    let mut head = Vec::new();
    encode_head(&identity, &entries, &mut head);
    let golden = "\
        434c524330d39baf01000300a0000000 08070605040302012100000000000000 \
        31000000000000001413121100000000 41000000000000000000000000000000 \
        01010100010003000501030006000000 10010400010001000000000000000000";
    assert_eq!(head, unhex(golden));
}
