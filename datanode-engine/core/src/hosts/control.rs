//! Requests that append control records: seal, commit, delete, grant.
//!
//! What a record will do is decided here and written into it (C4); the reply waits until it is
//! mirrored; that of a seal or a delete until both catalogs have synced it, so that it holds even after an empty
//! log was ordered (C7, C8). When control records have no room, requests wait in order (C13).

use super::{HostWaiter, Malformed, WaiterKind, WaitingCommit, Who};
use crate::catalog_port::CatalogRequest;
use crate::catalog_queue::Waiter;
use crate::grants::UsableDrive;
use crate::notices::Notice;
use crate::state::State;
use cleave_format::control::{Commit, CommitVdisk, Control};
use cleave_format::control::{REFERENCES_MAX, UNREFERENCED_MAX};
use cleave_format::ids::{Epoch, Position, StripeId, VdiskId};
use cleave_format::layout::{PARITY_SHARDS, SLICE_BLOCKS};
use cleave_runtime::links::ConnectionId;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::{ControllerMessage, HostMessage, Refusal, RequestNumber};
use std::collections::BTreeSet;

/// Room that a request needs at least: the record of a grant is longer than its request.
const CONTROL_BYTES_MIN: usize = 64 << 10;

impl State {
    pub(super) fn control(
        &mut self,
        connection: ConnectionId,
        who: Who,
        message: HostMessage,
        length: usize,
    ) -> Result<(), Malformed> {
        let length = CONTROL_BYTES_MIN.max(2 * length);
        let held = self.held.as_ref().expect("a session is good on a confirmed active only");
        let active = self.active.as_mut().expect("as above");
        if !active.deferred.is_empty() || !held.log.has_control_room(length) {
            active.deferred.push_back((connection, message, length));
            return Ok(());
        }
        self.perform(connection, who, message);
        Ok(())
    }

    /// Goes on with requests that waited for room.
    pub fn take_deferred(&mut self) -> bool {
        let mut any = false;
        loop {
            let (Some(held), Some(active)) = (&self.held, &mut self.active) else { return any };
            match active.deferred.front() {
                Some((_, _, length)) if held.log.has_control_room(*length) => {}
                _ => return any,
            }
            let (connection, message, _) = active.deferred.pop_front().expect("looked at before");
            any = true;
            let who = self.sessions.get(&connection).and_then(|session| session.who);
            if let Some(who) = who {
                self.perform(connection, who, message);
            }
        }
    }

