//! A core's flash devices that are NVMe namespaces, driven from userspace.
//!
//! The first core takes the controller, and makes queue pairs for the others, which find them in the order. A
//! controller is stopped when the first core closes its last device of it. Without such devices all of this is
//! nothing.

use super::OpenFailure;
use crate::messages::FlashOrder;
use cleave_nvme::drive::{DriveOptions, DrivePart, NvmeDrive};
use cleave_nvme::error::Error;
use cleave_nvme::owner::{HEARTBEAT, NvmeDrives};
use cleave_nvme::place::Place;
use cleave_runtime::executor::{Executor, Priority};
use cleave_runtime::time::Clock;
use cleave_runtime_real::reactor::{Reactor, WatchId};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};

/// Commands that a controller is given at once by a core.
const DEPTH: u16 = 128;
/// Bytes and number of a device's mapped buffers.
const BUFFERS: [(usize, u16); 3] = [(16 << 10, 128), (160 << 10, 64), ((1 << 20) + (64 << 10), 16)];

/// Queue pairs for the other cores, on their way there.
#[derive(Clone, Debug, Default)]
pub struct NvmeParts(Arc<Mutex<Vec<DrivePart>>>);

impl NvmeParts {
    fn push(&self, part: DrivePart) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(part);
    }

    fn pop(&self) -> Option<DrivePart> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop()
    }
}

/// A device, and the watch of its events once it sleeps in the core's ring.
type Watched = (Rc<NvmeDrive>, Option<WatchId>);

/// See the module's page.
pub(super) struct CoreNvme {
    drives: NvmeDrives,
    /// By the device's name, with the watch of its event, once there is one.
    devices: RefCell<BTreeMap<String, Watched>>,
    /// There are new ones.
    unwatched: Cell<bool>,
    beating: Cell<bool>,
    /// The core is about to sleep.
    armed: Cell<bool>,
}

fn options() -> DriveOptions {
    DriveOptions { depth: DEPTH, buffers: BUFFERS.into() }
}

fn failure(error: Error) -> OpenFailure {
    match error {
        Error::Held(_) => OpenFailure::Held(error.to_string()),
        error => OpenFailure::Refused(error.to_string()),
    }
}

impl CoreNvme {
    pub(super) fn new(clock: Rc<dyn Clock>) -> CoreNvme {
        CoreNvme {
            drives: NvmeDrives::new(clock),
            devices: RefCell::default(),
            unwatched: Cell::new(false),
            beating: Cell::new(false),
            armed: Cell::new(false),
        }
    }

    /// Takes a device for the first core, and makes what the others need.
    pub(super) async fn open(
        &self,
        text: &str,
        order: &FlashOrder,
    ) -> Result<Rc<NvmeDrive>, OpenFailure> {
        let place: Place = text.parse().map_err(OpenFailure::Refused)?;
        let drive = self.drives.open(place, &options()).await.map_err(failure)?;
        self.keep(&order.name, &drive);
        for _ in 1..order.cores {
            order.parts.push(self.drives.share(place, &options()).await.map_err(failure)?);
        }
        Ok(drive)
    }

    /// Another core's drive of a device.
    pub(super) fn adopt(
        &self,
        name: &str,
        parts: &NvmeParts,
    ) -> Result<Rc<NvmeDrive>, OpenFailure> {
        let missing = || OpenFailure::Refused(format!("{name} was not opened first"));
        let part = parts.pop().ok_or_else(missing)?;
        let drive = self.drives.adopt(part, &options()).map_err(failure)?;
        self.keep(name, &drive);
        Ok(drive)
    }

    fn keep(&self, name: &str, drive: &Rc<NvmeDrive>) {
        self.devices.borrow_mut().insert(name.to_owned(), (Rc::clone(drive), None));
        self.unwatched.set(true);
    }

    /// Lets new devices end the core's sleep.
    fn watch(&self, reactor: &Reactor) {
        for (drive, watch) in self.devices.borrow_mut().values_mut() {
            if let (None, Some(event)) = (&watch, drive.event()) {
                *watch = Some(reactor.watch(event.as_raw_fd()));
            }
        }
        if !self.beating.replace(true) {
            let executor = reactor.executor().clone();
            reactor.executor().spawn(Priority::Background, beat(executor));
        }
    }

    /// Lets go of a device that flash does not use any more.
    pub(super) fn close(&self, reactor: &Reactor, name: &str) {
        let Some((drive, watch)) = self.devices.borrow_mut().remove(name) else { return };
        if let Some(watch) = watch {
            reactor.unwatch(watch);
        }
        self.drives.close(drive);
    }

    /// True when there was anything.
    pub(super) fn turn(&self, reactor: &Reactor) -> bool {
        if self.unwatched.take() {
            self.watch(reactor);
        }
        let worked = self.drives.turn();
        for (name, event) in self.drives.take_events() {
            tracing::warn!(%name, "NVMe controller: {event}");
        }
        worked || (self.armed.get() && self.drives.must_poll())
    }

    pub(super) fn arm(&self) {
        self.drives.arm();
        self.armed.set(true);
    }

    pub(super) fn disarm(&self) {
        self.drives.disarm();
        self.armed.set(false);
    }

    /// Announces to all controllers that power may go. Blocks: when the core ends.
    pub(super) fn shut_down(&self, reactor: &Reactor) {
        self.drives.shut_down(|| {
            reactor.clock().refresh();
            std::thread::yield_now();
        });
    }
}

/// Keeps the core from sleeping for long, so that it sees what is out of time, and controllers that are gone.
async fn beat(executor: Executor) {
    loop {
        executor.sleep(HEARTBEAT).await;
    }
}
