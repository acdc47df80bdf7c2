//! What happens in a run: episodes of requests, each with a fault that strikes while they are in flight.
//!
//! Everything that is struck is brought back within the episode or left for a later one; every episode
//! must come to its end in bounded virtual time once its faults are over, which is how stalls are found.

use crate::arranged;
use crate::cluster::Cluster;
use crate::cores;
use crate::finale;
use crate::flash;
use crate::idle;
use crate::kinds::Kind;
use crate::nvme;
use crate::plan::{CONTROLLERS, Plan, Scale};
use crate::{
    alone, host, log_loss, pool, rebuilds, report::Report, rewritten, rot, strikes, switches,
};
use cleave_runtime::random::Random;
use cleave_runtime_sim::{FaultPlan, Span};
use std::time::Duration;

/// How long the cluster may take to get over something.
pub const RECOVERY: Duration = Duration::from_secs(300);
/// How long an episode may take once nothing is wrong.
const EPISODE: Duration = Duration::from_secs(900);

/// Runs a seed from beginning to end.
pub fn run(seed: u64, scale: Scale, aloud: bool) -> Report {
    run_plan(Plan::draw(seed, scale), aloud)
}

/// Runs what a seed stands for, or something like it.
pub fn run_plan(plan: Plan, aloud: bool) -> Report {
    let mut cluster = Cluster::new(plan, aloud);
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| play(&mut cluster)));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        cluster.journal.fail(format!("panic: {}", text.unwrap_or_default()));
    }
    cluster.count();
    let report = Report::of(&cluster);
    cluster.end();
    report
}

fn play(cluster: &mut Cluster) {
    describe(cluster);
    for number in [0, 1] {
        cluster.start_controller(number);
    }
    cluster.start_host();
    cluster.until("the first start", RECOVERY, |c| c.serves() && c.mirrored());
    if cluster.plan.loses_everything {
        cluster.guests.iter().for_each(|guest| guest.borrow_mut().remember());
    }
    for episode in 0..cluster.plan.episodes {
        if cluster.journal.failed() {
            return;
        }
        play_episode(cluster, episode);
    }
    if !cluster.journal.failed() {
        finale::play(cluster);
    }
}

fn describe(cluster: &Cluster) {
    let plan = &cluster.plan;
    cluster.journal.note(format!(
        "{} drives of which {} may be harmed, log {:?}, write buffer {} KiB, {:?}",
        plan.drives,
        plan.victims,
        plan.log,
        plan.write_buffer >> 10,
        plan.destage
    ));
    if plan.shares > 1 {
        let (shares, cores) = (plan.shares, plan.cores);
        cluster.journal.note(format!("vdisks of {shares} shares on {cores} cores"));
    }
    for guest in cluster.guests.iter() {
        cluster.journal.note(guest.borrow().describe());
    }
}

/// What strikes in an episode.
#[derive(Clone, Copy, Debug)]
enum Strike {
    Nothing,
    HostCrash,
    ControllerCrash,
    ControllerPower,
    HostAndController,
    CleanStopOfBoth,
    CleanStopOfHost,
    LostDrive,
    Partition,
    Pause,
    FullDrive,
    StoreAway,
    Damage,
    Storm,
    HostMoves,
    DeleteVdisk,
}

const STRIKES: [(Strike, u64); 16] = [
    (Strike::Nothing, 2),
    (Strike::HostCrash, 5),
    (Strike::ControllerCrash, 5),
    (Strike::ControllerPower, 3),
    (Strike::HostAndController, 3),
    (Strike::CleanStopOfBoth, 3),
    (Strike::CleanStopOfHost, 2),
    (Strike::LostDrive, 3),
    (Strike::Partition, 3),
    (Strike::Pause, 3),
    (Strike::FullDrive, 1),
    (Strike::StoreAway, 2),
    (Strike::Damage, 3),
    (Strike::Storm, 3),
    (Strike::HostMoves, 3),
    (Strike::DeleteVdisk, 2),
];

