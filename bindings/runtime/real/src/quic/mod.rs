//! Links between engines over QUIC: quinn's sans-io core, driven by the core's reactor.
//!
//! - One connection per peer and class, so that bulk data never delays an append. The class is the
//!   connection's application protocol.
//! - One long stream per lane and direction carries messages, framed as the lane module says; what
//!   is sent is not copied before it is encrypted, and what is received comes as the chunks in
//!   which it arrived.
//! - Both sides prove their names with certificates of the cluster's authority. A peer's name is
//!   the first DNS name in its certificate, and a connection is made to a name at an address.
//! - A peer that is gone shows by its host's refusal, by its successor's reset, or by silence for
//!   the idle timeout, whichever comes first. After this process itself was stopped, what waits in
//!   the socket is received before any timer is looked at, so that a pause does not look like
//!   everybody's silence.
//! - A peer that breaks the protocol gets its connection closed with a reason, which both sides
//!   report.
//!
//! Invariants: a [`ConnectionId`] is the slot of the connection and a number that is never reused,
//! so a late use of it finds nothing. All buffers are bounded by windows, but for the queue of
//! messages not yet handed to QUIC, which the protocols above bound.
//!
//! A crash leaves nothing here; peers notice as above, and must resend (C1).

mod config;
mod connection;
mod lane;
mod refusals;
mod socket;
#[cfg(test)]
mod tests;

pub use config::QuicConfig;

use crate::error::Result;
use crate::reactor::{READABLE, Reactor, Source, WRITABLE};
use crate::uring::{Ring, WatchMode};
use bytes::Bytes;
use cleave_runtime::links::{
    Class, ConnectionId, LANES, LinkEvent, Links, MESSAGE_LENGTH_MAX, PeerAddress, SendError,
};
use config::{PROTOCOLS, Prepared};
use connection::{CODE_BROKEN, Connection};
use quinn_proto::{ClientConfig, ConnectionHandle, DatagramEvent, Endpoint, Transmit};
use socket::{Received, Sent, Socket};
use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::net::SocketAddr;
use std::os::fd::RawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Datagram batches that one connection sends in a turn.
const TRANSMITS_PER_TURN: usize = 4;

/// An empty socket is not looked at again before this, while the core is awake: the look costs
/// more than the rest of an empty turn.
const LOOK_INTERVAL: Duration = Duration::from_micros(3);

/// Timers wait for the socket to be read empty, but for no more receive calls than this.
const RECEIVES_BEFORE_TIMERS: u32 = 64;

/// A slot's bits in a connection's name; the rest is the number.
const SLOT_BITS: u32 = 20;

/// The slot of connections that never had one.
const NO_SLOT: u64 = (1 << SLOT_BITS) - 1;

/// All links of a core. See the module's page.
pub struct QuicLinks {
    inner: RefCell<Inner>,
    ring: Rc<Ring>,
    socket_fd: RawFd,
    watch: u64,
    /// While the socket's buffer is full.
    write_watch: Cell<Option<u64>>,
    fresh: Cell<bool>,
}

struct Inner {
    endpoint: Endpoint,
    socket: Socket,
    clients: [ClientConfig; 3],
    connections_max: usize,
    /// By the endpoint's handles.
    connections: Vec<Option<Connection>>,
    open: usize,
    /// The last connection's number.
    number: u64,
    dirty: Vec<usize>,
    /// When a connection's timer may be due. An entry that comes too early is put off when it is
    /// reached, so most changes of timers cost nothing here.
    timers: BinaryHeap<Reverse<(Instant, usize, ConnectionId)>>,
    receives_since_timers: u32,
    /// When the socket was last found empty, if nothing came since.
    empty_at: Option<Instant>,
    /// Empty between calls; kept for its memory.
    batch: Vec<Received>,
    events: Vec<LinkEvent>,
    /// What the socket did not take.
    blocked: Option<(Transmit, Vec<u8>)>,
    scratch: Vec<u8>,
}

