//! What a simulated drive stores: durable pages, and over them the volatile cache of writes that
//! completed and were not flushed.
//!
//! Invariants: a page's content is its newest cached version, else its durable one, else zeros.
//! A flush makes exactly those versions durable that completed before it began (C10): versions carry
//! the serial number of their completion. After a power loss a page holds its durable version or
//! one of the cached ones, each page for itself; the cache is empty.

use crate::power::SECTOR;
use cleave_runtime::buffer::PAGE;
use cleave_runtime::random::Random;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// One stored page.
pub(crate) type Page = Rc<[u8; PAGE]>;

/// A version that no flush makes durable any more, because one that covered it failed.
const DOUBTFUL: u64 = u64::MAX;

#[derive(Clone)]
struct Version {
    serial: u64,
    /// `None`: zeros that need no space.
    content: Option<Page>,
    /// Not what was written here last.
    damaged: bool,
}

/// The stored content, by page number.
#[derive(Default)]
pub(crate) struct Medium {
    durable: BTreeMap<u64, Page>,
    /// Never an empty list.
    cache: BTreeMap<u64, Vec<Version>>,
    /// Serial number of the newest completed write.
    serial: u64,
    /// Pages that cannot be read until they are written again.
    unreadable: BTreeSet<u64>,
    /// Pages whose durable content is not what was written there last.
    damaged: BTreeSet<u64>,
}

impl Medium {
    /// The page's content; `None` is zeros.
    pub fn read(&self, page: u64) -> Option<&Page> {
        match self.cache.get(&page).and_then(|versions| versions.last()) {
            Some(version) => version.content.as_ref(),
            None => self.durable.get(&page),
        }
    }

    /// Whether a latent sector error stands in the page.
    pub fn unreadable(&self, page: u64) -> bool {
        self.unreadable.contains(&page)
    }

    /// A completed write of one page (`None`: zeros); volatile until a flush.
    pub fn write(&mut self, page: u64, content: Option<Page>) {
        self.serial += 1;
        self.unreadable.remove(&page);
        let version = Version { serial: self.serial, content, damaged: false };
        self.cache.entry(page).or_default().push(version);
    }

    /// What a flush that begins now covers.
    pub fn serial(&self) -> u64 {
        self.serial
    }

    /// A flush that began at `serial` succeeded.
    pub fn flush(&mut self, serial: u64) {
        let mut cache = std::mem::take(&mut self.cache);
        cache.retain(|page, versions| {
            if let Some(newest) = versions.iter().rposition(|version| version.serial <= serial) {
                let version = versions.drain(..=newest).next_back().expect("the range has an end");
                self.settle(*page, version);
            }
            !versions.is_empty()
        });
        self.cache = cache;
    }

    /// Makes a version the durable one.
    fn settle(&mut self, page: u64, version: Version) {
        match version.content {
            Some(content) => self.durable.insert(page, content),
            None => self.durable.remove(&page),
        };
        match version.damaged {
            true => self.damaged.insert(page),
            false => self.damaged.remove(&page),
        };
    }

    /// A flush that began at `serial` failed: what it covered may be lost even if a later flush
    /// succeeds, until it is written again.
    pub fn flush_failed(&mut self, serial: u64) {
        for version in self.cache.values_mut().flatten() {
            if version.serial <= serial {
                version.serial = DOUBTFUL;
            }
        }
    }

    /// Power fails: each cached page write persists or not. Returns how many did and did not.
    pub fn power_loss(&mut self, random: &impl Random) -> (u64, u64) {
        let (mut kept, mut dropped) = (0, 0);
        for (page, versions) in std::mem::take(&mut self.cache) {
            for version in versions {
                if random.below(2) == 0 {
                    self.settle(page, version);
                    kept += 1;
                } else {
                    dropped += 1;
                }
            }
        }
        (kept, dropped)
    }

    /// Power fails: of each cached write those sectors of a page persist that `keep` names by the page and
    /// their number in it.
    pub fn settle_sectors(&mut self, mut keep: impl FnMut(u64, u64) -> bool) {
        for (page, versions) in std::mem::take(&mut self.cache) {
            let mut bytes = self.durable.get(&page).map_or([0; PAGE], |content| **content);
            let mut kept = None;
            for version in versions {
                let new = version.content.as_ref().map_or([0; PAGE], |content| **content);
                let sectors = bytes.chunks_mut(SECTOR).zip(new.chunks(SECTOR));
                for (sector, (old, new)) in (0..).zip(sectors) {
                    if keep(page, sector) {
                        old.copy_from_slice(new);
                        kept = Some(version.damaged);
                    }
                }
            }
            if let Some(damaged) = kept {
                self.settle(page, Version { serial: 0, content: Some(Rc::new(bytes)), damaged });
            }
        }
    }

    /// Makes a page unreadable until it is written.
    pub fn spoil(&mut self, page: u64) {
        self.unreadable.insert(page);
    }

    /// Flips a bit of the byte at `offset`, in the durable version and in the newest.
    pub fn flip(&mut self, offset: u64, bit: u8) {
        let (page, index) = (offset / PAGE as u64, (offset % PAGE as u64) as usize);
        let flip = |content: Option<&Page>| {
            let mut bytes = content.map_or([0; PAGE], |content| **content);
            bytes[index] ^= 1 << (bit % 8);
            Rc::new(bytes)
        };
        self.durable.insert(page, flip(self.durable.get(&page)));
        if let Some(version) = self.cache.get_mut(&page).and_then(|versions| versions.last_mut()) {
            version.content = Some(flip(version.content.as_ref()));
            version.damaged = true;
        }
        self.damaged.insert(page);
    }

