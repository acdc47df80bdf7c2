//! The host's flash on one machine: a sparse file beside what the host engine keeps unless told otherwise, memory for
//! clusters of which nothing survives.
//!
//! Flash is a cache: a file that is missing is made again, and nothing is lost with it. What is
//! added and retired while the cluster runs is kept in the settings and in the engine's configuration, for its next
//! start.

use crate::dev::directory::{Directory, write_private};
use crate::dev::settings::{HOST, Settings};
use crate::error::{Error, Result, file};
use cleave_control::config::HostConfig;
use cleave_control::flash::FlashPlace;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Bytes of a flash file that is made, unless told otherwise.
pub const FLASH_SIZE: u64 = 4 << 30;
/// Bytes of flash in memory unless told otherwise.
const MEMORY_SIZE: u64 = 512 << 20;

/// The devices as a host's engine gets them. Those that a start names are the first host's; the others have files, or
/// memory, of their own, until that is changed.
pub fn devices(directory: &Directory, settings: &Settings, host: &str) -> Vec<String> {
    let file = || directory.engine(host).join("flash.img").display().to_string();
    let is_memory = |device: &String| matches!(device.parse(), Ok(FlashPlace::Memory(_)));
    if let Some(devices) = settings.host_flash.get(host) {
        return devices.clone();
    }
    match &settings.flash {
        Some(devices) if host == HOST || devices.iter().all(is_memory) => devices.clone(),
        Some(_) => vec![file()],
        None if settings.memory_drives => vec![FlashPlace::Memory(MEMORY_SIZE).to_string()],
        None => vec![file()],
    }
}

/// Makes the files that are not there.
pub fn create_missing(directory: &Directory, settings: &Settings) -> Result<()> {
    for host in settings.host_names() {
        directory.folder(&directory.engine(host))?;
        for device in devices(directory, settings, host) {
            if let Ok(FlashPlace::Path(path)) = device.parse()
                && !path.exists()
            {
                create(&path, settings.flash_size)?;
            }
        }
    }
    Ok(())
}

/// Makes a sparse file.
pub fn create(path: &Path, size: u64) -> Result<()> {
    let mut options = OpenOptions::new();
    let created = options.write(true).create_new(true).mode(0o600).open(path);
    let created = created.map_err(file("create", path))?;
    created.set_len(size).map_err(file("give its size to", path))
}

/// Changes what the next start of a host's engine finds.
pub fn keep(directory: &Directory, host: &str, change: impl Fn(&mut Vec<String>)) -> Result<()> {
    let path = directory.settings();
    let missing = || file("read", &path)(io::Error::from(io::ErrorKind::NotFound));
    let mut settings = Settings::load(directory)?.ok_or_else(missing)?;
    let list = changed(directory, &mut settings, host, change);
    settings.save(directory)?;
    let path = directory.engine_config(host);
    let mut config = HostConfig::load(&path)?;
    config.flash = list;
    write_private(&path, config.to_toml().as_bytes())
}

/// Changes one host's devices in the settings, and those of no other; gives them.
fn changed(
    directory: &Directory,
    settings: &mut Settings,
    host: &str,
    change: impl Fn(&mut Vec<String>),
) -> Vec<String> {
    let mut list = devices(directory, settings, host);
    change(&mut list);
    if host == HOST {
        for other in settings.host_names().iter().filter(|other| **other != HOST) {
            let theirs = devices(directory, settings, other);
            settings.host_flash.insert((*other).to_owned(), theirs);
        }
        settings.flash = Some(list.clone());
    } else {
        settings.host_flash.insert(host.to_owned(), list.clone());
    }
    list
}

/// A device as a person names it on a command line: paths may be relative, `none` is none at all.
pub fn named(text: &str) -> Result<Option<String>> {
    if text == "none" {
        return Ok(None);
    }
    let wrong =
        |reason: String| Error::Option { option: "--flash", value: text.to_owned(), reason };
    let given: PathBuf = text.into();
    let place = match text.parse::<FlashPlace>() {
        Ok(place) => place,
        // A relative path, unless it was meant to be something else.
        Err(_) if !text.is_empty() && !text.contains(':') => {
            FlashPlace::Path(std::path::absolute(&given).map_err(file("find", &given))?)
        }
        Err(reason) => return Err(wrong(reason)),
    };
    Ok(Some(place.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::settings::Asked;

    #[test]
    fn a_file_is_made_once_and_memory_is_for_memory() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::create(folder.path()).unwrap();
        directory.folder(&directory.engine(HOST)).unwrap();
        let asked = Asked { flash_size: Some(32 << 20), ..Asked::default() };
        let mut settings = Settings::new(&asked);
        let path = PathBuf::from(&devices(&directory, &settings, HOST)[0]);
        create_missing(&directory, &settings).unwrap();
        assert_eq!(path.metadata().unwrap().len(), 32 << 20);
        std::fs::write(&path, "kept").unwrap();
        create_missing(&directory, &settings).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        settings.memory_drives = true;
        assert_eq!(devices(&directory, &settings, HOST), ["memory:512M"]);
        settings.flash = Some(Vec::new());
        assert!(devices(&directory, &settings, HOST).is_empty());
    }

    #[test]
    fn each_host_has_flash_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let directory = Directory::create(folder.path()).unwrap();
        let asked = Asked { hosts: Some(3), ..Asked::default() };
        let settings = Settings { flash_size: 32 << 20, ..Settings::new(&asked) };
        create_missing(&directory, &settings).unwrap();
        let of = |settings: &Settings| -> Vec<Vec<String>> {
            let hosts = settings.host_names().iter();
            hosts.map(|host| devices(&directory, settings, host)).collect()
        };
        let begun = of(&settings);
        assert!(begun[0] != begun[1] && begun[1] != begun[2], "{begun:?}");
        // Those of the first host that are named are not the others' too; memory is everybody's own.
        let named = Settings { flash: Some(vec!["/dev/x".to_owned()]), ..settings.clone() };
        assert_eq!(of(&named), [vec!["/dev/x".to_owned()], begun[1].clone(), begun[2].clone()]);
        let mut memory = Settings { flash: Some(vec!["memory:1G".to_owned()]), ..settings.clone() };
        assert_eq!(of(&memory), vec![vec!["memory:1G".to_owned()]; 3]);
        // What is added is one host's, and the next start finds it.
        let mut add = |host, device: &str| {
            changed(&directory, &mut memory, host, |list| list.push(device.to_owned()))
        };
        assert_eq!(add("host-2", "/dev/y"), ["memory:1G", "/dev/y"]);
        assert_eq!(add(HOST, "/dev/z"), ["memory:1G", "/dev/z"]);
        memory.save(&directory).unwrap();
        let of_each: [&[&str]; 3] =
            [&["memory:1G", "/dev/z"], &["memory:1G", "/dev/y"], &["memory:1G"]];
        assert_eq!(of(&Settings::load(&directory).unwrap().unwrap()), of_each);
    }

    #[test]
    fn devices_are_named_as_people_do() {
        assert_eq!(named("none").unwrap(), None);
        assert_eq!(named("memory:1024M").unwrap().unwrap(), "memory:1G");
        assert!(named("flash").unwrap().unwrap().starts_with('/'));
        assert_eq!(named("/dev/x").unwrap().unwrap(), "/dev/x");
        for wrong in ["", "memory:", "memorie:1G"] {
            let error = named(wrong).unwrap_err().to_string();
            assert!(error.contains("--flash"), "{error}");
        }
    }
}
