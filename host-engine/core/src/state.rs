//! A core's state, and what its turn does with what the links bring.
//!
//! The hot logic is here and in `write`, `read` and `pool`, as methods that never wait; flows
//! (`open`, `destage`, slow reads) are tasks that borrow this between two waits, never across one.

use crate::ahead::{Ahead, Window};
use crate::buffer::{Memory, RecordKey, WriteBuffer};
use crate::config::HostCoreConfig;
use crate::dedupe::Index;
use crate::hash::Map as HashMap;
use crate::leases::Leases;
use crate::log_client::LogClient;
use crate::map::Map;
use crate::paging::Fetches;
use crate::pool::{RangeKey, RangeRead, SlowRead};
use crate::publish::{ReadKey, Write, Writes};
use crate::read::ReadOperation;
use crate::request::{GuestCompletion, GuestError};
use crate::runs::Run;
use crate::sequence::Sequences;
use crate::stats::{CoreStats, Event, VdiskStats};
use crate::suspects::Suspects;
use crate::write::{Cost, FingerprintJob, Waiting};
use bytes::BytesMut;
use cleave_codec::{Codec, Keys, Settings};
use cleave_flash::Flash;
use cleave_format::ids::{DriveId, Epoch, Position, SliceIndex, StripeId, VdiskId, Version};
use cleave_runtime::buffer::BufferPool;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::links::{Class, ConnectionId, Links};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::{Promise, Signal};
use cleave_runtime::time::Moment;
use cleave_wire::{ControllerMessage, Refusal, RequestNumber, Welcome};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// When a controller said that the other one takes the role over, so long is that one tried without a pause.
const ROLE_MOVES: Duration = Duration::from_secs(1);
/// Times that are kept until somebody takes them.
const MIRROR_TIMES_MAX: usize = 4096;
/// Memory of a core beside write buffer and maps, in bytes: stripes on their way, reads, links.
const OTHER_MEMORY: u64 = 64 << 20;

/// A vdisk that is open here.
pub(crate) struct Vdisk {
    pub size: u64,
    pub epoch: Epoch,
    /// Which of the core's codecs.
    pub codec: usize,
    /// Requests are taken: it is open, and neither closing nor fenced.
    pub serving: bool,
    /// Until when its reads may be answered (C9); `None`: it is not sealed yet.
    pub lease: Option<Moment>,
    /// Its end was ordered here: that the log refuses it from then on is no surprise (C28).
    pub deleting: bool,
    /// Commits after the frontier, in order.
    pub commits: VecDeque<Position>,
    /// Stripe bytes of these.
    pub committed_bytes: u64,
    /// The last commit that the map reflects.
    pub applied: Position,
    /// Parts of it in stripes on their way.
    pub in_stripes: usize,
    /// When stripes were first seen that it could leave; `None`: there is none.
    pub dead_since: Option<Moment>,
    /// A run is wanted whatever the counts say.
    pub run_wanted: bool,
    /// How far its misses look ahead.
    pub window: Window,
    pub stats: VdiskStats,
}

/// The answer to a flow's request.
pub(crate) struct Reply {
    pub message: ControllerMessage,
    pub payload: Message,
}

/// Who waits for an answer.
pub(crate) enum Asked {
    Flow(Promise<Reply>),
    Range(RangeKey),
}

/// A connection of one class.
#[derive(Default)]
pub(crate) struct ClassLink {
    /// Begun, and perhaps good.
    pub connection: Option<ConnectionId>,
    pub ready: bool,
    /// Notified when any of this changes.
    pub changed: Signal,
    /// What the controller refused with.
    pub refused: Option<(String, bool)>,
    /// An append was refused because the log is full: appends need a new connection, but not yet.
    pub full: bool,
    /// Attempts that failed: they go to the controllers in turn.
    pub attempts: usize,
    /// The role moves to the controller that is tried now: until then it is tried again at once.
    pub moving: Option<Moment>,
}

pub(crate) struct State {
    pub config: Rc<HostCoreConfig>,
    pub links: Rc<dyn Links>,
    /// At the beginning of the turn.
    pub now: Moment,
    pub vdisks: BTreeMap<VdiskId, Vdisk>,
    pub codecs: Vec<(Option<Keys>, Codec)>,
    /// The chunk that frames are encoded into; empty between records.
    pub arena: BytesMut,
    /// Where frames are encoded that might not fit it; empty between records.
    pub scratch: BytesMut,
    pub buffers: Vec<BufferPool>,

