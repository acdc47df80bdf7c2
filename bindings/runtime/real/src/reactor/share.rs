//! How a core divides its time: the share of background tasks, and how long to spin.

use cleave_runtime::time::Moment;
use std::time::Duration;

/// The foreground counts as active for this long after its last work.
const ACTIVE: Duration = Duration::from_micros(50);

/// Accounts are halved when they cover this much time, so that they follow the present.
const MEMORY: Duration = Duration::from_millis(2);

/// Background tasks get their share of wall time while the foreground is active, and everything
/// otherwise. Wall time, not busy time: an empty poll must not count as somebody's use.
#[derive(Debug)]
pub(super) struct Share {
    fraction: f64,
    spent: Duration,
    total: Duration,
    foreground_at: Option<Moment>,
}

impl Share {
    pub(super) fn new(percent: u8) -> Share {
        let (spent, total) = (Duration::ZERO, Duration::ZERO);
        let mut share = Share { fraction: 0.0, spent, total, foreground_at: None };
        share.set(percent);
        share
    }

    pub(super) fn set(&mut self, percent: u8) {
        self.fraction = f64::from(percent.clamp(1, 100)) / 100.0;
    }

    /// A turn began; `since` the one before, without sleep.
    pub(super) fn pass(&mut self, begin: Moment, since: Duration, foreground: bool) {
        if foreground {
            self.foreground_at = Some(begin);
        }
        self.total += since;
        if self.total > MEMORY {
            self.total /= 2;
            self.spent /= 2;
        }
    }

    /// Whether a background task may run now.
    pub(super) fn may_run(&self, now: Moment) -> bool {
        let quiet = self.foreground_at.is_none_or(|at| now.since(at) > ACTIVE);
        quiet || self.spent.as_secs_f64() < self.fraction * self.total.as_secs_f64()
    }

    pub(super) fn spend(&mut self, spent: Duration) {
        self.spent += spent;
    }
}

/// The mean gap between events: spinning for longer than twice that rarely meets the next one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gaps {
    last: Moment,
    mean: Duration,
}

impl Gaps {
    pub(super) fn new(now: Moment) -> Gaps {
        Gaps { last: now, mean: Duration::ZERO }
    }

    pub(super) fn event(&mut self, now: Moment) {
        let gap = now.since(self.last);
        self.last = now;
        self.mean = (self.mean * 7 + gap) / 8;
    }

    pub(super) fn last_event(&self) -> Moment {
        self.last
    }

    /// How long to spin after the last event.
    pub(super) fn spin(&self, limit: Duration) -> Duration {
        limit.min(self.mean * 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICROSECOND: Duration = Duration::from_micros(1);

    /// Turns of 10 µs, one background unit of 50 µs whenever it may run; returns its part.
    fn background_part(percent: u8, foreground: bool) -> f64 {
        let mut share = Share::new(percent);
        let (mut now, mut since) = (Moment(1), Duration::ZERO);
        let mut spent = Duration::ZERO;
        for _ in 0..100_000 {
            share.pass(now, since, foreground);
            since = 10 * MICROSECOND;
            if share.may_run(now) {
                share.spend(50 * MICROSECOND);
                spent += 50 * MICROSECOND;
                since += 50 * MICROSECOND;
            }
            now = now + since;
        }
        spent.as_secs_f64() / now.since(Moment(1)).as_secs_f64()
    }

    #[test]
    fn background_gets_its_share_beside_the_foreground_and_everything_without() {
        for percent in [10, 25, 50] {
            let part = background_part(percent, true);
            assert!((part - f64::from(percent) / 100.0).abs() < 0.02, "{percent}: {part}");
        }
        // 50 µs of each 60 µs turn: all but the turns' own cost.
        assert!(background_part(10, false) > 0.8);
    }

    #[test]
    fn spinning_follows_the_gaps_up_to_its_limit() {
        let limit = 50 * MICROSECOND;
        let mut gaps = Gaps::new(Moment(0));
        assert_eq!(gaps.spin(limit), Duration::ZERO);
        for event in 1..100u64 {
            gaps.event(Moment(event * 5_000));
        }
        assert!(gaps.spin(limit) > 9 * MICROSECOND && gaps.spin(limit) <= 10 * MICROSECOND);
        gaps.event(Moment(1_000_000_000));
        assert_eq!(gaps.spin(limit), limit);
        assert_eq!(gaps.spin(Duration::ZERO), Duration::ZERO);
    }
}
