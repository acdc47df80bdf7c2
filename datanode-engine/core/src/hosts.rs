//! Sessions of hosts: who they are, what they may, and the replies that wait.
//!
//! A connection begins with Hello; a controller that is not the confirmed active refuses it. Only the
//! newest log connection of a host core exists (C1), and only a host's newest incarnation (C15).
//! What does not decode, or contradicts itself, closes the connection with a reason and changes nothing.
//!
//! Decisions are made here, when a control record is appended; their effects wait for the mirror.

mod control;
mod data;
mod expiry;

use crate::catalog_port::CatalogReply;
use crate::notices::Notice;
use crate::state::{Active, State};
use bytes::Bytes;
use cleave_catalog::MapPage;
use cleave_erasure::geometry;
use cleave_format::control::{CommitVdisk, Control};
use cleave_format::ids::{DriveId, Epoch, HostId, Incarnation, Position, StripeId, VdiskId};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::links::{Class, ConnectionId, LANES};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::time::Moment;
use cleave_wire::{
    ControllerMessage, Hello, HostMessage, ListedStripe, MapCommit, MapCursor, Refusal,
    RequestNumber, WIRE_VERSION, Welcome,
};
use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

/// Requests that a session may have unanswered, shards apart.
const REQUESTS_MAX: u32 = 8192;
/// Shards that a session may have on their way to drives.
const SHARD_WRITES_MAX: u32 = 512;
/// Bytes being read for a session, or on their way to it, beyond which further reads wait.
const READ_BYTES_MAX: usize = 64 << 20;
/// A refused connection is closed after this, so that the refusal arrives first.
const REFUSED_LINGER: Duration = Duration::from_secs(1);

/// One connection of a host core.
pub(crate) struct Session {
    class: Class,
    /// The name in its certificate.
    peer: String,
    /// After a good Hello.
    who: Option<Who>,
    lanes: [LaneState; LANES as usize],
    /// Requests not answered.
    requests: u32,
    shard_writes: u32,
    /// Bytes being read from drives for it.
    read_bytes: usize,
    /// Reads that wait until it took earlier replies.
    waiting_reads: VecDeque<(u8, HostMessage)>,
    /// Refused: nothing is taken any more, and it is closed then.
    close_at: Option<Moment>,
}

/// Who said Hello.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who {
    pub host: HostId,
    pub core: u16,
    pub incarnation: Incarnation,
    connection: u64,
}

#[derive(Clone, Copy, Default)]
struct LaneState {
    /// Number of the last append.
    last: u64,
    /// An append was refused: later ones are passed over.
    refused: bool,
}

/// A shard being read or written for a host.
pub(crate) struct HostRequest {
    connection: ConnectionId,
    lane: u8,
    request: RequestNumber,
    /// The stripe whose grant a write is under; `None`: a read.
    write: Option<StripeId>,
    /// Bytes of the read.
    bytes: usize,
    began: Moment,
}

/// A host's question that the catalog answers.
pub(crate) struct HostWaiter {
    connection: ConnectionId,
    lane: u8,
    request: RequestNumber,
    kind: WaiterKind,
}

enum WaiterKind {
    Map,
    Stripes,
    Locate,
    Commit,
    References(Box<WaitingCommit>),
}

/// A fetch that waits for a record to be mended.
pub(crate) struct ParkedFetch {
    connection: ConnectionId,
    lane: u8,
    request: RequestNumber,
    what: (VdiskId, Epoch, Position),
    /// The record.
    pub position: Position,
}

/// A commit that waits to know whether the stripes exist that it refers to (C19).
struct WaitingCommit {
    stripe: StripeId,
    shards_missing: u16,
    vdisks: Vec<CommitVdisk>,
    /// What was asked for.
    references: Vec<StripeId>,
}

/// Why a connection is closed.
type Malformed = String;

