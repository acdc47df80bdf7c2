//! A pool of memory for queues, lists and data: chunks of hugepages, cut to size.
//!
//! Chunks are mapped when they are made and stay; pieces are multiples of a page, first fit. The
//! pool is locked while a piece is taken or given back, which no I/O does.

use super::Mapper;
use super::buffer::{DmaBuffer, Words};
use rustix::mm::{Advice, MapFlags, ProtFlags};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The unit of allocation and of mapping, in bytes.
pub const PAGE_BYTES: usize = 4096;

/// Of what pages a chunk is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PageKind {
    /// 4 KiB pages, in chunks of 2 MiB. Only with an IOMMU.
    Normal,
    /// 2 MiB pages.
    Huge2M,
    /// 1 GiB pages.
    Huge1G,
}

impl PageKind {
    fn chunk_bytes(self) -> usize {
        match self {
            PageKind::Normal | PageKind::Huge2M => 2 << 20,
            PageKind::Huge1G => 1 << 30,
        }
    }

    fn flags(self) -> MapFlags {
        // The base two logarithm of the page size stands above MAP_HUGE_SHIFT, 26.
        let size = |shift: u32| MapFlags::HUGETLB | MapFlags::from_bits_retain(shift << 26);
        match self {
            PageKind::Normal => MapFlags::empty(),
            PageKind::Huge2M => size(21),
            PageKind::Huge1G => size(30),
        }
    }
}

/// See the module's page. Cheap to clone; clones are the same pool.
#[derive(Clone)]
pub struct DmaPool(Arc<Shared>);

struct Shared {
    mapper: Arc<dyn Mapper>,
    kinds: Vec<PageKind>,
    node: Option<u32>,
    chunks: Mutex<Vec<Arc<Chunk>>>,
}

/// Memory that was mapped for the process and for the device.
pub(super) struct Chunk {
    words: Words,
    device: u64,
    mapper: Arc<dyn Mapper>,
    /// Free ranges: length by offset, never adjacent.
    free: Mutex<BTreeMap<usize, usize>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl DmaPool {
    /// An empty pool that makes chunks of the first of these kinds that the system gives, on this
    /// NUMA node if it can.
    pub fn new(mapper: Arc<dyn Mapper>, kinds: &[PageKind], node: Option<u32>) -> DmaPool {
        let usable = |kind: &&PageKind| **kind != PageKind::Normal || mapper.takes_normal_pages();
        let kinds = kinds.iter().filter(usable).copied().collect();
        DmaPool(Arc::new(Shared { mapper, kinds, node, chunks: Mutex::default() }))
    }

    /// How memory is made known to the device.
    pub fn mapper(&self) -> &Arc<dyn Mapper> {
        &self.0.mapper
    }

    /// A zeroed piece of `length` bytes, rounded up to pages.
    ///
    /// # Errors
    /// The system gives no more memory, or the device cannot be told of it, or the piece is longer
    /// than a page of which the pool is made and there is no IOMMU to make it contiguous.
    pub fn allocate(&self, length: usize) -> io::Result<DmaBuffer> {
        let length = length.max(1).next_multiple_of(PAGE_BYTES);
        let mut chunks = lock(&self.0.chunks);
        for chunk in chunks.iter() {
            if let Some(offset) = chunk.take(length) {
                return Ok(self.cleared(chunk, offset, length));
            }
        }
        let chunk = Arc::new(self.chunk(length)?);
        let offset = chunk.take(length).expect("a new chunk has room for what it was made for");
        chunks.push(Arc::clone(&chunk));
        Ok(self.cleared(&chunk, offset, length))
    }

    fn cleared(&self, chunk: &Arc<Chunk>, offset: usize, length: usize) -> DmaBuffer {
        chunk.mapper.taken(chunk.device + offset as u64, length);
        let buffer = DmaBuffer::new(Arc::clone(chunk), offset, length);
        buffer.zero();
        buffer
    }

    fn chunk(&self, at_least: usize) -> io::Result<Chunk> {
        let mut last = io::Error::new(
            io::ErrorKind::OutOfMemory,
            "no kind of page is allowed for memory that the device shares",
        );
        for kind in &self.0.kinds {
            match self.chunk_of(*kind, at_least) {
                Ok(chunk) => return Ok(chunk),
                Err(error) => last = error,
            }
        }
        let kinds = &self.0.kinds;
        let text = format!(
            "no memory for the device ({kinds:?}): {last}; raise vm.nr_hugepages or RLIMIT_MEMLOCK"
        );
        Err(io::Error::new(last.kind(), text))
    }

    fn chunk_of(&self, kind: PageKind, at_least: usize) -> io::Result<Chunk> {
        let length = at_least.next_multiple_of(kind.chunk_bytes());
        if length > kind.chunk_bytes() && !self.0.mapper.takes_normal_pages() {
            let text = format!("{at_least} bytes are not contiguous in pages of {kind:?}");
            return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
        }
        let flags = MapFlags::PRIVATE | kind.flags();
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice.
        let host =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), length, access, flags) }?;
        let memory = NonNull::new(host.cast::<u8>()).expect("the kernel maps nothing at zero");
        if let Err(error) = populate(host, length, self.0.node) {
            // SAFETY: mapped above, and nobody else knows of it.
            let _ = unsafe { rustix::mm::munmap(host, length) };
            return Err(error);
        }
        // SAFETY: the memory was mapped above, nobody has a reference to it, and `Chunk::drop`
        // ends the device's mapping before it is unmapped.
        let device = match unsafe { self.0.mapper.map(memory.as_ptr(), length) } {
            Ok(device) => device,
            Err(error) => {
                // SAFETY: mapped above, and nobody else knows of it.
                let _ = unsafe { rustix::mm::munmap(host, length) };
                return Err(error);
            }
        };
        // SAFETY: the mapping lives until `Chunk::drop`, and only words of it are handed out,
        // inside of buffers that keep the chunk.
        let words = unsafe { Words::new(memory, length) };
        let free = Mutex::new(BTreeMap::from([(0, length)]));
        Ok(Chunk { words, device, mapper: Arc::clone(&self.0.mapper), free })
    }
}

