//! What front ends say, one subject a test.

use crate::rig::{DATA, GUEST, Guest, MEMORY, Rig, event, place, shared_memory};
use crate::{DiskState, Outcome, RequestKind};
use std::os::fd::OwnedFd;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserConfigFlags, VhostUserLog, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserVringState,
};
use vm_memory::{ByteValued, Bytes, VolatileMemory};

const NEED_REPLY: u32 = 8;

impl Rig {
    /// Asks for a ring's base, without waiting for the answer.
    pub(crate) fn ask_base(&mut self, ring: u16) {
        let state = VhostUserVringState::new(ring.into(), 0);
        self.tell(FrontendReq::GET_VRING_BASE, state.as_slice(), &[]);
    }

    pub(crate) fn get_base(&mut self, ring: u16) -> u32 {
        self.ask_base(ring);
        base(&self.reply(FrontendReq::GET_VRING_BASE))
    }

    fn answer_all(&mut self) {
        for request in std::mem::take(&mut self.requests) {
            self.disk.complete(request.tag, Outcome::Done);
        }
        self.disk.flush_notifications();
    }
}

fn base(body: &[u8]) -> u32 {
    let mut state = VhostUserVringState::default();
    state.as_mut_slice().copy_from_slice(body);
    state.num
}

fn signalled(event: &OwnedFd) -> bool {
    rustix::io::read(event, &mut [0u8; 8]).is_ok()
}

#[test]
fn gets_are_answered_once_and_sets_are_acknowledged() {
    let mut rig = Rig::connect();
    rig.negotiate(0);
    rig.send(FrontendReq::GET_QUEUE_NUM.into(), NEED_REPLY, &[], &[]);
    assert_eq!(rig.reply(FrontendReq::GET_QUEUE_NUM), 2u64.to_ne_bytes());
    rig.send(FrontendReq::GET_MAX_MEM_SLOTS.into(), NEED_REPLY, &[], &[]);
    assert_eq!(rig.reply(FrontendReq::GET_MAX_MEM_SLOTS), 509u64.to_ne_bytes());
    assert!(rig.try_reply().is_none());
    rig.send(FrontendReq::SET_OWNER.into(), NEED_REPLY, &[], &[]);
    assert_eq!(rig.reply(FrontendReq::SET_OWNER), 0u64.to_ne_bytes());
    rig.tell(FrontendReq::SET_OWNER, &[], &[]);
    assert!(rig.try_reply().is_none());
}

#[test]
fn configuration_is_read_in_any_part_and_the_cache_mode_written() {
    let mut rig = Rig::connect();
    rig.negotiate(0);
    let ask = |rig: &mut Rig, offset: u32, size: u32| {
        let header = VhostUserConfig::new(offset, size, VhostUserConfigFlags::empty());
        let mut body = header.as_slice().to_vec();
        body.resize(body.len() + size as usize, 0);
        rig.tell(FrontendReq::GET_CONFIG, &body, &[]);
        rig.reply(FrontendReq::GET_CONFIG)
    };
    assert_eq!(ask(&mut rig, 0, 60).len(), 12 + 60);
    assert_eq!(ask(&mut rig, 0, 8)[12..], (2048u64).to_le_bytes());
    assert_eq!(ask(&mut rig, 250, 60).len(), 12, "beyond the space: an empty answer");
    let set = |rig: &mut Rig, offset: u32, value: u8| {
        let header = VhostUserConfig::new(offset, 1, VhostUserConfigFlags::WRITABLE);
        let mut body = header.as_slice().to_vec();
        body.push(value);
        rig.send(FrontendReq::SET_CONFIG.into(), NEED_REPLY, &body, &[]);
        rig.reply(FrontendReq::SET_CONFIG)[0]
    };
    assert_eq!((set(&mut rig, 32, 1), set(&mut rig, 32, 7), set(&mut rig, 0, 1)), (0, 1, 1));
    assert_eq!(ask(&mut rig, 32, 1)[12], 1);
}

