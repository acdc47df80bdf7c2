//! Vdisks whose devices are on this core.

use super::crossing::{Crossing, LINK, LooseOperation, adopt, take};
use super::{Core, Crossed, Data, Done, Front, HomeKey, Place, passes};
use crate::request::{GuestError, GuestRequest, Operation};
use crate::shares::Shares;
use cleave_format::layout::BLOCK;
use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::ring::Refused;
use std::collections::VecDeque;

/// A vdisk whose device is here.
pub(super) struct Home {
    /// Tells it from an earlier one in the same place.
    serial: u64,
    shares: Shares,
    ends: Vec<End>,
    /// Parts for shares that are here, which the core had no room for, and those behind them.
    pub stalled: VecDeque<GuestRequest>,
    /// Changes of several parts that were begun and are not done.
    wide: Vec<usize>,
    /// What must not be begun beside these, and changes behind that: in the order taken.
    held: VecDeque<Held>,
}

impl Home {
    /// Everything that waits here.
    pub fn waiting(&self) -> impl Iterator<Item = &GuestRequest> {
        let queued = self.ends.iter().flat_map(|end| &end.queue);
        let held = self.held.iter().flat_map(|held| &held.pieces);
        self.stalled.iter().chain(queued).chain(held)
    }
}

/// Where a share's requests go.
struct End {
    place: Place,
    /// Requests wait, because the share is about to go elsewhere.
    paused: bool,
    /// Given to the core, or on their way over the link, and not done.
    in_flight: usize,
    /// What waits for the link, or for the share to be served again.
    queue: VecDeque<GuestRequest>,
}

/// A request that waits for others.
struct Held {
    taken: usize,
    pieces: Vec<GuestRequest>,
}

impl Held {
    /// Whether it is a change of several parts.
    fn is_wide(&self) -> bool {
        self.pieces.len() > 1 && !passes(&self.pieces[0].operation)
    }

    fn blocks(&self) -> Vec<(u64, u64)> {
        self.pieces.iter().map(blocks).collect()
    }
}

/// A request that was taken and is not done.
pub(super) struct Taken<U> {
    home: HomeKey,
    user: Option<U>,
    /// Parts that are not done.
    left: u32,
    /// Of these, those that this core has.
    here: u32,
    /// The first thing that went wrong.
    failed: Option<GuestError>,
    /// A share is not served any more: nobody is to be told anything.
    void: bool,
    data: Data,
    /// A change of several parts: the blocks that it touches, first and last. Else empty.
    blocks: Vec<(u64, u64)>,
    /// The blocks of a read that was begun.
    reads: Option<(u64, u64)>,
}

/// A part's name: the request's place, the number of the part, the share.
fn name(taken: usize, part: usize, share: u16) -> Token {
    debug_assert!(taken < 1 << 32 && part < 1 << 16 && share < 1 << 8);
    taken as Token | (part as Token) << 32 | u64::from(share) << 48
}

fn named(token: Token) -> (usize, usize, usize) {
    let part = |from: u32, bits: u32| (token >> from & ((1 << bits) - 1)) as usize;
    (part(0, 32), part(32, 16), part(48, 8))
}

fn range(operation: &Operation) -> (u64, u64) {
    match operation {
        Operation::Read { offset, length } => (*offset, u64::from(*length)),
        Operation::Write { offset, data } => (*offset, data.len() as u64),
        Operation::WriteZeroes { offset, length, .. } | Operation::Discard { offset, length } => {
            (*offset, *length)
        }
        Operation::Flush => (0, 0),
    }
}

/// The blocks that a part touches.
fn blocks(piece: &GuestRequest) -> (u64, u64) {
    let (offset, length) = range(&piece.operation);
    blocks_of(offset, length)
}

fn blocks_of(offset: u64, length: u64) -> (u64, u64) {
    let last = offset.saturating_add(length.saturating_sub(1));
    (offset / BLOCK as u64, last / BLOCK as u64)
}

fn overlap(some: &[(u64, u64)], others: &[(u64, u64)]) -> bool {
    some.iter().any(|(first, last)| others.iter().any(|(from, to)| from <= last && first <= to))
}

impl<U, C: Core> Front<U, C> {
    /// A vdisk's device is here now, and its shares where `places` says, in order.
    pub fn add_home(&mut self, shares: Shares, places: Vec<Place>) -> HomeKey {
        assert_eq!(places.len(), usize::from(shares.count()), "each share is somewhere");
        self.serials += 1;
        let serial = self.serials;
        let end = |place| End { place, paused: false, in_flight: 0, queue: VecDeque::new() };
        let ends: Vec<End> = places.into_iter().map(end).collect();
        self.linked += ends.iter().filter(|end| matches!(end.place, Place::There(_))).count();
        let (stalled, wide, held) = (VecDeque::new(), Vec::new(), VecDeque::new());
        let home = Home { serial, shares, ends, stalled, wide, held };
        HomeKey { place: self.homes.insert(home), serial }
    }

