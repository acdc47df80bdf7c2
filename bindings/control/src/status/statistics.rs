//! What engines did: counters and latencies.

use super::Fill;
use serde::{Deserialize, Serialize};

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
