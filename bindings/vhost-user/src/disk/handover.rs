//! A device on its way from one thread to another: its front end stays connected and notices nothing but a pause.
//!
//! Only a device with nothing in the engine's hands moves, so that nothing of the guest's is done twice, and nothing
//! new before something old (C24). Whoever gets it has it paused. What is dropped on the way is disconnected, and its
//! inflight region has nothing in it but what no engine ever began.

use super::Disk;
use crate::config::DiskConfig;
use crate::frontend::Frontend;
use crate::listen::Listening;
use crate::request::BufferSource;
use crate::slots::Slots;
use crate::{Error, Statistics};
use std::fmt;

/// A device without a thread.
pub struct DetachedDisk {
    frontend: Option<Box<Frontend>>,
    slots: Slots,
    statistics: Statistics,
    config: DiskConfig,
    capacity: u64,
    writeback: u8,
    listening: Listening,
    watch_version: u64,
    refusing: bool,
}

// What goes from thread to thread.
const _: () = {
    const fn sent<T: Send>() {}
    sent::<DetachedDisk>()
};

impl fmt::Debug for DetachedDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let connected = self.frontend.is_some();
        f.debug_struct("DetachedDisk")
            .field("vdisk", &self.config.name)
            .field("connected", &connected)
            .finish()
    }
}

impl Disk {
    /// Takes the device from its thread, which watches none of its files any more. Gives it back when the engine has
    /// requests of it.
    pub fn detach(mut self) -> Result<DetachedDisk, Box<Disk>> {
        if self.in_flight() > 0 {
            return Err(Box::new(self));
        }
        assert!(self.held.is_empty(), "what is held back is in flight");
        self.flush_notifications();
        Ok(DetachedDisk {
            frontend: self.frontend,
            slots: self.slots,
            statistics: self.statistics,
            config: self.config,
            capacity: self.capacity,
            writeback: self.writeback,
            listening: self.listening,
            // The files are the same, and nobody watches them.
            watch_version: self.watch_version + 1,
            refusing: self.refusing,
        })
    }
}

impl DetachedDisk {
    /// Gives the device to the calling thread, paused, and with the size that the vdisk has now.
    pub fn attach(
        self,
        capacity: u64,
        buffers: impl BufferSource + 'static,
    ) -> Result<Disk, Error> {
        let mut disk = Disk {
            frontend: self.frontend,
            slots: self.slots,
            held: Vec::new(),
            held_slots: 0,
            paused: true,
            statistics: self.statistics,
            config: self.config,
            capacity: self.capacity,
            buffers: Box::new(buffers),
            writeback: self.writeback,
            socket_turns: 0,
            unsignalled: false,
            listening: self.listening,
            watch_version: self.watch_version,
            refusing: self.refusing,
        };
        if disk.capacity != capacity {
            disk.resize(capacity)?;
        }
        Ok(disk)
    }
}
