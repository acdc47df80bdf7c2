use super::*;
use crate::executor::NoDoorbell;
use std::sync::Arc;

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

#[test]
fn what_was_not_taken_is_dropped_with_the_ring() {
    let item = Arc::new(());
    let (producer, consumer) = ring(4, Arc::new(NoDoorbell));
    for _ in 0..3 {
        producer.push(Arc::clone(&item)).unwrap();
    }
    drop(consumer.pop());
    assert!(!consumer.closed());
    drop(producer);
    assert!(!consumer.closed(), "two items are left");
    drop(consumer);
    assert_eq!(Arc::strong_count(&item), 1);
}
