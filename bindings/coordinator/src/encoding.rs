//! Bytes of records and messages: the only place that knows bincode.
//!
//! Variable-length integers, little endian, fields in order. Decoding takes all bytes or fails,
//! allocates no more than its limit allows, and never panics. Records that may grow carry their
//! own format number.

pub use bincode::{Decode, Encode};

/// Most bytes that a message or record may claim while it is decoded.
const DECODED_BYTES_MAX: usize = 32 << 20;

/// Why bytes are not what was expected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EncodingError {
    /// Truncated, an unknown variant, or a length beyond the limit.
    #[error("{0}")]
    Malformed(String),
    /// Bytes remain after the value.
    #[error("{0} bytes too many")]
    Trailing(usize),
}

/// The bytes of `value`.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    let config = bincode::config::standard();
    bincode::encode_to_vec(value, config).expect("encoding plain data into memory does not fail")
}

/// The value of `bytes`, all of them.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, EncodingError> {
    let config = bincode::config::standard().with_limit::<DECODED_BYTES_MAX>();
    let (value, taken) = bincode::decode_from_slice(bytes, config)
        .map_err(|error| EncodingError::Malformed(error.to_string()))?;
    match bytes.len() - taken {
        0 => Ok(value),
        rest => Err(EncodingError::Trailing(rest)),
    }
}
