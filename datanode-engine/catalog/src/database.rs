//! Opening a catalog: a file, or a storage given by the caller (the simulator's).
//!
//! A file is locked for as long as it is open, readable by its owner only, and says whose it is;
//! a file of another cluster, data node or format is refused and left as it is. A crash leaves the last
//! committed transaction, which redb finds when it opens the file. A file is made under another name and gets its own
//! when it is whole, so that a crash leaves none or a catalog; one that is empty was not left by a crash.

use crate::CatalogError;
use crate::tables::*;
use cleave_format::ids::{ClusterId, DatanodeId, Position};
use redb::backends::FileBackend;
use redb::{
    Database, DatabaseError, ReadableDatabase, StorageBackend, StorageError, WriteTransaction,
};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const FORMAT: u64 = 2;
/// redb's default would be 1 GiB.
const CACHE_BYTES: usize = 64 << 20;

/// Whose catalog it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The cluster.
    pub cluster: ClusterId,
    /// The data node.
    pub datanode: DatanodeId,
}

impl Owner {
    fn words(&self) -> [(&'static str, u64); 3] {
        let cluster = u128::from_be_bytes(self.cluster.0);
        [
            ("cluster_high", (cluster >> 64) as u64),
            ("cluster_low", cluster as u64),
            ("datanode", u64::from(self.datanode.0)),
        ]
    }

    fn from_words([high, low, datanode]: [u64; 3]) -> String {
        let cluster = (u128::from(high) << 64 | u128::from(low)).to_be_bytes();
        format!("data node {datanode} of cluster {}", ClusterId(cluster))
    }
}

/// An open catalog. One thread at a time.
pub struct Catalog {
    pub(crate) database: Database,
    pub(crate) applied: Position,
    /// A restore that has begun (see the transfer module).
    pub(crate) restoring: Option<WriteTransaction>,
}

impl Catalog {
    /// Opens the file, creating it if there is none.
    pub fn open(path: &Path, owner: Owner) -> Result<Catalog, CatalogError> {
        let refused = |error| CatalogError::Open { path: path.to_owned(), error };
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        let file = match options.open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                create(path, owner, &options)?;
                options.open(path)
            }
            opened => opened,
        };
        let file = file.map_err(refused)?;
        let empty = file.metadata().map_err(refused)?.len() == 0;
        let backend = FileBackend::new(file).map_err(|error| not_opened(error, path))?;
        if empty {
            let (path, reason) = (path.to_owned(), "it is empty".to_owned());
            return Err(CatalogError::Damaged { path, reason });
        }
        Catalog::open_storage(backend, path, owner)
    }

    /// Opens what `storage` holds, creating a catalog if it is empty. `name` stands in messages.
    pub fn open_storage(
        storage: impl StorageBackend,
        name: &Path,
        owner: Owner,
    ) -> Result<Catalog, CatalogError> {
        let opened = guarded(|| {
            let mut database = redb::Builder::new()
                .set_cache_size(CACHE_BYTES)
                .create_with_backend(storage)
                .map_err(|error| not_opened(error, name))?;
            check_pages(&mut database, name)?;
            let applied = prepare(&database, name, owner)?;
            Ok(Catalog { database, applied, restoring: None })
        });
        opened.unwrap_or_else(|reason| Err(damaged(name, &reason)))
    }

    /// Position of the last record applied; 0 when there was none. Everything up to it is durable.
    pub fn applied(&self) -> Position {
        self.applied
    }
}

/// Makes the file. Its name is durable when this returns, its content before it has that name.
fn create(path: &Path, owner: Owner, options: &OpenOptions) -> Result<(), CatalogError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    let new = PathBuf::from(name);
    let refused = |error| CatalogError::Open { path: new.clone(), error };
    let file = options.clone().create(true).truncate(false).open(&new).map_err(refused)?;
    let backend = FileBackend::new(file.try_clone().map_err(refused)?);
    let backend = backend.map_err(|error| not_opened(error, &new))?;
    // What an attempt that was cut short left; nobody else has it open.
    file.set_len(0).map_err(refused)?;
    drop(Catalog::open_storage(backend, &new, owner)?);
    file.sync_all().map_err(refused)?;
    std::fs::rename(&new, path).map_err(refused)?;
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let directory = File::open(parent.unwrap_or(Path::new("."))).map_err(refused)?;
    directory.sync_all().map_err(refused)
}

