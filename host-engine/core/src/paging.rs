//! Bringing groups of the map into memory: what waits for them, and the reads of their pieces.
//!
//! A piece is read like a block: from flash, else from the pool, checked at its address, solved where it is damaged
//! or lost (C3). Whoever misses a group joins the one fetch of it; fetches wait while the controller is
//! away; so many are on their way at once, those that guests wait for first. When the piece is there, what
//! waited looks again, at the write buffer first: meanwhile other requests went on.
//!
//! A piece that cannot be read fails the guest's reads and merges that need it, each with an I/O error, and
//! nothing else; the next one that needs it tries again.
//!
//! A vdisk that is forgotten takes its fetches with it; what they bring later is another generation's.

use crate::buffer::{Visible, WriteKey};
use crate::core::Shared;
use crate::map::{Held, group_of};
use crate::pool::{Lookup, Sink, Wanted};
use crate::publish::ReadKey;
use crate::request::GuestError;
use crate::state::State;
use cleave_codec::CodecError;
use cleave_format::FormatError;
use cleave_format::address::Address;
use cleave_format::ids::{BlockIndex, Epoch, StripeId, VdiskId};
use cleave_format::layout::BLOCK;
use cleave_format::map_piece::MapPiece;
use cleave_runtime::sync::{Outcome, Promise, promise};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Fetches on their way at once.
const FETCHES_MAX: usize = 64;
/// Before the first pieces are counted: what guests ask for comes first.
const COUNT_AFTER: Duration = Duration::from_millis(200);
/// Pieces that are counted at a time.
const COUNTED_AT_ONCE: usize = 16;
/// Between them: about 3000 pieces a second, a TiB of map in a minute and a half.
const BETWEEN_COUNTS: Duration = Duration::from_millis(5);
/// Before pieces that could not be read are counted again.
const COUNT_AGAIN: Duration = Duration::from_secs(10);

/// Why a group cannot be brought into memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum PageFault {
    /// More shards are lost or damaged than can be solved.
    Unreadable(StripeId),
    /// It is encrypted under another key.
    Key(CodecError),
    /// It is intact and not what a writer writes.
    Malformed(FormatError),
    /// The vdisk is not open any more.
    Gone,
}

impl PageFault {
    fn for_guest(&self) -> GuestError {
        match self {
            PageFault::Unreadable(_) | PageFault::Malformed(_) => GuestError::Unreadable,
            PageFault::Key(_) => GuestError::Key,
            PageFault::Gone => GuestError::NotServed,
        }
    }
}

/// What waits for a group.
pub(crate) enum Waiter {
    /// A block of a read; it fails if the map still says an address that cannot be read.
    Read { read: ReadKey, block: BlockIndex, unreadable: Option<Address> },
    /// A write that merges a partial block.
    Merge { write: WriteKey, block: BlockIndex },
}

/// A group on its way.
struct Fetch {
    generation: u64,
    begun: bool,
    urgent: bool,
    /// Somebody will look at it: it is not only counted.
    keep: bool,
    waiters: Vec<Waiter>,
    promises: Vec<Promise<Result<(), PageFault>>>,
}

/// Groups on their way.
#[derive(Default)]
pub(crate) struct Fetches {
    all: BTreeMap<(VdiskId, u32), Fetch>,
    /// Those that guests wait for, and not begun.
    urgent: VecDeque<(VdiskId, u32)>,
    /// Not begun; some of them urgent since.
    later: VecDeque<(VdiskId, u32)>,
    begun: usize,
}

impl Fetches {
    /// The next one to begin.
    fn next(&mut self) -> Option<((VdiskId, u32), &mut Fetch)> {
        while self.begun < FETCHES_MAX {
            let key = self.urgent.pop_front().or_else(|| self.later.pop_front())?;
            // It may be gone with its vdisk, or be there twice.
            if self.all.get(&key).is_some_and(|fetch| !fetch.begun) {
                self.begun += 1;
                return self.all.get_mut(&key).map(|fetch| (key, fetch));
            }
        }
        None
    }

    /// Forgets a vdisk's.
    pub fn forget(&mut self, vdisk: VdiskId) {
        let begun = &mut self.begun;
        self.all.retain(|(owner, _), fetch| {
            *begun -= usize::from(*owner == vdisk && fetch.begun);
            *owner != vdisk
        });
    }
}

