//! One process's store in a redb file, or in memory for tests and the simulator.
//!
//! Four tables: `values` (key → revision of its last change, bytes), `leases` (number → duration in nanoseconds),
//! `leased` (key → number of its lease) and `state` (`format`, `revision`, `lease`: the newest number). A file of
//! format 1 has no leases, and becomes one of format 2 when it is opened. A transaction, the grant of a lease and its end
//! each change all of them in one redb commit that is durable when it returns, so
//! a crash leaves the state before or after it, never between; redb repairs the file when it is
//! opened next. It is made under another name and gets its own when it is whole; one that is empty was not left by a
//! crash, and is refused. The file is locked for as long as the store is open, and is readable by its owner
//! only.
//!
//! Recent changes are remembered in memory, within bounds, for watches; after a restart nothing
//! is. When redb reports an error its state is dropped and the file opened again before the next
//! operation, because redb refuses to go on after one; a transaction that met it is
//! [`StoreError::Unknown`].
//!
//! Renewals are not recorded: when leases run out is known in memory only, so after a start, and after an error
//! of the file, each has its full duration again. Whoever owns the store tells it the time ([`RedbStore::step`]).

mod leases;

use crate::contract::{
    Answer, Change, Changed, ENTRY_BYTES, Key, LEASE_KEYS_MAX, LEASES_MAX, LIST_BYTES_MAX, Lease,
    LeaseId, Listing, Operation, Outcome, StoreError, Transaction, Versioned, validate,
};
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::time::Moment;
use leases::Leases;
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition, WriteTransaction,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

const VALUES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("values");
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");
const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
const LEASED: TableDefinition<&str, u64> = TableDefinition::new("leased");
const FORMAT: u64 = 2;
/// Without leases.
const FORMAT_BEFORE_LEASES: u64 = 1;
/// The store is small; redb's default would be 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

/// When the end of a lease is tried again that could not be recorded.
const AGAIN_AFTER: Duration = Duration::from_secs(1);

/// Most transactions that are remembered for watches.
pub const HISTORY_MAX: usize = 4096;
/// Most bytes of keys and values that are remembered for watches.
pub const HISTORY_BYTES_MAX: usize = 16 << 20;

/// Why a store's file cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the store {0} is in use by another process; stop that one first")]
    InUse(PathBuf),
    /// It is not a store, or of another format.
    #[error("{path} is not a coordinator store that this version can read: {reason}")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The system refused.
    #[error("cannot open the store {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Opens the file anew.
type Opener = Box<dyn Fn() -> Result<Opened, OpenError> + Send>;

/// An open file, and what is resident of it.
struct Opened {
    database: Database,
    revision: u64,
    leases: Leases,
    newest_lease: u64,
}

/// The store. One thread at a time.
pub struct RedbStore {
    opener: Opener,
    /// `None` after an error, until the file is opened again.
    database: Option<Database>,
    revision: u64,
    history: History,
    leases: Leases,
    newest_lease: u64,
}

impl RedbStore {
    /// Opens the file, creating it if there is none.
    pub fn open(path: &Path) -> Result<RedbStore, OpenError> {
        let path = path.to_owned();
        RedbStore::with(Box::new(move || open_file(&path)))
    }

    /// An empty store that ends with this value.
    pub fn in_memory() -> RedbStore {
        let opener = || open_backend(InMemoryBackend::new(), Path::new("in memory"));
        RedbStore::with(Box::new(opener)).expect("an empty database in memory opens")
    }

    /// Opens what a storage of the caller's holds, creating a store if it is empty. `storage` is asked for it
    /// again after an error; `name` stands in messages.
    pub fn on_storage<S: StorageBackend>(
        name: &Path,
        storage: impl Fn() -> S + Send + 'static,
    ) -> Result<RedbStore, OpenError> {
        let name = name.to_owned();
        RedbStore::with(Box::new(move || open_backend(storage(), &name)))
    }

