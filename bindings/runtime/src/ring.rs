//! Bounded rings between cores: one producer, one consumer, and a doorbell for a consumer that
//! may be asleep.
//!
//! No lock and no allocation on the way of an item. Publish first, then ring: the consumer arms, fences, looks
//! again and only then sleeps, so no wake is lost. A full ring gives the item back: the producer keeps
//! it, and its own back-pressure ends at the guest's queue. What is left when both ends are gone is dropped.

use crate::atomic;
use crate::sleep;

mod slots;
#[cfg(test)]
mod tests;

pub use slots::{Consumer, Producer, Refused, ring};
