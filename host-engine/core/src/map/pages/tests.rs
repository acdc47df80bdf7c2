//! A map most of which is away against one that has everything: random commits, reads, evictions, runs that
//! end or are given up, and openings.

use super::*;
use crate::map::MapChange;
use cleave_format::control::PiecePlace;
use cleave_format::ids::{Epoch, Sequence, StripeId};
use proptest::prelude::*;
use std::collections::BTreeMap;

const DISK: VdiskId = VdiskId(3);
const SLICES: u32 = 10;
const BLOCKS: u16 = 6;

#[derive(Clone, Debug)]
enum Step {
    /// A commit of one change: zeros, or a frame in a new stripe or in the one before.
    /// `late`: it is older than what was committed since records were released last.
    Change {
        slice: u32,
        block: u16,
        blocks: u16,
        frame: Option<bool>,
        late: bool,
    },
    /// All records so far are released.
    Release,
    Read {
        slice: u32,
        block: u16,
    },
    Evict {
        groups: u64,
    },
    BeginRun,
    TakePiece,
    EndRun,
    GiveRunUp,
    Count,
    Open,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let frame = proptest::option::weighted(0.8, any::<bool>());
    let late = proptest::bool::weighted(0.3);
    let change = (0..SLICES, 0..BLOCKS, 1u16..3, frame, late);
    let step = prop_oneof![
        12 => change.prop_map(|(slice, block, blocks, frame, late)| Step::Change {
            slice, block, blocks, frame, late,
        }),
        2 => Just(Step::Release),
        8 => (0..SLICES, 0..BLOCKS).prop_map(|(slice, block)| Step::Read { slice, block }),
        8 => (0u64..3).prop_map(|groups| Step::Evict { groups }),
        3 => Just(Step::BeginRun),
        4 => Just(Step::TakePiece),
        3 => Just(Step::EndRun),
        1 => Just(Step::GiveRunUp),
        3 => Just(Step::Count),
        1 => Just(Step::Open),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What is durable, and the two maps.
#[derive(Default)]
struct Rig {
    paged: Map,
    whole: Map,
    /// By the number of the stripe that each lies in.
    pieces: BTreeMap<u64, Vec<u8>>,
    current: BTreeMap<u32, Address>,
    /// After the frontier, and whether each changed anything. One that came late and met newer content never will: the
    /// versions that it met are in the piece that the run writes, or in commits before it (C2).
    commits: Vec<(MapChange, bool)>,
    /// What the catalog lists.
    listed: BTreeSet<StripeId>,
    /// The run: how many commits it reflects, and what it took.
    run: Option<(usize, BTreeMap<u32, Option<Address>>)>,
    next: u64,
    /// Of the newest change, and of the oldest unreleased record.
    sequence: u64,
    oldest: u64,
    /// Changes since that are older than others.
    late: u64,
}

fn version(sequence: u64) -> Version {
    Version { epoch: Epoch(1), sequence: Sequence(sequence) }
}

impl Rig {
    fn new() -> Rig {
        let mut rig = Rig::default();
        rig.paged.begin(DISK);
        rig
    }

    fn stripe(&mut self) -> u64 {
        self.next += 1;
        self.listed.insert(StripeId(self.next));
        self.next
    }

    fn stored(&self, group: u32) -> MapPiece {
        let bytes = &self.pieces[&self.current[&group].stripe.0];
        MapPiece::decode(DISK, group, bytes).unwrap()
    }

    fn bring(&mut self, group: u32) {
        if self.paged.is_out(DISK, group) {
            let piece = self.stored(group);
            let oldest = Some(version(self.oldest));
            self.paged.install(&piece, true, Some(&mut |_| oldest)).unwrap();
        }
    }

    fn release(&mut self) {
        (self.oldest, self.late) = (self.sequence + 1, 0);
        for slice in 0..SLICES {
            self.paged.trim(DISK, SliceIndex(slice), Some(version(self.oldest)));
            self.whole.trim(DISK, SliceIndex(slice), Some(version(self.oldest)));
        }
    }

    fn change(&mut self, slice: u32, block: u16, blocks: u16, frame: Option<bool>, late: bool) {
        // What was freed is not referred to (C19).
        let stripe = frame.map(|anew| match self.listed.last().filter(|_| !anew) {
            Some(newest) => *newest,
            None => StripeId(self.stripe()),
        });
        let version = match late {
            true => {
                self.late += 1;
                version(self.oldest + self.late)
            }
            false => {
                self.sequence += 1000;
                version(self.sequence)
            }
        };
        let slice = SliceIndex(slice);
        let change = |block: u16, blocks| MapChange {
            slice,
            block,
            blocks,
            version,
            frame: stripe
                .map(|s| (Address { stripe: s, offset: u32::from(block) * 64, length: 64 }, 0)),
        };
        let changes: Vec<MapChange> = match stripe {
            None => vec![change(block, blocks)],
            Some(_) => (block..block + blocks).map(|block| change(block, 1)).collect(),
        };
        for change in changes {
            let oldest = Some(self::version(self.oldest));
            self.bring(group_of(change.slice));
            self.paged.apply(DISK, &change, oldest);
            let overtaken = self.whole.overtaken();
            self.whole.apply(DISK, &change, oldest);
            self.commits.push((change, self.whole.overtaken() == overtaken));
        }
        if let Some(stripe) = stripe {
            self.paged.listed(DISK, stripe);
        }
    }

    fn check(&mut self, slice: u32, block: u16) {
        let block = SliceIndex(slice).block(block);
        self.bring(group_of(block.slice()));
        let of =
            |map: &Map| map.get(DISK, block).map(|e| map.resolve(e).map(|(address, _)| address));
        assert_eq!(of(&self.paged), of(&self.whole), "{block:?}");
    }

    fn begin_run(&mut self) {
        if self.run.is_none() {
            self.paged.begin_run(DISK);
            self.run = Some((self.commits.len(), BTreeMap::new()));
        }
    }

    fn take_piece(&mut self) -> bool {
        if self.run.is_none() {
            return false;
        }
        let Some((group, piece)) = self.paged.next_piece(DISK) else { return false };
        let address = piece.map(|piece| {
            let stripe = self.stripe();
            self.pieces.insert(stripe, piece.encode());
            self.paged.listed(DISK, StripeId(stripe));
            Address { stripe: StripeId(stripe), offset: 0, length: 64 }
        });
        self.run.as_mut().unwrap().1.insert(group, address);
        true
    }

    fn end_run(&mut self) {
        while self.take_piece() {}
        let Some((reflected, taken)) = self.run.take() else { return };
        let place = |(group, address): (&u32, &Option<Address>)| PiecePlace {
            group: *group,
            address: *address,
        };
        let places: Vec<PiecePlace> = taken.iter().map(place).collect();
        let left = self.paged.leaves(DISK, &places);
        self.commits.drain(..reflected);
        for (group, address) in &taken {
            match address {
                Some(address) => drop(self.current.insert(*group, *address)),
                None => drop(self.current.remove(group)),
            }
        }
        // C20, C21: neither pieces nor what they and later commits name is left.
        let mut needed: BTreeSet<StripeId> = self.current.values().map(|a| a.stripe).collect();
        let counting = self.commits.iter().filter(|(_, counts)| *counts);
        needed.extend(counting.filter_map(|(change, _)| Some(change.frame?.0.stripe)));
        for group in self.current.keys() {
            needed.extend(self.stored(*group).stripes);
        }
        for stripe in &left {
            assert!(!needed.contains(stripe), "{stripe} is left, and needed");
            assert!(self.listed.remove(stripe), "{stripe} is left twice");
        }
        for place in &places {
            self.paged.set_piece(DISK, place.group, place.address);
        }
        self.paged.left(DISK, &left);
        self.paged.end_run(DISK);
    }

    fn give_run_up(&mut self) {
        if let Some((_, taken)) = self.run.take() {
            self.paged.end_run(DISK);
            taken.into_keys().for_each(|group| self.paged.mark_dirty(DISK, group));
        }
    }

    fn count(&mut self) {
        let next = self.paged.uncounted(DISK, 0).next();
        if let Some(group) = next.filter(|group| self.paged.is_out(DISK, *group)) {
            let piece = self.stored(group);
            self.paged.install(&piece, false, None).unwrap();
        }
    }

    fn open(&mut self) {
        self.run = None;
        self.paged.forget(DISK);
        assert_eq!((self.paged.resident(), self.paged.stripes()), (0, 0));
        self.paged.begin(DISK);
        for (group, address) in self.current.clone() {
            self.paged.list_piece(DISK, group, address);
        }
        for (change, _) in self.commits.clone() {
            let group = group_of(change.slice);
            if self.paged.is_out(DISK, group) {
                let piece = self.stored(group);
                self.paged.install(&piece, true, None).unwrap();
            }
            // Which records are unreleased is known only later.
            self.paged.apply(DISK, &change, Some(Version::default()));
        }
        for slice in 0..SLICES {
            self.paged.trim(DISK, SliceIndex(slice), Some(version(self.oldest)));
        }
        self.listed.iter().for_each(|stripe| self.paged.listed(DISK, *stripe));
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Change { slice, block, blocks, frame, late } => {
                self.change(slice, block, blocks, frame, late);
            }
            Step::Release => self.release(),
            Step::Read { slice, block } => self.check(slice, block),
            Step::Evict { groups } => {
                let budget = groups * 10_000;
                self.paged.evict(budget);
            }
            Step::BeginRun => self.begin_run(),
            Step::TakePiece => drop(self.take_piece()),
            Step::EndRun => self.end_run(),
            Step::GiveRunUp => self.give_run_up(),
            Step::Count => self.count(),
            Step::Open => self.open(),
        }
    }

    /// Everything reads the same, and what names stripes is counted whatever is away.
    fn check_all(&mut self) {
        for slice in 0..SLICES {
            for block in 0..BLOCKS + 2 {
                self.check(slice, block);
            }
        }
        while !self.paged.is_counted(DISK) {
            self.count();
        }
        let (named, unnamed) = self.paged.known_stripes(DISK);
        assert_eq!(named, self.whole.known_stripes(DISK).0);
        assert_eq!(&named | &unnamed, self.listed, "nothing leaks");
        assert_eq!(self.paged.mapped(DISK), self.whole.mapped(DISK));
        for _ in 0..3 {
            self.paged.evict(0);
        }
        self.release();
        self.end_run();
        self.begin_run();
        self.end_run();
        for _ in 0..3 {
            self.paged.evict(0);
        }
        assert_eq!(self.paged.resident(), 0, "after a run everything can go");
        assert_eq!(self.paged.known_stripes(DISK).0, self.whole.known_stripes(DISK).0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    // C2, C20, C21
    #[test]
    fn a_map_that_is_away_is_the_same_map(steps in steps()) {
        let mut rig = Rig::new();
        steps.iter().for_each(|step| rig.step(step));
        rig.check_all();
    }
}

// The hand passes over what was asked for since it came by, and over what must stay.
#[test]
fn what_is_asked_for_and_what_is_held_stays() {
    let mut rig = Rig::new();
    (0..SLICES).step_by(2).for_each(|slice| rig.change(slice, 0, 1, Some(true), false));
    rig.paged.evict(0);
    assert_eq!(rig.paged.groups.len(), 5, "what changed stays");
    rig.begin_run();
    rig.end_run();
    rig.paged.groups.values().for_each(|group| group.hot.set(false));
    rig.check(2, 0);
    let held = rig.paged.hold(DISK, vec![3]);
    let one = rig.paged.resident() / 5;
    assert_eq!(rig.paged.evict(2 * one), 3);
    let mut stay: Vec<u32> = rig.paged.groups.keys().map(|(_, group)| *group).collect();
    stay.sort_unstable();
    assert_eq!(stay, [1, 3]);
    rig.paged.evict(0);
    assert_eq!(rig.paged.groups.len(), 1);
    rig.paged.let_go(held);
    rig.paged.evict(0);
    assert_eq!(rig.paged.groups.len(), 0);
    rig.check_all();
}

// C20: a piece that is not counted may name anything.
#[test]
fn nothing_is_left_before_all_is_counted() {
    let mut rig = Rig::new();
    rig.change(0, 0, 1, Some(true), false);
    rig.change(4, 0, 1, Some(false), false);
    rig.end_run();
    rig.begin_run();
    rig.end_run();
    rig.open();
    rig.change(0, 0, 1, None, false);
    assert_eq!(rig.paged.dead(DISK), 0, "another group names it, and is away");
    rig.begin_run();
    rig.end_run();
    rig.count();
    assert!(rig.paged.is_counted(DISK));
    let content = StripeId(1);
    rig.begin_run();
    rig.end_run();
    assert!(rig.listed.contains(&content));
    rig.change(4, 0, 1, None, false);
    rig.begin_run();
    rig.end_run();
    assert!(!rig.listed.contains(&content));
    rig.check_all();
}
