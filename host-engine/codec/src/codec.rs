//! Blocks and objects to frames, and back.

use crate::CodecError;
use crate::aead::Cipher;
use crate::keys::Keys;
use crate::subkeys::Subkeys;
use bytes::{BufMut, BytesMut};
use cleave_format::frame::{self, FRAME_HEADER, FrameHeader, PAYLOAD_LENGTH_MAX, TAG};
use cleave_format::ids::Incarnation;
use cleave_format::layout::{BLOCK, padded};
use hmac::{Hmac, Mac};
use lz4_flex::block::{
    CompressTable, compress_into_with_table, decompress_into, get_maximum_output_size,
};
use sha2::{Digest, Sha256};

/// Longest object, in bytes: it fits a frame stored and encrypted.
pub const OBJECT_LENGTH_MAX: usize = PAYLOAD_LENGTH_MAX - TAG;

/// Bytes before an object's compressed content: its length, u32.
const OBJECT_PREFIX: usize = 4;

/// What a codec is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Of this engine start, never used before (C29).
    pub incarnation: Incarnation,
    /// Of this codec, which is the core's only one (C29).
    pub core: u16,
    /// Encrypts when given; frames that are not encrypted are then refused.
    pub keys: Option<Keys>,
}

/// What became of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoded {
    /// It is all zeros: an entry and no frame (C5). Nothing was appended.
    Zero,
    /// A frame of `length` bytes, a multiple of 16, was appended.
    Frame {
        /// Bytes of the frame.
        length: usize,
    },
}

/// One core's codec. Its working memory is reused: nothing is allocated a block, beyond what `out` needs.
pub struct Codec {
    incarnation: Incarnation,
    core: u16,
    encryption: Option<Encryption>,
    counter: u64,
    table: CompressTable,
    /// Compressed content on the way out, decrypted content on the way in.
    work: Box<[u8]>,
}

struct Encryption {
    keys: Keys,
    own: Cipher,
    others: Subkeys,
    fingerprint: Hmac<Sha256>,
}

impl Codec {
    /// A codec whose counter begins at 0.
    pub fn new(settings: Settings) -> Codec {
        let Settings { incarnation, core, keys } = settings;
        let encryption = keys.map(|keys| Encryption {
            own: Cipher::new(&keys.subkey(incarnation, core)),
            others: Subkeys::default(),
            fingerprint: keys.fingerprint_hash(),
            keys,
        });
        let work = vec![0; OBJECT_PREFIX + get_maximum_output_size(OBJECT_LENGTH_MAX)];
        Codec {
            incarnation,
            core,
            encryption,
            counter: 0,
            table: CompressTable::small(),
            work: work.into_boxed_slice(),
        }
    }

    /// Appends the frame of a block to `out`, unless the block is all zeros.
    ///
    /// # Panics
    /// When `block` is not 4096 bytes (our own bug).
    pub fn encode_block(&mut self, block: &[u8], out: &mut BytesMut) -> Encoded {
        assert_eq!(block.len(), BLOCK, "blocks are encoded whole");
        if is_zero(block) {
            return Encoded::Zero;
        }
        let compressed = compress_into_with_table(block, &mut self.work, &mut self.table)
            .expect("the working memory has room for what does not shrink");
        Encoded::Frame { length: self.append(block, compressed, 1, out) }
    }

    /// Appends the frame of an object to `out` and returns the frame's length.
    ///
    /// # Panics
    /// When the object is empty or longer than [`OBJECT_LENGTH_MAX`] (our own bug).
    pub fn encode_object(&mut self, object: &[u8], out: &mut BytesMut) -> usize {
        assert!((1..=OBJECT_LENGTH_MAX).contains(&object.len()), "an object fits a frame");
        let (prefix, rest) = self.work.split_at_mut(OBJECT_PREFIX);
        prefix.copy_from_slice(&(object.len() as u32).to_le_bytes());
        let compressed = compress_into_with_table(object, rest, &mut self.table)
            .expect("the working memory has room for what does not shrink");
        self.append(object, OBJECT_PREFIX + compressed, 0, out)
    }

    /// Decodes the blocks of a frame into the beginning of `out`, and returns their bytes (4096 for
    /// frames of one block). The frame's checksum was checked before, by `cleave_format::frame`.
    pub fn decode(&mut self, frame: &[u8], out: &mut [u8]) -> Result<usize, CodecError> {
        let header = FrameHeader::decode(frame)?;
        let length = usize::from(header.blocks) * BLOCK;
        let out = match header.blocks {
            0 => return Err(CodecError::Kind),
            _ => out.get_mut(..length).ok_or(CodecError::Kind)?,
        };
        let content = self.content(frame, &header)?;
        match header.codec {
            frame::Codec::Stored => out.copy_from_slice(content),
            frame::Codec::Lz4 => decompress(content, out)?,
        }
        Ok(length)
    }

