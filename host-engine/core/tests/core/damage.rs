//! A block in the log that cannot be read back: it must not stop the core, nor what lies beside it. Footers of which
//! shards rotted.

use crate::rig::{DISK, Rig};
use bytes::Bytes;
use cleave_format::control::{GrantedStripe, SlotPlace};
use cleave_format::footer::{self, FOOTER_ENTRY, FooterContent, FooterEntry};
use cleave_format::frame::{self, Codec, FrameHeader};
use cleave_format::ids::*;
use cleave_format::layout::{BLOCK, SHARD};
use cleave_format::record::{Entry, EntryKind, RecordIdentity, encode_head};
use cleave_host_core::*;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};
use cleave_wire::MapCommit;
use std::time::Duration;

const SIZE: u64 = 9 << 20;

/// A record of the disk's first blocks whose frames have right checksums and compressed content that is none; or
/// not even right checksums, as when they rotted in both controllers.
fn damaged(version: Version, blocks: u16, rotted: bool) -> (RecordIdentity, Bytes) {
    let header = FrameHeader {
        codec: Codec::Lz4,
        blocks: 1,
        payload_length: 100,
        core: 0,
        key: None,
        incarnation: Incarnation(1),
        counter: 1 << 40,
    };
    let mut one = header.encode().to_vec();
    one.resize(one.len() + 100, 0xff);
    one.resize(header.frame_length(), 0);
    frame::seal(&mut one);
    one[50] ^= u8::from(rotted);
    let entry =
        |block| Entry { block, kind: EntryKind::Frame, blocks: 1, length: one.len() as u32 };
    let entries: Vec<Entry> = (0..blocks).map(entry).collect();
    let incarnation = Incarnation(1);
    let identity = RecordIdentity { vdisk: DISK, slice: SliceIndex(0), version, incarnation };
    let mut record = Vec::new();
    encode_head(&identity, &entries, &mut record);
    (0..blocks).for_each(|_| record.extend_from_slice(&one));
    (identity, Bytes::from(record))
}

fn ask(rig: &Rig, token: u64, operation: Operation) -> GuestCompletion {
    let core = rig.core();
    core.submit(GuestRequest { token, vdisk: DISK, operation }).unwrap();
    rig.host.as_ref().unwrap().0.wake();
    let mut completions = Vec::new();
    let done = || {
        core.completions(&mut completions);
        !completions.is_empty()
    };
    assert!(rig.world.run_until(done, Duration::from_secs(20)));
    completions.pop().unwrap()
}

fn noise(length: usize, seed: u64) -> Buffer {
    let random = SplitMix::new(seed);
    let mut data = Buffer::new(length);
    data.chunks_exact_mut(8).for_each(|out| out.copy_from_slice(&random.next_u64().to_le_bytes()));
    data
}

#[test]
fn a_block_that_cannot_be_decoded_is_kept_apart() {
    is_kept_apart(false);
}

#[test]
fn a_block_that_rotted_in_both_logs_is_kept_apart() {
    is_kept_apart(true);
}

fn is_kept_apart(rotted: bool) {
    let mut rig = Rig::new(80, SIZE);
    rig.write_buffer = 16 << 20;
    {
        let mut pool = rig.pool.borrow_mut();
        pool.next += 1;
        let at = Position(pool.next);
        let version = Version { epoch: Epoch(0), sequence: Sequence(1) };
        pool.records.insert(at, damaged(version, 3, rotted));
    }
    let core = rig.start_host();
    // It is the first that opening looks at, for the key.
    rig.open();
    for at in 0..4u64 {
        let operation = Operation::Write { offset: (1 + at) << 20, data: noise(1 << 20, at) };
        assert_eq!(ask(&rig, at, operation).result, Ok(()));
    }
    rig.world.run_for(Duration::from_secs(30));
    let stats = core.stats();
    assert_eq!(stats.damaged, 3, "{stats:?}");
    assert_eq!(stats.stripes_abandoned, 1, "once, and never again: {stats:?}");
    assert!(stats.stripes_committed > 0 && stats.records_released > 0, "{stats:?}");
    let events: Vec<Event> = std::iter::from_fn(|| core.next_event()).collect();
    let block = |block| Event::Damaged { vdisk: DISK, block: BlockIndex(block) };
    assert_eq!(events, [block(0), block(1), block(2)]);
    // Its record is released by nothing; it alone cannot be read.
    let epochs = |rig: &Rig| -> Vec<Epoch> {
        rig.pool.borrow().records.values().map(|(identity, _)| identity.version.epoch).collect()
    };
    assert!(epochs(&rig).contains(&Epoch(0)));
    let read = |offset, length| Operation::Read { offset, length };
    assert_eq!(ask(&rig, 10, read(4096, 4096)).result, Err(GuestError::Unreadable));
    assert_eq!(ask(&rig, 11, read(3 * 4096, 4096)).result, Ok(()));
    let found = ask(&rig, 12, read(1 << 20, 1 << 20)).data.unwrap();
    assert!(found[..] == noise(1 << 20, 0)[..]);
    // So are merges onto it; whole blocks replace it, and let its record go.
    let part = Operation::Write { offset: 0, data: noise(512, 5) };
    assert_eq!(ask(&rig, 13, part).result, Err(GuestError::Unreadable));
    let whole = Operation::Write { offset: 0, data: noise(3 * 4096, 6) };
    assert_eq!(ask(&rig, 14, whole).result, Ok(()));
    let found = ask(&rig, 15, read(0, 3 * 4096)).data.unwrap();
    assert!(found[..] == noise(3 * 4096, 6)[..]);
    for at in 0..4u64 {
        let operation = Operation::Write { offset: (4 + at) << 20, data: noise(1 << 20, 9 + at) };
        assert_eq!(ask(&rig, 20 + at, operation).result, Ok(()));
    }
    rig.world.run_for(Duration::from_secs(30));
    assert!(!epochs(&rig).contains(&Epoch(0)), "{:?}", core.stats());
}