    pub map: Map,
    pub fetches: Fetches,
    pub index: Index,
    pub buffer: WriteBuffer,
    pub sequences: Sequences,
    pub log: LogClient,
    pub writes: Writes,
    pub waiting: BTreeMap<(VdiskId, SliceIndex), Vec<Waiting>>,
    /// Bytes that the waiting parts will take in the buffer.
    pub reserved: u64,
    /// The last write that came found no room.
    pub starving: bool,
    /// From taken to mirrored, until somebody takes them.
    pub mirror_times: Vec<Duration>,
    pub reads: HashMap<ReadKey, ReadOperation>,
    pub next_read: ReadKey,
    pub ranges: BTreeMap<RangeKey, RangeRead>,
    pub next_range: RangeKey,
    pub unsent_ranges: VecDeque<RangeKey>,
    pub slow: VecDeque<SlowRead>,
    pub suspects: Suspects,
    pub flash: Flash,
    pub ahead: Ahead,
    pub fingerprints: VecDeque<FingerprintJob>,

    pub class_links: [ClassLink; 3],
    pub asked: BTreeMap<RequestNumber, (Class, Asked)>,
    pub next_request: RequestNumber,
    pub log_identity: Option<u64>,
    pub quota: Option<u64>,
    /// The log refused a record for want of room, and took none since.
    pub log_full: bool,
    /// Most data shards of a new stripe.
    pub data_shards: u8,
    pub lost_drives: BTreeSet<DriveId>,
    /// When it was asked where stripes lie that have a shard on one of them.
    pub located: BTreeMap<StripeId, Moment>,
    pub run: Option<Run>,
    /// Something changed by which a run may be due.
    pub run_may_be_due: bool,

    /// The core is told to end, and has given back what was granted to it.
    pub ending: bool,
    /// See [`ending`](State::ending).
    pub ended: bool,

    pub completions: Vec<GuestCompletion>,
    pub leases: Leases,
    pub events: VecDeque<Event>,
    pub stats: CoreStats,
    /// Something changed that destage or a closing vdisk may wait for.
    pub progress: Signal,
    mirrored: Vec<RecordKey>,
}

pub(crate) fn class_index(class: Class) -> usize {
    match class {
        Class::Log => 0,
        Class::Bulk => 1,
        Class::Read => 2,
    }
}

impl State {
    pub fn new(config: Rc<HostCoreConfig>, links: Rc<dyn Links>, flash: Flash) -> State {
        let pool = |pages: usize, kept| BufferPool::new(pages << 12, kept);
        let index = Index::new(config.dedupe);
        State {
            config,
            links,
            now: Moment::default(),
            vdisks: BTreeMap::new(),
            codecs: Vec::new(),
            arena: BytesMut::new(),
            scratch: BytesMut::new(),
            buffers: vec![pool(1, 256), pool(4, 64), pool(16, 32), pool(64, 16), pool(256, 4)],
            map: Map::default(),
            fetches: Fetches::default(),
            index,
            buffer: WriteBuffer::default(),
            sequences: Sequences::default(),
            log: LogClient::default(),
            writes: Writes::default(),
            waiting: BTreeMap::new(),
            reserved: 0,
            starving: false,
            mirror_times: Vec::new(),
            reads: HashMap::default(),
            next_read: 0,
            ranges: BTreeMap::new(),
            next_range: 0,
            unsent_ranges: VecDeque::new(),
            slow: VecDeque::new(),
            suspects: Suspects::default(),
            flash,
            ahead: Ahead::default(),
            fingerprints: VecDeque::new(),
            class_links: Default::default(),
            asked: BTreeMap::new(),
            next_request: 0,
            log_identity: None,
            quota: None,
            log_full: false,
            data_shards: 8,
            lost_drives: BTreeSet::new(),
            located: BTreeMap::new(),
            run: None,
            run_may_be_due: false,
            ending: false,
            ended: false,
            completions: Vec::new(),
            leases: Leases::default(),
            events: VecDeque::new(),
            stats: CoreStats::default(),
            progress: Signal::new(),
            mirrored: Vec::new(),
        }
    }

    /// Index of the codec for these keys; a core has one codec a key, ever (C29).
    pub fn codec_for(&mut self, keys: Option<&Keys>) -> usize {
        let id = |keys: Option<&Keys>| keys.map(Keys::id);
        let found = self.codecs.iter().position(|(own, _)| id(own.as_ref()) == id(keys));
        let found = found.filter(|_| !is_planted(Planted::ReuseNonces));
        found.unwrap_or_else(|| {
            let settings = Settings {
                incarnation: self.config.incarnation,
                core: self.config.core,
                keys: keys.cloned(),
            };
            self.codecs.push((keys.cloned(), Codec::new(settings)));
            self.codecs.len() - 1
        })
    }

