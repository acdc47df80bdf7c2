//! One virtqueue: heads out of the available ring, entries into the used ring, and the
//! notifications of both sides.
//!
//! States: stopped (no kick received, or its base was asked for), started, and ready, which is
//! started, enabled, mapped and without a fault. Only a ready ring gives requests; a started one
//! takes answers. A fault is the guest's breach of the ring's rules; a new start forgets it.
//!
//! Effects of an answer, in this order (C24): data and status (the caller's), then the inflight
//! record's link, used entry and used index, then the record's end. A process that dies between
//! any two of them leaves what [`Records::recover`] reads correctly.

use crate::error::RingFault;
use crate::inflight::{Records, Unfinished};
use crate::memory::{Memory, View};
use crate::step;
use cleave_runtime::crash_points::{Point, reached};
use rustix::fs::OFlags;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{Ordering, fence};
use vhost::vhost_user::message::VhostUserVringAddr;
use virtio_bindings::bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress};

/// Bytes of the used ring around its entries, and of an entry.
const USED_META: u64 = 6;
const USED_ENTRY: u64 = 8;

/// One virtqueue.
pub(crate) struct Ring {
    queue: Queue,
    /// Heads that are in flight, by index.
    busy: Vec<bool>,
    in_flight: u32,
    records: Option<Records>,
    unsignalled: bool,
    /// Whether the guest was woken since the ring or its call was set up: what a predecessor published and
    /// did not signal is not known, so the first time it is woken whatever it asked for.
    woken: bool,
    started: bool,
    mapped: bool,
    /// Whether the front end lets it run.
    pub(crate) enabled: bool,
    /// Its base was asked for: nothing new is taken until the answer.
    pub(crate) draining: bool,
    fault: Option<RingFault>,
    call: Option<OwnedFd>,
    // Below: used at setup and when going to sleep.
    addresses: Option<VhostUserVringAddr>,
    base: u16,
    kick: Option<OwnedFd>,
    fault_event: Option<OwnedFd>,
}

impl Ring {
    /// A stopped ring of up to `size_max` descriptors, a power of two.
    pub(crate) fn new(size_max: u16) -> Ring {
        Ring {
            queue: Queue::new(size_max).expect("the configuration was checked"),
            busy: Vec::new(),
            in_flight: 0,
            records: None,
            unsignalled: false,
            woken: false,
            started: false,
            mapped: false,
            enabled: false,
            draining: false,
            fault: None,
            call: None,
            addresses: None,
            base: 0,
            kick: None,
            fault_event: None,
        }
    }

    /// Whether requests may be taken.
    pub(crate) fn ready(&self) -> bool {
        self.started && self.enabled && self.mapped && !self.draining && self.fault.is_none()
    }

    /// Whether it was started and not stopped since.
    pub(crate) fn started(&self) -> bool {
        self.started
    }

    /// Requests taken and not yet published.
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Where its descriptors are, and how many there are.
    pub(crate) fn table(&self) -> (u64, u16) {
        (self.queue.desc_table(), self.queue.size())
    }

    /// The eventfd by which the guest says that something waits.
    pub(crate) fn kick(&self) -> Option<RawFd> {
        self.kick.as_ref().map(AsRawFd::as_raw_fd)
    }

    pub(crate) fn set_event_idx(&mut self, on: bool) {
        self.queue.set_event_idx(on);
    }

    pub(crate) fn set_size(&mut self, size: u32) -> Result<(), String> {
        self.must_be_stopped()?;
        let small = u16::try_from(size).map_err(|_| format!("{size} descriptors"))?;
        self.queue.try_set_size(small).map_err(|_| format!("{size} descriptors"))
    }

    pub(crate) fn set_base(&mut self, base: u32) -> Result<(), String> {
        self.must_be_stopped()?;
        self.base = u16::try_from(base).map_err(|_| format!("base {base}"))?;
        Ok(())
    }

    fn must_be_stopped(&self) -> Result<(), String> {
        if self.started { Err("the ring is running".into()) } else { Ok(()) }
    }

    /// May come for a running ring too: when dirty logging begins or ends.
    pub(crate) fn set_addresses(
        &mut self,
        addresses: VhostUserVringAddr,
        memory: &Memory,
    ) -> Result<(), String> {
        self.addresses = Some(addresses);
        if self.started { self.map(memory) } else { Ok(()) }
    }

