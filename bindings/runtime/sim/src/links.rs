//! Simulated links: connections of ordered lanes between named processes, and how they fail.
//!
//! A connection is a pair of ends. An end is `Waiting` (begun, no answer yet), `Open`, or
//! `Closed`; only the event loop and the end's own process move it, and `Closed` is final and
//! reported once. Invariants: a lane has at most one delivery in the event queue, that of its first
//! packet, so order within a lane holds by construction; packets reach only an open end; nothing
//! reaches a process after its `Closed`.
//!
//! Messages stall while the direction is cut and go on when it is healed. A break, a close or a
//! crash loses a random suffix of what is undelivered on each lane; what is kept arrives only if
//! its time comes before the receiver notices the end. A crash leaves the peer's end open until it
//! notices.

mod cuts;

pub(crate) use cuts::{process_died, process_silent};

use crate::process::ProcessInner;
use crate::trace::{Digest, EventKind};
use crate::world::{World, nanos, upgrade};
use bytes::{Bytes, BytesMut};
use cleave_runtime::links::{
    Class, ConnectionId, LANES, LinkEvent, Links, MESSAGE_LENGTH_MAX, PeerAddress, SendError,
};
use cleave_runtime::message::Message;
use cleave_runtime::random::Random;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

/// Messages up to this length arrive joined and newly cut; longer ones mostly as their parts.
const JOINED_MAX: usize = 64 << 10;

/// How often a connection to a paused process is tried again, in nanoseconds.
const PAUSED_AGAIN: u64 = 1_000_000;

/// All connections and cuts of a world.
#[derive(Default)]
pub(crate) struct Network {
    pairs: BTreeMap<u64, Pair>,
    /// Which pair and side a connection is; only while that end is not closed.
    ends: BTreeMap<ConnectionId, (u64, usize)>,
    /// Cut directions (from, to), with the number of the cut.
    cuts: BTreeMap<(String, String), u64>,
}

struct Pair {
    class: Class,
    names: [String; 2],
    ends: [End; 2],
    /// Broken: what is sent from now on is lost.
    broken: bool,
    /// The attempt or its answer waits for a cut to heal.
    held_up: bool,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Waiting,
    Open,
    Closed,
}

struct End {
    phase: Phase,
    /// 0 while nobody accepted.
    process: u64,
    connection: ConnectionId,
    /// What this end sends.
    lanes: [Lane; LANES as usize],
    /// When the network takes the next byte, in nanoseconds.
    free_at: u64,
    /// When messages are handed to the network, and their lengths.
    departures: VecDeque<(u64, usize)>,
    undelivered: usize,
    sent: u64,
}

#[derive(Default)]
struct Lane {
    packets: VecDeque<Packet>,
    last_due: u64,
    scheduled: bool,
}

struct Packet {
    /// Order of sending within the end.
    number: u64,
    parts: Vec<Bytes>,
    length: usize,
    due: u64,
}

impl End {
    fn new(phase: Phase, process: u64, connection: ConnectionId) -> End {
        End {
            phase,
            process,
            connection,
            lanes: Default::default(),
            free_at: 0,
            departures: VecDeque::new(),
            undelivered: 0,
            sent: 0,
        }
    }

    fn forget_departed(&mut self, now: u64) {
        while self.departures.front().is_some_and(|(time, _)| *time <= now) {
            self.departures.pop_front();
        }
    }

    /// Loses all but the first `keep(count)` of each lane's packets; returns how many.
    fn truncate(&mut self, keep: impl Fn(u64) -> u64) -> u64 {
        let mut lost = 0;
        for lane in &mut self.lanes {
            let count = lane.packets.len() as u64;
            for packet in lane.packets.drain(usize::try_from(keep(count)).unwrap_or(0)..) {
                self.undelivered -= packet.length;
                lost += 1;
            }
        }
        lost
    }
}

impl Network {
    fn cut(&self, from: &str, to: &str) -> Option<u64> {
        self.cuts.iter().find(|((f, t), _)| f == from && t == to).map(|(_, number)| *number)
    }
}

impl Pair {
    fn cut(&self, cuts: &BTreeMap<(String, String), u64>, from: usize) -> bool {
        // Hot path: most worlds have no cuts, and no key needs to be built.
        !cuts.is_empty()
            && cuts.keys().any(|(f, t)| *f == self.names[from] && *t == self.names[1 - from])
    }
}

/// The links of a process.
pub(crate) struct SimLinks(pub Rc<ProcessInner>);

