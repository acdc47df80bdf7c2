//! A controller's process: what it opens, in which order, its loop, and how it ends.
//!
//! Order of starting: the lock of its folder (so that a predecessor is dead), the identity, the links,
//! the control socket, the drives (which wait for the predecessor's last I/O, C15), the vault, the
//! catalog. Everything that the operator must mend is found here, before anything is written.
//!
//! It ends when it is told to, after the log is in the vault; or at once, with one line, when the core
//! cannot go on.

use crate::catalog_thread::CatalogThread;
use crate::control::{Control, Process, Question};
use crate::drives::{ConfiguredDrive, Owner, open_all};
use crate::error::ControllerError;
use crate::events;
use crate::measure::Measures;
use crate::vault_file;
use cleave_catalog::Catalog;
use cleave_control::config::DatanodeConfig;
use cleave_control::events::{Events, Kind, News, Subject};
use cleave_control::protocol::Response;
use cleave_control::records::{self, CLUSTER_KEY, ClusterRecord};
use cleave_control::server::ControlServer;
use cleave_coordinator::StoreClient;
use cleave_datanode_core::catalog_port::CatalogWorker;
use cleave_datanode_core::log::LogSettings;
use cleave_datanode_core::vault::vault_capacity;
use cleave_datanode_core::{DataNode, GRANTS_KEPT, Settings, World};
use cleave_format::ids::{ClusterId, DatanodeId};
use cleave_nvme::owner::{HEARTBEAT, NvmeDrives};
use cleave_process::arguments::Launch;
use cleave_process::ask::{Asker, Questions, questions};
use cleave_process::machine::{processors, spin};
use cleave_process::stop::Stop;
use cleave_runtime::executor::{Executor, Priority};
use cleave_runtime::links::PeerAddress;
use cleave_runtime::time::Clock;
use cleave_runtime_real::drive::{DriveOptions, FileDrive};
use cleave_runtime_real::huge;
use cleave_runtime_real::identity::Identity;
use cleave_runtime_real::quic::{QuicConfig, QuicLinks};
use cleave_runtime_real::reactor::{Reactor, ReactorConfig, Turn};
use std::cell::{Cell, RefCell};
use std::error::Error;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

/// How long a predecessor may take to end: it may be writing a large vault.
const PREDECESSOR: Duration = Duration::from_secs(60);
/// How long a control connection waits for the core.
const ANSWER: Duration = Duration::from_secs(5);
/// Bytes and number of the buffers registered for the drives: ranges, whole slots, the vault's.
const DRIVE_BUFFERS: [(usize, u16); 3] =
    [(16 << 10, 64), (160 << 10, 64), ((1 << 20) + (64 << 10), 48)];
/// One part of the log's memory in so many is for control records (C13).
const CONTROL_PART: u64 = 8;
/// Chunks of the log, bytes.
const CHUNK: u64 = 1 << 20;

/// Runs a controller until it is told to stop, or cannot go on.
pub fn run(launch: &Launch, stop: Stop) -> Result<(), Box<dyn Error>> {
    let config = DatanodeConfig::load(&launch.config)?;
    std::fs::create_dir_all(&config.dir)
        .map_err(|error| file("create the folder", &config.dir, error))?;
    let identity = identity(&config)?;
    let _alone = launch.alone(&config.dir.join("lock"), PREDECESSOR)?;

    let reactor = Reactor::new(ReactorConfig {
        spin: spin(processors(), 1),
        drive_buffers: DRIVE_BUFFERS.into(),
        ..ReactorConfig::default()
    })?;
    stop.wakes(reactor.doorbell());
    let clock = Rc::clone(reactor.clock()) as Rc<dyn Clock>;
    let version = env!("CARGO_PKG_VERSION");
    let events = Rc::new(Events::open(&config.name, &config.dir, clock.unix_seconds(), version));
    let outcome = serve(reactor, config, identity, stop, &events);
    let failure = outcome.as_ref().err().map(ToString::to_string);
    events.close(clock.unix_seconds(), failure);
    outcome
}

