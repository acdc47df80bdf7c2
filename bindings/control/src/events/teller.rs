//! What every engine's shell does with events: opens what is kept, tells starts and ends, and that the store is away.
//!
//! One thread has it. The file is opened after the engine's lock is held, so that a predecessor writes no more. What is kept is
//! read before anything is told; that it cannot be read or written is told, and stops nothing.

use super::file::{self, EventFile};
use super::journal::{Journal, News};
use super::{EngineEvents, Kind, Subject};
use std::cell::{Cell, RefCell};
use std::path::Path;

/// Seconds that the store may take to answer after a start.
const STORE_FIRST: u64 = 10;

/// What the store was the last time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Store {
    /// The engine started then, and it has not answered yet.
    Unknown(u64),
    /// It answers.
    Here,
    /// It does not, since then.
    Away(u64),
}

/// An engine's events.
pub struct Events {
    engine: String,
    journal: RefCell<Option<Journal>>,
    store: Cell<Store>,
}

impl Events {
    /// Reads what is kept in the engine's folder, and tells the start. `now`: seconds since the Unix epoch, by the wall clock.
    pub fn open(engine: &str, dir: &Path, now: u64, version: &str) -> Events {
        let loaded = file::load(dir);
        let last = loaded.events.last().map(|event| event.last);
        let (journal, clean) = match EventFile::start(dir) {
            Ok(file) => Journal::open(engine, file, loaded.events),
            Err(error) => {
                tracing::warn!("events are not kept for a restart: {error}");
                (Journal::new(engine), true)
            }
        };
        let journal = RefCell::new(Some(journal));
        let store = Cell::new(Store::Unknown(now));
        let events = Events { engine: engine.to_owned(), journal, store };
        let kind = if clean { Kind::Started } else { Kind::StartedUnclean };
        let mut cause = format!("version {version}");
        if let Some(last) = last.filter(|_| !clean) {
            let ago = now.saturating_sub(last);
            cause += &format!("; what it told last was {ago} s before");
        }
        if loaded.damaged > 0 {
            cause += &format!("; {} lines of earlier events are damaged", loaded.damaged);
        }
        if let Some(failure) = loaded.failure {
            cause += &format!("; earlier events cannot be read: {failure}");
        }
        events.tell(now, News::new(kind, events.own()).because(cause));
        events
    }

    /// For an engine that keeps nothing.
    pub fn in_memory(engine: &str) -> Events {
        let journal = RefCell::new(Some(Journal::new(engine)));
        Events { engine: engine.to_owned(), journal, store: Cell::new(Store::Here) }
    }

    /// The engine itself.
    pub fn own(&self) -> Subject {
        Subject::Engine(self.engine.clone())
    }

    /// Takes news.
    pub fn tell(&self, now: u64, news: News) {
        if let Some(journal) = self.journal.borrow_mut().as_mut() {
            journal.tell(now, news);
        }
    }

    /// How the store is. Cheap while that does not change.
    pub fn store(&self, connected: bool, now: impl FnOnce() -> u64) {
        let before = self.store.get();
        match (before, connected) {
            (Store::Here, true) | (Store::Away(_), false) => {}
            (Store::Unknown(_), true) => self.store.set(Store::Here),
            (Store::Unknown(since), false) => {
                let now = now();
                if now >= since + STORE_FIRST {
                    self.store.set(Store::Away(since));
                    let cause = "it has not answered since the start";
                    self.tell(now, News::new(Kind::StoreAway, Subject::Store).because(cause));
                }
            }
            (Store::Here, false) => {
                let now = now();
                self.store.set(Store::Away(now));
                let cause = "the connection to it broke";
                self.tell(now, News::new(Kind::StoreAway, Subject::Store).because(cause));
            }
            (Store::Away(since), true) => {
                let now = now();
                self.store.set(Store::Here);
                let cause = format!("it was away for {} s", now.saturating_sub(since));
                self.tell(now, News::new(Kind::StoreBack, Subject::Store).because(cause));
            }
        }
    }

    /// What happened at a time or after it.
    pub fn since(&self, since: u64) -> EngineEvents {
        self.journal.borrow().as_ref().map(|journal| journal.since(since)).unwrap_or_default()
    }

    /// The engine ends; `failure`: why, if it should not. Waits for the disk for a moment.
    pub fn close(&self, now: u64, failure: Option<String>) {
        match failure {
            Some(failure) => self.tell(now, News::new(Kind::Failed, self.own()).because(failure)),
            None => self.tell(now, News::new(Kind::Stopped, self.own())),
        }
        if let Some(journal) = self.journal.borrow_mut().take() {
            journal.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(events: &Events) -> Vec<(String, String)> {
        let told = events.since(0).events.into_iter();
        told.map(|event| (event.kind, event.cause)).collect()
    }

    fn kinds(events: &Events) -> Vec<String> {
        told(events).into_iter().map(|(kind, _)| kind).collect()
    }

    #[test]
    fn starts_tell_how_the_one_before_ended() {
        let dir = tempfile::tempdir().unwrap();
        Events::open("host-1", dir.path(), 100, "1.0").close(101, None);
        let killed = Events::open("host-1", dir.path(), 102, "1.0");
        assert_eq!(kinds(&killed), ["started", "stopped", "started"]);
        killed.journal.borrow_mut().take().unwrap().close();
        let after = Events::open("host-1", dir.path(), 110, "1.1");
        let last = told(&after).pop().unwrap();
        assert_eq!(last.0, "started_unclean");
        assert_eq!(last.1, "version 1.1; what it told last was 8 s before");
        after.close(111, Some("a drive is foreign".to_owned()));
        let failed = Events::open("host-1", dir.path(), 112, "1.1");
        let told = told(&failed);
        assert_eq!(told[told.len() - 2], ("failed".to_owned(), "a drive is foreign".to_owned()));
        assert_eq!(told[told.len() - 1].0, "started");
    }

    #[test]
    fn the_store_is_told_away_with_how_long() {
        let dir = tempfile::tempdir().unwrap();
        let events = Events::open("host-1", dir.path(), 100, "1.0");
        events.store(false, || 105);
        events.store(true, || 106);
        events.store(true, || panic!("nothing changed"));
        assert_eq!(kinds(&events), ["started"]);
        events.store(false, || 200);
        events.store(false, || panic!("nothing changed"));
        events.store(true, || 260);
        assert_eq!(kinds(&events), ["started", "store_away", "store_back"]);
        assert_eq!(told(&events)[2].1, "it was away for 60 s");

        let events = Events::open("host-2", &dir.path().join("none"), 100, "1.0");
        events.store(false, || 100 + STORE_FIRST);
        assert_eq!(kinds(&events), ["started", "store_away"]);
    }
}
