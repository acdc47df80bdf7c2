//! The mirror's decisions and positions, without any I/O.
//!
//! [`leader`] says who is active after the controllers met, [`decide`] who copies the log from whom (C7). [`Mirror`] counts how
//! far each of them is: appended ≥ forwarded ≥ held by both (mirrored) ≥ applied to the
//! catalogs ≥ trimmed. The flows that act on this are in the join module; the hot path is in the node.

use cleave_coordinator::LogRole;
use cleave_format::ids::{Incarnation, Position};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::{HeldLog, PeerEntry, Served};

/// What the controllers do when they meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Both kept everything: go on after the standby's last entry.
    Resume,
    /// The standby copies from the active.
    StandbyCopies,
    /// The active copies from the standby.
    ActiveCopies,
    /// The active begins an empty log. With `catalog_from_standby` it first copies the standby's
    /// catalog, which is ahead of its own.
    StartEmpty {
        /// See above.
        catalog_from_standby: bool,
    },
    /// No member of the in-sync set and no image is left.
    NoLog,
}

/// What a controller brings to the meeting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// The log that it claims to hold completely.
    pub log: Option<HeldLog>,
    /// Its catalog's position.
    pub catalog: Position,
    /// The role in which it serves hosts.
    pub serves: Option<Served>,
    /// Whether it reaches enough drives to serve.
    pub able: bool,
}

/// Who leads a meeting, and so is active after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leader {
    /// This controller.
    This,
    /// The peer.
    Peer,
    /// This one, once the peer stopped to serve: it does not know yet that it is active no more.
    ThisAlone,
    /// The peer, once this one stopped to serve: what it gave a position in the log from there on is void.
    PeerAlone(Position),
}

/// Decides who leads: both sides come to the same by what they said. Who serves goes on; of two the one whose role is
/// newer (its compare-and-swap ended the other's, C7). Else whoever reaches the drives, controller 0 first.
pub fn leader(controller: u8, own: &Standing, peer: &Standing) -> Leader {
    match (own.serves, peer.serves) {
        (Some(ours), Some(theirs)) if ours.since < theirs.since => Leader::PeerAlone(theirs.origin),
        (Some(_), Some(_)) => Leader::ThisAlone,
        (Some(_), None) => Leader::This,
        (None, Some(_)) => Leader::Peer,
        (None, None) => {
            let first = if own.able == peer.able { controller == 0 } else { own.able };
            if first { Leader::This } else { Leader::Peer }
        }
    }
}

impl Standing {
    /// Whether the claim holds by the record: the log is the recorded one, and held by a member. That can be
    /// this very process without its knowing: the record was changed, and whoever changed it died before it said so.
    pub fn is_valid(&self, role: &LogRole) -> bool {
        self.log.is_some_and(|held| {
            let by_member = role.is_in_sync(held.member.0) || role.is_in_sync(self.incarnation.0);
            held.log == role.log && (by_member || is_planted(Planted::LoadOldImage))
        })
    }

    /// As [`is_valid`](Standing::is_valid), and this very process is the member.
    fn is_member(&self, role: &LogRole) -> bool {
        self.is_valid(role) && self.log.is_some_and(|held| held.member == self.incarnation)
    }
}

/// Decides (C7). `start_empty`: there is no record yet, or the operator said so for its epoch.
pub fn decide(
    role: Option<&LogRole>,
    start_empty: bool,
    active: &Standing,
    standby: &Standing,
) -> Plan {
    if let Some(role) = role {
        let active_next = active.log.map(|held| held.next);
        let standby_next = standby.log.map(|held| held.next);
        let empty = standby.log.is_none() && is_planted(Planted::EmptyStandbyRejoins);
        if empty && active.is_member(role) {
            return Plan::Resume;
        }
        if active.is_member(role) && standby.is_member(role) && active_next >= standby_next {
            return Plan::Resume;
        }
        if active.is_valid(role) {
            return Plan::StandbyCopies;
        }
        if standby.is_valid(role) && !is_planted(Planted::StartEmptyBesideThePeer) {
            return Plan::ActiveCopies;
        }
        if !start_empty && !is_planted(Planted::StartEmptyBesideThePeer) {
            return Plan::NoLog;
        }
    }
    Plan::StartEmpty { catalog_from_standby: standby.catalog > active.catalog }
}

