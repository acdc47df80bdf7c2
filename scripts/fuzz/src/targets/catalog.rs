//! Catalogs of others: dumps that a controller sends, with values that nobody encoded, and damaged files.

use super::format::controls;
use crate::input::Input;
use cleave_catalog::storage::MemoryStorage;
use cleave_catalog::{Catalog, CatalogError, Cursor, Owner};
use cleave_format::control::Control;
use cleave_format::ids::*;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::{Once, OnceLock};

const OWNER: Owner = Owner { cluster: ClusterId([1; 16]), datanode: DatanodeId(1) };

fn open(storage: &MemoryStorage) -> Result<Catalog, CatalogError> {
    Catalog::open_storage(storage.open(), Path::new("fuzzed"), OWNER)
}

/// A catalog of every kind of row, but for those that a deletion ends.
fn example() -> (MemoryStorage, Catalog) {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage).expect("memory can be written");
    let mut records = controls();
    records.pop();
    let records: Vec<(Position, Control)> = (1..).map(Position).zip(records).collect();
    catalog.apply(&records).expect("memory can be written");
    (storage, catalog)
}

/// Looks at everything, and applies to it. Errors are answers.
fn look(catalog: &mut Catalog) -> Result<(), CatalogError> {
    let resident = catalog.resident();
    let _ = catalog.damage(&[DriveId(1), DriveId(2)]);
    let _ = catalog.endangered(&[DriveId(1), DriveId(2)], StripeId(0), 64);
    let _ = catalog.locate(&[StripeId(7), StripeId(8)]);
    let _ = catalog.stripe(StripeId(7));
    for vdisk in [4, 5] {
        let mut cursor = None;
        for _ in 0..8 {
            let Ok(page) = catalog.map_page(VdiskId(vdisk), cursor, 64) else { break };
            assert!(page.next.is_none() || page.next != cursor, "a page goes on");
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        let _ = catalog.map_page(VdiskId(vdisk), Some(Cursor::Commits(Position(u64::MAX))), 1);
    }
    if let Ok(mut dump) = catalog.dump() {
        while let Ok(Some(piece)) = dump.next_piece(256) {
            assert!(!piece.is_empty());
        }
    }
    let next = catalog.applied().0.saturating_add(1);
    let records: Vec<_> = (next..u64::MAX).map(Position).zip(controls()).collect();
    catalog.apply(&records)?;
    resident.map(drop)
}

/// Two pieces of a dump, which may say anything; then the catalog is used.
pub(super) fn rows(data: &[u8]) {
    let storage = MemoryStorage::new();
    let mut catalog = open(&storage).expect("memory can be written");
    let (first, second) = match data.split_first_chunk::<2>() {
        Some((length, rest)) => {
            rest.split_at(rest.len().min(usize::from(u16::from_le_bytes(*length))))
        }
        None => (data, data),
    };
    catalog.restore_begin().expect("memory can be written");
    let taken = [first, second].map(|piece| catalog.restore_piece(piece).is_ok());
    if taken == [true; 2] {
        let applied = catalog.restore_finish().expect("memory can be written");
        assert_eq!(catalog.applied(), applied);
    } else {
        catalog.restore_abandon().expect("nothing was written");
        assert_eq!(catalog.applied(), Position(0));
    }
    let _ = look(&mut catalog);
}

/// The example's dump, whole and in pieces.
pub(super) fn rows_seeds() -> Vec<Vec<u8>> {
    let (_, catalog) = example();
    let pieces = |bytes| {
        let mut dump = catalog.dump().expect("memory can be read");
        let mut pieces = Vec::new();
        while let Some(piece) = dump.next_piece(bytes).expect("memory can be read") {
            pieces.push(piece);
        }
        pieces
    };
    let nothing = cleave_format::encode(&Vec::<u64>::new());
    let join = |first: &[u8], second: &[u8]| {
        let length = u16::try_from(first.len()).expect("the example is small");
        [&length.to_le_bytes()[..], first, second].concat()
    };
    let small = pieces(1);
    let mut seeds = vec![join(&pieces(1 << 20)[0], &nothing)];
    seeds.extend(small.windows(2).map(|two| join(&two[0], &two[1])));
    seeds
}

thread_local! {
    static IN_LIBRARY: Cell<bool> = const { Cell::new(false) };
}

/// Whether `work` ended, other than by a panic of the database library, which says nothing of this code:
/// libraries may give a damaged file up like that, and the process that has it open ends.
pub(super) fn survives_library(work: impl FnOnce()) -> bool {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            let place = panic.location().map_or("", |location| location.file());
            if place.contains("/redb-") {
                IN_LIBRARY.set(true);
            } else {
                before(panic);
            }
        }));
    });
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(()) => true,
        Err(_) if IN_LIBRARY.take() => false,
        Err(panic) => resume_unwind(panic),
    }
}

fn image() -> &'static [u8] {
    static IMAGE: OnceLock<Vec<u8>> = OnceLock::new();
    IMAGE.get_or_init(|| {
        let (storage, catalog) = example();
        drop(catalog);
        storage.bytes()
    })
}

/// A file with parts of it overwritten, as the input says: a 4-byte place, a length, as many bytes, and so on.
pub(super) fn patched(image: &[u8], data: &[u8]) -> MemoryStorage {
    let mut image = image.to_vec();
    let mut input = Input(data);
    while !input.is_empty() {
        let at = input.word() as usize % image.len();
        let length = usize::from(input.byte());
        let bytes = input.bytes(length);
        let end = (at + bytes.len()).min(image.len());
        image[at..end].copy_from_slice(&bytes[..end - at]);
    }
    let storage = MemoryStorage::new();
    storage.replace(image);
    storage
}

/// Patches that put nothing anywhere, something at the beginning, and something where these values are.
pub(super) fn patches(image: &[u8], wanted: &[&[u8]]) -> Vec<Vec<u8>> {
    let patch = |at: usize, bytes: &[u8]| {
        [&(at as u32).to_le_bytes()[..], &[bytes.len() as u8], bytes].concat()
    };
    let mut seeds = vec![Vec::new(), patch(0, b"not a database"), patch(9, &[0xff])];
    for wanted in wanted {
        let places = image.windows(wanted.len()).enumerate();
        let found = places.filter(|(_, bytes)| bytes == wanted).map(|(at, _)| at);
        seeds.extend(found.take(3).map(|at| patch(at, &[0x41, 0xff])));
    }
    seeds
}

/// The example's file, damaged.
pub(super) fn file(data: &[u8]) {
    let storage = patched(image(), data);
    let opened = survives_library(|| {
        if let Ok(mut catalog) = open(&storage) {
            let _ = look(&mut catalog);
        }
    });
    // Whatever happened, nobody holds the file any more: opening it is an answer or an error again.
    if opened {
        survives_library(|| drop(open(&storage)));
    }
}

/// Nothing, the beginning, and the places of the drive's row in the last copy of its page and of the meta table's
/// names.
pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    patches(image(), &[b"cluster_high", b"format", b"stripes_of", &[2, 0, 0, 0, 1, 0, 0, 0]])
}
