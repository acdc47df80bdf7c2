//! Test aids inside of the crate: a guest and its front end by hand, and the place where a process
//! "dies". Everything happens in one thread: a message is sent, the device turns, the reply is read.

use crate::{Disk, DiskConfig, Request};
use cleave_runtime::buffer::BufferPool;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::cell::Cell;
use std::io::{IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserInflight, VhostUserProtocolFeatures, VhostUserSingleMemoryRegion,
    VhostUserVringAddr, VhostUserVringAddrFlags, VhostUserVringState,
};
use vm_memory::mmap::MmapRegion;
use vm_memory::{ByteValued, Bytes, FileOffset, VolatileMemory};

/// A shared memory file of `bytes` zeros.
pub(crate) fn shared_memory(bytes: u64) -> OwnedFd {
    let file = rustix::fs::memfd_create(c"rig", MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&file, bytes).unwrap();
    file
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap()
}

thread_local! {
    static STEPS_LEFT: Cell<Option<u32>> = const { Cell::new(None) };
}

/// What a death unwinds with.
pub(crate) struct Death;

/// Does `work` as a process that dies after `steps` more steps. True when it lived.
pub(crate) fn dying_after(steps: u32, work: impl FnOnce()) -> bool {
    STEPS_LEFT.set(Some(steps));
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work));
    STEPS_LEFT.set(None);
    match outcome {
        Ok(()) => true,
        Err(payload) if payload.is::<Death>() => false,
        Err(payload) => std::panic::resume_unwind(payload),
    }
}

/// A place between two effects.
pub(crate) fn step() {
    match STEPS_LEFT.get() {
        None => {}
        Some(0) => {
            STEPS_LEFT.set(None);
            std::panic::resume_unwind(Box::new(Death));
        }
        Some(left) => STEPS_LEFT.set(Some(left - 1)),
    }
}

/// Where the guest's memory begins, for the guest and for the front end.
pub(crate) const GUEST: u64 = 0x7f00_0000_0000;
const USER: u64 = 0x5500_0000_0000;
pub(crate) const MEMORY: u64 = 1 << 20;
/// Descriptors of each ring.
pub(crate) const SIZE: u16 = 16;
/// Rings of a rig's device.
pub(crate) const RINGS: u16 = 2;
const RING_BYTES: u64 = 0x1000;
const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
/// First byte of the memory after the rings.
pub(crate) const DATA: u64 = 0x10_000;

/// One descriptor: address, length, flags, next.
pub(crate) type Descriptor = (u64, u32, u16, u16);

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// A guest's memory and the rings in it; outlives devices and connections.
pub(crate) struct Guest {
    pub(crate) file: OwnedFd,
    pub(crate) memory: MmapRegion<()>,
}

impl Guest {
    pub(crate) fn new() -> Guest {
        let file = shared_memory(MEMORY);
        let copy = std::fs::File::from(file.try_clone().unwrap());
        let memory = MmapRegion::from_file(FileOffset::new(copy, 0), MEMORY as usize).unwrap();
        Guest { file, memory }
    }

