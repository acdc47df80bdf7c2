//! A cluster's directory: who holds it, where things lie in it.
//!
//! ```text
//! DIR/dev.toml         the settings; present only when the cluster was created completely
//! DIR/creating         present while a cluster is being created
//! DIR/lock             held by the supervisor; its process id
//! DIR/children.lock    held by the supervisor and inherited by its children
//! DIR/store.redb       the coordinator store       DIR/store.sock
//! DIR/etcd/            what etcd keeps, when that is the store
//! DIR/control.sock     the supervisor's control socket
//! DIR/keys/            certificates, and the data key if the cluster made it
//! DIR/drives/          drive files
//! DIR/NAME/            what the engine NAME keeps: catalog, vault, locks
//! DIR/run/NAME.toml    its configuration           DIR/run/NAME.sock
//! DIR/log/NAME.log     what it says
//! DIR/vhost/NAME.sock  the vdisk NAME
//! ```
//! Both locks are kernel locks. The supervisor's ends with it; the other one ends when the last of its
//! children has ended too, so a new supervisor knows when nobody uses the drives any more. A crash leaves
//! stale sockets, which are replaced, and `creating`, after which creation begins anew.

use crate::error::{Error, Result, file};
use cleave_control::names::{check_socket_path, vhost_socket};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long children of a dead supervisor may take to end: they may write large vaults.
const CHILDREN_END: Duration = Duration::from_secs(60);
const TRY_AGAIN: Duration = Duration::from_millis(50);

/// Names in a directory that belong to a cluster.
const OURS: &[&str] = &["drives", "etcd", "keys", "log", "run", "store.redb", "vhost"];

/// Where things lie.
#[derive(Clone, Debug)]
pub struct Directory(PathBuf);

impl Directory {
    /// A directory that is made if it is not there, with the paths that sockets will have checked.
    pub fn create(path: &Path) -> Result<Directory> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(path)
            .map_err(file("create", path))?;
        let directory = fs::canonicalize(path).map(Directory).map_err(file("open", path))?;
        for engine in crate::dev::settings::ENGINES {
            check_socket_path(&directory.engine_socket(engine))?;
        }
        check_socket_path(&directory.store_socket())?;
        check_socket_path(&directory.control_socket())?;
        Ok(directory)
    }

    /// The path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The settings.
    pub fn settings(&self) -> PathBuf {
        self.0.join("dev.toml")
    }

    /// The mark of an incomplete cluster.
    pub fn creating(&self) -> PathBuf {
        self.0.join("creating")
    }

    /// The coordinator store.
    pub fn store(&self) -> PathBuf {
        self.0.join("store.redb")
    }

    /// Its socket.
    pub fn store_socket(&self) -> PathBuf {
        self.0.join("store.sock")
    }

    /// The supervisor's control socket.
    pub fn control_socket(&self) -> PathBuf {
        control_socket(&self.0)
    }

    /// A file among the keys.
    pub fn key(&self, name: &str) -> PathBuf {
        self.0.join("keys").join(name)
    }

    /// A drive file.
    pub fn drive(&self, number: u16) -> PathBuf {
        self.0.join("drives").join(format!("drive-{number:03}.img"))
    }

    /// What an engine keeps.
    pub fn engine(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// An engine's configuration.
    pub fn engine_config(&self, name: &str) -> PathBuf {
        self.0.join("run").join(format!("{name}.toml"))
    }

    /// An engine's control socket.
    pub fn engine_socket(&self, name: &str) -> PathBuf {
        self.0.join("run").join(format!("{name}.sock"))
    }

    /// An engine's log.
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join("log").join(format!("{name}.log"))
    }

    /// Where vdisks are served.
    pub fn vhost(&self) -> PathBuf {
        vhost(&self.0)
    }

    /// Where vdisks of a host are served: the first host's in `vhost`, the others' in folders there.
    pub fn vhost_of(&self, host: u32) -> PathBuf {
        match host {
            0 | 1 => self.vhost(),
            host => self.vhost().join(format!("host-{host}")),
        }
    }

    /// Where one vdisk is served by a host.
    pub fn vhost_socket(&self, host: u32, vdisk: &str) -> Result<PathBuf> {
        Ok(vhost_socket(&self.vhost_of(host), vdisk)?)
    }

    /// Makes a folder in it, readable by its owner only.
    pub fn folder(&self, path: &Path) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path).map_err(file("create", path))
    }

    /// Makes a folder in it that other users may look into: sockets there have a group of their own.
    pub fn open_folder(&self, path: &Path) -> Result<()> {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755).create(path).map_err(file("create", path))
    }

    /// What lies here without a cluster being here, if that is so.
    pub fn leftover(&self) -> Option<String> {
        let is_here = |name: &&&str| self.0.join(name).exists();
        OURS.iter().find(is_here).map(|name| (*name).to_owned())
    }

    /// Removes everything of a cluster that was never complete, or that shall not survive.
    pub fn clear(&self) -> Result<()> {
        let engines = crate::dev::settings::ENGINES;
        for name in OURS.iter().chain(&engines) {
            let path = self.0.join(name);
            let removed = match fs::symlink_metadata(&path) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Ok(found) if found.is_dir() => fs::remove_dir_all(&path),
                Ok(_) => fs::remove_file(&path),
                Err(error) => Err(error),
            };
            removed.map_err(file("remove", &path))?;
        }
        Ok(())
    }
}