    /// The device is not here any more: nobody is told of what was not done.
    pub fn remove_home(&mut self, key: HomeKey) {
        if self.home(key).is_none() {
            return;
        }
        let home = self.homes.remove(key.place);
        self.linked -= home.ends.iter().filter(|end| matches!(end.place, Place::There(_))).count();
        self.stalled -= home.stalled.len();
        for piece in &home.stalled {
            self.taken[named(piece.token).0].here -= 1;
        }
        self.taken.retain(|_, taken| {
            let own = taken.home == key;
            if own {
                (taken.void, taken.left) = (true, taken.here);
            }
            !own || taken.here > 0
        });
    }

    fn home(&mut self, key: HomeKey) -> Option<&mut Home> {
        self.homes.get_mut(key.place).filter(|home| home.serial == key.serial)
    }

    /// Parts of its requests that wait: for room, for a link, for a share, or for other requests.
    pub fn waiting_of(&self, key: HomeKey) -> usize {
        let home = self.homes.get(key.place).filter(|home| home.serial == key.serial);
        home.map_or(0, |home| home.waiting().count())
    }

    /// Takes a request: of one range mostly; a discard or write-zeroes may have several.
    pub fn take(&mut self, key: HomeKey, user: U, operations: impl IntoIterator<Item = Operation>) {
        let Some(shares) = self.home(key).map(|home| home.shares) else { return };
        let mut pieces = std::mem::take(&mut self.pieces);
        let taken = self.taken.vacant_key();
        let (mut change, mut reads) = (false, None);
        for operation in operations {
            change |= !passes(&operation);
            if let Operation::Read { offset, length } = operation {
                reads = Some(blocks_of(offset, u64::from(length)));
            }
            self.cut(shares, taken, operation, &mut pieces);
        }
        assert!(!pieces.is_empty(), "a request has a range at least");
        let wide = change && pieces.len() > 1;
        let blocks = if wide { pieces.iter().map(blocks).collect() } else { Vec::new() };
        self.taken.insert(Taken {
            home: key,
            user: Some(user),
            left: pieces.len() as u32,
            here: 0,
            failed: None,
            void: false,
            data: Data::default(),
            blocks,
            reads: None,
        });
        if self.must_wait(key, change, wide, reads) {
            let pieces = std::mem::take(&mut pieces);
            let home = self.home(key).expect("it was found");
            home.held.push_back(Held { taken, pieces });
            self.begin_held(key);
        } else {
            self.note_begun(key, taken, wide, reads);
            pieces.drain(..).for_each(|piece| self.begin(key.place, piece));
        }
        self.pieces = pieces;
    }

    /// Whether a request has to be looked at before it is begun.
    fn must_wait(&self, key: HomeKey, change: bool, wide: bool, reads: Option<(u64, u64)>) -> bool {
        let home = &self.homes[key.place];
        if home.wide.is_empty() && home.held.is_empty() {
            // One of several parts looks for reads before it.
            return wide;
        }
        change || reads.is_some_and(|reads| self.is_before_wide(home, &[reads]))
    }

    /// Whether a change of several parts, begun or held, overlaps these blocks.
    fn is_before_wide(&self, home: &Home, own: &[(u64, u64)]) -> bool {
        let begun = home.wide.iter().any(|wide| overlap(own, &self.taken[*wide].blocks));
        begun || home.held.iter().any(|held| held.is_wide() && overlap(own, &held.blocks()))
    }

    fn note_begun(&mut self, key: HomeKey, taken: usize, wide: bool, reads: Option<(u64, u64)>) {
        self.taken[taken].reads = reads;
        if wide {
            self.homes[key.place].wide.push(taken);
        }
    }

