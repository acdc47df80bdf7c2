use super::*;
use crate::identity::{ClusterCa, Identity};
use crate::reactor::ReactorConfig;
use cleave_runtime::executor::Doorbell;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

const CLASSES: [Class; 3] = [Class::Log, Class::Bulk, Class::Read];

fn config(identity: Identity) -> QuicConfig {
    let mut config = QuicConfig::new("127.0.0.1:0".parse().unwrap(), identity);
    // Busy test machines pause threads for long; the tests of silence set their own.
    config.idle_timeout = Duration::from_secs(60);
    config
}

struct Node {
    reactor: Reactor,
    links: Rc<QuicLinks>,
}

impl Node {
    fn new(config: &QuicConfig) -> Node {
        let settings = ReactorConfig { spin: Duration::ZERO, ..ReactorConfig::default() };
        let reactor = Reactor::new(settings).unwrap();
        let links = QuicLinks::new(&reactor, config).unwrap();
        Node { reactor, links }
    }

    /// Runs until `each` gives a value for an event.
    fn until<T>(&self, mut each: impl FnMut(LinkEvent) -> Option<T>) -> T {
        let found = Cell::new(None);
        let done = Cell::new(false);
        let mut events = Vec::new();
        let turn = || {
            self.links.poll(&mut events);
            let any = !events.is_empty();
            for event in events.drain(..) {
                assert!(!done.get(), "an event after the last one: {event:?}");
                if let Some(value) = each(event) {
                    found.set(Some(value));
                    done.set(true);
                }
            }
            any
        };
        self.reactor.run(turn, || done.get());
        found.take().unwrap()
    }

    fn peer(&self, name: &str) -> PeerAddress {
        PeerAddress { name: name.to_owned(), address: self.links.local_addr().to_string() }
    }
}

/// A node on a thread of its own that answers, until it is stopped.
struct Remote {
    address: PeerAddress,
    stop: Arc<AtomicBool>,
    doorbell: Arc<dyn Doorbell>,
    notes: Receiver<String>,
    thread: Option<JoinHandle<()>>,
}

impl Remote {
    /// `answer` is called with each event; it returns what to note of it.
    fn start(
        config: QuicConfig,
        mut answer: impl FnMut(&QuicLinks, LinkEvent) -> Option<String> + Send + 'static,
    ) -> Remote {
        let (sender, receiver) = channel();
        let (note, notes) = channel();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let node = Node::new(&config);
            let name = config.identity.name().unwrap();
            sender.send((node.peer(&name), node.reactor.doorbell())).unwrap();
            let mut events = Vec::new();
            let turn = || {
                node.links.poll(&mut events);
                let any = !events.is_empty();
                for text in events.drain(..).filter_map(|event| answer(&node.links, event)) {
                    note.send(text).unwrap();
                }
                any
            };
            node.reactor.run(turn, || stopped.load(Ordering::SeqCst));
        });
        let (address, doorbell) = receiver.recv().unwrap();
        Remote { address, stop, doorbell, notes, thread: Some(thread) }
    }

    /// The next note that contains `text`.
    fn wait(&self, text: &str) -> String {
        self.notes.iter().find(|note| note.contains(text)).expect("the remote runs on")
    }

    /// Stops it; what is left of the notes.
    fn finish(&mut self) -> Vec<String> {
        self.stop.store(true, Ordering::SeqCst);
        self.doorbell.ring();
        self.thread.take().unwrap().join().unwrap();
        self.notes.try_iter().collect()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        if self.thread.is_some() {
            self.finish();
        }
    }
}

/// Sends every message back on its lane.
fn echo(links: &QuicLinks, event: LinkEvent) -> Option<String> {
    match event {
        LinkEvent::Received { connection, lane, mut message } => {
            let half = message.len() / 2;
            let parts = [message.take(half).unwrap(), message.take_rest()];
            links.send(connection, lane, &parts).unwrap();
            None
        }
        other => Some(format!("{other:?}")),
    }
}

fn body(lane: u8, number: usize, length: usize) -> Bytes {
    (0..length).map(|at| (at * 7 + number * 31 + usize::from(lane)) as u8).collect()
}

