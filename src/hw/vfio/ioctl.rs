//! VFIO's and iommufd's ioctls, one function each, with their arguments as types. Numbers and
//! layouts are those of `linux/vfio.h` and `linux/iommufd.h`.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use vfio_bindings::bindings::vfio;

use super::capability::{self, u32_at, u64_at};
use crate::hw::dma::DmaArena;

/// The largest information structure that is asked for: capabilities included.
const INFORMATION_LIMIT: usize = 64 << 10;

/// An ioctl that failed: its name in the kernel's documentation, and why.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) call: &'static str,
    pub(super) source: io::Error,
}

type Answer<T> = Result<T, Failed>;

/// An ioctl: its name, and its number within type `;`, which both VFIO and iommufd use.
struct Call(&'static str, u32);

const GET_API_VERSION: Call = Call("VFIO_GET_API_VERSION", 100);
const CHECK_EXTENSION: Call = Call("VFIO_CHECK_EXTENSION", 101);
const SET_IOMMU: Call = Call("VFIO_SET_IOMMU", 102);
const GROUP_GET_STATUS: Call = Call("VFIO_GROUP_GET_STATUS", 103);
const GROUP_SET_CONTAINER: Call = Call("VFIO_GROUP_SET_CONTAINER", 104);
const GROUP_GET_DEVICE_FD: Call = Call("VFIO_GROUP_GET_DEVICE_FD", 106);
const DEVICE_GET_INFO: Call = Call("VFIO_DEVICE_GET_INFO", 107);
const DEVICE_GET_REGION_INFO: Call = Call("VFIO_DEVICE_GET_REGION_INFO", 108);
const DEVICE_GET_IRQ_INFO: Call = Call("VFIO_DEVICE_GET_IRQ_INFO", 109);
const DEVICE_SET_IRQS: Call = Call("VFIO_DEVICE_SET_IRQS", 110);
const DEVICE_RESET: Call = Call("VFIO_DEVICE_RESET", 111);
const IOMMU_GET_INFO: Call = Call("VFIO_IOMMU_GET_INFO", 112);
const IOMMU_MAP_DMA: Call = Call("VFIO_IOMMU_MAP_DMA", 113);
const DEVICE_BIND_IOMMUFD: Call = Call("VFIO_DEVICE_BIND_IOMMUFD", 118);
const DEVICE_ATTACH_IOMMUFD_PT: Call = Call("VFIO_DEVICE_ATTACH_IOMMUFD_PT", 119);
const IOAS_ALLOC: Call = Call("IOMMU_IOAS_ALLOC", 0x81);
const IOAS_IOVA_RANGES: Call = Call("IOMMU_IOAS_IOVA_RANGES", 0x84);
const IOAS_MAP: Call = Call("IOMMU_IOAS_MAP", 0x85);

impl Call {
    /// Makes the call. The answer is what the kernel returned, never negative.
    ///
    /// # Safety
    /// `argument` is what this call takes: a number, or a pointer to its structure with room for
    /// as much as the structure says.
    unsafe fn make(&self, file: &File, argument: usize) -> Answer<u32> {
        let request = (u32::from(b';') << 8 | self.1) as libc::Ioctl;
        // SAFETY: an open descriptor; the argument is the caller's promise.
        let answer = unsafe { libc::ioctl(file.as_raw_fd(), request, argument) };
        u32::try_from(answer).map_err(|_| self.failed(io::Error::last_os_error()))
    }

    /// Makes a call whose argument is one structure of a fixed size.
    ///
    /// # Safety
    /// `T` is the structure that this call takes, and `argument` says its size.
    unsafe fn exchange<T>(&self, file: &File, argument: &mut T) -> Answer<u32> {
        // SAFETY: an exclusive reference to the structure that the caller promises it is.
        unsafe { self.make(file, (&raw mut *argument).addr()) }
    }

    /// Makes a call that answers with a structure of its own choice of size, which starts with the
    /// size in 32 bits. `head` is what is asked, with those 32 bits at its start.
    ///
    /// # Safety
    /// `head` begins as the structure of this call begins and is at least as long as its fixed
    /// part.
    unsafe fn inquire(&self, file: &File, head: &[u32]) -> Answer<Vec<u8>> {
        let mut words = head.to_vec();
        // The first answer tells the size, the second one fills it; a third would mean that the
        // size changes all the time.
        for _ in 0..3 {
            let size = words.len() * 4;
            words[0] = size as u32;
            // SAFETY: `words` has the room that its first word tells the kernel of. The pointer
            // is exposed to be passed as a number.
            unsafe { self.make(file, words.as_mut_ptr().expose_provenance())? };
            let wanted = words[0] as usize;
            if wanted <= size {
                return Ok(words.iter().flat_map(|word| word.to_ne_bytes()).collect());
            }
            if wanted > INFORMATION_LIMIT {
                break;
            }
            words = head.to_vec();
            words.resize(wanted.div_ceil(4), 0);
        }
        Err(self.failed(io::ErrorKind::InvalidData.into()))
    }

    fn failed(&self, source: io::Error) -> Failed {
        Failed { call: self.0, source }
    }
}

// ---- container and group ---------------------------------------------------------------------

/// Whether the container speaks the one version of the interface that exists.
pub(super) fn speaks_our_version(container: &File) -> Answer<bool> {
    // SAFETY: the call takes no argument.
    let version = unsafe { GET_API_VERSION.make(container, 0)? };
    Ok(version == vfio::VFIO_API_VERSION)
}

/// Whether the container offers an IOMMU type.
pub(super) fn offers(container: &File, extension: u32) -> Answer<bool> {
    // SAFETY: the call takes a number.
    Ok(unsafe { CHECK_EXTENSION.make(container, extension as usize)? } != 0)
}

/// Whether every device of the group can be used from user space.
pub(super) fn is_viable(group: &File) -> Answer<bool> {
    let argsz = size_of::<vfio::vfio_group_status>() as u32;
    let mut status = vfio::vfio_group_status { argsz, flags: 0 };
    // SAFETY: the structure of this call.
    unsafe { GROUP_GET_STATUS.exchange(group, &mut status)? };
    Ok(status.flags & vfio::VFIO_GROUP_FLAGS_VIABLE != 0)
}

/// Puts the group into the container.
pub(super) fn set_container(group: &File, container: &File) -> Answer<()> {
    let mut descriptor: RawFd = container.as_raw_fd();
    // SAFETY: the call takes a pointer to a descriptor.
    unsafe { GROUP_SET_CONTAINER.exchange(group, &mut descriptor)? };
    Ok(())
}

/// Gives the container, which has its groups, an IOMMU.
pub(super) fn set_iommu(container: &File, kind: u32) -> Answer<()> {
    // SAFETY: the call takes a number.
    unsafe { SET_IOMMU.make(container, kind as usize)? };
    Ok(())
}

/// Opens the device called `name` in the group. The kernel resets it if it can.
pub(super) fn open_device(group: &File, name: &str) -> Answer<File> {
    let invalid = |_| GROUP_GET_DEVICE_FD.failed(io::ErrorKind::InvalidInput.into());
    let name = CString::new(name).map_err(invalid)?;
    let argument = name.as_ptr().expose_provenance();
    // SAFETY: the call takes a pointer to a C string, which lives until after the call.
    let descriptor = unsafe { GROUP_GET_DEVICE_FD.make(group, argument)? };
    // SAFETY: the kernel just opened it for us; nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor as RawFd) }.into())
}

/// The container's ranges of device addresses, first and last each; none if it does not tell.
pub(super) fn container_ranges(container: &File) -> Answer<Vec<(u64, u64)>> {
    const HEAD: usize = size_of::<vfio::vfio_iommu_type1_info>() / 4;
    // SAFETY: all of the structure's fixed part, of which only the size is asked about.
    let bytes = unsafe { IOMMU_GET_INFO.inquire(container, &[0; HEAD])? };
    // argsz, flags, page sizes (64 bits), offset of the first capability.
    let flags = u32_at(&bytes, 4).unwrap_or(0);
    let first = u32_at(&bytes, 16).unwrap_or(0);
    if flags & vfio::VFIO_IOMMU_INFO_CAPS == 0 {
        return Ok(Vec::new());
    }
    let found = capability::find(&bytes, first, vfio::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE);
    Ok(found.map(capability::pairs).unwrap_or_default())
}

/// Maps the whole arena at its device addresses, for reading and writing.
pub(super) fn container_map(container: &File, arena: &DmaArena) -> Answer<()> {
    let mut map = vfio::vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio::vfio_iommu_type1_dma_map>() as u32,
        flags: vfio::VFIO_DMA_MAP_FLAG_READ | vfio::VFIO_DMA_MAP_FLAG_WRITE,
        vaddr: arena.address(),
        iova: arena.iova().get(),
        size: arena.size().get(),
    };
    // SAFETY: the structure of this call. What the device may now write is the arena's memory
    // only, whose types keep it apart from what the CPU owns; the kernel keeps the pages.
    unsafe { IOMMU_MAP_DMA.exchange(container, &mut map)? };
    Ok(())
}

