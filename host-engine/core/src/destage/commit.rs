//! Commits: what a stripe, or a list of entries, changes in the map, and which records it releases (C4).
//!
//! A commit releases a record whose last live block it brings into the map, and those that were
//! covered before. What it lists is fixed when it is first sent: a commit that is sent again after a
//! break may have taken effect the first time (it is idempotent by its stripe).
//!
//! When a log is lost while a commit is under way, nobody knows whether a catalog has it: it is sent again, with
//! the versions of before. That is sound because no other commit of the core comes in between: all that is
//! committed was applied while the old versions stood, and what covers a block of this one is still in the map with
//! its version (C2). What is planned under the lost log and comes later is planned anew.

use super::leaves::Leaves;
use super::{Destage, GivenUp, Plan};
use crate::buffer::RecordKey;
use crate::core::Shared;
use crate::handles::Places;
use crate::map::MapChange;
use crate::state::State;
use cleave_format::address::Address;
use cleave_format::control::{CommitVdisk, GrantedStripe, InlineEntry, Release};
use cleave_format::ids::{Epoch, Position, SliceIndex, StripeId, VdiskId};
use cleave_format::layout::SLOT;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::links::Class;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::{ControllerMessage, HostMessage, Refusal};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Most records that one commit releases beside those of its content.
const RELEASES_MAX: usize = 8 << 10;
/// Between two attempts when the log has no room even for a commit.
const RETRY: Duration = Duration::from_millis(100);

/// A commit, as it is sent and applied.
struct Prepared {
    vdisks: Vec<CommitVdisk>,
    records: Vec<RecordKey>,
    pieces: Vec<(u32, Address)>,
    run: Option<u64>,
    log: Option<u64>,
}

/// Holds back other commits of the core.
struct Turn<'a>(&'a Destage);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.committing.set(false);
        self.0.freed.notify();
    }
}