#[test]
fn messages_of_all_sizes_arrive_in_order_on_all_lanes_and_classes() {
    let ca = ClusterCa::generate().unwrap();
    let mut remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), echo);
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let lengths =
        [0, 1, 3, 4, 100, 0, 4096, 1452, 70_000, 1 << 20, 0, MESSAGE_LENGTH_MAX, 5, 65_536];
    let connections = CLASSES.map(|class| node.links.connect(&remote.address, class));
    // Before they are connected, all at once.
    for connection in connections {
        for (number, length) in lengths.iter().enumerate() {
            for lane in 0..LANES {
                node.links.send(connection, lane, &[body(lane, number, *length)]).unwrap();
            }
        }
        assert!(node.links.queued(connection) > lengths.iter().sum::<usize>());
    }
    let mut next = [[0; LANES as usize]; 3];
    let mut connected = 0;
    node.until(|event| {
        match event {
            LinkEvent::Connected { .. } => connected += 1,
            LinkEvent::Received { connection, lane, mut message } => {
                let class = connections.iter().position(|known| *known == connection).unwrap();
                let number = &mut next[class][usize::from(lane)];
                let expected = body(lane, *number, lengths[*number]);
                assert!(message.take_rest() == expected, "lane {lane}, message {number}");
                *number += 1;
            }
            other => panic!("{other:?}"),
        }
        next.iter().flatten().all(|count| *count == lengths.len()).then_some(())
    });
    assert_eq!(connected, 3);
    // All was answered, so what is left are acknowledgements on their way.
    let quiet = || connections.iter().all(|connection| node.links.queued(*connection) == 0);
    node.reactor.run(|| false, quiet);
    let mut notes = remote.finish();
    notes.sort();
    assert_eq!(notes.len(), 3, "{notes:?}");
    for (note, class) in notes.iter().zip(["Bulk", "Log", "Read"]) {
        assert!(note.contains("host-1") && notes.iter().any(|note| note.contains(class)), "{note}");
    }
}

#[test]
fn what_quic_keeps_for_a_peer_that_is_silent_counts_as_queued() {
    let ca = ClusterCa::generate().unwrap();
    let (node, peer) = (
        Node::new(&config(ca.issue("host-1").unwrap())),
        Node::new(&config(ca.issue("datanode-1-a").unwrap())),
    );
    let connection = node.links.connect(&peer.peer("datanode-1-a"), Class::Log);
    // Both in this thread: neither does anything while the other has its turn.
    let mut events = Vec::new();
    let mut connected = false;
    while !connected {
        for one in [&node, &peer] {
            one.links.turn();
            one.links.flush();
            one.links.poll(&mut events);
        }
        connected = events.drain(..).any(|event| matches!(event, LinkEvent::Connected { .. }));
    }
    let length = 100_000;
    node.links.send(connection, 1, &[body(1, 0, length)]).unwrap();
    while node.links.flush() || node.links.turn() {}
    // QUIC took it all, the first window's worth is sent, and nothing came back.
    assert_eq!(node.links.queued(connection), length + 4);
    while node.links.queued(connection) > 0 {
        for one in [&node, &peer] {
            one.links.turn();
            one.links.flush();
        }
    }
}

#[test]
fn the_accepting_side_may_speak_first() {
    let ca = ClusterCa::generate().unwrap();
    let remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), |links, event| {
        if let LinkEvent::Accepted { connection, class, peer } = event {
            assert_eq!((class, peer.as_str()), (Class::Read, "host-1"));
            links
                .send(connection, 3, &[Bytes::from_static(b"wel"), Bytes::from_static(b"come")])
                .unwrap();
        }
        None
    });
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    node.links.connect(&remote.address, Class::Read);
    let (lane, greeting) = node.until(|event| match event {
        LinkEvent::Received { lane, mut message, .. } => Some((lane, message.take_rest())),
        LinkEvent::Connected { .. } => None,
        other => panic!("{other:?}"),
    });
    assert_eq!((lane, &greeting[..]), (3, &b"welcome"[..]));
}

/// Connects and returns whether `Connected` came before the end, and the end's reason.
fn end_of(node: &Node, to: &PeerAddress) -> (bool, String) {
    let mine = node.links.connect(to, Class::Log);
    let mut connected = false;
    let reason = node.until(|event| match event {
        LinkEvent::Closed { connection, reason } if connection == mine => Some(reason),
        LinkEvent::Connected { connection } if connection == mine => {
            connected = true;
            None
        }
        other => panic!("{other:?}"),
    });
    assert_eq!(node.links.send(mine, 0, &[]), Err(SendError::Closed));
    assert_eq!(node.links.queued(mine), 0);
    node.links.close(mine, "again");
    (connected, reason)
}

