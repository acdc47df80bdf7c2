//! Where the suite runs: a core's loop, clients, and a server that can be restarted.

use crate::client::StoreClient;
use crate::direct::{DirectServer, DirectStore, Schedule};
use crate::hub::Hub;
use crate::redb_store::RedbStore;
use crate::server::StoreServer;
use crate::socket::SocketStore;
use cleave_runtime::executor::{Doorbell, Executor, NoDoorbell, Priority};
use cleave_runtime::time::{Clock, Moment};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

pub struct StoppedClock;

impl Clock for StoppedClock {
    fn now(&self) -> Moment {
        Moment(0)
    }
    fn unix_seconds(&self) -> u64 {
        0
    }
}

/// A store, how to reach it, and how the world goes on.
pub trait Backend {
    fn store(&self) -> Rc<dyn crate::Store>;
    /// The server goes away, for every client.
    fn stop(&self);
    /// It comes back with what was durable.
    fn start(&self);
    /// Lets something happen that a client can see; panics when nothing can.
    fn wait(&self);
}

/// A core with its clients.
pub struct World {
    pub executor: Executor,
    pub backend: Rc<dyn Backend>,
    clients: RefCell<Vec<StoreClient>>,
}

impl World {
    pub fn new(backend: Rc<dyn Backend>) -> World {
        let executor = Executor::new(Rc::new(StoppedClock), Arc::new(NoDoorbell));
        World { executor, backend, clients: RefCell::default() }
    }

    pub fn client(&self) -> StoreClient {
        let client = StoreClient::new(self.backend.store());
        self.clients.borrow_mut().push(client.clone());
        client
    }

    pub fn spawn(&self, future: impl Future<Output = ()> + 'static) {
        self.executor.spawn(Priority::Foreground, future);
    }

    /// Turns every client and runs what that wakes; false when nothing happened.
    pub fn turn(&self) -> bool {
        let turned = self.clients.borrow().iter().filter(|client| client.turn()).count() > 0;
        self.executor.run_until_idle() || turned
    }

    /// Runs until `future` is done.
    pub fn run<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> T {
        let result = Rc::new(RefCell::new(None));
        let given = Rc::clone(&result);
        self.spawn(async move {
            let value = future.await;
            *given.borrow_mut() = Some(value);
        });
        loop {
            while self.turn() {}
            if let Some(value) = result.borrow_mut().take() {
                return value;
            }
            self.backend.wait();
        }
    }

    /// Forgets a client, so that dropping its handles disconnects it.
    pub fn forget_clients(&self) {
        self.executor.clear();
        self.clients.borrow_mut().clear();
    }
}

/// Messages on their way, delivered one by one.
pub type Mail = Rc<RefCell<VecDeque<Box<dyn FnOnce()>>>>;

pub struct Direct {
    pub server: DirectServer,
    pub mail: Mail,
    pub stores: RefCell<Vec<Rc<DirectStore>>>,
    connected: Cell<bool>,
}

impl Direct {
    pub fn new() -> Rc<Direct> {
        Rc::new(Direct {
            server: DirectServer::new(Hub::new(RedbStore::in_memory())),
            mail: Mail::default(),
            stores: RefCell::default(),
            connected: Cell::new(true),
        })
    }

    /// Delivers the oldest message.
    pub fn deliver(&self) -> bool {
        let message = self.mail.borrow_mut().pop_front();
        message.map(|message| message()).is_some()
    }
}

impl Backend for Direct {
    fn store(&self) -> Rc<dyn crate::Store> {
        let mail = Rc::clone(&self.mail);
        let schedule: Schedule = Rc::new(move |message| mail.borrow_mut().push_back(message));
        let store = Rc::new(self.server.connect(schedule));
        store.set_connected(self.connected.get());
        self.stores.borrow_mut().push(Rc::clone(&store));
        store
    }
    fn stop(&self) {
        self.connected.set(false);
        self.stores.borrow().iter().for_each(|store| store.set_connected(false));
    }
    fn start(&self) {
        self.connected.set(true);
        self.stores.borrow().iter().for_each(|store| store.set_connected(true));
    }
    fn wait(&self) {
        assert!(self.deliver(), "everybody waits and nothing is on its way");
    }
}

/// Counts rings; waits for the next.
#[derive(Default)]
pub struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// Far longer than anything takes: to fail instead of hanging.
    const HUNG: Duration = Duration::from_secs(60);

    pub fn wait(&self) {
        let rings = self.rings.lock().unwrap();
        let (mut rings, timeout) =
            self.rung.wait_timeout_while(rings, Bell::HUNG, |rings| *rings == 0).unwrap();
        assert!(!timeout.timed_out(), "everybody waits and nothing happens");
        *rings = 0;
    }
}

impl Doorbell for Bell {
    fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        self.rung.notify_one();
    }
}

pub struct Sockets {
    pub directory: tempfile::TempDir,
    pub server: RefCell<Option<StoreServer>>,
    pub bell: Arc<Bell>,
}

impl Sockets {
    pub fn new() -> Rc<Sockets> {
        let sockets = Sockets {
            directory: tempfile::tempdir().unwrap(),
            server: RefCell::new(None),
            bell: Arc::default(),
        };
        sockets.start();
        Rc::new(sockets)
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("store.sock")
    }
}

impl Backend for Sockets {
    fn store(&self) -> Rc<dyn crate::Store> {
        let bell: Arc<Bell> = Arc::clone(&self.bell);
        Rc::new(SocketStore::new(&self.socket(), bell).unwrap())
    }
    fn stop(&self) {
        *self.server.borrow_mut() = None;
    }
    fn start(&self) {
        let store = RedbStore::open(&self.directory.path().join("store.redb")).unwrap();
        *self.server.borrow_mut() = Some(StoreServer::start(&self.socket(), store).unwrap());
    }
    fn wait(&self) {
        self.bell.wait();
    }
}
