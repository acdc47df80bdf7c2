//! Sizes as people write them: a number of bytes, or one with K, M, G or T (powers of 1024).

use serde::de::{self, Deserializer, Visitor};
use std::fmt;

/// Largest vdisk: 64 TiB.
pub const VDISK_BYTES_MAX: u64 = 64 << 40;
/// A vdisk's size is a multiple of this.
pub const VDISK_BYTES_STEP: u64 = 4096;

/// What is wrong with a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not digits and at most one unit.
    #[error("{0:?} is not a size: write digits and K, M, G or T (powers of 1024), as in 16G")]
    Malformed(String),
    /// Nothing.
    #[error("the size is zero")]
    Zero,
    /// Beyond 64 bits.
    #[error("the size {0} is too large")]
    Overflow(String),
    /// Not what a vdisk may have.
    #[error("a vdisk of {0} bytes: its size must be a multiple of 4K and at most 64T")]
    Vdisk(u64),
}

/// Bytes of a text such as `16G`.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let malformed = || SizeError::Malformed(text.to_owned());
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        Some(b'T' | b't') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(malformed());
    }
    let overflow = || SizeError::Overflow(text.to_owned());
    let number: u64 = digits.parse().map_err(|_| overflow())?;
    match number.checked_mul(1 << shift).ok_or_else(overflow)? {
        0 => Err(SizeError::Zero),
        bytes => Ok(bytes),
    }
}

/// Bytes of a text, as the size of a vdisk.
pub fn parse_vdisk_size(text: &str) -> Result<u64, SizeError> {
    let bytes = parse_size(text)?;
    check_vdisk_size(bytes)?;
    Ok(bytes)
}

/// Whether a vdisk may have this size.
pub fn check_vdisk_size(bytes: u64) -> Result<(), SizeError> {
    match bytes {
        0 => Err(SizeError::Zero),
        _ if !bytes.is_multiple_of(VDISK_BYTES_STEP) || bytes > VDISK_BYTES_MAX => {
            Err(SizeError::Vdisk(bytes))
        }
        _ => Ok(()),
    }
}

/// The shortest text that gives exactly these bytes.
pub fn format_size(bytes: u64) -> String {
    for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
        if bytes != 0 && bytes.trailing_zeros() >= shift {
            return format!("{}{unit}", bytes >> shift);
        }
    }
    bytes.to_string()
}

/// Accepts bytes as a number, or a text for [`parse_size`], in configuration files.
pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    struct SizeVisitor;
    impl Visitor<'_> for SizeVisitor {
        type Value = u64;
        fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
            formatter.write_str("a size such as 67108864 or \"64M\"")
        }
        fn visit_i64<E: de::Error>(self, value: i64) -> Result<u64, E> {
            u64::try_from(value).map_err(|_| E::custom("a size is not negative"))
        }
        fn visit_u64<E: de::Error>(self, value: u64) -> Result<u64, E> {
            Ok(value)
        }
        fn visit_str<E: de::Error>(self, value: &str) -> Result<u64, E> {
            parse_size(value).map_err(E::custom)
        }
    }
    deserializer.deserialize_any(SizeVisitor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("1", 1),
            ("512", 512),
            ("1K", 1024),
            ("3m", 3 << 20),
            ("16G", 16 << 30),
            ("64T", 64 << 40),
            ("007K", 7 << 10),
            ("18446744073709551615", u64::MAX),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "K", "1KB", "1.5G", "-1", "+1", " 1", "1 ", "1P", "0x10", "1G1", "١", "1µ"]
        {
            assert!(matches!(parse_size(text), Err(SizeError::Malformed(_))), "{text}");
        }
        assert_eq!(parse_size("0"), Err(SizeError::Zero));
        assert_eq!(parse_size("000T"), Err(SizeError::Zero));
        for text in ["18446744073709551616", "16777216T", "99999999999999999999999K"] {
            assert!(matches!(parse_size(text), Err(SizeError::Overflow(_))), "{text}");
        }
    }

    #[test]
    fn vdisks_are_whole_blocks_up_to_64_tib() {
        assert_eq!(parse_vdisk_size("64T"), Ok(VDISK_BYTES_MAX));
        assert_eq!(parse_vdisk_size("4096"), Ok(4096));
        for text in ["65T", "512", "4097", "1"] {
            assert!(matches!(parse_vdisk_size(text), Err(SizeError::Vdisk(_))), "{text}");
        }
        assert_eq!(check_vdisk_size(0), Err(SizeError::Zero));
    }

    proptest! {
        #[test]
        fn a_formatted_size_is_the_size(bytes in 1..=u64::MAX, shift in 0..64_u32) {
            let bytes = (bytes >> shift).max(1);
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_breaks_it(text in "\\PC{0,24}") {
            let _ = parse_size(&text);
        }
    }
}
