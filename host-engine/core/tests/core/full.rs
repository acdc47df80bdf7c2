//! A log with less room than it promised: what it refuses waits, and is sent again with pauses (C13).

use crate::rig::Rig;
use crate::rig::model::Model;
use std::time::Duration;

const SIZE: u64 = 9 << 20;

#[test]
fn what_a_full_log_refuses_is_sent_again_without_haste() {
    let mut rig = Rig::new(60, SIZE);
    let core = rig.start_host();
    rig.open();
    rig.pool.borrow_mut().capacity = 1 << 20;
    let began = rig.world.now();
    let mut model = Model::new(61, SIZE);
    model.work(&rig, 3_000, 64);
    let (refused, stats) = (rig.pool.borrow().appends_refused, core.stats());
    assert!(refused > 0 && stats.records_released > 0, "{refused}: {stats:?}");
    // Each connection has four lanes to end, and comes 100 ms after the one before at the earliest.
    let elapsed = rig.world.now() - began;
    let connections = 2 + elapsed.as_millis() as u64 / 100;
    assert!(u64::from(refused) <= 4 * connections, "{refused} in {elapsed:?}");
    assert!(elapsed < Duration::from_secs(600), "{elapsed:?}: destage makes room meanwhile");
    rig.pool.borrow_mut().capacity = u64::MAX;
    model.read_all(&rig);
}
