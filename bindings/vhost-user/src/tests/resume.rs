//! C24: a process may die between any two effects, and its successors finish what it had taken,
//! before anything new, once.

use crate::rig::{Guest, RINGS, Rig, dying_after, place};
use crate::{Outcome, Request, RequestKind, Tag};
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::VhostUserInflight;
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

type Inflight = (VhostUserInflight, OwnedFd);

const WRITES: u32 = 1;

/// As QEMU does it: the base is the ring's used index, for the old connection told nothing.
fn connect(guest: &Guest, inflight: Option<&Inflight>) -> (Rig, Option<Inflight>) {
    let mut rig = Rig::connect();
    rig.negotiate(0);
    let fresh = inflight.is_none().then(|| rig.get_inflight());
    let region = inflight.or(fresh.as_ref()).unwrap();
    let (given, file) = (region.0, region.1.try_clone().unwrap());
    rig.set_inflight(&(given, file));
    rig.add_memory(guest);
    (rig, fresh)
}

fn start(rig: &mut Rig, guest: &Guest) {
    for ring in 0..RINGS {
        rig.set_up_ring(ring, guest.used_index(ring));
    }
    for ring in 0..RINGS {
        rig.enable(ring, true);
    }
}

/// Which request of the guest's it is: its sector is its name.
fn name(request: &Request) -> u64 {
    match &request.kind {
        RequestKind::Write { offset, data } => {
            assert_eq!(data[..8], (offset / 512).to_le_bytes(), "its own data");
            offset / 512
        }
        other => panic!("unexpected {other:?}"),
    }
}

fn offer(guest: &Guest, ring: u16, number: u16) {
    let name = u64::from(ring) * 100 + u64::from(number);
    guest.write(place(ring, number) + 0x800, &name.to_le_bytes());
    guest.request(ring, number, WRITES, name, 512);
}

/// Takes and answers until there is nothing left: the last taken first, two at a time.
fn work(rig: &mut Rig, taken: &mut Vec<(u64, bool)>) {
    loop {
        rig.turn();
        if rig.requests.is_empty() {
            return;
        }
        let new: Vec<(u64, bool)> =
            rig.requests.iter().map(|request| (name(request), request.resumed)).collect();
        for entry in new {
            if !taken.contains(&entry) {
                taken.push(entry);
            }
        }
        for _ in 0..2 {
            if let Some(request) = rig.requests.pop() {
                rig.disk.complete(request.tag, Outcome::Done);
            }
        }
        rig.disk.flush_notifications();
    }
}

/// One process of `steps` steps on the guest's rings. Gives what it took, and whether it lived.
fn life(guest: &Guest, inflight: &Inflight, steps: u32) -> (Vec<(u64, bool)>, bool) {
    let (mut rig, _) = connect(guest, Some(inflight));
    let mut taken = Vec::new();
    let lived = dying_after(steps, || {
        start(&mut rig, guest);
        work(&mut rig, &mut taken);
    });
    (taken, lived)
}

fn assert_resumed_come_first(taken: &[(u64, bool)]) {
    let first_new = taken.iter().position(|(_, resumed)| !resumed).unwrap_or(taken.len());
    assert!(taken[first_new..].iter().all(|(_, resumed)| !resumed), "C24: {taken:?}");
}

