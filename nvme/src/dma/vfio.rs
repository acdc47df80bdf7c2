//! Mapping through VFIO, type 1 or iommufd: the IOMMU lets the device reach what was mapped, and
//! nothing else.

use super::Mapper;
use super::iova::IovaSpace;
use iommufd_bindings::iommufd::{iommu_ioas_iova_ranges, iommu_iova_range};
use std::io;
use std::mem::{offset_of, size_of};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use vfio_bindings::bindings::vfio::{
    VFIO_BASE, VFIO_IOMMU_INFO_CAPS, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE, VFIO_TYPE,
    vfio_iommu_type1_info,
};
use vfio_ioctls::{VfioContainer, VfioIommufd, VfioOps};

/// IOMMU_IOAS_IOVA_RANGES, `_IO(IOMMUFD_TYPE, 0x84)` of linux/iommufd.h.
const IOVA_RANGES: u64 = ((b';' as u64) << 8) | 0x84;
/// Ranges of an iommufd that are looked at; what is beyond them is not used.
const RANGES_MAX: usize = 64;
/// VFIO_IOMMU_GET_INFO, `_IO(VFIO_TYPE, VFIO_BASE + 12)` of linux/vfio.h.
const GET_INFO: u64 = ((VFIO_TYPE as u64) << 8) | (VFIO_BASE as u64 + 12);
/// Room for the description of the IOMMU.
const INFO_BYTES: usize = 4096;
/// Used when the kernel does not say: below the interrupt range of x86, and within the smallest
/// address width of Intel's IOMMUs.
const USUAL: [(u64, u64); 2] = [(0, 0xfedf_ffff), (0xfef0_0000, (1 << 39) - 1)];

/// See the module's page.
pub struct VfioMapper {
    ops: Arc<dyn VfioOps>,
    space: Mutex<IovaSpace>,
}

impl VfioMapper {
    /// For a container that has its IOMMU set.
    pub fn of_container(container: Arc<VfioContainer>) -> VfioMapper {
        let ranges = container_ranges(&container);
        VfioMapper::new(container, ranges)
    }

    /// For an address space of an iommufd to which the device is attached.
    pub fn of_iommufd(space: Arc<VfioIommufd>) -> VfioMapper {
        let ranges = iommufd_ranges(&space);
        VfioMapper::new(space, ranges)
    }

    fn new(ops: Arc<dyn VfioOps>, ranges: Option<Vec<(u64, u64)>>) -> VfioMapper {
        let ranges = ranges.unwrap_or_else(|| USUAL.to_vec());
        VfioMapper { ops, space: Mutex::new(IovaSpace::new(&ranges)) }
    }