    /// Two pages trade their present content, durable and newest.
    pub fn exchange(&mut self, one: u64, other: u64) {
        let (first, second) = (self.read(one).cloned(), self.read(other).cloned());
        for (page, content) in [(one, second), (other, first)] {
            match &content {
                Some(content) => drop(self.durable.insert(page, Rc::clone(content))),
                None => drop(self.durable.remove(&page)),
            }
            if let Some(version) =
                self.cache.get_mut(&page).and_then(|versions| versions.last_mut())
            {
                version.content = content;
            }
            self.mark_damaged(page);
        }
    }

    /// Notes that a page's present content came about by a fault.
    pub fn mark_damaged(&mut self, page: u64) {
        match self.cache.get_mut(&page).and_then(|versions| versions.last_mut()) {
            Some(version) => version.damaged = true,
            None => {
                self.damaged.insert(page);
            }
        }
    }

    /// Pages that are unreadable, or damaged in some version that may still be read, in order.
    pub fn damaged(&self) -> Vec<u64> {
        let cached = self.cache.iter().filter(|(_, list)| list.iter().any(|v| v.damaged));
        let mut pages: BTreeSet<u64> = cached.map(|(page, _)| *page).collect();
        pages.extend(self.damaged.union(&self.unreadable));
        pages.into_iter().collect()
    }

    /// Whether the page takes space.
    pub fn allocated(&self, page: u64) -> bool {
        self.durable.contains_key(&page) || self.cache.contains_key(&page)
    }

    /// All pages that take space, in order.
    pub fn allocated_pages(&self) -> Vec<u64> {
        let pages: BTreeSet<u64> = self.durable.keys().chain(self.cache.keys()).copied().collect();
        pages.into_iter().collect()
    }

    /// A random page that takes space.
    pub fn any_allocated(&self, random: &impl Random) -> Option<u64> {
        let pages: Vec<u64> = self.durable.keys().chain(self.cache.keys()).copied().collect();
        pages.get(random.below(pages.len() as u64) as usize).copied()
    }

    /// Pages with unflushed versions.
    pub fn volatile_pages(&self) -> BTreeSet<u64> {
        self.cache.keys().copied().collect()
    }

    /// A medium with the content of these pages alone, and all of the cache.
    pub fn excerpt(&self, pages: &BTreeSet<u64>) -> Medium {
        let durable =
            |page: &u64| self.durable.get(page).map(|content| (*page, Rc::clone(content)));
        Medium {
            durable: pages.iter().filter_map(durable).collect(),
            cache: self.cache.clone(),
            serial: self.serial,
            ..Medium::default()
        }
    }

    /// Unflushed page versions.
    pub fn volatile(&self) -> usize {
        self.cache.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_runtime::random::SplitMix;
    use proptest::prelude::*;

    fn filled(byte: u8) -> Option<Page> {
        Some(Rc::new([byte; PAGE]))
    }

    fn first(medium: &Medium, page: u64) -> u8 {
        medium.read(page).map_or(0, |content| content[0])
    }

    #[test]
    fn a_failed_flush_leaves_doubt_that_a_later_one_does_not_remove() {
        let lost = (0..64).any(|seed| {
            let mut medium = Medium::default();
            medium.write(1, filled(7));
            medium.flush_failed(medium.serial());
            medium.flush(medium.serial());
            medium.power_loss(&SplitMix::new(seed));
            first(&medium, 1) == 0
        });
        assert!(lost);
    }

    #[test]
    fn a_flipped_bit_survives_power_loss() {
        let mut medium = Medium::default();
        medium.write(3, filled(1));
        medium.flush(medium.serial());
        medium.flip(3 * PAGE as u64, 4);
        assert_eq!((first(&medium, 3), medium.damaged()), (17, vec![3]));
        medium.power_loss(&SplitMix::new(1));
        assert_eq!(first(&medium, 3), 17);
        medium.write(3, filled(2));
        assert_eq!(medium.damaged(), [3]);
        medium.flush(medium.serial());
        assert!(medium.damaged().is_empty());
    }

    proptest! {
        // C10: after a power loss a page holds what was last flushed or something newer.
        #[test]
        fn pages_hold_what_was_flushed_or_something_newer(
            steps in proptest::collection::vec((0u8..12, 0u64..4), 1..60),
            seed in any::<u64>(),
        ) {
            let random = SplitMix::new(seed);
            let mut medium = Medium::default();
            // Per page: contents since and including the last one known durable.
            let mut possible: BTreeMap<u64, Vec<u8>> = (0..4).map(|page| (page, vec![0])).collect();
            let mut flushing: Option<(u64, BTreeMap<u64, usize>)> = None;
            for (index, (step, page)) in steps.into_iter().enumerate() {
                match step {
                    0..6 => {
                        let byte = index as u8 + 1;
                        medium.write(page, filled(byte));
                        possible.get_mut(&page).unwrap().push(byte);
                    }
                    6 => {
                        medium.write(page, None);
                        possible.get_mut(&page).unwrap().push(0);
                    }
                    7..9 => {
                        let lengths = possible.iter().map(|(page, list)| (*page, list.len()));
                        flushing = Some((medium.serial(), lengths.collect()));
                    }
                    9..11 => if let Some((serial, lengths)) = flushing.take() {
                        medium.flush(serial);
                        for (page, length) in lengths {
                            possible.get_mut(&page).unwrap().drain(..length - 1);
                        }
                    },
                    _ => {
                        flushing = None;
                        medium.power_loss(&random);
                        prop_assert_eq!(medium.volatile(), 0);
                        for (page, list) in &mut possible {
                            prop_assert!(list.contains(&first(&medium, *page)));
                            *list = vec![first(&medium, *page)];
                        }
                    }
                }
                for (page, list) in &possible {
                    prop_assert_eq!(first(&medium, *page), *list.last().unwrap());
                }
            }
        }
    }
}
