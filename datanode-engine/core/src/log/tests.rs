//! The log against a simple model; chunks that are used again.

use super::*;
use cleave_format::control::{Commit, CommitVdisk, Release};
use cleave_format::frame::{self, Codec, FrameHeader};
use cleave_format::ids::{Epoch, Incarnation, Sequence, SliceIndex, StripeId, Version};
use cleave_format::record::{Entry, EntryKind, encode_head};
use proptest::prelude::*;
use std::collections::BTreeMap;

const SETTINGS: LogSettings =
    LogSettings { record_bytes_max: 8 * CHUNK as u64, control_bytes_max: 1 << 20 };

type Name = (u64, u32, u64, u64);

fn identity((vdisk, slice, epoch, sequence): Name) -> RecordIdentity {
    RecordIdentity {
        vdisk: VdiskId(vdisk),
        slice: SliceIndex(slice),
        version: Version { epoch: Epoch(epoch), sequence: Sequence(sequence) },
        incarnation: Incarnation(1),
    }
}

fn record(name: Name, data: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    let length = (data / 16 * 16) as u32;
    let kind = if length == 0 { EntryKind::Zero } else { EntryKind::Frame };
    encode_head(&identity(name), &[Entry { block: 0, kind, blocks: 1, length }], &mut bytes);
    bytes.extend((0..length).map(|byte| (u64::from(byte) ^ name.3) as u8));
    bytes
}

fn message(bytes: &[u8], cut: usize) -> Message {
    let mut message = Message::new();
    let (front, back) = bytes.split_at(cut.min(bytes.len()));
    message.push(Bytes::copy_from_slice(front));
    message.push(Bytes::copy_from_slice(back));
    message
}

fn append(log: &mut Log, name: Name, data: usize, begins: bool) -> Result<Appended, Refusal> {
    let bytes = record(name, data);
    let mut message = message(&bytes, bytes.len() / 3);
    let outcome = log.append(&mut message, bytes.len(), begins, u64::MAX / 4, |_| Ok(()));
    outcome.map_err(|error| error.expect("a sound record"))
}

fn commit((vdisk, slice, epoch, first): Name, last: u64, struck: bool) -> Control {
    let release = Release {
        slice: SliceIndex(slice),
        epoch: Epoch(epoch),
        first: Sequence(first),
        last: Sequence(last),
    };
    Control::Commit(Commit {
        stripe: StripeId(1),
        incarnation: Incarnation(1),
        slots: Vec::new(),
        shards_missing: 0,
        vdisks: vec![CommitVdisk {
            vdisk: VdiskId(vdisk),
            epoch: Epoch(epoch),
            struck,
            in_footer: true,
            has_pieces: false,
            releases: vec![release],
            entries: Vec::new(),
            references: Vec::new(),
            run: None,
        }],
    })
}

/// Everything that a log holds, by walking it.
fn content(log: &Log) -> BTreeMap<u64, Vec<u8>> {
    let (mut found, mut from) = (BTreeMap::new(), Position(0));
    while let Some((position, entry)) = log.next_entry(from, log.next()) {
        found.insert(position.0, entry.bytes.to_vec());
        from = Position(position.0 + 1);
    }
    found
}

/// Copies a log as the peer does.
fn copy(log: &Log) -> Log {
    let mut copied = Log::new(log.id(), Position(0), SETTINGS);
    for (position, bytes) in content(log) {
        let entry = log.entry(Position(position)).unwrap();
        if let LogEntryKind::Control { check } = entry.kind {
            copied.insert_encoded_control(Position(position), Bytes::from(bytes), check).unwrap();
        } else {
            let length = bytes.len();
            let mut message = message(&bytes, 5);
            copied.insert_record(Position(position), &mut message, length).unwrap();
        }
    }
    copied.finish_copy(log.next(), log.trimmed()).unwrap();
    copied
}

#[derive(Clone, Debug)]
enum Step {
    /// Slice, sequence relative to the host's next, whether the host says begins, data.
    Append(Name, i64, bool, usize),
    Control,
    Commit(Name, u64, bool),
    Delete(u64),
    Trim(u64),
    Copy,
    /// So many positions are taken back, but nothing from before the last of the steps above.
    Truncate(u64),
}

