//! What a core is started with.

use cleave_format::ids::{ClusterId, HostId, Incarnation};
use cleave_runtime::links::PeerAddress;
use std::time::Duration;

/// Settings of one core.
#[derive(Clone, Debug)]
pub struct HostCoreConfig {
    /// The cluster; its certificates carry it.
    pub cluster: ClusterId,
    /// This host.
    pub host: HostId,
    /// This start of the engine, from the coordinator store, never used before (C29).
    pub incarnation: Incarnation,
    /// This core's number.
    pub core: u16,
    /// Cores of the engine; the log's quota is divided by it.
    pub cores: u16,
    /// The home data node's controllers, in the order in which they are tried.
    pub controllers: Vec<PeerAddress>,
    /// Most bytes of records in this core's write buffer; the log's quota may allow less.
    pub write_buffer: u64,
    /// Bytes of memory that this core may use: the write buffer gets what maps, and stripes and reads on their way,
    /// leave of it, and never less than a quarter.
    pub memory: u64,
    /// Bytes of it for the fingerprint index: 56 and a little for each block that can be recognised. 0: nothing is
    /// recognised.
    pub dedupe: u64,
    /// Bytes of it for the parts of maps that can be read again. What changed since its last run, and what a stripe on
    /// its way changes, stays in memory also beyond that; runs are begun so that it is about half.
    pub map: u64,
    /// When destage writes stripes.
    pub destage: DestageConfig,
}

/// What a core has of the engine's, by the number of cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreShare {
    /// As [`HostCoreConfig::cores`].
    pub cores: u16,
    /// As [`HostCoreConfig::write_buffer`].
    pub write_buffer: u64,
    /// As [`HostCoreConfig::memory`].
    pub memory: u64,
    /// As [`HostCoreConfig::map`].
    pub map: u64,
}

/// When destage writes stripes, and how many at a time.
#[derive(Clone, Debug)]
pub struct DestageConfig {
    /// From this share of the write buffer on stripes are written at once, in percent.
    pub fill_percent: u64,
    /// A full stripe of content waits this long.
    pub full_after: Duration,
    /// Content of at least a quarter of a stripe waits this long.
    pub age_after: Duration,
    /// Stripes on their way at a time.
    pub stripes_max: usize,
    /// Shards of one stripe on their way at a time.
    pub shards_max: usize,
    /// Commits after a vdisk's frontier from which on a map run is considered.
    pub run_after: usize,
    /// Commits after a vdisk's frontier at which a map run is written in any case.
    pub run_always: usize,
}

impl Default for DestageConfig {
    fn default() -> DestageConfig {
        DestageConfig {
            fill_percent: 50,
            full_after: Duration::from_secs(1),
            age_after: Duration::from_secs(60),
            stripes_max: 2,
            shards_max: 4,
            run_after: 32,
            run_always: 512,
        }
    }
}
