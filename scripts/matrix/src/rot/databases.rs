//! The files of catalog and store: a damaged one is refused when it is opened, or holds what it held.
//!
//! A clean file and one that a crash left are damaged alike. Opening compares every page with its checksum; what
//! no checksum covers is space that is not in use, and what says how the file was closed.

use crate::crash::databases::{Database, catalog_history, store_history};
use crate::rot::Rot;
use crate::tally::{Extent, Tally};
use cleave_catalog::Catalog;
use cleave_catalog::storage::MemoryStorage;
use cleave_coordinator::RedbStore;

const PAGE: usize = 4096;
/// Bits of the first page, and pages, that are damaged when they are sampled.
const FEW: u64 = 300;

/// Plays both.
pub fn run(extent: Extent, only: &str, tally: &mut Tally) {
    play::<Catalog>("rot: catalog's file", catalog_history(), extent, only, tally);
    play::<RedbStore>("rot: store's file", store_history(), extent, only, tally);
}

fn play<D: Database>(
    subject: &str,
    history: Vec<(&'static str, D::Step)>,
    extent: Extent,
    only: &str,
    tally: &mut Tally,
) {
    if !subject.contains(only) {
        return;
    }
    let file = MemoryStorage::new();
    let mut database = D::on(&file).expect("it is created");
    let mut states = Vec::new();
    for (_, step) in &history {
        database.take(step).expect("there is power");
        states.push(database.state());
    }
    let wanted = database.state();
    // As a crash leaves it, then as a clean close does.
    let crashed = file.bytes();
    drop(database);
    for (how, good) in [("after a crash", crashed), ("closed", file.bytes())] {
        let mut look = |what: &'static str, at: usize, bad: Vec<u8>| {
            if bad == good {
                return;
            }
            let name = format!("{how}, {what} at {at}");
            let refused = tally.play(subject, &name, || {
                let file = MemoryStorage::new();
                file.replace(bad);
                match D::on(&file) {
                    Err(error) => {
                        assert!(!error.is_empty());
                        true
                    }
                    Ok(mut database) => {
                        let state = database.state();
                        let older = states.iter().position(|old| *old == state);
                        assert!(
                            state == wanted,
                            "opened with another content, of step {older:?} of {}",
                            states.len()
                        );
                        false
                    }
                }
            });
            tally.count(subject, what, 1);
            tally.count(subject, "refused", u64::from(refused == Some(true)));
        };
        for bit in extent.places(512 * 8, FEW) {
            let mut bad = good.clone();
            bad[(bit / 8) as usize] ^= 1 << (bit % 8);
            look("flipped bits of the header", (bit / 8) as usize, bad);
        }
        let used: Vec<usize> = (PAGE..good.len())
            .step_by(PAGE)
            .filter(|at| good[*at..*at + PAGE].iter().any(|byte| *byte != 0))
            .collect();
        for index in extent.places(used.len() as u64, FEW) {
            let at = used[index as usize];
            for byte in [0, 1, 5, 9, 40, 200, 1000, 4095] {
                let mut bad = good.clone();
                bad[at + byte] ^= 1 << (byte % 8);
                look("flipped bits of pages", at + byte, bad);
            }
            for rot in [Rot::Zeros, Rot::Ones] {
                let mut bad = good.clone();
                rot.strike(&mut bad[at..at + PAGE]);
                look("pages of zeros or ones", at, bad);
            }
            let other = used[(index as usize + 1) % used.len()];
            let mut bad = good.clone();
            bad[at..at + PAGE].copy_from_slice(&good[other..other + PAGE]);
            bad[other..other + PAGE].copy_from_slice(&good[at..at + PAGE]);
            look("swapped pages", at, bad);
        }
        for cut in extent.places(good.len() as u64 / PAGE as u64, 16) {
            // An empty file is refused where files are opened by name.
            if cut > 0 {
                look("truncations", cut as usize * PAGE, good[..cut as usize * PAGE].to_vec());
            }
        }
    }
}
