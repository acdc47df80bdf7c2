//! A vdisk that is full of content in random places: the first read after opening needs the same few
//! pieces however large it is.
//!
//! Its map and content are made up when they are read, by the functions that runs and stripes are made with: each of
//! its blocks is one of the frames of its stripes, drawn at random.

use crate::rig::{DISK, Rig};
use bytes::{Bytes, BytesMut};
use cleave_codec::{Codec, Settings};
use cleave_format::address::{Address, Handle, MapEntry};
use cleave_format::control::{GrantedStripe, SlotPlace};
use cleave_format::frame;
use cleave_format::ids::*;
use cleave_format::layout::*;
use cleave_format::map_piece::{Leaf, MapPiece};
use cleave_host_core::*;
use cleave_runtime::random::{Random, SplitMix};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::{Duration, Instant};

const DATA_SHARDS: usize = 8;
/// Parts of a data section.
const PARTS: u64 = (DATA_SHARDS * SHARD / PART) as u64;
/// Stripes with pieces have numbers from here on.
const OF_PIECES: u64 = 1 << 40;

/// What a part holds: frames one after the other, each at a multiple of so many bytes.
struct Shape {
    place: usize,
    frames: u64,
}

impl Shape {
    fn of(place: usize) -> Shape {
        Shape { place, frames: (PART / place) as u64 }
    }

    /// The `index`th frame's stripe, and its first byte there.
    fn at(&self, index: u64) -> (u64, u32) {
        let (part, within) = (index / self.frames, index % self.frames);
        (part / PARTS, ((part % PARTS) as usize * PART + within as usize * self.place) as u32)
    }
}

/// The disk.
struct Content {
    codec: Codec,
    stripes: u64,
    blocks: Shape,
    block_length: u32,
    pieces: Shape,
}

fn mix(number: u64) -> u64 {
    SplitMix::new(number).next_u64()
}

/// Content that does not shrink.
fn noise(number: u64) -> [u8; BLOCK] {
    let random = SplitMix::new(number);
    let mut block = [0; BLOCK];
    block.chunks_exact_mut(8).for_each(|out| out.copy_from_slice(&random.next_u64().to_le_bytes()));
    block
}

impl Content {
    fn new(size: u64) -> Content {
        let settings = Settings { incarnation: Incarnation(1), core: 0, keys: None };
        let mut codec = Codec::new(settings);
        let mut frame = BytesMut::new();
        codec.encode_block(&noise(1), &mut frame);
        let block_length = frame.len() as u32;
        let blocks = Shape::of(frame.len());
        let all = blocks.frames * PARTS;
        let stripes = (size / BLOCK as u64).div_ceil(all);
        Content { codec, stripes, blocks, block_length, pieces: Shape::of(18 << 10) }
    }

    /// Which frame a block is.
    fn frame_of(&self, block: BlockIndex) -> u64 {
        mix(block.0) % (self.stripes * self.blocks.frames * PARTS)
    }

    fn piece(&mut self, group: u32) -> BytesMut {
        let mut piece = MapPiece { vdisk: DISK, group, stripes: Vec::new(), leaves: Vec::new() };
        for slice in group * PIECE_SLICES..(group + 1) * PIECE_SLICES {
            let slice = SliceIndex(slice);
            let mut entries = Box::new([MapEntry::EMPTY; SLICE_BLOCKS as usize]);
            for (entry, block) in entries.iter_mut().zip(0..) {
                let (stripe, offset) = self.blocks.at(self.frame_of(slice.block(block)));
                piece.stripes.push(StripeId(stripe + 1));
                let handle = Handle(piece.stripes.len() as u32);
                *entry = MapEntry::new(handle, offset, self.block_length, 0);
            }
            let newest = Version { epoch: Epoch(0), sequence: Sequence(1) };
            piece.leaves.push(Leaf { slice, entries, versions: Vec::new(), newest });
        }
        let mut frame = BytesMut::new();
        self.codec.encode_object(&piece.encode(), &mut frame);
        frame
    }

    fn piece_address(&self, group: u32, length: usize) -> Address {
        let (stripe, offset) = self.pieces.at(u64::from(group));
        assert!(length <= self.pieces.place);
        Address { stripe: StripeId(OF_PIECES + stripe), offset, length: length as u32 }
    }

    /// A part as it lies on a drive.
    fn part(&mut self, stripe: StripeId, part: u64) -> Vec<u8> {
        let mut image = vec![0; PART];
        let of_pieces = stripe.0 >= OF_PIECES;
        let (frames, place) = match of_pieces {
            true => (self.pieces.frames, self.pieces.place),
            false => (self.blocks.frames, self.blocks.place),
        };
        let number = if of_pieces { stripe.0 - OF_PIECES } else { stripe.0 - 1 };
        let first = (number * PARTS + part) * frames;
        for index in 0..frames {
            let frame = match of_pieces {
                true => self.piece((first + index) as u32),
                false => {
                    let mut frame = BytesMut::new();
                    self.codec.encode_block(&noise(first + index), &mut frame);
                    frame
                }
            };
            let start = index as usize * place;
            let target = &mut image[start..start + frame.len()];
            target.copy_from_slice(&frame);
            let offset = part as u32 * PART as u32 + start as u32;
            let address = Address { stripe, offset, length: frame.len() as u32 };
            frame::place(target, &address).unwrap();
        }
        image
    }

