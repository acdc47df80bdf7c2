//! Where the parts of stripes lie: the table that answers every read.
//!
//! An entry a stripe: which parts are there, and for each a word of 30 bits place and 2 bits heat, in the
//! order of the parts. A whole stripe of 64 parts takes about 300 bytes, so that 1 TB of flash takes about 36 MB;
//! stripes of which only a part or two are here take about 50 bytes a part.
//!
//! The table is divided by the stripe's hash, so that it grows, and is swept, in small steps. There is no table
//! by place: the headers on flash say what a zone holds.

use cleave_format::flash::PARTS_MAX;
use cleave_format::ids::StripeId;
use cleave_runtime::hash::Mixer;
use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::hash::{BuildHasherDefault, Hasher};

/// Divisions of the table.
pub(crate) const DIVISIONS: usize = 64;
/// Places have 30 bits: 128 TiB a core.
pub(crate) const PLACE_MAX: u32 = (1 << 30) - 1;
/// The hottest that a part gets.
pub(crate) const HEAT_MAX: u8 = 3;

const FEW: usize = 2;

/// Place and heat of a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub place: u32,
    pub heat: u8,
}

impl Found {
    fn word(self) -> u32 {
        debug_assert!(self.place <= PLACE_MAX && self.heat <= HEAT_MAX);
        u32::from(self.heat) << 30 | self.place
    }

    fn of(word: u32) -> Found {
        Found { place: word & PLACE_MAX, heat: (word >> 30) as u8 }
    }
}

/// Words in the order of the parts that are present.
enum Words {
    Few([u32; FEW]),
    Many(Box<[u32]>),
}

struct Entry {
    /// A bit a part.
    present: u64,
    words: Words,
}

const _: () = assert!(PARTS_MAX == 64);
const _: () = assert!(size_of::<Entry>() == 24);

impl Entry {
    fn count(&self) -> usize {
        self.present.count_ones() as usize
    }

    /// Where the part's word is, or would be.
    fn rank(&self, part: u8) -> usize {
        (self.present & ((1 << part) - 1)).count_ones() as usize
    }

    fn has(&self, part: u8) -> bool {
        self.present >> part & 1 == 1
    }

    fn words(&self) -> &[u32] {
        match &self.words {
            Words::Few(words) => &words[..self.count()],
            Words::Many(words) => words,
        }
    }

    fn word_mut(&mut self, part: u8) -> Option<&mut u32> {
        let (there, rank) = (self.has(part), self.rank(part));
        match &mut self.words {
            _ if !there => None,
            Words::Few(words) => Some(&mut words[rank]),
            Words::Many(words) => Some(&mut words[rank]),
        }
    }

    fn insert(&mut self, part: u8, word: u32) {
        let (rank, count) = (self.rank(part), self.count());
        self.words = match std::mem::replace(&mut self.words, Words::Few([0; FEW])) {
            Words::Few(mut words) if count < FEW => {
                words.copy_within(rank..count, rank + 1);
                words[rank] = word;
                Words::Few(words)
            }
            Words::Few(words) => {
                let mut many = Vec::with_capacity(FEW + 1);
                many.extend_from_slice(&words);
                many.insert(rank, word);
                Words::Many(many.into_boxed_slice())
            }
            Words::Many(words) => {
                let mut many = words.into_vec();
                many.reserve_exact(1);
                many.insert(rank, word);
                Words::Many(many.into_boxed_slice())
            }
        };
        self.present |= 1 << part;
    }

    fn remove(&mut self, part: u8) {
        let (rank, count) = (self.rank(part), self.count());
        self.words = match std::mem::replace(&mut self.words, Words::Few([0; FEW])) {
            Words::Few(mut words) => {
                words.copy_within(rank + 1..count, rank);
                Words::Few(words)
            }
            Words::Many(words) => {
                let mut many = words.into_vec();
                many.remove(rank);
                match many.as_slice() {
                    [first, second] => Words::Few([*first, *second]),
                    _ => Words::Many(many.into_boxed_slice()),
                }
            }
        };
        self.present &= !(1 << part);
    }

    fn boxed(&self) -> usize {
        match &self.words {
            Words::Few(_) => 0,
            // With what an allocator adds.
            Words::Many(words) => (words.len() * 4 + 8).next_multiple_of(16),
        }
    }

    fn parts(&self) -> impl Iterator<Item = u8> + use<> {
        let present = self.present;
        (0..PARTS_MAX as u8).filter(move |part| present >> part & 1 == 1)
    }
}

