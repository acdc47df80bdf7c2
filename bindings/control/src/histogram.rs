//! Latencies in logarithmic buckets of fixed number: recorded without allocation, merged by adding.
//!
//! Eight buckets an octave, so a percentile is at most 12.5 % above the truth and never below it.
//! From 0 to about 18 minutes; longer ones count as that.

use crate::status::Latency;

/// log2 of the buckets an octave.
const STEP_BITS: u32 = 3;
/// Nanoseconds from here on share the last bucket.
const LIMIT_BITS: u32 = 40;
/// Values below the first octave have a bucket each.
const BUCKETS: usize = ((LIMIT_BITS - STEP_BITS + 1) << STEP_BITS) as usize;

/// A distribution of durations in nanoseconds. One writer; readers get copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    count: u64,
    /// Nanoseconds, saturating.
    sum: u64,
    max: u64,
    buckets: [u64; BUCKETS],
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram::new()
    }
}

impl Histogram {
    /// Nothing recorded.
    pub const fn new() -> Histogram {
        Histogram { count: 0, sum: 0, max: 0, buckets: [0; BUCKETS] }
    }

    /// Counts one duration.
    #[inline]
    pub fn record(&mut self, nanoseconds: u64) {
        self.count += 1;
        self.sum = self.sum.saturating_add(nanoseconds);
        self.max = self.max.max(nanoseconds);
        self.buckets[bucket(nanoseconds)] += 1;
    }

    /// Durations recorded.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The longest one, exactly; 0 when there is none.
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The mean in nanoseconds; 0 when there is none.
    pub fn mean(&self) -> u64 {
        self.sum.checked_div(self.count).unwrap_or(0)
    }

    /// The duration that `percent` of all do not exceed, in nanoseconds: the end of its bucket.
    /// 0 when there is none.
    pub fn percentile(&self, percent: f64) -> u64 {
        let rank = (self.count as f64 * percent / 100.0).ceil() as u64;
        let rank = rank.clamp(1, self.count.max(1));
        let mut below = 0;
        for (index, count) in self.buckets.iter().enumerate() {
            below += count;
            if below >= rank {
                return if index == BUCKETS - 1 { self.max } else { end(index).min(self.max) };
            }
        }
        0
    }

    /// Adds what another one recorded.
    pub fn merge(&mut self, other: &Histogram) {
        self.count += other.count;
        self.sum = self.sum.saturating_add(other.sum);
        self.max = self.max.max(other.max);
        for (mine, theirs) in self.buckets.iter_mut().zip(&other.buckets) {
            *mine += theirs;
        }
    }

    /// The percentiles that statistics show, in microseconds.
    pub fn latency(&self) -> Latency {
        let us = |nanoseconds: u64| nanoseconds.div_ceil(100) as f64 / 10.0;
        Latency {
            mean: us(self.mean()),
            p50: us(self.percentile(50.0)),
            p90: us(self.percentile(90.0)),
            p99: us(self.percentile(99.0)),
            p999: us(self.percentile(99.9)),
            max: us(self.max),
        }
    }
}

#[inline]
fn bucket(nanoseconds: u64) -> usize {
    let value = nanoseconds.min((1 << LIMIT_BITS) - 1);
    if value < 1 << STEP_BITS {
        return value as usize;
    }
    let octave = value.ilog2() - STEP_BITS;
    // The bits below the highest one number the bucket in its octave.
    let step = (value >> octave) - (1 << STEP_BITS);
    (((octave + 1) << STEP_BITS) as u64 + step) as usize
}

/// The largest value of a bucket.
fn end(index: usize) -> u64 {
    let index = index as u64;
    if index < 1 << STEP_BITS {
        return index;
    }
    let octave = (index >> STEP_BITS) - 1;
    let step = index & ((1 << STEP_BITS) - 1);
    (((1 << STEP_BITS) + step + 1) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn buckets_follow_each_other_without_gap() {
        let mut next = 0;
        for index in 0..BUCKETS {
            assert_eq!((bucket(next), bucket(end(index))), (index, index));
            next = end(index) + 1;
        }
        assert_eq!(next, 1 << LIMIT_BITS);
        assert_eq!(bucket(u64::MAX), BUCKETS - 1);
    }

    #[test]
    fn nothing_recorded_is_zero() {
        let empty = Histogram::new();
        assert_eq!((empty.percentile(50.0), empty.max(), empty.mean()), (0, 0, 0));
        assert_eq!(empty.latency(), Latency::default());
    }

    proptest! {
        #[test]
        fn percentiles_are_close_and_never_below(
            mut values in prop::collection::vec(0..1_u64 << 39, 1..300),
            shift in 0..30_u32,
            percent in 0.0..=100.0_f64,
            split in 0..300_usize,
        ) {
            values.iter_mut().for_each(|value| *value >>= shift);
            let (mut all, mut one, mut two) =
                (Histogram::new(), Histogram::new(), Histogram::new());
            for (index, value) in values.iter().enumerate() {
                all.record(*value);
                if index < split { one.record(*value) } else { two.record(*value) }
            }
            one.merge(&two);
            prop_assert_eq!(&one, &all);
            values.sort_unstable();
            let rank = ((values.len() as f64 * percent / 100.0).ceil() as usize).max(1);
            let exact = values[rank - 1];
            let told = all.percentile(percent);
            prop_assert!(told >= exact && told as f64 <= exact as f64 * 1.125 + 1.0);
            prop_assert_eq!(all.max(), *values.last().unwrap());
        }
    }
}
