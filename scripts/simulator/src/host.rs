//! The host engine's process: one production core or several, started, crashed and stopped as its shell would.
//!
//! Start: draw an incarnation, take every vdisk by compare-and-swap in the store (C8), open its shares on their cores,
//! serve it. The turn takes the cores' turns (`cores.rs`), hands completions to the guests and takes their requests. What
//! a crash leaves is the guests, the store, and what the controllers hold.

use crate::cores::{Cores, Where};
use crate::guest::Guest;
use crate::journal::Journal;
use crate::kinds::Kind;
use crate::nvme::{Controller, ProcessNvme};
use crate::plan::Plan;
use crate::store::SimStore;
use cleave_coordinator::records::owner_key;
use cleave_coordinator::{
    DirectStore, Outcome, StoreClient, StoreError, VdiskOwner, next_incarnation,
};
use cleave_format::flash::FlashId;
use cleave_format::ids::{Epoch, HostId, Incarnation, VdiskId};
use cleave_format::layout::BLOCK;
use cleave_host_core::{
    CoreStats, Event, HostCore, HostCoreConfig, HostError, KnownStripes, OpenRequest, OwnerBefore,
    Tenure,
};
use cleave_nvme::place::Place;
use cleave_runtime::executor::Priority;
use cleave_runtime::sync::promise;
use cleave_runtime_sim::{Process, SimDrive, World};
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Names of the hosts' processes, by the host's number.
pub const HOSTS: [&str; 9] =
    ["", "host-1", "host-2", "host-3", "host-4", "host-5", "host-6", "host-7", "host-8"];
/// A deleted vdisk's successor has a number so much higher: identities are used once (C3).
const VDISKS_APART: u64 = 10;
/// A request that is larger than the write buffer is taken when that is empty: its bytes, at most.
const REQUEST_MAX: u64 = 1 << 20;
/// What is in flight for a share that is to move may take this long; and between two looks at it.
const DRAIN_LIMIT: Duration = Duration::from_secs(2);
const DRAIN_LOOK: Duration = Duration::from_micros(200);
/// A clean stop gives up waiting after this long.
const CLOSE_LIMIT: Duration = Duration::from_secs(30);

/// An engine whose guests have moved is asked for reads this often, and so many times.
const SPY: Duration = Duration::from_millis(20);
/// See [`SPY`].
const SPY_ROUNDS: u32 = 5_000;

/// Flash behind an NVMe controller may take this long to describe what it holds.
const FLASH_CLOSE_LIMIT: Duration = Duration::from_secs(3);

/// What the hosts' disks remember of the vdisks that they served, by host and vdisk (C9).
#[derive(Default)]
pub struct Tenures(RefCell<BTreeMap<(u32, VdiskId), Tenure>>);

impl Tenures {
    fn remembered(&self, host: u32, vdisk: VdiskId) -> Option<Tenure> {
        self.0.borrow().get(&(host, vdisk)).copied()
    }

    fn remember(&self, host: u32, vdisk: VdiskId, tenure: Option<Tenure>) {
        let mut all = self.0.borrow_mut();
        match tenure {
            Some(tenure) => drop(all.insert((host, vdisk), tenure)),
            None => drop(all.remove(&(host, vdisk))),
        }
    }
}

/// A running host engine.
pub struct HostEngine {
    process: Process,
    store: Rc<DirectStore>,
    client: StoreClient,
    shared: Rc<Shared>,
}

struct Shared {
    plan: Rc<Plan>,
    guests: Rc<Vec<RefCell<Guest>>>,
    journal: Journal,
    tenures: Rc<Tenures>,
    cores: RefCell<Option<Rc<Cores>>>,
    /// Guests whose vdisk is served, one flag each.
    serving: Vec<Cell<bool>>,
    /// Shares that are on their way to another core.
    moving: Cell<usize>,
    closed: Cell<bool>,
    /// Its guests live on another host now.
    abandoned: Cell<bool>,
    number: u32,
    incarnation: Cell<Incarnation>,
    /// Bytes that each core's write buffer had taken when it was last looked at, and its limit then.
    buffered: RefCell<BTreeMap<u16, (u64, u64)>>,
    /// Pending wakes of the turn, so that there is one at a time.
    alarm: Cell<Option<Duration>>,
    /// The NVMe controller of its flash, where that has one.
    nvme: Option<ProcessNvme>,
    /// The core does nothing more: the controller is being told that power may go.
    parting: Cell<bool>,
}

