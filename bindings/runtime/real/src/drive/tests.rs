use super::*;
use crate::error::Error;
use crate::reactor::ReactorConfig;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use tempfile::TempDir;

const PAGE_U64: u64 = PAGE as u64;

struct Bench {
    reactor: Reactor,
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench::with(ReactorConfig {
            spin: Duration::ZERO,
            drive_buffers: vec![(16 << 10, 8), (128 << 10, 2)],
            entries: 8,
            ..ReactorConfig::default()
        })
    }

    fn with(config: ReactorConfig) -> Bench {
        Bench { reactor: Reactor::new(config).unwrap(), folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, name: &str, pages: u64) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::File::create(&path).unwrap().set_len(pages * PAGE_U64).unwrap();
        path
    }

    fn open(&self, path: &Path) -> FileDrive {
        FileDrive::open(&self.reactor, path, &options(Duration::ZERO)).unwrap()
    }

    /// Submits all and gives the completions in the order of tokens.
    fn run(&self, drive: &FileDrive, requests: Vec<DriveRequest>) -> Vec<DriveCompletion> {
        let count = requests.len();
        for request in requests {
            drive.submit(request);
        }
        self.collect(drive, count)
    }

    fn collect(&self, drive: &FileDrive, count: usize) -> Vec<DriveCompletion> {
        let done = RefCell::new(Vec::new());
        let turn = || {
            let before = done.borrow().len();
            drive.poll(&mut done.borrow_mut());
            done.borrow().len() > before
        };
        self.reactor.run(turn, || done.borrow().len() >= count);
        let mut done = done.into_inner();
        assert_eq!((done.len(), drive.in_flight()), (count, 0));
        done.sort_by_key(|completion| completion.token);
        done
    }

    fn one(
        &self,
        drive: &FileDrive,
        operation: DriveOperation,
        buffer: Option<Buffer>,
    ) -> (Result<(), DriveError>, Option<Buffer>) {
        let request = DriveRequest { token: 7, operation, buffer };
        let completion = self.run(drive, vec![request]).pop().unwrap();
        assert_eq!(completion.token, 7);
        (completion.result, completion.buffer)
    }

    fn read(&self, drive: &FileDrive, offset: u64, length: usize) -> Result<Vec<u8>, DriveError> {
        let buffer = drive.buffer(length);
        let (result, buffer) = self.one(drive, DriveOperation::Read { offset }, Some(buffer));
        result.map(|()| buffer.unwrap().to_vec())
    }

    fn write(&self, drive: &FileDrive, offset: u64, data: &[u8]) -> Result<(), DriveError> {
        let buffer = filled(drive, data);
        self.one(drive, DriveOperation::Write { offset }, Some(buffer)).0
    }
}

fn options(lock_wait: Duration) -> DriveOptions {
    DriveOptions { lock: true, port: None, lock_wait }
}

fn filled(drive: &FileDrive, data: &[u8]) -> Buffer {
    let mut buffer = drive.buffer(data.len());
    buffer.copy_from_slice(data);
    buffer
}

fn pattern(seed: usize, length: usize) -> Vec<u8> {
    (0..length).map(|at| (at / 64 * 13 + seed * 101 + at % 251) as u8).collect()
}

#[test]
fn what_was_written_is_read_and_on_the_file() {
    let bench = Bench::new();
    let path = bench.file("drive", 64);
    let drive = bench.open(&path);
    assert_eq!(drive.capacity(), 64 * PAGE_U64);
    // Registered, registered of the other size, and ordinary memory.
    for (page, length) in [(0u64, PAGE), (3, 100 << 10), (28, 140 << 10), (63, PAGE)] {
        let data = pattern(page as usize, length);
        bench.write(&drive, page * PAGE_U64, &data).unwrap();
        assert!(bench.read(&drive, page * PAGE_U64, length).unwrap() == data);
    }
    assert_eq!(bench.one(&drive, DriveOperation::Flush, None).0, Ok(()));
    let mut bytes = vec![0; 100 << 10];
    std::fs::File::open(&path).unwrap().read_exact_at(&mut bytes, 3 * PAGE_U64).unwrap();
    assert!(bytes == pattern(3, 100 << 10));
    assert_eq!(drive.probe(), Ok(()));
}

