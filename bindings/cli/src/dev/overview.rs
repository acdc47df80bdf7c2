//! Status and statistics of the whole cluster, gathered from its engines over their control sockets.
//!
//! An engine that does not answer is described by what its supervisor knows of it. Engines are asked at
//! the same time, so that one that hangs delays the answer once.

use crate::dev::cluster::Cluster;
use crate::dev::etcd::ETCD;
use crate::dev::events::OwnEvents;
use crate::dev::namespace::Found;
use crate::dev::settings::{CONTROLLERS, DATANODE_ID, host_number};
use crate::dev::store::{StoreKind, or_known};
use crate::error::Result;
use cleave_control::protocol::{Reply, Request, call};
use cleave_control::records::VdiskState;
use cleave_control::status::{
    ClusterStatistics, ClusterStatus, ControllerStatus, DriveState, FlashState, HostFlashStatus,
    HostStatus, ProcessState, ProcessStatus, Role, SCHEMA, StoreStatus, VdiskEntry, VdiskServing,
};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// How long an engine may take to answer.
const ANSWER: Duration = Duration::from_secs(2);

/// What the supervisor knows of a child.
#[derive(Clone, Debug, Default)]
pub struct ChildView {
    /// Its process, while it runs.
    pub running: Option<(u32, Instant)>,
    /// Whether it was told to end.
    pub stopping: bool,
    /// How often it was started again.
    pub restarts: u64,
    /// How it ended the last time.
    pub obituary: Option<String>,
}

/// What answers of the control socket are made of.
pub struct Overview {
    /// The cluster.
    pub cluster: Cluster,
    /// Its children, by name; the supervisor keeps this up to date.
    pub children: Mutex<BTreeMap<&'static str, ChildView>>,
    /// Engines are started by somebody else: all that is known of them is what they say.
    pub engines_elsewhere: bool,
    /// The vdisks as the store said the last time, for while it is away.
    known: Mutex<Vec<Found>>,
    /// What the supervisor saw happen.
    pub events: OwnEvents,
    /// When the supervisor started.
    pub since: Instant,
}

impl Overview {
    /// No child has been started yet.
    pub fn new(cluster: Cluster, engines_elsewhere: bool) -> Overview {
        let etcd = (cluster.settings.store == StoreKind::Etcd).then_some(ETCD);
        let engines = cluster.settings.engines();
        let children = engines.into_iter().chain(etcd).map(|name| (name, ChildView::default()));
        let children = Mutex::new(children.collect());
        let (known, since) = (Mutex::default(), Instant::now());
        let events = OwnEvents::open(&cluster.directory);
        Overview { cluster, children, engines_elsewhere, known, events, since }
    }

