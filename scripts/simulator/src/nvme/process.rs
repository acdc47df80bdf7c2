//! A process's NVMe drives: production's owner of controllers and drives, as the engines' shells have it, the model of
//! each controller, and the simulated drives behind it.
//!
//! The device goes on in the process's turns, before and after the engine: a process that does not run could not tell.
//! Time passes for it as for the world, not as the process's clock shows it. Invariants: a request of the model is
//! one or more requests of a simulated drive, and is answered when they are; when the model forgets its commands
//! (a reset, a loss of power), what is in flight behind it is decided at that moment, as at a crash, so that
//! nothing of it lands later.

use super::Controller;
use crate::journal::Journal;
use crate::kinds::Kind;
use cleave_nvme::controller::ControllerEvent;
use cleave_nvme::error::Error;
use cleave_nvme::model::{Fault, Model, OutsideOperation, OutsideRequest, Struck};
use cleave_nvme::owner::{HEARTBEAT, NvmeDrives};
use cleave_nvme::place::Place;
use cleave_nvme::spec::completion::Status;
use cleave_nvme::transport::Transport;
use cleave_runtime::Token;
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use cleave_runtime::executor::Priority;
use cleave_runtime::time::Moment;
use cleave_runtime_sim::{Process, World};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Turns that a driver gets when something is under way that no device announces.
const ROUNDS: usize = 4;

/// The controllers that a process drives; clones are the same ones.
#[derive(Clone)]
pub struct ProcessNvme(Rc<Inner>);

struct Inner {
    world: World,
    process: Process,
    journal: Journal,
    drives: NvmeDrives,
    controllers: Vec<Rc<Controller>>,
    devices: Rc<RefCell<Vec<Rc<Device>>>>,
    /// When the driver had its last turn.
    turned: Cell<Option<Duration>>,
    /// The device's next moment, for which the process is woken.
    alarm: Cell<Option<Duration>>,
    beating: Cell<bool>,
}

impl ProcessNvme {
    /// For a process that may take these controllers.
    pub fn new(
        world: &World,
        process: &Process,
        journal: &Journal,
        controllers: Vec<Rc<Controller>>,
    ) -> ProcessNvme {
        let devices: Rc<RefCell<Vec<Rc<Device>>>> = Rc::default();
        let (taken, known, own) = (Rc::clone(&devices), controllers.clone(), process.clone());
        let opener = move |address, _: &_| {
            let here = |one: &&Rc<Controller>| one.place(0).is_some_and(|p| p.address == address);
            let controller = known.iter().find(here).ok_or(Error::Absent)?;
            let device = Device::take(controller, &own)?;
            taken.borrow_mut().push(Rc::clone(&device));
            Ok(Arc::clone(&device.model) as Arc<dyn Transport>)
        };
        ProcessNvme(Rc::new(Inner {
            world: world.clone(),
            process: process.clone(),
            journal: journal.clone(),
            drives: NvmeDrives::taken_by(process.clock(), Box::new(opener)),
            controllers,
            devices,
            turned: Cell::new(None),
            alarm: Cell::new(None),
            beating: Cell::new(false),
        }))
    }

    /// Opens a namespace; `None` when that does not succeed.
    pub async fn open(&self, place: Place) -> Option<Rc<dyn Drive>> {
        let inner = &self.0;
        if !inner.beating.replace(true) {
            let executor = inner.process.executor();
            let own = executor.clone();
            executor.spawn(Priority::Background, async move {
                loop {
                    own.sleep(HEARTBEAT).await;
                }
            });
        }
        let here = |one: &&Rc<Controller>| one.place(0).is_some_and(|p| p.address == place.address);
        let options = inner.controllers.iter().find(here)?.drive_options.clone();
        match inner.drives.open(place, &options).await {
            Ok(drive) => {
                inner.journal.reach("NVMe namespaces opened", 1);
                Some(drive)
            }
            Err(error) => {
                inner.journal.note(format!("{place} cannot be opened: {error}"));
                None
            }
        }
    }

    /// Says to all controllers that power may go.
    pub async fn stop(&self) {
        self.0.drives.stop().await;
    }

