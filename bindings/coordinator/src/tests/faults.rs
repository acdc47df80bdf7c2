//! What only the direct store can time: messages lost and late, watchers far behind.

use super::world::{Backend, Direct, World};
use crate::contract::{LeaseId, Operation, Outcome, StoreError, Transaction, WatchEvent};
use crate::redb_store::{HISTORY_MAX, RedbStore};
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

fn put(key: &str, value: &[u8]) -> Transaction {
    Transaction::new().put(key, value.to_vec())
}

#[test]
fn a_transaction_on_its_way_when_the_store_goes_is_unknown_and_may_arrive_late() {
    for delivered in 0..2 {
        let direct = Direct::new();
        let world = World::new(direct.clone());
        let client = world.client();
        let result = Rc::new(RefCell::new(None));
        let (given, sender) = (result.clone(), client.clone());
        while world.turn() {}
        world.spawn(async move {
            let outcome = sender.transact(put("a", b"late").require("a", 0)).await;
            *given.borrow_mut() = Some(outcome);
        });
        while world.turn() {}
        for _ in 0..delivered {
            assert!(direct.deliver());
        }
        direct.stop();
        direct.start();
        while world.turn() {}
        assert_eq!(*result.borrow(), Some(Err(StoreError::Unknown)));
        // Settled by a condition: exactly one of the two was made.
        let mine = client.clone();
        let outcome =
            world.run(async move { mine.transact(put("a", b"mine").require("a", 0)).await });
        assert_eq!(outcome, Ok(Outcome::Conflict));
        let value = world.run(async move { client.get("a").await }).unwrap().unwrap();
        assert_eq!((value.value.as_slice(), value.revision), (b"late".as_slice(), 1));
    }
}

#[test]
fn reads_on_their_way_when_the_store_goes_are_asked_again() {
    let direct = Direct::new();
    let world = World::new(direct.clone());
    let client = world.client();
    while world.turn() {}
    let result = Rc::new(RefCell::new(None));
    let (given, reader) = (result.clone(), client.clone());
    world.spawn(async move { *given.borrow_mut() = Some(reader.get("a").await) });
    while world.turn() {}
    // The answer "absent" is on its way; it must not be given after the change below.
    assert!(direct.deliver());
    direct.stop();
    direct.server.execute(Operation::Transact(put("a", b"1"))).unwrap();
    direct.start();
    while world.turn() || direct.deliver() {}
    let value = result.borrow_mut().take().unwrap().unwrap().unwrap();
    assert_eq!(value.revision, 1);
}

#[test]
fn what_is_on_its_way_to_a_server_that_crashes_is_lost() {
    for delivered in 0..2 {
        let direct = Direct::new();
        let world = World::new(direct.clone());
        let client = world.client();
        let result = Rc::new(RefCell::new(None));
        let (given, sender) = (result.clone(), client.clone());
        while world.turn() {}
        world.spawn(async move {
            *given.borrow_mut() = Some(sender.transact(put("a", b"one")).await);
        });
        while world.turn() {}
        for _ in 0..delivered {
            assert!(direct.deliver());
        }
        direct.server.crash();
        let reader = client.clone();
        let read = Rc::new(RefCell::new(None));
        let given = read.clone();
        world.spawn(async move { *given.borrow_mut() = Some(reader.get("a").await) });
        while world.turn() || direct.deliver() {}
        assert_eq!(*result.borrow(), Some(Err(StoreError::Unknown)));
        assert!(read.borrow().is_none(), "a read waits for the server");
        // The next process, with what the last one's disk holds: here an empty one.
        direct.server.restart(RedbStore::in_memory());
        while world.turn() || direct.deliver() {}
        assert_eq!(read.borrow_mut().take(), Some(Ok(None)));
        let outcome = world.run(async move { client.transact(put("a", b"two")).await });
        assert_eq!(outcome, Ok(Outcome::Committed(1)));
    }
}