// ---- iommufd ---------------------------------------------------------------------------------

#[repr(C)]
struct IoasAlloc {
    size: u32,
    flags: u32,
    out_ioas_id: u32,
}

#[repr(C)]
struct IovaRange {
    start: u64,
    last: u64,
}

#[repr(C)]
struct IoasIovaRanges {
    size: u32,
    ioas_id: u32,
    num_iovas: u32,
    reserved: u32,
    allowed_iovas: u64,
    out_iova_alignment: u64,
}

#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

const _: () = assert!(size_of::<IoasAlloc>() == 12 && size_of::<IoasMap>() == 40);
const _: () = assert!(size_of::<IoasIovaRanges>() == 32 && size_of::<IovaRange>() == 16);

/// More ranges than this are not listed.
const RANGES_LIMIT: usize = 256;
/// `IOMMU_IOAS_MAP_FIXED_IOVA | IOMMU_IOAS_MAP_WRITEABLE | IOMMU_IOAS_MAP_READABLE`.
const IOAS_MAP_FLAGS: u32 = 1 | 2 | 4;

/// Ties the device to the iommufd. Nothing else works on the device before. The kernel resets it
/// if it can.
pub(super) fn bind_iommufd(device: &File, iommufd: &File) -> Answer<()> {
    let mut bind = vfio::vfio_device_bind_iommufd {
        // Up to the token, which came later and is not used: older kernels know the rest.
        argsz: std::mem::offset_of!(vfio::vfio_device_bind_iommufd, token_uuid_ptr) as u32,
        flags: 0,
        iommufd: iommufd.as_raw_fd(),
        out_devid: 0,
        token_uuid_ptr: 0,
    };
    // SAFETY: the structure of this call.
    unsafe { DEVICE_BIND_IOMMUFD.exchange(device, &mut bind)? };
    Ok(())
}

