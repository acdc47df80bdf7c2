//! Erasure coding: how wide stripes are, where their shards go, the two parity shards, and what one or two
//! lost shards held.
//!
//! Pure: bytes in, bytes out. Parity is that of `reed-solomon-simd`'s code for k data shards and 2 parity
//! shards; it is part of the format, and golden vectors in the tests hold it in place.
#![forbid(unsafe_code)]

mod code;
pub mod encode;
pub mod geometry;
pub mod placement;
pub mod recover;

pub use encode::Encoder;
pub use geometry::{data_shards, data_shards_now, spare_drives};
pub use placement::{Candidate, choose};
pub use recover::{RecoverError, Solver};
