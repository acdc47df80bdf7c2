//! What every store must do, as one suite: each kind of store runs it over a backend of its own.
//!
//! Only for tests: with the feature `conformance`. A check panics when the store does something else.

mod leases;
pub mod world;

pub use leases::*;

use crate::contract::{
    Change, Changed, KEY_BYTES_MAX, Outcome, StoreError, TRANSACTION_ENTRIES_MAX, Transaction,
    VALUE_BYTES_MAX, WatchEvent,
};
use crate::records::{Counter, LogRole, Member, datanode_key, next_incarnation};
use std::collections::BTreeSet;
use world::World;

/// A test for each check of the suite, in the module where it stands; `$backend` makes a
/// [`Backend`](crate::conformance::world::Backend) in an `Rc`, whose store is empty.
#[macro_export]
macro_rules! store_conformance {
    ($backend:expr) => {
        $crate::store_conformance!(@each $backend;
            swaps_several_keys_or_none,
            lists_by_prefix_in_order,
            watches_whole_transactions_in_order,
            a_watch_that_begins_is_told_before_the_answer,
            watches_resume_over_a_restart,
            a_watch_from_zero_begins_with_a_resync,
            a_dropped_watch_is_silent,
            operations_wait_while_the_store_is_away,
            what_was_committed_survives_a_restart,
            incarnations_are_never_given_twice,
            limits_are_kept,
            records_of_another_kind_are_refused,
            a_revoked_lease_takes_its_keys_along,
            a_key_has_the_lease_of_its_last_put,
            a_lease_runs_out,
            a_renewed_lease_stays,
            leases_survive_a_restart,
            limits_of_leases_are_kept,
        );
    };
    (@each $backend:expr; $($check:ident,)*) => {
        $(
            #[test]
            fn $check() {
                let world = $crate::conformance::world::World::new($backend);
                $crate::conformance::$check(&world);
            }
        )*
    };
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.as_bytes().to_vec())
}

fn changed(revision: u64, changes: &[(&str, Option<&str>)]) -> WatchEvent {
    let change = |(key, value): &(&str, Option<&str>)| Change {
        key: (*key).to_owned(),
        value: value.map(|value| value.as_bytes().to_vec()),
        lease: None,
    };
    WatchEvent::Changed(Changed { revision, changes: changes.iter().map(change).collect() })
}

/// Compare-and-swap over several keys: all or nothing, revisions grow, no ABA.
pub fn swaps_several_keys_or_none(world: &World) {
    let client = world.client();
    world.run(async move {
        let both = put("a", "1").put("b", b"1".to_vec()).require("a", 0).require("b", 0);
        assert_eq!(client.transact(both.clone()).await, Ok(Outcome::Committed(1)));
        assert_eq!(client.transact(both).await, Ok(Outcome::Conflict));
        assert_eq!(client.transact(put("a", "2").require("a", 1)).await, Ok(Outcome::Committed(2)));
        // One of two conditions is stale: neither key changes.
        let stale = put("a", "3").delete("b").require("b", 1).require("a", 1);
        assert_eq!(client.transact(stale).await, Ok(Outcome::Conflict));
        let a = client.get("a").await.unwrap().unwrap();
        assert_eq!((a.value.as_slice(), a.revision), (b"2".as_slice(), 2));
        assert_eq!(client.get("b").await.unwrap().unwrap().revision, 1);
        let delete = Transaction::new().delete("b").require("b", 1);
        assert_eq!(client.transact(delete.clone()).await, Ok(Outcome::Committed(3)));
        assert_eq!(client.get("b").await, Ok(None));
        assert_eq!(client.transact(delete).await, Ok(Outcome::Conflict));
        // Deleting what is not there, and nothing at all, change no revision.
        assert_eq!(
            client.transact(Transaction::new().delete("b")).await,
            Ok(Outcome::Committed(3))
        );
        assert_eq!(
            client.transact(Transaction::new().require("a", 2)).await,
            Ok(Outcome::Committed(3))
        );
        // A key that comes back has a new revision: no ABA.
        assert_eq!(client.transact(put("b", "1").require("b", 0)).await, Ok(Outcome::Committed(4)));
        assert_eq!(client.transact(put("b", "2").require("b", 1)).await, Ok(Outcome::Conflict));
    });
}

