//! The simulated cluster: what lives through crashes (guests, drives, vaults, catalogs, the store), the
//! processes over it, and their starts, crashes and stops.
//!
//! A controller may be crashed only while every acknowledged record is held elsewhere:
//! [`Cluster::may_crash`] is the line between what Cleave survives and what it says it does not.

use crate::controller::ControllerEngine;
use crate::flash::Flash;
use crate::guest::Guest;
use crate::host::{HOSTS, HostEngine, Tenures};
use crate::journal::Journal;
use crate::kinds::Kind;
use crate::nvme::Nvme;
use crate::plan::{CONTROLLERS, Plan, stream};
use crate::store::SimStore;
use cleave_catalog::storage::MemoryStorage;
use cleave_coordinator::encoding::decode;
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{Answer, LogRole, Operation};
use cleave_datanode_core::vault::vault_capacity;
use cleave_format::ids::{DriveId, Incarnation};
use cleave_format::superblock::{COPIES, DriveIdentity, SUPERBLOCK, Superblock};
use cleave_runtime::drives::{Drive, DriveOperation, DriveRequest};
use cleave_runtime::random::Random;
use cleave_runtime_sim::{Process, Settings, SimDrive, World};
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

/// A simulated cluster.
pub struct Cluster {
    /// The world it lives in.
    pub world: World,
    /// What the seed stands for.
    pub plan: Rc<Plan>,
    /// What happened.
    pub journal: Journal,
    /// The coordinator store.
    pub store: SimStore,
    /// Randomness of the director.
    pub random: Rc<dyn Random>,
    /// Randomness of what was added to the director later: idling and second strikes.
    pub second: Rc<dyn Random>,
    /// Randomness of lost logs; `None`: there are none.
    pub log_losses: Option<Rc<dyn Random>>,
    /// Randomness of rot in the logs' memory; `None`: there is none.
    pub rot: Option<Rc<dyn Random>>,
    /// Randomness of strikes on regions that are written again and again, in seeds that have them.
    pub rewrites: Option<Rc<dyn Random>>,
    /// Where strikes in rebuilds are drawn from, if there are any.
    pub rebuilds: Option<Rc<dyn Random>>,
    /// Where orders to move the role are drawn from, if there are any.
    pub switches: Option<Rc<dyn Random>>,
    /// Randomness of strikes on a controller that is alone.
    pub alone: Rc<dyn Random>,
    /// Randomness of what is arranged.
    pub arranged: Rc<dyn Random>,
    /// Randomness of what comes after moves of guests.
    pub moves: Rc<dyn Random>,
    /// One guest a vdisk.
    pub guests: Rc<Vec<RefCell<Guest>>>,
    /// What the hosts remember of the vdisks that they served.
    pub tenures: Rc<Tenures>,
    /// The pool, in the order of drive identities.
    pub drives: Vec<SimDrive>,
    /// Each controller's vault.
    pub vaults: [SimDrive; 2],
    /// Each controller's catalog.
    pub catalogs: [MemoryStorage; 2],
    /// The host engine, while it runs.
    pub host: Option<HostEngine>,
    /// The number of the host that the guests are on.
    pub host_number: u32,
    /// The number of the host that they would move to.
    pub other_host: u32,
    /// An engine that was given up while it could not be reached, and may come to again.
    pub abandoned: Option<HostEngine>,
    /// The controllers, while they run.
    pub controllers: [Option<ControllerEngine>; 2],
    /// The hosts' flash, where they have any.
    pub flash: Option<Flash>,
    /// NVMe controllers, where there are any.
    pub nvme: Option<Nvme>,
    /// Drives that were lost.
    pub lost: Cell<u16>,
    /// Since which role epoch the vault images count that are both complete.
    pub images: Cell<Option<u64>>,
}

