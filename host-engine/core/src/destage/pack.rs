//! A stripe's bytes: frames in their places, footer, parity, slot headers; and their way to the
//! drives. In units of about 50 µs, between which other work goes on.

use super::plan::Item;
use super::{Destage, GivenUp, Plan};
use crate::core::Shared;
use crate::stats::Event;
use bytes::Bytes;
use cleave_format::FormatError;
use cleave_format::control::GrantedStripe;
use cleave_format::footer::{self, Fingerprint, FooterContent, FooterEntry, Place};
use cleave_format::frame;
use cleave_format::ids::{BlockIndex, Version};
use cleave_format::layout::{BLOCK, COLUMN, COLUMNS, PARITY_SHARDS, SHARD, SLOT_HEADER};
use cleave_format::record::EntryKind;
use cleave_format::slot::{SlotHeader, column_checksums};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Priority;
use cleave_runtime::links::{Class, LANES};
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::Queue;
use cleave_wire::{ControllerMessage, HostMessage, ShardFault};
use std::rc::Rc;

/// Frames that are placed in one unit of work.
const FRAMES_A_UNIT: usize = 16;
/// Blocks that are hashed in one unit of work, when their fingerprints are missing.
const HASHES_A_UNIT: usize = 8;

/// A slot's header page and its shard.
pub(super) type Image = (Bytes, Bytes);

/// Makes the slot images of a stripe, data shards first; `None` when a vdisk in it was forgotten, or a
/// frame in it is damaged: that one is in no later plan.
pub(super) async fn pack(
    shared: &Rc<Shared>,
    grant: &GrantedStripe,
    plan: &Plan,
) -> Option<Vec<Image>> {
    let data_shards = grant.data_shards();
    let mut section = vec![0; data_shards * SHARD];
    let mut entries = Vec::with_capacity(plan.pieces.len() + plan.items.len());
    for (index, piece) in plan.pieces.iter().enumerate() {
        let place = Place { offset: piece.offset, length: piece.frame.len() as u32 };
        put(&mut section, grant, place, &piece.frame).expect("a piece was encoded just now");
        entries.push(FooterEntry {
            vdisk: piece.vdisk,
            block: BlockIndex(u64::from(piece.group)),
            version: Version::default(),
            content: FooterContent::MapPiece { place },
        });
        if index % FRAMES_A_UNIT == 0 {
            shared.executor.yield_now().await;
        }
    }
    let fingerprints = fingerprints(shared, plan).await?;
    let mut damaged = false;
    for (index, (item, fingerprint)) in plan.items.iter().zip(fingerprints).enumerate() {
        let blocks = u32::from(item.blocks);
        let content = match item.kind {
            EntryKind::Zero | EntryKind::Discard if is_planted(Planted::LoseZeroEntries) => {
                continue;
            }
            EntryKind::Zero => FooterContent::Zero { blocks },
            EntryKind::Discard => FooterContent::Discard { blocks },
            EntryKind::Frame | EntryKind::Reference => match item.reference() {
                Some((address, block_in_frame)) => {
                    FooterContent::Reference { address, block_in_frame, fingerprint }
                }
                None => {
                    let place = Place { offset: item.offset, length: item.frame.len() as u32 };
                    if let Err(error) = put(&mut section, grant, place, &item.frame) {
                        quarantine(shared, item, &error);
                        damaged = true;
                    }
                    FooterContent::Frame { place, block_in_frame: 0, fingerprint }
                }
            },
        };
        let (vdisk, version) = (item.vdisk, item.version);
        entries.push(FooterEntry { vdisk, block: item.slice.block(item.block), version, content });
        if index % FRAMES_A_UNIT == 0 {
            shared.executor.yield_now().await;
        }
    }
    if damaged {
        return None;
    }
    let footer = footer::encode(grant.stripe, data_shards, shared.config.incarnation, &entries);
    let start = section.len() - footer.len();
    section[start..].copy_from_slice(&footer);
    let parity = parity(shared, &section).await;
    let section = Bytes::from(section);
    let mut images = Vec::with_capacity(grant.slots.len());
    for (shard, place) in grant.slots.iter().enumerate() {
        shared.executor.yield_now().await;
        let data = match shard.checked_sub(data_shards) {
            None => section.slice(shard * SHARD..(shard + 1) * SHARD),
            Some(index) => parity[index].clone(),
        };
        let header = SlotHeader {
            cluster: shared.config.cluster,
            stripe: grant.stripe,
            shard: shard as u8,
            data_shards: data_shards as u8,
            place: *place,
            columns: column_checksums(&data),
        };
        let mut page = vec![0; SLOT_HEADER];
        header.encode(&mut page);
        images.push((Bytes::from(page), data));
    }
    Some(images)
}

/// Copies a frame to its place and binds its checksum to it (C3).
fn put(
    section: &mut [u8],
    grant: &GrantedStripe,
    place: Place,
    bytes: &[u8],
) -> Result<(), FormatError> {
    let start = place.offset as usize;
    let target = &mut section[start..start + place.length as usize];
    target.copy_from_slice(bytes);
    if is_planted(Planted::ChecksumWithoutAddress) {
        return frame::check_in_log(target).map(drop);
    }
    frame::place(target, &place.address(grant.stripe)).map(drop)
}

