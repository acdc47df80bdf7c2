//! One share on a core; the first one with its vdisk's device and the files by which that wakes the core.

use crate::measure::Measures;
use cleave_format::ids::VdiskId;
use cleave_host_core::front::HomeKey;
use cleave_runtime_real::reactor::{Reactor, WatchId};
use cleave_vhost_user::Disk;

/// See the module's page.
pub struct Serving {
    /// Which share.
    pub vdisk: VdiskId,
    /// The vdisk's device, if it is here.
    pub disk: Option<Disk>,
    /// Where the front has what the device gave; none before all shares are open.
    pub home: Option<HomeKey>,
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
    /// A share that the core has opened.
    pub fn new(vdisk: VdiskId, disk: Option<Disk>) -> Serving {
        Serving {
            vdisk,
            disk,
            home: None,
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

    /// Takes nothing more from the front end.
    pub fn pause(&mut self) {
        if let Some(disk) = &mut self.disk {
            disk.pause();
        }
    }

    /// Queues that the front end has set up: each has a file for its kicks, beside the connection's.
    pub fn queues(&self) -> u32 {
        let files = self.disk.as_ref().map_or(0, |disk| disk.watched().len());
        files.saturating_sub(1) as u32
    }
}
