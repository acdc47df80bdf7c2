//! What only a socket has: names, modes, garbage, servers that vanish in the middle.

use super::world::{Backend, Bell, Sockets, World};
use crate::blocking::BlockingStore;
use crate::client::StoreClient;
use crate::contract::{Answer, Operation, Outcome, StoreError, Transaction};
use crate::encoding::decode;
use crate::frame::{GREETING, REQUEST_BYTES_MAX, Request, first, framed};
use crate::hub::Reply;
use crate::listener::ListenError;
use crate::redb_store::RedbStore;
use crate::server::StoreServer;
use crate::socket::SocketStore;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

fn put(key: &str) -> Transaction {
    Transaction::new().put(key, b"value".to_vec())
}

#[test]
fn the_socket_is_private_and_its_name_is_guarded() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sock");
    let start = |path: &std::path::Path| StoreServer::start(path, RedbStore::in_memory());
    let server = start(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(start(&path), Err(ListenError::InUse(_))));
    drop(server);
    assert!(!path.exists());
    // What a killed server leaves behind is removed; what is not a socket is kept.
    drop(UnixListener::bind(&path).unwrap());
    drop(start(&path).unwrap());
    std::fs::write(&path, b"precious").unwrap();
    assert!(matches!(start(&path), Err(ListenError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"precious");
    let long = directory.path().join("x".repeat(108));
    assert!(matches!(start(&long), Err(ListenError::PathTooLong(_))));
    let error = SocketStore::new(&long, Arc::new(Bell::default())).err().unwrap();
    assert!(error.to_string().contains("too long"), "{error}");
    assert!(matches!(start(&directory.path().join("no/sock")), Err(ListenError::Io { .. })));
}

#[test]
fn garbage_ends_its_connection_and_nothing_else() {
    let sockets = Sockets::new();
    let world = World::new(sockets.clone());
    let client = world.client();
    let greeted = |rest: &[u8]| [&GREETING, rest].concat();
    let huge = u32::try_from(REQUEST_BYTES_MAX + 1).unwrap().to_le_bytes();
    let valid = framed(&Request { token: 1, operation: Operation::Get { key: "a".to_owned() } });
    let mut trailing = valid.clone();
    trailing[0] += 1;
    trailing.push(0);
    for garbage in [
        b"GET / HTTP/1.1\r\n".to_vec(),
        greeted(&[0xff; 64]),
        greeted(&huge),
        greeted(&[3, 0, 0, 0, 9, 9, 9]),
        greeted(&[0, 0, 0, 0]),
        greeted(&trailing),
    ] {
        let mut stream = UnixStream::connect(sockets.socket()).unwrap();
        stream.write_all(&garbage).unwrap();
        let mut received = Vec::new();
        // Closed by the server, without an answer (a reset when it had not read everything).
        let _ = stream.read_to_end(&mut received);
        assert!(received.is_empty() || received == GREETING, "{garbage:?}");
        // A client that leaves in the middle of a message.
        let mut stream = UnixStream::connect(sockets.socket()).unwrap();
        stream.write_all(&greeted(&valid[..7])).unwrap();
        drop(stream);
        let client = client.clone();
        assert!(world.run(async move { client.transact(put("a")).await }).is_ok());
    }
}

/// Takes a connection, greets, and reads one request.
fn one_request(listener: &UnixListener) -> (UnixStream, Request) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.write_all(&GREETING).unwrap();
    let mut greeting = [0; GREETING.len()];
    stream.read_exact(&mut greeting).unwrap();
    assert_eq!(greeting, GREETING);
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body).unwrap();
    (stream, decode(&body).unwrap())
}

#[test]
fn a_server_that_vanishes_in_a_transaction_leaves_it_unknown() {
    let sockets = Sockets::new();
    sockets.stop();
    let path = sockets.socket();
    let listener = UnixListener::bind(&path).unwrap();
    let liar = std::thread::spawn(move || {
        let (stream, request) = one_request(&listener);
        assert!(matches!(request.operation, Operation::Transact(_)));
        drop(stream);
        // The next connection: a read, left unanswered, and a third one with garbage.
        let (stream, request) = one_request(&listener);
        assert!(matches!(request.operation, Operation::Get { .. }));
        drop(stream);
        let (mut stream, request) = one_request(&listener);
        assert!(matches!(request.operation, Operation::Get { .. }));
        let unasked = Reply::Answer { token: request.token + 1, result: Err(StoreError::Unknown) };
        stream.write_all(&framed(&unasked)).unwrap();
        let (mut stream, request) = one_request(&listener);
        assert!(matches!(request.operation, Operation::Get { .. }));
        stream.write_all(&[0xff; 32]).unwrap();
        // Then an honest server.
        drop(listener);
        StoreServer::start(&path, RedbStore::in_memory()).unwrap()
    });
    let world = World::new(sockets.clone());
    let client = world.client();
    world.run(async move {
        assert_eq!(client.transact(put("a")).await, Err(StoreError::Unknown));
        // The read outlives three broken connections and is answered by the honest server.
        assert_eq!(client.get("a").await, Ok(None));
        assert_eq!(client.transact(put("a")).await, Ok(Outcome::Committed(1)));
    });
    drop(liar.join().unwrap());
}

