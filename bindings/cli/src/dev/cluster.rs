//! Creating a cluster, and checking one that exists.
//!
//! Creation marks the directory with `creating`, makes everything, and ends with the settings; a
//! crash before that leaves the mark, and the next start begins anew. What is checked is checked
//! before anything is changed: a start that fails loses nothing.

use crate::dev::directory::{Directory, sync_folder, write_private};
use crate::dev::drives::{self, Drive, Owner};
use crate::dev::etcd;
use crate::dev::namespace::Namespace;
use crate::dev::settings::{Asked, CONTROLLERS, DATANODE_ID, ENGINES, Settings, host_number};
use crate::dev::store::{ClusterStore, StoreKind};
use crate::error::{Error, Result, file, system};
use cleave_codec::{Keys, key_check_value};
use cleave_control::key_file::{Key, load_key};
use cleave_control::records::{
    CLUSTER_KEY, ClusterRecord, DRIVES, DriveRecord, DriveRecordState, FORMAT_LEVEL, drive_key,
    from_value, shares_for, to_value,
};
use cleave_coordinator::{
    Answer, Operation, Outcome, RedbStore, StoreError, StoreServer, Transaction,
};
use cleave_format::ids::{ClusterId, DatanodeId};
use cleave_nvme::place::Place;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime_real::identity::ClusterCa;
use std::fs::{self, File};
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};

/// The number by which frames name the cluster's data key.
const KEY_ID: NonZeroU32 = NonZeroU32::MIN;
/// Free space beside vaults: catalogs, store, logs.
const SPACE_SPARE: u64 = 128 << 20;

/// A cluster that is ready to be run.
pub struct Cluster {
    /// Where it is.
    pub directory: Directory,
    /// How it is.
    pub settings: Settings,
    /// Its record in the store.
    pub record: ClusterRecord,
    /// Its drives, missing ones too.
    pub drives: Vec<Drive>,
    /// Numbers of drives whose files are missing.
    pub missing: Vec<u16>,
    /// The coordinator store, which the engines use too.
    pub store: ClusterStore,
    /// etcd, when that is the store; the supervisor takes it over.
    pub etcd: Option<etcd::Started>,
    /// Drives in memory live as long as these.
    pub _memory: Vec<File>,
}

impl Cluster {
    /// Creates the cluster, or opens and checks the one that is there.
    pub fn open(directory: Directory, asked: &Asked) -> Result<Cluster> {
        match Settings::load(&directory)? {
            None => {
                if !directory.creating().exists()
                    && let Some(found) = directory.leftover()
                {
                    return Err(Error::NotACluster { dir: directory.path().to_owned(), found });
                }
                Cluster::create(directory, asked)
            }
            Some(settings) if settings.memory_drives => {
                if !asked.memory_drives {
                    return Err(Error::CreatedOtherwise {
                        dir: directory.path().to_owned(),
                        created: "--memory-drives".to_owned(),
                        asked: "drive files".to_owned(),
                        advice: "add --memory-drives, or use another directory",
                    });
                }
                // Nothing survives the supervisor, so this is a new cluster.
                Cluster::create(directory, asked)
            }
            Some(settings) => Cluster::check(directory, settings, asked),
        }
    }

