//! A controller: its world, its turn, its stop.
//!
//! The turn takes what links, drives, catalog, vault and store have, and ends with everything that is due
//! because of it, once for all ([`State::finish`]). Longer flows are tasks of the executor, which the
//! caller runs between turns.

use crate::catalog_port::CatalogPort;
use crate::drives::{DriveEvent, Drives, OpenDrive};
use crate::join;
use crate::notices::{Notice, VaultImage};
use crate::state::{Held, Observer, PeerInput, PeerLink, Phase, Settings, State};
use crate::status::Status;
use crate::vault;
use crate::{rebuild, scrub};
use cleave_coordinator::{StoreClient, next_incarnation};
use cleave_erasure::Solver;
use cleave_format::ids::{DatanodeId, DriveId, Epoch, Incarnation, Position};
use cleave_format::vault::VaultIdentity;
use cleave_runtime::drives::{Drive, DriveIo};
use cleave_runtime::executor::{Executor, Priority};
use cleave_runtime::links::{Class, ConnectionId, LinkEvent, Links};
use cleave_runtime::message::Message;
use cleave_runtime::sync::Queue;
use cleave_wire::PeerMessage;
use std::cell::{Ref, RefCell, RefMut};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Drives are probed this often: a loss is noticed within a second.
const PROBE: Duration = Duration::from_millis(500);
/// Stripes that lack shards are counted anew, when there may be others, after so many probes.
const PROBES_A_COUNT: u32 = 10;
/// A stop looks this often whether the drives are idle.
const STOP_POLL: Duration = Duration::from_millis(2);

/// What a controller runs on.
pub struct World {
    /// Its links; it listens.
    pub links: Rc<dyn Links>,
    /// Its executor, which the caller runs.
    pub executor: Executor,
    /// Its connection to the coordinator store; the controller's turn drives it.
    pub store: StoreClient,
    /// Its catalog.
    pub catalog: Box<dyn CatalogPort>,
    /// The catalog's position when it was opened.
    pub catalog_applied: Position,
    /// Where the log's image goes.
    pub vault: Rc<dyn Drive>,
    /// The pool's drives, checked to be ours; `None`: could not be opened.
    pub drives: Vec<(DriveId, Option<OpenDrive>)>,
    /// Is told how long things took.
    pub observer: Rc<dyn Observer>,
}

struct Inner {
    state: RefCell<State>,
    links: Rc<dyn Links>,
    executor: Executor,
    store: StoreClient,
    vault: DriveIo,
    accepted: Queue<(ConnectionId, Queue<PeerInput>)>,
    events: RefCell<Vec<LinkEvent>>,
    drive_events: RefCell<Vec<DriveEvent>>,
    /// Drives that a flow reads while this controller is not active.
    reading: RefCell<Vec<DriveIo>>,
    /// Made at the start: it takes some milliseconds.
    solver: Solver,
}

/// The flows' handle.
#[derive(Clone)]
pub(crate) struct Node(Rc<Inner>);

/// A controller of a data node.
pub struct DataNode(Node);

impl DataNode {
    /// Starts a controller.
    pub fn new(world: World, settings: Settings) -> DataNode {
        let World { links, executor, store, catalog, catalog_applied, vault, drives, observer } =
            world;
        let settings = Rc::new(settings);
        let mut state = State::new(
            Rc::clone(&settings),
            Rc::clone(&links),
            executor.clone(),
            observer,
            catalog,
            Drives::new(settings.cluster, drives),
        );
        state.mirror.catalog = catalog_applied.0;
        let node = Node(Rc::new(Inner {
            state: RefCell::new(state),
            links,
            executor: executor.clone(),
            store,
            vault: DriveIo::new(vault),
            accepted: Queue::default(),
            events: RefCell::default(),
            drive_events: RefCell::default(),
            reading: RefCell::default(),
            solver: Solver::new(),
        }));
        executor.spawn(Priority::Foreground, begin(node.clone()));
        executor.spawn(Priority::Foreground, keep_house(node.clone()));
        executor.spawn(Priority::Background, rebuild::run(node.clone()));
        executor.spawn(Priority::Background, scrub::run(node.clone()));
        DataNode(node)
    }

    /// Takes what there is to take, and works. True when there was anything.
    pub fn turn(&self) -> bool {
        self.0.turn()
    }

    /// Begins a clean stop: no host is served any more, and the log goes to the vault. Over when
    /// [`is_stopped`](DataNode::is_stopped) says so.
    pub fn stop(&self) {
        let node = self.0.clone();
        if !std::mem::replace(&mut node.state_mut().stopping, true) {
            let executor = node.executor().clone();
            executor.spawn(Priority::Foreground, stop(node));
        }
    }

