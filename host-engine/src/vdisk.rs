//! The life of one vdisk on this host: locked, owned, opened, resized, let go, deleted.
//!
//! ```text
//! waiting ─ kernel lock (C25) ─▶ locked ─ compare-and-swap of owner/ID ─▶ owned ─ core: seal, map, replay (C8) ─▶ serving
//!    ▲                                                                                                       │
//!    └──────────────── fenced, refused, failed: again later, with a new epoch ◀──────────────────────────────┘
//! ```
//! While it serves it may move to another core of this engine:
//!
//! ```text
//! serving ─ epoch of the next core in the store ─▶ first core: drained, closed, device detached ─▶ next core: opened (C8)
//! ```
//! The namespace says what is wanted; this task brings it about, one step after another. The lock is held
//! from before the first epoch until nothing of the vdisk runs here any more. An epoch is taken only while the vdisk's
//! record names this host, in one transaction: a host that was slow takes nothing back that another one was given. A crash
//! leaves the owner record as it was: the successor on this host takes the lock, and so knows that nobody runs.

use crate::core::CoreHandle;
use crate::engine::Engine;
use crate::messages::{Answer, OpenError, OpenOrder, Order};
use cleave_control::events::{Kind, News, Subject};
use cleave_control::names::vhost_socket;
use cleave_control::records::{VdiskRecord, VdiskState, from_value, vdisk_key};
use cleave_control::status::VdiskServing;
use cleave_coordinator::encoding::encode;
use cleave_coordinator::records::owner_key;
use cleave_coordinator::{Outcome, StoreError, Transaction, VdiskOwner};
use cleave_format::ids::{Epoch, VdiskId};
use cleave_host_core::{HostError, OwnerBefore, Tenure};
use cleave_process::lock::{KernelLock, holder};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::sync::Signal;
use cleave_vhost_user::DiskConfig;
use cleave_wire::Refusal;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

/// Between two looks at a lock that somebody holds.
const LOCK_AGAIN: Duration = Duration::from_millis(50);
/// Before a vdisk that could not be served is tried again.
const SERVE_AGAIN: Duration = Duration::from_secs(2);
/// Bytes of one discard or write-zeroes, at most: what a core takes at once.
const RANGE_MAX: u64 = cleave_host_core::RANGE_MAX;
/// Bytes of writes that a vdisk may have taken and not written, at least and at most.
const WRITE_BYTES: (u64, u64) = (4 << 20, 32 << 20);

/// A vdisk that this host serves, or is to serve.
pub struct Vdisk {
    /// Its number.
    pub id: VdiskId,
    /// Its name.
    pub name: String,
    /// What is recorded of it; `None`: not for this host any more.
    pub wanted: RefCell<Option<VdiskRecord>>,
    /// The record that was wanted last, for status.
    pub record: RefCell<VdiskRecord>,
    /// Notified when [`wanted`](Vdisk::wanted) changes, or the core let go of it.
    pub changed: Signal,
    /// What it is doing.
    pub serving: Cell<VdiskServing>,
    /// The ownership epoch; 0 while this host does not own it.
    pub epoch: Cell<u64>,
    /// The core that serves it.
    core: RefCell<Rc<CoreHandle>>,
    /// The core to which it is to move; gone once it did, or could not.
    pub target: RefCell<Option<Rc<CoreHandle>>>,
    /// The core said that a newer owner has it.
    pub fenced: Cell<bool>,
    /// It could not be served, and an operator was told.
    failed: Cell<bool>,
}

/// Why a vdisk is not served.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("{0}")]
    Lock(#[from] cleave_process::lock::LockError),
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("it is encrypted, and no key_file is configured")]
    NoKey,
    #[error("{0}")]
    Name(#[from] cleave_control::names::NameError),
    #[error("a newer owner has it")]
    Fenced,
    #[error("its record does not name this host any more")]
    Elsewhere,
}

impl Vdisk {
    /// A vdisk that is to be served by `core`.
    pub fn new(name: &str, record: &VdiskRecord, core: Rc<CoreHandle>) -> Vdisk {
        Vdisk {
            id: VdiskId(record.id),
            name: name.to_owned(),
            wanted: RefCell::new(Some(record.clone())),
            record: RefCell::new(record.clone()),
            changed: Signal::new(),
            serving: Cell::new(VdiskServing::Waiting),
            epoch: Cell::new(0),
            core: RefCell::new(core),
            target: RefCell::default(),
            fenced: Cell::new(false),
            failed: Cell::new(false),
        }
    }