/// From the reactor on: what goes wrong is told by an event, too.
fn serve(
    reactor: Reactor,
    config: DatanodeConfig,
    identity: Identity,
    stop: Stop,
    events: &Rc<Events>,
) -> Result<(), Box<dyn Error>> {
    let links = QuicConfig { mtu: config.mtu, ..QuicConfig::new(config.listen, identity) };
    let links = QuicLinks::new(&reactor, &links)?;
    let (asker, asked) = questions(reactor.doorbell());
    let _server = serve_control(&config, asker)?;
    let store = cleave_coordinator_etcd::open(&config.store(), reactor.doorbell())?;
    let store = StoreClient::new(store);

    let owner = Owner {
        cluster: config.cluster.parse()?,
        datanode: DatanodeId(config.datanode),
        controller: config.controller,
    };
    let nvme = NvmeDrives::new(Rc::clone(reactor.clock()) as Rc<dyn Clock>);
    let drives = open_all(&reactor, &nvme, owner, &config.drives)?;
    events::missing_drives(events, &drives, reactor.clock().unix_seconds());
    let nvme = Rc::new(nvme);
    if !nvme.is_empty() {
        for event in nvme.drives().iter().filter_map(|drive| drive.event()) {
            reactor.watch(event.as_raw_fd());
        }
        reactor.executor().spawn(Priority::Foreground, beat(reactor.executor().clone()));
    }
    let log = log_settings(config.nvlog_capacity);
    vault_file::prepare(
        &config.vault,
        vault_capacity(log.record_bytes_max, log.control_bytes_max),
    )?;
    let vault = FileDrive::open(&reactor, &config.vault, &DriveOptions::default())?;
    let catalog_owner = cleave_catalog::Owner { cluster: owner.cluster, datanode: owner.datanode };
    let catalog = Catalog::open(&config.catalog, catalog_owner)?;
    let catalog_applied = catalog.applied();
    let catalog = CatalogThread::start(CatalogWorker::new(catalog), reactor.doorbell())?;

    let measures = Rc::new(Measures::default());
    let open = |drive: &ConfiguredDrive| (drive.drive, drive.open.as_ref().ok().cloned());
    let world = World {
        links,
        executor: reactor.executor().clone(),
        store: store.clone(),
        catalog: Box::new(catalog),
        catalog_applied,
        vault: Rc::new(vault),
        drives: drives.iter().map(open).collect(),
        observer: Rc::clone(&measures) as Rc<dyn cleave_datanode_core::Observer>,
    };
    let settings = Settings {
        cluster: owner.cluster,
        datanode: owner.datanode,
        controller: config.controller,
        peer: PeerAddress {
            name: config.peer.name.clone(),
            address: config.peer.address.to_string(),
        },
        log,
        advice: Some(huge::advise),
        take_over: config.take_over,
        alone: config.alone,
        grants_kept: GRANTS_KEPT,
    };
    let node = Rc::new(DataNode::new(world, settings));
    tracing::info!(name = config.name, listen = %config.listen, "running");

    let failure = Rc::new(RefCell::new(None));
    let check = check_cluster(store.clone(), owner.cluster, config.clone(), Rc::clone(&failure));
    reactor.executor().spawn(Priority::Foreground, check);
    let process = Process::new(&config);
    let events = Rc::clone(events);
    let clock = Rc::clone(reactor.clock()) as Rc<dyn Clock>;
    let node_of = Rc::clone(&node);
    let control = Control { node: node_of, store, measures, drives, config, process, events };
    let shell = Shell {
        control: Rc::new(control),
        clock,
        asked,
        stop: stop.clone(),
        stopping: false,
        node: Rc::clone(&node),
        nvme: Rc::clone(&nvme),
        armed: false,
        executor: reactor.executor().clone(),
        failure: Rc::clone(&failure),
        over: Rc::default(),
    };
    let over = Rc::clone(&shell.over);
    reactor.run(shell, || over.get());
    nvme.shut_down(|| {
        reactor.clock().refresh();
        std::thread::yield_now();
    });
    match failure.take().or_else(|| node.failure().map(ControllerError::Failed)) {
        Some(failure) => Err(failure.into()),
        None => {
            tracing::info!("stopped");
            Ok(())
        }
    }
}

fn file(what: &'static str, path: &Path, error: std::io::Error) -> ControllerError {
    ControllerError::File { what, path: path.to_owned(), error }
}

fn identity(config: &DatanodeConfig) -> Result<Identity, Box<dyn Error>> {
    let tls = &config.tls;
    let identity = Identity::load(&tls.certificate, &tls.key, &tls.ca)?;
    let found = identity.name()?;
    if found != config.name {
        let (path, wanted) = (tls.certificate.clone(), config.name.clone());
        return Err(ControllerError::Certificate { path, found, wanted }.into());
    }
    Ok(identity)
}

