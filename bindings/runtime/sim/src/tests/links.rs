//! Links: order, loss, crashes, cuts.

use super::*;
use crate::{Settings, Span};
use cleave_runtime::links::{LANES, MESSAGE_LENGTH_MAX, SendError};

#[test]
fn lanes_keep_their_order_and_overtake_each_other() {
    let mut overtaken = false;
    for seed in 0..20 {
        let world = World::new(seed);
        let (a, b) = (node(&world, "a"), node(&world, "b"));
        // Sent before the connection stands: they wait for it.
        let connection = a.connect("b");
        for number in 0..200 {
            a.send(connection, (number % 4) as u8, number);
        }
        world.run_for(SECOND);
        let lanes = b.received();
        for (lane, numbers) in (0..).zip(&lanes) {
            let sent: Vec<u32> = (0..200).filter(|number| number % 4 == lane).collect();
            assert_eq!(*numbers, sent);
        }
        let order: Vec<u8> = lanes_in_order(&b);
        overtaken |= order.windows(5).any(|lanes| lanes.iter().all(|lane| *lane == lanes[0]));
        assert!(matches!(b.events.borrow()[0], LinkEvent::Accepted { class: Class::Log, .. }));
        assert_eq!(world.counters().messages_delivered, 200);
        assert_eq!(a.links.queued(connection), 0);
    }
    assert!(overtaken, "lanes do not wait for each other");
}

fn lanes_in_order(node: &Node) -> Vec<u8> {
    let events = node.events.borrow();
    let lanes = events.iter().filter_map(|event| match event {
        LinkEvent::Received { lane, .. } => Some(*lane),
        _ => None,
    });
    lanes.collect()
}

#[test]
fn messages_arrive_in_chunks_cut_anywhere() {
    let world = World::new(3);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, _) = connected(&world, &a, &b);
    let random = world.random();
    for length in [0, 1, 5, 100, 4096, 100_000, MESSAGE_LENGTH_MAX] {
        for _ in 0..10 {
            let whole: Bytes = (0..length).map(|_| random.next_u64() as u8).collect();
            let split = random.below(length as u64 + 1) as usize;
            let parts = [whole.slice(..split), whole.slice(split..)];
            a.links.send(connection, 2, &parts).unwrap();
            drop(parts);
            b.events.borrow_mut().clear();
            assert!(world.run_until(|| !b.events.borrow().is_empty(), SECOND));
            let LinkEvent::Received { lane: 2, message, .. } = b.events.borrow_mut().remove(0)
            else {
                panic!("a message was expected")
            };
            let mut message = message;
            assert!(length == 0 || whole.is_unique(), "the receiver holds the sender's memory");
            assert_eq!(message.len(), length);
            assert_eq!(message.take_rest(), whole);
        }
    }
}

#[test]
fn invalid_messages_are_not_taken() {
    let world = World::new(1);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, _) = connected(&world, &a, &b);
    let long = Bytes::from(vec![0; MESSAGE_LENGTH_MAX + 1]);
    assert_eq!(a.links.send(connection, 0, &[long]), Err(SendError::Invalid));
    assert_eq!(a.links.send(connection, LANES, &[]), Err(SendError::Invalid));
    assert_eq!(a.links.send(ConnectionId(1 << 60), 0, &[]), Err(SendError::Closed));
    let foreign = b.accepted().unwrap();
    assert_eq!(a.links.send(foreign, 0, &[]), Err(SendError::Closed), "another process's id");
}

#[test]
fn nobody_there_refuses() {
    let world = World::new(1);
    let a = node(&world, "a");
    a.connect("nobody");
    let deaf = world.start_process("deaf");
    a.connect("deaf");
    world.run_for(SECOND);
    assert_eq!(a.events.borrow().len(), 2);
    assert!(a.closed().unwrap().starts_with("refused"));
    assert_eq!(world.counters().connections_refused, 2);
    assert!(deaf.alive());
}

// C1: after a break nobody knows which of the last messages arrived, but it is a prefix.
#[test]
fn a_break_loses_a_suffix_of_each_lane() {
    let (mut partly, mut uneven) = (0, 0);
    for seed in 0..60 {
        let world = World::new(seed);
        let (a, b) = (node(&world, "a"), node(&world, "b"));
        let (connection, back) = connected(&world, &a, &b);
        for number in 0..400 {
            a.send(connection, (number % 4) as u8, number / 4);
            b.send(back, (number % 4) as u8, number / 4);
        }
        world.run_for(Duration::from_micros(30));
        assert_eq!(world.break_connections("b", "a"), 1);
        assert_eq!(world.break_connections("b", "a"), 0, "it is broken already");
        // Until a side notices, it can send: that is lost.
        let _ = a.links.send(connection, 0, &[Bytes::from_static(b"number 1234")]);
        world.run_for(SECOND * 3);
        for node in [&a, &b] {
            let lanes = node.received();
            for numbers in &lanes {
                let prefix: Vec<u32> = (0..numbers.len() as u32).collect();
                assert_eq!(*numbers, prefix);
            }
            let count: usize = lanes.iter().map(Vec::len).sum();
            partly += usize::from(count > 0 && count < 400);
            uneven += usize::from(lanes[0].len() != lanes[1].len());
            let events = node.events.borrow();
            assert!(matches!(events.last(), Some(LinkEvent::Closed { .. })), "closed comes last");
            let closed = events.iter().filter(|e| matches!(e, LinkEvent::Closed { .. })).count();
            assert_eq!(closed, 1);
        }
        assert_eq!(a.links.send(connection, 0, &[]), Err(SendError::Closed));
        let counters = world.counters();
        assert_eq!(counters.messages_sent, counters.messages_delivered + counters.messages_lost);
    }
    assert!(partly > 30 && uneven > 30, "breaks hit traffic: {partly} {uneven}");
}

