//! The lives of vdisks, with a store in memory and a core that the test plays.

use super::*;
use crate::core::ScriptedCore;
use crate::messages::{Command, Report};
use cleave_control::config::{DatanodeAddresses, HostConfig, PeerAddress, TlsFiles};
use cleave_control::events::Events;
use cleave_control::records::{SHARES_MAX, to_value, vdisk_key};
use cleave_coordinator::{
    Answer as StoreAnswer, DirectServer, Hub, Operation, RedbStore, StoreClient, Transaction,
};
use cleave_format::ids::Incarnation;
use cleave_runtime::executor::{Executor, NoDoorbell, Priority};
use cleave_runtime::time::{Clock, Moment};
use std::sync::Arc;

const HOST: u32 = 1;
const INCARNATION: u64 = 77;
const MIB: u64 = 1 << 20;

#[derive(Default)]
struct HandClock(Cell<u64>);

impl Clock for HandClock {
    fn now(&self) -> Moment {
        Moment(self.0.get())
    }
    fn unix_seconds(&self) -> u64 {
        0
    }
}

struct Bench {
    clock: Rc<HandClock>,
    server: DirectServer,
    engine: Rc<Engine>,
    core: ScriptedCore,
    /// To which vdisks can move.
    other: ScriptedCore,
    folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let folder = tempfile::tempdir().unwrap();
        let clock = Rc::new(HandClock::default());
        let executor = Executor::new(Rc::clone(&clock) as Rc<dyn Clock>, Arc::new(NoDoorbell));
        let server = DirectServer::new(Hub::new(RedbStore::in_memory()));
        let store = server.connect(Rc::new(|arrives: Box<dyn FnOnce()>| arrives()));
        let config = config(folder.path());
        let engine = Engine::new(
            config,
            executor,
            StoreClient::new(Rc::new(store)),
            None,
            Events::in_memory("host-1"),
        );
        engine.incarnation.set(Incarnation(INCARNATION));
        let (handle, core) = CoreHandle::scripted(0);
        engine.cores.borrow_mut().push(Rc::new(handle));
        let (handle, other) = CoreHandle::scripted(7);
        // Nothing begins there.
        engine.cpu.leaving.borrow_mut().push(Rc::new(handle));
        let engine = Rc::new(engine);
        let follow = Rc::clone(&engine).follow();
        engine.executor.spawn(Priority::Foreground, async { follow.await.unwrap() });
        Bench { clock, server, engine, core, other, folder }
    }

    /// Lets everything happen that can without time.
    fn settle(&self) {
        let engine = &self.engine;
        while engine.store.turn() | engine.take_reports() | engine.executor.run_until_idle() {}
    }

    fn pass(&self, span: Duration) {
        self.clock.0.set(self.clock.0.get() + span.as_nanos() as u64);
        self.settle();
    }

    fn record(&self, name: &str, record: Option<&VdiskRecord>) {
        let key = vdisk_key(name);
        let transaction = match record {
            Some(record) => Transaction::new().put(key, to_value(record)),
            None => Transaction::new().delete(key),
        };
        self.server.execute(Operation::Transact(transaction)).unwrap();
        self.settle();
    }

    fn own(&self, vdisk: u64, owner: &VdiskOwner) {
        let value = cleave_coordinator::encoding::encode(owner);
        let put = Transaction::new().put(owner_key(vdisk), value);
        self.server.execute(Operation::Transact(put)).unwrap();
    }

    fn owner(&self, vdisk: u64) -> Option<VdiskOwner> {
        let get = Operation::Get { key: owner_key(vdisk) };
        let StoreAnswer::Value(found) = self.server.execute(get).unwrap() else { panic!() };
        found.map(|found| cleave_coordinator::encoding::decode(&found.value).unwrap())
    }

    fn command(&self) -> Command {
        self.core.commands.pop().expect("the core is told something")
    }

    fn idle(&self) {
        assert!(self.core.commands.pop().is_none(), "the core is told nothing");
    }

    fn answer(&self, number: u64, answer: Answer) {
        self.core.reports.push(Report::Answer { number, answer }).ok().unwrap();
        self.settle();
    }

    /// Takes the order to open, and obeys.
    fn open(&self) -> OpenOrder {
        let Command { number, order: Order::Open(order) } = self.command() else {
            panic!("an order to open")
        };
        self.answer(number, Answer::Opened(Ok(())));
        *order
    }

    fn move_away(&self, vdisk: u64) {
        let other = self.engine.cpu.leaving.borrow()[0].clone();
        let vdisk = Rc::clone(&self.engine.vdisks.borrow()[&vdisk]);
        vdisk.move_share(&vdisk.shares[0], other);
        self.settle();
    }

    fn core_of(&self, vdisk: u64) -> u16 {
        self.engine.vdisks.borrow()[&vdisk].core().core
    }

    fn serving(&self, vdisk: u64) -> Option<VdiskServing> {
        self.engine.vdisks.borrow().get(&vdisk).map(|vdisk| vdisk.serving.get())
    }
}

