//! A queue pair: one core's way to the controller. No locks, no allocation while it works.
//!
//! The admin side tells all pairs by one word in what phase the controller is:
//!
//! | Phase | What a pair does |
//! | --- | --- |
//! | live | submits and completes |
//! | stopping | holds what is outstanding: the device may still reach its memory; refuses more |
//! | stopped | the device reaches no memory: completes everything as aborted, makes its rings as new, acknowledges |
//! | gone | as stopped, for ever |
//!
//! The admin side creates the queues anew, and makes the phase live, only after every pair has
//! acknowledged. Invariant: memory of a request is given back only when its commands are completed
//! or the controller is stopped. A pair that is dropped with commands outstanding cuts the
//! controller off from memory.

use super::channel::{Channel, Finished};
use super::control::{PairControl, PairState, Phase, Shared};
use super::lists::{Lists, SglSupport};
use super::parts::{Completion, Request};
use super::slots::Overdue;
use crate::dma::{DmaBuffer, DmaMemory};
use crate::error::IoError;
use crate::spec::completion::Status;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::time::Moment;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::Duration;
use zerocopy::IntoBytes;

/// What the admin side prepares for a pair; goes to the pair's core.
pub struct PairRings {
    pub(crate) queue: u16,
    pub(crate) entries: u16,
    pub(crate) completions: u16,
    pub(crate) stride: u32,
    pub(crate) page: u64,
    pub(crate) sgl: SglSupport,
    pub(crate) timeout: Duration,
    pub(crate) vector: Option<u16>,
    pub(crate) submission: DmaBuffer,
    pub(crate) completion: DmaBuffer,
    pub(crate) lists: DmaBuffer,
    pub(crate) shared: Arc<Shared>,
    pub(crate) control: Arc<PairControl>,
}

impl fmt::Debug for PairRings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PairRings({}, queue {})", self.shared.transport.name(), self.queue)
    }
}

impl PairRings {
    pub(crate) fn list_bytes(entries: u16, page: u64) -> usize {
        Lists::bytes((entries - 1).min(super::SLOTS_MAX), page)
    }
}

/// Most bytes that a command can describe with memory pages of this size.
pub(crate) fn transfer_max(page: u64) -> u64 {
    Lists::transfer_max(page)
}

/// A request that is not done.
struct Active<M> {
    /// `None` when the place is free.
    request: Option<Request<M>>,
    /// Blocks for which commands were issued.
    issued: u64,
    outstanding: u32,
    /// Commands are left to issue: its index is in the list of those.
    waits: bool,
    result: Result<(), IoError>,
}

impl<M> Active<M> {
    fn new(request: Option<Request<M>>) -> Active<M> {
        let waits = request.is_some();
        Active { request, issued: 0, outstanding: 0, waits, result: Ok(()) }
    }

    fn take_if_done(&mut self) -> Option<Completion<M>> {
        if self.outstanding > 0 || self.waits {
            return None;
        }
        let Request { token, memory, .. } = self.request.take()?;
        Some(Completion { token, result: self.result, memory })
    }
}

/// See the module's page. `M` is the memory of its requests.
pub struct QueuePair<M> {
    channel: Option<Channel<u32>>,
    lists: Option<Lists>,
    active: Box<[Active<M>]>,
    free: Vec<u32>,
    /// Requests that have commands to issue, in order.
    waiting: VecDeque<u32>,
    /// Requests that failed before they had a command; found by the next poll.
    early: Vec<Completion<M>>,
    sgl: SglSupport,
    timeout: Duration,
    queue: u16,
    vector: Option<u16>,
    shared: Arc<Shared>,
    control: Arc<PairControl>,
}

impl<M: DmaMemory> QueuePair<M> {
    /// Takes the rings; up to `requests` requests are held at once, however many commands the
    /// controller takes.
    ///
    /// # Panics
    /// When `requests` is 0.
    pub fn new(rings: PairRings, requests: u32) -> QueuePair<M> {
        assert!(requests > 0, "room for a request");
        let channel = Channel::new(
            Arc::clone(&rings.shared.transport),
            rings.queue,
            (rings.entries, rings.completions),
            rings.stride,
            rings.submission,
            rings.completion,
        );
        QueuePair {
            channel: Some(channel),
            lists: Some(Lists::new(rings.lists, rings.page)),
            active: (0..requests).map(|_| Active::new(None)).collect(),
            free: (0..requests).rev().collect(),
            waiting: VecDeque::with_capacity(requests as usize),
            early: Vec::with_capacity(requests as usize),
            sgl: rings.sgl,
            timeout: rings.timeout,
            queue: rings.queue,
            vector: rings.vector,
            shared: rings.shared,
            control: rings.control,
        }
    }

    fn channel(&self) -> &Channel<u32> {
        self.channel.as_ref().expect("a pair has its channel until it is dropped")
    }

