//! The engines' configuration files, and the loopback ports on which they find each other.

use crate::dev::cluster::Cluster;
use crate::dev::directory::write_private;
use crate::dev::etcd;
use crate::dev::flash;
use crate::dev::settings::{CONTROLLERS, DATANODE_ID, host_number};
use crate::dev::store::StoreKind;
use crate::error::{Result, system};
use cleave_control::config::{
    DatanodeAddresses, DatanodeConfig, DriveConfig, EtcdAccess, HostConfig, PeerAddress, TlsFiles,
};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::PathBuf;

/// Datagrams on loopback may be large, which costs least.
const MTU: u16 = 8900;
/// The group that may use vdisks where it exists and this process may give files to it.
const VHOST_GROUP: &str = "kvm";

/// Chooses ports and writes all configurations. `keep`: unless they are there already, because whoever
/// starts the engines may have changed them.
pub fn configure(cluster: &mut Cluster, keep: bool) -> Result<()> {
    let engines = cluster.settings.engines();
    if keep && engines.iter().all(|name| cluster.directory.engine_config(name).exists()) {
        return Ok(());
    }
    let mut ports: Vec<u16> = cluster.settings.ports.to_vec();
    ports.append(&mut cluster.settings.host_ports);
    ports.resize(engines.len(), 0);
    choose_ports(&mut ports)?;
    cluster.settings.host_ports = ports.split_off(3);
    cluster.settings.ports.copy_from_slice(&ports);
    cluster.settings.save(&cluster.directory)?;
    flash::create_missing(&cluster.directory, &cluster.settings)?;
    let directory = &cluster.directory;
    for name in cluster.settings.host_names() {
        let config = host(cluster, name);
        directory.folder(&config.dir)?;
        directory.open_folder(&config.vhost_dir)?;
        write_private(&directory.engine_config(name), config.to_toml().as_bytes())?;
        // What engines would refuse is our own mistake, but a file that cannot be read back is not.
        HostConfig::load(&directory.engine_config(name))?;
    }
    for (controller, name) in (0..).zip(CONTROLLERS) {
        let config = datanode(cluster, controller);
        write_private(&directory.engine_config(name), config.to_toml().as_bytes())?;
    }
    for name in CONTROLLERS {
        DatanodeConfig::load(&directory.engine_config(name))?;
    }
    Ok(())
}

/// Keeps ports that are free; replaces others. All are held at once, so that they differ.
fn choose_ports(ports: &mut [u16]) -> Result<()> {
    let mut held = Vec::new();
    for port in ports {
        let wanted = SocketAddr::from((Ipv4Addr::LOCALHOST, *port));
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let socket = UdpSocket::bind(wanted)
            .or_else(|_| UdpSocket::bind(any))
            .map_err(system("find a free UDP port on loopback"))?;
        *port = socket.local_addr().map_err(system("look at a socket"))?.port();
        held.push(socket);
    }
    Ok(())
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn tls(cluster: &Cluster, name: &str) -> TlsFiles {
    TlsFiles {
        ca: cluster.directory.key("authority.pem"),
        certificate: cluster.directory.key(&format!("{name}.pem")),
        key: cluster.directory.key(&format!("{name}.key")),
    }
}

fn socket(cluster: &Cluster) -> Option<PathBuf> {
    (cluster.settings.store == StoreKind::Redb).then(|| cluster.directory.store_socket())
}

fn etcd_access(cluster: &Cluster) -> Option<EtcdAccess> {
    let (directory, settings) = (&cluster.directory, &cluster.settings);
    (settings.store == StoreKind::Etcd).then(|| etcd::access(directory, settings))
}

fn controllers(cluster: &Cluster) -> Vec<PeerAddress> {
    let peer =
        |(name, port): (&str, &u16)| PeerAddress { name: name.to_owned(), address: address(*port) };
    CONTROLLERS.into_iter().zip(&cluster.settings.ports).map(peer).collect()
}

fn host(cluster: &Cluster, name: &str) -> HostConfig {
    let (directory, settings) = (&cluster.directory, &cluster.settings);
    let number = host_number(name).expect("it is one of the names");
    let port = match number {
        1 => settings.ports[2],
        number => settings.host_ports[number as usize - 2],
    };
    // What waits for destage takes part of the budget; the rest is maps, requests, links.
    let write_buffer = settings.host_memory / 8 * 3;
    // A host fills its quota to destage well, and leaves the log room for control entries.
    let quota = (settings.log_size / 4 * 3).min(write_buffer);
    HostConfig {
        name: name.to_owned(),
        id: number,
        cluster: cluster.record.uuid.clone(),
        dir: directory.engine(name),
        store_socket: socket(cluster),
        control_socket: directory.engine_socket(name),
        listen: address(port),
        cores: settings.cores,
        insane: settings.insane,
        memory_budget: settings.host_memory,
        map: 0,
        write_buffer,
        quota,
        vhost_dir: directory.vhost_of(number),
        vhost_group: vhost_group(),
        key_file: settings.key_file.clone(),
        flash: flash::devices(directory, settings, name),
        // Of its own, as if it were another machine: what a stopped engine holds keeps no other host from a vdisk.
        lock_dir: directory.engine(name),
        mtu: MTU,
        tls: tls(cluster, name),
        etcd: etcd_access(cluster),
        datanodes: vec![DatanodeAddresses { id: DATANODE_ID, controllers: controllers(cluster) }],
    }
}

fn datanode(cluster: &Cluster, controller: u8) -> DatanodeConfig {
    let (directory, settings) = (&cluster.directory, &cluster.settings);
    let (own, peer) = (usize::from(controller), usize::from(1 - controller));
    let name = CONTROLLERS[own];
    let dir = directory.engine(name);
    let drives = cluster.drives.iter().map(|drive| DriveConfig {
        id: drive.number,
        uuid: drive.uuid.iter().map(|byte| format!("{byte:02x}")).collect(),
        path: drive.path.clone(),
    });
    DatanodeConfig {
        name: name.to_owned(),
        controller,
        datanode: DATANODE_ID,
        cluster: cluster.record.uuid.clone(),
        listen: address(settings.ports[own]),
        peer: controllers(cluster).swap_remove(peer),
        nvlog_capacity: settings.log_size,
        vault: dir.join("vault"),
        catalog: dir.join("catalog.redb"),
        dir,
        take_over: true,
        alone: true,
        store_socket: socket(cluster),
        control_socket: directory.engine_socket(name),
        mtu: MTU,
        tls: tls(cluster, name),
        etcd: etcd_access(cluster),
        drives: drives.collect(),
    }
}

fn vhost_group() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let groups = std::fs::read_to_string("/etc/group").ok()?;
    let named = |line: &str| line.split(':').next() == Some(VHOST_GROUP);
    groups.lines().any(named).then(|| VHOST_GROUP.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_that_are_free_are_kept_and_others_replaced() {
        let mut ports = [0; 3];
        choose_ports(&mut ports).unwrap();
        assert!(ports.iter().all(|&port| port != 0));
        assert!(ports[0] != ports[1] && ports[1] != ports[2] && ports[0] != ports[2]);
        let taken = UdpSocket::bind(address(ports[1])).unwrap();
        let before = ports;
        choose_ports(&mut ports).unwrap();
        assert_eq!((ports[0], ports[2]), (before[0], before[2]));
        assert_ne!(ports[1], before[1]);
        drop(taken);
    }
}
