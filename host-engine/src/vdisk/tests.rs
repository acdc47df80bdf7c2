//! The lives of vdisks, with a store in memory and a core that the test plays.

use super::*;
use crate::core::ScriptedCore;
use crate::messages::{Command, Report};
use cleave_control::config::{DatanodeAddresses, HostConfig, PeerAddress, TlsFiles};
use cleave_control::events::Events;
use cleave_control::records::{to_value, vdisk_key};
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
        self.engine.vdisks.borrow()[&vdisk].move_to(other);
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
        let stale = Rc::new(Vdisk::new("data", &vdisk(5), bench.engine.least_loaded()));
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