    /// The queue's number.
    pub fn queue(&self) -> u16 {
        self.queue
    }

    /// Requests that are not done.
    pub fn in_flight(&self) -> usize {
        self.active.len() - self.free.len() + self.early.len()
    }

    /// Whether another request is taken.
    pub fn has_room(&self) -> bool {
        !self.free.is_empty()
    }

    /// Times that the pair told the controller of something: one write to a register each.
    pub fn doorbells(&self) -> u64 {
        self.channel().doorbells()
    }

    /// When the next command is out of time, if one is outstanding.
    pub fn next_deadline(&self) -> Option<Moment> {
        self.channel().next_deadline()
    }

    /// Queues a request. Its commands are written as far as there is room; the controller is told
    /// of all of them by the next [`ring`](Self::ring) or [`poll`](Self::poll).
    ///
    /// # Errors
    /// The request, when there is no room for it; or its completion, when it cannot be carried out.
    pub fn submit(&mut self, now: Moment, request: Request<M>) -> Result<(), Refused<M>> {
        let length = request.memory.segments().iter().map(|segment| u64::from(segment.length));
        if let Err(error) = request.operation.check(&request.namespace, length.sum()) {
            return Err(Refused::Failed(fail(request, error)));
        }
        match self.shared.phase() {
            Phase { state: PairState::Live, resets } if resets == self.control.acknowledged() => {}
            Phase { state: PairState::Gone, .. } => {
                return Err(Refused::Failed(fail(request, IoError::Lost)));
            }
            _ => return Err(Refused::Failed(fail(request, IoError::Aborted))),
        }
        let Some(index) = self.free.pop() else { return Err(Refused::Full(request)) };
        self.active[index as usize] = Active::new(Some(request));
        self.waiting.push_back(index);
        self.issue(now);
        Ok(())
    }

    /// Tells the controller of what was queued.
    pub fn ring(&mut self) {
        if self.shared.phase().state == PairState::Live
            && let Some(channel) = &mut self.channel
        {
            channel.ring();
        }
    }

    /// Appends finished requests to `completions`, goes on with split ones, tells the controller,
    /// and has what is out of time aborted. True when there was anything.
    pub fn poll(&mut self, now: Moment, completions: &mut Vec<Completion<M>>) -> bool {
        let phase = self.shared.phase();
        match phase.state {
            PairState::Live => {}
            PairState::Stopping => return false,
            PairState::Stopped => return self.abort_all(phase, IoError::Aborted, completions),
            PairState::Gone => return self.abort_all(phase, IoError::Lost, completions),
        }
        let before = completions.len();
        let channel = self.channel.as_mut().expect("a pair has its channel until it is dropped");
        let (active, free) = (&mut self.active, &mut self.free);
        let drained = channel.drain(|finished| {
            account(active, free, finished, completions);
        });
        let any = match drained {
            Ok(count) => count > 0,
            Err(violation) => {
                self.control.ask_reset(Some(violation));
                true
            }
        };
        self.issue(now);
        completions.append(&mut self.early);
        self.ring();
        self.watch(now);
        any || completions.len() > before
    }

    /// Whether a completion waits: for the last look before the core sleeps.
    pub fn is_ready(&self) -> bool {
        self.channel().is_ready()
            || self.shared.phase().state != PairState::Live && self.in_flight() > 0
    }