impl Destage {
    async fn commit_turn(&self) -> Turn<'_> {
        self.freed.until(|| (!self.committing.replace(true)).then_some(())).await;
        Turn(self)
    }

    /// Commits a stripe whose shards are durable.
    pub(super) async fn commit_stripe(
        &self,
        grant: &GrantedStripe,
        missing: u16,
        plan: &Plan,
        leaves: &Leaves,
    ) -> Result<(), GivenUp> {
        let _turn = self.commit_turn().await;
        let Some(prepared) = self.prepare(plan, leaves, Some(grant.stripe)) else {
            return Err(GivenUp::Again);
        };
        let sent = self.send_commit(grant.stripe, missing, &prepared).await;
        let mut state = self.shared.state.borrow_mut();
        match sent {
            Ok((position, struck)) => {
                let places: Places = grant.slots.clone().into();
                state.apply(plan, &prepared, position, &struck, Some((grant.stripe, places)));
                state.stats.stripes_committed += 1;
                let with_frame = plan.items.iter().filter(|item| !item.frame.is_empty());
                state.stats.stripe_frames += with_frame.count() as u64;
                let written = grant.slots.len() as u64 - u64::from(missing.count_ones());
                state.stats.drive_bytes += written * SLOT as u64;
                let frames = plan.items.iter().map(|item| item.frame.len());
                let pieces = plan.pieces.iter().map(|piece| piece.frame.len());
                state.stats.stripe_bytes += frames.chain(pieces).sum::<usize>() as u64;
                Ok(())
            }
            Err(refusal) => {
                tracing::warn!(stripe = %grant.stripe, %refusal, "a commit was refused");
                state.unprepare(&prepared);
                state.forget_references(plan, refusal);
                Err(GivenUp::Again)
            }
        }
    }

    /// Commits entries that need no stripe (C5).
    pub(super) async fn commit_entries(&self, plan: Plan) -> Result<(), GivenUp> {
        let leaves = self.hold_leaves(&plan).await;
        let outcome = self.commit_without_stripe(&plan, &leaves).await;
        let mut state = self.shared.state.borrow_mut();
        state.unmark(&plan);
        if outcome.is_err() {
            state.mark(&plan, false);
        }
        self.let_leaves_go(&mut state, &plan, leaves);
        outcome
    }

    /// Releases covered records.
    pub(super) async fn release(&self) -> Result<(), GivenUp> {
        let log = self.shared.state.borrow().log_identity;
        let (items, pieces, pins) = (Vec::new(), Vec::new(), BTreeSet::new());
        self.commit_without_stripe(&Plan { items, pieces, pins, log }, &Leaves::none()).await
    }

    /// Releases what a stripe holds before its commit, as nothing may: for a planted bug.
    pub(super) async fn release_before_commit(&self, plan: &Plan) {
        let Ok(identity) = self.identity().await else { return };
        let _turn = self.commit_turn().await;
        let Some(mut prepared) = self.prepare(plan, &Leaves::none(), None) else { return };
        for part in &mut prepared.vdisks {
            part.entries.clear();
            part.run = None;
        }
        // Whatever came of it: the stripe's own commit goes on as if this had not been.
        let _ = self.send_commit(identity, 0, &prepared).await;
        self.shared.state.borrow_mut().unprepare(&prepared);
    }

    /// What the commit of a plan says; `None` when the log that it was planned under is gone (C7): the records
    /// have other versions by now, and nothing would keep those of the plan in the map and its runs (C2). Also `None`
    /// when what it changes of the map is not in memory, or was another opening's.
    fn prepare(&self, plan: &Plan, leaves: &Leaves, stripe: Option<StripeId>) -> Option<Prepared> {
        let mut state = self.shared.state.borrow_mut();
        let current = state.log_identity == plan.log || is_planted(Planted::CommitAcrossLogs);
        (current && leaves.are_there(&state)).then(|| state.prepare(plan, stripe))
    }

    async fn commit_without_stripe(&self, plan: &Plan, leaves: &Leaves) -> Result<(), GivenUp> {
        let identity = self.identity().await?;
        let _turn = self.commit_turn().await;
        let prepared = self.prepare(plan, leaves, None);
        let Some(prepared) = prepared.filter(|prepared| !prepared.vdisks.is_empty()) else {
            self.identities.borrow_mut().push_front(identity);
            // Content that was planned is planned anew; a release is decided anew anyway.
            return if plan.items.is_empty() { Ok(()) } else { Err(GivenUp::Again) };
        };
        let sent = self.send_commit(identity, 0, &prepared).await;
        let refusal = {
            let mut state = self.shared.state.borrow_mut();
            match sent {
                Ok((position, struck)) => {
                    state.apply(plan, &prepared, position, &struck, None);
                    state.stats.stripeless_commits += 1;
                    return Ok(());
                }
                Err(refusal) => {
                    state.unprepare(&prepared);
                    state.forget_references(plan, refusal);
                    refusal
                }
            }
        };
        tracing::warn!(%identity, %refusal, "a commit without a stripe was refused");
        self.shared.executor.sleep(RETRY).await;
        Err(GivenUp::Again)
    }

    /// Sends a commit until there is an answer.
    async fn send_commit(
        &self,
        stripe: StripeId,
        missing: u16,
        prepared: &Prepared,
    ) -> Result<(Position, Vec<VdiskId>), Refusal> {
        loop {
            let ask = |request| {
                let vdisks = self.shared.releasable_now(prepared);
                HostMessage::Commit { request, stripe, shards_missing: missing, vdisks }
            };
            let reply = self.shared.request(Class::Log, 0, ask, &[]).await;
            match reply.message {
                ControllerMessage::Committed { result: Ok(position), struck, .. } => {
                    reached(Point::HostCommitted);
                    return Ok((position, struck));
                }
                ControllerMessage::Committed { result: Err(Refusal::Full), .. } => {
                    self.shared.executor.sleep(RETRY).await;
                }
                ControllerMessage::Committed { result: Err(refusal), .. } => return Err(refusal),
                _ => return Err(Refusal::Malformed),
            }
        }
    }
}

impl Shared {
    /// The commit's vdisks; without releases when the log that held the records is gone (C7).
    fn releasable_now(&self, prepared: &Prepared) -> Vec<CommitVdisk> {
        let mut vdisks = prepared.vdisks.clone();
        if self.state.borrow().log_identity != prepared.log {
            vdisks.iter_mut().for_each(|vdisk| vdisk.releases.clear());
        }
        vdisks
    }
}

