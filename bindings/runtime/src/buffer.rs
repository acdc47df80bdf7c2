//! Page-aligned buffers for O_DIRECT and fixed io_uring buffers, recycled through a pool of their
//! core.
//!
//! Invariant: a buffer is owned by exactly one party at a time (caller, or the request that it is
//! in), so its bytes need no lock. Dropping it gives it back to its pool.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::rc::{Rc, Weak};

/// The unit of alignment of drives, in bytes.
pub const PAGE: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; PAGE]);

/// Owned, page-aligned memory. Its visible length can be set to any value up to its capacity.
pub struct Buffer {
    pages: Box<[Page]>,
    length: usize,
    /// The place of this memory in the core's table of registered buffers, if it has one.
    registered: Option<u16>,
    home: Weak<RefCell<Shelf>>,
}

/// Buffers of one size, kept for reuse.
struct Shelf {
    free: Vec<(Box<[Page]>, Option<u16>)>,
    kept_max: usize,
}

impl Buffer {
    /// Zeroed memory that belongs to no pool; its capacity is `length` rounded up to pages.
    pub fn new(length: usize) -> Buffer {
        Buffer { pages: allocate(length), length, registered: None, home: Weak::new() }
    }

    /// Bytes that [`set_len`](Buffer::set_len) may reach.
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Changes the visible length; bytes that become visible have old content.
    ///
    /// # Panics
    /// Beyond the capacity.
    pub fn set_len(&mut self, length: usize) {
        assert!(length <= self.capacity(), "buffer length within its capacity");
        self.length = length;
    }

    /// Index among the registered buffers of the core's ring.
    pub fn registered(&self) -> Option<u16> {
        self.registered
    }

    /// Takes it out of its pool, for another core. Registered memory stays with its ring: its content is copied.
    pub fn loosen(mut self) -> LooseBuffer {
        let length = self.length;
        if self.registered.is_some() {
            let mut copy = Buffer::new(length);
            copy.copy_from_slice(&self);
            return copy.loosen();
        }
        self.home = Weak::new();
        LooseBuffer { pages: std::mem::take(&mut self.pages), length }
    }
}

/// A buffer's memory on its way to another core: it belongs to no pool, so that it may change threads.
/// [`BufferPool::adopt`] makes it a buffer again.
pub struct LooseBuffer {
    pages: Box<[Page]>,
    length: usize,
}

impl LooseBuffer {
    /// Its visible length.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether nothing of it is visible.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// As [`Buffer::capacity`].
    pub fn capacity(&self) -> usize {
        self.pages.len() * PAGE
    }
}

impl fmt::Debug for LooseBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LooseBuffer({} of {} bytes)", self.length, self.capacity())
    }
}

impl From<LooseBuffer> for Buffer {
    /// A buffer that belongs to no pool.
    fn from(LooseBuffer { pages, length }: LooseBuffer) -> Buffer {
        Buffer { pages, length, registered: None, home: Weak::new() }
    }
}

fn allocate(length: usize) -> Box<[Page]> {
    vec![Page([0; PAGE]); length.div_ceil(PAGE)].into_boxed_slice()
}

impl Deref for Buffer {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: `pages` is initialised memory of `capacity()` bytes without padding (a page is
        // an array of PAGE bytes of alignment PAGE), and `length` is at most that.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast::<u8>(), self.length) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast::<u8>(), self.length) }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Buffer({} of {} bytes)", self.length, self.capacity())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if let Some(shelf) = self.home.upgrade() {
            let mut shelf = shelf.borrow_mut();
            let pages = std::mem::take(&mut self.pages);
            if shelf.free.len() < shelf.kept_max {
                shelf.free.push((pages, self.registered));
            } else if self.registered.is_some() {
                // Registered memory must stay in place, and a pool keeps as many as it registered:
                // so a full shelf holds a surplus one, which gives way.
                let surplus = shelf.free.iter().position(|(_, registered)| registered.is_none());
                let surplus = surplus.expect("a full shelf without this one has a surplus one");
                shelf.free[surplus] = (pages, self.registered);
            }
        }
    }
}

/// Buffers of one capacity. Cheap to clone; clones share the buffers.
#[derive(Clone)]
pub struct BufferPool {
    shelf: Rc<RefCell<Shelf>>,
    capacity: usize,
}

impl BufferPool {
    /// A pool of buffers of `capacity` bytes that keeps at most `kept_max` unused ones.
    pub fn new(capacity: usize, kept_max: usize) -> BufferPool {
        let shelf = Shelf { free: Vec::with_capacity(kept_max), kept_max };
        BufferPool { shelf: Rc::new(RefCell::new(shelf)), capacity: capacity.div_ceil(PAGE) * PAGE }
    }

