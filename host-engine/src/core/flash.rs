//! A core's devices of flash: opening its share of them, and what becomes of them.
//!
//! The first core opens a device alone among processes, finds out what it is, and keeps that handle for its own
//! share; the others open theirs beside it. So the device is this process's until the first core lets go.

use super::{Core, FLASH_CLOSE_MAX, Finished};
use crate::messages::{Answer, FlashOrder, Report};
use cleave_control::events::Kind;
use cleave_control::flash::FlashPlace;
use cleave_flash::{FlashEvent, Share};
use cleave_runtime::drives::Drive;
use cleave_runtime::executor::Priority;
use cleave_runtime_real::drive::memory::MemoryDrive;
use cleave_runtime_real::drive::{DriveOptions, FileDrive};
use cleave_runtime_real::error::Error;
use cleave_runtime_real::reactor::Reactor;
use std::rc::Rc;
use std::time::Duration;

/// How far the end of a core's flash is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlashEnd {
    Open,
    Closing,
    Closed,
}

/// Reports that may wait for the control thread when one more is made of an event.
const EVENTS_MAX: usize = 64;

/// Why a device is not opened.
#[derive(Debug)]
pub enum OpenFailure {
    /// Another process holds it: a predecessor perhaps, which is about to end.
    Held(String),
    /// It cannot be used.
    Refused(String),
}

/// Opens a device that is no NVMe namespace for a core.
fn open_drive(
    reactor: &Reactor,
    place: &FlashPlace,
    cores: u32,
    lock: bool,
) -> Result<Rc<dyn Drive>, OpenFailure> {
    match place {
        FlashPlace::Path(path) => {
            let options = DriveOptions { lock, port: None, lock_wait: Duration::ZERO };
            match FileDrive::open(reactor, path, &options) {
                Ok(drive) => Ok(Rc::new(drive)),
                Err(error @ Error::DriveHeld { .. }) => Err(OpenFailure::Held(error.to_string())),
                Err(error) => Err(OpenFailure::Refused(error.to_string())),
            }
        }
        // Memory is not shared: each core has its part.
        FlashPlace::Memory(size) => {
            let own = usize::try_from(size / u64::from(cores)).unwrap_or(usize::MAX);
            Ok(Rc::new(MemoryDrive::new(reactor, own)))
        }
        FlashPlace::Nvme(_) => unreachable!("namespaces are opened by their driver"),
    }
}

