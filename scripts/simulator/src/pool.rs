//! The judge of what is at rest: both catalogs, and every shard of every committed stripe.
//!
//! Looks only while both controllers are down after a clean stop: then the catalogs must be the same, no two
//! stripes or grants share a slot, and each committed stripe has all its shards, sealed and in place, each on a drive of
//! its own, but for those on drives that were lost or harmed, and for at most one that its commit said was missing (C16). At
//! the end of a run no shard is lacking for which another drive has room.

use crate::cluster::Cluster;
use crate::nvme::Nvme;
use cleave_catalog::tables::StripeRow;
use cleave_catalog::{Catalog, Owner};
use cleave_datanode_core::drives::DriveReport;
use cleave_format::control::{DriveState, SlotPlace};
use cleave_format::ids::{DriveId, StripeId};
use cleave_format::layout::{COLUMN, COLUMNS, PARITY_SHARDS, SHARD, SLOT, SLOT_HEADER};
use cleave_format::slot::SlotHeader;
use cleave_format::superblock::Superblock;
use std::collections::BTreeMap;
use std::path::Path;

/// Dumps are compared in pieces of about that many bytes.
const PIECE: usize = 1 << 20;

/// Looks at everything at rest. `drives`: what the active controller said of them when nothing moved any
/// more, each with its free slots.
pub fn judge(cluster: &Cluster, drives: &[(DriveReport, u32)]) {
    if let Err(what) = look(cluster, drives) {
        cluster.journal.fail(what);
    }
}

/// Looks at the shards alone: redundancy is whole whenever the controllers stopped cleanly, whatever the engine of the
/// host still has to do.
pub fn judge_shards(cluster: &Cluster) {
    if let Err(what) = look_at_shards(cluster) {
        cluster.journal.fail(what);
    }
}

fn look_at_shards(cluster: &Cluster) -> Result<(), String> {
    let owner = Owner { cluster: cluster.plan.cluster, datanode: cluster.plan.datanode };
    let text = |error: cleave_catalog::CatalogError| format!("the catalog cannot be read: {error}");
    let mut catalogs = Vec::new();
    for storage in &cluster.catalogs {
        let catalog = Catalog::open_storage(storage.open(), Path::new("catalog"), owner);
        catalogs.push(catalog.map_err(text)?);
    }
    // Slots are given out again by what the active one's says, which is never behind.
    let [one, other] = catalogs.as_slice() else { unreachable!("a controller has a catalog") };
    let catalog = if other.applied() > one.applied() { other } else { one };
    let newest = catalog.resident().map_err(text)?.newest_stripe;
    let mut stripes = 0;
    for stripe in (1..=newest.0).map(StripeId) {
        let row = catalog.stripe(stripe).map_err(text)?;
        if let Some(row) = row.filter(|row| !row.slots.is_empty()) {
            stripes += 1;
            check_stripe(cluster, stripe, &row)?;
        }
    }
    cluster.journal.note(format!("the shards of {stripes} stripes are whole"));
    Ok(())
}