    fn space(&self) -> std::sync::MutexGuard<'_, IovaSpace> {
        self.space.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The ranges of device addresses that the kernel allows, if it says.
fn container_ranges(container: &VfioContainer) -> Option<Vec<(u64, u64)>> {
    let mut info = vec![0u64; INFO_BYTES / 8];
    info[0] = INFO_BYTES as u64;
    // SAFETY: the request fills the structure whose length is in its first word (argsz), which is
    // the length of `info`.
    let result = unsafe { libc::ioctl(container.as_raw_fd(), GET_INFO, info.as_mut_ptr()) };
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    (result == 0).then(|| ranges(&bytes)).flatten()
}

/// The ranges of device addresses that all devices of the space take, if the kernel says.
fn iommufd_ranges(space: &VfioIommufd) -> Option<Vec<(u64, u64)>> {
    let mut found = vec![iommu_iova_range { start: 0, last: 0 }; RANGES_MAX];
    let mut request = iommu_ioas_iova_ranges {
        size: size_of::<iommu_ioas_iova_ranges>() as u32,
        ioas_id: space.ioas().id(),
        num_iovas: RANGES_MAX as u32,
        allowed_iovas: found.as_mut_ptr().expose_provenance() as u64,
        ..Default::default()
    };
    let file = space.iommufd().as_raw_fd();
    // SAFETY: the request fills itself, and at most `num_iovas` ranges, of which `found` has as many.
    let result = unsafe { libc::ioctl(file, IOVA_RANGES, &raw mut request) };
    // More ranges than there is room for are said with EMSGSIZE, after what there is room for.
    let told = result == 0 || io::Error::last_os_error().raw_os_error() == Some(libc::EMSGSIZE);
    found.truncate(request.num_iovas as usize);
    told.then(|| found.iter().map(|range| (range.start, range.last)).collect())
}

fn ranges(info: &[u8]) -> Option<Vec<(u64, u64)>> {
    let half = |at: usize| Some(u16::from_ne_bytes(info.get(at..at + 2)?.try_into().ok()?));
    let word = |at: usize| Some(u32::from_ne_bytes(info.get(at..at + 4)?.try_into().ok()?));
    let long = |at: usize| Some(u64::from_ne_bytes(info.get(at..at + 8)?.try_into().ok()?));
    if word(offset_of!(vfio_iommu_type1_info, flags))? & VFIO_IOMMU_INFO_CAPS == 0 {
        return None;
    }
    let mut at = word(offset_of!(vfio_iommu_type1_info, cap_offset))? as usize;
    // The chain is the kernel's, but a bound costs nothing.
    for _ in 0..64 {
        if at < size_of::<u64>() {
            return None;
        }
        // struct vfio_info_cap_header: id, version, next; then the count and the ranges.
        if u32::from(half(at)?) == VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE {
            let count = word(at + 8)? as usize;
            let range =
                |index: usize| Some((long(at + 16 + 16 * index)?, long(at + 24 + 16 * index)?));
            return (0..count).map(range).collect();
        }
        at = word(at + 4)? as usize;
    }
    None
}

impl Mapper for VfioMapper {
    // SAFETY: what callers promise is the trait's.
    unsafe fn map(&self, host: *mut u8, length: usize) -> io::Result<u64> {
        let mut space = self.space();
        let device = space.take(length as u64).ok_or_else(|| {
            io::Error::new(io::ErrorKind::OutOfMemory, "no device addresses are left")
        })?;
        // SAFETY: the caller promises that the memory is valid and is not seen as a reference
        // while a command names it; a device that writes without being told to spoils content of
        // memory that was mapped for it, which checksums find.
        let mapped = unsafe { self.ops.vfio_dma_map(device, length, host) };
        mapped.map(|()| device).map_err(|error| {
            space.give_back(device, length as u64);
            io::Error::other(format!("the IOMMU does not take {length} bytes: {error}"))
        })
    }

    fn unmap(&self, device: u64, length: usize) {
        // Addresses that could not be unmapped are not used again.
        if self.ops.vfio_dma_unmap(device, length).is_ok() {
            self.space().give_back(device, length as u64);
        }
    }

    fn takes_normal_pages(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_of_capabilities_is_walked_within_its_bounds() {
        let mut info = vec![0u8; 256];
        let set = |info: &mut [u8], at: usize, value: u32| {
            info[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        };
        set(&mut info, offset_of!(vfio_iommu_type1_info, flags), VFIO_IOMMU_INFO_CAPS);
        set(&mut info, offset_of!(vfio_iommu_type1_info, cap_offset), 32);
        set(&mut info, 32, 99);
        set(&mut info, 36, 64);
        set(&mut info, 64, VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
        set(&mut info, 72, 1);
        info[80..88].copy_from_slice(&4096u64.to_ne_bytes());
        info[88..96].copy_from_slice(&8191u64.to_ne_bytes());
        assert_eq!(ranges(&info), Some(vec![(4096, 8191)]));
        set(&mut info, 72, 100);
        assert_eq!(ranges(&info), None);
        set(&mut info, 64, 7);
        set(&mut info, 68, 32);
        assert_eq!(ranges(&info), None);
    }
}
