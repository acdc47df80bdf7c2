//! The fingerprint index: where content lies already, so that a block with the same content becomes a reference
//! in place of a frame (C5, C19).
//!
//! A cache of a fixed size, in sets of eight places; the place of what was not asked for since the hand
//! came by is taken first. An entry is the whole fingerprint with its key domain (C30), and a frame's
//! address. That a stripe exists is not known here: whoever finds an address pins its stripe, which an
//! entry of some map must name, and the log checks it again when the commit gets its position.
//!
//! A crash loses the index; the footers of the vdisks' stripes bring it back (`open`).

use crate::core::Shared;
use crate::destage::plan::{Duplicates, Found};
use crate::map::Map;
use crate::state::{State, Vdisk};
use bytes::Bytes;
use cleave_format::address::Address;
use cleave_format::control::REFERENCES_MAX;
use cleave_format::footer::Fingerprint;
use cleave_format::ids::{StripeId, VdiskId};
use cleave_format::layout::BLOCK;
use cleave_runtime::planted::{Planted, is_planted};
use std::collections::{BTreeMap, BTreeSet};

use crate::buffer::RecordKey;

/// Places of a set.
const WAYS: usize = 8;
/// Blocks that are hashed in one unit of work.
const HASHES_A_UNIT: usize = 8;

/// A key domain: content of one is never referred to from another (C30). A core has one codec for each.
pub type Domain = u32;

#[derive(Clone, Copy)]
struct Entry {
    fingerprint: Fingerprint,
    stripe: StripeId,
    offset: u32,
    /// 0: the place is empty.
    length: u16,
    block_in_frame: u8,
    /// Asked for since the hand came by.
    wanted: bool,
    domain: Domain,
}

const EMPTY: Entry = Entry {
    fingerprint: [0; 32],
    stripe: StripeId(0),
    offset: 0,
    length: 0,
    block_in_frame: 0,
    wanted: false,
    domain: 0,
};

/// Bytes of memory of an entry.
pub const ENTRY_BYTES: usize = size_of::<Entry>();
const _: () = assert!(ENTRY_BYTES <= 56);

/// The index of a core.
pub struct Index {
    entries: Vec<Entry>,
    hands: Vec<u8>,
    used: usize,
}

impl Index {
    /// An index that takes at most so many bytes; with too few for a set it holds nothing.
    pub fn new(bytes: u64) -> Index {
        let sets = bytes as usize / (WAYS * ENTRY_BYTES + 1);
        Index { entries: vec![EMPTY; sets * WAYS], hands: vec![0; sets], used: 0 }
    }

    /// Whether it can hold anything.
    pub fn is_on(&self) -> bool {
        !self.hands.is_empty()
    }

    /// Entries, and how many there can be.
    pub fn len(&self) -> (usize, usize) {
        (self.used, self.entries.len())
    }

    /// Bytes of memory.
    pub fn memory(&self) -> usize {
        self.entries.len() * ENTRY_BYTES + self.hands.len()
    }

    fn set(&self, fingerprint: &Fingerprint) -> usize {
        let head = u64::from_le_bytes(*fingerprint.first_chunk().expect("it is longer"));
        (head % self.hands.len() as u64) as usize
    }

    fn find(&mut self, domain: Domain, fingerprint: &Fingerprint) -> Option<&mut Entry> {
        if !self.is_on() {
            return None;
        }
        let set = self.set(fingerprint);
        let places = &mut self.entries[set * WAYS..(set + 1) * WAYS];
        let same = |entry: &&mut Entry| {
            entry.length > 0 && entry.domain == domain && entry.fingerprint == *fingerprint
        };
        places.iter_mut().find(same)
    }

    /// Where a block with that content lies, and its number in its frame.
    pub fn get(&mut self, domain: Domain, fingerprint: &Fingerprint) -> Option<(Address, u8)> {
        let entry = self.find(domain, fingerprint)?;
        entry.wanted = true;
        let length = u32::from(entry.length);
        let address = Address { stripe: entry.stripe, offset: entry.offset, length };
        Some((address, entry.block_in_frame))
    }

