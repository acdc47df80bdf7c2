//! The arguments of a daemon: one configuration file, and whether it is to stand by for a running one. Every
//! mistake is one line.

use crate::lock::{KernelLock, LockError};
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What a daemon was started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To run.
    Run(Launch),
    /// To say how it is used.
    Help,
    /// To say which version it is.
    Version,
}

/// How a daemon is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The configuration file.
    pub config: PathBuf,
    /// To check everything that can be checked, print [`STANDING_BY`], and wait for the one that runs to end.
    pub standby: bool,
}

impl Launch {
    /// Takes the engine's lock, which says that its predecessor is dead; waits for at most `wait`. One that stands
    /// by says first that the predecessor may end.
    pub fn alone(&self, path: &Path, wait: Duration) -> Result<KernelLock, LockError> {
        if self.standby {
            let mut out = std::io::stdout().lock();
            // Nobody may be listening any more; the lock decides.
            let _ = writeln!(out, "{STANDING_BY}").and_then(|()| out.flush());
        }
        KernelLock::take(path, wait)
    }
}

/// The line on standard output that says: the predecessor may end now.
pub const STANDING_BY: &str = "standing by";

/// What is wrong with the arguments.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArgumentError {
    /// Something that is not known here.
    #[error("unknown argument {0:?}; usage: --config FILE, or --help")]
    Unknown(OsString),
    /// `--config` at the end.
    #[error("--config needs a file")]
    NoFile,
    /// `--config` twice.
    #[error("--config is given twice")]
    Twice,
    /// No `--config`.
    #[error("no configuration: give it with --config FILE")]
    Missing,
}

/// Reads the arguments after the program's name.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Asked, ArgumentError> {
    let mut arguments = arguments.into_iter();
    let mut config = None;
    let mut standby = false;
    while let Some(argument) = arguments.next() {
        let file = match argument.to_str() {
            Some("--help" | "-h") => return Ok(Asked::Help),
            Some("--version" | "-V") => return Ok(Asked::Version),
            Some("--standby") => {
                standby = true;
                continue;
            }
            Some("--config") => arguments.next().ok_or(ArgumentError::NoFile)?,
            Some(text) => match text.strip_prefix("--config=") {
                Some("") => return Err(ArgumentError::NoFile),
                Some(file) => file.into(),
                None => return Err(ArgumentError::Unknown(argument)),
            },
            None => return Err(ArgumentError::Unknown(argument)),
        };
        if config.replace(PathBuf::from(file)).is_some() {
            return Err(ArgumentError::Twice);
        }
    }
    let launch = |config| Asked::Run(Launch { config, standby });
    config.map(launch).ok_or(ArgumentError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> Result<Asked, ArgumentError> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn one_file_is_taken() {
        let run = |standby| Ok(Asked::Run(Launch { config: "a.toml".into(), standby }));
        assert_eq!(of(&["--config", "a.toml"]), run(false));
        assert_eq!(of(&["--config=a.toml"]), run(false));
        assert_eq!(of(&["--standby", "--config=a.toml"]), run(true));
        assert_eq!(of(&["--standby"]), Err(ArgumentError::Missing));
        assert_eq!(of(&["--config", "a.toml", "--help"]), Ok(Asked::Help));
        assert_eq!(of(&["-V"]), Ok(Asked::Version));
    }

    #[test]
    fn everything_else_is_named() {
        assert_eq!(of(&[]), Err(ArgumentError::Missing));
        assert_eq!(of(&["--config"]), Err(ArgumentError::NoFile));
        assert_eq!(of(&["--config="]), Err(ArgumentError::NoFile));
        assert_eq!(of(&["--config", "a", "--config=b"]), Err(ArgumentError::Twice));
        for unknown in ["--conf", "x", "", "--config-file=x"] {
            let error = of(&[unknown]).unwrap_err();
            assert_eq!(error, ArgumentError::Unknown(unknown.into()));
            assert_eq!(error.to_string().lines().count(), 1);
        }
    }
}
