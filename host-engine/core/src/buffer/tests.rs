//! The buffer against a simple model: what reads and merges find, what is counted, what is released.

use super::*;
use bytes::Bytes;
use cleave_format::ids::{Epoch, Incarnation, Sequence};
use cleave_format::record::{Entry, RecordIdentity};
use cleave_runtime::time::Moment;
use proptest::prelude::*;
use std::collections::BTreeSet;

const DISK: VdiskId = VdiskId(2);
const SLICE: SliceIndex = SliceIndex(5);

fn version(sequence: u64) -> Version {
    Version { epoch: Epoch(3), sequence: Sequence(sequence) }
}

/// A record of one slice: its frames hold the sequence.
fn record(sequence: u64, first: u16, blocks: u16, zero: bool) -> Record {
    numbered(sequence, sequence, first, blocks, zero)
}

/// As [`record`], with frames that hold something else.
fn numbered(sequence: u64, content: u64, first: u16, blocks: u16, zero: bool) -> Record {
    let identity = RecordIdentity {
        vdisk: DISK,
        slice: SLICE,
        version: version(sequence),
        incarnation: Incarnation(1),
    };
    let entry = |block, kind, blocks, length| Entry { block, kind, blocks, length };
    if zero {
        let entries = [entry(first, EntryKind::Zero, blocks, 0)];
        return Record::new(identity, Bytes::new(), &entries, Moment(sequence));
    }
    let entries: Vec<Entry> =
        (first..first + blocks).map(|block| entry(block, EntryKind::Frame, 1, 16)).collect();
    let data: Vec<u8> =
        (0..blocks).flat_map(|_| [content.to_le_bytes(), [0; 8]].concat()).collect();
    Record::new(identity, Bytes::from(data), &entries, Moment(sequence))
}

fn shown(visible: Visible) -> Option<u64> {
    match visible {
        Visible::Map => None,
        Visible::Zero => Some(0),
        Visible::Frame(frame) => Some(u64::from_le_bytes(frame[..8].try_into().unwrap())),
        Visible::Unpublished(_) => panic!("nothing is unpublished here"),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take { first: u16, blocks: u16, zero: bool },
    Mirror,
    Commit { pick: u32 },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (0u16..20, 1u16..5, any::<bool>())
            .prop_map(|(first, blocks, zero)| Step::Take { first, blocks, zero }),
        3 => Just(Step::Mirror),
        2 => any::<u32>().prop_map(|pick| Step::Commit { pick }),
    ];
    proptest::collection::vec(step, 1..80)
}

