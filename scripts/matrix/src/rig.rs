//! One small cluster of production cores whose machines lose their power, and one guest that knows what it
//! wrote.
//!
//! A data node of two controllers, four drives (2+2 stripes; six, and 3+2, where shards are to have somewhere to go), the coordinator store and one host with one vdisk.
//! A machine is what loses its power as a whole: a controller with its vault, its catalog and, for the first
//! one, the pool's drives; or the store with its file. What lives through that is the
//! devices, and what they hold is what their machine's [`Power`] and [`Remains`] left of it.
//!
//! [`Rig::until`] lets the cluster go on; when a power cut comes it settles the devices, kills the process and, after
//! a moment, starts it again, as a person would who comes back to it.

mod controller;
mod guest;
mod host;

pub use controller::OWNER;
pub use guest::{BLOCKS, Guest, content};

use cleave_catalog::storage::{MemoryStorage, Permit, Unsynced};
use cleave_coordinator::encoding::decode;
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{
    Answer, DirectServer, DirectStore, Hub, LogRole, Operation, RedbStore, Schedule, StoreClient,
};
use cleave_datanode_core::Phase;
use cleave_datanode_core::log::LogSettings;
use cleave_datanode_core::roles::order_start_empty;
use cleave_datanode_core::status::Status;
use cleave_datanode_core::vault::vault_capacity;
use cleave_format::control::SlotPlace;
use cleave_format::ids::{ClusterId, DatanodeId, DriveId, Position};
use cleave_format::superblock::{DriveIdentity, Superblock};
use cleave_runtime::drives::DriveIo;
use cleave_runtime::executor::Priority;
use cleave_runtime::links::PeerAddress;
use cleave_runtime::random::Random;
use cleave_runtime_sim::{Power, Process, Remains, SimDrive, Unsaved, World};
use controller::Controller;
use host::Host;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hasher};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// The cluster.
pub const CLUSTER: ClusterId = ClusterId([0x5a; 16]);
/// Its data node.
pub const DATANODE: DatanodeId = DatanodeId(1);
/// Drives of the pool.
pub const DRIVES: u16 = 4;
/// Drives of one in which a stripe does not need them all.
const DRIVES_WIDE: u16 = 6;
/// Names of the controllers' processes.
pub const CONTROLLERS: [&str; 2] = ["datanode-1-a", "datanode-1-b"];
/// Of which an eighth is for the logs of controllers that are alone: enough for four short ones.
const DRIVE_SIZE: u64 = 96 << 20;
const LOG: LogSettings = LogSettings { record_bytes_max: 8 << 20, control_bytes_max: 1 << 20 };
/// What anything may take once everything has power, in virtual time.
const LIMIT: Duration = Duration::from_secs(400);

/// A machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Of the active controller; the pool's drives are in it.
    Active,
    /// Of the standby.
    Standby,
    /// Of the store.
    Store,
    /// All three on one power line.
    All,
}

/// A cluster.
pub struct Rig {
    /// The world it lives in.
    pub world: World,
    /// The pool's drives, in the order of their identities.
    pub drives: Vec<SimDrive>,
    /// Each controller's vault.
    pub vaults: [SimDrive; 2],
    /// Each controller's catalog.
    pub catalogs: [MemoryStorage; 2],
    /// The store's file.
    pub store_file: MemoryStorage,
    /// The guest, which outlives every process.
    pub guest: Guest,
    store: DirectServer,
    store_process: Process,
    random: Rc<dyn Random>,
    powers: [Power; 3],
    remains: Cell<Remains>,
    /// Which operation is hit.
    hit: Cell<u64>,
    /// What each way to remain would have left at the first cut.
    outcomes: Option<[u64; 5]>,
    controllers: [Option<Controller>; 2],
    /// Whether a controller is started again after a cut.
    wanted: [bool; 2],
    /// Connections to the store: of the controllers, the host and a person who gives an order.
    stores: [Option<Rc<DirectStore>>; 4],
    host: Option<Host>,
    cuts: u64,
    /// Controllers whose clean stop was over when the first cut since it began came.
    stopped: Option<usize>,
    shared_power: bool,
    lost: Vec<DriveId>,
    /// Whether each catalog's file has its name: it gets it when it was created whole.
    named: [Cell<bool>; 2],
}

impl Rig {
    /// A cluster of which nothing runs yet but the store. Its drives are formatted.
    pub fn new(shared_power: bool) -> Rig {
        let mut rig = Rig::unformatted(shared_power);
        rig.format();
        rig
    }