    /// As [`new`](BufferPool::new), filled with `count` buffers whose registered indices begin at
    /// `first`. `register` gets each one's address and length, in order, before it is used; the
    /// memory stays at that address until the pool and all its buffers are gone.
    pub fn registered(
        capacity: usize,
        count: u16,
        first: u16,
        mut register: impl FnMut(*mut u8, usize),
    ) -> BufferPool {
        let pool = BufferPool::new(capacity, usize::from(count));
        for index in 0..count {
            let mut pages = allocate(pool.capacity);
            register(pages.as_mut_ptr().cast::<u8>(), pool.capacity);
            pool.shelf.borrow_mut().free.push((pages, Some(first + index)));
        }
        pool
    }

    /// Bytes of each buffer.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// An unused buffer, if there is one that is not registered: to be given to another core.
    pub fn spare(&self) -> Option<LooseBuffer> {
        let mut shelf = self.shelf.borrow_mut();
        shelf.free.pop_if(|(_, registered)| registered.is_none()).map(|(pages, _)| {
            let length = pages.len() * PAGE;
            LooseBuffer { pages, length }
        })
    }

    /// Takes memory from another core in: the buffer comes back to this pool if it has its capacity.
    pub fn adopt(&self, loose: LooseBuffer) -> Buffer {
        let mut buffer = Buffer::from(loose);
        if buffer.capacity() == self.capacity {
            buffer.home = Rc::downgrade(&self.shelf);
        }
        buffer
    }

    /// A buffer of visible length `length`, with old content: an unused one, or a new unregistered one.
    ///
    /// # Panics
    /// When `length` is beyond the pool's capacity a buffer.
    pub fn take(&self, length: usize) -> Buffer {
        assert!(length <= self.capacity, "length within the pool's buffer size");
        let recycled = self.shelf.borrow_mut().free.pop();
        let (pages, registered) = recycled.unwrap_or_else(|| (allocate(self.capacity), None));
        Buffer { pages, length, registered, home: Rc::downgrade(&self.shelf) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_come_back() {
        let pool = BufferPool::new(10_000, 2);
        assert_eq!(pool.capacity(), 12_288);
        let mut first = pool.take(10_000);
        assert_eq!(first.as_ptr() as usize % PAGE, 0);
        first[9_999] = 7;
        let address = first.as_ptr();
        drop(first);
        let second = pool.take(12_288);
        assert_eq!(second.as_ptr(), address);
        assert_eq!(second[9_999], 7);
    }

    #[test]
    fn registered_memory_stays_in_place_and_the_surplus_is_unregistered() {
        let mut places = Vec::new();
        let pool = BufferPool::registered(PAGE, 2, 5, |address, _| places.push(address as usize));
        let (a, b, c) = (pool.take(1), pool.take(1), pool.take(1));
        assert_eq!(c.registered(), None);
        for buffer in [&a, &b] {
            let index = usize::from(buffer.registered().unwrap()) - 5;
            assert_eq!(places[index], buffer.as_ptr() as usize);
        }
    }

    #[test]
    fn surplus_buffers_give_way_to_registered_ones() {
        let pool = BufferPool::registered(PAGE, 2, 0, |_, _| {});
        let registered = [pool.take(1), pool.take(1)];
        let surplus = [pool.take(1), pool.take(1)];
        drop(surplus);
        drop(registered);
        let kept = [pool.take(1), pool.take(1)];
        let mut indices = kept.each_ref().map(Buffer::registered);
        indices.sort();
        assert_eq!(indices, [Some(0), Some(1)]);
    }

    #[test]
    fn a_buffer_changes_cores_and_pools() {
        let (here, there) = (BufferPool::new(PAGE, 4), BufferPool::new(PAGE, 4));
        assert!(here.spare().is_none());
        let mut buffer = here.take(10);
        buffer.fill(9);
        let address = buffer.as_ptr() as usize;
        let loose = buffer.loosen();
        let taken = std::thread::spawn(move || (loose.len(), loose)).join().unwrap();
        let buffer = there.adopt(taken.1);
        assert_eq!((taken.0, &buffer[..], buffer.as_ptr() as usize), (10, &[9; 10][..], address));
        drop(buffer);
        assert!(here.spare().is_none());
        let spare = there.spare().expect("it was adopted");
        // One of another size is no pool's.
        drop(BufferPool::new(2 * PAGE, 4).adopt(spare));
        assert!(there.spare().is_none());
    }

    #[test]
    fn registered_memory_does_not_leave_its_core() {
        let pool = BufferPool::registered(PAGE, 1, 0, |_, _| {});
        assert!(pool.spare().is_none());
        let mut buffer = pool.take(PAGE);
        buffer.fill(3);
        let address = buffer.as_ptr();
        let copy = Buffer::from(buffer.loosen());
        assert!(copy.as_ptr() != address && copy.iter().all(|byte| *byte == 3));
        assert_eq!(pool.take(PAGE).as_ptr(), address);
    }

    #[test]
    fn a_buffer_outlives_its_pool() {
        let pool = BufferPool::new(PAGE, 1);
        let mut buffer = pool.take(PAGE);
        drop(pool);
        buffer[0] = 1;
    }
}
