//! Each layout as bytes: whatever is done to them, the decoder that is asked for the identity finds it.
//!
//! Done to them are: every bit flipped; cut at every length; every sector of zeros and of ones; the beginning
//! of one valid piece with the end of another; another valid piece in its place, of an older generation too.

use crate::rig::{CLUSTER, content, identity};
use crate::rot::Rot;
use crate::tally::{Extent, Tally};
use cleave_format::FormatError;
use cleave_format::address::{Address, Handle, MapEntry};
use cleave_format::control::SlotPlace;
use cleave_format::footer::{self, FooterContent, FooterEntry};
use cleave_format::frame::{self, Codec, FrameHeader};
use cleave_format::ids::{
    BlockIndex, DatanodeId, DriveId, Epoch, Incarnation, Position, Sequence, SliceIndex, SlotIndex,
    StripeId, VdiskId, Version,
};
use cleave_format::layout::{COLUMN, COLUMNS, SHARD, SLICE_BLOCKS, SLOT_HEADER};
use cleave_format::map_piece::{Leaf, MapPiece};
use cleave_format::record::{Entry, EntryKind, Record, RecordIdentity, encode_head};
use cleave_format::slot::{SlotHeader, column_checksums};
use cleave_format::solo::{SegmentHead, SegmentWriter, SessionIdentity};
use cleave_format::superblock::{self, Superblock};
use cleave_format::vault::{self, VaultHeader, VaultIdentity, VaultKind, VaultReader, VaultWriter};

const SECTOR: usize = 512;
/// Bits that are flipped of a structure when they are sampled, and lengths that it is cut to.
const FEW: u64 = 4096;

/// Reads bytes as what they should be.
type Read = Box<dyn Fn(&[u8]) -> Result<(), FormatError>>;

/// Something at rest.
struct Structure {
    name: &'static str,
    good: Vec<u8>,
    /// Valid pieces of the same kind: of other places, owners and generations.
    others: Vec<Vec<u8>>,
    read: Read,
}

/// Plays every layout.
pub fn run(extent: Extent, only: &str, tally: &mut Tally) {
    let structures = [
        superblocks(),
        slot_header(),
        column(),
        footer_of_a_stripe(),
        frame_in_the_log(),
        frame_at_rest(),
        log_record(),
        map_piece(),
        vault_header(),
        vault_body(),
        solo_segment(),
    ];
    for structure in structures {
        let subject = format!("rot: {}, as bytes", structure.name);
        if subject.contains(only) {
            tally.play(&subject, "as it was written", || {
                assert_eq!((structure.read)(&structure.good), Ok(()));
            });
            play(&subject, &structure, extent, tally);
        }
    }
}

fn play(subject: &str, structure: &Structure, extent: Extent, tally: &mut Tally) {
    let Structure { good, others, read, .. } = structure;
    let mut look = |what: &'static str, at: usize, bad: &[u8]| {
        if bad != good {
            // Decoders are pure: a panic ends the matrix, and is told by it.
            let name = format!("{what} at {at}");
            let found = read(bad).is_err();
            if !found {
                tally.play(subject, &name, || panic!("not found"));
            }
            tally.count(subject, what, 1);
        }
    };
    let mut bad = good.clone();
    for bit in extent.places(good.len() as u64 * 8, FEW) {
        let (at, bit) = ((bit / 8) as usize, (bit % 8) as u8);
        bad[at] ^= 1 << bit;
        look("flipped bits", at, &bad);
        bad[at] ^= 1 << bit;
    }
    for length in extent.places(good.len() as u64, FEW / 8) {
        look("truncations", length as usize, &good[..length as usize]);
    }
    for start in (0..good.len()).step_by(SECTOR) {
        let end = (start + SECTOR).min(good.len());
        for rot in [Rot::Zeros, Rot::Ones] {
            let mut bad = good.clone();
            rot.strike(&mut bad[start..end]);
            look("sectors of zeros or ones", start, &bad);
        }
    }
    for rot in [Rot::Zeros, Rot::Ones] {
        let mut bad = good.clone();
        rot.strike(&mut bad);
        look("all zeros or ones", 0, &bad);
    }
    for other in others {
        look("other valid pieces", 0, other);
        let common = good.len().min(other.len());
        for at in (SECTOR..common).step_by(SECTOR) {
            look("torn between two", at, &[&good[..at], &other[at..]].concat());
            look("torn between two", at, &[&other[..at], &good[at..]].concat());
        }
    }
}

