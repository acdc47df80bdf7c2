//! Grants and slots (C15): who may write where, while host incarnations follow each other, grants end, stripes are
//! committed, and the active controller dies with writes on their way to a drive.
//!
//! The grants and the allocator are production's [`Grants`]; what is in the log and in the catalog is one list of
//! records here. The drives are three, so that a stripe takes one slot of each; the writes of a stripe's first shard
//! stand for all. Messages of hosts arrive at any time after what allowed them, also when their sender was superseded.

use cleave_datanode_core::grants::{Grants, UsableDrive};
use cleave_format::control::{GrantedStripe, SlotPlace};
use cleave_format::ids::{DriveId, Incarnation, StripeId};
use stateright::{Model, Property};
use std::collections::BTreeMap;

const DRIVES: u16 = 3;

/// How much may happen; everything within this is tried.
#[derive(Clone, Copy, Debug)]
pub struct SlotBounds {
    /// Slots of each drive.
    pub slots: u32,
    /// Incarnations of the host.
    pub incarnations: u8,
    /// Stripes that are asked for.
    pub grants: u8,
    /// Writes of a shard.
    pub writes: u8,
    /// Grants that their host returns, or that end because it was away.
    pub ends: u8,
    /// Crashes of the active.
    pub crashes: u8,
}

/// A bug that the judges must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotFault {
    /// A write counts as over while it is on its way to the drive.
    OverBeforeDone,
    /// Shards are written without asking whether the grant is open.
    NoLookAtGrants,
    /// After a crash the grants of the log are forgotten.
    ForgetsGrants,
    /// A host's new incarnation ends no grants of the one before.
    StartEndsNothing,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// How much may happen.
    pub bounds: SlotBounds,
    /// What is wrong with it.
    pub fault: Option<SlotFault>,
}

/// A control record.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Record {
    HostStart(u8),
    Grant(u8, StripeId, Vec<SlotPlace>),
    End(StripeId),
    Commit(StripeId),
}

/// A shard on its way.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Write {
    stripe: StripeId,
    place: SlotPlace,
    /// The drive has it.
    landed: bool,
    /// It was counted by the grant.
    counted: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SlotWorld {
    grants: Grants,
    log: Vec<Record>,
    mirrored: usize,
    writes: Vec<Write>,
    /// What a slot of the first shard holds.
    drive: BTreeMap<SlotPlace, StripeId>,
    /// Stripes whose first shard is known to be written.
    written: Vec<StripeId>,
    spent: [u8; 4],
}

/// One atomic step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlotAction {
    /// The host's next incarnation says hello.
    HostStart,
    /// The present incarnation gets a stripe.
    Grant,
    /// A shard of a stripe that a host was told of arrives.
    Write(StripeId),
    /// The drive has a write.
    Land(usize),
    /// The drive's owner sees that a write is over.
    Done(usize),
    /// The commit of a stripe arrives.
    Commit(StripeId),
    /// A grant is returned, or its time is over.
    End(StripeId),
    /// One more record is held by both controllers.
    Mirror,
    /// The active dies, with so many records that were not mirrored surviving at the standby.
    Crash(usize),
}

const GRANTS: usize = 0;
const WRITES: usize = 1;
const ENDS: usize = 2;
const CRASHES: usize = 3;

fn drives() -> Vec<UsableDrive> {
    let usable = |drive| UsableDrive { drive: DriveId(drive), generation: 1, active: true };
    (0..DRIVES).map(usable).collect()
}

impl SlotWorld {
    fn incarnation(&self, until: usize) -> u8 {
        let started = |record: &Record| match record {
            Record::HostStart(incarnation) => Some(*incarnation),
            _ => None,
        };
        self.log[..until].iter().rev().find_map(started).unwrap_or(0)
    }

    /// Each grant: where it is in the log, whose it is, and the first shard's place.
    fn granted(&self) -> impl Iterator<Item = (usize, u8, StripeId, SlotPlace)> {
        self.log.iter().enumerate().filter_map(|(index, record)| match record {
            Record::Grant(incarnation, stripe, slots) => {
                Some((index, *incarnation, *stripe, slots[0]))
            }
            _ => None,
        })
    }

    fn place(&self, stripe: StripeId) -> Option<SlotPlace> {
        self.granted().find(|grant| grant.2 == stripe).map(|grant| grant.3)
    }

    fn committed(&self) -> impl Iterator<Item = StripeId> {
        self.log.iter().filter_map(|record| match record {
            Record::Commit(stripe) => Some(*stripe),
            _ => None,
        })
    }

