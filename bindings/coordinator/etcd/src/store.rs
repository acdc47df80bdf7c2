//! [`EtcdStore`], what a core polls.
//!
//! One thread a store, with a runtime of its own, does all that waits; the core hands it operations through a
//! channel and takes events from another, so it never blocks. The thread rings the core's doorbell after it has
//! published events. It connects, and connects again, for as long as the store lives.
//!
//! A crash leaves transactions that etcd may carry out; whoever comes after settles them by conditions.

use crate::config::{ConfigError, EtcdConfig, PATIENCE};
use crate::session::{Lost, Session};
use cleave_coordinator::contract::{Operation, Store, StoreError, StoreEvent, Token};
use cleave_runtime::executor::Doorbell;
use etcd_client::{Client, ConnectOptions};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Pause between attempts to connect: from this ...
const PAUSE_MIN: Duration = Duration::from_millis(10);
/// ... doubling to this.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// A client of an etcd cluster. Dropping it ends its thread.
pub struct EtcdStore {
    /// `None` only while it is dropped.
    operations: Option<UnboundedSender<(Token, Operation)>>,
    events: mpsc::Receiver<StoreEvent>,
    thread: Option<JoinHandle<()>>,
}

impl EtcdStore {
    /// A client of the cluster, whose members need not be there yet. `doorbell` wakes the core that will poll.
    ///
    /// # Errors
    /// The configuration is wrong, or a file of it cannot be read.
    ///
    /// # Panics
    /// When the system is out of threads or files.
    pub fn new(config: &EtcdConfig, doorbell: Arc<dyn Doorbell>) -> Result<EtcdStore, ConfigError> {
        let options = config.options()?;
        let (operations, taken) = unbounded_channel();
        let (report, events) = mpsc::channel();
        let report = Report { events: report, doorbell };
        let worker = Worker {
            endpoints: config.endpoints.clone(),
            prefix: config.prefix.clone(),
            options,
            operations: taken,
            report,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("the system has files for a runtime");
        let thread = std::thread::Builder::new()
            .name("store-client".to_owned())
            .spawn(move || runtime.block_on(worker.work()))
            .expect("the system has a thread for the store's client");
        Ok(EtcdStore { operations: Some(operations), events, thread: Some(thread) })
    }
}

impl Store for EtcdStore {
    fn submit(&self, token: Token, operation: Operation) {
        let operations = self.operations.as_ref().expect("set until dropped");
        let sent = operations.send((token, operation));
        sent.expect("the thread lives as long as the store");
    }

    fn poll(&self, events: &mut Vec<StoreEvent>) {
        events.extend(self.events.try_iter());
    }
}

impl Drop for EtcdStore {
    fn drop(&mut self) {
        self.operations = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The way back to the core.
pub(crate) struct Report {
    events: mpsc::Sender<StoreEvent>,
    doorbell: Arc<dyn Doorbell>,
}

impl Report {
    /// Publishes an event, and wakes the core.
    pub fn tell(&self, event: StoreEvent) {
        // Fails only when the store is being dropped, which the next look at operations finds.
        let _ = self.events.send(event);
        self.doorbell.ring();
    }

    /// Publishes an operation's answer.
    pub fn answer(&self, token: Token, result: Result<cleave_coordinator::Answer, StoreError>) {
        self.tell(StoreEvent::Answer { token, result });
    }
}

struct Worker {
    endpoints: Vec<String>,
    prefix: String,
    options: ConnectOptions,
    operations: UnboundedReceiver<(Token, Operation)>,
    report: Report,
}

impl Worker {
    async fn work(mut self) {
        let mut pause = PAUSE_MIN;
        let mut announced = false;
        loop {
            let connecting = connect(&self.endpoints, &self.options, &self.prefix);
            let opened = tokio::select! {
                opened = connecting => opened,
                () = refuse(&mut self.operations, &self.report) => return,
            };
            let lost = match opened {
                Ok(mut session) => {
                    (pause, announced) = (PAUSE_MIN, false);
                    tracing::info!(
                        "connected to the coordinator store, etcd at {:?}",
                        self.endpoints
                    );
                    self.report.tell(StoreEvent::Connected);
                    let end = session.converse(&mut self.operations, &self.report).await;
                    session.end(&self.report);
                    match end {
                        Lost::Dropped => return,
                        Lost::Connection(reason) => reason,
                    }
                }
                Err(reason) => reason,
            };
            if !announced {
                announced = true;
                let endpoints = &self.endpoints;
                tracing::warn!(
                    "the coordinator store, etcd at {endpoints:?}, is away: {lost}; trying again"
                );
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = refuse(&mut self.operations, &self.report) => return,
            }
            pause = (2 * pause).min(PAUSE_MAX);
        }
    }
}

async fn connect(
    endpoints: &[String],
    options: &ConnectOptions,
    prefix: &str,
) -> Result<Session, String> {
    let opening = async {
        let client = Client::connect(endpoints, Some(options.clone())).await;
        let client = client.map_err(|error| error.to_string())?;
        Session::open(client, prefix).await
    };
    let opened = tokio::time::timeout(PATIENCE, opening).await;
    opened.unwrap_or_else(|_| Err("it does not answer".to_owned()))
}

/// Answers that there is no connection, until the store is dropped.
async fn refuse(operations: &mut UnboundedReceiver<(Token, Operation)>, report: &Report) {
    while let Some((token, _)) = operations.recv().await {
        report.answer(token, Err(StoreError::Unavailable));
    }
}
