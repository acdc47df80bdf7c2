//! Every message between engines. ARCHITECTURE.md tells the conversations.
//!
//! ```text
//! message:  0 header length u32 | header | payload
//! ```
//! The header is one of [`HostMessage`], [`ControllerMessage`], [`PeerMessage`], encoded by the
//! format crate's one encoding; the payload is bytes that are stored or used as they are: log
//! records, slots, ranges. A receiver copies the payload once, to where it stays.
//!
//! A peer that sends what does not decode is disconnected; nothing else happens.
#![forbid(unsafe_code)]

mod host;
mod peer;

pub use host::*;
pub use peer::*;

use bincode::{Decode, Encode};
use bytes::Bytes;
use cleave_format::FormatError;

/// Version of the conversation; both sides must have the same in this release.
pub const WIRE_VERSION: u16 = 9;

/// Longest header that is accepted.
pub const HEADER_LENGTH_MAX: usize = 2 << 20;

/// Encodes a header with its length, to be sent in front of the payload's parts.
pub fn encode_header<T: Encode>(header: &T) -> Bytes {
    let body = cleave_format::encode(header);
    let mut bytes = Vec::with_capacity(4 + body.len());
    let length = u32::try_from(body.len()).expect("headers are bounded");
    bytes.extend_from_slice(&length.to_le_bytes());
    bytes.extend_from_slice(&body);
    Bytes::from(bytes)
}

/// Something from which a message's bytes can be taken in order: the runtime's `Message`, or a
/// byte slice in tests.
pub trait Source {
    /// Takes the next `count` bytes; `None` when fewer are left.
    fn take(&mut self, count: usize) -> Option<Bytes>;
}

impl Source for Bytes {
    fn take(&mut self, count: usize) -> Option<Bytes> {
        (count <= self.len()).then(|| self.split_to(count))
    }
}

/// Takes a header off the front of a message; what stays is the payload.
pub fn decode_header<T: Decode<()>>(
    mut take: impl FnMut(usize) -> Option<Bytes>,
) -> Result<T, FormatError> {
    let short = FormatError::Short("message");
    let length = take(4).ok_or(short)?;
    let length = u32::from_le_bytes([length[0], length[1], length[2], length[3]]) as usize;
    if length > HEADER_LENGTH_MAX {
        return Err(FormatError::Malformed("message"));
    }
    cleave_format::decode(&take(length).ok_or(short)?)
}
