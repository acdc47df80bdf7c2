//! The one place that knows bincode: control messages, control records, catalog values.
//! Fixed-size integers, little-endian; a decoded value must use up its bytes.

use crate::FormatError;
use bincode::config::{Configuration, Fixint, Limit, LittleEndian};
use bincode::{Decode, Encode};

/// Longest encoded value that is accepted: bounds what a decoder allocates.
const LENGTH_MAX: usize = 4 << 20;

fn configuration() -> Configuration<LittleEndian, Fixint, Limit<LENGTH_MAX>> {
    bincode::config::standard().with_fixed_int_encoding().with_limit::<LENGTH_MAX>()
}

/// Encodes a value.
///
/// # Panics
/// When the encoding is longer than 4 MiB: writers bound their values.
pub fn encode<T: Encode>(value: &T) -> Vec<u8> {
    bincode::encode_to_vec(value, configuration()).expect("encoded values are bounded")
}

/// Decodes a value that was encoded alone.
pub fn decode<T: Decode<()>>(bytes: &[u8]) -> Result<T, FormatError> {
    match bincode::decode_from_slice(bytes, configuration()) {
        Ok((value, used)) if used == bytes.len() => Ok(value),
        _ => Err(FormatError::Malformed("encoded value")),
    }
}

#[cfg(test)]
mod tests;