fn config(folder: &std::path::Path) -> HostConfig {
    let peer =
        |name: &str| PeerAddress { name: name.to_owned(), address: "127.0.0.1:1".parse().unwrap() };
    HostConfig {
        name: "host-1".to_owned(),
        id: HOST,
        cluster: "0".repeat(32),
        dir: folder.to_owned(),
        store_socket: Some(folder.join("store")),
        control_socket: folder.join("control"),
        listen: "127.0.0.1:0".parse().unwrap(),
        cores: 1,
        insane: false,
        memory_budget: 64 * MIB,
        map: 0,
        write_buffer: 32 * MIB,
        quota: 32 * MIB,
        vhost_dir: folder.to_owned(),
        vhost_group: None,
        key_file: None,
        flash: Vec::new(),
        lock_dir: folder.to_owned(),
        mtu: 1452,
        tls: TlsFiles { ca: "/".into(), certificate: "/".into(), key: "/".into() },
        etcd: None,
        datanodes: vec![DatanodeAddresses { id: 1, controllers: vec![peer("a"), peer("b")] }],
    }
}

fn vdisk(id: u64) -> VdiskRecord {
    VdiskRecord {
        id,
        size: 8 * MIB,
        encrypted: false,
        created: 0,
        host: Some(HOST),
        home: 1,
        state: VdiskState::Ready,
        shares: 1,
    }
}

#[test]
fn a_vdisk_is_owned_opened_and_served() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    let order = bench.open();
    assert_eq!((order.vdisk, order.epoch, order.gone), (VdiskId(5), Epoch(1), vec![Epoch(0)]));
    assert_eq!(order.device.capacity, 8 * MIB);
    assert_eq!(order.device.socket, bench.folder.path().join("data.sock"));
    assert!(!order.without_device);
    let owner = VdiskOwner { epoch: 1, host: HOST.into(), incarnation: Some(INCARNATION) };
    assert_eq!(bench.owner(5), Some(owner));
    assert_eq!(bench.serving(5), Some(VdiskServing::Serving));
    // Another host's vdisk is none of ours.
    bench.record("other", Some(&VdiskRecord { host: Some(2), ..vdisk(6) }));
    bench.idle();
    assert_eq!(bench.serving(6), None);
}

