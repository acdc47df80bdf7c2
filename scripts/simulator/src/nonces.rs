//! The judge of nonces: a key, incarnation, core and counter name one content, ever (C29).
//!
//! Looks at every stripe that the drives still hold, committed or not, freed or not: whoever reads a lost
//! drive sees them all. The same frame in two stripes is none: one of them was given up.

use crate::cluster::{Cluster, identity};
use cleave_format::footer::{self, FooterContent};
use cleave_format::frame::{self, FRAME_HEADER, FrameHeader};
use cleave_format::ids::{Incarnation, StripeId};
use cleave_format::layout::{PARITY_SHARDS, SHARD, SLOT, SLOT_HEADER};
use cleave_format::slot::SlotHeader;
use cleave_format::superblock::{FIRST_SLOT, Superblock};
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::num::NonZeroU32;

/// What names a frame's content.
type Nonce = (Option<NonZeroU32>, Incarnation, u16, u64);

/// Looks at every frame at rest. Nothing may be on its way to a drive.
pub fn judge(cluster: &Cluster) {
    let mut known: BTreeMap<Nonce, (StripeId, u64)> = BTreeMap::new();
    for (stripe, section) in sections(cluster) {
        // Damage is another judge's.
        let Ok(entries) = footer::decode(stripe, &section) else { continue };
        for entry in entries {
            let (FooterContent::Frame { place, .. } | FooterContent::MapPiece { place }) =
                entry.content
            else {
                continue;
            };
            let bytes = section
                .get(place.offset as usize..)
                .and_then(|rest| rest.get(..place.length as usize));
            let Some(bytes) = bytes else { continue };
            let Ok(header) = frame::check_at(bytes, &place.address(stripe)) else { continue };
            let FrameHeader { key, incarnation, core, counter, .. } = header;
            let mut content = DefaultHasher::new();
            content.write(&bytes[FRAME_HEADER..]);
            let content = content.finish();
            let nonce = (key, incarnation, core, counter);
            match known.get(&nonce) {
                None => drop(known.insert(nonce, (stripe, content))),
                Some((_, same)) if *same == content => {}
                Some((other, _)) => {
                    cluster.journal.fail(format!(
                        "frames of stripes {other} and {stripe} have the same nonce, counter {counter} of \
                         incarnation {incarnation}, and differ (C29)"
                    ));
                    return;
                }
            }
        }
    }
}

/// The data sections of all stripes of which every data shard stands in a slot.
fn sections(cluster: &Cluster) -> Vec<(StripeId, Vec<u8>)> {
    let mut shards: BTreeMap<StripeId, BTreeMap<usize, (usize, u64)>> = BTreeMap::new();
    let mut wide: BTreeMap<StripeId, usize> = BTreeMap::new();
    for (number, drive) in cluster.drives.iter().enumerate() {
        let superblock = Superblock::for_size(identity(&cluster.plan, number), drive.capacity());
        let slots = u64::from(superblock.expect("drives are large enough").slots);
        let pages = drive.stored_pages().into_iter();
        let taken: BTreeSet<u64> =
            pages.filter_map(|page| Some(page.checked_sub(FIRST_SLOT)? / SLOT as u64)).collect();
        for slot in taken.into_iter().filter(|slot| *slot < slots) {
            let place = FIRST_SLOT + slot * SLOT as u64;
            let Ok(header) = SlotHeader::decode(&drive.peek(place, SLOT_HEADER)) else { continue };
            let start = place + SLOT_HEADER as u64;
            shards
                .entry(header.stripe)
                .or_default()
                .insert(usize::from(header.shard), (number, start));
            wide.insert(header.stripe, usize::from(header.data_shards));
        }
    }
    let mut sections = Vec::new();
    for (stripe, places) in shards {
        let data_shards = wide[&stripe];
        let whole = data_shards > 0 && (0..data_shards).all(|shard| places.contains_key(&shard));
        if whole && places.keys().all(|shard| *shard < data_shards + PARITY_SHARDS) {
            let read = |shard: usize| {
                let (drive, start) = places[&shard];
                cluster.drives[drive].peek(start, SHARD)
            };
            sections.push((stripe, (0..data_shards).flat_map(read).collect()));
        }
    }
    sections
}
