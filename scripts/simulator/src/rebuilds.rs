//! Strikes while the shards of a lost drive are written anew (C16): a controller dies, or its machine's power, or it is paused
//! until the other one took over; another drive is lost; both controllers stop; guests' vdisks end.
//!
//! Only in seeds whose plan says so: their pools are wide enough that a lost drive's shards have somewhere to go. All
//! draws are of a stream of their own. What is left behind the director brings back; the finale demands whole redundancy.

use crate::cluster::Cluster;
use crate::director::{RECOVERY, crash_controller, revive, stop_both, time_of};
use crate::kinds::Kind;
use crate::plan::CONTROLLERS;
use crate::pool;
use cleave_runtime::random::Random;
use std::rc::Rc;
use std::time::Duration;

/// One of them, in some episodes, for as long as there is a drive that may be lost.
pub fn strike(cluster: &mut Cluster) {
    let Some(random) = cluster.rebuilds.clone() else { return };
    let more = cluster.lost.get() < cluster.plan.victims;
    if !more || random.below(3) == 0 || cluster.journal.failed() {
        return;
    }
    revive(cluster);
    let well = |c: &Cluster| c.serves() && c.mirrored();
    if cluster.until("well before a drive is lost", RECOVERY, well) {
        let factor = [1, 20, 200, 1000][random.below(4) as usize];
        cluster.drives.iter().for_each(|drive| drive.slow(factor));
        lose(cluster);
        let met = cluster.reaches(Duration::from_secs(5), rebuilds);
        cluster.pass(time_of(&*random, Duration::from_millis(20 * u64::from(factor))));
        if met && rebuilds(cluster) {
            interrupt(cluster, &random);
        }
        cluster.drives.iter().for_each(|drive| drive.slow(1));
    }
}

fn lose(cluster: &Cluster) {
    let next = usize::from(cluster.lost.get());
    cluster.journal.note(format!("drive-{next} is lost, to be rebuilt"));
    cluster.drives[next].lose();
    cluster.lost.set(cluster.lost.get() + 1);
}

/// Whether shards are being written anew.
fn rebuilds(cluster: &Cluster) -> bool {
    let status = cluster.active().and_then(|active| active.status());
    status.is_some_and(|status| status.rebuild.running && status.rebuild.waiting > 0)
}

fn interrupt(cluster: &mut Cluster, random: &Rc<dyn Random>) {
    let serves = |number: &usize| {
        let status = cluster.controllers[*number].as_ref().and_then(|one| one.status());
        status.is_some_and(|status| status.serving)
    };
    let active = [0, 1].into_iter().find(serves).unwrap_or(0);
    cluster.journal.fault(Kind::InRebuild, "shards are being written anew");
    match random.below(7) {
        0 => crash_controller(cluster, active, false),
        1 => crash_controller(cluster, active, true),
        2 => {
            let process = cluster.world.process(CONTROLLERS[active]).expect("it serves");
            process.pause();
            cluster.pass(Duration::from_secs(4 + random.below(20)));
            process.resume();
        }
        3 => crash_controller(cluster, 1 - active, false),
        4 if cluster.lost.get() < cluster.plan.victims => lose(cluster),
        5 => {
            let (name, other) = (CONTROLLERS[0], CONTROLLERS[1]);
            cluster.world.partition(name, other);
            cluster.pass(time_of(&**random, Duration::from_secs(20)));
            cluster.world.heal(name, other);
        }
        _ => {
            stop_both(cluster);
            if !cluster.journal.failed() {
                pool::judge_shards(cluster);
            }
        }
    }
}