/// How far the controllers are. The meaning of the peer's numbers depends on the side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Mirror {
    /// Active: the last entry forwarded on this connection.
    pub forwarded: u64,
    /// The last entry that both hold; the standby knows only its own.
    pub mirrored: u64,
    /// The last position whose control entries had their effects, and were given to the catalog.
    pub effects: u64,
    /// The position that the catalog here has synced.
    pub catalog: u64,
    /// Active: the position that the peer's catalog has synced.
    pub peer_catalog: u64,
    /// Standby: what it last answered.
    pub answered: (u64, u64),
    /// Active: the only member, whose log is on drives (C12). `mirrored` is what is durable there.
    pub alone: bool,
}

/// Why a peer is disconnected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MirrorError {
    /// It claims to hold what was not forwarded, or less than before.
    #[error("the peer answered with an impossible position")]
    Held,
    /// Entries do not follow the last one.
    #[error("the peer forwarded entries that do not follow the last one")]
    Order,
}

impl Mirror {
    /// Active: the standby answered.
    pub fn held(&mut self, through: Position, catalog: Position) -> Result<(), MirrorError> {
        let sound = through.0 <= self.forwarded
            && through.0 >= self.mirrored
            && catalog.0 <= through.0
            && catalog.0 >= self.peer_catalog;
        if !sound {
            return Err(MirrorError::Held);
        }
        self.mirrored = through.0;
        self.peer_catalog = catalog.0;
        Ok(())
    }

    /// Control entries up to here may leave the log (C11).
    pub fn trimmable(&self) -> Position {
        if is_planted(Planted::TrimBeforeSynced) {
            return Position(self.mirrored);
        }
        if self.alone {
            return Position(self.catalog);
        }
        Position(self.catalog.min(self.peer_catalog))
    }

    /// Standby: what to answer now, if it is not what was answered last.
    pub fn answer(&mut self, through: Position) -> Option<(Position, Position)> {
        let answer = (through.0, self.catalog);
        if answer == self.answered {
            return None;
        }
        self.answered = answer;
        Some((Position(answer.0), Position(answer.1)))
    }
}

