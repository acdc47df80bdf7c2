use super::setup::{Mode, build_mode};
use super::*;
use std::os::unix::fs::FileExt;

#[test]
fn a_ring_of_this_kernel_works_and_pools_are_registered_or_plain() {
    let ring = Ring::new(8).unwrap();
    let pools = ring.register_pools(&[(4096, 4), (1 << 16, 2)]);
    assert_eq!(pools.len(), 2);
    assert_eq!((pools[0].capacity(), pools[1].capacity()), (4096, 1 << 16));
    let registered = ring.fixed.borrow().len();
    assert!(registered == 6 || registered == 0);
    for (pool, count) in [(&pools[0], 4), (&pools[1], 2)] {
        let buffers: Vec<_> = (0..count).map(|_| pool.take(1)).collect();
        assert!(buffers.iter().all(|buffer| buffer.registered().is_some() == (registered > 0)));
    }
}

#[test]
fn a_buffer_of_another_ring_is_not_used_as_fixed() {
    let (mine, other) = (Ring::new(8).unwrap(), Ring::new(8).unwrap());
    let pools = mine.register_pools(&[(4096, 2)]);
    let others = other.register_pools(&[(4096, 2)]);
    let file = mine.adopt(tempfile::tempfile().unwrap().into());
    struct Nobody;
    impl IoOwner for Nobody {
        fn complete(&self, _: Io, _: i32, _: &Ring) {}
    }
    let io = |buffer| Io {
        file: Rc::clone(&file),
        kind: IoKind::Read { offset: 0 },
        buffer: Some(buffer),
        done: 0,
        retries: 0,
        token: 0,
        owner: Rc::new(Nobody),
    };
    let registered = !mine.fixed.borrow().is_empty();
    assert_eq!(mine.memory(&mut io(pools[0].take(4096))).2.is_some(), registered);
    assert_eq!(mine.memory(&mut io(others[0].take(4096))).2, None);
    assert_eq!(mine.memory(&mut io(Buffer::new(4096))).2, None);
}

#[test]
fn registered_files_are_reused_when_they_run_out() {
    let ring = Ring::new(8).unwrap();
    let open = || ring.adopt(tempfile::tempfile().unwrap().into());
    let files: Vec<_> = (0..FILES_MAX + 3).map(|_| open()).collect();
    let free = ring.files_free.borrow().len();
    assert_eq!(free, 0);
    let unregistered = files.iter().filter(|file| file.slot.is_none()).count();
    assert!(unregistered >= 3);
    drop(files);
    assert_eq!(ring.files_free.borrow().len() + unregistered, FILES_MAX as usize + 3);
}

/// Gathers what was completed.
#[derive(Default)]
struct Gather(RefCell<Vec<(u64, i32)>>);

impl IoOwner for Gather {
    fn complete(&self, io: Io, result: i32, _: &Ring) {
        self.0.borrow_mut().push((io.token, result));
    }
}

#[test]
fn all_modes_complete_what_is_submitted_and_sleep_until_then() {
    for mode in [Mode::Deferred, Mode::Cooperative, Mode::Plain] {
        let ring = match build_mode(8, mode) {
            Ok(uring) => Ring::over(uring),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => continue,
            Err(error) => panic!("{mode:?}: {error}"),
        };
        let plain = tempfile::tempfile().unwrap();
        let file = ring.adopt(plain.try_clone().unwrap().into());
        let owner = Rc::new(Gather::default());
        for token in 0..50u64 {
            let mut buffer = Buffer::new(4096);
            buffer.fill(token as u8);
            ring.start(Io {
                file: Rc::clone(&file),
                kind: IoKind::Write { offset: token * 4096 },
                buffer: Some(buffer),
                done: 0,
                retries: 0,
                token,
                owner: Rc::clone(&owner) as Rc<dyn IoOwner>,
            });
        }
        while ring.io_in_flight.get() > 0 {
            if !ring.turn() {
                ring.sleep(None);
            }
        }
        let mut done = owner.0.take();
        done.sort();
        assert_eq!(done, (0..50).map(|token| (token, 4096)).collect::<Vec<_>>(), "{mode:?}");
        let mut byte = [0];
        plain.read_exact_at(&mut byte, 49 * 4096 + 7).unwrap();
        assert_eq!(byte, [49]);
        // The time limit ends a sleep too.
        ring.sleep(Some(Duration::from_millis(1)));
    }
}
