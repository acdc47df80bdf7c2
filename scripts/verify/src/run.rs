//! One run: requests in flight, what becomes of them, the final pass over everything.
//!
//! A slot is one request in flight with its buffer. When the engine goes away its published
//! completions are taken first; every other request in flight is lost: writes may have happened,
//! reads are done again.

use crate::arguments::Arguments;
use crate::content::{Content, SECTOR, ZEROS, fill, recognise};
use crate::model::{Change, Model, Moment, Sectors, Violation};
use crate::workload::{Limits, Request, TRANSFER_MAX, Workload};
use cleave_front_end::{Buffers, Connection, Done, Properties};
use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const MAGIC: &[u8; 8] = b"CLVERIF1";
/// Sleeps and checks for life are this long.
const GLANCE: Duration = Duration::from_millis(200);
/// With a rate, it is looked at this often whether more may be written.
const PACE: Duration = Duration::from_millis(5);
const SECTORS_MIN: u64 = 512;
const SWEEP_EVERY: u64 = 4096;

/// Why a run failed.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The disk broke a promise.
    #[error("WRONG CONTENT: {0}")]
    Violation(Violation),
    /// A request failed.
    #[error("{request:?} failed: {error}")]
    Request {
        /// Which.
        request: Request,
        /// Its status.
        error: io::Error,
    },
    /// A request took too long with the engine connected.
    #[error("{request:?} is not completed after {seconds} s although the engine is there")]
    Stalled {
        /// Which.
        request: Request,
        /// The limit.
        seconds: u64,
    },
    /// The engine stayed away.
    #[error("cannot connect to {socket} for {seconds} s: {error}")]
    Away {
        /// Where.
        socket: PathBuf,
        /// The limit.
        seconds: u64,
        /// Why, the last time.
        error: io::Error,
    },
    /// The device does not fit the options.
    #[error("{0}")]
    Device(String),
    /// A file of this run.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Memory for buffers, or polling.
    #[error("the system refused: {0}")]
    System(io::Error),
}

impl From<Violation> for RunError {
    fn from(violation: Violation) -> RunError {
        RunError::Violation(violation)
    }
}

/// What was done.
#[derive(Default)]
pub struct Summary {
    /// Requests by kind.
    writes: u64,
    reads: u64,
    zeroes: u64,
    discards: u64,
    flushes: u64,
    written: u64,
    read: u64,
    reconnects: u64,
    lost: u64,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "verified writes={} written={} reads={} read={} zeroes={} discards={} flushes={} \
             reconnects={} lost={}",
            self.writes,
            self.written,
            self.reads,
            self.read,
            self.zeroes,
            self.discards,
            self.flushes,
            self.reconnects,
            self.lost
        )
    }
}

/// What comes next.
enum Next {
    Request(Request),
    /// The rate does not allow it yet.
    Later,
    Nothing,
}

/// A limit on what is written a second. Time in which nothing could be written is not made up for.
struct Pace {
    rate: u64,
    second: Instant,
    /// Written when the second began.
    before: u64,
}

impl Pace {
    fn new(rate: u64) -> Pace {
        Pace { rate, second: Instant::now(), before: 0 }
    }

    fn allows(&mut self, written: u64) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.before = written;
        }
        let passed = self.second.elapsed().as_micros() as u64;
        written - self.before <= self.rate * passed / 1_000_000
    }
}

/// Becomes true when standard input ends, or cannot be read.
fn input_ended() -> Arc<AtomicBool> {
    let ended = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&ended);
    std::thread::spawn(move || {
        // What is said there does not matter.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        seen.store(true, Ordering::Relaxed);
    });
    ended
}

/// What a request in flight means to the model.
enum Effect {
    Changes(Change, Sectors),
    Reads(Moment, Sectors),
    Nothing,
}

struct Flight {
    request: Request,
    effect: Effect,
    since: Instant,
}

struct Run<'a> {
    arguments: &'a Arguments,
    connection: Option<Connection>,
    buffers: Buffers,
    flights: Vec<Option<Flight>>,
    free: Vec<usize>,
    model: Model,
    seed: u64,
    next_content: u32,
    again: Vec<Request>,
    summary: Summary,
    requests: u64,
    reported: Instant,
}

