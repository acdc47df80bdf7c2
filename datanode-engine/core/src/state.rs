//! A controller's state, and how it advances: what the turn, the flows and the hosts' requests share.
//!
//! Invariants:
//! - `held` is a complete log: every entry that any host was told is mirrored is in it, or was released.
//! - Effects of control records (releases, slots, the catalog) happen in the order of positions, on the
//!   active when the standby holds them, on the standby when it does.
//! - Nothing of this survives the process but the catalog and, after a clean stop, the vault.

use crate::catalog_port::{CatalogPort, CatalogReply, CatalogRequest};
use crate::catalog_queue::{CatalogQueue, Waiter};
use crate::drives::Drives;
use crate::grants::{Grants, Issued};
use crate::hosts::{HostRequest, Session};
use crate::join::SwitchOver;
use crate::leases::Leases;
use crate::log::{Log, LogSettings};
use crate::log::{LogEntry, LogEntryKind, Rotted};
use crate::mend::Mending;
use crate::mirror::{Mirror, Standing};
use crate::notices::Notices;
use crate::rebuild::Rebuild;
use crate::resident::Resident;
use crate::roles::Recorded;
use crate::scrub::Scrub;
use crate::solo::Solo;
use bytes::Bytes;
use cleave_catalog::Damage;
use cleave_coordinator::LogRole;
use cleave_format::control::{Control, GrantedStripe};
use cleave_format::ids::{ClusterId, DatanodeId, Epoch, Incarnation, Position, StripeId};
use cleave_format::vault::VaultHeader;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Executor;
use cleave_runtime::links::{ConnectionId, Links, PeerAddress, SendError};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::Queue;
use cleave_runtime::time::Moment;
use cleave_wire::{ControllerMessage, HeldLog, PeerEntry, PeerEntryKind, PeerMessage, Served};
use slab::Slab;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// Entries of one forwarded message.
const FORWARD_ENTRIES_MAX: usize = 4096;
/// Bytes of one forwarded message, but for a longer entry alone.
const FORWARD_BYTES_MAX: usize = 1 << 20;
/// Bytes on their way to the standby beyond which no more is forwarded.
const FORWARD_QUEUED_MAX: usize = 16 << 20;

/// Which controller this is, and its limits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
    /// 0 or 1: 1 dials, and 0 is active where nothing else decides.
    pub controller: u8,
    /// The other controller.
    pub peer: PeerAddress,
    /// Capacities of the log.
    pub log: LogSettings,
    /// Is told about the log's memory: it should ask for huge pages.
    pub advice: Option<crate::log::Advice>,
    /// Whether it takes the active role over by itself; else it waits for the other controller.
    pub take_over: bool,
    /// Whether it goes on alone, by its log on three drives, when the other controller is away (C12); else writes wait.
    pub alone: bool,
    /// Grants of a host incarnation without a log connection end after this (C15).
    pub grants_kept: Duration,
}

/// How long grants of a host incarnation that is away are kept, unless the settings say otherwise.
pub const GRANTS_KEPT: Duration = Duration::from_secs(60);

/// Is told how long things took.
pub trait Observer {
    /// From the receipt of an append until it is mirrored.
    fn appended(&self, took: Duration);
    /// From forwarding to the standby's answer.
    fn mirrored(&self, took: Duration);
    /// A range of a shard was read, or not.
    fn shard_read(&self, took: Duration, bytes: usize, ok: bool);
    /// A shard was written and flushed, or not.
    fn shard_written(&self, took: Duration, ok: bool);
}

/// An observer that does not look.
pub struct NoObserver;

impl Observer for NoObserver {
    fn appended(&self, _: Duration) {}
    fn mirrored(&self, _: Duration) {}
    fn shard_read(&self, _: Duration, _: usize, _: bool) {}
    fn shard_written(&self, _: Duration, _: bool) {}
}

/// What a controller is doing, for status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Drawing its incarnation, or looking for its peer.
    Starting,
    /// Meeting its peer: deciding who copies.
    Meeting,
    /// A copy of the log is under way.
    Copying,
    /// Both hold the log.
    Mirrored,
    /// The peer is away: reads go on (where this one is active), writes wait.
    PeerAway,
    /// Active, the only member: what it acknowledges is on three drives (C12).
    Alone,
    /// No member of the in-sync set and no image is left: what is lost.
    NoLog(String),
    /// Writing the vault.
    Stopping,
    /// Over.
    Stopped,
}

