//! The controller as its users hold it: registers for a driver, steps for a test, switches for
//! both.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::cache::Memory;
use super::core::{Core, Ports};
use super::counters::Counters;
use super::fault::Fault;
use super::media::Media;
use crate::hw::dma::DmaArena;
use crate::hw::event::EventFd;
use crate::hw::pci::PciIdentity;
use crate::hw::transport::{DeviceWake, Doorbell, DoorbellMemory, DoorbellPage, Transport};
use crate::spec::command::Feature;
use crate::spec::identify::IdentifyNamespace;
use crate::spec::log::{
    AsyncEvent, AsyncEventType, LogPage, NOTIFY_FIRMWARE_ACTIVATION, NOTIFY_NAMESPACE_ATTRIBUTES,
};
use crate::spec::register::{CSTS, DOORBELLS, VERSION_1_4};
use crate::units::BlockCount;

/// What a controller is made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// What an operator calls it.
    pub name: String,
    /// Serial number, up to 20 ASCII characters. The namespace's identifiers derive from it.
    pub serial: String,
    /// I/O queue pairs, 1 to 1024.
    pub io_queues: u16,
    /// Entries of the largest queue, 2 or more.
    pub queue_entries: u16,
    /// Interrupt vectors, 1 to 2048; vector 0 is the admin queue's.
    pub vectors: u16,
    /// MDTS: the largest transfer is `2^max_transfer` pages of 4 KiB; 0 is no limit.
    pub max_transfer: u8,
    /// Whether writes may complete before they are durable (VWC).
    pub volatile_cache: bool,
    /// Whether that cache is switched on (feature 06h) when the power comes on.
    pub cache_enabled: bool,
    /// Whether the namespace takes part in it (VWCNP, from version 2.0 on).
    pub namespace_cached: bool,
    /// Version of the specification that it claims.
    pub version: u32,
    /// Whether it takes doorbells in memory (Doorbell Buffer Config). The thread's registers are
    /// memory too, so that there is nothing to gain but the test of a driver.
    pub shadow_doorbells: bool,
    /// Whether it takes SGLs in I/O commands.
    pub sgl: bool,
    /// DLFEAT: what a deallocated block reads as, and whether Write Zeroes deallocates. Blocks
    /// read as zeros whatever is said here.
    pub deallocate_features: u8,
    /// MTFA: how long activating firmware may take, in units of 100 ms; 0 says nothing.
    pub firmware_activation: u16,
    /// What it tells of itself on its bus, as if it had one.
    pub pci: Option<PciIdentity>,
    /// How long it takes to become ready. `Duration::MAX` is for ever.
    pub ready_delay: Duration,
    /// How long it takes to be disabled. `Duration::MAX` is for ever.
    pub disable_delay: Duration,
    /// Carry I/O commands out in an order that this seed picks, instead of that of submission.
    pub reorder: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            name: "emulated".to_owned(),
            serial: "LVOLFS0001".to_owned(),
            io_queues: 16,
            queue_entries: 1024,
            vectors: 17,
            max_transfer: 8,
            volatile_cache: true,
            cache_enabled: true,
            namespace_cached: true,
            version: VERSION_1_4,
            shadow_doorbells: false,
            sgl: true,
            deallocate_features: 1 | IdentifyNamespace::DLFEAT_WRITE_ZEROES,
            firmware_activation: 10,
            pci: None,
            ready_delay: Duration::ZERO,
            disable_delay: Duration::ZERO,
            reorder: None,
        }
    }
}

impl Settings {
    /// Identifies the namespace: the same serial number gives the same identifier.
    pub(super) fn uuid(&self) -> Uuid {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, self.serial.as_bytes())
    }
}

/// An NVMe controller in software with one namespace.
///
/// It does nothing by itself: either a test calls [`EmulatedController::step`], or a
/// [`ControllerThread`](super::ControllerThread) does.
pub struct EmulatedController {
    name: String,
    pci: Option<PciIdentity>,
    ports: Arc<Ports>,
    core: Mutex<Core>,
}