fn draw_strike(cluster: &Cluster) -> Strike {
    let total: u64 = STRIKES.iter().map(|(_, weight)| weight).sum();
    let mut place = cluster.random.below(total);
    for (strike, weight) in STRIKES {
        if place < weight {
            return strike;
        }
        place -= weight;
    }
    unreachable!("the place is below the total")
}

/// A random time up to `max`, small ones as likely as large ones.
fn some_time(cluster: &Cluster, max: Duration) -> Duration {
    time_of(&*cluster.random, max)
}

/// A time from this stream, up to `max`, small ones as likely as large ones.
pub fn time_of(random: &dyn Random, max: Duration) -> Duration {
    let shift = random.below(16);
    let max = (max.as_nanos() as u64 >> shift).max(1);
    Duration::from_nanos(random.below(max))
}

fn play_episode(cluster: &mut Cluster, episode: u64) {
    cluster.journal.at(&cluster.world);
    let strike = draw_strike(cluster);
    cluster.journal.note(format!("episode {episode}: {strike:?}"));
    if cluster.plan.background_faults {
        cluster.world.run_faults(background(cluster));
    }
    let requests = cluster.plan.requests;
    let mut total = 0;
    for guest in cluster.guests.iter() {
        let budget = requests / 4 + cluster.random.below(requests);
        total += budget;
        guest.borrow_mut().set_budget(budget);
    }
    if let Some(host) = &cluster.host {
        host.process().wake();
    }
    // Strike when some part of the episode's requests has begun.
    let left = cluster.random.below(total + total / 8);
    let begun = |c: &Cluster| c.guests.iter().map(|g| g.borrow().budget()).sum::<u64>() <= left;
    cluster.reaches(Duration::from_secs(20), begun);
    cluster.pass(some_time(cluster, Duration::from_millis(20)));
    if cluster.journal.failed() {
        return;
    }
    switches::strike(cluster);
    cores::strike(cluster);
    carry_out(cluster, strike);
    if cluster.journal.failed() {
        return;
    }
    if cluster.second.below(cluster.plan.second_strike_one_in) == 0 {
        strikes::second(cluster);
    }
    flash::strike(cluster);
    nvme::strike(cluster);
    alone::strike(cluster);
    arranged::strike(cluster);
    nvme::fail_writes(cluster);
    rewritten::strike(cluster);
    rebuilds::strike(cluster);
    revive(cluster);
    cluster.calm();
    cluster.until("an episode", EPISODE, |c| c.guests_quiet() && c.serves());
    log_loss::look(cluster);
    if !cluster.journal.failed() {
        rot::strike(cluster);
        log_loss::strike(cluster);
    }
    if cluster.random.below(3) == 0 {
        cluster.pass(some_time(cluster, Duration::from_secs(600)));
    }
    if cluster.second.below(cluster.plan.idle_one_in) == 0 && !cluster.journal.failed() {
        idle::play(cluster);
    }
}

/// Faults that the world draws by itself.
fn background(cluster: &Cluster) -> FaultPlan {
    let random = &cluster.random;
    let often = [20_000, 300_000, 3_000_000][random.below(3) as usize];
    FaultPlan {
        interval: Span::micros(1_000, often),
        lasting: Span::micros(1_000, [10_000, 200_000, 5_000_000][random.below(3) as usize]),
        damage: 0,
        ..FaultPlan::default()
    }
}

fn carry_out(cluster: &mut Cluster, strike: Strike) {
    let random = std::rc::Rc::clone(&cluster.random);
    let one_of_two = random.below(2) as usize;
    match strike {
        Strike::Nothing => {}
        Strike::HostCrash => cluster.crash_host(one_of_two == 0),
        Strike::ControllerCrash => crash_controller(cluster, one_of_two, false),
        Strike::ControllerPower => crash_controller(cluster, one_of_two, true),
        Strike::HostAndController => {
            cluster.crash_host(random.below(2) == 0);
            crash_controller(cluster, one_of_two, random.below(2) == 0);
        }
        Strike::CleanStopOfBoth => {
            stop_both(cluster);
            if !cluster.journal.failed() {
                pool::judge_shards(cluster);
            }
        }
        Strike::CleanStopOfHost => stop_host(cluster),
        Strike::LostDrive => lose_drive(cluster),
        Strike::Partition => partition(cluster),
        Strike::Pause => pause(cluster),
        Strike::FullDrive => full_drive(cluster),
        Strike::StoreAway => store_away(cluster),
        Strike::Damage => damage(cluster),
        Strike::Storm => storm(cluster),
        Strike::HostMoves => move_host(cluster),
        Strike::DeleteVdisk => delete_vdisk(cluster),
    }
}

