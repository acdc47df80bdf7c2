//! Events of the whole cluster: the supervisor's own, and those that its engines tell, or told before they ended.
//!
//! An engine that does not answer is named, and what its file holds is shown. The supervisor keeps its own in the
//! cluster's folder of logs, under the name `cleave`: it sees what an engine that is killed cannot tell.

use crate::dev::directory::Directory;
use crate::dev::overview::Overview;
use cleave_control::events::file::load;
use cleave_control::events::{EngineEvents, Event, Events, Kind, News, Subject, Unreachable};
use cleave_control::protocol::{Reply, Request};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

/// The supervisor's name.
pub const SUPERVISOR: &str = "cleave";

/// Seconds since the Unix epoch.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// The supervisor's own.
pub struct OwnEvents(Mutex<Events>);

impl OwnEvents {
    /// Goes on with what is kept.
    pub fn open(directory: &Directory) -> OwnEvents {
        let (dir, version) = (folder(directory.path()), env!("CARGO_PKG_VERSION"));
        OwnEvents(Mutex::new(Events::open(SUPERVISOR, &dir, now(), version)))
    }

    /// Takes news.
    pub fn tell(&self, news: News) {
        self.0.lock().expect("no thread panics while it holds this").tell(now(), news);
    }

    /// A child ended, though nobody told it to.
    pub fn ended(&self, name: &str, obituary: &str) {
        let subject = Subject::Engine(name.to_owned());
        self.tell(News::new(Kind::Ended, subject).because(obituary));
    }

    /// The supervisor ends.
    pub fn close(&self, failure: Option<String>) {
        self.0.lock().expect("no thread panics while it holds this").close(now(), failure);
    }

    fn since(&self, since: u64) -> EngineEvents {
        self.0.lock().expect("no thread panics while it holds this").since(since)
    }
}

/// Where the supervisor keeps its own.
fn folder(directory: &Path) -> PathBuf {
    directory.join("log")
}

/// What happened at a time or after it, by everybody's word.
pub fn gather(overview: &Overview, since: u64) -> Reply {
    let (mut engines, mut unreachable) = (vec![overview.events.since(since)], Vec::new());
    for (name, reply) in overview.ask_all(&Request::Events { since }) {
        if let Some(Reply::Events { engines: told, .. }) = reply {
            engines.extend(told);
            continue;
        }
        let reason = "it does not answer; what it told before is of its file".to_owned();
        unreachable.push(Unreachable { engine: name.to_owned(), reason });
        engines.push(kept(name, &overview.cluster.directory.engine(name), since));
    }
    Reply::Events { engines, unreachable }
}

/// What is kept in a cluster's directory, while nothing of it runs.
pub fn gather_kept(directory: &Path, since: u64) -> Reply {
    let mut engines = vec![kept(SUPERVISOR, &folder(directory), since)];
    let names = crate::dev::settings::ENGINES;
    let there = names.iter().map(|name| (name, directory.join(name)));
    engines
        .extend(there.filter(|(_, dir)| dir.exists()).map(|(name, dir)| kept(name, &dir, since)));
    let reason = "the cluster does not run; what it told before is of its file";
    let away = |engine: &EngineEvents| Unreachable {
        engine: engine.engine.clone(),
        reason: reason.to_owned(),
    };
    let unreachable = engines.iter().map(away).collect();
    Reply::Events { engines, unreachable }
}

fn kept(engine: &str, dir: &Path, since: u64) -> EngineEvents {
    let mut events: Vec<Event> = load(dir).events;
    events.retain(|event| event.last >= since);
    EngineEvents { engine: engine.to_owned(), events, not_kept: 0 }
}
