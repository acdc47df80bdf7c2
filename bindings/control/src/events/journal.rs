//! The newest events of an engine, repetitions folded, in bounded memory.
//!
//! Invariants:
//! - At most [`KEPT`] events; the oldest leave.
//! - A repetition is counted, with the time of the first and the last one, and takes no room: the same kind at the same
//!   place of the same subject within [`FOLDED`], unless something else happened to the subject since.
//! - A subject has at most [`PLACES`] events of a kind at different places, and [`OF_A_SUBJECT`] of all kinds, within
//!   [`FOLDED`] of each other; more are counted with the newest of their kind, with the place and cause of the last. So however fast a
//!   device fails, it does not push the others' events out.
//! - Numbers only grow, also over restarts, as far as the file knows them.

use super::file::EventFile;
use super::{EngineEvents, Event, Kind, Subject};
use std::collections::VecDeque;

/// Most events in memory.
pub const KEPT: usize = 1024;
/// Seconds between repetitions beyond which they are told anew.
pub const FOLDED: u64 = 600;
/// Most events of a kind at different places of a subject.
pub const PLACES: usize = 8;
/// Most events of a subject, where one of the kind is there already.
pub const OF_A_SUBJECT: usize = 32;
/// Longest place and cause, bytes.
const TEXT_MAX: usize = 1024;

/// What happened, before it is an [`Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What.
    pub kind: Kind,
    /// To what.
    pub subject: Subject,
    /// Where on it; empty when that says nothing.
    pub place: String,
    /// Why; empty when that is not known.
    pub cause: String,
    /// How often.
    pub count: u64,
}

impl News {
    /// Without a place or a cause.
    pub fn new(kind: Kind, subject: Subject) -> News {
        News { kind, subject, place: String::new(), cause: String::new(), count: 1 }
    }

    /// Because of this.
    #[must_use]
    pub fn because(self, cause: impl std::fmt::Display) -> News {
        News { cause: short(cause.to_string()), ..self }
    }

    /// There.
    #[must_use]
    pub fn at(self, place: impl std::fmt::Display) -> News {
        News { place: short(place.to_string()), ..self }
    }
}

/// One line of bounded length.
fn short(text: String) -> String {
    let mut text = text.replace(['\n', '\r'], " ");
    if text.len() > TEXT_MAX {
        let end = (0..=TEXT_MAX).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
    }
    text
}

/// See the module's page.
pub struct Journal {
    engine: String,
    events: VecDeque<Event>,
    next: u64,
    file: Option<EventFile>,
}

impl Journal {
    /// Empty, and in memory only.
    pub fn new(engine: &str) -> Journal {
        let events = VecDeque::with_capacity(KEPT);
        Journal { engine: engine.to_owned(), events, next: 1, file: None }
    }

    /// What the engine's file has, and to be kept in it from now on. `clean`: whether the last event of it says that the engine ended by
    /// itself, or there is none.
    pub fn open(engine: &str, file: EventFile, loaded: Vec<Event>) -> (Journal, bool) {
        let mut journal = Journal::new(engine);
        let clean = loaded.last().is_none_or(|last| last.ends());
        journal.next = loaded.iter().map(|event| event.number + 1).max().unwrap_or(1);
        let skipped = loaded.len().saturating_sub(KEPT);
        journal.events.extend(loaded.into_iter().skip(skipped));
        journal.file = Some(file);
        (journal, clean)
    }

    /// Takes news at a time of the wall clock, seconds since the Unix epoch.
    pub fn tell(&mut self, now: u64, news: News) {
        let News { kind, subject, place, cause, count } = news;
        let (sort, name) = (subject.sort(), subject.name());
        if let Some(found) = self.repeated(now, kind, (sort, &name), &place) {
            let event = &mut self.events[found];
            let before = event.count;
            event.count = event.count.saturating_add(count);
            event.last = event.last.max(now);
            event.place = place;
            event.cause = cause;
            // A few lines of a storm are enough.
            if before.ilog2() != event.count.ilog2()
                && let Some(file) = &mut self.file
            {
                file.append(event);
            }
            return;
        }
        let event = Event {
            number: self.next,
            at: now,
            last: now,
            count,
            engine: self.engine.clone(),
            severity: kind.severity(),
            kind: kind.name().to_owned(),
            subject: sort.to_owned(),
            name,
            place,
            text: kind.text().to_owned(),
            cause,
            action: kind.action().to_owned(),
        };
        self.next += 1;
        if let Some(file) = &mut self.file {
            file.append(&event);
        }
        if self.events.len() == KEPT {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    /// Which event this is a repetition of.
    fn repeated(
        &self,
        now: u64,
        kind: Kind,
        (sort, name): (&str, &str),
        place: &str,
    ) -> Option<usize> {
        let mut newest = None;
        let (mut of_kind, mut of_subject) = (0, 0);
        let mut unbroken = true;
        for (index, event) in self.events.iter().enumerate().rev() {
            if now.saturating_sub(event.last) > FOLDED {
                // Folded events of before may be newer than their place says; they are looked at, too.
                continue;
            }
            if event.subject != sort || event.name != name {
                continue;
            }
            of_subject += 1;
            if event.kind != kind.name() {
                unbroken = false;
                continue;
            }
            if unbroken && event.place == place {
                return Some(index);
            }
            of_kind += 1;
            newest = newest.or(Some(index));
        }
        newest.filter(|_| (unbroken && of_kind >= PLACES) || of_subject >= OF_A_SUBJECT)
    }

    /// What happened at a time or after it.
    pub fn since(&self, since: u64) -> EngineEvents {
        let events = self.events.iter().filter(|event| event.last >= since).cloned().collect();
        let not_kept = self.file.as_ref().map_or(0, EventFile::not_kept);
        EngineEvents { engine: self.engine.clone(), events, not_kept }
    }

    /// The engine has stopped: waits for a moment, and not for longer, until the file has everything.
    pub fn close(mut self) {
        if let Some(file) = self.file.take() {
            file.close();
        }
    }
}

#[cfg(test)]
mod tests;
