//! One stripe is rebuilt: as many of its shards are read as it takes, each checked whole (C3); those that lack are solved,
//! written to slots that were lent for them, and flushed (C10); then a record swaps the stripe's slots (C16).
//!
//! Between any two steps the controller may die, or another one take over: before the swap is mirrored the stripe lies where it
//! lay, and the loan is ended by whoever is active then; from then on it lies at the new places, and the loan is over.
//! Whether the stripe is still as it was when its shards were read the swap says by its generation, in the catalog: it is
//! decided at the record's position, so that a stripe that was freed meanwhile is not revived.
//!
//! What a slot had before is free with the swap. Whoever still reads there is told that it is another stripe's, or nobody's (C3), and
//! asks where the stripe lies now.

use super::{Done, OWN, OwnRequest};
use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::drives::Drives;
use crate::grants::UsableDrive;
use crate::node::Node;
use crate::state::Active;
use bytes::{Bytes, BytesMut};
use cleave_catalog::tables::StripeRow;
use cleave_format::control::{Control, GrantedStripe, SlotPlace, Swap};
use cleave_format::ids::{ClusterId, Incarnation, Position, StripeId};
use cleave_format::layout::{COLUMN, PARITY_SHARDS, SHARD, SLOT, SLOT_HEADER};
use cleave_format::slot::{SlotHeader, column_checksums};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::message::Message;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::{Outcome, promise};
use cleave_wire::ShardFault;
use std::collections::BTreeMap;

/// Room in the log that the records of a stripe need at most, in bytes.
const ROOM: usize = 4 << 10;

/// What became of a stripe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rebuilt {
    /// It lacks nothing any more.
    Whole,
    /// Shards are lacking for which there is no slot.
    Partly,
    /// Too few of its shards can be read.
    Unreadable,
    /// It changed meanwhile, or the log had no room: it is to be looked at once more.
    Again,
}

/// Shards of a stripe, by their number.
pub(crate) type Shards = BTreeMap<usize, Bytes>;

/// What reading a stripe came to.
enum Read {
    /// Enough shards, and those that lack.
    Solvable(Shards, Vec<usize>),
    Unreadable,
    Changed,
}

impl Node {
    /// Rebuilds a stripe as far as it can be; nothing when this controller is not active any more. `found`: shards that are
    /// to be written anew although they are there, of the stripe as it was at that generation.
    pub(crate) async fn rebuild_stripe(
        &self,
        term: u64,
        stripe: StripeId,
        found: Option<(u32, &[usize])>,
    ) -> Option<Rebuilt> {
        let asked = self.ask_catalog(term, CatalogRequest::Stripe(stripe)).await?;
        let CatalogReply::Stripe(row) = asked else { return None };
        let Some(row) = row.filter(|row| !row.slots.is_empty()) else {
            return Some(Rebuilt::Whole); // It is freed.
        };
        let mut lacking: Vec<usize> = {
            let state = self.state();
            let lost = state.active.as_ref()?.drives.lost();
            row.lacking(&lost).collect()
        };
        if let Some((generation, damaged)) = found {
            if generation != row.generation {
                return Some(Rebuilt::Again);
            }
            lacking.extend(
                damaged
                    .iter()
                    .filter(|shard| !lacking.contains(shard))
                    .copied()
                    .collect::<Vec<_>>(),
            );
        }
        if lacking.is_empty() {
            return Some(Rebuilt::Whole);
        }
        let (shards, lacking) = match self.read_shards(term, stripe, &row, lacking).await? {
            Read::Solvable(shards, lacking) => (shards, lacking),
            Read::Unreadable => return Some(Rebuilt::Unreadable),
            Read::Changed => return Some(Rebuilt::Again),
        };
        let Some(lent) = self.lend(term, &row, &lacking)? else { return Some(Rebuilt::Partly) };
        let (loan, found, position) = match lent {
            Lent::Slots(loan, found, position) => (loan, found, position),
            Lent::NoRoom => return Some(Rebuilt::Again),
        };
        let name = loan.stripe;
        let written = self.write_shards(term, stripe, &row, shards, (loan, &found, position)).await;
        let swapped = match written? {
            Some(places) => self.swap(term, stripe, &row, name, places).await?,
            None => false,
        };
        if !swapped {
            if let Some(active) = &mut self.state_mut().active {
                active.grants.end_when_idle(name);
            }
            // A drive of it failed or has no space behind it; a lost one ends the pass.
            return Some(Rebuilt::Partly);
        }
        match found.len() == lacking.len() {
            true => Some(Rebuilt::Whole),
            false => Some(Rebuilt::Partly),
        }
    }

