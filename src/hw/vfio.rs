//! An NVMe controller reached through VFIO: Linux's way to give a PCI function to a process.
//!
//! The device is bound to the kernel's vfio-pci, sits behind an IOMMU, and can reach nothing but
//! the one arena that [`Transport::map`] gives it. Opening it, in order:
//!
//! 1. sysfs: there is such a function, it is an NVMe controller, vfio-pci drives it;
//! 2. its address space and descriptor, through an iommufd or its IOMMU group ([`VfioAccess`]);
//!    the kernel resets the function;
//! 3. BAR 0 is mapped, its doorbells among it;
//! 4. the command register: memory decoding and bus mastering on, legacy interrupts off;
//! 5. MSI-X vectors are enabled, all that will ever be used, since older kernels cannot add any
//!    later; which event a vector signals is set when it is first asked for;
//! 6. events for the kernel's two messages: "give the device back" and "the device failed".
//!
//! Dropping the transport switches bus mastering off, so that no memory is touched after it even
//! if a doorbell still keeps the device open.
//!
//! A device without an IOMMU reaches all of the machine's memory; it is opened only where the caller
//! asks for [`VfioAccess::NoIommu`], and works with an arena of physical addresses. Not offered: two
//! functions of one IOMMU group through the group's file (through an iommufd they are independent).

#![expect(unsafe_code, reason = "ioctls, mapped registers and a signal handler")]

mod bar;
mod capability;
mod error;
mod ioctl;
mod sigbus;
mod space;
mod window;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vfio_bindings::bindings::vfio;

pub use self::error::VfioError;
pub use self::space::VfioAccess;
pub use self::window::IovaRanges;

use self::bar::{Bar, DOORBELLS};
use self::space::Space;
use super::dma::DmaArena;
use super::event::EventFd;
use super::pci::{CLASS_NVME, PciAddress, PciFunction, PciIdentity};
use super::transport::{Doorbell, DoorbellMemory, Notice, Transport};

/// The PCI command register, in the configuration space.
const COMMAND: u16 = 4;
/// Decode memory, be bus master, no legacy interrupts (PCI Local Bus 3.0, 6.2.2).
const COMMAND_WANTED: u16 = 1 << 1 | 1 << 2 | 1 << 10;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// How to open a device.
#[derive(Clone, Copy, Debug)]
pub struct VfioOptions {
    /// Interrupt vectors to enable, if the controller has as many. At least one is.
    pub vectors: u16,
    /// Which of VFIO's ways to take.
    pub access: VfioAccess,
}

/// An NVMe controller behind VFIO.
#[derive(Debug)]
pub struct VfioTransport {
    name: String,
    address: PciAddress,
    identity: PciIdentity,
    device: Arc<File>,
    bar: Arc<Bar>,
    /// Where the configuration space is in `device`, and its size.
    configuration: ioctl::Region,
    resettable: bool,
    /// The event of each vector that was asked for.
    vectors: Mutex<Vec<Option<Arc<EventFd>>>>,
    release_wanted: Arc<EventFd>,
    failed: Arc<EventFd>,
    /// What the device reaches. It stays until nothing of the device is left.
    arena: Mutex<Option<DmaArena>>,
    space: Space,
}

impl VfioTransport {
    /// Opens the NVMe controller at `address`.
    ///
    /// # Errors
    /// [`VfioError`], which says what to do about it.
    pub fn open(address: PciAddress, options: VfioOptions) -> Result<Self, VfioError> {
        Self::open_below(Path::new("/sys"), Path::new("/dev"), address, options)
    }

    fn open_below(
        sysfs: &Path,
        dev: &Path,
        address: PciAddress,
        options: VfioOptions,
    ) -> Result<Self, VfioError> {
        let failed = VfioError::call(address);
        let (function, identity) = find(sysfs, address)?;
        let (device, space) = Space::open(&function, dev, options.access)?;
        let device = Arc::new(device);
        let flags = ioctl::device_flags(&device).map_err(failed)?;
        let region = ioctl::region(&device, vfio::VFIO_PCI_BAR0_REGION_INDEX).map_err(failed)?;
        let bar = Bar::map(Arc::clone(&device), &region)
            .map_err(|source| VfioError::Registers { device: address, source })?;
        if !bar.has_doorbells() {
            return Err(VfioError::NoDoorbells { device: address, size: region.size });
        }
        let configuration =
            ioctl::region(&device, vfio::VFIO_PCI_CONFIG_REGION_INDEX).map_err(failed)?;
        let vectors = enable_vectors(address, &device, options.vectors)?;
        let transport = Self {
            name: address.to_string(),
            address,
            identity,
            bar: Arc::new(bar),
            configuration,
            resettable: flags & vfio::VFIO_DEVICE_FLAGS_RESET != 0,
            vectors: Mutex::new(vec![None; usize::from(vectors)]),
            release_wanted: kernel_event(address, &device, vfio::VFIO_PCI_REQ_IRQ_INDEX)?,
            failed: kernel_event(address, &device, vfio::VFIO_PCI_ERR_IRQ_INDEX)?,
            arena: Mutex::new(None),
            device,
            space,
        };
        transport.set_command()?;
        Ok(transport)
    }

