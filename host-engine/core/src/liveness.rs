//! Which stripes a vdisk could leave, so that the data node frees what nobody names (C20, C21).
//!
//! The catalog lists for each stripe the vdisks that may name it. Here is what it cannot know: of the
//! stripes listed for a vdisk those that no entry of its map names. Some hold current pieces of the
//! map still; the others are *dead*. A map run that begins captures both, as they are at its
//! frontier; its commit names those that hold no piece which is current after it, and with that
//! commit, which makes the run durable, the vdisk leaves them.
//!
//! Invariants: a stripe that the catalog lists for the vdisk, once that is known here, is named by an entry
//! or is in one of the two sets; a captured stripe that an entry names again is captured no more.
//!
//! A crash leaves nothing: the next owner asks for the list (`open`).

use cleave_format::address::Address;
use cleave_format::control::{PiecePlace, UNREFERENCED_MAX};
use cleave_format::ids::{StripeId, VdiskId};
use std::collections::{BTreeMap, BTreeSet};

#[derive(Default)]
struct OfVdisk {
    /// Named by no entry, without a current piece.
    dead: BTreeSet<StripeId>,
    /// Named by no entry, with current pieces.
    with_pieces: BTreeSet<StripeId>,
    /// Those of both that were there when the run in progress began, and since.
    captured: BTreeSet<StripeId>,
    /// The current pieces.
    pieces: BTreeMap<u32, Address>,
    /// How many of them lie in a stripe.
    pieces_in: BTreeMap<StripeId, u32>,
}

/// The stripes that vdisks could leave.
#[derive(Default)]
pub struct Liveness {
    vdisks: BTreeMap<VdiskId, OfVdisk>,
}

impl Liveness {
    /// No entry of the vdisk names the stripe, which the catalog lists for it.
    pub fn unnamed(&mut self, vdisk: VdiskId, stripe: StripeId) {
        let found = self.vdisks.entry(vdisk).or_default();
        match found.pieces_in.contains_key(&stripe) {
            true => found.with_pieces.insert(stripe),
            false => found.dead.insert(stripe),
        };
    }

    /// An entry of the vdisk names the stripe.
    pub fn named(&mut self, vdisk: VdiskId, stripe: StripeId) {
        if let Some(found) = self.vdisks.get_mut(&vdisk) {
            found.dead.remove(&stripe);
            found.with_pieces.remove(&stripe);
            found.captured.remove(&stripe);
        }
    }

    /// A group's piece is current from now on; `None`: the group has none.
    /// Returns the one before.
    pub fn set_piece(
        &mut self,
        vdisk: VdiskId,
        group: u32,
        address: Option<Address>,
    ) -> Option<Address> {
        let found = self.vdisks.entry(vdisk).or_default();
        let old = match address {
            Some(address) => {
                let count = found.pieces_in.entry(address.stripe).or_default();
                *count += 1;
                if *count == 1 && found.dead.remove(&address.stripe) {
                    found.with_pieces.insert(address.stripe);
                }
                found.pieces.insert(group, address)
            }
            None => found.pieces.remove(&group),
        };
        let Address { stripe, .. } = old?;
        let count = found.pieces_in.get_mut(&stripe).expect("a current piece is counted");
        *count -= 1;
        if *count == 0 {
            found.pieces_in.remove(&stripe);
            if found.with_pieces.remove(&stripe) {
                found.dead.insert(stripe);
            }
        }
        old
    }

    /// Where a group's current piece lies.
    pub fn piece(&self, vdisk: VdiskId, group: u32) -> Option<Address> {
        self.vdisks.get(&vdisk)?.pieces.get(&group).copied()
    }

    /// Whether a current piece of any vdisk lies in the stripe.
    pub fn holds_pieces(&self, stripe: StripeId) -> bool {
        self.vdisks.values().any(|found| found.pieces_in.contains_key(&stripe))
    }

    /// A run of the vdisk begins: remembers what nothing names now, as much as one run may name, but for what
    /// plans refer to.
    pub fn capture(&mut self, vdisk: VdiskId, is_pinned: impl Fn(StripeId) -> bool) {
        let Some(found) = self.vdisks.get_mut(&vdisk) else { return };
        let all = found.dead.iter().chain(&found.with_pieces);
        let free = all.copied().filter(|stripe| !is_pinned(*stripe));
        found.captured = free.take(UNREFERENCED_MAX).collect();
    }