fn place(drive: u16, slot: u32, generation: u32) -> SlotPlace {
    SlotPlace { drive: DriveId(drive), slot: SlotIndex(slot), generation }
}

fn noise(length: usize, seed: u64) -> Vec<u8> {
    let blocks = length.div_ceil(4096) as u64;
    let bytes: Vec<u8> =
        (0..blocks).flat_map(|block| content(2 * block, seed as u32 + 1).to_vec()).collect();
    bytes[..length].to_vec()
}

/// Both copies: damage of one is passed over, so that here each copy is read alone.
fn superblocks() -> Structure {
    let of = |number, generation| {
        let mut superblock =
            Superblock::for_size(identity(number), 40 << 20).expect("large enough");
        superblock.generation = generation;
        superblock.encode()
    };
    let expected = Superblock::decode(&of(1, 4)).expect("it was just encoded");
    Structure {
        name: "superblock",
        good: of(1, 4),
        others: vec![of(2, 4), of(1, 5), of(3, 7)],
        read: Box::new(move |bytes| {
            let never = [0; superblock::SUPERBLOCK];
            let (found, _) = superblock::choose(bytes, &never)?;
            (found == expected).then_some(()).ok_or(FormatError::Identity("superblock"))
        }),
    }
}

fn slot_header() -> Structure {
    let of = |stripe, shard, place| {
        let columns = [stripe as u32; COLUMNS];
        let stripe = StripeId(stripe);
        let header = SlotHeader { cluster: CLUSTER, stripe, shard, data_shards: 2, place, columns };
        let mut page = vec![0; SLOT_HEADER];
        header.encode(&mut page);
        page
    };
    Structure {
        name: "slot header",
        good: of(7, 1, place(1, 5, 2)),
        others: vec![
            of(6, 1, place(1, 5, 2)),
            of(7, 0, place(1, 5, 2)),
            of(7, 1, place(2, 5, 2)),
            of(7, 1, place(1, 4, 2)),
            of(7, 1, place(1, 5, 1)),
        ],
        read: Box::new(|bytes| {
            let header = SlotHeader::decode(bytes)?;
            header.check_identity(CLUSTER, StripeId(7), 1, &place(1, 5, 2))
        }),
    }
}

/// A column is data or parity alike.
fn column() -> Structure {
    let shard = noise(SHARD, 3);
    let columns = column_checksums(&shard);
    let header = SlotHeader {
        cluster: CLUSTER,
        stripe: StripeId(7),
        shard: 3,
        data_shards: 2,
        place: place(1, 5, 2),
        columns,
    };
    Structure {
        name: "column of data or parity",
        good: shard[2 * COLUMN..3 * COLUMN].to_vec(),
        others: vec![shard[..COLUMN].to_vec(), noise(COLUMN, 9)],
        read: Box::new(move |bytes| match bytes.len() {
            COLUMN => header.check_column(2, bytes),
            _ => Err(FormatError::Short("column")),
        }),
    }
}

fn footer_of_a_stripe() -> Structure {
    let of = |stripe: u64| {
        let entries: Vec<FooterEntry> = (0..40)
            .map(|number| FooterEntry {
                vdisk: VdiskId(1),
                block: BlockIndex(number),
                version: Version { epoch: Epoch(stripe), sequence: Sequence(number) },
                content: match number % 3 {
                    0 => FooterContent::Zero { blocks: 3 },
                    _ => FooterContent::Frame {
                        place: footer::Place { offset: number as u32 * 4128, length: 4128 },
                        block_in_frame: 0,
                        fingerprint: [number as u8; 32],
                    },
                },
            })
            .filter(|entry| match entry.content {
                FooterContent::Frame { place, .. } => place.address(StripeId(stripe)).is_valid(),
                _ => true,
            })
            .collect();
        footer::encode(StripeId(stripe), 2, Incarnation(8), &entries)
    };
    Structure {
        name: "footer",
        good: of(9),
        others: vec![of(8), of(10)],
        read: Box::new(|bytes| footer::decode(StripeId(9), bytes).map(drop)),
    }
}

