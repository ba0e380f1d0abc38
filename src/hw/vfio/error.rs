//! What can go wrong with a device behind VFIO. Each message names the device, what was tried,
//! the system's reason and what an operator can do.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::ioctl::Failed;
use super::window::IovaRanges;
use crate::hw::pci::PciAddress;
use crate::units::{ByteCount, Iova};

/// Why a device cannot be used through VFIO.
#[derive(Debug, thiserror::Error)]
pub enum VfioError {
    /// Nothing is at the address.
    #[error("{device}: no such PCI function; `lspci -D` lists those of this machine")]
    Absent {
        /// The address.
        device: PciAddress,
    },
    /// What sysfs says cannot be read.
    #[error("{device}: cannot read its attributes in sysfs: {source}")]
    Attributes {
        /// The device.
        device: PciAddress,
        /// The system's reason.
        source: io::Error,
    },
    /// Something else than an NVMe controller.
    #[error("{device}: not an NVMe controller: its class is {class:06x}, not 010802")]
    OtherClass {
        /// The device.
        device: PciAddress,
        /// Its PCI class.
        class: u32,
    },
    /// The device is in the hands of another driver, or of none.
    #[error(
        "{device}: bound to {}, not to vfio-pci; run as root: mount/bind-vfio {device}",
        .driver.as_deref().unwrap_or("no driver")
    )]
    OtherDriver {
        /// The device.
        device: PciAddress,
        /// Its driver.
        driver: Option<String>,
    },
    /// The machine has no IOMMU, or it is off.
    #[error(
        "{device}: in no IOMMU group; turn the IOMMU on in the firmware (VT-d, AMD-Vi), and boot \
         an Intel machine with intel_iommu=on"
    )]
    NoIommu {
        /// The device.
        device: PciAddress,
    },
    /// VFIO's mode without an IOMMU, in which a device can write all of the machine's memory.
    #[error(
        "{device}: group {group} is in no-IOMMU mode; turn the IOMMU on, or accept that the drive \
         can overwrite all of the machine's memory: unsafe_no_iommu = true of the device"
    )]
    NoIommuMode {
        /// The device.
        device: PciAddress,
        /// Its IOMMU group.
        group: u32,
    },
    /// The mode without an IOMMU is asked for, and the kernel does not offer it.
    #[error(
        "{device}: in no group: VFIO's mode without an IOMMU is off; run as root: mount/bind-vfio \
         --unsafe-no-iommu {device}"
    )]
    NoIommuOff {
        /// The device.
        device: PciAddress,
    },
    /// The mode without an IOMMU is asked for where there is one.
    #[error("{device}: group {group} has an IOMMU; take unsafe_no_iommu out of the configuration")]
    HasIommu {
        /// The device.
        device: PciAddress,
        /// Its IOMMU group.
        group: u32,
    },
    /// The arena's addresses are of the other kind.
    #[error(
        "{device}: the DMA memory of this process has {} addresses; all of its NVMe devices on PCI \
         must have unsafe_no_iommu = true, or none", if *.physical { "physical" } else { "an IOMMU's" }
    )]
    OtherAddresses {
        /// The device.
        device: PciAddress,
        /// Whether they are physical ones.
        physical: bool,
    },
    /// Other devices of the IOMMU group belong to drivers of the kernel.
    #[error("{device}: group {group} is not viable: {}", Neighbours(.neighbours))]
    NotViable {
        /// The device.
        device: PciAddress,
        /// Its IOMMU group.
        group: u32,
        /// The devices that are in the way, with their drivers.
        neighbours: Vec<(PciAddress, String)>,
    },
    /// A file of VFIO's cannot be opened.
    #[error("{device}: cannot open {}: {source}{}", .path.display(), open_remedy(.device, .path, .source))]
    Open {
        /// The device.
        device: PciAddress,
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel's VFIO is of another kind than any that exists today.
    #[error("{device}: this kernel's VFIO lacks {missing}; load the module vfio_iommu_type1")]
    Unsupported {
        /// The device.
        device: PciAddress,
        /// What it lacks.
        missing: &'static str,
    },
    /// An ioctl failed.
    #[error("{device}: {call}: {source}{}", call_remedy(.call, .source))]
    Call {
        /// The device.
        device: PciAddress,
        /// The ioctl.
        call: &'static str,
        /// The system's reason.
        source: io::Error,
    },
    /// The device's memory of registers is not what an NVMe controller has.
    #[error("{device}: BAR 0 of {size:#x} bytes has no doorbells that can be mapped")]
    NoDoorbells {
        /// The device.
        device: PciAddress,
        /// Size of the BAR.
        size: u64,
    },
    /// The registers cannot be mapped.
    #[error("{device}: cannot map its registers: {source}")]
    Registers {
        /// The device.
        device: PciAddress,
        /// The system's reason.
        source: io::Error,
    },
    /// The configuration space cannot be read or written.
    #[error("{device}: configuration space at {offset:#x}: {source}")]
    Configuration {
        /// The device.
        device: PciAddress,
        /// The offset.
        offset: u16,
        /// The system's reason.
        source: io::Error,
    },
    /// The controller has no MSI-X interrupts.
    #[error("{device}: has no MSI-X interrupts")]
    NoInterrupts {
        /// The device.
        device: PciAddress,
    },
    /// No such interrupt vector.
    #[error("{device}: no interrupt vector {vector}: there are {vectors}")]
    NoVector {
        /// The device.
        device: PciAddress,
        /// The vector.
        vector: u16,
        /// How many there are.
        vectors: u16,
    },
    /// No event descriptor can be had.
    #[error("{device}: no event descriptor for an interrupt: {source}")]
    Event {
        /// The device.
        device: PciAddress,
        /// The system's reason.
        source: io::Error,
    },
    /// The IOMMU does not translate the arena's addresses.
    #[error(
        "{device}: the IOMMU translates {ranges} only, and {size} bytes of DMA memory at {first:#x} \
         do not fit", size = .size.get(), first = .first.get()
    )]
    OutsideAperture {
        /// The device.
        device: PciAddress,
        /// First device address of the memory.
        first: Iova,
        /// Its size.
        size: ByteCount,
        /// What the IOMMU translates.
        ranges: IovaRanges,
    },
    /// The process may not lock as much memory as the device needs.
    #[error(
        "{device}: {call}: {source}; {needed} of DMA memory must be locked and the limit is \
         {limit}: raise it (systemd: LimitMEMLOCK=infinity, shell: ulimit -l)",
        needed = .needed.human(), limit = limit_text(*.limit)
    )]
    MemoryLimit {
        /// The device.
        device: PciAddress,
        /// The ioctl that pins the memory.
        call: &'static str,
        /// The system's reason.
        source: io::Error,
        /// How much must be locked.
        needed: ByteCount,
        /// `RLIMIT_MEMLOCK`; `None` if there is none.
        limit: Option<ByteCount>,
    },
    /// Other memory than before is to be mapped.
    #[error("{device}: another DMA arena is mapped for it already")]
    SecondArena {
        /// The device.
        device: PciAddress,
    },
    /// The function has no reset of its own.
    #[error("{device}: the function cannot be reset; power the machine off and on")]
    NoReset {
        /// The device.
        device: PciAddress,
    },
}

