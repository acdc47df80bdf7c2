//! A controller's process: the production core, started and stopped as its shell would.
//!
//! Start: open the catalog, the vault and the pool's drives as far as they are within reach, check whose they are, then
//! run. What a crash leaves is what those hold; the log is gone.

use crate::cluster::{Cluster, identity};
use crate::journal::Journal;
use crate::kinds::Kind;
use crate::nvme::ProcessNvme;
use crate::plan::{CONTROLLERS, Plan};
use cleave_catalog::{Catalog, Owner};
use cleave_coordinator::{DirectStore, StoreClient};
use cleave_datanode_core::catalog_port::InlineCatalog;
use cleave_datanode_core::drives::OpenDrive;
use cleave_datanode_core::log::LogSettings;
use cleave_datanode_core::status::Status;
use cleave_datanode_core::superblocks::identify;
use cleave_datanode_core::{DataNode, GRANTS_KEPT, NoObserver, Settings, World as CoreWorld};
use cleave_format::ids::{DriveId, Position};
use cleave_nvme::place::Place;
use cleave_runtime::drives::{Drive, DriveIo};
use cleave_runtime::executor::Priority;
use cleave_runtime_sim::Process;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;

/// One turn in so many is followed by a look at the bounds of the log.
const BOUNDS_EVERY: u64 = 32;

/// A running controller.
pub struct ControllerEngine {
    process: Process,
    store: Rc<DirectStore>,
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    node: RefCell<Option<DataNode>>,
    /// Drives whose superblocks are being read, before the core has them.
    starting: RefCell<Vec<DriveIo>>,
    /// The NVMe controllers of its drives, where it has any.
    nvme: RefCell<Option<ProcessNvme>>,
    /// They are being told that power may go.
    parting: Cell<bool>,
    stopping: Cell<bool>,
    stopped: Cell<bool>,
    turns: Cell<u64>,
    /// Orders to move the role that were carried out.
    switched: Cell<u64>,
}