#[test]
fn far_more_requests_than_the_ring_holds_all_complete() {
    let bench = Bench::new();
    let drive = bench.open(&bench.file("drive", 600));
    let write = |page: u64| DriveRequest {
        token: page,
        operation: DriveOperation::Write { offset: page * PAGE_U64 },
        buffer: Some(filled(&drive, &pattern(page as usize, PAGE))),
    };
    assert!(bench.run(&drive, (0..600).map(write).collect()).iter().all(|c| c.result.is_ok()));
    let read = |page: u64| DriveRequest {
        token: page,
        operation: DriveOperation::Read { offset: page * PAGE_U64 },
        buffer: Some(drive.buffer(PAGE)),
    };
    for completion in bench.run(&drive, (0..600).map(read).collect()) {
        assert_eq!(completion.result, Ok(()));
        assert!(completion.buffer.unwrap()[..] == pattern(completion.token as usize, PAGE)[..]);
    }
}

#[test]
fn discarded_space_is_given_back() {
    use std::os::unix::fs::MetadataExt;
    let bench = Bench::new();
    let path = bench.file("drive", 256);
    let drive = bench.open(&path);
    bench.write(&drive, 0, &pattern(1, 256 * PAGE)).unwrap();
    assert_eq!(bench.one(&drive, DriveOperation::Flush, None).0, Ok(()));
    let before = std::fs::metadata(&path).unwrap().blocks();
    let discard = DriveOperation::Discard { offset: 0, length: 255 * PAGE_U64 };
    assert_eq!(bench.one(&drive, discard, None).0, Ok(()));
    assert!(std::fs::metadata(&path).unwrap().blocks() < before);
    assert_eq!(drive.probe(), Ok(()));
    assert!(
        bench.read(&drive, 255 * PAGE_U64, PAGE).unwrap() == pattern(1, 256 * PAGE)[255 * PAGE..]
    );
}

#[test]
fn requests_outside_the_drive_or_its_grid_fail_and_empty_ones_succeed() {
    let bench = Bench::new();
    let drive = bench.open(&bench.file("drive", 4));
    let past = [4 * PAGE_U64, u64::MAX / PAGE_U64 * PAGE_U64, 1];
    for offset in past {
        assert!(matches!(bench.read(&drive, offset, PAGE), Err(DriveError::Io(_))));
        assert!(matches!(bench.write(&drive, offset, &[0; PAGE]), Err(DriveError::Io(_))));
        let discard = DriveOperation::Discard { offset, length: PAGE_U64 };
        assert!(matches!(bench.one(&drive, discard, None).0, Err(DriveError::Io(_))));
    }
    let mut odd = drive.buffer(PAGE);
    odd.set_len(100);
    let write = DriveOperation::Write { offset: 0 };
    assert!(matches!(bench.one(&drive, write, Some(odd)).0, Err(DriveError::Io(_))));
    assert_eq!(bench.read(&drive, 4 * PAGE_U64, 0), Ok(Vec::new()));
    let discard = DriveOperation::Discard { offset: 0, length: 0 };
    assert_eq!(bench.one(&drive, discard, None).0, Ok(()));
}

