//! Ending with the supervisor: a daemon whose parent dies gets SIGTERM, and stops cleanly.
//!
//! The kernel sends it when the *thread* that started this process ends, so a supervisor starts
//! its children from a thread that lives as long as itself. A parent that died before the kernel
//! was asked is noticed by its number, which a supervisor gives in [`SUPERVISOR`].

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

/// From now on the parent's death is a SIGTERM to this process.
pub fn end_with_parent() -> Result<(), ParentError> {
    let expected = match std::env::var(SUPERVISOR) {
        Ok(text) => Some(number(&text)?),
        Err(_) => None,
    };
    let before = parent();
    set_parent_process_death_signal(Some(Signal::TERM))
        .map_err(|error| ParentError::System(error.into()))?;
    // Whoever adopted this process meanwhile has another number.
    if parent() != before || expected.is_some_and(|expected| expected != before) {
        return Err(ParentError::Gone);
    }
    Ok(())
}

fn parent() -> i32 {
    getppid().map_or(0, Pid::as_raw_pid)
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
