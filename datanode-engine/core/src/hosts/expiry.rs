//! Grants of hosts that are away end (C15).
//!
//! A grant is renewed for as long as its host incarnation has a log connection: the link's own
//! keeping-alive is the renewal, so nothing is sent for it. An incarnation that has none for
//! [`grants_kept`](crate::Settings::grants_kept) loses its grants by a mirrored record; a commit or a
//! shard under them is refused from the moment that this is decided, and their slots are used again
//! when no write under them is on its way to a drive: only then the record is made. The time begins anew with this process.

use crate::notices::Notice;
use crate::state::State;
use cleave_format::ids::{Incarnation, StripeId};
use cleave_runtime::links::Class;
use std::collections::BTreeSet;

/// Bytes that the record of an end may need for each grant.
pub(super) const BYTES_A_GRANT: usize = 10;

impl State {
    /// Ends the grants of incarnations that were away for too long.
    pub fn end_absent_grants(&mut self) {
        let now = self.executor.now();
        let kept = self.settings.grants_kept;
        if self.stopping {
            return;
        }
        let Some(active) = &mut self.active else { return };
        let sessions = self.sessions.values().filter(|session| session.class == Class::Log);
        let present: BTreeSet<Incarnation> =
            sessions.filter_map(|session| session.who).map(|who| who.incarnation).collect();
        let mut holders = active.grants.holders();
        active.untold.retain(|(incarnation, _), _| holders.contains(incarnation));
        holders.retain(|incarnation| !present.contains(incarnation));
        active.absent.retain(|incarnation, _| holders.contains(incarnation));
        for incarnation in &holders {
            active.absent.entry(*incarnation).or_insert(now);
        }
        let due = active.absent.iter().filter(|(_, since)| now.since(**since) >= kept);
        for incarnation in due.map(|(incarnation, _)| *incarnation).collect::<Vec<_>>() {
            self.end_grants_of(incarnation);
        }
    }

    fn end_grants_of(&mut self, incarnation: Incarnation) {
        let Some(active) = &mut self.active else { return };
        let stripes: Vec<StripeId> = active.grants.open_of(incarnation);
        tracing::warn!(
            "ending {} grants of incarnation {incarnation}, which has no connection any more",
            stripes.len()
        );
        let grants = stripes.len();
        self.notices.tell(Notice::GrantsEnded { incarnation, grants });
        stripes.iter().for_each(|stripe| active.grants.end_when_idle(*stripe));
        active.absent.remove(&incarnation);
        self.counters.expired += stripes.len() as u64;
    }
}
