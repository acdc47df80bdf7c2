//! Letting a vdisk go, for now or for ever, and letting it grow; ending a core.
//!
//! What is not done when a vdisk is closed is in the log, as after a crash.

use crate::core::{HostCore, Shared};
use crate::error::HostError;
use crate::open::{RETRY, is_size};
use crate::runs::Run;
use cleave_format::ids::VdiskId;
use cleave_runtime::links::Class;
use cleave_wire::{ControllerMessage, HostMessage, Refusal};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

/// Commits after the frontier from which on a clean close writes a map run.
const RUN_AT_CLOSE: usize = 8;

impl HostCore {
    /// Grows a vdisk that is open.
    pub fn resize(&self, vdisk: VdiskId, size: u64) -> Result<(), HostError> {
        let mut state = self.0.state.borrow_mut();
        let open = state.vdisks.get_mut(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
        if size < open.size || !is_size(size) {
            return Err(HostError::Size { vdisk, size: open.size });
        }
        open.size = size;
        Ok(())
    }

    /// Takes no more requests of the vdisk, waits until those taken are done (at most `limit`), writes a map run where
    /// that is worth it, and forgets the vdisk. True when everything was done in time; what was
    /// not is in the log, as after a crash.
    pub fn close(&self, vdisk: VdiskId, limit: Duration) -> impl Future<Output = bool> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            let executor = shared.executor.clone();
            let done = executor.timeout(limit, shared.drain(vdisk)).await;
            shared.state.borrow_mut().forget(vdisk);
            done.is_some()
        }
    }

    /// Writes a map run while the vdisk is served, where that is worth it, so that a close soon after takes little; waits for
    /// at most `limit`.
    pub fn prepare_close(
        &self,
        vdisk: VdiskId,
        limit: Duration,
    ) -> impl Future<Output = ()> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            shared.executor.timeout(limit, shared.write_run(vdisk)).await;
        }
    }

    /// Ends the core of an engine that goes on: gives back what was granted to it and not used. To be called when no
    /// vdisk is open; nothing is destaged afterwards. Waits for at most `limit`: what does not arrive ends with the
    /// incarnation (C15).
    pub fn end(&self, limit: Duration) -> impl Future<Output = ()> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            let progress = {
                let mut state = shared.state.borrow_mut();
                state.ending = true;
                state.progress.clone()
            };
            progress.notify();
            let ended = progress.until(|| shared.state.borrow().ended.then_some(()));
            shared.executor.timeout(limit, ended).await;
        }
    }

    /// Ends the vdisk for ever: its records and its part of the catalog go (C28). It must be open here.
    pub fn delete(&self, vdisk: VdiskId) -> impl Future<Output = Result<(), HostError>> + use<> {
        let shared = Rc::clone(&self.0);
        async move {
            let epoch = {
                let mut state = shared.state.borrow_mut();
                let open = state.vdisks.get_mut(&vdisk).ok_or(HostError::NotOpen { vdisk })?;
                open.serving = false;
                open.deleting = true;
                open.epoch
            };
            let idle = shared.quiet(vdisk);
            idle.await;
            let result = loop {
                let ask = |request| HostMessage::Delete { request, vdisk, epoch };
                match shared.request(Class::Log, 0, ask, &[]).await.message {
                    ControllerMessage::Done { result: Ok(_), .. } => break Ok(()),
                    ControllerMessage::Done { result: Err(Refusal::Full), .. } => {
                        shared.executor.sleep(RETRY).await;
                    }
                    ControllerMessage::Done { result: Err(refusal), .. } => {
                        break Err(HostError::Refused { vdisk, refusal });
                    }
                    _ => {
                        let refusal = Refusal::Malformed;
                        break Err(HostError::Refused { vdisk, refusal });
                    }
                }
            };
            shared.state.borrow_mut().forget(vdisk);
            result
        }
    }
}

impl Shared {
    /// Waits until nothing of the vdisk is on its way.
    async fn quiet(&self, vdisk: VdiskId) {
        let progress = self.state.borrow().progress.clone();
        let quiet = || {
            let state = self.state.borrow();
            let busy = state.writes.of(vdisk) > 0
                || state.reads.values().any(|read| read.vdisk == vdisk)
                || state.leases.holds(vdisk)
                || state.vdisks.get(&vdisk).is_some_and(|open| open.in_stripes > 0);
            (!busy).then_some(())
        };
        progress.until(quiet).await;
    }

    async fn drain(&self, vdisk: VdiskId) {
        if let Some(open) = self.state.borrow_mut().vdisks.get_mut(&vdisk) {
            open.serving = false;
        }
        self.quiet(vdisk).await;
        self.write_run(vdisk).await;
        self.quiet(vdisk).await;
    }

    /// Has a map run written where that is worth it, and waits for it.
    async fn write_run(&self, vdisk: VdiskId) {
        let progress = {
            let mut state = self.state.borrow_mut();
            if let Some(open) = state.vdisks.get_mut(&vdisk) {
                open.run_wanted = open.commits.len() >= RUN_AT_CLOSE;
            }
            state.run_may_be_due = true;
            state.progress.clone()
        };
        progress.notify();
        let written = || {
            let state = self.state.borrow();
            let wanted = state.vdisks.get(&vdisk).is_some_and(|open| open.run_wanted);
            // A run that began for other reasons and that nothing carries on is given up.
            let own = state.run.as_ref().filter(|run| run.vdisk == vdisk);
            let begun = own.is_some_and(Run::goes_on);
            (!wanted && !begun).then_some(())
        };
        progress.until(written).await;
    }
}
