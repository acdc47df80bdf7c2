//! Small deterministic loops over the parts whose instruction counts are guarded, and whose time
//! `stages` takes. Each runs the production code on blocks that compress by about a half.

use crate::fill_block;
use bytes::BytesMut;
use clap::ValueEnum;
use cleave_codec::{Codec, Encoded, Keys, Settings};
use cleave_erasure::Encoder;
use cleave_format::address::Address;
use cleave_format::ids::{BlockIndex, SliceIndex};
use cleave_format::ids::{Epoch, Incarnation, Sequence, StripeId, VdiskId, Version};
use cleave_format::layout::{BLOCK, COLUMN};
use cleave_host_core::front::{self, Front, Place};
use cleave_host_core::map::{Map, MapChange};
use cleave_host_core::shares::Shares;
use cleave_host_core::{GuestCompletion, GuestRequest, Operation};
use cleave_runtime::buffer::LooseBuffer;
use std::cell::RefCell;
use std::hint::black_box;
use std::num::NonZeroU32;

/// What to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Kernel {
    /// A block to a frame: LZ4, CRC32C.
    Encode,
    /// A block to a frame: LZ4, AES-256-GCM, CRC32C.
    EncodeEncrypted,
    /// A frame to a block.
    Decode,
    /// A frame to a block, decrypting.
    DecodeEncrypted,
    /// SHA-256 of a block.
    Fingerprint,
    /// A commit's entry into the map.
    MapApply,
    /// A block's place out of the map.
    MapLookup,
    /// Two parity columns of 64 KiB over eight data columns; a block's share is 1/128 of it.
    Parity,
    /// A request of a vdisk of one share, from its device to its core and back.
    Front,
    /// A request of a vdisk of two shares, for the one that the device's core has.
    FrontOfShares,
}

impl Kernel {
    /// All of them.
    pub const ALL: [Kernel; 10] = [
        Kernel::Encode,
        Kernel::EncodeEncrypted,
        Kernel::Decode,
        Kernel::DecodeEncrypted,
        Kernel::Fingerprint,
        Kernel::MapApply,
        Kernel::MapLookup,
        Kernel::Parity,
        Kernel::Front,
        Kernel::FrontOfShares,
    ];

    /// Name on the command line and in the file of recorded figures.
    pub fn name(self) -> String {
        let value = self.to_possible_value().expect("no kernel is hidden");
        value.get_name().to_owned()
    }

    /// Blocks of guest data that one repetition stands for.
    pub fn blocks(self) -> f64 {
        if self == Kernel::Parity { 128.0 } else { 1.0 }
    }
}

/// Distinct blocks that the loops go around in.
const BLOCKS: usize = 64;

/// Runs a kernel `count` times.
pub fn run(kernel: Kernel, count: u64) {
    let blocks: Vec<Vec<u8>> = (0..BLOCKS as u64)
        .map(|number| {
            let mut block = vec![0; BLOCK];
            fill_block(&mut block, number, 1);
            block
        })
        .collect();
    let block = |round: u64| &blocks[round as usize % BLOCKS];
    match kernel {
        Kernel::Encode | Kernel::EncodeEncrypted => {
            let mut codec = codec(kernel == Kernel::EncodeEncrypted);
            let mut out = BytesMut::with_capacity(2 * BLOCK);
            for round in 0..count {
                out.clear();
                black_box(codec.encode_block(block(round), &mut out));
            }
        }
        Kernel::Decode | Kernel::DecodeEncrypted => {
            let mut codec = codec(kernel == Kernel::DecodeEncrypted);
            let frames: Vec<BytesMut> = blocks
                .iter()
                .map(|block| {
                    let mut frame = BytesMut::new();
                    let encoded = codec.encode_block(block, &mut frame);
                    assert!(matches!(encoded, Encoded::Frame { .. }), "the blocks are not zeros");
                    frame
                })
                .collect();
            let mut out = vec![0; BLOCK];
            for round in 0..count {
                let frame = &frames[round as usize % BLOCKS];
                cleave_format::frame::check_in_log(frame).expect("the frame is intact");
                codec.decode(frame, &mut out).expect("the frame is intact");
                black_box(&out);
            }
        }
        Kernel::Fingerprint => {
            let codec = codec(false);
            for round in 0..count {
                black_box(codec.fingerprint(block(round)));
            }
        }
        Kernel::MapApply => {
            black_box(filled_map(count));
        }
        Kernel::MapLookup => {
            let map = filled_map(1 << 14);
            for round in 0..count {
                let place = BlockIndex(round.wrapping_mul(0x9e37_79b9) % (1 << 14));
                black_box(map.get(VdiskId(1), place));
            }
        }
        Kernel::Parity => {
            let mut encoder = Encoder::new();
            let data: Vec<Vec<u8>> = (0..8u8).map(|shard| vec![shard; COLUMN]).collect();
            let data: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
            let (mut first, mut second) = (vec![0; COLUMN], vec![0; COLUMN]);
            for _ in 0..count {
                encoder.encode(&data, [&mut first, &mut second]);
                black_box((&first, &second));
            }
        }
        Kernel::Front => through_front(1, count),
        Kernel::FrontOfShares => through_front(2, count),
    }
}

/// A core that is done with everything at once, so that what is counted is the front's.
#[derive(Default)]
struct Prompt(RefCell<Vec<GuestCompletion>>);

impl front::Core for Prompt {
    fn submit(&self, request: GuestRequest) -> Result<(), GuestRequest> {
        let completion = GuestCompletion { token: request.token, result: Ok(()), data: None };
        self.0.borrow_mut().push(completion);
        Ok(())
    }

    fn has_completions(&self) -> bool {
        !self.0.borrow().is_empty()
    }

    fn completions(&self, completions: &mut Vec<GuestCompletion>) {
        completions.append(&mut self.0.borrow_mut());
    }

    fn adopt(&self, _spare: LooseBuffer) {}
}

/// Takes requests of a vdisk, all of whose shares are here, and has them told to be done.
fn through_front(shares: u16, count: u64) {
    let mut front = Front::<u64, Prompt>::new(Prompt::default(), Vec::new());
    let places = (0..shares).map(|_| Place::Here).collect();
    let home = front.add_home(Shares::new(VdiskId(1), shares), places);
    let mut done = Vec::new();
    for round in 0..count {
        let offset = round * BLOCK as u64;
        front.take(home, round, [Operation::Read { offset, length: BLOCK as u32 }]);
        front.done(&mut done);
        assert_eq!(done.len(), 1, "each request is told of once");
        black_box(&done);
        done.clear();
    }
}

fn codec(encrypted: bool) -> Codec {
    let keys = encrypted.then(|| Keys::derive(NonZeroU32::MIN, &[7; 32]));
    Codec::new(Settings { incarnation: Incarnation(1), core: 0, keys })
}

/// A map after `count` commits' entries, in an order that is not the address order.
fn filled_map(count: u64) -> Map {
    let mut map = Map::default();
    for round in 0..count {
        let place = BlockIndex(round.wrapping_mul(0x9e37_79b9) % (1 << 14));
        let address = Address {
            stripe: StripeId(1 + round / 2048),
            offset: (round % 2048) as u32 * 2096,
            length: 2096,
        };
        let change = MapChange {
            slice: SliceIndex(place.slice().0),
            block: place.within_slice(),
            blocks: 1,
            version: Version { epoch: Epoch(1), sequence: Sequence(round + 1) },
            frame: Some((address, 0)),
        };
        map.apply(VdiskId(1), &change, None);
    }
    map
}
