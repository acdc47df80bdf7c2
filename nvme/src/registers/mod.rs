//! Access to a controller's registers.
//!
//! Registers are read and written 32 bits at a time; a 64-bit one as two, low half first (Base
//! 3.1.3: both are allowed). What a read gives is the device's word, to be checked by the reader.

mod bar;
mod interrupts;

pub use bar::Bar;
pub use interrupts::{Interrupts, device_file};

/// BAR0 of a controller, or something that acts as one.
pub trait Registers: Send + Sync {
    /// Bytes; accesses beyond them are our own mistake.
    fn length(&self) -> u32;

    /// Reads the register at `offset`, a multiple of 4.
    fn read(&self, offset: u32) -> u32;

    /// Writes the register at `offset`, a multiple of 4. What was written to shared memory before
    /// is visible to the device before this is.
    fn write(&self, offset: u32, value: u32);
}

/// Reads a 64-bit register.
pub fn read_u64(registers: &dyn Registers, offset: u32) -> u64 {
    u64::from(registers.read(offset)) | u64::from(registers.read(offset + 4)) << 32
}

/// Writes a 64-bit register.
pub fn write_u64(registers: &dyn Registers, offset: u32, value: u64) {
    registers.write(offset, value as u32);
    registers.write(offset + 4, (value >> 32) as u32);
}
