//! The contract of a drive: a raw disk or a file, read and written in whole pages, flushed
//! explicitly. One core owns a drive.
//!
//! A completed write is *not* durable: it is after a flush that began after the write completed
//! (C10). Requests complete in any order; two that overlap and are in flight together have no
//! order between them.

use crate::Token;
use crate::buffer::Buffer;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// What to do. Offsets and lengths are multiples of [`PAGE`](crate::buffer::PAGE).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DriveOperation {
    /// Fill the buffer from `offset`.
    Read {
        /// First byte on the drive.
        offset: u64,
    },
    /// Write the buffer at `offset`.
    Write {
        /// First byte on the drive.
        offset: u64,
    },
    /// Make all writes that completed before this was submitted durable.
    Flush,
    /// Give the range back to the device (TRIM, hole punching); its content is undefined after.
    Discard {
        /// First byte on the drive.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// A request; the buffer comes back in the completion.
#[derive(Debug)]
pub struct DriveRequest {
    /// Comes back in the completion.
    pub token: Token,
    /// What to do.
    pub operation: DriveOperation,
    /// For reads and writes: all of `buffer[..]` takes part. `None` for flush and discard.
    pub buffer: Option<Buffer>,
}

/// A finished request.
#[derive(Debug)]
pub struct DriveCompletion {
    /// From the request.
    pub token: Token,
    /// Whether all of it was done.
    pub result: Result<(), DriveError>,
    /// From the request.
    pub buffer: Option<Buffer>,
}

/// How a drive fails.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DriveError {
    /// The device answered with an error (the number is an errno), or did less than asked.
    #[error("drive error: {0}")]
    Io(String),
    /// No space behind a sparse file: the drive itself is well.
    #[error("no space left behind the drive file")]
    NoSpace,
    /// The drive is gone: unlinked, truncated, replaced, or removed.
    #[error("drive is lost: {0}")]
    Lost(String),
}

/// One drive.
pub trait Drive {
    /// Usable bytes, a multiple of [`PAGE`](crate::buffer::PAGE).
    fn capacity(&self) -> u64;

    /// Starts a request. Never fails here; errors come in the completion.
    fn submit(&self, request: DriveRequest);

    /// Appends finished requests to `completions`.
    fn poll(&self, completions: &mut Vec<DriveCompletion>);

    /// Looks whether the drive is still the one that was opened (link count, size, identity):
    /// open files of unlinked names still take writes. Cheap enough for twice a second.
    fn probe(&self) -> Result<(), DriveError>;

    /// A buffer of `length` bytes (rounded up to pages), from the drive's registered pool while it lasts.
    fn buffer(&self, length: usize) -> Buffer;
}

/// Drives as futures: for flows in which a request's outcome decides the next.
///
/// Whoever owns the core's turn calls [`DriveIo::turn`], which polls the drive and wakes.
#[derive(Clone)]
pub struct DriveIo(Rc<DriveIoInner>);

struct DriveIoInner {
    drive: Rc<dyn Drive>,
    next: Cell<Token>,
    waiting: RefCell<HashMap<Token, Waiting>>,
    polled: RefCell<Vec<DriveCompletion>>,
}

enum Waiting {
    Pending(Option<Waker>),
    Done(Result<(), DriveError>, Option<Buffer>),
}

impl DriveIo {
    /// Wraps a drive; from then on all its requests must go through this.
    pub fn new(drive: Rc<dyn Drive>) -> DriveIo {
        DriveIo(Rc::new(DriveIoInner {
            drive,
            next: Cell::new(1),
            waiting: RefCell::default(),
            polled: RefCell::default(),
        }))
    }

    /// The drive itself.
    pub fn drive(&self) -> &Rc<dyn Drive> {
        &self.0.drive
    }

    /// Takes completions and wakes the tasks that wait for them. True when there were any.
    pub fn turn(&self) -> bool {
        let mut polled = self.0.polled.borrow_mut();
        self.0.drive.poll(&mut polled);
        let any = !polled.is_empty();
        let mut waiting = self.0.waiting.borrow_mut();
        for completion in polled.drain(..) {
            let done = Waiting::Done(completion.result, completion.buffer);
            if let Some(Waiting::Pending(Some(waker))) = waiting.insert(completion.token, done) {
                waker.wake();
            }
        }
        any
    }

    /// Requests submitted and not yet completed.
    pub fn in_flight(&self) -> usize {
        let waiting = self.0.waiting.borrow();
        waiting.values().filter(|w| matches!(w, Waiting::Pending(_))).count()
    }

    /// Submits and waits. The request is in flight from this call on, also when the future is dropped
    /// (its outcome is then kept until the process ends, so flows do not drop it).
    pub async fn request(
        &self,
        operation: DriveOperation,
        buffer: Option<Buffer>,
    ) -> (Result<(), DriveError>, Option<Buffer>) {
        let token = self.0.next.replace(self.0.next.get() + 1);
        self.0.waiting.borrow_mut().insert(token, Waiting::Pending(None));
        self.0.drive.submit(DriveRequest { token, operation, buffer });
        poll_fn(|context| {
            let mut waiting = self.0.waiting.borrow_mut();
            match waiting.get_mut(&token) {
                Some(Waiting::Pending(waker)) => {
                    *waker = Some(context.waker().clone());
                    Poll::Pending
                }
                _ => match waiting.remove(&token) {
                    Some(Waiting::Done(result, buffer)) => Poll::Ready((result, buffer)),
                    _ => unreachable!("a request waits until it is done"),
                },
            }
        })
        .await
    }

    /// Reads `length` bytes at `offset`.
    pub async fn read(&self, offset: u64, length: usize) -> Result<Buffer, DriveError> {
        let buffer = self.0.drive.buffer(length);
        let (result, buffer) = self.request(DriveOperation::Read { offset }, Some(buffer)).await;
        result.map(|()| buffer.expect("a read gives its buffer back"))
    }

    /// Writes the buffer at `offset`; durable only after [`flush`](DriveIo::flush).
    pub async fn write(&self, offset: u64, buffer: Buffer) -> Result<(), DriveError> {
        self.request(DriveOperation::Write { offset }, Some(buffer)).await.0
    }

    /// Makes completed writes durable.
    pub async fn flush(&self) -> Result<(), DriveError> {
        self.request(DriveOperation::Flush, None).await.0
    }
}
