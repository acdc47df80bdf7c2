//! Messages on the store's socket.
//!
//! Both sides begin with [`GREETING`], which names the protocol and its version. Then each
//! message is a little-endian `u32`, the length of what follows, and an encoded [`Request`] or
//! [`Reply`](crate::hub::Reply). A length beyond the bound, or bytes that do not decode, end the
//! connection.

use crate::contract::{LIST_BYTES_MAX, Operation, TRANSACTION_BYTES_MAX, Token};
use crate::encoding::{Decode, Encode, decode, encode};

/// What each side sends first.
pub const GREETING: [u8; 8] = *b"clvstor2";

/// Longest request, bytes: what a valid operation fits in.
pub const REQUEST_BYTES_MAX: usize = 2 * TRANSACTION_BYTES_MAX;
/// Longest reply, bytes: what a list fits in.
pub const REPLY_BYTES_MAX: usize = LIST_BYTES_MAX + (1 << 20);

/// From a client.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Request {
    /// Comes back in the answer.
    pub token: Token,
    /// What to do.
    pub operation: Operation,
}

/// A message with its length before it.
pub fn framed<T: Encode>(message: &T) -> Vec<u8> {
    let body = encode(message);
    let length = u32::try_from(body.len()).expect("messages are bounded far below 4 GiB");
    let mut bytes = Vec::with_capacity(4 + body.len());
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    bytes
}

/// The first message of `bytes` and how many of them it takes; `None` until all of it is there.
pub fn first<T: Decode<()>>(bytes: &[u8], length_max: usize) -> Result<Option<(T, usize)>, String> {
    let Some((length, rest)) = bytes.split_first_chunk::<4>() else { return Ok(None) };
    let length = u32::from_le_bytes(*length) as usize;
    if length > length_max {
        return Err(format!("a message of {length} bytes, more than {length_max}"));
    }
    let Some(body) = rest.get(..length) else { return Ok(None) };
    let message = decode(body).map_err(|error| format!("a message that is malformed: {error}"))?;
    Ok(Some((message, 4 + length)))
}
