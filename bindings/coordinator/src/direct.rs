//! The store without a socket: for the simulator and for tests, on one thread.
//!
//! Every message, either way, is handed to the caller's [`Schedule`] as a function to call when
//! the message arrives, so that delays come from virtual time and one seed. Each direction stays
//! in order, whatever the order of the calls, as on a socket. A client that is disconnected loses
//! the replies on their way; transactions on their way still arrive, later, as they may with a
//! real server: the case that [`StoreError::Unknown`] warns of.

use crate::contract::{Answer, Operation, Store, StoreError, StoreEvent, Token};
use crate::hub::{ClientId, Hub, Reply};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::{Rc, Weak};

/// Called with what is to be done when a message arrives; may do it at once.
pub type Schedule = Rc<dyn Fn(Box<dyn FnOnce()>)>;

/// The store's side; clones are the same store.
#[derive(Clone)]
pub struct DirectServer(Rc<ServerInner>);

struct ServerInner {
    hub: RefCell<Hub>,
    clients: RefCell<BTreeMap<ClientId, Weak<Link>>>,
}

impl DirectServer {
    /// Serves this hub.
    pub fn new(hub: Hub) -> DirectServer {
        DirectServer(Rc::new(ServerInner { hub: RefCell::new(hub), clients: RefCell::default() }))
    }

    /// A connected client. Dropping it disconnects.
    pub fn connect(&self, schedule: Schedule) -> DirectStore {
        let link = Link { server: self.clone(), schedule, state: RefCell::default() };
        let store = DirectStore(Rc::new(link));
        store.set_connected(true);
        store
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
        self.0.hub.borrow_mut().execute(client, token, operation, &mut replies);
        replies
    }

    fn deliver(&self, client: ClientId, reply: Reply) {
        let link = self.0.clients.borrow().get(&client).and_then(Weak::upgrade);
        if let Some(link) = link {
            link.state.borrow_mut().down.push_back((client, reply));
            let arrives = Rc::clone(&link);
            (link.schedule)(Box::new(move || arrives.arrived_down()));
        }
    }
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
    /// On their way to the store.
    up: VecDeque<(ClientId, Token, Operation)>,
    /// On their way back.
    down: VecDeque<(ClientId, Reply)>,
    /// Sent and not answered; whether it is a transaction.
    in_flight: BTreeMap<Token, bool>,
    ready: Vec<StoreEvent>,
}

impl DirectStore {
    /// Cuts the connection or makes a new one.
    pub fn set_connected(&self, connected: bool) {
        let Link { server, state, .. } = &*self.0;
        let mut state = state.borrow_mut();
        if connected == state.client.is_some() {
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
            server.0.clients.borrow_mut().insert(client, Rc::downgrade(&self.0));
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
        let transaction = matches!(operation, Operation::Transact(_));
        let before = state.in_flight.insert(token, transaction);
        assert!(before.is_none(), "token {token} is in flight already");
        state.up.push_back((client, token, operation));
        drop(state);
        let link = Rc::clone(&self.0);
        (self.0.schedule)(Box::new(move || link.arrived_up()));
    }

    fn poll(&self, events: &mut Vec<StoreEvent>) {
        events.append(&mut self.0.state.borrow_mut().ready);
    }
}

impl Link {
    fn arrived_up(&self) {
        let (first, present) = {
            let mut state = self.state.borrow_mut();
            (state.up.pop_front(), state.client)
        };
        let (client, token, operation) = first.expect("as many arrivals as messages");
        if Some(client) != present && !matches!(operation, Operation::Transact(_)) {
            return;
        }
        for (to, reply) in self.server.run(client, token, operation) {
            self.server.deliver(to, reply);
        }
    }

    fn arrived_down(&self) {
        let mut state = self.state.borrow_mut();
        let (client, reply) = state.down.pop_front().expect("as many arrivals as messages");
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
