//! Reading a device's headers when it is added: what it holds is known before anything is written to it.
//!
//! Parts are in use as soon as their header was read. What the headers promise is not trusted further than a
//! frame's own check (C3), and only stripes that a map names are ever asked for.

use crate::Inner;
use crate::device::{Phase, ZoneState};
use crate::port::Port;
use crate::state::{DeviceKey, State};
use crate::stats::FlashEvent;
use crate::table::Found;
use crate::upkeep::is_tentative;
use cleave_format::flash::{FLASH_COPIES, FLASH_PAGE, PlaceState, ZoneHeader, choose_header};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Priority;
use cleave_runtime::sync::Queue;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

/// Headers that are read at a time.
const READERS: u32 = 16;

/// Reads all headers of a device's share, and puts it in use.
pub(crate) async fn scan(inner: Rc<Inner>, key: DeviceKey) {
    let Some((port, changed)) = inner.task_of(key) else { return };
    let zones = inner.state.borrow_mut().device(key).map_or(0, |device| device.zones.len() as u32);
    let (next, ended) = (Rc::new(Cell::new(0)), Queue::default());
    let readers = READERS.min(zones);
    for _ in 0..readers {
        let (inner, port, next, ended) =
            (Rc::clone(&inner), Rc::clone(&port), Rc::clone(&next), ended.clone());
        inner.executor.clone().spawn(Priority::Foreground, async move {
            while next.get() < zones {
                let zone = next.replace(next.get() + 1);
                scan_zone(&inner, &port, key, zone).await;
            }
            ended.push(());
        });
    }
    for _ in 0..readers {
        ended.pop().await;
    }
    inner.state.borrow_mut().scanned_all(key);
    changed.notify();
}

async fn scan_zone(inner: &Inner, port: &Port, key: DeviceKey, zone: u32) {
    let offset = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        device.zone_offset(zone)
    };
    let pages = port.read(offset, FLASH_COPIES * FLASH_PAGE).await;
    let mut state = inner.state.borrow_mut();
    match pages {
        Ok(pages) => {
            let Some(device) = state.device(key) else { return };
            let number = device.share.on_device(zone);
            let header = choose_header(&pages, &device.superblock, number);
            state.scanned(key, zone, header);
        }
        Err(error) => {
            // What it holds is not known, nor which header would be the newer one.
            if let Some(device) = state.device(key) {
                device.zones[zone as usize].state = ZoneState::Bad;
            }
            state.failed(key, Some(offset), &error);
        }
    }
}

impl State {
    /// A zone's header was read, or there is none.
    fn scanned(&mut self, key: DeviceKey, zone: u32, header: Option<ZoneHeader>) {
        let Some(device) = self.device(key) else { return };
        let Some(header) = header else {
            device.zones[zone as usize].state = ZoneState::Free;
            return;
        };
        let known = &mut device.zones[zone as usize];
        known.sequence = header.sequence;
        known.generation = header.generation;
        known.tentative = is_tentative(&header.places);
        known.state = ZoneState::Closed;
        device.sequence = device.sequence.max(header.sequence.saturating_add(1));
        let first = device.number(zone, 0);
        for (index, place) in header.places.iter().enumerate() {
            if *place == PlaceState::Retired {
                // Known since an earlier start: no news.
                if let Some(device) = self.device(key) {
                    device.retire_place(zone, index as u16);
                }
            }
            let Some(part) = place.part() else { continue };
            let known = self.table.get(part.stripe, part.part);
            let newer = known.is_none_or(|known| self.is_newer(key, header.sequence, known.place));
            if newer {
                let place = first + index as u32;
                self.install_at(part.stripe, part.part, Found { place, heat: 0 });
            }
        }
    }

    /// Whether a filling is newer than that of the zone in which a place lies.
    fn is_newer(&self, key: DeviceKey, sequence: u64, place: u32) -> bool {
        let Some((other, device)) = self.device_of(place) else { return true };
        let (zone, _) = device.place(place);
        other == key && device.zones[zone as usize].sequence < sequence
    }

    /// All headers were read.
    fn scanned_all(&mut self, key: DeviceKey) {
        let Some(device) = self.device(key) else { return };
        let zones = 0..device.zones.len() as u32;
        let mut closed: Vec<u32> = Vec::new();
        for zone in zones {
            let known = device.zones[zone as usize];
            match known.state {
                ZoneState::Free => device.free.push_back(zone),
                ZoneState::Closed if known.live == 0 => device.set_free(zone),
                ZoneState::Closed => closed.push(zone),
                _ => {}
            }
        }
        closed.sort_by_key(|zone| device.zones[*zone as usize].sequence);
        device.closed = closed.into();
        device.phase = Phase::Ready;
        let parts = device.zones.iter().map(|zone| u64::from(zone.live)).sum();
        let name = Arc::clone(&device.name);
        self.event(FlashEvent::Ready { device: name, parts });
        reached(Point::HostFlashScanned);
    }
}