impl State {
    /// A guest's request waits for a group that is not in memory.
    pub fn wait_for_page(&mut self, vdisk: VdiskId, group: u32, waiter: Waiter) {
        let fetch = self.fetch(vdisk, group, true, true);
        fetch.waiters.push(waiter);
    }

    /// Joins the fetch of a group, or makes one.
    fn fetch(&mut self, vdisk: VdiskId, group: u32, urgent: bool, keep: bool) -> &mut Fetch {
        let (key, generation) = ((vdisk, group), self.map.generation(vdisk));
        let Fetches { all, urgent: first, later, .. } = &mut self.fetches;
        let fetch = all.entry(key).or_insert_with(|| {
            if !urgent {
                later.push_back(key);
            }
            let (waiters, promises) = (Vec::new(), Vec::new());
            Fetch { generation, begun: false, urgent: false, keep, waiters, promises }
        });
        fetch.keep |= keep;
        if urgent && !std::mem::replace(&mut fetch.urgent, true) && !fetch.begun {
            first.push_back(key);
        }
        fetch
    }

    /// Begins as many fetches as may be on their way.
    pub fn begin_fetches(&mut self) {
        let mut wanted = Vec::new();
        while let Some(((vdisk, group), fetch)) = self.fetches.next() {
            fetch.begun = true;
            let generation = fetch.generation;
            let address = self.map.piece_address(vdisk, group);
            let address = address.expect("what is not in memory has a piece");
            let places = self.map.places(address.stripe);
            let sink = Sink::Piece { vdisk, group, generation };
            wanted.push(Wanted { address, places, sink });
        }
        self.read_frames(wanted);
    }

    /// A piece was read, or cannot be.
    pub fn page_read(
        &mut self,
        (vdisk, group, generation): (VdiskId, u32, u64),
        frame: Result<&[u8], GuestError>,
    ) {
        let key = (vdisk, group);
        let own = self.fetches.all.get(&key);
        if own.is_none_or(|fetch| !fetch.begun || fetch.generation != generation) {
            return;
        }
        let fetch = self.fetches.all.remove(&key).expect("it was there");
        self.fetches.begun -= 1;
        let outcome = match frame {
            Ok(frame) => self.take_page(vdisk, group, fetch.keep, frame),
            Err(_) => {
                let address = self.map.piece_address(vdisk, group);
                Err(PageFault::Unreadable(address.map_or(StripeId(0), |address| address.stripe)))
            }
        };
        if let Err(fault) = &outcome {
            self.stats.pages_failed += 1;
            if fetch.keep {
                tracing::error!(%vdisk, group, ?fault, "a piece of the map cannot be read");
            }
        }
        for promise in fetch.promises {
            promise.fulfil(outcome.clone());
        }
        let fault = outcome.err().map(|fault| fault.for_guest());
        let mut wanted = Vec::new();
        for waiter in fetch.waiters {
            self.look_again(vdisk, waiter, fault, &mut wanted);
        }
        self.read_frames(wanted);
        self.begin_fetches();
    }

    fn take_page(
        &mut self,
        vdisk: VdiskId,
        group: u32,
        keep: bool,
        frame: &[u8],
    ) -> Result<(), PageFault> {
        let open = self.vdisks.get(&vdisk).ok_or(PageFault::Gone)?;
        let serving = open.serving;
        let mut object = Vec::new();
        let codec = &mut self.codecs[open.codec].1;
        codec.decode_object(frame, &mut object).map_err(PageFault::Key)?;
        let piece = MapPiece::decode(vdisk, group, &object).map_err(PageFault::Malformed)?;
        // What only passes to be counted stays where there is room.
        let room = self.map.resident() < self.config.map / 8 * 7;
        let keep = keep || room || self.map.is_held(vdisk, group);
        let buffer = &mut self.buffer;
        let mut oldest = |slice| buffer.oldest(vdisk, slice);
        // While it is opened, what is unreleased is not known yet.
        let settled = serving.then_some(&mut oldest as &mut dyn FnMut(_) -> _);
        self.map.install(&piece, keep, settled).map_err(PageFault::Malformed)?;
        self.stats.pages_read += 1;
        self.run_may_be_due |= self.map.is_counted(vdisk);
        Ok(())
    }

