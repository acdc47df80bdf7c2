//! The devices below the whole path: nothing, memory, and memory behind the codec.

use bytes::{Bytes, BytesMut};
use cleave_codec::{Codec, Encoded, Keys, Settings};
use cleave_format::ids::Incarnation;
use cleave_format::layout::BLOCK;
use cleave_vhost_user::{BlockRange, Disk, Outcome, Request, RequestKind};
use std::num::NonZeroU32;

/// Bytes of frames that share one allocation, as in the host engine.
const ARENA: usize = 256 << 10;

/// Answers requests at once.
pub trait Device {
    /// Executes a request and completes it.
    fn answer(&mut self, disk: &mut Disk, request: Request);
}

/// Does nothing, successfully: the cost of vhost-user alone. Reads leave the guest's memory as it is.
pub struct Null;

impl Device for Null {
    fn answer(&mut self, disk: &mut Disk, request: Request) {
        disk.complete(request.tag, Outcome::Done);
    }
}

/// A RAM disk.
pub struct Memory(Vec<u8>);

impl Memory {
    /// Zeroed memory of `capacity` bytes.
    pub fn new(capacity: u64) -> Memory {
        Memory(vec![0; capacity as usize])
    }
}

impl Device for Memory {
    fn answer(&mut self, disk: &mut Disk, request: Request) {
        match request.kind {
            RequestKind::Read { offset, length } => {
                let range = offset as usize..offset as usize + length as usize;
                return disk.complete(request.tag, Outcome::Read(&[&self.0[range]]));
            }
            RequestKind::Write { offset, data } => {
                self.0[offset as usize..offset as usize + data.len()].copy_from_slice(&data);
            }
            RequestKind::Flush => {}
            RequestKind::Discard { ranges } | RequestKind::WriteZeroes { ranges } => {
                for BlockRange { offset, length, .. } in ranges {
                    self.0[offset as usize..(offset + length) as usize].fill(0);
                }
            }
        }
        disk.complete(request.tag, Outcome::Done);
    }
}

/// Frames in memory: compress, encrypt when asked, checksum, and back; no log.
pub struct Coded {
    codec: Codec,
    blocks: Vec<Option<Bytes>>,
    arena: BytesMut,
    scratch: Vec<u8>,
}

impl Coded {
    /// An empty disk; requests must be whole blocks.
    pub fn new(capacity: u64, encrypt: bool) -> Coded {
        let keys = encrypt.then(|| Keys::derive(NonZeroU32::MIN, &[7; 32]));
        Coded {
            codec: Codec::new(Settings { incarnation: Incarnation(1), core: 0, keys }),
            blocks: vec![None; capacity as usize / BLOCK],
            arena: BytesMut::with_capacity(ARENA),
            scratch: vec![0; BLOCK],
        }
    }
}

impl Device for Coded {
    fn answer(&mut self, disk: &mut Disk, request: Request) {
        match request.kind {
            RequestKind::Read { offset, length } => {
                let first = offset as usize / BLOCK;
                for index in 0..length as usize / BLOCK {
                    match &self.blocks[first + index] {
                        None => self.scratch.fill(0),
                        Some(frame) => {
                            let checked = cleave_format::frame::check_in_log(frame);
                            let decoded = checked.map_err(drop).and_then(|_| {
                                self.codec.decode(frame, &mut self.scratch).map_err(drop)
                            });
                            if decoded.is_err() {
                                return disk.complete(request.tag, Outcome::Failed);
                            }
                        }
                    }
                    disk.fill(request.tag, (index * BLOCK) as u32, &self.scratch);
                }
            }
            RequestKind::Write { offset, data } => {
                for (index, block) in data.chunks_exact(BLOCK).enumerate() {
                    if self.arena.capacity() < 2 * BLOCK {
                        self.arena = BytesMut::with_capacity(ARENA);
                    }
                    let frame = match self.codec.encode_block(block, &mut self.arena) {
                        Encoded::Zero => None,
                        Encoded::Frame { length } => Some(self.arena.split_to(length).freeze()),
                    };
                    self.blocks[offset as usize / BLOCK + index] = frame;
                }
            }
            RequestKind::Flush => {}
            RequestKind::Discard { ranges } | RequestKind::WriteZeroes { ranges } => {
                for BlockRange { offset, length, .. } in ranges {
                    let first = offset as usize / BLOCK;
                    self.blocks[first..first + length as usize / BLOCK].fill(None);
                }
            }
        }
        disk.complete(request.tag, Outcome::Done);
    }
}
