//! The catalog against a simple model, over crashes, resends and copies; and files that are not
//! catalogs.

use super::*;
use crate::storage::MemoryStorage;
use crate::tables::{DriveRow, GrantRow, Holder, StripeRow};
use cleave_format::address::Address;
use cleave_format::control::*;
use cleave_format::ids::*;
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

const OWNER: Owner = Owner { cluster: ClusterId([7; 16]), datanode: DatanodeId(1) };

fn open(storage: &MemoryStorage) -> Catalog {
    Catalog::open_storage(storage.open(), Path::new("memory"), OWNER).unwrap()
}

/// What the catalog should hold, kept in the plainest way: whole commits, never rows.
#[derive(Clone, Default)]
struct Model {
    applied: u64,
    newest: u64,
    hosts: BTreeMap<HostId, Incarnation>,
    vdisks: BTreeMap<VdiskId, (Epoch, HostId, Incarnation, u64, bool)>,
    frontiers: BTreeMap<VdiskId, u64>,
    grants: BTreeMap<StripeId, GrantRow>,
    /// Accepted commits of stripes that still exist for somebody.
    commits: BTreeMap<u64, Commit>,
    /// Who may name a stripe with slots, and by which commit.
    holders: BTreeMap<StripeId, BTreeMap<VdiskId, u64>>,
    pieces: BTreeMap<(VdiskId, u32), Address>,
    drives: BTreeMap<DriveId, DriveRow>,
    /// How often the slots of stripes changed (C16), where they did.
    generations: BTreeMap<StripeId, u32>,
    /// Slots that are free for nobody (C15).
    held: BTreeSet<(DriveId, SlotIndex)>,
    freed: Vec<SlotPlace>,
}

impl Model {
    fn live(&self, vdisk: VdiskId) -> bool {
        self.vdisks.get(&vdisk).is_none_or(|row| !row.4)
    }

    fn frontier(&self, vdisk: VdiskId) -> u64 {
        self.frontiers.get(&vdisk).copied().unwrap_or(0)
    }

    /// Whether a commit still matters: a stripe while a vdisk may name it, entries while a vdisk's
    /// pieces do not reflect them.
    fn matters(&self, position: u64, commit: &Commit) -> bool {
        if !commit.slots.is_empty() {
            return self.holders.get(&commit.stripe).is_some_and(|holders| !holders.is_empty());
        }
        commit.vdisks.iter().any(|part| {
            !part.struck && self.live(part.vdisk) && position > self.frontier(part.vdisk)
        })
    }

    fn hold(&mut self, position: u64, commit: &Commit) {
        for part in commit.vdisks.iter().filter(|part| !part.struck) {
            let holders = self.holders.entry(commit.stripe).or_default();
            if !commit.slots.is_empty() {
                holders.insert(part.vdisk, position);
            }
        }
        for part in commit.vdisks.iter().filter(|part| !part.struck) {
            for stripe in &part.references {
                let holders = self.holders.get_mut(stripe).filter(|holders| !holders.is_empty());
                holders.map(|holders| holders.insert(part.vdisk, position));
            }
        }
    }

    fn sweep(&mut self) {
        let commits = std::mem::take(&mut self.commits);
        for (position, commit) in commits {
            if self.matters(position, &commit) {
                self.commits.insert(position, commit);
            } else {
                let held = |place: &&SlotPlace| self.held.contains(&(place.drive, place.slot));
                self.freed.extend(commit.slots.iter().filter(|place| !held(place)).copied());
            }
        }
    }

