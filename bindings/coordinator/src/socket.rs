//! The other end of the store's socket: [`SocketStore`], what a core polls.
//!
//! One thread per client does all socket work: it connects, and connects again for as long as
//! the client lives. The core hands it operations through a channel and takes events from
//! another, so it never blocks; the thread rings the core's doorbell after it has published
//! events. What waits in the channels is bounded by what the core's tasks have in flight.

use crate::contract::{Operation, Store, StoreError, StoreEvent, Token, validate};
use crate::frame::{GREETING, REPLY_BYTES_MAX, Request, first, framed};
use crate::hub::Reply;
use cleave_runtime::executor::Doorbell;
use rustix::event::Timespec;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Pause between attempts to connect: from this ...
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// ... doubling to this.
const PAUSE_MAX: Duration = Duration::from_millis(250);
/// How long a server may take to send its greeting.
const GREETING_TIME_MAX: Duration = Duration::from_secs(5);

/// A client of a [`StoreServer`](crate::server::StoreServer). Dropping it ends its thread.
pub struct SocketStore {
    /// `None` only while it is dropped.
    operations: Option<Sender<(Token, Operation)>>,
    wake: Arc<OwnedFd>,
    events: Receiver<StoreEvent>,
    thread: Option<JoinHandle<()>>,
}

impl SocketStore {
    /// A client of the server at `path`, which need not be there yet. `doorbell` wakes the core
    /// that will poll. Fails when the path is too long for a socket, or the system is out of
    /// threads or files.
    pub fn new(path: &Path, doorbell: Arc<dyn Doorbell>) -> io::Result<SocketStore> {
        let address = SocketAddrUnix::new(path).map_err(|_| {
            let what = format!("the socket path {} is too long", path.display());
            io::Error::new(io::ErrorKind::InvalidInput, what)
        })?;
        let wake = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let (operations, taken) = channel();
        let (report, events) = channel();
        let worker = Worker {
            path: path.to_owned(),
            address,
            wake: Arc::clone(&wake),
            operations: taken,
            report,
            doorbell,
        };
        let thread = std::thread::Builder::new()
            .name("store-client".to_owned())
            .spawn(move || worker.work())?;
        Ok(SocketStore { operations: Some(operations), wake, events, thread: Some(thread) })
    }

    fn wake(&self) {
        match rustix::io::write(&*self.wake, &1_u64.to_ne_bytes()) {
            // Would block: 2^64 wakes are waiting already.
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => unreachable!("writing to an open eventfd: {error}"),
        }
    }
}

impl Store for SocketStore {
    fn submit(&self, token: Token, operation: Operation) {
        let operations = self.operations.as_ref().expect("set until dropped");
        operations.send((token, operation)).expect("the thread lives as long as the client");
        self.wake();
    }

    fn poll(&self, events: &mut Vec<StoreEvent>) {
        events.extend(self.events.try_iter());
    }
}

impl Drop for SocketStore {
    fn drop(&mut self) {
        self.operations = None;
        self.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    path: PathBuf,
    address: SocketAddrUnix,
    wake: Arc<OwnedFd>,
    operations: Receiver<(Token, Operation)>,
    report: Sender<StoreEvent>,
    doorbell: Arc<dyn Doorbell>,
}

/// The client was dropped.
struct Dropped;

/// Why a connection ended.
enum End {
    Dropped,
    Lost(String),
}

struct Connection {
    socket: OwnedFd,
    greeted: bool,
    received: Vec<u8>,
    outgoing: Vec<u8>,
    /// Sent and not answered; whether it is a transaction.
    in_flight: BTreeMap<Token, bool>,
}

impl Worker {
    fn work(self) {
        let mut pause = PAUSE_MIN;
        let mut announced = false;
        loop {
            let lost = match self.open() {
                Ok(mut connection) => {
                    let end = self.converse(&mut connection);
                    if connection.greeted {
                        (pause, announced) = (PAUSE_MIN, false);
                        self.disconnected(connection);
                    }
                    match end {
                        End::Dropped => return,
                        End::Lost(reason) => reason,
                    }
                }
                Err(error) => error.to_string(),
            };
            if !announced {
                announced = true;
                let path = self.path.display();
                tracing::warn!("the coordinator store at {path} is away: {lost}; trying again");
            }
            if self.wait(pause).is_err() {
                return;
            }
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }

    fn tell(&self, event: StoreEvent) {
        // Fails only when the client is being dropped, which the next look at operations finds.
        let _ = self.report.send(event);
    }

    fn open(&self) -> rustix::io::Result<Connection> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        connect(&socket, &self.address)?;
        Ok(Connection {
            socket,
            greeted: false,
            received: Vec::new(),
            outgoing: GREETING.to_vec(),
            in_flight: BTreeMap::new(),
        })
    }

    /// Waits until it is time to connect again; meanwhile operations are refused.
    fn wait(&self, pause: Duration) -> Result<(), Dropped> {
        let until = Instant::now() + pause;
        loop {
            self.refuse()?;
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                return Ok(());
            }
            let mut ready = [PollFd::new(&*self.wake, PollFlags::IN)];
            wait_for(&mut ready, Some(rest));
        }
    }

    fn refuse(&self) -> Result<(), Dropped> {
        let mut any = false;
        while let Some((token, _)) = self.next()? {
            self.tell(StoreEvent::Answer { token, result: Err(StoreError::Unavailable) });
            any = true;
        }
        if any {
            self.doorbell.ring();
        }
        Ok(())
    }

