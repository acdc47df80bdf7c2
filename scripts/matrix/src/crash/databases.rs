//! The databases alone: every transaction of a catalog and of a store, and their recovery.
//!
//! Each step of a history is one transaction. It is cut at each operation; then the database is opened again, and
//! that is cut at each of its operations too, until it opens. What it holds is the state before the step or
//! after it, and after it if it was answered. The step can be taken again, and leads to the same state.

use crate::crash::judge::dump;
use crate::rig::{OWNER, guard, settle_file};
use crate::tally::{Extent, Tally};
use crate::units::Unit;
use cleave_catalog::storage::MemoryStorage;
use cleave_catalog::{Catalog, Control};
use cleave_coordinator::{Answer, Operation, RedbStore, Transaction};
use cleave_format::address::Address;
use cleave_format::control::{
    Commit, CommitVdisk, DriveState, GrantedStripe, InlineEntry, MapRun, PiecePlace, Release,
    SlotPlace,
};
use cleave_format::ids::{
    DriveId, Epoch, HostId, Incarnation, Position, Sequence, SliceIndex, SlotIndex, StripeId,
    VdiskId, Version,
};
use cleave_runtime_sim::{Power, Remains};
use std::path::Path;

/// Cuts of a step when they are sampled.
const FEW: u64 = 8;

/// A database as the matrix sees it.
pub trait Database: Sized {
    /// A transaction.
    type Step;
    /// Opens what a file holds, or creates it.
    fn on(file: &MemoryStorage) -> Result<Self, String>;
    /// Takes a step; `Err`: it is not known whether it was taken.
    fn take(&mut self, step: &Self::Step) -> Result<(), String>;
    /// Everything that it holds.
    fn state(&mut self) -> Vec<u8>;
}

/// The steps of both, and a restore.
pub fn units() -> Vec<Unit> {
    vec![
        Unit::new("crash: catalog", |extent, only: &str, tally: &mut Tally| {
            play_history::<Catalog>("catalog", &catalog_history(), extent, only, tally);
        }),
        Unit::new("crash: store", |extent, only: &str, tally: &mut Tally| {
            play_history::<RedbStore>("store", &store_history(), extent, only, tally);
        }),
        Unit::new("crash: catalog: restore of a dump", play_restore),
    ]
}

fn play_history<D: Database>(
    kind: &str,
    history: &[(&str, D::Step)],
    extent: Extent,
    only: &str,
    tally: &mut Tally,
) {
    let mut before: Vec<u8> = Vec::new();
    for (name, step) in history {
        let subject = format!("crash: {kind}: {name}");
        let file = MemoryStorage::new();
        file.replace(before);
        // It is created here; a file gets its name only when that is over.
        drop(D::on(&file).expect("it opens"));
        if subject.contains(only) {
            play_step::<D>(&subject, &file.bytes(), step, extent, tally);
        }
        // On to the next step, with a clean close between.
        let mut database = D::on(&file).expect("it opens");
        database.take(step).expect("there is power");
        drop(database);
        before = file.bytes();
    }
}

fn play_step<D: Database>(
    subject: &str,
    before: &[u8],
    step: &D::Step,
    extent: Extent,
    tally: &mut Tally,
) {
    let Some((operations, old, new)) = tally.play(subject, "no cut", || whole::<D>(before, step))
    else {
        return;
    };
    tally.count(subject, "operations", operations);
    for place in extent.places(operations, FEW) {
        let number = place + 1;
        for remains in Remains::all(number) {
            let mut recovery = 1;
            loop {
                let case = format!(
                    "cut at operation {number} of {operations} and {recovery} of the recovery, {remains:?} remains"
                );
                let played = tally.play(subject, &case, || {
                    cut::<D>(before, step, number, recovery, remains, &old, &new)
                });
                tally.count(subject, "cuts", 1);
                // Sampled, the recovery is cut at some operations only.
                recovery += if extent == Extent::Sampled { 5 } else { 1 };
                if played != Some(true) {
                    break;
                }
            }
        }
    }
}

/// A step without a cut: how many operations it takes, and the states before and after it.
fn whole<D: Database>(before: &[u8], step: &D::Step) -> (u64, Vec<u8>, Vec<u8>) {
    let (file, power) = fed(before);
    let mut database = D::on(&file).expect("it opens");
    let (old, start) = (database.state(), power.operations());
    database.take(step).expect("there is power");
    (power.operations() - start, old, database.state())
}

