//! Front ends that truncate what they share lose their connection; the process, and every other
//! device in it, goes on.

use crate::rig::{DATA, GUEST, Guest, MEMORY, RINGS, Rig, place, shared_memory};
use crate::{Outcome, RequestKind};
use rustix::fs::ftruncate;
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight, VhostUserLog};
use vm_memory::ByteValued;

/// The page of request `number` of ring 0, and all after it, are gone.
fn truncate_from(guest: &Guest, number: u16) {
    ftruncate(&guest.file, place(0, number)).unwrap();
}

#[test]
fn a_write_whose_data_is_gone_is_not_a_write_of_zeros() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    // The first request's data is there, the second's crosses the new end: its header is there.
    guest.request(0, 0, 1, 0, 512);
    guest.request(0, 1, 1, 8, 4096);
    guest.descriptor(0, 4, (GUEST + place(0, 2) - 512, 4096, 1, 5));
    truncate_from(&guest, 2);
    assert!(rig.hung_up());
    let [request] = &rig.requests[..] else { panic!("{:?}", rig.requests) };
    assert!(matches!(request.kind, RequestKind::Write { offset: 0, .. }));
    assert_eq!((rig.disk.in_flight(), rig.disk.statistics().faults), (1, 0));
    // The engine's answer comes to nobody, then a new front end is served.
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Done);
    rig.reconnect();
    let better = Guest::new();
    rig.run(&better, 0);
    better.request(0, 0, 1, 0, 512);
    rig.turn();
    assert_eq!(rig.requests.len(), 1);
    assert_eq!(rig.disk.statistics().connections, 2);
}

#[test]
fn parts_of_a_write_before_its_end_was_lost_are_kept_count_of() {
    let guest = Guest::new();
    let mut rig = Rig::connect_with(|config| {
        config.segments_max = 1;
        config.transfer_max = 4096;
    });
    rig.run(&guest, 0);
    guest.request(0, 0, 1, 0, 8192);
    truncate_from(&guest, 1);
    // The first part ends where the memory does.
    guest.descriptor(0, 1, (GUEST + place(0, 1) - 4096, 8192, 1, 2));
    assert!(rig.hung_up());
    assert_eq!((rig.requests.len(), rig.disk.in_flight()), (1, 1));
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Done);
    assert_eq!(rig.disk.in_flight(), 0);
}

#[test]
fn an_answer_into_lost_memory_is_found_again_by_a_successor() {
    let guest = Guest::new();
    let mut rig = Rig::connect();
    rig.negotiate(0);
    let kept = rig.get_inflight();
    rig.add_memory(&guest);
    for ring in 0..RINGS {
        rig.start_ring(ring, 0);
    }
    guest.request(0, 0, 0, 0, 512);
    rig.turn();
    truncate_from(&guest, 0);
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Read(&[&[5; 512]]));
    assert!(!rig.disk.arm(), "no sleep before the connection is closed");
    assert!(rig.hung_up());
    assert_eq!(rig.disk.in_flight(), 0);
    // The memory is whole again; the rings were never touched.
    ftruncate(&guest.file, MEMORY).unwrap();
    rig.reconnect();
    rig.negotiate(0);
    rig.set_inflight(&kept);
    rig.add_memory(&guest);
    for ring in 0..RINGS {
        rig.start_ring(ring, 0);
    }
    let [request] = &rig.requests[..] else { panic!("{:?}", rig.requests) };
    assert!(request.resumed, "it was never published (C24)");
}