impl QuicLinks {
    /// Links of this core, which listen at once. They close when they are dropped.
    ///
    /// # Errors
    /// The identity is not usable, a setting is out of range, or the address cannot be bound.
    pub fn new(reactor: &Reactor, config: &QuicConfig) -> Result<Rc<QuicLinks>> {
        let Prepared { endpoint, server, clients } = config::prepare(config)?;
        let socket = Socket::bind(config.listen, config.mtu, config.socket_buffer)?;
        let socket_fd = socket.fd();
        let inner = Inner {
            endpoint: Endpoint::new(endpoint, Some(server), false, None),
            socket,
            clients,
            connections_max: config.connections_max.min(NO_SLOT as usize),
            connections: Vec::new(),
            open: 0,
            number: 0,
            dirty: Vec::new(),
            timers: BinaryHeap::new(),
            receives_since_timers: 0,
            empty_at: None,
            batch: Vec::new(),
            events: Vec::new(),
            blocked: None,
            scratch: Vec::with_capacity(64 << 10),
        };
        let ring = Rc::clone(reactor.ring());
        let links = Rc::new(QuicLinks {
            watch: ring.watch(socket_fd, READABLE, WatchMode::BeforeSleep),
            inner: RefCell::new(inner),
            ring,
            socket_fd,
            write_watch: Cell::new(None),
            fresh: Cell::new(false),
        });
        let source: Rc<dyn Source> = Rc::clone(&links) as Rc<dyn Source>;
        reactor.add_source(Rc::downgrade(&source));
        Ok(links)
    }

    /// The address at which peers reach these links, with the port that the system chose.
    pub fn local_addr(&self) -> SocketAddr {
        self.inner.borrow().socket.local()
    }

    fn note_fresh(&self, inner: &Inner) {
        if !inner.events.is_empty() {
            self.fresh.set(true);
        }
    }
}

impl Links for QuicLinks {
    fn connect(&self, to: &PeerAddress, class: Class) -> ConnectionId {
        let inner = &mut *self.inner.borrow_mut();
        let connection = inner.connect(to, class).unwrap_or_else(|reason| {
            let connection = inner.name(NO_SLOT);
            inner.events.push(LinkEvent::Closed { connection, reason });
            connection
        });
        self.note_fresh(inner);
        connection
    }

    fn send(
        &self,
        connection: ConnectionId,
        lane: u8,
        parts: &[Bytes],
    ) -> std::result::Result<(), SendError> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        if lane >= LANES || length > MESSAGE_LENGTH_MAX {
            return Err(SendError::Invalid);
        }
        let inner = &mut *self.inner.borrow_mut();
        let slot = inner.find(connection).ok_or(SendError::Closed)?;
        inner.at(slot).send(lane, parts);
        inner.mark(slot);
        Ok(())
    }

    fn queued(&self, connection: ConnectionId) -> usize {
        let inner = &mut *self.inner.borrow_mut();
        inner.find(connection).map_or(0, |slot| inner.at(slot).unacknowledged())
    }

    fn close(&self, connection: ConnectionId, reason: &str) {
        let inner = &mut *self.inner.borrow_mut();
        let Some(slot) = inner.find(connection) else { return };
        let mut events = std::mem::take(&mut inner.events);
        inner.at(slot).close(Instant::now(), reason, &mut events);
        inner.events = events;
        inner.mark(slot);
        self.note_fresh(inner);
    }

    fn poll(&self, events: &mut Vec<LinkEvent>) {
        self.fresh.set(false);
        events.append(&mut self.inner.borrow_mut().events);
    }
}

impl Source for QuicLinks {
    fn turn(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let now = Instant::now();
        let woken = self.ring.take_ready(self.watch);
        if !woken
            && inner.dirty.is_empty()
            && inner.empty_at.is_some_and(|at| now - at < LOOK_INTERVAL)
        {
            return false;
        }
        let received = inner.receive(now);
        if woken && !received {
            inner.socket.suspect_errors();
        }
        inner.empty_at = (!received).then_some(now);
        let refused = inner.take_refusals(now);
        inner.receives_since_timers += 1;
        if !received || inner.receives_since_timers > RECEIVES_BEFORE_TIMERS {
            inner.receives_since_timers = 0;
            inner.run_timers(now);
        }
        inner.process(now);
        self.note_fresh(inner);
        received || refused || self.fresh.get()
    }

    fn flush(&self) -> bool {
        let inner = &mut *self.inner.borrow_mut();
        let sent = inner.flush(Instant::now());
        match (inner.blocked.is_some(), self.write_watch.get()) {
            (true, None) => {
                let watch = self.ring.watch(self.socket_fd, WRITABLE, WatchMode::BeforeSleep);
                self.write_watch.set(Some(watch));
            }
            (false, Some(watch)) => {
                self.ring.unwatch(watch);
                self.write_watch.set(None);
            }
            _ => {}
        }
        self.note_fresh(inner);
        sent
    }

    fn take_fresh(&self) -> bool {
        self.fresh.take()
    }

    fn next_timer(&self) -> Option<Instant> {
        self.inner.borrow().timers.peek().map(|Reverse((at, _, _))| *at)
    }
}

