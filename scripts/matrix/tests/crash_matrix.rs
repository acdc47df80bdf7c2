//! The crash matrix, some places of each subject; all of them with `CLEAVE_MATRIX=all`.

use cleave_matrix::{Extent, Tally, crash};

#[test]
fn a_power_cut_anywhere_loses_nothing() {
    let mut tally = Tally::default();
    crash::run(Extent::of_environment(), "", &mut tally);
    println!("{tally}");
    assert!(tally.failures().is_empty(), "{tally}");
    // A matrix that cuts nothing proves nothing.
    assert!(tally.sum("cuts") > 1000, "{tally}");
}
