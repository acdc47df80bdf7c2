//! Grants: stripes and slots that host incarnations may write (C15).
//!
//! A grant lives from its control record to a commit, a return, its incarnation's successor, or until
//! its incarnation was away for too long. It is refused from the moment that its end is decided, ended once that record is mirrored, and its
//! slots are free only when no write under it is on its way to a drive any more. Stripe
//! identities are used once: the newest is in the catalog, raised by every grant (C3).
//!
//! Each incarnation may hold so many grants, so that a host that never commits cannot take the pool.
//!
//! A *loan* is a grant of the data node's own ([`Incarnation::DATANODE`]): slots for shards of a stripe that is there already,
//! which are written anew (C16). It ends by the swap that puts them into the stripe, or as the others do; one that an earlier
//! process, or the other controller, had is of no use to anybody.

use crate::allocator::Allocator;
use cleave_catalog::tables::GrantRow;
use cleave_erasure::geometry;
use cleave_erasure::placement::{Candidate, choose};
use cleave_format::control::{GrantedStripe, SlotPlace};
use cleave_format::ids::{DriveId, Incarnation, SlotIndex, StripeId};
use cleave_format::layout::PARITY_SHARDS;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::ShardFault;
use std::collections::{BTreeMap, BTreeSet};

/// Most stripes with slots that an incarnation may hold.
pub const STRIPES_MAX: usize = 256;
/// Most identities for stripeless commits that an incarnation may hold.
pub const IDENTITIES_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Grant {
    incarnation: Incarnation,
    slots: Vec<SlotPlace>,
    /// Shards on their way to drives.
    writes: u32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum State {
    Open,
    /// Its commit or end is appended; nothing more is written under it.
    Closing,
    /// Its end is mirrored: only writes keep its slots.
    Ended,
}

/// A drive that can take shards.
#[derive(Clone, Copy, Debug)]
pub struct UsableDrive {
    /// Which.
    pub drive: DriveId,
    /// Its generation.
    pub generation: u32,
    /// Whether it is in use.
    pub active: bool,
}

/// All grants of the data node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Grants {
    newest: StripeId,
    grants: BTreeMap<StripeId, Grant>,
    /// Slots that are free for nobody, whatever becomes of their grants and stripes (C15): see [`hold`](Grants::hold).
    held: BTreeSet<(DriveId, SlotIndex)>,
    /// Grants that were given back, or ended, while writes were under them: their end is to be recorded when these are over.
    ending: BTreeSet<StripeId>,
    /// Slots that replayed grants took from stripes of before, whose end the catalog is still to tell: so often. What it
    /// tells then is older than the grant.
    passed_on: BTreeMap<(DriveId, SlotIndex), u32>,
    /// Free slots.
    pub allocator: Allocator,
}

/// What a host gets.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Issued {
    /// Stripes with slots.
    pub stripes: Vec<GrantedStripe>,
    /// Identities.
    pub identities: Vec<StripeId>,
    /// Why fewer than asked for.
    pub shortage: Option<String>,
}

impl Issued {
    /// All of them, as the control record has them.
    pub fn all(&self) -> Vec<GrantedStripe> {
        let identities = self.identities.iter();
        let slotless =
            identities.map(|stripe| GrantedStripe { stripe: *stripe, slots: Vec::new() });
        self.stripes.iter().cloned().chain(slotless).collect()
    }
}

impl Grants {
    /// Grants in force.
    pub fn len(&self) -> usize {
        self.grants.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.grants.is_empty()
    }

    /// Slots that are kept for stripes that hosts write, or may write.
    pub fn slots(&self) -> u64 {
        self.grants.values().map(|grant| grant.slots.len() as u64).sum()
    }

    /// The newest identity.
    pub fn newest(&self) -> StripeId {
        self.newest
    }

    /// Takes over what the catalog says, when this controller becomes active.
    pub fn load(
        &mut self,
        newest: StripeId,
        grants: Vec<(StripeId, GrantRow)>,
        held: Vec<(DriveId, SlotIndex)>,
    ) {
        self.newest = newest;
        self.held = held.into_iter().collect();
        for (stripe, row) in grants {
            self.insert(stripe, row.incarnation, row.slots);
        }
    }

