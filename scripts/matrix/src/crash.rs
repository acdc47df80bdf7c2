//! The crash matrix: power is cut at every device operation of everything that persists something.
//!
//! | Module | Persists |
//! | --- | --- |
//! | [`scenes`] | what a cluster does, one after the other; each machine is cut at each of its operations |
//! | [`databases`] | the catalog and the store alone: each transaction, and the recovery after a cut |
//! | [`drives`] | a drive's formatting |
//!
//! What must hold after a cut: the old state or the new one, whole; what was acknowledged is there; and
//! everything goes on.

pub mod databases;
pub mod drives;
pub mod judge;
pub mod scenes;

use crate::units::Unit;

/// All of the matrix; what takes longest comes first.
pub fn units() -> Vec<Unit> {
    let mut units = scenes::units();
    units.extend(databases::units());
    units.push(Unit::new("formatting of drives", drives::run));
    units
}
