//! Leases in the engine alone: a made-up clock, crashes, a model.

use super::*;
use crate::contract::LeaseId;

const SECOND: Duration = Duration::from_secs(1);

fn at(millis: u64) -> Moment {
    Moment(0) + Duration::from_millis(millis)
}

fn on(disk: &FaultyDisk) -> RedbStore {
    disk.0.lock().unwrap().calls_left = usize::MAX;
    let opened = disk.clone();
    RedbStore::with(Box::new(move || open_backend(opened.clone(), Path::new("faulty")))).unwrap()
}

fn grant(store: &mut RedbStore, duration: Duration) -> LeaseId {
    match store.execute(&Operation::Grant { duration }) {
        Ok(Answer::Granted(lease)) => {
            assert_eq!(lease.duration, duration);
            lease.id
        }
        other => panic!("a grant was answered by {other:?}"),
    }
}

fn put_leased(store: &mut RedbStore, key: &str, lease: LeaseId) -> Result<Answer, StoreError> {
    let put = Transaction::new().put_leased(key, b"held".to_vec(), lease);
    store.execute(&Operation::Transact(put))
}

/// Looks at the clock as its owner does, until `until`; the moment at which nothing is left.
fn run(store: &mut RedbStore, from: u64, until: u64) -> Option<u64> {
    let mut now = at(from);
    while now <= at(until) {
        store.step(now);
        match store.next_step() {
            Some(next) => now = next.max(now),
            None => return Some(now.0 / 1_000_000),
        }
    }
    None
}

/// What there is, as text.
fn state(store: &mut RedbStore) -> String {
    let Ok(Answer::List(listing)) = store.execute(&Operation::List { prefix: String::new() })
    else {
        panic!("memory can be read");
    };
    format!("{listing:?} {:?}", store.leases().collect::<Vec<_>>())
}

#[test]
fn a_lease_ends_when_its_duration_is_over_and_not_before() {
    let mut store = RedbStore::in_memory();
    assert_eq!(store.next_step(), None);
    store.step(at(100_000));
    let lease = grant(&mut store, 3 * SECOND);
    put_leased(&mut store, "a", lease).unwrap();
    assert_eq!(run(&mut store, 100_000, 102_999), None);
    assert!(get(&mut store, "a").is_some());
    // Renewed, then left alone.
    assert_eq!(store.execute(&Operation::Renew { lease }), Ok(Answer::Renewed(true)));
    assert_eq!(run(&mut store, 102_999, 200_000), Some(105_999));
    assert_eq!((get(&mut store, "a"), store.revision()), (None, 2));
    assert_eq!(store.changes("", 2).unwrap()[0].changes[0].value, None);
    assert_eq!(store.execute(&Operation::Renew { lease }), Ok(Answer::Renewed(false)));
}

#[test]
fn after_a_start_or_a_stand_still_leases_have_their_full_duration() {
    let disk = FaultyDisk::default();
    let mut store = on(&disk);
    let lease = grant(&mut store, 4 * SECOND);
    let other = grant(&mut store, 9 * SECOND);
    put_leased(&mut store, "a", lease).unwrap();
    assert_eq!(run(&mut store, 0, 3_900), None);
    // Another process, whose clock begins elsewhere.
    drop(store);
    let mut store = on(&disk);
    assert_eq!(store.leases().map(|(lease, ..)| lease).collect::<Vec<_>>(), [lease, other]);
    assert_eq!(run(&mut store, 50_000, 53_999), None);
    assert!(get(&mut store, "a").is_some());
    // Stopped for a minute: renewals may have waited for that long.
    assert_eq!(run(&mut store, 113_000, 116_999), None);
    assert!(get(&mut store, "a").is_some());
    assert_eq!(run(&mut store, 117_000, 200_000), Some(122_000));
    assert!(get(&mut store, "a").is_none());
    // Numbers are not given again, also when the newest leases are gone.
    drop(store);
    assert!(grant(&mut on(&disk), SECOND) > other);
}

