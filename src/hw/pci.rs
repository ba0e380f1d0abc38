//! PCI functions as Linux shows them in sysfs: who drives them and which IOMMU group they are in.
//!
//! Nothing here touches a device; `sysfs` is a parameter so that tests can bring a tree of their
//! own.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The class code of an NVMe I/O controller: mass storage, non-volatile memory, NVM Express.
pub const CLASS_NVME: u32 = 0x01_08_02;
/// More functions than this in one IOMMU group are not listed.
const GROUP_LIMIT: usize = 1024;

/// Where a PCI function is: domain, bus, device and function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    device: u8,
    function: u8,
}

/// A text that is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a PCI address; write it as lspci -D does, such as \"0000:01:00.0\"")]
pub struct PciAddressError {
    /// The text.
    pub text: String,
}

impl FromStr for PciAddress {
    type Err = PciAddressError;

    /// Reads `0000:01:00.0`, or `01:00.0` for domain 0.
    fn from_str(text: &str) -> Result<Self, PciAddressError> {
        let wrong = || PciAddressError { text: text.to_owned() };
        let hex = |digits: &str, widths: std::ops::RangeInclusive<usize>| {
            let plain = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
            let value = u32::from_str_radix(digits, 16).ok();
            value.filter(|_| plain && widths.contains(&digits.len())).ok_or_else(wrong)
        };
        let (place, function) = text.rsplit_once('.').ok_or_else(wrong)?;
        let (place, device) = place.rsplit_once(':').ok_or_else(wrong)?;
        let (domain, bus) = match place.rsplit_once(':') {
            Some((domain, bus)) => (hex(domain, 4..=8)?, bus),
            None => (0, place),
        };
        let (device, function) = (hex(device, 2..=2)?, hex(function, 1..=1)?);
        if device > 31 || function > 7 {
            return Err(wrong());
        }
        let bus = hex(bus, 2..=2)?;
        Ok(Self { domain, bus: bus as u8, device: device as u8, function: function as u8 })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { domain, bus, device, function } = self;
        write!(f, "{domain:04x}:{bus:02x}:{device:02x}.{function}")
    }
}

/// Who made a function and what it is: what a table of quirks is keyed by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciIdentity {
    /// Vendor identifier.
    pub vendor: u16,
    /// Device identifier, chosen by the vendor.
    pub device: u16,
    /// Base class, subclass and programming interface, as [`CLASS_NVME`].
    pub class: u32,
    /// Vendor and device of the subsystem: who sells it and what as.
    pub subsystem: (u16, u16),
}

/// One function in sysfs.
#[derive(Clone, Debug)]
pub struct PciFunction {
    address: PciAddress,
    folder: PathBuf,
}

impl PciFunction {
    /// The function at `address` in the tree that is mounted at `sysfs`; `None` if there is none.
    #[must_use]
    pub fn find(sysfs: &Path, address: PciAddress) -> Option<Self> {
        let folder = sysfs.join("bus/pci/devices").join(address.to_string());
        folder.is_dir().then_some(Self { address, folder })
    }

    /// Where it is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Who made it and what it is.
    ///
    /// # Errors
    /// The system's; `InvalidData` for an attribute that is no number.
    pub fn identity(&self) -> io::Result<PciIdentity> {
        let narrow = |attribute| -> io::Result<u16> {
            u16::try_from(self.number(attribute)?).map_err(|_| io::ErrorKind::InvalidData.into())
        };
        Ok(PciIdentity {
            vendor: narrow("vendor")?,
            device: narrow("device")?,
            class: self.number("class")?,
            subsystem: (narrow("subsystem_vendor")?, narrow("subsystem_device")?),
        })
    }

    fn number(&self, attribute: &str) -> io::Result<u32> {
        let text = fs::read_to_string(self.folder.join(attribute))?;
        let digits = text.trim().trim_start_matches("0x");
        u32::from_str_radix(digits, 16).map_err(|_| io::ErrorKind::InvalidData.into())
    }

    /// The kernel driver that it is bound to.
    #[must_use]
    pub fn driver(&self) -> Option<String> {
        self.link_name("driver")
    }

    /// The IOMMU group: what the IOMMU cannot tell apart. `None` without an IOMMU.
    #[must_use]
    pub fn iommu_group(&self) -> Option<u32> {
        self.link_name("iommu_group")?.parse().ok()
    }

    fn link_name(&self, link: &str) -> Option<String> {
        let target = fs::read_link(self.folder.join(link)).ok()?;
        Some(target.file_name()?.to_str()?.to_owned())
    }

    /// The functions of the same IOMMU group, itself among them, in the order of their addresses.
    ///
    /// # Errors
    /// The system's.
    pub fn group_members(&self) -> io::Result<Vec<Self>> {
        let mut members = Vec::new();
        for entry in fs::read_dir(self.folder.join("iommu_group/devices"))?.take(GROUP_LIMIT) {
            let entry = entry?;
            let name = entry.file_name();
            // A group can also hold what is not PCI; it has no driver that could be in the way.
            if let Some(address) = name.to_str().and_then(|name| name.parse().ok()) {
                members.push(Self { address, folder: entry.path() });
            }
        }
        members.sort_by_key(|member| member.address);
        Ok(members)
    }

