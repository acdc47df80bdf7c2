//! One vdisk on a core: its device, the requests that wait for room, the files that wake the core.

use crate::measure::Measures;
use cleave_format::ids::VdiskId;
use cleave_host_core::GuestRequest;
use cleave_runtime_real::reactor::{Reactor, WatchId};
use cleave_vhost_user::Disk;
use std::collections::VecDeque;

/// See the module's page.
pub struct Serving {
    /// Which vdisk.
    pub vdisk: VdiskId,
    /// Tells it from an earlier one in the same place.
    pub serial: u64,
    /// `None` while it is open without a device.
    pub disk: Option<Disk>,
    /// Requests that the core gave back, and those behind them, in the order taken. The device
    /// bounds their bytes.
    pub stalled: VecDeque<GuestRequest>,
    /// What its guest did.
    pub measures: Measures,
    /// Its device came from another core, and the core has not opened it yet.
    pub arriving: bool,
    /// The command by which it goes to another core.
    pub leaving: Option<u64>,
    /// It goes as soon as what was taken is done.
    pub draining: bool,
    watches: Vec<WatchId>,
    watch_version: Option<u64>,
}

impl Serving {
    /// A vdisk that the core has opened.
    pub fn new(vdisk: VdiskId, serial: u64, disk: Option<Disk>) -> Serving {
        Serving {
            vdisk,
            serial,
            disk,
            stalled: VecDeque::new(),
            measures: Measures::default(),
            arriving: false,
            leaving: None,
            draining: false,
            watches: Vec::new(),
            watch_version: None,
        }
    }

    /// Sees to it that the core is woken by the device's present files.
    pub fn watch(&mut self, reactor: &Reactor) {
        let Some(disk) = &self.disk else { return };
        if self.watch_version == Some(disk.watch_version()) {
            return;
        }
        self.watch_version = Some(disk.watch_version());
        self.watches.drain(..).for_each(|watch| reactor.unwatch(watch));
        self.watches.extend(disk.watched().into_iter().map(|fd| reactor.watch(fd)));
    }

    /// To be called before it is dropped.
    pub fn unwatch(&mut self, reactor: &Reactor) {
        self.watches.drain(..).for_each(|watch| reactor.unwatch(watch));
    }

    /// Takes nothing more from the front end, and gives what waits for room: it is left to the front
    /// end's inflight region (C24).
    pub fn close(&mut self) -> VecDeque<GuestRequest> {
        if let Some(disk) = &mut self.disk {
            disk.pause();
        }
        std::mem::take(&mut self.stalled)
    }

    /// Queues that the front end has set up: each has a file for its kicks, beside the connection's.
    pub fn queues(&self) -> u32 {
        let files = self.disk.as_ref().map_or(0, |disk| disk.watched().len());
        files.saturating_sub(1) as u32
    }
}