/// Gives a new mapping its pages now: an error where there are too few, not a signal later.
fn populate(host: *mut c_void, length: usize, node: Option<u32>) -> io::Result<()> {
    if let Some(node) = node.filter(|node| *node < u64::BITS) {
        let nodes = 1u64 << node;
        // Preferred: pages of another node are slower and as good. A kernel without NUMA refuses.
        // SAFETY: the range was just mapped; the mask has as many bits as are said.
        unsafe {
            libc::syscall(
                libc::SYS_mbind,
                host,
                length,
                libc::MPOL_PREFERRED,
                &raw const nodes,
                u64::BITS + 1,
                0,
            );
        }
    }
    // SAFETY: the range was just mapped, and is not accessed by anyone yet.
    unsafe { rustix::mm::madvise(host, length, Advice::LinuxPopulateWrite) }?;
    Ok(())
}

impl Chunk {
    pub(super) fn words(&self) -> Words {
        self.words
    }

    pub(super) fn device(&self) -> u64 {
        self.device
    }

    fn take(&self, length: usize) -> Option<usize> {
        let mut free = lock(&self.free);
        let (&offset, &room) = free.iter().find(|(_, room)| **room >= length)?;
        free.remove(&offset);
        if room > length {
            free.insert(offset + length, room - length);
        }
        Some(offset)
    }

    pub(super) fn give_back(&self, offset: usize, length: usize) {
        self.mapper.given_back(self.device + offset as u64, length);
        let mut free = lock(&self.free);
        let (mut offset, mut length) = (offset, length);
        if let Some((&before, &room)) = free.range(..offset).next_back()
            && before + room == offset
        {
            free.remove(&before);
            (offset, length) = (before, room + length);
        }
        if let Some(room) = free.remove(&(offset + length)) {
            length += room;
        }
        free.insert(offset, length);
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.mapper.unmap(self.device, self.words.len());
        // SAFETY: mapped by `chunk_of`; no buffer is left, since each holds the chunk.
        let _ = unsafe { rustix::mm::munmap(self.words.host().as_ptr().cast(), self.words.len()) };
    }
}

/// Names memory by its physical address: for machines without an IOMMU. **Unsafe by nature**: the
/// device can then reach all memory of the machine.
pub struct PhysicalMapper {
    pagemap: File,
}

impl PhysicalMapper {
    /// # Errors
    /// `/proc/self/pagemap` cannot be opened, or hides addresses from this process.
    pub fn new() -> io::Result<PhysicalMapper> {
        Ok(PhysicalMapper { pagemap: File::open("/proc/self/pagemap")? })
    }

    fn physical(&self, host: *mut u8) -> io::Result<u64> {
        let page = host.addr() / PAGE_BYTES;
        let mut entry = [0; 8];
        self.pagemap.read_exact_at(&mut entry, page as u64 * 8)?;
        let entry = u64::from_le_bytes(entry);
        // Bit 63: present; bits 54:0: page frame number, zero without CAP_SYS_ADMIN.
        let frame = entry & ((1 << 55) - 1);
        if entry >> 63 == 0 || frame == 0 {
            let text = "the kernel does not tell physical addresses; CAP_SYS_ADMIN is needed";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, text));
        }
        Ok(frame * PAGE_BYTES as u64)
    }
}

impl Mapper for PhysicalMapper {
    // SAFETY: what callers promise is the trait's.
    unsafe fn map(&self, host: *mut u8, length: usize) -> io::Result<u64> {
        let first = self.physical(host)?;
        for offset in (0..length).step_by(PAGE_BYTES) {
            if self.physical(host.wrapping_add(offset))? != first + offset as u64 {
                let text = "memory is not contiguous, so it is not of hugepages";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
            }
        }
        Ok(first)
    }

    fn unmap(&self, _device: u64, _length: usize) {}

    fn takes_normal_pages(&self) -> bool {
        false
    }
}
