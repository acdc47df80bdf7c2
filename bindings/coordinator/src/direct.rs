//! The store without a socket: for the simulator and for tests, on one thread.
//!
//! Every message, either way, is handed to the caller's [`Schedule`] as a function to call when
//! the message arrives, so that delays come from virtual time and one seed. Reads and transactions overtake each other,
//! either way, as the calls come, for nothing promises their order; watches, leases and what is told to watches stay
//! in order, with the answers to transactions among it. A client that is disconnected loses
//! the replies on their way; transactions on their way still arrive, later, as they may with a
//! real server: the case that [`StoreError::Unknown`] warns of. A server that crashes disconnects everybody,
//! and what is on its way to it is lost.
//!
//! Leases run out by the caller's [`Time`]; without one no time passes, and none does.

use crate::contract::{Answer, Operation, Store, StoreError, StoreEvent, Token};
use crate::hub::{ClientId, Hub, Reply};
use crate::redb_store::RedbStore;
use cleave_runtime::time::{Clock, Moment};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};
use std::time::Duration;

/// The server's clock and timers.
#[derive(Clone)]
pub struct Time {
    /// What it is.
    pub clock: Rc<dyn Clock>,
    /// Does something after a while.
    pub later: Later,
}

/// Called with a time, and with what is to be done when it is over.
pub type Later = Rc<dyn Fn(Duration, Box<dyn FnOnce()>)>;

/// Called with what is to be done when a message arrives; may do it at once.
pub type Schedule = Rc<dyn Fn(Box<dyn FnOnce()>)>;

/// The store's side; clones are the same store.
#[derive(Clone)]
pub struct DirectServer(Rc<ServerInner>);

struct ServerInner {
    hub: RefCell<Hub>,
    clients: RefCell<BTreeMap<ClientId, Weak<Link>>>,
    /// Every client that there is, connected or not.
    links: RefCell<Vec<Weak<Link>>>,
    /// Number of crashes; messages are for the server that ran when they were sent.
    crashes: Cell<u64>,
    down: Cell<bool>,
    time: Option<Time>,
    /// When the clock is looked at next, of those looks that are planned.
    next_look: Cell<Option<Moment>>,
}

impl DirectServer {
    /// Serves this hub, for which no time passes.
    pub fn new(hub: Hub) -> DirectServer {
        DirectServer::with(hub, None)
    }

    /// Serves this hub.
    pub fn with_time(hub: Hub, time: Time) -> DirectServer {
        let server = DirectServer::with(hub, Some(time));
        server.plan_look();
        server
    }

    fn with(hub: Hub, time: Option<Time>) -> DirectServer {
        DirectServer(Rc::new(ServerInner {
            hub: RefCell::new(hub),
            clients: RefCell::default(),
            links: RefCell::default(),
            crashes: Cell::new(0),
            down: Cell::new(false),
            time,
            next_look: Cell::new(None),
        }))
    }

    fn now(&self) -> Moment {
        self.0.time.as_ref().map_or(Moment(0), |time| time.clock.now())
    }

    /// Sees to it that the hub learns the time when it has to.
    fn plan_look(&self) {
        let (Some(time), false) = (&self.0.time, self.0.down.get()) else { return };
        let Some(wanted) = self.0.hub.borrow().next_step() else { return };
        let now = time.clock.now();
        let wanted = wanted.max(now);
        if self.0.next_look.get().is_some_and(|planned| planned <= wanted) {
            return;
        }
        self.0.next_look.set(Some(wanted));
        let server = Rc::downgrade(&self.0);
        (time.later)(
            wanted.since(now),
            Box::new(move || {
                if let Some(server) = server.upgrade() {
                    DirectServer(server).look(wanted);
                }
            }),
        );
    }

    fn look(&self, planned: Moment) {
        // Another look was planned before this one, and plans what comes after it.
        if self.0.next_look.get() != Some(planned) {
            return;
        }
        self.0.next_look.set(None);
        if self.0.down.get() {
            return;
        }
        let mut replies = Vec::new();
        self.0.hub.borrow_mut().step(self.now(), &mut replies);
        replies.into_iter().for_each(|(to, reply)| self.deliver(to, reply));
        self.plan_look();
    }

    /// The server's process dies: every client is disconnected, and nobody can connect.
    pub fn crash(&self) {
        self.0.down.set(true);
        self.0.crashes.set(self.0.crashes.get() + 1);
        for link in self.links() {
            link.set_connected(false);
        }
    }

    /// The server's process starts again with this store, and clients connect to it.
    pub fn restart(&self, store: RedbStore) {
        self.0.hub.borrow_mut().restart(store);
        self.0.down.set(false);
        self.plan_look();
        for link in self.links() {
            link.set_connected(true);
        }
    }

    fn links(&self) -> Vec<Rc<Link>> {
        let mut links = self.0.links.borrow_mut();
        links.retain(|link| link.strong_count() > 0);
        links.iter().filter_map(Weak::upgrade).collect()
    }

    /// A connected client. Dropping it disconnects.
    pub fn connect(&self, schedule: Schedule) -> DirectStore {
        let link = Rc::new(Link { server: self.clone(), schedule, state: RefCell::default() });
        self.0.links.borrow_mut().push(Rc::downgrade(&link));
        link.set_connected(true);
        DirectStore(link)
    }

