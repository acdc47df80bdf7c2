//! The schema of `status` and `stats`; docs/STATUS.md describes the JSON for those who read it.
//!
//! Within a schema number fields are only added, never renamed, removed or given another meaning;
//! readers ignore what they do not know. Counters count from the start of the process they
//! describe. Sizes are bytes, latencies microseconds.
//!
//! | Module | Owns |
//! | --- | --- |
//! | this one | engines, hosts, vdisks, logs |
//! | [`pool`] | stripes, drives, rebuild and scrub |
//! | [`statistics`] | the answer to `stats` |

pub mod pool;
pub mod statistics;

pub use pool::*;
pub use statistics::*;

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

#[cfg(test)]
mod tests;