proptest! {
    // C4, C6, C23: records are released exactly when nothing of them counts; what counts is found.
    #[test]
    fn agrees_with_a_model(steps in steps()) {
        let mut buffer = WriteBuffer::default();
        // Records by sequence: key, blocks, zero, mirrored; and each block's committed version.
        let mut taken: Vec<(RecordKey, u16, u16, bool, bool)> = Vec::new();
        let mut committed: BTreeMap<u16, u64> = BTreeMap::new();
        let mut released: BTreeSet<usize> = BTreeSet::new();
        for step in steps {
            match step {
                Step::Take { first, blocks, zero } => {
                    let sequence = taken.len() as u64 + 1;
                    let key = buffer.insert(record(sequence, first, blocks, zero), |_| true);
                    taken.push((key, first, blocks, zero, false));
                }
                Step::Mirror => {
                    let next = taken.iter_mut().find(|(.., mirrored)| !mirrored);
                    if let Some((key, .., mirrored)) = next {
                        *mirrored = true;
                        buffer.mirrored(*key);
                    }
                }
                Step::Commit { pick } => {
                    let keys: Vec<RecordKey> = buffer.queue().map(|(key, _)| key).collect();
                    if keys.is_empty() {
                        continue;
                    }
                    let key = keys[pick as usize % keys.len()];
                    let nodes: Vec<NodeName> = buffer.unplanned(key).collect();
                    let count = 1 + pick as usize / 7 % nodes.len();
                    for node in &nodes[..count] {
                        buffer.set_planned(node, true);
                    }
                    let ends = buffer.ends_with(key, count as u32);
                    prop_assert_eq!(ends, count == nodes.len());
                    let place = taken.iter().position(|(other, ..)| *other == key).unwrap();
                    for node in &nodes[..count] {
                        buffer.committed(node);
                        committed.insert(node.block, place as u64 + 1);
                    }
                }
            }
            // Release what can be, now and then.
            if taken.len().is_multiple_of(3) {
                for key in buffer.releasable().collect::<Vec<_>>() {
                    buffer.set_releasing(key, true);
                    buffer.release(key);
                    released.insert(taken.iter().position(|(other, ..)| *other == key).unwrap());
                }
            }
            let mut live_of: BTreeMap<usize, u32> = BTreeMap::new();
            for block in 0..30u16 {
                let covers = |(_, first, blocks, ..): &&(RecordKey, u16, u16, bool, bool)| {
                    (*first..first + blocks).contains(&block)
                };
                let newest = |mirrored_only: bool| {
                    let all = taken.iter().enumerate().rev();
                    all.filter(|(_, t)| covers(t) && (!mirrored_only || t.4)).map(|(i, _)| i).next()
                };
                let content = |index: usize| if taken[index].3 { 0 } else { index as u64 + 1 };
                let in_map = |index: usize| committed.get(&block) == Some(&(index as u64 + 1));
                let visible = newest(true).filter(|index| !in_map(*index)).map(content);
                let found = buffer.visible(DISK, SLICE.block(block));
                prop_assert_eq!(shown(found), visible);
                let latest = newest(false).filter(|index| !in_map(*index)).map(content);
                prop_assert_eq!(shown(buffer.newest(DISK, SLICE.block(block))), latest);
                prop_assert_eq!(buffer.holds(DISK, SLICE.block(block)), latest.is_some());
                if let Some(index) = newest(true).filter(|index| !in_map(*index)) {
                    *live_of.entry(index).or_default() += 1;
                }
            }
            for (index, (key, .., mirrored)) in taken.iter().enumerate() {
                let live = live_of.get(&index).copied().unwrap_or(0);
                if *mirrored && !released.contains(&index) {
                    prop_assert!(buffer.ends_with(*key, live), "record {} has {}", index, live);
                }
                prop_assert_eq!(buffer.get(*key).is_none(), released.contains(&index));
            }
            let oldest = (0..taken.len()).find(|index| !released.contains(index));
            let oldest = oldest.map(|index| version(index as u64 + 1));
            prop_assert_eq!(buffer.oldest(DISK, SLICE), oldest);
        }
        buffer.forget(DISK);
        prop_assert_eq!((buffer.bytes(), buffer.nodes(), buffer.len()), (0, 0, 0));
        prop_assert_eq!(buffer.memory(), Memory::default());
        prop_assert_eq!((buffer.unplanned_weight(), buffer.releasable_bytes()), (0, 0));
        prop_assert_eq!(buffer.queue().count(), 0);
    }
}

#[test]
fn unpublished_content_is_waited_for_and_unmirrored_is_passed_by() {
    let mut buffer = WriteBuffer::default();
    let block = SLICE.block(1);
    let mut first = record(1, 1, 1, false);
    first.unpublished = Some(70);
    let first = buffer.insert(first, |_| true);
    assert_eq!(buffer.visible(DISK, block), Visible::Map);
    assert_eq!(shown(buffer.newest(DISK, block)), Some(1));
    buffer.mirrored(first);
    assert_eq!(buffer.visible(DISK, block), Visible::Unpublished(70));
    // Nor may destage take it to the map, where no read waits (C23).
    assert_eq!((buffer.queue().count(), buffer.unplanned_weight()), (0, 0));
    buffer.published(first);
    assert_eq!(buffer.queue().count(), 1);
    assert!(buffer.unplanned_weight() > 0);
    assert_eq!(shown(buffer.visible(DISK, block)), Some(1));
    buffer.insert(record(2, 1, 1, true), |_| true);
    assert_eq!(shown(buffer.visible(DISK, block)), Some(1));
    assert_eq!(shown(buffer.newest(DISK, block)), Some(0));
}