    /// A cluster whose drives are as they came from the factory.
    pub fn unformatted(shared_power: bool) -> Rig {
        Rig::with_drives(DRIVES, shared_power)
    }

    fn with_drives(count: u16, shared_power: bool) -> Rig {
        let world = World::new(7);
        let random = world.random();
        let powers = match shared_power {
            true => {
                let power = Power::default();
                [power.clone(), power.clone(), power]
            }
            false => Default::default(),
        };
        let drive = |number| world.create_drive(&format!("drive-{number}"), DRIVE_SIZE);
        let drives: Vec<SimDrive> = (0..count).map(drive).collect();
        let capacity = vault_capacity(LOG.record_bytes_max, LOG.control_bytes_max);
        let vaults = CONTROLLERS.map(|name| world.create_drive(&format!("vault-{name}"), capacity));
        let catalogs: [MemoryStorage; 2] = Default::default();
        let store_file = MemoryStorage::new();
        drives.iter().chain([&vaults[0]]).for_each(|drive| drive.feed(&powers[0]));
        vaults[1].feed(&powers[1]);
        guard(&catalogs[0], &powers[0]);
        guard(&catalogs[1], &powers[1]);
        guard(&store_file, &powers[2]);
        let file = store_file.clone();
        let opened = RedbStore::on_storage(Path::new("store"), move || file.open());
        Rig {
            drives,
            vaults,
            catalogs,
            store_file,
            guest: Guest::new(),
            store: DirectServer::new(Hub::new(opened.expect("an empty store opens"))),
            store_process: world.start_process("store"),
            random,
            powers,
            remains: Cell::new(Remains::Nothing),
            hit: Cell::new(0),
            outcomes: None,
            controllers: [None, None],
            wanted: [false, false],
            stores: Default::default(),
            host: None,
            cuts: 0,
            stopped: None,
            shared_power,
            lost: Vec::new(),
            named: Default::default(),
            world,
        }
    }

    /// A cluster in which everything runs and a vdisk is served.
    pub fn running(shared_power: bool) -> Rig {
        Rig::new(shared_power).run()
    }

    /// The same, with a drive more than a stripe needs.
    pub fn wide(shared_power: bool) -> Rig {
        let mut rig = Rig::with_drives(DRIVES_WIDE, shared_power);
        rig.format();
        rig.run()
    }

    fn run(self) -> Rig {
        let mut rig = self;
        rig.start_controllers();
        rig.start_host();
        rig.until("the first start", |rig| rig.serves() && rig.is_mirrored());
        rig.settle();
        rig
    }

    /// Makes the drives those of the pool, with production's own flow.
    pub fn format(&mut self) {
        let process = self.world.start_process("format");
        for (number, drive) in self.drives.iter().enumerate() {
            let io = DriveIo::new(process.open_drive(drive));
            let (turning, done) = (io.clone(), Rc::new(Cell::new(false)));
            process.set_turn(move || turning.turn());
            let finished = Rc::clone(&done);
            process.executor().spawn(Priority::Foreground, async move {
                let formatted = cleave_datanode_core::superblocks::format(&io, identity(number));
                formatted.await.expect("a drive that works is formatted");
                finished.set(true);
            });
            process.wake();
            assert!(self.world.run_until(|| done.get(), LIMIT), "formatting ends");
        }
        process.kill();
    }

    /// Orders a cut at a machine's `number`-th operation from now on.
    pub fn cut_at(&self, machine: Machine, number: u64, remains: Remains) {
        self.remains.set(remains);
        self.hit.set(number);
        self.powers[power_of(machine)].cut_at(number);
    }

    /// At the first cut: a digest of what each of [`Remains::all`] with the operation's number would have left. What is
    /// the same goes on the same way.
    pub fn outcomes(&self) -> Option<[u64; 5]> {
        self.outcomes
    }

    /// Operations of a machine so far.
    pub fn operations(&self, machine: Machine) -> u64 {
        self.powers[power_of(machine)].operations()
    }

    /// No cut comes any more; whether one came.
    pub fn spare(&mut self) -> bool {
        self.restore_power();
        self.powers.iter().for_each(Power::spare);
        self.cuts > 0
    }

    /// Whether a cut came.
    pub fn was_cut(&self) -> bool {
        self.cuts > 0
    }