fn name() -> impl Strategy<Value = Name> {
    (1u64..3, 0u32..3, 1u64..3, 1u64..12)
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (name(), -3i64..2, any::<bool>(), 0usize..60_000)
            .prop_map(|(name, by, begins, data)| Step::Append(name, by, begins, data)),
        1 => Just(Step::Control),
        4 => (name(), 0u64..6, any::<bool>()).prop_map(|(name, more, s)| Step::Commit(name, name.3 + more, s)),
        1 => (1u64..3).prop_map(Step::Delete),
        1 => (0u64..200).prop_map(Step::Trim),
        1 => Just(Step::Copy),
        1 => (1u64..20).prop_map(Step::Truncate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// C1, C4, C28: gaps refused, resends recognised, releases with holes; a copy holds the same; what is taken back
    /// was never there (C7).
    #[test]
    fn follows_the_model(steps in proptest::collection::vec(step(), 1..150)) {
        let mut log = Log::new(9, Position(1), SETTINGS);
        let mut held: BTreeMap<Name, u64> = BTreeMap::new();
        let mut ends: BTreeMap<(u64, u32, u64), u64> = BTreeMap::new();
        let mut controls: Vec<u64> = Vec::new();
        let mut bytes: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let (mut next, mut settled) = (1, 1);
        for step in steps {
            if !matches!(step, Step::Append(..) | Step::Control | Step::Truncate(_)) {
                settled = next;
            }
            match step {
                Step::Append((vdisk, slice, epoch, wish), by, begins, data) => {
                    let of = |name: &Name| (name.0, name.1, name.2) == (vdisk, slice, epoch);
                    let known = held.keys().any(of);
                    let end = ends.get(&(vdisk, slice, epoch)).copied().filter(|_| known);
                    let sequence = end.map_or(wish as i64, |end| end as i64 + by).max(0) as u64;
                    let name = (vdisk, slice, epoch, sequence);
                    let got = append(&mut log, name, data, begins);
                    let expected = match end {
                        _ if sequence == 0 => Err(Refusal::Gap),
                        None if begins => Ok(Appended::New(Position(next))),
                        None => Err(Refusal::Gap),
                        Some(end) if sequence < end => match held.get(&name) {
                            Some(position) => Ok(Appended::Held(Position(*position))),
                            None => Ok(Appended::Released),
                        },
                        Some(end) if sequence == end || begins => Ok(Appended::New(Position(next))),
                        Some(_) => Err(Refusal::Gap),
                    };
                    if got == Err(Refusal::Full) {
                        prop_assert!(log.memory().0 + CHUNK as u64 >= log.memory().1);
                        continue;
                    }
                    prop_assert_eq!(got, expected);
                    if let Ok(Appended::New(position)) = got {
                        held.insert(name, position.0);
                        ends.insert((vdisk, slice, epoch), sequence + 1);
                        bytes.insert(position.0, record(name, data));
                        next += 1;
                    }
                }
                Step::Control => {
                    let control = Control::GrantEnd { stripes: vec![StripeId(next)] };
                    prop_assert_eq!(log.append_control(&control), Position(next));
                    bytes.insert(next, cleave_format::encode(&control));
                    controls.push(next);
                    next += 1;
                }
                Step::Commit(name, last, struck) => {
                    log.release(&commit(name, last, struck));
                    held.retain(|other, position| {
                        let same = (other.0, other.1, other.2) == (name.0, name.1, name.2);
                        let gone = !struck && same && (name.3..=last).contains(&other.3);
                        if gone { bytes.remove(position); }
                        !gone
                    });
                }
                Step::Delete(vdisk) => {
                    log.release(&Control::Delete { vdisk: VdiskId(vdisk), epoch: Epoch(3) });
                    held.retain(|name, position| {
                        if name.0 == vdisk { bytes.remove(position); }
                        name.0 != vdisk
                    });
                }
                Step::Trim(through) => {
                    log.trim(Position(through));
                    controls.retain(|position| {
                        if *position <= through { bytes.remove(position); }
                        *position > through
                    });
                }
                Step::Truncate(back) => {
                    next = next.saturating_sub(back).max(settled);
                    log.truncate(Position(next));
                    for (name, _) in held.extract_if(.., |_, position| *position >= next) {
                        let end = ends.get_mut(&(name.0, name.1, name.2)).unwrap();
                        *end = (*end).min(name.3);
                    }
                    controls.retain(|position| *position < next);
                    bytes.retain(|position, _| *position < next);
                }
                Step::Copy => {
                    log = copy(&log);
                    // What the copy knows of a slice's end is its last held record.
                    for (of, end) in &mut ends {
                        let last = held.keys().filter(|name| (name.0, name.1, name.2) == *of).map(|name| name.3).max();
                        *end = last.map_or(*end, |last| last + 1);
                    }
                }
            }
            prop_assert_eq!(log.next(), Position(next));
            prop_assert_eq!(log.len(), bytes.len() as u64);
            let records = bytes.iter().filter(|(position, _)| !controls.contains(position));
            prop_assert_eq!(log.record_bytes(), records.map(|(_, bytes)| bytes.len() as u64).sum::<u64>());
            while log.compact() {}
        }
        prop_assert_eq!(content(&log), bytes);
        let mut seen = Vec::new();
        let mut after = Position(0);
        while let Some((position, _)) = log.next_control(after, log.next()).unwrap() {
            seen.push(position.0);
            after = position;
        }
        prop_assert_eq!(seen, controls);
    }
}

#[test]
fn memory_is_used_again_whatever_the_order_of_releases() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    // One record in eight stays: without compaction the stragglers would hold every chunk.
    for round in 1..400u64 {
        for _ in 0..8 {
            while log.compact() {}
            let sequence = log.next().0;
            append(&mut log, (1, 0, 1, sequence), 30_000, true).unwrap();
        }
        let last = log.next().0 - 1;
        log.release(&commit((1, 0, 1, last - 6), last, false));
        if round > 100 {
            let oldest = log.next_entry(Position(0), log.next()).unwrap().0.0;
            log.release(&commit((1, 0, 1, oldest), oldest, false));
        }
        assert!(log.memory().0 <= log.memory().1, "{:?}", log.memory());
    }
    for (position, bytes) in content(&log) {
        assert_eq!(bytes, record((1, 0, 1, position), 30_000));
    }
}

