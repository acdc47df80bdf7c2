//! Reading ahead: what a miss in flash brings from the pool beside what the guest wants.
//!
//! A stripe is packed by vdisk and address, so that the parts that follow are the neighbourhood. A miss brings its
//! own part, and as many after it as the vdisk's window says: twice as many as the last time when at
//! least half of those were read since, half as many when less than a quarter were. The guest's own range is on its way
//! before, over a connection of its own; what is read ahead is bounded, and what there is no room for is
//! left out.

use crate::core::Shared;
use crate::handles::Places;
use crate::pool::RangeRead;
use crate::solve::ShardRange;
use crate::state::State;
use bytes::Bytes;
use cleave_format::address::Address;
use cleave_format::frame;
use cleave_format::ids::{StripeId, VdiskId};
use cleave_format::layout::{PARITY_SHARDS, PART, SHARD};
use cleave_runtime::executor::Priority;
use cleave_runtime::links::{Class, LANES};
use cleave_wire::{ControllerMessage, HostMessage};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

/// Parts of the largest window: a whole stripe.
const WINDOW_MAX: u8 = 64;
/// Parts of a shard.
const SHARD_PARTS: u8 = (SHARD / PART) as u8;
/// Most parts that are asked for at once.
const RUN_MAX: usize = 4;
/// Most requests on their way.
const RUNS_MAX: usize = 4;
/// Most requests that wait; the oldest give way.
const WAITING_MAX: usize = 64;
/// Parts that are remembered because they came in damaged, or rotted here.
const SPOILED_MAX: usize = 1024;
/// So often such a part is fetched again.
const SPOILED_AGAIN: u8 = 2;

/// A part of a stripe's data section.
type Part = (StripeId, u8);

/// How far ahead a vdisk's misses look.
pub(crate) struct Window {
    parts: u8,
    /// What the last miss brought.
    last: Vec<Part>,
}

impl Default for Window {
    fn default() -> Window {
        Window { parts: 1, last: Vec::new() }
    }
}

impl Window {
    /// `used` of the parts that came last were read.
    fn adapt(&mut self, used: usize) {
        let all = self.last.len();
        if used * 2 >= all {
            self.parts = WINDOW_MAX.min(self.parts * 2);
        } else if used * 4 < all {
            self.parts = 1.max(self.parts / 2);
        }
    }
}

/// Neighbouring parts of one shard.
pub(crate) struct Run {
    stripe: StripeId,
    first: u8,
    parts: usize,
    places: Option<Places>,
    /// A frame in the first part, by which a drive's answer is checked.
    sample: Option<Address>,
}

/// What the core reads ahead.
#[derive(Default)]
pub(crate) struct Ahead {
    waiting: VecDeque<Run>,
    /// Waiting or on their way.
    known: BTreeSet<Part>,
    on_their_way: usize,
    spoiled: BTreeMap<Part, u8>,
}

impl Ahead {
    fn forget(&mut self, run: &Run) {
        for part in run.first..run.first + run.parts as u8 {
            self.known.remove(&(run.stripe, part));
        }
    }

    /// A part failed its check; one that does so again and again is left in the pool.
    fn spoil(&mut self, part: Part) {
        if self.spoiled.len() >= SPOILED_MAX {
            self.spoiled.clear();
        }
        let times = self.spoiled.entry(part).or_default();
        *times = times.saturating_add(1);
    }

    fn is_spoiled(&self, part: Part) -> bool {
        self.spoiled.get(&part).is_some_and(|times| *times > SPOILED_AGAIN)
    }
}

impl State {
    /// Something in a part that flash gave failed its check: the part is dropped there.
    pub fn flash_was_wrong(&mut self, stripe: StripeId, part: u8) {
        self.flash.bad(stripe, part);
        self.ahead.spoil((stripe, part));
    }

    /// A range was not in flash: plans what comes there beside it.
    pub fn read_ahead(&mut self, vdisk: VdiskId, range: &RangeRead) {
        let sample = range.frames[0].address;
        let missed = (range.stripe, (sample.offset as usize / PART) as u8);
        if self.flash.is_empty() || self.ahead.known.contains(&missed) {
            return;
        }
        let Some(found) = self.vdisks.get_mut(&vdisk) else { return };
        let window = &mut found.window;
        // What is still on its way could not be used yet.
        let (flash, known) = (&self.flash, &self.ahead.known);
        if !window.last.is_empty() && !window.last.iter().any(|part| known.contains(part)) {
            let was_read = |part: &&Part| flash.heat(part.0, part.1).is_some_and(|heat| heat > 0);
            let used = window.last.iter().filter(was_read).count();
            window.adapt(used);
        }
        window.last.clear();
        let data_shards = range.places.as_ref().map(|places| places.len() - PARITY_SHARDS);
        let end = data_shards.unwrap_or(range.shard() + 1) * usize::from(SHARD_PARTS);
        let end = end.min(usize::from(missed.1) + usize::from(window.parts));
        let mut runs: Vec<Run> = Vec::new();
        for part in missed.1..end as u8 {
            let name = (range.stripe, part);
            if flash.holds(name.0, name.1) || known.contains(&name) || self.ahead.is_spoiled(name) {
                continue;
            }
            window.last.push(name);
            if let Some(run) = runs.last_mut()
                && run.parts < RUN_MAX
                && usize::from(run.first) + run.parts == usize::from(part)
                && !part.is_multiple_of(SHARD_PARTS)
            {
                run.parts += 1;
                continue;
            }
            runs.push(Run {
                stripe: range.stripe,
                first: part,
                parts: 1,
                places: range.places.clone(),
                sample: (part == missed.1).then_some(sample),
            });
        }
        self.ahead.known.extend(&window.last);
        self.ahead.waiting.extend(runs);
        while self.ahead.waiting.len() > WAITING_MAX {
            let dropped = self.ahead.waiting.pop_front().expect("there are too many");
            self.ahead.forget(&dropped);
        }
    }

