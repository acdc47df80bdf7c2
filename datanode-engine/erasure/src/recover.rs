//! One or two lost shards of a stripe, for any 64-byte aligned range, by linear algebra: the cost is that
//! of the range, where a general decoder spends 200 µs before the first byte.
//!
//! With X the sum of `factor[0][j] * data[j]` and Y the sum of `data[j]` over the data shards that are
//! there (see `code`):
//! - one data shard, both parities there: the sum of Y and the parities; no multiplication;
//! - one parity shard: the sum of Y and the other parity;
//! - one data shard and only parity u there: (X or X + Y, + parity u) / factor\[u\]\[lost\];
//! - two data shards i, j: with S = Y + both parities,
//!   i = (X + parity 0 + factor\[0\]\[j\] * S) / (factor\[0\]\[i\] + factor\[0\]\[j\]), and j = S + i;
//! - both parity shards: X, and X + Y.

use cleave_format::layout::{DATA_SHARDS_MAX, PARITY_SHARDS};
use reed_solomon_simd::engine::utils::xor;
use reed_solomon_simd::engine::{DefaultEngine, Engine, GfElement};

use crate::code::{CHUNK, Code, inverse, logarithm};

type Chunk = [u8; CHUNK];

/// Chunks that are worked on at once: the buffers stay in the first-level cache.
const BATCH: usize = 32;

/// Why shards cannot be recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecoverError {
    /// More than two shards of the stripe are missing.
    #[error("{missing} shards of a stripe are missing, and only 2 can be recovered")]
    TooManyMissing {
        /// How many.
        missing: usize,
    },
}

/// Recovers lost shards of stripes of any width. Cheap to keep; one a core.
pub struct Solver {
    codes: [Code; DATA_SHARDS_MAX],
    engine: DefaultEngine,
}

/// The shards of a stripe, as chunks.
struct Shards<'a> {
    all: [Option<&'a [Chunk]>; DATA_SHARDS_MAX + PARITY_SHARDS],
    data_shards: usize,
}

impl<'a> Shards<'a> {
    fn data(&self) -> &[Option<&'a [Chunk]>] {
        &self.all[..self.data_shards]
    }

    fn parity(&self, index: usize) -> Option<&'a [Chunk]> {
        self.all[self.data_shards + index]
    }
}

/// What is missing, in the order in which it is solved.
#[derive(Clone, Copy)]
enum Missing {
    Nothing,
    /// A data shard; both parities are there.
    Data(usize),
    /// A data shard and a parity shard (its number, 0 or 1).
    DataAndParity(usize, usize),
    TwoData(usize, usize),
    /// A parity shard; all data is there.
    Parity(usize),
    BothParity,
}

/// Working memory of one batch.
struct Batch {
    x: [Chunk; BATCH],
    y: [Chunk; BATCH],
    work: [Chunk; BATCH],
}

impl Solver {
    /// A solver, warmed up: the first one of a process takes about 10 ms for its tables.
    ///
    /// # Panics
    /// When the code is not the one that stripes at rest have.
    pub fn new() -> Solver {
        let codes = std::array::from_fn(|index| Code::new(index + 1));
        Solver { codes, engine: DefaultEngine::new() }
    }