/// The supervisor's control socket in a cluster's directory, for clients.
pub fn control_socket(directory: &Path) -> PathBuf {
    directory.join("control.sock")
}

/// Where vdisks are served in a cluster's directory, for clients.
pub fn vhost(directory: &Path) -> PathBuf {
    directory.join("vhost")
}

/// Held while the cluster is supervised.
pub struct Held {
    _supervisor: File,
    /// Without close-on-exec: children keep it open, and so locked.
    _children: OwnedFd,
}

/// Takes the directory for this process, and waits until an earlier run's children have ended.
pub fn hold(directory: &Directory) -> Result<Held> {
    let path = directory.path().join("lock");
    let mut lock = fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file("open", &path))?;
    match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut pid = String::new();
            lock.read_to_string(&mut pid).map_err(file("read", &path))?;
            let dir = directory.path().to_owned();
            return Err(Error::InUse { dir, pid: pid.trim().to_owned() });
        }
        Err(error) => return Err(file("lock", &path)(error)),
    }
    lock.set_len(0)
        .and_then(|()| lock.rewind())
        .and_then(|()| writeln!(lock, "{}", std::process::id()))
        .map_err(file("write", &path))?;
    Ok(Held { _supervisor: lock, _children: hold_children(directory)? })
}

fn hold_children(directory: &Directory) -> Result<OwnedFd> {
    let path = directory.path().join("children.lock");
    let flags = OFlags::RDWR | OFlags::CREATE;
    let mode = Mode::RUSR | Mode::WUSR;
    let lock = rustix::fs::open(&path, flags, mode).map_err(file("open", &path))?;
    let deadline = Instant::now() + CHILDREN_END;
    loop {
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => std::thread::sleep(TRY_AGAIN),
            Err(Errno::WOULDBLOCK) => {
                let (dir, seconds) = (directory.path().to_owned(), CHILDREN_END.as_secs());
                return Err(Error::StillEnding { dir, seconds });
            }
            Err(error) => return Err(file("lock", &path)(error)),
        }
    }
}

/// Writes a file that only its owner may read, whole or not at all, durably.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let new = path.with_extension("new");
    let written = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&new)
        .and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&new, path));
    written.map_err(file("write", path))?;
    sync_folder(path)
}

/// Makes the names in the folder of `path` durable.
pub fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().expect("files of a cluster lie in a folder");
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(file("write", folder))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_is_held_by_one() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::create(&folder.path().join("a/b")).unwrap();
        let held = hold(&directory).unwrap();
        let error = hold(&directory).err().unwrap().to_string();
        assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
        drop(held);
        hold(&directory).unwrap();
    }

    #[test]
    fn too_long_a_path_is_refused_before_anything_is_made_of_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("d".repeat(120));
        let error = Directory::create(&path).unwrap_err().to_string();
        assert!(error.contains("shorter directory") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn private_files_are_private_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secret");
        write_private(&path, b"one").unwrap();
        write_private(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn clearing_leaves_what_is_not_the_clusters() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::create(folder.path()).unwrap();
        assert_eq!(directory.leftover(), None);
        fs::create_dir(folder.path().join("drives")).unwrap();
        fs::write(folder.path().join("drives/x"), "x").unwrap();
        fs::write(folder.path().join("mine"), "x").unwrap();
        assert_eq!(directory.leftover(), Some("drives".to_owned()));
        directory.clear().unwrap();
        assert_eq!(directory.leftover(), None);
        assert!(folder.path().join("mine").exists());
    }
}
