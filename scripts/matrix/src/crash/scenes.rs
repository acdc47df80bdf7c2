//! Scenes: what a cluster does that persists something, each machine's power cut at each operation of it.
//!
//! A scene begins in a cluster at rest, the same one each time. It is played once without a cut, which
//! counts the operations of each machine, then once for each operation and each way in which what was not
//! flushed remains, unless that leaves what another way left. The machine is started again after the cut, the scene goes on to its end, and the
//! [`judge`](super::judge) looks at the cluster.

use super::judge::{judge, stripes};
use crate::rig::{Machine, Rig};
use crate::tally::{Extent, Tally};
use crate::units::Unit;
use cleave_datanode_core::Phase;
use cleave_format::control::DriveState;
use cleave_format::ids::DriveId;
use cleave_format::layout::SLOT_HEADER;
use cleave_runtime_sim::Remains;
use std::time::Duration;

/// Cuts of a machine in a scene when they are sampled.
const FEW: u64 = 3;

/// A scene.
pub struct Scene {
    /// Its name.
    pub name: &'static str,
    /// Machines that are cut, one at a time.
    machines: &'static [Machine],
    /// A cluster as it is before; whether its machines share their power.
    begin: fn(bool) -> Rig,
    /// What happens.
    act: fn(&mut Rig),
}

use Machine::{Active, All, Standby, Store};

