//! Vault images: round trips, crashes between writes, refusals, golden bytes.

use super::*;
use crate::testing::{each_flip, unhex};
use proptest::collection::vec;
use proptest::prelude::*;

type Log = Vec<(u64, VaultKind, Vec<u8>)>;

fn identity() -> VaultIdentity {
    VaultIdentity {
        cluster: ClusterId(std::array::from_fn(|at| 0xa0 + at as u8)),
        datanode: DatanodeId(0x0102),
        incarnation: Incarnation(0x11),
        role_epoch: Epoch(0x21),
        log_id: 0x31,
    }
}

fn log() -> impl Strategy<Value = Log> {
    vec((1u64..100, any::<bool>(), vec(any::<u8>(), 0..5000)), 0..20).prop_map(|entries| {
        let mut position = 0;
        let mut place = |(step, record, bytes)| {
            position += step;
            let kind = if record { VaultKind::Record } else { VaultKind::Control };
            (position, kind, bytes)
        };
        entries.into_iter().map(&mut place).collect()
    })
}

/// A vault file in memory.
#[derive(Clone, Default)]
struct File(Vec<u8>);

impl File {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let end = offset as usize + bytes.len();
        self.0.resize(self.0.len().max(end), 0);
        self.0[offset as usize..end].copy_from_slice(bytes);
    }

    fn newest(&self) -> Result<Option<VaultHeader>, FormatError> {
        let mut head = self.0.clone();
        head.resize(head.len().max(COPIES * VAULT_HEADER), 0);
        choose(&head[..VAULT_HEADER], &head[VAULT_HEADER..2 * VAULT_HEADER])
    }

    /// The body's chunks, and the header that makes them an image.
    fn dump(&self, log: &Log, chunk: usize) -> (Vec<VaultChunk<Vec<u8>>>, VaultHeader) {
        let newest = self.newest().unwrap();
        let length_max = log.iter().map(|(_, _, bytes)| bytes.len() as u64 + 32).sum();
        let offset = body_offset(newest.as_ref(), length_max);
        let mut writer = VaultWriter::new(identity(), next_generation(newest.as_ref()), offset);
        let mut chunks = Vec::new();
        for (position, kind, bytes) in log {
            let (head, tail) = bytes.split_at(bytes.len() / 3);
            let slices = [head, &[], tail];
            let position = Position(*position);
            writer.append(position, *kind, &slices, &mut || vec![0xee; chunk], &mut chunks);
        }
        let next = Position(log.last().map_or(1, |(position, ..)| position + 1));
        let header = writer.finish(next, &mut chunks);
        (chunks, header)
    }

    fn write_image(&mut self, log: &Log, chunk: usize) -> VaultHeader {
        let (chunks, header) = self.dump(log, chunk);
        for chunk in chunks {
            self.write(chunk.offset, &chunk.buffer[..chunk.length]);
        }
        self.write(header.copy_offset(), &header.encode());
        header
    }

    fn read(&self, header: &VaultHeader, piece: usize) -> Result<Log, FormatError> {
        let mut reader = VaultReader::new(header);
        let mut log = Vec::new();
        loop {
            while let Some(entry) = reader.next_entry()? {
                log.push((entry.position.0, entry.kind, entry.bytes.to_vec()));
            }
            let Some(offset) = reader.wanted() else { break };
            let bytes = &self.0[(offset as usize).min(self.0.len())..];
            if bytes.is_empty() {
                break;
            }
            reader.feed(&bytes[..piece.min(bytes.len())]);
        }
        reader.finish()?;
        Ok(log)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn images_come_back(log in log(), chunk in 1usize..4, piece in 1usize..20_000) {
        let mut file = File::default();
        let written = file.write_image(&log, chunk * 4096);
        let header = file.newest().unwrap().unwrap();
        prop_assert_eq!(&header, &written);
        prop_assert_eq!(header.identity, identity());
        prop_assert_eq!(header.entries, log.len() as u64);
        prop_assert_eq!(file.read(&header, piece), Ok(log));
        prop_assert!(file.0.len().is_multiple_of(4096));
    }

    #[test]
    fn a_damaged_body_is_refused(
        log in log(),
        at in any::<prop::sample::Index>(),
        bit in 0u8..8,
        piece in 1usize..20_000,
    ) {
        let mut file = File::default();
        let header = file.write_image(&log, 8192);
        prop_assume!(header.body_length > 0);
        file.0[BODY_START as usize + at.index(header.body_length as usize)] ^= 1 << bit;
        prop_assert!(file.read(&header, piece).is_err());
    }

    #[test]
    fn any_body_is_refused_without_panic(
        bytes in vec(any::<u8>(), 0..300),
        entries in 0u64..4,
        crc in any::<bool>(),
    ) {
        let body_length = bytes.len() as u64 / 16 * 16;
        let header = VaultHeader {
            state: VaultState::Image,
            generation: 1,
            identity: identity(),
            next_position: Position(u64::MAX),
            entries,
            body_offset: BODY_START,
            body_length,
            body_crc: if crc { crc32c::crc32c(&bytes[..body_length as usize]) } else { 0 },
        };
        let mut file = File::default();
        file.write(BODY_START, &bytes);
        let _ = file.read(&header, 100);
    }

    #[test]
    fn any_header_is_refused_without_panic(
        mut page in vec(any::<u8>(), 0..VAULT_HEADER + 10),
        shaped in any::<bool>(),
    ) {
        if shaped && page.len() >= VAULT_HEADER {
            page.truncate(VAULT_HEADER);
            page[..10].copy_from_slice(b"CLEAVEVT\x01\x01");
            crate::page::seal(&mut page);
        }
        let _ = VaultHeader::decode(&page);
        let _ = choose(&page, &page);
    }

    /// A second image over the first, cut short anywhere, in the order that is kept by flushes: the
    /// first is whole until the second is (C17).
    #[test]
    fn a_crash_leaves_one_of_the_two_images(
        (first, second) in (log(), log()),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut file = File::default();
        let old = file.write_image(&first, 4096);
        let (chunks, new) = file.dump(&second, 4096);
        let mut writes: Vec<(u64, Vec<u8>)> = chunks
            .into_iter()
            .map(|chunk| (chunk.offset, chunk.buffer[..chunk.length].to_vec()))
            .collect();
        writes.push((new.copy_offset(), new.encode()));
        let total: usize = writes.iter().map(|(_, bytes)| bytes.len()).sum();
        let mut left = cut.index(total + 1);
        for (offset, bytes) in &writes {
            let count = left.min(bytes.len());
            file.write(*offset, &bytes[..count]);
            left -= count;
        }
        let header = file.newest().unwrap().unwrap();
        if header == new {
            prop_assert_eq!(file.read(&header, 5000), Ok(second));
        } else {
            prop_assert_eq!(&header, &old);
            prop_assert_eq!(file.read(&header, 5000), Ok(first));
        }
    }

    /// Loading ends an image for good, also when its end is being written at a crash (C7).
    #[test]
    fn a_consumed_image_is_not_loaded_again(first in log(), second in log(), torn in 0usize..=4096) {
        let mut file = File::default();
        let image = file.write_image(&first, 4096);
        let end = image.consumed();
        file.write(end.copy_offset(), &end.encode()[..torn]);
        let newest = file.newest().unwrap().unwrap();
        // The page's last four bytes are its checksum.
        prop_assert!(newest == image || newest == end);
        file.write(end.copy_offset(), &end.encode());
        prop_assert_eq!(file.newest().unwrap().unwrap().state, VaultState::Consumed);
        // The next image takes the place of the consumed one.
        let next = file.write_image(&second, 4096);
        prop_assert_eq!((next.generation, next.body_offset), (3, BODY_START));
        prop_assert_eq!(file.read(&file.newest().unwrap().unwrap(), 9999), Ok(second));
    }
}