// C9, C25: only predecessors that served and whose lock is held here, or that let go, are known to be gone.
#[test]
fn a_predecessor_elsewhere_may_be_alive() {
    let own = VdiskOwner { epoch: 4, host: HOST.into(), incarnation: Some(9) };
    for (before, remembered, gone) in [
        (VdiskOwner { host: 2, ..own.clone() }, "4 4\n", vec![]),
        (VdiskOwner { host: 2, incarnation: None, ..own.clone() }, "", vec![Epoch(4)]),
        (own.clone(), "3 4\n", vec![Epoch(3), Epoch(4)]),
        (own.clone(), "3 3\n", vec![]),
        (own.clone(), "", vec![]),
    ] {
        let bench = Bench::new();
        let path = bench.folder.path().join("vdisk-5.epochs");
        std::fs::write(&path, remembered).unwrap();
        bench.own(5, &before);
        bench.record("data", Some(&vdisk(5)));
        let order = bench.open();
        assert_eq!((order.epoch, order.gone), (Epoch(5), gone), "{before:?} {remembered:?}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "5 5\n", "it serves");
    }
}

/// C8: also when the record changes after it was looked at. Each turn of the store brings the answer to one question.
#[test]
fn nothing_is_taken_back_that_was_given_to_another_host() {
    for turns in 0..4 {
        let bench = Bench::new();
        bench.record("data", Some(&VdiskRecord { host: None, ..vdisk(5) }));
        let stale = Rc::new(Vdisk::new("data", &vdisk(5), bench.engine.least_loaded(1)));
        let ours =
            Operation::Transact(Transaction::new().put(vdisk_key("data"), to_value(&vdisk(5))));
        bench.server.execute(ours).unwrap();
        let (engine, taken) = (Rc::clone(&bench.engine), Rc::new(RefCell::new(None)));
        let result = Rc::clone(&taken);
        bench.engine.executor.spawn(Priority::Foreground, async move {
            let outcome = take_ownership(&engine, &stale).await;
            result.replace(Some(outcome));
        });
        for _ in 0..turns {
            bench.engine.executor.run_until_idle();
            bench.engine.store.turn();
        }
        bench.record("data", Some(&VdiskRecord { host: Some(2), ..vdisk(5) }));
        let was_first = turns == 3;
        match taken.borrow_mut().take().expect("it came to an end") {
            Ok((epoch, _)) => assert!(was_first && epoch == Epoch(1), "after {turns} turns"),
            Err(error) => {
                assert!(
                    !was_first && matches!(error, Failure::Elsewhere),
                    "{turns} turns: {error}"
                );
                assert_eq!(bench.owner(5), None);
            }
        }
        bench.idle();
    }
}

// C25
#[test]
fn nothing_is_owned_before_the_lock_is_held() {
    let bench = Bench::new();
    let path = bench.folder.path().join("vdisk-5.lock");
    let predecessor = KernelLock::try_take(&path).unwrap().unwrap();
    bench.record("data", Some(&vdisk(5)));
    bench.pass(LOCK_AGAIN);
    bench.idle();
    assert_eq!((bench.owner(5), bench.serving(5)), (None, Some(VdiskServing::Waiting)));
    drop(predecessor);
    bench.pass(LOCK_AGAIN);
    assert_eq!(bench.open().epoch, Epoch(1));
    assert!(KernelLock::try_take(&path).unwrap().is_none(), "held while it is served");
}

#[test]
fn a_vdisk_grows_and_a_refused_size_is_not_tried_again() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.record("data", Some(&VdiskRecord { size: 16 * MIB, ..vdisk(5) }));
    let Command { number, order: Order::Resize { size, .. } } = bench.command() else { panic!() };
    assert_eq!(size, 16 * MIB);
    bench.answer(number, Answer::Resized(Ok(())));
    bench.idle();
    bench.record("data", Some(&vdisk(5)));
    let Command { number, .. } = bench.command();
    bench.answer(number, Answer::Resized(Err("it can only grow".to_owned())));
    bench.idle();
    assert_eq!(bench.serving(5), Some(VdiskServing::Serving));
}

#[test]
fn a_vdisk_that_moves_is_closed_released_and_unlocked() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.record("data", Some(&VdiskRecord { host: Some(2), ..vdisk(5) }));
    let Command { number, order: Order::Close { .. } } = bench.command() else { panic!() };
    let path = bench.folder.path().join("vdisk-5.lock");
    assert!(KernelLock::try_take(&path).unwrap().is_none(), "held until it is closed");
    bench.answer(number, Answer::Closed);
    assert_eq!(bench.owner(5).unwrap().incarnation, None);
    assert_eq!(bench.serving(5), None);
    assert!(KernelLock::try_take(&path).unwrap().is_some());
}

