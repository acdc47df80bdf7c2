//! An engine that has lost the disk to another one, asked all the same: it must answer no read, and take no write.
//!
//! The probe connects while the engine serves the disk, reads once, and says `connected`. When its standard input ends it
//! puts requests of both kinds into the ring (the engine may be stopped: nobody takes them there), and says `asked`. Each of
//! them must end with an error, or the device go away without an answer. An answer that says that a request succeeded is the
//! failure that it looks for.

use crate::arguments::Arguments;
use crate::content::SECTOR;
use crate::run::{RunError, connect, say};
use cleave_front_end::{Buffers, Connection, Done};
use std::fmt;
use std::io;
use std::time::{Duration, Instant};

/// Bytes of a request.
const EACH: usize = 4096;
/// Between two looks.
const GLANCE: Duration = Duration::from_millis(100);
/// What is written: no content that a verifier knows.
const FOREIGN: u8 = 0x5a;

/// What became of the requests.
pub struct Refused {
    /// With an error.
    errors: u64,
    /// Not at all.
    unanswered: u64,
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused errors={} unanswered={}", self.errors, self.unanswered)
    }
}

/// Carries `--probe` out.
pub fn run(arguments: &Arguments) -> Result<Refused, RunError> {
    let depth = usize::from(arguments.depth);
    let mut buffers = Buffers::new(depth, EACH).map_err(RunError::System)?;
    let mut connection = connect(arguments, &buffers)?;
    let sectors = connection.properties().map_err(RunError::System)?.sectors;
    let mut done = Vec::new();
    // It is served: requests get there, and are answered.
    connection.read(0, 0, EACH, &buffers).map_err(RunError::System)?;
    let limit = Duration::from_secs(arguments.stall);
    let since = Instant::now();
    while done.is_empty() {
        turn(&mut connection, &mut done)?;
        if since.elapsed() > limit {
            let what = format!("the engine answers nothing within {} s", limit.as_secs());
            return Err(RunError::Device(what));
        }
    }
    if done.iter().any(|one| one.result != 0) {
        return Err(RunError::Device("the engine does not serve the disk".to_owned()));
    }
    say("connected");
    // What is said there does not matter.
    io::copy(&mut io::stdin().lock(), &mut io::sink()).map_err(RunError::System)?;
    let step = (EACH / SECTOR) as u64;
    for slot in 0..depth {
        let place = slot as u64 * step % (sectors / step * step);
        let queued = if is_read(slot) {
            connection.read(slot, place, EACH, &buffers)
        } else {
            buffers.slot(slot).fill(FOREIGN);
            connection.write(slot, place, EACH, &buffers)
        };
        queued.map_err(RunError::System)?;
    }
    connection.notify().map_err(RunError::System)?;
    say("asked");
    refused(&mut connection, depth, limit)
}

fn is_read(slot: usize) -> bool {
    slot.is_multiple_of(2)
}

/// Waits until all requests have ended, or the device is gone.
fn refused(
    connection: &mut Connection,
    requests: usize,
    limit: Duration,
) -> Result<Refused, RunError> {
    let (since, mut done, mut errors) = (Instant::now(), Vec::new(), 0);
    loop {
        turn(connection, &mut done)?;
        for one in done.drain(..) {
            if one.result == 0 {
                let kind = if is_read(one.slot) { "a read" } else { "a write" };
                let what = format!("{kind} succeeded at an engine that has lost the disk");
                return Err(RunError::Device(what));
            }
            errors += 1;
        }
        let unanswered = requests as u64 - errors;
        // It blocks while the engine is stopped.
        if unanswered == 0 || since.elapsed() > limit || !connection.is_alive() {
            connection.completed(&mut done);
            if done.is_empty() {
                return Ok(Refused { errors, unanswered });
            }
        }
    }
}

fn turn(connection: &mut Connection, done: &mut Vec<Done>) -> Result<(), RunError> {
    connection.completed(done);
    if done.is_empty() {
        connection.wait(GLANCE).map_err(RunError::System)?;
        connection.completed(done);
    }
    Ok(())
}
