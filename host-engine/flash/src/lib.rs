//! The flash tier of a host core: parts of stripes on the host's own devices, so that reads need no network.
//!
//! A log of zones, written in large sequential writes and scanned at start; a table in memory that says where each
//! part lies; eviction that spares what is read. It is a cache: nothing waits for it, nothing is lost with it, and
//! every frame that it gives must pass its own check at its address (C3), which is the caller's part.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`prepare()`] | whose device it is; formatting |
//! | `table` | where each part lies |
//! | `device` | a share of a device: zones and their states |
//! | `port` | requests to a drive |
//! | `state` | reads, puts, errors: what never waits |
//! | `append` | writing parts |
//! | `upkeep` | headers |
//! | `evict`, `mend` | making room; places that lost their content |
//! | `scan` | what a device holds when it is added |
//! | `watch` | lost, slow and retired devices |
//! | `stats` | figures and events |
//!
//! One core owns all of this, and shares a device with other cores by its zones. A crash loses the parts that no
//! header names: the last fifth of a second of a device that is written without pause at most two. The devices of a
//! core that lost power keep what was durable.
#![forbid(unsafe_code)]

mod append;
mod device;
mod evict;
mod mend;
mod port;
mod prepare;
mod scan;
mod state;
mod stats;
mod table;
mod upkeep;
mod watch;

pub use device::{Phase, Share};
pub use prepare::{PrepareError, Prepared, prepare};
pub use state::{FlashBytes, FlashRead};
pub use stats::{DeviceStats, FlashEvent, FlashStats};

use bytes::Bytes;
use cleave_format::flash::{FlashId, FlashSuperblock};
use cleave_format::ids::{ClusterId, StripeId};
use cleave_runtime::Token;
use cleave_runtime::drives::{Drive, DriveIo};
use cleave_runtime::executor::{Executor, Priority};
use cleave_runtime::sync::{Outcome, Signal, promise};
use device::Device;
use port::Port;
use state::{DeviceKey, State};
use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Zones that a share has at least: one to fill, one to move to, one to evict.
pub const ZONES_MIN: u32 = 3;

/// Why a device is not added.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddError {
    /// A core's part of it is too small.
    #[error("its {zones} zones are too few for {cores} cores; use a larger device")]
    Small {
        /// Zones of the whole device.
        zones: u32,
        /// Cores that share it.
        cores: u32,
    },
    /// A core can use 128 TiB.
    #[error("the core has no room for it: it can use 128 TiB of flash")]
    Large,
    /// One of that name is in use.
    #[error("{0} is in use already")]
    Known(Arc<str>),
}