/// A new address space.
pub(super) fn allocate_ioas(iommufd: &File) -> Answer<u32> {
    let mut alloc = IoasAlloc { size: size_of::<IoasAlloc>() as u32, flags: 0, out_ioas_id: 0 };
    // SAFETY: the structure of this call.
    unsafe { IOAS_ALLOC.exchange(iommufd, &mut alloc)? };
    Ok(alloc.out_ioas_id)
}

/// Lets the device use the address space.
pub(super) fn attach_ioas(device: &File, ioas: u32) -> Answer<()> {
    let mut attach = vfio::vfio_device_attach_iommufd_pt {
        // Up to the process address space identifier, as in `bind_iommufd`.
        argsz: std::mem::offset_of!(vfio::vfio_device_attach_iommufd_pt, pasid) as u32,
        flags: 0,
        pt_id: ioas,
        pasid: 0,
    };
    // SAFETY: the structure of this call.
    unsafe { DEVICE_ATTACH_IOMMUFD_PT.exchange(device, &mut attach)? };
    Ok(())
}

/// The address space's ranges of device addresses, first and last each.
pub(super) fn ioas_ranges(iommufd: &File, ioas: u32) -> Answer<Vec<(u64, u64)>> {
    let mut ranges: Vec<IovaRange> =
        (0..RANGES_LIMIT).map(|_| IovaRange { start: 0, last: 0 }).collect();
    let mut request = IoasIovaRanges {
        size: size_of::<IoasIovaRanges>() as u32,
        ioas_id: ioas,
        num_iovas: RANGES_LIMIT as u32,
        reserved: 0,
        allowed_iovas: ranges.as_mut_ptr().expose_provenance() as u64,
        out_iova_alignment: 0,
    };
    // SAFETY: the structure of this call, which names a list with room for as many ranges as it
    // says and which lives until after the call.
    unsafe { IOAS_IOVA_RANGES.exchange(iommufd, &mut request)? };
    let count = request.num_iovas as usize;
    Ok(ranges.iter().take(count).map(|range| (range.start, range.last)).collect())
}