#[test]
fn death_at_any_two_points_loses_and_repeats_nothing() {
    let mut deaths = 0;
    for first in 0..60 {
        for second in [0, 1, 2, 3, 5, 8, 9, 10, 11, 12, 13, 20, 1000] {
            let guest = Guest::new();
            let (_, fresh) = connect(&guest, None);
            let inflight = fresh.unwrap();
            for number in 0..3 {
                offer(&guest, 0, number);
                offer(&guest, 1, number);
            }
            let (taken, lived) = life(&guest, &inflight, first);
            deaths += u32::from(!lived);
            assert!(taken.iter().all(|(_, resumed)| !resumed), "nothing to resume at first");
            // The guest goes on meanwhile.
            offer(&guest, 0, 3);
            offer(&guest, 1, 3);
            let (taken, lived) = life(&guest, &inflight, second);
            deaths += u32::from(!lived);
            assert_resumed_come_first(&taken);
            offer(&guest, 0, 4);
            let (taken, lived) = life(&guest, &inflight, u32::MAX);
            assert!(lived);
            assert_resumed_come_first(&taken);
            for (ring, count) in [(0, 5), (1, 4)] {
                let mut heads: Vec<u32> = guest.used(ring).iter().map(|used| used.0).collect();
                heads.sort_unstable();
                let all: Vec<u32> = (0..count).map(|number| 3 * number).collect();
                assert_eq!(heads, all, "each request is used once ({first}, {second})");
                assert!((0..count as u16).all(|number| guest.status(ring, number) == 0));
            }
        }
    }
    assert!(deaths > 500, "only {deaths} processes died");
}

#[test]
fn what_was_in_flight_is_taken_in_order_before_anything_new() {
    let guest = Guest::new();
    let (mut rig, fresh) = connect(&guest, None);
    let inflight = fresh.unwrap();
    start(&mut rig, &guest);
    // Across rings: 0/0, 1/0, 0/1, 1/1, then 0/0 is answered.
    let mut tags: Vec<Tag> = Vec::new();
    for number in 0..2 {
        for ring in 0..2 {
            offer(&guest, ring, number);
            rig.turn();
            tags.push(rig.requests.pop().unwrap().tag);
        }
    }
    rig.disk.complete(tags[0], Outcome::Done);
    drop(rig);
    offer(&guest, 0, 2);
    let (mut rig, _) = connect(&guest, Some(&inflight));
    // Nothing may begin until every ring with unfinished requests runs.
    rig.set_up_ring(0, guest.used_index(0));
    rig.enable(0, true);
    assert!(rig.requests.is_empty());
    rig.set_up_ring(1, guest.used_index(1));
    assert!(rig.requests.is_empty(), "started, not enabled");
    rig.enable(1, true);
    let got: Vec<u64> = rig.requests.iter().map(name).collect();
    assert_eq!(got, [100, 1, 101]);
    let tags: Vec<Tag> = rig.requests.drain(..).map(|request| request.tag).collect();
    for tag in [tags[2], tags[0]] {
        rig.disk.complete(tag, Outcome::Done);
        rig.turn();
        assert!(rig.requests.is_empty(), "one is not published yet");
    }
    rig.disk.complete(tags[1], Outcome::Done);
    rig.turn();
    assert_eq!(name(&rig.requests[0]), 2);
    assert!(!rig.requests[0].resumed);
    assert_eq!(rig.disk.statistics().resumed, 3);
}

#[test]
fn a_new_connection_waits_for_what_the_engine_still_does_of_the_old_one() {
    let guest = Guest::new();
    let (mut rig, fresh) = connect(&guest, None);
    let inflight = fresh.unwrap();
    start(&mut rig, &guest);
    offer(&guest, 0, 0);
    rig.turn();
    let old = rig.requests.pop().unwrap();
    rig.reconnect();
    rig.negotiate(0);
    rig.set_inflight(&inflight);
    rig.add_memory(&guest);
    offer(&guest, 0, 1);
    start(&mut rig, &guest);
    assert!(rig.requests.is_empty());
    assert_eq!(rig.disk.in_flight(), 1);
    rig.disk.complete(old.tag, Outcome::Done);
    assert_eq!(guest.used_index(0), 0, "a stale answer is not published");
    rig.turn();
    assert_eq!(rig.requests.iter().map(name).collect::<Vec<_>>(), [0]);
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Done);
    rig.turn();
    assert_eq!(rig.requests.iter().map(name).collect::<Vec<_>>(), [1]);
}

