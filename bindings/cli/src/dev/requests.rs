//! What the supervisor's control socket answers. Called from the threads of connections.
//!
//! Reading and the namespace are done right here; what concerns children goes to the supervisor's
//! loop, which answers through a channel.

use crate::dev::child::failed;
use crate::dev::cluster::{program, program_of};
use crate::dev::cpu;
use crate::dev::events::gather;
use crate::dev::flash;
use crate::dev::overview::Overview;
use crate::dev::settings::{DATANODE_ID, HOST, HOST_ID};
use crate::dev::supervisor::Event;
use crate::error::{Error, Result, file};
use cleave_control::flash::FlashPlace;
use cleave_control::protocol::{Reply, Request, Response};
use cleave_control::records::{SHARES_MAX, VdiskState, shares_for};
use cleave_control::status::{ProcessState, Role, VdiskEntry, VdiskServing, VdiskStatus};
use cleave_coordinator::encoding::{decode, encode};
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{Answer, LogRole, Operation, Outcome, Transaction};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::time::{Duration, Instant};

/// How long an engine may take to let go of a vdisk.
const LET_GO: Duration = Duration::from_secs(20);
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// How long a successor may take to serve what its predecessor served.
const SERVED: Duration = Duration::from_secs(60);
/// How long the host engine may take to add a device, or to let it go.
const FLASH: Duration = Duration::from_secs(30);
/// How long the host engine may take to note how many cores it should have.
const CPU: Duration = Duration::from_secs(10);
/// How long a controller may take to say that it goes on with an order.
const ORDER: Duration = Duration::from_secs(10);
/// A standby makes ready before the role moves to it.
const SWITCH_OVER: Duration = Duration::from_secs(90);
/// How exactly a stall is known.
const STALL_STEP: Duration = Duration::from_millis(5);

/// Answers requests.
pub struct Requests {
    overview: Arc<Overview>,
    events: Sender<Event>,
}

impl Requests {
    /// For a supervisor that takes these events.
    pub fn new(overview: Arc<Overview>, events: Sender<Event>) -> Requests {
        Requests { overview, events }
    }

    /// Carries a request out.
    pub fn answer(&self, request: Request) -> Response {
        match self.carry_out(request) {
            Ok(reply) => Response::Ok(reply),
            Err(error) => Response::error(error),
        }
    }

    fn carry_out(&self, request: Request) -> Result<Reply> {
        let overview = &self.overview;
        match request {
            Request::Status {} => Ok(Reply::Status(overview.status()?)),
            Request::Stats {} => Ok(Reply::Statistics(overview.statistics())),
            Request::Events { since } => Ok(gather(overview, since)),
            Request::ListVdisks {} => Ok(Reply::Vdisks { vdisks: overview.vdisks()? }),
            Request::Stop {} => {
                self.tell(Event::Stop)?;
                Ok(Reply::Done {})
            }
            Request::CreateVdisk { name, size, encrypted, shares } => {
                Ok(Reply::Vdisk(self.create(&name, size, encrypted, shares)?))
            }
            Request::ResizeVdisk { name, size, accept_data_loss } => {
                self.resize(&name, size, accept_data_loss)
            }
            Request::MoveVdisk { name, host, take_over } => self.move_vdisk(&name, host, take_over),
            Request::DeleteVdisk { name } => self.delete(&name),
            Request::RestartChild { name } => self.restart(&name),
            Request::UpgradeHost { program } => self.upgrade(program),
            Request::SetCpu { insane, cores } => self.set_cpu(insane, cores),
            Request::AddFlash { device, size, host } => self.add_flash(device, size, host),
            Request::RetireFlash { device, host } => self.retire_flash(device, host),
            Request::SwitchOver { datanode } => {
                self.ask_active(datanode, &Request::SwitchOver { datanode }, SWITCH_OVER)
            }
            Request::Scrub { datanode } => {
                self.ask_active(datanode, &Request::Scrub { datanode }, ORDER)
            }
            Request::Rebuild { datanode } => {
                self.ask_active(datanode, &Request::Rebuild { datanode }, ORDER)
            }
            Request::StartEmptyLog { datanode, accept_data_loss } => {
                self.start_empty(datanode, accept_data_loss)
            }
        }
    }

