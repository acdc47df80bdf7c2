//! What the machine gives a daemon: processors, cores to run on, how long to spin, limits.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use std::time::Duration;

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

/// The processors that the calling thread may use, in order; none when the system does not say.
pub fn allowed_processors() -> Vec<usize> {
    let allowed = sched_getaffinity(None).ok();
    let set = |cpu: &usize| allowed.as_ref().is_some_and(|allowed| allowed.is_set(*cpu));
    (0..CpuSet::MAX_CPU).filter(set).collect()
}

/// Whether so few processors are better left to the system's scheduler than given to single threads.
pub fn are_few(processors: usize) -> bool {
    processors < SPARE_PROCESSORS_MIN
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
    fn the_allowed_processors_are_counted() {
        assert!(processors() >= 1);
        let allowed = allowed_processors();
        assert!(!allowed.is_empty() && allowed.is_sorted());
        assert!(are_few(2) && !are_few(64));
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
