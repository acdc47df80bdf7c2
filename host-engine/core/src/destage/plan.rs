//! What goes into a stripe, and where: pure.
//!
//! The oldest mirrored content first, as much as fits with its footer; within the stripe by vdisk
//! and block, so that neighbours are read together. Frames do not straddle parts. Only live
//! content is chosen: what a newer mirrored write covers is dropped here (C4).

use crate::buffer::{NodeName, RecordKey, WriteBuffer};
use bytes::Bytes;
use cleave_format::footer::{Fingerprint, footer_length};
use cleave_format::ids::{SliceIndex, VdiskId, Version};
use cleave_format::layout::PART;
use cleave_format::record::{Entry, EntryKind};

/// Most entries of a stripe: bounds the work of choosing and of applying it.
pub const ITEMS_MAX: usize = 16 << 10;

/// One entry of the footer to be: a block's frame, or a run of blocks without one.
#[derive(Clone, Debug)]
pub struct Item {
    /// Whose.
    pub vdisk: VdiskId,
    /// The slice.
    pub slice: SliceIndex,
    /// First block in it.
    pub block: u16,
    /// Blocks, of one entry of the record.
    pub blocks: u16,
    /// Age.
    pub version: Version,
    /// The record and its entry.
    pub record: RecordKey,
    /// See [`record`](Item::record).
    pub entry: u16,
    /// Zero or discard when there is no frame.
    pub kind: EntryKind,
    /// With the log's checksum; empty for zeros.
    pub frame: Bytes,
    /// If it was computed already.
    pub fingerprint: Option<Fingerprint>,
    /// First byte in the data section.
    pub offset: u32,
}

impl Item {
    /// The nodes of the buffer that it stands for.
    pub fn nodes(&self) -> impl Iterator<Item = NodeName> + use<> {
        let (record, entry) = (self.record, self.entry);
        (self.block..self.block + self.blocks).map(move |block| NodeName { record, entry, block })
    }
}

/// Chooses content for a data section of `capacity` bytes that begins with objects of the lengths
/// `objects`, and gives every item its offset. Returns the items by vdisk and block, and the objects' offsets.
pub fn choose(buffer: &WriteBuffer, objects: &[usize], capacity: usize) -> (Vec<Item>, Vec<u32>) {
    let mut items = select(buffer, objects, capacity);
    loop {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|index| {
            let item = &items[*index];
            (item.vdisk, item.slice, item.block, item.version)
        });
        let mut end = 0;
        let offsets: Vec<u32> = objects.iter().map(|length| place(&mut end, *length)).collect();
        for index in &order {
            let item = &mut items[*index];
            if !item.frame.is_empty() {
                item.offset = place(&mut end, item.frame.len());
            }
        }
        let footer = footer_length(items.len() + objects.len());
        if end + footer <= capacity {
            let mut sorted: Vec<Option<Item>> = items.into_iter().map(Some).collect();
            let take = |index: &usize| sorted[*index].take().expect("each is taken once");
            return (order.iter().map(take).collect(), offsets);
        }
        // Too much by what straddling would have cost: the newest goes.
        let mut excess = end + footer - capacity;
        while excess > 0 {
            let item = items.pop().expect("the objects alone fit");
            excess = excess.saturating_sub(item.frame.len().max(1));
        }
    }
}

/// Chooses the oldest content that needs no frame, by vdisk and block.
pub fn choose_entries(buffer: &WriteBuffer) -> Vec<Item> {
    let mut items = gather(buffer, &[], 0, |entry| entry.length == 0);
    items.sort_by_key(|item| (item.vdisk, item.slice, item.block, item.version));
    items
}

/// Gives objects that are alone in a stripe their offsets. `of` gives an object's length and where its offset
/// goes.
pub fn place_objects<T>(objects: &mut [T], of: impl Fn(&mut T) -> (usize, &mut u32)) {
    let mut end = 0;
    for object in objects {
        let (length, offset) = of(object);
        *offset = place(&mut end, length);
    }
}

/// The place of a frame after `end` that does not straddle parts.
fn place(end: &mut usize, length: usize) -> u32 {
    if *end / PART != (*end + length - 1) / PART {
        *end = end.next_multiple_of(PART);
    }
    let offset = *end as u32;
    *end += length;
    offset
}

/// The oldest content that fits if nothing is lost to parts, in the order in which it was taken.
fn select(buffer: &WriteBuffer, objects: &[usize], capacity: usize) -> Vec<Item> {
    gather(buffer, objects, capacity, |_| true)
}

/// The oldest content of the kind that `wanted` says, until there are enough entries, or more bytes than fit
/// (a capacity of 0 bounds nothing).
fn gather(
    buffer: &WriteBuffer,
    objects: &[usize],
    capacity: usize,
    wanted: impl Fn(&Entry) -> bool,
) -> Vec<Item> {
    let mut items: Vec<Item> = Vec::new();
    let mut used: usize = objects.iter().sum();
    for (key, record) in buffer.queue() {
        for node in buffer.unplanned(key) {
            let found = &record.entries[usize::from(node.entry)];
            if !wanted(&found.entry) {
                continue;
            }
            if let Some(last) = items.last_mut()
                && found.entry.length == 0
                && last.record == key
                && last.entry == node.entry
                && last.block + last.blocks == node.block
            {
                last.blocks += 1;
                continue;
            }
            let frame = record.frame(usize::from(node.entry));
            let footer = footer_length(items.len() + 1 + objects.len());
            let fits = capacity == 0 || used + frame.len() + footer <= capacity;
            if items.len() == ITEMS_MAX || !fits {
                return items;
            }
            used += frame.len();
            items.push(Item {
                vdisk: record.identity.vdisk,
                slice: record.identity.slice,
                block: node.block,
                blocks: 1,
                version: record.identity.version,
                record: key,
                entry: node.entry,
                kind: found.entry.kind,
                frame,
                fingerprint: found.fingerprint,
                offset: 0,
            });
        }
    }
    items
}

#[cfg(test)]
mod tests;
