//! The cores of a host engine's process, and the shares of vdisks on them.
//!
//! Each core is a production core with a production front; they are linked as the shell links them, by rings. All live in
//! one process, so that a crash or a pause meets them together; which of them take their turns, and in which order, is
//! drawn each time. The cores share the process's links: each hears of its own connections only.

use crate::cluster::Cluster;
use crate::plan::stream;
use cleave_format::ids::{Epoch, VdiskId};
use cleave_host_core::front::{Done, Front, HomeKey, Place, link};
use cleave_host_core::shares::Shares;
use cleave_host_core::{CoreStats, Event, GuestCompletion, GuestRequest, HostCore, HostCoreConfig};
use cleave_runtime::Token;
use cleave_runtime::buffer::{Buffer, BufferPool};
use cleave_runtime::executor::NoDoorbell;
use cleave_runtime::links::{Class, ConnectionId, LinkEvent, Links, PeerAddress, SendError};
use cleave_runtime::random::{Random, SplitMix};
use cleave_runtime_sim::Process;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

/// Moves of shares that one strike begins, at most.
const MOVES_MAX: u64 = 6;
/// Parts of a guest's requests that may wait where there are several shares.
const WAITING_MAX: usize = 8;

/// Has shares move while their guests work: what strikes next meets that.
pub fn strike(cluster: &Cluster) {
    if cluster.plan.shares == 1 || !cluster.serves() {
        return;
    }
    if let Some(host) = &cluster.host {
        host.move_shares(1 + cluster.arranged.below(MOVES_MAX));
        cluster.pass(crate::director::time_of(
            &*cluster.arranged,
            std::time::Duration::from_millis(20),
        ));
    }
}

/// Where a vdisk's shares are, and its device.
pub struct Where {
    /// Its shares.
    pub shares: Shares,
    /// The core of each.
    pub at: Vec<usize>,
    /// The epoch under which each was opened.
    epochs: Vec<Epoch>,
    /// The core that has the device.
    home: usize,
    key: Option<HomeKey>,
}

impl Where {
    /// Spreads the shares of the vdisk of this guest over the cores.
    pub fn draw(vdisk: VdiskId, shares: u16, guest: usize, cores: u16, epoch: Epoch) -> Where {
        let shares = Shares::new(vdisk, shares);
        let home = guest % usize::from(cores);
        let core = |share: u16| (home + usize::from(share)) % usize::from(cores);
        let epochs = vec![epoch; usize::from(shares.count())];
        Where { shares, at: (0..shares.count()).map(core).collect(), epochs, home, key: None }
    }
}

/// See the module's page.
pub struct Cores {
    all: Vec<HostCore>,
    fronts: Vec<RefCell<Front<Token>>>,
    vdisks: RefCell<BTreeMap<VdiskId, Where>>,
    random: SplitMix,
}

impl Cores {
    /// Starts one core for each of these configurations.
    pub fn start(
        process: &Process,
        configs: impl Iterator<Item = HostCoreConfig>,
        seed: u64,
    ) -> Cores {
        let shared = Rc::new(SharedLinks {
            links: process.links(),
            owners: RefCell::default(),
            events: RefCell::default(),
        });
        let all: Vec<HostCore> = configs
            .map(|config| {
                let links = CoreLinks { shared: Rc::clone(&shared), core: config.core };
                HostCore::new(Rc::new(links), process.executor(), process.random(), config)
            })
            .collect();
        let pools = || [4 << 10, 64 << 10].map(|bytes| BufferPool::new(bytes, 8)).to_vec();
        let front = |core: &HostCore| RefCell::new(Front::new(core.clone(), pools()));
        let fronts = all.iter().map(front).collect();
        let random = stream(seed ^ process.number(), "turns of cores");
        Cores { all, fronts, vdisks: RefCell::default(), random }
    }

    /// All cores.
    pub fn all(&self) -> &[HostCore] {
        &self.all
    }

    /// The one with the flash.
    pub fn first(&self) -> &HostCore {
        &self.all[0]
    }

    /// Some cores take a turn; appends what is done. True when there is, or may be, more.
    pub fn turn(&self, completions: &mut Vec<GuestCompletion>) -> bool {
        let count = self.all.len();
        let first = if count > 1 { self.random.below(count as u64) as usize } else { 0 };
        let mut any = false;
        let mut done = Vec::new();
        for place in (0..count).map(|core| (first + core) % count) {
            if count > 1 && self.random.below(4) == 0 {
                // It is late; its turn comes.
                any = true;
                continue;
            }
            let mut front = self.fronts[place].borrow_mut();
            any |= self.all[place].turn();
            any |= front.done(&mut done);
            any |= front.turn();
        }
        completions.extend(done.into_iter().map(completion));
        any
    }

