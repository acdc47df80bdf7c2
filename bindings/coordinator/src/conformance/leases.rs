//! What every store must do with leases.
//!
//! Real stores have real clocks, and machines stand still for as long as they like: what must not have happened yet is
//! only judged where the backend's clock says that it could not have.

use super::put;
use super::world::World;
use crate::client::StoreClient;
use crate::contract::{
    Change, Changed, LEASE_DURATION_MAX, LEASE_DURATION_MIN, Lease, LeaseId, Outcome, StoreError,
    Transaction, WatchEvent,
};
use std::rc::Rc;
use std::time::Duration;

/// Longer than any test takes.
const LONG: Duration = Duration::from_secs(600);

fn put_leased(key: &str, lease: LeaseId) -> Transaction {
    Transaction::new().put_leased(key, b"held".to_vec(), lease)
}

fn deleted(revision: u64, keys: &[&str]) -> WatchEvent {
    let change = |key: &&str| Change { key: (*key).to_owned(), value: None, lease: None };
    WatchEvent::Changed(Changed { revision, changes: keys.iter().map(change).collect() })
}

async fn exists(client: &StoreClient, key: &str) -> bool {
    client.get(key).await.unwrap().is_some()
}

/// A revocation deletes the lease's keys by one transaction, and nothing else.
pub fn a_revoked_lease_takes_its_keys_along(world: &World) {
    let (client, reader) = (world.client(), world.client());
    world.run(async move {
        let lease = client.grant(LONG).await.unwrap();
        let other = client.grant(LONG).await.unwrap();
        assert!(lease.duration >= LONG && lease.id != other.id && lease.id.0 != 0);
        let watch = reader.watch("", 1);
        let several = put_leased("v/b", lease.id).put_leased("v/a", b"held".to_vec(), lease.id);
        let several = several.put("v/c", b"1".to_vec()).put_leased("w", vec![], other.id);
        assert_eq!(client.transact(several.clone()).await, Ok(Outcome::Committed(1)));
        let WatchEvent::Changed(told) = watch.next().await else { panic!("nothing was forgotten") };
        assert_eq!(told.changes, several.changes, "watches are told whose a key is");
        assert_eq!(client.revoke(lease.id).await, Ok(()));
        assert_eq!(watch.next().await, deleted(2, &["v/a", "v/b"]));
        let left = client.list("").await.unwrap();
        let keys: Vec<&str> = left.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!((keys, left.revision), (vec!["v/c", "w"], 2));
        // It is not there any more: for a renewal, another revocation, a put.
        assert_eq!(client.renew(lease.id).await, Ok(false));
        assert_eq!(client.revoke(lease.id).await, Ok(()));
        let late = put_leased("v/a", lease.id).put("v/c", b"2".to_vec());
        assert_eq!(client.transact(late.clone()).await, Err(StoreError::NoLease));
        assert_eq!(client.transact(late.require("v/c", 2)).await, Ok(Outcome::Conflict));
        assert_eq!(client.get("v/c").await.unwrap().unwrap().revision, 1);
        assert_eq!(client.renew(other.id).await, Ok(true));
        // One without keys ends without a transaction.
        let empty = client.grant(LONG).await.unwrap();
        client.revoke(empty.id).await.unwrap();
        assert_eq!(client.list("v/").await.unwrap().revision, 2);
    });
}

/// A key belongs to the lease of its last put, or to none.
pub fn a_key_has_the_lease_of_its_last_put(world: &World) {
    let client = world.client();
    world.run(async move {
        let first = client.grant(LONG).await.unwrap().id;
        let second = client.grant(LONG).await.unwrap().id;
        for key in ["moved", "freed", "deleted", "again"] {
            client.transact(put_leased(key, first)).await.unwrap();
        }
        client.transact(put_leased("moved", second)).await.unwrap();
        client.transact(put("freed", "1")).await.unwrap();
        client.transact(Transaction::new().delete("deleted").delete("again")).await.unwrap();
        client.transact(put("again", "1")).await.unwrap();
        client.revoke(first).await.unwrap();
        let left = client.list("").await.unwrap();
        let keys: Vec<&str> = left.entries.iter().map(|(key, _)| key.as_str()).collect();
        assert_eq!((keys, left.revision), (vec!["again", "freed", "moved"], 8));
        client.revoke(second).await.unwrap();
        assert!(!exists(&client, "moved").await);
    });
}

