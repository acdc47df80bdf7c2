//! The control protocol: JSON lines over a Unix socket.
//!
//! A client sends a [`Request`] as one line and gets a [`Response`] as one line; then it may send
//! the next one. Lines are bounded. The supervisor serves the whole protocol in the cluster's
//! directory; an engine serves the part that concerns it, and refuses the rest with an error. A
//! client that vanishes takes nothing back: its request is carried out.

use crate::events::{EngineEvents, Unreachable};
use crate::status::{
    ClusterStatistics, ClusterStatus, ControllerStatistics, ControllerStatus, HostStatistics,
    HostStatus, VdiskEntry,
};
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Longest request, bytes, without its line end.
pub const REQUEST_BYTES_MAX: usize = 64 << 10;
/// Longest response, bytes, without its line end: statistics of 10,000 vdisks.
pub const RESPONSE_BYTES_MAX: usize = 64 << 20;

/// What a client asks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// What there is and how it is: [`Reply::Status`], [`Reply::Host`] or [`Reply::Controller`].
    Status {},
    /// What was done: [`Reply::Statistics`], [`Reply::HostStatistics`] or
    /// [`Reply::ControllerStatistics`].
    Stats {},
    /// What happened at a time or after it: [`Reply::Events`].
    Events {
        /// Seconds since the Unix epoch.
        #[serde(default)]
        since: u64,
    },
    /// Stop cleanly; answered when the stop has begun.
    Stop {},
    /// Create a vdisk: [`Reply::Vdisk`].
    CreateVdisk {
        /// Its name.
        name: String,
        /// Bytes.
        size: u64,
        /// Whether to encrypt it; without it as the cluster does.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        encrypted: Option<bool>,
        /// How many cores can serve it at once; without it by its size.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shares: Option<u16>,
    },
    /// All vdisks: [`Reply::Vdisks`].
    ListVdisks {},
    /// Change a vdisk's size.
    ResizeVdisk {
        /// Its name.
        name: String,
        /// Bytes.
        size: u64,
        /// Whether what lies beyond a smaller size may be lost.
        #[serde(default)]
        accept_data_loss: bool,
    },
    /// Delete a vdisk and what it holds. Refused while it is attached.
    DeleteVdisk {
        /// Its name.
        name: String,
    },
    /// Have another host serve a vdisk; answered when it does. The one that serves it lets go first, or is fenced when it does
    /// not answer.
    MoveVdisk {
        /// Its name.
        name: String,
        /// The host's number.
        host: u32,
        /// Also while a guest uses it where it is served now.
        #[serde(default)]
        take_over: bool,
    },
    /// Start an engine that has ended, or end and start one that runs.
    RestartChild {
        /// The engine's name.
        name: String,
    },
    /// Replace the host engine's program while guests wait: [`Reply::Upgraded`].
    UpgradeHost {
        /// The new program; without it the one that is installed.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        program: Option<PathBuf>,
    },
    /// Change how many cores the host engine runs on. Answered at once; the status says when it is so.
    SetCpu {
        /// Insane Mode; without it as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        insane: Option<bool>,
        /// Cores; 0: by their share of the processors; without it as it is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cores: Option<u16>,
    },
    /// Give a host more flash. Answered when it is in use.
    AddFlash {
        /// As in the host's configuration.
        device: String,
        /// Make it first: a sparse file of so many bytes. Not for engines.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        size: Option<u64>,
        /// Which host's; without it the first one's. Not for engines.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<u32>,
    },
    /// Take flash from a host. Answered when nothing of it is in use any more.
    RetireFlash {
        /// As in the host's status.
        device: String,
        /// Which host's; without it the first one's. Not for engines.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        host: Option<u32>,
    },
    /// Have the other controller of a data node become the active one, while guests wait for a moment: [`Reply::SwitchedOver`].
    SwitchOver {
        /// Which data node.
        datanode: u16,
    },
    /// Look at all stripes for damage now, and mend it, as fast as guests let it; answered when that is ordered.
    Scrub {
        /// Which data node.
        datanode: u16,
    },
    /// Look now for stripes that lack shards, and write these anew; answered when that is ordered.
    Rebuild {
        /// Which data node.
        datanode: u16,
    },
    /// Start a data node with an empty log although no controller holds the old one (C7).
    StartEmptyLog {
        /// Which data node.
        datanode: u16,
        /// Must be true: acknowledged writes that were not destaged are lost.
        accept_data_loss: bool,
    },
}

/// What is answered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// It was done.
    Ok(Reply),
    /// It was not.
    Error(ErrorReport),
}

/// Why it was not done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorReport {
    /// One line for a person.
    pub message: String,
}

impl Response {
    /// An error of one line.
    pub fn error(message: impl std::fmt::Display) -> Response {
        let message = message.to_string().replace('\n', " ");
        Response::Error(ErrorReport { message })
    }
}