    /// Cuts an operation into parts by share.
    fn cut(
        &self,
        shares: Shares,
        taken: usize,
        operation: Operation,
        pieces: &mut Vec<GuestRequest>,
    ) {
        let (offset, length) = range(&operation);
        let mut add = |share, operation| {
            let token = name(taken, pieces.len(), share);
            pieces.push(GuestRequest { token, vdisk: shares.identity(share), operation });
        };
        let mut parts = shares.cut(offset, length);
        let (share, _, first) = parts.next().expect("a range has a part");
        if first == length {
            return add(share, operation);
        }
        for (share, from, length) in std::iter::once((share, offset, first)).chain(parts) {
            let part = match &operation {
                Operation::Read { .. } => Operation::Read { offset: from, length: length as u32 },
                Operation::Write { data, .. } => {
                    let start = (from - offset) as usize;
                    let mut part = take(&self.pools, length as usize);
                    part.copy_from_slice(&data[start..start + length as usize]);
                    Operation::Write { offset: from, data: part }
                }
                Operation::WriteZeroes { unmap, .. } => {
                    Operation::WriteZeroes { offset: from, length, unmap: *unmap }
                }
                Operation::Discard { .. } => Operation::Discard { offset: from, length },
                Operation::Flush => Operation::Flush,
            };
            add(share, part);
        }
    }

    /// Sends a part where its share is, behind what waits for that.
    fn begin(&mut self, place: usize, piece: GuestRequest) {
        let Front { core, pools, homes, taken, stalled, stalls, .. } = self;
        let home = &mut homes[place];
        let (of, _, share) = named(piece.token);
        let end = &mut home.ends[share];
        if end.paused || !end.queue.is_empty() {
            return end.queue.push_back(piece);
        }
        match &end.place {
            Place::Here => {
                end.in_flight += 1;
                taken[of].here += 1;
                let refused = match *stalled > 0 && !passes(&piece.operation) {
                    true => Err(piece),
                    false => core.submit(piece),
                };
                if let Err(piece) = refused {
                    home.stalled.push_back(piece);
                    *stalled += 1;
                    *stalls += 1;
                }
            }
            Place::There(_) if end.in_flight == LINK => end.queue.push_back(piece),
            Place::There(link) => {
                let GuestRequest { token, operation, .. } = piece;
                let operation = LooseOperation::of(operation, pools);
                end.in_flight += 1;
                match link.requests.push(Crossing { token, operation }) {
                    Ok(()) => {}
                    Err(Refused::Full(_)) => unreachable!("a link has a place for each"),
                    // The share is not served there any more, and its home about to be told.
                    Err(Refused::Closed(_)) => taken[of].void = true,
                }
            }
        }
    }

    /// Sends what waits for a share, as far as that goes.
    fn send_queue(&mut self, place: usize, share: usize) {
        let end = &mut self.homes[place].ends[share];
        let room = |end: &End| matches!(end.place, Place::Here) || end.in_flight < LINK;
        if end.paused || end.queue.is_empty() || !room(end) {
            return;
        }
        // Behind nothing: they are what others would wait behind.
        let mut queue = std::mem::take(&mut end.queue);
        while let Some(piece) = queue.pop_front() {
            self.begin(place, piece);
            if !room(&self.homes[place].ends[share]) {
                break;
            }
        }
        self.homes[place].ends[share].queue = queue;
    }

    /// Begins what was held, as far as nothing before it stands in its way.
    fn begin_held(&mut self, key: HomeKey) {
        while let Some(held) = self.homes[key.place].held.front() {
            let (own, wide, of) = (held.blocks(), held.is_wide(), held.taken);
            let begun = &self.homes[key.place].wide;
            let behind = begun.iter().any(|wide| overlap(&own, &self.taken[*wide].blocks));
            let read = |taken: &Taken<U>| {
                taken.home == key && taken.reads.is_some_and(|reads| overlap(&own, &[reads]))
            };
            let blocked = behind || (wide && self.taken.iter().any(|(_, taken)| read(taken)));
            if blocked && !is_planted(Planted::OvertakeWideChanges) {
                return;
            }
            let home = &mut self.homes[key.place];
            let held = home.held.pop_front().expect("it is the first");
            let first = &held.pieces[0].operation;
            let reads = match (first, own.first(), own.last()) {
                (Operation::Read { .. }, Some(first), Some(last)) => Some((first.0, last.1)),
                _ => None,
            };
            self.note_begun(key, of, wide, reads);
            held.pieces.into_iter().for_each(|piece| self.begin(key.place, piece));
        }
    }

    /// Drops what waits: nobody is told of it.
    pub fn drop_waiting(&mut self, key: HomeKey) {
        let Some(home) = self.home(key) else { return };
        let stalled = std::mem::take(&mut home.stalled);
        let queues = home.ends.iter_mut().map(|end| std::mem::take(&mut end.queue));
        let mut waiting: Vec<GuestRequest> = queues.flatten().collect();
        waiting.extend(home.held.drain(..).flat_map(|held| held.pieces));
        self.stalled -= stalled.len();
        for piece in &stalled {
            let (of, _, share) = named(piece.token);
            self.homes[key.place].ends[share].in_flight -= 1;
            self.taken[of].here -= 1;
        }
        for piece in stalled.into_iter().chain(waiting) {
            let (of, ..) = named(piece.token);
            let taken = &mut self.taken[of];
            taken.void = true;
            taken.left -= 1;
            if taken.left == 0 {
                self.taken.remove(of);
                self.homes[key.place].wide.retain(|other| *other != of);
            }
        }
    }