/// Counters since the process started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Records taken.
    pub records: u64,
    /// Their bytes.
    pub record_bytes: u64,
    /// Records that the log had already.
    pub duplicates: u64,
    /// Records refused.
    pub refused: u64,
    /// Records released.
    pub released: u64,
    /// Messages forwarded (active) or answered (standby).
    pub batches: u64,
    /// Commits taken.
    pub commits: u64,
    /// Vdisks struck from commits.
    pub struck: u64,
    /// Commits refused because a stripe that they referred to may be freed (C19).
    pub references_refused: u64,
    /// Committed stripes freed since.
    pub freed: u64,
    /// Seals taken.
    pub seals: u64,
    /// Stripes granted.
    pub granted: u64,
    /// Shards that were written anew because their drive is lost, or they were never written.
    pub rebuilt: u64,
    /// Shards that were written anew because they were found damaged.
    pub repaired: u64,
    /// Grants ended because their host was away for too long.
    pub expired: u64,
    /// Connections closed because of what came over them.
    pub malformed: u64,
    /// Times that this controller took the active role over.
    pub taken_over: u64,
    /// Times that it was active and found out that it was so no more.
    pub stepped_down: u64,
    /// Times that it began to acknowledge alone (C12).
    pub alone: u64,
    /// Sessions of its log that it began on drives.
    pub sessions: u64,
    /// Copies of the log made or taken.
    pub copies: u64,
    /// Records that were found to have rotted in memory.
    pub rotted: u64,
    /// Those that were mended from the peer's copy.
    pub mended: u64,
    /// Those of which nothing told the blocks any more.
    pub given_up: u64,
}

/// What arrives from the peer for the flow that meets it.
pub(crate) enum PeerInput {
    Message(PeerMessage, Message),
    Closed(String),
}

/// The connection to the other controller.
pub(crate) struct PeerLink {
    pub connection: ConnectionId,
    /// For the flow, until the mirror is joined.
    pub inbox: Queue<PeerInput>,
    pub joined: bool,
    /// Active: the trim position that was last forwarded.
    pub trim_sent: Position,
    /// Active: last position and time of messages not answered yet.
    pub sent: VecDeque<(u64, Moment)>,
}

/// A complete log.
pub(crate) struct Held {
    pub log: Log,
    /// The member of the in-sync set that held it: this process, or whose image was loaded.
    pub member: Incarnation,
}

/// What the store was found to say about the role while the peer was away.
pub(crate) struct Seen {
    /// When the peer was gone already, and the store was asked.
    pub asked: Moment,
    /// The role.
    pub recorded: Recorded,
    /// The revision of the active controller's sign of life, and since when it is that one.
    pub life: (u64, Moment),
}

/// What only an active controller has, for as long as it is.
pub(crate) struct Active {
    pub resident: Resident,
    pub grants: Grants,
    pub drives: Drives,
    /// Shards being read and written for hosts.
    pub requests: Slab<HostRequest>,
    /// Appends to be acknowledged, in the order of their positions.
    pub acks: VecDeque<Ack>,
    /// Replies that wait until both catalogs have synced a position, in order. What they say holds even after the
    /// log was lost and an operator ordered an empty one: who owns a vdisk, that it was deleted, which stripes
    /// a host may name (C3), and that records are committed, which the host drops from then on (C7).
    pub replies: VecDeque<(Position, ConnectionId, ControllerMessage)>,
    /// Open grants of each core that it may not know of, because their answer may be lost, with the position of their
    /// record. It says when it asks again, and gets them first. What an earlier process granted is not among them.
    pub untold: BTreeMap<(Incarnation, u16), BTreeMap<StripeId, Position>>,
    /// Control requests that wait for room in the log, with the bytes that they need (C13).
    pub deferred: VecDeque<(ConnectionId, cleave_wire::HostMessage, usize)>,
    pub quota: u64,
    /// What holds slots is known from the catalog and the log, up to here, since it became active.
    pub holds_known: Position,
    /// Read leases of hosts (C9).
    pub leases: Leases,
    /// Host incarnations with grants and without a log connection, and since when (C15).
    pub absent: BTreeMap<Incarnation, Moment>,
}

