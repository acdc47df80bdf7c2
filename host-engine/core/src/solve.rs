//! Reading from the pool what does not go directly: as tasks.
//!
//! A range that its drive does not give is read from k other shards and solved; when the result
//! fails its check, one of these is damaged too, and each is left out in turn while another is
//! there (C3). Ranges of several shards that only together can be checked, as of a footer, are solved together: each one
//! and each two shards of the stripe are left out in turn. Whatever is given back passed the caller's check.
//!
//! Shards move (C16): what cannot be had at the places that were known is tried again where the stripe lies now, if that is
//! elsewhere.

use crate::core::Shared;
use crate::handles::Places;
use crate::pool::{RangeRead, SlowRead, chunks_around};
use crate::request::GuestError;
use bytes::Bytes;
use cleave_format::ids::StripeId;
use cleave_format::layout::PARITY_SHARDS;
use cleave_runtime::executor::Priority;
use cleave_runtime::links::{Class, LANES};
use cleave_runtime::sync::Queue;
use cleave_wire::{ControllerMessage, HostMessage, ShardFault};
use std::collections::BTreeMap;
use std::rc::Rc;

/// So often a read follows a stripe to other places.
const FOLLOWED_MAX: usize = 4;

/// A range of one shard.
#[derive(Clone)]
pub(crate) struct ShardRange {
    pub stripe: StripeId,
    pub places: Places,
    pub shard: usize,
    pub offset: u32,
    pub length: u32,
}

impl Shared {
    /// Starts the tasks that slow reads need.
    pub fn start_slow_reads(self: &Rc<Shared>) -> bool {
        let mut any = false;
        loop {
            let next = self.state.borrow_mut().slow.pop_front();
            let Some(slow) = next else { return any };
            any = true;
            let shared = Rc::clone(self);
            self.executor.spawn(Priority::Foreground, async move {
                match slow {
                    SlowRead::Locate(range) => shared.locate_range(range).await,
                    SlowRead::Solve(range) => shared.solve_range(range).await,
                }
            });
        }
    }

    async fn locate_range(&self, mut range: RangeRead) {
        let places = self.locate(range.stripe).await;
        let mut state = self.state.borrow_mut();
        match places {
            Some(places) => {
                state.map.learn(range.stripe, &places);
                range.places = Some(places);
                state.start_range(range);
            }
            None => {
                let stripe = range.stripe;
                if state.fail_range(range, GuestError::Unreadable) {
                    tracing::error!(%stripe, "the data node does not know a stripe that a map names");
                }
            }
        }
    }

    async fn solve_range(&self, range: RangeRead) {
        let (offset, length) = range.range();
        let places = range.places.clone().expect("a range is located before it is solved");
        let (stripe, shard) = (range.stripe, range.shard());
        let wanted = ShardRange { stripe, places, shard, offset, length };
        let check = |bytes: &[u8]| range.frames.iter().all(|f| range.check(f, bytes).is_some());
        let solved = self.solve(&wanted, check).await;
        let mut state = self.state.borrow_mut();
        match solved {
            Ok(bytes) => state.deliver_range(&range, Ok(&bytes)),
            Err(reason) => {
                if state.fail_range(range, GuestError::Unreadable) {
                    tracing::error!(%stripe, shard, offset, length, reason, "content cannot be read");
                }
            }
        }
    }

    /// Where a stripe lies, if the data node knows it.
    pub async fn locate(&self, stripe: StripeId) -> Option<Places> {
        let ask = |request| HostMessage::Locate { request, stripes: vec![stripe] };
        match self.request(Class::Read, 0, ask, &[]).await.message {
            ControllerMessage::Located { stripes, .. } => {
                stripes.into_iter().find(|found| found.stripe == stripe).map(|f| f.slots.into())
            }
            _ => None,
        }
    }

    /// A range from its own drive.
    pub async fn read_shard(&self, range: &ShardRange) -> Result<Bytes, ShardFault> {
        let Some(place) = range.places.get(range.shard).copied() else {
            return Err(ShardFault::Identity);
        };
        if self.state.borrow().lost_drives.contains(&place.drive) {
            return Err(ShardFault::Lost);
        }
        let (stripe, shard, offset, length) =
            (range.stripe, range.shard as u8, range.offset, range.length);
        let ask = |request| HostMessage::Read { request, place, stripe, shard, offset, length };
        let lane = range.shard as u8 % LANES;
        let mut reply = self.request(Class::Read, lane, ask, &[]).await;
        match reply.message {
            ControllerMessage::Read { result: Ok(()), .. } => {
                let bytes = reply.payload.take_rest();
                self.state.borrow_mut().stats.pool_bytes += bytes.len() as u64;
                (bytes.len() == length as usize).then_some(bytes).ok_or(ShardFault::Damaged)
            }
            ControllerMessage::Read { result: Err(fault), .. } => Err(fault),
            _ => Err(ShardFault::Damaged),
        }
    }

