//! What the machine gives a daemon: processors, cores to run on, how long to spin, limits.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::Duration;

/// Engines leave this share of the processors to guests, in percent, unless told otherwise.
const ENGINE_SHARE_PERCENT: usize = 20;
/// With fewer processors than this, guests and the engines of one machine take each other's time:
/// who spins then keeps the one waiting that it waits for.
const SPIN_PROCESSORS_MIN: usize = 8;
/// With fewer processors than this, none can be left alone.
const SPARE_PROCESSORS_MIN: usize = 4;
/// A core that may spin does so for at most this long before it sleeps.
const SPIN_MAX: Duration = Duration::from_micros(50);

/// Processors that this process may use.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Cores of a host engine on a machine with so many processors: a fifth, at least one.
pub fn default_cores(processors: usize) -> usize {
    (processors * ENGINE_SHARE_PERCENT).div_ceil(100).max(1)
}

/// How long a core of an engine may spin: not at all where it would take time from others.
pub fn spin(processors: usize, cores: usize) -> Duration {
    if processors >= SPIN_PROCESSORS_MIN && cores * 2 <= processors {
        SPIN_MAX
    } else {
        Duration::ZERO
    }
}

/// Keeps the calling thread, and those that it starts, off processor 0, which has the machine's
/// interrupts; where processors are few it changes nothing.
pub fn leave_first_processor() -> rustix::io::Result<()> {
    let mut allowed = sched_getaffinity(None)?;
    if let Some(rest) = without_first(&mut allowed) {
        sched_setaffinity(None, rest)?;
    }
    Ok(())
}

fn without_first(allowed: &mut CpuSet) -> Option<&CpuSet> {
    if !allowed.is_set(0) || (allowed.count() as usize) < SPARE_PROCESSORS_MIN {
        return None;
    }
    allowed.unset(0);
    Some(allowed)
}

/// Raises the limits of open files and of locked memory as far as this process may: vdisks have
/// several descriptors each, and io_uring locks its buffers.
pub fn raise_limits() {
    for resource in [Resource::Nofile, Resource::Memlock] {
        let Rlimit { current, maximum } = getrlimit(resource);
        if current != maximum
            && let Err(error) = setrlimit(resource, Rlimit { current: maximum, maximum })
        {
            tracing::debug!(?resource, %error, "a limit stays as it is");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fifth_and_at_least_one() {
        for (processors, cores) in
            [(0, 1), (1, 1), (2, 1), (5, 1), (6, 2), (10, 2), (11, 3), (64, 13), (128, 26)]
        {
            assert_eq!(default_cores(processors), cores, "{processors}");
        }
        assert!(processors() >= 1);
    }

    #[test]
    fn few_processors_are_not_spun_on() {
        assert_eq!(spin(2, 1), Duration::ZERO);
        assert_eq!(spin(8, 5), Duration::ZERO);
        assert_eq!(spin(8, 2), SPIN_MAX);
    }

    #[test]
    fn the_first_processor_is_left_only_where_there_are_others() {
        let mut set = CpuSet::new();
        (0..3).for_each(|cpu| set.set(cpu));
        assert!(without_first(&mut set).is_none());
        set.set(7);
        let rest = *without_first(&mut set).unwrap();
        assert!(!rest.is_set(0) && rest.is_set(1) && rest.count() == 3);
        assert!(without_first(&mut set).is_none());
    }

    #[test]
    fn limits_go_up_to_their_maximum() {
        raise_limits();
        let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
        assert_eq!(current, maximum);
    }
}