/// An append that waits for its position to be mirrored.
pub(crate) struct Ack {
    pub position: u64,
    pub connection: ConnectionId,
    pub lane: u8,
    pub number: u64,
    /// When it was received.
    pub at: Moment,
}

pub(crate) struct State {
    pub settings: Rc<Settings>,
    pub links: Rc<dyn Links>,
    pub executor: Executor,
    pub observer: Rc<dyn Observer>,
    pub incarnation: Incarnation,
    pub phase: Phase,
    pub role: Option<LogRole>,
    pub held: Option<Held>,
    /// Both were joined at least once in this process's life.
    pub confirmed: bool,
    pub mirror: Mirror,
    pub peer: Option<PeerLink>,
    pub active: Option<Active>,
    /// The drives, while this controller is not active.
    pub pool: Option<Drives>,
    /// The vault's image that was loaded and is not ended yet.
    pub image: Option<VaultHeader>,
    /// Standby: the role epoch.
    pub epoch: Epoch,
    /// Since when no peer is joined.
    pub alone: Moment,
    /// What the store said since.
    pub seen: Option<Seen>,
    /// What an active controller that is alone has on drives (C12).
    pub solo: Solo,
    /// It took the role over, and met nobody since: the other may have I/O on its way to the drives.
    pub unheard: bool,
    /// Active no more, or about to hand the role over: it serves no host, and waits for its drives' last I/O.
    pub leaving: bool,
    /// The role moves, or is to move, by an order.
    pub switch: SwitchOver,
    pub sessions: BTreeMap<ConnectionId, Session>,
    /// What rotted in the log's memory.
    pub mending: Mending,
    /// Shards that are written anew (C16).
    pub rebuild: Rebuild,
    /// Damage that is looked for.
    pub scrub: Scrub,
    /// Reads of all sessions that wait until their host took earlier replies.
    pub waiting_reads: usize,
    pub catalog: CatalogQueue,
    /// Committed stripes, as far as is known here.
    pub stripes: u64,
    /// Those that lacked shards when they were last counted.
    pub damage: Damage,
    /// There may be others since.
    pub damage_stale: bool,
    pub counters: Counters,
    /// For operators.
    pub notices: Notices,
    pub fatal: Option<String>,
    pub stopping: bool,
    /// Kept for its memory.
    parts: Vec<Bytes>,
}

impl State {
    pub fn new(
        settings: Rc<Settings>,
        links: Rc<dyn Links>,
        executor: Executor,
        observer: Rc<dyn Observer>,
        catalog: Box<dyn CatalogPort>,
        pool: Drives,
    ) -> State {
        State {
            settings,
            links,
            executor: executor.clone(),
            observer,
            incarnation: Incarnation(0),
            phase: Phase::Starting,
            role: None,
            held: None,
            confirmed: false,
            mirror: Mirror::default(),
            peer: None,
            active: None,
            pool: Some(pool),
            image: None,
            epoch: Epoch(0),
            alone: executor.now(),
            seen: None,
            solo: Solo::default(),
            unheard: false,
            leaving: false,
            switch: SwitchOver::default(),
            sessions: BTreeMap::new(),
            mending: Mending::default(),
            rebuild: Rebuild::default(),
            scrub: Scrub::default(),
            waiting_reads: 0,
            catalog: CatalogQueue::new(catalog),
            stripes: 0,
            damage: Damage::default(),
            damage_stale: true,
            counters: Counters::default(),
            notices: Notices::default(),
            fatal: None,
            stopping: false,
            parts: Vec::new(),
        }
    }

    /// What this controller brings to a meeting.
    pub fn standing(&self) -> Standing {
        let log = self.held.as_ref().map(|held| HeldLog {
            log: held.log.id(),
            member: held.member,
            next: held.log.next(),
        });
        let catalog = Position(self.mirror.catalog);
        let role = self.role.as_ref().filter(|_| self.active.is_some());
        let serves =
            role.map(|role| Served { since: Epoch(role.since), origin: Position(role.origin) });
        let pool = self.active.as_ref().map(|active| &active.drives).or(self.pool.as_ref());
        let able = pool.is_some_and(Drives::suffice);
        Standing { incarnation: self.incarnation, log, catalog, serves, able }
    }