#[test]
fn a_lost_drive_is_noticed() {
    let bench = Bench::new();
    let reason = |drive: &FileDrive| match drive.probe() {
        Err(DriveError::Lost(reason)) => reason,
        other => panic!("{other:?}"),
    };

    let path = bench.file("unlinked", 4);
    let drive = bench.open(&path);
    std::fs::remove_file(&path).unwrap();
    assert!(reason(&drive).contains("unlinked"));

    let path = bench.file("moved", 4);
    let drive = bench.open(&path);
    std::fs::rename(&path, bench.folder.path().join("elsewhere")).unwrap();
    assert!(reason(&drive).contains("name is gone"));
    bench.file("moved", 4);
    assert!(reason(&drive).contains("replaced"));

    let path = bench.file("truncated", 4);
    let drive = bench.open(&path);
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(PAGE_U64).unwrap();
    assert!(reason(&drive).contains("shrank"));
    let read = bench.read(&drive, 2 * PAGE_U64, PAGE);
    assert!(matches!(&read, Err(DriveError::Lost(_))), "{read:?}");
    // The part that is still there must not look like the whole.
    let read = bench.read(&drive, 0, 2 * PAGE);
    assert!(matches!(&read, Err(DriveError::Lost(_))), "{read:?}");
}

#[test]
fn a_file_that_was_emptied_between_two_looks_is_lost() {
    let bench = Bench::new();
    let path = bench.file("drive", 64);
    let drive = bench.open(&path);
    assert_eq!(drive.probe(), Ok(()));
    bench.write(&drive, 0, &pattern(1, 64 * PAGE)).unwrap();
    assert_eq!(bench.one(&drive, DriveOperation::Flush, None).0, Ok(()));
    assert_eq!(drive.probe(), Ok(()));
    // What is given back here is no loss, whenever it is seen.
    let half = DriveOperation::Discard { offset: 0, length: 40 * PAGE_U64 };
    assert_eq!(bench.one(&drive, half, None).0, Ok(()));
    for _ in 0..3 {
        assert_eq!(drive.probe(), Ok(()));
    }
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(0).unwrap();
    file.set_len(64 * PAGE_U64).unwrap();
    for _ in 0..3 {
        let outcome = drive.probe();
        assert!(matches!(&outcome, Err(DriveError::Lost(reason)) if reason.contains("grown")));
    }
}

/// Needs root: `losetup -f --show FILE`, and the device's path in `CLEAVE_TEST_BLOCK_DEVICE`. Its
/// content is lost.
#[test]
#[ignore = "needs a block device"]
fn a_block_device_forgets_what_is_discarded() {
    let path = std::env::var_os("CLEAVE_TEST_BLOCK_DEVICE").expect("a device to destroy");
    let bench = Bench::new();
    let drive = bench.open(Path::new(&path));
    bench.write(&drive, 0, &pattern(1, 64 * PAGE)).unwrap();
    let discard = DriveOperation::Discard { offset: PAGE_U64, length: 62 * PAGE_U64 };
    assert_eq!(bench.one(&drive, discard, None).0, Ok(()));
    // A loop device punches a hole in its file; others may give anything.
    assert!(bench.read(&drive, PAGE_U64, 62 * PAGE).unwrap().iter().all(|byte| *byte == 0));
    assert!(bench.read(&drive, 0, PAGE).unwrap() == pattern(1, PAGE));
    assert_eq!(drive.probe(), Ok(()));
}

#[test]
fn a_device_without_discards_is_asked_to_zero_and_then_left_alone() {
    let bench = Bench::new();
    let drive = bench.open(&bench.file("drive", 4));
    let io = |kind| Io {
        file: Rc::clone(&drive.file),
        kind,
        buffer: None,
        done: 0,
        retries: 0,
        token: 0,
        owner: Rc::clone(&drive.state) as Rc<dyn IoOwner>,
    };
    for errno in [libc::EOPNOTSUPP, libc::EINVAL] {
        let mut first = io(IoKind::Discard { offset: 4096, length: 8192 });
        assert!(matches!(next(&mut first, -errno), Next::Again));
        assert!(matches!(first.kind, IoKind::Punch { offset: 4096, length: 8192 }));
        assert!(matches!(next(&mut first, -libc::EOPNOTSUPP), Next::Done(Ok(()))));
    }
    let mut gone = io(IoKind::Discard { offset: 0, length: 4096 });
    assert!(matches!(next(&mut gone, -libc::ENODEV), Next::Done(Err(DriveError::Lost(_)))));
}