    fn insert(&mut self, stripe: StripeId, incarnation: Incarnation, slots: Vec<SlotPlace>) {
        let grant = Grant { incarnation, slots, writes: 0, state: State::Open };
        self.grants.insert(stripe, grant);
    }

    /// Replays a grant from the log. The controller that gave it knew from its catalog that the slots were free; this one's
    /// may not have got as far (C15).
    pub fn replay(&mut self, incarnation: Incarnation, stripes: &[GrantedStripe]) {
        for granted in stripes {
            self.newest = self.newest.max(granted.stripe);
            for place in &granted.slots {
                if !self.allocator.mark(place.drive, place.slot) {
                    *self.passed_on.entry((place.drive, place.slot)).or_default() += 1;
                }
            }
            self.insert(granted.stripe, incarnation, granted.slots.clone());
        }
    }

    /// The catalog tells that a slot is free.
    pub fn freed(&mut self, place: &SlotPlace) {
        match self.passed_on.get_mut(&(place.drive, place.slot)) {
            Some(1) => drop(self.passed_on.remove(&(place.drive, place.slot))),
            Some(times) => *times -= 1,
            None => drop(self.allocator.free(place)),
        }
    }

    /// Gives out new grants. They are in force at once; the caller appends the record, and tells the
    /// host when it is mirrored.
    pub fn issue(
        &mut self,
        incarnation: Incarnation,
        stripes: usize,
        identities: usize,
        drives: &[UsableDrive],
    ) -> Issued {
        let mut issued = Issued::default();
        let own = self.grants.values().filter(|grant| grant.incarnation == incarnation);
        let (with, without): (Vec<_>, Vec<_>) = own.partition(|grant| !grant.slots.is_empty());
        let (with, without) = (with.len(), without.len());
        let stripes_now = stripes.min(STRIPES_MAX.saturating_sub(with));
        let identities_now = identities.min(IDENTITIES_MAX.saturating_sub(without));
        if stripes_now < stripes || identities_now < identities {
            issued.shortage = Some("the host holds as many grants as it may".to_owned());
        }
        for _ in 0..stripes_now {
            match self.place(drives) {
                Ok(granted) => {
                    self.insert(granted.stripe, incarnation, granted.slots.clone());
                    issued.stripes.push(granted);
                }
                Err(shortage) => {
                    issued.shortage = Some(shortage);
                    break;
                }
            }
        }
        for _ in 0..identities_now {
            self.newest.0 += 1;
            self.insert(self.newest, incarnation, Vec::new());
            issued.identities.push(self.newest);
        }
        issued
    }

    /// Finds slots for one stripe: as wide as the drives in use with free slots allow, down to 1 + 2.
    fn place(&mut self, drives: &[UsableDrive]) -> Result<GrantedStripe, String> {
        let candidates: Vec<Candidate> = drives
            .iter()
            .map(|usable| Candidate {
                drive: usable.drive,
                free_slots: self.allocator.free_slots(usable.drive),
                active: usable.active,
            })
            .collect();
        let in_use = candidates.iter().filter(|candidate| candidate.active).count();
        let with_room =
            candidates.iter().filter(|drive| drive.active && drive.free_slots > 0).count();
        let Some(data_shards) = geometry::data_shards_now(drives.len(), with_room) else {
            return Err(match geometry::data_shards_now(drives.len(), in_use) {
                Some(_) => "the pool is full".to_owned(),
                None => format!("{in_use} drives are in use; a stripe needs at least 3"),
            });
        };
        let stripe = StripeId(self.newest.0 + 1);
        let chosen = choose(stripe, data_shards + PARITY_SHARDS, &candidates)
            .expect("so many drives have room");
        self.newest = stripe;
        let slots = chosen.into_iter().map(|drive| {
            let generation = drives.iter().find(|usable| usable.drive == drive);
            SlotPlace {
                drive,
                slot: self.allocator.take(drive).expect("the drive has room"),
                generation: generation.expect("chosen from these").generation,
            }
        });
        Ok(GrantedStripe { stripe, slots: slots.collect() })
    }

