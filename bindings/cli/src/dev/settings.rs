//! `DIR/dev.toml`: how a cluster was created, and what its engines run with.
//!
//! What lies in drives and store cannot be changed afterwards: drives, their size, whether
//! they are in memory, encryption, which store it is. The rest is taken from the options of each start, and kept for the next one.

use crate::dev::directory::{Directory, write_private};
use crate::dev::flash::FLASH_SIZE;
use crate::dev::store::StoreKind;
use crate::error::{Error, Result, file};
use cleave_control::size::format_size;
use cleave_nvme::place::Place;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Every engine that a cluster may have: hosts, then both controllers.
pub const ENGINES: [&str; HOSTS_MAX + 2] = {
    let mut all = [""; HOSTS_MAX + 2];
    let mut place = 0;
    while place < HOSTS_MAX {
        all[place] = HOSTS[place];
        place += 1;
    }
    all[HOSTS_MAX] = CONTROLLERS[0];
    all[HOSTS_MAX + 1] = CONTROLLERS[1];
    all
};
/// Hosts at most.
pub const HOSTS_MAX: usize = 8;
/// The host engines, by number, from 1.
pub const HOSTS: [&str; HOSTS_MAX] =
    ["host-1", "host-2", "host-3", "host-4", "host-5", "host-6", "host-7", "host-8"];
/// The first host's engine.
pub const HOST: &str = HOSTS[0];
/// The controllers, the one with the active role first.
pub const CONTROLLERS: [&str; 2] = ["datanode-1-a", "datanode-1-b"];
/// Number of the first host.
pub const HOST_ID: u32 = 1;
/// Number of the data node.
pub const DATANODE_ID: u16 = 1;

/// Drives unless told otherwise.
pub const DRIVES: u16 = 12;
/// Bytes of a drive unless told otherwise.
pub const DRIVE_SIZE: u64 = 16 << 30;
/// Bytes that the host engine may use unless told otherwise.
pub const HOST_MEMORY: u64 = 512 << 20;
/// Bytes of the mirrored log unless told otherwise.
pub const LOG_SIZE: u64 = 256 << 20;

const VERSION: u32 = 1;

/// The settings of a cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Of this file.
    pub version: u32,
    /// Drives.
    pub drives: u16,
    /// Bytes of each.
    pub drive_size: u64,
    /// Whether the drives are memory, and nothing survives the supervisor.
    pub memory_drives: bool,
    /// The NVMe namespaces that are the drives; none when they are files or memory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub places: Vec<String>,
    /// Whether vdisks are encrypted unless told otherwise.
    pub encrypted: bool,
    /// The data key's file; without it nothing can be encrypted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// Hosts, each with an engine of its own.
    #[serde(default = "one_host")]
    pub hosts: u16,
    /// Bytes that each host engine may use.
    pub host_memory: u64,
    /// Insane Mode.
    #[serde(default)]
    pub insane: bool,
    /// Cores of the host engine; 0: by their share of the processors.
    #[serde(default)]
    pub cores: u16,
    /// Bytes of the mirrored log.
    pub log_size: u64,
    /// The first host's flash; without it what is usual.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash: Option<Vec<String>>,
    /// Bytes of a flash file that is made.
    #[serde(default = "flash_size")]
    pub flash_size: u64,
    /// Loopback ports of the controllers, then of the first host's engine.
    pub ports: [u16; 3],
    /// Loopback ports of the other hosts' engines.
    #[serde(default)]
    pub host_ports: Vec<u16>,
    /// The coordinator store.
    #[serde(default)]
    pub store: StoreKind,
    /// Loopback ports of etcd, for its clients and for other members; 0: none yet.
    #[serde(default)]
    pub etcd_ports: [u16; 2],
    /// Flash of hosts from the second on, where it was changed, by their names. A table: the last of all.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_flash: BTreeMap<String, Vec<String>>,
}

