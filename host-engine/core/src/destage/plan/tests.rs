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
        let choice = choose(&buffer, STRIPE, &objects, capacity, &mut NoDuplicates, true);
        let (items, offsets) = (choice.items, choice.offsets.unwrap());
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
    assert_eq!(choose(&buffer, STRIPE, &[], SHARD, &mut NoDuplicates, true).items.len(), 2);
    buffer.mirrored(second);
    let items = choose(&buffer, STRIPE, &[], SHARD, &mut NoDuplicates, true).items;
    let shape: Vec<(u16, u16, usize)> =
        items.iter().map(|item| (item.block, item.blocks, item.frame.len())).collect();
    assert_eq!(shape, [(9, 1, 320), (10, 5, 0), (15, 1, 320), (16, 14, 0)]);
    for item in &items {
        item.nodes().for_each(|node| buffer.set_planned(&node, true));
    }
    assert!(
        choose(&buffer, STRIPE, &[], SHARD, &mut NoDuplicates, true).items.is_empty(),
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

    fn find(&mut self, _: Domain, fingerprint: &Fingerprint) -> Found {
        let offset = u32::from(fingerprint[0]) * 4096;
        match self.0 {
            true => Found::There(Address { stripe: StripeId(5), offset, length: 528 }, 0),
            false => Found::Unknown,
        }
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
    let items = choose(&buffer, STRIPE, &[], SHARD, &mut Known(true), true).items;
    assert_eq!(items.len(), 6);
    assert!(items.iter().all(|item| item.frame.is_empty()));
    let offsets: Vec<u32> = items.iter().map(|item| item.reference().unwrap().0.offset).collect();
    assert_eq!(offsets, [0, 4096, 0, 4096, 0, 4096]);
    let items = choose(&buffer, STRIPE, &[], SHARD, &mut Known(false), true).items;
    let frames: Vec<usize> = items.iter().map(|item| item.frame.len()).collect();
    assert_eq!(frames, [528, 1040, 0, 0, 528, 1040]);
    for (first, again) in [(0, 2), (1, 3)] {
        let (offset, length) = (items[first].offset, items[first].frame.len() as u32);
        let there = Address { stripe: STRIPE, offset, length };
        assert_eq!(items[again].reference(), Some((there, 0)));
        assert_eq!(items[first].reference(), None);
    }
}

/// Content whose fingerprint is even lies in stripe 5, or in one that only plans without the first `apart` of it may
/// name.
struct Half {
    found: usize,
    apart: usize,
}

impl Duplicates for Half {
    fn domain(&self, _: VdiskId) -> Option<Domain> {
        Some(1)
    }

    fn find(&mut self, _: Domain, fingerprint: &Fingerprint) -> Found {
        if fingerprint[0] % 2 == 1 {
            return Found::Unknown;
        }
        self.found += 1;
        match self.found <= self.apart {
            true => Found::There(Address { stripe: StripeId(5), offset: 4096, length: 528 }, 0),
            false => Found::InAnotherPlan,
        }
    }
}

proptest! {
    // C5, C19: what is known is never stored again, and needs no stripe where there is enough of it. Frames are left
    // for no longer than that, and then fill their stripes.
    #[test]
    fn known_content_takes_no_stripe_and_frames_do_not_starve(
        runs in proptest::collection::vec((any::<bool>(), 1u16..300, 1u32..260), 1..40),
        apart in 40usize..2000,
        object in prop_oneof![Just(0usize), Just(2000usize)],
    ) {
        let mut buffer = WriteBuffer::default();
        let (mut number, mut stored) = (0u32, 0);
        for (slice, (known, blocks, units)) in runs.iter().enumerate() {
            let entries: Vec<Entry> = (0..*blocks).map(|block| frame(block, units * 16)).collect();
            let key = buffer.insert(record(1, slice as u32, 1, &entries), |_| true);
            for entry in 0..entries.len() {
                number += 1;
                let mut fingerprint = [u8::from(!known); 32];
                fingerprint[1..5].copy_from_slice(&number.to_le_bytes());
                buffer.set_fingerprint(key, entry, fingerprint);
            }
            buffer.mirrored(key);
            stored += if *known { 0 } else { usize::from(*blocks) };
        }
        let capacity = SHARD;
        let objects: &[usize] = if object > 0 { &[object] } else { &[] };
        let (mut items, mut frames, mut full) = (0, 0, true);
        while buffer.unplanned_weight() > 0 {
            let mut half = Half { found: 0, apart };
            let choice = choose(&buffer, STRIPE, objects, capacity, &mut half, true);
            prop_assert!(!choice.items.is_empty(), "no plan without progress");
            prop_assert!(choice.items.is_sorted_by_key(Item::place));
            let used: usize = choice.items.iter().map(|item| item.frame.len()).sum();
            match choice.offsets {
                None => prop_assert_eq!(used, 0),
                Some(offsets) => {
                    prop_assert_eq!(offsets.len(), objects.len());
                    // Only the last stripe may have room.
                    prop_assert!(full, "a stripe was written before it was full");
                    let footer = footer_length(choice.items.len() + objects.len());
                    full = used + footer + object + PART + 8192 > capacity;
                }
            }
            for item in &choice.items {
                let known = item.fingerprint.unwrap()[0] == 0;
                prop_assert_eq!(known, item.frame.is_empty());
                prop_assert_eq!(known, item.reference().is_some());
                frames += usize::from(!known);
                item.nodes().for_each(|node| buffer.set_planned(&node, true));
            }
            items += choice.items.len();
        }
        prop_assert_eq!((items, frames), (number as usize, stored));
    }
}

#[test]
fn references_go_with_a_stripe_that_is_written_anyway() {
    let mut buffer = WriteBuffer::default();
    let entries: Vec<Entry> = (0..400).map(|block| frame(block, 4112)).collect();
    let key = buffer.insert(record(1, 0, 1, &entries), |_| true);
    (0..400).for_each(|entry| buffer.set_fingerprint(key, entry, [0; 32]));
    buffer.mirrored(key);
    let alone = choose(&buffer, STRIPE, &[528], SHARD, &mut Known(true), true);
    assert!(alone.offsets.is_none() && alone.items.len() == 400);
    let with_objects = choose(&buffer, STRIPE, &[528], SHARD, &mut Known(true), false);
    assert_eq!(with_objects.offsets, Some(vec![0]));
    assert_eq!(with_objects.items.len(), 400);
}