#[test]
fn a_crash_at_any_call_leaves_leases_before_or_after() {
    type Step = fn(&mut RedbStore, LeaseId) -> Result<Answer, StoreError>;
    let grants: Step = |store, _| store.execute(&Operation::Grant { duration: SECOND });
    let attaches: Step = |store, lease| put_leased(store, "b", lease);
    let moves: Step = |store, _| put(store, "a", b"freed");
    let revokes: Step = |store, lease| store.execute(&Operation::Revoke { lease });
    for step in [grants, attaches, moves, revokes] {
        let (mut before, mut after) = (0, 0);
        for round in 0..120 {
            let disk = FaultyDisk::default();
            let mut store = on(&disk);
            let lease = grant(&mut store, SECOND);
            put_leased(&mut store, "a", lease).unwrap();
            let old = state(&mut store);
            let kept = if round % 2 == 0 { u64::MAX } else { 0x5bd1_e995_u64.wrapping_mul(round) };
            disk.0.lock().unwrap().calls_left = round as usize / 2;
            let answered = step(&mut store, lease);
            disk.0.lock().unwrap().calls_left = 0;
            drop(store);
            disk.crash(kept);
            let mut store = on(&disk);
            let found = state(&mut store);
            if found == old {
                before += 1;
                assert!(answered.is_err(), "lost an answered change");
                step(&mut store, lease).unwrap();
            } else {
                after += 1;
                // Done again on a whole one, it leads to the same.
                let whole = FaultyDisk::default();
                let mut whole = on(&whole);
                let lease = grant(&mut whole, SECOND);
                put_leased(&mut whole, "a", lease).unwrap();
                step(&mut whole, lease).unwrap();
                assert_eq!(found, state(&mut whole));
            }
        }
        assert!(before > 0 && after > 0, "{before} before, {after} after");
    }
}

#[test]
fn an_end_that_cannot_be_recorded_is_tried_again() {
    let disk = FaultyDisk::default();
    let mut store = on(&disk);
    let lease = grant(&mut store, SECOND);
    put_leased(&mut store, "a", lease).unwrap();
    assert_eq!(run(&mut store, 0, 999), None);
    disk.0.lock().unwrap().calls_left = 0;
    assert_eq!(run(&mut store, 1_000, 5_000), None);
    disk.0.lock().unwrap().calls_left = usize::MAX;
    // The file is opened again, which is a start for its leases.
    let ended = run(&mut store, 5_000, 60_000).unwrap();
    assert!((6_000..8_000).contains(&ended), "{ended}");
    assert_eq!(get(&mut store, "a"), None);
}

#[test]
fn leases_and_their_keys_are_bounded() {
    let mut store = RedbStore::in_memory();
    let lease = grant(&mut store, SECOND);
    for number in 0..LEASE_KEYS_MAX {
        put_leased(&mut store, &number.to_string(), lease).unwrap();
    }
    let more = put_leased(&mut store, "more", lease);
    assert!(matches!(more, Err(StoreError::Invalid(_))), "{more:?}");
    // One that it has already is no more.
    put_leased(&mut store, "7", lease).unwrap();
    for _ in 1..LEASES_MAX {
        grant(&mut store, SECOND);
    }
    let refused = store.execute(&Operation::Grant { duration: SECOND });
    assert!(matches!(refused, Err(StoreError::Invalid(_))), "{refused:?}");
    store.execute(&Operation::Revoke { lease }).unwrap();
    assert_eq!((grant(&mut store, SECOND).0, get(&mut store, "7")), (1 + LEASES_MAX as u64, None));
}

/// Changes a file behind the store's back.
fn tamper(path: &Path, change: impl FnOnce(&WriteTransaction)) {
    let database = Database::open(path).unwrap();
    let write = database.begin_write().unwrap();
    change(&write);
    write.commit().unwrap();
}

#[test]
fn a_file_of_the_format_before_leases_becomes_one_of_this() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    put(&mut RedbStore::open(&path).unwrap(), "a", b"1").unwrap();
    tamper(&path, |write| {
        write.delete_table(LEASES).unwrap();
        write.delete_table(LEASED).unwrap();
        let mut state = write.open_table(STATE).unwrap();
        state.remove("lease").unwrap();
        state.insert("format", FORMAT_BEFORE_LEASES).unwrap();
    });
    for revision in 1..3 {
        let mut store = RedbStore::open(&path).unwrap();
        assert_eq!((get(&mut store, "a").unwrap().value, store.revision()), (vec![b'1'], revision));
        let lease = grant(&mut store, SECOND);
        put_leased(&mut store, "b", lease).unwrap();
    }
}

