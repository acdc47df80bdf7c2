//! What a vdisk is to its guest: limits, features, and the virtio-blk configuration space.
//!
//! Layouts and numbers: Virtual I/O Device (VIRTIO) version 1.2, section 5.2.

use crate::Error;
use std::path::PathBuf;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::bindings::{virtio_blk, virtio_config, virtio_ring};

/// A sector of virtio-blk, whatever the logical block is.
pub(crate) const SECTOR: u64 = 512;
/// Bytes of the configuration space that this device fills; beyond it reads give zeros.
const CONFIG_FILLED: usize = 60;
/// Bytes of configuration space that can be read.
pub(crate) const CONFIG_SPACE: usize = 256;
/// Offset of the writeback byte, the only one that a driver may write.
pub(crate) const CONFIG_WRITEBACK: usize = 32;
/// Bytes of the serial number in an answer to GET_ID.
pub(crate) const SERIAL: usize = virtio_blk::VIRTIO_BLK_ID_BYTES as usize;
/// Requests that a tag can tell apart, less one that is yet to be refused.
const SLOTS_MAX: u32 = (1 << 16) - 1;
/// Virtqueues of one vdisk, at most.
pub(crate) const QUEUES_MAX: u16 = 64;

/// One vdisk's device.
#[derive(Clone, Debug)]
pub struct DiskConfig {
    /// The vdisk's name, for messages.
    pub name: String,
    /// Where to listen.
    pub socket: PathBuf,
    /// Permissions of the socket file, 0o660 by default.
    pub mode: u32,
    /// Group of the socket file; `None` leaves the process's.
    pub group: Option<String>,
    /// Bytes; a multiple of `logical_block`.
    pub capacity: u64,
    /// Virtqueues, 1 to 64.
    pub queues: u16,
    /// Descriptors of a virtqueue, at most: a power of two, 2 to 1024.
    pub queue_size_max: u16,
    /// 512 or 4096 bytes.
    pub logical_block: u32,
    /// Given to guests that ask for it; at most 20 bytes.
    pub serial: String,
    /// Writes are refused.
    pub read_only: bool,
    /// Data segments that a driver may put in one request.
    pub segments_max: u32,
    /// Bytes of the largest [`Request`](crate::Request), a multiple of 4096. Drivers that obey the
    /// device's limits stay below it; what firmware sends beyond it comes in parts.
    pub transfer_max: u32,
    /// Bytes of one discard range, at most.
    pub discard_max: u64,
    /// Bytes of one write-zeroes range, at most.
    pub write_zeroes_max: u64,
    /// Ranges of one discard or write-zeroes request, at most.
    pub ranges_max: u32,
    /// The last running ring stops only after [`Disk::released`](crate::Disk::released): for owners
    /// that let go of the vdisk before a migration's destination may take it (C26).
    pub confirm_release: bool,
    /// Bytes of write data that may be with the engine before no more requests are taken.
    pub write_bytes_max: u64,
}

impl DiskConfig {
    /// A vdisk of `capacity` bytes with the defaults of everything else.
    pub fn new(name: impl Into<String>, socket: impl Into<PathBuf>, capacity: u64) -> DiskConfig {
        DiskConfig {
            name: name.into(),
            socket: socket.into(),
            mode: 0o660,
            group: None,
            capacity,
            queues: 4,
            queue_size_max: 1024,
            logical_block: 512,
            serial: String::new(),
            read_only: false,
            segments_max: 126,
            transfer_max: 4 << 20,
            discard_max: 1 << 30,
            write_zeroes_max: 1 << 30,
            ranges_max: 32,
            confirm_release: false,
            write_bytes_max: 64 << 20,
        }
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        let block = u64::from(self.logical_block);
        let ranges = self.discard_max.min(self.write_zeroes_max);
        let wrong = if !matches!(self.logical_block, 512 | 4096) {
            "logical_block must be 512 or 4096"
        } else if self.capacity == 0 || !self.capacity.is_multiple_of(block) {
            "capacity must be a multiple of logical_block, and not 0"
        } else if self.queues == 0 || self.queues > QUEUES_MAX {
            "queues must be 1 to 64"
        } else if !self.queue_size_max.is_power_of_two()
            || !(2..=1024).contains(&self.queue_size_max)
        {
            "queue_size_max must be a power of two from 2 to 1024"
        } else if u32::from(self.queues) * u32::from(self.queue_size_max) > SLOTS_MAX {
            "queues times queue_size_max must be below 65536"
        } else if self.serial.len() > SERIAL {
            "serial must have at most 20 bytes"
        } else if self.segments_max == 0 || self.segments_max > 1022 {
            "segments_max must be 1 to 1022"
        } else if self.transfer_max < 4096 * self.segments_max
            || !self.transfer_max.is_multiple_of(4096)
        {
            "transfer_max must be a multiple of 4096, and 4096 for each segment at least"
        } else if ranges < 4096 || self.discard_max.max(self.write_zeroes_max) > (1 << 40) {
            "discard_max and write_zeroes_max must be 4096 bytes to 1 TiB"
        } else if self.ranges_max == 0 || self.ranges_max > 256 {
            "ranges_max must be 1 to 256"
        } else if self.write_bytes_max == 0 {
            "write_bytes_max must not be 0"
        } else {
            return Ok(());
        };
        Err(Error::Configuration { vdisk: self.name.clone(), what: wrong.into() })
    }