/// Brings everything back that is down, in any order.
pub fn revive(cluster: &mut Cluster) {
    let mut down: Vec<usize> =
        (0..2).filter(|number| cluster.controllers[*number].is_none()).collect();
    if cluster.host.is_none() {
        down.push(2);
    }
    while !down.is_empty() && !cluster.journal.failed() {
        let next = down.remove(cluster.random.below(down.len() as u64) as usize);
        cluster.pass(some_time(cluster, Duration::from_secs(5)));
        match next {
            2 => cluster.start_host(),
            controller => cluster.start_controller(controller),
        }
    }
}

/// Crashes a controller, if the log survives that.
pub fn crash_controller(cluster: &mut Cluster, number: usize, power: bool) {
    if cluster.controllers[number].is_some() && cluster.may_crash(number) {
        cluster.crash_controller(number, power);
    }
}

/// A clean stop of both controllers, under load or not: each writes its vault (C7).
pub fn stop_both(cluster: &mut Cluster) {
    cluster.until("mirrored before a clean stop", RECOVERY, Cluster::mirrored);
    if cluster.journal.failed() {
        return;
    }
    // What a fault of the background does to a clean stop is an unclean one.
    cluster.calm();
    cluster.journal.fault(Kind::ControllersStopped, "both controllers stop cleanly");
    let first = cluster.random.below(2) as usize;
    for number in [first, 1 - first] {
        if let Some(controller) = &cluster.controllers[number] {
            controller.stop();
        }
        cluster.pass(some_time(cluster, Duration::from_millis(5)));
    }
    let stopped = |c: &Cluster| c.controllers.iter().flatten().all(|one| one.stopped());
    if !cluster.until("a clean stop of both controllers", RECOVERY, stopped) {
        return;
    }
    for number in [0, 1] {
        if let Some(controller) = cluster.controllers[number].take() {
            controller.count(&cluster.journal);
            if let Some(problem) = controller.stop_problem() {
                let name = CONTROLLERS[number];
                cluster.journal.fail(format!("{name} did not stop cleanly: {problem}"));
            }
            controller.process().kill();
            cluster.catalogs[number].kill();
        }
    }
    cluster.images.set(cluster.role().map(|role| role.since));
    if cluster.random.below(2) == 0 {
        // Both machines may lose their power now.
        cluster.journal.fault(Kind::CleanPower, "both machines lose power after the clean stop");
        let random = std::rc::Rc::clone(&cluster.random);
        for number in [0, 1] {
            cluster.catalogs[number].lose_power(|_| random.below(2) == 0);
            cluster.vaults[number].power_loss();
        }
        cluster.drives.iter().for_each(cleave_runtime_sim::SimDrive::power_loss);
    }
}

/// A clean stop of the host engine: guests stop first, as virtual machines do when they are shut down.
pub fn stop_host(cluster: &mut Cluster) {
    for guest in cluster.guests.iter() {
        guest.borrow_mut().set_budget(0);
    }
    cluster.calm();
    // A stop has its limit, and an earlier strike's write may take longer than that.
    let at_rest = |c: &Cluster| {
        c.guests_quiet() && c.serves() && c.drives.iter().all(|drive| drive.in_flight() == 0)
    };
    if !cluster.until("guests and drives at rest", RECOVERY, at_rest) {
        return;
    }
    cluster.journal.fault(Kind::HostStopped, "the host engine stops cleanly");
    if let Some(host) = &cluster.host {
        host.close();
    }
    let closed = |c: &Cluster| c.host.as_ref().is_none_or(host::HostEngine::closed);
    if cluster.until("a clean stop of the host engine", RECOVERY, closed)
        && let Some(host) = cluster.host.take()
    {
        host.count();
        host.process().kill();
        cluster.guests.iter().for_each(|guest| guest.borrow_mut().engine_died(false));
    }
}