    /// Reads as many shards as it takes, none of which `lacking` names; what cannot be read, or fails its check, lacks too.
    async fn read_shards(
        &self,
        term: u64,
        stripe: StripeId,
        row: &StripeRow,
        mut lacking: Vec<usize>,
    ) -> Option<Read> {
        let width = row.slots.len();
        let Some(needed) = width.checked_sub(PARITY_SHARDS).filter(|data| *data > 0) else {
            return Some(Read::Unreadable);
        };
        let mut shards = Shards::new();
        loop {
            let untried = (0..width).filter(|s| !lacking.contains(s) && !shards.contains_key(s));
            let batch: Vec<usize> = untried.take(needed - shards.len()).collect();
            if shards.len() == needed {
                return Some(Read::Solvable(shards, lacking));
            }
            if lacking.len() > PARITY_SHARDS || batch.is_empty() {
                return Some(Read::Unreadable);
            }
            for (shard, done) in self.read_batch(term, stripe, row, batch).await? {
                match done {
                    Ok(bytes) => drop(shards.insert(shard, bytes?)),
                    Err(fault) => {
                        if fault == ShardFault::Identity && self.changed(term, stripe, row).await? {
                            return Some(Read::Changed);
                        }
                        tracing::warn!(%stripe, shard, %fault, "a shard cannot be read");
                        lacking.push(shard);
                    }
                }
            }
        }
    }

    /// Reads shards whole at once, each checked (C3); nothing when this controller is not active any more.
    pub(crate) async fn read_batch(
        &self,
        term: u64,
        stripe: StripeId,
        row: &StripeRow,
        batch: Vec<usize>,
    ) -> Option<Vec<(usize, Done)>> {
        let reads: Vec<(usize, Outcome<Done>)> = {
            let mut state = self.state_mut();
            if !state.may_rebuild(term) {
                return None;
            }
            let state = &mut *state;
            let active = state.active.as_mut()?;
            let rebuild = &mut state.rebuild;
            let read = |shard: usize| {
                let place = row.slots[shard];
                let free = active.grants.allocator.is_free(&place);
                let (done, outcome) = promise();
                let entry = rebuild.requests.vacant_entry();
                let number = entry.key() as u64 | OWN;
                let begun = match free {
                    true => Err(ShardFault::Identity),
                    false => active.drives.read_whole(number, &place, stripe, shard as u8),
                };
                match begun {
                    Ok(()) => drop(entry.insert(OwnRequest { loan: None, done })),
                    Err(fault) => done.fulfil(Err(fault)),
                }
                (shard, outcome)
            };
            batch.into_iter().map(read).collect()
        };
        let mut all = Vec::with_capacity(reads.len());
        for (shard, outcome) in reads {
            all.push((shard, outcome.wait().await?));
        }
        Some(all)
    }

    /// Whether a stripe lies elsewhere by now, or is freed.
    pub(crate) async fn changed(
        &self,
        term: u64,
        stripe: StripeId,
        row: &StripeRow,
    ) -> Option<bool> {
        let asked = self.ask_catalog(term, CatalogRequest::Stripe(stripe)).await?;
        let CatalogReply::Stripe(now) = asked else { return None };
        Some(now.is_none_or(|now| now.generation != row.generation))
    }
}

/// What was lent.
enum Lent {
    /// Slots, for these shards, by the record at this position.
    Slots(GrantedStripe, Vec<u8>, Position),
    /// Nothing, as the log has no room.
    NoRoom,
}

impl Node {
    /// Lends slots for shards that lack; inside nothing where no drive has any.
    fn lend(&self, term: u64, row: &StripeRow, lacking: &[usize]) -> Option<Option<Lent>> {
        let mut state = self.state_mut();
        if !state.may_rebuild(term) {
            return None;
        }
        if !state.held.as_ref()?.log.has_control_room(ROOM) {
            return Some(Some(Lent::NoRoom));
        }
        let active = state.active.as_mut()?;
        let usable: Vec<UsableDrive> = usable(&active.drives);
        let Some((loan, shards)) = active.grants.lend(&row.slots, lacking, &usable) else {
            return Some(None);
        };
        let (incarnation, stripes) = (Incarnation::DATANODE, vec![loan.clone()]);
        let position = state.append_control(&Control::Grant { incarnation, stripes });
        reached(Point::RebuildLent);
        Some(Some(Lent::Slots(loan, shards, position)))
    }

