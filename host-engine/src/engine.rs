//! What the control thread knows: the configuration, the cores, the vdisks of this host.
//!
//! The namespace in the store says which vdisks this host serves. It is listed, then watched from that
//! revision on, so that no change is missed; each vdisk has one task that brings about what is wanted
//! of it. A vdisk is known by its number: one that was deleted and made again under the same name is another one, whose
//! device waits until the first one's socket is gone.

use crate::core::CoreHandle;
use crate::cores::Cores;
use crate::error::HostEngineError;
use crate::flash::{self, HostFlash};
use crate::messages::Report;
use crate::vdisk::{Vdisk, tend};
use cleave_codec::Keys;
use cleave_control::config::HostConfig;
use cleave_control::events::{Events, Kind, News, Subject};
use cleave_control::records::{SHARES_MAX, VDISKS, VdiskRecord, from_value};
use cleave_coordinator::{Changed, StoreClient, StoreError, WatchEvent};
use cleave_format::ids::{Incarnation, VdiskId};
use cleave_runtime::executor::{Executor, Priority};
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Instant;

/// See the module's page.
pub struct Engine {
    /// The configuration.
    pub config: HostConfig,
    /// The control thread's executor.
    pub executor: Executor,
    /// The store.
    pub store: StoreClient,
    /// The cluster's keys, when a key file is configured.
    pub keys: Option<Keys>,
    /// This start of the engine; 0 until it is drawn.
    pub incarnation: Cell<Incarnation>,
    /// The cores, by place; none until they are started.
    pub cores: RefCell<Vec<Rc<CoreHandle>>>,
    /// What is known of them together.
    pub cpu: Cores,
    /// The flash of this host.
    pub flash: HostFlash,
    /// The vdisks of this host, by number.
    pub vdisks: RefCell<BTreeMap<u64, Rc<Vdisk>>>,
    /// The number that each name has.
    names: RefCell<BTreeMap<String, u64>>,
    /// Why the engine cannot go on.
    pub failure: RefCell<Option<HostEngineError>>,
    /// It was told to stop.
    pub stopping: Cell<bool>,
    /// What happened.
    pub events: Events,
    /// When it started.
    pub since: Instant,
}

impl Engine {
    /// An engine without cores and vdisks.
    pub fn new(
        config: HostConfig,
        executor: Executor,
        store: StoreClient,
        keys: Option<Keys>,
        events: Events,
    ) -> Engine {
        Engine {
            config,
            executor,
            store,
            keys,
            incarnation: Cell::default(),
            cores: RefCell::default(),
            cpu: Cores::default(),
            flash: HostFlash::default(),
            vdisks: RefCell::default(),
            names: RefCell::default(),
            failure: RefCell::default(),
            stopping: Cell::new(false),
            events,
            since: Instant::now(),
        }
    }

    /// The engine cannot go on; the first reason counts.
    pub fn fail(&self, error: HostEngineError) {
        self.failure.borrow_mut().get_or_insert(error);
    }

    /// Takes what the cores report. True when there was anything.
    pub fn take_reports(self: &Rc<Engine>) -> bool {
        let cores = self.cores.borrow().clone();
        let count = cores.len();
        let leaving = self.cpu.leaving.borrow().clone();
        let mut any = false;
        for core in cores.into_iter().chain(leaving) {
            any |= core.turn(|report| match report {
                Report::Fenced { vdisk } => {
                    let news = News::new(Kind::Fenced, self.vdisk_subject(vdisk));
                    self.tell(news.because("the log knows a newer owner, or that it was deleted"));
                    if let Some((fenced, share)) = self.share(vdisk) {
                        fenced.fence(&fenced.shares[share]);
                    }
                }
                Report::FlashReady { name } => self.flash.ready(&name, count),
                Report::Happened { news } => self.tell_of_core(*news),
                Report::FlashEvent { name, offset, kind, event } => {
                    let at = self.executor.clock().unix_seconds();
                    let news = News::new(kind, Subject::Flash(name.clone())).because(&event);
                    let place = offset.map(|offset| format!("byte {offset}"));
                    self.events.tell(at, news.at(place.unwrap_or_default()));
                    self.flash.note(at, &name, offset, event);
                }
                Report::FlashRetired { name, reason } => flash::given_up(self, &name, &reason),
                Report::Rejected { reason } => self.fail(HostEngineError::Rejected(reason)),
                Report::Answer { .. } => unreachable!("answers go to those who asked"),
            });
        }
        any
    }

