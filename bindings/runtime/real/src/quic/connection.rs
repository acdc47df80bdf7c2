//! One connection: its handshake's outcome, its lanes, its end.
//!
//! States: *handshaking* until both sides proved their names; *open*; *closed*, in which QUIC
//! still tells the peer why, and then drains. What the application is shown follows: for a
//! connection of its own `Connected` and then `Closed`, or `Closed` alone; for a peer's `Accepted`
//! and then `Closed`, or nothing, when the peer did not prove a name. After `Closed` comes nothing.

use super::config::PROTOCOLS;
use super::lane::{Incoming, Outgoing, TooLong, Unacknowledged};
use crate::identity::name_in;
use bytes::Bytes;
use cleave_runtime::links::{Class, ConnectionId, LANES, LinkEvent, MESSAGE_LENGTH_MAX};
use quinn_proto::crypto::rustls::HandshakeData;
use quinn_proto::{
    ConnectionError, Dir, Event, ReadError, Side, StreamEvent, StreamId, VarInt, WriteError,
};
use rustls::pki_types::CertificateDer;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

/// Error codes of closed connections on the wire.
const CODE_CLOSED: u32 = 0;
pub(super) const CODE_BROKEN: u32 = 1;

/// Reasons that peers give are cut to this many characters.
const REASON_MAX: usize = 200;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Handshaking,
    Open,
    Closed,
}

pub(super) struct Connection {
    pub(super) id: ConnectionId,
    pub(super) quic: quinn_proto::Connection,
    pub(super) peer: SocketAddr,
    /// Known from the begin on the side that connects.
    class: Option<Class>,
    state: State,
    /// Whether the application knows of it.
    announced: bool,
    outgoing: [Outgoing; LANES as usize],
    incoming: [Incoming; LANES as usize],
    /// Lanes with something to read, by bit.
    readable: u8,
    /// Bytes that wait in `outgoing`.
    queued: usize,
    /// Those, and what QUIC keeps.
    unacknowledged: Unacknowledged,
    /// The lane that writes first next time.
    first: usize,
    /// In the list of connections that have something to do.
    pub(super) dirty: bool,
    /// The earliest entry in the heap of timers.
    pub(super) timer: Option<Instant>,
}

