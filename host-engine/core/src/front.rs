//! Between devices and cores: each request goes to the cores that have its shares, and is told to be done once.
//!
//! ```text
//! device ─ take ─▶ parts by share ─┬─ share is here ──▶ core ─────────────────────────────┬─▶ done
//!            │                     └─ on another core ═ ring ═▶ its front ─▶ its core ═ ring ═┘
//!            └─ meets a change of several parts: held until that is done
//! ```
//! A front belongs to a core. It has the *homes* of the vdisks whose devices are on this core, and *carries* requests for
//! shares that are here while the device is not.
//!
//! **Order** (C6, C23). Parts that overlap belong to one share, reach its core in the order taken, by the ring too, and
//! are merged, numbered and published there in that order. A change of several parts is published part by part, and
//! is done when all are. From its beginning until then nothing that overlaps it is begun, and it is begun when no read
//! that it overlaps is in flight: no read gives a part of it that is published while another is not, and no later change
//! is done while it is in flight, and a successor would do it again (C24). What is held keeps its order. Only such changes
//! and what meets them wait: those that cross the end of an extent, or have several ranges.
//!
//! **Back-pressure.** What this core has no room for waits here, in the order taken, for each source (home or
//! link); while anything waits, every other change waits behind it, and sources take turns, so that none starves. Reads
//! pass (rule 8). Links take so many at a time; the rest waits at home. The devices bound all of it.
//!
//! **Moves** (C1, C8). A share's requests are *paused*: later ones wait at home; once none is in flight, the share is
//! closed on its core and opened on another, which seals it under a new epoch, and they go on there. A link ends with the
//! share's closing, with whatever is in it, so nothing that was sent to one opening of a share reaches the next.
//!
//! A crash leaves requests in inflight regions. Of what is not served any more ([`GuestError::NotServed`]) a guest must not
//! be told: whoever serves next does it again (C24).

mod carry;
mod crossing;
mod homes;
#[cfg(test)]
mod tests;

pub use crossing::{HomeEnd, ShareEnd, link};

use crate::core::HostCore;
use crate::request::{GuestCompletion, GuestError, GuestRequest, Operation};
use carry::{Carried, Carrying};
use cleave_runtime::Token;
use cleave_runtime::buffer::{Buffer, BufferPool, LooseBuffer};
use crossing::Crossed;
use homes::{Home, Taken};
use slab::Slab;

/// Set in the tokens of requests that are carried for another core.
const FOREIGN: Token = 1 << 63;

/// What a front needs of its core.
pub trait Core {
    /// As [`HostCore::submit`].
    fn submit(&self, request: GuestRequest) -> Result<(), GuestRequest>;
    /// As [`HostCore::has_completions`].
    fn has_completions(&self) -> bool;
    /// As [`HostCore::completions`].
    fn completions(&self, completions: &mut Vec<GuestCompletion>);
    /// As [`HostCore::adopt`].
    fn adopt(&self, spare: LooseBuffer);
}

impl Core for HostCore {
    fn submit(&self, request: GuestRequest) -> Result<(), GuestRequest> {
        HostCore::submit(self, request)
    }

    fn has_completions(&self) -> bool {
        HostCore::has_completions(self)
    }

    fn completions(&self, completions: &mut Vec<GuestCompletion>) {
        HostCore::completions(self, completions);
    }

    fn adopt(&self, spare: LooseBuffer) {
        HostCore::adopt(self, spare);
    }
}

/// Names a home of a front; used again only once the home is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeKey {
    place: usize,
    serial: u64,
}

/// Where a share is.
#[derive(Debug)]
pub enum Place {
    /// On this core.
    Here,
    /// On another one.
    There(HomeEnd),
}

/// A request that is done, or not served any more.
#[derive(Debug)]
pub struct Done<U> {
    /// Of which home.
    pub home: HomeKey,
    /// What came with it.
    pub user: U,
    /// Whether all of it was done.
    pub result: Result<(), GuestError>,
    /// A read's data, in order.
    pub data: Data,
}

/// A read's data, in one buffer mostly.
#[derive(Debug, Default)]
pub struct Data {
    first: Option<Buffer>,
    rest: Vec<Option<Buffer>>,
}

impl Data {
    /// The buffers, in order.
    pub fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        self.first.iter().chain(self.rest.iter().flatten())
    }

    /// Whether it is in one buffer, or there is none.
    pub fn is_whole(&self) -> bool {
        self.rest.is_empty()
    }
}