impl EmulatedController {
    /// A controller that was just powered on, with its namespace on `media`.
    ///
    /// # Errors
    /// The system's: no descriptors left for events.
    pub fn new(mut settings: Settings, media: impl Into<Media>) -> io::Result<Arc<Self>> {
        settings.io_queues = settings.io_queues.clamp(1, 1024);
        settings.queue_entries = settings.queue_entries.max(2);
        settings.vectors = settings.vectors.clamp(1, 2048);
        let doorbells = 2 * (usize::from(settings.io_queues) + 1);
        let vectors = (0..settings.vectors).map(|_| EventFd::new().map(Arc::new));
        let ports = Arc::new(Ports {
            doorbells: Arc::new(DoorbellPage::new(doorbells)),
            wake: Arc::new(DeviceWake::new()?),
            status: AtomicU32::new(0),
            vectors: vectors.collect::<io::Result<_>>()?,
        });
        Ok(Arc::new(Self {
            name: settings.name.clone(),
            pci: settings.pci,
            ports: Arc::clone(&ports),
            core: Mutex::new(Core::new(settings, ports, media.into())),
        }))
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        // A panic in a step is a defect of ours; what it left behind is still a controller.
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn device_wake(&self) -> &DeviceWake {
        &self.ports.wake
    }

    /// Looks at the doorbells and carries out up to `limit` commands; returns how many. Answers
    /// that were held back are posted as far as they are due.
    pub fn step(&self, limit: usize) -> usize {
        self.lock().step(limit)
    }

    /// Whether a step would find a doorbell that was rung or a command to begin.
    #[must_use]
    pub fn has_work(&self) -> bool {
        self.lock().has_work()
    }

    /// Moves the device's clock on: for delays, where no thread does.
    pub fn advance(&self, by: Duration) {
        let mut core = self.lock();
        core.clock = core.clock.saturating_add(by);
        core.pass_time();
    }

    /// Adds a fault.
    pub fn inject(&self, fault: Fault) {
        self.lock().faults.add(fault);
    }

    /// Takes all faults back that have not struck.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    /// Answers everything that [`FaultAction::Hold`](super::FaultAction::Hold) holds back.
    pub fn release_held(&self) {
        self.lock().release_held();
    }

    /// The controller fails: CSTS.CFS is set and nothing more is done until a reset.
    pub fn fail(&self) {
        self.lock().fail();
    }

    /// The controller is pulled out: registers read as all ones, and nothing more is done.
    pub fn unplug(&self) {
        self.lock().unplug();
    }

    /// The controller is put back, powered on.
    pub fn replug(&self) {
        self.lock().power_cycle();
    }

    /// The power goes, and comes back. Of what was written and not flushed, and of what was being
    /// written, chance decides what survives (see [`Memory::power_cut`]). A file keeps it all:
    /// its cache is the host's.
    pub fn power_cut(&self, seed: u64) {
        let mut core = self.lock();
        core.begin_all_writes();
        if let Media::Memory(memory) = &mut core.media {
            memory.power_cut(seed);
        }
        core.power_cycle();
    }

    /// The same, with a bit of `mask` for each undecided unit (see [`Memory::power_cut_keep`]).
    pub fn power_cut_keep(&self, mask: u64) {
        let mut core = self.lock();
        core.begin_all_writes();
        if let Media::Memory(memory) = &mut core.media {
            memory.power_cut_keep(mask);
        }
        core.power_cycle();
    }

    /// The memory at this moment, with what is being written begun, so that it can be cut with
    /// many seeds or masks. The controller itself is not changed. `None` for a file.
    #[must_use]
    pub fn snapshot(&self) -> Option<Memory> {
        let mut core = self.lock();
        let Media::Memory(memory) = &core.media else {
            return None;
        };
        let live = Media::Memory(memory.clone());
        let counters = core.counters;
        core.begin_all_writes();
        core.counters = counters;
        match std::mem::replace(&mut core.media, live) {
            Media::Memory(memory) => Some(memory),
            Media::File(_) => None,
        }
    }

    /// Looks at the memory, or prepares it, past the controller. `None` for a file.
    pub fn with_memory<R>(&self, look: impl FnOnce(&mut Memory) -> R) -> Option<R> {
        match &mut self.lock().media {
            Media::Memory(memory) => Some(look(memory)),
            Media::File(_) => None,
        }
    }

    /// Gives the namespace another size, and tells the host if it asked to be told. Memory only.
    pub fn resize(&self, blocks: BlockCount) {
        let mut core = self.lock();
        let Media::Memory(memory) = &mut core.media else {
            return;
        };
        memory.resize(blocks);
        self.tell_of_size(core);
    }

    /// Takes in what the file has gained, and tells the host of it. How many blocks there are now.
    ///
    /// # Errors
    /// The system's.
    pub fn rescan(&self) -> io::Result<BlockCount> {
        let mut core = self.lock();
        let grown = match &mut core.media {
            Media::File(file) => file.rescan()?,
            Media::Memory(_) => false,
        };
        let blocks = core.media.blocks();
        if grown {
            self.tell_of_size(core);
        }
        Ok(blocks)
    }

    fn tell_of_size(&self, mut core: MutexGuard<'_, Core>) {
        core.namespace_changed = true;
        if core.features.notifies(NOTIFY_NAMESPACE_ATTRIBUTES) {
            core.events.raise(AsyncEvent {
                event_type: AsyncEventType::NOTICE,
                information: AsyncEvent::NAMESPACE_ATTRIBUTES_CHANGED,
                log_page: LogPage::CHANGED_NAMESPACES,
            });
        }
        drop(core);
        self.ports.wake.wake();
    }

    /// New firmware is activated without a reset: the host is told if it asked to be, and no command
    /// is looked at until the time is over (CSTS.PP). `Duration::MAX` is for ever.
    pub fn activate_firmware(&self, takes: Duration) {
        let mut core = self.lock();
        if core.features.notifies(NOTIFY_FIRMWARE_ACTIVATION) {
            core.events.raise(AsyncEvent {
                event_type: AsyncEventType::NOTICE,
                information: AsyncEvent::FIRMWARE_ACTIVATION,
                log_page: LogPage::FIRMWARE,
            });
            core.report_events();
            core.interrupt();
        }
        core.pause(takes);
        drop(core);
        self.ports.wake.wake();
    }

    /// Sets the critical warnings of the SMART log page, and tells the host of new ones if it
    /// asked to be told.
    pub fn warn(&self, bits: u8) {
        let mut core = self.lock();
        let new = bits & !core.critical_warning;
        core.critical_warning = bits;
        if new != 0 && core.features.notifies(u32::from(new)) {
            core.events.raise(AsyncEvent {
                event_type: AsyncEventType::SMART,
                information: 0,
                log_page: LogPage::SMART,
            });
        }
        drop(core);
        self.ports.wake.wake();
    }

    /// The current value of a feature; `None` if it has none of that number.
    #[must_use]
    pub fn feature(&self, feature: Feature) -> Option<u32> {
        self.lock().features.get(feature, 0).ok()
    }

    /// What was counted so far.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }
}

impl Transport for EmulatedController {
    fn name(&self) -> &str {
        &self.name
    }