#[test]
fn a_replayed_record_counts_only_where_it_is_newer() {
    let mut buffer = WriteBuffer::default();
    let mut replayed = record(4, 0, 3, false);
    replayed.mirrored = true;
    let key = buffer.insert(replayed, |block| block == 1);
    assert_eq!(buffer.visible(DISK, SLICE.block(0)), Visible::Map);
    assert_eq!(shown(buffer.visible(DISK, SLICE.block(1))), Some(4));
    assert!(buffer.ends_with(key, 1));
    let mut all_older = record(5, 0, 3, true);
    all_older.mirrored = true;
    let key = buffer.insert(all_older, |_| false);
    assert!(buffer.releasable().any(|other| other == key));
}

// C7: another log gets what counts, under new numbers, and releases it only when it has it.
#[test]
fn renumbered_records_are_released_by_the_new_log_only() {
    let mut buffer = WriteBuffer::default();
    let covered = buffer.insert(record(1, 0, 1, false), |_| true);
    let kept = buffer.insert(record(2, 0, 2, false), |_| true);
    buffer.mirrored(covered);
    buffer.mirrored(kept);
    let nodes: Vec<NodeName> = buffer.unplanned(kept).collect();
    nodes.iter().for_each(|node| buffer.set_planned(node, true));
    buffer.set_releasing(kept, true);
    let mut next = 10;
    let keys = buffer.renumber(|_, _| {
        next += 1;
        version(next)
    });
    assert_eq!(keys, [kept]);
    assert!(buffer.get(covered).is_none());
    let identity = buffer.get(kept).unwrap().identity;
    assert_eq!(identity.version, version(11));
    let decoded = [&buffer.get(kept).unwrap().head[..], &buffer.get(kept).unwrap().data].concat();
    assert_eq!(cleave_format::record::Record::decode(&decoded).unwrap().identity, identity);
    assert_eq!(sent(&buffer, kept), [(0, Some(2)), (1, Some(2))]);
    // The commit that was on its way takes effect in the map, and releases nothing here.
    nodes.iter().for_each(|node| buffer.committed(node));
    buffer.release(kept);
    assert!(buffer.get(kept).is_some());
    assert_eq!(buffer.releasable().count(), 0);
    buffer.mirrored(kept);
    assert_eq!(buffer.releasable().collect::<Vec<_>>(), [kept]);
}

/// The blocks of a record as it is appended, with what its frames hold; `None`: zeros.
fn sent(buffer: &WriteBuffer, key: RecordKey) -> Vec<(u16, Option<u64>)> {
    let record = buffer.get(key).unwrap();
    let bytes = [&record.head[..], &record.data].concat();
    assert_eq!(bytes.len(), record.length());
    let decoded = cleave_format::record::Record::decode(&bytes).unwrap();
    assert_eq!(decoded.identity, record.identity);
    let content = |data: &[u8]| Some(u64::from_le_bytes(data.get(..8)?.try_into().unwrap()));
    let blocks = |(entry, data)| {
        let entry: Entry = entry;
        let content = content(data);
        (entry.block..entry.block + entry.blocks).map(move |block| (block, content))
    };
    decoded.entries().flat_map(blocks).collect()
}

