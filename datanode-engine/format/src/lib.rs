//! Every layout at rest, once: identities, frames, log records, slots, footers, superblocks, vault
//! images, map pieces, control records, flash. `docs/FORMATS.md` draws them byte by byte.
//!
//! All integers are little-endian. Every decoder takes untrusted bytes, returns [`FormatError`]
//! and never panics; every layout starts with a version and is covered by a CRC32C. Kinds that
//! later features need (references, cuts, moves, forwarding: C5, C22, C27) have their numbers
//! already.
#![forbid(unsafe_code)]

pub mod address;
pub mod control;
mod encoding;
pub mod error;
pub mod flash;
pub mod footer;
pub mod frame;
pub mod ids;
pub mod layout;
pub mod map_piece;
mod page;
pub mod record;
pub mod slot;
pub mod solo;
pub mod superblock;
#[cfg(test)]
mod testing;
pub mod vault;

pub use encoding::{decode, encode};
pub use error::FormatError;

#[cfg(test)]
mod drawings;
