//! The encoding of control records and catalog values.

use super::*;

#[test]
fn integers_are_fixed_and_little_endian() {
    assert_eq!(encode(&(0x0102u16, 3u64)), [2, 1, 3, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(encode(&Some(vec![7u8])), [1, 1, 0, 0, 0, 0, 0, 0, 0, 7]);
}

#[test]
fn a_value_uses_up_its_bytes() {
    let malformed = Err(FormatError::Malformed("encoded value"));
    assert_eq!(decode::<u16>(&[2, 1]), Ok(0x0102));
    assert_eq!(decode::<u16>(&[2, 1, 0]), malformed);
    assert_eq!(decode::<u16>(&[2]), malformed);
}

#[test]
fn an_announced_length_allocates_nothing_beyond_the_limit() {
    let mut bytes = u64::MAX.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 16]);
    assert!(decode::<Vec<u64>>(&bytes).is_err());
    bytes[..8].copy_from_slice(&(LENGTH_MAX as u64).to_le_bytes());
    assert!(decode::<Vec<u64>>(&bytes).is_err());
}
