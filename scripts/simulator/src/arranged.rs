//! Strikes that arrange an order of events which a rule exists for, and which chance hardly ever brings about.
//!
//! Each waits for the first event, holds it back, lets the second one overtake it, and then takes away what
//! hides the difference: the host's memory, or the time that a catalog needs. All their draws are of a stream
//! of their own, so that what other strikes of a seed bring stays what it was.

use crate::cluster::Cluster;
use crate::director::{RECOVERY, revive, time_of};
use crate::kinds::Kind;
use cleave_format::layout::{PARITY_SHARDS, SHARD};
use cleave_host_core::CoreStats;
use cleave_runtime_sim::{SimDrive, Span};
use cleave_verify::content::SECTOR;
use std::rc::Rc;
use std::time::Duration;

/// One episode in so many has one of these.
const ONE_IN: u64 = 3;
/// How long guests write until something must have happened.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a round of requests may take, until guests get more to do.
const ROUND: Duration = Duration::from_millis(250);

/// A strike; false when the cluster is not one that it can hit.
type Arranged = fn(&mut Cluster) -> bool;

/// All of them, some more often than others; where one cannot strike, the next one does.
const LIST: [Arranged; 8] =
    [overtake, short_of_space, overtake, crowd, reuse_flash, crowd, lose_two_shards, open_at_once];

/// One of them, in some episodes.
pub fn strike(cluster: &mut Cluster) {
    if cluster.arranged.below(ONE_IN) > 0 {
        return;
    }
    let first = cluster.arranged.below(LIST.len() as u64) as usize;
    let mut strikes = LIST.iter().cycle().skip(first).take(LIST.len());
    strikes.find(|strike| strike(cluster));
}

/// A stripe is held up on its way to one drive; what overwrites its content is committed before it (C2). Then it comes
/// late, in some runs after a map run that could free what it refers to (C19); or the host dies when the newer
/// content is in a map run, and the older one in the log alone.
fn overtake(cluster: &mut Cluster) -> bool {
    let room = cluster.plan.write_buffer.min(cluster.plan.log.record_bytes_max / 4 * 3);
    if cluster.plan.destage.stripes_max < 2 || room < 3 * capacity(cluster.plan.drives) {
        return false;
    }
    if !begin(cluster) {
        return true;
    }
    let random = Rc::clone(&cluster.arranged);
    focus(cluster);
    let drive = cluster.drives[random.below(cluster.drives.len() as u64) as usize].clone();
    drive.slow(60_000);
    let held_up = write_until(cluster, |_| drive.writes_in_flight() > 0);
    drive.slow(1);
    let before = stats(cluster);
    let late = |_: &Cluster| drive.writes_in_flight() == 0;
    let committed = |c: &Cluster| stats(c).stripes_committed > before.stripes_committed;
    if held_up && write_until(cluster, |c| committed(c) || late(c)) && !late(cluster) {
        let what = format!("a stripe on its way to {} is overtaken", drive.name());
        cluster.journal.fault(Kind::LateWrite, what);
        let how = random.below(3);
        if how > 0 {
            let runs = stats(cluster).runs + 1 + random.below(2);
            write_until(cluster, |c| stats(c).runs >= runs || late(c));
        }
        match how {
            1 => cluster.crash_host(random.below(2) == 0),
            _ => drop(cluster.reaches(Duration::from_secs(100), late)),
        }
    }
    end(cluster);
    true
}

/// Another host joins while this one has as much in the log as its smaller share lets it have just so: what is sent
/// before it hears of that is refused in part (C1, C13). Then it dies.
fn crowd(cluster: &mut Cluster) -> bool {
    // The share of one of two hosts, and a quarter more: so much is taken.
    let quota = cluster.plan.log.record_bytes_max / 4 * 3;
    let wanted = quota / 8 * 5;
    if cluster.abandoned.is_some() || cluster.plan.write_buffer < wanted {
        return false;
    }
    if !begin(cluster) {
        return true;
    }
    let random = Rc::clone(&cluster.arranged);
    // Nothing is destaged meanwhile.
    cluster.drives.iter().for_each(|drive| drive.hang(true));
    let start = wanted - random.below(wanted / 16);
    let held = |c: &Cluster| status(c).is_some_and(|status| status.record_bytes >= start);
    if write_until(cluster, held) {
        cluster.guests.iter().for_each(|guest| guest.borrow_mut().set_budget(0));
        cluster.reaches(RECOVERY, Cluster::guests_quiet);
        let mut usual = Span::micros(0, 0);
        cluster.world.change_settings(|settings| {
            usual = std::mem::replace(&mut settings.latency, Span::micros(1_000, 8_000));
        });
        cluster.journal.note("another host joins");
        cluster.join_host();
        let joined = |c: &Cluster| status(c).is_some_and(|status| status.quota < quota);
        if cluster.reaches(PATIENCE, joined) {
            keep_busy(cluster);
            cluster.pass(Duration::from_millis(30 + random.below(100)));
        }
        cluster.world.change_settings(|settings| settings.latency = usual);
        cluster.crash_host(random.below(2) == 0);
    }
    cluster.drives.iter().for_each(|drive| drive.hang(false));
    end(cluster);
    true
}

