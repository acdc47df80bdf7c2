//! Applying control records: one durable transaction a batch, with the position that it reached.
//!
//! Nothing is decided here. What a record says was decided when it was appended; rows that it
//! would change and that are not there are passed over, so that applying a record to a catalog
//! that is ahead of it, or twice, changes nothing.

use crate::rows::ascending;
use crate::tables::*;
use crate::{Catalog, CatalogError};
use cleave_format::control::{
    Commit, CommitVdisk, Control, DriveState, GrantedStripe, SlotPlace, Swap,
};
use cleave_format::encode;
use cleave_format::ids::{
    DriveId, Epoch, HostId, Incarnation, Position, SlotIndex, StripeId, VdiskId,
};
use cleave_runtime::planted::{Planted, is_planted};
use redb::{ReadableTable, Table};

/// What a batch led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Everything up to here is applied and durable.
    pub through: Position,
    /// Slots of stripes that are no more, for the allocator. Not those of ended grants, which
    /// wait for their I/O (C15).
    pub freed: Vec<SlotPlace>,
    /// Stripes with slots that were committed before and are no more.
    pub ended: u64,
}

struct Tables<'t> {
    stripes: Table<'t, u64, Bytes>,
    stripes_of: Table<'t, (u64, u64), ()>,
    grants: Table<'t, u64, Bytes>,
    commits: Table<'t, (u64, u64), Bytes>,
    pieces: Table<'t, (u64, u32), Bytes>,
    vdisks: Table<'t, u64, Bytes>,
    hosts: Table<'t, u32, u64>,
    drives: Table<'t, u16, Bytes>,
    held: Table<'t, (u16, u32), bool>,
    newest_stripe: u64,
    freed: Vec<SlotPlace>,
    ended: u64,
}

impl Catalog {
    /// Applies records, in the order of their positions, as one durable transaction. Those at or
    /// below [`applied`](Catalog::applied) are passed over (C11).
    pub fn apply(&mut self, entries: &[(Position, Control)]) -> Result<Applied, CatalogError> {
        let mut through = self.applied;
        if entries.last().is_none_or(|(position, _)| *position <= through) {
            return Ok(Applied { through, ..Applied::default() });
        }
        let write = self.database.begin_write()?;
        let (freed, ended) = {
            let mut meta = write.open_table(META)?;
            let newest_stripe = meta.get(NEWEST_STRIPE)?.map_or(0, |found| found.value());
            let mut tables = Tables {
                stripes: write.open_table(STRIPES)?,
                stripes_of: write.open_table(STRIPES_OF)?,
                grants: write.open_table(GRANTS)?,
                commits: write.open_table(COMMITS)?,
                pieces: write.open_table(PIECES)?,
                vdisks: write.open_table(VDISKS)?,
                hosts: write.open_table(HOSTS)?,
                drives: write.open_table(DRIVES)?,
                held: write.open_table(HELD)?,
                newest_stripe,
                freed: Vec::new(),
                ended: 0,
            };
            for (position, control) in entries {
                if *position > through {
                    tables.apply(*position, control)?;
                    through = *position;
                }
            }
            meta.insert(APPLIED, through.0)?;
            meta.insert(NEWEST_STRIPE, tables.newest_stripe)?;
            (tables.freed, tables.ended)
        };
        write.commit()?;
        self.applied = through;
        Ok(Applied { through, freed, ended })
    }
}