impl State {
    /// A host's connection was accepted.
    pub fn host_connected(&mut self, connection: ConnectionId, class: Class, peer: String) {
        let session = Session {
            class,
            peer,
            who: None,
            lanes: Default::default(),
            requests: 0,
            shard_writes: 0,
            read_bytes: 0,
            waiting_reads: VecDeque::new(),
            close_at: None,
        };
        self.sessions.insert(connection, session);
    }

    /// A host's connection is gone. What it asked for goes on; replies find nobody.
    pub fn host_closed(&mut self, connection: ConnectionId) {
        let Some(session) = self.sessions.remove(&connection) else { return };
        self.waiting_reads -= session.waiting_reads.len();
        // Who steps down or stops lets all of them go.
        let serves = self.active.is_some() && !self.leaving && !self.stopping;
        if let Some(who) = session.who.filter(|who| serves && !self.is_connected(who)) {
            let Who { host, incarnation, .. } = who;
            self.notices.tell(Notice::HostGone { host, incarnation });
        }
        if session.who.is_some() && session.class == Class::Log && self.share_quota() {
            self.tell_quota();
        }
    }

    /// A message of a host.
    pub fn host_message(&mut self, connection: ConnectionId, lane: u8, mut message: Message) {
        let Some(session) = self.sessions.get(&connection) else { return };
        if session.close_at.is_some() || self.leaving {
            return;
        }
        let whole = message.len();
        let header = cleave_wire::decode_header::<HostMessage>(|count| message.take(count));
        let length = whole - message.len();
        let outcome = match header {
            Ok(header) => self.dispatch(connection, lane, header, length, message),
            Err(error) => Err(error.to_string()),
        };
        if let Err(reason) = outcome {
            self.counters.malformed += 1;
            self.close_host(connection, &reason);
        }
    }

    fn close_host(&mut self, connection: ConnectionId, reason: &str) {
        if let Some(session) = self.sessions.get(&connection) {
            tracing::warn!("closing a connection of {}: {reason}", session.peer);
            self.links.close(connection, reason);
            self.host_closed(connection);
        }
    }

    /// A host names an owner that is unknown here, and that is certain: another controller is active by now. It says so by
    /// itself soon; until then the host looks for that one.
    fn close_outlived(&mut self, connection: ConnectionId) {
        self.close_host(
            connection,
            "it names an owner of a newer epoch: another controller is active",
        );
    }

    /// Closes all connections of hosts.
    pub fn close_hosts(&mut self, reason: &str) {
        self.waiting_reads = 0;
        for (connection, _) in std::mem::take(&mut self.sessions) {
            self.links.close(connection, reason);
        }
    }

    /// Closes connections whose refusal had time to arrive.
    pub fn close_refused(&mut self) {
        let now = self.executor.now();
        let due = self.sessions.iter().filter(|(_, s)| s.close_at.is_some_and(|at| at <= now));
        for connection in due.map(|(connection, _)| *connection).collect::<Vec<_>>() {
            self.links.close(connection, "refused");
            self.host_closed(connection);
        }
    }

    pub(crate) fn send_host(
        &self,
        connection: ConnectionId,
        lane: u8,
        message: &ControllerMessage,
        payload: Option<Bytes>,
    ) {
        let header = cleave_wire::encode_header(message);
        // A closed connection is reported by its event.
        let _ = match payload {
            Some(payload) => self.links.send(connection, lane, &[header, payload]),
            None => self.links.send(connection, lane, &[header]),
        };
    }

