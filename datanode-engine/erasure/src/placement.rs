//! Which drives hold a stripe's shards.
//!
//! Every stripe draws its own set of drives (declustered): a lost drive's stripes are spread over all
//! others, which rebuild it together. The draw is weighted by free slots, so that drives fill evenly
//! whatever their sizes are, and follows from the stripe's identity and the candidates alone: same
//! input, same drives, on every machine (no floating point). The order of the drawn drives, and with it where
//! parity lies, is a second draw that does not know the weights.

use cleave_format::ids::{DriveId, StripeId};

/// A drive that may hold a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The drive.
    pub drive: DriveId,
    /// Its free slots: its weight; a drive without any is not drawn.
    pub free_slots: u32,
    /// Whether it is in use; a lost drive is not drawn.
    pub active: bool,
}

/// Draws `width` different drives for a stripe's shards, data first, then parity. `None` when fewer
/// active drives have a free slot. The order of the candidates has no effect.
///
/// # Panics
/// When a drive is named twice (our own bug).
pub fn choose(stripe: StripeId, width: usize, candidates: &[Candidate]) -> Option<Vec<DriveId>> {
    let usable = candidates.iter().filter(|candidate| candidate.active && candidate.free_slots > 0);
    // Of independent exponential times, each at the rate of its weight, the first are a draw
    // proportional to the weights without replacement.
    let mut times: Vec<(u64, DriveId)> = usable
        .map(|candidate| {
            let time = exponential(mix(stripe, candidate.drive, 1));
            // 2^26 more than whole, so that large weights keep their precision.
            let scaled = (u128::from(time) << 26) / u128::from(candidate.free_slots);
            (u64::try_from(scaled).unwrap_or(u64::MAX), candidate.drive)
        })
        .collect();
    if times.len() < width {
        return None;
    }
    times.sort_unstable();
    let mut drives: Vec<DriveId> = times.into_iter().take(width).map(|(_, drive)| drive).collect();
    drives.sort_unstable_by_key(|drive| (mix(stripe, *drive, 2), *drive));
    let mut distinct = drives.clone();
    distinct.sort_unstable();
    assert!(distinct.windows(2).all(|pair| pair[0] != pair[1]), "candidates are different drives");
    Some(drives)
}

/// 64 well-mixed bits of a stripe, a drive and the purpose (SplitMix64's finaliser, twice).
fn mix(stripe: StripeId, drive: DriveId, purpose: u64) -> u64 {
    let finalise = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let name = u64::from(drive.0) << 8 | purpose;
    finalise(finalise(stripe.0.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(name))
}

/// `-log2(u)` of the number u in (0, 1] that the bits stand for, with 32 binary places: at most 64.
fn exponential(bits: u64) -> u64 {
    // Never 0; at 1 the logarithm is the largest.
    let bits = bits.max(1);
    let shift = bits.leading_zeros();
    // The mantissa in [1, 2), with 63 binary places; squaring it yields the logarithm's places one by one.
    let mut mantissa = bits << shift;
    let mut places: u64 = 0;
    for _ in 0..32 {
        let square = (u128::from(mantissa) * u128::from(mantissa)) >> 63;
        places <<= 1;
        if square >> 64 != 0 {
            places |= 1;
            mantissa = (square >> 1) as u64;
        } else {
            mantissa = square as u64;
        }
    }
    // u = 2^-(shift + 1) * mantissa, hence -log2(u) = shift + 1 - log2(mantissa).
    ((u64::from(shift) + 1) << 32) - places
}

#[cfg(test)]
mod tests;