    fn apply(&mut self, position: u64, control: &Control) {
        self.applied = position;
        match control {
            Control::HostStart { host, incarnation } => {
                if let Some(old) = self.hosts.insert(*host, *incarnation) {
                    self.grants.retain(|_, row| row.incarnation != old || old == *incarnation);
                }
            }
            Control::Seal { vdisk, epoch, host, incarnation } => {
                let newer = self.vdisks.get(vdisk).is_none_or(|row| !row.4 && row.0 <= *epoch);
                if newer {
                    self.vdisks.insert(*vdisk, (*epoch, *host, *incarnation, position, false));
                }
            }
            Control::Grant { incarnation, stripes } => {
                for granted in stripes {
                    let row = GrantRow { incarnation: *incarnation, slots: granted.slots.clone() };
                    self.grants.insert(granted.stripe, row);
                    self.newest = self.newest.max(granted.stripe.0);
                }
            }
            Control::GrantEnd { stripes } => {
                for stripe in stripes {
                    self.grants.remove(stripe);
                }
            }
            Control::Commit(commit) => {
                if self.grants.remove(&commit.stripe).is_none() {
                    return;
                }
                self.commits.insert(position, commit.clone());
                self.hold(position, commit);
                for part in commit.vdisks.iter().filter(|part| !part.struck) {
                    let Some(run) = &part.run else { continue };
                    for piece in &run.pieces {
                        let key = (part.vdisk, piece.group);
                        match piece.address {
                            Some(address) => drop(self.pieces.insert(key, address)),
                            None => drop(self.pieces.remove(&key)),
                        }
                    }
                    if run.frontier.0 <= self.frontier(part.vdisk) {
                        continue;
                    }
                    self.frontiers.insert(part.vdisk, run.frontier.0);
                    for stripe in &run.unreferenced {
                        let Some(holders) = self.holders.get_mut(stripe) else { continue };
                        if holders.get(&part.vdisk).is_some_and(|at| *at <= run.frontier.0) {
                            holders.remove(&part.vdisk);
                        }
                    }
                }
                self.sweep();
            }
            Control::Delete { vdisk, epoch } => {
                let (host, incarnation) = self
                    .vdisks
                    .get(vdisk)
                    .map_or((HostId(0), Incarnation(0)), |row| (row.1, row.2));
                self.vdisks.insert(*vdisk, (*epoch, host, incarnation, position, true));
                self.frontiers.remove(vdisk);
                for holders in self.holders.values_mut() {
                    holders.remove(vdisk);
                }
                self.pieces.retain(|key, _| key.0 != *vdisk);
                self.sweep();
            }
            Control::Drive { drive, state, generation } => {
                if self.drives.get(drive).is_none_or(|row| row.generation < *generation) {
                    let row = DriveRow { state: *state, generation: *generation };
                    self.drives.insert(*drive, row);
                }
            }
            Control::Swap(swap) => {
                if self.grants.remove(&swap.loan).is_none() {
                    return;
                }
                let generation = self.generations.entry(swap.stripe).or_default();
                let commit = self.commits.values_mut().find(|commit| commit.stripe == swap.stripe);
                let commit = commit.filter(|commit| !commit.slots.is_empty());
                let mut free: Vec<SlotPlace> = swap.shards.iter().map(|shard| shard.1).collect();
                if let Some(commit) = commit.filter(|_| *generation == swap.generation) {
                    *generation += 1;
                    for (index, (shard, _)) in swap.shards.iter().enumerate() {
                        std::mem::swap(&mut commit.slots[usize::from(*shard)], &mut free[index]);
                    }
                }
                let held = |place: &SlotPlace| self.held.contains(&(place.drive, place.slot));
                free.retain(|place| !held(place));
                self.freed.extend(free);
            }
            Control::HoldSlots => {
                let slots = self.grants.values().flat_map(|row| &row.slots);
                self.held.extend(slots.map(|place| (place.drive, place.slot)));
            }
            Control::FreeHeld => {
                for (drive, slot) in std::mem::take(&mut self.held) {
                    let granted = self.grants.values().flat_map(|row| &row.slots);
                    let committed = self.commits.values().flat_map(|commit| &commit.slots);
                    let mut used = granted.chain(committed);
                    if !used.any(|place| (place.drive, place.slot) == (drive, slot)) {
                        self.freed.push(SlotPlace { drive, slot, generation: 0 });
                    }
                }
            }
            Control::Cut { .. } | Control::Move { .. } => {}
        }
    }