impl Drop for QuicLinks {
    fn drop(&mut self) {
        let inner = self.inner.get_mut();
        let now = Instant::now();
        for slot in 0..inner.connections.len() {
            if let Some(connection) = &mut inner.connections[slot]
                && !connection.is_closed()
            {
                connection.close(now, "the engine stops", &mut inner.events);
                inner.mark(slot);
            }
        }
        // As far as the socket takes it: who is not told notices by the refusal.
        inner.flush(now);
        self.ring.unwatch(self.watch);
        if let Some(watch) = self.write_watch.get() {
            self.ring.unwatch(watch);
        }
    }
}

impl Inner {
    /// A new name.
    fn name(&mut self, slot: u64) -> ConnectionId {
        self.number += 1;
        ConnectionId((self.number << SLOT_BITS) | slot)
    }

    /// The slot of a connection that is not closed.
    fn find(&self, connection: ConnectionId) -> Option<usize> {
        let slot = (connection.0 & NO_SLOT) as usize;
        let found = self.connections.get(slot)?.as_ref()?;
        (found.id == connection && !found.is_closed()).then_some(slot)
    }

    fn at(&mut self, slot: usize) -> &mut Connection {
        self.connections[slot].as_mut().expect("a slot in use has a connection")
    }

    /// Has the connection looked at in this turn.
    fn mark(&mut self, slot: usize) {
        let connection = self.at(slot);
        if !connection.dirty {
            connection.dirty = true;
            self.dirty.push(slot);
        }
    }

    fn connect(
        &mut self,
        to: &PeerAddress,
        class: Class,
    ) -> std::result::Result<ConnectionId, String> {
        let address: SocketAddr = to
            .address
            .parse()
            .map_err(|_| format!("{:?} is no address of the form IP:PORT", to.address))?;
        if address.is_ipv4() != self.socket.local().is_ipv4() {
            return Err(format!("{address} is of another IP version than the local address"));
        }
        if self.open >= self.connections_max {
            return Err(format!("there are already {} connections", self.open));
        }
        let index = PROTOCOLS.iter().position(|(known, _)| *known == class);
        let config = self.clients[index.expect("every class has a protocol")].clone();
        let (handle, quic) = self
            .endpoint
            .connect(Instant::now(), config, address, &to.name)
            .map_err(|error| format!("cannot connect to {} at {address}: {error}", to.name))?;
        Ok(self.insert(handle, quic, address, Some(class)))
    }

    fn insert(
        &mut self,
        handle: ConnectionHandle,
        quic: quinn_proto::Connection,
        peer: SocketAddr,
        class: Option<Class>,
    ) -> ConnectionId {
        let slot = handle.0;
        let id = self.name(slot as u64);
        if self.connections.len() <= slot {
            self.connections.resize_with(slot + 1, || None);
        }
        assert!(self.connections[slot].is_none(), "the endpoint gives out free handles");
        self.connections[slot] = Some(Connection::new(id, quic, peer, class));
        self.open += 1;
        self.mark(slot);
        id
    }

    fn receive(&mut self, now: Instant) -> bool {
        let mut batch = std::mem::take(&mut self.batch);
        let any = self.socket.receive(|received| batch.push(received));
        for mut received in batch.drain(..) {
            while !received.data.is_empty() {
                let length = received.stride.min(received.data.len());
                let datagram = received.data.split_to(length);
                self.datagram(now, &received, datagram);
            }
        }
        self.batch = batch;
        any
    }

    fn datagram(&mut self, now: Instant, received: &Received, data: bytes::BytesMut) {
        self.scratch.clear();
        let Received { from, to, ecn, .. } = received;
        match self.endpoint.handle(now, *from, *to, *ecn, data, &mut self.scratch) {
            Some(DatagramEvent::ConnectionEvent(handle, event)) => {
                if let Some(Some(connection)) = self.connections.get_mut(handle.0) {
                    connection.quic.handle_event(event);
                    self.mark(handle.0);
                }
            }
            Some(DatagramEvent::NewConnection(incoming)) => self.incoming(now, incoming),
            Some(DatagramEvent::Response(transmit)) => self.respond(&transmit),
            None => {}
        }
    }

    fn incoming(&mut self, now: Instant, incoming: quinn_proto::Incoming) {
        self.scratch.clear();
        let peer = incoming.remote_address();
        if self.open >= self.connections_max {
            let transmit = self.endpoint.refuse(incoming, &mut self.scratch);
            return self.respond(&transmit);
        }
        match self.endpoint.accept(incoming, now, &mut self.scratch, None) {
            Ok((handle, quic)) => {
                self.insert(handle, quic, peer, None);
            }
            Err(error) => {
                tracing::debug!(%peer, error = %error.cause, "a peer was not accepted");
                if let Some(transmit) = error.response {
                    self.respond(&transmit);
                }
            }
        }
    }

