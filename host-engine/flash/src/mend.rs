//! Places under suspicion: what failed its check is read again and compared with what was written.
//!
//! What is not as it was written retires the place, unless power was lost before it was durable; what is, came in
//! damaged, and the place is well. Either way the part is out of the table, and the pool has it.

use crate::Inner;
use crate::device::{Device, Phase, ZoneState};
use crate::evict::read_header;
use crate::port::Port;
use crate::state::{DeviceKey, State};
use crate::upkeep::write_header;
use cleave_format::flash::PlaceState;
use cleave_format::ids::StripeId;
use cleave_format::layout::PART;
use std::rc::Rc;

/// A part whose place is under suspicion.
#[derive(Clone, Copy)]
struct Suspect {
    zone: u32,
    place: u16,
    stripe: StripeId,
    part: u8,
}

impl Device {
    fn suspect(&mut self) -> Option<Suspect> {
        if self.phase != Phase::Ready {
            return None;
        }
        while let Some((number, stripe, part)) = self.suspects.pop_front() {
            let (zone, place) = self.place(number);
            // In any other state it is written anew, or retired by whoever works on it.
            match self.zones[zone as usize].state {
                ZoneState::Closed => self.zones[zone as usize].state = ZoneState::Mending,
                ZoneState::Building => {}
                _ => continue,
            }
            return Some(Suspect { zone, place, stripe, part });
        }
        None
    }

    /// The zone may be evicted again.
    fn mended(&mut self, zone: u32) {
        let state = &mut self.zones[zone as usize];
        if state.state == ZoneState::Mending {
            state.state = ZoneState::Closed;
            if state.live == 0 {
                self.dead.push_back(zone);
            }
        }
    }
}

/// Looks at places under suspicion.
pub(crate) async fn mend(inner: Rc<Inner>, key: DeviceKey) {
    let Some((port, changed)) = inner.task_of(key) else { return };
    loop {
        let suspect = changed.until(|| {
            let mut state = inner.state.borrow_mut();
            match state.device(key) {
                Some(device) => device.suspect().map(Some),
                None => Some(None),
            }
        });
        let Some(suspect) = suspect.await else { return };
        look(&inner, &port, key, suspect).await;
        if let Some(device) = inner.state.borrow_mut().device(key) {
            device.mended(suspect.zone);
        }
        changed.notify();
    }
}

async fn look(inner: &Rc<Inner>, port: &Port, key: DeviceKey, suspect: Suspect) {
    let Suspect { zone, place, stripe, part } = suspect;
    let building = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        device.building.get(&zone).map(|building| building.part(place).copied())
    };
    let mut header = None;
    let stored = match building {
        Some(stored) => stored,
        None => {
            header = read_header(inner, port, key, zone).await;
            let place = header.as_ref().map(|header| header.places[usize::from(place)]);
            place.and_then(|place| place.part().copied())
        }
    };
    // Without a description there is nothing to compare with, and nothing that would be found again.
    let Some(stored) = stored.filter(|known| known.stripe == stripe && known.part == part) else {
        return;
    };
    let offset = {
        let mut state = inner.state.borrow_mut();
        let Some(device) = state.device(key) else { return };
        device.place_offset(zone, place)
    };
    let read = port.read(offset, PART).await;
    let intact = read.is_ok_and(|bytes| crc32c::crc32c(&bytes) == stored.crc);
    let rewritten = {
        let mut state = inner.state.borrow_mut();
        if intact {
            state.stats.parts_came_damaged += 1;
            return;
        }
        if !state.lost_content(key, zone, place) {
            return;
        }
        let Some(device) = state.device(key) else { return };
        if let Some(building) = device.building.get_mut(&zone) {
            building.places[usize::from(place)] = PlaceState::Retired;
            building.unsaved = true;
            None
        } else {
            header.map(|mut header| {
                header.places[usize::from(place)] = PlaceState::Retired;
                (device.next_header(zone, header.places), device.zone_offset(zone))
            })
        }
    };
    if let Some((header, zone_offset)) = rewritten
        && let Err(error) = write_header(port, zone_offset, &header).await
    {
        inner.state.borrow_mut().failed(key, Some(zone_offset), &error);
    }
}

impl State {
    /// What a place was given is not there any more; true when that is the device's fault, and the place retired.
    pub fn lost_content(&mut self, key: DeviceKey, zone: u32, place: u16) -> bool {
        let Some(device) = self.device(key) else { return false };
        if device.zones[zone as usize].tentative {
            self.stats.parts_lost_with_power += 1;
            return false;
        }
        device.errors += 1;
        self.retire_place(key, zone, place);
        true
    }
}