    /// Finds the ring's parts again after the guest's memory or the addresses changed.
    pub(crate) fn map(&mut self, memory: &Memory) -> Result<(), String> {
        self.mapped = false;
        let Some(user) = self.addresses else { return Err("the ring has no addresses".into()) };
        let place = |address: u64| {
            let found = memory.guest_address(address).map(GuestAddress);
            found.ok_or_else(|| format!("ring address {address:#x} is not in the guest's memory"))
        };
        let misaligned = |error: virtio_queue::Error| error.to_string();
        self.queue.try_set_desc_table_address(place(user.descriptor)?).map_err(misaligned)?;
        self.queue.try_set_avail_ring_address(place(user.available)?).map_err(misaligned)?;
        self.queue.try_set_used_ring_address(place(user.used)?).map_err(misaligned)?;
        self.queue.set_ready(true);
        if !self.queue.is_valid(memory.view()) {
            return Err("the ring reaches out of the guest's memory".into());
        }
        self.mapped = true;
        let used = USED_META + USED_ENTRY * u64::from(self.queue.size());
        memory.mark_dirty(self.queue.used_ring(), used);
        Ok(())
    }

    /// Sets the eventfd to watch while asleep, and starts the ring if it is stopped. Gives what has
    /// to be done again first.
    pub(crate) fn start(
        &mut self,
        kick: Option<OwnedFd>,
        memory: &Memory,
        records: Option<Records>,
    ) -> Result<Vec<Unfinished>, String> {
        self.kick = kick.map(event).transpose()?;
        if self.started {
            return Ok(Vec::new());
        }
        self.map(memory)?;
        let used = self.queue.used_idx(memory.view(), Ordering::Acquire);
        let used = used.map_err(|error| error.to_string())?.0;
        if memory.lost() {
            // Recovering by an index that is none would forget requests (C24).
            return Err("the ring's memory is gone".into());
        }
        let unfinished = match &records {
            Some(records) => records.recover(self.queue.size(), used),
            None => Vec::new(),
        };
        if !unfinished.is_empty() {
            reached(Point::HostRequestsFound);
        }
        // Heads are recorded in the order of the available ring, so those taken are a prefix.
        let taken = unfinished.len() as u16;
        let next = if records.is_some() { used.wrapping_add(taken) } else { self.base };
        self.queue.set_next_avail(next);
        self.queue.set_next_used(used);
        self.records = records;
        self.busy = vec![false; self.queue.size().into()];
        self.in_flight = 0;
        self.fault = None;
        self.woken = false;
        self.unsignalled = true;
        self.started = true;
        self.quiet(memory);
        Ok(unfinished)
    }

    /// Stops the ring, which has nothing in flight; gives the base to go on from.
    pub(crate) fn stop(&mut self) -> u16 {
        assert_eq!(self.in_flight, 0, "a ring is drained before it stops");
        let base = if self.started { self.queue.next_avail() } else { self.base };
        self.started = false;
        self.draining = false;
        self.queue.set_ready(false);
        self.kick = None;
        self.base = base;
        base
    }

    pub(crate) fn set_call(&mut self, call: Option<OwnedFd>) -> Result<(), String> {
        self.call = call.map(event).transpose()?;
        // A completion may have been signalled to the old one, unseen.
        self.woken = false;
        if self.started {
            self.ring_call();
        }
        Ok(())
    }

    pub(crate) fn set_fault_event(&mut self, fault: Option<OwnedFd>) -> Result<(), String> {
        self.fault_event = fault.map(event).transpose()?;
        Ok(())
    }

    /// The next head of the available ring.
    pub(crate) fn pop(&mut self, view: &View) -> Result<Option<u16>, RingFault> {
        let mut available = self.queue.iter(view).map_err(|_| RingFault::Ring)?;
        let Some(chain) = available.next() else { return Ok(None) };
        let head = chain.head_index();
        if head < self.queue.size() { Ok(Some(head)) } else { Err(RingFault::Index(head)) }
    }

    /// Makes a head one in flight; from here on a successor will know of it.
    pub(crate) fn take(&mut self, head: u16, counter: u64) -> Result<(), RingFault> {
        let busy = &mut self.busy[usize::from(head)];
        if *busy {
            return Err(RingFault::Twice(head));
        }
        *busy = true;
        self.in_flight += 1;
        if let Some(records) = &self.records {
            records.taken(head, counter);
            reached(Point::HostRequestTaken);
        }
        step();
        Ok(())
    }

