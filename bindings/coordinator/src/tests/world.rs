//! The worlds of this crate's own stores: directly, with messages that are delivered one by one, and over a socket.

pub use crate::conformance::world::{Backend, Bell, World};
use crate::direct::{DirectServer, DirectStore, Schedule};
use crate::hub::Hub;
use crate::redb_store::RedbStore;
use crate::server::StoreServer;
use crate::socket::SocketStore;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

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
