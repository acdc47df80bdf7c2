//! The host engine's process, and the guest's requests to it.
//!
//! Requests are taken one batch at a time; what a batch changed counts as acknowledged when the engine says so.

use super::guest::{BLOCK, BLOCKS, Version};
use super::{CLUSTER, CONTROLLERS, Rig, address, content};
use cleave_coordinator::records::{Counter, counter_key, owner_key};
use cleave_coordinator::{
    DirectStore, Outcome, StoreClient, StoreError, VdiskOwner, next_incarnation,
};
use cleave_format::ids::{Epoch, HostId, Incarnation, VdiskId};
use cleave_host_core::{
    CoreStats, DestageConfig, Event, GuestCompletion, GuestError, GuestRequest, HostCore,
    HostCoreConfig, OpenRequest, Operation,
};
use cleave_runtime::executor::Priority;
use cleave_runtime_sim::Process;
use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

const HOST: u32 = 1;
/// Blocks of one request.
const BATCH: u64 = 16;

/// A running host engine.
pub struct Host {
    process: Process,
    store: Rc<DirectStore>,
    shared: Rc<Shared>,
}

struct Shared {
    core: RefCell<Option<HostCore>>,
    vdisk: Cell<VdiskId>,
    serves: Cell<bool>,
    completions: RefCell<Vec<GuestCompletion>>,
    open_problem: RefCell<Option<String>>,
    failure: RefCell<Option<String>>,
    deleted: Cell<bool>,
    /// The operator ordered an empty log.
    may_replace: Cell<bool>,
}

impl Host {
    /// Starts the process.
    pub fn start(rig: &Rig) -> Host {
        let process = rig.world.start_process("host-1");
        let store = rig.connect(&process);
        let client = StoreClient::new(store.clone());
        let shared = Rc::new(Shared {
            core: RefCell::default(),
            vdisk: Cell::new(rig.guest.vdisk()),
            serves: Cell::default(),
            completions: RefCell::default(),
            open_problem: RefCell::default(),
            failure: RefCell::default(),
            deleted: Cell::default(),
            may_replace: Cell::default(),
        });
        let starting = start(Rc::clone(&shared), process.clone(), client.clone());
        process.executor().spawn(Priority::Foreground, starting);
        let turning = Rc::clone(&shared);
        process.set_turn(move || client.turn() | turning.turn());
        Host { process, store, shared }
    }

    /// The process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Its connection to the store.
    pub fn store(&self) -> &Rc<DirectStore> {
        &self.store
    }

    /// Whether the vdisk is served.
    pub fn serves(&self) -> bool {
        self.shared.serves.get()
    }

    /// Why the vdisk was not opened.
    pub fn open_problem(&self) -> Option<String> {
        self.shared.open_problem.borrow().clone()
    }

    /// What should not have happened.
    pub fn failure(&self) -> Option<String> {
        self.shared.failure.borrow().clone()
    }

    /// The core's figures.
    pub fn stats(&self) -> Option<CoreStats> {
        self.shared.core.borrow().as_ref().map(HostCore::stats)
    }

    /// Records in its write buffer.
    pub fn records(&self) -> Option<u64> {
        self.stats().map(|stats| stats.buffer_records)
    }

    /// In words.
    pub fn describe(&self) -> String {
        format!("serves {}, {:?}", self.serves(), self.stats())
    }

    fn submit(&self, token: u64, operation: Operation) {
        let request = GuestRequest { token, vdisk: self.shared.vdisk.get(), operation };
        self.try_submit(request).expect("the write buffer has room for a few blocks");
    }

    /// Gives the request back when the write buffer has no room.
    fn try_submit(&self, request: GuestRequest) -> Result<(), GuestRequest> {
        let core = self.shared.core.borrow().clone().expect("it serves");
        let taken = core.submit(request);
        self.process.wake();
        taken
    }

    /// Completed requests of those that were asked for.
    fn completed(&self) -> usize {
        self.shared.completions.borrow().len()
    }

    fn take(&self) -> Vec<GuestCompletion> {
        std::mem::take(&mut self.shared.completions.borrow_mut())
    }

    /// The log may be another one from now on.
    pub fn allow_another_log(&self) {
        self.shared.may_replace.set(true);
    }

    /// Deletes the vdisk.
    fn delete(&self) {
        let shared = Rc::clone(&self.shared);
        shared.serves.set(false);
        let core = shared.core.borrow().clone().expect("it serves");
        self.process.executor().spawn(Priority::Foreground, async move {
            match core.delete(shared.vdisk.get()).await {
                Ok(()) => shared.deleted.set(true),
                Err(error) => {
                    *shared.failure.borrow_mut() = Some(format!("deleting failed: {error}"));
                }
            }
        });
        self.process.wake();
    }
}

impl Shared {
    fn turn(&self) -> bool {
        let Some(core) = self.core.borrow().clone() else { return false };
        let any = core.turn();
        core.completions(&mut self.completions.borrow_mut());
        while let Some(event) = core.next_event() {
            match event {
                // A pool that is short while drives are away is told, and gets over it.
                Event::Shortage { .. } => {}
                Event::LogReplaced { .. } if self.may_replace.get() => {}
                event => {
                    *self.failure.borrow_mut() = Some(format!("the host core reports {event:?}"));
                }
            }
        }
        any
    }
}