    fn read(&mut self, stripe: StripeId, shard: u8, offset: u32, length: u32) -> Bytes {
        let parts = SHARD / PART;
        let (first, last) = (offset as usize / PART, (offset + length - 1) as usize / PART);
        let of_shard = usize::from(shard) * parts;
        let image: Vec<u8> =
            (first..=last).flat_map(|part| self.part(stripe, (of_shard + part) as u64)).collect();
        let skip = offset as usize - first * PART;
        Bytes::from(image).slice(skip..skip + length as usize)
    }
}

fn first_read(size: u64, counted: bool) {
    let mut rig = Rig::new(50, size);
    let groups = (size / (SLICE * u64::from(PIECE_SLICES))) as u32;
    let mut content = Content::new(size);
    {
        let mut pool = rig.pool.borrow_mut();
        pool.data_shards = DATA_SHARDS as u8;
        let slots = |stripe: StripeId| {
            (0..DATA_SHARDS + PARITY_SHARDS)
                .map(|drive| SlotPlace {
                    drive: DriveId(drive as u16),
                    slot: SlotIndex(stripe.0 as u32),
                    generation: 1,
                })
                .collect()
        };
        let of_pieces = (0..=content.pieces.at(u64::from(groups)).0).map(|s| OF_PIECES + s);
        for stripe in (1..=content.stripes).chain(of_pieces).map(StripeId) {
            pool.stripes.insert(stripe, GrantedStripe { stripe, slots: slots(stripe) });
        }
        let mut pieces = std::collections::BTreeMap::new();
        for group in 0..groups {
            let length = content.piece(group).len();
            pieces.insert(group, content.piece_address(group, length));
        }
        pool.pieces.insert(DISK, (Position(1), pieces));
        let content = Rc::new(RefCell::new(Content::new(size)));
        pool.made_up = Some(Box::new(move |stripe, shard, offset, length| {
            content.borrow_mut().read(stripe, shard, offset, length)
        }));
    }
    let core = rig.start_host();
    let (began, virtual_began) = (Instant::now(), rig.world.now());
    rig.open();
    let (opened, virtual_opened) = (began.elapsed(), rig.world.now() - virtual_began);
    let block = BlockIndex(size / BLOCK as u64 / 3 * 2 + 5);
    let operation = Operation::Read { offset: block.0 * BLOCK as u64, length: BLOCK as u32 };
    core.submit(GuestRequest { token: 1, vdisk: DISK, operation }).unwrap();
    rig.host.as_ref().unwrap().0.wake();
    let mut completions = Vec::new();
    let done = || {
        core.completions(&mut completions);
        !completions.is_empty()
    };
    assert!(rig.world.run_until(done, Duration::from_secs(10)));
    let (read, virtual_read) = (began.elapsed(), rig.world.now() - virtual_began);
    let completion = completions.pop().unwrap();
    assert_eq!(completion.result, Ok(()));
    assert!(completion.data.unwrap()[..] == noise(content.frame_of(block))[..]);
    let stats = core.stats();
    // One proves the key, one has the block.
    assert_eq!((stats.pages_read, stats.reads_pool), (2, 1), "{stats:?}");
    println!(
        "{} GiB, {groups} pieces: open after {opened:?} of CPU and {virtual_opened:?} of the simulated network, \
         read after {read:?} and {virtual_read:?}; maps take {} KiB",
        size >> 30,
        stats.map_memory >> 10
    );
    if !counted {
        return;
    }
    // Counting goes on in the background, within the budget.
    while !core.known_stripes(DISK).unwrap().counted {
        rig.world.run_for(Duration::from_secs(1));
        assert!(core.stats().map_resident <= rig.map);
    }
    let stats = core.stats();
    assert_eq!(core.vdisk_stats(DISK).unwrap().mapped_blocks, size / BLOCK as u64);
    println!(
        "counted after {:?} and {:?}; maps take {} KiB, {} of them leaves",
        began.elapsed(),
        rig.world.now() - virtual_began,
        stats.map_memory >> 10,
        stats.map_resident >> 10
    );
}

#[test]
fn the_first_read_of_a_large_disk_needs_one_piece() {
    first_read(1 << 30, true);
    first_read(8 << 30, false);
}

// As long as it takes to make up the content: the figures are of this process alone, without drives and flash.
#[test]
#[ignore = "makes up 4 GiB of map"]
fn the_first_read_of_a_tebibyte_needs_one_piece() {
    first_read(1 << 40, false);
}
