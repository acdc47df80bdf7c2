//! A host core: what its owner calls, and the connections to the controllers.
//!
//! The owner (the reactor's loop, or the simulator) calls [`HostCore::turn`] and runs the executor's tasks; between
//! turns nothing happens. Dropping all handles and clearing the executor ends the core; what it
//! acknowledged is in the log.

use crate::buffer::Record;
use crate::config::{CoreShare, HostCoreConfig};
use crate::request::{GuestCompletion, GuestError, GuestRequest, Operation};
use crate::state::{Asked, ClassLink, Reply, State, class_index};
use crate::stats::{CoreStats, Event, VdiskStats};
use crate::write;
use bytes::Bytes;
use cleave_erasure::{Encoder, Solver};
use cleave_flash::{Flash, FlashRead};
use cleave_format::ids::{Position, StripeId, VdiskId};
use cleave_format::layout::SLICE_BLOCKS;
use cleave_runtime::buffer::LooseBuffer;
use cleave_runtime::executor::{Executor, Priority};
use cleave_runtime::links::{Class, LinkEvent, Links};
use cleave_runtime::random::Random;
use cleave_runtime::sync::promise;
use cleave_wire::{Hello, HostMessage, RequestNumber, WIRE_VERSION, encode_header};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::{Rc, Weak};
use std::time::Duration;

/// Between two attempts to reach a controller.
const RETRY: Duration = Duration::from_millis(100);
/// Longest pause before what a full log refused is sent again.
const FULL_PAUSE_MAX: Duration = Duration::from_secs(2);
/// How long an attempt may take until the controller's welcome.
const ATTEMPT: Duration = Duration::from_secs(2);

/// Working memory for parity.
pub(crate) struct Coder {
    pub encoder: Encoder,
    pub solver: Solver,
}

/// What the turn and the tasks of a core share.
pub(crate) struct Shared {
    pub config: Rc<HostCoreConfig>,
    pub executor: Executor,
    pub links: Rc<dyn Links>,
    pub random: Rc<dyn Random>,
    pub state: RefCell<State>,
    pub coder: RefCell<Coder>,
    pub this: Weak<Shared>,
    pub flash: Flash,
    events: RefCell<Vec<LinkEvent>>,
    flash_reads: RefCell<Vec<FlashRead>>,
}

/// The stripes of a vdisk, as far as commits up to a position go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownStripes {
    /// The vdisk's map names them.
    pub named: BTreeSet<StripeId>,
    /// The catalog lists them for the vdisk, and nothing names them but perhaps current pieces of the map.
    pub unnamed: BTreeSet<StripeId>,
    /// The position.
    pub applied: Position,
    /// All pieces of the map are counted; else some of what it names is not among them, or among the wrong ones.
    pub counted: bool,
}

/// A host core; clones are the same one.
#[derive(Clone)]
pub struct HostCore(pub(crate) Rc<Shared>);

impl HostCore {
    /// A core that begins to connect at once, and serves no vdisk yet. All connections of `links` are
    /// its own.
    pub fn new(
        links: Rc<dyn Links>,
        executor: Executor,
        random: Rc<dyn Random>,
        config: HostCoreConfig,
    ) -> HostCore {
        let config = Rc::new(config);
        let flash = Flash::new(executor.clone());
        let state = State::new(Rc::clone(&config), Rc::clone(&links), flash.clone());
        let shared = Rc::new_cyclic(|this| Shared {
            config,
            executor,
            links,
            random,
            state: RefCell::new(state),
            coder: RefCell::new(Coder { encoder: Encoder::new(), solver: Solver::new() }),
            this: Weak::clone(this),
            flash,
            events: RefCell::default(),
            flash_reads: RefCell::default(),
        });
        for class in [Class::Log, Class::Bulk, Class::Read] {
            let task = Rc::clone(&shared);
            shared.executor.spawn(Priority::Foreground, async move { task.connect(class).await });
        }
        let leases = Rc::clone(&shared);
        shared.executor.spawn(Priority::Foreground, leases.keep_leases());
        crate::destage::start(&shared);
        HostCore(shared)
    }

