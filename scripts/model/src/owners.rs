//! Two hosts that take a vdisk from each other (C8, C9): seal, open the map, fetch, append, commit, read under leases; a
//! paused old owner whose messages still arrive; and a log that is lost where an operator orders an empty one.
//!
//! The decisions are production's [`Resident`]. The log is one here: what the two controllers do for it is the
//! model of the roles. A step is the arrival of a message, so that whatever a host sent before it lost the vdisk may
//! arrive after that.

use crate::state::{Entry, VDISK, host_incarnation, resident};
use cleave_datanode_core::resident::Resident;
use cleave_format::ids::Epoch;
use stateright::{Model, Property};

/// How much may happen; everything within this is tried.
#[derive(Clone, Copy, Debug)]
pub struct OwnerBounds {
    /// Times that a host takes the vdisk.
    pub takes: u8,
    /// Records.
    pub records: u8,
    /// Commits, of one record each.
    pub commits: u8,
    /// Times that both controllers lose the log, and an empty one is ordered.
    pub losses: u8,
}

/// A bug that the judges must find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerFault {
    /// Appends of old owners are taken.
    OldAppends,
    /// Commits are not struck.
    OldCommits,
    /// A host reads and fetches before its seal is acknowledged.
    FetchUnsealed,
    /// A seal is acknowledged when it is mirrored, though no catalog has it.
    SealNotSynced,
    /// An owner counts as dead while its process lives.
    OwnerCountsAsDead,
    /// A seal is acknowledged while an owner before may answer reads.
    SealBeforeLease,
    /// Reads are answered without a lease.
    ReadPastLease,
    /// An owner that is gone says that those before it are, although it never served.
    GoneWithoutServing,
}

/// The model.
#[derive(Clone, Copy, Debug)]
pub struct Owners {
    /// How much may happen.
    pub bounds: OwnerBounds,
    /// Hosts know by the kernel's lock whether their predecessor lives (C25). Otherwise nobody knows that, and the seal
    /// waits for its lease.
    pub locks: bool,
    /// What is wrong with it.
    pub fault: Option<OwnerFault>,
}

/// A host's engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    /// Its process lives.
    alive: bool,
    /// The epoch in which it took the vdisk; 0: never.
    epoch: u8,
    /// Its seal was appended, and it was told so.
    sealed: bool,
    /// The last epoch of which it was told that.
    served: u8,
    /// Records whose commits its map has.
    map: Option<u8>,
    /// Records that it fetched: it serves from then on, and never learns that it lost the vdisk.
    fetched: Option<u8>,
    /// Its own records that are mirrored.
    told: u8,
    /// It may answer reads: its lease has not run out.
    lease: bool,
    /// By the controllers' clocks its lease may last.
    counted: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct OwnerWorld {
    log: Vec<Entry>,
    mirrored: usize,
    synced: usize,
    owner: u8,
    hosts: [Owner; 2],
    commits: u8,
    losses: u8,
    /// Hosts whose leases the newest seal waits for.
    waits: [bool; 2],
    /// The epoch of each record.
    epochs: Vec<u8>,
    /// Ghost: records that were acknowledged, and not lost with a log.
    acknowledged: u8,
    /// Ghost: the newest epoch whose seal was acknowledged.
    sealed: u8,
    /// Ghost: something of an older epoch was taken after that.
    old_accepted: bool,
}

/// One atomic step. Hosts are 0 and 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerAction {
    /// The host raises the vdisk's epoch in the store.
    Take(usize),
    /// Its seal arrives.
    Seal(usize),
    /// It hears that the seal holds.
    Sealed(usize),
    /// It reads the map.
    Open(usize),
    /// It fetches what is not released.
    Fetch(usize),
    /// A record of it arrives.
    Append(usize),
    /// Its commit of a record arrives.
    Commit(usize, u8),
    /// It is given the lease, or keeps it.
    Renew(usize),
    /// Its lease runs out by its own clock.
    Expire(usize),
    /// And by those of the controllers, which is later.
    Elapse(usize),
    /// Its process dies.
    Die(usize),
    /// One more entry is held by both controllers.
    Mirror,
    /// One more is synced by both catalogs.
    Sync,
    /// Both controllers die, and an operator orders an empty log.
    Lose,
}