    /// Whether entries are being mirrored.
    pub fn is_joined(&self) -> bool {
        self.peer.as_ref().is_some_and(|peer| peer.joined)
    }

    pub fn fail(&mut self, reason: String) {
        if self.fatal.is_none() {
            tracing::error!("{reason}");
            self.fatal = Some(reason);
        }
    }

    /// The log may be another one than before: says whose the records are, for the quotas.
    pub fn assign_records(&mut self) {
        if let (Some(active), Some(held)) = (&self.active, &mut self.held) {
            for (vdisk, seal) in active.resident.seals() {
                held.log.assign(vdisk, seal.host);
            }
        }
    }

    /// Makes the effects of control records up to a position happen, in order, each once (C4, C11).
    pub fn advance_effects(&mut self, through: Position) {
        let Some(held) = &mut self.held else { return };
        let before = held.log.len();
        loop {
            let (position, control) =
                match held.log.next_control(Position(self.mirror.effects), through) {
                    Ok(Some(next)) => next,
                    Ok(None) => break,
                    Err(rotted) => {
                        self.counters.released += before - held.log.len();
                        // The peer holds it too: what comes after it waits for its copy.
                        return self.mend_control(rotted);
                    }
                };
            held.log.release(&control);
            if matches!(control, Control::Commit(_)) {
                reached(Point::LogReleased);
            }
            if let Some(active) = &mut self.active {
                active.effect(position, &control);
            }
            self.mirror.effects = position.0;
            if position.0 > self.mirror.catalog {
                self.catalog.apply(position, control);
            }
        }
        self.mirror.effects = self.mirror.effects.max(through.0);
        self.counters.released += before - held.log.len();
    }

    /// Has the stripes that lack shards counted.
    pub fn count_damage(&mut self) {
        if let Some(active) = &self.active {
            let lost = active.drives.lost();
            self.damage_stale = false;
            self.catalog.ask(Waiter::Damage, CatalogRequest::Damage(lost));
        }
    }

    /// Takes replies of the catalog; gives those for hosts and flows. True when there was any.
    pub fn poll_catalog(&mut self) -> bool {
        let replies = self.catalog.poll();
        let any = !replies.is_empty();
        for (waiter, reply) in replies {
            if let CatalogReply::Failed(reason) = &reply {
                self.fail(reason.clone());
            }
            match (waiter, reply) {
                (Waiter::Apply, CatalogReply::Applied(applied)) => {
                    self.mirror.catalog = self.mirror.catalog.max(applied.through.0);
                    self.warm_applied(&applied);
                    if let Some(active) = &mut self.active {
                        self.stripes = self.stripes.saturating_sub(applied.ended);
                        self.counters.freed += applied.ended;
                        self.damage_stale |= applied.ended > 0;
                        active.resident.synced(applied.through);
                        applied.freed.iter().for_each(|place| active.grants.freed(place));
                    }
                }
                (Waiter::Damage, CatalogReply::Damage(damage)) => self.damage = damage,
                (Waiter::Apply | Waiter::Damage, _) => {}
                (Waiter::Flow(promise), reply) => promise.fulfil(reply),
                (Waiter::Host(waiter), reply) => self.answer_host(waiter, reply),
            }
        }
        any
    }

    /// What every turn ends with: forward, acknowledge, answer, trim, apply, once for all that came (group
    /// commit). True when something was done that may lead to more.
    pub fn finish(&mut self) -> bool {
        if self.fatal.is_some() || self.stopping || self.leaving {
            return false;
        }
        let mut any = self.take_deferred() | self.take_waiting_reads() | self.take_parked_fetches();
        any |= self.end_idle_grants();
        any |= self.rebuild.wake(Position(self.mirror.mirrored), self.mirror.trimmable());
        if self.active.is_some() {
            any |= self.forward();
            self.solo.wake_for(self.held.as_ref().map(|held| held.log.next()));
            any |= self.acknowledge();
            any |= self.look_after_leases();
            self.trim();
        } else {
            self.answer();
        }
        self.catalog.flush_when_idle();
        if let Some(held) = &mut self.held {
            any |= held.log.compact();
        }
        any
    }

