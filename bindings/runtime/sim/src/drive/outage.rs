//! A power cut that hits a drive's n-th operation, and what it leaves.

use super::{DriveInner, SimDrive, contents};
use crate::medium::Medium;
use crate::power::{Power, Remains, SECTOR, Unsaved};
use crate::trace::Digest;
use crate::world::upgrade;
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::DriveOperation;
use std::cell::{Cell, RefCell};

const SECTORS: u64 = (PAGE / SECTOR) as u64;

/// A drive's part in its machine's power.
#[derive(Default)]
pub(super) struct Feed {
    power: RefCell<Option<Power>>,
    /// The request that the cut hit.
    hit: Cell<Option<u64>>,
}

impl Feed {
    /// Whether requests are taken.
    pub fn is_on(&self) -> bool {
        !self.power.borrow().as_ref().is_some_and(Power::is_out)
    }

    /// Whether a request may take effect; the power may go out by it.
    pub fn permits(&self, number: u64, operation: &DriveOperation) -> bool {
        let power = self.power.borrow();
        let Some(power) = &*power else { return true };
        let was_out = power.is_out();
        let on = match operation {
            DriveOperation::Read { .. } => !was_out,
            _ => power.operate(),
        };
        if !on && !was_out {
            self.hit.set(Some(number));
        }
        on
    }
}

impl SimDrive {
    /// Puts the drive into a machine: its requests count on that machine's power, and stop with it.
    pub fn feed(&self, power: &Power) {
        *self.0.feed.power.borrow_mut() = Some(power.clone());
    }

    /// Puts bytes in place of what is stored at `offset` and was flushed, as rot or a stray write does.
    ///
    /// # Panics
    /// Beyond the capacity.
    pub fn overwrite(&self, offset: u64, bytes: &[u8]) {
        let end = offset + bytes.len() as u64;
        assert!(end <= self.0.capacity, "bytes of the drive");
        let page = PAGE as u64;
        let mut at = offset;
        while at < end {
            let start = at / page * page;
            let to = (start + page).min(end);
            let mut content = [0; PAGE];
            content.copy_from_slice(&self.peek(start, PAGE));
            let new = &bytes[(at - offset) as usize..(to - offset) as usize];
            content[(at - start) as usize..(to - start) as usize].copy_from_slice(new);
            let mut medium = self.0.medium.borrow_mut();
            medium.write(at / page, Some(std::rc::Rc::new(content)));
            medium.settle_sectors(|_, _| true);
            at = to;
        }
    }

    /// What the cut of its machine's power leaves: of each sector that was not flushed, in the order of the
    /// writes, what `remains` says; requests in flight end without an answer. To be called when the power is out,
    /// before its owner is killed.
    pub fn settle(&self, remains: Remains) {
        let Some(world) = upgrade(&self.0.world) else { return };
        world.0.count(|c| c.power_losses += 1);
        let DriveInner { medium, in_flight, .. } = &*self.0;
        self.0.settle(&mut medium.borrow_mut(), remains);
        self.0.feed.hit.set(None);
        drop(std::mem::take(&mut *in_flight.borrow_mut()));
    }

    /// A digest of what [`settle`](SimDrive::settle) would leave: ways to remain that have the same one leave the same.
    pub fn foresee(&self, remains: Remains) -> u64 {
        let mut pages = self.0.medium.borrow().volatile_pages();
        for flight in self.0.in_flight.borrow().values() {
            if let Ok((first, count)) = self.0.pages(&flight.request) {
                pages.extend(first..first + count);
            }
        }
        let mut excerpt = self.0.medium.borrow().excerpt(&pages);
        self.0.settle(&mut excerpt, remains);
        let digest = |digest: Digest, page: &u64| match excerpt.read(*page) {
            Some(content) => digest.word(*page).bytes(&content[..]),
            None => digest.word(*page).bytes(&[0; PAGE]),
        };
        pages.iter().fold(Digest::new(), digest).value()
    }
}

impl DriveInner {
    /// What remains of everything unflushed, and of what is in flight, on a medium.
    fn settle(&self, medium: &mut Medium, remains: Remains) {
        let hit = self.feed.hit.get();
        let keeps = |what, page, sector| remains.keeps(what, page * SECTORS + sector);
        medium.settle_sectors(|page, sector| keeps(Unsaved::Completed, page, sector));
        for (number, flight) in self.in_flight.borrow().iter() {
            let Ok((first, count)) = self.pages(&flight.request) else { continue };
            match (&flight.request.operation, &flight.request.buffer) {
                (DriveOperation::Write { .. }, Some(buffer)) => {
                    for (page, content) in (first..).zip(contents(buffer)) {
                        medium.write(page, Some(content));
                    }
                }
                (DriveOperation::Discard { .. }, _) => {
                    (first..first + count).for_each(|page| medium.write(page, None));
                }
                _ => continue,
            }
            medium.settle_sectors(|page, sector| {
                let (before, of) = ((page - first) * SECTORS + sector, count * SECTORS);
                let was_hit = hit == Some(*number);
                let what = if was_hit { Unsaved::Hit { before, of } } else { Unsaved::InFlight };
                keeps(what, page, sector)
            });
        }
    }
}