#[test]
fn a_start_that_is_called_off_leaves_the_unfinished_for_the_next() {
    let guest = Guest::new();
    let (mut rig, fresh) = connect(&guest, None);
    let inflight = fresh.unwrap();
    start(&mut rig, &guest);
    offer(&guest, 1, 0);
    rig.turn();
    drop(rig);
    let (mut rig, _) = connect(&guest, Some(&inflight));
    rig.set_up_ring(1, 0);
    assert_eq!(rig.get_base(1), 1, "taken and not used");
    start(&mut rig, &guest);
    assert_eq!(rig.requests.iter().map(name).collect::<Vec<_>>(), [100]);
    assert!(rig.requests[0].resumed);
}

#[test]
fn resumed_reads_wait_for_resumed_writes() {
    const READS: u32 = 0;
    let guest = Guest::new();
    let (mut rig, fresh) = connect(&guest, None);
    let inflight = fresh.unwrap();
    start(&mut rig, &guest);
    guest.request(0, 0, READS, 7, 512);
    offer(&guest, 1, 0);
    rig.turn();
    assert_eq!(rig.requests.len(), 2);
    drop(rig);
    // Twice: the first successor loses its connection while it holds the read back.
    let (mut rig, _) = connect(&guest, Some(&inflight));
    start(&mut rig, &guest);
    let held = rig.requests.pop().unwrap();
    assert!(matches!(held.kind, RequestKind::Write { .. }) && rig.requests.is_empty());
    rig.reconnect();
    rig.negotiate(0);
    rig.set_inflight(&inflight);
    rig.add_memory(&guest);
    start(&mut rig, &guest);
    rig.disk.complete(held.tag, Outcome::Done);
    rig.turn();
    assert_eq!(rig.requests.iter().map(name).collect::<Vec<_>>(), [100], "the read waits");
    let write = rig.requests.pop().unwrap();
    rig.disk.complete(write.tag, Outcome::Done);
    rig.turn();
    let read = rig.requests.pop().unwrap();
    assert!(
        read.resumed && matches!(read.kind, RequestKind::Read { offset, .. } if offset == 7 * 512)
    );
    rig.disk.complete(read.tag, Outcome::Read(&[&[9; 512]]));
    assert_eq!((guest.used_index(0), guest.used_index(1)), (1, 1));
}

/// What a process published and died before it signalled, its successor signals, although the guest's
/// event index asks for a wake-up at an entry that is there already.
#[test]
fn what_a_predecessor_did_not_signal_is_signalled() {
    let signalled = |event: &OwnedFd| rustix::io::read(event, &mut [0; 8]).is_ok();
    for features in [0, 1 << VIRTIO_RING_F_EVENT_IDX] {
        let guest = Guest::new();
        let begin = |inflight: Option<&Inflight>| {
            let mut rig = Rig::connect();
            rig.negotiate(features);
            let fresh = inflight.is_none().then(|| rig.get_inflight());
            let (given, file) = inflight.or(fresh.as_ref()).unwrap();
            rig.set_inflight(&(*given, file.try_clone().unwrap()));
            rig.add_memory(&guest);
            start(&mut rig, &guest);
            rig.turn();
            (rig, fresh)
        };
        (0..3).for_each(|number| offer(&guest, 0, number));
        let (mut rig, inflight) = begin(None);
        let calls = rig.calls[0].try_clone().unwrap();
        assert_eq!(rig.requests.len(), 3);
        for request in rig.requests.drain(..2) {
            rig.disk.complete(request.tag, Outcome::Done);
        }
        while signalled(&calls) {}
        drop(rig);
        assert!(!signalled(&calls), "it died before it signalled");

        let (mut rig, _) = begin(inflight.as_ref());
        rig.disk.flush_notifications();
        assert!(signalled(&rig.calls[0]), "two are done, and one is not");
        let resumed = rig.requests.pop().unwrap();
        assert!(resumed.resumed);
        rig.disk.complete(resumed.tag, Outcome::Done);
        rig.disk.flush_notifications();
        assert_eq!(guest.used_index(0), 3);
    }
}
