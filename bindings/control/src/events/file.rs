//! Events of an engine on disk: two files of JSON lines in the engine's folder, `events.jsonl` and the one before it,
//! `events.jsonl.1` (docs/FORMATS.md).
//!
//! Invariants:
//! - An engine never waits for it. Lines go to a thread through a bounded queue; what does not fit, or cannot be
//!   written, is counted and dropped. After a failure the next line is tried anew.
//! - Neither file is longer than [`FILE_MAX`].
//! - A line that is no event is skipped and counted: a torn one ends where the next one begins, since who appends to a
//!   file that does not end a line ends it first.
//!
//! Lines are given to the kernel and not flushed: a killed engine loses what was queued at that moment, a power cut what the kernel
//! had not written yet, and of a repetition only the powers of two of its count are kept. A crash while the files
//! change places leaves only the older one, or both; nothing but events depends on them.

use super::Event;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

/// Most bytes of a file.
pub const FILE_MAX: u64 = 1 << 20;
/// Longest line that is read, bytes.
pub const LINE_MAX: usize = 16 << 10;
/// Lines that wait for the thread.
const QUEUED: usize = 256;
/// How long an engine that stops waits for them.
const CLOSE_MAX: Duration = Duration::from_secs(1);

/// What the files hold.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// In order of numbers.
    pub events: Vec<Event>,
    /// Lines that are no events.
    pub damaged: u64,
    /// Why a file could not be read.
    pub failure: Option<String>,
}

/// The events of lines, the newest of each number, in order of numbers; and how many lines are none.
pub fn parse(bytes: &[u8]) -> (Vec<Event>, u64) {
    let mut events = BTreeMap::new();
    let mut damaged = 0;
    for line in bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let event = (line.len() <= LINE_MAX).then(|| serde_json::from_slice::<Event>(line).ok());
        match event.flatten() {
            // No other number can follow the largest.
            Some(event) if event.number < u64::MAX && event.count > 0 => {
                events.insert(event.number, event);
            }
            _ => damaged += 1,
        }
    }
    (events.into_values().collect(), damaged)
}

/// The file and the one before it.
fn paths(dir: &Path) -> (PathBuf, PathBuf) {
    (dir.join("events.jsonl"), dir.join("events.jsonl.1"))
}

/// Reads what an earlier start left.
pub fn load(dir: &Path) -> Loaded {
    let (newest, before) = paths(dir);
    let mut bytes = Vec::new();
    let mut failure = None;
    for path in [before, newest] {
        let read = File::open(&path)
            .and_then(|file| file.take(2 * FILE_MAX).read_to_end(&mut bytes).map(drop));
        match read {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                failure = Some(format!("{}: {error}", path.display()));
            }
            _ => bytes.push(b'\n'),
        }
    }
    let (events, damaged) = parse(&bytes);
    Loaded { events, damaged, failure }
}

/// What the engine's side and the thread both know.
#[derive(Default)]
struct Shared {
    not_kept: AtomicU64,
}

/// The engine's side.
pub struct EventFile {
    lines: SyncSender<Vec<u8>>,
    over: Receiver<()>,
    shared: Arc<Shared>,
}

impl EventFile {
    /// Appends to the files in a folder from now on.
    pub fn start(dir: &Path) -> io::Result<EventFile> {
        let (lines, queue) = sync_channel(QUEUED);
        let (ended, over) = sync_channel(1);
        let shared = Arc::new(Shared::default());
        let writer = Writer::new(dir);
        let known = Arc::clone(&shared);
        std::thread::Builder::new().name("events".to_owned()).spawn(move || {
            keep(writer, &queue, &known);
            let _ = ended.send(());
        })?;
        Ok(EventFile { lines, over, shared })
    }

    /// Has an event kept, or counts that it is not.
    pub fn append(&mut self, event: &Event) {
        let mut line = serde_json::to_vec(event).expect("an event is plain data");
        line.push(b'\n');
        if line.len() > LINE_MAX || self.lines.try_send(line).is_err() {
            self.shared.not_kept.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Events that are not kept.
    pub fn not_kept(&self) -> u64 {
        self.shared.not_kept.load(Ordering::Relaxed)
    }

    /// Waits until everything is with the kernel, for a second at most.
    pub fn close(self) {
        drop(self.lines);
        if let Err(RecvTimeoutError::Timeout) = self.over.recv_timeout(CLOSE_MAX) {
            tracing::warn!("the disk does not take the last events in time");
        }
    }
}

/// The thread.
fn keep(mut writer: Writer, queue: &Receiver<Vec<u8>>, shared: &Shared) {
    let mut told = false;
    for line in queue {
        match writer.append(&line) {
            Ok(()) => told = false,
            Err(error) => {
                shared.not_kept.fetch_add(1, Ordering::Relaxed);
                if !std::mem::replace(&mut told, true) {
                    let path = writer.newest.display();
                    tracing::warn!(%path, "events are not kept for a restart: {error}");
                }
            }
        }
    }
}

/// Appends lines, and has the files change places.
struct Writer {
    newest: PathBuf,
    before: PathBuf,
    open: Option<Open>,
}

struct Open {
    file: File,
    length: u64,
    /// The last line has no end.
    torn: bool,
}

impl Writer {
    fn new(dir: &Path) -> Writer {
        let (newest, before) = paths(dir);
        Writer { newest, before, open: None }
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.open.is_none() {
            self.open = Some(Open::at(&self.newest)?);
        }
        let length = self.open.as_ref().map_or(0, |open| open.length);
        if length > 0 && length + line.len() as u64 + 1 > FILE_MAX {
            self.open = None;
            std::fs::rename(&self.newest, &self.before)?;
            self.open = Some(Open::at(&self.newest)?);
        }
        let open = self.open.as_mut().expect("it was opened before");
        let written = open.append(line);
        if written.is_err() {
            // Whatever became of it is seen when it is opened again.
            self.open = None;
        }
        written
    }
}

impl Open {
    fn at(path: &Path) -> io::Result<Open> {
        let mut file = OpenOptions::new().create(true).read(true).append(true).open(path)?;
        let length = file.seek(SeekFrom::End(0))?;
        let mut last = [b'\n'];
        if length > 0 {
            file.seek(SeekFrom::Start(length - 1))?;
            file.read_exact(&mut last)?;
        }
        Ok(Open { file, length, torn: last != [b'\n'] })
    }

    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.write_all(b"\n")?;
            self.length += 1;
            self.torn = false;
        }
        self.file.write_all(line)?;
        self.length += line.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