    /// Active: sends what the standby lacks.
    fn forward(&mut self) -> bool {
        let (Some(peer), Some(held)) = (&mut self.peer, &self.held) else { return false };
        if !peer.joined {
            return false;
        }
        let (end, trimmed) = (held.log.next(), held.log.trimmed());
        let mut any = false;
        while self.links.queued(peer.connection) < FORWARD_QUEUED_MAX {
            let mut entries = Vec::new();
            let mut bytes = 0;
            self.parts.clear();
            self.parts.push(Bytes::new());
            let mut from = Position(self.mirror.forwarded + 1);
            while let Some((position, entry)) = held.log.next_entry(from, end) {
                if matches!(entry.kind, LogEntryKind::Control { .. })
                    && !entry.is_readable(position)
                {
                    // Nobody else has it, and nobody was told that it is held.
                    self.lose_control(Rotted(position));
                    return true;
                }
                let full = bytes + entry.bytes.len() > FORWARD_BYTES_MAX
                    || entries.len() == FORWARD_ENTRIES_MAX;
                if full && !entries.is_empty() {
                    break;
                }
                assert_eq!(position, from, "what is not mirrored is not released");
                entries.push(peer_entry(position, entry));
                bytes += entry.bytes.len();
                self.parts.push(entry.bytes.clone());
                from = Position(position.0 + 1);
            }
            if entries.is_empty() && trimmed == peer.trim_sent {
                break;
            }
            any = true;
            self.mirror.forwarded = from.0 - 1;
            if !entries.is_empty() {
                peer.sent.push_back((self.mirror.forwarded, self.executor.now()));
            }
            peer.trim_sent = trimmed;
            self.counters.batches += 1;
            let header = PeerMessage::Forward { entries, trimmed };
            self.parts[0] = cleave_wire::encode_header(&header);
            // A closed connection is reported by its event.
            let _ = self.links.send(peer.connection, 0, &self.parts);
            reached(Point::LogForwarded);
        }
        self.parts.clear();
        any
    }

    /// Active: the standby's answer.
    pub fn held_by_standby(&mut self, through: Position, catalog: Position) -> Result<(), String> {
        self.mirror.held(through, catalog).map_err(|error| error.to_string())?;
        reached(Point::LogHeld);
        let now = self.executor.now();
        if let Some(peer) = &mut self.peer {
            while let Some((position, at)) = peer.sent.front().copied() {
                if position > through.0 {
                    break;
                }
                self.observer.mirrored(now.since(at));
                peer.sent.pop_front();
            }
        }
        self.advance_effects(Position(self.mirror.mirrored));
        Ok(())
    }

    /// Standby: takes forwarded entries off the message.
    pub fn take_forwarded(
        &mut self,
        entries: &[PeerEntry],
        trimmed: Position,
        message: &mut Message,
    ) -> Result<(), String> {
        let held = self.held.as_mut().expect("a joined standby holds the log");
        crate::mirror::check_order(held.log.next(), entries).map_err(|error| error.to_string())?;
        insert_entries(&mut held.log, entries, message, Release::WithEffects)?;
        reached(Point::LogReceived);
        self.counters.records += entries.len() as u64;
        let last = Position(held.log.next().0 - 1);
        self.mirror.mirrored = last.0;
        self.keep_warm();
        self.advance_effects(last);
        if trimmed.0 > self.mirror.catalog && !is_planted(Planted::TrimBeforeSynced) {
            return Err("the peer trimmed what the catalog here has not synced".to_owned());
        }
        self.held.as_mut().expect("held above").log.trim(trimmed);
        Ok(())
    }

    /// Standby: says how far it is, if that changed.
    fn answer(&mut self) {
        let (Some(peer), Some(held)) = (&self.peer, &self.held) else { return };
        if !peer.joined {
            return;
        }
        let last = Position(held.log.next().0 - 1);
        if let Some((through, catalog)) = self.mirror.answer(last) {
            self.counters.batches += 1;
            let message = PeerMessage::Held { through, catalog };
            let header = cleave_wire::encode_header(&message);
            let _ = self.links.send(peer.connection, 0, &[header]);
            reached(Point::LogAnswered);
        }
    }

    /// Active: drops control entries that both catalogs have (C11).
    fn trim(&mut self) {
        if (self.is_joined() || self.mirror.alone)
            && let Some(held) = &mut self.held
        {
            held.log.trim(self.mirror.trimmable().min(self.solo.trim_max()));
        }
    }

