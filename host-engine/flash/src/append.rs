//! The way of parts to flash: claimed places, one write for several of them, then the table.
//!
//! Two writers a device take turns, so that one copies while the other's write is on its way; a write is at
//! most half a MiB, so that reads never wait long behind one. New parts leave one zone ready for
//! what eviction moves: without that it could not make room.

use crate::Inner;
use crate::device::{ATTEMPTS_MAX, Building, Device, Phase, Put};
use crate::state::{DeviceKey, State};
use cleave_format::flash::{PlaceState, StoredPart};
use cleave_format::layout::PART;
use cleave_runtime::drives::DriveError;
use cleave_runtime::time::Moment;
use std::rc::Rc;

/// Writers of a device.
pub(crate) const WRITERS: usize = 2;
/// Most parts of one write.
const BATCH: usize = 4;

/// Neighbouring places with what goes there.
pub(crate) struct Batch {
    zone: u32,
    first: u16,
    puts: Vec<Put>,
}

impl Device {
    /// Gives out places for what waits, if there is anything that may be written now.
    pub fn claim(&mut self, now: Moment) -> Option<Batch> {
        if self.phase != Phase::Ready || now < self.refuse_until {
            return None;
        }
        if self.moves.is_empty() && self.queue.is_empty() {
            return None;
        }
        let zone = match self.open {
            Some(zone) => zone,
            None if self.moves.is_empty() && self.ready_zones() < 2 => return None,
            None => {
                let zone = self.prepared.pop_front()?;
                self.open = Some(zone);
                // The keeper prepares the next one.
                self.changed.notify();
                zone
            }
        };
        let building = self.building.get_mut(&zone).expect("an open zone is being built");
        let (first, mut puts) = (building.next, Vec::with_capacity(BATCH));
        while puts.len() < BATCH
            && building.places.get(usize::from(building.next)) == Some(&PlaceState::Empty)
        {
            let Some(put) = self.moves.pop_front().or_else(|| self.queue.pop_front()) else {
                break;
            };
            puts.push(put);
            building.next += 1;
        }
        building.outstanding += 1;
        building.skip_retired();
        if usize::from(building.next) == building.places.len() {
            self.open = None;
        }
        assert!(!puts.is_empty(), "an open zone has a place, and there is something for it");
        Some(Batch { zone, first, puts })
    }
}

impl Building {
    /// A zone to be filled from its first place that is not retired.
    pub fn new(places: Vec<PlaceState>) -> Building {
        let mut building =
            Building { places, written: 0, durable: 0, next: 0, outstanding: 0, unsaved: false };
        building.skip_retired();
        building
    }

    fn skip_retired(&mut self) {
        while self.places.get(usize::from(self.next)) == Some(&PlaceState::Retired) {
            self.next += 1;
        }
    }
}

/// One writer of a device.
pub(crate) async fn write(inner: Rc<Inner>, key: DeviceKey) {
    let Some((port, changed)) = inner.task_of(key) else { return };
    loop {
        let claimed = changed.until(|| {
            let (mut state, now) = (inner.state.borrow_mut(), inner.executor.now());
            match state.device(key) {
                Some(device) => device.claim(now).map(|batch| {
                    let offset = device.place_offset(batch.zone, batch.first);
                    Some((batch, offset))
                }),
                None => Some(None),
            }
        });
        let Some((batch, offset)) = claimed.await else { return };
        let mut buffer = port.drive().buffer(batch.puts.len() * PART);
        buffer.set_len(batch.puts.len() * PART);
        let mut checksums = Vec::with_capacity(batch.puts.len());
        for (put, place) in batch.puts.iter().zip(buffer.chunks_exact_mut(PART)) {
            place.copy_from_slice(&put.bytes);
            checksums.push(crc32c::crc32c(&put.bytes));
        }
        inner.executor.yield_now().await;
        let result = port.write(offset, buffer).await;
        inner.state.borrow_mut().written(key, batch, &checksums, result, inner.executor.now());
        changed.notify();
    }
}

impl State {
    /// A batch was written, or not.
    fn written(
        &mut self,
        key: DeviceKey,
        batch: Batch,
        checksums: &[u32],
        result: Result<(), DriveError>,
        now: Moment,
    ) {
        let Some(device) = self.device(key) else { return };
        let Batch { zone, first, puts } = batch;
        let offset = device.place_offset(zone, first);
        let number = device.number(zone, first);
        let length = (puts.len() * PART) as u64;
        let building = device.building.get_mut(&zone).expect("a zone is built until it is written");
        building.outstanding -= 1;
        match result {
            Ok(()) => {
                building.unsaved = true;
                for (index, (put, crc)) in puts.iter().zip(checksums).enumerate() {
                    let place = usize::from(first) + index;
                    let part = StoredPart { stripe: put.stripe, part: put.part, crc: *crc };
                    building.places[place] = PlaceState::Present(part);
                    building.written |= 1 << place;
                }
                device.bytes_written += length;
                for (index, put) in puts.iter().enumerate() {
                    self.install(put, number + index as u32);
                    match put.from {
                        Some(_) => self.stats.parts_moved += 1,
                        None => self.stats.parts_written += 1,
                    }
                }
            }
            Err(DriveError::NoSpace) => {
                self.failed(key, Some(offset), &DriveError::NoSpace);
                self.pause(key, now);
            }
            Err(error) => {
                for place in first..first + puts.len() as u16 {
                    building.places[usize::from(place)] = PlaceState::Retired;
                }
                // Elsewhere, in the order in which they came.
                for mut put in puts.into_iter().rev() {
                    put.attempts += 1;
                    let queue =
                        if put.from.is_some() { &mut device.moves } else { &mut device.queue };
                    if put.attempts < ATTEMPTS_MAX {
                        queue.push_front(put);
                    }
                }
                self.failed(key, Some(offset), &error);
                for place in first..first + (length / PART as u64) as u16 {
                    self.retire_place(key, zone, place);
                }
            }
        }
    }
}