/// Where a host's flash is.
enum FlashDevice {
    Plain(SimDrive),
    Nvme(Place),
}

impl HostEngine {
    /// Starts the process.
    pub fn start(
        world: &World,
        store: &SimStore,
        plan: &Rc<Plan>,
        guests: &Rc<Vec<RefCell<Guest>>>,
        journal: &Journal,
        tenures: &Rc<Tenures>,
        number: u32,
        flash: Option<SimDrive>,
        controller: Option<Rc<Controller>>,
    ) -> HostEngine {
        let process = world.start_process(HOSTS[number as usize]);
        let direct = store.connect(&process);
        let client = StoreClient::new(direct.clone());
        let shared = Rc::new(Shared {
            plan: Rc::clone(plan),
            guests: Rc::clone(guests),
            journal: journal.clone(),
            tenures: Rc::clone(tenures),
            cores: RefCell::new(None),
            moving: Cell::new(0),
            serving: guests.iter().map(|_| Cell::new(false)).collect(),
            closed: Cell::new(false),
            abandoned: Cell::new(false),
            number,
            incarnation: Cell::default(),
            buffered: RefCell::default(),
            alarm: Cell::new(None),
            nvme: controller
                .as_ref()
                .map(|one| ProcessNvme::new(world, &process, journal, vec![Rc::clone(one)])),
            parting: Cell::new(false),
        });
        let flash = match controller {
            Some(controller) => controller.place(0).map(FlashDevice::Nvme),
            None => flash.map(FlashDevice::Plain),
        };
        let starting = start(Rc::clone(&shared), process.clone(), client.clone(), flash);
        process.executor().spawn(Priority::Foreground, starting);
        let (turning, world, own) = (Rc::clone(&shared), world.clone(), process.clone());
        let polled = client.clone();
        process.set_turn(move || {
            let mut any = polled.turn();
            any |= turning.nvme.as_ref().is_some_and(ProcessNvme::turn);
            any |= turning.turn(&world, &own);
            any | turning.nvme.as_ref().is_some_and(ProcessNvme::turn)
        });
        HostEngine { process, store: direct, client, shared }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its connection to the store.
    pub fn store(&self) -> &DirectStore {
        &self.store
    }

    /// Its incarnation, or the default until it has drawn one.
    pub fn incarnation(&self) -> Incarnation {
        self.shared.incarnation.get()
    }

    /// Whether every vdisk is served, and no share is on its way to another core.
    pub fn serves(&self) -> bool {
        self.shared.moving.get() == 0 && self.shared.serving.iter().all(Cell::get)
    }

    /// The cores' figures, once there are any.
    pub fn stats(&self) -> Option<CoreStats> {
        self.cores().map(|cores| cores.stats())
    }

    fn cores(&self) -> Option<Rc<Cores>> {
        self.shared.cores.borrow().clone()
    }

    /// What the core that has a share knows of its stripes.
    pub fn known_stripes(&self, share: VdiskId) -> Option<KnownStripes> {
        self.cores()?.all().iter().find_map(|core| core.known_stripes(share))
    }

    /// Has shares of its vdisks go from core to core, so many times, one after the other.
    pub fn move_shares(&self, times: u64) {
        let (shared, process, client) =
            (Rc::clone(&self.shared), self.process.clone(), self.client.clone());
        shared.moving.set(shared.moving.get() + 1);
        self.process.executor().spawn(Priority::Foreground, async move {
            move_shares(&shared, &process, &client, times).await;
            shared.moving.set(shared.moving.get() - 1);
            process.wake();
        });
        self.process.wake();
    }

    /// Its guests are started elsewhere. Somebody goes on reading from it, for as long as it answers (C9).
    pub fn abandon(&self) {
        self.shared.abandoned.set(true);
        self.shared.serving.iter().for_each(|serving| serving.set(false));
        let (shared, executor) = (Rc::clone(&self.shared), self.process.executor());
        let sleeping = executor.clone();
        executor.spawn(Priority::Foreground, async move {
            for _ in 0..SPY_ROUNDS {
                sleeping.sleep(SPY).await;
                let Some(cores) = shared.cores.borrow().clone() else { continue };
                if cores.stats().reads_held > 0 {
                    shared.journal.reach("looks at reads that are held", 1);
                }
                for guest in shared.guests.iter() {
                    let vdisk = guest.borrow().vdisk();
                    if !cores.serves(vdisk) {
                        continue;
                    }
                    // A core that has lost its share says so.
                    let read = guest.borrow_mut().spy();
                    read.into_iter().for_each(|read| cores.spy(vdisk, read));
                }
            }
        });
        self.process.wake();
    }

    /// Counts what the core did.
    pub fn count(&self) {
        let (Some(stats), journal) = (self.stats(), &self.shared.journal) else { return };
        let figures = [
            ("records mirrored", stats.records_mirrored),
            ("blocks read from the buffer", stats.reads_buffer),
            ("blocks read from flash", stats.reads_flash),
            ("blocks of flash that failed their check", stats.flash_checks_failed),
            ("parts fetched to flash", stats.parts_fetched),
            ("blocks read from the pool", stats.reads_pool),
            ("ranges solved", stats.reads_solved),
            ("failed checks", stats.checks_failed),
            ("stripes committed", stats.stripes_committed),
            ("stripes abandoned", stats.stripes_abandoned),
            ("stripeless commits", stats.stripeless_commits),
            ("map runs", stats.runs),
            ("map pieces", stats.pieces),
            ("stripes left", stats.stripes_left),
            ("blocks deduplicated", stats.deduplicated),
            ("requests given back", stats.refused),
            ("blocks that a late commit did not change", stats.commits_overtaken),
            ("blocks that a replayed record did not change", stats.replays_overtaken),
        ];
        figures.into_iter().for_each(|(what, count)| journal.reach(what, count));
        let flash = self.cores().map(|cores| cores.first().flash().stats());
        let Some(flash) = flash else { return };
        journal.reach("reads of flash whose place was given away", flash.reads_moved);
        journal.reach("zones of flash evicted", flash.zones_evicted);
    }

    /// Closes every vdisk; the guests must have nothing in flight. [`closed`](HostEngine::closed)
    /// tells when it is over.
    pub fn close(&self) {
        let shared = Rc::clone(&self.shared);
        shared.serving.iter().for_each(|serving| serving.set(false));
        let cores = self.cores();
        let executor = self.process.executor();
        self.process.executor().spawn(Priority::Foreground, async move {
            if let Some(cores) = &cores {
                for guest in shared.guests.iter() {
                    let vdisk = guest.borrow().vdisk();
                    for (share, core) in cores.remove(vdisk) {
                        if !core.close(share, CLOSE_LIMIT).await {
                            let stats = core.stats();
                            shared
                                .journal
                                .fail(format!("vdisk {share} was not closed in time: {stats:?}"));
                        }
                    }
                }
            }
            if let (Some(nvme), Some(cores)) = (&shared.nvme, &cores) {
                // As the shell: what is described in time is found again.
                executor.timeout(FLASH_CLOSE_LIMIT, cores.first().flash().close()).await;
                shared.parting.set(true);
                nvme.stop().await;
            }
            shared.closed.set(true);
        });
        self.process.wake();
    }

    /// Deletes a guest's vdisk and gives it a new one (C28); it must have nothing in flight.
    pub fn replace_vdisk(&self, number: usize) {
        let shared = Rc::clone(&self.shared);
        shared.serving[number].set(false);
        let Some(cores) = self.cores() else { return };
        let (process, client) = (self.process.clone(), self.client.clone());
        self.process.executor().spawn(Priority::Foreground, async move {
            let old = shared.guests[number].borrow().vdisk();
            for (share, core) in cores.remove(old) {
                if let Err(error) = core.delete(share).await {
                    return shared.journal.fail(format!("deleting failed: {error}"));
                }
            }
            let new = VdiskId(old.0 + VDISKS_APART);
            shared.journal.note(format!("vdisk {old} is deleted, vdisk {new} takes its place"));
            shared.guests[number].borrow_mut().begin_anew(new);
            let incarnation = shared.incarnation.get();
            serve(&shared, &process, &client, &cores, number, incarnation).await;
        });
        self.process.wake();
    }

    /// Blocks of a guest's vdisk that are not destaged.
    pub fn unreleased(&self, number: usize) -> BTreeSet<u64> {
        let vdisk = self.shared.guests[number].borrow().vdisk();
        let Some(cores) = self.cores() else { return BTreeSet::new() };
        let shares = cores.shares_of(vdisk);
        shares.into_iter().flat_map(|(share, core)| core.unreleased(share)).collect()
    }

    /// Grows a guest's vdisk by so many blocks, at once: its shell tells the guest.
    pub fn grow_vdisk(&self, number: usize, blocks: u64) {
        let shared = &self.shared;
        let Some(cores) = self.cores() else { return };
        let mut guest = shared.guests[number].borrow_mut();
        let size = guest.size() + blocks * BLOCK as u64;
        for (share, core) in cores.shares_of(guest.vdisk()) {
            if let Err(error) = core.resize(share, size) {
                return shared.journal.fail(format!("a vdisk did not grow: {error}"));
            }
        }
        guest.grow(size);
    }

    /// Whether [`close`](HostEngine::close) is over.
    pub fn closed(&self) -> bool {
        self.shared.closed.get()
    }
}

/// The shell's start: incarnation, core, and every vdisk taken and opened.
async fn start(
    shared: Rc<Shared>,
    process: Process,
    client: StoreClient,
    flash: Option<FlashDevice>,
) {
    let incarnation = match next_incarnation(&client).await {
        Ok(number) => Incarnation(number),
        Err(error) => return shared.journal.fail(format!("no incarnation: {error}")),
    };
    let plan = Rc::clone(&shared.plan);
    let cores = plan.cores;
    let config = |core| HostCoreConfig {
        cluster: plan.cluster,
        host: HostId(shared.number),
        incarnation,
        core,
        cores,
        controllers: plan.controllers(),
        write_buffer: plan.write_buffer,
        // What its stripes and reads take, and what small records take beside their bytes.
        memory: (64 << 20) + 2 * plan.write_buffer,
        // Sometimes so little that most is forgotten.
        dedupe: [0, 8 << 10, 1 << 20][plan.seed as usize % 3],
        map: plan.map,
        destage: plan.destage.clone(),
    };
    shared.journal.note(format!("host engine begins incarnation {incarnation}"));
    let cores = Rc::new(Cores::start(&process, (0..cores).map(config), plan.seed));
    *shared.cores.borrow_mut() = Some(Rc::clone(&cores));
    shared.incarnation.set(incarnation);
    if let Some(device) = flash {
        add_flash(&shared, &process, cores.first(), device);
    }
    for number in 0..shared.guests.len() {
        serve(&shared, &process, &client, &cores, number, incarnation).await;
    }
}

/// Gives the engine its flash; without it, or with what is no flash any more, it serves as well.
fn add_flash(shared: &Rc<Shared>, process: &Process, core: &HostCore, device: FlashDevice) {
    let (journal, cluster) = (shared.journal.clone(), shared.plan.cluster);
    let mut id = FlashId([0x5f; 16]);
    id.0[..8].copy_from_slice(&shared.incarnation.get().0.to_le_bytes());
    let (name, opened) = match device {
        FlashDevice::Plain(device) => match process.try_open_drive(&device) {
            Ok(drive) => (device.name().to_owned(), Ok(drive)),
            Err(error) => return journal.note(format!("no flash: {error}")),
        },
        FlashDevice::Nvme(place) => (place.to_string(), Err(place)),
    };
    let (flash, shared) = (core.flash().clone(), Rc::clone(shared));
    process.executor().spawn(Priority::Foreground, async move {
        let drive = match (opened, &shared.nvme) {
            (Ok(drive), _) => Some(drive),
            (Err(place), Some(nvme)) => nvme.open(place).await,
            (Err(_), None) => None,
        };
        let Some(drive) = drive else { return };
        if let Err(error) = flash.open(&name, drive, cluster, id).await {
            journal.note(format!("flash is not used: {error}"));
        }
    });
}

/// Takes a guest's vdisk and opens its shares, under one epoch.
async fn serve(
    shared: &Shared,
    process: &Process,
    client: &StoreClient,
    cores: &Cores,
    number: usize,
    incarnation: Incarnation,
) {
    let (vdisk, size) = {
        let guest = shared.guests[number].borrow();
        (guest.vdisk(), guest.size())
    };
    let (epoch, gone) = match take(client, shared, vdisk, incarnation).await {
        Ok(taken) => taken,
        Err(error) => return shared.journal.fail(format!("vdisk {vdisk} not taken: {error}")),
    };
    let keys = &shared.plan.vdisks[number].keys;
    let all = Where::draw(vdisk, shared.plan.shares, number, shared.plan.cores, epoch);
    let mut opening = Vec::new();
    for (share, core) in all.shares.identities().zip(&all.at) {
        let (vdisk, keys, gone) = (share, keys.clone(), gone.clone());
        let request = OpenRequest { vdisk, size, keys, epoch, gone };
        let (done, opened) = promise();
        let open = cores.all()[*core].open(request);
        process.executor().spawn(Priority::Foreground, async move { done.fulfil(open.await) });
        opening.push(opened);
    }
    for opened in opening {
        let opened: Option<Result<(), HostError>> = opened.wait().await;
        if let Some(Err(error)) = opened {
            return shared.journal.fail(format!("opening failed: {error}"));
        }
    }
    shared.tenures.remember(shared.number, vdisk, Some(Tenure::served(epoch)));
    cores.add(all);
    shared.journal.note(format!("vdisk {vdisk} is served at epoch {epoch}"));
    shared.serving[number].set(true);
    process.wake();
}

/// Moves shares from core to core as the shell does: the next epoch, its requests paused, closed here, opened there.
async fn move_shares(shared: &Shared, process: &Process, client: &StoreClient, times: u64) {
    let Some(cores) = shared.cores.borrow().clone() else { return };
    let random = process.random();
    for _ in 0..times {
        let number = random.below(shared.guests.len() as u64) as usize;
        let (vdisk, size) = {
            let guest = shared.guests[number].borrow();
            (guest.vdisk(), guest.size())
        };
        let share = random.below(u64::from(shared.plan.shares)) as u16;
        let to = random.below(u64::from(shared.plan.cores)) as usize;
        if shared.abandoned.get() || !shared.serving[number].get() || cores.at(vdisk, share) == to {
            continue;
        }
        let incarnation = shared.incarnation.get();
        let epoch = match take(client, shared, vdisk, incarnation).await {
            Ok((epoch, _)) => epoch,
            // It stays.
            Err(_) => continue,
        };
        let gone = vec![cores.epoch(vdisk, share)];
        cores.pause(vdisk, share);
        let executor = process.executor();
        let begun = executor.now();
        while !cores.is_drained(vdisk, share) && executor.now().since(begun) < DRAIN_LIMIT {
            executor.sleep(DRAIN_LOOK).await;
        }
        if !cores.is_drained(vdisk, share) {
            cores.resume(vdisk, share, None);
            shared.journal.reach("shares that stayed on their core", 1);
            continue;
        }
        let (identity, from) = cores.let_go(vdisk, share);
        from.close(identity, DRAIN_LIMIT).await;
        let keys = shared.plan.vdisks[number].keys.clone();
        let request = OpenRequest { vdisk: identity, size, keys, epoch, gone };
        let opened = cores.all()[to].open(request).await;
        match opened {
            Ok(()) => {
                let oldest = cores.opened(vdisk, share, epoch);
                let row = shared.tenures.remembered(shared.number, vdisk);
                let row = row.map(|row| row.since(oldest));
                shared.tenures.remember(shared.number, vdisk, row);
                cores.resume(vdisk, share, Some(to));
            }
            Err(_) if shared.abandoned.get() => return,
            Err(error) => {
                return shared.journal.fail(format!("share {identity} did not move: {error}"));
            }
        }
        let what = format!("share {identity} moves to core {to} at epoch {epoch}");
        shared.journal.fault(Kind::ShareMoved, what);
        process.wake();
        executor.sleep(Duration::from_micros(random.below(20_000))).await;
    }
}

/// C8: the next ownership epoch, by compare-and-swap; and owners before that are gone, as the shell knows it (C9).
async fn take(
    client: &StoreClient,
    shared: &Shared,
    vdisk: VdiskId,
    incarnation: Incarnation,
) -> Result<(Epoch, Vec<Epoch>), StoreError> {
    let key = owner_key(vdisk.0);
    let (host, tenures) = (u64::from(shared.number), &shared.tenures);
    loop {
        let record = client.get_record::<VdiskOwner>(&key).await?;
        let before = record.as_ref().map(|(owner, _)| OwnerBefore {
            epoch: Epoch(owner.epoch),
            own: owner.host == host,
            released: owner.incarnation.is_none(),
        });
        let known = Tenure::before(tenures.remembered(shared.number, vdisk), before);
        let (epoch, revision) = record.map_or((0, 0), |(owner, revision)| (owner.epoch, revision));
        let owner = VdiskOwner { epoch: epoch + 1, host, incarnation: Some(incarnation.0) };
        match client.put_record(&key, revision, &owner).await {
            Ok(Outcome::Committed(_)) => {
                tenures.remember(shared.number, vdisk, known.map(Tenure::taken));
                return Ok((Epoch(owner.epoch), known.map_or_else(Vec::new, Tenure::gone)));
            }
            // An unknown one may have been written: its epoch is then passed over.
            Ok(Outcome::Conflict) | Err(StoreError::Unknown) => {}
            Err(error) => return Err(error),
        }
    }
}

impl Shared {
    fn turn(self: &Rc<Shared>, world: &World, process: &Process) -> bool {
        let Some(cores) = self.cores.borrow().clone() else { return false };
        if self.parting.get() {
            return false;
        }
        self.journal.at(world);
        let mut completions = Vec::new();
        let mut any = cores.turn(&mut completions);
        while let Some(event) = cores.next_event() {
            any = true;
            match event {
                Event::Fenced { vdisk } if self.abandoned.get() => {
                    self.journal.note(format!("the abandoned engine is fenced off vdisk {vdisk}"));
                    self.journal.reach("fenced vdisks", 1);
                }
                Event::LogReplaced { records } => {
                    self.journal.note(format!("{records} records are sent to another log"));
                    self.journal.reach("records sent to another log", records as u64);
                }
                Event::Shortage { reason } => self.journal.note(format!("shortage: {reason}")),
                event => self.journal.fail(format!("the core reports {event:?}")),
            }
        }
        for completion in completions {
            any = true;
            if self.abandoned.get() {
                let token = completion.token;
                if let Some(guest) = self.guests.iter().find(|guest| guest.borrow().owns(token)) {
                    guest.borrow_mut().completed_behind(&completion);
                    continue;
                }
                let asker = self.guests.iter().find(|guest| guest.borrow().has_spied(token));
                let answered = asker.is_some_and(|guest| guest.borrow_mut().spied(completion));
                self.journal.reach("reads answered by a host whose guests moved", answered.into());
                continue;
            }
            match self.guests.iter().find(|guest| guest.borrow().owns(completion.token)) {
                Some(guest) => guest.borrow_mut().complete(completion),
                None => self.journal.fail(format!("a completion of nobody: {completion:?}")),
            }
        }
        let mut alarm: Option<Duration> = None;
        for (guest, serving) in self.guests.iter().zip(&self.serving) {
            if serving.get() {
                let vdisk = guest.borrow().vdisk();
                let mut submit = |request| cores.submit(vdisk, request);
                let (sent, again) = guest.borrow_mut().send(&mut submit, world.now());
                any |= sent;
                alarm = again.into_iter().chain(alarm).min();
            }
        }
        if let Some(at) = alarm {
            self.set_alarm(world, process, at);
        }
        if any {
            cores.all().iter().for_each(|core| self.check_bounds(core));
        }
        any
    }

