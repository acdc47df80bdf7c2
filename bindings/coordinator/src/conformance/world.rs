//! Where the suite runs: a core's loop, clients, and a server that can be restarted.

use crate::client::StoreClient;
use cleave_runtime::executor::{Doorbell, Executor, NoDoorbell, Priority};
use cleave_runtime::time::{Clock, Moment};
use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::time::{Duration, Instant};

/// A clock for a world in which no time passes.
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
    /// A connection of its own.
    fn store(&self) -> Rc<dyn crate::Store>;
    /// The server goes away, for every client.
    fn stop(&self);
    /// It comes back with what was durable.
    fn start(&self);
    /// Lets something happen that a client can see; panics when nothing can.
    fn wait(&self);
    /// What time it is for the server.
    fn now(&self) -> Moment;
}

/// A core with its clients.
pub struct World {
    /// Runs what its clients' tasks do.
    pub executor: Executor,
    /// The store.
    pub backend: Rc<dyn Backend>,
    clients: RefCell<Vec<StoreClient>>,
}

impl World {
    /// A core that has no clients yet.
    pub fn new(backend: Rc<dyn Backend>) -> World {
        let executor = Executor::new(Rc::new(StoppedClock), Arc::new(NoDoorbell));
        World { executor, backend, clients: RefCell::default() }
    }

    /// A new client of the store.
    pub fn client(&self) -> StoreClient {
        let client = StoreClient::new(self.backend.store());
        self.clients.borrow_mut().push(client.clone());
        client
    }

    /// Begins a task.
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

/// The moment of this process's clock.
pub fn real_now() -> Moment {
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    Moment(0) + ORIGIN.get_or_init(Instant::now).elapsed()
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

    /// Waits until it was rung since the last time.
    ///
    /// # Panics
    /// After a minute without a ring.
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
