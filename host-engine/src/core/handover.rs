//! Shares that go to another core, and come from one; the first one of a vdisk with its device: the front end stays
//! connected.
//!
//! ```text
//! a share with the device
//!   here:    map run, while it is served ─▶ nothing more is taken ─▶ what was taken is answered ─▶ closed ─▶ detached
//!   there:   attached, paused ─▶ opened, linked to the other shares' cores ─▶ resumed
//! another share
//!   here:    map run, while it is served ──┐                         ┌─▶ closed
//!   device's core:                         └─▶ paused, none in flight┘            ┌─▶ resumed
//!   there:                                                              opened ───┘
//! ```
//! Nothing of the share's is in flight between the cores, so that nothing is done twice or in another order (C23, C24);
//! the log is sealed anew by the core that opens it (C8). While the device waits its front end's messages are
//! answered. What takes too long to be answered here keeps the share here, and it goes on.

use super::{CLOSE_MAX, Core, Finished};
use crate::measure::cost;
use crate::messages::{Answer, CoreLoad, Handed, OpenError, OpenOrder};
use cleave_format::ids::VdiskId;
use cleave_host_core::front::Place;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::Priority;
use std::time::Duration;

use super::serving::Serving;

/// How long a map run may take before.
const PREPARE_MAX: Duration = Duration::from_secs(10);
/// How long what was taken may take until it is answered: meanwhile the guest waits.
const DRAIN_MAX: Duration = Duration::from_secs(2);

/// A command that waits until requests are done.
pub(super) struct Waiting {
    number: u64,
    vdisk: VdiskId,
    /// Those of one share, or all.
    share: Option<u16>,
}

/// How far a vdisk is that goes.
pub(super) enum HandStep {
    /// The map of another share is written, as far as that was worth it.
    MapWritten {
        /// The command.
        number: u64,
    },
    /// What a command waits for should be done by now.
    TooLate {
        /// The command.
        number: u64,
    },
    /// Its map is written, as far as that was worth it.
    Prepared {
        /// The command.
        number: u64,
        /// Which.
        vdisk: VdiskId,
    },
    /// What was taken should have been answered by now.
    Late {
        /// The command.
        number: u64,
        /// Which.
        vdisk: VdiskId,
    },
    /// The core has forgotten it.
    Closed {
        /// The command.
        number: u64,
        /// Which.
        vdisk: VdiskId,
    },
}