    /// Lets the cluster go on until `condition` holds.
    ///
    /// # Panics
    /// When it does not in time, or a process fails: that is what the matrix looks for.
    pub fn until(&mut self, what: &str, condition: impl Fn(&Rig) -> bool) {
        loop {
            let stop = |rig: &Rig| rig.is_cut() || rig.failure().is_some() || condition(rig);
            let reached = self.world.run_until(|| stop(self), LIMIT);
            if self.is_cut() {
                self.restore_power();
            } else if let Some(reason) = self.failure() {
                panic!("{reason}, while waiting for {what}");
            } else if reached {
                return;
            } else {
                panic!("not in time: {what}; {}", self.standing());
            }
        }
    }

    /// Lets that much time pass.
    pub fn pass(&mut self, span: Duration) {
        let end = self.world.now() + span;
        while self.world.now() < end {
            let left = end - self.world.now();
            self.world.run_until(|| self.is_cut(), left);
            if self.is_cut() {
                self.restore_power();
            } else {
                return;
            }
        }
    }

    fn is_cut(&self) -> bool {
        self.powers.iter().any(Power::is_out)
    }

    fn failure(&self) -> Option<String> {
        let of_host = self.host.iter().filter_map(Host::failure);
        self.controllers.iter().flatten().filter_map(Controller::failure).chain(of_host).next()
    }

    /// Settles what a cut left, and brings back what it took.
    fn restore_power(&mut self) {
        let remains = self.remains.get();
        let out: Vec<usize> = (0..3).filter(|at| self.powers[*at].is_out()).collect();
        if out.is_empty() {
            return;
        }
        if self.cuts == 0 {
            self.outcomes = Some(Remains::all(self.hit.get()).map(|way| self.foresee(&out, way)));
        }
        self.cuts += 1;
        self.stopped = self.stopped.or(Some(self.count_stopped()));
        for machine in &out {
            match machine {
                2 => settle_file(&self.store_file, remains),
                number => {
                    if *number == 0 {
                        self.drives.iter().for_each(|drive| drive.settle(remains));
                    }
                    self.vaults[*number].settle(remains);
                    settle_file(&self.catalogs[*number], remains);
                    if let Some(controller) = self.controllers[*number].take() {
                        controller.process().kill();
                    }
                    self.stores[*number] = None;
                }
            }
        }
        let store_out = out.contains(&2);
        if store_out {
            self.stores.iter().flatten().for_each(|store| store.set_connected(false));
        }
        out.iter().for_each(|machine| self.powers[*machine].restore());
        self.world.run_for(Duration::from_millis(50));
        if store_out {
            self.stores.iter().flatten().for_each(|store| store.set_connected(true));
            self.world.processes().iter().for_each(Process::wake);
        }
        for number in out.into_iter().filter(|number| *number < 2) {
            if self.wanted[number] {
                self.start_controller(number);
            }
        }
    }

    /// What a cut of these machines would leave.
    fn foresee(&self, out: &[usize], remains: Remains) -> u64 {
        let mut hasher = DefaultHasher::new();
        let mut file = |file: &MemoryStorage| {
            let file = file.copy();
            settle_file(&file, remains);
            hasher.write(&file.bytes());
        };
        out.iter().for_each(|machine| match machine {
            2 => file(&self.store_file),
            number => file(&self.catalogs[*number]),
        });
        let of_active = out.contains(&0).then_some(&self.drives).into_iter().flatten();
        let vaults = out.iter().filter_map(|machine| self.vaults.get(*machine));
        of_active.chain(vaults).for_each(|drive| hasher.write_u64(drive.foresee(remains)));
        hasher.finish()
    }

    fn connect(&self, client: &Process) -> Rc<DirectStore> {
        let (store, random, client) =
            (self.store_process.clone(), Rc::clone(&self.random), client.clone());
        let schedule: Schedule = Rc::new(move |arrives| {
            let client = client.clone();
            store.call_later(Duration::from_micros(50 + random.below(500)), move || {
                arrives();
                client.wake();
            });
        });
        Rc::new(self.store.connect(schedule))
    }

    /// The data node's record in the store.
    pub fn role(&self) -> Option<LogRole> {
        let key = datanode_key(u64::from(DATANODE.0));
        match self.store.execute(Operation::Get { key }) {
            Ok(Answer::Value(Some(found))) => decode(&found.value).ok(),
            _ => None,
        }
    }

    /// Starts both controllers.
    pub fn start_controllers(&mut self) {
        (0..2).for_each(|number| self.start_controller(number));
    }

