//! What people and their programs write: control requests, configuration files, sizes, names, keys.

use cleave_control::config::{ConfigError, DatanodeConfig, HostConfig};
use cleave_control::events::file::{LINE_MAX, parse};
use cleave_control::key_file::{KeyFileError, load_key};
use cleave_control::names::{NAME_BYTES_MAX, check_name, parse_vdisk, vhost_socket};
use cleave_control::protocol::{Reply, Request, Response};
use cleave_control::server::ControlServer;
use cleave_control::size::{check_vdisk_size, format_size, parse_size, parse_vdisk_size};
use std::fs::{self, Permissions};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder of this process, for what must be a file.
fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER.get_or_init(|| tempfile::tempdir().expect("a temporary folder can be made")).path()
}

/// Writes a file that only this thread uses.
fn file(name: &str, content: &[u8]) -> PathBuf {
    let path = folder().join(format!("{name}-{:?}", std::thread::current().id()));
    fs::write(&path, content).expect("a temporary file can be written");
    path
}

/// Lines to a server, which answers each of them until one is wrong; and answers as a client reads them.
pub(super) fn lines(data: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let text = serde_json::to_vec(&request).expect("requests are plain data");
        assert_eq!(serde_json::from_slice::<Request>(&text).ok(), Some(request));
    }
    if let Ok(response) = serde_json::from_slice::<Response>(data) {
        let text = serde_json::to_vec(&response).expect("responses are plain data");
        assert!(serde_json::from_slice::<Response>(&text).is_ok());
    }
    // As many as the socket takes at once: nobody reads while this is written.
    let data = &data[..data.len().min(60_000)];
    let (good, wrong) = {
        let mut lines: Vec<&[u8]> = data.split(|byte| *byte == b'\n').collect();
        // What has no line end is not answered.
        lines.pop();
        let parsed = |line: &&[u8]| serde_json::from_slice::<Request>(line).is_ok();
        let good = lines.iter().take_while(|line| parsed(line)).count();
        (good, good < lines.len())
    };
    let mut stream = UnixStream::connect(server()).expect("the server takes connections");
    // The server hangs up on what is wrong, with bytes unread.
    let _ = stream.write_all(data);
    let _ = stream.shutdown(Shutdown::Write);
    let mut answers = Vec::new();
    let ended = stream.read_to_end(&mut answers);
    if ended.is_err() {
        return;
    }
    let answers = answers.split_inclusive(|byte| *byte == b'\n');
    let answers: Vec<Response> = answers
        .map(|line| serde_json::from_slice(line).expect("an answer is a response"))
        .collect();
    assert_eq!(answers.len(), good + usize::from(wrong), "one answer to a line");
    assert!(answers[..good].iter().all(|answer| matches!(answer, Response::Ok(_))));
}

fn server() -> &'static Path {
    static SERVER: OnceLock<(ControlServer, PathBuf)> = OnceLock::new();
    let (_, path) = SERVER.get_or_init(|| {
        let path = folder().join("control");
        let server = ControlServer::start(&path, |_| Response::Ok(Reply::Done {}));
        (server.expect("a socket can be made"), path)
    });
    path
}

/// Every request, some answers.
pub(super) fn lines_seeds() -> Vec<Vec<u8>> {
    let name = || "data".to_owned();
    let requests = [
        Request::Status {},
        Request::Stats {},
        Request::CreateVdisk {
            name: name(),
            size: 1 << 30,
            encrypted: Some(true),
            shares: Some(4),
        },
        Request::ListVdisks {},
        Request::ResizeVdisk { name: name(), size: 1 << 30, accept_data_loss: false },
        Request::DeleteVdisk { name: name() },
        Request::MoveVdisk { name: name(), host: 2, take_over: true },
        Request::RestartChild { name: name() },
        Request::UpgradeHost { program: Some("/usr/bin/cleave-host".into()) },
        Request::SetCpu { insane: Some(true), cores: Some(2) },
        Request::AddFlash { device: "memory:1G".to_owned(), size: None, host: Some(2) },
        Request::RetireFlash { device: "memory:1G".to_owned(), host: Some(2) },
        Request::SwitchOver { datanode: 1 },
        Request::Scrub { datanode: 1 },
        Request::Rebuild { datanode: 1 },
        Request::StartEmptyLog { datanode: 1, accept_data_loss: true },
    ];
    let line = |request: &Request| {
        let mut line = serde_json::to_vec(request).expect("requests are plain data");
        line.push(b'\n');
        line
    };
    let mut seeds: Vec<Vec<u8>> = requests.iter().map(line).collect();
    seeds.push(seeds.concat());
    for response in [Response::Ok(Reply::Done {}), Response::error("no")] {
        seeds.push(serde_json::to_vec(&response).expect("responses are plain data"));
    }
    seeds
}