    /// The core that serves it, or is to.
    pub fn core(&self) -> Rc<CoreHandle> {
        Rc::clone(&self.core.borrow())
    }

    /// The core that will serve it once it has moved.
    pub fn next_core(&self) -> Rc<CoreHandle> {
        self.target.borrow().clone().unwrap_or_else(|| self.core())
    }

    /// It is to be served by another core, as soon as that is possible.
    pub fn move_to(&self, core: Rc<CoreHandle>) {
        match self.serving.get() {
            // No core has it: it waits for its lock, or for the next attempt.
            VdiskServing::Waiting | VdiskServing::Failed => drop(self.core.replace(core)),
            VdiskServing::Recovering | VdiskServing::Serving => {
                self.target.replace(Some(core));
                self.changed.notify();
            }
        }
    }

    /// What is recorded has changed.
    pub fn want(&self, wanted: Option<VdiskRecord>) {
        if let Some(record) = &wanted {
            self.record.replace(record.clone());
        }
        self.wanted.replace(wanted);
        self.changed.notify();
    }

    fn is_wanted(&self) -> bool {
        matches!(&*self.wanted.borrow(), Some(record) if record.state == VdiskState::Ready)
    }

    fn is_deleting(&self) -> bool {
        matches!(&*self.wanted.borrow(), Some(record) if record.state == VdiskState::Deleting)
    }

    fn size(&self) -> u64 {
        self.record.borrow().size
    }

    fn lock_path(&self, engine: &Engine) -> PathBuf {
        engine.config.lock_dir.join(format!("vdisk-{}.lock", self.id))
    }

    fn epochs_path(&self, engine: &Engine) -> PathBuf {
        engine.config.lock_dir.join(format!("vdisk-{}.epochs", self.id))
    }

    /// The epochs of this host, as it remembers them.
    fn remembered(&self, engine: &Engine) -> Option<Tenure> {
        let text = std::fs::read_to_string(self.epochs_path(engine)).ok()?;
        Tenure::from_text(&text)
    }

    /// Remembers them, for the next owner here; `None`: nothing can be relied on. Where that fails, or a crash leaves less,
    /// the next owner waits for a lease that nobody has.
    fn remember(&self, engine: &Engine, tenure: Option<Tenure>) {
        let path = self.epochs_path(engine);
        let written = match tenure {
            Some(tenure) => {
                let next = path.with_extension("epochs-next");
                std::fs::write(&next, tenure.to_text()).and_then(|()| std::fs::rename(&next, &path))
            }
            None => std::fs::remove_file(&path),
        };
        match written {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(vdisk = self.name, path = %path.display(), "not remembered: {error}");
                // What it says must not be of other epochs.
                drop(std::fs::remove_file(&path));
            }
            _ => {}
        }
    }

    /// This host took an epoch, and knows that of those before.
    fn took(&self, engine: &Engine, epoch: u64, known: Option<Tenure>) -> (Epoch, Vec<Epoch>) {
        self.remember(engine, known.map(Tenure::taken));
        (Epoch(epoch), known.map_or_else(Vec::new, Tenure::gone))
    }
}

/// Brings about what is wanted of a vdisk, until nothing is any more.
pub async fn tend(engine: Rc<Engine>, vdisk: Rc<Vdisk>) {
    let mut lock = None;
    let mut told = String::new();
    while vdisk.wanted.borrow().is_some() {
        let deleting = vdisk.is_deleting();
        let failure = match step(&engine, &vdisk, &mut lock, deleting).await {
            Ok(true) => break,
            Ok(false) => {
                told.clear();
                continue;
            }
            // Whatever failed did so because of that.
            Err(_) if engine.stopping.get() => return,
            Err(failure) => failure,
        };
        vdisk.serving.set(VdiskServing::Failed);
        // What stays the same is told once.
        let message = failure.to_string();
        if message != told {
            tracing::error!(vdisk = vdisk.name, "not served: {message}");
            let subject = Subject::Vdisk(vdisk.name.clone());
            engine.tell(News::new(Kind::NotServed, subject).because(&message));
            vdisk.failed.set(true);
            told = message;
        }
        let looked_at = vdisk.wanted.borrow().clone();
        let changed = vdisk.changed.until(|| (*vdisk.wanted.borrow() != looked_at).then_some(()));
        engine.executor.timeout(SERVE_AGAIN, changed).await;
    }
    vdisk.target.take();
    engine.forget(&vdisk);
}

