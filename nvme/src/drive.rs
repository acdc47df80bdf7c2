//! A namespace as a drive of the engines: the completion contract of `cleave_runtime::drives`.
//!
//! Invariants:
//! - A drive is one core's: it owns a queue pair. Its controller is turned by drives of the core that has
//!   it ([`NvmeDrive::open`]); drives of other cores ([`NvmeDrive::beside`]) have only the pair, and
//!   make progress through resets as long as that core turns.
//! - Buffers from [`Drive::buffer`] are mapped and move without a copy; others are copied once.
//! - After a flush failed, or the controller was reset with writes in its volatile cache that were
//!   completed and not flushed, every later flush fails: nobody knows what of them is left, and a
//!   flush that succeeds would call them durable (C10).
//!
//! A crash leaves on the device any part of the writes that were not flushed, in any order.

#[cfg(test)]
mod tests;

use crate::controller::Controller;
use crate::dma::{DmaPool, MappedBuffer, MappedPool, Purpose};
use crate::error::{Error, IoError};
use crate::namespace::Namespace;
use crate::queue::{
    Completion, Operation, PairRings, PairState, QueuePair, Refused, Request, Shared,
};
use crate::spec::completion::Status;
use cleave_runtime::Token;
use cleave_runtime::buffer::{Buffer, PAGE};
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use cleave_runtime::time::Clock;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

/// How a drive is used.
#[derive(Clone, Debug)]
pub struct DriveOptions {
    /// Commands that the controller is given at once, at most.
    pub depth: u16,
    /// Mapped buffers: bytes of each, and how many, by ascending size.
    pub buffers: Vec<(usize, u16)>,
}

impl Default for DriveOptions {
    fn default() -> DriveOptions {
        DriveOptions { depth: 128, buffers: vec![(16 << 10, 256), (128 << 10, 64), (1 << 20, 16)] }
    }
}

/// See the module's page.
pub struct NvmeDrive {
    /// Before the pools, so that the pair lets go of their buffers first.
    pair: RefCell<QueuePair<MappedBuffer>>,
    pools: Vec<Rc<MappedPool>>,
    /// Requests that found no room, in order.
    backlog: RefCell<VecDeque<DriveRequest>>,
    /// What is done and not yet taken.
    finished: RefCell<Vec<DriveCompletion>>,
    polled: RefCell<Vec<Completion<MappedBuffer>>>,
    flush_failed: RefCell<Option<DriveError>>,
    /// Writes that were completed, and those of them that are known to be durable.
    written: Cell<u64>,
    durable: Cell<u64>,
    resets: Cell<u32>,
    /// Readable when the pair is armed and something completed.
    event: Option<OwnedFd>,
    armed: Cell<bool>,
    namespace: Namespace,
    clock: Rc<dyn Clock>,
    shared: Arc<Shared>,
    /// On the core that has it.
    controller: Option<Rc<Controller>>,
}

/// What a drive of another core than the controller's is made from: goes there.
#[derive(Debug)]
pub struct DrivePart {
    namespace: Namespace,
    /// Taken by the drive.
    rings: Option<PairRings>,
}

impl Drop for DrivePart {
    fn drop(&mut self) {
        if let Some(rings) = self.rings.take() {
            rings.discard();
        }
    }
}

impl NvmeDrive {
    /// Opens a namespace of a controller that was started. Progress needs the controller to be
    /// turned meanwhile.
    ///
    /// # Errors
    /// There is no such namespace, or no queue pair or memory for it, or its size is not whole pages.
    pub async fn open(
        controller: &Rc<Controller>,
        clock: Rc<dyn Clock>,
        number: u32,
        options: &DriveOptions,
    ) -> Result<NvmeDrive, Error> {
        let part = NvmeDrive::part(controller, number, options).await?;
        let mut drive = NvmeDrive::beside(part, clock, options)?;
        drive.controller = Some(Rc::clone(controller));
        Ok(drive)
    }

    /// Prepares a drive for another core. Progress needs the controller to be turned meanwhile.
    ///
    /// # Errors
    /// There is no such namespace, or no queue pair for it.
    pub async fn part(
        controller: &Controller,
        number: u32,
        options: &DriveOptions,
    ) -> Result<DrivePart, Error> {
        let namespace = controller.namespace(number).ok_or_else(|| {
            Error::Unsupported(format!("{} has no usable namespace {number}", controller.name()))
        })?;
        let rings = Some(controller.create_pair(options.depth).await?);
        Ok(DrivePart { namespace, rings })
    }

