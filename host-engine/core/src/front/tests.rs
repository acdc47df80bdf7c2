//! Fronts against a simple model of a disk: requests in any order, on shares anywhere, that move.

use super::*;
use crate::shares::{EXTENT, Shares};
use cleave_format::ids::VdiskId;
use cleave_format::layout::BLOCK;
use cleave_runtime::executor::NoDoorbell;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

const DISK: VdiskId = VdiskId(40);
const BLOCKS: u64 = EXTENT / BLOCK as u64;

/// What all cores' shares hold, by block, as the log would bring it to whoever opens them.
type Content = Rc<RefCell<BTreeMap<u64, u32>>>;

/// A core that does what it was given in any order, but what overlaps in the order given.
#[derive(Clone)]
struct Model {
    content: Content,
    open: Rc<RefCell<BTreeSet<VdiskId>>>,
    given: Rc<RefCell<Vec<GuestRequest>>>,
    done: Rc<RefCell<Vec<GuestCompletion>>>,
    room: Rc<Cell<usize>>,
}

fn blocks_of(operation: &Operation) -> std::ops::Range<u64> {
    let (offset, length) = match operation {
        Operation::Read { offset, length } => (*offset, u64::from(*length)),
        Operation::Write { offset, data } => (*offset, data.len() as u64),
        Operation::WriteZeroes { offset, length, .. } | Operation::Discard { offset, length } => {
            (*offset, *length)
        }
        Operation::Flush => (0, 0),
    };
    offset / BLOCK as u64..(offset + length) / BLOCK as u64
}

impl Core for Model {
    fn submit(&self, request: GuestRequest) -> Result<(), GuestRequest> {
        let mut given = self.given.borrow_mut();
        if given.len() >= self.room.get() && !passes(&request.operation) {
            return Err(request);
        }
        given.push(request);
        Ok(())
    }

    fn has_completions(&self) -> bool {
        !self.done.borrow().is_empty()
    }

    fn completions(&self, completions: &mut Vec<GuestCompletion>) {
        completions.append(&mut self.done.borrow_mut());
    }

    fn adopt(&self, _: LooseBuffer) {}
}

impl Model {
    fn new(content: &Content) -> Model {
        Model {
            content: Rc::clone(content),
            open: Rc::default(),
            given: Rc::default(),
            done: Rc::default(),
            room: Rc::new(Cell::new(3)),
        }
    }

    /// Does one request, if there is any: the one of that place, or one before it that it overlaps.
    fn work(&self, place: usize) {
        let mut given = self.given.borrow_mut();
        if given.is_empty() {
            return;
        }
        let mut place = place % given.len();
        let blocks = |at: usize| blocks_of(&given[at].operation);
        while let Some(earlier) = (0..place).find(|at| {
            blocks(*at).start < blocks(place).end && blocks(place).start < blocks(*at).end
        }) {
            place = earlier;
        }
        let GuestRequest { token, vdisk, operation } = given.remove(place);
        let mut completion = GuestCompletion { token, result: Ok(()), data: None };
        if !self.open.borrow().contains(&vdisk) {
            completion.result = Err(GuestError::NotServed);
            return self.done.borrow_mut().push(completion);
        }
        let mut content = self.content.borrow_mut();
        let blocks = blocks_of(&operation);
        match operation {
            Operation::Write { data, .. } => {
                for (block, bytes) in blocks.zip(data.chunks(BLOCK)) {
                    content.insert(block, u32::from_le_bytes(bytes[..4].try_into().unwrap()));
                }
            }
            Operation::Read { length, .. } => {
                let mut data = Buffer::new(length as usize);
                for (block, bytes) in blocks.zip(data.chunks_mut(BLOCK)) {
                    let value = content.get(&block).copied().unwrap_or(0);
                    bytes[..4].copy_from_slice(&value.to_le_bytes());
                }
                completion.data = Some(data);
            }
            Operation::WriteZeroes { .. } | Operation::Discard { .. } => {
                blocks.for_each(|block| {
                    content.remove(&block);
                });
            }
            Operation::Flush => {}
        }
        self.done.borrow_mut().push(completion);
    }
}

/// What a request is to the judge.
#[derive(Clone, Debug)]
struct Known {
    ranges: Vec<std::ops::Range<u64>>,
    kind: Kind,
    /// For each block of a read: changes that were done when it was taken.
    before: BTreeMap<u64, usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Write,
    Zero,
    Read,
}

