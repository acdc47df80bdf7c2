//! The controllers and drives of one core: opened, turned while it runs, armed when it sleeps, let go.
//!
//! Invariants: a controller is taken once, whatever number of its namespaces are drives, and belongs
//! to the core that took it; other cores get queue pairs of it ([`NvmeDrives::share`]). A drive's interrupt is armed
//! only while its core sleeps, and only when it has requests in flight: a core that is awake, or has nothing
//! to wait for, costs no system call. What cannot interrupt (a controller without an IOMMU, or one that is
//! starting or being reset) keeps its core awake while there is something to wait for
//! ([`NvmeDrives::must_poll`]).
//!
//! Someone must call [`NvmeDrives::turn`] every [`HEARTBEAT`] also while nothing happens: that is how
//! commands that are out of time, removed controllers and their events are noticed.

use crate::controller::{Controller, ControllerEvent, ControllerOptions};
use crate::drive::{DriveOptions, DrivePart, NvmeDrive};
use crate::error::Error;
use crate::place::Place;
use crate::transport::{OpenOptions, PciAddress, Transport, open};
use cleave_runtime::time::Clock;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

/// How often an idle core turns its controllers.
pub const HEARTBEAT: Duration = Duration::from_millis(250);

/// How a controller is taken: [`open`], or a way to one that is simulated.
pub type Opener = dyn Fn(PciAddress, &OpenOptions) -> Result<Arc<dyn Transport>, Error>;

/// See the module's page.
pub struct NvmeDrives {
    clock: Rc<dyn Clock>,
    opener: Box<Opener>,
    /// With how it was taken.
    controllers: RefCell<BTreeMap<PciAddress, (bool, Rc<Controller>)>>,
    drives: RefCell<Vec<Rc<NvmeDrive>>>,
    /// Something is being opened.
    opening: Cell<usize>,
}

impl NvmeDrives {
    /// None yet.
    pub fn new(clock: Rc<dyn Clock>) -> NvmeDrives {
        NvmeDrives::taken_by(clock, Box::new(open))
    }

    /// None yet; controllers are taken this way.
    pub fn taken_by(clock: Rc<dyn Clock>, opener: Box<Opener>) -> NvmeDrives {
        NvmeDrives {
            clock,
            opener,
            controllers: RefCell::default(),
            drives: RefCell::default(),
            opening: Cell::new(0),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.drives.borrow().is_empty()
    }

    /// The drives.
    pub fn drives(&self) -> Vec<Rc<NvmeDrive>> {
        self.drives.borrow().clone()
    }

    /// Takes the controller, unless it was taken for another namespace, and opens the drive. Progress needs
    /// [`turn`](NvmeDrives::turn) to be called meanwhile. Waits for no other process.
    ///
    /// # Errors
    /// The controller is held, cannot be taken or brought up, or has no such namespace that can be used.
    pub async fn open(&self, place: Place, options: &DriveOptions) -> Result<Rc<NvmeDrive>, Error> {
        let _opening = Opening::new(&self.opening);
        let controller = self.controller(place, Duration::ZERO).await?;
        self.open_on(&controller, place, options).await
    }

    async fn open_on(
        &self,
        controller: &Rc<Controller>,
        place: Place,
        options: &DriveOptions,
    ) -> Result<Rc<NvmeDrive>, Error> {
        let clock = Rc::clone(&self.clock);
        let drive = NvmeDrive::open(controller, clock, place.namespace, options).await?;
        let drive = Rc::new(drive);
        self.drives.borrow_mut().push(Rc::clone(&drive));
        Ok(drive)
    }

    /// Prepares a drive of the same namespace for another core, which adopts it.
    ///
    /// # Errors
    /// The controller was not taken here, or has no queue pair left.
    pub async fn share(&self, place: Place, options: &DriveOptions) -> Result<DrivePart, Error> {
        let _opening = Opening::new(&self.opening);
        let found = self.controllers.borrow().get(&place.address).map(|(_, it)| Rc::clone(it));
        let controller = found.ok_or(Error::Absent)?;
        NvmeDrive::part(&controller, place.namespace, options).await
    }

    /// The drive that another core shared.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn adopt(&self, part: DrivePart, options: &DriveOptions) -> Result<Rc<NvmeDrive>, Error> {
        let drive = Rc::new(NvmeDrive::beside(part, Rc::clone(&self.clock), options)?);
        self.drives.borrow_mut().push(Rc::clone(&drive));
        Ok(drive)
    }

