//! The engines' configuration files: TOML, written by the supervisor or by hand.
//!
//! Unknown fields are errors, so that a misspelt one is not silently a default. What can be
//! checked without touching the system is checked here; every error is one line that names the
//! file and the field. Sizes are bytes, or texts such as `"64M"`.

mod store;

use crate::flash::FlashPlace;
use crate::names::{check_name, check_socket_path};
use crate::size;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use store::{EtcdAccess, StorePlace};

/// Smallest payload of a datagram that QUIC allows.
pub const MTU_MIN: u16 = 1200;
/// Smallest capacity of a log.
pub const NVLOG_BYTES_MIN: u64 = 16 << 20;
/// Smallest memory budget of a host engine.
pub const MEMORY_BYTES_MIN: u64 = 64 << 20;
/// Fewest drives of a pool: 1 data and 2 parity shards.
pub const DRIVES_MIN: usize = 3;
/// Most drives of a pool.
pub const DRIVES_MAX: usize = 120;

/// Why a configuration file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The system refused.
    #[error("cannot read the configuration {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Not TOML, or not these fields.
    #[error("{path}, line {line}: {message}")]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// From 1.
        line: usize,
        /// What is wrong there.
        message: String,
    },
    /// A value that cannot be.
    #[error("{path}: {field}: {reason}")]
    Invalid {
        /// Which file.
        path: PathBuf,
        /// Which field.
        field: String,
        /// What is wrong with it.
        reason: String,
    },
}

/// Certificates for the links between engines (mutual TLS), PEM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TlsFiles {
    /// The cluster's certificate authority.
    pub ca: PathBuf,
    /// This engine's certificate; its name is the engine's.
    pub certificate: PathBuf,
    /// This engine's private key.
    pub key: PathBuf,
}

/// Another engine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PeerAddress {
    /// Its name, as in its certificate.
    pub name: String,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A data node as a host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatanodeAddresses {
    /// Its number, never given to another data node.
    pub id: u16,
    /// Its two controllers, in the order in which they are tried.
    pub controllers: Vec<PeerAddress>,
}

/// The configuration of `cleave-host`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// This host's name, as in its certificate.
    pub name: String,
    /// This host's number, never given to another host.
    pub id: u32,
    /// The cluster: 32 hexadecimal digits.
    pub cluster: String,
    /// For what the engine keeps on this host.
    pub dir: PathBuf,
    /// The socket of Cleave's own coordinator store; this or `etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_socket: Option<PathBuf>,
    /// Where this engine serves the control protocol.
    pub control_socket: PathBuf,
    /// Where this engine listens for links; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Cores to run on; 0: a fifth of the processors, or two fifths in Insane Mode.
    #[serde(default)]
    pub cores: u16,
    /// Insane Mode.
    #[serde(default, skip_serializing_if = "is_false")]
    pub insane: bool,
    /// Bytes of memory that the engine may use.
    #[serde(deserialize_with = "size::deserialize")]
    pub memory_budget: u64,
    /// Bytes of it for the parts of vdisks' maps that are kept in memory; the others are read again from flash or pool
    /// when they are needed. 0: a quarter of the budget.
    #[serde(default, deserialize_with = "size::deserialize")]
    pub map: u64,
    /// Bytes of acknowledged writes that may wait for destage, within the budget.
    #[serde(deserialize_with = "size::deserialize")]
    pub write_buffer: u64,
    /// Bytes of each data node's log that this host asks for.
    #[serde(deserialize_with = "size::deserialize")]
    pub quota: u64,
    /// Where vdisks are served, as `NAME.sock`.
    pub vhost_dir: PathBuf,
    /// The group that may use those sockets; without it the engine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vhost_group: Option<String>,
    /// The data key; without it nothing is encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// This host's flash: paths of block devices or files, `memory:SIZE`; none: all reads go to the pool.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flash: Vec<String>,
    /// Where vdisks in use are locked; shared by all engines of this host (C25).
    pub lock_dir: PathBuf,
    /// Largest payload of a datagram, bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Certificates.
    pub tls: TlsFiles,
    /// The coordinator store in etcd; this or `store_socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdAccess>,
    /// The data nodes.
    pub datanodes: Vec<DatanodeAddresses>,
}

/// A drive of a data node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DriveConfig {
    /// Its number in the pool, never given to another drive.
    pub id: u16,
    /// Its identity, as in its superblock: 32 hexadecimal digits.
    pub uuid: String,
    /// A raw disk or a file, or `nvme:PCI-ADDRESS/NAMESPACE` for one that is driven from userspace.
    pub path: PathBuf,
}