#[test]
fn a_ring_stops_when_it_is_drained_and_starts_where_it_stopped() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    assert_eq!(rig.disk.state(), DiskState::Running);
    guest.request(0, 0, 1, 0, 512);
    guest.request(1, 0, 1, 8, 512);
    rig.turn();
    guest.request(0, 1, 1, 16, 512);
    // C26: the answer comes when what was taken is published; what was not stays for later.
    rig.ask_base(0);
    let taken = rig.requests.len();
    assert!(rig.try_reply().is_none());
    guest.request(0, 2, 1, 24, 512);
    rig.turn();
    assert_eq!(rig.requests.len(), taken, "a draining ring gives nothing new");
    assert!(rig.disk.arm(), "only an answer helps");
    rig.answer_all();
    assert!(!rig.disk.arm(), "the base can be told now");
    rig.turn();
    let told = base(&rig.reply(FrontendReq::GET_VRING_BASE)) as u16;
    assert_eq!(told, guest.used_index(0));
    rig.answer_all();
    rig.start_ring(0, told);
    rig.answer_all();
    assert_eq!(guest.used(0).len(), 3);
    for ring in 0..2 {
        rig.get_base(ring);
    }
    assert_eq!(rig.disk.state(), DiskState::Connected);
}

#[test]
fn the_serial_is_given_and_unknown_requests_are_unsupported() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.request(0, 0, 8, 0, 20);
    guest.request(0, 1, 8, 0, 2);
    guest.request(0, 2, 99, 0, 512);
    rig.turn();
    assert!(rig.requests.is_empty());
    assert_eq!(guest.read(place(0, 0) + 0x800, 4), b"rig\0");
    assert_eq!(guest.read(place(0, 1) + 0x800, 4), b"ri\0\0");
    assert_eq!((guest.status(0, 0), guest.status(0, 1), guest.status(0, 2)), (0, 0, 2));
    assert_eq!(guest.used(0), [(0, 21), (3, 3), (6, 1)]);
    assert!(signalled(&rig.calls[0]), "answered by the device, and told");
}

#[test]
fn a_memory_table_replaces_regions_and_running_rings_follow() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.request(0, 0, 0, 0, 512);
    rig.turn();
    // The same memory, cut in two.
    let half = MEMORY / 2;
    let user = 0x5500_0000_0000;
    let mut body = VhostUserMemory::new(2).as_slice().to_vec();
    body.extend_from_slice(VhostUserMemoryRegion::new(GUEST, half, user, 0).as_slice());
    let second = VhostUserMemoryRegion::new(GUEST + half, half, user + half, half);
    body.extend_from_slice(second.as_slice());
    let (first, second) = (guest.file.try_clone().unwrap(), guest.file.try_clone().unwrap());
    rig.send(FrontendReq::SET_MEM_TABLE.into(), NEED_REPLY, &body, &[&first, &second]);
    assert_eq!(rig.reply(FrontendReq::SET_MEM_TABLE), 0u64.to_ne_bytes());
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Read(&[&[7; 500], &[8; 12]]));
    assert_eq!(guest.used(0), [(0, 513)]);
    assert_eq!(guest.read(place(0, 0) + 0x800 + 499, 2), [7, 8]);
}

#[test]
fn memory_that_goes_takes_only_its_requests_along() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    guest.request(0, 0, 0, 0, 512);
    rig.turn();
    rig.remove_memory();
    assert_eq!(rig.disk.state(), DiskState::Running);
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Read(&[&[7; 512]]));
    assert_eq!((guest.used_index(0), rig.disk.statistics().faults), (0, 1));
    rig.add_memory(&guest);
    guest.request(1, 0, 1, 0, 512);
    rig.turn();
    assert_eq!(rig.requests.len(), 1, "the other ring goes on");
}

