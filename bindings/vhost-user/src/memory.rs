//! The guest's memory: mapped from the front end's descriptors, bounds-checked on every access, and
//! the dirty log of a live migration (C26).
//!
//! Requests keep guest addresses, never pointers, and look them up when they need them: a region
//! may go while a request is in flight, and then its data has nowhere to go.
//!
//! A mapping is refused when its file is shorter than the region, or on a file system that another
//! process or machine serves: an access would wait for that one, and the core with it. When the front end shortens the
//! file afterwards the memory is [lost](Memory::lost), and with it the connection: see
//! [`guard`](crate::guard).

use crate::guard::{Alarm, Guard, Mapping};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use vhost::vhost_user::message::{VhostUserLog, VhostUserMemoryRegion};
use vm_memory::mmap::MmapRegion;
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, VolatileMemory, VolatileSlice,
};

/// What rust-vmm's queues work on.
pub(crate) type View = GuestMemoryMmap<()>;

/// Regions of one guest, at most; QEMU has 512 slots for memory and devices.
pub(crate) const REGIONS_MAX: usize = 509;
/// Bytes for which the dirty log has one bit.
const LOG_PAGE: u64 = 4096;

/// Types of file systems whose pages come from another process or machine: FUSE, NFS, CIFS, SMB2,
/// 9P, Ceph, AFS, Coda, OCFS2, GFS2.
const SERVED_FILE_SYSTEMS: [u32; 10] = [
    0x6573_5546,
    0x6969,
    0xff53_4d42,
    0xfe53_4d42,
    0x0102_1997,
    0x00c3_6400,
    0x5346_414f,
    0x7375_7245,
    0x7461_636f,
    0x0116_1970,
];

/// An address that the guest's memory does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unmapped;

/// One guest's memory.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Before `view`: guards go before their mappings.
    regions: Vec<Region>,
    view: View,
    log: Option<Mapping>,
    logging: bool,
    alarm: Alarm,
}

#[derive(Debug)]
struct Region {
    guest: u64,
    user: u64,
    size: u64,
    _guard: Guard,
}

impl Memory {
    /// For the queues.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Replaces all regions. On an error nothing has changed.
    pub(crate) fn replace(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<OwnedFd>,
    ) -> Result<(), String> {
        let mut fresh = Memory { alarm: self.alarm.clone(), ..Memory::default() };
        for (region, file) in regions.iter().zip(files) {
            fresh.add(region, file)?;
        }
        self.regions = fresh.regions;
        self.view = fresh.view;
        Ok(())
    }

    /// Adds a region.
    pub(crate) fn add(
        &mut self,
        region: &VhostUserMemoryRegion,
        file: OwnedFd,
    ) -> Result<(), String> {
        if self.regions.len() == REGIONS_MAX {
            return Err(format!("more than {REGIONS_MAX} memory regions"));
        }
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        if size == 0 || [guest, user].iter().any(|start| start.checked_add(size).is_none()) {
            return Err("a memory region that is empty or wraps around".into());
        }
        let Mapping { guard, memory } = map(file, region.mmap_offset, size, &self.alarm)?;
        let added = Region { guest, user, size, _guard: guard };
        let mapped = GuestRegionMmap::new(memory, GuestAddress(guest))
            .ok_or("a memory region that wraps around")?;
        self.view = self.view.insert_region(Arc::new(mapped)).map_err(|error| error.to_string())?;
        self.regions.push(added);
        Ok(())
    }

    /// Removes a region that was added with the same addresses and size.
    pub(crate) fn remove(&mut self, region: &VhostUserMemoryRegion) -> Result<(), String> {
        let (guest, user, size) = (region.guest_phys_addr, region.user_addr, region.memory_size);
        let index = self
            .regions
            .iter()
            .position(|known| (known.guest, known.user, known.size) == (guest, user, size))
            .ok_or("no such memory region")?;
        let (view, unmapped) = self
            .view
            .remove_region(GuestAddress(guest), size)
            .map_err(|error| error.to_string())?;
        drop(self.regions.swap_remove(index));
        self.view = view;
        drop(unmapped);
        Ok(())
    }

    /// The alarm of everything that the front end shares.
    pub(crate) fn alarm(&self) -> &Alarm {
        &self.alarm
    }

