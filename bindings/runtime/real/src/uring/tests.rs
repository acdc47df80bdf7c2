use super::*;

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
