//! How long things took, for statistics: recorded on the core's thread without allocation.

use cleave_control::histogram::Histogram;
use cleave_control::status::OperationStatistics;
use std::cell::RefCell;
use std::time::Duration;

/// Operations of one kind.
#[derive(Debug, Default)]
pub struct Operations {
    operations: u64,
    bytes: u64,
    errors: u64,
    latency: Histogram,
}

impl Operations {
    fn record(&mut self, took: Duration, bytes: usize, ok: bool) {
        self.operations += 1;
        self.bytes += bytes as u64;
        self.errors += u64::from(!ok);
        self.latency.record(nanoseconds(took));
    }

    /// As statistics show them.
    pub fn shown(&self) -> OperationStatistics {
        let Operations { operations, bytes, errors, ref latency } = *self;
        OperationStatistics { operations, bytes, errors, latency_us: latency.latency() }
    }
}

/// What a controller measures.
#[derive(Debug, Default)]
pub struct Measures {
    /// Appends, from their receipt until they are mirrored.
    pub appends: RefCell<Histogram>,
    /// From forwarding to the peer's acknowledgement.
    pub mirror: RefCell<Histogram>,
    /// Ranges of shards read.
    pub shard_reads: RefCell<Operations>,
    /// Shards written and flushed.
    pub shard_writes: RefCell<Operations>,
}

impl cleave_datanode_core::Observer for Measures {
    fn appended(&self, took: Duration) {
        self.appends.borrow_mut().record(nanoseconds(took));
    }

    fn mirrored(&self, took: Duration) {
        self.mirror.borrow_mut().record(nanoseconds(took));
    }

    fn shard_read(&self, took: Duration, bytes: usize, ok: bool) {
        self.shard_reads.borrow_mut().record(took, bytes, ok);
    }

    fn shard_written(&self, took: Duration, ok: bool) {
        self.shard_writes.borrow_mut().record(took, cleave_format::layout::SLOT, ok);
    }
}

fn nanoseconds(took: Duration) -> u64 {
    u64::try_from(took.as_nanos()).unwrap_or(u64::MAX)
}