    fn next_run(&mut self) -> Option<Run> {
        // Guests' ranges go first.
        if self.ahead.on_their_way >= RUNS_MAX || !self.unsent_ranges.is_empty() {
            return None;
        }
        let run = self.ahead.waiting.pop_front()?;
        self.ahead.on_their_way += 1;
        Some(run)
    }
}

impl Shared {
    /// Starts what may be read ahead now. True when there was anything.
    pub fn start_reading_ahead(self: &Rc<Shared>) -> bool {
        let mut any = false;
        loop {
            let run = self.state.borrow_mut().next_run();
            let Some(run) = run else { return any };
            any = true;
            let shared = Rc::clone(self);
            self.executor.spawn(Priority::Background, async move {
                if let Some(bytes) = shared.fetch(&run).await {
                    shared.keep(&run, &bytes);
                }
                let mut state = shared.state.borrow_mut();
                state.ahead.forget(&run);
                state.ahead.on_their_way -= 1;
                drop(state);
                shared.start_reading_ahead();
            });
        }
    }

    /// The run's parts from the pool, from other shards where the drive is lost.
    async fn fetch(&self, run: &Run) -> Option<Bytes> {
        // What a guest's range found out since.
        let known = self.state.borrow().map.places(run.stripe).or_else(|| run.places.clone());
        let places = match known {
            Some(places) => places,
            None => self.locate(run.stripe).await?,
        };
        let shard = usize::from(run.first / SHARD_PARTS);
        let offset = u32::from(run.first % SHARD_PARTS) * PART as u32;
        let length = (run.parts * PART) as u32;
        let place = *places.get(shard)?;
        let (stripe, lost) = (run.stripe, self.state.borrow().lost_drives.contains(&place.drive));
        let check = |bytes: &[u8]| run.sample.is_none_or(|sample| is_intact(bytes, &sample));
        if !lost {
            let ask = |request| HostMessage::Read {
                request,
                place,
                stripe,
                shard: shard as u8,
                offset,
                length,
            };
            // Beside the shards that destage writes, not before guests' ranges.
            let mut reply = self.request(Class::Bulk, shard as u8 % LANES, ask, &[]).await;
            if let ControllerMessage::Read { result: Ok(()), .. } = reply.message {
                let bytes = reply.payload.take_rest();
                self.state.borrow_mut().stats.pool_bytes += bytes.len() as u64;
                if bytes.len() == length as usize && check(&bytes) {
                    return Some(bytes);
                }
            }
        }
        // The part that a guest wants, so that it is not solved anew each time.
        run.sample?;
        let range = ShardRange { stripe, places, shard, offset, length };
        self.solve(&range, check).await.ok()
    }

    /// Gives the parts to flash that hold anything.
    fn keep(&self, run: &Run, bytes: &Bytes) {
        let mut state = self.state.borrow_mut();
        for index in 0..run.parts {
            let part = bytes.slice(index * PART..(index + 1) * PART);
            // Frames begin where a part begins; a part without any begins with zeros.
            if part[0] == 0 {
                continue;
            }
            state.stats.parts_fetched += 1;
            // Whether it was taken does not matter: the pool has it.
            let _ = state.flash.put(run.stripe, run.first + index as u8, &part, 0);
        }
    }
}

/// Whether the bytes, which begin with the frame's part, hold it.
fn is_intact(bytes: &[u8], sample: &Address) -> bool {
    let start = sample.offset as usize % PART;
    let found = bytes.get(start..start + sample.length as usize);
    found.is_some_and(|found| frame::check_at(found, sample).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(count: u8) -> Vec<Part> {
        (0..count).map(|part| (StripeId(1), part)).collect()
    }

    #[test]
    fn a_window_follows_its_use() {
        let mut window = Window::default();
        for expected in [2, 4, 8, 16, 32, 64, 64] {
            window.last = parts(window.parts);
            window.adapt(window.last.len());
            assert_eq!(window.parts, expected);
        }
        window.last = parts(64);
        window.adapt(20);
        assert_eq!(window.parts, 64, "some use leaves it as it is");
        for expected in [32, 16, 8, 4, 2, 1, 1] {
            window.last = parts(window.parts);
            window.adapt(0);
            assert_eq!(window.parts, expected);
        }
    }

    #[test]
    fn what_is_damaged_again_and_again_stays_in_the_pool() {
        let (mut ahead, part) = (Ahead::default(), (StripeId(3), 4));
        for _ in 0..=SPOILED_AGAIN {
            assert!(!ahead.is_spoiled(part));
            ahead.spoil(part);
        }
        assert!(ahead.is_spoiled(part) && !ahead.is_spoiled((StripeId(3), 5)));
        for stripe in 0..2 * SPOILED_MAX as u64 {
            ahead.spoil((StripeId(stripe), 0));
            assert!(ahead.spoiled.len() <= SPOILED_MAX);
        }
    }
}