    fn look_again(
        &mut self,
        vdisk: VdiskId,
        waiter: Waiter,
        fault: Option<GuestError>,
        wanted: &mut Vec<Wanted>,
    ) {
        match waiter {
            Waiter::Read { read, block, unreadable } => {
                if !self.reads.contains_key(&read) {
                    return;
                }
                let from_map = self.buffer.visible(vdisk, block) == Visible::Map;
                let stays = unreadable.is_some() && self.address(vdisk, block) == unreadable;
                match fault.or(stays.then_some(GuestError::Unreadable)) {
                    Some(fault) if from_map => self.fill(read, block, Err(fault)),
                    _ => self.read_block(read, vdisk, block, wanted),
                }
            }
            Waiter::Merge { write, block } => {
                let sink = Sink::Merge { write, vdisk, block };
                match (fault, self.wanted(vdisk, block, sink)) {
                    (Some(fault), _) => self.merge_read(write, vdisk, block, Err(fault)),
                    (None, Lookup::Frame(frame)) => wanted.push(frame),
                    (None, Lookup::Zeros) => {
                        self.merge_onto(write, vdisk, block, Ok(Box::new([0; BLOCK])));
                    }
                    (None, Lookup::Out) => {
                        let waiter = Waiter::Merge { write, block };
                        self.wait_for_page(vdisk, group_of(block.slice()), waiter);
                    }
                }
            }
        }
    }

    /// The address that the map in memory has for a block.
    pub fn address(&self, vdisk: VdiskId, block: BlockIndex) -> Option<Address> {
        self.map.resolve(self.map.get(vdisk, block)?).map(|(address, _)| address)
    }

    /// Keeps what is in memory within the budget.
    pub fn evict_pages(&mut self) {
        self.stats.pages_evicted += self.map.evict(self.config.map);
    }

    /// Asks for groups; the outcomes of those that are not in memory.
    fn ask_for_pages(
        &mut self,
        vdisk: VdiskId,
        groups: &[u32],
        keep: bool,
    ) -> Vec<(u32, Outcome<Result<(), PageFault>>)> {
        let mut outcomes = Vec::new();
        for group in groups {
            if self.map.is_out(vdisk, *group) {
                let (promise, outcome) = promise();
                self.fetch(vdisk, *group, false, keep).promises.push(promise);
                outcomes.push((*group, outcome));
            }
        }
        self.begin_fetches();
        outcomes
    }
}

impl Shared {
    /// Brings groups into memory, and holds them there until they are given back. With what could not be
    /// brought.
    pub async fn page_in(
        &self,
        vdisk: VdiskId,
        groups: BTreeSet<u32>,
    ) -> (Held, Vec<(u32, PageFault)>) {
        let groups: Vec<u32> = groups.into_iter().collect();
        let (held, outcomes) = {
            let mut state = self.state.borrow_mut();
            let outcomes = state.ask_for_pages(vdisk, &groups, true);
            (state.map.hold(vdisk, groups), outcomes)
        };
        let mut faults = Vec::new();
        for (group, outcome) in outcomes {
            if let Err(fault) = outcome.wait().await.unwrap_or(Err(PageFault::Gone)) {
                faults.push((group, fault));
            }
        }
        (held, faults)
    }

    /// Counts what the pieces of a vdisk name, slowly, so that it can leave stripes (C20).
    pub async fn count_pieces(self: Rc<Shared>, vdisk: VdiskId, epoch: Epoch) {
        self.executor.sleep(COUNT_AFTER).await;
        let mut from = 0;
        let mut failed = 0;
        loop {
            let (groups, outcomes) = {
                let mut state = self.state.borrow_mut();
                if state.vdisks.get(&vdisk).is_none_or(|open| open.epoch != epoch) {
                    return;
                }
                let groups: Vec<u32> =
                    state.map.uncounted(vdisk, from).take(COUNTED_AT_ONCE).collect();
                let outcomes = state.ask_for_pages(vdisk, &groups, false);
                (groups, outcomes)
            };
            match groups.last() {
                Some(last) => from = last + 1,
                None if failed == 0 => break,
                None => {
                    tracing::warn!(%vdisk, failed, "parts of the map are not counted: nothing of the vdisk is freed");
                    self.executor.sleep(COUNT_AGAIN).await;
                    (from, failed) = (0, 0);
                }
            }
            for (_, outcome) in outcomes {
                match outcome.wait().await {
                    Some(Ok(())) => {}
                    Some(Err(_)) => failed += 1,
                    None => return,
                }
            }
            self.executor.sleep(BETWEEN_COUNTS).await;
        }
        let progress = {
            let mut state = self.state.borrow_mut();
            state.run_may_be_due = true;
            state.progress.clone()
        };
        progress.notify();
    }
}
