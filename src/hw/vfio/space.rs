//! The device's address space: how it was opened, and what it can reach.
//!
//! Two ways lead to a device. The older one opens the IOMMU group and puts it into a container;
//! the newer one opens the device itself and attaches it to an address space of an iommufd. Behind
//! both is the same device descriptor.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use vfio_bindings::bindings::vfio::{VFIO_NOIOMMU_IOMMU, VFIO_TYPE1v2_IOMMU};

use super::error::VfioError;
use super::ioctl;
use super::window::IovaRanges;
use crate::hw::dma::DmaArena;
use crate::hw::pci::{PciAddress, PciFunction};
use crate::units::ByteCount;

/// Drivers that do not stop a group from being viable: they leave the device to user space, or do
/// no DMA with it.
const HARMLESS: [&str; 3] = ["vfio-pci", "pci-stub", "pcieport"];

/// Which of VFIO's two ways to take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VfioAccess {
    /// The device's own file where the kernel has one and this process may open it, else the
    /// group.
    #[default]
    Any,
    /// The IOMMU group and a container.
    Group,
    /// The device's own file and an iommufd.
    Iommufd,
    /// The group of a device that no IOMMU stands before: VFIO's mode for those who accept that the
    /// device reaches all of the machine's memory.
    NoIommu,
}

/// What a device can reach, for as long as this lives.
#[derive(Debug)]
pub(super) enum Space {
    /// A container, and the group that is attached to it for as long as it is open.
    Container { container: File, _group: File },
    /// An iommufd and the number of an address space in it.
    Iommufd { iommufd: File, ioas: u32 },
    /// A container that translates nothing.
    Physical { _container: File, _group: File },
}

impl Space {
    /// Opens `function` one way or the other: the device and its address space.
    pub(super) fn open(
        function: &PciFunction,
        dev: &Path,
        access: VfioAccess,
    ) -> Result<(File, Self), VfioError> {
        let iommufd = || Self::open_iommufd(function, dev);
        let group = || Self::open_group(function, dev);
        match access {
            VfioAccess::Group => group(),
            VfioAccess::Iommufd => iommufd(),
            VfioAccess::NoIommu => Self::open_without_iommu(function, dev),
            VfioAccess::Any => match iommufd() {
                Err(VfioError::Open { .. } | VfioError::Unsupported { .. }) => group(),
                result => result,
            },
        }
    }

    fn open_iommufd(function: &PciFunction, dev: &Path) -> Result<(File, Self), VfioError> {
        let address = function.address();
        let failed = VfioError::call(address);
        let missing = "a device file (kernel 6.6 or newer with CONFIG_VFIO_DEVICE_CDEV)";
        let name =
            function.vfio_device().ok_or(VfioError::Unsupported { device: address, missing })?;
        let device = open(address, dev.join("vfio/devices").join(name))?;
        let iommufd = open(address, dev.join("iommu"))?;
        ioctl::bind_iommufd(&device, &iommufd).map_err(failed)?;
        let ioas = ioctl::allocate_ioas(&iommufd).map_err(failed)?;
        ioctl::attach_ioas(&device, ioas).map_err(failed)?;
        Ok((device, Self::Iommufd { iommufd, ioas }))
    }

    fn open_group(function: &PciFunction, dev: &Path) -> Result<(File, Self), VfioError> {
        let address = function.address();
        let failed = VfioError::call(address);
        let number = function.iommu_group().ok_or(VfioError::NoIommu { device: address })?;
        let folder = dev.join("vfio");
        if folder.join(format!("noiommu-{number}")).exists() {
            return Err(VfioError::NoIommuMode { device: address, group: number });
        }
        let container = open(address, folder.join("vfio"))?;
        let group = open(address, folder.join(number.to_string()))?;
        check_version(address, &container)?;
        if !ioctl::offers(&container, VFIO_TYPE1v2_IOMMU).map_err(failed)? {
            let missing = "the IOMMU type 1 (version 2)";
            return Err(VfioError::Unsupported { device: address, missing });
        }
        if !ioctl::is_viable(&group).map_err(failed)? {
            return Err(not_viable(function, number));
        }
        ioctl::set_container(&group, &container).map_err(failed)?;
        ioctl::set_iommu(&container, VFIO_TYPE1v2_IOMMU).map_err(failed)?;
        let device = ioctl::open_device(&group, &address.to_string()).map_err(failed)?;
        Ok((device, Self::Container { container, _group: group }))
    }

