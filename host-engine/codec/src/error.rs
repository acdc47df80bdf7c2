//! Why a frame gives no content. None of these is a fault of the reader's code.

use cleave_format::FormatError;

/// Why a frame was not decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// The operator's part: the key is another one, or none was given.
    #[error(
        "a frame needs key {key:#010x}, which this engine was not given: start it with that key"
    )]
    KeyUnknown {
        /// Number of the key that the frame names.
        key: u32,
    },
    /// A frame without encryption where all are encrypted: someone put it there (C30).
    #[error("a frame is not encrypted, but its datastore is: it was not written by this cluster")]
    NotEncrypted,
    /// The key has the right number, and the cipher refuses header or payload.
    #[error("authentication of a frame failed: it was changed, or key {key:#010x} is another key")]
    Authentication {
        /// Number of the key that the frame names.
        key: u32,
    },
    /// The header says something that no writer says.
    #[error(transparent)]
    Format(#[from] FormatError),
    /// The compressed content is damaged, or of another length than announced.
    #[error("the compressed content of a frame is malformed")]
    Content,
    /// A block was asked for and the frame holds an object, or the other way round.
    #[error("a frame holds something else than what its address was said to hold")]
    Kind,
}
