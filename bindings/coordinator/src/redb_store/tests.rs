//! The engine alone: files, crashes at every write, and a model.

mod leases;

use super::*;
use crate::contract::Condition;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Mutex};

fn put(store: &mut RedbStore, key: &str, value: &[u8]) -> Result<Answer, StoreError> {
    store.execute(&Operation::Transact(Transaction::new().put(key, value.to_vec())))
}

fn get(store: &mut RedbStore, key: &str) -> Option<Versioned> {
    match store.execute(&Operation::Get { key: key.to_owned() }) {
        Ok(Answer::Value(value)) => value,
        other => panic!("a get was answered by {other:?}"),
    }
}

#[test]
fn what_was_committed_is_there_after_a_restart_and_the_file_is_private() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let mut store = RedbStore::open(&path).unwrap();
    put(&mut store, "a", b"1").unwrap();
    put(&mut store, "a", b"2").unwrap();
    assert!(matches!(RedbStore::open(&path), Err(OpenError::InUse(_))));
    drop(store);
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let mut store = RedbStore::open(&path).unwrap();
    assert_eq!(get(&mut store, "a"), Some(Versioned { value: b"2".to_vec(), revision: 2 }));
    assert_eq!(put(&mut store, "b", b"").unwrap(), Answer::Transacted(Outcome::Committed(3)));
}

#[test]
fn a_file_that_is_no_store_is_refused_and_kept() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let garbage = vec![0xa5; 1 << 16];
    std::fs::write(&path, &garbage).unwrap();
    let error = RedbStore::open(&path).err().unwrap();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    assert!(!error.to_string().contains('\n'));
    assert_eq!(std::fs::read(&path).unwrap(), garbage);
    let missing = directory.path().join("no/store");
    assert!(matches!(RedbStore::open(&missing), Err(OpenError::Io { .. })));
}

#[test]
fn a_creation_that_was_cut_short_is_begun_anew_and_an_empty_file_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    std::fs::write(directory.path().join("store.new"), vec![0; 70_000]).unwrap();
    let mut store = RedbStore::open(&path).unwrap();
    put(&mut store, "a", b"1").unwrap();
    drop(store);
    assert!(!directory.path().join("store.new").exists());
    assert_eq!(RedbStore::open(&path).unwrap().revision(), 1);
    std::fs::write(&path, b"").unwrap();
    let error = RedbStore::open(&path).err().unwrap();
    assert!(error.to_string().contains("it is empty"), "{error}");
}

#[test]
fn a_store_of_another_format_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    drop(RedbStore::open(&path).unwrap());
    let database = Database::open(&path).unwrap();
    let write = database.begin_write().unwrap();
    write.open_table(STATE).unwrap().insert("format", 3).unwrap();
    write.commit().unwrap();
    drop(database);
    let error = RedbStore::open(&path).err().unwrap().to_string();
    assert!(error.contains("format is 3"), "{error}");
}

#[test]
fn the_history_is_bounded_and_says_what_it_forgot() {
    let mut history = History::after(7);
    let changed = |revision| Changed {
        revision,
        changes: vec![Change { key: "key".to_owned(), value: Some(vec![0; 100]), lease: None }],
    };
    for revision in 8..8 + HISTORY_MAX as u64 {
        history.push(changed(revision));
    }
    assert_eq!((history.forgotten, history.recent.len()), (7, HISTORY_MAX));
    history.push(changed(8 + HISTORY_MAX as u64));
    assert_eq!((history.forgotten, history.recent.len()), (8, HISTORY_MAX));
    let large = Changed {
        revision: 1 << 20,
        changes: vec![Change {
            key: "key".to_owned(),
            value: Some(vec![0; HISTORY_BYTES_MAX]),
            lease: None,
        }],
    };
    history.push(large);
    assert_eq!((history.forgotten, history.recent.len(), history.bytes), (1 << 20, 0, 0));
}