    /// The next thing that a core has to say.
    pub fn next_event(&self) -> Option<Event> {
        self.all.iter().find_map(HostCore::next_event)
    }

    /// What all of them did.
    pub fn stats(&self) -> CoreStats {
        let mut all = self.all.iter().map(HostCore::stats);
        let first = all.next().unwrap_or_default();
        all.fold(first, |sum, core| CoreStats {
            buffer_bytes: sum.buffer_bytes + core.buffer_bytes,
            buffer_records: sum.buffer_records + core.buffer_records,
            records_mirrored: sum.records_mirrored + core.records_mirrored,
            reads_buffer: sum.reads_buffer + core.reads_buffer,
            reads_flash: sum.reads_flash + core.reads_flash,
            flash_checks_failed: sum.flash_checks_failed + core.flash_checks_failed,
            parts_fetched: sum.parts_fetched + core.parts_fetched,
            reads_pool: sum.reads_pool + core.reads_pool,
            reads_solved: sum.reads_solved + core.reads_solved,
            checks_failed: sum.checks_failed + core.checks_failed,
            stripes_committed: sum.stripes_committed + core.stripes_committed,
            stripes_abandoned: sum.stripes_abandoned + core.stripes_abandoned,
            stripeless_commits: sum.stripeless_commits + core.stripeless_commits,
            runs: sum.runs + core.runs,
            pieces: sum.pieces + core.pieces,
            stripes_left: sum.stripes_left + core.stripes_left,
            deduplicated: sum.deduplicated + core.deduplicated,
            refused: sum.refused + core.refused,
            commits_overtaken: sum.commits_overtaken + core.commits_overtaken,
            replays_overtaken: sum.replays_overtaken + core.replays_overtaken,
            reads_held: sum.reads_held + core.reads_held,
            ..sum
        })
    }

    /// A vdisk is open: its guest's requests come.
    pub fn add(&self, mut all: Where) {
        let (shares, home) = (all.shares, all.home);
        let place = |(share, at): (u16, &usize)| self.link(shares.identity(share), home, *at);
        let places = (0..).zip(&all.at).map(place).collect();
        all.key = Some(self.fronts[home].borrow_mut().add_home(shares, places));
        self.vdisks.borrow_mut().insert(shares.vdisk(), all);
    }

    fn link(&self, share: VdiskId, home: usize, at: usize) -> Place {
        if home == at {
            return Place::Here;
        }
        let (ours, theirs) = link(Arc::new(NoDoorbell), Arc::new(NoDoorbell));
        self.fronts[at].borrow_mut().carry_for(share, theirs);
        Place::There(ours)
    }

    /// The device is gone; where the shares are.
    pub fn remove(&self, vdisk: VdiskId) -> Vec<(VdiskId, HostCore)> {
        let shares = self.shares_of(vdisk);
        if let Some(all) = self.vdisks.borrow_mut().remove(&vdisk) {
            let key = all.key.expect("it was open");
            self.fronts[all.home].borrow_mut().remove_home(key);
        }
        shares
    }

    /// Where the shares of a vdisk are.
    pub fn shares_of(&self, vdisk: VdiskId) -> Vec<(VdiskId, HostCore)> {
        let vdisks = self.vdisks.borrow();
        let Some(all) = vdisks.get(&vdisk) else { return Vec::new() };
        let core = |at: &usize| self.all[*at].clone();
        all.shares.identities().zip(all.at.iter().map(core)).collect()
    }

    /// Takes a guest's request, or gives it back.
    pub fn submit(&self, vdisk: VdiskId, request: GuestRequest) -> Result<(), GuestRequest> {
        let vdisks = self.vdisks.borrow();
        let Some(all) = vdisks.get(&vdisk) else { return Err(request) };
        let mut front = self.fronts[all.home].borrow_mut();
        let key = all.key.expect("it is open");
        let most = if all.shares.count() == 1 { 1 } else { WAITING_MAX };
        if front.waiting_of(key) >= most {
            return Err(request);
        }
        front.take(key, request.token, [request.operation]);
        Ok(())
    }

    /// Whether a vdisk's guest could be served.
    pub fn serves(&self, vdisk: VdiskId) -> bool {
        self.vdisks.borrow().contains_key(&vdisk)
    }

    /// Takes a read of somebody who is not the guest (C9).
    pub fn spy(&self, vdisk: VdiskId, read: GuestRequest) {
        let vdisks = self.vdisks.borrow();
        let Some(Where { home, key: Some(key), .. }) = vdisks.get(&vdisk) else { return };
        self.fronts[*home].borrow_mut().take(*key, read.token, [read.operation]);
    }

    fn of<T>(&self, vdisk: VdiskId, what: impl FnOnce(&mut Where, &mut Front<Token>) -> T) -> T {
        let mut vdisks = self.vdisks.borrow_mut();
        let all = vdisks.get_mut(&vdisk).expect("a vdisk whose share moves is open");
        let mut front = self.fronts[all.home].borrow_mut();
        what(all, &mut front)
    }