    fn create(
        &self,
        name: &str,
        size: u64,
        encrypted: Option<bool>,
        shares: Option<u16>,
    ) -> Result<VdiskEntry> {
        let cluster = &self.overview.cluster;
        cluster.directory.vhost_socket(HOST_ID, name)?;
        let encrypted = encrypted.unwrap_or(cluster.record.encrypted);
        if encrypted && cluster.record.key_check.is_none() {
            let reason = "it cannot be encrypted, because the cluster was created without a key";
            return Err(Error::Vdisk { name: name.to_owned(), reason: reason.to_owned() });
        }
        let shares = shares.unwrap_or_else(|| shares_for(size));
        if !(1..=SHARES_MAX).contains(&shares) {
            let reason = format!("it cannot have {shares} shares: from 1 to {SHARES_MAX}");
            return Err(Error::Vdisk { name: name.to_owned(), reason });
        }
        let found = cluster.namespace().create(name, size, encrypted, shares)?;
        Ok(self.overview.entry(&found, &[]))
    }

    fn resize(&self, name: &str, size: u64, accept_data_loss: bool) -> Result<Reply> {
        let namespace = self.overview.cluster.namespace();
        if let Some(found) = namespace.find(name)?
            && size < found.record.size
        {
            self.refuse_attached(name, found.record.id, "it cannot shrink while it is attached")?;
        }
        namespace.resize(name, size, accept_data_loss)?;
        Ok(Reply::Done {})
    }

