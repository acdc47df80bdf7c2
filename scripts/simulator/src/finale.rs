//! The end of a run: calm, then the judges.
//!
//! Once nothing is wrong any more everything must recover: both controllers mirrored, every vdisk
//! served, nothing in flight. Then: no committed record is left in the log, both logs and both catalogs
//! are the same, no slot is leaked, redundancy is whole, also of what lay on lost drives, where others have room, and every block reads as it must: from
//! the running engine, from one that replays, from one that opens what a clean stop left, and after a clean stop of
//! the data node.

use crate::aimed;
use crate::cluster::Cluster;
use crate::director::{RECOVERY, revive, stop_both, stop_host};
use crate::{leaks, nonces, pool};
use cleave_datanode_core::GRANTS_KEPT;
use std::time::Duration;

/// Ends a run.
pub fn play(cluster: &mut Cluster) {
    cluster.journal.at(&cluster.world);
    cluster.journal.note("calm");
    cluster.calm();
    cluster.end_abandoned();
    revive(cluster);
    let recovered = |c: &Cluster| c.guests_quiet() && c.serves() && c.mirrored();
    if !cluster.until("everything is well after calm", RECOVERY, recovered) {
        return;
    }
    // Everything that lies at rest is read from here on: now a drive does most by mixing it up.
    if cluster.second.below(2) == 0 {
        aimed::exchange_parts(cluster);
    }
    type Step = (&'static str, fn(&mut Cluster));
    let steps: [Step; 4] = [
        ("the engine as it runs", |_| {}),
        ("after a crash of the host engine", |cluster| {
            cluster.crash_host(false);
            cluster.start_host();
        }),
        ("after a clean stop of the host engine", |cluster| {
            stop_host(cluster);
            if !cluster.journal.failed() {
                cluster.start_host();
            }
        }),
        ("after a clean stop of both controllers", |cluster| {
            // Grants of hosts that were lost end by the clock of the controller, which may be off.
            cluster.pass(3 * GRANTS_KEPT);
            let rebuilt = |c: &Cluster| {
                let status = c.active().and_then(|active| active.status());
                status.is_some_and(|status| !status.rebuild.running)
            };
            if !cluster.until("shards that were lost are written anew", RECOVERY, rebuilt) {
                return;
            }
            // What rotted unseen is found and written anew, as far as parity goes (C3).
            if !cluster.active().is_some_and(|active| active.scrub()) {
                return cluster.journal.fail(
                    "no controller takes an operator's word to look at all stripes".to_owned(),
                );
            }
            let over = |c: &Cluster| {
                let status = c.active().and_then(|active| active.status());
                status.is_some_and(|status| status.scrub.running && !status.scrub.hurried)
            };
            if !cluster.until("all stripes are looked at", RECOVERY, over) {
                return;
            }
            let status = cluster.active().and_then(|active| active.status());
            let drives = status.map_or_else(Vec::new, |status| status.drives);
            stop_both(cluster);
            if !cluster.journal.failed() {
                pool::judge(cluster, &drives);
                nonces::judge(cluster);
                leaks::judge(cluster);
                revive(cluster);
            }
        }),
    ];
    for (name, step) in steps {
        step(cluster);
        if cluster.journal.failed() || !settle(cluster) || !read_back(cluster, name) {
            return;
        }
    }
}

/// Waits until nothing moves: everything that can be committed is, and the log holds the rest alone.
fn settle(cluster: &Cluster) -> bool {
    let recovered = |c: &Cluster| c.guests_quiet() && c.serves() && c.mirrored();
    cluster.until("everything is well", RECOVERY, recovered)
        && cluster.until("quiescence", RECOVERY, is_quiescent)
}

/// No committed record, and no control record that both catalogs have, is left in either log.
pub fn is_quiescent(cluster: &Cluster) -> bool {
    let Some(stats) = cluster.host.as_ref().and_then(|host| host.stats()) else { return false };
    let logs = cluster.controllers.iter().map(|one| one.as_ref().and_then(|one| one.log()));
    let mut logs = logs.map(|log| log.is_some_and(|log| log == (stats.buffer_records, 0)));
    logs.all(|same| same)
}

/// Reads everything back through the guests' judges.
fn read_back(cluster: &Cluster, name: &str) -> bool {
    for guest in cluster.guests.iter() {
        guest.borrow_mut().check_everything();
    }
    if let Some(host) = &cluster.host {
        host.process().wake();
    }
    if !cluster.until("reading everything back", RECOVERY, Cluster::guests_quiet) {
        return false;
    }
    cluster.journal.note(format!("read everything back: {name}"));
    // Each sector was read with nothing in flight: its content is decided.
    for guest in cluster.guests.iter() {
        let undecided = guest.borrow_mut().undecided();
        if undecided > 0 {
            let vdisk = guest.borrow().vdisk();
            cluster.journal.fail(format!("vdisk {vdisk}: {undecided} sectors stay undecided"));
        }
    }
    cluster.pass(Duration::from_millis(cluster.random.below(100)));
    !cluster.journal.failed()
}
