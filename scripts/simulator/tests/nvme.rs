//! Drives and flash behind NVMe controllers: each way to misbehave strikes with requests in flight, and loses nothing.

use cleave_simulator::kinds::Kind;
use cleave_simulator::nvme::Trouble;
use cleave_simulator::{Plan, Report, Scale, run_plan};

/// Each trouble with the kinds of faults by which it is counted.
const TROUBLES: [(Trouble, &[Kind]); 8] = [
    (Trouble::Slow, &[Kind::NvmeSlow, Kind::NvmeLate, Kind::NvmeOvertaking]),
    (Trouble::Fail, &[Kind::NvmeFailed]),
    (Trouble::Hang, &[Kind::NvmeHung, Kind::NvmeReset]),
    (Trouble::Corrupt, &[Kind::NvmeCorrupt, Kind::NvmeReset]),
    (Trouble::Flip, &[Kind::NvmeFlipped]),
    (Trouble::Power, &[Kind::NvmePower, Kind::NvmeReset]),
    (Trouble::BreakDown, &[Kind::NvmeBroken]),
    (Trouble::Remove, &[Kind::NvmeVanished]),
];
/// Seeds that are tried until a trouble struck by all of its kinds.
const SEEDS_MAX: usize = 40;

/// Plans of seeds with drives of the pool and flash behind controllers, which nothing else but this strikes.
fn plans(trouble: Trouble) -> impl Iterator<Item = Plan> {
    let plans = (0..).map(|seed| Plan::draw(seed, Scale::Small));
    plans.filter_map(move |mut plan| {
        let nvme = plan.nvme.as_mut().filter(|nvme| nvme.flash && !nvme.pool.is_empty())?;
        nvme.troubles = vec![(trouble, 1)];
        Some(plan)
    })
}

fn struck(reports: &[Report], kind: Kind) -> u64 {
    reports.iter().map(|report| report.faults[&kind].with_requests).sum()
}

#[test]
fn every_trouble_of_a_controller_strikes_and_loses_nothing() {
    for (trouble, kinds) in TROUBLES {
        let mut reports = Vec::new();
        for plan in plans(trouble).take(SEEDS_MAX) {
            let report = run_plan(plan, false);
            assert!(report.failure.is_none(), "{trouble:?}: {report}");
            reports.push(report);
            if kinds.iter().all(|kind| struck(&reports, *kind) > 0) {
                break;
            }
        }
        for kind in kinds {
            assert!(struck(&reports, *kind) > 0, "{trouble:?} brought no {}", kind.name());
        }
        let opened: u64 =
            reports.iter().map(|report| report.reached["NVMe namespaces opened"]).sum();
        let flash: u64 =
            reports.iter().map(|report| report.reached["blocks read from flash"]).sum();
        assert!(
            opened > 1 && flash > 0,
            "{trouble:?}: {opened} namespaces, {flash} blocks of flash"
        );
    }
}

#[test]
fn the_same_seed_is_the_same_run_behind_controllers_too() {
    let plan = || plans(Trouble::Hang).next().expect("there are such seeds");
    let runs = [(), ()].map(|()| std::thread::spawn(move || run_plan(plan(), false).hash));
    let [one, other] = runs.map(|run| run.join().expect("a run does not panic"));
    assert_eq!(one, other);
}
