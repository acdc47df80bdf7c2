//! Delays and limits of the simulated hardware, and the counters of what happened.

use std::time::Duration;

/// A range of durations from which a delay is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// The shortest.
    pub min: Duration,
    /// The longest; taken as `min` when it is less.
    pub max: Duration,
}

impl Span {
    /// From `min` to `max`, in microseconds.
    pub const fn micros(min: u64, max: u64) -> Span {
        Span { min: Duration::from_micros(min), max: Duration::from_micros(max) }
    }
}

/// How the simulated hardware behaves when no fault is injected.
#[derive(Clone, Debug)]
pub struct Settings {
    /// One-way delay of a message. One in 64 takes eight times as long.
    pub latency: Span,
    /// Bytes a second that one side of a connection hands to the network.
    pub bandwidth: u64,
    /// After this much silence a side gives a connection up; also the limit for connecting.
    pub idle_timeout: Duration,
    /// How long a side takes to notice that its peer crashed or that the connection broke.
    pub detection: Span,
    /// Time of a read, without the transfer.
    pub drive_read: Span,
    /// Time of a write or discard, without the transfer.
    pub drive_write: Span,
    /// Time of a flush.
    pub drive_flush: Span,
    /// Bytes a second of a drive's transfers.
    pub drive_bandwidth: u64,
    /// Clocks of processes run faster or slower than virtual time by at most this many parts per
    /// million.
    pub clock_drift_ppm_max: u64,
    /// A quarter of all deliveries wait for at most this long until the process looks, so that
    /// it meets several at once.
    pub turn_delay_max: Duration,
    /// Whether contents of messages and drive requests enter the trace hash. To be switched off
    /// where they hold keys from the system's generator.
    pub trace_contents: bool,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            latency: Span::micros(5, 60),
            bandwidth: 3_000_000_000,
            idle_timeout: Duration::from_secs(2),
            detection: Span::micros(100, 1_000_000),
            drive_read: Span::micros(50, 300),
            drive_write: Span::micros(15, 200),
            drive_flush: Span::micros(50, 2_000),
            drive_bandwidth: 2_000_000_000,
            clock_drift_ppm_max: 100,
            turn_delay_max: Duration::from_micros(20),
            trace_contents: true,
        }
    }
}

/// What happened in a world so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Events delivered.
    pub events: u64,
    /// Turns that processes ran.
    pub turns: u64,
    /// Turns cut short because the process did not come to rest; many of them mean a busy loop.
    pub turns_cut_short: u64,
    /// Processes started.
    pub processes_started: u64,
    /// Processes killed.
    pub processes_killed: u64,
    /// Processes started whose clocks are off by more than a part in a thousand.
    pub clocks_skewed: u64,
    /// Pauses of processes.
    pub pauses: u64,
    /// Connections begun.
    pub connections: u64,
    /// Connections refused because nobody of that name listened.
    pub connections_refused: u64,
    /// Connections broken by a fault (crash of a side not counted).
    pub connections_broken: u64,
    /// Cuts made between processes, one per direction.
    pub cuts: u64,
    /// Sides that gave a connection up after silence.
    pub timeouts: u64,
    /// Messages taken by `send`.
    pub messages_sent: u64,
    /// Messages delivered.
    pub messages_delivered: u64,
    /// Bytes of delivered messages.
    pub message_bytes_delivered: u64,
    /// Messages lost with their connection.
    pub messages_lost: u64,
    /// Messages that the network held for several times the usual delay.
    pub messages_delayed: u64,
    /// Messages delivered before an older one of another lane of their connection.
    pub messages_overtaking: u64,
    /// Reads that drives finished, with success or not.
    pub reads: u64,
    /// Writes that drives finished, with success or not.
    pub writes: u64,
    /// Flushes that drives finished, with success or not.
    pub flushes: u64,
    /// Discards that drives finished, with success or not.
    pub discards: u64,
    /// Requests outside a drive or not aligned to pages: mistakes of the caller.
    pub requests_invalid: u64,
    /// Requests failed by an injected error.
    pub drive_errors: u64,
    /// Reads failed by a latent sector error.
    pub sector_errors: u64,
    /// Requests to a drive that was slowed down.
    pub requests_slow: u64,
    /// Requests to a drive that hung.
    pub requests_hung: u64,
    /// Requests answered by "lost".
    pub requests_lost: u64,
    /// Writes that found no space.
    pub no_space: u64,
    /// Writes that went to a wrong place.
    pub writes_misdirected: u64,
    /// Bits flipped.
    pub bits_flipped: u64,
    /// Pages made unreadable.
    pub pages_spoiled: u64,
    /// Drives slowed down.
    pub drives_slowed: u64,
    /// Drives made to hang.
    pub drives_hung: u64,
    /// Drives whose space was used up.
    pub drives_full: u64,
    /// Drives lost.
    pub drives_lost: u64,
    /// Power losses of drives.
    pub power_losses: u64,
    /// Unflushed page writes that a power loss kept.
    pub pages_kept: u64,
    /// Unflushed page writes that a power loss dropped.
    pub pages_dropped: u64,
    /// Writes in flight at a crash whose pages all landed.
    pub writes_landed: u64,
    /// Writes in flight at a crash or an error of which some pages landed and some did not.
    pub writes_torn: u64,
    /// Writes in flight at a crash of which nothing landed.
    pub writes_vanished: u64,
}