    /// The next operation, if there is one.
    fn next(&self) -> Result<Option<(Token, Operation)>, Dropped> {
        match self.operations.try_recv() {
            Ok(operation) => return Ok(Some(operation)),
            Err(TryRecvError::Disconnected) => return Err(Dropped),
            Err(TryRecvError::Empty) => {}
        }
        // Empty the eventfd, then look again: what was sent before its wake was taken is seen.
        let mut count = [0; 8];
        match rustix::io::read(&*self.wake, &mut count) {
            Ok(_) | Err(Errno::AGAIN) => {}
            Err(error) => unreachable!("reading an open eventfd: {error}"),
        }
        match self.operations.try_recv() {
            Ok(operation) => Ok(Some(operation)),
            Err(TryRecvError::Empty) => Ok(None),
            Err(TryRecvError::Disconnected) => Err(Dropped),
        }
    }

    fn disconnected(&self, connection: Connection) {
        self.tell(StoreEvent::Disconnected);
        for (token, transaction) in connection.in_flight {
            let error = if transaction { StoreError::Unknown } else { StoreError::Unavailable };
            self.tell(StoreEvent::Answer { token, result: Err(error) });
        }
        self.doorbell.ring();
    }

    /// Moves messages both ways until the connection ends.
    fn converse(&self, connection: &mut Connection) -> End {
        let greet_until = Instant::now() + GREETING_TIME_MAX;
        loop {
            if let Err(end) = self.take_operations(connection) {
                return end;
            }
            let moved = connection.flush().and_then(|()| connection.fill());
            let open = match moved {
                Ok(open) => open,
                Err(error) => return End::Lost(error.to_string()),
            };
            if let Err(reason) = self.take_replies(connection) {
                return End::Lost(reason);
            }
            if !open {
                return End::Lost("it closed the connection".to_owned());
            }
            let mut rest = None;
            if !connection.greeted {
                let left = greet_until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return End::Lost("it does not answer".to_owned());
                }
                rest = Some(left);
            }
            let mut wanted = PollFlags::IN;
            if !connection.outgoing.is_empty() {
                wanted |= PollFlags::OUT;
            }
            let mut ready =
                [PollFd::new(&connection.socket, wanted), PollFd::new(&*self.wake, PollFlags::IN)];
            wait_for(&mut ready, rest);
        }
    }

    fn take_operations(&self, connection: &mut Connection) -> Result<(), End> {
        if !connection.greeted {
            return self.refuse().map_err(|Dropped| End::Dropped);
        }
        while let Some((token, operation)) = self.next().map_err(|Dropped| End::Dropped)? {
            if let Err(error) = validate(&operation) {
                self.tell(StoreEvent::Answer { token, result: Err(error) });
                self.doorbell.ring();
                continue;
            }
            let transaction = operation.is_transaction();
            let before = connection.in_flight.insert(token, transaction);
            assert!(before.is_none(), "token {token} is in flight already");
            connection.outgoing.extend_from_slice(&framed(&Request { token, operation }));
        }
        Ok(())
    }

    fn take_replies(&self, connection: &mut Connection) -> Result<(), String> {
        let mut used = 0;
        if !connection.greeted {
            let Some(greeting) = connection.received.first_chunk() else { return Ok(()) };
            if *greeting != GREETING {
                return Err("it speaks another protocol or version".to_owned());
            }
            used = GREETING.len();
            connection.greeted = true;
            tracing::info!("connected to the coordinator store at {}", self.path.display());
            self.tell(StoreEvent::Connected);
        }
        let mut any = used > 0;
        while let Some((reply, length)) = first(&connection.received[used..], REPLY_BYTES_MAX)? {
            used += length;
            any = true;
            self.tell(match reply {
                Reply::Changed { watch, event } => StoreEvent::Changed { watch, event },
                Reply::Answer { token, result } => {
                    if connection.in_flight.remove(&token).is_none() {
                        return Err(format!("it answered {token}, which was not asked"));
                    }
                    StoreEvent::Answer { token, result }
                }
            });
        }
        connection.received.drain(..used);
        if any {
            self.doorbell.ring();
        }
        Ok(())
    }
}

impl Connection {
    /// Writes what the socket takes.
    fn flush(&mut self) -> rustix::io::Result<()> {
        let mut written = 0;
        let result = loop {
            if written == self.outgoing.len() {
                break Ok(());
            }
            let flags = rustix::net::SendFlags::NOSIGNAL;
            match rustix::net::send(&self.socket, &self.outgoing[written..], flags) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => break Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => break Err(error),
            }
        };
        self.outgoing.drain(..written);
        result
    }

    /// Reads what is there; false when the other side has closed.
    fn fill(&mut self) -> rustix::io::Result<bool> {
        let mut chunk = [0; 16 << 10];
        // One message at most beyond what was there, so that replies are taken as they come.
        while self.received.len() <= 4 + REPLY_BYTES_MAX {
            match rustix::io::read(&self.socket, &mut chunk) {
                Ok(0) => return Ok(false),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

fn wait_for(ready: &mut [PollFd<'_>], span: Option<Duration>) {
    let span = span.map(|span| Timespec {
        tv_sec: span.as_secs().try_into().expect("waits are short"),
        tv_nsec: span.subsec_nanos().into(),
    });
    match poll(ready, span.as_ref()) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(error) => unreachable!("polling open files: {error}"),
    }
}
