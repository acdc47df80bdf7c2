//! A core of the engine: one thread with a reactor, links, a host core, shares of vdisks, and the devices of some.
//! It shares nothing; the control thread talks to it over two rings, other cores over two for each share.
//!
//! ```text
//! device ─ turn ─▶ front ─┬─▶ host core ─▶ links
//!    ▲                    ╚═▶ another core that has the share
//!    └─ complete, wake ◀── done
//! ```
//!
//! **Requests.** The front (`cleave_host_core::front`) gives each part of a request to the core that has the share, has
//! what there is no room for wait, and says once that a request is done.
//!
//! **Answers.** When the vdisk is taken away from the core, or it is closed, nothing more is answered: the front end
//! keeps these requests in its inflight region, and whoever serves it next executes them again (C24).
//!
//! **Moves.** A share goes to another core; the first one with the device (`handover`).
//!
//! A crash leaves the sockets' files, and requests in inflight regions.

mod background;
mod flash;
mod handover;
mod nvme;
mod requests;
mod serving;
mod thread;

pub use flash::OpenFailure;
pub use nvme::NvmeParts;
#[cfg(test)]
pub use thread::ScriptedCore;
pub use thread::{CoreHandle, CoreSettings, start};

use crate::events::of_core;
use crate::measure::Measures;
use crate::messages::{
    Answer, Command, CoreView, DeviceView, OpenError, OpenOrder, Order, Report, VdiskView,
};
use background::BackgroundShare;
use cleave_control::histogram::Histogram;
use cleave_flash::Prepared;
use cleave_format::ids::VdiskId;
use cleave_host_core::front::{Done, Front, Place};
use cleave_host_core::shares::Shares;
use cleave_host_core::{Event, GuestError, HostCore, HostError, OpenRequest, VdiskStats};
use cleave_runtime::buffer::BufferPool;
use cleave_runtime::drives::Drive;
use cleave_runtime::executor::{Executor, Priority};
use cleave_runtime::ring::{Consumer, Producer, Refused};
use cleave_runtime::sync::Queue;
use cleave_runtime_real::reactor::{Reactor, Turn};
use cleave_vhost_user::{Disk, Request};
use flash::FlashEnd;
use handover::{HandStep, Waiting};
use nvme::CoreNvme;
use requests::{Taken, answer, split};
use serving::Serving;
use slab::Slab;
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

/// How long requests may take when a vdisk is closed, or the core ends.
const CLOSE_MAX: Duration = Duration::from_secs(5);

/// How long flash may take, after that, to be found as it is at the next start.
const FLASH_CLOSE_MAX: Duration = Duration::from_secs(3);

/// How long the controllers may take to take back what they granted to a core that ends.
const GIVE_BACK_MAX: Duration = Duration::from_secs(2);

/// What the core's tasks bring.
enum Finished {
    Opened {
        number: u64,
        order: Box<OpenOrder>,
        result: Result<(), HostError>,
    },
    Closed {
        number: Option<u64>,
        vdisk: VdiskId,
    },
    Hand(HandStep),
    GaveBack,
    Deleted {
        number: u64,
        vdisk: VdiskId,
        result: Result<(), HostError>,
    },
    FlashPrepared {
        number: u64,
        name: String,
        drive: Rc<dyn Drive>,
        result: Result<Prepared, OpenFailure>,
    },
    FlashFailed {
        name: String,
        reason: String,
    },
    FlashRefused {
        number: u64,
        failure: OpenFailure,
    },
    FlashRetired {
        number: u64,
        name: String,
    },
    FlashClosed,
}

