//! Each way in which a drive can be another one, damaged or gone.

use super::*;
use cleave_runtime::time::Clock;
use cleave_runtime_real::reactor::ReactorConfig;
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;

const OWNER: Owner = Owner { controller: 0, cluster: ClusterId([7; 16]), datanode: DatanodeId(1) };
const SIZE: u64 = 32 << 20;
const UUID: [u8; 16] = [0xab; 16];

fn identity() -> DriveIdentity {
    DriveIdentity {
        cluster: OWNER.cluster,
        datanode: OWNER.datanode,
        drive: DriveId(3),
        uuid: UUID,
    }
}

struct Bench {
    folder: tempfile::TempDir,
    reactor: Reactor,
}

impl Bench {
    fn new() -> Bench {
        let config = ReactorConfig { drive_buffers: Vec::new(), ..ReactorConfig::default() };
        Bench { folder: tempfile::tempdir().unwrap(), reactor: Reactor::new(config).unwrap() }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("drive")
    }

    /// Formats the drive as somebody's.
    fn format(&self, identity: DriveIdentity) {
        let file = File::create(self.path()).unwrap();
        file.set_len(SIZE).unwrap();
        let mut superblock = Superblock::for_size(identity, SIZE).unwrap();
        for generation in 0..2 {
            superblock.generation = generation;
            file.write_all_at(&superblock.encode(), superblock.copy_offset()).unwrap();
        }
    }

    fn write(&self, offset: u64, bytes: &[u8]) {
        let file = OpenOptions::new().write(true).open(self.path()).unwrap();
        file.write_all_at(bytes, offset).unwrap();
    }

    fn open(&self) -> Result<Result<OpenDrive, String>, DriveFault> {
        let config = DriveConfig { id: 3, uuid: "AB".repeat(16), path: self.path() };
        let clock = Rc::clone(self.reactor.clock()) as Rc<dyn Clock>;
        let nvme = NvmeDrives::new(clock);
        let opened = open_all(&self.reactor, &nvme, OWNER, &[config])?;
        Ok(opened.into_iter().next().unwrap().open)
    }

    fn fault(&self) -> String {
        let fault = self.open().err().expect("it is refused").to_string();
        let path = self.path().display().to_string();
        assert!(fault.contains("drive 3") && fault.contains(&path), "{fault}");
        assert_eq!(fault.lines().count(), 1);
        fault
    }

    fn lost(&self) -> String {
        self.open().unwrap().err().expect("it is lost")
    }
}

#[test]
fn our_own_drive_is_opened() {
    let bench = Bench::new();
    bench.format(identity());
    let open = bench.open().unwrap().unwrap();
    assert_eq!((open.superblock.generation, open.drive.capacity()), (1, SIZE));
}

#[test]
fn other_drives_are_refused() {
    let bench = Bench::new();
    bench.format(DriveIdentity { cluster: ClusterId([8; 16]), ..identity() });
    assert!(bench.fault().contains(&"08".repeat(16)));
    bench.format(DriveIdentity { datanode: DatanodeId(2), ..identity() });
    assert!(bench.fault().contains("data node 2"));
    bench.format(DriveIdentity { drive: DriveId(4), ..identity() });
    assert!(bench.fault().contains("drive 4"));
    bench.format(DriveIdentity { uuid: [0xcd; 16], ..identity() });
    assert!(bench.fault().contains(&"cd".repeat(16)));
    fs::write(bench.path(), vec![0; SIZE as usize]).unwrap();
    assert!(bench.fault().contains("not a Cleave drive"));
}

#[test]
fn one_damaged_copy_is_repaired_whichever_it_is() {
    for index in 0..2 {
        let bench = Bench::new();
        bench.format(identity());
        bench.write(index * SUPERBLOCK as u64 + 100, &[1]);
        let repaired = bench.open().unwrap().unwrap().superblock;
        // The intact copy holds generation `1 - index`; the next one lives in the damaged place.
        assert_eq!(repaired.generation, 2 - index);
        let again = bench.open().unwrap().unwrap().superblock;
        assert_eq!(again, repaired, "nothing is left to repair");
        bench.write((1 - index) * SUPERBLOCK as u64 + 100, &[1]);
        bench.open().unwrap().unwrap();
    }
}