/// Maps the whole arena at its device addresses, for reading and writing.
pub(super) fn ioas_map(iommufd: &File, ioas: u32, arena: &DmaArena) -> Answer<()> {
    let mut map = IoasMap {
        size: size_of::<IoasMap>() as u32,
        flags: IOAS_MAP_FLAGS,
        ioas_id: ioas,
        reserved: 0,
        user_va: arena.address(),
        length: arena.size().get(),
        iova: arena.iova().get(),
    };
    // SAFETY: the structure of this call; see `container_map` for the memory.
    unsafe { IOAS_MAP.exchange(iommufd, &mut map)? };
    Ok(())
}

// ---- device ----------------------------------------------------------------------------------

/// The device's flags (`VFIO_DEVICE_FLAGS_*`).
pub(super) fn device_flags(device: &File) -> Answer<u32> {
    let argsz = size_of::<vfio::vfio_device_info>() as u32;
    let mut info = vfio::vfio_device_info { argsz, ..Default::default() };
    // SAFETY: the structure of this call.
    unsafe { DEVICE_GET_INFO.exchange(device, &mut info)? };
    Ok(info.flags)
}

/// A region of a device: a BAR or the configuration space.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Region {
    /// Where it is in the device's descriptor.
    pub(super) offset: u64,
    /// Its size in bytes; 0 if the device has no such region.
    pub(super) size: u64,
    /// The parts that may be mapped, position and size each.
    pub(super) mappable: Vec<(u64, u64)>,
}

/// The region `index`.
pub(super) fn region(device: &File, index: u32) -> Answer<Region> {
    const HEAD: usize = size_of::<vfio::vfio_region_info>() / 4;
    let mut head = [0; HEAD];
    head[2] = index;
    // SAFETY: all of the structure's fixed part, with the index in its place.
    let bytes = unsafe { DEVICE_GET_REGION_INFO.inquire(device, &head)? };
    Ok(parse_region(&bytes))
}

/// Reads a `vfio_region_info` with its capabilities.
fn parse_region(bytes: &[u8]) -> Region {
    // argsz, flags, index, offset of the first capability, size and offset (64 bits each).
    let flags = u32_at(bytes, 4).unwrap_or(0);
    let first = u32_at(bytes, 12).unwrap_or(0);
    let (size, offset) = (u64_at(bytes, 16).unwrap_or(0), u64_at(bytes, 24).unwrap_or(0));
    let sparse = match flags & vfio::VFIO_REGION_INFO_FLAG_CAPS {
        0 => None,
        _ => capability::find(bytes, first, vfio::VFIO_REGION_INFO_CAP_SPARSE_MMAP),
    };
    let mappable = match (flags & vfio::VFIO_REGION_INFO_FLAG_MMAP, sparse) {
        (0, _) => Vec::new(),
        (_, Some(areas)) => capability::pairs(areas),
        (_, None) => vec![(0, size)],
    };
    Region { offset, size, mappable }
}