// C8: the log is sealed anew by the next core, and not before the first one has let go.
#[test]
fn a_vdisk_moves_to_another_core_under_a_new_epoch() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.move_away(5);
    let Command { number, order: Order::Hand { vdisk: VdiskId(5) } } = bench.command() else {
        panic!("it is to be given away")
    };
    assert!(bench.other.commands.pop().is_none(), "the first core has it still");
    assert_eq!((bench.owner(5).unwrap().epoch, bench.core_of(5)), (2, 0));
    bench.answer(number, Answer::Handed(Ok(None)));
    let Some(Command { number, order: Order::Open(order) }) = bench.other.commands.pop() else {
        panic!("an order to open")
    };
    assert_eq!((order.epoch, order.gone), (Epoch(2), vec![Epoch(1)]));
    let answer = Answer::Opened(Ok(()));
    bench.other.reports.push(Report::Answer { number, answer }).ok().unwrap();
    bench.settle();
    assert_eq!((bench.serving(5), bench.core_of(5)), (Some(VdiskServing::Serving), 7));
    bench.idle();
    // What is wanted of it goes to that core; what is released is the newest epoch.
    bench.record("data", Some(&VdiskRecord { host: Some(2), ..vdisk(5) }));
    let Some(Command { number, order: Order::Close { .. } }) = bench.other.commands.pop() else {
        panic!("an order to close")
    };
    let answer = Answer::Closed;
    bench.other.reports.push(Report::Answer { number, answer }).ok().unwrap();
    bench.settle();
    let released = VdiskOwner { epoch: 2, host: HOST.into(), incarnation: None };
    assert_eq!(bench.owner(5), Some(released));
}

#[test]
fn a_vdisk_that_cannot_leave_its_core_is_served_there() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.move_away(5);
    let Command { number, .. } = bench.command();
    bench.answer(number, Answer::Handed(Err("its requests take too long".to_owned())));
    assert!(bench.other.commands.pop().is_none());
    assert_eq!((bench.serving(5), bench.core_of(5)), (Some(VdiskServing::Serving), 0));
    // It is asked again when that is wanted again, and only then.
    bench.pass(Duration::from_secs(60));
    bench.idle();
    // What it released in the end is what it took last.
    bench.record("data", Some(&VdiskRecord { host: Some(2), ..vdisk(5) }));
    let Command { number, order: Order::Close { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Closed);
    let released = VdiskOwner { epoch: 2, host: HOST.into(), incarnation: None };
    assert_eq!(bench.owner(5), Some(released));
}

#[test]
fn a_move_that_fails_on_the_next_core_begins_anew_there() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.move_away(5);
    let Command { number, .. } = bench.command();
    bench.answer(number, Answer::Handed(Ok(None)));
    let Some(Command { number, .. }) = bench.other.commands.pop() else { panic!() };
    let refused = HostError::Refused { vdisk: VdiskId(5), refusal: Refusal::Full };
    let answer = Answer::Opened(Err(refused.into()));
    bench.other.reports.push(Report::Answer { number, answer }).ok().unwrap();
    bench.settle();
    assert_eq!(bench.serving(5), Some(VdiskServing::Failed));
    bench.pass(SERVE_AGAIN);
    let Some(Command { order: Order::Open(order), .. }) = bench.other.commands.pop() else {
        panic!("it is opened again, where it was to go")
    };
    assert_eq!(order.epoch, Epoch(3));
}

#[test]
fn a_vdisk_is_deleted_once_the_log_says_so() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.record("data", Some(&VdiskRecord { state: VdiskState::Deleting, ..vdisk(5) }));
    let Command { number, order: Order::Delete { .. } } = bench.command() else { panic!() };
    let refused = HostError::Refused { vdisk: VdiskId(5), refusal: Refusal::Sealed };
    bench.answer(number, Answer::Deleted(Err(refused)));
    assert_eq!(bench.serving(5), Some(VdiskServing::Failed), "it is still there");
    bench.pass(SERVE_AGAIN);
    let again = bench.open();
    assert_eq!((again.epoch, again.without_device), (Epoch(2), true));
    let Command { number, order: Order::Delete { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Deleted(Ok(())));
    assert_eq!(bench.serving(5), None);
    bench.record("data", None);
    bench.idle();
}

