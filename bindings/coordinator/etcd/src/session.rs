//! One connection to etcd: operations in flight, watches, the order of what is reported.
//!
//! All watches share one stream, which is open from the beginning: its end is how a dead connection is noticed
//! while nothing else is asked. The contract tells a writer's own watch of a transaction before its answer, so an
//! answer is held back until the watches that its changes match have reported it, also those that are beginning.
//!
//! Whatever etcd answers that is not about the operation itself (no leader, time over, a broken connection) ends
//! the session: reads are [`StoreError::Unavailable`] then, transactions [`StoreError::Unknown`].

use crate::config::PATIENCE;
use crate::store::Report;
use crate::translate::{
    changes, etcd_revision, lease_seconds, listing, outcome, revision_of, transaction, versioned,
};
use cleave_coordinator::contract::{
    Answer, LIST_BYTES_MAX, Lease, LeaseId, Operation, Outcome, StoreError, StoreEvent, Token,
    WatchEvent, validate,
};
use cleave_coordinator::hub::WATCHES_MAX;
use etcd_client::{
    Client, Error, GetOptions, KvClient, LeaseClient, WatchOptions, WatchResponse, WatchStream,
};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::JoinSet;

/// Longest message that is taken: a list, with what etcd says beside it.
const MESSAGE_BYTES_MAX: usize = 2 * LIST_BYTES_MAX;
/// gRPC's numbers of what concerns the operation, not the connection.
const INVALID_ARGUMENT: i32 = 3;
/// Only leases are named that may not be there.
const NOT_FOUND: i32 = 5;
const PERMISSION_DENIED: i32 = 7;
const RESOURCE_EXHAUSTED: i32 = 8;
const FAILED_PRECONDITION: i32 = 9;

/// Why a session ended.
pub enum Lost {
    /// The store was dropped.
    Dropped,
    /// The connection.
    Connection(String),
}

/// What an operation led to.
enum Done {
    Answer(Result<Answer, StoreError>),
    /// A transaction's answer, and what it changed.
    Committed(Outcome, Vec<String>),
    /// The store's revision, asked for by a watch that is to begin.
    Revision(i64),
}

struct Watch {
    prefix: String,
    /// Names it to etcd.
    number: i64,
    /// First revision not yet reported.
    next: u64,
}

/// An answer that waits for watches.
struct Held {
    token: Token,
    outcome: Outcome,
    revision: u64,
    watches: BTreeSet<Token>,
}

/// A connection that was seen to work.
pub struct Session {
    kv: KvClient,
    leases: LeaseClient,
    prefix: String,
    stream: WatchStream,
    running: JoinSet<(Token, Result<Done, Error>)>,
    /// Not answered yet; whether it is a transaction.
    in_flight: BTreeMap<Token, bool>,
    /// Watches that are to begin: prefix, and first revision.
    beginning: BTreeMap<Token, (String, u64)>,
    watches: BTreeMap<Token, Watch>,
    next_number: i64,
    held: Vec<Held>,
}

impl Session {
    /// Asks whether the connection works, and opens the stream of watches.
    pub async fn open(client: Client, prefix: &str) -> Result<Session, String> {
        let told = |error: Error| error.to_string();
        let mut kv = client.kv_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        kv.get(prefix, None).await.map_err(told)?;
        let mut watching = client.watch_client().max_decoding_message_size(MESSAGE_BYTES_MAX);
        // A stream begins with a watch: of a key that nobody writes.
        let nothing = WatchOptions::new().with_watch_id(1);
        let stream = watching.watch(prefix, Some(nothing)).await.map_err(told)?;
        Ok(Session {
            kv,
            leases: client.lease_client(),
            prefix: prefix.to_owned(),
            stream,
            running: JoinSet::new(),
            in_flight: BTreeMap::new(),
            beginning: BTreeMap::new(),
            watches: BTreeMap::new(),
            next_number: 2,
            held: Vec::new(),
        })
    }

    /// Carries operations out until the connection or the store is gone.
    pub async fn converse(
        &mut self,
        operations: &mut UnboundedReceiver<(Token, Operation)>,
        report: &Report,
    ) -> Lost {
        loop {
            let step = tokio::select! {
                asked = operations.recv() => match asked {
                    Some((token, operation)) => self.begin(token, operation, report).await,
                    None => return Lost::Dropped,
                },
                Some(done) = self.running.join_next() => {
                    let (token, result) = done.expect("operations do not panic, and are not aborted here");
                    self.done(token, result, report).await
                }
                message = self.stream.message() => match message {
                    Ok(Some(response)) => self.watched(&response, report).await,
                    Ok(None) => Err("it closed the stream of watches".to_owned()),
                    Err(error) => Err(error.to_string()),
                },
            };
            if let Err(reason) = step {
                return Lost::Connection(reason);
            }
        }
    }

    /// Says that the connection is gone, and what that means for what was asked.
    pub fn end(self, report: &Report) {
        report.tell(StoreEvent::Disconnected);
        for (token, is_transaction) in self.in_flight {
            let error = if is_transaction { StoreError::Unknown } else { StoreError::Unavailable };
            report.answer(token, Err(error));
        }
    }

