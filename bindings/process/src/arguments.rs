//! The arguments of a daemon: one configuration file. Every mistake is one line.

use std::ffi::OsString;
use std::path::PathBuf;

/// What a daemon was started for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// To run with this configuration.
    Run(PathBuf),
    /// To say how it is used.
    Help,
    /// To say which version it is.
    Version,
}

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
    while let Some(argument) = arguments.next() {
        let file = match argument.to_str() {
            Some("--help" | "-h") => return Ok(Asked::Help),
            Some("--version" | "-V") => return Ok(Asked::Version),
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
    config.map(Asked::Run).ok_or(ArgumentError::Missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(arguments: &[&str]) -> Result<Asked, ArgumentError> {
        parse(arguments.iter().map(OsString::from))
    }

    #[test]
    fn one_file_is_taken() {
        let file = Ok(Asked::Run("a.toml".into()));
        assert_eq!(of(&["--config", "a.toml"]), file);
        assert_eq!(of(&["--config=a.toml"]), file);
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