/// See the module's page.
struct Core<'r> {
    reactor: &'r Reactor,
    /// Its number.
    number: u16,
    /// Its place among the engine's cores.
    place: u16,
    executor: Executor,
    core: HostCore,
    buffers: Vec<BufferPool>,
    commands: Consumer<Command>,
    reports: Producer<Report>,
    /// Reports that the ring did not take.
    unreported: VecDeque<Report>,
    finished: Queue<Finished>,
    /// Drives that were prepared and not added yet.
    prepared_flash: BTreeMap<String, Rc<dyn Drive>>,
    /// Devices of flash that it drives itself.
    nvme: Rc<CoreNvme>,
    flash: FlashEnd,
    /// It ends, and the controllers are being told that it does not use what they granted.
    giving_back: bool,
    /// Vdisks that are about to go to another core, with requests in flight.
    leaving: usize,
    /// Commands that wait until requests are done.
    waiting: Vec<Waiting>,
    front: Front<Taken>,
    /// The shares that are open here.
    vdisks: Slab<Serving>,
    places: BTreeMap<VdiskId, usize>,
    /// A device said before the last sleep that it has something to do.
    wakeful: bool,
    /// What guests of closed vdisks did.
    past: Measures,
    /// What was encoded for them.
    closed: VdiskStats,
    ending: Option<u64>,
    ended: Rc<Cell<bool>>,
    background: BackgroundShare,
    /// From taking a record to both controllers' holding it.
    mirrored: Histogram,
    // Empty between uses; kept for their memory.
    requests: Vec<Request>,
    done: Vec<Done<Taken>>,
    times: Vec<Duration>,
}

impl Turn for Core<'_> {
    fn turn(&mut self) -> bool {
        let mut worked = std::mem::take(&mut self.wakeful);
        worked |= self.nvme.turn(self.reactor);
        worked |= self.take_commands();
        worked |= self.take_finished();
        worked |= self.take_requests();
        worked |= self.core.turn();
        self.measure_log();
        worked |= self.answer();
        worked |= self.front.turn();
        worked |= self.hand_what_is_done();
        worked |= self.take_events();
        worked |= self.take_flash_events();
        self.report_rest();
        self.end_when_done();
        worked
    }

    fn arm(&mut self) {
        self.nvme.arm();
        for (_, serving) in &mut self.vdisks {
            let Some(disk) = &mut serving.disk else { continue };
            self.wakeful |= !disk.arm();
        }
    }

    fn disarm(&mut self) {
        self.nvme.disarm();
        let disks = self.vdisks.iter_mut().filter_map(|(_, serving)| serving.disk.as_mut());
        disks.for_each(Disk::disarm);
    }
}