    /// The number of the engine's cores has changed. What the core has beyond a smaller share drains.
    pub fn set_share(&self, share: CoreShare) {
        let CoreShare { cores, write_buffer, memory, map } = share;
        let mut state = self.0.state.borrow_mut();
        let changed =
            HostCoreConfig { cores, write_buffer, memory, map, ..(*state.config).clone() };
        state.config = Rc::new(changed);
        state.progress.notify();
    }

    /// Takes what links and flash have, and sends what came together. True when there was anything; the
    /// executor's tasks run between turns, and they too bring completions and events.
    pub fn turn(&self) -> bool {
        let shared = &self.0;
        let mut events = shared.events.borrow_mut();
        shared.links.poll(&mut events);
        let mut any = !events.is_empty();
        let mut reads = shared.flash_reads.borrow_mut();
        any |= shared.flash.turn(&mut reads);
        let mut state = shared.state.borrow_mut();
        state.now = shared.executor.now();
        for event in events.drain(..) {
            shared.on_link(&mut state, event);
        }
        for FlashRead { token, bytes } in reads.drain(..) {
            state.flash_read(token, bytes.as_deref());
        }
        let sent = state.flush();
        drop(state);
        let slow = shared.start_slow_reads() | shared.start_reading_ahead();
        any || sent || slow
    }

    /// Its number, which no other core of the engine ever has.
    pub fn number(&self) -> u16 {
        self.0.config.core
    }

    /// The core's flash: to add and retire devices, to look at it, and to close it.
    pub fn flash(&self) -> &Flash {
        &self.0.flash
    }

    /// Takes a request. Gives it back when the write buffer has no room: the owner keeps it and tries
    /// again after a turn (rule 8). Reads are never given back.
    pub fn submit(&self, request: GuestRequest) -> Result<(), GuestRequest> {
        let mut state = self.0.state.borrow_mut();
        // The last turn may be long ago: the core may have slept.
        state.now = self.0.executor.now();
        let GuestRequest { token, vdisk, operation } = request;
        let serving = state.vdisks.get_mut(&vdisk).filter(|vdisk| vdisk.serving);
        let Some(found) = serving else {
            return state.finish(token, Err(GuestError::NotServed));
        };
        let size = found.size;
        match operation {
            Operation::Flush => return state.finish(token, Ok(())),
            Operation::Read { offset, length } => {
                found.stats.reads += 1;
                found.stats.read_bytes += u64::from(length);
                state.take_read(token, vdisk, offset, length);
                return Ok(());
            }
            _ => {}
        }
        let original = match &operation {
            Operation::WriteZeroes { offset, length, .. }
            | Operation::Discard { offset, length } => (*offset, *length),
            _ => (0, 0),
        };
        let discard = !matches!(operation, Operation::Write { .. });
        let bytes = match &operation {
            Operation::Write { data, .. } => data.len() as u64,
            _ => 0,
        };
        match write::request(operation, size) {
            Err(error) => {
                found.stats.errors += 1;
                state.finish(token, Err(error))
            }
            Ok(request) if !state.has_room(&request.cost()) => {
                state.stats.refused += 1;
                if !std::mem::replace(&mut state.starving, true) {
                    state.progress.notify();
                }
                let operation = write::undo(request, original);
                Err(GuestRequest { token, vdisk, operation })
            }
            Ok(request) => {
                let stats = &mut state.vdisks.get_mut(&vdisk).expect("it was there").stats;
                stats.discards += u64::from(discard);
                stats.writes += u64::from(!discard);
                stats.write_bytes += bytes;
                state.starving = false;
                state.take_write(token, vdisk, request);
                Ok(())
            }
        }
    }

    /// Whether anything was completed that guests were not told of.
    pub fn has_completions(&self) -> bool {
        let state = self.0.state.borrow();
        !state.completions.is_empty() || state.leases.len() > 0
    }

    /// Appends what was completed, in the order in which guests must be told (C23). The executor's clock must have been
    /// read since the last request was taken: by it reads are held that nobody may be told of any more (C9).
    pub fn completions(&self, completions: &mut Vec<GuestCompletion>) {
        let mut state = self.0.state.borrow_mut();
        completions.append(&mut state.completions);
        state.answer_reads(self.0.executor.now(), completions);
    }