    /// The children: engines, and etcd where that is the store.
    pub fn child_names(&self) -> Vec<&'static str> {
        let children = self.children.lock().expect("no thread panics while it holds this");
        children.keys().copied().collect()
    }

    /// All vdisks; as they were known last while the store is away.
    fn listed(&self) -> Result<Vec<Found>> {
        let mut known = self.known.lock().expect("no thread panics while it holds this");
        let found = or_known(self.cluster.namespace().list(), || known.clone())?;
        known.clone_from(&found);
        Ok(found)
    }

    /// Changes what is known of a child.
    pub fn change(&self, name: &str, change: impl FnOnce(&mut ChildView)) {
        let mut children = self.children.lock().expect("no thread panics while it holds this");
        change(children.get_mut(name).expect("a child has a view"));
    }

    fn child(&self, name: &str) -> ChildView {
        let children = self.children.lock().expect("no thread panics while it holds this");
        children[name].clone()
    }

    /// An engine's process, while it runs.
    pub fn pid(&self, name: &str) -> Option<u32> {
        self.child(name).running.map(|(pid, _)| pid)
    }

    /// The hosts whose engines answer.
    pub fn hosts(&self) -> Vec<HostStatus> {
        let host = |(_, reply)| match reply {
            Some(Reply::Host(status)) => Some(status),
            _ => None,
        };
        self.ask_these(self.cluster.settings.host_names(), &Request::Status {})
            .into_iter()
            .filter_map(host)
            .collect()
    }

    /// Everything.
    pub fn status(&self) -> Result<ClusterStatus> {
        let vdisks = self.listed()?;
        let mut hosts = Vec::new();
        let mut controllers = Vec::new();
        for (name, reply) in self.ask_all(&Request::Status {}) {
            let known = self.process(name, reply.is_some());
            match (name, reply) {
                (_, Some(Reply::Host(mut status))) => {
                    status.process = merged(known, status.process);
                    hosts.push(status);
                }
                (_, Some(Reply::Controller(mut status))) => {
                    status.process = merged(known, status.process);
                    controllers.push(status);
                }
                (name, _) => match host_number(name) {
                    Some(host) => {
                        hosts.push(HostStatus { host, process: known, ..HostStatus::default() });
                    }
                    None => controllers.push(ControllerStatus {
                        datanode: DATANODE_ID,
                        controller: u8::from(name == CONTROLLERS[1]),
                        process: known,
                        ..ControllerStatus::default()
                    }),
                },
            }
        }
        let missing = missing(&vdisks, &hosts, &controllers);
        let warnings = self.warnings(&hosts, &controllers);
        Ok(ClusterStatus {
            schema: SCHEMA,
            cluster: self.cluster.record.uuid.clone(),
            ready: missing.is_empty(),
            encrypted: self.cluster.record.encrypted,
            supervisor: self.supervisor(),
            store: self.store(),
            hosts,
            controllers,
            warnings,
        })
    }

    /// What keeps vdisks from being read and written; empty when nothing does.
    pub fn missing(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let vdisks = self.listed()?;
        Ok(missing(&vdisks, &status.hosts, &status.controllers))
    }

    /// What was done, by engines that answer.
    pub fn statistics(&self) -> ClusterStatistics {
        let (mut hosts, mut controllers) = (Vec::new(), Vec::new());
        for (_, reply) in self.ask_all(&Request::Stats {}) {
            match reply {
                Some(Reply::HostStatistics(statistics)) => hosts.push(statistics),
                Some(Reply::ControllerStatistics(statistics)) => controllers.push(statistics),
                _ => {}
            }
        }
        let cluster = self.cluster.record.uuid.clone();
        ClusterStatistics { schema: SCHEMA, cluster, hosts, controllers }
    }

    /// All vdisks as lists show them.
    pub fn vdisks(&self) -> Result<Vec<VdiskEntry>> {
        let hosts = self.hosts();
        let vdisks = self.listed()?;
        Ok(vdisks.iter().map(|found| self.entry(found, &hosts)).collect())
    }

    /// A vdisk as lists show it.
    pub fn entry(&self, found: &Found, hosts: &[HostStatus]) -> VdiskEntry {
        let record = &found.record;
        let host = hosts.iter().find(|host| Some(host.host) == record.host);
        let served = host.and_then(|host| {
            host.vdisks.iter().find(|vdisk| vdisk.vdisk.id == record.id).map(|vdisk| &vdisk.vdisk)
        });
        let socket_of = |host| self.cluster.directory.vhost_socket(host, &found.name).ok();
        let socket = record.host.and_then(socket_of);
        VdiskEntry {
            name: found.name.clone(),
            id: record.id,
            size: record.size,
            encrypted: record.encrypted,
            created: record.created,
            host: record.host,
            socket: socket.map(|path| path.display().to_string()),
            attached: served.is_some_and(|vdisk| vdisk.attached),
        }
    }

    /// Asks every engine.
    pub fn ask_all(&self, request: &Request) -> Vec<(&'static str, Option<Reply>)> {
        self.ask_these(&self.cluster.settings.engines(), request)
    }

    fn ask_these(
        &self,
        names: &[&'static str],
        request: &Request,
    ) -> Vec<(&'static str, Option<Reply>)> {
        std::thread::scope(|scope| {
            let ask = |name: &'static str| (name, scope.spawn(move || self.ask(name, request)));
            let asked: Vec<_> = names.iter().copied().map(ask).collect();
            let answer = |(name, thread): (_, std::thread::ScopedJoinHandle<'_, _>)| {
                (name, thread.join().expect("asking an engine does not panic"))
            };
            asked.into_iter().map(answer).collect()
        })
    }

    /// Gives an engine's request on to it.
    pub fn forward(&self, name: &str, request: &Request, wait: Duration) -> Result<Reply> {
        Ok(call(&self.cluster.directory.engine_socket(name), request, wait)?)
    }

    fn ask(&self, name: &str, request: &Request) -> Option<Reply> {
        if !self.engines_elsewhere {
            self.child(name).running?;
        }
        let socket = self.cluster.directory.engine_socket(name);
        match call(&socket, request, ANSWER) {
            Ok(reply) => Some(reply),
            Err(error) => {
                tracing::debug!("{name} does not answer: {error}");
                None
            }
        }
    }

    fn process(&self, name: &str, answers: bool) -> ProcessStatus {
        let child = self.child(name);
        let state = match child.running {
            None if answers => ProcessState::Running,
            None => ProcessState::Down,
            Some(_) if child.stopping => ProcessState::Stopping,
            Some(_) if answers => ProcessState::Running,
            Some(_) => ProcessState::Starting,
        };
        ProcessStatus {
            name: name.to_owned(),
            pid: child.running.map(|(pid, _)| pid),
            state,
            uptime_seconds: child.running.map_or(0, |(_, since)| since.elapsed().as_secs()),
            restarts: child.restarts,
            ..ProcessStatus::default()
        }
    }

    fn store(&self) -> StoreStatus {
        let kind = self.cluster.settings.store;
        let connected = self.cluster.store.is_connected();
        let process = (kind == StoreKind::Etcd).then(|| self.process(ETCD, connected));
        StoreStatus { kind: kind.to_string(), connected, process }
    }

    fn supervisor(&self) -> ProcessStatus {
        ProcessStatus {
            name: "cleave".to_owned(),
            pid: Some(std::process::id()),
            state: ProcessState::Running,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: self.since.elapsed().as_secs(),
            ..ProcessStatus::default()
        }
    }

    fn warnings(&self, hosts: &[HostStatus], controllers: &[ControllerStatus]) -> Vec<String> {
        let mut warnings = Vec::new();
        if !self.cluster.store.is_connected() {
            warnings.push(
                "the coordinator store is away: reads and writes go on; no vdisk can be created, changed or opened, and \
                 no role can change, until it is back"
                    .to_owned(),
            );
        }
        for name in self.child_names() {
            let child = self.child(name);
            if child.running.is_none()
                && let Some(obituary) = &child.obituary
            {
                let dir = self.cluster.directory.path().display();
                warnings.push(format!(
                    "{name} {obituary}; start it with: cleave --dir {dir} restart {name}"
                ));
            }
        }
        let mut lost = BTreeMap::new();
        for number in &self.cluster.missing {
            lost.insert(*number, "its file is missing".to_owned());
        }
        for drive in controllers.iter().flat_map(|controller| &controller.drives) {
            if drive.state == DriveState::Lost {
                lost.insert(drive.drive, drive.reason.clone());
            }
        }
        for (number, reason) in lost {
            warnings.push(format!("drive {number} is lost: {reason}"));
        }
        for controller in controllers.iter().filter(|one| one.role == Role::Active) {
            let log = &controller.log;
            if !log.alone_on.is_empty() {
                warnings.push(format!(
                    "data node {}: one controller is alone; it writes its log to three drives, and goes on",
                    controller.datanode
                ));
            }
            if !log.hindrance.is_empty() {
                warnings.push(format!(
                    "data node {}: writes may wait for the other controller: {}",
                    controller.datanode, log.hindrance
                ));
            }
            if let Some(held) = controller.stripes.as_ref().map(|stripes| stripes.held)
                && held > 0
            {
                warnings.push(format!(
                    "{} MiB of the pool are kept until the other controller is heard of, which may still write there",
                    held >> 20
                ));
            }
        }
        let all_up = controllers.iter().all(|one| one.process.state == ProcessState::Running);
        if all_up && controllers.iter().all(|one| one.role == Role::None && !one.in_sync) {
            warnings.push(no_log(DATANODE_ID));
        }
        for host in hosts {
            warnings.extend(flash_warnings(&host.flash));
            if let Some(shortage) = &host.shortage {
                let name = &host.process.name;
                warnings.push(format!(
                    "destage of {name} waits: {shortage}; writes stall when the log is full"
                ));
            }
        }
        for vdisk in hosts.iter().flat_map(|host| &host.vdisks) {
            if vdisk.state == VdiskServing::Failed {
                let name = &vdisk.vdisk.name;
                warnings
                    .push(format!("vdisk {name} cannot be served; the log of its host says why"));
            }
        }
        warnings
    }
}

