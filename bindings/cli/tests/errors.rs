//! Errors as an operator sees them: one clear line, a non-zero exit, nothing changed. Those that need no engine.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

fn cleave(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cleave"))
        .args(arguments)
        .env_remove("CLEAVE_DIR")
        .output()
        .expect("the program starts")
}

/// The one line that a refused command says.
fn refused(arguments: &[&str]) -> String {
    let output = cleave(arguments);
    assert_eq!(output.status.code(), Some(1), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    let line = String::from_utf8(output.stderr).expect("messages are text");
    assert_eq!(line.trim_end().lines().count(), 1, "{arguments:?} said\n{line}");
    assert!(line.starts_with("cleave: "), "{line}");
    line
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

#[test]
fn the_command_line_is_checked() {
    for arguments in [
        &["dev", "--dir", "/nonexistent/x", "--nonsense"][..],
        &["dev", "--dir", "/nonexistent/x", "--vdisk", "a"],
        &["dev", "--dir", "/nonexistent/x", "--drives", "2"],
        &["nonsense"],
        &[],
    ] {
        let output = cleave(arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn commands_need_a_cluster_that_runs() {
    assert!(refused(&["status"]).contains("CLEAVE_DIR"));
    assert!(refused(&["dev"]).contains("CLEAVE_DIR"));
    let folder = tempfile::tempdir().unwrap();
    let dir = text(folder.path());
    for arguments in [
        &["--dir", dir, "status"][..],
        &["--dir", dir, "stats", "--json"],
        &["--dir", dir, "vdisk", "list"],
        &["--dir", dir, "vdisk", "create", "a", "1G"],
        &["--dir", dir, "vdisk", "attach", "a"],
        &["--dir", dir, "restart", "host-1"],
        &["--dir", dir, "start-empty", "--accept-data-loss"],
    ] {
        assert!(refused(arguments).contains("is the cluster running?"), "{arguments:?}");
    }
}

#[test]
fn losing_data_needs_consent() {
    let line = refused(&["--dir", "/nonexistent", "start-empty"]);
    assert!(line.contains("--accept-data-loss"), "{line}");
}

#[test]
fn a_bad_key_file_stops_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("cluster");
    let key = folder.path().join("key");
    let dev = || refused(&["dev", "--dir", text(&dir), "--encrypt", "--key-file", text(&key)]);
    assert!(dev().contains("does not exist"));
    fs::write(&key, "0".repeat(64)).unwrap();
    fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(dev().contains("chmod 600"));
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&key, "short").unwrap();
    assert!(dev().contains("a key is 32 bytes"));
    assert!(!dir.join("dev.toml").exists() && !dir.join("keys").exists());
}

#[test]
fn too_long_a_path_stops_a_start() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("d".repeat(100));
    assert!(refused(&["dev", "--dir", text(&dir)]).contains("use a shorter directory"));
    let dir = folder.path().join("d".repeat(30));
    let vdisk = format!("{}:1G", "v".repeat(60));
    let line = refused(&["dev", "--dir", text(&dir), "--vdisk", &vdisk]);
    assert!(line.contains("use a shorter directory"), "{line}");
    assert!(!dir.join("dev.toml").exists());
}

#[test]
fn a_directory_in_use_is_refused_with_its_user() {
    let folder = tempfile::tempdir().unwrap();
    let lock = fs::File::create(folder.path().join("lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    fs::write(folder.path().join("lock"), "4711\n").unwrap();
    let line = refused(&["dev", "--dir", text(folder.path())]);
    assert!(line.contains("in use by process 4711"), "{line}");
}

#[test]
fn a_directory_of_something_else_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let photo = folder.path().join("log/holiday.jpg");
    fs::create_dir(folder.path().join("log")).unwrap();
    fs::write(&photo, "x").unwrap();
    let line = refused(&["dev", "--dir", text(folder.path())]);
    assert!(line.contains("no cluster"), "{line}");
    assert!(photo.exists());
    let file = folder.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(refused(&["dev", "--dir", text(&file)]).contains("cannot create"));
}
