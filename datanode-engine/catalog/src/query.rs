//! What is read from a catalog: maps to open, places of stripes, and what an active controller
//! keeps resident.

use crate::rows::ascending;
use crate::tables::*;
use crate::{Catalog, CatalogError};
use cleave_format::control::{GrantedStripe, InlineEntry, PiecePlace, SlotPlace};
use cleave_format::ids::{DriveId, HostId, Incarnation, Position, SlotIndex, StripeId, VdiskId};
use cleave_format::layout::PARITY_SHARDS;
use redb::{ReadableDatabase, ReadableTable};
use std::collections::BTreeMap;

/// Place in a paged map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cursor {
    /// Pieces from this group on.
    Pieces(u32),
    /// Commits after this position.
    Commits(Position),
}

/// A page of a vdisk's durable map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapPage {
    /// The last commit that the pieces reflect.
    pub frontier: Position,
    /// Pieces, by group.
    pub pieces: Vec<PiecePlace>,
    /// Commits after the frontier, in order.
    pub commits: Vec<MapRow>,
    /// Continue here; `None`: that was all.
    pub next: Option<Cursor>,
}

/// A commit, as the map of one vdisk sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MapRow {
    /// Its position.
    pub position: Position,
    /// The stripe whose footer has entries of the vdisk, with its present slots.
    pub stripe: Option<GrantedStripe>,
    /// Entries that are in no footer.
    pub entries: Vec<InlineEntry>,
}

impl MapRow {
    /// Roughly its encoded length, for bounding pages, in bytes.
    fn weight(&self) -> usize {
        let slots = self.stripe.as_ref().map_or(0, |stripe| stripe.slots.len());
        64 + slots * 12 + self.entries.len() * 48
    }
}

/// A vdisk, as the active controller keeps it resident.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResidentVdisk {
    /// Which.
    pub vdisk: VdiskId,
    /// Its row.
    pub row: VdiskRow,
}

/// Everything that the active controller keeps resident, at one instant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resident {
    /// The catalog's position.
    pub applied: Position,
    /// The newest stripe identity ever granted.
    pub newest_stripe: StripeId,
    /// Newest incarnations.
    pub hosts: Vec<(HostId, Incarnation)>,
    /// All vdisks, deleted ones too.
    pub vdisks: Vec<ResidentVdisk>,
    /// Grants.
    pub grants: Vec<(StripeId, GrantRow)>,
    /// Drives that changed their state at least once.
    pub drives: Vec<(DriveId, DriveRow)>,
    /// Slots that are free for nobody, whoever has them or had them (C15).
    pub held: Vec<(DriveId, SlotIndex)>,
    /// Slots of stripes and grants, and those that are held: bit `slot % 64` of word `slot / 64`.
    pub used: BTreeMap<DriveId, Vec<u64>>,
    /// Committed stripes.
    pub stripes: u64,
}

/// Committed stripes that lack shards.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Damage {
    /// They lack some, and can be solved.
    pub degraded: u64,
    /// They lack more than parity can solve.
    pub lost: u64,
}

/// Committed stripes that lack shards and can be solved, of those that were looked at, each with the number of shards; and where
/// to go on.
pub type EndangeredPage = (Vec<(StripeId, u8)>, Option<StripeId>);

impl StripeRow {
    /// Its shards that are not where the row says, when these drives (in order) are lost.
    pub fn lacking(&self, lost: &[DriveId]) -> impl Iterator<Item = usize> {
        self.slots.iter().enumerate().filter_map(|(shard, place)| {
            let missing = self.shards_missing.checked_shr(shard as u32).unwrap_or(0) & 1 == 1;
            (missing || lost.binary_search(&place.drive).is_ok()).then_some(shard)
        })
    }
}

impl Resident {
    fn mark(&mut self, slots: &[SlotPlace]) {
        for place in slots {
            let words = self.used.entry(place.drive).or_default();
            let word = place.slot.0 as usize / 64;
            if words.len() <= word {
                words.resize(word + 1, 0);
            }
            words[word] |= 1 << (place.slot.0 % 64);
        }
    }
}

/// Stripes that a vdisk may name, each with the last commit by which it did; and where to go on.
pub type StripesPage = (Vec<(StripeId, Position)>, Option<StripeId>);