// C28: the log has a deletion of which its process could not tell any more.
#[test]
fn a_deletion_is_over_when_the_log_refuses_the_newest_owner() {
    for newer in [false, true] {
        let bench = Bench::new();
        bench.record("data", Some(&VdiskRecord { state: VdiskState::Deleting, ..vdisk(5) }));
        let Command { number, order: Order::Open(order) } = bench.command() else { panic!() };
        assert_eq!((order.epoch, order.without_device), (Epoch(1), true));
        if newer {
            let owner = VdiskOwner { epoch: 2, host: 9, incarnation: Some(9) };
            let value = cleave_coordinator::encoding::encode(&owner);
            let transaction = Transaction::new().put(owner_key(5), value);
            bench.server.execute(Operation::Transact(transaction)).unwrap();
        }
        let refused = HostError::Refused { vdisk: VdiskId(5), refusal: Refusal::Sealed };
        bench.answer(number, Answer::Opened(Err(refused.into())));
        let serving = newer.then_some(VdiskServing::Failed);
        assert_eq!(bench.serving(5), serving, "a newer owner may not have deleted it");
    }
}

// C8
#[test]
fn a_fenced_vdisk_is_taken_again_with_a_new_epoch_if_it_is_still_ours() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.core.reports.push(Report::Fenced { vdisk: VdiskId(5) }).ok().unwrap();
    bench.settle();
    assert_eq!(bench.serving(5), Some(VdiskServing::Failed));
    bench.idle();
    bench.pass(SERVE_AGAIN);
    assert_eq!(bench.open().epoch, Epoch(2));
    assert_eq!(bench.serving(5), Some(VdiskServing::Serving));
}

#[test]
fn a_vdisk_that_cannot_be_opened_is_tried_again_later_or_when_it_changes() {
    let bench = Bench::new();
    bench.record("data", Some(&VdiskRecord { encrypted: true, ..vdisk(5) }));
    bench.idle();
    assert_eq!((bench.owner(5), bench.serving(5)), (None, Some(VdiskServing::Failed)));
    bench.record("data", Some(&vdisk(5)));
    let Command { number, order: Order::Open(_) } = bench.command() else { panic!() };
    bench.answer(number, Answer::Opened(Err(OpenError::Stopping)));
    bench.idle();
    bench.pass(SERVE_AGAIN);
    assert_eq!(bench.open().epoch, Epoch(2));
}

#[test]
fn a_name_that_is_given_to_another_vdisk_lets_the_first_one_go() {
    let bench = Bench::new();
    bench.record("data", Some(&vdisk(5)));
    bench.open();
    bench.record("data", Some(&vdisk(6)));
    let (first, second) = (bench.command(), bench.command());
    assert!(matches!(first.order, Order::Close { vdisk: VdiskId(5) }), "{first:?}");
    assert!(matches!(&second.order, Order::Open(order) if order.vdisk == VdiskId(6)));
}

fn take_order(core: &ScriptedCore) -> (u64, Box<OpenOrder>) {
    match core.commands.pop() {
        Some(Command { number, order: Order::Open(order) }) => (number, order),
        other => panic!("an order to open, not {other:?}"),
    }
}