/// Lists are in the order of keys.
pub fn lists_by_prefix_in_order(world: &World) {
    let client = world.client();
    world.run(async move {
        for key in ["v/b", "v/a", "v", "w", "v/", "u/z", "v/a/a"] {
            client.transact(put(key, key)).await.unwrap();
        }
        let listing = client.list("v/").await.unwrap();
        let keys: Vec<&str> = listing.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!((keys, listing.revision), (vec!["v/", "v/a", "v/a/a", "v/b"], 7));
        assert!(listing.entries.iter().all(|(key, entry)| key.as_bytes() == entry.value));
        assert_eq!(client.list("").await.unwrap().entries.len(), 7);
        assert!(client.list("x").await.unwrap().entries.is_empty());
    });
}

/// A watch sees whole transactions once, in order; a writer's own watch before the answer.
pub fn watches_whole_transactions_in_order(world: &World) {
    let (writer, reader) = (world.client(), world.client());
    world.run(async move {
        writer.transact(put("v/old", "0")).await.unwrap();
        let listing = reader.list("v/").await.unwrap();
        let watch = reader.watch("v/", listing.revision + 1);
        let many = put("v/a", "1").put("w", b"1".to_vec()).put("v/b", b"1".to_vec());
        writer.transact(many).await.unwrap();
        writer.transact(put("w", "2")).await.unwrap();
        writer.transact(Transaction::new().delete("v/a").delete("v/none")).await.unwrap();
        assert_eq!(watch.next().await, changed(2, &[("v/a", Some("1")), ("v/b", Some("1"))]));
        assert_eq!(watch.next().await, changed(4, &[("v/a", None)]));
        // From a revision that has been: what followed is told again.
        let again = reader.watch("v/", 1);
        assert_eq!(again.next().await, changed(1, &[("v/old", Some("0"))]));
        assert_eq!(again.next().await, changed(2, &[("v/a", Some("1")), ("v/b", Some("1"))]));
        assert_eq!(again.next().await, changed(4, &[("v/a", None)]));
        assert_eq!((watch.try_next(), again.try_next()), (None, None));
        // A writer's own watch has an event before the answer.
        let own = writer.watch("v/", 5);
        writer.transact(put("v/c", "5")).await.unwrap();
        assert_eq!(own.try_next(), Some(changed(5, &[("v/c", Some("5"))])));
    });
}

/// A writer's own watch is told before the answer, also when both are asked for at once.
pub fn a_watch_that_begins_is_told_before_the_answer(world: &World) {
    let writer = world.client();
    world.run(async move {
        for revision in 1..=60 {
            let from = [revision, 0, revision + 9][revision as usize % 3];
            let own = writer.watch("v/", from);
            writer.transact(put("v/a", "1")).await.unwrap();
            let told = own.try_next();
            // One that cannot begin where it should may begin before the transaction or after it.
            let resync = matches!(told, Some(WatchEvent::Resync { .. })) && from != revision;
            let before = told == Some(WatchEvent::Resync { revision: revision - 1 });
            let told = if resync && before { own.try_next() } else { told };
            let change = Some(changed(revision, &[("v/a", Some("1"))]));
            assert!(told == change || (resync && !before), "{revision}: {told:?}");
        }
    });
}