    /// Lends slots for `lacking` shards of a stripe that lies at `slots`: for each one on a drive in use that no other shard
    /// of it is on (C16), as far as there are any. In force at once; the caller appends the record, and writes when
    /// it is mirrored. Gives the shards that there is a slot for, in the order of the loan's slots.
    pub fn lend(
        &mut self,
        slots: &[SlotPlace],
        lacking: &[usize],
        drives: &[UsableDrive],
    ) -> Option<(GrantedStripe, Vec<u8>)> {
        let loan = StripeId(self.newest.0 + 1);
        let (mut places, mut shards) = (Vec::<SlotPlace>::new(), Vec::new());
        for &shard in lacking {
            let others = slots.iter().enumerate().filter(|(other, _)| *other != shard);
            let others: Vec<DriveId> = others.map(|(_, place)| place.drive).collect();
            let taken = |drive: DriveId| {
                let chosen = places.iter().any(|place| place.drive == drive);
                chosen || (others.contains(&drive) && !is_planted(Planted::CrowdDrives))
            };
            let candidates: Vec<Candidate> = drives
                .iter()
                .filter(|usable| !taken(usable.drive))
                .map(|usable| Candidate {
                    drive: usable.drive,
                    free_slots: self.allocator.free_slots(usable.drive),
                    active: usable.active,
                })
                .collect();
            // Another draw for each, so that they do not compete.
            let Some(chosen) = choose(StripeId(loan.0 ^ (shard as u64) << 56), 1, &candidates)
            else {
                continue;
            };
            let usable = drives.iter().find(|usable| usable.drive == chosen[0]);
            places.push(SlotPlace {
                drive: chosen[0],
                slot: self.allocator.take(chosen[0]).expect("the drive has room"),
                generation: usable.expect("chosen from these").generation,
            });
            shards.push(shard as u8);
        }
        if places.is_empty() {
            return None;
        }
        self.newest = loan;
        self.insert(loan, Incarnation::DATANODE, places.clone());
        Some((GrantedStripe { stripe: loan, slots: places }, shards))
    }

    /// Loans, in order, whatever their state.
    pub fn loans(&self) -> Vec<StripeId> {
        self.of(|incarnation| incarnation == Incarnation::DATANODE)
    }

    /// Who holds a grant.
    pub fn holder(&self, stripe: StripeId) -> Option<Incarnation> {
        self.grants.get(&stripe).map(|grant| grant.incarnation)
    }

    /// The slots of an open grant of this incarnation.
    pub fn open(&self, stripe: StripeId, incarnation: Incarnation) -> Option<&[SlotPlace]> {
        let grant = self.grants.get(&stripe)?;
        let open = grant.incarnation == incarnation && grant.state == State::Open;
        open.then_some(&grant.slots)
    }

    /// A shard is about to be written. Ok: [`end_write`](Grants::end_write) must follow.
    pub fn begin_write(
        &mut self,
        stripe: StripeId,
        incarnation: Incarnation,
        shard: u8,
        place: &SlotPlace,
    ) -> Result<(), ShardFault> {
        let grant = self.grants.get_mut(&stripe).ok_or(ShardFault::Identity)?;
        let granted = grant.slots.get(usize::from(shard)) == Some(place);
        if grant.incarnation != incarnation || grant.state != State::Open || !granted {
            return Err(ShardFault::Identity);
        }
        grant.writes += 1;
        Ok(())
    }

    /// A shard's write is over, whatever came of it.
    pub fn end_write(&mut self, stripe: StripeId) {
        let grant = self.grants.get_mut(&stripe).expect("a grant outlives its writes");
        grant.writes -= 1;
        if grant.writes == 0 && grant.state == State::Ended {
            self.forget(stripe);
        }
    }

    /// Whether a shard of the stripe is on its way to a drive.
    pub fn is_writing(&self, stripe: StripeId) -> bool {
        self.grants.get(&stripe).is_some_and(|grant| grant.writes > 0)
    }

    /// The commit or end of a grant is appended.
    pub fn close(&mut self, stripe: StripeId) {
        if let Some(grant) = self.grants.get_mut(&stripe)
            && grant.state == State::Open
        {
            grant.state = State::Closing;
        }
    }

