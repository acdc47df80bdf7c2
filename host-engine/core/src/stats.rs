//! Figures of a core and of its vdisks: counters since the start, and the present state.

/// Of one vdisk.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VdiskStats {
    /// Reads, and bytes that they gave.
    pub reads: u64,
    /// See [`reads`](VdiskStats::reads).
    pub read_bytes: u64,
    /// Writes, and bytes that they brought.
    pub writes: u64,
    /// See [`writes`](VdiskStats::writes).
    pub write_bytes: u64,
    /// Discards and write-zeroes.
    pub discards: u64,
    /// Bytes of blocks that became frames, and bytes of these frames.
    pub encoded_bytes: u64,
    /// See [`encoded_bytes`](VdiskStats::encoded_bytes).
    pub frame_bytes: u64,
    /// Blocks that were all zeros.
    pub zero_blocks: u64,
    /// Blocks whose frames did not shrink.
    pub stored_blocks: u64,
    /// Requests that failed.
    pub errors: u64,
    /// Blocks that the map has a frame for, as far as it is counted; what is only in the write buffer is not.
    pub mapped_blocks: u64,
    /// Commits after the map's frontier.
    pub commits_after_frontier: u64,
    /// Size in bytes.
    pub size: u64,
    /// Ownership epoch.
    pub epoch: u64,
}

/// Of one core.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreStats {
    /// Bytes of records in the write buffer, which the log still holds or is about to.
    pub buffer_bytes: u64,
    /// Bytes promised to requests that were taken and wait for others of their blocks.
    pub buffer_reserved: u64,
    /// What both may be together at most at present.
    pub buffer_limit: u64,
    /// Records in the write buffer.
    pub buffer_records: u64,
    /// Memory of the write buffer, in bytes: not less than it is.
    pub buffer_memory: u64,
    /// What this may be at most at present.
    pub buffer_memory_limit: u64,
    /// Memory of the maps, about, in bytes.
    pub map_memory: u64,
    /// Memory of the parts of maps that can be read again from their pieces, in bytes, about; and leaves in it.
    pub map_resident: u64,
    /// See [`map_resident`](CoreStats::map_resident).
    pub map_leaves: u64,
    /// Pieces of maps that were read, those that could not be, and groups that left memory.
    pub pages_read: u64,
    /// See [`pages_read`](CoreStats::pages_read).
    pub pages_failed: u64,
    /// See [`pages_read`](CoreStats::pages_read).
    pub pages_evicted: u64,
    /// Stripes that the maps name, as far as they are counted.
    pub map_stripes: u64,
    /// Records sent to the log, resends included, and their bytes.
    pub appended: u64,
    /// See [`appended`](CoreStats::appended).
    pub appended_bytes: u64,
    /// Records sent again after a connection was lost.
    pub resent: u64,
    /// Records mirrored.
    pub records_mirrored: u64,
    /// Blocks' contents that a newer write covered before they were destaged.
    pub covered: u64,
    /// Blocks read from the write buffer, from flash, from the pool, and without a frame.
    pub reads_buffer: u64,
    /// See [`reads_buffer`](CoreStats::reads_buffer).
    pub reads_flash: u64,
    /// See [`reads_buffer`](CoreStats::reads_buffer).
    pub reads_pool: u64,
    /// See [`reads_buffer`](CoreStats::reads_buffer).
    pub reads_zero: u64,
    /// Reads that were held when they were last looked at, because the lease had run out (C9).
    pub reads_held: u64,
    /// Bytes of ranges that the pool gave.
    pub pool_bytes: u64,
    /// Frames from flash whose check failed (C3); the pool had them.
    pub flash_checks_failed: u64,
    /// Parts that misses brought to flash.
    pub parts_fetched: u64,
    /// Parts that destage gave to flash, and those that flash did not take or write in time.
    pub parts_destaged: u64,
    /// See [`parts_destaged`](CoreStats::parts_destaged).
    pub parts_not_kept: u64,
    /// Ranges that were solved from other shards.
    pub reads_solved: u64,
    /// Where the last range should have been that was to be solved: drive, stripe, shard.
    pub last_solved: Option<(cleave_format::ids::DriveId, cleave_format::ids::StripeId, u16)>,
    /// Vdisks whose lease has run out (C9).
    pub leases_lost: u64,
    /// Frames and ranges whose check failed (C3); they were solved from other shards.
    pub checks_failed: u64,
    /// Stripes committed, and bytes of their data sections that were used.
    pub stripes_committed: u64,
    /// See [`stripes_committed`](CoreStats::stripes_committed).
    pub stripe_bytes: u64,
    /// Frames of blocks in these stripes.
    pub stripe_frames: u64,
    /// Bytes written to drives for them: data, parity, headers.
    pub drive_bytes: u64,
    /// Stripes that were given up and packed again.
    pub stripes_abandoned: u64,
    /// Frames in the write buffer that cannot be destaged.
    pub damaged: u64,
    /// Commits without a stripe.
    pub stripeless_commits: u64,
    /// Records released.
    pub records_released: u64,
    /// Map runs begun, completed, and pieces that they wrote.
    pub runs_begun: u64,
    /// See [`runs_begun`](CoreStats::runs_begun).
    pub runs: u64,
    /// See [`runs_begun`](CoreStats::runs_begun).
    pub pieces: u64,
    /// Blocks whose content lay in the pool already: references in place of frames (C19).
    pub deduplicated: u64,
    /// Memory of the fingerprint index, and blocks that it knows.
    pub index_memory: u64,
    /// See [`index_memory`](CoreStats::index_memory).
    pub index_entries: u64,
    /// Blocks that had newer content when a commit came, or when a record was replayed (C2).
    pub commits_overtaken: u64,
    /// See [`commits_overtaken`](CoreStats::commits_overtaken).
    pub replays_overtaken: u64,
    /// Stripes that vdisks left, because nothing of theirs names them any more.
    pub stripes_left: u64,
    /// Stripes that nothing of a vdisk names any more, and that it has not left yet, for each vdisk.
    pub stripes_dead: u64,
    /// Requests that were not taken at first, because the write buffer was full.
    pub refused: u64,
    /// Connections that became good.
    pub connections: u64,
    /// Whether the log connection is good.
    pub connected: bool,
    /// Why destage waits, when it does.
    pub shortage: Option<String>,
}

/// Something that whoever runs the core should know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A newer owner took the vdisk, or it was deleted: it is not served any more (C8).
    Fenced {
        /// The vdisk.
        vdisk: cleave_format::ids::VdiskId,
    },
    /// The controllers will never talk to this process: it should end.
    Rejected {
        /// Why.
        reason: String,
    },
    /// The data node began an empty log; what this core holds was sent again (C7).
    LogReplaced {
        /// Records that were sent again.
        records: usize,
    },
    /// A mirrored block cannot be read back: memory or a controller damaged it. It stays in the log, and reads
    /// of it fail, until it is written again; everything else goes on.
    Damaged {
        /// The vdisk.
        vdisk: cleave_format::ids::VdiskId,
        /// The block.
        block: cleave_format::ids::BlockIndex,
    },
    /// The pool gives no slots, or takes no shards: writes will stall when the log is full.
    Shortage {
        /// Why.
        reason: String,
    },
}

impl crate::solve::ShardRange {
    /// Where it should have been, for operators.
    pub(crate) fn last_solved(
        &self,
    ) -> Option<(cleave_format::ids::DriveId, cleave_format::ids::StripeId, u16)> {
        let place = self.places.get(self.shard)?;
        Some((place.drive, self.stripe, self.shard as u16))
    }
}