#[test]
fn a_ring_that_is_gone_when_it_starts_makes_nothing_forgotten() {
    let guest = Guest::new();
    let mut rig = Rig::connect();
    rig.negotiate(0);
    let kept = rig.get_inflight();
    rig.add_memory(&guest);
    rig.start_ring(0, 0);
    // Done once, and in flight again when the front end goes: the records of what was published
    // last lead to it.
    for _ in 0..2 {
        guest.request(0, 1, 0, 0, 512);
        rig.turn();
        if guest.used_index(0) == 0 {
            let tag = rig.requests.pop().unwrap().tag;
            rig.disk.complete(tag, Outcome::Failed);
        }
    }
    let tag = rig.requests.pop().unwrap().tag;
    let rings = guest.read(0, 0x1000);
    rig.reconnect();
    rig.disk.complete(tag, Outcome::Failed);
    rig.negotiate(0);
    rig.set_inflight(&kept);
    rig.add_memory(&guest);
    ftruncate(&guest.file, 0).unwrap();
    rig.set_up_ring(0, 0);
    assert!(rig.hung_up());
    // With its memory back, so is the request: a header of zeros is one of a read.
    ftruncate(&guest.file, MEMORY).unwrap();
    guest.write(0, &rings);
    rig.reconnect();
    rig.negotiate(0);
    rig.set_inflight(&kept);
    rig.add_memory(&guest);
    rig.start_ring(0, 0);
    assert!(matches!(&rig.requests[..], [request] if request.resumed), "{:?}", rig.requests);
}

#[test]
fn lost_rings_close_the_connection() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 1 << 29);
    ftruncate(&guest.file, 0).unwrap();
    assert!(rig.hung_up());
    // Going to sleep looks at the rings too.
    let guest = Guest::new();
    rig.reconnect();
    rig.run(&guest, 1 << 29);
    ftruncate(&guest.file, 0).unwrap();
    assert!(!rig.disk.arm());
    assert!(rig.hung_up());
    assert!(rig.requests.is_empty());
}

#[test]
fn a_lost_dirty_log_closes_the_connection() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 1 << 26);
    let log = shared_memory(1 << 20);
    let bytes = (GUEST + MEMORY) / 4096 / 8 + 1;
    ftruncate(&log, bytes).unwrap();
    let asked = VhostUserLog::new(bytes, 0);
    rig.tell(FrontendReq::SET_LOG_BASE, asked.as_slice(), &[&log]);
    rig.reply(FrontendReq::SET_LOG_BASE);
    guest.request(0, 0, 0, 0, 512);
    rig.turn();
    ftruncate(&log, 0).unwrap();
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Read(&[&[5; 512]]));
    assert!(rig.hung_up());
}

#[test]
fn a_lost_inflight_region_closes_the_connection() {
    let guest = Guest::new();
    let mut rig = Rig::connect();
    rig.negotiate(0);
    let file = shared_memory(1 << 16);
    let given = VhostUserInflight::new(1 << 16, 0, RINGS, crate::rig::SIZE);
    rig.set_inflight(&(given, file.try_clone().unwrap()));
    rig.add_memory(&guest);
    rig.start_ring(0, 0);
    ftruncate(&file, 0).unwrap();
    guest.request(0, 0, 1, 0, 512);
    assert!(rig.hung_up());
    // It could not be recorded, so it was not given out.
    assert!(rig.requests.is_empty());
    assert_eq!(rig.disk.in_flight(), 0);
}

#[test]
fn other_devices_of_the_thread_go_on() {
    let (bad, good) = (Guest::new(), Guest::new());
    let mut victim = Rig::running(&bad, 0);
    let mut other = Rig::running(&good, 0);
    for round in 0..3 {
        good.request(0, round, 1, 0, 512);
        bad.request(0, round, 1, 0, 512);
        if round == 2 {
            ftruncate(&bad.file, DATA).unwrap();
        }
        victim.turn();
        other.turn();
    }
    assert!(victim.hung_up() && !other.hung_up());
    assert_eq!((victim.requests.len(), other.requests.len()), (2, 3));
    let tags: Vec<_> = other.requests.drain(..).map(|request| request.tag).collect();
    for tag in tags {
        other.disk.complete(tag, Outcome::Done);
    }
    assert_eq!(good.used_index(0), 3);
}