/// Carries the arguments out.
pub fn run(arguments: &Arguments) -> Result<Summary, RunError> {
    let (queues, depth) = (usize::from(arguments.queues), usize::from(arguments.depth));
    let buffers = Buffers::new(depth, TRANSFER_MAX).map_err(RunError::System)?;
    let connection = connect(arguments, &buffers)?;
    let properties = connection.properties().map_err(RunError::System)?;
    let sectors = arguments.range.map_or(properties.sectors, |range| range / SECTOR as u64);
    if sectors > properties.sectors || sectors < SECTORS_MIN {
        let (have, least) = (properties.sectors, SECTORS_MIN);
        let what = format!(
            "the disk has {have} sectors, the range {sectors}; at least {least} are needed"
        );
        return Err(RunError::Device(what));
    }
    let ordered = queues == 1;
    let (model, seed, next_content) = match &arguments.load {
        None => (Model::zeros(sectors, ordered), arguments.seed, 1),
        Some(path) => {
            let saved = load(path)?;
            if saved.contents.len() as u64 != sectors {
                let (path, have) = (path.display(), saved.contents.len());
                let what = format!("{path} describes {have} sectors, the disk has {sectors}");
                return Err(RunError::Device(what));
            }
            (Model::holding(saved.contents, ordered), saved.seed, saved.next_content)
        }
    };
    let run = Run {
        arguments,
        connection: Some(connection),
        buffers,
        flights: (0..depth).map(|_| None).collect(),
        free: (0..depth).rev().collect(),
        model,
        seed,
        next_content,
        again: Vec::new(),
        summary: Summary::default(),
        requests: 0,
        reported: Instant::now(),
    };
    run.all(properties, sectors)
}

