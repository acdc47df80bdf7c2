//! The store as futures, for tasks of one core.
//!
//! While the store is away operations wait: an operation that was certainly not carried out is
//! submitted again once there is a connection, reads and what concerns leases always, transactions only when they never
//! left. A transaction whose fate is open gives [`StoreError::Unknown`]: read again. Watches are
//! resumed where they stopped, so a watch sees every change or a [`WatchEvent::Resync`], over any
//! number of disconnections.
//!
//! Whoever owns the core's turn calls [`StoreClient::turn`].

use crate::contract::{
    Answer, Changed, Lease, LeaseId, Listing, Operation, Outcome, Store, StoreError, StoreEvent,
    Token, Transaction, Versioned, WatchEvent,
};
use crate::encoding::{Decode, Encode, decode, encode};
use cleave_runtime::sync::{Queue, Signal};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

/// A handle to this core's connection; clones are the same connection.
#[derive(Clone)]
pub struct StoreClient(Rc<Inner>);

struct Inner {
    store: Rc<dyn Store>,
    next: Cell<Token>,
    connected: Cell<bool>,
    connection: Signal,
    pending: RefCell<BTreeMap<Token, Pending>>,
    watches: RefCell<BTreeMap<Token, WatchState>>,
    polled: RefCell<Vec<StoreEvent>>,
}

struct Pending {
    operation: Operation,
    /// Whether it was submitted and not yet answered.
    submitted: bool,
    result: Option<Result<Answer, StoreError>>,
    waker: Option<Waker>,
}

struct WatchState {
    prefix: String,
    /// First revision not yet reported; 0 before the watch has begun.
    from: u64,
    events: Queue<WatchEvent>,
}

impl StoreClient {
    /// Wraps a store; from then on all its operations must go through this.
    pub fn new(store: Rc<dyn Store>) -> StoreClient {
        StoreClient(Rc::new(Inner {
            store,
            next: Cell::new(1),
            connected: Cell::new(false),
            connection: Signal::new(),
            pending: RefCell::default(),
            watches: RefCell::default(),
            polled: RefCell::default(),
        }))
    }

    /// Takes what happened and wakes the tasks that wait for it. True when there was anything.
    pub fn turn(&self) -> bool {
        let inner = &self.0;
        let mut polled = inner.polled.take();
        inner.store.poll(&mut polled);
        let any = !polled.is_empty();
        for event in polled.drain(..) {
            match event {
                StoreEvent::Answer { token, result } => inner.answered(token, result),
                StoreEvent::Changed { watch, event } => inner.changed(watch, event),
                StoreEvent::Connected => inner.connected(),
                StoreEvent::Disconnected => {
                    inner.connected.set(false);
                    inner.connection.notify();
                }
            }
        }
        *inner.polled.borrow_mut() = polled;
        any
    }