/// A watch goes on after a restart, or says what it may have missed.
pub fn watches_resume_over_a_restart(world: &World) {
    let (writer, reader) = (world.client(), world.client());
    let backend = std::rc::Rc::clone(&world.backend);
    world.run(async move {
        let watch = reader.watch("v/", 1);
        for number in 1..=20_u64 {
            if number % 5 == 0 {
                backend.stop();
                backend.start();
            }
            let key = format!("v/{number}");
            // Unknown is an honest answer while the server restarts; the condition settles it.
            loop {
                match writer.transact(put(&key, "x").require(key.as_str(), 0)).await {
                    Ok(_) => break,
                    Err(error) => assert_eq!(error, StoreError::Unknown),
                }
            }
            // The reader may find the new server before or after the change: what it missed is
            // in the server's history, unless the server forgot it in a restart.
            match watch.next().await {
                WatchEvent::Changed(Changed { revision, changes }) => {
                    assert_eq!((revision, changes[0].key.as_str()), (number, key.as_str()));
                }
                WatchEvent::Resync { revision } => assert_eq!(revision, number),
            }
        }
    });
}

/// A revision that cannot be served begins with a resync.
pub fn a_watch_from_zero_begins_with_a_resync(world: &World) {
    let client = world.client();
    world.run(async move {
        client.transact(put("a", "1")).await.unwrap();
        let watch = client.watch("", 0);
        assert_eq!(watch.next().await, WatchEvent::Resync { revision: 1 });
        client.transact(put("a", "2")).await.unwrap();
        assert_eq!(watch.next().await, changed(2, &[("a", Some("2"))]));
        // A revision that is still to come cannot be served: this store may have lost it.
        let future = client.watch("", 99);
        assert_eq!(future.next().await, WatchEvent::Resync { revision: 2 });
    });
}

/// Watches that end make room for others.
pub fn a_dropped_watch_is_silent(world: &World) {
    let client = world.client();
    world.run(async move {
        for round in 0..2 * crate::hub::WATCHES_MAX as u64 {
            let watch = client.watch("a", 0);
            assert!(matches!(watch.next().await, WatchEvent::Resync { .. }), "{round}");
        }
        assert!(client.get("a").await.unwrap().is_none());
    });
}

/// Operations wait, and are carried out once.
pub fn operations_wait_while_the_store_is_away(world: &World) {
    let client = world.client();
    let backend = std::rc::Rc::clone(&world.backend);
    let observer = client.clone();
    world.run(async move { observer.until_connected(true).await });
    backend.stop();
    let observer = client.clone();
    world.run(async move { observer.until_connected(false).await });
    let done = std::rc::Rc::new(std::cell::Cell::new(0));
    let (getter, setter) = (client.clone(), client.clone());
    let (got, set) = (done.clone(), done.clone());
    world.spawn(async move {
        assert_eq!(getter.get("missing").await, Ok(None));
        got.set(got.get() + 1);
    });
    world.spawn(async move {
        assert_eq!(setter.transact(put("a", "1")).await, Ok(Outcome::Committed(1)));
        set.set(set.get() + 1);
    });
    while world.turn() {}
    assert_eq!((done.get(), client.is_connected()), (0, false));
    // One that its task gives up is forgotten.
    let mut abandoned = Box::pin(client.get("a"));
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    assert!(abandoned.as_mut().poll(&mut context).is_pending());
    drop(abandoned);
    backend.start();
    world.run(async move { while client.get("a").await.unwrap().is_none() {} });
    while done.get() < 2 {
        world.backend.wait();
        while world.turn() {}
    }
}

/// Committed is durable.
pub fn what_was_committed_survives_a_restart(world: &World) {
    let client = world.client();
    let backend = std::rc::Rc::clone(&world.backend);
    world.run(async move {
        client.transact(put("a", "1").put("b", vec![7; VALUE_BYTES_MAX])).await.unwrap();
        client.transact(Transaction::new().delete("a")).await.unwrap();
        backend.stop();
        backend.start();
        assert_eq!(client.get("a").await, Ok(None));
        let b = client.get("b").await.unwrap().unwrap();
        assert_eq!((b.value, b.revision), (vec![7; VALUE_BYTES_MAX], 1));
        assert_eq!(client.transact(put("a", "3")).await, Ok(Outcome::Committed(3)));
    });
}