impl Connection {
    pub(super) fn new(
        id: ConnectionId,
        quic: quinn_proto::Connection,
        peer: SocketAddr,
        class: Option<Class>,
    ) -> Connection {
        let unacknowledged = Unacknowledged::default();
        Connection {
            id,
            quic,
            peer,
            class,
            state: State::Handshaking,
            announced: class.is_some(),
            outgoing: std::array::from_fn(|_| Outgoing::new(&unacknowledged)),
            incoming: Default::default(),
            readable: 0,
            queued: 0,
            unacknowledged,
            first: 0,
            dirty: false,
            timer: None,
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Order among connections that send in the same turn: small ones first.
    pub(super) fn priority(&self) -> usize {
        PROTOCOLS.iter().position(|(class, _)| Some(*class) == self.class).unwrap_or(0)
    }

    /// Queues a message whose length and lane were checked.
    pub(super) fn send(&mut self, lane: u8, parts: &[Bytes]) {
        self.queued += self.outgoing[usize::from(lane)].push(parts);
    }

    /// Bytes of messages that the peer's system is not known to have.
    pub(super) fn unacknowledged(&self) -> usize {
        self.unacknowledged.load(Ordering::Relaxed)
    }

    /// Works off what QUIC reports.
    pub(super) fn process(&mut self, now: Instant, events: &mut Vec<LinkEvent>) {
        while let Some(event) = self.quic.poll() {
            match event {
                Event::Connected => self.established(now, events),
                Event::ConnectionLost { reason } => {
                    // What arrived whole before the end is delivered.
                    self.read(now, events);
                    self.lost(&reason, events);
                }
                Event::Stream(event) => self.stream_event(event, now, events),
                Event::HandshakeDataReady | Event::DatagramReceived | Event::DatagramsUnblocked => {
                }
            }
        }
        self.read(now, events);
    }

    fn established(&mut self, now: Instant, events: &mut Vec<LinkEvent>) {
        if self.state != State::Handshaking {
            return;
        }
        let Some(class) = self.negotiated() else {
            return self.fail(now, "no known protocol was negotiated", events);
        };
        let Some(peer) = self.peer_name() else {
            return self.fail(now, "the certificate names no engine", events);
        };
        for _ in 0..LANES {
            if self.quic.streams().open(Dir::Uni).is_none() {
                return self.fail(now, "the peer allows too few lanes", events);
            }
        }
        self.state = State::Open;
        let connection = self.id;
        if self.class.is_some() {
            events.push(LinkEvent::Connected { connection });
        } else {
            self.class = Some(class);
            self.announced = true;
            events.push(LinkEvent::Accepted { connection, class, peer });
        }
    }

    fn negotiated(&self) -> Option<Class> {
        let data = self.quic.crypto_session().handshake_data()?;
        let protocol = data.downcast::<HandshakeData>().ok()?.protocol?;
        PROTOCOLS.iter().find(|(_, name)| *name == protocol).map(|(class, _)| *class)
    }

    fn peer_name(&self) -> Option<String> {
        let identity = self.quic.crypto_session().peer_identity()?;
        let chain = identity.downcast::<Vec<CertificateDer<'static>>>().ok()?;
        name_in(chain.first()?)
    }

    fn stream_event(&mut self, event: StreamEvent, now: Instant, events: &mut Vec<LinkEvent>) {
        match event {
            StreamEvent::Opened { .. } => {
                while let Some(id) = self.quic.streams().accept(Dir::Uni) {
                    self.mark_readable(id);
                }
            }
            StreamEvent::Readable { id } => self.mark_readable(id),
            StreamEvent::Stopped { .. } | StreamEvent::Finished { .. } => {
                self.fail(now, "the peer stopped a lane", events);
            }
            // Whatever waits is tried again whenever the connection has its turn.
            StreamEvent::Writable { .. } | StreamEvent::Available { .. } => {}
        }
    }

    fn mark_readable(&mut self, id: StreamId) {
        // QUIC holds the peer to as many streams as there are lanes.
        let lane = id.index();
        assert!(lane < u64::from(LANES), "streams are limited to the lanes");
        self.readable |= 1 << lane;
    }

    fn read(&mut self, now: Instant, events: &mut Vec<LinkEvent>) {
        for lane in 0..LANES {
            if self.state == State::Open && self.readable & (1 << lane) != 0 {
                self.readable &= !(1 << lane);
                self.read_lane(lane, now, events);
            }
        }
    }

    fn read_lane(&mut self, lane: u8, now: Instant, events: &mut Vec<LinkEvent>) {
        let from = match self.quic.side() {
            Side::Client => Side::Server,
            Side::Server => Side::Client,
        };
        let connection = self.id;
        let incoming = &mut self.incoming[usize::from(lane)];
        let mut stream = self.quic.recv_stream(StreamId::new(from, Dir::Uni, u64::from(lane)));
        let Ok(mut chunks) = stream.read(true) else {
            return;
        };
        let broken = loop {
            match chunks.next(usize::MAX) {
                Ok(Some(chunk)) => {
                    let deliver =
                        |message| events.push(LinkEvent::Received { connection, lane, message });
                    if let Err(TooLong(length)) = incoming.feed(chunk.bytes, deliver) {
                        break Some(format!(
                            "a message of {length} bytes is longer than {MESSAGE_LENGTH_MAX}"
                        ));
                    }
                }
                Err(ReadError::Blocked) => break None,
                Ok(None) | Err(ReadError::Reset(_)) => {
                    break Some("the peer ended a lane".to_owned());
                }
            }
        };
        // Flow-control credit goes out with the flush that follows.
        let _ = chunks.finalize();
        if let Some(reason) = broken {
            self.fail(now, &reason, events);
        }
    }

    /// Hands queued messages to QUIC, as far as windows allow; lanes take turns.
    pub(super) fn write(&mut self, now: Instant, events: &mut Vec<LinkEvent>) {
        if self.state != State::Open || self.queued == 0 {
            return;
        }
        let side = self.quic.side();
        let lanes = usize::from(LANES);
        let mut blocked = 0;
        let mut lane = self.first;
        self.first = (self.first + 1) % lanes;
        while blocked < lanes {
            match self.write_lane(side, lane) {
                Ok(true) => blocked = 0,
                Ok(false) => blocked += 1,
                Err(reason) => return self.fail(now, reason, events),
            }
            lane = (lane + 1) % lanes;
        }
    }

    /// True when it made progress.
    fn write_lane(&mut self, side: Side, lane: usize) -> Result<bool, &'static str> {
        let outgoing = &mut self.outgoing[lane];
        if outgoing.is_empty() {
            return Ok(false);
        }
        let id = StreamId::new(side, Dir::Uni, lane as u64);
        match self.quic.send_stream(id).write_chunks(outgoing.first()) {
            Ok(written) => {
                outgoing.written(written.chunks);
                self.queued -= written.bytes;
                Ok(written.bytes > 0)
            }
            Err(WriteError::Blocked) => Ok(false),
            Err(WriteError::Stopped(_) | WriteError::ClosedStream) => {
                Err("the peer stopped a lane")
            }
        }
    }

    /// Closes on request of the application.
    pub(super) fn close(&mut self, now: Instant, reason: &str, events: &mut Vec<LinkEvent>) {
        self.close_with(now, CODE_CLOSED, reason, events);
    }

    /// Closes because of what the peer did.
    fn fail(&mut self, now: Instant, reason: &str, events: &mut Vec<LinkEvent>) {
        if self.state != State::Closed {
            tracing::debug!(peer = %self.peer, reason, "a link is closed for what its peer did");
        }
        self.close_with(now, CODE_BROKEN, reason, events);
    }

    pub(super) fn close_with(
        &mut self,
        now: Instant,
        code: u32,
        reason: &str,
        events: &mut Vec<LinkEvent>,
    ) {
        if self.state == State::Closed {
            return;
        }
        let text = printable(reason);
        self.quic.close(now, VarInt::from_u32(code), Bytes::from(text.clone().into_bytes()));
        self.end(text, events);
    }

    fn lost(&mut self, reason: &ConnectionError, events: &mut Vec<LinkEvent>) {
        if self.state == State::Closed {
            return;
        }
        let text = match reason {
            ConnectionError::ApplicationClosed(close) => {
                format!("closed by the peer: {}", String::from_utf8_lossy(&close.reason))
            }
            ConnectionError::TimedOut => "nothing came from the peer for too long".to_owned(),
            ConnectionError::Reset => "the peer restarted and does not know this connection".into(),
            other => other.to_string(),
        };
        self.end(printable(&text), events);
    }

    fn end(&mut self, reason: String, events: &mut Vec<LinkEvent>) {
        self.state = State::Closed;
        self.outgoing.iter_mut().for_each(Outgoing::clear);
        self.queued = 0;
        if self.announced {
            events.push(LinkEvent::Closed { connection: self.id, reason });
        } else {
            tracing::debug!(peer = %self.peer, reason, "a peer did not get as far as a link");
        }
    }
}

/// One line of bounded length: peers choose these texts.
fn printable(text: &str) -> String {
    let clean = |c: char| if c.is_control() { ' ' } else { c };
    text.chars().take(REASON_MAX).map(clean).collect()
}
