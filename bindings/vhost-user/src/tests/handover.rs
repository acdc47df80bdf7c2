//! A device goes from thread to thread under a front end that stays connected.

use crate::rig::{Guest, Rig};
use crate::{DiskState, Outcome};

const WRITES: u32 = 1;

#[test]
fn a_device_moves_with_nothing_in_flight_and_its_front_end_stays() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.request(0, 0, WRITES, 3, 512);
    rig.turn();
    let first = rig.requests.pop().unwrap();
    // The engine has a request of it: it stays, and answers it.
    let mut rig = *rig.handed_over().err().unwrap();
    rig.disk.complete(first.tag, Outcome::Done);
    assert_eq!((guest.used_index(0), guest.status(0, 0)), (1, 0));

    rig.disk.pause();
    guest.request(0, 1, WRITES, 4, 512);
    guest.request(1, 0, WRITES, 5, 512);
    rig.turn();
    assert!(rig.requests.is_empty());
    let before = rig.disk.watch_version();
    let mut rig = rig.handed_over().ok().unwrap();
    assert!(rig.disk.watch_version() > before, "its files are watched anew");
    assert_eq!(rig.disk.state(), DiskState::Running);
    rig.turn();
    assert!(rig.requests.is_empty(), "nothing is taken before it is resumed");
    assert!(!rig.hung_up());
    rig.disk.resume();
    rig.turn();
    assert_eq!(rig.requests.len(), 2);
    for request in std::mem::take(&mut rig.requests) {
        assert!(!request.resumed);
        rig.disk.complete(request.tag, Outcome::Done);
    }
    assert_eq!((guest.used_index(0), guest.used_index(1)), (2, 1));
    assert_eq!(rig.disk.statistics().writes, 3, "counts go with it");
    assert_eq!(rig.disk.statistics().connections, 1);
}

#[test]
fn a_ring_is_stopped_while_its_device_waits() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    rig.disk.pause();
    guest.request(0, 0, WRITES, 3, 512);
    rig.turn();
    let mut rig = rig.handed_over().ok().unwrap();
    assert_eq!(rig.get_base(0), 0, "answered, although nothing is served");
    assert!(rig.requests.is_empty());
}
