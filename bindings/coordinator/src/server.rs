//! The store behind a Unix socket: for the process that owns it.
//!
//! A thread accepts; each connection has a thread that reads and carries out operations and one
//! that writes. One lock holds the hub, so operations and what they lead to have one order. A
//! client that does not read its replies, or sends what is not a request, loses its connection
//! and nothing else; it comes back and resumes by revision. One more thread looks at the clock while there are leases.
//!
//! Lock order: state, then a connection's outbound queue. The socket's file has mode 0600 from
//! its first moment. A crash leaves the file behind; the next server removes it after finding
//! that nobody answers there (the lock on the store's file keeps two servers of one store apart).

use crate::acceptor::Acceptor;
use crate::contract::{Answer, Operation, StoreError};
use crate::frame::{GREETING, REQUEST_BYTES_MAX, Request, first, framed};
use crate::hub::{ClientId, Hub, Reply};
use crate::listener::ListenError;
use crate::redb_store::RedbStore;
use cleave_runtime::time::Moment;
use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Most connections at a time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 512;
/// Replies that may wait for one client, bytes; one that lets more pile up is disconnected.
const OUTBOUND_BYTES_MAX: usize = 64 << 20;
/// How long a client may take to send its greeting.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);

/// A running server; stops when dropped.
pub struct StoreServer {
    shared: Arc<Shared>,
    local: ClientId,
    acceptor: Acceptor,
    leases: Option<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    /// The thread that looks at the clock is to look again when it has to.
    look: Condvar,
    /// Moment 0 of the store.
    origin: Instant,
}

struct State {
    hub: Hub,
    stopping: bool,
    /// When the clock is looked at next; `None`: not before somebody says so.
    next_look: Option<Moment>,
    connections: BTreeMap<ClientId, Arc<Connection>>,
    threads: Vec<JoinHandle<()>>,
}

struct Connection {
    stream: UnixStream,
    outbound: Mutex<Outbound>,
    filled: Condvar,
}

#[derive(Default)]
struct Outbound {
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    closed: bool,
}

impl StoreServer {
    /// Serves `store` at `path` until dropped.
    pub fn start(path: &Path, store: RedbStore) -> Result<StoreServer, ListenError> {
        let mut hub = Hub::new(store);
        let local = hub.join();
        let state = State {
            hub,
            stopping: false,
            next_look: None,
            connections: BTreeMap::new(),
            threads: Vec::new(),
        };
        let (look, origin) = (Condvar::new(), Instant::now());
        let shared = Arc::new(Shared { state: Mutex::new(state), look, origin });
        let serving = Arc::clone(&shared);
        let acceptor =
            Acceptor::start(path, "store-accept", move |stream| begin(&serving, stream))?;
        let looking = Arc::clone(&shared);
        let leases = std::thread::Builder::new()
            .name("store-leases".to_owned())
            .spawn(move || looking.watch_leases())
            .map_err(|error| ListenError::Io { path: path.to_owned(), error })?;
        Ok(StoreServer { shared, local, acceptor, leases: Some(leases) })
    }

    /// Carries out an operation for the owning process itself; waits for the disk. Watches are
    /// for clients only.
    pub fn execute(&self, operation: Operation) -> Result<Answer, StoreError> {
        if matches!(operation, Operation::Watch { .. } | Operation::Unwatch { .. }) {
            return Err(StoreError::Invalid("a watch without a client".to_owned()));
        }
        let own = self.shared.run(self.local, Request { token: 0, operation });
        own.expect("the hub answers every operation")
    }
}

impl Drop for StoreServer {
    fn drop(&mut self) {
        self.acceptor.end();
        // No connection begins any more.
        let threads = {
            let mut state = self.shared.lock();
            state.stopping = true;
            self.shared.look.notify_one();
            state.connections.values().for_each(|connection| connection.close());
            std::mem::take(&mut state.threads)
        };
        for thread in threads.into_iter().chain(self.leases.take()) {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no thread panics while it holds the store")
    }

    fn now(&self) -> Moment {
        Moment(0) + self.origin.elapsed()
    }

    /// Carries out an operation, gives every connection what it leads to, and returns the answer
    /// when `client` has no connection.
    fn run(&self, client: ClientId, request: Request) -> Option<Result<Answer, StoreError>> {
        let mut replies = Vec::new();
        let mut state = self.lock();
        let Request { token, operation } = request;
        state.hub.execute(self.now(), client, token, operation, &mut replies);
        let wanted = state.hub.next_step();
        if wanted.is_some_and(|wanted| state.next_look.is_none_or(|planned| wanted < planned)) {
            self.look.notify_one();
        }
        state.give_out(client, replies)
    }

    /// Says what time it is whenever the hub has to know.
    fn watch_leases(&self) {
        let mut state = self.lock();
        while !state.stopping {
            let now = self.now();
            let mut replies = Vec::new();
            state.hub.step(now, &mut replies);
            state.give_out_all(replies);
            state.next_look = state.hub.next_step();
            let held = "no thread panics while it holds the store";
            state = match state.next_look {
                None => self.look.wait(state).expect(held),
                Some(next) => self.look.wait_timeout(state, next.since(now)).expect(held).0,
            };
        }
    }
}

impl State {
    fn give_out_all(&mut self, replies: Vec<(ClientId, Reply)>) {
        for (to, reply) in replies {
            if let Some(connection) = self.connections.get(&to) {
                connection.push(framed(&reply));
            }
        }
    }

