//! Files that an engine reads when it starts: configuration, certificates, keys.
//!
//! Every bit of them is flipped, and they are cut at every length. What is loaded all the same says what it said
//! before, or is another configuration that could have been written; an error is one line that names the file. No
//! certificate or key is taken for another: what does not belong together is refused.

use crate::tally::{Extent, Tally};
use cleave_control::config::{DatanodeConfig, HostConfig};
use cleave_control::key_file::load_key;
use cleave_runtime_real::identity::{ClusterCa, Identity};
use std::fmt::Display;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use tempfile::TempDir;

/// Bits that are flipped of a file when they are sampled.
const FEW: u64 = 200;
/// The engine's name in its certificate.
const NAME: &str = "host-1";

const TLS: &str = r#"
[tls]
ca = "/c/ca.pem"
certificate = "/c/own.pem"
key = "/c/own.key"
"#;

const HOST: &str = r#"name = "host-1"
id = 1
cluster = "0123456789abcdef0123456789abcdef"
dir = "/c/host"
store_socket = "/c/store.sock"
control_socket = "/c/host.sock"
listen = "127.0.0.1:0"
memory_budget = "512M"
write_buffer = "64M"
quota = "64M"
vhost_dir = "/c/vhost"
key_file = "/c/key"
lock_dir = "/c/lock"
"#;

const DATANODES: &str = r#"
[[datanodes]]
id = 1
controllers = [
    { name = "datanode-1-a", address = "127.0.0.1:4001" },
    { name = "datanode-1-b", address = "[::1]:4002" },
]
"#;

const DATANODE: &str = r#"name = "datanode-1-a"
controller = 0
datanode = 1
cluster = "0123456789abcdef0123456789abcdef"
dir = "/c/a"
listen = "127.0.0.1:4001"
peer = { name = "datanode-1-b", address = "127.0.0.1:4002" }
nvlog_capacity = "256M"
vault = "/c/a/vault"
catalog = "/c/a/catalog"
store_socket = "/c/store.sock"
control_socket = "/c/a.sock"
drives = [
    { id = 0, uuid = "00000000000000000000000000000001", path = "/c/drive-0" },
    { id = 1, uuid = "00000000000000000000000000000002", path = "/c/drive-1" },
    { id = 2, uuid = "00000000000000000000000000000003", path = "/c/drive-2" },
]
"#;

/// Plays them.
pub fn run(extent: Extent, only: &str, tally: &mut Tally) {
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let host = [HOST, TLS, DATANODES].concat();
    configuration(&folder, "configuration of a host", &host, extent, only, tally, |path| {
        HostConfig::load(path).map(|config| config.to_toml())
    });
    let datanode = [DATANODE, TLS].concat();
    configuration(
        &folder,
        "configuration of a controller",
        &datanode,
        extent,
        only,
        tally,
        |path| DatanodeConfig::load(path).map(|config| config.to_toml()),
    );
    certificates(&folder, extent, only, tally);
    keys(&folder, extent, only, tally);
}

/// Damages a file's bytes in every way; `look` says whether the damage was refused.
fn play(
    subject: &str,
    good: &[u8],
    extent: Extent,
    tally: &mut Tally,
    look: impl Fn(&[u8]) -> bool,
) {
    let mut case = |what: &'static str, at: usize, bad: &[u8]| {
        let refused = tally.play(subject, &format!("{what} at {at}"), || look(bad));
        tally.count(subject, what, 1);
        tally.count(subject, "refused", u64::from(refused == Some(true)));
    };
    for bit in extent.places(good.len() as u64 * 8, FEW) {
        let at = (bit / 8) as usize;
        let mut bad = good.to_vec();
        bad[at] ^= 1 << (bit % 8);
        case("flipped bits", at, &bad);
    }
    for length in extent.places(good.len() as u64, FEW / 8) {
        case("truncations", length as usize, &good[..length as usize]);
    }
}

fn write(path: &Path, bytes: &[u8]) {
    fs::write(path, bytes).expect("a temporary file can be written");
    fs::set_permissions(path, Permissions::from_mode(0o600)).expect("the file is ours");
}

fn one_line(error: &dyn Display) {
    let text = error.to_string();
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}