#[test]
fn strangers_are_refused_on_either_side() {
    let ca = ClusterCa::generate().unwrap();
    let mut remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), echo);

    // The server's name is not the one that was asked for.
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let wrong = PeerAddress { name: "datanode-1-b".to_owned(), ..remote.address.clone() };
    let (connected, reason) = end_of(&node, &wrong);
    assert!(!connected && reason.contains("not valid for name"), "{reason}");

    // The server is of another cluster.
    let other = ClusterCa::generate().unwrap();
    let node = Node::new(&config(other.issue("host-1").unwrap()));
    let (connected, reason) = end_of(&node, &remote.address);
    assert!(!connected && reason.contains("invalid peer certificate"), "{reason}");

    // The client is of another cluster, and does not mind that the server is.
    let mut identity = other.issue("host-1").unwrap();
    identity.authority_pem = ca.certificate_pem().to_owned();
    let node = Node::new(&config(identity));
    let (_, reason) = end_of(&node, &remote.address);
    assert!(reason.contains("certificate"), "{reason}");

    // None of them was shown to the server's application.
    assert_eq!(remote.finish(), Vec::<String>::new());
}

#[test]
fn impossible_addresses_close_at_once() {
    let ca = ClusterCa::generate().unwrap();
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    for (name, address) in [
        ("datanode-1-a", "nowhere"),
        ("datanode-1-a", "[::1]:9"),
        ("datanode-1-a", "0.0.0.0:9"),
        ("datanode-1-a", "127.0.0.1:0"),
        ("not a name", "127.0.0.1:9"),
    ] {
        let to = PeerAddress { name: name.to_owned(), address: address.to_owned() };
        let (connected, reason) = end_of(&node, &to);
        assert!(!connected && !reason.is_empty());
    }
}

#[test]
fn both_sides_learn_why_a_link_was_closed() {
    let ca = ClusterCa::generate().unwrap();
    let mut remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), |links, event| {
        if let LinkEvent::Received { connection, .. } = event {
            links.close(connection, "fenced by epoch 7\nand more");
            return None;
        }
        Some(format!("{event:?}"))
    });
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let mine = node.links.connect(&remote.address, Class::Log);
    node.links.send(mine, 0, &[Bytes::from_static(b"append")]).unwrap();
    let reason = node.until(|event| match event {
        LinkEvent::Closed { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("fenced by epoch 7 and more"), "{reason}");
    remote.wait("Accepted");
    assert!(remote.wait("Closed").contains("fenced by epoch 7"));
    assert_eq!(remote.finish(), Vec::<String>::new());
}

#[test]
fn senders_mistakes_are_told_to_them() {
    let ca = ClusterCa::generate().unwrap();
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let peer = PeerAddress { name: "host-1".to_owned(), ..node.peer("host-1") };
    let mine = node.links.connect(&peer, Class::Bulk);
    let half = Bytes::from(vec![0; MESSAGE_LENGTH_MAX / 2 + 1]);
    assert_eq!(node.links.send(mine, 0, &[half.clone(), half]), Err(SendError::Invalid));
    assert_eq!(node.links.send(mine, LANES, &[]), Err(SendError::Invalid));
    assert_eq!(node.links.send(ConnectionId(0), 0, &[]), Err(SendError::Closed));
    assert_eq!(node.links.send(ConnectionId(u64::MAX), 0, &[]), Err(SendError::Closed));
}

#[test]
fn a_peer_that_announces_too_much_is_cut_off_with_a_reason() {
    let ca = ClusterCa::generate().unwrap();
    let mut remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), echo);
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let mine = node.links.connect(&remote.address, Class::Log);
    node.until(|event| matches!(event, LinkEvent::Connected { .. }).then_some(()));
    {
        // Past `send`, straight into the stream.
        let inner = &mut *node.links.inner.borrow_mut();
        let slot = inner.find(mine).unwrap();
        let id = quinn_proto::StreamId::new(quinn_proto::Side::Client, quinn_proto::Dir::Uni, 2);
        inner.at(slot).quic.send_stream(id).write(&[0xff; 64]).unwrap();
        inner.mark(slot);
    }
    let reason = node.until(|event| match event {
        LinkEvent::Closed { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("longer than"), "{reason}");
    assert!(remote.finish().iter().any(|note| note.contains("longer than")));
}

#[test]
fn garbage_does_no_harm() {
    let ca = ClusterCa::generate().unwrap();
    let remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), echo);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut state = 1u64;
    for length in (0..3000).step_by(7) {
        let packet: Vec<u8> = (0..length)
            .map(|_| {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 56) as u8
            })
            .collect();
        socket.send_to(&packet, &remote.address.address).unwrap();
    }
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let mine = node.links.connect(&remote.address, Class::Log);
    node.links.send(mine, 1, &[Bytes::from_static(b"still there?")]).unwrap();
    node.until(|event| matches!(event, LinkEvent::Received { .. }).then_some(()));
}

