//! What goes into a stripe, and where: pure.
//!
//! The oldest mirrored content first, as much as fits with its footer; within the stripe by vdisk
//! and block, so that neighbours are read together. Frames do not straddle parts. Only live
//! content is chosen: what a newer mirrored write covers is dropped here (C4); and what lies in the pool already, or
//! is chosen twice, is chosen as a reference to it (C19).

use crate::buffer::{NodeName, RecordKey, WriteBuffer};
use crate::dedupe::Domain;
use crate::hash::Map as HashMap;
use bytes::Bytes;
use cleave_format::address::Address;
use cleave_format::footer::{Fingerprint, footer_length};
use cleave_format::ids::{SliceIndex, StripeId, VdiskId, Version};
use cleave_format::layout::PART;
use cleave_format::record::{Entry, EntryKind};

/// Most entries of a stripe: bounds the work of choosing and of applying it.
pub const ITEMS_MAX: usize = 16 << 10;
/// Most references of a plan: a commit without a stripe names them in the log.
pub const REFERENCES_MAX: usize = 4096;

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
    /// Where the content lies already: then there is no frame.
    original: Option<Original>,
}

/// Where content lies already.
#[derive(Clone, Copy, Debug)]
enum Original {
    /// In a frame, and which of its blocks it is.
    Frame(Address, u8),
    /// In that of an earlier item of the plan.
    Item(usize),
}

/// What knows where content lies already.
pub trait Duplicates {
    /// The key domain of a vdisk (C30); `None`: nothing of it is looked for.
    fn domain(&self, vdisk: VdiskId) -> Option<Domain>;

    /// A frame that holds the content, in a stripe that exists for as long as the plan does (C19), and which of its
    /// blocks it is.
    fn find(&mut self, domain: Domain, fingerprint: &Fingerprint) -> Option<(Address, u8)>;
}

impl Item {
    /// The nodes of the buffer that it stands for.
    pub fn nodes(&self) -> impl Iterator<Item = NodeName> + use<> {
        let (record, entry) = (self.record, self.entry);
        (self.block..self.block + self.blocks).map(move |block| NodeName { record, entry, block })
    }

    /// The frame that the item refers to, in another stripe or elsewhere in its own.
    pub fn reference(&self) -> Option<(Address, u8)> {
        match self.original? {
            Original::Frame(address, block_in_frame) => Some((address, block_in_frame)),
            Original::Item(_) => unreachable!("a plan that is made names frames"),
        }
    }
}

/// Chooses content for a data section of `capacity` bytes that begins with objects of the lengths
/// `objects`, and gives every item its offset in `stripe`. What lies somewhere already, or is in the stripe
/// twice, becomes a reference. Returns the items by vdisk and block, and the objects' offsets.
pub fn choose(
    buffer: &WriteBuffer,
    stripe: StripeId,
    objects: &[usize],
    capacity: usize,
    duplicates: &mut impl Duplicates,
) -> (Vec<Item>, Vec<u32>) {
    let mut items = gather(buffer, objects, capacity, |_| true, duplicates);
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
            for index in 0..items.len() {
                if let Some(Original::Item(first)) = items[index].original {
                    let (offset, length) = (items[first].offset, items[first].frame.len() as u32);
                    let address = Address { stripe, offset, length };
                    items[index].original = Some(Original::Frame(address, 0));
                }
            }
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
    let mut items = gather(buffer, &[], 0, |entry| entry.length == 0, &mut NoDuplicates);
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

/// Nothing is looked for.
pub struct NoDuplicates;

impl Duplicates for NoDuplicates {
    fn domain(&self, _: VdiskId) -> Option<Domain> {
        None
    }

    fn find(&mut self, _: Domain, _: &Fingerprint) -> Option<(Address, u8)> {
        None
    }
}

/// The oldest content of the kind that `wanted` says, in the order in which it was taken, until there are enough
/// entries, or more bytes than fit if nothing is lost to parts (a capacity of 0 bounds nothing).
fn gather(
    buffer: &WriteBuffer,
    objects: &[usize],
    capacity: usize,
    wanted: impl Fn(&Entry) -> bool,
    duplicates: &mut impl Duplicates,
) -> Vec<Item> {
    let mut own: HashMap<(Domain, Fingerprint), usize> = HashMap::default();
    let mut references = 0;
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
            let vdisk = record.identity.vdisk;
            let mut frame = record.frame(usize::from(node.entry));
            let name = match (found.entry.kind, found.fingerprint) {
                (EntryKind::Frame, Some(print)) if references < REFERENCES_MAX => {
                    duplicates.domain(vdisk).map(|domain| (domain, print))
                }
                _ => None,
            };
            let original = name.and_then(|name| match own.get(&name) {
                Some(first) => Some(Original::Item(*first)),
                None => {
                    let found = duplicates.find(name.0, &name.1);
                    found.map(|(address, block)| Original::Frame(address, block))
                }
            });
            if original.is_some() {
                frame = Bytes::new();
            }
            let footer = footer_length(items.len() + 1 + objects.len());
            let fits = capacity == 0 || used + frame.len() + footer <= capacity;
            if items.len() == ITEMS_MAX || !fits {
                return items;
            }
            used += frame.len();
            match (original, name) {
                (Some(_), _) => references += 1,
                (None, Some(name)) => drop(own.insert(name, items.len())),
                (None, None) => {}
            }
            items.push(Item {
                vdisk,
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
                original,
            });
        }
    }
    items
}

#[cfg(test)]
mod tests;
