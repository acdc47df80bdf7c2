//! Log pages (Base 5.16.1): health, errors, firmware slots, changed namespaces.

use super::completion::Status;

/// Error Information (Base 5.16.1.2), 64 bytes an entry.
pub const ERROR_INFORMATION: u8 = 0x01;
/// SMART / Health Information (Base 5.16.1.3), 512 bytes.
pub const HEALTH: u8 = 0x02;
/// Firmware Slot Information (Base 5.16.1.4), 512 bytes.
pub const FIRMWARE_SLOTS: u8 = 0x03;
/// Changed Namespace List (Base 5.16.1.5), 4096 bytes.
pub const CHANGED_NAMESPACES: u8 = 0x04;
/// Bytes of the health and firmware pages, and of what is read to acknowledge an unknown event.
pub const PAGE_BYTES: u32 = 512;
/// Bytes of an entry of the error log.
pub const ERROR_ENTRY_BYTES: u32 = 64;

/// The health page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Bits: spare low, temperature, reliability, read-only, backup device, persistent memory.
    pub critical_warning: u8,
    /// Composite temperature in kelvins.
    pub temperature_kelvins: u16,
    /// Spare capacity left, in percent.
    pub spare_percent: u8,
    /// Below this the spare warning is raised, in percent.
    pub spare_threshold_percent: u8,
    /// Vendor's estimate of life used, in percent; may exceed 100.
    pub used_percent: u8,
    /// Data read by hosts, in units of 512,000 bytes.
    pub data_units_read: u128,
    /// Data written by hosts, in units of 512,000 bytes.
    pub data_units_written: u128,
    /// Read commands completed.
    pub host_reads: u128,
    /// Write commands completed.
    pub host_writes: u128,
    /// Power cycles.
    pub power_cycles: u128,
    /// Hours powered on.
    pub power_on_hours: u128,
    /// Power losses without a shutdown notification.
    pub unsafe_shutdowns: u128,
    /// Unrecovered data errors.
    pub media_errors: u128,
    /// Entries of the error log over the controller's life.
    pub error_log_entries: u128,
}

fn number(page: &[u8], at: usize) -> u128 {
    u128::from_le_bytes(page[at..at + 16].try_into().expect("16 bytes"))
}

impl Health {
    /// Reads the page.
    pub fn parse(page: &[u8; PAGE_BYTES as usize]) -> Health {
        Health {
            critical_warning: page[0],
            temperature_kelvins: u16::from_le_bytes([page[1], page[2]]),
            spare_percent: page[3],
            spare_threshold_percent: page[4],
            used_percent: page[5],
            data_units_read: number(page, 32),
            data_units_written: number(page, 48),
            host_reads: number(page, 64),
            host_writes: number(page, 80),
            power_cycles: number(page, 112),
            power_on_hours: number(page, 128),
            unsafe_shutdowns: number(page, 144),
            media_errors: number(page, 160),
            error_log_entries: number(page, 176),
        }
    }
}

/// An entry of the error log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ErrorEntry {
    /// Its number over the controller's life.
    pub count: u64,
    /// The submission queue of the failed command.
    pub queue: u16,
    /// The failed command.
    pub identifier: u16,
    /// Its status.
    pub status: Status,
    /// The first block with the error.
    pub block: u64,
    /// The namespace.
    pub namespace: u32,
}

impl ErrorEntry {
    /// Reads an entry; `None` for an unused one.
    pub fn parse(entry: &[u8; ERROR_ENTRY_BYTES as usize]) -> Option<ErrorEntry> {
        let half = |at: usize| u16::from_le_bytes([entry[at], entry[at + 1]]);
        let long = |at: usize| u64::from_le_bytes(entry[at..at + 8].try_into().expect("8 bytes"));
        let word = |at: usize| u32::from_le_bytes(entry[at..at + 4].try_into().expect("4 bytes"));
        (long(0) != 0).then(|| ErrorEntry {
            count: long(0),
            queue: half(8),
            identifier: half(10),
            status: Status(half(12) >> 1),
            block: long(16),
            namespace: word(24),
        })
    }
}

/// The firmware slot page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirmwareSlots {
    /// The slot of the running firmware.
    pub active: u8,
    /// The slot that the next reset activates; 0 for none.
    pub next: u8,
    /// The revision in each slot; empty where there is none.
    pub revisions: [String; 7],
}

impl FirmwareSlots {
    /// Reads the page.
    pub fn parse(page: &[u8; PAGE_BYTES as usize]) -> FirmwareSlots {
        let revision = |slot: usize| super::identify::text(&page[8 + 8 * slot..16 + 8 * slot]);
        FirmwareSlots {
            active: page[0] & 7,
            next: page[0] >> 4 & 7,
            revisions: std::array::from_fn(revision),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_read_as_the_specification_lays_them_out() {
        let mut page = [0; 512];
        page[0] = 4;
        page[1..3].copy_from_slice(&300u16.to_le_bytes());
        page[48..64].copy_from_slice(&77u128.to_le_bytes());
        page[160] = 9;
        let health = Health::parse(&page);
        assert_eq!((health.critical_warning, health.temperature_kelvins), (4, 300));
        assert_eq!((health.data_units_written, health.media_errors), (77, 9));
        let mut page = [0; 512];
        page[0] = 0x21;
        page[8..16].copy_from_slice(b"1.0     ");
        let slots = FirmwareSlots::parse(&page);
        assert_eq!((slots.active, slots.next, slots.revisions[0].as_str()), (1, 2, "1.0"));
        let mut entry = [0; 64];
        assert_eq!(ErrorEntry::parse(&entry), None);
        entry[0] = 1;
        entry[12..14].copy_from_slice(&(0x281u16 << 1).to_le_bytes());
        assert!(ErrorEntry::parse(&entry).unwrap().status.is(Status::UNRECOVERED_READ));
    }
}