impl Catalog {
    /// A page of a vdisk's map, of about `bytes_max` bytes but at least one row. Of a vdisk that
    /// is unknown or deleted it is empty.
    pub fn map_page(
        &self,
        vdisk: VdiskId,
        cursor: Option<Cursor>,
        bytes_max: usize,
    ) -> Result<MapPage, CatalogError> {
        let read = self.database.begin_read()?;
        let row = read.open_table(VDISKS)?.get(vdisk.0)?;
        let row: Option<VdiskRow> = row.map(|found| decode("vdisks", found.value())).transpose()?;
        let frontier = row.map_or(Position(0), |row| row.frontier);
        let mut page = MapPage { frontier, pieces: Vec::new(), commits: Vec::new(), next: None };
        let mut bytes = 0;
        let mut after = frontier;
        match cursor.unwrap_or(Cursor::Pieces(0)) {
            Cursor::Commits(position) => after = position.max(frontier),
            Cursor::Pieces(first) => {
                let pieces = read.open_table(PIECES)?;
                let rows = pieces.range((vdisk.0, first)..=(vdisk.0, u32::MAX))?;
                for entry in ascending("pieces", rows) {
                    let (key, found) = entry?;
                    let group = key.value().1;
                    if bytes >= bytes_max {
                        page.next = Some(Cursor::Pieces(group));
                        return Ok(page);
                    }
                    let PieceRow { address } = decode("pieces", found.value())?;
                    page.pieces.push(PiecePlace { group, address: Some(address) });
                    bytes += 24;
                }
            }
        }
        let Some(first) = after.0.checked_add(1) else { return Ok(page) };
        let commits = read.open_table(COMMITS)?;
        let stripes = read.open_table(STRIPES)?;
        let rows = commits.range((vdisk.0, first)..=(vdisk.0, u64::MAX))?;
        for entry in ascending("commits", rows) {
            let (key, found) = entry?;
            if bytes >= bytes_max {
                page.next = Some(Cursor::Commits(after));
                return Ok(page);
            }
            let CommitRow { stripe, in_footer, entries } = decode("commits", found.value())?;
            let stripe = match stripes.get(stripe.0)? {
                _ if !in_footer => None,
                Some(row) => {
                    let StripeRow { slots, .. } = decode("stripes", row.value())?;
                    Some(GrantedStripe { stripe, slots })
                }
                // It must be there (C21). Without slots the opening fails; without the entries it would revive
                // what they ended.
                None => Some(GrantedStripe { stripe, slots: Vec::new() }),
            };
            after = Position(key.value().1);
            let row = MapRow { position: after, stripe, entries };
            bytes += row.weight();
            page.commits.push(row);
        }
        Ok(page)
    }

    /// Those of the stripes that are committed and have slots, in the order asked.
    pub fn locate(&self, stripes: &[StripeId]) -> Result<Vec<GrantedStripe>, CatalogError> {
        let read = self.database.begin_read()?;
        let table = read.open_table(STRIPES)?;
        let mut found = Vec::with_capacity(stripes.len());
        for &stripe in stripes {
            if let Some(row) = table.get(stripe.0)? {
                let StripeRow { slots, .. } = decode("stripes", row.value())?;
                if !slots.is_empty() {
                    found.push(GrantedStripe { stripe, slots });
                }
            }
        }
        Ok(found)
    }

    /// Stripes with slots that a vdisk may name, in order, from one on, each with the last commit by which it
    /// did; at most `count` are looked at. Then where to go on; `None`: that was all.
    pub fn stripes_of(
        &self,
        vdisk: VdiskId,
        from: StripeId,
        count: usize,
    ) -> Result<StripesPage, CatalogError> {
        let read = self.database.begin_read()?;
        let (names, rows) = (read.open_table(STRIPES_OF)?, read.open_table(STRIPES)?);
        let mut found = Vec::new();
        let range = (vdisk.0, from.0)..=(vdisk.0, u64::MAX);
        for (looked, entry) in ascending("stripes", names.range(range)?).enumerate() {
            let stripe = entry?.0.value().1;
            if looked == count {
                return Ok((found, Some(StripeId(stripe))));
            }
            if let Some(row) = rows.get(stripe)? {
                let StripeRow { slots, holders, .. } = decode("stripes", row.value())?;
                let holder = holders.iter().find(|holder| holder.vdisk == vdisk);
                if let Some(holder) = holder.filter(|_| !slots.is_empty()) {
                    found.push((StripeId(stripe), holder.position));
                }
            }
        }
        Ok((found, None))
    }

    /// Who may name these stripes, in the order asked; nobody: the stripe does not exist.
    pub fn holders(&self, stripes: &[StripeId]) -> Result<Vec<Vec<VdiskId>>, CatalogError> {
        let read = self.database.begin_read()?;
        let rows = read.open_table(STRIPES)?;
        let holders = |stripe: &StripeId| -> Result<Vec<VdiskId>, CatalogError> {
            let Some(row) = rows.get(stripe.0)? else { return Ok(Vec::new()) };
            let StripeRow { slots, holders, .. } = decode("stripes", row.value())?;
            let kept = holders.into_iter().filter(|_| !slots.is_empty());
            Ok(kept.map(|holder| holder.vdisk).collect())
        };
        stripes.iter().map(holders).collect()
    }