/// One time through a vdisk's life. True when nothing is left to do for it.
async fn step(
    engine: &Engine,
    vdisk: &Vdisk,
    lock: &mut Option<KernelLock>,
    deleting: bool,
) -> Result<bool, Failure> {
    if lock.is_none() {
        match take_lock(engine, vdisk).await? {
            Some(taken) => *lock = Some(taken),
            None => return Ok(false),
        }
    }
    let record = vdisk.record.borrow().clone();
    let keys = match record.encrypted {
        true => Some(engine.keys.clone().ok_or(Failure::NoKey)?),
        false => None,
    };
    vdisk.serving.set(VdiskServing::Recovering);
    vdisk.fenced.set(false);
    reached(Point::HostLocked);
    let (epoch, gone) = take_ownership(engine, vdisk).await?;
    reached(Point::HostEpochTaken);
    let order = OpenOrder {
        vdisk: vdisk.id,
        epoch,
        keys,
        gone,
        device: device(engine, vdisk, record.size)?,
        handed: None,
        without_device: deleting,
    };
    if let Some(target) = vdisk.target.take() {
        // Nothing has it yet.
        vdisk.core.replace(target);
        engine.cpu.changed.notify();
    }
    match vdisk.core().ask(Order::Open(Box::new(order))).wait().await {
        Some(Answer::Opened(Err(error)))
            if deleting && is_sealed(&error) && is_owner(engine, vdisk.id, epoch).await? =>
        {
            // Not because of a newer owner: the log has the deletion already, of a process that died before
            // anybody learned of it (C28).
            tracing::info!(vdisk = vdisk.name, "was deleted before");
            return Ok(true);
        }
        Some(Answer::Opened(opened)) => opened?,
        _ => return Err(OpenError::Stopping.into()),
    }
    vdisk.epoch.set(epoch.0);
    vdisk.remember(engine, Some(Tenure::served(epoch)));
    let outcome = match deleting {
        true => Ok(()),
        false => serve(engine, vdisk, record.size).await,
    };
    // It may have moved.
    let epoch = Epoch(vdisk.epoch.get());
    if outcome.is_ok() && vdisk.is_deleting() {
        let deleted = vdisk.core().ask(Order::Delete { vdisk: vdisk.id }).wait().await;
        vdisk.epoch.set(0);
        return match deleted {
            Some(Answer::Deleted(Ok(()))) => {
                reached(Point::HostDeleted);
                vdisk.remember(engine, None);
                tracing::info!(vdisk = vdisk.name, "deleted");
                Ok(true)
            }
            Some(Answer::Deleted(Err(error))) => Err(OpenError::from(error).into()),
            _ => Err(OpenError::Stopping.into()),
        };
    }
    if outcome.is_ok() {
        vdisk.core().ask(Order::Close { vdisk: vdisk.id }).wait().await;
        release(engine, vdisk.id, epoch).await?;
    }
    vdisk.epoch.set(0);
    outcome.map(|()| false)
}

/// Whether the log does not accept this owner.
fn is_sealed(error: &OpenError) -> bool {
    matches!(error, OpenError::Vdisk(HostError::Refused { refusal: Refusal::Sealed, .. }))
}

/// Whether the store has this epoch as the newest one.
async fn is_owner(engine: &Engine, vdisk: VdiskId, epoch: Epoch) -> Result<bool, StoreError> {
    let found = engine.store.get_record::<VdiskOwner>(&owner_key(vdisk.0)).await?;
    Ok(found.is_some_and(|(owner, _)| owner.epoch == epoch.0))
}