/// What is said of flash that is gone, or too small.
fn flash_warnings(flash: &HostFlashStatus) -> Vec<String> {
    let retired = flash.devices.iter().filter(|device| device.state == FlashState::Retired);
    let mut warnings: Vec<String> = retired
        .map(|device| format!("flash {} is retired: {}", device.device, device.reason))
        .collect();
    if flash.headroom < 0 && flash.space.capacity > 0 {
        let size = |bytes: u64| format!("{} MiB", bytes >> 20);
        let (space, set) = (size(flash.space.capacity), size(flash.working_set));
        warnings.push(format!(
            "flash has {space} and the open vdisks hold {set}: some reads go to the pool; add flash with: cleave flash add"
        ));
    }
    warnings
}

/// What is said of a data node whose log is gone.
fn no_log(datanode: u16) -> String {
    format!(
        "data node {datanode} has no log: no controller holds it and there is no vault. Writes that were \
         acknowledged and not destaged are lost, except those that a running host engine still holds; to go \
         on without them: cleave start-empty --accept-data-loss"
    )
}

fn merged(known: ProcessStatus, told: ProcessStatus) -> ProcessStatus {
    let ProcessStatus { version, incarnation, .. } = told;
    match known.pid {
        Some(_) => ProcessStatus { version, incarnation, ..known },
        // Not a child: what it says is all that is known.
        None => ProcessStatus { version, incarnation, state: known.state, ..told },
    }
}

