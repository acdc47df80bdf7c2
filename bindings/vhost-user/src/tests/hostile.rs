//! Guests and front ends that mean harm break their own device, never the process.

use crate::Outcome;
use crate::rig::{
    DATA, Descriptor, GUEST, Guest, INDIRECT, MEMORY, NEXT, Rig, SIZE, WRITE, event, shared_memory,
};
use proptest::prelude::*;
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::{FrontendReq, VhostUserInflight, VhostUserVringState};
use vm_memory::ByteValued;

/// Offers one chain on ring 0; gives the requests, statuses and faults that came of it.
fn offer(descriptors: &[Descriptor]) -> (Guest, Rig) {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    for (index, descriptor) in descriptors.iter().enumerate() {
        guest.descriptor(0, index as u16, *descriptor);
    }
    guest.offer(0, 0);
    rig.turn();
    (guest, rig)
}

const HEADER: u64 = GUEST + DATA;
const STATUS: u64 = GUEST + DATA + 0x100;

#[test]
fn chains_of_a_wrong_shape_stop_their_ring() {
    let status = (STATUS, 1, WRITE, 0);
    let wrong: [&[Descriptor]; 9] = [
        // A loop.
        &[(HEADER, 16, NEXT, 1), (HEADER, 16, NEXT, 0)],
        // A next descriptor beyond the table.
        &[(HEADER, 16, NEXT, SIZE)],
        // No status byte.
        &[(HEADER, 16, 0, 0)],
        // A status byte outside of memory.
        &[(HEADER, 16, NEXT, 1), (GUEST + MEMORY, 1, WRITE, 0)],
        &[(HEADER, 16, NEXT, 1), (u64::MAX, 2, WRITE, 0)],
        // Readable after writable.
        &[(STATUS, 1, WRITE | NEXT, 1), (HEADER, 16, 0, 0)],
        // Indirect tables: not whole descriptors, outside of memory, with a next one.
        &[(HEADER, 17, INDIRECT, 0)],
        &[(GUEST + MEMORY, 32, INDIRECT, 0)],
        &[(HEADER, 32, INDIRECT | NEXT, 1), status],
    ];
    for chain in wrong {
        let (guest, rig) = offer(chain);
        assert_eq!(rig.disk.statistics().faults, 1, "{chain:?}");
        assert_eq!((guest.used_index(0), rig.requests.len(), rig.disk.in_flight()), (0, 0, 0));
    }
}

#[test]
fn an_indirect_table_inside_of_one_stops_the_ring() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.descriptor(0, 0, (HEADER, 32, INDIRECT, 0));
    guest.describe(DATA, (HEADER + 0x1000, 32, INDIRECT, 0));
    // The inner one would be a good flush.
    guest.describe(DATA + 0x1000, (HEADER + 0x2000, 16, NEXT, 1));
    guest.describe(DATA + 0x1010, (HEADER + 0x2010, 1, WRITE, 0));
    guest.write(DATA + 0x2000, &4u32.to_le_bytes());
    guest.offer(0, 0);
    rig.turn();
    assert_eq!((rig.disk.statistics().faults, rig.requests.len()), (1, 0));
    // By itself it is, also as the end of a chain.
    guest.descriptor(1, 0, (HEADER + 0x2000, 8, NEXT, 5));
    guest.descriptor(1, 5, (HEADER + 0x3000, 32, INDIRECT, 0));
    guest.describe(DATA + 0x3000, (HEADER + 0x2008, 8, NEXT, 1));
    guest.describe(DATA + 0x3010, (HEADER + 0x2010, 1, WRITE, 0));
    guest.offer(1, 0);
    rig.turn();
    assert_eq!((rig.disk.statistics().faults, rig.disk.statistics().flushes), (1, 1));
}

#[test]
fn bad_data_fails_the_request_and_nothing_else() {
    let data = (GUEST + DATA + 0x1000, 512, NEXT | WRITE, 2);
    let bad: [&[Descriptor]; 4] = [
        // The header is short.
        &[(HEADER, 15, NEXT, 1), data, (STATUS, 1, WRITE, 0)],
        // Data outside of memory, data that wraps around.
        &[(HEADER, 16, NEXT, 1), (GUEST + MEMORY, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)],
        &[(HEADER, 16, NEXT, 1), (u64::MAX - 5, 512, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)],
        // Not whole sectors.
        &[(HEADER, 16, NEXT, 1), (GUEST + DATA, 100, NEXT | WRITE, 2), (STATUS, 1, WRITE, 0)],
    ];
    for chain in bad {
        let (guest, mut rig) = offer(chain);
        assert_eq!((guest.used(0), rig.disk.statistics().faults), (vec![(0, 1)], 0), "{chain:?}");
        assert_eq!(guest.read(DATA + 0x100, 1), [1]);
        guest.request(0, 1, 0, 0, 512);
        rig.turn();
        assert_eq!(rig.requests.len(), 1, "the ring goes on");
    }
}

#[test]
fn a_head_offered_twice_stops_the_ring_but_not_the_first() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.request(0, 0, 0, 0, 512);
    guest.offer(0, 0);
    rig.turn();
    assert_eq!((rig.requests.len(), rig.disk.statistics().faults), (1, 1));
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Failed);
    assert_eq!(guest.used(0), [(0, 1)]);
}

#[test]
fn an_available_index_that_jumps_stops_the_ring() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.write(0x402, &(SIZE + 1).to_le_bytes());
    rig.turn();
    assert_eq!((rig.requests.len(), rig.disk.statistics().faults), (0, 1));
}