    fn perform(&mut self, connection: ConnectionId, who: Who, message: HostMessage) {
        let active = self.active.as_mut().expect("a session is good on a confirmed active only");
        match message {
            HostMessage::Seal { request, vdisk, epoch, gone } => {
                let result = self.seal(who, vdisk, epoch, &gone);
                let done = ControllerMessage::Done { request, result };
                self.when_durable(result.ok(), connection, done);
            }
            HostMessage::Delete { request, vdisk, epoch } => {
                let resident = &active.resident;
                let result = match resident.deleted(vdisk, epoch, who.incarnation) {
                    // Asked again, because the first answer did not arrive.
                    Some(position) => Ok(position),
                    None => match resident.check_owner(vdisk, epoch, who.incarnation) {
                        Ok(_) => Ok(self.append_control(&Control::Delete { vdisk, epoch })),
                        Err(refusal) => Err(refusal),
                    },
                };
                let done = ControllerMessage::Done { request, result };
                self.when_durable(result.ok(), connection, done);
            }
            HostMessage::Commit { request, stripe, shards_missing, vdisks } => {
                self.commit(connection, who, request, stripe, shards_missing, vdisks);
            }
            HostMessage::Grant { request, told, stripes, identities } => {
                let drives = active.drives.states();
                let usable = drives.map(|(drive, generation, _, active)| UsableDrive {
                    drive,
                    generation,
                    active,
                });
                let usable: Vec<_> = usable.collect();
                let (stripes, identities) = (usize::from(stripes), usize::from(identities));
                let (mut untold, recorded) = active.take_untold(who.incarnation, who.core, told);
                // What it was not told of it has at once, and needs no record.
                let (stripes, identities) = match untold.stripes.is_empty() {
                    true => (stripes, identities.saturating_sub(untold.identities.len())),
                    false => (0, 0),
                };
                let issued = active.grants.issue(who.incarnation, stripes, identities, &usable);
                self.counters.granted += issued.stripes.len() as u64;
                let all = issued.all();
                let position = match all.is_empty() {
                    true => recorded,
                    false => {
                        let names: Vec<StripeId> = all.iter().map(|grant| grant.stripe).collect();
                        let incarnation = who.incarnation;
                        let grant = Control::Grant { incarnation, stripes: all };
                        let position = self.append_control(&grant);
                        let active = self.active.as_mut().expect("as above");
                        let untold = active.untold.entry((incarnation, who.core)).or_default();
                        untold.extend(names.into_iter().map(|stripe| (stripe, position)));
                        Some(position)
                    }
                };
                untold.stripes.extend(issued.stripes);
                untold.identities.extend(issued.identities);
                let granted = ControllerMessage::Granted {
                    request,
                    stripes: untold.stripes,
                    identities: untold.identities,
                    shortage: issued.shortage,
                };
                self.when_durable(position, connection, granted);
            }
            HostMessage::ReturnGrant { stripes } => {
                // It has no answer; while it waited for room it counted as the others do (C13).
                if let Some(session) = self.sessions.get_mut(&connection) {
                    session.requests = session.requests.saturating_sub(1);
                }
                let open =
                    |stripe: &StripeId| active.grants.open(*stripe, who.incarnation).is_some();
                let mut ended: Vec<StripeId> = stripes.into_iter().filter(open).collect();
                ended.sort_unstable();
                ended.dedup();
                ended.iter().for_each(|stripe| active.grants.end_when_idle(*stripe));
            }
            _ => unreachable!("only control requests come here"),
        }
    }

    /// Seals a vdisk for a new owner (C8): from then on nothing of older ones is taken. The new one is told once no older
    /// one answers reads any more (C9); until then it is refused, and asks again.
    fn seal(
        &mut self,
        who: Who,
        vdisk: VdiskId,
        epoch: Epoch,
        gone: &[Epoch],
    ) -> Result<Position, Refusal> {
        let now = self.executor.now();
        let active = self.active.as_mut().expect("a session is good on a confirmed active only");
        let position = match active.resident.check_seal(vdisk, epoch, who.incarnation)? {
            Some(position) => {
                active.leases.seal_again(vdisk, position, now);
                position
            }
            None => {
                active.leases.seal(vdisk, active.resident.seal(vdisk), gone, now);
                if active.leases.may_last(vdisk, now) {
                    let host = who.host;
                    tracing::info!(%vdisk, %epoch, %host, "sealed; waiting for the read lease of the owner before");
                    self.notices.tell(Notice::OwnerWaits { vdisk, epoch, host });
                }
                self.counters.seals += 1;
                let (host, incarnation) = (who.host, who.incarnation);
                self.append_control(&Control::Seal { vdisk, epoch, host, incarnation })
            }
        };
        let active = self.active.as_ref().expect("as above");
        match active.leases.may_last(vdisk, now) {
            true => Err(Refusal::OwnerAlive),
            false => Ok(position),
        }
    }

    /// Replies once both catalogs have synced a position; at once when there is none.
    fn when_durable(
        &mut self,
        position: Option<cleave_format::ids::Position>,
        connection: ConnectionId,
        message: ControllerMessage,
    ) {
        match position {
            Some(position) => {
                let active = self.active.as_mut().expect("only the active replies");
                active.replies.push_back((position, connection, message));
            }
            None => self.reply(connection, 0, &message, None),
        }
    }