    /// Decodes an object; `out` is replaced by it. The frame's checksum was checked before.
    pub fn decode_object(&mut self, frame: &[u8], out: &mut Vec<u8>) -> Result<(), CodecError> {
        let header = FrameHeader::decode(frame)?;
        if header.blocks != 0 {
            return Err(CodecError::Kind);
        }
        let content = self.content(frame, &header)?;
        out.clear();
        match header.codec {
            frame::Codec::Stored => out.extend_from_slice(content),
            frame::Codec::Lz4 => {
                let (prefix, rest) =
                    content.split_first_chunk::<OBJECT_PREFIX>().ok_or(CodecError::Content)?;
                let length = u32::from_le_bytes(*prefix) as usize;
                if length > OBJECT_LENGTH_MAX {
                    return Err(CodecError::Content);
                }
                out.resize(length, 0);
                decompress(rest, out)?;
            }
        }
        Ok(())
    }

    /// Fingerprint of a plaintext block: SHA-256, or HMAC-SHA-256 with the keys' own.
    pub fn fingerprint(&self, block: &[u8]) -> [u8; 32] {
        match &self.encryption {
            None => Sha256::digest(block).into(),
            Some(encryption) => {
                encryption.fingerprint.clone().chain_update(block).finalize().into_bytes().into()
            }
        }
    }

    /// Frames that this codec has made.
    pub fn frames(&self) -> u64 {
        self.counter
    }

    /// Appends a frame of `content`, or of the first `compressed` bytes of the working memory when these
    /// take fewer units.
    fn append(
        &mut self,
        content: &[u8],
        compressed: usize,
        blocks: u8,
        out: &mut BytesMut,
    ) -> usize {
        let (codec, payload) =
            if padded(FRAME_HEADER + compressed) < padded(FRAME_HEADER + content.len()) {
                (frame::Codec::Lz4, &self.work[..compressed])
            } else {
                (frame::Codec::Stored, content)
            };
        let tag = if self.encryption.is_some() { TAG } else { 0 };
        let header = FrameHeader {
            codec,
            blocks,
            payload_length: u16::try_from(payload.len() + tag).expect("payloads fit a frame"),
            core: self.core,
            key: self.encryption.as_ref().map(|encryption| encryption.keys.id()),
            incarnation: self.incarnation,
            counter: self.counter,
        };
        // Raised before it is used: no way out of here leaves a counter to be used again (C29).
        self.counter = self.counter.checked_add(1).expect("2^64 frames are never encoded");

        let (start, length) = (out.len(), header.frame_length());
        out.reserve(length);
        out.put_slice(&header.encode());
        out.put_slice(payload);
        if let Some(encryption) = &self.encryption {
            let payload = &mut out[start + FRAME_HEADER..];
            let tag = encryption.own.seal(header.counter, &header.authenticated(), payload);
            out.put_slice(&tag);
        }
        out.put_bytes(0, start + length - out.len());
        frame::seal(&mut out[start..]);
        length
    }

    /// The payload's content, decrypted.
    fn content<'a>(
        &'a mut self,
        frame: &'a [u8],
        header: &FrameHeader,
    ) -> Result<&'a [u8], CodecError> {
        let end = FRAME_HEADER + usize::from(header.payload_length);
        let payload = frame.get(FRAME_HEADER..end).ok_or(CodecError::Content)?;
        let (encryption, key) = match (&mut self.encryption, header.key) {
            (None, None) => return Ok(payload),
            (Some(_), None) => return Err(CodecError::NotEncrypted),
            (Some(encryption), Some(key)) if encryption.keys.id() == key => (encryption, key.get()),
            (_, Some(key)) => return Err(CodecError::KeyUnknown { key: key.get() }),
        };
        let (sealed, tag) = payload.split_last_chunk::<TAG>().ok_or(CodecError::Content)?;
        let content = &mut self.work[..sealed.len()];
        content.copy_from_slice(sealed);
        let own = (header.incarnation, header.core) == (self.incarnation, self.core);
        let Encryption { keys, own: own_cipher, others, .. } = encryption;
        let cipher =
            if own { &*own_cipher } else { others.get(keys, header.incarnation, header.core) };
        cipher
            .open(header.counter, &header.authenticated(), *tag, content)
            .map_err(|_| CodecError::Authentication { key })?;
        Ok(content)
    }
}

impl std::fmt::Debug for Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Codec")
            .field("incarnation", &self.incarnation)
            .field("core", &self.core)
            .field("frames", &self.counter)
            .finish_non_exhaustive()
    }
}

/// Decompresses content that must fill `out`.
fn decompress(content: &[u8], out: &mut [u8]) -> Result<(), CodecError> {
    match decompress_into(content, out) {
        Ok(length) if length == out.len() => Ok(()),
        _ => Err(CodecError::Content),
    }
}

/// Whether all bytes are zeros. Most blocks that are not show it in their first bytes.
pub fn is_zero(bytes: &[u8]) -> bool {
    let mut chunks = bytes.chunks_exact(128);
    // A chunk is folded without branches, which compiles to vector instructions.
    let any = |chunk: &[u8]| chunk.iter().fold(0, |all, byte| all | byte) != 0;
    !chunks.by_ref().any(any) && !any(chunks.remainder())
}

#[cfg(test)]
mod tests;