#[test]
fn two_damaged_copies_are_an_error() {
    let bench = Bench::new();
    bench.format(identity());
    bench.write(100, &[1]);
    bench.write(SUPERBLOCK as u64 + 100, &[1]);
    assert!(bench.fault().contains("both copies"));
}

#[test]
fn copies_of_two_drives_are_an_error() {
    let bench = Bench::new();
    bench.format(identity());
    let other = DriveIdentity { drive: DriveId(9), ..identity() };
    let other = Superblock { generation: 1, ..Superblock::for_size(other, SIZE).unwrap() };
    bench.write(SUPERBLOCK as u64, &other.encode());
    assert!(bench.fault().contains("different drives"));
}

#[test]
fn a_drive_that_is_gone_or_shrank_is_lost() {
    let bench = Bench::new();
    assert!(bench.lost().contains("no such file"));
    bench.format(identity());
    let truncate = |size| OpenOptions::new().write(true).open(bench.path()).unwrap().set_len(size);
    truncate(SIZE / 2).unwrap();
    assert!(bench.lost().contains("shrank"));
    truncate(0).unwrap();
    assert!(bench.lost().contains("shrank"));
}

#[test]
fn a_drive_that_another_process_holds_is_named() {
    let bench = Bench::new();
    bench.format(identity());
    let options = DriveOptions { lock_wait: std::time::Duration::ZERO, ..DriveOptions::default() };
    let _held = FileDrive::open(&bench.reactor, &bench.path(), &options).unwrap();
    let again = FileDrive::open(&bench.reactor, &bench.path(), &options).err().unwrap();
    let Trouble::Fatal(problem) = refused(again) else { panic!("it is not lost") };
    assert!(problem.to_string().contains("still holds it"));
}

#[test]
fn a_drive_on_a_file_system_that_turned_read_only_is_lost() {
    use rustix::io::Errno;
    let open = |errno: Errno| {
        let source = io::Error::from_raw_os_error(errno.raw_os_error());
        refused(Error::DriveOpen { path: PathBuf::from("/drive"), source })
    };
    assert!(matches!(open(Errno::ROFS), Trouble::Lost(_)));
    assert!(matches!(open(Errno::IO), Trouble::Lost(_)));
    // A person has to look.
    assert!(matches!(open(Errno::ACCESS), Trouble::Fatal(_)));
}

/// A drive one of whose copies is damaged, and of which a write fails.
struct Unwritable {
    copies: Vec<u8>,
    errno: rustix::io::Errno,
}

impl Medium for Unwritable {
    fn read(&self, offset: u64, page: &mut [u8]) -> io::Result<()> {
        let start = offset as usize;
        page.copy_from_slice(&self.copies[start..start + page.len()]);
        Ok(())
    }

    fn write(&self, _: u64, _: &[u8]) -> io::Result<()> {
        Err(io::Error::from_raw_os_error(self.errno.raw_os_error()))
    }
}

/// It is one drive's trouble, and not its controller's, unless the operator can mend it: then nothing is lost yet.
#[test]
fn a_drive_whose_damaged_copy_cannot_be_repaired_is_lost_by_itself() {
    use rustix::io::Errno;
    let uuid: String = UUID.iter().map(|byte| format!("{byte:02x}")).collect();
    let look = |errno| {
        let first = Superblock::for_size(identity(), SIZE).unwrap();
        let mut copies = vec![0; COPIES * SUPERBLOCK];
        let start = first.copy_offset() as usize;
        copies[start..start + SUPERBLOCK].copy_from_slice(&first.encode());
        let medium = Unwritable { copies, errno };
        superblock(&medium, Path::new("drive-3"), OWNER, DriveId(3), &uuid)
    };
    for errno in [Errno::ROFS, Errno::IO, Errno::NODEV, Errno::PERM] {
        let Err(Trouble::Lost(reason)) = look(errno) else { panic!("it is lost: {errno}") };
        assert!(reason.contains("could not be repaired"), "{reason}");
    }
    for errno in [Errno::NOSPC, Errno::DQUOT] {
        let fault = look(errno);
        assert!(matches!(fault, Err(Trouble::Fatal(DriveProblem::Repair(_)))), "{errno}");
    }
}
