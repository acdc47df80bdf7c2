//! What can be wrong with bytes that claim to be one of our layouts.

/// Why bytes were not accepted. None of these is a fault of the reader's code.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// Fewer bytes than the layout needs.
    #[error("{0}: too short")]
    Short(&'static str),
    /// The magic number is another one.
    #[error("{0}: not one (wrong magic number)")]
    Magic(&'static str),
    /// Written by a newer format level (C31).
    #[error("{0}: written by a version that this program does not know")]
    Version(&'static str),
    /// The checksum does not match.
    #[error("{0}: checksum mismatch")]
    Checksum(&'static str),
    /// Intact, but another object than the one asked for (C3).
    #[error("{0}: belongs to another place or owner")]
    Identity(&'static str),
    /// A field has a value that no writer produces.
    #[error("{0}: malformed")]
    Malformed(&'static str),
}
