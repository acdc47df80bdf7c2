//! etcd as a child of the supervisor: one member, with TLS by the cluster's authority and authentication.
//!
//! ```text
//! DIR/etcd/                    what it keeps
//! DIR/keys/etcd.pem, .key      its certificate, for its clients and (there are none) for other members
//! DIR/keys/etcd-client.pem, .key   the certificate of its clients: supervisor and engines
//! DIR/keys/etcd.password       of the user `cleave`, who may use everything below `/cleave/`
//! DIR/keys/etcd-root.password  of etcd's own user `root`; nothing here uses it afterwards
//! DIR/log/etcd.log             what it says
//! ```
//! It listens on loopback only. Clients need a certificate of the authority and the password. It is started before
//! anything else and stopped after everything else, and started again whenever it ends in between: the engines
//! go on without it (C9), as long as no role and no owner changes.

use crate::dev::child::{self, Running};
use crate::dev::directory::{Directory, write_private};
use crate::dev::drives;
use crate::dev::settings::Settings;
use crate::dev::store::ClusterStore;
use crate::error::{Error, Result, file, system};
use cleave_control::config::EtcdAccess;
use cleave_coordinator::BlockingStore;
use cleave_coordinator_etcd::{EtcdConfig, EtcdStore, SetupError, set_up};
use cleave_runtime_real::identity::ClusterCa;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

/// The child's name, in logs and for `cleave restart`.
pub const ETCD: &str = "etcd";
/// The name in the certificate of its clients.
const CLIENT: &str = "etcd-client";
/// The user of supervisor and engines.
const USER: &str = "cleave";
/// All keys are below this.
const PREFIX: &str = "/cleave/";
/// How long it may take to answer for the first time.
const READY: Duration = Duration::from_secs(30);
/// How often it is looked whether it has ended meanwhile.
const LOOK: Duration = Duration::from_secs(1);
/// How long an operation of the supervisor's waits for it to come back.
const PATIENCE: Duration = Duration::from_secs(5);
/// Revisions that it remembers for watches.
const REVISIONS_KEPT: &str = "20000";

/// A started etcd.
pub type Started = (Running, Child);

/// Makes certificates and passwords, once.
pub fn create_secrets(directory: &Directory, authority: &ClusterCa) -> Result<()> {
    for name in [ETCD, CLIENT] {
        let identity = authority.issue(name).map_err(|error| Error::Identity(error.to_string()))?;
        let path = |end| directory.key(&format!("{name}.{end}"));
        write_private(&path("pem"), identity.certificate_pem.as_bytes())?;
        write_private(&path("key"), identity.key_pem.as_bytes())?;
    }
    for name in ["etcd.password", "etcd-root.password"] {
        let bytes: [u8; 16] = drives::random()?;
        let text: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        write_private(&directory.key(name), text.as_bytes())?;
    }
    Ok(())
}

/// How clients are let in.
pub fn access(directory: &Directory, settings: &Settings) -> EtcdAccess {
    EtcdAccess {
        endpoints: vec![format!("https://{}", address(settings.etcd_ports[0]))],
        prefix: PREFIX.to_owned(),
        ca: directory.key("authority.pem"),
        server_name: Some(ETCD.to_owned()),
        certificate: Some(directory.key(&format!("{CLIENT}.pem"))),
        key: Some(directory.key(&format!("{CLIENT}.key"))),
        user: Some(USER.to_owned()),
        password_file: Some(directory.key("etcd.password")),
    }
}

/// Starts it, waits until it answers, sees to authentication, and connects. Ports that are taken are replaced, except
/// where configurations name them that are `kept`.
pub fn begin(
    directory: &Directory,
    settings: &mut Settings,
    kept: bool,
) -> Result<(ClusterStore, Started)> {
    let program = program()?;
    if !kept || settings.etcd_ports.contains(&0) {
        choose_ports(&mut settings.etcd_ports)?;
    }
    directory.folder(&directory.engine(ETCD))?;
    let (running, mut process) = start(directory, settings, program)?;
    let failed = |what: String| {
        let said = running.last_words().map(|words| format!("; it says: {words}"));
        child::failed(ETCD, format!("{what}{}", said.unwrap_or_default()))
    };
    let config = EtcdConfig::of_access(&access(directory, settings));
    let config = config.map_err(|error| failed(error.to_string()))?;
    let path = directory.key("etcd-root.password");
    let root = std::fs::read_to_string(&path).map_err(file("read", &path))?;
    let started = Instant::now();
    while let Err(error) = set_up(&config, &root, LOOK) {
        if let Some(status) = process.try_wait().map_err(system("look at a child process"))? {
            return Err(child::failed(ETCD, running.obituary(status)));
        }
        let away = matches!(error, SetupError::Away { .. });
        if !away || started.elapsed() > READY {
            return Err(failed(format!("cannot be used: {error}")));
        }
    }
    let store = BlockingStore::new(PATIENCE, |bell| EtcdStore::new(&config, bell));
    let store = store.map_err(|error| failed(error.to_string()))?;
    Ok((ClusterStore::Etcd(store), (running, process)))
}

/// Starts it again.
pub fn restart(directory: &Directory, settings: &Settings) -> Result<Started> {
    start(directory, settings, program()?)
}

/// Where it is installed.
fn program() -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join(ETCD));
    found.into_iter().find(|file| file.is_file()).ok_or_else(|| {
        let what = "is not installed; install it (Debian: apt-get install etcd-server), or leave --store etcd out";
        child::failed(ETCD, what)
    })
}

fn start(directory: &Directory, settings: &Settings, program: PathBuf) -> Result<Started> {
    let [clients, members] = settings.etcd_ports.map(|port| format!("https://{}", address(port)));
    let (authority, key) =
        (directory.key("authority.pem"), |end: &str| directory.key(&format!("{ETCD}.{end}")));
    let mut command = Command::new(&program);
    command
        .args(["--name", ETCD, "--data-dir"])
        .arg(directory.engine(ETCD))
        .args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients])
        .args(["--listen-peer-urls", &members, "--initial-advertise-peer-urls", &members])
        .args(["--initial-cluster", &format!("{ETCD}={members}")])
        .arg("--client-cert-auth")
        .arg("--peer-client-cert-auth")
        .args(["--enable-grpc-gateway=false", "--logger=zap", "--log-level=warn"])
        // One member elects itself; a short time makes short leases possible.
        .args(["--heartbeat-interval=50", "--election-timeout=500"])
        .args(["--auto-compaction-mode=revision", "--auto-compaction-retention", REVISIONS_KEPT])
        // Debian refuses to run it elsewhere than on some processors without this.
        .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
    for (option, path) in [
        ("--cert-file", key("pem")),
        ("--key-file", key("key")),
        ("--trusted-ca-file", authority.clone()),
        ("--peer-cert-file", key("pem")),
        ("--peer-key-file", key("key")),
        ("--peer-trusted-ca-file", authority),
    ] {
        command.arg(option).arg(path);
    }
    child::start(directory, ETCD, command, false)
}

fn address(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

/// Keeps ports that are free; replaces others. Both are held at once, so that they differ.
fn choose_ports(ports: &mut [u16; 2]) -> Result<()> {
    let mut held = Vec::new();
    for port in ports {
        let listener = TcpListener::bind(address(*port))
            .or_else(|_| TcpListener::bind(address(0)))
            .map_err(system("find a free TCP port on loopback"))?;
        *port = listener.local_addr().map_err(system("look at a socket"))?.port();
        held.push(listener);
    }
    Ok(())
}
