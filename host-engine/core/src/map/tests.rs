//! The map against a simple model, in any order of commits and replays.

use super::*;
use cleave_format::ids::{Epoch, Sequence};
use proptest::prelude::*;

const DISK: VdiskId = VdiskId(3);

fn version(sequence: u64) -> Version {
    Version { epoch: Epoch(1), sequence: Sequence(sequence) }
}

fn address(stripe: u64, number: u32) -> Address {
    Address { stripe: StripeId(stripe), offset: number * 64, length: 64 }
}

fn frame(slice: u32, block: u16, sequence: u64, stripe: u64) -> MapChange {
    let frame = Some((address(stripe, u32::from(block)), 0));
    MapChange { slice: SliceIndex(slice), block, blocks: 1, version: version(sequence), frame }
}

#[derive(Clone, Debug)]
struct Write {
    block: u16,
    blocks: u16,
    zero: bool,
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (0u16..24, 1u16..4, any::<bool>()).prop_map(|(block, blocks, zero)| Write {
        block,
        blocks,
        zero,
    });
    proptest::collection::vec(write, 1..40)
}

fn changes(writes: &[Write]) -> Vec<Vec<MapChange>> {
    let one = |(index, write): (usize, &Write)| {
        let sequence = index as u64 + 1;
        if write.zero {
            return vec![MapChange {
                slice: SliceIndex(0),
                block: write.block,
                blocks: write.blocks,
                version: version(sequence),
                frame: None,
            }];
        }
        let blocks = write.block..write.block + write.blocks;
        blocks.map(|block| frame(0, block, sequence, 100 + sequence)).collect()
    };
    writes.iter().enumerate().map(one).collect()
}

fn expected(writes: &[Write]) -> BTreeMap<u16, u64> {
    let mut model = BTreeMap::new();
    for (index, write) in writes.iter().enumerate() {
        for block in write.block..write.block + write.blocks {
            match write.zero {
                true => model.remove(&block),
                false => model.insert(block, 101 + index as u64),
            };
        }
    }
    model
}

fn content(map: &Map) -> BTreeMap<u16, u64> {
    let entry = |block: u16| {
        let entry = map.get(DISK, SliceIndex(0).block(block))?;
        map.resolve(entry).map(|(address, _)| (block, address.stripe.0))
    };
    (0..SLICE_BLOCKS as u16).filter_map(entry).collect()
}

fn load(map: &mut Map, piece: &MapPiece) {
    map.begin(DISK);
    map.list_piece(DISK, piece.group, address(1, 0));
    map.install(piece, true, None).unwrap();
}

proptest! {
    // C2: whatever the order of commits, and with replays of any of them, the newest wins.
    #[test]
    fn newest_wins_in_any_order(
        writes in writes(),
        order in proptest::collection::vec(any::<u32>(), 0..120),
    ) {
        let changes = changes(&writes);
        let mut map = Map::default();
        let all = Some(Version::default());
        let replays = order.iter().map(|pick| *pick as usize % changes.len());
        for index in replays.chain((0..changes.len()).rev()) {
            changes[index].iter().for_each(|change| map.apply(DISK, change, all));
        }
        prop_assert_eq!(content(&map), expected(&writes));
        map.trim(DISK, SliceIndex(0), None);
        prop_assert_eq!(content(&map), expected(&writes));
        prop_assert_eq!(map.versions_kept, 0);
        let live: BTreeSet<u64> = expected(&writes).into_values().collect();
        prop_assert_eq!(map.stripes(), live.len(), "only named stripes have handles");
        map.forget(DISK);
        prop_assert_eq!(map.stripes(), 0);
    }

    // C2: commits in order of their records' release, versions trimmed as early as allowed, and
    // the map restored from a piece at any point: what is unreleased then can be replayed.
    #[test]
    fn pieces_keep_the_versions_that_replay_needs(
        writes in writes(),
        order in proptest::collection::vec(any::<u32>(), 40),
        cut in 0usize..40,
    ) {
        let changes = changes(&writes);
        let mut left: Vec<usize> = (0..changes.len()).collect();
        let mut map = Map::default();
        for (step, pick) in order.iter().enumerate() {
            if left.is_empty() || step == cut {
                break;
            }
            let index = left.remove(*pick as usize % left.len());
            let oldest = left.first().map(|oldest| version(*oldest as u64 + 1));
            changes[index].iter().for_each(|change| map.apply(DISK, change, oldest));
            map.trim(DISK, SliceIndex(0), oldest);
        }
        let mut restored = Map::default();
        if let Some(piece) = map.piece(DISK, 0) {
            let bytes = piece.encode();
            load(&mut restored, &MapPiece::decode(DISK, 0, &bytes).unwrap());
        }
        prop_assert_eq!(content(&restored), content(&map));
        for index in left {
            changes[index].iter().for_each(|c| restored.apply(DISK, c, Some(Version::default())));
        }
        prop_assert_eq!(content(&restored), expected(&writes));
    }
}

#[test]
fn a_run_reflects_the_map_as_it_was_when_it_began() {
    let mut map = Map::default();
    for slice in [0, 2, 4] {
        map.apply(DISK, &frame(slice, 5, 1, 50), None);
    }
    assert_eq!(map.dirty(DISK), 3);
    map.begin_run(DISK);
    assert_eq!(map.dirty(DISK), 0);
    // Group 1 changes before it is taken, group 3 appears.
    map.apply(DISK, &frame(2, 5, 2, 51), None);
    map.apply(DISK, &frame(6, 0, 2, 51), None);
    let mut taken = BTreeMap::new();
    for _ in 0..2 {
        let (group, piece) = map.next_piece(DISK).unwrap();
        taken.insert(group, piece.unwrap().stripes);
    }
    assert_eq!(taken[&1], [StripeId(50)]);
    assert_eq!(map.dirty(DISK), 2);
    map.end_run(DISK);
    assert_eq!(map.dirty(DISK), 3, "the piece that was not taken is dirty again");
}

#[test]
fn a_group_without_entries_has_no_piece() {
    let mut map = Map::default();
    map.apply(DISK, &frame(0, 5, 1, 50), None);
    let zero = MapChange {
        slice: SliceIndex(0),
        block: 0,
        blocks: SLICE_BLOCKS as u16,
        version: version(2),
        frame: None,
    };
    map.apply(DISK, &zero, Some(version(2)));
    assert!(map.is_empty(DISK, SliceIndex(0)));
    assert!(map.piece(DISK, 0).is_some(), "the tombstones are kept");
    map.trim(DISK, SliceIndex(0), None);
    assert!(map.piece(DISK, 0).is_none());
}

#[test]
fn mapped_blocks_are_counted() {
    let mut map = Map::default();
    map.apply(DISK, &frame(0, 5, 1, 50), None);
    map.apply(DISK, &frame(0, 5, 2, 51), None);
    map.apply(DISK, &frame(3, 5, 1, 50), None);
    assert_eq!(map.mapped(DISK), 2);
    let mut loaded = Map::default();
    load(&mut loaded, &map.piece(DISK, 0).unwrap());
    assert_eq!(loaded.mapped(DISK), 1);
    map.forget(DISK);
    assert_eq!((map.mapped(DISK), map.stripes()), (0, 0));
}
