//! The coordinator store's socket and the records in it.

use super::catalog::{patched, patches, survives_library};
use cleave_catalog::storage::MemoryStorage;
use cleave_control::records::{ClusterRecord, DriveRecord, VdiskRecord, from_value, to_value};
use cleave_coordinator::contract::{Operation, Transaction, Versioned};
use cleave_coordinator::encoding::{Decode, Encode, decode, encode};
use cleave_coordinator::frame::{REPLY_BYTES_MAX, REQUEST_BYTES_MAX, Request, first, framed};
use cleave_coordinator::hub::{Hub, Reply};
use cleave_coordinator::records::{Counter, LogRole, Member, ScrubFigures, ScrubPass, VdiskOwner};
use cleave_coordinator::{Answer, Condition, Lease, LeaseId, Listing, RedbStore};
use cleave_runtime::time::Moment;
use std::fmt::Debug;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Duration;

/// The messages at the beginning of `data`, and how many bytes they take. They are cut at the same
/// places when they arrive in two parts.
fn messages<T: Decode<()> + Encode + PartialEq + Debug>(data: &[u8], length_max: usize) -> Vec<T> {
    let mut used = 0;
    let mut messages = Vec::new();
    while let Ok(Some((message, length))) = first::<T>(&data[used..], length_max) {
        assert!(length >= 4);
        assert!(matches!(first::<T>(&data[used..used + length - 1], length_max), Ok(None)));
        let again = framed(&message);
        assert_eq!(
            first::<T>(&again, length_max).ok().flatten().map(|found| found.0.eq(&message)),
            Some(true)
        );
        messages.push(message);
        used += length;
    }
    messages
}

/// What clients send, carried out by a store in memory, and what servers send.
pub(super) fn frames(data: &[u8]) {
    let _ = messages::<Reply>(data, REPLY_BYTES_MAX);
    let requests = messages::<Request>(data, REQUEST_BYTES_MAX);
    if requests.is_empty() {
        return;
    }
    let mut hub = Hub::new(RedbStore::in_memory());
    let (client, watcher) = (hub.join(), hub.join());
    let all = Operation::Watch { prefix: String::new(), from: 1 };
    let mut replies = Vec::new();
    hub.execute(Moment(0), watcher, 0, all, &mut replies);
    let mut now = Moment(0);
    for Request { token, operation } in requests {
        replies.clear();
        now = now + Duration::from_millis(token % 4_000);
        hub.execute(now, client, token, operation, &mut replies);
        let answered = |(to, reply): &&(_, Reply)| {
            *to == client && matches!(reply, Reply::Answer { token: of, .. } if *of == token)
        };
        assert_eq!(replies.iter().filter(answered).count(), 1, "one answer each");
        for (_, reply) in &replies {
            assert!(framed(reply).len() <= 4 + REPLY_BYTES_MAX);
        }
    }
    hub.leave(client);
}

/// Requests, one by one and together; and a reply.
pub(super) fn frames_seeds() -> Vec<Vec<u8>> {
    let key = || "owner/4".to_owned();
    let transaction = Transaction {
        conditions: vec![Condition { key: key(), revision: 0 }],
        changes: vec![change(key(), Some(vec![1, 2]), None)],
    };
    let leased = Transaction {
        conditions: Vec::new(),
        changes: vec![change(key(), Some(vec![1, 2]), Some(LeaseId(1)))],
    };
    let operations = [
        Operation::Grant { duration: Duration::from_secs(2) },
        Operation::Transact(leased),
        Operation::Renew { lease: LeaseId(1) },
        Operation::Revoke { lease: LeaseId(2) },
        Operation::Transact(transaction),
        Operation::Get { key: key() },
        Operation::List { prefix: "own".to_owned() },
        Operation::Watch { prefix: String::new(), from: 0 },
        Operation::Unwatch { watch: 4 },
    ];
    let mut seeds: Vec<Vec<u8>> = (1..)
        .zip(operations)
        .map(|(token, operation)| framed(&Request { token, operation }))
        .collect();
    seeds.push(seeds.concat());
    let entries = vec![(key(), Versioned { value: vec![1], revision: 3 })];
    let listing = Listing { revision: 3, entries };
    let granted = Lease { id: LeaseId(4), duration: Duration::from_secs(2) };
    for answer in [Answer::List(listing), Answer::Granted(granted), Answer::Renewed(true)] {
        seeds.push(framed(&Reply::Answer { token: 1, result: Ok(answer) }));
    }
    seeds
}

fn change(
    key: String,
    value: Option<Vec<u8>>,
    lease: Option<LeaseId>,
) -> cleave_coordinator::Change {
    cleave_coordinator::Change { key, value, lease }
}