    /// Whether anything that the front end shares, also beside this memory, was found missing:
    /// nothing that was read or written since the last look can be relied on.
    #[inline]
    pub(crate) fn lost(&self) -> bool {
        self.alarm.rung()
    }

    /// The guest address of an address of the front end's.
    pub(crate) fn guest_address(&self, user: u64) -> Option<u64> {
        self.regions
            .iter()
            .find(|region| user >= region.user && user - region.user < region.size)
            .map(|region| region.guest + (user - region.user))
    }

    /// A range that lies in one region, as almost all do: several times cheaper than the walk over
    /// regions that the other ones need.
    fn in_one_region(&self, address: u64, length: usize) -> Option<VolatileSlice<'_>> {
        let (region, place) = self.view.to_region_addr(GuestAddress(address))?;
        region.get_slice(place, length).ok()
    }

    /// Whether all of a range can be reached.
    pub(crate) fn reaches(&self, address: u64, length: u32) -> bool {
        let length = length as usize;
        self.in_one_region(address, length).is_some()
            || self.view.check_range(GuestAddress(address), length)
    }

    /// Copies out of the guest.
    pub(crate) fn read(&self, address: u64, target: &mut [u8]) -> Result<(), Unmapped> {
        if let Some(source) = self.in_one_region(address, target.len()) {
            source.copy_to(target);
            return Ok(());
        }
        self.view.read_slice(target, GuestAddress(address)).map_err(|_| Unmapped)
    }

    /// Copies into the guest, and marks it dirty after (C24: data before dirty bits).
    pub(crate) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Unmapped> {
        let outcome = match self.in_one_region(address, bytes.len()) {
            Some(target) => {
                target.copy_from(bytes);
                Ok(())
            }
            None => self.view.write_slice(bytes, GuestAddress(address)).map_err(|_| Unmapped),
        };
        self.mark_dirty(address, bytes.len() as u64);
        outcome
    }

    /// Begins or ends dirty logging.
    pub(crate) fn set_logging(&mut self, logging: bool) {
        self.logging = logging;
    }

    /// Takes the bitmap in which dirty pages are marked.
    pub(crate) fn set_log(&mut self, log: &VhostUserLog, file: OwnedFd) -> Result<(), String> {
        self.log = Some(map(file, log.mmap_offset, log.mmap_size, &self.alarm)?);
        Ok(())
    }

    /// Marks the pages of a range, when a migration is on. Pages that the bitmap does not have
    /// are not the guest's.
    pub(crate) fn mark_dirty(&self, address: u64, length: u64) {
        let (true, Some(log)) = (self.logging, &self.log) else { return };
        if length == 0 {
            return;
        }
        let last = address.saturating_add(length - 1) / LOG_PAGE;
        for page in address / LOG_PAGE..=last {
            let Ok(byte) = usize::try_from(page / 8) else { return };
            let Ok(bits) = log.memory.get_atomic_ref::<AtomicU8>(byte) else { return };
            bits.fetch_or(1 << (page % 8), Ordering::Release);
        }
    }
}

fn served_by_others(file_system: u32) -> bool {
    SERVED_FILE_SYSTEMS.contains(&file_system)
}