    /// Follows the namespace for as long as the engine runs.
    pub async fn follow(self: Rc<Engine>) -> Result<(), StoreError> {
        loop {
            let listing = self.store.list(VDISKS).await?;
            let mut gone = self.names.borrow().clone();
            for (key, found) in &listing.entries {
                gone.remove(&key[VDISKS.len()..]);
                self.changed(key, Some(&found.value));
            }
            for name in gone.keys() {
                self.changed(&format!("{VDISKS}{name}"), None);
            }
            let watch = self.store.watch(VDISKS, listing.revision + 1);
            while let WatchEvent::Changed(Changed { changes, .. }) = watch.next().await {
                for change in changes {
                    self.changed(&change.key, change.value.as_deref());
                }
            }
            // Changes may be missing: list again.
        }
    }

    /// A vdisk's record is now this one, or none.
    fn changed(self: &Rc<Engine>, key: &str, value: Option<&[u8]>) {
        let name = &key[VDISKS.len()..];
        let record = match value.map(|value| from_value::<VdiskRecord>(key, value)).transpose() {
            Ok(record) => record,
            Err(error) => {
                // It stays as it is: a newer version's record is not a wish to let go.
                tracing::error!("a vdisk's record is passed over: {error}");
                return;
            }
        };
        if let Some(record) = &record
            && !(1..=SHARES_MAX).contains(&record.shares)
        {
            tracing::error!(
                name,
                shares = record.shares,
                "a vdisk's record is passed over: so many shares are not known here"
            );
            return;
        }
        let before = match &record {
            Some(record) => self.names.borrow_mut().insert(name.to_owned(), record.id),
            None => self.names.borrow_mut().remove(name),
        };
        let id = record.as_ref().map(|record| record.id);
        if before.is_some() && before != id {
            self.want(before, None);
        }
        let ours = record.filter(|record| record.host == Some(self.config.id));
        match (id, ours) {
            (Some(id), Some(record)) if !self.vdisks.borrow().contains_key(&id) => {
                self.begin(name, &record);
            }
            (id, ours) => self.want(id, ours),
        }
    }

    fn want(&self, id: Option<u64>, wanted: Option<VdiskRecord>) {
        let vdisk = id.and_then(|id| self.vdisks.borrow().get(&id).cloned());
        if let Some(vdisk) = vdisk {
            vdisk.want(wanted);
        }
    }

    fn begin(self: &Rc<Engine>, name: &str, record: &VdiskRecord) {
        if self.stopping.get() {
            return;
        }
        let vdisk = Rc::new(Vdisk::new(name, record, self.least_loaded(record.shares)));
        self.vdisks.borrow_mut().insert(record.id, Rc::clone(&vdisk));
        self.executor.spawn(Priority::Foreground, tend(Rc::clone(self), vdisk));
    }

    /// Cores for so many shares: each goes to one with the fewest.
    pub fn least_loaded(&self, shares: u16) -> Vec<Rc<CoreHandle>> {
        let vdisks = self.vdisks.borrow();
        let all = vdisks.values().flat_map(|vdisk| &vdisk.shares);
        let mut taken: Vec<u16> = all.map(|share| share.next_core().core).collect();
        let cores = self.cores.borrow();
        let mut next = || {
            let load = |core: &&Rc<CoreHandle>| {
                taken.iter().filter(|number| **number == core.core).count()
            };
            let least = cores.iter().min_by_key(load).expect("an engine has cores before vdisks");
            taken.push(least.core);
            Rc::clone(least)
        };
        (0..shares.max(1)).map(|_| next()).collect()
    }

    /// The vdisk that has a share of this identity, and the number of that.
    pub fn share(&self, identity: VdiskId) -> Option<(Rc<Vdisk>, usize)> {
        let vdisks = self.vdisks.borrow();
        let (_, vdisk) = vdisks.range(..=identity.0).next_back()?;
        let number = vdisk.shares.iter().position(|share| share.identity == identity)?;
        Some((Rc::clone(vdisk), number))
    }

    /// Nothing is left to do for a vdisk; when it is wanted again by now, it begins anew.
    pub fn forget(self: &Rc<Engine>, vdisk: &Vdisk) {
        self.vdisks.borrow_mut().remove(&vdisk.id.0);
        self.cpu.changed.notify();
        let wanted = vdisk.wanted.borrow().clone();
        if let Some(record) = wanted
            && record.state == cleave_control::records::VdiskState::Ready
        {
            self.begin(&vdisk.name, &record);
        }
    }
}