/// See the module's page. `U` comes with each request and goes with its end.
pub struct Front<U, C = HostCore> {
    core: C,
    /// Where buffers of other cores are kept, by capacity.
    pools: Vec<BufferPool>,
    homes: Slab<Home>,
    serials: u64,
    /// Shares of homes that are on other cores.
    linked: usize,
    taken: Slab<Taken<U>>,
    carried: Slab<Carried>,
    carrying: Slab<Carrying>,
    /// Requests that wait for room in this core.
    stalled: usize,
    /// Requests that ever had to.
    stalls: u64,
    /// Whose turn it is to be given room: homes, then links.
    turn_of: usize,
    // Empty between uses; kept for their memory.
    completions: Vec<GuestCompletion>,
    pieces: Vec<GuestRequest>,
}

impl<U, C: Core> Front<U, C> {
    /// The front of a core. `pools`, by growing capacity, take buffers in that come from other cores.
    pub fn new(core: C, pools: Vec<BufferPool>) -> Front<U, C> {
        Front {
            core,
            pools,
            homes: Slab::new(),
            serials: 0,
            linked: 0,
            taken: Slab::new(),
            carried: Slab::new(),
            carrying: Slab::new(),
            stalled: 0,
            stalls: 0,
            turn_of: 0,
            completions: Vec::new(),
            pieces: Vec::new(),
        }
    }

    /// Takes what links bring, and gives room to what waits. True when there was anything.
    pub fn turn(&mut self) -> bool {
        let mut any = false;
        if !self.carried.is_empty() {
            any |= self.carry();
        }
        if self.stalled > 0 {
            any |= self.give_room();
        }
        any
    }

    /// Whether anything may be done.
    pub fn has_done(&self) -> bool {
        self.linked > 0 || self.core.has_completions()
    }

    /// Appends what is done: what overlaps in the order in which guests must be told (C23). True when the
    /// core or a link had anything. The clock must have been read since requests were taken, as for
    /// [`HostCore::completions`]: a read that was true then is, whenever its guest is told (C9).
    pub fn done(&mut self, done: &mut Vec<Done<U>>) -> bool {
        let mut completions = std::mem::take(&mut self.completions);
        self.core.completions(&mut completions);
        let mut any = !completions.is_empty();
        for GuestCompletion { token, result, data } in completions.drain(..) {
            match token & FOREIGN {
                0 => self.part_done(token, true, result, data, done),
                _ => self.send_back(token, result, data),
            }
        }
        self.completions = completions;
        if self.linked > 0 {
            any |= self.take_crossed(done);
        }
        any
    }

    /// Requests that wait for room in the core at present.
    pub fn waiting(&self) -> usize {
        self.stalled
    }

    /// Requests that ever had to wait for room.
    pub fn stalls(&self) -> u64 {
        self.stalls
    }

    /// Bytes of writes that are not in this core's write buffer, nor with another core.
    pub fn waiting_bytes(&self) -> u64 {
        let bytes = |piece: &GuestRequest| match &piece.operation {
            Operation::Write { data, .. } => data.len() as u64,
            _ => 0,
        };
        let homes = self.homes.iter().flat_map(|(_, home)| home.waiting());
        let carried = self.carried.iter().flat_map(|(_, link)| &link.stalled);
        homes.chain(carried).map(bytes).sum()
    }

    /// Gives the core what waits, one request of each source after another, until it has no room.
    fn give_room(&mut self) -> bool {
        let mut worked = false;
        // Sources found without anything that waits, since the last one that had something.
        let mut empty = 0;
        let homes = self.homes.capacity();
        let end = homes + self.carried.capacity();
        while self.stalled > 0 {
            assert!(empty <= end, "what waits belongs to a source");
            self.turn_of = if self.turn_of >= end { 0 } else { self.turn_of };
            let waiting = match self.turn_of.checked_sub(homes) {
                None => self.homes.get_mut(self.turn_of).map(|home| &mut home.stalled),
                Some(link) => self.carried.get_mut(link).map(|link| &mut link.stalled),
            };
            let Some((waiting, piece)) =
                waiting.and_then(|waiting| waiting.pop_front().map(|piece| (waiting, piece)))
            else {
                self.turn_of += 1;
                empty += 1;
                continue;
            };
            if let Err(piece) = self.core.submit(piece) {
                waiting.push_front(piece);
                break;
            }
            self.turn_of += 1;
            self.stalled -= 1;
            (empty, worked) = (0, true);
        }
        worked
    }
}

/// Whether a request goes past what waits for room.
fn passes(operation: &Operation) -> bool {
    matches!(operation, Operation::Read { .. } | Operation::Flush)
}