impl VfioError {
    pub(super) fn call(device: PciAddress) -> impl Fn(Failed) -> Self + Copy {
        move |Failed { call, source }| Self::Call { device, call, source }
    }

    /// The system's reason, if there is one.
    #[must_use]
    pub fn system(&self) -> Option<&io::Error> {
        match self {
            Self::Attributes { source, .. }
            | Self::Open { source, .. }
            | Self::Call { source, .. }
            | Self::Registers { source, .. }
            | Self::Configuration { source, .. }
            | Self::Event { source, .. }
            | Self::MemoryLimit { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<VfioError> for io::Error {
    fn from(error: VfioError) -> Self {
        let kind = error.system().map_or(io::ErrorKind::Other, io::Error::kind);
        Self::new(kind, error)
    }
}

struct Neighbours<'a>(&'a [(PciAddress, String)]);

impl fmt::Display for Neighbours<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("the kernel does not say why");
        }
        for (index, (address, driver)) in self.0.iter().enumerate() {
            let comma = if index == 0 { "" } else { ", " };
            write!(f, "{comma}{address} is still bound to {driver}")?;
        }
        f.write_str("; unbind what the machine can spare")
    }
}

fn open_remedy(device: &PciAddress, path: &Path, source: &io::Error) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    match source.raw_os_error() {
        Some(libc::EPERM) if name.starts_with("noiommu-") => {
            "; without an IOMMU it takes CAP_SYS_RAWIO, whoever owns the file".to_owned()
        }
        Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
            "; load the modules: modprobe -a vfio-pci vfio_iommu_type1".to_owned()
        }
        Some(libc::EACCES | libc::EPERM) => {
            format!("; give it to this user: mount/bind-vfio --owner USER {device}")
        }
        Some(libc::EBUSY) => "; another process uses the device or one of its group".to_owned(),
        _ => String::new(),
    }
}

