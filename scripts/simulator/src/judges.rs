//! The judges are judged: a bug is planted, and some seed must find it.
//!
//! A run that finds a planted bug counts only when the same seed finds nothing without it. For each bug a seed
//! is recorded that found it; what a seed hits moves with every change of the engines, so one that does not
//! find its bug any more is no failure by itself: the seeds from 0 on are tried then, and only a bug that
//! [`SEEDS`] of them do not find says that schedules or judges have become too weak.

use crate::Scale;
use cleave_runtime::planted::{ALL, Planted, plant};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::mpsc;
use std::time::{Duration, Instant};

/// Seeds that are tried for a bug at most.
pub const SEEDS: u64 = 2_000;
/// Bugs of one turn of the rotation.
const BUGS_A_TURN: usize = 5;
/// Seeds of a rotation begin so far up, and each turn has its own.
const FRESH: u64 = 1_000_000;
/// So many of them are tried for a bug; one that few seeds hit is then searched for like any other, so that no
/// turn takes long.
const FRESH_A_BUG: u64 = 40;

/// Which bugs are planted, and what is tried for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Which {
    /// All, with the seeds from 0 on.
    All,
    /// All, with the recorded seed first: for each change.
    Recorded,
    /// A few, which the turn chooses, with seeds that nobody tried before; then with the recorded one.
    Rotation,
}

/// A bug, and the seeds that are tried for it in turn.
struct Search {
    bug: Planted,
    fresh: Range<u64>,
    recorded: Option<u64>,
    seeds: Range<u64>,
}

/// What came of a search.
pub struct Outcome {
    /// The bug.
    pub bug: Planted,
    /// The seed that found it, and what it found.
    pub found: Option<(u64, String)>,
    /// Runs made.
    pub runs: u64,
    /// How long they took.
    pub took: Duration,
}

impl Search {
    fn run(&self) -> Outcome {
        let begun = Instant::now();
        let (mut runs, mut found) = (0, None);
        for seed in self.fresh.clone().chain(self.recorded).chain(self.seeds.clone()) {
            runs += 1;
            plant(Some(self.bug));
            let failure = crate::run(seed, Scale::Small, false).failure;
            plant(None);
            let Some(failure) = failure else { continue };
            runs += 1;
            // A bug that is there without being planted is another matter.
            if crate::run(seed, Scale::Small, false).failure.is_none() {
                found = Some((seed, failure));
                break;
            }
        }
        Outcome { bug: self.bug, found, runs, took: begun.elapsed() }
    }
}

fn searches(which: Which, turn: u64) -> Vec<Search> {
    let from = FRESH + turn % FRESH * FRESH_A_BUG;
    let search = |bug| {
        let (fresh, recorded) = match which {
            Which::All => (0..0, None),
            Which::Recorded => (0..0, recorded(bug)),
            Which::Rotation => (from..from + FRESH_A_BUG, recorded(bug)),
        };
        Search { bug, fresh, recorded, seeds: 0..SEEDS }
    };
    let bugs = ALL.iter().copied();
    match which {
        Which::All | Which::Recorded => bugs.map(search).collect(),
        Which::Rotation => {
            let first = turn as usize % ALL.len() * BUGS_A_TURN;
            bugs.cycle().skip(first).take(BUGS_A_TURN).map(search).collect()
        }
    }
}

/// Plants bugs and searches for them on so many threads; hands over each outcome, in the order of the
/// bugs.
pub fn judge(which: Which, turn: u64, threads: usize, mut each: impl FnMut(&Outcome)) {
    let queue = Mutex::new(searches(which, turn).into_iter().enumerate());
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (send, queue) = (send.clone(), &queue);
            scope.spawn(move || {
                loop {
                    let next = queue.lock().expect("no search panics").next();
                    let Some((place, search)) = next else { break };
                    if send.send((place, search.run())).is_err() {
                        break;
                    }
                }
            });
        }
        drop(send);
        let (mut waiting, mut next) = (BTreeMap::new(), 0);
        for (place, outcome) in receive {
            waiting.insert(place, outcome);
            while let Some(outcome) = waiting.remove(&next) {
                next += 1;
                each(&outcome);
            }
        }
    });
}

