//! Hours in which little or nothing happens, while timers run: leases, grants, age-based destage, probes.
//!
//! Virtual time costs only what happens in it, so an idle cluster must be cheap here as it must be on a
//! real machine. An idle span ends with a judge: what could be committed is, and every bound on memory holds.

use crate::cluster::Cluster;
use crate::director::{RECOVERY, time_of};
use crate::finale;
use crate::kinds::Kind;
use std::time::Duration;

/// A host or controller is away for at most this long: what retries meanwhile is not idle.
const AWAY_MAX: Duration = Duration::from_secs(300);

/// Lets the cluster idle, once nothing is wrong any more.
pub fn play(cluster: &mut Cluster) {
    let well = |c: &Cluster| c.guests_quiet() && c.serves() && c.mirrored();
    if !cluster.until("well before idling", RECOVERY, well) {
        return;
    }
    let longest = cluster.plan.idle_max.as_secs();
    let span = Duration::from_secs(1 + cluster.second.below(longest));
    cluster.journal.note(format!("the cluster idles for {span:?}"));
    match cluster.second.below(5) {
        // A request now and then.
        0 | 1 => trickle(cluster, span),
        2 => host_away(cluster),
        _ => {}
    }
    if !cluster.journal.failed() {
        cluster.pass(span);
    }
    if !cluster.journal.failed() && cluster.until("served after idling", RECOVERY, well) {
        cluster.until("quiescence after idling", RECOVERY, finale::is_quiescent);
    }
}

/// Each guest sends a request now and then, for so long.
fn trickle(cluster: &Cluster, span: Duration) {
    let mut left = span;
    while !left.is_zero() && !cluster.journal.failed() {
        let pause = time_of(&*cluster.second, Duration::from_secs(900)).max(Duration::from_secs(1));
        let guest = cluster.second.below(cluster.guests.len() as u64) as usize;
        cluster.guests[guest].borrow_mut().set_budget(1 + cluster.second.below(4));
        cluster.host.iter().for_each(|host| host.process().wake());
        cluster.pass(pause.min(left));
        left = left.saturating_sub(pause);
    }
    cluster.until("a trickle of requests", RECOVERY, Cluster::guests_quiet);
}

/// The host engine is down for longer than its grants live, and its guests wait or die.
fn host_away(cluster: &mut Cluster) {
    let resume = cluster.second.below(2) == 0;
    cluster.crash_host(resume);
    cluster.journal.fault(Kind::PastGrants, "the host engine stays away");
    let span = Duration::from_secs(70 + cluster.second.below(AWAY_MAX.as_secs() - 70));
    cluster.pass(span);
    cluster.start_host();
}