    fn with(opener: Opener) -> Result<RedbStore, OpenError> {
        let Opened { database, revision, leases, newest_lease } = opener()?;
        let history = History::after(revision);
        Ok(RedbStore { opener, database: Some(database), revision, history, leases, newest_lease })
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The leases that there are, with their durations and keys.
    pub fn leases(&self) -> impl Iterator<Item = (LeaseId, Duration, &BTreeSet<Key>)> {
        self.leases.list()
    }

    /// Says what time it is: leases that were granted or renewed since the last time begin now, and those that have
    /// run out end.
    pub fn step(&mut self, now: Moment) {
        self.leases.arm(now);
        while let Some(lease) = self.leases.due(now) {
            let ended = self.reopen().and_then(|()| match self.end_lease(lease) {
                Ok(answer) => answer,
                Err(error) => Err(self.failed(&error, StoreError::Unknown)),
            });
            if ended.is_err() {
                self.leases.postpone(lease, now + AGAIN_AFTER);
            }
        }
    }

    /// When to say it next; `None` while there is no lease.
    pub fn next_step(&self) -> Option<Moment> {
        self.leases.next_look()
    }

    /// Carries out a get, a list, a transaction, or what concerns leases; what it changed is durable. A lease that is
    /// granted or renewed begins at the next [`step`](RedbStore::step). Watches belong to
    /// the [`Hub`](crate::hub::Hub), which asks for [`changes`](RedbStore::changes).
    pub fn execute(&mut self, operation: &Operation) -> Result<Answer, StoreError> {
        validate(operation)?;
        self.reopen()?;
        let result = match operation {
            Operation::Get { key } => self.get(key),
            Operation::List { prefix } => self.list(prefix),
            Operation::Transact(transaction) => self.transact(transaction),
            Operation::Grant { duration } => self.grant(*duration),
            Operation::Renew { lease } => Ok(Ok(Answer::Renewed(self.leases.renew(*lease)))),
            Operation::Revoke { lease } => self.end_lease(*lease),
            Operation::Watch { .. } | Operation::Unwatch { .. } => {
                unreachable!("the hub keeps the watches")
            }
        };
        result.unwrap_or_else(|error| {
            let told = match operation {
                Operation::Transact(_) => StoreError::Unknown,
                _ => StoreError::Failed(error.to_string()),
            };
            Err(self.failed(&error, told))
        })
    }

    /// Closes the file, so that the next operation opens it again.
    fn failed(&mut self, error: &redb::Error, told: StoreError) -> StoreError {
        tracing::error!("the coordinator store failed: {error}");
        self.database = None;
        told
    }

    /// Changes to keys that begin with `prefix`, from revision `from` on, in order. `None` when
    /// not all of them are remembered, or when `from` is not reached yet.
    pub fn changes(&self, prefix: &str, from: u64) -> Option<Vec<Changed>> {
        if from <= self.history.forgotten || from > self.revision + 1 {
            return None;
        }
        let recent = &self.history.recent;
        let start = recent.partition_point(|changed| changed.revision < from);
        Some(recent.iter().skip(start).filter_map(|changed| matching(changed, prefix)).collect())
    }

    fn reopen(&mut self) -> Result<(), StoreError> {
        if self.database.is_some() {
            return Ok(());
        }
        let Opened { database, revision, leases, newest_lease } =
            (self.opener)().map_err(|error| StoreError::Failed(error.to_string()))?;
        self.database = Some(database);
        (self.leases, self.newest_lease) = (leases, newest_lease);
        if revision != self.revision {
            // The transaction that met the error was committed after all.
            self.revision = revision;
            self.history = History::after(revision);
        }
        Ok(())
    }

    fn database(&self) -> &Database {
        self.database.as_ref().expect("an operation begins with an open database")
    }

    fn get(&self, key: &str) -> Result<Result<Answer, StoreError>, redb::Error> {
        let read = self.database().begin_read()?;
        let found = read.open_table(VALUES)?.get(key)?;
        Ok(Ok(Answer::Value(found.map(|entry| versioned(entry.value())))))
    }

    fn list(&self, prefix: &str) -> Result<Result<Answer, StoreError>, redb::Error> {
        let read = self.database().begin_read()?;
        let table = read.open_table(VALUES)?;
        let mut entries = Vec::new();
        let mut bytes = 0;
        for entry in table.range(prefix..)? {
            let (key, value) = entry?;
            let key = key.value();
            if !key.starts_with(prefix) {
                break;
            }
            bytes += ENTRY_BYTES + key.len() + value.value().1.len();
            if bytes > LIST_BYTES_MAX {
                let what = format!("the list of {prefix:?} is too long; list narrower prefixes");
                return Ok(Err(StoreError::Invalid(what)));
            }
            entries.push((key.to_owned(), versioned(value.value())));
        }
        Ok(Ok(Answer::List(Listing { revision: self.revision, entries })))
    }

    fn transact(
        &mut self,
        transaction: &Transaction,
    ) -> Result<Result<Answer, StoreError>, redb::Error> {
        let answer = |outcome| Ok(Ok(Answer::Transacted(outcome)));
        let write = self.begin()?;
        let revision = self.revision + 1;
        let mut effective = Vec::new();
        {
            let mut values = write.open_table(VALUES)?;
            for condition in &transaction.conditions {
                let found = values.get(condition.key.as_str())?;
                if found.map_or(0, |entry| entry.value().0) != condition.revision {
                    drop(values);
                    write.abort()?;
                    return answer(Outcome::Conflict);
                }
            }
            if let Err(error) = self.check_leases(transaction) {
                drop(values);
                write.abort()?;
                return Ok(Err(error));
            }
            for change in &transaction.changes {
                let key = change.key.as_str();
                let changed = match &change.value {
                    Some(value) => {
                        values.insert(key, (revision, value.as_slice()))?;
                        true
                    }
                    None => values.remove(key)?.is_some(),
                };
                if changed {
                    effective.push(change.clone());
                }
                if changed && change.lease != self.leases.of(key) {
                    let mut leased = write.open_table(LEASED)?;
                    match change.lease {
                        Some(lease) => drop(leased.insert(key, lease.0)?),
                        None => drop(leased.remove(key)?),
                    }
                }
            }
            write.open_table(STATE)?.insert("revision", revision)?;
        }
        if effective.is_empty() {
            write.abort()?;
            return answer(Outcome::Committed(self.revision));
        }
        commit(write)?;
        for change in &effective {
            self.leases.attach(&change.key, change.lease);
        }
        self.revision = revision;
        self.history.push(Changed { revision, changes: effective });
        answer(Outcome::Committed(revision))
    }

    /// Whether the leases that a transaction names are there, and have room for its keys.
    fn check_leases(&self, transaction: &Transaction) -> Result<(), StoreError> {
        let mut more = BTreeMap::new();
        for change in &transaction.changes {
            let Some(lease) = change.lease else { continue };
            if !self.leases.contains(lease) {
                return Err(StoreError::NoLease);
            }
            if self.leases.of(&change.key) != Some(lease) {
                *more.entry(lease).or_insert(0) += 1;
            }
        }
        for (lease, more) in more {
            if self.leases.keys(lease).count() + more > LEASE_KEYS_MAX {
                let what = format!("more than {LEASE_KEYS_MAX} keys of one lease");
                return Err(StoreError::Invalid(what));
            }
        }
        Ok(())
    }

    fn grant(&mut self, duration: Duration) -> Result<Result<Answer, StoreError>, redb::Error> {
        if self.leases.len() >= LEASES_MAX {
            return Ok(Err(StoreError::Invalid(format!("more than {LEASES_MAX} leases"))));
        }
        let number = self.newest_lease + 1;
        let nanos = u64::try_from(duration.as_nanos()).expect("an hour at most, as was checked");
        let write = self.begin()?;
        write.open_table(LEASES)?.insert(number, nanos)?;
        write.open_table(STATE)?.insert("lease", number)?;
        commit(write)?;
        self.newest_lease = number;
        let id = LeaseId(number);
        self.leases.grant(id, duration);
        Ok(Ok(Answer::Granted(Lease { id, duration })))
    }

    /// Deletes a lease and its keys, if it is there.
    fn end_lease(&mut self, lease: LeaseId) -> Result<Result<Answer, StoreError>, redb::Error> {
        if !self.leases.contains(lease) {
            return Ok(Ok(Answer::Revoked));
        }
        let delete = |key: &Key| Change { key: key.clone(), value: None, lease: None };
        let changes: Vec<Change> = self.leases.keys(lease).map(delete).collect();
        let revision = self.revision + u64::from(!changes.is_empty());
        let write = self.begin()?;
        {
            let mut values = write.open_table(VALUES)?;
            let mut leased = write.open_table(LEASED)?;
            for change in &changes {
                values.remove(change.key.as_str())?;
                leased.remove(change.key.as_str())?;
            }
            write.open_table(LEASES)?.remove(lease.0)?;
            write.open_table(STATE)?.insert("revision", revision)?;
        }
        commit(write)?;
        self.leases.remove(lease);
        self.revision = revision;
        if !changes.is_empty() {
            self.history.push(Changed { revision, changes });
        }
        Ok(Ok(Answer::Revoked))
    }

    fn begin(&self) -> Result<WriteTransaction, redb::Error> {
        let mut write = self.database().begin_write()?;
        // In two phases, so that after a crash rot is not taken for a transaction that was cut short: what was
        // acknowledged is never rolled back.
        write.set_two_phase_commit(true);
        Ok(write)
    }
}

fn commit(write: WriteTransaction) -> Result<(), redb::Error> {
    reached(Point::StorePrepared);
    write.commit()?;
    reached(Point::StoreCommitted);
    Ok(())
}

fn versioned((revision, value): (u64, &[u8])) -> Versioned {
    Versioned { value: value.to_vec(), revision }
}

fn matching(changed: &Changed, prefix: &str) -> Option<Changed> {
    let matches = |change: &&Change| change.key.starts_with(prefix);
    let changes: Vec<Change> = changed.changes.iter().filter(matches).cloned().collect();
    (!changes.is_empty()).then_some(Changed { revision: changed.revision, changes })
}

/// The newest transactions, within bounds.
struct History {
    /// Changes of later revisions than this one are all in `recent`.
    forgotten: u64,
    recent: VecDeque<Changed>,
    bytes: usize,
}

impl History {
    fn after(revision: u64) -> History {
        History { forgotten: revision, recent: VecDeque::new(), bytes: 0 }
    }