    /// Answers of the endpoint itself may be lost.
    fn respond(&mut self, transmit: &Transmit) {
        let _ = self.socket.send(transmit, &self.scratch[..transmit.size]);
    }

    fn take_refusals(&mut self, now: Instant) -> bool {
        let mut any = false;
        while let Some(peer) = self.socket.next_refusal() {
            any = true;
            for slot in 0..self.connections.len() {
                let Some(connection) = &mut self.connections[slot] else { continue };
                if connection.peer == peer && !connection.is_closed() {
                    let reason = format!("refused: nobody listens at {peer}");
                    connection.close_with(now, CODE_BROKEN, &reason, &mut self.events);
                    self.mark(slot);
                }
            }
        }
        any
    }

    fn run_timers(&mut self, now: Instant) {
        while let Some(Reverse((at, slot, id))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            let Some(Some(connection)) = self.connections.get_mut(slot) else { continue };
            if connection.id != id || connection.timer != Some(at) {
                continue;
            }
            connection.timer = None;
            if connection.quic.poll_timeout().is_some_and(|due| due <= now) {
                connection.quic.handle_timeout(now);
                self.mark(slot);
            } else {
                self.keep_timer(slot);
            }
        }
    }

    /// Makes sure that the heap has an entry no later than the connection's timer.
    fn keep_timer(&mut self, slot: usize) {
        let connection = self.at(slot);
        if let Some(due) = connection.quic.poll_timeout()
            && connection.timer.is_none_or(|timer| due < timer)
        {
            connection.timer = Some(due);
            let id = connection.id;
            self.timers.push(Reverse((due, slot, id)));
        }
    }

    /// Works off what the marked connections report.
    fn process(&mut self, now: Instant) {
        for index in 0..self.dirty.len() {
            let slot = self.dirty[index];
            if let Some(connection) = &mut self.connections[slot] {
                connection.process(now, &mut self.events);
            }
        }
    }

    /// Sends for the marked connections. True when anything went out or more can.
    fn flush(&mut self, now: Instant) -> bool {
        if let Some((transmit, contents)) = self.blocked.take()
            && self.socket.send(&transmit, &contents) == Sent::Blocked
        {
            self.blocked = Some((transmit, contents));
            return false;
        }
        if self.dirty.is_empty() {
            return false;
        }
        let mut dirty = std::mem::take(&mut self.dirty);
        let connections = &self.connections;
        dirty.sort_unstable_by_key(|slot| {
            (connections[*slot].as_ref().map_or(0, Connection::priority), *slot)
        });
        let mut sent = false;
        for slot in dirty.drain(..) {
            let Some(connection) = &mut self.connections[slot] else { continue };
            connection.dirty = false;
            connection.write(now, &mut self.events);
            let (any, more) = self.transmit(slot, now);
            sent |= any;
            self.endpoint_events(slot);
            if self.connections[slot].is_some() {
                self.keep_timer(slot);
                if more {
                    self.mark(slot);
                }
            }
        }
        if self.dirty.is_empty() {
            // For its memory.
            self.dirty = dirty;
            return sent;
        }
        // Marked again meanwhile. While the socket is full its readiness ends the sleep.
        sent || self.blocked.is_none()
    }

    /// (anything was sent, there may be more)
    fn transmit(&mut self, slot: usize, now: Instant) -> (bool, bool) {
        if self.blocked.is_some() {
            return (false, true);
        }
        let segments = self.socket.segments_max();
        let mut sent = false;
        for _ in 0..TRANSMITS_PER_TURN {
            self.scratch.clear();
            let connection = self.connections[slot].as_mut().expect("looked up by the caller");
            let Some(transmit) = connection.quic.poll_transmit(now, segments, &mut self.scratch)
            else {
                return (sent, false);
            };
            let contents = &self.scratch[..transmit.size];
            if self.socket.send(&transmit, contents) == Sent::Blocked {
                self.blocked = Some((transmit, contents.to_vec()));
                return (sent, true);
            }
            sent = true;
        }
        (sent, true)
    }

    /// What the connection has for the endpoint; drops the connection once it is drained.
    fn endpoint_events(&mut self, slot: usize) {
        loop {
            let connection = self.at(slot);
            let Some(event) = connection.quic.poll_endpoint_events() else { return };
            let drained = event.is_drained();
            if let Some(answer) = self.endpoint.handle_event(ConnectionHandle(slot), event) {
                self.at(slot).quic.handle_event(answer);
                self.mark(slot);
            }
            if drained {
                let gone = self.connections[slot].take().expect("present above");
                assert!(gone.is_closed(), "a connection's end is reported before it is drained");
                self.open -= 1;
                return;
            }
        }
    }
}