#[test]
fn leases_that_contradict_themselves_are_refused() {
    type Damage = fn(&WriteTransaction);
    let contradictions: [(&str, Damage); 4] = [
        ("belongs to lease 7", |write| {
            drop(write.open_table(LEASED).unwrap().insert("a", 7).unwrap());
        }),
        ("belongs to lease 1", |write| {
            drop(write.open_table(LEASED).unwrap().insert("none", 1).unwrap());
        }),
        ("newer than the newest", |write| {
            drop(write.open_table(STATE).unwrap().insert("lease", 0).unwrap());
        }),
        ("no lease's number", |write| {
            drop(write.open_table(STATE).unwrap().remove("lease").unwrap());
        }),
    ];
    for (said, change) in contradictions {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let mut store = RedbStore::open(&path).unwrap();
        let lease = grant(&mut store, SECOND);
        put_leased(&mut store, "a", lease).unwrap();
        drop(store);
        tamper(&path, change);
        let error = RedbStore::open(&path).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    Grant(u64),
    Renew(usize),
    Revoke(usize),
    Put(u8, Option<usize>),
    Delete(u8),
    Pass(u64),
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        2 => (1..5_u64).prop_map(Step::Grant),
        2 => (0..4_usize).prop_map(Step::Renew),
        1 => (0..4_usize).prop_map(Step::Revoke),
        6 => (0..5_u8, prop::option::of(0..4_usize)).prop_map(|(key, lease)| Step::Put(key, lease)),
        1 => (0..5_u8).prop_map(Step::Delete),
        6 => (1..14_u64).prop_map(Step::Pass),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..60)
}

/// A lease of the model: its duration, when it ends, and whether it is over.
struct Model {
    id: LeaseId,
    duration: u64,
    end: u64,
    over: bool,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn keys_go_when_their_leases_end(steps in steps()) {
        let disk = FaultyDisk::default();
        let mut store = on(&disk);
        let mut now = 1_000;
        let mut leases: Vec<Model> = Vec::new();
        let mut keys: BTreeMap<u8, Option<LeaseId>> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Grant(seconds) => {
                    let id = grant(&mut store, seconds as u32 * SECOND);
                    let duration = 1_000 * seconds;
                    leases.push(Model { id, duration, end: now + duration, over: false });
                }
                Step::Renew(number) => {
                    let Some(lease) = leases.get_mut(number) else { continue };
                    let answer = store.execute(&Operation::Renew { lease: lease.id });
                    prop_assert_eq!(answer, Ok(Answer::Renewed(!lease.over)));
                    lease.end = now + lease.duration;
                }
                Step::Revoke(number) => {
                    let Some(lease) = leases.get_mut(number) else { continue };
                    lease.over = true;
                    let answer = store.execute(&Operation::Revoke { lease: lease.id });
                    prop_assert_eq!(answer, Ok(Answer::Revoked));
                }
                Step::Put(key, None) => {
                    put(&mut store, &key.to_string(), b"1").unwrap();
                    keys.insert(key, None);
                }
                Step::Put(key, Some(number)) => {
                    let Some(lease) = leases.get(number) else { continue };
                    let answer = put_leased(&mut store, &key.to_string(), lease.id);
                    prop_assert_eq!(answer == Err(StoreError::NoLease), lease.over);
                    if !lease.over {
                        keys.insert(key, Some(lease.id));
                    }
                }
                Step::Delete(key) => {
                    let delete = Transaction::new().delete(key.to_string());
                    store.execute(&Operation::Transact(delete)).unwrap();
                    keys.remove(&key);
                }
                Step::Pass(tenths) => {
                    // The owner looks at the clock at once after each operation.
                    prop_assert!(run(&mut store, now, now).is_none() || store.next_step().is_none());
                    now += 100 * tenths;
                    run(&mut store, now, now);
                    for lease in &mut leases {
                        lease.over |= lease.end <= now;
                    }
                }
                Step::Reopen => {
                    run(&mut store, now, now);
                    drop(store);
                    store = on(&disk);
                    for lease in &mut leases {
                        lease.end = now + lease.duration;
                    }
                }
            }
            if store.next_step().is_some() {
                store.step(at(now));
            }
            let over = |id: &LeaseId| leases.iter().any(|lease| lease.id == *id && lease.over);
            keys.retain(|_, lease| lease.as_ref().is_none_or(|lease| !over(lease)));
            let Ok(Answer::List(found)) = store.execute(&Operation::List { prefix: String::new() })
            else {
                panic!("memory can be read");
            };
            let found: Vec<&str> = found.entries.iter().map(|(key, _)| key.as_str()).collect();
            let wanted: Vec<String> = keys.keys().map(u8::to_string).collect();
            prop_assert_eq!(found, wanted);
        }
    }
}
