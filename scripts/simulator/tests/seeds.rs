//! A few seeds, whole: the cluster loses nothing, and the same seed is the same run.
//!
//! `cleave-simulator --seeds A..B` runs more of them, and longer ones.

use cleave_simulator::budget::{Runner, seeds};
use cleave_simulator::{Plan, Scale, run, run_plan};

/// Some seeds. Those that once failed are in `seeds.txt`, and are run with every budget.
const SEEDS: std::ops::Range<u64> = 200..212;

#[test]
fn nothing_is_lost_or_stale() {
    let mut reached = std::collections::BTreeMap::new();
    for seed in SEEDS {
        let report = run(seed, Scale::Small, false);
        assert!(report.failure.is_none(), "{report}");
        for (what, count) in report.reached {
            *reached.entry(what).or_insert(0) += count;
        }
    }
    // Runs that reach nothing prove nothing.
    for what in [
        "records mirrored",
        "blocks read from the buffer",
        "blocks read from the pool",
        "stripes committed",
        "stripeless commits",
        "map runs",
        "stripes freed",
        "blocks deduplicated",
        "copies of the log",
    ] {
        assert!(reached[what] > 0, "no {what} in any seed: {reached:?}");
    }
}

#[test]
fn the_same_seed_is_the_same_run_in_any_thread() {
    let runs = [9, 25, 9, 25].map(|seed| {
        std::thread::spawn(move || {
            let report = run(seed, Scale::Small, false);
            (report.hash, report.operations, report.time, report.counters, report.faults)
        })
    });
    let [a, b, again_a, again_b] = runs.map(|run| run.join().expect("a run does not panic"));
    assert_eq!(a, again_a);
    assert_eq!(b, again_b);
    assert_ne!(a.0, b.0);
}

#[test]
fn many_threads_report_in_the_order_of_seeds() {
    let runner = |threads| Runner { threads, aloud: false, keep_going: false, prepare: &|| {} };
    let play = |threads| {
        let mut reports = Vec::new();
        runner(threads).run(seeds(300..306, Scale::Small), |report| {
            assert!(report.failure.is_none(), "{report}");
            reports.push((report.seed, report.hash));
            reports.len() == 4
        });
        reports
    };
    let reports = play(3);
    assert_eq!(reports.iter().map(|(seed, _)| *seed).collect::<Vec<_>>(), [300, 301, 302, 303]);
    assert_eq!(reports, play(1));
}

/// C2, C7: what a live host holds of a lost log is sent to the next one, and nothing is lost or revived.
#[test]
fn a_lost_log_loses_nothing_while_its_host_lives() {
    let plan = Plan { loses_logs: true, ..Plan::draw(1001, Scale::Usual) };
    let report = run_plan(plan, false);
    assert!(report.failure.is_none(), "{report}");
}