    /// Bytes of records that the buffer may hold.
    pub fn limit(&self) -> u64 {
        let share = self.quota.map(|quota| quota / u64::from(self.config.cores.max(1)));
        self.config.write_buffer.min(share.unwrap_or(u64::MAX))
    }

    /// Memory that the buffer may take: small records take more of it than of the log.
    pub fn memory_limit(&self) -> Memory {
        let whole = self.config.memory;
        let tables = (self.map.memory() + self.index.memory()) as u64 + self.flash.memory();
        let left = whole.saturating_sub(OTHER_MEMORY + tables);
        let limit = left.clamp(whole / 4, whole / 8 * 5);
        Memory { content: limit - limit / 4, tables: limit / 4 }
    }

    /// How full the buffer is, in percent: of the log's bytes or of memory, whichever is scarcer.
    pub fn fill_percent(&self) -> u64 {
        let (used, limit) = (self.buffer.memory(), self.memory_limit());
        let percent = |used: u64, limit: u64| used * 100 / limit.max(1);
        percent(self.buffer.bytes(), self.limit())
            .max(percent(used.content, limit.content))
            .max(percent(used.tables, limit.tables))
    }

    /// Whether the buffer has room for a request. One that is larger than the buffer is taken when
    /// nothing else is in it.
    pub fn has_room(&self, cost: &Cost) -> bool {
        let bytes = self.reserved + cost.bytes;
        let (used, limit) = (self.buffer.memory(), self.memory_limit());
        let tables = used.tables + Memory::tables_of(cost.records, cost.blocks);
        let room = self.buffer.bytes() + bytes <= self.limit()
            && used.content + bytes <= limit.content
            && tables <= limit.tables;
        room || (self.buffer.len() == 0 && self.reserved == 0)
    }

    /// A request number that was never used.
    pub fn request_number(&mut self) -> RequestNumber {
        self.next_request += 1;
        self.next_request
    }

    /// The class's connection, if it is good.
    pub fn ready(&self, class: Class) -> Option<ConnectionId> {
        let link = &self.class_links[class_index(class)];
        link.connection.filter(|_| link.ready)
    }

    pub fn class_of(&self, connection: ConnectionId) -> Option<Class> {
        let classes = [Class::Log, Class::Bulk, Class::Read];
        let is_it =
            |class: &Class| self.class_links[class_index(*class)].connection == Some(connection);
        classes.into_iter().find(is_it)
    }

    /// The connection of the class is gone: whoever asked on it asks again.
    pub fn disconnected(&mut self, class: Class) {
        let link = &mut self.class_links[class_index(class)];
        link.connection = None;
        link.ready = false;
        let changed = link.changed.clone();
        if class == Class::Log {
            self.log.disconnected();
        }
        let lost: Vec<RequestNumber> =
            self.asked.iter().filter(|(_, (of, _))| *of == class).map(|(n, _)| *n).collect();
        for number in lost {
            if let Some((_, Asked::Range(range))) = self.asked.remove(&number) {
                self.unsent_ranges.push_back(range);
            }
        }
        changed.notify();
    }

    /// Takes a message of a controller. `Err` says why the connection must be closed.
    pub fn received(&mut self, class: Class, lane: u8, mut message: Message) -> Result<(), String> {
        let header: ControllerMessage =
            cleave_wire::decode_header(|count| message.take(count)).map_err(|e| e.to_string())?;
        match header {
            ControllerMessage::Welcome(welcome) => self.welcomed(class, welcome),
            ControllerMessage::Refused { reason, fatal } => {
                let link = &mut self.class_links[class_index(class)];
                link.refused = Some((reason.clone(), fatal));
                link.changed.notify();
                if fatal {
                    self.events.push_back(Event::Rejected { reason });
                }
            }
            ControllerMessage::RoleMoves => {
                let link = &mut self.class_links[class_index(class)];
                link.attempts += 1;
                link.moving = Some(self.now + ROLE_MOVES);
                return Err("the other controller takes the role over".to_owned());
            }
            ControllerMessage::Mirrored { through } => self.log_mirrored(lane, through),
            ControllerMessage::AppendRefused { reason: Refusal::Full, .. } => {
                let link = &mut self.class_links[class_index(class)];
                link.full = true;
                link.changed.notify();
                self.log_full = true;
                self.progress.notify();
            }
            ControllerMessage::AppendRefused { number, reason } => {
                return Err(self.append_refused(lane, number, reason));
            }
            ControllerMessage::Quota { bytes } => self.quota = Some(bytes),
            ControllerMessage::LostDrives { drives } => {
                self.lost_drives = drives.into_iter().collect();
                self.progress.notify();
            }
            answer => self.answered(answer, message)?,
        }
        Ok(())
    }

