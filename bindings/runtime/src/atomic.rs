//! What threads share memory by: the standard library's, behind one name.
//!
//! Files that take their atomics from the module above them run in production on these, and in the tests of
//! [`loomed`](crate::loomed) on others, whose every order is tried.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
pub(crate) use std::sync::{Condvar, Mutex};

/// A cell whose users keep out of each other's way by other means.
#[derive(Debug)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) fn new(value: T) -> UnsafeCell<T> {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    /// Gives a pointer to the value, for as long as `change` runs.
    pub(crate) fn with_mut<R>(&self, change: impl FnOnce(*mut T) -> R) -> R {
        change(self.0.get())
    }
}
