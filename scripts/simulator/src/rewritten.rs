//! Strikes on a region that a guest writes from beginning to end again and again, as logs, journals and databases
//! do: so nothing of what a late stripe holds counts any more, and nothing else holds back what its commit must be
//! compared with (C2). And on vdisks that open where reads are slow, so that their maps are not counted for long
//! (C20).
//!
//! Only in seeds whose plan says so, and all draws are of a stream of their own. As with arranged strikes the
//! cluster is well before, and the guests read everything after.

use crate::arranged::{begin, capacity, end, stats};
use crate::cluster::Cluster;
use crate::director::{RECOVERY, stop_host};
use crate::kinds::Kind;
use crate::log_loss;
use crate::workload::BLOCK_SECTORS;
use cleave_format::layout::{PIECE_SLICES, SLICE_BLOCKS};
use cleave_runtime::random::Random;
use cleave_runtime_sim::SimDrive;
use cleave_verify::content::SECTOR;
use cleave_verify::model::Sectors;
use std::rc::Rc;
use std::time::Duration;

/// How long a region may take to be written, and whatever must come of it.
const PATIENCE: Duration = Duration::from_secs(25);
/// How long anything may be on its way to a drive that was slow.
const ARRIVAL: Duration = Duration::from_secs(600);
/// How often a region is written until something must have come of it.
const ROUNDS: usize = 4;
/// Sectors whose blocks one piece of the map describes.
const GROUP_SECTORS: u64 = PIECE_SLICES as u64 * SLICE_BLOCKS as u64 * BLOCK_SECTORS;
/// Pieces that a vdisk's map has at least.
const GROUPS: u64 = 3;

type Strike = fn(&mut Cluster);

const LIST: [Strike; 4] = [overtaken, in_a_run, with_another_log, opened_slowly];

/// One of them, in some episodes.
pub fn strike(cluster: &mut Cluster) {
    let Some(random) = cluster.rewrites.clone() else { return };
    if cluster.journal.failed() || random.below(3) == 0 {
        return;
    }
    let strike = LIST[random.below(LIST.len() as u64) as usize];
    if begin(cluster) {
        cluster.guests.iter().for_each(|guest| guest.borrow_mut().set_budget(0));
        if cluster.until("guests at rest", RECOVERY, Cluster::guests_quiet) {
            strike(cluster);
            // Also what else went to the slow drive, flushes above all: no stripe is durable before.
            cluster.reaches(ARRIVAL, |c| c.drives.iter().all(|drive| drive.in_flight() == 0));
        }
        end(cluster);
    }
}

/// Bytes of the write buffer in such a seed, with so many drives: for late stripes, and for what overtakes them.
pub fn write_buffer(drives: u16) -> u64 {
    6 * capacity(drives)
}

/// Bytes of the first vdisk in such a seed, at least.
pub fn size_min(drives: u16) -> u64 {
    (3 * capacity(drives)).max(GROUPS * GROUP_SECTORS * SECTOR as u64)
}

/// The stripes that hold a region are committed in the other order: the one with the older content comes last.
fn overtaken(cluster: &mut Cluster) {
    let Some(held) = hold_up(cluster) else { return };
    let before = stats(cluster).stripes_committed;
    let newer = |c: &Cluster| stats(c).stripes_committed > before || !held.is_late();
    rewrite(cluster, &held.region, newer);
    cluster.reaches(PATIENCE, newer);
    held.arrive(cluster);
}

/// The newer content is in the map, and in a run of it, when the host dies; the older content is still in the log.
fn in_a_run(cluster: &mut Cluster) {
    let Some(held) = hold_up(cluster) else { return };
    let before = stats(cluster);
    let newer = |c: &Cluster| stats(c).stripes_committed > before.stripes_committed;
    rewrite(cluster, &held.region, |c| newer(c) || !held.is_late());
    cluster.reaches(PATIENCE, |c| newer(c) || !held.is_late());
    // What brings the run's pieces to the drives is content of another region: the map alone has the first.
    let runs = stats(cluster).runs;
    let written = |c: &Cluster| stats(c).runs > runs || !held.is_late();
    let (start, length) = (held.region.end, held.region.end - held.region.start);
    for _ in 0..3 {
        if !written(cluster) {
            rewrite(cluster, &(start..start + length), written);
        }
    }
    cluster.reaches(PATIENCE, written);
    if held.is_late() {
        let resume = random(cluster).below(2) == 0;
        cluster.crash_host(resume);
    }
}