    /// Gives replies to their connections; an answer to a `client` that has none is returned.
    fn give_out(
        &mut self,
        client: ClientId,
        replies: Vec<(ClientId, Reply)>,
    ) -> Option<Result<Answer, StoreError>> {
        let mut own = None;
        for (to, reply) in replies {
            match (self.connections.get(&to), reply) {
                (Some(connection), reply) => connection.push(framed(&reply)),
                (None, Reply::Answer { result, .. }) if to == client => own = Some(result),
                (None, _) => {}
            }
        }
        own
    }
}

impl Connection {
    fn outbound(&self) -> MutexGuard<'_, Outbound> {
        self.outbound.lock().expect("no thread panics while it holds a queue")
    }

    fn push(&self, frame: Vec<u8>) {
        let mut outbound = self.outbound();
        outbound.bytes += frame.len();
        outbound.frames.push_back(frame);
        let overrun = outbound.bytes > OUTBOUND_BYTES_MAX;
        drop(outbound);
        self.filled.notify_one();
        if overrun {
            tracing::warn!("a client of the coordinator store does not read; disconnecting it");
            self.close();
        }
    }

    /// Ends both of its threads.
    fn close(&self) {
        self.outbound().closed = true;
        self.filled.notify_one();
        // An error says that the other side closed first.
        let _ = self.stream.shutdown(Shutdown::Both);
    }

    fn write_all(&self) -> io::Result<()> {
        (&self.stream).write_all(&GREETING)?;
        loop {
            let mut outbound = self.outbound();
            let frame = loop {
                if outbound.closed {
                    return Ok(());
                }
                match outbound.frames.pop_front() {
                    Some(frame) => break frame,
                    None => {
                        outbound = self
                            .filled
                            .wait(outbound)
                            .expect("no thread panics while it holds a queue");
                    }
                }
            };
            outbound.bytes -= frame.len();
            drop(outbound);
            (&self.stream).write_all(&frame)?;
        }
    }
}

fn begin(shared: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    let connection =
        Arc::new(Connection { stream, outbound: Mutex::default(), filled: Condvar::new() });
    let mut state = shared.lock();
    state.threads.retain(|thread| !thread.is_finished());
    if state.connections.len() >= CONNECTIONS_MAX {
        return Err(io::Error::other("too many connections"));
    }
    let client = state.hub.join();
    state.connections.insert(client, Arc::clone(&connection));
    let writing = Arc::clone(&connection);
    let writer = std::thread::Builder::new().name("store-write".to_owned()).spawn(move || {
        // The reading thread learns of it and says so.
        if writing.write_all().is_err() {
            writing.close();
        }
    });
    let reading = (Arc::clone(shared), Arc::clone(&connection));
    let reader = writer.and_then(|writer| {
        state.threads.push(writer);
        std::thread::Builder::new().name("store-read".to_owned()).spawn(move || {
            let (shared, connection) = reading;
            if let Err(error) = serve(&shared, client, &connection) {
                tracing::warn!("lost a client of the coordinator store: {error}");
            }
            connection.close();
            let mut state = shared.lock();
            state.connections.remove(&client);
            state.hub.leave(client);
        })
    });
    match reader {
        Ok(reader) => {
            state.threads.push(reader);
            Ok(())
        }
        Err(error) => {
            connection.close();
            state.connections.remove(&client);
            Err(error)
        }
    }
}

/// Reads and carries out requests until the client leaves.
fn serve(shared: &Shared, client: ClientId, connection: &Connection) -> io::Result<()> {
    let mut stream = &connection.stream;
    let mut greeting = [0; GREETING.len()];
    stream.set_read_timeout(Some(GREETING_TIME_MAX))?;
    stream.read_exact(&mut greeting)?;
    stream.set_read_timeout(None)?;
    if greeting != GREETING {
        return Err(io::Error::other("it speaks another protocol or version"));
    }
    let mut received = Vec::new();
    let mut chunk = vec![0; 64 << 10];
    loop {
        let mut used = 0;
        while let Some((request, length)) =
            first::<Request>(&received[used..], REQUEST_BYTES_MAX).map_err(io::Error::other)?
        {
            used += length;
            shared.run(client, request);
        }
        received.drain(..used);
        match stream.read(&mut chunk)? {
            0 => return Ok(()),
            count => received.extend_from_slice(&chunk[..count]),
        }
    }
}
