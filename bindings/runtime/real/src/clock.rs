//! The monotonic clock of a core, read once a turn of its reactor.
//!
//! Invariant: moments of all clocks of one process have one origin, so that cores may compare
//! them; they never go back. Between two refreshes the clock stands still.

use cleave_runtime::time::{Clock, Moment};
use std::cell::Cell;
use std::sync::OnceLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The process's origin of moments: one second before the first clock was made, so that no moment
/// is zero.
fn origin() -> Instant {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    *ORIGIN.get_or_init(|| {
        let now = Instant::now();
        now.checked_sub(Duration::from_secs(1)).unwrap_or(now)
    })
}

/// CLOCK_MONOTONIC, cached.
#[derive(Debug)]
pub struct RealClock {
    now: Cell<Instant>,
}

impl RealClock {
    /// A clock that shows the present moment.
    pub fn new() -> RealClock {
        let origin = origin();
        RealClock { now: Cell::new(Instant::now().max(origin)) }
    }

    /// Reads the time; [`Clock::now`] shows it until the next refresh.
    pub fn refresh(&self) -> Moment {
        self.now.set(Instant::now());
        self.now()
    }

    /// The cached time as the standard library's instant.
    pub fn instant(&self) -> Instant {
        self.now.get()
    }

    /// The moment that `instant` is; the origin for instants before it.
    pub fn moment(instant: Instant) -> Moment {
        let nanos = instant.saturating_duration_since(origin()).as_nanos();
        Moment(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl Default for RealClock {
    fn default() -> RealClock {
        RealClock::new()
    }
}

impl Clock for RealClock {
    fn now(&self) -> Moment {
        RealClock::moment(self.now.get())
    }

    fn unix_seconds(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_stands_between_refreshes_and_never_goes_back() {
        let clock = RealClock::new();
        let first = clock.now();
        assert!(first > Moment(0));
        assert_eq!(clock.now(), first);
        assert!(clock.refresh() >= first);
        assert!(RealClock::new().now() >= first);
        assert!(clock.unix_seconds() > 1_700_000_000);
    }
}