/// The log is lost while a stripe is on its way, nothing of which counts any more; what was sent to the next log
/// is committed first.
fn with_another_log(cluster: &mut Cluster) {
    let Some(held) = hold_up(cluster) else { return };
    rewrite(cluster, &held.region, |_| false);
    cluster.reaches(PATIENCE, Cluster::guests_quiet);
    if !held.is_late() || !cluster.guests_quiet() || cluster.controllers.iter().any(Option::is_none)
    {
        return;
    }
    let random = random(cluster);
    cluster.journal.at(&cluster.world);
    cluster
        .journal
        .fault(Kind::LogLost, "both controllers crash at once, with a stripe on its way");
    log_loss::lose_both(cluster, &*random);
    // The shard is written again, and takes as long again.
    held.drive.slow(held.factor);
    cluster.reaches(PATIENCE, |_| held.is_late());
    held.drive.slow(1);
    let before = stats(cluster).stripes_committed;
    let newer = |c: &Cluster| stats(c).stripes_committed > before || !held.is_late();
    rewrite(cluster, &held.region, newer);
    cluster.reaches(PATIENCE, newer);
    held.arrive(cluster);
    log_loss::wait_until_sent_again(cluster);
}

/// A vdisk opens where reads take very long, and writes do not: its stripes are listed long before its map is counted,
/// and meanwhile commits and runs go on.
fn opened_slowly(cluster: &mut Cluster) {
    let random = random(cluster);
    // Commits after the last run, and records that no commit released, are of one piece.
    let groups = cluster.guests[0].borrow().size() / SECTOR as u64 / GROUP_SECTORS;
    let first = random.below(groups.max(1)) * GROUP_SECTORS;
    let group = first..first + GROUP_SECTORS;
    let runs = stats(cluster).runs;
    for _ in 0..ROUNDS {
        if stats(cluster).runs == runs {
            rewrite(cluster, &group, |c| stats(c).runs > runs);
        }
    }
    cluster.guests[0].borrow_mut().rewrite(0..0);
    if random.below(2) == 0 {
        stop_host(cluster);
    } else {
        cluster.crash_host(false);
    }
    if cluster.journal.failed() {
        return;
    }
    cluster.start_host();
    if !cluster.until("served again", RECOVERY, Cluster::serves) {
        return;
    }
    let devices = cluster.flash.iter().map(|flash| flash.of(cluster.host_number()));
    let slow: Vec<SimDrive> = cluster.drives.iter().cloned().chain(devices).collect();
    let factor = [5_000, 20_000, 60_000][random.below(3) as usize];
    cluster.journal.at(&cluster.world);
    cluster.journal.note(format!("a vdisk opens where reads take {factor} times as long"));
    slow.iter().for_each(|device| device.slow_reads(factor));
    for _ in 0..4 + random.below(16) {
        if cluster.guests_quiet() {
            cluster.guests[0].borrow_mut().rewrite(group.clone());
        }
        cluster.host.iter().for_each(|host| host.process().wake());
        cluster.pass(Duration::from_millis(500));
    }
    slow.iter().for_each(|device| device.slow_reads(1));
}

/// A stripe that is on its way to a drive, with the first of what was written of a region.
struct HeldUp {
    drive: SimDrive,
    factor: u32,
    region: Sectors,
}

impl HeldUp {
    fn is_late(&self) -> bool {
        self.drive.writes_in_flight() > 0
    }

    /// It arrives.
    fn arrive(&self, cluster: &Cluster) {
        cluster.reaches(Duration::from_secs(100), |_| !self.is_late());
        cluster.pass(Duration::from_millis(200));
    }
}

/// A guest writes a region that is somewhat more than a stripe, and one of that stripe's shards takes very long.
fn hold_up(cluster: &mut Cluster) -> Option<HeldUp> {
    let random = random(cluster);
    let sectors = capacity(cluster.plan.drives) / SECTOR as u64;
    let region = sectors + sectors / 8 * (1 + random.below(3));
    let size = cluster.guests[0].borrow().size() / SECTOR as u64;
    if size < 2 * region {
        return None;
    }
    let first = random.below((size - 2 * region) / BLOCK_SECTORS + 1) * BLOCK_SECTORS;
    let drive = cluster.drives[random.below(cluster.drives.len() as u64) as usize].clone();
    let factor = [20_000, 40_000][random.below(2) as usize];
    let held = HeldUp { drive, factor, region: first..first + region };
    held.drive.slow(factor);
    rewrite(cluster, &held.region, |_| held.is_late());
    cluster.reaches(PATIENCE, |_| held.is_late());
    held.drive.slow(1);
    if !held.is_late() {
        return None;
    }
    cluster.journal.at(&cluster.world);
    let what = format!("a stripe on its way to {} is overtaken", held.drive.name());
    cluster.journal.fault(Kind::LateWrite, what);
    // All of the region is written once before it is written again.
    cluster.reaches(PATIENCE, Cluster::guests_quiet);
    Some(held)
}

/// The first guest writes a region from beginning to end, until something holds.
fn rewrite(cluster: &Cluster, region: &Sectors, until: impl Fn(&Cluster) -> bool) {
    cluster.guests[0].borrow_mut().rewrite(region.clone());
    cluster.host.iter().for_each(|host| host.process().wake());
    cluster.reaches(PATIENCE, |c| until(c) || c.guests_quiet());
}

fn random(cluster: &Cluster) -> Rc<dyn Random> {
    Rc::clone(cluster.rewrites.as_ref().expect("the plan says so"))
}
