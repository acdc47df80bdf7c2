//! The frame of a daemon's `main`.
//!
//! What fails while it starts or runs becomes one line on standard error, `NAME: what happened`,
//! and a non-zero exit code. A panic is our own bug: it is reported with its place, and ends the
//! whole process at once, because the state of a half-dead engine is not to be trusted; its
//! successor resumes from what is mirrored and durable.

use crate::arguments::{Asked, Launch, parse};
use crate::{crash_points, log, machine, parent, stop};
use std::error::Error;
use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

/// Exit code of a daemon that could not start or go on.
const FAILED: u8 = 1;
/// Exit code for wrong arguments.
const MISUSED: u8 = 2;

/// A daemon.
#[derive(Clone, Copy, Debug)]
pub struct Daemon {
    /// Its program's name, as in `cleave-host`.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// What it is, one line.
    pub about: &'static str,
}

impl Daemon {
    /// Runs `body` with how it is to run and the wish to stop, and gives the exit code. Its error's message is
    /// the fatal line.
    pub fn run(
        self,
        body: impl FnOnce(&Launch, stop::Stop) -> Result<(), Box<dyn Error>>,
    ) -> ExitCode {
        let launch = match parse(std::env::args_os().skip(1).collect::<Vec<OsString>>()) {
            Ok(Asked::Run(launch)) => launch,
            Ok(Asked::Help) => return self.say(&self.help()),
            Ok(Asked::Version) => return self.say(&format!("{} {}\n", self.name, self.version)),
            Err(error) => return self.fail(&error, MISUSED),
        };
        end_on_panic(self.name);
        let ran = prepare().and_then(|stop| body(&launch, stop));
        match ran {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => self.fail(&*error, FAILED),
        }
    }

    fn help(&self) -> String {
        format!(
            "{about}\n\nusage: {name} --config FILE [--standby]\n\n  \
             --standby  wait for the one that runs to end, after saying that it may\n\nEnvironment:\n  \
             {level}  how much it says: error, warn, info (default), debug, trace\n  \
             {supervisor}  process number of the parent, with which it ends\n  \
             {crash}  where to kill itself, for tests: NAME or NAME:NTH\n",
            about = self.about,
            name = self.name,
            level = log::LEVEL,
            supervisor = parent::SUPERVISOR,
            crash = crash_points::CRASH_POINT,
        )
    }

    fn say(&self, text: &str) -> ExitCode {
        // A reader that is gone does not want to know.
        let _ = std::io::stdout().write_all(text.as_bytes());
        ExitCode::SUCCESS
    }

    fn fail(&self, error: &dyn Error, code: u8) -> ExitCode {
        let _ = std::io::stderr().write_all(fatal(self.name, error).as_bytes());
        ExitCode::from(code)
    }
}

fn prepare() -> Result<stop::Stop, Box<dyn Error>> {
    log::start()?;
    crash_points::arm_from_environment()?;
    // Before asking to be told of the parent's end, which comes as a signal.
    let stop = stop::Stop::on_signals().map_err(|error| format!("cannot take signals: {error}"))?;
    parent::end_with_parent()?;
    machine::raise_limits();
    Ok(stop)
}

/// The line for an error.
fn fatal(name: &str, error: &dyn Error) -> String {
    let message = error.to_string();
    let lines: Vec<&str> = message.lines().map(str::trim).collect();
    format!("{name}: {}\n", lines.join(" "))
}

/// Threads of this name are joined by somebody who takes their panic for damage of the file that they open: the
/// databases of catalog and store.
const OPENING: &str = "opening a database";

fn end_on_panic(name: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        if thread.name() == Some(OPENING) {
            return;
        }
        let line = format!(
            "{name}: bug in thread {}: {}\n",
            thread.name().unwrap_or("unnamed"),
            panic.to_string().replace('\n', " ")
        );
        let _ = std::io::stderr().write_all(line.as_bytes());
        std::process::abort();
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fatal_line_is_one_line() {
        let error: Box<dyn Error> = "drive 3 at /x:\n  is another cluster's\n".into();
        let line = fatal("cleave-datanode", &*error);
        assert_eq!(line, "cleave-datanode: drive 3 at /x: is another cluster's\n");
    }
}