    fn map(&self, vdisk: VdiskId) -> (u64, Vec<PiecePlace>, Vec<MapRow>) {
        let pieces = self.pieces.iter().filter(|(key, _)| key.0 == vdisk);
        let pieces =
            pieces.map(|(key, address)| PiecePlace { group: key.1, address: Some(*address) });
        let mut rows = Vec::new();
        if self.live(vdisk) {
            for (position, commit) in self.commits.range(self.frontier(vdisk) + 1..) {
                let parts = commit.vdisks.iter().filter(|part| part.vdisk == vdisk && !part.struck);
                for part in parts {
                    let stripe =
                        GrantedStripe { stripe: commit.stripe, slots: commit.slots.clone() };
                    rows.push(MapRow {
                        position: Position(*position),
                        stripe: part.in_footer.then_some(stripe),
                        entries: part.entries.clone(),
                    });
                }
            }
        }
        (self.frontier(vdisk), pieces.collect(), rows)
    }
}

fn places(stripe: u64) -> Vec<SlotPlace> {
    let place = |drive: u64| SlotPlace {
        drive: DriveId(drive as u16),
        slot: SlotIndex(stripe as u32),
        generation: 1,
    };
    (0..3).map(place).collect()
}

/// Turns random numbers into a history that an active controller could have written.
fn history(seeds: &[(u8, u64, u64, u64)]) -> Vec<(Position, Control)> {
    let mut entries: Vec<(Position, Control)> = Vec::new();
    let (mut position, mut newest, mut epoch) = (0, 0, 0);
    let mut open = Vec::new();
    let mut loans: Vec<(u64, Vec<SlotPlace>)> = Vec::new();
    // Vdisks that commits are accepted for.
    let mut sealed = BTreeSet::new();
    let mut deleted = BTreeSet::new();
    let mut generation = 0;
    for &(kind, a, b, c) in seeds {
        position += 1 + a % 3;
        let vdisk = VdiskId(1 + a % 4);
        let incarnation = Incarnation(1 + b % 3);
        let control = match kind % 18 {
            14 | 15 => {
                newest += 1;
                let slots = places(newest)[..1 + (b % 2) as usize].to_vec();
                loans.push((newest, slots.clone()));
                let stripes = vec![GrantedStripe { stripe: StripeId(newest), slots }];
                Control::Grant { incarnation: Incarnation::DATANODE, stripes }
            }
            16 | 17 => match loans.is_empty() {
                true => continue,
                false => {
                    let index = b as usize % loans.len();
                    let (loan, slots) = loans[index].clone();
                    if a % 4 > 0 {
                        loans.remove(index); // else the record comes twice
                    }
                    let shards = slots.into_iter().zip(0..).map(|(place, at)| (at, place));
                    Control::Swap(Swap {
                        stripe: StripeId(1 + c % newest),
                        generation: (a % 3 / 2) as u32,
                        loan: StripeId(loan),
                        shards: shards.collect(),
                    })
                }
            },
            12 => Control::HoldSlots,
            13 => Control::FreeHeld,
            0 => Control::HostStart { host: HostId(1 + (a % 2) as u32), incarnation },
            1 => {
                epoch += b % 2;
                let host = HostId(1 + (c % 2) as u32);
                if !deleted.contains(&vdisk) {
                    sealed.insert(vdisk);
                }
                Control::Seal { vdisk, epoch: Epoch(epoch), host, incarnation }
            }
            2..=4 => {
                newest += 1;
                let slots = if b % 4 == 0 { Vec::new() } else { places(newest) };
                open.push((newest, slots.clone()));
                let stripes = vec![GrantedStripe { stripe: StripeId(newest), slots }];
                Control::Grant { incarnation, stripes }
            }
            5 => match open.is_empty() {
                true => continue,
                false => {
                    let (stripe, _) = open.remove(b as usize % open.len());
                    Control::GrantEnd { stripes: vec![StripeId(stripe)] }
                }
            },
            6 if a % 5 == 0 => {
                deleted.insert(vdisk);
                sealed.remove(&vdisk);
                Control::Delete { vdisk, epoch: Epoch(epoch) }
            }
            7 => {
                generation += 1;
                let state = if b % 2 == 0 { DriveState::Lost } else { DriveState::Active };
                Control::Drive { drive: DriveId((c % 3) as u16), state, generation }
            }
            _ => {
                if open.is_empty() {
                    continue;
                }
                let index = b as usize % open.len();
                let (stripe, slots) = open[index].clone();
                if a % 4 > 0 {
                    open.remove(index); // else it is resent some day
                }
                let part = |number: u64, salt: u64| {
                    let vdisk = VdiskId(1 + number % 4);
                    let stripeless = slots.is_empty();
                    let address = Address { stripe: StripeId(stripe), offset: 16, length: 16 };
                    let pieces = (0..salt % 3)
                        .map(|group| PiecePlace {
                            group: group as u32,
                            address: (!stripeless && !(salt + group).is_multiple_of(3))
                                .then_some(address),
                        })
                        .collect();
                    let entry = InlineEntry {
                        slice: SliceIndex(1),
                        block: 0,
                        blocks: 1,
                        version: Version::default(),
                        reference: None,
                    };
                    CommitVdisk {
                        vdisk,
                        epoch: Epoch(epoch),
                        struck: salt.is_multiple_of(4) || !sealed.contains(&vdisk),
                        in_footer: !stripeless && !salt.is_multiple_of(3),
                        has_pieces: !stripeless && salt.is_multiple_of(3),
                        releases: Vec::new(),
                        entries: vec![entry; usize::from(stripeless)],
                        references: (0..salt % 4)
                            .map(|back| StripeId(stripe.saturating_sub(1 + back * (1 + salt % 3))))
                            .collect(),
                        run: (salt % 5 < 2).then_some(MapRun {
                            frontier: Position(position.saturating_sub(salt % 25)),
                            pieces,
                            unreferenced: (0..newest)
                                .filter(|number| (number ^ salt).is_multiple_of(3))
                                .map(StripeId)
                                .collect(),
                        }),
                    }
                };
                let mut vdisks = vec![part(a, c)];
                if c % 2 == 0 {
                    vdisks.push(part(a + 1, c / 2));
                }
                Control::Commit(Commit {
                    stripe: StripeId(stripe),
                    incarnation,
                    slots: slots.clone(),
                    shards_missing: (c % 2) as u16,
                    vdisks,
                })
            }
        };
        entries.push((Position(position), control));
    }
    entries
}