/// `load` gives what was understood, written anew.
fn configuration<E: Display>(
    folder: &TempDir,
    name: &str,
    good: &str,
    extent: Extent,
    only: &str,
    tally: &mut Tally,
    load: impl Fn(&Path) -> Result<String, E>,
) {
    let subject = format!("rot: {name}");
    if !subject.contains(only) {
        return;
    }
    let path = folder.path().join("engine.toml");
    tally.play(&subject, "as it was written", || {
        write(&path, good.as_bytes());
        load(&path).unwrap_or_else(|error| panic!("{error}"));
    });
    play(&subject, good.as_bytes(), extent, tally, |bad| {
        write(&path, bad);
        match load(&path) {
            Ok(other) => {
                // Taken as it stands: it says the same again when it is written, whatever it says.
                write(&path, other.as_bytes());
                assert!(load(&path).is_ok_and(|again| again == other));
                false
            }
            Err(error) => {
                one_line(&error);
                let text = error.to_string();
                assert!(text.contains(&*path.to_string_lossy()), "it names no file: {text}");
                true
            }
        }
    });
}

/// An engine's certificate, its key, and the authority's certificate, one damaged at a time.
fn certificates(folder: &TempDir, extent: Extent, only: &str, tally: &mut Tally) {
    let authority = ClusterCa::generate().expect("an authority can be made");
    let good = authority.issue(NAME).expect("it issues certificates");
    let paths = ["certificate", "key", "authority"].map(|name| folder.path().join(name));
    let files = [&good.certificate_pem, &good.key_pem, &good.authority_pem];
    for (index, (path, file)) in paths.iter().zip(files).enumerate() {
        let what = ["certificate", "key of a certificate", "authority's certificate"][index];
        let subject = format!("rot: {what}");
        if !subject.contains(only) {
            continue;
        }
        paths.iter().zip(files).for_each(|(path, file)| write(path, file.as_bytes()));
        let load = || Identity::load(&paths[0], &paths[1], &paths[2]);
        tally.play(&subject, "as it was written", || {
            assert_eq!(load().and_then(|found| found.name()).ok().as_deref(), Some(NAME));
        });
        play(&subject, file.as_bytes(), extent, tally, |bad| {
            write(path, bad);
            match load() {
                // Only where the text around it is another.
                Ok(found) => {
                    assert_eq!(found.name().ok().as_deref(), Some(NAME), "another engine's name");
                    false
                }
                Err(error) => {
                    one_line(&error);
                    true
                }
            }
        });
    }
    // Whole files of another cluster, and of another engine.
    let (other, second) = (ClusterCa::generate(), authority.issue("host-2"));
    let other = other.and_then(|other| other.issue(NAME)).expect("another authority can be made");
    let second = second.expect("it issues certificates");
    let subject = "rot: certificates that do not belong together";
    if !subject.contains(only) {
        return;
    }
    for (name, files) in [
        ("of another cluster", [&other.certificate_pem, &other.key_pem, &good.authority_pem]),
        ("the authority of another", [&good.certificate_pem, &good.key_pem, &other.authority_pem]),
        ("the key of another", [&good.certificate_pem, &second.key_pem, &good.authority_pem]),
        ("the name of another", [&second.certificate_pem, &good.key_pem, &good.authority_pem]),
    ] {
        tally.play(subject, name, || {
            paths.iter().zip(files).for_each(|(path, file)| write(path, file.as_bytes()));
            let error = Identity::load(&paths[0], &paths[1], &paths[2]).expect_err("it is refused");
            one_line(&error);
        });
    }
}

/// A key file has nothing that says whether it is whole: a key that is another one is found by the cluster's check value.
fn keys(folder: &TempDir, extent: Extent, only: &str, tally: &mut Tally) {
    let path = folder.path().join("disks.key");
    let bytes: Vec<u8> = (0..32).map(|byte| byte * 7 + 1).collect();
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    for (name, good) in [("key file", bytes.clone()), ("key file in digits", hex.into_bytes())] {
        let subject = format!("rot: {name}");
        if !subject.contains(only) {
            continue;
        }
        play(&subject, &good, extent, tally, |bad| {
            write(&path, bad);
            match load_key(&path) {
                Ok(key) => {
                    let same = key.bytes()[..] == bytes[..];
                    assert!(!same || bad.eq_ignore_ascii_case(&good), "damage was passed over");
                    false
                }
                Err(error) => {
                    one_line(&error);
                    true
                }
            }
        });
    }
}
