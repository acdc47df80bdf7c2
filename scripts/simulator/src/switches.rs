//! The role moves because an operator ordered it, under load, and with whatever else the episode has in store coming in the middle.
//!
//! Only in seeds with drives of two ports whose plan says so. All draws are of a stream of their own. An order that comes to nothing is
//! none to judge: somebody serves at the end of each episode, and everything is there.

use crate::cluster::Cluster;
use crate::director::time_of;
use crate::kinds::Kind;
use std::time::Duration;

/// Orders in some episodes.
pub fn strike(cluster: &mut Cluster) {
    let Some(random) = cluster.switches.clone() else { return };
    if random.below(3) == 0 || cluster.journal.failed() {
        return;
    }
    for _ in 0..1 + random.below(3) {
        // Else most orders would be refused at once; the others may be, too.
        if random.below(8) > 0 {
            cluster.reaches(Duration::from_secs(10), |c| c.serves() && c.mirrored());
        }
        // Also of the one that is not active, and of both at once.
        let ordered = match random.below(8) {
            0 => vec![0, 1],
            1 => vec![random.below(2) as usize],
            _ => (0..2).filter(|number| serves(cluster, *number)).collect(),
        };
        for number in ordered {
            if let Some(controller) = &cluster.controllers[number] {
                controller.switch_over();
                let name = crate::plan::CONTROLLERS[number];
                cluster.journal.fault(Kind::SwitchOver, format!("{name} is to hand its role over"));
            }
        }
        cluster.pass(time_of(&*random, Duration::from_secs(3)));
    }
}

fn serves(cluster: &Cluster, number: usize) -> bool {
    let status = cluster.controllers[number].as_ref().and_then(|one| one.status());
    status.is_some_and(|status| status.serving)
}
