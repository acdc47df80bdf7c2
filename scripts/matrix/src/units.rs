//! Units: parts of the matrices that know nothing of each other, played on all cores, with word of how far it is.
//!
//! A unit has a thread and a [`Tally`] of its own while it is played; a world never leaves the thread that made it.

use crate::tally::{Extent, Tally};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Plays subjects: to this extent, those whose name contains the text.
type Play = dyn Fn(Extent, &str, &mut Tally) + Send;

/// A part of a matrix.
pub struct Unit {
    name: String,
    play: Box<Play>,
}

/// Word of a unit that is over.
pub struct Progress<'a> {
    /// Its name.
    pub name: &'a str,
    /// What it did.
    pub tally: &'a Tally,
    /// How long it took.
    pub took: Duration,
    /// Units that are over, and all units.
    pub over: (usize, usize),
}

impl Unit {
    /// A unit of that name.
    pub fn new(
        name: impl Into<String>,
        play: impl Fn(Extent, &str, &mut Tally) + Send + 'static,
    ) -> Unit {
        Unit { name: name.into(), play: Box::new(play) }
    }
}

/// Plays units, in their order, on so many threads. `begin` is called in each thread first, `tell` after each
/// unit that did something.
pub fn play(
    units: Vec<Unit>,
    extent: Extent,
    only: &str,
    threads: usize,
    begin: impl Fn() + Sync,
    tell: impl Fn(&Progress<'_>) + Sync,
) -> Tally {
    let count = units.len();
    let (left, whole) = (Mutex::new(VecDeque::from(units)), Mutex::new((0, Tally::default())));
    let work = || {
        begin();
        loop {
            let next = left.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(unit) = next else { return };
            let (started, mut tally) = (Instant::now(), Tally::default());
            (unit.play)(extent, only, &mut tally);
            let mut whole = whole.lock().unwrap_or_else(PoisonError::into_inner);
            whole.0 += 1;
            if !tally.is_empty() {
                let (took, over) = (started.elapsed(), (whole.0, count));
                tell(&Progress { name: &unit.name, tally: &tally, took, over });
                whole.1.add(tally);
            }
        }
    };
    std::thread::scope(|scope| (0..threads.max(1)).for_each(|_| drop(scope.spawn(work))));
    whole.into_inner().unwrap_or_else(PoisonError::into_inner).1
}

/// As many threads as there are processors for this process.
pub fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}
