//! The life of one vdisk on this host: locked, owned, opened, resized, let go, deleted.
//!
//! ```text
//! waiting ─ kernel lock (C25) ─▶ locked ─ compare-and-swap of owner/ID ─▶ owned ─ core: seal, map, replay (C8) ─▶ serving
//!    ▲                                                                                                       │
//!    └──────────────── fenced, refused, failed: again later, with a new epoch ◀──────────────────────────────┘
//! ```
//! It consists of shares, each on a core of this engine (`cleave_host_core::shares`); the first one with the device. One
//! compare-and-swap takes the epoch for all of them, each is sealed and opened by its core, the first one last, so that
//! nothing is served before all are open. While it serves a share may move to another core:
//!
//! ```text
//! serving ─ epoch of the next core in the store ─▶ first core: drained, closed, device detached ─▶ next core: opened (C8)
//! ```
//! A share that is not the first goes without the device, whose core has its requests wait meanwhile; the others go on,
//! each under the epoch under which it was opened. The store has the newest of them.
//!
//! The namespace says what is wanted; this task brings it about, one step after another. The lock is held
//! from before the first epoch until nothing of the vdisk runs here any more. An epoch is taken only while the vdisk's
//! record names this host, in one transaction: a host that was slow takes nothing back that another one was given. A crash
//! leaves the owner record as it was: the successor on this host takes the lock, and so knows that nobody runs.

mod moves;

use crate::core::CoreHandle;
use crate::engine::Engine;
use crate::messages::{Answer, OpenError, OpenOrder, Order};
use cleave_codec::Keys;
use cleave_control::events::{Kind, News, Subject};
use cleave_control::names::vhost_socket;
use cleave_control::records::{VdiskRecord, VdiskState, from_value, vdisk_key};
use cleave_control::status::VdiskServing;
use cleave_coordinator::encoding::encode;
use cleave_coordinator::records::owner_key;
use cleave_coordinator::{Outcome, StoreError, Transaction, VdiskOwner};
use cleave_format::ids::{Epoch, VdiskId};
use cleave_host_core::front::{Place, ShareEnd, link};
use cleave_host_core::shares::Shares;
use cleave_host_core::{HostError, OwnerBefore, Tenure};
use cleave_process::lock::{KernelLock, holder};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::sync::Signal;
use cleave_vhost_user::DiskConfig;
use cleave_wire::Refusal;
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
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
    /// Its shares, in order.
    pub shares: Vec<Share>,
    /// A core said that a newer owner has a share.
    pub fenced: Cell<bool>,
    /// It could not be served, and an operator was told.
    failed: Cell<bool>,
}

/// A share of a vdisk.
pub struct Share {
    /// Its identity in the log.
    pub identity: VdiskId,
    /// Its number.
    number: u16,
    /// The core that has it, or is to.
    core: RefCell<Rc<CoreHandle>>,
    /// The core to which it is to move; gone once it did, or could not.
    pub target: RefCell<Option<Rc<CoreHandle>>>,
    /// It is open on its core.
    open: Cell<bool>,
    /// The epoch under which it was opened last.
    epoch: Cell<Epoch>,
}

impl Share {
    /// The core that has it, or is to.
    pub fn core(&self) -> Rc<CoreHandle> {
        Rc::clone(&self.core.borrow())
    }

    /// The core that will have it once it has moved.
    pub fn next_core(&self) -> Rc<CoreHandle> {
        self.target.borrow().clone().unwrap_or_else(|| self.core())
    }
}