type Division = HashMap<StripeId, Entry, BuildHasherDefault<Mixer>>;

/// See the module's page.
pub(crate) struct Table {
    divisions: Vec<Division>,
    parts: u64,
    boxed: usize,
}

impl Default for Table {
    fn default() -> Table {
        let divisions = (0..DIVISIONS).map(|_| Division::default()).collect();
        Table { divisions, parts: 0, boxed: 0 }
    }
}

fn division_of(stripe: StripeId) -> usize {
    // Other bits than those by which a division finds its entries.
    let mut mixer = Mixer::default();
    mixer.write_u64(stripe.0.rotate_left(32));
    (mixer.finish() >> 20) as usize % DIVISIONS
}

impl Table {
    /// Where a part lies.
    pub fn get(&self, stripe: StripeId, part: u8) -> Option<Found> {
        let entry = self.divisions[division_of(stripe)].get(&stripe)?;
        let there = entry.has(part);
        there.then(|| Found::of(entry.words()[entry.rank(part)]))
    }

    /// Where a part lies that is being read: it gets hotter.
    pub fn hit(&mut self, stripe: StripeId, part: u8) -> Option<u32> {
        let entry = self.divisions[division_of(stripe)].get_mut(&stripe)?;
        let word = entry.word_mut(part)?;
        let found = Found::of(*word);
        *word = Found { heat: HEAT_MAX.min(found.heat + 1), ..found }.word();
        Some(found.place)
    }

    /// Puts a part in, and gives its old place.
    pub fn set(&mut self, stripe: StripeId, part: u8, found: Found) -> Option<u32> {
        let division = &mut self.divisions[division_of(stripe)];
        let entry = division
            .entry(stripe)
            .or_insert_with(|| Entry { present: 0, words: Words::Few([0; FEW]) });
        if let Some(word) = entry.word_mut(part) {
            return Some(Found::of(std::mem::replace(word, found.word())).place);
        }
        self.boxed -= entry.boxed();
        entry.insert(part, found.word());
        self.boxed += entry.boxed();
        self.parts += 1;
        None
    }

    /// Takes a part out if it lies at `place`.
    pub fn remove_at(&mut self, stripe: StripeId, part: u8, place: u32) -> bool {
        let MapEntry::Occupied(mut occupied) = self.divisions[division_of(stripe)].entry(stripe)
        else {
            return false;
        };
        let entry = occupied.get_mut();
        if entry.word_mut(part).is_none_or(|word| Found::of(*word).place != place) {
            return false;
        }
        self.boxed -= entry.boxed();
        entry.remove(part);
        self.boxed += entry.boxed();
        self.parts -= 1;
        if entry.present == 0 {
            occupied.remove();
        }
        true
    }

    /// Takes a stripe out, and gives the places that it had.
    pub fn remove_stripe(&mut self, stripe: StripeId, mut gone: impl FnMut(u32)) {
        let division = &mut self.divisions[division_of(stripe)];
        let Some(entry) = division.remove(&stripe) else { return };
        self.boxed -= entry.boxed();
        self.parts -= entry.count() as u64;
        entry.words().iter().for_each(|word| gone(Found::of(*word).place));
    }

    /// Takes out of one division what `keep` does not want, place by place.
    pub fn sweep(&mut self, division: usize, mut keep: impl FnMut(StripeId, u32) -> bool) {
        let (parts, boxed) = (&mut self.parts, &mut self.boxed);
        self.divisions[division].retain(|stripe, entry| {
            for part in entry.parts() {
                let word = entry.words()[entry.rank(part)];
                if keep(*stripe, Found::of(word).place) {
                    continue;
                }
                *boxed -= entry.boxed();
                entry.remove(part);
                *boxed += entry.boxed();
                *parts -= 1;
            }
            entry.present != 0
        });
    }

    /// Parts that are in it.
    pub fn parts(&self) -> u64 {
        self.parts
    }

    /// Stripes of which anything is in it.
    pub fn stripes(&self) -> usize {
        self.divisions.iter().map(HashMap::len).sum()
    }

    /// Bytes that it takes, about.
    pub fn memory(&self) -> usize {
        let slot = size_of::<(StripeId, Entry)>() + 1;
        // A hash table is at most 7/8 full.
        let slots: usize = self.divisions.iter().map(|division| division.capacity() * 8 / 7).sum();
        slots * slot + self.boxed
    }
}

#[cfg(test)]
mod tests;