fn look(cluster: &Cluster, drives: &[(DriveReport, u32)]) -> Result<(), String> {
    let owner = Owner { cluster: cluster.plan.cluster, datanode: cluster.plan.datanode };
    let mut catalogs = Vec::new();
    for (number, storage) in cluster.catalogs.iter().enumerate() {
        let name = format!("catalog {number}");
        let catalog = Catalog::open_storage(storage.open(), Path::new(&name), owner);
        catalogs.push(catalog.map_err(|error| format!("{name} cannot be opened: {error}"))?);
    }
    let dump = |catalog: &Catalog| -> Result<Vec<u8>, String> {
        let text = |error: cleave_catalog::CatalogError| format!("a dump failed: {error}");
        let mut dump = catalog.dump().map_err(text)?;
        let mut all = Vec::new();
        while let Some(piece) = dump.next_piece(PIECE).map_err(text)? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    };
    let (a, b) = (&catalogs[0], &catalogs[1]);
    if a.applied() != b.applied() || dump(a)? != dump(b)? {
        return Err(format!(
            "the catalogs differ: applied up to {} and {}",
            a.applied(),
            b.applied()
        ));
    }
    let resident = a.resident().map_err(|error| format!("the catalog cannot be read: {error}"))?;
    let mut slots = BTreeMap::new();
    for (stripe, grant) in &resident.grants {
        // Those of earlier incarnations ended with the next one's, or when they had been away for long.
        if cluster.incarnation() != Some(grant.incarnation) {
            let holder = grant.incarnation;
            return Err(format!("stripe {stripe} is still granted to incarnation {holder} (C15)"));
        }
        for place in &grant.slots {
            claim(&mut slots, place.drive.0, place.slot.0, *stripe)?;
        }
    }
    let mut stripes = 0;
    for number in 1..=resident.newest_stripe.0 {
        let stripe = StripeId(number);
        let row =
            a.stripe(stripe).map_err(|error| format!("the catalog cannot be read: {error}"))?;
        let Some(row) = row.filter(|row| !row.slots.is_empty()) else { continue };
        stripes += 1;
        for place in &row.slots {
            claim(&mut slots, place.drive.0, place.slot.0, stripe)?;
        }
        check_stripe(cluster, stripe, &row)?;
        check_mended(cluster, drives, stripe, &row)?;
        check_rebuilt(drives, stripe, &row)?;
    }
    // A drive that could not be opened has no slots.
    for (report, free) in drives.iter().filter(|(report, _)| report.slots > 0) {
        let own = (report.drive.0, 0)..=(report.drive.0, u32::MAX);
        let (used, named) = (report.slots - free, slots.range(own).count());
        if used as usize != named {
            let drive = report.drive;
            return Err(format!(
                "drive {drive}: {used} slots are taken, {named} have a stripe or grant"
            ));
        }
    }
    cluster.journal.note(format!(
        "the catalogs agree at {}: {stripes} stripes, {} grants, {} slots",
        a.applied(),
        resident.grants.len(),
        slots.len()
    ));
    Ok(())
}

fn claim(
    slots: &mut BTreeMap<(u16, u32), StripeId>,
    drive: u16,
    slot: u32,
    stripe: StripeId,
) -> Result<(), String> {
    match slots.insert((drive, slot), stripe) {
        None => Ok(()),
        Some(other) => {
            Err(format!("slot {slot} of drive {drive} belongs to stripes {other} and {stripe}"))
        }
    }
}

/// Whether what a slot holds may be wrong although its stripe was committed with it. Behind NVMe controllers only
/// damage to the very slot excuses it: however they failed, the driver said so of every write that did (C10).
fn is_harmed(cluster: &Cluster, drive: u16, offset: u64) -> bool {
    let behind = |nvme: &Nvme| nvme.place_of(usize::from(drive)).is_some();
    if drive < cluster.plan.victims && cluster.nvme.as_ref().is_some_and(behind) {
        let slot = offset..offset + SLOT as u64;
        return cluster.drives[usize::from(drive)].damaged().iter().any(|page| slot.contains(page));
    }
    drive < cluster.plan.victims
}

/// What lacks shards has them again, as far as there are drives with room for them (C16).
fn check_rebuilt(
    drives: &[(DriveReport, u32)],
    stripe: StripeId,
    row: &StripeRow,
) -> Result<(), String> {
    let lost = drives.iter().filter(|(report, _)| report.state == DriveState::Lost);
    let lost: Vec<DriveId> = lost.map(|(report, _)| report.drive).collect();
    let lacking: Vec<usize> = row.lacking(&lost).collect();
    let has_one = |drive: DriveId| row.slots.iter().any(|place| place.drive == drive);
    let others = drives.iter().filter(|(report, free)| {
        report.state == DriveState::Active && *free > 0 && !has_one(report.drive)
    });
    let others = others.count();
    match lacking.is_empty() || others == 0 {
        true => Ok(()),
        false => Err(format!(
            "stripe {stripe} lacks shards {lacking:?}, and {others} drives have room for them (C16)"
        )),
    }
}

