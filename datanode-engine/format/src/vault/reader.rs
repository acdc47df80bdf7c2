//! Reads an image from the pieces of its body, in order: holds one piece and one unfinished entry at most.

use super::{ENTRY_HEADER, VaultHeader, VaultKind, VaultState, WHAT, entry_seed};
use crate::FormatError;
use crate::ids::Position;
use crate::layout::padded;

/// An entry of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VaultEntry<'a> {
    /// Its position.
    pub position: Position,
    /// What it is.
    pub kind: VaultKind,
    /// Its bytes.
    pub bytes: &'a [u8],
}

/// An image being read: feed a piece, take its entries until there is none, feed the next.
/// What was read counts only once [`finish`](VaultReader::finish) has said so.
#[derive(Debug)]
pub struct VaultReader {
    header: VaultHeader,
    seed: u32,
    pending: Vec<u8>,
    /// Bytes of `pending` whose entries were taken.
    taken: usize,
    fed: u64,
    crc: u32,
    entries: u64,
    last: Option<Position>,
}

impl VaultReader {
    /// Begins to read the image that the header describes.
    ///
    /// # Panics
    /// When the header is not an image's (our own bug).
    pub fn new(header: &VaultHeader) -> VaultReader {
        assert_eq!(header.state, VaultState::Image, "only an image has entries");
        VaultReader {
            header: header.clone(),
            seed: entry_seed(header.generation, header.identity.log_id),
            pending: Vec::new(),
            taken: 0,
            fed: 0,
            crc: 0,
            entries: 0,
            last: None,
        }
    }

    /// First byte in the file that was not fed yet; `None` when the body is complete.
    pub fn wanted(&self) -> Option<u64> {
        (self.fed < self.header.body_length).then_some(self.header.body_offset + self.fed)
    }

    /// Gives the next bytes of the body; what lies beyond its end is passed over.
    pub fn feed(&mut self, bytes: &[u8]) {
        let left = self.header.body_length - self.fed;
        let bytes = &bytes[..bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
        self.pending.drain(..std::mem::take(&mut self.taken));
        self.pending.extend_from_slice(bytes);
        self.fed += bytes.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }

    /// The next entry; `None` when more must be fed, or at the end.
    pub fn next_entry(&mut self) -> Result<Option<VaultEntry<'_>>, FormatError> {
        let rest = &self.pending[self.taken..];
        let Some((head, body)) = rest.split_first_chunk::<ENTRY_HEADER>() else {
            return Ok(None);
        };
        let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().expect("four bytes"));
        let position = Position(u64::from(word(0)) | u64::from(word(4)) << 32);
        let length = (word(8) & 0xff_ffff) as usize;
        // Before the length is believed and waited for.
        if self.fed - (body.len() as u64) + padded(length) as u64 > self.header.body_length {
            return Err(FormatError::Malformed(WHAT));
        }
        if body.len() < padded(length) {
            return Ok(None);
        }
        let body = &body[..padded(length)];
        let crc = crc32c::crc32c_append(crc32c::crc32c_append(self.seed, &head[..12]), body);
        if crc != word(12) {
            return Err(FormatError::Checksum(WHAT));
        }
        let kind = match head[11] {
            1 => VaultKind::Record,
            2 => VaultKind::Control,
            _ => return Err(FormatError::Malformed(WHAT)),
        };
        if body[length..].iter().any(|byte| *byte != 0) {
            return Err(FormatError::Malformed(WHAT));
        }
        let in_order = self.last.is_none_or(|last| last < position);
        if !in_order || position >= self.header.next_position {
            return Err(FormatError::Malformed(WHAT));
        }
        self.last = Some(position);
        self.entries += 1;
        let start = self.taken + ENTRY_HEADER;
        self.taken = start + body.len();
        Ok(Some(VaultEntry { position, kind, bytes: &self.pending[start..start + length] }))
    }

    /// Whether the image was complete and intact. Until then what it yielded is not a log.
    pub fn finish(self) -> Result<(), FormatError> {
        if self.fed < self.header.body_length {
            return Err(FormatError::Short(WHAT));
        }
        if self.crc != self.header.body_crc {
            return Err(FormatError::Checksum(WHAT));
        }
        let complete = self.taken == self.pending.len() && self.entries == self.header.entries;
        complete.then_some(()).ok_or(FormatError::Malformed(WHAT))
    }
}
