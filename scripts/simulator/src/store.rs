//! The coordinator store as a simulated process of its own: in memory, one server, a client a process.
//!
//! Every message takes a drawn time. A client can be away for a while; a client whose process dies
//! leaves transactions on their way, which still arrive. The store itself loses nothing: its own
//! crashes are tested where it lives.

use cleave_coordinator::{DirectServer, DirectStore, Hub, RedbStore, Schedule};
use cleave_runtime::random::Random;
use cleave_runtime_sim::{Process, World};
use std::rc::Rc;
use std::time::Duration;

/// The store.
pub struct SimStore {
    server: DirectServer,
    process: Process,
    random: Rc<dyn Random>,
}

impl SimStore {
    /// An empty store.
    pub fn new(world: &World) -> SimStore {
        let server = DirectServer::new(Hub::new(RedbStore::in_memory()));
        SimStore { server, process: world.start_process("store"), random: world.random() }
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
