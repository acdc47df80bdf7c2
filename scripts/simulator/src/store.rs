//! The coordinator store as a simulated process of its own: in memory, one server, a client a process.
//!
//! Every message takes a drawn time. A client can be away for a while; a client whose process dies
//! leaves transactions on their way, which still arrive. The store's own process may die, and its machine
//! lose power: its disk keeps what was synced, and what was not page by page as drawn; clients are cut
//! off, and connect again when it is back.

use cleave_catalog::storage::MemoryStorage;
use cleave_coordinator::{DirectServer, DirectStore, Hub, OpenError, RedbStore, Schedule, Time};
use cleave_runtime::random::Random;
use cleave_runtime_sim::{Process, World};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// The store.
pub struct SimStore {
    server: DirectServer,
    disk: MemoryStorage,
    process: Process,
    random: Rc<dyn Random>,
}

impl SimStore {
    /// An empty store.
    pub fn new(world: &World) -> SimStore {
        let disk = MemoryStorage::new();
        let store = open(&disk).expect("an empty store opens");
        let process = world.start_process("store");
        let timers = process.clone();
        let time = Time {
            clock: process.clock(),
            later: Rc::new(move |span, call| timers.call_later(span, call)),
        };
        let server = DirectServer::with_time(Hub::new(store), time);
        SimStore { server, disk, process, random: world.random() }
    }

    /// Its process dies; when its machine loses `power` too, pages that were not synced stay or not as
    /// `random` says.
    pub fn crash(&self, power: Option<&dyn Random>) {
        self.server.crash();
        match power {
            Some(random) => self.disk.lose_power(|_| random.below(2) == 0),
            None => self.disk.kill(),
        }
    }

    /// Its process starts again. The error says why its disk cannot be read.
    pub fn restart(&self) -> Result<(), String> {
        self.server.restart(open(&self.disk).map_err(|error| error.to_string())?);
        Ok(())
    }

    /// The server itself: for judges.
    pub fn server(&self) -> &DirectServer {
        &self.server
    }

    /// A connected client of a process.
    pub fn connect(&self, client: &Process) -> Rc<DirectStore> {
        let (store, random, client) =
            (self.process.clone(), Rc::clone(&self.random), client.clone());
        let schedule: Schedule = Rc::new(move |arrives| {
            let client = client.clone();
            let micros = match random.below(50) {
                0 => 1_000 + random.below(200_000),
                _ => 50 + random.below(3_000),
            };
            store.call_later(Duration::from_micros(micros), move || {
                arrives();
                client.wake();
            });
        });
        Rc::new(self.server.connect(schedule))
    }
}

fn open(disk: &MemoryStorage) -> Result<RedbStore, OpenError> {
    let disk = disk.clone();
    RedbStore::on_storage(Path::new("store"), move || disk.open())
}
