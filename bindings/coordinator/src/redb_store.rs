//! One process's store in a redb file, or in memory for tests and the simulator.
//!
//! Two tables: `values` (key → revision of its last change, bytes) and `state` (`format`,
//! `revision`). A transaction changes both in one redb commit that is durable when it returns, so
//! a crash leaves the state before or after it, never between; redb repairs the file when it is
//! opened next. It is made under another name and gets its own when it is whole; one that is empty was not left by a
//! crash, and is refused. The file is locked for as long as the store is open, and is readable by its owner
//! only.
//!
//! Recent changes are remembered in memory, within bounds, for watches; after a restart nothing
//! is. When redb reports an error its state is dropped and the file opened again before the next
//! operation, because redb refuses to go on after one; a transaction that met it is
//! [`StoreError::Unknown`].

use crate::contract::{
    Answer, Change, Changed, ENTRY_BYTES, LIST_BYTES_MAX, Listing, Operation, Outcome, StoreError,
    Transaction, Versioned, validate,
};
use cleave_runtime::crash_points::{Point, reached};
use redb::backends::{FileBackend, InMemoryBackend};
use redb::{
    Database, DatabaseError, ReadableDatabase, ReadableTable, StorageBackend, StorageError,
    TableDefinition,
};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const VALUES: TableDefinition<&str, (u64, &[u8])> = TableDefinition::new("values");
const STATE: TableDefinition<&str, u64> = TableDefinition::new("state");
const FORMAT: u64 = 1;
/// The store is small; redb's default would be 1 GiB.
const CACHE_BYTES: usize = 16 << 20;

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

/// Opens the file anew, with its revision.
type Opener = Box<dyn Fn() -> Result<(Database, u64), OpenError> + Send>;

/// The store. One thread at a time.
pub struct RedbStore {
    opener: Opener,
    /// `None` after an error, until the file is opened again.
    database: Option<Database>,
    revision: u64,
    history: History,
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
        let (database, revision) = opener()?;
        let history = History::after(revision);
        Ok(RedbStore { opener, database: Some(database), revision, history })
    }

    /// The newest revision.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Carries out a get, a list or a transaction; a committed one is durable. Watches belong to
    /// the [`Hub`](crate::hub::Hub), which asks for [`changes`](RedbStore::changes).
    pub fn execute(&mut self, operation: &Operation) -> Result<Answer, StoreError> {
        validate(operation)?;
        self.reopen()?;
        let result = match operation {
            Operation::Get { key } => self.get(key),
            Operation::List { prefix } => self.list(prefix),
            Operation::Transact(transaction) => self.transact(transaction),
            Operation::Watch { .. } | Operation::Unwatch { .. } => {
                unreachable!("the hub keeps the watches")
            }
        };
        result.unwrap_or_else(|error| {
            tracing::error!("the coordinator store failed: {error}");
            self.database = None;
            match operation {
                Operation::Transact(_) => Err(StoreError::Unknown),
                _ => Err(StoreError::Failed(error.to_string())),
            }
        })
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
        let (database, revision) =
            (self.opener)().map_err(|error| StoreError::Failed(error.to_string()))?;
        self.database = Some(database);
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
        let mut write = self.database().begin_write()?;
        // In two phases, so that after a crash rot is not taken for a transaction that was cut short: what was
        // acknowledged is never rolled back.
        write.set_two_phase_commit(true);
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
            }
            write.open_table(STATE)?.insert("revision", revision)?;
        }
        if effective.is_empty() {
            write.abort()?;
            return answer(Outcome::Committed(self.revision));
        }
        reached(Point::StorePrepared);
        write.commit()?;
        reached(Point::StoreCommitted);
        self.revision = revision;
        self.history.push(Changed { revision, changes: effective });
        answer(Outcome::Committed(revision))
    }
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

fn open_file(path: &Path) -> Result<(Database, u64), OpenError> {
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

fn open_backend(backend: impl StorageBackend, path: &Path) -> Result<(Database, u64), OpenError> {
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

fn open_unguarded(backend: impl StorageBackend, path: &Path) -> Result<(Database, u64), OpenError> {
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
    match prepare(&database) {
        Ok(Ok(revision)) => Ok((database, revision)),
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

/// Creates the tables of a new database; the revision of an old one, or what is wrong with it.
fn prepare(database: &Database) -> Result<Result<u64, String>, redb::Error> {
    let write = database.begin_write()?;
    let revision = {
        let mut state = write.open_table(STATE)?;
        let format = state.get("format")?.map(|found| found.value());
        match format {
            Some(FORMAT) => {
                let revision = state.get("revision")?.map(|found| found.value());
                return Ok(revision.ok_or_else(|| "it has no revision".to_owned()));
            }
            Some(other) => return Ok(Err(format!("its format is {other}, not {FORMAT}"))),
            None => {
                write.open_table(VALUES)?;
                state.insert("format", FORMAT)?;
                state.insert("revision", 0)?;
                0
            }
        }
    };
    write.commit()?;
    Ok(Ok(revision))
}

#[cfg(test)]
mod tests;