#[test]
fn entries_of_an_older_image_are_told_apart() {
    let log: Log = vec![(1, VaultKind::Record, vec![7; 100]), (2, VaultKind::Control, vec![8; 50])];
    let mut file = File::default();
    let header = file.write_image(&log, 4096);
    // The same header, of a later generation or of another log, whose body was lost.
    let later = VaultHeader { generation: 2, ..header.clone() };
    assert_eq!(file.read(&later, 4096), Err(FormatError::Checksum(WHAT)));
    let mut other = header.clone();
    other.identity.log_id += 1;
    assert_eq!(file.read(&other, 4096), Err(FormatError::Checksum(WHAT)));
}

#[test]
fn an_incomplete_image_is_refused() {
    let log: Log = vec![(1, VaultKind::Record, vec![7; 100]), (2, VaultKind::Control, vec![8; 50])];
    let mut file = File::default();
    let header = file.write_image(&log, 4096);
    let more = VaultHeader { entries: 3, ..header.clone() };
    assert_eq!(file.read(&more, 4096), Err(FormatError::Malformed(WHAT)));
    let early = VaultHeader { next_position: Position(2), ..header.clone() };
    assert_eq!(file.read(&early, 4096), Err(FormatError::Malformed(WHAT)));
    file.0.truncate(BODY_START as usize + 100);
    assert_eq!(file.read(&header, 4096), Err(FormatError::Short(WHAT)));
}