    fn push(&mut self, changed: Changed) {
        self.bytes += bytes(&changed);
        self.recent.push_back(changed);
        while self.recent.len() > HISTORY_MAX || self.bytes > HISTORY_BYTES_MAX {
            let oldest = self.recent.pop_front().expect("what is over its bounds is not empty");
            self.bytes -= bytes(&oldest);
            self.forgotten = oldest.revision;
        }
    }
}

fn bytes(changed: &Changed) -> usize {
    let one = |change: &Change| {
        ENTRY_BYTES + change.key.len() + change.value.as_ref().map_or(0, Vec::len)
    };
    changed.changes.iter().map(one).sum()
}

fn open_file(path: &Path) -> Result<Opened, OpenError> {
    let refused = |error| OpenError::Io { path: path.to_owned(), error };
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    let file = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_file(path, &options)?;
            options.open(path)
        }
        opened => opened,
    };
    let file = file.map_err(refused)?;
    let empty = file.metadata().map_err(refused)?.len() == 0;
    let backend = FileBackend::new(file).map_err(|error| cannot_open(error, path))?;
    if empty {
        let (path, reason) = (path.to_owned(), "it is empty".to_owned());
        return Err(OpenError::Damaged { path, reason });
    }
    open_backend(backend, path)
}

/// Makes the file. Its name is durable when this returns, its content before it has that name.
fn create_file(path: &Path, options: &OpenOptions) -> Result<(), OpenError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let refused = |error| OpenError::Io { path: new.clone(), error };
    let file = options.clone().create(true).truncate(false).open(&new).map_err(refused)?;
    let backend = FileBackend::new(file.try_clone().map_err(refused)?);
    let backend = backend.map_err(|error| cannot_open(error, &new))?;
    // What an attempt that was cut short left; nobody else has it open.
    file.set_len(0).map_err(refused)?;
    drop(open_backend(backend, &new)?);
    file.sync_all().map_err(refused)?;
    std::fs::rename(&new, path).map_err(refused)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).map_err(refused)?;
    directory.sync_all().map_err(refused)
}