/// All scenes.
pub const SCENES: &[Scene] = &[
    Scene {
        name: "first start",
        machines: &[Active, Standby, Store, All],
        begin: Rig::new,
        act: |rig| {
            rig.start_controllers();
            rig.start_host();
            // With the memory of both goes their log; the guest has nothing in it yet.
            all_started(rig, true);
        },
    },
    Scene {
        name: "grant, shards, flush and commit",
        machines: &[Active, Standby],
        begin: Rig::running,
        act: |rig| {
            rig.destage(0..300);
        },
    },
    Scene {
        name: "commit without a stripe",
        machines: &[Active, Standby],
        begin: one_stripe,
        act: |rig| {
            let committed =
                |rig: &Rig| rig.host().stats().map_or(0, |stats| stats.stripeless_commits);
            let before = committed(rig);
            rig.write_zeroes(5..30);
            // What newer writes cover is only released.
            (0..6).for_each(|_| rig.write(0..100));
            rig.until("a commit without a stripe", |rig| committed(rig) > before);
            rig.settle();
        },
    },
    Scene {
        name: "map run",
        machines: &[Active, Standby],
        begin: one_stripe,
        // Each round is a commit; a run is due after a few.
        act: |rig| {
            for round in 0..4 {
                rig.destage((0..300).map(|block| block * 3 + round));
            }
            let runs = rig.host().stats().map_or(0, |stats| stats.runs);
            assert!(runs > 0, "no map run was written: the scene shows nothing");
        },
    },
    Scene {
        name: "trims",
        machines: &[Active, Standby],
        begin: some_content,
        // Over borders of slices and of stripes, some of them whole; then what is left is written over.
        act: |rig| {
            rig.discard(390..720);
            rig.write_zeroes_over(500..530);
            rig.destage((400..520).map(|block| block * 2 % 900));
            rig.discard(0..300);
            rig.kill_host();
            rig.start_host();
            rig.settle();
        },
    },
    Scene {
        name: "growth of a vdisk",
        machines: &[Active, Standby, Store],
        begin: some_content,
        act: |rig| {
            let old = rig.guest.blocks();
            rig.grow(300);
            rig.destage(old - 20..old + 280);
            rig.discard(old + 5..old + 15);
            rig.grow(20);
            rig.kill_host();
            rig.start_host();
            rig.settle();
        },
    },
    Scene {
        name: "deletion of a vdisk",
        machines: &[Active, Standby, Store],
        begin: some_content,
        act: |rig| {
            rig.delete_vdisk();
            rig.kill_host();
            rig.start_host();
            rig.settle();
        },
    },
    Scene {
        name: "loss of a drive",
        machines: &[Active, Standby],
        begin: some_content,
        act: |rig| {
            rig.lose(DriveId(3));
            rig.until("the loss is noticed", |rig| {
                let drives = rig.status(0).map_or_else(Vec::new, |status| status.drives);
                drives.iter().any(|(drive, _)| drive.state == DriveState::Lost)
            });
            rig.settle();
            rig.destage(300..600);
        },
    },
    Scene {
        name: "shards written anew",
        machines: &[Active, Standby],
        begin: |shared| {
            let mut rig = Rig::wide(shared);
            rig.destage((0..366).map(|block| block * 3));
            rig.destage(400..800);
            rig
        },
        act: |rig| {
            rig.lose(DriveId(3));
            // Also after a cut, of which the next process knows nothing.
            rig.pass(Duration::from_secs(25));
            rig.until("no shard is lacking", |rig| {
                let status = rig.status(0);
                status.is_some_and(|it| it.damage.degraded == 0 && !it.rebuild.running)
            });
            let rebuilt = rig.status(0).map_or(0, |status| status.counters.rebuilt);
            assert!(rig.was_cut() || rebuilt > 0, "nothing was rebuilt: the scene shows nothing");
            rig.settle();
        },
    },
    Scene {
        name: "scrub of damaged stripes",
        machines: &[Active, Standby, Store],
        begin: |shared| {
            let mut rig = Rig::wide(shared);
            rig.destage((0..366).map(|block| block * 3));
            rig.destage(400..800);
            rig.kill_host();
            rig.stop_controllers();
            // In turn of data and of parity, of the header and of the content.
            for (index, (_, row)) in stripes(&rig).into_iter().enumerate() {
                let place = row.slots[index * 2 % row.slots.len()];
                rig.flip(&place, (index % 2 * (SLOT_HEADER + 70_000) + 9) as u64);
            }
            rig.start_controllers();
            rig.start_host();
            rig.until("everything runs", |rig| rig.is_mirrored() && rig.serves());
            rig.settle();
            rig
        },
        act: |rig| {
            rig.scrub();
            // The judge looks whether everything is whole.
            let repaired = |number| rig.status(number).map_or(0, |it| it.counters.repaired);
            assert!(
                rig.was_cut() || repaired(0) + repaired(1) > 0,
                "nothing was mended: the scene shows nothing"
            );
            rig.settle();
        },
    },
    Scene {
        name: "new incarnation of a host",
        machines: &[Active, Standby, Store],
        begin: some_content,
        act: |rig| {
            rig.write(100..120);
            rig.kill_host();
            rig.start_host();
            rig.settle();
        },
    },
    Scene {
        name: "clean stop",
        machines: &[Active, Standby, All],
        begin: |shared| {
            let mut rig = some_content(shared);
            // Something must be in the log that is nowhere else.
            rig.write(400..420);
            rig
        },
        act: |rig| {
            let no_image = rig.stop_controllers() == 0;
            start_from_images(rig, no_image);
        },
    },
    Scene {
        name: "start from images",
        machines: &[Active, Standby, Store, All],
        begin: |shared| {
            let mut rig = some_content(shared);
            rig.write(400..420);
            rig.stop_controllers();
            rig
        },
        act: |rig| {
            start_from_images(rig, false);
        },
    },
    Scene {
        name: "copy of log and catalog",
        machines: &[Active, Standby, Store],
        begin: |shared| {
            let mut rig = some_content(shared);
            rig.write(400..420);
            rig.kill_controller(1);
            rig.lose_catalog(1);
            rig
        },
        act: |rig| {
            rig.start_controller(1);
            rig.until("copied", |rig| rig.is_mirrored());
            rig.settle();
        },
    },
    Scene {
        name: "going on alone, and the peer's return",
        machines: &[Active, Store],
        begin: some_content,
        act: |rig| {
            rig.kill_controller(1);
            alone(rig);
            // Until one session is worn, and another is filled beside it.
            let session =
                |rig: &Rig| rig.role().and_then(|role| role.solo).map(|solo| solo.session);
            let first = session(rig);
            for round in 0..40 {
                rig.write((0..60).map(|block| (60 * round + block) * 7 % 1000));
            }
            let cut = rig.was_cut();
            assert!(cut || session(rig) != first, "no session was worn: the scene shows less");
            rig.start_controller(1);
            rig.until("copied", |rig| rig.is_mirrored());
            rig.settle();
        },
    },
    Scene {
        name: "start of a controller that was alone",
        machines: &[Active, Store],
        begin: |shared| {
            let mut rig = some_content(shared);
            rig.kill_controller(1);
            alone(&mut rig);
            (0..4).for_each(|round| rig.write(100 * round..100 * round + 20));
            rig.kill_controller(0);
            rig
        },
        act: |rig| {
            rig.start_controller(0);
            alone(rig);
            rig.write(30..40);
            rig.start_controller(1);
            rig.until("copied", |rig| rig.is_mirrored());
            rig.settle();
        },
    },
];

/// Waits until the first controller goes on alone (C12). A cut before that is recorded takes the last memory that had the
/// log, in which nothing is: then the operator gives their word, and it is killed again.
fn alone(rig: &mut Rig) {
    let alone = |rig: &Rig| rig.status(0).is_some_and(|status| status.phase == Phase::Alone);
    let gone = |rig: &Rig| {
        let recorded = rig.role().is_some_and(|role| role.solo.is_some());
        let held = rig.status(0).is_some_and(|status| status.log.is_some());
        rig.was_cut() && !recorded && !held
    };
    rig.until("alone, or the log is lost", |rig| alone(rig) || gone(rig));
    if gone(rig) {
        rig.start_controller(1);
        all_started_anew(rig);
        rig.settle();
        rig.kill_controller(1);
        rig.until("alone with another log", alone);
    }
}