    /// Stripes to which a slot of the first drive belongs now.
    fn owners(&self, place: &SlotPlace) -> Vec<StripeId> {
        let held = self.grants.of(|_| true);
        let all = self.committed().chain(held);
        let mut owners: Vec<_> = all.filter(|stripe| self.place(*stripe) == Some(*place)).collect();
        owners.sort_unstable();
        owners.dedup();
        owners
    }
}

impl Slots {
    fn effect(&self, world: &mut SlotWorld, index: usize) {
        match world.log[index].clone() {
            Record::HostStart(_) if self.fault == Some(SlotFault::StartEndsNothing) => {}
            Record::HostStart(incarnation) => {
                let superseded = |other: Incarnation| other.0 < u64::from(incarnation);
                for stripe in world.grants.of(superseded) {
                    world.grants.ended(stripe);
                }
            }
            Record::Grant(..) => {}
            Record::End(stripe) => world.grants.ended(stripe),
            Record::Commit(stripe) => world.grants.committed(stripe),
        }
    }

    /// The next active: from records that both have, as production builds it.
    fn crash(&self, world: &mut SlotWorld, survive: usize) {
        world.spent[CRASHES] += 1;
        world.log.truncate(world.mirrored + survive);
        // The dead process's writes are over: those that landed did, and no other one ever will.
        world.writes.clear();
        let mut grants = Grants::default();
        (0..DRIVES).for_each(|drive| grants.allocator.add_drive(DriveId(drive), self.bounds.slots));
        std::mem::swap(&mut world.grants, &mut grants);
        for index in 0..world.log.len() {
            if let Record::Grant(incarnation, stripe, slots) = &world.log[index]
                && self.fault != Some(SlotFault::ForgetsGrants)
            {
                let incarnation = Incarnation(u64::from(*incarnation));
                let granted = GrantedStripe { stripe: *stripe, slots: slots.clone() };
                world.grants.replay(incarnation, &[granted]);
            }
            self.effect(world, index);
        }
        world.mirrored = world.log.len();
        let kept: Vec<StripeId> = world.granted().map(|grant| grant.2).collect();
        world.written.retain(|stripe| kept.contains(stripe));
    }

    fn append_end(&self, world: &mut SlotWorld, stripe: StripeId) {
        world.grants.close(stripe);
        world.log.push(Record::End(stripe));
    }
}

impl Model for Slots {
    type State = SlotWorld;
    type Action = SlotAction;

    fn init_states(&self) -> Vec<SlotWorld> {
        let mut grants = Grants::default();
        (0..DRIVES).for_each(|drive| grants.allocator.add_drive(DriveId(drive), self.bounds.slots));
        vec![SlotWorld {
            grants,
            log: vec![Record::HostStart(1)],
            mirrored: 1,
            writes: Vec::new(),
            drive: BTreeMap::new(),
            written: Vec::new(),
            spent: [0; 4],
        }]
    }

    fn actions(&self, world: &SlotWorld, actions: &mut Vec<SlotAction>) {
        let (bounds, now) = (&self.bounds, world.incarnation(world.log.len()));
        if now < bounds.incarnations {
            actions.push(SlotAction::HostStart);
        }
        if world.spent[GRANTS] < bounds.grants {
            actions.push(SlotAction::Grant);
        }
        for (index, incarnation, stripe, _) in world.granted() {
            let open = Incarnation(u64::from(incarnation));
            // A host is told of a grant once that is mirrored.
            if index >= world.mirrored {
                continue;
            }
            let open = world.grants.open(stripe, open).is_some();
            let writes = open || self.fault == Some(SlotFault::NoLookAtGrants);
            if writes && world.spent[WRITES] < bounds.writes {
                actions.push(SlotAction::Write(stripe));
            }
            if open && !world.grants.is_writing(stripe) {
                actions.push(SlotAction::Commit(stripe));
            }
            if open && world.spent[ENDS] < bounds.ends {
                actions.push(SlotAction::End(stripe));
            }
        }
        for (index, write) in world.writes.iter().enumerate() {
            if !write.landed {
                actions.push(SlotAction::Land(index));
            }
            let early = self.fault == Some(SlotFault::OverBeforeDone);
            if write.landed || (early && write.counted) {
                actions.push(SlotAction::Done(index));
            }
        }
        if world.mirrored < world.log.len() {
            actions.push(SlotAction::Mirror);
        }
        if world.spent[CRASHES] < bounds.crashes {
            actions.extend((0..=world.log.len() - world.mirrored).map(SlotAction::Crash));
        }
    }

