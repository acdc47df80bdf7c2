//! Errors, sorted by who is at fault: the device, the system around it, or the request.

use crate::spec::completion::Status;
use std::io;

/// Why a controller could not be used or an administrative command not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// The system's answer.
        source: io::Error,
    },
    /// Another process has it.
    #[error("NVMe controller {0} is held by another process; end that process")]
    Held(String),
    /// The device is not there: its registers read as all ones.
    #[error("the controller is gone: its registers read as all ones; look at its slot and power")]
    Absent,
    /// The device did not do in time what it must.
    #[error("the controller did not {what} within {milliseconds} ms; reset or replace it")]
    Timeout {
        /// What it should have done.
        what: &'static str,
        /// How long it was given.
        milliseconds: u64,
    },
    /// The device says that it is broken (CSTS.CFS).
    #[error("the controller reports a fatal error; reset or replace it")]
    Fatal,
    /// The device does what no device may.
    #[error("the controller broke the protocol: {0}")]
    Violation(#[from] Violation),
    /// The device describes itself in a way that cannot be.
    #[error("the controller describes what cannot be: {0}")]
    Impossible(String),
    /// The device answered a command with an error.
    #[error("{what}: {status}")]
    Command {
        /// The command.
        what: &'static str,
        /// The answer.
        status: Status,
    },
    /// The command was outstanding while the controller was reset.
    #[error("the command was aborted by a reset of the controller")]
    Aborted,
    /// The device failed while it was brought up.
    #[error("the controller failed while it was brought up: {0}")]
    Failed(String),
    /// The device lacks something that the driver needs.
    #[error("the controller cannot be driven: {0}")]
    Unsupported(String),
}

impl Error {
    pub(crate) fn system(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        |source| Error::System { what: what.into(), source }
    }
}

/// What a device did that none may.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// It completed a command that is not outstanding.
    #[error("completion of command {0:#06x}, which is not outstanding")]
    UnknownCommand(u16),
    /// It named a submission queue that does not complete here.
    #[error("completion for submission queue {0} in another queue")]
    WrongQueue(u16),
    /// It claims to have read entries that were not written.
    #[error("submission queue head {0} is beyond what was submitted")]
    SubmissionHead(u16),
}

/// Why a request was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The controller answered with an error.
    #[error("{0}")]
    Status(Status),
    /// It was outstanding, or came, while the controller was reset: what it did is not known.
    #[error("aborted by a reset of the controller")]
    Aborted,
    /// It took too long and was aborted: what it did is not known.
    #[error("not done in time, and aborted")]
    TimedOut,
    /// The controller is gone or given up.
    #[error("the controller is gone")]
    Lost,
    /// The range is empty or beyond the namespace's end.
    #[error("the range is not within the namespace")]
    Range,
    /// The memory has another length than the range, or cannot be described to the controller.
    #[error("the memory does not fit the request")]
    Memory,
    /// The controller does not offer the command.
    #[error("the controller does not offer this")]
    Unsupported,
}