impl Run<'_> {
    fn all(mut self, properties: Properties, sectors: u64) -> Result<Summary, RunError> {
        let limits = Limits {
            sectors,
            discard_sectors_max: properties.discard_sectors_max,
            zero_sectors_max: properties.zero_sectors_max,
        };
        // A run that goes on from a saved one makes other requests than that one did.
        let seed = self.arguments.seed ^ (u64::from(self.next_content) << 32);
        let mut workload = Workload::new(seed, limits);
        let bytes = self.arguments.bytes;
        let ended = match self.arguments.until_input_ends {
            true => input_ended(),
            false => Arc::default(),
        };
        let mut pace = self.arguments.rate.map(Pace::new);
        self.phase(|summary| {
            if summary.written >= bytes || ended.load(Ordering::Relaxed) {
                return Next::Nothing;
            }
            match pace.as_mut().is_none_or(|pace| pace.allows(summary.written)) {
                true => Next::Request(workload.request()),
                false => Next::Later,
            }
        })?;
        let step = (TRANSFER_MAX / SECTOR) as u64;
        let mut next = 0;
        self.phase(|_| {
            let first = next;
            next = (next + step).min(sectors);
            match first < next {
                true => Next::Request(Request::Read(first..next)),
                false => Next::Nothing,
            }
        })?;
        self.model.sweep();
        let undecided = self.model.undecided();
        assert_eq!(undecided, 0, "reading everything decides everything");
        if let Some(path) = &self.arguments.save {
            let (seed, next_content) = (self.seed, self.next_content);
            save(path, &Saved { seed, next_content, contents: self.model.into_contents() })?;
        }
        Ok(self.summary)
    }

    /// Carries out what `next` gives until it gives nothing, and all of it is completed.
    fn phase(&mut self, mut next: impl FnMut(&Summary) -> Next) -> Result<(), RunError> {
        let mut done = Vec::new();
        let (mut ended, mut later) = (false, false);
        loop {
            while let Some(&slot) = self.free.last() {
                let next = match self.again.pop() {
                    Some(request) => Next::Request(request),
                    None if ended => Next::Nothing,
                    None => next(&self.summary),
                };
                later = matches!(next, Next::Later);
                let Next::Request(request) = next else {
                    ended |= !later;
                    break;
                };
                self.free.pop();
                self.submit(slot, request)?;
            }
            if self.free.len() == self.flights.len() {
                if !later {
                    return Ok(());
                }
                std::thread::sleep(PACE);
            }
            self.turn(&mut done, if later { PACE } else { GLANCE })?;
            if self.reported.elapsed() >= Duration::from_secs(1) {
                self.reported = Instant::now();
                say(&format!("progress {} of {}", self.summary.written, self.arguments.bytes));
            }
        }
    }

    fn submit(&mut self, slot: usize, request: Request) -> Result<(), RunError> {
        let buffers = &mut self.buffers;
        let connection = self.connection.as_mut().expect("requests need a connection");
        self.requests += 1;
        let (effect, queued) = match &request {
            Request::Write(sectors) => {
                let content = Content(self.next_content);
                self.next_content =
                    self.next_content.checked_add(1).expect("fewer than 2^32 writes");
                let length = bytes(sectors);
                let buffer = &mut buffers.slot(slot)[..length];
                for (sector, chunk) in sectors.clone().zip(buffer.chunks_mut(SECTOR)) {
                    fill(self.seed, content, sector, chunk);
                }
                let change = self.model.change();
                self.model.begin(change, sectors.clone(), content, true);
                self.summary.writes += 1;
                self.summary.written += length as u64;
                let queued = connection.write(slot, sectors.start, length, buffers);
                (Effect::Changes(change, sectors.clone()), queued)
            }
            Request::Zero(sectors, unmap) => {
                let change = self.model.change();
                self.model.begin(change, sectors.clone(), ZEROS, true);
                self.summary.zeroes += 1;
                let length = sectors.end - sectors.start;
                let queued = connection.zero(slot, sectors.start, length, *unmap);
                (Effect::Changes(change, sectors.clone()), queued)
            }
            Request::Discard(sectors) => {
                let change = self.model.change();
                // Whole blocks read as zeros afterwards; discards round inward (C6), and what is left over may
                // stay or go.
                let whole = whole_blocks(sectors);
                self.model.begin(change, sectors.start..whole.start, ZEROS, false);
                self.model.begin(change, whole.clone(), ZEROS, true);
                self.model.begin(change, whole.end..sectors.end, ZEROS, false);
                self.summary.discards += 1;
                let length = sectors.end - sectors.start;
                let queued = connection.discard(slot, sectors.start, length);
                (Effect::Changes(change, sectors.clone()), queued)
            }
            Request::Read(sectors) => {
                // What is not filled must not look right.
                let length = bytes(sectors);
                buffers.slot(slot)[..length].fill(0xa5);
                self.summary.reads += 1;
                self.summary.read += length as u64;
                let queued = connection.read(slot, sectors.start, length, buffers);
                (Effect::Reads(self.model.begin_read(), sectors.clone()), queued)
            }
            Request::Flush => {
                self.summary.flushes += 1;
                (Effect::Nothing, connection.flush(slot))
            }
        };
        queued.map_err(RunError::System)?;
        self.flights[slot] = Some(Flight { request, effect, since: Instant::now() });
        Ok(())
    }

    fn turn(&mut self, done: &mut Vec<Done>, wait: Duration) -> Result<(), RunError> {
        let connection = self.connection.as_mut().expect("requests need a connection");
        connection.notify().map_err(RunError::System)?;
        connection.completed(done);
        if done.is_empty() {
            connection.wait(wait).map_err(RunError::System)?;
            connection.completed(done);
        }
        let idle = done.is_empty();
        for one in done.drain(..) {
            self.complete(one)?;
        }
        if self.requests > SWEEP_EVERY {
            self.requests = 0;
            self.model.sweep();
        }
        if !idle {
            return Ok(());
        }
        let connection = self.connection.as_ref().expect("requests need a connection");
        if !connection.is_alive() {
            return self.reconnect(done);
        }
        let limit = Duration::from_secs(self.arguments.stall);
        let stalled = self.flights.iter().flatten().find(|flight| flight.since.elapsed() > limit);
        match stalled {
            None => Ok(()),
            Some(flight) => {
                let (request, seconds) = (flight.request.clone(), self.arguments.stall);
                Err(RunError::Stalled { request, seconds })
            }
        }
    }

    fn complete(&mut self, done: Done) -> Result<(), RunError> {
        let flight = self.flights[done.slot].take().expect("a slot completes once");
        self.free.push(done.slot);
        if done.result != 0 {
            let error = io::Error::from_raw_os_error(-done.result);
            return Err(RunError::Request { request: flight.request, error });
        }
        match flight.effect {
            Effect::Changes(change, sectors) => self.model.complete(change, sectors)?,
            Effect::Reads(begun, sectors) => {
                let buffer = &self.buffers.slot(done.slot)[..bytes(&sectors)];
                let mut contents = Vec::with_capacity(buffer.len() / SECTOR);
                for (sector, chunk) in sectors.clone().zip(buffer.chunks(SECTOR)) {
                    let content = recognise(self.seed, sector, chunk);
                    contents.push(content.map_err(|what| Violation { sector, what })?);
                }
                self.model.end_read(begun, sectors.start, &contents)?;
            }
            Effect::Nothing => {}
        }
        Ok(())
    }

    fn reconnect(&mut self, done: &mut Vec<Done>) -> Result<(), RunError> {
        let since = Instant::now();
        say("disconnected");
        let mut connection = self.connection.take().expect("requests need a connection");
        connection.completed(done);
        drop(connection);
        for one in done.drain(..) {
            self.complete(one)?;
        }
        for slot in 0..self.flights.len() {
            let Some(flight) = self.flights[slot].take() else { continue };
            self.free.push(slot);
            self.summary.lost += 1;
            match flight.effect {
                Effect::Changes(change, sectors) => self.model.lose(change, sectors),
                Effect::Reads(begun, _) => {
                    self.model.lose_read(begun);
                    self.again.push(flight.request);
                }
                Effect::Nothing => {}
            }
        }
        self.connection = Some(connect(self.arguments, &self.buffers)?);
        self.summary.reconnects += 1;
        say(&format!("reconnected after {} ms", since.elapsed().as_millis()));
        Ok(())
    }
}

