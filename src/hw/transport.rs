//! The seam between a controller driver and the way to its registers: PCI through VFIO, or an
//! emulated controller in this process.
//!
//! Cold operations go through the [`Transport`] trait. The hot one, ringing a doorbell, goes
//! through [`Doorbell`], a plain store to memory that the transport mapped.

#![expect(unsafe_code, reason = "a doorbell is a volatile store to mapped memory")]

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};

use super::dma::DmaArena;
use super::event::EventFd;
use super::pci::PciIdentity;

/// How a driver reaches one controller. Register offsets are those of BAR 0 (NVMe Base 3.1).
///
/// Reads of a controller that is gone return all ones, as PCI does; writes to it are lost.
pub trait Transport: Send + Sync {
    /// What an operator calls this controller: a PCI address or a path.
    fn name(&self) -> &str;
    /// Who made it, as far as the bus tells.
    fn identity(&self) -> Option<PciIdentity> {
        None
    }
    /// Reads a 32-bit register.
    fn read32(&self, offset: u32) -> u32;
    /// Writes a 32-bit register.
    fn write32(&self, offset: u32, value: u32);
    /// Reads a 64-bit register.
    fn read64(&self, offset: u32) -> u64;
    /// Writes a 64-bit register.
    fn write64(&self, offset: u32, value: u64);
    /// The doorbell register at `offset` (0x1000 and up).
    ///
    /// # Errors
    /// If the controller has no doorbell there.
    fn doorbell(&self, offset: u32) -> io::Result<Doorbell>;
    /// Makes `arena` reachable at its device addresses, for as long as the transport lives.
    ///
    /// # Errors
    /// The system's, naming the remedy where there is one.
    fn map(&self, arena: &DmaArena) -> io::Result<()>;
    /// The number of interrupt vectors.
    fn vectors(&self) -> u16;
    /// The event that interrupt `vector` signals. Enables the vector.
    ///
    /// # Errors
    /// If there is no such vector or no event can be had.
    fn interrupt(&self, vector: u16) -> io::Result<Arc<EventFd>>;
    /// Resets the function: afterwards no memory is touched by the controller.
    ///
    /// # Errors
    /// If the controller cannot be reset.
    fn reset(&self) -> io::Result<()>;
    /// Takes the next thing that the system has to say about the device, if there is one.
    fn notice(&self) -> Option<Notice> {
        None
    }
}

/// What the system says about a device, beside what the device says itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// It wants the device back: it is being unplugged, or taken away from this process. It waits
    /// until the transport and all of its doorbells are dropped.
    ReleaseWanted,
    /// The bus reported an error of the device that it cannot correct.
    BusError,
}

/// Memory that holds doorbells: the mapped BAR, or the emulated controller's page.
pub trait DoorbellMemory: Send + Sync {
    /// The address of the 32-bit register at `offset` bytes from the first doorbell, or `None`
    /// outside. It must stay valid for as long as `self` lives.
    fn register(&self, offset: u32) -> Option<NonNull<u32>>;
}

/// How to wake an emulated controller's thread that went to sleep.
#[derive(Debug)]
pub struct DeviceWake {
    sleeping: AtomicBool,
    event: EventFd,
}

impl DeviceWake {
    /// A wake-up for a device that is awake.
    ///
    /// # Errors
    /// The system's: no descriptors left.
    pub fn new() -> io::Result<Self> {
        Ok(Self { sleeping: AtomicBool::new(false), event: EventFd::new()? })
    }

    /// Device side: sleeps until woken, unless `work` finds something to do after the intention
    /// to sleep was made visible. `timeout_ms` bounds the sleep.
    pub fn sleep_unless(&self, timeout_ms: Option<u32>, work: impl FnOnce() -> bool) {
        self.sleeping.store(true, Ordering::Relaxed);
        // Pairs with the fence in `wake`: either the host sees `sleeping`, or `work` sees what
        // the host stored before it looked.
        fence(Ordering::SeqCst);
        if !work() {
            self.event.wait(timeout_ms);
        }
        self.sleeping.store(false, Ordering::Relaxed);
        self.event.consume();
    }

    /// Host side: called after a store that the device must notice.
    #[inline]
    pub fn wake(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            self.event.signal();
        }
    }
}

/// One doorbell register.
#[derive(Clone)]
pub struct Doorbell {
    register: NonNull<u32>,
    wake: Option<Arc<DeviceWake>>,
    /// Keeps the register mapped.
    _memory: Arc<dyn DoorbellMemory>,
}

// SAFETY: the register is a device register or an atomic; any thread may store to it.
unsafe impl Send for Doorbell {}

impl Doorbell {
    /// The doorbell at `offset` of `memory`, with the wake-up of an emulated device, if any.
    #[must_use]
    pub fn new(
        memory: Arc<dyn DoorbellMemory>,
        offset: u32,
        wake: Option<Arc<DeviceWake>>,
    ) -> Option<Self> {
        let register = memory.register(offset)?;
        Some(Self { register, wake, _memory: memory })
    }

    /// Rings: everything stored before is visible to the device when it sees `value`.
    #[inline]
    pub fn ring(&self, value: u32) {
        fence(Ordering::Release);
        // SAFETY: `_memory` keeps the register valid (contract of `DoorbellMemory`).
        unsafe { self.register.as_ptr().write_volatile(value.to_le()) };
        if let Some(wake) = &self.wake {
            wake.wake();
        }
    }
}

impl std::fmt::Debug for Doorbell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doorbell").finish_non_exhaustive()
    }
}

/// Doorbells in ordinary memory, which an emulated controller polls.
#[derive(Debug)]
pub struct DoorbellPage(Box<[AtomicU32]>);

impl DoorbellPage {
    /// A page of `registers` doorbells, all 0.
    #[must_use]
    pub fn new(registers: usize) -> Self {
        Self((0..registers).map(|_| AtomicU32::new(0)).collect())
    }

    /// Device side: the value last rung, with everything the host stored before it visible.
    #[must_use]
    pub fn load(&self, register: usize) -> Option<u32> {
        self.0.get(register).map(|value| u32::from_le(value.load(Ordering::Acquire)))
    }

    /// Device side: sets a register, as a reset or the creation of a queue does.
    pub fn store(&self, register: usize, value: u32) {
        if let Some(slot) = self.0.get(register) {
            slot.store(value.to_le(), Ordering::Relaxed);
        }
    }
}

impl DoorbellMemory for DoorbellPage {
    fn register(&self, offset: u32) -> Option<NonNull<u32>> {
        if !offset.is_multiple_of(4) {
            return None;
        }
        let slot = self.0.get(offset as usize / 4)?;
        NonNull::new(slot.as_ptr())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rung_doorbell_is_seen_and_wakes_the_device() {
        let page = Arc::new(DoorbellPage::new(4));
        let wake = Arc::new(DeviceWake::new().unwrap());
        let bell = Doorbell::new(Arc::clone(&page) as _, 8, Some(Arc::clone(&wake))).unwrap();
        assert!(Doorbell::new(Arc::clone(&page) as _, 16, None).is_none());
        assert!(Doorbell::new(Arc::clone(&page) as _, 2, None).is_none());
        let device = std::thread::spawn({
            let page = Arc::clone(&page);
            move || {
                while page.load(2) == Some(0) {
                    wake.sleep_unless(None, || page.load(2) != Some(0));
                }
                page.load(2)
            }
        });
        bell.ring(5);
        assert_eq!(device.join().unwrap(), Some(5));
    }
}
