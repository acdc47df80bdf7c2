//! Headers: zones are prepared, described while they fill, and closed.
//!
//! A header without parts is durable before a zone takes any (`prepare`); a zone that fills is described soon after
//! its parts are written, so that a killed process finds them again; when it is full its parts are flushed, and
//! described for good. One task a device does all of it, so a zone's header is written by one at a time.

use crate::Inner;
use crate::device::{Building, Device, Phase, ZoneState};
use crate::port::Port;
use crate::state::{DeviceKey, State};
use cleave_format::flash::{FLASH_PAGE, PlaceState, ZoneHeader};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::drives::DriveError;
use cleave_runtime::sync::Signal;
use cleave_runtime::time::Moment;
use std::rc::Rc;
use std::time::Duration;

/// Parts that no header names are described when nothing more waits and this long has passed,
const SAVE_AFTER: Duration = Duration::from_millis(200);
/// or this long, whatever waits;
const SAVE_ALWAYS: Duration = Duration::from_secs(2);
/// and they are made durable when nothing was written for so long.
const FLUSH_AFTER: Duration = Duration::from_secs(5);

/// What the keeper does next, to a zone.
#[derive(Clone, Copy, Debug)]
enum Work {
    Prepare(u32),
    Close(u32),
    Save(u32),
    /// As `Save`, but durable.
    Finish(u32),
    /// Makes headers durable that were written before.
    Flush,
}

impl Device {
    fn work(&mut self, now: Moment) -> Option<Work> {
        if self.phase != Phase::Ready || now < self.refuse_until {
            return None;
        }
        if self.prepared.is_empty()
            && let Some(zone) = self.free.pop_front()
        {
            return Some(Work::Prepare(zone));
        }
        if let Some((zone, _)) = self.building.iter().find(|(_, building)| building.is_full()) {
            return Some(Work::Close(*zone));
        }
        let idle = self.queue.is_empty() && self.moves.is_empty();
        let mut building = self.building.iter();
        let unsaved = building.find(|(_, building)| building.unsaved);
        let Some((zone, building)) = unsaved else {
            if self.finishing && idle && self.unflushed {
                return Some(Work::Flush);
            }
            if now.since(self.saved_at) < FLUSH_AFTER {
                return None;
            }
            let mut building = self.building.iter();
            let doubtful = building.find(|(_, building)| building.written != building.durable)?;
            return Some(Work::Finish(*doubtful.0));
        };
        if self.finishing {
            let quiet = idle && building.outstanding == 0;
            return quiet.then_some(Work::Finish(*zone));
        }
        let since = now.since(self.saved_at);
        let due = since >= SAVE_ALWAYS || (idle && since >= SAVE_AFTER);
        due.then_some(Work::Save(*zone))
    }

    /// Takes no more parts; what it has is to be made durable. Returns what is notified on the way.
    pub fn finish(&mut self) -> Signal {
        self.finishing = true;
        for building in self.building.values_mut() {
            building.unsaved |= building.written != building.durable;
        }
        self.changed.notify();
        self.changed.clone()
    }

    /// Everything is written and described; only asked while finishing.
    pub fn is_finished(&self) -> bool {
        let quiet = |building: &Building| !building.unsaved && building.outstanding == 0;
        !self.keeping
            && !self.unflushed
            && self.queue.is_empty()
            && self.moves.is_empty()
            && self.building.values().all(quiet)
    }
}

/// Keeps a device's headers.
pub(crate) async fn keep(inner: Rc<Inner>, key: DeviceKey) {
    let Some((port, changed)) = inner.task_of(key) else { return };
    loop {
        let work = changed.until(|| {
            let mut state = inner.state.borrow_mut();
            match state.device(key) {
                Some(device) => {
                    let work = device.work(inner.executor.now());
                    device.keeping = work.is_some();
                    work.map(Some)
                }
                None => Some(None),
            }
        });
        match work.await {
            None => return,
            Some(Work::Prepare(zone)) => prepare(&inner, &port, key, zone).await,
            Some(Work::Close(zone)) => close(&inner, &port, key, zone).await,
            Some(Work::Save(zone)) => save(&inner, &port, key, zone).await,
            Some(Work::Finish(zone)) => {
                flush(&inner, &port, key, zone).await;
                save(&inner, &port, key, zone).await;
                flush_headers(&inner, &port, key).await;
            }
            Some(Work::Flush) => flush_headers(&inner, &port, key).await,
        }
        changed.notify();
    }
}