    pub fn send_peer(&self, message: &PeerMessage, payload: &[Bytes]) -> Result<(), SendError> {
        let Some(peer) = &self.peer else { return Err(SendError::Closed) };
        let mut parts = Vec::with_capacity(1 + payload.len());
        parts.push(cleave_wire::encode_header(message));
        parts.extend_from_slice(payload);
        self.links.send(peer.connection, 0, &parts)
    }
}

impl Active {
    /// Takes the drives over; those that are missing are reported as lost.
    pub fn take_drives(&mut self, mut drives: Drives) {
        drives.report_missing();
        self.drives = drives;
    }

    /// Open grants of a core after the newest that it was told of, and the position of the last one's record.
    pub fn take_untold(
        &mut self,
        incarnation: Incarnation,
        core: u16,
        told: StripeId,
    ) -> (Issued, Option<Position>) {
        let mut issued = Issued::default();
        let Some(untold) = self.untold.get_mut(&(incarnation, core)) else {
            return (issued, None);
        };
        let grants = &self.grants;
        untold.retain(|stripe, _| *stripe > told && grants.open(*stripe, incarnation).is_some());
        for stripe in untold.keys().copied() {
            let slots = grants.open(stripe, incarnation).expect("it was kept").to_vec();
            match slots.is_empty() {
                true => issued.identities.push(stripe),
                false => issued.stripes.push(GrantedStripe { stripe, slots }),
            }
        }
        (issued, untold.values().max().copied())
    }

    /// A control record is mirrored: what it means for slots. Once more changes nothing.
    pub fn effect(&mut self, position: Position, control: &Control) {
        match control {
            Control::Commit(commit) => self.grants.committed(commit.stripe),
            Control::Swap(swap) => self.grants.committed(swap.loan),
            Control::GrantEnd { stripes } => {
                stripes.iter().for_each(|stripe| self.grants.ended(*stripe));
            }
            // What they mean depends on the grants of their place in the log.
            Control::HoldSlots if position > self.holds_known => self.grants.hold(),
            Control::FreeHeld if position > self.holds_known => self.grants.free_held(),
            Control::HostStart { .. } => {
                let resident = &self.resident;
                let own = |incarnation| incarnation == Incarnation::DATANODE;
                let current = |incarnation| {
                    own(incarnation) || resident.hosts().any(|(_, now)| now == incarnation)
                };
                for stripe in self.grants.of(|incarnation| !current(incarnation)) {
                    self.grants.ended(stripe);
                }
            }
            _ => {}
        }
    }
}

/// How an entry is named on the wire.
pub(crate) fn peer_entry(position: Position, entry: &LogEntry) -> PeerEntry {
    let kind = match entry.kind {
        LogEntryKind::Record(..) => PeerEntryKind::Record,
        LogEntryKind::Control { check } => PeerEntryKind::Control { check },
    };
    PeerEntry { position, kind, length: entry.bytes.len() as u32 }
}

/// When what a control record releases leaves a log that takes it over.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Release {
    /// With its other effects.
    WithEffects,
    /// At once: the log counts when it is complete, and then the record has its effects anyway.
    AtOnce,
}

/// Takes entries off a message into a log. Errors leave the log with the entries before.
pub(crate) fn insert_entries(
    log: &mut Log,
    entries: &[PeerEntry],
    message: &mut Message,
    release: Release,
) -> Result<(), String> {
    for entry in entries {
        let length = entry.length as usize;
        let inserted = match entry.kind {
            PeerEntryKind::Record => log.insert_record(entry.position, message, length),
            PeerEntryKind::Control { check } => match message.take(length) {
                // Copied: a slice would keep the link's whole buffer.
                Some(bytes) => log
                    .insert_encoded_control(entry.position, Bytes::copy_from_slice(&bytes), check)
                    .map(|control| {
                        if release == Release::AtOnce {
                            log.release(&control);
                        }
                    }),
                None => Err(cleave_format::FormatError::Short("log entry")),
            },
        };
        inserted.map_err(|error| format!("the peer sent an unusable entry: {error}"))?;
    }
    if message.is_empty() { Ok(()) } else { Err("the peer sent more than it said".to_owned()) }
}
