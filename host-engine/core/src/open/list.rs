//! The stripes that the catalog lists for a vdisk, asked for once it is served: what no entry of its map
//! names was not reported before the last owner ended, or was covered before it was committed (C20).

use crate::core::Shared;
use crate::open::RETRY;
use cleave_format::ids::{Epoch, Position, StripeId, VdiskId};
use cleave_runtime::links::Class;
use cleave_wire::{ControllerMessage, HostMessage, Refusal};
use std::rc::Rc;

impl Shared {
    /// Takes the list, page by page. What commits after the seal did is known here without it.
    pub(super) async fn list_stripes(
        self: Rc<Shared>,
        vdisk: VdiskId,
        epoch: Epoch,
        sealed: Position,
    ) {
        let mut from = StripeId(0);
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
            }
            match next {
                Some(next) => from = next,
                None => return,
            }
        }
    }
}