#[test]
fn a_full_log_refuses_and_a_slice_on_its_way_keeps_its_chunk() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let mut sequence = 1;
    let mut on_its_way = None;
    loop {
        match append(&mut log, (1, 0, 1, sequence), 60_000, true) {
            Ok(_) => sequence += 1,
            Err(refusal) => {
                assert_eq!(refusal, Refusal::Full);
                break;
            }
        }
        on_its_way.get_or_insert_with(|| log.entry(Position(1)).unwrap().bytes.clone());
    }
    assert!(log.has_control_room(1000)); // C13
    log.release(&commit((1, 0, 1, 1), sequence, false));
    assert_eq!(log.record_bytes(), 0);
    let mut filled = 0;
    while append(&mut log, (1, 0, 2, filled + 1), 60_000, true).is_ok() {
        filled += 1;
    }
    assert!(filled > 50 && filled < sequence - 1, "{filled} of {sequence}");
    assert_eq!(on_its_way.take().unwrap(), record((1, 0, 1, 1), 60_000));
    log.release(&commit((1, 0, 2, 1), filled, false));
    let mut again = 0;
    while append(&mut log, (1, 0, 3, again + 1), 60_000, true).is_ok() {
        again += 1;
    }
    assert_eq!(again, sequence - 1);
}

#[test]
fn a_record_longer_than_a_chunk_and_a_chunk_filled_to_its_last_byte() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let mut bytes = Vec::new();
    let entry = |block| Entry { block, kind: EntryKind::Frame, blocks: 1, length: (1 << 19) };
    encode_head(&identity((1, 0, 1, 1)), &[entry(0), entry(1), entry(2)], &mut bytes);
    bytes.resize(bytes.len() + 3 * (1 << 19), 7);
    for sequence in 1..30 {
        let mut long = bytes.clone();
        long.truncate(0);
        encode_head(&identity((1, 0, 1, sequence)), &[entry(0), entry(1), entry(2)], &mut long);
        long.resize(bytes.len(), 7);
        let length = long.len();
        log.append(&mut message(&long, 100), length, true, u64::MAX / 4, |_| Ok(())).unwrap();
        let exact = CHUNK - cleave_format::layout::padded(RECORD_HEADER + 16);
        append_exact(&mut log, (1, 1, 1, sequence), exact);
        log.release(&commit((1, 0, 1, sequence), sequence, false));
        log.release(&commit((1, 1, 1, sequence), sequence, false));
    }
    assert!(log.memory().0 <= 4 * CHUNK as u64);
}

fn append_exact(log: &mut Log, name: Name, data: usize) {
    let mut bytes = Vec::new();
    // Frames are below 1 MiB; two make up the rest.
    let half = (data / 2 / 16 * 16) as u32;
    let entries = [
        Entry { block: 0, kind: EntryKind::Frame, blocks: 1, length: half },
        Entry { block: 1, kind: EntryKind::Frame, blocks: 1, length: data as u32 - half },
    ];
    encode_head(&identity(name), &entries, &mut bytes);
    bytes.resize(bytes.len() + data, 3);
    let length = bytes.len();
    assert_eq!(length, CHUNK);
    log.append(&mut message(&bytes, 0), length, true, u64::MAX / 4, |_| Ok(())).unwrap();
}

