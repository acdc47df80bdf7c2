//! The schema of `status` and `stats`; docs/STATUS.md describes the JSON for those who read it.
//!
//! Within a schema number fields are only added, never renamed, removed or given another meaning;
//! readers ignore what they do not know. Counters count from the start of the process they
//! describe. Sizes are bytes, latencies microseconds.

use serde::{Deserialize, Serialize};

/// The number of this schema.
pub const SCHEMA: u32 = 1;

/// Answer to `status` of a whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatus {
    /// [`SCHEMA`].
    pub schema: u32,
    /// 32 hexadecimal digits.
    pub cluster: String,
    /// Whether every vdisk can be read and written now.
    pub ready: bool,
    /// Whether vdisks are encrypted unless told otherwise.
    pub encrypted: bool,
    /// The supervising process.
    pub supervisor: ProcessStatus,
    /// The coordinator store.
    #[serde(default)]
    pub store: StoreStatus,
    /// Every host, in order of ids.
    pub hosts: Vec<HostStatus>,
    /// Every controller, in order of data nodes and controllers.
    pub controllers: Vec<ControllerStatus>,
    /// What a person should know, one line each; empty when all is well.
    pub warnings: Vec<String>,
}

/// The coordinator store.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// `redb`: the supervisor's own; or `etcd`.
    pub kind: String,
    /// Whether it answers the supervisor.
    pub connected: bool,
    /// The process of etcd; `null` when the supervisor serves the store itself.
    pub process: Option<ProcessStatus>,
}

/// Whether a process runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProcessState {
    /// There is no process.
    #[default]
    Down,
    /// It runs, and does not serve yet.
    Starting,
    /// It serves.
    Running,
    /// It is about to end.
    Stopping,
}

/// A process.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ProcessStatus {
    /// The engine's name.
    pub name: String,
    /// The process; `null` when it is down.
    pub pid: Option<u32>,
    /// Whether it runs.
    pub state: ProcessState,
    /// The version of its program; empty when it is down.
    pub version: String,
    /// This start of it, never reused; 0 when it has none yet.
    pub incarnation: u64,
    /// Seconds since it started.
    pub uptime_seconds: u64,
    /// How often it was started again by its supervisor.
    pub restarts: u64,
}

/// A host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStatus {
    /// Its number.
    pub host: u32,
    /// Its engine.
    pub process: ProcessStatus,
    /// Cores that the engine runs on.
    pub cores: u32,
    /// Which these are.
    #[serde(default)]
    pub cpu: HostCpuStatus,
    /// What the engine uses of its memory, by its own count.
    pub memory: Fill,
    /// Resident memory of its process without memory of guests, as the kernel counts it; 0 when it is not known.
    #[serde(default)]
    pub memory_resident: u64,
    /// Whether the coordinator store answers.
    pub store_connected: bool,
    /// Each data node's log, as this host sees it.
    pub logs: Vec<HostLogStatus>,
    /// Why destage waits, when it does: writes stall once the log is full; else `null`.
    #[serde(default)]
    pub shortage: Option<String>,
    /// Its flash.
    #[serde(default)]
    pub flash: HostFlashStatus,
    /// Its vdisks, in order of names.
    pub vdisks: Vec<VdiskStatus>,
}

/// The processors of a host, as its engine uses them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostCpuStatus {
    /// Processors that the engine may use.
    pub processors: u32,
    /// Insane Mode: two fifths of the processors in place of one.
    pub insane: bool,
    /// Cores that an operator asked for; 0: by their share of the processors.
    pub cores_configured: u16,
    /// Cores that there should be.
    pub cores_wanted: u16,
    /// Cores are being started or ended, or vdisks moved because of that.
    pub changing: bool,
    /// Vdisks that moved to another core since the engine started.
    pub moves: u64,
    /// The cores.
    pub cores: Vec<CoreStatus>,
}

/// A core.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CoreStatus {
    /// Its number, which no other core of the engine ever has.
    pub core: u16,
    /// The processor to which it is bound; `null` when it may run on any.
    pub processor: Option<u32>,
    /// Percent of the time that it worked, lately.
    pub busy_percent: f64,
    /// Vdisks that it serves.
    pub vdisks: u32,
}

/// A host's flash.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostFlashStatus {
    /// Its devices, in the order in which they were added.
    pub devices: Vec<FlashStatus>,
    /// What lies in those that are in use.
    pub space: Fill,
    /// What the vdisks that are open hold, in bytes as it is stored: so much flash serves every read.
    pub working_set: u64,
    /// How much of the space the working set leaves; negative when it does not fit.
    pub headroom: i64,
    /// Memory for the tables of what lies where, in bytes.
    pub memory: u64,
    /// What happened to its devices since the engine started, the newest last; of very much only that.
    #[serde(default)]
    pub events: Vec<FlashEventStatus>,
}