/// Standby: checks that forwarded entries follow the log's last one.
pub fn check_order(next: Position, entries: &[PeerEntry]) -> Result<(), MirrorError> {
    let follows = |(index, entry): (usize, &PeerEntry)| entry.position.0 == next.0 + index as u64;
    entries.iter().enumerate().all(follows).then_some(()).ok_or(MirrorError::Order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_coordinator::Member;
    use cleave_format::ids::Epoch;

    fn role(active: u64, standby: u64) -> LogRole {
        let member = |controller, incarnation| Member { controller, incarnation };
        LogRole {
            epoch: 4,
            log: 7,
            active: Some(active),
            since: 4,
            origin: 1,
            in_sync: vec![member(0, active), member(1, standby)],
            solo: None,
        }
    }

    fn standing(incarnation: u64, log: Option<(u64, u64, u64)>, catalog: u64) -> Standing {
        let held = |(log, member, next)| HeldLog {
            log,
            member: Incarnation(member),
            next: Position(next),
        };
        Standing {
            incarnation: Incarnation(incarnation),
            log: log.map(held),
            catalog: Position(catalog),
            serves: None,
            able: true,
        }
    }

    /// C7, each way in which two controllers can meet.
    #[test]
    fn decisions() {
        let none = |incarnation| standing(incarnation, None, 0);
        let record = role(1, 2);
        let decide = |a: &Standing, b: &Standing| decide(Some(&record), false, a, b);
        let (a1, b2) = (standing(1, Some((7, 1, 50)), 9), standing(2, Some((7, 2, 40)), 9));
        // The connection broke, nobody died.
        assert_eq!(decide(&a1, &b2), Plan::Resume);
        // The standby restarted, empty, or from its image.
        assert_eq!(decide(&a1, &none(3)), Plan::StandbyCopies);
        assert_eq!(decide(&a1, &standing(3, Some((7, 2, 50)), 9)), Plan::StandbyCopies);
        // The active restarted, empty, or from its image.
        assert_eq!(decide(&none(3), &b2), Plan::ActiveCopies);
        assert_eq!(decide(&standing(3, Some((7, 1, 50)), 9), &b2), Plan::StandbyCopies);
        // Both restarted from images; one image is missing; both are.
        let image = |incarnation, member| standing(incarnation, Some((7, member, 50)), 9);
        assert_eq!(decide(&image(3, 1), &image(4, 2)), Plan::StandbyCopies);
        assert_eq!(decide(&none(3), &image(4, 2)), Plan::ActiveCopies);
        assert_eq!(decide(&none(3), &none(4)), Plan::NoLog);
        // Images of members of older sets, and of other logs.
        assert_eq!(decide(&image(3, 0), &none(4)), Plan::NoLog);
        assert_eq!(decide(&standing(3, Some((6, 1, 50)), 9), &none(4)), Plan::NoLog);
        // The standby gave its image's log, and was made a member, but the active died before it said so.
        assert_eq!(decide(&none(3), &standing(2, Some((7, 9, 50)), 9)), Plan::ActiveCopies);
        // A standby that has more than its active cannot be.
        let ahead = standing(2, Some((7, 2, 60)), 9);
        assert_eq!(decide(&a1, &ahead), Plan::StandbyCopies);
    }

    /// Whatever two controllers say, both see the same leader; who took the role later wins.
    #[test]
    fn both_see_the_same_leader() {
        let serves = |since| Some(Served { since: Epoch(since), origin: Position(40 + since) });
        let says = |since: Option<u64>, able| Standing {
            serves: since.and_then(serves),
            able,
            ..standing(1, None, 0)
        };
        for first in [None, Some(4), Some(6)] {
            for second in [None, Some(5), Some(7)] {
                for (able, other) in [(true, true), (true, false), (false, true), (false, false)] {
                    let (a, b) = (says(first, able), says(second, other));
                    let mirrored = match leader(0, &a, &b) {
                        Leader::This => Leader::Peer,
                        Leader::Peer => Leader::This,
                        Leader::ThisAlone => Leader::PeerAlone(a.serves.unwrap().origin),
                        Leader::PeerAlone(_) => Leader::ThisAlone,
                    };
                    assert_eq!(leader(1, &b, &a), mirrored, "{a:?} {b:?}");
                }
            }
        }
        let (idle, active) = (says(None, true), says(Some(5), false));
        assert_eq!(leader(0, &idle, &active), Leader::Peer);
        assert_eq!(leader(0, &idle, &says(None, true)), Leader::This);
        assert_eq!(leader(0, &says(None, false), &idle), Leader::Peer);
        let newer = says(Some(6), true);
        assert_eq!(leader(0, &active, &newer), Leader::PeerAlone(Position(46)));
        assert_eq!(leader(1, &newer, &active), Leader::ThisAlone);
    }

    #[test]
    fn an_empty_log_only_at_first_or_when_told() {
        let (a, b) = (standing(3, None, 5), standing(4, None, 6));
        let empty = |catalog_from_standby| Plan::StartEmpty { catalog_from_standby };
        assert_eq!(decide(None, true, &a, &b), empty(true));
        assert_eq!(decide(None, true, &b, &a), empty(false));
        assert_eq!(decide(Some(&role(1, 2)), true, &a, &b), empty(true));
        // Told, but a member is left: its log is taken.
        let member = standing(2, Some((7, 2, 40)), 9);
        assert_eq!(decide(Some(&role(1, 2)), true, &a, &member), Plan::ActiveCopies);
    }

    #[test]
    fn answers_are_bounded_by_what_was_forwarded() {
        let mut mirror = Mirror { forwarded: 10, mirrored: 4, ..Mirror::default() };
        assert_eq!(mirror.held(Position(11), Position(0)), Err(MirrorError::Held));
        assert_eq!(mirror.held(Position(3), Position(0)), Err(MirrorError::Held));
        assert_eq!(mirror.held(Position(8), Position(9)), Err(MirrorError::Held));
        mirror.held(Position(8), Position(5)).unwrap();
        mirror.catalog = 3;
        assert_eq!(mirror.trimmable(), Position(3)); // C11: the lower one
    }
}