    async fn begin(
        &mut self,
        token: Token,
        operation: Operation,
        report: &Report,
    ) -> Result<(), String> {
        if let Err(error) = validate(&operation) {
            report.answer(token, Err(error));
            return Ok(());
        }
        let is_transaction = operation.is_transaction();
        match operation {
            Operation::Watch { .. } if self.watches_of(token).is_err() => {
                let refused = self.watches_of(token).expect_err("looked at just now");
                report.answer(token, Err(StoreError::Invalid(refused)));
                return Ok(());
            }
            Operation::Unwatch { watch } => {
                self.beginning.remove(&watch);
                self.release(watch, u64::MAX, report);
                if let Some(ended) = self.watches.remove(&watch) {
                    self.cancel(ended.number).await?;
                }
                report.answer(token, Ok(Answer::Unwatched));
                return Ok(());
            }
            Operation::Watch { prefix, from } => {
                self.beginning.insert(token, (prefix, from));
                let (mut kv, key) = (self.kv.clone(), self.prefix.clone());
                self.run(token, async move {
                    let found = kv.get(key, None).await?;
                    Ok(Done::Revision(found.header().map_or(0, |header| header.revision())))
                });
            }
            Operation::Get { key } => {
                let (mut kv, key) = (self.kv.clone(), format!("{}{key}", self.prefix));
                self.run(token, async move {
                    let found = kv.get(key, None).await?;
                    let value = found.kvs().first().map(versioned);
                    Ok(Done::Answer(Ok(Answer::Value(value))))
                });
            }
            Operation::List { prefix } => {
                let (mut kv, own) = (self.kv.clone(), self.prefix.clone());
                self.run(token, async move {
                    let all = GetOptions::new().with_prefix();
                    let found = kv.get(format!("{own}{prefix}"), Some(all)).await?;
                    let revision = found.header().map_or(0, |header| header.revision());
                    let listing = listing(&own, revision, found.kvs());
                    Ok(Done::Answer(listing.map(Answer::List)))
                });
            }
            Operation::Transact(asked) => {
                let (mut kv, own) = (self.kv.clone(), self.prefix.clone());
                self.run(token, async move {
                    let response = match kv.txn(transaction(&own, &asked)).await {
                        Err(error) if is_not_found(&error) => {
                            return Ok(Done::Answer(Err(StoreError::NoLease)));
                        }
                        response => response?,
                    };
                    let (outcome, changed) = outcome(&asked, &response);
                    Ok(Done::Committed(outcome, changed))
                });
            }
            Operation::Grant { duration } => {
                let mut leases = self.leases.clone();
                self.run(token, async move {
                    let granted = leases.grant(lease_seconds(duration), None).await?;
                    let id = LeaseId(granted.id().cast_unsigned());
                    let seconds = u64::try_from(granted.ttl()).unwrap_or(0);
                    let lease = Lease { id, duration: Duration::from_secs(seconds) };
                    Ok(Done::Answer(Ok(Answer::Granted(lease))))
                });
            }
            Operation::Renew { lease } => {
                let mut leases = self.leases.clone();
                self.run(token, async move {
                    // Its first message renews, and says whether the lease is there.
                    let there = match leases.keep_alive(lease.0.cast_signed()).await {
                        Ok(_) => true,
                        Err(Error::LeaseKeepAliveError(_)) => false,
                        Err(error) if is_not_found(&error) => false,
                        Err(error) => return Err(error),
                    };
                    Ok(Done::Answer(Ok(Answer::Renewed(there))))
                });
            }
            Operation::Revoke { lease } => {
                let mut leases = self.leases.clone();
                self.run(token, async move {
                    match leases.revoke(lease.0.cast_signed()).await {
                        Err(error) if !is_not_found(&error) => Err(error),
                        _ => Ok(Done::Answer(Ok(Answer::Revoked))),
                    }
                });
            }
        }
        let before = self.in_flight.insert(token, is_transaction);
        assert!(before.is_none(), "token {token} is in flight already");
        Ok(())
    }

    /// Why there can be no watch of that name.
    fn watches_of(&self, token: Token) -> Result<(), String> {
        if self.watches.len() + self.beginning.len() >= WATCHES_MAX {
            return Err(format!("more than {WATCHES_MAX} watches"));
        }
        if self.watches.contains_key(&token) || self.beginning.contains_key(&token) {
            return Err(format!("watch {token} exists already"));
        }
        Ok(())
    }

    fn run(
        &mut self,
        token: Token,
        operation: impl Future<Output = Result<Done, Error>> + Send + 'static,
    ) {
        self.running.spawn(async move {
            match tokio::time::timeout(PATIENCE, operation).await {
                Ok(result) => (token, result),
                Err(_) => (token, Err(Error::Internal("it does not answer".to_owned()))),
            }
        });
    }