    /// Lets devices and the driver go on. True when anything came of it.
    pub fn turn(&self) -> bool {
        let inner = &self.0;
        let now = inner.world.now();
        let mut any = self.step();
        // Not again and again at the same moment: whoever waits for the driver's turns would never come to rest.
        if any || inner.turned.replace(Some(now)) != Some(now) {
            let rounds = if inner.drives.must_poll() { ROUNDS } else { 1 };
            for _ in 0..rounds {
                inner.drives.turn();
                any |= self.step();
            }
        }
        for (name, event) in inner.drives.take_events() {
            inner.journal.note(format!("NVMe controller {name}: {event}"));
            match event {
                ControllerEvent::Reset(_) => inner.journal.struck(Kind::NvmeReset, 1),
                ControllerEvent::Gone(_) => inner.journal.reach("NVMe controllers given up", 1),
                ControllerEvent::Reported(_) => {}
            }
        }
        self.set_alarm(now);
        any
    }

    fn step(&self) -> bool {
        let inner = &self.0;
        let now = Moment(inner.world.now().as_nanos() as u64);
        let devices = inner.devices.borrow();
        devices.iter().fold(false, |any, device| device.step(now, &inner.journal) | any)
    }

    /// Sees to it that the process is woken when a device has something to do.
    fn set_alarm(&self, now: Duration) {
        let inner = &self.0;
        let devices = inner.devices.borrow();
        let moments = devices.iter().filter(|device| !device.is_gone());
        let moments = moments.filter_map(|device| device.model.next());
        let later = moments.map(|moment| Duration::from_nanos(moment.0)).filter(|at| *at > now);
        let Some(at) = later.min() else { return };
        if inner.alarm.get().is_none_or(|set| set <= now || set > at) {
            inner.alarm.set(Some(at));
            inner.process.call_later(at - now, || {});
        }
    }
}

/// A request of the model, while it is under way.
struct UnderWay {
    token: u64,
    operation: DriveOperation,
}

/// A controller as a process drives it.
pub(super) struct Device {
    controller: Rc<Controller>,
    process: Process,
    model: Arc<Model>,
    /// The process's handles of the drives behind it, by namespace; none of one that is gone.
    behind: RefCell<Vec<Option<Rc<dyn Drive>>>>,
    under_way: RefCell<BTreeMap<Token, UnderWay>>,
    next: Cell<Token>,
    /// Restarts of the model that were seen.
    restarts: Cell<u64>,
    struck: Cell<Struck>,
    gone: Cell<bool>,
}

impl Device {
    /// Takes a controller for a process: it is as after power-on.
    fn take(controller: &Rc<Controller>, process: &Process) -> Result<Rc<Device>, Error> {
        let open = |drive| process.try_open_drive(drive).map(Some).map_err(|_| Error::Absent);
        let behind = controller.drives.iter().map(open).collect::<Result<_, _>>()?;
        let model = controller.power_on();
        let device = Rc::new(Device {
            controller: Rc::clone(controller),
            process: process.clone(),
            restarts: Cell::new(model.restarts()),
            model,
            behind: RefCell::new(behind),
            under_way: RefCell::default(),
            next: Cell::new(0),
            struck: Cell::default(),
            gone: Cell::new(false),
        });
        *controller.device.borrow_mut() = Rc::downgrade(&device);
        Ok(device)
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.get()
    }

    /// Gives the process a turn: something happened to the device.
    pub(super) fn wake(&self) {
        self.process.wake();
    }

    /// From now on it answers nothing, and what is in flight behind it ends.
    pub(super) fn vanish(&self, journal: &Journal) {
        if !self.gone.replace(true) {
            journal.fault(Kind::NvmeVanished, format!("{} is gone", self.controller.name));
            self.model.inject(Fault::Vanish);
            self.let_go();
        }
    }

    fn let_go(&self) {
        self.under_way.borrow_mut().clear();
        self.behind.borrow_mut().iter_mut().for_each(|drive| drop(drive.take()));
    }

    fn step(&self, now: Moment, journal: &Journal) -> bool {
        self.follow_restarts();
        let lost =
            |drive: &Option<Rc<dyn Drive>>| drive.as_ref().is_none_or(|d| d.probe().is_err());
        if !self.is_gone() && self.behind.borrow().iter().any(lost) {
            self.vanish(journal);
        }
        let mut any = self.take_answers();
        any |= self.model.step(now);
        self.follow_restarts();
        for request in self.model.take_requests() {
            any = true;
            self.pass_on(request);
        }
        self.count(journal);
        any
    }