fn call_remedy(call: &str, source: &io::Error) -> &'static str {
    match (call, source.raw_os_error()) {
        ("VFIO_SET_IOMMU" | "VFIO_DEVICE_ATTACH_IOMMUFD_PT", Some(libc::EPERM)) => {
            "; the machine cannot remap interrupts: an administrator who accepts that risk sets \
             allow_unsafe_interrupts=1 of vfio_iommu_type1"
        }
        ("VFIO_GROUP_SET_CONTAINER" | "VFIO_GROUP_GET_DEVICE_FD", Some(libc::EBUSY))
        | ("VFIO_DEVICE_BIND_IOMMUFD", Some(libc::EBUSY | libc::EINVAL)) => {
            "; another process uses the device or one of its group"
        }
        ("VFIO_IOMMU_MAP_DMA", Some(libc::ENOSPC)) => {
            "; the IOMMU has no room for another mapping: raise dma_entry_limit of vfio_iommu_type1"
        }
        (call, Some(libc::ENODEV)) if call.starts_with("VFIO_DEVICE") => {
            "; the device is being removed"
        }
        _ => "",
    }
}

fn limit_text(limit: Option<ByteCount>) -> String {
    limit.map_or_else(|| "none".to_owned(), ByteCount::human)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> PciAddress {
        "0000:01:00.0".parse().unwrap()
    }

    #[test]
    fn each_message_names_the_device_and_a_remedy() {
        let device = device();
        let errno = io::Error::from_raw_os_error;
        let open =
            |code| VfioError::Open { device, path: "/dev/vfio/12".into(), source: errno(code) };
        let failed = |call, code| VfioError::call(device)(Failed { call, source: errno(code) });
        let cases = [
            (VfioError::OtherDriver { device, driver: Some("nvme".into()) }, "bind-vfio 0000:01"),
            (VfioError::OtherDriver { device, driver: None }, "bound to no driver"),
            (VfioError::NoIommu { device }, "intel_iommu=on"),
            (open(libc::ENOENT), "modprobe"),
            (open(libc::EACCES), "--owner USER 0000:01:00.0"),
            (open(libc::EBUSY), "another process"),
            (
                VfioError::Open {
                    device,
                    path: "/dev/vfio/noiommu-0".into(),
                    source: errno(libc::EPERM),
                },
                "CAP_SYS_RAWIO",
            ),
            (VfioError::OtherAddresses { device, physical: true }, "has physical addresses"),
            (failed("VFIO_SET_IOMMU", libc::EPERM), "allow_unsafe_interrupts"),
            (failed("VFIO_DEVICE_SET_IRQS", libc::EIO), "VFIO_DEVICE_SET_IRQS: Input/output"),
            (
                VfioError::MemoryLimit {
                    device,
                    call: "VFIO_IOMMU_MAP_DMA",
                    source: errno(libc::ENOMEM),
                    needed: ByteCount(64 << 20),
                    limit: Some(ByteCount(8 << 20)),
                },
                "64MiB of DMA memory must be locked and the limit is 8MiB",
            ),
        ];
        for (error, expected) in cases {
            let text = error.to_string();
            assert!(text.starts_with("0000:01:00.0: "), "{text}");
            assert!(text.contains(expected), "{text}: should say {expected}");
            if let Some(code) = error.system().and_then(io::Error::raw_os_error) {
                assert!(text.contains(&format!("(os error {code})")), "{text}");
            }
        }
    }

    #[test]
    fn a_group_that_is_not_viable_is_explained() {
        let neighbours = vec![("0000:02:00.1".parse().unwrap(), "xhci_hcd".to_owned())];
        let error = VfioError::NotViable { device: device(), group: 12, neighbours };
        let text = error.to_string();
        let expected = "group 12 is not viable: 0000:02:00.1 is still bound to xhci_hcd";
        assert!(text.contains(expected), "{text}");
        let system = io::Error::from(error);
        assert!(system.to_string().contains("0000:02:00.1"));
    }

    #[test]
    fn the_kind_of_the_system_is_kept() {
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        let error = VfioError::Registers { device: device(), source };
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::NotFound);
    }
}
