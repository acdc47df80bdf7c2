//! Random changes of inputs, from a seed: what is done when no coverage leads the way.

/// splitmix64: small, and the same everywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

/// Numbers at which arithmetic goes wrong.
const NOTABLE: [u64; 16] = [
    0,
    1,
    15,
    16,
    127,
    255,
    256,
    511,
    512,
    4096,
    0x7fff,
    0xffff,
    0x7fff_ffff,
    0xffff_ffff,
    i64::MAX as u64,
    u64::MAX,
];

impl Random {
    /// The same seed gives the same changes.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn long(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: usize) -> usize {
        (self.long() % limit as u64) as usize
    }

    /// A new input out of those of the corpus, at most `length_max` bytes.
    pub fn input(&mut self, corpus: &[Vec<u8>], length_max: usize) -> Vec<u8> {
        let mut input = corpus.get(self.below(corpus.len().max(1))).cloned().unwrap_or_default();
        // Mostly few changes: what is nearly valid goes deepest.
        for _ in 0..=self.below(4) * self.below(4) {
            self.change(&mut input, corpus);
        }
        input.truncate(length_max);
        input
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let rest = input.len() - at;
        let count = 1 + self.below(16.min(rest.max(1)));
        match self.below(10) {
            0 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte ^= 1 << self.below(8);
                }
            }
            1 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = self.long() as u8;
                }
            }
            2 => {
                if let Some(byte) = input.get_mut(at) {
                    *byte = byte.wrapping_add(self.below(9) as u8).wrapping_sub(4);
                }
            }
            3 | 4 => {
                let number = NOTABLE[self.below(NOTABLE.len())];
                let number = number.wrapping_add(self.below(3) as u64).wrapping_sub(1);
                let width = (1 << self.below(4)).min(rest);
                input[at..at + width].copy_from_slice(&number.to_le_bytes()[..width]);
            }
            5 => drop(input.drain(at..at + count.min(rest))),
            6 => input.truncate(at),
            7 => {
                let copy: Vec<u8> = input[at..at + count.min(rest)].to_vec();
                let to = self.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            8 => {
                let new: Vec<u8> = (0..count).map(|_| self.long() as u8).collect();
                input.splice(at..at, new);
            }
            _ => {
                let Some(other) = corpus.get(self.below(corpus.len().max(1))) else { return };
                let from = self.below(other.len() + 1);
                let end = from + self.below(other.len() - from + 1);
                let replaced = if self.below(2) == 0 { rest } else { (end - from).min(rest) };
                input.splice(at..at + replaced, other[from..end].iter().copied());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_inputs_within_bounds() {
        let corpus = [b"hello".to_vec(), Vec::new(), vec![7; 100]];
        let (mut one, mut two) = (Random::new(5), Random::new(5));
        let mut changed = 0;
        for _ in 0..10_000 {
            let input = one.input(&corpus, 64);
            assert_eq!(input, two.input(&corpus, 64));
            assert!(input.len() <= 64);
            changed += usize::from(!corpus.contains(&input));
        }
        assert!(changed > 6_000, "most inputs are new: {changed}");
        assert!(Random::new(6).input(&[], 64).len() <= 64);
    }
}
