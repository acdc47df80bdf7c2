//! Which request a guest sends next: a function of the seed.
//!
//! A profile drawn from the seed says how large transfers are, how often they are not whole blocks, and
//! how much of everything falls into a few hot places, so that requests in flight overlap on purpose.

use cleave_runtime::random::Random;
use cleave_verify::model::Sectors;
use std::rc::Rc;

/// Sectors of a block.
pub const BLOCK_SECTORS: u64 = 8;
/// Sectors of a slice.
const SLICE_SECTORS: u64 = 4096;
/// Most sectors of a read or write.
const TRANSFER_SECTORS_MAX: u64 = 256;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Write new content.
    Write(Sectors),
    /// Write zeros as data.
    WriteZeroData(Sectors),
    /// Read and check.
    Read(Sectors),
    /// Make zero.
    Zero(Sectors),
    /// Discard.
    Discard(Sectors),
    /// Flush.
    Flush,
}

impl Request {
    /// The sectors that it may change, if it changes any: of a discard only whole blocks (C6).
    pub fn changes(&self) -> Option<Sectors> {
        let sectors = match self {
            Request::Write(sectors) | Request::WriteZeroData(sectors) | Request::Zero(sectors) => {
                sectors.clone()
            }
            Request::Discard(sectors) => {
                let first = sectors.start.next_multiple_of(BLOCK_SECTORS);
                first..(sectors.end / BLOCK_SECTORS * BLOCK_SECTORS).max(first)
            }
            Request::Read(_) | Request::Flush => return None,
        };
        (!sectors.is_empty()).then_some(sectors)
    }
}

/// What kind of guest it is.
#[derive(Clone, Debug)]
pub struct Profile {
    /// Most blocks of a usual transfer.
    pub blocks: u64,
    /// Share of transfers that are no whole blocks, in percent.
    pub partial: u64,
    /// Share of requests that fall into the hot places, in percent.
    pub hot: u64,
    /// Hot places.
    pub places: u64,
    /// Sectors of a hot place.
    pub place: u64,
    /// Shares of writes, reads, zeroes and discards; the rest are flushes.
    pub shares: [u64; 4],
}

impl Profile {
    /// Draws one.
    pub fn draw(random: &dyn Random) -> Profile {
        let shares = match random.below(4) {
            0 => [80, 15, 2, 2],
            1 => [45, 25, 15, 12],
            2 => [55, 35, 5, 4],
            _ => [65, 15, 10, 8],
        };
        Profile {
            blocks: [2, 4, 8, 16][random.below(4) as usize],
            partial: [0, 5, 20, 50][random.below(4) as usize],
            hot: [10, 30, 60, 90][random.below(4) as usize],
            places: 1 + random.below(6),
            place: [16, 64, 256, 1024][random.below(4) as usize],
            shares,
        }
    }
}

/// A guest's stream of requests.
pub struct Workload {
    random: Rc<dyn Random>,
    profile: Profile,
    sectors: u64,
    /// Some place, and sectors: everything falls there for a while.
    region: Option<(u64, u64)>,
}

impl Workload {
    /// For a disk of that many sectors, a multiple of a block's.
    pub fn new(random: Rc<dyn Random>, sectors: u64) -> Workload {
        let profile = Profile::draw(&*random);
        Workload { random, profile, sectors, region: None }
    }

    /// Everything falls into one region from now on, or anywhere again.
    pub fn focus(&mut self, region: Option<(u64, u64)>) {
        self.region = region;
    }

    /// The disk has so many sectors from now on.
    pub fn grow(&mut self, sectors: u64) {
        self.sectors = sectors;
    }

    /// The profile.
    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    /// The next request.
    pub fn next(&self) -> Request {
        let mut place = self.random.below(100);
        let [writes, reads, zeroes, discards] = self.profile.shares;
        for (kind, share) in [writes, reads, zeroes, discards].into_iter().enumerate() {
            if place < share {
                return match kind {
                    0 if self.random.below(40) == 0 => Request::WriteZeroData(self.transfer()),
                    0 => Request::Write(self.transfer()),
                    1 => Request::Read(self.transfer()),
                    2 => Request::Zero(self.clearance()),
                    _ => Request::Discard(self.clearance()),
                };
            }
            place -= share;
        }
        Request::Flush
    }

    fn transfer(&self) -> Sectors {
        let random = &self.random;
        if random.below(100) < self.profile.partial {
            let length = match random.below(3) {
                0 => 1,
                1 => 1 + random.below(BLOCK_SECTORS),
                _ => 1 + random.below(self.profile.blocks * BLOCK_SECTORS),
            };
            return self.place(length, 1);
        }
        let blocks = match random.below(20) {
            0 => TRANSFER_SECTORS_MAX / BLOCK_SECTORS,
            _ => 1 + random.below(self.profile.blocks),
        };
        self.place(blocks * BLOCK_SECTORS, BLOCK_SECTORS)
    }

    fn clearance(&self) -> Sectors {
        let random = &self.random;
        match random.below(16) {
            0..4 => self.place(1 + random.below(64), 1),
            4 => self.place(BLOCK_SECTORS * (1 + random.below(700)), BLOCK_SECTORS),
            _ => self.place(BLOCK_SECTORS * (1 + random.below(16)), BLOCK_SECTORS),
        }
    }

    fn place(&self, length: u64, alignment: u64) -> Sectors {
        let random = &self.random;
        let length = length.min(self.sectors);
        let last = self.sectors - length;
        if let Some((place, region)) = self.region {
            let start = place % (last + 1);
            let first = (start + random.below(region)).min(last) / alignment * alignment;
            return first..first + length;
        }
        let first = if random.below(100) < self.profile.hot {
            let stride = self.sectors / self.profile.places;
            let base = random.below(self.profile.places) * stride;
            base + random.below(self.profile.place)
        } else if random.below(8) == 0 {
            // Across or at the border of two slices: several records, or a slice's last block.
            let border = random.below(self.sectors.div_ceil(SLICE_SECTORS) + 1) * SLICE_SECTORS;
            border.saturating_sub(random.below(length + 1))
        } else {
            random.below(last + 1)
        };
        let first = first.min(last) / alignment * alignment;
        first..first + length
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_runtime::random::SplitMix;

    #[test]
    fn requests_stay_on_the_disk() {
        for seed in 0..50 {
            let sectors = BLOCK_SECTORS * (1 + SplitMix::new(seed).below(4000));
            let workload = Workload::new(Rc::new(SplitMix::new(seed)), sectors);
            let mut kinds = [0; 6];
            for _ in 0..2000 {
                let (kind, range) = match workload.next() {
                    Request::Write(range) => (0, range),
                    Request::WriteZeroData(range) => (1, range),
                    Request::Read(range) => (2, range),
                    Request::Zero(range) => (3, range),
                    Request::Discard(range) => (4, range),
                    Request::Flush => (5, 0..1),
                };
                kinds[kind] += 1;
                assert!(range.start < range.end && range.end <= sectors, "{range:?} of {sectors}");
            }
            assert!(kinds.iter().all(|count| *count > 0), "{kinds:?}");
        }
    }

    #[test]
    fn a_discard_changes_whole_blocks_only() {
        assert_eq!(Request::Discard(1..8).changes(), None);
        assert_eq!(Request::Discard(1..17).changes(), Some(8..16));
        assert_eq!(Request::Zero(1..17).changes(), Some(1..17));
    }
}
