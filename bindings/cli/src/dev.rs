//! `cleave dev`: a whole cluster on one machine, supervised by this process.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`directory`] | who holds a cluster's directory, and where things lie in it |
//! | [`settings`] | how it was created, and what its engines run with |
//! | [`cluster`] | creating one, and checking one that exists |
//! | [`drives`] | drive files and drives in memory |
//! | [`cpu`] | what the host engine may use of the processors |
//! | [`flash`] | the host's flash: files and memory |
//! | [`store`] | the coordinator store, the supervisor's own or etcd |
//! | [`etcd`] | etcd as a child: its certificates, passwords, options |
//! | [`engines`] | the engines' configuration files and ports |
//! | [`child`] | one child process: start, signals, end, its last words |
//! | [`namespace`] | vdisks in the store |
//! | [`overview`] | status and statistics, gathered from the engines |
//! | [`events`] | what the supervisor saw happen, and what all engines tell |
//! | [`requests`] | what the control socket answers |
//! | [`supervisor`] | the loop: children, signals, requests, the order of a stop |
//!
//! The supervisor owns the coordinator store, or etcd, which is its child then. It keeps no state of its own outside of the directory,
//! so it can be killed at any time: its children get SIGTERM from the kernel and stop cleanly.
//! With `--no-engines` something else starts and stops the engines; they outlive this process then,
//! and do without the store until it is started again.

pub mod child;
pub mod cluster;
pub mod cpu;
pub mod directory;
pub mod drives;
pub mod engines;
pub mod etcd;
pub mod events;
pub mod flash;
pub mod namespace;
pub mod overview;
pub mod requests;
pub mod settings;
pub mod store;
pub mod supervisor;

use crate::arguments::DevOptions;
use crate::error::{Error, Result};
use cluster::Cluster;
use directory::Directory;
use settings::Asked;
use std::path::PathBuf;

/// Runs a cluster until a signal or a request ends it.
pub fn run(dir: Option<PathBuf>, options: &DevOptions) -> Result<()> {
    let directory = Directory::create(&dir.ok_or(Error::NoDirectory)?)?;
    for (name, _) in &options.vdisks {
        directory.vhost_socket(settings::HOST_ID, name)?;
    }
    let held = directory::hold(&directory)?;
    let asked = Asked {
        drives: options.drives,
        drive_size: options.drive_size,
        memory_drives: options.memory_drives,
        places: options.places.clone(),
        erase: options.erase_drives,
        encrypted: options.encrypt,
        key_file: options.key_file.as_deref().map(absolute).transpose()?,
        hosts: options.hosts,
        host_memory: options.host_memory,
        log_size: options.log_size,
        flash: flash_of(&options.flash)?,
        flash_size: options.flash_size,
        store: options.store,
        engines_elsewhere: options.no_engines,
    };
    let cluster = Cluster::open(directory, &asked)?;
    for (name, size) in &options.vdisks {
        cluster.keep_vdisk(name, *size)?;
    }
    let result = supervisor::supervise(cluster, options.restart, !options.no_engines);
    drop(held);
    result
}

/// The devices that were named; `None`: nothing was said.
fn flash_of(named: &[String]) -> Result<Option<Vec<String>>> {
    if named.is_empty() {
        return Ok(None);
    }
    let devices = named.iter().map(|text| flash::named(text)).collect::<Result<Vec<_>>>()?;
    Ok(Some(devices.into_iter().flatten().collect()))
}

fn absolute(path: &std::path::Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(crate::error::file("find", path))
}
