//! Figures of a core's flash, and what whoever runs it should know.

use crate::device::Phase;
use std::sync::Arc;

/// Of one device: of the core's share of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceStats {
    /// Its name.
    pub name: Arc<str>,
    /// How far it is.
    pub phase: Phase,
    /// Bytes of parts that fit.
    pub capacity: u64,
    /// Bytes of parts that are there.
    pub used: u64,
    /// Zones, and those without parts.
    pub zones: u64,
    /// See [`zones`](DeviceStats::zones).
    pub zones_free: u64,
    /// Places that are not used any more.
    pub retired_places: u64,
    /// Requests that failed, and parts that rotted.
    pub errors: u64,
    /// Bytes written to it since it was opened: parts and headers.
    pub bytes_written: u64,
}

/// Of all devices of a core; counters since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FlashStats {
    /// The devices, in the order in which they were added.
    pub devices: Vec<DeviceStats>,
    /// Parts that are there.
    pub parts: u64,
    /// Stripes that these belong to.
    pub stripes: u64,
    /// Bytes of memory for the table and the zones, about.
    pub memory: u64,
    /// Reads that were begun, and bytes that they gave.
    pub reads: u64,
    /// See [`reads`](FlashStats::reads).
    pub read_bytes: u64,
    /// Reads whose place was given to something else meanwhile (C3).
    pub reads_moved: u64,
    /// Reads that failed.
    pub reads_failed: u64,
    /// Reads that took too long, and were answered otherwise.
    pub reads_late: u64,
    /// Parts written for the first time.
    pub parts_written: u64,
    /// Parts that were not taken: there was no room in the queue, or no device.
    pub parts_refused: u64,
    /// Parts that eviction moved because they are hot.
    pub parts_moved: u64,
    /// Parts that eviction dropped.
    pub parts_evicted: u64,
    /// Parts of which something failed its check and that are as they were written: they came in damaged.
    pub parts_came_damaged: u64,
    /// Parts that a power loss took.
    pub parts_lost_with_power: u64,
    /// Zones that were evicted.
    pub zones_evicted: u64,
}

/// What happened to a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FlashEvent {
    /// Its headers are read: it is in use.
    Ready {
        /// The device.
        device: Arc<str>,
        /// Parts that were found.
        parts: u64,
    },
    /// A request failed.
    Error {
        /// The device.
        device: Arc<str>,
        /// First byte, where there is one.
        offset: Option<u64>,
        /// What it said.
        reason: String,
    },
    /// A place lost what it was given, and is not used any more.
    PlaceRetired {
        /// The device.
        device: Arc<str>,
        /// First byte of the place.
        offset: u64,
    },
    /// There is no space behind the file: nothing new is written for a while.
    NoSpace {
        /// The device.
        device: Arc<str>,
    },
    /// The device is not used any more.
    Retired {
        /// The device.
        device: Arc<str>,
        /// Why.
        reason: String,
    },
}
