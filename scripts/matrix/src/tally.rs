//! What a matrix did, in figures, and what it found.

use std::collections::BTreeMap;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// How much of a matrix is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Places spread evenly over each subject, the same ones each time: for `cargo test`.
    Sampled,
    /// All of it.
    Exhaustive,
}

impl Extent {
    /// As `CLEAVE_MATRIX` says: `all` is everything.
    pub fn of_environment() -> Extent {
        match std::env::var("CLEAVE_MATRIX").as_deref() {
            Ok("all") => Extent::Exhaustive,
            _ => Extent::Sampled,
        }
    }

    /// Of the places 0 to `count` (not included) all, or `few` of them: the first, the last and some between.
    pub fn places(self, count: u64, few: u64) -> Vec<u64> {
        match self {
            Extent::Sampled if count > few => {
                let place = |index| index * (count - 1) / (few - 1).max(1);
                (0..few).map(place).collect()
            }
            _ => (0..count).collect(),
        }
    }
}

/// Figures by subject, and failures.
#[derive(Debug, Default)]
pub struct Tally {
    subjects: BTreeMap<String, BTreeMap<&'static str, u64>>,
    failures: Vec<String>,
}

impl Tally {
    /// Counts something of a subject.
    pub fn count(&mut self, subject: &str, what: &'static str, count: u64) {
        let figures = self.subjects.entry(subject.to_owned()).or_default();
        *figures.entry(what).or_default() += count;
    }

    /// Plays one case; a panic in it is a failure, and told with the case's name.
    pub fn play<T>(&mut self, subject: &str, name: &str, case: impl FnOnce() -> T) -> Option<T> {
        self.count(subject, "cases", 1);
        match catch_unwind(AssertUnwindSafe(case)) {
            Ok(outcome) => Some(outcome),
            Err(panic) => {
                let text = panic.downcast_ref::<String>().cloned();
                let text = text.or_else(|| panic.downcast_ref::<&str>().map(|t| (*t).to_owned()));
                self.failures.push(format!("{subject}, {name}: {}", text.unwrap_or_default()));
                None
            }
        }
    }

    /// Adds what another one counted and found.
    pub fn add(&mut self, other: Tally) {
        for (subject, figures) in other.subjects {
            figures.into_iter().for_each(|(what, count)| self.count(&subject, what, count));
        }
        self.failures.extend(other.failures);
    }

    /// Whether nothing was done.
    pub fn is_empty(&self) -> bool {
        self.subjects.is_empty() && self.failures.is_empty()
    }

    /// What failed.
    pub fn failures(&self) -> &[String] {
        &self.failures
    }

    /// A figure of a subject.
    pub fn figure(&self, subject: &str, what: &str) -> u64 {
        self.subjects.get(subject).and_then(|figures| figures.get(what)).copied().unwrap_or(0)
    }

    /// The sum of a figure over all subjects.
    pub fn sum(&self, what: &str) -> u64 {
        self.subjects.values().filter_map(|figures| figures.get(what)).sum()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (subject, figures) in &self.subjects {
            let figures: Vec<String> =
                figures.iter().map(|(what, count)| format!("{count} {what}")).collect();
            writeln!(f, "{subject}: {}", figures.join(", "))?;
        }
        for failure in &self.failures {
            writeln!(f, "FAILED {failure}")?;
        }
        write!(f, "{} cases, {} failed", self.sum("cases"), self.failures.len())
    }
}
