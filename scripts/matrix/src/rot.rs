//! The rot matrix: every structure at rest, and the log in memory, is damaged, and every damage must be found.
//!
//! | Module | Damages |
//! | --- | --- |
//! | [`formats`] | each layout's bytes, as its decoder gets them together with the identity it asks for |
//! | [`databases`] | the files of catalog and store |
//! | [`files`] | configuration, certificates and keys |
//! | [`pool`] | superblocks, slot headers, data, parity, footers, map pieces of a running cluster |
//! | [`logs`] | records in the memory of a log |
//! | [`vaults`] | the images of a log |
//!
//! Found means: an error of the decoder; in a cluster, content that is solved from other shards or taken from
//! the other controller, and where too much is damaged an error for whoever asks. Never wrong data, never a panic.

pub mod databases;
pub mod files;
pub mod formats;
pub mod logs;
pub mod pool;
pub mod vaults;

use crate::units::Unit;

/// All of the matrix; what takes longest comes first.
pub fn units() -> Vec<Unit> {
    vec![
        Unit::new("rot: vaults", vaults::run),
        Unit::new("rot: data and parity", pool::shards),
        Unit::new("rot: slot headers and slots", pool::slot_headers),
        Unit::new("rot: superblocks", pool::superblocks),
        Unit::new("rot: shards of one stripe", pool::whole_shards),
        Unit::new("rot: log's memory", logs::run),
        Unit::new("rot: control records in the log's memory", logs::run_controls),
        Unit::new("rot: files of catalog and store", databases::run),
        Unit::new("rot: files", files::run),
        Unit::new("rot: formats", formats::run),
    ]
}

/// What happens to a range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rot {
    /// One bit is another one.
    Flip(u8),
    /// Zeros.
    Zeros,
    /// Ones.
    Ones,
}

impl Rot {
    /// Damages bytes; a flip hits the first one. Whether anything changed.
    pub fn strike(self, bytes: &mut [u8]) -> bool {
        let before = bytes.to_vec();
        match self {
            Rot::Flip(bit) => bytes[0] ^= 1 << (bit % 8),
            Rot::Zeros => bytes.fill(0),
            Rot::Ones => bytes.fill(0xff),
        }
        bytes != before
    }
}