fn whole_map(
    catalog: &Catalog,
    vdisk: VdiskId,
    bytes_max: usize,
) -> (u64, Vec<PiecePlace>, Vec<MapRow>) {
    let (mut pieces, mut commits, mut cursor) = (Vec::new(), Vec::new(), None);
    loop {
        let mut page = catalog.map_page(vdisk, cursor, bytes_max).unwrap();
        pieces.append(&mut page.pieces);
        commits.append(&mut page.commits);
        cursor = page.next;
        if cursor.is_none() {
            return (page.frontier.0, pieces, commits);
        }
    }
}

fn compare(catalog: &Catalog, model: &Model, page: usize) {
    assert_eq!(catalog.applied().0, model.applied);
    for number in 1..=4 {
        assert_eq!(whole_map(catalog, VdiskId(number), page), model.map(VdiskId(number)));
    }
    let resident = catalog.resident().unwrap();
    assert_eq!(resident.newest_stripe.0, model.newest);
    assert_eq!(resident.hosts, model.hosts.clone().into_iter().collect::<Vec<_>>());
    assert_eq!(resident.grants, model.grants.clone().into_iter().collect::<Vec<_>>());
    assert_eq!(resident.drives, model.drives.clone().into_iter().collect::<Vec<_>>());
    let vdisks: Vec<_> = resident
        .vdisks
        .iter()
        .map(|v| {
            (v.vdisk, (v.row.epoch, v.row.host, v.row.incarnation, v.row.seal.0, v.row.deleted))
        })
        .collect();
    assert_eq!(vdisks, model.vdisks.clone().into_iter().collect::<Vec<_>>());
    let mut used = BTreeSet::new();
    for (drive, words) in &resident.used {
        let bits = (0..words.len() * 64).filter(|bit| words[bit / 64] >> (bit % 64) & 1 == 1);
        used.extend(bits.map(|bit| (*drive, bit as u32)));
    }
    let mut expected = BTreeSet::new();
    let granted = model.grants.values().flat_map(|row| &row.slots);
    for place in model.commits.values().flat_map(|commit| &commit.slots).chain(granted) {
        expected.insert((place.drive, place.slot.0));
    }
    expected.extend(model.held.iter().map(|(drive, slot)| (*drive, slot.0)));
    assert_eq!(used, expected);
    assert_eq!(resident.held, model.held.iter().copied().collect::<Vec<_>>());
    let all: Vec<StripeId> = (0..=model.newest).map(StripeId).collect();
    let mut located: Vec<_> = model
        .commits
        .values()
        .filter(|commit| !commit.slots.is_empty())
        .map(|commit| GrantedStripe { stripe: commit.stripe, slots: commit.slots.clone() })
        .collect();
    located.sort_by_key(|granted| granted.stripe);
    assert_eq!(catalog.locate(&all).unwrap(), located);
    let holders = |stripe: &StripeId| -> Vec<VdiskId> {
        model.holders.get(stripe).into_iter().flat_map(|all| all.keys().copied()).collect()
    };
    assert_eq!(catalog.holders(&all).unwrap(), all.iter().map(holders).collect::<Vec<_>>());
    for vdisk in (1..=4).map(VdiskId) {
        let (mut found, mut from) = (Vec::new(), Some(StripeId(0)));
        while let Some(first) = from {
            let (some, next) = catalog.stripes_of(vdisk, first, 1 + page % 7).unwrap();
            found.extend(some);
            from = next;
        }
        let held = |(stripe, holders): (&StripeId, &BTreeMap<VdiskId, u64>)| {
            holders.get(&vdisk).map(|position| (*stripe, Position(*position)))
        };
        assert_eq!(found, model.holders.iter().filter_map(held).collect::<Vec<_>>());
    }
}