// C2: what is covered, or committed, would count as newer than what covered it.
#[test]
fn another_log_gets_only_what_counts_of_a_record() {
    let mut buffer = WriteBuffer::default();
    buffer.begin_chunk(1000);
    let mut frames = record(1, 0, 4, false);
    frames.chunk = buffer.chunk();
    let frames = buffer.insert(frames, |_| true);
    let zeros = buffer.insert(record(2, 10, 5, true), |_| true);
    let covering = buffer.insert(record(3, 1, 1, false), |_| true);
    let other = buffer.insert(record(4, 12, 1, false), |_| true);
    let unmirrored = buffer.insert(record(5, 3, 1, false), |_| true);
    for key in [frames, zeros, covering, other] {
        buffer.mirrored(key);
    }
    let committed = NodeName { record: frames, entry: 0, block: 0 };
    let planned = NodeName { record: frames, entry: 2, block: 2 };
    buffer.set_planned(&committed, true);
    buffer.committed(&committed);
    buffer.hold(frames);
    buffer.set_planned(&planned, true);
    let before = (buffer.unplanned_weight(), buffer.unplanned_zeros());
    let mut next = 10;
    let mut renumber = |buffer: &mut WriteBuffer| {
        buffer.renumber(|_, _| {
            next += 1;
            version(next)
        })
    };
    for _ in 0..2 {
        assert_eq!(renumber(&mut buffer), [frames, zeros, covering, other, unmirrored]);
        assert_eq!(sent(&buffer, frames), [(2, Some(1)), (3, Some(1))]);
        let zeroed = [10, 11, 13, 14].map(|block| (block, None));
        assert_eq!(sent(&buffer, zeros), zeroed);
        assert_eq!(sent(&buffer, covering), [(1, Some(3))]);
    }
    assert_eq!((buffer.unplanned_weight(), buffer.unplanned_zeros()), before);
    assert_eq!(shown(buffer.visible(DISK, SLICE.block(3))), Some(1));
    // The stripe that holds a part of it knows it by the names of before.
    buffer.committed(&planned);
    buffer.let_go(frames);
    assert_eq!(renumber(&mut buffer)[0], frames);
    assert_eq!(sent(&buffer, frames), [(3, Some(1))]);
    buffer.mirrored(frames);
    buffer.mirrored(unmirrored);
    assert_eq!(buffer.releasable().collect::<Vec<_>>(), [frames]);
    buffer.forget(DISK);
    buffer.begin_chunk(0);
    assert_eq!((buffer.bytes(), buffer.memory()), (0, Memory::default()));
}

/// What a stripe on its way would commit: a node and its version.
type Planned = Vec<(NodeName, Version, Option<u64>)>;

/// A record that the log holds.
type Logged = (RecordKey, Version, Vec<(u16, Option<u64>)>);

#[derive(Clone, Debug)]
enum LogStep {
    Take { first: u16, blocks: u16, zero: bool },
    Mirror,
    Plan { pick: u32 },
    Commit,
    Release,
    LoseLog { under_way: bool },
}