impl Core<'_> {
    /// Takes what guests want, and gives it to the front.
    fn take_requests(&mut self) -> bool {
        let mut worked = false;
        let now = self.executor.now();
        for (place, serving) in &mut self.vdisks {
            let Some(disk) = &mut serving.disk else { continue };
            if !disk.turn(&mut self.requests) {
                continue;
            }
            worked = true;
            for request in self.requests.drain(..) {
                let home = serving.home.expect("a device is paused until its vdisk is open");
                let (taken, operations) = split(request, place, now);
                self.front.take(home, taken, operations);
            }
            // The front end may have brought other files.
            serving.watch(self.reactor);
        }
        worked
    }

    /// Tells guests what is done.
    fn answer(&mut self) -> bool {
        if !self.front.has_done() {
            return false;
        }
        // C9: later than every request that is answered was taken.
        let now = self.reactor.clock().refresh();
        let worked = self.front.done(&mut self.done);
        if self.done.is_empty() {
            return worked;
        }
        let mut all = std::mem::take(&mut self.done);
        for done in all.drain(..) {
            if done.result == Err(GuestError::NotServed) {
                // It stays in the front end's inflight region (C24).
                continue;
            }
            let Taken { place, kind, bytes, since, .. } = done.user;
            let serving = self.vdisks.get_mut(place).filter(|it| it.home == Some(done.home));
            let Some(serving) = serving else { continue };
            let Some(disk) = serving.disk.as_mut() else { continue };
            let nanoseconds = u64::try_from(now.since(since).as_nanos()).unwrap_or(u64::MAX);
            serving.measures.record(kind, bytes, nanoseconds, done.result.is_ok());
            answer(&done, |tag, outcome| disk.complete(tag, outcome));
        }
        self.done = all;
        // Once a batch; a guest whose ring has nothing new is not woken.
        let disks = self.vdisks.iter_mut().filter_map(|(_, serving)| serving.disk.as_mut());
        disks.for_each(Disk::flush_notifications);
        true
    }

    /// Counts what the log took, and gives destage its share by how full the log is.
    fn measure_log(&mut self) {
        self.core.mirror_times(&mut self.times);
        for time in self.times.drain(..) {
            self.mirrored.record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
        if let Some(percent) = self.background.turn(|| self.core.fill_percent()) {
            self.reactor.set_background_share(percent);
        }
    }

    fn take_events(&mut self) -> bool {
        let mut worked = false;
        while let Some(event) = self.core.next_event() {
            worked = true;
            if let Some(news) = of_core(&event).map(Box::new) {
                self.report(Report::Happened { news });
            }
            match event {
                Event::Fenced { vdisk } => {
                    tracing::warn!(%vdisk, "a newer owner has the share of a vdisk; it is not served here");
                    self.remove(vdisk);
                    self.report(Report::Fenced { vdisk });
                }
                Event::Rejected { reason } => self.report(Report::Rejected { reason }),
                Event::LogReplaced { records } => {
                    tracing::warn!(records, "the data node has a new log; records are sent again");
                }
                // The core has logged it.
                Event::Damaged { .. } => {}
                Event::Shortage { reason } => tracing::warn!("destage waits: {reason}"),
            }
        }
        worked
    }

    fn take_commands(&mut self) -> bool {
        let mut worked = false;
        while let Some(Command { number, order }) = self.commands.pop() {
            worked = true;
            match order {
                Order::Open(order) => self.open(number, order),
                Order::Resize { vdisk, size } => {
                    let resized = self.resize(vdisk, size);
                    self.tell(number, Answer::Resized(resized));
                }
                Order::Close { vdisk } => self.close(Some(number), vdisk),
                Order::Carry { share, end } => {
                    self.front.carry_for(share, end);
                    self.tell(number, Answer::Carried);
                }
                Order::Prepare { share } => self.prepare(number, share),
                Order::Pause { vdisk, share } => self.pause(number, vdisk, share),
                Order::Resume { vdisk, share, place } => {
                    self.resume(vdisk, share, place);
                    self.tell(number, Answer::Resumed);
                }
                Order::Quiet { vdisk } => self.quiet(number, vdisk),
                Order::Hand { vdisk } => self.hand(number, vdisk),
                Order::Delete { vdisk } => self.delete(number, vdisk),
                Order::PrepareFlash(order) => self.prepare_flash(number, *order),
                Order::AddFlash(order) => self.add_flash(number, *order),
                Order::RetireFlash { name, tidily } => self.retire_flash(number, name, tidily),
                Order::Share { share, spin } => {
                    self.core.set_share(share);
                    self.reactor.set_spin(spin);
                    self.tell(number, Answer::Shared);
                }
                Order::Load => {
                    let load = self.load();
                    self.tell(number, Answer::Load(Box::new(load)));
                }
                Order::Look => {
                    let view = self.view();
                    self.tell(number, Answer::View(Box::new(view)));
                }
                Order::End { with_engine } => self.end(number, with_engine),
            }
        }
        worked
    }

    fn end(&mut self, number: u64, with_engine: bool) {
        if self.ending.replace(number).is_some() {
            // It ended by itself, and the engine ends meanwhile.
            return;
        }
        if !with_engine {
            self.giving_back = true;
            let (ending, finished) = (self.core.end(GIVE_BACK_MAX), self.finished.clone());
            self.executor.spawn(Priority::Foreground, async move {
                ending.await;
                finished.push(Finished::GaveBack);
            });
        }
        for (vdisk, place) in self.places.clone() {
            match self.vdisks[place].arriving {
                // Nothing of it was taken here.
                true => self.remove(vdisk),
                false => self.close(None, vdisk),
            }
        }
    }

    fn open(&mut self, number: u64, mut order: Box<OpenOrder>) {
        if self.ending.is_some() {
            return self.tell(number, Answer::Opened(Err(OpenError::Stopping)));
        }
        // Whatever an earlier opening of it was sent.
        self.front.end_link(order.vdisk);
        if let Some(handed) = order.handed.take()
            && let Err(error) = self.arrive(&order, *handed)
        {
            return self.tell(number, Answer::Opened(Err(error)));
        }
        let request = OpenRequest {
            vdisk: order.vdisk,
            size: order.device.capacity,
            keys: order.keys.clone(),
            epoch: order.epoch,
            gone: order.gone.clone(),
        };
        let opening = self.core.open(request);
        let finished = self.finished.clone();
        self.executor.spawn(Priority::Foreground, async move {
            let result = opening.await;
            finished.push(Finished::Opened { number, order, result });
        });
    }

    fn close(&mut self, number: Option<u64>, vdisk: VdiskId) {
        self.take_no_more(vdisk);
        let closing = self.core.close(vdisk, CLOSE_MAX);
        let finished = self.finished.clone();
        self.executor.spawn(Priority::Foreground, async move {
            if !closing.await {
                tracing::warn!(%vdisk, "not everything was done in time; the log has the rest");
            }
            finished.push(Finished::Closed { number, vdisk });
        });
    }

    fn delete(&mut self, number: u64, vdisk: VdiskId) {
        self.take_no_more(vdisk);
        let deleting = self.core.delete(vdisk);
        let finished = self.finished.clone();
        self.executor.spawn(Priority::Foreground, async move {
            let result = deleting.await;
            finished.push(Finished::Deleted { number, vdisk, result });
        });
    }

    fn take_no_more(&mut self, vdisk: VdiskId) {
        self.front.end_link(vdisk);
        if let Some(place) = self.places.get(&vdisk) {
            let serving = &mut self.vdisks[*place];
            serving.pause();
            // It is left to the front end's inflight region (C24).
            serving.home.into_iter().for_each(|home| self.front.drop_waiting(home));
        }
        // The core forgets them with the share.
        if let Some(stats) = self.core.vdisk_stats(vdisk) {
            self.closed.encoded_bytes += stats.encoded_bytes;
            self.closed.frame_bytes += stats.frame_bytes;
            self.closed.zero_blocks += stats.zero_blocks;
            self.closed.stored_blocks += stats.stored_blocks;
        }
    }

    fn take_finished(&mut self) -> bool {
        let mut worked = false;
        while let Some(finished) = self.finished.try_pop() {
            worked = true;
            match finished {
                Finished::Opened { number, order, result } => {
                    let served = self.opened(order, result);
                    self.tell(number, Answer::Opened(served));
                }
                Finished::Closed { number, vdisk } => {
                    self.remove(vdisk);
                    if let Some(number) = number {
                        self.tell(number, Answer::Closed);
                    }
                }
                Finished::FlashPrepared { number, name, drive, result } => {
                    self.flash_prepared(number, name, drive, result);
                }
                Finished::FlashFailed { name, reason } => {
                    self.report(Report::FlashRetired { name, reason });
                }
                Finished::FlashRefused { number, failure } => {
                    self.tell(number, Answer::FlashPrepared(Err(failure)));
                }
                Finished::FlashRetired { number, name } => {
                    self.nvme.close(self.reactor, &name);
                    self.tell(number, Answer::FlashRetired);
                }
                Finished::FlashClosed => self.flash = FlashEnd::Closed,
                Finished::GaveBack => self.giving_back = false,
                Finished::Hand(step) => self.hand_on(step),
                Finished::Deleted { number, vdisk, result } => {
                    self.remove(vdisk);
                    self.tell(number, Answer::Deleted(result));
                }
            }
        }
        worked
    }

    /// The core has opened a share, or not: its device follows, or the link to that.
    fn opened(
        &mut self,
        order: Box<OpenOrder>,
        result: Result<(), HostError>,
    ) -> Result<(), OpenError> {
        let OpenOrder { vdisk, device, without_device, shares, places, carry, .. } = *order;
        if let Some(place) = self.arrived(vdisk, result.is_ok()) {
            if result.is_ok() {
                self.make_home(place, shares, places);
            }
            return result.map_err(OpenError::from);
        }
        result?;
        let bound = match without_device {
            true => Ok(None),
            false => Disk::bind(device, self.buffers.clone()).map(Some),
        };
        let disk = match bound {
            Ok(disk) => disk,
            Err(error) => {
                // Nobody can use it: let it go again.
                self.close(None, vdisk);
                return Err(error.into());
            }
        };
        let mut serving = Serving::new(vdisk, disk);
        serving.watch(self.reactor);
        let place = self.vdisks.insert(serving);
        self.places.insert(vdisk, place);
        if !without_device {
            self.make_home(place, shares, places);
        }
        if let Some(end) = carry {
            self.front.carry_for(vdisk, end);
        }
        if self.ending.is_some() {
            self.close(None, vdisk);
        }
        Ok(())
    }

    /// What the device gives goes to the shares from now on.
    fn make_home(&mut self, place: usize, shares: Shares, places: Vec<Place>) {
        for (share, at) in shares.identities().zip(&places) {
            if matches!(at, Place::Here) {
                // Nobody else sends any more.
                self.front.end_link(share);
            }
        }
        let serving = &mut self.vdisks[place];
        serving.home = Some(self.front.add_home(shares, places));
        if let Some(disk) = &mut serving.disk {
            disk.resume();
        }
    }

    fn resize(&mut self, vdisk: VdiskId, size: u64) -> Result<(), String> {
        let place = self.places.get(&vdisk).ok_or("it is not open")?;
        self.core.resize(vdisk, size).map_err(|error| error.to_string())?;
        match &mut self.vdisks[*place].disk {
            Some(disk) => disk.resize(size).map_err(|error| error.to_string()),
            None => Ok(()),
        }
    }

    /// Drops a vdisk's device; its front end is disconnected.
    fn remove(&mut self, vdisk: VdiskId) {
        let Some(place) = self.places.remove(&vdisk) else { return };
        let mut serving = self.vdisks.remove(place);
        self.front.end_link(vdisk);
        serving.home.into_iter().for_each(|home| self.front.remove_home(home));
        serving.unwatch(self.reactor);
        self.leaving -= usize::from(serving.draining);
        if let Some(number) = serving.leaving.take() {
            self.tell(number, Answer::Handed(Err("it was let go".to_owned())));
        }
        self.past.merge(&serving.measures);
    }

    fn tell(&mut self, number: u64, answer: Answer) {
        self.report(Report::Answer { number, answer });
    }

    fn report(&mut self, report: Report) {
        self.unreported.push_back(report);
        self.report_rest();
    }

    fn report_rest(&mut self) {
        while let Some(report) = self.unreported.pop_front() {
            match self.reports.push(report) {
                Ok(()) => {}
                Err(Refused::Full(report)) => return self.unreported.push_front(report),
                Err(Refused::Closed(_)) => {}
            }
        }
    }

    fn end_when_done(&mut self) {
        // What is still being opened serves nobody, and ends with the process.
        let Some(number) = self.ending.filter(|_| self.places.is_empty()) else { return };
        match self.flash {
            // Closing vdisks has written stripes, and flash has taken them.
            FlashEnd::Open => self.close_flash(),
            FlashEnd::Closing => {}
            FlashEnd::Closed if self.ended.get() || self.giving_back => {}
            FlashEnd::Closed => {
                self.ended.set(true);
                self.tell(number, Answer::Ended);
            }
        }
    }

    fn view(&self) -> CoreView {
        let mut guests = self.past.clone();
        let mut vdisks = Vec::with_capacity(self.places.len());
        for (vdisk, place) in &self.places {
            let serving = &self.vdisks[*place];
            guests.merge(&serving.measures);
            let device = serving.disk.as_ref().map(|disk| DeviceView {
                state: disk.state(),
                queues: serving.queues(),
                in_flight: disk.in_flight() as u64,
                guest: serving.measures.clone(),
            });
            let stats = self.core.vdisk_stats(*vdisk).unwrap_or_default();
            vdisks.push(VdiskView { vdisk: *vdisk, stats, device });
        }
        CoreView {
            core: self.core.stats(),
            flash: self.core.flash().stats(),
            mirrored: self.mirrored.clone(),
            taken_bytes: self.front.waiting_bytes(),
            stalls: self.front.stalls(),
            guests,
            closed: self.closed.clone(),
            vdisks,
        }
    }
}

impl Drop for Core<'_> {
    fn drop(&mut self) {
        for (_, serving) in &mut self.vdisks {
            serving.unwatch(self.reactor);
        }
    }
}
