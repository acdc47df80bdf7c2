//! Damage that reads met is told to the controller, which looks itself and mends it: content of a stripe that was read and
//! failed its check (C3).
//!
//! Invariants: only who finds damage gets here, never a read that succeeds; a stripe is told once in [`AGAIN`], and of at
//! most [`KEPT`] stripes that is known. What cannot be told is dropped: it is met again, or the controller's scrub finds it.

use crate::state::State;
use cleave_format::ids::StripeId;
use cleave_runtime::links::Class;
use cleave_runtime::time::Moment;
use cleave_wire::{HostMessage, encode_header};
use std::collections::VecDeque;
use std::time::Duration;

/// A stripe is told again after this.
const AGAIN: Duration = Duration::from_secs(30);
/// Stripes of which it is remembered when they were told; while as many were told within [`AGAIN`], no other is.
const KEPT: usize = 64;

/// Stripes that were told, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct Suspects(VecDeque<(StripeId, Moment)>);

impl Suspects {
    /// Whether a stripe is to be told now.
    fn take(&mut self, stripe: StripeId, now: Moment) -> bool {
        while self.0.front().is_some_and(|(_, at)| now.since(*at) >= AGAIN) {
            self.0.pop_front();
        }
        let known = self.0.iter().any(|(told, _)| *told == stripe);
        if known || self.0.len() == KEPT {
            return false;
        }
        self.0.push_back((stripe, now));
        true
    }
}

impl State {
    /// Content of a stripe was read from the pool and failed its check.
    pub fn tell_damaged(&mut self, stripe: StripeId) {
        let Some(connection) = self.ready(Class::Read) else { return };
        if self.suspects.take(stripe, self.now) {
            let message = encode_header(&HostMessage::Damaged { stripes: vec![stripe] });
            let _ = self.links.send(connection, 0, &[message]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_and_never_too_many() {
        let mut suspects = Suspects::default();
        let now = Moment::default();
        let told = |suspects: &mut Suspects, now| {
            (0..1000).filter(|stripe| suspects.take(StripeId(*stripe), now)).count()
        };
        assert_eq!(told(&mut suspects, now), KEPT);
        assert_eq!(told(&mut suspects, now), 0);
        assert!(!suspects.take(StripeId(7), now + AGAIN / 2));
        assert_eq!(told(&mut suspects, now + AGAIN), KEPT);
        assert_eq!(suspects.0.len(), KEPT);
    }
}
