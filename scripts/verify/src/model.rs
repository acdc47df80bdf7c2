//! For every sector: which contents a read may return.
//!
//! A request takes effect at one instant between its submission and its completion; one that was in
//! flight when the engine died, at one instant before its successor serves, or never. So a sector
//! usually has one content, held in a flat table; while requests on it are in flight or their fate
//! is open, it has a list of *versions*. A read may return a version unless that one was
//! *superseded* before the read began: by a write that began after the version had ended and was
//! completed, or by a read that decided between versions: what a read returned has taken effect, so
//! what came before it never comes back, and of several whose fate was open none that should have come
//! later did (reads are monotonic, C23).
//!
//! With one queue the engine promises more, and the model checks it: completions of
//! overlapping writes are published in the order taken, and no read returns a write's content
//! before that write is completed.

use crate::content::{Content, ZEROS};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

/// A moment: counts submissions and completions.
pub type Moment = u64;

/// A change in flight.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    number: u64,
}

/// A range of sectors: first, and one past the last.
pub type Sectors = std::ops::Range<u64>;

#[derive(Clone, Debug)]
struct Version {
    content: Content,
    change: u64,
    begun: Moment,
    ended: Option<Moment>,
    /// Whether it must have taken effect when it has ended.
    certain: bool,
    superseded: Option<Moment>,
}

/// A read returned what it may not.
#[derive(Debug, PartialEq, Eq)]
pub struct Violation {
    /// Where.
    pub sector: u64,
    /// What happened.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sector {} (byte {}): {}", self.sector, self.sector * 512, self.what)
    }
}

/// The history of a disk.
#[derive(Clone)]
pub struct Model {
    settled: Vec<Content>,
    open: BTreeMap<u64, Vec<Version>>,
    now: Moment,
    changes: u64,
    reads: BTreeSet<Moment>,
    /// All requests go through one queue.
    ordered: bool,
}

impl Model {
    /// A disk of zeros.
    pub fn zeros(sectors: u64, ordered: bool) -> Model {
        Model::holding(vec![ZEROS; sectors as usize], ordered)
    }

    /// A disk of known content, one entry a sector.
    pub fn holding(settled: Vec<Content>, ordered: bool) -> Model {
        Model {
            settled,
            open: BTreeMap::new(),
            now: 0,
            changes: 0,
            reads: BTreeSet::new(),
            ordered,
        }
    }

    /// The disk grows to so many sectors; what is new is zero.
    pub fn grow(&mut self, sectors: u64) {
        self.settled.resize(self.settled.len().max(sectors as usize), ZEROS);
    }

    /// A new change; its parts follow.
    pub fn change(&mut self) -> Change {
        self.changes += 1;
        self.tick();
        Change { number: self.changes }
    }

    /// The change will put `content` into these sectors; when not `certain`, it may leave them.
    pub fn begin(&mut self, change: Change, sectors: Sectors, content: Content, certain: bool) {
        for sector in sectors {
            let settled = self.settled[sector as usize];
            let versions = self.open.entry(sector).or_insert_with(|| {
                let (change, begun, ended) = (0, 0, Some(0));
                let certain = true;
                let superseded = None;
                vec![Version { content: settled, change, begun, ended, certain, superseded }]
            });
            versions.push(Version {
                content,
                change: change.number,
                begun: self.now,
                ended: None,
                certain,
                superseded: None,
            });
        }
    }

    /// The change was completed.
    pub fn complete(&mut self, change: Change, sectors: Sectors) -> Result<(), Violation> {
        let now = self.tick();
        for sector in sectors {
            let versions = self.open.get_mut(&sector).expect("a change in flight keeps it open");
            let own = position(versions, change);
            versions[own].ended = Some(now);
            let (begun, certain) = (versions[own].begun, versions[own].certain);
            if self.ordered {
                let overtaken = versions.iter().find(|version| {
                    version.begun > begun && version.ended.is_some_and(|ended| ended > begun)
                });
                if let Some(later) = overtaken {
                    let what = format!(
                        "a change begun at {begun} was completed at {now}, after a later overlapping one \
                         begun at {} and completed at {:?}",
                        later.begun, later.ended
                    );
                    return Err(Violation { sector, what });
                }
            }
            if certain {
                for version in versions.iter_mut().filter(|version| version.superseded.is_none()) {
                    let before = version.ended.is_some_and(|ended| ended < begun);
                    let ordered_before = self.ordered && version.begun < begun;
                    if before || ordered_before {
                        version.superseded = Some(now);
                    }
                }
            }
            self.settle(sector);
        }
        Ok(())
    }

    /// The engine died with the change in flight: it took effect or did not.
    pub fn lose(&mut self, change: Change, sectors: Sectors) {
        let now = self.tick();
        for sector in sectors {
            let versions = self.open.get_mut(&sector).expect("a change in flight keeps it open");
            let own = position(versions, change);
            versions[own].ended = Some(now);
            versions[own].certain = false;
        }
    }

