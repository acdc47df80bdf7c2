//! The host engine's process: starting, the control thread's loop, stopping.
//!
//! Order of starting: the folders, identity and key, the lock (so that a predecessor is dead; one that stands by
//! waits here), the control socket, the store; then, once the store answers: whose cluster it is, whether the key is its
//! key, a new incarnation, the cores, the vdisks. Everything that the operator must mend is found before
//! a guest is served.
//!
//! Stopping: cores take no more requests, finish those in flight for at most five seconds, and end;
//! what is left is in the guests' inflight regions (C24). Owner records are released if the store answers at once.

use crate::cores::{self, Template};
use crate::engine::Engine;
use crate::error::HostEngineError;
use crate::events;
use crate::flash;
use crate::key;
use crate::messages::{Answer, Order};
use crate::status;
use crate::vdisk::release;
use cleave_control::config::HostConfig;
use cleave_control::events::{Events, Kind, News};
use cleave_control::protocol::{Request, Response};
use cleave_control::records::{self, CLUSTER_KEY, ClusterRecord};
use cleave_control::server::ControlServer;
use cleave_coordinator::{StoreClient, next_incarnation};
use cleave_format::ids::{ClusterId, Epoch, Incarnation};
use cleave_process::arguments::Launch;
use cleave_process::ask::{Questions, questions};
use cleave_process::machine::leave_first_processor;
use cleave_process::stop::Stop;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::{Doorbell, Priority};
use cleave_runtime::time::Clock;
use cleave_runtime_real::identity::Identity;
use cleave_runtime_real::reactor::{Reactor, ReactorConfig, Turn};
use std::cell::Cell;
use std::error::Error;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// How long a predecessor of this engine may take to end.
const PREDECESSOR: Duration = Duration::from_secs(60);
/// How long a control connection waits for an answer.
const ANSWER: Duration = Duration::from_secs(5);
/// How long cores may take to end: a little longer than they give their requests and then their flash.
const END_MAX: Duration = Duration::from_secs(9);
/// How long the store may take to be told of the end.
const RELEASE_MAX: Duration = Duration::from_secs(1);

