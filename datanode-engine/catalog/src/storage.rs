//! A storage in memory that can lose what was not synced, at any operation: for the simulator and tests.
//!
//! The content outlives the [`Catalog`](crate::Catalog) that uses it, as a file outlives a process.
//! After [`MemoryStorage::kill`], [`MemoryStorage::lose_power`] or [`MemoryStorage::settle`] the old process's
//! handle writes nothing more, not even while it is dropped.

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;
/// Bytes that a device writes whole or not at all.
pub const SECTOR: usize = 512;

/// What becomes of an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permit {
    /// It happens.
    Goes,
    /// The power goes out while it is under way.
    Stops,
    /// There is no power.
    Out,
}

/// Asked before each write, change of the length and sync.
pub type Gate = Box<dyn FnMut() -> Permit + Send>;

/// What was not synced when the power went out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsynced {
    /// A sector of a write that had completed.
    Sector {
        /// Its first byte.
        offset: usize,
    },
    /// A sector of the write that was under way.
    UnderWay {
        /// Its first byte.
        offset: usize,
        /// Sectors of the write before it.
        before: usize,
        /// Sectors of the write.
        of: usize,
    },
    /// The length.
    Length,
}

#[derive(Default)]
struct Content {
    bytes: Vec<u8>,
    gate: Option<Gate>,
    /// The write during which the power went out.
    under_way: Option<Range<usize>>,
    /// Pages as they were at the last sync, of those written since; with the length then.
    before: BTreeMap<usize, Vec<u8>>,
    synced_length: usize,
    /// Handles of older numbers are dead.
    handle: u64,
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Content").field("length", &self.bytes.len()).finish_non_exhaustive()
    }
}

/// The content; clones are the same content.
#[derive(Clone, Debug, Default)]
pub struct MemoryStorage(Arc<Mutex<Content>>);

/// What a process holds of a [`MemoryStorage`].
#[derive(Debug)]
pub struct MemoryHandle {
    content: Arc<Mutex<Content>>,
    handle: u64,
}

impl MemoryStorage {
    /// An empty storage.
    pub fn new() -> MemoryStorage {
        MemoryStorage::default()
    }

    /// Opens it for a process; handles that were opened before are dead from here on.
    pub fn open(&self) -> MemoryHandle {
        let mut content = lock(&self.0);
        content.handle += 1;
        MemoryHandle { content: Arc::clone(&self.0), handle: content.handle }
    }

    /// The process that has it open dies: what it wrote stays.
    pub fn kill(&self) {
        lock(&self.0).handle += 1;
    }

    /// The machine loses its power: of what was written since the last sync, a page stays as
    /// written when `keep` says so, else it is as it was at that sync.
    pub fn lose_power(&self, mut keep: impl FnMut(usize) -> bool) {
        let mut content = lock(&self.0);
        content.handle += 1;
        let before = std::mem::take(&mut content.before);
        for (page, old) in before {
            if !keep(page) {
                let start = page * PAGE;
                let end = (start + old.len()).min(content.bytes.len());
                if start < end {
                    content.bytes[start..end].copy_from_slice(&old[..end - start]);
                }
            }
        }
        let length = content.bytes.len().max(content.synced_length);
        content.bytes.resize(length, 0);
        content.synced_length = length;
    }

    /// Another storage with the same content, synced and not; nobody has it open, and nobody is asked.
    pub fn copy(&self) -> MemoryStorage {
        let content = lock(&self.0);
        MemoryStorage(Arc::new(Mutex::new(Content {
            bytes: content.bytes.clone(),
            gate: None,
            under_way: content.under_way.clone(),
            before: content.before.clone(),
            synced_length: content.synced_length,
            handle: 0,
        })))
    }

    /// Has `gate` asked before each operation that changes something.
    pub fn guard(&self, gate: Gate) {
        lock(&self.0).gate = Some(gate);
    }

    /// The machine lost its power: as [`lose_power`](MemoryStorage::lose_power), sector by sector, with the write
    /// that the gate stopped among them.
    pub fn settle(&self, mut keep: impl FnMut(Unsynced) -> bool) {
        let mut content = lock(&self.0);
        let content = &mut *content;
        content.handle += 1;
        let under_way = content.under_way.take().unwrap_or(0..0);
        let (first, end) = (under_way.start / SECTOR, under_way.end.div_ceil(SECTOR));
        for (page, old) in std::mem::take(&mut content.before) {
            for (index, old) in old.chunks(SECTOR).enumerate() {
                let offset = page * PAGE + index * SECTOR;
                let sector = offset / SECTOR;
                let kept = match (first..end).contains(&sector) {
                    true => {
                        keep(Unsynced::UnderWay { offset, before: sector - first, of: end - first })
                    }
                    false => keep(Unsynced::Sector { offset }),
                };
                let end = (offset + old.len()).min(content.bytes.len());
                if !kept && offset < end {
                    content.bytes[offset..end].copy_from_slice(&old[..end - offset]);
                }
            }
        }
        if content.bytes.len() != content.synced_length && !keep(Unsynced::Length) {
            content.bytes.resize(content.synced_length, 0);
        }
        content.synced_length = content.bytes.len();
    }