/// Why a device is not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not what it should be.
    #[error("{0}")]
    Prepare(#[from] PrepareError),
    /// It is not added.
    #[error("{0}")]
    Add(#[from] AddError),
}

pub(crate) struct Inner {
    executor: Executor,
    state: RefCell<State>,
    /// Devices of which nobody knows yet what they are.
    preparing: RefCell<Vec<DriveIo>>,
    /// Of all devices, the retired ones with requests on their way too.
    ports: RefCell<Vec<Rc<Port>>>,
    /// A device came or went.
    changed: Signal,
}

impl Inner {
    /// What a device's task works with; `None` when it is retired already.
    fn task_of(&self, key: DeviceKey) -> Option<(Rc<Port>, Signal)> {
        let mut state = self.state.borrow_mut();
        let device = state.device(key)?;
        Some((Rc::clone(&device.port), device.changed.clone()))
    }
}

/// The flash of one core; clones are the same one.
#[derive(Clone)]
pub struct Flash(Rc<Inner>);

impl Flash {
    /// Without devices it takes nothing and has nothing.
    pub fn new(executor: Executor) -> Flash {
        let inner = Rc::new(Inner {
            executor,
            state: RefCell::default(),
            preparing: RefCell::default(),
            ports: RefCell::default(),
            changed: Signal::new(),
        });
        let executor = inner.executor.clone();
        executor.spawn(Priority::Foreground, watch::watch(Rc::clone(&inner)));
        executor.spawn(Priority::Background, watch::sweep(Rc::clone(&inner)));
        Flash(inner)
    }

    /// Adds this core's share of a prepared device; it is in use when [`FlashEvent::Ready`] says so. All requests to the drive go
    /// through this from now on, and completions of [`turn`](Flash::turn) drive its tasks.
    pub fn add(
        &self,
        name: &str,
        drive: Rc<dyn Drive>,
        superblock: FlashSuperblock,
        share: Share,
    ) -> Result<(), AddError> {
        let (zones, cores) = (superblock.zones, share.cores);
        if share.zones(zones) < ZONES_MIN {
            return Err(AddError::Small { zones, cores });
        }
        let inner = &self.0;
        let mut state = inner.state.borrow_mut();
        let in_use = |device: &Device| &*device.name == name && device.phase != Phase::Retired;
        if state.devices.values().any(in_use) {
            return Err(AddError::Known(name.into()));
        }
        let places = u64::from(share.zones(zones)) * u64::from(superblock.places);
        let base = state.base_for(places).ok_or(AddError::Large)?;
        let port = Rc::new(Port::new(drive, Rc::clone(inner.executor.clock())));
        inner.ports.borrow_mut().push(Rc::clone(&port));
        let key = state.next_device;
        state.next_device += 1;
        state.devices.insert(key, Device::new(name.into(), port, superblock, share, base));
        drop(state);
        let executor = &inner.executor;
        let task = Rc::clone(inner);
        executor.spawn(Priority::Foreground, async move {
            scan::scan(Rc::clone(&task), key).await;
            let executor = &task.executor;
            for _ in 0..append::WRITERS {
                executor.spawn(Priority::Background, append::write(Rc::clone(&task), key));
            }
            executor.spawn(Priority::Background, upkeep::keep(Rc::clone(&task), key));
            executor.spawn(Priority::Background, evict::evict(Rc::clone(&task), key));
            executor.spawn(Priority::Background, mend::mend(Rc::clone(&task), key));
        });
        inner.changed.notify();
        Ok(())
    }

    /// Finds out what a device is, as [`prepare()`] does; it is not added yet.
    pub async fn prepare(
        &self,
        drive: &Rc<dyn Drive>,
        cluster: ClusterId,
        device: FlashId,
    ) -> Result<Prepared, PrepareError> {
        let io = DriveIo::new(Rc::clone(drive));
        self.0.preparing.borrow_mut().push(io.clone());
        let prepared = prepare(&io, cluster, device).await;
        let mut preparing = self.0.preparing.borrow_mut();
        preparing.retain(|other| !Rc::ptr_eq(other.drive(), drive));
        prepared
    }

    /// Prepares and adds a device that this core has for itself. `device` is its random name if it must be formatted.
    pub async fn open(
        &self,
        name: &str,
        drive: Rc<dyn Drive>,
        cluster: ClusterId,
        device: FlashId,
    ) -> Result<Prepared, OpenError> {
        let prepared = self.prepare(&drive, cluster, device).await?;
        self.add(name, drive, prepared.superblock.clone(), Share::WHOLE)?;
        Ok(prepared)
    }

    /// Retires a device: its parts are gone at once. False when there is none of that name in use.
    pub fn retire(&self, name: &str, reason: &str) -> bool {
        let mut state = self.0.state.borrow_mut();
        let named = |device: &Device| &*device.name == name && device.phase != Phase::Retired;
        let key = state.devices.iter().find(|(_, device)| named(device)).map(|(key, _)| *key);
        if let Some(key) = key {
            state.retire(key, reason.to_owned());
        }
        key.is_some()
    }

    /// As [`retire`](Flash::retire), but what the device holds is described first, for whoever adds it next. Returns when that
    /// is done, or could not be done within `limit`.
    pub async fn let_go(&self, name: &str, limit: Duration) {
        let inner = &self.0;
        let found = {
            let mut state = inner.state.borrow_mut();
            let mut devices = state.devices.iter_mut();
            let named = |device: &Device| &*device.name == name && device.phase != Phase::Retired;
            let found = devices.find(|(_, device)| named(device));
            found.map(|(key, device)| (*key, device.finish()))
        };
        let Some((key, changed)) = found else { return };
        let finished = || {
            let state = inner.state.borrow();
            let over = |device: &Device| device.phase != Phase::Ready || device.is_finished();
            state.devices.get(&key).is_none_or(over).then_some(())
        };
        inner.executor.timeout(limit, changed.until(finished)).await;
        inner.state.borrow_mut().drop_device(key);
    }

    /// Waits until nothing of a device is in use any more: then its drive is closed.
    pub async fn gone(&self, name: &str) {
        let state = &self.0.state;
        let there = || state.borrow().devices.values().any(|device| &*device.name == name);
        self.0.changed.until(|| (!there()).then_some(())).await;
    }

    /// Whether there is any device.
    pub fn is_empty(&self) -> bool {
        self.0.state.borrow().devices.is_empty()
    }

    /// Takes what the devices have done. True when there was anything.
    pub fn turn(&self, done: &mut Vec<FlashRead>) -> bool {
        let mut any = false;
        for io in &*self.0.preparing.borrow() {
            any |= io.turn();
        }
        for port in &*self.0.ports.borrow() {
            any |= port.turn(|name, outcome| self.0.state.borrow_mut().read_done(name, outcome));
        }
        let mut state = self.0.state.borrow_mut();
        any |= !state.done.is_empty();
        done.append(&mut state.done);
        any
    }

    /// Whether a part is here.
    pub fn holds(&self, stripe: StripeId, part: u8) -> bool {
        self.0.state.borrow().table.get(stripe, part).is_some()
    }

    /// How often a part was read, up to 3 times; `None` when it is not here.
    pub fn heat(&self, stripe: StripeId, part: u8) -> Option<u8> {
        self.0.state.borrow().table.get(stripe, part).map(|found| found.heat)
    }

    /// Begins to read bytes of one part of a stripe's data section; `false` when they are not here. The outcome comes
    /// from [`turn`](Flash::turn) with the token, in any order.
    pub fn read(&self, stripe: StripeId, offset: u32, length: u32, token: Token) -> bool {
        let now = self.0.executor.now();
        self.0.state.borrow_mut().read(stripe, offset, length, token, now)
    }

    /// Takes whole parts from `first` on. `None` when there is no room for them; else what is returned is over
    /// when they can be read, or will not be.
    pub fn put(&self, stripe: StripeId, first: u8, bytes: &Bytes, heat: u8) -> Option<Outcome<()>> {
        let now = self.0.executor.now();
        let (latch, outcome) = promise();
        let heat = heat.min(table::HEAT_MAX);
        let taken =
            self.0.state.borrow_mut().put(stripe, first, bytes, heat, Some(Rc::new(latch)), now);
        taken.then_some(outcome)
    }

    /// Drops a stripe of which nothing will be read any more.
    pub fn forget(&self, stripe: StripeId) {
        self.0.state.borrow_mut().forget(stripe);
    }

    /// What was read of a part failed its check: the part is dropped, and its place looked at.
    pub fn bad(&self, stripe: StripeId, part: u8) {
        self.0.state.borrow_mut().bad(stripe, part);
    }

    /// Takes no more parts, and sees to it that those that came are found again, also after a loss of power.
    pub async fn close(&self) {
        let inner = &self.0;
        let changes = {
            let mut state = inner.state.borrow_mut();
            let devices = state.devices.values_mut();
            devices.map(Device::finish).collect::<Vec<_>>()
        };
        for changed in changes {
            changed
                .until(|| {
                    let state = inner.state.borrow();
                    let mut devices = state.devices.values();
                    let finished =
                        |device: &Device| device.phase != Phase::Ready || device.is_finished();
                    devices.all(finished).then_some(())
                })
                .await;
        }
    }

    /// The present figures.
    pub fn stats(&self) -> FlashStats {
        self.0.state.borrow().figures()
    }

    /// Bytes of memory for table and zones, about.
    pub fn memory(&self) -> u64 {
        self.0.state.borrow().memory()
    }

    /// The next thing that whoever runs it should know.
    pub fn next_event(&self) -> Option<FlashEvent> {
        self.0.state.borrow_mut().events.pop_front()
    }
}

#[cfg(test)]
mod tests;