/// An error is one line that names the file.
fn check_error(error: &ConfigError, path: &Path) {
    let text = error.to_string();
    assert!(!text.contains('\n'), "{text:?}");
    assert!(text.contains(&*path.to_string_lossy()), "{text:?}");
}

/// A host engine's configuration.
pub(super) fn host_config(data: &[u8]) {
    let path = file("host", data);
    match HostConfig::load(&path) {
        Ok(config) => {
            let again = file("host", config.to_toml().as_bytes());
            assert_eq!(HostConfig::load(&again).ok(), Some(config));
        }
        Err(error) => check_error(&error, &path),
    }
}

/// A controller's configuration.
pub(super) fn datanode_config(data: &[u8]) {
    let path = file("datanode", data);
    match DatanodeConfig::load(&path) {
        Ok(config) => {
            let again = file("datanode", config.to_toml().as_bytes());
            assert_eq!(DatanodeConfig::load(&again).ok(), Some(config));
        }
        Err(error) => check_error(&error, &path),
    }
}

const TLS: &str = r#"
[tls]
ca = "/c/ca.pem"
certificate = "/c/own.pem"
key = "/c/own.key"
"#;

const ETCD: &str = r#"
[etcd]
endpoints = ["https://10.0.0.1:2379", "https://[fd00::2]:2379"]
prefix = "/cleave/one/"
ca = "/c/etcd-ca.pem"
server_name = "etcd.example"
certificate = "/c/etcd.pem"
key = "/c/etcd.key"
user = "cleave"
password_file = "/c/password"
"#;

/// Cleave's own store gives its place to etcd.
fn with_etcd(file: &str) -> Vec<u8> {
    [&file.replace("store_socket = \"/c/store.sock\"\n", ""), ETCD].concat().into_bytes()
}

/// A whole file, one with tables written otherwise, and one over etcd.
pub(super) fn host_config_seeds() -> Vec<Vec<u8>> {
    let head = r#"name = "host-1"
id = 1
cluster = "0123456789abcdef0123456789ABCDEF"
dir = "/c/host"
store_socket = "/c/store.sock"
control_socket = "/c/host.sock"
listen = "127.0.0.1:0"
memory_budget = "512M"
write_buffer = 67108864
quota = "64M"
vhost_dir = "/c/vhost"
vhost_group = "kvm"
key_file = "/c/key"
lock_dir = "/c/lock"
"#;
    let tail = r#"
[[datanodes]]
id = 1
controllers = [
    { name = "datanode-1a", address = "127.0.0.1:4001" },
    { name = "datanode-1b", address = "[::1]:4002" },
]
"#;
    let all = [head, TLS, tail].concat();
    vec![all.clone().into_bytes(), [head, tail].concat().into_bytes(), with_etcd(&all)]
}

/// A whole file, and one over etcd.
pub(super) fn datanode_config_seeds() -> Vec<Vec<u8>> {
    let head = r#"name = "datanode-1a"
controller = 0
datanode = 1
cluster = "0123456789abcdef0123456789abcdef"
dir = "/c/a"
listen = "127.0.0.1:4001"
peer = { name = "datanode-1b", address = "127.0.0.1:4002" }
nvlog_capacity = "256M"
vault = "/c/a/vault"
catalog = "/c/a/catalog"
store_socket = "/c/store.sock"
control_socket = "/c/a.sock"
mtu = 8900
drives = [
    { id = 0, uuid = "00000000000000000000000000000001", path = "/c/drive-0" },
    { id = 1, uuid = "00000000000000000000000000000002", path = "/proc/17/fd/5" },
    { id = 2, uuid = "00000000000000000000000000000003", path = "/dev/nvme0n1" },
]
"#;
    let all = [head, TLS].concat();
    vec![all.clone().into_bytes(), with_etcd(&all)]
}

