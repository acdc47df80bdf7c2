//! Everything that can stop a command: one line each, saying what happened, to what, and what to do.

use cleave_control::config::ConfigError;
use cleave_control::key_file::KeyFileError;
use cleave_control::names::NameError;
use cleave_control::protocol::CallError;
use cleave_control::size::SizeError;
use cleave_coordinator::{ListenError, OpenError, StoreError};
use std::io;
use std::path::{Path, PathBuf};

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    // The caller's.
    /// No directory was named.
    #[error("no cluster is named: use --dir DIR, or set CLEAVE_DIR")]
    NoDirectory,
    /// A name or a path that must not be.
    #[error("{0}")]
    Name(#[from] NameError),
    /// A size.
    #[error("{0}")]
    Size(#[from] SizeError),
    /// An option's value.
    #[error("{option} {value}: {reason}")]
    Option {
        /// Which option.
        option: &'static str,
        /// What was given.
        value: String,
        /// What is wrong.
        reason: String,
    },
    /// The cluster was created otherwise.
    #[error("{dir} was created with {created}, so it cannot be started with {asked}; {advice}")]
    CreatedOtherwise {
        /// The cluster's directory.
        dir: PathBuf,
        /// As it is.
        created: String,
        /// As it was asked to be.
        asked: String,
        /// What to do.
        advice: &'static str,
    },
    /// Another supervisor runs there.
    #[error("{dir} is in use by process {pid}; stop that one first, or use another directory")]
    InUse {
        /// The cluster's directory.
        dir: PathBuf,
        /// Who.
        pid: String,
    },
    /// Children of a supervisor that died have not ended.
    #[error("engines of an earlier run of {dir} are still ending after {seconds} s; try again")]
    StillEnding {
        /// The cluster's directory.
        dir: PathBuf,
        /// How long was waited.
        seconds: u64,
    },
    /// The directory holds something else.
    #[error("{dir} holds {found} but no cluster; use an empty directory")]
    NotACluster {
        /// The directory.
        dir: PathBuf,
        /// What lies there.
        found: String,
    },
    /// Written by another version, or by hand.
    #[error("{path}: {reason}")]
    Settings {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The key file.
    #[error("{0}")]
    KeyFile(#[from] KeyFileError),
    /// It is not this cluster's key.
    #[error("the key in {path} is not the key of {dir}; use the key file that it was created with")]
    WrongKey {
        /// The key file.
        path: PathBuf,
        /// The cluster's directory.
        dir: PathBuf,
    },
    /// A drive that is not the cluster's, or damaged.
    #[error("drive {number} ({path}): {reason}")]
    Drive {
        /// Its number.
        number: u16,
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A vdisk that exists, does not exist, or cannot be changed so.
    #[error("vdisk {name}: {reason}")]
    Vdisk {
        /// Its name.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// An image that cannot be read, or must not be written.
    #[error("{path}: {reason}")]
    Image {
        /// Its file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// An NVMe controller.
    #[error("{0}")]
    Nvme(#[from] cleave_nvme::error::Error),
    /// A measurement of one.
    #[error("{0}")]
    Bench(#[from] cleave_nvme::bench::BenchError),
    /// An engine that does not exist.
    #[error("{name} is no engine of this cluster; there are {known}")]
    UnknownEngine {
        /// What was asked for.
        name: String,
        /// What there is.
        known: String,
    },
    /// Consent was not given.
    #[error("{what} loses data; add --accept-data-loss if that is what you want")]
    NoConsent {
        /// The command.
        what: String,
    },

    // The cluster's.
    /// The supervisor did not do it.
    #[error("{0}")]
    Call(#[from] CallError),
    /// The supervisor answered something else.
    #[error(
        "the supervisor gave an answer that this version does not know; are they the same version?"
    )]
    UnknownAnswer,
    /// An engine ended, or did not come up.
    #[error("{name} {what}")]
    Engine {
        /// Which.
        name: String,
        /// What happened.
        what: String,
    },
    /// Not everything is served in time.
    #[error("the cluster is not ready after {seconds} s: {missing}")]
    NotReady {
        /// The limit.
        seconds: u64,
        /// What is not as it should be.
        missing: String,
    },
    /// The store's file.
    #[error("{0}")]
    OpenStore(#[from] OpenError),
    /// The store's contents.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The store's or the control socket.
    #[error("{0}")]
    Listen(#[from] ListenError),
    /// A configuration that was just written.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// Certificates.
    #[error("{0}")]
    Identity(String),
    /// Nobody knows of the pool's stripes.
    #[error("no controller is active now; look at cleave status")]
    NoActiveController,
    /// What a scrub could not mend.
    #[error(
        "{stripes} stripes are damaged and cannot be mended; cleave events says which and whose they are"
    )]
    Damaged {
        /// How many.
        stripes: u64,
    },
    /// The order was not kept.
    #[error(
        "the active controller changed before it had recorded that a scrub was wanted; say it again"
    )]
    ScrubForgotten,

    // The system's.
    /// Too little space.
    #[error("{path} has {free} bytes free, {needed} are needed for {what}; free some space")]
    NoSpace {
        /// Where.
        path: PathBuf,
        /// Bytes.
        free: u64,
        /// Bytes.
        needed: u64,
        /// What it is needed for.
        what: &'static str,
    },
    /// A file.
    #[error("cannot {what} {path}: {error}")]
    File {
        /// What was to be done.
        what: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Something else of the system.
    #[error("cannot {what}: {error}")]
    System {
        /// What was to be done.
        what: &'static str,
        /// Why not.
        error: io::Error,
    },
}

/// What commands give.
pub type Result<T> = std::result::Result<T, Error>;

/// A file's error, with what was to be done: `map_err(file("read", &path))`.
pub fn file<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl Fn(E) -> Error {
    let path = path.to_owned();
    move |error| Error::File { what, path: path.clone(), error: error.into() }
}

/// Another system error: `map_err(system("start a thread"))`.
pub fn system<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> Error {
    move |error| Error::System { what, error: error.into() }
}