/// The configuration of `cleave-datanode`: one controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatanodeConfig {
    /// This controller's name, as in its certificate.
    pub name: String,
    /// Which of the two: 0 is active where nothing else decides.
    pub controller: u8,
    /// The data node's number, never given to another one.
    pub datanode: u16,
    /// The cluster: 32 hexadecimal digits.
    pub cluster: String,
    /// For what the controller keeps.
    pub dir: PathBuf,
    /// Where this controller listens for links.
    pub listen: SocketAddr,
    /// The other controller.
    pub peer: PeerAddress,
    /// Bytes of the mirrored log.
    #[serde(deserialize_with = "size::deserialize")]
    pub nvlog_capacity: u64,
    /// The log's image on a clean stop.
    pub vault: PathBuf,
    /// The catalog.
    pub catalog: PathBuf,
    /// Whether it takes the active role over by itself when the other controller is gone; else an operator starts that one
    /// again.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub take_over: bool,
    /// Whether it goes on alone when the other controller is away: what it acknowledges then is on three drives. Else writes
    /// wait for the other one.
    #[serde(default = "default_true", skip_serializing_if = "is_true")]
    pub alone: bool,
    /// The socket of Cleave's own coordinator store; this or `etcd`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub store_socket: Option<PathBuf>,
    /// Where this controller serves the control protocol.
    pub control_socket: PathBuf,
    /// Largest payload of a datagram, bytes.
    #[serde(default = "default_mtu")]
    pub mtu: u16,
    /// Certificates.
    pub tls: TlsFiles,
    /// The coordinator store in etcd; this or `store_socket`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub etcd: Option<EtcdAccess>,
    /// The data node's drives.
    pub drives: Vec<DriveConfig>,
}

fn is_false(value: &bool) -> bool {
    !*value
}

fn default_true() -> bool {
    true
}

fn is_true(value: &bool) -> bool {
    *value
}

fn default_mtu() -> u16 {
    1452
}

impl HostConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<HostConfig, ConfigError> {
        load(path, HostConfig::check)
    }

    /// The coordinator store.
    pub fn store(&self) -> StorePlace {
        store::place(self.store_socket.as_deref(), self.etcd.as_ref())
    }

    /// Bytes for what is kept of maps in memory.
    pub fn map_budget(&self) -> u64 {
        match self.map {
            0 => self.memory_budget / 4,
            map => map,
        }
    }

    /// The file's content.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has no maps with strange keys")
    }

    fn check(&self) -> Result<(), (String, String)> {
        check_engine_name("name", &self.name)?;
        check_hex("cluster", &self.cluster)?;
        for (field, path) in
            [("dir", &self.dir), ("vhost_dir", &self.vhost_dir), ("lock_dir", &self.lock_dir)]
        {
            check_path(field, path)?;
        }
        self.key_file.as_deref().map_or(Ok(()), |path| check_path("key_file", path))?;
        store::check(self.store_socket.as_deref(), self.etcd.as_ref())?;
        check_socket("control_socket", &self.control_socket)?;
        check_tls(&self.tls)?;
        check_mtu(self.mtu)?;
        check_least("memory_budget", self.memory_budget, MEMORY_BYTES_MIN)?;
        check_least("write_buffer", self.write_buffer, 1 << 20)?;
        check_least("quota", self.quota, 1 << 20)?;
        if self.write_buffer > self.memory_budget {
            let (buffer, budget) = (self.write_buffer, self.memory_budget);
            return wrong("write_buffer", format!("{buffer} is more than memory_budget {budget}"));
        }
        if self.map > self.memory_budget {
            let (map, budget) = (self.map, self.memory_budget);
            return wrong("map", format!("{map} is more than memory_budget {budget}"));
        }
        if self.vhost_group.as_deref() == Some("") {
            return wrong("vhost_group", "is empty; leave it out for the engine's own group");
        }
        check_flash(&self.flash)?;
        if self.datanodes.is_empty() {
            return wrong("datanodes", "there is none");
        }
        let (mut ids, mut names) = (BTreeSet::new(), BTreeSet::new());
        for datanode in &self.datanodes {
            let field = format!("datanodes, id {}", datanode.id);
            if !ids.insert(datanode.id) {
                return wrong(field, "appears twice");
            }
            if datanode.controllers.len() != 2 {
                let count = datanode.controllers.len();
                return wrong(field, format!("has {count} controllers, not 2"));
            }
            for controller in &datanode.controllers {
                check_peer(&field, controller)?;
                if !names.insert(&controller.name) {
                    return wrong(field, format!("controller {} appears twice", controller.name));
                }
            }
        }
        Ok(())
    }
}

impl DatanodeConfig {
    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<DatanodeConfig, ConfigError> {
        load(path, DatanodeConfig::check)
    }

    /// The coordinator store.
    pub fn store(&self) -> StorePlace {
        store::place(self.store_socket.as_deref(), self.etcd.as_ref())
    }

    /// The file's content.
    pub fn to_toml(&self) -> String {
        toml::to_string(self).expect("a configuration has no maps with strange keys")
    }