    /// Whether a stop is over.
    pub fn is_stopped(&self) -> bool {
        self.0.state().phase == Phase::Stopped
    }

    /// Why the controller cannot go on; the process should end.
    pub fn failure(&self) -> Option<String> {
        self.0.state().fatal.clone()
    }

    /// Whether both controllers hold the log now.
    pub fn is_mirrored(&self) -> bool {
        self.0.state().is_joined()
    }

    /// Flips a bit in the memory of the log's first mirrored entry at a position or after it, if there is one: for judges.
    pub fn rot(&self, from: Position, bit: u64) -> Option<Position> {
        let state = &mut *self.0.state_mut();
        let end = Position(state.mirror.mirrored + 1);
        state.held.as_mut().and_then(|held| held.log.rot(from, end, bit))
    }

    /// As [`rot`](DataNode::rot), of a control record; also of one that the peer was sent, and did not answer.
    pub fn rot_control(&self, from: Position, bit: u64) -> Option<Position> {
        let state = &mut *self.0.state_mut();
        let end = Position(state.mirror.mirrored.max(state.mirror.forwarded) + 1);
        state.held.as_mut().and_then(|held| held.log.rot_control(from, end, bit))
    }

    /// Whether all entries of the log pass their checks; looks at everything: for judges.
    pub fn is_sound(&self) -> bool {
        let state = self.0.state();
        state.held.as_ref().is_some_and(|held| held.log.is_sound())
    }

    /// An operator's word: has what lacks shards looked for and rebuilt now. False when this controller is not active.
    pub fn rebuild(&self) -> bool {
        self.0.state_mut().rebuild_now()
    }

    /// An operator's word: the other controller shall become the active one. Gives for how long nobody served hosts, at most, but for
    /// their own way to the other one; or why it was not done, and then this one goes on, unless it says otherwise.
    pub fn switch_over(&self) -> impl Future<Output = Result<Duration, String>> + use<> {
        let node = self.0.clone();
        async move { node.switch_over().await }
    }

    /// An operator's word: has all stripes looked at now, and what is damaged mended. False when this controller is not active.
    pub fn scrub(&self) -> bool {
        self.0.state_mut().scrub_now()
    }

    /// What an operator should know of, the oldest first, and how often it happened in a row; `None` when everything was taken.
    pub fn next_notice(&self) -> Option<(Notice, u64)> {
        self.0.state_mut().notices.next()
    }

    /// Notices for which there was no room.
    pub fn notices_dropped(&self) -> u64 {
        self.0.state().notices.dropped()
    }

    /// Its status.
    pub fn status(&self) -> Status {
        Status::of(&self.0.state())
    }
}

/// Draws the incarnation, then meets the peer for as long as the process lives.
async fn begin(node: Node) {
    match next_incarnation(&node.0.store).await {
        Ok(incarnation) => node.state_mut().incarnation = Incarnation(incarnation),
        Err(error) => {
            node.fail(format!("no incarnation could be drawn: {error}"));
            return;
        }
    }
    join::run(node.clone(), node.0.accepted.clone()).await;
}

async fn keep_house(node: Node) {
    let mut probes = 0;
    loop {
        node.executor().sleep(PROBE).await;
        {
            let mut state = node.state_mut();
            state.close_refused();
            state.end_absent_grants();
            state.look_for_rot();
            state.look_for_rebuild();
            state.cool_down();
            state.look_for_scrub();
            probes = (probes + 1) % PROBES_A_COUNT;
            if probes == 0 && state.damage_stale && !state.stopping {
                state.count_damage();
            }
            if let Some(active) = &mut state.active {
                active.drives.probe();
            }
        }
        node.turn();
    }
}

async fn stop(node: Node) {
    node.set_phase(Phase::Stopping);
    let peer = {
        let mut state = node.state_mut();
        state.close_hosts("the controller is stopping");
        state.peer.as_ref().map(|peer| peer.connection)
    };
    if let Some(connection) = peer {
        node.links().close(connection, "the controller is stopping");
        node.peer_gone(connection, "stopping");
    }
    let idle = || node.state().active.as_ref().is_none_or(|active| active.drives.is_idle());
    while !idle() {
        node.executor().sleep(STOP_POLL).await;
    }
    // Nothing is acknowledged any more: this is the log as every host knows it.
    let (held, confirmed) = {
        let mut state = node.state_mut();
        (state.held.take(), state.confirmed)
    };
    if let Some(Held { log, member }) = held.filter(|_| confirmed) {
        let identity =
            VaultIdentity { incarnation: member, log_id: log.id(), ..node.vault_identity() };
        let began = node.executor().now();
        match vault::write(&node.0.vault, identity, &log).await {
            Ok(bytes) => {
                let took = node.executor().now().since(began);
                let image = VaultImage { entries: log.len(), bytes, took };
                tracing::info!("wrote the log to the vault: {image}");
                node.state_mut().notices.tell(Notice::VaultWritten(image));
            }
            Err(error) => node.fail(format!("the log was not saved: {error}")),
        }
    }
    node.set_phase(Phase::Stopped);
}