    /// Opens a drive, and blocks until it is: for a core that is starting, or a program without one. Waits a
    /// while for another process. `idle` is called while it waits, and lets the clock go on.
    ///
    /// # Errors
    /// As for [`open`](NvmeDrives::open).
    pub fn open_now(
        &self,
        place: Place,
        options: &DriveOptions,
        mut idle: impl FnMut(),
    ) -> Result<Rc<NvmeDrive>, Error> {
        let opened = async {
            let controller = self.controller(place, OpenOptions::default().wait).await?;
            self.open_on(&controller, place, options).await
        };
        let mut opened = pin!(opened);
        loop {
            let mut context = Context::from_waker(Waker::noop());
            if let Poll::Ready(result) = opened.as_mut().poll(&mut context) {
                return result;
            }
            self.turn();
            idle();
        }
    }

    /// The controller of a place, taken and started.
    async fn controller(&self, place: Place, wait: Duration) -> Result<Rc<Controller>, Error> {
        if let Some((without_iommu, known)) = self.controllers.borrow().get(&place.address) {
            if *without_iommu != place.without_iommu {
                let text = format!("{} is named with an IOMMU and without one", place.address);
                return Err(Error::Unsupported(text));
            }
            return Ok(Rc::clone(known));
        }
        let without_iommu = place.without_iommu;
        let taken = OpenOptions { without_iommu, wait, ..OpenOptions::default() };
        let transport = (self.opener)(place.address, &taken)?;
        let clock = Rc::clone(&self.clock);
        let controller = Controller::new(transport, clock, ControllerOptions::default());
        let controller = Rc::new(controller);
        // Known from here on, so that it is turned; nobody else finds it, since opening is one at a time.
        let entry = (without_iommu, Rc::clone(&controller));
        self.controllers.borrow_mut().insert(place.address, entry);
        if let Err(error) = controller.start().await {
            self.controllers.borrow_mut().remove(&place.address);
            return Err(error);
        }
        Ok(controller)
    }

    fn each_controller(&self, mut what: impl FnMut(&Rc<Controller>) -> bool) -> bool {
        let controllers = self.controllers.borrow();
        controllers.values().fold(false, |any, (_, controller)| what(controller) | any)
    }

    /// Turns all controllers: for turns in which no drive is polled. True when there was anything.
    pub fn turn(&self) -> bool {
        self.drives.borrow().iter().for_each(|drive| drive.let_go());
        self.each_controller(|controller| controller.turn())
    }

    /// What happened to controllers since this was asked last, with their names.
    pub fn take_events(&self) -> Vec<(String, ControllerEvent)> {
        let mut taken = Vec::new();
        self.each_controller(|controller| {
            for event in controller.take_events() {
                taken.push((controller.name(), event));
            }
            false
        });
        taken
    }

    /// The core is about to sleep: what is in flight shall end its sleep. It polls once more after this.
    pub fn arm(&self) {
        self.drives.borrow().iter().for_each(|drive| drive.arm());
    }

    /// The core is awake again.
    pub fn disarm(&self) {
        self.drives.borrow().iter().for_each(|drive| drive.disarm());
    }

    /// Whether the core must stay awake: something is on its way that no interrupt announces.
    pub fn must_poll(&self) -> bool {
        self.opening.get() > 0
            || self.drives.borrow().iter().any(|drive| drive.must_poll())
            || self.each_controller(|controller| controller.is_working())
    }