/// What happened to a flash device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlashEventStatus {
    /// Seconds since the Unix epoch.
    pub at: u64,
    /// The device's name.
    pub device: String,
    /// First byte of the place, where it was one.
    pub offset: Option<u64>,
    /// For a person.
    pub event: String,
}

/// Whether a flash device is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlashState {
    /// It is being opened, or what it holds is being found out.
    #[default]
    Adding,
    /// It serves reads.
    InUse,
    /// It is not used any more, or could not be.
    Retired,
}

/// A flash device.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlashStatus {
    /// Its name: a path, or `memory:SIZE`.
    pub device: String,
    /// Whether it is used.
    pub state: FlashState,
    /// Why it is retired; empty when it is not.
    pub reason: String,
    /// What lies in it.
    pub space: Fill,
    /// Requests that failed, and places that lost what they were given.
    pub errors: u64,
    /// Places of 128 KiB that are not used any more.
    pub retired_places: u64,
    /// Bytes written to it since it was opened.
    pub bytes_written: u64,
}

/// So much of so much, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fill {
    /// In use.
    pub used: u64,
    /// All.
    pub capacity: u64,
}

/// A data node's log as a host sees it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostLogStatus {
    /// Which data node.
    pub datanode: u16,
    /// Whether writes can be mirrored there now.
    pub writable: bool,
    /// Unreleased records of this host, of its quota.
    pub quota: Fill,
    /// The write buffer: what waits for destage.
    pub write_buffer: Fill,
}

/// A vdisk in a list.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VdiskEntry {
    /// Its name.
    pub name: String,
    /// Its number, never reused.
    pub id: u64,
    /// Bytes.
    pub size: u64,
    /// Whether its blocks are encrypted.
    pub encrypted: bool,
    /// Seconds since the Unix epoch when it was created.
    pub created: u64,
    /// The host that serves it; `null` when none does.
    pub host: Option<u32>,
    /// Where it is served; `null` when it is not.
    pub socket: Option<String>,
    /// Whether a front end is connected.
    pub attached: bool,
}

/// A vdisk on the host that serves it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VdiskStatus {
    /// What it is.
    #[serde(flatten)]
    pub vdisk: VdiskEntry,
    /// What it is doing.
    pub state: VdiskServing,
    /// Ownership epoch; 0 when the host does not own it.
    pub epoch: u64,
    /// The core that serves it, by its number.
    #[serde(default)]
    pub core: u16,
    /// The core of each of its shares, in order; of most vdisks one.
    #[serde(default)]
    pub shares: Vec<u16>,
    /// Queues that the front end uses.
    pub queues: u32,
    /// Requests taken and not completed.
    pub in_flight: u64,
    /// Blocks that hold data, times 4096.
    pub mapped: u64,
}

/// What a served vdisk is doing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VdiskServing {
    /// Not served yet: another engine holds it, or its log is away.
    #[default]
    Waiting,
    /// Its unreleased records are being fetched.
    Recovering,
    /// Requests are served.
    Serving,
    /// It cannot be served; the engine's log says why.
    Failed,
}

/// A controller's part in its data node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// None yet.
    #[default]
    None,
    /// It serves hosts.
    Active,
    /// It holds the mirror.
    Standby,
    /// It copies the log from its peer.
    Joining,
}

/// A controller.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControllerStatus {
    /// The data node's number.
    pub datanode: u16,
    /// Which of the two.
    pub controller: u8,
    /// Its engine.
    pub process: ProcessStatus,
    /// Its part.
    pub role: Role,
    /// The role's epoch.
    pub epoch: u64,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// Whether the link to its peer is up.
    pub peer_connected: bool,
    /// Whether the coordinator store answers.
    pub store_connected: bool,
    /// The mirrored log.
    pub log: LogStatus,
    /// Its stripes; `null` where they are not known: only the active controller counts them.
    pub stripes: Option<StripeStatus>,
    /// The drives that it has open, in order of ids.
    pub drives: Vec<DriveStatus>,
}

/// A controller's log.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LogStatus {
    /// Memory of the log.
    pub memory: Fill,
    /// Records not released.
    pub records: u64,
    /// Hosts that are connected.
    pub hosts: u32,
    /// The controller is alone: what it acknowledges is on these drives first.
    #[serde(default)]
    pub alone_on: Vec<u16>,
    /// Why it does not go on alone, or not with another session of its log on drives; empty: nothing hinders it.
    #[serde(default)]
    pub hindrance: String,
}

