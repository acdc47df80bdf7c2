//! A host core in a simulated world, a scripted controller, and a model of what a disk may show.

pub mod controller;
pub mod model;

use cleave_codec::Keys;
use cleave_format::flash::FlashId;
use cleave_format::ids::*;
use cleave_host_core::*;
use cleave_runtime::executor::Priority;
use cleave_runtime::links::PeerAddress;
use cleave_runtime_sim::{Process, SimDrive, World};
use controller::Pool;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

pub const DISK: VdiskId = VdiskId(4);

/// The parts of a small cluster.
pub struct Rig {
    pub world: World,
    pub pool: Rc<RefCell<Pool>>,
    pub controller: Option<Process>,
    pub host: Option<(Process, HostCore)>,
    pub incarnation: u64,
    pub size: u64,
    pub keys: Option<Keys>,
    pub write_buffer: u64,
    pub memory: Option<u64>,
    pub destage: DestageConfig,
    /// Bytes for maps.
    pub map: u64,
    /// The host's flash, when it has any.
    pub flash: Option<SimDrive>,
}

impl Rig {
    pub fn new(seed: u64, size: u64) -> Rig {
        let destage = DestageConfig {
            run_after: 3,
            full_after: Duration::from_millis(100),
            ..DestageConfig::default()
        };
        let mut rig = Rig {
            world: World::new(seed),
            pool: Pool::new(2),
            controller: None,
            host: None,
            incarnation: 0,
            size,
            keys: None,
            write_buffer: 4 << 20,
            memory: None,
            destage,
            map: 16 << 20,
            flash: None,
        };
        rig.start_controller();
        rig
    }

    pub fn start_controller(&mut self) {
        let process = self.world.start_process("datanode-1-a");
        controller::start(&process, &self.pool);
        self.controller = Some(process);
    }

    pub fn kill_controller(&mut self) {
        self.controller.take().unwrap().kill();
    }

    /// Starts a host process, and its core.
    pub fn start_host(&mut self) -> HostCore {
        self.incarnation += 1;
        let process = self.world.start_process("host-1");
        let controllers = ["datanode-1-a", "datanode-1-b"];
        let config = HostCoreConfig {
            cluster: self.pool.borrow().cluster,
            host: HostId(1),
            incarnation: Incarnation(self.incarnation),
            core: 0,
            cores: 1,
            controllers: controllers
                .map(|name| PeerAddress { name: name.into(), address: String::new() })
                .to_vec(),
            write_buffer: self.write_buffer,
            memory: self.memory.unwrap_or((64 << 20) + 2 * self.write_buffer),
            dedupe: 1 << 20,
            map: self.map,
            destage: self.destage.clone(),
        };
        let core = HostCore::new(process.links(), process.executor(), process.random(), config);
        let turning = core.clone();
        process.set_turn(move || turning.turn());
        self.host = Some((process, core.clone()));
        if let Some(drive) = self.flash.clone() {
            self.add_flash(&drive);
        }
        core
    }

    /// Gives the host a flash device.
    pub fn add_flash(&self, drive: &SimDrive) {
        let (process, core) = self.host.as_ref().unwrap();
        let (flash, open) = (core.flash().clone(), process.open_drive(drive));
        let (name, cluster) = (drive.name().to_owned(), self.pool.borrow().cluster);
        let device = FlashId([self.incarnation as u8; 16]);
        process.executor().spawn(Priority::Foreground, async move {
            // A device that is not what it should be is a host without it.
            let _ = flash.open(&name, open, cluster, device).await;
        });
        process.wake();
    }

    pub fn core(&self) -> HostCore {
        self.host.as_ref().unwrap().1.clone()
    }

    pub fn kill_host(&mut self) {
        self.host.take().unwrap().0.kill();
    }

    /// Runs a future of the host to its end.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let (process, _) = self.host.as_ref().unwrap();
        let result: Rc<Cell<Option<T>>> = Rc::default();
        let (place, looking) = (Rc::clone(&result), Rc::new(Cell::new(false)));
        let done = Rc::clone(&looking);
        process.executor().spawn(Priority::Foreground, async move {
            place.set(Some(future.await));
            done.set(true);
        });
        process.wake();
        assert!(self.world.run_until(|| looking.get(), Duration::from_secs(120)), "it ends");
        result.take().unwrap()
    }

    /// Opens the disk under a new epoch.
    pub fn try_open(&self) -> Result<(), HostError> {
        let request = OpenRequest {
            vdisk: DISK,
            size: self.size,
            keys: self.keys.clone(),
            epoch: Epoch(self.incarnation),
            gone: Vec::new(),
        };
        self.run(self.core().open(request))
    }

    pub fn open(&self) {
        self.try_open().expect("the disk opens");
    }
}
