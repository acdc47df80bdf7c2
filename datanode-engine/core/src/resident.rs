//! Who may do what: the newest incarnation of each host, the sealed epoch of each vdisk, recent commits.
//!
//! Decisions are made from this when a record is appended, before it is mirrored: a seal refuses
//! older epochs from that moment on (C8). It is the catalog's state plus the effects of the
//! control records that the log holds beyond it.

use cleave_catalog::Resident as CatalogResident;
use cleave_catalog::tables::VdiskRow;
use cleave_format::control::{Commit, Control};
use cleave_format::ids::{Epoch, HostId, Incarnation, Position, StripeId, VdiskId};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_wire::Refusal;
use std::collections::BTreeMap;

/// What a vdisk's owner was, and since when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Seal {
    /// The only epoch whose appends and commits are accepted.
    pub epoch: Epoch,
    /// The owner.
    pub host: HostId,
    /// The owner's incarnation.
    pub incarnation: Incarnation,
    /// Position of the seal.
    pub position: Position,
    /// It ended.
    pub deleted: bool,
}

/// A commit whose row the catalog may not have yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecentCommit {
    /// Its position.
    pub position: Position,
    /// Vdisks that it was refused for.
    pub struck: Vec<VdiskId>,
}

/// The resident state of an active controller.
#[derive(Default)]
pub struct Resident {
    hosts: BTreeMap<HostId, Incarnation>,
    seals: BTreeMap<VdiskId, Seal>,
    commits: BTreeMap<StripeId, RecentCommit>,
    /// What runs that the catalog may not have yet say to be no longer named, and where.
    left: BTreeMap<(StripeId, VdiskId), Position>,
}

impl Resident {
    /// Takes over the catalog's state.
    pub fn load(catalog: &CatalogResident) -> Resident {
        let seal = |row: &VdiskRow| Seal {
            epoch: row.epoch,
            host: row.host,
            incarnation: row.incarnation,
            position: row.seal,
            deleted: row.deleted,
        };
        Resident {
            hosts: catalog.hosts.iter().copied().collect(),
            seals: catalog.vdisks.iter().map(|v| (v.vdisk, seal(&v.row))).collect(),
            commits: BTreeMap::new(),
            left: BTreeMap::new(),
        }
    }

    /// Takes over a control record: one that is being appended, or one of the log, replayed.
    pub fn apply(&mut self, position: Position, control: &Control) {
        match control {
            Control::HostStart { host, incarnation } => {
                self.hosts.insert(*host, *incarnation);
            }
            Control::Seal { vdisk, epoch, host, incarnation } => {
                let (epoch, host, incarnation) = (*epoch, *host, *incarnation);
                let seal = Seal { epoch, host, incarnation, position, deleted: false };
                self.seals.insert(*vdisk, seal);
            }
            Control::Delete { vdisk, epoch } => {
                if let Some(seal) = self.seals.get_mut(vdisk) {
                    (seal.epoch, seal.position, seal.deleted) = (*epoch, position, true);
                }
            }
            Control::Commit(Commit { stripe, vdisks, .. }) => {
                let struck = vdisks.iter().filter(|part| part.struck).map(|part| part.vdisk);
                let commit = RecentCommit { position, struck: struck.collect() };
                self.commits.insert(*stripe, commit);
                for part in vdisks.iter().filter(|part| !part.struck) {
                    for stripe in part.run.iter().flat_map(|run| &run.unreferenced) {
                        self.left.insert((*stripe, part.vdisk), position);
                    }
                }
            }
            _ => {}
        }
    }

    /// The catalog has everything up to a position.
    pub fn synced(&mut self, through: Position) {
        self.commits.retain(|_, commit| commit.position > through);
        self.left.retain(|_, position| *position > through);
    }

    /// Whether a vdisk that the catalog, at a position, knows to hold a stripe certainly does so after
    /// everything that the log holds by now (C19).
    pub fn still_holds(&self, vdisk: VdiskId, stripe: StripeId, catalog: Position) -> bool {
        let left = self.left.get(&(stripe, vdisk)).is_some_and(|position| *position > catalog);
        let deleted = |seal: &Seal| seal.deleted && seal.position > catalog;
        !left && !self.seals.get(&vdisk).is_some_and(deleted)
    }