impl Bench {
    /// Cores 0 and 7 have the shares of vdisk 5 in turn: they are open, and it is served.
    fn open_shares(&self, shares: u16) {
        // It was to wait for others' ends.
        let other = self.engine.cpu.leaving.borrow_mut().remove(0);
        self.engine.cores.borrow_mut().push(other);
        self.record("data", Some(&VdiskRecord { shares, ..vdisk(5) }));
        // At once.
        let core = |number: u16| if number.is_multiple_of(2) { &self.core } else { &self.other };
        let asked: Vec<_> = (1..shares).map(|number| (number, take_order(core(number)))).collect();
        self.idle();
        for (number, (command, order)) in asked {
            assert_eq!((order.vdisk, order.epoch), (VdiskId(5 + u64::from(number)), Epoch(1)));
            assert!(order.without_device && order.carry.is_some() == (number % 2 == 1));
            self.say(core(number), command, Answer::Opened(Ok(())));
        }
        let (command, order) = take_order(&self.core);
        assert_eq!((order.vdisk, order.places.len()), (VdiskId(5), usize::from(shares)));
        for (number, place) in order.places.iter().enumerate() {
            assert_eq!(matches!(place, Place::There(_)), number % 2 == 1, "{place:?}");
        }
        self.say(&self.core, command, Answer::Opened(Ok(())));
        assert_eq!(self.serving(5), Some(VdiskServing::Serving));
    }

    fn say(&self, core: &ScriptedCore, number: u64, answer: Answer) {
        core.reports.push(Report::Answer { number, answer }).ok().unwrap();
        self.settle();
    }

    fn move_to(&self, share: usize, core: usize) {
        let (vdisk, core) = {
            let cores = self.engine.cores.borrow();
            (Rc::clone(&self.engine.vdisks.borrow()[&5]), Rc::clone(&cores[core]))
        };
        vdisk.move_share(&vdisk.shares[share], core);
        self.settle();
    }

    /// Moves a share that is not the first to the other core, to the end; the epochs of which the order to open says
    /// that nobody serves under them.
    fn moved(&self, share: usize, to: usize) -> Vec<Epoch> {
        let (from, at) = match to {
            0 => (&self.other, &self.core),
            _ => (&self.core, &self.other),
        };
        self.move_to(share, to);
        let prepare = from.commands.pop().unwrap();
        self.say(from, prepare.number, Answer::Prepared);
        let Command { number, order: Order::Pause { .. } } = self.command() else { panic!() };
        self.answer(number, Answer::Paused(Ok(())));
        let close = from.commands.pop().unwrap();
        self.say(from, close.number, Answer::Closed);
        let (number, order) = take_order(at);
        self.say(at, number, Answer::Opened(Ok(())));
        let Command { number, order: Order::Resume { .. } } = self.command() else { panic!() };
        self.answer(number, Answer::Resumed);
        order.gone
    }
}

// C8: one epoch for all shares; nothing is served before all of them are open.
#[test]
fn the_first_share_is_opened_last_and_all_are_closed() {
    let bench = Bench::new();
    bench.open_shares(3);
    assert_eq!(bench.owner(5).unwrap().epoch, 1);
    assert!(bench.owner(6).is_none(), "the vdisk has an owner, its shares have none of their own");
    bench.record("data", Some(&VdiskRecord { host: Some(2), shares: 3, ..vdisk(5) }));
    let Command { number, order: Order::Quiet { .. } } = bench.command() else { panic!() };
    bench.idle();
    bench.answer(number, Answer::Quiet);
    let (first, third) = (bench.command(), bench.command());
    let second = bench.other.commands.pop().unwrap();
    let closes = |command: &Command, share| matches!(command.order, Order::Close { vdisk } if vdisk == VdiskId(share));
    assert!(closes(&first, 5) && closes(&second, 6) && closes(&third, 7));
    bench.answer(first.number, Answer::Closed);
    bench.say(&bench.other, second.number, Answer::Closed);
    assert_eq!(bench.owner(5).unwrap().incarnation, Some(INCARNATION), "a share is open");
    bench.answer(third.number, Answer::Closed);
    assert_eq!(bench.owner(5).unwrap().incarnation, None);
}

