//! Feature identifiers (Base 5.27.1) that the driver reads and sets.

/// Power Management (Base 5.27.1.2): the power state, bits 4:0.
pub const POWER_MANAGEMENT: u8 = 0x02;
/// Temperature Threshold (Base 5.27.1.3): kelvins in bits 15:0.
pub const TEMPERATURE_THRESHOLD: u8 = 0x04;
/// Volatile Write Cache (Base 5.27.1.4): enabled, bit 0.
pub const VOLATILE_WRITE_CACHE: u8 = 0x06;
/// Number of Queues (Base 5.27.1.5): submission in bits 15:0, completion in 31:16, zero-based.
pub const NUMBER_OF_QUEUES: u8 = 0x07;
/// Asynchronous Event Configuration (Base 5.27.1.8).
pub const ASYNCHRONOUS_EVENTS: u8 = 0x0b;

/// Events wanted: all critical warnings (7:0), namespace attributes (8), firmware activation (9).
pub const EVENTS_WANTED: u32 = 0x3ff;