/// A step with a cut, and one in the recovery; whether the latter came.
fn cut<D: Database>(
    before: &[u8],
    step: &D::Step,
    number: u64,
    recovery: u64,
    remains: Remains,
    old: &[u8],
    new: &[u8],
) -> bool {
    let (file, power) = fed(before);
    let mut database = D::on(&file).expect("it opens");
    power.cut_at(number);
    let answered = database.take(step).is_ok();
    drop(database);
    assert!(power.is_out(), "the cut comes");
    settle_file(&file, remains);
    power.restore();
    power.cut_at(recovery);
    let again = D::on(&file);
    let was_cut = power.is_out();
    let mut database = match again {
        Ok(database) if !was_cut => database,
        Err(error) if !was_cut => panic!("it does not open: {error}"),
        interrupted => {
            drop(interrupted);
            settle_file(&file, remains);
            power.restore();
            D::on(&file).expect("it opens in the end")
        }
    };
    power.spare();
    let state = database.state();
    assert!(state == old || state == new, "neither the old nor the new state");
    assert!(state == new || !answered, "an answered transaction is lost");
    if state == old {
        database.take(step).expect("it goes on");
    }
    assert!(database.state() == new, "taken again, the step leads elsewhere");
    was_cut
}

fn fed(bytes: &[u8]) -> (MemoryStorage, Power) {
    let (file, power) = (MemoryStorage::new(), Power::default());
    file.replace(bytes.to_vec());
    guard(&file, &power);
    (file, power)
}

impl Database for Catalog {
    type Step = Vec<(Position, Control)>;

    fn on(file: &MemoryStorage) -> Result<Catalog, String> {
        let opened = Catalog::open_storage(file.open(), Path::new("catalog"), OWNER);
        opened.map_err(|error| error.to_string())
    }

    fn take(&mut self, step: &Self::Step) -> Result<(), String> {
        self.apply(step).map(drop).map_err(|error| error.to_string())
    }

    fn state(&mut self) -> Vec<u8> {
        dump(self)
    }
}

impl Database for RedbStore {
    type Step = Transaction;

    fn on(file: &MemoryStorage) -> Result<RedbStore, String> {
        let file = file.clone();
        let opened = RedbStore::on_storage(Path::new("store"), move || file.open());
        opened.map_err(|error| error.to_string())
    }

    fn take(&mut self, step: &Transaction) -> Result<(), String> {
        let answer = self.execute(&Operation::Transact(step.clone()));
        answer.map(drop).map_err(|error| error.to_string())
    }

    fn state(&mut self) -> Vec<u8> {
        match self.execute(&Operation::List { prefix: String::new() }) {
            Ok(Answer::List(listing)) => format!("{} {listing:?}", self.revision()).into_bytes(),
            other => panic!("a list was answered by {other:?}"),
        }
    }
}

/// A restore of a whole dump: nothing of it counts before its last transaction.
fn play_restore(extent: Extent, only: &str, tally: &mut Tally) {
    let subject = "crash: catalog: restore of a dump".to_owned();
    if !subject.contains(only) {
        return;
    }
    let source = MemoryStorage::new();
    let mut catalog = Catalog::on(&source).expect("it is created");
    for (_, step) in catalog_history() {
        catalog.take(&step).expect("there is power");
    }
    let mut dumped = catalog.dump().expect("it is read");
    let mut pieces = Vec::new();
    while let Some(piece) = dumped.next_piece(64).expect("it is read") {
        pieces.push(piece);
    }
    let wanted = dump(&catalog);
    let restore = |catalog: &mut Catalog| -> Result<(), cleave_catalog::CatalogError> {
        catalog.restore_begin()?;
        pieces.iter().try_for_each(|piece| catalog.restore_piece(piece))?;
        catalog.restore_finish().map(drop)
    };
    // Over a catalog that has something else in it.
    let target = MemoryStorage::new();
    let mut catalog = Catalog::on(&target).expect("it is created");
    let start =
        vec![(Position(1), Control::HostStart { host: HostId(9), incarnation: Incarnation(1) })];
    catalog.take(&start).expect("there is power");
    let old = dump(&catalog);
    drop(catalog);
    let before = target.bytes();
    let (file, power) = fed(&before);
    let mut catalog = Catalog::on(&file).expect("it opens");
    let from = power.operations();
    restore(&mut catalog).expect("there is power");
    let operations = power.operations() - from;
    tally.count(&subject, "operations", operations);
    for place in extent.places(operations, FEW) {
        for remains in Remains::all(place) {
            let name =
                format!("cut at operation {} of {operations}, {remains:?} remains", place + 1);
            tally.play(&subject, &name, || {
                let (file, power) = fed(&before);
                let mut catalog = Catalog::on(&file).expect("it opens");
                power.cut_at(place + 1);
                let restored = restore(&mut catalog).is_ok();
                drop(catalog);
                settle_file(&file, remains);
                power.restore();
                let mut catalog = Catalog::on(&file).expect("it opens again");
                let state = dump(&catalog);
                assert!(state == old || state == wanted, "neither the old nor the new catalog");
                assert!(state == wanted || !restored, "a restore that was finished is lost");
                restore(&mut catalog).expect("it can be restored again");
                assert!(dump(&catalog) == wanted);
            });
            tally.count(&subject, "cuts", 1);
        }
    }
}