    /// Solves the shards that slots were lent for, and writes them; gives where they lie once they are durable.
    async fn write_shards(
        &self,
        term: u64,
        stripe: StripeId,
        row: &StripeRow,
        shards: Shards,
        (loan, found, position): (GrantedStripe, &[u8], Position),
    ) -> Option<Option<Vec<(u8, SlotPlace)>>> {
        let synced = self.state_mut().when_synced(position);
        self.turn();
        let solved = self.solve(row.slots.len(), shards, found).await;
        // C15: until then somebody may know less than that the slots are taken: as with grants, which hosts are told of
        // only when the catalogs have them, no catalog may say of a slot that is written to that it is another stripe's.
        synced.wait().await?;
        let places: Vec<(u8, SlotPlace)> = found.iter().copied().zip(loan.slots).collect();
        let mut writes = Vec::new();
        for (index, ((shard, place), content)) in places.iter().zip(solved).enumerate() {
            let mut state = self.state_mut();
            if !state.may_rebuild(term) {
                return None;
            }
            let data_shards = row.slots.len() - PARITY_SHARDS;
            let image =
                slot_image(state.settings.cluster, stripe, *shard, data_shards, *place, &content);
            let state = &mut *state;
            let Active { grants, drives, .. } = state.active.as_mut()?;
            let (done, outcome) = promise();
            let entry = state.rebuild.requests.vacant_entry();
            let number = entry.key() as u64 | OWN;
            let own = Incarnation::DATANODE;
            let mut message = Message::from(image);
            let begun = grants.begin_write(loan.stripe, own, index as u8, place).and_then(|()| {
                let begun = drives.write(number, place, stripe, *shard, data_shards, &mut message);
                if begun.is_err() {
                    grants.end_write(loan.stripe);
                }
                begun
            });
            match begun {
                Ok(()) => drop(entry.insert(OwnRequest { loan: Some(loan.stripe), done })),
                Err(_) => return Some(None),
            }
            writes.push(outcome);
        }
        let mut durable = true;
        if is_planted(Planted::SwapBeforeWritten) {
            return Some(Some(places));
        }
        for write in writes {
            durable &= write.wait().await?.is_ok();
        }
        reached(Point::RebuildWritten);
        Some(durable.then_some(places))
    }

    /// The content of shards that lack, a column at a time: others have their turn between them.
    async fn solve(&self, width: usize, shards: Shards, found: &[u8]) -> Vec<Vec<u8>> {
        let solver = self.solver();
        let mut solved = vec![vec![0; SHARD]; found.len()];
        for start in (0..SHARD).step_by(COLUMN) {
            let column = start..start + COLUMN;
            let given: Vec<Option<&[u8]>> =
                (0..width).map(|shard| shards.get(&shard).map(|s| &s[column.clone()])).collect();
            let mut wanted: Vec<(usize, &mut [u8])> = found
                .iter()
                .zip(&mut solved)
                .map(|(shard, out)| (usize::from(*shard), &mut out[column.clone()]))
                .collect();
            solver.recover(&given, &mut wanted).expect("as many are there as it takes");
            self.executor().yield_now().await;
        }
        solved
    }

    /// Records where the shards lie now. False when a drive of theirs was lost meanwhile, or the log has no room.
    async fn swap(
        &self,
        term: u64,
        stripe: StripeId,
        row: &StripeRow,
        loan: StripeId,
        shards: Vec<(u8, SlotPlace)>,
    ) -> Option<bool> {
        let mirrored = {
            let mut state = self.state_mut();
            if !state.may_rebuild(term) {
                return None;
            }
            let room = state.held.as_ref()?.log.has_control_room(ROOM);
            let active = state.active.as_mut()?;
            let held = |(_, place): &(u8, SlotPlace)| active.drives.holds(place);
            if !room || !shards.iter().all(held) {
                return Some(false);
            }
            let damaged = shards.iter().filter(|(shard, _)| {
                let shard = usize::from(*shard);
                active.drives.holds(&row.slots[shard]) && row.shards_missing >> shard & 1 == 0
            });
            let repaired = damaged.count() as u64;
            active.grants.close(loan);
            state.counters.repaired += repaired;
            state.counters.rebuilt += shards.len() as u64 - repaired;
            let generation = row.generation;
            let swap = Swap { stripe, generation, loan, shards };
            let position = state.append_control(&Control::Swap(swap));
            state.when_mirrored(position)
        };
        self.turn();
        mirrored.wait().await?;
        reached(Point::RebuildSwapped);
        Some(true)
    }
}

/// The drives as grants and loans know them.
fn usable(drives: &Drives) -> Vec<UsableDrive> {
    let states = drives.states();
    states.map(|(drive, generation, _, active)| UsableDrive { drive, generation, active }).collect()
}

/// What a slot holds: the header, and the shard.
fn slot_image(
    cluster: ClusterId,
    stripe: StripeId,
    shard: u8,
    data_shards: usize,
    place: SlotPlace,
    content: &[u8],
) -> Bytes {
    let header = SlotHeader {
        cluster,
        stripe,
        shard,
        data_shards: data_shards as u8,
        place,
        columns: column_checksums(content),
    };
    let mut image = BytesMut::zeroed(SLOT);
    header.encode(&mut image[..SLOT_HEADER]);
    image[SLOT_HEADER..].copy_from_slice(content);
    image.freeze()
}
