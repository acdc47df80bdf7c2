//! A data node in the simulator: two controllers over drives, vaults, catalogs and a store that
//! outlive them; and a scripted host.

mod host;

pub use host::{FakeHost, content, shard_content, slot_image};

use cleave_catalog::storage::MemoryStorage;
use cleave_catalog::{Catalog, Owner};
use cleave_coordinator::contract::Operation;
use cleave_coordinator::direct::{DirectServer, DirectStore};
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{Hub, LogRole, RedbStore, StoreClient, Transaction};
use cleave_datanode_core::catalog_port::InlineCatalog;
use cleave_datanode_core::drives::OpenDrive;
use cleave_datanode_core::log::LogSettings;
use cleave_datanode_core::roles::start_empty_key;
use cleave_datanode_core::status::Status;
use cleave_datanode_core::{DataNode, GRANTS_KEPT, Observer, Settings, World, superblocks, vault};
use cleave_format::ids::{ClusterId, DatanodeId, DriveId};
use cleave_format::superblock::{DriveIdentity, Superblock, choose};
use cleave_runtime::drives::{Drive, DriveIo};
use cleave_runtime::executor::Priority;
use cleave_runtime::links::PeerAddress;
use cleave_runtime_sim::{Process, SimDrive, Span, World as SimWorld};
use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

pub const CLUSTER: ClusterId = ClusterId([3; 16]);
pub const NAMES: [&str; 2] = ["datanode-1-a", "datanode-1-b"];
pub const SECOND: Duration = Duration::from_secs(1);
const DRIVES: u16 = 6;
const DRIVE_SIZE: u64 = 256 << 20;
pub const LOG: LogSettings =
    LogSettings { record_bytes_max: 16 << 20, control_bytes_max: 70 << 10 };

pub struct Controller {
    pub process: Process,
    pub node: Rc<DataNode>,
}

pub struct Rig {
    pub world: SimWorld,
    pub store: DirectServer,
    pub stores: [Option<Rc<DirectStore>>; 2],
    pub catalogs: [MemoryStorage; 2],
    pub vaults: [SimDrive; 2],
    pub pool: Vec<SimDrive>,
    pub controllers: [Option<Controller>; 2],
    /// Whether both controllers reach the pool.
    pub shared: bool,
    /// Whether a controller goes on alone.
    pub alone: bool,
    /// Whether some messages to and from the store take long; they are overtaken then.
    pub slow_store: bool,
    /// What the controllers told, whichever it was.
    pub observed: Rc<Observed>,
}

/// Durations as the controllers told them.
#[derive(Default)]
pub struct Observed {
    pub appends: RefCell<Vec<Duration>>,
    pub mirrored: RefCell<Vec<Duration>>,
}

impl Observer for Observed {
    fn appended(&self, took: Duration) {
        self.appends.borrow_mut().push(took);
    }

    fn mirrored(&self, took: Duration) {
        self.mirrored.borrow_mut().push(took);
    }

    fn shard_read(&self, _: Duration, _: usize, _: bool) {}
    fn shard_written(&self, _: Duration, _: bool) {}
}

pub fn address(name: &str) -> PeerAddress {
    PeerAddress { name: name.to_owned(), address: String::new() }
}

fn identity(drive: u16) -> DriveIdentity {
    let uuid = [drive as u8; 16];
    DriveIdentity { cluster: CLUSTER, datanode: DatanodeId(1), drive: DriveId(drive), uuid }
}

impl Rig {
    /// Formatted drives, and nothing running.
    pub fn new(seed: u64) -> Rig {
        let world = SimWorld::new(seed);
        let vault_bytes = vault::vault_capacity(LOG.record_bytes_max, LOG.control_bytes_max);
        let vaults = [0, 1].map(|n| world.create_drive(&format!("vault-{n}"), vault_bytes));
        let pool: Vec<_> =
            (0..DRIVES).map(|n| world.create_drive(&format!("drive-{n}"), DRIVE_SIZE)).collect();
        let rig = Rig {
            store: DirectServer::new(Hub::new(RedbStore::in_memory())),
            stores: [None, None],
            catalogs: [MemoryStorage::new(), MemoryStorage::new()],
            vaults,
            pool,
            controllers: [None, None],
            shared: false,
            alone: false,
            slow_store: false,
            observed: Rc::default(),
            world,
        };
        rig.format();
        rig
    }

    fn format(&self) {
        let process = self.world.start_process("formatter");
        let done = Rc::new(Cell::new(0));
        let mut ios = Vec::new();
        for (number, drive) in self.pool.iter().enumerate() {
            let (io, done) = (DriveIo::new(process.open_drive(drive)), Rc::clone(&done));
            ios.push(io.clone());
            process.executor().spawn(Priority::Foreground, async move {
                superblocks::format(&io, identity(number as u16)).await.unwrap();
                superblocks::identify(&io, &identity(number as u16)).await.unwrap();
                let other = superblocks::identify(&io, &identity(99)).await.unwrap_err();
                assert!(matches!(other, superblocks::SuperblockError::Other { .. }), "{other}");
                done.set(done.get() + 1);
            });
        }
        process.set_turn(move || ios.iter().fold(false, |any, io| io.turn() | any));
        assert!(self.world.run_until(|| done.get() == u32::from(DRIVES), 10 * SECOND));
        process.kill();
    }