    /// Incarnations of hosts that hold open grants.
    pub fn holders(&self) -> BTreeSet<Incarnation> {
        let open = self.grants.values().filter(|grant| grant.state == State::Open);
        let all = open.map(|grant| grant.incarnation);
        all.filter(|incarnation| *incarnation != Incarnation::DATANODE).collect()
    }

    /// Open grants of an incarnation, in order.
    pub fn open_of(&self, incarnation: Incarnation) -> Vec<StripeId> {
        let open = |grant: &Grant| grant.incarnation == incarnation && grant.state == State::Open;
        self.grants.iter().filter(|(_, grant)| open(grant)).map(|(id, _)| *id).collect()
    }

    /// Grants of incarnations that `superseded` names, in order, whatever their state.
    pub fn of(&self, superseded: impl Fn(Incarnation) -> bool) -> Vec<StripeId> {
        let grants = self.grants.iter();
        grants.filter(|(_, grant)| superseded(grant.incarnation)).map(|(id, _)| *id).collect()
    }

    /// The commit of a stripe, or the swap of a loan, is mirrored: its slots belong to the catalog now.
    pub fn committed(&mut self, stripe: StripeId) {
        self.grants.remove(&stripe);
    }

    /// The slots of all grants are free for nobody from here on: a controller before this one, which is not heard
    /// of, may have writes under them on their way. It has none under what ended: an end is recorded when they are over.
    pub fn hold(&mut self) {
        let slots = self.grants.values().flat_map(|grant| &grant.slots);
        self.held.extend(slots.map(|place| (place.drive, place.slot)));
    }

    /// That controller has none any more. What is free by now the catalog says.
    pub fn free_held(&mut self) {
        self.held.clear();
    }

    /// Whether slots are held, and how many.
    pub fn held(&self) -> usize {
        self.held.len()
    }

    /// A grant ends: nothing is written under it any more, and its end is recorded once nothing is on its way.
    pub fn end_when_idle(&mut self, stripe: StripeId) {
        self.close(stripe);
        self.ending.insert(stripe);
    }

    /// Grants whose end can be recorded, each given once; `most` of them.
    pub fn take_idle(&mut self, most: usize) -> Vec<StripeId> {
        if self.ending.is_empty() {
            return Vec::new();
        }
        let writes = |stripe: &StripeId| self.grants.get(stripe).is_some_and(|g| g.writes > 0);
        let busy = |stripe: &StripeId| writes(stripe) && !is_planted(Planted::ReuseSlotsEarly);
        let idle: Vec<StripeId> =
            self.ending.iter().filter(|stripe| !busy(stripe)).take(most).copied().collect();
        self.ending.retain(|stripe| !idle.contains(stripe));
        idle
    }

    /// The end of a grant is mirrored: its slots are free when its writes are over (C15).
    pub fn ended(&mut self, stripe: StripeId) {
        let Some(grant) = self.grants.get_mut(&stripe) else { return };
        grant.state = State::Ended;
        if is_planted(Planted::LeakSlots) {
            grant.slots.clear();
        }
        if is_planted(Planted::ReuseSlotsEarly) {
            let early = std::mem::take(&mut grant.slots);
            for place in &early {
                self.allocator.free(place);
            }
        }
        if grant.writes == 0 {
            self.forget(stripe);
        }
    }