/// Numbers are used once, whatever restarts (C7, C29).
pub fn incarnations_are_never_given_twice(world: &World) {
    // C7, C29
    let given = std::rc::Rc::new(std::cell::RefCell::new(BTreeSet::new()));
    let finished = std::rc::Rc::new(std::cell::Cell::new(0));
    for _ in 0..8 {
        let (client, given, finished) = (world.client(), given.clone(), finished.clone());
        world.spawn(async move {
            for _ in 0..8 {
                let number = next_incarnation(&client).await.unwrap();
                assert!(given.borrow_mut().insert(number), "{number} was given twice");
            }
            finished.set(finished.get() + 1);
        });
    }
    let mut rounds = 0;
    while finished.get() < 8 {
        while world.turn() {}
        rounds += 1;
        if rounds % 40 == 0 {
            world.backend.stop();
            world.backend.start();
        } else if finished.get() < 8 {
            world.backend.wait();
        }
    }
    assert_eq!(given.borrow().len(), 64);
    assert!(!given.borrow().contains(&0));
    let (client, most) = (world.client(), given.borrow().last().copied());
    let newest = world.run(async move {
        client.get_record::<Counter>("counter/incarnation").await.unwrap().unwrap().0.newest
    });
    assert!(Some(newest) >= most);
}

/// The contract's limits are the same everywhere.
pub fn limits_are_kept(world: &World) {
    let client = world.client();
    world.run(async move {
        let invalid = |result| matches!(result, Err(StoreError::Invalid(_)));
        let long = "k".repeat(KEY_BYTES_MAX + 1);
        assert!(client.get(&long[1..]).await.is_ok());
        assert!(matches!(client.get(&long).await, Err(StoreError::Invalid(_))));
        assert!(matches!(client.get("").await, Err(StoreError::Invalid(_))));
        assert!(matches!(client.list(&long).await, Err(StoreError::Invalid(_))));
        let large = |length| Transaction::new().put("a", vec![0; length]);
        assert!(client.transact(large(VALUE_BYTES_MAX)).await.is_ok());
        assert!(invalid(client.transact(large(VALUE_BYTES_MAX + 1)).await));
        assert!(invalid(client.transact(put("a", "1").delete("a")).await));
        let entries = |count| {
            (0..count)
                .fold(Transaction::new(), |t, number: usize| t.put(number.to_string(), vec![]))
        };
        assert!(client.transact(entries(TRANSACTION_ENTRIES_MAX)).await.is_ok());
        assert!(invalid(client.transact(entries(TRANSACTION_ENTRIES_MAX + 1)).await));
        let heavy = ["a", "b", "c", "d", "e"]
            .into_iter()
            .fold(Transaction::new(), |t, key| t.put(key, vec![0; VALUE_BYTES_MAX]));
        assert!(invalid(client.transact(heavy).await));
    });
}

/// Typed records.
pub fn records_of_another_kind_are_refused(world: &World) {
    let client = world.client();
    world.run(async move {
        let key = datanode_key(3);
        let role = LogRole {
            epoch: 5,
            log: 9,
            active: Some(12),
            since: 5,
            origin: 77,
            in_sync: vec![
                Member { controller: 0, incarnation: 12 },
                Member { controller: 1, incarnation: 13 },
            ],
            solo: Some(crate::Solo { session: 2, part: 1, drives: vec![4, 0, 7] }),
        };
        assert_eq!(client.put_record(&key, 0, &role).await, Ok(Outcome::Committed(1)));
        assert_eq!(client.put_record(&key, 0, &role).await, Ok(Outcome::Conflict));
        let (read, revision) = client.get_record::<LogRole>(&key).await.unwrap().unwrap();
        assert_eq!((&read, revision), (&role, 1));
        assert!(read.is_in_sync(13) && !read.is_in_sync(14));
        assert_eq!(read.member(1).map(|member| member.incarnation), Some(13));
        client.transact(put(&key, "\u{1}\u{2}\u{3}")).await.unwrap();
        let error = client.get_record::<LogRole>(&key).await.unwrap_err();
        assert!(matches!(error, StoreError::Malformed { .. }), "{error}");
        assert!(error.to_string().contains("datanode/3"));
    });
}