    pub(crate) fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.as_volatile_slice().write_slice(bytes, at as usize).unwrap();
    }

    pub(crate) fn read(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.as_volatile_slice().read_slice(&mut bytes, at as usize).unwrap();
        bytes
    }

    fn half(&self, at: u64) -> u16 {
        u16::from_le_bytes(self.read(at, 2).try_into().unwrap())
    }

    pub(crate) fn describe(&self, at: u64, (address, length, flags, next): Descriptor) {
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &length.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Sets descriptor `index` of a ring.
    pub(crate) fn descriptor(&self, ring: u16, index: u16, descriptor: Descriptor) {
        self.describe(u64::from(ring) * RING_BYTES + u64::from(index) * 16, descriptor);
    }

    /// Makes `head` available.
    pub(crate) fn offer(&self, ring: u16, head: u16) {
        let at = u64::from(ring) * RING_BYTES + AVAILABLE;
        let index = self.half(at + 2);
        self.write(at + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.write(at + 2, &index.wrapping_add(1).to_le_bytes());
    }

    pub(crate) fn used_index(&self, ring: u16) -> u16 {
        self.half(u64::from(ring) * RING_BYTES + USED + 2)
    }

    /// Heads and lengths in a ring's used entries, from the first; valid while it has not wrapped.
    pub(crate) fn used(&self, ring: u16) -> Vec<(u32, u32)> {
        let at = u64::from(ring) * RING_BYTES + USED + 4;
        let entry = |index: u16| {
            let raw = self.read(at + 8 * u64::from(index), 8);
            let word = |part: &[u8]| u32::from_le_bytes(part.try_into().unwrap());
            (word(&raw[..4]), word(&raw[4..]))
        };
        (0..self.used_index(ring)).map(entry).collect()
    }

    /// Offers a request of three descriptors, the first at `3 * number`: header, data, status. Its
    /// memory is at `DATA + 0x2000 * number` of the ring's share.
    pub(crate) fn request(&self, ring: u16, number: u16, kind: u32, sector: u64, length: u32) {
        let base = place(ring, number);
        self.write(base, &kind.to_le_bytes());
        self.write(base + 8, &sector.to_le_bytes());
        self.write(base + 16, &[0xee]);
        let head = 3 * number;
        let data = if kind == 0 || kind == 8 { NEXT | WRITE } else { NEXT };
        self.descriptor(ring, head, (GUEST + base, 16, NEXT, head + 1));
        self.descriptor(ring, head + 1, (GUEST + base + 0x800, length, data, head + 2));
        self.descriptor(ring, head + 2, (GUEST + base + 16, 1, WRITE, 0));
        self.offer(ring, head);
    }

    pub(crate) fn status(&self, ring: u16, number: u16) -> u8 {
        self.read(place(ring, number) + 16, 1)[0]
    }
}

/// Where a request's header is; its data is 0x800 further.
pub(crate) fn place(ring: u16, number: u16) -> u64 {
    DATA + u64::from(ring) * 0x2_0000 + u64::from(number) * 0x2000
}

/// A device, and a connection to it.
pub(crate) struct Rig {
    pub(crate) disk: Disk,
    pub(crate) requests: Vec<Request>,
    pub(crate) stream: UnixStream,
    pub(crate) calls: Vec<OwnedFd>,
    pub(crate) kicks: Vec<OwnedFd>,
    _folder: tempfile::TempDir,
}

impl Rig {
    /// A device of 1 MiB, connected; nothing is negotiated yet.
    pub(crate) fn connect() -> Rig {
        Rig::connect_with(|_| {})
    }

    /// As [`connect`](Rig::connect), with another configuration.
    pub(crate) fn connect_with(adjust: impl FnOnce(&mut DiskConfig)) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let mut config = DiskConfig::new("rig", folder.path().join("s"), 1 << 20);
        config.queues = RINGS;
        config.queue_size_max = SIZE;
        config.serial = "rig".into();
        adjust(&mut config);
        let disk = Disk::bind(config, BufferPool::new(4096, 4)).unwrap();
        let stream = UnixStream::connect(&disk.config().socket).unwrap();
        let calls = (0..RINGS).map(|_| event()).collect();
        let kicks = (0..RINGS).map(|_| event()).collect();
        let requests = Vec::new();
        let mut rig = Rig { disk, requests, stream, calls, kicks, _folder: folder };
        rig.turn();
        rig
    }

    /// Another connection to the same device.
    pub(crate) fn reconnect(&mut self) {
        self.stream = UnixStream::connect(&self.disk.config().socket).unwrap();
        self.turn();
        self.turn();
    }

    /// The device went to another thread and came back; the rig as it was when it cannot go.
    pub(crate) fn handed_over(self) -> Result<Rig, Box<Rig>> {
        let Rig { disk, requests, stream, calls, kicks, _folder } = self;
        let (disk, handed) = match disk.detach() {
            Ok(detached) => {
                let there = std::thread::spawn(move || detached).join().unwrap();
                (there.attach(1 << 20, BufferPool::new(4096, 4)).unwrap(), true)
            }
            Err(disk) => (*disk, false),
        };
        let rig = Rig { disk, requests, stream, calls, kicks, _folder };
        if handed { Ok(rig) } else { Err(Box::new(rig)) }
    }

    /// Turns until nothing more happens; requests gather in `requests`.
    pub(crate) fn turn(&mut self) {
        loop {
            self.disk.disarm();
            if !self.disk.turn(&mut self.requests) {
                return;
            }
        }
    }

    pub(crate) fn send(&mut self, code: u32, flags: u32, body: &[u8], files: &[&OwnedFd]) {
        let mut bytes = Vec::new();
        for field in [code, 1 | flags, body.len() as u32] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes.extend_from_slice(body);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)));
        }
        let parts = [IoSlice::new(&bytes)];
        // A device that has hung up is the test's business, not this function's.
        let _ = rustix::net::sendmsg(&self.stream, &parts, &mut control, SendFlags::NOSIGNAL);
        self.turn();
    }

    /// Sends without wanting a reply.
    pub(crate) fn tell(&mut self, code: FrontendReq, body: &[u8], files: &[&OwnedFd]) {
        self.send(code.into(), 0, body, files);
    }

    /// The body of the reply that must be there now.
    pub(crate) fn reply(&mut self, code: FrontendReq) -> Vec<u8> {
        let body = self.try_reply().expect("a reply");
        assert_eq!(body.0, u32::from(code));
        body.1
    }

    /// The reply that is there now, if any: code and body.
    pub(crate) fn try_reply(&mut self) -> Option<(u32, Vec<u8>)> {
        self.stream.set_nonblocking(true).unwrap();
        let mut header = [0; 12];
        self.stream.read_exact(&mut header).ok()?;
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        assert_eq!(field(4), 5, "version 1, a reply");
        let mut body = vec![0; field(8) as usize];
        self.stream.read_exact(&mut body).unwrap();
        Some((field(0), body))
    }

    /// Whether the device has closed the connection.
    pub(crate) fn hung_up(&mut self) -> bool {
        self.turn();
        self.disk.state() == crate::DiskState::Listening
    }

    pub(crate) fn negotiate(&mut self, features: u64) {
        let features = features | 1 << 32 | 1 << 30;
        self.tell(FrontendReq::GET_FEATURES, &[], &[]);
        let offered = u64::from_ne_bytes(self.reply(FrontendReq::GET_FEATURES).try_into().unwrap());
        assert_eq!(offered & features, features);
        self.tell(FrontendReq::GET_PROTOCOL_FEATURES, &[], &[]);
        let protocol = self.reply(FrontendReq::GET_PROTOCOL_FEATURES);
        assert_eq!(protocol, DiskConfig::protocol_features().bits().to_ne_bytes());
        assert!(DiskConfig::protocol_features().contains(VhostUserProtocolFeatures::LOG_SHMFD));
        self.tell(FrontendReq::SET_PROTOCOL_FEATURES, &protocol, &[]);
        self.tell(FrontendReq::SET_FEATURES, &features.to_ne_bytes(), &[]);
    }

    /// Asks for a fresh inflight region; the descriptor stays with the caller.
    pub(crate) fn get_inflight(&mut self) -> (VhostUserInflight, OwnedFd) {
        use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
        let asked = VhostUserInflight::new(0, 0, RINGS, SIZE);
        self.tell(FrontendReq::GET_INFLIGHT_FD, asked.as_slice(), &[]);
        let mut bytes = [0; 36];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [std::io::IoSliceMut::new(&mut bytes)];
        recvmsg(&self.stream, &mut parts, &mut control, RecvFlags::empty()).unwrap();
        let Some(RecvAncillaryMessage::ScmRights(mut files)) = control.drain().next() else {
            panic!("no descriptor")
        };
        let mut given = VhostUserInflight::default();
        given.as_mut_slice().copy_from_slice(&bytes[12..]);
        (given, files.next().unwrap())
    }

    pub(crate) fn set_inflight(&mut self, (given, file): &(VhostUserInflight, OwnedFd)) {
        self.tell(FrontendReq::SET_INFLIGHT_FD, given.as_slice(), &[file]);
    }

    pub(crate) fn add_memory(&mut self, guest: &Guest) {
        let region = VhostUserSingleMemoryRegion::new(GUEST, MEMORY, USER, 0);
        self.tell(FrontendReq::ADD_MEM_REG, region.as_slice(), &[&guest.file]);
    }

    pub(crate) fn remove_memory(&mut self) {
        let region = VhostUserSingleMemoryRegion::new(GUEST, MEMORY, USER, 0);
        self.tell(FrontendReq::REM_MEM_REG, region.as_slice(), &[]);
    }

    /// Starts and enables a ring whose base is `base`.
    pub(crate) fn start_ring(&mut self, ring: u16, base: u16) {
        self.set_up_ring(ring, base);
        self.enable(ring, true);
    }

    /// Starts a ring.
    pub(crate) fn set_up_ring(&mut self, ring: u16, base: u16) {
        let state = |num: u16| VhostUserVringState::new(ring.into(), num.into());
        self.tell(FrontendReq::SET_VRING_NUM, state(SIZE).as_slice(), &[]);
        self.tell(FrontendReq::SET_VRING_BASE, state(base).as_slice(), &[]);
        self.set_addresses(ring);
        let index = u64::from(ring).to_ne_bytes();
        let call = self.calls[usize::from(ring)].try_clone().unwrap();
        let kick = self.kicks[usize::from(ring)].try_clone().unwrap();
        self.tell(FrontendReq::SET_VRING_CALL, &index, &[&call]);
        self.tell(FrontendReq::SET_VRING_KICK, &index, &[&kick]);
    }

    pub(crate) fn set_addresses(&mut self, ring: u16) {
        let at = USER + u64::from(ring) * RING_BYTES;
        let flags = VhostUserVringAddrFlags::empty();
        let index = u32::from(ring);
        let place = VhostUserVringAddr::new(index, flags, at, at + USED, at + AVAILABLE, 0);
        self.tell(FrontendReq::SET_VRING_ADDR, place.as_slice(), &[]);
    }

    pub(crate) fn enable(&mut self, ring: u16, on: bool) {
        let state = VhostUserVringState::new(ring.into(), on.into());
        self.tell(FrontendReq::SET_VRING_ENABLE, state.as_slice(), &[]);
    }

    /// A connection with one guest's memory and all rings running from 0.
    pub(crate) fn running(guest: &Guest, features: u64) -> Rig {
        let mut rig = Rig::connect();
        rig.run(guest, features);
        rig
    }

    /// Negotiates, and starts all rings from 0.
    pub(crate) fn run(&mut self, guest: &Guest, features: u64) {
        self.negotiate(features);
        self.add_memory(guest);
        for ring in 0..RINGS {
            self.start_ring(ring, 0);
        }
    }
}