    /// The name of its VFIO character device (`vfio7`), where the kernel makes one.
    #[must_use]
    pub fn vfio_device(&self) -> Option<String> {
        let entry = fs::read_dir(self.folder.join("vfio-dev")).ok()?.next()?.ok()?;
        // Kernels that can only do groups list the device too, but without a device number.
        let has_file = entry.path().join("dev").exists();
        entry.file_name().into_string().ok().filter(|_| has_file)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A made-up sysfs with one function per call of `add`.
    pub(crate) struct FakeSysfs(tempfile::TempDir);

    impl FakeSysfs {
        pub(crate) fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("bus/pci/devices")).unwrap();
            Self(root)
        }

        pub(crate) fn path(&self) -> &Path {
            self.0.path()
        }

        pub(crate) fn add(&self, address: &str, class: &str, driver: &str, group: Option<u32>) {
            let folder = self.path().join("devices").join(address);
            fs::create_dir_all(&folder).unwrap();
            symlink(&folder, self.path().join("bus/pci/devices").join(address)).unwrap();
            for (name, text) in [
                ("vendor", "0x1b36"),
                ("device", "0x0010"),
                ("class", class),
                ("subsystem_vendor", "0x1af4"),
                ("subsystem_device", "0x1100"),
            ] {
                fs::write(folder.join(name), format!("{text}\n")).unwrap();
            }
            if !driver.is_empty() {
                symlink(format!("../../bus/pci/drivers/{driver}"), folder.join("driver")).unwrap();
            }
            if let Some(group) = group {
                let place = self.path().join(format!("kernel/iommu_groups/{group}"));
                fs::create_dir_all(place.join("devices")).unwrap();
                symlink(&folder, place.join("devices").join(address)).unwrap();
                symlink(place, folder.join("iommu_group")).unwrap();
            }
        }
    }

    #[test]
    fn addresses_are_read_as_lspci_writes_them() {
        for text in ["0000:01:00.0", "10000:e1:1f.7", "ffff:ff:00.1"] {
            assert_eq!(text.parse::<PciAddress>().unwrap().to_string(), text);
        }
        assert_eq!("01:00.0".parse::<PciAddress>().unwrap().to_string(), "0000:01:00.0");
        let wrong = ["", "1:00.0", "0000:01:00", "0000:01:20.0", "0000:01:00.8", "0000:01:+0.0"];
        for text in wrong.iter().chain(&["000000001:01:00.0", "0000:01:00.0 ", "../01:00.0"]) {
            let error = text.parse::<PciAddress>().unwrap_err();
            assert!(error.to_string().contains("0000:01:00.0"), "{error}");
        }
    }

    #[test]
    fn sysfs_tells_driver_group_and_neighbours() {
        let sysfs = FakeSysfs::new();
        sysfs.add("0000:02:00.1", "0x0c0330", "xhci_hcd", Some(12));
        sysfs.add("0000:02:00.0", "0x010802", "vfio-pci", Some(12));
        sysfs.add("0000:03:00.0", "0x010802", "", None);
        let find = |text: &str| PciFunction::find(sysfs.path(), text.parse().unwrap());
        let drive = find("0000:02:00.0").unwrap();
        let identity = PciIdentity {
            vendor: 0x1b36,
            device: 0x10,
            class: CLASS_NVME,
            subsystem: (0x1af4, 0x1100),
        };
        assert_eq!(drive.identity().unwrap(), identity);
        assert_eq!(drive.driver().as_deref(), Some("vfio-pci"));
        assert_eq!(drive.iommu_group(), Some(12));
        let members = drive.group_members().unwrap();
        let drivers: Vec<_> = members.iter().map(PciFunction::driver).collect();
        assert_eq!(drivers, [Some("vfio-pci".to_owned()), Some("xhci_hcd".to_owned())]);
        let lonely = find("0000:03:00.0").unwrap();
        assert_eq!(
            (lonely.driver(), lonely.iommu_group(), lonely.vfio_device()),
            (None, None, None)
        );
        assert!(find("0000:04:00.0").is_none());
        let folder = sysfs.path().join("devices/0000:02:00.0");
        fs::create_dir_all(folder.join("vfio-dev/vfio3")).unwrap();
        assert_eq!(drive.vfio_device(), None, "a kernel without device files");
        fs::write(folder.join("vfio-dev/vfio3/dev"), "243:0\n").unwrap();
        assert_eq!(drive.vfio_device().as_deref(), Some("vfio3"));
        fs::write(folder.join("class"), "storage\n").unwrap();
        assert_eq!(drive.identity().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