impl OwnerWorld {
    fn resident(&self) -> Resident {
        resident(&self.log)
    }

    fn committed(&self, until: usize) -> u8 {
        self.log[..until].iter().fold(0, |all, entry| match entry {
            Entry::Commit { record, .. } => all | 1 << record,
            _ => all,
        })
    }

    fn records(&self) -> u8 {
        self.log[..self.mirrored].iter().fold(0, |all, entry| match entry {
            Entry::Record { record, .. } => all | 1 << record,
            _ => all,
        })
    }

    fn seal_position(&self, epoch: u8) -> Option<usize> {
        self.log
            .iter()
            .position(|entry| matches!(entry, Entry::Seal { epoch: e, .. } if *e == epoch))
    }
}

impl Owners {
    fn owns(&self, world: &OwnerWorld, host: usize) -> bool {
        let epoch = Epoch(u64::from(world.hosts[host].epoch));
        world.resident().check_owner(VDISK, epoch, host_incarnation(host as u8)).is_ok()
    }

    fn may_seal(&self, world: &OwnerWorld, host: usize) -> bool {
        let epoch = Epoch(u64::from(world.hosts[host].epoch));
        let incarnation = host_incarnation(host as u8);
        world.resident().check_seal(VDISK, epoch, incarnation) == Ok(None)
    }

    /// Whose leases a seal of this host waits for.
    fn waits(&self, world: &OwnerWorld, host: usize) -> [bool; 2] {
        let last = world.log.iter().rev().find_map(|entry| match entry {
            Entry::Seal { epoch, host } => Some((*epoch, usize::from(*host))),
            _ => None,
        });
        let Some((epoch, owner)) = last else { return [false; 2] };
        let before = &world.hosts[owner];
        let ignored = self.fault == Some(OwnerFault::OwnerCountsAsDead);
        // Its own process does not serve under two epochs.
        let over = owner == host || ignored || (self.locks && !before.alive);
        let served = owner_served(world, owner, epoch);
        if over && (served || self.fault == Some(OwnerFault::GoneWithoutServing)) {
            return [false; 2];
        }
        let mut waits = world.waits;
        waits[owner] |= before.counted && owner != host;
        waits
    }

    /// Whether the host hears now that its seal holds.
    fn hears(&self, world: &OwnerWorld, host: usize) -> bool {
        let waits = world.waits != [false; 2] && self.fault != Some(OwnerFault::SealBeforeLease);
        if waits {
            return false;
        }
        let through = match self.fault {
            Some(OwnerFault::SealNotSynced) => world.mirrored,
            _ => world.synced,
        };
        world.seal_position(world.hosts[host].epoch).is_some_and(|position| position < through)
    }

    /// Whether its reads of map and log are answered: it owns the vdisk, by a mirrored seal.
    fn reads(&self, world: &OwnerWorld, host: usize) -> bool {
        let owner = &world.hosts[host];
        if self.fault == Some(OwnerFault::FetchUnsealed) {
            return owner.epoch != 0;
        }
        let mirrored = world.seal_position(owner.epoch).is_some_and(|at| at < world.mirrored);
        owner.sealed && mirrored && self.owns(world, host)
    }

    /// Whether its reads are answered.
    fn serves(&self, host: &Owner) -> bool {
        let lease = host.lease || self.fault == Some(OwnerFault::ReadPastLease);
        host.alive && host.sealed && host.fetched.is_some() && lease
    }