impl State {
    /// What the commit of a plan says. `stripe` is `None` when the entries go inline.
    fn prepare(&mut self, plan: &Plan, stripe: Option<StripeId>) -> Prepared {
        let mut vdisks: BTreeMap<VdiskId, CommitVdisk> = BTreeMap::new();
        let mut touched: BTreeMap<RecordKey, u32> = BTreeMap::new();
        for item in &plan.items {
            let part = self.part(&mut vdisks, item.vdisk);
            match stripe {
                Some(_) => part.in_footer = true,
                None => part.entries.push(InlineEntry {
                    slice: item.slice,
                    block: item.block,
                    blocks: item.blocks,
                    version: item.version,
                    reference: item.reference().map(|(address, _)| address),
                }),
            }
            if let Some((address, _)) = item.reference().filter(|(a, _)| Some(a.stripe) != stripe) {
                part.references.push(address.stripe);
            }
            let live = item.nodes().filter(|node| self.buffer.is_live(node)).count();
            *touched.entry(item.record).or_default() += live as u32;
        }
        let ends = |(key, nodes): &(&RecordKey, &u32)| self.buffer.ends_with(**key, **nodes);
        let mut records: Vec<RecordKey> =
            touched.iter().filter(ends).map(|(key, _)| *key).collect();
        let covered = self.buffer.releasable().take(RELEASES_MAX);
        records.extend(covered.filter(|key| !touched.contains_key(key)).collect::<Vec<_>>());
        let mut identities = Vec::with_capacity(records.len());
        for key in &records {
            self.buffer.set_releasing(*key, true);
            let record = self.buffer.get(*key).expect("a releasable record is there");
            identities.push(record.identity);
        }
        identities.sort_unstable();
        for identity in identities {
            let releases = &mut self.part(&mut vdisks, identity.vdisk).releases;
            let (slice, version) = (identity.slice, identity.version);
            match releases.last_mut() {
                Some(last)
                    if (last.slice, last.epoch) == (slice, version.epoch)
                        && last.last.0 + 1 == version.sequence.0 =>
                {
                    last.last = version.sequence;
                }
                _ => releases.push(Release {
                    slice,
                    epoch: version.epoch,
                    first: version.sequence,
                    last: version.sequence,
                }),
            }
        }
        let mut prepared = Prepared {
            vdisks: Vec::new(),
            records,
            pieces: Vec::new(),
            run: None,
            log: self.log_identity,
        };
        for part in vdisks.values_mut() {
            part.references.sort_unstable();
            part.references.dedup();
        }
        self.prepare_run(plan, stripe, &mut vdisks, &mut prepared);
        prepared.vdisks = vdisks.into_values().collect();
        prepared
    }

    fn prepare_run(
        &mut self,
        plan: &Plan,
        stripe: Option<StripeId>,
        vdisks: &mut BTreeMap<VdiskId, CommitVdisk>,
        prepared: &mut Prepared,
    ) {
        let Some(run) = self.run.as_ref().map(|run| run.number) else { return };
        prepared.run = Some(run);
        if let Some(stripe) = stripe {
            let own = plan.pieces.iter().filter(|piece| piece.run == run);
            let address = |offset, length| Address { stripe, offset, length };
            prepared.pieces =
                own.map(|p| (p.group, address(p.offset, p.frame.len() as u32))).collect();
        }
        for piece in &plan.pieces {
            self.part(vdisks, piece.vdisk).has_pieces = true;
        }
        if let Some((vdisk, run)) = self.completed_run(&prepared.pieces) {
            self.part(vdisks, vdisk).run = Some(run);
        }
    }