/// Serves until something else is wanted.
async fn serve(engine: &Engine, vdisk: &Vdisk, mut size: u64) -> Result<(), Failure> {
    vdisk.serving.set(VdiskServing::Serving);
    let (epoch, core) = (vdisk.epoch.get(), vdisk.core().core);
    tracing::info!(vdisk = vdisk.name, epoch, core, "serving");
    if vdisk.failed.take() {
        engine.tell(News::new(Kind::ServedAgain, Subject::Vdisk(vdisk.name.clone())));
    }
    loop {
        let news = || {
            let over = vdisk.fenced.get() || !vdisk.is_wanted();
            let moves = vdisk.target.borrow().is_some();
            (over || moves || vdisk.size() != size).then_some(())
        };
        vdisk.changed.until(news).await;
        if vdisk.fenced.get() {
            return Err(Failure::Fenced);
        }
        if !vdisk.is_wanted() {
            return Ok(());
        }
        let target = vdisk.target.borrow().clone();
        if let Some(target) = target {
            let moved = change_core(engine, vdisk, &target, size).await;
            vdisk.target.take();
            engine.cpu.changed.notify();
            moved?;
            continue;
        }
        let wanted = vdisk.size();
        let resize = Order::Resize { vdisk: vdisk.id, size: wanted };
        match vdisk.core().ask(resize).wait().await {
            Some(Answer::Resized(Ok(()))) => {
                tracing::info!(vdisk = vdisk.name, from = size, to = wanted, "resized");
            }
            Some(Answer::Resized(Err(reason))) => {
                tracing::error!(
                    vdisk = vdisk.name,
                    from = size,
                    to = wanted,
                    "not resized: {reason}"
                );
            }
            _ => return Ok(()),
        }
        // A size that was refused is not tried again until another one is wanted.
        size = wanted;
    }
}

/// Has another core of this engine serve it; its device goes along. When the first core cannot let go of it in time, it
/// stays there.
async fn change_core(
    engine: &Engine,
    vdisk: &Vdisk,
    target: &Rc<CoreHandle>,
    size: u64,
) -> Result<(), Failure> {
    let from = vdisk.core();
    if from.core == target.core {
        return Ok(());
    }
    let record = vdisk.record.borrow().clone();
    let device = device(engine, vdisk, size)?;
    // Before the first core lets go, so that nothing but the log is needed then. Until the log is sealed under it, the
    // first core serves under the epoch before.
    let (epoch, gone) = match take_ownership(engine, vdisk).await {
        Ok(taken) => taken,
        Err(error) => {
            tracing::warn!(vdisk = vdisk.name, "stays on its core: {error}");
            return Ok(());
        }
    };
    // That is what there is to release.
    vdisk.epoch.set(epoch.0);
    let since = engine.executor.now();
    let handed = match from.ask(Order::Hand { vdisk: vdisk.id }).wait().await {
        Some(Answer::Handed(Ok(handed))) => handed,
        Some(Answer::Handed(Err(reason))) => {
            tracing::info!(vdisk = vdisk.name, core = from.core, "stays on its core: {reason}");
            return Ok(());
        }
        _ => return Err(OpenError::Stopping.into()),
    };
    vdisk.core.replace(Rc::clone(target));
    let keys = if record.encrypted { engine.keys.clone() } else { None };
    let order =
        OpenOrder { vdisk: vdisk.id, epoch, keys, gone, device, handed, without_device: false };
    match target.ask(Order::Open(Box::new(order))).wait().await {
        Some(Answer::Opened(opened)) => opened?,
        _ => return Err(OpenError::Stopping.into()),
    }
    vdisk.remember(engine, Some(Tenure::served(epoch)));
    let took = engine.executor.now().since(since);
    engine.cpu.moves.set(engine.cpu.moves.get() + 1);
    let (from, to) = (from.core, target.core);
    tracing::info!(vdisk = vdisk.name, epoch = epoch.0, from, to, ?took, "serving on another core");
    Ok(())
}