impl Core<'_> {
    /// Opens a device and finds out what it is, or makes it one of this cluster's.
    pub(super) fn prepare_flash(&mut self, number: u64, order: FlashOrder) {
        let opened = match &order.place {
            FlashPlace::Nvme(_) => None,
            place => match open_drive(self.reactor, place, order.cores, true) {
                Ok(drive) => Some(drive),
                Err(failure) => return self.tell(number, Answer::FlashPrepared(Err(failure))),
            },
        };
        let (flash, finished) = (self.core.flash().clone(), self.finished.clone());
        let nvme = Rc::clone(&self.nvme);
        self.executor.spawn(Priority::Foreground, async move {
            let drive: Rc<dyn Drive> = match (opened, &order.place) {
                (None, FlashPlace::Nvme(text)) => match nvme.open(text, &order).await {
                    Ok(drive) => drive,
                    Err(failure) => {
                        return finished.push(Finished::FlashRefused { number, failure });
                    }
                },
                (opened, _) => opened.expect("what is no namespace was opened above"),
            };
            let prepared = flash.prepare(&drive, order.cluster, order.device).await;
            let result = prepared.map_err(|error| OpenFailure::Refused(error.to_string()));
            finished.push(Finished::FlashPrepared { number, name: order.name, drive, result });
        });
    }

    /// What [`prepare_flash`](Core::prepare_flash) found; the drive is kept for the core's own share.
    pub(super) fn flash_prepared(
        &mut self,
        number: u64,
        name: String,
        drive: Rc<dyn Drive>,
        result: Result<cleave_flash::Prepared, OpenFailure>,
    ) {
        let superblock = result.map(|prepared| {
            if prepared.formatted {
                tracing::info!(device = name, "an empty device is flash of this cluster now");
            }
            self.prepared_flash.insert(name, drive);
            prepared.superblock
        });
        self.tell(number, Answer::FlashPrepared(superblock.map(Box::new)));
    }

    /// Adds this core's share of a device.
    pub(super) fn add_flash(&mut self, number: u64, order: FlashOrder) {
        let added = self.try_add_flash(order);
        self.tell(number, Answer::FlashAdded(added));
    }

    fn try_add_flash(&mut self, order: FlashOrder) -> Result<(), String> {
        let FlashOrder { name, place, cluster, device, superblock, cores, parts } = order;
        let reason = |failure| match failure {
            OpenFailure::Held(reason) | OpenFailure::Refused(reason) => reason,
        };
        let drive: Rc<dyn Drive> = match (self.prepared_flash.remove(&name), &place) {
            (Some(drive), _) => drive,
            (None, FlashPlace::Nvme(_)) => self.nvme.adopt(&name, &parts).map_err(reason)?,
            (None, _) => open_drive(self.reactor, &place, cores, false).map_err(reason)?,
        };
        let flash = self.core.flash().clone();
        let Some(superblock) = superblock else {
            // The core has it for itself.
            let (unreported, finished) = (name, self.finished.clone());
            self.executor.spawn(Priority::Foreground, async move {
                if let Err(error) = flash.open(&unreported, drive, cluster, device).await {
                    let reason = error.to_string();
                    finished.push(Finished::FlashFailed { name: unreported, reason });
                }
            });
            return Ok(());
        };
        let share = Share { core: u32::from(self.place), cores };
        flash.add(&name, drive, *superblock, share).map_err(|error| error.to_string())
    }

    /// Retires a device; answers when nothing of it is in use any more.
    pub(super) fn retire_flash(&mut self, number: u64, name: String, tidily: bool) {
        self.prepared_flash.remove(&name);
        let flash = self.core.flash().clone();
        if !tidily {
            flash.retire(&name, "it was taken out");
        }
        let finished = self.finished.clone();
        self.executor.spawn(Priority::Foreground, async move {
            if tidily {
                flash.let_go(&name, FLASH_CLOSE_MAX).await;
            }
            flash.gone(&name).await;
            finished.push(Finished::FlashRetired { number, name });
        });
    }

    /// Has flash describe what it holds, so that the next start finds it. What does not answer in time is described as
    /// it was a moment ago.
    pub(super) fn close_flash(&mut self) {
        self.flash = FlashEnd::Closing;
        let (flash, finished) = (self.core.flash().clone(), self.finished.clone());
        let executor = self.executor.clone();
        self.executor.spawn(Priority::Foreground, async move {
            executor.timeout(FLASH_CLOSE_MAX, flash.close()).await;
            finished.push(Finished::FlashClosed);
        });
    }

    /// Tells the control thread what it shows; of very much only the first.
    fn flash_event(&mut self, device: &str, offset: Option<u64>, kind: Kind, event: String) {
        if self.unreported.len() < EVENTS_MAX {
            self.report(Report::FlashEvent { name: device.to_owned(), offset, kind, event });
        }
    }

    /// Tells the control thread what became of devices; the flash has logged it.
    pub(super) fn take_flash_events(&mut self) -> bool {
        let mut worked = false;
        while let Some(event) = self.core.flash().next_event() {
            worked = true;
            match event {
                FlashEvent::Ready { device, .. } => {
                    self.report(Report::FlashReady { name: device.to_string() });
                }
                FlashEvent::Retired { device, reason } => {
                    self.report(Report::FlashRetired { name: device.to_string(), reason });
                }
                FlashEvent::Error { device, offset, reason } => {
                    self.flash_event(&device, offset, Kind::FlashFault, reason);
                }
                FlashEvent::PlaceRetired { device, offset } => {
                    let event = "a place lost its content and is retired".to_owned();
                    self.flash_event(&device, Some(offset), Kind::FlashPlaceRetired, event);
                }
                FlashEvent::NoSpace { device } => {
                    let event = "there is no space behind it: nothing is written to it for a while";
                    self.flash_event(&device, None, Kind::FlashNoSpace, event.to_owned());
                }
            }
        }
        worked
    }
}