    fn part<'a>(
        &self,
        vdisks: &'a mut BTreeMap<VdiskId, CommitVdisk>,
        vdisk: VdiskId,
    ) -> &'a mut CommitVdisk {
        let epoch = self.vdisks.get(&vdisk).map_or(Epoch(0), |vdisk| vdisk.epoch);
        vdisks.entry(vdisk).or_insert_with(|| CommitVdisk {
            vdisk,
            epoch,
            struck: false,
            in_footer: false,
            has_pieces: false,
            releases: Vec::new(),
            entries: Vec::new(),
            references: Vec::new(),
            run: None,
        })
    }

    /// A commit may have been refused for what it referred to: its content is planned anew without that.
    fn forget_references(&mut self, plan: &Plan, refusal: Refusal) {
        if refusal != Refusal::NoReference {
            return;
        }
        for item in plan.items.iter().filter(|item| item.reference().is_some()) {
            if let Some(fingerprint) = &item.fingerprint {
                self.forget_fingerprint(item.vdisk, fingerprint);
            }
        }
    }

    /// The commit was refused: its records wait for another one.
    fn unprepare(&mut self, prepared: &Prepared) {
        prepared.records.iter().for_each(|key| self.buffer.set_releasing(*key, false));
    }

    /// The commit is mirrored: brings it into the map and releases what it released.
    fn apply(
        &mut self,
        plan: &Plan,
        prepared: &Prepared,
        position: Position,
        struck: &[VdiskId],
        stripe: Option<(StripeId, Places)>,
    ) {
        for vdisk in struck {
            self.fence(*vdisk);
        }
        // A vdisk that was closed, or opened again since, has this commit from the catalog.
        let parts = prepared.vdisks.iter();
        let current: BTreeSet<VdiskId> = parts
            .filter(|part| {
                self.vdisks.get(&part.vdisk).is_some_and(|open| open.epoch == part.epoch)
            })
            .map(|part| part.vdisk)
            .collect();
        for item in plan.items.iter().filter(|item| current.contains(&item.vdisk)) {
            let oldest = self.buffer.oldest(item.vdisk, item.slice);
            let own = stripe.as_ref().filter(|_| !item.frame.is_empty()).map(|(stripe, _)| {
                let length = item.frame.len() as u32;
                (Address { stripe: *stripe, offset: item.offset, length }, 0)
            });
            if let (Some((address, _)), Some(fingerprint)) = (own, &item.fingerprint) {
                self.learn_fingerprint(item.vdisk, fingerprint, address);
            }
            let frame = own.or(item.reference());
            self.stats.deduplicated += u64::from(own.is_none() && frame.is_some());
            let change = MapChange {
                slice: item.slice,
                block: item.block,
                blocks: item.blocks,
                version: item.version,
                frame,
            };
            self.map.apply(item.vdisk, &change, oldest);
            item.nodes().for_each(|node| self.buffer.committed(&node));
        }
        if let Some((stripe, places)) = &stripe {
            self.map.learn(*stripe, places);
        }
        reached(Point::HostCommitApplied);
        let mut slices: BTreeSet<(VdiskId, SliceIndex)> = BTreeSet::new();
        for key in &prepared.records {
            let Some(record) = self.buffer.get(*key) else { continue };
            slices.insert((record.identity.vdisk, record.identity.slice));
            self.stats.records_released += u64::from(self.buffer.release(*key));
        }
        for (vdisk, slice) in slices {
            let oldest = self.buffer.oldest(vdisk, slice);
            self.map.trim(vdisk, slice, oldest);
        }
        let bytes: u64 = plan.items.iter().map(|item| item.frame.len() as u64).sum();
        for part in &prepared.vdisks {
            let open = self.vdisks.get_mut(&part.vdisk);
            let Some(vdisk) = open.filter(|_| current.contains(&part.vdisk)) else { continue };
            vdisk.applied = vdisk.applied.max(position);
            if part.in_footer || !part.entries.is_empty() {
                vdisk.commits.push_back(position);
                vdisk.committed_bytes += bytes;
            }
        }
        for part in prepared.vdisks.iter().filter(|part| current.contains(&part.vdisk)) {
            let own = stripe.as_ref().map(|(stripe, _)| *stripe);
            let own = own.filter(|_| part.in_footer || part.has_pieces || part.run.is_some());
            for listed in own.into_iter().chain(part.references.iter().copied()) {
                self.map.listed(part.vdisk, listed);
            }
        }
        if let Some(run) = prepared.run {
            let ended = prepared.vdisks.iter().find_map(|part| part.run.as_ref());
            self.pieces_committed(run, &prepared.pieces, ended);
        }
        if let Some((stripe, places)) = &stripe {
            // It may hold current pieces since.
            self.map.learn(*stripe, places);
        }
        self.run_may_be_due = true;
        self.progress.notify();
    }
}
