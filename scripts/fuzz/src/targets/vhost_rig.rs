//! A front end and a guest by hand, over the device's public side: messages go in, the device turns, requests
//! are answered at once. Everything happens in one thread.

use crate::input::Input;
use cleave_runtime::buffer::BufferPool;
use cleave_vhost_user::{Disk, DiskConfig, DiskState, Outcome, Request, RequestKind};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::MemfdFlags;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use tempfile::TempDir;

/// Where the guest's memory begins, for the guest ...
pub(super) const GUEST: u64 = 0x1000_0000;
/// ... and for the front end.
pub(super) const USER: u64 = 0x5500_0000_0000;
/// Bytes of it.
pub(super) const MEMORY: u64 = 1 << 17;
/// Descriptors of a ring.
pub(super) const SIZE: u16 = 16;
/// Rings of the device.
pub(super) const RINGS: u16 = 2;
/// Bytes of memory for each ring: descriptors, available ring, used ring.
pub(super) const RING_BYTES: u64 = 0x1000;
/// First byte of the available ring.
pub(super) const AVAILABLE: u64 = 0x400;
const USED: u64 = 0x800;
const CAPACITY: u64 = 1 << 20;

/// Messages, by their numbers in the vhost-user specification.
pub(super) mod code {
    pub(crate) const SET_FEATURES: u32 = 2;
    pub(crate) const SET_VRING_NUM: u32 = 8;
    pub(crate) const SET_VRING_ADDR: u32 = 9;
    pub(crate) const SET_VRING_BASE: u32 = 10;
    pub(crate) const SET_VRING_KICK: u32 = 12;
    pub(crate) const SET_VRING_CALL: u32 = 13;
    pub(crate) const SET_PROTOCOL_FEATURES: u32 = 16;
    pub(crate) const SET_VRING_ENABLE: u32 = 18;
    pub(crate) const SET_INFLIGHT_FD: u32 = 32;
    pub(crate) const ADD_MEM_REG: u32 = 37;
}

/// A file of memory that does not shrink.
pub(super) fn memory(bytes: u64) -> OwnedFd {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create(c"fuzz", flags).expect("memory can be had");
    rustix::fs::ftruncate(&file, bytes).expect("memory can be had");
    file
}

/// An eventfd.
pub(super) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("an eventfd can be had")
}

/// A device of 1 MiB, and who talks to it.
pub(super) struct Rig {
    pub(super) disk: Disk,
    requests: Vec<Request>,
    stream: UnixStream,
    memory: std::fs::File,
    events: Vec<OwnedFd>,
    _folder: TempDir,
}

impl Rig {
    /// Connected; nothing is negotiated.
    pub(super) fn connect() -> Rig {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let mut config = DiskConfig::new("fuzz", folder.path().join("s"), CAPACITY);
        (config.queues, config.queue_size_max) = (RINGS, SIZE);
        let disk = Disk::bind(config, BufferPool::new(4096, 4)).expect("the configuration is good");
        let stream = connect(&disk);
        let memory = std::fs::File::from(memory(MEMORY));
        let events = (0..2 * RINGS).map(|_| event()).collect();
        let mut rig = Rig { disk, requests: Vec::new(), stream, memory, events, _folder: folder };
        rig.turn();
        rig
    }

    /// Another connection, after the device has ended the last one.
    pub(super) fn reconnect(&mut self) {
        self.stream = connect(&self.disk);
        self.turn();
    }

    /// Whether the device has ended the connection.
    pub(super) fn hung_up(&self) -> bool {
        self.disk.state() == DiskState::Listening
    }

    /// Turns until nothing more happens, and answers what was asked.
    pub(super) fn turn(&mut self) {
        loop {
            self.disk.disarm();
            let worked = self.disk.turn(&mut self.requests);
            for request in std::mem::take(&mut self.requests) {
                self.answer(request);
            }
            self.disk.flush_notifications();
            if !worked {
                break;
            }
        }
        self.disk.arm();
        if self.disk.wants_release() {
            self.disk.released();
        }
        assert_eq!(self.disk.in_flight(), 0, "everything was answered");
    }

    /// What the device promises of a request: it lies within the vdisk.
    fn answer(&mut self, request: Request) {
        let inside = |offset: u64, length: u64| {
            assert!(offset.is_multiple_of(512) && length.is_multiple_of(512));
            assert!(offset.checked_add(length).is_some_and(|end| end <= CAPACITY));
        };
        match request.kind {
            RequestKind::Read { offset, length } => {
                inside(offset, length.into());
                let half = length as usize / 2;
                let (first, second) = (vec![1; half], vec![2; length as usize - half]);
                self.disk.complete(request.tag, Outcome::Read(&[&first, &second]));
            }
            RequestKind::Write { offset, data } => {
                inside(offset, data.len() as u64);
                self.disk.complete(request.tag, Outcome::Done);
            }
            RequestKind::Flush => self.disk.complete(request.tag, Outcome::Failed),
            RequestKind::Discard { ranges } | RequestKind::WriteZeroes { ranges } => {
                assert!(!ranges.is_empty());
                for range in ranges {
                    inside(range.offset, range.length);
                }
                self.disk.complete(request.tag, Outcome::Done);
            }
        }
    }

