//! Bounded rings between cores: one producer, one consumer, and a doorbell for a consumer that
//! may be asleep.
//!
//! The ring is the standard library's bounded channel, used with its non-blocking calls only;
//! what this module adds is the wake: publish first, then ring (the consumer arms, fences, looks
//! again and only then sleeps, so no wake is lost). A full ring gives the item back: the producer keeps
//! it, and its own back-pressure ends at the guest's queue.

use crate::executor::Doorbell;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, TrySendError, sync_channel};

/// The producing end.
pub struct Producer<T> {
    sender: SyncSender<T>,
    doorbell: Arc<dyn Doorbell>,
}

/// The consuming end.
pub struct Consumer<T>(Receiver<T>);

/// Why an item was not taken; it comes back.
#[derive(Debug, PartialEq, Eq)]
pub enum Refused<T> {
    /// The ring is full.
    Full(T),
    /// The consumer is gone.
    Closed(T),
}

/// A ring of `capacity` items whose consumer wakes by `doorbell`.
pub fn ring<T: Send>(capacity: usize, doorbell: Arc<dyn Doorbell>) -> (Producer<T>, Consumer<T>) {
    let (sender, receiver) = sync_channel(capacity.max(1));
    (Producer { sender, doorbell }, Consumer(receiver))
}

impl<T: Send> Producer<T> {
    /// Puts an item in, and wakes the consumer.
    pub fn push(&self, item: T) -> Result<(), Refused<T>> {
        match self.sender.try_send(item) {
            Ok(()) => {
                self.doorbell.ring();
                Ok(())
            }
            Err(TrySendError::Full(item)) => Err(Refused::Full(item)),
            Err(TrySendError::Disconnected(item)) => Err(Refused::Closed(item)),
        }
    }
}

impl<T: Send> Consumer<T> {
    /// Takes the next item if there is one.
    pub fn pop(&self) -> Option<T> {
        self.0.try_recv().ok()
    }

    /// Waits for the next item: for threads that may block (the catalog's). `None` when the
    /// producer is gone and the ring empty.
    pub fn wait(&self) -> Option<T> {
        self.0.recv().ok()
    }

    /// Whether the producer is gone and nothing is left. An item that this finds is lost to the
    /// caller, so it is asked only after [`pop`](Consumer::pop) gave nothing.
    pub fn closed(&self) -> bool {
        matches!(self.0.try_recv(), Err(TryRecvError::Disconnected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::executor::NoDoorbell;

    #[test]
    fn full_and_closed_give_the_item_back() {
        let (producer, consumer) = ring(1, Arc::new(NoDoorbell));
        assert_eq!(producer.push(1), Ok(()));
        assert_eq!(producer.push(2), Err(Refused::Full(2)));
        assert_eq!(consumer.pop(), Some(1));
        drop(consumer);
        assert_eq!(producer.push(3), Err(Refused::Closed(3)));
    }

    #[test]
    fn order_is_kept_across_threads() {
        let (producer, consumer) = ring(8, Arc::new(NoDoorbell));
        let feeder = std::thread::spawn(move || {
            for number in 0..10_000u32 {
                let mut item = number;
                while let Err(Refused::Full(back)) = producer.push(item) {
                    item = back;
                    std::thread::yield_now();
                }
            }
        });
        for number in 0..10_000 {
            assert_eq!(consumer.wait(), Some(number));
        }
        feeder.join().unwrap();
        assert!(consumer.pop().is_none() && consumer.closed());
    }
}