#[test]
fn a_paused_device_takes_nothing() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    rig.disk.pause();
    for number in 0..4 {
        guest.request(0, number, 1, 0, 512);
    }
    rig.turn();
    assert!(rig.requests.is_empty() && rig.disk.arm());
    rig.disk.resume();
    assert!(!rig.disk.arm());
    rig.turn();
    assert_eq!((rig.requests.len(), rig.disk.in_flight()), (4, 4));
    rig.answer_all();
    assert_eq!(rig.disk.in_flight(), 0);
}

#[test]
fn writes_in_flight_are_bounded_in_bytes() {
    let guest = Guest::new();
    let mut rig = Rig::connect_with(|config| config.write_bytes_max = 1000);
    rig.run(&guest, 0);
    for number in 0..4 {
        guest.request(0, number, 1, 0, 512);
    }
    rig.turn();
    assert_eq!(rig.requests.len(), 2, "the one that reaches the bound is the last");
    assert!(rig.disk.arm(), "an answer has to come first");
    rig.answer_all();
    assert!(!rig.disk.arm());
    rig.turn();
    assert_eq!(rig.requests.len(), 2);
}

#[test]
fn the_last_ring_stops_when_the_owner_has_let_go() {
    let guest = Guest::new();
    let mut rig = Rig::connect_with(|config| config.confirm_release = true);
    rig.run(&guest, 0);
    rig.get_base(0);
    guest.request(1, 0, 1, 0, 512);
    rig.turn();
    rig.ask_base(1);
    assert!(!rig.disk.wants_release(), "not drained");
    rig.answer_all();
    rig.turn();
    assert!(rig.disk.wants_release() && rig.disk.arm() && rig.try_reply().is_none());
    rig.disk.released();
    assert!(!rig.disk.arm());
    rig.turn();
    assert_eq!(base(&rig.reply(FrontendReq::GET_VRING_BASE)), 1);
    // A migration that is called off starts again, and asks again.
    rig.start_ring(1, 1);
    rig.ask_base(1);
    assert!(rig.disk.wants_release());
}

#[test]
fn a_sleeper_is_woken_by_a_kick_and_by_a_message() {
    for features in [0, 1 << 29] {
        let guest = Guest::new();
        let mut rig = Rig::running(&guest, features);
        assert!(rig.disk.arm());
        assert_eq!(rig.disk.watched().len(), 3);
        guest.request(0, 0, 0, 0, 512);
        rustix::io::write(&rig.kicks[0], &1u64.to_ne_bytes()).unwrap();
        assert!(!rig.disk.arm(), "armed again, it sees what waits");
        assert!(!signalled(&rig.kicks[0]), "the kick was taken");
        rig.disk.disarm();
        rig.turn();
        assert_eq!(rig.requests.len(), 1);
        let version = rig.disk.watch_version();
        rig.tell(FrontendReq::SET_OWNER, &[], &[]);
        assert!(rig.disk.watch_version() > version);
    }
}

#[test]
fn a_guest_that_polls_is_not_woken() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    // Once, when its ring starts: a predecessor may have published something.
    rig.disk.flush_notifications();
    while signalled(&rig.calls[0]) {}
    guest.write(0x400, &1u16.to_le_bytes()); // VRING_AVAIL_F_NO_INTERRUPT
    guest.request(0, 0, 1, 0, 512);
    rig.turn();
    rig.answer_all();
    assert!(!signalled(&rig.calls[0]));
    guest.write(0x400, &0u16.to_le_bytes());
    guest.request(0, 1, 1, 0, 512);
    rig.turn();
    rig.answer_all();
    assert!(signalled(&rig.calls[0]));
}