    /// Sends a message with descriptors, and reads what comes back.
    pub(super) fn send(&mut self, code: u32, flags: u32, body: &[u8], files: &[&OwnedFd]) {
        let mut bytes = Vec::with_capacity(12 + body.len());
        for field in [code, flags, body.len() as u32] {
            bytes.extend_from_slice(&field.to_ne_bytes());
        }
        bytes.extend_from_slice(body);
        self.send_raw(&bytes, files);
    }

    /// Sends bytes with descriptors, and reads what comes back.
    pub(super) fn send_raw(&mut self, bytes: &[u8], files: &[&OwnedFd]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let files: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
        if !files.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(&files)), "room for eight");
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        // A device that has hung up is an answer too.
        let _ = sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut control, flags);
        self.turn();
        self.drain();
    }

    /// Reads replies, so that the device never waits for room; descriptors in them are closed.
    fn drain(&mut self) {
        loop {
            let mut bytes = [0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
            let received = recvmsg(&self.stream, &mut parts, &mut control, flags);
            for message in control.drain() {
                if let RecvAncillaryMessage::ScmRights(files) = message {
                    files.for_each(drop);
                }
            }
            if received.is_ok_and(|message| message.bytes > 0) {
                continue;
            }
            return;
        }
    }

    /// Writes into the guest's memory, as far as it goes.
    pub(super) fn write(&self, at: u64, bytes: &[u8]) {
        let at = at.min(MEMORY);
        let count = (MEMORY - at).min(bytes.len() as u64) as usize;
        self.memory.write_all_at(&bytes[..count], at).expect("it is memory");
    }

    /// Negotiates `features` beside those that are always there, and gives the guest's memory.
    pub(super) fn negotiate(&mut self, features: u64) {
        // VIRTIO_F_VERSION_1 and protocol features; then MQ, CONFIG, INFLIGHT_SHMFD, CONFIGURE_MEM_SLOTS.
        let features = features | 1 << 32 | 1 << 30;
        let protocol: u64 = 1 | 1 << 9 | 1 << 12 | 1 << 15;
        self.send(code::SET_PROTOCOL_FEATURES, 1, &protocol.to_ne_bytes(), &[]);
        self.send(code::SET_FEATURES, 1, &features.to_ne_bytes(), &[]);
        let region = [0, GUEST, MEMORY, USER, 0].map(u64::to_ne_bytes).concat();
        let file = OwnedFd::from(self.memory.try_clone().expect("a descriptor can be had"));
        self.send(code::ADD_MEM_REG, 1, &region, &[&file]);
    }

    /// Starts all rings from 0.
    pub(super) fn start(&mut self) {
        for ring in 0..RINGS {
            let state = |value: u16| [u32::from(ring), value.into()].map(u32::to_ne_bytes).concat();
            self.send(code::SET_VRING_NUM, 1, &state(SIZE), &[]);
            self.send(code::SET_VRING_BASE, 1, &state(0), &[]);
            let at = USER + u64::from(ring) * RING_BYTES;
            let mut place = state(0);
            for address in [at, at + USED, at + AVAILABLE, 0] {
                place.extend_from_slice(&address.to_ne_bytes());
            }
            self.send(code::SET_VRING_ADDR, 1, &place, &[]);
            let index = u64::from(ring).to_ne_bytes();
            for (part, code) in [(0, code::SET_VRING_CALL), (1, code::SET_VRING_KICK)] {
                let event = &self.events[usize::from(2 * ring + part)];
                let event = event.try_clone().expect("a descriptor can be had");
                self.send(code, 1, &index, &[&event]);
            }
            self.send(code::SET_VRING_ENABLE, 1, &state(1), &[]);
        }
    }

    /// Writes descriptor `index` of a ring.
    pub(super) fn describe(&self, at: u64, (address, length, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = address.to_le_bytes().to_vec();
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&flags.to_le_bytes());
        bytes.extend_from_slice(&next.to_le_bytes());
        self.write(at, &bytes);
    }

    /// Makes the `count`-th head of a ring available.
    pub(super) fn offer(&self, ring: u16, count: u16, head: u16) {
        let at = u64::from(ring) * RING_BYTES + AVAILABLE;
        self.write(at + 4 + 2 * u64::from(count % SIZE), &head.to_le_bytes());
        self.write(at + 2, &count.wrapping_add(1).to_le_bytes());
    }
}

fn connect(disk: &Disk) -> UnixStream {
    UnixStream::connect(&disk.config().socket).expect("the device listens")
}

/// An address: mostly one in the guest's memory, at times beyond it.
pub(super) fn address(input: &mut Input<'_>) -> u64 {
    let word = input.word();
    match word >> 28 {
        0xf => input.long(),
        0xe => GUEST + MEMORY - u64::from(word % 64),
        _ => GUEST + u64::from(word) % MEMORY,
    }
}