impl Tables<'_> {
    fn apply(&mut self, position: Position, control: &Control) -> Result<(), CatalogError> {
        match control {
            Control::HostStart { host, incarnation } => self.host_start(*host, *incarnation),
            Control::Seal { vdisk, epoch, host, incarnation } => {
                self.seal(position, *vdisk, *epoch, *host, *incarnation)
            }
            Control::Grant { incarnation, stripes } => self.grant(*incarnation, stripes),
            Control::GrantEnd { stripes } => {
                stripes.iter().try_for_each(|stripe| self.end_grant(stripe.0))
            }
            Control::HoldSlots => self.hold_slots(),
            Control::FreeHeld => self.free_held(),
            Control::Commit(commit) => self.commit(position, commit),
            Control::Delete { vdisk, epoch } => self.delete(position, *vdisk, *epoch),
            Control::Drive { drive, state, generation } => self.drive(*drive, *state, *generation),
            Control::Swap(swap) => self.swap(swap),
            // Reserved: no writer of this format level produces them (C31).
            Control::Cut { .. } | Control::Move { .. } => Ok(()),
        }
    }

    fn host_start(&mut self, host: HostId, incarnation: Incarnation) -> Result<(), CatalogError> {
        let before = self.hosts.insert(host.0, incarnation.0)?.map(|found| found.value());
        let Some(before) = before else { return Ok(()) };
        let mut ended = Vec::new();
        for entry in ascending("grants", self.grants.iter()?) {
            let (stripe, row) = entry?;
            let row: GrantRow = decode("grants", row.value())?;
            if row.incarnation.0 == before && before != incarnation.0 {
                ended.push(stripe.value());
            }
        }
        ended.into_iter().try_for_each(|stripe| self.end_grant(stripe))
    }

    /// A grant ends without a commit. Its slots are not told as freed: they wait for their I/O (C15).
    fn end_grant(&mut self, stripe: u64) -> Result<(), CatalogError> {
        let removed = self.grants.remove(stripe)?.map(|row| decode("grants", row.value()));
        let removed: Option<GrantRow> = removed.transpose()?;
        let Some(row) = removed else { return Ok(()) };
        row.slots.iter().try_for_each(|place| self.leave_held(place).map(drop))
    }

    /// Nothing has a slot any more. True when it is held, and so not free.
    fn leave_held(&mut self, place: &SlotPlace) -> Result<bool, CatalogError> {
        let key = (place.drive.0, place.slot.0);
        let held = self.held.get(key)?.is_some();
        if held {
            self.held.insert(key, true)?;
        }
        Ok(held)
    }

    /// Slots of a stripe that is no more.
    fn free(&mut self, slots: &[SlotPlace]) -> Result<(), CatalogError> {
        for place in slots {
            if !self.leave_held(place)? {
                self.freed.push(*place);
            }
        }
        Ok(())
    }

    fn hold_slots(&mut self) -> Result<(), CatalogError> {
        for entry in ascending("grants", self.grants.iter()?) {
            let row: GrantRow = decode("grants", entry?.1.value())?;
            for place in row.slots {
                self.held.insert((place.drive.0, place.slot.0), false)?;
            }
        }
        Ok(())
    }

    fn free_held(&mut self) -> Result<(), CatalogError> {
        for entry in ascending("held", self.held.iter()?) {
            let (key, left) = entry?;
            let (drive, slot) = key.value();
            if left.value() {
                let (drive, slot) = (DriveId(drive), SlotIndex(slot));
                self.freed.push(SlotPlace { drive, slot, generation: 0 });
            }
        }
        Ok(self.held.retain(|_, _| false)?)
    }

    fn vdisk(&self, vdisk: VdiskId) -> Result<Option<VdiskRow>, CatalogError> {
        self.vdisks.get(vdisk.0)?.map(|row| decode("vdisks", row.value())).transpose()
    }

    fn seal(
        &mut self,
        position: Position,
        vdisk: VdiskId,
        epoch: Epoch,
        host: HostId,
        incarnation: Incarnation,
    ) -> Result<(), CatalogError> {
        let before = self.vdisk(vdisk)?;
        if before.is_some_and(|row| row.deleted || row.epoch > epoch) {
            return Ok(());
        }
        let frontier = before.map_or(Position(0), |row| row.frontier);
        let row = VdiskRow { epoch, host, incarnation, seal: position, frontier, deleted: false };
        self.vdisks.insert(vdisk.0, encode(&row).as_slice())?;
        Ok(())
    }

    fn grant(
        &mut self,
        incarnation: Incarnation,
        stripes: &[GrantedStripe],
    ) -> Result<(), CatalogError> {
        for GrantedStripe { stripe, slots } in stripes {
            let row = GrantRow { incarnation, slots: slots.clone() };
            self.grants.insert(stripe.0, encode(&row).as_slice())?;
            self.newest_stripe = self.newest_stripe.max(stripe.0);
        }
        Ok(())
    }

    fn commit(&mut self, position: Position, commit: &Commit) -> Result<(), CatalogError> {
        if self.grants.remove(commit.stripe.0)?.is_none() {
            return Ok(());
        }
        let stripeless = commit.slots.is_empty();
        let mut row = StripeRow {
            slots: commit.slots.clone(),
            generation: 0,
            holders: Vec::new(),
            struck: Vec::new(),
            position,
            shards_missing: commit.shards_missing,
        };
        for part in &commit.vdisks {
            if part.struck {
                row.struck.push(part.vdisk);
            } else if stripeless || part.in_footer || part.has_pieces || part.run.is_some() {
                row.hold(part.vdisk, position);
            }
        }
        if row.holders.is_empty() {
            return self.free(&row.slots);
        }
        for holder in &row.holders {
            self.stripes_of.insert((holder.vdisk.0, commit.stripe.0), ())?;
        }
        self.stripes.insert(commit.stripe.0, encode(&row).as_slice())?;
        // Before any run frees something: what one vdisk leaves another one may begin to name (C19).
        for part in commit.vdisks.iter().filter(|part| !part.struck) {
            self.refer(position, part)?;
        }
        for part in commit.vdisks.iter().filter(|part| !part.struck) {
            self.commit_vdisk(position, commit.stripe, part)?;
        }
        Ok(())
    }

    /// Shards of a stripe lie elsewhere (C16), if it is there and lies where it lay when they were made: one that was freed
    /// meanwhile is not revived.
    fn swap(&mut self, swap: &Swap) -> Result<(), CatalogError> {
        if self.grants.remove(swap.loan.0)?.is_none() {
            return Ok(());
        }
        let mut free: Vec<SlotPlace> = swap.shards.iter().map(|(_, place)| *place).collect();
        let row = self.stripe(swap.stripe.0)?.filter(|row| row.generation == swap.generation);
        let named = |row: &StripeRow| {
            swap.shards.iter().all(|(shard, _)| usize::from(*shard) < row.slots.len())
        };
        if let Some(mut row) = row.filter(named) {
            for ((shard, place), old) in swap.shards.iter().zip(&mut free) {
                *old = std::mem::replace(&mut row.slots[usize::from(*shard)], *place);
                row.shards_missing &= !1u16.checked_shl(u32::from(*shard)).unwrap_or(0);
            }
            row.generation = row.generation.wrapping_add(1);
            self.stripes.insert(swap.stripe.0, encode(&row).as_slice())?;
        }
        self.free(&free)
    }

    /// The vdisk may name the stripes that its entries refer to. The log has checked that they exist.
    fn refer(&mut self, position: Position, part: &CommitVdisk) -> Result<(), CatalogError> {
        for stripe in &part.references {
            let row = self.stripe(stripe.0)?.filter(|row| !row.slots.is_empty());
            let Some(mut row) = row else { continue };
            row.hold(part.vdisk, position);
            self.stripes_of.insert((part.vdisk.0, stripe.0), ())?;
            self.stripes.insert(stripe.0, encode(&row).as_slice())?;
        }
        Ok(())
    }

    fn commit_vdisk(
        &mut self,
        position: Position,
        stripe: StripeId,
        part: &CommitVdisk,
    ) -> Result<(), CatalogError> {
        let key = (part.vdisk.0, position.0);
        let row = CommitRow { stripe, in_footer: part.in_footer, entries: part.entries.clone() };
        self.commits.insert(key, encode(&row).as_slice())?;
        let Some(run) = &part.run else { return Ok(()) };
        for piece in &run.pieces {
            let key = (part.vdisk.0, piece.group);
            match piece.address {
                Some(address) => {
                    self.pieces.insert(key, encode(&PieceRow { address }).as_slice())?;
                }
                None => {
                    self.pieces.remove(key)?;
                }
            }
        }
        let Some(mut vdisk) = self.vdisk(part.vdisk)? else { return Ok(()) };
        if run.frontier <= vdisk.frontier {
            return Ok(());
        }
        vdisk.frontier = run.frontier;
        self.vdisks.insert(part.vdisk.0, encode(&vdisk).as_slice())?;
        let reflected = (part.vdisk.0, 0)..=(part.vdisk.0, run.frontier.0);
        for stripe in self.drop_commits(reflected)? {
            self.forget_stripeless(part.vdisk, stripe)?;
        }
        for stripe in &run.unreferenced {
            let Some(row) = self.stripe(stripe.0)? else { continue };
            // One that a commit after the frontier put the vdisk into is needed to open it (C21).
            let leaves = |holder: &Holder| {
                let reflected = holder.position <= run.frontier;
                holder.vdisk == part.vdisk && (reflected || is_planted(Planted::FreeAheadOfTheRun))
            };
            if row.holders.iter().any(leaves) {
                self.take_from_stripe(part.vdisk, stripe.0, row)?;
            }
        }
        Ok(())
    }

    /// Drops rows of `commits`; gives the stripes that they named.
    fn drop_commits(
        &mut self,
        range: std::ops::RangeInclusive<(u64, u64)>,
    ) -> Result<Vec<u64>, CatalogError> {
        let (mut keys, mut stripes) = (Vec::new(), Vec::new());
        for entry in ascending("commits", self.commits.range(range)?) {
            let (key, row) = entry?;
            let row: CommitRow = decode("commits", row.value())?;
            keys.push(key.value());
            stripes.push(row.stripe.0);
        }
        for key in keys {
            self.commits.remove(key)?;
        }
        Ok(stripes)
    }

    fn stripe(&self, stripe: u64) -> Result<Option<StripeRow>, CatalogError> {
        self.stripes.get(stripe)?.map(|row| decode("stripes", row.value())).transpose()
    }

    /// The identity of a commit without a stripe stays known while a commit row names it, so that
    /// a resend is recognised.
    fn forget_stripeless(&mut self, vdisk: VdiskId, stripe: u64) -> Result<(), CatalogError> {
        match self.stripe(stripe)? {
            Some(row) if row.slots.is_empty() => self.take_from_stripe(vdisk, stripe, row),
            _ => Ok(()),
        }
    }

    /// A vdisk does not name a stripe any more; without another one the stripe ends.
    fn take_from_stripe(
        &mut self,
        vdisk: VdiskId,
        stripe: u64,
        mut row: StripeRow,
    ) -> Result<(), CatalogError> {
        self.stripes_of.remove((vdisk.0, stripe))?;
        row.holders.retain(|other| other.vdisk != vdisk);
        if row.holders.is_empty() || is_planted(Planted::FreeWhileReferenced) {
            self.stripes.remove(stripe)?;
            self.ended += u64::from(!row.slots.is_empty());
            self.free(&row.slots)?;
        } else {
            self.stripes.insert(stripe, encode(&row).as_slice())?;
        }
        Ok(())
    }

    fn delete(
        &mut self,
        position: Position,
        vdisk: VdiskId,
        epoch: Epoch,
    ) -> Result<(), CatalogError> {
        let before = self.vdisk(vdisk)?;
        let (host, incarnation) =
            before.map_or((HostId(0), Incarnation(0)), |row| (row.host, row.incarnation));
        let row = VdiskRow {
            epoch,
            host,
            incarnation,
            seal: position,
            frontier: Position(0),
            deleted: true,
        };
        self.vdisks.insert(vdisk.0, encode(&row).as_slice())?;
        self.pieces.retain_in((vdisk.0, 0)..=(vdisk.0, u32::MAX), |_, _| false)?;
        self.commits.retain_in((vdisk.0, 0)..=(vdisk.0, u64::MAX), |_, _| false)?;
        let mut stripes = Vec::new();
        let rows = self.stripes_of.range((vdisk.0, 0)..=(vdisk.0, u64::MAX))?;
        for entry in ascending("stripes", rows) {
            stripes.push(entry?.0.value().1);
        }
        for stripe in stripes {
            match self.stripe(stripe)? {
                Some(row) => self.take_from_stripe(vdisk, stripe, row)?,
                None => {
                    self.stripes_of.remove((vdisk.0, stripe))?;
                }
            }
        }
        Ok(())
    }

    fn drive(
        &mut self,
        drive: DriveId,
        state: DriveState,
        generation: u32,
    ) -> Result<(), CatalogError> {
        let before = self.drives.get(drive.0)?.map(|row| decode("drives", row.value()));
        let before: Option<DriveRow> = before.transpose()?;
        if before.is_none_or(|row| row.generation < generation) {
            let row = DriveRow { state, generation };
            self.drives.insert(drive.0, encode(&row).as_slice())?;
        }
        Ok(())
    }
}