/// Sizes, names, vdisks.
pub(super) fn names(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    if let Ok(size) = parse_size(&text) {
        assert!(size > 0);
        assert_eq!(parse_size(&format_size(size)), Ok(size));
        assert_eq!(check_vdisk_size(size).is_ok(), parse_vdisk_size(&text).is_ok());
    }
    if check_name(&text).is_ok() {
        assert!(text.len() <= NAME_BYTES_MAX && !text.contains('/'));
        if let Ok(socket) = vhost_socket(Path::new("/c"), &text) {
            assert_eq!(socket.parent(), Some(Path::new("/c")));
        }
    }
    match parse_vdisk(&text) {
        Ok((name, size)) => assert!(check_name(&name).is_ok() && check_vdisk_size(size).is_ok()),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
}

/// Good and bad ones.
pub(super) fn names_seeds() -> Vec<Vec<u8>> {
    let texts =
        ["16G", "4096", "64T", "18446744073709551615", "0K", "data:16G", "a.b_c-9", "..", "ä"];
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Files that only their owner can read.
pub(super) fn key_file(data: &[u8]) {
    let path = file("key", data);
    fs::set_permissions(&path, Permissions::from_mode(0o600)).expect("the file is ours");
    match load_key(&path) {
        Ok(key) => {
            let hex: String = key.bytes().iter().map(|byte| format!("{byte:02X}")).collect();
            assert!(data == key.bytes() || data.to_ascii_uppercase().starts_with(hex.as_bytes()));
            assert!(!format!("{key:?}").to_uppercase().contains(&hex));
        }
        Err(KeyFileError::Malformed { what, .. }) => assert!(!what.contains('\n')),
        Err(error) => panic!("a good file: {error}"),
    }
}

/// Both forms.
pub(super) fn key_file_seeds() -> Vec<Vec<u8>> {
    let hex = "0123456789abcdef".repeat(4);
    vec![vec![0xa5; 32], hex.clone().into_bytes(), format!("{hex}\r\n").into_bytes(), Vec::new()]
}

/// An engine's file of events: whatever is in it, what is read is in order, and is read again as it is.
pub(super) fn events(data: &[u8]) {
    let (events, damaged) = parse(data);
    let lines = data.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
    assert!(events.len() as u64 + damaged <= lines as u64);
    assert!(events.windows(2).all(|two| two[0].number < two[1].number));
    let mut again = Vec::new();
    for event in &events {
        let line = serde_json::to_vec(event).expect("an event is plain data");
        // What escapes is longer than what it was read from may have been.
        if line.len() > LINE_MAX {
            return;
        }
        again.extend(line);
        again.push(b'\n');
    }
    assert_eq!(parse(&again), (events, 0));
}

const STARTED: &str = r#"{"number":1,"at":1700000000,"last":1700000000,"count":1,"engine":"host-1","severity":"info","kind":"started","subject":"engine","name":"host-1","text":"started","cause":"version 0.1.0"}"#;
const FAULT: &str = r#"{"number":2,"at":1700000001,"last":1700000009,"count":64,"engine":"host-1","severity":"warning","kind":"flash_fault","subject":"flash","name":"/dev/x","place":"byte 4096","text":"failed","cause":"an I/O error","action":""}"#;

/// Whole, repeated, torn.
pub(super) fn events_seeds() -> Vec<Vec<u8>> {
    let lines = format!("{STARTED}\n{FAULT}\n");
    let torn = format!("{STARTED}\n{}\n{FAULT}\n", &FAULT[..60]);
    vec![lines.into_bytes(), torn.into_bytes(), Vec::new()]
}