    /// Takes a buffer in for reads, in exchange for one that goes to another core with a read's data.
    pub fn adopt(&self, spare: LooseBuffer) {
        let state = self.0.state.borrow();
        let pool = state.buffers.iter().find(|pool| pool.capacity() == spare.capacity());
        drop(pool.map(|pool| pool.adopt(spare)));
    }

    /// The next thing that the owner should know.
    pub fn next_event(&self) -> Option<Event> {
        self.0.state.borrow_mut().events.pop_front()
    }

    /// Figures of the core.
    pub fn stats(&self) -> CoreStats {
        self.0.state.borrow().figures()
    }

    /// Figures of a vdisk that is open.
    pub fn vdisk_stats(&self, vdisk: VdiskId) -> Option<VdiskStats> {
        let state = self.0.state.borrow();
        let found = state.vdisks.get(&vdisk)?;
        let commits_after_frontier = found.commits.len() as u64;
        let (size, epoch) = (found.size, found.epoch.0);
        let mapped_blocks = state.map.mapped(vdisk);
        let stats = found.stats.clone();
        Some(VdiskStats { commits_after_frontier, size, epoch, mapped_blocks, ..stats })
    }

    /// Blocks of the vdisk that unreleased records change, in order, each once: what is not destaged. For judges;
    /// it looks at everything.
    pub fn unreleased(&self, vdisk: VdiskId) -> BTreeSet<u64> {
        let state = self.0.state.borrow();
        let records = state.buffer.records().filter(|record| record.identity.vdisk == vdisk);
        let of_record = |record: &Record| {
            let first = u64::from(record.identity.slice.0) * u64::from(SLICE_BLOCKS);
            let entries = record.entries.iter().map(move |entry| {
                let from = first + u64::from(entry.entry.block);
                from..from + u64::from(entry.entry.blocks)
            });
            entries.flatten().collect::<Vec<u64>>()
        };
        records.flat_map(of_record).collect()
    }

    /// What the core knows of a vdisk's stripes: for judges, because it looks at all of them.
    pub fn known_stripes(&self, vdisk: VdiskId) -> Option<KnownStripes> {
        let state = self.0.state.borrow();
        let applied = state.vdisks.get(&vdisk)?.applied;
        let (named, unnamed) = state.map.known_stripes(vdisk);
        let counted = state.map.is_counted(vdisk);
        Some(KnownStripes { named, unnamed, applied, counted })
    }

    /// Appends how long records took from being taken to being mirrored, since the last call; of very
    /// many only the first.
    pub fn mirror_times(&self, times: &mut Vec<Duration>) {
        times.append(&mut self.0.state.borrow_mut().mirror_times);
    }

    /// How full the write buffer is, in percent: destage should get its CPU share by it.
    pub fn fill_percent(&self) -> u64 {
        self.0.state.borrow().fill_percent()
    }

    /// Requests taken and not completed, of all vdisks.
    pub fn in_flight(&self) -> usize {
        let state = self.0.state.borrow();
        let writes: usize = state.vdisks.keys().map(|vdisk| state.writes.of(*vdisk)).sum();
        writes + state.reads.len() + state.leases.len()
    }
}

impl State {
    fn finish(
        &mut self,
        token: cleave_runtime::Token,
        result: Result<(), GuestError>,
    ) -> Result<(), GuestRequest> {
        self.completions.push(GuestCompletion { token, result, data: None });
        Ok(())
    }
}

impl Shared {
    fn on_link(&self, state: &mut State, event: LinkEvent) {
        match event {
            LinkEvent::Connected { .. } => {}
            LinkEvent::Accepted { connection, .. } => {
                self.links.close(connection, "a host takes no connections");
            }
            LinkEvent::Received { connection, lane, message } => {
                let Some(class) = state.class_of(connection) else { return };
                if let Err(reason) = state.received(class, lane, message) {
                    tracing::info!(?class, reason, "closing a connection");
                    state.disconnected(class);
                    self.links.close(connection, &reason);
                }
            }
            LinkEvent::Closed { connection, reason } => {
                let Some(class) = state.class_of(connection) else { return };
                tracing::info!(?class, reason, "connection closed");
                state.disconnected(class);
            }
        }
    }