    /// Contents that the sector may have, once nothing is in flight there.
    pub fn possible(&self, sector: u64) -> Vec<Content> {
        match self.open.get(&sector) {
            None => vec![self.settled[sector as usize]],
            Some(versions) => {
                let standing = versions.iter().filter(|version| version.superseded.is_none());
                standing.map(|version| version.content).collect()
            }
        }
    }

    /// Everything that was not durable is gone: the sector holds its present content or one of these, which
    /// were its contents before. Nothing may be in flight there.
    pub fn doubt(&mut self, sector: u64, older: &[Content]) {
        let now = self.tick();
        let settled = self.settled[sector as usize];
        let version = |content, change| Version {
            content,
            change,
            begun: now,
            ended: Some(now),
            certain: false,
            superseded: None,
        };
        let versions = self.open.entry(sector).or_insert_with(|| vec![version(settled, 0)]);
        assert!(versions.iter().all(|version| version.ended.is_some()), "nothing is in flight");
        for content in older {
            if versions.iter().all(|version| version.content != *content) {
                self.changes += 1;
                versions.push(version(*content, self.changes));
            }
        }
        // An old content that was superseded may be back.
        versions.iter_mut().for_each(|version| version.superseded = None);
        self.settle(sector);
    }

    /// A read begins.
    pub fn begin_read(&mut self) -> Moment {
        let now = self.tick();
        self.reads.insert(now);
        now
    }

    /// A read ended without a result.
    pub fn lose_read(&mut self, begun: Moment) {
        self.reads.remove(&begun);
    }

    /// A read that began at `begun` returned these contents, from `first` on.
    pub fn end_read(
        &mut self,
        begun: Moment,
        first: u64,
        contents: &[Content],
    ) -> Result<(), Violation> {
        let now = self.tick();
        self.reads.remove(&begun);
        for (sector, &content) in (first..).zip(contents) {
            let Some(versions) = self.open.get_mut(&sector) else {
                let expected = self.settled[sector as usize];
                if expected != content {
                    let what = format!("expected {expected:?}, read {content:?}");
                    return Err(Violation { sector, what });
                }
                continue;
            };
            let possible = versions.iter().any(|version| {
                version.content == content
                    && version.superseded.is_none_or(|superseded| superseded > begun)
                    && (version.ended.is_some() || !self.ordered)
            });
            if !possible {
                let what = format!(
                    "a read from {begun} to {now} returned {content:?}; the versions are {versions:?}"
                );
                return Err(Violation { sector, what });
            }
            // Only what still stands decides: an older content says that the read was early. And only
            // between versions that could not change any more when the read began.
            let standing =
                |version: &Version| version.content == content && version.superseded.is_none();
            let over = |version: &Version| version.ended.is_some_and(|ended| ended < begun);
            // One in flight, or ended since, that has the same content could be what was read.
            let certain = versions.iter().filter(|version| standing(version)).all(over);
            if versions.iter().any(standing) && certain {
                let others = versions.iter_mut().filter(|version| version.content != content);
                for version in others.filter(|version| over(version)) {
                    version.superseded.get_or_insert(now);
                }
                self.settle(sector);
            }
        }
        Ok(())
    }

    /// Forgets versions that no read in flight can return any more, everywhere.
    pub fn sweep(&mut self) {
        let sectors: Vec<u64> = self.open.keys().copied().collect();
        sectors.into_iter().for_each(|sector| self.settle(sector));
    }

    /// How many sectors have more than one possible content.
    pub fn undecided(&self) -> usize {
        self.open.len()
    }

    /// The content of every sector.
    ///
    /// # Panics
    /// When a sector's content is not decided: read everything first.
    pub fn into_contents(mut self) -> Vec<Content> {
        self.sweep();
        assert!(self.open.is_empty(), "the content of {} sectors is not known", self.open.len());
        self.settled
    }

    fn settle(&mut self, sector: u64) {
        let Some(versions) = self.open.get_mut(&sector) else { return };
        let oldest_read = self.reads.first().copied().unwrap_or(Moment::MAX);
        versions.retain(|version| {
            version.ended.is_none()
                || version.superseded.is_none_or(|superseded| superseded > oldest_read)
        });
        let content = versions[0].content;
        let one = versions.iter().all(|version| {
            version.content == content && version.ended.is_some() && version.superseded.is_none()
        });
        if one {
            self.settled[sector as usize] = content;
            self.open.remove(&sector);
        }
    }

    fn tick(&mut self) -> Moment {
        self.now += 1;
        self.now
    }
}

fn position(versions: &[Version], change: Change) -> usize {
    let own = |version: &Version| version.change == change.number;
    versions.iter().position(own).expect("a change in flight is among the versions")
}

#[cfg(test)]
mod tests;
