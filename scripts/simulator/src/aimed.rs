//! Strikes that are aimed: each waits until what it wants to hit is there.
//!
//! A strike at a random moment seldom meets a shard on its way to a drive, and never a page whose content is
//! worth mistaking for another's. These look first. What they leave behind is as with other strikes:
//! damage on drives that may be harmed, and processes that the director brings back.

use crate::cluster::Cluster;
use crate::director::{RECOVERY, revive, time_of};
use crate::kinds::Kind;
use crate::plan::CONTROLLERS;
use crate::strikes::keep_busy;
use cleave_format::frame::{self, FRAME_HEADER};
use cleave_format::layout::{PART, SHARD, SLOT, SLOT_HEADER};
use cleave_format::superblock::FIRST_SLOT;
use cleave_runtime_sim::SimDrive;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// How long guests write until a shard must be on its way.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long guests may take for a round of requests, until they get more to do.
const OVERTAKING: Duration = Duration::from_secs(3);
/// How long a host must be away at least for its grants to end.
const GRANTS_END: u64 = 62;

/// Writes to a drive take very long, and meanwhile what they were written for ends: the host dies, or its
/// grants do; or stripes that came later are committed first, and then the host dies (C2, C15).
pub fn late_writes(cluster: &mut Cluster) {
    if !well(cluster) {
        return;
    }
    let second = std::rc::Rc::clone(&cluster.second);
    let number = second.below(cluster.drives.len() as u64) as usize;
    let drive = cluster.drives[number].clone();
    let factor = [5_000, 20_000, 100_000][second.below(3) as usize];
    drive.slow(factor);
    let met = write_until(cluster, |_| drive.writes_in_flight() > 0);
    cluster.pass(time_of(&*second, Duration::from_millis(20)));
    drive.slow(1);
    if !met {
        return;
    }
    let what = format!("writes of {} take {factor} times as long", drive.name());
    cluster.journal.fault(Kind::LateWrite, what);
    match second.below(8) {
        0..3 => {
            cluster.crash_host(second.below(2) == 0);
            cluster.pass(time_of(&*second, Duration::from_secs(1)));
            cluster.start_host();
        }
        3 => {
            let name = cluster.host_name();
            CONTROLLERS.iter().for_each(|other| cluster.world.partition(name, other));
            cluster.pass(Duration::from_secs(GRANTS_END + second.below(20)));
            CONTROLLERS.iter().for_each(|other| cluster.world.heal(name, other));
        }
        _ => {}
    }
    // What comes later goes its way at once.
    for _ in 0..1 + second.below(8) {
        keep_busy(cluster);
        cluster.reaches(OVERTAKING, Cluster::guests_quiet);
    }
    // Whoever opens a vdisk now sees what was durable, whatever the late writes were to make so.
    if second.below(3) > 0 && drive.writes_in_flight() > 0 {
        cluster.crash_host(second.below(2) == 0);
    }
}

/// All drives that may be lost are lost at once, with shards on their way to them.
pub fn lose_drives(cluster: &mut Cluster) {
    if !well(cluster) {
        return;
    }
    let lost = usize::from(cluster.lost.get());
    let doomed = &cluster.drives[lost..usize::from(cluster.plan.victims)];
    if doomed.is_empty() {
        return;
    }
    doomed.iter().for_each(|drive| drive.slow(500));
    write_until(cluster, |_| doomed.iter().all(|drive| drive.writes_in_flight() > 0));
    cluster.journal.note(format!("{} drives are lost at once", doomed.len()));
    for drive in doomed {
        drive.slow(1);
        drive.lose();
    }
    cluster.lost.set(cluster.plan.victims);
}

/// A drive that may be harmed mixes up parts of two shards: each is whole, and in the other's place (C3).
pub fn exchange_parts(cluster: &Cluster) {
    let victims = u64::from(cluster.plan.victims);
    if victims == 0 {
        return;
    }
    let drive = &cluster.drives[cluster.second.below(victims) as usize];
    for _ in 0..1 + cluster.second.below(6) {
        if let Some((one, other)) = alike(cluster, drive) {
            cluster.journal.fault(
                Kind::ExchangedParts,
                format!("{}: {PART} bytes at {one} and {other} trade places", drive.name()),
            );
            drive.exchange(one, other, PART as u64);
        }
    }
}

/// Where two parts begin with frames of the same length, one of which could pass for the other.
fn alike(cluster: &Cluster, drive: &SimDrive) -> Option<(u64, u64)> {
    let pages = drive.stored_pages().into_iter();
    let slots: BTreeSet<u64> =
        pages.filter_map(|page| Some(page.checked_sub(FIRST_SLOT)? / SLOT as u64)).collect();
    let mut places: BTreeMap<usize, Vec<u64>> = BTreeMap::new();
    for slot in slots {
        let shard = FIRST_SLOT + slot * SLOT as u64 + SLOT_HEADER as u64;
        for place in (0..SHARD).step_by(PART).map(|part| shard + part as u64) {
            if place + PART as u64 <= drive.capacity()
                && let Ok(length) = frame::frame_length(&drive.peek(place, FRAME_HEADER))
            {
                places.entry(length).or_default().push(place);
            }
        }
    }
    places.retain(|_, places| places.len() > 1);
    let pick = |count: usize| cluster.second.below(count as u64) as usize;
    if places.is_empty() {
        return None;
    }
    let mut found = places.values().nth(pick(places.len()))?.clone();
    let one = found.swap_remove(pick(found.len()));
    Some((one, found[pick(found.len())]))
}

/// Brings back what an earlier strike took away: nothing is on its way in a cluster that lies in pieces.
pub fn well(cluster: &mut Cluster) -> bool {
    revive(cluster);
    cluster.until("well before an aimed strike", RECOVERY, |c| c.serves() && c.mirrored())
}

/// Lets guests write until something holds. Whether it does.
pub fn write_until(cluster: &Cluster, holds: impl Fn(&Cluster) -> bool) -> bool {
    let rounds = PATIENCE.as_secs() / OVERTAKING.as_secs();
    (0..rounds).any(|_| {
        keep_busy(cluster);
        cluster.reaches(OVERTAKING, &holds)
    })
}