    fn check(&self) -> Result<(), (String, String)> {
        check_engine_name("name", &self.name)?;
        if self.controller > 1 {
            return wrong("controller", format!("is {}, not 0 or 1", self.controller));
        }
        check_hex("cluster", &self.cluster)?;
        check_path("dir", &self.dir)?;
        check_path("vault", &self.vault)?;
        check_path("catalog", &self.catalog)?;
        store::check(self.store_socket.as_deref(), self.etcd.as_ref())?;
        check_socket("control_socket", &self.control_socket)?;
        check_tls(&self.tls)?;
        check_mtu(self.mtu)?;
        check_least("nvlog_capacity", self.nvlog_capacity, NVLOG_BYTES_MIN)?;
        check_peer("peer", &self.peer)?;
        if self.peer.name == self.name {
            return wrong("peer", format!("{} is this controller itself", self.name));
        }
        if self.listen.port() == 0 {
            return wrong("listen", "needs a port, for the peer and the hosts to know");
        }
        let count = self.drives.len();
        if !(DRIVES_MIN..=DRIVES_MAX).contains(&count) {
            return wrong("drives", format!("{count} of them, not {DRIVES_MIN} to {DRIVES_MAX}"));
        }
        let (mut ids, mut uuids, mut paths) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        for drive in &self.drives {
            let field = format!("drives, id {}", drive.id);
            check_hex(&field, &drive.uuid)?;
            check_drive(&field, &drive.path)?;
            let new = [
                ids.insert(drive.id),
                uuids.insert(drive.uuid.to_ascii_lowercase()),
                paths.insert(&drive.path),
            ];
            if new != [true; 3] {
                return wrong(field, "its id, uuid or path appears twice");
            }
        }
        Ok(())
    }
}

fn load<T: DeserializeOwned>(
    path: &Path,
    check: impl Fn(&T) -> Result<(), (String, String)>,
) -> Result<T, ConfigError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| ConfigError::Io { path: path.to_owned(), error })?;
    let config = toml::from_str(&text).map_err(|error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        let line = 1 + text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        let message = error.message().replace('\n', " ");
        ConfigError::Syntax { path: path.to_owned(), line, message }
    })?;
    match check(&config) {
        Ok(()) => Ok(config),
        Err((field, reason)) => Err(ConfigError::Invalid { path: path.to_owned(), field, reason }),
    }
}

fn check_flash(flash: &[String]) -> Result<(), (String, String)> {
    let mut places = BTreeSet::new();
    for text in flash {
        match text.parse::<FlashPlace>() {
            Ok(place) if !places.insert(place.clone()) => {
                return wrong("flash", format!("{place} appears twice"));
            }
            Ok(_) => {}
            Err(reason) => return wrong("flash", reason),
        }
    }
    Ok(())
}

fn wrong<T>(field: impl Into<String>, reason: impl Into<String>) -> Result<T, (String, String)> {
    Err((field.into(), reason.into()))
}

fn check_engine_name(field: &str, name: &str) -> Result<(), (String, String)> {
    check_name(name).map_err(|error| (field.to_owned(), error.to_string()))
}

fn check_peer(field: &str, peer: &PeerAddress) -> Result<(), (String, String)> {
    check_engine_name(field, &peer.name)?;
    if peer.address.port() == 0 || peer.address.ip().is_unspecified() {
        return wrong(field, format!("{} is no address to connect to", peer.address));
    }
    Ok(())
}

fn check_hex(field: &str, text: &str) -> Result<(), (String, String)> {
    if text.len() != 32 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return wrong(field, format!("{text:?} is not 32 hexadecimal digits"));
    }
    Ok(())
}

fn check_path(field: &str, path: &Path) -> Result<(), (String, String)> {
    if !path.is_absolute() {
        return wrong(field, format!("{path:?} is not an absolute path"));
    }
    Ok(())
}

/// What follows the scheme is the driver's to understand.
fn check_drive(field: &str, path: &Path) -> Result<(), (String, String)> {
    let schemes = ["nvme:", "nvme-unsafe:"];
    let named = |text: &str| schemes.iter().any(|scheme| text.starts_with(scheme));
    if path.to_str().is_some_and(named) { Ok(()) } else { check_path(field, path) }
}

fn check_socket(field: &str, path: &Path) -> Result<(), (String, String)> {
    check_path(field, path)?;
    check_socket_path(path).map_err(|error| (field.to_owned(), error.to_string()))
}

fn check_tls(tls: &TlsFiles) -> Result<(), (String, String)> {
    check_path("tls.ca", &tls.ca)?;
    check_path("tls.certificate", &tls.certificate)?;
    check_path("tls.key", &tls.key)
}

fn check_mtu(mtu: u16) -> Result<(), (String, String)> {
    if mtu < MTU_MIN {
        return wrong("mtu", format!("{mtu} is below {MTU_MIN}"));
    }
    Ok(())
}

fn check_least(field: &str, value: u64, least: u64) -> Result<(), (String, String)> {
    if value < least {
        return wrong(field, format!("{value} bytes are below {least}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
