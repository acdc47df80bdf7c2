//! One device's drive: guests' reads as entries of a slab, everything else as futures, over one handle.
//!
//! Every request has one entry here until its completion comes, whoever still waits for it. Nothing is ever
//! cancelled: the buffer is the device's until then.

use cleave_runtime::Token;
use cleave_runtime::buffer::Buffer;
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use cleave_runtime::time::{Clock, Moment};
use slab::Slab;
use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What came of a request: its buffer, when it had one.
pub(crate) type Outcome = (Result<(), DriveError>, Option<Buffer>);

enum Owner {
    /// A guest's read, by its key.
    Read(usize),
    /// A task, with its waker once it has waited.
    Task(Option<Waker>),
    /// Done, and the task has not looked yet.
    Done(Outcome),
}

struct Waiting {
    owner: Owner,
    since: Moment,
}

/// See the module's page.
pub(crate) struct Port {
    drive: Rc<dyn Drive>,
    clock: Rc<dyn Clock>,
    waiting: RefCell<Slab<Waiting>>,
    polled: RefCell<Vec<DriveCompletion>>,
}

impl Port {
    /// Takes a drive over: from now on all its requests go through this.
    pub fn new(drive: Rc<dyn Drive>, clock: Rc<dyn Clock>) -> Port {
        let (waiting, polled) = (RefCell::default(), RefCell::default());
        Port { drive, clock, waiting, polled }
    }

    /// The drive.
    pub fn drive(&self) -> &Rc<dyn Drive> {
        &self.drive
    }

    /// Begins a guest's read.
    pub fn begin_read(&self, key: usize, offset: u64, length: usize) {
        let buffer = self.drive.buffer(length);
        self.submit(Owner::Read(key), DriveOperation::Read { offset }, Some(buffer));
    }

    fn submit(&self, owner: Owner, operation: DriveOperation, buffer: Option<Buffer>) -> usize {
        let waiting = Waiting { owner, since: self.clock.now() };
        let key = self.waiting.borrow_mut().insert(waiting);
        self.drive.submit(DriveRequest { token: key as Token, operation, buffer });
        key
    }

    /// Takes completions: guests' reads by their keys, tasks are woken. True when there were any.
    pub fn turn(&self, mut read: impl FnMut(usize, Outcome)) -> bool {
        let mut polled = self.polled.borrow_mut();
        self.drive.poll(&mut polled);
        let any = !polled.is_empty();
        for completion in polled.drain(..) {
            let mut waiting = self.waiting.borrow_mut();
            let outcome = (completion.result, completion.buffer);
            let key = usize::try_from(completion.token).expect("a token given here");
            match &mut waiting[key].owner {
                Owner::Read(name) => {
                    let name = *name;
                    waiting.remove(key);
                    drop(waiting);
                    read(name, outcome);
                }
                Owner::Task(waker) => {
                    let waker = waker.take();
                    waiting[key].owner = Owner::Done(outcome);
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Owner::Done(_) => unreachable!("a request completes once"),
            }
        }
        any
    }

    /// Submits, and waits for the outcome.
    pub async fn request(&self, operation: DriveOperation, buffer: Option<Buffer>) -> Outcome {
        let key = self.submit(Owner::Task(None), operation, buffer);
        poll_fn(|context| {
            let mut waiting = self.waiting.borrow_mut();
            if let Owner::Task(waker) = &mut waiting[key].owner {
                *waker = Some(context.waker().clone());
                return Poll::Pending;
            }
            match waiting.remove(key).owner {
                Owner::Done(outcome) => Poll::Ready(outcome),
                Owner::Read(_) | Owner::Task(_) => unreachable!("the task's own request is done"),
            }
        })
        .await
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Buffer, DriveError> {
        let buffer = self.drive.buffer(length);
        let (result, buffer) = self.request(DriveOperation::Read { offset }, Some(buffer)).await;
        result.map(|()| buffer.expect("a read gives its buffer back"))
    }

    /// Writes the buffer at `offset`.
    pub async fn write(&self, offset: u64, buffer: Buffer) -> Result<(), DriveError> {
        self.request(DriveOperation::Write { offset }, Some(buffer)).await.0
    }

    /// Makes completed writes durable.
    pub async fn flush(&self) -> Result<(), DriveError> {
        self.request(DriveOperation::Flush, None).await.0
    }

    /// When the oldest request was submitted that the drive has not answered.
    pub fn oldest(&self) -> Option<Moment> {
        let waiting = self.waiting.borrow();
        let asked = waiting.iter().filter(|(_, request)| !matches!(request.owner, Owner::Done(_)));
        asked.map(|(_, request)| request.since).min()
    }
}
