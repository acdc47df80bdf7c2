//! What strikes NVMe controllers: in some episodes, after the other strikes, one of these, with commands in flight.
//!
//! What they leave behind is as with other strikes: a drive of the pool that may be lost is lost, or read errors and
//! bits that checks find; flash that the engine retires, or finds again at its next start.

use super::{Controller, Nvme};
use crate::cluster::Cluster;
use crate::director::{self, time_of};
use crate::kinds::Kind;
use crate::strikes::keep_busy;
use crate::{aimed, arranged, pool};
use cleave_nvme::model::{Fault, Scope};
use cleave_nvme::spec::command::io;
use cleave_nvme::spec::completion::Status;
use cleave_runtime::random::Random;
use std::rc::Rc;
use std::time::Duration;

/// What may happen to a controller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It takes many times as long, or longer than its driver waits.
    Slow,
    /// Commands fail.
    Fail,
    /// Commands are never completed, and aborts help or not.
    Hang,
    /// It writes completion entries that cannot be.
    Corrupt,
    /// Bits of what is read are flipped on their way into memory.
    Flip,
    /// It loses its power, and is there again.
    Power,
    /// It breaks down, and no reset helps.
    BreakDown,
    /// It is removed.
    Remove,
}

/// What strikes controllers how often.
pub const TROUBLES: [(Trouble, u64); 8] = [
    (Trouble::Slow, 4),
    (Trouble::Flip, 3),
    (Trouble::Fail, 4),
    (Trouble::Hang, 4),
    (Trouble::Corrupt, 4),
    (Trouble::Power, 3),
    (Trouble::BreakDown, 4),
    (Trouble::Remove, 3),
];

/// Failures that controllers report.
const STATUSES: [Status; 5] = [
    Status::INTERNAL,
    Status::WRITE_FAULT,
    Status::UNRECOVERED_READ,
    Status::CAPACITY_EXCEEDED,
    Status::NOT_READY,
];

/// Something may happen to a controller.
pub fn strike(cluster: &Cluster) {
    let Some(nvme) = &cluster.nvme else { return };
    let random = &nvme.random;
    if random.below(6) == 0 || cluster.journal.failed() {
        return;
    }
    let Some(controller) = target(cluster, nvme) else { return };
    let trouble = draw(random, &nvme.troubles);
    cluster.journal.at(&cluster.world);
    cluster.journal.note(format!("and to {}: {trouble:?}", controller.name));
    let slowed = controller.present();
    let latency = match (trouble, random.below(4)) {
        // Longer than the driver waits, now and then.
        (Trouble::Slow, 0) => Duration::from_secs(20),
        (Trouble::Slow, which) => Duration::from_millis([2, 50, 1_000][which as usize - 1]),
        // Commands are in flight for long enough to be hit.
        _ => Duration::from_millis(5),
    };
    let latencies = (Duration::from_micros(2), latency);
    slowed.iter().for_each(|device| device.model().set_latency(latencies));
    let met = aimed::write_until(cluster, |_| controller.outstanding() > 0);
    let before = controller.struck();
    match trouble {
        Trouble::Slow if met => {
            let what = format!("commands of {} take up to {latency:?}", controller.name);
            cluster.journal.fault(Kind::NvmeSlow, what);
            go_on(cluster, random);
        }
        Trouble::Slow => {}
        Trouble::Fail => fail(random, &controller),
        Trouble::Hang => hang(random, &controller),
        Trouble::Corrupt => corrupt(random, &controller),
        Trouble::Flip => flip(random, &controller),
        Trouble::Power => controller.cut_power(&cluster.journal),
        Trouble::BreakDown => {
            let how = [Fault::Fatal, Fault::NeverReady, Fault::NeverDisabled];
            let how = how[random.below(3) as usize].clone();
            controller.break_down(&cluster.journal, how);
        }
        Trouble::Remove => controller.remove(&cluster.journal),
    }
    // What waits for a command meets one, if guests bring one.
    if matches!(trouble, Trouble::Fail | Trouble::Hang | Trouble::Corrupt | Trouble::Flip) {
        aimed::write_until(cluster, |_| controller.struck() != before);
    }
    cluster.pass(time_of(random, Duration::from_secs(2)));
    slowed.iter().for_each(|device| {
        device.model().spare();
        device.model().set_latency(controller.options.latency);
    });
}