#[test]
fn a_list_beyond_its_bound_is_refused() {
    let mut store = RedbStore::in_memory();
    let value = vec![0; crate::contract::VALUE_BYTES_MAX];
    for number in 0..LIST_BYTES_MAX / value.len() {
        put(&mut store, &format!("large/{number}"), &value).unwrap();
    }
    let list = |prefix: &str| Operation::List { prefix: prefix.to_owned() };
    assert!(matches!(store.execute(&list("large/")), Err(StoreError::Invalid(_))));
    assert!(store.execute(&list("large/1")).is_ok());
}

/// A disk whose unsynced writes may be lost one by one, and which fails after a number of calls.
#[derive(Debug, Default)]
struct Disk {
    durable: Vec<u8>,
    /// What was written since the last sync, in order.
    volatile: Vec<(u64, Vec<u8>)>,
    present: Vec<u8>,
    calls_left: usize,
}

#[derive(Clone, Debug, Default)]
struct FaultyDisk(Arc<Mutex<Disk>>);

impl FaultyDisk {
    fn call<T>(&self, what: impl FnOnce(&mut Disk) -> T) -> io::Result<T> {
        let mut disk = self.0.lock().unwrap();
        if disk.calls_left == 0 {
            return Err(io::Error::other("planned failure"));
        }
        disk.calls_left -= 1;
        Ok(what(&mut disk))
    }

    /// Power returns: of the unsynced writes those survive that `kept` names by its bits.
    fn crash(&self, kept: u64) {
        let mut disk = self.0.lock().unwrap();
        let disk = &mut *disk;
        let length = disk.present.len();
        disk.durable.resize(length, 0);
        for (number, (offset, data)) in disk.volatile.drain(..).enumerate() {
            let end = offset as usize + data.len();
            if kept >> (number % 64) & 1 == 1 && end <= length {
                disk.durable[offset as usize..end].copy_from_slice(&data);
            }
        }
        disk.present = disk.durable.clone();
        disk.calls_left = usize::MAX;
    }
}

impl StorageBackend for FaultyDisk {
    fn len(&self) -> io::Result<u64> {
        self.call(|disk| disk.present.len() as u64)
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        self.call(|disk| out.copy_from_slice(&disk.present[start..start + out.len()]))
    }
    fn set_len(&self, length: u64) -> io::Result<()> {
        self.call(|disk| disk.present.resize(length as usize, 0))
    }
    fn sync_data(&self) -> io::Result<()> {
        self.call(|disk| {
            disk.volatile.clear();
            disk.durable = disk.present.clone();
        })
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.call(|disk| {
            let start = offset as usize;
            disk.present[start..start + data.len()].copy_from_slice(data);
            disk.volatile.push((offset, data.to_vec()));
        })
    }
}