    /// Where the device is.
    #[must_use]
    pub fn address(&self) -> PciAddress {
        self.address
    }

    /// Which of VFIO's ways leads to the device.
    #[must_use]
    pub fn access(&self) -> VfioAccess {
        self.space.access()
    }

    /// The device addresses that the IOMMU translates.
    ///
    /// # Errors
    /// The kernel's.
    pub fn ranges(&self) -> Result<IovaRanges, VfioError> {
        self.space.ranges(self.address)
    }

    /// Signalled when the kernel wants the device back: it is being unplugged, or unbound from
    /// vfio-pci. The kernel waits until this transport and all of its doorbells are dropped, and
    /// signals again from time to time.
    #[must_use]
    pub fn release_wanted(&self) -> &Arc<EventFd> {
        &self.release_wanted
    }

    /// Signalled when the bus reported an error of the device that it cannot correct.
    #[must_use]
    pub fn failed(&self) -> &Arc<EventFd> {
        &self.failed
    }

    /// Whether an access found the registers taken away: the device is gone, or its memory
    /// decoding is off. Reads give all ones from then on.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.bar.is_dead()
    }

    /// Reads from the configuration space, as much as `into` holds.
    ///
    /// # Errors
    /// [`VfioError::Configuration`].
    pub fn read_configuration(&self, offset: u16, into: &mut [u8]) -> Result<(), VfioError> {
        let read = self.device.read_exact_at(into, self.configuration_at(offset));
        read.map_err(|source| self.configuration_error(offset, source))
    }

    /// Writes to the configuration space. The kernel lets through what a process may change.
    ///
    /// # Errors
    /// [`VfioError::Configuration`].
    pub fn write_configuration(&self, offset: u16, bytes: &[u8]) -> Result<(), VfioError> {
        let written = self.device.write_all_at(bytes, self.configuration_at(offset));
        written.map_err(|source| self.configuration_error(offset, source))
    }

    fn configuration_at(&self, offset: u16) -> u64 {
        self.configuration.offset.saturating_add(u64::from(offset))
    }

    fn configuration_error(&self, offset: u16, source: io::Error) -> VfioError {
        VfioError::Configuration { device: self.address, offset, source }
    }

    fn command(&self) -> Result<u16, VfioError> {
        let mut bytes = [0; 2];
        self.read_configuration(COMMAND, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    /// VFIO hands a device over with bus mastering off, and a controller whose commands cannot
    /// reach memory only times out.
    fn set_command(&self) -> Result<(), VfioError> {
        let command = self.command()? | COMMAND_WANTED;
        self.write_configuration(COMMAND, &command.to_le_bytes())
    }

    fn map_arena(&self, arena: &DmaArena) -> Result<(), VfioError> {
        let mut mapped = self.arena.lock().unwrap_or_else(PoisonError::into_inner);
        match &*mapped {
            Some(other) if other.address() == arena.address() => return Ok(()),
            Some(_) => return Err(VfioError::SecondArena { device: self.address }),
            None => {}
        }
        self.space.map(self.address, arena)?;
        *mapped = Some(arena.clone());
        Ok(())
    }

    fn lock_vectors(&self) -> MutexGuard<'_, Vec<Option<Arc<EventFd>>>> {
        self.vectors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn vector_event(&self, vector: u16) -> Result<Arc<EventFd>, VfioError> {
        let device = self.address;
        let mut events = self.lock_vectors();
        let vectors = events.len() as u16;
        let Some(slot) = events.get_mut(usize::from(vector)) else {
            return Err(VfioError::NoVector { device, vector, vectors });
        };
        if let Some(event) = slot {
            return Ok(Arc::clone(event));
        }
        let event = new_event(device)?;
        let kind = vfio::VFIO_PCI_MSIX_IRQ_INDEX;
        ioctl::set_interrupts(&self.device, kind, u32::from(vector), &[event.as_raw_fd()])
            .map_err(VfioError::call(device))?;
        Ok(Arc::clone(slot.insert(event)))
    }

    fn reset_function(&self) -> Result<(), VfioError> {
        if !self.resettable {
            return Err(VfioError::NoReset { device: self.address });
        }
        ioctl::reset(&self.device).map_err(VfioError::call(self.address))?;
        self.set_command()
    }
}

/// Checks what sysfs says about the device.
fn find(sysfs: &Path, device: PciAddress) -> Result<(PciFunction, PciIdentity), VfioError> {
    let function = PciFunction::find(sysfs, device).ok_or(VfioError::Absent { device })?;
    let identity =
        function.identity().map_err(|source| VfioError::Attributes { device, source })?;
    if identity.class != CLASS_NVME {
        return Err(VfioError::OtherClass { device, class: identity.class });
    }
    match function.driver() {
        Some(driver) if driver == "vfio-pci" => Ok((function, identity)),
        driver => Err(VfioError::OtherDriver { device, driver }),
    }
}

/// Enables up to `wanted` MSI-X vectors, none of which signals anything yet. Returns how many.
fn enable_vectors(device: PciAddress, file: &File, wanted: u16) -> Result<u16, VfioError> {
    let failed = VfioError::call(device);
    let kind = vfio::VFIO_PCI_MSIX_IRQ_INDEX;
    let present = ioctl::interrupts(file, kind).map_err(failed)?;
    let mut count = u16::try_from(present).unwrap_or(u16::MAX).min(wanted.max(1));
    while count > 0 {
        let none = vec![-1; usize::from(count)];
        // Where the machine is short of vectors the kernel answers how many there are.
        match ioctl::set_interrupts(file, kind, 0, &none).map_err(failed)? {
            0 => return Ok(count),
            possible => count = (count - 1).min(u16::try_from(possible).unwrap_or(u16::MAX)),
        }
    }
    Err(VfioError::NoInterrupts { device })
}

/// An event that a message of the kernel signals; one that is never signalled where the kernel
/// has no such message.
fn kernel_event(device: PciAddress, file: &File, kind: u32) -> Result<Arc<EventFd>, VfioError> {
    let event = new_event(device)?;
    if ioctl::interrupts(file, kind).is_ok_and(|count| count > 0) {
        ioctl::set_interrupts(file, kind, 0, &[event.as_raw_fd()])
            .map_err(VfioError::call(device))?;
    }
    Ok(event)
}

fn new_event(device: PciAddress) -> Result<Arc<EventFd>, VfioError> {
    EventFd::new().map(Arc::new).map_err(|source| VfioError::Event { device, source })
}

impl Transport for VfioTransport {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Option<PciIdentity> {
        Some(self.identity)
    }

    fn read32(&self, offset: u32) -> u32 {
        self.bar.read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        self.bar.write32(offset, value);
    }

    fn read64(&self, offset: u32) -> u64 {
        let low = u64::from(self.bar.read32(offset));
        low | u64::from(self.bar.read32(offset.saturating_add(4))) << 32
    }

    fn write64(&self, offset: u32, value: u64) {
        self.bar.write32(offset, value as u32);
        self.bar.write32(offset.saturating_add(4), (value >> 32) as u32);
    }

    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        let memory = Arc::clone(&self.bar) as Arc<dyn DoorbellMemory>;
        offset
            .checked_sub(DOORBELLS)
            .and_then(|offset| Doorbell::new(memory, offset, None))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// One arena for the life of the transport: its device addresses are taken.
    fn map(&self, arena: &DmaArena) -> io::Result<()> {
        Ok(self.map_arena(arena)?)
    }

    fn vectors(&self) -> u16 {
        self.lock_vectors().len() as u16
    }

    fn interrupt(&self, vector: u16) -> io::Result<Arc<EventFd>> {
        Ok(self.vector_event(vector)?)
    }

    fn reset(&self) -> io::Result<()> {
        Ok(self.reset_function()?)
    }

    fn notice(&self) -> Option<Notice> {
        if self.release_wanted.consume() {
            return Some(Notice::ReleaseWanted);
        }
        self.failed.consume().then_some(Notice::BusError)
    }
}

impl Drop for VfioTransport {
    fn drop(&mut self) {
        // The device's last descriptor resets it, but a doorbell may hold that one for long. If
        // this fails the device is gone and touches nothing.
        if let Ok(command) = self.command() {
            let quiet = command & !COMMAND_BUS_MASTER;
            drop(self.write_configuration(COMMAND, &quiet.to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::pci::tests::FakeSysfs;
    use super::*;

    #[test]
    fn what_is_no_controller_for_us_is_refused_before_it_is_touched() {
        let (sysfs, dev) = (FakeSysfs::new(), tempfile::tempdir().unwrap());
        sysfs.add("0000:01:00.0", "0x010802", "nvme", Some(1));
        sysfs.add("0000:02:00.0", "0x010802", "", Some(2));
        sysfs.add("0000:03:00.0", "0x020000", "vfio-pci", Some(3));
        let options = VfioOptions { vectors: 2, access: VfioAccess::Any };
        for (address, expected) in [
            (
                "0000:01:00.0",
                "bound to nvme, not to vfio-pci; run as root: mount/bind-vfio 0000:01",
            ),
            ("0000:02:00.0", "bound to no driver, not to vfio-pci"),
            ("0000:03:00.0", "not an NVMe controller: its class is 020000"),
            ("0000:04:00.0", "no such PCI function"),
        ] {
            let address = address.parse().unwrap();
            let result = VfioTransport::open_below(sysfs.path(), dev.path(), address, options);
            let text = result.unwrap_err().to_string();
            assert!(text.contains(expected) && text.starts_with("0000:0"), "{text}");
        }
    }
}