struct Bench {
    cores: Vec<Model>,
    fronts: Vec<Front<usize, Model>>,
    home: HomeKey,
    shares: Shares,
    /// Where each share is; front 0 has the device.
    at: Vec<usize>,
    moving: Option<(u16, usize)>,
    known: Vec<Known>,
    /// Requests in the order in which they were done.
    told: Vec<usize>,
    content: Content,
}

fn pools() -> Vec<BufferPool> {
    [4096, 65_536].map(|bytes| BufferPool::new(bytes, 4)).to_vec()
}

impl Bench {
    fn new(cores: usize, count: u16) -> Bench {
        let content = Content::default();
        let shares = Shares::new(DISK, count);
        let models: Vec<Model> = (0..cores).map(|_| Model::new(&content)).collect();
        let mut fronts: Vec<_> =
            models.iter().map(|model| Front::new(model.clone(), pools())).collect();
        let at: Vec<usize> = (0..usize::from(count)).map(|share| share % cores).collect();
        let mut places = Vec::new();
        for (share, core) in at.iter().enumerate() {
            let identity = shares.identity(share as u16);
            models[*core].open.borrow_mut().insert(identity);
            places.push(Bench::place(&mut fronts, identity, *core));
        }
        let home = fronts[0].add_home(shares, places);
        let (moving, known, told) = (None, Vec::new(), Vec::new());
        Bench { cores: models, fronts, home, shares, at, moving, known, told, content }
    }

    fn place(fronts: &mut [Front<usize, Model>], identity: VdiskId, core: usize) -> Place {
        if core == 0 {
            return Place::Here;
        }
        let (home, share) = link(Arc::new(NoDoorbell), Arc::new(NoDoorbell));
        fronts[core].carry_for(identity, share);
        Place::There(home)
    }

    fn take(&mut self, kind: Kind, blocks: std::ops::Range<u64>) {
        self.take_ranges(kind, std::iter::once(blocks).collect());
    }

    fn take_ranges(&mut self, kind: Kind, ranges: Vec<std::ops::Range<u64>>) {
        let number = self.known.len();
        let operations: Vec<Operation> = ranges
            .iter()
            .map(|range| {
                let offset = range.start * BLOCK as u64;
                let length = (range.end - range.start) * BLOCK as u64;
                match kind {
                    Kind::Read => Operation::Read { offset, length: length as u32 },
                    Kind::Zero => Operation::WriteZeroes { offset, length, unmap: true },
                    Kind::Write => {
                        let mut data = Buffer::new(length as usize);
                        let stamp = (number as u32 + 1).to_le_bytes();
                        data.chunks_mut(BLOCK).for_each(|block| block[..4].copy_from_slice(&stamp));
                        Operation::Write { offset, data }
                    }
                }
            })
            .collect();
        let last_done = |block: u64| {
            let changes = self.told.iter().rev().copied();
            changes.filter(|told| self.changes(*told, block)).max()
        };
        let mut before = BTreeMap::new();
        if kind == Kind::Read {
            for block in ranges[0].clone() {
                before.extend(last_done(block).map(|change| (block, change)));
            }
        }
        self.known.push(Known { ranges, kind, before });
        self.fronts[0].take(self.home, number, operations);
    }

    fn changes(&self, request: usize, block: u64) -> bool {
        let known = &self.known[request];
        known.kind != Kind::Read && known.ranges.iter().any(|range| range.contains(&block))
    }

    fn turn(&mut self) {
        let mut done = Vec::new();
        for front in &mut self.fronts {
            front.turn();
            front.done(&mut done);
        }
        for Done { home, user, result, data } in done {
            assert!(home == self.home && result == Ok(()), "{result:?}");
            assert!(!self.told.contains(&user), "a request is done once");
            self.judge(user, &data);
            self.told.push(user);
        }
        self.go_on_moving();
    }