    /// Recovers shards. `shards` are the same range of all k + 2 shards of a stripe, data first, `None` where
    /// missing (lost, or not read because it is not needed); at most two may be. `wanted` names missing
    /// shards and where their range goes.
    ///
    /// # Panics
    /// When there are not 3 to 10 shards, a wanted one is not missing, or the lengths differ or are not
    /// multiples of 64 (our own bug).
    pub fn recover(
        &self,
        shards: &[Option<&[u8]>],
        wanted: &mut [(usize, &mut [u8])],
    ) -> Result<(), RecoverError> {
        assert!(shards.len() > PARITY_SHARDS && shards.len() <= DATA_SHARDS_MAX + PARITY_SHARDS);
        let Some(length) = wanted.first().map(|(_, out)| out.len()) else { return Ok(()) };
        assert!(length.is_multiple_of(CHUNK), "ranges are made of whole chunks");
        assert!(shards.iter().flatten().all(|shard| shard.len() == length));
        for (index, out) in wanted.iter() {
            assert!(shards[*index].is_none() && out.len() == length, "wanted shards are missing");
        }
        let missing = shards.iter().filter(|shard| shard.is_none()).count();
        if missing > PARITY_SHARDS {
            return Err(RecoverError::TooManyMissing { missing });
        }

        let data_shards = shards.len() - PARITY_SHARDS;
        let mut all = [None; DATA_SHARDS_MAX + PARITY_SHARDS];
        for (chunks, shard) in all.iter_mut().zip(shards) {
            *chunks = shard.map(|shard| shard.as_chunks().0);
        }
        let shards = Shards { all, data_shards };
        let missing = classify(&shards);
        let mut batch =
            Batch { x: [[0; CHUNK]; BATCH], y: [[0; CHUNK]; BATCH], work: [[0; CHUNK]; BATCH] };
        for start in (0..length / CHUNK).step_by(BATCH) {
            let end = (length / CHUNK).min(start + BATCH);
            let part = Shards { all: shards.all.map(|s| s.map(|s| &s[start..end])), data_shards };
            let solved = self.solve(&part, missing, end - start, &mut batch);
            for (index, out) in wanted.iter_mut() {
                let found = solved.iter().flatten().find(|(solved, _)| solved == index);
                let (_, chunks) = found.expect("everything that is missing was solved");
                out[start * CHUNK..end * CHUNK].copy_from_slice(chunks.as_flattened());
            }
        }
        Ok(())
    }