/// All stripes were looked at: of what parity can solve nothing on a drive in use is damaged any more, and parity is that of
/// the data (C3, C16).
fn check_mended(
    cluster: &Cluster,
    drives: &[(DriveReport, u32)],
    stripe: StripeId,
    row: &StripeRow,
) -> Result<(), String> {
    let width = row.slots.len();
    let in_use = |drive: DriveId| {
        drives.iter().any(|(it, _)| it.drive == drive && it.state == DriveState::Active)
    };
    let (mut damaged, mut lacking, mut shards) = (Vec::new(), 0, Vec::new());
    for (shard, place) in row.slots.iter().enumerate() {
        if row.shards_missing >> shard & 1 == 1 || !in_use(place.drive) {
            lacking += 1;
            shards.push(None);
            continue;
        }
        let whole = shard_at(cluster, stripe, shard, place).ok();
        if whole.is_none() {
            damaged.push(shard);
        }
        shards.push(whole);
    }
    if !damaged.is_empty() && damaged.len() + lacking <= PARITY_SHARDS {
        return Err(format!("stripe {stripe}: shards {damaged:?} are damaged after a scrub"));
    }
    if !damaged.is_empty() || lacking > 0 || width <= PARITY_SHARDS {
        return Ok(());
    }
    let data: Vec<Option<&[u8]>> = shards
        .iter()
        .enumerate()
        .map(|(shard, bytes)| bytes.as_deref().filter(|_| shard < width - PARITY_SHARDS))
        .collect();
    let (mut first, mut second) = (vec![0; SHARD], vec![0; SHARD]);
    let mut wanted = [(width - 2, &mut first[..]), (width - 1, &mut second[..])];
    let solved = cleave_erasure::Solver::new().recover(&data, &mut wanted);
    solved.map_err(|error| format!("stripe {stripe}: {error}"))?;
    match shards[width - 2].as_deref() == Some(&first[..])
        && shards[width - 1].as_deref() == Some(&second[..])
    {
        true => Ok(()),
        false => Err(format!("stripe {stripe}: parity is not that of its data (C16)")),
    }
}

/// A shard as it lies on its drive, if it passes all checks (C3).
fn shard_at(
    cluster: &Cluster,
    stripe: StripeId,
    shard: usize,
    place: &SlotPlace,
) -> Result<Vec<u8>, String> {
    let index = usize::from(place.drive.0);
    let identity = crate::cluster::identity(&cluster.plan, index);
    let superblock = Superblock::for_size(identity, cluster.plan.drive_size);
    let offset = superblock.expect("drives are large enough").slot_offset(place.slot);
    let drive = &cluster.drives[index];
    let header = SlotHeader::decode(&drive.peek(offset, SLOT_HEADER));
    let header = header.map_err(|error| error.to_string())?;
    let same = header.check_identity(cluster.plan.cluster, stripe, shard, place);
    same.map_err(|error| error.to_string())?;
    let data = drive.peek(offset + SLOT_HEADER as u64, SHARD);
    let column = |index| header.check_column(index, &data[index * COLUMN..][..COLUMN]);
    (0..COLUMNS).try_for_each(column).map_err(|error| error.to_string())?;
    Ok(data)
}

/// Redundancy is whole, but for what was harmed on purpose.
fn check_stripe(cluster: &Cluster, stripe: StripeId, row: &StripeRow) -> Result<(), String> {
    let mut on: Vec<DriveId> = row.slots.iter().map(|place| place.drive).collect();
    on.sort_unstable();
    if let Some(twice) = on.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two shards of stripe {stripe} are on drive {} (C16)", twice[0]));
    }
    if row.shards_missing.count_ones() > 1 {
        return Err(format!("stripe {stripe} was committed without several shards (C16)"));
    }
    let mut missing = 0;
    for (shard, place) in row.slots.iter().enumerate() {
        let said = row.shards_missing >> shard & 1 == 1;
        let index = usize::from(place.drive.0);
        let identity = crate::cluster::identity(&cluster.plan, index);
        let superblock = Superblock::for_size(identity, cluster.plan.drive_size);
        let offset = superblock.expect("drives are large enough").slot_offset(place.slot);
        let harmed = is_harmed(cluster, place.drive.0, offset);
        let whole = shard_at(cluster, stripe, shard, place).map(drop);
        match whole {
            Ok(()) => {}
            Err(_) if harmed || said => missing += 1,
            Err(error) => {
                return Err(format!("stripe {stripe}, shard {shard} at {place:?}: {error}"));
            }
        }
    }
    if missing > 2 {
        return Err(format!("{missing} shards of stripe {stripe} are gone"));
    }
    Ok(())
}