/// Writes a header where it belongs.
pub(crate) async fn write_header(
    port: &Port,
    zone_offset: u64,
    header: &ZoneHeader,
) -> Result<(), DriveError> {
    let mut page = port.drive().buffer(FLASH_PAGE);
    page.set_len(FLASH_PAGE);
    header.encode(&mut page);
    port.write(zone_offset + header.copy_offset(), page).await?;
    reached(Point::HostFlashHeader);
    Ok(())
}

/// Gives a free zone a new filling.
async fn prepare(inner: &Inner, port: &Port, key: DeviceKey, zone: u32) {
    let (header, offset) = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        let (sequence, places) = (device.sequence, device.empty_places(zone));
        device.sequence += 1;
        let known = &mut device.zones[zone as usize];
        known.sequence = sequence;
        known.state = ZoneState::Building;
        (device.next_header(zone, places), device.zone_offset(zone))
    };
    let mut result = write_header(port, offset, &header).await;
    if result.is_ok() {
        result = port.flush().await;
    }
    let mut state = inner.state.borrow_mut();
    match result {
        Ok(()) => {
            let Some(device) = state.device(key) else { return };
            device.bytes_written += FLASH_PAGE as u64;
            device.building.insert(zone, Building::new(header.places));
            device.prepared.push_back(zone);
        }
        Err(error) => {
            let out_of_space = error == DriveError::NoSpace;
            if let Some(device) = state.device(key) {
                let known = &mut device.zones[zone as usize];
                // A zone that takes no header is of no use.
                known.state = if out_of_space { ZoneState::Free } else { ZoneState::Bad };
                if out_of_space {
                    device.free.push_back(zone);
                }
            }
            state.failed(key, Some(offset), &error);
            if out_of_space {
                state.pause(key, inner.executor.now());
            }
        }
    }
}

/// Makes the parts durable that are in a zone so far.
async fn flush(inner: &Inner, port: &Port, key: DeviceKey, zone: u32) -> bool {
    let covered = {
        let mut state = inner.state.borrow_mut();
        let building = state.device(key).and_then(|device| device.building.get(&zone));
        building.map_or(0, |building| building.written)
    };
    let result = port.flush().await;
    let mut state = inner.state.borrow_mut();
    match result {
        Ok(()) => {
            let building = state.device(key).and_then(|device| device.building.get_mut(&zone));
            if let Some(building) = building {
                building.durable |= covered;
            }
            true
        }
        Err(error) => {
            state.failed(key, None, &error);
            false
        }
    }
}

/// Makes the headers durable that were written so far.
async fn flush_headers(inner: &Inner, port: &Port, key: DeviceKey) {
    if let Some(device) = inner.state.borrow_mut().device(key) {
        device.unflushed = false;
    }
    if let Err(error) = port.flush().await {
        inner.state.borrow_mut().failed(key, None, &error);
    }
}

/// Describes a zone as it is now.
async fn save(inner: &Inner, port: &Port, key: DeviceKey, zone: u32) {
    let (header, offset) = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        let Some(building) = device.building.get_mut(&zone) else { return };
        building.unsaved = false;
        let places = building.described();
        device.saved_at = inner.executor.now();
        (device.next_header(zone, places), device.zone_offset(zone))
    };
    let result = write_header(port, offset, &header).await;
    let mut state = inner.state.borrow_mut();
    match result {
        Ok(()) => {
            if let Some(device) = state.device(key) {
                device.bytes_written += FLASH_PAGE as u64;
                device.unflushed = true;
            }
        }
        Err(error) => state.failed(key, Some(offset), &error),
    }
}

/// Ends a zone's filling: its parts are durable, and described for good.
async fn close(inner: &Inner, port: &Port, key: DeviceKey, zone: u32) {
    let durable = flush(inner, port, key, zone).await;
    save(inner, port, key, zone).await;
    let mut state = inner.state.borrow_mut();
    let State { devices, .. } = &mut *state;
    let Some(device) = devices.get_mut(&key).filter(|device| device.phase == Phase::Ready) else {
        return;
    };
    device.building.remove(&zone);
    let known = &mut device.zones[zone as usize];
    known.state = ZoneState::Closed;
    known.tentative = !durable;
    match known.live {
        0 => device.dead.push_back(zone),
        _ => device.closed.push_back(zone),
    }
}

/// Whether a header has anything that power may have taken.
pub(crate) fn is_tentative(places: &[PlaceState]) -> bool {
    places.iter().any(|place| matches!(place, PlaceState::Tentative(_)))
}
