//! Processes under measurement: started, watched for the CPU time that they use, ended.

use crate::Failure;
use std::ffi::OsStr;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A child process; it is killed when this is dropped.
pub struct Process(Child);

impl Process {
    /// Starts a program; its output goes nowhere.
    pub fn start(program: &Path, arguments: &[&OsStr]) -> Result<Process, Failure> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child =
            command.spawn().map_err(|e| format!("cannot start {}: {e}", program.display()))?;
        Ok(Process(child))
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Waits until `ready` says so; an error when the process ends or half a minute passes before.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> Result<(), Failure> {
        let start = Instant::now();
        while !ready() {
            if let Some(status) = self.0.try_wait()? {
                return Err(format!("a process under measurement ended early: {status}").into());
            }
            if start.elapsed() > Duration::from_secs(30) {
                return Err("a process under measurement was not ready within 30 s".into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Asks the process to end (SIGTERM) and waits for it.
    pub fn stop(&mut self) -> Result<(), Failure> {
        let id = i32::try_from(self.0.id()).ok().and_then(rustix::process::Pid::from_raw);
        if let Some(id) = id {
            rustix::process::kill_process(id, rustix::process::Signal::TERM)?;
        }
        self.0.wait()?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already: then there is nothing to end.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Seconds of CPU (user and system) that a process has used so far.
pub fn cpu_seconds(id: u32) -> Result<f64, Failure> {
    let text = fs::read_to_string(format!("/proc/{id}/stat"))?;
    let after = text.rsplit_once(')').ok_or("unexpected /proc stat")?.1;
    let fields: Vec<&str> = after.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Process ids of the children of a process, with their command names.
pub fn children(id: u32) -> Result<Vec<(u32, String)>, Failure> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(child) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(text) = fs::read_to_string(format!("/proc/{child}/stat")) else { continue };
        let Some((before, after)) = text.rsplit_once(')') else { continue };
        let parent = after.split_whitespace().nth(1).and_then(|parent| parent.parse::<u32>().ok());
        if parent == Some(id) {
            let command = before.split_once('(').map_or("", |parts| parts.1);
            found.push((child, command.to_owned()));
        }
    }
    found.sort();
    Ok(found)
}