#[test]
fn absurd_messages_end_the_connection_only() {
    let state = |index, num| VhostUserVringState::new(index, num).as_slice().to_vec();
    let inflight =
        |queues, size| VhostUserInflight::new(1 << 20, 0, queues, size).as_slice().to_vec();
    let ones = vec![0xff; 40];
    let absurd: Vec<(FrontendReq, Vec<u8>)> = vec![
        (FrontendReq::SET_VRING_NUM, state(0, 1 << 20)),
        (FrontendReq::SET_VRING_NUM, state(0, 3)),
        (FrontendReq::SET_VRING_NUM, state(0, 0)),
        (FrontendReq::SET_VRING_NUM, state(7, 8)),
        (FrontendReq::SET_VRING_BASE, state(0, 1 << 17)),
        (FrontendReq::SET_VRING_ENABLE, state(0, 2)),
        (FrontendReq::GET_VRING_BASE, state(u32::MAX, 0)),
        (FrontendReq::SET_VRING_ADDR, ones.clone()),
        (FrontendReq::SET_FEATURES, u64::MAX.to_ne_bytes().to_vec()),
        (FrontendReq::SET_MEM_TABLE, ones.clone()),
        (FrontendReq::ADD_MEM_REG, ones.clone()),
        (FrontendReq::REM_MEM_REG, ones.clone()),
        (FrontendReq::GET_INFLIGHT_FD, inflight(0, 16)),
        (FrontendReq::GET_INFLIGHT_FD, inflight(1, u16::MAX)),
        (FrontendReq::SET_INFLIGHT_FD, inflight(2, 16)),
        (FrontendReq::SET_LOG_BASE, ones.clone()),
        (FrontendReq::GET_CONFIG, ones.clone()),
        (FrontendReq::SET_VRING_KICK, 0u64.to_ne_bytes().to_vec()),
        (FrontendReq::SET_VRING_KICK, 0x100u64.to_ne_bytes().to_vec()),
        (FrontendReq::RESET_DEVICE, vec![]),
        (FrontendReq::POSTCOPY_ADVISE, vec![]),
        (FrontendReq::GET_FEATURES, ones),
    ];
    for (code, body) in absurd {
        let mut rig = Rig::connect();
        rig.negotiate(0);
        rig.tell(code, &body, &[]);
        assert!(rig.hung_up(), "{code:?}");
        rig.reconnect();
        rig.negotiate(0);
    }
}

/// Addresses in, at the edge of, and out of the guest's memory.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![
        8 => (0..MEMORY).prop_map(|at| GUEST + at),
        1 => (0..64u64).prop_map(|at| GUEST + MEMORY - 32 + at),
        1 => any::<u64>(),
    ]
}

fn descriptor() -> impl Strategy<Value = Descriptor> {
    let length = prop_oneof![4 => 0..4096u32, 2 => Just(16u32), 2 => Just(1u32), 1 => any::<u32>()];
    let flags = prop_oneof![9 => 0..4u16, 1 => any::<u16>()];
    (address(), length, flags, 0..SIZE + 1)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_rings_are_served_or_stopped(
        table in proptest::collection::vec(descriptor(), usize::from(SIZE)),
        kinds in proptest::collection::vec(0..16u32, 8),
        heads in proptest::collection::vec(0..SIZE + 1, 1..usize::from(SIZE)),
        noise in proptest::collection::vec((0..MEMORY - 16, any::<[u8; 16]>()), 0..50),
    ) {
        let guest = Guest::new();
        let mut rig = Rig::running(&guest, 1 << 29);
        // Never over the rings' own indices, or nothing else would be tried.
        for (at, bytes) in noise.iter().filter(|(at, _)| *at >= DATA) {
            guest.write(*at, bytes);
        }
        for (index, descriptor) in table.iter().enumerate() {
            guest.descriptor(0, index as u16, *descriptor);
            if index < kinds.len() && descriptor.0 >= HEADER && descriptor.0 < GUEST + MEMORY - 16 {
                guest.describe(descriptor.0 - GUEST, (kinds[index].into(), 0, 0, 0));
            }
        }
        for head in &heads {
            guest.offer(0, *head);
            rig.turn();
            for request in std::mem::take(&mut rig.requests) {
                rig.disk.complete(request.tag, Outcome::Failed);
            }
            rig.disk.flush_notifications();
            rig.disk.arm();
        }
        prop_assert_eq!(rig.disk.in_flight(), 0);
        let used = guest.used_index(0);
        prop_assert!(usize::from(used) <= heads.len());
        prop_assert!(usize::from(used) == heads.len() || rig.disk.statistics().faults == 1);
    }

    #[test]
    fn any_messages_are_answered_or_end_the_connection(
        messages in proptest::collection::vec(
            (0..48u32, proptest::collection::vec(any::<u8>(), 0..64), 0..3usize, any::<bool>()),
            1..40,
        ),
        small in any::<bool>(),
    ) {
        let guest = Guest::new();
        let mut rig = if small { Rig::connect() } else { Rig::running(&guest, 0) };
        let files: [OwnedFd; 3] = [event(), shared_memory(4096), event()];
        for (code, mut body, count, sized) in messages {
            // Some of the right size and with small numbers in them.
            if sized {
                body.resize(8, 0);
                body[2..].fill(0);
            }
            let given: Vec<&OwnedFd> = files.iter().take(count).collect();
            rig.send(code, 8, &body, &given);
            while rig.try_reply().is_some() {}
            if rig.hung_up() {
                rig.reconnect();
            }
        }
    }
}