    /// What a process would read.
    pub fn bytes(&self) -> Vec<u8> {
        lock(&self.0).bytes.clone()
    }

    /// Puts other bytes in place of everything, as rot or a restored file would. No process may have it open.
    pub fn replace(&self, bytes: Vec<u8>) {
        let mut content = lock(&self.0);
        content.handle += 1;
        content.before.clear();
        content.synced_length = bytes.len();
        content.bytes = bytes;
    }
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

fn powerless() -> io::Error {
    io::Error::other("the machine has no power")
}

impl Content {
    /// Whether the machine lets an operation happen that leaves nothing when it is cut short.
    fn permits(&mut self) -> io::Result<()> {
        match self.permit() {
            Permit::Goes => Ok(()),
            Permit::Stops | Permit::Out => Err(powerless()),
        }
    }

    fn permit(&mut self) -> Permit {
        self.gate.as_mut().map_or(Permit::Goes, |gate| gate())
    }

    /// Remembers the pages of a range as they were at the last sync.
    fn remember(&mut self, start: usize, end: usize) {
        for page in start / PAGE..end.div_ceil(PAGE) {
            let (from, to) = (page * PAGE, ((page + 1) * PAGE).min(self.bytes.len()));
            if !self.before.contains_key(&page) && from < to {
                self.before.insert(page, self.bytes[from..to].to_vec());
            }
        }
    }
}

impl MemoryHandle {
    fn content(&self) -> io::Result<MutexGuard<'_, Content>> {
        let content = lock(&self.content);
        if content.handle == self.handle {
            Ok(content)
        } else {
            Err(io::Error::other("the process of this handle is dead"))
        }
    }
}

impl StorageBackend for MemoryHandle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.content()?.bytes.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let content = self.content()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        match content.bytes.get(start..start.saturating_add(out.len())) {
            Some(bytes) => {
                out.copy_from_slice(bytes);
                Ok(())
            }
            None => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        }
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut content = self.content()?;
        content.permits()?;
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let old = content.bytes.len();
        content.remember(length.min(old), old);
        content.bytes.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.content()?;
        content.permits()?;
        content.before.clear();
        content.synced_length = content.bytes.len();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut content = self.content()?;
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start + data.len();
        if end > content.bytes.len() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let permit = content.permit();
        if permit == Permit::Out {
            return Err(powerless());
        }
        content.remember(start, end);
        content.bytes[start..end].copy_from_slice(data);
        if permit == Permit::Stops {
            content.under_way = Some(start..end);
            return Err(powerless());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stop_after(storage: &MemoryStorage, operations: usize) {
        let mut left = operations;
        storage.guard(Box::new(move || match left {
            usize::MAX => Permit::Out,
            0 => {
                left = usize::MAX;
                Permit::Stops
            }
            _ => {
                left -= 1;
                Permit::Goes
            }
        }));
    }

    #[test]
    fn what_was_not_synced_is_kept_sector_by_sector() {
        let run = |keep: fn(Unsynced) -> bool| {
            let storage = MemoryStorage::new();
            let handle = storage.open();
            handle.set_len(2 * PAGE as u64).unwrap();
            handle.write(0, &[1; 2 * PAGE]).unwrap();
            handle.sync_data().unwrap();
            stop_after(&storage, 2);
            handle.write(SECTOR as u64, &[2; SECTOR]).unwrap();
            handle.set_len(3 * PAGE as u64).unwrap();
            // Across two pages, and under way when the power goes.
            assert!(handle.write((PAGE - SECTOR) as u64, &[3; 2 * SECTOR]).is_err());
            assert!(handle.write(0, &[4; PAGE]).is_err() && handle.sync_data().is_err());
            storage.settle(keep);
            assert!(handle.read(0, &mut [0]).is_err(), "the old process is dead");
            storage.bytes()
        };
        let lost = run(|_| false);
        assert_eq!(lost, vec![1; 2 * PAGE]);
        let kept = run(|_| true);
        assert_eq!(kept.len(), 3 * PAGE);
        assert_eq!((kept[0], kept[SECTOR], kept[PAGE - 1], kept[PAGE]), (1, 2, 3, 3));
        let torn = run(|what| match what {
            Unsynced::UnderWay { before, of, .. } => before < of / 2,
            Unsynced::Sector { .. } => true,
            Unsynced::Length => false,
        });
        assert_eq!(torn.len(), 2 * PAGE);
        assert_eq!((torn[SECTOR], torn[PAGE - 1], torn[PAGE]), (2, 3, 1));
    }
}
