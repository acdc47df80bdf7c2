//! Bits that flip in the memory of one controller's log, while the other holds the same records sound.
//!
//! Nothing may come of it: the vdisks open with what was written, and both logs are sound again before long. Only
//! one controller's memory rots at a time, and neither is struck until it is mended: a record whose other copy is gone too is
//! not survived. The draws are of a stream of their own.

use crate::cluster::Cluster;
use crate::director::{RECOVERY, revive, time_of};
use crate::kinds::Kind;
use crate::plan::CONTROLLERS;
use cleave_format::ids::Position;
use cleave_runtime::random::Random;
use std::time::Duration;

/// Between two episodes a log's memory may rot.
pub fn strike(cluster: &mut Cluster) {
    let Some(rot) = cluster.rot.clone() else { return };
    if rot.below(2) == 0 || !cluster.serves() || !cluster.mirrored() {
        return;
    }
    write_some(cluster, &*rot);
    let number = rot.below(2) as usize;
    let count = 1 + rot.below(8);
    let Some(controller) = &cluster.controllers[number] else { return };
    let Some(status) = controller.status() else { return };
    let mut flipped = Vec::new();
    for _ in 0..count {
        let back = rot.below(2 * status.entries + 1);
        let from = Position(status.mirrored_through.0.saturating_sub(back));
        // Heads are short, and tell the most.
        let bit = if rot.below(2) == 0 { rot.below(72 * 8) } else { rot.next_u64() };
        flipped.extend(controller.rot(from, bit).map(|position| position.0));
    }
    if flipped.is_empty() {
        return;
    }
    let what = format!("bits flip in the log of {}, at {flipped:?}", CONTROLLERS[number]);
    cluster.journal.at(&cluster.world);
    cluster.journal.fault(Kind::LogRot, what);
    if rot.below(3) > 0 {
        cluster.pass(time_of(&*rot, Duration::from_secs(2)));
        cluster.crash_host(true);
        revive(cluster);
        cluster.until("vdisks that open from a log that rotted", RECOVERY, Cluster::serves);
    }
    let sound = |c: &Cluster| c.controllers.iter().flatten().all(|one| one.is_sound());
    cluster.until("what rotted in a log is mended", RECOVERY, |c| sound(c) && c.guests_quiet());
}

/// Guests write, so that the log has records; some are still in flight at the end.
pub fn write_some(cluster: &Cluster, rot: &dyn Random) {
    for guest in cluster.guests.iter() {
        guest.borrow_mut().set_budget(10 + rot.below(cluster.plan.requests));
    }
    if let Some(host) = &cluster.host {
        host.process().wake();
    }
    let left = rot.below(100);
    let begun = |c: &Cluster| c.guests.iter().map(|g| g.borrow().budget()).sum::<u64>() <= left;
    cluster.reaches(Duration::from_secs(20), begun);
}