/// A vdisk is deleted while other guests and the background's faults go on; its guest gets a new one.
fn delete_vdisk(cluster: &mut Cluster) {
    if !cluster.until("served before a delete", RECOVERY, Cluster::serves) {
        return;
    }
    let number = cluster.random.below(cluster.guests.len() as u64) as usize;
    cluster.guests[number].borrow_mut().set_budget(0);
    let idle = |c: &Cluster| c.guests[number].borrow().is_quiet();
    if cluster.until("a guest at rest before a delete", EPISODE, idle)
        && let Some(host) = &cluster.host
    {
        cluster.journal.fault(Kind::Delete, format!("the vdisk of guest {number} is deleted"));
        host.replace_vdisk(number);
        cluster.until("a vdisk in place of a deleted one", RECOVERY, Cluster::serves);
        cluster.guests[number].borrow_mut().set_budget(cluster.plan.requests / 4);
        cluster.host.iter().for_each(|host| host.process().wake());
    }
}

fn lose_drive(cluster: &mut Cluster) {
    let next = usize::from(cluster.lost.get());
    if next < usize::from(cluster.plan.victims) {
        cluster.lost.set(cluster.lost.get() + 1);
        cluster.journal.note(format!("drive-{next} is lost"));
        cluster.drives[next].lose();
    }
}

/// Guests move to the other host while the engine that had them is paused, or cut off, or merely slow to
/// die; then it comes to.
fn move_host(cluster: &mut Cluster) {
    // An engine that is still opening could take the vdisks back, which nobody does to its successor.
    if !cluster.until("served before a move", RECOVERY, Cluster::serves) {
        return;
    }
    let name = cluster.host_name();
    let process = cluster.world.process(name).expect("it serves");
    let how = cluster.random.below(3);
    let what = ["is paused", "is cut off", "goes on"][how as usize];
    cluster.journal.fault(Kind::HostMoved, format!("{name} {what}, and its guests move"));
    match how {
        0 => process.pause(),
        1 => CONTROLLERS.iter().for_each(|other| cluster.world.partition(name, other)),
        _ => {}
    }
    cluster.pass(some_time(cluster, Duration::from_secs(5)));
    cluster.move_host();
    cluster.pass(some_time(cluster, Duration::from_secs(5)));
    if cluster.moves.below(2) == 0 && cluster.reaches(RECOVERY, Cluster::serves) {
        // What the old one knows is not what the guests have written meanwhile.
        strikes::keep_busy(cluster);
        cluster.pass(time_of(&*cluster.moves, Duration::from_secs(20)));
        strikes::keep_busy(cluster);
        cluster.journal.fault(Kind::HostOutlived, format!("{name} comes to"));
    }
    process.resume();
    CONTROLLERS.iter().for_each(|other| cluster.world.heal(name, other));
    cluster.pass(some_time(cluster, Duration::from_secs(5)));
    if cluster.random.below(2) == 0 {
        cluster.end_abandoned();
    }
}

fn pair(cluster: &Cluster) -> (&'static str, &'static str) {
    let pairs = [
        (CONTROLLERS[0], CONTROLLERS[1]),
        (cluster.host_name(), CONTROLLERS[0]),
        (cluster.host_name(), CONTROLLERS[1]),
    ];
    pairs[cluster.random.below(3) as usize]
}

