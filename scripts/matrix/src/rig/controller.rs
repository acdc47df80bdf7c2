//! A controller's process: the production core over its machine's devices, started as its shell does.

use super::{CLUSTER, CONTROLLERS, DATANODE, LOG, Rig, address, identity, power_of};
use crate::rig::Machine;
use cleave_catalog::{Catalog, Owner};
use cleave_coordinator::{DirectStore, StoreClient};
use cleave_datanode_core::catalog_port::InlineCatalog;
use cleave_datanode_core::drives::OpenDrive;
use cleave_datanode_core::status::Status;
use cleave_datanode_core::superblocks::identify;
use cleave_datanode_core::{DataNode, GRANTS_KEPT, NoObserver, Phase, Settings, World};
use cleave_format::ids::{DriveId, Position};
use cleave_runtime::drives::{Drive, DriveIo};
use cleave_runtime::executor::Priority;
use cleave_runtime_sim::Process;
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// The catalog's work takes this long.
const CATALOG_DELAY: Duration = Duration::from_micros(100);

/// Whose catalogs they are.
pub const OWNER: Owner = Owner { cluster: CLUSTER, datanode: DATANODE };

/// A running controller.
pub struct Controller {
    process: Process,
    store: Rc<DirectStore>,
    shared: Rc<Shared>,
}

#[derive(Default)]
struct Shared {
    node: RefCell<Option<DataNode>>,
    /// A drive whose superblock is being read.
    starting: RefCell<Option<DriveIo>>,
    stopping: Cell<bool>,
    failure: RefCell<Option<String>>,
}

impl Controller {
    /// Starts the process.
    pub fn start(rig: &Rig, number: usize) -> Controller {
        let process = rig.world.start_process(CONTROLLERS[number]);
        let store = rig.connect(&process);
        let shared = Rc::new(Shared::default());
        let machine = [Machine::Active, Machine::Standby][number];
        let power = rig.powers[power_of(machine)].clone();
        match Catalog::open_storage(rig.catalogs[number].open(), Path::new("catalog"), OWNER) {
            Ok(catalog) => {
                rig.named[number].set(true);
                let vault = process.open_drive(&rig.vaults[number]);
                let open = |drive| process.try_open_drive(drive).ok();
                let drives: Vec<_> = match number {
                    0 => rig.drives.iter().map(open).collect(),
                    _ => Vec::new(),
                };
                let client = StoreClient::new(store.clone());
                let start = start(
                    Rc::clone(&shared),
                    process.clone(),
                    number,
                    client,
                    catalog,
                    vault,
                    drives,
                );
                process.executor().spawn(Priority::Foreground, start);
            }
            Err(_) if power.is_out() => {}
            Err(error) => {
                *shared.failure.borrow_mut() =
                    Some(format!("the catalog cannot be opened: {error}"));
            }
        }
        let (turning, own) = (Rc::clone(&shared), process.clone());
        process.set_turn(move || {
            // Nothing is done without power, not even to the end of what was begun.
            if power.is_out() {
                own.kill();
                return false;
            }
            turning.turn()
        });
        Controller { process, store, shared }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its connection to the store.
    pub fn store(&self) -> &Rc<DirectStore> {
        &self.store
    }

    /// Begins a clean stop.
    pub fn stop(&self) {
        self.shared.stopping.set(true);
        if let Some(node) = &*self.shared.node.borrow() {
            node.stop();
        }
        self.process.wake();
    }

    /// An operator's word: looks at all stripes now.
    pub fn scrub(&self) {
        if let Some(node) = &*self.shared.node.borrow() {
            node.scrub();
        }
        self.process.wake();
    }

    /// Whether a clean stop is over.
    pub fn is_stopped(&self) -> bool {
        self.shared.node.borrow().as_ref().is_some_and(DataNode::is_stopped)
    }

    /// Whether both controllers hold the log, as it sees it.
    pub fn is_mirrored(&self) -> bool {
        self.shared.node.borrow().as_ref().is_some_and(DataNode::is_mirrored)
    }

    /// Entries of its log, and bytes of control records in it.
    pub fn log(&self) -> Option<(u64, u64)> {
        self.status().map(|status| (status.entries, status.control_bytes))
    }

    /// Flips a bit of a record in its log's memory, at a position or after it.
    pub fn rot(&self, from: Position, bit: u64) -> Option<Position> {
        self.shared.node.borrow().as_ref().and_then(|node| node.rot(from, bit))
    }

    /// As [`rot`](Controller::rot), of a control record; also of one that the peer was only sent.
    pub fn rot_control(&self, from: Position, bit: u64) -> Option<Position> {
        self.shared.node.borrow().as_ref().and_then(|node| node.rot_control(from, bit))
    }

    /// What it is doing.
    pub fn phase(&self) -> Option<Phase> {
        self.status().map(|status| status.phase)
    }

    /// Its status.
    pub fn status(&self) -> Option<Status> {
        self.shared.node.borrow().as_ref().map(DataNode::status)
    }

    /// Why it cannot go on.
    pub fn failure(&self) -> Option<String> {
        let own = self.shared.failure.borrow().clone();
        own.or_else(|| self.shared.node.borrow().as_ref().and_then(DataNode::failure))
    }

    /// In words.
    pub fn describe(&self) -> String {
        format!("{:?}", self.status())
    }
}

/// The shell's start.
async fn start(
    shared: Rc<Shared>,
    process: Process,
    number: usize,
    client: StoreClient,
    catalog: Catalog,
    vault: Rc<dyn Drive>,
    drives: Vec<Option<Rc<dyn Drive>>>,
) {
    let mut opened = Vec::new();
    for (index, drive) in drives.into_iter().enumerate() {
        let mut open = None;
        if let Some(drive) = drive {
            let io = DriveIo::new(Rc::clone(&drive));
            *shared.starting.borrow_mut() = Some(io.clone());
            let superblock = identify(&io, &identity(index)).await.ok();
            open = superblock.map(|superblock| OpenDrive { drive, superblock });
            *shared.starting.borrow_mut() = None;
        }
        opened.push((DriveId(index as u16), open));
    }
    let catalog_applied = catalog.applied();
    let world = World {
        links: process.links(),
        executor: process.executor(),
        store: client,
        catalog: Box::new(InlineCatalog::new(catalog, process.executor(), CATALOG_DELAY)),
        catalog_applied,
        vault,
        drives: opened,
        observer: Rc::new(NoObserver),
    };
    let settings = Settings {
        cluster: CLUSTER,
        datanode: DATANODE,
        controller: number as u8,
        peer: address(CONTROLLERS[1 - number]),
        log: LOG,
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

impl Shared {
    fn turn(&self) -> bool {
        let starting = self.starting.borrow().clone();
        let any = starting.is_some_and(|io| io.turn());
        let node = self.node.borrow();
        node.as_ref().is_some_and(DataNode::turn) || any
    }
}