impl Core<'_> {
    /// Begins to give a vdisk away.
    pub(super) fn hand(&mut self, number: u64, vdisk: VdiskId) {
        let place = self.places.get(&vdisk).copied();
        let Some(place) = place.filter(|_| self.ending.is_none()) else {
            return self.tell(number, Answer::Handed(Err("it is not open".to_owned())));
        };
        self.vdisks[place].leaving = Some(number);
        let (preparing, finished) =
            (self.core.prepare_close(vdisk, PREPARE_MAX), self.finished.clone());
        self.executor.spawn(Priority::Foreground, async move {
            preparing.await;
            finished.push(Finished::Hand(HandStep::Prepared { number, vdisk }));
        });
    }

    /// The vdisk's place, if it is still going by this command.
    fn going(&self, number: u64, vdisk: VdiskId) -> Option<usize> {
        let place = *self.places.get(&vdisk)?;
        (self.vdisks[place].leaving == Some(number)).then_some(place)
    }

    /// A vdisk's next step; those that were let go meanwhile have none.
    pub(super) fn hand_on(&mut self, step: HandStep) {
        match step {
            HandStep::MapWritten { number } => self.tell(number, Answer::Prepared),
            HandStep::TooLate { number } => self.end_waiting(number),
            HandStep::Prepared { number, vdisk } => {
                let Some(place) = self.going(number, vdisk) else { return };
                let serving = &mut self.vdisks[place];
                serving.draining = true;
                self.leaving += 1;
                if let Some(disk) = &mut serving.disk {
                    disk.pause();
                }
                let (executor, finished) = (self.executor.clone(), self.finished.clone());
                self.executor.spawn(Priority::Foreground, async move {
                    executor.sleep(DRAIN_MAX).await;
                    finished.push(Finished::Hand(HandStep::Late { number, vdisk }));
                });
            }
            HandStep::Late { number, vdisk } => {
                let Some(place) = self.going(number, vdisk) else { return };
                let serving = &mut self.vdisks[place];
                if !std::mem::take(&mut serving.draining) {
                    return;
                }
                self.leaving -= 1;
                serving.leaving = None;
                if let Some(disk) = &mut serving.disk {
                    disk.resume();
                }
                let reason =
                    format!("its requests were not answered within {} s", DRAIN_MAX.as_secs());
                self.tell(number, Answer::Handed(Err(reason)));
            }
            HandStep::Closed { number, vdisk } => {
                if let Some(place) = self.going(number, vdisk) {
                    self.give_away(number, vdisk, place);
                }
            }
        }
    }

    /// Writes the map of a share that is about to go.
    pub(super) fn prepare(&mut self, number: u64, share: VdiskId) {
        let (preparing, finished) =
            (self.core.prepare_close(share, PREPARE_MAX), self.finished.clone());
        self.executor.spawn(Priority::Foreground, async move {
            preparing.await;
            finished.push(Finished::Hand(HandStep::MapWritten { number }));
        });
    }

    /// Has requests for a share wait, and says when none is in flight.
    pub(super) fn pause(&mut self, number: u64, vdisk: VdiskId, share: u16) {
        let home = self.places.get(&vdisk).and_then(|place| self.vdisks[*place].home);
        let Some(home) = home.filter(|_| self.ending.is_none()) else {
            return self.tell(number, Answer::Paused(Err("it is not open".to_owned())));
        };
        self.front.pause(home, share);
        self.wait(Waiting { number, vdisk, share: Some(share) }, DRAIN_MAX);
    }

    /// Lets requests for a share go on, where it is now.
    pub(super) fn resume(&mut self, vdisk: VdiskId, share: u16, place: Place) {
        if let Some(home) = self.places.get(&vdisk).and_then(|place| self.vdisks[*place].home) {
            self.front.resume(home, share, Some(place));
        }
    }

    /// Takes nothing more of a vdisk's requests, and says when those taken are done.
    pub(super) fn quiet(&mut self, number: u64, vdisk: VdiskId) {
        if let Some(place) = self.places.get(&vdisk) {
            self.vdisks[*place].pause();
        }
        self.wait(Waiting { number, vdisk, share: None }, CLOSE_MAX);
    }

    fn wait(&mut self, waiting: Waiting, limit: Duration) {
        let number = waiting.number;
        self.waiting.push(waiting);
        let (executor, finished) = (self.executor.clone(), self.finished.clone());
        self.executor.spawn(Priority::Foreground, async move {
            executor.sleep(limit).await;
            finished.push(Finished::Hand(HandStep::TooLate { number }));
        });
    }

    /// Tells those who wait what is done.
    fn tell_waiting(&mut self) {
        for at in (0..self.waiting.len()).rev() {
            let Waiting { vdisk, share, .. } = self.waiting[at];
            let serving = self.places.get(&vdisk).map(|place| &self.vdisks[*place]);
            let home = serving.and_then(|serving| serving.home);
            let disk = serving.and_then(|serving| serving.disk.as_ref());
            let done = match share {
                Some(share) => home.is_none_or(|home| self.front.is_drained(home, share)),
                None => disk.is_none_or(|disk| disk.in_flight() == 0),
            };
            if done {
                let number = self.waiting.swap_remove(at).number;
                let answer = match (share, home) {
                    (None, _) => Answer::Quiet,
                    (Some(_), Some(_)) => Answer::Paused(Ok(())),
                    (Some(_), None) => Answer::Paused(Err("it was let go".to_owned())),
                };
                self.tell(number, answer);
            }
        }
    }

    /// What a command waited for took too long.
    fn end_waiting(&mut self, number: u64) {
        let Some(at) = self.waiting.iter().position(|waiting| waiting.number == number) else {
            return;
        };
        let Waiting { vdisk, share, .. } = self.waiting.swap_remove(at);
        let Some(share) = share else { return self.tell(number, Answer::Quiet) };
        if let Some(home) = self.places.get(&vdisk).and_then(|place| self.vdisks[*place].home) {
            self.front.resume(home, share, None);
        }
        let reason = format!("its requests were not answered within {} s", DRAIN_MAX.as_secs());
        self.tell(number, Answer::Paused(Err(reason)));
    }

    /// Lets go of vdisks that are about to leave and have nothing in flight. True when there was one.
    pub(super) fn hand_what_is_done(&mut self) -> bool {
        if !self.waiting.is_empty() {
            self.tell_waiting();
        }
        if self.leaving == 0 {
            return false;
        }
        let mut done = Vec::new();
        for (_, serving) in &mut self.vdisks {
            let idle = serving.disk.as_ref().is_none_or(|disk| disk.in_flight() == 0);
            if serving.draining && idle {
                serving.draining = false;
                done.extend(serving.leaving.map(|number| (number, serving.vdisk)));
            }
        }
        self.leaving -= done.len();
        for (number, vdisk) in &done {
            let (number, vdisk) = (*number, *vdisk);
            self.take_no_more(vdisk);
            let (closing, finished) = (self.core.close(vdisk, CLOSE_MAX), self.finished.clone());
            self.executor.spawn(Priority::Foreground, async move {
                // What is not destaged by then is in the log, as after a crash.
                closing.await;
                finished.push(Finished::Hand(HandStep::Closed { number, vdisk }));
            });
        }
        !done.is_empty()
    }

    fn give_away(&mut self, number: u64, vdisk: VdiskId, place: usize) {
        self.places.remove(&vdisk);
        let mut serving = self.vdisks.remove(place);
        serving.home.into_iter().for_each(|home| self.front.remove_home(home));
        serving.unwatch(self.reactor);
        let handed = match serving.disk.take().map(cleave_vhost_user::Disk::detach) {
            Some(Ok(disk)) => Some(Box::new(Handed { disk, measures: serving.measures })),
            None | Some(Err(_)) => {
                // The next core has a device of its own, to which the front end connects again.
                self.past.merge(&serving.measures);
                None
            }
        };
        reached(Point::HostHanded);
        self.tell(number, Answer::Handed(Ok(handed)));
    }

    /// Takes a device that comes from another core; nothing is taken from it before the vdisk is open.
    pub(super) fn arrive(&mut self, order: &OpenOrder, handed: Handed) -> Result<(), OpenError> {
        let Handed { disk, measures } = handed;
        let disk = disk.attach(order.device.capacity, self.buffers.clone())?;
        let mut serving = Serving::new(order.vdisk, Some(disk));
        (serving.arriving, serving.measures) = (true, measures);
        serving.watch(self.reactor);
        let place = self.vdisks.insert(serving);
        self.places.insert(order.vdisk, place);
        Ok(())
    }

    /// A vdisk was opened, or not: its device may have come before. Its place, if it has.
    pub(super) fn arrived(&mut self, vdisk: VdiskId, opened: bool) -> Option<usize> {
        let place = *self.places.get(&vdisk)?;
        if !std::mem::take(&mut self.vdisks[place].arriving) {
            return None;
        }
        if !opened {
            self.remove(vdisk);
        }
        Some(place)
    }

    /// What was done so far.
    pub(super) fn load(&self) -> CoreLoad {
        let of = |share: &VdiskId| self.core.vdisk_stats(*share).map_or(0, |stats| cost(&stats));
        let costs = self.places.keys().map(|share| (*share, of(share)));
        CoreLoad {
            core: self.number,
            at: self.executor.now(),
            busy: self.reactor.counters().busy,
            shares: costs.collect(),
        }
    }
}