    fn judge(&self, number: usize, data: &Data) {
        let known = &self.known[number];
        if known.kind != Kind::Read {
            // C23: whatever it overlaps and was taken before is done.
            for earlier in 0..number {
                let overlaps = self.known[earlier].kind != Kind::Read
                    && known.ranges.iter().cloned().flatten().any(|b| self.changes(earlier, b));
                assert!(!overlaps || self.told.contains(&earlier), "{number} overtook {earlier}");
            }
            return;
        }
        let mut bytes = data.buffers().flat_map(|buffer| buffer.chunks(BLOCK));
        for block in known.ranges[0].clone() {
            let value = bytes.next().expect("all of it")[..4].try_into().unwrap();
            let value = u32::from_le_bytes(value) as usize;
            let from = known.before.get(&block).copied();
            // C23: and what it shows is done.
            assert!(value == 0 || self.told.contains(&(value - 1)), "{number} shows {value} early");
            let fits = match value {
                0 => from.is_none_or(|from| {
                    let later = from..self.known.len();
                    later
                        .into_iter()
                        .any(|it| self.changes(it, block) && self.known[it].kind == Kind::Zero)
                }),
                value => from.is_none_or(|from| value > from) && self.changes(value - 1, block),
            };
            assert!(fits, "read {number}: block {block} is {value}, {from:?} was done before");
        }
        assert!(bytes.next().is_none());
    }

    fn begin_move(&mut self, share: u16, to: usize) {
        if self.moving.is_none() && share < self.shares.count() && share > 0 {
            self.fronts[0].pause(self.home, share);
            self.moving = Some((share, to));
        }
    }

    fn go_on_moving(&mut self) {
        let Some((share, to)) = self.moving else { return };
        if !self.fronts[0].is_drained(self.home, share) {
            return;
        }
        self.moving = None;
        let (identity, from) = (self.shares.identity(share), self.at[usize::from(share)]);
        self.fronts[from].end_link(identity);
        self.cores[from].open.borrow_mut().remove(&identity);
        self.cores[to].open.borrow_mut().insert(identity);
        let place = Bench::place(&mut self.fronts, identity, to);
        self.fronts[0].resume(self.home, share, Some(place));
        self.at[usize::from(share)] = to;
    }

    fn settle(&mut self) {
        for _ in 0..10_000 {
            self.turn();
            self.cores.iter().for_each(|core| core.work(0));
            if self.told.len() == self.known.len() && self.moving.is_none() {
                return;
            }
        }
        panic!("{} of {} are done", self.told.len(), self.known.len());
    }
}

