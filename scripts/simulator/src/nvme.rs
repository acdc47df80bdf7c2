//! NVMe controllers: in some seeds some of the pool's drives and the hosts' flash are behind one, driven by production's
//! driver over the software model of a controller (`cleave_nvme::model`).
//!
//! | What | Where |
//! | --- | --- |
//! | which drives and flash, and what controllers they have | here |
//! | a process's drives: the driver, the model, and the simulated drives behind it | `nvme/process.rs` |
//! | what strikes controllers | `nvme/strikes.rs` |
//!
//! What is stored lies on the simulated drives, with their caches, their latencies and all that strikes them; the model
//! takes the driver's commands from memory and passes them on. So a crash leaves of a command what it leaves
//! of any request in flight, a power loss what was flushed and some of the rest.
//!
//! Only drives that may be lost are behind controllers: one that does not answer for as long as the driver waits is
//! reset, and lost with what was not flushed (C10). All draws are of streams of their own.

mod process;
mod strikes;

pub use process::ProcessNvme;
pub use strikes::{TROUBLES, Trouble, fail_writes, strike};

use crate::journal::Journal;
use crate::kinds::Kind;
use crate::plan::stream;
use cleave_nvme::drive::DriveOptions;
use cleave_nvme::model::{Fault, Model, ModelNamespace, ModelOptions};
use cleave_nvme::place::Place;
use cleave_runtime::random::{Random, SplitMix};
use cleave_runtime_sim::{Process, SimDrive, World};
use process::Device;
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

/// Bytes and number of a drive's mapped buffers: fewer than engines have, so that they run out of them.
const BUFFERS: [(usize, u16); 3] = [(16 << 10, 8), (160 << 10, 4), ((1 << 20) + (64 << 10), 2)];

/// What a seed says of NVMe controllers.
#[derive(Clone, Debug)]
pub struct NvmePlan {
    /// The pool's drives that are behind controllers: those of each, as its namespaces.
    pub pool: Vec<Vec<usize>>,
    /// The hosts' flash is behind one each.
    pub flash: bool,
    /// What strikes them, each by its weight.
    pub troubles: Vec<(Trouble, u64)>,
    /// What controllers are like; namespaces are filled in.
    shape: ModelOptions,
    /// Block size as a power of two.
    block_shift: u8,
    /// Commands that a controller is given at once.
    depth: u16,
}

impl NvmePlan {
    /// What this seed says, of a cluster of which so many drives may be harmed.
    pub fn draw(seed: u64, victims: u16, has_flash: bool) -> Option<NvmePlan> {
        let random = stream(seed, "modelled controllers");
        let pick = |from: &[u64]| from[random.below(from.len() as u64) as usize];
        if random.below(3) > 0 {
            return None;
        }
        let pool = match (victims, random.below(4)) {
            (0, _) => Vec::new(),
            (1, _) => vec![vec![0]],
            (_, 0) => vec![vec![0, 1]],
            (_, 1) => vec![vec![0], vec![1]],
            (_, which) => vec![vec![which as usize - 2]],
        };
        let flash = has_flash && (pool.is_empty() || random.below(2) == 0);
        if pool.is_empty() && !flash {
            return None;
        }
        let shape = ModelOptions {
            transfer_max_shift: pick(&[0, 3, 5, 8]) as u8,
            queue_entries: pick(&[8, 64, 256]) as u16,
            stride: pick(&[0, 0, 1]) as u8,
            page_shift: pick(&[0, 0, 0, 1]) as u8,
            sgl: random.below(3) == 0,
            ready_delay: Duration::from_micros(pick(&[50, 300, 3_000])),
            latency: (Duration::from_micros(2), Duration::from_micros(pick(&[10, 100, 1_000]))),
            ..ModelOptions::default()
        };
        let (block_shift, depth) = (pick(&[9, 12, 12]) as u8, pick(&[2, 16, 64]) as u16);
        let troubles = TROUBLES.to_vec();
        Some(NvmePlan { pool, flash, troubles, shape, block_shift, depth })
    }

    fn drive_options(&self) -> DriveOptions {
        DriveOptions { depth: self.depth, buffers: BUFFERS.into() }
    }
}

/// The cluster's controllers, and what is drawn for them.
pub struct Nvme {
    pool: Vec<Rc<Controller>>,
    /// By the host's number, from 1; none when flash is not behind controllers.
    flash: Vec<Rc<Controller>>,
    troubles: Vec<(Trouble, u64)>,
    random: SplitMix,
    /// For writes of the pool that fail.
    of_writes: SplitMix,
}

/// A controller in its slot: what outlives the processes that drive it.
pub struct Controller {
    name: String,
    /// Its namespaces.
    drives: Vec<SimDrive>,
    /// The numbers of the pool's drives among them.
    numbers: Vec<usize>,
    address: String,
    options: ModelOptions,
    drive_options: DriveOptions,
    seeds: SplitMix,
    /// As it is driven now.
    device: RefCell<Weak<Device>>,
}