    /// The core of a share.
    pub fn at(&self, vdisk: VdiskId, share: u16) -> usize {
        self.of(vdisk, |all, _| all.at[usize::from(share)])
    }

    /// The epoch under which a share was opened.
    pub fn epoch(&self, vdisk: VdiskId, share: u16) -> Epoch {
        self.of(vdisk, |all, _| all.epochs[usize::from(share)])
    }

    /// A share is open on another core, under this epoch. Of all shares the oldest one.
    pub fn opened(&self, vdisk: VdiskId, share: u16, epoch: Epoch) -> Epoch {
        self.of(vdisk, |all, _| {
            all.epochs[usize::from(share)] = epoch;
            all.epochs.iter().copied().min().unwrap_or(epoch)
        })
    }

    /// As [`Front::pause`].
    pub fn pause(&self, vdisk: VdiskId, share: u16) {
        self.of(vdisk, |all, front| front.pause(all.key.expect("it is open"), share));
    }

    /// As [`Front::is_drained`].
    pub fn is_drained(&self, vdisk: VdiskId, share: u16) -> bool {
        self.of(vdisk, |all, front| front.is_drained(all.key.expect("it is open"), share))
    }

    /// The core of a share takes nothing more for it: the share's identity, and the core that has to close it.
    pub fn let_go(&self, vdisk: VdiskId, share: u16) -> (VdiskId, HostCore) {
        let (identity, at) =
            self.of(vdisk, |all, _| (all.shares.identity(share), all.at[usize::from(share)]));
        self.fronts[at].borrow_mut().end_link(identity);
        (identity, self.all[at].clone())
    }

    /// As [`Front::resume`], on another core or where the share was.
    pub fn resume(&self, vdisk: VdiskId, share: u16, to: Option<usize>) {
        let (identity, home) = self.of(vdisk, |all, _| (all.shares.identity(share), all.home));
        let place = to.map(|to| self.link(identity, home, to));
        self.of(vdisk, |all, front| {
            if let Some(to) = to {
                all.at[usize::from(share)] = to;
            }
            front.resume(all.key.expect("it is open"), share, place);
        });
    }
}

fn completion(done: Done<Token>) -> GuestCompletion {
    let Done { user, result, data, .. } = done;
    let length: usize = data.buffers().map(|buffer| buffer.len()).sum();
    let mut whole = Buffer::new(length);
    let mut at = 0;
    for buffer in data.buffers() {
        whole[at..at + buffer.len()].copy_from_slice(buffer);
        at += buffer.len();
    }
    GuestCompletion { token: user, result, data: (length > 0).then_some(whole) }
}

/// The links of a process whose cores each have connections of their own.
struct SharedLinks {
    links: Rc<dyn Links>,
    owners: RefCell<BTreeMap<ConnectionId, u16>>,
    /// What the owners have not taken yet.
    events: RefCell<BTreeMap<u16, Vec<LinkEvent>>>,
}

/// A core's part of them.
struct CoreLinks {
    shared: Rc<SharedLinks>,
    core: u16,
}

impl Links for CoreLinks {
    fn connect(&self, to: &PeerAddress, class: Class) -> ConnectionId {
        let connection = self.shared.links.connect(to, class);
        self.shared.owners.borrow_mut().insert(connection, self.core);
        connection
    }

    fn send(
        &self,
        connection: ConnectionId,
        lane: u8,
        parts: &[bytes::Bytes],
    ) -> Result<(), SendError> {
        self.shared.links.send(connection, lane, parts)
    }

    fn queued(&self, connection: ConnectionId) -> usize {
        self.shared.links.queued(connection)
    }

    fn close(&self, connection: ConnectionId, reason: &str) {
        self.shared.links.close(connection, reason);
    }

    fn poll(&self, events: &mut Vec<LinkEvent>) {
        let mut brought = Vec::new();
        self.shared.links.poll(&mut brought);
        let (mut owners, mut kept) =
            (self.shared.owners.borrow_mut(), self.shared.events.borrow_mut());
        for event in brought {
            let (connection, over) = match &event {
                LinkEvent::Connected { connection, .. }
                | LinkEvent::Accepted { connection, .. }
                | LinkEvent::Received { connection, .. } => (*connection, false),
                LinkEvent::Closed { connection, .. } => (*connection, true),
            };
            // What nobody began is the first core's to refuse.
            let owner = owners.get(&connection).copied().unwrap_or(0);
            if over {
                owners.remove(&connection);
            }
            kept.entry(owner).or_default().push(event);
        }
        events.extend(kept.remove(&self.core).unwrap_or_default());
    }
}