/// Nobody renews it: its keys are deleted, watches learn of it.
pub fn a_lease_runs_out(world: &World) {
    let client = world.client();
    world.run(async move {
        let lease = client.grant(Duration::from_secs(1)).await.unwrap();
        assert!((1..60).contains(&lease.duration.as_secs()), "{lease:?}");
        let watch = client.watch("v/", 1);
        client.transact(put_leased("v/b", lease.id).put("u", vec![])).await.unwrap();
        client.transact(put_leased("v/a", lease.id)).await.unwrap();
        assert!(matches!(watch.next().await, WatchEvent::Changed(told) if told.revision == 1));
        assert!(matches!(watch.next().await, WatchEvent::Changed(told) if told.revision == 2));
        assert_eq!(watch.next().await, deleted(3, &["v/a", "v/b"]));
        assert!(exists(&client, "u").await && !exists(&client, "v/a").await);
        assert_eq!(client.renew(lease.id).await, Ok(false));
        // Whoever comes next finds the place free.
        let next = client.grant(LONG).await.unwrap();
        assert_ne!(next.id, lease.id);
        let taken = put_leased("v/a", next.id).require("v/a", 0);
        assert_eq!(client.transact(taken).await, Ok(Outcome::Committed(4)));
    });
}

/// Renewed in time it stays, beside one that is not.
pub fn a_renewed_lease_stays(world: &World) {
    let client = world.client();
    let backend = Rc::clone(&world.backend);
    world.run(async move {
        let mut sent = backend.now();
        let lease = client.grant(Duration::from_secs(1)).await.unwrap();
        let began = sent;
        client.transact(put_leased("a", lease.id)).await.unwrap();
        while backend.now().since(began) < 3 * lease.duration {
            let sending = backend.now();
            let there = client.renew(lease.id).await.unwrap();
            if backend.now().since(sent) < lease.duration {
                assert!(there, "it ran out {:?} after it was renewed", backend.now().since(sent));
            }
            if !there {
                // The machine stood still for as long as the lease lasts.
                assert!(!exists(&client, "a").await);
                return;
            }
            sent = sending;
        }
        let there = exists(&client, "a").await;
        assert!(there || backend.now().since(sent) >= lease.duration);
    });
}

/// Leases are as durable as keys, and have their full duration after a start.
pub fn leases_survive_a_restart(world: &World) {
    let client = world.client();
    let backend = Rc::clone(&world.backend);
    world.run(async move {
        let long = client.grant(LONG).await.unwrap();
        let short: Lease = client.grant(Duration::from_secs(2)).await.unwrap();
        client.transact(put_leased("long", long.id)).await.unwrap();
        client.transact(put_leased("short", short.id)).await.unwrap();
        backend.stop();
        let started = backend.now();
        backend.start();
        let found = client.list("").await.unwrap();
        let there = found.entries.iter().any(|(key, _)| key == "short");
        assert!(there || backend.now().since(started) >= short.duration, "{found:?}");
        if there {
            let watch = client.watch("short", found.revision + 1);
            assert_eq!(watch.next().await, deleted(3, &["short"]));
        }
        assert_eq!(client.renew(short.id).await, Ok(false));
        assert_eq!(client.renew(long.id).await, Ok(true));
        assert!(exists(&client, "long").await);
        let another = client.grant(LONG).await.unwrap();
        assert!(another.id != long.id && another.id != short.id);
        client.revoke(long.id).await.unwrap();
        assert!(!exists(&client, "long").await);
    });
}

/// What cannot be a lease is refused.
pub fn limits_of_leases_are_kept(world: &World) {
    let client = world.client();
    world.run(async move {
        for duration in [LEASE_DURATION_MIN / 2, LEASE_DURATION_MAX * 2] {
            let refused = client.grant(duration).await;
            assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
        }
        let lease = client.grant(LEASE_DURATION_MAX).await.unwrap();
        let mut strange = put_leased("a", lease.id);
        strange.changes[0].value = None;
        assert!(matches!(client.transact(strange).await, Err(StoreError::Invalid(_))));
        let none = client.transact(put_leased("a", LeaseId(0))).await;
        assert!(matches!(none, Err(StoreError::Invalid(_))), "{none:?}");
        for lease in [LeaseId(lease.id.0 + 1), LeaseId(u64::MAX)] {
            assert_eq!(client.transact(put_leased("a", lease)).await, Err(StoreError::NoLease));
            assert_eq!(client.renew(lease).await, Ok(false));
            assert_eq!(client.revoke(lease).await, Ok(()));
        }
        assert!(!exists(&client, "a").await);
    });
}