#[test]
fn a_break_that_is_noticed_late_has_lost_messages_long_before() {
    let late = Settings { detection: Span::micros(1_000_000, 1_000_000), ..Settings::default() };
    let (mut whole, mut partly) = (0, 0);
    for seed in 0..40 {
        let world = World::with_settings(seed, late.clone());
        let (a, b) = (node(&world, "a"), node(&world, "b"));
        let (connection, _) = connected(&world, &a, &b);
        (0..10).for_each(|number| a.send(connection, 0, number));
        assert!(world.break_connection(connection));
        world.run_for(Duration::from_millis(900));
        if b.closed().is_none() {
            let count = b.received()[0].len();
            whole += usize::from(count == 10);
            partly += usize::from(count < 10);
        }
        world.run_for(SECOND);
        assert!(a.closed().is_some() && b.closed().is_some());
    }
    assert!(partly > whole && partly > 5, "{partly} {whole}");
}

#[test]
fn closing_tells_both_sides() {
    let world = World::new(5);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, back) = connected(&world, &a, &b);
    b.send(back, 0, 1);
    a.links.close(connection, "done");
    world.run_for(SECOND);
    assert_eq!(a.closed().unwrap(), "closed: done");
    assert_eq!(b.closed().unwrap(), "closed by peer: done");
    assert!(a.received()[0].is_empty(), "nothing comes after Closed");
    assert_eq!(b.links.send(back, 0, &[]), Err(SendError::Closed));
}

#[test]
fn a_crash_is_noticed_later_and_the_name_starts_anew() {
    let mut lost = 0;
    for seed in 0..20 {
        let world = World::new(seed);
        let (a, b) = (node(&world, "a"), node(&world, "b"));
        let (_, back) = connected(&world, &a, &b);
        b.send(back, 0, 0);
        b.process.kill();
        assert_eq!(b.links.send(back, 0, &[]), Err(SendError::Closed));
        assert!(a.closed().is_none());
        let again = node(&world, "b");
        assert!(again.process.number() > b.process.number());
        a.connect("b");
        world.run_for(SECOND * 2);
        assert!(a.closed().is_some());
        lost += usize::from(a.received()[0].is_empty());
        assert!(again.accepted().is_some() && again.received()[0].is_empty());
        assert_eq!(world.process("b").unwrap().number(), again.process.number());
    }
    assert!(lost > 0 && lost < 20, "what a dead process sent arrives or not: {lost}");
}

#[test]
fn a_short_cut_delays_and_a_long_one_breaks() {
    let world = World::new(9);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, back) = connected(&world, &a, &b);
    world.cut("a", "b");
    a.send(connection, 0, 0);
    a.send(connection, 0, 1);
    b.send(back, 0, 0);
    world.run_for(SECOND);
    assert!(b.received()[0].is_empty() && a.links.queued(connection) > 0);
    assert_eq!(a.received()[0], [0], "the other direction works");
    world.heal("b", "a");
    world.run_for(SECOND);
    assert_eq!(b.received()[0], [0, 1]);
    world.cut("a", "b");
    a.send(connection, 0, 2);
    assert!(world.run_until(|| b.closed().is_some(), SECOND * 3));
    assert!(a.closed().is_none(), "it still hears keep-alives until b is silent");
    world.heal_all();
    world.run_for(SECOND * 5);
    assert_eq!(a.closed().unwrap(), "timed out");
    assert_eq!(b.received()[0], [0, 1]);
}

#[test]
fn connecting_waits_for_a_partition_and_gives_up() {
    let world = World::new(11);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    for (from, to) in [("a", "b"), ("b", "a")] {
        world.cut(from, to);
        a.connect("b");
        world.run_for(SECOND);
        assert_eq!(a.events.borrow().len(), 0);
        world.heal_all();
        world.run_for(SECOND);
        assert!(matches!(a.events.borrow()[0], LinkEvent::Connected { .. }));
        a.events.borrow_mut().clear();
    }
    world.partition("a", "b");
    assert!(world.is_cut("b", "a"));
    a.events.borrow_mut().clear();
    b.events.borrow_mut().clear();
    let connection = a.connect("b");
    world.run_for(SECOND * 10);
    let events = a.events.borrow();
    let closed = events
        .iter()
        .any(|event| matches!(event, LinkEvent::Closed { connection: c, .. } if *c == connection));
    assert!(closed && events.len() == 3, "the two old ones break, too: {events:?}");
    assert_eq!(b.events.borrow().len(), 2);
}

#[test]
fn what_is_queued_shrinks_and_wakes_the_sender() {
    let settings = Settings { bandwidth: 1_000_000, ..Settings::default() };
    let world = World::with_settings(2, settings);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, _) = connected(&world, &a, &b);
    let seen = Rc::new(RefCell::new(Vec::new()));
    let (links, list) = (Rc::clone(&a.links), Rc::clone(&seen));
    for _ in 0..10 {
        a.links.send(connection, 0, &[Bytes::from(vec![0; 1000])]).unwrap();
    }
    a.process.set_turn(move || {
        list.borrow_mut().push(links.queued(connection));
        false
    });
    world.run_for(SECOND);
    let expected: Vec<usize> = (0..=10).rev().map(|count| count * 1000).collect();
    assert_eq!(*seen.borrow(), expected);
}