/// The recorded seed of a bug.
fn recorded(bug: Planted) -> Option<u64> {
    FOUND.iter().find(|(known, _)| *known == bug).map(|found| found.1)
}

/// The first small seed that found each bug, when somebody looked last.
const FOUND: &[(Planted, u64)] = &[
    (Planted::AcknowledgeBeforeMirrored, 11),
    (Planted::AcknowledgeBeforeOnDrives, 152),
    (Planted::FreeUnderALateWrite, 160),
    (Planted::TakeGaps, 65),
    (Planted::CompleteOnFirstPart, 3),
    (Planted::CompleteOnFirstShare, 1),
    (Planted::MoveUndrained, 8),
    (Planted::OvertakeWideChanges, 1),
    (Planted::ForgetUnanswered, 0),
    (Planted::ReplayWithoutVersions, 4),
    (Planted::ApplyWithoutVersions, 2),
    (Planted::DropVersionsInRuns, 2),
    (Planted::ResendCovered, 6),
    (Planted::CommitAcrossLogs, 11),
    (Planted::LeaveRot, 2),
    (Planted::ReadWithoutChecks, 6),
    (Planted::SwapBeforeWritten, 1),
    (Planted::ScrubSkipsParity, 12),
    (Planted::RebuildWithoutChecks, 585),
    (Planted::ChecksumWithoutAddress, 148),
    (Planted::FlashWithoutChecks, 9),
    (Planted::FlashPlaceNotRechecked, 9),
    (Planted::StaleSegments, 6),
    (Planted::ReleaseTooMuch, 0),
    (Planted::ReleaseBeforeCommit, 2),
    (Planted::ReleaseStruck, 9),
    (Planted::LoseZeroEntries, 3),
    (Planted::MergeOntoPublished, 1),
    (Planted::MergeUnserialised, 5),
    (Planted::RoundDiscardsOutward, 0),
    (Planted::StartEmptyBesideThePeer, 11),
    (Planted::EmptyStandbyRejoins, 0),
    (Planted::LoadOldImage, 0),
    (Planted::AcceptOldOwners, 15),
    (Planted::AppendAfterSeal, 81),
    (Planted::OpenStaleMap, 7),
    (Planted::AcknowledgeSealEarly, 2),
    (Planted::ReadPastLease, 15),
    (Planted::CommitBeforeFlush, 1),
    (Planted::VaultNotFlushed, 3),
    (Planted::TrustFailedCommands, 30),
    (Planted::TrimBeforeSynced, 7),
    (Planted::NoReserveForCommits, 9),
    (Planted::ReuseSlotsEarly, 34),
    (Planted::LeakSlots, 0),
    (Planted::CommitTooFewShards, 32),
    (Planted::CrowdDrives, 10),
    (Planted::ReferToFreed, 17),
    (Planted::ReferWithoutHolding, 23),
    (Planted::FreeWhileReferenced, 3),
    (Planted::FreeBeforeTheCount, 7),
    (Planted::EvictChanged, 2),
    (Planted::FreeAheadOfTheRun, 50),
    (Planted::RunAheadOfItsFrontier, 4),
    (Planted::PublishOutOfOrder, 1),
    (Planted::ReadUnpublished, 3),
    (Planted::ReexecuteLate, 4),
    (Planted::ResumeNewestFirst, 4),
    (Planted::KeepDeletedRecords, 4),
    (Planted::ReuseNonces, 3),
];

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_seed_is_recorded_of_each_bug() {
        let bugs: BTreeSet<Planted> = FOUND.iter().map(|found| found.0).collect();
        assert_eq!(bugs.len(), FOUND.len(), "a bug is recorded twice");
        assert!(ALL.iter().all(|bug| bugs.contains(bug)), "each planted bug has a seed");
    }

    #[test]
    fn turns_plant_every_bug_and_try_other_seeds_each() {
        let (mut planted, mut tried) = (BTreeSet::new(), BTreeSet::new());
        let known = ALL.len();
        for turn in 0..known as u64 {
            for search in searches(Which::Rotation, turn) {
                planted.insert(search.bug);
                tried.insert(search.fresh.start);
                assert_eq!(search.fresh.end - search.fresh.start, FRESH_A_BUG);
            }
        }
        assert_eq!((planted.len(), tried.len()), (known, known));
    }
}