    /// Lets go of a drive that nobody else uses any more, and of its controller after its last drive on this
    /// core: it is stopped at once, so what was written must have been flushed.
    pub fn close(&self, drive: Rc<NvmeDrive>) {
        self.drives.borrow_mut().retain(|other| !Rc::ptr_eq(other, &drive));
        let Some(controller) = drive.controller().map(Rc::clone) else { return };
        drop(drive);
        let used = |drive: &Rc<NvmeDrive>| {
            drive.controller().is_some_and(|other| Rc::ptr_eq(other, &controller))
        };
        if !self.drives.borrow().iter().any(used) {
            self.controllers.borrow_mut().retain(|_, (_, other)| !Rc::ptr_eq(other, &controller));
        }
    }

    /// Tells all controllers that power may go, and stops them. Drives must have been flushed. Progress needs
    /// [`turn`](NvmeDrives::turn) to be called meanwhile.
    pub async fn stop(&self) {
        let controllers: Vec<_> = self.controllers.borrow().values().cloned().collect();
        for (_, controller) in controllers {
            // It is stopped all the same, and what was flushed is durable.
            if let Err(error) = controller.shut_down().await {
                tracing::warn!(name = controller.name(), "{error}");
            }
        }
    }

    /// As [`stop`](NvmeDrives::stop), and blocks until it is done.
    pub fn shut_down(&self, mut idle: impl FnMut()) {
        let mut stopping = pin!(self.stop());
        let mut context = Context::from_waker(Waker::noop());
        while stopping.as_mut().poll(&mut context).is_pending() {
            self.turn();
            idle();
        }
    }
}

/// Counts what is being opened.
struct Opening<'a>(&'a Cell<usize>);

impl Opening<'_> {
    fn new(count: &Cell<usize>) -> Opening<'_> {
        count.set(count.get() + 1);
        Opening(count)
    }
}

impl Drop for Opening<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Model, ModelOptions};
    use crate::testing::VirtualClock;
    use cleave_runtime::drives::{Drive, DriveOperation};

    fn opened() -> (Arc<Model>, Rc<VirtualClock>, NvmeDrives, Rc<NvmeDrive>) {
        let model = Model::new(ModelOptions::default());
        let clock = Rc::new(VirtualClock::default());
        let transport = Arc::clone(&model);
        let opener = move |_, _: &_| Ok(Arc::clone(&transport) as Arc<dyn Transport>);
        let of_drives = Rc::clone(&clock) as Rc<dyn Clock>;
        let drives = NvmeDrives::taken_by(of_drives, Box::new(opener));
        let place = "nvme:0000:3b:00.0/1".parse().unwrap();
        let idle = || tick(&model, &clock);
        let drive = drives.open_now(place, &DriveOptions::default(), idle).expect("a drive");
        (model, clock, drives, drive)
    }

    fn tick(model: &Model, clock: &VirtualClock) {
        clock.tick();
        model.step(clock.now());
    }

    #[test]
    fn a_reset_ends_although_nobody_polls_the_drive() {
        let (model, clock, drives, drive) = opened();
        let controller = Rc::clone(drive.controller().unwrap());
        controller.reset("the test wants it");
        while controller.resets() == 0 || !controller.is_live() || drives.must_poll() {
            drives.turn();
            tick(&model, &clock);
        }
        let idle = || tick(&model, &clock);
        assert_eq!(drive.complete(DriveOperation::Flush, None, idle).0, Ok(()));
    }

    #[test]
    fn stopped_controllers_were_told_that_power_may_go() {
        let (model, clock, drives, drive) = opened();
        drives.shut_down(|| tick(&model, &clock));
        assert!(drive.controller().unwrap().is_gone());
        assert!(drive.probe().is_err());
    }
}