    fn open_without_iommu(function: &PciFunction, dev: &Path) -> Result<(File, Self), VfioError> {
        let address = function.address();
        let failed = VfioError::call(address);
        let number = function.iommu_group().ok_or(VfioError::NoIommuOff { device: address })?;
        let folder = dev.join("vfio");
        if folder.join(number.to_string()).exists() {
            return Err(VfioError::HasIommu { device: address, group: number });
        }
        let container = open(address, folder.join("vfio"))?;
        let group = open(address, folder.join(format!("noiommu-{number}")))?;
        check_version(address, &container)?;
        // Only offered to a container with such a group.
        ioctl::set_container(&group, &container).map_err(failed)?;
        ioctl::set_iommu(&container, VFIO_NOIOMMU_IOMMU).map_err(failed)?;
        let device = ioctl::open_device(&group, &address.to_string()).map_err(failed)?;
        Ok((device, Self::Physical { _container: container, _group: group }))
    }

    /// Which way was taken.
    pub(super) fn access(&self) -> VfioAccess {
        match self {
            Self::Container { .. } => VfioAccess::Group,
            Self::Iommufd { .. } => VfioAccess::Iommufd,
            Self::Physical { .. } => VfioAccess::NoIommu,
        }
    }

    /// The device addresses that can be mapped.
    pub(super) fn ranges(&self, device: PciAddress) -> Result<IovaRanges, VfioError> {
        let pairs = match self {
            Self::Container { container, .. } => ioctl::container_ranges(container),
            Self::Iommufd { iommufd, ioas } => ioctl::ioas_ranges(iommufd, *ioas),
            // All of the machine's memory.
            Self::Physical { .. } => Ok(Vec::new()),
        };
        pairs.map(IovaRanges::new).map_err(VfioError::call(device))
    }

    /// Maps the arena, which must lie in `ranges`. Without an IOMMU there is nothing to map: the
    /// arena's addresses must be the machine's.
    pub(super) fn map(&self, device: PciAddress, arena: &DmaArena) -> Result<(), VfioError> {
        if arena.is_physical() != matches!(self, Self::Physical { .. }) {
            return Err(VfioError::OtherAddresses { device, physical: arena.is_physical() });
        }
        let ranges = self.ranges(device)?;
        let (first, size) = (arena.iova(), arena.size());
        if !ranges.contain(first, size) {
            return Err(VfioError::OutsideAperture { device, first, size, ranges });
        }
        let mapped = match self {
            Self::Container { container, .. } => ioctl::container_map(container, arena),
            Self::Iommufd { iommufd, ioas } => ioctl::ioas_map(iommufd, *ioas, arena),
            Self::Physical { .. } => Ok(()),
        };
        mapped.map_err(|failed| match failed.source.raw_os_error() {
            Some(libc::ENOMEM) => VfioError::MemoryLimit {
                device,
                call: failed.call,
                source: failed.source,
                needed: size,
                limit: memory_limit(),
            },
            _ => VfioError::call(device)(failed),
        })
    }
}

fn open(device: PciAddress, path: PathBuf) -> Result<File, VfioError> {
    let opened = File::options().read(true).write(true).open(&path);
    opened.map_err(|source: io::Error| VfioError::Open { device, path, source })
}

fn check_version(device: PciAddress, container: &File) -> Result<(), VfioError> {
    match ioctl::speaks_our_version(container).map_err(VfioError::call(device))? {
        true => Ok(()),
        false => Err(VfioError::Unsupported { device, missing: "version 0 of the interface" }),
    }
}