    /// The newest incarnation of a host.
    pub fn incarnation(&self, host: HostId) -> Option<Incarnation> {
        self.hosts.get(&host).copied()
    }

    /// Hosts that ever said hello.
    pub fn hosts(&self) -> impl Iterator<Item = (HostId, Incarnation)> + '_ {
        self.hosts.iter().map(|(host, incarnation)| (*host, *incarnation))
    }

    /// The seal of a vdisk.
    pub fn seal(&self, vdisk: VdiskId) -> Option<&Seal> {
        self.seals.get(&vdisk)
    }

    /// All seals.
    pub fn seals(&self) -> impl Iterator<Item = (VdiskId, &Seal)> + '_ {
        self.seals.iter().map(|(vdisk, seal)| (*vdisk, seal))
    }

    /// Whether this host incarnation owns the vdisk in this epoch (C8).
    pub fn check_owner(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        incarnation: Incarnation,
    ) -> Result<&Seal, Refusal> {
        let owns = |seal: &&Seal| {
            let same = seal.epoch == epoch && seal.incarnation == incarnation;
            (same || is_planted(Planted::AcceptOldOwners)) && !seal.deleted
        };
        self.seals.get(&vdisk).filter(owns).ok_or(Refusal::Sealed)
    }

    /// Whether an owner of this epoch is unknown here, or its seal is not mirrored, and no newer one is known. It was told that its
    /// seal is durable: who lacks that is active no more, or never was with this log (C7, C8), and must not say that the vdisk
    /// has another owner.
    pub fn lacks_owner(&self, vdisk: VdiskId, epoch: Epoch, mirrored: Position) -> bool {
        self.seals.get(&vdisk).is_none_or(|seal| {
            // Of one that deleted it the position is that of the deletion.
            let sealed = seal.position <= mirrored || seal.deleted;
            seal.epoch < epoch || seal.epoch == epoch && !sealed
        })
    }

    /// The position at which this owner deleted the vdisk, if it did (C28).
    pub fn deleted(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        incarnation: Incarnation,
    ) -> Option<Position> {
        let same = |seal: &&Seal| seal.epoch == epoch && seal.incarnation == incarnation;
        let seal = self.seals.get(&vdisk).filter(same)?;
        seal.deleted.then_some(seal.position)
    }

    /// Whether a vdisk may be sealed. `Ok(Some(_))`: it is already, just so, since that position. When that is
    /// acknowledged the [leases](crate::leases) say (C9).
    pub fn check_seal(
        &self,
        vdisk: VdiskId,
        epoch: Epoch,
        incarnation: Incarnation,
    ) -> Result<Option<Position>, Refusal> {
        let Some(seal) = self.seals.get(&vdisk) else { return Ok(None) };
        if seal.deleted || seal.epoch > epoch {
            return Err(Refusal::Sealed);
        }
        if seal.epoch == epoch {
            let same = seal.incarnation == incarnation;
            return if same { Ok(Some(seal.position)) } else { Err(Refusal::Sealed) };
        }
        Ok(None)
    }

    /// A commit of the stripe that the catalog may not have yet.
    pub fn recent_commit(&self, stripe: StripeId) -> Option<&RecentCommit> {
        self.commits.get(&stripe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VDISK: VdiskId = VdiskId(1);

    fn seal(epoch: u64, incarnation: u64) -> Control {
        Control::Seal {
            vdisk: VDISK,
            epoch: Epoch(epoch),
            host: HostId(1),
            incarnation: Incarnation(incarnation),
        }
    }

    /// C8, C28.
    #[test]
    fn only_the_sealed_epoch_is_accepted() {
        let mut resident = Resident::default();
        let check = |resident: &Resident, epoch, incarnation| {
            resident.check_seal(VDISK, Epoch(epoch), Incarnation(incarnation))
        };
        assert_eq!(check(&resident, 1, 5), Ok(None));
        resident.apply(Position(9), &seal(1, 5));
        assert_eq!(check(&resident, 1, 5), Ok(Some(Position(9))));
        assert_eq!(check(&resident, 1, 6), Err(Refusal::Sealed));
        assert_eq!(check(&resident, 2, 6), Ok(None));
        assert_eq!(check(&resident, 2, 5), Ok(None));
        resident.apply(Position(12), &seal(2, 6));
        let owner = |epoch, incarnation| {
            resident.check_owner(VDISK, Epoch(epoch), Incarnation(incarnation)).is_ok()
        };
        assert!(owner(2, 6) && !owner(1, 5) && !owner(2, 5) && !owner(3, 6));
        let lacks =
            |vdisk, epoch, mirrored| resident.lacks_owner(vdisk, Epoch(epoch), Position(mirrored));
        assert!(lacks(VDISK, 3, 12) && !lacks(VDISK, 2, 12) && !lacks(VDISK, 1, 12));
        assert!(lacks(VDISK, 2, 11) && !lacks(VDISK, 1, 11) && lacks(VdiskId(99), 1, 12));
        resident.apply(Position(13), &Control::Delete { vdisk: VDISK, epoch: Epoch(2) });
        assert!(resident.check_owner(VDISK, Epoch(2), Incarnation(6)).is_err());
        assert_eq!(check(&resident, 3, 6), Err(Refusal::Sealed));
    }

    /// C19: what a run leaves, or a delete ends, is not certain from the record's own position on.
    #[test]
    fn a_holder_is_certain_until_it_leaves() {
        let mut resident = Resident::default();
        let stripe = StripeId(7);
        resident.apply(Position(2), &seal(1, 5));
        assert!(resident.still_holds(VDISK, stripe, Position(2)));
        let run = cleave_format::control::MapRun {
            frontier: Position(1),
            pieces: Vec::new(),
            unreferenced: vec![stripe],
        };
        let part = |struck| cleave_format::control::CommitVdisk {
            vdisk: VDISK,
            epoch: Epoch(1),
            struck,
            in_footer: false,
            has_pieces: false,
            releases: Vec::new(),
            entries: Vec::new(),
            references: Vec::new(),
            run: Some(run.clone()),
        };
        let commit = |struck| {
            Control::Commit(Commit {
                stripe: StripeId(9),
                incarnation: Incarnation(5),
                slots: Vec::new(),
                shards_missing: 0,
                vdisks: vec![part(struck)],
            })
        };
        resident.apply(Position(3), &commit(true));
        assert!(resident.still_holds(VDISK, stripe, Position(2)), "a struck run leaves nothing");
        resident.apply(Position(4), &commit(false));
        assert!(!resident.still_holds(VDISK, stripe, Position(3)));
        assert!(resident.still_holds(VDISK, StripeId(8), Position(3)));
        // The catalog, once it is there, knows better.
        assert!(resident.still_holds(VDISK, stripe, Position(4)));
        resident.synced(Position(4));
        resident.apply(Position(5), &Control::Delete { vdisk: VDISK, epoch: Epoch(1) });
        assert!(!resident.still_holds(VDISK, stripe, Position(4)));
        assert!(resident.still_holds(VDISK, stripe, Position(5)));
    }

    /// C28: a delete whose answer was lost is known again, to its owner only.
    #[test]
    fn a_delete_is_answered_again() {
        let mut resident = Resident::default();
        let deleted = |resident: &Resident, epoch, incarnation| {
            resident.deleted(VDISK, Epoch(epoch), Incarnation(incarnation))
        };
        resident.apply(Position(5), &seal(2, 9));
        assert_eq!(deleted(&resident, 2, 9), None);
        resident.apply(Position(6), &Control::Delete { vdisk: VDISK, epoch: Epoch(2) });
        assert_eq!(deleted(&resident, 2, 9), Some(Position(6)));
        assert_eq!((deleted(&resident, 1, 9), deleted(&resident, 2, 8)), (None, None));
    }
}