impl Node {
    pub fn state(&self) -> Ref<'_, State> {
        self.0.state.borrow()
    }

    pub fn state_mut(&self) -> RefMut<'_, State> {
        self.0.state.borrow_mut()
    }

    pub fn executor(&self) -> &Executor {
        &self.0.executor
    }

    pub fn links(&self) -> &Rc<dyn Links> {
        &self.0.links
    }

    pub fn store(&self) -> (StoreClient, DatanodeId) {
        (self.0.store.clone(), self.state().settings.datanode)
    }

    pub fn solver(&self) -> &Solver {
        &self.0.solver
    }

    pub fn vault_io(&self) -> DriveIo {
        self.0.vault.clone()
    }

    /// Has drives polled that a flow reads; none any more when it is over.
    pub fn read_from(&self, drives: Vec<DriveIo>) {
        *self.0.reading.borrow_mut() = drives;
    }

    pub fn vault_identity(&self) -> VaultIdentity {
        let state = self.state();
        VaultIdentity {
            cluster: state.settings.cluster,
            datanode: state.settings.datanode,
            incarnation: state.incarnation,
            role_epoch: state.role.as_ref().map_or(state.epoch, |role| Epoch(role.epoch)),
            log_id: 0,
        }
    }

    pub fn phase(&self) -> Phase {
        self.state().phase.clone()
    }

    pub fn set_phase(&self, phase: Phase) {
        let mut state = self.state_mut();
        let ends = matches!(phase, Phase::Stopping | Phase::Stopped);
        // Who is alone serves its hosts whatever becomes of a meeting.
        let stays = state.is_alone() && !matches!(phase, Phase::Mirrored);
        if ends || !(state.stopping || stays) {
            state.phase = phase;
        }
    }

    /// Nobody holds the log; told once.
    pub fn log_lost(&self, reason: String) {
        if !matches!(self.phase(), Phase::NoLog(_)) {
            self.state_mut().notices.tell(Notice::LogLost { reason: reason.clone() });
        }
        self.set_phase(Phase::NoLog(reason));
    }

    pub fn fail(&self, reason: String) {
        self.state_mut().fail(reason);
    }

    pub fn turn(&self) -> bool {
        let inner = &self.0;
        let mut any = inner.store.turn();
        let mut events = inner.events.take();
        inner.links.poll(&mut events);
        any |= !events.is_empty();
        for event in events.drain(..) {
            self.link_event(event);
        }
        *inner.events.borrow_mut() = events;
        any |= inner.vault.turn();
        any |= inner.reading.borrow().iter().fold(false, |any, io| io.turn() | any);
        let mut drive_events = inner.drive_events.take();
        let mut state = self.state_mut();
        if let Some(active) = &mut state.active {
            any |= active.drives.turn(&mut drive_events);
        }
        for event in drive_events.drain(..) {
            state.drive_event(event);
        }
        any |= state.poll_catalog();
        any |= state.finish();
        drop(state);
        *inner.drive_events.borrow_mut() = drive_events;
        any
    }

    fn link_event(&self, event: LinkEvent) {
        match event {
            LinkEvent::Connected { .. } => {}
            LinkEvent::Accepted { connection, class, peer } => {
                self.accepted(connection, class, peer)
            }
            LinkEvent::Received { connection, lane, message } => {
                let of_peer = {
                    let state = self.state();
                    state.peer.as_ref().is_some_and(|peer| peer.connection == connection)
                };
                if of_peer {
                    self.received_from_peer(connection, message);
                } else {
                    self.state_mut().host_message(connection, lane, message);
                }
            }
            LinkEvent::Closed { connection, reason } => {
                self.peer_gone(connection, &reason);
                self.state_mut().host_closed(connection);
            }
        }
    }

    fn accepted(&self, connection: ConnectionId, class: Class, peer: String) {
        let mut state = self.state_mut();
        if state.stopping {
            self.0.links.close(connection, "the controller is stopping");
        } else if peer.starts_with("host-") {
            state.host_connected(connection, class, peer);
        } else if peer == state.settings.peer.name && state.settings.controller == 0 {
            let before = state.peer.as_ref().map(|peer| peer.connection);
            drop(state);
            if let Some(before) = before {
                self.0.links.close(before, "a newer connection took its place");
                self.peer_gone(before, "a newer connection took its place");
            }
            let inbox = self.link_peer(connection);
            self.0.accepted.push((connection, inbox));
        } else {
            tracing::warn!(
                "{peer} connected, which is no host and not the peer of this controller"
            );
            self.0.links.close(connection, "neither a host nor the peer");
        }
    }

    fn link_peer(&self, connection: ConnectionId) -> Queue<PeerInput> {
        let inbox = Queue::default();
        self.state_mut().peer = Some(PeerLink {
            connection,
            inbox: inbox.clone(),
            joined: false,
            trim_sent: Position(0),
            sent: VecDeque::new(),
        });
        inbox
    }

    /// Controller 1: begins a connection. `None` when the controller stops.
    pub fn dial(&self) -> Option<(ConnectionId, Queue<PeerInput>)> {
        let to = {
            let state = self.state();
            if state.stopping {
                return None;
            }
            state.settings.peer.clone()
        };
        let connection = self.0.links.connect(&to, Class::Log);
        Some((connection, self.link_peer(connection)))
    }

    /// The connection to the peer is gone, if it was this one.
    pub fn peer_gone(&self, connection: ConnectionId, reason: &str) {
        let mut state = self.state_mut();
        let Some(peer) = state.peer.take_if(|peer| peer.connection == connection) else { return };
        if !state.stopping && !matches!(state.phase, Phase::NoLog(_)) {
            let known = state.confirmed || state.active.is_some();
            state.phase = match known {
                _ if state.is_alone() => Phase::Alone,
                true => Phase::PeerAway,
                false => Phase::Starting,
            };
        }
        if peer.joined {
            state.alone = state.executor.now();
            state.seen = None;
        }
        state.forget_asked();
        state.switch_interrupted();
        if peer.joined {
            tracing::warn!("the mirror is broken: {reason}");
            state.notices.tell(Notice::PeerAway { reason: reason.to_owned() });
        }
        peer.inbox.push(PeerInput::Closed(reason.to_owned()));
    }

    fn received_from_peer(&self, connection: ConnectionId, mut message: Message) {
        match cleave_wire::decode_header::<PeerMessage>(|count| message.take(count)) {
            Ok(header) => {
                let meeting = {
                    let state = self.state();
                    let peer = state.peer.as_ref().filter(|peer| !peer.joined);
                    peer.map(|peer| peer.inbox.clone())
                };
                match meeting {
                    Some(inbox) => inbox.push(PeerInput::Message(header, message)),
                    None => self.peer_message(connection, header, message),
                }
            }
            Err(error) => self.drop_peer(connection, &error.to_string()),
        }
    }

    /// The mirror's own messages.
    pub fn peer_message(
        &self,
        connection: ConnectionId,
        header: PeerMessage,
        mut payload: Message,
    ) {
        let outcome = {
            let mut state = self.state_mut();
            match (header, state.active.is_some()) {
                (PeerMessage::Held { through, catalog }, true) => {
                    state.held_by_standby(through, catalog)
                }
                (PeerMessage::Forward { entries, trimmed }, false) => {
                    state.take_forwarded(&entries, trimmed, &mut payload)
                }
                (PeerMessage::Want { position }, _) => {
                    state.lend(position);
                    Ok(())
                }
                (PeerMessage::Lent { position, check }, _) => state.lent(position, check, payload),
                (PeerMessage::Vouch { number }, false) => {
                    // C9: only while it is joined it gets here, and the role is not taken meanwhile.
                    let _ = state.send_peer(&PeerMessage::Vouched { number }, &[]);
                    Ok(())
                }
                (PeerMessage::Vouched { number }, true) => {
                    state.vouched(connection, number);
                    Ok(())
                }
                (PeerMessage::Prepare, false) => {
                    self.executor().spawn(Priority::Foreground, self.clone().prepare());
                    Ok(())
                }
                (PeerMessage::Prepared { hindrance }, true) => {
                    state.prepared(hindrance);
                    Ok(())
                }
                (PeerMessage::TakeRole, false) => {
                    drop(state);
                    self.told_to_take();
                    Ok(())
                }
                _ => Err("a message out of place".to_owned()),
            }
        };
        if let Err(reason) = outcome {
            self.drop_peer(connection, &reason);
        }
    }

    fn drop_peer(&self, connection: ConnectionId, reason: &str) {
        tracing::error!("closing the connection to the peer: {reason}");
        self.state_mut().counters.malformed += 1;
        self.0.links.close(connection, reason);
        self.peer_gone(connection, reason);
    }
}