    /// A range that passes `check`: from its drive, or else solved.
    pub async fn read_checked(
        self: &Rc<Shared>,
        range: &ShardRange,
        check: impl Fn(&[u8]) -> bool,
    ) -> Result<Bytes, String> {
        if let Ok(bytes) = self.read_shard(range).await {
            if check(&bytes) {
                return Ok(bytes);
            }
            let mut state = self.state.borrow_mut();
            state.stats.checks_failed += 1;
            state.tell_damaged(range.stripe);
        }
        self.solve(range, check).await
    }

    /// Where a stripe lies, if that is known to be elsewhere than a range says.
    async fn moved(&self, range: &ShardRange) -> Option<Places> {
        let places = self.locate(range.stripe).await.filter(|places| *places != range.places)?;
        self.state.borrow_mut().map.learn(range.stripe, &places);
        Some(places)
    }

    /// A range from other shards, such that it passes `check`.
    pub async fn solve(
        &self,
        range: &ShardRange,
        check: impl Fn(&[u8]) -> bool,
    ) -> Result<Bytes, String> {
        let mut range = range.clone();
        let mut followed = 0;
        loop {
            let reason = match self.solve_at(&range, &check).await {
                Ok(bytes) => return Ok(bytes),
                Err(reason) => reason,
            };
            followed += 1;
            match self.moved(&range).await {
                Some(places) if followed < FOLLOWED_MAX => range.places = places,
                _ => return Err(reason),
            }
        }
    }

    async fn solve_at(
        &self,
        range: &ShardRange,
        check: impl Fn(&[u8]) -> bool,
    ) -> Result<Bytes, String> {
        let data_shards = range.places.len().saturating_sub(PARITY_SHARDS);
        if data_shards == 0 {
            return Err("its slots are not those of a stripe".to_owned());
        }
        let (offset, length) = chunks_around(range.offset, range.length);
        self.state.borrow_mut().stats.last_solved = range.last_solved();
        let others = (0..range.places.len()).filter(|shard| *shard != range.shard);
        let mut untried: Vec<usize> = others.collect();
        untried.reverse();
        let mut there: BTreeMap<usize, Bytes> = BTreeMap::new();
        let mut lost = String::new();
        while there.len() < data_shards && !untried.is_empty() {
            let count = (data_shards - there.len()).min(untried.len());
            let batch = untried.split_off(untried.len() - count);
            self.read_batch(range, offset, length, batch, &mut there, &mut lost).await;
        }
        if there.len() < data_shards {
            let (have, need) = (there.len(), data_shards);
            return Err(format!("{have} of {need} needed shards can be read{lost}"));
        }
        let skip = (range.offset - offset) as usize;
        let wanted = skip..skip + range.length as usize;
        if let Some(solved) = self.solve_with(range, &there, None, length) {
            let bytes = solved.slice(wanted.clone());
            if check(&bytes) {
                return Ok(bytes);
            }
        }
        // One of these is damaged though its drive does not say so: read what is left, and leave each out.
        {
            let mut state = self.state.borrow_mut();
            state.stats.checks_failed += 1;
            state.tell_damaged(range.stripe);
        }
        self.read_batch(range, offset, length, untried, &mut there, &mut lost).await;
        for left_out in there.keys().copied().collect::<Vec<_>>() {
            let Some(solved) = self.solve_with(range, &there, Some(left_out), length) else {
                continue;
            };
            let bytes = solved.slice(wanted.clone());
            if check(&bytes) {
                return Ok(bytes);
            }
        }
        Err("more than one shard is damaged".to_owned())
    }

    /// Ranges of one stripe's shards such that they pass `check` together, from all of its shards: of those that can be
    /// read as many may be damaged, though their drives do not say so, as parity is left for.
    pub async fn solve_together(
        &self,
        ranges: &[ShardRange],
        check: impl Fn(&[Bytes]) -> bool,
    ) -> Result<Vec<Bytes>, String> {
        let mut ranges = ranges.to_vec();
        let mut followed = 0;
        loop {
            let reason = match self.solve_together_at(&ranges, &check).await {
                Ok(found) => return Ok(found),
                Err(reason) => reason,
            };
            let Some(first) = ranges.first() else { return Err(reason) };
            followed += 1;
            match self.moved(first).await {
                Some(places) if followed < FOLLOWED_MAX => {
                    ranges.iter_mut().for_each(|range| range.places = places.clone());
                }
                _ => return Err(reason),
            }
        }
    }

    async fn solve_together_at(
        &self,
        ranges: &[ShardRange],
        check: impl Fn(&[Bytes]) -> bool,
    ) -> Result<Vec<Bytes>, String> {
        let Some(first) = ranges.first() else { return Err("nothing is wanted".to_owned()) };
        let shards = first.places.len();
        let start = ranges.iter().map(|range| range.offset).min().unwrap_or(0);
        let end = ranges.iter().map(|range| range.offset + range.length).max().unwrap_or(0);
        let (offset, length) = chunks_around(start, end - start);
        let (mut there, mut lost) = (BTreeMap::new(), String::new());
        self.read_batch(first, offset, length, (0..shards).collect(), &mut there, &mut lost).await;
        let Some(spare) = PARITY_SHARDS.checked_sub(shards - there.len()) else {
            let (have, need) = (there.len(), shards.saturating_sub(PARITY_SHARDS));
            return Err(format!("{have} of {need} needed shards can be read{lost}"));
        };
        let present: Vec<usize> = there.keys().copied().collect();
        for left_out in left_out(&present, spare) {
            if let Some(found) = self.solve_ranges(ranges, &there, &left_out, (offset, length))
                && check(&found)
            {
                return Ok(found);
            }
            // Each is some milliseconds' work.
            self.executor.yield_now().await;
        }
        Err(format!("more than {spare} of its shards that can be read are damaged{lost}"))
    }