fn partition(cluster: &mut Cluster) {
    let (a, b) = pair(cluster);
    let span = some_time(cluster, Duration::from_secs(20));
    match cluster.random.below(3) {
        0 => {
            cluster.journal.note(format!("{a} and {b} cannot talk for {span:?}"));
            cluster.world.partition(a, b);
        }
        1 => {
            cluster.journal.fault(Kind::OneWayCut, format!("{a} does not reach {b} for {span:?}"));
            cluster.world.cut(a, b);
        }
        _ => {
            cluster.journal.note(format!("connections of {a} and {b} break"));
            cluster.world.break_connections(a, b);
        }
    }
    cluster.pass(span);
    cluster.world.heal(a, b);
}

fn pause(cluster: &mut Cluster) {
    let names = [cluster.host_name(), CONTROLLERS[0], CONTROLLERS[1]];
    let name = names[cluster.random.below(3) as usize];
    let span = some_time(cluster, Duration::from_secs(15));
    if let Some(process) = cluster.world.process(name) {
        cluster.journal.note(format!("{name} pauses for {span:?}"));
        process.pause();
        cluster.pass(span);
        process.resume();
    }
}

/// The space behind one drive's file is used up for a while.
fn full_drive(cluster: &mut Cluster) {
    let number = cluster.random.below(u64::from(cluster.plan.drives)) as usize;
    let span = some_time(cluster, Duration::from_secs(10));
    let drive = &cluster.drives[number];
    cluster.journal.note(format!("no space behind {} for {span:?}", drive.name()));
    drive.set_full(true);
    cluster.pass(span);
    cluster.drives[number].set_full(false);
}

fn store_away(cluster: &mut Cluster) {
    let which = cluster.random.below(3) as usize;
    let set = |cluster: &Cluster, connected| match which {
        2 => cluster.host.iter().for_each(|host| {
            host.store().set_connected(connected);
            host.process().wake();
        }),
        number => cluster.controllers[number].iter().for_each(|controller| {
            controller.store().set_connected(connected);
            controller.process().wake();
        }),
    };
    let span = some_time(cluster, Duration::from_secs(10));
    let name = [CONTROLLERS[0], CONTROLLERS[1], cluster.host_name()][which];
    cluster.journal.fault(Kind::StoreAway, format!("the store is away from {name} for {span:?}"));
    set(cluster, false);
    if cluster.random.below(2) == 0 && which < 2 {
        crash_controller(cluster, 1 - which, false);
        cluster.pass(some_time(cluster, Duration::from_secs(1)));
        if cluster.controllers[1 - which].is_none() {
            cluster.start_controller(1 - which);
        }
    }
    cluster.pass(span);
    set(cluster, true);
}

/// Rot on the drives that may be harmed.
fn damage(cluster: &mut Cluster) {
    let victims = u64::from(cluster.plan.victims);
    if victims == 0 {
        return;
    }
    for _ in 0..1 + cluster.random.below(20) {
        let drive = cluster.drives[cluster.random.below(victims) as usize].clone();
        let Some(page) = drive.any_stored_page() else { continue };
        let name = drive.name().to_owned();
        match cluster.random.below(4) {
            0 => {
                drive.spoil(page, 1);
                cluster.journal.note(format!("{name}: {page} is unreadable"));
            }
            1 | 2 => {
                let (offset, bit) = (page + cluster.random.below(4096), cluster.random.below(8));
                drive.flip_bit(offset, bit as u8);
                cluster.journal.note(format!("{name}: bit {bit} of {offset}"));
            }
            _ => {
                drive.misdirect_next(1);
                cluster.journal.note(format!("{name}: the next write"));
            }
        }
    }
}

/// Crashes in quick succession: in the middle of joining, copying, opening, replaying.
fn storm(cluster: &mut Cluster) {
    for _ in 0..2 + cluster.random.below(4) {
        if cluster.journal.failed() {
            return;
        }
        match cluster.random.below(3) {
            2 => cluster.crash_host(cluster.random.below(2) == 0),
            number => crash_controller(cluster, number as usize, cluster.random.below(4) == 0),
        }
        let all_back = cluster.random.below(3) > 0;
        if all_back {
            revive(cluster);
        }
        cluster.pass(some_time(cluster, Duration::from_secs(2)));
    }
}