impl Nvme {
    /// The controllers of a plan, in front of these drives.
    pub fn new(seed: u64, plan: &NvmePlan, drives: &[SimDrive], flash: &[SimDrive]) -> Nvme {
        let pool = plan.pool.iter().enumerate().map(|(index, numbers)| {
            let behind = numbers.iter().map(|number| drives[*number].clone()).collect();
            Rc::new(Controller::new(seed, plan, 1 + index, behind, numbers.clone()))
        });
        let flash = if plan.flash { flash } else { &[] };
        let flash = flash.iter().enumerate().map(|(index, device)| {
            Rc::new(Controller::new(seed, plan, 0x10 + index, vec![device.clone()], Vec::new()))
        });
        let random = stream(seed, "strikes of NVMe controllers");
        let (pool, flash) = (pool.collect(), flash.collect());
        let of_writes = stream(seed, "failing writes of NVMe controllers");
        Nvme { pool, flash, troubles: plan.troubles.clone(), random, of_writes }
    }

    /// Where a drive of the pool is, if it is behind a controller.
    pub fn place_of(&self, drive: usize) -> Option<Place> {
        self.pool.iter().find_map(|controller| {
            let namespace = controller.numbers.iter().position(|number| *number == drive)?;
            controller.place(namespace)
        })
    }

    /// The controller of a host's flash.
    pub fn of_flash(&self, host: u32) -> Option<Rc<Controller>> {
        self.flash.get(host as usize - 1).map(Rc::clone)
    }

    /// What the active controller's process drives.
    pub fn for_process(&self, world: &World, process: &Process, journal: &Journal) -> ProcessNvme {
        ProcessNvme::new(world, process, journal, self.pool.clone())
    }

    fn all(&self) -> impl Iterator<Item = &Rc<Controller>> {
        self.pool.iter().chain(&self.flash)
    }

    /// Ends what faults have ahead of them.
    pub fn calm(&self) {
        for controller in self.all() {
            if let Some(device) = controller.present() {
                device.model().spare();
                device.model().set_latency(controller.options.latency);
            }
        }
    }
}

impl Controller {
    fn new(
        seed: u64,
        plan: &NvmePlan,
        number: usize,
        drives: Vec<SimDrive>,
        numbers: Vec<usize>,
    ) -> Controller {
        let address = format!("0000:{number:02x}:00.0");
        let namespace = |drive: &SimDrive| ModelNamespace {
            blocks: drive.capacity() >> plan.block_shift,
            block_shift: plan.block_shift,
            outside: true,
            ..ModelNamespace::default()
        };
        let namespaces = drives.iter().map(namespace).collect();
        Controller {
            name: format!("nvme-{number}"),
            drives,
            numbers,
            options: ModelOptions { namespaces, ..plan.shape.clone() },
            drive_options: plan.drive_options(),
            seeds: stream(seed, &address),
            address,
            device: RefCell::default(),
        }
    }

    /// How a namespace of it is named, from 0.
    pub fn place(&self, namespace: usize) -> Option<Place> {
        format!("nvme:{}/{}", self.address, namespace + 1).parse().ok()
    }

    /// As it is driven now, unless nobody drives it or it was removed.
    fn present(&self) -> Option<Rc<Device>> {
        self.device.borrow().upgrade().filter(|device| !device.is_gone())
    }

    /// A process takes it: it is as after power-on.
    fn power_on(&self) -> Arc<Model> {
        Model::new(ModelOptions { seed: self.seeds.next_u64(), ..self.options.clone() })
    }

    /// It loses its power, with what was not flushed, and is there again.
    pub fn cut_power(&self, journal: &Journal) {
        self.drives.iter().for_each(SimDrive::power_loss);
        if let Some(device) = self.present() {
            journal.fault(Kind::NvmePower, format!("{} loses its power", self.name));
            device.model().cut_power(|_, _| true);
            device.wake();
        }
    }

    /// It is removed, with what was not flushed, until a process is started that finds it again.
    fn remove(&self, journal: &Journal) {
        if let Some(device) = self.present() {
            journal.note(format!("{} is removed", self.name));
            device.vanish(journal);
            self.drives.iter().for_each(SimDrive::power_loss);
            device.wake();
        }
    }

    /// It breaks down for as long as it is driven by this process.
    fn break_down(&self, journal: &Journal, how: Fault) {
        if let Some(device) = self.present() {
            journal.fault(Kind::NvmeBroken, format!("{} breaks down: {how:?}", self.name));
            device.model().inject(Fault::Fatal);
            device.model().inject(how);
            device.wake();
        }
    }
}
