//! How many data shards a stripe has (DESIGN §2).

use cleave_format::layout::{DATA_SHARDS_MAX, PARITY_SHARDS};

/// Fewest drives of a pool, and fewest in use for new stripes: 1 + 2.
pub const DRIVES_MIN: usize = 1 + PARITY_SHARDS;

/// Drives' worth of space that is kept for rebuild, spread over all of them.
pub fn spare_drives(configured: usize) -> usize {
    match configured {
        0..6 => 0,
        6..12 => 1,
        _ => 2,
    }
}

/// Data shards of a stripe (k) with all configured drives in use; `None` below 3 drives.
pub fn data_shards(configured: usize) -> Option<usize> {
    let data_shards = configured.checked_sub(PARITY_SHARDS + spare_drives(configured))?;
    (data_shards > 0).then_some(data_shards.min(DATA_SHARDS_MAX))
}

/// Data shards of a new stripe (k) with `in_use` of the configured drives in use: narrower when there are
/// fewer than k + 2. `None` below 3: writes stall and reads go on.
pub fn data_shards_now(configured: usize, in_use: usize) -> Option<usize> {
    let wide = data_shards(configured)?;
    let possible = in_use.checked_sub(PARITY_SHARDS)?;
    (possible > 0).then_some(wide.min(possible))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn widths_are_those_of_the_design() {
        let widths: Vec<_> = (0..=13).map(data_shards).collect();
        let expected = [0, 0, 0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 8, 8];
        assert_eq!(widths, expected.map(|k| (k > 0).then_some(k)));
        assert_eq!(data_shards(120), Some(8));
    }

    #[test]
    fn fewer_drives_in_use_make_narrower_stripes_down_to_three() {
        let widths: Vec<_> = (0..=12).map(|in_use| data_shards_now(12, in_use)).collect();
        let expected = [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 8, 8];
        assert_eq!(widths, expected.map(|k| (k > 0).then_some(k)));
        assert_eq!(data_shards_now(2, 12), None);
        for configured in DRIVES_MIN..=120 {
            for in_use in DRIVES_MIN..=configured {
                let k = data_shards_now(configured, in_use).unwrap();
                assert!(k + PARITY_SHARDS <= in_use);
            }
        }
    }
}
