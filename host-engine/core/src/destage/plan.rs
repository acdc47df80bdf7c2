//! What goes into a stripe, and where: pure.
//!
//! The oldest mirrored content first, as much as fits with its footer; within the stripe by vdisk
//! and block, so that neighbours are read together. Frames do not straddle parts. Only live
//! content is chosen: what a newer mirrored write covers is dropped here (C4); and what lies in the pool already, or
//! is chosen twice, is chosen as a reference to it (C19).
//!
//! A reference to another stripe needs no room in this one. Where there are many, they are committed by themselves
//! (C5), and what has a frame is left until it fills a stripe. Each such plan commits something, so frames are left a
//! bounded number of times before a plan without enough references takes them, as the oldest.

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
/// Most references of a plan to other stripes: a commit without a stripe names them in the log.
pub const REFERENCES_MAX: usize = 4096;
/// References are committed without a stripe when the frames that they stand for would fill this part of one.
const KNOWN_PART: usize = 8;

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

    /// Looks for a frame that holds the content, in a stripe that exists for as long as the plan does (C19).
    fn find(&mut self, domain: Domain, fingerprint: &Fingerprint) -> Found;
}

/// What is known of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found {
    /// It lies in that frame, as this one of its blocks.
    There(Address, u8),
    /// It lies in a stripe that this plan may not name as well: another plan may.
    InAnotherPlan,
    /// Nothing.
    Unknown,
}

/// What a plan takes.
pub struct Choice {
    /// By vdisk and block.
    pub items: Vec<Item>,
    /// Where the objects go; `None`: no item needs a stripe, and nothing else was chosen. Then the objects, and
    /// content with frames, wait for another plan.
    pub offsets: Option<Vec<u32>>,
}

impl Item {
    /// The nodes of the buffer that it stands for.
    pub fn nodes(&self) -> impl Iterator<Item = NodeName> + use<> {
        let (record, entry) = (self.record, self.entry);
        (self.block..self.block + self.blocks).map(move |block| NodeName { record, entry, block })
    }

    /// Where it stands in a footer: neighbours are read together.
    fn place(&self) -> (VdiskId, SliceIndex, u16, Version) {
        (self.vdisk, self.slice, self.block, self.version)
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
/// twice, becomes a reference. With `may_leave` frames and objects are left where references alone are worth a commit.
pub fn choose(
    buffer: &WriteBuffer,
    stripe: StripeId,
    objects: &[usize],
    capacity: usize,
    duplicates: &mut impl Duplicates,
    may_leave: bool,
) -> Choice {
    let gathered = gather(buffer, objects, capacity, |_| true, duplicates);
    let mut items = gathered.items;
    if may_leave && (gathered.limited || gathered.known * KNOWN_PART >= capacity) {
        items.retain(|item| {
            item.frame.is_empty() && !matches!(item.original, Some(Original::Item(_)))
        });
        items.sort_by_key(Item::place);
        return Choice { items, offsets: None };
    }
    loop {
        let mut order: Vec<usize> = (0..items.len()).collect();
        order.sort_by_key(|index| items[*index].place());
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
            return Choice { items: order.iter().map(take).collect(), offsets: Some(offsets) };
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
    let mut items = gather(buffer, &[], 0, |entry| entry.length == 0, &mut NoDuplicates).items;
    items.sort_by_key(Item::place);
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

    fn find(&mut self, _: Domain, _: &Fingerprint) -> Found {
        Found::Unknown
    }
}

/// The oldest content of some kind, in the order in which it was taken.
struct Gathered {
    items: Vec<Item>,
    /// Bytes of the frames that references to other stripes stand for.
    known: usize,
    /// There are as many of these as a plan may have.
    limited: bool,
}

/// The oldest content of the kind that `wanted` says, until there are enough entries or references, or more bytes
/// than fit if nothing is lost to parts (a capacity of 0 bounds nothing).
fn gather(
    buffer: &WriteBuffer,
    objects: &[usize],
    capacity: usize,
    wanted: impl Fn(&Entry) -> bool,
    duplicates: &mut impl Duplicates,
) -> Gathered {
    let mut own: HashMap<(Domain, Fingerprint), usize> = HashMap::default();
    let (mut references, mut known) = (0, 0);
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
                (EntryKind::Frame, Some(print)) => {
                    duplicates.domain(vdisk).map(|domain| (domain, print))
                }
                _ => None,
            };
            let own_frame =
                name.and_then(|name| own.get(&name)).map(|first| Original::Item(*first));
            let original = match (own_frame, name) {
                (None, Some((domain, print))) => match duplicates.find(domain, &print) {
                    Found::There(..) if references == REFERENCES_MAX => {
                        return Gathered { items, known, limited: true };
                    }
                    Found::InAnotherPlan => return Gathered { items, known, limited: true },
                    Found::There(address, block) => Some(Original::Frame(address, block)),
                    Found::Unknown => None,
                },
                (own_frame, _) => own_frame,
            };
            let saved = frame.len();
            if original.is_some() {
                frame = Bytes::new();
            }
            let footer = footer_length(items.len() + 1 + objects.len());
            let fits = capacity == 0 || used + frame.len() + footer <= capacity;
            if items.len() == ITEMS_MAX || !fits {
                return Gathered { items, known, limited: false };
            }
            used += frame.len();
            match (original, name) {
                (Some(Original::Frame(..)), _) => {
                    references += 1;
                    known += saved;
                }
                (None, Some(name)) => drop(own.insert(name, items.len())),
                (Some(Original::Item(_)), _) | (None, None) => {}
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
    Gathered { items, known, limited: false }
}

#[cfg(test)]
mod tests;
