//! Identify data: the controller (Base figure 275) and a namespace (NVM figure 97).
//!
//! What contradicts itself is refused here, so that later arithmetic on it cannot overflow.

/// Bytes of every Identify data structure (Base 5.17).
pub const IDENTIFY_BYTES: usize = 4096;

/// Text of fixed width, padded with spaces, as printable ASCII.
pub(super) fn text(bytes: &[u8]) -> String {
    let printable = |byte: &u8| if (32..127).contains(byte) { char::from(*byte) } else { ' ' };
    bytes.iter().map(printable).collect::<String>().trim().to_owned()
}

fn half(data: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([data[at], data[at + 1]])
}

fn word(data: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(data[at..at + 4].try_into().expect("4 bytes"))
}

fn long(data: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(data[at..at + 8].try_into().expect("8 bytes"))
}

/// What a controller says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ControllerIdentity {
    /// PCI vendor (VID).
    pub vendor: u16,
    /// Serial number (SN).
    pub serial: String,
    /// Model (MN).
    pub model: String,
    /// Firmware revision (FR).
    pub firmware: String,
    /// Largest transfer as a power of two of memory pages; 0 for no limit (MDTS).
    pub transfer_max_shift: u8,
    /// Event requests that may be outstanding, made one-based (AERL).
    pub event_requests_max: u16,
    /// Abort commands that may be outstanding, made one-based (ACL).
    pub aborts_max: u16,
    /// Entries of the error log, made one-based (ELPE).
    pub error_log_entries: u16,
    /// Namespaces at most (NN).
    pub namespaces_max: u32,
    /// Compare is offered (ONCS bit 0).
    pub compare: bool,
    /// Dataset Management is offered (ONCS bit 2).
    pub dataset_management: bool,
    /// Write Zeroes is offered (ONCS bit 3).
    pub write_zeroes: bool,
    /// Verify is offered (ONCS bit 7).
    pub verify: bool,
    /// There is a volatile write cache (VWC bit 0).
    pub volatile_write_cache: bool,
    /// SGLs are offered for I/O (SGLS bits 1:0).
    pub sgl: bool,
    /// SGL data blocks must be aligned to dwords (SGLS bits 1:0 are 10b).
    pub sgl_dword_aligned: bool,
    /// Time that shutdown may take, in microseconds; 0 when it is not said (RTD3E).
    pub shutdown_microseconds: u32,
    /// Power states, made one-based (NPSS).
    pub power_states: u8,
}

impl ControllerIdentity {
    /// Reads the structure, or says what is impossible in it.
    ///
    /// # Errors
    /// Entry sizes that exclude those of the specification, or a transfer limit beyond any memory.
    pub fn parse(data: &[u8; IDENTIFY_BYTES]) -> Result<ControllerIdentity, String> {
        let (submission, completion) = (data[512], data[513]);
        let takes = |sizes: u8, size: u8| sizes & 0xf <= size && size <= sizes >> 4;
        if !takes(submission, 6) || !takes(completion, 4) {
            return Err(format!(
                "queue entry sizes {submission:#x} and {completion:#x} exclude 64 and 16 bytes"
            ));
        }
        if data[77] > 32 {
            return Err(format!("a largest transfer of 2^{} pages", data[77]));
        }
        let optional = half(data, 520);
        let sgl = word(data, 536) & 3;
        Ok(ControllerIdentity {
            vendor: half(data, 0),
            serial: text(&data[4..24]),
            model: text(&data[24..64]),
            firmware: text(&data[64..72]),
            transfer_max_shift: data[77],
            event_requests_max: u16::from(data[259]) + 1,
            aborts_max: u16::from(data[258]) + 1,
            error_log_entries: u16::from(data[262]) + 1,
            namespaces_max: word(data, 516),
            compare: optional & 1 != 0,
            dataset_management: optional & 1 << 2 != 0,
            write_zeroes: optional & 1 << 3 != 0,
            verify: optional & 1 << 7 != 0,
            volatile_write_cache: data[525] & 1 != 0,
            sgl: sgl == 1 || sgl == 2,
            sgl_dword_aligned: sgl == 2,
            shutdown_microseconds: word(data, 88),
            power_states: data[263].saturating_add(1),
        })
    }
}

/// How a namespace's blocks are protected (NVM 5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// Not at all.
    None,
    /// Guard, and a reference tag that is the low 32 bits of the block's number (types 1 and 2).
    Reference,
    /// Guard only: the reference tag is not checked (type 3).
    Guard,
}

/// What a controller says of a namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamespaceIdentity {
    /// Its number.
    pub number: u32,
    /// Blocks (NSZE).
    pub blocks: u64,
    /// Bytes of data in a block: 512 to 65536, a power of two.
    pub block_bytes: u32,
    /// Bytes of metadata beside each block (MS).
    pub metadata_bytes: u16,
    /// Metadata follows its block in the same buffer (FLBAS bit 4).
    pub metadata_interleaved: bool,
    /// Protection information in the metadata.
    pub protection: Protection,
    /// Protection information is in the first bytes of the metadata (DPS bit 3).
    pub protection_first: bool,
    /// Reads of deallocated blocks give zeroes (DLFEAT bits 2:0 are 001b).
    pub deallocated_is_zero: bool,
    /// I/O should not cross multiples of this many blocks; 0 for no such limit (NOIOB).
    pub optimal_boundary: u16,
    /// The namespace is thinly provisioned (NSFEAT bit 0).
    pub thin: bool,
}