    /// Whether a run captured anything without pieces that is not named since.
    pub fn has_captured(&self, vdisk: VdiskId) -> bool {
        let found = self.vdisks.get(&vdisk);
        found.is_some_and(|found| !found.captured.is_disjoint(&found.dead))
    }

    /// What the vdisk can leave with a run that makes these pieces current.
    pub fn leaves(&self, vdisk: VdiskId, pieces: &[PiecePlace]) -> Vec<StripeId> {
        let Some(found) = self.vdisks.get(&vdisk) else { return Vec::new() };
        let mut replaced: BTreeMap<StripeId, u32> = BTreeMap::new();
        for piece in pieces {
            if let Some(old) = found.pieces.get(&piece.group) {
                *replaced.entry(old.stripe).or_default() += 1;
            }
        }
        let has_pieces = |stripe: &StripeId| {
            let count = found.pieces_in.get(stripe).copied().unwrap_or(0);
            count > replaced.get(stripe).copied().unwrap_or(0)
        };
        found.captured.iter().copied().filter(|stripe| !has_pieces(stripe)).collect()
    }

    /// The run is durable: the vdisk has left these stripes.
    pub fn left(&mut self, vdisk: VdiskId, stripes: &[StripeId]) {
        let Some(found) = self.vdisks.get_mut(&vdisk) else { return };
        found.captured.clear();
        for stripe in stripes {
            found.dead.remove(stripe);
            found.with_pieces.remove(stripe);
        }
    }

    /// Stripes that the vdisk could leave.
    pub fn dead(&self, vdisk: VdiskId) -> usize {
        self.vdisks.get(&vdisk).map_or(0, |found| found.dead.len())
    }

    /// Stripes that nothing of the vdisk names but perhaps current pieces, in order: for judges.
    pub fn unnamed_of(&self, vdisk: VdiskId) -> BTreeSet<StripeId> {
        let found = self.vdisks.get(&vdisk);
        found.map_or_else(BTreeSet::new, |found| &found.dead | &found.with_pieces)
    }

    /// Bytes that it takes, about.
    pub fn memory(&self) -> usize {
        let of = |found: &OfVdisk| {
            let sets = found.dead.len() + found.with_pieces.len() + found.captured.len();
            sets * 16 + found.pieces.len() * 40 + found.pieces_in.len() * 24
        };
        self.vdisks.values().map(of).sum()
    }

    /// Forgets a vdisk.
    pub fn forget(&mut self, vdisk: VdiskId) {
        self.vdisks.remove(&vdisk);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: VdiskId = VdiskId(1);

    fn address(stripe: u64) -> Option<Address> {
        Some(Address { stripe: StripeId(stripe), offset: 0, length: 16 })
    }

    fn stripes(numbers: &[u64]) -> Vec<StripeId> {
        numbers.iter().copied().map(StripeId).collect()
    }

    // C21: with a run the vdisk leaves what its frontier does not name, once no current piece is there.
    #[test]
    fn a_run_leaves_what_was_dead_when_it_began() {
        let mut liveness = Liveness::default();
        for stripe in [1, 2, 3, 4] {
            liveness.unnamed(DISK, StripeId(stripe));
        }
        liveness.set_piece(DISK, 0, address(3));
        liveness.set_piece(DISK, 1, address(3));
        assert_eq!(liveness.dead(DISK), 3);
        liveness.capture(DISK, |stripe| stripe == StripeId(4));
        liveness.unnamed(DISK, StripeId(5));
        // One is named again, and left again: only a later frontier covers that.
        liveness.named(DISK, StripeId(2));
        liveness.unnamed(DISK, StripeId(2));
        let one = [PiecePlace { group: 0, address: address(9) }];
        assert_eq!(liveness.leaves(DISK, &one), stripes(&[1]));
        let both = [one[0], PiecePlace { group: 1, address: None }];
        let left = liveness.leaves(DISK, &both);
        assert_eq!(left, stripes(&[1, 3]));
        liveness.unnamed(DISK, StripeId(9));
        for piece in both {
            liveness.set_piece(DISK, piece.group, piece.address);
        }
        liveness.left(DISK, &left);
        let unnamed: Vec<StripeId> = liveness.unnamed_of(DISK).into_iter().collect();
        assert_eq!(unnamed, stripes(&[2, 4, 5, 9]));
        assert_eq!(liveness.dead(DISK), 3, "the ninth has a piece");
        liveness.set_piece(DISK, 0, None);
        assert_eq!(liveness.dead(DISK), 4);
    }
}