    /// What becomes readable when a completion arrives while the pair is armed. `None` where there
    /// are no interrupts: such a core must poll.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.shared.transport.interrupts()?.event(self.vector?)
    }

    /// Arms or disarms the event. After arming, [`is_ready`](Self::is_ready) must be asked before
    /// sleeping. False where there are no interrupts.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn arm(&mut self, armed: bool) -> io::Result<bool> {
        if armed
            && self.shared.phase().state == PairState::Live
            && let Some(channel) = &mut self.channel
        {
            // A controller may wait with interrupts until it knows that the last was seen.
            channel.acknowledge();
        }
        match (self.shared.transport.interrupts(), self.vector) {
            (Some(interrupts), Some(vector)) => {
                interrupts.arm(vector, armed)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// Issues commands of waiting requests while there is room.
    fn issue(&mut self, now: Moment) {
        let channel = self.channel.as_mut().expect("a pair has its channel until it is dropped");
        let lists = self.lists.as_ref().expect("a pair has its lists until it is dropped");
        let deadline = now + self.timeout;
        while let Some(&index) = self.waiting.front() {
            let active = &mut self.active[index as usize];
            let request = active.request.as_ref().expect("what waits is active");
            let blocks = request.operation.range().map_or(0, |(_, blocks)| blocks);
            let mut ended = active.result.is_err();
            while !ended && channel.has_room() {
                match issue_part(channel, lists, request, active.issued, self.sgl, index, deadline)
                {
                    Ok(part) => {
                        active.issued += u64::from(part);
                        active.outstanding += 1;
                    }
                    Err(error) => active.result = Err(error),
                }
                ended = active.result.is_err() || active.issued >= blocks;
            }
            if !ended {
                return;
            }
            self.waiting.pop_front();
            active.waits = false;
            if let Some(completion) = active.take_if_done() {
                self.early.push(completion);
                self.free.push(index);
            }
        }
    }

    /// Has the oldest command aborted when it is out of time, then the controller reset.
    fn watch(&mut self, now: Moment) {
        let channel = self.channel.as_mut().expect("a pair has its channel until it is dropped");
        if self.control.asks_abort() {
            return;
        }
        match channel.overdue(now, self.timeout) {
            Some(Overdue::Abort(identifier)) => {
                self.control.ask_abort(identifier);
            }
            Some(Overdue::Hopeless) => self.control.ask_reset(None),
            None => {}
        }
    }

    /// Completes everything, once, after the controller was stopped.
    fn abort_all(
        &mut self,
        phase: Phase,
        error: IoError,
        completions: &mut Vec<Completion<M>>,
    ) -> bool {
        let acknowledged = self.control.acknowledged() == phase.resets;
        if acknowledged && self.in_flight() == 0 {
            return false;
        }
        let channel = self.channel.as_mut().expect("a pair has its channel until it is dropped");
        channel.reset(|_| {});
        self.waiting.clear();
        completions.append(&mut self.early);
        for index in 0..self.active.len() {
            if let Some(Request { token, memory, .. }) = self.active[index].request.take() {
                completions.push(Completion { token, result: Err(error), memory });
                self.free.push(index as u32);
            }
        }
        self.control.acknowledge(phase.resets);
        true
    }
}

/// Why a request was not taken.
#[derive(Debug)]
pub enum Refused<M> {
    /// There is no room for it now.
    Full(Request<M>),
    /// It cannot be carried out.
    Failed(Completion<M>),
}

fn fail<M>(request: Request<M>, error: IoError) -> Completion<M> {
    Completion { token: request.token, result: Err(error), memory: request.memory }
}

/// Queues the next command of a request; the blocks that it takes.
fn issue_part<M: DmaMemory>(
    channel: &mut Channel<u32>,
    lists: &Lists,
    request: &Request<M>,
    done: u64,
    sgl: SglSupport,
    index: u32,
    deadline: Moment,
) -> Result<u32, IoError> {
    let (operation, namespace) = (&request.operation, &request.namespace);
    let blocks = operation.part(namespace, done);
    let mut command = operation.command(namespace, done, blocks);
    let slot = channel.next_index().expect("a channel with room has a slot");
    if operation.moves_data() {
        let shift = namespace.block_shift;
        let segments = request.memory.segments();
        // A command moves less than 4 GiB.
        let length = blocks << shift;
        lists.describe(slot, segments, done << shift, length, sgl, &mut command)?;
    } else if let Some(range) = operation.inline(done, blocks) {
        lists.inline(slot, range.as_bytes(), &mut command);
    }
    channel.push(command, index, Some(deadline));
    Ok(blocks)
}

/// Takes the outcome of a command into its request, which may be done by it.
fn account<M>(
    active: &mut [Active<M>],
    free: &mut Vec<u32>,
    finished: Finished<u32>,
    completions: &mut Vec<Completion<M>>,
) {
    let index = finished.value;
    let active = &mut active[index as usize];
    active.outstanding -= 1;
    if !finished.status.is_success() && !is_planted(Planted::TrustFailedCommands) {
        let aborted = finished.aborting && finished.status.is(Status::ABORT_REQUESTED);
        let error = if aborted { IoError::TimedOut } else { IoError::Status(finished.status) };
        active.result = active.result.and(Err(error));
    }
    if let Some(completion) = active.take_if_done() {
        completions.push(completion);
        free.push(index);
    }
}

impl<M> Drop for QueuePair<M> {
    fn drop(&mut self) {
        let (Some(channel), Some(lists)) = (self.channel.take(), self.lists.take()) else { return };
        let live = matches!(self.shared.phase().state, PairState::Live | PairState::Stopping);
        if channel.outstanding() > 0 && live {
            // The memory of the requests goes now, so the controller must not reach it any more.
            // Where even that fails the memory is given up.
            if self.shared.transport.allow_dma(false).is_err() {
                self.active.iter_mut().for_each(|active| std::mem::forget(active.request.take()));
            }
            self.control.ask_reset(None);
        }
        let mut rings = Vec::from(channel.into_rings());
        rings.push(lists.into_memory());
        self.control.leave(rings);
    }
}

/// The unused rings of a pair that was never made.
impl PairRings {
    /// Gives the queue back without using it.
    pub fn discard(self) {
        self.control.leave(vec![self.submission, self.completion, self.lists]);
    }
}