    /// The drive of a core that does not have the controller.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn beside(
        mut part: DrivePart,
        clock: Rc<dyn Clock>,
        options: &DriveOptions,
    ) -> Result<NvmeDrive, Error> {
        let namespace = part.namespace;
        let rings = part.rings.take().expect("a part has its rings until it is used");
        let shared = Arc::clone(&rings.shared);
        let memory = shared.transport.memory();
        let mut pools = Vec::new();
        for (bytes, count) in &options.buffers {
            let pool = MappedPool::new(memory, *bytes, *count);
            pools.push(Rc::new(pool.map_err(Error::system("memory for buffers"))?));
        }
        let pair: QueuePair<MappedBuffer> = QueuePair::new(rings, u32::from(options.depth) * 2);
        let event = pair.event().map(|event| event.try_clone_to_owned());
        let event = event.transpose().map_err(Error::system("an eventfd"))?;
        Ok(NvmeDrive {
            event,
            armed: Cell::new(false),
            pair: RefCell::new(pair),
            pools,
            backlog: RefCell::default(),
            finished: RefCell::default(),
            polled: RefCell::default(),
            flush_failed: RefCell::default(),
            written: Cell::new(0),
            durable: Cell::new(0),
            resets: Cell::new(shared.phase().resets),
            namespace,
            clock,
            shared,
            controller: None,
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// Which controller it is of.
    pub fn name(&self) -> &str {
        self.shared.transport.name()
    }

    /// The controller, on the core that has it.
    pub fn controller(&self) -> Option<&Rc<Controller>> {
        self.controller.as_ref()
    }

    /// Requests submitted and not yet completed.
    pub fn in_flight(&self) -> usize {
        let waiting = self.backlog.borrow().len() + self.finished.borrow().len();
        self.pair.borrow().in_flight() + waiting
    }

    /// Writes to the controller's registers so far.
    pub fn doorbells(&self) -> u64 {
        self.pair.borrow().doorbells()
    }

    /// What becomes readable when something completes while the drive is armed, so that its core may
    /// sleep. `None` where there are no interrupts: such a core must poll.
    pub fn event(&self) -> Option<BorrowedFd<'_>> {
        self.event.as_ref().map(AsFd::as_fd)
    }

    /// The core is about to sleep: a completion shall be announced, if one is to come. The core polls
    /// once more after this.
    pub fn arm(&self) {
        let mut pair = self.pair.borrow_mut();
        if pair.in_flight() == 0 || self.event.is_none() {
            return;
        }
        match pair.arm(true) {
            Ok(armed) => self.armed.set(armed),
            // Then the core stays awake instead.
            Err(error) => tracing::debug!(name = self.name(), "no interrupt: {error}"),
        }
    }

    /// The core is awake.
    pub fn disarm(&self) {
        if !self.armed.replace(false) {
            return;
        }
        // The kernel masks a vector that it is asked to; if not, it costs interrupts and nothing else.
        if let Err(error) = self.pair.borrow_mut().arm(false) {
            tracing::debug!(name = self.name(), "still armed: {error}");
        }
        if let Some(event) = &self.event {
            // Empty, or it would end the next sleep, too.
            let _ = rustix::io::read(event, &mut [0; 8]);
        }
    }

    /// Whether the core must stay awake for this drive: something is to come that is not announced.
    pub fn must_poll(&self) -> bool {
        // What found no room goes when something completes, or when a reset is over.
        let announced = self.armed.get() || self.pair.borrow().in_flight() == 0;
        !announced || !self.finished.borrow().is_empty()
    }

    /// Carries a request out and waits for it: for a core that is starting, or a program without
    /// one. Other completions that come meanwhile are kept for [`poll`](Drive::poll). `idle` is called
    /// while it waits, and lets the clock go on.
    pub fn complete(
        &self,
        operation: DriveOperation,
        buffer: Option<Buffer>,
        mut idle: impl FnMut(),
    ) -> (Result<(), DriveError>, Option<Buffer>) {
        const TOKEN: Token = Token::MAX;
        self.submit(DriveRequest { token: TOKEN, operation, buffer });
        let mut completions = Vec::new();
        loop {
            self.poll(&mut completions);
            let own = completions.iter().position(|completion| completion.token == TOKEN);
            let own = own.map(|index| completions.remove(index));
            self.finished.borrow_mut().append(&mut completions);
            if let Some(DriveCompletion { result, buffer, .. }) = own {
                return (result, buffer);
            }
            idle();
        }
    }

    /// Lets a controller that is being reset go on: a core that has nothing in flight does not poll.
    pub fn let_go(&self) {
        if self.shared.phase().state == PairState::Live {
            return;
        }
        let mut polled = self.polled.borrow_mut();
        self.pair.borrow_mut().poll(self.clock.now(), &mut polled);
        self.notice_reset();
        for completion in polled.drain(..) {
            self.finish(completion);
        }
    }

    fn memory(&self) -> &DmaPool {
        self.shared.transport.memory()
    }

    /// A range in blocks of the namespace, if it is whole pages within it.
    fn range(&self, offset: u64, length: u64) -> Result<(u64, u64), DriveError> {
        let page = PAGE as u64;
        if !offset.is_multiple_of(page) || !length.is_multiple_of(page) {
            let reason = format!("{length} bytes at offset {offset} are not whole pages");
            return Err(DriveError::Io(reason));
        }
        let capacity = self.capacity();
        if offset.checked_add(length).is_none_or(|end| end > capacity) {
            let reason = format!("{length} bytes at offset {offset} exceed the drive's {capacity}");
            return Err(DriveError::Io(reason));
        }
        let shift = self.namespace.block_bytes().trailing_zeros();
        Ok((offset >> shift, length >> shift))
    }

    /// What the request is for the controller; `None` when there is nothing to do.
    fn plan(&self, request: &DriveRequest) -> Result<Option<(Operation, Purpose)>, DriveError> {
        let length = request.buffer.as_ref().map_or(0, |buffer| buffer.len() as u64);
        Ok(match request.operation {
            DriveOperation::Read { offset } => {
                let (first, blocks) = self.range(offset, length)?;
                Some((Operation::Read { first, blocks }, Purpose::Fill))
            }
            DriveOperation::Write { offset } => {
                let (first, blocks) = self.range(offset, length)?;
                Some((Operation::Write { first, blocks, durable: false }, Purpose::Send))
            }
            DriveOperation::Flush => {
                if let Some(error) = &*self.flush_failed.borrow() {
                    return Err(error.clone());
                }
                Some((Operation::Flush, Purpose::Flush(self.written.get())))
            }
            DriveOperation::Discard { offset, length } => {
                let (first, blocks) = self.range(offset, length)?;
                // Discards are hints to a device that knows them.
                let known = self.namespace.can_deallocate();
                known.then_some((Operation::Deallocate { first, blocks }, Purpose::Nothing))
            }
        }
        .filter(|(operation, _)| !operation.is_empty()))
    }

    /// Hands a request over. It comes back when there is no room for it.
    fn hand_over(&self, request: DriveRequest) -> Result<(), DriveRequest> {
        let (operation, purpose) = match self.plan(&request) {
            Ok(Some(planned)) => planned,
            nothing_or_refused => {
                let result = nothing_or_refused.map(|_| ());
                let DriveRequest { token, buffer, .. } = request;
                self.finished.borrow_mut().push(DriveCompletion { token, result, buffer });
                return Ok(());
            }
        };
        // During a reset requests wait; what was outstanding is aborted.
        let state = self.shared.phase().state;
        let over = state == PairState::Gone || self.shared.is_given_up();
        let paused = state != PairState::Live && !over;
        if paused || !self.pair.borrow().has_room() {
            return Err(request);
        }
        let token = request.token;
        let memory = match (request.buffer, purpose) {
            (Some(buffer), Purpose::Fill | Purpose::Send) => {
                match MappedBuffer::new(buffer, &self.pools, self.memory(), purpose) {
                    Ok(memory) => memory,
                    Err((error, buffer)) => {
                        let result = Err(DriveError::Io(error.to_string()));
                        let buffer = Some(buffer);
                        self.finished.borrow_mut().push(DriveCompletion { token, result, buffer });
                        return Ok(());
                    }
                }
            }
            (buffer, _) => MappedBuffer::nothing(buffer, purpose),
        };
        let namespace = self.namespace;
        let request = Request { token, namespace, operation, memory };
        match self.pair.borrow_mut().submit(self.clock.now(), request) {
            Ok(()) => {}
            Err(Refused::Full(_)) => unreachable!("there was room, and one core submits"),
            Err(Refused::Failed(completion)) => self.finish(completion),
        }
        Ok(())
    }

    fn finish(&self, completion: Completion<MappedBuffer>) {
        let Completion { token, result, memory } = completion;
        let purpose = memory.purpose();
        let mut result = result.map_err(|error| self.explain(error));
        match (purpose, &result) {
            (Purpose::Send, Ok(())) => self.written.set(self.written.get() + 1),
            (Purpose::Flush(covers), Ok(())) => match &*self.flush_failed.borrow() {
                // It began before the failure was known, and is not believed.
                Some(error) => result = Err(error.clone()),
                None => self.durable.set(self.durable.get().max(covers)),
            },
            (Purpose::Flush(_), Err(error)) => {
                self.flush_failed.borrow_mut().get_or_insert_with(|| error.clone());
            }
            _ => {}
        }
        let buffer = memory.finish();
        self.finished.borrow_mut().push(DriveCompletion { token, result, buffer });
    }

    fn explain(&self, error: IoError) -> DriveError {
        let name = self.name();
        let number = self.namespace.number();
        match error {
            IoError::Lost => DriveError::Lost(format!("{name} is gone")),
            IoError::Status(status) if status.is(Status::CAPACITY_EXCEEDED) => DriveError::NoSpace,
            IoError::Status(status) if status.is(Status::INVALID_NAMESPACE) => {
                DriveError::Lost(format!("{name} namespace {number}: {status}"))
            }
            error => DriveError::Io(format!("{name} namespace {number}: {error}")),
        }
    }

    /// After a reset of a controller with a volatile cache, completed writes may be lost.
    fn notice_reset(&self) {
        let resets = self.shared.phase().resets;
        if self.resets.replace(resets) == resets {
            return;
        }
        if self.namespace.is_cached() && self.written.get() > self.durable.get() {
            let name = self.name();
            let text = format!("{name} was reset before completed writes were flushed");
            self.flush_failed.borrow_mut().get_or_insert(DriveError::Io(text));
        }
    }
}

impl Drive for NvmeDrive {
    fn capacity(&self) -> u64 {
        self.namespace.capacity() / PAGE as u64 * PAGE as u64
    }

    fn submit(&self, request: DriveRequest) {
        // In order: what waits goes first.
        if !self.backlog.borrow().is_empty() {
            self.backlog.borrow_mut().push_back(request);
        } else if let Err(request) = self.hand_over(request) {
            self.backlog.borrow_mut().push_back(request);
        }
    }

    fn poll(&self, completions: &mut Vec<DriveCompletion>) {
        if let Some(controller) = &self.controller {
            controller.turn();
        }
        let mut polled = self.polled.borrow_mut();
        self.pair.borrow_mut().poll(self.clock.now(), &mut polled);
        self.notice_reset();
        for completion in polled.drain(..) {
            self.finish(completion);
        }
        loop {
            let Some(request) = self.backlog.borrow_mut().pop_front() else { break };
            if let Err(request) = self.hand_over(request) {
                self.backlog.borrow_mut().push_front(request);
                break;
            }
        }
        self.pair.borrow_mut().ring();
        completions.append(&mut self.finished.borrow_mut());
    }

    fn probe(&self) -> Result<(), DriveError> {
        let name = self.name();
        if !self.shared.answers() {
            return Err(DriveError::Lost(format!("{name} is gone")));
        }
        if self.shared.is_given_up() {
            return Err(DriveError::Lost(format!("{name} cannot be stopped, and is given up")));
        }
        // Namespaces are watched where the controller is.
        let Some(controller) = &self.controller else { return Ok(()) };
        let number = self.namespace.number();
        match controller.namespace(number) {
            Some(namespace) if namespace == self.namespace => Ok(()),
            Some(_) => Err(DriveError::Lost(format!("{name} namespace {number} was changed"))),
            None => Err(DriveError::Lost(format!("{name} namespace {number} was taken away"))),
        }
    }

    fn buffer(&self, length: usize) -> Buffer {
        let length = length.next_multiple_of(PAGE);
        match self.pools.iter().find(|pool| pool.capacity() >= length) {
            Some(pool) => pool.take(length),
            None => Buffer::new(length),
        }
    }
}