    fn dispatch(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        header: HostMessage,
        length: usize,
        message: Message,
    ) -> Result<(), Malformed> {
        let session = self.sessions.get_mut(&connection).expect("looked up before");
        if let HostMessage::Hello(hello) = header {
            return self.hello(connection, &hello);
        }
        let Some(who) = session.who else {
            return Err("a message before hello".to_owned());
        };
        let on_log = matches!(
            header,
            HostMessage::Append(_)
                | HostMessage::Seal { .. }
                | HostMessage::Commit { .. }
                | HostMessage::Delete { .. }
                | HostMessage::Grant { .. }
                | HostMessage::ReturnGrant { .. }
                | HostMessage::Renew { .. }
        );
        if on_log && session.class != Class::Log {
            return Err("an append or commit outside of the log connection".to_owned());
        }
        match header {
            HostMessage::Append(append) => self.append(connection, lane, who, &append, message),
            HostMessage::WriteShard { request, stripe, shard, place } => {
                session.shard_writes += 1;
                if session.shard_writes > SHARD_WRITES_MAX {
                    return Err("too many shards at a time".to_owned());
                }
                let target = (stripe, shard, place);
                self.write_shard(connection, lane, who, request, target, message);
                Ok(())
            }
            other => {
                if !message.is_empty() {
                    return Err("a payload where none belongs".to_owned());
                }
                session.requests += 1;
                if session.requests > REQUESTS_MAX {
                    return Err("too many requests at a time".to_owned());
                }
                if let HostMessage::Renew { request, vdisks } = other {
                    self.renew(connection, who.incarnation, request, vdisks);
                    return Ok(());
                }
                if self.lacks_owner_of(&other) {
                    self.close_outlived(connection);
                    return Ok(());
                }
                if on_log {
                    return self.control(connection, who, other, length);
                }
                self.query(connection, lane, who, other)
            }
        }
    }

    /// Whether what is asked speaks of an owner that was made elsewhere: it is unknown here, or what is known of it was never
    /// mirrored. Owners ask such things once they were told that their seal is durable.
    fn lacks_owner_of(&self, message: &HostMessage) -> bool {
        let (HostMessage::Delete { vdisk, epoch, .. }
        | HostMessage::OpenMap { vdisk, epoch, .. }
        | HostMessage::ListStripes { vdisk, epoch, .. }
        | HostMessage::Fetch { vdisk, epoch, .. }) = message
        else {
            return false;
        };
        let mirrored = Position(self.mirror.mirrored);
        let lacks = |active: &Active| active.resident.lacks_owner(*vdisk, *epoch, mirrored);
        self.active.as_ref().is_some_and(lacks)
    }

    fn hello(&mut self, connection: ConnectionId, hello: &Hello) -> Result<(), Malformed> {
        let session = self.sessions.get(&connection).expect("looked up before");
        if session.who.is_some() {
            return Err("a second hello".to_owned());
        }
        match self.check_hello(hello, &session.peer) {
            Ok(()) => {}
            Err((reason, fatal)) => {
                let refused = ControllerMessage::Refused { reason, fatal };
                self.send_host(connection, 0, &refused, None);
                let now = self.executor.now();
                let session = self.sessions.get_mut(&connection).expect("looked up before");
                session.close_at = Some(now + REFUSED_LINGER);
                return Ok(());
            }
        }
        let who = Who {
            host: hello.host,
            core: hello.core,
            incarnation: hello.incarnation,
            connection: hello.connection,
        };
        self.supersede(connection, &who)?;
        let known = self.active.as_ref().and_then(|active| active.resident.incarnation(who.host));
        if known != Some(who.incarnation) && !self.host_start(&who) {
            let reason = "writes of the engine before are still on their way to drives".to_owned();
            let refused = ControllerMessage::Refused { reason, fatal: false };
            self.send_host(connection, 0, &refused, None);
            let now = self.executor.now();
            let session = self.sessions.get_mut(&connection).expect("looked up before");
            session.close_at = Some(now + REFUSED_LINGER);
            return Ok(());
        }
        if !self.is_connected(&who) {
            let Who { host, incarnation, .. } = who;
            self.notices.tell(Notice::HostConnected { host, incarnation });
        }
        self.sessions.get_mut(&connection).expect("looked up before").who = Some(who);
        let changed = self.share_quota();
        let (Some(held), Some(role), Some(active)) = (&self.held, &self.role, &self.active) else {
            unreachable!("a hello is only good on a confirmed active");
        };
        let configured = active.drives.states().count();
        let welcome = Welcome {
            log: held.log.id(),
            epoch: cleave_format::ids::Epoch(role.epoch),
            quota: active.quota,
            data_shards: geometry::data_shards(configured).unwrap_or(0) as u8,
            lost_drives: active.drives.lost(),
        };
        self.send_host(connection, 0, &ControllerMessage::Welcome(welcome), None);
        if changed {
            self.tell_quota();
        }
        Ok(())
    }

