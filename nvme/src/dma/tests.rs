//! Pools, mapping and the software IOMMU.

use super::*;
use cleave_runtime::buffer::Buffer;
use std::rc::Rc;
use std::sync::Arc;

fn pool() -> (Arc<DmaSpace>, DmaPool) {
    let space = Arc::new(DmaSpace::default());
    let pool = DmaPool::new(Arc::clone(&space) as Arc<dyn Mapper>, &[PageKind::Normal], None);
    (space, pool)
}

#[test]
fn a_device_sees_what_was_written_and_nothing_beyond() {
    let (space, pool) = pool();
    let buffer = pool.allocate(5000).unwrap();
    assert_eq!(buffer.len(), 8192);
    let text = b"thirteen bytes and more";
    buffer.write(4091, text);
    let mut seen = [0; 23];
    assert!(space.read(buffer.address() + 4091, &mut seen));
    assert_eq!(&seen, text);
    assert!(space.write(buffer.address() + 8184, &[7; 8]));
    assert_eq!(buffer.read_u64(8184), 0x0707_0707_0707_0707);
    assert!(!space.read(buffer.address() + (2 << 20) - 4, &mut [0; 8]));
    assert!(!space.read(1, &mut [0; 8]));
    let address = buffer.address();
    drop(buffer);
    assert!(!space.read(address, &mut [0; 8]));
}

#[test]
fn pieces_come_back_whole_and_zeroed() {
    let (space, pool) = pool();
    let pieces: Vec<_> = (0..512).map(|_| pool.allocate(4096).unwrap()).collect();
    assert_eq!(space.mapped(), 2 << 20);
    pieces.iter().for_each(|piece| piece.write(0, &[1; 4096]));
    drop(pieces);
    let whole = pool.allocate(2 << 20).unwrap();
    assert_eq!(space.mapped(), 2 << 20);
    let mut content = vec![1; whole.len()];
    whole.read(0, &mut content);
    assert!(content.iter().all(|byte| *byte == 0));
    let another = pool.allocate(3 << 20).unwrap();
    assert_eq!(space.mapped(), 6 << 20);
    drop((whole, another, pool));
    assert_eq!(space.mapped(), 0);
}

#[test]
fn buffers_of_the_pool_are_mapped_and_others_are_copied() {
    let (space, memory) = pool();
    let mapped = Rc::new(MappedPool::new(&memory, 8192, 1).unwrap());
    let mut own = mapped.take(4096);
    own.fill(3);
    let pools = [Rc::clone(&mapped)];
    let on_its_way = MappedBuffer::new(own, &pools, &memory, Purpose::Send).ok().unwrap();
    assert!(!on_its_way.is_copied());
    let mut seen = [0; 4096];
    assert!(space.read(on_its_way.segments()[0].address, &mut seen));
    assert_eq!(seen, [3; 4096]);
    let back = on_its_way.finish().unwrap();

    let mut foreign = Buffer::new(4096);
    foreign.fill(4);
    let on_its_way = MappedBuffer::new(foreign, &pools, &memory, Purpose::Send).ok().unwrap();
    assert!(on_its_way.is_copied());
    assert!(space.read(on_its_way.segments()[0].address, &mut seen));
    assert_eq!(seen, [4; 4096]);
    let foreign = on_its_way.finish().unwrap();
    let on_its_way = MappedBuffer::new(foreign, &pools, &memory, Purpose::Fill).ok().unwrap();
    assert!(space.write(on_its_way.segments()[0].address, &[5; 4096]));
    assert_eq!(*on_its_way.finish().unwrap(), [5; 4096]);
    drop((back, pools, mapped));
    assert_eq!(space.mapped(), 2 << 20);
}

#[test]
#[should_panic(expected = "within memory")]
fn access_beyond_the_end_is_our_own_mistake() {
    let (_, pool) = pool();
    pool.allocate(4096).unwrap().write(4090, &[0; 8]);
}
