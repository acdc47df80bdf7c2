//! The log's image on a controller's disk, and the log of one that is alone on drives.

use super::format::{controls, page, put, record_seeds, seal_record, unpaged};
use crate::input::Input;
use bytes::Bytes;
use cleave_datanode_core::grants::Grants;
use cleave_datanode_core::log::{Log, LogEntryKind, LogSettings};
use cleave_datanode_core::resident::Resident;
use cleave_format::control::Control;
use cleave_format::ids::*;
use cleave_format::solo::{SEGMENT_HEAD, SegmentHead, SegmentWriter, SessionIdentity};
use cleave_format::vault::{
    VaultHeader, VaultIdentity, VaultKind, VaultReader, VaultState, VaultWriter, body_offset,
    choose, next_generation,
};
use cleave_runtime::message::Message;

const PIECE: usize = 4096;

fn identity() -> VaultIdentity {
    VaultIdentity {
        cluster: ClusterId([1; 16]),
        datanode: DatanodeId(1),
        incarnation: Incarnation(9),
        role_epoch: Epoch(2),
        log_id: 5,
    }
}

/// Headers, alone and as one of two copies.
pub(super) fn header(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    let copies = [page(first), page(second), page(data), data.to_vec()];
    for bytes in &copies {
        if let Ok(header) = VaultHeader::decode(bytes) {
            assert_eq!(VaultHeader::decode(&header.encode()), Ok(header.clone()));
            assert!(header.body_end() >= header.body_offset);
            let consumed = header.consumed();
            let again = VaultHeader::decode(&consumed.encode());
            assert!(again == Ok(consumed) || header.generation == (1 << 62) - 1);
        }
    }
    for (one, other) in [(&copies[0], &copies[1]), (&copies[2], &copies[3])] {
        if let Ok(newest) = choose(one, other) {
            let generation = next_generation(newest.as_ref());
            assert!(newest.as_ref().is_none_or(|newest| newest.generation < generation));
            let start = body_offset(newest.as_ref(), 1 << 30);
            assert!(start.is_multiple_of(4096));
        }
    }
}

/// One copy, and two.
pub(super) fn header_seeds() -> Vec<Vec<u8>> {
    let (_, header) = image(&[(1, VaultKind::Record, &[7; 40])]);
    let mut first = unpaged(&header.encode());
    let second = unpaged(&header.consumed().encode());
    let alone = first.clone();
    let length = first.len().max(second.len());
    first.resize(length, 0);
    first.extend_from_slice(&second);
    vec![alone, first]
}

/// Bodies. The input is a body; the header is one that fits it.
pub(super) fn body(data: &[u8]) {
    for (bytes, entries) in [(data.to_vec(), 1), sealed(data)] {
        let mut bytes = bytes;
        bytes.truncate(bytes.len() / 16 * 16);
        let header = VaultHeader {
            state: VaultState::Image,
            generation: 1,
            identity: identity(),
            next_position: Position(1 << 40),
            entries,
            body_offset: 8192,
            body_length: bytes.len() as u64,
            body_crc: crc32c::crc32c(&bytes),
        };
        let whole = read(&header, &bytes, bytes.len().max(1));
        // How it is cut makes no difference.
        for piece in [1, 16, 100] {
            assert_eq!(read(&header, &bytes, piece), whole);
        }
    }
}

type Entries = Vec<(u64, VaultKind, Vec<u8>)>;

/// The entries until the first error, and whether the image was good.
fn read(header: &VaultHeader, bytes: &[u8], piece: usize) -> (Entries, bool) {
    let mut reader = VaultReader::new(header);
    let mut entries = Vec::new();
    for piece in bytes.chunks(piece) {
        assert!(reader.wanted().is_some());
        reader.feed(piece);
        loop {
            match reader.next_entry() {
                Ok(Some(entry)) => {
                    entries.push((entry.position.0, entry.kind, entry.bytes.to_vec()));
                }
                Ok(None) => break,
                Err(_) => return (entries, false),
            }
        }
    }
    (entries, reader.finish().is_ok())
}

/// The input with checksums of its entries, and how many there are.
fn sealed(data: &[u8]) -> (Vec<u8>, u64) {
    sealed_around(data, |_| ())
}

