//! Ending this process by SIGKILL at a named place, when [`CRASH_POINT`] says so: for tests of what
//! a crash at that very moment leaves behind (`scripts/torture`).
//!
//! `NAME` or `NAME:NTH`, where NTH counts from 1. It is read once, when the process starts, and said in the log. Nothing runs after the kill: no
//! destructor, no flush, as at any other crash.

use cleave_runtime::crash_points::{ALL, Point, arm};
use rustix::process::{Signal, getpid, kill_process};

/// The environment variable that names the place.
pub const CRASH_POINT: &str = "CLEAVE_CRASH_POINT";

/// The variable names no place.
#[derive(Debug, thiserror::Error)]
#[error("{CRASH_POINT}={value:?} is no crash point; it is NAME or NAME:NTH, and names are {names}")]
pub struct CrashPointError {
    value: String,
    names: String,
}

/// Arms this process if its environment says so. To be called once, before anything else runs.
pub fn arm_from_environment() -> Result<(), CrashPointError> {
    let Some(value) = std::env::var_os(CRASH_POINT) else { return Ok(()) };
    let value = value.to_string_lossy();
    let Some((point, nth)) = parse(&value) else {
        let names: Vec<&str> = ALL.iter().map(|point| point.name()).collect();
        return Err(CrashPointError { value: value.into_owned(), names: names.join(", ") });
    };
    tracing::warn!(point = point.name(), nth, "{CRASH_POINT}: this process will kill itself there");
    arm(point, nth, end);
    Ok(())
}

fn parse(value: &str) -> Option<(Point, u32)> {
    let (name, nth) = match value.split_once(':') {
        Some((name, nth)) => (name, nth.parse().ok().filter(|nth| *nth > 0)?),
        None => (value, 1),
    };
    Some((Point::of_name(name)?, nth))
}

fn end(point: Point) {
    tracing::warn!(point = point.name(), "crash point reached");
    // This thread does not come back from here; the others have the time that the kernel needs to stop them.
    let _ = kill_process(getpid(), Signal::KILL);
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_has_a_name_and_perhaps_a_number() {
        assert_eq!(parse("log.appended"), Some((Point::LogAppended, 1)));
        assert_eq!(parse("vault.pieces:7"), Some((Point::VaultPieces, 7)));
        for wrong in ["", "log", "log.appended:", "log.appended:0", "log.appended:x", ":1"] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }
}