#[test]
fn positions_that_do_not_grow_are_refused() {
    let entry = |position: u64| {
        let mut head = [0; ENTRY_HEADER];
        head[..8].copy_from_slice(&position.to_le_bytes());
        head[11] = 1;
        let crc = crc32c::crc32c_append(entry_seed(1, identity().log_id), &head[..12]);
        head[12..].copy_from_slice(&crc.to_le_bytes());
        head
    };
    let read = |positions: [u64; 2]| {
        let body = positions.map(entry).concat();
        let mut file = File::default();
        file.write(BODY_START, &body);
        let header = VaultHeader {
            state: VaultState::Image,
            generation: 1,
            identity: identity(),
            next_position: Position(9),
            entries: 2,
            body_offset: BODY_START,
            body_length: 32,
            body_crc: crc32c::crc32c(&body),
        };
        file.read(&header, 4096).map(|log| log.len())
    };
    assert_eq!(read([4, 5]), Ok(2));
    assert_eq!(read([5, 5]), Err(FormatError::Malformed(WHAT)));
    assert_eq!(read([5, 4]), Err(FormatError::Malformed(WHAT)));
}

#[test]
fn each_flipped_bit_of_a_header_is_found() {
    let header = File::default().write_image(&vec![(1, VaultKind::Record, vec![1])], 4096);
    each_flip(&header.encode(), |at, bad| {
        assert!(VaultHeader::decode(bad).is_err(), "byte {at}");
    });
}

#[test]
fn unused_bytes_are_zero() {
    let header = File::default().write_image(&vec![(1, VaultKind::Record, vec![1])], 4096);
    for at in 96..VAULT_HEADER - 4 {
        let mut bad = header.encode();
        bad[at] = 1;
        crate::page::seal(&mut bad);
        assert_eq!(VaultHeader::decode(&bad), Err(FormatError::Malformed(WHAT)), "byte {at}");
    }
    // The padding of an entry, under its own checksum and the body's.
    let mut file = File::default();
    let mut entry = [0; 2 * ENTRY_HEADER];
    (entry[0], entry[8], entry[11]) = (1, 1, 1);
    for (padding, wanted) in [(0, Ok(1)), (1, Err(FormatError::Malformed(WHAT)))] {
        entry[31] = padding;
        let seed = entry_seed(header.generation, identity().log_id);
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(seed, &entry[..12]), &entry[16..]);
        entry[12..16].copy_from_slice(&crc.to_le_bytes());
        file.write(BODY_START, &entry);
        let whole = VaultHeader { body_crc: crc32c::crc32c(&entry), ..header.clone() };
        assert_eq!(file.read(&whole, 4096).map(|log| log.len()), wanted);
    }
}

