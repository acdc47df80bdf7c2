//! The stripes that the catalog lists for a vdisk, asked for once it is served: what no entry of its map
//! names was not reported before the last owner ended, or was covered before it was committed (C20). The footers
//! of the others fill the fingerprint index again, the newest first, in the background.

use crate::core::Shared;
use crate::open::RETRY;
use cleave_format::footer::FooterContent;
use cleave_format::ids::{Epoch, Position, StripeId, VdiskId};
use cleave_runtime::links::Class;
use cleave_wire::{ControllerMessage, HostMessage, Refusal};
use std::rc::Rc;
use std::time::Duration;

/// Between two footers that are read for the fingerprint index.
const BETWEEN_FOOTERS: Duration = Duration::from_millis(5);

impl Shared {
    /// Takes the list, page by page. What commits after the seal did is known here without it.
    pub(super) async fn list_stripes(
        self: Rc<Shared>,
        vdisk: VdiskId,
        epoch: Epoch,
        sealed: Position,
    ) {
        let mut from = StripeId(0);
        let mut all = Vec::new();
        loop {
            let ask = |request| HostMessage::ListStripes { request, vdisk, epoch, from };
            let reply = self.request(Class::Read, 0, ask, &[]).await;
            let ControllerMessage::Listed { stripes, next, refused, .. } = reply.message else {
                return;
            };
            match refused {
                None => {}
                Some(Refusal::Sealed | Refusal::Malformed) => return,
                Some(_) => {
                    self.executor.sleep(RETRY).await;
                    continue;
                }
            }
            {
                let mut state = self.state.borrow_mut();
                if state.vdisks.get(&vdisk).is_none_or(|open| open.epoch != epoch) {
                    return;
                }
                for listed in stripes.iter().filter(|listed| listed.position <= sealed) {
                    state.map.listed(vdisk, listed.stripe);
                }
                state.run_may_be_due = true;
                all.extend(stripes.iter().map(|listed| listed.stripe));
            }
            match next {
                Some(next) => from = next,
                None => break,
            }
        }
        self.refill_index(vdisk, epoch, all).await;
    }

    /// Puts what the footers of a vdisk's stripes say into the fingerprint index, until that is full.
    async fn refill_index(self: &Rc<Shared>, vdisk: VdiskId, epoch: Epoch, mut all: Vec<StripeId>) {
        // What no map names, as far as that is counted, is not referred to (C19).
        let progress = self.state.borrow().progress.clone();
        let counted = || {
            let state = self.state.borrow();
            let open = state.vdisks.get(&vdisk).is_some_and(|open| open.epoch == epoch);
            (!open || state.map.is_counted(vdisk)).then_some(())
        };
        progress.until(counted).await;
        // Newer ones have higher numbers, mostly.
        all.sort_unstable();
        while let Some(stripe) = all.pop() {
            {
                let state = self.state.borrow();
                let (used, places) = state.index.len();
                let open = state.vdisks.get(&vdisk).is_some_and(|open| open.epoch == epoch);
                if !open || used * 16 >= places * 15 {
                    return;
                }
                if !state.map.names(vdisk, stripe) {
                    continue;
                }
            }
            self.executor.sleep(BETWEEN_FOOTERS).await;
            let Some(places) = self.locate(stripe).await else { continue };
            // One that cannot be read now is of no use now.
            let Ok(entries) = self.footer(vdisk, stripe, &places).await else { continue };
            let mut state = self.state.borrow_mut();
            if state.vdisks.get(&vdisk).is_none_or(|open| open.epoch != epoch) {
                return;
            }
            for entry in entries.iter().filter(|entry| entry.vdisk == vdisk) {
                if let FooterContent::Frame { place, block_in_frame: 0, fingerprint } =
                    entry.content
                {
                    let address = place.address(stripe);
                    state.learn_older_fingerprint(vdisk, &fingerprint, address);
                }
            }
        }
    }
}