/// Where a share is for a device's core, and, if that is another one, what it gets from there.
fn route(home: &CoreHandle, share: &CoreHandle) -> (Place, Option<ShareEnd>) {
    if home.core == share.core {
        return (Place::Here, None);
    }
    let (ours, theirs) = link(Arc::clone(&home.doorbell), Arc::clone(&share.doorbell));
    (Place::There(ours), Some(theirs))
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
    /// A vdisk whose shares are to be served by these cores, one for each.
    pub fn new(name: &str, record: &VdiskRecord, cores: Vec<Rc<CoreHandle>>) -> Vdisk {
        let shares = Shares::new(VdiskId(record.id), cores.len() as u16);
        let share = |(number, core)| Share {
            identity: shares.identity(number),
            number,
            core: RefCell::new(core),
            target: RefCell::default(),
            open: Cell::new(false),
            epoch: Cell::new(Epoch(0)),
        };
        Vdisk {
            shares: (0..).zip(cores).map(share).collect(),
            id: VdiskId(record.id),
            name: name.to_owned(),
            wanted: RefCell::new(Some(record.clone())),
            record: RefCell::new(record.clone()),
            changed: Signal::new(),
            serving: Cell::new(VdiskServing::Waiting),
            epoch: Cell::new(0),
            fenced: Cell::new(false),
            failed: Cell::new(false),
        }
    }

    /// The core that has its device and its first share, or is to.
    pub fn core(&self) -> Rc<CoreHandle> {
        self.shares[0].core()
    }

    /// A share is to be served by another core, as soon as that is possible.
    pub fn move_share(&self, share: &Share, core: Rc<CoreHandle>) {
        match self.serving.get() {
            // No core has it: it waits for its lock, or for the next attempt.
            VdiskServing::Waiting | VdiskServing::Failed => drop(share.core.replace(core)),
            VdiskServing::Recovering | VdiskServing::Serving => {
                share.target.replace(Some(core));
                self.changed.notify();
            }
        }
    }

    /// A core let go of a share, because a newer owner has it.
    pub fn fence(&self, share: &Share) {
        share.open.set(false);
        self.fenced.set(true);
        self.changed.notify();
    }

    /// Which part of it belongs to which share.
    fn layout(&self) -> Shares {
        Shares::new(self.id, self.shares.len() as u16)
    }

    fn moving(&self) -> Option<&Share> {
        self.shares.iter().find(|share| share.target.borrow().is_some())
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

    /// Remembers that it is served: its newest epoch, or the row of them since the oldest of a share, if that is unbroken.
    fn remember_served(&self, engine: &Engine) {
        let open = self.shares.iter().filter(|share| share.open.get());
        let newest = Epoch(self.epoch.get());
        let oldest = open.map(|share| share.epoch.get()).min().unwrap_or(newest);
        let row = match oldest == newest {
            true => Some(Tenure::served(newest)),
            false => self.remembered(engine).map(|row| row.since(oldest)),
        };
        self.remember(engine, row);
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
    for share in &vdisk.shares {
        share.target.take();
    }
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
    for share in &vdisk.shares {
        if let Some(target) = share.target.take() {
            // Nothing has it yet.
            share.core.replace(target);
            engine.cpu.changed.notify();
        }
    }
    let opening = Opening { epoch, gone, keys, size: record.size };
    let opened = open(engine, vdisk, &opening, deleting).await;
    let outcome = match opened {
        Ok(true) => {
            vdisk.epoch.set(epoch.0);
            vdisk.remember_served(engine);
            match deleting {
                true => Ok(()),
                false => serve(engine, vdisk, record.size).await,
            }
        }
        Ok(false) => {
            // Not because of a newer owner: the log has the deletion already, of a process that died before
            // anybody learned of it (C28).
            tracing::info!(vdisk = vdisk.name, "was deleted before");
            return Ok(true);
        }
        Err(failure) => Err(failure),
    };
    // A share may have moved.
    let epoch = Epoch(vdisk.epoch.get());
    if outcome.is_ok() && vdisk.is_deleting() {
        let deleted = delete(vdisk).await;
        vdisk.epoch.set(0);
        if deleted.is_err() {
            close(vdisk).await;
        }
        deleted?;
        reached(Point::HostDeleted);
        vdisk.remember(engine, None);
        tracing::info!(vdisk = vdisk.name, "deleted");
        return Ok(true);
    }
    close(vdisk).await;
    if outcome.is_ok() {
        release(engine, vdisk.id, epoch).await?;
    }
    vdisk.epoch.set(0);
    outcome.map(|()| false)
}

/// What a share is opened with.
struct Opening {
    epoch: Epoch,
    gone: Vec<Epoch>,
    keys: Option<Keys>,
    size: u64,
}

impl Opening {
    /// The order to open a share that is not the first.
    fn order(
        &self,
        engine: &Engine,
        vdisk: &Vdisk,
        share: &Share,
        carry: Option<ShareEnd>,
    ) -> Result<OpenOrder, Failure> {
        Ok(OpenOrder {
            vdisk: share.identity,
            epoch: self.epoch,
            keys: self.keys.clone(),
            gone: self.gone.clone(),
            device: device(engine, vdisk, self.size)?,
            handed: None,
            without_device: true,
            shares: vdisk.layout(),
            places: Vec::new(),
            carry,
        })
    }
}

/// Opens all shares: the first one last, with the device. False when it is to be deleted, and the log says of each share
/// that it was. When it fails, those that are open stay so.
async fn open(
    engine: &Engine,
    vdisk: &Vdisk,
    opening: &Opening,
    deleting: bool,
) -> Result<bool, Failure> {
    let home = vdisk.core();
    let (mut places, mut asked) = (vec![Place::Here], Vec::new());
    for share in &vdisk.shares[1..] {
        let (place, carry) = route(&home, &share.core());
        places.push(place);
        let order = opening.order(engine, vdisk, share, carry)?;
        asked.push((share, share.core().ask(Order::Open(Box::new(order)))));
    }
    let mut failure = None;
    for (share, asked) in asked {
        let answer = asked.wait().await;
        if let Err(failed) = opened(engine, vdisk, share, opening.epoch, answer, deleting).await {
            failure.get_or_insert(failed);
        }
    }
    if let Some(failure) = failure {
        return Err(failure);
    }
    let first = &vdisk.shares[0];
    let mut order = opening.order(engine, vdisk, first, None)?;
    order.without_device = deleting;
    order.places = places;
    let answer = home.ask(Order::Open(Box::new(order))).wait().await;
    opened(engine, vdisk, first, opening.epoch, answer, deleting).await?;
    Ok(vdisk.shares.iter().any(|share| share.open.get()))
}

/// Takes the answer to an order to open a share.
async fn opened(
    engine: &Engine,
    vdisk: &Vdisk,
    share: &Share,
    epoch: Epoch,
    answer: Option<Answer>,
    deleting: bool,
) -> Result<(), Failure> {
    match answer {
        Some(Answer::Opened(Err(error)))
            if deleting && is_sealed(&error) && is_owner(engine, vdisk.id, epoch).await? =>
        {
            Ok(())
        }
        Some(Answer::Opened(opened)) => {
            opened?;
            share.open.set(true);
            share.epoch.set(epoch);
            Ok(())
        }
        _ => Err(OpenError::Stopping.into()),
    }
}

/// Ends every share that is open (C28).
async fn delete(vdisk: &Vdisk) -> Result<(), Failure> {
    for share in vdisk.shares.iter().filter(|share| share.open.get()) {
        let deleted = share.core().ask(Order::Delete { vdisk: share.identity }).wait().await;
        // Whatever came of it, the core has let go.
        share.open.set(false);
        match deleted {
            Some(Answer::Deleted(deleted)) => deleted.map_err(OpenError::from)?,
            _ => return Err(OpenError::Stopping.into()),
        }
    }
    Ok(())
}

/// Closes every share that is open, once what the device gave is done.
async fn close(vdisk: &Vdisk) {
    let (first, others) = vdisk.shares.split_first().expect("a vdisk has a share");
    if first.open.get() && !others.is_empty() {
        first.core().ask(Order::Quiet { vdisk: vdisk.id }).wait().await;
    }
    let open = std::iter::once(first).chain(others).filter(|share| share.open.replace(false));
    let asked: Vec<_> =
        open.map(|share| share.core().ask(Order::Close { vdisk: share.identity })).collect();
    for asked in asked {
        asked.wait().await;
    }
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
            let moves = vdisk.moving().is_some();
            (over || moves || vdisk.size() != size).then_some(())
        };
        vdisk.changed.until(news).await;
        if vdisk.fenced.get() {
            return Err(Failure::Fenced);
        }
        if !vdisk.is_wanted() {
            return Ok(());
        }
        if let Some(share) = vdisk.moving() {
            let target = share.next_core();
            let moved = moves::change_core(engine, vdisk, share, &target, size).await;
            share.target.take();
            engine.cpu.changed.notify();
            moved?;
            continue;
        }
        let wanted = vdisk.size();
        match resize(vdisk, wanted).await {
            Some(Ok(())) => {
                tracing::info!(vdisk = vdisk.name, from = size, to = wanted, "resized");
            }
            Some(Err(reason)) => {
                tracing::error!(
                    vdisk = vdisk.name,
                    from = size,
                    to = wanted,
                    "not resized: {reason}"
                );
            }
            None => return Ok(()),
        }
        // A size that was refused is not tried again until another one is wanted.
        size = wanted;
    }
}

/// Has all shares grow, the first one, with the device, last. `None`: a core ends.
async fn resize(vdisk: &Vdisk, size: u64) -> Option<Result<(), String>> {
    for share in vdisk.shares.iter().rev() {
        let order = Order::Resize { vdisk: share.identity, size };
        match share.core().ask(order).wait().await {
            Some(Answer::Resized(Ok(()))) => {}
            Some(Answer::Resized(Err(reason))) => return Some(Err(reason)),
            _ => return None,
        }
    }
    Some(Ok(()))
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