    fn answered(&mut self, answer: ControllerMessage, payload: Message) -> Result<(), String> {
        let (ControllerMessage::Done { request, .. }
        | ControllerMessage::Committed { request, .. }
        | ControllerMessage::Granted { request, .. }
        | ControllerMessage::Fetched { request, .. }
        | ControllerMessage::Map { request, .. }
        | ControllerMessage::Listed { request, .. }
        | ControllerMessage::Located { request, .. }
        | ControllerMessage::Renewed { request, .. }
        | ControllerMessage::Read { request, .. }
        | ControllerMessage::ShardWritten { request, .. }) = &answer
        else {
            return Err("a message that is no answer".to_owned());
        };
        match self.asked.remove(request) {
            // Answers to flows that ended are dropped.
            None => {}
            Some((_, Asked::Flow(promise))) => promise.fulfil(Reply { message: answer, payload }),
            Some((_, Asked::Range(range))) => match answer {
                ControllerMessage::Read { result, .. } => self.range_read(range, result, payload),
                _ => return Err("an answer of another kind than the request".to_owned()),
            },
        }
        Ok(())
    }

    fn welcomed(&mut self, class: Class, welcome: Welcome) {
        let link = &mut self.class_links[class_index(class)];
        let Some(connection) = link.connection else { return };
        link.ready = true;
        link.refused = None;
        let changed = link.changed.clone();
        self.stats.connections += 1;
        self.lost_drives = welcome.lost_drives.into_iter().collect();
        match class {
            Class::Log => {
                self.quota = Some(welcome.quota);
                self.data_shards = welcome.data_shards;
                let replaced = self.log_identity.is_some_and(|known| known != welcome.log);
                self.log_identity = Some(welcome.log);
                self.log.connected(connection);
                if replaced {
                    self.resend_everything();
                }
            }
            Class::Read => self.send_ranges(),
            Class::Bulk => {}
        }
        changed.notify();
        self.progress.notify();
    }

    /// The log is another one (C7): what counts of the unreleased records is appended again, as new records in the
    /// order of the old ones. The new log knows nothing of the gaps between them, and takes none of older epochs (C8).
    fn resend_everything(&mut self) {
        let (sequences, vdisks) = (&mut self.sequences, &self.vdisks);
        sequences.begin_anew();
        let keys = self.buffer.renumber(|vdisk, slice| {
            let epoch = vdisks.get(&vdisk).map_or(Epoch(0), |vdisk| vdisk.epoch);
            Version { epoch, sequence: sequences.take(vdisk, slice) }
        });
        let buffer = &self.buffer;
        let slice_of = |key: &RecordKey| buffer.get(*key).map(|record| record.identity.slice);
        self.log.restart(keys.iter().filter_map(|key| Some((slice_of(key)?, *key))));
        self.log_full = false;
        self.events.push_back(Event::LogReplaced { records: keys.len() });
    }

    fn log_mirrored(&mut self, lane: u8, through: u64) {
        let mut keys = std::mem::take(&mut self.mirrored);
        self.log.mirrored(lane, through, &mut keys);
        reached(Point::HostAppendMirrored);
        let mut published = Vec::new();
        for key in keys.drain(..) {
            let Some(record) = self.buffer.get(key) else { continue };
            let (identity, first) = (record.identity, !record.mirrored);
            let write = record.unpublished;
            self.log_full &= record.in_log;
            // One that another log took again says nothing about how long that takes.
            if first && self.mirror_times.len() < MIRROR_TIMES_MAX {
                self.mirror_times.push(self.now.since(record.taken));
            }
            self.sequences.mirrored(identity.vdisk, identity.slice, identity.version.sequence);
            self.buffer.mirrored(key);
            self.stats.records_mirrored += 1;
            if let Some(write) = write.filter(|_| first) {
                self.writes.end_part(write, &mut published);
            }
        }
        self.mirrored = keys;
        self.publish(published);
        self.progress.notify();
    }