    /// Carries out an operation at once, as the store's own process may. Not for watches.
    pub fn execute(&self, operation: Operation) -> Result<Answer, StoreError> {
        if matches!(operation, Operation::Watch { .. } | Operation::Unwatch { .. }) {
            return Err(StoreError::Invalid("a watch without a client".to_owned()));
        }
        let client = self.0.hub.borrow_mut().join();
        let mut own = None;
        for (to, reply) in self.run(client, 0, operation) {
            match reply {
                Reply::Answer { result, .. } if to == client => own = Some(result),
                reply => self.deliver(to, reply),
            }
        }
        own.expect("the hub answers every operation")
    }

    fn run(&self, client: ClientId, token: Token, operation: Operation) -> Vec<(ClientId, Reply)> {
        let mut replies = Vec::new();
        let now = self.now();
        self.0.hub.borrow_mut().execute(now, client, token, operation, &mut replies);
        self.plan_look();
        replies
    }

    fn deliver(&self, client: ClientId, reply: Reply) {
        let link = self.0.clients.borrow().get(&client).and_then(Weak::upgrade);
        if let Some(link) = link {
            let arrives = Rc::clone(&link);
            let read = |result: &Result<Answer, StoreError>| {
                matches!(result, Ok(Answer::Value(_) | Answer::List(_)))
            };
            if matches!(&reply, Reply::Answer { result, .. } if read(result)) {
                (link.schedule)(Box::new(move || arrives.take_down(client, reply)));
            } else {
                link.state.borrow_mut().down.push_back((client, reply));
                (link.schedule)(Box::new(move || arrives.arrived_down()));
            }
        }
    }
}

/// A message on its way to the store.
struct Sent {
    client: ClientId,
    token: Token,
    operation: Operation,
    /// Crashes of the server until then.
    crashes: u64,
}

/// A client's side.
pub struct DirectStore(Rc<Link>);

struct Link {
    server: DirectServer,
    schedule: Schedule,
    state: RefCell<LinkState>,
}

#[derive(Default)]
struct LinkState {
    /// The present connection.
    client: Option<ClientId>,
    /// On their way to the store, of those that stay in order.
    up: VecDeque<Sent>,
    /// On their way back, of those that stay in order.
    down: VecDeque<(ClientId, Reply)>,
    /// Sent and not answered; whether it is a transaction.
    in_flight: BTreeMap<Token, bool>,
    ready: Vec<StoreEvent>,
}

impl DirectStore {
    /// Cuts the connection or makes a new one.
    pub fn set_connected(&self, connected: bool) {
        self.0.set_connected(connected);
    }
}

impl Link {
    fn set_connected(self: &Rc<Link>, connected: bool) {
        let Link { server, state, .. } = &**self;
        let mut state = state.borrow_mut();
        if connected == state.client.is_some() || (connected && server.0.down.get()) {
            return;
        }
        if let Some(client) = state.client.take() {
            server.0.hub.borrow_mut().leave(client);
            server.0.clients.borrow_mut().remove(&client);
            state.ready.push(StoreEvent::Disconnected);
            for (token, transaction) in std::mem::take(&mut state.in_flight) {
                let error = if transaction { StoreError::Unknown } else { StoreError::Unavailable };
                state.ready.push(StoreEvent::Answer { token, result: Err(error) });
            }
        } else {
            let client = server.0.hub.borrow_mut().join();
            server.0.clients.borrow_mut().insert(client, Rc::downgrade(self));
            state.client = Some(client);
            state.ready.push(StoreEvent::Connected);
        }
    }
}

impl Drop for DirectStore {
    fn drop(&mut self) {
        self.set_connected(false);
    }
}

impl Store for DirectStore {
    fn submit(&self, token: Token, operation: Operation) {
        let mut state = self.0.state.borrow_mut();
        let Some(client) = state.client else {
            let result = Err(StoreError::Unavailable);
            state.ready.push(StoreEvent::Answer { token, result });
            return;
        };
        let transaction = operation.is_transaction();
        let before = state.in_flight.insert(token, transaction);
        assert!(before.is_none(), "token {token} is in flight already");
        let crashes = self.0.server.0.crashes.get();
        let sent = Sent { client, token, operation, crashes };
        let link = Rc::clone(&self.0);
        if transaction || sent.operation.is_read() {
            drop(state);
            (self.0.schedule)(Box::new(move || link.take_up(sent)));
        } else {
            state.up.push_back(sent);
            drop(state);
            (self.0.schedule)(Box::new(move || link.arrived_up()));
        }
    }

    fn poll(&self, events: &mut Vec<StoreEvent>) {
        events.append(&mut self.0.state.borrow_mut().ready);
    }
}

impl Link {
    fn arrived_up(&self) {
        let first = self.state.borrow_mut().up.pop_front();
        self.take_up(first.expect("as many arrivals as messages"));
    }

    fn take_up(&self, sent: Sent) {
        let Sent { client, token, operation, crashes } = sent;
        let present = self.state.borrow().client;
        if crashes != self.server.0.crashes.get() {
            return;
        }
        if Some(client) != present && !operation.is_transaction() {
            return;
        }
        for (to, reply) in self.server.run(client, token, operation) {
            self.server.deliver(to, reply);
        }
    }

    fn arrived_down(&self) {
        let first = self.state.borrow_mut().down.pop_front();
        let (client, reply) = first.expect("as many arrivals as messages");
        self.take_down(client, reply);
    }

    fn take_down(&self, client: ClientId, reply: Reply) {
        let mut state = self.state.borrow_mut();
        if Some(client) != state.client {
            return;
        }
        let event = match reply {
            Reply::Answer { token, result } => {
                state.in_flight.remove(&token);
                StoreEvent::Answer { token, result }
            }
            Reply::Changed { watch, event } => StoreEvent::Changed { watch, event },
        };
        state.ready.push(event);
    }
}
