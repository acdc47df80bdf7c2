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
        (0..blocks).flat_map(|_| [sequence.to_le_bytes(), [0; 8]].concat()).collect();
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
    // The commit that was on its way takes effect in the map, and releases nothing here.
    nodes.iter().for_each(|node| buffer.committed(node));
    buffer.release(kept);
    assert!(buffer.get(kept).is_some());
    assert_eq!(buffer.releasable().count(), 0);
    buffer.mirrored(kept);
    assert_eq!(buffer.releasable().collect::<Vec<_>>(), [kept]);
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