    fn check_hello(&self, hello: &Hello, peer: &str) -> Result<(), (String, bool)> {
        if hello.version != WIRE_VERSION {
            let reason = format!("version {} is spoken here", WIRE_VERSION);
            return Err((reason, true));
        }
        if hello.cluster != self.settings.cluster {
            return Err(("this is another cluster".to_owned(), true));
        }
        let name = format!("host-{}", hello.host);
        if peer != name {
            return Err((format!("the certificate is {peer}'s, not {name}'s"), true));
        }
        if self.stopping {
            return Err(("the controller is stopping".to_owned(), false));
        }
        let Some(active) = &self.active else {
            let reason = match &self.phase {
                crate::Phase::NoLog(lost) => lost.clone(),
                crate::Phase::Mirrored => "this controller is not the active one".to_owned(),
                _ => "this controller is not active, or not yet".to_owned(),
            };
            return Err((reason, false));
        };
        if self.leaving {
            return Err(("this controller is active no more".to_owned(), false));
        }
        match active.resident.incarnation(hello.host) {
            Some(newest) if newest > hello.incarnation => {
                Err(("a newer incarnation of this host said hello".to_owned(), true))
            }
            _ => Ok(()),
        }
    }

    /// Closes what this connection takes the place of: older ones of the same core and class (C1), and all of
    /// older incarnations of the host (C15).
    fn supersede(&mut self, connection: ConnectionId, who: &Who) -> Result<(), Malformed> {
        let class = self.sessions[&connection].class;
        let mut older = Vec::new();
        for (other, session) in &self.sessions {
            let Some(other_who) = session.who.filter(|other| other.host == who.host) else {
                continue;
            };
            let same = other_who.incarnation == who.incarnation
                && other_who.core == who.core
                && session.class == class;
            if same && other_who.connection >= who.connection {
                return Err("a newer connection of this core exists".to_owned());
            }
            if same || other_who.incarnation < who.incarnation {
                older.push(*other);
            }
        }
        for other in older {
            self.close_host(other, "a newer connection took its place");
        }
        Ok(())
    }

    /// A new incarnation of a host: grants of the one before end (C15). False while writes under them are on their way:
    /// what the log says to have ended has none, whoever becomes active after this controller.
    fn host_start(&mut self, who: &Who) -> bool {
        let (host, incarnation) = (who.host, who.incarnation);
        let active = self.active.as_mut().expect("checked with the hello");
        if let Some(before) = active.resident.incarnation(host) {
            let ended = active.grants.of(|other| other == before);
            ended.iter().for_each(|stripe| active.grants.close(*stripe));
            let busy = ended.iter().any(|stripe| active.grants.is_writing(*stripe));
            if busy && !is_planted(Planted::ReuseSlotsEarly) {
                return false;
            }
        }
        self.append_control(&Control::HostStart { host, incarnation });
        true
    }

    /// Records the end of grants under which nothing is on its way any more.
    pub fn end_idle_grants(&mut self) -> bool {
        const MOST: usize = 1024;
        let (Some(active), Some(held)) = (&mut self.active, &self.held) else { return false };
        if !held.log.has_control_room(64 + MOST * expiry::BYTES_A_GRANT) {
            return false; // Another turn finds them again (C13).
        }
        let stripes = active.grants.take_idle(MOST);
        let any = !stripes.is_empty();
        if any {
            self.append_control(&Control::GrantEnd { stripes });
        }
        any
    }