impl Cluster {
    /// A cluster at its very beginning: drives formatted, nothing runs but the store.
    pub fn new(plan: Plan, aloud: bool) -> Cluster {
        let plan = Rc::new(plan);
        let clock_drift_ppm_max = plan.clock_drift_ppm_max;
        let settings = Settings { clock_drift_ppm_max, ..Settings::default() };
        let world = World::with_settings(plan.seed, settings);
        let journal = Journal::new(&world, aloud);
        let second = Rc::new(stream(plan.seed, "second strikes"));
        let draws = |wanted: bool, subject| {
            wanted.then(|| Rc::new(stream(plan.seed, subject)) as Rc<dyn Random>)
        };
        let log_losses = draws(plan.loses_logs, "strikes that lose logs");
        let rot = draws(plan.rots_logs, "strikes of rot in logs");
        let rewrites = draws(plan.rewrites, "strikes on rewritten regions");
        let rebuilds = draws(plan.rebuilds, "strikes in rebuilds");
        let switches = draws(plan.switches, "orders to move the role");
        let arranged = Rc::new(stream(plan.seed, "arranged strikes"));
        let alone = Rc::new(stream(plan.seed, "a controller alone"));
        let moves = Rc::new(stream(plan.seed, "moves of guests"));
        let store = SimStore::new(&world);
        let random = world.random();
        let guest = |vdisk: &crate::plan::VdiskPlan| {
            let mut guest = Guest::new(vdisk.vdisk, vdisk.size, world.random(), journal.clone());
            // Guests of half of all runs write the same, so that their disks refer to each other's stripes.
            if plan.seed.is_multiple_of(2) {
                guest.write_as(plan.seed);
            }
            RefCell::new(guest)
        };
        let guests: Vec<_> = plan.vdisks.iter().map(guest).collect();
        let drive = |number| world.create_drive(&format!("drive-{number}"), plan.drive_size);
        let drives: Vec<SimDrive> = (0..plan.drives).map(drive).collect();
        let capacity = vault_capacity(plan.log.record_bytes_max, plan.log.control_bytes_max);
        let vault = |name: &str| world.create_drive(&format!("vault-{name}"), capacity);
        let vaults = CONTROLLERS.map(vault);
        format(&world, &plan, &drives);
        if plan.shared_drives {
            drives.iter().for_each(|drive| drive.set_ports(CONTROLLERS.len()));
        }
        let hosts = HOSTS.len() - 1;
        let flash = plan.flash.map(|size| Flash::new(&world, plan.seed, size, hosts));
        let nvme = plan.nvme.as_ref().map(|behind| {
            let flash = flash.as_ref().map_or(&[][..], Flash::devices);
            Nvme::new(plan.seed, behind, &drives, flash)
        });
        Cluster {
            plan,
            journal,
            store,
            random,
            second,
            log_losses,
            rewrites,
            rebuilds,
            switches,
            rot,
            alone,
            arranged,
            moves,
            guests: Rc::new(guests),
            tenures: Rc::default(),
            drives,
            vaults,
            catalogs: Default::default(),
            host: None,
            host_number: 1,
            other_host: 2,
            abandoned: None,
            controllers: [None, None],
            flash,
            nvme,
            lost: Cell::new(0),
            images: Cell::new(None),
            world,
        }
    }

    /// Starts the host engine.
    pub fn start_host(&mut self) {
        self.journal.at(&self.world);
        let (world, journal) = (&self.world, &self.journal);
        let host = HostEngine::start(
            world,
            &self.store,
            &self.plan,
            &self.guests,
            journal,
            &self.tenures,
            self.host_number,
            self.flash.as_ref().map(|flash| flash.of(self.host_number)),
            self.nvme.as_ref().and_then(|nvme| nvme.of_flash(self.host_number)),
        );
        self.host = Some(host);
    }

    /// Ends what faults have ahead of them; damage that was done stays.
    pub fn calm(&self) {
        self.world.calm();
        self.nvme.iter().for_each(Nvme::calm);
    }

    /// The number of the host whose guests run.
    pub fn host_number(&self) -> u32 {
        self.host_number
    }

    /// Crashes the host engine. `resume`: its guests live on (C24).
    pub fn crash_host(&mut self, resume: bool) {
        self.journal.at(&self.world);
        if let Some(host) = self.host.take() {
            let fate = if resume { "its guests live on" } else { "its guests die with it" };
            self.journal.fault(Kind::HostCrash, format!("the host engine crashes; {fate}"));
            host.count();
            host.process().kill();
            self.guests.iter().for_each(|guest| guest.borrow_mut().engine_died(resume));
        }
    }

    /// The host engine cannot be reached; its guests die, and start again on the other host, whose engine
    /// is told that the old one is dead. The old one is not, and may come to at any time (C8).
    pub fn move_host(&mut self) {
        self.journal.at(&self.world);
        self.end_abandoned();
        let Some(host) = self.host.take() else { return };
        host.abandon();
        self.guests.iter().for_each(|guest| guest.borrow_mut().moved());
        self.abandoned = Some(host);
        std::mem::swap(&mut self.host_number, &mut self.other_host);
        self.start_host();
    }

    /// The other host's engine joins, without any guests.
    pub fn join_host(&mut self) {
        self.journal.at(&self.world);
        self.end_abandoned();
        let (world, nobody) = (&self.world, Rc::new(Vec::new()));
        let (number, journal, tenures) = (self.other_host, &self.journal, &self.tenures);
        let (store, plan) = (&self.store, &self.plan);
        let host =
            HostEngine::start(world, store, plan, &nobody, journal, tenures, number, None, None);
        host.abandon();
        self.abandoned = Some(host);
    }