    fn host_actions(&self, world: &OwnerWorld, index: usize, actions: &mut Vec<OwnerAction>) {
        let host = &world.hosts[index];
        if host.lease {
            actions.push(OwnerAction::Expire(index));
        } else if host.counted {
            actions.push(OwnerAction::Elapse(index));
        }
        if !host.alive {
            return;
        }
        if host.sealed && !host.lease && self.owns(world, index) {
            actions.push(OwnerAction::Renew(index));
        }
        if self.locks && world.hosts[1 - index].alive {
            actions.push(OwnerAction::Die(index));
        }
        let newest = host.epoch != 0 && host.epoch == world.owner;
        // An owner that was not told that its seal holds may try under another epoch.
        if (!newest || !host.sealed) && world.owner < self.bounds.takes {
            actions.push(OwnerAction::Take(index));
        }
        if newest && world.seal_position(host.epoch).is_none() && self.may_seal(world, index) {
            actions.push(OwnerAction::Seal(index));
        }
        if !host.sealed && host.epoch != 0 && self.hears(world, index) {
            actions.push(OwnerAction::Sealed(index));
        }
        if host.map.is_none() && self.reads(world, index) {
            actions.push(OwnerAction::Open(index));
        }
        if host.map.is_some() && host.fetched.is_none() && self.reads(world, index) {
            actions.push(OwnerAction::Fetch(index));
        }
        let Some(fetched) = host.fetched.filter(|_| host.sealed) else { return };
        let owns = self.owns(world, index);
        let appends = owns || self.fault == Some(OwnerFault::OldAppends);
        if appends && world.epochs.len() < usize::from(self.bounds.records) {
            actions.push(OwnerAction::Append(index));
        }
        let commits = owns || self.fault == Some(OwnerFault::OldCommits);
        if commits && world.commits < self.bounds.commits {
            let known = (fetched | host.told) & !world.committed(world.log.len());
            let bits = (0..self.bounds.records).filter(|record| known & 1 << record != 0);
            actions.extend(bits.map(|record| OwnerAction::Commit(index, record)));
        }
    }

    fn lose(&self, world: &mut OwnerWorld) {
        world.losses += 1;
        // The catalogs have seals and commits up to here, and nothing else is left.
        let kept = world.log[..world.synced].iter().copied();
        world.log = kept.filter(|entry| !matches!(entry, Entry::Record { .. })).collect();
        (world.mirrored, world.synced) = (world.log.len(), world.log.len());
        world.acknowledged &= world.committed(world.log.len());
        for host in &mut world.hosts {
            host.told &= world.acknowledged;
        }
    }
}

/// Whether the owner of an epoch was told that its seal holds.
fn owner_served(world: &OwnerWorld, owner: usize, epoch: u8) -> bool {
    world.hosts[owner].served == epoch
}

impl Model for Owners {
    type State = OwnerWorld;
    type Action = OwnerAction;

    fn init_states(&self) -> Vec<OwnerWorld> {
        let owner = Owner {
            alive: true,
            epoch: 0,
            sealed: false,
            served: 0,
            map: None,
            fetched: None,
            told: 0,
            lease: false,
            counted: false,
        };
        vec![OwnerWorld {
            log: Vec::new(),
            mirrored: 0,
            synced: 0,
            owner: 0,
            hosts: [owner; 2],
            commits: 0,
            losses: 0,
            waits: [false; 2],
            epochs: Vec::new(),
            acknowledged: 0,
            sealed: 0,
            old_accepted: false,
        }]
    }

    fn actions(&self, world: &OwnerWorld, actions: &mut Vec<OwnerAction>) {
        self.host_actions(world, 0, actions);
        self.host_actions(world, 1, actions);
        if world.mirrored < world.log.len() {
            actions.push(OwnerAction::Mirror);
        }
        if world.synced < world.mirrored {
            actions.push(OwnerAction::Sync);
        }
        if world.losses < self.bounds.losses {
            actions.push(OwnerAction::Lose);
        }
    }

