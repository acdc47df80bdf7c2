//! Ending with the supervisor: a daemon whose parent dies gets SIGTERM, and stops cleanly.
//!
//! It is for daemons whose parent says so, by its process number in [`SUPERVISOR`]; others may be
//! started from a shell that ends. The number also tells when the parent died before the kernel was
//! asked. The kernel sends the signal when the *thread* that started this process ends, so a supervisor
//! starts its children from a thread that lives as long as itself.

use rustix::process::{Pid, Signal, getppid, set_parent_process_death_signal};

/// The environment variable in which a supervisor gives its process number.
pub const SUPERVISOR: &str = "CLEAVE_SUPERVISOR";

/// Why a daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum ParentError {
    /// Nobody would ever stop this process.
    #[error("the supervisor that started this process has ended")]
    Gone,
    /// The variable has something else.
    #[error("{SUPERVISOR}={0:?} is not a process number")]
    Malformed(String),
    /// The system refused.
    #[error("cannot ask the kernel to be told of the parent's end: {0}")]
    System(std::io::Error),
}

/// If a supervisor started this process: from now on its death is a SIGTERM here.
pub fn end_with_parent() -> Result<(), ParentError> {
    let Some(text) = std::env::var_os(SUPERVISOR) else { return Ok(()) };
    let supervisor = number(&text.to_string_lossy())?;
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| ParentError::System(error.into()))?;
    // Whoever adopted this process meanwhile has another number.
    if getppid().map(Pid::as_raw_pid) != Some(supervisor) {
        return Err(ParentError::Gone);
    }
    Ok(())
}

fn number(text: &str) -> Result<i32, ParentError> {
    text.parse()
        .ok()
        .filter(|number| *number > 0)
        .ok_or_else(|| ParentError::Malformed(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_supervisor_is_a_positive_number() {
        assert_eq!(number("17").unwrap(), 17);
        for text in ["", "0", "-3", "none", "99999999999"] {
            assert!(matches!(number(text), Err(ParentError::Malformed(_))), "{text}");
        }
    }
}