    /// The machine of the host is lost for good, with whatever it held; the guests start again on the
    /// other one, which is told so. False when no host is left that could stand by for the next one.
    pub fn lose_host(&mut self) -> bool {
        let spare = self.host_number.max(self.other_host) + 1;
        if spare as usize >= HOSTS.len() || self.host.is_none() {
            return false;
        }
        self.journal.at(&self.world);
        let lost = self.host_name();
        self.journal.fault(Kind::HostLost, format!("{lost} is lost for good"));
        self.end_abandoned();
        if let Some(host) = self.host.take() {
            host.count();
            host.process().kill();
        }
        self.guests.iter().for_each(|guest| guest.borrow_mut().engine_died(false));
        self.host_number = std::mem::replace(&mut self.other_host, spare);
        true
    }

    /// Kills the engine that was given up.
    pub fn end_abandoned(&mut self) {
        if let Some(old) = self.abandoned.take() {
            old.count();
            old.process().kill();
            self.guests.iter().for_each(|guest| guest.borrow_mut().end_spying());
        }
    }

    /// The incarnation of the host engine.
    pub fn incarnation(&self) -> Option<Incarnation> {
        self.host.as_ref().map(HostEngine::incarnation)
    }

    /// Gives every process a turn: something that they poll has changed.
    pub fn wake_all(&self) {
        self.world.processes().iter().for_each(Process::wake);
    }

    /// The name of the present host's process.
    pub fn host_name(&self) -> &'static str {
        HOSTS[self.host_number as usize]
    }

    /// Starts a controller.
    pub fn start_controller(&mut self, number: usize) {
        self.journal.at(&self.world);
        self.journal.note(format!("{} starts", CONTROLLERS[number]));
        self.controllers[number] = Some(ControllerEngine::start(self, number));
    }

    /// Crashes a controller's process; its machine may lose power with it.
    pub fn crash_controller(&mut self, number: usize, power: bool) {
        self.journal.at(&self.world);
        let Some(controller) = self.controllers[number].take() else { return };
        let (kind, what) = if power {
            (Kind::MachinePower, format!("the machine of {} loses power", CONTROLLERS[number]))
        } else {
            (Kind::ControllerCrash, format!("{} crashes", CONTROLLERS[number]))
        };
        self.journal.fault(kind, what);
        controller.count(&self.journal);
        controller.process().kill();
        if power {
            let random = Rc::clone(&self.random);
            self.catalogs[number].lose_power(|_| random.below(2) == 0);
            self.vaults[number].power_loss();
            // With ports for both, the drives have the power of either machine.
            let unpowered = match self.plan.shared_drives {
                true => self.controllers[1 - number].is_none(),
                false => number == 0,
            };
            if unpowered {
                self.drives.iter().for_each(SimDrive::power_loss);
            }
        } else {
            self.catalogs[number].kill();
        }
    }

    /// The data node's record in the store.
    pub fn role(&self) -> Option<LogRole> {
        let key = datanode_key(u64::from(self.plan.datanode.0));
        match self.store.server().execute(Operation::Get { key }) {
            Ok(Answer::Value(Some(found))) => decode(&found.value).ok(),
            _ => None,
        }
    }

    /// Whether the data node's log survives the crash of this controller.
    pub fn may_crash(&self, number: usize) -> bool {
        let Some(role) = self.role() else { return true };
        if self.images.get() == Some(role.since) && role.solo.is_none() {
            return true;
        }
        let incarnation = |number: usize| {
            self.controllers[number].as_ref().and_then(ControllerEngine::incarnation)
        };
        // Of three drives at most two may be harmed (C12).
        if role.solo.is_some() && self.plan.victims < 3 {
            return true;
        }
        let holds = |number| incarnation(number).is_some_and(|own: u64| role.is_in_sync(own));
        holds(1 - number) || !holds(number)
    }

    /// The controller that serves hosts.
    pub fn active(&self) -> Option<&ControllerEngine> {
        let serves = |one: &&ControllerEngine| one.status().is_some_and(|status| status.serving);
        self.controllers.iter().flatten().find(serves)
    }

    /// Whether both controllers hold the log and say so.
    pub fn mirrored(&self) -> bool {
        self.controllers.iter().all(|one| one.as_ref().is_some_and(ControllerEngine::mirrored))
    }

    /// Whether every vdisk is served.
    pub fn serves(&self) -> bool {
        self.host.as_ref().is_some_and(HostEngine::serves)
    }

    /// Whether no guest has anything to do.
    pub fn guests_quiet(&self) -> bool {
        self.guests.iter().all(|guest| guest.borrow().is_quiet())
    }

    /// Whether no guest has anything in flight.
    pub fn guests_idle(&self) -> bool {
        self.guests.iter().all(|guest| guest.borrow().is_idle())
    }

    /// Lets the world go on until `condition` holds. When it does not within `limit`, that is a failure.
    pub fn until(&self, what: &str, limit: Duration, condition: impl Fn(&Cluster) -> bool) -> bool {
        let reached = self.reaches(limit, condition);
        if !reached && !self.journal.failed() {
            self.journal.at(&self.world);
            self.journal.fail(format!(
                "not within {} s: {what}; {}",
                limit.as_secs(),
                self.state()
            ));
        }
        reached
    }

    /// Lets the world go on until `condition` holds, something fails, or `limit` has passed. Whether
    /// the condition holds.
    pub fn reaches(&self, limit: Duration, condition: impl Fn(&Cluster) -> bool) -> bool {
        let mut reached = false;
        self.world.run_until(
            || {
                reached = condition(self);
                reached || self.journal.failed()
            },
            limit,
        );
        self.journal.at(&self.world);
        reached && !self.journal.failed()
    }

    /// Lets that much time pass, or less when something fails.
    pub fn pass(&self, span: Duration) {
        self.world.run_until(|| self.journal.failed(), span);
        self.journal.at(&self.world);
    }

    /// Where everything stands, in words.
    pub fn state(&self) -> String {
        let guests: Vec<String> = self
            .guests
            .iter()
            .map(|guest| {
                let guest = guest.borrow();
                format!("vdisk {} {}", guest.vdisk(), guest.standing())
            })
            .collect();
        let controllers = [0, 1].map(|number| match &self.controllers[number] {
            Some(controller) => format!("{} {}", CONTROLLERS[number], controller.describe()),
            None => format!("{} is down", CONTROLLERS[number]),
        });
        let host = match self.host.as_ref().map(|host| (host.serves(), host.stats())) {
            None => "host is down".to_owned(),
            Some((_, None)) => "host is starting".to_owned(),
            Some((serves, Some(stats))) => format!("host serves {serves}: {stats:?}"),
        };
        format!("{}; {}; {host}", guests.join(", "), controllers.join("; "))
    }

    /// Counts what the running engines did.
    pub fn count(&self) {
        self.host.iter().for_each(HostEngine::count);
        self.controllers.iter().flatten().for_each(|controller| controller.count(&self.journal));
    }

    /// Ends all processes, so that nothing holds the world any more.
    pub fn end(&mut self) {
        for process in self.world.processes() {
            process.kill();
        }
        self.host = None;
        self.abandoned = None;
        self.controllers = [None, None];
    }
}