/// Stripes are given up for want of space, and what they held is written again when there is some, in part
/// newer; flash has what it was given of them at first (C3).
fn short_of_space(cluster: &mut Cluster) -> bool {
    if cluster.flash.is_none() {
        return false;
    }
    if !begin(cluster) {
        return true;
    }
    focus(cluster);
    let before = stats(cluster).stripes_abandoned;
    cluster.drives.iter().for_each(|drive| drive.set_full(true));
    let given_up = write_until(cluster, |c| stats(c).stripes_abandoned > before);
    cluster.drives.iter().for_each(|drive| drive.set_full(false));
    if given_up {
        let committed = stats(cluster).stripes_committed;
        write_until(cluster, |c| stats(c).stripes_committed > committed);
    }
    end(cluster);
    true
}

/// Both drives that may be lost are, with shards of one stripe on their way to them (C16).
fn lose_two_shards(cluster: &mut Cluster) -> bool {
    let victims = usize::from(cluster.plan.victims);
    if victims < 2 || cluster.lost.get() > 0 {
        return false;
    }
    if !begin(cluster) {
        return true;
    }
    let doomed: Vec<SimDrive> = cluster.drives[..victims].to_vec();
    focus(cluster);
    doomed.iter().for_each(|drive| drive.hang(true));
    let both = |_: &Cluster| doomed.iter().all(|drive| drive.writes_in_flight() > 0);
    if write_until(cluster, both) {
        cluster.journal.note("two drives are lost, with shards on their way");
        doomed.iter().for_each(SimDrive::lose);
        cluster.lost.set(cluster.plan.victims);
    }
    doomed.iter().for_each(|drive| drive.hang(false));
    end(cluster);
    true
}

/// The host dies when a commit was just answered, and the next one opens what it left at once (C8).
fn open_at_once(cluster: &mut Cluster) -> bool {
    if !begin(cluster) {
        return true;
    }
    let random = Rc::clone(&cluster.arranged);
    for _ in 0..1 + random.below(4) {
        let before = stats(cluster).stripes_committed;
        write_until(cluster, |c| stats(c).stripes_committed > before);
        cluster.pass(time_of(&*random, Duration::from_millis(2)));
        cluster.crash_host(random.below(2) == 0);
        cluster.start_host();
        if !cluster.until("served after a crash", RECOVERY, Cluster::serves) {
            return true;
        }
    }
    end(cluster);
    true
}

/// Reads of flash take long, and meanwhile their places are given to other parts (C3).
fn reuse_flash(cluster: &mut Cluster) -> bool {
    let Some(flash) = &cluster.flash else { return false };
    let device = flash.of(cluster.host_number());
    if !begin(cluster) {
        return true;
    }
    let random = Rc::clone(&cluster.arranged);
    for _ in 0..2 + random.below(6) {
        // Not so long that the pool answers in place of flash.
        device.slow(2_000 + random.below(2_000) as u32);
        let reads = |_: &Cluster| device.in_flight() > device.writes_in_flight();
        let reached = write_until(cluster, reads);
        device.slow(1);
        // Flash that the engine does not use is never read.
        if !reached {
            break;
        }
        for _ in 0..10 {
            keep_busy(cluster);
            cluster.reaches(Duration::from_millis(100), Cluster::guests_quiet);
        }
    }
    end(cluster);
    true
}

/// Brings back what an earlier strike took away: nothing is arranged in a cluster that lies in pieces.
pub fn begin(cluster: &mut Cluster) -> bool {
    revive(cluster);
    cluster.until("well before an arranged strike", RECOVERY, |c| c.serves() && c.mirrored())
}

/// Whatever it was: the guests read everything, as far as they live.
pub fn end(cluster: &mut Cluster) {
    cluster.guests.iter().for_each(|guest| {
        let mut guest = guest.borrow_mut();
        guest.focus(None);
        guest.check_everything();
    });
    cluster.host.iter().for_each(|host| host.process().wake());
}

/// Guests write to one region each for a while, so that the same blocks are written again and again: more than a stripe
/// together, so that a full one is there while another is on its way.
fn focus(cluster: &Cluster) {
    let random = &cluster.arranged;
    let sectors = capacity(cluster.plan.drives) / SECTOR as u64;
    for guest in cluster.guests.iter() {
        let length = sectors + random.below(sectors);
        guest.borrow_mut().focus(Some((random.below(1 << 16), length)));
    }
}

/// Bytes of a stripe's data section with so many drives, while none is lost.
pub fn capacity(drives: u16) -> u64 {
    (u64::from(drives) - PARITY_SHARDS as u64) * SHARD as u64
}

/// What the host engine counted, if it runs.
pub fn stats(cluster: &Cluster) -> CoreStats {
    cluster.host.as_ref().and_then(|host| host.stats()).unwrap_or_default()
}

fn status(cluster: &Cluster) -> Option<cleave_datanode_core::status::Status> {
    cluster.active().and_then(|active| active.status())
}

/// Guests that are done get some more to do.
fn keep_busy(cluster: &Cluster) {
    for guest in cluster.guests.iter() {
        let mut guest = guest.borrow_mut();
        if guest.budget() == 0 && guest.is_quiet() {
            guest.set_budget(cluster.plan.requests);
        }
    }
    cluster.host.iter().for_each(|host| host.process().wake());
}

/// Lets guests write until something holds. Whether it does.
pub fn write_until(cluster: &Cluster, holds: impl Fn(&Cluster) -> bool) -> bool {
    let rounds = PATIENCE.as_millis() / ROUND.as_millis();
    (0..rounds).any(|_| {
        keep_busy(cluster);
        cluster.reaches(ROUND, &holds)
    })
}