pub(crate) fn connect(arguments: &Arguments, buffers: &Buffers) -> Result<Connection, RunError> {
    let (queues, depth) = (usize::from(arguments.queues), usize::from(arguments.depth));
    let deadline = Instant::now() + Duration::from_secs(arguments.patience);
    loop {
        match Connection::open(&arguments.socket, queues, depth, buffers) {
            Ok(connection) => return Ok(connection),
            Err(error) if Instant::now() > deadline => {
                let (socket, seconds) = (arguments.socket.clone(), arguments.patience);
                return Err(RunError::Away { socket, seconds, error });
            }
            Err(_) => std::thread::sleep(GLANCE),
        }
    }
}

fn bytes(sectors: &Sectors) -> usize {
    (sectors.end - sectors.start) as usize * SECTOR
}

fn whole_blocks(sectors: &Sectors) -> Sectors {
    let block = 8;
    let start = sectors.start.next_multiple_of(block).min(sectors.end);
    let end = (sectors.end / block * block).max(start);
    start..end
}

/// A line for whoever drives the run; losing the reader does not matter.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

struct Saved {
    seed: u64,
    next_content: u32,
    contents: Vec<Content>,
}

fn save(path: &Path, saved: &Saved) -> Result<(), RunError> {
    let mut bytes = Vec::with_capacity(20 + saved.contents.len() * 4);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&saved.seed.to_le_bytes());
    bytes.extend_from_slice(&saved.next_content.to_le_bytes());
    saved.contents.iter().for_each(|content| bytes.extend_from_slice(&content.0.to_le_bytes()));
    let new = path.with_extension("new");
    fs::write(&new, bytes)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| RunError::File { path: path.to_owned(), error })
}

fn load(path: &Path) -> Result<Saved, RunError> {
    let refused = |error| RunError::File { path: path.to_owned(), error };
    let bytes = fs::read(path).map_err(refused)?;
    let foreign = || refused(io::Error::other("it is not a file of --save"));
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(foreign)?;
    let (head, rest) = rest.split_at_checked(12).ok_or_else(foreign)?;
    let number = |chunk: &[u8]| u32::from_le_bytes(chunk.try_into().expect("four bytes"));
    Ok(Saved {
        seed: u64::from_le_bytes(head[..8].try_into().expect("eight bytes")),
        next_content: number(&head[8..]),
        contents: rest.chunks_exact(4).map(|chunk| Content(number(chunk))).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_loaded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("saved");
        let contents = vec![ZEROS, Content(7), Content(u32::MAX)];
        save(&path, &Saved { seed: 3, next_content: 9, contents: contents.clone() }).unwrap();
        let loaded = load(&path).unwrap();
        assert_eq!((loaded.seed, loaded.next_content, loaded.contents), (3, 9, contents));
        fs::write(&path, "something else").unwrap();
        assert!(load(&path).is_err());
    }

    #[test]
    fn discards_round_inward() {
        assert_eq!(whole_blocks(&(0..8)), 0..8);
        assert_eq!(whole_blocks(&(1..17)), 8..16);
        assert_eq!(whole_blocks(&(1..7)), 7..7);
        assert_eq!(whole_blocks(&(9..15)), 15..15);
    }
}
