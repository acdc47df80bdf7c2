//! One stripe is looked at: all of its shards are read whole and checked, slot headers and columns (C3), and parity is held
//! against data. What is damaged is written anew as lost shards are, from the others, by one record (C16).
//!
//! Shards that all pass their checks and still do not go together were not written by us: with both parity shards there the
//! one that does not go with the others is found and written anew; else nobody can tell which it is, and it is said.
//!
//! Nothing is kept between the steps; a controller that dies in the middle leaves what a rebuild leaves.

use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::node::Node;
use crate::notices::Notice;
use crate::rebuild::stripe::{Rebuilt, Shards};
use cleave_catalog::tables::StripeRow;
use cleave_format::control::SlotPlace;
use cleave_format::ids::{StripeId, VdiskId};
use cleave_format::layout::{COLUMN, PARITY_SHARDS, SHARD};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::ShardFault;

/// Vdisks that are named when something cannot be mended.
const NAMED_MAX: usize = 8;

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verified {
    /// It passed, as far as its shards are on drives that are there.
    Sound,
    /// Something is damaged: so many shards that are known (none: it is not known which), of which so many were written anew.
    Damaged {
        /// Known to be damaged.
        found: u64,
        /// Written anew.
        repaired: u64,
    },
    /// It changed meanwhile: look again.
    Again,
    /// There is nothing to look at.
    Gone,
}

/// How shards go together that each passed its checks.
#[derive(PartialEq, Eq)]
enum Together {
    Yes,
    /// All but this one.
    AllBut(usize),
    No,
}

impl Node {
    /// Looks at one stripe, and mends it; nothing when this controller is not active any more. `place`: where damage was seen; it
    /// says nothing of a stripe that does not lie there any more.
    pub(super) async fn verify_stripe(
        &self,
        term: u64,
        stripe: StripeId,
        place: super::Place,
    ) -> Option<Verified> {
        let Some(row) = self.row_of(term, stripe).await? else { return Some(Verified::Gone) };
        let lies_there = |slot: &SlotPlace| Some((slot.drive, slot.slot)) == place;
        if place.is_some() && !row.slots.iter().any(lies_there) {
            return Some(Verified::Gone);
        }
        let width = row.slots.len();
        if width <= PARITY_SHARDS {
            return Some(Verified::Gone);
        }
        let lacking: Vec<usize> = {
            let state = self.state();
            let lost = state.active.as_ref()?.drives.lost();
            row.lacking(&lost).collect()
        };
        let parity = |shard: &usize| *shard >= width - PARITY_SHARDS;
        let skipped = |shard: &usize| parity(shard) && is_planted(Planted::ScrubSkipsParity);
        let wanted = (0..width).filter(|shard| !lacking.contains(shard) && !skipped(shard));
        let (mut shards, mut damaged) = (Shards::new(), Vec::new());
        for (shard, done) in self.read_batch(term, stripe, &row, wanted.collect()).await? {
            match done {
                Ok(bytes) => drop(shards.insert(shard, bytes?)),
                // A drive is gone since: the rebuild looks at what it had.
                Err(ShardFault::Lost) => return Some(Verified::Again),
                Err(fault) => {
                    if fault == ShardFault::Identity && self.changed(term, stripe, &row).await? {
                        return Some(Verified::Again);
                    }
                    tracing::warn!(%stripe, shard, %fault, "a shard is damaged");
                    damaged.push(shard);
                }
            }
        }
        if let Some(active) = &mut self.state_mut().active {
            for shard in shards.keys() {
                if let Some(counters) = active.drives.counters(row.slots[*shard].drive) {
                    counters.verified_bytes += SHARD as u64;
                }
            }
        }
        match self.go_together(width, &shards).await {
            Together::Yes => {}
            Together::AllBut(shard) => {
                tracing::warn!(%stripe, shard, "a shard does not go with the others of its stripe");
                damaged.push(shard);
            }
            Together::No => {
                let reason = "its shards pass their checks, and parity is another stripe's data's";
                self.cannot_mend(term, stripe, reason.to_owned()).await?;
                return Some(Verified::Damaged { found: 0, repaired: 0 });
            }
        }
        if damaged.is_empty() {
            return Some(Verified::Sound);
        }
        self.mend_shards(term, stripe, &row, &damaged, lacking.len()).await
    }

    async fn row_of(&self, term: u64, stripe: StripeId) -> Option<Option<StripeRow>> {
        let asked = self.ask_catalog(term, CatalogRequest::Stripe(stripe)).await?;
        let CatalogReply::Stripe(row) = asked else { return None };
        Some(row.filter(|row| !row.slots.is_empty()))
    }