fn copy(from: &Catalog, to: &mut Catalog, bytes_max: usize) {
    let mut dump = from.dump().unwrap();
    to.restore_begin().unwrap();
    while let Some(piece) = dump.next_piece(bytes_max).unwrap() {
        to.restore_piece(&piece).unwrap();
    }
    assert_eq!(to.restore_finish().unwrap(), from.applied());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// C11, C4, C28: batches of any size, resent batches, power cuts and copies lead to what the
    /// records say, each once.
    #[test]
    fn follows_the_model(
        seeds in proptest::collection::vec((any::<u8>(), 0u64..60, 0u64..60, 0u64..60), 1..90),
        cuts in proptest::collection::vec((1usize..12, 0u8..8, any::<u64>()), 1..20),
    ) {
        let entries = history(&seeds);
        let storage = MemoryStorage::new();
        let mut catalog = open(&storage);
        let mut model = Model::default();
        let mut done = 0;
        for &(count, event, random) in cuts.iter().cycle().take(60) {
            let next = (done + count).min(entries.len());
            let resent = done.saturating_sub(random as usize % 7);
            model.freed.clear();
            for (position, control) in &entries[done..next] {
                model.apply(position.0, control);
            }
            let applied = catalog.apply(&entries[resent..next]).unwrap();
            prop_assert_eq!(applied.through.0, model.applied);
            prop_assert_eq!(
                applied.freed.into_iter().collect::<BTreeSet<_>>(),
                model.freed.iter().copied().collect::<BTreeSet<_>>()
            );
            done = next;
            match event {
                0 => {
                    storage.kill();
                    catalog = open(&storage);
                }
                1 => {
                    storage.lose_power(|page| random >> (page % 64) & 1 == 1);
                    catalog = open(&storage);
                }
                2 => {
                    let mut other = open(&MemoryStorage::new());
                    other.apply(&entries[..resent / 2]).unwrap();
                    copy(&catalog, &mut other, 1 + random as usize % 300);
                    compare(&other, &model, 1);
                }
                _ => {}
            }
            compare(&catalog, &model, 1 + random as usize % 400);
        }
    }
}

