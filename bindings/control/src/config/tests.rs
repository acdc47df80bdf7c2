//! Files as they are written by hand, and every way to get them wrong.

use super::*;

const HOST: &str = r#"
name = "host-1"
id = 1
cluster = "0123456789abcdef0123456789ABCDEF"
dir = "/run/cleave/host"
store_socket = "/run/cleave/store.sock"
control_socket = "/run/cleave/host.sock"
listen = "127.0.0.1:0"
memory_budget = "512M"
write_buffer = 67108864
quota = "64M"
vhost_dir = "/run/cleave/vhost"
lock_dir = "/run/cleave/lock"

[tls]
ca = "/run/cleave/ca.pem"
certificate = "/run/cleave/host.pem"
key = "/run/cleave/host.key"

[[datanodes]]
id = 1
controllers = [
    { name = "datanode-1a", address = "127.0.0.1:4001" },
    { name = "datanode-1b", address = "[::1]:4002" },
]
"#;

const DATANODE: &str = r#"
name = "datanode-1a"
controller = 0
datanode = 1
cluster = "0123456789abcdef0123456789abcdef"
dir = "/run/cleave/a"
listen = "127.0.0.1:4001"
peer = { name = "datanode-1b", address = "127.0.0.1:4002" }
nvlog_capacity = "256M"
vault = "/run/cleave/a/vault"
catalog = "/run/cleave/a/catalog"
store_socket = "/run/cleave/store.sock"
control_socket = "/run/cleave/a.sock"
mtu = 8900
drives = [
    { id = 0, uuid = "00000000000000000000000000000001", path = "/run/cleave/drive-0" },
    { id = 1, uuid = "00000000000000000000000000000002", path = "/proc/17/fd/5" },
    { id = 2, uuid = "00000000000000000000000000000003", path = "/dev/nvme0n1" },
]

[tls]
ca = "/run/cleave/ca.pem"
certificate = "/run/cleave/a.pem"
key = "/run/cleave/a.key"
"#;

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    file
}

#[test]
fn good_files_are_read_and_written() {
    let host = HostConfig::load(file(HOST).path()).unwrap();
    assert_eq!((host.memory_budget, host.write_buffer, host.mtu), (512 << 20, 64 << 20, 1452));
    assert_eq!((host.map, host.map_budget()), (0, 128 << 20));
    assert_eq!((host.cores, &host.key_file, &host.vhost_group), (0, &None, &None));
    assert_eq!(HostConfig::load(file(&host.to_toml()).path()).unwrap(), host);
    let datanode = DatanodeConfig::load(file(DATANODE).path()).unwrap();
    assert_eq!((datanode.drives.len(), datanode.mtu), (3, 8900));
    assert_eq!(DatanodeConfig::load(file(&datanode.to_toml()).path()).unwrap(), datanode);
}

/// The error of a file in which `from` is replaced; one line that names the file.
fn error<T: std::fmt::Debug>(
    text: &str,
    (from, to): (&str, &str),
    load: impl Fn(&Path) -> Result<T, ConfigError>,
) -> String {
    assert!(text.contains(from), "{from}");
    let file = file(&text.replacen(from, to, 1));
    let error = load(file.path()).unwrap_err().to_string();
    assert!(!error.contains('\n') && error.contains(file.path().to_str().unwrap()), "{error}");
    error
}

#[test]
fn wrong_host_files_are_told_in_one_line() {
    let long = format!("control_socket = \"/{}\"", "x".repeat(107));
    for (from, to, expected) in [
        ("quota =", "qouta =", "unknown field `qouta`"),
        ("name = \"host-1\"", "", "missing field `name`"),
        ("id = 1", "id = -1", "line 3"),
        ("id = 1", "id =", "line 3"),
        ("name = \"host-1\"", "name = \"-x\"", "name: \"-x\" is not a name"),
        ("ABCDEF", "ABCDEG", "cluster:"),
        ("dir = \"/run", "dir = \"run", "dir: \"run/cleave/host\" is not an absolute path"),
        ("control_socket = \"/run/cleave/host.sock\"", long.as_str(), "108 bytes"),
        ("\"127.0.0.1:0\"", "\"localhost\"", "line 8"),
        ("\"512M\"", "\"512X\"", "\"512X\" is not a size"),
        ("\"512M\"", "0", "memory_budget: 0 bytes are below"),
        ("\"512M\"", "-5", "negative"),
        ("67108864", "\"1G\"", "write_buffer: 1073741824 is more than memory_budget"),
        ("quota =", "map = \"1G\"\nquota =", "map: 1073741824 is more than memory_budget"),
        ("[::1]:4002", "[::1]:0", "no address to connect to"),
        ("datanode-1b", "datanode-1a", "controller datanode-1a appears twice"),
        ("    { name = \"datanode-1b\", address = \"[::1]:4002\" },\n", "", "1 controllers, not 2"),
        ("ca = \"/run", "ca = \"run", "tls.ca:"),
        ("[tls]", "mtu = 1000\n[tls]", "mtu: 1000 is below 1200"),
        ("[tls]", "vhost_group = \"\"\n[tls]", "vhost_group:"),
        ("[tls]", "key_file = \"key\"\n[tls]", "key_file:"),
        ("[tls]", "[tls]\nextra = 1", "unknown field `extra`"),
    ] {
        let told = error(HOST, (from, to), HostConfig::load);
        assert!(told.contains(expected), "{told}");
    }
}

