//! The answering side of the control protocol, on threads of its own.
//!
//! A thread accepts, and each connection has one that reads requests and calls the handler, which
//! may take its time. A client that sends what is no request gets an error and loses its
//! connection; one that is silent for long, or does not read, loses it too. The socket's file has
//! mode 0600.

use crate::protocol::{Line, LineReader, REQUEST_BYTES_MAX, Request, Response, line};
use cleave_coordinator::ListenError;
use cleave_coordinator::acceptor::Acceptor;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

/// Most connections at a time; more are closed at once.
pub const CONNECTIONS_MAX: usize = 32;
/// A connection without a request for this long is closed.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// How long a client may take to read a response.
const WRITE_TIME_MAX: Duration = Duration::from_secs(10);

/// Answers requests; called from several threads. It must not drop the server: that waits for it.
pub type Handler = dyn Fn(Request) -> Response + Send + Sync;

/// A running server. Dropping it closes its connections, waits for handlers that run, and removes
/// the socket.
pub struct ControlServer {
    shared: Arc<Shared>,
    acceptor: Acceptor,
}

struct Shared {
    handler: Box<Handler>,
    connections: Mutex<Connections>,
}

#[derive(Default)]
struct Connections {
    next: u64,
    open: BTreeMap<u64, Arc<UnixStream>>,
    threads: Vec<JoinHandle<()>>,
}

impl ControlServer {
    /// Serves `path` until dropped.
    pub fn start(
        path: &Path,
        handler: impl Fn(Request) -> Response + Send + Sync + 'static,
    ) -> Result<ControlServer, ListenError> {
        let shared = Shared { handler: Box::new(handler), connections: Mutex::default() };
        let shared = Arc::new(shared);
        let serving = Arc::clone(&shared);
        let acceptor =
            Acceptor::start(path, "control-accept", move |stream| begin(&serving, stream))?;
        Ok(ControlServer { shared, acceptor })
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        self.acceptor.end();
        // No connection begins any more.
        let threads = {
            let mut connections = self.shared.lock();
            for stream in connections.open.values() {
                // The answer to a request that is being handled can still be written.
                let _ = stream.shutdown(Shutdown::Read);
            }
            std::mem::take(&mut connections.threads)
        };
        for thread in threads {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().expect("no thread panics while it holds the connections")
    }
}

fn begin(shared: &Arc<Shared>, stream: UnixStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(WRITE_TIME_MAX))?;
    let mut connections = shared.lock();
    connections.threads.retain(|thread| !thread.is_finished());
    if connections.open.len() >= CONNECTIONS_MAX {
        return Err(io::Error::other("too many connections"));
    }
    let number = connections.next;
    connections.next += 1;
    let stream = Arc::new(stream);
    connections.open.insert(number, Arc::clone(&stream));
    let serving = Arc::clone(shared);
    let thread = std::thread::Builder::new().name("control".to_owned()).spawn(move || {
        if let Err(error) = serve(&serving, &stream) {
            tracing::debug!("a control connection ended: {error}");
        }
        serving.lock().open.remove(&number);
    });
    match thread {
        Ok(thread) => {
            connections.threads.push(thread);
            Ok(())
        }
        Err(error) => {
            connections.open.remove(&number);
            Err(error)
        }
    }
}

fn serve(shared: &Shared, mut stream: &UnixStream) -> io::Result<()> {
    let mut lines = LineReader::new(REQUEST_BYTES_MAX);
    loop {
        let (response, last) = match lines.read(&mut stream)? {
            Line::Part => continue,
            Line::End => return Ok(()),
            Line::TooLong => (Response::error("the request is too long"), true),
            Line::Whole(request) => match serde_json::from_slice(&request) {
                Ok(request) => ((shared.handler)(request), false),
                Err(error) => (Response::error(format!("not a request: {error}")), true),
            },
        };
        stream.write_all(&line(&response))?;
        if last {
            return Ok(());
        }
    }
}
