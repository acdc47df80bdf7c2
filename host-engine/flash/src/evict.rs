//! Making room: of the oldest zones, parts that were read since get a second life in the open zone, the others go.
//!
//! At most half a zone is moved, the hottest parts first, each a little cooler than it was, so that every eviction
//! makes room, and what is not read again goes the next time. What is moved is read from its old place
//! until the new one is written. The header says which parts a zone holds; when it cannot be read, the
//! table is searched for them, and all of them go.

use crate::Inner;
use crate::device::{Device, Put};
use crate::port::Port;
use crate::state::{DeviceKey, State};
use crate::table::{DIVISIONS, Found};
use bytes::Bytes;
use cleave_format::flash::{FLASH_COPIES, FLASH_PAGE, StoredPart, ZoneHeader, choose_header};
use cleave_format::layout::PART;
use cleave_runtime::sync::promise;
use std::cmp::Reverse;
use std::rc::Rc;

/// Zones that are kept ready: one to be filled, one for what eviction moves.
const READY: usize = 2;
/// Parts in memory on their way from one zone to another.
const MOVES: usize = 4;

/// A part that is worth moving.
#[derive(Clone, Copy)]
struct Hot {
    place: u16,
    part: StoredPart,
    heat: u8,
}

impl Device {
    fn victim(&mut self) -> Option<u32> {
        let wanted = self.phase == crate::device::Phase::Ready && self.ready_zones() < READY;
        if wanted { self.take_victim() } else { None }
    }
}

/// Evicts zones of a device whenever few are ready.
pub(crate) async fn evict(inner: Rc<Inner>, key: DeviceKey) {
    let Some((port, changed)) = inner.task_of(key) else { return };
    loop {
        let victim = changed.until(|| {
            let mut state = inner.state.borrow_mut();
            match state.device(key) {
                Some(device) => device.victim().map(Some),
                None => Some(None),
            }
        });
        let Some(zone) = victim.await else { return };
        evict_zone(&inner, &port, key, zone).await;
    }
}

async fn evict_zone(inner: &Rc<Inner>, port: &Port, key: DeviceKey, zone: u32) {
    let empty = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        device.zones[zone as usize].live == 0
    };
    if !empty && let Some(header) = read_header(inner, port, key, zone).await {
        let hot = inner.state.borrow_mut().hot_parts(key, zone, &header);
        move_parts(inner, port, key, zone, hot).await;
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        let first = device.number(zone, 0);
        let parts = header.places.iter().enumerate();
        for (index, part) in parts.filter_map(|(index, place)| Some((index, place.part()?))) {
            let dropped = state.drop_part(part.stripe, part.part, first + index as u32);
            state.stats.parts_evicted += u64::from(dropped);
        }
    }
    let left = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        let numbers = device.number(zone, 0)..device.number(zone + 1, 0);
        (device.zones[zone as usize].live > 0).then_some(numbers)
    };
    if let Some(numbers) = left {
        for division in 0..DIVISIONS {
            inner.state.borrow_mut().sweep(division, &numbers);
            inner.executor.yield_now().await;
        }
    }
    let mut state = inner.state.borrow_mut();
    state.stats.zones_evicted += 1;
    if let Some(device) = state.device(key) {
        assert_eq!(device.zones[zone as usize].live, 0, "nothing names a zone that is free");
        device.set_free(zone);
    }
}

/// The newest header of a zone that is closed, if it is the one of its filling.
pub(crate) async fn read_header(
    inner: &Inner,
    port: &Port,
    key: DeviceKey,
    zone: u32,
) -> Option<ZoneHeader> {
    let offset = inner.state.borrow_mut().device(key)?.zone_offset(zone);
    let pages = port.read(offset, FLASH_COPIES * FLASH_PAGE).await;
    let mut state = inner.state.borrow_mut();
    match pages {
        Ok(pages) => {
            let device = state.device(key)?;
            let found = choose_header(&pages, &device.superblock, device.share.on_device(zone))?;
            (found.sequence == device.zones[zone as usize].sequence).then_some(found)
        }
        Err(error) => {
            state.failed(key, Some(offset), &error);
            None
        }
    }
}

impl State {
    /// What of a zone is worth moving, the hottest first.
    fn hot_parts(&mut self, key: DeviceKey, zone: u32, header: &ZoneHeader) -> Vec<Hot> {
        let Some(device) = self.devices.get(&key) else { return Vec::new() };
        // Without a zone to move to there would be no end to it.
        let most = if device.ready_zones() > 0 { usize::from(device.places()) / 2 } else { 0 };
        let first = device.number(zone, 0);
        let places = header.places.iter().enumerate();
        let mut hot: Vec<Hot> = places
            .filter_map(|(index, place)| {
                let part = *place.part()?;
                let found = self.table.get(part.stripe, part.part)?;
                let live = found.place == first + index as u32 && found.heat > 0;
                live.then_some(Hot { place: index as u16, part, heat: found.heat })
            })
            .collect();
        hot.sort_by_key(|hot| Reverse(hot.heat));
        hot.truncate(most);
        hot
    }

    /// Queues a part for its second life; false when it is where it was no more.
    fn queue_move(&mut self, key: DeviceKey, put: Put) -> bool {
        let from = Found { place: put.from.expect("a move has a place"), heat: 0 };
        let there = self.table.get(put.stripe, put.part);
        let there = there.is_some_and(|found| found.place == from.place);
        match self.device(key) {
            Some(device) if there => {
                device.moves.push_back(put);
                device.changed.notify();
                true
            }
            _ => false,
        }
    }
}

/// Copies parts to the open zone; returns when the table names the copies.
async fn move_parts(inner: &Rc<Inner>, port: &Port, key: DeviceKey, zone: u32, hot: Vec<Hot>) {
    for some in hot.chunks(MOVES) {
        let (latch, written) = promise();
        let latch = Rc::new(latch);
        for Hot { place, part, heat } in some {
            let (offset, number) = {
                let mut state = inner.state.borrow_mut();
                let Some(device) = state.device(key) else { return };
                (device.place_offset(zone, *place), device.number(zone, *place))
            };
            let bytes = match port.read(offset, PART).await {
                Ok(bytes) => bytes,
                Err(error) => {
                    let mut state = inner.state.borrow_mut();
                    if state.drop_part(part.stripe, part.part, number) {
                        state.retire_place(key, zone, *place);
                    }
                    state.failed(key, Some(offset), &error);
                    continue;
                }
            };
            // Rot is not carried on.
            if crc32c::crc32c(&bytes) != part.crc {
                let mut state = inner.state.borrow_mut();
                if state.drop_part(part.stripe, part.part, number) {
                    state.lost_content(key, zone, *place);
                }
                continue;
            }
            let put = Put {
                stripe: part.stripe,
                part: part.part,
                bytes: Bytes::copy_from_slice(&bytes[..PART]),
                heat: heat - 1,
                from: Some(number),
                attempts: 0,
                _latch: Some(Rc::clone(&latch)),
            };
            inner.state.borrow_mut().queue_move(key, put);
            inner.executor.yield_now().await;
        }
        drop(latch);
        // Kept or broken, the promise is over when all are written or given up.
        written.wait().await;
    }
}