/// Writes to a drive of the pool fail while stripes are written, and nothing may count as written by them: once the
/// data node stopped cleanly every shard of its committed stripes is there (C10, C16).
pub fn fail_writes(cluster: &mut Cluster) {
    let Some(nvme) = &cluster.nvme else { return };
    let random = &nvme.of_writes;
    if nvme.pool.is_empty() || random.below(3) > 0 || cluster.journal.failed() {
        return;
    }
    let controller = Rc::clone(&nvme.pool[random.below(nvme.pool.len() as u64) as usize]);
    let scope = Scope { count: 1 + random.below(8) as u32, ..scope(random, io::WRITE) };
    let status = STATUSES[random.below(STATUSES.len() as u64) as usize];
    if !arranged::begin(cluster) {
        return;
    }
    cluster.journal.note(format!("writes to {} fail: {scope:?}, {status:?}", controller.name));
    inject(&controller, Fault::Fail(scope, status));
    let before = controller.struck();
    if aimed::write_until(cluster, |_| controller.struck() != before) {
        let committed = arranged::stats(cluster).stripes_committed;
        aimed::write_until(cluster, |c| arranged::stats(c).stripes_committed > committed);
        director::stop_both(cluster);
        if !cluster.journal.failed() {
            pool::judge_shards(cluster);
            director::revive(cluster);
        }
    }
    cluster.calm();
}

/// Guests go on for a while.
fn go_on(cluster: &Cluster, random: &dyn Random) {
    for _ in 0..1 + random.below(4) {
        keep_busy(cluster);
        cluster.pass(time_of(random, Duration::from_secs(10)));
    }
}

/// One of the controllers that are driven now, of the pool or of the present host's flash.
fn target(cluster: &Cluster, nvme: &Nvme) -> Option<Rc<Controller>> {
    let flash = nvme.of_flash(cluster.host_number());
    let all = nvme.pool.iter().cloned().chain(flash);
    let present: Vec<_> = all.filter(|one| one.present().is_some()).collect();
    present.get(nvme.random.below(present.len().max(1) as u64) as usize).cloned()
}

fn draw(random: &dyn Random, troubles: &[(Trouble, u64)]) -> Trouble {
    let mut place = random.below(troubles.iter().map(|(_, weight)| weight).sum());
    for (trouble, weight) in troubles {
        if place < *weight {
            return *trouble;
        }
        place -= weight;
    }
    unreachable!("the place is below the total")
}

/// Some of the commands to come.
fn scope(random: &dyn Random, opcode: u8) -> Scope {
    let (after, count) = (random.below(4) as u32, 1 + random.below(4) as u32);
    Scope { admin: false, opcode, after, count }
}

fn any_opcode(random: &dyn Random) -> u8 {
    [io::READ, io::WRITE, io::WRITE, io::FLUSH][random.below(4) as usize]
}

fn inject(controller: &Controller, fault: Fault) {
    controller.present().iter().for_each(|device| device.model().inject(fault.clone()));
}

fn fail(random: &dyn Random, controller: &Controller) {
    let opcode = any_opcode(random);
    let status = STATUSES[random.below(STATUSES.len() as u64) as usize];
    inject(controller, Fault::Fail(scope(random, opcode), status));
}

fn hang(random: &dyn Random, controller: &Controller) {
    let scope = scope(random, any_opcode(random));
    let how = if random.below(2) == 0 { Fault::Hang(scope) } else { Fault::HangForGood(scope) };
    inject(controller, how);
}

fn corrupt(random: &dyn Random, controller: &Controller) {
    let how = [Fault::UnknownCommand, Fault::WrongQueue, Fault::WrongHead, Fault::Twice];
    inject(controller, how[random.below(4) as usize].clone());
}

fn flip(random: &dyn Random, controller: &Controller) {
    let scope = Scope { count: 1 + random.below(20) as u32, ..scope(random, io::READ) };
    inject(controller, Fault::Flip(scope));
}

impl Controller {
    /// Commands in flight.
    fn outstanding(&self) -> usize {
        self.present().map_or(0, |device| device.model().outstanding())
    }

    /// Troubles that its commands met.
    fn struck(&self) -> u64 {
        let struck = self.present().map(|device| device.model().struck()).unwrap_or_default();
        struck.failed + struck.hung + struck.corrupt + struck.flipped
    }
}