/// Writes the superblocks, as the making of a cluster does.
fn format(world: &World, plan: &Plan, drives: &[SimDrive]) {
    let process = world.start_process("format");
    for (number, drive) in drives.iter().enumerate() {
        let identity = identity(plan, number);
        let mut superblock =
            Superblock::for_size(identity, drive.capacity()).expect("drives are large enough");
        let open = process.open_drive(drive);
        for generation in 0..COPIES as u64 {
            superblock.generation = generation;
            let mut buffer = open.buffer(SUPERBLOCK);
            buffer.copy_from_slice(&superblock.encode());
            perform(
                world,
                &*open,
                DriveOperation::Write { offset: superblock.copy_offset() },
                Some(buffer),
            );
            perform(world, &*open, DriveOperation::Flush, None);
        }
    }
    process.kill();
}

/// Who a drive of the pool is.
pub fn identity(plan: &Plan, number: usize) -> DriveIdentity {
    let mut uuid = [0; 16];
    uuid[..8].copy_from_slice(&plan.seed.to_le_bytes());
    uuid[8] = number as u8;
    DriveIdentity {
        cluster: plan.cluster,
        datanode: plan.datanode,
        drive: DriveId(number as u16),
        uuid,
    }
}

fn perform(
    world: &World,
    drive: &dyn Drive,
    operation: DriveOperation,
    buffer: Option<cleave_runtime::buffer::Buffer>,
) {
    drive.submit(DriveRequest { token: 1, operation, buffer });
    let mut done = Vec::new();
    while done.is_empty() {
        assert!(world.step(), "a request completes");
        drive.poll(&mut done);
    }
    assert_eq!(done[0].result, Ok(()), "no faults before the run begins");
}
