//! The crash matrix, some places of each subject; all of them with `CLEAVE_MATRIX=all`.

use cleave_matrix::{Extent, crash, units};

#[test]
fn a_power_cut_anywhere_loses_nothing() {
    let threads = units::processors();
    let tally = units::play(crash::units(), Extent::of_environment(), "", threads, || {}, |_| {});
    println!("{tally}");
    assert!(tally.failures().is_empty(), "{tally}");
    // A matrix that cuts nothing proves nothing.
    assert!(tally.sum("cuts") > 1000, "{tally}");
}