    /// Keeps one class connected to whichever controller is active.
    async fn connect(self: Rc<Shared>, class: Class) {
        let index = class_index(class);
        let changed = self.state.borrow().class_links[index].changed.clone();
        let mut full_pause = RETRY;
        for number in 1.. {
            let controllers = &self.config.controllers;
            let attempt = self.state.borrow().class_links[index].attempts;
            let Some(controller) = controllers.get(attempt % controllers.len().max(1)) else {
                return;
            };
            let connection = self.links.connect(controller, class);
            {
                let mut state = self.state.borrow_mut();
                let link = &mut state.class_links[index];
                let attempts = link.attempts;
                let changed = link.changed.clone();
                let moving = link.moving;
                *link = ClassLink {
                    connection: Some(connection),
                    changed,
                    attempts,
                    moving,
                    ..ClassLink::default()
                };
            }
            let hello = HostMessage::Hello(Hello {
                version: WIRE_VERSION,
                cluster: self.config.cluster,
                host: self.config.host,
                incarnation: self.config.incarnation,
                core: self.config.core,
                connection: number,
            });
            // A send that fails is followed by the report that the connection is closed.
            let _ = self.links.send(connection, 0, &[encode_header(&hello)]);
            let decided = changed.until(|| {
                let link = &self.state.borrow().class_links[index];
                let settled =
                    link.ready || link.refused.is_some() || link.connection != Some(connection);
                settled.then_some(link.ready)
            });
            match self.executor.timeout(ATTEMPT, decided).await {
                Some(true) => {
                    self.state.borrow_mut().class_links[index].moving = None;
                    tracing::info!(?class, controller = controller.name, "connected");
                    let over = || {
                        let link = &self.state.borrow().class_links[index];
                        let gone = link.connection != Some(connection);
                        (gone || link.full).then_some(gone)
                    };
                    if changed.until(over).await {
                        full_pause = RETRY;
                    } else {
                        // Commits go on over this connection meanwhile, and make room (C13).
                        tracing::debug!(pause = ?full_pause, "the log is full");
                        self.executor.sleep(full_pause).await;
                        full_pause = FULL_PAUSE_MAX.min(2 * full_pause);
                        let mut state = self.state.borrow_mut();
                        if state.class_links[index].connection == Some(connection) {
                            state.disconnected(class);
                            self.links.close(connection, "the log is full");
                        }
                    }
                }
                Some(false) | None => {
                    let mut state = self.state.borrow_mut();
                    if let Some((reason, _)) = &state.class_links[index].refused {
                        tracing::debug!(?class, controller = controller.name, reason, "refused");
                    }
                    let now = self.executor.now();
                    let link = &mut state.class_links[index];
                    // Who was told where the role goes waits there for it.
                    link.moving = link.moving.filter(|until| now < *until);
                    link.attempts += usize::from(link.moving.is_none());
                    if link.connection == Some(connection) {
                        state.disconnected(class);
                        self.links.close(connection, "no welcome");
                    }
                }
            }
            let jitter = Duration::from_micros(self.random.below(5_000));
            let moving = self.state.borrow().class_links[index].moving.is_some();
            self.executor.sleep(if moving { jitter } else { RETRY + jitter }).await;
        }
    }

    /// Asks a controller and waits for its answer, over as many connections as it takes.
    pub async fn request(
        &self,
        class: Class,
        lane: u8,
        mut ask: impl FnMut(RequestNumber) -> HostMessage,
        payload: &[Bytes],
    ) -> Reply {
        let changed = self.state.borrow().class_links[class_index(class)].changed.clone();
        loop {
            changed.until(|| self.state.borrow().ready(class)).await;
            let number = self.state.borrow_mut().request_number();
            let mut parts = Vec::with_capacity(1 + payload.len());
            parts.push(encode_header(&ask(number)));
            parts.extend_from_slice(payload);
            let (promise, outcome) = promise();
            {
                let mut state = self.state.borrow_mut();
                let Some(connection) = state.ready(class) else { continue };
                state.asked.insert(number, (class, Asked::Flow(promise)));
                if self.links.send(connection, lane, &parts).is_err() {
                    // Its end will be reported; what was asked on it is forgotten then.
                    tracing::debug!(?class, "a connection does not take a request");
                }
            }
            if let Some(reply) = outcome.wait().await {
                return reply;
            }
        }
    }
}