/// The lock, or `None` when the vdisk is not wanted any more (C25).
async fn take_lock(engine: &Engine, vdisk: &Vdisk) -> Result<Option<KernelLock>, Failure> {
    let path = vdisk.lock_path(engine);
    let mut told = false;
    while vdisk.wanted.borrow().is_some() {
        if let Some(lock) = KernelLock::try_take(&path)? {
            return Ok(Some(lock));
        }
        vdisk.serving.set(VdiskServing::Waiting);
        if !std::mem::replace(&mut told, true) {
            let process = holder(&path);
            tracing::info!(vdisk = vdisk.name, process, "waiting for the process that serves it");
            let news = News::new(Kind::LockWaits, Subject::Vdisk(vdisk.name.clone()));
            engine.tell(news.because(format!("process {process} has its lock")));
        }
        engine.executor.sleep(LOCK_AGAIN).await;
    }
    Ok(None)
}

/// The revision of the vdisk's record while it names this host.
async fn named_here(engine: &Engine, vdisk: &Vdisk) -> Result<u64, Failure> {
    let key = vdisk_key(&vdisk.name);
    let found = engine.store.get(&key).await?.ok_or(Failure::Elsewhere)?;
    let record: VdiskRecord = from_value(&key, &found.value)
        .map_err(|error| StoreError::Malformed { key, reason: error.to_string() })?;
    let here = record.id == vdisk.id.0 && record.host == Some(engine.config.id);
    here.then_some(found.revision).ok_or(Failure::Elsewhere)
}

/// A new ownership epoch, and owners before that are known to be gone; the lock is held.
async fn take_ownership(engine: &Engine, vdisk: &Vdisk) -> Result<(Epoch, Vec<Epoch>), Failure> {
    let key = owner_key(vdisk.id.0);
    let host = u64::from(engine.config.id);
    let incarnation = engine.incarnation.get().0;
    let mut tried = None;
    loop {
        let found = engine.store.get_record::<VdiskOwner>(&key).await?;
        let (before, revision) = match found {
            Some((before, revision)) => (Some(before), revision),
            None => (None, 0),
        };
        // An attempt whose fate was open did succeed.
        if let (Some((owner, known)), Some(before)) = (&tried, &before)
            && owner == before
        {
            return Ok(vdisk.took(engine, before.epoch, *known));
        }
        let named = named_here(engine, vdisk).await?;
        let owner_before = before.as_ref().map(|before| OwnerBefore {
            epoch: Epoch(before.epoch),
            own: before.host == host,
            released: before.incarnation.is_none(),
        });
        let known = Tenure::before(vdisk.remembered(engine), owner_before);
        let epoch = before.map_or(0, |before| before.epoch) + 1;
        let owner = VdiskOwner { epoch, host, incarnation: Some(incarnation) };
        let taking = Transaction::new()
            .require(vdisk_key(&vdisk.name), named)
            .require(key.clone(), revision)
            .put(key.clone(), encode(&owner));
        match engine.store.transact(taking).await {
            Ok(Outcome::Committed(_)) => return Ok(vdisk.took(engine, epoch, known)),
            Ok(Outcome::Conflict) => tried = None,
            Err(StoreError::Unknown) => tried = Some((owner, known)),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Says that nobody runs under this epoch any more.
pub async fn release(engine: &Engine, vdisk: VdiskId, epoch: Epoch) -> Result<(), StoreError> {
    let key = owner_key(vdisk.0);
    let Some((owner, revision)) = engine.store.get_record::<VdiskOwner>(&key).await? else {
        return Ok(());
    };
    if owner.epoch == epoch.0 {
        let released = VdiskOwner { incarnation: None, ..owner };
        // Whoever else changed it does not need this any more.
        engine.store.put_record(&key, revision, &released).await?;
    }
    Ok(())
}

fn device(engine: &Engine, vdisk: &Vdisk, size: u64) -> Result<DiskConfig, Failure> {
    let config = &engine.config;
    let socket = vhost_socket(&config.vhost_dir, &vdisk.name)?;
    let (least, most) = WRITE_BYTES;
    Ok(DiskConfig {
        group: config.vhost_group.clone(),
        serial: format!("cleave-{}", vdisk.id),
        discard_max: RANGE_MAX,
        write_zeroes_max: RANGE_MAX,
        write_bytes_max: (config.write_buffer / 4).clamp(least, most),
        ..DiskConfig::new(vdisk.name.clone(), socket, size)
    })
}

#[cfg(test)]
mod tests;