    /// Starts a controller, unless its machine has no power: then it starts when that is back.
    pub fn start_controller(&mut self, number: usize) {
        self.wanted[number] = true;
        if !self.named[number].get() {
            self.catalogs[number].replace(Vec::new());
        }
        let controller = Controller::start(self, number);
        self.stores[number] = Some(Rc::clone(controller.store()));
        self.controllers[number] = Some(controller);
    }

    /// Kills a controller's process; its machine keeps its power.
    pub fn kill_controller(&mut self, number: usize) {
        self.wanted[number] = false;
        self.stores[number] = None;
        if let Some(controller) = self.controllers[number].take() {
            controller.process().kill();
            self.catalogs[number].kill();
        }
    }

    /// A clean stop of both controllers, which leaves an image of the log with each (C7). One that a cut hits
    /// meanwhile stays down. Gives how many were stopped when the first cut came, or in the end.
    pub fn stop_controllers(&mut self) -> usize {
        self.wanted = [false, false];
        self.stopped = None;
        for controller in self.controllers.iter().flatten() {
            controller.stop();
        }
        self.until("a clean stop of both controllers", |rig| {
            rig.controllers.iter().flatten().all(Controller::is_stopped)
        });
        let stopped = self.stopped.unwrap_or_else(|| self.count_stopped());
        (0..2).for_each(|number| self.kill_controller(number));
        stopped
    }

    fn count_stopped(&self) -> usize {
        self.controllers.iter().flatten().filter(|one| one.is_stopped()).count()
    }

    /// An operator has all stripes looked at, and what is damaged mended, by whichever controller is active; they give their
    /// word again when a cut took it.
    pub fn scrub(&mut self) {
        let before = Cell::new(None);
        self.until("all stripes are looked at", |rig| {
            let active = |one: &&Controller| one.status().is_some_and(|status| status.serving);
            let Some(controller) = rig.controllers.iter().flatten().find(active) else {
                return false;
            };
            let Some(scrub) = controller.status().map(|status| status.scrub) else { return false };
            match before.get() {
                _ if !scrub.running => false,
                Some(passes) if scrub.passes > passes => !scrub.hurried,
                _ if scrub.hurried => false,
                passes => {
                    before.set(passes.or(Some(scrub.passes)));
                    controller.scrub();
                    false
                }
            }
        });
    }

    /// Whether all machines are on one power line.
    pub fn shares_power(&self) -> bool {
        self.shared_power
    }

    /// Whether a drive of the pool is gone.
    pub fn is_lost(&self, drive: DriveId) -> bool {
        self.lost.contains(&drive)
    }

    /// A controller's disk is exchanged, and its catalog with it.
    pub fn lose_catalog(&self, number: usize) {
        self.named[number].set(false);
    }

    /// Takes a drive out of its machine.
    pub fn lose(&mut self, drive: DriveId) {
        self.lost.push(drive);
        self.drives[usize::from(drive.0)].lose();
    }

    /// Flips a bit of a slot, at this byte of it.
    pub fn flip(&self, place: &SlotPlace, at: u64) {
        let drive = &self.drives[usize::from(place.drive.0)];
        let identity = identity(usize::from(place.drive.0));
        let superblock = Superblock::for_size(identity, drive.capacity());
        let slot = superblock.expect("drives are large enough").slot_offset(place.slot);
        drive.flip_bit(slot + at, 3);
    }

    /// The operator's word that the log is given up, while no controller has it.
    pub fn order_empty_log(&mut self) {
        self.host().allow_another_log();
        let process = self.world.start_process("operator");
        let client = StoreClient::new(self.connect(&process));
        let (turning, done) = (client.clone(), Rc::new(Cell::new(false)));
        process.set_turn(move || turning.turn());
        let given = Rc::clone(&done);
        process.executor().spawn(Priority::Foreground, async move {
            given.set(order_start_empty(&client, DATANODE).await.is_ok());
        });
        process.wake();
        self.until("the operator's word is written", |_| done.get());
        process.kill();
    }

    /// Starts the host engine, which takes the vdisk and serves it.
    pub fn start_host(&mut self) {
        let host = Host::start(self);
        self.stores[2] = Some(Rc::clone(host.store()));
        self.host = Some(host);
    }

    /// Kills the host engine, with all that it held in memory.
    pub fn kill_host(&mut self) {
        self.stores[2] = None;
        if let Some(host) = self.host.take() {
            host.process().kill();
        }
    }

