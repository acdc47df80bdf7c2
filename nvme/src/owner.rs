//! The controllers and drives of one core: opened while it starts, turned while it runs, armed when
//! it sleeps.
//!
//! Invariants: a controller is opened once, whatever number of its namespaces are drives, and belongs
//! to the core that opened it. A drive's interrupt is armed only while its core sleeps, and only
//! when it has requests in flight: a core that is awake, or has nothing to wait for, costs no system
//! call. What cannot interrupt (a controller without an IOMMU, or one that is being reset) keeps its core
//! awake while there is something to wait for ([`NvmeDrives::must_poll`]).
//!
//! Someone must call [`NvmeDrives::turn`] every [`HEARTBEAT`] also while nothing happens: that is how
//! commands that are out of time, removed controllers and their events are noticed.

use crate::controller::{Controller, ControllerEvent, ControllerOptions};
use crate::drive::{DriveOptions, NvmeDrive};
use crate::error::Error;
use crate::place::Place;
use crate::transport::{OpenOptions, PciAddress, open};
use cleave_runtime::time::Clock;
use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::time::Duration;

/// How often an idle core turns its controllers.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// See the module's page.
pub struct NvmeDrives {
    clock: Rc<dyn Clock>,
    /// With how it was taken.
    controllers: BTreeMap<PciAddress, (bool, Rc<Controller>)>,
    drives: Vec<Rc<NvmeDrive>>,
}

impl NvmeDrives {
    /// None yet.
    pub fn new(clock: Rc<dyn Clock>) -> NvmeDrives {
        NvmeDrives { clock, controllers: BTreeMap::new(), drives: Vec::new() }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.drives.is_empty()
    }

    /// The drives.
    pub fn drives(&self) -> &[Rc<NvmeDrive>] {
        &self.drives
    }

    /// Takes the controller, unless it was taken for another namespace, and opens the drive. Blocks: to
    /// be called while the core starts. `idle` is called while it waits, and lets the clock go on.
    ///
    /// # Errors
    /// The controller cannot be taken or brought up, or has no such namespace that can be used.
    pub fn open(
        &mut self,
        place: Place,
        options: &DriveOptions,
        mut idle: impl FnMut(),
    ) -> Result<Rc<NvmeDrive>, Error> {
        let controller = self.controller(place, &mut idle)?;
        let clock = Rc::clone(&self.clock);
        let opened = NvmeDrive::open(&controller, clock, place.namespace, options);
        let drive = Rc::new(controller.run(opened, &mut idle)?);
        self.drives.push(Rc::clone(&drive));
        Ok(drive)
    }

    /// The controller of a place, taken and started.
    ///
    /// # Errors
    /// As for [`open`](NvmeDrives::open).
    pub fn controller(
        &mut self,
        place: Place,
        mut idle: impl FnMut(),
    ) -> Result<Rc<Controller>, Error> {
        if let Some((without_iommu, known)) = self.controllers.get(&place.address) {
            if *without_iommu != place.without_iommu {
                let text = format!("{} is named with an IOMMU and without one", place.address);
                return Err(Error::Unsupported(text));
            }
            return Ok(Rc::clone(known));
        }
        let taken = OpenOptions { without_iommu: place.without_iommu, ..OpenOptions::default() };
        let transport = open(place.address, &taken)?;
        let clock = Rc::clone(&self.clock);
        let controller = Controller::new(transport, clock, ControllerOptions::default());
        controller.run(controller.start(), &mut idle)?;
        let controller = Rc::new(controller);
        self.controllers.insert(place.address, (place.without_iommu, Rc::clone(&controller)));
        Ok(controller)
    }

    fn controllers(&self) -> impl Iterator<Item = &Rc<Controller>> {
        self.controllers.values().map(|(_, controller)| controller)
    }

    /// Turns all controllers: for turns in which no drive is polled. True when there was anything.
    pub fn turn(&self) -> bool {
        self.controllers().fold(false, |any, controller| controller.turn() | any)
    }

    /// What happened to controllers since this was asked last, with their names.
    pub fn take_events(&self) -> Vec<(String, ControllerEvent)> {
        let mut taken = Vec::new();
        for controller in self.controllers() {
            for event in controller.take_events() {
                taken.push((controller.name(), event));
            }
        }
        taken
    }

    /// The files that become readable when something completes while the core sleeps: to be watched.
    pub fn events(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.drives.iter().filter_map(|drive| drive.event())
    }

    /// The core is about to sleep: what is in flight shall end its sleep. It polls once more after this.
    pub fn arm(&self) {
        self.drives.iter().for_each(|drive| drive.arm());
    }

    /// The core is awake again.
    pub fn disarm(&self) {
        self.drives.iter().for_each(|drive| drive.disarm());
    }

    /// Whether the core must stay awake: something is on its way that no interrupt announces.
    pub fn must_poll(&self) -> bool {
        self.drives.iter().any(|drive| drive.must_poll())
            || self.controllers().any(|controller| controller.is_working())
    }

    /// Tells all controllers that power may go, and stops them. Drives must have been flushed. Blocks.
    pub fn shut_down(&self, mut idle: impl FnMut()) {
        for (name, (_, controller)) in &self.controllers {
            // It is stopped all the same, and what was flushed is durable.
            if let Err(error) = controller.run(controller.shut_down(), &mut idle) {
                tracing::warn!(%name, "{error}");
            }
        }
    }
}
