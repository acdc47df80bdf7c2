//! Entries of the log by position: pages of 1024 positions, each gone when its last entry is.

use super::chunks::ChunkIndex;
use bytes::Bytes;
use cleave_format::ids::VdiskId;
use std::collections::VecDeque;

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
    Control,
}

struct Page {
    live: u32,
    entries: Vec<Option<LogEntry>>,
}

/// The entries.
#[derive(Default)]
pub struct Entries {
    first_page: u64,
    pages: VecDeque<Option<Page>>,
    live: u64,
}

impl Entries {
    /// Entries held.
    pub fn len(&self) -> u64 {
        self.live
    }

    /// Adds an entry at a position after all others.
    pub fn insert(&mut self, position: u64, entry: LogEntry) {
        let number = position / PAGE;
        if self.pages.is_empty() {
            self.first_page = number;
        }
        let index = (number - self.first_page) as usize;
        if index >= self.pages.len() {
            self.pages.resize_with(index + 1, || None);
        }
        let page = self.pages[index].get_or_insert_with(|| {
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

    fn page(&self, position: u64) -> Option<&Page> {
        let index = (position / PAGE).checked_sub(self.first_page)?;
        self.pages.get(usize::try_from(index).ok()?)?.as_ref()
    }

    /// The entry of a position.
    pub fn get(&self, position: u64) -> Option<&LogEntry> {
        self.page(position)?.entries[(position % PAGE) as usize].as_ref()
    }

    /// The entry of a position, to be changed.
    pub fn get_mut(&mut self, position: u64) -> Option<&mut LogEntry> {
        let index = (position / PAGE).checked_sub(self.first_page)?;
        let page = self.pages.get_mut(usize::try_from(index).ok()?)?.as_mut()?;
        page.entries[(position % PAGE) as usize].as_mut()
    }

    /// Takes an entry out.
    pub fn remove(&mut self, position: u64) -> Option<LogEntry> {
        let index = (position / PAGE).checked_sub(self.first_page)?;
        let place = self.pages.get_mut(usize::try_from(index).ok()?)?;
        let page = place.as_mut()?;
        let entry = page.entries[(position % PAGE) as usize].take()?;
        page.live -= 1;
        self.live -= 1;
        if page.live == 0 {
            *place = None;
            while let Some(None) = self.pages.front() {
                self.pages.pop_front();
                self.first_page += 1;
            }
        }
        Some(entry)
    }

    /// The first entry at `from` or after, before `end`, and its position.
    pub fn next_from(&self, from: u64, end: u64) -> Option<(u64, &LogEntry)> {
        let mut position = from.max(self.first_page * PAGE);
        let last = (self.first_page + self.pages.len() as u64) * PAGE;
        let end = end.min(last);
        while position < end {
            let Some(page) = self.page(position) else {
                position = (position / PAGE + 1) * PAGE;
                continue;
            };
            let stop = ((position / PAGE + 1) * PAGE).min(end);
            while position < stop {
                if let Some(entry) = &page.entries[(position % PAGE) as usize] {
                    return Some((position, entry));
                }
                position += 1;
            }
        }
        None
    }
}