    /// Bits that the device offers (a front end acknowledges those that it and the driver want).
    pub(crate) fn features(&self) -> u64 {
        let mut bits = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits()
            | VhostUserVirtioFeatures::LOG_ALL.bits();
        for bit in [
            virtio_config::VIRTIO_F_VERSION_1,
            virtio_ring::VIRTIO_RING_F_INDIRECT_DESC,
            virtio_ring::VIRTIO_RING_F_EVENT_IDX,
            virtio_blk::VIRTIO_BLK_F_SIZE_MAX,
            virtio_blk::VIRTIO_BLK_F_SEG_MAX,
            virtio_blk::VIRTIO_BLK_F_BLK_SIZE,
            virtio_blk::VIRTIO_BLK_F_FLUSH,
            virtio_blk::VIRTIO_BLK_F_TOPOLOGY,
            // The cache mode is told through this one: write-through.
            virtio_blk::VIRTIO_BLK_F_CONFIG_WCE,
            virtio_blk::VIRTIO_BLK_F_MQ,
            virtio_blk::VIRTIO_BLK_F_DISCARD,
            virtio_blk::VIRTIO_BLK_F_WRITE_ZEROES,
        ] {
            bits |= 1 << bit;
        }
        if self.read_only {
            bits |= 1 << virtio_blk::VIRTIO_BLK_F_RO;
        }
        bits
    }

    pub(crate) fn protocol_features() -> VhostUserProtocolFeatures {
        VhostUserProtocolFeatures::MQ
            | VhostUserProtocolFeatures::LOG_SHMFD
            | VhostUserProtocolFeatures::REPLY_ACK
            | VhostUserProtocolFeatures::BACKEND_REQ
            | VhostUserProtocolFeatures::CONFIG
            | VhostUserProtocolFeatures::INFLIGHT_SHMFD
            | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
    }

    /// `struct virtio_blk_config`, little-endian.
    pub(crate) fn space(&self, capacity: u64, writeback: u8) -> [u8; CONFIG_SPACE] {
        let mut space = [0; CONFIG_SPACE];
        let mut at = 0;
        let mut put = |bytes: &[u8]| {
            space[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        let segment = self.transfer_max / self.segments_max / 4096 * 4096;
        let page_blocks = 4096 / self.logical_block;
        put(&(capacity / SECTOR).to_le_bytes());
        put(&segment.to_le_bytes()); // size_max
        put(&self.segments_max.to_le_bytes());
        put(&[0; 4]); // geometry
        put(&self.logical_block.to_le_bytes());
        put(&[page_blocks.trailing_zeros() as u8, 0]); // physical block 4 KiB, aligned
        put(&(page_blocks as u16).to_le_bytes()); // min_io_size, in logical blocks
        put(&0u32.to_le_bytes()); // opt_io_size: none
        put(&[writeback, 0]);
        put(&self.queues.to_le_bytes());
        put(&sectors(self.discard_max).to_le_bytes());
        put(&self.ranges_max.to_le_bytes());
        put(&((4096 / SECTOR) as u32).to_le_bytes()); // discard_sector_alignment
        put(&sectors(self.write_zeroes_max).to_le_bytes());
        put(&self.ranges_max.to_le_bytes());
        put(&[1, 0, 0, 0]); // write_zeroes_may_unmap
        assert_eq!(at, CONFIG_FILLED);
        space
    }

    /// The answer to GET_ID: padded with zeros.
    pub(crate) fn serial_bytes(&self) -> [u8; SERIAL] {
        let mut bytes = [0; SERIAL];
        bytes[..self.serial.len()].copy_from_slice(self.serial.as_bytes());
        bytes
    }
}

fn sectors(bytes: u64) -> u32 {
    u32::try_from(bytes / SECTOR).expect("checked with the configuration")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_space_has_its_golden_form() {
        let mut config = DiskConfig::new("d", "/s", 1 << 30);
        config.logical_block = 4096;
        config.check().unwrap();
        let golden: [u8; CONFIG_FILLED] = [
            0, 0, 0x20, 0, 0, 0, 0, 0, // capacity 0x200000 sectors
            0, 0x80, 0, 0, // size_max 32 KiB
            126, 0, 0, 0, // seg_max
            0, 0, 0, 0, // geometry
            0, 0x10, 0, 0, // blk_size
            0, 0, 1, 0, // topology
            0, 0, 0, 0, // opt_io_size
            0, 0, // write-through
            4, 0, // num_queues
            0, 0, 0x20, 0, 32, 0, 0, 0, 8, 0, 0, 0, // discard
            0, 0, 0x20, 0, 32, 0, 0, 0, 1, 0, 0, 0, // write zeroes
        ];
        let space = config.space(config.capacity, 0);
        assert_eq!(space[..CONFIG_FILLED], golden);
        assert!(space[CONFIG_FILLED..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn wrong_values_are_named() {
        let good = DiskConfig::new("d", "/s", 1 << 20);
        good.check().unwrap();
        for (wrong, word) in [
            (DiskConfig { capacity: 513, ..good.clone() }, "capacity"),
            (DiskConfig { queues: 0, ..good.clone() }, "queues"),
            (DiskConfig { queue_size_max: 100, ..good.clone() }, "queue_size_max"),
            (DiskConfig { queues: 64, queue_size_max: 1024, ..good.clone() }, "queues times"),
            (DiskConfig { logical_block: 1024, ..good.clone() }, "logical_block"),
            (DiskConfig { serial: "x".repeat(21), ..good.clone() }, "serial"),
            (DiskConfig { transfer_max: 5000, ..good.clone() }, "transfer_max"),
        ] {
            assert!(wrong.check().unwrap_err().to_string().contains(word));
        }
    }
}
