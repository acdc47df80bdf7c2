//! An IOMMU in software: device addresses of this process's memory, for the controller model.
//!
//! It is stricter than one: of a pool's memory only the pieces that are handed out can be reached,
//! so that a device that reaches memory after it was freed is found out.

use super::buffer::Words;
use super::{Mapper, PAGE_BYTES};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ptr::NonNull;
use std::sync::{Mutex, PoisonError};

/// Where device addresses begin: high and odd, so that truncated ones are noticed.
const FIRST: u64 = 0x7_1000_0000;

/// See the module's page.
pub struct DmaSpace(Mutex<Table>);

struct Table {
    next: u64,
    ranges: BTreeMap<u64, Words>,
    /// Ranges of pools, by their first address.
    pooled: BTreeSet<u64>,
    /// Pieces that pools handed out: length by first address.
    pieces: BTreeMap<u64, usize>,
}

impl Default for DmaSpace {
    fn default() -> DmaSpace {
        DmaSpace(Mutex::new(Table {
            next: FIRST,
            ranges: BTreeMap::new(),
            pooled: BTreeSet::new(),
            pieces: BTreeMap::new(),
        }))
    }
}

impl DmaSpace {
    /// Reads as a device does. False when some of it is not mapped.
    #[must_use]
    pub fn read(&self, device: u64, target: &mut [u8]) -> bool {
        match self.find(device, target.len()) {
            Some((words, at)) => words.read(at, target),
            None => return false,
        }
        true
    }

    /// Writes as a device does. False when some of it is not mapped.
    #[must_use]
    pub fn write(&self, device: u64, source: &[u8]) -> bool {
        match self.find(device, source.len()) {
            Some((words, at)) => words.write(at, source),
            None => return false,
        }
        true
    }

    /// Mapped bytes.
    pub fn mapped(&self) -> usize {
        self.table().ranges.values().map(Words::len).sum()
    }

    fn find(&self, device: u64, length: usize) -> Option<(Words, usize)> {
        let table = self.table();
        let (first, words) = table.ranges.range(..=device).next_back()?;
        let at = usize::try_from(device - first).ok()?;
        if at.checked_add(length)? > words.len() {
            return None;
        }
        if table.pooled.contains(first) {
            let (piece, room) = table.pieces.range(..=device).next_back()?;
            if device - piece + length as u64 > *room as u64 {
                return None;
            }
        }
        Some((*words, at))
    }

    fn table(&self) -> std::sync::MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Mapper for DmaSpace {
    // SAFETY: what callers promise is the trait's.
    unsafe fn map(&self, host: *mut u8, length: usize) -> io::Result<u64> {
        let mut table = self.table();
        let device = table.next;
        // A gap, so that what runs over the end of a range is noticed.
        table.next += (length + PAGE_BYTES) as u64;
        let host = NonNull::new(host).expect("memory is not at zero");
        // SAFETY: the caller promises valid memory until `unmap`, which takes it from the table.
        table.ranges.insert(device, unsafe { Words::new(host, length) });
        Ok(device)
    }

    fn unmap(&self, device: u64, _length: usize) {
        let mut table = self.table();
        table.ranges.remove(&device);
        table.pooled.remove(&device);
    }

    fn taken(&self, device: u64, length: usize) {
        let mut table = self.table();
        let range = table.ranges.range(..=device).next_back().map(|(first, _)| *first);
        table.pooled.extend(range);
        table.pieces.insert(device, length);
    }

    fn given_back(&self, device: u64, _length: usize) {
        self.table().pieces.remove(&device);
    }

    fn takes_normal_pages(&self) -> bool {
        true
    }
}
