//! Shares: the parts of a vdisk that cores own.
//!
//! A vdisk has a fixed number of shares, each with an identity of its own: to log, catalog, map and write buffer a share
//! is a vdisk. Extents of [`EXTENT`] bytes go to them in turn, so a block belongs to one share, for ever, at the address
//! that it has in the vdisk. A vdisk of one share is what it is made of.
//!
//! Invariants: a share's identity is the vdisk's and its number added; whoever makes a vdisk uses up as many
//! identities (C3). The number of shares never changes, and so does not depend on how many cores there are.

use cleave_format::ids::VdiskId;
use cleave_format::layout::{PIECE_SLICES, SLICE};

/// Bytes of a vdisk that follow each other in one share: what a map piece maps, so that a share's pieces are whole.
pub const EXTENT: u64 = PIECE_SLICES as u64 * SLICE;
/// Most shares of a vdisk.
pub const SHARES_MAX: u16 = 16;

/// Which part of a vdisk belongs to which share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shares {
    first: VdiskId,
    count: u16,
}

impl Shares {
    /// The shares of a vdisk that has so many; at least one, at most [`SHARES_MAX`].
    pub fn new(vdisk: VdiskId, count: u16) -> Shares {
        Shares { first: vdisk, count: count.clamp(1, SHARES_MAX) }
    }

    /// The vdisk, and the identity of its first share.
    pub fn vdisk(&self) -> VdiskId {
        self.first
    }

    /// How many there are.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// A share's identity.
    pub fn identity(&self, share: u16) -> VdiskId {
        VdiskId(self.first.0 + u64::from(share))
    }

    /// All identities, in order.
    pub fn identities(self) -> impl Iterator<Item = VdiskId> {
        (0..self.count).map(move |share| self.identity(share))
    }

    /// The share that has an identity, if it is one of these.
    pub fn number(&self, identity: VdiskId) -> Option<u16> {
        let number = identity.0.checked_sub(self.first.0)?;
        u16::try_from(number).ok().filter(|number| *number < self.count)
    }

    /// The share to which a byte belongs.
    pub fn at(&self, byte: u64) -> u16 {
        match self.count {
            1 => 0,
            count => (byte / EXTENT % u64::from(count)) as u16,
        }
    }

    /// Cuts a range into parts that belong to one share each, in order: share, first byte, length. A range of no bytes
    /// is one part, and so is one that no vdisk has.
    pub fn cut(&self, offset: u64, length: u64) -> impl Iterator<Item = (u16, u64, u64)> + use<> {
        let (shares, end) = (*self, offset.checked_add(length));
        let whole = shares.count == 1 || length == 0 || end.is_none();
        let mut next = Some(offset);
        std::iter::from_fn(move || {
            let from = next.take()?;
            if whole {
                return Some((shares.at(from), from, length));
            }
            let end = end?;
            let to = end.min((from / EXTENT).saturating_add(1).saturating_mul(EXTENT));
            next = (to < end).then_some(to);
            Some((shares.at(from), from, to - from))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn identities_are_the_vdisks_and_those_after_it() {
        let shares = Shares::new(VdiskId(7), 3);
        assert_eq!(shares.identities().collect::<Vec<_>>(), [7, 8, 9].map(VdiskId));
        assert_eq!(
            [6, 7, 9, 10].map(|id| shares.number(VdiskId(id))),
            [None, Some(0), Some(2), None]
        );
        assert_eq!(Shares::new(VdiskId(7), 0).count(), 1);
        assert_eq!(Shares::new(VdiskId(7), 999).count(), SHARES_MAX);
    }

    #[test]
    fn what_no_vdisk_has_is_one_part() {
        let shares = Shares::new(VdiskId(1), 4);
        assert_eq!(shares.cut(u64::MAX - 3, 9).count(), 1);
        assert_eq!(shares.cut(EXTENT, 0).collect::<Vec<_>>(), [(1, EXTENT, 0)]);
        assert_eq!(
            shares.cut(u64::MAX - EXTENT, EXTENT).map(|(_, _, length)| length).sum::<u64>(),
            EXTENT
        );
    }

    proptest! {
        // A map from each sector to its share is the model.
        #[test]
        fn parts_follow_each_other_and_belong_to_their_share(
            count in 1u16..6,
            sector in 0u64..40_000,
            sectors in 1u64..30_000,
        ) {
            let shares = Shares::new(VdiskId(3), count);
            let (offset, length) = (sector * 512, sectors * 512);
            let mut next = offset;
            let mut before = None;
            for (share, from, part) in shares.cut(offset, length) {
                prop_assert_eq!(from, next);
                prop_assert!(part > 0);
                for sector in from / 512..(from + part) / 512 {
                    prop_assert_eq!(u64::from(share), sector * 512 / (4 << 20) % u64::from(count));
                }
                prop_assert!(count > 1 || before.is_none());
                before = Some(share);
                next = from + part;
            }
            prop_assert_eq!(next, offset + length);
        }
    }
}