    /// A block with that content lies there; the newest such place counts.
    pub fn insert(
        &mut self,
        domain: Domain,
        fingerprint: &Fingerprint,
        address: Address,
        block_in_frame: u8,
    ) {
        if !self.is_on() {
            return;
        }
        let length = u16::try_from(address.length).expect("a frame is shorter than 64 KiB");
        let (stripe, offset) = (address.stripe, address.offset);
        let fingerprint = *fingerprint;
        let wanted = false;
        let entry = Entry { fingerprint, stripe, offset, length, block_in_frame, wanted, domain };
        if let Some(known) = self.find(domain, &fingerprint) {
            *known = Entry { wanted: known.wanted, ..entry };
            return;
        }
        let set = self.set(&fingerprint);
        let places = &mut self.entries[set * WAYS..(set + 1) * WAYS];
        if let Some(empty) = places.iter_mut().find(|entry| entry.length == 0) {
            *empty = entry;
            self.used += 1;
            return;
        }
        let hand = &mut self.hands[set];
        loop {
            let place = &mut places[usize::from(*hand)];
            *hand = (*hand + 1) % WAYS as u8;
            if !std::mem::take(&mut place.wanted) {
                *place = entry;
                return;
            }
        }
    }

    /// That content is not there any more.
    pub fn remove(&mut self, domain: Domain, fingerprint: &Fingerprint) {
        if let Some(entry) = self.find(domain, fingerprint) {
            *entry = EMPTY;
            self.used -= 1;
        }
    }
}

/// The domain of an open vdisk.
fn domain_of(vdisk: &Vdisk) -> Domain {
    vdisk.codec as Domain
}

/// What a plan may refer to: pins the stripes.
pub(crate) struct Lookup<'a> {
    pub vdisks: &'a BTreeMap<VdiskId, Vdisk>,
    pub index: &'a mut Index,
    pub map: &'a mut Map,
    /// Stripes that this plan pinned.
    pub pins: BTreeSet<StripeId>,
}

impl Duplicates for Lookup<'_> {
    fn domain(&self, vdisk: VdiskId) -> Option<Domain> {
        self.vdisks.get(&vdisk).filter(|_| self.index.is_on()).map(domain_of)
    }

    fn find(&mut self, domain: Domain, fingerprint: &Fingerprint) -> Found {
        let Some((address, block_in_frame)) = self.index.get(domain, fingerprint) else {
            return Found::Unknown;
        };
        if !self.pins.contains(&address.stripe) && !is_planted(Planted::ReferToFreed) {
            if self.pins.len() == REFERENCES_MAX {
                return Found::InAnotherPlan;
            }
            if !self.map.pin(address.stripe) {
                // No map names the stripe: nothing says that it still exists (C19).
                self.index.remove(domain, fingerprint);
                return Found::Unknown;
            }
            self.pins.insert(address.stripe);
        }
        Found::There(address, block_in_frame)
    }
}

impl State {
    /// Content of a vdisk that is committed there may be referred to from now on.
    pub(crate) fn learn_fingerprint(
        &mut self,
        vdisk: VdiskId,
        fingerprint: &Fingerprint,
        address: Address,
    ) {
        if let Some(open) = self.vdisks.get(&vdisk) {
            self.index.insert(domain_of(open), fingerprint, address, 0);
        }
    }

    /// As [`learn_fingerprint`](State::learn_fingerprint), where nothing newer is known.
    pub(crate) fn learn_older_fingerprint(
        &mut self,
        vdisk: VdiskId,
        fingerprint: &Fingerprint,
        address: Address,
    ) {
        let Some(open) = self.vdisks.get(&vdisk) else { return };
        let domain = domain_of(open);
        if self.index.find(domain, fingerprint).is_none() {
            self.index.insert(domain, fingerprint, address, 0);
        }
    }

    /// What was referred to there may be gone.
    pub(crate) fn forget_fingerprint(&mut self, vdisk: VdiskId, fingerprint: &Fingerprint) {
        if let Some(open) = self.vdisks.get(&vdisk) {
            self.index.remove(domain_of(open), fingerprint);
        }
    }
}

