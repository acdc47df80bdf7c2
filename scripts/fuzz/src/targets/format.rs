//! Every layout on drives and in the log.
//!
//! Each input is read twice: as it is, and with the checksums that it should have, because a fuzzer does not
//! find checksums. What is accepted is encoded again, and gives the same bytes.

use crate::input::Input;
use cleave_format::address::{Address, Handle, MapEntry};
use cleave_format::control::{
    Commit, CommitVdisk, Control, DriveState, GrantedStripe, InlineEntry, MapRun, PiecePlace,
    Release, SlotPlace, Swap,
};
use cleave_format::footer::{FooterContent, FooterEntry, Place, TRAILER, Trailer};
use cleave_format::frame::{Codec, FRAME_HEADER, FrameHeader};
use cleave_format::ids::*;
use cleave_format::layout::{COLUMN, COLUMNS, SLOT_HEADER};
use cleave_format::map_piece::{Leaf, MapPiece};
use cleave_format::record::{Entry, EntryKind, Record, RecordIdentity, encode_head};
use cleave_format::slot::SlotHeader;
use cleave_format::superblock::{DriveIdentity, Superblock, choose};
use cleave_format::{FormatError, footer as footer_format, frame as frame_format};

/// Writes a little-endian word, if the bytes are that long.
pub(super) fn put(bytes: &mut [u8], at: usize, word: u32) {
    if let Some(place) = bytes.get_mut(at..at + 4) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// The input as a header page: zeros up to 4 KiB, and the checksum in the last four bytes.
pub(super) fn page(data: &[u8]) -> Vec<u8> {
    let mut page = data[..data.len().min(SLOT_HEADER - 4)].to_vec();
    page.resize(SLOT_HEADER, 0);
    let crc = crc32c::crc32c(&page[..SLOT_HEADER - 4]);
    put(&mut page, SLOT_HEADER - 4, crc);
    page
}

/// The beginning of a page, without the zeros that [`page`] adds again.
pub(super) fn unpaged(page: &[u8]) -> Vec<u8> {
    let content = &page[..SLOT_HEADER - 4];
    let end = content.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    content[..end].to_vec()
}

fn version(epoch: u64, sequence: u64) -> Version {
    Version { epoch: Epoch(epoch), sequence: Sequence(sequence) }
}

/// Addresses and map entries.
pub(super) fn address(data: &[u8]) {
    if let Ok(address) = cleave_format::decode::<Address>(data) {
        assert_eq!(cleave_format::encode(&address), data);
        if address.is_valid() {
            assert!(address.shard() < 8 && address.shard_offset() < 1 << 20);
            let entry = MapEntry::new(Handle(1), address.offset, address.length, 0);
            assert_eq!((entry.offset(), entry.length()), (address.offset, address.length));
        }
    }
    let entry = MapEntry(Input(data).long());
    if let Some(handle) = entry.handle() {
        let again = MapEntry::new(handle, entry.offset(), entry.length(), entry.block_in_frame());
        assert_eq!(again, entry);
    }
}

/// Some addresses.
pub(super) fn address_seeds() -> Vec<Vec<u8>> {
    let address = Address { stripe: StripeId(7), offset: 4096, length: 1024 };
    let entry = MapEntry::new(Handle(3), 8 << 10, 2064, 1);
    vec![cleave_format::encode(&address), entry.0.to_le_bytes().to_vec(), vec![0; 8]]
}

/// Control records.
pub(super) fn control(data: &[u8]) {
    if let Ok(control) = cleave_format::decode::<Control>(data) {
        assert_eq!(cleave_format::encode(&control), data);
        if let Control::Grant { stripes, .. } = &control {
            assert!(stripes.iter().all(|stripe| stripe.data_shards() <= stripe.slots.len()));
        }
    }
}

/// One control record of each kind.
pub(super) fn controls() -> Vec<Control> {
    let (vdisk, host, incarnation) = (VdiskId(4), HostId(1), Incarnation(9));
    let slots: Vec<SlotPlace> = (0..3)
        .map(|drive| SlotPlace { drive: DriveId(drive), slot: SlotIndex(5), generation: 1 })
        .collect();
    let moved = SlotPlace { drive: DriveId(3), slot: SlotIndex(6), generation: 1 };
    let address = Address { stripe: StripeId(7), offset: 4096, length: 1024 };
    let release =
        Release { slice: SliceIndex(1), epoch: Epoch(2), first: Sequence(3), last: Sequence(8) };
    let entry = InlineEntry {
        slice: SliceIndex(1),
        block: 4,
        blocks: 1,
        version: version(2, 8),
        reference: Some(address),
    };
    let run = MapRun {
        frontier: Position(3),
        pieces: vec![
            PiecePlace { group: 0, address: Some(address) },
            PiecePlace { group: 1, address: None },
        ],
        unreferenced: vec![StripeId(5)],
    };
    vec![
        Control::HostStart { host, incarnation },
        Control::Seal { vdisk, epoch: Epoch(2), host, incarnation },
        Control::Grant {
            incarnation,
            stripes: vec![GrantedStripe { stripe: StripeId(7), slots: slots.clone() }],
        },
        Control::Commit(Commit {
            stripe: StripeId(7),
            incarnation,
            slots,
            shards_missing: 1,
            vdisks: vec![CommitVdisk {
                vdisk,
                epoch: Epoch(2),
                struck: false,
                in_footer: true,
                has_pieces: true,
                releases: vec![release],
                entries: vec![entry],
                references: vec![StripeId(7)],
                run: Some(run),
            }],
        }),
        Control::GrantEnd { stripes: vec![StripeId(8)] },
        Control::Drive { drive: DriveId(2), state: DriveState::Lost, generation: 2 },
        Control::Cut { vdisk, slices: vec![(SliceIndex(1), version(2, 8))] },
        Control::Move { frames: vec![(address, address)] },
        Control::FreeHeld,
        Control::Grant {
            incarnation: Incarnation::DATANODE,
            stripes: vec![GrantedStripe { stripe: StripeId(9), slots: vec![moved] }],
        },
        Control::HoldSlots,
        Control::Swap(Swap {
            stripe: StripeId(7),
            generation: 0,
            loan: StripeId(9),
            shards: vec![(0, moved)],
        }),
        Control::Delete { vdisk, epoch: Epoch(2) },
    ]
}

/// One of each kind.
pub(super) fn control_seeds() -> Vec<Vec<u8>> {
    controls().iter().map(cleave_format::encode).collect()
}

/// Footers: entries, then a trailer.
pub(super) fn footer(data: &[u8]) {
    let read = |bytes: &[u8]| -> Result<(), FormatError> {
        let trailer = Trailer::decode(bytes)?;
        let entries = footer_format::decode(trailer.stripe, bytes)?;
        assert_eq!(entries.len(), trailer.entries);
        let again = footer_format::encode(
            trailer.stripe,
            trailer.data_shards,
            trailer.incarnation,
            &entries,
        );
        // Padding is covered by the checksum, but free.
        assert_eq!(again.len(), trailer.footer_length());
        assert_eq!(footer_format::decode(trailer.stripe, &again), Ok(entries));
        Ok(())
    };
    let _ = read(data);
    let mut sealed = data.to_vec();
    if let Some(start) = sealed.len().checked_sub(TRAILER) {
        let entries = Input(&sealed[start + 24..]).word() as usize;
        let length = entries.saturating_mul(88).next_multiple_of(16);
        let crc = crc32c::crc32c(&sealed[start.saturating_sub(length)..start]);
        put(&mut sealed, start + 28, crc);
        let crc = crc32c::crc32c(&sealed[start..start + TRAILER - 4]);
        put(&mut sealed, start + TRAILER - 4, crc);
        let _ = read(&sealed);
    }
}

/// One entry of each kind.
pub(super) fn footer_seeds() -> Vec<Vec<u8>> {
    let stripe = StripeId(7);
    let other = Address { stripe: StripeId(3), offset: 4096, length: 1024 };
    let place = Place { offset: 64, length: 2048 };
    let (block_in_frame, fingerprint) = (1, [9; 32]);
    let entry = |content| FooterEntry {
        vdisk: VdiskId(4),
        block: BlockIndex(600),
        version: version(2, 8),
        content,
    };
    let contents = [
        FooterContent::Frame { place, block_in_frame, fingerprint },
        FooterContent::Zero { blocks: 3 },
        FooterContent::Discard { blocks: 2 },
        FooterContent::Reference { address: other, block_in_frame, fingerprint },
        FooterContent::MapPiece { place },
        FooterContent::Move { from: other, place, block_in_frame, fingerprint },
    ];
    let encode =
        |entries: &[FooterEntry]| footer_format::encode(stripe, 2, Incarnation(9), entries);
    let mut seeds: Vec<Vec<u8>> =
        contents.iter().map(|content| encode(&[entry(*content)])).collect();
    seeds.push(encode(&contents.map(entry)));
    seeds.push(encode(&[]));
    seeds
}

/// Frames in the log, at rest, and moved.
pub(super) fn frame(data: &[u8]) {
    let at = |stripe, frame: &[u8]| Address {
        stripe: StripeId(stripe),
        offset: 1 << 20,
        length: frame.len() as u32,
    };
    let read = |bytes: &[u8]| {
        let _ = frame_format::check_at(bytes, &at(1, bytes));
        let Ok(header) = frame_format::check_in_log(bytes) else { return };
        assert_eq!(header.frame_length(), bytes.len());
        assert_eq!(FrameHeader::decode(&header.encode()), Ok(header));
        let (from, to) = (at(1, bytes), at(2, bytes));
        let mut frame = bytes.to_vec();
        assert_eq!(frame_format::place(&mut frame, &from), Ok(header));
        assert_eq!(frame_format::check_at(&frame, &from), Ok(header));
        assert_eq!(frame_format::relocate(&mut frame, &from, &to), Ok(header));
        assert_eq!(frame_format::check_at(&frame, &to), Ok(header));
        assert!(frame_format::check_at(&frame, &from).is_err());
    };
    read(data);
    if let Ok(length) = frame_format::frame_length(data) {
        let mut sealed = data.to_vec();
        sealed.resize(length, 0);
        frame_format::seal(&mut sealed);
        read(&sealed);
    }
}

/// Frames of all shapes: stored, compressed, encrypted (by their headers), objects.
pub(super) fn frame_seeds() -> Vec<Vec<u8>> {
    let header = |codec, blocks, payload_length, key| FrameHeader {
        codec,
        blocks,
        payload_length,
        core: 3,
        key: std::num::NonZeroU32::new(key),
        incarnation: Incarnation(9),
        counter: 77,
    };
    let headers = [
        header(Codec::Lz4, 1, 50, 0),
        header(Codec::Lz4, 2, 70, 5),
        header(Codec::Stored, 0, 33, 0),
        header(Codec::Lz4, 0, 40, 5),
    ];
    let mut seeds = Vec::new();
    for header in headers {
        let mut frame = header.encode().to_vec();
        frame.resize(FRAME_HEADER + usize::from(header.payload_length), 0x5a);
        frame.resize(header.frame_length(), 0);
        frame_format::seal(&mut frame);
        seeds.push(frame);
    }
    // The target adds the zeros.
    seeds.push(header(Codec::Stored, 1, 4096, 0).encode().to_vec());
    seeds
}

/// Map pieces. The input ends with the vdisk and the group that are asked for.
pub(super) fn map_piece(data: &[u8]) {
    let read = |bytes: &[u8]| {
        let mut header = Input(bytes.get(12..).unwrap_or_default());
        let (group, vdisk) = (header.word(), VdiskId(header.long()));
        let _ = MapPiece::decode(VdiskId(1), 0, bytes);
        if let Ok(piece) = MapPiece::decode(vdisk, group, bytes) {
            for entry in piece.leaves.iter().flat_map(|leaf| leaf.entries.iter()) {
                assert_eq!(piece.address(*entry).is_none(), entry.is_empty());
            }
            assert_eq!(piece.encode(), bytes);
        }
    };
    read(data);
    let mut sealed = data.to_vec();
    let length = sealed.len() as u32;
    put(&mut sealed, 28, length);
    if sealed.len() >= 32 {
        let crc = crc32c::crc32c(&sealed[8..]);
        put(&mut sealed, 4, crc);
        read(&sealed);
    }
}

/// A piece without leaves, and ones with one and two.
pub(super) fn map_piece_seeds() -> Vec<Vec<u8>> {
    let leaf = |slice| {
        let mut entries = Box::new([MapEntry::EMPTY; 512]);
        entries[3] = MapEntry::new(Handle(1), 4096, 1024, 0);
        entries[4] = MapEntry::new(Handle(2), 64, 2048, 1);
        let versions = vec![(3, version(2, 7)), (9, version(2, 8))];
        Leaf { slice: SliceIndex(slice), entries, versions, newest: version(2, 8) }
    };
    let piece = |leaves| MapPiece {
        vdisk: VdiskId(4),
        group: 1,
        stripes: vec![StripeId(7), StripeId(8)],
        leaves,
    };
    let empty = MapPiece { stripes: Vec::new(), ..piece(Vec::new()) };
    [empty, piece(vec![leaf(2)]), piece(vec![leaf(2), leaf(3)])].map(|piece| piece.encode()).into()
}

/// Records of the log.
pub(super) fn record(data: &[u8]) {
    let read = |bytes: &[u8]| {
        let Ok(record) = Record::decode(bytes) else { return };
        let (mut entries, mut content) = (Vec::new(), Vec::new());
        for (entry, bytes) in record.entries() {
            assert_eq!(entry.length as usize, bytes.len());
            let _ = frame_format::check_in_log(bytes);
            entries.push(entry);
            content.extend_from_slice(bytes);
        }
        let mut again = Vec::new();
        encode_head(&record.identity, &entries, &mut again);
        again.extend_from_slice(&content);
        assert_eq!(again.len(), bytes.len());
        let again = Record::decode(&again).expect("what was encoded is a record");
        assert_eq!(again.identity, record.identity);
    };
    read(data);
    let mut sealed = data.to_vec();
    if seal_record(&mut sealed) {
        read(&sealed);
    }
}

/// Makes the length and the checksum of a record's head right. False when there is no head.
pub(super) fn seal_record(record: &mut [u8]) -> bool {
    let count = Input(record.get(10..).unwrap_or_default()).half();
    let table = (64 + 8 * usize::from(count)).next_multiple_of(16);
    if record.len() < table {
        return false;
    }
    put(record, 12, record.len() as u32);
    let crc = crc32c::crc32c(&record[8..table]);
    put(record, 4, crc);
    true
}

/// Records of all kinds of entries.
pub(super) fn record_seeds() -> Vec<Vec<u8>> {
    let identity = RecordIdentity {
        vdisk: VdiskId(4),
        slice: SliceIndex(1),
        version: version(2, 8),
        incarnation: Incarnation(9),
    };
    let entry = |block, kind, blocks, length| Entry { block, kind, blocks, length };
    let frame = frame_seeds().swap_remove(0);
    let length = frame.len() as u32;
    let lists = [
        vec![entry(5, EntryKind::Frame, 1, length)],
        vec![entry(0, EntryKind::Zero, 512, 0)],
        vec![entry(1, EntryKind::Discard, 2, 0), entry(511, EntryKind::Reference, 1, 16)],
    ];
    let encode = |entries: Vec<Entry>| {
        let mut record = Vec::new();
        encode_head(&identity, &entries, &mut record);
        for entry in entries {
            record.extend_from_slice(if entry.length == length { &frame } else { &[3; 16] });
            if entry.length == 0 {
                record.truncate(record.len() - 16);
            }
        }
        record
    };
    lists.map(encode).into()
}

/// Slot headers.
pub(super) fn slot(data: &[u8]) {
    for bytes in [data, &page(data)] {
        if let Ok(header) = SlotHeader::decode(bytes) {
            let _ = header.check_identity(header.cluster, StripeId(1), 0, &header.place);
            let right = header.columns[0] == crc32c::crc32c(&[0; COLUMN]);
            assert_eq!(header.check_column(0, &[0; COLUMN]).is_ok(), right);
            let mut again = vec![0; SLOT_HEADER];
            header.encode(&mut again);
            assert_eq!(SlotHeader::decode(&again), Ok(header));
        }
    }
}

/// A data shard and a parity shard.
pub(super) fn slot_seeds() -> Vec<Vec<u8>> {
    let seed = |shard| {
        let header = SlotHeader {
            cluster: ClusterId([1; 16]),
            stripe: StripeId(7),
            shard,
            data_shards: 2,
            place: SlotPlace { drive: DriveId(3), slot: SlotIndex(5), generation: 1 },
            columns: [0x1234; COLUMNS],
        };
        let mut page = vec![0; SLOT_HEADER];
        header.encode(&mut page);
        unpaged(&page)
    };
    vec![seed(0), seed(3)]
}

/// Superblocks, alone and as one of two copies.
pub(super) fn superblock(data: &[u8]) {
    let (first, second) = data.split_at(data.len() / 2);
    let copies = [page(first), page(second), page(data), data.to_vec()];
    for bytes in &copies {
        if let Ok(superblock) = Superblock::decode(bytes) {
            assert_eq!(Superblock::decode(&superblock.encode()), Ok(superblock.clone()));
            assert!(superblock.copy_offset() < superblock.first_slot);
            // The next generation repairs a damaged copy.
            let next = Superblock { generation: superblock.generation + 1, ..superblock.clone() };
            assert_ne!(next.encode(), superblock.encode());
            if superblock.slots > 0 {
                let last = superblock.slot_offset(SlotIndex(superblock.slots - 1));
                assert!(last < superblock.drive_size);
            }
        }
    }
    if let Ok((newest, copy)) = choose(&copies[0], &copies[1]) {
        assert_eq!(newest.generation % 2, copy as u64);
    }
    let _ = choose(&copies[2], &copies[3]);
}

/// One copy, and two.
pub(super) fn superblock_seeds() -> Vec<Vec<u8>> {
    let identity = DriveIdentity {
        cluster: ClusterId([1; 16]),
        datanode: DatanodeId(1),
        drive: DriveId(3),
        uuid: [2; 16],
    };
    let mut superblock =
        Superblock::for_size(identity, 256 << 20).expect("a drive of 256 MiB is large enough");
    let mut first = unpaged(&superblock.encode());
    superblock.generation = 1;
    let second = unpaged(&superblock.encode());
    let alone = first.clone();
    let length = first.len().max(second.len());
    first.resize(length, 0);
    first.extend_from_slice(&second);
    vec![alone, first]
}
