//! Read leases of hosts, as the active controller counts them (C9).
//!
//! A host answers reads of a vdisk from its map, its write buffer and its flash, without asking anybody; so it must know
//! that nobody else has written meanwhile. It asks every two seconds ([`HostMessage::Renew`](cleave_wire::HostMessage)), and is told
//! which of its vdisks have another owner by now; of the others it may answer reads for [`LEASE`](cleave_wire::LEASE) from
//! *when it asked*. A new owner's seal is appended at once, and refuses what the old one writes; it is acknowledged when no
//! lease that was asked for before can last any more ([`LEASE_COUNTED`], which allows for clocks of different
//! rates), or the old owner served and is gone.
//!
//! **Who may say yes.** Not an active controller that was superseded without knowing it. So a renewal is answered when,
//! *after* it came, the standby said that it still is that (`Vouch`, `Vouched`); or, while the standby is away, the store
//! said that this controller still is the active one, also when it goes on alone (C12): what it knows of the in-sync set may be
//! older than the store's record. Whoever takes over later therefore did so after the host asked, knows of no leases, and counts all of them
//! from the moment when it became active.
//!
//! A crash leaves nothing of this behind, and needs nothing: the next active controller counts anew.

use crate::resident::Seal;
use crate::state::State;
use cleave_format::ids::{Epoch, Incarnation, Position, VdiskId};
use cleave_runtime::links::ConnectionId;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::time::Moment;
use cleave_wire::{ControllerMessage, LEASE_COUNTED, PeerMessage, RequestNumber};
use std::collections::{BTreeMap, VecDeque};

/// What is known of leases.
#[derive(Default)]
pub struct Leases {
    /// Since when this controller is active.
    since: Moment,
    /// Position of the first entry that it appended as such. Seals before it may wait for leases that it knows nothing of.
    from: Position,
    /// When each host's engine last asked.
    asked: BTreeMap<Incarnation, Moment>,
    /// Until when owners before may answer reads of a vdisk whose seal is not acknowledged.
    lasting: BTreeMap<VdiskId, Moment>,
    /// Renewals that wait until somebody vouches for this controller; one a connection.
    waiting: VecDeque<Renewal>,
    /// Number of the last question to a standby.
    number: u64,
}

/// A renewal that is not answered.
struct Renewal {
    connection: ConnectionId,
    request: RequestNumber,
    incarnation: Incarnation,
    vdisks: Vec<(VdiskId, Epoch)>,
    /// When it came.
    at: Moment,
    /// Whom the standby was asked for it: the connection, and the number of the question.
    vouch: Option<(ConnectionId, u64)>,
}

impl Leases {
    /// What a controller knows that becomes active now; its next entry gets position `from`.
    pub fn begin(since: Moment, from: Position) -> Leases {
        Leases { since, from, ..Leases::default() }
    }

    /// A host's engine asks.
    pub fn ask(&mut self, incarnation: Incarnation, now: Moment) {
        self.asked.retain(|_, at| now.since(*at) < LEASE_COUNTED);
        self.asked.insert(incarnation, now);
    }

    /// A new owner's seal of a vdisk is appended. `before`: the seal until then. `gone`: epochs whose owners served,
    /// so that their own seals were acknowledged, and serve no more.
    pub fn seal(&mut self, vdisk: VdiskId, before: Option<&Seal>, gone: &[Epoch], now: Moment) {
        let Some(before) = before.filter(|before| !gone.contains(&before.epoch)) else {
            self.lasting.remove(&vdisk);
            return;
        };
        let asked = self.asked.get(&before.incarnation).copied().unwrap_or_default();
        self.last(vdisk, asked.max(self.since) + LEASE_COUNTED, now);
    }

    /// A seal that is in the log already is asked for again.
    pub fn seal_again(&mut self, vdisk: VdiskId, position: Position, now: Moment) {
        if position < self.from {
            self.last(vdisk, self.since + LEASE_COUNTED, now);
        }
    }

    fn last(&mut self, vdisk: VdiskId, until: Moment, now: Moment) {
        self.lasting.retain(|_, until| *until > now);
        if until > now {
            let lasting = self.lasting.entry(vdisk).or_insert(until);
            *lasting = until.max(*lasting);
        }
    }

    /// Whether an owner before may still answer reads of the vdisk.
    pub fn may_last(&self, vdisk: VdiskId, now: Moment) -> bool {
        let lasts = self.lasting.get(&vdisk).is_some_and(|until| *until > now);
        lasts && !is_planted(Planted::AcknowledgeSealEarly)
    }
}

impl State {
    /// A host asks for the leases of vdisks.
    pub(crate) fn renew(
        &mut self,
        connection: ConnectionId,
        incarnation: Incarnation,
        request: RequestNumber,
        vdisks: Vec<(VdiskId, Epoch)>,
    ) {
        let now = self.executor.now();
        let active = self.active.as_mut().expect("a session is good on a confirmed active only");
        let leases = &mut active.leases;
        leases.ask(incarnation, now);
        let before = leases.waiting.len();
        // Who asks again has given the older question up.
        leases.waiting.retain(|renewal| renewal.connection != connection);
        let dropped = before - leases.waiting.len();
        let renewal = Renewal { connection, request, incarnation, vdisks, at: now, vouch: None };
        leases.waiting.push_back(renewal);
        self.unanswered(connection, dropped as u32);
    }