#[test]
fn an_engine_that_stops_says_so() {
    let ca = ClusterCa::generate().unwrap();
    let mut remote = Remote::start(config(ca.issue("datanode-1-a").unwrap()), echo);
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    node.links.connect(&remote.address, Class::Log);
    node.until(|event| matches!(event, LinkEvent::Connected { .. }).then_some(()));
    remote.wait("Accepted");
    remote.finish();
    let reason = node.until(|event| match event {
        LinkEvent::Closed { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("the engine stops") || reason.contains("refused"), "{reason}");
}

/// Forwards datagrams between a client and a server, and can vanish: a peer whose process was
/// killed, seen from the network.
struct Relay {
    address: String,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Relay {
    fn start(server: &str) -> Relay {
        let front = UdpSocket::bind("127.0.0.1:0").unwrap();
        let back = UdpSocket::bind("127.0.0.1:0").unwrap();
        back.connect(server).unwrap();
        let address = front.local_addr().unwrap().to_string();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        }
        let thread = std::thread::spawn(move || {
            let mut client = None;
            let mut packet = [0; 65536];
            while !stopped.load(Ordering::SeqCst) {
                while let Ok((length, from)) = front.recv_from(&mut packet) {
                    client = Some(from);
                    let _ = back.send(&packet[..length]);
                }
                while let (Ok(length), Some(client)) = (back.recv(&mut packet), client) {
                    let _ = front.send_to(&packet[..length], client);
                }
            }
        });
        Relay { address, stop, thread: Some(thread) }
    }

    fn vanish(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.vanish();
    }
}

#[test]
fn a_killed_peer_is_noticed_by_refusal_and_by_silence() {
    let ca = ClusterCa::generate().unwrap();
    let mut settings = config(ca.issue("datanode-1-a").unwrap());
    settings.idle_timeout = Duration::from_secs(5);
    let mut remote = Remote::start(settings, echo);
    let mut relay = Relay::start(&remote.address.address);
    let node = Node::new(&config(ca.issue("host-1").unwrap()));
    let to = PeerAddress { address: relay.address.clone(), ..remote.address.clone() };
    let mine = node.links.connect(&to, Class::Log);
    node.until(|event| matches!(event, LinkEvent::Connected { .. }).then_some(()));
    remote.wait("Accepted");
    relay.vanish();
    // The client's next packet is refused by the host.
    node.links.send(mine, 0, &[Bytes::from_static(b"hello?")]).unwrap();
    let reason = node.until(|event| match event {
        LinkEvent::Closed { reason, .. } => Some(reason),
        _ => None,
    });
    assert!(reason.contains("refused"), "{reason}");
    // The server hears nothing more, or is refused by the relay's other socket.
    remote.wait("Closed");
    remote.finish();
}

#[test]
fn a_restarted_peer_resets_old_connections() {
    let ca = ClusterCa::generate().unwrap();
    let identity = ca.issue("datanode-1-a").unwrap();
    let settings = config(identity);
    let first = Node::new(&settings);
    let (address, doorbell) = (first.peer("datanode-1-a"), first.reactor.doorbell());
    let listen = first.links.local_addr();
    let (sender, receiver) = channel();
    let other = config(ca.issue("host-1").unwrap());
    let client = std::thread::spawn(move || {
        let node = Node::new(&other);
        node.links.connect(&address, Class::Log);
        node.until(|event| matches!(event, LinkEvent::Connected { .. }).then_some(()));
        sender.send(()).unwrap();
        doorbell.ring();
        node.until(|event| match event {
            LinkEvent::Closed { reason, .. } => Some(reason),
            _ => None,
        })
    });
    let ready = Cell::new(false);
    first.reactor.run(
        || false,
        || {
            ready.set(ready.get() || receiver.try_recv().is_ok());
            ready.get()
        },
    );
    // Forgets everything without a word, as a killed process does; another takes its port.
    first.links.inner.borrow_mut().connections.fill_with(|| None);
    drop(first);
    let _again = Remote::start(QuicConfig { listen, ..settings }, echo);
    let reason = client.join().unwrap();
    assert!(reason.contains("restarted") || reason.contains("refused"), "{reason}");
}
