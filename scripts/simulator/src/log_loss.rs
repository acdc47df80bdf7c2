//! The whole log is lost: both controllers crash at once, and no image of it is left (C7); or everything
//! loses its power at once.
//!
//! The data node stays down and says so until an operator orders an empty log. What is lost is exactly what was
//! not destaged *and* is held by no host any more. While the host lives it holds every record that no
//! catalog has as committed, so nothing may be lost: it resends them, and the run goes on under its usual judges. When
//! it is gone too, blocks that it had unreleased records of may hold what they held before; all others
//! are judged as ever.

use crate::aimed;
use crate::cluster::Cluster;
use crate::director::{RECOVERY, revive, time_of};
use crate::finale;
use crate::kinds::Kind;
use crate::rot;
use crate::strikes::keep_busy;
use cleave_coordinator::encoding::encode;
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{Answer, Operation, Transaction};
use cleave_datanode_core::Phase;
use cleave_datanode_core::roles::start_empty_key;
use cleave_runtime::random::Random;
use std::rc::Rc;
use std::time::Duration;

/// Between two episodes a log may be lost while commits bring newer content past older records, and the vdisks
/// may open elsewhere before what was sent again is released: covered content must not come back (C2).
pub fn strike(cluster: &mut Cluster) {
    let Some(losses) = cluster.log_losses.clone() else { return };
    if losses.below(3) > 0 || !cluster.serves() || !cluster.mirrored() {
        return;
    }
    let commits = |c: &Cluster| {
        let stats = c.host.as_ref().and_then(|host| host.stats());
        stats.map_or(0, |stats| stats.stripeless_commits + stats.stripes_committed)
    };
    let wanted = commits(cluster) + losses.below(3);
    for _ in 0..10 {
        if commits(cluster) > wanted {
            break;
        }
        rot::write_some(cluster, &*losses);
        cluster.reaches(Duration::from_secs(2), |c| commits(c) > wanted);
    }
    cluster.journal.at(&cluster.world);
    lose_log(cluster, &*losses);
    if losses.below(3) > 0 && !cluster.journal.failed() {
        cluster.crash_host(true);
        revive(cluster);
        cluster.until("vdisks that open after a lost log", RECOVERY, |c| {
            c.serves() && c.guests_quiet()
        });
    }
}

/// Both controllers lose the log while the host has everything that is not destaged.
pub fn lose_log(cluster: &mut Cluster, second: &dyn Random) {
    // An engine that is still opening does not hold what it has not fetched.
    if !cluster.serves() || cluster.controllers.iter().any(Option::is_none) {
        return;
    }
    cluster.journal.fault(Kind::LogLost, "both controllers crash at once");
    lose_both(cluster, second);
    wait_until_sent_again(cluster);
}

/// Both controllers have what the host has: only then may the host be struck.
pub fn wait_until_sent_again(cluster: &Cluster) {
    let sent_again = |c: &Cluster| c.guests_quiet() && c.mirrored() && finale::is_quiescent(c);
    cluster.until("what was in a lost log is mirrored again", RECOVERY, sent_again);
}

/// Both controllers crash, and start again without a log. The host must live until
/// [everything is sent again](wait_until_sent_again).
pub fn lose_both(cluster: &mut Cluster, second: &dyn Random) {
    for number in [0, 1] {
        cluster.crash_controller(number, second.below(2) == 0);
    }
    // Background faults end here: the only copy of the records must not be lost too.
    cluster.calm();
    start_without_log(cluster, second);
}

/// Everything loses its power at once: guests, host, controllers, the store. Of what was not destaged nothing is
/// left; what was, is.
pub fn lose_everything(cluster: &mut Cluster) {
    if !cluster.plan.loses_everything || !aimed::well(cluster) {
        return;
    }
    keep_busy(cluster);
    let second = Rc::clone(&cluster.second);
    cluster.journal.fault(Kind::PowerOfAll, "everything loses its power at once");
    let Some(host) = &cluster.host else { return };
    let unreleased: Vec<_> =
        (0..cluster.guests.len()).map(|guest| host.unreleased(guest)).collect();
    cluster.end_abandoned();
    cluster.crash_host(false);
    [0, 1].into_iter().for_each(|number| cluster.crash_controller(number, true));
    cluster.store.crash(Some(&*second));
    cluster.calm();
    for (guest, unreleased) in cluster.guests.iter().zip(&unreleased) {
        guest.borrow_mut().doubt(unreleased);
    }
    cluster.pass(time_of(&*second, Duration::from_secs(60)));
    if let Err(error) = cluster.store.restart() {
        cluster.journal.fail(format!("the store cannot be opened: {error}"));
    }
    start_without_log(cluster, &*second);
    cluster.until("served after everything lost its power", RECOVERY, Cluster::serves);
}

/// Between episodes: what no unreleased record changes is durable as it is.
pub fn look(cluster: &Cluster) {
    if let Some(host) = cluster.host.as_ref().filter(|_| cluster.plan.loses_everything) {
        for (number, guest) in cluster.guests.iter().enumerate() {
            let unreleased = host.unreleased(number);
            guest.borrow_mut().durable_but(&unreleased);
        }
    }
}

/// Starts what is down; when nobody has the log any more, an operator orders an empty one.
fn start_without_log(cluster: &mut Cluster, second: &dyn Random) {
    cluster.pass(time_of(second, Duration::from_secs(5)));
    revive(cluster);
    cluster.pass(time_of(second, Duration::from_secs(2)));
    let known = |c: &Cluster| c.mirrored() || is_lost(c);
    if !cluster.until("a lost log, or an image of it", RECOVERY, known) {
        return;
    }
    if is_lost(cluster) {
        order_empty_log(cluster);
    }
}

/// Whether a controller says that nobody has the log.
fn is_lost(cluster: &Cluster) -> bool {
    let phases = cluster.controllers.iter().flatten().filter_map(|one| one.status());
    phases.into_iter().any(|status| matches!(status.phase, Phase::NoLog(_)))
}

/// The operator's word, for the present epoch.
fn order_empty_log(cluster: &Cluster) {
    let datanode = cluster.plan.datanode;
    let key = datanode_key(u64::from(datanode.0));
    let server = cluster.store.server();
    let found = server.execute(Operation::Get { key: key.clone() });
    let (Ok(Answer::Value(Some(value))), Some(role)) = (found, cluster.role()) else {
        return cluster.journal.fail("the data node's record cannot be read");
    };
    cluster.journal.note(format!("an empty log is ordered for epoch {}", role.epoch));
    let word = Transaction::new()
        .require(key, value.revision)
        .put(start_empty_key(datanode), encode(&role.epoch));
    if let Err(error) = server.execute(Operation::Transact(word)) {
        cluster.journal.fail(format!("the operator's word was not written: {error}"));
    }
}