#[test]
fn a_copy_that_was_cut_short_leaves_the_old_catalog() {
    let entries = history(&[(2, 1, 1, 1), (2, 1, 1, 1), (2, 1, 1, 1)]);
    let mut full = open(&MemoryStorage::new());
    full.apply(&entries).unwrap();
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage);
    catalog.apply(&entries[..1]).unwrap();
    let before = catalog.resident().unwrap();
    let piece = full.dump().unwrap().next_piece(1).unwrap().unwrap();
    catalog.restore_begin().unwrap();
    catalog.restore_piece(&piece).unwrap();
    assert!(catalog.restore_piece(&piece[1..]).is_err());
    storage.kill();
    let mut catalog = open(&storage);
    assert_eq!(catalog.resident().unwrap(), before);
    catalog.restore_begin().unwrap();
    catalog.restore_abandon().unwrap();
    catalog.apply(&entries).unwrap();
    assert_eq!(catalog.resident().unwrap(), full.resident().unwrap());
}

#[test]
fn the_stripe_row_tells_a_resend() {
    let mut catalog = open(&MemoryStorage::new());
    let grant = GrantedStripe { stripe: StripeId(5), slots: places(5) };
    let part = |vdisk, struck| CommitVdisk {
        vdisk: VdiskId(vdisk),
        epoch: Epoch(1),
        struck,
        in_footer: true,
        has_pieces: false,
        releases: Vec::new(),
        entries: Vec::new(),
        references: Vec::new(),
        run: None,
    };
    let commit = Commit {
        stripe: StripeId(5),
        incarnation: Incarnation(1),
        slots: places(5),
        shards_missing: 4,
        vdisks: vec![part(2, true), part(1, false)],
    };
    let entries = [
        (Position(3), Control::Grant { incarnation: Incarnation(1), stripes: vec![grant] }),
        (Position(9), Control::Commit(commit)),
    ];
    catalog.apply(&entries).unwrap();
    let expected = StripeRow {
        slots: places(5),
        generation: 0,
        holders: vec![Holder { vdisk: VdiskId(1), position: Position(9) }],
        struck: vec![VdiskId(2)],
        position: Position(9),
        shards_missing: 4,
    };
    assert_eq!(catalog.stripe(StripeId(5)).unwrap(), Some(expected));
    assert_eq!(catalog.stripe(StripeId(6)).unwrap(), None);
    // Shard 2 was missing from the beginning.
    let damage = |drives: &[u16]| {
        let lost: Vec<DriveId> = drives.iter().map(|drive| DriveId(*drive)).collect();
        let Damage { degraded, lost } = catalog.damage(&lost).unwrap();
        (degraded, lost)
    };
    assert_eq!(damage(&[]), (1, 0));
    assert_eq!(damage(&[1, 9]), (1, 0));
    assert_eq!(damage(&[0, 1]), (0, 1));
}

#[test]
fn files_that_are_no_catalog_of_ours_are_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("catalog");
    let mut catalog = Catalog::open(&path, OWNER).unwrap();
    catalog.apply(&history(&[(2, 1, 1, 1)])).unwrap();
    assert!(matches!(Catalog::open(&path, OWNER), Err(CatalogError::InUse(_))));
    let applied = catalog.applied();
    drop(catalog);
    let other = Owner { datanode: DatanodeId(2), ..OWNER };
    let error = Catalog::open(&path, other).err().unwrap();
    assert!(matches!(error, CatalogError::Foreign { .. }), "{error}");
    assert!(error.to_string().contains("data node 1"), "{error}");
    assert_eq!(Catalog::open(&path, OWNER).unwrap().applied(), applied);

    let garbage = vec![0x5a; 1 << 16];
    std::fs::write(&path, &garbage).unwrap();
    let error = Catalog::open(&path, OWNER).err().unwrap();
    assert!(matches!(error, CatalogError::Damaged { .. }), "{error}");
    assert!(!error.to_string().contains('\n'));
    assert_eq!(std::fs::read(&path).unwrap(), garbage);

    let foreign = directory.path().join("foreign");
    let database = redb::Database::create(&foreign).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(redb::TableDefinition::<u64, u64>::new("mine")).unwrap();
    write.commit().unwrap();
    drop(database);
    assert!(matches!(Catalog::open(&foreign, OWNER), Err(CatalogError::Damaged { .. })));
    let missing = directory.path().join("no/catalog");
    assert!(matches!(Catalog::open(&missing, OWNER), Err(CatalogError::Open { .. })));
}