    /// Takes the ends of what other cores did.
    pub(super) fn take_crossed(&mut self, done: &mut Vec<Done<U>>) -> bool {
        let mut any = false;
        for place in 0..self.homes.capacity() {
            let shares = self.homes.get(place).map_or(0, |home| home.ends.len());
            for share in 0..shares {
                while let Some(crossed) = self.next_crossed(place, share) {
                    any = true;
                    let Crossed { token, result, data, spare } = crossed;
                    drop(spare.map(|loose| adopt(&self.pools, loose)));
                    let data = data.map(|loose| adopt(&self.pools, loose));
                    self.part_done(token, false, result, data, done);
                }
                self.send_queue(place, share);
            }
        }
        any
    }

    fn next_crossed(&self, place: usize, share: usize) -> Option<Crossed> {
        match &self.homes.get(place)?.ends[share].place {
            Place::There(link) => link.done.pop(),
            Place::Here => None,
        }
    }

    /// A part is done, by this core or by another one.
    pub(super) fn part_done(
        &mut self,
        token: Token,
        here: bool,
        result: Result<(), GuestError>,
        data: Option<Buffer>,
        done: &mut Vec<Done<U>>,
    ) {
        let (of, part, share) = named(token);
        let taken = &mut self.taken[of];
        taken.left -= 1;
        taken.here -= u32::from(here);
        let key = taken.home;
        if let Some(home) = self.homes.get_mut(key.place).filter(|it| it.serial == key.serial) {
            home.ends[share].in_flight -= 1;
        }
        match result {
            Ok(()) => {}
            Err(GuestError::NotServed) => taken.void = true,
            Err(error) => drop(taken.failed.get_or_insert(error)),
        }
        if let Some(data) = data {
            match part {
                0 => taken.data.first = Some(data),
                part => {
                    let rest = &mut taken.data.rest;
                    rest.resize_with(rest.len().max(part), || None);
                    rest[part - 1] = Some(data);
                }
            }
        }
        let wide = !taken.blocks.is_empty();
        let early = wide && taken.user.is_some() && is_planted(Planted::CompleteOnFirstShare);
        if taken.left > 0 && !early {
            return;
        }
        let user = taken.user.take();
        let (void, failed) = (taken.void, taken.failed);
        let over = taken.left == 0;
        let read = taken.reads.is_some();
        let data = std::mem::take(&mut taken.data);
        if over {
            self.taken.remove(of);
        }
        let Some(home) = self.home(key) else { return };
        if wide && over {
            home.wide.retain(|other| *other != of);
        }
        let look = (wide || read) && over && !home.held.is_empty();
        if let Some(user) = user {
            let failed = if void { Some(GuestError::NotServed) } else { failed };
            done.push(Done { home: key, user, result: failed.map_or(Ok(()), Err), data });
        }
        if look {
            self.begin_held(key);
        }
    }

    /// Requests for a share wait from now on, because it is about to go to another core.
    pub fn pause(&mut self, key: HomeKey, share: u16) {
        if let Some(home) = self.home(key) {
            home.ends[usize::from(share)].paused = true;
        }
    }

    /// Whether nothing is in flight for a share that is paused.
    pub fn is_drained(&self, key: HomeKey, share: u16) -> bool {
        let home = self.homes.get(key.place).filter(|home| home.serial == key.serial);
        home.is_none_or(|home| {
            let end = &home.ends[usize::from(share)];
            end.paused && (end.in_flight == 0 || is_planted(Planted::MoveUndrained))
        })
    }

    /// Requests for a share go on: where they went before, or to where it is now.
    pub fn resume(&mut self, key: HomeKey, share: u16, moved: Option<Place>) {
        let Some(home) = self.home(key) else { return };
        let end = &mut home.ends[usize::from(share)];
        end.paused = false;
        if let Some(place) = moved {
            let linked = |place: &Place| usize::from(matches!(place, Place::There(_)));
            let (now, before) = (linked(&place), linked(&end.place));
            end.place = place;
            self.linked = self.linked + now - before;
        }
        self.send_queue(key.place, usize::from(share));
    }
}