impl Links for SimLinks {
    fn connect(&self, to: &PeerAddress, class: Class) -> ConnectionId {
        let Some(world) = upgrade(&self.0.world).filter(|_| self.0.alive()) else {
            // Whoever asks is dead: nobody polls for what becomes of it.
            return ConnectionId(0);
        };
        let inner = &world.0;
        let (number, connection) = (inner.next_number(), ConnectionId(inner.next_number()));
        let pair = Pair {
            class,
            names: [self.0.name.clone(), to.name.clone()],
            ends: [
                End::new(Phase::Waiting, self.0.number, connection),
                End::new(Phase::Waiting, 0, ConnectionId(0)),
            ],
            broken: false,
            held_up: false,
        };
        let mut network = inner.network.borrow_mut();
        network.pairs.insert(number, pair);
        network.ends.insert(connection, (number, 0));
        inner.count(|c| c.connections += 1);
        schedule_attempt(&world, number, self.0.number);
        let idle = nanos(inner.settings.borrow().idle_timeout);
        inner.schedule(inner.after(idle), EventKind::Timeout, self.0.number, move |world| {
            let network = &mut *world.0.network.borrow_mut();
            let waits =
                network.pairs.get(&number).is_some_and(|p| p.ends[0].phase == Phase::Waiting);
            if waits {
                give_up(world, network, number, 0);
            }
            u64::from(waits)
        });
        connection
    }

    fn send(&self, connection: ConnectionId, lane: u8, parts: &[Bytes]) -> Result<(), SendError> {
        let world = upgrade(&self.0.world).filter(|_| self.0.alive()).ok_or(SendError::Closed)?;
        let inner = &world.0;
        let network = &mut *inner.network.borrow_mut();
        let &(number, side) = network.ends.get(&connection).ok_or(SendError::Closed)?;
        let pair = network.pairs.get_mut(&number).expect("an end has a pair");
        if pair.ends[side].process != self.0.number {
            return Err(SendError::Closed);
        }
        let length: usize = parts.iter().map(Bytes::len).sum();
        if length > MESSAGE_LENGTH_MAX || lane >= LANES {
            return Err(SendError::Invalid);
        }
        inner.count(|c| c.messages_sent += 1);
        if pair.broken {
            inner.count(|c| c.messages_lost += 1);
            return Ok(());
        }
        let end = &mut pair.ends[side];
        end.forget_departed(inner.now.get());
        let transfer = transfer_time(length, inner.settings.borrow().bandwidth);
        end.free_at = end.free_at.max(inner.now.get()).saturating_add(transfer);
        end.departures.push_back((end.free_at, length));
        end.undelivered += length;
        end.sent += 1;
        let number_sent = end.sent;
        let due = end.free_at.saturating_add(latency(&world));
        let out = &mut end.lanes[usize::from(lane)];
        out.last_due = out.last_due.max(due);
        let parts = parts.iter().filter(|part| !part.is_empty()).cloned().collect();
        out.packets.push_back(Packet { number: number_sent, parts, length, due: out.last_due });
        arm_lane(&world, network, number, side, usize::from(lane));
        Ok(())
    }

    fn queued(&self, connection: ConnectionId) -> usize {
        let Some(world) = upgrade(&self.0.world) else { return 0 };
        let network = &mut *world.0.network.borrow_mut();
        let Some(&(number, side)) = network.ends.get(&connection) else { return 0 };
        let pair = network.pairs.get_mut(&number).expect("an end has a pair");
        if pair.cut(&network.cuts, side) || pair.ends[side].phase == Phase::Waiting {
            return pair.ends[side].undelivered;
        }
        let (end, now) = (&mut pair.ends[side], world.0.now.get());
        end.forget_departed(now);
        if let Some((time, _)) = end.departures.front() {
            // Whoever holds back because of what is queued looks again when it shrinks.
            world.0.request_turn(&self.0, *time);
        }
        end.departures.iter().map(|(_, length)| length).sum()
    }

    fn close(&self, connection: ConnectionId, reason: &str) {
        let Some(world) = upgrade(&self.0.world).filter(|_| self.0.alive()) else { return };
        let network = &mut *world.0.network.borrow_mut();
        let Some(&(number, side)) = network.ends.get(&connection) else { return };
        let pair = network.pairs.get_mut(&number).expect("an end has a pair");
        if pair.ends[side].process != self.0.number {
            return;
        }
        pair.broken = true;
        let lost = pair.ends[side].truncate(|count| world.0.random.below(count + 1));
        world.0.count(|c| c.messages_lost += lost);
        let delay = if pair.cut(&network.cuts, side) { idle(&world) } else { latency(&world) };
        close_later(&world, number, 1 - side, delay, format!("closed by peer: {reason}"));
        close_end(&world, network, number, side, &format!("closed: {reason}"));
    }

    fn poll(&self, events: &mut Vec<LinkEvent>) {
        events.extend(self.0.inbox.borrow_mut().drain(..));
    }
}