#[test]
fn a_crash_at_any_call_leaves_the_state_before_or_after_the_transaction() {
    let disk = FaultyDisk::default();
    disk.0.lock().unwrap().calls_left = usize::MAX;
    let opened = disk.clone();
    let opener = move || open_backend(opened.clone(), Path::new("faulty"));
    let mut store = RedbStore::with(Box::new(opener)).unwrap();
    put(&mut store, "a", b"old").unwrap();
    put(&mut store, "b", b"old").unwrap();
    let (mut before, mut after, mut unanswered) = (0, 0, 0);
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..200 {
        // Everything that was written survives, or an arbitrary part of it.
        let calls = round / 2;
        random = random.rotate_left(7).wrapping_mul(0x2545_f491_4f6c_dd1d);
        let kept = if round % 2 == 0 { u64::MAX } else { random };
        let revision = store.revision();
        let value = round.to_string().into_bytes();
        let old = get(&mut store, "a").unwrap();
        disk.0.lock().unwrap().calls_left = calls;
        let both = Transaction::new().put("a", value.clone()).put("b", value.clone());
        let result = store.execute(&Operation::Transact(both));
        if result.is_err() {
            assert_eq!(result, Err(StoreError::Unknown));
        }
        // Answered is durable: a crash right after, without a clean close, must not lose it.
        disk.0.lock().unwrap().calls_left = 0;
        store.database = None;
        disk.crash(kept);
        let (a, b) = (get(&mut store, "a").unwrap(), get(&mut store, "b").unwrap());
        assert_eq!(a.value, b.value);
        if a.value == value {
            after += 1;
            assert_eq!((a.revision, store.revision()), (revision + 1, revision + 1));
            if result.is_err() {
                unanswered += 1;
                assert_eq!(store.changes("", revision + 1), None, "a watch must list again");
            }
        } else {
            before += 1;
            assert!(result.is_err(), "lost an answered transaction after {calls} calls");
            assert_eq!(a, old);
            assert_eq!(store.revision(), revision);
        }
    }
    assert!(
        before > 0 && after > unanswered && unanswered > 0,
        "{before} before, {after} after, {unanswered} of them unanswered"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Transact(Vec<(u8, bool)>, Vec<(u8, Option<u8>)>),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let conditions = prop::collection::vec((0..6_u8, any::<bool>()), 0..3);
    let changes = prop::collection::btree_map(0..6_u8, any::<Option<u8>>(), 0..4);
    let transact =
        (conditions, changes).prop_map(|(c, p)| Step::Transact(c, p.into_iter().collect()));
    prop::collection::vec(prop_oneof![9 => transact, 1 => Just(Step::Reopen)], 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn the_store_is_a_map_with_revisions(steps in steps()) {
        let disk = FaultyDisk::default();
        disk.0.lock().unwrap().calls_left = usize::MAX;
        let opener = move || open_backend(disk.clone(), Path::new("memory"));
        let mut store = RedbStore::with(Box::new(opener)).unwrap();
        let mut model: BTreeMap<String, Versioned> = BTreeMap::new();
        let mut log: Vec<Changed> = Vec::new();
        let mut revision = 0;
        let name = |key: u8| format!("{}/{key}", if key < 3 { "low" } else { "high" });
        for step in steps {
            let Step::Transact(conditions, changes) = step else {
                store.database = None;
                continue;
            };
            let present = |key: &str| model.get(key).map_or(0, |entry| entry.revision);
            let conditions: Vec<Condition> = conditions
                .into_iter()
                .map(|(key, holds)| (name(key), holds))
                .map(|(key, holds)| Condition { revision: present(&key) + u64::from(!holds), key })
                .collect();
            let changes: Vec<Change> = changes
                .into_iter()
                .map(|(key, value)| Change { key: name(key), value: value.map(|byte| vec![byte]), lease: None })
                .collect();
            let holds = conditions.iter().all(|c| present(&c.key) == c.revision);
            let effective: Vec<Change> = changes
                .iter()
                .filter(|change| change.value.is_some() || model.contains_key(&change.key))
                .cloned()
                .collect();
            let outcome = if holds {
                if !effective.is_empty() {
                    revision += 1;
                    log.push(Changed { revision, changes: effective });
                }
                for change in &changes {
                    match &change.value {
                        Some(value) => {
                            let entry = Versioned { value: value.clone(), revision };
                            model.insert(change.key.clone(), entry);
                        }
                        None => drop(model.remove(&change.key)),
                    }
                }
                Outcome::Committed(revision)
            } else {
                Outcome::Conflict
            };
            let answer = store.execute(&Operation::Transact(Transaction { conditions, changes }));
            prop_assert_eq!(answer, Ok(Answer::Transacted(outcome)));
            for prefix in ["", "low/", "high/", "none"] {
                let entries = model.iter().filter(|(key, _)| key.starts_with(prefix));
                let entries = entries.map(|(key, value)| (key.clone(), value.clone())).collect();
                let listing = store.execute(&Operation::List { prefix: prefix.to_owned() });
                prop_assert_eq!(listing, Ok(Answer::List(Listing { revision, entries })));
                let expected: Vec<_> = log.iter().filter_map(|c| matching(c, prefix)).collect();
                prop_assert_eq!(store.changes(prefix, 1), Some(expected));
            }
            prop_assert_eq!(store.changes("", 0), None);
            prop_assert_eq!(store.changes("", revision + 2), None);
        }
    }
}