    fn next_state(&self, last: &OwnerWorld, action: OwnerAction) -> Option<OwnerWorld> {
        let mut next = last.clone();
        let world = &mut next;
        match action {
            OwnerAction::Take(host) => {
                world.owner += 1;
                // What it served before it closes; the controllers do not hear of that.
                world.hosts[host] = Owner {
                    epoch: world.owner,
                    sealed: false,
                    map: None,
                    fetched: None,
                    told: 0,
                    lease: false,
                    ..world.hosts[host]
                };
            }
            OwnerAction::Renew(host) => {
                (world.hosts[host].lease, world.hosts[host].counted) = (true, true);
            }
            OwnerAction::Expire(host) => world.hosts[host].lease = false,
            OwnerAction::Elapse(host) => {
                world.hosts[host].counted = false;
                world.waits[host] = false;
            }
            OwnerAction::Seal(host) => {
                world.waits = self.waits(world, host);
                world.log.push(Entry::Seal { epoch: world.hosts[host].epoch, host: host as u8 });
            }
            OwnerAction::Sealed(host) => {
                world.hosts[host].sealed = true;
                world.hosts[host].served = world.hosts[host].epoch;
                world.sealed = world.sealed.max(world.hosts[host].epoch);
            }
            OwnerAction::Open(host) => {
                world.hosts[host].map = Some(world.committed(world.mirrored));
            }
            OwnerAction::Fetch(host) => {
                let released = world.committed(world.mirrored);
                world.hosts[host].fetched = Some(world.records() & !released);
            }
            OwnerAction::Append(host) => {
                let epoch = world.hosts[host].epoch;
                let record = world.epochs.len() as u8;
                world.epochs.push(epoch);
                world.old_accepted |= epoch < world.sealed;
                world.log.push(Entry::Record { record, epoch });
            }
            OwnerAction::Commit(host, record) => {
                let epoch = world.hosts[host].epoch;
                world.commits += 1;
                world.old_accepted |= epoch < world.sealed;
                world.log.push(Entry::Commit { record, epoch });
            }
            OwnerAction::Die(host) => world.hosts[host].alive = false,
            OwnerAction::Mirror => {
                let entry = world.log[world.mirrored];
                world.mirrored += 1;
                if let Entry::Record { record, epoch } = entry {
                    // Whoever appended it is told; that host may have taken the vdisk again since.
                    world.acknowledged |= 1 << record;
                    for host in &mut world.hosts {
                        host.told |= u8::from(host.epoch == epoch) << record;
                    }
                }
            }
            OwnerAction::Sync => world.synced += 1,
            OwnerAction::Lose => self.lose(world),
        }
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Owners>> {
        vec![
            Property::always(
                "C8: nothing of an older epoch is taken after a seal",
                |_, world: &OwnerWorld| !world.old_accepted,
            ),
            Property::always(
                "C8: an owner has everything that older ones were told",
                |_, world: &OwnerWorld| {
                    world.hosts.iter().all(|host| {
                        let Some(has) = host.fetched.and_then(|fetched| Some(fetched | host.map?))
                        else {
                            return true;
                        };
                        let older = |record: &u8| world.epochs[usize::from(*record)] < host.epoch;
                        let missing = world.acknowledged & !has;
                        !(0..world.epochs.len() as u8)
                            .any(|record| older(&record) && missing & 1 << record != 0)
                    })
                },
            ),
            Property::always(
                "C9: no two hosts serve at a time",
                |model: &Owners, world: &OwnerWorld| {
                    !world.hosts.iter().all(|host| model.serves(host))
                },
            ),
            Property::always(
                "C9: no host serves once a newer one was told that something is written",
                |model: &Owners, world: &OwnerWorld| {
                    let told = |host: &Owner| {
                        let newer = |record: &u8| world.epochs[usize::from(*record)] > host.epoch;
                        let acknowledged = |record: &u8| world.acknowledged & 1 << record != 0;
                        (0..world.epochs.len() as u8).any(|it| newer(&it) && acknowledged(&it))
                    };
                    !world.hosts.iter().any(|host| model.serves(host) && told(host))
                },
            ),
            Property::sometimes(
                "both hosts serve, one after the other",
                |_, world: &OwnerWorld| world.hosts.iter().all(|host| host.fetched.is_some()),
            ),
            Property::sometimes(
                "an owner fetches what another one wrote",
                |_, world: &OwnerWorld| {
                    world.hosts.iter().any(|host| host.fetched.is_some_and(|fetched| fetched != 0))
                },
            ),
        ]
    }
}