fn a_frame(seed: u64) -> Vec<u8> {
    let header = FrameHeader {
        codec: Codec::Stored,
        blocks: 1,
        payload_length: 4096,
        core: 0,
        key: None,
        incarnation: Incarnation(5),
        counter: seed,
    };
    let mut frame = header.encode().to_vec();
    frame.extend_from_slice(&noise(4096, seed));
    frame::seal(&mut frame);
    frame
}

fn frame_in_the_log() -> Structure {
    // Another frame of the log is told by the record that holds it: `log record` below.
    Structure {
        name: "frame in the log",
        good: a_frame(1),
        others: Vec::new(),
        read: Box::new(|bytes| frame::check_in_log(bytes).map(drop)),
    }
}

fn frame_at_rest() -> Structure {
    let placed = |stripe, offset, seed| {
        let mut frame = a_frame(seed);
        let address = Address { stripe: StripeId(stripe), offset, length: frame.len() as u32 };
        frame::place(&mut frame, &address).expect("it is intact");
        frame
    };
    let address = Address { stripe: StripeId(4), offset: 8192, length: a_frame(1).len() as u32 };
    Structure {
        name: "frame at rest",
        good: placed(4, 8192, 1),
        others: vec![placed(3, 8192, 1), placed(4, 16384, 1), placed(5, 0, 2), a_frame(1)],
        read: Box::new(move |bytes| frame::check_at(bytes, &address).map(drop)),
    }
}

fn log_record() -> Structure {
    let identity = |slice, sequence| RecordIdentity {
        vdisk: VdiskId(1),
        slice: SliceIndex(slice),
        version: Version { epoch: Epoch(2), sequence: Sequence(sequence) },
        incarnation: Incarnation(5),
    };
    let of = move |slice, sequence, frames: u64| {
        let length = a_frame(1).len() as u32;
        let mut entries: Vec<Entry> = (0..frames as u16)
            .map(|block| Entry { block, kind: EntryKind::Frame, blocks: 1, length })
            .collect();
        entries.push(Entry { block: 30, kind: EntryKind::Zero, blocks: 4, length: 0 });
        let mut record = Vec::new();
        encode_head(&identity(slice, sequence), &entries, &mut record);
        (0..frames).for_each(|seed| record.extend_from_slice(&a_frame(seed)));
        record
    };
    Structure {
        name: "log record",
        good: of(3, 7, 2),
        others: vec![of(2, 7, 2), of(3, 6, 2), of(3, 8, 1)],
        read: Box::new(move |bytes| {
            let record = Record::decode(bytes)?;
            if record.identity != identity(3, 7) {
                return Err(FormatError::Identity("log record"));
            }
            for (entry, data) in record.entries() {
                if entry.kind == EntryKind::Frame {
                    frame::check_in_log(data)?;
                }
            }
            Ok(())
        }),
    }
}

fn map_piece() -> Structure {
    let of = |vdisk: u64, group: u32, sequence: u64| {
        let mut entries = Box::new([MapEntry::EMPTY; SLICE_BLOCKS as usize]);
        let address = Address { stripe: StripeId(4), offset: 4096, length: 4128 };
        for block in 0..100 {
            entries[block] = MapEntry::new(Handle(1), address.offset, address.length, 0);
        }
        let newest = Version { epoch: Epoch(1), sequence: Sequence(sequence) };
        let leaf =
            Leaf { slice: SliceIndex(2 * group), entries, versions: vec![(3, newest)], newest };
        let (vdisk, stripes) = (VdiskId(vdisk), vec![StripeId(4)]);
        MapPiece { vdisk, group, stripes, leaves: vec![leaf] }.encode()
    };
    // Of an older run the same piece is told by its frame's address, which the catalog names.
    Structure {
        name: "map piece",
        good: of(1, 2, 9),
        others: vec![of(2, 2, 9), of(1, 1, 9)],
        read: Box::new(|bytes| MapPiece::decode(VdiskId(1), 2, bytes).map(drop)),
    }
}