/// The same, with entries that `within` changes first.
fn sealed_around(data: &[u8], within: impl Fn(&mut [u8])) -> (Vec<u8>, u64) {
    let mut seed = [0; 16];
    seed[..8].copy_from_slice(&1_u64.to_le_bytes());
    seed[8..].copy_from_slice(&identity().log_id.to_le_bytes());
    let seed = crc32c::crc32c(&seed);
    let mut bytes = data.to_vec();
    let (mut at, mut entries) = (0, 0);
    while at + 16 <= bytes.len() {
        let length = (Input(&bytes[at + 8..]).word() & 0xff_ffff) as usize;
        let Some(end) = (at + 16).checked_add(length.next_multiple_of(16)) else { break };
        let Some(content) = bytes.get_mut(at + 16..end) else { break };
        within(&mut content[..length]);
        let content = &bytes[at + 16..end];
        let crc = crc32c::crc32c_append(seed, &bytes[at..at + 12]);
        let crc = crc32c::crc32c_append(crc, content);
        put(&mut bytes, at + 12, crc);
        at = end;
        entries += 1;
    }
    (bytes, entries)
}

fn image(entries: &[(u64, VaultKind, &[u8])]) -> (Vec<u8>, VaultHeader) {
    let mut writer = VaultWriter::<Vec<u8>>::new(identity(), 1, 8192);
    let mut full = Vec::new();
    for (position, kind, bytes) in entries {
        writer.append(Position(*position), *kind, &[bytes], &mut || vec![0; PIECE], &mut full);
    }
    let header = writer.finish(Position(99), &mut full);
    let mut body: Vec<u8> =
        full.iter().flat_map(|chunk| &chunk.buffer[..chunk.length]).copied().collect();
    body.truncate(header.body_length as usize);
    (body, header)
}

/// Images of several entries.
pub(super) fn body_seeds() -> Vec<Vec<u8>> {
    let entries: &[(u64, VaultKind, &[u8])] = &[
        (1, VaultKind::Record, &[7; 40]),
        (2, VaultKind::Control, &[]),
        (70, VaultKind::Record, &[8; 16]),
    ];
    vec![image(entries).0, image(&entries[..1]).0, Vec::new()]
}

/// An image as a controller loads it: the log that it makes, what its control records do, and the image of that.
pub(super) fn log(data: &[u8]) {
    let (mut bytes, entries) = sealed_around(data, |entry| {
        seal_record(entry);
    });
    bytes.truncate(bytes.len() / 16 * 16);
    let header = VaultHeader {
        state: VaultState::Image,
        generation: 1,
        identity: identity(),
        next_position: Position(1 << 40),
        entries,
        body_offset: 8192,
        body_length: bytes.len() as u64,
        body_crc: crc32c::crc32c(&bytes),
    };
    let (entries, _) = read(&header, &bytes, bytes.len().max(1));
    let settings = LogSettings { record_bytes_max: 2 << 20, control_bytes_max: 1 << 20 };
    let mut log = Log::new(5, Position(0), settings);
    let mut taken = 0;
    for (position, kind, bytes) in entries {
        let (position, length) = (Position(position), bytes.len());
        let outcome = match kind {
            VaultKind::Record => {
                log.insert_record(position, &mut Message::from(Bytes::from(bytes)), length)
            }
            VaultKind::Control => {
                let check = cleave_format::control::check(position, &bytes);
                log.insert_encoded_control(position, bytes.into(), check).map(drop)
            }
        };
        if outcome.is_err() {
            break;
        }
        taken += 1;
        assert_eq!(log.len(), taken);
    }
    let next = log.next();
    if log.finish_copy(next, Position(0)).is_err() {
        return;
    }
    work(&mut log);
    let mut writer = VaultWriter::<Vec<u8>>::new(identity(), 1, 8192);
    let (mut full, mut from) = (Vec::new(), Position(0));
    while let Some((position, entry)) = log.next_entry(from, log.next()) {
        let kind = match entry.kind {
            LogEntryKind::Record(..) => VaultKind::Record,
            LogEntryKind::Control { .. } => VaultKind::Control,
        };
        writer.append(position, kind, &[&entry.bytes], &mut || vec![0; PIECE], &mut full);
        from = Position(position.0 + 1);
    }
    let header = writer.finish(log.next(), &mut full);
    assert_eq!(header.entries, log.len());
}