fn not_opened(error: DatabaseError, path: &Path) -> CatalogError {
    let path = path.to_owned();
    match error {
        DatabaseError::DatabaseAlreadyOpen => CatalogError::InUse(path),
        DatabaseError::Storage(StorageError::Io(error))
            if error.kind() != io::ErrorKind::InvalidData =>
        {
            CatalogError::Open { path, error }
        }
        other => CatalogError::Damaged { path, reason: other.to_string() },
    }
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

fn damaged(path: &Path, reason: &str) -> CatalogError {
    let reason = format!(
        "{reason}; move the file away, and this controller copies the catalog of the other one"
    );
    CatalogError::Damaged { path: path.to_owned(), reason }
}

/// Compares every page with its checksum, which redb does by itself only after a crash: rot would be read as rows.
fn check_pages(database: &mut Database, name: &Path) -> Result<(), CatalogError> {
    match database.check_integrity() {
        Ok(true) => Ok(()),
        Ok(false) => Err(damaged(name, "its pages do not match their checksums")),
        Err(DatabaseError::Storage(StorageError::Io(error)))
            if error.kind() != io::ErrorKind::InvalidData =>
        {
            Err(CatalogError::Open { path: name.to_owned(), error })
        }
        Err(error) => Err(damaged(name, &error.to_string())),
    }
}

/// Creates the tables of a new database; checks an old one. Gives the applied position.
fn prepare(database: &Database, name: &Path, owner: Owner) -> Result<Position, CatalogError> {
    let damaged = |reason: String| CatalogError::Damaged { path: PathBuf::from(name), reason };
    let known = {
        let read = database.begin_read()?;
        match read.open_table(META) {
            Ok(meta) => {
                let word = |key: &str| -> Result<u64, CatalogError> {
                    let found = meta.get(key)?.map(|value| value.value());
                    found.ok_or_else(|| damaged(format!("it has no {key}")))
                };
                let format = word("format")?;
                if format != FORMAT {
                    return Err(damaged(format!("its format is {format}, not {FORMAT}")));
                }
                let found = [word("cluster_high")?, word("cluster_low")?, word("datanode")?];
                let wanted = owner.words().map(|(_, value)| value);
                if found != wanted {
                    return Err(CatalogError::Foreign {
                        path: PathBuf::from(name),
                        found: Owner::from_words(found),
                        wanted: Owner::from_words(wanted),
                    });
                }
                Some(Position(word(APPLIED)?))
            }
            Err(redb::TableError::TableDoesNotExist(_)) => {
                if read.list_tables()?.next().is_some() {
                    return Err(damaged("it has tables of something else".to_owned()));
                }
                None
            }
            Err(error) => return Err(damaged(error.to_string())),
        }
    };
    if let Some(applied) = known {
        return Ok(applied);
    }
    let write = database.begin_write()?;
    {
        let mut meta = write.open_table(META)?;
        meta.insert("format", FORMAT)?;
        for (key, value) in owner.words() {
            meta.insert(key, value)?;
        }
        meta.insert(APPLIED, 0)?;
        meta.insert(NEWEST_STRIPE, 0)?;
    }
    create_tables(&write)?;
    write.commit()?;
    Ok(Position(0))
}

/// Sees to it that every table exists.
pub(crate) fn create_tables(write: &WriteTransaction) -> Result<(), CatalogError> {
    write.open_table(STRIPES)?;
    write.open_table(STRIPES_OF)?;
    write.open_table(GRANTS)?;
    write.open_table(COMMITS)?;
    write.open_table(PIECES)?;
    write.open_table(VDISKS)?;
    write.open_table(HOSTS)?;
    write.open_table(DRIVES)?;
    write.open_table(HELD)?;
    Ok(())
}