fn vault_identity(datanode: u16, log_id: u64) -> VaultIdentity {
    VaultIdentity {
        cluster: CLUSTER,
        datanode: DatanodeId(datanode),
        incarnation: Incarnation(6),
        role_epoch: Epoch(3),
        log_id,
    }
}

/// An image: its header and its body.
fn image(datanode: u16, log_id: u64, generation: u64) -> (VaultHeader, Vec<u8>) {
    let mut writer =
        VaultWriter::<Vec<u8>>::new(vault_identity(datanode, log_id), generation, 8192);
    let mut full = Vec::new();
    for position in 1..=12 {
        let bytes = noise(100 * position as usize, position + log_id);
        let kind = if position % 3 == 0 { VaultKind::Control } else { VaultKind::Record };
        writer.append(Position(position), kind, &[&bytes], &mut || vec![0; 4096], &mut full);
    }
    let header = writer.finish(Position(13), &mut full);
    let mut body: Vec<u8> =
        full.iter().flat_map(|chunk| chunk.buffer[..chunk.length].to_vec()).collect();
    body.truncate(header.body_length as usize);
    (header, body)
}

fn vault_header() -> Structure {
    let of = |datanode, log_id, generation| image(datanode, log_id, generation).0.encode();
    let expected = image(1, 5, 4).0;
    Structure {
        name: "vault header",
        good: of(1, 5, 4),
        others: vec![of(2, 5, 4), of(1, 4, 4), of(1, 5, 2), of(1, 5, 3)],
        read: Box::new(move |bytes| {
            let found = vault::choose(bytes, &[0; vault::VAULT_HEADER])?;
            // What the store's record says tells an image of another log or role (C7).
            let same = found.as_ref() == Some(&expected);
            same.then_some(()).ok_or(FormatError::Identity("vault"))
        }),
    }
}

fn vault_body() -> Structure {
    let (header, body) = image(1, 5, 4);
    Structure {
        name: "vault body",
        good: body,
        others: vec![image(1, 5, 2).1, image(1, 4, 4).1],
        read: Box::new(move |bytes| {
            let mut reader = VaultReader::new(&header);
            reader.feed(bytes);
            while reader.next_entry()?.is_some() {}
            reader.finish()
        }),
    }
}

fn solo_segment() -> Structure {
    let session = |log, session| SessionIdentity {
        cluster: CLUSTER,
        datanode: DatanodeId(1),
        log,
        incarnation: Incarnation(6),
        session,
    };
    let of = move |log, of, number| {
        let mut writer = SegmentWriter::new(session(log, of), number, Vec::new());
        for position in 1..=6 {
            let bytes = noise(300 * position as usize, position + number);
            let (kind, check) = match position % 3 {
                0 => (VaultKind::Control, position as u32),
                _ => (VaultKind::Record, 0),
            };
            writer.append(Position(position), kind, check, &bytes);
        }
        let mut segment = writer.finish(Position(7));
        // Zeros up to the end of its page belong to nothing.
        let head = SegmentHead::decode(&segment).expect("it was just written");
        segment.truncate(cleave_format::solo::SEGMENT_HEAD + head.length as usize);
        segment
    };
    Structure {
        name: "solo segment",
        good: of(5, 3, 2),
        others: vec![of(4, 3, 2), of(5, 2, 2), of(5, 3, 1)],
        read: Box::new(move |bytes| {
            let head = SegmentHead::decode(bytes)?;
            if head.identity != session(5, 3) || head.number != 2 {
                return Err(FormatError::Identity("solo segment"));
            }
            head.check(bytes)?;
            head.entries(bytes).map(drop)
        }),
    }
}