/// Maps `size` bytes of a file that has them.
pub(crate) fn map(file: OwnedFd, offset: u64, size: u64, alarm: &Alarm) -> Result<Mapping, String> {
    let file = File::from(file);
    let found = file.metadata().map_err(|error| format!("shared memory: {error}"))?;
    if !found.is_file() {
        return Err("shared memory that is not a file".into());
    }
    let system = rustix::fs::fstatfs(&file).map_err(|error| format!("shared memory: {error}"))?;
    if served_by_others(system.f_type as u32) {
        let kind = system.f_type;
        return Err(format!("shared memory on a file system ({kind:#x}) that others serve"));
    }
    let end = offset.checked_add(size).ok_or("shared memory that wraps around")?;
    if found.size() < end {
        return Err(format!("shared memory of {} bytes, {end} are needed", found.size()));
    }
    let length = usize::try_from(size).map_err(|_| "shared memory beyond the address space")?;
    let memory = MmapRegion::from_file(FileOffset::new(file, offset), length)
        .map_err(|error| format!("cannot map shared memory: {error}"))?;
    Ok(Mapping::new(memory, alarm))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rig::shared_memory;

    fn region(guest: u64, size: u64, user: u64, offset: u64) -> VhostUserMemoryRegion {
        VhostUserMemoryRegion::new(guest, size, user, offset)
    }

    #[test]
    fn regions_come_go_and_translate() {
        let mut memory = Memory::default();
        memory.add(&region(0x1000, 0x2345, 0x7000_0000, 0), shared_memory(0x2345)).unwrap();
        memory.add(&region(0x10_0000, 0x1000, 0x6000_0000, 0x1000), shared_memory(0x2000)).unwrap();
        assert_eq!(memory.guest_address(0x7000_0010), Some(0x1010));
        assert_eq!(memory.guest_address(0x7000_2345), None);
        assert!(memory.reaches(0x1000, 0x2345) && !memory.reaches(0x1000, 0x2346));
        memory.write(0x10_0ffe, &[1, 2]).unwrap();
        assert_eq!(memory.write(0x10_0fff, &[1, 2]), Err(Unmapped));
        let mut back = [0; 2];
        memory.read(0x10_0ffe, &mut back).unwrap();
        assert_eq!(back, [1, 1], "a write over the end did what it could");
        assert!(memory.add(&region(0x2000, 0x1000, 0, 0), shared_memory(0x1000)).is_err());
        memory.remove(&region(0x1000, 0x2345, 0x7000_0000, 0)).unwrap();
        assert!(!memory.reaches(0x1000, 1));
        assert!(memory.remove(&region(0x1000, 0x2345, 0x7000_0000, 0)).is_err());
    }

    #[test]
    fn ranges_over_two_regions_are_one() {
        let mut memory = Memory::default();
        memory.add(&region(0x1000, 0x1000, 0, 0), shared_memory(0x1000)).unwrap();
        memory.add(&region(0x2000, 0x1000, 0x9000, 0), shared_memory(0x1000)).unwrap();
        assert!(memory.reaches(0x1ff0, 0x20) && !memory.reaches(0x2ff0, 0x11));
        memory.write(0x1ffe, &[1, 2, 3, 4]).unwrap();
        let mut back = [0; 6];
        memory.read(0x1ffd, &mut back).unwrap();
        assert_eq!(back, [0, 1, 2, 3, 4, 0]);
        assert_eq!(memory.read(0x2ffd, &mut back), Err(Unmapped));
        assert_eq!(memory.read(u64::MAX - 2, &mut back), Err(Unmapped));
    }

    #[test]
    fn short_files_and_absurd_regions_are_refused() {
        let mut memory = Memory::default();
        for (wrong, bytes) in [
            (region(0, 0x2000, 0, 0), 0x1000),
            (region(0, 0x1000, 0, 0x1000), 0x1000),
            (region(0, 0x1000, 0, u64::MAX), 0x1000),
            (region(u64::MAX, 0x1000, 0, 0), 0x1000),
            (region(0, 0, 0, 0), 0x1000),
            (region(0, 0x1000, 0, 1), 0x2000),
        ] {
            assert!(memory.add(&wrong, shared_memory(bytes)).is_err(), "{bytes}");
        }
        assert!(served_by_others(0x6573_5546), "FUSE: an access waits for whoever serves it");
        for mine in [0x0102_1994, 0x9584_58f6, 0xef53, 0x5846_5342] {
            assert!(!served_by_others(mine), "tmpfs, hugetlbfs, ext4, XFS");
        }
        let zero: OwnedFd = File::open("/dev/zero").unwrap().into();
        assert!(memory.add(&region(0, 0x1000, 0, 0), zero).is_err());
    }

    #[test]
    fn dirty_pages_are_marked_only_while_logging() {
        let mut memory = Memory::default();
        memory.add(&region(0, 0x10_0000, 0, 0), shared_memory(0x10_0000)).unwrap();
        memory.set_log(&VhostUserLog::new(4096, 0), shared_memory(4096)).unwrap();
        memory.write(0, &[1]).unwrap();
        memory.set_logging(true);
        memory.write(0x7fff, &[1, 1]).unwrap();
        memory.mark_dirty(u64::MAX - 1, 1);
        memory.set_logging(false);
        memory.write(0x9000, &[1]).unwrap();
        let log = memory.log.as_ref().unwrap();
        let byte = |at| log.memory.get_atomic_ref::<AtomicU8>(at).unwrap().load(Ordering::Relaxed);
        assert_eq!([byte(0), byte(1), byte(2)], [0x80, 0x01, 0]);
    }
}
