//! What a disk may show: for every sector the newest completed write, or one that overlapped the
//! read in time.

use super::{DISK, Rig};
use cleave_host_core::*;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::random::{Random, SplitMix};
use std::collections::BTreeMap;
use std::time::Duration;

const SECTOR: usize = 512;

/// What a request in flight is.
enum Flying {
    /// Sectors, and the number of their content (0: zeros).
    Write {
        first: u64,
        count: u64,
        value: u64,
    },
    Read {
        first: u64,
        count: u64,
        began: u64,
    },
    Flush,
}

/// A write's life, in steps of the model's time.
#[derive(Clone, Copy)]
struct Life {
    value: u64,
    taken: u64,
    completed: Option<u64>,
}

/// The model of one disk, and the workload on it.
pub struct Model {
    pub random: SplitMix,
    sectors: u64,
    history: BTreeMap<u64, Vec<Life>>,
    flying: BTreeMap<u64, Flying>,
    time: u64,
    next: u64,
    pub reads: u64,
    pub refused: u64,
}

/// A sector's content for a value: half of the values compress well.
fn content(value: u64, sector: u64, out: &mut [u8]) {
    if value == 0 {
        return out.fill(0);
    }
    let stream = SplitMix::new(value ^ sector << 32);
    for (index, word) in out.chunks_exact_mut(8).enumerate() {
        let random = stream.next_u64();
        let filled = match (index, value % 2) {
            (0, _) => value,
            (1, _) => sector,
            (_, 0) => random,
            _ => value,
        };
        word.copy_from_slice(&filled.to_le_bytes());
    }
}

impl Model {
    pub fn new(seed: u64, size: u64) -> Model {
        Model {
            random: SplitMix::new(seed),
            sectors: size / SECTOR as u64,
            history: BTreeMap::new(),
            flying: BTreeMap::new(),
            time: 0,
            next: 1,
            reads: 0,
            refused: 0,
        }
    }

    pub fn in_flight(&self) -> usize {
        self.flying.len()
    }

    fn range(&self, most: u64) -> (u64, u64) {
        let mut count = 1 + self.random.below(most);
        let mut first = self.random.below(self.sectors);
        if self.random.below(3) > 0 {
            // Whole blocks, mostly.
            first = first / 8 * 8;
            count = count.next_multiple_of(8);
        }
        if self.random.below(2) == 0 {
            // A hot corner, so that writes overlap.
            first %= 512.min(self.sectors);
        }
        (first, count.min(self.sectors - first))
    }

    /// Submits a request drawn at random.
    pub fn submit(&mut self, core: &HostCore) {
        let (first, count) = self.range(96);
        let (offset, length) = (first * SECTOR as u64, count * SECTOR as u64);
        let token = self.next;
        let value = token;
        let (operation, flying) = match self.random.below(20) {
            0..9 => {
                let mut data = Buffer::new(length as usize);
                for (index, out) in data.chunks_exact_mut(SECTOR).enumerate() {
                    content(value, first + index as u64, out);
                }
                (Operation::Write { offset, data }, Flying::Write { first, count, value })
            }
            9 => {
                let data = Buffer::new(length as usize);
                (Operation::Write { offset, data }, Flying::Write { first, count, value: 0 })
            }
            10 => {
                let operation = Operation::WriteZeroes { offset, length, unmap: false };
                (operation, Flying::Write { first, count, value: 0 })
            }
            11 => {
                // Partial discards round inward (C6).
                let from = first.next_multiple_of(8);
                let to = ((first + count) / 8 * 8).max(from);
                let flying = Flying::Write { first: from, count: to - from, value: 0 };
                (Operation::Discard { offset, length }, flying)
            }
            12 => (Operation::Flush, Flying::Flush),
            _ => {
                let length = length as u32;
                (
                    Operation::Read { offset, length },
                    Flying::Read { first, count, began: self.time },
                )
            }
        };
        let request = GuestRequest { token, vdisk: DISK, operation };
        if core.submit(request).is_err() {
            self.refused += 1;
            return;
        }
        self.next += 1;
        self.time += 1;
        if let Flying::Write { first, count, value } = flying {
            let life = Life { value, taken: self.time, completed: None };
            for sector in first..first + count {
                self.history.entry(sector).or_default().push(life);
            }
            self.flying.insert(token, Flying::Write { first, count, value });
        } else if let Flying::Read { first, count, .. } = flying {
            self.flying.insert(token, Flying::Read { first, count, began: self.time });
        } else {
            self.flying.insert(token, flying);
        }
    }

    /// Takes completions and checks them. Returns how many there were.
    pub fn complete(&mut self, core: &HostCore) -> usize {
        let mut completions = Vec::new();
        core.completions(&mut completions);
        let count = completions.len();
        for completion in completions {
            self.time += 1;
            assert_eq!(completion.result, Ok(()), "request {} is done", completion.token);
            match self.flying.remove(&completion.token).expect("it was in flight, once") {
                Flying::Flush => {}
                Flying::Write { first, count, value } => self.written(first, count, value),
                Flying::Read { first, count, began } => {
                    self.reads += 1;
                    self.check(first, count, began, &completion.data.expect("a read has data"));
                }
            }
        }
        count
    }

    fn written(&mut self, first: u64, count: u64, value: u64) {
        for sector in first..first + count {
            let lives = self.history.get_mut(&sector).expect("it was taken");
            let open = lives.iter_mut().find(|l| l.value == value && l.completed.is_none());
            open.expect("it was in flight").completed = Some(self.time);
        }
    }

