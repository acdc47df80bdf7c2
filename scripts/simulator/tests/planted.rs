//! The judges are judged: each planted bug is found, by its recorded seed or by another.
#![cfg(feature = "planted-bugs")]

use cleave_simulator::judges::{Which, judge};

#[test]
fn every_planted_bug_is_found() {
    let mut missed = Vec::new();
    judge(Which::Recorded, 0, 2, |outcome| {
        let (bug, runs) = (outcome.bug, outcome.runs);
        match &outcome.found {
            Some((seed, what)) => {
                println!("{bug:?} is found by seed {seed}, {runs} runs: {what:.200}")
            }
            None => missed.push(bug),
        }
    });
    assert!(missed.is_empty(), "not found: {missed:?}");
}
