//! What all header pages have in common: 4096 bytes, 8 bytes of magic, a version byte, and the CRC32C
//! of everything before it in the last four bytes. That much holds for every version, so that damage
//! is told from a newer format level (C31).

use crate::FormatError;

/// Bytes of a header page.
pub(crate) const PAGE: usize = 4096;
const CHECKSUM: usize = PAGE - 4;

/// Writes the checksum.
pub(crate) fn seal(page: &mut [u8]) {
    assert_eq!(page.len(), PAGE, "header pages are 4 KiB");
    let crc = crc32c::crc32c(&page[..CHECKSUM]);
    page[CHECKSUM..].copy_from_slice(&crc.to_le_bytes());
}

/// Checks magic, checksum and version, in this order.
pub(crate) fn check(
    page: &[u8],
    magic: &[u8; 8],
    version: u8,
    what: &'static str,
) -> Result<(), FormatError> {
    let page = page.get(..PAGE).ok_or(FormatError::Short(what))?;
    if page[..8] != *magic {
        return Err(FormatError::Magic(what));
    }
    if crc32c::crc32c(&page[..CHECKSUM]).to_le_bytes() != page[CHECKSUM..] {
        return Err(FormatError::Checksum(what));
    }
    if page[8] != version {
        return Err(FormatError::Version(what));
    }
    Ok(())
}

/// Checks that what a version does not use is zeros, as its writers leave it: a page has one encoding.
pub(crate) fn check_unused(unused: &[&[u8]], what: &'static str) -> Result<(), FormatError> {
    let zeros = unused.iter().all(|bytes| bytes.iter().all(|byte| *byte == 0));
    zeros.then_some(()).ok_or(FormatError::Malformed(what))
}
