//! The judge of a cluster after a cut: it goes on, and nothing that was acknowledged is missing.
//!
//! Everything is read from the engine that lived through the cut, then from a new one, which has only what log,
//! catalog and pool hold, then from one over controllers that were stopped cleanly and started again. At rest
//! both catalogs must be the same, and every shard of every committed stripe whole and in its place.

use crate::rig::{CLUSTER, DRIVES, OWNER, Rig, identity};
use cleave_catalog::Catalog;
use cleave_catalog::tables::StripeRow;
use cleave_format::ids::StripeId;
use cleave_format::layout::{COLUMN, SHARD, SLOT_HEADER};
use cleave_format::slot::SlotHeader;
use cleave_format::superblock::Superblock;
use std::path::Path;

/// Looks at a cluster in which everything was started again.
///
/// # Panics
/// When something is not as promised.
pub fn judge(rig: &mut Rig) {
    rig.until("everything runs again", |rig| rig.is_mirrored() && rig.serves());
    read_all(rig, "after the cut");
    // A quarter of a stripe, which is as wide as the drives allow.
    let blocks = if rig.drives.len() > usize::from(DRIVES) { 366 } else { 300 };
    rig.destage((0..blocks).map(|block| block * 3 + 1));
    new_host(rig);
    read_all(rig, "by a new engine");
    rig.stop_controllers();
    at_rest(rig);
    rig.start_controllers();
    new_host(rig);
    rig.until("everything runs after a clean stop", |rig| rig.is_mirrored() && rig.serves());
    read_all(rig, "after a clean stop");
}

fn new_host(rig: &mut Rig) {
    rig.kill_host();
    rig.start_host();
    rig.until("a new engine serves", |rig| rig.serves() || rig.open_problem().is_some());
    assert_eq!(rig.open_problem(), None, "a new engine cannot open the vdisk");
}

fn read_all(rig: &mut Rig, when: &str) {
    let failed = rig.read();
    assert!(failed.is_empty(), "blocks cannot be read {when}: {failed:?}");
}

/// Both catalogs are the same, and committed stripes are whole. Nothing may run.
pub fn at_rest(rig: &Rig) {
    let catalogs = [0, 1].map(|number| {
        let storage = rig.catalogs[number].open();
        Catalog::open_storage(storage, Path::new("catalog"), OWNER).expect("a catalog opens")
    });
    let dumps = catalogs.each_ref().map(|catalog| (catalog.applied(), dump(catalog)));
    assert!(dumps[0] == dumps[1], "the catalogs differ");
    drop(catalogs);
    for (stripe, row) in stripes(rig) {
        for (shard, place) in row.slots.iter().enumerate() {
            assert!(usize::from(place.drive.0) < rig.drives.len());
            if rig.is_lost(place.drive) || row.shards_missing >> shard & 1 == 1 {
                continue;
            }
            let drive = &rig.drives[usize::from(place.drive.0)];
            let superblock =
                Superblock::for_size(identity(usize::from(place.drive.0)), drive.capacity());
            let offset = superblock.expect("drives are large enough").slot_offset(place.slot);
            let header = SlotHeader::decode(&drive.peek(offset, SLOT_HEADER));
            let header =
                header.unwrap_or_else(|error| panic!("stripe {stripe}, shard {shard}: {error}"));
            let same = header.check_identity(CLUSTER, stripe, shard, place);
            assert_eq!(same, Ok(()), "stripe {stripe}, shard {shard}");
            let bytes = drive.peek(offset + SLOT_HEADER as u64, SHARD);
            for (index, column) in bytes.chunks(COLUMN).enumerate() {
                let whole = header.check_column(index, column);
                assert_eq!(whole, Ok(()), "stripe {stripe}, shard {shard}, column {index}");
            }
        }
    }
}

/// The committed stripes that have slots, in order of age, as the first controller's catalog knows them. Nothing may
/// run.
pub fn stripes(rig: &Rig) -> Vec<(StripeId, StripeRow)> {
    let storage = rig.catalogs[0].open();
    let catalog = Catalog::open_storage(storage, Path::new("catalog"), OWNER);
    let catalog = catalog.expect("a catalog opens");
    let newest = catalog.resident().expect("a catalog is read").newest_stripe;
    let row = |stripe| {
        let row = catalog.stripe(stripe).expect("a catalog is read");
        row.filter(|row| !row.slots.is_empty()).map(|row| (stripe, row))
    };
    (1..=newest.0).map(StripeId).filter_map(row).collect()
}

/// All rows of a catalog.
pub fn dump(catalog: &Catalog) -> Vec<u8> {
    let mut dump = catalog.dump().expect("a catalog is read");
    let mut bytes = Vec::new();
    while let Some(piece) = dump.next_piece(1 << 20).expect("a catalog is read") {
        bytes.extend_from_slice(&piece);
    }
    bytes
}
