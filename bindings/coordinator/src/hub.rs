//! Many clients of one store: operations in, answers and watch events out.
//!
//! No sockets, no threads, no clock: the server and the simulator's direct store drive it. A
//! client's answers and events are given out in the order in which it must see them: the events
//! of a transaction come before its answer, to its own client too. A client that leaves takes its watches with it;
//! resuming is the client's business, by revision. Leases outlive the clients that asked for them.

use crate::contract::{Answer, Operation, StoreError, Token, WatchEvent, validate};
use crate::encoding::{Decode, Encode};
use crate::redb_store::RedbStore;
use cleave_runtime::time::Moment;
use std::collections::BTreeMap;

/// Names a client of a hub; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ClientId(u64);

/// What a client is told.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Reply {
    /// The answer to its operation.
    Answer {
        /// From the operation.
        token: Token,
        /// [`StoreError::Unknown`] when the store failed during a transaction.
        result: Result<Answer, StoreError>,
    },
    /// One of its watches reports.
    Changed {
        /// The token of the watch.
        watch: Token,
        /// What.
        event: WatchEvent,
    },
}

/// Most watches of one client.
pub const WATCHES_MAX: usize = 1024;

/// A store and those who use it.
pub struct Hub {
    store: RedbStore,
    next_client: u64,
    watches: BTreeMap<(ClientId, Token), HubWatch>,
    /// Every watch has been told of changes up to here.
    told: u64,
}

struct HubWatch {
    prefix: String,
    /// First revision to report next.
    from: u64,
}

impl Hub {
    /// Takes the store over.
    pub fn new(store: RedbStore) -> Hub {
        let told = store.revision();
        Hub { store, next_client: 1, watches: BTreeMap::new(), told }
    }

    /// Serves another store from now on, as the next process would: nobody is joined, watches are gone, and
    /// clients are numbered on.
    pub fn restart(&mut self, store: RedbStore) {
        *self = Hub { next_client: self.next_client, ..Hub::new(store) };
    }

    /// The store itself.
    pub fn store(&self) -> &RedbStore {
        &self.store
    }

    /// A new client.
    pub fn join(&mut self) -> ClientId {
        let client = ClientId(self.next_client);
        self.next_client += 1;
        client
    }

    /// Ends a client's watches.
    pub fn leave(&mut self, client: ClientId) {
        let mut ended = self.watches.split_off(&(client, Token::MIN));
        let mut others = ended.split_off(&(ClientId(client.0 + 1), Token::MIN));
        self.watches.append(&mut others);
    }

    /// Lets leases run out; appends what that leads to, for any client, to `replies`.
    pub fn step(&mut self, now: Moment, replies: &mut Vec<(ClientId, Reply)>) {
        self.store.step(now);
        self.tell_all(replies);
    }

    /// When the next [`step`](Hub::step) is due; `None` while there is no lease.
    pub fn next_step(&self) -> Option<Moment> {
        self.store.next_step()
    }

    fn tell_all(&mut self, replies: &mut Vec<(ClientId, Reply)>) {
        if self.store.revision() != self.told {
            self.told = self.store.revision();
            for (&(client, token), watch) in &mut self.watches {
                tell(&self.store, client, token, watch, replies);
            }
        }
    }

    /// Carries out an operation; appends what it leads to, for any client, to `replies`.
    pub fn execute(
        &mut self,
        now: Moment,
        client: ClientId,
        token: Token,
        operation: Operation,
        replies: &mut Vec<(ClientId, Reply)>,
    ) {
        // What has run out is gone for this operation, and what it grants or renews begins now.
        self.step(now, replies);
        let mut begun = false;
        let result = match operation {
            Operation::Watch { prefix, from } => {
                self.watch(client, token, prefix, from).inspect(|_| begun = true)
            }
            Operation::Unwatch { watch } => {
                self.watches.remove(&(client, watch));
                Ok(Answer::Unwatched)
            }
            other => self.store.execute(&other),
        };
        self.step(now, replies);
        replies.push((client, Reply::Answer { token, result }));
        if begun && let Some(watch) = self.watches.get_mut(&(client, token)) {
            tell(&self.store, client, token, watch, replies);
        }
    }

    fn watch(
        &mut self,
        client: ClientId,
        token: Token,
        prefix: String,
        from: u64,
    ) -> Result<Answer, StoreError> {
        let operation = Operation::Watch { prefix, from };
        validate(&operation)?;
        let Operation::Watch { prefix, .. } = operation else { unreachable!("made above") };
        let range = (client, Token::MIN)..=(client, Token::MAX);
        if self.watches.range(range).count() >= WATCHES_MAX {
            return Err(StoreError::Invalid(format!("more than {WATCHES_MAX} watches")));
        }
        if self.watches.contains_key(&(client, token)) {
            return Err(StoreError::Invalid(format!("watch {token} exists already")));
        }
        self.watches.insert((client, token), HubWatch { prefix, from });
        Ok(Answer::Watching)
    }
}

fn tell(
    store: &RedbStore,
    client: ClientId,
    token: Token,
    watch: &mut HubWatch,
    replies: &mut Vec<(ClientId, Reply)>,
) {
    let mut push = |event| replies.push((client, Reply::Changed { watch: token, event }));
    let revision = store.revision();
    match store.changes(&watch.prefix, watch.from) {
        Some(changes) => changes.into_iter().for_each(|one| push(WatchEvent::Changed(one))),
        None => push(WatchEvent::Resync { revision }),
    }
    watch.from = revision + 1;
}
