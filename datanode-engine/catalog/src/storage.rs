//! A storage in memory that can lose what was not synced: for the simulator and tests.
//!
//! The content outlives the [`Catalog`](crate::Catalog) that uses it, as a file outlives a process.
//! After [`MemoryStorage::kill`] or [`MemoryStorage::lose_power`] the old process's handle writes
//! nothing more, not even while it is dropped.

use redb::StorageBackend;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const PAGE: usize = 4096;

#[derive(Debug, Default)]
struct Content {
    bytes: Vec<u8>,
    /// Pages as they were at the last sync, of those written since; with the length then.
    before: BTreeMap<usize, Vec<u8>>,
    synced_length: usize,
    /// Handles of older numbers are dead.
    handle: u64,
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
}

fn lock(content: &Mutex<Content>) -> MutexGuard<'_, Content> {
    content.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Content {
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
        let length = usize::try_from(length).map_err(io::Error::other)?;
        let old = content.bytes.len();
        content.remember(length.min(old), old);
        content.bytes.resize(length, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut content = self.content()?;
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
        content.remember(start, end);
        content.bytes[start..end].copy_from_slice(data);
        Ok(())
    }
}
