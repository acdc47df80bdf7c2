//! What an operator should know of that happened: to what, when, why, and what is to be done.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`kinds`] | everything that can happen, and how it is told |
//! | [`journal`] | the newest events of an engine, repetitions folded |
//! | [`file`] | the same on disk, so that they are known after a restart |
//! | [`teller`] | what every engine's shell does with them |
//!
//! An event is made by an engine's control side from what its cores report; cores know nothing of this. It is advice for
//! people: nothing decides by it, and losing some is no harm but to them.
//!
//! The same [`Event`] is what the control protocol carries and what a line of the file holds. What it is
//! (`kind`) and whom it concerns are texts there, so that an older program shows what a newer one tells.

pub mod file;
pub mod journal;
pub mod kinds;
pub mod teller;

pub use journal::News;
pub use kinds::{Kind, Subject};
pub use teller::Events;

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// How much it matters. Ordered: the later the worse.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Good to know.
    #[default]
    Info,
    /// Something is less safe or slower than it should be; it goes on.
    Warning,
    /// Something is lost, stands still, or needs a person.
    Error,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Error => "error",
        })
    }
}

impl FromStr for Severity {
    type Err = String;
    fn from_str(text: &str) -> Result<Severity, String> {
        match text {
            "info" => Ok(Severity::Info),
            "warning" => Ok(Severity::Warning),
            "error" => Ok(Severity::Error),
            _ => Err("it is info, warning or error".to_owned()),
        }
    }
}

/// Something that happened, once or several times.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Of this engine's events, each one has another, greater than those before. Repetitions keep it.
    pub number: u64,
    /// When it happened first, seconds since the Unix epoch.
    pub at: u64,
    /// When it happened last.
    pub last: u64,
    /// How often.
    pub count: u64,
    /// Who tells it: the engine's name, or `cleave` for the supervisor.
    pub engine: String,
    /// How much it matters.
    pub severity: Severity,
    /// What it is, for programs: see [`Kind::name`].
    pub kind: String,
    /// What sort of thing it happened to.
    pub subject: String,
    /// Which of them.
    pub name: String,
    /// Where on it, of the last time; empty when that says nothing.
    #[serde(default)]
    pub place: String,
    /// What happened to it, in words that follow its name.
    pub text: String,
    /// Why, as far as the engine knows, of the last time; empty when it does not know.
    #[serde(default)]
    pub cause: String,
    /// What a person should do; empty when nothing.
    #[serde(default)]
    pub action: String,
}

impl Event {
    /// Whether it tells that the engine ended knowingly.
    pub fn ends(&self) -> bool {
        self.subject == "engine"
            && [Kind::Stopped.name(), Kind::Failed.name()].contains(&&*self.kind)
    }
}

/// The events of one engine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineEvents {
    /// Its name.
    pub engine: String,
    /// In order of numbers.
    pub events: Vec<Event>,
    /// Events of this start that its file lacks, because a disk was full, failing or too slow.
    #[serde(default)]
    pub not_kept: u64,
}

/// An engine whose events are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unreachable {
    /// Its name.
    pub engine: String,
    /// Why.
    pub reason: String,
}
