//! Identities: arithmetic, order, text.

use super::*;
use crate::FormatError;
use proptest::prelude::*;

proptest! {
    #[test]
    fn blocks_and_slices_fit(block in 0u64..(crate::layout::VDISK_MAX / crate::layout::BLOCK as u64)) {
        let block = BlockIndex(block);
        prop_assert!(u32::from(block.within_slice()) < crate::layout::SLICE_BLOCKS);
        prop_assert_eq!(block.slice().block(block.within_slice()), block);
    }

    #[test]
    fn newest_wins_by_epoch_then_sequence(a in any::<(u64, u64)>(), b in any::<(u64, u64)>()) {
        let version = |(epoch, sequence)| Version { epoch: Epoch(epoch), sequence: Sequence(sequence) };
        prop_assert_eq!(version(a).cmp(&version(b)), a.cmp(&b));
    }

    #[test]
    fn cluster_identities_are_written_and_read(id in any::<[u8; 16]>()) {
        let id = ClusterId(id);
        prop_assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn any_text_is_refused_or_read(text in "\\PC{0,40}") {
        if let Ok(id) = text.parse::<ClusterId>() {
            prop_assert_eq!(id.to_string(), text.to_ascii_lowercase());
        }
    }
}

#[test]
fn texts_that_are_no_cluster_identity() {
    let malformed = Err(FormatError::Malformed("cluster identity"));
    let id = "00112233445566778899aabbccddeeff";
    assert_eq!(id.parse::<ClusterId>().map(|id| id.0[1]), Ok(0x11));
    // A sign is not a digit, though integers may be parsed with one.
    for text in
        ["", &id[1..], "0011223344556677889 aabbccddeeff", "+0112233445566778899aabbccddeeff"]
    {
        assert_eq!(text.parse::<ClusterId>(), malformed, "{text}");
    }
}
