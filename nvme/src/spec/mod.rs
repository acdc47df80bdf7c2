//! What the NVM Express specifications fix: registers, commands, completions, data structures.
//!
//! Citations: "Base" is the NVM Express Base Specification, Revision 2.0; "NVM" is the NVM Command
//! Set Specification, Revision 1.0; "PCIe" is the NVMe over PCIe Transport Specification, Revision
//! 1.0. Everything on the device's side is little-endian, and nothing that a device says is taken
//! as true here: parsers give what was said, or refuse what contradicts itself.

pub mod command;
pub mod completion;
pub mod event;
pub mod feature;
pub mod identify;
pub mod log;
pub mod registers;
