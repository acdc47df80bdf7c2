//! The judge of what is freed and what is not (C20, C21): what the catalog lists for a vdisk is what its
//! owner knows of, so that some run will free it; and what the owner's map names, and its current pieces lie
//! in, is listed, so that nothing frees it.
//!
//! Looks only while both controllers are down after a clean stop, and the host engine still runs. Commits whose
//! answers it did not get are beyond the position that its map reflects.

use crate::cluster::Cluster;
use cleave_catalog::{Catalog, CatalogError, Owner};
use cleave_format::ids::{Position, StripeId, VdiskId};
use cleave_host_core::KnownStripes;
use cleave_host_core::shares::Shares;
use std::collections::BTreeMap;
use std::path::Path;

/// Stripes, or bytes, of a page.
const PAGE: usize = 1 << 16;

/// Looks at all vdisks.
pub fn judge(cluster: &Cluster) {
    let Some(host) = &cluster.host else { return };
    let owner = Owner { cluster: cluster.plan.cluster, datanode: cluster.plan.datanode };
    let storage = cluster.catalogs[0].open();
    let catalog = match Catalog::open_storage(storage, Path::new("catalog 0"), owner) {
        Ok(catalog) => catalog,
        Err(error) => return cluster.journal.fail(format!("a catalog cannot be opened: {error}")),
    };
    let (mut listed, mut unnamed) = (0, 0);
    for guest in cluster.guests.iter() {
        let vdisk = guest.borrow().vdisk();
        for share in Shares::new(vdisk, cluster.plan.shares).identities() {
            let Some(known) = host.known_stripes(share) else { continue };
            if !known.counted {
                let what =
                    format!("vdisk {share}: its map is not counted, so that nothing is freed");
                return cluster.journal.fail(what);
            }
            match look(&catalog, share, &known) {
                Ok(Ok(count)) => listed += count,
                Ok(Err(what)) => return cluster.journal.fail(format!("vdisk {share}: {what}")),
                Err(error) => {
                    return cluster.journal.fail(format!("the catalog cannot be read: {error}"));
                }
            }
            unnamed += known.unnamed.len();
        }
    }
    cluster.journal.note(format!("{listed} stripes are listed, {unnamed} could be left"));
}

fn look(
    catalog: &Catalog,
    vdisk: VdiskId,
    known: &KnownStripes,
) -> Result<Result<usize, String>, CatalogError> {
    let mut listed: BTreeMap<StripeId, Position> = BTreeMap::new();
    let mut from = Some(StripeId(0));
    while let Some(first) = from {
        let (some, next) = catalog.stripes_of(vdisk, first, PAGE)?;
        listed.extend(some);
        from = next;
    }
    for (stripe, position) in &listed {
        let by_host = known.named.contains(stripe) || known.unnamed.contains(stripe);
        if *position <= known.applied && !by_host {
            return Ok(Err(format!("stripe {stripe}, listed since {position}, is leaked (C20)")));
        }
    }
    if let Some(stripe) = known.named.iter().find(|stripe| !listed.contains_key(stripe)) {
        return Ok(Err(format!("stripe {stripe} is not listed, though its map names it (C20)")));
    }
    let mut cursor = None;
    loop {
        let page = catalog.map_page(vdisk, cursor, PAGE)?;
        let pieces = page.pieces.iter().filter_map(|piece| Some(piece.address?.stripe));
        let footers = page.commits.iter().filter_map(|commit| Some(commit.stripe.as_ref()?.stripe));
        for stripe in pieces.chain(footers) {
            if !listed.contains_key(&stripe) {
                let what = format!("stripe {stripe} is not listed, though opening needs it (C21)");
                return Ok(Err(what));
            }
        }
        cursor = page.next;
        if cursor.is_none() {
            return Ok(Ok(listed.len()));
        }
    }
}