impl ControllerEngine {
    /// Starts the process.
    pub fn start(cluster: &Cluster, number: usize) -> ControllerEngine {
        let process = cluster.world.start_process(CONTROLLERS[number]);
        let store = cluster.store.connect(&process);
        let shared = Rc::new(Shared::default());
        let (journal, plan) = (cluster.journal.clone(), Rc::clone(&cluster.plan));
        let owner = Owner { cluster: plan.cluster, datanode: plan.datanode };
        let storage = cluster.catalogs[number].open();
        match Catalog::open_storage(storage, Path::new("catalog"), owner) {
            Ok(catalog) => {
                let vault = process.open_drive(&cluster.vaults[number]);
                let reached = number == 0 || cluster.plan.shared_drives;
                let mine = if reached { cluster.drives.as_slice() } else { &[] };
                let nvme = cluster.nvme.as_ref().filter(|_| number == 0);
                let open = |(index, drive)| match nvme.and_then(|nvme| nvme.place_of(index)) {
                    Some(place) => Opening::Nvme(place),
                    None => Opening::Plain(process.try_open_drive(drive).ok()),
                };
                let drives = mine.iter().enumerate().map(open).collect();
                if let Some(nvme) = nvme {
                    let taken = nvme.for_process(&cluster.world, &process, &journal);
                    *shared.nvme.borrow_mut() = Some(taken);
                }
                let client = StoreClient::new(store.clone());
                let world = Startup { process: process.clone(), client, catalog, vault, drives };
                let starting = start(Rc::clone(&shared), plan, number, world);
                process.executor().spawn(Priority::Foreground, starting);
            }
            Err(error) => journal.fail(format!("the catalog cannot be opened: {error}")),
        }
        let (turning, limits) = (Rc::clone(&shared), cluster.plan.log);
        let (world, own) = (cluster.world.clone(), process.clone());
        process.set_turn(move || {
            journal.at(&world);
            let nvme = turning.nvme.borrow().clone();
            let any = nvme.as_ref().is_some_and(ProcessNvme::turn);
            let any = turning.turn(&own, &journal, limits) || any;
            nvme.as_ref().is_some_and(ProcessNvme::turn) || any
        });
        ControllerEngine { process, store, shared }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its connection to the store.
    pub fn store(&self) -> &DirectStore {
        &self.store
    }

    /// An operator has all stripes looked at.
    pub fn scrub(&self) -> bool {
        self.shared.node.borrow().as_ref().is_some_and(DataNode::scrub)
    }

    /// Begins a clean stop.
    pub fn stop(&self) {
        self.shared.stopping.set(true);
        if let Some(node) = &*self.shared.node.borrow() {
            node.stop();
        }
        self.process.wake();
    }

    /// An operator's word: the other controller shall become the active one.
    pub fn switch_over(&self) {
        if let Some(node) = &*self.shared.node.borrow() {
            let switch = node.switch_over();
            let shared = Rc::clone(&self.shared);
            self.process.executor().spawn(Priority::Foreground, async move {
                if switch.await.is_ok() {
                    shared.switched.set(shared.switched.get() + 1);
                }
            });
        }
        self.process.wake();
    }

    /// Whether a stop is over, well or not.
    pub fn stopped(&self) -> bool {
        self.shared.stopped.get()
    }

    /// Why a stop was not clean.
    pub fn stop_problem(&self) -> Option<String> {
        self.shared.node.borrow().as_ref().and_then(DataNode::failure)
    }

    /// Counts what the core did.
    pub fn count(&self, journal: &Journal) {
        let Some(status) = self.status() else { return };
        let counters = status.counters;
        let faults = status.drives.iter().map(|(report, _)| report.counters.identity_faults);
        journal.struck(Kind::DuplicateRecord, counters.duplicates);
        journal.struck(Kind::TakenOver, counters.taken_over);
        journal.struck(Kind::SteppedDown, counters.stepped_down);
        journal.struck(Kind::Alone, counters.alone);
        let figures = [
            ("duplicate records", counters.duplicates),
            ("roles handed over", self.shared.switched.get()),
            ("expired grants", counters.expired),
            ("refused records", counters.refused),
            ("struck vdisks", counters.struck),
            ("copies of the log", counters.copies),
            ("logs of one controller begun on drives", counters.sessions),
            ("stripes freed", counters.freed),
            ("shards rebuilt", counters.rebuilt),
            ("damaged shards written anew", counters.repaired),
            ("refused references", counters.references_refused),
            ("records that rotted", counters.rotted),
            ("records mended", counters.mended),
            ("records given up", counters.given_up),
            ("slots of another stripe", faults.sum()),
        ];
        figures.into_iter().for_each(|(what, count)| journal.reach(what, count));
    }

    /// Flips a bit of a mirrored record in its log's memory, at a position or after it. `None`: there is none.
    pub fn rot(&self, from: Position, bit: u64) -> Option<Position> {
        self.shared.node.borrow().as_ref().and_then(|node| node.rot(from, bit))
    }

    /// Whether all records in its log pass their checks.
    pub fn is_sound(&self) -> bool {
        self.shared.node.borrow().as_ref().is_some_and(DataNode::is_sound)
    }

    /// Its incarnation, once it drew one.
    pub fn incarnation(&self) -> Option<u64> {
        let status = self.status()?;
        (status.incarnation.0 > 0).then_some(status.incarnation.0)
    }

    /// Whether both controllers hold the log now, as it sees it.
    pub fn mirrored(&self) -> bool {
        self.shared.node.borrow().as_ref().is_some_and(DataNode::is_mirrored)
    }

    /// Entries of its log, and bytes of control records in it.
    pub fn log(&self) -> Option<(u64, u64)> {
        self.status().map(|status| (status.entries, status.control_bytes))
    }

    /// Its status.
    pub fn status(&self) -> Option<Status> {
        self.shared.node.borrow().as_ref().map(DataNode::status)
    }

    /// In words.
    pub fn describe(&self) -> String {
        match self.status() {
            Some(status) => format!("{status:?}"),
            None => "starting".to_owned(),
        }
    }
}

struct Startup {
    process: Process,
    client: StoreClient,
    catalog: Catalog,
    vault: Rc<dyn Drive>,
    drives: Vec<Opening>,
}

/// A drive that is being opened.
enum Opening {
    /// It is, unless it is lost.
    Plain(Option<Rc<dyn Drive>>),
    /// It is behind an NVMe controller.
    Nvme(Place),
}

/// The shell's start.
async fn start(shared: Rc<Shared>, plan: Rc<Plan>, number: usize, startup: Startup) {
    let Startup { process, client, catalog, vault, drives } = startup;
    let mut opened = Vec::new();
    for (index, drive) in drives.into_iter().enumerate() {
        let mut open = None;
        let nvme = shared.nvme.borrow().clone();
        let drive = match (drive, nvme) {
            (Opening::Plain(drive), _) => drive,
            (Opening::Nvme(place), Some(nvme)) => nvme.open(place).await,
            (Opening::Nvme(_), None) => None,
        };
        if let Some(drive) = drive {
            let io = DriveIo::new(Rc::clone(&drive));
            shared.starting.borrow_mut().push(io.clone());
            // One whose superblock cannot be read counts as lost.
            let superblock = identify(&io, &identity(&plan, index)).await.ok();
            open = superblock.map(|superblock| OpenDrive { drive, superblock });
            shared.starting.borrow_mut().clear();
        }
        opened.push((DriveId(index as u16), open));
    }
    let catalog_applied = catalog.applied();
    let world = CoreWorld {
        links: process.links(),
        executor: process.executor(),
        store: client,
        catalog: Box::new(InlineCatalog::new(catalog, process.executor(), plan.catalog_delay)),
        catalog_applied,
        vault,
        drives: opened,
        observer: Rc::new(NoObserver),
    };
    let settings = Settings {
        cluster: plan.cluster,
        datanode: plan.datanode,
        controller: number as u8,
        peer: plan.peer_of(number),
        log: plan.log,
        advice: None,
        take_over: true,
        alone: true,
        grants_kept: GRANTS_KEPT,
    };
    let node = DataNode::new(world, settings);
    if shared.stopping.get() {
        node.stop();
    }
    *shared.node.borrow_mut() = Some(node);
    process.wake();
}

/// Rule 8: the log takes no more memory than it may.
fn check_bounds(status: &Status, limits: LogSettings) -> Result<(), String> {
    let held = [
        ("records", status.record_bytes, limits.record_bytes_max),
        ("control records", status.control_bytes, limits.control_bytes_max),
        ("memory", status.memory.0, status.memory.1),
    ];
    match held.iter().find(|(_, held, most)| held > most) {
        None => Ok(()),
        Some((what, held, most)) => {
            Err(format!("the log holds {held} bytes of {what}, {most} at most"))
        }
    }
}

impl Shared {
    fn turn(self: &Rc<Shared>, process: &Process, journal: &Journal, limits: LogSettings) -> bool {
        if self.parting.get() {
            return false;
        }
        let starting: Vec<DriveIo> = self.starting.borrow().clone();
        let mut any = false;
        for io in starting {
            any |= io.turn();
        }
        let node = self.node.borrow();
        let Some(node) = &*node else { return any };
        any |= node.turn();
        if let Some(reason) = node.failure() {
            journal.fail(format!("a controller cannot go on: {reason}"));
            return false;
        }
        if node.is_stopped() && !self.parting.replace(true) {
            let shared = Rc::clone(self);
            process.executor().spawn(Priority::Foreground, async move {
                let nvme = shared.nvme.borrow().clone();
                if let Some(nvme) = nvme {
                    nvme.stop().await;
                }
                shared.stopped.set(true);
            });
        }
        self.turns.set(self.turns.get() + 1);
        if self.turns.get().is_multiple_of(BOUNDS_EVERY)
            && let Err(what) = check_bounds(&node.status(), limits)
        {
            journal.fail(what);
        }
        any
    }
}