/// What the options of a start say; `None` where they say nothing.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// Drives.
    pub drives: Option<u16>,
    /// Bytes of each.
    pub drive_size: Option<u64>,
    /// Drives in memory.
    pub memory_drives: bool,
    /// NVMe namespaces as drives.
    pub places: Vec<Place>,
    /// Erase them when the cluster is created.
    pub erase: bool,
    /// Encryption.
    pub encrypted: bool,
    /// The data key's file.
    pub key_file: Option<PathBuf>,
    /// Hosts.
    pub hosts: Option<u16>,
    /// Bytes for each host engine.
    pub host_memory: Option<u64>,
    /// Bytes of the log.
    pub log_size: Option<u64>,
    /// The host's flash.
    pub flash: Option<Vec<String>>,
    /// Bytes of a flash file that is made.
    pub flash_size: Option<u64>,
    /// The coordinator store.
    pub store: Option<StoreKind>,
    /// Engines are started by somebody else, with the configurations that are there.
    pub engines_elsewhere: bool,
}

fn flash_size() -> u64 {
    FLASH_SIZE
}

fn one_host() -> u16 {
    1
}

/// The number of a host by its engine's name.
pub fn host_number(name: &str) -> Option<u32> {
    (1..).zip(HOSTS).find(|(_, host)| *host == name).map(|(number, _)| number)
}

impl Settings {
    /// For a new cluster.
    pub fn new(asked: &Asked) -> Settings {
        Settings {
            version: VERSION,
            drives: match asked.places.len() {
                0 => asked.drives.unwrap_or(DRIVES),
                // A configuration's limit is far below.
                count => u16::try_from(count).unwrap_or(u16::MAX),
            },
            drive_size: asked.drive_size.unwrap_or(DRIVE_SIZE),
            memory_drives: asked.memory_drives,
            places: asked.places.iter().map(Place::to_string).collect(),
            encrypted: asked.encrypted,
            key_file: asked.key_file.clone(),
            hosts: asked.hosts.unwrap_or(1),
            host_memory: asked.host_memory.unwrap_or(HOST_MEMORY),
            insane: false,
            cores: 0,
            log_size: asked.log_size.unwrap_or(LOG_SIZE),
            flash: asked.flash.clone(),
            flash_size: asked.flash_size.unwrap_or(FLASH_SIZE),
            ports: [0; 3],
            host_ports: Vec::new(),
            store: asked.store.unwrap_or_default(),
            etcd_ports: [0; 2],
            host_flash: BTreeMap::new(),
        }
    }

