use super::*;
use proptest::prelude::*;

fn identity() -> SessionIdentity {
    SessionIdentity {
        cluster: ClusterId([7; 16]),
        datanode: DatanodeId(0x0102),
        log: 9,
        incarnation: Incarnation(12),
        session: 3,
    }
}

fn segment(number: u64, entries: &[(u64, Vec<u8>)], next: u64) -> Vec<u8> {
    let mut writer = SegmentWriter::new(identity(), number, vec![1, 2, 3]);
    for (position, bytes) in entries {
        let control = position % 2 == 0;
        let kind = if control { VaultKind::Control } else { VaultKind::Record };
        writer.append(Position(*position), kind, if control { 77 } else { 0 }, bytes);
    }
    writer.finish(Position(next))
}

#[test]
fn golden_vector() {
    let bytes = segment(5, &[(3, vec![0xaa; 5]), (4, vec![0xbb; 16])], 6);
    assert_eq!(bytes.len(), PAGE);
    assert_eq!(&bytes[..12], b"CLEAVEAL\x01\x00\x02\x01");
    assert_eq!(&bytes[16..32], &[7; 16]);
    let words = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
    assert_eq!([32, 40, 48, 56, 64].map(words), [9, 12, 3, 5, 6]);
    assert_eq!(words(72), 64 | 2 << 32);
    assert_eq!(&bytes[96..112], &[3, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 1, 0, 0, 0, 0]);
    assert_eq!(&bytes[112..128], &[0xaa, 0xaa, 0xaa, 0xaa, 0xaa, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(&bytes[128..144], &[4, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 2, 77, 0, 0, 0]);
    assert!(bytes[160..].iter().all(|byte| *byte == 0));
    let crc = crc32c::crc32c(&[&bytes[..12], &bytes[16..160]].concat());
    assert_eq!(bytes[12..16], crc.to_le_bytes());
}

/// C3: what another session, or an older life of the area, left behind does not pass for a segment of this one.
#[test]
fn any_flipped_bit_is_found() {
    let bytes = segment(0, &[(3, vec![0xaa; 5])], 4);
    let end = SEGMENT_HEAD + SegmentHead::decode(&bytes).unwrap().length as usize;
    for bit in 0..end * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        let taken = SegmentHead::decode(&flipped).and_then(|head| head.check(&flipped));
        assert!(taken.is_err(), "bit {bit}");
    }
}

proptest! {
    #[test]
    fn comes_back(lengths in proptest::collection::vec(0usize..9000, 0..12), gap in 0u64..5) {
        let mut position = 1;
        let entries: Vec<(u64, Vec<u8>)> = lengths.iter().map(|length| {
            position += 1 + gap;
            (position, vec![position as u8; *length])
        }).collect();
        let bytes = segment(2, &entries, position + 1);
        let head = SegmentHead::decode(&bytes).unwrap();
        prop_assert_eq!((head.size(), head.number, head.next.0), (bytes.len(), 2, position + 1));
        prop_assert_eq!(head.identity, identity());
        head.check(&bytes).unwrap();
        let read: Vec<(u64, Vec<u8>)> = head.entries(&bytes).unwrap()
            .iter().map(|entry| (entry.position.0, entry.bytes.to_vec())).collect();
        prop_assert_eq!(read, entries);
    }

    #[test]
    fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400), seal in any::<bool>()) {
        let mut bytes = bytes;
        if seal && bytes.len() >= SEGMENT_HEAD {
            bytes[..8].copy_from_slice(&MAGIC);
            bytes[8] = VERSION;
        }
        if let Ok(head) = SegmentHead::decode(&bytes) {
            let _ = head.check(&bytes);
            let _ = head.entries(&bytes);
        }
    }
}
