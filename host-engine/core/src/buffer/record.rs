//! A record in the write buffer: what was appended, and how far it is on its way to the pool.

use super::RecordKey;
use super::WriteKey;
use super::memory::ChunkKey;
use bytes::{Bytes, BytesMut};
use cleave_format::footer::Fingerprint;
use cleave_format::record::{Entry, RecordIdentity, encode_head};
use cleave_runtime::time::Moment;

/// What the allocator and shared ownership add to a record's own memory, in bytes.
const ALLOCATIONS: usize = 128;

/// One entry of a buffered record.
#[derive(Clone, Debug)]
pub struct BufferedEntry {
    /// As in the record.
    pub entry: Entry,
    /// Where its data begins in the record's data.
    pub start: u32,
    /// Of the plaintext, once it was computed.
    pub fingerprint: Option<Fingerprint>,
}

/// A buffered record.
#[derive(Clone, Debug)]
pub struct Record {
    /// Who it is.
    pub identity: RecordIdentity,
    /// Header and entry table.
    pub head: Bytes,
    /// The entries' data, as it follows the head.
    pub data: Bytes,
    /// The entries.
    pub entries: Vec<BufferedEntry>,
    /// The write that it belongs to, until that is published.
    pub unpublished: Option<WriteKey>,
    /// When it was taken.
    pub taken: Moment,
    /// Both controllers held it once.
    pub mirrored: bool,
    /// The present log holds it: it can be released.
    pub in_log: bool,
    /// The chunk of memory that its data is in; `None`: its own.
    pub chunk: Option<ChunkKey>,
    pub(super) number: u64,
    pub(super) live: u32,
    pub(super) planned: u32,
    /// Stripes on their way that have content of it, live or covered since.
    pub(super) held: u32,
    pub(super) releasing: bool,
}

impl Record {
    /// A record that was taken now.
    pub fn new(identity: RecordIdentity, data: Bytes, entries: &[Entry], taken: Moment) -> Record {
        let mut head = Vec::with_capacity(64 + entries.len() * 8 + 16);
        encode_head(&identity, entries, &mut head);
        let mut start = 0;
        let place = |entry: &Entry| {
            let placed = BufferedEntry { entry: *entry, start, fingerprint: None };
            start += entry.length;
            placed
        };
        let entries: Vec<_> = entries.iter().map(place).collect();
        assert_eq!(start as usize, data.len(), "a record's data is that of its entries");
        Record {
            identity,
            head: Bytes::from(head),
            data,
            entries,
            unpublished: None,
            taken,
            mirrored: false,
            in_log: false,
            chunk: None,
            number: 0,
            live: 0,
            planned: 0,
            held: 0,
            releasing: false,
        }
    }

    /// Bytes of the encoded record.
    pub fn length(&self) -> usize {
        self.head.len() + self.data.len()
    }

    /// Encodes the record anew, with those of its entries' blocks that are in `live` alone, which are in order. An
    /// entry keeps its number; one without any of these blocks has none from here on.
    pub(super) fn encode_anew(&mut self, live: &[(u16, u16)]) {
        let blocks: usize = self.entries.iter().map(|e| usize::from(e.entry.blocks)).sum();
        let whole = live.len() == blocks;
        let mut entries: Vec<Entry> = Vec::with_capacity(live.len());
        if whole {
            entries.extend(self.entries.iter().map(|e| e.entry).filter(|e| e.blocks > 0));
        } else {
            let mut data = BytesMut::new();
            let mut kept: Vec<u32> = vec![0; self.entries.len()];
            let mut last = None;
            for &(number, block) in live {
                let entry = self.entries[usize::from(number)].entry;
                kept[usize::from(number)] = data.len() as u32;
                data.extend_from_slice(&self.frame(usize::from(number)));
                match entries.last_mut() {
                    Some(run) if last == Some(number) && run.block + run.blocks == block => {
                        run.blocks += 1;
                    }
                    _ => entries.push(Entry { block, blocks: 1, ..entry }),
                }
                last = Some(number);
            }
            for (number, (entry, start)) in self.entries.iter_mut().zip(kept).enumerate() {
                entry.start = start;
                if live.binary_search_by_key(&number, |(of, _)| usize::from(*of)).is_err() {
                    (entry.entry.blocks, entry.entry.length, entry.start) = (0, 0, 0);
                }
            }
            self.data = data.freeze();
            self.chunk = None;
        }
        let mut head = Vec::with_capacity(self.head.len());
        encode_head(&self.identity, &entries, &mut head);
        self.head = Bytes::from(head);
    }

    /// An entry's data.
    pub fn frame(&self, entry: usize) -> Bytes {
        let found = &self.entries[entry];
        let start = found.start as usize;
        self.data.slice(start..start + found.entry.length as usize)
    }

    /// Bytes of memory that it has for itself, beside its places in tables.
    pub(super) fn payload(&self) -> u64 {
        let own = if self.chunk.is_none() { self.data.len() } else { 0 };
        let entries = self.entries.len() * size_of::<BufferedEntry>();
        (self.head.len() + own + entries + ALLOCATIONS) as u64
    }

    pub(super) fn key(&self, index: u32) -> RecordKey {
        RecordKey { number: self.number, index }
    }

    /// Whether its content may go into a stripe.
    pub(super) fn is_ready(&self) -> bool {
        self.mirrored && self.unpublished.is_none()
    }

    pub(super) fn unplanned(&self) -> u32 {
        if self.is_ready() { self.live - self.planned } else { 0 }
    }
}