    fn commit(
        &mut self,
        connection: ConnectionId,
        who: Who,
        request: RequestNumber,
        stripe: StripeId,
        shards_missing: u16,
        vdisks: Vec<CommitVdisk>,
    ) {
        let active = self.active.as_mut().expect("only the active commits");
        if active.grants.open(stripe, who.incarnation).is_none() {
            // Committed already, perhaps: idempotent by the stripe's identity (C4).
            if let Some(recent) = active.resident.recent_commit(stripe) {
                let (position, struck) = (recent.position, recent.struck.clone());
                let committed =
                    ControllerMessage::Committed { request, result: Ok(position), struck };
                self.when_durable(Some(position), connection, committed);
            } else {
                let kind = WaiterKind::Commit;
                let waiter = HostWaiter { connection, lane: 0, request, kind };
                self.catalog.ask(Waiter::Host(waiter), CatalogRequest::Stripe(stripe));
            }
            return;
        }
        let references = references(&vdisks);
        if !references.is_empty() {
            // Whether they exist only the catalog knows: the commit is decided when it has answered.
            let asked = CatalogRequest::Holders(references.clone());
            let waiting = WaitingCommit { stripe, shards_missing, vdisks, references };
            let kind = WaiterKind::References(Box::new(waiting));
            let waiter = HostWaiter { connection, lane: 0, request, kind };
            self.catalog.ask(Waiter::Host(waiter), asked);
            return;
        }
        self.decide_commit(connection, who, request, stripe, shards_missing, vdisks);
    }

    /// The catalog has said who may name the stripes that a commit refers to (C19). What the log holds beyond
    /// that is looked at here, in the same turn in which the commit gets its position: a stripe that is not
    /// certain to exist there is refused, and the host plans its content anew.
    pub(super) fn commit_with_references(
        &mut self,
        connection: ConnectionId,
        request: RequestNumber,
        waiting: WaitingCommit,
        applied: Position,
        holders: &[Vec<VdiskId>],
    ) {
        let WaitingCommit { stripe, shards_missing, vdisks, references } = waiting;
        // A session that is gone asks again.
        let who = self.sessions.get(&connection).and_then(|session| session.who);
        let (Some(who), Some(active), Some(held)) = (who, &self.active, &self.held) else { return };
        let exists = |(stripe, holders): (&StripeId, &Vec<VdiskId>)| {
            let stays = |vdisk: &VdiskId| active.resident.still_holds(*vdisk, *stripe, applied);
            holders.iter().any(stays)
        };
        let certain = references.iter().zip(holders).all(exists);
        let room = CONTROL_BYTES_MIN.max(16 * references.len());
        let refusal = if !certain && !is_planted(Planted::ReferToFreed) {
            self.counters.references_refused += 1;
            Some(Refusal::NoReference)
        } else if !held.log.has_control_room(room) {
            Some(Refusal::Full)
        } else {
            None
        };
        match refusal {
            Some(refusal) => self.refuse_commit(connection, request, refusal),
            None => self.decide_commit(connection, who, request, stripe, shards_missing, vdisks),
        }
    }

    fn refuse_commit(
        &mut self,
        connection: ConnectionId,
        request: RequestNumber,
        refusal: Refusal,
    ) {
        let struck = Vec::new();
        let refused = ControllerMessage::Committed { request, result: Err(refusal), struck };
        self.reply(connection, 0, &refused, None);
    }