    async fn done(
        &mut self,
        token: Token,
        result: Result<Done, Error>,
        report: &Report,
    ) -> Result<(), String> {
        let answer = match result {
            Ok(Done::Answer(answer)) => answer,
            Ok(Done::Committed(outcome, changed)) => {
                if let Outcome::Committed(revision) = outcome {
                    let matches = |prefix: &str| changed.iter().any(|key| key.starts_with(prefix));
                    let begun = self
                        .watches
                        .iter()
                        .filter(|(_, watch)| watch.next <= revision && matches(&watch.prefix));
                    // Where one that is beginning will begin is not known: it says so when it does.
                    let beginning =
                        self.beginning.iter().filter(|(_, (prefix, _))| matches(prefix));
                    let watches: BTreeSet<Token> = begun
                        .map(|(token, _)| *token)
                        .chain(beginning.map(|(token, _)| *token))
                        .collect();
                    if !watches.is_empty() {
                        self.held.push(Held { token, outcome, revision, watches });
                        return Ok(());
                    }
                }
                Ok(Answer::Transacted(outcome))
            }
            Ok(Done::Revision(revision)) => {
                self.in_flight.remove(&token);
                return self.begin_watch(token, revision_of(revision), report).await;
            }
            Err(Error::GRpcStatus(status)) if concerns_operation(status.code() as i32) => {
                self.beginning.remove(&token);
                self.release(token, u64::MAX, report);
                Err(StoreError::Failed(format!("etcd says: {}", status.message())))
            }
            Err(error) => return Err(error.to_string()),
        };
        self.in_flight.remove(&token);
        report.answer(token, answer);
        Ok(())
    }

    /// The watch begins where it was asked to, if the store can serve that.
    async fn begin_watch(
        &mut self,
        token: Token,
        present: u64,
        report: &Report,
    ) -> Result<(), String> {
        report.answer(token, Ok(Answer::Watching));
        // It was ended meanwhile.
        let Some((prefix, from)) = self.beginning.remove(&token) else { return Ok(()) };
        let next = if from == 0 || from > present + 1 {
            let event = WatchEvent::Resync { revision: present };
            report.tell(StoreEvent::Changed { watch: token, event });
            present + 1
        } else {
            from
        };
        self.release(token, next - 1, report);
        self.watch(token, prefix, next).await
    }

    async fn watch(&mut self, token: Token, prefix: String, next: u64) -> Result<(), String> {
        let number = self.next_number;
        self.next_number += 1;
        let options = WatchOptions::new()
            .with_prefix()
            .with_start_revision(etcd_revision(next))
            .with_watch_id(number);
        let key = format!("{}{prefix}", self.prefix);
        self.watches.insert(token, Watch { prefix, number, next });
        self.stream.watch(key, Some(options)).await.map_err(|error| error.to_string())
    }

    async fn cancel(&mut self, number: i64) -> Result<(), String> {
        self.stream.cancel(number).await.map_err(|error| error.to_string())
    }

    async fn watched(&mut self, response: &WatchResponse, report: &Report) -> Result<(), String> {
        let number = response.watch_id();
        let found = self.watches.iter_mut().find(|(_, watch)| watch.number == number);
        let Some((&token, watch)) = found else {
            // The one that holds the stream open, or one that was ended.
            return Ok(());
        };
        if response.canceled() {
            if response.compact_revision() == 0 {
                return Err(format!("it ended a watch: {}", response.cancel_reason()));
            }
            // What it should begin with is forgotten.
            let present = revision_of(response.header().map_or(0, |header| header.revision()));
            let revision = present.max(watch.next);
            let event = WatchEvent::Resync { revision };
            report.tell(StoreEvent::Changed { watch: token, event });
            self.release(token, revision, report);
            let ended = self.watches.remove(&token).expect("it was found just now");
            return self.watch(token, ended.prefix, revision + 1).await;
        }
        let all = changes(&self.prefix, response.events()).map_err(|error| error.to_string())?;
        for changed in all {
            let revision = changed.revision;
            watch.next = revision + 1;
            let event = WatchEvent::Changed(changed);
            report.tell(StoreEvent::Changed { watch: token, event });
        }
        let reported = watch.next - 1;
        self.release(token, reported, report);
        Ok(())
    }

    /// A watch has reported everything up to a revision: answers that waited for that are given.
    fn release(&mut self, watch: Token, reported: u64, report: &Report) {
        for held in &mut self.held {
            if held.revision <= reported {
                held.watches.remove(&watch);
            }
        }
        let (ready, waiting) = std::mem::take(&mut self.held)
            .into_iter()
            .partition(|held: &Held| held.watches.is_empty());
        self.held = waiting;
        let ready: Vec<Held> = ready;
        for held in ready {
            self.in_flight.remove(&held.token);
            report.answer(held.token, Ok(Answer::Transacted(held.outcome)));
        }
    }
}

fn is_not_found(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.code() as i32 == NOT_FOUND)
}

fn concerns_operation(code: i32) -> bool {
    [INVALID_ARGUMENT, PERMISSION_DENIED, RESOURCE_EXHAUSTED, FAILED_PRECONDITION].contains(&code)
}