/// A block that waits for a stripe and has no fingerprint.
struct Missing {
    record: RecordKey,
    entry: usize,
    vdisk: VdiskId,
    frame: Bytes,
}

impl Shared {
    /// Computes the fingerprints that the oldest `bytes` of what waits for a stripe lack: under load they
    /// were left for later, and without them nothing is recognised.
    pub(crate) async fn fingerprint_what_waits(&self, bytes: usize) {
        let mut missing = Vec::new();
        {
            let state = self.state.borrow();
            if !state.index.is_on() {
                return;
            }
            let mut left = bytes;
            'queue: for (record, found) in state.buffer.queue() {
                for node in state.buffer.unplanned(record) {
                    let entry = usize::from(node.entry);
                    let of_it = &found.entries[entry];
                    let length = of_it.entry.length as usize;
                    if left < length {
                        break 'queue;
                    }
                    left -= length;
                    if length > 0 && of_it.fingerprint.is_none() {
                        let (vdisk, frame) = (found.identity.vdisk, found.frame(entry));
                        missing.push(Missing { record, entry, vdisk, frame });
                    }
                }
            }
        }
        for (number, block) in missing.into_iter().enumerate() {
            if number % HASHES_A_UNIT == 0 {
                self.executor.yield_now().await;
            }
            let mut state = self.state.borrow_mut();
            let Some(codec) = state.vdisks.get(&block.vdisk).map(|open| open.codec) else {
                continue;
            };
            let known = state.buffer.get(block.record);
            if known.is_none_or(|record| record.entries[block.entry].fingerprint.is_some()) {
                continue;
            }
            let codec = &mut state.codecs[codec].1;
            let mut content = [0; BLOCK];
            // One that is damaged is found when its stripe is packed.
            if codec.decode(&block.frame, &mut content).is_ok() {
                let fingerprint = codec.fingerprint(&content);
                state.buffer.set_fingerprint(block.record, block.entry, fingerprint);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn fingerprint(number: u8) -> Fingerprint {
        let mut bytes = [number; 32];
        bytes[..8].copy_from_slice(&(u64::from(number) * 0x9e37_79b9).to_le_bytes());
        bytes
    }

    fn address(stripe: u64) -> Address {
        Address { stripe: StripeId(stripe), offset: 4096, length: 528 }
    }

    proptest! {
        // What is found is what was put there last, in its own domain (C30); what is taken out is gone.
        #[test]
        fn finds_the_newest_place_or_nothing(
            bytes in 0u64..4000,
            steps in proptest::collection::vec((0u8..4, 0u32..2, any::<u8>(), 1u64..100), 0..300),
        ) {
            let mut index = Index::new(bytes);
            let mut model = BTreeMap::new();
            for (kind, domain, number, stripe) in steps {
                let key = fingerprint(number);
                match kind {
                    0 => {
                        index.remove(domain, &key);
                        model.remove(&(domain, number));
                    }
                    1 => {
                        if let Some((found, block)) = index.get(domain, &key) {
                            prop_assert_eq!(Some(&found.stripe.0), model.get(&(domain, number)));
                            prop_assert_eq!((found, block), (address(found.stripe.0), 3));
                        }
                    }
                    _ => {
                        index.insert(domain, &key, address(stripe), 3);
                        model.insert((domain, number), stripe);
                        if index.is_on() {
                            let found = index.get(domain, &key).map(|found| found.0);
                            prop_assert_eq!(found, Some(address(stripe)));
                        }
                    }
                }
                prop_assert!(index.memory() as u64 <= bytes);
                prop_assert!(index.len().0 <= index.len().1.min(model.len()));
            }
        }
    }

    #[test]
    fn what_is_asked_for_stays() {
        let mut index = Index::new((WAYS * ENTRY_BYTES + 1) as u64);
        for number in 0..8 {
            index.insert(0, &fingerprint(number), address(1), 0);
        }
        for number in 8..200 {
            assert!(index.get(0, &fingerprint(3)).is_some(), "at {number}");
            index.insert(0, &fingerprint(number), address(1), 0);
        }
        assert_eq!(index.len(), (8, 8));
    }
}