    fn delete(&self, name: &str) -> Result<Reply> {
        let overview = &self.overview;
        let namespace = overview.cluster.namespace();
        if let Some(found) = namespace.find(name)? {
            self.refuse_attached(name, found.record.id, "it is attached; detach it first")?;
        }
        let marked = match namespace.find(name)? {
            // An earlier request marked it and did not see the end.
            Some(found) if found.record.state == VdiskState::Deleting => found,
            _ => namespace.begin_delete(name)?,
        };
        let deadline = Instant::now() + LET_GO;
        while self.is_served(marked.record.id) {
            if Instant::now() > deadline {
                let reason = "its host engine still holds it; delete it again later".to_owned();
                return Err(Error::Vdisk { name: name.to_owned(), reason });
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        namespace.finish_delete(&marked)?;
        Ok(Reply::Done {})
    }

    fn is_served(&self, id: u64) -> bool {
        let hosts = self.overview.hosts();
        hosts.iter().flat_map(|host| &host.vdisks).any(|vdisk| vdisk.vdisk.id == id)
    }

    /// A host's name.
    fn host_name(&self, host: u32) -> Result<&'static str> {
        let hosts = self.overview.cluster.settings.host_names();
        let found = (host as usize).checked_sub(1).and_then(|index| hosts.get(index));
        found.copied().ok_or_else(|| {
            let reason = format!("there is no such host; there are {}", hosts.join(", "));
            Error::Option { option: "--host", value: host.to_string(), reason }
        })
    }

    /// Has another host serve a vdisk. The one that serves it lets go first, if it answers; else the log fences it, and the
    /// new one waits until it can answer no read any more (C8, C9). A crash in the middle leaves the vdisk with no host:
    /// the request is made again.
    fn move_vdisk(&self, name: &str, host: u32, take_over: bool) -> Result<Reply> {
        let cluster = &self.overview.cluster;
        let to = self.host_name(host)?;
        let refuse = |reason: String| Err(Error::Vdisk { name: name.to_owned(), reason });
        cluster.directory.vhost_socket(host, name)?;
        let namespace = cluster.namespace();
        let Some(found) = namespace.find(name)? else {
            return refuse("there is none of that name".to_owned());
        };
        let id = found.record.id;
        if let Some(from) = found.record.host.filter(|from| *from != host) {
            let views = self.overview.hosts();
            if !views.iter().any(|one| one.host == host) {
                return refuse(format!("{to} does not answer; start it with: cleave restart {to}"));
            }
            let old = views.iter().find(|one| one.host == from);
            let attached = old.is_some_and(|old| {
                old.vdisks.iter().any(|vdisk| vdisk.vdisk.id == id && vdisk.vdisk.attached)
            });
            if attached && !take_over {
                return refuse(format!(
                    "a guest uses it on host-{from}; detach it first, or take it from under the guest with --take-over"
                ));
            }
            if old.is_some() {
                namespace.assign(name, None)?;
                let deadline = Instant::now() + LET_GO;
                while !namespace.is_let_go(id)? && Instant::now() < deadline {
                    std::thread::sleep(LOOK_AGAIN);
                }
            }
        }
        namespace.assign(name, Some(host))?;
        let deadline = Instant::now() + SERVED;
        loop {
            let views = self.overview.hosts();
            let new = views.iter().find(|one| one.host == host);
            let serves = new.is_some_and(|new| {
                let of = |vdisk: &&VdiskStatus| vdisk.vdisk.id == id;
                new.vdisks.iter().find(of).is_some_and(|one| one.state == VdiskServing::Serving)
            });
            if serves {
                return Ok(Reply::Done {});
            }
            if Instant::now() > deadline {
                let seconds = SERVED.as_secs();
                return refuse(format!(
                    "it is {to}'s now, which does not serve it after {seconds} s; look at its log"
                ));
            }
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    fn refuse_attached(&self, name: &str, id: u64, reason: &str) -> Result<()> {
        let hosts = self.overview.hosts();
        let mut vdisks = hosts.iter().flat_map(|host| &host.vdisks);
        if vdisks.any(|vdisk| vdisk.vdisk.id == id && vdisk.vdisk.attached) {
            return Err(Error::Vdisk { name: name.to_owned(), reason: reason.to_owned() });
        }
        Ok(())
    }

    fn restart(&self, name: &str) -> Result<Reply> {
        let children = self.overview.child_names();
        let Some(name) = children.iter().copied().find(|child| *child == name) else {
            return Err(Error::UnknownEngine { name: name.to_owned(), known: children.join(", ") });
        };
        let (answer, answered) = channel();
        self.tell(Event::Restart { name, answer })?;
        answered.recv().unwrap_or_else(|_| Err(stopping()))?;
        Ok(Reply::Done {})
    }

    /// Replaces the program of the hosts' engines, one after the other, while guests wait, and says how long they did.
    fn upgrade(&self, path: Option<PathBuf>) -> Result<Reply> {
        let names = self.overview.cluster.settings.host_names();
        if !self.overview.engines_elsewhere
            && let Some(down) = names.iter().find(|name| self.overview.pid(name).is_none())
        {
            // Before any of them is touched.
            return Err(failed(down, "does not run; restart it".to_owned()));
        }
        let mut upgraded = (String::new(), 0);
        for host in names {
            let (version, stall) = self.upgrade_host(host, path.clone())?;
            upgraded = (version, stall.max(upgraded.1));
        }
        let (version, stall_milliseconds) = upgraded;
        let hosts = names.iter().map(|name| (*name).to_owned()).collect();
        Ok(Reply::Upgraded { hosts, version, stall_milliseconds })
    }

    fn upgrade_host(&self, host: &'static str, path: Option<PathBuf>) -> Result<(String, u64)> {
        let path = match path {
            Some(path) => path,
            None => program(program_of(HOST))?,
        };
        let version = version_of(&path)?;
        let (answer, answered) = channel();
        self.tell(Event::Upgrade { name: host, program: path, answer })?;
        let promoted = answered.recv().unwrap_or_else(|_| Err(stopping()))?;
        let deadline = Instant::now() + SERVED;
        while !self.overview.missing()?.is_empty() {
            if self.overview.pid(host) != Some(promoted.pid) {
                let what = format!("did not go on as {version}; look at its log");
                return Err(failed(host, what));
            }
            if Instant::now() > deadline {
                let seconds = SERVED.as_secs();
                let what = format!("runs {version}, but serves not everything after {seconds} s");
                return Err(failed(host, what));
            }
            std::thread::sleep(STALL_STEP);
        }
        let stall = promoted.since.elapsed();
        if self.overview.pid(host) != Some(promoted.pid) {
            return Err(failed(host, format!("did not go on as {version}; look at its log")));
        }
        self.tell(Event::Proven { name: host, pid: promoted.pid })?;
        let stall_milliseconds = u64::try_from(stall.as_millis()).unwrap_or(u64::MAX);
        Ok((version, stall_milliseconds))
    }

    /// An engine that does not run finds it in its configuration.
    fn set_cpu(&self, insane: Option<bool>, cores: Option<u16>) -> Result<Reply> {
        cpu::keep(&self.overview.cluster.directory, insane, cores)?;
        let answer = self.overview.hosts();
        let mut done = Ok(Reply::Done {});
        for (number, name) in (1..).zip(self.overview.cluster.settings.host_names()) {
            // Somebody else may run it.
            let answers = answer.iter().any(|host| host.host == number);
            if answers || self.overview.pid(name).is_some() {
                let told = self.overview.forward(name, &Request::SetCpu { insane, cores }, CPU);
                done = done.and(told);
            }
        }
        done
    }

    fn add_flash(&self, device: String, size: Option<u64>, host: Option<u32>) -> Result<Reply> {
        let name = self.host_name(host.unwrap_or(HOST_ID))?;
        let directory = &self.overview.cluster.directory;
        let wrong = |reason: &str| Error::Option {
            option: "flash",
            value: device.clone(),
            reason: reason.to_owned(),
        };
        let path = match device.parse() {
            Ok(FlashPlace::Path(path)) => Some(path),
            Ok(_) => None,
            Err(reason) => return Err(wrong(&reason)),
        };
        match (&path, size) {
            (Some(path), Some(size)) => flash::create(path, size)?,
            (Some(path), None) if !path.exists() => {
                return Err(wrong("there is no such file; give its size to make it"));
            }
            (None, Some(_)) => return Err(wrong("only files are made")),
            _ => {}
        }
        let request = Request::AddFlash { device: device.clone(), size: None, host: None };
        let reply = self.overview.forward(name, &request, FLASH)?;
        flash::keep(directory, name, |list| {
            if !list.contains(&device) {
                list.push(device.clone());
            }
        })?;
        Ok(reply)
    }

    fn retire_flash(&self, device: String, host: Option<u32>) -> Result<Reply> {
        let name = self.host_name(host.unwrap_or(HOST_ID))?;
        let request = Request::RetireFlash { device: device.clone(), host: None };
        let reply = self.overview.forward(name, &request, FLASH)?;
        let directory = &self.overview.cluster.directory;
        flash::keep(directory, name, |list| list.retain(|one| *one != device))?;
        Ok(reply)
    }

    /// Has a data node's active controller do something.
    fn ask_active(&self, datanode: u16, request: &Request, limit: Duration) -> Result<Reply> {
        let option = |reason: &str| {
            let (option, value) = ("--datanode", datanode.to_string());
            Err(Error::Option { option, value, reason: reason.to_owned() })
        };
        let controllers = self.overview.status()?.controllers;
        let own: Vec<_> = controllers.iter().filter(|one| one.datanode == datanode).collect();
        if own.is_empty() {
            return option("there is no such data node");
        }
        let Some(active) = own.iter().find(|one| one.role == Role::Active) else {
            return option("none of its controllers is active now; look at cleave status");
        };
        self.overview.forward(&active.process.name, request, limit)
    }

    fn start_empty(&self, datanode: u16, accept_data_loss: bool) -> Result<Reply> {
        let option = |reason: &str| {
            let (option, value) = ("--datanode", datanode.to_string());
            Err(Error::Option { option, value, reason: reason.to_owned() })
        };
        if datanode != DATANODE_ID {
            return option("there is no such data node");
        }
        if !accept_data_loss {
            return Err(Error::NoConsent { what: format!("an empty log of data node {datanode}") });
        }
        let status = self.overview.status()?;
        if status.controllers.iter().any(|one| one.process.state != ProcessState::Running) {
            return option("a controller does not answer, and may hold the log; start it first");
        }
        if status.controllers.iter().any(|one| one.in_sync) {
            return option("a controller holds the log; nothing needs to be given up");
        }
        let store = &self.overview.cluster.store;
        let key = datanode_key(u64::from(datanode));
        let Answer::Value(value) = store.execute(Operation::Get { key: key.clone() })? else {
            unreachable!("a get is answered by a value")
        };
        const NEVER: &str = "it never had a log, so it starts with an empty one by itself";
        let Some(value) = value else { return option(NEVER) };
        let role: LogRole = decode(&value.value).map_err(|error| {
            let reason = error.to_string();
            cleave_coordinator::StoreError::Malformed { key: key.clone(), reason }
        })?;
        if !role.has_log() {
            return option(NEVER);
        }
        // The operator's word (C7) names the epoch that it is about, and is void for any other: a
        // record of that one field, which is encoded as the field.
        let word = encode(&role.epoch);
        let transaction = Transaction::new()
            .require(key, value.revision)
            .put(format!("start-empty/{datanode}"), word);
        match store.execute(Operation::Transact(transaction))? {
            Answer::Transacted(Outcome::Committed(_)) => Ok(Reply::Done {}),
            _ => option("its controllers changed their role meanwhile; try again"),
        }
    }

    fn tell(&self, event: Event) -> Result<()> {
        self.events.send(event).map_err(|_| stopping())
    }
}

/// What a program says it is, if it is a host engine.
fn version_of(path: &Path) -> Result<String> {
    let output = Command::new(path).arg("--version").stdin(Stdio::null()).output();
    let output = output.map_err(file("start", path))?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let wanted = program_of(HOST);
    if output.status.success() && text.split(' ').next() == Some(wanted) {
        return Ok(text);
    }
    let (option, value) = ("--program", path.display().to_string());
    Err(Error::Option { option, value, reason: format!("it is no {wanted}") })
}

fn stopping() -> Error {
    Error::Engine { name: "the cluster".to_owned(), what: "is stopping".to_owned() }
}