/// A pool with one stripe of four data shards, whose footer is longer than a shard, and a disk that it belongs to.
fn with_a_long_footer(seed: u64) -> (Rig, StripeId) {
    const DATA: usize = 4;
    let count = (SHARD / FOOTER_ENTRY + 1000) as u64;
    let rig = Rig::new(seed, count * BLOCK as u64);
    let stripe = StripeId(77);
    let entry = |block: u64| FooterEntry {
        vdisk: DISK,
        block: BlockIndex(block),
        version: Version { epoch: Epoch(0), sequence: Sequence(block + 1) },
        content: FooterContent::Zero { blocks: 1 },
    };
    let entries: Vec<FooterEntry> = (0..count).map(entry).collect();
    let footer = footer::encode(stripe, DATA, Incarnation(1), &entries);
    let mut section = vec![0; DATA * SHARD - footer.len()];
    section.extend(footer);
    let data: Vec<&[u8]> = section.chunks(SHARD).collect();
    let (mut p, mut q) = (vec![0; SHARD], vec![0; SHARD]);
    cleave_erasure::Encoder::new().encode(&data, [&mut p, &mut q]);
    {
        let mut pool = rig.pool.borrow_mut();
        let shards = data.into_iter().map(Bytes::copy_from_slice).chain([p.into(), q.into()]);
        pool.shards.extend((0..).zip(shards).map(|(shard, bytes)| ((stripe, shard), bytes)));
        let place = |drive| SlotPlace { drive: DriveId(drive), slot: SlotIndex(9), generation: 0 };
        let granted = GrantedStripe { stripe, slots: (0..DATA as u16 + 2).map(place).collect() };
        pool.stripes.insert(stripe, granted.clone());
        pool.next += 1;
        let position = Position(pool.next);
        pool.holders.entry(stripe).or_default().insert(DISK, position);
        let commit = MapCommit { position, stripe: Some(granted), entries: Vec::new() };
        pool.map_commits.insert(DISK, vec![commit]);
    }
    (rig, stripe)
}

// C3: no drive says that its shard is damaged, and only all of the footer tells.
#[test]
fn a_footer_over_several_shards_is_solved_though_two_of_them_rotted() {
    let cases: [(&[u8], &[u16]); 9] = [
        (&[], &[]),
        (&[2], &[]),
        (&[3], &[]),
        (&[2, 3], &[]),
        (&[3, 5], &[]),
        (&[0, 2], &[]),
        (&[2], &[3]),
        (&[4], &[2]),
        (&[], &[2, 3]),
    ];
    for (rotten, lost) in cases {
        let (mut rig, stripe) = with_a_long_footer(81);
        rig.pool.borrow_mut().rotten.extend(rotten.iter().map(|shard| (stripe, *shard)));
        rig.pool.borrow_mut().lost.extend(lost.iter().map(|drive| DriveId(*drive)));
        rig.start_host();
        assert_eq!(rig.try_open(), Ok(()), "{rotten:?} rotted, {lost:?} are lost");
        let read = Operation::Read { offset: rig.size - 8192, length: 8192 };
        assert_eq!(ask(&rig, 1, read).data.unwrap()[..], [0; 8192]);
    }
    let beyond: [(&[u8], &[u16]); 3] = [(&[1, 2, 3], &[]), (&[2, 3], &[0]), (&[2], &[0, 3])];
    for (rotten, lost) in beyond {
        let (mut rig, stripe) = with_a_long_footer(82);
        rig.pool.borrow_mut().rotten.extend(rotten.iter().map(|shard| (stripe, *shard)));
        rig.pool.borrow_mut().lost.extend(lost.iter().map(|drive| DriveId(*drive)));
        rig.start_host();
        let opened = rig.try_open();
        assert!(matches!(opened, Err(HostError::Unreadable { .. })), "{opened:?}");
    }
}