    /// Gives a head back to the guest, who finds `length` bytes written in it.
    pub(crate) fn publish(
        &mut self,
        memory: &Memory,
        head: u16,
        length: u32,
    ) -> Result<(), RingFault> {
        self.busy[usize::from(head)] = false;
        self.in_flight -= 1;
        step();
        if let Some(records) = &self.records {
            reached(Point::HostRequestAnswered);
            records.publishing(head);
            reached(Point::HostRequestPublishing);
        }
        step();
        let place = u64::from(self.queue.next_used() % self.queue.size());
        if !self.mapped {
            return Err(RingFault::Ring);
        }
        self.queue.add_used(memory.view(), head, length).map_err(|_| RingFault::Ring)?;
        step();
        let used = self.queue.used_ring();
        memory.mark_dirty(used + 4 + place * USED_ENTRY, USED_ENTRY);
        memory.mark_dirty(used, 4);
        if memory.lost() {
            // Whether the guest can see it is unknown: a successor does it again (C24).
            return Err(RingFault::Lost);
        }
        if let Some(records) = &self.records {
            reached(Point::HostRequestPublished);
            records.unmark(head);
            reached(Point::HostRequestUnmarked);
            step();
            records.settled(self.queue.next_used());
        }
        step();
        self.unsignalled = true;
        Ok(())
    }

    /// Ends a request whose outcome cannot be told.
    pub(crate) fn withhold(&mut self, head: u16) {
        self.busy[usize::from(head)] = false;
        self.in_flight -= 1;
    }

    /// Stops taking requests from a ring whose rules the guest broke.
    pub(crate) fn fail(&mut self, fault: RingFault) {
        self.fault = Some(fault);
        if let Some(event) = &self.fault_event {
            let _ = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }

    /// Wakes the guest if it wants to know of what was published since the last time. True when it
    /// was woken.
    pub(crate) fn signal(&mut self, memory: &Memory) -> bool {
        if !std::mem::take(&mut self.unsignalled) {
            return false;
        }
        let wanted = if self.queue.event_idx_enabled() {
            self.queue.needs_notification(memory.view()).unwrap_or(true)
        } else {
            fence(Ordering::SeqCst);
            let flags = GuestAddress(self.queue.avail_ring());
            let flags: u16 = memory.view().load(flags, Ordering::Relaxed).unwrap_or(0);
            u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0
        };
        let wanted = wanted | !std::mem::replace(&mut self.woken, true);
        if wanted {
            self.ring_call();
        }
        wanted
    }

    fn ring_call(&self) {
        if let Some(call) = &self.call {
            // A full counter (EAGAIN) wakes as well as one more.
            let _ = rustix::io::write(call, &1u64.to_ne_bytes());
        }
    }

    /// Forgets the kicks so far: before [`arm`](Ring::arm), or the next sleep ends at once.
    pub(crate) fn drain_kick(&mut self) {
        if let Some(kick) = &self.kick {
            let _ = rustix::io::read(kick, &mut [0u8; 8]);
        }
    }

    /// Asks the guest for kicks. False when something waits already, or when it cannot kick.
    pub(crate) fn arm(&mut self, memory: &Memory) -> bool {
        if self.kick.is_none() {
            return false;
        }
        // A ring that cannot be read will say so when it is polled.
        !self.queue.enable_notification(memory.view()).unwrap_or(true)
    }

    /// Tells the guest that it need not kick.
    pub(crate) fn quiet(&mut self, memory: &Memory) {
        if self.mapped {
            let _ = self.queue.disable_notification(memory.view());
        }
    }
}

/// An eventfd that neither read nor write can block on. Anything else is refused: a pipe or a file
/// of the front end's could hold up the core.
fn event(file: OwnedFd) -> Result<OwnedFd, String> {
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    let kind = std::fs::read_link(&link).map_err(|error| format!("{link}: {error}"))?;
    if kind.as_os_str() != "anon_inode:[eventfd]" {
        return Err(format!("{} is not an eventfd", kind.display()));
    }
    let flags = rustix::fs::fcntl_getfl(&file).map_err(|error| error.to_string())?;
    rustix::fs::fcntl_setfl(&file, flags | OFlags::NONBLOCK).map_err(|error| error.to_string())?;
    Ok(file)
}