fn log_steps() -> impl Strategy<Value = Vec<LogStep>> {
    let step = prop_oneof![
        6 => (0u16..6, 1u16..5, any::<bool>())
            .prop_map(|(first, blocks, zero)| LogStep::Take { first, blocks, zero }),
        8 => Just(LogStep::Mirror),
        3 => any::<u32>().prop_map(|pick| LogStep::Plan { pick }),
        3 => Just(LogStep::Commit),
        2 => Just(LogStep::Release),
        1 => any::<bool>().prop_map(|under_way| LogStep::LoseLog { under_way }),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    // C2, C7: whatever is covered, planned, committed and released when logs are lost, once the present log has
    // everything again another host reads the newest content from it and from what is committed.
    #[test]
    fn whoever_opens_after_a_lost_log_reads_the_newest(steps in log_steps()) {
        let mut buffer = WriteBuffer::default();
        let mut unsent: std::collections::VecDeque<RecordKey> = Default::default();
        let mut log: Vec<Logged> = Vec::new();
        // Versions are kept as the map and its runs keep them.
        let mut map: BTreeMap<u16, (Option<Version>, Option<u64>)> = BTreeMap::new();
        let mut newest: BTreeMap<u16, Option<u64>> = BTreeMap::new();
        let (mut sequence, mut written) = (0, 0);
        let mut stripe: Option<Planned> = None;
        // Its commit was sent before the log was lost: nothing else is committed before it.
        let mut in_doubt = false;
        for step in steps {
            match step {
                LogStep::Take { first, blocks, zero } => {
                    (sequence, written) = (sequence + 1, written + 1);
                    let taken = numbered(sequence, written, first, blocks, zero);
                    unsent.push_back(buffer.insert(taken, |_| true));
                }
                LogStep::Mirror => {
                    let Some(key) = unsent.pop_front() else { continue };
                    if !buffer.get(key).unwrap().mirrored {
                        newest.extend(sent(&buffer, key));
                    }
                    log.push((key, buffer.get(key).unwrap().identity.version, sent(&buffer, key)));
                    buffer.mirrored(key);
                }
                LogStep::Plan { pick } => {
                    let keys: Vec<RecordKey> = buffer.queue().map(|(key, _)| key).collect();
                    if keys.is_empty() || stripe.is_some() {
                        continue;
                    }
                    let mut planned = Planned::new();
                    for key in keys.iter().skip(pick as usize % keys.len()).take(2) {
                        buffer.hold(*key);
                        for node in buffer.unplanned(*key).collect::<Vec<_>>() {
                            let found = buffer.get(*key).unwrap();
                            let frame = found.frame(usize::from(node.entry));
                            let content = frame.get(..8).map(|b| b.try_into().unwrap());
                            planned.push((
                                node,
                                found.identity.version,
                                content.map(u64::from_le_bytes),
                            ));
                            buffer.set_planned(&node, true);
                        }
                    }
                    stripe = Some(planned);
                }
                LogStep::Commit => {
                    let Some(planned) = stripe.take() else { continue };
                    in_doubt = false;
                    let keys: BTreeSet<RecordKey> = planned.iter().map(|p| p.0.record).collect();
                    for (node, version, content) in &planned {
                        let oldest = buffer.oldest(DISK, SLICE);
                        let found = map.entry(node.block).or_default();
                        if found.0.is_none_or(|known| *version > known) {
                            let kept = oldest.is_some_and(|oldest| *version >= oldest);
                            *found = (kept.then_some(*version), *content);
                        }
                        buffer.committed(node);
                    }
                    keys.into_iter().for_each(|key| buffer.let_go(key));
                }
                LogStep::Release if in_doubt => {}
                LogStep::Release => {
                    for key in buffer.releasable().collect::<Vec<_>>() {
                        buffer.set_releasing(key, true);
                        prop_assert!(buffer.release(key));
                        log.retain(|(held, ..)| *held != key);
                    }
                    let oldest = buffer.oldest(DISK, SLICE);
                    for (version, _) in map.values_mut() {
                        *version = version.filter(|own| oldest.is_some_and(|oldest| *own >= oldest));
                    }
                }
                LogStep::LoseLog { under_way } => {
                    log.clear();
                    in_doubt = stripe.is_some() && (in_doubt || under_way);
                    unsent = buffer
                        .renumber(|_, _| {
                            sequence += 1;
                            version(sequence)
                        })
                        .into();
                    // What was planned is given up (see destage).
                    let given_up = if in_doubt { None } else { stripe.take() };
                    let given_up = given_up.unwrap_or_default();
                    let keys: BTreeSet<RecordKey> = given_up.iter().map(|p| p.0.record).collect();
                    given_up.iter().for_each(|(node, ..)| buffer.set_planned(node, false));
                    keys.into_iter().for_each(|key| buffer.let_go(key));
                }
            }
            if unsent.iter().any(|key| buffer.get(*key).unwrap().mirrored) {
                continue;
            }
            let mut read: BTreeMap<u16, (Option<Version>, Option<u64>)> = map.clone();
            for (_, version, blocks) in &log {
                for (block, content) in blocks {
                    let found = read.entry(*block).or_default();
                    if found.0.is_none_or(|known| *version > known) {
                        *found = (Some(*version), *content);
                    }
                }
            }
            for (block, content) in &newest {
                let found = read.get(block).and_then(|found| found.1);
                prop_assert_eq!(found, *content, "block {}", block);
            }
        }
    }
}

// C2: a stripe on its way may still bring a covered block's older content into the map.
#[test]
fn a_record_in_a_stripe_is_not_released_before_that_stripe_ended() {
    let mut buffer = WriteBuffer::default();
    let older = buffer.insert(record(1, 0, 1, false), |_| true);
    buffer.mirrored(older);
    let node = buffer.unplanned(older).next().unwrap();
    buffer.hold(older);
    buffer.set_planned(&node, true);
    let newer = buffer.insert(record(2, 0, 1, false), |_| true);
    buffer.mirrored(newer);
    assert!(!buffer.is_live(&node));
    assert_eq!(buffer.releasable().count(), 0, "its stripe is on its way");
    assert_eq!(buffer.oldest(DISK, SLICE), Some(version(1)), "so newer versions are kept");
    assert!(buffer.ends_with(older, 0), "the stripe's own commit may release it");
    buffer.let_go(older);
    assert_eq!(buffer.releasable().collect::<Vec<_>>(), [older]);
}