/// A data node's stripes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StripeStatus {
    /// Data shards of a new stripe; 0 when drives are too few to write.
    pub data_shards: u32,
    /// Parity shards of a stripe.
    pub parity_shards: u32,
    /// Committed stripes.
    pub committed: u64,
    /// Committed stripes that miss a shard.
    pub degraded: u64,
    /// Committed stripes that miss more shards than parity can solve.
    pub lost: u64,
    /// Bytes of slots that are granted to hosts, for stripes that are not committed yet: each core keeps one for a map
    /// run that frees space in a full pool.
    #[serde(default)]
    pub reserved: u64,
    /// Bytes of slots that are free for nobody until the other controller, whose role this one took over, is heard of.
    #[serde(default)]
    pub held: u64,
    /// How far it is with writing shards anew that are lost.
    #[serde(default)]
    pub rebuild: RebuildStatus,
    /// How far it is with looking at all of them for damage.
    #[serde(default)]
    pub scrub: ScrubStatus,
}

/// A pass over the stripes that lack shards, or the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildStatus {
    /// Whether one is under way.
    pub running: bool,
    /// Stripes that are still to be rebuilt.
    pub waiting: u64,
    /// Stripes that it rebuilt.
    pub done: u64,
    /// Those that lack shards for which no other drive has a free slot; tried again now and then.
    pub without_room: u64,
    /// Those of which fewer shards could be read than it takes; tried again now and then.
    pub unreadable: u64,
    /// Seconds that the rest will take, by how long it took until now; `null` when that is not known.
    pub left: Option<u64>,
}

/// A pass over all stripes, each of which is read whole: what is damaged is written anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether the controller goes on with it: not before it has read from the coordinator store how far it was.
    pub running: bool,
    /// Whether it is to be over soon, as an operator said.
    pub hurried: bool,
    /// Passes that are over.
    pub passes: u64,
    /// What the present one came upon until now.
    pub found: ScrubFigures,
    /// What the last one that is over came upon.
    pub before: ScrubFigures,
    /// Stripes that wait to be looked at before the others, as somebody met damage in them.
    pub suspects: u64,
    /// Seconds until the present one is to be over; `null` when it is hurried, or not running.
    pub left: Option<u64>,
}

/// What a pass of the scrub comes upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubFigures {
    /// Stripes that it looked at.
    pub looked: u64,
    /// Shards that it found damaged.
    pub damaged: u64,
    /// Of these, those that were written anew.
    pub repaired: u64,
    /// Stripes with damage that could not be mended.
    pub unrepairable: u64,
}

/// What `cleave pool status` shows: the drives and stripes of all data nodes, and what hosts did to them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Slots in use and all slots of the drives in use, in bytes, parity included.
    pub space: Fill,
    /// What of the slots in use no stripe has yet: see [`StripeStatus::reserved`].
    pub reserved: u64,
    /// Its stripes; `null` while no controller is active.
    pub stripes: Option<StripeStatus>,
    /// Stripes that were freed since the active controller started.
    pub stripes_freed: u64,
    /// Stripes that nothing of a vdisk names any more: the vdisk leaves them with its next map run, and those that no
    /// other vdisk names are free then. A stripe counts once for each such vdisk.
    pub stripes_dead: u64,
    /// Why destage waits, when it does: writes stall once the log is full; else `null`.
    pub shortage: Option<String>,
    /// The drives, in order of ids.
    pub drives: Vec<DriveStatus>,
}

impl PoolStatus {
    /// From what the engines say.
    pub fn of(status: &ClusterStatus, statistics: &ClusterStatistics) -> PoolStatus {
        let active = status.controllers.iter().find(|one| one.role == Role::Active);
        let drives = active.map(|one| one.drives.clone()).unwrap_or_default();
        let online = drives.iter().filter(|drive| drive.state == DriveState::Online);
        let space = online.fold(Fill::default(), |all, drive| Fill {
            used: all.used + drive.space.used,
            capacity: all.capacity + drive.space.capacity,
        });
        let name = active.map(|one| &one.process.name);
        let freed = statistics.controllers.iter().find(|one| Some(&one.name) == name);
        PoolStatus {
            space,
            reserved: active.and_then(|one| one.stripes.as_ref()).map_or(0, |all| all.reserved),
            stripes: active.and_then(|one| one.stripes.clone()),
            stripes_freed: freed.map_or(0, |one| one.stripes_freed),
            stripes_dead: statistics.hosts.iter().map(|host| host.destage.stripes_dead).sum(),
            shortage: status.hosts.iter().find_map(|host| host.shortage.clone()),
            drives,
        }
    }
}

