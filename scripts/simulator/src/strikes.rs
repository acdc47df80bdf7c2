//! The second list of strikes: in some episodes one of these comes after what the first list brought.
//!
//! All their draws are of a stream of their own, so that the seeds of the first list still bring what they
//! brought. Like those, each leaves behind only what the director brings back or the finale heals.

use crate::aimed;
use crate::cluster::Cluster;
use crate::director::{crash_controller, revive, time_of};
use crate::kinds::Kind;
use crate::log_loss;
use crate::plan::CONTROLLERS;
use cleave_runtime_sim::{SimDrive, Span};
use std::rc::Rc;
use std::time::Duration;

/// Blocks that a vdisk grows by at most.
const GROWTH_BLOCKS_MAX: u64 = 2_000;

#[derive(Clone, Copy, Debug)]
enum Second {
    SlowDrive,
    HungDrive,
    FailedRequests,
    SlowNetwork,
    LostHost,
    Resize,
    PastGrants,
    StoreCrash,
    FullDrive,
    Misdirected,
    LateWrites,
    LostDrives,
    ExchangedParts,
    LostLog,
    LostEverything,
    Spoiled,
}

const LIST: [(Second, u64); 16] = [
    (Second::SlowDrive, 3),
    (Second::HungDrive, 3),
    (Second::FailedRequests, 4),
    (Second::SlowNetwork, 3),
    (Second::LostHost, 3),
    (Second::Resize, 3),
    (Second::PastGrants, 2),
    (Second::StoreCrash, 4),
    (Second::FullDrive, 3),
    (Second::Misdirected, 4),
    (Second::LateWrites, 10),
    (Second::LostDrives, 2),
    (Second::ExchangedParts, 4),
    (Second::LostLog, 4),
    (Second::LostEverything, 4),
    (Second::Spoiled, 3),
];

/// One more strike in the present episode.
pub fn second(cluster: &mut Cluster) {
    let total: u64 = LIST.iter().map(|(_, weight)| weight).sum();
    let mut place = cluster.second.below(total);
    let strike = LIST.iter().find(|(_, weight)| {
        let found = place < *weight;
        place = place.saturating_sub(*weight);
        found
    });
    let (strike, _) = strike.expect("the place is below the total");
    cluster.journal.at(&cluster.world);
    cluster.journal.note(format!("and then: {strike:?}"));
    keep_busy(cluster);
    match strike {
        Second::SlowDrive => slow_drive(cluster),
        Second::HungDrive => hung_drive(cluster),
        Second::FailedRequests => failed_requests(cluster),
        Second::SlowNetwork => slow_network(cluster),
        Second::LostHost => lose_host(cluster),
        Second::Resize => resize(cluster),
        Second::PastGrants => past_grants(cluster),
        Second::StoreCrash => crash_store(cluster),
        Second::FullDrive => full_drive(cluster),
        Second::Misdirected => misdirected(cluster),
        Second::LateWrites => aimed::late_writes(cluster),
        Second::LostDrives => aimed::lose_drives(cluster),
        Second::ExchangedParts => aimed::exchange_parts(cluster),
        Second::LostLog if cluster.plan.loses_logs => {
            let second = Rc::clone(&cluster.second);
            log_loss::lose_log(cluster, &*second);
        }
        Second::LostLog => {}
        Second::LostEverything => log_loss::lose_everything(cluster),
        Second::Spoiled => spoiled(cluster),
    }
}

fn time(cluster: &Cluster, max: Duration) -> Duration {
    time_of(&*cluster.second, max)
}

/// Guests that are done get some more to do, so that the strike meets requests in flight.
pub fn keep_busy(cluster: &Cluster) {
    for guest in cluster.guests.iter() {
        let mut guest = guest.borrow_mut();
        if guest.budget() == 0 && guest.is_quiet() {
            guest.set_budget(1 + cluster.second.below(cluster.plan.requests));
        }
    }
    if let Some(host) = &cluster.host {
        host.process().wake();
    }
    cluster.pass(time(cluster, Duration::from_millis(2)));
}

fn any_drive(cluster: &Cluster) -> SimDrive {
    // The vaults too: a clean stop must wait for a slow one.
    let number = cluster.second.below(cluster.drives.len() as u64 + 2) as usize;
    cluster.drives.iter().chain(&cluster.vaults).nth(number).expect("it is below the count").clone()
}

fn slow_drive(cluster: &Cluster) {
    let (drive, span) = (any_drive(cluster), time(cluster, Duration::from_secs(20)));
    let factor =
        2 + cluster.second.below([10, 100, 2_000][cluster.second.below(3) as usize]) as u32;
    cluster.journal.note(format!("{} is {factor} times as slow for {span:?}", drive.name()));
    drive.slow(factor);
    cluster.pass(span);
    drive.slow(1);
}

fn hung_drive(cluster: &Cluster) {
    let (drive, span) = (any_drive(cluster), time(cluster, Duration::from_secs(60)));
    cluster.journal.note(format!("{} answers nothing for {span:?}", drive.name()));
    drive.hang(true);
    cluster.pass(span);
    drive.hang(false);
}

/// A drive that may be harmed and is there.
fn victim(cluster: &Cluster) -> Option<SimDrive> {
    let (lost, victims) = (cluster.lost.get(), cluster.plan.victims);
    let left = u64::from(victims.saturating_sub(lost));
    let number = usize::from(lost) + cluster.second.below(left.max(1)) as usize;
    cluster.drives[..usize::from(victims)].get(number).cloned()
}