    pub fn superblock(&self, drive: &SimDrive) -> Superblock {
        let copies = drive.peek(0, 8192);
        choose(&copies[..4096], &copies[4096..]).unwrap().0
    }

    pub fn open_pool(&self, process: &Process) -> Vec<(DriveId, Option<OpenDrive>)> {
        let open = |drive: &SimDrive| {
            let superblock = self.superblock(drive);
            let drive: Rc<dyn Drive> = process.try_open_drive(drive).ok()?;
            Some(OpenDrive { drive, superblock })
        };
        (0..).map(DriveId).zip(self.pool.iter().map(open)).collect()
    }

    /// Starts a controller's process.
    pub fn start(&mut self, controller: usize) {
        assert!(self.controllers[controller].is_none());
        let process = self.world.start_process(NAMES[controller]);
        let executor = process.executor();
        let schedule = {
            let (process, world, slow) = (process.clone(), self.world.clone(), self.slow_store);
            Rc::new(move |call: Box<dyn FnOnce()>| {
                let long = slow && world.draw(Span::micros(0, 3_999)) < Duration::from_millis(1);
                let delay = world.draw(Span::micros(50, if long { 400_000 } else { 2_000 }));
                process.call_later(delay, call);
            })
        };
        let direct = Rc::new(self.store.connect(schedule));
        self.stores[controller] = Some(Rc::clone(&direct));
        let owner = Owner { cluster: CLUSTER, datanode: DatanodeId(1) };
        let catalog = Catalog::open_storage(
            self.catalogs[controller].open(),
            Path::new(NAMES[controller]),
            owner,
        )
        .unwrap();
        let catalog_applied = catalog.applied();
        let settings = Settings {
            cluster: CLUSTER,
            datanode: DatanodeId(1),
            controller: controller as u8,
            peer: address(NAMES[1 - controller]),
            log: LOG,
            advice: None,
            take_over: true,
            alone: self.alone,
            grants_kept: GRANTS_KEPT,
        };
        let world = World {
            links: process.links(),
            executor: executor.clone(),
            store: StoreClient::new(direct),
            catalog: Box::new(InlineCatalog::new(catalog, executor, Duration::from_millis(1))),
            catalog_applied,
            vault: process.open_drive(&self.vaults[controller]),
            drives: match self.shared || controller == 0 {
                true => self.open_pool(&process),
                false => Vec::new(),
            },
            observer: Rc::clone(&self.observed) as Rc<dyn Observer>,
        };
        let node = Rc::new(DataNode::new(world, settings));
        let turning = Rc::clone(&node);
        process.set_turn(move || turning.turn());
        self.controllers[controller] = Some(Controller { process, node });
    }

    /// Puts ports for both controllers on the drives.
    pub fn share_pool(&mut self) {
        self.shared = true;
        self.pool.iter().for_each(|drive| drive.set_ports(2));
    }

    /// SIGKILL.
    pub fn kill(&mut self, controller: usize) {
        let Some(Controller { process, node }) = self.controllers[controller].take() else {
            return;
        };
        self.catalogs[controller].kill();
        process.kill();
        self.stores[controller] = None;
        drop(node);
    }

    /// SIGTERM to both, until they have ended.
    pub fn stop_both(&mut self) {
        self.stop_both_though(|_, failure| assert_eq!(failure, None));
    }

    /// As [`stop_both`](Rig::stop_both); `judge` looks at why each could not.
    pub fn stop_both_though(&mut self, judge: impl Fn(usize, Option<String>)) {
        for controller in self.controllers.iter().flatten() {
            controller.node.stop();
            controller.process.wake();
        }
        let stopped = {
            let nodes: Vec<_> =
                self.controllers.iter().flatten().map(|c| Rc::clone(&c.node)).collect();
            self.world.run_until(|| nodes.iter().all(|node| node.is_stopped()), 60 * SECOND)
        };
        assert!(stopped);
        for controller in [0, 1] {
            judge(controller, self.node(controller).failure());
            self.kill(controller);
        }
    }

    pub fn node(&self, controller: usize) -> &Rc<DataNode> {
        &self.controllers[controller].as_ref().expect("it runs").node
    }

    pub fn status(&self, controller: usize) -> Status {
        self.node(controller).status()
    }

    pub fn run_until_mirrored(&self) {
        let (a, b) = (Rc::clone(self.node(0)), Rc::clone(self.node(1)));
        let mirrored = self.world.run_until(|| a.is_mirrored() && b.is_mirrored(), 30 * SECOND);
        assert!(mirrored, "{:?} and {:?}", a.status(), b.status());
    }

    pub fn role(&self) -> Option<LogRole> {
        self.recorded().map(|(role, _)| role)
    }

    /// The record and its revision.
    pub fn recorded(&self) -> Option<(LogRole, u64)> {
        use cleave_coordinator::Answer;
        let key = datanode_key(1);
        match self.store.execute(Operation::Get { key }).unwrap() {
            Answer::Value(value) => value.map(|value| {
                (cleave_coordinator::encoding::decode(&value.value).unwrap(), value.revision)
            }),
            other => panic!("{other:?}"),
        }
    }

    /// The operator's word.
    pub fn order_start_empty(&self) {
        let epoch = self.role().expect("it had a log").epoch;
        let word = cleave_coordinator::encoding::encode(&epoch);
        let transaction = Transaction::new().put(start_empty_key(DatanodeId(1)), word);
        self.store.execute(Operation::Transact(transaction)).unwrap();
    }
}