    /// Solves one batch of `count` chunks: the missing shards' numbers and content.
    fn solve<'b>(
        &self,
        shards: &Shards<'_>,
        missing: Missing,
        count: usize,
        batch: &'b mut Batch,
    ) -> [Option<(usize, &'b [Chunk])>; PARITY_SHARDS] {
        let k = shards.data_shards;
        let [first, second] = &self.codes[k - 1].factor;
        let Batch { x, y, work } = batch;
        let (x, y, work) = (&mut x[..count], &mut y[..count], &mut work[..count]);
        if k == 1 {
            return self.solve_copies(shards, missing, x, y);
        }
        let parity = |index: usize| shards.parity(index).expect("it is not missing");
        match missing {
            Missing::Nothing => [None, None],
            Missing::Data(lost) => {
                sum(shards, y);
                xor(y, parity(0));
                xor(y, parity(1));
                [Some((lost, y)), None]
            }
            Missing::Parity(lost) => {
                sum(shards, y);
                xor(y, parity(1 - lost));
                [Some((k + lost, y)), None]
            }
            Missing::BothParity => {
                self.sums(shards, x, y, work);
                xor(y, x);
                [Some((k, x)), Some((k + 1, y))]
            }
            Missing::DataAndParity(lost, lost_parity) => {
                let other = 1 - lost_parity;
                self.sums(shards, x, y, work);
                if other == 1 {
                    xor(x, y);
                }
                xor(x, parity(other));
                self.multiply(x, inverse([first, second][other][lost]));
                xor(y, parity(other));
                xor(y, x);
                [Some((lost, x)), Some((k + lost_parity, y))]
            }
            Missing::TwoData(i, j) => {
                self.sums(shards, x, y, work);
                xor(x, parity(0));
                xor(y, parity(0));
                xor(y, parity(1));
                work.copy_from_slice(y);
                self.multiply(work, first[j]);
                xor(x, work);
                self.multiply(x, inverse(first[i] ^ first[j]));
                xor(y, x);
                [Some((i, x)), Some((j, y))]
            }
        }
    }

    /// k = 1: each shard is a multiple of each other one.
    fn solve_copies<'b>(
        &self,
        shards: &Shards<'_>,
        missing: Missing,
        x: &'b mut [Chunk],
        y: &'b mut [Chunk],
    ) -> [Option<(usize, &'b [Chunk])>; PARITY_SHARDS] {
        let factor = self.codes[0].factor.map(|factors| factors[0]);
        let data = |x: &mut [Chunk], from: usize| {
            x.copy_from_slice(shards.parity(from).expect("it is not missing"));
            self.multiply(x, inverse(factor[from]));
        };
        match missing {
            Missing::Nothing => [None, None],
            Missing::Data(_) => {
                data(x, 0);
                [Some((0, x)), None]
            }
            Missing::DataAndParity(_, lost) => {
                data(x, 1 - lost);
                y.copy_from_slice(x);
                self.multiply(y, factor[lost]);
                [Some((0, x)), Some((1 + lost, y))]
            }
            Missing::Parity(lost) => {
                x.copy_from_slice(shards.all[0].expect("it is not missing"));
                self.multiply(x, factor[lost]);
                [Some((1 + lost, x)), None]
            }
            Missing::BothParity => {
                x.copy_from_slice(shards.all[0].expect("it is not missing"));
                y.copy_from_slice(x);
                self.multiply(x, factor[0]);
                self.multiply(y, factor[1]);
                [Some((1, x)), Some((2, y))]
            }
            Missing::TwoData(..) => unreachable!("there is one data shard"),
        }
    }

    /// X and Y over the data shards that are there. For neighbours a, b with factors f, f + 1:
    /// `f a + (f + 1) b = a + (f + 1) (a + b)`, one multiplication.
    fn sums(&self, shards: &Shards<'_>, x: &mut [Chunk], y: &mut [Chunk], work: &mut [Chunk]) {
        let [first, _] = &self.codes[shards.data_shards - 1].factor;
        x.fill([0; CHUNK]);
        y.fill([0; CHUNK]);
        for (pair, factors) in shards.data().chunks(2).zip(first.chunks(2)) {
            let (a, b) = (pair[0], pair.get(1).copied().flatten());
            match (a, b) {
                (Some(a), Some(b)) => {
                    work.copy_from_slice(a);
                    xor(work, b);
                    xor(x, a);
                }
                (Some(a), None) => {
                    work.copy_from_slice(a);
                    xor(x, a);
                }
                (None, Some(b)) => work.copy_from_slice(b),
                (None, None) => continue,
            }
            xor(y, work);
            let factor = factors[0] ^ 1;
            if factor != 0 {
                self.multiply(work, factor);
                xor(x, work);
            }
        }
    }

    /// Multiplies by a factor other than 0.
    fn multiply(&self, chunks: &mut [Chunk], factor: GfElement) {
        if factor != 1 {
            self.engine.mul(chunks, logarithm(factor));
        }
    }
}

impl Default for Solver {
    fn default() -> Solver {
        Solver::new()
    }
}

/// Y over the data shards that are there.
fn sum(shards: &Shards<'_>, y: &mut [Chunk]) {
    let mut data = shards.data().iter().flatten();
    match data.next() {
        Some(first) => y.copy_from_slice(first),
        None => y.fill([0; CHUNK]),
    }
    for shard in data {
        xor(y, shard);
    }
}

fn classify(shards: &Shards<'_>) -> Missing {
    let mut data = shards.data().iter().enumerate().filter(|(_, s)| s.is_none()).map(|(i, _)| i);
    let (i, j) = (data.next(), data.next());
    let parity = [0, 1].map(|index| shards.parity(index).is_some());
    match (i, j, parity) {
        (None, _, [true, true]) => Missing::Nothing,
        (None, _, [false, false]) => Missing::BothParity,
        (None, _, [there, _]) => Missing::Parity(usize::from(there)),
        (Some(i), Some(j), _) => Missing::TwoData(i, j),
        (Some(i), None, [true, true]) => Missing::Data(i),
        (Some(i), None, [there, _]) => Missing::DataAndParity(i, usize::from(there)),
    }
}

#[cfg(test)]
mod tests;