    fn identity(&self) -> Option<PciIdentity> {
        self.pci
    }

    fn read32(&self, offset: u32) -> u32 {
        if offset == CSTS {
            // A driver polls this while the controller may be busy with its medium.
            return self.ports.status.load(Ordering::Acquire);
        }
        self.lock().read32(offset)
    }

    fn write32(&self, offset: u32, value: u32) {
        match offset.checked_sub(DOORBELLS) {
            Some(bell) => self.ports.doorbells.store(bell as usize / 4, value),
            None => self.lock().write32(offset, value),
        }
        self.ports.wake.wake();
    }

    fn read64(&self, offset: u32) -> u64 {
        let core = self.lock();
        let low = u64::from(core.read32(offset));
        low | u64::from(core.read32(offset.saturating_add(4))) << 32
    }

    fn write64(&self, offset: u32, value: u64) {
        let mut core = self.lock();
        core.write32(offset, value as u32);
        core.write32(offset.saturating_add(4), (value >> 32) as u32);
    }

    fn doorbell(&self, offset: u32) -> io::Result<Doorbell> {
        let memory = Arc::clone(&self.ports.doorbells) as Arc<dyn DoorbellMemory>;
        let offset = offset.checked_sub(DOORBELLS);
        // Submission doorbells are the even ones. The controller need not be woken to learn that
        // completions were consumed.
        let submission = offset.is_some_and(|offset| offset / 4 % 2 == 0);
        let wake = submission.then(|| Arc::clone(&self.ports.wake));
        offset
            .and_then(|offset| Doorbell::new(memory, offset, wake))
            .ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// One arena at a time: another one takes its place only while the controller is disabled.
    fn map(&self, arena: &DmaArena) -> io::Result<()> {
        let mut core = self.lock();
        let in_use = core.registers.configuration().enabled();
        match core.window {
            Some((_, address)) if address == arena.address() => Ok(()),
            Some(_) if in_use => Err(io::ErrorKind::ResourceBusy.into()),
            _ => {
                core.window = Some((arena.window(), arena.address()));
                Ok(())
            }
        }
    }

    fn vectors(&self) -> u16 {
        self.ports.vectors.len() as u16
    }

    fn interrupt(&self, vector: u16) -> io::Result<Arc<EventFd>> {
        let event = self.ports.vectors.get(usize::from(vector));
        event.map(Arc::clone).ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    fn reset(&self) -> io::Result<()> {
        let mut core = self.lock();
        if core.is_gone() {
            return Err(io::ErrorKind::NotConnected.into());
        }
        core.power_on();
        Ok(())
    }
}

impl fmt::Debug for EmulatedController {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmulatedController").field("name", &self.name).finish_non_exhaustive()
    }
}