fn open_backend(backend: impl StorageBackend, path: &Path) -> Result<Opened, OpenError> {
    guarded(|| open_unguarded(backend, path))
        .unwrap_or_else(|reason| Err(OpenError::Damaged { path: path.to_owned(), reason }))
}

/// Opens a file that may be damaged: on some damage redb panics. The thread's name tells a daemon, which ends at any
/// other panic, that this one is expected.
fn guarded<T: Send>(open: impl FnOnce() -> T + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("opening a database".to_owned());
        let opening = thread.spawn_scoped(scope, open).map_err(|error| error.to_string())?;
        opening.join().map_err(|_| "its pages contradict each other".to_owned())
    })
}

fn open_unguarded(backend: impl StorageBackend, path: &Path) -> Result<Opened, OpenError> {
    let mut builder = redb::Builder::new();
    let mut database = builder
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|error| cannot_open(error, path))?;
    let damaged = |reason| OpenError::Damaged { path: path.to_owned(), reason };
    // Every page against its checksum, which redb compares by itself only after a crash.
    match database.check_integrity() {
        Ok(true) => {}
        Ok(false) => return Err(damaged("its pages do not match their checksums".to_owned())),
        Err(error) => return Err(cannot_open(error, path)),
    }
    let resident = prepare(&database).and_then(|prepared| match prepared {
        Ok(()) => resident(&database),
        Err(reason) => Ok(Err(reason)),
    });
    match resident {
        Ok(Ok((revision, newest_lease, leases))) => {
            Ok(Opened { database, revision, leases, newest_lease })
        }
        Ok(Err(reason)) => Err(damaged(reason)),
        Err(redb::Error::Io(error)) => Err(OpenError::Io { path: path.to_owned(), error }),
        Err(error) => Err(damaged(error.to_string())),
    }
}