fn record<T: Decode<()> + Encode + PartialEq + Debug>(data: &[u8]) {
    if let Ok(record) = decode::<T>(data) {
        assert_eq!(decode::<T>(&encode(&record)), Ok(record));
    }
}

/// Values of the store as every record that lives in it.
pub(super) fn records(data: &[u8]) {
    record::<LogRole>(data);
    record::<VdiskOwner>(data);
    record::<ScrubPass>(data);
    record::<Counter>(data);
    if let Ok(found) = from_value::<ClusterRecord>("k", data) {
        assert_eq!(from_value("k", &to_value(&found)), Ok(found));
    }
    if let Ok(found) = from_value::<VdiskRecord>("k", data) {
        assert_eq!(from_value("k", &to_value(&found)), Ok(found));
    }
    if let Ok(found) = from_value::<DriveRecord>("k", data) {
        assert_eq!(from_value("k", &to_value(&found)), Ok(found));
    }
}

/// One of each.
pub(super) fn records_seeds() -> Vec<Vec<u8>> {
    let found = ScrubFigures { looked: 70_000, damaged: 3, repaired: 2, unrepairable: 1 };
    let scrub =
        ScrubPass { passes: 4, from: 81_000, spent_seconds: 500, found, ..ScrubPass::default() };
    let in_sync =
        vec![Member { controller: 0, incarnation: 9 }, Member { controller: 1, incarnation: 300 }];
    vec![
        encode(&LogRole { epoch: 2, log: 5, active: Some(9), since: 2, origin: 800, in_sync, solo: None }),
        encode(&VdiskOwner { epoch: 2, host: 1, incarnation: None }),
        encode(&scrub),
        encode(&Counter { newest: 70_000 }),
        br#"{"uuid":"0123456789abcdef0123456789abcdef","encrypted":true,"key_check":"aa","format_level":1}"#.to_vec(),
        br#"{"id":4,"size":1073741824,"encrypted":false,"created":1,"host":null,"home":1,"state":"ready"}"#.to_vec(),
        br#"{"uuid":"00","datanode":1,"path":"/dev/x","capacity":5,"state":"retired"}"#.to_vec(),
    ]
}

fn open(storage: &MemoryStorage) -> Option<RedbStore> {
    let storage = storage.clone();
    RedbStore::on_storage(Path::new("fuzzed"), move || storage.open()).ok()
}

fn transaction(number: u64) -> Operation {
    let lease = Some(LeaseId(1));
    let changes = vec![
        change(format!("owner/{number}"), Some(vec![number as u8; 40]), None),
        change("datanode/1".to_owned(), Some(vec![9; 100]), None),
        change(format!("held/{number}"), Some(Vec::new()), lease),
        change(format!("owner/{}", number / 2), None, None),
    ];
    Operation::Transact(Transaction { conditions: Vec::new(), changes })
}

/// The file of a store that did a few things, and what it holds.
fn example() -> &'static (Vec<u8>, String) {
    static EXAMPLE: OnceLock<(Vec<u8>, String)> = OnceLock::new();
    EXAMPLE.get_or_init(|| {
        let storage = MemoryStorage::new();
        let mut store = open(&storage).expect("memory can be written");
        let grant = Operation::Grant { duration: Duration::from_secs(2) };
        store.execute(&grant).expect("memory can be written");
        for number in 1..8 {
            store.execute(&transaction(number)).expect("memory can be written");
        }
        let content = content(&mut store);
        drop(store);
        (storage.bytes(), content.expect("memory can be read"))
    })
}

fn content(store: &mut RedbStore) -> Option<String> {
    match store.execute(&Operation::List { prefix: String::new() }) {
        Ok(Answer::List(listing)) => {
            let leases: Vec<_> = store.leases().collect();
            Some(format!("{listing:?} {leases:?}"))
        }
        _ => None,
    }
}

/// The example's file, damaged: it is refused, or holds what it held, and goes on.
pub(super) fn file(data: &[u8]) {
    let (image, wanted) = example();
    let storage = patched(image, data);
    survives_library(|| {
        let Some(mut store) = open(&storage) else { return };
        // Whoever writes checksums as well writes what he likes: only a short damage is judged by its content.
        if let Some(found) = content(&mut store).filter(|_| data.len() < 5 + 4) {
            assert_eq!(found, *wanted, "a damaged file was opened with another content");
        }
        let _ = store.execute(&transaction(100));
        [0, 1_000, 2_000, 4_000]
            .into_iter()
            .for_each(|millis| store.step(Moment(millis * 1_000_000)));
        let _ = content(&mut store);
    });
}

/// Nothing, the beginning, and places of keys and values.
pub(super) fn file_seeds() -> Vec<Vec<u8>> {
    patches(&example().0, &[b"owner/7", b"datanode/1", &[9; 60]])
}