    /// Those of a complete cluster; `None` where there is none.
    pub fn load(directory: &Directory) -> Result<Option<Settings>> {
        let path = directory.settings();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(file("read", &path)(error)),
        };
        let wrong = |reason: String| Error::Settings { path: path.clone(), reason };
        let settings: Settings =
            toml::from_str(&text).map_err(|error| wrong(error.message().replace('\n', " ")))?;
        if settings.version != VERSION {
            let version = settings.version;
            return Err(wrong(format!(
                "version {version} is not {VERSION}, which this program knows"
            )));
        }
        Ok(Some(settings))
    }

    /// The hosts' engines.
    pub fn host_names(&self) -> &'static [&'static str] {
        &HOSTS[..usize::from(self.hosts).clamp(1, HOSTS_MAX)]
    }

    /// All engines: the hosts', then the controllers'.
    pub fn engines(&self) -> Vec<&'static str> {
        self.host_names().iter().copied().chain(CONTROLLERS).collect()
    }

    /// Writes them; from then on the cluster is complete.
    pub fn save(&self, directory: &Directory) -> Result<()> {
        let text = toml::to_string(self).expect("settings are plain data");
        write_private(&directory.settings(), text.as_bytes())
    }

    /// Takes over what may change from start to start; refuses what may not.
    pub fn apply(&mut self, asked: &Asked, directory: &Directory) -> Result<()> {
        let differs = |created: String, asked: String, advice| {
            let dir = directory.path().to_owned();
            Err(Error::CreatedOtherwise { dir, created, asked, advice })
        };
        const ELSEWHERE: &str = "use another directory for another cluster";
        if let Some(drives) = asked.drives.filter(|&drives| drives != self.drives) {
            let created = format!("{} drives", self.drives);
            return differs(created, format!("--drives {drives}"), ELSEWHERE);
        }
        if let Some(size) = asked.drive_size.filter(|&size| size != self.drive_size) {
            let created = format!("drives of {}", format_size(self.drive_size));
            return differs(created, format!("--drive-size {}", format_size(size)), ELSEWHERE);
        }
        if asked.memory_drives && !self.memory_drives {
            let created = "drive files".to_owned();
            return differs(created, "--memory-drives".to_owned(), ELSEWHERE);
        }
        let places: Vec<String> = asked.places.iter().map(Place::to_string).collect();
        if !places.is_empty() && places != self.places {
            let created = match &self.places[..] {
                [] => "drive files".to_owned(),
                drives => format!("--drive {}", drives.join(" --drive ")),
            };
            return differs(created, format!("--drive {}", places.join(" --drive ")), ELSEWHERE);
        }
        if let Some(store) = asked.store
            && store != self.store
        {
            let created = format!("--store {}", self.store);
            return differs(created, format!("--store {store}"), ELSEWHERE);
        }
        if asked.encrypted && !self.encrypted {
            let advice = "leave --encrypt out, or use another directory for an encrypted cluster";
            return differs("no encryption".to_owned(), "--encrypt".to_owned(), advice);
        }
        if let Some(path) = &asked.key_file {
            if self.key_file.is_none() {
                let asked = format!("--key-file {}", path.display());
                return differs("no key".to_owned(), asked, ELSEWHERE);
            }
            self.key_file = Some(path.clone());
        }
        if let Some(hosts) = asked.hosts.filter(|&hosts| hosts < self.hosts) {
            let created = format!("--hosts {}", self.hosts);
            return differs(created, format!("--hosts {hosts}"), "hosts can only be added");
        }
        if let Some(hosts) = asked.hosts {
            let last = HOSTS[usize::from(hosts).clamp(1, HOSTS_MAX) - 1];
            if !directory.key(&format!("{last}.pem")).exists() {
                let advice = "clusters of earlier versions have no keys for more hosts";
                return differs("one host".to_owned(), format!("--hosts {hosts}"), advice);
            }
            self.hosts = hosts;
        }
        self.host_memory = asked.host_memory.unwrap_or(self.host_memory);
        self.log_size = asked.log_size.unwrap_or(self.log_size);
        self.flash_size = asked.flash_size.unwrap_or(self.flash_size);
        if asked.flash.is_some() {
            self.flash.clone_from(&asked.flash);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory() -> (tempfile::TempDir, Directory) {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::create(folder.path()).unwrap();
        (folder, directory)
    }

    #[test]
    fn what_is_saved_is_loaded_and_strangers_are_refused() {
        let (_folder, directory) = directory();
        assert_eq!(Settings::load(&directory).unwrap(), None);
        let asked = Asked { key_file: Some("/k".into()), encrypted: true, ..Asked::default() };
        let settings = Settings::new(&asked);
        settings.save(&directory).unwrap();
        assert_eq!(Settings::load(&directory).unwrap(), Some(settings.clone()));
        Settings { version: 9, ..settings }.save(&directory).unwrap();
        assert!(Settings::load(&directory).unwrap_err().to_string().contains("version 9"));
        std::fs::write(directory.settings(), "x = [").unwrap();
        let error = Settings::load(&directory).unwrap_err().to_string();
        assert!(error.contains("dev.toml") && !error.contains('\n'), "{error}");
    }

    #[test]
    fn what_lies_on_drives_cannot_be_changed() {
        let (_folder, directory) = directory();
        let mut settings = Settings::new(&Asked::default());
        let refused = [
            Asked { drives: Some(5), ..Asked::default() },
            Asked { drive_size: Some(1 << 30), ..Asked::default() },
            Asked { memory_drives: true, ..Asked::default() },
            Asked { places: vec!["nvme:3b:00.0/1".parse().unwrap()], ..Asked::default() },
            Asked { encrypted: true, ..Asked::default() },
            Asked { store: Some(StoreKind::Etcd), ..Asked::default() },
            Asked { key_file: Some("/k".into()), ..Asked::default() },
        ];
        for asked in refused {
            let error = settings.apply(&asked, &directory).unwrap_err().to_string();
            assert!(error.contains("was created with") && !error.contains('\n'), "{error}");
        }
        let asked = Asked {
            drives: Some(DRIVES),
            host_memory: Some(1 << 30),
            log_size: Some(64 << 20),
            ..Asked::default()
        };
        settings.apply(&asked, &directory).unwrap();
        assert_eq!((settings.host_memory, settings.log_size), (1 << 30, 64 << 20));
    }
}