#[test]
fn what_is_no_record_is_refused_and_leaves_nothing() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let good = record((1, 0, 1, 1), 64);
    let mut bad = good.clone();
    bad[20] ^= 1;
    let length = bad.len();
    assert!(matches!(
        log.append(&mut message(&bad, 0), length, true, u64::MAX / 4, |_| Ok(())),
        Err(Err(_))
    ));
    assert!(matches!(
        log.append(&mut message(&good, 0), length + 1, true, u64::MAX / 4, |_| Ok(())),
        Err(Err(_))
    ));
    let sealed = |_: &RecordIdentity| Err(Refusal::Sealed);
    let refused = log.append(&mut message(&good, 0), length, true, u64::MAX / 4, sealed);
    assert_eq!(refused.unwrap_err().unwrap(), Refusal::Sealed);
    assert!(log.is_empty() && log.record_bytes() == 0);
    append(&mut log, (1, 0, 1, 1), 64, true).unwrap();
    assert_eq!(content(&log)[&1], good);
}

fn append_within(log: &mut Log, name: Name, data: usize, quota: u64) -> Result<Appended, Refusal> {
    let bytes = record(name, data);
    let mut message = message(&bytes, 7);
    let outcome = log.append(&mut message, bytes.len(), true, quota, |_| Ok(()));
    outcome.map_err(|error| error.expect("a sound record"))
}

/// C13: a host gets its quota and a margin, and not the room of others.
#[test]
fn a_host_takes_its_quota_and_no_more() {
    let quota = 1 << 20;
    let mut log = Log::new(1, Position(1), SETTINGS);
    let (greedy, modest) = (HostId(1), HostId(2));
    log.assign(VdiskId(1), greedy);
    log.assign(VdiskId(2), greedy);
    log.assign(VdiskId(3), modest);
    let mut sequence = 1;
    while append_within(&mut log, (1 + sequence % 2, 0, 1, sequence), 10_000, quota).is_ok() {
        sequence += 1;
    }
    let held = log.host_bytes(greedy);
    assert!(held > quota && held <= usage::taken_max(quota), "{held}");
    // What is there already is recognised, or a host that resends it could never go on (C1).
    let again = append_within(&mut log, (2, 0, 1, 1), 10_000, quota);
    assert_eq!(again, Ok(Appended::Held(Position(1))));
    // Zeros and discards make room.
    let mut zeros = 0;
    while append_within(&mut log, (1, 9, 1, zeros + 1), 0, quota).is_ok() {
        zeros += 1;
    }
    let held = log.host_bytes(greedy);
    assert!(zeros > 100 && held <= usage::dataless_max(quota), "{zeros}: {held}");
    for sequence in 1..100 {
        append_within(&mut log, (3, 0, 1, sequence), 10_000, quota).unwrap();
    }
    // Records of a vdisk that moves count for its new owner; a host without any is never refused.
    log.assign(VdiskId(2), modest);
    assert_eq!(log.host_bytes(greedy), log.vdisk_bytes(VdiskId(1)));
    let full = append_within(&mut log, (3, 0, 1, 100), 10_000, quota);
    assert_eq!(full, Err(Refusal::Full));
    log.assign(VdiskId(4), HostId(3));
    append_within(&mut log, (4, 0, 1, 1), 10_000, 100).unwrap();
    log.release(&Control::Delete { vdisk: VdiskId(2), epoch: Epoch(1) });
    append_within(&mut log, (3, 0, 1, 100), 10_000, quota).unwrap();
}

/// C13: when data has no memory left, zeros and discards have; and nothing is taken twice (C1).
#[test]
fn a_full_log_takes_zeros_and_knows_what_it_has() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let mut sequence = 1;
    while append(&mut log, (1, 0, 1, sequence), 60_000, true).is_ok() {
        sequence += 1;
    }
    assert_eq!(append(&mut log, (1, 0, 1, 3), 60_000, true), Ok(Appended::Held(Position(3))));
    let mut zeros = 0;
    while append(&mut log, (1, 7, 1, zeros + 1), 0, true).is_ok() {
        zeros += 1;
        assert_eq!(append(&mut log, (1, 0, 1, sequence), 60_000, true), Err(Refusal::Full));
    }
    assert!(zeros > 10_000, "{zeros}");
    assert_eq!(log.memory().0, log.memory().1);
    let last = log.next_entry(Position(log.next().0 - 1), log.next()).unwrap();
    assert_eq!(last.1.bytes, record((1, 7, 1, zeros), 0));
    log.release(&commit((1, 0, 1, 1), sequence, false));
    append(&mut log, (1, 0, 1, sequence), 60_000, true).unwrap();
}

