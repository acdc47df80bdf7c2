//! Plans: oldest first, sorted, within their parts, and never more than fits.

use super::*;
use crate::buffer::Record;
use cleave_format::ids::{Epoch, Incarnation, Sequence};
use cleave_format::layout::SHARD;
use cleave_format::record::RecordIdentity;
use cleave_runtime::time::Moment;
use proptest::prelude::*;

const STRIPE: StripeId = StripeId(77);

fn record(disk: u64, slice: u32, sequence: u64, entries: &[Entry]) -> Record {
    let identity = RecordIdentity {
        vdisk: VdiskId(disk),
        slice: SliceIndex(slice),
        version: Version { epoch: Epoch(1), sequence: Sequence(sequence) },
        incarnation: Incarnation(1),
    };
    let length: u32 = entries.iter().map(|entry| entry.length).sum();
    Record::new(identity, Bytes::from(vec![0; length as usize]), entries, Moment(sequence))
}

fn frame(block: u16, length: u32) -> Entry {
    Entry { block, kind: EntryKind::Frame, blocks: 1, length }
}

proptest! {
    #[test]
    fn every_plan_fits_and_takes_the_oldest(
        writes in proptest::collection::vec(
            (1u64..4, 0u32..3, 0u16..100, proptest::collection::vec(1u32..260, 1..30)),
            1..60,
        ),
        objects in proptest::collection::vec(1usize..2200, 0..6),
    ) {
        let mut buffer = WriteBuffer::default();
        let mut sequences = std::collections::BTreeMap::new();
        let mut keys = Vec::new();
        for (disk, slice, first, lengths) in writes {
            let sequence = sequences.entry((disk, slice)).or_insert(0u64);
            *sequence += 1;
            let entries: Vec<Entry> = (first..)
                .zip(&lengths)
                .map(|(block, units)| frame(block, units * 16))
                .collect();
            let key = buffer.insert(record(disk, slice, *sequence, &entries), |_| true);
            buffer.mirrored(key);
            keys.push(key);
        }
        let capacity = SHARD / 2;
        let objects: Vec<usize> = objects.iter().map(|units| units * 16).collect();
        let (items, offsets) = choose(&buffer, STRIPE, &objects, capacity, &mut NoDuplicates);
        let order = |item: &Item| (item.vdisk, item.slice, item.block);
        prop_assert!(items.is_sorted_by_key(order));
        let mut places: Vec<(u32, u32)> = items
            .iter()
            .map(|item| (item.offset, item.frame.len() as u32))
            .chain(offsets.iter().zip(&objects).map(|(offset, length)| (*offset, *length as u32)))
            .collect();
        places.sort_unstable();
        let mut end = 0;
        for (offset, length) in places {
            let address = Address { stripe: StripeId(1), offset, length };
            prop_assert!(address.is_valid() && offset >= end);
            end = offset + length;
        }
        let footer = footer_length(items.len() + objects.len());
        prop_assert!(end as usize + footer <= capacity);
        // Whatever is left out is no older than what is taken.
        let chosen: Vec<NodeName> = items.iter().flat_map(Item::nodes).collect();
        let newest = chosen.iter().map(|node| node.record).max();
        for key in keys {
            for node in buffer.unplanned(key).collect::<Vec<_>>() {
                prop_assert!(chosen.contains(&node) || Some(key) >= newest);
            }
        }
    }
}

#[test]
fn covered_content_is_dropped_and_zeros_are_runs() {
    let mut buffer = WriteBuffer::default();
    let zeros = Entry { block: 10, kind: EntryKind::Discard, blocks: 20, length: 0 };
    let first = buffer.insert(record(1, 0, 1, &[frame(9, 160), zeros]), |_| true);
    let second = buffer.insert(record(1, 0, 2, &[frame(9, 320), frame(15, 320)]), |_| true);
    buffer.mirrored(first);
    // A write that is not mirrored covers nothing yet.
    assert_eq!(choose(&buffer, STRIPE, &[], SHARD, &mut NoDuplicates).0.len(), 2);
    buffer.mirrored(second);
    let (items, _) = choose(&buffer, STRIPE, &[], SHARD, &mut NoDuplicates);
    let shape: Vec<(u16, u16, usize)> =
        items.iter().map(|item| (item.block, item.blocks, item.frame.len())).collect();
    assert_eq!(shape, [(9, 1, 320), (10, 5, 0), (15, 1, 320), (16, 14, 0)]);
    for item in &items {
        item.nodes().for_each(|node| buffer.set_planned(&node, true));
    }
    assert!(
        choose(&buffer, STRIPE, &[], SHARD, &mut NoDuplicates).0.is_empty(),
        "nothing is in two stripes"
    );
    assert_eq!(buffer.unplanned_weight(), 0);
}

/// Everything is in stripe 5, or nothing but itself.
struct Known(bool);

impl Duplicates for Known {
    fn domain(&self, vdisk: VdiskId) -> Option<Domain> {
        Some(vdisk.0 as Domain)
    }

    fn find(&mut self, _: Domain, fingerprint: &Fingerprint) -> Option<(Address, u8)> {
        let offset = u32::from(fingerprint[0]) * 4096;
        self.0.then_some((Address { stripe: StripeId(5), offset, length: 528 }, 0))
    }
}

// C19, C30: what is there already takes no room; what comes twice is there once, in each key domain.
#[test]
fn content_that_is_known_becomes_a_reference() {
    let mut buffer = WriteBuffer::default();
    for (disk, sequence) in [(1, 1), (1, 2), (2, 3)] {
        let entries = [frame(0, 528), frame(1, 1040)];
        let key = buffer.insert(record(disk, sequence as u32, sequence, &entries), |_| true);
        for entry in 0..2 {
            buffer.set_fingerprint(key, entry, [entry as u8; 32]);
        }
        buffer.mirrored(key);
    }
    let (items, _) = choose(&buffer, STRIPE, &[], SHARD, &mut Known(true));
    assert_eq!(items.len(), 6);
    assert!(items.iter().all(|item| item.frame.is_empty()));
    let offsets: Vec<u32> = items.iter().map(|item| item.reference().unwrap().0.offset).collect();
    assert_eq!(offsets, [0, 4096, 0, 4096, 0, 4096]);
    let (items, _) = choose(&buffer, STRIPE, &[], SHARD, &mut Known(false));
    let frames: Vec<usize> = items.iter().map(|item| item.frame.len()).collect();
    assert_eq!(frames, [528, 1040, 0, 0, 528, 1040]);
    for (first, again) in [(0, 2), (1, 3)] {
        let (offset, length) = (items[first].offset, items[first].frame.len() as u32);
        let there = Address { stripe: STRIPE, offset, length };
        assert_eq!(items[again].reference(), Some((there, 0)));
        assert_eq!(items[first].reference(), None);
    }
}