/// What a store goes through.
pub fn store_history() -> Vec<(&'static str, Transaction)> {
    let large = vec![7; 60_000];
    vec![
        ("first record", Transaction::new().put("counter/incarnation", vec![1; 8])),
        ("several records", Transaction::new().put("a", vec![1]).put("b", large).put("c", vec![3])),
        ("compare and swap", Transaction::new().require("a", 2).put("a", vec![2; 100])),
        ("deletion", Transaction::new().delete("b").put("d", vec![4])),
    ]
}

/// What a catalog goes through: every kind of control record.
pub fn catalog_history() -> Vec<(&'static str, Vec<(Position, Control)>)> {
    let (vdisk, host, incarnation) = (VdiskId(1), HostId(1), Incarnation(5));
    let place =
        |drive, slot| SlotPlace { drive: DriveId(drive), slot: SlotIndex(slot), generation: 0 };
    let slots = |slot| (0..4).map(|drive| place(drive, slot)).collect::<Vec<_>>();
    let granted = |stripe| GrantedStripe { stripe: StripeId(stripe), slots: slots(stripe as u32) };
    let version = |sequence| Version { epoch: Epoch(1), sequence: Sequence(sequence) };
    let release = |first, last| Release {
        slice: SliceIndex(0),
        epoch: Epoch(1),
        first: Sequence(first),
        last: Sequence(last),
    };
    let part = |vdisk, run| CommitVdisk {
        vdisk,
        epoch: Epoch(1),
        struck: false,
        in_footer: true,
        has_pieces: false,
        references: Vec::new(),
        releases: vec![release(1, 4)],
        entries: Vec::new(),
        run,
    };
    let commit = |stripe, slots: Vec<SlotPlace>, vdisks| {
        Control::Commit(Commit {
            stripe: StripeId(stripe),
            incarnation,
            slots,
            shards_missing: 0,
            vdisks,
        })
    };
    let inline = CommitVdisk {
        in_footer: false,
        entries: vec![InlineEntry {
            slice: SliceIndex(0),
            block: 3,
            blocks: 2,
            version: version(5),
            reference: None,
        }],
        ..part(vdisk, None)
    };
    let address = Address { stripe: StripeId(3), offset: 0, length: 4096 };
    let run = MapRun {
        frontier: Position(6),
        pieces: vec![PiecePlace { group: 0, address: Some(address) }],
        unreferenced: vec![StripeId(1)],
    };
    let at = |position, control| (Position(position), control);
    vec![
        ("start of a host", vec![at(1, Control::HostStart { host, incarnation })]),
        (
            "seals",
            vec![
                at(2, Control::Seal { vdisk, epoch: Epoch(1), host, incarnation }),
                at(3, Control::Seal { vdisk: VdiskId(2), epoch: Epoch(1), host, incarnation }),
            ],
        ),
        (
            "grants",
            vec![at(4, Control::Grant { incarnation, stripes: (1..=6).map(granted).collect() })],
        ),
        (
            "commit of a stripe",
            vec![at(5, commit(1, slots(1), vec![part(vdisk, None), part(VdiskId(2), None)]))],
        ),
        ("commit without a stripe", vec![at(6, commit(2, Vec::new(), vec![inline]))]),
        (
            "map run",
            vec![at(
                8,
                commit(
                    3,
                    slots(3),
                    vec![CommitVdisk {
                        has_pieces: true,
                        references: vec![StripeId(1)],
                        ..part(vdisk, Some(run))
                    }],
                ),
            )],
        ),
        (
            "loss of a drive",
            vec![at(
                9,
                Control::Drive { drive: DriveId(2), state: DriveState::Lost, generation: 1 },
            )],
        ),
        ("end of grants", vec![at(10, Control::GrantEnd { stripes: vec![StripeId(4)] })]),
        ("deletion of a vdisk", vec![at(11, Control::Delete { vdisk, epoch: Epoch(1) })]),
        (
            "many records at once",
            (12..40)
                .map(|number| {
                    let incarnation = Incarnation(u64::from(number));
                    at(u64::from(number), Control::HostStart { host: HostId(number), incarnation })
                })
                .collect(),
        ),
    ]
}