    /// Values that a read which began then may show.
    fn allowed(&self, sector: u64, began: u64) -> Vec<u64> {
        let none = Vec::new();
        let lives = self.history.get(&sector).unwrap_or(&none);
        // The newest that was complete before, in the order taken (C23), and all that were not.
        let before = |l: &&Life| l.completed.is_some_and(|at| at <= began);
        let newest = lives.iter().filter(before).map(|l| l.taken).max().unwrap_or(0);
        let base = lives.iter().find(|l| l.taken == newest).map_or(0, |l| l.value);
        let later =
            lives.iter().filter(|l| l.taken > newest || l.completed.is_none_or(|c| c > began));
        std::iter::once(base).chain(later.map(|l| l.value)).collect()
    }

    fn check(&self, first: u64, count: u64, began: u64, data: &[u8]) {
        assert_eq!(data.len() as u64, count * SECTOR as u64);
        for (index, found) in data.chunks_exact(SECTOR).enumerate() {
            let sector = first + index as u64;
            let allowed = self.allowed(sector, began);
            let same = |value: &u64| {
                let mut expected = [0; SECTOR];
                content(*value, sector, &mut expected);
                expected == found
            };
            let shown = u64::from_le_bytes(found[..8].try_into().unwrap());
            assert!(allowed.iter().any(same), "sector {sector} shows {shown}, may {allowed:?}");
        }
    }

    /// The engine was killed: what was in flight may have happened or not.
    pub fn crash(&mut self) {
        self.flying.clear();
    }

    /// Reads the whole disk after a crash, and takes what it shows for what is there.
    pub fn read_all(&mut self, rig: &Rig) {
        self.read_in_steps(rig, 2048, Duration::ZERO);
    }

    /// Reads the whole disk block by block, with a pause after each.
    pub fn read_slowly(&mut self, rig: &Rig, pause: Duration) {
        self.read_in_steps(rig, 8, pause);
    }

    fn read_in_steps(&mut self, rig: &Rig, step: u64, pause: Duration) {
        let core = rig.core();
        let began = self.time;
        for first in (0..self.sectors).step_by(step as usize) {
            let count = step.min(self.sectors - first);
            let token = self.next;
            self.next += 1;
            let offset = first * SECTOR as u64;
            let operation = Operation::Read { offset, length: (count * SECTOR as u64) as u32 };
            core.submit(GuestRequest { token, vdisk: DISK, operation }).unwrap();
            let mut completions = Vec::new();
            let got = rig.world.run_until(
                || {
                    core.completions(&mut completions);
                    !completions.is_empty()
                },
                Duration::from_secs(60),
            );
            assert!(got, "a read ends");
            let completion = completions.pop().unwrap();
            assert_eq!((completion.token, completion.result), (token, Ok(())));
            let data = completion.data.unwrap();
            self.check(first, count, began, &data);
            self.settle(first, &data);
            rig.world.run_for(pause);
        }
    }

    /// Writes the whole disk in order, with content that does not shrink.
    pub fn fill(&mut self, rig: &Rig) {
        let core = rig.core();
        for first in (0..self.sectors).step_by(128) {
            let count = 128.min(self.sectors - first);
            let (token, value) = (self.next, self.next * 2);
            self.next += 1;
            self.time += 1;
            let mut data = Buffer::new(count as usize * SECTOR);
            for (index, out) in data.chunks_exact_mut(SECTOR).enumerate() {
                content(value, first + index as u64, out);
            }
            let operation = Operation::Write { offset: first * SECTOR as u64, data };
            core.submit(GuestRequest { token, vdisk: DISK, operation }).expect("there is room");
            let life = Life { value, taken: self.time, completed: None };
            (first..first + count).for_each(|s| self.history.entry(s).or_default().push(life));
            self.flying.insert(token, Flying::Write { first, count, value });
            rig.host.as_ref().unwrap().0.wake();
            assert!(rig.world.run_until(|| self.complete(&core) > 0, Duration::from_secs(60)));
        }
    }

    fn settle(&mut self, first: u64, data: &[u8]) {
        self.time += 1;
        for (index, found) in data.chunks_exact(SECTOR).enumerate() {
            let sector = first + index as u64;
            let Some(lives) = self.history.get_mut(&sector) else { continue };
            let value = u64::from_le_bytes(found[..8].try_into().unwrap());
            *lives = vec![Life { value, taken: self.time, completed: Some(self.time) }];
        }
    }

    /// Keeps `depth` requests in flight until `count` more were submitted, then lets all end.
    pub fn work(&mut self, rig: &Rig, count: u64, depth: usize) {
        let core = rig.core();
        let until = self.next + count;
        let mut idle = 0;
        while self.next < until || self.in_flight() > 0 {
            let first = self.next;
            while self.next < until && self.in_flight() < depth {
                let before = self.refused;
                self.submit(&core);
                if self.refused > before {
                    break;
                }
            }
            if self.next > first {
                // A wake takes no virtual time: without one, time goes on.
                rig.host.as_ref().unwrap().0.wake();
            }
            idle = if self.complete(&core) > 0 { 0 } else { idle + 1 };
            assert!(idle < 2_000_000, "{} requests hang: {:?}", self.in_flight(), core.stats());
            rig.world.step();
        }
    }
}