    /// Ranges from the shards that are there but for some.
    fn solve_ranges(
        &self,
        ranges: &[ShardRange],
        there: &BTreeMap<usize, Bytes>,
        left_out: &[usize],
        (offset, length): (u32, u32),
    ) -> Option<Vec<Bytes>> {
        let used = |shard: &usize| there.get(shard).filter(|_| !left_out.contains(shard));
        let width = ranges.first()?.places.len();
        let given: Vec<Option<&[u8]>> =
            (0..width).map(|shard| used(&shard).map(|bytes| &bytes[..])).collect();
        let missing = ranges.iter().map(|range| range.shard).filter(|shard| used(shard).is_none());
        let mut solved: Vec<(usize, Vec<u8>)> =
            missing.map(|shard| (shard, vec![0; length as usize])).collect();
        if !solved.is_empty() {
            let mut wanted: Vec<(usize, &mut [u8])> =
                solved.iter_mut().map(|(shard, out)| (*shard, &mut out[..])).collect();
            self.coder.borrow().solver.recover(&given, &mut wanted).ok()?;
            self.state.borrow_mut().stats.reads_solved += 1;
        }
        let solved: BTreeMap<usize, Bytes> =
            solved.into_iter().map(|(shard, bytes)| (shard, Bytes::from(bytes))).collect();
        let part = |range: &ShardRange| {
            let whole = solved.get(&range.shard).or_else(|| there.get(&range.shard))?;
            let skip = (range.offset - offset) as usize;
            Some(whole.slice(skip..skip + range.length as usize))
        };
        ranges.iter().map(part).collect()
    }

    /// Reads the same range of several shards at once.
    async fn read_batch(
        &self,
        range: &ShardRange,
        offset: u32,
        length: u32,
        shards: Vec<usize>,
        there: &mut BTreeMap<usize, Bytes>,
        lost: &mut String,
    ) {
        let results = Queue::default();
        let count = shards.len();
        for shard in shards {
            let range = ShardRange { shard, offset, length, ..range.clone() };
            let Some(shared) = self.this.upgrade() else { return };
            let results = results.clone();
            self.executor.spawn(Priority::Foreground, async move {
                let result = shared.read_shard(&range).await;
                results.push((shard, result));
            });
        }
        for _ in 0..count {
            match results.pop().await {
                (shard, Ok(bytes)) => drop(there.insert(shard, bytes)),
                (shard, Err(fault)) => lost.push_str(&format!("; shard {shard}: {fault}")),
            }
        }
    }

    /// Solves the range's shard from those that are there; `None` when too few are.
    fn solve_with(
        &self,
        range: &ShardRange,
        there: &BTreeMap<usize, Bytes>,
        left_out: Option<usize>,
        length: u32,
    ) -> Option<Bytes> {
        let shards: Vec<Option<&[u8]>> = (0..range.places.len())
            .map(|shard| there.get(&shard).filter(|_| Some(shard) != left_out).map(|b| &b[..]))
            .collect();
        let mut out = vec![0; length as usize];
        let solver = &self.coder.borrow().solver;
        solver.recover(&shards, &mut [(range.shard, &mut out)]).ok()?;
        self.state.borrow_mut().stats.reads_solved += 1;
        Some(Bytes::from(out))
    }
}

/// Which shards are left out, one time after the other: none, each one, each two, up to so many.
fn left_out(present: &[usize], most: usize) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    let mut last = all.clone();
    for _ in 0..most {
        let longer = |fewer: &Vec<usize>| {
            let after = fewer.last().copied();
            let next = present.iter().filter(move |shard| after.is_none_or(|last| **shard > last));
            next.map(|shard| [&fewer[..], &[*shard]].concat()).collect::<Vec<_>>()
        };
        last = last.iter().flat_map(longer).collect();
        all.extend(last.iter().cloned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::left_out;

    #[test]
    fn each_one_and_each_two_are_left_out_once() {
        assert_eq!(left_out(&[0, 3, 4], 0), [Vec::<usize>::new()]);
        let two = left_out(&[0, 3, 4], 2);
        let expected: [&[usize]; 7] = [&[], &[0], &[3], &[4], &[0, 3], &[0, 4], &[3, 4]];
        assert_eq!(two, expected);
        assert_eq!(left_out(&(0..10).collect::<Vec<_>>(), 2).len(), 1 + 10 + 45);
    }
}
