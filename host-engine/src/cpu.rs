//! How many cores the engine runs on, and on which processors: what the operator decided, for this machine.
//!
//! A fifth of the processors is the engine's, rounded up, two fifths in Insane Mode; a number that the operator gave
//! counts in place of both. There are never more cores than processors, so none waits for another's spinning.

use cleave_control::config::HostConfig;

/// Percent of the processors, usually and in Insane Mode.
const SHARE: usize = 20;
const INSANE_SHARE: usize = 40;

/// What the operator decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CpuPolicy {
    /// Insane Mode.
    pub insane: bool,
    /// Cores; 0: by their share.
    pub cores: u16,
}

impl CpuPolicy {
    /// As configured.
    pub fn of(config: &HostConfig) -> CpuPolicy {
        CpuPolicy { insane: config.insane, cores: config.cores }
    }

    /// Cores on a machine with so many processors: at least one.
    pub fn wanted(self, processors: usize) -> u16 {
        let percent = if self.insane { INSANE_SHARE } else { SHARE };
        let by_share = (processors * percent).div_ceil(100);
        let wanted = if self.cores > 0 { usize::from(self.cores) } else { by_share };
        u16::try_from(wanted.clamp(1, processors.max(1))).unwrap_or(u16::MAX)
    }
}

/// The processor of the core with this place among the engine's cores, of those that may be used; `None`: whichever the
/// system chooses, because they are few.
pub fn processor(place: usize, allowed: &[usize], few: bool) -> Option<usize> {
    if few { None } else { allowed.get(place).copied() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_or_two_and_at_least_one() {
        let (calm, insane) = (CpuPolicy::default(), CpuPolicy { insane: true, cores: 0 });
        for (processors, usual, most) in [
            (0, 1, 1),
            (1, 1, 1),
            (2, 1, 1),
            (3, 1, 2),
            (5, 1, 2),
            (6, 2, 3),
            (10, 2, 4),
            (11, 3, 5),
            (64, 13, 26),
            (128, 26, 52),
        ] {
            assert_eq!(calm.wanted(processors), usual, "{processors}");
            assert_eq!(insane.wanted(processors), most, "{processors}");
        }
    }

    #[test]
    fn a_number_counts_and_is_never_more_than_there_are_processors() {
        for insane in [false, true] {
            assert_eq!(CpuPolicy { insane, cores: 3 }.wanted(8), 3);
            assert_eq!(CpuPolicy { insane, cores: 9 }.wanted(8), 8);
            assert_eq!(CpuPolicy { insane, cores: 2 }.wanted(0), 1);
        }
    }

    #[test]
    fn each_core_has_a_processor_of_its_own_where_there_are_enough() {
        let allowed = [1, 2, 5, 7];
        assert_eq!(processor(2, &allowed, false), Some(5));
        assert_eq!(processor(4, &allowed, false), None);
        assert_eq!(processor(0, &[0, 1], true), None);
    }
}
