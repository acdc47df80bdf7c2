//! The rot matrix, some places of each structure; all of them with `CLEAVE_MATRIX=all`.

use cleave_matrix::{Extent, rot, units};

#[test]
fn damage_anywhere_is_found() {
    let threads = units::processors();
    let tally = units::play(rot::units(), Extent::of_environment(), "", threads, || {}, |_| {});
    println!("{tally}");
    assert!(tally.failures().is_empty(), "{tally}");
    // A matrix that damages nothing proves nothing.
    for what in ["flipped bits", "truncations", "other valid pieces", "swapped pages"] {
        assert!(tally.sum(what) > 0, "no {what}: {tally}");
    }
}