/// Runs the engine until it is told to stop, or cannot go on.
pub fn run(launch: &Launch, stop: Stop) -> Result<(), Box<dyn Error>> {
    let config = HostConfig::load(&launch.config)?;
    if config.datanodes.len() != 1 {
        return Err(HostEngineError::Datanodes(config.datanodes.len()).into());
    }
    for folder in [&config.dir, &config.lock_dir, &config.vhost_dir] {
        std::fs::create_dir_all(folder).map_err(|error| {
            let (what, path) = ("create the folder", folder.clone());
            HostEngineError::File { what, path, error }
        })?;
    }
    let identity = identity(&config)?;
    let keys = config.key_file.as_deref().map(key::load).transpose()?;
    let _alone = launch.alone(&config.dir.join("lock"), PREDECESSOR)?;
    if let Err(error) = leave_first_processor() {
        tracing::debug!(%error, "processor 0 is used, too");
    }

    let reactor = Reactor::new(ReactorConfig {
        spin: Duration::ZERO,
        entries: 64,
        drive_buffers: Vec::new(),
        ..ReactorConfig::default()
    })?;
    stop.wakes(reactor.doorbell());
    let clock = Rc::clone(reactor.clock());
    let version = env!("CARGO_PKG_VERSION");
    let events = Events::open(&config.name, &config.dir, clock.unix_seconds(), version);
    let (asker, asked) = questions(reactor.doorbell());
    let _server = ControlServer::start(&config.control_socket, move |request| {
        asker.ask(request, ANSWER).unwrap_or_else(Response::error)
    })?;
    let store = cleave_coordinator_etcd::open(&config.store(), reactor.doorbell())?;
    let store = StoreClient::new(store);
    let engine = Rc::new(Engine::new(config, reactor.executor().clone(), store, keys, events));
    let beginning = begin(Rc::clone(&engine), identity, reactor.doorbell());
    reactor.executor().spawn(Priority::Foreground, beginning);
    tracing::info!(name = engine.config.name, "running");

    reactor.executor().spawn(Priority::Foreground, events::watch(Rc::clone(&engine)));

    let over = Rc::new(Cell::new(false));
    let shell = Shell { engine: Rc::clone(&engine), asked, stop, over: Rc::clone(&over) };
    reactor.run(shell, || over.get());
    let failure = engine.failure.take();
    let why = failure.as_ref().map(ToString::to_string);
    engine.events.close(engine.executor.clock().unix_seconds(), why);
    for core in engine.cores.take().into_iter().chain(engine.cpu.leaving.take()) {
        // After a failure cores are not waited for: the process's end is theirs.
        if failure.is_none() {
            core.join();
        }
    }
    match failure {
        Some(failure) => Err(failure.into()),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

fn identity(config: &HostConfig) -> Result<Identity, Box<dyn Error>> {
    let tls = &config.tls;
    let identity = Identity::load(&tls.certificate, &tls.key, &tls.ca)?;
    let found = identity.name()?;
    if found != config.name {
        let (path, wanted) = (tls.certificate.clone(), config.name.clone());
        return Err(HostEngineError::Certificate { path, found, wanted }.into());
    }
    Ok(identity)
}

/// Everything that needs the store.
async fn begin(engine: Rc<Engine>, identity: Identity, doorbell: Arc<dyn Doorbell>) {
    if let Err(error) = enter(&engine, identity, doorbell).await {
        return engine.fail(error);
    }
    if let Err(error) = Rc::clone(&engine).follow().await {
        engine.fail(error.into());
    }
}

async fn enter(
    engine: &Rc<Engine>,
    identity: Identity,
    doorbell: Arc<dyn Doorbell>,
) -> Result<(), HostEngineError> {
    let config = &engine.config;
    let found = records::get::<ClusterRecord>(&engine.store, CLUSTER_KEY).await?;
    let foreign = |found: String| {
        let (store, wanted) = (config.store().to_string(), config.cluster.clone());
        HostEngineError::ForeignStore { store, found, wanted }
    };
    let (cluster, _) = found.ok_or_else(|| foreign("no cluster".to_owned()))?;
    let wanted: ClusterId = config.cluster.parse().expect("the configuration was checked");
    if cluster.uuid.parse() != Ok(wanted) {
        return Err(foreign(format!("cluster {}", cluster.uuid)));
    }
    key::check(engine.keys.as_ref(), config.key_file.as_deref(), &cluster)?;
    let incarnation = Incarnation(next_incarnation(&engine.store).await?);
    engine.incarnation.set(incarnation);
    cores::begin(engine, Template { cluster: wanted, identity, doorbell })?;
    tracing::info!(%incarnation, cores = engine.cores.borrow().len(), "cores run");
    for device in &config.flash {
        // Vdisks are served meanwhile; what goes wrong is shown with the device.
        let adding = flash::add(Rc::clone(engine), device.clone());
        engine.executor.spawn(Priority::Foreground, async move { drop(adding.await) });
    }
    Ok(())
}

/// Ends the cores, then tells the store.
async fn end(engine: Rc<Engine>, over: Rc<Cell<bool>>) {
    let leaving = engine.cpu.leaving.borrow().clone();
    let cores: Vec<_> = engine.cores.borrow().iter().cloned().chain(leaving).collect();
    let end = || Order::End { with_engine: true };
    let endings: Vec<_> = cores.iter().map(|core| core.ask(end())).collect();
    let ended = async {
        for ending in endings {
            let answer = ending.wait().await;
            assert!(matches!(answer, None | Some(Answer::Ended)), "the answer to the end");
        }
    };
    if engine.executor.timeout(END_MAX, ended).await.is_none() {
        tracing::warn!("a core did not end in time");
        let why = "a core did not end in time; its requests are in the guests' memory".to_owned();
        engine.events.close(engine.executor.clock().unix_seconds(), Some(why));
        // Joining it could take for ever.
        std::process::exit(0);
    }
    let owned: Vec<_> = engine
        .vdisks
        .borrow()
        .values()
        .filter(|vdisk| vdisk.epoch.get() > 0)
        .map(|vdisk| (vdisk.id, Epoch(vdisk.epoch.get())))
        .collect();
    reached(Point::HostClosed);
    let told = async {
        for (vdisk, epoch) in owned {
            if let Err(error) = release(&engine, vdisk, epoch).await {
                tracing::debug!(%vdisk, "not released: {error}");
            }
        }
    };
    // A successor on this host takes the locks, and needs no more.
    engine.executor.timeout(RELEASE_MAX, told).await;
    reached(Point::HostReleased);
    over.set(true);
}

/// What the control thread's reactor runs.
struct Shell {
    engine: Rc<Engine>,
    asked: Questions<Request, Response>,
    stop: Stop,
    over: Rc<Cell<bool>>,
}

impl Turn for Shell {
    fn turn(&mut self) -> bool {
        let engine = &self.engine;
        let mut worked = engine.store.turn();
        worked |= engine.take_reports();
        let connected = engine.store.is_connected();
        engine.events.store(connected, || engine.executor.clock().unix_seconds());
        while let Some((question, reply)) = self.asked.next() {
            worked = true;
            let engine = Rc::clone(engine);
            let stop = self.stop.clone();
            self.engine.executor.spawn(Priority::Foreground, async move {
                reply.send(status::answer(&engine, question, &stop).await);
            });
        }
        if self.stop.is_asked() && !self.engine.stopping.replace(true) {
            worked = true;
            self.engine.tell(News::new(Kind::Stopping, self.engine.events.own()));
            let ending = end(Rc::clone(&self.engine), Rc::clone(&self.over));
            self.engine.executor.spawn(Priority::Foreground, ending);
        }
        if self.engine.failure.borrow().is_some() {
            self.over.set(true);
        }
        worked
    }
}