    /// Writes damaged shards anew, and says what became of them.
    async fn mend_shards(
        &self,
        term: u64,
        stripe: StripeId,
        row: &StripeRow,
        damaged: &[usize],
        lacking: usize,
    ) -> Option<Verified> {
        let rebuilt = match damaged.len() + lacking > PARITY_SHARDS {
            true => Rebuilt::Unreadable,
            false => self.rebuild_stripe(term, stripe, Some((row.generation, damaged))).await?,
        };
        if rebuilt == Rebuilt::Again {
            return Some(Verified::Again);
        }
        let Some(now) = self.row_of(term, stripe).await? else { return Some(Verified::Gone) };
        let mut repaired = 0;
        {
            let mut state = self.state_mut();
            let state = &mut *state;
            let active = state.active.as_mut()?;
            for shard in damaged {
                let (before, after) = (row.slots[*shard], now.slots.get(*shard));
                let moved = after.is_some_and(|after| *after != before);
                repaired += u64::from(moved);
                if let Some(counters) = active.drives.counters(before.drive) {
                    counters.damaged += 1;
                    counters.repaired += u64::from(moved);
                    counters.unrepairable += u64::from(!moved);
                }
                if moved {
                    let (drive, slot) = (before.drive, before.slot);
                    state.notices.tell(Notice::ShardRepaired { drive, slot });
                }
            }
        }
        let found = damaged.len() as u64;
        if repaired < found {
            let reason = match rebuilt {
                Rebuilt::Unreadable => format!(
                    "{} of its shards are damaged or lost, more than parity solves",
                    damaged.len() + lacking
                ),
                _ => "no other slot could be written for the damaged shard".to_owned(),
            };
            self.cannot_mend(term, stripe, reason).await?;
        }
        Some(Verified::Damaged { found, repaired })
    }

    /// Says that a stripe could not be mended, and whose it may be.
    async fn cannot_mend(&self, term: u64, stripe: StripeId, reason: String) -> Option<()> {
        let asked = CatalogRequest::Holders(vec![stripe]);
        let CatalogReply::Holders(_, holders) = self.ask_catalog(term, asked).await? else {
            return None;
        };
        let mut vdisks: Vec<VdiskId> = holders.into_iter().flatten().collect();
        vdisks.truncate(NAMED_MAX);
        tracing::error!(%stripe, ?vdisks, "a damaged stripe cannot be mended: {reason}");
        self.state_mut().notices.tell(Notice::StripeDamaged { stripe, vdisks, reason });
        Some(())
    }

    /// Whether shards go together, where there are more than it takes to solve the others.
    async fn go_together(&self, width: usize, shards: &Shards) -> Together {
        let needed = width - PARITY_SHARDS;
        if self.agree(width, shards, None).await {
            return Together::Yes;
        }
        if shards.len() < needed + PARITY_SHARDS {
            return Together::No;
        }
        for shard in shards.keys() {
            if self.agree(width, shards, Some(*shard)).await {
                return Together::AllBut(*shard);
            }
        }
        Together::No
    }

    /// Whether what is there beyond the shards that it takes is what these solve to; a column at a time: others have their turn
    /// between them.
    async fn agree(&self, width: usize, shards: &Shards, left_out: Option<usize>) -> bool {
        let needed = width - PARITY_SHARDS;
        let there: Vec<usize> =
            shards.keys().copied().filter(|shard| Some(*shard) != left_out).collect();
        if there.len() <= needed {
            return true;
        }
        let (basis, others) = there.split_at(needed);
        let mut solved = vec![vec![0; COLUMN]; others.len()];
        for start in (0..SHARD).step_by(COLUMN) {
            let column = start..start + COLUMN;
            let given: Vec<Option<&[u8]>> = (0..width)
                .map(|shard| basis.contains(&shard).then(|| &shards[&shard][column.clone()]))
                .collect();
            let mut wanted: Vec<(usize, &mut [u8])> =
                others.iter().zip(&mut solved).map(|(shard, out)| (*shard, &mut out[..])).collect();
            self.solver().recover(&given, &mut wanted).expect("as many are there as it takes");
            let same =
                |(shard, solved): (&usize, &Vec<u8>)| shards[shard][column.clone()] == solved[..];
            if !others.iter().zip(&solved).all(same) {
                return false;
            }
            self.executor().yield_now().await;
        }
        true
    }
}
