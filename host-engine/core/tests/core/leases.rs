//! Reads are answered only under a lease (C9).

use crate::rig::{DISK, Rig};
use cleave_format::ids::{Epoch, VdiskId};
use cleave_host_core::*;
use cleave_runtime::buffer::Buffer;
use cleave_wire::{LEASE, LEASE_RENEWED};
use std::time::Duration;

const SIZE: u64 = 8 << 20;
const SECOND: Duration = Duration::from_secs(1);

/// Has a request taken.
fn submit(rig: &Rig, token: u64, operation: Operation) {
    rig.core().submit(GuestRequest { token, vdisk: DISK, operation }).unwrap();
    rig.host.as_ref().unwrap().0.wake();
}

fn read(rig: &Rig, token: u64) {
    submit(rig, token, Operation::Read { offset: 0, length: 4096 });
}

/// What is answered within a second: tokens, and whether well.
fn answered(rig: &Rig) -> Vec<(u64, bool)> {
    rig.world.run_for(SECOND);
    let mut completions = Vec::new();
    rig.core().completions(&mut completions);
    completions.iter().map(|completion| (completion.token, completion.result.is_ok())).collect()
}

/// A host that serves a disk with one block in its write buffer.
fn begin(seed: u64) -> Rig {
    let mut rig = Rig::new(seed, SIZE);
    rig.start_host();
    rig.open();
    submit(&rig, 1, Operation::Write { offset: 0, data: Buffer::new(4096) });
    assert_eq!(answered(&rig), [(1, true)]);
    read(&rig, 2);
    assert_eq!(answered(&rig), [(2, true)]);
    rig
}

#[test]
fn reads_are_held_when_the_lease_has_run_out_and_answered_when_it_is_renewed() {
    let mut rig = begin(1);
    rig.pool.borrow_mut().gives_leases = false;
    rig.world.run_for(LEASE - LEASE_RENEWED - 2 * SECOND);
    read(&rig, 3);
    assert_eq!(answered(&rig), [(3, true)], "it lasts");
    rig.world.run_for(LEASE);
    read(&rig, 4);
    assert_eq!(answered(&rig), []);
    assert_eq!((rig.core().stats().reads_held, rig.core().in_flight()), (1, 1));
    // What is written needs no lease: the log is its fence.
    submit(&rig, 5, Operation::Write { offset: 0, data: Buffer::new(4096) });
    assert_eq!(answered(&rig), [(5, true)]);
    rig.pool.borrow_mut().gives_leases = true;
    rig.world.run_for(2 * LEASE_RENEWED);
    assert_eq!(answered(&rig), [(4, true)]);
    // Nor does a core that opens again begin with the lease that another one had.
    rig.pool.borrow_mut().gives_leases = false;
    rig.kill_host();
    rig.start_host();
    rig.open();
    read(&rig, 6);
    assert_eq!(answered(&rig), []);
}

#[test]
fn reads_of_a_vdisk_that_another_host_took_are_not_answered() {
    let rig = begin(2);
    rig.pool.borrow_mut().gives_leases = false;
    rig.world.run_for(2 * LEASE);
    read(&rig, 3);
    read(&rig, 4);
    assert_eq!(answered(&rig), []);
    rig.pool.borrow_mut().seals.insert(DISK, Epoch(77));
    rig.pool.borrow_mut().gives_leases = true;
    rig.world.run_for(2 * LEASE_RENEWED);
    assert_eq!(answered(&rig), [(3, false), (4, false)]);
    assert_eq!(rig.core().next_event(), Some(Event::Fenced { vdisk: DISK }));
    assert!(rig.core().vdisk_stats(DISK).is_none());
}

/// A vdisk that is closed waits for the reads that it took, and no longer than it may.
#[test]
fn a_close_waits_for_reads_that_are_held() {
    let rig = begin(3);
    rig.pool.borrow_mut().gives_leases = false;
    rig.world.run_for(2 * LEASE);
    read(&rig, 3);
    assert!(!rig.run(rig.core().close(DISK, 3 * SECOND)));
    assert_eq!(answered(&rig), [(3, false)]);
}

/// Of several vdisks each has its own lease.
#[test]
fn a_lost_vdisk_takes_no_other_with_it() {
    let rig = begin(4);
    let other = VdiskId(5);
    let request =
        OpenRequest { vdisk: other, size: SIZE, keys: None, epoch: Epoch(1), gone: Vec::new() };
    rig.run(rig.core().open(request)).unwrap();
    rig.world.run_for(SECOND);
    rig.pool.borrow_mut().seals.insert(other, Epoch(2));
    rig.world.run_for(2 * LEASE_RENEWED);
    assert_eq!(rig.core().next_event(), Some(Event::Fenced { vdisk: other }));
    read(&rig, 3);
    assert_eq!(answered(&rig), [(3, true)]);
}