    /// Whether operations reach the store at present, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.0.connected.get()
    }

    /// Waits until the store is, or is not, connected.
    pub async fn until_connected(&self, connected: bool) {
        let inner = &self.0;
        inner.connection.until(|| (inner.connected.get() == connected).then_some(())).await;
    }

    /// Reads one key. Waits while the store is away.
    pub async fn get(&self, key: &str) -> Result<Option<Versioned>, StoreError> {
        match self.perform(Operation::Get { key: key.to_owned() }).await? {
            Answer::Value(value) => Ok(value),
            other => unreachable!("a get was answered by {other:?}"),
        }
    }

    /// Reads all keys that begin with `prefix`, at one instant. Waits while the store is away.
    pub async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        match self.perform(Operation::List { prefix: prefix.to_owned() }).await? {
            Answer::List(listing) => Ok(listing),
            other => unreachable!("a list was answered by {other:?}"),
        }
    }

    /// Compares and changes. Waits while the store is away; [`StoreError::Unknown`] when it went
    /// away before the answer. Dropping the future does not take the transaction back.
    pub async fn transact(&self, transaction: Transaction) -> Result<Outcome, StoreError> {
        match self.perform(Operation::Transact(transaction)).await? {
            Answer::Transacted(outcome) => Ok(outcome),
            other => unreachable!("a transaction was answered by {other:?}"),
        }
    }

    /// Begins a lease of at least `duration`. Waits while the store is away. Renew it every third of the duration
    /// that it has, so that one late renewal does not end it.
    pub async fn grant(&self, duration: Duration) -> Result<Lease, StoreError> {
        match self.perform(Operation::Grant { duration }).await? {
            Answer::Granted(lease) => Ok(lease),
            other => unreachable!("a grant was answered by {other:?}"),
        }
    }

    /// Gives a lease its full duration again; false when it is not there any more, nor its keys. Waits while the
    /// store is away, and the lease may have run out when it is back.
    pub async fn renew(&self, lease: LeaseId) -> Result<bool, StoreError> {
        match self.perform(Operation::Renew { lease }).await? {
            Answer::Renewed(there) => Ok(there),
            other => unreachable!("a renewal was answered by {other:?}"),
        }
    }

    /// Ends a lease, and deletes its keys. Waits while the store is away.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        match self.perform(Operation::Revoke { lease }).await? {
            Answer::Revoked => Ok(()),
            other => unreachable!("a revocation was answered by {other:?}"),
        }
    }

    /// Reads a record and its revision.
    pub async fn get_record<T: Decode<()>>(
        &self,
        key: &str,
    ) -> Result<Option<(T, u64)>, StoreError> {
        let Some(Versioned { value, revision }) = self.get(key).await? else {
            return Ok(None);
        };
        match decode(&value) {
            Ok(record) => Ok(Some((record, revision))),
            Err(error) => {
                Err(StoreError::Malformed { key: key.to_owned(), reason: error.to_string() })
            }
        }
    }

    /// Puts a record if its key is still at `revision` (0: absent).
    pub async fn put_record<T: Encode>(
        &self,
        key: &str,
        revision: u64,
        record: &T,
    ) -> Result<Outcome, StoreError> {
        self.transact(Transaction::new().require(key, revision).put(key, encode(record))).await
    }

    /// Reports changes to keys that begin with `prefix`, those of revision `from` first. To miss
    /// nothing: list, then watch from the listing's `revision + 1`. With `from` 0 the watch first
    /// reports a [`WatchEvent::Resync`] when it has begun, and then what changes from there on.
    ///
    /// # Panics
    /// Later, when the store refuses the watch: a prefix longer than a key, or more watches than
    /// [`WATCHES_MAX`](crate::hub::WATCHES_MAX) of one client.
    pub fn watch(&self, prefix: &str, from: u64) -> Watch {
        let token = self.0.token();
        let events = Queue::default();
        let state = WatchState { prefix: prefix.to_owned(), from, events: events.clone() };
        if self.0.connected.get() {
            self.0.begin_watch(token, &state);
        }
        self.0.watches.borrow_mut().insert(token, state);
        Watch { client: self.clone(), token, events }
    }

    async fn perform(&self, operation: Operation) -> Result<Answer, StoreError> {
        let inner = &self.0;
        let token = inner.token();
        let submitted = inner.connected.get();
        let pending =
            Pending { operation: operation.clone(), submitted, result: None, waker: None };
        inner.pending.borrow_mut().insert(token, pending);
        let _forget = Forget { inner, token };
        if submitted {
            inner.store.submit(token, operation);
        }
        poll_fn(|context| {
            let mut all = inner.pending.borrow_mut();
            let pending = all.get_mut(&token).expect("an operation waits until it is answered");
            match pending.result.take() {
                Some(result) => Poll::Ready(result),
                None => {
                    pending.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }
}

/// Forgets an operation when its future ends or is dropped; a late answer is then ignored.
struct Forget<'a> {
    inner: &'a Inner,
    token: Token,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.inner.pending.borrow_mut().remove(&self.token);
    }
}

impl Inner {
    fn token(&self) -> Token {
        self.next.replace(self.next.get() + 1)
    }

    fn answered(&self, token: Token, result: Result<Answer, StoreError>) {
        let mut all = self.pending.borrow_mut();
        let Some(pending) = all.get_mut(&token) else {
            let refused = result.as_ref().err().filter(|error| **error != StoreError::Unavailable);
            if let (Some(error), true) = (refused, self.watches.borrow().contains_key(&token)) {
                panic!("the coordinator store refused a watch: {error}");
            }
            return;
        };
        if result == Err(StoreError::Unavailable) {
            pending.submitted = false;
            return;
        }
        pending.result = Some(result);
        if let Some(waker) = pending.waker.take() {
            waker.wake();
        }
    }

    fn changed(&self, watch: Token, event: WatchEvent) {
        let mut watches = self.watches.borrow_mut();
        let Some(state) = watches.get_mut(&watch) else { return };
        let (WatchEvent::Changed(Changed { revision, .. }) | WatchEvent::Resync { revision }) =
            &event;
        state.from = revision + 1;
        state.events.push(event);
    }

    fn connected(&self) {
        self.connected.set(true);
        for (token, state) in self.watches.borrow().iter() {
            self.begin_watch(*token, state);
        }
        for (token, pending) in self.pending.borrow_mut().iter_mut() {
            if !pending.submitted && pending.result.is_none() {
                pending.submitted = true;
                self.store.submit(*token, pending.operation.clone());
            }
        }
        self.connection.notify();
    }

    fn begin_watch(&self, token: Token, state: &WatchState) {
        let (prefix, from) = (state.prefix.clone(), state.from);
        self.store.submit(token, Operation::Watch { prefix, from });
    }
}

/// A watch; ends when dropped. One task at a time may wait in [`next`](Watch::next).
pub struct Watch {
    client: StoreClient,
    token: Token,
    events: Queue<WatchEvent>,
}

impl Watch {
    /// The next event, waiting for one.
    pub async fn next(&self) -> WatchEvent {
        self.events.pop().await
    }

    /// The next event, if it is there.
    pub fn try_next(&self) -> Option<WatchEvent> {
        self.events.try_pop()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let inner = &self.client.0;
        inner.watches.borrow_mut().remove(&self.token);
        if inner.connected.get() {
            inner.store.submit(inner.token(), Operation::Unwatch { watch: self.token });
        }
    }
}
