//! Strikes on a controller that is alone (C12): the last one that has the log dies, with requests in flight, while it goes on by
//! its log on drives, while it fills them, or while a peer that returned copies from it. Or the one before it, which is not
//! heard of, has a write on its way that lands long after its grant has ended (C15).
//!
//! All draws are of a stream of their own. Which drives of its log are harmed is what the run's other strikes decide, among
//! those that may be.

use crate::arranged::{begin, end, write_until};
use crate::cluster::Cluster;
use crate::director::{RECOVERY, crash_controller, revive, time_of};
use crate::kinds::Kind;
use crate::plan::CONTROLLERS;
use std::rc::Rc;
use std::time::Duration;

/// One episode in so many has this.
const ONE_IN: u64 = 3;
/// How long it may take until the one that is left is alone: it waits for the other one, and for the store.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a write may be on its way to a slow drive.
const ARRIVAL: Duration = Duration::from_secs(600);

/// In some episodes.
pub fn strike(cluster: &mut Cluster) {
    if cluster.alone.below(ONE_IN) > 0 || cluster.journal.failed() {
        return;
    }
    let random = Rc::clone(&cluster.alone);
    if cluster.plan.shared_drives && random.below(3) == 0 {
        return late_write(cluster);
    }
    let left = match cluster.plan.shared_drives {
        true => random.below(2) as usize,
        false => 0,
    };
    if cluster.controllers[left].is_none() {
        return;
    }
    crash_controller(cluster, 1 - left, random.below(2) == 0);
    if cluster.controllers[1 - left].is_some() {
        return; // It held the only log.
    }
    let filling = random.below(4) == 0;
    let reached = cluster.reaches(PATIENCE, |c| {
        let status = c.controllers[left].as_ref().and_then(|one| one.status());
        status.is_some_and(|status| match filling {
            true => status.counters.sessions > 0,
            false => !status.alone_on.is_empty(),
        })
    });
    if !reached || cluster.journal.failed() {
        return;
    }
    for guest in cluster.guests.iter() {
        guest.borrow_mut().set_budget(cluster.plan.requests / 4);
    }
    if let Some(host) = &cluster.host {
        host.process().wake();
    }
    cluster.pass(time_of(&*random, Duration::from_secs(2)));
    if random.below(3) == 0 {
        cluster.start_controller(1 - left);
        cluster.pass(time_of(&*random, Duration::from_secs(1)));
    }
    if !cluster.may_crash(left) {
        return;
    }
    cluster.journal.at(&cluster.world);
    cluster.journal.fault(Kind::LastController, "the only controller that has the log dies");
    cluster.crash_controller(left, random.below(2) == 0);
    cluster.pass(time_of(&*random, Duration::from_secs(5)));
    if random.below(2) == 0 {
        // It is alone again before the other one is there; and dies again.
        cluster.start_controller(left);
        cluster.pass(time_of(&*random, Duration::from_secs(8)));
        if cluster.may_crash(left) {
            cluster.crash_controller(left, random.below(2) == 0);
        }
    }
}

/// The active controller has a write of a shard on its way to a drive and is not heard of any more; the other one takes over and
/// goes on alone; the host is another engine, so that the grant ends; and hosts write on, wherever they may.
fn late_write(cluster: &mut Cluster) {
    if !begin(cluster) {
        return;
    }
    let random = Rc::clone(&cluster.alone);
    let serves = |c: &Cluster, number: usize| {
        let status = c.controllers[number].as_ref().and_then(|one| one.status());
        status.is_some_and(|status| status.serving)
    };
    let Some(before) = (0..2).find(|number| serves(cluster, *number)) else { return };
    let drive = cluster.drives[random.below(cluster.drives.len() as u64) as usize].clone();
    drive.slow(60_000);
    let late = |_: &Cluster| drive.writes_in_flight() > 0;
    let held_up = write_until(cluster, late);
    drive.slow(1);
    if held_up
        && let Some(process) = cluster.controllers[before].as_ref().map(|one| one.process().clone())
    {
        let what = format!(
            "{} does not run, and has writes on their way to {}",
            CONTROLLERS[before],
            drive.name()
        );
        cluster.journal.at(&cluster.world);
        cluster.journal.fault(Kind::LateWrite, what);
        process.pause();
        cluster.crash_host(true);
        let alone = |c: &Cluster| {
            let status = c.controllers[1 - before].as_ref().and_then(|one| one.status());
            status.is_some_and(|status| !status.alone_on.is_empty())
        };
        let reached = cluster.reaches(PATIENCE, alone);
        revive(cluster);
        if reached && cluster.reaches(RECOVERY, Cluster::serves) {
            // Also what was free before, and what it wrote, comes to its turn while the write is on its way.
            write_until(cluster, |c| !late(c));
            cluster.reaches(ARRIVAL, |c| !late(c));
        }
        process.resume();
    }
    end(cluster);
}
