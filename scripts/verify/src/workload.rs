//! Which request comes next: a function of the seed alone.
//!
//! Mostly writes of 4 to 64 KiB; also single sectors and other lengths that are not whole blocks; zeroes and
//! discards, some large; reads; flushes. A third of all requests fall into a few small hot regions, so
//! that they overlap with others in flight.

use crate::content::SECTOR;
use crate::model::Sectors;
use crate::random::Random;

/// Most bytes of a read or write.
pub const TRANSFER_MAX: usize = 64 << 10;

const BLOCK_SECTORS: u64 = 8;
const HOT_REGIONS: u64 = 4;
const HOT_SECTORS: u64 = 512;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Write new content.
    Write(Sectors),
    /// Read and check.
    Read(Sectors),
    /// Make zero; the flag allows the engine to free the space.
    Zero(Sectors, bool),
    /// Discard.
    Discard(Sectors),
    /// Flush.
    Flush,
}

/// What the device takes.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Sectors of the disk, or of the part in use; at least one hot region.
    pub sectors: u64,
    /// Most sectors of a discard; 0 when the device has none.
    pub discard_sectors_max: u64,
    /// Most sectors of a write-zeroes; 0 when the device has none.
    pub zero_sectors_max: u64,
}

/// The stream of requests.
pub struct Workload {
    random: Random,
    limits: Limits,
}

impl Workload {
    /// The stream of this seed.
    pub fn new(seed: u64, limits: Limits) -> Workload {
        Workload { random: Random::new(seed), limits }
    }

    /// The next request.
    pub fn request(&mut self) -> Request {
        match self.random.below(100) {
            0..55 => Request::Write(self.transfer()),
            55..82 => Request::Read(self.transfer()),
            82..90 if self.limits.zero_sectors_max > 0 => {
                let unmap = self.random.below(2) == 0;
                Request::Zero(self.clearance(self.limits.zero_sectors_max), unmap)
            }
            90..98 if self.limits.discard_sectors_max > 0 => {
                Request::Discard(self.clearance(self.limits.discard_sectors_max))
            }
            98.. => Request::Flush,
            _ => Request::Write(self.transfer()),
        }
    }

    fn transfer(&mut self) -> Sectors {
        let longest = (TRANSFER_MAX / SECTOR) as u64;
        match self.random.below(10) {
            // Whole blocks.
            0..6 => {
                let length = BLOCK_SECTORS * (1 + self.random.below(longest / BLOCK_SECTORS));
                self.place(length, BLOCK_SECTORS)
            }
            6..8 => self.place(BLOCK_SECTORS, BLOCK_SECTORS),
            8 => self.place(1, 1),
            // Any length at any sector.
            _ => {
                let length = 1 + self.random.below(longest);
                self.place(length, 1)
            }
        }
    }

    fn clearance(&mut self, longest: u64) -> Sectors {
        match self.random.below(8) {
            0 => {
                let length = 1 + self.random.below(longest.min(64));
                self.place(length, 1)
            }
            1 => {
                let length = BLOCK_SECTORS * (1 + self.random.below(2048));
                self.place(length.min(longest), BLOCK_SECTORS)
            }
            _ => {
                let length = BLOCK_SECTORS * (1 + self.random.below(32));
                self.place(length.min(longest), BLOCK_SECTORS)
            }
        }
    }

    fn place(&mut self, length: u64, alignment: u64) -> Sectors {
        let sectors = self.limits.sectors;
        let length = length.min(sectors);
        let (base, span) = if self.random.below(3) == 0 && length < HOT_SECTORS {
            let region = self.random.below(HOT_REGIONS);
            let stride = sectors / HOT_REGIONS / BLOCK_SECTORS * BLOCK_SECTORS;
            let base = region * stride;
            (base, HOT_SECTORS.min(sectors - base).max(length))
        } else {
            (0, sectors)
        };
        let base = base.min(sectors - length);
        let span = span.min(sectors - base);
        let first = base + self.random.below(span - length + 1);
        let first = first / alignment * alignment;
        first..first + length
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_stay_on_the_disk_and_repeat_with_their_seed() {
        for sectors in [512, 600, 8 << 11, 8 << 21] {
            let limits = Limits { sectors, discard_sectors_max: 8192, zero_sectors_max: 8192 };
            let (mut one, mut two) = (Workload::new(9, limits), Workload::new(9, limits));
            let mut kinds = [0; 5];
            for _ in 0..20_000 {
                let request = one.request();
                assert_eq!(request, two.request());
                let (kind, range) = match request {
                    Request::Write(range) => (0, range),
                    Request::Read(range) => (1, range),
                    Request::Zero(range, _) => (2, range),
                    Request::Discard(range) => (3, range),
                    Request::Flush => (4, 0..1),
                };
                kinds[kind] += 1;
                assert!(range.start < range.end && range.end <= sectors, "{range:?} of {sectors}");
            }
            assert!(kinds.iter().all(|&count| count > 100), "{kinds:?}");
        }
    }
}
