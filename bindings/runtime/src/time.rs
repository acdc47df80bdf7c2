//! Time as an input: moments of a monotonic clock that may be real or virtual.

use std::ops::{Add, Sub};
use std::time::Duration;

/// A point of the monotonic clock, in nanoseconds since an origin that the clock chose.
/// Moments of different clocks may not be compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The time since `earlier`; zero when `earlier` is later.
    pub fn since(self, earlier: Moment) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Moment {
    type Output = Moment;
    fn add(self, span: Duration) -> Moment {
        let nanos = u64::try_from(span.as_nanos()).unwrap_or(u64::MAX);
        Moment(self.0.saturating_add(nanos))
    }
}

impl Sub<Moment> for Moment {
    type Output = Duration;
    fn sub(self, earlier: Moment) -> Duration {
        self.since(earlier)
    }
}

/// A monotonic clock.
pub trait Clock {
    /// The present moment. Cheap: the real clock is read once a turn of the reactor.
    fn now(&self) -> Moment;
    /// Seconds since the Unix epoch, for people and logs only; logic never decides by it.
    fn unix_seconds(&self) -> u64;
}