#[derive(Clone, Debug)]
enum Step {
    Take(Kind, u64, u64, Option<u64>),
    Work(usize, usize),
    Turn,
    Move(u16, usize),
    Room(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    // Around the places where shares meet.
    let block = || (1u64..6, 0u64..6).prop_map(|(extent, block)| extent * BLOCKS + block - 3);
    let length = prop_oneof![4 => 1u64..6, 1 => 1020u64..2060];
    let kind = prop_oneof![2 => Just(Kind::Write), 1 => Just(Kind::Zero), 2 => Just(Kind::Read)];
    prop_oneof![
        5 => (kind, block(), length, proptest::option::weighted(0.2, block()))
            .prop_map(|(kind, block, length, other)| Step::Take(kind, block, length, other)),
        6 => (0usize..3, 0usize..8).prop_map(|(core, place)| Step::Work(core, place)),
        4 => Just(Step::Turn),
        1 => (1u16..5, 0usize..3).prop_map(|(share, to)| Step::Move(share, to)),
        1 => (0usize..3, 1usize..9).prop_map(|(core, room)| Step::Room(core, room)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    // C1, C6, C23: whatever goes where and when, it is as if one core did it.
    #[test]
    fn shares_on_several_cores_are_one_disk(
        cores in 1usize..4,
        count in 1u16..5,
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let mut bench = Bench::new(cores, count);
        for step in steps {
            match step {
                Step::Take(kind, block, length, other) => {
                    let other = other.filter(|_| kind == Kind::Zero).map(|other| other..other + 2);
                    bench.take_ranges(kind, std::iter::once(block..block + length).chain(other).collect());
                }
                Step::Work(core, place) => bench.cores[core % cores].work(place),
                Step::Turn => bench.turn(),
                Step::Move(share, to) => bench.begin_move(share, to % cores),
                Step::Room(core, room) => bench.cores[core % cores].room.set(room),
            }
        }
        bench.settle();
        let mut expected = BTreeMap::new();
        for (number, known) in bench.known.iter().enumerate() {
            for block in known.ranges.iter().cloned().flatten() {
                match known.kind {
                    Kind::Read => {}
                    Kind::Zero => drop(expected.remove(&block)),
                    Kind::Write => drop(expected.insert(block, number as u32 + 1)),
                }
            }
        }
        prop_assert_eq!(&*bench.content.borrow(), &expected);
        prop_assert_eq!(bench.fronts[0].waiting_bytes(), 0);
        for front in &bench.fronts {
            prop_assert!(front.taken.is_empty() && front.carrying.is_empty() && front.waiting() == 0);
        }
    }
}

/// Blocks around the place where the first two shares meet.
const SEAM: std::ops::Range<u64> = BLOCKS - 1..BLOCKS + 1;

#[test]
fn a_write_over_two_cores_is_done_when_both_parts_are() {
    let mut bench = Bench::new(2, 2);
    bench.take(Kind::Write, SEAM);
    bench.turn();
    bench.cores[0].work(0);
    bench.turn();
    assert_eq!(bench.told, []);
    bench.cores[1].work(0);
    bench.turn();
    bench.turn();
    assert_eq!(bench.told, [0]);
}

#[test]
fn what_overlaps_a_wide_change_waits_for_it_and_nothing_else_does() {
    let mut bench = Bench::new(2, 2);
    bench.take(Kind::Write, SEAM);
    bench.take(Kind::Write, SEAM.start..SEAM.start + 1);
    bench.take(Kind::Read, SEAM.start..SEAM.start + 1);
    bench.take(Kind::Read, 0..1);
    bench.turn();
    // The first part of the write, and the read of something else.
    assert_eq!(bench.cores[0].given.borrow().len(), 2);
    bench.cores[0].work(0);
    bench.cores[0].work(0);
    bench.turn();
    assert_eq!(bench.told, [3]);
    bench.settle();
    assert_eq!(bench.told[..3], [3, 0, 1]);
}

#[test]
fn a_wide_change_waits_for_reads_that_it_overlaps_and_later_ones_for_it() {
    let mut bench = Bench::new(2, 2);
    bench.take(Kind::Read, SEAM.start..SEAM.start + 1);
    bench.take(Kind::Write, SEAM);
    bench.take(Kind::Read, SEAM.end - 1..SEAM.end);
    bench.turn();
    assert_eq!(bench.cores[0].given.borrow().len(), 1);
    assert!(bench.cores[1].given.borrow().is_empty());
    bench.settle();
    assert_eq!(bench.told, [0, 1, 2]);
}

#[test]
fn buffers_that_cross_come_back() {
    let mut bench = Bench::new(2, 2);
    for _ in 0..20 {
        bench.take(Kind::Write, BLOCKS..BLOCKS + 1);
        bench.settle();
    }
    // A pool keeps four; each write brought one, and took one back.
    let kept = |front: usize| std::iter::from_fn(|| bench.fronts[front].pools[0].spare()).count();
    assert!(kept(1) <= 1, "they went back");
    assert!(kept(0) >= 1);
}

#[test]
fn a_home_that_goes_leaves_nothing() {
    let mut bench = Bench::new(2, 2);
    bench.cores.iter().for_each(|core| core.room.set(1));
    for _ in 0..5 {
        bench.take(Kind::Write, SEAM);
        bench.take(Kind::Write, 3..4);
        bench.take(Kind::Write, BLOCKS + 9..BLOCKS + 10);
    }
    let Bench { mut fronts, cores, home, .. } = bench;
    let mut done = Vec::new();
    fronts[1].turn();
    fronts[0].remove_home(home);
    for _ in 0..20 {
        for (front, core) in fronts.iter_mut().zip(&cores) {
            core.work(0);
            front.turn();
            front.done(&mut done);
        }
    }
    assert!(done.is_empty(), "nobody is told");
    assert!(fronts.iter().all(|front| front.taken.is_empty() && front.carrying.is_empty()));
    assert!(fronts.iter().all(|front| front.waiting() == 0 && front.carried() == 0));
}

#[test]
fn what_was_sent_to_one_opening_of_a_share_does_not_reach_the_next() {
    let mut bench = Bench::new(2, 2);
    bench.take(Kind::Write, BLOCKS..BLOCKS + 1);
    // The share is closed and opened again on its core before that looked at its ring.
    let identity = bench.shares.identity(1);
    let (_home, share) = link(Arc::new(NoDoorbell), Arc::new(NoDoorbell));
    bench.fronts[1].carry_for(identity, share);
    bench.fronts[1].turn();
    assert!(bench.cores[1].given.borrow().is_empty());
}