    /// Tells the guests, in the order given, and lets reads go on that waited (C23): these only when all are
    /// published, because what one meets may be the content of another.
    pub fn publish(&mut self, published: Vec<Write>) {
        let mut readers = Vec::new();
        for write in published {
            for key in &write.records {
                self.buffer.published(*key);
            }
            let result = write.failed.map_or(Ok(()), Err);
            if let (Err(_), Some(vdisk)) = (&result, self.vdisks.get_mut(&write.vdisk)) {
                vdisk.stats.errors += 1;
            }
            self.completions.push(GuestCompletion { token: write.token, result, data: None });
            readers.extend(write.readers);
        }
        for (read, block) in readers {
            self.read_again(read, block);
        }
    }

    fn append_refused(&mut self, lane: u8, number: u64, reason: Refusal) -> String {
        if reason == Refusal::Sealed {
            let vdisk = self.log.refused(lane, number).and_then(|key| self.buffer.get(key));
            if let Some(vdisk) = vdisk.map(|record| record.identity.vdisk) {
                self.fence(vdisk);
            }
        }
        format!("append {number} was refused: {reason}")
    }

    /// A newer owner has the vdisk: everything of it ends here, with errors.
    pub fn fence(&mut self, vdisk: VdiskId) {
        if let Some(open) = self.vdisks.get(&vdisk) {
            let expected = open.deleting;
            self.forget(vdisk);
            if !expected {
                self.events.push_back(Event::Fenced { vdisk });
            }
        }
    }

    /// Drops a vdisk: requests in flight fail.
    pub fn forget(&mut self, vdisk: VdiskId) {
        self.vdisks.remove(&vdisk);
        let waiting: Vec<_> =
            self.waiting.keys().filter(|(owner, _)| *owner == vdisk).copied().collect();
        for key in waiting {
            let parts = self.waiting.remove(&key).unwrap_or_default();
            self.reserved -= parts.iter().map(Waiting::reserved).sum::<u64>();
        }
        let mut reads = Vec::new();
        for write in self.writes.abandon(vdisk) {
            reads.extend(write.readers.iter().map(|(read, _)| *read));
            let result = Err(GuestError::NotServed);
            self.completions.push(GuestCompletion { token: write.token, result, data: None });
        }
        let mut open: Vec<ReadKey> = self
            .reads
            .iter()
            .filter(|(_, read)| read.vdisk == vdisk)
            .map(|(key, _)| *key)
            .collect();
        open.sort_unstable();
        for key in open {
            if let Some(read) = self.reads.remove(&key) {
                let result = Err(GuestError::NotServed);
                self.completions.push(GuestCompletion { token: read.token, result, data: None });
            }
        }
        self.forget_reads(vdisk);
        self.buffer.forget(vdisk);
        self.map.forget(vdisk);
        self.fetches.forget(vdisk);
        self.sequences.forget(vdisk);
        if self.run.as_ref().is_some_and(|run| run.vdisk == vdisk) {
            self.run = None;
        }
        self.run_may_be_due = true;
        self.progress.notify();
    }

    /// Sends what the turn brought together.
    pub fn flush(&mut self) -> bool {
        self.evict_pages();
        let sent = self.log.flush(&*self.links, &self.buffer, &self.sequences);
        self.fingerprint_some() || sent
    }

    /// The present figures.
    pub fn figures(&self) -> CoreStats {
        CoreStats {
            buffer_bytes: self.buffer.bytes(),
            buffer_reserved: self.reserved,
            buffer_limit: self.limit(),
            buffer_records: self.buffer.len() as u64,
            buffer_memory: self.buffer.memory().all(),
            buffer_memory_limit: self.memory_limit().all(),
            map_memory: self.map.memory() as u64,
            map_stripes: self.map.stripes() as u64,
            map_resident: self.map.resident(),
            map_leaves: self.map.leaves_resident() as u64,
            commits_overtaken: self.map.overtaken(),
            index_memory: self.index.memory() as u64,
            index_entries: self.index.len().0 as u64,
            stripes_dead: self.vdisks.keys().map(|vdisk| self.map.dead(*vdisk) as u64).sum(),
            connected: self.ready(Class::Log).is_some(),
            appended: self.log.appended,
            appended_bytes: self.log.appended_bytes,
            resent: self.log.resent,
            covered: self.buffer.covered(),
            leases_lost: self.leases_lost(),
            ..self.stats.clone()
        }
    }
}
