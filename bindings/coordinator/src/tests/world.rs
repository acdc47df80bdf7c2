//! The worlds of this crate's own stores: directly, with messages that are delivered one by one, and over a socket.

use crate::conformance::world::real_now;
pub use crate::conformance::world::{Backend, Bell, World};
use crate::direct::{DirectServer, DirectStore, Later, Schedule, Time};
use crate::hub::Hub;
use crate::redb_store::RedbStore;
use crate::server::StoreServer;
use crate::socket::SocketStore;
use cleave_runtime::time::{Clock, Moment};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Messages on their way, delivered one by one.
pub type Mail = Rc<RefCell<VecDeque<Box<dyn FnOnce()>>>>;

type Call = Box<dyn FnOnce()>;

/// A clock that others move, and what waits for it.
#[derive(Default)]
pub struct Hours {
    now: Cell<Moment>,
    timers: RefCell<BTreeMap<(Moment, u64), Call>>,
    numbers: Cell<u64>,
}

impl Clock for Hours {
    fn now(&self) -> Moment {
        self.now.get()
    }
    fn unix_seconds(&self) -> u64 {
        0
    }
}

impl Hours {
    fn later(&self, span: Duration, call: Call) {
        let number = self.numbers.replace(self.numbers.get() + 1);
        self.timers.borrow_mut().insert((self.now.get() + span, number), call);
    }

    /// Time goes on, and what waited for it is called at its moment.
    pub fn pass(&self, span: Duration) {
        let until = self.now.get() + span;
        loop {
            let due = {
                let mut timers = self.timers.borrow_mut();
                let first = timers.first_entry();
                first.filter(|first| first.key().0 <= until).map(|first| first.remove_entry())
            };
            let Some(((moment, _), call)) = due else { break };
            self.now.set(moment.max(self.now.get()));
            call();
        }
        self.now.set(until);
    }

    /// Time goes on while nobody is called.
    pub fn pass_unseen(&self, span: Duration) {
        self.now.set(self.now.get() + span);
    }
}

/// What a delivery takes.
const DELIVERY: Duration = Duration::from_millis(1);

pub struct Direct {
    pub server: DirectServer,
    pub hours: Rc<Hours>,
    pub mail: Mail,
    pub stores: RefCell<Vec<Rc<DirectStore>>>,
    connected: Cell<bool>,
}

impl Direct {
    pub fn new() -> Rc<Direct> {
        let hours = Rc::<Hours>::default();
        let timers = Rc::clone(&hours);
        let later: Later = Rc::new(move |span, call| timers.later(span, call));
        let time = Time { clock: Rc::clone(&hours) as Rc<dyn Clock>, later };
        Rc::new(Direct {
            server: DirectServer::with_time(Hub::new(RedbStore::in_memory()), time),
            hours,
            mail: Mail::default(),
            stores: RefCell::default(),
            connected: Cell::new(true),
        })
    }

    /// Delivers the oldest message.
    pub fn deliver(&self) -> bool {
        let message = self.mail.borrow_mut().pop_front();
        if message.is_some() {
            self.hours.pass(DELIVERY);
        }
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
        if self.deliver() {
            return;
        }
        let next = self.hours.timers.borrow().keys().next().map(|(moment, _)| *moment);
        let next = next.expect("everybody waits and nothing is on its way");
        self.hours.pass(next.since(self.hours.now()));
    }
    fn now(&self) -> Moment {
        self.hours.now()
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
    fn now(&self) -> Moment {
        real_now()
    }
}