#[test]
fn a_creation_that_was_cut_short_is_begun_anew_and_an_empty_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let (path, new) = (directory.path().join("catalog"), directory.path().join("catalog.new"));
    std::fs::write(&new, vec![0; 70_000]).unwrap();
    let mut catalog = Catalog::open(&path, OWNER).unwrap();
    catalog.apply(&history(&[(2, 1, 1, 1)])).unwrap();
    let applied = catalog.applied();
    drop(catalog);
    assert!(!new.exists());
    assert_eq!(Catalog::open(&path, OWNER).unwrap().applied(), applied);
    std::fs::write(&path, b"").unwrap();
    let error = Catalog::open(&path, OWNER).err().unwrap();
    assert!(error.to_string().contains("it is empty"), "{error}");
}

/// C19, C20, C21: a stripe goes when the last vdisk that may name it leaves it, and not before.
#[test]
fn a_stripe_is_freed_when_nobody_may_name_it() {
    let mut catalog = open(&MemoryStorage::new());
    let mut position = 0;
    let mut apply = |catalog: &mut Catalog, control: Control| {
        position += 1;
        let freed = catalog.apply(&[(Position(position), control)]).unwrap().freed;
        (Position(position), freed)
    };
    let seal = |vdisk| Control::Seal {
        vdisk: VdiskId(vdisk),
        epoch: Epoch(1),
        host: HostId(1),
        incarnation: Incarnation(1),
    };
    let grant = |stripe, slots| Control::Grant {
        incarnation: Incarnation(1),
        stripes: vec![GrantedStripe { stripe: StripeId(stripe), slots }],
    };
    let part = |vdisk, in_footer, references: &[u64]| CommitVdisk {
        vdisk: VdiskId(vdisk),
        epoch: Epoch(1),
        struck: false,
        in_footer,
        has_pieces: false,
        releases: Vec::new(),
        entries: Vec::new(),
        references: references.iter().copied().map(StripeId).collect(),
        run: None,
    };
    let run = |vdisk, frontier, unreferenced: &[u64]| CommitVdisk {
        run: Some(MapRun {
            frontier,
            pieces: Vec::new(),
            unreferenced: unreferenced.iter().copied().map(StripeId).collect(),
        }),
        ..part(vdisk, false, &[])
    };
    let commit = |stripe, slots, vdisks| {
        let (stripe, incarnation) = (StripeId(stripe), Incarnation(1));
        Control::Commit(Commit { stripe, incarnation, slots, shards_missing: 0, vdisks })
    };
    for vdisk in [1, 2] {
        apply(&mut catalog, seal(vdisk));
    }
    apply(&mut catalog, grant(1, places(1)));
    for identity in 2..7 {
        apply(&mut catalog, grant(identity, Vec::new()));
    }
    let (first, _) = apply(&mut catalog, commit(1, places(1), vec![part(1, true, &[])]));
    // The second vdisk refers to it, and the first leaves it: it stays.
    let (second, _) = apply(&mut catalog, commit(2, Vec::new(), vec![part(2, false, &[1])]));
    let freed = apply(&mut catalog, commit(3, Vec::new(), vec![run(1, first, &[1])])).1;
    assert_eq!(freed, []);
    assert_eq!(catalog.holders(&[StripeId(1)]).unwrap(), [vec![VdiskId(2)]]);
    // A frontier before the reference says nothing about it.
    let freed = apply(&mut catalog, commit(4, Vec::new(), vec![run(2, first, &[1])])).1;
    assert_eq!(freed, []);
    // One commit refers to it for one vdisk, and leaves it for the other.
    let both = vec![part(1, false, &[1]), run(2, second, &[1])];
    let (third, freed) = apply(&mut catalog, commit(5, Vec::new(), both));
    assert_eq!(freed, []);
    assert_eq!(catalog.holders(&[StripeId(1)]).unwrap(), [vec![VdiskId(1)]]);
    let freed = apply(&mut catalog, commit(6, Vec::new(), vec![run(1, third, &[1])])).1;
    assert_eq!(freed, places(1));
    assert_eq!(catalog.stripe(StripeId(1)).unwrap(), None);
}

