//! Waking a core that sleeps, from any thread.
//!
//! Invariant: a thread that published work and then rang is seen by the sleeper either in its last
//! look (it set `sleeping` before that look, and both sides fence in between) or through the
//! eventfd. So no wake is lost, and a core that is awake costs its wakers one load. The reactor's
//! page has the whole protocol.

use crate::error::{Error, Result};
use cleave_runtime::executor::Doorbell;
use cleave_runtime::sleep::SleepFlag;
use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;

/// An eventfd that is written only while its core sleeps.
#[derive(Debug)]
pub struct EventDoorbell {
    event: OwnedFd,
    sleeping: SleepFlag,
}

impl EventDoorbell {
    /// A doorbell of a core that is awake. It may be made before its core's reactor, so that
    /// other cores can already hold it.
    pub fn new() -> Result<Arc<EventDoorbell>> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::System { what: "eventfd", source: errno.into() })?;
        Ok(Arc::new(EventDoorbell { event, sleeping: SleepFlag::new() }))
    }

    /// The core is about to look at its sources for the last time before it sleeps.
    pub(crate) fn arm(&self) {
        self.sleeping.arm();
    }

    /// The core is awake.
    pub(crate) fn disarm(&self) {
        self.sleeping.disarm();
    }

    /// Forgets past rings; called when the eventfd was readable.
    pub(crate) fn drain(&self) {
        let mut count = [0; 8];
        // It is non-blocking; an error only means that there was nothing to forget.
        let _ = rustix::io::read(&self.event, &mut count);
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.event.as_raw_fd()
    }
}

impl Doorbell for EventDoorbell {
    fn ring(&self) {
        // Of several ringers one writes: the one that takes the flag down.
        if self.sleeping.take() {
            // It can only fail when the counter is near its maximum, and then it is readable.
            let _ = rustix::io::write(&self.event, &1u64.to_ne_bytes());
        }
    }
}