#[test]
fn a_client_may_begin_before_the_server_and_end_without_it() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.sock");
    let store = SocketStore::new(&path, Arc::new(Bell::default())).unwrap();
    let client = StoreClient::new(Rc::new(store));
    assert!(!client.turn() && !client.is_connected());
    drop(client);
    let sockets = Sockets::new();
    sockets.stop();
    let world = World::new(sockets.clone());
    let client = world.client();
    sockets.start();
    world.run(async move { client.get("a").await }).unwrap();
    world.forget_clients();
}

#[test]
fn the_owning_process_executes_beside_its_clients() {
    let sockets = Sockets::new();
    let world = World::new(sockets.clone());
    let client = world.client();
    let watch = client.watch("", 1);
    let backend = Rc::clone(&sockets);
    world.run(async move {
        let execute = |operation| backend.server.borrow().as_ref().unwrap().execute(operation);
        execute(Operation::Transact(put("a"))).unwrap();
        let crate::WatchEvent::Changed(changed) = watch.next().await else {
            panic!("nothing was forgotten");
        };
        assert_eq!(changed.revision, 1);
        assert!(matches!(execute(Operation::Unwatch { watch: 1 }), Err(StoreError::Invalid(_))));
    });
}

#[test]
fn threads_that_wait_share_a_client_and_lose_patience_together() {
    let sockets = Sockets::new();
    let open = |patience| {
        BlockingStore::new(patience, |bell| SocketStore::new(&sockets.socket(), bell)).unwrap()
    };
    let patient = open(Duration::from_secs(60));
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let patient = &patient;
            scope.spawn(move || {
                for number in 0..20 {
                    let key = format!("{thread}/{number}");
                    let answer = patient.execute(Operation::Transact(put(&key)));
                    assert!(matches!(answer, Ok(Answer::Transacted(Outcome::Committed(_)))));
                    let answer = patient.execute(Operation::Get { key });
                    assert!(matches!(answer, Ok(Answer::Value(Some(_)))));
                }
            });
        }
    });
    let watched = patient.execute(Operation::Watch { prefix: String::new(), from: 0 });
    assert!(matches!(watched, Err(StoreError::Invalid(_))));
    assert!(patient.is_connected());
    let impatient = open(Duration::ZERO);
    let read = || Operation::Get { key: "0/0".to_owned() };
    while impatient.execute(read()).is_err() {}
    sockets.stop();
    while impatient.is_connected() {}
    assert_eq!(impatient.execute(read()), Err(StoreError::Unavailable));
    // One that waits is answered when the store is back.
    std::thread::scope(|scope| {
        while patient.is_connected() {}
        let waiting = scope.spawn(|| patient.execute(Operation::Get { key: "3/19".to_owned() }));
        sockets.start();
        assert!(matches!(waiting.join().unwrap(), Ok(Answer::Value(Some(_)))));
    });
}

proptest! {
    #[test]
    fn no_bytes_break_a_decoder(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = first::<Request>(&bytes, REQUEST_BYTES_MAX);
        let _ = first::<Reply>(&bytes, REQUEST_BYTES_MAX);
        let _ = decode::<Request>(&bytes);
        let _ = decode::<Reply>(&bytes);
        let _ = decode::<crate::LogRole>(&bytes);
    }

    #[test]
    fn a_request_comes_back_from_its_frame(
        token: u64,
        key in "[a-z/]{1,20}",
        value in prop::option::of(prop::collection::vec(any::<u8>(), 0..100)),
        lease in prop::option::of(any::<u64>().prop_map(crate::LeaseId)),
        rest in prop::collection::vec(any::<u8>(), 0..10),
    ) {
        let transaction = Transaction {
            conditions: vec![],
            changes: vec![crate::Change { key, lease: lease.filter(|_| value.is_some()), value }],
        };
        let request = Request { token, operation: Operation::Transact(transaction) };
        let mut bytes = framed(&request);
        for cut in 0..bytes.len() {
            prop_assert_eq!(first::<Request>(&bytes[..cut], REQUEST_BYTES_MAX), Ok(None));
        }
        let length = bytes.len();
        bytes.extend(rest);
        prop_assert_eq!(first(&bytes, REQUEST_BYTES_MAX), Ok(Some((request, length))));
    }
}