/// Divides the log's memory: control records have their own, so that they always have room (C13).
fn log_settings(capacity: u64) -> LogSettings {
    let control_bytes_max = (capacity / CONTROL_PART).max(CHUNK);
    let record_bytes_max = (capacity - control_bytes_max) / CHUNK * CHUNK;
    LogSettings { record_bytes_max, control_bytes_max }
}

fn serve_control(
    config: &DatanodeConfig,
    asker: Asker<Question, Response>,
) -> Result<ControlServer, Box<dyn Error>> {
    let server = ControlServer::start(&config.control_socket, move |request| {
        asker.ask(request, ANSWER).unwrap_or_else(Response::error)
    })?;
    Ok(server)
}

/// The store's word whose it is: a controller of another cluster must not draw its incarnation there
/// and go on.
async fn check_cluster(
    store: StoreClient,
    wanted: ClusterId,
    config: DatanodeConfig,
    failure: Rc<RefCell<Option<ControllerError>>>,
) {
    let place = config.store().to_string();
    let foreign = |found: String| {
        let wanted = wanted.to_string();
        Some(ControllerError::ForeignStore { store: place, found, wanted })
    };
    let wrong = match records::get::<ClusterRecord>(&store, CLUSTER_KEY).await {
        Ok(Some((record, _))) if record.uuid.parse() == Ok(wanted) => None,
        Ok(Some((record, _))) => foreign(record.uuid),
        Ok(None) => foreign("no cluster".to_owned()),
        Err(error) => Some(ControllerError::Failed(error.to_string())),
    };
    if wrong.is_some() {
        failure.replace(wrong);
    }
}

/// Keeps a core from sleeping for long while it has NVMe controllers, so that it sees when commands are out
/// of time and when one is gone.
async fn beat(executor: Executor) {
    loop {
        executor.sleep(HEARTBEAT).await;
    }
}

/// What the reactor runs.
struct Shell {
    control: Rc<Control>,
    clock: Rc<dyn Clock>,
    asked: Questions<Question, Response>,
    stop: Stop,
    stopping: bool,
    node: Rc<DataNode>,
    nvme: Rc<NvmeDrives>,
    /// The core is about to sleep.
    armed: bool,
    executor: Executor,
    failure: Rc<RefCell<Option<ControllerError>>>,
    over: Rc<Cell<bool>>,
}

impl Turn for Shell {
    fn turn(&mut self) -> bool {
        let mut worked = self.nvme.turn();
        for (name, event) in self.nvme.take_events() {
            tracing::warn!(%name, "NVMe controller: {event}");
            let news = News::new(Kind::NvmeTold, Subject::Nvme(name.to_string()));
            self.control.events.tell(self.clock.unix_seconds(), news.because(&event));
        }
        worked |= self.node.turn();
        let Control { events, config, store, .. } = &*self.control;
        events::take(events, config, &self.node, &*self.clock);
        events.store(store.is_connected(), || self.clock.unix_seconds());
        worked |= self.armed && self.nvme.must_poll();
        while let Some((question, reply)) = self.asked.next() {
            worked = true;
            let control = Rc::clone(&self.control);
            let stop = self.stop.clone();
            self.executor.spawn(Priority::Foreground, async move {
                reply.send(control.answer(question, &stop).await);
            });
        }
        if self.stop.is_asked() && !self.stopping {
            self.stopping = true;
            worked = true;
            let news = News::new(Kind::Stopping, self.control.events.own());
            self.control.events.tell(self.clock.unix_seconds(), news);
            self.node.stop();
        }
        if self.node.is_stopped()
            || self.node.failure().is_some()
            || self.failure.borrow().is_some()
        {
            self.over.set(true);
        }
        worked
    }

    fn arm(&mut self) {
        self.nvme.arm();
        self.armed = true;
    }

    fn disarm(&mut self) {
        self.nvme.disarm();
        self.armed = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_records_have_a_part_of_the_log() {
        for capacity in [16 << 20, 256 << 20, (256 << 20) + 12_345, 64 << 30] {
            let log = log_settings(capacity);
            assert!(log.record_bytes_max + log.control_bytes_max <= capacity);
            assert!(log.control_bytes_max >= CHUNK);
            assert!(log.record_bytes_max.is_multiple_of(CHUNK));
            assert!(log.record_bytes_max >= capacity / 2);
        }
    }
}
