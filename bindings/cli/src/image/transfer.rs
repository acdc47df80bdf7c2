//! Requests to a vdisk, several in flight, each done once or the transfer fails.
//!
//! Whoever transfers says what comes next and takes what was read. When the engine goes away (it restarts, or
//! a newer one takes over), what was in flight is asked for again on a new connection: nobody else writes the
//! vdisk meanwhile, so doing it twice changes nothing.

use crate::error::{Error, Result, system};
use cleave_front_end::{Buffers, Connection, Done, Properties, SECTOR};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most bytes of a read or a write.
pub const CHUNK: usize = 128 << 10;
/// Requests in flight.
const DEPTH: usize = 16;
/// Between two looks at whether the engine still lives.
const GLANCE: Duration = Duration::from_millis(200);
/// How long an engine may stay away.
const PATIENCE: Duration = Duration::from_secs(60);

/// A request. Offsets and lengths in bytes, multiples of a sector.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Read so many bytes.
    Read(u64, usize),
    /// Write what was put into the buffer.
    Write(u64, usize),
    /// Make zero, and give the space back.
    Zero(u64, u64),
}

/// What is transferred.
pub trait Work {
    /// The next request; `None` when there is none. A write's content goes into `buffer`, whose length is
    /// [`CHUNK`].
    fn next(&mut self, buffer: &mut [u8]) -> Result<Option<Step>>;

    /// A request is done; `buffer` holds what a read brought. In any order.
    fn done(&mut self, step: Step, buffer: &[u8]) -> Result<()>;
}

/// A vdisk that is connected.
pub struct Transfer {
    name: String,
    socket: PathBuf,
    buffers: Buffers,
    connection: Connection,
}

impl Transfer {
    /// Connects to a vdisk.
    pub fn connect(name: &str, socket: &Path) -> Result<Transfer> {
        let buffers = Buffers::new(DEPTH, CHUNK).map_err(system("make buffers"))?;
        let connection = connect(name, socket, &buffers)?;
        Ok(Transfer { name: name.to_owned(), socket: socket.to_owned(), buffers, connection })
    }

    /// The vdisk's size and limits.
    pub fn properties(&self) -> Result<Properties> {
        self.connection.properties().map_err(system("ask the vdisk for its properties"))
    }

    /// Carries everything out.
    pub fn run(&mut self, work: &mut impl Work) -> Result<()> {
        let mut flights: Vec<Option<Step>> = vec![None; DEPTH];
        let mut free: Vec<usize> = (0..DEPTH).rev().collect();
        let mut done = Vec::new();
        let mut ended = false;
        loop {
            while !ended && let Some(&slot) = free.last() {
                match work.next(self.buffers.slot(slot))? {
                    Some(step) => {
                        free.pop();
                        flights[slot] = Some(step);
                        self.submit(slot, step)?;
                    }
                    None => ended = true,
                }
            }
            if free.len() == DEPTH {
                return Ok(());
            }
            self.connection.notify().map_err(system("notify the engine"))?;
            self.connection.completed(&mut done);
            if done.is_empty() {
                self.connection.wait(GLANCE).map_err(system("wait for the engine"))?;
                self.connection.completed(&mut done);
            }
            let idle = done.is_empty();
            self.take(&mut done, &mut flights, &mut free, work)?;
            if idle && !self.connection.is_alive() {
                // What it published before it went away is done.
                self.connection.completed(&mut done);
                self.take(&mut done, &mut flights, &mut free, work)?;
                self.connection = connect(&self.name, &self.socket, &self.buffers)?;
                for (slot, step) in flights.iter().enumerate() {
                    if let Some(step) = *step {
                        self.submit(slot, step)?;
                    }
                }
            }
        }
    }

    fn submit(&mut self, slot: usize, step: Step) -> Result<()> {
        let unit = SECTOR as u64;
        let queued = match step {
            Step::Read(offset, length) => {
                self.connection.read(slot, offset / unit, length, &self.buffers)
            }
            Step::Write(offset, length) => {
                self.connection.write(slot, offset / unit, length, &self.buffers)
            }
            Step::Zero(offset, length) => {
                self.connection.zero(slot, offset / unit, length / unit, true)
            }
        };
        queued.map_err(system("queue a request"))
    }

    fn take(
        &mut self,
        done: &mut Vec<Done>,
        flights: &mut [Option<Step>],
        free: &mut Vec<usize>,
        work: &mut impl Work,
    ) -> Result<()> {
        for one in done.drain(..) {
            let step = flights[one.slot].take().expect("a slot completes once");
            free.push(one.slot);
            if one.result != 0 {
                let error = io::Error::from_raw_os_error(-one.result);
                let reason = match step {
                    Step::Read(offset, length) => format!("reading {length} bytes at {offset}"),
                    Step::Write(offset, length) => format!("writing {length} bytes at {offset}"),
                    Step::Zero(offset, length) => format!("zeroing {length} bytes at {offset}"),
                };
                let reason = format!("{reason} failed: {error}; look at `cleave status`");
                return Err(Error::Vdisk { name: self.name.clone(), reason });
            }
            work.done(step, self.buffers.slot(one.slot))?;
        }
        Ok(())
    }
}

fn connect(name: &str, socket: &Path, buffers: &Buffers) -> Result<Connection> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Connection::open(socket, 1, DEPTH, buffers) {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > deadline => {
                let (socket, seconds) = (socket.display(), PATIENCE.as_secs());
                let reason = format!("nobody serves {socket} for {seconds} s: {error}");
                return Err(Error::Vdisk { name: name.to_owned(), reason });
            }
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
}