impl NamespaceIdentity {
    /// Reads the structure. `None` for a namespace that is not active (all zeroes).
    ///
    /// # Errors
    /// What is impossible in it.
    pub fn parse(
        number: u32,
        data: &[u8; IDENTIFY_BYTES],
    ) -> Result<Option<NamespaceIdentity>, String> {
        let blocks = long(data, 0);
        if blocks == 0 {
            return Ok(None);
        }
        // Base 2.0 widened the index by bits 6:5 for more than 16 formats (NVM figure 97).
        let formats = data[25];
        let index = data[26] & 0xf | (data[26] >> 5 & 3) << 4;
        if index > formats || index >= 64 {
            return Err(format!("namespace {number}: format {index} of {formats}"));
        }
        let format = word(data, 128 + 4 * usize::from(index));
        let shift = format >> 16 & 0xff;
        if !(9..=16).contains(&shift) {
            return Err(format!("namespace {number}: blocks of 2^{shift} bytes"));
        }
        if blocks > u64::MAX >> shift {
            return Err(format!("namespace {number}: {blocks} blocks of 2^{shift} bytes"));
        }
        let metadata_bytes = format as u16;
        let protection = match data[29] & 7 {
            0 => Protection::None,
            1 | 2 => Protection::Reference,
            3 => Protection::Guard,
            other => return Err(format!("namespace {number}: protection type {other}")),
        };
        if protection != Protection::None && metadata_bytes < 8 {
            return Err(format!(
                "namespace {number}: protection information in {metadata_bytes} bytes of metadata"
            ));
        }
        Ok(Some(NamespaceIdentity {
            number,
            blocks,
            block_bytes: 1 << shift,
            metadata_bytes,
            metadata_interleaved: data[26] & 1 << 4 != 0,
            protection,
            protection_first: data[29] & 1 << 3 != 0,
            deallocated_is_zero: data[33] & 7 == 1,
            optimal_boundary: half(data, 46),
            thin: data[24] & 1 != 0,
        }))
    }
}

/// The numbers of a page of the active namespace list (Base 5.17.2.3): ascending, up to the first
/// zero. A list that does not ascend above `above` is refused, else it could go on for ever.
///
/// # Errors
/// What is impossible in it.
pub fn active_namespaces(above: u32, data: &[u8; IDENTIFY_BYTES]) -> Result<Vec<u32>, String> {
    let mut numbers = Vec::new();
    let mut last = above;
    for at in (0..IDENTIFY_BYTES).step_by(4) {
        let number = word(data, at);
        if number == 0 {
            break;
        }
        if number <= last {
            return Err(format!("namespace {number} listed after {last}"));
        }
        last = number;
        numbers.push(number);
    }
    Ok(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn namespace() -> [u8; IDENTIFY_BYTES] {
        let mut data = [0; IDENTIFY_BYTES];
        data[0..8].copy_from_slice(&1000u64.to_le_bytes());
        data[25] = 1;
        data[26] = 0x11;
        data[29] = 1;
        data[128..132].copy_from_slice(&(9u32 << 16).to_le_bytes());
        data[132..136].copy_from_slice(&(12u32 << 16 | 8).to_le_bytes());
        data
    }

    #[test]
    fn a_namespace_reads_by_its_format() {
        let parsed = NamespaceIdentity::parse(1, &namespace()).unwrap().unwrap();
        assert_eq!((parsed.blocks, parsed.block_bytes, parsed.metadata_bytes), (1000, 4096, 8));
        assert!(parsed.metadata_interleaved);
        assert_eq!(parsed.protection, Protection::Reference);
        assert_eq!(NamespaceIdentity::parse(1, &[0; IDENTIFY_BYTES]), Ok(None));
    }

    #[test]
    fn what_is_impossible_is_refused() {
        let with = |at: usize, value: u8| {
            let mut data = namespace();
            data[at] = value;
            NamespaceIdentity::parse(1, &data)
        };
        assert!(with(26, 2).is_err());
        assert!(with(134, 60).is_err());
        assert!(with(29, 5).is_err());
        assert!(with(7, 0xff).is_err());
        assert!(with(132, 4).is_err());
    }

    #[test]
    fn the_list_ends_and_ascends() {
        let mut data = [0; IDENTIFY_BYTES];
        data[0] = 1;
        data[4] = 5;
        assert_eq!(active_namespaces(0, &data), Ok(vec![1, 5]));
        data[4] = 1;
        assert!(active_namespaces(0, &data).is_err());
    }

    proptest! {
        #[test]
        fn nothing_that_a_device_says_panics(
            bytes in proptest::collection::vec((0usize..IDENTIFY_BYTES, any::<u8>()), 0..200),
        ) {
            let mut data = namespace();
            data[512] = 0x66;
            data[513] = 0x44;
            for (at, byte) in bytes {
                data[at] = byte;
            }
            let _ = ControllerIdentity::parse(&data);
            if let Ok(Some(parsed)) = NamespaceIdentity::parse(1, &data) {
                prop_assert!(parsed.blocks.checked_mul(u64::from(parsed.block_bytes)).is_some());
            }
            let _ = active_namespaces(0, &data);
        }
    }
}