#[test]
fn growing_is_told_to_the_front_end() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    rig.tell(FrontendReq::SET_BACKEND_REQ_FD, &[], &[&OwnedFd::from(theirs)]);
    guest.request(0, 0, 0, 2048, 512);
    rig.turn();
    assert_eq!((guest.status(0, 0), rig.requests.len()), (1, 0), "beyond the end");
    assert!(rig.disk.resize(513).is_err());
    rig.disk.resize(2 << 20).unwrap();
    let mut message = [0; 12];
    std::io::Read::read_exact(&mut &ours, &mut message).unwrap();
    assert_eq!(message, [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    guest.request(0, 1, 0, 2048, 512);
    rig.turn();
    assert_eq!(rig.requests.len(), 1);
}

#[test]
fn a_migration_finds_every_page_that_the_device_wrote() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    // The bitmap covers guest addresses from 0, so these high ones need a large, sparse one.
    let bytes = (GUEST + MEMORY) / 4096 / 8;
    let file = shared_memory(bytes);
    let log = VhostUserLog::new(bytes, 0);
    let copy = file.try_clone().unwrap();
    rig.tell(FrontendReq::SET_LOG_BASE, log.as_slice(), &[&copy]);
    assert_eq!(rig.reply(FrontendReq::SET_LOG_BASE).len(), 16);
    let features: u64 = 1 << 32 | 1 << 30 | 1 << 26;
    rig.tell(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]);
    for ring in 0..2 {
        rig.set_addresses(ring);
    }
    let bitmap = crate::memory::map(file, 0, bytes, &Default::default()).unwrap().memory;
    let first = (GUEST / 4096 / 8) as usize;
    let dirty = |address: u64| {
        let page = address / 4096;
        let byte: u8 = bitmap.as_volatile_slice().read_obj(first + page as usize / 8).unwrap();
        byte >> (page % 8) & 1 == 1
    };
    assert!(dirty(0) && dirty(0x1000), "a ring whose addresses come again is marked whole");
    bitmap.as_volatile_slice().write_slice(&[0; 32], first).unwrap();
    guest.request(0, 1, 0, 0, 4096);
    rig.turn();
    let tag = rig.requests.pop().unwrap().tag;
    rig.disk.complete(tag, Outcome::Read(&[&[1; 4096]]));
    let data = place(0, 1) + 0x800;
    assert!(dirty(0) && dirty(data) && dirty(data + 4095) && dirty(place(0, 1)));
    assert!(!dirty(0x1000) && !dirty(DATA) && !dirty(data + 8192));
}

#[test]
fn descriptors_that_could_block_are_refused() {
    for wrong in
        [shared_memory(8), OwnedFd::from(std::os::unix::net::UnixStream::pair().unwrap().0)]
    {
        let mut rig = Rig::connect();
        rig.negotiate(0);
        let code = FrontendReq::SET_VRING_CALL.into();
        rig.send(code, NEED_REPLY, &0u64.to_ne_bytes(), &[&wrong]);
        assert_eq!(rig.reply(FrontendReq::SET_VRING_CALL), 1u64.to_ne_bytes());
        assert!(rig.hung_up());
    }
}

#[test]
fn a_fault_is_told_and_a_new_start_forgets_it() {
    let guest = Guest::new();
    let mut rig = Rig::running(&guest, 0);
    let told = event();
    let copy = told.try_clone().unwrap();
    rig.tell(FrontendReq::SET_VRING_ERR, &0u64.to_ne_bytes(), &[&copy]);
    guest.offer(0, 999);
    rig.turn();
    assert!(signalled(&told));
    assert_eq!(rig.disk.statistics().faults, 1);
    guest.request(0, 0, 0, 0, 512);
    guest.request(1, 0, 0, 0, 512);
    rig.turn();
    assert_eq!(rig.requests.len(), 1, "only the other ring");
    let base = rig.get_base(0);
    assert_eq!(base, 1);
    rig.start_ring(0, 1);
    assert_eq!(rig.requests.len(), 2);
    assert!(matches!(rig.requests[1].kind, RequestKind::Read { offset: 0, length: 512 }));
}
