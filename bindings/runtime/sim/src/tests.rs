//! Tests of the simulated runtime: each part of the fault model in `lib.rs`, and that runs repeat.

mod drives;
mod links;
mod world;

use crate::{Process, World};
use bytes::Bytes;
use cleave_runtime::links::{Class, ConnectionId, LinkEvent, Links, PeerAddress};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A process that keeps what its links report.
struct Node {
    process: Process,
    links: Rc<dyn Links>,
    events: Rc<RefCell<Vec<LinkEvent>>>,
}

fn node(world: &World, name: &str) -> Node {
    let process = world.start_process(name);
    let (links, events) = (process.links(), Rc::new(RefCell::new(Vec::new())));
    let (polled, kept) = (Rc::clone(&links), Rc::clone(&events));
    process.set_turn(move || {
        polled.poll(&mut kept.borrow_mut());
        false
    });
    Node { process, links, events }
}

fn address(name: &str) -> PeerAddress {
    PeerAddress { name: name.to_owned(), address: String::new() }
}

impl Node {
    fn connect(&self, to: &str) -> ConnectionId {
        self.links.connect(&address(to), Class::Log)
    }

    fn send(&self, connection: ConnectionId, lane: u8, number: u32) {
        let parts = [Bytes::from_static(b"number "), Bytes::from(number.to_le_bytes().to_vec())];
        self.links.send(connection, lane, &parts).unwrap();
    }

    /// The connection that was accepted first.
    fn accepted(&self) -> Option<ConnectionId> {
        self.events.borrow().iter().find_map(|event| match event {
            LinkEvent::Accepted { connection, .. } => Some(*connection),
            _ => None,
        })
    }

    fn closed(&self) -> Option<String> {
        self.events.borrow().iter().find_map(|event| match event {
            LinkEvent::Closed { reason, .. } => Some(reason.clone()),
            _ => None,
        })
    }

    /// The numbers received on each lane, in the order of their arrival.
    fn received(&self) -> [Vec<u32>; 4] {
        let mut lanes: [Vec<u32>; 4] = Default::default();
        for event in self.events.borrow().iter() {
            if let LinkEvent::Received { lane, message, .. } = event {
                let mut message = message.clone();
                assert_eq!(&message.take(7).unwrap()[..], b"number ");
                let number = message.take_rest();
                lanes[usize::from(*lane)].push(u32::from_le_bytes(number[..].try_into().unwrap()));
            }
        }
        lanes
    }
}

/// A connection of `from`, established to `to`.
fn connected(world: &World, from: &Node, to: &Node) -> (ConnectionId, ConnectionId) {
    let connection = from.connect(to.process.name());
    let is_up = || {
        let events = from.events.borrow();
        let known = events.iter().any(|event| matches!(event, LinkEvent::Connected { .. }));
        // The acceptor may look at its links a little later than the other side.
        known && to.accepted().is_some()
    };
    assert!(world.run_until(is_up, SECOND));
    (connection, to.accepted().unwrap())
}