/// C16: shards come to lie elsewhere once, and only of a stripe that is as it was when they were made.
#[test]
fn shards_are_swapped_by_generation_and_no_stripe_is_revived() {
    let mut catalog = open(&MemoryStorage::new());
    let slot =
        |drive, slot| SlotPlace { drive: DriveId(drive), slot: SlotIndex(slot), generation: 1 };
    let loan = |loan, place| Control::Grant {
        incarnation: Incarnation::DATANODE,
        stripes: vec![GrantedStripe { stripe: StripeId(loan), slots: vec![place] }],
    };
    let swap = |generation, loan, shard, place| {
        let (stripe, loan, shards) = (StripeId(1), StripeId(loan), vec![(shard, place)]);
        Control::Swap(Swap { stripe, generation, loan, shards })
    };
    let part = CommitVdisk {
        vdisk: VdiskId(1),
        epoch: Epoch(1),
        struck: false,
        in_footer: true,
        has_pieces: false,
        releases: Vec::new(),
        entries: Vec::new(),
        references: Vec::new(),
        run: None,
    };
    let commit = Commit {
        stripe: StripeId(1),
        incarnation: Incarnation(1),
        slots: places(1),
        shards_missing: 0b100,
        vdisks: vec![part],
    };
    let granted = vec![GrantedStripe { stripe: StripeId(1), slots: places(1) }];
    let mut position = 0;
    let mut apply = |catalog: &mut Catalog, control: Control| {
        position += 1;
        catalog.apply(&[(Position(position), control)]).unwrap().freed
    };
    apply(&mut catalog, Control::Grant { incarnation: Incarnation(1), stripes: granted });
    apply(&mut catalog, Control::Commit(commit));
    // Its shard 2 was never written, drive 0 is lost: both at once, the most endangered.
    let all =
        |catalog: &Catalog, lost: &[DriveId]| catalog.endangered(lost, StripeId(0), 9).unwrap();
    assert_eq!(all(&catalog, &[]), (vec![(StripeId(1), 1)], None));
    assert_eq!(all(&catalog, &[DriveId(0)]), (vec![(StripeId(1), 2)], None));
    assert_eq!(all(&catalog, &[DriveId(0), DriveId(1)]), (vec![], None), "it cannot be solved");
    assert_eq!(catalog.endangered(&[], StripeId(0), 0).unwrap(), (vec![], Some(StripeId(1))));
    for (number, place) in [(5, slot(7, 0)), (6, slot(8, 0)), (7, slot(9, 0))] {
        apply(&mut catalog, loan(number, place));
    }
    assert_eq!(apply(&mut catalog, swap(0, 5, 2, slot(7, 0))), [places(1)[2]]);
    let row = catalog.stripe(StripeId(1)).unwrap().unwrap();
    assert_eq!((row.slots[2], row.generation, row.shards_missing), (slot(7, 0), 1, 0));
    assert_eq!(all(&catalog, &[]), (vec![], None));
    // Once more; and one that was made before.
    assert_eq!(apply(&mut catalog, swap(0, 5, 2, slot(7, 0))), []);
    assert_eq!(apply(&mut catalog, swap(0, 6, 0, slot(8, 0))), [slot(8, 0)]);
    assert_eq!(catalog.stripe(StripeId(1)).unwrap(), Some(row));
    // The stripe ends: nothing brings it back.
    apply(&mut catalog, Control::Delete { vdisk: VdiskId(1), epoch: Epoch(1) });
    assert_eq!(apply(&mut catalog, swap(1, 7, 0, slot(9, 0))), [slot(9, 0)]);
    assert_eq!(catalog.stripe(StripeId(1)).unwrap(), None);
    assert!(catalog.resident().unwrap().used.values().flatten().all(|word| *word == 0));
}
