//! One child process: an engine with its configuration, or etcd, its log, and the signals that end it.
//!
//! A child's standard error is its log file itself, so it loses no words and meets no broken pipe when the
//! supervisor dies. It gets SIGTERM from the kernel when that happens. It is in a process group of
//! its own, so that a terminal's Ctrl-C reaches the supervisor only, which stops engines in order.
//! A successor stands by beside its predecessor, and says on its standard output when that one may end.
//! Children are started by one thread that lives as long as the process: the kernel takes the end of the
//! starting *thread* for the parent's death.

use crate::dev::directory::Directory;
use crate::error::{Error, Result, file, system};
use cleave_process::arguments::STANDING_BY;
use cleave_process::crash_points::CRASH_POINT;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::Instant;

/// A log that has grown beyond this is set aside when its engine starts.
const LOG_BYTES_MAX: u64 = 16 << 20;
/// Bytes of a log's end in which last words are looked for.
const TAIL_BYTES: u64 = 8 << 10;

/// A child that runs, or has just ended.
pub struct Running {
    /// Its process.
    pub pid: u32,
    /// When it started.
    pub since: Instant,
    /// Names the process and no later one.
    handle: OwnedFd,
    log: PathBuf,
    /// Length of the log when it started.
    log_start: u64,
}

/// How an engine is started.
pub fn engine(directory: &Directory, name: &str, path: &Path) -> Command {
    let mut command = Command::new(path);
    command.arg("--config").arg(directory.engine_config(name));
    command
}

/// Starts a child. It is to be waited for; of an engine that stands by the standard output is to be
/// listened to.
pub fn start(
    directory: &Directory,
    name: &str,
    mut command: Command,
    standby: bool,
) -> Result<(Running, Child)> {
    let log = directory.log(name);
    if fs::metadata(&log).is_ok_and(|found| found.len() > LOG_BYTES_MAX) {
        fs::rename(&log, log.with_extension("log.old")).map_err(file("rename", &log))?;
    }
    let output = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&log)
        .map_err(file("open", &log))?;
    let log_start = output.metadata().map_err(file("look at", &log))?.len();
    let copy = output.try_clone().map_err(file("open", &log))?;
    // A crash point of the supervisor's is not its children's.
    command.env_remove(CRASH_POINT);
    command.stdin(Stdio::null()).stdout(copy).stderr(output).process_group(0);
    if standby {
        command.arg("--standby").stdout(Stdio::piped());
    }
    let parent = rustix::process::getpid();
    let follow_parent = move || {
        rustix::process::set_parent_process_death_signal(Some(Signal::TERM))?;
        // The parent may have died before the request took effect.
        if rustix::process::getppid() != Some(parent) {
            return Err(rustix::io::Errno::SRCH.into());
        }
        Ok(())
    };
    // SAFETY: between fork and exec only two system calls are made; nothing is allocated or locked.
    unsafe { command.pre_exec(follow_parent) };
    let path = PathBuf::from(command.get_program());
    let child = command.spawn().map_err(file("start", &path))?;
    let pid = Pid::from_child(&child);
    let handle = pidfd_open(pid, PidfdFlags::empty()).map_err(system("name a child process"))?;
    let since = Instant::now();
    Ok((Running { pid: child.id(), since, handle, log, log_start }, child))
}

impl Running {
    /// Sends a signal; one that has ended gets none.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        match pidfd_send_signal(&self.handle, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(system("signal an engine")(error)),
        }
    }

    /// How it ended and what it said last, in one line.
    pub fn obituary(&self, status: ExitStatus) -> String {
        let words = self.last_words();
        match (status.code(), status.signal(), words) {
            // Its last words are the reason.
            (Some(code), _, Some(words)) if code != 0 => {
                format!("ended with exit status {code}: {words}")
            }
            (Some(code), ..) => format!("ended with exit status {code}"),
            (None, Some(signal), _) => format!("was ended by signal {signal}"),
            (None, None, _) => "ended with an unknown status".to_owned(),
        }
    }

    /// The last line that it wrote since it started.
    pub fn last_words(&self) -> Option<String> {
        let mut log = File::open(&self.log).ok()?;
        let end = log.metadata().ok()?.len();
        let start = self.log_start.max(end.saturating_sub(TAIL_BYTES)).min(end);
        log.seek(SeekFrom::Start(start)).ok()?;
        let mut tail = Vec::new();
        log.take(TAIL_BYTES).read_to_end(&mut tail).ok()?;
        let tail = String::from_utf8_lossy(&tail);
        tail.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
    }
}

/// Waits for a child in a thread of its own, and reports its end.
pub fn wait(
    name: &'static str,
    mut child: Child,
    report: impl FnOnce(ExitStatus) + Send + 'static,
) -> Result<()> {
    let waiting = move || {
        let status = child.wait().expect("a child that was started can be waited for");
        report(status);
    };
    let thread = std::thread::Builder::new().name(format!("wait-{name}"));
    thread.spawn(waiting).map_err(system("start a thread"))?;
    Ok(())
}

/// Listens to a child that stands by, in a thread of its own, and reports when its predecessor may end.
pub fn listen(
    name: &'static str,
    output: ChildStdout,
    report: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let listening = move || {
        let mut line = String::new();
        // What ends without the line is reported by its end.
        if BufReader::new(output).read_line(&mut line).is_ok() && line.trim() == STANDING_BY {
            report();
        }
    };
    let thread = std::thread::Builder::new().name(format!("listen-{name}"));
    thread.spawn(listening).map_err(system("start a thread"))?;
    Ok(())
}

/// An engine that did not come up, or ended.
pub fn failed(name: &str, what: impl Into<String>) -> Error {
    Error::Engine { name: name.to_owned(), what: what.into() }
}