    fn next_state(&self, last: &SlotWorld, action: SlotAction) -> Option<SlotWorld> {
        let mut next = last.clone();
        let world = &mut next;
        let now = world.incarnation(world.log.len());
        match action {
            SlotAction::HostStart => {
                for stripe in world.grants.of(|other| other.0 == u64::from(now)) {
                    world.grants.close(stripe);
                }
                world.log.push(Record::HostStart(now + 1));
            }
            SlotAction::Grant => {
                world.spent[GRANTS] += 1;
                let issued = world.grants.issue(Incarnation(u64::from(now)), 1, 0, &drives());
                let granted = issued.all().pop()?;
                world.log.push(Record::Grant(now, granted.stripe, granted.slots));
            }
            SlotAction::Write(stripe) => {
                world.spent[WRITES] += 1;
                let (_, incarnation, _, place) = world.granted().find(|grant| grant.2 == stripe)?;
                let of = Incarnation(u64::from(incarnation));
                let begun = world.grants.begin_write(stripe, of, 0, &place).is_ok();
                if !begun && self.fault != Some(SlotFault::NoLookAtGrants) {
                    return None;
                }
                world.writes.push(Write { stripe, place, landed: false, counted: begun });
            }
            SlotAction::Land(index) => {
                let write = &mut world.writes[index];
                write.landed = true;
                world.drive.insert(write.place, write.stripe);
            }
            SlotAction::Done(index) if world.writes[index].landed => {
                let write = world.writes.remove(index);
                if write.counted {
                    world.grants.end_write(write.stripe);
                }
                world.written.push(write.stripe);
                world.written.sort_unstable();
                world.written.dedup();
            }
            SlotAction::Done(index) => {
                let write = &mut world.writes[index];
                write.counted = false;
                let stripe = write.stripe;
                world.grants.end_write(stripe);
            }
            SlotAction::Commit(stripe) => {
                world.grants.close(stripe);
                world.log.push(Record::Commit(stripe));
            }
            SlotAction::End(stripe) => {
                world.spent[ENDS] += 1;
                self.append_end(world, stripe);
            }
            SlotAction::Mirror => {
                world.mirrored += 1;
                self.effect(world, world.mirrored - 1);
            }
            SlotAction::Crash(survive) => self.crash(world, survive),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Slots>> {
        vec![
            Property::always("C3: a stripe's identity is used once", |_, world: &SlotWorld| {
                let mut stripes: Vec<_> = world.granted().map(|grant| grant.2).collect();
                stripes.sort_unstable();
                stripes.windows(2).all(|pair| pair[0] != pair[1])
            }),
            Property::always("C15: a slot belongs to one stripe", |_, world: &SlotWorld| {
                world.granted().map(|grant| grant.3).all(|place| world.owners(&place).len() <= 1)
            }),
            Property::always(
                "C15: no write is on its way to a slot of another stripe",
                |_, world: &SlotWorld| {
                    let strays = |write: &Write| {
                        world.owners(&write.place).iter().any(|owner| *owner != write.stripe)
                    };
                    !world.writes.iter().any(|write| !write.landed && strays(write))
                },
            ),
            Property::always(
                "C15: what was written before its commit stays",
                |_, world: &SlotWorld| {
                    world.committed().filter(|stripe| world.written.contains(stripe)).all(
                        |stripe| {
                            world.place(stripe).and_then(|place| world.drive.get(&place))
                                == Some(&stripe)
                        },
                    )
                },
            ),
            Property::always("C15: no slot leaks", |_, world: &SlotWorld| {
                let used = world.grants.of(|_| true).into_iter().chain(world.committed());
                let mut used: Vec<StripeId> = used.collect();
                used.sort_unstable();
                used.dedup();
                let (all, free) = world.grants.allocator.totals();
                all - free == used.len() as u64 * u64::from(DRIVES)
            }),
            Property::always(
                "C15: who was superseded holds nothing but writes",
                |_, world: &SlotWorld| {
                    let now = u64::from(world.incarnation(world.mirrored));
                    let held = world.grants.of(|incarnation| incarnation.0 < now);
                    held.into_iter().all(|stripe| world.grants.is_writing(stripe))
                },
            ),
            Property::sometimes("a slot is used again", |_, world: &SlotWorld| {
                let places: Vec<_> = world.granted().map(|grant| grant.3).collect();
                (1..places.len()).any(|index| places[..index].contains(&places[index]))
            }),
            Property::sometimes("a written stripe is committed", |_, world: &SlotWorld| {
                world.committed().any(|stripe| world.written.contains(&stripe))
            }),
        ]
    }
}
