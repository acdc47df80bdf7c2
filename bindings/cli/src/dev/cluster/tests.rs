use super::*;
use std::os::unix::fs::PermissionsExt;

fn small() -> Asked {
    Asked {
        drives: Some(3),
        drive_size: Some(32 << 20),
        log_size: Some(16 << 20),
        ..Asked::default()
    }
}

fn open(path: &Path, asked: &Asked) -> Result<Cluster> {
    Cluster::open(Directory::create(path).unwrap(), asked)
}

fn refused(path: &Path, asked: &Asked) -> String {
    let line = open(path, asked).err().expect("it is refused").to_string();
    assert!(!line.contains('\n'), "{line}");
    line
}

#[test]
fn a_cluster_is_created_and_opened_again() {
    let folder = tempfile::tempdir().unwrap();
    let created = open(folder.path(), &small()).unwrap();
    created.keep_vdisk("data", 1 << 20).unwrap();
    let (record, drives) = (created.record.clone(), created.drives.clone());
    assert_eq!(drives.len(), 3);
    drop(created);
    let opened = open(folder.path(), &Asked::default()).unwrap();
    assert_eq!((&opened.record, &opened.drives), (&record, &drives));
    assert!(opened.missing.is_empty());
    opened.keep_vdisk("data", 2 << 20).unwrap();
    assert_eq!(opened.namespace().find("data").unwrap().unwrap().record.size, 1 << 20);
}

#[test]
fn secrets_are_private() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked { encrypted: true, ..small() };
    open(folder.path(), &asked).unwrap();
    let keys = folder.path().join("keys");
    let mut seen = 0;
    for entry in fs::read_dir(&keys).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0);
        seen += 1;
    }
    // Every engine that there may be, and the authority, have two each; the data key.
    assert_eq!(seen, 2 * (ENGINES.len() + 1) + 1);
    assert_eq!(fs::metadata(keys).unwrap().permissions().mode() & 0o077, 0);
}

#[test]
fn a_missing_open_or_wrong_key_is_refused_and_nothing_is_lost() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked { encrypted: true, ..small() };
    drop(open(folder.path(), &asked).unwrap());
    let key = folder.path().join("keys/data.key");
    let text = fs::read_to_string(&key).unwrap();

    fs::set_permissions(&key, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(refused(folder.path(), &asked).contains("chmod 600"));
    fs::set_permissions(&key, PermissionsExt::from_mode(0o600)).unwrap();
    fs::write(&key, "0".repeat(64)).unwrap();
    assert!(refused(folder.path(), &asked).contains("is not the key of"));
    fs::remove_file(&key).unwrap();
    assert!(refused(folder.path(), &asked).contains("does not exist"));

    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("key");
    write_private(&moved, text.as_bytes()).unwrap();
    let asked = Asked { key_file: Some(moved), ..Asked::default() };
    assert!(open(folder.path(), &asked).unwrap().record.encrypted);
}

#[test]
fn a_bad_key_file_creates_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked { key_file: Some("/nonexistent/key".into()), encrypted: true, ..small() };
    assert!(refused(folder.path(), &asked).contains("/nonexistent/key"));
    assert!(!folder.path().join("creating").exists());
    assert!(!folder.path().join("keys").exists());
}

#[test]
fn drives_are_checked_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path(), &small()).unwrap());
    let other = tempfile::tempdir().unwrap();
    drop(open(other.path(), &small()).unwrap());
    let (own, foreign) =
        (folder.path().join("drives/drive-001.img"), other.path().join("drives/drive-001.img"));
    let kept = folder.path().join("kept");
    fs::rename(&own, &kept).unwrap();
    assert_eq!(open(folder.path(), &small()).unwrap().missing, [1]);
    fs::copy(&foreign, &own).unwrap();
    assert!(refused(folder.path(), &small()).contains("another cluster"));
    fs::write(&own, vec![0xff; 1 << 20]).unwrap();
    assert!(refused(folder.path(), &small()).contains("not a Cleave drive"));
    fs::rename(&kept, &own).unwrap();
    assert!(open(folder.path(), &small()).unwrap().missing.is_empty());
}

#[test]
fn a_creation_that_was_interrupted_begins_anew_and_other_folders_are_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    fs::create_dir(folder.path().join("drives")).unwrap();
    fs::write(folder.path().join("drives/holiday.jpg"), "x").unwrap();
    assert!(refused(folder.path(), &small()).contains("holds drives but no cluster"));
    assert!(folder.path().join("drives/holiday.jpg").exists());
    // With the mark they are our own.
    fs::write(folder.path().join("creating"), "").unwrap();
    drop(open(folder.path(), &small()).unwrap());
    assert!(!folder.path().join("creating").exists());
}

#[test]
fn a_full_disk_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked { log_size: Some(1 << 60), ..small() };
    assert!(refused(folder.path(), &asked).contains("free some space"));
    assert!(!folder.path().join("creating").exists());
}

#[test]
fn drives_in_memory_begin_anew() {
    let folder = tempfile::tempdir().unwrap();
    let asked = Asked { memory_drives: true, ..small() };
    let first = open(folder.path(), &asked).unwrap();
    first.keep_vdisk("data", 1 << 20).unwrap();
    let uuid = first.record.uuid.clone();
    drop(first);
    assert!(refused(folder.path(), &small()).contains("--memory-drives"));
    let second = open(folder.path(), &asked).unwrap();
    assert_ne!(second.record.uuid, uuid);
    assert_eq!(second.namespace().list().unwrap(), []);
}