/// What an active does with a log that it loaded.
fn work(log: &mut Log) {
    let (mut resident, mut grants) = (Resident::default(), Grants::default());
    let mut after = Position(0);
    while let Some((position, control)) = log.next_control(after, log.next()).expect("it is sound")
    {
        after = position;
        resident.apply(position, &control);
        if let Control::Grant { incarnation, stripes } = &control {
            grants.replay(*incarnation, stripes);
        }
        let (entries, bytes) = (log.len(), log.record_bytes());
        log.release(&control);
        assert!(log.len() <= entries && log.record_bytes() <= bytes);
        let released = log.len();
        log.release(&control);
        assert_eq!(log.len(), released, "releasing again changes nothing");
        log.compact();
    }
    for (vdisk, seal) in resident.seals() {
        log.assign(vdisk, seal.host);
    }
    log.trim(Position(after.0 / 2));
    let left = log.next_control(Position(0), log.next()).expect("it is sound");
    assert!(left.is_none_or(|(position, _)| position.0 > after.0 / 2));
}

/// Records and control records of every kind.
pub(super) fn log_seeds() -> Vec<Vec<u8>> {
    let records = record_seeds();
    let controls: Vec<Vec<u8>> = controls().iter().map(cleave_format::encode).collect();
    let all = |records: &[Vec<u8>], controls: &[Vec<u8>]| {
        let records = records.iter().map(|bytes| (VaultKind::Record, bytes.clone()));
        let controls = controls.iter().map(|bytes| (VaultKind::Control, bytes.clone()));
        let entries: Vec<_> = records.chain(controls).collect();
        let entries: Vec<(u64, VaultKind, &[u8])> = (1..)
            .zip(&entries)
            .map(|(position, (kind, bytes))| (position, *kind, &bytes[..]))
            .collect();
        image(&entries).0
    };
    let mut seeds: Vec<Vec<u8>> =
        records.iter().map(|record| all(std::slice::from_ref(record), &controls[..1])).collect();
    seeds.extend(controls.chunks(4).map(|controls| all(&records[..1], controls)));
    seeds
}

fn session() -> SessionIdentity {
    SessionIdentity {
        cluster: ClusterId([1; 16]),
        datanode: DatanodeId(1),
        log: 5,
        incarnation: Incarnation(9),
        session: 3,
    }
}

/// A segment, as it is and with its checksum made right, as a controller loads it.
pub(super) fn segment(data: &[u8]) {
    let mut sealed = data.to_vec();
    if data.len() >= SEGMENT_HEAD {
        let end = SEGMENT_HEAD.saturating_add(Input(&data[72..]).word() as usize);
        let covered = &data[..end.min(data.len())];
        let crc = crc32c::crc32c_append(crc32c::crc32c(&covered[..12]), &covered[16..]);
        put(&mut sealed, 12, crc);
    }
    for bytes in [data, &sealed] {
        let Ok(head) = SegmentHead::decode(bytes) else { continue };
        assert!(head.size() >= SEGMENT_HEAD + head.length as usize);
        // Of bytes that fail their check nothing may be made that is believed, but nothing may panic either.
        let (sound, entries) = (head.check(bytes).is_ok(), head.entries(bytes));
        let (true, Ok(entries)) = (sound, entries) else { continue };
        let mut writer = SegmentWriter::new(head.identity, head.number, Vec::new());
        for entry in &entries {
            writer.append(entry.position, entry.kind, entry.check, entry.bytes);
        }
        if entries.last().is_none_or(|last| last.position < head.next) {
            let again = writer.finish(head.next);
            let length = SEGMENT_HEAD + head.length as usize;
            assert_eq!(again[..length], bytes[..length], "there is one way to write a segment");
        }
    }
}

/// Segments of no entries, and of records and control records.
pub(super) fn segment_seeds() -> Vec<Vec<u8>> {
    let mut all = SegmentWriter::new(session(), 4, Vec::new());
    let mut position = Position(7);
    for record in record_seeds().iter().take(2) {
        all.append(position, VaultKind::Record, 0, record);
        position.0 += 2;
    }
    for control in controls().iter().take(4) {
        let bytes = cleave_format::encode(control);
        let check = cleave_format::control::check(position, &bytes);
        all.append(position, VaultKind::Control, check, &bytes);
        position.0 += 1;
    }
    let none = SegmentWriter::new(session(), 0, Vec::new());
    let segments = [none.finish(Position(1)), all.finish(position)];
    segments.map(|segment| segment[..unpadded(&segment)].to_vec()).to_vec()
}

fn unpadded(segment: &[u8]) -> usize {
    SegmentHead::decode(segment).map_or(0, |head| SEGMENT_HEAD + head.length as usize)
}