/// How many interrupts of the kind `index` the device has.
pub(super) fn interrupts(device: &File, index: u32) -> Answer<u32> {
    let argsz = size_of::<vfio::vfio_irq_info>() as u32;
    let mut info = vfio::vfio_irq_info { argsz, index, ..Default::default() };
    // SAFETY: the structure of this call.
    unsafe { DEVICE_GET_IRQ_INFO.exchange(device, &mut info)? };
    Ok(info.count)
}

/// Makes the interrupts of the kind `index` from `start` on signal `events`; -1 stands for none.
/// The first call for a kind enables it. Answers 0, or how many the kernel could have enabled if
/// it was asked for too many.
pub(super) fn set_interrupts(
    device: &File,
    index: u32,
    start: u32,
    events: &[RawFd],
) -> Answer<u32> {
    const HEAD: usize = size_of::<vfio::vfio_irq_set>() / 4;
    let flags = vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER;
    let size = ((HEAD + events.len()) * 4) as u32;
    let mut words = vec![size, flags, index, start, events.len() as u32];
    words.extend(events.iter().map(|event| event.cast_unsigned()));
    // SAFETY: the structure of this call with as many descriptors behind it as it says.
    unsafe { DEVICE_SET_IRQS.make(device, words.as_mut_ptr().expose_provenance()) }
}

/// Resets the function.
pub(super) fn reset(device: &File) -> Answer<()> {
    // SAFETY: the call takes no argument.
    unsafe { DEVICE_RESET.make(device, 0)? };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::capability::tests::capability;
    use super::*;

    fn region_info(flags: u32, size: u64, capabilities: &[u8]) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            [0, flags, 0, 32].iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        bytes.extend(size.to_ne_bytes());
        bytes.extend((1_u64 << 40).to_ne_bytes());
        bytes.extend(capabilities);
        bytes
    }

    #[test]
    fn a_region_tells_what_may_be_mapped() {
        let mappable = |flags, capabilities: &[u8]| {
            let region = parse_region(&region_info(flags, 0x4000, capabilities));
            assert_eq!((region.size, region.offset), (0x4000, 1 << 40));
            region.mappable
        };
        let (mmap, caps) = (vfio::VFIO_REGION_INFO_FLAG_MMAP, vfio::VFIO_REGION_INFO_FLAG_CAPS);
        assert_eq!(mappable(0, &[]), []);
        assert_eq!(mappable(mmap, &[]), [(0, 0x4000)]);
        // Sparse areas leave the page of the interrupt table out; "MSI-X mappable" lets it in.
        let sparse = capability(1, 0, &[(0, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(mappable(mmap | caps, &sparse), [(0, 0x2000), (0x3000, 0x1000)]);
        assert_eq!(mappable(caps, &sparse), []);
        assert_eq!(mappable(mmap | caps, &capability(3, 0, &[])), [(0, 0x4000)]);
        assert_eq!(parse_region(&[0; 3]), Region::default());
    }

    #[test]
    fn a_call_that_fails_is_named() {
        let file = tempfile::tempfile().unwrap();
        let failed = device_flags(&file).unwrap_err();
        assert_eq!(failed.call, "VFIO_DEVICE_GET_INFO");
        assert_eq!(failed.source.raw_os_error(), Some(libc::ENOTTY));
        assert_eq!(region(&file, 0).unwrap_err().call, "VFIO_DEVICE_GET_REGION_INFO");
        assert_eq!(open_device(&file, "a\0b").unwrap_err().source.raw_os_error(), None);
    }
}
