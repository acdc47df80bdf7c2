//! Entries of the log by position: pages of 1024 positions, each gone when its last entry is.

use super::chunks::ChunkIndex;
use bytes::Bytes;
use cleave_format::ids::VdiskId;
use std::collections::BTreeMap;

const PAGE: u64 = 1024;

/// One entry that the log holds.
#[derive(Clone, Debug)]
pub struct LogEntry {
    /// Its bytes: a record, or an encoded control record.
    pub bytes: Bytes,
    /// What it is.
    pub kind: LogEntryKind,
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogEntryKind {
    /// A record of this vdisk, in this chunk.
    Record(VdiskId, ChunkIndex),
    /// A control record.
    Control {
        /// Its [`check`](cleave_format::control::check), from when it was decided or received.
        check: u32,
    },
}

struct Page {
    live: u32,
    entries: Vec<Option<LogEntry>>,
}

/// The entries.
#[derive(Default)]
pub struct Entries {
    /// By number. A copy may have holes of any size, so what they take is no matter of positions.
    pages: BTreeMap<u64, Page>,
    live: u64,
}

impl Entries {
    /// Entries held.
    pub fn len(&self) -> u64 {
        self.live
    }

    /// Adds an entry at a position after all others.
    pub fn insert(&mut self, position: u64, entry: LogEntry) {
        let page = self.pages.entry(position / PAGE).or_insert_with(|| {
            let mut entries = Vec::new();
            entries.resize_with(PAGE as usize, || None);
            Page { live: 0, entries }
        });
        let place = &mut page.entries[(position % PAGE) as usize];
        assert!(place.is_none(), "a position is used once");
        *place = Some(entry);
        page.live += 1;
        self.live += 1;
    }

    /// The entry of a position.
    pub fn get(&self, position: u64) -> Option<&LogEntry> {
        self.pages.get(&(position / PAGE))?.entries[(position % PAGE) as usize].as_ref()
    }

    /// The entry of a position, to be changed.
    pub fn get_mut(&mut self, position: u64) -> Option<&mut LogEntry> {
        self.pages.get_mut(&(position / PAGE))?.entries[(position % PAGE) as usize].as_mut()
    }

    /// Takes an entry out.
    pub fn remove(&mut self, position: u64) -> Option<LogEntry> {
        let page = self.pages.get_mut(&(position / PAGE))?;
        let entry = page.entries[(position % PAGE) as usize].take()?;
        page.live -= 1;
        self.live -= 1;
        if page.live == 0 {
            self.pages.remove(&(position / PAGE));
        }
        Some(entry)
    }

    /// The first entry at `from` or after, before `end`, and its position.
    pub fn next_from(&self, from: u64, end: u64) -> Option<(u64, &LogEntry)> {
        for (number, page) in self.pages.range(from / PAGE..) {
            let first = number * PAGE;
            if first >= end {
                return None;
            }
            let skipped = from.saturating_sub(first);
            let found = (skipped..PAGE.min(end - first))
                .find_map(|at| Some((first + at, page.entries[at as usize].as_ref()?)));
            if found.is_some() {
                return found;
            }
        }
        None
    }
}