fn transfer_time(length: usize, bandwidth: u64) -> u64 {
    let time = length as u128 * 1_000_000_000 / u128::from(bandwidth.max(1));
    u64::try_from(time).unwrap_or(u64::MAX)
}

fn latency(world: &World) -> u64 {
    let delay = world.0.draw(world.0.settings.borrow().latency);
    if world.0.one_in(64) {
        world.0.count(|c| c.messages_delayed += 1);
        return delay.saturating_mul(8);
    }
    delay
}

/// Time until silence is noticed: the idle timeout, up to a tenth more.
fn idle(world: &World) -> u64 {
    let idle = nanos(world.0.settings.borrow().idle_timeout);
    idle.saturating_add(world.0.random.below(idle / 10 + 1))
}

/// Lets a connection reach its target.
fn schedule_attempt(world: &World, number: u64, process: u64) {
    let time = world.0.after(latency(world));
    world.0.schedule(time, EventKind::Attempt, process, move |world| attempt(world, number));
}

fn attempt(world: &World, number: u64) -> u64 {
    let network = &mut *world.0.network.borrow_mut();
    let Some(pair) = network.pairs.get_mut(&number) else { return 0 };
    if pair.ends[0].phase != Phase::Waiting || pair.broken {
        return 0;
    }
    if pair.cut(&network.cuts, 0) {
        pair.held_up = true;
        return 1;
    }
    let target = {
        let processes = world.0.processes.borrow();
        let mut named = processes.values().filter(|p| p.name == pair.names[1] && p.listening.get());
        named.next().cloned()
    };
    let Some(target) = target else {
        if !pair.cut(&network.cuts, 1) {
            world.0.count(|c| c.connections_refused += 1);
            let reason = format!("refused: nobody named {} listens", pair.names[1]);
            close_later(world, number, 0, latency(world), reason);
        }
        return 2;
    };
    if target.paused() {
        // Its packets wait at the machine; whoever connects gives up by the idle timeout.
        let (time, begun) = (world.0.after(PAUSED_AGAIN), pair.ends[0].process);
        world.0.schedule(time, EventKind::Attempt, begun, move |world| attempt(world, number));
        return 4;
    }
    let connection = ConnectionId(world.0.next_number());
    pair.ends[1] = End::new(Phase::Open, target.number, connection);
    let event = LinkEvent::Accepted { connection, class: pair.class, peer: pair.names[0].clone() };
    network.ends.insert(connection, (number, 1));
    target.inbox.borrow_mut().push_back(event);
    world.0.delivered(&target);
    schedule_answer(world, number, pair.ends[0].process);
    arm_end(world, network, number, 0);
    3
}

/// Tells the process that began a connection that it is established.
fn schedule_answer(world: &World, number: u64, process: u64) {
    let time = world.0.after(latency(world));
    world.0.schedule(time, EventKind::Connected, process, move |world| {
        let network = &mut *world.0.network.borrow_mut();
        let Some(pair) = network.pairs.get_mut(&number) else { return 0 };
        if pair.ends[0].phase != Phase::Waiting {
            return 0;
        }
        if pair.cut(&network.cuts, 1) {
            pair.held_up = true;
            return 1;
        }
        pair.ends[0].phase = Phase::Open;
        report(
            world,
            pair.ends[0].process,
            |connection| LinkEvent::Connected { connection },
            pair.ends[0].connection,
        );
        arm_end(world, network, number, 1);
        2
    });
}

fn report(
    world: &World,
    process: u64,
    event: impl FnOnce(ConnectionId) -> LinkEvent,
    connection: ConnectionId,
) {
    if let Some(process) = world.0.live(process) {
        process.inbox.borrow_mut().push_back(event(connection));
        world.0.delivered(&process);
    }
}

/// Puts the deliveries of what `side` sends into the event queue.
fn arm_end(world: &World, network: &mut Network, number: u64, side: usize) {
    for lane in 0..usize::from(LANES) {
        arm_lane(world, network, number, side, lane);
    }
}

fn arm_lane(world: &World, network: &mut Network, number: u64, side: usize, lane: usize) {
    let Some(pair) = network.pairs.get_mut(&number) else { return };
    if pair.ends[1 - side].phase != Phase::Open || pair.cut(&network.cuts, side) {
        return;
    }
    let process = pair.ends[1 - side].process;
    let out = &mut pair.ends[side].lanes[lane];
    let Some(first) = out.packets.front().filter(|_| !out.scheduled) else { return };
    out.scheduled = true;
    world.0.schedule(first.due, EventKind::Received, process, move |world| {
        deliver(world, number, side, lane)
    });
}

