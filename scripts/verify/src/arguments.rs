//! The command line.

use clap::Parser;
use std::path::PathBuf;

/// Random writes, zeroes, discards and reads over a vhost-user-blk disk, every content checked.
///
/// A disk is expected to be all zeros, or to hold what an earlier run's --save describes. Prints a line
/// a second, `reconnected` whenever the engine went away and came back, and at the end one line of figures.
#[derive(Debug, Parser)]
#[command(version)]
pub struct Arguments {
    /// The engine's socket.
    #[arg(long)]
    pub socket: PathBuf,
    /// How much to write (K, M, G, T are powers of 1024); 0 only checks what is there.
    #[arg(long, default_value = "1G", value_parser = size)]
    pub bytes: u64,
    /// Write no more than this a second.
    #[arg(long, value_parser = size)]
    pub rate: Option<u64>,
    /// Write until standard input ends, if that is before --bytes are written; then check everything.
    #[arg(long)]
    pub until_input_ends: bool,
    /// Decides all requests and contents.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Requests in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=256))]
    pub depth: u16,
    /// Queues; with one, the order of overlapping requests is checked too.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub queues: u16,
    /// Use only the first part of the disk.
    #[arg(long, value_parser = size)]
    pub range: Option<u64>,
    /// How long the engine may stay away before that is an error, seconds.
    #[arg(long, default_value_t = 120)]
    pub patience: u64,
    /// How long a request may take while the engine is connected, seconds.
    #[arg(long, default_value_t = 120)]
    pub stall: u64,
    /// Describe the disk's content in this file at the end.
    #[arg(long)]
    pub save: Option<PathBuf>,
    /// The disk holds what this file describes.
    #[arg(long)]
    pub load: Option<PathBuf>,
    /// Verify nothing: connect, and read and write when standard input ends, by when the engine must have lost the disk to
    /// another one; no request may succeed then.
    #[arg(long, conflicts_with_all = ["until_input_ends", "save", "load"])]
    pub probe: bool,
}

/// A number of bytes with an optional K, M, G or T.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        Some(b'T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().map_err(|_| format!("{text:?} is not a size, like 512M"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_take_units() {
        assert_eq!(size("0"), Ok(0));
        assert_eq!(size("512"), Ok(512));
        assert_eq!(size("3G"), Ok(3 << 30));
        assert!(size("G").is_err());
        assert!(size("").is_err());
        assert!(size("99999999T").is_err());
    }

    #[test]
    fn unknown_options_are_errors() {
        assert!(
            Arguments::try_parse_from(["cleave-verify", "--socket", "s", "--nonsense"]).is_err()
        );
    }
}
