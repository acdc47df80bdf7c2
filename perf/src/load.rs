//! A polling front end that keeps a queue full and takes the time of each request.
//!
//! Every block that is read was written before by the fill, so reads never hit unmapped space.

use crate::{Failure, fill_block};
use clap::ValueEnum;
use cleave_front_end::{Buffers, Connection};
use cleave_verify::content::SECTOR;
use cleave_verify::random::Random;
use cleave_verify::workload::TRANSFER_MAX;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// What to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Pattern {
    /// Random reads.
    Read,
    /// Random writes of new content.
    Write,
}

/// Arguments of `load`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The disk's socket.
    pub socket: PathBuf,
    /// Reads or writes.
    #[arg(long, value_enum, default_value = "read")]
    pub pattern: Pattern,
    /// Bytes of a request, a multiple of 4096, at most 65536.
    #[arg(long, default_value_t = 4096)]
    pub block: usize,
    /// Requests in flight.
    #[arg(long, default_value_t = 32)]
    pub depth: usize,
    /// Seconds to measure.
    #[arg(long, default_value_t = 3.0)]
    pub seconds: f64,
    /// Bytes at the beginning of the disk to use.
    #[arg(long, default_value_t = 256 << 20)]
    pub span: u64,
    /// Write the whole span first.
    #[arg(long)]
    pub fill: bool,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Requests a second.
    pub iops: f64,
    /// Median, in microseconds.
    pub p50_us: f64,
    /// 99th percentile, in microseconds.
    pub p99_us: f64,
    /// Requests measured.
    pub requests: u64,
    /// Seconds measured.
    pub seconds: f64,
}

/// Runs and prints one line of JSON.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut load = Load::connect(&arguments.socket, arguments.depth)?;
    if arguments.fill {
        load.fill(arguments.span)?;
    }
    let span = Duration::from_secs_f64(arguments.seconds);
    let figures =
        load.measure(arguments.pattern, arguments.block, arguments.depth, arguments.span, span)?;
    println!("{}", serde_json::to_string(&figures)?);
    Ok(())
}

/// A connected front end.
pub struct Load {
    connection: Connection,
    buffers: Buffers,
    seed: u64,
}

impl Load {
    /// Connects with one queue, for at most `depth` requests in flight.
    pub fn connect(socket: &Path, depth: usize) -> Result<Load, Failure> {
        let buffers = Buffers::new(depth.max(32), TRANSFER_MAX)?;
        let connection = Connection::open(socket, 1, depth.max(32), &buffers)?;
        Ok(Load { connection, buffers, seed: 1 })
    }

    /// Writes every block of the first `span` bytes, 64 KiB at a time.
    pub fn fill(&mut self, span: u64) -> Result<(), Failure> {
        let requests = span / TRANSFER_MAX as u64;
        let mut next = 0..requests;
        self.run(32, TRANSFER_MAX, |_| next.next().map(|n| n * TRANSFER_MAX as u64), true, |_| {})?;
        Ok(())
    }

    /// Keeps `depth` requests in flight for `time` (after a tenth of it as warm-up).
    pub fn measure(
        &mut self,
        pattern: Pattern,
        block: usize,
        depth: usize,
        span: u64,
        time: Duration,
    ) -> Result<Figures, Failure> {
        if block == 0 || !block.is_multiple_of(4096) || block > TRANSFER_MAX || depth == 0 {
            return Err("block must be a multiple of 4096 up to 65536, depth at least 1".into());
        }
        self.seed += 1;
        let mut random = Random::new(self.seed);
        let blocks = span / block as u64;
        let start = Instant::now();
        let begin = start + time / 10;
        let end = begin + time;
        let mut latencies = Vec::with_capacity(1 << 20);
        let write = pattern == Pattern::Write;
        self.run(
            depth,
            block,
            |now| (now < end).then(|| random.below(blocks) * block as u64),
            write,
            |(submitted, done)| {
                if submitted >= begin && done <= end {
                    latencies.push((done - submitted).as_nanos() as u64);
                }
            },
        )?;
        if latencies.is_empty() {
            return Err("no request completed within the time".into());
        }
        latencies.sort_unstable();
        let at =
            |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize] as f64 / 1000.0;
        Ok(Figures {
            iops: latencies.len() as f64 / time.as_secs_f64(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            requests: latencies.len() as u64,
            seconds: time.as_secs_f64(),
        })
    }

    /// Keeps up to `depth` requests in flight until `next` gives no more offsets.
    fn run(
        &mut self,
        depth: usize,
        block: usize,
        mut next: impl FnMut(Instant) -> Option<u64>,
        write: bool,
        mut finished: impl FnMut((Instant, Instant)),
    ) -> Result<(), Failure> {
        let mut free: Vec<usize> = (0..depth).collect();
        let mut submitted = vec![Instant::now(); depth];
        let mut done = Vec::new();
        let mut more = true;
        let mut number = 0u64;
        while more || free.len() < depth {
            let now = Instant::now();
            let mut queued = false;
            while more && let Some(slot) = free.last().copied() {
                let Some(offset) = next(now) else {
                    more = false;
                    break;
                };
                free.pop();
                let sector = offset / SECTOR as u64;
                if write {
                    number += 1;
                    for (index, part) in
                        self.buffers.slot(slot)[..block].chunks_exact_mut(4096).enumerate()
                    {
                        let unique = number * 16 + index as u64;
                        // Most of the content stays from the last use of the slot: only what makes it unique is
                        // new, so that the front end costs little.
                        if part[4088..] == [0; 8] {
                            fill_block(part, unique, self.seed);
                        }
                        part[..8].copy_from_slice(&(unique ^ self.seed << 48).to_le_bytes());
                    }
                    self.connection.write(slot, sector, block, &self.buffers)?;
                } else {
                    self.connection.read(slot, sector, block, &self.buffers)?;
                }
                submitted[slot] = now;
                queued = true;
            }
            if queued {
                self.connection.notify()?;
            }
            self.connection.completed(&mut done);
            let now = Instant::now();
            for one in done.drain(..) {
                if one.result != 0 {
                    return Err(format!("the disk answered with error {}", one.result).into());
                }
                finished((submitted[one.slot], now));
                free.push(one.slot);
            }
        }
        Ok(())
    }
}