/// Delivers the first packet of a lane of `side` to the other side.
fn deliver(world: &World, number: u64, side: usize, lane: usize) -> u64 {
    let network = &mut *world.0.network.borrow_mut();
    let Some(pair) = network.pairs.get_mut(&number) else { return 0 };
    pair.ends[side].lanes[lane].scheduled = false;
    if pair.ends[1 - side].phase != Phase::Open || pair.cut(&network.cuts, side) {
        return 0;
    }
    let Some(packet) = pair.ends[side].lanes[lane].packets.pop_front() else { return 0 };
    pair.ends[side].undelivered -= packet.length;
    let older =
        |lane: &Lane| lane.packets.front().is_some_and(|first| first.number < packet.number);
    let overtaking = pair.ends[side].lanes.iter().any(older);
    world.0.count(|c| {
        c.messages_delivered += 1;
        c.messages_overtaking += u64::from(overtaking);
        c.message_bytes_delivered += packet.length as u64;
    });
    let mut digest = Digest::new().word(number).word(lane as u64).word(packet.length as u64);
    if world.0.settings.borrow().trace_contents {
        digest = packet.parts.iter().fold(digest, |digest, part| digest.bytes(part));
    }
    let message = cut_up(world, packet);
    let event = |connection| LinkEvent::Received { connection, lane: lane as u8, message };
    report(world, pair.ends[1 - side].process, event, pair.ends[1 - side].connection);
    arm_lane(world, network, number, side, lane);
    digest.value()
}

/// The message in chunks as a network might give it: cut at places that no protocol knows, often
/// inside what is likely a header.
fn cut_up(world: &World, packet: Packet) -> Message {
    let random = &world.0.random;
    let Packet { mut parts, length, .. } = packet;
    if parts.len() > 1 && (length <= JOINED_MAX || world.0.one_in(8)) {
        let mut joined = BytesMut::with_capacity(length);
        parts.iter().for_each(|part| joined.extend_from_slice(part));
        parts = vec![joined.freeze()];
    } else {
        // What arrives is the receiver's own memory: a sender sees from the counts of its slices when
        // nothing refers to them any more, and must not wait for what a receiver keeps.
        parts.iter_mut().for_each(|part| *part = Bytes::copy_from_slice(part));
    }
    let mut cuts: Vec<usize> = (0..random.below(4))
        .map(|_| {
            let bound = if world.0.one_in(2) { length.min(96) } else { length };
            random.below(bound as u64) as usize
        })
        .collect();
    cuts.sort_unstable();
    let (mut message, mut position) = (Message::new(), 0);
    let mut cuts = cuts.into_iter().peekable();
    for mut part in parts {
        while let Some(cut) = cuts.next_if(|cut| *cut < position + part.len()) {
            message.push(part.split_to(cut.saturating_sub(position)));
            position = position.max(cut);
        }
        position += part.len();
        message.push(part);
    }
    message
}

/// Closes one end now and reports it.
fn close_end(world: &World, network: &mut Network, number: u64, side: usize, reason: &str) {
    let Some(pair) = network.pairs.get_mut(&number) else { return };
    if pair.ends[side].phase == Phase::Closed || pair.ends[side].process == 0 {
        return;
    }
    pair.ends[side].phase = Phase::Closed;
    pair.broken = true;
    if pair.ends[1 - side].process == 0 {
        pair.ends[1 - side].phase = Phase::Closed;
    }
    let lost = pair.ends[1 - side].truncate(|_| 0);
    world.0.count(|c| c.messages_lost += lost);
    let connection = pair.ends[side].connection;
    let event = |connection| LinkEvent::Closed { connection, reason: reason.to_owned() };
    report(world, pair.ends[side].process, event, connection);
    network.ends.remove(&connection);
    if pair.ends[1 - side].phase == Phase::Closed {
        let rest = pair.ends[side].truncate(|_| 0);
        world.0.count(|c| c.messages_lost += rest);
        network.pairs.remove(&number);
    }
}

/// Closes one end after `delay`.
fn close_later(world: &World, number: u64, side: usize, delay: u64, reason: String) {
    let time = world.0.after(delay);
    world.0.schedule(time, EventKind::Closed, 0, move |world| {
        let network = &mut *world.0.network.borrow_mut();
        close_end(world, network, number, side, &reason);
        Digest::new().word(number).word(side as u64).value()
    });
}

/// `side` heard nothing for too long and closes; it says nothing, so the other side has to notice
/// by itself.
fn give_up(world: &World, network: &mut Network, number: u64, side: usize) {
    world.0.count(|c| c.timeouts += 1);
    close_later(world, number, 1 - side, idle(world), "timed out".to_owned());
    close_end(world, network, number, side, "timed out");
}