    /// Has the standby vouch for this controller; or looks what else does. True when renewals were answered.
    pub(crate) fn look_after_leases(&mut self) -> bool {
        let sure = self.surely_active();
        let Some(active) = &mut self.active else { return false };
        let leases = &mut active.leases;
        if leases.waiting.is_empty() {
            return false;
        }
        if let Some(peer) = self.peer.as_ref().filter(|peer| peer.joined) {
            let connection = peer.connection;
            let asked = |renewal: &Renewal| renewal.vouch.is_some_and(|(of, _)| of == connection);
            if !leases.waiting.iter().all(asked) {
                leases.number += 1;
                let number = leases.number;
                let unasked = leases.waiting.iter_mut().filter(|renewal| !asked(renewal));
                unasked.for_each(|renewal| renewal.vouch = Some((connection, number)));
                // A closed connection is reported by its event.
                let _ = self.send_peer(&PeerMessage::Vouch { number }, &[]);
            }
            return false;
        }
        let Some(sure) = sure else { return false };
        self.answer_renewals(|renewal| renewal.at <= sure)
    }

    /// The standby vouched.
    pub(crate) fn vouched(&mut self, connection: ConnectionId, number: u64) {
        self.answer_renewals(|renewal| {
            renewal.vouch.is_some_and(|(of, asked)| of == connection && asked <= number)
        });
    }

    /// Until when it is certain, without the standby's word, that no other controller was active.
    fn surely_active(&self) -> Option<Moment> {
        let own = self.incarnation.0;
        let seen = self.seen.as_ref()?;
        let (recorded, _) = seen.recorded.role.as_ref()?;
        (recorded.active == Some(own)).then_some(seen.asked)
    }

    fn answer_renewals(&mut self, sure: impl Fn(&Renewal) -> bool) -> bool {
        let Some(active) = &mut self.active else { return false };
        let (sure, waiting): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut active.leases.waiting).into_iter().partition(sure);
        active.leases.waiting = waiting;
        let any = !sure.is_empty();
        for Renewal { connection, request, incarnation, vdisks, .. } in sure {
            let Some(active) = &self.active else { return any };
            let owns = |(vdisk, epoch): &(VdiskId, Epoch)| {
                active.resident.check_owner(*vdisk, *epoch, incarnation).is_ok()
            };
            let lost = vdisks.into_iter().filter(|one| !owns(one)).map(|(vdisk, _)| vdisk);
            let lost: Vec<VdiskId> = lost.collect();
            if !lost.is_empty() && is_planted(Planted::AppendAfterSeal) {
                // An owner that is told stops writing: then it is not the log that stops it.
                self.unanswered(connection, 1);
                continue;
            }
            let renewed = ControllerMessage::Renewed { request, lost };
            self.reply(connection, 0, &renewed, None);
        }
        any
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_format::ids::HostId;
    use std::time::Duration;

    const VDISK: VdiskId = VdiskId(1);

    fn at(seconds: u64) -> Moment {
        Moment::default() + Duration::from_secs(seconds)
    }

    fn seal(epoch: u64, incarnation: u64) -> Seal {
        let (epoch, incarnation) = (Epoch(epoch), Incarnation(incarnation));
        Seal { epoch, host: HostId(1), incarnation, position: Position(9), deleted: false }
    }

    /// C9: from the last question of the owner before, or from when this controller became active.
    #[test]
    fn a_seal_waits_for_the_lease_of_the_owner_before() {
        let mut leases = Leases::begin(at(100), Position(5));
        leases.seal(VDISK, None, &[], at(101));
        assert!(!leases.may_last(VDISK, at(101)), "nobody had it");
        leases.seal(VDISK, Some(&seal(1, 5)), &[Epoch(1)], at(101));
        assert!(!leases.may_last(VDISK, at(101)), "it is gone");
        // Nobody has asked here: a controller before may have given a lease.
        leases.seal(VDISK, Some(&seal(1, 5)), &[], at(101));
        assert!(leases.may_last(VDISK, at(112)) && !leases.may_last(VDISK, at(113)));
        let mut leases = Leases::begin(at(100), Position(5));
        leases.ask(Incarnation(5), at(200));
        leases.seal(VDISK, Some(&seal(1, 5)), &[Epoch(7)], at(201));
        assert!(leases.may_last(VDISK, at(212)) && !leases.may_last(VDISK, at(213)));
        // It asked long ago, or another engine did.
        leases.seal(VdiskId(2), Some(&seal(1, 5)), &[], at(213));
        leases.seal(VdiskId(3), Some(&seal(1, 6)), &[], at(213));
        assert!(!leases.may_last(VdiskId(2), at(213)) && !leases.may_last(VdiskId(3), at(213)));
    }

    /// An owner that never served says nothing about the one before it.
    #[test]
    fn leases_last_through_owners_that_never_served() {
        let mut leases = Leases::begin(at(100), Position(5));
        leases.ask(Incarnation(5), at(200));
        leases.seal(VDISK, Some(&seal(1, 5)), &[], at(201));
        leases.seal(VDISK, Some(&seal(2, 6)), &[Epoch(1)], at(202));
        assert!(leases.may_last(VDISK, at(212)) && !leases.may_last(VDISK, at(213)));
        // One that served waited for it.
        leases.seal(VDISK, Some(&seal(2, 6)), &[Epoch(2)], at(202));
        assert!(!leases.may_last(VDISK, at(202)));
    }

    /// A seal whose answer another controller owed: whom it waited for is not known.
    #[test]
    fn a_seal_of_before_the_role_was_taken_waits_anew() {
        let mut leases = Leases::begin(at(100), Position(5));
        leases.seal_again(VDISK, Position(5), at(101));
        assert!(!leases.may_last(VDISK, at(101)));
        leases.seal_again(VDISK, Position(4), at(101));
        assert!(leases.may_last(VDISK, at(112)) && !leases.may_last(VDISK, at(113)));
        leases.seal_again(VDISK, Position(4), at(113));
        assert!(!leases.may_last(VDISK, at(113)));
    }
}
