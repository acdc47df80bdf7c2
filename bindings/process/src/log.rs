//! What a daemon says: lines on standard error, by the level in `CLEAVE_LOG`.
//!
//! `CLEAVE_LOG` is a level (`error`, `warn`, `info`, `debug`, `trace`) or a list of
//! `CRATE=LEVEL`; without it `info`. Colours only for a person at a terminal.

use std::io::IsTerminal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The environment variable with the level.
pub const LEVEL: &str = "CLEAVE_LOG";

/// The variable says something that is no level.
#[derive(Debug, thiserror::Error)]
#[error("{LEVEL}={value:?} is no level ({reason}); use error, warn, info, debug or trace")]
pub struct LevelError {
    value: String,
    reason: String,
}

/// Directs everything that is traced in this process to standard error. Later calls change nothing.
pub fn start() -> Result<(), LevelError> {
    let value = std::env::var(LEVEL).unwrap_or_default();
    let filter = filter(&value)?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .finish();
    // Refused only when there is one already.
    let _ = tracing::subscriber::set_global_default(subscriber);
    Ok(())
}

fn filter(value: &str) -> Result<EnvFilter, LevelError> {
    let builder = EnvFilter::builder().with_default_directive(LevelFilter::INFO.into());
    builder.parse(value).map_err(|error| LevelError {
        value: value.to_owned(),
        reason: error.to_string().replace('\n', " "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_and_lists_are_known_and_nonsense_is_named() {
        assert_eq!(filter("").unwrap().max_level_hint(), Some(LevelFilter::INFO));
        assert_eq!(filter("debug").unwrap().max_level_hint(), Some(LevelFilter::DEBUG));
        let list = filter("warn,cleave_host_core=trace").unwrap();
        assert_eq!(list.max_level_hint(), Some(LevelFilter::TRACE));
        let error = filter("cleave=loud").unwrap_err().to_string();
        assert!(error.contains("cleave=loud") && error.lines().count() == 1, "{error}");
    }
}