#[test]
fn a_memory_file_is_a_drive_through_its_descriptor() {
    let bench = Bench::new();
    let memory = rustix::fs::memfd_create("drive", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&memory, 16 * PAGE_U64).unwrap();
    let drive = bench.open(&PathBuf::from(format!("/proc/self/fd/{}", memory.as_raw_fd())));
    let data = pattern(5, 3 * PAGE);
    bench.write(&drive, PAGE_U64, &data).unwrap();
    assert_eq!(bench.one(&drive, DriveOperation::Flush, None).0, Ok(()));
    let discard = DriveOperation::Discard { offset: 0, length: PAGE_U64 };
    assert_eq!(bench.one(&drive, discard, None).0, Ok(()));
    drop(memory);
    assert!(bench.read(&drive, PAGE_U64, 3 * PAGE).unwrap() == data);
    assert_eq!(drive.probe(), Ok(()));
}

#[test]
fn one_holder_a_port() {
    let bench = Bench::new();
    let path = bench.file("drive", 4);
    let of = |port| DriveOptions { port: Some(port), ..options(Duration::from_millis(30)) };
    let first = FileDrive::open(&bench.reactor, &path, &of(0)).unwrap();
    let other = FileDrive::open(&bench.reactor, &path, &of(1)).unwrap();
    for port in [0, 1] {
        let refused = FileDrive::open(&bench.reactor, &path, &of(port));
        assert!(matches!(refused, Err(Error::DriveHeld { .. })));
    }
    // Both reach the same bytes.
    bench.write(&first, 0, &pattern(3, PAGE)).unwrap();
    assert!(bench.read(&other, 0, PAGE).unwrap() == pattern(3, PAGE));
    // As with a lock of its own, a port is free when the last request is over.
    for token in 0..64 {
        let buffer = Some(filled(&first, &pattern(9, PAGE)));
        first.submit(DriveRequest {
            token,
            operation: DriveOperation::Write { offset: 0 },
            buffer,
        });
    }
    let state = Rc::clone(&first.state);
    drop(first);
    let refused = FileDrive::open(&bench.reactor, &path, &of(0));
    assert!(matches!(refused, Err(Error::DriveHeld { .. })));
    bench.reactor.run(|| false, || state.in_flight.get() == 0);
    FileDrive::open(&bench.reactor, &path, &of(0)).unwrap();
}

#[test]
fn one_holder_at_a_time() {
    let bench = Bench::new();
    let path = bench.file("drive", 4);
    let first = bench.open(&path);
    let refused = FileDrive::open(&bench.reactor, &path, &options(Duration::from_millis(30)));
    assert!(matches!(refused, Err(Error::DriveHeld { .. })));
    let unlocked = DriveOptions { lock: false, ..options(Duration::ZERO) };
    assert!(FileDrive::open(&bench.reactor, &path, &unlocked).is_ok());

    // The successor gets it when the first holder's last request is over, not before: its file
    // belongs to that request too.
    for token in 0..64 {
        let buffer = Some(filled(&first, &pattern(9, PAGE)));
        let operation = DriveOperation::Write { offset: 0 };
        first.submit(DriveRequest { token, operation, buffer });
    }
    let state = Rc::clone(&first.state);
    drop(first);
    assert!(matches!(
        FileDrive::open(&bench.reactor, &path, &options(Duration::ZERO)),
        Err(Error::DriveHeld { .. })
    ));
    bench.reactor.run(|| false, || state.in_flight.get() == 0);
    let next = bench.open(&path);
    assert!(bench.read(&next, 0, PAGE).unwrap() == pattern(9, PAGE));
}

