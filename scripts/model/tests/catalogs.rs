//! Catalogs and trimming (C11).

mod common;

use cleave_model::{CatalogBounds, CatalogFault, Catalogs};
use common::NONE;

const BOUNDS: CatalogBounds = CatalogBounds { entries: 3, ends: 3, breaks: 1, wipes: 1 };

fn broken(bounds: CatalogBounds, fault: Option<CatalogFault>) -> Vec<&'static str> {
    common::broken(&format!("{bounds:?}"), Catalogs { bounds, fault })
}

/// C11.
#[test]
fn an_entry_leaves_the_log_when_both_catalogs_have_it() {
    assert_eq!(broken(BOUNDS, None), NONE);
}

#[test]
fn planted_faults_are_found() {
    let faults = [
        CatalogFault::TrimByOwnCatalog,
        CatalogFault::ApplyUnmirrored,
        CatalogFault::NoCatalogCopy,
        CatalogFault::OldPeerCatalog,
    ];
    for fault in faults {
        assert_ne!(broken(BOUNDS, Some(fault)), NONE, "{fault:?} is not found");
    }
}

/// The same, further: minutes. `cargo test --release -p cleave-model -- --ignored`
#[test]
#[ignore = "takes minutes"]
fn further() {
    let bounds = CatalogBounds { entries: 4, ends: 4, breaks: 2, wipes: 1 };
    assert_eq!(broken(bounds, None), NONE);
}