    /// Rule 8: the write buffer takes no more than it may. What a vdisk brings when it is opened is in the log, and
    /// may be more: then nothing is taken until it is less.
    fn check_bounds(&self, core: &HostCore) {
        let stats = core.stats();
        let now = stats.buffer_bytes + stats.buffer_reserved;
        // Opening may bring any number.
        let opening = self.moving.get() > 0 || !self.serving.iter().all(Cell::get);
        let mut all = self.buffered.borrow_mut();
        let (before, limit) = all.entry(core.number()).or_insert((u64::MAX, 0));
        let before = std::mem::replace(before, if opening { u64::MAX } else { now });
        // A limit that shrank takes nothing back.
        let limit = std::mem::replace(limit, stats.buffer_limit).max(stats.buffer_limit);
        let most = limit.max(REQUEST_MAX).max(before);
        if now > most {
            self.journal.fail(format!("the write buffer takes {now} bytes, {most} at most"));
        }
    }

    /// Sees to it that the turn comes again at `at`.
    fn set_alarm(self: &Rc<Shared>, world: &World, process: &Process, at: Duration) {
        if self.alarm.get().is_some_and(|set| set <= at && set > world.now()) {
            return;
        }
        self.alarm.set(Some(at));
        process.call_later(at.saturating_sub(world.now()), || {});
    }
}