#[test]
fn everything_may_be_dropped_while_requests_are_in_flight() {
    for turns in [0, 1, 2] {
        let bench = Bench::new();
        let path = bench.file("drive", 64);
        let drive = bench.open(&path);
        for token in 0..64 {
            let operation = DriveOperation::Write { offset: token * PAGE_U64 };
            let buffer = Some(filled(&drive, &pattern(token as usize, PAGE)));
            drive.submit(DriveRequest { token, operation, buffer });
        }
        let turned = Cell::new(0);
        bench.reactor.run(|| false, || turned.replace(turned.get() + 1) >= turns);
        drop(drive);
        drop(bench);
    }
}

#[test]
fn what_is_no_drive_is_refused_with_a_reason() {
    let bench = Bench::new();
    let open = |path: &Path| FileDrive::open(&bench.reactor, path, &DriveOptions::default());
    let missing = bench.folder.path().join("missing");
    assert!(matches!(open(&missing), Err(Error::DriveOpen { .. })));
    assert!(matches!(open(bench.folder.path()), Err(Error::DriveUnusable { .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(Error::DriveUnusable { .. })));
    let small = bench.folder.path().join("small");
    std::fs::write(&small, b"tiny").unwrap();
    assert!(matches!(open(&small), Err(Error::DriveUnusable { .. })));
}

#[test]
fn after_a_failed_flush_all_later_ones_fail() {
    let bench = Bench::new();
    let drive = bench.open(&bench.file("drive", 4));
    let io = Io {
        file: Rc::clone(&drive.file),
        kind: IoKind::Sync,
        buffer: None,
        done: 0,
        retries: 0,
        token: 1,
        owner: Rc::clone(&drive.state) as Rc<dyn IoOwner>,
    };
    drive.state.in_flight.set(1);
    drive.state.complete(io, -libc::EIO, &bench.ring_of());
    let (first, _) = (bench.collect(&drive, 1).pop().unwrap().result, ());
    assert!(matches!(first, Err(DriveError::Io(_))));
    assert_eq!(bench.one(&drive, DriveOperation::Flush, None).0, first);
}

impl Bench {
    fn ring_of(&self) -> Rc<Ring> {
        Rc::clone(self.reactor.ring())
    }

    /// A request of one buffer of `pages` pages, of which `done` bytes are done.
    fn half_done(&self, drive: &FileDrive, pages: usize, done: usize) -> Io {
        Io {
            file: Rc::clone(&drive.file),
            kind: IoKind::Read { offset: 0 },
            buffer: Some(Buffer::new(pages * PAGE)),
            done,
            retries: 0,
            token: 1,
            owner: Rc::clone(&drive.state) as Rc<dyn IoOwner>,
        }
    }
}

#[test]
fn short_transfers_are_continued_on_the_grid_and_end() {
    let bench = Bench::new();
    let drive = bench.open(&bench.file("drive", 4));
    let mut io = bench.half_done(&drive, 3, 0);
    assert!(matches!(next(&mut io, 5000), Next::Again));
    assert_eq!(io.done, PAGE);
    assert!(matches!(next(&mut io, 2 * PAGE as i32), Next::Done(Ok(()))));

    let mut io = bench.half_done(&drive, 3, PAGE);
    assert!(matches!(next(&mut io, 0), Next::Done(Err(DriveError::Lost(_)))));

    // A device that never does a page, or always wants another try, does not go on for ever.
    for result in [512, -libc::EAGAIN] {
        let mut io = bench.half_done(&drive, 1, 0);
        let tries = (0..100).take_while(|_| matches!(next(&mut io, result), Next::Again)).count();
        assert_eq!(tries, usize::from(RETRIES_MAX), "{result}");
    }
    let mut io = bench.half_done(&drive, 1, 0);
    assert!(matches!(next(&mut io, -libc::ENOSPC), Next::Done(Err(DriveError::NoSpace))));
    assert!(matches!(next(&mut io, -libc::ENODEV), Next::Done(Err(DriveError::Lost(_)))));
    assert!(matches!(next(&mut io, -libc::EIO), Next::Done(Err(DriveError::Io(_)))));
}
