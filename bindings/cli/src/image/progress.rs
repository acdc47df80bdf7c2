//! What who waits is told: how far a transfer is, once a second on a terminal, else every ten.

use cleave_control::size::format_size;
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Progress of one transfer.
pub struct Progress {
    verb: &'static str,
    total: u64,
    done: u64,
    zeros: u64,
    quiet: bool,
    every: Duration,
    since: Instant,
    told: Instant,
}

impl Progress {
    /// Of a transfer of so many bytes.
    pub fn new(verb: &'static str, total: u64, quiet: bool) -> Progress {
        let every = if std::io::stderr().is_terminal() { 1 } else { 10 };
        let now = Instant::now();
        let every = Duration::from_secs(every);
        Progress { verb, total, done: 0, zeros: 0, quiet, every, since: now, told: now }
    }

    /// So many more bytes are there; `zeros` of them were not carried over.
    pub fn add(&mut self, bytes: u64, zeros: u64) {
        self.done += bytes;
        self.zeros += zeros;
        if !self.quiet && self.told.elapsed() >= self.every {
            self.told = Instant::now();
            eprintln!("{}", self.line());
        }
    }

    /// The last line.
    pub fn end(&self) {
        if !self.quiet {
            eprintln!("{}", self.line());
        }
    }

    fn line(&self) -> String {
        let Progress { verb, total, done, zeros, since, .. } = self;
        let data = done - zeros;
        let rate = data as f64 / since.elapsed().as_secs_f64().max(1e-3) / 1e6;
        let percent = done.saturating_mul(100).checked_div(*total).unwrap_or(100);
        format!(
            "{verb} {percent} %: {} of {}, {} of it data, {rate:.0} MB/s",
            format_size(*done),
            format_size(*total),
            format_size(data),
        )
    }
}