/// The shell's start: an incarnation, the vdisk taken by compare-and-swap (C8), opened, served.
async fn start(shared: Rc<Shared>, process: Process, client: StoreClient) {
    if let Err(error) = serve(&shared, &process, &client).await {
        *shared.open_problem.borrow_mut() = Some(error);
    }
    process.wake();
}

async fn serve(shared: &Shared, process: &Process, client: &StoreClient) -> Result<(), String> {
    let incarnation = next_incarnation(client).await.map_err(|error| error.to_string())?;
    let config = HostCoreConfig {
        cluster: CLUSTER,
        host: HostId(HOST),
        incarnation: Incarnation(incarnation),
        core: 0,
        cores: 1,
        controllers: CONTROLLERS.iter().map(|name| address(name)).collect(),
        write_buffer: 4 << 20,
        memory: 64 << 20,
        dedupe: 1 << 20,
        map: 16 << 20,
        destage: DestageConfig {
            fill_percent: 5,
            full_after: Duration::from_millis(1),
            age_after: Duration::from_millis(20),
            run_after: 2,
            run_always: 4,
            ..DestageConfig::default()
        },
    };
    let core = HostCore::new(process.links(), process.executor(), process.random(), config);
    *shared.core.borrow_mut() = Some(core.clone());
    let vdisk = shared.vdisk.get();
    let epoch = take(client, vdisk, incarnation).await.map_err(|error| error.to_string())?;
    let grown = client.get_record::<Counter>(&size_key()).await.map_err(|e| e.to_string())?;
    let blocks = grown.map_or(BLOCKS, |(grown, _)| grown.newest);
    let size = blocks * BLOCK as u64;
    let request =
        OpenRequest { vdisk, size, keys: None, epoch, gone: (0..epoch.0).map(Epoch).collect() };
    core.open(request).await.map_err(|error| error.to_string())?;
    shared.serves.set(true);
    Ok(())
}

async fn take(client: &StoreClient, vdisk: VdiskId, incarnation: u64) -> Result<Epoch, StoreError> {
    let key = owner_key(vdisk.0);
    loop {
        let record = client.get_record::<VdiskOwner>(&key).await?;
        let (epoch, revision) = record.map_or((0, 0), |(owner, revision)| (owner.epoch, revision));
        let (epoch, host) = (epoch + 1, u64::from(HOST));
        let owner = VdiskOwner { epoch, host, incarnation: Some(incarnation) };
        match client.put_record(&key, revision, &owner).await {
            Ok(Outcome::Committed(_)) => return Ok(Epoch(owner.epoch)),
            Ok(Outcome::Conflict) | Err(StoreError::Unknown) => {}
            Err(error) => return Err(error),
        }
    }
}

/// The record of the disk's blocks, once they are not those of the beginning.
fn size_key() -> String {
    counter_key("blocks of the disk")
}

/// The guest's requests.
impl Rig {
    /// Writes blocks, each with new content; every one of them is acknowledged when this returns.
    pub fn write(&mut self, blocks: impl IntoIterator<Item = u64>) {
        self.change(blocks, false);
    }

    /// Makes blocks zeros.
    pub fn write_zeroes(&mut self, blocks: impl IntoIterator<Item = u64>) {
        self.change(blocks, true);
    }

    fn change(&mut self, blocks: impl IntoIterator<Item = u64>, zero: bool) {
        let mut begun: BTreeMap<u64, (u64, Version)> = BTreeMap::new();
        for (token, block) in (1..).zip(blocks) {
            let version = self.guest.begin(block, zero);
            begun.insert(token, (block, version));
            let offset = block * BLOCK as u64;
            let operation = match zero {
                true => Operation::WriteZeroes { offset, length: BLOCK as u64, unmap: true },
                false => Operation::Write { offset, data: content(block, version) },
            };
            let request = GuestRequest { token, vdisk: self.host().shared.vdisk.get(), operation };
            self.submit_when_there_is_room(request);
        }
        let count = begun.len();
        self.until("writes are acknowledged", |rig| rig.host().completed() == count);
        for completion in self.host().take() {
            assert_eq!(completion.result, Ok(()), "a write");
            let (block, version) = begun[&completion.token];
            self.guest.acknowledge(block, version);
        }
    }

    /// As a front end does: keeps the request, and tries again.
    fn submit_when_there_is_room(&mut self, mut request: GuestRequest) {
        let end = self.world.now() + super::LIMIT;
        while let Err(refused) = self.host().try_submit(request) {
            assert!(self.world.now() < end, "the write buffer gets no room; {}", self.standing());
            request = refused;
            self.pass(Duration::from_millis(1));
        }
    }

    /// Writes blocks, and waits until a stripe with their content is committed and nothing moves any more.
    pub fn destage(&mut self, blocks: impl IntoIterator<Item = u64>) {
        let committed = |rig: &Rig| rig.host().stats().map_or(0, |stats| stats.stripes_committed);
        let before = committed(self);
        self.write(blocks);
        self.until("a stripe is committed", |rig| committed(rig) > before);
        self.settle();
    }

