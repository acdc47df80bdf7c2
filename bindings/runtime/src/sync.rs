//! What tasks of one core wait on: one-time results, queues, gates. No threads, no locks.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

/// The sending half of a one-time result. Dropping it unsent gives the receiver `None`.
pub struct Promise<T>(Rc<Once<T>>);

/// The receiving half of a one-time result.
pub struct Outcome<T>(Rc<Once<T>>);

struct Once<T> {
    value: RefCell<Option<T>>,
    closed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// A one-time result.
pub fn promise<T>() -> (Promise<T>, Outcome<T>) {
    let once = Rc::new(Once {
        value: RefCell::new(None),
        closed: Cell::new(false),
        waker: RefCell::new(None),
    });
    (Promise(Rc::clone(&once)), Outcome(once))
}

impl<T> Promise<T> {
    /// Gives the result.
    pub fn fulfil(self, value: T) {
        *self.0.value.borrow_mut() = Some(value);
    }
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        self.0.closed.set(true);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

impl<T> Outcome<T> {
    /// The result, or `None` when the promise was dropped.
    pub async fn wait(self) -> Option<T> {
        poll_fn(|context| {
            if let Some(value) = self.0.value.borrow_mut().take() {
                return Poll::Ready(Some(value));
            }
            if self.0.closed.get() {
                return Poll::Ready(None);
            }
            *self.0.waker.borrow_mut() = Some(context.waker().clone());
            Poll::Pending
        })
        .await
    }
}

/// An unbounded queue between tasks of one core; what feeds it is bounded by its protocol.
/// One task at a time may wait in [`pop`](Queue::pop).
pub struct Queue<T>(Rc<QueueInner<T>>);

struct QueueInner<T> {
    items: RefCell<VecDeque<T>>,
    waker: RefCell<Option<Waker>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Queue<T> {
        Queue(Rc::clone(&self.0))
    }
}

impl<T> Default for Queue<T> {
    fn default() -> Queue<T> {
        Queue(Rc::new(QueueInner { items: RefCell::default(), waker: RefCell::new(None) }))
    }
}

impl<T> Queue<T> {
    /// Adds at the end and wakes the waiting task.
    pub fn push(&self, item: T) {
        self.0.items.borrow_mut().push_back(item);
        if let Some(waker) = self.0.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Takes the first item if there is one.
    pub fn try_pop(&self) -> Option<T> {
        self.0.items.borrow_mut().pop_front()
    }

    /// Items waiting.
    pub fn len(&self) -> usize {
        self.0.items.borrow().len()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes the first item, waiting for one.
    pub async fn pop(&self) -> T {
        poll_fn(|context| match self.try_pop() {
            Some(item) => Poll::Ready(item),
            None => {
                *self.0.waker.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

/// Wakes every task that waits for some condition to be looked at again.
#[derive(Clone, Default)]
pub struct Signal(Rc<RefCell<Vec<Waker>>>);

impl Signal {
    /// A signal that nobody waits for.
    pub fn new() -> Signal {
        Signal::default()
    }

    /// Wakes all that wait.
    pub fn notify(&self) {
        for waker in self.0.take() {
            waker.wake();
        }
    }

    /// Waits until `condition` gives a value; it is tried now and after each
    /// [`notify`](Signal::notify).
    pub async fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        poll_fn(|context| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                self.0.borrow_mut().push(context.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::pin::pin;
    use std::task::Context;

    fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn a_promise_is_kept_or_visibly_broken() {
        let (kept, outcome) = promise();
        let mut waiting = pin!(outcome.wait());
        assert_eq!(poll(waiting.as_mut()), Poll::Pending);
        kept.fulfil(5);
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(Some(5)));
        let (broken, outcome) = promise::<u8>();
        drop(broken);
        assert_eq!(poll(pin!(outcome.wait()).as_mut()), Poll::Ready(None));
    }

    #[test]
    fn signal_looks_again_only_when_notified() {
        let (signal, flag) = (Signal::new(), Cell::new(false));
        let mut waiting = pin!(signal.until(|| flag.get().then_some(())));
        assert_eq!(poll(waiting.as_mut()), Poll::Pending);
        flag.set(true);
        signal.notify();
        assert_eq!(poll(waiting.as_mut()), Poll::Ready(()));
    }
}
