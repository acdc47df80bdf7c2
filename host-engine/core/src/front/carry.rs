//! Requests of other cores' homes for shares that are on this core.

use super::crossing::{Crossed, Crossing, ShareEnd, spare};
use super::{Core, FOREIGN, Front, passes};
use crate::request::{GuestError, GuestRequest, Operation};
use cleave_format::ids::VdiskId;
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use std::collections::VecDeque;

/// A share that is here, and the link to its home.
pub(super) struct Carried {
    /// Tells it from an earlier link in the same place.
    serial: u64,
    share: VdiskId,
    end: ShareEnd,
    /// Requests that the core had no room for, and those behind them. The home's device bounds them.
    pub stalled: VecDeque<GuestRequest>,
}

/// A request that the core has for another one.
pub(super) struct Carrying {
    link: usize,
    serial: u64,
    /// The home's name for it.
    token: Token,
    /// Bytes of a write, for which a spare buffer goes back.
    written: usize,
}

impl<U, C: Core> Front<U, C> {
    /// From now on requests for a share come over this link. An earlier link of the share ends.
    pub fn carry_for(&mut self, share: VdiskId, end: ShareEnd) {
        self.end_link(share);
        self.serials += 1;
        let stalled = VecDeque::new();
        self.carried.insert(Carried { serial: self.serials, share, end, stalled });
    }

    /// Takes no more requests for a share, those on their way included. To be called before the share is closed: what
    /// was sent to one opening of it must not reach the next (C8, C24).
    pub fn end_link(&mut self, share: VdiskId) {
        let places = self.carried.iter().filter(|(_, link)| link.share == share);
        let places: Vec<usize> = places.map(|(place, _)| place).collect();
        places.into_iter().for_each(|place| self.drop_link(place));
    }

    fn drop_link(&mut self, place: usize) {
        let link = self.carried.remove(place);
        self.stalled -= link.stalled.len();
        for piece in link.stalled {
            self.carrying.remove((piece.token & !FOREIGN) as usize);
        }
    }

    /// Shares that are here for other cores' homes.
    pub fn carried(&self) -> usize {
        self.carried.len()
    }

    /// Takes what came over the links.
    pub(super) fn carry(&mut self) -> bool {
        let mut any = false;
        let mut over = None;
        let Front { core, pools, carried, carrying, stalled, stalls, .. } = self;
        for (place, link) in carried.iter_mut() {
            while let Some(Crossing { token, operation }) = link.end.requests.pop() {
                any = true;
                let (operation, brought) = operation.taken(pools);
                if let Some(brought) = brought {
                    core.adopt(brought);
                }
                let written = match &operation {
                    Operation::Write { data, .. } => data.len(),
                    _ => 0,
                };
                let passes = passes(&operation);
                let own =
                    carrying.insert(Carrying { link: place, serial: link.serial, token, written });
                let piece =
                    GuestRequest { token: FOREIGN | own as Token, vdisk: link.share, operation };
                let refused = match *stalled > 0 && !passes {
                    true => Err(piece),
                    false => core.submit(piece),
                };
                if let Err(piece) = refused {
                    link.stalled.push_back(piece);
                    *stalled += 1;
                    *stalls += 1;
                }
            }
            if link.end.requests.closed() {
                over = Some(place);
            }
        }
        // Its home is gone; another one is looked at in the next turn.
        if let Some(place) = over {
            any = true;
            self.drop_link(place);
        }
        any
    }

    /// The core is done with a request of another one.
    pub(super) fn send_back(
        &mut self,
        token: Token,
        result: Result<(), GuestError>,
        data: Option<Buffer>,
    ) {
        let Carrying { link, serial, token, written } =
            self.carrying.remove((token & !FOREIGN) as usize);
        let Some(link) = self.carried.get(link).filter(|link| link.serial == serial) else {
            return;
        };
        let data = data.map(Buffer::loosen);
        let spare = if written > 0 { spare(&self.pools, written) } else { None };
        // A home that is gone is told nothing; one that is there has room for it.
        let _ = link.end.done.push(Crossed { token, result, data, spare });
    }
}