#[test]
fn wrong_datanode_files_are_told_in_one_line() {
    for (from, to, expected) in [
        ("controller = 0", "controller = 2", "controller: is 2"),
        ("nvlog_capacity = \"256M\"", "nvlog_capacity = \"1M\"", "nvlog_capacity:"),
        ("datanode-1b", "datanode-1a", "is this controller itself"),
        ("127.0.0.1:4001", "127.0.0.1:0", "listen: needs a port"),
        ("id = 1, uuid", "id = 0, uuid", "appears twice"),
        ("00000000000000000000000000000002", "00000000000000000000000000000003", "appears twice"),
        ("0000000000000002", "00000000000002", "drives, id 1"),
        ("/proc/17/fd/5", "/dev/nvme0n1", "appears twice"),
        ("path = \"/dev/nvme0n1\"", "device = \"/dev/nvme0n1\"", "unknown field `device`"),
        (
            "    { id = 2, uuid = \"00000000000000000000000000000003\", path = \"/dev/nvme0n1\" },\n",
            "",
            "2 of them, not 3 to 120",
        ),
    ] {
        let told = error(DATANODE, (from, to), DatanodeConfig::load);
        assert!(told.contains(expected), "{told}");
    }
    let missing = DatanodeConfig::load(Path::new("/no/such/file")).unwrap_err().to_string();
    assert!(missing.contains("/no/such/file"), "{missing}");
}

const ETCD: &str = r#"[etcd]
endpoints = ["https://10.0.0.1:2379", "https://[::1]:2379"]
ca = "/run/cleave/etcd.pem"
certificate = "/run/cleave/etcd-client.pem"
key = "/run/cleave/etcd-client.key"
user = "cleave"
password_file = "/run/cleave/etcd.password"

[tls]"#;

#[test]
fn a_store_in_etcd_is_configured_in_place_of_a_socket() {
    let socket = "store_socket = \"/run/cleave/store.sock\"\n";
    let own = HostConfig::load(file(HOST).path()).unwrap();
    assert_eq!(own.store(), StorePlace::Socket("/run/cleave/store.sock".into()));
    let text = HOST.replacen(socket, "", 1).replacen("[tls]", ETCD, 1);
    let host = HostConfig::load(file(&text).path()).unwrap();
    let StorePlace::Etcd(etcd) = host.store() else { panic!("it is etcd") };
    assert_eq!((etcd.endpoints.len(), etcd.prefix.as_str()), (2, "/cleave/"));
    assert_eq!(HostConfig::load(file(&host.to_toml()).path()).unwrap(), host);
    let both = HOST.replacen("[tls]", ETCD, 1);
    let told = error(&both, ("id = 1", "id = 1"), HostConfig::load);
    assert!(told.contains("etcd: store_socket is given too"), "{told}");
    let told = error(HOST, (socket, ""), HostConfig::load);
    assert!(told.contains("no store is named"), "{told}");
    for (from, to, expected) in [
        ("https://10", "http://10", "does not begin with https://"),
        (
            "[\"https://10.0.0.1:2379\", \"https://[::1]:2379\"]",
            "[]",
            "etcd.endpoints: there is none",
        ),
        ("user = \"cleave\"\n", "", "user and password_file"),
        ("key = \"/run/cleave/etcd-client.key\"\n", "", "certificate and key"),
        ("/run/cleave/etcd.password", "password", "etcd.password_file:"),
        ("user =", "prefix = \"cleave\"\nuser =", "etcd.prefix:"),
        ("user =", "usr =", "unknown field `usr`"),
    ] {
        let told = error(&text, (from, to), HostConfig::load);
        assert!(told.contains(expected), "{told}");
    }
    let text = DATANODE.replacen(socket, "", 1).replacen("[tls]", ETCD, 1);
    let datanode = DatanodeConfig::load(file(&text).path()).unwrap();
    assert_eq!(datanode.store(), host.store());
    assert_eq!(DatanodeConfig::load(file(&datanode.to_toml()).path()).unwrap(), datanode);
}
