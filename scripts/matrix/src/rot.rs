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

use crate::tally::{Extent, Tally};

/// Plays the matrix, or the subjects whose name contains `only`.
pub fn run(extent: Extent, only: &str, tally: &mut Tally) {
    formats::run(extent, only, tally);
    databases::run(extent, only, tally);
    files::run(extent, only, tally);
    pool::run(extent, only, tally);
    logs::run(extent, only, tally);
    vaults::run(extent, only, tally);
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