    fn forget(&mut self, stripe: StripeId) {
        let Some(grant) = self.grants.remove(&stripe) else { return };
        for place in &grant.slots {
            if !self.held.contains(&(place.drive, place.slot)) {
                self.allocator.free(place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(count: u16, slots: u32) -> (Grants, Vec<UsableDrive>) {
        let mut grants = Grants::default();
        let usable = |drive| UsableDrive { drive: DriveId(drive), generation: 2, active: true };
        (0..count).for_each(|drive| grants.allocator.add_drive(DriveId(drive), slots));
        (grants, (0..count).map(usable).collect())
    }

    const ME: Incarnation = Incarnation(4);

    #[test]
    fn slots_rest_until_their_last_write_is_over() {
        let (mut grants, drives) = pool(3, 1);
        let issued = grants.issue(ME, 2, 1, &drives);
        assert_eq!((issued.stripes.len(), issued.identities.len()), (1, 1));
        assert_eq!(issued.shortage.as_deref(), Some("the pool is full"));
        let GrantedStripe { stripe, slots } = &issued.stripes[0];
        grants.begin_write(*stripe, ME, 1, &slots[1]).unwrap();
        let refused = Err(ShardFault::Identity);
        assert_eq!(grants.begin_write(*stripe, ME, 0, &slots[1]), refused);
        assert_eq!(grants.begin_write(*stripe, Incarnation(5), 1, &slots[1]), refused);
        grants.close(*stripe);
        assert_eq!(grants.begin_write(*stripe, ME, 0, &slots[0]), refused);
        grants.ended(*stripe);
        // C15: ended, and still being written.
        assert!(grants.issue(ME, 1, 0, &drives).stripes.is_empty());
        grants.end_write(*stripe);
        let again = grants.issue(ME, 1, 0, &drives);
        assert!(again.stripes[0].stripe > *stripe, "identities are used once");
    }

    /// C15: a lagging catalog tells that a stripe is no more, whose slot was granted since.
    #[test]
    fn an_end_that_the_catalog_tells_late_frees_no_slot_that_was_granted_since() {
        let (mut grants, _) = pool(1, 1);
        let slot = SlotPlace { drive: DriveId(0), slot: SlotIndex(0), generation: 2 };
        // By the catalog, stripe 1 is there. By the log it ended, so did 2 and 3 after it, and 4 lies in its slot.
        grants.allocator.mark(slot.drive, slot.slot);
        for stripe in 2..=4 {
            grants.replay(ME, &[GrantedStripe { stripe: StripeId(stripe), slots: vec![slot] }]);
            grants.committed(StripeId(stripe));
        }
        for stripe in 1..=4 {
            assert!(!grants.allocator.is_free(&slot), "stripe {stripe} is in it");
            grants.freed(&slot);
        }
        assert!(grants.allocator.is_free(&slot));
    }

    /// The same, and what was granted in between ended without a commit, of which the catalog does not tell.
    #[test]
    fn a_grant_that_ended_without_a_commit_is_no_stripe_of_the_catalog() {
        let (mut grants, _) = pool(1, 1);
        let slot = SlotPlace { drive: DriveId(0), slot: SlotIndex(0), generation: 2 };
        grants.allocator.mark(slot.drive, slot.slot);
        for stripe in 2..=3 {
            grants.replay(ME, &[GrantedStripe { stripe: StripeId(stripe), slots: vec![slot] }]);
            if stripe == 2 {
                grants.ended(StripeId(2));
            }
        }
        grants.freed(&slot);
        assert!(!grants.allocator.is_free(&slot), "stripe 3 is in it");
        grants.committed(StripeId(3));
        grants.freed(&slot);
        assert!(grants.allocator.is_free(&slot));
    }

    #[test]
    fn stripes_are_narrower_with_fewer_drives_and_stop_below_three() {
        let (mut grants, mut drives) = pool(12, 10);
        assert_eq!(grants.issue(ME, 1, 0, &drives).stripes[0].slots.len(), 10);
        drives[..4].iter_mut().for_each(|drive| drive.active = false);
        let narrow = grants.issue(ME, 1, 0, &drives);
        assert_eq!(narrow.stripes[0].slots.len(), 8);
        assert!(narrow.stripes[0].slots.iter().all(|place| place.drive.0 >= 4));
        drives[..10].iter_mut().for_each(|drive| drive.active = false);
        let none = grants.issue(ME, 1, 0, &drives);
        assert_eq!(
            none.shortage.as_deref(),
            Some("2 drives are in use; a stripe needs at least 3")
        );
    }

    #[test]
    fn a_host_holds_so_many_and_no_more() {
        let (mut grants, drives) = pool(3, 1000);
        let issued = grants.issue(ME, 1000, 2000, &drives);
        assert_eq!((issued.stripes.len(), issued.identities.len()), (STRIPES_MAX, IDENTITIES_MAX));
        assert!(issued.shortage.is_some());
        assert_eq!(grants.issue(Incarnation(9), 1, 0, &drives).stripes.len(), 1);
    }
}