/// What comes with success.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// Nothing more.
    Done {},
    /// From the supervisor.
    Status(ClusterStatus),
    /// From the supervisor.
    Statistics(ClusterStatistics),
    /// From a host engine.
    Host(HostStatus),
    /// From a host engine.
    HostStatistics(HostStatistics),
    /// From a controller.
    Controller(ControllerStatus),
    /// From a controller.
    ControllerStatistics(ControllerStatistics),
    /// What happened.
    Events {
        /// Each engine's.
        engines: Vec<EngineEvents>,
        /// Engines of which nothing is known.
        #[serde(default)]
        unreachable: Vec<Unreachable>,
    },
    /// The successor serves what its predecessor served.
    Upgraded {
        /// The hosts.
        hosts: Vec<String>,
        /// What it is.
        version: String,
        /// Milliseconds from the predecessor's end to that: guests waited at most so long.
        stall_milliseconds: u64,
    },
    /// The other controller is active.
    SwitchedOver {
        /// Its name.
        active: String,
        /// For how long no controller served hosts, at most; then they connect to that one.
        stall_milliseconds: u64,
    },
    /// The vdisk that was created.
    Vdisk(VdiskEntry),
    /// In order of names.
    Vdisks {
        /// The list.
        vdisks: Vec<VdiskEntry>,
    },
}

/// Why there is no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody serves the socket.
    #[error("nothing answers at {0}; is the cluster running?")]
    NotRunning(PathBuf),
    /// The request was refused or failed.
    #[error("{0}")]
    Refused(String),
    /// No answer within the time; the request may still be carried out.
    #[error("no answer from {0} in time; the request may still be carried out")]
    Timeout(PathBuf),
    /// The other side does not speak the protocol.
    #[error("{path} does not answer as expected: {reason}")]
    Protocol {
        /// Which socket.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The system refused.
    #[error("cannot talk to {path}: {error}")]
    Io {
        /// Which socket.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Asks whoever serves `socket`; waits for at most `timeout`.
pub fn call(socket: &Path, request: &Request, timeout: Duration) -> Result<Reply, CallError> {
    let until = Instant::now() + timeout;
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            CallError::Timeout(socket.to_owned())
        }
        _ => CallError::Io { path: socket.to_owned(), error },
    };
    let unexpected = |reason: String| CallError::Protocol { path: socket.to_owned(), reason };
    let mut stream = UnixStream::connect(socket).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            CallError::NotRunning(socket.to_owned())
        }
        _ => failed(error),
    })?;
    stream.set_write_timeout(Some(rest(until).map_err(failed)?)).map_err(failed)?;
    stream.write_all(&line(request)).map_err(failed)?;
    let mut lines = LineReader::new(RESPONSE_BYTES_MAX);
    let response = loop {
        stream.set_read_timeout(Some(rest(until).map_err(failed)?)).map_err(failed)?;
        match lines.read(&mut stream).map_err(failed)? {
            Line::Whole(line) => break line,
            Line::Part => {}
            Line::TooLong => return Err(unexpected("its answer is too long".to_owned())),
            Line::End => return Err(unexpected("it closed the connection".to_owned())),
        }
    };
    match serde_json::from_slice(&response) {
        Ok(Response::Ok(reply)) => Ok(reply),
        Ok(Response::Error(ErrorReport { message })) => Err(CallError::Refused(message)),
        Err(error) => Err(unexpected(error.to_string())),
    }
}

fn rest(until: Instant) -> io::Result<Duration> {
    let rest = until.saturating_duration_since(Instant::now());
    if rest.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(rest)
}

/// A message and its line end; JSON escapes line ends within.
pub(crate) fn line<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(message).expect("messages are plain data");
    line.push(b'\n');
    line
}

/// What a read brought.
pub(crate) enum Line {
    /// A line, without its end.
    Whole(Vec<u8>),
    /// Not yet a line.
    Part,
    /// More than a line may have.
    TooLong,
    /// The other side has closed.
    End,
}

/// Cuts a stream into lines of bounded length.
pub(crate) struct LineReader {
    received: Vec<u8>,
    /// So many of them hold no line end.
    searched: usize,
    length_max: usize,
}

impl LineReader {
    pub(crate) fn new(length_max: usize) -> LineReader {
        LineReader { received: Vec::new(), searched: 0, length_max }
    }

    /// Takes a line that is there already, or reads once.
    pub(crate) fn read(&mut self, stream: &mut impl Read) -> io::Result<Line> {
        match self.take() {
            Line::Part => {}
            line => return Ok(line),
        }
        let mut chunk = [0; 16 << 10];
        loop {
            match stream.read(&mut chunk) {
                Ok(0) => return Ok(Line::End),
                Ok(count) => {
                    self.received.extend_from_slice(&chunk[..count]);
                    return Ok(self.take());
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn take(&mut self) -> Line {
        let found = self.received[self.searched..].iter().position(|byte| *byte == b'\n');
        let end = found.map_or(self.received.len(), |found| self.searched + found);
        if end > self.length_max {
            return Line::TooLong;
        }
        if found.is_none() {
            self.searched = end;
            return Line::Part;
        }
        let rest = self.received.split_off(end + 1);
        let mut line = std::mem::replace(&mut self.received, rest);
        line.truncate(end);
        self.searched = 0;
        Line::Whole(line)
    }
}

#[cfg(test)]
mod tests;