#[test]
fn a_share_that_cannot_be_opened_has_the_others_closed() {
    let bench = Bench::new();
    let other = bench.engine.cpu.leaving.borrow_mut().remove(0);
    bench.engine.cores.borrow_mut().push(other);
    bench.record("data", Some(&VdiskRecord { shares: 3, ..vdisk(5) }));
    let (second, third) = (take_order(&bench.other).0, take_order(&bench.core).0);
    bench.say(&bench.other, second, Answer::Opened(Ok(())));
    bench.answer(third, Answer::Opened(Err(OpenError::Stopping)));
    let closed = bench.other.commands.pop().unwrap();
    assert!(matches!(closed.order, Order::Close { vdisk: VdiskId(6) }));
    bench.say(&bench.other, closed.number, Answer::Closed);
    bench.idle();
    assert_eq!(bench.serving(5), Some(VdiskServing::Failed));
}

// C1, C8: paused and closed before the next core opens it, under an epoch of its own.
#[test]
fn a_share_moves_while_the_others_go_on() {
    let bench = Bench::new();
    bench.open_shares(2);
    bench.move_to(1, 0);
    let prepare = bench.other.commands.pop().unwrap();
    assert!(matches!(prepare.order, Order::Prepare { share: VdiskId(6) }));
    bench.idle();
    bench.say(&bench.other, prepare.number, Answer::Prepared);
    let Command { number, order: Order::Pause { share: 1, .. } } = bench.command() else {
        panic!()
    };
    assert!(bench.other.commands.pop().is_none(), "it has requests in flight");
    bench.answer(number, Answer::Paused(Ok(())));
    let close = bench.other.commands.pop().unwrap();
    assert!(matches!(close.order, Order::Close { vdisk: VdiskId(6) }));
    bench.idle();
    bench.say(&bench.other, close.number, Answer::Closed);
    let (number, order) = take_order(&bench.core);
    assert_eq!((order.vdisk, order.epoch), (VdiskId(6), Epoch(2)));
    // C9: the core before has closed it.
    assert_eq!(order.gone, [Epoch(1)]);
    assert!(order.without_device && order.carry.is_none());
    bench.answer(number, Answer::Opened(Ok(())));
    let Command { number, order: Order::Resume { share: 1, place: Place::Here, .. } } =
        bench.command()
    else {
        panic!("its requests go on")
    };
    bench.answer(number, Answer::Resumed);
    assert_eq!(bench.serving(5), Some(VdiskServing::Serving));
    assert_eq!(bench.owner(5).unwrap().epoch, 2);
    // One that cannot be paused stays.
    bench.move_to(1, 1);
    let Command { number, order: Order::Prepare { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Prepared);
    let Command { number, order: Order::Pause { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Paused(Err("they take too long".to_owned())));
    bench.idle();
    assert!(bench.other.commands.pop().is_none());
    assert_eq!(bench.engine.vdisks.borrow()[&5].shares[1].core().core, 0);
}

// C9: the first share is served under an older epoch than the vdisk's; whoever is next here knows of both.
#[test]
fn what_is_remembered_of_a_vdisk_is_the_epochs_of_all_its_shares() {
    let bench = Bench::new();
    bench.open_shares(2);
    let path = bench.folder.path().join("vdisk-5.epochs");
    let remembered = || std::fs::read_to_string(&path).ok();
    assert_eq!(remembered().as_deref(), Some("1 1\n"));
    assert_eq!((bench.moved(1, 0), remembered().as_deref()), (vec![Epoch(1)], Some("1 2\n")));
    assert_eq!((bench.moved(1, 1), remembered().as_deref()), (vec![Epoch(2)], Some("1 3\n")));
    // It lets go, and comes back.
    bench.record("data", Some(&VdiskRecord { host: Some(2), shares: 2, ..vdisk(5) }));
    let Command { number, order: Order::Quiet { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Quiet);
    let Command { number, .. } = bench.command();
    bench.answer(number, Answer::Closed);
    let close = bench.other.commands.pop().unwrap();
    bench.say(&bench.other, close.number, Answer::Closed);
    assert_eq!(bench.owner(5).unwrap().incarnation, None);
    bench.record("data", Some(&VdiskRecord { shares: 2, ..vdisk(5) }));
    let (_, order) = take_order(&bench.other);
    assert_eq!((order.epoch, order.gone), (Epoch(4), [1, 2, 3].map(Epoch).to_vec()));
}

// C9: which epochs lie between those of the shares is not known: one of them may be another host's, which may be alive.
#[test]
fn a_row_of_epochs_that_is_lost_is_not_made_up() {
    let bench = Bench::new();
    bench.open_shares(2);
    bench.moved(1, 0);
    let path = bench.folder.path().join("vdisk-5.epochs");
    std::fs::remove_file(&path).unwrap();
    bench.engine.vdisks.borrow()[&5].remember_served(&bench.engine);
    assert!(!path.exists());
}

#[test]
fn the_other_shares_are_linked_to_the_devices_next_core() {
    let bench = Bench::new();
    bench.open_shares(3);
    bench.move_to(0, 1);
    let Command { number, order: Order::Hand { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Handed(Ok(None)));
    // The second one is where the device goes; the third one stays behind.
    let Command { number, order: Order::Carry { share: VdiskId(7), .. } } = bench.command() else {
        panic!("the third share's requests come from elsewhere")
    };
    assert!(bench.other.commands.pop().is_none());
    bench.answer(number, Answer::Carried);
    let (_, order) = take_order(&bench.other);
    assert!(!order.without_device);
    let here: Vec<bool> = order.places.iter().map(|place| matches!(place, Place::Here)).collect();
    assert_eq!(here, [true, true, false]);
}

// C8
#[test]
fn a_fenced_share_has_the_whole_vdisk_taken_again() {
    let bench = Bench::new();
    bench.open_shares(2);
    bench.other.reports.push(Report::Fenced { vdisk: VdiskId(6) }).ok().unwrap();
    bench.settle();
    let Command { number, order: Order::Quiet { .. } } = bench.command() else { panic!() };
    bench.answer(number, Answer::Quiet);
    let Command { number, order: Order::Close { vdisk: VdiskId(5) } } = bench.command() else {
        panic!("the first share is open")
    };
    bench.answer(number, Answer::Closed);
    assert!(bench.other.commands.pop().is_none(), "the other one is not");
    assert_eq!(bench.serving(5), Some(VdiskServing::Failed));
    bench.pass(SERVE_AGAIN);
    assert_eq!(take_order(&bench.other).1.epoch, Epoch(2));
}

// C28: a process died between the ends of two shares.
#[test]
fn a_deletion_ends_the_shares_that_are_left() {
    let bench = Bench::new();
    let other = bench.engine.cpu.leaving.borrow_mut().remove(0);
    bench.engine.cores.borrow_mut().push(other);
    let deleting = VdiskRecord { state: VdiskState::Deleting, shares: 2, ..vdisk(5) };
    bench.record("data", Some(&deleting));
    let (number, order) = take_order(&bench.other);
    assert!(order.without_device);
    bench.say(&bench.other, number, Answer::Opened(Ok(())));
    let (number, _) = take_order(&bench.core);
    let refused = HostError::Refused { vdisk: VdiskId(5), refusal: Refusal::Sealed };
    bench.answer(number, Answer::Opened(Err(refused.into())));
    let delete = bench.other.commands.pop().unwrap();
    assert!(matches!(delete.order, Order::Delete { vdisk: VdiskId(6) }));
    bench.say(&bench.other, delete.number, Answer::Deleted(Ok(())));
    bench.idle();
    assert_eq!(bench.serving(5), None);
}

// A newer version's record: what it says of shares is not guessed.
#[test]
fn a_record_of_too_many_shares_is_passed_over() {
    for shares in [0, SHARES_MAX + 1] {
        let bench = Bench::new();
        bench.record("data", Some(&VdiskRecord { shares, ..vdisk(5) }));
        bench.idle();
        assert_eq!(bench.serving(5), None);
    }
    assert_eq!(SHARES_MAX, cleave_host_core::shares::SHARES_MAX);
}
