//! The block codec: a block of the guest to a frame, and back.
//!
//! A block is tested for zeros, compressed with LZ4 (stored when that does not shrink it), encrypted
//! with AES-256-GCM when keys are set, and sealed with the log's checksum. `cleave-format` owns the
//! frame's layout; this crate owns what is in the payload. It is pure: time, randomness and
//! devices do not come in, and one [`Codec`] belongs to one core.
//!
//! Nonces (C29): an engine start has an incarnation that is never used again, a core encodes under the
//! subkey HKDF(data key, incarnation, core), and the nonce is a counter that only this codec raises. A
//! crash leaves nothing behind: the next start has another incarnation, hence other subkeys. For the
//! same reason there must never be two codecs of one incarnation and core.
#![forbid(unsafe_code)]

mod aead;
mod codec;
mod error;
mod keys;
mod subkeys;

pub use codec::{Codec, Encoded, OBJECT_LENGTH_MAX, Settings, is_zero};
pub use error::CodecError;
pub use keys::{KEY_LENGTH, Keys, key_check_value};