#[test]
fn a_watcher_that_was_away_too_long_is_told_to_list_again() {
    let direct = Direct::new();
    let world = World::new(direct.clone());
    let client = world.client();
    let watch = Rc::new(client.watch("a", 1));
    while world.turn() || direct.deliver() {}
    direct.stop();
    let change = || direct.server.execute(Operation::Transact(put("a", b"x"))).unwrap();
    change();
    direct.start();
    while world.turn() || direct.deliver() {}
    assert!(matches!(watch.try_next(), Some(WatchEvent::Changed(c)) if c.revision == 1));
    direct.stop();
    (0..=HISTORY_MAX).for_each(|_| drop(change()));
    direct.start();
    while world.turn() || direct.deliver() {}
    let revision = 2 + HISTORY_MAX as u64;
    assert_eq!(watch.try_next(), Some(WatchEvent::Resync { revision }));
    change();
    while world.turn() || direct.deliver() {}
    assert!(matches!(watch.try_next(), Some(WatchEvent::Changed(c)) if c.revision == revision + 1));
    assert_eq!(watch.try_next(), None);
}

#[test]
fn the_owning_process_may_execute_and_others_watch_it() {
    let direct = Direct::new();
    let world = World::new(direct.clone());
    let client = world.client();
    let watch = client.watch("", 1);
    while world.turn() || direct.deliver() {}
    direct.server.execute(Operation::Transact(put("a", b"1"))).unwrap();
    while world.turn() || direct.deliver() {}
    assert!(matches!(watch.try_next(), Some(WatchEvent::Changed(c)) if c.revision == 1));
    let watched = direct.server.execute(Operation::Watch { prefix: String::new(), from: 0 });
    assert!(matches!(watched, Err(StoreError::Invalid(_))));
}

#[test]
fn leases_do_not_run_out_while_the_server_is_down_or_stands_still() {
    let direct = Direct::new();
    let world = World::new(direct.clone());
    let client = world.client();
    let granting = client.clone();
    let lease = world.run(async move { granting.grant(Duration::from_secs(2)).await.unwrap() });
    let (holder, id) = (client.clone(), lease.id);
    world.run(async move {
        let put = Transaction::new().put_leased("a", b"held".to_vec(), id);
        holder.transact(put).await.unwrap();
    });
    let exists = |client: &crate::StoreClient| {
        let client = client.clone();
        world.run(async move { client.get("a").await.unwrap().is_some() })
    };
    direct.hours.pass(Duration::from_millis(1900));
    assert!(exists(&client));
    // It stands still for a minute: nobody could renew.
    direct.hours.pass_unseen(Duration::from_secs(60));
    direct.hours.pass(Duration::from_millis(1800));
    assert!(exists(&client));
    // A server that is down does nothing; the next one begins with what the disk holds (here: nothing).
    direct.server.crash();
    direct.hours.pass(Duration::from_secs(60));
    direct.server.restart(RedbStore::in_memory());
    assert!(!exists(&client));
    let renewing = client.clone();
    assert_eq!(world.run(async move { renewing.renew(id).await }), Ok(false));
}

#[test]
fn a_grant_whose_answer_is_lost_is_asked_for_again_and_the_first_runs_out() {
    let direct = Direct::new();
    let world = World::new(direct.clone());
    let client = world.client();
    while world.turn() {}
    let granted = Rc::new(RefCell::new(None));
    let (given, granting) = (granted.clone(), client.clone());
    world.spawn(async move {
        *given.borrow_mut() = Some(granting.grant(Duration::from_secs(2)).await);
    });
    while world.turn() {}
    // The server has it; its answer is on its way when the connection breaks.
    assert!(direct.deliver());
    direct.stop();
    while world.turn() || direct.deliver() {}
    assert!(granted.borrow().is_none(), "it waits for the store");
    direct.hours.pass(Duration::from_secs(1));
    direct.start();
    while world.turn() || direct.deliver() {}
    let second = granted.borrow_mut().take().unwrap().unwrap();
    direct.hours.pass(Duration::from_millis(1500));
    let renewing = client.clone();
    assert_eq!(world.run(async move { renewing.renew(second.id).await }), Ok(true));
    let first = LeaseId(second.id.0 - 1);
    assert_eq!(world.run(async move { client.renew(first).await }), Ok(false));
}
