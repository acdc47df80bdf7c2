//! What guests did, by kind, with latencies: recorded on the core without allocation, but for a
//! histogram at the first operation of a kind.

use cleave_control::histogram::Histogram;
use cleave_control::status::{GuestStatistics, OperationStatistics};
use cleave_host_core::VdiskStats;

/// What a guest asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub enum Kind {
    /// A read.
    Read,
    /// A write.
    Write,
    /// A flush.
    Flush,
    /// A discard.
    Discard,
    /// A write-zeroes.
    WriteZeroes,
}

const KINDS: usize = 5;

#[derive(Clone, Debug, Default)]
struct Operations {
    operations: u64,
    bytes: u64,
    errors: u64,
    latency: Option<Box<Histogram>>,
}

/// Operations of a vdisk, or of many.
#[derive(Clone, Debug, Default)]
pub struct Measures([Operations; KINDS]);

impl Measures {
    /// Counts one operation.
    pub fn record(&mut self, kind: Kind, bytes: u64, nanoseconds: u64, ok: bool) {
        let operations = &mut self.0[kind as usize];
        operations.operations += 1;
        operations.bytes += bytes;
        operations.errors += u64::from(!ok);
        operations.latency.get_or_insert_default().record(nanoseconds);
    }

    /// Adds what others did.
    pub fn merge(&mut self, other: &Measures) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            mine.operations += theirs.operations;
            mine.bytes += theirs.bytes;
            mine.errors += theirs.errors;
            if let Some(latency) = &theirs.latency {
                mine.latency.get_or_insert_default().merge(latency);
            }
        }
    }

    /// As statistics show them.
    pub fn shown(&self) -> GuestStatistics {
        let shown = |kind: Kind| {
            let Operations { operations, bytes, errors, latency } = &self.0[kind as usize];
            let latency_us = latency.as_ref().map(|latency| latency.latency()).unwrap_or_default();
            let (operations, bytes, errors) = (*operations, *bytes, *errors);
            OperationStatistics { operations, bytes, errors, latency_us }
        };
        GuestStatistics {
            read: shown(Kind::Read),
            write: shown(Kind::Write),
            flush: shown(Kind::Flush),
            discard: shown(Kind::Discard),
            write_zeroes: shown(Kind::WriteZeroes),
        }
    }
}

/// What a share's requests cost its core, in nanoseconds, roughly: to tell shares of a core apart. A request costs some
/// microseconds; data that is written is encoded, checked, sent and packed, data that is read is checked and decoded.
pub fn cost(stats: &VdiskStats) -> u64 {
    const REQUEST: u64 = 8_000;
    (stats.reads + stats.writes + stats.discards) * REQUEST
        + stats.read_bytes
        + stats.write_bytes * 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_counted_apart_and_added() {
        let mut one = Measures::default();
        one.record(Kind::Read, 4096, 1000, true);
        one.record(Kind::WriteZeroes, 512, 3000, false);
        let mut all = Measures::default();
        all.record(Kind::Read, 512, 2000, true);
        all.merge(&one);
        let shown = all.shown();
        assert_eq!((shown.read.operations, shown.read.bytes, shown.read.errors), (2, 4608, 0));
        assert_eq!((shown.write_zeroes.operations, shown.write_zeroes.errors), (1, 1));
        assert_eq!(shown.read.latency_us.max, 2.0);
        assert_eq!(shown.write, OperationStatistics::default());
    }

    #[test]
    fn writes_cost_more_than_reads() {
        let none = VdiskStats::default();
        let read = |bytes| cost(&VdiskStats { reads: 1, read_bytes: bytes, ..none.clone() });
        let write = |bytes| cost(&VdiskStats { writes: 1, write_bytes: bytes, ..none.clone() });
        assert!(write(4096) > read(4096));
        assert!(read(65_536) > read(4096));
        assert_eq!(cost(&VdiskStats { discards: 1, ..none.clone() }), read(0));
    }
}