    /// Whether both controllers hold the log.
    pub fn is_mirrored(&self) -> bool {
        self.controllers.iter().all(|one| one.as_ref().is_some_and(Controller::is_mirrored))
    }

    /// Whether the vdisk is served.
    pub fn serves(&self) -> bool {
        self.host.as_ref().is_some_and(Host::serves)
    }

    /// Why the vdisk could not be opened.
    pub fn open_problem(&self) -> Option<String> {
        self.host.as_ref().and_then(Host::open_problem)
    }

    /// Whether a controller says that nobody has the log.
    pub fn has_no_log(&self) -> bool {
        let lost = |one: &Controller| matches!(one.phase(), Some(Phase::NoLog(_)));
        self.controllers.iter().flatten().any(lost)
    }

    /// The host engine.
    pub fn host(&self) -> &Host {
        self.host.as_ref().expect("the host engine runs")
    }

    /// A controller's status, once it has one.
    pub fn status(&self, number: usize) -> Option<Status> {
        self.controllers[number].as_ref().and_then(Controller::status)
    }

    /// Flips a bit of a record in the memory of a controller's log, at a position or after it.
    pub fn rot(&self, number: usize, from: Position, bit: u64) -> Option<Position> {
        self.controllers[number].as_ref().and_then(|one| one.rot(from, bit))
    }

    /// Flips a bit of a control record there.
    pub fn rot_control(&self, number: usize, from: Position, bit: u64) -> Option<Position> {
        self.controllers[number].as_ref().and_then(|one| one.rot_control(from, bit))
    }

    /// Lets the cluster go on until `condition` holds, or a process ends with an error, which it gives.
    ///
    /// # Panics
    /// When neither comes in time.
    pub fn until_or_failure(&mut self, condition: impl Fn(&Rig) -> bool) -> Option<String> {
        let over = self.world.run_until(|| self.failure().is_some() || condition(self), LIMIT);
        assert!(over, "neither done nor failed in time; {}", self.standing());
        self.failure()
    }

    /// Waits until nothing moves: what can be committed is, in both catalogs, and left the log.
    pub fn settle(&mut self) {
        self.until("quiescence", |rig| {
            let Some(records) = rig.host.as_ref().and_then(Host::records) else { return false };
            let log = |one: &Option<Controller>| one.as_ref().and_then(Controller::log);
            rig.is_mirrored()
                && rig.serves()
                && rig.controllers.iter().all(|one| log(one) == Some((records, 0)))
        });
    }

    fn standing(&self) -> String {
        let controllers = self.controllers.iter().flatten().map(Controller::describe);
        let controllers: Vec<String> = controllers.collect();
        let host = self.host.as_ref().map(Host::describe);
        format!("controllers {}; host {host:?}", controllers.join(" and "))
    }
}

/// Who a drive of the pool is.
pub fn identity(number: usize) -> DriveIdentity {
    DriveIdentity {
        cluster: CLUSTER,
        datanode: DATANODE,
        drive: DriveId(number as u16),
        uuid: [number as u8 + 1; 16],
    }
}

fn address(name: &str) -> PeerAddress {
    PeerAddress { name: name.to_owned(), address: String::new() }
}

fn power_of(machine: Machine) -> usize {
    match machine {
        Machine::Active | Machine::All => 0,
        Machine::Standby => 1,
        Machine::Store => 2,
    }
}

/// Has a file's operations counted by a machine's power.
pub fn guard(file: &MemoryStorage, power: &Power) {
    let power = power.clone();
    file.guard(Box::new(move || match (power.is_out(), power.operate()) {
        (true, _) => Permit::Out,
        (false, true) => Permit::Goes,
        (false, false) => Permit::Stops,
    }));
}

/// What a cut leaves of a file.
pub fn settle_file(file: &MemoryStorage, remains: Remains) {
    const SECTOR: usize = cleave_catalog::storage::SECTOR;
    file.settle(|unsynced| match unsynced {
        Unsynced::Sector { offset } => remains.keeps(Unsaved::Completed, (offset / SECTOR) as u64),
        Unsynced::UnderWay { offset, before, of } => {
            let hit = Unsaved::Hit { before: before as u64, of: of as u64 };
            remains.keeps(hit, (offset / SECTOR) as u64)
        }
        Unsynced::Length => remains.keeps(Unsaved::Completed, u64::MAX),
    });
}