    /// Its vdisks.
    pub fn namespace(&self) -> Namespace<'_> {
        Namespace(&self.store)
    }

    /// Creates a vdisk if there is none of that name.
    pub fn keep_vdisk(&self, name: &str, size: u64) -> Result<()> {
        match self.namespace().find(name)? {
            None => {
                let (encrypted, shares) = (self.record.encrypted, shares_for(size));
                self.namespace().create(name, size, encrypted, shares)?;
            }
            Some(found) if found.record.size != size => {
                let has = cleave_control::size::format_size(found.record.size);
                eprintln!("cleave: vdisk {name} is there already, with {has}; its size is kept");
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn create(directory: Directory, asked: &Asked) -> Result<Cluster> {
        let mut settings = Settings::new(asked);
        let given = asked.key_file.as_deref().map(load_key).transpose()?;
        check_space(&directory, &settings)?;
        File::create(directory.creating()).map_err(file("create", &directory.creating()))?;
        sync_folder(&directory.creating())?;
        reached(Point::DevMarked);
        if directory.settings().exists() {
            fs::remove_file(directory.settings()).map_err(file("remove", &directory.settings()))?;
        }
        directory.clear()?;
        for folder in ["drives", "keys", "log", "run"].into_iter().chain(settings.engines()) {
            directory.folder(&directory.path().join(folder))?;
        }
        directory.open_folder(&directory.vhost())?;
        let id = ClusterId(drives::random()?);
        create_identities(&directory, settings.store)?;
        reached(Point::DevCertificates);
        let key = match given {
            Some(key) => Some(key),
            None if asked.encrypted => {
                let path = directory.key("data.key");
                settings.key_file = Some(path.clone());
                Some(create_key(&path)?)
            }
            None => None,
        };
        let record = ClusterRecord {
            uuid: id.to_string(),
            encrypted: asked.encrypted,
            key_check: key.as_ref().map(key_check),
            format_level: FORMAT_LEVEL,
        };
        let owner = Owner { cluster: id, datanode: DatanodeId(DATANODE_ID) };
        let (count, size) = (settings.drives, settings.drive_size);
        let (drives, memory) = if !asked.places.is_empty() {
            (drives::nvme::create(owner, &asked.places, asked.erase)?, Vec::new())
        } else if settings.memory_drives {
            drives::create_memory(owner, count, size)?
        } else {
            (drives::create_files(&directory, owner, count, size)?, Vec::new())
        };
        reached(Point::DevDrives);
        let (store, etcd) = begin_store(&directory, &mut settings, asked)?;
        put_records(&store, &record, &drives)?;
        reached(Point::DevRecords);
        settings.save(&directory)?;
        reached(Point::DevSettings);
        fs::remove_file(directory.creating()).map_err(file("remove", &directory.creating()))?;
        sync_folder(&directory.creating())?;
        Ok(Cluster {
            directory,
            settings,
            record,
            drives,
            missing: Vec::new(),
            store,
            etcd,
            _memory: memory,
        })
    }

    fn check(directory: Directory, mut settings: Settings, asked: &Asked) -> Result<Cluster> {
        settings.apply(asked, &directory)?;
        check_space(&directory, &settings)?;
        let (store, etcd) = begin_store(&directory, &mut settings, asked)?;
        let record: ClusterRecord = match store
            .execute(Operation::Get { key: CLUSTER_KEY.into() })?
        {
            Answer::Value(Some(value)) => from_value(CLUSTER_KEY, &value.value)?,
            _ => {
                let reason = "it names no cluster".to_owned();
                return Err(StoreError::Malformed { key: CLUSTER_KEY.to_owned(), reason }.into());
            }
        };
        check_key(&directory, &settings, &record)?;
        let cluster: ClusterId = record.uuid.parse().map_err(|error| StoreError::Malformed {
            key: CLUSTER_KEY.to_owned(),
            reason: format!("{error}"),
        })?;
        let owner = Owner { cluster, datanode: DatanodeId(DATANODE_ID) };
        let drives = recorded_drives(&store)?;
        let missing = missing_drives(owner, &drives)?;
        for drive in drives.iter().filter(|drive| missing.contains(&drive.number)) {
            let (number, path) = (drive.number, drive.path.display());
            eprintln!("cleave: drive {number} ({path}) is missing; the pool goes on without it");
        }
        settings.save(&directory)?;
        let _memory = Vec::new();
        Ok(Cluster { directory, settings, record, drives, missing, store, etcd, _memory })
    }
}

/// The store, which engines can use from then on.
fn begin_store(
    directory: &Directory,
    settings: &mut Settings,
    asked: &Asked,
) -> Result<(ClusterStore, Option<etcd::Started>)> {
    match settings.store {
        StoreKind::Redb => {
            let store = RedbStore::open(&directory.store())?;
            let server = StoreServer::start(&directory.store_socket(), store)?;
            Ok((ClusterStore::Own(server), None))
        }
        StoreKind::Etcd => {
            let (store, started) = etcd::begin(directory, settings, asked.engines_elsewhere)?;
            Ok((store, Some(started)))
        }
    }
}

/// Checks all drives; the numbers of those that are missing.
fn missing_drives(owner: Owner, drives: &[Drive]) -> Result<Vec<u16>> {
    let (mut missing, mut namespaces) = (Vec::new(), Vec::new());
    for drive in drives {
        let number = drive.number;
        let wrong = |reason| Error::Drive { number, path: drive.path.clone(), reason };
        match Place::of_path(&drive.path).map_err(wrong)? {
            Some(place) => namespaces.push((drive, place)),
            None if drives::check_file(owner, drive)? => {}
            None => missing.push(number),
        }
    }
    if !namespaces.is_empty() {
        missing.extend(drives::nvme::check_all(owner, &namespaces)?);
    }
    Ok(missing)
}

/// Both controllers must be able to write the log's image at any time, beside one that is still valid.
fn check_space(directory: &Directory, settings: &Settings) -> Result<()> {
    let path = directory.path();
    let found = rustix::fs::statvfs(path).map_err(file("look at", path))?;
    let free = found.f_bavail.saturating_mul(found.f_frsize);
    let controllers = CONTROLLERS.len() as u64;
    let needed = settings.log_size.saturating_mul(controllers).saturating_add(SPACE_SPARE);
    if free < needed {
        let what = "the vaults of both controllers and the catalogs";
        return Err(Error::NoSpace { path: path.to_owned(), free, needed, what });
    }
    Ok(())
}

fn create_identities(directory: &Directory, store: StoreKind) -> Result<()> {
    let authority = ClusterCa::generate().map_err(|error| Error::Identity(error.to_string()))?;
    let (certificate, key) = authority.to_pem();
    write_private(&directory.key("authority.pem"), certificate.as_bytes())?;
    write_private(&directory.key("authority.key"), key.as_bytes())?;
    reached(Point::DevAuthority);
    for name in ENGINES {
        let identity = authority.issue(name).map_err(|error| Error::Identity(error.to_string()))?;
        let path = |end| directory.key(&format!("{name}.{end}"));
        write_private(&path("pem"), identity.certificate_pem.as_bytes())?;
        write_private(&path("key"), identity.key_pem.as_bytes())?;
    }
    match store {
        StoreKind::Redb => Ok(()),
        StoreKind::Etcd => etcd::create_secrets(directory, &authority),
    }
}

fn create_key(path: &Path) -> Result<Key> {
    let bytes: [u8; 32] = drives::random()?;
    let mut text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    text.push('\n');
    write_private(path, text.as_bytes())?;
    Ok(Key::new(bytes))
}

fn key_check(key: &Key) -> String {
    let value = key_check_value(&Keys::derive(KEY_ID, key.bytes()));
    value.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn check_key(directory: &Directory, settings: &Settings, record: &ClusterRecord) -> Result<()> {
    let Some(expected) = &record.key_check else { return Ok(()) };
    let Some(path) = &settings.key_file else {
        let reason = "the cluster has a key, but no key_file is named".to_owned();
        return Err(Error::Settings { path: directory.settings(), reason });
    };
    let key = load_key(path)?;
    if key_check(&key) != *expected {
        return Err(Error::WrongKey { path: path.clone(), dir: directory.path().to_owned() });
    }
    Ok(())
}

fn put_records(store: &ClusterStore, record: &ClusterRecord, drives: &[Drive]) -> Result<()> {
    let mut transaction =
        Transaction::new().require(CLUSTER_KEY, 0).put(CLUSTER_KEY, to_value(record));
    for drive in drives {
        let record = DriveRecord {
            uuid: drive.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
            datanode: DATANODE_ID,
            path: drive.path.clone(),
            capacity: drive.size,
            state: DriveRecordState::Configured,
        };
        transaction = transaction.put(drive_key(drive.number), to_value(&record));
    }
    match store.execute(Operation::Transact(transaction))? {
        Answer::Transacted(Outcome::Committed(_)) => Ok(()),
        other => unreachable!("a store that was just made refused its first records: {other:?}"),
    }
}

fn recorded_drives(store: &ClusterStore) -> Result<Vec<Drive>> {
    let Answer::List(listing) = store.execute(Operation::List { prefix: DRIVES.to_owned() })?
    else {
        unreachable!("a list is answered by a list")
    };
    let mut drives = Vec::new();
    for (key, value) in listing.entries {
        let wrong =
            |reason: &str| StoreError::Malformed { key: key.clone(), reason: reason.into() };
        let record: DriveRecord = from_value(&key, &value.value)?;
        let number = key[DRIVES.len()..].parse().map_err(|_| wrong("it is no drive's number"))?;
        // The text of 128 random bits has the same form as a cluster's.
        let uuid: ClusterId = record.uuid.parse().map_err(|_| wrong("its uuid is malformed"))?;
        let (path, size) = (record.path, record.capacity);
        drives.push(Drive { number, uuid: uuid.0, path, size });
    }
    drives.sort_by_key(|drive| drive.number);
    Ok(drives)
}

/// Where a program of Cleave is: beside this one.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().map_err(system("find this program's own file"))?;
    let path = own.with_file_name(name);
    if !path.is_file() {
        let what = format!("is not beside {}; build it, or install both together", own.display());
        return Err(Error::Engine { name: name.to_owned(), what });
    }
    Ok(path)
}

/// The program of an engine.
pub fn program_of(engine: &str) -> &'static str {
    if host_number(engine).is_some() { "cleave-host" } else { "cleave-datanode" }
}

#[cfg(test)]
mod tests;