    /// Appends a control record and decides by it from here on.
    pub(crate) fn append_control(&mut self, control: &Control) -> Position {
        let held = self.held.as_mut().expect("an active controller holds the log");
        let position = held.log.append_control(control);
        if let Control::Seal { vdisk, host, .. } = control {
            held.log.assign(*vdisk, *host);
        }
        let active = self.active.as_mut().expect("only the active decides");
        active.resident.apply(position, control);
        match control {
            Control::HostStart { .. } => reached(Point::HostStartAppended),
            Control::Seal { .. } => reached(Point::SealAppended),
            Control::Grant { .. } => reached(Point::GrantAppended),
            Control::GrantEnd { .. } => reached(Point::GrantEndAppended),
            Control::Commit(_) => reached(Point::CommitAppended),
            Control::Delete { .. } => reached(Point::DeleteAppended),
            Control::Drive { .. } => reached(Point::DriveAppended),
            Control::HoldSlots => reached(Point::HoldAppended),
            Control::FreeHeld => reached(Point::FreeHeldAppended),
            Control::Swap(_) => reached(Point::SwapAppended),
            _ => {}
        }
        position
    }

    /// Divides the log among the hosts that are connected. True when their share changed.
    fn share_quota(&mut self) -> bool {
        let hosts: BTreeSet<HostId> = self
            .sessions
            .values()
            .filter(|session| session.class == Class::Log)
            .filter_map(|session| session.who.map(|who| who.host))
            .collect();
        // A quarter is left for what is released with holes, and for hosts that come.
        let bytes = self.quota_of_all() / hosts.len().max(1) as u64;
        let Some(active) = &mut self.active else { return false };
        std::mem::replace(&mut active.quota, bytes) != bytes
    }

    /// There may be more or less to divide than before.
    pub fn divide_quota(&mut self) {
        if self.share_quota() {
            self.tell_quota();
        }
    }

    fn tell_quota(&self) {
        if let Some(active) = &self.active {
            self.tell_log_sessions(&ControllerMessage::Quota { bytes: active.quota });
        }
    }

    fn tell_log_sessions(&self, message: &ControllerMessage) {
        for (connection, session) in &self.sessions {
            if session.class == Class::Log && session.who.is_some() {
                self.send_host(*connection, 0, message, None);
            }
        }
    }

    /// Drives became lost: the log says so, and the hosts are told (C16).
    pub fn drive_lost(&mut self, drive: DriveId, reason: &str) {
        if self.stopping {
            return; // The next process will see it.
        }
        let Some(active) = &mut self.active else { return };
        tracing::error!("drive {drive} is lost: {reason}");
        self.notices.tell(Notice::DriveLost { drive, reason: reason.to_owned() });
        let known = active.drives.states().find(|state| state.0 == drive);
        let generation = known.map_or(0, |state| state.1) + 1;
        let state = cleave_format::control::DriveState::Lost;
        active.drives.set_state(drive, state, generation);
        let drives = active.drives.lost();
        self.append_control(&Control::Drive { drive, state, generation });
        self.tell_log_sessions(&ControllerMessage::LostDrives { drives });
        self.damage_stale = true;
        self.rebuild.look();
    }

    /// Whether this start of a host's engine has a connection.
    fn is_connected(&self, who: &Who) -> bool {
        let mut known = self.sessions.values().filter_map(|session| session.who);
        known.any(|other| (other.host, other.incarnation) == (who.host, who.incarnation))
    }

    /// Hosts that are connected, with the number of their connections.
    pub fn connected_hosts(&self) -> Vec<(HostId, Incarnation, u32)> {
        let mut hosts = std::collections::BTreeMap::new();
        for who in self.sessions.values().filter_map(|session| session.who) {
            *hosts.entry((who.host, who.incarnation)).or_insert(0) += 1;
        }
        hosts.into_iter().map(|((host, incarnation), count)| (host, incarnation, count)).collect()
    }

