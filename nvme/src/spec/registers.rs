//! Controller properties in BAR0 (Base 3.1.3), and how their bits read (Base 3.1.3.1-3.1.3.9).

/// Controller Capabilities, 64 bits (Base 3.1.3.1).
pub const CAPABILITIES: u32 = 0x00;
/// Version (Base 3.1.3.2).
pub const VERSION: u32 = 0x08;
/// Controller Configuration (Base 3.1.3.5).
pub const CONFIGURATION: u32 = 0x14;
/// Controller Status (Base 3.1.3.6).
pub const STATUS: u32 = 0x1c;
/// Admin Queue Attributes (Base 3.1.3.8).
pub const ADMIN_QUEUE_ATTRIBUTES: u32 = 0x24;
/// Admin Submission Queue Base Address, 64 bits (Base 3.1.3.9).
pub const ADMIN_SUBMISSION_ADDRESS: u32 = 0x28;
/// Admin Completion Queue Base Address, 64 bits (Base 3.1.3.10).
pub const ADMIN_COMPLETION_ADDRESS: u32 = 0x30;
/// Where doorbells begin (PCIe 3.1.2).
pub const DOORBELLS: u32 = 0x1000;
/// What a read of a device that is not there gives.
pub const ABSENT: u32 = u32::MAX;

/// CAP as read (Base 3.1.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    fn bits(self, low: u32, count: u32) -> u64 {
        (self.0 >> low) & ((1 << count) - 1)
    }

    /// Most entries that a queue may have (MQES, made one-based).
    pub fn queue_entries_max(self) -> u32 {
        self.bits(0, 16) as u32 + 1
    }

    /// Longest time from a change of CC.EN to that of CSTS.RDY, in milliseconds (TO). A device
    /// that says zero is given one unit.
    pub fn ready_timeout_ms(self) -> u64 {
        self.bits(24, 8).max(1) * 500
    }

    /// Bytes from one doorbell to the next (DSTRD).
    pub fn doorbell_stride(self) -> u32 {
        4 << self.bits(32, 4)
    }

    /// Whether the NVM command set can be chosen (CSS bit 37).
    pub fn nvm_command_set(self) -> bool {
        self.bits(37, 1) == 1
    }

    /// Smallest memory page in bytes (MPSMIN).
    pub fn page_min(self) -> u64 {
        1 << (12 + self.bits(48, 4))
    }

    /// Largest memory page in bytes (MPSMAX).
    pub fn page_max(self) -> u64 {
        1 << (12 + self.bits(52, 4))
    }
}

/// CC as written (Base 3.1.3.5): NVM command set, round robin, 64-byte and 16-byte entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Configuration(pub u32);

impl Configuration {
    /// Bit EN.
    pub const ENABLE: u32 = 1;
    const SHUTDOWN_NORMAL: u32 = 1 << 14;
    const SHUTDOWN_MASK: u32 = 3 << 14;

    /// Enabled, with this memory page size: a power of two from 4 KiB.
    pub fn enabled(page: u64) -> Configuration {
        let page_shift = page.trailing_zeros() - 12;
        Configuration(Self::ENABLE | page_shift << 7 | 6 << 16 | 4 << 20)
    }

    /// Memory page size in bytes (MPS).
    pub fn page(self) -> u64 {
        1 << (12 + (self.0 >> 7 & 0xf))
    }

    /// Whether EN is set.
    pub fn is_enabled(self) -> bool {
        self.0 & Self::ENABLE != 0
    }

    /// The same without EN.
    pub fn disabled(self) -> Configuration {
        Configuration(self.0 & !Self::ENABLE)
    }

    /// The same with a normal shutdown announced (SHN).
    pub fn shutting_down(self) -> Configuration {
        Configuration(self.0 & !Self::SHUTDOWN_MASK | Self::SHUTDOWN_NORMAL)
    }

    /// Whether a shutdown is announced.
    pub fn is_shutting_down(self) -> bool {
        self.0 & Self::SHUTDOWN_MASK != 0
    }
}

/// CSTS as read (Base 3.1.3.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ControllerStatus(pub u32);

impl ControllerStatus {
    /// Nobody answers: a removed device reads as all ones.
    pub fn is_absent(self) -> bool {
        self.0 == ABSENT
    }

    /// RDY.
    pub fn is_ready(self) -> bool {
        self.0 & 1 != 0
    }

    /// CFS: the controller says that it is broken.
    pub fn is_fatal(self) -> bool {
        self.0 & 2 != 0
    }

    /// SHST says that shutdown processing is complete.
    pub fn is_shut_down(self) -> bool {
        self.0 >> 2 & 3 == 2
    }
}

/// Where the doorbell of a queue is (PCIe 3.1.2.1, 3.1.2.2).
pub fn doorbell(queue: u16, completion: bool, stride: u32) -> u32 {
    let number = 2 * u32::from(queue) + u32::from(completion);
    // One that no register can have is beyond all of them.
    DOORBELLS.saturating_add(number.saturating_mul(stride))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_where_the_specification_has_them() {
        // What QEMU 7.2's controller says: MQES 2047, CQR, TO 15, DSTRD 0, CSS NVM, MPSMAX 4.
        let capabilities = Capabilities(0x0040_0020_0f01_07ff);
        assert_eq!(capabilities.queue_entries_max(), 2048);
        assert_eq!(capabilities.ready_timeout_ms(), 7500);
        assert_eq!(capabilities.doorbell_stride(), 4);
        assert!(capabilities.nvm_command_set());
        assert_eq!((capabilities.page_min(), capabilities.page_max()), (4096, 65536));
        let configuration = Configuration::enabled(8192);
        assert_eq!(configuration.0, 0x0046_0081);
        assert_eq!(configuration.page(), 8192);
        assert_eq!(configuration.shutting_down().0, 0x0046_4081);
        assert_eq!(doorbell(3, true, 8), 0x1000 + 7 * 8);
        assert!(ControllerStatus(0b1001).is_ready() && ControllerStatus(0b1001).is_shut_down());
    }
}