fn cannot_open(error: DatabaseError, path: &Path) -> OpenError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => OpenError::InUse(path),
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() != io::ErrorKind::InvalidData =>
        {
            OpenError::Io { path, error }
        }
        other => OpenError::Damaged { path, reason: other.to_string() },
    }
}

/// Creates the tables of a new database, and what is new in this format in an older one; or says what is wrong.
fn prepare(database: &Database) -> Result<Result<(), String>, redb::Error> {
    let write = database.begin_write()?;
    {
        let mut state = write.open_table(STATE)?;
        let format = state.get("format")?.map(|found| found.value());
        match format {
            Some(FORMAT) => return Ok(Ok(())),
            Some(FORMAT_BEFORE_LEASES) => {}
            Some(other) => return Ok(Err(format!("its format is {other}, not {FORMAT}"))),
            None => {
                write.open_table(VALUES)?;
                state.insert("revision", 0)?;
            }
        }
        write.open_table(LEASES)?;
        write.open_table(LEASED)?;
        state.insert("lease", 0)?;
        state.insert("format", FORMAT)?;
    }
    write.commit()?;
    Ok(Ok(()))
}

/// The revision, the newest number of a lease, and the leases; or what is wrong.
type Resident = Result<(u64, u64, Leases), String>;

/// Reads what is resident.
fn resident(database: &Database) -> Result<Resident, redb::Error> {
    let read = database.begin_read()?;
    let state = read.open_table(STATE)?;
    let number = |name| Ok::<_, redb::Error>(state.get(name)?.map(|found| found.value()));
    let Some(revision) = number("revision")? else {
        return Ok(Err("it has no revision".to_owned()));
    };
    let Some(newest) = number("lease")? else {
        return Ok(Err("it has no lease's number".to_owned()));
    };
    let mut leases = Leases::default();
    for row in read.open_table(LEASES)?.iter()? {
        let (lease, nanos) = row?;
        if lease.value() > newest {
            return Ok(Err(format!("lease {} is newer than the newest", lease.value())));
        }
        leases.grant(LeaseId(lease.value()), Duration::from_nanos(nanos.value()));
    }
    let values = read.open_table(VALUES)?;
    for row in read.open_table(LEASED)?.iter()? {
        let (key, lease) = row?;
        let (key, lease) = (key.value(), LeaseId(lease.value()));
        if !leases.contains(lease) || values.get(key)?.is_none() {
            return Ok(Err(format!(
                "{key} belongs to lease {}, which contradicts itself",
                lease.0
            )));
        }
        leases.attach(key, Some(lease));
    }
    Ok(Ok((revision, newest, leases)))
}

#[cfg(test)]
mod tests;