#[test]
fn a_generation_without_a_next_one_is_refused() {
    let last = File::default().write_image(&vec![(1, VaultKind::Record, vec![1])], 4096);
    let decoded = |generation| {
        VaultHeader::decode(&VaultHeader { generation, ..last.clone() }.encode())
            .map(|header| VaultHeader::decode(&header.consumed().encode()).is_ok())
    };
    assert_eq!(decoded((1 << 62) - 2), Ok(true));
    assert_eq!(decoded((1 << 62) - 1), Ok(false), "refused, and no overflow");
    assert_eq!(decoded(1 << 62), Err(FormatError::Malformed(WHAT)));
    assert_eq!(decoded(u64::MAX), Err(FormatError::Malformed(WHAT)));
}

#[test]
fn the_newest_intact_header_is_chosen() {
    let header = |generation, state| VaultHeader {
        state,
        generation,
        identity: identity(),
        next_position: Position(1),
        entries: 0,
        body_offset: BODY_START,
        body_length: 0,
        body_crc: 0,
    };
    let (image, consumed) = (VaultState::Image, VaultState::Consumed);
    let [two, three] = [header(2, consumed).encode(), header(3, image).encode()];
    let empty = vec![0; VAULT_HEADER];
    let mut damaged = three.clone();
    damaged[50] ^= 1;
    let generation =
        |a: &[u8], b: &[u8]| choose(a, b).map(|header| header.map(|header| header.generation));
    assert_eq!(generation(&empty, &empty), Ok(None));
    assert_eq!(generation(&two, &three), Ok(Some(3)));
    assert_eq!(generation(&two, &damaged), Ok(Some(2)));
    assert_eq!(generation(&empty, &three), Ok(Some(3)));
    assert_eq!(generation(&three, &empty), Err(FormatError::Identity(WHAT)), "the wrong copy");
    assert_eq!(generation(&empty, &damaged), Err(FormatError::Checksum(WHAT)));
    assert_eq!(generation(&[7; VAULT_HEADER], &empty), Err(FormatError::Magic(WHAT)));
    let mut other = header(3, image);
    other.identity.datanode = DatanodeId(9);
    assert_eq!(generation(&two, &other.encode()), Err(FormatError::Identity(WHAT)));
}

#[test]
fn bodies_of_valid_images_do_not_overlap() {
    let image = |body_offset, body_length, state| VaultHeader {
        state,
        generation: 1,
        identity: identity(),
        next_position: Position(1),
        entries: 0,
        body_offset,
        body_length,
        body_crc: 0,
    };
    let far = BODY_START + (1 << 20);
    assert_eq!(body_offset(None, 1 << 30), BODY_START);
    let first = image(BODY_START, 5000 / 16 * 16, VaultState::Image);
    assert_eq!(body_offset(Some(&first), 10), BODY_START + 8192);
    let second = image(far, 4096, VaultState::Image);
    assert_eq!(body_offset(Some(&second), 1 << 20), BODY_START);
    assert_eq!(body_offset(Some(&second), (1 << 20) + 1), far + 4096);
    let consumed = image(far, 0, VaultState::Consumed);
    assert_eq!(body_offset(Some(&consumed), 1 << 30), BODY_START);
}

#[test]
fn golden_image() {
    let log: Log =
        vec![(5, VaultKind::Record, (1..=20).collect()), (9, VaultKind::Control, vec![0xcc; 16])];
    let mut file = File::default();
    file.write_image(&log, 4096);
    let golden = "\
        00*4096 434c45415645565401010201227a929f \
        a0a1a2a3a4a5a6a7a8a9aaabacadaeaf 01000000000000001100000000000000 \
        21000000000000003100000000000000 0a000000000000000200000000000000 \
        002000000000000050 00*4003 ca583de3050000000000000014000001 \
        a95ceef70102030405060708090a0b0c 0d0e0f10111213140000000000000000 \
        00000000090000000000000010000002 746ab02fcccccccccccccccccccccccc \
        cccccccc 00*4016";
    assert_eq!(file.0, unhex(golden));
}