/// A few requests of a drive that may be harmed fail: what a failed write left is unknown.
fn failed_requests(cluster: &Cluster) {
    let Some(drive) = victim(cluster) else { return };
    let count = 1 + cluster.second.below(6);
    cluster.journal.note(format!("the next {count} requests of {} fail", drive.name()));
    let before = cluster.world.counters().drive_errors;
    drive.fail_next(count);
    aimed::write_until(cluster, |c| c.world.counters().drive_errors >= before + count);
}

/// The space behind some drives is used up while guests write.
fn full_drive(cluster: &Cluster) {
    let count = 1 + cluster.second.below(cluster.drives.len() as u64) as usize;
    let span = time(cluster, Duration::from_secs(20));
    cluster.journal.note(format!("no space behind {count} drives, and for {span:?} more"));
    let before = cluster.world.counters().no_space;
    cluster.drives[..count].iter().for_each(|drive| drive.set_full(true));
    aimed::write_until(cluster, |c| c.world.counters().no_space > before);
    cluster.pass(span);
    cluster.drives[..count].iter().for_each(|drive| drive.set_full(false));
}

/// Many pages of a drive that may be harmed become unreadable, and some of them are read.
fn spoiled(cluster: &Cluster) {
    let Some(drive) = victim(cluster) else { return };
    let pages = 1 + cluster.second.below(300);
    cluster.journal.note(format!("{pages} pages of {} become unreadable", drive.name()));
    for _ in 0..pages {
        let Some(page) = drive.any_stored_page() else { return };
        drive.spoil(page, 1);
    }
}

/// The next write of a drive that may be harmed goes to a wrong place, where it may harm what it meets.
fn misdirected(cluster: &Cluster) {
    let Some(drive) = victim(cluster) else { return };
    let before = cluster.world.counters().writes_misdirected;
    drive.misdirect_next(1);
    if aimed::write_until(cluster, |c| c.world.counters().writes_misdirected > before) {
        cluster.journal.note(format!("a write of {} went to a wrong place", drive.name()));
    }
}

/// The store's process dies, its machine may lose its power, and a part of the cluster may go with it.
fn crash_store(cluster: &mut Cluster) {
    let second = Rc::clone(&cluster.second);
    let power = second.below(2) == 0;
    let span = time(cluster, Duration::from_secs(20));
    let what = if power { "loses power" } else { "crashes" };
    cluster.journal.fault(Kind::StoreCrash, format!("the store {what}, for {span:?}"));
    cluster.store.crash(power.then_some(&*second));
    cluster.wake_all();
    match second.below(4) {
        0 => cluster.crash_host(second.below(2) == 0),
        1 => crash_controller(cluster, second.below(2) as usize, second.below(2) == 0),
        _ => {}
    }
    cluster.pass(span);
    if second.below(2) == 0 {
        // Whoever starts meanwhile waits for it.
        revive(cluster);
        cluster.pass(time(cluster, Duration::from_secs(5)));
    }
    if let Err(error) = cluster.store.restart() {
        cluster.journal.fail(format!("the store cannot be opened: {error}"));
    }
    cluster.wake_all();
}

fn slow_network(cluster: &Cluster) {
    let longest = [2_000, 50_000, 400_000][cluster.second.below(3) as usize];
    let span = time(cluster, Duration::from_secs(30));
    let what = format!("messages take up to {longest} µs for {span:?}");
    cluster.journal.fault(Kind::SlowNetwork, what);
    let mut usual = Span::micros(0, 0);
    cluster.world.change_settings(|settings| {
        usual = std::mem::replace(&mut settings.latency, Span::micros(longest / 20, longest));
    });
    cluster.pass(span);
    cluster.world.change_settings(|settings| settings.latency = usual);
}

fn lose_host(cluster: &mut Cluster) {
    if cluster.lose_host() {
        cluster.pass(time(cluster, Duration::from_secs(100)));
    }
}

/// A vdisk grows while its guest uses it; what is new reads as zeros.
fn resize(cluster: &Cluster) {
    if !cluster.serves() {
        return;
    }
    let number = cluster.second.below(cluster.guests.len() as u64) as usize;
    let blocks = 1 + cluster.second.below(GROWTH_BLOCKS_MAX);
    if let Some(host) = &cluster.host {
        let what = format!("the vdisk of guest {number} grows by {blocks} blocks");
        cluster.journal.fault(Kind::Resize, what);
        host.grow_vdisk(number, blocks);
    }
}

/// A process does not run, or cannot talk, until the grants of the host have ended, and goes on (C15).
fn past_grants(cluster: &mut Cluster) {
    let span = Duration::from_secs(75 + cluster.second.below(60));
    let name = cluster.host_name();
    let Some(process) = cluster.world.process(name) else { return };
    let second = Rc::clone(&cluster.second);
    let paused = second.below(2) == 0;
    let what = if paused { "does not run" } else { "cannot talk" };
    cluster.journal.fault(Kind::PastGrants, format!("{name} {what} for {span:?}"));
    if paused {
        process.pause();
    } else {
        CONTROLLERS.iter().for_each(|other| cluster.world.partition(name, other));
    }
    cluster.pass(span);
    process.resume();
    CONTROLLERS.iter().for_each(|other| cluster.world.heal(name, other));
    cluster.pass(time(cluster, Duration::from_secs(5)));
}