    /// Sends what waited for the mirror: acknowledgements, one a lane; and what waited for the catalogs.
    pub fn acknowledge(&mut self) -> bool {
        let mirrored = match is_planted(Planted::AcknowledgeBeforeMirrored) {
            true => u64::MAX,
            false => self.mirror.mirrored,
        };
        let now = self.executor.now();
        let Some(active) = &mut self.active else { return false };
        let mut through: Vec<(ConnectionId, u8, u64)> = Vec::new();
        while active.acks.front().is_some_and(|ack| ack.position <= mirrored) {
            let ack = active.acks.pop_front().expect("looked at before");
            self.observer.appended(now.since(ack.at));
            let same = |last: &&mut (ConnectionId, u8, u64)| {
                (last.0, last.1) == (ack.connection, ack.lane)
            };
            match through.iter_mut().rev().find(same) {
                Some(last) => last.2 = ack.number,
                None => through.push((ack.connection, ack.lane, ack.number)),
            }
        }
        let mut replies = Vec::new();
        let synced = match is_planted(Planted::OpenStaleMap) {
            true => Position(self.mirror.mirrored),
            false => self.mirror.trimmable(),
        };
        while active.replies.front().is_some_and(|reply| reply.0 <= synced) {
            replies.extend(active.replies.pop_front());
        }
        let any = !through.is_empty() || !replies.is_empty();
        for (connection, lane, number) in through {
            if self.sessions.contains_key(&connection) {
                let message = ControllerMessage::Mirrored { through: number };
                self.send_host(connection, lane, &message, None);
                reached(Point::LogAcknowledged);
            }
        }
        for (_, connection, message) in replies {
            self.reply(connection, 0, &message, None);
        }
        any
    }

    /// So many requests of a session will not be answered.
    pub(crate) fn unanswered(&mut self, connection: ConnectionId, requests: u32) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.requests = session.requests.saturating_sub(requests);
        }
    }

    /// Answers a request.
    pub(crate) fn reply(
        &mut self,
        connection: ConnectionId,
        lane: u8,
        message: &ControllerMessage,
        payload: Option<Bytes>,
    ) {
        if let Some(session) = self.sessions.get_mut(&connection) {
            session.requests = session.requests.saturating_sub(1);
            self.send_host(connection, lane, message, payload);
        }
    }

    /// The catalog answered a host's question.
    pub(crate) fn answer_host(&mut self, waiter: HostWaiter, reply: CatalogReply) {
        let HostWaiter { connection, lane, request, kind } = waiter;
        if self.active.is_none() {
            return; // It stepped down; whoever asked is gone.
        }
        let message = match (kind, reply) {
            (WaiterKind::Map, CatalogReply::MapPage(page)) => map_message(request, page),
            (WaiterKind::Stripes, CatalogReply::StripesOf(stripes, next)) => {
                let listed = |(stripe, position)| ListedStripe { stripe, position };
                let stripes = stripes.into_iter().map(listed).collect();
                ControllerMessage::Listed { request, stripes, next, refused: None }
            }
            (WaiterKind::References(waiting), CatalogReply::Holders(applied, holders)) => {
                self.commit_with_references(connection, request, *waiting, applied, &holders);
                return;
            }
            (WaiterKind::Locate, CatalogReply::Located(stripes)) => {
                ControllerMessage::Located { request, stripes }
            }
            (WaiterKind::Commit, CatalogReply::Stripe(row)) => {
                let (result, struck) = match row {
                    Some(row) => (Ok(row.position), row.struck),
                    None => (Err(Refusal::NoGrant), Vec::new()),
                };
                ControllerMessage::Committed { request, result, struck }
            }
            // The catalog failed, and the controller with it.
            _ => return,
        };
        self.reply(connection, lane, &message, None);
    }
}

fn map_message(request: RequestNumber, page: MapPage) -> ControllerMessage {
    let commit = |row: cleave_catalog::MapRow| MapCommit {
        position: row.position,
        stripe: row.stripe,
        entries: row.entries,
    };
    let next = page.next.map(|cursor| match cursor {
        cleave_catalog::Cursor::Pieces(group) => MapCursor::Pieces(group),
        cleave_catalog::Cursor::Commits(position) => MapCursor::Commits(position),
    });
    ControllerMessage::Map {
        request,
        frontier: page.frontier,
        pieces: page.pieces,
        commits: page.commits.into_iter().map(commit).collect(),
        next,
        refused: None,
    }
}