fn not_viable(function: &PciFunction, group: u32) -> VfioError {
    let device = function.address();
    let members = match function.group_members() {
        Ok(members) => members,
        Err(source) => return VfioError::Attributes { device, source },
    };
    let harmful = |member: PciFunction| {
        let driver = member.driver().filter(|driver| !HARMLESS.contains(&driver.as_str()))?;
        Some((member.address(), driver))
    };
    let neighbours = members.into_iter().filter_map(harmful).collect();
    VfioError::NotViable { device, group, neighbours }
}

/// `RLIMIT_MEMLOCK` of this process.
fn memory_limit() -> Option<ByteCount> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: one owned structure. If it fails, which it cannot, the limit reads as 0.
    unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    (limit.rlim_cur != libc::RLIM_INFINITY).then_some(ByteCount(limit.rlim_cur))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hw::pci::tests::FakeSysfs;

    fn function(sysfs: &FakeSysfs, address: &str) -> PciFunction {
        PciFunction::find(sysfs.path(), address.parse().unwrap()).unwrap()
    }

    #[test]
    fn neighbours_that_the_kernel_drives_are_named() {
        let sysfs = FakeSysfs::new();
        sysfs.add("0000:02:00.0", "0x010802", "vfio-pci", Some(12));
        sysfs.add("0000:02:00.1", "0x0c0330", "xhci_hcd", Some(12));
        sysfs.add("0000:02:00.2", "0x040300", "", Some(12));
        sysfs.add("0000:00:01.0", "0x060400", "pcieport", Some(12));
        sysfs.add("0000:03:00.0", "0x020000", "e1000e", Some(13));
        let text = not_viable(&function(&sysfs, "0000:02:00.0"), 12).to_string();
        assert!(
            text.contains("12 is not viable: 0000:02:00.1 is still bound to xhci_hcd;"),
            "{text}"
        );
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        let (sysfs, dev) = (FakeSysfs::new(), tempfile::tempdir().unwrap());
        sysfs.add("0000:02:00.0", "0x010802", "vfio-pci", Some(12));
        sysfs.add("0000:03:00.0", "0x010802", "vfio-pci", None);
        let refusal = |address, access| {
            let result = Space::open(&function(&sysfs, address), dev.path(), access);
            result.unwrap_err().to_string()
        };
        let text = refusal("0000:03:00.0", VfioAccess::Any);
        assert!(text.contains("in no IOMMU group"), "{text}");
        let text = refusal("0000:02:00.0", VfioAccess::Any);
        assert!(text.contains("vfio/vfio: No such file") && text.contains("modprobe"), "{text}");
        let text = refusal("0000:02:00.0", VfioAccess::Iommufd);
        assert!(text.contains("6.6 or newer"), "{text}");
        std::fs::create_dir(dev.path().join("vfio")).unwrap();
        for name in ["vfio", "12"] {
            std::fs::write(dev.path().join("vfio").join(name), "").unwrap();
        }
        // The first ioctl on what is not VFIO.
        let text = refusal("0000:02:00.0", VfioAccess::Group);
        assert!(
            text.contains("VFIO_GET_API_VERSION: ") && text.contains("(os error 25)"),
            "{text}"
        );
        std::fs::write(dev.path().join("vfio/noiommu-12"), "").unwrap();
        let text = refusal("0000:02:00.0", VfioAccess::Group);
        assert!(text.contains("group 12 is in no-IOMMU mode"), "{text}");
        let text = refusal("0000:02:00.0", VfioAccess::NoIommu);
        assert!(text.contains("group 12 has an IOMMU"), "{text}");
        std::fs::remove_file(dev.path().join("vfio/12")).unwrap();
        let text = refusal("0000:02:00.0", VfioAccess::NoIommu);
        assert!(
            text.contains("VFIO_GET_API_VERSION: ") && text.contains("(os error 25)"),
            "{text}"
        );
        let text = refusal("0000:03:00.0", VfioAccess::NoIommu);
        assert!(text.contains("bind-vfio --unsafe-no-iommu 0000:03:00.0"), "{text}");
    }
}