fn one_stripe(shared: bool) -> Rig {
    let mut rig = Rig::running(shared);
    rig.destage(0..300);
    rig
}

fn some_content(shared: bool) -> Rig {
    let mut rig = Rig::running(shared);
    rig.destage((0..300).map(|block| block * 3));
    rig.destage(400..700);
    rig.write_zeroes(36..38);
    rig
}

/// Starts both controllers after a clean stop. `no_image`: a cut came before either was written.
fn start_from_images(rig: &mut Rig, no_image: bool) {
    let members = |rig: &Rig| rig.role().map(|role| role.in_sync);
    let before = members(rig);
    rig.start_controllers();
    rig.until("mirrored, or not", |rig| rig.is_mirrored() || rig.has_no_log());
    // From the compare-and-swap on images count no more (C7); a cut may then take both memories.
    // A fence before it changes the epoch alone.
    let joined = members(rig) != before;
    all_started(rig, no_image || joined);
}

/// Waits until everything runs; or, where every machine lost its power and `forgiven` says that the log's last copy
/// went with them, gives the operator's word.
fn all_started(rig: &mut Rig, forgiven: bool) {
    let started = |rig: &Rig| rig.is_mirrored() && rig.serves();
    rig.until("everything runs, or the log is lost", |rig| started(rig) || rig.has_no_log());
    if rig.has_no_log() {
        // What one of them says before it has met the other is not the last word.
        rig.pass(Duration::from_secs(20));
    }
    if rig.has_no_log() {
        assert!(forgiven && rig.was_cut() && rig.shares_power(), "the log is gone without need");
        rig.order_empty_log();
    }
    rig.until("everything runs", started);
}

/// Both memories are gone: the operator gives their word.
fn all_started_anew(rig: &mut Rig) {
    rig.until("nobody has the log", |rig| rig.has_no_log());
    rig.order_empty_log();
    rig.until("everything runs", |rig| rig.is_mirrored() && rig.serves());
}

/// Each machine of each scene.
pub fn units() -> Vec<Unit> {
    let of_scene = |scene: &'static Scene| {
        scene.machines.iter().map(move |machine| {
            let subject = format!("crash: {}, {machine:?}", scene.name);
            Unit::new(subject.clone(), move |extent, only: &str, tally: &mut Tally| {
                if subject.contains(only) {
                    play_machine(&subject, scene, *machine, extent, tally);
                }
            })
        })
    };
    SCENES.iter().flat_map(of_scene).collect()
}

fn play_machine(subject: &str, scene: &Scene, machine: Machine, extent: Extent, tally: &mut Tally) {
    let whole = tally.play(subject, "no cut", || play(scene, machine, None));
    let Some((operations, _)) = whole else { return };
    tally.count(subject, "operations", operations);
    let places = extent.places(operations, FEW);
    for (index, place) in places.iter().enumerate() {
        let number = place + 1;
        // What each way would leave, and what was left in the cases that were played.
        let (mut outcomes, mut left) = (None::<[u64; 5]>, Vec::new());
        for (way, remains) in Remains::all(number).into_iter().enumerate() {
            // Sampled, each way has its turn.
            let turn = (index + scene.name.len() + way).is_multiple_of(5);
            if extent == Extent::Sampled && !turn {
                continue;
            }
            let name = format!("cut at operation {number} of {operations}, {remains:?} remains");
            tally.count(subject, "cuts", 1);
            if outcomes.is_some_and(|outcomes| left.contains(&outcomes[way])) {
                tally.count(subject, "equal to another", 1);
                continue;
            }
            let played =
                tally.play(subject, &name, || play(scene, machine, Some((number, remains))));
            outcomes = outcomes.or(played.and_then(|(_, outcomes)| outcomes));
            left.extend(outcomes.map(|outcomes| outcomes[way]));
        }
    }
}

/// Plays one case; gives how many operations the scene took of the machine, and what each way to remain would have
/// left.
fn play(scene: &Scene, machine: Machine, cut: Option<(u64, Remains)>) -> (u64, Option<[u64; 5]>) {
    let mut rig = (scene.begin)(machine == Machine::All);
    let before = rig.operations(machine);
    if let Some((number, remains)) = cut {
        rig.cut_at(machine, number, remains);
    }
    (scene.act)(&mut rig);
    let operations = rig.operations(machine) - before;
    // What comes after the scene is not cut. A cut near its end may come too late: an earlier one changes its course.
    rig.spare();
    let outcomes = rig.outcomes();
    judge(&mut rig);
    (operations, outcomes)
}