/// Keeps a frame that cannot be read back out of stripes, and says so: the others go on.
fn quarantine(shared: &Shared, item: &Item, error: &dyn std::fmt::Display) {
    let mut state = shared.state.borrow_mut();
    if !item.nodes().any(|node| state.buffer.quarantine(&node)) {
        return;
    }
    let (vdisk, block) = (item.vdisk, item.slice.block(item.block));
    tracing::error!(%vdisk, block = block.0, %error, "a logged block cannot be destaged; it stays in the log, and reads of it fail, until it is written again");
    state.stats.damaged += 1;
    state.events.push_back(Event::Damaged { vdisk, block });
}

/// Fingerprints of the plan's frames: as computed when they were taken, or else from their content.
async fn fingerprints(shared: &Rc<Shared>, plan: &Plan) -> Option<Vec<Fingerprint>> {
    let mut fingerprints = Vec::with_capacity(plan.items.len());
    let (mut hashed, mut damaged) = (0, false);
    for item in &plan.items {
        let known = {
            let state = shared.state.borrow();
            let record = state.buffer.get(item.record);
            record.and_then(|record| record.entries[usize::from(item.entry)].fingerprint)
        };
        let fingerprint = match item.fingerprint.or(known) {
            Some(fingerprint) => fingerprint,
            None if item.frame.is_empty() => Fingerprint::default(),
            None => {
                hashed += 1;
                if hashed % HASHES_A_UNIT == 0 {
                    shared.executor.yield_now().await;
                }
                let mut state = shared.state.borrow_mut();
                let codec = state.vdisks.get(&item.vdisk)?.codec;
                let mut block = [0; BLOCK];
                let codec = &mut state.codecs[codec].1;
                match codec.decode(&item.frame, &mut block) {
                    Ok(_) => codec.fingerprint(&block),
                    Err(error) => {
                        drop(state);
                        quarantine(shared, item, &error);
                        damaged = true;
                        Fingerprint::default()
                    }
                }
            }
        };
        fingerprints.push(fingerprint);
    }
    (!damaged).then_some(fingerprints)
}

/// The two parity shards, column by column.
async fn parity(shared: &Rc<Shared>, section: &[u8]) -> [Bytes; PARITY_SHARDS] {
    let (mut first, mut second) = (vec![0; SHARD], vec![0; SHARD]);
    for column in 0..COLUMNS {
        shared.executor.yield_now().await;
        let range = column * COLUMN..(column + 1) * COLUMN;
        let data: Vec<&[u8]> = section.chunks(SHARD).map(|shard| &shard[range.clone()]).collect();
        let parity = [&mut first[range.clone()], &mut second[range.clone()]];
        shared.coder.borrow_mut().encoder.encode(&data, parity);
    }
    [first.into(), second.into()]
}

impl Destage {
    /// Writes the shards; returns which one is missing, at most one (C16).
    pub(super) async fn write_shards(
        &self,
        grant: &GrantedStripe,
        images: Vec<Image>,
    ) -> Result<u16, GivenUp> {
        let results: Queue<(usize, Result<(), ShardFault>)> = Queue::default();
        let shards_max = self.shared.config.destage.shards_max.max(1);
        let (mut on_their_way, mut faults) = (0, Vec::new());
        let count = images.len();
        for (shard, (header, data)) in images.into_iter().enumerate() {
            while on_their_way >= shards_max {
                let (shard, result) = results.pop().await;
                on_their_way -= 1;
                faults.extend(result.err().map(|fault| (shard, fault)));
            }
            if faults.len() > 1 && !is_planted(Planted::CommitTooFewShards) {
                break;
            }
            on_their_way += 1;
            let (shared, results) = (Rc::clone(&self.shared), results.clone());
            let (stripe, place) = (grant.stripe, grant.slots[shard]);
            self.shared.executor.spawn(Priority::Background, async move {
                let ask = |request| HostMessage::WriteShard {
                    request,
                    stripe,
                    shard: shard as u8,
                    place,
                };
                let lane = (shard % usize::from(LANES)) as u8;
                let reply = shared.request(Class::Bulk, lane, ask, &[header, data]).await;
                let result = match reply.message {
                    ControllerMessage::ShardWritten { result, .. } => result,
                    _ => Err(ShardFault::Io),
                };
                reached(Point::HostShardWritten);
                results.push((shard, result));
            });
        }
        while on_their_way > 0 {
            let (shard, result) = results.pop().await;
            on_their_way -= 1;
            faults.extend(result.err().map(|fault| (shard, fault)));
        }
        let no_space = faults.iter().any(|(_, fault)| *fault == ShardFault::NoSpace);
        match faults.as_slice() {
            [] => Ok(0),
            [(shard, fault)] if !no_space => {
                tracing::warn!(stripe = %grant.stripe, shard, %fault, "a stripe lacks a shard");
                Ok(1 << shard)
            }
            faults if !no_space && is_planted(Planted::CommitTooFewShards) => {
                Ok(faults.iter().fold(0, |missing, (shard, _)| missing | 1 << shard))
            }
            faults => {
                let (stripe, lost) = (grant.stripe, faults.len());
                tracing::warn!(%stripe, lost, of = count, ?faults, "a stripe is given up");
                Err(match no_space {
                    true => GivenUp::NoSpace("no space behind the drives".to_owned()),
                    false => GivenUp::Again,
                })
            }
        }
    }
}