    /// What was in flight behind the model when it forgot everything is decided at once.
    fn follow_restarts(&self) {
        let restarts = self.model.restarts();
        if self.restarts.replace(restarts) == restarts || self.is_gone() {
            return;
        }
        self.let_go();
        let drives = self.controller.drives.iter();
        let again = drives.map(|drive| self.process.try_open_drive(drive).ok()).collect();
        *self.behind.borrow_mut() = again;
    }

    fn take_answers(&self) -> bool {
        let mut completions = Vec::new();
        for drive in self.behind.borrow().iter().flatten() {
            drive.poll(&mut completions);
        }
        let any = !completions.is_empty();
        for DriveCompletion { token, result, buffer } in completions {
            let Some(request) = self.under_way.borrow_mut().remove(&token) else { continue };
            let data = buffer.map(|buffer| buffer.to_vec()).unwrap_or_default();
            let answer = match result {
                Ok(()) => Ok(data),
                // Found out by the next look.
                Err(DriveError::Lost(_)) => continue,
                Err(error) => Err(status(&error, &request.operation)),
            };
            self.model.answer(request.token, answer);
        }
        any
    }

    fn pass_on(&self, request: OutsideRequest) {
        let OutsideRequest { token, namespace, operation } = request;
        let behind = self.behind.borrow();
        let drive = behind.get(namespace as usize - 1).cloned().flatten();
        // One that is gone answers nothing.
        let Some(drive) = drive else { return };
        let (operation, buffer) = match operation {
            OutsideOperation::Read { offset, length } => {
                (DriveOperation::Read { offset }, Some(drive.buffer(length)))
            }
            OutsideOperation::Write { offset, data } => {
                let mut buffer = drive.buffer(data.len());
                buffer[..data.len()].copy_from_slice(&data);
                (DriveOperation::Write { offset }, Some(buffer))
            }
            OutsideOperation::Flush => (DriveOperation::Flush, None),
            OutsideOperation::Deallocate(ranges) => match ranges[..] {
                [(offset, length)] => (DriveOperation::Discard { offset, length }, None),
                _ => return self.model.answer(token, Err(Status::INVALID_FIELD)),
            },
        };
        // The drives behind have pages, and so have the engines: the driver splits nothing smaller.
        let length = buffer.as_ref().map_or(0, |buffer| buffer.len());
        assert!(length.is_multiple_of(PAGE), "commands of whole pages");
        let own = self.next.get() + 1;
        self.next.set(own);
        self.under_way.borrow_mut().insert(own, UnderWay { token, operation });
        drive.submit(DriveRequest { token: own, operation, buffer });
    }

    /// Counts what the model did to the driver, and what the driver did to memory.
    fn count(&self, journal: &Journal) {
        let (now, before) = (self.model.struck(), self.struck.get());
        if now != before {
            self.struck.set(now);
            journal.struck(Kind::NvmeFailed, now.failed - before.failed);
            journal.struck(Kind::NvmeHung, now.hung - before.hung);
            journal.struck(Kind::NvmeFlipped, now.flipped - before.flipped);
            journal.struck(Kind::NvmeCorrupt, now.corrupt - before.corrupt);
            journal.struck(Kind::NvmeOvertaking, now.overtaking - before.overtaking);
            journal.struck(Kind::NvmeLate, now.late - before.late);
        }
        if self.model.stray_accesses() > 0 {
            let name = &self.controller.name;
            journal.fail(format!("{name} was told of memory, or still told, that is not its own"));
        }
    }
}

/// What a controller says when the drive behind it fails.
fn status(error: &DriveError, operation: &DriveOperation) -> Status {
    match (error, operation) {
        (DriveError::NoSpace, _) => Status::CAPACITY_EXCEEDED,
        (_, DriveOperation::Read { .. }) => Status::UNRECOVERED_READ,
        (_, DriveOperation::Write { .. }) => Status::WRITE_FAULT,
        _ => Status::INTERNAL,
    }
}
