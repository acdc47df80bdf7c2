//! Writes an image as page-aligned chunks, in buffers of the caller: the log is copied once, chunk by chunk.

use super::{
    ENTRY_HEADER, ENTRY_LENGTH_MAX, VaultHeader, VaultIdentity, VaultKind, VaultState, entry_seed,
};
use crate::ids::Position;
use crate::layout::{UNIT, padded};
use crate::page::PAGE;
use std::ops::DerefMut;

/// A piece of the body to be written to the file.
#[derive(Debug)]
pub struct VaultChunk<B> {
    /// First byte in the file, a multiple of 4096.
    pub offset: u64,
    /// Bytes of the buffer to write, from its beginning; a multiple of 4096.
    pub length: usize,
    /// The bytes.
    pub buffer: B,
}

/// An image being written. Entries are appended in the order of their positions.
#[derive(Debug)]
pub struct VaultWriter<B> {
    header: VaultHeader,
    seed: u32,
    last: Option<Position>,
    current: Option<B>,
    filled: usize,
    chunk_offset: u64,
}

impl<B: DerefMut<Target = [u8]>> VaultWriter<B> {
    /// Begins an image. `generation` and `body_offset` come from [`next_generation`](super::next_generation) and
    /// [`body_offset`](super::body_offset).
    pub fn new(identity: VaultIdentity, generation: u64, body_offset: u64) -> VaultWriter<B> {
        VaultWriter {
            header: VaultHeader {
                state: VaultState::Image,
                generation,
                identity,
                next_position: Position(0),
                entries: 0,
                body_offset,
                body_length: 0,
                body_crc: 0,
            },
            seed: entry_seed(generation, identity.log_id),
            last: None,
            current: None,
            filled: 0,
            chunk_offset: body_offset,
        }
    }

    /// Appends an entry, given in any number of slices. `buffers` gives the next buffer, whose length
    /// is a multiple of 4096 and not 0; filled ones are pushed to `full`.
    ///
    /// # Panics
    /// When positions do not grow, or the entry is longer than [`ENTRY_LENGTH_MAX`] (our own bug).
    pub fn append(
        &mut self,
        position: Position,
        kind: VaultKind,
        slices: &[&[u8]],
        buffers: &mut impl FnMut() -> B,
        full: &mut Vec<VaultChunk<B>>,
    ) {
        assert!(self.last.is_none_or(|last| last < position), "positions of the log grow");
        self.last = Some(position);
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        assert!(length <= ENTRY_LENGTH_MAX, "an entry of the log has {length} bytes");

        let padding = &[0; UNIT][..padded(length) - length];
        let mut head = [0; ENTRY_HEADER];
        head[..8].copy_from_slice(&position.0.to_le_bytes());
        head[8..12].copy_from_slice(&(length as u32 | (kind as u32) << 24).to_le_bytes());
        let mut crc = crc32c::crc32c_append(self.seed, &head[..12]);
        for slice in slices.iter().copied().chain([padding]) {
            crc = crc32c::crc32c_append(crc, slice);
        }
        head[12..].copy_from_slice(&crc.to_le_bytes());

        self.push(&head, buffers, full);
        for slice in slices.iter().copied().chain([padding]) {
            self.push(slice, buffers, full);
        }
        self.header.entries += 1;
    }

    /// Ends the body. The header is the image's, to be written to its own copy after the chunks are durable.
    pub fn finish(mut self, next_position: Position, full: &mut Vec<VaultChunk<B>>) -> VaultHeader {
        assert!(self.last.is_none_or(|last| last < next_position), "positions of the log grow");
        if let Some(mut buffer) = self.current.take() {
            let length = self.filled.next_multiple_of(PAGE);
            buffer[self.filled..length].fill(0);
            full.push(VaultChunk { offset: self.chunk_offset, length, buffer });
        }
        self.header.next_position = next_position;
        self.header
    }

    fn push(
        &mut self,
        mut bytes: &[u8],
        buffers: &mut impl FnMut() -> B,
        full: &mut Vec<VaultChunk<B>>,
    ) {
        self.header.body_length += bytes.len() as u64;
        self.header.body_crc = crc32c::crc32c_append(self.header.body_crc, bytes);
        while !bytes.is_empty() {
            let buffer = self.current.get_or_insert_with(|| {
                let buffer = buffers();
                assert!(!buffer.is_empty() && buffer.len().is_multiple_of(PAGE));
                buffer
            });
            let count = bytes.len().min(buffer.len() - self.filled);
            buffer[self.filled..self.filled + count].copy_from_slice(&bytes[..count]);
            self.filled += count;
            bytes = &bytes[count..];
            if self.filled == buffer.len() {
                let buffer = self.current.take().expect("it was just filled");
                let chunk = VaultChunk { offset: self.chunk_offset, length: self.filled, buffer };
                self.chunk_offset += self.filled as u64;
                self.filled = 0;
                full.push(chunk);
            }
        }
    }
}
