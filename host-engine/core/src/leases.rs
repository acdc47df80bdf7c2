//! Read leases (C9): a read is answered only while nobody else can have written.
//!
//! What a core answers reads from (map, write buffer, flash) is the newest content for as long as the log takes
//! nothing of another owner. A write learns that from its acknowledgement; a read is told by nobody. So the core asks
//! every two seconds for the leases of its vdisks, and a lease lasts for [`LEASE`] from the moment *before* it was asked for. A new owner
//! is not served before that is over by the controllers' clocks.
//!
//! A read is checked when it is answered, by a clock that was read after the request was taken: then nobody else had
//! written at some moment of its life, and that is what it returns. That its core stops between the check and the
//! answer for however long changes nothing. Reads that are done while there is no lease are *held*; they are answered when the
//! lease is renewed, or not at all, when the vdisk turns out to be another host's (C24: they stay in the guest's
//! inflight region).
//!
//! A crash leaves nothing behind: a new owner waits, or knows by the kernel's lock that nothing runs any more (C25).

use crate::core::Shared;
use crate::open::RETRY;
use crate::request::{GuestCompletion, GuestError};
use crate::state::State;
use cleave_format::ids::{Epoch, VdiskId};
use cleave_runtime::links::Class;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::Signal;
use cleave_runtime::time::Moment;
use cleave_wire::{ControllerMessage, HostMessage, LEASE, LEASE_RENEWED};
use std::rc::Rc;

/// The leases of a core, and the reads that they are looked at for.
#[derive(Default)]
pub(crate) struct Leases {
    /// Reads that are done.
    done: Vec<(VdiskId, GuestCompletion)>,
    /// Every vdisk here has a lease until then, at least.
    all_until: Moment,
    /// Some lease is wanted at once.
    wanted: bool,
    changed: Signal,
}

impl Leases {
    /// A read is done, and may be answered while the vdisk has its lease.
    pub fn read(&mut self, vdisk: VdiskId, completion: GuestCompletion) {
        self.done.push((vdisk, completion));
    }

    /// Reads that are done and not answered.
    pub fn len(&self) -> usize {
        self.done.len()
    }

    /// Whether there is such a read of this vdisk.
    pub fn holds(&self, vdisk: VdiskId) -> bool {
        self.done.iter().any(|(of, _)| *of == vdisk)
    }
}

impl State {
    /// The vdisk is sealed for this core: from now on it asks for its lease.
    pub fn want_lease(&mut self, vdisk: VdiskId) {
        if let Some(open) = self.vdisks.get_mut(&vdisk) {
            open.lease = Some(Moment::default());
            self.leases.all_until = Moment::default();
            self.leases.wanted = true;
            self.leases.changed.notify();
        }
    }

    /// Vdisks that this core owns.
    fn leased(&self) -> Vec<(VdiskId, Epoch)> {
        let sealed = self.vdisks.iter().filter(|(_, open)| open.lease.is_some());
        sealed.map(|(vdisk, open)| (*vdisk, open.epoch)).collect()
    }

    /// Vdisks whose lease had run out when the turn began. One that never had any is still being opened.
    pub fn leases_lost(&self) -> u64 {
        let lost = |lease: &Moment| *lease > Moment::default() && *lease <= self.now;
        self.vdisks.values().filter_map(|open| open.lease).filter(lost).count() as u64
    }

    /// What was asked for at `asked` was given, but for the vdisks that are lost.
    fn renewed(&mut self, asked: Moment, vdisks: &[(VdiskId, Epoch)], lost: &[VdiskId]) {
        for (vdisk, epoch) in vdisks {
            let Some(open) = self.vdisks.get_mut(vdisk) else { continue };
            if open.epoch != *epoch {
                continue;
            }
            if lost.contains(vdisk) {
                self.fence(*vdisk);
            } else {
                open.lease = open.lease.max(Some(asked + LEASE));
            }
        }
        let leases = self.vdisks.values().filter_map(|open| open.lease);
        self.leases.all_until = leases.min().unwrap_or_default();
    }

    /// Appends the reads that may be answered at `now`. The others are held.
    pub fn answer_reads(&mut self, now: Moment, completions: &mut Vec<GuestCompletion>) {
        let held = self.leases.done.len();
        if held == 0 {
            return;
        }
        if now < self.leases.all_until || is_planted(Planted::ReadPastLease) {
            completions.extend(self.leases.done.drain(..).map(|(_, read)| read));
        } else {
            let vdisks = &self.vdisks;
            let lasts = |(vdisk, _): &mut (VdiskId, GuestCompletion)| {
                vdisks.get(vdisk).is_some_and(|open| open.lease > Some(now))
            };
            completions.extend(self.leases.done.extract_if(.., lasts).map(|(_, read)| read));
            self.stats.reads_held = self.leases.done.len() as u64;
        }
        let answered = self.leases.done.len() < held;
        if answered && self.vdisks.values().any(|open| !open.serving) {
            // It may wait for its last reads.
            self.progress.notify();
        }
    }

    /// The vdisk is not served here any more: neither are the reads that are held.
    pub fn forget_reads(&mut self, vdisk: VdiskId) {
        let own = self.leases.done.extract_if(.., |(of, _)| *of == vdisk);
        let forgotten = own.map(|(_, GuestCompletion { token, .. })| GuestCompletion {
            token,
            result: Err(GuestError::NotServed),
            data: None,
        });
        self.completions.extend(forgotten);
    }
}

impl Shared {
    /// Asks for the leases of the core's vdisks, for as long as it lives.
    pub(crate) async fn keep_leases(self: Rc<Shared>) {
        let (changed, connected) = {
            let state = self.state.borrow();
            (state.leases.changed.clone(), state.class_links[0].changed.clone())
        };
        loop {
            let wanted = || self.state.borrow().leases.wanted.then_some(());
            if self.state.borrow().leased().is_empty() {
                changed.until(wanted).await;
            } else {
                self.executor.timeout(LEASE_RENEWED, changed.until(wanted)).await;
            }
            connected.until(|| self.state.borrow().ready(Class::Log)).await;
            let (asked, vdisks) = {
                let mut state = self.state.borrow_mut();
                state.leases.wanted = false;
                // The executor's clock may stand since the turn began: earlier than now is never wrong.
                (self.executor.now(), state.leased())
            };
            if vdisks.is_empty() {
                continue;
            }
            let ask = |request| HostMessage::Renew { request, vdisks: vdisks.clone() };
            let answer = self.request(Class::Log, 0, ask, &[]);
            let reply = self.executor.timeout(LEASE_RENEWED, answer).await;
            if let Some(ControllerMessage::Renewed { lost, .. }) = reply.map(|reply| reply.message)
            {
                self.state.borrow_mut().renewed(asked, &vdisks, &lost);
            } else {
                self.state.borrow_mut().leases.wanted = true;
                self.executor.sleep(RETRY).await;
            }
        }
    }
}