/// While a controller is away, or has no copy of the log yet, writes wait, whatever the host engine has
/// noticed of that.
fn missing(
    vdisks: &[Found],
    hosts: &[HostStatus],
    controllers: &[ControllerStatus],
) -> Vec<String> {
    let runs = |host: &&HostStatus| host.process.state == ProcessState::Running;
    let mut missing: Vec<String> = Vec::new();
    for host in hosts.iter().filter(|host| !runs(host)) {
        // One that has ended, and has no vdisk, keeps nothing from being served.
        let serves = vdisks.iter().any(|found| found.record.host == Some(host.host));
        let only = hosts.len() == 1;
        if serves || only || host.process.state != ProcessState::Down {
            missing.push(format!("{} does not answer", host.process.name));
        }
    }
    for controller in controllers {
        let name = &controller.process.name;
        if controller.process.state != ProcessState::Running {
            missing.push(format!("{name} does not answer"));
        } else if !controller.in_sync {
            missing.push(format!("{name} has no copy of the log yet"));
        }
    }
    for host in hosts.iter().filter(runs) {
        for log in host.logs.iter().filter(|log| !log.writable) {
            let (name, datanode) = (&host.process.name, log.datanode);
            missing.push(format!("the log of data node {datanode} cannot be written by {name}"));
        }
    }
    for found in vdisks.iter().filter(|found| found.record.state == VdiskState::Ready) {
        let Some(number) = found.record.host else { continue };
        let Some(host) = hosts.iter().filter(runs).find(|host| host.host == number) else {
            missing.push(format!("vdisk {} is not served", found.name));
            continue;
        };
        let serving = host.vdisks.iter().find(|vdisk| vdisk.vdisk.id == found.record.id);
        match serving.map(|vdisk| vdisk.state) {
            Some(VdiskServing::Serving) => {}
            Some(VdiskServing::Failed) => missing.push(format!("vdisk {} failed", found.name)),
            Some(VdiskServing::Recovering) => {
                missing.push(format!("vdisk {} is being recovered", found.name));
            }
            Some(VdiskServing::Waiting) | None => {
                missing.push(format!("vdisk {} is not served", found.name));
            }
        }
    }
    missing
}
