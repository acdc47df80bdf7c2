//! A drive in the process's own memory: for measurements, where what a device costs is not to be measured, and for
//! clusters of which nothing is to survive.
//!
//! Requests are done at once, and completed at the next poll. Pages take memory when they are first written.
//! Everything is gone with the drive; a flush does nothing.

use crate::reactor::Reactor;
use crate::uring::Ring;
use cleave_runtime::buffer::{Buffer, BufferPool, PAGE};
use cleave_runtime::drives::{Drive, DriveCompletion, DriveError, DriveOperation, DriveRequest};
use std::cell::RefCell;
use std::rc::Rc;

/// See the module's page.
pub struct MemoryDrive {
    ring: Rc<Ring>,
    pools: Rc<[BufferPool]>,
    bytes: RefCell<Box<[u8]>>,
    finished: RefCell<Vec<DriveCompletion>>,
}

impl MemoryDrive {
    /// A drive of `size` bytes of zeros, rounded down to pages.
    pub fn new(reactor: &Reactor, size: usize) -> MemoryDrive {
        MemoryDrive {
            ring: Rc::clone(reactor.ring()),
            pools: reactor.drive_pools(),
            // Zeroed memory comes from the kernel page by page.
            bytes: RefCell::new(vec![0; size / PAGE * PAGE].into_boxed_slice()),
            finished: RefCell::default(),
        }
    }

    fn perform(&self, request: &mut DriveRequest) -> Result<(), DriveError> {
        let mut bytes = self.bytes.borrow_mut();
        let (offset, length) = match (request.operation, &request.buffer) {
            (DriveOperation::Read { offset } | DriveOperation::Write { offset }, Some(buffer)) => {
                (offset, buffer.len() as u64)
            }
            (DriveOperation::Discard { offset, length }, _) => (offset, length),
            (DriveOperation::Flush, _) => return Ok(()),
            _ => return Err(DriveError::Io("a read or write without a buffer".to_owned())),
        };
        let page = PAGE as u64;
        let end = offset.checked_add(length).filter(|end| *end <= bytes.len() as u64);
        let whole = offset.is_multiple_of(page) && length.is_multiple_of(page);
        let Some(end) = end.filter(|_| whole) else {
            let reason = format!("{length} bytes at offset {offset} are not whole pages inside");
            return Err(DriveError::Io(reason));
        };
        let place = &mut bytes[offset as usize..end as usize];
        match (request.operation, &mut request.buffer) {
            (DriveOperation::Read { .. }, Some(buffer)) => buffer.copy_from_slice(place),
            (DriveOperation::Write { .. }, Some(buffer)) => place.copy_from_slice(buffer),
            _ => place.fill(0),
        }
        Ok(())
    }
}

impl Drive for MemoryDrive {
    fn capacity(&self) -> u64 {
        self.bytes.borrow().len() as u64
    }

    fn submit(&self, mut request: DriveRequest) {
        let result = self.perform(&mut request);
        let DriveRequest { token, buffer, .. } = request;
        self.finished.borrow_mut().push(DriveCompletion { token, result, buffer });
        self.ring.set_fresh();
    }

    fn poll(&self, completions: &mut Vec<DriveCompletion>) {
        completions.append(&mut self.finished.borrow_mut());
    }

    fn probe(&self) -> Result<(), DriveError> {
        Ok(())
    }

    fn buffer(&self, length: usize) -> Buffer {
        let length = length.next_multiple_of(PAGE);
        match self.pools.iter().find(|pool| pool.capacity() >= length) {
            Some(pool) => pool.take(length),
            None => Buffer::new(length),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reactor::ReactorConfig;

    #[test]
    fn what_is_written_is_read_and_mistakes_are_answered() {
        let reactor = Reactor::new(ReactorConfig::default()).unwrap();
        let drive = MemoryDrive::new(&reactor, 10 * PAGE + 5);
        assert_eq!(drive.capacity(), 10 * PAGE as u64);
        let does = |operation, fill: Option<u8>| {
            let buffer = fill.map(|byte| {
                let mut buffer = drive.buffer(PAGE);
                buffer.fill(byte);
                buffer
            });
            drive.submit(DriveRequest { token: 3, operation, buffer });
            let mut done = Vec::new();
            drive.poll(&mut done);
            assert_eq!((done.len(), done[0].token), (1, 3));
            done.remove(0)
        };
        let page = PAGE as u64;
        does(DriveOperation::Write { offset: 9 * page }, Some(7)).result.unwrap();
        let read = |offset| does(DriveOperation::Read { offset }, Some(1)).buffer.unwrap()[100];
        assert_eq!((read(9 * page), read(8 * page)), (7, 0));
        does(DriveOperation::Flush, None).result.unwrap();
        does(DriveOperation::Discard { offset: 9 * page, length: page }, None).result.unwrap();
        assert_eq!(read(9 * page), 0);
        for offset in [10 * page, 512, u64::MAX - 4095] {
            assert!(does(DriveOperation::Write { offset }, Some(1)).result.is_err());
        }
        assert!(does(DriveOperation::Read { offset: 0 }, None).result.is_err());
    }
}