    /// Reads the whole disk. Blocks that gave an error.
    ///
    /// # Panics
    /// When a block's content is none that it may have: wrong data.
    pub fn read(&mut self) -> Vec<(u64, GuestError)> {
        let mut failed = Vec::new();
        let mut first = 0;
        let blocks = self.guest.blocks();
        while first < blocks {
            let count = (blocks - first).min(8 * BATCH);
            for at in (first..first + count).step_by(BATCH as usize) {
                let length = (first + count - at).min(BATCH) as u32 * BLOCK as u32;
                self.host().submit(at, Operation::Read { offset: at * BLOCK as u64, length });
            }
            let asked = count.div_ceil(BATCH) as usize;
            self.until("reads", |rig| rig.host().completed() == asked);
            let mut again = Vec::new();
            for completion in self.host().take() {
                match (completion.result, completion.data) {
                    (Ok(()), Some(data)) => {
                        for (block, bytes) in (completion.token..).zip(data.chunks(BLOCK)) {
                            assert!(
                                self.guest.may_read(block, bytes),
                                "wrong data in block {block}"
                            );
                        }
                    }
                    _ => again.push(completion.token),
                }
            }
            for at in again {
                self.read_singly(at..(at + BATCH).min(first + count), &mut failed);
            }
            first += count;
        }
        failed
    }

    fn read_singly(&mut self, blocks: std::ops::Range<u64>, failed: &mut Vec<(u64, GuestError)>) {
        for block in blocks {
            let (offset, length) = (block * BLOCK as u64, BLOCK as u32);
            self.host().submit(block, Operation::Read { offset, length });
            self.until("a read", |rig| rig.host().completed() == 1);
            for completion in self.host().take() {
                match (completion.result, completion.data) {
                    (Ok(()), Some(data)) => {
                        assert!(self.guest.may_read(block, &data), "wrong data in block {block}");
                    }
                    (Err(error), _) => failed.push((block, error)),
                    (Ok(()), None) => panic!("a read without data"),
                }
            }
        }
    }

    /// Discards a range of blocks with one request.
    pub fn discard(&mut self, blocks: std::ops::Range<u64>) {
        self.clear(blocks, |offset, length| Operation::Discard { offset, length });
    }

    /// Makes a range of blocks zeros with one request.
    pub fn write_zeroes_over(&mut self, blocks: std::ops::Range<u64>) {
        self.clear(blocks, |offset, length| Operation::WriteZeroes {
            offset,
            length,
            unmap: false,
        });
    }

    fn clear(
        &mut self,
        blocks: std::ops::Range<u64>,
        operation: impl FnOnce(u64, u64) -> Operation,
    ) {
        let bytes = |blocks: u64| blocks * BLOCK as u64;
        let begun: Vec<(u64, Version)> =
            blocks.clone().map(|block| (block, self.guest.begin(block, true))).collect();
        self.host().submit(1, operation(bytes(blocks.start), bytes(blocks.end - blocks.start)));
        self.until("it is acknowledged", |rig| rig.host().completed() == 1);
        self.host().take().into_iter().for_each(|done| assert_eq!(done.result, Ok(())));
        begun.into_iter().for_each(|(block, version)| self.guest.acknowledge(block, version));
    }

    /// The disk grows: first in the store, as an order does, then where it is served.
    pub fn grow(&mut self, blocks: u64) {
        let wanted = self.guest.blocks() + blocks;
        let process = self.world.start_process("operator");
        let store = self.connect(&process);
        self.stores[3] = Some(Rc::clone(&store));
        let client = StoreClient::new(store);
        let (turning, done) = (client.clone(), Rc::new(Cell::new(false)));
        process.set_turn(move || turning.turn());
        let (given, executor) = (Rc::clone(&done), process.executor());
        process.executor().spawn(Priority::Foreground, async move {
            let key = size_key();
            // An unknown outcome is looked at again: the record says what came of it.
            loop {
                if let Ok(found) = client.get_record::<Counter>(&key).await {
                    let (newest, revision) = found.map_or((0, 0), |(size, at)| (size.newest, at));
                    if newest == wanted {
                        return given.set(true);
                    }
                    let _ = client.put_record(&key, revision, &Counter { newest: wanted }).await;
                }
                executor.sleep(Duration::from_millis(10)).await;
            }
        });
        process.wake();
        self.until("the new size is in the store", |_| done.get());
        self.stores[3] = None;
        process.kill();
        let core = self.host().shared.core.borrow().clone().expect("it serves");
        core.resize(self.guest.vdisk(), wanted * BLOCK as u64).expect("a disk may grow");
        self.guest.grow(blocks);
    }

    /// Deletes the vdisk; the guest gets a new one with the next host engine.
    pub fn delete_vdisk(&mut self) {
        self.host().delete();
        self.until("the vdisk is deleted", |rig| rig.host().shared.deleted.get());
        self.guest.replace();
    }
}