/// Whether a drive is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriveState {
    /// In use.
    Online,
    /// Gone, or not to be trusted: retired.
    #[default]
    Lost,
}

/// A drive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveStatus {
    /// Its number in the pool.
    pub drive: u16,
    /// Its identity, 32 hexadecimal digits.
    pub uuid: String,
    /// Where it is.
    pub path: String,
    /// Whether it is used.
    pub state: DriveState,
    /// Why it is lost; empty when it is not.
    pub reason: String,
    /// Slots in use and all slots, in bytes.
    pub space: Fill,
    /// Requests that failed.
    pub errors: u64,
    /// Shards whose check failed.
    pub check_failures: u64,
    /// Shards that were found damaged when their stripes were looked at whole.
    #[serde(default)]
    pub damaged: u64,
    /// Of these, those that were written anew elsewhere.
    #[serde(default)]
    pub repaired: u64,
}

/// Answer to `stats` of a whole cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterStatistics {
    /// [`SCHEMA`].
    pub schema: u32,
    /// 32 hexadecimal digits.
    pub cluster: String,
    /// Every host that answered, in order of ids.
    pub hosts: Vec<HostStatistics>,
    /// Every controller that answered, in order of data nodes and controllers.
    pub controllers: Vec<ControllerStatistics>,
}

/// Percentiles of a latency, microseconds: at most 12.5 % too high, never too low.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Latency {
    /// The mean.
    pub mean: f64,
    /// Half took no longer.
    pub p50: f64,
    /// 90 % took no longer.
    pub p90: f64,
    /// 99 % took no longer.
    pub p99: f64,
    /// 99.9 % took no longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// Operations of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OperationStatistics {
    /// Completed, failed ones too.
    pub operations: u64,
    /// Bytes that they covered.
    pub bytes: u64,
    /// Failed.
    pub errors: u64,
    /// From taking the request to publishing its completion.
    pub latency_us: Latency,
}

/// Guest operations by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GuestStatistics {
    /// Reads.
    pub read: OperationStatistics,
    /// Writes.
    pub write: OperationStatistics,
    /// Flushes.
    pub flush: OperationStatistics,
    /// Discards.
    pub discard: OperationStatistics,
    /// Write-zeroes.
    pub write_zeroes: OperationStatistics,
}

/// A vdisk's operations.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct VdiskStatistics {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u64,
    /// What its guest did.
    #[serde(flatten)]
    pub guest: GuestStatistics,
}

/// What a host engine did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostStatistics {
    /// Its number.
    pub host: u32,
    /// The engine's name.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// All vdisks together.
    pub guest: GuestStatistics,
    /// Each vdisk, in order of names.
    pub vdisks: Vec<VdiskStatistics>,
    /// Encoding of blocks.
    pub codec: CodecStatistics,
    /// Appends to the logs.
    pub log: HostLogStatistics,
    /// Destage.
    pub destage: DestageStatistics,
    /// Maps.
    #[serde(default)]
    pub map: MapStatistics,
    /// Where reads were served from.
    pub reads: ReadStatistics,
    /// Flash.
    #[serde(default)]
    pub flash: FlashStatistics,
}

/// What a host's flash did. A part is 128 KiB of a stripe.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct FlashStatistics {
    /// Of the blocks that flash or pool served, the percentage that flash did; 0 when there were none.
    pub hit_percent: f64,
    /// Reads, and the bytes that they brought.
    pub reads: u64,
    /// See `reads`.
    pub read_bytes: u64,
    /// Blocks that failed their check; the pool had them.
    pub check_failures: u64,
    /// Reads that took too long, and were served by the pool.
    pub late_reads: u64,
    /// Bytes written: parts, what eviction moved, headers.
    pub bytes_written: u64,
    /// Parts that destage wrote.
    pub parts_destaged: u64,
    /// Parts that misses brought from the pool.
    pub parts_fetched: u64,
    /// Parts that there was no room for at the moment.
    pub parts_refused: u64,
    /// Parts that eviction moved because they were read.
    pub parts_moved: u64,
    /// Parts that eviction dropped.
    pub parts_evicted: u64,
}

/// Encoding of blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct CodecStatistics {
    /// Blocks encoded.
    pub blocks: u64,
    /// All-zero blocks, which are not encoded.
    pub zero_blocks: u64,
    /// Blocks that did not shrink.
    pub stored_blocks: u64,
    /// Bytes of guest data encoded.
    pub bytes_in: u64,
    /// Bytes of frames.
    pub bytes_out: u64,
    /// `bytes_in / bytes_out`; 1 when nothing was encoded.
    pub compression_ratio: f64,
    /// Frames that failed their check when read; they were solved from redundancy, or failed.
    pub check_failures: u64,
}