    /// Decides a commit under an open grant.
    fn decide_commit(
        &mut self,
        connection: ConnectionId,
        who: Who,
        request: RequestNumber,
        stripe: StripeId,
        shards_missing: u16,
        vdisks: Vec<CommitVdisk>,
    ) {
        let active = self.active.as_mut().expect("only the active commits");
        let Some(slots) = active.grants.open(stripe, who.incarnation) else {
            // It ended while the catalog was asked.
            return self.refuse_commit(connection, request, Refusal::NoGrant);
        };
        let slots = slots.to_vec();
        let missing = slots.iter().enumerate().fold(shards_missing, |missing, (shard, place)| {
            // Lost since the grant, or written to a drive that is another one now (C16).
            if active.drives.holds(place) { missing } else { missing | 1 << shard }
        });
        let sound = is_sound(stripe, slots.len(), missing, &vdisks, self.mirror.mirrored);
        let refusal = if active.grants.is_writing(stripe) || !sound {
            Some(Refusal::Malformed)
        } else if missing.count_ones() > 1 && !is_planted(Planted::CommitTooFewShards) {
            Some(Refusal::Degraded)
        } else {
            None
        };
        if let Some(refusal) = refusal {
            return self.refuse_commit(connection, request, refusal);
        }
        let mut vdisks = vdisks;
        for part in &mut vdisks {
            let owner = active.resident.check_owner(part.vdisk, part.epoch, who.incarnation);
            part.struck = owner.is_err();
            if is_planted(Planted::ReferWithoutHolding) {
                part.references.clear();
            }
        }
        let struck: Vec<VdiskId> =
            vdisks.iter().filter(|part| part.struck).map(|part| part.vdisk).collect();
        active.grants.close(stripe);
        self.counters.commits += 1;
        self.counters.struck += struck.len() as u64;
        if missing != 0 {
            self.damage_stale = true;
            self.rebuild.look_soon(self.executor.now());
        }
        self.stripes += u64::from(!slots.is_empty() && struck.len() < vdisks.len());
        let position = self.append_control(&Control::Commit(Commit {
            stripe,
            incarnation: who.incarnation,
            slots,
            shards_missing: missing,
            vdisks,
        }));
        let committed = ControllerMessage::Committed { request, result: Ok(position), struck };
        self.when_durable(Some(position), connection, committed);
    }
}

/// The stripes that a commit refers to, each once.
fn references(vdisks: &[CommitVdisk]) -> Vec<StripeId> {
    let all: BTreeSet<StripeId> =
        vdisks.iter().flat_map(|part| part.references.iter().copied()).collect();
    all.into_iter().collect()
}

/// Whether a commit says what a host can mean.
fn is_sound(
    stripe: StripeId,
    slots: usize,
    missing: u16,
    vdisks: &[CommitVdisk],
    mirrored: u64,
) -> bool {
    let mut names: Vec<VdiskId> = vdisks.iter().map(|part| part.vdisk).collect();
    names.sort_unstable();
    let distinct = names.windows(2).all(|pair| pair[0] != pair[1]);
    let stripeless = slots < 1 + PARITY_SHARDS;
    let shards = u32::from(missing).checked_shr(slots as u32).unwrap_or(0) == 0;
    let part = |part: &CommitVdisk| {
        let blocks = |entry: &cleave_format::control::InlineEntry| {
            let end = u32::from(entry.block) + u32::from(entry.blocks);
            entry.blocks > 0
                && end <= SLICE_BLOCKS
                && entry.reference.is_none_or(|address| {
                    address.is_valid() && part.references.binary_search(&address.stripe).is_ok()
                })
        };
        let ordered = part.references.windows(2).all(|pair| pair[0] < pair[1]);
        let pieces = part.run.iter().flat_map(|run| &run.pieces);
        // A host knows of a commit once it is mirrored.
        let frontier = part.run.as_ref().is_none_or(|run| run.frontier.0 <= mirrored);
        frontier
            && ordered
            && part.references.len() <= REFERENCES_MAX
            && !part.references.contains(&stripe)
            && part.run.as_ref().is_none_or(|run| run.unreferenced.len() <= UNREFERENCED_MAX)
            && !(stripeless && (part.in_footer || part.has_pieces))
            && part.entries.iter().all(blocks)
            && pieces.into_iter().all(|piece| piece.address.is_none_or(|a| a.is_valid()))
            && part.releases.iter().all(|release| release.first <= release.last)
    };
    !vdisks.is_empty() && distinct && shards && vdisks.iter().all(part)
}