/// Each chunk is told about once, whole and before it is used; again only when it is a new one.
#[test]
fn new_chunks_are_told_about() {
    use std::cell::RefCell;
    use std::mem::MaybeUninit;
    thread_local!(static TOLD: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) });
    let advice: Advice = |memory: &mut [MaybeUninit<u8>]| {
        TOLD.with_borrow_mut(|told| told.push(memory.len()));
    };
    let mut log = Log::new(1, Position(1), SETTINGS).advised(Some(advice));
    for epoch in 1..4 {
        let mut sequence = 1;
        while append(&mut log, (1, 0, epoch, sequence), 60_000, true).is_ok() {
            sequence += 1;
        }
        log.release(&commit((1, 0, epoch, 1), sequence, false));
    }
    let told = TOLD.take();
    assert!(told.len() >= 7 && told.len() <= 8, "{told:?}");
    assert!(told.iter().all(|bytes| *bytes >= CHUNK), "{told:?}");
}

/// A record of four blocks: two frames, zeros, a frame.
fn sound_record(name: Name) -> Vec<u8> {
    let header = FrameHeader {
        codec: Codec::Lz4,
        blocks: 1,
        payload_length: 70,
        core: 0,
        key: None,
        incarnation: Incarnation(1),
        counter: name.3,
    };
    let mut frame = header.encode().to_vec();
    frame.extend((0..70).map(|byte| byte ^ name.3 as u8));
    frame.resize(header.frame_length(), 0);
    frame::seal(&mut frame);
    let entry = |block, kind, blocks, length| Entry { block, kind, blocks, length };
    let length = frame.len() as u32;
    let entries = [
        entry(0, EntryKind::Frame, 1, length),
        entry(1, EntryKind::Frame, 1, length),
        entry(2, EntryKind::Zero, 9, 0),
        entry(20, EntryKind::Frame, 1, length),
    ];
    let mut bytes = Vec::new();
    encode_head(&identity(name), &entries, &mut bytes);
    (0..3).for_each(|_| bytes.extend_from_slice(&frame));
    bytes
}

fn insert(log: &mut Log, bytes: &[u8]) -> Position {
    let position = log.next();
    log.insert_record(position, &mut message(bytes, 10), bytes.len()).unwrap();
    position
}

// Rule 3.3: any bit that flips is noticed, and a copy from elsewhere takes its place.
#[test]
fn rot_anywhere_in_a_record_is_found_and_mended() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let name = (1, 2, 3, 4);
    let bytes = sound_record(name);
    let before = insert(&mut log, &sound_record((1, 2, 3, 3)));
    let at = insert(&mut log, &bytes);
    let other = insert(&mut log, &sound_record((1, 2, 3, 5)));
    let sizes = (log.record_bytes(), log.vdisk_bytes(VdiskId(1)));
    let head = bytes.len() - 3 * 112;
    for bit in 0..bytes.len() as u64 * 8 {
        assert_eq!(log.rot(at, log.next(), bit), Some(at));
        let found = soundness(log.record(at).unwrap());
        let expected = match bit / 8 < head as u64 {
            true => Soundness::Unreadable,
            false => Soundness::Damaged,
        };
        assert_eq!(found, expected, "bit {bit}");
        assert!(!log.is_sound());
        // What is another record, or no better, does not take its place (C3).
        let elsewhere = log.record(other).unwrap().to_vec();
        assert!(!log.mend(at, &elsewhere));
        let itself = log.record(at).unwrap().to_vec();
        assert!(!log.mend(at, &itself) && !log.mend(at, &[]));
        assert!(log.mend(at, &bytes), "bit {bit}");
        assert!(log.is_sound() && !log.mend(at, &bytes));
    }
    assert_eq!(sizes, (log.record_bytes(), log.vdisk_bytes(VdiskId(1))));
    assert_eq!(log.record(before).unwrap()[..], sound_record((1, 2, 3, 3)));
    // Of a damaged record one with a readable head is better than one without.
    log.rot(at, log.next(), 100);
    let mut half = bytes.clone();
    half[head + 50] ^= 1;
    assert!(log.mend(at, &half));
    assert_eq!(soundness(log.record(at).unwrap()), Soundness::Damaged);
}