impl CodecStatistics {
    /// Sets the ratio from the bytes.
    pub fn with_ratio(mut self) -> CodecStatistics {
        self.compression_ratio = match self.bytes_out {
            0 => 1.0,
            bytes_out => self.bytes_in as f64 / bytes_out as f64,
        };
        self
    }
}

/// A host's appends to the logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostLogStatistics {
    /// Records appended.
    pub records: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Records sent again after a connection was lost.
    pub resent: u64,
    /// Records released by commits.
    pub released: u64,
    /// Requests that had to wait for room.
    pub stalls: u64,
    /// From append to mirrored acknowledgement.
    pub latency_us: Latency,
}

/// Destage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DestageStatistics {
    /// Stripes committed.
    pub stripes: u64,
    /// Frames in them.
    pub frames: u64,
    /// Bytes of those frames.
    pub frame_bytes: u64,
    /// Bytes written to drives: data, parity and headers.
    pub drive_bytes: u64,
    /// Frames that a newer write covered before they were destaged.
    pub covered: u64,
    /// Blocks whose content was in the pool already: references in place of frames.
    #[serde(default)]
    pub deduplicated: u64,
    /// Blocks whose content can be recognised.
    #[serde(default)]
    pub recognisable: u64,
    /// Stripes that vdisks left, because nothing of theirs names them any more.
    #[serde(default)]
    pub stripes_left: u64,
    /// Stripes that nothing of a vdisk names any more, and that it has not left yet, for each vdisk.
    #[serde(default)]
    pub stripes_dead: u64,
    /// Stripes that were given up and written anew.
    pub retries: u64,
}

/// The maps of a host's vdisks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MapStatistics {
    /// Bytes of the parts that are in memory and can be read again, and what they may be.
    pub pages: Fill,
    /// Leaves in memory; each is the map of 2 MiB of a vdisk.
    pub leaves: u64,
    /// Bytes of everything that maps keep in memory: tables of stripes and pieces too.
    pub memory: u64,
    /// Pieces read from flash or pool.
    pub read: u64,
    /// Pieces that could not be read.
    pub failed: u64,
    /// Parts that left memory.
    pub evicted: u64,
}

/// Blocks read, by the place that served them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ReadStatistics {
    /// Unmapped or zero.
    pub zero: u64,
    /// The write buffer.
    pub write_buffer: u64,
    /// This host's flash.
    pub flash: u64,
    /// Another host's flash.
    pub peer_flash: u64,
    /// The pool.
    pub pool: u64,
    /// The pool, around a lost or damaged shard.
    pub solved: u64,
}

/// What a controller did.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ControllerStatistics {
    /// The data node's number.
    pub datanode: u16,
    /// Which of the two.
    pub controller: u8,
    /// The engine's name.
    pub name: String,
    /// The process.
    pub pid: u32,
    /// Records taken from hosts or from its peer; on the active, latencies are of appends, from their
    /// receipt until they are mirrored.
    pub appends: OperationStatistics,
    /// Records refused: fenced, out of order, or without room.
    pub refused: u64,
    /// Records released by commits.
    pub released: u64,
    /// Commits taken.
    pub commits: u64,
    /// Committed stripes freed since, because no vdisk names them any more.
    #[serde(default)]
    pub stripes_freed: u64,
    /// Records that were found to have rotted in the log's memory.
    #[serde(default)]
    pub records_rotted: u64,
    /// Those that were mended from the other controller's copy.
    #[serde(default)]
    pub records_mended: u64,
    /// Those of which nothing told the blocks any more.
    #[serde(default)]
    pub records_given_up: u64,
    /// Commits, or vdisks of commits, struck because of a newer owner.
    pub struck: u64,
    /// From forwarding to the peer's acknowledgement.
    pub mirror_latency_us: Latency,
    /// Shard reads served.
    pub shard_reads: OperationStatistics,
    /// Shard writes done.
    pub shard_writes: OperationStatistics,
    /// Each drive, in order of ids.
    pub drives: Vec<DriveStatistics>,
}

/// What a drive did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveStatistics {
    /// Its number in the pool.
    pub drive: u16,
    /// Reads.
    pub read: OperationStatistics,
    /// Writes.
    pub write: OperationStatistics,
    /// Flushes.
    pub flush: OperationStatistics,
    /// Bytes of shards that were read whole to look for damage, and had none.
    #[serde(default)]
    pub scrubbed_bytes: u64,
}

#[cfg(test)]
mod tests;