    /// The row of a committed stripe.
    pub fn stripe(&self, stripe: StripeId) -> Result<Option<StripeRow>, CatalogError> {
        let read = self.database.begin_read()?;
        let row = read.open_table(STRIPES)?.get(stripe.0)?;
        row.map(|found| decode("stripes", found.value())).transpose()
    }

    /// How many committed stripes lack a shard, and how many lack more than parity can solve, when
    /// these drives (in order) are lost. Looks at every stripe.
    pub fn damage(&self, lost: &[DriveId]) -> Result<Damage, CatalogError> {
        let read = self.database.begin_read()?;
        let mut damage = Damage::default();
        for entry in ascending("stripes", read.open_table(STRIPES)?.iter()?) {
            let row: StripeRow = decode("stripes", entry?.1.value())?;
            match row.lacking(lost).count() {
                0 => {}
                1..=PARITY_SHARDS => damage.degraded += 1,
                _ => damage.lost += 1,
            }
        }
        Ok(damage)
    }

    /// Committed stripes, from one on, that lack shards when these drives (in order) are lost, and can be solved; at most
    /// `count` stripes are looked at.
    pub fn endangered(
        &self,
        lost: &[DriveId],
        from: StripeId,
        count: usize,
    ) -> Result<EndangeredPage, CatalogError> {
        self.stripes_page(from, count, |stripe, row| {
            let lacking = row.lacking(lost).count();
            (1..=PARITY_SHARDS).contains(&lacking).then_some((stripe, lacking as u8))
        })
    }

    /// Committed stripes with slots, from one on, in order of their identities; at most `count` stripes are looked at. And where
    /// to go on.
    pub fn committed(
        &self,
        from: StripeId,
        count: usize,
    ) -> Result<(Vec<StripeId>, Option<StripeId>), CatalogError> {
        self.stripes_page(from, count, |stripe, row| (!row.slots.is_empty()).then_some(stripe))
    }

    /// What is said of stripes from one on, of which at most `count` are looked at; and where to go on.
    fn stripes_page<T>(
        &self,
        from: StripeId,
        count: usize,
        say: impl Fn(StripeId, &StripeRow) -> Option<T>,
    ) -> Result<(Vec<T>, Option<StripeId>), CatalogError> {
        let read = self.database.begin_read()?;
        let mut found = Vec::new();
        let rows = read.open_table(STRIPES)?;
        for (looked, entry) in ascending("stripes", rows.range(from.0..)?).enumerate() {
            let (stripe, row) = entry?;
            let stripe = StripeId(stripe.value());
            if looked == count {
                return Ok((found, Some(stripe)));
            }
            found.extend(say(stripe, &decode("stripes", row.value())?));
        }
        Ok((found, None))
    }

    /// What an active controller keeps resident.
    pub fn resident(&self) -> Result<Resident, CatalogError> {
        let read = self.database.begin_read()?;
        let mut resident = Resident { applied: self.applied, ..Resident::default() };
        let meta = read.open_table(META)?;
        let newest = meta.get(NEWEST_STRIPE)?.map_or(0, |found| found.value());
        resident.newest_stripe = StripeId(newest);
        for entry in ascending("hosts", read.open_table(HOSTS)?.iter()?) {
            let (host, incarnation) = entry?;
            resident.hosts.push((HostId(host.value()), Incarnation(incarnation.value())));
        }
        for entry in ascending("vdisks", read.open_table(VDISKS)?.iter()?) {
            let (vdisk, row) = entry?;
            let row = decode("vdisks", row.value())?;
            resident.vdisks.push(ResidentVdisk { vdisk: VdiskId(vdisk.value()), row });
        }
        for entry in ascending("drives", read.open_table(DRIVES)?.iter()?) {
            let (drive, row) = entry?;
            resident.drives.push((DriveId(drive.value()), decode("drives", row.value())?));
        }
        for entry in ascending("held", read.open_table(HELD)?.iter()?) {
            let (drive, slot) = entry?.0.value();
            resident.held.push((DriveId(drive), SlotIndex(slot)));
            resident.mark(&[SlotPlace {
                drive: DriveId(drive),
                slot: SlotIndex(slot),
                generation: 0,
            }]);
        }
        for entry in ascending("grants", read.open_table(GRANTS)?.iter()?) {
            let (stripe, row) = entry?;
            let row: GrantRow = decode("grants", row.value())?;
            resident.mark(&row.slots);
            resident.grants.push((StripeId(stripe.value()), row));
        }
        for entry in ascending("stripes", read.open_table(STRIPES)?.iter()?) {
            let row: StripeRow = decode("stripes", entry?.1.value())?;
            resident.mark(&row.slots);
            resident.stripes += u64::from(!row.slots.is_empty());
        }
        Ok(resident)
    }
}