// A record that nothing can be read of can be copied all the same, gives no content, and is released by its name.
#[test]
fn what_is_given_up_is_a_record_without_content() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let name = (1, 2, 3, 4);
    insert(&mut log, &sound_record((1, 2, 3, 3)));
    let at = insert(&mut log, &sound_record(name));
    log.rot(at, log.next(), 17);
    assert!(!log.is_readable(at));
    let given_up = log.give_up(at).unwrap();
    assert_eq!(RecordIdentity { incarnation: Incarnation(1), ..given_up }, identity(name));
    assert!(log.is_readable(at));
    let bytes = log.record(at).unwrap().clone();
    let record = Record::decode(&bytes).unwrap();
    assert_eq!(record.identity, given_up);
    let blocks: Vec<u16> = record.entries().map(|(entry, _)| entry.block).collect();
    assert_eq!(blocks, (0..512).collect::<Vec<u16>>());
    assert!(record.entries().all(|(_, data)| frame::check_in_log(data).is_err()));
    let mut copy = Log::new(1, Position(0), SETTINGS);
    copy.insert_record(at, &mut message(&bytes, 0), bytes.len()).unwrap();
    // The other controller's copy, when there is one after all, takes its place.
    assert!(copy.mend(at, &sound_record(name)));
    log.release(&commit((1, 2, 3, 3), 4, false));
    assert_eq!((log.len(), log.record_bytes(), log.vdisk_bytes(VdiskId(1))), (0, 0, 0));
}

// Rule 3.3: no bit of a control record, nor another one in its place, has an effect.
#[test]
fn rot_anywhere_in_a_control_record_is_found_and_mended() {
    let mut log = Log::new(1, Position(1), SETTINGS);
    let (first, second) = (commit((1, 2, 3, 4), 9, false), commit((1, 2, 3, 10), 12, false));
    let before = log.append_control(&first);
    let at = log.append_control(&second);
    let next = |log: &Log| log.next_control(before, log.next());
    let bytes = cleave_format::encode(&second);
    let size = log.control_bytes();
    for bit in 0..bytes.len() as u64 * 8 {
        assert_eq!(log.rot_control(at, log.next(), bit), Some(at));
        assert_eq!(next(&log), Err(Rotted(at)), "bit {bit}");
        assert!(!log.is_sound() && !log.is_readable(at));
        // Neither the other one, nor half of it (C3).
        let other = cleave_format::encode(&first);
        let LogEntryKind::Control { check } = log.entry(at).unwrap().kind else { unreachable!() };
        let LogEntryKind::Control { check: of_other } = log.entry(before).unwrap().kind else {
            unreachable!()
        };
        assert!(
            !log.mend_control(at, &other, of_other) && !log.mend_control(at, &bytes[..9], check)
        );
        // The same damage at the peer.
        let itself = log.entry(at).unwrap().bytes.to_vec();
        assert!(!log.mend_control(at, &itself, check) && !log.mend(at, &bytes));
        assert!(log.mend_control(at, &bytes, check), "bit {bit}");
        assert_eq!(next(&log), Ok(Some((at, second.clone()))));
        assert!(log.is_sound() && !log.mend_control(at, &bytes, check));
    }
    assert_eq!(log.control_bytes(), size);
    // Of the check itself.
    let entry = log.entries.get_mut(at.0).unwrap();
    let LogEntryKind::Control { check } = &mut entry.kind else { unreachable!() };
    let sound = std::mem::replace(check, *check ^ 4);
    assert_eq!(next(&log), Err(Rotted(at)));
    assert!(!log.mend_control(at, &bytes, sound ^ 4) && log.mend_control(at, &bytes, sound));
    assert_eq!(next(&log), Ok(Some((at, second))));
    // What rotted on its way is not taken.
    let entry = log.entry(at).unwrap();
    let LogEntryKind::Control { check } = entry.kind else { unreachable!() };
    let mut damaged = bytes.clone();
    damaged[3] ^= 1;
    let mut copied = Log::new(1, Position(0), SETTINGS);
    assert!(copied.insert_encoded_control(at, Bytes::from(damaged), check).is_err());
    assert!(copied.insert_encoded_control(before, Bytes::from(bytes.clone()), check).is_err());
    assert!(copied.insert_encoded_control(at, Bytes::from(bytes), check).is_ok());
}
